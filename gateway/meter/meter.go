package meter

import (
	"math/bits"
	"sync/atomic"

	"demarc/gateway/flow"
	"demarc/gateway/verdict"
)

// Dir is the direction of a packet as a tenant sees it.
type Dir uint8

// The directions. A packet between two interfaces of one tenant is Inside: counted, never limited.
const (
	Out    Dir = iota // from the tenant to the backbone
	In                // from the backbone to the tenant
	Inside            // between interfaces of the tenant
	NumDirs
)

// String returns the direction's name.
func (d Dir) String() string { return [...]string{"out", "in", "inside"}[d%NumDirs] }

const reasonWords = (int(verdict.NumReasons) + 63) / 64

// Volume is packets and IP bytes without link headers.
type Volume struct{ Packets, Bytes uint64 }

type counts struct {
	vol   [NumDirs]Volume
	offer [NumDirs]Volume
	voice [2]Voice // by Out, In
	drops [verdict.NumReasons]uint64
	dirty [reasonWords]uint64 // which drops changed since Publish
	on    bool                // on the shard's dirty list
	calls bool                // voice changed since Publish: mostly it has not
}

// VoiceFate is what has become of a voice packet at its tenant's rates.
type VoiceFate uint8

// The fates.
const (
	VoiceWithin VoiceFate = iota // passed on within voice's own rate, before the rest
	VoiceAbove                   // it had no room for it, so it was among the rest: passed on, or dropped
	VoiceLost                    // it had, and the tenant's rate had none: dropped
	NumVoiceFates
)

// Voice is what of a direction's packets is voice, by VoiceFate.
type Voice [NumVoiceFates]Volume

type published struct {
	vol   [NumDirs]volume
	offer [NumDirs]volume
	voice [2][NumVoiceFates]volume
	drops [verdict.NumReasons]atomic.Uint64
}

type volume struct{ packets, bytes atomic.Uint64 }

// store writes what has changed and nothing else: a store costs as much as twenty loads, and of a tenant's volumes a burst mostly changes two.
func (v *volume) store(x Volume) {
	if v.packets.Load() != x.Packets {
		v.packets.Store(x.Packets)
	}
	if v.bytes.Load() != x.Bytes {
		v.bytes.Store(x.Bytes)
	}
}

func (v *volume) load() Volume { return Volume{Packets: v.packets.Load(), Bytes: v.bytes.Load()} }

// Shard holds one worker's counters. Tenant 0 stands for what could not be given to a tenant.
type Shard struct {
	own   []counts    // worker only
	pub   []published // worker: wo, others: ro
	dirty []flow.TenantID
}

// NewShard makes counters for tenants 0..tenants-1.
func NewShard(tenants int) *Shard {
	return &Shard{own: make([]counts, tenants), pub: make([]published, tenants), dirty: make([]flow.TenantID, 0, tenants)}
}

func (s *Shard) touch(t flow.TenantID) *counts {
	if int(t) >= len(s.own) {
		t = 0
	}
	c := &s.own[t]
	if !c.on {
		c.on = true
		s.dirty = append(s.dirty, t)
	}
	return c
}

// Add counts one packet of n IP bytes. Worker only.
func (s *Shard) Add(t flow.TenantID, d Dir, n int) {
	c := s.touch(t)
	c.vol[d].Packets++
	c.vol[d].Bytes += uint64(n)
}

// Offer counts one packet of n IP bytes that comes to the tenant's rate, whatever becomes of it there. Worker only.
func (s *Shard) Offer(t flow.TenantID, d Dir, n int) {
	c := s.touch(t)
	c.offer[d].Packets++
	c.offer[d].Bytes += uint64(n)
}

// Passed is Offer and Add of one packet. Worker only.
func (s *Shard) Passed(t flow.TenantID, d Dir, n int) {
	c := s.touch(t)
	v, o := &c.vol[d], &c.offer[d]
	v.Packets++
	v.Bytes += uint64(n)
	o.Packets++
	o.Bytes += uint64(n)
}

// Voice counts one voice packet of n IP bytes, Out or In, beside what Add, Offer and Drop count of it. Worker only.
func (s *Shard) Voice(t flow.TenantID, d Dir, n int, fate VoiceFate) {
	c := s.touch(t)
	c.calls = true
	v := &c.voice[d][fate]
	v.Packets++
	v.Bytes += uint64(n)
}

// Drop counts one dropped packet. Worker only.
func (s *Shard) Drop(t flow.TenantID, r verdict.Reason) { s.DropN(t, r, 1) }

// DropN counts n dropped packets. Worker only.
func (s *Shard) DropN(t flow.TenantID, r verdict.Reason, n uint64) {
	if r >= verdict.NumReasons {
		r = verdict.Unset
	}
	c := s.touch(t)
	c.drops[r] += n
	c.dirty[r/64] |= 1 << (r % 64)
}

// Reset starts a tenant's counters at 0: the id has gone to another one. Worker only.
func (s *Shard) Reset(t flow.TenantID) {
	if int(t) >= len(s.own) {
		return
	}
	c := s.touch(t)
	c.calls = true
	c.vol, c.offer, c.voice, c.drops = [NumDirs]Volume{}, [NumDirs]Volume{}, [2]Voice{}, [verdict.NumReasons]uint64{}
	for i := range c.dirty {
		c.dirty[i] = ^uint64(0)
	}
	if n := int(verdict.NumReasons) % 64; n != 0 {
		c.dirty[reasonWords-1] = 1<<n - 1
	}
}

// Publish makes everything counted so far visible to readers. Worker only, once a burst.
func (s *Shard) Publish() {
	for _, t := range s.dirty {
		c, p := &s.own[t], &s.pub[t]
		c.on = false
		for d := range c.vol {
			p.vol[d].store(c.vol[d])
			p.offer[d].store(c.offer[d])
		}
		if c.calls {
			c.calls = false
			for d := range c.voice {
				for f := range c.voice[d] {
					p.voice[d][f].store(c.voice[d][f])
				}
			}
		}
		for w := range c.dirty {
			for m := c.dirty[w]; m != 0; m &= m - 1 {
				r := w*64 + bits.TrailingZeros64(m)
				p.drops[r].Store(c.drops[r])
			}
			c.dirty[w] = 0
		}
	}
	s.dirty = s.dirty[:0]
}

// Volume reads what passed. Any goroutine.
func (s *Shard) Volume(t flow.TenantID, d Dir) Volume {
	if int(t) >= len(s.pub) {
		return Volume{}
	}
	return s.pub[t].vol[d].load()
}

// Offered reads what asked to pass: Volume and what the tenant's rates dropped. Any goroutine.
func (s *Shard) Offered(t flow.TenantID, d Dir) Volume {
	if int(t) >= len(s.pub) {
		return Volume{}
	}
	return s.pub[t].offer[d].load()
}

// VoiceOf reads what of direction Out or In is voice. Any goroutine.
func (s *Shard) VoiceOf(t flow.TenantID, d Dir) (v Voice) {
	if int(t) >= len(s.pub) || d >= Inside {
		return v
	}
	for f := range v {
		v[f] = s.pub[t].voice[d][f].load()
	}
	return v
}

// Drops reads how many packets were dropped for r. Any goroutine.
func (s *Shard) Drops(t flow.TenantID, r verdict.Reason) uint64 {
	if int(t) >= len(s.pub) || r >= verdict.NumReasons {
		return 0
	}
	return s.pub[t].drops[r].Load()
}

// Tenants is how many tenants the shard has counters for, tenant 0 included.
func (s *Shard) Tenants() int { return len(s.pub) }
