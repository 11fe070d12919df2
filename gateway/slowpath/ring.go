package slowpath

import (
	"sync/atomic"

	"demarc/gateway/flow"
)

// shares is over how many counters tenants and interfaces are spread that limit what one of them may hold of a ring.
const shares = 64

// slot is what stands beside the bytes of one input.
type slot struct {
	hop    flow.Addr
	n      int32
	iface  uint16
	by     flow.TenantID
	family uint8
	group  uint8
}

// ring carries inputs of one kind from one worker to the slow path. Both indices only grow; each has one writer and its own cache line.
// A tenant (whose packets want something resolved) or an interface (where ARP and ND come in) may hold half as many places as are free, so
// that a flood of one leaves room for the others, and one of many still for one more.
type ring struct {
	tail  atomic.Uint64 // producer: wo, consumer: ro
	full  atomic.Uint64 // refused; producer
	_     [48]byte
	head  atomic.Uint64 // consumer: wo, producer: ro
	_     [56]byte
	share [shares]atomic.Int32 // inputs in the ring by tenant and interface; both

	mask  uint64
	size  int
	slots []slot
	mem   []byte
}

// newRing makes a ring of n slots (a power of two) of size bytes.
func newRing(n, size int) *ring {
	return &ring{mask: uint64(n - 1), size: size, slots: make([]slot, n), mem: make([]byte, n*size)}
}

// push copies one input in; producer only.
func (r *ring) push(iface uint16, by flow.TenantID, group, family uint8, hop *flow.Addr, data []byte) bool {
	t := r.tail.Load()
	share := r.shareOf(iface, by)
	if free := r.mask + 1 - (t - r.head.Load()); len(data) > r.size || free == 0 || share.Load() > int32(free/2) {
		r.full.Add(1)
		return false
	}
	i := t & r.mask
	s := &r.slots[i]
	s.iface, s.by, s.group, s.family, s.n = iface, by, group, family, int32(len(data))
	if hop != nil {
		s.hop = *hop
	}
	copy(r.mem[int(i)*r.size:], data)
	share.Add(1)
	r.tail.Store(t + 1)
	return true
}

// shareOf is the count of whom an input is for.
func (r *ring) shareOf(iface uint16, by flow.TenantID) *atomic.Int32 {
	return &r.share[(uint32(iface)*31+uint32(by))%shares]
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
	s := &r.slots[h&r.mask]
	r.shareOf(s.iface, s.by).Add(-1)
	r.head.Store(h + 1)
}

// busy reports whether a quarter of the ring waits; producer only.
func (r *ring) busy() bool { return r.tail.Load()-r.head.Load() > r.mask/4 }

func (r *ring) empty() bool { return r.head.Load() == r.tail.Load() }
