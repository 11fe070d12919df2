package xsk

import (
	"errors"
	"fmt"
	"math/bits"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// SocketConfig says which queue a socket binds and how. Ring sizes are powers of two.
type SocketConfig struct {
	Ifindex, Queue                     int
	RxSize, TxSize, FillSize, CompSize int
	Mode                               Mode          // ZeroCopy, Copy or Generic; never Auto
	NeedWakeup                         bool          // the kernel sleeps until told; else it looks by itself (zero-copy) or is kicked each time
	BusyPoll                           time.Duration // > 0: the worker's own system calls drive the device's NAPI, this long at most
}

// Socket is one AF_XDP socket bound to one queue of one device. It belongs to the thread that owns its UMEM.
type Socket struct {
	umem *UMEM
	cfg  SocketConfig
	fd   int
	tag  uint16 // this socket's mark in umem.owner
	zc   bool

	fill, comp, rx, tx ring

	filled, received, sent, completed uint64 // frames over the socket's life
	reclaimed                         bool   // the UMEM has taken back what was with it

	fence    func() bool // see SetFence
	dropping sync.Mutex  // Shut and Close may come from two goroutines
	shut     atomic.Bool // the kernel's part has been given up
}

// ErrFenced says that a system call was left out because what is queued must not be sent any more.
var ErrFenced = errors.New("fenced: what is queued may not be sent any more")

// SetFence has may asked before each system call by which the kernel may send what is queued; where it says no the call is left out. Nobody may poll FD
// then either: in copy mode poll sends. nil asks nobody. Owner only.
func (s *Socket) SetFence(may func() bool) { s.fence = may }

func (s *Socket) fenced() bool { return s.fence != nil && !s.fence() }

// Queued is how many frames Send has put into the tx ring over the socket's life, and Taken how many of these the kernel
// says it has taken, which it may say late.
// Both run over 32 bits. Owner only, before Shut.
func (s *Socket) Queued() uint32 { return s.tx.head }

// Taken: see Queued.
func (s *Socket) Taken() uint32 { return atomic.LoadUint32(s.tx.cons) }

// Calls reports whether what is queued leaves by the owner's system calls alone, as in copy mode: a zero-copy driver takes it from the ring by itself.
func (s *Socket) Calls() bool { return !s.zc }

// Waiting is how many frames lie in the rx ring. The owner alone may call it.
func (s *Socket) Waiting() int { return int(s.rx.ready(s.rx.size)) }

// How long Open waits for a queue whose last socket is closed but which the kernel gives free later, in a work queue.
const (
	rebindWait  = 400 * time.Millisecond
	rebindPause = 5 * time.Millisecond
)

// closeWait bounds how long Close waits for frames under way.
const closeWait = 100 * time.Millisecond

// Open makes a socket on u and binds it. The first socket registers u; each further one shares it (XDP_SHARED_UMEM) with its
// own four rings, and must ask for the same mode and wake-up, which the kernel takes from the first.
// The fill ring is empty: call Fill, then give the socket to Program.SetSocket.
func Open(u *UMEM, c SocketConfig) (*Socket, error) {
	s, err := Bind(u, c)
	if err != nil {
		return nil, err
	}
	if err := s.Adopt(); err != nil {
		return nil, errors.Join(err, s.drop())
	}
	return s, nil
}

// Bind is the part of Open that may take its time: it waits for the kernel, for a driver, for a queue that is given free late. It only reads
// u, so a control goroutine may call it while the owner moves frames, as long as no socket is adopted or closed meanwhile.
// Until Adopt the socket has no frames; Close alone undoes it.
func Bind(u *UMEM, c SocketConfig) (*Socket, error) {
	s, err := bind(u, c)
	if err != nil {
		return nil, fmt.Errorf("af_xdp socket on device %d queue %d (%s): %w", c.Ifindex, c.Queue, c.Mode, err)
	}
	return s, nil
}

// Adopt makes a bound socket one of its UMEM's. It belongs to the thread that owns the UMEM from then on.
func (s *Socket) Adopt() (err error) {
	u := s.umem
	if s.tag, err = u.freeTag(); err != nil {
		return err
	}
	u.sockets = append(u.sockets, s)
	u.rebound(s.cfg.Ifindex, s.cfg.Queue)
	return nil
}

func bind(u *UMEM, c SocketConfig) (_ *Socket, err error) {
	if err := c.check(u); err != nil {
		return nil, err
	}
	s := &Socket{umem: u, cfg: c, fd: -1}
	defer func() {
		if err != nil {
			s.drop()
		}
	}()
	if s.fd, err = unix.Socket(unix.AF_XDP, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0); err != nil {
		return nil, explain("create", err)
	}
	if len(u.sockets) == 0 {
		reg := unix.XDPUmemReg{Addr: uint64(uintptr(unsafe.Pointer(&u.mem[0]))), Len: uint64(u.frames * u.chunk), Size: uint32(u.chunk)}
		err := setsockopt(s.fd, unix.XDP_UMEM_REG, unsafe.Pointer(&reg), unsafe.Sizeof(reg))
		runtime.KeepAlive(u)
		if err != nil {
			return nil, explain("register umem", err)
		}
	}
	if err := s.makeRings(); err != nil {
		return nil, err
	}
	if c.BusyPoll > 0 {
		if err := s.setBusyPoll(); err != nil {
			return nil, err
		}
	}
	if err := s.bind(); err != nil {
		return nil, err
	}
	if s.zc, err = s.ZeroCopy(); err != nil {
		return nil, err
	}
	if s.zc != (c.Mode == ZeroCopy) {
		return nil, fmt.Errorf("bound, but reads back zero-copy %v: %w", s.zc, unix.EOPNOTSUPP)
	}
	return s, nil
}

func (c *SocketConfig) check(u *UMEM) error {
	if u.mem == nil {
		return errors.New("umem is closed")
	}
	if c.Mode == Auto || c.Mode > Generic {
		return fmt.Errorf("mode %s: must be decided before a socket is opened: %w", c.Mode, unix.EINVAL)
	}
	for _, n := range []int{c.RxSize, c.TxSize, c.FillSize, c.CompSize} {
		if n < 1 || n > 1<<20 || bits.OnesCount(uint(n)) != 1 {
			return fmt.Errorf("ring size %d: must be a power of two up to %d: %w", n, 1<<20, unix.EINVAL)
		}
	}
	if len(u.sockets) > 0 {
		if o := u.sockets[0].cfg; (o.Mode == ZeroCopy) != (c.Mode == ZeroCopy) || o.NeedWakeup != c.NeedWakeup {
			return fmt.Errorf("the umem's other sockets are %s, need-wakeup %v: a shared umem has one mode: %w", o.Mode, o.NeedWakeup, unix.EINVAL)
		}
	}
	return nil
}

// freeTag finds a mark that no frame and no open socket has.
func (u *UMEM) freeTag() (uint16, error) {
	for id := firstSocket; id <= lastSocket; id++ {
		tag := id << 1
		if !slices.ContainsFunc(u.sockets, func(o *Socket) bool { return o.tag == tag }) {
			return tag, nil
		}
	}
	return 0, errors.New("too many sockets on one umem")
}

func (s *Socket) makeRings() error {
	type set struct {
		opt   int
		size  int
		r     *ring
		pgoff int64
		off   *unix.XDPRingOffset
		descs bool
		name  string
	}
	var off unix.XDPMmapOffsets
	sets := []set{
		{unix.XDP_UMEM_FILL_RING, s.cfg.FillSize, &s.fill, unix.XDP_UMEM_PGOFF_FILL_RING, &off.Fr, false, "fill"},
		{unix.XDP_UMEM_COMPLETION_RING, s.cfg.CompSize, &s.comp, unix.XDP_UMEM_PGOFF_COMPLETION_RING, &off.Cr, false, "completion"},
		{unix.XDP_RX_RING, s.cfg.RxSize, &s.rx, unix.XDP_PGOFF_RX_RING, &off.Rx, true, "rx"},
		{unix.XDP_TX_RING, s.cfg.TxSize, &s.tx, unix.XDP_PGOFF_TX_RING, &off.Tx, true, "tx"},
	}
	for _, x := range sets {
		if err := unix.SetsockoptInt(s.fd, unix.SOL_XDP, x.opt, x.size); err != nil {
			return explain(fmt.Sprintf("make %s ring of %d", x.name, x.size), err)
		}
	}
	if err := getsockopt(s.fd, unix.XDP_MMAP_OFFSETS, unsafe.Pointer(&off), unsafe.Sizeof(off)); err != nil {
		return explain("read ring offsets", err)
	}
	for _, x := range sets {
		if err := x.r.mapRing(s.fd, x.pgoff, x.off, uint32(x.size), x.descs); err != nil {
			return explain("map "+x.name+" ring", err)
		}
	}
	return nil
}

// setBusyPoll makes the worker's own system calls run the device's NAPI, and holds its interrupts off while they do.
func (s *Socket) setBusyPoll() error {
	for _, o := range [...]struct{ opt, v int }{
		{unix.SO_PREFER_BUSY_POLL, 1},
		{unix.SO_BUSY_POLL, int(max(1, s.cfg.BusyPoll.Microseconds()))},
		{unix.SO_BUSY_POLL_BUDGET, 64},
	} {
		if err := unix.SetsockoptInt(s.fd, unix.SOL_SOCKET, o.opt, o.v); err != nil {
			return explain("set busy poll", err)
		}
	}
	return nil
}

func (s *Socket) bind() error {
	sa := &unix.SockaddrXDP{Ifindex: uint32(s.cfg.Ifindex), QueueID: uint32(s.cfg.Queue)}
	if len(s.umem.sockets) > 0 { // mode and wake-up come from the first; the kernel refuses to be told again
		sa.Flags, sa.SharedUmemFD = unix.XDP_SHARED_UMEM, uint32(s.umem.sockets[0].fd)
	} else {
		sa.Flags = unix.XDP_COPY
		if s.cfg.Mode == ZeroCopy {
			sa.Flags = unix.XDP_ZEROCOPY
		}
		if s.cfg.NeedWakeup {
			sa.Flags |= unix.XDP_USE_NEED_WAKEUP
		}
	}
	for until := time.Now().Add(rebindWait); ; time.Sleep(rebindPause) {
		err := unix.Bind(s.fd, sa)
		if err == nil {
			return nil
		}
		if err != unix.EBUSY || time.Now().After(until) {
			return explain("bind", err)
		}
	}
}

// explain adds to a system call's error what would be right.
func explain(what string, err error) error {
	hint := ""
	switch {
	case errors.Is(err, unix.EBUSY):
		hint = "another socket, perhaps of another process, holds this queue: stop it first"
	case errors.Is(err, unix.EPERM), errors.Is(err, unix.EACCES):
		hint = "run as root, or with CAP_NET_RAW, CAP_NET_ADMIN, CAP_BPF and CAP_IPC_LOCK"
	case errors.Is(err, unix.ENOBUFS):
		hint = "locked memory is used up: raise it (ulimit -l, LimitMEMLOCK=infinity) or use fewer frames"
	case errors.Is(err, unix.EOPNOTSUPP):
		hint = "the driver has no zero-copy: use mode copy, generic or auto"
	case errors.Is(err, unix.EAFNOSUPPORT):
		hint = "this kernel has no AF_XDP: it needs CONFIG_XDP_SOCKETS"
	case errors.Is(err, unix.ENODEV):
		hint = "there is no such device in this network namespace"
	case errors.Is(err, unix.EINVAL) && what == "bind":
		hint = "the device has no such queue, is too small for the umem's chunk, or cannot do this mode"
	case errors.Is(err, unix.ENETDOWN):
		hint = "the device is down: set it up"
	default:
		return fmt.Errorf("%s: %w", what, err)
	}
	return fmt.Errorf("%s: %w (%s)", what, err, hint)
}

// Waits reports whether a frame has been received that Recv has not taken yet.
func (s *Socket) Waits() bool { return s.rx.ready(1) > 0 }

// Recv takes up to len(d) received frames; they are the caller's now.
func (s *Socket) Recv(d []Desc) int {
	r := &s.rx
	n := r.ready(uint32(len(d)))
	if n == 0 {
		return 0
	}
	u := s.umem
	for i := range n {
		x := r.descs[(r.head+i)&r.mask]
		d[i] = x
		u.owner[x.Addr>>u.shift] = ownHeld
	}
	r.head += n
	r.release()
	s.received += uint64(n)
	return int(n)
}

// Fill gives the kernel up to max free frames to receive into and says how many. Call it when idle too: a socket whose
// fill ring is empty receives nothing.
func (s *Socket) Fill(max int) int {
	u, r := s.umem, &s.fill
	if max = min(max, len(u.free)); max <= 0 {
		return 0
	}
	n := r.room(uint32(max))
	if n == 0 {
		return 0
	}
	left := len(u.free) - int(n)
	for i, f := range u.free[left:] {
		r.addrs[(r.head+uint32(i))&r.mask] = uint64(f) << u.shift
		u.owner[f] = s.tag
	}
	u.free = u.free[:left]
	r.head += n
	r.publish()
	s.filled += uint64(n)
	return int(n)
}

// Send queues frames of the caller's for transmission, in order, and says how many it accepted; those are the kernel's
// until Complete. Nothing moves before KickTx.
func (s *Socket) Send(d []Desc) int {
	u, r := s.umem, &s.tx
	n := r.room(uint32(len(d)))
	w := r.head
	for i := range d[:n] {
		f := d[i].Addr >> u.shift
		if f >= uint64(len(u.owner)) || u.owner[f] != ownHeld { // not the caller's to send: swallowed, counted
			u.faults++
			continue
		}
		u.owner[f] = s.tag | ownTx
		r.descs[w&r.mask] = Desc{Addr: d[i].Addr, Len: d[i].Len}
		w++
	}
	s.sent += uint64(w - r.head)
	r.head = w
	r.publish()
	return int(n)
}

// Complete puts what the kernel has sent back on the free list and says how many frames that were.
func (s *Socket) Complete() int {
	u, r := s.umem, &s.comp
	n := r.ready(r.size)
	if n == 0 {
		return 0
	}
	for i := range n {
		f := r.addrs[(r.head+i)&r.mask] >> u.shift
		if u.owner[f] != s.tag|ownTx {
			u.faults++
			continue
		}
		u.put(uint32(f))
	}
	r.head += n
	r.release()
	s.completed += uint64(n)
	return int(n)
}

// NeedsRxWake says that the kernel has stopped receiving until WakeRx: it had run out of frames to fill.
func (s *Socket) NeedsRxWake() bool { return s.cfg.NeedWakeup && s.fill.needWakeup() }

// WakeRx makes the kernel go on receiving where it asked for that; with busy poll it runs the device's NAPI here. It does not
// block. A device that is gone or down is an error.
func (s *Socket) WakeRx() error {
	if s.cfg.BusyPoll <= 0 && !s.NeedsRxWake() {
		return nil
	}
	if s.fenced() {
		return ErrFenced
	}
	// A Syscall, not a RawSyscall: it may take its time in the driver and must not hold up the garbage collector.
	_, _, e := unix.Syscall6(unix.SYS_RECVFROM, uintptr(s.fd), 0, 0, unix.MSG_DONTWAIT, 0, 0)
	return kicked("wake rx", e)
}

// KickTx makes the kernel send what is queued, and reaps completions. In copy mode one system call moves about 32 frames and
// says EAGAIN half of the time, so it loops while frames move. What then remains goes with the next kick.
func (s *Socket) KickTx() error {
	stuck := 0
	for before := s.tx.pending(); before > 0; {
		if s.zc && s.cfg.NeedWakeup && !s.tx.needWakeup() {
			break // the driver is at it
		}
		if s.fenced() {
			return ErrFenced
		}
		_, _, e := unix.Syscall6(unix.SYS_SENDTO, uintptr(s.fd), 0, 0, unix.MSG_DONTWAIT, 0, 0)
		s.Complete()
		if e == unix.ENOBUFS || e == unix.EBUSY {
			return nil // the device's queue is full
		}
		if err := kicked("kick tx", e); err != nil {
			return err
		}
		now := s.tx.pending()
		if s.zc {
			break
		}
		if now == before {
			if stuck++; stuck == 2 {
				break
			}
		} else {
			stuck = 0
		}
		before = now
	}
	s.Complete()
	return nil
}

func kicked(what string, e unix.Errno) error {
	switch e {
	case 0, unix.EAGAIN, unix.ENOBUFS, unix.EBUSY, unix.EINTR:
		return nil
	}
	return explain(what, e)
}

// FD is for poll and for Program.SetSocket. It stays the socket's.
func (s *Socket) FD() int { return s.fd }

// Config is what the socket was opened with.
func (s *Socket) Config() SocketConfig { return s.cfg }

// ZeroCopy reads back from the kernel whether the socket is zero-copy.
func (s *Socket) ZeroCopy() (bool, error) {
	var flags uint32
	if err := getsockopt(s.fd, unix.XDP_OPTIONS, unsafe.Pointer(&flags), unsafe.Sizeof(flags)); err != nil {
		return false, explain("read mode", err)
	}
	return flags&unix.XDP_OPTIONS_ZEROCOPY != 0, nil
}

// Stats reads the kernel's counters of this socket.
func (s *Socket) Stats() (unix.XDPStatistics, error) {
	var st unix.XDPStatistics
	if err := getsockopt(s.fd, unix.XDP_STATISTICS, unsafe.Pointer(&st), unsafe.Sizeof(st)); err != nil {
		return st, explain("read statistics", err)
	}
	return st, nil
}

// InKernel says which of the UMEM's frames this socket has, at one moment: given to receive into, received and not yet taken by
// Recv, and sent and not yet reaped by Complete.
func (s *Socket) InKernel() (fill, rx, tx int) {
	if s.rx.mem == nil {
		return 0, 0, 0
	}
	r := int(s.rx.ready(s.rx.size))
	return int(s.filled-s.received) - r, r, int(s.sent - s.completed)
}

// Holds is how many frames are with the socket, in whatever ring. Unlike InKernel it looks at no ring, so it holds beside Shut too.
func (s *Socket) Holds() int {
	if s.reclaimed {
		return 0
	}
	return int(s.filled - s.received + s.sent - s.completed)
}

// InFill is how many frames the kernel has to receive into.
func (s *Socket) InFill() int { fill, _, _ := s.InKernel(); return fill }

// InRx is how many received frames wait for Recv; what Recv returned is the caller's.
func (s *Socket) InRx() int { _, rx, _ := s.InKernel(); return rx }

// InTx is how many frames are queued, under way or sent and not yet reaped.
func (s *Socket) InTx() int { _, _, tx := s.InKernel(); return tx }

// Completed is how many frames that Send took have come back to the UMEM over the socket's life: they have left, as far as the driver says.
func (s *Socket) Completed() uint64 { return s.completed }

// Received and Sent are how many frames Recv has returned, and Send has put into the tx ring, over the socket's life.
func (s *Socket) Received() uint64 { return s.received }

// Sent: see Received.
func (s *Socket) Sent() uint64 { return s.sent }

// Totals is how many frames were received and sent over the socket's life.
func (s *Socket) Totals() (received, sent uint64) { return s.received, s.sent }

// Drain waits a while until the kernel has sent what is queued. The owner alone may call it.
func (s *Socket) Drain() {
	if s.fd < 0 {
		return
	}
	for until := time.Now().Add(closeWait); s.InTx() > 0 && time.Now().Before(until); time.Sleep(100 * time.Microsecond) {
		if s.KickTx() != nil {
			break
		}
	}
}

// Close waits a moment for frames under way, then closes the socket and takes its frames back into the UMEM. What the kernel may
// still touch stays in limbo. The socket must have left the XSKMAP or does so now. Idempotent.
func (s *Socket) Close() error {
	s.Drain()
	err := s.drop()
	u := s.umem
	if i := slices.Index(u.sockets, s); i >= 0 {
		u.sockets = slices.Delete(u.sockets, i, i+1)
		u.reclaim(s)
	}
	return err
}

// Shut is the part of Close that may take its time: it gives the kernel's part up and waits for nothing. A control goroutine may call it when
// the owner has let go of the socket; its frames stay with it until the owner calls Close, which then does not wait.
func (s *Socket) Shut() error { return s.drop() }

// IsShut reports whether the kernel's part has been given up: nothing of what was queued leaves any more. Any goroutine.
func (s *Socket) IsShut() bool { return s.shut.Load() }

// drop lets go of the kernel's part.
func (s *Socket) drop() error {
	s.dropping.Lock()
	defer s.dropping.Unlock()
	defer s.shut.Store(true)
	var errs []error
	for _, r := range []*ring{&s.fill, &s.comp, &s.rx, &s.tx} {
		errs = append(errs, r.unmap())
	}
	if s.fd >= 0 {
		errs = append(errs, unix.Close(s.fd))
		s.fd = -1
	}
	return errors.Join(errs...)
}

func setsockopt(fd, opt int, p unsafe.Pointer, n uintptr) error {
	if _, _, e := unix.Syscall6(unix.SYS_SETSOCKOPT, uintptr(fd), unix.SOL_XDP, uintptr(opt), uintptr(p), n, 0); e != 0 {
		return e
	}
	return nil
}

func getsockopt(fd, opt int, p unsafe.Pointer, n uintptr) error {
	l := uint32(n)
	if _, _, e := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(fd), unix.SOL_XDP, uintptr(opt), uintptr(p), uintptr(unsafe.Pointer(&l)), 0); e != 0 {
		return e
	}
	if uintptr(l) < n {
		return fmt.Errorf("the kernel answered %d bytes of %d: %w", l, n, unix.ENOTSUP)
	}
	return nil
}
