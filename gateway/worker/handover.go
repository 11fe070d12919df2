package worker

import (
	"sync/atomic"

	"demarc/gateway/trace"
)

// What a handed-over frame is for.
const (
	handProcess    = iota // judge it: it belongs to the receiver
	handLoop              // judge it as entering from the backbone side
	handSend              // send it on a port where the sender has no socket
	handGather            // judge it: a fragment, and those of its datagram meet here; it may be handed on
	handGatherLoop        // the same, entering from the backbone side
)

const (
	handSlots    = 1024 // a power of two
	handHeadroom = 256  // kept free before a copied frame, for a VLAN tag or an ICMP header
)

// ring is the hand-over queue from one worker to one other: one writer, one reader, bytes copied both times, fixed memory.
type ring struct {
	size int // bytes a slot
	mem  []byte
	meta [handSlots]handMeta
	_    [64]byte
	head atomic.Uint64 // writer: wo
	_    [56]byte
	tail atomic.Uint64 // reader: wo
	_    [56]byte
	// through is tail at the end of the reader's last turn: what was before it is on its way. Reader: wo, others: ro.
	through atomic.Uint64
	_       [56]byte
}

type handMeta struct {
	n     uint16
	port  uint16
	kind  uint8
	group uint8 // with handSend
}

// cameIn is the port that the frame was received on, if it was received on one.
func (m *handMeta) cameIn() uint16 {
	if m.kind == handProcess {
		return m.port
	}
	return trace.NoPort
}

func newRing(size int) *ring { return &ring{size: size, mem: make([]byte, size*handSlots)} }

// push copies a frame in; false when the ring is full or the frame is larger than a slot. Writer only.
func (r *ring) push(kind uint8, port uint16, group uint8, frame []byte) bool {
	h := r.head.Load()
	if h-r.tail.Load() >= handSlots || len(frame) > r.size {
		return false
	}
	i := int(h % handSlots)
	copy(r.mem[i*r.size:], frame)
	r.meta[i] = handMeta{n: uint16(len(frame)), port: port, kind: kind, group: group}
	r.head.Store(h + 1)
	return true
}

// peek returns the oldest frame, valid until pop. Reader only.
func (r *ring) peek() (m handMeta, frame []byte, ok bool) {
	t := r.tail.Load()
	if t == r.head.Load() {
		return handMeta{}, nil, false
	}
	i := int(t % handSlots)
	m = r.meta[i]
	return m, r.mem[i*r.size : i*r.size+int(m.n)], true
}

func (r *ring) pop() { r.tail.Store(r.tail.Load() + 1) }

func (r *ring) empty() bool { return r.tail.Load() == r.head.Load() }
