package api

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// cutShort serves a socket where nothing is answered to its end: a request is read, or not, and the connection closed, behind the beginning of an answer if there is to be one.
func cutShort(t *testing.T, read bool, begin string) *Client {
	t.Helper()
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if read {
			_, _ = io.Copy(io.Discard, r.Body)
		}
		c, _, err := http.NewResponseController(w).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		_, _ = io.WriteString(c, begin)
		c.Close()
	})}
	done := make(chan struct{})
	go func() { defer close(done); _ = srv.Serve(l) }()
	c := Dial(path)
	t.Cleanup(func() { c.Close(); srv.Close(); <-done })
	return c
}

// TestUnheardAnswers: who has sent all of a change and hears nothing of it is told that it may have happened, and what says so. Questions, and what did not get there, are not a word longer.
func TestUnheardAnswers(t *testing.T) {
	const words = ": whether it took effect is not known: `demarc "
	half := "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{"
	for _, rt := range routes {
		if rt.tells == "" {
			continue
		}
		err := cutShort(t, true, "").Post(t.Context(), rt.path, none{}, new(any))
		if err == nil || !strings.HasSuffix(err.Error(), fmt.Sprintf("EOF: whether it took effect is not known: `%s` tells", rt.tells)) {
			t.Errorf("%s: %v", rt.path, err)
		}
	}
	if err := cutShort(t, true, half).Post(t.Context(), PathApply, ApplyRequest{}, new(Applied)); err == nil || !strings.Contains(err.Error(), "read the node's answer: unexpected EOF"+words+"history` tells") {
		t.Errorf("half an answer: %v", err)
	}
	for name, err := range map[string]error{
		"a question": cutShort(t, true, "").Get(t.Context(), PathStatus, new(Status)),
		"a diff":     cutShort(t, true, "").Post(t.Context(), PathDiff, DiffRequest{}, new(Diff)),
		"half asked": cutShort(t, false, "").Post(t.Context(), PathApply, ApplyRequest{Policy: strings.Repeat("x", MaxPolicy)}, new(Applied)),
		"nobody":     Dial(filepath.Join(t.TempDir(), "none")).Post(t.Context(), PathApply, ApplyRequest{}, new(Applied)),
	} {
		if err == nil || strings.Contains(err.Error(), "took effect") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// slow takes its time to serve a policy, and to say what it is.
type slow struct {
	tenants
	takes time.Duration
}

func (s slow) Apply(ctx context.Context, r ApplyRequest) (*Applied, error) {
	time.Sleep(s.takes)
	return s.tenants.Apply(ctx, r)
}

func (s slow) Drops(ctx context.Context) (*Drops, error) {
	time.Sleep(s.takes)
	return s.tenants.Drops(ctx)
}

// TestAChangeMayTakeItsTime: a change is waited for longer than an answer, and over TCP its answer has its time from when it is there.
func TestAChangeMayTakeItsTime(t *testing.T) {
	b := slow{takes: time.Second}
	c, _ := serve(t, b)
	c.http.Timeout = 100 * time.Millisecond
	if err := c.Get(t.Context(), PathDrops, new(Drops)); err == nil {
		t.Error("an answer is waited for beyond its time")
	}
	if err := c.Post(t.Context(), PathApply, ApplyRequest{}, new(Applied)); err != nil {
		t.Errorf("a change: %v", err)
	}
	lim := remoteLimits
	lim.answer = b.takes / 4
	if err := remote(t, lim, b).as("alice").Post(t.Context(), PathApply, ApplyRequest{}, new(Applied)); err != nil {
		t.Errorf("a change over TCP: %v", err)
	}
}

// An answer that is longer than a client reads is said to be so, and is not taken for a broken one.
func TestAnAnswerIsTooLong(t *testing.T) {
	c, _ := serve(t, slow{})
	defer func(n int) { mostAnswer = n }(mostAnswer)
	mostAnswer = 16
	if err := c.Get(t.Context(), PathDrops, new(Drops)); err == nil || !strings.Contains(err.Error(), "ask for less") {
		t.Error(err)
	}
}
