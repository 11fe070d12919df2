package conntrack

import (
	"fmt"
	"math/bits"
	"sync/atomic"
	"unsafe"

	"demarc/gateway/flow"
	"demarc/gateway/undo"
	"demarc/gateway/verdict"
)

// Ref names a session and the direction whose key was looked up: slot<<1 | direction.
type Ref uint32

// Slot is the session's place in the table.
func (r Ref) Slot() uint32 { return uint32(r >> 1) }

// Dir is 0 for the direction of the first packet, 1 for its answers.
func (r Ref) Dir() int { return int(r & 1) }

const (
	bucketSize  = 64
	bucketSlots = 10
	// Entries per bucket at a full table, times ten: 7.5 of 10 are used then, and one entry in 40 lies beside its bucket.
	bucketFill10 = 75

	// MaxCapacity is the largest table: a Ref has one bit for the direction.
	MaxCapacity = 1 << 30

	lanes    = 0x0001000100010001
	laneHigh = 0x8000800080008000
	noSlot   = 1<<32 - 1
)

// bucket is one cache line of the index. Lanes 0..9 of words are tags of 16 bits (0 = empty), lane 10 counts the
// entries that wanted this bucket, found it full and went on; lane 11 is 0. refs[i] belongs to tag i.
type bucket struct {
	words [3]uint64
	refs  [bucketSlots]Ref
}

var _ = [1]struct{}{}[unsafe.Sizeof(bucket{})-bucketSize]

// match has the top bit of each lane set whose tag may be equal (a lane above an equal one may be set wrongly; keys are compared after).
func match(w, tag uint64) uint64 {
	x := w ^ tag*lanes
	return (x - lanes) &^ x & laneHigh
}

func (b *bucket) passed() uint16 { return uint16(b.words[2] >> 32) }

func (b *bucket) tag(i int) uint16 { return uint16(b.words[i>>2] >> (uint(i&3) * 16)) }

// empty is the first place without an entry, or bucketSlots.
func (b *bucket) empty() int {
	for i, w := range &b.words {
		if i == 2 {
			w |= 0xffffffff << 32 // no places
		}
		if m := (w - lanes) &^ w & laneHigh; m != 0 { // the lowest one that is set is right, see match
			return i*4 + bits.TrailingZeros64(m)>>4
		}
	}
	return bucketSlots
}

// What is stored in a bucket is stored by words, and in no order: a reader goes by the session.
func (b *bucket) setTag(i int, tag uint16) {
	sh := uint(i&3) * 16
	b.words[i>>2] = b.words[i>>2]&^(0xffff<<sh) | uint64(tag)<<sh
}

func (b *bucket) addPassed(n int) {
	b.words[2] = b.words[2]&^(0xffff<<32) | uint64(uint16(int(b.passed())+n))<<32
}

// Table is the sessions of one worker. The memory behind it holds, in this order: sessions, index
// buckets, deadlines. A deadline of 0 marks an empty slot; an empty slot's Mapping links the free list: the other executor never writes it,
// and may still be under way with a packet of the session that was there.
type Table struct {
	sessions  []Session
	buckets   []bucket
	deadlines []uint32
	seed      uint64
	n         uint64 // len(buckets)
	free      uint32 // head of the free list, or noSlot
	fresh     uint32 // slots from here on were never used: their memory is untouched, so an empty table costs no pages
	live      int
	hand      uint32 // where Sweep goes on
	pending   uint32 // the slot that Create is filling, or noSlot: what Repair undoes after a panic
	rest      func(slot uint32) bool
	resting   int // slots that rest
	log       *undo.Log
}

// Rests has a slot whose session has ended not be used again where rest says so, until Reuse is called for it: another executor may still be under way with a packet of the session that was there, and would write to the next one. What a
// twin frees does not rest. Before the first session.
func (t *Table) Rests(rest func(slot uint32) bool) { t.rest = rest }

// Room is how many sessions more there could be now.
func (t *Table) Room() int { return len(t.sessions) - t.live - t.resting }

// Reuse lets go of a slot that rested.
func (t *Table) Reuse(slot uint32) {
	t.resting--
	t.sessions[slot].Mapping = t.free
	t.free = slot
}

// Twin is a table over the same memory that remembers in l what it writes, and what At was asked for. Until l is undone, only the twin may be used.
func (t *Table) Twin(l *undo.Log) *Table {
	c := *t
	c.log = l
	return &c
}

func numBuckets(capacity int) int { return (capacity*2*10 + bucketFill10 - 1) / bucketFill10 }

// Bytes is the memory that New wants for capacity sessions.
func Bytes(capacity int) int {
	return capacity*SessionSize + numBuckets(capacity)*bucketSize + (capacity*4+63)&^63
}

// Lines is how many lines of the index a table of that capacity has. In its memory they lie behind the sessions.
func Lines(capacity int) int { return numBuckets(capacity) }

// Index is where in a table's memory its index lies, which is met at random. Sessions before it and deadlines behind it are used from their fronts on, as far as there ever were sessions at once.
func Index(capacity int) (from, to int) {
	from = capacity * SessionSize
	return from, from + numBuckets(capacity)*bucketSize
}

// New lays a table over mem, which must be zeroed, aligned to 64 bytes, at least Bytes(capacity) long, and outlive the table.
// The seed keys the hash; it should not be known to senders.
func New(mem []byte, capacity int, seed uint64) (*Table, error) {
	if capacity < 1 || capacity > MaxCapacity {
		return nil, fmt.Errorf("session table of %d entries: want 1 to %d", capacity, MaxCapacity)
	}
	if len(mem) < Bytes(capacity) {
		return nil, fmt.Errorf("session table of %d entries: %d bytes of memory, want %d", capacity, len(mem), Bytes(capacity))
	}
	p := unsafe.Pointer(unsafe.SliceData(mem))
	if uintptr(p)&63 != 0 {
		return nil, fmt.Errorf("session table: memory at %#x is not aligned to 64 bytes", uintptr(p))
	}
	t := &Table{seed: seed, n: uint64(numBuckets(capacity)), free: noSlot, pending: noSlot}
	// The layout above laid over the memory handed in.
	t.sessions = unsafe.Slice((*Session)(p), capacity)
	p = unsafe.Add(p, capacity*SessionSize)
	t.buckets = unsafe.Slice((*bucket)(p), int(t.n))
	p = unsafe.Add(p, int(t.n)*bucketSize)
	t.deadlines = unsafe.Slice((*uint32)(p), capacity)
	return t, nil
}

// Hash is the hash of k that every other function wants: computed once per packet.
func (t *Table) Hash(k *flow.Key) uint64 { return k.Hash(t.seed) }

func (t *Table) home(h uint64) uint64 {
	hi, _ := bits.Mul64(h, t.n)
	return hi
}

// tagOf takes the low bits; home takes the high ones. 0 means an empty place.
func tagOf(h uint64) uint64 {
	tag := h & 0xffff
	if tag == 0 {
		tag = 1
	}
	return tag
}

// BucketAt is where h's bucket lies, a line, for package prefetch.
func (t *Table) BucketAt(h uint64) uintptr {
	return uintptr(unsafe.Pointer(unsafe.SliceData(t.buckets))) + uintptr(t.home(h))*bucketSize
}

// Guess is the entry of the session that h's bucket seems to hold, without comparing keys, or NoRef: for SessionAt and Guessed.
func (t *Table) Guess(h uint64) Ref {
	b := &t.buckets[t.home(h)]
	tag := tagOf(h)
	// Entry 4*i+lane at bit 16*lane+i: one branch, which is foreseen, where a look at word by word has one that never is.
	m := match(b.words[0], tag)>>15 | match(b.words[1], tag)>>14 | match(b.words[2], tag)&(1<<31|1<<15)>>13
	if m == 0 {
		return NoRef
	}
	z := bits.TrailingZeros64(m)
	at := z&15<<2 | z>>4
	if at >= bucketSlots { // never: the mask leaves only lanes that have an entry
		return NoRef
	}
	return b.refs[at]
}

// SessionAt is where the session that was guessed lies, two lines, for package prefetch; of NoRef, somewhere.
func (t *Table) SessionAt(guess Ref) uintptr {
	return uintptr(unsafe.Pointer(unsafe.SliceData(t.sessions))) + uintptr(guess.Slot())*SessionSize
}

// PlaceAt is where all lies that is looked at of what is in a slot, for package prefetch. Any number may be asked for.
func (t *Table) PlaceAt(slot uint32) [3]uintptr {
	at := t.SessionAt(Ref(slot) << 1)
	return [3]uintptr{at, at + SessionSize/2, uintptr(unsafe.Pointer(unsafe.SliceData(t.deadlines))) + uintptr(slot)*unsafe.Sizeof(t.deadlines[0])}
}

// NoRef is the entry of no session.
const NoRef = Ref(1<<32 - 1)

// Guessed reports whether guess, which Guess returned, is what Lookup would find for k now. Any other number may be asked for as well. False means that Lookup must be asked: what Guess
// saw has been changed since, or another session has the same tag.
func (t *Table) Guessed(guess Ref, k *flow.Key) bool {
	slot := guess.Slot()
	if slot >= t.fresh || int(slot) >= len(t.sessions) {
		return false
	}
	s := &t.sessions[slot]
	return s.Seq&1 == 0 && s.is(k, guess.Dir()) // even: it is in the table. No two of those have a key in common
}

// Lookup finds the session whose key in one of its directions is k; h is Hash(k).
func (t *Table) Lookup(k *flow.Key, h uint64) (Ref, bool) {
	tag := tagOf(h)
	at := t.home(h)
	for range t.n {
		b := &t.buckets[at]
		if match(b.words[0], tag)|match(b.words[1], tag)|match(b.words[2], tag) != 0 { // else it is not here: so most first packets are told
			for i := range 3 {
				for m := match(b.words[i], tag); m != 0; m &= m - 1 {
					j := i*4 + bits.TrailingZeros64(m)>>4
					if j >= bucketSlots {
						break // the counter looks like the tag
					}
					r := b.refs[j]
					// An empty place above an equal tag may have matched (see match), and its stale ref may name a dead session.
					if uint64(b.tag(j)) == tag && t.sessions[r.Slot()].is(k, r.Dir()) {
						return r, true
					}
				}
			}
		}
		if b.passed() == 0 {
			return 0, false
		}
		if at++; at == t.n {
			at = 0
		}
	}
	return 0, false
}

// At is the session in slot. It stays valid until Remove.
func (t *Table) At(slot uint32) *Session {
	s := &t.sessions[slot]
	undo.Keep(t.log, s) // the caller may write to it
	return s
}

// SlotOf is where At or Each has s from.
func (t *Table) SlotOf(s *Session) uint32 {
	return uint32((uintptr(unsafe.Pointer(s)) - uintptr(unsafe.Pointer(unsafe.SliceData(t.sessions)))) / SessionSize)
}

// Slots is how many slots from 0 on were ever in use.
func (t *Table) Slots() uint32 { return t.fresh }

// Live reports whether slot holds a session.
func (t *Table) Live(slot uint32) bool { return int(slot) < len(t.deadlines) && t.deadlines[slot] != 0 }

func (t *Table) insert(h uint64, r Ref) {
	at := t.home(h)
	for {
		b := &t.buckets[at]
		if i := b.empty(); i < bucketSlots {
			undo.Keep(t.log, b)
			b.refs[i] = r
			b.setTag(i, uint16(tagOf(h)))
			return
		}
		undo.Keep(t.log, b)
		b.addPassed(1)
		if at++; at == t.n {
			at = 0
		}
	}
}

// erase takes the entry (h, r) out, if it is there.
func (t *Table) erase(h uint64, r Ref) bool {
	tag := uint16(tagOf(h))
	home := t.home(h)
	at := home
	for range t.n {
		b := &t.buckets[at]
		for i := range bucketSlots {
			if b.refs[i] == r && b.tag(i) == tag {
				undo.Keep(t.log, b)
				b.setTag(i, 0)
				for p := home; p != at; {
					undo.Keep(t.log, &t.buckets[p])
					t.buckets[p].addPassed(-1)
					if p++; p == t.n {
						p = 0
					}
				}
				return true
			}
		}
		if b.passed() == 0 {
			return false
		}
		if at++; at == t.n {
			at = 0
		}
	}
	return false
}

func (t *Table) take() (slot uint32, ok bool) {
	switch {
	case t.free != noSlot:
		slot = t.free
		t.free = t.sessions[slot].Mapping
	case int(t.fresh) < len(t.sessions):
		slot = t.fresh
		t.fresh++
	default:
		return noSlot, false
	}
	return slot, true
}

// Repair undoes a Create that did not come to its end, and reports whether there was one. To be called after a panic in the owner.
func (t *Table) Repair() bool {
	if t.pending == noSlot {
		return false
	}
	slot := t.pending
	t.pending = noSlot
	if t.deadlines[slot] != 0 {
		t.Remove(slot)
		return true
	}
	t.release(slot)
	return true
}

// deadline avoids 0, which marks an empty slot.
func deadline(tick uint32) uint32 {
	if tick == 0 {
		return 1
	}
	return tick
}

// Create copies *s into the table, to be swept at now+timeout at the earliest. Seq and Gen of *s are ignored and written over.
// It returns SessionTableFull or, where either key is taken, SessionCollision; nothing is changed then.
//
// The sequence word of a slot without a session is odd, or no entry names it yet. It becomes even behind the session and both entries: that makes it a session for every reader.
func (t *Table) Create(s *Session, now, timeout uint32) (slot uint32, r verdict.Reason) {
	var h [2]uint64
	for dir := range h {
		k := s.Key(dir)
		h[dir] = t.Hash(&k)
		if _, taken := t.Lookup(&k, h[dir]); taken {
			return 0, verdict.SessionCollision
		}
	}
	return t.Begin(s, h[0], h[1], now, timeout)
}

// Begin is Create for who has the hashes of both keys, and from Lookup that neither is taken.
func (t *Table) Begin(s *Session, h0, h1 uint64, now, timeout uint32) (slot uint32, r verdict.Reason) {
	if h0 == h1 && s.Key(0) == s.Key(1) {
		return 0, verdict.SessionCollision
	}
	slot, ok := t.take()
	if !ok {
		return 0, verdict.SessionTableFull
	}
	t.pending = slot
	d := t.At(slot)
	undo.Keep(t.log, &t.deadlines[slot])
	s.Seq, s.Gen = d.Seq|1, d.Gen // so that the copy never says that it is whole
	*d = *s
	t.insert(h1, Ref(slot<<1|1))
	t.insert(h0, Ref(slot<<1))
	t.live++
	t.deadlines[slot] = deadline(now + timeout)
	atomic.StoreUint32(&d.Seq, s.Seq+1)
	t.pending = noSlot
	return slot, verdict.Pass
}

// Remove ends the session in slot: out of the index first, then the sequence word becomes odd and the generation changes.
// An empty slot is left alone.
func (t *Table) Remove(slot uint32) {
	if !t.Live(slot) {
		return
	}
	t.live--
	t.release(slot)
}

func (t *Table) release(slot uint32) {
	d := t.At(slot)
	undo.Keep(t.log, &t.deadlines[slot])
	k0, k1 := d.Key(0), d.Key(1)
	t.erase(t.Hash(&k0), Ref(slot<<1))
	t.erase(t.Hash(&k1), Ref(slot<<1|1))
	atomic.StoreUint32(&d.Seq, d.Seq|1)
	atomic.StoreUint32(&d.Gen, d.Gen+1)
	t.deadlines[slot] = 0
	if t.rest != nil && t.log == nil && t.rest(slot) {
		t.resting++
		return
	}
	d.Mapping = t.free
	t.free = slot
}

// SetDeadline says when Sweep shall look at the session again.
func (t *Table) SetDeadline(slot, tick uint32) {
	if t.Live(slot) {
		undo.Keep(t.log, &t.deadlines[slot])
		t.deadlines[slot] = deadline(tick)
	}
}

// Sooner has Sweep look at a session no later than by these timeouts: where they have become shorter, its deadline is by longer ones.
func (t *Table) Sooner(slot, now uint32, tm *Timeouts) {
	if !t.Live(slot) {
		return
	}
	s, due := &t.sessions[slot], now
	if left := s.Seen(now) + s.Timeout(tm) - now; int32(left) > 0 {
		due += min(left, s.Look(tm))
	}
	if int32(t.deadlines[slot]-due) > 0 {
		undo.Keep(t.log, &t.deadlines[slot])
		t.deadlines[slot] = deadline(due)
	}
}

// Sweep looks at the next budget deadlines, round and round. A session that was seen since is armed again, one that was idle for
// its timeout is given to expired and then removed, unless keep (nil: none) says that time does not end it. A half-open one for which hurry (nil: none) says
// yes has at most tm.Hurry. It returns how many ended.
func (t *Table) Sweep(now uint32, tm *Timeouts, budget int, hurry, keep func(*Session) bool, expired func(slot uint32, s *Session)) (n int) {
	end := t.fresh
	if end == 0 {
		return 0
	}
	for range min(budget, int(end)) {
		if t.hand >= end {
			t.hand = 0
		}
		slot := t.hand
		t.hand++
		dl := t.deadlines[slot]
		if dl == 0 || int32(dl-now) > 0 {
			continue
		}
		s := &t.sessions[slot]
		idle := s.Timeout(tm)
		look := s.Look(tm)
		if look < idle && hurry != nil && hurry(s) {
			idle = look
		}
		if due := s.Seen(now) + idle; int32(due-now) > 0 {
			if int32(due-now-look) > 0 {
				due = now + look
			}
			t.deadlines[slot] = deadline(due)
			continue
		}
		if keep != nil && keep(s) {
			t.deadlines[slot] = deadline(now + max(look, 1))
			continue
		}
		if expired != nil {
			expired(slot, s)
		}
		t.Remove(slot)
		n++
	}
	return n
}

// Each calls fn for the sessions among the next budget slots from from, until fn returns false. Go on with next until done.
// fn may remove the session that it was called for.
func (t *Table) Each(from uint32, budget int, fn func(slot uint32, s *Session) bool) (next uint32, done bool) {
	for ; from < t.fresh && budget > 0; budget-- {
		slot := from
		from++
		if t.deadlines[slot] != 0 && !fn(slot, &t.sessions[slot]) {
			break
		}
	}
	return from, from >= t.fresh
}

// Len is the number of sessions.
func (t *Table) Len() int { return t.live }

// Capacity is the number of sessions that fit.
func (t *Table) Capacity() int { return len(t.sessions) }
