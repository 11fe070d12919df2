package replica

import "math/bits"

// marks is a set of slots, with a second level so that an almost empty one is walked fast. It grows when it is told to.
type marks struct {
	words []uint64 // a bit a slot
	some  []uint64 // a bit a word
	n     int      // of words with a bit

	at    uint32 // take goes on here
	from  int64  // when its round began
	clean int64  // what is in the set has come since
}

func newMarks(slots int) marks {
	n := (slots + 63) / 64
	return marks{words: make([]uint64, n), some: make([]uint64, (n+63)/64)}
}

func (m *marks) grow(slots int) {
	more := newMarks(slots)
	copy(more.words, m.words)
	copy(more.some, m.some)
	more.n, more.at, more.from, more.clean = m.n, m.at, m.from, m.clean
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

// take hands slots to fn and forgets them, until fn, asked before each, says that it is enough. It goes on where it was the last time, round and round: so none waits for longer than two rounds take, however many come, and it is known
// since when at most the rest has waited.
func (m *marks) take(now int64, more func() bool, fn func(slot uint32)) {
	for m.n > 0 {
		if m.at == 0 {
			m.from = now
		}
		slot, ok := m.next(m.at)
		if !ok {
			m.at, m.clean = 0, m.from
			continue
		}
		if !more() {
			return
		}
		w := &m.words[slot/64]
		if *w &^= 1 << (slot & 63); *w == 0 {
			m.some[slot/4096] &^= 1 << (slot / 64 & 63)
			m.n--
		}
		m.at = slot + 1
		fn(slot)
	}
	m.at, m.clean = 0, now
}

// next is the first slot of the set from one on.
func (m *marks) next(from uint32) (slot uint32, ok bool) {
	w := int(from / 64)
	if w >= len(m.words) {
		return 0, false
	}
	if x := m.words[w] >> (from & 63); x != 0 {
		return from + uint32(bits.TrailingZeros64(x)), true
	}
	for w++; w < len(m.words); w = (w/64 + 1) * 64 {
		if x := m.some[w/64] >> (w & 63); x != 0 {
			w += bits.TrailingZeros64(x)
			return uint32(w*64 + bits.TrailingZeros64(m.words[w])), true
		}
	}
	return 0, false
}
