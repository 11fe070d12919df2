package fib

import (
	"errors"
	"reflect"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/google/go-cmp/cmp"

	"demarc/gateway/flow"
)

func TestEntryIsACacheLine(t *testing.T) {
	if n := reflect.TypeFor[entry]().Size(); n != 64 {
		t.Errorf("%d bytes", n)
	}
}

// ref is what the reference map is keyed by.
type ref struct {
	iface  uint16
	family uint8
	addr   flow.Addr
}

func randomRef(intn func(int) int) ref {
	r := ref{iface: uint16(intn(3)), family: 4}
	r.addr[0], r.addr[3] = 198, byte(intn(60))
	if intn(2) == 0 {
		r.family, r.addr[15] = 6, byte(intn(3)) // also the same first bytes in both families
	}
	return r
}

func TestNeighborsAgainstMap(t *testing.T) {
	rng := seeded(t)
	for range 10 {
		capacity := 1 + rng.IntN(150)
		n := NewNeighbors(capacity, rng.Uint64())
		want := map[ref]Neighbor{}
		last := uint32(0)
		for step := range 20000 {
			k := randomRef(rng.IntN)
			w, known := want[k]
			switch rng.IntN(5) {
			case 0, 1:
				w = Neighbor{Iface: k.iface, Family: k.family, Addr: k.addr, State: State(rng.IntN(int(numStates))),
					MAC: [6]byte{2, byte(rng.Uint32()), byte(rng.Uint32()), 3, 4, byte(rng.Uint32())}, Since: uint64(step), Used: w.Used}
				err := n.Set(k.iface, k.family, &k.addr, w.MAC, w.State, w.Since)
				if full := !known && len(want) == capacity; full != errors.Is(err, ErrNeighborsFull) {
					t.Fatalf("step %d: Set with %d of %d: %v", step, len(want), capacity, err)
				} else if !full {
					want[k] = w
				}
			case 2:
				if got := n.Delete(k.iface, k.family, &k.addr); got != known {
					t.Fatalf("step %d: Delete = %v", step, got)
				}
				delete(want, k)
			case 3:
				mac, ok := n.Lookup(k.iface, k.family, &k.addr)
				if usable := known && w.State.Usable(); ok != usable || ok && mac != w.MAC || !ok && mac != [6]byte{} {
					t.Fatalf("step %d: Lookup = %x %v, want %+v", step, mac, ok, w)
				} else if ok {
					w.Used = true
					want[k] = w
				}
			case 4:
				clear := rng.IntN(2) == 0
				if got := n.Used(k.iface, k.family, &k.addr, clear); got != w.Used {
					t.Fatalf("step %d: Used = %v, want %v", step, got, w.Used)
				}
				if known && clear {
					w.Used = false
					want[k] = w
				}
			}
			last = n.current.Load()
			if step%500 != 0 {
				continue
			}
			got := map[ref]Neighbor{}
			n.Each(func(e Neighbor) bool {
				got[ref{e.Iface, e.Family, e.Addr}] = e
				return true
			})
			if diff := cmp.Diff(want, got); diff != "" || n.Len() != len(want) {
				t.Fatalf("step %d: Len %d of %d\n%s", step, n.Len(), len(want), diff)
			}
			tombs := 0
			for i := range n.tabs[last&1] {
				if n.tabs[last&1][i].key.Load()&kindMask == kindTomb {
					tombs++
				}
			}
			if tombs != n.tombs {
				t.Fatalf("step %d: %d tombstones, counted %d", step, tombs, n.tombs)
			}
			for k, w := range want {
				if e, ok := n.Get(k.iface, k.family, &k.addr); !ok || e != w {
					t.Fatalf("step %d: Get = %+v %v", step, e, ok)
				}
			}
		}
		t.Logf("capacity %d: %d rebuilds", capacity, last)
	}
}

// TestRebuild churns one address after the other through a table that is otherwise full, so that tombstones gather.
func TestRebuild(t *testing.T) {
	n := NewNeighbors(64, 7)
	var a flow.Addr
	for i := range 63 {
		a.SetV4(uint32(i))
		if err := n.Set(1, 4, &a, [6]byte{2, byte(i)}, Permanent, 0); err != nil {
			t.Fatal(err)
		}
	}
	switches, last := 0, n.current.Load()
	for i := range 20000 {
		a.SetV4(uint32(1000 + i))
		if err := n.Set(1, 4, &a, [6]byte{2}, Reachable, 0); err != nil {
			t.Fatal(err)
		}
		if n.live+n.tombs > len(n.tabs[0])/4*3+1 {
			t.Fatalf("%d tombstones in %d slots", n.tombs, len(n.tabs[0]))
		}
		n.Delete(1, 4, &a)
		if c := n.current.Load(); c != last {
			switches, last = switches+1, c
		}
	}
	if switches == 0 {
		t.Error("never rebuilt: this test shows nothing")
	}
	for i := range 63 {
		a.SetV4(uint32(i))
		if mac, ok := n.Lookup(1, 4, &a); !ok || mac[1] != byte(i) {
			t.Errorf("address %d: %x %v", i, mac, ok)
		}
	}
}

// TestReadersNeverMix has a writer that reuses entries for other addresses and changes MACs as fast as it can, while
// readers check that a MAC is one that belongs to the address that they asked for, whole, and that an address which is always there
// is always found.
func TestReadersNeverMix(t *testing.T) {
	const hosts, pinned, rounds = 48, 4, 60_000
	n := NewNeighbors(8, 3) // few slots for many addresses: each is reused all the time
	addr := func(i int) (a flow.Addr) {
		a.SetV4(uint32(i))
		a[8], a[15] = byte(i), byte(i) // both words differ
		return a
	}
	mac := func(i, version int) [6]byte {
		v := byte(version)
		return [6]byte{byte(i), v, byte(i) ^ v, v, byte(i), ^v}
	}
	set := func(i, version int) {
		a := addr(i)
		if err := n.Set(1, 6, &a, mac(i, version), Reachable, 0); err != nil {
			t.Error(err)
		}
	}
	for i := range pinned {
		set(i, 0)
	}
	var stop atomic.Bool
	var found, missed atomic.Int64
	var wg sync.WaitGroup
	for r := range 3 {
		wg.Go(func() {
			for k := r; !stop.Load(); k++ {
				i := k % hosts
				a := addr(i)
				m, ok := n.Lookup(1, 6, &a)
				switch {
				case ok && m != mac(i, int(m[1])):
					t.Errorf("address %d got %x", i, m)
					return
				case ok:
					found.Add(1)
				case i < pinned:
					t.Errorf("address %d was not found, though it is always there", i)
					return
				default:
					missed.Add(1)
				}
			}
		})
	}
	rng := seeded(t)
	for round := range rounds {
		i := pinned + rng.IntN(hosts-pinned)
		a := addr(i)
		if n.Len() == n.Capacity() || rng.IntN(2) == 0 {
			for !n.Delete(1, 6, &a) && n.Len() == n.Capacity() {
				i = pinned + rng.IntN(hosts-pinned)
				a = addr(i)
			}
		}
		if n.Len() < n.Capacity() {
			set(i, round)
		}
		set(rng.IntN(pinned), round)
		if round%8 == 0 {
			n.rebuild() // seldom needed in so small a table
		}
	}
	stop.Store(true)
	wg.Wait()
	if found.Load() == 0 || missed.Load() == 0 || n.current.Load() < 10 {
		t.Errorf("%d found, %d missed, %d rebuilds: this test shows nothing", found.Load(), missed.Load(), n.current.Load())
	}
}

// TestStoppedReader stops a reader between its key compare and its load of the MAC, while the entry gets another address. The
// race itself is a nanosecond wide; TestReadersNeverMix seldom hits it.
func TestStoppedReader(t *testing.T) {
	n := NewNeighbors(1, 5) // two slots: addresses soon share one
	var a, b flow.Addr
	a.SetV4(1)
	if err := n.Set(1, 4, &a, [6]byte{2, 1}, Reachable, 0); err != nil {
		t.Fatal(err)
	}
	id := identOf(1, 4, &a)
	e, _ := n.find(&id)
	k := e.key.Load()
	if mac, ok := e.take(k, false); !ok || mac != [6]byte{2, 1} {
		t.Fatalf("%x %v", mac, ok)
	}
	n.Delete(1, 4, &a)
	if _, ok := e.take(k, false); ok {
		t.Error("found after Delete")
	}
	reused := false
	for i := uint32(2); i < 100 && !reused; i++ {
		b.SetV4(i)
		if err := n.Set(1, 4, &b, [6]byte{2, byte(i)}, Reachable, 0); err != nil {
			t.Fatal(err)
		}
		idb := identOf(1, 4, &b)
		f, _ := n.find(&idb)
		reused = f == e
		if mac, ok := e.take(k, false); ok {
			t.Fatalf("the reader of %x got %x, which is %x's", a[:4], mac, b[:4])
		}
		n.Delete(1, 4, &b)
	}
	if !reused {
		t.Error("the entry was never used again: this test shows nothing")
	}
}

func TestStates(t *testing.T) {
	usable := map[State]bool{Reachable: true, Stale: true, Delay: true, Probe: true, Permanent: true}
	for s := range numStates {
		if s.Usable() != usable[s] || s.String() == "" || s.String() == "invalid" {
			t.Errorf("%v: usable %v", s, s.Usable())
		}
	}
	if numStates.String() != "invalid" || numStates.Usable() {
		t.Error("a state that is none")
	}
}

func TestNeighborsAllocateNothing(t *testing.T) {
	n := NewNeighbors(100, 1)
	var a flow.Addr
	i := uint32(0)
	if allocs := testing.AllocsPerRun(1000, func() {
		a.SetV4(i)
		i++
		if err := n.Set(1, 4, &a, [6]byte{2}, Reachable, 1); err != nil {
			t.Fatal(err)
		}
		n.Lookup(1, 4, &a)
		n.Used(1, 4, &a, true)
		n.Get(1, 4, &a)
		if i%50 != 0 {
			n.Delete(1, 4, &a)
		}
	}); allocs != 0 {
		t.Errorf("%v allocations", allocs)
	}
}

func BenchmarkNeighbor(b *testing.B) {
	for name, count := range map[string]int{"4": 4, "1k": 1 << 10, "16k": 1 << 14} {
		b.Run(name, func(b *testing.B) {
			n := NewNeighbors(count, 1)
			addrs := make([]flow.Addr, count)
			for i := range addrs {
				addrs[i].SetV4(uint32(i) * 2654435761)
				if err := n.Set(1, 4, &addrs[i], [6]byte{2}, Reachable, 0); err != nil {
					b.Fatal(err)
				}
			}
			i := 0
			for b.Loop() {
				if _, ok := n.Lookup(1, 4, &addrs[i&(count-1)]); !ok {
					b.Fatal("not found")
				}
				i += 7
			}
		})
	}
}

// Who asks is told when what readers were told is no longer so, and of nothing else.
func TestChangedIsTold(t *testing.T) {
	n := NewNeighbors(4, 1)
	told := 0
	a, b := flow.Addr{198, 18, 0, 1}, flow.Addr{198, 18, 0, 2}
	n.Changed = func(iface uint16, family uint8, x *flow.Addr) {
		if iface != 1 || family != 4 || *x != a {
			t.Errorf("%d %d %v", iface, family, x)
		}
		told++
	}
	one, two := [6]byte{2, 1}, [6]byte{2, 2}
	for i, s := range []struct {
		do   func() error
		want int
	}{
		{func() error { return n.Set(1, 4, &a, one, Reachable, 1) }, 0},
		{func() error { return n.Set(1, 4, &a, one, Stale, 2) }, 0},
		{func() error { return n.Set(1, 4, &b, two, Reachable, 2) }, 0},
		{func() error { return n.Set(1, 4, &a, two, Reachable, 3) }, 1},
		{func() error { return n.Set(1, 4, &a, two, Unreachable, 4) }, 1},
		{func() error { return n.Set(1, 4, &a, two, Incomplete, 5) }, 0},
		{func() error { n.Delete(1, 4, &a); return nil }, 0},
		{func() error { return n.Set(1, 4, &a, one, Permanent, 6) }, 0},
		{func() error { n.Delete(1, 4, &a); return nil }, 1},
	} {
		told = 0
		if err := s.do(); err != nil || told != s.want {
			t.Errorf("step %d: told %d times, want %d; %v", i, told, s.want, err)
		}
	}
}
