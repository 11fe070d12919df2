package transport

import (
	"crypto/tls"
	"errors"
	"net"
	"testing"

	"golang.org/x/sys/unix"
)

// TestSessionsAreBulk: a connection for sessions goes in the last band of the queues of this machine, is marked so on the wire, holds little that is not sent, and tells who has dialled.
func TestSessionsAreBulk(t *testing.T) {
	a := authority(t)
	now := at(noon).now
	one := listen(t, Config{Keys: keys(t, a, "gw1", now), Self: func() Hello { return Hello{ID: "id of gw1"} }})
	two := listen(t, Config{Keys: keys(t, a, "gw2", now)})
	got := make(chan net.Conn, 1)
	go func() {
		if c, err := two.SessionConns().Accept(); err == nil {
			got <- c
		}
	}()
	c, err := one.DialSessions(t.Context(), two.Address())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	in := <-got
	defer in.Close()
	if p := PeerOf(in); p.Name != "gw1" || p.Raft || IDOf(in) != "id of gw1" || IDOf(c) != "" {
		t.Errorf("comes from %+v, %q", p, IDOf(in))
	}
	if p := PeerOf(c); p.Name != "gw2" {
		t.Errorf("goes to %+v", p)
	}
	raw, err := c.(*tls.Conn).NetConn().(*net.TCPConn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	if err := raw.Control(func(fd uintptr) {
		for _, o := range []struct {
			name                string
			level, option, want int
		}{{"TOS", unix.IPPROTO_IP, unix.IP_TOS, 8 << 2}, {"priority", unix.SOL_SOCKET, unix.SO_PRIORITY, 2}, {"unsent", unix.IPPROTO_TCP, unix.TCP_NOTSENT_LOWAT, unsent}} {
			if v, err := unix.GetsockoptInt(int(fd), o.level, o.option); err != nil || v != o.want {
				t.Errorf("%s is %d, want %d: %v", o.name, v, o.want, err)
			}
		}
	}); err != nil {
		t.Fatal(err)
	}
}

// TestEarlierReleaseTakesNoSessions: a member that does not know the protocol is named as one of an earlier release.
func TestEarlierReleaseTakesNoSessions(t *testing.T) {
	a := authority(t)
	now := at(noon).now
	one, old := listen(t, Config{Keys: keys(t, a, "gw1", now)}), keys(t, a, "gw2", now)
	l, err := tls.Listen("tcp", "127.0.0.1:0", old.serve(nil, protoRaft, protoRequest, protoKeys))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_ = c.(*tls.Conn).Handshake() // fails
			c.Close()
		}
	}()
	if c, err := one.DialSessions(t.Context(), l.Addr().String()); !errors.Is(err, ErrNoSessions) {
		t.Errorf("%v, %v, want %v", c, err, ErrNoSessions)
	}
}
