package xsk

import (
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Desc is one frame on an rx or tx ring, in the kernel's layout (struct xdp_desc).
type Desc struct {
	Addr    uint64 // offset in the UMEM
	Len     uint32 // bytes
	Options uint32
}

var _ [16]byte = [unsafe.Sizeof(Desc{})]byte{}

// ring is one of the four single-producer, single-consumer rings. Indices run freely over 32 bits and are masked on use.
// The kernel moves one index, we move the other: ours is published with release semantics after the entries are written
// or read, the kernel's is read with acquire semantics before they are. Go's atomics are at least that strong.
type ring struct {
	prod, cons, flags *uint32 // shared with the kernel
	size, mask        uint32  // size is a power of two
	head              uint32  // our own index, perhaps not published yet
	seen              uint32  // what we last saw of the kernel's index
	descs             []Desc  // rx, tx; else nil
	addrs             []uint64
	mem               []byte // the mapping
}

// room says how many of n entries may be written. Producer side.
func (r *ring) room(n uint32) uint32 {
	if free := r.size - (r.head - r.seen); free >= n && free <= r.size {
		return n
	}
	r.seen = atomic.LoadUint32(r.cons)
	used := r.head - r.seen
	if used > r.size { // an index that cannot be: touch nothing
		return 0
	}
	return min(n, r.size-used)
}

// publish hands what was written up to head to the kernel. Producer side.
func (r *ring) publish() { atomic.StoreUint32(r.prod, r.head) }

// ready says how many of n entries may be read. Consumer side.
func (r *ring) ready(n uint32) uint32 {
	if avail := r.seen - r.head; avail >= n && avail <= r.size {
		return n
	}
	r.seen = atomic.LoadUint32(r.prod)
	avail := r.seen - r.head
	if avail > r.size {
		return 0
	}
	return min(n, avail)
}

// release gives what was read up to head back to the kernel. Consumer side.
func (r *ring) release() { atomic.StoreUint32(r.cons, r.head) }

// pending is how many entries we have written and the kernel has not taken. Producer side.
func (r *ring) pending() uint32 { return r.head - atomic.LoadUint32(r.cons) }

// needWakeup says that the kernel sleeps on this ring until a system call comes.
func (r *ring) needWakeup() bool { return atomic.LoadUint32(r.flags)&unix.XDP_RING_NEED_WAKEUP != 0 }

// lay points the ring at memory: the indices and flags and size entries of either kind at off.Desc.
func (r *ring) lay(mem []byte, off *unix.XDPRingOffset, size uint32, descs bool) {
	at := func(o uint64) unsafe.Pointer { return unsafe.Pointer(&mem[o]) }
	r.mem, r.size, r.mask = mem, size, size-1
	r.prod, r.cons, r.flags = (*uint32)(at(off.Producer)), (*uint32)(at(off.Consumer)), (*uint32)(at(off.Flags))
	if descs {
		r.descs = unsafe.Slice((*Desc)(at(off.Desc)), size)
	} else {
		r.addrs = unsafe.Slice((*uint64)(at(off.Desc)), size)
	}
}

// mapRing maps one ring of a socket whose size has been set.
func (r *ring) mapRing(fd int, pgoff int64, off *unix.XDPRingOffset, size uint32, descs bool) error {
	entry := uint64(8)
	if descs {
		entry = uint64(unsafe.Sizeof(Desc{}))
	}
	mem, err := unix.Mmap(fd, pgoff, int(off.Desc+uint64(size)*entry), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_POPULATE)
	if err != nil {
		return err
	}
	r.lay(mem, off, size, descs)
	return nil
}

// unmap is idempotent. The ring must not be used after it.
func (r *ring) unmap() error {
	if r.mem == nil {
		return nil
	}
	mem := r.mem
	*r = ring{}
	return unix.Munmap(mem)
}
