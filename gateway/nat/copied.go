package nat

import (
	"demarc/gateway/flow"
	"demarc/gateway/undo"
	"demarc/gateway/verdict"
)

// Copied is a mapping that another node has made.
type Copied struct {
	Tenant  flow.TenantID
	Class   Class
	PerHost bool // its block is of one inside host
	Aside   bool // no new session of the inside port uses it
	Inside  [4]byte
	Port    uint16
	Remote  [4]byte // far address that it was made for; zero: any
	Addr    AddrID
	Public  uint16
	Hold    uint32 // ticks
}

// LinesAt is where the lines of the indexes lie that Enter is going to want, for package prefetch.
func (s *Shard) LinesAt(m *Copied) (inside, outside uintptr) {
	return s.inside.at(s.hashInside(m.Tenant, m.Class, m.Inside, m.Port, m.Remote)), s.outside.at(s.hashOutside(m.Addr, m.Class, m.Public))
}

// Enter is that mapping in this shard: the one that there is, or a new one without sessions, which the caller must Ref or Drop. The block of its port may be of another worker, which then
// lends it: the node that made it may have other workers. A port that rests in an own block is taken all the same. SessionCollision says that it
// has another mapping, or rests with another worker.
func (s *Shard) Enter(m *Copied) (id uint32, r verdict.Reason) {
	if s.sp.state(m.Addr) == nil || m.Class >= numClasses || m.Public == 0 {
		return noMapping, verdict.NATNoPool
	}
	if id, ok := s.Lookup(m.Addr, m.Class, m.Public); ok {
		if have := &s.maps[id]; have.tenant == m.Tenant && have.inside == m.Inside && have.port == m.Port && have.remote == m.Remote {
			return id, verdict.Pass
		}
		return noMapping, verdict.SessionCollision
	}
	if s.free == noMapping && int(s.fresh) == len(s.maps) {
		return noMapping, verdict.NATMappingTableFull
	}
	p, ok := s.occupy(m)
	if !ok {
		return noMapping, verdict.SessionCollision
	}
	r0 := Request{Tenant: m.Tenant, Class: m.Class, Inside: m.Inside, Port: m.Port, Remote: m.Remote, Pool: []AddrID{m.Addr}, Hold: m.Hold}
	flags, h := mapLive, uint64(0)
	if m.Aside {
		flags |= mapAside
	} else {
		h = s.hashInside(m.Tenant, m.Class, m.Inside, m.Port, m.Remote)
		if old, _ := s.findInside(h, m.Tenant, m.Class, m.Inside, m.Port, m.Remote); old != noMapping {
			s.inside.erase(h, old)
			undo.Keep(s.log, &s.maps[old])
			s.maps[old].flags |= mapAside
		}
	}
	return s.fill(&r0, p, h, flags, m.Remote, true), verdict.Pass
}

// occupy takes the port of m, from its block if somebody has that, else from the block opened for it.
func (s *Shard) occupy(m *Copied) (place, bool) {
	b := blockOf(m.Addr, m.Class, m.Public)
	for range searches {
		o := s.sp.owner[int(m.Addr)*blocksPerAddr|int(numberOf(b))].Load() >> (8 * m.Class) & 0xff
		if o == 0 {
			if !s.sp.claimBlock(b, s.worker) {
				continue
			}
			key := groupKey{tenant: uint16(m.Tenant)}
			if m.PerHost {
				key.flags, key.inside = groupPerHost, m.Inside
			}
			if numberOf(b) < lowBlocks {
				key.flags |= groupLow
			}
			s.join(b, &key, s.findGroup(b, &key))
			o = uint32(s.worker + 1)
		}
		p := place{block: b, bit: uint8(m.Public & 63), lent: o != uint32(s.worker+1)}
		if s.take(p) || s.wakes(p) && s.take(p) {
			return p, true
		}
		if s.sp.block(b).free.Load() != 0 || p.lent {
			return place{}, false // the port is somebody's, or rests
		}
	}
	return place{}, false
}

// wakes ends the rest of a port of an own block: who owns the address now has given it to somebody, so a rest from when this node did is void. In the blocks of others
// their Sweep does, see Foreign.
func (s *Shard) wakes(p place) bool {
	if p.lent {
		return false
	}
	k, bit, rested := s.block(p.block), uint64(1)<<p.bit, false
	for g := range k.held {
		rested = rested || k.held[g]&bit != 0
		k.held[g] &^= bit
	}
	st := s.sp.addrs[addrOf(p.block)].Load()
	if back := &st.lending.back[classIn(p.block)][numberOf(p.block)]; s.sp.lends(p.block) && back.And(^bit)&bit != 0 {
		rested = true
	}
	if rested {
		s.portUse(addrOf(p.block)).Held--
		s.put(p.block, bit)
	}
	return rested
}

// Foreign says whether another node gives the ports of an address to hosts. What rests here is void then, and Sweep ends it. Control only.
func (sp *Space) Foreign(id AddrID, on bool) {
	if st := sp.state(id); st != nil {
		st.foreign.Store(on)
	}
}

// ForeignAny reports whether another node gives the ports of one of those addresses to hosts, as far as Foreign was told. Any goroutine.
func (sp *Space) ForeignAny(pool []AddrID) bool {
	for _, id := range pool {
		if st := sp.state(id); st != nil && st.foreign.Load() {
			return true
		}
	}
	return false
}

// claimBlock takes one block, as claim does any.
func (sp *Space) claimBlock(b blockID, worker int) bool {
	st, c, n := sp.addrs[addrOf(b)].Load(), classIn(b), numberOf(b)
	w, bit := &st.free[c][n/64], uint64(1)<<(n&63)
	st.moves[c].Add(1)
	if w.And(^bit)&bit == 0 {
		st.moves[c].Add(^uint64(0))
		return false
	}
	if n >= lowBlocks {
		st.left[c].Add(-1)
	}
	sp.owner[int(addrOf(b))*blocksPerAddr|int(n)].Or(uint32(worker+1) << (8 * c))
	return true
}

// Leave counts one session of a mapping less, as Unref does, but its port does not rest: who has made the mapping says when it is somebody's again.
func (s *Shard) Leave(id uint32) {
	if !s.isLive(id) || s.maps[id].refs == 0 {
		return
	}
	if m := &s.maps[id]; m.refs == 1 {
		m.hold = 0
	}
	s.Unref(id, 0)
}

// Describe is what another node must know of a mapping.
func (s *Shard) Describe(id uint32) Copied {
	m := &s.maps[id]
	return Copied{Tenant: m.tenant, Class: m.class, Aside: m.flags&mapAside != 0, Inside: m.inside, Port: m.port, Remote: m.remote, Addr: m.addr, Public: m.public, Hold: uint32(m.hold) << holdShift}
}
