package aclgen

import (
	"encoding/binary"
	"math/rand/v2"
	"net/netip"

	"demarc/acl"
	"demarc/acl/aclref"
)

// Kind is the character of a list.
type Kind uint8

const (
	// Edge is an enterprise edge: inside prefixes on one side, the world or its networks on the other, well-known services.
	Edge Kind = iota
	// Firewall is ClassBench's fw: many wildcards, port ranges on both sides, both sides named in about half of the rules.
	Firewall
	// Blocklist denies single addresses and prefixes on one side, everything else open.
	Blocklist
	// Chain is ClassBench's ipc: both sides named, long prefixes, exact services.
	Chain
)

// Kinds lists all, with their names at the same positions in KindNames.
var (
	Kinds     = []Kind{Edge, Firewall, Blocklist, Chain}
	KindNames = []string{"edge", "firewall", "blocklist", "chain"}
)

// Options says what Rules makes. Its zero value is an IPv4 Edge list.
type Options struct {
	Kind Kind
	V6   float64 // share of rules that name IPv6 addresses, 0..1
}

type gen struct {
	*rand.Rand
	o Options
	// nets are what prefixes are drawn below, so that they nest and cluster as real ones do.
	nets4 []netip.Prefix
	nets6 []netip.Prefix
	ports []uint16
}

func newGen(seed uint64, n int, o Options) *gen {
	g := &gen{Rand: rand.New(rand.NewPCG(seed, 0x61636c67656e)), o: o}
	for range max(4, n/50) {
		var a [4]byte
		binary.BigEndian.PutUint32(a[:], g.Uint32())
		a[0] = 1 + a[0]%223
		g.nets4 = append(g.nets4, netip.PrefixFrom(netip.AddrFrom4(a), 8+g.IntN(13)).Masked())
		b := [16]byte{0x20, 0x01, 0x0d, 0xb8}
		binary.BigEndian.PutUint32(b[4:], g.Uint32())
		g.nets6 = append(g.nets6, netip.PrefixFrom(netip.AddrFrom16(b), 36+g.IntN(21)).Masked())
	}
	g.ports = []uint16{22, 25, 53, 80, 110, 123, 143, 161, 179, 389, 443, 445, 993, 1433, 1521, 3306, 3389, 5060, 8080, 8443}
	for range n / 100 {
		g.ports = append(g.ports, uint16(1024+g.IntN(64512)))
	}
	return g
}

func (g *gen) chance(p float64) bool { return g.Float64() < p }

// below draws a prefix of length bits inside p; a shorter length gives p's own bits cut short.
func (g *gen) below(p netip.Prefix, bits int) netip.Prefix {
	a := p.Addr().AsSlice()
	for i := p.Bits(); i < bits; i++ {
		if g.IntN(2) == 1 {
			a[i/8] |= 0x80 >> (i % 8)
		}
	}
	addr, _ := netip.AddrFromSlice(a)
	return netip.PrefixFrom(addr, bits).Masked()
}

// prefix draws with the uneven lengths of real lists: hosts, then /24 (or /64), then the rest.
func (g *gen) prefix(v6 bool) netip.Prefix {
	net, host, lan := g.nets4[g.IntN(len(g.nets4))], 32, 24
	if v6 {
		net, host, lan = g.nets6[g.IntN(len(g.nets6))], 128, 64
	}
	switch x := g.Float64(); {
	case x < 0.45:
		return g.below(net, host)
	case x < 0.75:
		return g.below(net, lan)
	case x < 0.95:
		return g.below(net, net.Bits()+g.IntN(host-net.Bits()+1))
	}
	return g.below(net, net.Bits()-g.IntN(5))
}

// inside draws from the enterprise's own networks.
func (g *gen) inside(v6 bool) netip.Prefix {
	if v6 {
		return g.below(netip.MustParsePrefix("2001:db8::/40"), []int{48, 56, 64, 64, 128, 128}[g.IntN(6)])
	}
	return g.below(netip.MustParsePrefix("198.18.0.0/15"), []int{16, 20, 24, 24, 26, 28, 32, 32, 32, 32}[g.IntN(10)])
}

func (g *gen) service() acl.Service {
	s := acl.Service{Proto: 6, SPortHi: 65535, DPortHi: 65535}
	switch x := g.Float64(); {
	case x < 0.60:
	case x < 0.90:
		s.Proto = 17
	case x < 0.95:
		s.Proto = 1
		t := []uint16{8, 0, 3, 11}[g.IntN(4)]
		s.DPortLo, s.DPortHi = t<<8, t<<8|255
		return s
	default:
		return acl.Service{AnyProto: true}
	}
	switch x := g.Float64(); {
	case x < 0.70:
		s.DPortLo = g.ports[g.IntN(len(g.ports))]
		s.DPortHi = s.DPortLo
	case x < 0.80:
		s.DPortLo = 1024
	case x < 0.92:
		s.DPortLo = uint16(g.IntN(60000))
		s.DPortHi = s.DPortLo + uint16(g.IntN(5000))
	}
	if g.o.Kind == Firewall && g.chance(0.2) {
		s.SPortLo = 1024
	}
	return s
}

func (g *gen) rule() (r acl.Rule) {
	v6 := g.chance(g.o.V6)
	from := func(p netip.Prefix) { r.From = append(r.From, p) }
	to := func(p netip.Prefix) { r.To = append(r.To, p) }
	switch g.o.Kind {
	case Edge:
		r.Allow = g.chance(0.7)
		if g.chance(0.5) { // out
			from(g.inside(v6))
			if g.chance(0.7) {
				to(g.prefix(v6))
			}
		} else {
			to(g.inside(v6))
			if g.chance(0.6) {
				from(g.prefix(v6))
			}
		}
		r.Services = []acl.Service{g.service()}
	case Firewall:
		r.Allow = g.chance(0.5)
		f, t := g.chance(0.7), g.chance(0.75)
		if !f && !t {
			t = true
		}
		if f {
			from(g.prefix(v6))
		}
		if t {
			to(g.prefix(v6))
		}
		r.Services = []acl.Service{g.service()}
	case Blocklist:
		if g.chance(0.5) {
			from(g.prefix(v6))
		} else {
			to(g.prefix(v6))
		}
	case Chain:
		r.Allow = g.chance(0.5)
		from(g.prefix(v6))
		to(g.prefix(v6))
		r.Services = []acl.Service{g.service()}
	}
	return r
}

// Rules makes n rules. ID counts from 1.
func Rules(seed uint64, n int, o Options) []acl.Rule {
	g := newGen(seed, n, o)
	out := make([]acl.Rule, n)
	for i := range out {
		out[i] = g.rule()
		out[i].ID = uint32(i + 1)
	}
	return out
}

// LastOnly makes n rules of which only the last matches any of keys, and that one matches all keys: it has no conditions,
// and it allows. Rules before it that would match are drawn again, so the time grows with n and the number of keys.
func LastOnly(seed uint64, n int, o Options, keys ...acl.Key) []acl.Rule {
	g := newGen(seed, n, o)
	out := make([]acl.Rule, n)
	for i := range out {
		if i == n-1 {
			out[i] = acl.Rule{Allow: true}
		} else {
			for {
				if out[i] = g.rule(); !matchesAny(&out[i], keys) {
					break
				}
			}
		}
		out[i].ID = uint32(i + 1)
	}
	return out
}

func matchesAny(r *acl.Rule, keys []acl.Key) bool {
	for i := range keys {
		if aclref.Matches(r, &keys[i]) {
			return true
		}
	}
	return false
}

// Inside draws n IPv4 keys of new sessions from 198.18.0.0/15 to anywhere, TCP or UDP, most of them to well-known ports.
func Inside(seed uint64, n int) []acl.Key {
	g := newGen(seed, n, Options{})
	out := make([]acl.Key, n)
	for i := range out {
		k := &out[i]
		k.Family, k.Proto = 4, 6
		if g.IntN(2) == 0 {
			k.Proto = 17
		}
		binary.BigEndian.PutUint32(k.Src[:], 0xC6120000|g.Uint32N(1<<17))
		binary.BigEndian.PutUint32(k.Dst[:], 0x01000000+g.Uint32N(0xDF000000))
		k.SPort, k.DPort = uint16(1024+g.IntN(64512)), g.ports[g.IntN(20)]
	}
	return out
}

// Keys draws n keys: most of them inside, at or just beyond the edges of a rule of the list, the rest at random.
func Keys(seed uint64, rules []acl.Rule, n int) []acl.Key {
	g := newGen(seed, 0, Options{})
	out := make([]acl.Key, n)
	for i := range out {
		if len(rules) == 0 || g.chance(0.1) {
			out[i] = g.anyKey()
		} else {
			out[i] = g.near(&rules[g.IntN(len(rules))])
		}
	}
	return out
}

func (g *gen) anyKey() (k acl.Key) {
	k.Family = []uint8{4, 6}[g.IntN(2)]
	g.fill(&k.Src, k.Family)
	g.fill(&k.Dst, k.Family)
	k.SPort, k.DPort, k.Proto = uint16(g.Uint32()), uint16(g.Uint32()), []uint8{1, 6, 17, 58, uint8(g.Uint32())}[g.IntN(5)]
	return k
}

func (g *gen) fill(a *[16]byte, family uint8) {
	n := 4
	if family == 6 {
		n = 16
	}
	for i := range n {
		a[i] = byte(g.Uint32())
	}
}

// near draws a key that r matches, more or less: about one in four fields lies just beyond an edge.
func (g *gen) near(r *acl.Rule) (k acl.Key) {
	k = g.anyKey()
	for _, p := range named(r) {
		if p.Addr().Is4() {
			k.Family = 4
		} else {
			k.Family = 6
		}
		if g.IntN(2) == 0 {
			break
		}
	}
	k.Src, k.Dst = [16]byte{}, [16]byte{}
	g.side(&k.Src, k.Family, r.From, r.FromRanges)
	g.side(&k.Dst, k.Family, r.To, r.ToRanges)
	if len(r.Services) > 0 {
		s := r.Services[g.IntN(len(r.Services))]
		if !s.AnyProto {
			k.Proto = s.Proto
			k.SPort, k.DPort = g.port(s.SPortLo, s.SPortHi), g.port(s.DPortLo, s.DPortHi)
		}
	}
	return k
}

func named(r *acl.Rule) []netip.Prefix {
	var out []netip.Prefix
	out = append(append(out, r.From...), r.To...)
	for _, rs := range [][][2]netip.Addr{r.FromRanges, r.ToRanges} {
		for _, x := range rs {
			out = append(out, netip.PrefixFrom(x[0], x[0].BitLen()))
		}
	}
	return out
}

func (g *gen) port(lo, hi uint16) uint16 {
	switch g.IntN(8) {
	case 0:
		return lo
	case 1:
		return hi
	case 2:
		return lo - 1
	case 3:
		return hi + 1
	}
	return lo + uint16(g.IntN(int(hi)-int(lo)+1))
}

func (g *gen) side(a *[16]byte, family uint8, ps []netip.Prefix, rs [][2]netip.Addr) {
	g.fill(a, family)
	put := func(x netip.Addr) {
		if !x.IsValid() || x.Is4() != (family == 4) {
			return
		}
		*a = [16]byte{}
		copy(a[:], x.AsSlice())
	}
	n := len(ps) + len(rs)
	if n == 0 {
		return
	}
	if i := g.IntN(n); i < len(ps) {
		p := ps[i].Masked()
		switch g.IntN(8) {
		case 0:
			put(p.Addr())
		case 1:
			put(p.Addr().Prev())
		case 2:
			top := p.Addr().AsSlice()
			for j := p.Bits(); j < 8*len(top); j++ {
				top[j/8] |= 0x80 >> (j % 8)
			}
			x, _ := netip.AddrFromSlice(top)
			put(x)
		case 3:
			top := p.Addr().AsSlice()
			for j := p.Bits(); j < 8*len(top); j++ {
				top[j/8] |= 0x80 >> (j % 8)
			}
			x, _ := netip.AddrFromSlice(top)
			put(x.Next())
		default:
			put(g.below(p, p.Addr().BitLen()).Addr())
		}
	} else {
		r := rs[i-len(ps)]
		put([]netip.Addr{r[0], r[1], r[0].Prev(), r[1].Next(), r[0].Next(), r[1].Prev()}[g.IntN(6)])
	}
}
