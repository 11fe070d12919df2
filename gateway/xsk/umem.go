package xsk

import (
	"errors"
	"fmt"
	"math/bits"
	"os"

	"golang.org/x/sys/unix"
)

// Who owns a frame, one word each. Values from ownSocket up are a socket's: id<<1 in its fill or rx ring (ownTx clear)
// or its tx or completion ring (ownTx set).
const (
	ownFree  = uint16(iota) // on the free list
	ownHeld                 // the caller's
	ownLimbo                // was with a socket that is closed, and the kernel may still read or write it

	ownTx       = uint16(1)
	firstSocket = uint16(2) // ids
	lastSocket  = uint16(1<<15 - 1)
	ownSocket   = firstSocket << 1
)

// UMEM is the memory that a worker's frames live in, shared by all sockets opened on it. One owner thread.
type UMEM struct {
	mem    []byte
	huge   bool
	chunk  int
	shift  uint
	frames int

	free  []uint32 // stack of frame numbers
	owner []uint16 // by frame number

	sockets []*Socket // open ones
	limbo   map[[2]int][]uint32
	limboN  int
	faults  uint64
}

// NewUMEM maps memory for frames of chunk bytes (2048 or 4096): huge pages when there are any reserved, else ordinary ones
// that the kernel may make huge. Every frame is free at first. The first socket registers it with the kernel.
func NewUMEM(frames, chunk int) (*UMEM, error) {
	if chunk < 2048 || chunk > os.Getpagesize() || bits.OnesCount(uint(chunk)) != 1 {
		return nil, fmt.Errorf("umem chunk %d: must be a power of two from 2048 to the page size %d", chunk, os.Getpagesize())
	}
	if frames < 1 || frames > 1<<26 {
		return nil, fmt.Errorf("umem of %d frames: must be 1 to %d", frames, 1<<26)
	}
	const huge = 2 << 20
	size := frames * chunk
	u := &UMEM{chunk: chunk, frames: frames, shift: uint(bits.TrailingZeros(uint(chunk))), limbo: map[[2]int][]uint32{}}
	prot, flags := unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS
	mem, err := unix.Mmap(-1, 0, (size+huge-1)&^(huge-1), prot, flags|unix.MAP_HUGETLB|unix.MAP_POPULATE)
	if err == nil {
		u.huge = true
	} else {
		page := os.Getpagesize()
		if mem, err = unix.Mmap(-1, 0, (size+page-1)&^(page-1), prot, flags); err != nil {
			return nil, fmt.Errorf("map umem of %d frames of %d bytes: %w", frames, chunk, err)
		}
		_ = unix.Madvise(mem, unix.MADV_HUGEPAGE) // a wish; refused where the kernel has no transparent huge pages
		for i := 0; i < len(mem); i += page {     // touched here, so that no page fault comes on the hot path
			mem[i] = 0
		}
	}
	u.mem = mem
	u.free = make([]uint32, frames)
	u.owner = make([]uint16, frames)
	for i := range u.free {
		u.free[i] = uint32(frames - 1 - i)
	}
	return u, nil
}

// Mem is all frames; Desc.Addr is an offset into it. Nothing may touch it after Close.
func (u *UMEM) Mem() []byte { return u.mem[:u.frames*u.chunk] }

// Chunk is the size of a frame in bytes.
func (u *UMEM) Chunk() int { return u.chunk }

// Frames is how many frames there are.
func (u *UMEM) Frames() int { return u.frames }

// FreeCount is how many frames are on the free list.
func (u *UMEM) FreeCount() int { return len(u.free) }

// Huge says whether reserved huge pages back it.
func (u *UMEM) Huge() bool { return u.huge }

// Limbo is how many frames were with a closed socket and may still be read or written by the kernel. They come back
// when the same queue is opened again: the kernel allows that only once it has let go of the old socket's frames.
func (u *UMEM) Limbo() int { return u.limboN }

// Faults counts frames that were given back or sent by somebody who did not own them. Such a call has no effect. It must stay 0.
func (u *UMEM) Faults() uint64 { return u.faults }

// Alloc takes a free frame; it is the caller's until Free or Send. The address is the start of its chunk.
func (u *UMEM) Alloc() (uint64, bool) {
	n := len(u.free)
	if n == 0 {
		return 0, false
	}
	f := u.free[n-1]
	u.free = u.free[:n-1]
	u.owner[f] = ownHeld
	return uint64(f) << u.shift, true
}

// Free gives a frame of the caller's back; addr may point anywhere into it.
func (u *UMEM) Free(addr uint64) {
	f := addr >> u.shift
	if f >= uint64(len(u.owner)) || u.owner[f] != ownHeld {
		u.faults++
		return
	}
	u.put(uint32(f))
}

func (u *UMEM) put(f uint32) {
	u.owner[f] = ownFree
	u.free = append(u.free, f) // capacity is the number of frames: never grows
}

// Check asserts that no frame is lost or owned twice: free + limbo + what the sockets have + held (by the caller) == frames.
func (u *UMEM) Check(held int) error {
	sum := len(u.free) + u.limboN + held
	text := fmt.Sprintf("free %d + limbo %d + held %d", len(u.free), u.limboN, held)
	for _, s := range u.sockets {
		fill, rx, tx := s.InKernel()
		sum += fill + rx + tx
		text += fmt.Sprintf(" + socket %d.%d (fill %d, rx %d, tx %d)", s.cfg.Ifindex, s.cfg.Queue, fill, rx, tx)
	}
	if sum != u.frames {
		return fmt.Errorf("frames not conserved: %s = %d, want %d", text, sum, u.frames)
	}
	if u.faults != 0 {
		return fmt.Errorf("%d frames given back or sent by who did not own them", u.faults)
	}
	return nil
}

// Close unmaps the memory. All sockets must be closed. Idempotent.
func (u *UMEM) Close() error {
	if u.mem == nil {
		return nil
	}
	if len(u.sockets) > 0 {
		return errors.New("close umem: sockets are still open on it")
	}
	mem := u.mem
	u.mem, u.free, u.owner, u.frames = nil, nil, nil, 0
	return unix.Munmap(mem)
}

// reclaim takes back what a closed socket had. In copy mode the kernel is through with the fill ring when close returns; what
// was to be sent may still be part of a packet under way, and in zero-copy the driver lets go later.
func (u *UMEM) reclaim(s *Socket) {
	key := [2]int{s.cfg.Ifindex, s.cfg.Queue}
	s.reclaimed = true
	for f, o := range u.owner {
		switch {
		case o < ownSocket || o&^ownTx != s.tag:
		case o&ownTx == 0 && !s.zc:
			u.put(uint32(f))
		default:
			u.owner[f] = ownLimbo
			u.limbo[key] = append(u.limbo[key], uint32(f))
			u.limboN++
		}
	}
}

// rebound takes back what was in limbo for a queue that the kernel has let us bind again.
func (u *UMEM) rebound(ifindex, queue int) {
	key := [2]int{ifindex, queue}
	for _, f := range u.limbo[key] {
		u.put(f)
		u.limboN--
	}
	delete(u.limbo, key)
}

// DeviceGone takes back what was in limbo for the queues of a device that has left: the kernel stops a driver and takes its sockets off before it
// says that a device is gone, and nobody will bind these queues again.
func (u *UMEM) DeviceGone(ifindex int) {
	for key := range u.limbo {
		if key[0] == ifindex {
			u.rebound(key[0], key[1])
		}
	}
}
