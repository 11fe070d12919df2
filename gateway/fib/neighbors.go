package fib

import (
	"encoding/binary"
	"errors"
	"math/bits"
	"sync/atomic"

	"demarc/gateway/flow"
)

// State is a neighbour's state in the terms of RFC 4861 section 7.3.2, used for ARP as well.
type State uint8

// The states. A packet may be sent to the MAC of a neighbour in any of them but Incomplete and Unreachable.
const (
	Incomplete  State = iota // asked, no answer yet: no MAC
	Reachable                // confirmed not long ago
	Stale                    // known, but not confirmed for a while; using it starts Delay
	Delay                    // used while stale: probed soon
	Probe                    // asked again, by unicast
	Permanent                // configured, or the kernel's; never probed
	Unreachable              // did not answer: a negative entry, no MAC
	numStates
)

var stateText = [numStates]string{"incomplete", "reachable", "stale", "delay", "probe", "permanent", "unreachable"}

// String returns the state's lower-case name.
func (s State) String() string {
	if s < numStates {
		return stateText[s]
	}
	return "invalid"
}

// Usable reports whether packets may be sent to the MAC of a neighbour in this state.
func (s State) Usable() bool { return s != Incomplete && s < Unreachable }

// ErrNeighborsFull says that the table holds as many neighbours as it was made for.
var ErrNeighborsFull = errors.New("neighbour table is full")

// Neighbor is an entry as the writer sees it.
type Neighbor struct {
	Iface  uint16
	Family uint8
	State  State
	MAC    [6]byte
	Addr   flow.Addr
	Since  uint64 // the ns given to the last Set
	Used   bool   // a Lookup found it since the mark was cleared
}

// entry is one cache line. A reader must never take the MAC of one address for that of another, also when the writer
// gives the entry to another address between the reader's key compare and its load of the MAC. So an entry has a
// generation, which the writer raises each time the key changes, and which stands both in key and in mac:
//
//	writer, key changes          reader
//	mac  = generation g+1, void  key  -> live, iface, family, generation g?
//	key  = not live              lo, hi -> the address?
//	lo, hi = the new address     mac  -> valid, and generation g again?
//	key  = live, g+1
//	mac  = g+1, valid, MAC
//
// All are sequentially consistent atomics. If the reader saw any part of the new address, mac had been moved to g+1
// before, so its last load cannot show g. If it shows g, key and address were those of g all along. The MAC, its validity and
// its generation are one word, so the MAC is never torn, a changed MAC of the same neighbour is one store, and a reader
// does not retry for it. A generation has 15 bits: a reader would have to stand still between two loads while its entry is
// given to 32,768 other addresses, and be woken at exactly that one.
type entry struct {
	key    atomic.Uint64 // iface | family<<16 | generation<<24 | kind<<40; writer: rw, readers: ro
	lo, hi atomic.Uint64 // the address, little-endian loads of its halves; writer: rw, readers: ro
	mac    atomic.Uint64 // MAC (first byte lowest) | generation<<48 | valid<<63; writer: rw, readers: ro
	used   atomic.Uint32 // 1 = found since cleared; readers: set, writer: clear
	state  State         // writer only
	raw    [6]byte       // writer only: the MAC, also while it may not be used
	since  uint64        // writer only, ns
	_      [8]byte
}

const (
	kindEmpty = uint64(0) << 40 // ends a search
	kindTomb  = uint64(1) << 40 // was deleted: a search goes on
	kindLive  = uint64(2) << 40
	kindMask  = uint64(3) << 40

	genShift = 24
	genMask  = uint64(1<<15 - 1)
	macValid = uint64(1) << 63
	macMask  = uint64(1<<48 - 1)
)

// generation is that of an entry; writer only.
func (e *entry) generation() uint64 { return e.key.Load() >> genShift & genMask }

// Neighbors is the table of neighbours, keyed by interface, family and address: open addressing with linear search, of fixed
// size, at most half full. Deleted entries that stand in the middle of a search become tombstones; when too many have
// gathered the writer copies the live entries to the second of two arrays and switches, so that a search stays short
// and readers never see a table half rebuilt.
type Neighbors struct {
	tabs     [2][]entry
	current  atomic.Uint32 // how often it was rebuilt; its lowest bit says which of tabs; writer: rw, readers: ro
	mask     uint64
	seed     uint64
	capacity int
	quiet    bool
	live     int // writer only
	tombs    int // writer only

	// Changed is called after what a reader was told of a neighbour is no longer so. Set before anything is; nil = nobody asks. Writer only.
	Changed func(iface uint16, family uint8, a *flow.Addr)
}

// NewNeighbors makes a table for capacity neighbours. seed keys the hash: who does not know it cannot fill one spot.
func NewNeighbors(capacity int, seed uint64) *Neighbors {
	capacity = max(capacity, 1)
	slots := 1 << bits.Len(uint(2*capacity-1))
	n := &Neighbors{mask: uint64(slots - 1), seed: seed, capacity: capacity}
	for i := range n.tabs {
		n.tabs[i] = make([]entry, slots)
	}
	return n
}

// ident is what identifies a neighbour, in the words that an entry holds.
type ident struct{ key, lo, hi uint64 } // key: iface and family, live, generation 0

func identOf(iface uint16, family uint8, a *flow.Addr) ident {
	return ident{
		key: kindLive | uint64(family)<<16 | uint64(iface),
		lo:  binary.LittleEndian.Uint64(a[0:8]),
		hi:  binary.LittleEndian.Uint64(a[8:16]),
	}
}

func mix(a, b uint64) uint64 {
	hi, lo := bits.Mul64(a, b)
	return hi ^ lo
}

func (n *Neighbors) slot(id *ident) uint64 {
	h := mix(id.lo^n.seed^0xa0761d6478bd642f, id.hi^bits.RotateLeft64(n.seed, 29)^0xe7037ed1a0b428db)
	return mix(h^id.key, n.seed^0x8ebc6af09c88c6e3) & n.mask
}

// Lookup is the MAC to send to, if the neighbour is known and usable, and marks it as used. Any goroutine may call it.
// An entry that is changed to another address during the call counts as not found.
func (n *Neighbors) Lookup(iface uint16, family uint8, a *flow.Addr) (mac [6]byte, ok bool) {
	id := identOf(iface, family, a)
	first := n.slot(&id)
	for v := n.current.Load(); ; {
		if mac, ok = search(n.tabs[v&1], first, &id, n.quiet); ok {
			return mac, true
		}
		// A reader that was stopped while the writer rebuilt, and began to rebuild again, may have missed what is there.
		now := n.current.Load()
		if now == v {
			return mac, false
		}
		v = now
	}
}

func search(tab []entry, i uint64, id *ident, quiet bool) (mac [6]byte, ok bool) {
	mask := uint64(len(tab) - 1)
	for range tab {
		e := &tab[i&mask]
		i++
		k := e.key.Load()
		if k&kindMask == kindEmpty {
			return mac, false
		}
		if k&^(genMask<<genShift) != id.key || e.lo.Load() != id.lo || e.hi.Load() != id.hi {
			continue
		}
		return e.take(k, quiet)
	}
	return mac, false
}

// take is the reader's last step: the MAC, if the entry is still that of the key word k.
func (e *entry) take(k uint64, quiet bool) (mac [6]byte, ok bool) {
	m := e.mac.Load()
	if m>>48 != 1<<15|k>>genShift&genMask {
		return mac, false // not usable, or no longer this neighbour's
	}
	if e.used.Load() == 0 && !quiet {
		e.used.Store(1)
	}
	return [6]byte{byte(m), byte(m >> 8), byte(m >> 16), byte(m >> 24), byte(m >> 32), byte(m >> 40)}, true
}

// Quiet is a reader of the same neighbours, as they are now, whose Lookup leaves no mark. It is good for a moment: a rebuild passes it by.
func (n *Neighbors) Quiet() *Neighbors {
	q := &Neighbors{tabs: n.tabs, mask: n.mask, seed: n.seed, capacity: n.capacity, quiet: true}
	q.current.Store(n.current.Load())
	return q
}

// find is the entry of id; writer only. Without one, free is where it would go: the first tombstone, or the empty one
// that ended the search.
func (n *Neighbors) find(id *ident) (e, free *entry) {
	tab := n.tabs[n.current.Load()&1]
	i := n.slot(id)
	for range tab {
		e := &tab[i]
		switch k := e.key.Load(); {
		case k&kindMask == kindEmpty:
			if free == nil {
				free = e
			}
			return nil, free
		case k&kindMask == kindTomb:
			if free == nil {
				free = e
			}
		case k&^(genMask<<genShift) == id.key && e.lo.Load() == id.lo && e.hi.Load() == id.hi:
			return e, nil
		}
		i = (i + 1) & n.mask
	}
	return nil, free
}

// occupy gives a free entry to id, without a MAC.
func (e *entry) occupy(id *ident) {
	g := (e.generation() + 1) & genMask
	e.mac.Store(g << 48)
	// A free entry is not live already; its old address stands until here.
	e.lo.Store(id.lo)
	e.hi.Store(id.hi)
	e.used.Store(0)
	e.key.Store(id.key | g<<genShift)
}

// vacate makes an entry a tombstone or empty. The generation stays and is raised by the next occupy.
func (e *entry) vacate(kind uint64) {
	g := e.generation()
	e.mac.Store(g << 48)
	e.key.Store(kind | g<<genShift)
}

// publish sets what a reader may use.
func (e *entry) publish(mac [6]byte, state State) {
	m := e.generation() << 48
	if state.Usable() {
		m |= macValid | uint64(mac[0]) | uint64(mac[1])<<8 | uint64(mac[2])<<16 | uint64(mac[3])<<24 | uint64(mac[4])<<32 | uint64(mac[5])<<40
	}
	e.raw, e.state = mac, state
	e.mac.Store(m)
}

// Set adds the neighbour or changes it; ns is noted as the time of the change. The error is ErrNeighborsFull: nothing is ever
// pushed out. Writer only.
func (n *Neighbors) Set(iface uint16, family uint8, a *flow.Addr, mac [6]byte, state State, ns uint64) error {
	id := identOf(iface, family, a)
	e, free := n.find(&id)
	if e == nil {
		if n.live >= n.capacity {
			return ErrNeighborsFull
		}
		if free.key.Load()&kindMask == kindTomb {
			n.tombs--
		} else if n.live+n.tombs >= len(n.tabs[0])/4*3 {
			n.rebuild()
			_, free = n.find(&id)
		}
		free.occupy(&id)
		n.live++
		e = free
	}
	e.since = ns
	was := e.mac.Load()
	e.publish(mac, state)
	if n.Changed != nil && was&macValid != 0 && was != e.mac.Load() {
		n.Changed(iface, family, a)
	}
	return nil
}

// rebuild copies the live entries to the other array and switches to it. Readers that still search the old one find
// there what was true before; when that array is used again, generations keep them from a wrong MAC, and a miss makes them look
// again. Writer only.
func (n *Neighbors) rebuild() {
	cur := n.current.Load()
	from, to := n.tabs[cur&1], n.tabs[(cur+1)&1]
	for i := range to {
		if e := &to[i]; e.key.Load()&kindMask != kindEmpty {
			e.vacate(kindEmpty)
		}
	}
	for i := range from {
		e := &from[i]
		k := e.key.Load()
		if k&kindMask != kindLive {
			continue
		}
		id := ident{key: k &^ (genMask << genShift), lo: e.lo.Load(), hi: e.hi.Load()}
		j := n.slot(&id)
		for to[j].key.Load()&kindMask != kindEmpty {
			j = (j + 1) & n.mask
		}
		to[j].occupy(&id)
		to[j].since = e.since
		to[j].used.Store(e.used.Load())
		to[j].publish(e.raw, e.state)
	}
	n.tombs = 0
	n.current.Store(cur + 1)
}

// Delete takes the neighbour out and reports whether it was there. Writer only.
func (n *Neighbors) Delete(iface uint16, family uint8, a *flow.Addr) bool {
	id := identOf(iface, family, a)
	tab := n.tabs[n.current.Load()&1]
	i := n.slot(&id)
	for range tab {
		e := &tab[i]
		k := e.key.Load()
		if k&kindMask == kindEmpty {
			return false
		}
		if k&^(genMask<<genShift) == id.key && e.lo.Load() == id.lo && e.hi.Load() == id.hi {
			was := e.mac.Load()
			n.clear(tab, i)
			if n.Changed != nil && was&macValid != 0 {
				n.Changed(iface, family, a)
			}
			return true
		}
		i = (i + 1) & n.mask
	}
	return false
}

// clear frees slot i. At the end of a run of entries no search needs a tombstone, nor those before it.
func (n *Neighbors) clear(tab []entry, i uint64) {
	n.live--
	if tab[(i+1)&n.mask].key.Load()&kindMask != kindEmpty {
		tab[i].vacate(kindTomb)
		n.tombs++
		return
	}
	tab[i].vacate(kindEmpty)
	for i = (i - 1) & n.mask; tab[i].key.Load()&kindMask == kindTomb; i = (i - 1) & n.mask {
		tab[i].vacate(kindEmpty)
		n.tombs--
	}
}

func (e *entry) view() Neighbor {
	k := e.key.Load()
	v := Neighbor{Iface: uint16(k), Family: uint8(k >> 16), State: e.state, MAC: e.raw, Since: e.since, Used: e.used.Load() != 0}
	binary.LittleEndian.PutUint64(v.Addr[0:8], e.lo.Load())
	binary.LittleEndian.PutUint64(v.Addr[8:16], e.hi.Load())
	return v
}

// Get is the neighbour as the writer knows it, usable or not. It does not mark it as used. Writer only.
func (n *Neighbors) Get(iface uint16, family uint8, a *flow.Addr) (Neighbor, bool) {
	id := identOf(iface, family, a)
	if e, _ := n.find(&id); e != nil {
		return e.view(), true
	}
	return Neighbor{}, false
}

// Each calls fn for every neighbour until it returns false. fn may Delete and may Set neighbours that are there, but must not add
// any. Writer only.
func (n *Neighbors) Each(fn func(Neighbor) bool) {
	tab := n.tabs[n.current.Load()&1]
	for i := range tab {
		if tab[i].key.Load()&kindMask == kindLive && !fn(tab[i].view()) {
			return
		}
	}
}

// Used reports whether a Lookup has found the neighbour since the mark was last cleared, and clears it if asked. Writer only.
func (n *Neighbors) Used(iface uint16, family uint8, a *flow.Addr, clear bool) bool {
	id := identOf(iface, family, a)
	e, _ := n.find(&id)
	if e == nil || e.used.Load() == 0 {
		return false
	}
	if clear {
		e.used.Store(0)
	}
	return true
}

// Len is how many neighbours there are; Capacity how many there may be. Writer only.
func (n *Neighbors) Len() int { return n.live }

// Capacity is how many neighbours there may be.
func (n *Neighbors) Capacity() int { return n.capacity }
