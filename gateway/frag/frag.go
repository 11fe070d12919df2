package frag

import (
	"math/bits"
	"time"

	"demarc/gateway/flow"
	"demarc/gateway/verdict"
)

// How long a datagram is followed.
const (
	Wait = 2 * time.Second // for its first fragment, from whichever piece came before it (RFC 6146 section 3.4: 2 s at least)
	Keep = 5 * time.Second // once the first one is known, after its latest piece; and what is refused stays refused for as long
	Done = time.Second     // once it is complete: copies that the network made come soon, the same identification again comes later
)

// MaxPieces bounds the fragments of one datagram: the longest there is comes in 45 at 1,500 bytes, and in 54 at IPv6's smallest MTU.
const MaxPieces = 64

const (
	lanes = 8 // sources of one owner, by hash
	none  = 0 // no datagram, no buffer: both count from 1
)

// What datagrams share, by owner: buffers while they wait, places once they are known.
const (
	awaiting = iota
	settled
	classes
)

// The two lists that a datagram is in.
const (
	byAge = iota
	byLane
)

// Key names a datagram (RFC 791 section 3.2, RFC 8200 section 4.5; Proto is 0 for IPv6, where it is not part of the name).
type Key struct {
	Src, Dst flow.Addr
	ID       uint32
	Zone     flow.TenantID
	Family   uint8
	Proto    uint8
}

func (k *Key) hash(seed uint64) uint64 {
	f := flow.Key{Src: k.Src, Dst: k.Dst, SPort: uint16(k.ID), DPort: uint16(k.ID >> 16), Proto: k.Proto, Family: k.Family, Zone: k.Zone}
	return f.Hash(seed)
}

// Owner is whose share of the table a datagram counts for: a tenant, and whether it came from the tenant or from outside.
type Owner struct {
	Tenant flow.TenantID
	In     bool // from the backbone
}

func (o Owner) index() int {
	i := int(o.Tenant) * 2
	if o.In {
		i++
	}
	return i
}

// State is what is known of a datagram.
type State uint8

// The states.
const (
	Waiting State = iota // its first fragment has not come
	Known                // it has, and went on: First says as what
	Dead                 // it was refused, or pieces overlapped: the rest goes no further either
)

// Datagram is one that is followed. A pointer to it is good until the table is asked for something else.
//
// It has many fields because it is what a later fragment lacks, in one place.
type Datagram struct {
	Key   Key
	State State

	// The caller's; the table clears them for each new datagram.
	First    flow.Key // what the first fragment showed, as it came in
	Seq, Ack uint32   // TCP
	Window   uint16
	Head     uint16 // TCP: bytes of header in the first fragment
	TCPFlags uint8
	Local    bool   // it is for the gateway itself
	Reissued bool   // ID is what it is called outside
	ID       uint16 // IPv4 identification
	Home     uint16 // the worker that its first fragment belongs to

	Reason verdict.Reason // why it is Dead

	self    uint32
	owner   Owner
	lane    uint8
	age     uint8     // which of the age lists
	stamp   uint32    // tick
	next    uint32    // in its hash chain, or the free list
	older   [2]uint32 // by byAge, byLane
	newer   [2]uint32
	first   uint32 // buffers, oldest first
	last    uint32
	waiting uint16 // buffers
	pieces  uint8
	end     uint16 // bytes, 0 = its last fragment has not been seen
	covered uint16
	span    [MaxPieces]span
}

type span struct{ from, to uint16 }

// Complete reports whether every byte has been seen.
func (d *Datagram) Complete() bool { return d.end != 0 && d.covered == d.end }

// The age lists: each is in the order in which its datagrams fall due.
const (
	ageWait = iota
	ageKeep
	ageDone
	numAges
)

// list is a doubly linked list. The weight of a lane is what it has of what may run out: buffers, or known datagrams.
type list struct{ oldest, newest, weight uint32 }

// buffer is where a copied frame lies and how it came in.
type buffer struct {
	Meta
	n      uint16
	tenant flow.TenantID
	next   uint32
}

// Meta is what the driver said of a frame that waits.
type Meta struct {
	Port                     uint16
	Looped, Handed, Gathered bool
}

// Config is what a Table is made of.
type Config struct {
	Datagrams int    // how many frames may wait, and how many datagrams may be known besides
	Mem       []byte // Datagrams × Size bytes; handed in
	Size      int    // bytes of the longest frame
	Tenants   int    // ids are 0..Tenants-1
	Seed      uint64
	// Lost is told of frames that waited and are given up.
	Lost func(t flow.TenantID, r verdict.Reason, n int)
}

// Table follows the fragments of one worker.
type Table struct {
	cfg    Config
	heads  []uint32
	shift  uint
	d      []Datagram // [0] is not used
	freeD  uint32
	fresh  uint32 // datagrams from here on have never been used, and their memory was not touched
	b      []buffer
	freeB  uint32
	freshB uint32
	ages   [numAges]list
	lane   [][classes][lanes]list
	sums   [][classes]uint32 // by owner: the weight of its lanes
	ready  list              // buffers whose first fragment has come; weight = how many
	used   int               // buffers in use, the ready ones among them
	known  int               // datagrams that are not Waiting
	lost   uint64
}

// Bytes is the memory that New wants.
func Bytes(datagrams, size int) int { return datagrams * size }

// New makes a table. Its memory besides Mem is touched as it is needed.
func New(c Config) *Table {
	n := max(1, c.Datagrams)
	c.Datagrams = n
	if len(c.Mem) < Bytes(n, c.Size) {
		c.Mem = make([]byte, Bytes(n, c.Size))
	}
	c.Tenants = max(1, c.Tenants)
	// Waiting ones have a buffer each, at least; one more may be in the making.
	total := 2*n + 1
	buckets := 1 << bits.Len(uint(total))
	return &Table{
		cfg: c, heads: make([]uint32, buckets), shift: 64 - uint(bits.TrailingZeros(uint(buckets))), d: make([]Datagram, total+1), fresh: 1,
		b: make([]buffer, n+1), freshB: 1, lane: make([][classes][lanes]list, c.Tenants*2), sums: make([][classes]uint32, c.Tenants*2),
	}
}

// Waiting is how many frames wait, Capacity of how many, and Known how many datagrams are followed whose first fragment has come.
func (t *Table) Waiting() int  { return t.used }
func (t *Table) Capacity() int { return t.cfg.Datagrams }
func (t *Table) Known() int    { return t.known }

// Lost is how many frames that waited have been given up since the start.
func (t *Table) Lost() uint64 { return t.lost }

func (t *Table) giveUp(tenant flow.TenantID, r verdict.Reason, n int) {
	t.lost += uint64(n)
	t.cfg.Lost(tenant, r, n)
}

// Outcome is what Note says of a piece.
type Outcome uint8

// The outcomes.
const (
	Fresh   Outcome = iota // not seen before
	Again                  // exactly what was seen before
	Overlap                // it overlaps another: the datagram is Dead now (RFC 5722 section 4)
	Full                   // no room to follow it
)

// Note enters a piece of bytes from..to, more to come or not, and returns its datagram, which it makes if it is the first to be seen.
// What contradicts what was seen (overlaps, two ends, bytes beyond the end) ends the datagram: one of the two is a forgery.
func (t *Table) Note(k *Key, o Owner, from, to uint16, more bool, tick uint32) (*Datagram, Outcome) {
	h := k.hash(t.cfg.Seed)
	at := t.find(k, h)
	if at != none {
		d := &t.d[at]
		if d.State == Dead {
			return d, Fresh
		}
		switch d.fit(from, to, more) {
		case Again:
			return d, Again
		case Fresh:
			if int(d.pieces) == MaxPieces {
				return d, Full
			}
			d.add(from, to, more)
			if d.State == Known {
				t.due(at, tick)
			}
			return d, Fresh
		}
		if !d.Complete() {
			t.Kill(d, verdict.FragmentOverlap, tick)
			return d, Overlap
		}
		t.remove(at) // it was whole: this is another one of the same name
	}
	if at = t.take(); at == none {
		return nil, Full
	}
	d := &t.d[at]
	*d = Datagram{Key: *k, self: at, owner: o, lane: uint8(flow.HomeHash(k.Zone, k.Family, &k.Src, t.cfg.Seed) % lanes), stamp: tick}
	if int(o.Tenant) >= t.cfg.Tenants {
		d.owner = Owner{}
	}
	d.add(from, to, more)
	b := h >> t.shift
	d.next, t.heads[b] = t.heads[b], at
	t.append(&t.ages[ageWait], at, byAge)
	t.append(&t.lane[d.owner.index()][awaiting][d.lane], at, byLane)
	return d, Fresh
}

// fit compares a piece with those seen.
func (d *Datagram) fit(from, to uint16, more bool) Outcome {
	for i := range d.span[:d.pieces] {
		s := &d.span[i]
		if s.from == from && s.to == to {
			if more == (d.end == to) { // what was the last one has something behind it now, or the other way round
				return Overlap
			}
			return Again
		}
		if from < s.to && s.from < to || !more && s.to > to {
			return Overlap
		}
	}
	if d.end != 0 && (to > d.end || !more) {
		return Overlap
	}
	return Fresh
}

func (d *Datagram) add(from, to uint16, more bool) {
	d.span[d.pieces] = span{from, to}
	d.pieces++
	d.covered += to - from
	if !more {
		d.end = to
	}
}

// Hold keeps a copy of the later fragment that Note has just called Fresh, until its first one comes. Where its owner has its share of what
// there is, the datagram that has waited longest among those of the owner's busiest source gives way: so in a flood a piece that came too
// early waits for a shorter time, and is not kept out by those that were there before.
func (t *Table) Hold(d *Datagram, frame []byte, m Meta) bool {
	at, owner := d.self, d.owner.index()
	ok := len(frame) <= t.cfg.Size
	for ok && t.sums[owner][awaiting] >= uint32(t.cfg.Datagrams-t.used) {
		ok = t.giveWay(owner, awaiting, at) || t.used == t.cfg.Datagrams && t.oldestGoes(ageWait, at)
	}
	if !ok {
		if d.waiting == 0 {
			t.remove(at)
			return false
		}
		d.pieces-- // it is not kept: should it come again, it is new
		s := d.span[d.pieces]
		d.covered -= s.to - s.from
		if d.end == s.to {
			d.end = 0
		}
		return false
	}
	n := t.freeB
	if n != none {
		t.freeB = t.b[n].next
	} else {
		n = t.freshB
		t.freshB++
	}
	copy(t.cfg.Mem[int(n-1)*t.cfg.Size:], frame)
	t.b[n] = buffer{Meta: m, n: uint16(len(frame)), tenant: d.owner.Tenant}
	if d.first == none {
		d.first = n
	} else {
		t.b[d.last].next = n
	}
	d.last = n
	d.waiting++
	t.used++
	t.weigh(d, awaiting, 1)
	return true
}

// Resolve says that the first fragment of d has come and went on. What waited for it is ready.
func (t *Table) Resolve(d *Datagram, tick uint32) {
	if d.State != Waiting {
		return
	}
	first, last, n := d.first, d.last, d.waiting
	t.settle(d, Known, tick)
	if first == none {
		return
	}
	if t.ready.oldest == none {
		t.ready.oldest = first
	} else {
		t.b[t.ready.newest].next = first
	}
	t.ready.newest = last
	t.ready.weight += uint32(n)
}

// Kill refuses what waits of d and what is still to come.
func (t *Table) Kill(d *Datagram, r verdict.Reason, tick uint32) {
	d.Reason = r
	if d.State != Waiting {
		d.State = Dead
		t.due(d.self, tick)
		return
	}
	t.lose(d, r)
	t.settle(d, Dead, tick)
}

// settle takes d out of those that wait, and its buffers from it.
func (t *Table) settle(d *Datagram, s State, tick uint32) {
	at, owner := d.self, d.owner.index()
	t.weigh(d, awaiting, -int(d.waiting))
	d.first, d.last, d.waiting = none, none, 0
	t.unlink(&t.lane[owner][awaiting][d.lane], at, byLane)
	for t.sums[owner][settled] >= uint32(t.cfg.Datagrams-t.known) {
		if !t.giveWay(owner, settled, none) && !t.oldestGoes(ageDone, none) && !t.oldestGoes(ageKeep, none) {
			break
		}
	}
	d.State = s
	t.known++
	t.append(&t.lane[owner][settled][d.lane], at, byLane)
	t.weigh(d, settled, 1)
	t.due(at, tick)
}

// due puts a datagram that is no longer Waiting into the age list where it belongs now.
func (t *Table) due(at, tick uint32) {
	d := &t.d[at]
	t.unlink(&t.ages[d.age], at, byAge)
	d.age, d.stamp = ageKeep, tick
	if d.State == Known && d.Complete() {
		d.age = ageDone
	}
	t.append(&t.ages[d.age], at, byAge)
}

// giveWay ends the oldest datagram of the owner's busiest source; false when there is none but except.
func (t *Table) giveWay(owner, class int, except uint32) bool {
	var most *list
	for i := range t.lane[owner][class] {
		if l := &t.lane[owner][class][i]; most == nil || l.weight > most.weight {
			most = l
		}
	}
	at := most.oldest
	if at == except && at != none {
		at = t.d[at].newer[byLane]
	}
	return t.evict(at)
}

// oldestGoes ends the oldest datagram of an age list, whoever's.
func (t *Table) oldestGoes(age int, except uint32) bool {
	at := t.ages[age].oldest
	if at == except && at != none {
		at = t.d[at].newer[byAge]
	}
	return t.evict(at)
}

func (t *Table) evict(at uint32) bool {
	if at == none {
		return false
	}
	t.lose(&t.d[at], verdict.FragmentTableFull)
	t.remove(at)
	return true
}

// lose gives up what waits of d.
func (t *Table) lose(d *Datagram, r verdict.Reason) {
	if d.first == none {
		return
	}
	t.b[d.last].next, t.freeB = t.freeB, d.first
	t.used -= int(d.waiting)
	t.weigh(d, awaiting, -int(d.waiting))
	t.giveUp(d.owner.Tenant, r, int(d.waiting))
	d.first, d.last, d.waiting = none, none, 0
}

// remove forgets a datagram of which nothing waits.
func (t *Table) remove(at uint32) {
	d := &t.d[at]
	t.unlink(&t.ages[d.age], at, byAge)
	class := awaiting
	if d.State != Waiting {
		class = settled
		t.known--
		t.weigh(d, settled, -1)
	}
	t.unlink(&t.lane[d.owner.index()][class][d.lane], at, byLane)
	p := &t.heads[d.Key.hash(t.cfg.Seed)>>t.shift]
	for *p != at {
		p = &t.d[*p].next
	}
	*p = d.next
	d.next, t.freeD = t.freeD, at
}

// Forget ends the following of d, of which nothing waits.
func (t *Table) Forget(d *Datagram) { t.remove(d.self) }

// Ready is how many frames wait no longer: fetch them.
func (t *Table) Ready() int { return int(t.ready.weight) }

// Fetch copies the oldest ready frame into dst and forgets it. A dst that is too short gets nothing, and the frame is given up.
func (t *Table) Fetch(dst []byte) (n int, m Meta, ok bool) {
	at := t.ready.oldest
	if at == none {
		return 0, m, false
	}
	b := &t.b[at]
	from := int(at-1) * t.cfg.Size
	if ok = len(dst) >= int(b.n); ok {
		n, m = copy(dst, t.cfg.Mem[from:from+int(b.n)]), b.Meta
	} else {
		t.giveUp(b.tenant, verdict.FrameExhausted, 1)
	}
	t.ready.weight--
	if t.ready.weight == 0 {
		t.ready = list{}
	} else {
		t.ready.oldest = b.next
	}
	b.next, t.freeB = t.freeB, at
	t.used--
	return n, m, ok
}

// Sweep ends what is due, at most budget datagrams.
func (t *Table) Sweep(tick uint32, budget int) {
	for age, after := range [numAges]time.Duration{ageWait: Wait, ageKeep: Keep, ageDone: Done} {
		for at := t.ages[age].oldest; at != none && budget > 0; at = t.ages[age].oldest {
			if d := &t.d[at]; tick-d.stamp <= ticks(after) {
				break
			} else {
				t.lose(d, verdict.FragmentTimeout)
			}
			t.remove(at)
			budget--
		}
	}
}

// ticks is how many ticks of 2^20 ns are no less than d.
func ticks(d time.Duration) uint32 { return uint32(d>>20) + 1 }

// Flush ends what belongs to a tenant, or was found to be for it.
func (t *Table) Flush(tenant flow.TenantID, r verdict.Reason) {
	for _, in := range []bool{false, true} {
		owner := Owner{tenant, in}.index()
		if owner >= len(t.lane) {
			return
		}
		for class := range classes {
			for i := range lanes {
				for at := t.lane[owner][class][i].oldest; at != none; at = t.lane[owner][class][i].oldest {
					t.lose(&t.d[at], r)
					t.remove(at)
				}
			}
		}
	}
}

// Clear gives up all that waits.
func (t *Table) Clear(r verdict.Reason) {
	for t.ready.weight > 0 {
		t.giveUp(t.b[t.ready.oldest].tenant, r, 1)
		at := t.ready.oldest
		t.ready.oldest = t.b[at].next
		t.ready.weight--
		t.b[at].next, t.freeB = t.freeB, at
		t.used--
	}
	t.ready = list{}
	for age := range t.ages {
		for at := t.ages[age].oldest; at != none; at = t.ages[age].oldest {
			t.lose(&t.d[at], r)
			t.remove(at)
		}
	}
}

func (t *Table) find(k *Key, h uint64) uint32 {
	at := t.heads[h>>t.shift]
	for at != none && t.d[at].Key != *k {
		at = t.d[at].next
	}
	return at
}

func (t *Table) take() uint32 {
	if at := t.freeD; at != none {
		t.freeD = t.d[at].next
		return at
	}
	if int(t.fresh) == len(t.d) {
		return none
	}
	t.fresh++
	return t.fresh - 1
}

func (t *Table) weigh(d *Datagram, class, by int) {
	owner := d.owner.index()
	t.lane[owner][class][d.lane].weight += uint32(by)
	t.sums[owner][class] += uint32(by)
}

func (t *Table) append(l *list, at uint32, by int) {
	d := &t.d[at]
	d.older[by], d.newer[by] = l.newest, none
	if l.newest == none {
		l.oldest = at
	} else {
		t.d[l.newest].newer[by] = at
	}
	l.newest = at
}

func (t *Table) unlink(l *list, at uint32, by int) {
	d := &t.d[at]
	if d.older[by] == none {
		l.oldest = d.newer[by]
	} else {
		t.d[d.older[by]].newer[by] = d.newer[by]
	}
	if d.newer[by] == none {
		l.newest = d.older[by]
	} else {
		t.d[d.newer[by]].older[by] = d.older[by]
	}
	d.older[by], d.newer[by] = none, none
}
