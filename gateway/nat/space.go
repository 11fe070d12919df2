package nat

import (
	"fmt"
	"math/bits"
	"sync/atomic"
	"unsafe"
)

const (
	blockPorts    = 64
	blocksPerAddr = 65536 / blockPorts
	lowBlocks     = 1024 / blockPorts // blocks of ports 0..1023: the low range, RFC 4787 REQ-3

	noBlock = 1<<32 - 1

	// MaxWorkers is how many shards a Space can tell apart.
	MaxWorkers = 255
)

// blockID is a block of a Space: AddrID<<10 | port>>6.
type blockID = uint32

// gens is how many generations of held ports a block remembers: a port rests for its hold time, and at most a third of it longer.
const gens = 4

// ports is what a block knows about its 64 ports in one class.
type ports struct {
	busy uint64       // in use or held
	held [gens]uint64 // those freed, the last turn's first
	// Circular lists of the group's blocks with a free port, per parity; noBlock = not in it.
	next, prev [2]blockID
}

// block is the state of one block. Its owner alone touches it; giving it back and claiming it (addrState.free) pass it on.
type block struct {
	ports [numClasses]ports
	start [numClasses]uint32 // tick at which held[0] was begun; valid while anything of the class is held

	leader               blockID // the block that carries the group
	groupNext, groupPrev blockID // the group's blocks, circular
	shardNext, shardPrev blockID // all blocks of the shard, circular
	turn                 uint32  // ticks per generation of held ports

	group group // valid in the leader
}

// group is the blocks of one address that serve the same tenant, and the same inside host where blocks are per host.
type group struct {
	key    groupKey
	chain  blockID // leader of the next group in the shard's hash chain
	blocks uint32  // members
	resGen uint32  // Space.resGen when the lists were last made true to the reserved ports
	head   [numClasses][2]blockID
}

var _ [256 - unsafe.Sizeof(block{})]byte // at most four cache lines

// groupKey says whose blocks a group holds.
type groupKey struct {
	inside [4]byte // zero unless perHost
	tenant uint16
	addr   AddrID
	flags  uint8
	_      [3]uint8
}

const (
	groupPerHost uint8 = 1 << iota
	groupLow           // blocks of ports below 1024
)

// addrState is all that one public address needs; made by Register, of no pointers.
type addrState struct {
	addr     [4]byte
	free     [blocksPerAddr / 64]atomic.Uint64        // set: the block belongs to nobody
	reserved [numClasses][blocksPerAddr]atomic.Uint64 // ports that are never handed out
	blocks   [blocksPerAddr]block                     // owner of the block: rw
}

// Space is all public IPv4 addresses of a node and the ownership of their ports in blocks of 64.
type Space struct {
	addrs  []atomic.Pointer[addrState] // control: wo, all: ro
	owner  []atomic.Uint32             // by blockID: worker+1, 0 = nobody. The block's owner: wo, all: ro
	resGen atomic.Uint32               // control: rw, workers: ro. Counts changes of reserved ports
	ids    map[[4]byte]AddrID          // control only
}

// NewSpace makes room for maxAddrs public addresses. An address takes memory when it is registered, see Bytes.
func NewSpace(maxAddrs int) *Space {
	maxAddrs = max(0, min(maxAddrs, int(NoAddr)))
	return &Space{
		addrs: make([]atomic.Pointer[addrState], maxAddrs),
		owner: make([]atomic.Uint32, maxAddrs*blocksPerAddr),
		ids:   make(map[[4]byte]AddrID),
	}
}

// Register gives addr an id; the same address always gets the same one. An address is never forgotten: it leaves a tenant's
// use by leaving its pool. Control only.
func (sp *Space) Register(addr [4]byte) (AddrID, error) {
	if id, ok := sp.ids[addr]; ok {
		return id, nil
	}
	if len(sp.ids) == len(sp.addrs) {
		return NoAddr, fmt.Errorf("public address %d.%d.%d.%d: all %d places are taken", addr[0], addr[1], addr[2], addr[3], len(sp.addrs))
	}
	id := AddrID(len(sp.ids))
	st := &addrState{addr: addr}
	for i := range st.free {
		st.free[i].Store(^uint64(0))
	}
	for c := range numClasses {
		st.reserved[c][0].Store(1) // port 0 is no port
	}
	sp.ids[addr] = id
	sp.addrs[id].Store(st)
	return id, nil
}

// Addrs is how many addresses are registered; their ids are 0 to Addrs-1. Control only.
func (sp *Space) Addrs() int { return len(sp.ids) }

// Find is the id of addr, if it was registered. Control only.
func (sp *Space) Find(addr [4]byte) (AddrID, bool) {
	id, ok := sp.ids[addr]
	return id, ok
}

func (sp *Space) state(id AddrID) *addrState {
	if int(id) >= len(sp.addrs) {
		return nil
	}
	return sp.addrs[id].Load()
}

// Addr is the address with that id, 0.0.0.0 where there is none.
func (sp *Space) Addr(id AddrID) [4]byte {
	if st := sp.state(id); st != nil {
		return st.addr
	}
	return [4]byte{}
}

// SetReserved replaces the ports of one class that are never handed out: those forwarded, and those of the host itself. Bit p&63 of
// word p>>6 is port p. A mapping that has such a port already keeps it until it ends, but Map gives it to no new session.
// Control only; workers see it word by word.
func (sp *Space) SetReserved(id AddrID, class Class, ports *[1024]uint64) {
	st := sp.state(id)
	if st == nil || class >= numClasses {
		return
	}
	for i, w := range ports {
		if i == 0 {
			w |= 1
		}
		st.reserved[class][i].Store(w)
	}
	sp.resGen.Add(1)
}

// Reserved reports whether that port is never handed out. Port 0 always is; so is all of an unknown address.
func (sp *Space) Reserved(id AddrID, class Class, port uint16) bool {
	st := sp.state(id)
	if st == nil || class >= numClasses {
		return true
	}
	return st.reserved[class][port>>6].Load()>>(port&63)&1 != 0
}

// Owner is the worker that a packet to that public port belongs to; false while the block belongs to nobody.
func (sp *Space) Owner(id AddrID, port uint16) (worker int, ok bool) {
	i := int(id)<<10 | int(port>>6)
	if i >= len(sp.owner) {
		return 0, false
	}
	w := sp.owner[i].Load()
	return int(w) - 1, w != 0
}

// Bytes is the memory that the space takes now: it grows with each registered address.
func (sp *Space) Bytes() int {
	return len(sp.owner)*4 + len(sp.addrs)*8 + len(sp.ids)*int(unsafe.Sizeof(addrState{}))
}

// FreeBlocks is how many blocks of the address belong to nobody.
func (sp *Space) FreeBlocks(id AddrID) (n int) {
	if st := sp.state(id); st != nil {
		for i := range st.free {
			n += bits.OnesCount64(st.free[i].Load())
		}
	}
	return n
}

const (
	lowBlockMask = 1<<lowBlocks - 1
	evenPorts    = 0x5555555555555555
)

// parityMask is the ports of a block with that parity.
func parityMask(parity int) uint64 { return evenPorts << (parity & 1) }

// claim takes a free block of the address that has a port of that class and parity which is not reserved, at random, and enters the
// worker as its owner.
func (sp *Space) claim(id AddrID, worker int, low bool, class Class, parity int, rnd uint64) (blockID, bool) {
	st := sp.state(id)
	if st == nil {
		return noBlock, false
	}
	words := uint64(len(st.free))
	first, turn := rnd>>32%words, int(rnd>>40&63)
	for i := range words {
		w := (first + i) % words
		var in uint64 = ^uint64(0)
		if w == 0 {
			if in = ^uint64(lowBlockMask); low {
				in = lowBlockMask
			}
		} else if low {
			continue
		}
		var dull uint64 // nothing to be had there
		for {
			old := st.free[w].Load()
			m := old & in &^ dull
			if m == 0 {
				break
			}
			bit := uint(bits.TrailingZeros64(bits.RotateLeft64(m, -turn))+turn) & 63
			b := w<<6 | uint64(bit)
			if ^st.reserved[class][b].Load()&parityMask(parity) == 0 {
				dull |= 1 << bit
				continue
			}
			if st.free[w].CompareAndSwap(old, old&^(1<<bit)) {
				sp.owner[int(id)<<10|int(b)].Store(uint32(worker) + 1)
				return blockID(id)<<10 | blockID(b), true
			}
		}
	}
	return noBlock, false
}

// giveBack is the opposite: the last thing that an owner does with a block.
func (sp *Space) giveBack(b blockID) {
	sp.owner[b].Store(0)
	i := b & (blocksPerAddr - 1)
	sp.addrs[b>>10].Load().free[i>>6].Or(1 << (i & 63))
}

func (sp *Space) block(b blockID) *block {
	return &sp.addrs[b>>10].Load().blocks[b&(blocksPerAddr-1)]
}

// usable is the ports of a block that are neither busy nor reserved.
func (sp *Space) usable(b blockID, class Class) uint64 {
	st := sp.addrs[b>>10].Load()
	i := b & (blocksPerAddr - 1)
	return ^(st.blocks[i].ports[class].busy | st.reserved[class][i].Load())
}
