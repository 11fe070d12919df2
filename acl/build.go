package acl

import (
	"math"
	"slices"
)

// box is a rule, or a part of one, over ranks: lo and hi are inclusive.
type box struct {
	lo, hi [dims]uint32
	index  uint32 // index<<1|allow
}

// id is all of b but its index.
func (b *box) id() (out [5]uint64) {
	for d := range b.lo {
		out[d] = uint64(b.lo[d])<<32 | uint64(b.hi[d])
	}
	return out
}

// covers says whether b holds all of o that lies within lim.
func (b *box) covers(o, lim *box) bool {
	for d := range b.lo {
		if b.lo[d] > max(o.lo[d], lim.lo[d]) || b.hi[d] < min(o.hi[d], lim.hi[d]) {
			return false
		}
	}
	return true
}

const (
	// sampleSize bounds how many boxes a node looks at to propose cuts; what it then does is counted over all of them.
	sampleSize = 512
	// coverScan bounds the quadratic search for boxes that earlier ones cover.
	coverScan = 64
	// A cut of more than fairCut boxes must take at least one in fairCut out of the largest set that it leaves, else it is not
	// made: so a hostile list cannot make compilation quadratic.
	fairCut = 32
	// leafMax is the size up to which no cut is looked for.
	leafMax = 4
)

// growth bounds the copies: leaves hold at most that many entries a box. Small lists are fast with few copies, and there may be a
// thousand of them; of long ones there are few, and copies keep hostile ones short; of very long ones copies leave the cache.
func growth(n int) int {
	switch {
	case n <= 2000:
		return 4
	case n <= 50000:
		return 16
	}
	return 8
}

// The cost model, in nanoseconds on a warm cache; only its proportions matter.
const (
	costEntry = 1.5
	costStep  = 3
	costRest  = 6 // to put off a subtree and come back to it, with the mispredicted branch
)

// costLeaf is what it costs to scan n entries.
func costLeaf(n int) float64 { return 3 + costEntry*float64(n) }

// costTree guesses what it costs to search n boxes that cut well.
func costTree(n int) float64 {
	if n <= 8 {
		return costLeaf(n)
	}
	return costLeaf(8) + costStep*math.Log2(float64(n)/8)
}

type builder struct {
	boxes   []box
	t       tree
	scratch []uint32
}

// build makes the tree of bs, which are in list order, over nsrc source and ndst destination ranks.
func build(bs []box, nsrc, ndst int) tree {
	if len(bs) == 0 {
		return tree{}
	}
	b := builder{boxes: bs}
	all := make([]uint32, len(bs))
	for i := range all {
		all[i] = uint32(i)
	}
	lim := box{hi: [dims]uint32{uint32(nsrc - 1), uint32(ndst - 1), math.MaxUint16, math.MaxUint16, math.MaxUint8}}
	b.t.nodes = make([]node, 1)
	b.node(0, all, &lim, growth(len(bs))*len(bs), 0)
	b.t.nodes = slices.Clip(slices.Clone(b.t.nodes))
	b.t.entries = slices.Clip(slices.Clone(b.t.entries))
	return b.t
}

// cut is a proposal: keys below at go one way. rest says that what lies across goes into a subtree of its own, not to both.
type cut struct {
	dim  int
	at   uint32
	rest bool
	cost float64
}

// prune drops what no key within lim can reach because an earlier box covers it. It works in place.
func (b *builder) prune(rs []uint32, lim *box) []uint32 {
	for i, r := range rs {
		if b.boxes[r].covers(lim, lim) {
			rs = rs[:i+1]
			break
		}
	}
	if len(rs) > coverScan {
		return rs
	}
	out := rs[:0]
next:
	for _, r := range rs {
		for _, e := range out {
			if b.boxes[e].covers(&b.boxes[r], lim) {
				continue next
			}
		}
		out = append(out, r)
	}
	return out
}

// node builds the subtree of rs (ascending) for keys within lim, at position at. It owns rs. budget is the most entries that it may
// lay down, at least len(rs); pending is how many subtrees a lookup has put off when it comes here.
func (b *builder) node(at uint32, rs []uint32, lim *box, budget, pending int) {
	rs = b.prune(rs, lim)
	n := len(rs)
	least := uint32(none)
	if n > 0 {
		least = b.boxes[rs[0]].index
	}
	if n > leafMax {
		for _, c := range b.propose(rs, lim, budget, pending) {
			if b.apply(at, rs, lim, budget, pending, c, least) {
				return
			}
		}
	}
	first := uint32(len(b.t.entries))
	for _, r := range rs {
		x := &b.boxes[r]
		b.t.entries = append(b.t.entries, entry{
			srcLo: x.lo[dimSrc], srcHi: x.hi[dimSrc], dstLo: x.lo[dimDst], dstHi: x.hi[dimDst],
			sLo: uint16(x.lo[dimSPort]), sHi: uint16(x.hi[dimSPort]), dLo: uint16(x.lo[dimDPort]), dHi: uint16(x.hi[dimDPort]),
			pLo: uint8(x.lo[dimProto]), pHi: uint8(x.hi[dimProto]), index: x.index,
		})
	}
	b.t.nodes[at] = node{cut: uint32(n), kids: leafDim<<dimShift | first, min: least}
}

// pace is how much one cut may multiply n boxes so that what is left of the budget lasts down to the leaves.
func pace(n, budget int) float64 {
	levels := max(1, math.Log2(float64(n)/leafMax))
	return math.Pow(float64(budget)/float64(n), 1.5/levels)
}

// propose lists cuts that look better than a leaf of all of rs, best first.
func (b *builder) propose(rs []uint32, lim *box, budget, pending int) []cut {
	n := len(rs)
	step := max(1, n/sampleSize)
	sample := b.scratch[:0]
	for i := 0; i < n; i += step {
		sample = append(sample, rs[i])
	}
	b.scratch = sample
	scale := float64(n) / float64(len(sample))
	allow := pace(n, budget) * float64(n)
	leaf := costLeaf(n)
	var (
		out    []cut
		starts = make([]uint32, 0, len(sample)) // where boxes begin, clipped to lim
		stops  = make([]uint32, 0, len(sample)) // where they have ended
		edges  = make([]uint32, 0, 2*len(sample))
	)
	for d := range dims {
		starts, stops, edges = starts[:0], stops[:0], edges[:0]
		for _, r := range sample {
			x := &b.boxes[r]
			lo := max(x.lo[d], lim.lo[d])
			starts = append(starts, lo)
			if lo > lim.lo[d] {
				edges = append(edges, lo)
			}
			if x.hi[d] < lim.hi[d] {
				stops = append(stops, x.hi[d]+1)
				edges = append(edges, x.hi[d]+1)
			}
		}
		if len(edges) == 0 {
			continue
		}
		slices.Sort(edges)
		slices.Sort(starts)
		slices.Sort(stops)
		prev := uint32(0)
		const tries = 8
		for q := 1; q < tries; q++ {
			c := edges[len(edges)*q/tries]
			if c == prev {
				continue
			}
			prev = c
			below, _ := slices.BinarySearch(starts, c) // begin below c
			gone, _ := slices.BinarySearch(stops, c+1) // have ended at or before c
			nl, nr := below, len(sample)-gone
			across := nl + nr - len(sample)
			l, r, x := float64(nl)*scale, float64(nr)*scale, float64(across)*scale
			if max(nl, nr) < len(sample) && l+r <= allow && l+r <= float64(budget) {
				out = append(out, cut{d, c, false, costStep + costTree(int(max(l, r)))})
			}
			if across > 0 && across < len(sample) && pending < maxPending {
				out = append(out, cut{d, c, true, costStep + costRest + costTree(int(max(l, r)-x)) + costTree(int(x))})
			}
		}
	}
	out = slices.DeleteFunc(out, func(c cut) bool { return c.cost >= leaf })
	slices.SortStableFunc(out, func(a, b cut) int {
		switch {
		case a.cost < b.cost:
			return -1
		case a.cost > b.cost:
			return 1
		}
		return 0
	})
	return out
}

// apply makes c at position at, and all below, unless it would not make the sets smaller or would break the budget.
func (b *builder) apply(at uint32, rs []uint32, lim *box, budget, pending int, c cut, least uint32) bool {
	nl, nr := 0, 0
	for _, r := range rs {
		if b.boxes[r].lo[c.dim] < c.at {
			nl++
		}
		if b.boxes[r].hi[c.dim] >= c.at {
			nr++
		}
	}
	across := nl + nr - len(rs)
	most := len(rs) - max(1, len(rs)/fairCut) // in the largest set that c may leave
	if c.rest {
		nl, nr = nl-across, nr-across
		if max(nl, nr, across) > most || across == 0 || pending >= maxPending {
			return false
		}
	} else {
		if max(nl, nr) > most || nl+nr > budget {
			return false
		}
		across = 0
	}
	left, right, rest := make([]uint32, 0, nl), make([]uint32, 0, nr), make([]uint32, 0, across)
	for _, r := range rs {
		l, h := b.boxes[r].lo[c.dim] < c.at, b.boxes[r].hi[c.dim] >= c.at
		if c.rest && l && h {
			rest = append(rest, r)
			continue
		}
		if l {
			left = append(left, r)
		}
		if h {
			right = append(right, r)
		}
	}
	kids := uint32(len(b.t.nodes))
	b.t.nodes = append(b.t.nodes, node{}, node{})
	nd := node{cut: c.at, kids: uint32(c.dim)<<dimShift | kids, min: least}
	if c.rest {
		nd.rest = kids + 2
		b.t.nodes = append(b.t.nodes, node{})
		pending++
	}
	b.t.nodes[at] = nd
	sum := nl + nr + across
	share := func(n int) int { return int(int64(budget) * int64(n) / int64(sum)) }
	below, above := *lim, *lim
	below.hi[c.dim], above.lo[c.dim] = c.at-1, c.at
	b.node(kids, left, &below, max(nl, share(nl)), pending)
	b.node(kids+1, right, &above, max(nr, share(nr)), pending)
	if c.rest {
		b.node(kids+2, rest, lim, max(across, share(across)), pending-1)
	}
	return true
}
