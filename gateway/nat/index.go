package nat

import (
	"math/bits"
	"unsafe"

	"demarc/gateway/undo"
)

const (
	lineEntries = 15
	lineFill    = 12 // entries per line at a full table
)

// line is one cache line of an index: 15 entries, and how many entries wanted this line, found it full and went on. An entry is
// a mapping's id + 1 in as many low bits as ids need, and a tag from the hash in the rest; 0 is empty.
type line struct {
	entry  [lineEntries]uint32
	passed uint32
}

var _ = [1]struct{}{}[unsafe.Sizeof(line{})-64]

// index finds mappings by a hash of one of their two keys. It does not know the keys: equal hands out candidates.
type index struct {
	lines  []line
	idBits uint
	log    *undo.Log
}

func numLines(capacity int) int { return (capacity + lineFill - 1) / lineFill }

const (
	pairOnes = 1<<32 | 1
	pairHigh = 1<<63 | 1<<31
)

// pair is two entries in one word: a single load, where i is a constant.
func (l *line) pair(i int) uint64 { return uint64(l.entry[i]) | uint64(l.entry[i+1])<<32 }

// zeros has the top bit of a half set that is zero; of the upper half perhaps also where only the lower one is.
func zeros(w uint64) uint64 { return (w - pairOnes) &^ w }

// like is the entries, or none of them where none has the tag, which stands above the bits of low: as in nearly all lines.
func (l *line) like(tag, low uint32) []uint32 {
	t, up := uint64(tag)<<32|uint64(tag), ^(uint64(low)<<32 | uint64(low))
	hit := zeros((l.pair(0)^t)&up) | zeros((l.pair(2)^t)&up) | zeros((l.pair(4)^t)&up) | zeros((l.pair(6)^t)&up) |
		zeros((l.pair(8)^t)&up) | zeros((l.pair(10)^t)&up) | zeros((l.pair(12)^t)&up)
	if hit&pairHigh == 0 && (l.entry[lineEntries-1]^tag)&^low != 0 {
		return nil
	}
	return l.entry[:]
}

// room is the first place without an entry, or lineEntries.
func (l *line) room() int {
	i := 0
	switch {
	case zeros(l.pair(0))&pairHigh != 0:
	case zeros(l.pair(2))&pairHigh != 0:
		i = 2
	case zeros(l.pair(4))&pairHigh != 0:
		i = 4
	case zeros(l.pair(6))&pairHigh != 0:
		i = 6
	case zeros(l.pair(8))&pairHigh != 0:
		i = 8
	case zeros(l.pair(10))&pairHigh != 0:
		i = 10
	case zeros(l.pair(12))&pairHigh != 0:
		i = 12
	case l.entry[lineEntries-1] == 0:
		return lineEntries - 1
	default:
		return lineEntries
	}
	if l.entry[i] != 0 {
		i++
	}
	return i
}

func (x *index) home(h uint64) int {
	hi, _ := bits.Mul64(h, uint64(len(x.lines)))
	return int(hi)
}

func (x *index) tagged(h uint64, id uint32) uint32 { return uint32(h)<<x.idBits | (id + 1) }

// at is where the line of h lies.
func (x *index) at(h uint64) uintptr { return uintptr(unsafe.Pointer(&x.lines[x.home(h)])) }

func (x *index) after(at int) int {
	if at++; at == len(x.lines) {
		return 0
	}
	return at
}

// insert never fails: there are more places than mappings.
func (x *index) insert(h uint64, id uint32) {
	e := x.tagged(h, id)
	for at := x.home(h); ; at = x.after(at) {
		l := &x.lines[at]
		undo.Keep(x.log, l)
		if i := l.room(); i < lineEntries {
			l.entry[i] = e
			return
		}
		l.passed++
	}
}

// erase takes the entry out, if it is there.
func (x *index) erase(h uint64, id uint32) {
	e := x.tagged(h, id)
	at := x.home(h)
	for n := range x.lines {
		l := &x.lines[at]
		for i := range l.entry {
			if l.entry[i] == e {
				undo.Keep(x.log, l)
				l.entry[i] = 0
				for p := x.home(h); n > 0; n, p = n-1, x.after(p) {
					undo.Keep(x.log, &x.lines[p])
					x.lines[p].passed--
				}
				return
			}
		}
		if l.passed == 0 {
			return
		}
		at = x.after(at)
	}
}
