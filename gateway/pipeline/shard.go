package pipeline

import (
	"cmp"
	"sync/atomic"
	"time"

	"demarc/gateway/block"
	"demarc/gateway/conntrack"
	"demarc/gateway/fib"
	"demarc/gateway/flow"
	"demarc/gateway/frag"
	"demarc/gateway/lease"
	"demarc/gateway/meter"
	"demarc/gateway/nat"
	"demarc/gateway/packet"
	"demarc/gateway/police"
	"demarc/gateway/replica"
	"demarc/gateway/snapshot"
	"demarc/gateway/trace"
	"demarc/gateway/verdict"
)

// Burst is the most packets that one call of Process takes.
const Burst = 64

// LoopPort is the egress port of a shaped packet that enters again from the backbone side.
const LoopPort = 0xffff

// noHop stands in a session where there is no route.
const noHop = snapshot.NoHop

// noSlot stands where there is no session.
const noSlot = 1<<32 - 1

// Slot is one packet of a burst: the parsed frame, where it came from, and what became of it.
type Slot struct {
	packet.Packet

	// Set by the driver before Process.
	Port   uint16 // ingress port
	Looped bool   // left a tenant towards one of our own public addresses and enters from the backbone side
	Handed bool   // came from another worker, which has decided that it belongs here

	// A fragment that came from another worker, since those of its datagram meet here; with Hand: one that should do so at Home.
	Gathered bool

	// With Looped: a finished frame that comes back because its next hop on OutIface did not answer. Process sends an error to its sender, or drops it.
	Unreached bool

	Area uint8  // the driver's: memory area of the frame
	Addr uint64 // the driver's: chunk address of the frame

	// Set by Process.
	Verdict  verdict.Verdict
	Reason   verdict.Reason // with Drop
	Tenant   flow.TenantID  // whom it is counted for; 0 = nobody
	Group    uint8          // with Send, Queue, Neighbor, Cut: of which group the frame is that leaves; 0 = of none
	Dir      meter.Dir
	Home     uint16 // with Hand: the worker
	OutPort  uint16 // with Send and Neighbor
	OutIface uint16 // with Send, Neighbor; with Punt the ingress interface
	NextHop  flow.Addr
	Voice    bool
	ruled    bool // voice by a rule
	IPLen    uint16

	in    *snapshot.Iface
	hash  uint64
	guess conntrack.Ref // which session it is of, as touch saw it; of what was not touched, anything
	hop   *snapshot.Hop // with Cut
	cut   uint16        // bytes of IP that the next hop takes, where that is less than IPLen and the packet may be cut; or isPiece; else 0
}

// Event is a line for the log: a rule with `log` decided about a new conversation.
type Event struct {
	Tick   uint32
	Tenant flow.TenantID
	Dir    meter.Dir
	Rule   flow.RuleID
	Allow  bool
	Key    flow.Key
}

const eventRing = 1024 // a power of two

// Config is what a Shard is made of. The memory of the tables is handed in by the caller.
type Config struct {
	Worker     int
	SessionMem []byte
	Sessions   int
	Shared     bool                    // another executor carries packets of the sessions too: what both write is written atomically
	Idents     *[nat.WholeWords]uint64 // that executor names whole packets by them too; nil = there is none
	NATMem     []byte
	Mappings   int
	PermitMem  []byte // nat.PermitBytes(Sessions); touched only where tenants filter by address
	Tenants    int
	ShaperMax  int    // packets that all shaper queues together may hold
	Fragments  int    // fragments that may wait for the first of their datagram; 0 = 64
	FrameBytes int    // the longest frame; 0 = 2,048
	FragMem    []byte // frag.Bytes(Fragments, FrameBytes)
	Seed       uint64
	Space      *nat.Space
	Neighbors  *fib.Neighbors
	Deadlines  *lease.Deadlines // until when this node serves each group; nil = it serves none
	Ending     *lease.Deadlines // see worker.Config; nil = nothing is carried behind the deadline
}

// Shard is everything one worker writes.
type Shard struct {
	Worker   int
	Sessions *conntrack.Table
	NAT      *nat.Shard
	permits  *nat.Permits
	Space    *nat.Space
	// Want has a neighbour be asked for that no packet waits for; nil = nobody does. Set before anything runs.
	Want      func(iface uint16, by flow.TenantID, family uint8, hop *flow.Addr)
	Neighbors *fib.Neighbors
	Shaper    *police.Shaper
	Meter     *meter.Shard
	shared    bool
	second    *Second // nil = none

	view     *snapshot.View
	gen      uint32      // higher with each View and each takeover. A session whose ViewGen is another one is brought up to date before its next packet; 0 is that of a copy that nothing here has judged
	judged   uint32      // gen of the View: what was judged under an earlier one is to be judged again
	serving  [256]bool   // by group, as TakeOver and GiveUp say
	given    [256]uint64 // how often this node has given up a group, as Hold was told last
	now      uint64      // ns
	tick     uint32
	rnd      uint64
	echo     []police.Word // by tenant: ping answers
	echoRate police.Rate
	rejudge  uint32         // where the walk that judges old sessions again has come to
	stale    bool           // that walk is not over
	ahead    [Burst]uintptr // by slot of the burst: where its session seems to lie; of what has none, anything
	begun    int            // sessions that began since the last sweep, of so many packets that were of none
	ofNone   int
	read     replica.Record // see readBack
	near     [4]near        // by interface, of this burst
	making   uint32         // mapping that the session under way has got and not yet holds; conntrack.NoMapping between packets
	held     []held         // by tenant
	tenures  []tenure       // likewise
	keeping  uint32         // mapping that reopen keeps, likewise
	watch    watching
	blocks   *block.List // nil = none
	until    *lease.Deadlines
	parts    *lease.Deadlines
	asked    *asked
	frags    *frag.Table
	frag     *frag.Datagram // that the fragment under way is of, nil between fragments
	looks    bool           // at the identifications that all share, and takes none: a twin
	idents   *[nat.WholeWords]uint64
	identLo  uint16 // identifications of whole packets are this worker's from here on
	identMsk uint16

	// What Contain goes by after a panic.
	sweep     sweep    // where Process is
	at        int      // the packet under way in it
	key       flow.Key // under which it entered
	unborn    uint32   // slot of a session that is in the table and not yet counted, or noSlot
	bornTo    uint8    // how far it is: 1 it holds its mapping, 2 its permit is counted
	counted   *host    // inside host that counts a session which is not in the table yet
	countedIn bool     // a stranger has begun that
	ending    uint32   // slot of a session that gives back what it holds, or noSlot
	endingGen uint32   // and its generation
	endTo     uint8    // how far it is
	poisons   poisons
	poisonAt  uint64 // ns of the last look at what of them is over

	copies []*replica.Sender // one for each standby; none: nothing is marked

	hosts  *hosts
	hostAt uint64 // where sweepHosts has come to

	*eventLog
}

// eventLog is a pointer in the shard, so that this can be copied: see Trial.
type eventLog struct {
	events   [eventRing]Event
	evHead   atomic.Uint64 // worker: wo
	evTail   atomic.Uint64 // reader: wo
	EvMissed atomic.Uint64 // events that found the ring full
	lost     atomic.Uint64 // copies that ended with their tenant; worker: wo
	Moved    atomic.Uint64 // sessions that were to leave their next hop and go by another one since; worker: wo
}

// echoPerSecond is how many pings the gateway answers, per tenant and worker.
const echoPerSecond = 2000

// NewShard makes the state of one worker.
func NewShard(c Config) (*Shard, error) {
	st, err := conntrack.New(c.SessionMem, c.Sessions, c.Seed)
	if err != nil {
		return nil, err
	}
	ns, err := nat.NewShard(c.NATMem, c.Mappings, c.Worker, c.Space, c.Seed^0x9e3779b97f4a7c15)
	if err != nil {
		return nil, err
	}
	permits, err := nat.NewPermits(c.PermitMem, c.Sessions, c.Seed^0xc2b2ae3d27d4eb4f)
	if err != nil {
		return nil, err
	}
	tenants := c.Tenants + 1
	sh := &Shard{
		eventLog: &eventLog{},
		Worker:   c.Worker, Sessions: st, NAT: ns, permits: permits, Space: c.Space, Neighbors: c.Neighbors,
		Shaper: police.NewShaper(c.ShaperMax, tenants*2), Meter: meter.NewShard(tenants),
		held: make([]held, tenants), tenures: make([]tenure, tenants), hosts: newHosts(c.Sessions, tenants, c.Seed), making: conntrack.NoMapping, keeping: conntrack.NoMapping, unborn: noSlot, ending: noSlot, poisons: poisons{seed: c.Seed ^ 0xd6e8feb86659fd93}, rnd: c.Seed | 1, echo: make([]police.Word, tenants),
		shared:   c.Shared,
		watch:    watching{drops: trace.NewRecorder()},
		asked:    newAsked(),
		until:    c.Deadlines,
		parts:    c.Ending,
		echoRate: police.PacketRate(echoPerSecond, 100*time.Millisecond),
	}
	sh.frags = frag.New(frag.Config{Datagrams: cmp.Or(c.Fragments, 64), Mem: c.FragMem, Size: cmp.Or(c.FrameBytes, 2048), Tenants: tenants, Seed: c.Seed ^ 0x165667b19e3779f9,
		Lost: func(t flow.TenantID, r verdict.Reason, n int) { sh.Meter.DropN(t, r, uint64(n)) }})
	if sh.idents = c.Idents; sh.idents == nil {
		sh.idents = new([nat.WholeWords]uint64)
	}
	for i := range sh.idents {
		sh.idents[i] = uint64(uint16(sh.random()))
	}
	return sh, nil
}

// SetView hands the shard a new View. Sessions judged under an older one are judged again on their next packet, and by Maintain if none comes.
func (sh *Shard) SetView(v *snapshot.View) {
	if sh.view != nil {
		for _, t := range sh.view.Tenants {
			if t != nil && v.Tenant(t.ID) == nil {
				sh.frags.Flush(t.ID, verdict.SessionCut)
			}
		}
	}
	sh.view = v
	sh.newGen()
	sh.judged = sh.gen
	sh.standing()
	sh.identLo, sh.identMsk = nat.WholeShare(sh.Worker, v.Workers)
	for _, id := range v.Fresh {
		sh.Meter.Reset(id)
	}
	sh.rejudge, sh.stale = 0, true
}

// View is the View that the shard works with.
func (sh *Shard) View() *snapshot.View { return sh.view }

// Gen is what the ViewGen of a session is that was judged under what holds now. Worker only.
func (sh *Shard) Gen() uint32 { return sh.gen }

// Settled reports whether every session has been judged under the current View.
func (sh *Shard) Settled() bool { return !sh.stale }

func (sh *Shard) random() uint64 { // xorshift64*, seeded by the caller: ports need to be hard to guess, not secret
	x := sh.rnd
	x ^= x >> 12
	x ^= x << 25
	x ^= x >> 27
	sh.rnd = x
	return x * 0x2545f4914f6cdd1d
}

func (sh *Shard) event(e Event) {
	h := sh.evHead.Load()
	if h-sh.evTail.Load() >= eventRing {
		sh.EvMissed.Add(1)
		return
	}
	sh.events[h%eventRing] = e
	sh.evHead.Store(h + 1)
}

// Events hands the log events so far to fn. One reader, any goroutine.
func (sh *Shard) Events(fn func(Event)) {
	t := sh.evTail.Load()
	for h := sh.evHead.Load(); t < h; t++ {
		fn(sh.events[t%eventRing])
	}
	sh.evTail.Store(t)
}

// end takes a session out of the table and gives back what it held.
func (sh *Shard) end(slot uint32, se *conntrack.Session) {
	sh.release(slot, se)
	sh.Sessions.Remove(slot)
	sh.ending = noSlot
}

// release gives back what a session held outside the table; the table removes it afterwards.
func (sh *Shard) release(slot uint32, se *conntrack.Session) {
	sh.changes(slot, se)
	sh.ending, sh.endingGen = slot, se.Gen
	sh.releaseFrom(0, se)
}

// releaseFrom gives back from one step on: a step that panicked is left out when Recover goes on, and those before it are not done twice.
func (sh *Shard) releaseFrom(step uint8, se *conntrack.Session) {
	switch step {
	case 0:
		sh.endTo = 1
		if se.Mapping != conntrack.NoMapping {
			sh.unpermit(se)
		}
		fallthrough
	case 1:
		sh.endTo = 2
		if se.Mapping != conntrack.NoMapping {
			sh.NAT.Unref(se.Mapping, sh.tick)
		}
		fallthrough
	case 2:
		sh.endTo = 3
		if se.Flags&conntrack.FlagCounted != 0 {
			sh.uncountHost(se)
		}
		fallthrough
	case 3:
		sh.endTo = 4
		sh.uncountSession(se)
		for _, c := range sh.copies {
			c.Gone(sh.ending)
		}
	}
}

// Maintain does a bounded part of the work that is never done: expiry, held ports, judging again after a change. Call it every few
// milliseconds; budget is how many table slots it may look at.
func (sh *Shard) Maintain(nowNs uint64, budget int) {
	if sh.view == nil {
		return
	}
	sh.setNow(nowNs)
	sh.Sessions.Sweep(sh.tick, &sh.view.Timeouts, budget, sh.hurry, sh.keeps, sh.release)
	sh.NAT.Sweep(sh.tick, sh.part(sh.NAT.Blocks(), budget))
	sh.sweepHosts(sh.part(len(sh.hosts.slots), budget))
	if sh.now-sh.poisonAt >= uint64(time.Second) {
		sh.poisonAt = sh.now
		sh.poisons.sweep(sh.now)
	}
	sh.frags.Sweep(sh.tick, budget)
}

// Rejudge brings at most budget table slots up to the current View and ends the sessions that it denies. Of copies only those end whose tenant is gone. Call it until Settled.
func (sh *Shard) Rejudge(nowNs uint64, budget int) {
	sh.setNow(nowNs)
	next, done := sh.Sessions.Each(sh.rejudge, budget, func(slot uint32, se *conntrack.Session) bool {
		switch {
		case se.ViewGen == sh.gen:
		case sh.tenures[se.Tenant].copied:
		case sh.current(slot, se) != verdict.Pass:
			sh.expel(slot, se)
		}
		return true
	})
	sh.rejudge, sh.stale = next, !done
}

// part is as much of n other things as budget is of the session table, so that one round of either takes as long: what is walked in a round of
// its own, however small it is, costs most of a worker's time when the table is large.
func (sh *Shard) part(n, budget int) int { return n*budget/sh.Sessions.Capacity() + 1 }

func (sh *Shard) setNow(nowNs uint64) {
	sh.now = nowNs
	sh.tick = uint32(nowNs >> 20)
	for i := range sh.near {
		sh.near[i].family = 0
	}
}

// Cut ends every session that match says yes to, but for copies, and reports how many. It looks at the whole table: control work, done between bursts.
func (sh *Shard) Cut(match func(*conntrack.Session) bool) (n int) {
	sh.Sessions.Each(0, sh.Sessions.Capacity(), func(slot uint32, se *conntrack.Session) bool {
		if match(se) && !sh.Copied(se) {
			sh.end(slot, se)
			n++
		}
		return true
	})
	return n
}

// WouldCut reports whether the session would end under v. A copy ends with its tenant alone; what else its owner ends, that will tell.
func (sh *Shard) WouldCut(v *snapshot.View, se *conntrack.Session) bool {
	var m *nat.Mapping
	if se.Mapping != conntrack.NoMapping {
		m = sh.NAT.Mapping(se.Mapping)
	}
	if sh.Copied(se) {
		return v.Tenant(se.Tenant) == nil
	}
	return Judge(v, se, m).Reason != verdict.Pass
}
