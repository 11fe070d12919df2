package host

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"runtime"
	"runtime/debug"
	"syscall"
	"time"

	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
	"golang.org/x/sys/unix"
)

// flowSocket is a UDP socket that takes many packets in one call, and that the runtime's poller does not know: a packet that comes, or has left, wakes nobody. It is looked
// at now and then, and the kernel's time of arrival is what counts.
type flowSocket struct {
	*net.UDPConn // nil: of a packet connection only what is below is asked
	fd           direct
	v4           *ipv4.PacketConn
	v6           *ipv6.PacketConn
	in           inbox
}

// inbox is room for what one call takes. Sockets that one goroutine looks at share one.
type inbox []ipv4.Message

func newInbox() inbox {
	in := make(inbox, flowBatch)
	for i := range in {
		in[i].Buffers, in[i].OOB = [][]byte{make([]byte, 2048)}, make([]byte, 128)
	}
	return in
}

// direct calls the kernel at once, whether a socket is ready or not.
type direct int

func (d direct) Control(f func(uintptr)) error { f(uintptr(d)); return nil }

func (d direct) Read(f func(uintptr) bool) error {
	if !f(uintptr(d)) {
		return unix.EAGAIN
	}
	return nil
}

func (d direct) Write(f func(uintptr) bool) error { return d.Read(f) }

func (s *flowSocket) SyscallConn() (syscall.RawConn, error) { return s.fd, nil }
func (s *flowSocket) LocalAddr() net.Addr                   { return &net.UDPAddr{} }
func (s *flowSocket) Close() error                          { return unix.Close(int(s.fd)) }

const (
	lookEvery = 4 * time.Millisecond // how often sockets are looked at
	flowBatch = 64                   // packets in one call
)

// openFlowSocket opens one on an address.
func openFlowSocket(at netip.AddrPort, in inbox) (*flowSocket, error) {
	domain, level, info := unix.AF_INET, unix.SOL_IP, unix.IP_PKTINFO
	var to unix.Sockaddr
	if at.Addr().Is4() {
		to = &unix.SockaddrInet4{Port: int(at.Port()), Addr: at.Addr().As4()}
	} else {
		domain, level, info = unix.AF_INET6, unix.SOL_IPV6, unix.IPV6_RECVPKTINFO
		to = &unix.SockaddrInet6{Port: int(at.Port()), Addr: at.Addr().As16()}
	}
	fd, err := unix.Socket(domain, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	for _, opt := range []int{unix.SO_RCVBUFFORCE, unix.SO_SNDBUFFORCE} {
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, opt, 32<<20) // without the right to it the default stays
	}
	err = errors.Join(unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TIMESTAMPNS, 1), unix.SetsockoptInt(fd, level, info, 1))
	if err == nil && at.Addr().Is6() {
		err = unix.SetsockoptInt(fd, level, unix.IPV6_V6ONLY, 1)
	}
	if err == nil {
		err = unix.Bind(fd, to)
	}
	if err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("socket on %s: %w", at, err)
	}
	s := &flowSocket{fd: direct(fd), in: in}
	if at.Addr().Is4() {
		s.v4 = ipv4.NewPacketConn(s)
	} else {
		s.v6 = ipv6.NewPacketConn(s)
	}
	return s, nil
}

// send hands over all packets, and returns how many the stack refused.
func (s *flowSocket) send(ms []ipv4.Message) (refused uint64) {
	for len(ms) > 0 {
		var n int
		if s.v4 != nil {
			n, _ = s.v4.WriteBatch(ms[:min(len(ms), flowBatch)], unix.MSG_DONTWAIT)
		} else {
			n, _ = s.v6.WriteBatch(ms[:min(len(ms), flowBatch)], unix.MSG_DONTWAIT)
		}
		if n <= 0 {
			n = 1 // the first one is what it did not take
			refused++
		}
		ms = ms[n:]
	}
	return refused
}

// each takes all that has come. The packet is valid during the call. to is the address that it came to.
func (s *flowSocket) each(take func(p []byte, from *net.UDPAddr, to netip.Addr, at int64)) error {
	for {
		var n int
		var err error
		if s.v4 != nil {
			n, err = s.v4.ReadBatch(s.in, unix.MSG_DONTWAIT)
		} else {
			n, err = s.v6.ReadBatch(s.in, unix.MSG_DONTWAIT)
		}
		switch {
		case errors.Is(err, unix.EAGAIN):
			return nil
		case err != nil && !errors.Is(err, unix.EINTR):
			return err
		}
		for i := range s.in[:max(0, n)] {
			m := &s.in[i]
			to, at := arrival(m.OOB[:m.NN])
			from, _ := m.Addr.(*net.UDPAddr)
			take(m.Buffers[0][:m.N], from, to, at)
		}
		if n < len(s.in) && err == nil {
			return nil
		}
	}
}

func unspecified(like netip.Addr) netip.Addr {
	if like.Is6() {
		return netip.IPv6Unspecified()
	}
	return netip.IPv4Unspecified()
}

// sourceMessage is the control message that has a packet leave from an address.
func sourceMessage(a netip.Addr) []byte {
	if a.Is4() {
		return (&ipv4.ControlMessage{Src: a.AsSlice()}).Marshal()
	}
	return (&ipv6.ControlMessage{Src: a.AsSlice()}).Marshal()
}

// beat is when a side sends: flows in as many phases as keep two of them a few milliseconds apart, so that many calls are not one burst.
type beat struct {
	side   *FlowSide
	step   time.Duration
	phases int

	n      uint64
	due    time.Time
	last   time.Time // when the last round began
	before time.Time // and the one before it
	looked time.Time
}

// undelayed has the one goroutine that is at work in this process wait for no other thread of it: those come when others of the machine let them, and hold what it needs meanwhile. There are more turns than threads that take one, and
// memory is collected when there is much of it. Without it a sender was late by up to 155 ms, in which its thread had been woken and went to sleep again at once.
func undelayed() {
	runtime.GOMAXPROCS(runtime.NumCPU() + 4)
	debug.SetGCPercent(-1)
	debug.SetMemoryLimit(512 << 20)
}

// beat has the caller's thread to itself from now on. With the right to it, it comes before all programs and before the threads of a lab's switches (see netlab.Threads): hosts
// are other machines than those that are measured, and what is sent at one time is on its way before the first of it is looked at.
func (s *FlowSide) beat(interval time.Duration) *beat {
	runtime.LockOSThread()
	_ = unix.SchedSetAttr(0, &unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: unix.SCHED_FIFO, Priority: 2}, 0)
	_ = unix.Prctl(unix.PR_SET_TIMERSLACK, 1000, 0, 0, 0) // ns; with the default it is late by 50 us
	b := &beat{side: s, phases: max(1, int(interval/lookEvery)), due: time.Now()}
	b.step = interval / time.Duration(b.phases)
	return b
}

// next waits for the next phase, and says which it is, in what round, and whether to look at what came. What was missed is not made up for: a burst would hide a silence. A pause
// is from before one round of sends to behind the next, less what is between two: no flow was silent for longer by its sender, wherever in the two that was held up.
func (b *beat) next() (phase int, round uint64, look bool) {
	if !b.before.IsZero() {
		b.side.Pauses = silence(b.side.Pauses, &b.side.floor, b.before.Add(b.step).UnixNano(), time.Now().UnixNano())
	}
	for d := time.Until(b.due); d > 0; d = time.Until(b.due) {
		t := unix.NsecToTimespec(int64(d))
		_ = unix.ClockNanosleep(unix.CLOCK_MONOTONIC, 0, &t, nil) // a signal may end it early
	}
	now := time.Now()
	b.before, b.last = b.last, now
	b.side.Ended = now.UnixNano()
	if look = now.Sub(b.looked) >= lookEvery-b.step/2; look {
		b.looked = now
	}
	if b.due = b.due.Add(b.step); now.Sub(b.due) > b.step {
		b.due = now
	}
	phase, round = int(b.n%uint64(b.phases)), b.n/uint64(b.phases)+1
	b.n++
	return phase, round, look
}
