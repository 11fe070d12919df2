package replica

import "math/bits"

// Blocks decides which blocks of public ports an owner may make new mappings in. While some standby may take over (guard), a block is used only after each of those has
// acknowledged that it is open; so whoever takes over knows each block in which there may be mappings that it has not heard of, and lets those rest. Some are opened ahead, so that no
// packet waits for an answer. Without a guard, all are open but those that rest, and what is in use is told all the same.
//
// A slot is a block; 64 of them are a word.
type Blocks struct {
	told  []uint64 // a standby is to know of it: in use, or may be soon, or rests
	open  []uint64 // of those, where mappings may be made although there is a guard
	rests []uint64 // of those, what was open before this node took over: no new mappings until the hold time is over
	gen   []uint32 // changes when a block is told no more

	Plant Plant
}

// Plant is faults that tests put in, to see that they are found. Nothing else sets one.
type Plant struct {
	OpenAtOnce bool // a block of ports is used before the standby knows
	StayOn     bool // blocks do not rest after a takeover
	OpenEarly  bool // blocks are open while another node serves, and until who takes over has gone through them
}

// NewBlocks has no room yet.
func NewBlocks() Blocks { return Blocks{Plant: plantedBlocks()} }

// Grow makes room for so many words.
func (b *Blocks) Grow(words int) {
	if n := words - len(b.told); n > 0 {
		b.told = append(b.told, make([]uint64, n)...)
		b.open = append(b.open, make([]uint64, n)...)
		b.rests = append(b.rests, make([]uint64, n)...)
		b.gen = append(b.gen, make([]uint32, 64*n)...)
	}
}

// Told reports whether the standby is to know of the block: what a Source says of its slot.
func (b *Blocks) Told(slot uint32) bool {
	return int(slot/64) < len(b.told) && b.told[slot/64]>>(slot&63)&1 != 0
}

// Next is the first block from slot on that a standby is to know of, or where words of 64 are through in which there is none.
func (b *Blocks) Next(slot uint32, words int) uint32 {
	w := slot / 64
	if int(w) >= len(b.told) {
		return slot
	}
	if m := b.told[w] >> (slot & 63); m != 0 {
		return slot + uint32(bits.TrailingZeros64(m))
	}
	for w++; words > 1 && int(w) < len(b.told) && b.told[w] == 0; w++ {
		words--
	}
	if int(w) < len(b.told) && b.told[w] != 0 {
		return w*64 + uint32(bits.TrailingZeros64(b.told[w]))
	}
	return w * 64
}

// Rests reports whether the block rests.
func (b *Blocks) Rests(slot uint32) bool { return b.rests[slot/64]>>(slot&63)&1 != 0 }

// Resting reports whether any block of the pool does.
func (b *Blocks) Resting(p *Pool) bool {
	for w := p.From; w < p.To; w++ {
		if b.rests[w]&p.Mask(w) != 0 {
			return true
		}
	}
	return false
}

// Open reports whether mappings may be made in the block although there is a guard.
func (b *Blocks) Open(slot uint32) bool { return b.open[slot/64]>>(slot&63)&1 != 0 }

// Gen is the generation of the block's slot.
func (b *Blocks) Gen(slot uint32) uint32 { return b.gen[slot] }

// Pool is blocks of which one is as good as another: those of one address and class, above port 1023 or below. It belongs to whoever calls Step.
type Pool struct {
	From, To uint32 // words
	First    uint64 // which blocks of the first word are in it; of all others each one is
	Except   uint64 // but these, of each word: they are nobody's to open or to tell. See Exclude

	// So many are kept open that nobody uses. Step makes it more where that was too few, or fewer than are taken in the time that a standby may say nothing, and less where it was never needed.
	// What is kept open cannot be used for the hold time after a takeover.
	Ahead, Least, Most int

	Look  func(word uint32) (free, used uint64) // nobody's and nothing in it rests; somebody's
	Over  func(word uint32) uint64              // those of which the hold time since a takeover is over
	Close func(word uint32, closed uint64)      // no new mappings in these. What was nobody's stays so behind it, or Look says that it is used
	Known func(slot uint32) bool                // all standbys that may take over have acknowledged it
	Mark  func(slot uint32)                     // Sender.Mark
	Gone  func(slot uint32)                     // Sender.Gone

	guard  bool
	closed []uint64 // by word, as Close was told last
	seen   []uint64 // by word, free and used at the last step that did anything
	still  bool     // that one left nothing to be done
	least  int      // the fewest that nobody used, of the steps since
	steps  int

	open  []uint64 // by word, what could be taken at the last step; nil = nothing is known of it
	taken int      // of that, how much was somebody's at the next one, since from
	last  int      // the same in the whole cover before
	from  int64
}

// cover is how much new use, in ns, is kept open ahead: for so long a standby may say nothing until it is agreed on that its copy is not in sync, a second behind and what the agreement takes.
const cover = 15e8

// need is how many have to be open ahead for a cover, and a quarter more. A quarter of a cover says what the whole one will be.
func (p *Pool) need(now int64) int {
	will := int(int64(p.taken) * cover / max(now-p.from, cover/4))
	return min(max(will, p.last)*5/4, p.Most)
}

// keep is of how many, at most, that nobody uses some are not shut: a few are taken and come back all the time.
func (p *Pool) keep(want int) int { return max(2*p.Least, want*5/4) }

// share of the blocks that nobody has may be kept open ahead. All that is open rests behind a takeover, so each takes as much of what the one before has left, and several in short turn leave some.
const share = 3

// want is how many of so many that nobody has are to be kept open.
func (p *Pool) want(spare int) int { return min(p.Ahead, max(spare/share, p.Least)) }

// Ahead may become larger after so many steps, and smaller after so many without a need for more.
const (
	soon    = 50
	tooMany = 3000
)

// Mask is which blocks of a word are of the pool.
func (p *Pool) Mask(w uint32) uint64 {
	if w == p.From {
		return p.First &^ p.Except
	}
	return ^p.Except
}

// Exclude changes which blocks of each word are not the pool's. What was told of those is taken back.
func (b *Blocks) Exclude(p *Pool, except uint64) {
	if p.Except == except {
		return
	}
	for w := p.From; w < p.To; w++ {
		b.untell(p, w, b.told[w]&p.Mask(w)&except)
	}
	p.Except, p.still = except, false
	for w := p.From; w < p.To; w++ {
		b.close(p, w)
	}
}

func (b *Blocks) tell(p *Pool, w uint32, m uint64) {
	b.told[w] |= m
	for ; m != 0; m &= m - 1 {
		p.Mark(w*64 + uint32(bits.TrailingZeros64(m)))
	}
}

func (b *Blocks) untell(p *Pool, w uint32, m uint64) {
	b.told[w] &^= m
	b.open[w] &^= m
	b.rests[w] &^= m
	for ; m != 0; m &= m - 1 {
		slot := w*64 + uint32(bits.TrailingZeros64(m))
		b.gen[slot]++
		p.Gone(slot)
	}
}

func (b *Blocks) close(p *Pool, w uint32) {
	closed := b.rests[w]
	if p.guard {
		if closed = ^b.open[w]; b.Plant.OpenAtOnce {
			closed = ^(b.told[w] &^ b.rests[w])
		}
	}
	p.shut(w, closed&p.Mask(w))
}

// shut has blocks of a word closed. Words of which the pool has a part are closed in that part alone.
func (p *Pool) shut(w uint32, closed uint64) {
	if p.closed == nil {
		p.closed = make([]uint64, p.To-p.From)
	}
	if at := &p.closed[w-p.From]; *at != closed {
		*at = closed
		p.Close(w, closed)
	}
}

// Step goes on with one pool: what was acknowledged is opened, more is asked for where few are left, and what nobody has used for a while is shut. guard: some standby may take
// over. It is on before that is agreed on, and off after it is agreed on that none may. now is in ns of any clock that never goes back, rnd fresh randomness.
func (b *Blocks) Step(p *Pool, guard bool, now int64, rnd uint64) {
	if p.still && guard == p.guard && p.steps <= tooMany && !p.moved() {
		p.steps++
		return
	}
	switch since := now - p.from; {
	case since >= 2*cover:
		p.last, p.taken, p.from = 0, 0, now
	case since >= cover:
		p.last, p.taken, p.from = p.taken, 0, now
	}
	if guard && !p.guard {
		b.begin(p, now, rnd)
	}
	p.guard, p.still = guard, true
	if p.open == nil {
		p.open = make([]uint64, p.To-p.From)
	}
	left, spare := 0, 0
	for w := p.From; w < p.To; w++ {
		free, used := p.Look(w)
		free, used = free&p.Mask(w), used&p.Mask(w)
		open := &p.open[w-p.From]
		p.taken += bits.OnesCount64(used & *open)
		if n := used &^ b.told[w]; n != 0 { // taken while there was no guard
			b.tell(p, w, n)
			b.open[w] |= n
		}
		if m := b.rests[w] & p.Mask(w); m != 0 {
			m &= p.Over(w)
			b.untell(p, w, m&free) // the standby may know of it that it rests, and not that it is used
			b.rests[w] &^= m       // acknowledged, what is used is as any other
		}
		for m := b.told[w] &^ b.open[w] &^ b.rests[w] & p.Mask(w); m != 0; m &= m - 1 {
			if bit := m & -m; !guard || p.Known(w*64+uint32(bits.TrailingZeros64(m))) {
				b.open[w] |= bit
			}
		}
		*open = free & b.open[w]
		if !guard {
			b.untell(p, w, b.open[w]&free)
			*open = free &^ b.rests[w]
		}
		left += bits.OnesCount64(b.open[w] & free)
		spare += bits.OnesCount64(free &^ b.rests[w])
		b.close(p, w)
	}
	if guard {
		p.adapt(now, left, p.want(spare))
		b.fewer(p, left, p.want(spare))
		b.more(p, p.want(spare), rnd)
	}
	for w := p.From; w < p.To; w++ {
		p.still = p.still && b.told[w]&^b.open[w]&p.Mask(w) == 0 // nothing is asked for, nothing rests
	}
}

// moved reports whether a block of the pool has gone to somebody or come back since it was asked last.
func (p *Pool) moved() (moved bool) {
	if p.seen == nil {
		p.seen = make([]uint64, 2*(p.To-p.From))
	}
	for w := p.From; w < p.To; w++ {
		free, used := p.Look(w)
		at := p.seen[2*(w-p.From):]
		moved = moved || at[0] != free || at[1] != used
		at[0], at[1] = free, used
	}
	return moved
}

// begin is the step before the first one under a guard: a few blocks that nobody has stay open, all others are closed, and what was claimed meanwhile is told too.
func (b *Blocks) begin(p *Pool, now int64, rnd uint64) {
	p.Ahead = max(p.Ahead, p.Least, p.need(now))
	p.least, p.steps = p.Ahead, 0
	n, spare := p.To-p.From, 0
	for w := p.From; w < p.To; w++ {
		free, _ := p.Look(w)
		spare += bits.OnesCount64(free & p.Mask(w) &^ b.rests[w])
	}
	for i, left := uint32(0), p.want(spare); i < n; i++ {
		w := p.From + (uint32(rnd%uint64(n))+i)%n
		free, _ := p.Look(w)
		for m := free & p.Mask(w) &^ b.told[w]; m != 0 && left > 0; left-- {
			bit := pick(m, rnd>>8+uint64(left)*0x9e37)
			b.tell(p, w, bit)
			b.open[w] |= bit
			m &^= bit
		}
	}
	p.guard = true
	for w := p.From; w < p.To; w++ {
		_, used := p.Look(w)
		if n := used & p.Mask(w) &^ b.told[w]; n != 0 {
			b.tell(p, w, n)
			b.open[w] |= n
		}
		b.close(p, w)
	}
}

// pick is one bit of m, which has some.
func pick(m, rnd uint64) uint64 {
	turn := int(rnd & 63)
	return bits.RotateLeft64(1<<bits.TrailingZeros64(bits.RotateLeft64(m, -turn)), turn)
}

// adapt makes Ahead larger as soon as half of what is wanted was used up before more could be opened, or as more was taken in a cover's time, and smaller slowly.
func (p *Pool) adapt(now int64, left, want int) {
	p.least = min(p.least, left)
	p.Ahead = max(p.Ahead, p.need(now))
	switch p.steps++; {
	case left < want/2 && p.steps > soon, left < want/8 && p.steps > soon/8: // what was asked for last had time to be acknowledged
		p.Ahead = min(2*p.Ahead, p.Most)
		p.least, p.steps = p.Ahead, 0
	case p.steps > tooMany:
		if p.least > want*3/4 {
			p.Ahead = max(min(p.Ahead, want)*3/4, p.Least)
		}
		p.least, p.steps = p.Ahead, 0
	}
}

// fewer shuts blocks of which there are too many: first out of use, then the word.
func (b *Blocks) fewer(p *Pool, left, want int) {
	for w := p.From; w < p.To && left > p.keep(want); w++ {
		free, _ := p.Look(w)
		m := free & b.open[w] & p.Mask(w)
		for ; m != 0 && left > p.keep(want); left-- {
			bit := m & -m
			m &^= bit
			b.open[w] &^= bit
			b.close(p, w)
			if free, _ = p.Look(w); free&bit == 0 { // somebody was faster
				b.open[w] |= bit
				b.close(p, w)
				continue
			}
			p.open[w-p.From] &^= bit
			b.untell(p, w, bit)
		}
	}
}

// more asks for blocks where few are left: some of each word, since ports shall be hard to guess, and what there is where that is not enough.
func (b *Blocks) more(p *Pool, want int, rnd uint64) {
	have, n := 0, p.To-p.From
	for w := p.From; w < p.To; w++ {
		free, _ := p.Look(w)
		have += bits.OnesCount64(free & b.told[w] &^ b.rests[w] & p.Mask(w))
	}
	for _, each := range [2]int{want/int(n) + 1, 64} {
		for i := uint32(0); i < n && have < want; i++ {
			w := p.From + (uint32(rnd%uint64(n))+i)%n
			free, _ := p.Look(w)
			m := free &^ b.told[w] & p.Mask(w)
			for got := 0; m != 0 && have < want && got < each; got++ {
				bit := pick(m, rnd>>8+uint64(have)*0x9e37)
				b.tell(p, w, bit)
				m &^= bit
				have++
			}
			if b.Plant.OpenAtOnce {
				b.close(p, w)
			}
		}
	}
}

// Settled reports whether a standby knows every block of the pool that is in use or rests: known says so of one. A copy is in sync only if so, and only under a guard.
func (b *Blocks) Settled(p *Pool, known func(slot uint32) bool) bool {
	if !p.guard {
		return false
	}
	for w := p.From; w < p.To; w++ {
		for m := (b.open[w] | b.rests[w]) & p.Mask(w); m != 0; m &= m - 1 {
			if !known(w*64 + uint32(bits.TrailingZeros64(m))) {
				return false
			}
		}
	}
	return true
}

// Takeover notes that this node has just become the owner. Blocks that may have mappings rest: what was told by the one before, and what somebody has here. They are told to the next
// standby, which must let them rest too if it takes over within the hold time.
func (b *Blocks) Takeover(p *Pool, open func(word uint32) uint64) {
	p.still, p.guard, p.open = false, false, nil
	for w := p.From; w < p.To; w++ {
		_, used := p.Look(w)
		m := (open(w) | used) & p.Mask(w)
		b.untell(p, w, b.told[w]&p.Mask(w)&^m)
		b.open[w] &^= p.Mask(w)
		b.rests[w] |= m
		if b.Plant.StayOn {
			b.rests[w] &^= p.Mask(w)
		}
		b.tell(p, w, m)
		b.close(p, w)
	}
}

// GoOn notes that this node is the owner again, and nobody else was meanwhile: what rested before rests on.
func (b *Blocks) GoOn(p *Pool, rests func(word uint32) uint64) {
	p.still = false
	for w := p.From; w < p.To; w++ {
		m := rests(w) & p.Mask(w)
		b.rests[w] |= m
		b.tell(p, w, m)
		b.close(p, w)
	}
}

// GiveUp notes that this node is the owner no more, and says of each word which blocks may have had mappings, and which of them rested.
func (b *Blocks) GiveUp(p *Pool, was func(word uint32, blocks, rests uint64)) {
	p.still, p.guard, p.open = false, false, nil
	for w := p.From; w < p.To; w++ {
		_, used := p.Look(w)
		was(w, (b.told[w]|used)&p.Mask(w), b.rests[w]&p.Mask(w))
		b.untell(p, w, b.told[w]&p.Mask(w))
		b.close(p, w)
	}
}

// Dry reports whether nobody can get a further block now, and there were more if a standby had acknowledged them.
func (b *Blocks) Dry(p *Pool) bool {
	if !p.guard || p.Most == 0 {
		return false
	}
	waits := false
	for w := p.From; w < p.To; w++ {
		free, _ := p.Look(w)
		if free&b.open[w]&p.Mask(w) != 0 {
			return false
		}
		waits = waits || free&^b.rests[w]&p.Mask(w) != 0
	}
	return waits
}
