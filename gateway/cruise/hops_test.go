package cruise

import (
	"testing"

	"demarc/gateway/flow"
	"demarc/gateway/netlab/roottest"
)

// A hop has another generation whenever something of it may have changed, and none is found that was made by another view.
func TestHopsChangeTheirGeneration(t *testing.T) {
	roottest.Require(t)
	tab, err := Open(Config{Seeds: []uint64{1}, Sessions: SessionUnit, Ports: 1, Interfaces: 1, Tenants: 1, Hops: 2})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := tab.Close(); err != nil {
			t.Error(err)
		}
	}()
	h := NewHops(tab)
	asked := 0
	fine := func() (Hop, bool) { asked++; return Hop{MTU: 1500}, true }
	a, b := Neighbor{Iface: 1, Family: 4, Addr: flow.Addr{1}}, Neighbor{Iface: 1, Family: 4, Addr: flow.Addr{2}}
	as := a // the same neighbour, sent to from a group's MAC
	as.Src[5] = 9
	find := func(view uint32, k Neighbor, want bool) Way {
		t.Helper()
		w, ok := h.Find(view, k, fine)
		if ok != want || ok && tab.Way(uint32(w)) != w {
			t.Fatalf("%+v by view %d: %x, %v", k, view, w, ok)
		}
		return w
	}
	find(1, a, false)
	h.Renew(1)
	if _, ok := h.Find(1, a, func() (Hop, bool) { return Hop{}, false }); ok {
		t.Fatal("a neighbour that nobody knows was found")
	}
	first, other := find(1, a, true), find(1, as, true)
	if again := find(1, a, true); again != first || asked != 2 || first == other {
		t.Errorf("%x, then %x, beside %x, asked %d times", first, again, other, asked)
	}
	find(1, b, false) // there is room for two
	h.Changed(1, 4, &b.Addr)
	h.Changed(2, 4, &a.Addr)
	if tab.Way(uint32(first)) != first {
		t.Error("somebody else's change dropped it")
	}
	h.Changed(1, 4, &a.Addr)
	for _, w := range []Way{first, other} {
		if tab.Way(uint32(w))>>32 != 0 {
			t.Errorf("%x may still be used", w)
		}
	}
	if again := find(1, a, true); again>>32 == first>>32 || again>>32 == other>>32 {
		t.Errorf("after a change %x, before %x and %x", again, first, other)
	}
	find(1, b, true) // in the place of the one that was dropped
	h.Renew(2)
	if tab.Way(uint32(first))>>32 != 0 {
		t.Error("one of the view before may still be used")
	}
	find(1, a, false)
	if w := find(2, b, true); w>>32 == first>>32 {
		t.Errorf("a generation comes again: %x", w)
	}
}
