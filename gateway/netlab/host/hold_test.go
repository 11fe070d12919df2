package host

import (
	"net"
	"testing"

	"golang.org/x/sys/unix"
)

// An idle connection carries nothing: neither end asks after the other by itself.
func TestIdleConnectionsAreSilent(t *testing.T) {
	ln, err := listenSilent(t.Context(), "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	came := make(chan net.Conn, 1)
	go func() {
		c, err := ln.Accept()
		if err != nil {
			t.Error(err)
		}
		came <- c
	}()
	near, err := silent("127.0.0.1").DialContext(t.Context(), "tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer near.Close()
	far := <-came
	if far == nil {
		return
	}
	defer far.Close()
	for end, c := range map[string]net.Conn{"who opened it": near, "who took it": far} {
		raw, err := c.(*net.TCPConn).SyscallConn()
		if err != nil {
			t.Fatal(err)
		}
		var on int
		if e := raw.Control(func(fd uintptr) { on, err = unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_KEEPALIVE) }); e != nil || err != nil {
			t.Fatal(e, err)
		}
		if on != 0 {
			t.Errorf("%s asks after the other end by itself", end)
		}
	}
}
