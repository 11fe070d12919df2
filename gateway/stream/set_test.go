package stream

import (
	"context"
	"errors"
	"fmt"
	"net"
	"testing"
	"testing/synctest"
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

// TestRefusedIsTriedSoon: where the machine is there and nobody listens a process is about to, so it is dialled often; where nothing answers it is not.
func TestRefusedIsTriedSoon(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	at := l.Addr().String()
	l.Close()
	synctest.Test(t, func(t *testing.T) {
		tries := func(err error) (n int) {
			s := NewSet("b", 7)
			ctx, cancel := context.WithTimeout(t.Context(), 21*time.Second)
			defer cancel()
			s.Run(ctx, func(context.Context) (net.Conn, error) { n++; return nil, fmt.Errorf("connect: %w", err) })
			return n
		}
		_, nobody := net.Dial("tcp", at)
		if n := tries(nobody); n < 100 || n > 110 {
			t.Errorf("tried %d times in 21 s where nobody listens (%v), want some 105", n, nobody)
		}
		if n := tries(context.DeadlineExceeded); n < 10 || n > 16 {
			t.Errorf("tried %d times in 21 s where nothing answers, want some 14", n)
		}
	})
}
