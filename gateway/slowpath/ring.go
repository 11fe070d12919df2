package slowpath

import (
	"sync/atomic"

	"demarc/gateway/flow"
)

// shares is over how many counters the interfaces are spread that limit what one of them may hold of a ring.
const shares = 64

// slot is what stands beside the bytes of one input.
type slot struct {
	hop    flow.Addr
	n      int32
	iface  uint16
	family uint8
}

// ring carries inputs of one kind from one worker to the slow path. Both indices only grow; each has one writer and its own cache line.
// One interface holds at most a quarter of it, so that a flood on one tenant's link leaves room for the others'.
type ring struct {
	tail  atomic.Uint64 // producer: wo, consumer: ro
	full  atomic.Uint64 // refused; producer
	_     [48]byte
	head  atomic.Uint64 // consumer: wo, producer: ro
	_     [56]byte
	share [shares]atomic.Int32 // inputs in the ring by interface; both

	mask, quarter uint64
	size          int
	slots         []slot
	mem           []byte
}

// newRing makes a ring of n slots (a power of two) of size bytes.
func newRing(n, size int) *ring {
	return &ring{mask: uint64(n - 1), quarter: uint64(n / 4), size: size, slots: make([]slot, n), mem: make([]byte, n*size)}
}

// push copies one input in; producer only.
func (r *ring) push(iface uint16, family uint8, hop *flow.Addr, data []byte) bool {
	t := r.tail.Load()
	share := &r.share[iface%shares]
	if len(data) > r.size || t-r.head.Load() > r.mask || share.Load() >= int32(r.quarter) {
		r.full.Add(1)
		return false
	}
	i := t & r.mask
	s := &r.slots[i]
	s.iface, s.family, s.n = iface, family, int32(len(data))
	if hop != nil {
		s.hop = *hop
	}
	copy(r.mem[int(i)*r.size:], data)
	share.Add(1)
	r.tail.Store(t + 1)
	return true
}

// peek is the oldest input, valid until pop; consumer only.
func (r *ring) peek() (*slot, []byte) {
	h := r.head.Load()
	if h == r.tail.Load() {
		return nil, nil
	}
	i := h & r.mask
	s := &r.slots[i]
	off := int(i) * r.size
	return s, r.mem[off : off+int(s.n) : off+r.size]
}

// pop gives the oldest input's slot back; consumer only, after peek.
func (r *ring) pop() {
	h := r.head.Load()
	r.share[r.slots[h&r.mask].iface%shares].Add(-1)
	r.head.Store(h + 1)
}

func (r *ring) empty() bool { return r.head.Load() == r.tail.Load() }
