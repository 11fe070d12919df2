package transport

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"syscall"

	"golang.org/x/sys/unix"
)

// ListenTCP listens on an address of this machine's, also one that no link has yet (ip(7), IP_FREEBIND): a management port may come up after the node, and must not keep it from serving. here says whether a link has it now; where it cannot
// be found out it is said to.
func ListenTCP(address string) (l net.Listener, here bool, err error) {
	c := net.ListenConfig{Control: func(network, _ string, raw syscall.RawConn) error {
		var err error
		e := raw.Control(func(fd uintptr) {
			if err = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_FREEBIND, 1); network == "tcp6" {
				err = unix.SetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_FREEBIND, 1)
			}
		})
		return errors.Join(e, err)
	}}
	if l, err = c.Listen(context.Background(), "tcp", address); err != nil {
		return nil, false, err
	}
	at, err := netip.ParseAddrPort(l.Addr().String())
	if err != nil || at.Addr().IsUnspecified() {
		return l, true, nil
	}
	list, err := net.InterfaceAddrs()
	if err != nil {
		return l, true, nil
	}
	for _, a := range list {
		if p, err := netip.ParsePrefix(a.String()); err == nil && (p.Addr().Unmap() == at.Addr().Unmap().WithZone("") || p.Addr().IsLoopback() && p.Contains(at.Addr().Unmap())) {
			return l, true, nil
		}
	}
	return l, false, nil
}
