package pipeline

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"testing"

	"github.com/google/gopacket/layers"

	"demarc/gateway/conntrack"
	"demarc/gateway/flow"
	"demarc/gateway/nat"
	"demarc/gateway/verdict"
)

// The reference: what a stateful NAT with an ACL does, by maps and by the policy as a person reads it. It knows nothing of shards, of
// views or of tables, and learns the public port of a mapping from the first packet that leaves with it.
type reference struct {
	ways   map[string]way
	mapped map[mapped]outside
	sent   map[sent]bool            // who was spoken to by which public end
	owner  map[outside]inside       // and back
	out    map[conversation]outside // inside > far, as it looks outside
	in     map[conversation]inside  // far > public, whom it is for
}

// way is how a tenant maps and filters.
type way struct{ mapping, filtering string }

const (
	ei  = "endpoint-independent"
	ad  = "address-dependent"
	apd = "address-and-port-dependent"
)

// mapped is what has one public end: an inside end, and the far address where that matters.
type mapped struct {
	inside
	far netip.Addr
}

type sent struct {
	outside
	far netip.Addr
}

// key is what of a conversation its mapping goes by; false where it has one of its own.
func (r *reference) key(i inside, far netip.Addr) (mapped, bool) {
	switch r.ways[i.tenant].mapping {
	case ei:
		far = netip.Addr{}
	case apd:
		return mapped{}, false
	}
	return mapped{i, far}, true
}

type inside struct {
	tenant string
	proto  uint8
	addr   netip.AddrPort
}

type outside struct {
	proto uint8
	addr  netip.AddrPort
}

// conversation is one direction: with who for inside > far, without for far > public.
type conversation struct {
	tenant   string
	proto    uint8
	src, dst netip.AddrPort
}

const modelPolicy = `
schema = 1
[backbone]
interfaces = ["backbone"]
[[route]]
prefix = "0.0.0.0/0"
via = "203.0.113.254"
[[tenant]]
name = "alpha"
interfaces = ["alpha"]
prefixes = ["198.18.10.0/24"]
[tenant.nat]
pool = ["192.0.2.16"]
[[tenant.nat.static]]
public = "192.0.2.100"
inside = "198.18.10.100"
[[tenant.nat.forward]]
public = "192.0.2.16"
proto = "udp"
port = 8080
inside = "198.18.10.11"
inside_port = 80
[[tenant.rule]]
direction = "in"
action = "deny"
from = ["203.0.113.66"]
[[tenant.rule]]
direction = "in"
action = "allow"
service = ["udp/80", "tcp/80"]
[[tenant.rule]]
direction = "out"
action = "deny"
service = ["udp/123"]
[[tenant]]
name = "beta"
interfaces = ["beta"]
prefixes = ["198.18.10.0/24"]
[tenant.nat]
pool = ["192.0.2.32"]
filtering = "endpoint-independent"
[[tenant.nat.forward]]
public = "192.0.2.32"
proto = "udp"
port = 8080
inside = "198.18.10.11"
[[tenant.rule]]
direction = "in"
action = "deny"
from = ["203.0.113.66"]
[[tenant.rule]]
direction = "in"
action = "allow"
service = ["udp/8080"]
[[tenant.rule]]
direction = "out"
action = "deny"
to = ["203.0.113.67"]
`

var (
	poolOf   = map[string]netip.Addr{"alpha": netip.MustParseAddr("192.0.2.16"), "beta": netip.MustParseAddr("192.0.2.32")}
	staticIn = netip.MustParseAddr("198.18.10.100")
	staticEx = netip.MustParseAddr("192.0.2.100")
	fwdHost  = netip.MustParseAddr("198.18.10.11")
	badFar   = netip.MustParseAddr("203.0.113.66")
	shunned  = netip.MustParseAddr("203.0.113.67")
)

func mayOut(tenant string, proto uint8, dst netip.AddrPort) bool {
	if tenant == "alpha" {
		return proto != flow.UDP || dst.Port() != 123
	}
	return dst.Addr() != shunned
}

// mayIn: dst is the inside end. mapped: it came in by an endpoint-independent mapping.
func mayIn(tenant string, proto uint8, src, dst netip.AddrPort, mapped bool) bool {
	switch {
	case src.Addr() == badFar:
		return false
	case tenant == "alpha":
		return (proto == flow.UDP || proto == flow.TCP) && dst.Port() == 80
	}
	return mapped || proto == flow.UDP && dst.Port() == 8080
}

// forwardedTo reports whether a forward leads to an inside end: what comes from there leaves as what the forward is of.
func forwardedTo(tenant string, proto uint8, end netip.AddrPort) bool {
	return proto == flow.UDP && end.Addr() == fwdHost && end.Port() == map[string]uint16{"alpha": 80, "beta": 8080}[tenant]
}

// outward says how a packet of an inside host leaves; port 0 = not known yet, learn it. ok is false where it must not leave.
func (r *reference) outward(tenant string, proto uint8, src, dst netip.AddrPort) (pub netip.AddrPort, ok bool) {
	if proto == flow.ICMP { // the identifier is one port, and that of the inside end
		dst = netip.AddrPortFrom(dst.Addr(), 0)
	}
	if o, found := r.out[conversation{tenant, proto, src, dst}]; found {
		return o.addr, true
	}
	if !mayOut(tenant, proto, dst) {
		return pub, false
	}
	if tenant == "alpha" && src.Addr() == staticIn {
		return netip.AddrPortFrom(staticEx, src.Port()), true
	}
	if forwardedTo(tenant, proto, src) {
		return netip.AddrPortFrom(poolOf[tenant], 8080), true
	}
	if k, kept := r.key(inside{tenant, proto, src}, dst.Addr()); kept {
		if o, found := r.mapped[k]; found {
			return o.addr, true
		}
	}
	return netip.AddrPortFrom(poolOf[tenant], 0), true
}

// left notes a new conversation outwards.
func (r *reference) left(t testing.TB, tenant string, proto uint8, src, dst, pub netip.AddrPort) {
	t.Helper()
	i, o := inside{tenant, proto, src}, outside{proto, pub}
	if was, taken := r.owner[o]; taken && was != i && pub.Addr() != staticEx {
		if _, known := r.out[conversation{tenant, proto, src, dst}]; !known {
			t.Fatalf("%v is %v's, and was given to %v", pub, was, i)
		}
	}
	if _, known := r.out[conversation{tenant, proto, src, dst}]; known {
		return // a forward's answers among them: no mapping
	}
	if pub.Addr() != staticEx && !forwardedTo(tenant, proto, src) {
		if pub.Port() == 8080 && proto == flow.UDP {
			t.Fatalf("the forwarded port was given to %v", i)
		}
		r.owner[o] = i
		if k, kept := r.key(i, dst.Addr()); kept {
			r.mapped[k] = o
		}
		r.sent[sent{o, dst.Addr()}] = true
	}
	r.out[conversation{tenant, proto, src, dst}] = o
	r.in[conversation{"", proto, dst, pub}] = i
}

// inward says whom a packet from the backbone side is for. note says that it begins a conversation.
func (r *reference) inward(proto uint8, src, dst netip.AddrPort) (to inside, note, ok bool) {
	if i, found := r.in[conversation{"", proto, src, dst}]; found {
		return i, false, true
	}
	byMapping := false
	switch {
	case dst.Addr() == staticEx:
		to = inside{"alpha", proto, netip.AddrPortFrom(staticIn, dst.Port())}
	case proto == flow.UDP && dst == netip.AddrPortFrom(poolOf["alpha"], 8080):
		to = inside{"alpha", proto, netip.AddrPortFrom(fwdHost, 80)}
	case proto == flow.UDP && dst == netip.AddrPortFrom(poolOf["beta"], 8080):
		to = inside{"beta", proto, netip.AddrPortFrom(fwdHost, 8080)}
	default:
		i, found := r.owner[outside{proto, dst}]
		if !found || proto == flow.ICMP {
			return to, false, false
		}
		switch f := r.ways[i.tenant].filtering; {
		case f == apd, f == ad && !r.sent[sent{outside{proto, dst}, src.Addr()}]:
			return to, false, false
		}
		to, byMapping = i, true
	}
	if !mayIn(to.tenant, proto, src, to.addr, byMapping) {
		return to, false, false
	}
	if _, taken := r.out[conversation{to.tenant, proto, to.addr, src}]; taken {
		return to, false, false // the inside end speaks to that far end already, as another public port: two answers to one question
	}
	return to, true, true
}

func (r *reference) entered(to inside, src, dst netip.AddrPort) {
	r.out[conversation{to.tenant, to.proto, to.addr, src}] = outside{to.proto, dst}
	r.in[conversation{"", to.proto, src, dst}] = to
}

// modelFrame builds a frame; what is not UDP is a SYN, a SYN/ACK, or an echo.
func modelFrame(t testing.TB, port int, proto uint8, src, dst netip.AddrPort, answer bool) []byte {
	s, d := src.Addr().String(), dst.Addr().String()
	switch proto {
	case flow.UDP:
		return bigUDP(t, port, s, src.Port(), d, dst.Port(), 23)
	case flow.TCP:
		return tcp4(t, port, s, src.Port(), d, dst.Port(), func(tc *layers.TCP) {
			tc.SYN = true
			if answer {
				tc.ACK, tc.Seq, tc.Ack = true, 5000, 1001
			}
		})
	}
	typ, id := uint8(8), src.Port()
	if answer {
		typ, id = 0, dst.Port()
	}
	return frame(t, eth(macs[port], layers.EthernetTypeIPv4), ip4(s, d, layers.IPProtocolICMPv4), &layers.ICMPv4{TypeCode: layers.CreateICMPv4TypeCode(typ, 0), Id: id, Seq: 1}, load(20))
}

// enter carries a frame in, whole, or in fragments in any order and each at any worker. The hops of fragments become those of their datagram: all
// of it goes on, put together by the test's own eyes, or nothing does.
func (w *world) enter(rng *rand.Rand, port int, proto uint8, f []byte, kinds map[string]int) (out []hop) {
	w.t.Helper()
	if proto == flow.TCP || rng.IntN(4) > 0 { // a SYN is not more than its header
		return w.carry(rng.IntN(len(w.shards)), port, false, false, f)
	}
	kinds["in fragments"]++
	w.now += 1e6
	in := split(w.t, f, uint16(kinds["in fragments"]), 8*(1+rng.IntN(2)))
	rng.Shuffle(len(in), func(i, j int) { in[i], in[j] = in[j], in[i] })
	var all []hop
	for _, p := range in {
		all = append(all, w.carry(rng.IntN(len(w.shards)), port, false, false, p)...)
	}
	if n := w.waiting(); n != 0 {
		w.t.Fatalf("all fragments have come, and %d wait", n)
	}
	for _, v := range []verdict.Verdict{verdict.Loop, verdict.Send, verdict.Drop} {
		var last hop
		var frames [][]byte
		for _, h := range all {
			if h.verdict == v {
				last, frames = h, append(frames, h.frame)
			}
		}
		if len(frames) == 0 {
			continue
		}
		if v != verdict.Drop {
			if len(frames) != len(in) {
				w.t.Fatalf("%d of %d fragments: %s", len(frames), len(in), v)
			}
			last.frame = join(w.t, frames)
		} else if n := len(out); n > 0 && out[n-1].verdict == verdict.Send {
			w.t.Fatalf("a part of a datagram was sent, and %d fragments dropped (%s)", len(frames), last.reason)
		}
		out = append(out, last)
	}
	return out
}

// Also the reference of RFC 4787 REQ-1, REQ-3, REQ-8, REQ-9 and REQ-11: no state, no order of packets and no mode makes the translation or
// the filter another.
func TestRandomTrafficAgainstTheReference(t *testing.T) {
	for _, c := range []struct {
		workers, steps int
		alpha, beta    way
	}{
		{1, 4000, way{ei, apd}, way{ei, ei}},
		{2, 4000, way{ei, apd}, way{ei, ei}},
		{4, 4000, way{ei, apd}, way{ei, ei}},
		{1, 4000, way{ei, apd}, way{ei, ad}},
		{3, 4000, way{ad, apd}, way{ei, ad}},
		{1, 4000, way{ad, apd}, way{ad, ad}},
		{2, 4000, way{apd, apd}, way{apd, ei}},
		{1, 4000, way{apd, apd}, way{apd, ad}},
	} {
		t.Run(fmt.Sprintf("%d workers, %v, %v", c.workers, c.alpha, c.beta), func(t *testing.T) {
			seed := rand.Uint64()
			t.Logf("seed %d", seed)
			runModel(t, c.workers, map[string]way{"alpha": c.alpha, "beta": c.beta}, rand.New(rand.NewPCG(seed, uint64(c.workers))), c.steps)
		})
	}
}

func runModel(t *testing.T, workers int, ways map[string]way, rng *rand.Rand, steps int) {
	policy := replaceOnce(t, modelPolicy, "pool = [\"192.0.2.16\"]", fmt.Sprintf("pool = [\"192.0.2.16\"]\nmapping = %q\nfiltering = %q", ways["alpha"].mapping, ways["alpha"].filtering))
	policy = replaceOnce(t, policy, "filtering = \"endpoint-independent\"", fmt.Sprintf("mapping = %q\nfiltering = %q", ways["beta"].mapping, ways["beta"].filtering))
	w := newWorld(t, workers, policy)
	r := &reference{ways, map[mapped]outside{}, map[sent]bool{}, map[outside]inside{}, map[conversation]outside{}, map[conversation]inside{}}
	tenants := []string{"alpha", "beta"}
	protos := []uint8{flow.UDP, flow.UDP, flow.TCP, flow.ICMP}
	var spoken []conversation // from far ends to public ends
	kinds := map[string]int{}
	for step := range steps {
		var hops []hop
		proto := protos[rng.IntN(len(protos))]
		if rng.IntN(3) > 0 { // from inside
			tenant := tenants[rng.IntN(2)]
			src := netip.AddrPortFrom(netip.AddrFrom4([4]byte{198, 18, 10, byte(9 + rng.IntN(5))}), uint16(4000+rng.IntN(6)))
			if rng.IntN(8) == 0 {
				src = netip.AddrPortFrom(staticIn, src.Port())
			}
			if rng.IntN(6) == 0 {
				src = netip.AddrPortFrom(fwdHost, []uint16{80, 8080}[rng.IntN(2)])
			}
			dst := netip.AddrPortFrom(netip.AddrFrom4([4]byte{203, 0, 113, byte(64 + rng.IntN(5))}), []uint16{53, 80, 123}[rng.IntN(3)])
			answer := false
			if known := len(spoken); proto != flow.ICMP && known > 0 && rng.IntN(4) == 0 { // to a public end of either tenant, some of them in use
				dst = spoken[rng.IntN(known)].dst
			} else if proto != flow.ICMP && rng.IntN(8) == 0 {
				dst = netip.AddrPortFrom([]netip.Addr{poolOf["alpha"], poolOf["beta"], staticEx}[rng.IntN(3)], []uint16{8080, 80, 9999}[rng.IntN(3)])
			}
			if proto == flow.TCP && r.out[conversation{tenant, proto, src, dst}].proto != 0 {
				answer = true // its session came in: a second SYN would be judged by the TCP rules, which have their own tests
				if i, ok := r.in[conversation{"", proto, dst, r.out[conversation{tenant, proto, src, dst}].addr}]; ok && i.addr == src {
					continue
				}
			}
			if proto == flow.ICMP {
				dst = netip.AddrPortFrom(dst.Addr(), src.Port())
			}
			vlan := uint16(0)
			f := modelFrame(t, 1, proto, src, dst, answer)
			if tenant == "beta" {
				vlan, f = 20, tagged(f, 20)
			}
			hops = w.enter(rng, 1, proto, f, kinds)
			want, ok := r.outward(tenant, proto, src, dst)
			round := dst.Addr().As4()[0] == 192
			last := hops[len(hops)-1]
			var first *hop // where it left the tenant
			for i := range hops {
				if v := hops[i].verdict; v == verdict.Loop || v == verdict.Send && !round {
					first = &hops[i]
				}
			}
			if !ok {
				kinds["denied out"]++
				if last.verdict != verdict.Drop || first != nil {
					t.Fatalf("step %d: %s %v > %v is denied and went on: %+v", step, tenant, src, dst, hops)
				}
				continue
			}
			if first == nil {
				t.Fatalf("step %d: %s proto %d %v > %v: %s (%s), want it to leave as %v", step, tenant, proto, src, dst, last.verdict, last.reason, want)
			}
			x := readWire(t, first.frame)
			got := netip.AddrPortFrom(x.src, x.sport)
			if got.Addr() != want.Addr() || want.Port() != 0 && got != want || x.dst != dst.Addr() || x.dport != dst.Port() && proto != flow.ICMP {
				t.Fatalf("step %d: %s %v > %v left as %s, want from %v", step, tenant, src, dst, x, want)
			}
			if proto == flow.ICMP {
				dst = netip.AddrPortFrom(dst.Addr(), got.Port())
				r.leftEcho(t, tenant, src, dst, got)
			} else {
				r.left(t, tenant, proto, src, dst, got)
			}
			if !round {
				kinds["out"]++
				if first.port != 0 || x.vlan != 0 || x.ttl != 63 {
					t.Fatalf("step %d: left on port %d, %s, ttl %d", step, first.port, x, x.ttl)
				}
				spoken = append(spoken, conversation{"", proto, dst, got})
				continue
			}
			kinds["round"]++
			_ = vlan
			w.wantIn(t, r, step, proto, got, dst, last, kinds)
			spoken = append(spoken, conversation{"", proto, dst, got})
			continue
		}
		// From the backbone: an answer to something, a stranger at a known public end, or a probe.
		src := netip.AddrPortFrom(netip.AddrFrom4([4]byte{203, 0, 113, byte(64 + rng.IntN(5))}), uint16(1000+rng.IntN(3)))
		dst := netip.AddrPortFrom([]netip.Addr{poolOf["alpha"], poolOf["beta"], staticEx}[rng.IntN(3)], []uint16{8080, 80, 9999}[rng.IntN(3)])
		answer := false
		if len(spoken) > 0 && rng.IntN(4) > 0 {
			c := spoken[rng.IntN(len(spoken))]
			proto, dst = c.proto, c.dst
			if answer = rng.IntN(2) == 0 || proto == flow.ICMP; answer {
				src = c.src
			}
			if src.Addr().As4()[0] == 192 {
				// A source that is ours, over the wire: whatever sessions there are, it is false.
				hops = w.enter(rng, 0, proto, modelFrame(t, 0, proto, src, dst, answer), kinds)
				if last := hops[len(hops)-1]; last.verdict != verdict.Drop {
					t.Fatalf("step %d: %v > %v came over the wire with a source of ours and was carried: %+v", step, src, dst, last)
				}
				kinds["impostor"]++
				continue
			}
		} else if proto == flow.ICMP {
			continue
		}
		if proto == flow.TCP && !answer {
			if _, known := r.in[conversation{"", proto, src, dst}]; known {
				continue
			}
		}
		hops = w.enter(rng, 0, proto, modelFrame(t, 0, proto, src, dst, answer), kinds)
		w.wantIn(t, r, step, proto, src, dst, hops[len(hops)-1], kinds)
	}
	w.whole()
	for _, sh := range w.shards {
		w.dropped += sh.frags.Lost() // those that waited for a first one which was refused
	}
	if passed, dropped := w.metered(); passed != w.passed || dropped != w.dropped {
		t.Fatalf("metered %d passed, %d dropped; given %d and %d", passed, dropped, w.passed, w.dropped)
	}
	w.oneHome()
	for _, k := range []string{"in fragments", "out", "denied out", "round", "delivered", "denied in", "impostor"} {
		if kinds[k] < 20 {
			t.Fatalf("only %d packets were %s: %v", kinds[k], k, kinds)
		}
	}
}

func (r *reference) leftEcho(t testing.TB, tenant string, src, dst, pub netip.AddrPort) {
	// The identifier is the port of both ends outside, of the inside end only inside.
	r.left(t, tenant, flow.ICMP, src, netip.AddrPortFrom(dst.Addr(), 0), pub)
	r.in[conversation{"", flow.ICMP, dst, pub}] = inside{tenant, flow.ICMP, src}
}

// wantIn checks what became of a packet that entered from the backbone side.
func (w *world) wantIn(t *testing.T, r *reference, step int, proto uint8, src, dst netip.AddrPort, last hop, kinds map[string]int) {
	t.Helper()
	to, note, ok := r.inward(proto, src, dst)
	if !ok {
		kinds["denied in"]++
		if last.verdict != verdict.Drop {
			t.Fatalf("step %d: proto %d %v > %v must not come in, and did: %s", step, proto, src, dst, readWire(t, last.frame))
		}
		return
	}
	kinds["delivered"]++
	if last.verdict != verdict.Send {
		t.Fatalf("step %d: proto %d %v > %v is for %v: %s (%s)", step, proto, src, dst, to, last.verdict, last.reason)
	}
	x := readWire(t, last.frame)
	vlan := map[string]uint16{"alpha": 0, "beta": 20}[to.tenant]
	if x.dst != to.addr.Addr() || x.dport != to.addr.Port() || x.src != src.Addr() || proto != flow.ICMP && x.sport != src.Port() || last.port != 1 || x.vlan != vlan {
		t.Fatalf("step %d: %v > %v is for %v and went as %s on port %d", step, src, dst, to, x, last.port)
	}
	if note {
		r.entered(to, src, dst)
	}
}

// oneHome checks that the sessions of an inside host are in one shard only.
func (w *world) oneHome() {
	type host struct {
		t flow.TenantID
		a flow.Addr
	}
	home := map[host]int{}
	for i, sh := range w.shards {
		sh.Sessions.Each(0, sh.Sessions.Capacity(), func(_ uint32, se *conntrack.Session) bool {
			if _, ports := nat.ClassOf(se.Proto); !ports {
				return true
			}
			_, a := insideOf(se)
			if at, known := home[host{se.Tenant, a}]; known && at != i {
				w.t.Fatalf("%s of tenant %d is in shards %d and %d", a.Netip(4), se.Tenant, at, i)
			}
			home[host{se.Tenant, a}] = i
			return true
		})
	}
	if used := map[int]bool{}; len(w.shards) > 1 {
		for _, i := range home {
			used[i] = true
		}
		if len(used) < 2 {
			w.t.Fatal("all hosts are in one shard: this proves nothing")
		}
	}
}
