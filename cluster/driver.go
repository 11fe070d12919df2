package cluster

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"demarc/cluster/command"
	"demarc/cluster/failover"
)

// Leases is where deadlines are written, which the data plane looks at before it emits.
type Leases interface {
	// Write says until when this node may emit for a group, by CLOCK_BOOTTIME; 0 = not at all, and done is called, once and from anywhere, when every worker has looked since.
	// done is nil with any other time. What the kernel was given before may leave until leave (0 = it may not, and dies), and done is called when that has left too. It must not block. It may be
	// told of a group that the policy does not know any more.
	Write(group string, epoch uint64, until, leave failover.Time, done func())
}

// Roles prepares a node for what it becomes to a group.
type Roles interface {
	// Role says that this node is about to serve a group under an epoch: what it needs for that is made ready, then done is called, once and from anywhere; no deadline is
	// written and nothing is announced before. Or that the term that is agreed on is another's (not serving; done is nil), or the policy does not know the group any more: behind
	// the end of this node's own lease, and behind the last changes where it hands over.
	// A lease that lapses and comes back within a term is neither. known is of who is about to serve: how much it knows of what owners before it have used. It must not block. It may be told of a group that the policy which is served does not know.
	Role(group string, epoch uint64, serving bool, known failover.Known, done func())
}

// Announcer tells hosts and switches where a group's addresses are now. Round 0 is the first one after a takeover. It must not block.
type Announcer interface {
	Announce(group string, epoch uint64, round int)
}

// Carrier carries messages to other members, as datagrams on every path there is. It must not block.
type Carrier interface {
	Send(to string, m failover.Message)
}

// DriverConfig is what a Driver is made with. Name and Clock are required.
type DriverConfig struct {
	Name   string
	Times  failover.Times       // zero = failover.Default
	Clock  func() failover.Time // CLOCK_BOOTTIME: it must go on in a suspend
	Wall   func() time.Time     // is shown; nil = the machine's
	Log    *slog.Logger
	Leases Leases    // nil = this node emits for nobody: a witness
	Words  Announcer // nil with it
	Roles  Roles     // nil = nothing is to be made ready
	CPU    int       // that its thread is pinned to; negative = any

	// Flush brings the heir of a planned move what has changed of a group, while nothing changes any more, and then calls done, once and from anywhere. It must not block.
	// nil = there is nothing to bring.
	Flush func(group, peer string, done func())
}

// Driver runs the failover machine of one node for the life of the process: votes for all groups, lease and announcements of its own. It outlives a Node that is closed and
// opened again, because neither a full disk nor an election may take a lease from a healthy owner.
//
// One goroutine on a thread of its own owns the machine. It waits for nothing but the next event: whatever blocks is done by others.
type Driver struct {
	c    DriverConfig
	log  *slog.Logger
	life uint64

	started chan struct{} // closed when Run has asked for what its thread needs

	mu    sync.Mutex
	queue []func(now failover.Time) // mu: what is to be done by Run
	heard int                       // mu: of them, messages
	shut  bool                      // mu: Run has ended
	wake  int                       // eventfd, written when something is queued; closed by Run

	node     atomic.Pointer[Node]            // where entries are proposed; nil = nowhere
	carrier  atomic.Pointer[Carrier]         // nil = nobody is heard of
	named    atomic.Pointer[map[string]bool] // the groups of the policy; nil = none was told
	words    sync.Map                        // by member: what was heard of it, as *word
	deaths   chan struct{}                   // has room for one: a member's process has ended
	born     time.Time                       // of this driver
	lost     atomic.Uint64                   // messages that came faster than they were read
	gaps     atomic.Uint64                   // between two readings of the clock that were longer than the guard
	longest  atomic.Int64                    // of them, ns
	commit   atomic.Int64                    // how long the last entries took to be agreed on, ns
	realtime atomic.Bool                     // the thread has real-time priority

	m       *failover.Node         // Run
	last    failover.Time          // Run: the last reading of the clock
	groups  map[string]*groupTrack // Run
	parts   bool                   // Run: a group is being handed over, and is given up when that is done
	refused *refusal               // Run: where words of refusal go while an operator's wish is carried out; nil = nobody asks

	eventsMu sync.Mutex
	events   []GroupEvent // eventsMu: the newest last

	proposeMu sync.Mutex
	waiting   map[string]failover.Entry // proposeMu: by group, what is to be proposed next
	proposing map[string]bool           // proposeMu
	wished    map[string]command.Who    // proposeMu: by group, the operator who last asked for something
}

// refusal is why a wish was not carried out. soon: it could be in a moment.
type refusal struct {
	words []string
	soon  bool
}

// groupTrack is what is remembered of a group to tell how its last move went.
type groupTrack struct {
	epoch  uint64 // that somebody was last seen to serve under
	node   string
	at     failover.Time // when
	moved  *Failover
	agreed failover.Ownership // by the log: it says why a term began, and may come before anybody is seen to serve or behind that
	served bool               // by this node, now
	until  failover.Time

	role   role
	turn   uint64             // of role: what was asked for an earlier one counts for nothing
	ready  bool               // for serving under role: a lease may be written
	held   *failover.Lease    // the last one, until it is
	spoken *failover.Announce // the announcement behind it, likewise

	off refusal // why the last move that an operator asked for came to nothing behind its beginning
}

// role is what this node was last said to be to a group. Epoch 0: nothing yet.
type role struct {
	epoch   uint64
	serving bool
}

// Failover is a move of a group from one node to another, as this node saw it.
type Failover struct {
	Epoch    uint64
	From, To string
	Cause    failover.Cause
	Gap      time.Duration // from when the one was last seen to serve until the other first was
	Seen     bool          // Gap was measured: this node had seen the one before serve
	At       time.Time     // wall time
}

// GroupEvent is one line of what this node did and saw.
type GroupEvent struct {
	Time  time.Time
	Group string
	Words string
}

// GroupStatus is how a group stands, as this node knows it.
type GroupStatus struct {
	Group failover.Group
	failover.Status
	Drained []string // of its nodes
	Last    *Failover
}

// Bounds and paces of the driver.
const (
	tickPace    = 2 * time.Millisecond   // between two readings of the clock; the machine wants one in 5 ms
	idlePace    = 100 * time.Millisecond // while there is no group, but another member
	maxHeard    = 4096                   // messages that wait
	maxEvents   = 500
	proposeTime = 300 * time.Millisecond // for one try: a leader that died is not waited for, the machine asks again
	askTime     = 2 * time.Second        // it answers between two messages
	copyWait    = 3 * time.Second        // for a copy that is about to be whole, where somebody asks for a move
	copyPoll    = 20 * time.Millisecond
	leaveTime   = 2 * time.Second        // for handing over
	quietTime   = 500 * time.Millisecond // for what is left to be said after that
)

// NewDriver draws the life of this process.
func NewDriver(c DriverConfig) (*Driver, error) {
	if c.Times == (failover.Times{}) {
		c.Times = failover.Default
	}
	if err := c.Times.Check(); err != nil {
		return nil, err
	}
	if c.Wall == nil {
		c.Wall = time.Now
	}
	d := &Driver{c: c, log: c.Log, born: time.Now(), groups: map[string]*groupTrack{}, waiting: map[string]failover.Entry{}, proposing: map[string]bool{}, wished: map[string]command.Who{}, started: make(chan struct{}), deaths: make(chan struct{}, 1), wake: -1}
	if d.log == nil {
		d.log = slog.New(slog.DiscardHandler)
	}
	var b [8]byte
	_, _ = rand.Read(b[:]) // never fails
	d.life = binary.LittleEndian.Uint64(b[:]) | 1
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("open an eventfd for the leases: %w", err)
	}
	d.wake = fd
	d.m = failover.New(failover.Config{Name: c.Name, Life: d.life, Times: c.Times}, c.Clock())
	d.last = c.Clock()
	return d, nil
}

// Started is closed when Run has asked for what its thread needs: rights may be given up then.
func (d *Driver) Started() <-chan struct{} { return d.started }

// Life tells this process from the one before: see failover.Term.
func (d *Driver) Life() uint64 { return d.life }

// Carry sets who carries messages; nil = nobody.
func (d *Driver) Carry(c Carrier) {
	if c == nil {
		d.carrier.Store(nil)
		return
	}
	d.carrier.Store(&c)
}

// post has Run do something. A message is dropped when too many wait: it is a datagram.
func (d *Driver) post(message bool, fn func(now failover.Time)) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.shut {
		return false
	}
	if message {
		if d.heard >= maxHeard {
			d.lost.Add(1)
			return false
		}
		d.heard++
		next := fn
		fn = func(now failover.Time) {
			d.mu.Lock()
			d.heard--
			d.mu.Unlock()
			next(now)
		}
	}
	d.queue = append(d.queue, fn)
	if len(d.queue) == 1 {
		var one [8]byte
		binary.NativeEndian.PutUint64(one[:], 1)
		_, _ = unix.Write(d.wake, one[:]) // full = it is awake
	}
	return true
}

// ask has Run do something and waits for it.
func (d *Driver) ask(ctx context.Context, fn func(now failover.Time)) error {
	ctx, cancel := context.WithTimeout(ctx, askTime)
	defer cancel()
	done := make(chan struct{})
	if !d.post(false, func(now failover.Time) { fn(now); close(done) }) {
		return errors.New("this node takes no part in who serves a group: it is starting or ending")
	}
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("who serves a group cannot be asked: what keeps the leases does not answer: %w", ctx.Err())
	}
}

// Discard gives back what a driver holds that was never run.
func (d *Driver) Discard() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.shut {
		d.shut = true
		unix.Close(d.wake)
	}
}

// Receive takes in a message that was opened and checked.
func (d *Driver) Receive(from string, m failover.Message) {
	if d.hear(from, m) {
		if n := d.node.Load(); n != nil {
			n.died(from)
		}
		select {
		case d.deaths <- struct{}{}:
		default:
		}
	}
	d.post(true, func(now failover.Time) {
		if m.Kind == failover.Beat {
			for _, v := range m.Views {
				if v.Serving {
					d.saw(v.Group, from, v.Epoch, now)
				}
			}
		}
		d.step(now, failover.Received{From: from, Message: m})
	})
}

// Policy tells which groups there are. What it was told before and is not again has ended; a node that has no policy yet tells nothing.
func (d *Driver) Policy(list []failover.Group) {
	names := map[string]bool{}
	for _, g := range list {
		names[g.Name] = true
	}
	d.named.Store(&names)
	d.post(false, func(now failover.Time) { d.step(now, failover.Groups(list)) })
}

// ended reports whether the policy that this node serves has no such group any more: what the log says of it stands there for when it comes back.
func (d *Driver) ended(group string) bool {
	names := d.named.Load()
	return names != nil && !(*names)[group]
}

// Stands tells that this node's log takes no entries, or takes them again: others do not count on it then.
func (d *Driver) Stands(on bool) {
	d.post(false, func(now failover.Time) { d.step(now, failover.Stands{On: on}) })
}

// Contact tells that the log's own messages with a member came through at that time. It is of Go's own clock.
func (d *Driver) Contact(name string, at time.Time) {
	d.post(false, func(now failover.Time) {
		d.step(now, failover.Contact{Peer: name, At: now.Add(-time.Since(at))})
	})
}

// Condition tells that something counts against this node, or does not any more.
func (d *Driver) Condition(c failover.Condition) {
	d.post(false, func(now failover.Time) { d.step(now, c) })
}

// Copied and Marked tell how session copies stand: see failover.
func (d *Driver) Copied(c failover.Copied) {
	d.post(false, func(now failover.Time) { d.step(now, c) })
}

// Marked tells a standby that its digest was equal.
func (d *Driver) Marked(m failover.Marked) {
	d.post(false, func(now failover.Time) { d.step(now, m) })
}

// Kept tells what this process has of the one before it: see failover. It is called before a Node is opened that proposes for this driver.
func (d *Driver) Kept(k failover.Kept) {
	d.post(false, func(now failover.Time) { d.step(now, k) })
}

// Deaf tells that nothing can be said or heard, so that this node takes no part; or that it can again.
func (d *Driver) Deaf(on bool) {
	d.post(false, func(now failover.Time) { d.step(now, failover.Deaf{On: on}) })
}

// Run is the driver's thread. It ends with ctx, and what this node may emit ends with it: call Leave first to hand over.
func (d *Driver) Run(ctx context.Context) error {
	runtime.LockOSThread() // for good: a thread with other rights than its siblings goes with its goroutine
	d.prioritise()
	close(d.started)
	stop := context.AfterFunc(ctx, func() { d.post(false, func(failover.Time) {}) })
	defer stop()
	defer d.close()
	fds := []unix.PollFd{{Fd: int32(d.wake), Events: unix.POLLIN}}
	var drain [8]byte
	for ctx.Err() == nil {
		wait := int(tickPace / time.Millisecond)
		switch {
		case d.m.Rests():
			wait = -1 // until somebody says something
		case d.m.Idle():
			wait = int(idlePace / time.Millisecond)
		}
		// A call of the system and no timer of Go's: the kernel wakes this very thread.
		if n, err := unix.Poll(fds, wait); n > 0 && err == nil {
			_, _ = unix.Read(d.wake, drain[:])
		}
		d.mu.Lock()
		list := d.queue
		d.queue = nil
		d.mu.Unlock()
		d.step(d.now(), failover.Tick{})
		for _, fn := range list {
			fn(d.now())
		}
	}
	return nil
}

// now reads the clock, and counts gaps.
func (d *Driver) now() failover.Time {
	now := max(d.c.Clock(), d.last)
	if gap := now.Sub(d.last); gap > d.c.Times.Guard && !d.m.Idle() {
		d.gaps.Add(1)
		d.longest.Store(max(d.longest.Load(), int64(gap)))
	}
	d.last = now
	return now
}

// prioritise pins the thread, and asks for real-time priority where that is allowed. Without either it works as well as the scheduler lets it.
func (d *Driver) prioritise() {
	if d.c.CPU >= 0 {
		var set unix.CPUSet
		set.Set(d.c.CPU)
		if err := unix.SchedSetaffinity(0, &set); err != nil {
			d.log.Warn("pin the thread of the leases", "cpu", d.c.CPU, "err", err)
		}
	}
	err := unix.SchedSetAttr(0, &unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: unix.SCHED_FIFO, Priority: 1, Flags: unix.SCHED_FLAG_RESET_ON_FORK}, 0)
	d.realtime.Store(err == nil)
	if err != nil {
		d.log.Info("the thread of the leases has no real-time priority: a machine under load may cost a lease", "err", err)
	}
}

// close ends everything: no deadline is written any more, and those that are, run out.
func (d *Driver) close() {
	d.step(d.now(), failover.Leave{Now: true}) // nothing of ours is emitted while nobody drives
	d.mu.Lock()
	d.shut = true
	rest := d.queue
	d.queue = nil
	unix.Close(d.wake)
	d.mu.Unlock()
	for _, fn := range rest { // those who wait are answered
		fn(d.last)
	}
}

// Leave hands over what this node serves, if there is a node to take it, gives up the rest, and says so. Nothing is served when it returns; it takes no longer than ctx, and
// at most three seconds.
func (d *Driver) Leave(ctx context.Context) {
	until := func(limit time.Duration, ok func() bool) {
		ctx, cancel := context.WithTimeout(ctx, limit)
		defer cancel()
		t := time.NewTicker(tickPace)
		defer t.Stop()
		for {
			yes := false
			if d.ask(ctx, func(failover.Time) { yes = ok() }) != nil || yes {
				return
			}
			select {
			case <-t.C:
			case <-ctx.Done():
				return
			}
		}
	}
	d.post(false, func(now failover.Time) { d.step(now, failover.Leave{}) })
	until(leaveTime, func() bool { return d.m.Heirs() == 0 })
	d.post(false, func(now failover.Time) { d.step(now, failover.Leave{Now: true}) })
	until(quietTime, func() bool { return d.m.Quiet() })
}

// step gives the machine an event and carries out what it says, in order.
func (d *Driver) step(now failover.Time, e failover.Event) {
	if a, ok := e.(failover.Agreed); ok {
		d.learn(a.State)
	}
	for _, a := range d.m.Step(now, e) {
		switch a := a.(type) {
		case failover.Send:
			if c := d.carrier.Load(); c != nil {
				(*c).Send(a.To, a.Message)
			}
		case failover.Lease:
			d.lease(now, a)
		case failover.Flush:
			done := func() {
				d.post(false, func(now failover.Time) { d.step(now, failover.Flushed{Group: a.Group, Turn: a.Turn}) })
			}
			if d.c.Flush == nil {
				done()
			} else {
				d.c.Flush(a.Group, a.Peer, done)
			}
		case failover.Announce:
			d.announce(a)
		case failover.Propose:
			d.propose(a.Entry)
		case failover.Tell:
			if a.Refused && d.refused != nil {
				d.refused.words, d.refused.soon = append(d.refused.words, a.Words), a.Soon
				continue
			}
			if a.Refused {
				d.track(a.Group).off = refusal{[]string{a.Words}, a.Soon}
			}
			level := slog.LevelInfo
			if a.Warn {
				level = slog.LevelWarn
			}
			d.noteAt(level, a.Group, a.Words)
		}
	}
	switch e.(type) {
	case failover.Agreed, failover.Groups:
		d.followed()
	default:
		if d.parts {
			d.followed()
		}
	}
}

func (d *Driver) announce(a failover.Announce) {
	if t := d.track(a.Group); d.c.Roles != nil && !t.ready { // before the deadline stands its frames would be dropped
		t.spoken = &a
	} else if d.c.Words != nil {
		d.c.Words.Announce(a.Group, a.Epoch, a.Round)
	}
}

// prepared says whether what serving needs is ready. If not it is asked for once, and the lease is written when it is.
func (d *Driver) prepared(t *groupTrack, a failover.Lease) bool {
	if d.c.Roles == nil {
		return true
	}
	if want := (role{a.Epoch, true}); t.role != want {
		t.become(want)
		turn, began := t.turn, d.c.Clock()
		d.c.Roles.Role(a.Group, a.Epoch, true, d.m.Knows(a.Group), func() {
			d.post(false, func(now failover.Time) {
				if t.turn != turn {
					return
				}
				t.ready = true
				d.note(a.Group, fmt.Sprintf("this node is ready to serve, epoch %d: that took %s", a.Epoch, now.Sub(began).Round(100*time.Microsecond)))
				if held := t.held; held != nil && held.Until > now { // else the next one is written
					d.lease(now, *held)
				}
				t.held = nil
			})
		})
	}
	if !t.ready {
		t.held = &a
	}
	return t.ready
}

func (t *groupTrack) become(r role) {
	t.role, t.ready, t.held, t.spoken = r, false, nil, nil
	t.turn++
}

// followed tells of groups that are another's by agreement now, or nobody's, and not served here any more.
func (d *Driver) followed() {
	if d.c.Roles == nil {
		return
	}
	d.parts = false
	for name, conf := range d.m.Groups() {
		t := d.track(name)
		term, mine := d.m.Owner(name)
		switch {
		case t.served:
			continue
		case d.m.Parts(name): // the last changes and the release are what the heir waits for, and nothing else is to take the workers' time
			d.parts = true
			continue
		case len(conf.Nodes) == 0: // the policy has none of that name
			if term.Epoch = t.role.epoch; !t.role.serving {
				continue
			}
		case mine || term.Epoch == 0 || term.Epoch < t.role.epoch, !t.role.serving && term.Epoch == t.role.epoch:
			continue
		}
		t.become(role{term.Epoch, false})
		d.c.Roles.Role(name, term.Epoch, false, failover.Known{}, nil)
	}
}

func (d *Driver) lease(now failover.Time, a failover.Lease) {
	t := d.track(a.Group)
	if a.Until == 0 {
		t.held, t.spoken = nil, nil
	} else if !d.prepared(t, a) {
		return
	}
	var done func()
	if a.Until == 0 {
		turn := failover.Stopped{Group: a.Group, Turn: a.Turn}
		done = func() { d.post(false, func(now failover.Time) { d.step(now, turn) }) }
	}
	if t.served { // until it stopped, or ran out
		d.saw(a.Group, d.c.Name, t.epoch, min(now, t.until))
	}
	t.served, t.until = a.Until > 0, a.Until
	if t.served {
		d.saw(a.Group, d.c.Name, a.Epoch, now)
	}
	switch {
	case d.c.Leases != nil:
		d.c.Leases.Write(a.Group, a.Epoch, a.Until, a.Leave, done)
	case done != nil:
		done()
	}
	if a.Until == 0 {
		d.followed()
	}
	if t.served && t.spoken != nil {
		said := *t.spoken
		t.spoken = nil
		d.announce(said)
	}
}

func (d *Driver) track(group string) *groupTrack {
	t := d.groups[group]
	if t == nil {
		t = &groupTrack{}
		d.groups[group] = t
	}
	return t
}

// saw notes that a node serves a group at a time. The first time under a later epoch is a failover.
func (d *Driver) saw(group, node string, epoch uint64, at failover.Time) {
	t := d.track(group)
	switch {
	case epoch < t.epoch:
		return
	case epoch > t.epoch:
		f := &Failover{Epoch: epoch, From: t.node, To: node, Seen: t.epoch > 0, At: d.c.Wall().UTC()}
		if f.Seen {
			f.Gap = max(at.Sub(t.at), 0)
		}
		t.moved = f
		t.epoch, t.node = epoch, node
		t.explain()
	}
	t.at = max(t.at, at)
}

// learn takes in what is agreed on: why each term began is told after it has ended too.
func (d *Driver) learn(s failover.State) {
	for name, o := range s.Groups {
		t := d.track(name)
		t.agreed = o
		t.explain()
	}
}

// explain says why the last failover was, where the log has that.
func (t *groupTrack) explain() {
	if f := t.moved; f != nil && f.Epoch == t.agreed.Epoch {
		f.Cause, f.From = t.agreed.Cause, cmp.Or(t.agreed.From, f.From)
	}
}

func (d *Driver) note(group, words string) { d.noteAt(slog.LevelInfo, group, words) }

func (d *Driver) noteAt(level slog.Level, group, words string) {
	d.log.Log(context.Background(), level, "group", "group", group, "what", words)
	d.eventsMu.Lock()
	defer d.eventsMu.Unlock()
	d.events = append(d.events, GroupEvent{d.c.Wall().UTC(), group, words})
	if len(d.events) > maxEvents {
		d.events = slices.Clone(d.events[len(d.events)-maxEvents:])
	}
}

// Events are what this node did and saw of groups since it started, the newest last; a bounded number of them.
func (d *Driver) Events() []GroupEvent {
	d.eventsMu.Lock()
	defer d.eventsMu.Unlock()
	return slices.Clone(d.events)
}

// propose has somebody else hand an entry to whoever leads. Of each group one is on its way, and the newest waits: an older one would be refused.
func (d *Driver) propose(e failover.Entry) {
	d.proposeMu.Lock()
	defer d.proposeMu.Unlock()
	if n := d.node.Load(); n == nil || n.ClusterID() == "" { // no member answers who does not know yet of which cluster it is
		return // it is proposed again
	}
	d.waiting[e.Group] = e
	if d.proposing[e.Group] {
		return
	}
	d.proposing[e.Group] = true
	go func(group string) {
		for {
			d.proposeMu.Lock()
			e, ok := d.waiting[group]
			delete(d.waiting, group)
			who := command.Who{Author: d.c.Name, From: d.c.Name}
			if w, asked := d.wished[group]; asked && (e.Cause == failover.CauseMove || e.Cause == failover.CauseForce) {
				who = w
			}
			n := d.node.Load()
			if !ok || n == nil {
				delete(d.proposing, group)
				d.proposeMu.Unlock()
				return
			}
			d.proposeMu.Unlock()
			began := d.c.Clock()
			ctx, cancel := context.WithTimeout(context.Background(), proposeTime+4*n.cfg.RoundTrip())
			_, err := n.hand(ctx, &command.Entry{Kind: command.KindGroup, Who: who, Group: &e})
			cancel()
			if r := (*command.Refusal)(nil); errors.As(err, &r) {
				d.log.Debug("group", "group", group, "refused", r.Text) // somebody was first: the machine hears what holds
			} else if err == nil {
				took := int64(d.c.Clock().Sub(began))
				if was := d.commit.Load(); was > 0 {
					took = (7*was + took) / 8
				}
				d.commit.Store(took)
			}
		}
	}(e.Group)
}

// Move asks for a planned move of a group that this node owns, and returns when it is agreed on. It is refused in words, also where it had begun.
func (d *Driver) Move(ctx context.Context, group, to string, who command.Who) error {
	return d.wish(ctx, group, who, "a move to "+to+" is asked for", failover.Move{Group: group, To: to}, func(r *refusal) error { return d.carried(ctx, group, to, r) })
}

// Take has this node own a group by force: the operator answers for it that no other one emits.
func (d *Driver) Take(ctx context.Context, group string, who command.Who) error {
	return d.wish(ctx, group, who, "this node is to own it by force", failover.Take{Group: group}, nil)
}

// wish has the machine carry out what an operator wants. What it refuses now and may do in a moment is asked again for copyWait: after each takeover the other copy is not whole for some tenths of a second.
// What has begun is waited for by carried, which says if it comes to nothing.
func (d *Driver) wish(ctx context.Context, group string, who command.Who, words string, e failover.Event, carried func(*refusal) error) error {
	for began := time.Now(); ; words = "" {
		var r refusal
		if err := d.ask(ctx, func(now failover.Time) {
			if _, known := d.m.Groups()[group]; !known || d.m.Ended(group) {
				r.words = []string{fmt.Sprintf("there is no group %s: `demarc group` lists those that there are", group)}
				return
			}
			if words != "" {
				d.note(group, fmt.Sprintf("%s, by %s", words, cmp.Or(who.Author, "somebody")))
			}
			d.proposeMu.Lock()
			d.wished[group] = who
			d.proposeMu.Unlock()
			d.refused, d.track(group).off = &r, refusal{}
			d.step(now, e)
			d.refused = nil
		}); err != nil {
			return err
		}
		if len(r.words) == 0 && carried != nil {
			if err := carried(&r); err != nil {
				return err
			}
		}
		waited := time.Since(began)
		switch {
		case len(r.words) == 0:
			return nil
		case !r.soon:
			return refuseGroup("%s", r.words[0])
		case waited >= copyWait || ctx.Err() != nil:
			return refuseGroup("%s. That was so for %s", r.words[0], waited.Round(100*time.Millisecond))
		}
		select {
		case <-time.After(copyPoll):
		case <-ctx.Done():
		}
	}
}

// carried waits until a move that has begun is agreed on, or comes to nothing: something else was agreed on first and it may not be now, or nothing is agreed on. The machine settles it within some seconds.
func (d *Driver) carried(ctx context.Context, group, to string, r *refusal) error {
	t := time.NewTicker(groupPoll)
	defer t.Stop()
	for done := false; ; {
		if err := d.ask(ctx, func(failover.Time) {
			term, mine := d.m.Owner(group)
			switch {
			case term.Node == to:
				done = true
			case d.m.Moving(group) == "":
				done, *r = true, d.track(group).off
				if !mine || len(r.words) == 0 {
					*r = refusal{words: []string{fmt.Sprintf("something else was agreed on first: %s owns it since epoch %d", term.Node, term.Epoch)}}
				}
			}
		}); err != nil || done {
			if n := d.node.Load(); err == nil && len(r.words) > 0 && n != nil {
				if id, _ := n.st.Leader(); id == "" {
					r.words[0] += "; the cluster has no leader" + n.silent()
				}
			}
			return err
		}
		select {
		case <-t.C:
		case <-ctx.Done():
			return fmt.Errorf("the move of group %s to %s was begun, and is not agreed on: %w", group, to, ctx.Err())
		}
	}
}

// Status of all groups of the policy, by name; where this node has heard of no policy, of those that the log knows.
func (d *Driver) Status(ctx context.Context) (out []GroupStatus, err error) {
	trips := d.trips()
	err = d.ask(ctx, func(now failover.Time) {
		d.m.Trips(trips)
		known := d.m.Groups()
		for _, name := range slices.Sorted(maps.Keys(known)) {
			if d.m.Ended(name) {
				continue
			}
			s := GroupStatus{Group: known[name], Status: d.m.Status(name, time.Duration(cmp.Or(d.commit.Load(), int64(5*time.Millisecond))), now)}
			s.Group.Name = name
			if t := d.groups[name]; t != nil && t.moved != nil {
				f := *t.moved
				s.Last = &f
			}
			s.Drained = d.m.Drained(s.Group.Nodes)
			out = append(out, s)
		}
	})
	return out, err
}

// trips are round trips to other members, of each by the shortest path, as far as they are measured.
func (d *Driver) trips() map[string]time.Duration {
	c := d.carrier.Load()
	if c == nil {
		return nil
	}
	if m, ok := (*c).(interface {
		Trips() map[string]time.Duration
	}); ok { // a test's carrier measures nothing
		return m.Trips()
	}
	return nil
}

// Owns says which groups this node may emit for.
func (d *Driver) Owns(ctx context.Context) (all map[string]failover.Term, err error) {
	err = d.ask(ctx, func(failover.Time) { all = d.m.Owns() })
	return all, err
}

// Left is what this process leaves to the next one, by group, behind Leave: see failover.
func (d *Driver) Left(ctx context.Context) (all map[string]failover.Kept, err error) {
	err = d.ask(ctx, func(failover.Time) { all = d.m.Left() })
	return all, err
}

// Terms are those that this process has by agreement, by group. They are over when it has ended.
func (d *Driver) Terms(ctx context.Context) (all map[string]failover.Term, err error) {
	err = d.ask(ctx, func(failover.Time) { all = d.m.Terms() })
	return all, err
}

// DriverFigures are for metrics.
type DriverFigures struct {
	Gaps     uint64        // between two readings of the clock that were longer than the guard
	Longest  time.Duration // of them
	Lost     uint64        // messages that came faster than they were read
	Realtime bool          // the thread has real-time priority
}

// Figures of the driver's own.
func (d *Driver) Figures() DriverFigures {
	return DriverFigures{Gaps: d.gaps.Load(), Longest: time.Duration(d.longest.Load()), Lost: d.lost.Load(), Realtime: d.realtime.Load()}
}
