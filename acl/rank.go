package acl

import (
	"encoding/binary"
	"math/bits"
	"slices"
)

// ranks4 numbers the stretches into which the rules' ends cut the IPv4 addresses: all addresses of one stretch
// are alike to every rule, so the tree compares small numbers that are spread evenly however the prefixes lie.
type ranks4 struct {
	starts []uint32 // ascending; starts[0] = 0. An address has the index of the last start that is not above it
	top    []uint32 // by the leading bits: index of the last start at or below the first address with them; one entry more at the end
	shift  uint8
}

func newRanks4(ends []addr) ranks4 {
	r := ranks4{starts: []uint32{0}}
	for _, a := range ends {
		if v := uint32(a.lo); v != r.starts[len(r.starts)-1] {
			r.starts = append(r.starts, v)
		}
	}
	b := min(16, bits.Len(uint(len(r.starts)))+1)
	r.shift = uint8(32 - b)
	r.top = make([]uint32, 1<<b+1)
	j := 0
	for i := range 1 << b {
		for j+1 < len(r.starts) && r.starts[j+1] <= uint32(i)<<r.shift {
			j++
		}
		r.top[i] = uint32(j)
	}
	r.top[1<<b] = uint32(len(r.starts) - 1)
	return r
}

func (r *ranks4) find(x uint32) uint32 {
	t := x >> r.shift
	base := uint64(r.top[t])
	// The index sought is in [top[t], top[t+1]]: the start at top[t+1] may lie below x.
	n := uint64(r.top[t+1]) - base + 1
	for n > 1 {
		half := n >> 1
		// No branch: which way it goes is a coin toss that the predictor loses.
		above := (uint64(x) - uint64(r.starts[base+half])) >> 63
		base += half & (above - 1)
		n -= half
	}
	return uint32(base)
}

func (r *ranks4) bytes() int { return 4 * (cap(r.starts) + cap(r.top)) }

// ranks6 does the same for IPv6: first among the distinct upper halves, then among the lower halves that stand under one.
type ranks6 struct {
	his   []uint64 // distinct, ascending; his[0] = 0
	first []uint32 // by position in his: where its lower halves begin in los; one entry more at the end
	los   []uint64 // ascending within one upper half. The rank is a position in los, from 0
}

func newRanks6(ends []addr) ranks6 {
	var r ranks6
	add := func(a addr) {
		if n := len(r.his); n == 0 || r.his[n-1] != a.hi {
			r.his = append(r.his, a.hi)
			r.first = append(r.first, uint32(len(r.los)))
		} else if r.los[len(r.los)-1] == a.lo {
			return
		}
		r.los = append(r.los, a.lo)
	}
	add(addr{})
	for _, a := range ends {
		add(a)
	}
	r.first = append(r.first, uint32(len(r.los)))
	return r
}

// last is the position of the last element of s that is not above x; s[0] must not be.
func last(s []uint64, x uint64) uint64 {
	base, n := uint64(0), uint64(len(s))
	for n > 1 {
		half := n >> 1
		_, above := bits.Sub64(x, s[base+half], 0)
		base += half & (above - 1)
		n -= half
	}
	return base
}

func (r *ranks6) find(a addr) uint32 {
	h := last(r.his, a.hi)
	lo, hi := r.first[h], r.first[h+1]
	switch {
	case r.his[h] != a.hi:
		return hi - 1 // beyond all that begins under a smaller upper half
	case a.lo < r.los[lo]:
		return lo - 1 // his[0] has 0 as its first lower half, so lo > 0 here
	}
	return lo + uint32(last(r.los[lo:hi], a.lo))
}

func (r *ranks6) bytes() int { return 8*(cap(r.his)+cap(r.los)) + 4*cap(r.first) }

// sortEnds sorts and drops what is there twice.
func sortEnds(ends []addr) []addr {
	slices.SortFunc(ends, addr.compare)
	return slices.Compact(ends)
}

func be64(b []byte) uint64 { return binary.BigEndian.Uint64(b) }
