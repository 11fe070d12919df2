package replica

// Blocks decides which blocks of public ports an owner may make new mappings in. A block is used only after a standby that may take over has
// acknowledged that it is open; so whoever takes over knows each block in which there may be mappings that it has not heard of, and lets those rest. Some
// are opened ahead, so that no packet waits for an answer.
//
// A slot is a block of one address and class, as the Source numbers them.
type Blocks struct {
	ahead int
	state []blockState
	seq   []uint64 // as which record it was last written; 0 = not yet
	guard bool
	plant plants
}

type blockState uint8

const (
	blockShut  blockState = iota
	blockAsked            // the standby is being told
	blockOpen             // in use, or may be at once
	blockRests            // what was open before this node took over: no new mappings until all of it is free
)

// NewBlocks makes the blocks of slots 0 to n-1, all of them shut. Of each pool so many are kept open that nobody uses.
func NewBlocks(n, ahead int) *Blocks {
	return &Blocks{ahead: ahead, state: make([]blockState, n), seq: make([]uint64, n)}
}

// Told reports whether the standby is to know that the block is open: what a Source says of its slot.
func (b *Blocks) Told(slot uint32) bool { return b.state[slot] != blockShut }

// May reports whether new mappings may be made in the block.
func (b *Blocks) May(slot uint32) bool {
	return b.state[slot] == blockOpen || b.plant.openAtOnce && b.state[slot] == blockAsked
}

// Wrote notes as which record the block was written. What is written again in a further copy is known already.
func (b *Blocks) Wrote(slot uint32, seq uint64) {
	if b.seq[slot] == 0 {
		b.seq[slot] = seq
	}
}

// Guard says whether some standby may take over: on before its copy is proposed to be in sync, off after it is agreed on that it is not.
func (b *Blocks) Guard(on bool) { b.guard = on }

// Settled reports whether the standby, which has acknowledged all before acked, knows every block that is in use or rests. A copy is in sync only if so.
func (b *Blocks) Settled(acked uint64) bool {
	for slot, st := range b.state {
		if (st == blockOpen || st == blockRests) && (b.seq[slot] == 0 || b.seq[slot] >= acked) {
			return false
		}
	}
	return true
}

// Anew notes that the stream has begun anew, or another standby has it: what was acknowledged before counts no more. Blocks that are in use stay so.
func (b *Blocks) Anew() { clear(b.seq) }

// Takeover notes that this node has just become the owner. Blocks that were open are known to rest, here and, by Told, at the next standby: if that takes over
// within the hold time it must let them rest too.
func (b *Blocks) Takeover(open func(slot uint32) bool) {
	clear(b.seq)
	for slot := range b.state {
		b.state[slot] = blockShut
		if open(uint32(slot)) {
			b.state[slot] = blockRests
		}
	}
}

// Pool is blocks of which one is as good as another: those of one address and class.
type Pool struct {
	From, To uint32
	Free     func(slot uint32) bool // nobody's, nothing in it rests
	Shut     func(slot uint32) bool // takes a free block out of use again; false where somebody was faster
	Mark     func(slot uint32)      // Sender.Mark
	Gone     func(slot uint32)      // Sender.Gone
}

// Step goes on with one pool: what was acknowledged (all before acked) is opened, more is asked for where few are left, and what nobody has used for
// a while is shut. rnd is fresh randomness. It reports whether what may be used has changed.
func (b *Blocks) Step(p *Pool, acked, rnd uint64) (changed bool) {
	free := 0
	for slot := p.From; slot < p.To; slot++ {
		switch b.state[slot] {
		case blockRests:
			if p.Free(slot) {
				b.state[slot], b.seq[slot], changed = blockShut, 0, true
				p.Gone(slot)
			}
		case blockAsked:
			if !b.guard || b.seq[slot] != 0 && b.seq[slot] < acked {
				b.state[slot], changed = blockOpen, true
			}
			free++
		case blockOpen:
			if !p.Free(slot) {
				continue
			}
			if free++; free > 2*b.ahead && p.Shut(slot) { // first out of use, then the word
				b.state[slot], b.seq[slot], changed = blockShut, 0, true
				p.Gone(slot)
				free--
			}
		}
	}
	n := p.To - p.From
	for i := uint32(0); i < n && free < b.ahead; i++ {
		slot := p.From + (uint32(rnd%uint64(n))+i)%n
		if b.state[slot] != blockShut || !p.Free(slot) {
			continue
		}
		b.state[slot], b.seq[slot] = blockAsked, 0
		p.Mark(slot)
		if !b.guard {
			b.state[slot], changed = blockOpen, true
		}
		free++
	}
	return changed
}
