package cruise

import (
	"sync/atomic"

	"demarc/gateway/police"
)

// The structs below are those of bpf/cruise.c. A test holds the two together by the types that the object carries.

// worker is one worker's line.
type worker struct {
	until atomic.Uint64 // ns of CLOCK_BOOTTIME; past it nothing of the worker's table is carried
	seed  uint64        // set at Open
	gen   atomic.Uint32 // pipeline.Shard.Gen
	up    atomic.Uint32 // not 0: all packets go up, the worker says so
	held  atomic.Uint32 // likewise, control says so

	idents           uint32 // where its words of idents begin. Set at Open
	ident, identMask uint16 // nat.WholeShare, likewise
	zero             uint32
}

// mark stands beside a session and says whether it is handed down.
type mark struct {
	down atomic.Uint64    // see the bits below, and Session.Gen
	way  [2]atomic.Uint64 // per direction: Hop's generation << 32 | its number
}

// hop is how a frame leaves.
type hop struct {
	gen      atomic.Uint32 // 0 = nothing may leave here
	port     uint16
	vlan     uint16
	mtu      uint16
	dst, src [6]byte
	pad      [2]byte
	used     atomic.Uint32 // something has left here since it was cleared
	zero     uint32
}

type iface struct {
	here [4]uint64 // groups whose virtual MACs are taken here
	mac  [6]byte
	zone uint16
	used uint8
	zero [7]byte
}

type tenant struct {
	words [2]police.Words
	rates [2][3]police.Numbers // as the words: bits, packets, voice
	voice uint64
	used  uint8
	group uint8
	zero  [6]byte
}

type deadline struct{ until, epoch atomic.Uint64 }

type settings struct {
	Ahead                               int64
	Port, Workers, Slots, Lines, Stride uint32
	_                                   [4]byte
}

type volume struct{ Packets, Bytes uint64 }

type counter struct{ N, At uint64 }

const (
	// Bits of mark.down. The program carries where markDown stands alone above the generation, and sets markUp; all else is the worker's.
	markDown  = 1 << 32 // DOWN: handed down
	markTry   = 1 << 33 // to be handed down, with the batch whose number stands above
	markUp    = 1 << 34 // UP: a packet went up, and the others behind it
	markTries = 40      // from this bit on, a byte: how often a packet has hindered it
	markBatch = 48      // from this bit on: the number of the batch
	mostTries = 255

	MaxWorkers = 16 // MAX_WORKERS: how many workers there may be
	vlansOf    = 4096
	dirs       = 3
	figures    = dirs + 4 // what is counted of a tenant: FIGURES
)
