package cruise

import (
	"sync"
	"sync/atomic"

	"demarc/gateway/flow"
)

// Neighbor is whom frames leave to, and as whom.
type Neighbor struct {
	Iface  uint16
	Family uint8
	Addr   flow.Addr
	Src    [6]byte
}

// Hops gives numbers to the neighbours that sessions are handed down with. Any goroutine.
type Hops struct {
	t *Tables

	keys []atomic.Pointer[Neighbor] // by number, for Used, which takes no lock

	mu   sync.Mutex
	view uint32 // the generation of the view that hops are made by
	gen  uint32
	at   map[Neighbor]uint32
	by   map[whom][]Neighbor // all hops of a neighbour: there is one for each MAC that we send from
	next uint32
	free []uint32 // below next
}

type whom struct {
	iface  uint16
	family uint8
	addr   flow.Addr
}

// NewHops makes an empty list: no way is found before Renew.
func NewHops(t *Tables) *Hops {
	return &Hops{t: t, keys: make([]atomic.Pointer[Neighbor], len(t.hops)), at: map[Neighbor]uint32{}, by: map[whom][]Neighbor{}}
}

// Renew drops all hops: those to come are made by the view of that generation. What is handed down goes up until it is handed down again.
func (h *Hops) Renew(view uint32) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.view = view
	h.drop()
}

// Drop drops all hops.
func (h *Hops) Drop() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.drop()
}

func (h *Hops) drop() {
	for _, n := range h.at {
		h.t.DropHop(int(n))
	}
	clear(h.at)
	clear(h.by)
	h.next, h.free = 0, nil
}

// Changed drops the hops of a neighbour of which something has changed. The change must be there to be seen before.
func (h *Hops) Changed(iface uint16, family uint8, a *flow.Addr) {
	h.mu.Lock()
	defer h.mu.Unlock()
	w := whom{iface, family, *a}
	for _, k := range h.by[w] {
		n := h.at[k]
		h.t.DropHop(int(n)) // who was handed down with it has its generation
		h.free = append(h.free, n)
		delete(h.at, k)
	}
	delete(h.by, w)
}

// Used calls fn for each neighbour to whom the program has sent something since it was asked last.
func (h *Hops) Used(fn func(*Neighbor)) {
	for n := range h.keys {
		if x := &h.t.hops[n]; x.used.Load() != 0 {
			x.used.Store(0)
			if k := h.keys[n].Load(); k != nil { // of whoever has the number by now
				fn(k)
			}
		}
	}
}

// Find is the way to a neighbour, as who goes by the view of that generation has it; look says how frames leave to it, and is asked while nobody can say that it has changed. False: there is
// none now, or no room for one more, or somebody else is at it: a worker waits for nobody.
func (h *Hops) Find(view uint32, k Neighbor, look func() (Hop, bool)) (Way, bool) {
	if !h.mu.TryLock() {
		return 0, false
	}
	defer h.mu.Unlock()
	if view != h.view {
		return 0, false
	}
	if n, known := h.at[k]; known {
		return h.t.Way(n), true
	}
	hop, ok := look()
	if !ok || len(h.free) == 0 && int(h.next) >= h.t.cfg.Hops {
		return 0, false
	}
	n := h.next
	if last := len(h.free) - 1; last >= 0 {
		n = h.free[last]
	}
	if h.gen++; h.gen == 0 {
		h.gen = 1
	}
	if h.t.SetHop(int(n), hop, h.gen) != nil {
		return 0, false
	}
	if n == h.next {
		h.next++
	} else {
		h.free = h.free[:len(h.free)-1]
	}
	h.at[k] = n
	h.keys[n].Store(&k)
	w := whom{k.Iface, k.Family, k.Addr}
	h.by[w] = append(h.by[w], k)
	return h.t.Way(n), true
}
