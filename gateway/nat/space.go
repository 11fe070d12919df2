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

// blockID is a block of a Space: AddrID<<12 | Class<<10 | port>>6.
type blockID = uint32

// blockNo is a block among those of its address and class: its ports begin at blockNo<<6.
type blockNo = uint16

const (
	noNumber  blockNo = 1<<16 - 1
	classBits         = 10
	addrBits          = 12
)

func blockOf(a AddrID, c Class, port uint16) blockID {
	return blockID(a)<<addrBits | blockID(c)<<classBits | blockID(port>>6)
}

func addrOf(b blockID) AddrID { return AddrID(b >> addrBits) }
func classIn(b blockID) Class { return Class(b >> classBits & 3) }
func numberOf(b blockID) blockNo {
	return blockNo(b & (blocksPerAddr - 1))
}

// beside is the block with number n of the same address and class.
func beside(b blockID, n blockNo) blockID { return b&^(blocksPerAddr-1) | blockID(n) }

// gens is how many generations of held ports a block remembers: a port rests for its hold time, and at most a third of it longer.
const gens = 4

// block is the state of 64 ports of one class.
type block struct {
	free atomic.Uint64 // ports that whoever clears the bit has got; none while the block belongs to nobody. All: rw
	owned
}

// owned is what of a block its owner alone touches; giving it back and claiming it (addrState.free) pass it on.
//
// In front, in the line of free, is what the choice of a port reads.
type owned struct {
	// Circular lists of the group's blocks with a free port, per parity; noNumber = not in it.
	next, prev           [2]blockNo
	groupNext, groupPrev blockNo // the group's blocks, circular
	leader               blockNo // the block that carries the group

	group group // valid in the leader

	shardNext, shardPrev blockID // all blocks of the shard, circular
	start                uint32  // tick at which held[0] was begun; valid while anything is held
	turn                 uint32  // ticks per generation of held ports

	held [gens]uint64 // ports that rest, the last turn's first
}

// group is the blocks of one address and class that serve the same tenant, and the same inside host where blocks are per host.
type group struct {
	key    groupKey
	chain  blockID // leader of the next group in the shard's hash chain
	resGen uint32  // Space.resGen when the lists were last made true to the reserved ports
	head   [2]blockNo
	blocks uint16 // members
}

var _ [96 - unsafe.Sizeof(block{})]byte // it is a third of what an address takes for each of its ports

// groupKey says whose blocks a group holds, among those of an address and class.
type groupKey struct {
	inside [4]byte // zero unless perHost
	tenant uint16
	flags  uint8
	_      uint8
}

const (
	groupPerHost uint8 = 1 << iota
	groupLow           // blocks of ports below 1024
)

// addrState is all that one public address needs; made by Register.
type addrState struct {
	lending  *lending // the one pointer
	addr     [4]byte
	free     [numClasses][blocksPerAddr / 64]atomic.Uint64 // set: the block belongs to nobody
	left     [numClasses]atomic.Int32                      // how many of those are above the low ports
	reserved [numClasses][blocksPerAddr]atomic.Uint64      // ports that are never handed out
	blocks   [numClasses][blocksPerAddr]block

	barred  [numClasses][2][blocksPerAddr / 64]atomic.Uint64 // by parity: blocks of which every port is reserved. Control: wo
	foreign atomic.Bool                                      // see Foreign. Control: wo, workers: ro
	closed  [numClasses][blocksPerAddr / 64]atomic.Uint64    // blocks that no new mapping may be made in, see Close. Control: wo, workers: ro
	some    [numClasses][2][blocksPerAddr / 64]atomic.Uint64 // by parity: blocks with a port to take; true of more than have one, never of less
	moves   [numClasses]atomic.Uint64                        // lower half: blocks between nobody and an owner, or in dry, now; upper half: how often ports came where there were none to be seen
}

// lending is what an address needs for ports that are lent. No page of it is touched before one is.
type lending struct {
	to   [numClasses][65536 / 4]atomic.Uint32     // a byte a port: worker+1, 0 = the block's owner has it. Who has it: wo, all: ro
	back [numClasses][blocksPerAddr]atomic.Uint64 // ports that shall rest, their mappings being over. Who had them: wo, owner of the block: rw
	rest [numClasses][blocksPerAddr]atomic.Uint32 // ticks, the longest that any of them shall; likewise
}

// Space is all public IPv4 addresses of a node and the ownership of their ports in blocks of 64.
type Space struct {
	addrs  []atomic.Pointer[addrState] // control: wo, all: ro
	owner  []atomic.Uint32             // by AddrID<<10 | port>>6: a byte for each class, worker+1, 0 = nobody, which its owner writes; above them a bit for each, see lends, which a borrower sets. All: ro
	resGen atomic.Uint32               // control: rw, workers: ro. Counts changes of reserved ports
	ids    map[[4]byte]AddrID          // control only

	Idents Idents // all: rw
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
	st := &addrState{addr: addr, lending: new(lending)}
	for c := range numClasses {
		for i := range st.free[c] {
			st.free[c][i].Store(^uint64(0))
		}
		st.left[c].Store(blocksPerAddr - lowBlocks)
		st.reserved[c][0].Store(1) // port 0 is no port
	}
	sp.ids[addr] = id
	sp.addrs[id].Store(st)
	return id, nil
}

// Room is how many more addresses there are places for. Control only.
func (sp *Space) Room() int { return len(sp.addrs) - len(sp.ids) }

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
	var barred [2][blocksPerAddr / 64]uint64
	for i, w := range ports {
		if i == 0 {
			w |= 1
		}
		for parity := range barred {
			if ^w&parityMask(parity) == 0 {
				barred[parity][i/64] |= 1 << (i & 63)
			}
		}
		if was := st.reserved[class][i].Swap(w); was&^w != 0 {
			st.offer(class, blockNo(i), was&^w&st.blocks[class][i].free.Load())
		}
	}
	for parity := range barred {
		for i, w := range barred[parity] {
			st.barred[class][parity][i].Store(w)
		}
	}
	st.moves[class].Add(1 << 32)
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
func (sp *Space) Owner(id AddrID, class Class, port uint16) (worker int, ok bool) {
	i := int(id)*blocksPerAddr | int(port>>6)
	if i >= len(sp.owner) || class >= numClasses {
		return 0, false
	}
	o := sp.owner[i].Load()
	w := o >> (8 * class) & 0xff
	if o>>(lendsShift+class)&1 != 0 {
		if l := sp.borrower(id, class, port); l != 0 {
			w = l
		}
	}
	return int(w) - 1, w != 0
}

// Bytes is the memory that the space takes now: it grows with each registered address. Not in it are 228 KiB an address that are used only where ports
// are lent.
func (sp *Space) Bytes() int {
	return len(sp.owner)*4 + len(sp.addrs)*8 + len(sp.ids)*int(unsafe.Sizeof(addrState{}))
}

// FreeBlocks is how many blocks of the address and class belong to nobody.
func (sp *Space) FreeBlocks(id AddrID, class Class) (n int) {
	if st := sp.state(id); st != nil && class < numClasses {
		for i := range st.free[class] {
			n += bits.OnesCount64(st.free[class][i].Load())
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
// worker as its owner. It counts as moving until enter or giveBack; nobody sees its ports meanwhile.
func (sp *Space) claim(id AddrID, worker int, low bool, class Class, parity int, rnd uint64) (blockID, bool) {
	st := sp.state(id)
	if st == nil {
		return noBlock, false
	}
	words := uint64(len(st.free[class]))
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
		dull := st.barred[class][parity][w].Load() | st.closed[class][w].Load() // nothing to be had there
		for {
			old := st.free[class][w].Load()
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
			st.moves[class].Add(1)
			if st.free[class][w].CompareAndSwap(old, old&^(1<<bit)) {
				if st.closed[class][w].Load()>>bit&1 != 0 { // just now: whoever closed it may have seen it as nobody's
					st.free[class][w].Or(1 << bit)
					st.moves[class].Add(1<<32 - 1)
					dull |= 1 << bit
					continue
				}
				if b >= lowBlocks {
					st.left[class].Add(-1)
				}
				sp.owner[int(id)*blocksPerAddr|int(b)].Or(uint32(worker+1) << (8 * class))
				return blockOf(id, class, uint16(b<<6)), true
			}
			st.moves[class].Add(^uint64(0))
		}
	}
	return noBlock, false
}

// enter shows the ports of a claimed block to all.
func (sp *Space) enter(b blockID) {
	st, c, n := sp.addrs[addrOf(b)].Load(), classIn(b), numberOf(b)
	st.blocks[c][n].free.Store(^uint64(0))
	st.offer(c, n, ^uint64(0))
	st.moves[c].Add(^uint64(0))
}

// shut takes an empty block out of sight, so that it can be given back; false where a port of it is in use or rests. It counts as moving then.
func (sp *Space) shut(b blockID) bool {
	st, c := sp.addrs[addrOf(b)].Load(), classIn(b)
	k := &st.blocks[c][numberOf(b)]
	if k.free.Load() != ^uint64(0) {
		return false
	}
	st.moves[c].Add(1)
	if !k.free.CompareAndSwap(^uint64(0), 0) {
		st.moves[c].Add(^uint64(0))
		return false
	}
	for parity := range 2 {
		st.some[c][parity][numberOf(b)/64].And(^(uint64(1) << (numberOf(b) & 63)))
	}
	if sp.lends(b) {
		st.lending.rest[c][numberOf(b)].Store(0)
	}
	return true
}

// giveBack is the opposite of claim: the last thing that an owner does with a block, which nobody sees now. came is 1, or 0 where nobody knew that
// it was taken.
func (sp *Space) giveBack(b blockID, came uint64) {
	st, c, n := sp.addrs[addrOf(b)].Load(), classIn(b), numberOf(b)
	sp.owner[int(addrOf(b))*blocksPerAddr|int(n)].And(^(uint32(0xff)<<(8*c) | 1<<(lendsShift+c)))
	st.free[c][n/64].Or(1 << (n & 63))
	if n >= lowBlocks {
		st.left[c].Add(1)
	}
	st.moves[c].Add(came<<32 - 1)
}

// shortOf is how few blocks of an address may be left before workers stop to spread their mappings and pack them, so that what one of them does not
// need another may have: a worker that keeps eight blocks open for a few mappings keeps 500 ports from all others.
const shortOf = 64

// short reports whether the blocks of the address and class of block of are about to be used up.
func (sp *Space) short(of blockID) bool {
	st := sp.state(addrOf(of))
	return st != nil && st.left[classIn(of)].Load() < shortOf
}

func (sp *Space) block(b blockID) *block { return &sp.class(b)[numberOf(b)] }

// class is all blocks of the address and class of block b.
func (sp *Space) class(b blockID) *[blocksPerAddr]block {
	return &sp.addrs[addrOf(b)].Load().blocks[classIn(b)]
}

// usable is the ports of a block that are free and not reserved, none where it is closed.
func (sp *Space) usable(b blockID) uint64 {
	st := sp.addrs[addrOf(b)].Load()
	return st.usable(classIn(b), numberOf(b))
}

func (st *addrState) usable(c Class, n blockNo) uint64 {
	if st.isClosed(c, n) {
		return 0
	}
	return st.blocks[c][n].free.Load() &^ st.reserved[c][n].Load()
}
