package acl_test

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"demarc/acl"
	"demarc/acl/aclgen"
	"demarc/acl/aclref"
)

func pfx(s ...string) (out []netip.Prefix) {
	for _, x := range s {
		out = append(out, netip.MustParsePrefix(x))
	}
	return out
}

func rng(lo, hi string) [][2]netip.Addr {
	return [][2]netip.Addr{{netip.MustParseAddr(lo), netip.MustParseAddr(hi)}}
}

func key(src, dst string, proto uint8, sport, dport uint16) acl.Key {
	s, d := netip.MustParseAddr(src), netip.MustParseAddr(dst)
	k := acl.Key{SPort: sport, DPort: dport, Proto: proto, Family: 4}
	copy(k.Src[:], s.AsSlice())
	copy(k.Dst[:], d.AsSlice())
	if s.Is6() {
		k.Family = 6
	}
	return k
}

func svc(proto uint8, lo, hi uint16) []acl.Service {
	return []acl.Service{{Proto: proto, SPortHi: 65535, DPortLo: lo, DPortHi: hi}}
}

func at(i uint32, allow bool) acl.Match { return acl.Match{Index: i, Found: true, Allow: allow} }

func TestLookup(t *testing.T) {
	for _, tc := range []struct {
		name  string
		rules []acl.Rule
		key   acl.Key
		want  acl.Match
	}{
		{"no rules", nil, key("198.18.0.1", "192.0.2.1", 6, 1, 2), acl.Match{}},
		{"a rule without conditions matches IPv4", []acl.Rule{{Allow: true}}, key("198.18.0.1", "192.0.2.1", 6, 1, 2), at(0, true)},
		{"and IPv6", []acl.Rule{{Allow: true}}, key("2001:db8::1", "2001:db8::2", 6, 1, 2), at(0, true)},
		{"and a mapped address as IPv6", []acl.Rule{{From: pfx("::/0"), Allow: true}}, key("::ffff:1.2.3.4", "2001:db8::2", 6, 1, 2), at(0, true)},
		{"but no other family", []acl.Rule{{Allow: true}}, acl.Key{Family: 5}, acl.Match{}},
		{"first match decides", []acl.Rule{{From: pfx("198.18.0.0/24")}, {Allow: true}}, key("198.18.0.1", "192.0.2.1", 6, 1, 2), at(0, false)},
		{"a narrow rule behind a wide one never matches", []acl.Rule{{From: pfx("198.18.0.0/15")}, {From: pfx("198.18.0.1/32"), Allow: true}}, key("198.18.0.1", "192.0.2.1", 6, 1, 2), at(0, false)},
		{"IPv4 alone keeps IPv6 out", []acl.Rule{{From: pfx("0.0.0.0/0"), Allow: true}}, key("2001:db8::1", "2001:db8::2", 6, 1, 2), acl.Match{}},
		{"families may mix in one rule", []acl.Rule{{From: pfx("198.18.0.0/24", "2001:db8::/32"), Allow: true}}, key("2001:db8::1", "2001:db8::2", 6, 1, 2), at(0, true)},
		{"sides of different families never match", []acl.Rule{{From: pfx("198.18.0.0/24"), To: pfx("2001:db8::/32")}}, key("198.18.0.1", "192.0.2.1", 6, 1, 2), acl.Match{}},
		{"range, first address", []acl.Rule{{FromRanges: rng("198.18.0.5", "198.18.0.9")}}, key("198.18.0.5", "192.0.2.1", 6, 1, 2), at(0, false)},
		{"range, last address", []acl.Rule{{FromRanges: rng("198.18.0.5", "198.18.0.9")}}, key("198.18.0.9", "192.0.2.1", 6, 1, 2), at(0, false)},
		{"range, beyond", []acl.Rule{{FromRanges: rng("198.18.0.5", "198.18.0.9")}}, key("198.18.0.10", "192.0.2.1", 6, 1, 2), acl.Match{}},
		{"range across the halves of an IPv6 address", []acl.Rule{{ToRanges: rng("2001:db8::ffff:ffff:ffff:fff0", "2001:db8:0:1::10")}}, key("2001:db8::1", "2001:db8:0:1::10", 6, 1, 2), at(0, false)},
		{"and beyond it", []acl.Rule{{ToRanges: rng("2001:db8::ffff:ffff:ffff:fff0", "2001:db8:0:1::10")}}, key("2001:db8::1", "2001:db8:0:1::11", 6, 1, 2), acl.Match{}},
		{"highest address", []acl.Rule{{To: pfx("255.255.255.255/32")}}, key("198.18.0.1", "255.255.255.255", 17, 1, 2), at(0, false)},
		{"highest IPv6 address", []acl.Rule{{To: pfx("ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff/128")}}, key("2001:db8::1", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", 17, 1, 2), at(0, false)},
		{"host bits of a prefix do not matter", []acl.Rule{{From: pfx("198.18.0.77/24")}}, key("198.18.0.1", "192.0.2.1", 6, 1, 2), at(0, false)},
		{"port range, last", []acl.Rule{{Services: svc(6, 1000, 2000)}}, key("198.18.0.1", "192.0.2.1", 6, 1, 2000), at(0, false)},
		{"port range, beyond", []acl.Rule{{Services: svc(6, 1000, 2000)}}, key("198.18.0.1", "192.0.2.1", 6, 1, 2001), acl.Match{}},
		{"port 65535", []acl.Rule{{Services: svc(6, 65535, 65535)}}, key("198.18.0.1", "192.0.2.1", 6, 1, 65535), at(0, false)},
		{"right port, wrong protocol", []acl.Rule{{Services: svc(6, 1000, 2000)}}, key("198.18.0.1", "192.0.2.1", 17, 1, 1500), acl.Match{}},
		{"zero ports mean port 0", []acl.Rule{{Services: []acl.Service{{Proto: 47}}}}, key("198.18.0.1", "192.0.2.1", 47, 0, 0), at(0, false)},
		{"any protocol ignores ports", []acl.Rule{{Services: []acl.Service{{AnyProto: true}}}}, key("198.18.0.1", "192.0.2.1", 6, 7, 8), at(0, false)},
		{"protocol 255", []acl.Rule{{Services: []acl.Service{{Proto: 255}}}}, key("198.18.0.1", "192.0.2.1", 255, 0, 0), at(0, false)},
		{"ICMP type, any code", []acl.Rule{{Services: svc(1, 8<<8, 8<<8|255)}}, key("198.18.0.1", "192.0.2.1", 1, 77, 8<<8), at(0, false)},
		{"ICMP type, another", []acl.Rule{{Services: svc(1, 8<<8, 8<<8|255)}}, key("198.18.0.1", "192.0.2.1", 1, 77, 0), acl.Match{}},
		{"ICMP code", []acl.Rule{{Services: svc(1, 3<<8|4, 3<<8|4)}}, key("198.18.0.1", "192.0.2.1", 1, 77, 3<<8|3), acl.Match{}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			p, err := acl.Compile(tc.rules)
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(tc.want, p.Lookup(&tc.key)); d != "" {
				t.Errorf("compiled (-want +got):\n%s", d)
			}
			if d := cmp.Diff(tc.want, aclref.Lookup(tc.rules, &tc.key)); d != "" {
				t.Errorf("reference (-want +got):\n%s", d)
			}
		})
	}
}

func TestBytesBehindAnIPv4AddressDoNotMatter(t *testing.T) {
	p, err := acl.Compile([]acl.Rule{{From: pfx("198.18.0.1/32"), To: pfx("192.0.2.1/32"), Allow: true}})
	if err != nil {
		t.Fatal(err)
	}
	k := key("198.18.0.1", "192.0.2.1", 6, 1, 2)
	k.Src[9], k.Dst[15] = 7, 7
	if m := p.Lookup(&k); m != at(0, true) {
		t.Errorf("got %+v", m)
	}
}

func TestCompileRefuses(t *testing.T) {
	var many []netip.Prefix
	for i := range 257 {
		many = append(many, netip.PrefixFrom(netip.AddrFrom4([4]byte{198, 18, byte(i >> 7), byte(i << 1)}), 32))
	}
	four, six := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1")
	for _, tc := range []struct {
		name string
		rule acl.Rule
		want string
	}{
		{"ports the wrong way round", acl.Rule{Services: svc(6, 9, 8)}, "destination ports 9-8"},
		{"source ports the wrong way round", acl.Rule{Services: []acl.Service{{Proto: 6, SPortLo: 9, SPortHi: 8}}}, "source ports 9-8"},
		{"any protocol with a port", acl.Rule{Services: []acl.Service{{AnyProto: true, DPortLo: 53, DPortHi: 53}}}, "any protocol"},
		{"any protocol with a protocol", acl.Rule{Services: []acl.Service{{AnyProto: true, Proto: 6}}}, "any protocol"},
		{"empty prefix", acl.Rule{From: make([]netip.Prefix, 1)}, "from: the address is empty"},
		{"bad length", acl.Rule{To: []netip.Prefix{netip.PrefixFrom(four, 33)}}, "to: the prefix length"},
		{"mapped prefix", acl.Rule{To: pfx("::ffff:192.0.2.0/120")}, "write 192.0.2.0"},
		{"range of two families", acl.Rule{FromRanges: [][2]netip.Addr{{four, six}}}, "different families"},
		{"range the wrong way round", acl.Rule{FromRanges: rng("192.0.2.9", "192.0.2.8")}, "above the last"},
		{"zone", acl.Rule{FromRanges: [][2]netip.Addr{{six.WithZone("x"), six}}}, "zone"},
		{"too many combinations", acl.Rule{From: many, To: many}, "257 sources times 257 destinations"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			p, err := acl.Compile([]acl.Rule{{}, {}, tc.rule})
			if err == nil || p != nil || !strings.HasPrefix(err.Error(), "rule 2: ") || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("got %v, want an error about rule 2 with %q", err, tc.want)
			}
		})
	}
}

func TestAdjacentPrefixesAreOneInterval(t *testing.T) {
	var r acl.Rule
	for i := range 1 << 12 { // 4096 * 4096 combinations if they were not joined
		p := netip.PrefixFrom(netip.AddrFrom4([4]byte{198, 18, byte(i >> 8), byte(i)}), 32)
		r.From, r.To = append(r.From, p), append(r.To, p)
	}
	if _, err := acl.Compile([]acl.Rule{r}); err != nil {
		t.Error(err)
	}
}

func TestListBound(t *testing.T) {
	var r acl.Rule
	for i := range 250 {
		p := netip.PrefixFrom(netip.AddrFrom4([4]byte{198, 18, byte(i), 0}), 32)
		r.From, r.To = append(r.From, p), append(r.To, p)
	}
	rules := make([]acl.Rule, 20)
	for i := range rules {
		rules[i] = r
	}
	if _, err := acl.Compile(rules); err == nil || !strings.Contains(err.Error(), "rule 16: ") {
		t.Errorf("got %v, want an error that names rule 16", err)
	}
}

// TestLargestList compiles as many boxes as a list may have, none of which can be joined, and looks some up.
func TestLargestList(t *testing.T) {
	rules := make([]acl.Rule, 16)
	for i := range rules {
		for j := range 256 {
			rules[i].From = append(rules[i].From, netip.PrefixFrom(netip.AddrFrom4([4]byte{198, 18, byte(j), byte(2 * i)}), 32))
			rules[i].To = append(rules[i].To, netip.PrefixFrom(netip.AddrFrom4([4]byte{192, byte(j), 2, byte(2 * i)}), 32))
		}
	}
	start := time.Now()
	check(t, rules, aclgen.Keys(1, rules, 200))
	t.Logf("%v", time.Since(start))
}

// check compares the two on keys and says where they differ.
func check(t interface {
	Helper()
	Fatalf(string, ...any)
}, rules []acl.Rule, keys []acl.Key) {
	t.Helper()
	p, err := acl.Compile(rules)
	if err != nil {
		t.Fatalf("compile: %v", err)
	}
	for i := range keys {
		want, got := aclref.Lookup(rules, &keys[i]), p.Lookup(&keys[i])
		if got != want {
			t.Fatalf("key %+v: got %+v, want %+v", keys[i], got, want)
		}
	}
}

// crowded draws lists whose ends fall on the same few values, so that boxes overlap, touch, nest and repeat.
type crowded struct{ *rand.Rand }

func (c crowded) addr(v6 bool) netip.Addr {
	b := []byte{0, 1, 2, 127, 128, 254, 255}
	pick := func() byte { return b[c.IntN(len(b))] }
	if v6 {
		var a [16]byte
		for _, i := range []int{0, 7, 8, 15} {
			a[i] = pick()
		}
		a[0] |= 1 // never an IPv4-mapped one
		return netip.AddrFrom16(a)
	}
	return netip.AddrFrom4([4]byte{pick(), 0, 0, pick()})
}

func (c crowded) side(v6, mixed bool) (ps []netip.Prefix, rs [][2]netip.Addr) {
	for range c.IntN(3) {
		f := v6 != (mixed && c.IntN(2) == 0)
		a, b := c.addr(f), c.addr(f)
		if c.IntN(2) == 0 {
			ps = append(ps, netip.PrefixFrom(a, c.IntN(a.BitLen()+1)))
			continue
		}
		if b.Less(a) {
			a, b = b, a
		}
		rs = append(rs, [2]netip.Addr{a, b})
	}
	return ps, rs
}

func (c crowded) ports() (lo, hi uint16) {
	v := []uint16{0, 1, 2, 1023, 1024, 3 << 8, 8 << 8, 8<<8 | 255, 65534, 65535}
	lo, hi = v[c.IntN(len(v))], v[c.IntN(len(v))]
	switch {
	case c.IntN(3) == 0:
		return 0, 65535
	case lo > hi:
		return hi, lo
	}
	return lo, hi
}

func (c crowded) rule(v6 bool) (r acl.Rule) {
	mixed := c.IntN(3) == 0
	r.Allow = c.IntN(2) == 0
	r.From, r.FromRanges = c.side(v6, mixed)
	r.To, r.ToRanges = c.side(v6, mixed)
	for range c.IntN(4) {
		if c.IntN(8) == 0 {
			r.Services = append(r.Services, acl.Service{AnyProto: true})
			continue
		}
		s := acl.Service{Proto: []uint8{0, 1, 6, 17, 58, 255}[c.IntN(6)]}
		s.SPortLo, s.SPortHi = c.ports()
		s.DPortLo, s.DPortHi = c.ports()
		r.Services = append(r.Services, s)
	}
	return r
}

func (c crowded) rules(n int) (out []acl.Rule) {
	for range n {
		if len(out) > 0 && c.IntN(10) == 0 {
			out = append(out, out[c.IntN(len(out))])
			continue
		}
		out = append(out, c.rule(c.IntN(2) == 0))
	}
	return out
}

// narrow drops the rules without any condition, behind which nothing would be tested.
func narrow(in []acl.Rule) (out []acl.Rule) {
	for _, r := range in {
		if len(r.From)+len(r.FromRanges)+len(r.To)+len(r.ToRanges) >= 2 && len(r.Services) > 0 {
			out = append(out, r)
		}
	}
	return out
}

func TestEqualsReferenceCrowded(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	c := crowded{rand.New(rand.NewPCG(seed, 1))}
	for i := range 300 {
		rules := c.rules(1 + c.IntN(40))
		if i%3 != 0 {
			rules = narrow(c.rules(100 + c.IntN(300)))
		}
		check(t, rules, aclgen.Keys(c.Uint64(), rules, 300))
	}
}

func TestEqualsReferenceGenerated(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	for i, kind := range aclgen.Kinds {
		for _, n := range []int{1, 2, 5, 17, 100, 2000} {
			for _, v6 := range []float64{0, 0.5, 1} {
				rules := aclgen.Rules(seed+uint64(i), n, aclgen.Options{Kind: kind, V6: v6})
				check(t, rules, aclgen.Keys(seed^uint64(n), rules, 500))
			}
		}
	}
}

// TestEqualsReferenceHostile takes the lists that are the worst for a tree.
func TestEqualsReferenceHostile(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	for _, h := range hostile {
		rules := h.make(seed, 1500)
		check(t, rules, aclgen.Keys(seed, rules, 1000))
	}
}

var hostile = []struct {
	name string
	make func(seed uint64, n int) []acl.Rule
}{
	{"boxes", boxes}, {"concentric", concentric}, {"planes", planes}, {"stairs", stairs},
}

func v4(x uint64) netip.Addr {
	return netip.AddrFrom4([4]byte{byte(x >> 24), byte(x >> 16), byte(x >> 8), byte(x)})
}

// span is a range of random ends below limit.
func span(r *rand.Rand, limit uint64) (uint64, uint64) {
	a, b := r.Uint64N(limit), r.Uint64N(limit)
	return min(a, b), max(a, b)
}

func ranged(r *rand.Rand, from, to, sport, dport bool) (out acl.Rule) {
	if from {
		lo, hi := span(r, 1<<32)
		out.FromRanges = [][2]netip.Addr{{v4(lo), v4(hi)}}
	}
	if to {
		lo, hi := span(r, 1<<32)
		out.ToRanges = [][2]netip.Addr{{v4(lo), v4(hi)}}
	}
	s := acl.Service{Proto: 6 + 11*uint8(r.IntN(2)), SPortHi: 65535, DPortHi: 65535}
	if sport {
		lo, hi := span(r, 1<<16)
		s.SPortLo, s.SPortHi = uint16(lo), uint16(hi)
	}
	if dport {
		lo, hi := span(r, 1<<16)
		s.DPortLo, s.DPortHi = uint16(lo), uint16(hi)
	}
	out.Services = []acl.Service{s}
	out.Allow = r.IntN(2) == 0
	return out
}

// boxes are large random ranges in every dimension: each cut goes through half of them.
func boxes(seed uint64, n int) (out []acl.Rule) {
	r := rand.New(rand.NewPCG(seed, 2))
	for range n {
		out = append(out, ranged(r, true, true, true, true))
	}
	return out
}

// planes name a range in two of the four dimensions and leave the others open.
func planes(seed uint64, n int) (out []acl.Rule) {
	r := rand.New(rand.NewPCG(seed, 3))
	for range n {
		var d [4]bool
		d[r.IntN(4)], d[r.IntN(4)] = true, true
		out = append(out, ranged(r, d[0], d[1], d[2], d[3]))
	}
	return out
}

// concentric are ranges one within the other, the innermost first, so that each can be the first match.
func concentric(seed uint64, n int) (out []acl.Rule) {
	r := rand.New(rand.NewPCG(seed, 4))
	for i := range uint64(n) {
		x := ranged(r, false, false, false, false)
		x.FromRanges = [][2]netip.Addr{{v4(1<<31 - 1000*i), v4(1<<31 + 1000*i)}}
		x.ToRanges = [][2]netip.Addr{{v4(1<<31 - 999*i), v4(1<<31 + 1001*i)}}
		out = append(out, x)
	}
	return out
}

// stairs are ranges that each overlap thousands of their neighbours, on both sides, in random order.
func stairs(seed uint64, n int) (out []acl.Rule) {
	r := rand.New(rand.NewPCG(seed, 5))
	for _, i := range r.Perm(n) {
		x := ranged(r, false, false, false, false)
		a, w := uint64(i)*(1<<31/uint64(n)), uint64(1<<30)
		x.FromRanges = [][2]netip.Addr{{v4(a), v4(a + w)}}
		x.ToRanges = [][2]netip.Addr{{v4(1<<31 - a), v4(1<<31 - a + w)}}
		out = append(out, x)
	}
	return out
}

func TestEqualsReferenceRapid(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		seed := rapid.Uint64().Draw(t, "seed")
		c := crowded{rand.New(rand.NewPCG(seed, 3))}
		rules := c.rules(rapid.IntRange(0, 60).Draw(t, "rules"))
		check(t, rules, aclgen.Keys(seed, rules, 100))
	})
}

func TestLastOnly(t *testing.T) {
	keys := aclgen.Inside(7, 100)
	for i, kind := range aclgen.Kinds {
		rules := aclgen.LastOnly(11, 1000, aclgen.Options{Kind: kind}, keys...)
		p, err := acl.Compile(rules)
		if err != nil {
			t.Fatal(err)
		}
		for _, k := range keys {
			if m := p.Lookup(&k); m != at(999, true) {
				t.Fatalf("%s: key %+v: got %+v, want the last rule", aclgen.KindNames[i], k, m)
			}
		}
	}
}

func TestCompileIsDeterministic(t *testing.T) {
	rules := aclgen.Rules(5, 500, aclgen.Options{Kind: aclgen.Firewall, V6: 0.3})
	a, err := acl.Compile(rules)
	if err != nil {
		t.Fatal(err)
	}
	b, _ := acl.Compile(rules)
	if !reflect.DeepEqual(a, b) {
		t.Error("two compilations of one list differ")
	}
}

func TestLookupDoesNotAllocate(t *testing.T) {
	for _, v6 := range []float64{0, 1} {
		rules := aclgen.Rules(3, 1000, aclgen.Options{V6: v6})
		p, err := acl.Compile(rules)
		if err != nil {
			t.Fatal(err)
		}
		keys := aclgen.Keys(4, rules, 64)
		i := 0
		if n := testing.AllocsPerRun(1000, func() { p.Lookup(&keys[i&63]); i++ }); n != 0 {
			t.Errorf("%v allocations a lookup", n)
		}
	}
}

func TestBytes(t *testing.T) {
	small, err := acl.Compile(aclgen.Rules(1, 5, aclgen.Options{V6: 0.3}))
	if err != nil {
		t.Fatal(err)
	}
	if n := small.Bytes(); n > 4096 {
		t.Errorf("5 rules take %d bytes: a thousand tenants with a few rules each must be cheap", n)
	}
	for i, kind := range aclgen.Kinds {
		p, err := acl.Compile(aclgen.Rules(1, 10000, aclgen.Options{Kind: kind, V6: 0.2}))
		if err != nil {
			t.Fatal(err)
		}
		if n := p.Bytes(); n > 20<<20 {
			t.Errorf("%s: 10,000 rules take %d bytes", aclgen.KindNames[i], n)
		}
	}
}

var sizes = []int{10, 1000, 10000, 100000}

// BenchmarkLookup: "last" asks with keys that only the last rule matches; "random" with new sessions from inside; "near" with keys drawn around the rules.
func BenchmarkLookup(b *testing.B) {
	last := aclgen.Inside(7, 64)
	for i, kind := range aclgen.Kinds {
		for _, n := range sizes {
			for _, what := range []string{"last", "random", "near"} {
				b.Run(fmt.Sprintf("%s/%d/%s", aclgen.KindNames[i], n, what), func(b *testing.B) {
					keys, rules := last, []acl.Rule(nil)
					if what == "last" {
						rules = aclgen.LastOnly(11, n, aclgen.Options{Kind: kind}, last...)
					} else {
						rules = aclgen.Rules(11, n, aclgen.Options{Kind: kind})
					}
					switch what {
					case "random":
						keys = aclgen.Inside(9, 4096)
					case "near":
						keys = only4(aclgen.Keys(12, rules, 8192))[:4096]
					}
					bench(b, rules, keys)
				})
			}
		}
	}
}

// BenchmarkLookupHostile has lists made to be hard for a tree, asked with keys that no rule matches but the last.
func BenchmarkLookupHostile(b *testing.B) {
	for _, h := range hostile {
		for _, n := range []int{1000, 10000} {
			b.Run(fmt.Sprintf("%s/%d", h.name, n), func(b *testing.B) {
				keys := aclgen.Inside(7, 64)
				var rules []acl.Rule
				for _, r := range h.make(1, 2*n) {
					if len(rules) < n-1 && !slices.ContainsFunc(keys, func(k acl.Key) bool { return aclref.Matches(&r, &k) }) {
						rules = append(rules, r)
					}
				}
				bench(b, append(rules, acl.Rule{}), keys)
			})
		}
	}
}

// BenchmarkCompileHostile compiles them.
func BenchmarkCompileHostile(b *testing.B) {
	for _, h := range hostile {
		for _, n := range []int{10000, 100000} {
			b.Run(fmt.Sprintf("%s/%d", h.name, n), func(b *testing.B) {
				rules := h.make(1, n)
				for b.Loop() {
					p, err := acl.Compile(rules)
					if err != nil {
						b.Fatal(err)
					}
					b.ReportMetric(float64(p.Bytes()), "bytes")
				}
			})
		}
	}
}

// BenchmarkLookupTenants asks a thousand small programs in turn: what it costs when none of them is in the cache near the core.
func BenchmarkLookupTenants(b *testing.B) {
	for _, n := range []int{10, 100, 1000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			var ps [1000]*acl.Program
			bytes := 0
			for i := range ps {
				ps[i], _ = acl.Compile(aclgen.Rules(uint64(i), n, aclgen.Options{V6: 0.2}))
				bytes += ps[i].Bytes()
			}
			keys := aclgen.Inside(7, 4096)
			i := uint32(0)
			for b.Loop() {
				m := ps[i*2654435761>>8%1000].Lookup(&keys[i&4095])
				i += 1 + m.Index>>31
			}
			b.ReportMetric(float64(bytes), "bytes")
		})
	}
}

// BenchmarkLookup6 is the same with IPv6.
func BenchmarkLookup6(b *testing.B) {
	for _, n := range sizes {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			rules := aclgen.Rules(11, n, aclgen.Options{V6: 1})
			bench(b, rules, aclgen.Keys(12, rules, 4096))
		})
	}
}

func only4(in []acl.Key) (out []acl.Key) {
	for len(out) < 4096 {
		for _, k := range in {
			if k.Family == 4 {
				out = append(out, k)
			}
		}
	}
	return out
}

func bench(b *testing.B, rules []acl.Rule, keys []acl.Key) {
	p, err := acl.Compile(rules)
	if err != nil {
		b.Fatal(err)
	}
	i, mask := 0, len(keys)-1
	b.ReportAllocs()
	for b.Loop() {
		m := p.Lookup(&keys[i&mask])
		// The next key depends on this answer, so that what is measured is how long a lookup takes, not how many overlap.
		i += 1 + int(m.Index>>31)
	}
	b.ReportMetric(float64(p.Bytes()), "bytes")
}

func BenchmarkCompile(b *testing.B) {
	for i, kind := range aclgen.Kinds {
		for _, n := range sizes {
			b.Run(fmt.Sprintf("%s/%d", aclgen.KindNames[i], n), func(b *testing.B) {
				rules := aclgen.Rules(11, n, aclgen.Options{Kind: kind})
				for b.Loop() {
					if _, err := acl.Compile(rules); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	}
}

// A rule whose names have come to nothing matches nothing, and the rules behind it keep their places.
func TestNever(t *testing.T) {
	p, err := acl.Compile([]acl.Rule{{Never: true, Allow: true}, {Never: true, Allow: true, Services: []acl.Service{{AnyProto: true}}}, {}})
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range []acl.Family{acl.V4, acl.V6} {
		if m := p.Lookup(&acl.Key{Family: uint8(f), Proto: 6, DPort: 22}); !m.Found || m.Allow || m.Index != 2 {
			t.Errorf("family %d: %+v, want rule 2, which denies", f, m)
		}
	}
}
