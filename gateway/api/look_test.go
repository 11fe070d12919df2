package api

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"
)

// streamer streams until its client goes.
type streamer struct {
	echo
	gone chan error
}

func (s streamer) Explain(_ context.Context, r ExplainRequest) (*Explanation, error) {
	return &Explanation{Interface: r.Interface}, nil
}

func (s streamer) Trace(ctx context.Context, r TraceRequest, emit func(*StreamLine) error) error {
	if r.Tenant == "nobody" {
		return &Fault{Status: 400, Err: errors.New("there is no tenant")}
	}
	if err := emit(&StreamLine{Begin: &StreamBegin{Node: "n"}}); err != nil {
		return err
	}
	if r.Count == 1 {
		return errors.New("half way")
	}
	<-ctx.Done()
	s.gone <- ctx.Err()
	return ctx.Err()
}
func (s streamer) Capture(context.Context, CaptureRequest, func(*StreamLine) error) error { return nil }
func (s streamer) Dropped(context.Context, DroppedRequest, func(*StreamLine) error) error { return nil }

// The node notices that a client has gone from a stream on which nothing happens.
func TestAStreamEndsWithItsClient(t *testing.T) {
	s := streamer{gone: make(chan error, 1)}
	c, _ := serve(t, s)
	ctx, cancel := context.WithCancel(t.Context())
	if err := c.Stream(ctx, PathFollow, TraceRequest{}, func(l *StreamLine) error {
		if l.Begin == nil || l.Begin.Node != "n" {
			t.Errorf("%+v", l)
		}
		cancel()
		return nil
	}); err != nil {
		t.Error(err)
	}
	select {
	case <-s.gone:
	case <-time.After(10 * time.Second):
		t.Fatal("the node goes on")
	}
	var f *Fault
	if err := c.Stream(t.Context(), PathFollow, TraceRequest{PacketFilter: PacketFilter{SessionFilter: SessionFilter{Tenant: "nobody"}}}, nil); !errors.As(err, &f) || f.Status != 400 {
		t.Errorf("an error before the first line: %v", err)
	}
	why := ""
	if err := c.Stream(t.Context(), PathFollow, TraceRequest{Count: 1}, func(l *StreamLine) error {
		if l.End != nil {
			why = l.End.Why
		}
		return nil
	}); err != nil || why != "half way" {
		t.Errorf("an error after it: %q, %v", why, err)
	}
	var x Explanation
	if err := c.Post(t.Context(), PathExplain, ExplainRequest{Interface: "wan"}, &x); err != nil || x.Interface != "wan" {
		t.Errorf("%+v, %v", x, err)
	}
	if err := c.Post(t.Context(), PathExplain, map[string]int{"nonsense": 1}, &x); err == nil || !strings.Contains(err.Error(), "nonsense") {
		t.Errorf("an unknown field: %v", err)
	}
}
