package slowpath

import (
	"cmp"
	"context"
	"log/slog"
	"math/bits"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"demarc/gateway/fib"
	"demarc/gateway/flow"
	"demarc/gateway/verdict"
)

// Kind says what a worker hands over.
type Kind uint8

// The kinds.
const (
	// Learn is a whole ARP or neighbour discovery frame, as received.
	Learn Kind = iota
	// Resolve is a finished frame whose next hop has no MAC yet: only the two MACs in its Ethernet header are still to be written.
	Resolve
)

const (
	learnSlots   = 1024 // per worker
	learnBytes   = 512  // ARP is 60, a solicitation with options seldom above 100
	resolveSlots = 256  // per worker
	drainPerStep = 64   // inputs of one ring before the others have their turn
)

// Interface is one interface of the gateway as the slow path needs it. Its link-local IPv6 address is LinkLocal(MAC) and need not be listed.
type Interface struct {
	Index      uint16 // as in fib.NextHop.Iface
	Name       string
	Port       uint16 // handed to Config.Send
	VLAN       uint16 // 0 = untagged
	MAC        [6]byte
	Addrs      []netip.Prefix // the gateway's addresses with the length of their link's prefix
	Proxy      []netip.Prefix // NAT addresses answered for here because they are on this link
	HostShared []netip.Addr   // of all these, what the kernel answers for and resolves with: never answered here
	Ifindex    int            // the kernel's number of the device; for the caller's own use
	Groups     []Group        // what is answered for here while this node serves it
}

// Group is what a group has on one interface. Its MACs are virtual ones, or the interface's.
type Group struct {
	ID         uint8
	MAC4, MAC6 [6]byte
	Addrs      []netip.Addr // its virtual addresses, also the link-local one
	Proxy      []netip.Addr // NAT addresses of its tenants that are on this link
}

// Config is what New needs. Neighbors, Send and Now are required.
type Config struct {
	Neighbors   *fib.Neighbors                                    // written by nobody else
	Send        func(port uint16, group uint8, frame []byte) bool // copies the frame, a group's or (0) nobody's, towards the port; false = no room now. By one goroutine at a time, under the lock: must not block or call back
	Now         func() uint64                                     // CLOCK_BOOTTIME, ns
	Log         *slog.Logger                                      // nil = silent
	Workers     int                                               // how many numbers Input is called with; default 1
	Capacity    int                                               // entries of all states; default and at most the capacity of Neighbors
	QueuePerHop int                                               // frames that wait for one next hop; default 64
	MaxPending  int                                               // frames that wait in all; default 512
	FrameBytes  int                                               // longest frame that may wait; default 4096
	Seed        uint64                                            // for the jitter of timers

	// May reports whether this node serves a group at that time (0 is of no group). It is asked before each frame of a group that is made here. nil = it serves none.
	May func(group uint8, now uint64) bool

	// HostResolve asks the kernel to resolve or confirm (NTF_USE). The kernel reports only changes, so what it knows already must be
	// told at once by Learned. May be nil. Called by Run, without the lock.
	HostResolve func(iface uint16, a netip.Addr)
	// Unreachable is told each waiting frame whose next hop did not answer (verdict.NoNeighbor), and the worker that it came from. May be nil.
	// The frame is valid during the call only. Called under the lock: it must not call back or block.
	Unreachable func(frame []byte, iface uint16, worker int)
	// Settled is told of a router of SetNextHops that is settled now and was not, behind its state. May be nil. Called under the lock: it must not call back or block.
	Settled func(iface uint16, a netip.Addr)
	// Dropped is told each waiting frame given up for another reason: NeighborQueueFull, TxRingFull, InterfaceDown, Shutdown. As Unreachable.
	Dropped func(frame []byte, iface uint16, why verdict.Reason)
}

// Slow is the slow path.
type Slow struct {
	now      func() uint64
	ask      func(uint16, netip.Addr)
	learn    []*ring     // per worker
	resolve  []*ring     // per worker
	sleeping atomic.Bool // Run: set before it looks at the rings for the last time; workers: the one who clears it wakes
	wake     chan struct{}
	told     [4]atomic.Uint64 // ids of groups to announce: anybody sets, Run clears

	mu   sync.Mutex
	m    *machine  // mu
	asks []hostAsk // Run only
}

// New makes a slow path and takes all its memory; it does no I/O.
func New(c Config) *Slow {
	c.Workers = max(c.Workers, 1)
	if c.Capacity <= 0 || c.Capacity > c.Neighbors.Capacity() {
		c.Capacity = c.Neighbors.Capacity()
	}
	c.QueuePerHop = cmp.Or(max(c.QueuePerHop, 0), 64)
	c.MaxPending = cmp.Or(max(c.MaxPending, 0), 512)
	c.FrameBytes = cmp.Or(max(c.FrameBytes, 0), 4096)
	s := &Slow{now: c.Now, ask: c.HostResolve, wake: make(chan struct{}, 1), m: newMachine(c), asks: make([]hostAsk, 0, maxHostAsks)}
	for range c.Workers {
		s.learn = append(s.learn, newRing(learnSlots, learnBytes))
		s.resolve = append(s.resolve, newRing(resolveSlots, c.FrameBytes))
	}
	return s
}

// Input takes a copy of data. It is called by worker number worker only, never blocks or allocates, and returns false when there is no
// room. For Learn, nextHop may be nil; for Resolve, family and nextHop say whose MAC is wanted on iface, by for whose packet, and group of which
// group the frame is (0: none).
func (s *Slow) Input(worker int, kind Kind, iface uint16, by flow.TenantID, group, family uint8, nextHop *flow.Addr, data []byte) bool {
	r := s.learn[worker]
	if kind == Resolve {
		r = s.resolve[worker]
		if nextHop == nil || len(data) < 14 {
			r.full.Add(1)
			return false
		}
	}
	if !r.push(iface, by, group, family, nextHop, data) {
		return false
	}
	// Run sets sleeping and then looks at the rings; we fill the ring and then look at sleeping: one of us sees the other.
	if s.sleeping.Load() && s.sleeping.CompareAndSwap(true, false) {
		s.kick()
	}
	return true
}

// Want has a neighbour be asked for before there is a frame for it: by a worker, as Input is, of what the node may have to serve in a moment. Frames go first: it is not taken where many wait.
func (s *Slow) Want(worker int, iface uint16, by flow.TenantID, family uint8, nextHop *flow.Addr) bool {
	r := s.resolve[worker]
	if r.busy() || !r.push(iface, by, 0, family, nextHop, nil) {
		return false
	}
	if s.sleeping.Load() && s.sleeping.CompareAndSwap(true, false) {
		s.kick()
	}
	return true
}

func (s *Slow) kick() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// SetInterfaces replaces the list of interfaces: those that have link. Entries of those that went are forgotten, new addresses are announced.
func (s *Slow) SetInterfaces(list []Interface) {
	s.mu.Lock()
	s.m.setInterfaces(list, s.now())
	s.mu.Unlock()
	s.kick()
}

// SetNextHops replaces the list of routers that routes name: they are asked for whether or not packets want them, and what is found out is
// written into their states. After SetInterfaces, if both change.
func (s *Slow) SetNextHops(list []NextHop) {
	s.mu.Lock()
	s.m.setNextHops(list, s.now())
	s.mu.Unlock()
	s.kick()
}

// Learned tells what the kernel knows about a neighbour on an interface; a zero mac means that it no longer knows. It is ignored for a
// neighbour that the kernel was not asked for.
func (s *Slow) Learned(iface uint16, a netip.Addr, mac [6]byte) {
	s.mu.Lock()
	s.m.learned(iface, a, mac, s.now())
	s.mu.Unlock()
	s.kick()
}

// Announce tells all neighbours where a group's addresses are now, its switches first. It is to be called when this node begins to serve the group, and then
// from time to time; what this node does not serve when the frame is to go is not announced. It never blocks. The first frames are made here, where nobody has the lock: hosts are waiting for them, and Run may wait for a
// CPU for milliseconds, while who calls has a thread with real-time priority.
func (s *Slow) Announce(group uint8) {
	s.told[group/64].Or(1 << (group % 64))
	if s.mu.TryLock() {
		now := s.now()
		s.groups(now)
		s.m.announce(now)
		s.mu.Unlock()
	}
	s.kick()
}

// groups takes what Announce was called with. Under the lock.
func (s *Slow) groups(now uint64) {
	for w := range s.told {
		if s.told[w].Load() == 0 {
			continue
		}
		for ids := s.told[w].Swap(0); ids != 0; ids &= ids - 1 {
			s.m.announceGroup(uint8(w*64+bits.TrailingZeros64(ids)), now)
		}
	}
}

// Run works until ctx ends and returns nil. Frames that still wait then are dropped as Shutdown. It is called once.
func (s *Slow) Run(ctx context.Context) error {
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for ctx.Err() == nil {
		more, at := s.step()
		if more {
			continue
		}
		s.sleeping.Store(true)
		if s.waiting() {
			s.sleeping.Store(false)
			continue
		}
		// No finer than 10 ms, so that many timers cost few wake-ups; no longer than 5 s, so that a suspended machine catches up.
		wait := 5 * time.Second
		if now := s.now(); at < now+uint64(wait) {
			wait = max(time.Duration(at-min(at, now)), 10*time.Millisecond)
		}
		timer.Reset(wait)
		select {
		case <-ctx.Done():
		case <-s.wake:
		case <-timer.C:
		}
		s.sleeping.Store(false)
	}
	s.mu.Lock()
	s.m.shutdown()
	s.mu.Unlock()
	return nil
}

// step does a bounded piece of work. more: there is more to do now; else at says when (ns).
func (s *Slow) step() (more bool, at uint64) {
	s.mu.Lock()
	now := s.now()
	for w := range s.learn {
		for range drainPerStep {
			in, data := s.resolve[w].peek()
			if in == nil {
				break
			}
			if len(data) == 0 {
				s.m.want(in.iface, in.by, in.family, &in.hop, now)
			} else {
				s.m.resolve(w, in.iface, in.by, in.group, in.family, &in.hop, data, now)
			}
			s.resolve[w].pop()
		}
		for range drainPerStep {
			in, data := s.learn[w].peek()
			if in == nil {
				break
			}
			s.m.learn(in.iface, data, now)
			s.learn[w].pop()
		}
	}
	more = s.m.expire(now)
	s.groups(now)
	s.m.announce(now)
	s.m.listen(now)
	at = s.m.next()
	s.asks = append(s.asks[:0], s.m.hostAsks...)
	s.m.hostAsks = s.m.hostAsks[:0]
	s.mu.Unlock()
	for _, a := range s.asks {
		s.ask(a.iface, a.addr)
	}
	return more || s.waiting(), at
}

func (s *Slow) waiting() bool {
	for w := range s.learn {
		if !s.learn[w].empty() || !s.resolve[w].empty() {
			return true
		}
	}
	return false
}

// Entry is one neighbour for the operator's eyes.
type Entry struct {
	Iface     uint16
	Interface string
	Addr      netip.Addr
	MAC       [6]byte // zero unless State is usable
	State     string  // as fib.State names it; "permanent" = the kernel resolves it and says that it may be used
	Kernel    bool    // the kernel resolves it
	InUse     bool    // a worker looked it up since the slow path last looked
	AgeNs     uint64  // since it last answered us, or, if it never did, since it was made
	Waiting   int     // frames that wait for it
}

// Neighbors lists all entries, ordered by interface and address.
func (s *Slow) Neighbors() []Entry {
	s.mu.Lock()
	now := s.now()
	out := make([]Entry, 0, s.m.t.len())
	for _, i := range s.m.t.index {
		e := &s.m.t.all[i]
		v := Entry{Iface: e.key.iface, Addr: e.key.addr.Netip(e.key.family), State: e.state.String(), Kernel: e.host, Waiting: int(e.waiting)}
		if f := s.m.ifaces[e.key.iface]; f != nil {
			v.Interface = f.Name
		}
		if e.state.Usable() {
			v.MAC = e.mac
			v.InUse = s.m.cfg.Neighbors.Used(e.key.iface, e.key.family, &e.key.addr, false)
		}
		if seen := cmp.Or(e.confirmed, e.made); seen < now {
			v.AgeNs = now - seen
		}
		out = append(out, v)
	}
	s.mu.Unlock()
	slices.SortFunc(out, func(a, b Entry) int { return cmp.Or(cmp.Compare(a.Iface, b.Iface), a.Addr.Compare(b.Addr)) })
	return out
}

// Conflicts lists the addresses of ours that other stations used, the latest first.
func (s *Slow) Conflicts() []Conflict {
	s.mu.Lock()
	out := slices.Clone(s.m.clashes)
	s.mu.Unlock()
	slices.SortFunc(out, func(a, b Conflict) int { return cmp.Compare(b.LastNs, a.LastNs) })
	return out
}

// Stats counts since New. Of the frames that came to wait, Resolves = Forwarded + NoNeighbor + QueueFull + Dropped + Waiting.
type Stats struct {
	Learned     uint64 // ARP and ND frames looked at
	Resolves    uint64 // frames that came to wait for a next hop
	Wanted      uint64 // neighbours that were asked for before there was a frame for them
	RingFull    uint64 // inputs refused: no room, or too long
	Replies     uint64 // ARP replies and advertisements sent in answer
	Solicited   uint64 // requests and solicitations sent
	HostAsks    uint64 // questions to the kernel
	Announced   uint64 // gratuitous ARP and unsolicited advertisements sent
	Listens     uint64 // multicast listener reports sent
	Forwarded   uint64 // waiting frames sent
	NoNeighbor  uint64 // waiting frames given up: no answer
	QueueFull   uint64 // waiting frames given up: bounds
	Dropped     uint64 // waiting frames given up: port full, interface gone, shutdown
	SendFull    uint64 // frames of our own that Send refused
	Duplicates  uint64 // another station spoke for one of our addresses
	Defended    uint64 // and was answered before all
	Probed      uint64 // another station asked whether one of our addresses is free
	MACChanges  uint64 // a known neighbour moved to another MAC
	Malformed   uint64 // frames that were not sound ARP or ND
	Ignored     uint64 // sound frames that asked nothing of us and told nothing new
	RateLimited uint64 // answers or questions withheld by the interface's rate
	TableFull   uint64 // entries refused because all are in use
	Died        uint64 // times that a router of a route stopped to answer
	Returned    uint64 // times that one answered again
	Waiting     int    // frames that wait now
	Unanswered  int    // entries that are asked for or did not answer now, those of routers not counted
	Entries     int    // neighbours now, in all states
}

// Stats returns the counters.
func (s *Slow) Stats() Stats {
	s.mu.Lock()
	st := s.m.stats
	st.Waiting, st.Unanswered, st.Entries = s.m.t.nWaiting, s.m.t.unanswered, s.m.t.len()
	s.mu.Unlock()
	for w := range s.learn {
		st.RingFull += s.learn[w].full.Load() + s.resolve[w].full.Load()
	}
	return st
}
