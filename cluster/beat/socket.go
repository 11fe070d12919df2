package beat

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"syscall"

	"golang.org/x/sys/unix"
)

const (
	dscpCS6  = 48 << 2 // network control (RFC 4594, 3.1), as it stands in the TOS or traffic class byte
	priority = 6       // the highest that needs no privilege: the first band of the usual queue
	bufBytes = 1 << 20
)

// socket is one address of this node's: the local end of its paths.
type socket struct {
	conn  *net.UDPConn
	raw   syscall.RawConn
	local netip.AddrPort // bound
	tell  netip.AddrPort // what others reach it by
}

// open binds an address. One that is not there yet, because its link is not, is no reason to fail: it works from when it is.
func open(local, tell netip.AddrPort) (*socket, error) {
	lc := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		var err error
		if e := c.Control(func(fd uintptr) { err = options(int(fd), local.Addr()) }); e != nil {
			return e
		}
		return err
	}}
	pc, err := lc.ListenPacket(context.Background(), "udp", local.String())
	if err != nil {
		return nil, fmt.Errorf("cluster address for datagrams: %w", err)
	}
	conn, ok := pc.(*net.UDPConn)
	if !ok {
		return nil, errors.New("cluster address for datagrams: not UDP")
	}
	raw, err := conn.SyscallConn()
	if err != nil {
		conn.Close()
		return nil, err
	}
	bound := conn.LocalAddr().(*net.UDPAddr).AddrPort()
	local = netip.AddrPortFrom(local.Addr(), bound.Port())
	if tell.Port() == 0 {
		tell = netip.AddrPortFrom(tell.Addr(), bound.Port())
	}
	return &socket{conn: conn, raw: raw, local: local, tell: tell}, nil
}

// options marks what leaves: it goes before bulk data here and, where the network honours it, on the way.
func options(fd int, a netip.Addr) error {
	six := a.Is6() && !a.Is4In6()
	var errs []error
	set := func(level, name, value int) { errs = append(errs, unix.SetsockoptInt(fd, level, name, value)) }
	if six {
		set(unix.IPPROTO_IPV6, unix.IPV6_TCLASS, dscpCS6)
		set(unix.IPPROTO_IPV6, unix.IPV6_FREEBIND, 1)
		set(unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER, unix.IPV6_PMTUDISC_DONT)
	} else {
		set(unix.IPPROTO_IP, unix.IP_TOS, dscpCS6)
		set(unix.IPPROTO_IP, unix.IP_FREEBIND, 1)
		set(unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_DONT) // many groups make a large message: in pieces rather than not at all
	}
	set(unix.SOL_SOCKET, unix.SO_PRIORITY, priority) // after TOS, which changes it
	set(unix.SOL_SOCKET, unix.SO_RCVBUF, bufBytes)   // the kernel takes what it allows of it
	return errors.Join(errs...)
}

// sender sends on one path without ever waiting. Whoever uses it holds the peer's lock.
type sender struct {
	raw  syscall.RawConn
	to   unix.Sockaddr
	data []byte
	err  error
	call func(fd uintptr) bool // made once: a closure for each datagram would be garbage
}

func newSender(s *socket, to netip.AddrPort) *sender {
	w := &sender{raw: s.raw, to: sockaddr(to, s.local.Addr())}
	w.call = func(fd uintptr) bool {
		w.err = unix.Sendto(int(fd), w.data, unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL, w.to)
		return true
	}
	return w
}

// sockaddr is an address as a socket of this family takes it.
func sockaddr(to netip.AddrPort, local netip.Addr) unix.Sockaddr {
	a := to.Addr().Unmap()
	if a.Is4() && local.Is4() {
		return &unix.SockaddrInet4{Port: int(to.Port()), Addr: a.As4()}
	}
	return &unix.SockaddrInet6{Port: int(to.Port()), Addr: a.As16()} // of an IPv4 address the mapped form
}

func (w *sender) send(b []byte) error {
	w.data = b
	err := w.raw.Write(w.call)
	if err == nil {
		err = w.err
	}
	w.data = nil
	return err
}
