package nat

import (
	"math/bits"

	"demarc/gateway/undo"
)

func (s *Shard) hashGroup(of blockID, k *groupKey) uint64 {
	x := uint64(k.inside[0]) | uint64(k.inside[1])<<8 | uint64(k.inside[2])<<16 | uint64(k.inside[3])<<24 | uint64(k.tenant)<<32
	return mix(x^s.seed, 0xe7037ed1a0b428db^uint64(k.flags)^uint64(of>>classBits)<<8) & s.mask
}

// findGroup is the leader of the group among the blocks of address and class of the block of, or noBlock.
func (s *Shard) findGroup(of blockID, key *groupKey) blockID {
	for b := s.heads[s.hashGroup(of, key)] - 1; b != noBlock; {
		g := &s.block(b).group
		if b>>classBits == of>>classBits && g.key == *key {
			return b
		}
		b = g.chain
	}
	return noBlock
}

// open claims one more block for the group, which it starts where leader is noBlock.
func (s *Shard) open(of blockID, key *groupKey, leader blockID, parity int, rnd uint64) bool {
	b, ok := s.sp.claim(addrOf(of), s.worker, key.flags&groupLow != 0, classIn(of), parity, rnd)
	if ok {
		s.join(b, key, leader)
	}
	return ok
}

// join makes a claimed block one of the group, which it starts where leader is noBlock.
func (s *Shard) join(b blockID, key *groupKey, leader blockID) {
	k, n := s.block(b), numberOf(b)
	*k = owned{next: [2]blockNo{noNumber, noNumber}}
	if s.log == nil {
		s.sp.enter(b)
	} else {
		s.log.Then(func() { s.sp.giveBack(b, 0) })
		s.aside[b] = ^uint64(0)
	}
	if leader == noBlock {
		h := s.hashGroup(b, key)
		k.group = group{key: *key, chain: s.heads[h] - 1, resGen: s.sp.resGen.Load(), head: [2]blockNo{noNumber, noNumber}}
		undo.Keep(s.log, &s.heads[h])
		s.heads[h] = b + 1
		leader = b
		k.groupNext, k.groupPrev = n, n
	} else {
		l := s.block(leader)
		k.groupNext, k.groupPrev = numberOf(leader), l.groupPrev
		s.block(beside(b, l.groupPrev)).groupNext = n
		l.groupPrev = n
	}
	k.leader = numberOf(leader)
	s.block(leader).group.blocks++
	if s.hand == noBlock {
		s.hand = b
		k.shardNext, k.shardPrev = b, b
	} else {
		// Before the hand: Sweep comes to it last.
		l := s.block(s.hand)
		k.shardNext, k.shardPrev = s.hand, l.shardPrev
		s.block(l.shardPrev).shardNext = b
		l.shardPrev = b
	}
	s.blocks++
	s.relink(b)
}

// close gives an empty block back, which has been shut.
func (s *Shard) close(b blockID) {
	k := s.block(b)
	for parity := range 2 {
		s.unlink(b, parity)
	}
	s.groupOf(b).blocks--
	if k.leader == numberOf(b) {
		s.moveGroup(b)
	}
	s.block(beside(b, k.groupPrev)).groupNext = k.groupNext
	s.block(beside(b, k.groupNext)).groupPrev = k.groupPrev
	if s.hand == b {
		if s.hand = k.shardNext; s.hand == b {
			s.hand = noBlock
		}
	}
	s.block(k.shardPrev).shardNext = k.shardNext
	s.block(k.shardNext).shardPrev = k.shardPrev
	s.blocks--
	s.sp.giveBack(b, 1)
}

// groupOf is the group that the block belongs to.
func (s *Shard) groupOf(b blockID) *group {
	return &s.block(beside(b, s.block(b).leader)).group
}

// moveGroup makes the next member the leader instead of b, or ends the group where b was the last.
func (s *Shard) moveGroup(b blockID) {
	k := s.block(b)
	to := k.group.chain
	if k.group.blocks > 0 {
		to = beside(b, k.groupNext)
		s.block(to).group = k.group
		for m := to; m != b; m = beside(b, s.block(m).groupNext) {
			s.block(m).leader = numberOf(to)
		}
	}
	h := s.hashGroup(b, &k.group.key)
	if s.heads[h] == b+1 {
		undo.Keep(s.log, &s.heads[h])
		s.heads[h] = to + 1
		return
	}
	for at := s.heads[h] - 1; at != noBlock; at = s.block(at).group.chain {
		if g := &s.block(at).group; g.chain == b {
			g.chain = to
			return
		}
	}
}

// relink makes the block a member of exactly those lists in which it has a free port.
func (s *Shard) relink(b blockID) {
	k := s.block(b)
	free := s.usable(b)
	for parity := range 2 {
		switch has, in := free&parityMask(parity) != 0, k.next[parity] != noNumber; {
		case has && !in:
			s.link(b, parity)
		case !has && in:
			s.unlink(b, parity)
		}
	}
}

func (s *Shard) link(b blockID, parity int) {
	k, n := s.block(b), numberOf(b)
	head := &s.groupOf(b).head[parity]
	if *head == noNumber {
		k.next[parity], k.prev[parity] = n, n
		*head = n
		return
	}
	h := s.block(beside(b, *head))
	k.next[parity], k.prev[parity] = *head, h.prev[parity]
	s.block(beside(b, h.prev[parity])).next[parity] = n
	h.prev[parity] = n
}

func (s *Shard) unlink(b blockID, parity int) {
	k := s.block(b)
	next, prev := k.next[parity], k.prev[parity]
	if next == noNumber {
		return
	}
	head := &s.groupOf(b).head[parity]
	if *head == numberOf(b) {
		if *head = next; next == numberOf(b) {
			*head = noNumber
		}
	}
	s.block(beside(b, prev)).next[parity] = next
	s.block(beside(b, next)).prev[parity] = prev
	k.next[parity] = noNumber
}

// relinkGroup makes all lists of a group true after ports were reserved or are reserved no more.
func (s *Shard) relinkGroup(leader blockID, gen uint32) {
	b := leader
	for {
		s.relink(b)
		if b = beside(b, s.block(b).groupNext); b == leader {
			break
		}
	}
	s.block(leader).group.resGen = gen
}

func (k *owned) resting() (n int) {
	for _, h := range k.held {
		n += bits.OnesCount64(h)
	}
	return n
}

// turnOver ends the generations of held ports whose time is over, and says which ports those were: what was freed in a turn may be used
// after gens-1 further whole turns.
func (k *owned) turnOver(now uint32) (freed uint64) {
	if k.held == [gens]uint64{} {
		return 0
	}
	for range gens {
		if int32(now-k.start) < int32(k.turn) {
			return freed
		}
		freed |= k.held[gens-1]
		copy(k.held[1:], k.held[:gens-1])
		k.held[0] = 0
		k.start += k.turn
	}
	k.start = now // nothing is held now
	return freed
}

// rest lets freed ports of the block rest for hold ticks.
func (k *owned) rest(ports uint64, hold, now uint32) {
	if k.resting() == 0 {
		k.turn, k.start = 0, now
	}
	k.turn = max(k.turn, (hold+gens-2)/(gens-1))
	k.held[0] |= ports
}

// wake ends the holds of a block that are over, and reports whether there were any.
func (s *Shard) wake(b blockID, now uint32) bool {
	freed := s.block(b).turnOver(now)
	if freed != 0 {
		s.portUse(addrOf(b)).Held -= int32(bits.OnesCount64(freed))
		s.put(b, freed)
	}
	return freed != 0
}

// wakeAll ends all holds of a block.
func (s *Shard) wakeAll(b blockID) {
	k, freed := s.block(b), uint64(0)
	for g := range k.held {
		freed |= k.held[g]
		k.held[g] = 0
	}
	if freed != 0 {
		s.portUse(addrOf(b)).Held -= int32(bits.OnesCount64(freed))
		s.put(b, freed)
	}
}

// Sweep looks at the next budget blocks, round and round: it ends holds and gives empty blocks back to the Space.
func (s *Shard) Sweep(now uint32, budget int) {
	for range min(budget, s.blocks) {
		if s.hand == noBlock {
			return
		}
		b := s.hand
		k := s.block(b)
		s.hand = k.shardNext
		s.wake(b, now)
		if ports, hold := s.sp.returned(b); ports != 0 {
			k.rest(ports, hold, now)
		}
		if s.sp.addrs[addrOf(b)].Load().foreign.Load() {
			s.wakeAll(b)
		}
		s.relink(b)
		if s.sp.shut(b) {
			s.close(b)
		}
	}
}

// Blocks is how many blocks the shard owns.
func (s *Shard) Blocks() int { return s.blocks }

// Use is how many ports of a public address, of all classes, a shard's mappings have, and how many rest after theirs.
type Use struct{ InUse, Held int32 }

// Use adds the shard's use of each address to sum, by AddrID. Only all shards' sum says something: a port that was lent begins its rest with one and ends
// it with another. It costs a step an address, however many blocks and mappings there are: it is
// asked between two bursts.
func (s *Shard) Use(sum []Use) {
	for i := range sum[:min(len(sum), len(s.use))] {
		sum[i].InUse += s.use[i].InUse
		sum[i].Held += s.use[i].Held
	}
}

// portUse is the count of an address, about to be changed.
func (s *Shard) portUse(a AddrID) *Use {
	u := &s.use[a]
	undo.Keep(s.log, u)
	return u
}
