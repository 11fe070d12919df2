package host

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
	"golang.org/x/sys/unix"
)

// batchConn is a UDP socket of either family that takes many packets in one call.
type batchConn struct {
	*net.UDPConn
	v4 *ipv4.PacketConn
	v6 *ipv6.PacketConn
}

// listenBatch opens one on an address, with the kernel's time of arrival and the address that a packet came to.
func listenBatch(addr netip.AddrPort) (*batchConn, error) {
	u, err := net.ListenUDP(map[bool]string{true: "udp4", false: "udp6"}[addr.Addr().Is4()], net.UDPAddrFromAddrPort(addr))
	if err != nil {
		return nil, err
	}
	forceBuffer(u, unix.SO_RCVBUFFORCE)
	forceBuffer(u, unix.SO_SNDBUFFORCE)
	raw, err := u.SyscallConn()
	if err == nil {
		var set error
		err = raw.Control(func(fd uintptr) {
			set = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_TIMESTAMPNS, 1)
			if addr.Addr().Is4() {
				set = errors.Join(set, unix.SetsockoptInt(int(fd), unix.SOL_IP, unix.IP_PKTINFO, 1))
			} else {
				set = errors.Join(set, unix.SetsockoptInt(int(fd), unix.SOL_IPV6, unix.IPV6_RECVPKTINFO, 1))
			}
		})
		err = errors.Join(err, set)
	}
	if err != nil {
		u.Close()
		return nil, err
	}
	c := &batchConn{UDPConn: u}
	if addr.Addr().Is4() {
		c.v4 = ipv4.NewPacketConn(u)
	} else {
		c.v6 = ipv6.NewPacketConn(u)
	}
	return c, nil
}

// from is the control message that has a packet leave from an address.
func (c *batchConn) from(a netip.Addr) []byte {
	if c.v4 != nil {
		return (&ipv4.ControlMessage{Src: a.AsSlice()}).Marshal()
	}
	return (&ipv6.ControlMessage{Src: a.AsSlice()}).Marshal()
}

// send hands over all packets, and returns how many the stack refused.
func (c *batchConn) send(ms []ipv4.Message) (refused uint64) {
	for len(ms) > 0 {
		var n int
		var err error
		if c.v4 != nil {
			n, err = c.v4.WriteBatch(ms, 0)
		} else {
			n, err = c.v6.WriteBatch(ms, 0)
		}
		if n <= 0 {
			if errors.Is(err, net.ErrClosed) {
				return refused
			}
			n = 1 // the first one is what it did not take
			refused++
		}
		ms = ms[n:]
	}
	return refused
}

// each receives until the socket is closed. The packet is valid during the call. to is the address that it came to.
func (c *batchConn) each(take func(p []byte, from net.Addr, to netip.Addr, at int64)) error {
	ms := make([]ipv4.Message, 64)
	for i := range ms {
		ms[i].Buffers, ms[i].OOB = [][]byte{make([]byte, 2048)}, make([]byte, 128)
	}
	for {
		var n int
		var err error
		if c.v4 != nil {
			n, err = c.v4.ReadBatch(ms, 0)
		} else {
			n, err = c.v6.ReadBatch(ms, 0)
		}
		if errors.Is(err, net.ErrClosed) {
			return nil
		}
		if err != nil {
			return err
		}
		for i := range ms[:n] {
			to, at := arrival(ms[i].OOB[:ms[i].NN])
			take(ms[i].Buffers[0][:ms[i].N], ms[i].Addr, to, at)
		}
	}
}

// pace calls fn once each interval until ctx ends. What was missed is not made up for: a burst would hide a silence. A pause is from before one call to behind the next: no flow
// was silent for longer by its sender, wherever in the two that was held up.
func (s *FlowSide) pace(ctx context.Context, interval time.Duration, mu *sync.Mutex, fn func()) {
	last := int64(0)
	for due := time.Now(); sleepUntil(ctx, due); {
		now := time.Now().UnixNano()
		fn()
		mu.Lock()
		s.Pauses = silence(s.Pauses, &s.floor, last, time.Now().UnixNano())
		mu.Unlock()
		last = now
		if due = due.Add(interval); time.Since(due) > interval {
			due = time.Now()
		}
	}
	s.Ended = last
}
