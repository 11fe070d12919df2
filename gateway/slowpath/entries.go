package slowpath

import (
	"demarc/gateway/fib"
	"demarc/gateway/flow"
)

// none ends a chain of indices.
const none = -1

// key identifies a neighbour.
type key struct {
	addr   flow.Addr
	iface  uint16
	family uint8
}

// list says in which order an entry may be given up. Entries in use are in none.
type list int8

const (
	listNone      list = iota
	listFailed         // negative: first to go
	listIdle           // known, but nobody used them of late
	listResolving      // asked, not answered yet: the oldest goes, an answer would have come by now
)

// partyKey is on whose behalf what is asked for: of each interface, each tenant whose packets want it.
type partyKey struct {
	iface uint16
	by    flow.TenantID
}

// party holds the entries of one of them that are not answered. What one party is given up for is its own alone.
type party struct {
	key               partyKey
	failed, resolving ends
	waiting           int   // frames
	at                int32 // in entries.active; none = free
}

func (p *party) n() int { return p.failed.n + p.resolving.n }

// routers is the party of next hops that routes name: what the policy says is never given up for what packets want.
const routers = 0

// entry is one neighbour in any state. The memory of all is taken at New.
type entry struct {
	key   key
	state fib.State
	mac   [6]byte
	host  bool // the kernel resolves it: its packets would be answered to an address that the kernel owns
	tries uint8
	in    list
	by    flow.TenantID // who made it wanted
	route *router       // a route names it; nil = none does

	made      uint64 // ns
	confirmed uint64 // ns, when an answer to us was last seen; 0 = never
	changed   uint64 // ns, when mac was last set
	ahead     bool   // asked for before there was a frame for it, and not answered yet
	wanted    uint64 // ns, when it was last found in use

	due  uint64 // ns, when its timer runs out
	heap int32  // position in the heap of timers

	party      int32 // while it is in listFailed or listResolving
	prev, next int32 // in its list; next also chains free entries

	first, last int32 // frames that wait
	waiting     int32
}

// frame is what stands beside the bytes of one waiting frame.
type frame struct {
	next   int32
	n      int32
	worker int // who handed it over
	group  uint8
}

type ends struct {
	head, tail int32
	n          int
}

// entries is the store of neighbours: index by key, free list, order of giving up, heap of timers, and the frames that wait.
//
// It has many fields because an entry is in several orders at once.
type entries struct {
	index map[key]int32
	all   []entry
	free  int32
	heap  []int32 // by due

	idle       []ends  // by interface
	idlers     []int32 // interfaces of which idle is not empty, in no order; idleAt says where
	idleAt     []int32
	parties    []party // one an entry at most; the first is routers
	byParty    map[partyKey]int32
	active     []int32 // parties in use
	free2      []int32 // parties that are not
	unanswered int     // in all parties but routers

	frames    []frame
	freeFrame int32
	worker    int   // who handed over the frame in hand: of the last take
	group     uint8 // and of which group it is
	mem       []byte
	size      int
	nWaiting  int
}

func (t *entries) init(capacity, frames, size int) {
	t.index = make(map[key]int32, capacity)
	t.all = make([]entry, capacity)
	for i := range t.all {
		t.all[i].next = int32(i) + 1
	}
	t.all[capacity-1].next = none
	t.parties = make([]party, 1, capacity+1)
	t.byParty = make(map[partyKey]int32, capacity)
	t.active, t.free2 = make([]int32, 1, capacity+1), make([]int32, 0, capacity+1)
	t.parties[routers] = party{failed: empty, resolving: empty}
	t.heap = make([]int32, 0, capacity)
	t.frames = make([]frame, frames)
	for i := range t.frames {
		t.frames[i].next = int32(i) + 1
	}
	t.frames[frames-1].next = none
	t.mem, t.size = make([]byte, frames*size), size
}

func (t *entries) len() int { return len(t.index) }

func (t *entries) find(k *key) int32 {
	if i, ok := t.index[*k]; ok {
		return i
	}
	return none
}

// add makes an entry; there is room, which makeRoom has seen to.
func (t *entries) add(k *key, now uint64) int32 {
	i := t.free
	e := &t.all[i]
	t.free = e.next
	*e = entry{key: *k, made: now, prev: none, next: none, first: none, last: none, due: now, heap: int32(len(t.heap))}
	t.index[*k] = i
	t.heap = append(t.heap, i)
	t.up(len(t.heap) - 1)
	return i
}

// remove frees an entry whose frames have been taken.
func (t *entries) remove(i int32) {
	t.enlist(i, listNone)
	e := &t.all[i]
	at, end := int(e.heap), len(t.heap)-1
	t.swap(at, end)
	t.heap = t.heap[:end]
	if at < end {
		t.up(at)
		t.down(at)
	}
	delete(t.index, e.key)
	*e = entry{next: t.free}
	t.free = i
}

var empty = ends{head: none, tail: none}

// interfaces makes room for lists of interfaces up to index n.
func (t *entries) interfaces(n uint16) {
	for len(t.idle) <= int(n) {
		t.idle, t.idleAt = append(t.idle, empty), append(t.idleAt, none)
	}
}

// ends is the list that an entry is in.
func (t *entries) ends(e *entry) *ends {
	switch e.in {
	case listFailed:
		return &t.parties[e.party].failed
	case listResolving:
		return &t.parties[e.party].resolving
	case listIdle:
		return &t.idle[e.key.iface]
	}
	return nil
}

// enlist moves an entry to the end of a list, or out of all.
func (t *entries) enlist(i int32, to list) {
	e := &t.all[i]
	if e.route != nil && to == listIdle {
		to = listNone
	}
	if l := t.ends(e); l != nil {
		if e.prev == none {
			l.head = e.next
		} else {
			t.all[e.prev].next = e.next
		}
		if e.next == none {
			l.tail = e.prev
		} else {
			t.all[e.next].prev = e.prev
		}
		l.n--
		t.left(e)
	}
	e.in, e.prev, e.next = to, none, none
	if to == listNone {
		return
	}
	t.enter(e)
	l := t.ends(e)
	e.prev = l.tail
	if l.tail == none {
		l.head = i
	} else {
		t.all[l.tail].next = i
	}
	l.tail = i
	l.n++
}

// enter prepares the list that an entry comes into.
func (t *entries) enter(e *entry) {
	if e.in == listIdle {
		if at := &t.idleAt[e.key.iface]; *at == none {
			*at = int32(len(t.idlers))
			t.idlers = append(t.idlers, int32(e.key.iface))
		}
		return
	}
	e.party = routers
	if e.route == nil {
		e.party = t.partyOf(partyKey{e.key.iface, e.by})
		t.unanswered++
	}
	t.parties[e.party].waiting += int(e.waiting)
}

// left tidies the list that an entry has gone out of.
func (t *entries) left(e *entry) {
	if e.in == listIdle {
		if l := &t.idle[e.key.iface]; l.n == 0 {
			at, last := t.idleAt[e.key.iface], t.idlers[len(t.idlers)-1]
			t.idlers[at], t.idleAt[last] = last, at
			t.idlers, t.idleAt[e.key.iface] = t.idlers[:len(t.idlers)-1], none
		}
		return
	}
	p := &t.parties[e.party]
	p.waiting -= int(e.waiting)
	if e.party == routers {
		return
	}
	t.unanswered--
	if p.n() > 0 {
		return
	}
	last := t.active[len(t.active)-1]
	t.active[p.at], t.parties[last].at = last, p.at
	t.active, p.at = t.active[:len(t.active)-1], none
	delete(t.byParty, p.key)
	t.free2 = append(t.free2, e.party)
}

// partyOf finds or makes a party.
func (t *entries) partyOf(k partyKey) int32 {
	if i, ok := t.byParty[k]; ok {
		return i
	}
	var i int32
	if n := len(t.free2); n > 0 {
		i, t.free2 = t.free2[n-1], t.free2[:n-1]
	} else {
		i = int32(len(t.parties))
		t.parties = append(t.parties, party{})
	}
	t.parties[i] = party{key: k, failed: empty, resolving: empty, at: int32(len(t.active))}
	t.active, t.byParty[k] = append(t.active, i), i
	return i
}

// greediest is the party, but routers, for which measure is highest, none if it is 0 for all.
func (t *entries) greediest(measure func(*party) int) (best int32) {
	best = none
	most := 0
	for _, i := range t.active {
		if i == routers {
			continue
		}
		if n := measure(&t.parties[i]); n > most {
			best, most = i, n
		}
	}
	return best
}

// arm sets an entry's timer.
func (t *entries) arm(i int32, due uint64) {
	t.all[i].due = due
	t.up(int(t.all[i].heap))
	t.down(int(t.all[i].heap))
}

func (t *entries) less(a, b int) bool { return t.all[t.heap[a]].due < t.all[t.heap[b]].due }

func (t *entries) swap(a, b int) {
	t.heap[a], t.heap[b] = t.heap[b], t.heap[a]
	t.all[t.heap[a]].heap, t.all[t.heap[b]].heap = int32(a), int32(b)
}

func (t *entries) up(i int) {
	for i > 0 {
		p := (i - 1) / 2
		if !t.less(i, p) {
			return
		}
		t.swap(i, p)
		i = p
	}
}

func (t *entries) down(i int) {
	for {
		c := 2*i + 1
		if c >= len(t.heap) {
			return
		}
		if c+1 < len(t.heap) && t.less(c+1, c) {
			c++
		}
		if !t.less(c, i) {
			return
		}
		t.swap(c, i)
		i = c
	}
}

// wait appends a copy of data to the frames of an entry; false when no frame is free.
func (t *entries) wait(i int32, data []byte, worker int, group uint8) bool {
	f := t.freeFrame
	if f == none {
		return false
	}
	t.freeFrame = t.frames[f].next
	t.frames[f] = frame{next: none, n: int32(len(data)), worker: worker, group: group}
	copy(t.mem[int(f)*t.size:], data)
	e := &t.all[i]
	if e.first == none {
		e.first = f
	} else {
		t.frames[e.last].next = f
	}
	e.last = f
	e.waiting++
	t.nWaiting++
	if e.in == listResolving || e.in == listFailed {
		t.parties[e.party].waiting++
	}
	return true
}

// take is the entry's oldest frame, which is valid until the next wait; nil when none waits.
func (t *entries) take(i int32) []byte {
	e := &t.all[i]
	f := e.first
	if f == none {
		return nil
	}
	if e.first = t.frames[f].next; e.first == none {
		e.last = none
	}
	e.waiting--
	t.nWaiting--
	if e.in == listResolving || e.in == listFailed {
		t.parties[e.party].waiting--
	}
	off := int(f) * t.size
	data := t.mem[off : off+int(t.frames[f].n)]
	t.frames[f].next = t.freeFrame
	t.freeFrame = f
	t.worker, t.group = t.frames[f].worker, t.frames[f].group
	return data
}
