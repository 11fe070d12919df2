package pipeline

import (
	"bytes"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"

	"demarc/gateway/archtest/cputime"
	"demarc/gateway/conntrack"
	"demarc/gateway/flow"
	"demarc/gateway/lease"
	"demarc/gateway/snapshot"
	"demarc/gateway/verdict"
)

const testGroups = `
[[group]]
name = "east"
id = 1
nodes = ["a", "b"]
tenants = ["alpha"]
[[group.address]]
interface = "alpha"
addresses = ["198.18.10.250/24", "2001:db8:a::fa/64"]
[[group.address]]
interface = "backbone"
addresses = ["203.0.113.250/24", "2001:db8:ff::fa/64"]
[[group]]
name = "west"
id = 200
nodes = ["b", "a"]
tenants = ["gamma"]
[[group.address]]
interface = "gamma"
addresses = ["198.18.30.250/24"]
`

// concerns lists the groups of which a frame that leaves is: by what is in it and where it leaves, not by what the pipeline says of it. node: it
// is an answer of an address of the node's own.
func concerns(v *snapshot.View, s *Slot) (list []*snapshot.Group, node bool) {
	f := &v.Ifaces[s.OutIface]
	k := q(s.Frame()).Key
	src := k.Src.Netip(k.Family)
	own := func(p netip.Prefix) bool { return p.Addr() == src }
	if s.Reason == verdict.Pass {
		for i := range v.Ifaces {
			node = node || slices.ContainsFunc(v.Ifaces[i].Addrs, own) || k.Src == v.Ifaces[i].LinkLocal
		}
	}
	if node {
		return nil, true
	}
	add := func(g *snapshot.Group) {
		if g != nil && !slices.Contains(list, g) {
			list = append(list, g)
		}
	}
	if f.Zone != flow.Backbone {
		add(v.GroupOf(f.Zone))
	}
	if s.Reason != verdict.Unset && s.Reason != verdict.Pass {
		add(v.GroupOf(s.Tenant)) // an error of ours, about a packet of that tenant's
	}
	for _, g := range v.Groups() { // the source is a public or virtual address of the group's, or inside it
		for _, id := range g.Tenants {
			if f.Zone == flow.Backbone && slices.ContainsFunc(v.Tenant(id).Inside, func(p netip.Prefix) bool { return p.Addr().Is6() && p.Contains(src) }) {
				add(g)
			}
		}
		for i := range v.Publics {
			if p := &v.Publics[i]; v.GroupOf(p.Tenant) == g && p.Addr == k.Src {
				add(g)
			}
		}
		for i := range v.Ifaces {
			for _, p := range v.Ifaces[i].Groups {
				if p.Group == g && slices.ContainsFunc(p.Addrs, own) {
					add(g)
				}
			}
		}
	}
	return list, false
}

// tables is the fingerprint of all that packets change but counters.
func (w *world) tables() uint64 {
	roots := []any{w.space}
	for _, sh := range w.shards {
		roots = append(roots, sh.Sessions, sh.NAT, sh.permits, sh.hosts, sh.held, sh.frags, sh.echo)
	}
	for _, t := range w.view.Tenants {
		roots = append(roots, t)
	}
	return fingerprint(roots...)
}

// TestNothingOfAGroupLeavesWhereItIsNotServed sends hostile traffic through a node that serves two groups now and then: no frame leaves but of groups that
// are served, each from the right MAC; what is dropped as not_owner changes nothing at all; and both groups' traffic passes when they are served.
func TestNothingOfAGroupLeavesWhereItIsNotServed(t *testing.T) {
	if *stormSeed != 0 {
		onlyWhatIsServed(t, *stormSeed)
		return
	}
	t.Run("any", func(t *testing.T) { onlyWhatIsServed(t, rand.Uint64()) })
	t.Run("round through the shaper", func(t *testing.T) { onlyWhatIsServed(t, 12588656630559239765) })
	t.Run("a first fragment to who is not served", func(t *testing.T) { onlyWhatIsServed(t, 17699319433156494478) })
}

func onlyWhatIsServed(t *testing.T, seed uint64) {
	t.Logf("seed %d", seed)
	used := cputime.Spent(t)
	s := newStorm(t, seed)
	for i := range s.policies {
		s.policies[i] += testGroups
	}
	rng := s.g.rng
	passed, refused, deep, nodes, shaped := map[string]int{}, map[string]int{}, 0, 0, 0
	met := func() bool {
		return min(passed["east"], passed["west"], refused["east"], refused["west"]) >= 20 && nodes > 0 && deep >= 8
	}
	for round := 0; round == 0 || !met() && used() < 30*time.Second; round++ {
		s.begin(t, 3-round%3)
		for n := range 2000 {
			if rng.IntN(12) == 0 {
				id := []uint8{1, 200}[rng.IntN(2)]
				until := uint64(0)
				if rng.IntN(3) > 0 {
					until = s.now + rng.Uint64N(1e7)
				}
				s.until.Write(id, 1, until)
			}
			f := s.g.next()
			if rng.IntN(2) == 0 {
				f = s.g.corpus[rng.IntN(len(s.g.corpus))]
			}
			f.data = bytes.Clone(f.data)
			if len(f.data) >= 14 && rng.IntN(2) == 0 {
				id := []int{1, 200}[rng.IntN(2)]
				mac := groupMAC(id, bytes.Contains(f.data[12:14], []byte{0x86, 0xdd}))
				copy(f.data, mac[:])
			}
			s.now += rng.Uint64N(2e5)
			worker := rng.IntN(len(s.shards))
			var before uint64
			look := n%23 == 7 && deep < 12
			if look {
				before = s.tables()
			}
			again := false
			run := func(w int, sl *Slot) {
				one := []Slot{*sl}
				one[0].Looped = sl.Looped || again
				s.shards[w].Process(one, s.now)
				*sl = one[0]
			}
			did := passages(worker, f, s.now, run)
			last := &did[len(did)-1].slot
			if of := s.view.GroupOf(last.Tenant); last.Verdict == verdict.Queue && last.OutIface == 0 {
				// It is to an address of ours and waits for its rate: it leaves nowhere yet, but enters again when the shaper says so, here at once. Whoever
				// fetches it asks by what it says it is of.
				if of != nil && (last.Group != of.ID || !s.until.May(of.ID, s.now)) {
					t.Fatalf("seed %d, packet %d of round %d: waits to go round for group %d, is of %s, served %v: %x", seed, n, round, last.Group, of.Name, s.until.May(of.ID, s.now), last.Frame())
				}
				shaped++
				again = true
				did = append(did, passages(did[len(did)-1].worker, stormFrame{data: did[len(did)-1].frame}, s.now, run)...)
				last = &did[len(did)-1].slot
			}
			switch last.Verdict {
			case verdict.Drop:
				if last.Reason != verdict.NotOwner {
					continue
				}
				if g := s.view.GroupOf(last.Tenant); g != nil {
					refused[g.Name]++
				}
				if look && len(did) == 1 {
					if deep++; s.tables() != before {
						t.Fatalf("seed %d, packet %d of round %d: port %d: what was refused left something behind: %x", seed, n, round, f.port, f.data)
					}
				}
			case verdict.Send, verdict.Queue, verdict.Neighbor:
				list, node := concerns(s.view, last)
				mac, ok := [6]byte(last.Frame()[6:12]), false
				out := &s.view.Ifaces[last.OutIface]
				for _, g := range list {
					if !s.until.May(g.ID, s.now) {
						t.Fatalf("seed %d, packet %d of round %d: %s (%s) leaves on %s for group %s, which is not served: %x", seed, n, round, last.Verdict, last.Reason, out.Name, g.Name, last.Frame())
					}
					passed[g.Name]++
					ok = ok || out.Zone == flow.Backbone && mac == *out.Source(g, last.Key.Family)
				}
				switch {
				case node || out.Zone == flow.Backbone && len(list) == 0:
					ok = mac == out.MAC
				case out.Zone != flow.Backbone:
					ok = mac == *out.Source(s.view.GroupOf(out.Zone), last.Key.Family)
				}
				if !ok {
					t.Fatalf("seed %d, packet %d of round %d: left from %x on %s, of groups %v: %x", seed, n, round, mac, out.Name, list, last.Frame())
				}
				// Whoever sends it asks again by what the frame says it is of.
				if of := s.view.Group(last.Group); last.Group != 0 && !slices.Contains(list, of) || last.Group == 0 && len(list) > 0 || of != nil && out.Zone == flow.Backbone && mac != *out.Source(of, last.Key.Family) {
					t.Fatalf("seed %d, packet %d of round %d: said to be of group %d and is of %v, from %x: %x", seed, n, round, last.Group, list, mac, last.Frame())
				}
				if node {
					nodes++
				}
				s.g.left(last.OutPort, did[len(did)-1].frame)
			}
		}
	}
	t.Logf("passed %v, refused %v, %d answers of the node's own, %d went round through the shaper", passed, refused, nodes, shaped)
	if !met() {
		t.Errorf("and %d refused packets held against all tables: too little was met", deep)
	}
}

// groupWorld is a node with both groups, with one worker, and what it serves.
func groupWorld(t *testing.T) *world {
	w := newWorld(t, 1, testPolicy+testGroups)
	for id := range 256 {
		w.until.Write(uint8(id), 1, 0)
	}
	return w
}

// TestRoundByAGroupThatIsNotServed: the first pass knows that the second would be dropped, for the first packet and for those of a session that is there, errors and
// fragments included; so nothing is followed or counted of it.
func TestRoundByAGroupThatIsNotServed(t *testing.T) {
	w := groupWorld(t)
	w.until.Write(1, 1, w.now+1e9)
	w.until.Write(200, 1, w.now+1e9)
	out := udp4(t, 2, "198.18.30.5", 4000, "192.0.2.100", 80)
	syn := tcp4(t, 2, "198.18.30.5", 5000, "192.0.2.100", 80, func(x *layers.TCP) { x.SYN = true })
	if hops := w.carry(0, 2, false, false, syn); hops[len(hops)-1].verdict != verdict.Send {
		t.Fatalf("with both served: %+v", hops)
	}
	session := func() *conntrack.Session {
		k := q(syn).Key
		k.Zone = w.view.TenantByName("gamma").ID
		ref, ok := w.shards[0].Sessions.Lookup(&k, w.shards[0].Sessions.Hash(&k))
		if !ok {
			t.Fatal("no session")
		}
		return w.shards[0].Sessions.At(ref.Slot())
	}
	w.until.Write(1, 1, 0)
	before := *session()
	rst := tcp4(t, 2, "198.18.30.5", 5000, "192.0.2.100", 80, func(x *layers.TCP) { x.RST, x.Seq = true, 1001 })
	quoted := frame(t, eth(macs[2], layers.EthernetTypeIPv4), ip4("198.18.30.5", "192.0.2.100", layers.IPProtocolICMPv4), &layers.ICMPv4{TypeCode: layers.CreateICMPv4TypeCode(3, 3)},
		gopacket.Payload(tcp4(t, 0, "192.0.2.100", 80, "198.18.30.5", 5000, func(*layers.TCP) {})[14:]))
	for what, f := range map[string][]byte{"first packet": out, "of a session": rst, "error": quoted} {
		hops := w.carry(0, 2, false, false, f)
		if len(hops) != 1 || hops[0].reason != verdict.NotOwner {
			t.Errorf("%s: %d passes, %s (%s)", what, len(hops), hops[len(hops)-1].verdict, hops[len(hops)-1].reason)
		}
	}
	if *session() != before {
		t.Errorf("the session was touched: %+v, was %+v", *session(), before)
	}
}

// TestFragmentsOfAGroupThatIsNotServed: none is kept to wait for its first one, and a later one of a datagram whose first went on ends with the lease.
func TestFragmentsOfAGroupThatIsNotServed(t *testing.T) {
	piece := func(port int, src, dst string, off uint16, more bool, id uint16) []byte {
		ip := ip4(src, dst, layers.IPProtocolUDP)
		ip.Id, ip.FragOffset = id, off
		if more {
			ip.Flags = layers.IPv4MoreFragments
		}
		if off > 0 {
			return frame(t, eth(macs[port], layers.EthernetTypeIPv4), ip, gopacket.Payload(make([]byte, 64)))
		}
		return frame(t, eth(macs[port], layers.EthernetTypeIPv4), ip, udp(4000, 8080), gopacket.Payload(make([]byte, 56)))
	}
	w := groupWorld(t)
	for what, f := range map[string][]byte{"to a public address": piece(0, "203.0.113.11", "192.0.2.100", 8, false, 1), "to a virtual address": piece(0, "203.0.113.11", "203.0.113.250", 8, false, 2),
		"from a tenant": piece(2, "198.18.30.5", "203.0.113.11", 8, false, 3)} {
		port := 0
		if what == "from a tenant" {
			port = 2
		}
		if h := w.carry(0, port, false, false, f)[0]; h.verdict != verdict.Drop || h.reason != verdict.NotOwner {
			t.Errorf("%s: %s (%s)", what, h.verdict, h.reason)
		}
	}
	six := frame(t, eth(macs[0], layers.EthernetTypeIPv6), &layers.IPv6{Version: 6, HopLimit: 64, SrcIP: net.ParseIP("2001:db8:ff::11"), DstIP: net.ParseIP("fe80::200:5eff:fe00:201"), NextHeader: layers.IPProtocolIPv6Fragment},
		gopacket.Payload(append([]byte{byte(layers.IPProtocolICMPv6), 0, 0, 8 << 3, 0, 0, 0, 9}, make([]byte, 64)...)))
	if h := w.carry(0, 0, false, false, six)[0]; h.reason != verdict.NotOwner {
		t.Errorf("to the group's link-local address: %s (%s)", h.verdict, h.reason)
	}
	if waiting, _, known := w.shards[0].Fragments(); waiting+known != 0 {
		t.Errorf("%d fragments wait, %d datagrams are followed", waiting, known)
	}

	w.until.Write(1, 1, w.now+1e9)
	w.until.Write(200, 1, w.now+1e9)
	if hops := w.carry(0, 2, false, false, piece(2, "198.18.30.5", "192.0.2.100", 0, true, 7)); hops[0].verdict != verdict.Loop {
		t.Fatalf("the first one: %+v", hops)
	}
	w.until.Write(1, 1, 0)
	if hops := w.carry(0, 2, false, false, piece(2, "198.18.30.5", "192.0.2.100", 8, false, 7)); len(hops) != 1 || hops[0].reason != verdict.NotOwner {
		t.Errorf("the later one: %d passes, %s (%s)", len(hops), hops[len(hops)-1].verdict, hops[len(hops)-1].reason)
	}
	if h := w.carry(0, 2, false, false, piece(2, "198.18.30.5", "192.0.2.100", 8, false, 8))[0]; h.reason != verdict.NotOwner {
		t.Errorf("one before its first: %s (%s)", h.verdict, h.reason)
	}
}

// TestNobodyIsToldForAGroupThatIsNotServed: a packet whose next hop did not answer comes back after the group has gone to the other node.
func TestNobodyIsToldForAGroupThatIsNotServed(t *testing.T) {
	w := groupWorld(t)
	w.until.Write(1, 1, w.now+1e9)
	h := w.carry(0, 1, false, false, udp4(t, 1, "198.18.10.5", 4000, "203.0.113.11", 53))[0]
	if h.verdict != verdict.Send {
		t.Fatalf("%+v", h)
	}
	for _, c := range []struct {
		until uint64
		want  verdict.Reason
		v     verdict.Verdict
	}{{0, verdict.NotOwner, verdict.Drop}, {w.now + 1e9, verdict.NoNeighbor, verdict.Send}} {
		w.until.Write(1, 1, c.until)
		s := Slot{Looped: true, Unreached: true, OutIface: 1}
		s.Buf, s.Off, s.Len = w.buf[:], 256, copy(w.buf[256:], h.frame)
		one := []Slot{s}
		w.shards[0].Process(one, w.now)
		if one[0].Verdict != c.v || one[0].Reason != c.want {
			t.Errorf("until %d: %s (%s), want %s (%s)", c.until, one[0].Verdict, one[0].Reason, c.v, c.want)
		}
	}
	// And what is sent from the backbone to the link-local address of a group.
	w.until.Write(1, 1, 0)
	ping := frame(t, eth(macs[0], layers.EthernetTypeIPv6), &layers.IPv6{Version: 6, HopLimit: 64, SrcIP: net.ParseIP("2001:db8:ff::11"), DstIP: net.ParseIP("fe80::200:5eff:fe00:201"), NextHeader: layers.IPProtocolICMPv6},
		&layers.ICMPv6{TypeCode: layers.CreateICMPv6TypeCode(128, 0)}, &layers.ICMPv6Echo{Identifier: 3})
	if h := w.carry(0, 0, false, false, ping)[0]; h.reason != verdict.NotOwner {
		t.Errorf("ping of the link-local address: %s (%s)", h.verdict, h.reason)
	}
}

// TestServesWhatHadCome: a group that is handed over is served behind its deadline for as long as the worker is not done with what had come for it, in that term and while the shard has it.
func TestServesWhatHadCome(t *testing.T) {
	w := newWorld(t, 1, testPolicy+testGroups)
	sh, east := w.shards[0], w.view.Group(1)
	var ending lease.Deadlines
	sh.parts, sh.now = &ending, w.now
	serves := func(step string, want bool) {
		t.Helper()
		if got := sh.serves(east); got != want {
			t.Errorf("%s: serves %t", step, got)
		}
	}
	serves("by its deadline", true)
	w.until.Write(1, 1, 0)
	serves("behind it", false)
	ending.Write(1, 1, w.now+1)
	serves("handing over", true)
	sh.now++
	serves("the time for that is over", false)
	sh.now--
	ending.Write(1, 2, w.now+1)
	serves("another term", false)
	ending.Write(1, 1, w.now+1)
	ending.End(1)
	serves("done with what had come", false)
	ending.Write(1, 1, w.now+1)
	sh.GiveUp(1)
	serves("given up", false)
}
