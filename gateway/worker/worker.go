package worker

import (
	"cmp"
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

	"demarc/gateway/cruise"
	"demarc/gateway/flow"
	"demarc/gateway/lease"
	"demarc/gateway/pipeline"
	"demarc/gateway/police"
	"demarc/gateway/slowpath"
	"demarc/gateway/snapshot"
	"demarc/gateway/stream"
	"demarc/gateway/trace"
	"demarc/gateway/verdict"
	"demarc/gateway/xsk"
)

// Socket is one AF_XDP socket of the worker: a queue of a port.
type Socket struct {
	Port  uint16 // index into the node's ports
	Queue int
	Area  uint8 // which of the worker's memory areas it is bound to
	S     *xsk.Socket
	// Up is how many frames the port's programs have sent to the socket, and the ones before it; nil = nobody counts. With Second all have it.
	Up *atomic.Uint64
}

// Config is what a worker is made of. Sockets, areas and shard belong to the worker from New on.
type Config struct {
	ID    int
	CPU   int // pinned to; -1 = not
	Ports int // how many ports the node has
	Areas []*xsk.UMEM
	// ZeroCopy says of each area whether its sockets are zero-copy ones; nil = none is.
	ZeroCopy []bool
	Sockets  []Socket
	Shard    *pipeline.Shard
	Slow     *slowpath.Slow
	Clock    *Clock
	// Until when frames of groups may leave; nil = not at all.
	Deadlines *lease.Deadlines
	// Leaving is until when what is in a tx ring may leave of a group that is being handed over, though its deadline is past; nil = not at all.
	Leaving *lease.Deadlines
	// Ending is until when this worker still carries what lay in its rings when a group began to be handed over, though its deadline is past; nil = not at all. It ends that itself: see Clean. Each worker has its own.
	Ending *lease.Deadlines
	// HandOn is what the workers of a node share of groups that have just been handed over; nil = what comes for those is dropped at once.
	HandOn *HandOn
	// Guard is what a deadline is earlier than the promise behind it; a system call that takes longer is counted. 0 = 20 ms.
	Guard time.Duration
	// Fenced is told of a socket that must not be kicked any more and has been detached, so that somebody shuts it and opens the port again. It must not
	// block. Called by the worker's thread.
	Fenced func(port uint16, s *xsk.Socket)
	// Grown is told that there are more sessions or mappings than TellGrown has said. It must not block. Called by the worker's thread; nil = nobody asks.
	Grown func()
	// Second carries sessions that are handed down to it; nil = nobody does. The shard's tables are its.
	Second *Second
	Batch  int           // packets a burst, at most pipeline.Burst
	Spin   time.Duration // how long an idle worker looks before it sleeps
	Log    *slog.Logger
}

type sockState struct {
	Socket
	batch      [pipeline.Burst]xsk.Desc // waiting to be put into the tx ring
	n          int
	busyPoll   bool
	pending    bool   // the kernel has not been asked to send since the last Send
	long       bool   // a frame of the batch is longer than the transmitting program takes
	launchedAt uint64 // ns: when many frames last left by the program, see launch.go; 0 = never
	target     int    // frames that the fill ring should hold
	due        uint64 // of S.Received: what has come up to there is carried before the worker is clean; see drained
	rxErrors   atomic.Uint64
	fence
	passage
	*figures
}

// figures are of a queue of a port, through all sockets that it has had. Worker: wo, others: ro.
type figures struct {
	rxPackets, rxBytes, txPackets, txBytes, txFull, txErrors, kicks, launched atomic.Uint64
}

// Worker is one data-plane thread.
//
// It has many fields because everything that one thread owns is here, and nothing of it anywhere else.
type Worker struct {
	cfg     Config
	shard   *pipeline.Shard
	socks   []*sockState
	leaving []*sockState                 // detached, with frames that Reclaim will take
	idle    []*sockState                 // closed; kept for their figures
	shown   atomic.Pointer[[]*sockState] // socks, leaving and idle, for others
	txOf    []int                        // port -> index into socks, -1 where this worker has no socket
	sends   []atomic.Bool                // port -> txOf >= 0, for others
	down    []atomic.Bool                // port -> it cannot send. Control: wo, worker: ro
	peers   []*Worker
	in      []*ring                       // from peer i; nil at its own index
	view    atomic.Pointer[snapshot.View] // control: wo, worker: ro
	box     chan job
	behind  []job // taken in the turn before, to be done in this one
	walks   chan steps
	walk    steps // of walks, under way
	tx      chan injected
	back    chan injected // frames whose next hop did not answer; port is the interface
	pool    sync.Pool

	wakeFD   int
	sleeping atomic.Bool
	rests    atomic.Bool   // it sleeps, and has no frame of a group in hand
	grownAt  atomic.Int64  // from how many sessions or mappings on Grown is to be told; 0 = not at all. Others: wo, worker: ro, and 0 when it has told
	draining bool          // due was noted, here and of each socket
	due      []uint64      // by ring of in: see drained
	called   atomic.Bool   // the mailbox, the injection queue or the view has something new
	ended    chan struct{} // closed when Run returns
	count    counters

	descs    [pipeline.Burst]xsk.Desc
	slots    [pipeline.Burst]pipeline.Slot
	returned [1]pipeline.Slot
	loop     [pipeline.Burst]pipeline.Slot
	loops    int
	late     [pipeline.Burst]pipeline.Slot // fragments that have waited
	pieces   [pipeline.Burst]pipeline.Slot // of one frame that is cut
	held     []int                         // frames in the shaper, per memory area
	polls    []unix.PollFd
	maintain uint64        // ns when upkeep was last found to be due
	owed     int           // table slots that upkeep has still to look at
	stackAt  uint64        // ns of the last panic that was logged; 0 = none yet
	unlogged uint64        // panics since then
	fenced   bool          // a socket is to be severed at the end of the turn
	nap      time.Duration // the longest sleep, see napOf
	release  func(*police.Item) bool
	look     func(int) (*police.Dir, *police.Words)
	streams  []*stream.Stream // to standbys
	second   second
	// See launch.go.
	out        *cruise.Sender // nil = tx rings send everything
	outGrouped bool           // something of a group is staged
	outRests   uint64         // ns: until when tx rings do; 0 = they need not
	outWindow  uint64         // ns: since when calls are counted
	outCalls   int
	lastLaunch atomic.Uint64 // ns; worker: wo, others: ro
	laden      atomic.Bool   // the last bursts were full: more waits. Worker: wo, others: ro
	keeping    keeping       // what came for groups that have just been handed over
	closed     atomic.Bool
}

// upkeepStep is how many table slots upkeep looks at in a turn, or a 256th of what it owes if that is more: a worker with millions that has slept or was
// kept from its CPU would else do all that is due at once, for tens of milliseconds, while packets wait.
const upkeepStep = 512

type job struct {
	fn     func(*pipeline.Shard)
	done   chan error
	behind bool // to be done one turn after it is taken
}

type injected struct {
	port  uint16
	frame *[]byte // of the pool
	group uint8
}

// ErrStopped is returned for work that is given to a worker that has ended.
var ErrStopped = errors.New("worker has stopped")

// New makes a worker. Connect the workers of a node with Connect before the first Run.
func New(c Config) (*Worker, error) {
	if c.Batch <= 0 || c.Batch > pipeline.Burst {
		c.Batch = pipeline.Burst
	}
	c.Guard = cmp.Or(c.Guard, guardDefault)
	fd, err := unix.Eventfd(0, unix.EFD_NONBLOCK|unix.EFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("worker %d: eventfd: %w", c.ID, err)
	}
	w := &Worker{cfg: c, shard: c.Shard, box: make(chan job, 64), walks: make(chan steps, 8), tx: make(chan injected, 1024), back: make(chan injected, 64), wakeFD: fd, txOf: make([]int, c.Ports), held: make([]int, len(c.Areas)), keeping: keeping{area: make([]int, len(c.Areas))}}
	w.sends, w.down = make([]atomic.Bool, c.Ports), make([]atomic.Bool, c.Ports)
	w.ended, w.nap = make(chan struct{}), napOf(w.shard.Sessions.Capacity())
	w.pool.New = func() any { return new([]byte) }
	if w.cfg.ZeroCopy == nil {
		w.cfg.ZeroCopy = make([]bool, len(c.Areas))
	}
	for _, s := range c.Sockets {
		w.list(s)
	}
	w.tables()
	w.release = w.emit
	if c.Slow != nil {
		w.shard.Want = func(iface uint16, by flow.TenantID, family uint8, hop *flow.Addr) {
			c.Slow.Want(c.ID, iface, by, family, hop)
		}
	}
	w.look = w.limitsOf
	if w.second.Second = c.Second; c.Second != nil {
		w.useSecond()
	}
	return w, nil
}

// Connect makes the hand-over rings between the workers of a node.
func Connect(ws []*Worker) {
	for _, w := range ws {
		w.peers = ws
		w.in, w.due = make([]*ring, len(ws)), make([]uint64, len(ws))
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
	return w.give(ctx, job{fn: fn, done: make(chan error, 1)})
}

// DoBehind is Do, and fn runs behind a whole turn that began after the call, so the worker has looked at the deadlines of all that it had in hand. It costs one way to the worker and back where
// two orders cost two, and each of them may wait for a CPU.
func (w *Worker) DoBehind(ctx context.Context, fn func(*pipeline.Shard)) error {
	return w.give(ctx, job{fn: fn, done: make(chan error, 1), behind: true})
}

// Laden reports whether more waited than a burst takes when the worker last looked. Any goroutine.
func (w *Worker) Laden() bool { return w.laden.Load() }

// Rests reports whether the worker sleeps with no frame of a group in hand. Who has written a deadline before it asks need not wait for it: the worker takes its word back before it
// looks at the next deadline, both are sequentially consistent atomics, so what it does after it has woken goes by what was written.
func (w *Worker) Rests() bool { return w.rests.Load() }

func (w *Worker) give(ctx context.Context, j job) error {
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

// Transmit has the worker send a copy of frame, which is a group's or (0) nobody's, on a port where it has a socket. It never blocks; false when the
// queue is full or the worker has ended.
func (w *Worker) Transmit(port uint16, group uint8, frame []byte) bool {
	if !w.Sends(port) || w.closed.Load() {
		return false
	}
	b := w.pool.Get().(*[]byte)
	*b = append((*b)[:0], frame...)
	w.second.given.Add(1)
	select {
	case w.tx <- injected{port, b, group}:
		w.call()
		return true
	default:
		w.second.through.Add(1)
		w.pool.Put(b)
		return false
	}
}

// Unreached gives the worker back a copy of a finished frame that it had handed to the slow path, because its next hop on interface iface did not
// answer: the sender may have to be told. It never blocks; false when there are many already or the worker has ended. These have a queue
// of their own, so that a scan of addresses that nobody has does not hold up what Transmit carries.
func (w *Worker) Unreached(iface uint16, frame []byte) bool {
	if w.closed.Load() {
		return false
	}
	b := w.pool.Get().(*[]byte)
	*b = append((*b)[:0], frame...)
	select {
	case w.back <- injected{iface, b, 0}:
		w.call()
		return true
	default:
		w.pool.Put(b)
		return false
	}
}

// Sends reports whether the worker has a socket on the port.
func (w *Worker) Sends(port uint16) bool { return int(port) < len(w.sends) && w.sends[port].Load() }

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
	hurry()
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
	if v := w.shard.View(); v != nil { // it had one before it had a worker
		w.count.gen.Store(v.Gen)
	}
	idleSince := w.cfg.Clock.Now()
	for !w.closed.Load() {
		for caught() {
		}
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

// shortSlice is the shortest that the kernel takes (ns).
const shortSlice = 100_000

// hurry has the calling thread ask for its share of a CPU in the shortest slices. A packet wakes it: behind programs with slices of 3 ms each it waits for them, before them for none; what it gets of a CPU that is not its own is the same.
// Kernels before 6.12 go by no slice that is asked for, so an error says nothing that matters.
func hurry() {
	a, err := unix.SchedGetAttr(0, 0)
	if err != nil || a.Policy != unix.SCHED_NORMAL {
		return
	}
	a.Size, a.Runtime = unix.SizeofSchedAttr, shortSlice
	_ = unix.SchedSetAttr(0, a, 0)
}

// turn is one round over everything that the worker serves. It returns how much there was to do.
func (w *Worker) turn(now uint64) (n int) {
	if v := w.view.Load(); v != nil && v != w.shard.View() {
		w.leave(w.shard.View(), v)
		w.shard.SetView(v)
		for _, s := range w.streams { // what a tenant's group is, is told as sessions are judged again
			s.Renew()
		}
		w.count.gen.Store(v.Gen)
	}
	began := now
	if w.second.Second != nil && w.reuse() { // before new sessions come
		n++
	}
	laden := false
	for took := 0; ; now = w.cfg.Clock.Now() {
		// Before what has come: after a pause (the kernel gave the CPU to somebody else) what waits is older than it may be, and everything behind it
		// would be dropped for a queue that its rate has meanwhile emptied.
		if w.shard.Shaper.Held() > 0 {
			n += w.shard.Shaper.Release(now, w.look, w.release)
			w.settle(now)
		}
		full := 0
		for _, s := range w.socks {
			k := w.receive(s, now)
			if k == w.cfg.Batch {
				full++
			}
			took += k
		}
		for _, r := range w.in { // in each round: others may hand over as much as they take
			if r != nil {
				took += w.takeOver(r, now)
			}
		}
		if laden = full > 0; !laden || !w.gathers(took+full*w.cfg.Batch) {
			n += took
			break
		}
	}
	if laden != w.laden.Load() {
		w.laden.Store(laden)
	}
	if len(w.keeping.list) > 0 {
		n += w.handOn(now)
	}
	busy := n > 0
	n += w.orders(now)
	n += w.step(began, n > 0)
	w.flushAll()
	for _, s := range w.socks {
		w.refill(s)
	}
	if w.second.Second != nil {
		w.passed()
		if w.handDown(now) {
			n++
		}
	}
	for _, s := range w.streams { // behind what has been sent: no packet waits for a copy
		n += w.copy(s, now, busy)
	}
	if w.fenced {
		w.sever()
	}
	if now-w.maintain > uint64(10*time.Millisecond) {
		elapsed, table := min(now-w.maintain, uint64(time.Second)), w.shard.Sessions.Capacity()
		w.owed = min(w.owed+int(uint64(table)*elapsed/uint64(time.Second)), table) + 64
		w.maintain = now
		n += w.gauges()
		if w.second.Second != nil {
			w.reckon(now)
		}
	}
	budget := min(w.owed, max(upkeepStep, w.owed/256))
	if w.owed -= budget; w.owed > 0 {
		n++ // the rest is for the next turn, behind what has come meanwhile
	}
	unsettled := !w.shard.Settled()
	if unsettled {
		n++
	}
	if budget > 0 || unsettled {
		w.upkeep(now, budget)
	}
	w.shard.Meter.Publish()
	if w.second.Second != nil {
		w.feed(now)
	}
	return n
}

// leave gives back what waits in the shaper for tenants that the new view does not have, and beyond what it lets wait.
func (w *Worker) leave(old, v *snapshot.View) {
	if old == nil || w.shard.Shaper.Held() == 0 {
		return
	}
	for _, t := range old.Tenants {
		if t == nil {
			continue
		}
		drop := func(reason verdict.Reason) func(*police.Item) {
			return func(it *police.Item) {
				w.held[it.Area]--
				at := it.Frame + uint64(it.Off)
				w.shard.Dropped(t.ID, reason, trace.NoPort, w.cfg.Areas[it.Area].Mem()[at:at+uint64(it.Len)], true)
				w.free(it.Area, it.Frame)
			}
		}
		next := v.Tenant(t.ID)
		for d := range 2 {
			if q := int(t.ID)*2 + d; next == nil {
				w.shard.Shaper.FlushQueue(q, drop(verdict.SessionCut))
			} else {
				w.shard.Shaper.Trim(q, &next.Dir[d], drop(verdict.TenantQueueFull))
			}
		}
	}
}

// orders serves the mailbox and frames from the slow path.
func (w *Worker) orders(now uint64) (n int) {
	for len(w.back) > 0 && n < w.cfg.Batch {
		m := <-w.back
		n++
		w.unanswered(m.port, *m.frame, now)
		w.pool.Put(m.frame)
	}
	for len(w.tx) > 0 && n < w.cfg.Batch {
		m := <-w.tx
		n++
		w.second.served++
		i := w.txOf[m.port]
		if i < 0 { // its socket has gone since
			w.shard.Dropped(0, verdict.InterfaceDown, trace.NoPort, *m.frame, true)
			w.pool.Put(m.frame)
			continue
		}
		s := w.socks[i]
		u := w.cfg.Areas[s.Area]
		addr, ok := u.Alloc()
		frame := *m.frame
		if ok && handHeadroom+len(frame) > u.Chunk() {
			u.Free(addr)
			ok = false
		}
		if ok {
			copy(u.Mem()[addr+handHeadroom:], frame)
			w.send(m.port, m.group, s.Area, addr, handHeadroom, len(frame))
		} else {
			w.shard.Dropped(0, verdict.FrameExhausted, trace.NoPort, frame, true)
		}
		w.pool.Put(m.frame)
	}
	for _, j := range w.behind {
		w.obey(&j)
		n++
	}
	clear(w.behind)
	w.behind = w.behind[:0]
	if len(w.box) > 0 { // one a turn: however many ask at once, packets go on in between
		if j := <-w.box; j.behind {
			w.behind = append(w.behind, j)
		} else {
			w.obey(&j)
		}
		n++
	}
	return n
}

// obey does what an order says, and answers it.
func (w *Worker) obey(j *job) {
	began := w.cfg.Clock.Now()
	err := w.order(j)
	w.count.orders.Add(1)
	w.count.longestOrder.Store(max(w.count.longestOrder.Load(), w.cfg.Clock.Now()-began))
	if w.second.Second != nil {
		w.tellWatch()
	}
	j.done <- err
}

// How long a worker sleeps that nobody calls. Every deadline is looked at once a second, whether that is done at once or in parts, so a second is enough; but the table of one that sleeps longer has more to be looked at when it
// wakes, maybe for packets. Each end of a sleep costs more than the worker's own time: the watcher of Go's scheduler looks for 10 ms, some fifty times, whether a thread in a system call is coming back.
const (
	napLong  = time.Second
	napShort = 200 * time.Millisecond // and where something else may have to be looked at
	napSlots = 1 << 18                // a second's worth of a table that large is no more than the fifth of one with a million
)

// napOf is how long a worker with a table of so many slots sleeps.
func napOf(slots int) time.Duration {
	return min(max(time.Duration(int64(napLong)*napSlots/int64(max(slots, 1))), napShort), napLong)
}

// rest is how long it may sleep now, but for what has a time of its own.
func (w *Worker) rest() time.Duration {
	t := w.nap
	if _, _, known := w.shard.Fragments(); known > 0 { // they are waited for no longer than two seconds
		t = min(t, napShort)
	}
	for _, s := range w.socks {
		if s.busyPoll || s.S.InFill() < s.target { // a device that is driven from here, or has not all the frames that it should: some may come home without a word
			t = min(t, napShort)
		}
	}
	if w.second.Second != nil && w.count.cruising.Load() > 0 {
		t = min(t, feedEvery)
	}
	return t
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
	timeout := w.rest()
	if w.shard.Shaper.Held() > 0 {
		next := w.shard.Shaper.Next(w.cfg.Clock.Now())
		if next < uint64(100*time.Microsecond) {
			return
		}
		timeout = min(timeout, time.Duration(next))
	}
	for _, s := range w.streams {
		if timeout = min(timeout, s.Rest(int64(w.cfg.Clock.Now()))); timeout == 0 {
			return
		}
	}
	if w.second.under() {
		timeout = min(timeout, underEvery)
	}
	if len(w.keeping.list) > 0 {
		timeout = min(timeout, w.keeping.rest(w.cfg.Clock.Now()))
	}
	for i, s := range w.socks {
		if s.pending { // the kernel has taken less than it was given: ask again soon
			timeout = min(timeout, time.Millisecond)
		}
		w.polls[i].Fd = s.pollFD()
	}
	w.gauges() // who looks at a worker that sleeps, for up to a second, sees it as it is
	ts := unix.NsecToTimespec(int64(timeout))
	w.count.wakeups.Add(1)
	w.draining = false // all that had come is carried; who has it stop without a word (Rests) leaves nothing noted
	w.rests.Store(w.bare())
	n, err := unix.Ppoll(w.polls, &ts, nil)
	w.rests.Store(false)
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
	if w.second.Second != nil {
		w.second.Tables.Feed(w.cfg.ID, 0) // nobody looks after its sessions any more
	}
	w.shard.Shaper.Flush(func(it *police.Item) {
		w.held[it.Area]--
		w.free(it.Area, it.Frame)
		w.shard.Meter.Drop(0, verdict.Shutdown)
	})
	w.letGo()
	w.flushAll()
	if w.fenced {
		w.sever()
	}
	w.shard.Leave()
	w.shard.Meter.Publish()
	w.gauges()
	w.noMoreSteps()
	for _, j := range w.behind {
		j.done <- ErrStopped
	}
	w.behind = nil
	for {
		select {
		case j := <-w.box:
			j.done <- ErrStopped
		default:
			return
		}
	}
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
