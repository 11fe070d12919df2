package replica

import "math/bits"

// marks is a set of slots, with a second level so that an almost empty one is walked fast. It grows when it is told to.
type marks struct {
	words []uint64 // a bit a slot
	some  []uint64 // a bit a word
	n     int      // of words with a bit
}

func newMarks(slots int) marks {
	n := (slots + 63) / 64
	return marks{words: make([]uint64, n), some: make([]uint64, (n+63)/64)}
}

func (m *marks) grow(slots int) {
	more := newMarks(slots)
	copy(more.words, m.words)
	copy(more.some, m.some)
	more.n = m.n
	*m = more
}

func (m *marks) set(slot uint32) {
	w := &m.words[slot/64]
	if *w == 0 {
		m.some[slot/4096] |= 1 << (slot / 64 & 63)
		m.n++
	}
	*w |= 1 << (slot & 63)
}

func (m *marks) empty() bool { return m.n == 0 }

// take hands slots to fn and forgets them, until fn, asked before each, says that it is enough.
func (m *marks) take(more func() bool, fn func(slot uint32)) {
	if m.n == 0 {
		return
	}
	for i, s := range m.some {
		for ; s != 0; s &= s - 1 {
			at := i*64 + bits.TrailingZeros64(s)
			for m.words[at] != 0 {
				if !more() {
					return
				}
				bit := bits.TrailingZeros64(m.words[at])
				m.words[at] &= m.words[at] - 1
				if m.words[at] == 0 {
					m.some[i] &^= 1 << (at & 63)
					m.n--
				}
				fn(uint32(at*64 + bit))
			}
		}
	}
}
