package transport

import (
	"context"
	"errors"
	"net"
	"sync/atomic"
	"testing"
	"time"
)

// The first attempt is never answered, as when its SYN was lost: the second one is begun beside it and comes through, and what is left of the first is ended.
func TestAnotherAttemptComesThrough(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	var began, ended atomic.Int32
	k := connector{dial: func(ctx context.Context, network, address string) (net.Conn, error) {
		if began.Add(1) == 1 {
			<-ctx.Done()
			ended.Add(1)
			return nil, ctx.Err()
		}
		return new(net.Dialer).DialContext(ctx, network, address)
	}}
	start := time.Now()
	c, err := k.connect(t.Context(), l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
	if took := time.Since(start); took < anotherAfter || took > 4*anotherAfter {
		t.Errorf("it came about after %s, want some %s", took, anotherAfter)
	}
	eventually(t, "the first attempt to end", func() bool { return ended.Load() == 1 })
	if n := began.Load(); n != 2 {
		t.Errorf("%d attempts, want 2", n)
	}
}

// What is refused is no reason to try again, and a context that ends is one to stop. A connection that comes about too late is closed.
func TestAttemptsEnd(t *testing.T) {
	refused := errors.New("refused")
	k := connector{dial: func(context.Context, string, string) (net.Conn, error) { return nil, refused }}
	if _, err := k.connect(t.Context(), "a"); !errors.Is(err, refused) {
		t.Errorf("%v, want that it is refused", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	a, b := net.Pipe()
	late := make(chan struct{})
	k.dial = func(ctx context.Context, _, _ string) (net.Conn, error) {
		<-ctx.Done()
		<-late
		return a, nil
	}
	if _, err := k.connect(ctx, "a"); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("%v, want the end of its time", err)
	}
	close(late)
	_ = b.SetReadDeadline(time.Now().Add(5 * time.Second))
	if _, err := b.Read(make([]byte, 1)); err == nil || errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a connection that came too late is open: %v", err)
	}
}

// Where an answer takes long, another attempt waits for longer than that: it would be in vain each time, and the other end would have to turn it away.
func TestAttemptsWaitForSlowPaths(t *testing.T) {
	a, _ := net.Pipe()
	var began atomic.Int32
	k := connector{dial: func(context.Context, string, string) (net.Conn, error) {
		began.Add(1)
		time.Sleep(anotherAfter + 50*time.Millisecond)
		return a, nil
	}}
	for i, want := range []int32{2, 1} {
		began.Store(0)
		if _, err := k.connect(t.Context(), "a"); err != nil {
			t.Fatal(err)
		}
		if n := began.Load(); n != want {
			t.Errorf("time %d: %d attempts, want %d", i+1, n, want)
		}
	}
}
