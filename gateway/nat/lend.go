package nat

import (
	"math/bits"
	"sync/atomic"
)

// A port of a block is whose who cleared its bit in block.free; this and putting the bit back are all that workers do to another's block. DESIGN.md has
// the order of the stores.

const (
	// lendsShift is where in Space.owner a bit for each class says that the block has or had lent ports since it was claimed. A block without is steered
	// to by one load.
	lendsShift = 24

	// searches is how often an address is searched for a port while blocks and ports move.
	searches = 16
)

func (l *lending) byte(c Class, port uint16) (w *atomic.Uint32, shift uint) {
	return &l.to[c][port/4], 8 * uint(port%4)
}

// lends reports whether a block has or had lent ports since it was claimed.
func (sp *Space) lends(b blockID) bool {
	return sp.owner[int(addrOf(b))*blocksPerAddr|int(numberOf(b))].Load()>>(lendsShift+classIn(b))&1 != 0
}

// borrower is the worker, + 1, that has the port of another's block, or 0.
func (sp *Space) borrower(id AddrID, c Class, port uint16) uint32 {
	w, shift := sp.addrs[id].Load().lending.byte(c, port)
	return w.Load() >> shift & 0xff
}

// moved changes whenever ports have come where there were none, or were hidden, or are about to; its lower half is not 0 while they are.
func (sp *Space) moved(of blockID) uint64 {
	if st := sp.state(addrOf(of)); st != nil {
		return st.moves[classIn(of)].Load()
	}
	return 0
}

// offer makes free ports known to those who search.
func (st *addrState) offer(c Class, n blockNo, ports uint64) {
	for parity := range 2 {
		if w, bit := &st.some[c][parity][n/64], uint64(1)<<(n&63); ports&parityMask(parity) != 0 && w.Load()&bit == 0 {
			w.Or(bit)
			st.moves[c].Add(1 << 32)
		}
	}
}

// dry notes that a block has no more port of that parity to take, and is false where it has one after all. It counts as moving: until the second look
// such a port is hidden from who searches.
func (st *addrState) dry(c Class, n blockNo, parity int) bool {
	w, bit := &st.some[c][parity][n/64], uint64(1)<<(n&63)
	st.moves[c].Add(1)
	w.And(^bit)
	if st.usable(c, n)&parityMask(parity) == 0 {
		st.moves[c].Add(^uint64(0))
		return true // who frees one after this look sees the bit cleared
	}
	w.Or(bit)
	st.moves[c].Add(1<<32 - 1)
	return false
}

// usable is the ports of a block that this shard may take, and that are not reserved.
func (s *Shard) usable(b blockID) uint64 {
	m := s.sp.usable(b)
	if s.log != nil {
		st, c, n := s.sp.addrs[addrOf(b)].Load(), classIn(b), numberOf(b)
		if !st.isClosed(c, n) {
			m |= s.aside[b] &^ st.reserved[c][n].Load()
		}
	}
	return m
}

// take takes a port, unless somebody else was faster.
func (s *Shard) take(p place) bool {
	b, bit := p.block, uint64(1)<<p.bit
	if s.log != nil && s.aside[b]&bit != 0 {
		s.aside[b] &^= bit
		return true
	}
	st, c, n := s.sp.addrs[addrOf(b)].Load(), classIn(b), numberOf(b)
	was := st.blocks[c][n].free.And(^bit)
	if was&bit == 0 {
		return false
	}
	if parity := int(p.bit & 1); s.log != nil {
		s.log.Then(func() { s.sp.put(b, bit) }) // some stays as it is
	} else if was&^bit&parityMask(parity) == 0 {
		st.dry(c, n, parity)
	}
	if !p.lent {
		return true
	}
	w, shift := st.lending.byte(c, n<<6|uint16(p.bit))
	w.Or(uint32(s.worker+1) << shift)
	if s.log != nil {
		s.log.Then(func() { w.And(^(0xff << shift)) })
	}
	if !s.sp.lends(b) {
		s.sp.owner[int(addrOf(b))*blocksPerAddr|int(n)].Or(1 << (lendsShift + c)) // not undone: others may have come to rely on it
	}
	return true
}

// put frees ports.
func (sp *Space) put(b blockID, ports uint64) {
	st, c, n := sp.addrs[addrOf(b)].Load(), classIn(b), numberOf(b)
	st.blocks[c][n].free.Or(ports)
	st.offer(c, n, ports)
}

// put frees ports of a block that the shard owns.
func (s *Shard) put(b blockID, ports uint64) {
	if s.log != nil {
		s.aside[b] |= ports
		return
	}
	s.sp.put(b, ports)
}

// lend takes a port of any block of the address and class that somebody owns: another worker, or this one for somebody else, or for who did not see it
// because it was lent when it last looked.
func (s *Shard) lend(of blockID, low bool, parity int, rnd uint64) (place, bool) {
	st, c := s.sp.state(addrOf(of)), classIn(of)
	if st == nil {
		return place{}, false
	}
	some := &st.some[c][parity]
	first, turn := int(rnd>>32%uint64(len(some))), int(rnd>>40&63)
	for i := range some {
		w := (first + i) % len(some)
		m := some[w].Load()
		switch {
		case w == 0 && low:
			m &= lowBlockMask
		case w == 0:
			m &^= lowBlockMask
		case low:
			continue
		}
		for m != 0 {
			at := uint(bits.TrailingZeros64(bits.RotateLeft64(m, -turn))+turn) & 63
			n := blockNo(w<<6 | int(at))
			b := beside(of, n)
			free := s.usable(b) & parityMask(parity)
			if free == 0 {
				if s.log != nil || st.dry(c, n, parity) {
					m &^= 1 << at
				}
				continue
			}
			p := place{block: b, bit: anyOf(free, rnd)}
			p.lent = s.sp.owner[int(addrOf(b))*blocksPerAddr|int(n)].Load()>>(8*c)&0xff != uint32(s.worker+1)
			if s.take(p) {
				return p, true
			}
		}
	}
	return place{}, false
}

// unlend frees a lent port that need not rest.
func (s *Shard) unlend(b blockID, bit uint64) {
	if s.log == nil {
		s.disown(b, bit)
		s.sp.put(b, bit)
	}
}

// bringBack has the owner of the block let a lent port rest.
func (s *Shard) bringBack(b blockID, bit uint64, hold uint32) {
	if s.log != nil {
		return
	}
	s.disown(b, bit)
	st, c, n := s.sp.addrs[addrOf(b)].Load(), classIn(b), numberOf(b)
	for r := &st.lending.rest[c][n]; ; {
		if old := r.Load(); old >= hold || r.CompareAndSwap(old, hold) {
			break
		}
	}
	st.lending.back[c][n].Or(bit)
}

// disown has packets to a port steered to the owner of its block again.
func (s *Shard) disown(b blockID, bit uint64) {
	w, shift := s.sp.addrs[addrOf(b)].Load().lending.byte(classIn(b), numberOf(b)<<6|uint16(bits.TrailingZeros64(bit)))
	w.And(^(0xff << shift))
}

// returned is the ports of an own block that have come back to rest, and for how long.
func (sp *Space) returned(b blockID) (ports uint64, hold uint32) {
	if !sp.lends(b) {
		return 0, 0
	}
	c, n, l := classIn(b), numberOf(b), sp.addrs[addrOf(b)].Load().lending
	if l.back[c][n].Load() == 0 {
		return 0, 0
	}
	return l.back[c][n].Swap(0), l.rest[c][n].Load()
}
