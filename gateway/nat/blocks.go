package nat

import (
	"math/bits"

	"demarc/gateway/flow"
)

func (s *Shard) hashGroup(k *groupKey) uint64 {
	x := uint64(k.inside[0]) | uint64(k.inside[1])<<8 | uint64(k.inside[2])<<16 | uint64(k.inside[3])<<24 | uint64(k.tenant)<<32 | uint64(k.addr)<<48
	return mix(x^s.seed, 0xe7037ed1a0b428db^uint64(k.flags)) & s.mask
}

// findGroup is the leader of the group, or noBlock.
func (s *Shard) findGroup(key *groupKey) blockID {
	for b := s.heads[s.hashGroup(key)] - 1; b != noBlock; {
		g := &s.sp.block(b).group
		if g.key == *key {
			return b
		}
		b = g.chain
	}
	return noBlock
}

// open claims one more block for the group, which it starts where leader is noBlock.
func (s *Shard) open(key *groupKey, leader blockID, class Class, parity int, rnd uint64) bool {
	b, ok := s.sp.claim(key.addr, s.worker, key.flags&groupLow != 0, class, parity, rnd)
	if !ok {
		return false
	}
	k := s.sp.block(b)
	*k = block{}
	for c := range k.ports {
		k.ports[c].next = [2]blockID{noBlock, noBlock}
	}
	if leader == noBlock {
		h := s.hashGroup(key)
		k.group = group{key: *key, chain: s.heads[h] - 1, resGen: s.sp.resGen.Load()}
		for c := range k.group.head {
			k.group.head[c] = [2]blockID{noBlock, noBlock}
		}
		s.heads[h] = b + 1
		leader = b
		k.groupNext, k.groupPrev = b, b
	} else {
		l := s.sp.block(leader)
		k.groupNext, k.groupPrev = leader, l.groupPrev
		s.sp.block(l.groupPrev).groupNext = b
		l.groupPrev = b
	}
	k.leader = leader
	s.sp.block(leader).group.blocks++
	if s.hand == noBlock {
		s.hand = b
		k.shardNext, k.shardPrev = b, b
	} else {
		// Before the hand: Sweep comes to it last.
		l := s.sp.block(s.hand)
		k.shardNext, k.shardPrev = s.hand, l.shardPrev
		s.sp.block(l.shardPrev).shardNext = b
		l.shardPrev = b
	}
	s.blocks++
	for c := range numClasses {
		s.relink(b, c)
	}
	return true
}

// close gives an empty block back.
func (s *Shard) close(b blockID) {
	k := s.sp.block(b)
	for c := range numClasses {
		for parity := range 2 {
			s.unlink(b, c, parity)
		}
	}
	g := &s.sp.block(k.leader).group
	g.blocks--
	if k.leader == b {
		s.moveGroup(b)
	}
	s.sp.block(k.groupPrev).groupNext = k.groupNext
	s.sp.block(k.groupNext).groupPrev = k.groupPrev
	if s.hand == b {
		if s.hand = k.shardNext; s.hand == b {
			s.hand = noBlock
		}
	}
	s.sp.block(k.shardPrev).shardNext = k.shardNext
	s.sp.block(k.shardNext).shardPrev = k.shardPrev
	s.blocks--
	s.sp.giveBack(b)
}

// moveGroup makes the next member the leader instead of b, or ends the group where b was the last.
func (s *Shard) moveGroup(b blockID) {
	k := s.sp.block(b)
	to := k.group.chain
	if k.group.blocks > 0 {
		to = k.groupNext
		s.sp.block(to).group = k.group
		for m := k.groupNext; m != b; m = s.sp.block(m).groupNext {
			s.sp.block(m).leader = to
		}
	}
	h := s.hashGroup(&k.group.key)
	if s.heads[h] == b+1 {
		s.heads[h] = to + 1
		return
	}
	for at := s.heads[h] - 1; at != noBlock; at = s.sp.block(at).group.chain {
		if g := &s.sp.block(at).group; g.chain == b {
			g.chain = to
			return
		}
	}
}

// relink makes the block a member of exactly those lists of the class in which it has a free port.
func (s *Shard) relink(b blockID, class Class) {
	k := s.sp.block(b)
	p := &k.ports[class]
	free := s.sp.usable(b, class)
	for parity := range 2 {
		switch has, in := free&parityMask(parity) != 0, p.next[parity] != noBlock; {
		case has && !in:
			s.link(b, class, parity)
		case !has && in:
			s.unlink(b, class, parity)
		}
	}
}

func (s *Shard) link(b blockID, class Class, parity int) {
	k := s.sp.block(b)
	p := &k.ports[class]
	head := &s.sp.block(k.leader).group.head[class][parity]
	if *head == noBlock {
		p.next[parity], p.prev[parity] = b, b
		*head = b
		return
	}
	h := &s.sp.block(*head).ports[class]
	p.next[parity], p.prev[parity] = *head, h.prev[parity]
	s.sp.block(h.prev[parity]).ports[class].next[parity] = b
	h.prev[parity] = b
}

func (s *Shard) unlink(b blockID, class Class, parity int) {
	k := s.sp.block(b)
	p := &k.ports[class]
	next, prev := p.next[parity], p.prev[parity]
	if next == noBlock {
		return
	}
	head := &s.sp.block(k.leader).group.head[class][parity]
	if *head == b {
		if *head = next; next == b {
			*head = noBlock
		}
	}
	s.sp.block(prev).ports[class].next[parity] = next
	s.sp.block(next).ports[class].prev[parity] = prev
	p.next[parity] = noBlock
}

// relinkGroup makes all lists of a group true after ports were reserved or are reserved no more.
func (s *Shard) relinkGroup(leader blockID, gen uint32) {
	b := leader
	for {
		for c := range numClasses {
			s.relink(b, c)
		}
		if b = s.sp.block(b).groupNext; b == leader {
			break
		}
	}
	s.sp.block(leader).group.resGen = gen
}

func (k *block) resting() (n int) {
	for c := range k.ports {
		for _, h := range k.ports[c].held {
			n += bits.OnesCount64(h)
		}
	}
	return n
}

// turn ends the generations of held ports whose time is over: what was freed in a turn may be used after gens-1 further whole turns.
func (s *Shard) turn(k *block, class Class, now uint32) (freed bool) {
	p := &k.ports[class]
	if p.held == [gens]uint64{} {
		return false
	}
	for range gens {
		if int32(now-k.start[class]) < int32(k.turn) {
			return freed
		}
		if old := p.held[gens-1]; old != 0 {
			p.busy &^= old
			freed = true
		}
		copy(p.held[1:], p.held[:gens-1])
		p.held[0] = 0
		k.start[class] += k.turn
	}
	k.start[class] = now // nothing is held now
	return freed
}

// Sweep looks at the next budget blocks, round and round: it ends holds and gives empty blocks back to the Space.
func (s *Shard) Sweep(now uint32, budget int) {
	for range min(budget, s.blocks) {
		if s.hand == noBlock {
			return
		}
		b := s.hand
		k := s.sp.block(b)
		s.hand = k.shardNext
		var busy uint64
		for c := range numClasses {
			s.turn(k, c, now)
			s.relink(b, c)
			busy |= k.ports[c].busy
		}
		if busy == 0 {
			s.close(b)
		}
	}
}

// Use is how one tenant's ports of one address stand in this shard.
type Use struct {
	Tenant flow.TenantID
	Addr   AddrID
	Blocks int
	InUse  [numClasses]int // by Class
	Held   [numClasses]int
}

// Blocks is how many blocks the shard owns.
func (s *Shard) Blocks() int { return s.blocks }

// EachBlock calls fn once for each block that the shard owns, Blocks being 1. For status: it walks all of them.
func (s *Shard) EachBlock(fn func(Use) bool) {
	b := s.hand
	for range s.blocks {
		k := s.sp.block(b)
		u := Use{Tenant: flow.TenantID(s.sp.block(k.leader).group.key.tenant), Addr: AddrID(b >> 10), Blocks: 1}
		for c := range k.ports {
			for _, h := range k.ports[c].held {
				u.Held[c] += bits.OnesCount64(h)
			}
			u.InUse[c] = bits.OnesCount64(k.ports[c].busy) - u.Held[c]
		}
		if !fn(u) {
			return
		}
		b = k.shardNext
	}
}
