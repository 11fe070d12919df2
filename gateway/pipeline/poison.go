package pipeline

import (
	"time"

	"demarc/gateway/conntrack"
	"demarc/gateway/flow"
	"demarc/gateway/verdict"
)

// What a frame that made a stage panic leads to. One conversation is blocked at once. A source that brings another poisonous conversation
// each time is blocked as a whole, because a contained panic costs some microseconds and a flood of them would be the worker's whole time.
const (
	poisonTime   = uint64(time.Minute)
	poisonSource = 16 // panics of one source within poisonTime after which all of it is blocked
	poisonWays   = 4
	poisonSets   = 256 // a power of two
)

// poison is one conversation that is blocked, or one source (a key of nothing but zone, family and address) and its panics.
type poison struct {
	key   flow.Key
	until uint64 // ns; 0 = free
	n     uint32
}

// poisons are the flows and sources that a shard has blocked: fixed memory, 4 places for each hash. Where all are taken, what ends first
// makes room, so a flood of poison displaces only blocks of its own kind.
type poisons struct {
	sets [poisonSets][poisonWays]poison
	live int // an upper bound of those in use: as long as it is 0 no packet is looked up
	seed uint64
}

func sourceOf(k *flow.Key) flow.Key { return flow.Key{Src: k.Src, Family: k.Family, Zone: k.Zone} }

func (p *poisons) find(k *flow.Key, now uint64) *poison {
	set := &p.sets[k.Hash(p.seed)%poisonSets]
	for i := range set {
		if set[i].until > now && set[i].key == *k {
			return &set[i]
		}
	}
	return nil
}

// add counts one panic of k and keeps it for another minute. It reports how many there were.
func (p *poisons) add(k *flow.Key, now uint64) uint32 {
	e := p.find(k, now)
	if e == nil {
		set := &p.sets[k.Hash(p.seed)%poisonSets]
		e = &set[0]
		for i := range set {
			if set[i].until < e.until {
				e = &set[i]
			}
		}
		if e.until == 0 {
			p.live++
		}
		*e = poison{key: *k}
	}
	e.until = now + poisonTime
	e.n++
	return e.n
}

// has reports whether a packet with key k is blocked.
func (p *poisons) has(k *flow.Key, now uint64) bool {
	if p.find(k, now) != nil {
		return true
	}
	src := sourceOf(k)
	e := p.find(&src, now)
	return e != nil && e.n >= poisonSource
}

// sweep frees what is over.
func (p *poisons) sweep(now uint64) {
	if p.live == 0 {
		return
	}
	p.live = 0
	for i := range p.sets {
		for j := range p.sets[i] {
			if e := &p.sets[i][j]; e.until > now {
				p.live++
			} else {
				e.until = 0
			}
		}
	}
}

// Poisoned is how many flows and sources are kept for having made the shard panic. Worker only.
func (sh *Shard) Poisoned() int { return sh.poisons.live }

// Contain is what follows a panic in Process or Resume: the frame that was under way is dropped as InternalError, its flow is blocked for
// a minute, and what it left half made is put right (it may panic in turn, where the memory of a table is gone). It returns the frame's place in
// the burst, -1 when none was under way, and whether there was something to put right. Go on with Resume.
func (sh *Shard) Contain(slots []Slot) (at int, repaired bool) {
	at = -1
	if (sh.sweep == sweepParse || sh.sweep == sweepCarry || sh.sweep == sweepPieces) && sh.at < len(slots) {
		at = sh.at
		s := &slots[at]
		if sh.sweep == sweepParse {
			sh.key = s.Key
			if s.in != nil {
				sh.key.Zone = s.in.Zone
			}
		}
		if s.Verdict != verdict.Queue && (s.Verdict != verdict.Drop || s.Reason == verdict.Unset) { // neither the shaper's already, which will leave, nor counted
			sh.drop(s, verdict.InternalError)
			sh.spoilt(s)
		}
		if sh.key.Family != 0 { // else Parse itself has panicked, and nothing is known to block it by
			sh.poisons.add(&sh.key, sh.now)
			src := sourceOf(&sh.key)
			sh.poisons.add(&src, sh.now)
		}
	}
	repaired = sh.Recover()
	if at >= 0 && sh.sweep == sweepCarry {
		repaired = sh.mend(&sh.key) || repaired
	}
	return at, repaired
}

// spoilt counts and records a frame that made a stage panic, as it stands: it may be half rewritten.
func (sh *Shard) spoilt(s *Slot) {
	sh.Meter.Drop(s.Tenant, verdict.InternalError)
	d := sh.watch.drops.Take(s.Tenant, verdict.InternalError, sh.tick)
	if d == nil {
		return
	}
	sh.label(d, s, verdict.InternalError)
	if d.In = sh.key; s.Key != sh.key && s.Key.Family == sh.key.Family {
		d.After, d.Out = true, s.Key
	}
	d.Keep(s.Frame())
}

// mend ends the session of k if its writing was interrupted: no reader would trust it again.
func (sh *Shard) mend(k *flow.Key) bool {
	ref, ok := sh.Sessions.Lookup(k, sh.Sessions.Hash(k))
	if !ok {
		return false
	}
	se := sh.Sessions.At(ref.Slot())
	if se.Seq&1 == 0 {
		return false
	}
	sh.end(ref.Slot(), se)
	return true
}

// Recover puts right what a panic left half made: a session that was not yet visible or not yet counted, one that had been given up
// and was still there, a mapping that none holds. It reports whether there was something. Worker only.
func (sh *Shard) Recover() bool {
	sh.watch.tr = nil
	repaired := sh.Sessions.Repair()
	if h := sh.counted; h != nil {
		sh.counted = nil
		h.sessions--
		if sh.countedIn {
			sh.hosts.strangers(h, -1)
		}
		repaired = true
	}
	if slot := sh.ending; slot != noSlot {
		sh.ending = noSlot
		if sh.Sessions.Live(slot) && sh.Sessions.At(slot).Gen == sh.endingGen {
			sh.releaseFrom(sh.endTo, sh.Sessions.At(slot))
			sh.Sessions.Remove(slot)
			repaired = true
		}
	}
	if slot := sh.unborn; slot != noSlot {
		sh.unborn = noSlot
		if se := sh.Sessions.At(slot); sh.Sessions.Live(slot) {
			if sh.bornTo == 2 {
				sh.unpermit(se)
			}
			if sh.bornTo >= 1 {
				sh.NAT.Unref(se.Mapping, sh.tick)
			}
			if se.Flags&conntrack.FlagCounted != 0 {
				sh.uncountHost(se)
			}
			sh.Sessions.Remove(slot)
			repaired = true
		}
	}
	if sh.making != conntrack.NoMapping {
		sh.NAT.Drop(sh.making) // does nothing if a session holds it
		sh.making, repaired = conntrack.NoMapping, true
	}
	if sh.keeping != conntrack.NoMapping {
		sh.letGo()
		repaired = true
	}
	if sh.frag != nil {
		sh.frags.Kill(sh.frag, verdict.InternalError, sh.tick)
		sh.frag, repaired = nil, true
	}
	return repaired
}

// Skip has the upkeep go on behind the place where it panicked. Sweeps move on before they look; only the walk that judges again does not.
func (sh *Shard) Skip() {
	if sh.stale {
		sh.rejudge++
		if int(sh.rejudge) >= sh.Sessions.Capacity() {
			sh.stale = false
		}
	}
}

// Culprit is the key under which the frame entered that Contain has dropped.
func (sh *Shard) Culprit() flow.Key { return sh.key }
