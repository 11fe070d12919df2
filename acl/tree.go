package acl

// The dimensions that a tree can cut. Addresses are ranks, the rest are the values themselves.
const (
	dimSrc = iota
	dimDst
	dimSPort
	dimDPort
	dimProto
	dims
	leafDim = 7 // in node.kids: a leaf
)

const (
	dimShift = 29
	kidMask  = 1<<dimShift - 1
	// maxPending bounds how many "rest" subtrees one lookup can have put off; build never exceeds it.
	maxPending = 32
)

// point is a key over ranks; 8 wide so that a masked index needs no bounds check.
type point [8]uint32

// node is a cut, or a leaf. Four to a cache line.
type node struct {
	cut  uint32 // cut: keys at or above it belong to the second child; leaf: number of entries
	kids uint32 // dimension << dimShift | position of the first of two adjacent children; leaf: of its first entry
	rest uint32 // position of the subtree of the boxes that lie across the cut, which every key visits; 0 = none
	min  uint32 // the least index<<1|allow below here, rest included
}

// entry is a box in a leaf: two to a cache line. Leaves hold copies, so that a scan is one sequential read.
type entry struct {
	srcLo, srcHi, dstLo, dstHi uint32
	sLo, sHi, dLo, dHi         uint16
	pLo, pHi                   uint8
	_                          uint16
	index                      uint32 // index<<1|allow; ascending within a leaf
}

type tree struct {
	nodes   []node // nodes[0] is the root; empty = nothing matches
	entries []entry
}

func (t *tree) find(v *point) uint32 {
	var (
		pending [maxPending]uint32
		n       uint32
		best    = uint32(none)
		at      uint32
	)
	src, dst := v[dimSrc], v[dimDst]
	sport, dport, proto := uint16(v[dimSPort]), uint16(v[dimDPort]), uint8(v[dimProto])
	for {
		nd := &t.nodes[at]
		if nd.min < best {
			if d := nd.kids >> dimShift; d != leafDim {
				if nd.rest != 0 {
					pending[n&(maxPending-1)] = nd.rest
					n++
				}
				// Without a branch: 1 when the key is at or above the cut.
				below := uint32((uint64(v[d&7]) - uint64(nd.cut)) >> 63)
				at = nd.kids&kidMask + 1 - below
				continue
			}
			first := nd.kids & kidMask
			es := t.entries[first : first+nd.cut]
			for i := range es {
				e := &es[i]
				if e.index >= best {
					break
				}
				// A range test is one unsigned comparison; the four that differ most come first, joined without branches.
				if src-e.srcLo <= e.srcHi-e.srcLo && dst-e.dstLo <= e.dstHi-e.dstLo &&
					dport-e.dLo <= e.dHi-e.dLo && sport-e.sLo <= e.sHi-e.sLo && proto-e.pLo <= e.pHi-e.pLo {
					best = e.index
					break
				}
			}
		}
		if n == 0 {
			return best
		}
		n--
		at = pending[n&(maxPending-1)]
	}
}

const nodeBytes, entryBytes = 16, 32

func (t *tree) bytes() int { return cap(t.nodes)*nodeBytes + cap(t.entries)*entryBytes }
