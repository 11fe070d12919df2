package api

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"
)

func (e echo) Ping(ctx context.Context, r ProbeRequest, emit func(*ProbeEvent) error) error {
	if e.fault != nil {
		return e.fault
	}
	for i := range r.Count {
		if err := emit(&ProbeEvent{Event: "reply", Seq: i + 1, From: r.Address}); err != nil {
			return err
		}
	}
	if r.Size == 1 {
		<-ctx.Done()
		return ctx.Err()
	}
	if r.Size == 2 {
		return errors.New("broke off")
	}
	return emit(&ProbeEvent{Event: "end"})
}

func (e echo) Traceroute(ctx context.Context, r ProbeRequest, emit func(*ProbeEvent) error) error {
	return e.Ping(ctx, r, emit)
}

// Events arrive as they happen, a refusal is a refusal, and what breaks off is not taken for an end.
func TestProbeEventsArriveAsTheyHappen(t *testing.T) {
	c, _ := serve(t, echo{})
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	n := 0
	err := c.Probe(ctx, PathPing, ProbeRequest{Address: "x", Count: 3, Size: 1}, func(e *ProbeEvent) error {
		if n++; n == 3 { // the node goes on; nothing more comes
			cancel()
		}
		return nil
	})
	if n != 3 || err != nil {
		t.Errorf("%d events, %v", n, err)
	}
	if err := c.Probe(t.Context(), PathTrace, ProbeRequest{Count: 1, Size: 2}, func(*ProbeEvent) error { return nil }); err == nil || !strings.Contains(err.Error(), "broke off") {
		t.Errorf("broken off: %v", err)
	}
	stop := errors.New("enough")
	if err := c.Probe(t.Context(), PathPing, ProbeRequest{Count: 5}, func(*ProbeEvent) error { return stop }); err != stop {
		t.Errorf("%v", err)
	}
	c, _ = serve(t, echo{fault: BadRequest("no")})
	if err := c.Probe(t.Context(), PathPing, ProbeRequest{}, nil); err == nil || err.Error() != "no" {
		t.Errorf("refused: %v", err)
	}
}
