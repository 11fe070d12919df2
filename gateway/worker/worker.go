package worker

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"demarc/gateway/pipeline"
	"demarc/gateway/police"
	"demarc/gateway/slowpath"
	"demarc/gateway/snapshot"
	"demarc/gateway/verdict"
	"demarc/gateway/xsk"
)

// Socket is one AF_XDP socket of the worker: a queue of a port.
type Socket struct {
	Port  uint16 // index into the node's ports
	Queue int
	Area  uint8 // which of the worker's memory areas it is bound to
	S     *xsk.Socket
}

// Config is what a worker is made of. Sockets, areas and shard belong to the worker from New on.
type Config struct {
	ID      int
	CPU     int // pinned to; -1 = not
	Ports   int // how many ports the node has
	Areas   []*xsk.UMEM
	Sockets []Socket
	Shard   *pipeline.Shard
	Slow    *slowpath.Slow
	Clock   *Clock
	Batch   int           // packets a burst, at most pipeline.Burst
	Spin    time.Duration // how long an idle worker looks before it sleeps
	Log     *slog.Logger
}

// Stats is what a worker says of itself; all figures since start but the gauges.
type Stats struct {
	Sessions, Mappings             int // gauges
	Frames, Free, Held             int // gauges
	Bursts, Wakeups, Panics        uint64
	HandedOut, HandedIn, Crossings uint64
	BusyNs                         uint64
	Gen                            uint32 // of the view that it works with
}

type counters struct {
	sessions, mappings, free, held         atomic.Int64
	bursts, wakeups, panics                atomic.Uint64
	handedOut, handedIn, crossings, busyNs atomic.Uint64
	gen                                    atomic.Uint32
}

type sockState struct {
	Socket
	batch    [pipeline.Burst]xsk.Desc // waiting to be put into the tx ring
	n        int
	busyPoll bool
	pending  bool // the kernel has not been asked to send since the last Send
	target   int  // frames that the fill ring should hold
	rxErrors atomic.Uint64

	rxPackets, rxBytes, txPackets, txBytes, txFull, txErrors, kicks atomic.Uint64 // worker: wo, others: ro
}

// Worker is one data-plane thread.
//
// It has many fields because everything that one thread owns is here, and nothing of it anywhere else.
type Worker struct {
	cfg   Config
	shard *pipeline.Shard
	socks []*sockState
	txOf  []int // port -> index into socks, -1 where this worker has no socket
	peers []*Worker
	in    []*ring                       // from peer i; nil at its own index
	view  atomic.Pointer[snapshot.View] // control: wo, worker: ro
	box   chan job
	tx    chan injected
	pool  sync.Pool

	wakeFD   int
	sleeping atomic.Bool
	called   atomic.Bool   // the mailbox, the injection queue or the view has something new
	ended    chan struct{} // closed when Run returns
	count    counters

	descs    [pipeline.Burst]xsk.Desc
	slots    [pipeline.Burst]pipeline.Slot
	loop     [pipeline.Burst]pipeline.Slot
	loops    int
	held     []int // frames in the shaper, per memory area
	polls    []unix.PollFd
	maintain uint64        // ns of the last upkeep
	nap      time.Duration // the longest sleep: upkeep is due then, whatever happens
	release  func(*police.Item) bool
	look     func(int) (*police.Dir, *police.Words)
	closed   atomic.Bool
}

type job struct {
	fn   func(*pipeline.Shard)
	done chan error
}

type injected struct {
	port  uint16
	frame *[]byte // of the pool
}

// ErrStopped is returned for work that is given to a worker that has ended.
var ErrStopped = errors.New("worker has stopped")

// New makes a worker. Connect the workers of a node with Connect before the first Run.
func New(c Config) (*Worker, error) {
	if c.Batch <= 0 || c.Batch > pipeline.Burst {
		c.Batch = pipeline.Burst
	}
	fd, err := unix.Eventfd(0, unix.EFD_NONBLOCK|unix.EFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("worker %d: eventfd: %w", c.ID, err)
	}
	w := &Worker{cfg: c, shard: c.Shard, box: make(chan job, 64), tx: make(chan injected, 1024), wakeFD: fd, txOf: make([]int, c.Ports), held: make([]int, len(c.Areas))}
	w.ended, w.nap = make(chan struct{}), 200*time.Millisecond
	w.pool.New = func() any { return new([]byte) }
	for i := range w.txOf {
		w.txOf[i] = -1
	}
	for _, s := range c.Sockets {
		st := &sockState{Socket: s, busyPoll: s.S.Config().BusyPoll > 0}
		share := c.Areas[s.Area].Frames() / 2 / max(1, len(c.Sockets))
		st.target = min(s.S.Config().FillSize, share)
		if w.txOf[s.Port] < 0 {
			w.txOf[s.Port] = len(w.socks)
		}
		w.socks = append(w.socks, st)
		w.polls = append(w.polls, unix.PollFd{Fd: int32(s.S.FD()), Events: unix.POLLIN})
	}
	w.polls = append(w.polls, unix.PollFd{Fd: int32(fd), Events: unix.POLLIN})
	w.release = w.emit
	w.look = w.limitsOf
	return w, nil
}

// Connect makes the hand-over rings between the workers of a node.
func Connect(ws []*Worker) {
	for _, w := range ws {
		w.peers = ws
		w.in = make([]*ring, len(ws))
		for i := range ws {
			if i != w.cfg.ID {
				w.in[i] = newRing(w.cfg.Areas[0].Chunk())
			}
		}
	}
}

// Publish hands the worker a new view. It is taken up before the next burst; Gen in Stats tells when.
func (w *Worker) Publish(v *snapshot.View) {
	w.view.Store(v)
	w.call()
}

// Do runs fn on the worker's thread between two bursts and waits for it. fn must be short: no packet moves meanwhile. The error is
// ErrStopped when the worker has ended, and fn was not run then; when ctx ends first, fn may yet run.
func (w *Worker) Do(ctx context.Context, fn func(*pipeline.Shard)) error {
	j := job{fn, make(chan error, 1)}
	select {
	case <-w.ended: // the mailbox would still take it
		return fmt.Errorf("worker %d: %w", w.cfg.ID, ErrStopped)
	default:
	}
	select {
	case w.box <- j:
	case <-w.ended:
		return fmt.Errorf("worker %d: %w", w.cfg.ID, ErrStopped)
	case <-ctx.Done():
		return fmt.Errorf("worker %d does not take orders: %w", w.cfg.ID, ctx.Err())
	}
	w.call()
	select {
	case err := <-j.done:
		return err
	case <-w.ended:
	case <-ctx.Done():
		return fmt.Errorf("worker %d does not answer: %w", w.cfg.ID, ctx.Err())
	}
	select { // it may have been the last that was run
	case err := <-j.done:
		return err
	default:
		return fmt.Errorf("worker %d: %w", w.cfg.ID, ErrStopped)
	}
}

// Transmit has the worker send a copy of frame on a port where it has a socket. It never blocks; false when the queue is full or the
// worker has ended.
func (w *Worker) Transmit(port uint16, frame []byte) bool {
	if !w.Sends(port) || w.closed.Load() {
		return false
	}
	b := w.pool.Get().(*[]byte)
	*b = append((*b)[:0], frame...)
	select {
	case w.tx <- injected{port, b}:
		w.call()
		return true
	default:
		w.pool.Put(b)
		return false
	}
}

// Sends reports whether the worker has a socket on the port.
func (w *Worker) Sends(port uint16) bool { return int(port) < len(w.txOf) && w.txOf[port] >= 0 }

// call tells the worker of something new beside the hand-over rings, and wakes it if it sleeps.
//
// No call is lost: the caller makes its thing visible, sets called, then looks at sleeping; the worker sets sleeping, then looks at
// called (sleep). All are sequentially consistent atomics, so at least one of the two sees the other's store. The length of a
// channel is not such an atomic, so called stands for it. The hand-over rings do the same with their head.
func (w *Worker) call() {
	w.called.Store(true)
	w.wake()
}

func (w *Worker) wake() {
	if w.sleeping.Load() {
		one := [8]byte{1}
		_, _ = unix.Write(w.wakeFD, one[:]) // full counter = already awake
	}
}

// Run is the thread. It returns when ctx is done, after it has given back every frame that it can.
func (w *Worker) Run(ctx context.Context) error {
	runtime.LockOSThread() // never unlocked: a pinned thread must not go back to the pool
	defer close(w.ended)
	debug.SetPanicOnFault(true)
	if w.cfg.CPU >= 0 {
		var set unix.CPUSet
		set.Set(w.cfg.CPU)
		if err := unix.SchedSetaffinity(0, &set); err != nil {
			return fmt.Errorf("worker %d: pin to cpu %d: %w", w.cfg.ID, w.cfg.CPU, err)
		}
	}
	told := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(told)
		w.closed.Store(true)
		one := [8]byte{1}
		_, _ = unix.Write(w.wakeFD, one[:])
	})
	defer func() {
		if !stop() {
			<-told // it still holds wakeFD, which Close may close once Run has returned
		}
	}()
	for i := range w.socks {
		w.refill(w.socks[i])
	}
	idleSince := w.cfg.Clock.Now()
	for !w.closed.Load() {
		now := w.cfg.Clock.Now()
		if w.turn(now) > 0 {
			end := w.cfg.Clock.Now()
			w.count.busyNs.Add(end - now)
			idleSince = end
			continue
		}
		if now-idleSince >= uint64(w.cfg.Spin) {
			w.sleep()
			idleSince = w.cfg.Clock.Now()
		}
	}
	w.drainOnExit()
	return nil
}

// turn is one round over everything that the worker serves. It returns how much there was to do.
func (w *Worker) turn(now uint64) (n int) {
	if v := w.view.Load(); v != nil && v != w.shard.View() {
		w.leave(w.shard.View(), v)
		w.shard.SetView(v)
		w.count.gen.Store(v.Gen)
	}
	for _, s := range w.socks {
		n += w.receive(s, now)
	}
	for _, r := range w.in {
		if r != nil {
			n += w.takeOver(r, now)
		}
	}
	if w.shard.Shaper.Held() > 0 {
		n += w.shard.Shaper.Release(now, w.look, w.release)
		w.runLoop(now)
	}
	n += w.orders()
	for _, s := range w.socks {
		w.flush(s)
		w.refill(s)
	}
	if now-w.maintain > uint64(10*time.Millisecond) {
		elapsed := min(now-w.maintain, uint64(time.Second))
		w.shard.Maintain(now, int(uint64(w.shard.Sessions.Capacity())*elapsed/uint64(time.Second))+64)
		w.maintain = now
		n += w.gauges()
	}
	if !w.shard.Settled() {
		w.shard.Rejudge(now, 256)
		n++
	}
	w.shard.Meter.Publish()
	return n
}

// leave gives back what waits in the shaper for tenants that the new view does not have.
func (w *Worker) leave(old, v *snapshot.View) {
	if old == nil {
		return
	}
	for _, t := range old.Tenants {
		if t == nil || v.Tenant(t.ID) != nil {
			continue
		}
		for d := range 2 {
			w.shard.Shaper.FlushQueue(int(t.ID)*2+d, func(it *police.Item) {
				w.held[it.Area]--
				w.free(it.Area, it.Frame)
				w.shard.Meter.Drop(t.ID, verdict.SessionCut)
			})
		}
	}
}

func (w *Worker) gauges() int {
	free := 0
	for _, u := range w.cfg.Areas {
		free += u.FreeCount()
	}
	w.count.free.Store(int64(free))
	w.count.held.Store(int64(w.shard.Shaper.Held()))
	w.count.sessions.Store(int64(w.shard.Sessions.Len()))
	w.count.mappings.Store(int64(w.shard.NAT.Len()))
	return 0
}

// receive takes one burst from a socket and carries it through.
func (w *Worker) receive(s *sockState, now uint64) int {
	k := s.S.Recv(w.descs[:w.cfg.Batch])
	if k == 0 {
		return 0
	}
	u := w.cfg.Areas[s.Area]
	mem, chunk := u.Mem(), uint64(u.Chunk())
	bytes := uint64(0)
	for i := range k {
		d := &w.descs[i]
		base := d.Addr &^ (chunk - 1)
		sl := &w.slots[i]
		sl.Buf = mem[base : base+chunk]
		sl.Off, sl.Len = int(d.Addr-base), int(d.Len)
		sl.Port, sl.Looped, sl.Handed, sl.Area, sl.Addr = s.Port, false, false, s.Area, base
		bytes += uint64(d.Len)
	}
	s.rxPackets.Add(uint64(k))
	s.rxBytes.Add(bytes)
	w.count.bursts.Add(1)
	w.judge(w.slots[:k], now)
	w.runLoop(now)
	return k
}

// judge has the pipeline decide and carries it out.
func (w *Worker) judge(slots []pipeline.Slot, now uint64) {
	w.contained(slots, now)
	for i := range slots {
		s := &slots[i]
		switch s.Verdict {
		case verdict.Send:
			w.send(s.OutPort, s.Area, s.Addr, s.Off, s.Len)
		case verdict.Queue: // the shaper owns the frame now
			w.held[s.Area]++
		case verdict.Hand:
			kind := uint8(handProcess)
			if s.Looped {
				kind = handLoop
			}
			w.hand(int(s.Home), kind, s.Port, s.Frame(), s)
			w.free(s.Area, s.Addr)
		case verdict.Loop:
			w.pushLoop(s.Area, s.Addr, s.Off, s.Len, now)
		case verdict.Punt:
			w.slow(slowpath.Learn, s)
		case verdict.Neighbor:
			w.slow(slowpath.Resolve, s)
		default:
			w.free(s.Area, s.Addr)
		}
	}
}

// contained runs the pipeline and survives a panic in it: what was judged before goes its way, the rest of the burst is dropped and
// counted, and its frames come back.
func (w *Worker) contained(slots []pipeline.Slot, now uint64) {
	for i := range slots {
		slots[i].Verdict, slots[i].Reason = verdict.Drop, verdict.Unset
	}
	defer func() {
		e := recover()
		if e == nil {
			return
		}
		w.count.panics.Add(1)
		n := uint64(0)
		for i := range slots {
			if v := slots[i].Verdict; v == verdict.Next || v == verdict.Drop && slots[i].Reason == verdict.Unset {
				slots[i].Verdict, slots[i].Reason = verdict.Drop, verdict.InternalError
				n++
			}
		}
		w.shard.Meter.DropN(0, verdict.InternalError, n)
		repaired := w.shard.Recover()
		w.cfg.Log.Error("pipeline panic contained", "worker", w.cfg.ID, "repaired", repaired, "panic", fmt.Sprint(e), "stack", string(debug.Stack()))
	}()
	w.shard.Process(slots, now)
}

func (w *Worker) slow(kind slowpath.Kind, s *pipeline.Slot) {
	if !w.cfg.Slow.Input(w.cfg.ID, kind, s.OutIface, s.Key.Family, &s.NextHop, s.Frame()) {
		w.shard.Meter.Drop(s.Tenant, verdict.SlowPathFull)
	}
	w.free(s.Area, s.Addr)
}

func (w *Worker) free(area uint8, addr uint64) { w.cfg.Areas[area].Free(addr) }

// hand copies a frame to another worker. s is nil for frames that have no slot.
func (w *Worker) hand(to int, kind uint8, port uint16, frame []byte, s *pipeline.Slot) {
	p := w.peers[to]
	if p.in[w.cfg.ID].push(kind, port, frame) {
		w.count.handedOut.Add(1)
		p.wake()
		return
	}
	if s != nil {
		w.shard.Meter.Drop(s.Tenant, verdict.HandOverFull)
	} else {
		w.shard.Meter.Drop(0, verdict.HandOverFull)
	}
}

// takeOver serves what another worker has handed over.
func (w *Worker) takeOver(r *ring, now uint64) (n int) {
	u := w.cfg.Areas[0]
	k := 0
	for n < w.cfg.Batch {
		m, frame, ok := r.peek()
		if !ok {
			break
		}
		n++
		addr, ok := u.Alloc()
		if !ok {
			w.shard.Meter.Drop(0, verdict.FrameExhausted)
			r.pop()
			continue
		}
		if handHeadroom+len(frame) > u.Chunk() {
			w.free(0, addr)
			w.shard.Meter.Drop(0, verdict.FrameTooLarge)
			r.pop()
			continue
		}
		mem := u.Mem()[addr : addr+uint64(u.Chunk())]
		copy(mem[handHeadroom:], frame)
		r.pop()
		if m.kind == handSend {
			w.send(m.port, 0, addr, handHeadroom, int(m.n))
			continue
		}
		sl := &w.slots[k]
		k++
		sl.Buf, sl.Off, sl.Len = mem, handHeadroom, int(m.n)
		sl.Port, sl.Looped, sl.Handed, sl.Area, sl.Addr = m.port, m.kind == handLoop, true, 0, addr
	}
	if n > 0 {
		w.count.handedIn.Add(uint64(n))
	}
	if k > 0 {
		w.judge(w.slots[:k], now)
		w.runLoop(now)
	}
	return n
}

// pushLoop keeps a frame that enters again from the backbone side.
func (w *Worker) pushLoop(area uint8, addr uint64, off, n int, now uint64) {
	if w.loops == len(w.loop) {
		w.runLoop(now)
	}
	u := w.cfg.Areas[area]
	sl := &w.loop[w.loops]
	w.loops++
	sl.Buf, sl.Off, sl.Len = u.Mem()[addr:addr+uint64(u.Chunk())], off, n
	sl.Port, sl.Looped, sl.Handed, sl.Area, sl.Addr = 0, true, false, area, addr
}

// runLoop judges the frames that entered again. None of them can do so twice, but one that is too big may become an ICMP error that goes
// back the same way, and there is no error about an error: so this ends. While a slot is carried out its place, or an earlier
// one, may be taken by such an error: what is still to come never is.
func (w *Worker) runLoop(now uint64) {
	for w.loops > 0 {
		n := w.loops
		w.loops = 0
		w.judge(w.loop[:n], now)
	}
}

// emit sends what the shaper lets go.
func (w *Worker) emit(it *police.Item) bool {
	if it.Port == pipeline.LoopPort {
		if w.loops == len(w.loop) {
			return false
		}
		w.held[it.Area]--
		w.pushLoop(it.Area, it.Frame, int(it.Off), int(it.Len), 0)
		return true
	}
	w.held[it.Area]--
	w.send(it.Port, it.Area, it.Frame, int(it.Off), int(it.Len))
	return true
}

func (w *Worker) limitsOf(q int) (*police.Dir, *police.Words) {
	t := w.shard.View().Tenants
	if id := q / 2; id < len(t) && t[id] != nil {
		return &t[id].Dir[q%2], &t[id].Shared.Words[q%2]
	}
	return nil, nil
}

// send puts a frame that the worker owns into the tx batch of a port.
func (w *Worker) send(port uint16, area uint8, addr uint64, off, n int) {
	i := w.txOf[port]
	if i < 0 {
		u := w.cfg.Areas[area]
		frame := u.Mem()[addr+uint64(off) : addr+uint64(off)+uint64(n)]
		for to, p := range w.peers {
			if to != w.cfg.ID && p.Sends(port) {
				w.hand(to, handSend, port, frame, nil)
				w.free(area, addr)
				return
			}
		}
		w.shard.Meter.Drop(0, verdict.NoTxSocket)
		w.free(area, addr)
		return
	}
	s := w.socks[i]
	if s.Area != area {
		var ok bool
		if area, addr, ok = w.cross(area, s.Area, addr, off, n); !ok {
			w.shard.Meter.Drop(0, verdict.FrameExhausted)
			return
		}
	}
	s.batch[s.n] = xsk.Desc{Addr: addr + uint64(off), Len: uint32(n)}
	s.n++
	if s.n == len(s.batch) {
		w.push(s)
	}
}

// cross copies a frame into another memory area and frees the old one.
func (w *Worker) cross(from, to uint8, addr uint64, off, n int) (uint8, uint64, bool) {
	a, b := w.cfg.Areas[from], w.cfg.Areas[to]
	na, ok := b.Alloc()
	if ok && off+n > b.Chunk() {
		b.Free(na)
		ok = false
	}
	if ok {
		copy(b.Mem()[na+uint64(off):na+uint64(off+n)], a.Mem()[addr+uint64(off):addr+uint64(off+n)])
		w.count.crossings.Add(1)
	}
	a.Free(addr)
	return to, na, ok
}

// push moves the batch into the tx ring. What does not fit even after the kernel has been asked to send is dropped.
func (w *Worker) push(s *sockState) {
	if s.n == 0 {
		return
	}
	var bytes uint64
	done := s.S.Send(s.batch[:s.n])
	if done < s.n {
		w.kick(s)
		done += s.S.Send(s.batch[done:s.n])
	}
	for i := range done {
		bytes += uint64(s.batch[i].Len)
	}
	if lost := s.n - done; lost > 0 {
		chunk := uint64(w.cfg.Areas[s.Area].Chunk())
		for _, d := range s.batch[done:s.n] {
			w.free(s.Area, d.Addr&^(chunk-1))
		}
		s.txFull.Add(uint64(lost))
		w.shard.Meter.DropN(0, verdict.TxRingFull, uint64(lost))
	}
	s.txPackets.Add(uint64(done))
	s.txBytes.Add(bytes)
	s.n = 0
	s.pending = s.pending || done > 0
}

func (w *Worker) kick(s *sockState) {
	s.kicks.Add(1)
	if err := s.S.KickTx(); err != nil {
		if s.txErrors.Add(1) == 1 {
			w.cfg.Log.Warn("transmit", "worker", w.cfg.ID, "port", s.Port, "queue", s.Queue, "err", err)
		}
	}
	s.S.Complete()
	s.pending = s.S.InTx() > 0
}

// flush sends what is batched and takes back what the kernel has sent.
func (w *Worker) flush(s *sockState) {
	w.push(s)
	if s.pending {
		w.kick(s)
	}
}

// refill keeps the fill ring at its level, also when idle: the kernel takes frames before it says so.
func (w *Worker) refill(s *sockState) {
	if n := s.target - s.S.InFill(); n > 0 {
		s.S.Fill(n)
	}
	if s.busyPoll || s.S.NeedsRxWake() { // busy poll drives the device from here; and a driver that ran dry does not look at the ring again by itself
		if err := s.S.WakeRx(); err != nil && s.rxErrors.Add(1) == 1 {
			w.cfg.Log.Warn("wake receive", "worker", w.cfg.ID, "port", s.Port, "queue", s.Queue, "err", err)
		}
	}
}

// orders serves the mailbox and frames from the slow path.
func (w *Worker) orders() (n int) {
	for len(w.tx) > 0 && n < w.cfg.Batch {
		m := <-w.tx
		n++
		s := w.socks[w.txOf[m.port]]
		u := w.cfg.Areas[s.Area]
		addr, ok := u.Alloc()
		frame := *m.frame
		if ok && handHeadroom+len(frame) > u.Chunk() {
			u.Free(addr)
			ok = false
		}
		if ok {
			copy(u.Mem()[addr+handHeadroom:], frame)
			w.send(m.port, s.Area, addr, handHeadroom, len(frame))
		} else {
			w.shard.Meter.Drop(0, verdict.FrameExhausted)
		}
		w.pool.Put(m.frame)
	}
	for len(w.box) > 0 {
		j := <-w.box
		j.fn(w.shard)
		j.done <- nil
		n++
	}
	return n
}

// sleep waits until a socket has something, somebody calls, or the shaper or the upkeep is due.
func (w *Worker) sleep() {
	w.sleeping.Store(true)
	defer w.sleeping.Store(false)
	if w.called.Swap(false) || w.closed.Load() {
		return
	}
	for _, r := range w.in {
		if r != nil && !r.empty() {
			return
		}
	}
	timeout := w.nap
	if w.shard.Shaper.Held() > 0 {
		next := w.shard.Shaper.Next(w.cfg.Clock.Now())
		if next < uint64(100*time.Microsecond) {
			return
		}
		timeout = min(timeout, time.Duration(next))
	}
	for _, s := range w.socks {
		if s.pending { // the kernel has taken less than it was given: ask again soon
			timeout = min(timeout, time.Millisecond)
		}
	}
	ts := unix.NsecToTimespec(int64(timeout))
	w.count.wakeups.Add(1)
	n, err := unix.Ppoll(w.polls, &ts, nil)
	if err == nil && n > 0 {
		last := len(w.polls) - 1
		if w.polls[last].Revents != 0 {
			var b [8]byte
			_, _ = unix.Read(w.wakeFD, b[:])
		}
	}
}

// drainOnExit gives back what waits in the shaper, so that the frame account closes.
func (w *Worker) drainOnExit() {
	w.shard.Shaper.Flush(func(it *police.Item) {
		w.held[it.Area]--
		w.free(it.Area, it.Frame)
		w.shard.Meter.Drop(0, verdict.Shutdown)
	})
	for _, s := range w.socks {
		w.flush(s)
	}
	w.shard.Meter.Publish()
	w.gauges()
	for {
		select {
		case j := <-w.box:
			j.done <- ErrStopped
		default:
			return
		}
	}
}

// Stats reads the worker's figures. Any goroutine.
func (w *Worker) Stats() Stats {
	c := &w.count
	frames := 0
	for _, u := range w.cfg.Areas {
		frames += u.Frames()
	}
	return Stats{
		Sessions: int(c.sessions.Load()), Mappings: int(c.mappings.Load()), Frames: frames, Free: int(c.free.Load()), Held: int(c.held.Load()),
		Bursts: c.bursts.Load(), Wakeups: c.wakeups.Load(), Panics: c.panics.Load(), HandedOut: c.handedOut.Load(), HandedIn: c.handedIn.Load(),
		Crossings: c.crossings.Load(), BusyNs: c.busyNs.Load(), Gen: c.gen.Load(),
	}
}

// SocketStats is what one socket has carried.
type SocketStats struct {
	Socket
	RxPackets, RxBytes, TxPackets, TxBytes, TxFull, TxErrors, Kicks uint64
}

// SocketStats reads the figures of the worker's sockets. Any goroutine.
func (w *Worker) SocketStats() []SocketStats {
	out := make([]SocketStats, len(w.socks))
	for i, s := range w.socks {
		out[i] = SocketStats{Socket: s.Socket, RxPackets: s.rxPackets.Load(), RxBytes: s.rxBytes.Load(), TxPackets: s.txPackets.Load(),
			TxBytes: s.txBytes.Load(), TxFull: s.txFull.Load(), TxErrors: s.txErrors.Load(), Kicks: s.kicks.Load()}
	}
	return out
}

// Account adds up where the worker's frames are, per memory area: it must be every frame. Call it inside Do, or after Run has returned.
func (w *Worker) Account() error {
	for i, u := range w.cfg.Areas {
		free, batched, rings := u.FreeCount(), 0, 0
		for _, s := range w.socks {
			if int(s.Area) == i {
				fill, rx, tx := s.S.InKernel()
				rings += fill + rx + tx
				batched += s.n
			}
		}
		if sum := free + w.held[i] + batched + rings + u.Limbo(); sum != u.Frames() {
			return fmt.Errorf("worker %d area %d: free %d + shaped %d + batched %d + fill, rx, tx, completion %d + limbo %d = %d, but there are %d frames",
				w.cfg.ID, i, free, w.held[i], batched, rings, u.Limbo(), sum, u.Frames())
		}
	}
	held := 0
	for _, n := range w.held {
		held += n
	}
	if held != w.shard.Shaper.Held() {
		return fmt.Errorf("worker %d: %d frames given to the shaper, which holds %d", w.cfg.ID, held, w.shard.Shaper.Held())
	}
	return nil
}

// Close frees what New made besides its arguments. After Run has returned.
func (w *Worker) Close() error {
	if w.wakeFD < 0 {
		return nil
	}
	err := unix.Close(w.wakeFD)
	w.wakeFD = -1
	return err
}
