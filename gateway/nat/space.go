package nat

import (
	"fmt"
	"math/bits"
	"sync/atomic"
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

// gens is how many generations of held ports a block remembers: a port rests for its hold time and at most 1/(gens-1) longer.
const gens = 4

// ports is what a block knows about its 64 ports in one class.
type ports struct {
	busy  uint64       // in use or held
	held  [gens]uint64 // held[0] are those freed last; see Shard.turn
	start uint32       // tick at which held[0] was begun
	next  [2]blockID   // circular list of the group's blocks with a free port, per parity; noBlock = not in it
	prev  [2]blockID
}

// block is the state of one block. Its owner alone touches it; giving it back and claiming it (Space.free) pass it on.
type block struct {
	ports [numClasses]ports

	leader blockID // the block that carries the group's head
	// The group's blocks, circular; and all blocks of the shard, circular, for Sweep.
	groupNext, groupPrev blockID
	shardNext, shardPrev blockID
	turn                 uint32 // ticks per generation

	group group // valid in the leader only
}

// group is the blocks of one address that serve the same tenant (and the same inside host, where blocks are per host).
type group struct {
	key    groupKey
	chain  blockID                // next group in the shard's hash chain
	blocks uint32                 // members
	resGen uint32                 // Space.resGen when the lists were last made true to the reserved ports
	head   [numClasses][2]blockID // lists of members with a free port, per class and parity
}

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

// FreeBlocks is how many blocks of the address belong to nobody.
func (sp *Space) FreeBlocks(id AddrID) (n int) {
	if st := sp.state(id); st != nil {
		for i := range st.free {
			n += bits.OnesCount64(st.free[i].Load())
		}
	}
	return n
}
