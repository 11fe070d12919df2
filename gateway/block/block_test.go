package block

import (
	"math/rand/v2"
	"net/netip"
	"testing"

	"demarc/gateway/flow"
)

// Match against the plain reading of the list: any entry of the side, or of every side, that contains the address and is not over.
func TestMatchAgainstAScan(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 1))
	address := func(six bool) netip.Addr {
		if six {
			return netip.AddrFrom16([16]byte{0x20, 1, 0xd, 0xb8, 14: byte(rng.IntN(4)), 15: byte(rng.IntN(8))})
		}
		return netip.AddrFrom4([4]byte{198, 18, byte(rng.IntN(4)), byte(rng.IntN(8))})
	}
	for range 300 {
		var list []Entry
		for range rng.IntN(40) {
			a := address(rng.IntN(2) == 0)
			p := netip.PrefixFrom(a, a.BitLen()-rng.IntN(12)).Masked()
			list = append(list, Entry{Prefix: p, Any: rng.IntN(3) == 0, Zone: flow.TenantID(rng.IntN(3)), Until: uint64(rng.IntN(100)), Hits: NewHits(2)})
		}
		seen := map[Entry]bool{}
		var unique []Entry
		for _, e := range list { // the node never has two of one side
			k := Entry{Prefix: e.Prefix, Any: e.Any}
			if !e.Any {
				k.Zone = e.Zone
			}
			if !seen[k] {
				seen[k] = true
				unique = append(unique, e)
			}
		}
		for i := range unique {
			if unique[i].Any {
				unique[i].Zone = 0
			}
		}
		l, err := Compile(unique)
		if err != nil {
			t.Fatal(err)
		}
		if (l == nil) != (len(unique) == 0) {
			t.Fatal("an empty list is not nil")
		}
		for range 200 {
			a, zone, now := address(rng.IntN(2) == 0), flow.TenantID(rng.IntN(4)), uint64(rng.IntN(100))
			want := false
			for _, e := range unique {
				want = want || e.Until > now && (e.Any || e.Zone == zone) && e.Prefix.Contains(a)
			}
			family := uint8(4)
			if a.Is6() {
				family = 6
			}
			fa := flow.AddrFrom(a)
			if got := l != nil && l.Match(zone, family, &fa, now, 1); got != want {
				t.Fatalf("%s in zone %d at %d: %v, want %v\n%+v", a, zone, now, got, want, unique)
			}
		}
	}
}

func TestHitsAreCountedPerEntry(t *testing.T) {
	h, other := NewHits(2), NewHits(2)
	l, err := Compile([]Entry{{Prefix: netip.MustParsePrefix("198.18.0.0/16"), Any: true, Until: 10, Hits: h}, {Prefix: netip.MustParsePrefix("192.0.2.1/32"), Any: true, Until: 10, Hits: other}})
	if err != nil {
		t.Fatal(err)
	}
	a := flow.AddrFrom(netip.MustParseAddr("198.18.1.1"))
	if n := testing.AllocsPerRun(99, func() { l.Match(3, 4, &a, 5, 1) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
	l.Match(3, 4, &a, 10, 0) // over
	if h.Sum() != 100 || other.Sum() != 0 {
		t.Errorf("%d and %d hits, want 100 and 0", h.Sum(), other.Sum())
	}
}

func TestTooManyBlocks(t *testing.T) {
	if _, err := Compile(make([]Entry, Max+1)); err == nil {
		t.Error("taken")
	}
}
