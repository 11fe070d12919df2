package fib

import (
	"math/rand/v2"
	"net/netip"
	"strings"
	"testing"
	"time"

	"demarc/gateway/flow"
)

// seeded is a random source whose seed is printed when the test fails.
func seeded(t testing.TB) *rand.Rand {
	seed := uint64(time.Now().UnixNano())
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("seed %d", seed)
		}
	})
	return rand.New(rand.NewPCG(seed, 1))
}

// linear is the reference: the longest prefix of the zone that contains a.
func linear(routes []Route, zone flow.TenantID, a netip.Addr) (nh uint16, ok bool) {
	best := -1
	for _, r := range routes {
		if r.Zone == zone && r.Prefix.Contains(a) && r.Prefix.Bits() > best {
			best, nh, ok = r.Prefix.Bits(), r.NextHop, true
		}
	}
	return nh, ok
}

// randomPrefix is one of few addresses at many lengths, so that prefixes nest.
func randomPrefix(rng *rand.Rand) netip.Prefix {
	if rng.IntN(2) == 0 {
		a := netip.AddrFrom4([4]byte{198, byte(18 + rng.IntN(2)), byte(rng.IntN(3)), byte(rng.IntN(256))})
		return netip.PrefixFrom(a, rng.IntN(33))
	}
	b := [16]byte{0x20, 1, 0xd, 0xb8, 0, 0, 0, byte(rng.IntN(4))}
	b[15], b[8] = byte(rng.IntN(256)), byte(rng.IntN(4))
	return netip.PrefixFrom(netip.AddrFrom16(b), rng.IntN(129))
}

func TestLookupAgainstLinear(t *testing.T) {
	rng := seeded(t)
	hops := make([]NextHop, 40)
	for i := range hops {
		hops[i] = NextHop{Iface: uint16(i), OnLink: true}
	}
	lists, tries := 0, 0
	for round := range 60 {
		var routes []Route
		seen := map[Route]bool{}
		for range rng.IntN([]int{300, 8 * few}[round%2]) { // about few of each family in a zone, or many
			r := Route{Zone: flow.TenantID(rng.IntN(4) * 5), Prefix: randomPrefix(rng)}
			if k := (Route{Zone: r.Zone, Prefix: r.Prefix.Masked()}); seen[k] {
				continue
			} else {
				seen[k] = true
			}
			r.NextHop = uint16(rng.IntN(len(hops)))
			routes = append(routes, r)
		}
		tab, err := Compile(routes, hops)
		if err != nil {
			t.Fatal(err)
		}
		for range 2000 {
			addr, zone := randomPrefix(rng).Addr(), flow.TenantID(rng.IntN(18))
			family := uint8(6)
			if addr.Is4() {
				family = 4
			}
			a := flow.AddrFrom(addr)
			nh, ok := tab.Lookup(zone, family, &a)
			want, wantOK := linear(routes, zone, addr)
			if nh != want || ok != wantOK {
				t.Fatalf("zone %d, %v: %d %v, want %d %v", zone, addr, nh, ok, want, wantOK)
			}
			if ok && tab.Hop(nh).Iface != nh {
				t.Fatalf("hop %d is %+v", nh, tab.Hop(nh))
			}
			if int(zone) < len(tab.zones) && ok {
				if z := &tab.zones[zone]; family == 4 && z.trie4 || family == 6 && z.trie6 {
					tries++
				} else {
					lists++
				}
			}
		}
	}
	if lists < 5000 || tries < 5000 {
		t.Errorf("%d found in lists, %d in tries: too few", lists, tries)
	}
}

// A list holds as many routes as it may, and the trie what is more, whatever the other family has.
func TestFewRoutesAndOneMore(t *testing.T) {
	hops := []NextHop{{OnLink: true}}
	for n := few - 1; n <= few+2; n++ {
		for other := range 2 {
			var routes []Route
			for i := range n {
				routes = append(routes, Route{Prefix: netip.PrefixFrom(netip.AddrFrom4([4]byte{198, 18, byte(i), 0}), 24)})
				if other == 1 {
					routes = append(routes, Route{Prefix: netip.PrefixFrom(netip.AddrFrom16([16]byte{0x20, 1, 0xd, 0xb8, byte(i)}), 40)})
				}
			}
			tab, err := Compile(routes, hops)
			if err != nil {
				t.Fatal(err)
			}
			if z := &tab.zones[0]; z.trie4 != (n > few) || z.trie6 != (n > few && other == 1) || (z.trie != nil) != (n > few) {
				t.Errorf("%d routes: tries %v and %v", n, z.trie4, z.trie6)
			}
			for i := range n + 1 {
				a, b := flow.Addr{198, 18, byte(i), 7}, flow.Addr{0x20, 1, 0xd, 0xb8, byte(i), 15: 1}
				if _, ok := tab.Lookup(0, 4, &a); ok != (i < n) {
					t.Errorf("of %d routes of IPv4 number %d: %v", n, i, ok)
				}
				if _, ok := tab.Lookup(0, 6, &b); ok != (i < n && other == 1) {
					t.Errorf("of %d routes of IPv6 number %d: %v", n, i, ok)
				}
			}
		}
	}
}

func TestCompileErrors(t *testing.T) {
	p := netip.MustParsePrefix
	v4 := NextHop{Family: 4, Via: flow.AddrFrom(netip.MustParseAddr("192.0.2.1"))}
	for name, tc := range map[string]struct {
		routes []Route
		want   string
	}{
		"no prefix":         {[]Route{{}}, "route 0: invalid prefix"},
		"mapped":            {[]Route{{Prefix: p("::ffff:192.0.2.0/120")}}, "IPv4-mapped"},
		"no such hop":       {[]Route{{Prefix: p("0.0.0.0/0"), NextHop: 2}}, "next hop 2 of 2"},
		"family":            {[]Route{{Prefix: p("0.0.0.0/0")}, {Prefix: p("::/0")}}, "route 1: ::/0: next hop 0 is of family 4"},
		"hop without route": {[]Route{{Prefix: p("::/0"), NextHop: 1}}, "next hop 1 is of family 0"},
		"twice": {[]Route{{Zone: 3, Prefix: p("192.0.2.0/24")}, {Zone: 4, Prefix: p("192.0.2.0/24")}, {Zone: 3, Prefix: p("192.0.2.9/24")}},
			"route 2: 192.0.2.0/24 stands twice in zone 3"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := Compile(tc.routes, []NextHop{v4, {}})
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("error %v, want %q", err, tc.want)
			}
		})
	}
	if _, err := Compile(nil, make([]NextHop, 1<<16+1)); err == nil {
		t.Error("more hops than an index can name")
	}
}

func TestEmptyTable(t *testing.T) {
	tab, err := Compile(nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, ok := tab.Lookup(0, 4, &flow.Addr{}); ok || tab.Hop(0) != nil || tab.Hops() != 0 {
		t.Error("an empty table has a route")
	}
}

// bigTable has n random routes in the backbone, as a full feed would: half /24, the rest shorter, and a default.
func bigTable(tb testing.TB, n int) (*Table, []flow.Addr) {
	rng := rand.New(rand.NewPCG(1, 2))
	routes := []Route{{Prefix: netip.MustParsePrefix("0.0.0.0/0")}}
	seen := map[netip.Prefix]bool{}
	addrs := make([]flow.Addr, 1<<14)
	for len(routes) < n {
		bits := 24
		if rng.IntN(2) == 0 {
			bits = 12 + rng.IntN(12)
		}
		v := rng.Uint32()
		p := netip.PrefixFrom(netip.AddrFrom4([4]byte{byte(v >> 24), byte(v >> 16), byte(v >> 8), byte(v)}), bits).Masked()
		if !seen[p] {
			seen[p] = true
			routes = append(routes, Route{Prefix: p})
		}
	}
	for i := range addrs {
		addrs[i].SetV4(rng.Uint32())
	}
	t, err := Compile(routes, []NextHop{{OnLink: true}})
	if err != nil {
		tb.Fatal(err)
	}
	return t, addrs
}

func TestLookupAllocatesNothing(t *testing.T) {
	tab, addrs := bigTable(t, 1000)
	six := flow.AddrFrom(netip.MustParseAddr("2001:db8::1"))
	if a := testing.AllocsPerRun(100, func() {
		for i := range 50 {
			if _, ok := tab.Lookup(0, 4, &addrs[i]); !ok {
				t.Fatal("no default route")
			}
		}
		tab.Lookup(0, 6, &six)
	}); a != 0 {
		t.Errorf("%v allocations", a)
	}
}

func BenchmarkLookup(b *testing.B) {
	for name, n := range map[string]int{"10": 10, "10k": 10_000, "500k": 500_000} {
		b.Run(name, func(b *testing.B) {
			tab, addrs := bigTable(b, n)
			i := 0
			for b.Loop() {
				if _, ok := tab.Lookup(0, 4, &addrs[i&(1<<14-1)]); !ok {
					b.Fatal("no default route")
				}
				i++
			}
		})
	}
}
