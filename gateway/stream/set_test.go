package stream

import (
	"context"
	"errors"
	"net"
	"testing"
	"time"

	"demarc/gateway/replica"
)

// TestCloseFreesAll: whoever waits for a stream whose owner is gone does not wait when the set ends.
func TestCloseFreesAll(t *testing.T) {
	s := NewSet("b", 7)
	tb := &table{}
	s.Add(replica.NewSender(tb, 64, 0, 1, 7, 9, replica.Limits{}), func() {})
	here, there := net.Pipe()
	b := newStandby(1)
	go b.serve(there)
	done := make(chan struct{})
	go func() {
		defer close(done)
		s.Run(t.Context(), func(context.Context) (net.Conn, error) { return here, nil })
	}()
	time.AfterFunc(50*time.Millisecond, s.Close)
	select {
	case <-done:
	case <-time.After(10 * time.Second):
		t.Fatal("it waits for an owner that never comes")
	}
	if err := s.Own(t.Context(), 1, 1); err != nil && !errors.Is(err, ErrEnded) {
		t.Error(err)
	}
}
