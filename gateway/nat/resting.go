package nat

import (
	"math/bits"

	"demarc/gateway/flow"
)

// Resting is ports of one block that rest.
type Resting struct {
	Tenant  flow.TenantID
	PerHost bool // the block is one inside host's
	Inside  [4]byte
	Addr    AddrID
	Class   Class
	Block   uint16 // its ports begin at 64 times that
	Ports   uint64
	Left    uint32 // ticks that they rest at most
}

// Resting calls fn for each block of the shard of which ports rest. It walks all blocks: for who ends. No worker runs.
func (s *Shard) Resting(now uint32, fn func(*Resting)) {
	b := s.hand
	for range s.blocks {
		k := s.block(b)
		if ports, hold := s.sp.returned(b); ports != 0 {
			k.rest(ports, hold, now)
		}
		s.wake(b, now)
		r := Resting{Addr: addrOf(b), Class: classIn(b), Block: numberOf(b)}
		for age := gens - 1; age >= 0; age-- { // the younger, the later it is over
			if h := k.held[age]; h != 0 {
				r.Ports |= h
				r.Left = uint32(max(int32(k.start+uint32(gens-age)*k.turn-now), 0))
			}
		}
		if r.Ports != 0 {
			key := &s.groupOf(b).key
			r.Tenant, r.PerHost, r.Inside = flow.TenantID(key.tenant), key.flags&groupPerHost != 0, key.inside
			fn(&r)
		}
		b = k.shardNext
	}
}

// Holder is the worker that owns a block, false while it is nobody's.
func (sp *Space) Holder(id AddrID, c Class, block uint16) (worker int, ok bool) {
	if sp.state(id) == nil || c >= numClasses || block >= blocksPerAddr {
		return 0, false
	}
	o := sp.owner[int(id)*blocksPerAddr|int(block)].Load() >> (8 * c) & 0xff
	return int(o) - 1, o != 0
}

// Rest has ports rest that rested before this process began. Those that have a mapping are left to it. The block is the shard's, or nobody's; false where it is another's.
func (s *Shard) Rest(r *Resting, now uint32) bool {
	if s.sp.state(r.Addr) == nil || r.Class >= numClasses || r.Block >= blocksPerAddr {
		return false
	}
	b := blockOf(r.Addr, r.Class, r.Block<<6)
	w, ok := s.sp.Holder(r.Addr, r.Class, r.Block)
	switch {
	case !ok && !s.sp.claimBlock(b, s.worker):
		return false
	case !ok:
		key := groupKey{tenant: uint16(r.Tenant)}
		if r.PerHost {
			key.flags, key.inside = groupPerHost, r.Inside
		}
		if r.Block < lowBlocks {
			key.flags |= groupLow
		}
		s.join(b, &key, s.findGroup(b, &key))
	case w != s.worker:
		return false
	}
	rest := uint64(0)
	for m := r.Ports; m != 0; m &= m - 1 {
		if bit := uint8(bits.TrailingZeros64(m)); s.take(place{block: b, bit: bit}) {
			rest |= 1 << bit
		}
	}
	if rest != 0 {
		s.portUse(r.Addr).Held += int32(bits.OnesCount64(rest))
		s.block(b).rest(rest, r.Left, now)
	}
	s.relink(b)
	return true
}
