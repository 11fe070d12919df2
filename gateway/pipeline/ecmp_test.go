package pipeline

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"

	"demarc/gateway/fib"
	"demarc/gateway/flow"
	"demarc/gateway/replica"
	"demarc/gateway/verdict"
)

// ecmpPolicy has so many uplinks, and two routers inside tenant alpha.
func ecmpPolicy(uplinks ...string) string {
	list := `"` + strings.Join(uplinks, `", "`) + `"`
	return `schema = 1
[backbone]
interfaces = ["backbone"]
[[route]]
prefix = "198.51.100.0/24"
via = [` + list + `]
[[route]]
prefix = "2001:db8:99::/48"
via = ["2001:db8:ff::f1", "2001:db8:ff::f2"]
[[tenant]]
name = "alpha"
interfaces = ["alpha"]
prefixes = ["198.18.10.0/24", "198.18.64.0/24", "2001:db8:a::/64"]
[[tenant.route]]
prefix = "198.18.64.0/24"
via = ["198.18.10.253", "198.18.10.254"]
[tenant.nat]
pool = ["192.0.2.16/30"]
[[tenant.nat.static]]
public = "192.0.2.100"
inside = "198.18.64.100"
[[tenant.rule]]
direction = "in"
action = "allow"
`
}

// ecmpNode has room for the flows of these tests, none of which is answered.
func ecmpNode() string { return benchNode(8192) }

const up1, up2, up3 = "203.0.113.241", "203.0.113.242", "203.0.113.243"

// via gives a neighbour of an interface a MAC of its own and returns it.
func (r *rig) via(iface uint16, a string) [6]byte {
	r.t.Helper()
	ad := netip.MustParseAddr(a)
	fa, family := flow.AddrFrom(ad), uint8(6)
	if ad.Is4() {
		family = 4
	}
	mac := [6]byte{2, 7, byte(iface), family, fa[3], fa[15]}
	if err := r.sh.Neighbors.Set(iface, family, &fa, mac, fib.Permanent, 0); err != nil {
		r.t.Fatal(err)
	}
	return mac
}

// state is that of a router of the view that is served.
func (r *rig) state(a string) *fib.HopState {
	r.t.Helper()
	for _, h := range r.sh.View().NextHops() {
		if h.Addr == netip.MustParseAddr(a) {
			return h.State
		}
	}
	r.t.Fatalf("%s is no next hop", a)
	return nil
}

func (r *rig) apply(policy string) {
	r.t.Helper()
	v := compileView(r.t, r.node, r.space, r.sh.View(), policy)
	r.sh.SetView(v)
}

// went is where a packet was sent and with which source.
type went struct {
	mac [6]byte
	src string
}

// out sends a packet of flow n of alpha out and says where it went, or why not.
func (r *rig) out(n int) (went, verdict.Reason) {
	r.t.Helper()
	s := &r.send(1, udp4(r.t, 1, fmt.Sprintf("198.18.10.%d", 10+n%100), uint16(2000+n/100), "198.51.100.7", 53))[0]
	return r.where(s)
}

func (r *rig) where(s *Slot) (w went, why verdict.Reason) {
	r.t.Helper()
	if s.Verdict == verdict.Drop {
		r.told[s.Reason] = r.sh.Meter.Drops(s.Tenant, s.Reason)
		return w, s.Reason
	}
	p := r.want(s, verdict.Send)
	if p.Layer(layers.LayerTypeICMPv4) != nil { // a drop that its sender is told
		for _, why := range []verdict.Reason{verdict.NoRoute, verdict.NoNeighbor, verdict.InterfaceDown} {
			n := r.sh.Meter.Drops(s.Tenant, why)
			if now := n > r.told[why]; now {
				r.told[why] = n
				return w, why
			}
		}
		r.t.Fatalf("an error for no reason: %s", p)
	}
	w.mac = [6]byte(s.Frame()[:6])
	if u, ok := p.TransportLayer().(*layers.UDP); ok {
		w.src = fmt.Sprintf("%s:%d", p.NetworkLayer().NetworkFlow().Src(), u.SrcPort)
	}
	return w, verdict.Pass
}

// Conversations are shared among the next hops, each stays on its own, and where a next hop dies only its conversations move; they keep their public
// address and port. What has moved stays where it is when the dead one returns, and new ones go there again.
func TestADeadNextHopMovesOnlyItsFlows(t *testing.T) {
	r := newRig(t, ecmpNode(), ecmpPolicy(up1, up2, up3))
	macs := map[[6]byte]string{r.via(1, up1): up1, r.via(1, up2): up2, r.via(1, up3): up3}
	const flows = 600
	first := map[int]went{}
	count := map[string]int{}
	for n := range flows {
		w, why := r.out(n)
		if why != verdict.Pass {
			t.Fatalf("flow %d: %s", n, why)
		}
		first[n] = w
		count[macs[w.mac]]++
	}
	for _, a := range []string{up1, up2, up3} { // 200 each; 5 standard deviations are 58
		if count[a] < 142 || count[a] > 258 {
			t.Errorf("%d of %d flows go by %s", count[a], flows, a)
		}
	}
	same := func(when string, want map[int]went) {
		t.Helper()
		for n := range flows {
			if w, why := r.out(n); why != verdict.Pass || w != want[n] {
				t.Fatalf("%s: flow %d went to %s as %s (%s), before to %s as %s", when, n, macs[w.mac], w.src, why, macs[want[n].mac], want[n].src)
			}
		}
	}
	same("again", first)
	for _, a := range []string{up1, up2, up3} {
		r.state(a).Answered(1)
	}
	same("all answered", first)

	r.state(up2).Silent(2)
	then := map[int]went{}
	spread := map[string]int{}
	for n := range flows {
		w, why := r.out(n)
		switch {
		case why != verdict.Pass:
			t.Fatalf("flow %d: %s", n, why)
		case w.src != first[n].src:
			t.Fatalf("flow %d was %s outside and is %s", n, first[n].src, w.src)
		case macs[first[n].mac] != up2 && w != first[n]:
			t.Fatalf("flow %d moved from %s to %s, and only %s is dead", n, macs[first[n].mac], macs[w.mac], up2)
		case macs[w.mac] == up2:
			t.Fatalf("flow %d goes to the dead one", n)
		case macs[first[n].mac] == up2:
			spread[macs[w.mac]]++
		}
		then[n] = w
	}
	if spread[up1] < count[up2]/4 || spread[up3] < count[up2]/4 {
		t.Errorf("the dead one's flows were shared out as %v", spread)
	}
	if got := r.sh.Moved.Load(); got != uint64(count[up2]) {
		t.Errorf("%d moved, want %d", got, count[up2])
	}

	r.state(up2).Answered(3)
	same("it returned", then)
	fresh := map[string]int{}
	for n := flows; n < flows+200; n++ {
		w, why := r.out(n)
		if why != verdict.Pass {
			t.Fatal(why)
		}
		fresh[macs[w.mac]]++
	}
	if fresh[up2] < 30 {
		t.Errorf("new flows after its return: %v", fresh)
	}

	// It comes and goes: nothing moves but what was there.
	for i := range 20 {
		if i%2 == 0 {
			r.state(up1).Silent(uint64(10 + i))
		} else {
			r.state(up1).Answered(uint64(10 + i))
		}
		for n := range flows {
			w, why := r.out(n)
			if why != verdict.Pass || w.src != first[n].src || i > 0 && w != then[n] {
				t.Fatalf("round %d, flow %d: %s, %s, was %s", i, n, why, macs[w.mac], macs[then[n].mac])
			}
			then[n] = w
		}
	}
}

// Without a living next hop a packet is dropped for what is the matter, and leaves no session; those that are there live on.
func TestAllNextHopsAreDead(t *testing.T) {
	r := newRig(t, ecmpNode(), ecmpPolicy(up1, up2))
	r.via(1, up1)
	r.via(1, up2)
	old, _ := r.out(0)
	r.state(up1).Silent(1)
	r.state(up2).Silent(1)
	for _, n := range []int{0, 1} {
		if _, why := r.out(n); why != verdict.NoNeighbor {
			t.Errorf("flow %d: %s", n, why)
		}
	}
	r.state(up1).Link(false, 2)
	r.state(up2).Link(false, 2)
	for _, n := range []int{0, 1} {
		if _, why := r.out(n); why != verdict.InterfaceDown {
			t.Errorf("flow %d: %s", n, why)
		}
	}
	if r.sh.Sessions.Len() != 1 {
		t.Errorf("%d sessions", r.sh.Sessions.Len())
	}
	r.state(up1).Link(true, 3)
	r.state(up2).Link(true, 3)
	if w, why := r.out(0); why != verdict.Pass || w != old {
		t.Errorf("back again: %+v, %s, was %+v", w, why, old)
	}
	// One that is alone is the same.
	r = newRig(t, ecmpNode(), ecmpPolicy(up1))
	r.via(1, up1)
	r.state(up1).Silent(1)
	if _, why := r.out(0); why != verdict.NoNeighbor || r.sh.Sessions.Len() != 0 {
		t.Errorf("%s, %d sessions", why, r.sh.Sessions.Len())
	}
}

// Who has not answered yet gets nothing while another has; when none has, all do.
func TestNewNextHopMustAnswerFirst(t *testing.T) {
	r := newRig(t, ecmpNode(), ecmpPolicy(up1, up2))
	m1 := r.via(1, up1)
	r.via(1, up2)
	r.state(up1).Answered(1)
	for n := range 50 {
		if w, why := r.out(n); why != verdict.Pass || w.mac != m1 {
			t.Fatalf("flow %d: %x, %s", n, w.mac, why)
		}
	}
}

// Each side of a conversation has its own choice, whoever began it: answers to the outside are shared among the uplinks, and what comes in
// among the routers inside.
func TestBothDirectionsHaveTheirNextHop(t *testing.T) {
	r := newRig(t, ecmpNode(), ecmpPolicy(up1, up2))
	outer := map[[6]byte]int{r.via(1, up1): 0, r.via(1, up2): 0}
	inner := map[[6]byte]int{r.via(2, "198.18.10.253"): 0, r.via(2, "198.18.10.254"): 0}
	type pair struct{ in, back [6]byte }
	first := map[int]pair{}
	for round := range 3 {
		if round == 2 {
			r.state("198.18.10.253").Silent(1)
			r.state(up1).Silent(1)
		}
		for n := range 100 {
			from := fmt.Sprintf("198.51.100.%d", 10+n)
			in, why := r.where(&r.send(0, udp4(t, 0, from, 4000, "192.0.2.100", 80))[0])
			if why != verdict.Pass {
				t.Fatal(why)
			}
			back, why := r.where(&r.send(1, udp4(t, 1, "198.18.64.100", 80, from, 4000))[0])
			if why != verdict.Pass || back.src != "192.0.2.100:80" {
				t.Fatalf("%s %+v", why, back)
			}
			now := pair{in.mac, back.mac}
			switch _, a := inner[in.mac]; {
			case !a:
				t.Fatalf("went in by %x", in.mac)
			case round == 0:
				first[n] = now
				inner[in.mac]++
				outer[back.mac]++
			case round == 1 && now != first[n]:
				t.Fatalf("moved from %x to %x", first[n], now)
			case round == 2 && (in.mac[4] == 10 && in.mac == r.via(2, "198.18.10.253") || back.mac == r.via(1, up1)):
				t.Fatalf("goes by the dead: %x", now)
			}
		}
	}
	for mac, n := range inner {
		if n < 20 {
			t.Errorf("%d of 100 went in by %x", n, mac)
		}
	}
	for mac, n := range outer {
		if n < 20 {
			t.Errorf("%d of 100 answers left by %x", n, mac)
		}
	}
	if r.sh.Sessions.Len() != 100 {
		t.Errorf("%d sessions", r.sh.Sessions.Len())
	}
}

func TestNextHopsOfIPv6(t *testing.T) {
	r := newRig(t, ecmpNode(), ecmpPolicy(up1))
	count := map[[6]byte]int{r.via(1, "2001:db8:ff::f1"): 0, r.via(1, "2001:db8:ff::f2"): 0}
	send := func(n int) [6]byte {
		ip := &layers.IPv6{Version: 6, HopLimit: 64, SrcIP: netip.MustParseAddr("2001:db8:a::11").AsSlice(), DstIP: netip.MustParseAddr("2001:db8:99::7").AsSlice(), NextHeader: layers.IPProtocolUDP}
		s := &r.send(1, frame(t, eth(macs[1], layers.EthernetTypeIPv6), ip, udp(uint16(2000+n), 53), gopacket.Payload("x")))[0]
		w, why := r.where(s)
		if why != verdict.Pass {
			t.Fatal(why)
		}
		return w.mac
	}
	first := map[int][6]byte{}
	for n := range 100 {
		first[n] = send(n)
		count[first[n]]++
	}
	if len(count) != 2 || count[r.via(1, "2001:db8:ff::f1")] < 20 || count[r.via(1, "2001:db8:ff::f2")] < 20 {
		t.Errorf("%v", count)
	}
	r.state("2001:db8:ff::f1").Silent(1)
	for n := range 100 {
		if got := send(n); got != r.via(1, "2001:db8:ff::f2") {
			t.Fatalf("flow %d went to %x", n, got)
		}
	}
}

// An applied policy moves nothing that need not move: a rule more, the list in another order, a next hop more. One that no route names any
// more loses its conversations to the others, and one that is named again gets new ones only.
func TestApplyKeepsFlowsOnTheirNextHop(t *testing.T) {
	r := newRig(t, ecmpNode(), ecmpPolicy(up1, up2))
	names := map[[6]byte]string{r.via(1, up1): up1, r.via(1, up2): up2, r.via(1, up3): up3}
	const flows = 300
	at := map[int]went{}
	check := func(when string, mayMove func(from string) bool) {
		t.Helper()
		for n := range flows {
			w, why := r.out(n)
			if why != verdict.Pass {
				t.Fatalf("%s: flow %d: %s", when, n, why)
			}
			if old, ok := at[n]; ok && (w.src != old.src || w != old && !mayMove(names[old.mac])) {
				t.Fatalf("%s: flow %d moved from %s to %s, %s to %s", when, n, names[old.mac], names[w.mac], old.src, w.src)
			}
			at[n] = w
		}
	}
	none := func(string) bool { return false }
	check("first", none)
	r.state(up1).Answered(1)
	dead := r.state(up2)
	r.apply(ecmpPolicy(up1, up2) + "[[tenant.rule]]\ndirection = \"out\"\naction = \"deny\"\nservice = [\"tcp/25\"]\n")
	if r.state(up2) != dead {
		t.Error("a next hop that stays has lost its state")
	}
	check("a rule more", none)
	r.apply(ecmpPolicy(up2, up1))
	check("other order", none)
	r.apply(ecmpPolicy(up3, up2, up1))
	check("one more", none)
	for r.sh.Rejudge(r.now, 4096); !r.sh.Settled(); {
		r.sh.Rejudge(r.now, 4096)
	}
	r.apply(ecmpPolicy(up3, up1))
	check("one less", func(from string) bool { return from == up2 })
	r.apply(ecmpPolicy(up3, up2, up1))
	check("back again", none)
	r.apply(ecmpPolicy(up1))
	check("only one", func(from string) bool { return from != up1 })
	r.apply(ecmpPolicy(up1, up2, up3))
	check("from one to three", none)
	for _, w := range at {
		if names[w.mac] != up1 {
			t.Fatalf("a flow is at %s", names[w.mac])
		}
	}
}

// The route goes and comes back, to the same and to the other side: sessions survive while it is away, nothing leaves untranslated, and
// nothing leaves by a side that it was not judged for.
func TestRouteFlapLeaksNothing(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 1))
	with, without := ecmpPolicy(up1, up2), strings.Replace(ecmpPolicy(up1, up2), `prefix = "198.51.100.0/24"`, `prefix = "198.51.99.0/24"`, 1)
	inside := strings.Replace(with, "[tenant.nat]\n", "[[tenant.route]]\nprefix = \"198.51.100.0/24\"\nvia = [\"198.18.10.253\", \"198.18.10.254\"]\n[tenant.nat]\n", 1)
	r := newRig(t, ecmpNode(), with)
	outer := map[[6]byte]bool{r.via(1, up1): true, r.via(1, up2): true}
	inner := map[[6]byte]bool{r.via(2, "198.18.10.253"): true, r.via(2, "198.18.10.254"): true}
	pub := netip.MustParsePrefix("192.0.2.16/30")
	now, public := "with", map[int]string{}
	for i := range 4000 {
		switch rng.IntN(40) {
		case 0:
			r.apply(with)
			now = "with"
		case 1:
			r.apply(without)
			now = "without"
		case 2:
			r.apply(inside)
			now, public = "inside", map[int]string{}
		case 3:
			r.state(up1).Silent(uint64(i))
		case 4:
			r.state(up1).Answered(uint64(i))
		case 5:
			r.state(up2).Link(rng.IntN(2) == 0, uint64(i))
		case 6:
			r.sh.Rejudge(r.now, 64)
		}
		n := rng.IntN(60)
		w, why := r.out(n)
		if why != verdict.Pass {
			switch {
			case why == verdict.SessionCut && now != "without": // to the other side and back
				delete(public, n)
			case why == verdict.NoRoute && now == "without", (why == verdict.NoNeighbor || why == verdict.InterfaceDown) && now == "with":
			default:
				t.Fatalf("%d: %s: flow %d: %s", i, now, n, why)
			}
			continue
		}
		src := netip.MustParseAddrPort(w.src).Addr()
		switch now {
		case "without":
			t.Fatalf("%d: flow %d left without a route", i, n)
		case "inside":
			if !inner[w.mac] || pub.Contains(src) {
				t.Fatalf("%d: flow %d went to %x as %s and the route leads inside", i, n, w.mac, w.src)
			}
		case "with":
			if !outer[w.mac] || !pub.Contains(src) {
				t.Fatalf("%d: flow %d left to %x as %s", i, n, w.mac, w.src)
			}
			if was, ok := public[n]; ok && was != w.src {
				t.Fatalf("%d: flow %d was %s outside and is %s", i, n, was, w.src)
			}
			public[n] = w.src
		}
	}
}

// Neither choosing nor moving allocates.
func TestNextHopsDoNotAllocate(t *testing.T) {
	r := newRig(t, ecmpNode(), ecmpPolicy(up1, up2, up3))
	for _, a := range []string{up1, up2, up3} {
		r.via(1, a)
	}
	frames := make([][]byte, 32)
	for i := range frames {
		frames[i] = udp4(t, 1, "198.18.10.11", uint16(3000+i), "198.51.100.7", 53)
	}
	at := uint64(1)
	if n := testing.AllocsPerRun(50, func() {
		at++
		if at%2 == 0 {
			r.state(up1).Silent(at)
			r.state(up2).Answered(at)
		} else {
			r.state(up1).Answered(at)
			r.state(up2).Silent(at)
		}
	}); n > 20 {
		t.Fatalf("the states alone: %v", n)
	}
	s1, s2 := r.state(up1), r.state(up2)
	if n := testing.AllocsPerRun(200, func() {
		at++
		if at%2 == 0 {
			s1.Silent(at)
			s2.Answered(at)
		} else {
			s1.Answered(at)
			s2.Silent(at)
		}
		r.send(1, frames...)
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
	if r.sh.Moved.Load() < 32 {
		t.Errorf("%d moved: nothing was tried", r.sh.Moved.Load())
	}
}

// backupPolicy has one way with a backup, and another for which they are the other way round.
func backupPolicy(via, backup string) string {
	return strings.Replace(ecmpPolicy(via), "via = [\""+via+"\"]\n", "via = \""+via+"\"\nbackup = "+backup+"\n[[route]]\nprefix = \"203.0.113.128/26\"\nvia = \""+up2+"\"\nbackup = \""+via+"\"\n", 1)
}

// A backup has conversations while what it stands in for is not up, and no longer; they keep their public address and port both times.
func TestBackupStandsIn(t *testing.T) {
	r := newRig(t, ecmpNode(), backupPolicy(up1, `["`+up2+`", "`+up3+`"]`))
	macs := map[[6]byte]string{r.via(1, up1): up1, r.via(1, up2): up2, r.via(1, up3): up3}
	const flows = 200
	public := map[int]string{}
	by := func(when string, want ...string) {
		t.Helper()
		count := map[string]int{}
		for n := range flows {
			w, why := r.out(n)
			if why != verdict.Pass {
				t.Fatalf("%s: flow %d: %s", when, n, why)
			}
			if was, known := public[n]; known && was != w.src {
				t.Fatalf("%s: flow %d was %s outside and is %s", when, n, was, w.src)
			}
			public[n] = w.src
			count[macs[w.mac]]++
		}
		for _, a := range want {
			if count[a] < flows/len(want)/2 {
				t.Errorf("%s: %v, want %v", when, count, want)
			}
		}
		if len(count) != len(want) {
			t.Errorf("%s: %v, want %v", when, count, want)
		}
	}
	reverse := func(when, want string) { // the other route: by up2, and by up1 where that is dead
		t.Helper()
		s := &r.send(1, udp4(t, 1, "198.18.10.77", 999, "203.0.113.130", 53))[0]
		if w, why := r.where(s); why != verdict.Pass || macs[w.mac] != want {
			t.Errorf("%s: the other way: by %s (%s), want %s", when, macs[w.mac], why, want)
		}
	}
	by("nobody has answered", up1)
	reverse("nobody has answered", up2)
	r.state(up1).Answered(1)
	r.state(up2).Answered(1)
	r.state(up3).Answered(1)
	by("all are up", up1)
	if n := r.sh.Moved.Load(); n != 0 {
		t.Errorf("%d moved", n)
	}
	r.state(up1).Silent(2)
	by("the first is dead", up2, up3)
	reverse("the first is dead", up2)
	r.state(up3).Silent(3)
	by("one backup is dead", up2)
	r.state(up2).Silent(4)
	if _, why := r.out(0); why != verdict.NoNeighbor {
		t.Errorf("all are dead: %s", why)
	}
	r.state(up2).Answered(5)
	by("one backup is back", up2)
	r.state(up1).Link(false, 6)
	r.state(up1).Link(true, 6)
	by("the first may be back, and has not answered", up2)
	reverse("the first may be back", up2)
	r.state(up1).Answered(7)
	by("the first is back, and not for long", up2)
	if at := r.state(up1).Settle(8, 10); at != 17 {
		t.Errorf("it is to be asked again at %d", at)
	}
	r.state(up1).Settle(17, 10)
	by("the first is back", up1)
	r.state(up2).Silent(8)
	reverse("its own is dead", up1)
	r.state(up2).Answered(9)
	reverse("its own is back, and not for long", up1)
	r.state(up2).Settle(9, 0)
	reverse("its own is back", up2)

	// What changes of the policy changes nothing of that.
	r.state(up1).Silent(10)
	r.state(up3).Answered(10)
	by("the first is dead again", up2, up3)
	first := map[int]went{}
	for n := range flows {
		first[n], _ = r.out(n)
	}
	r.apply(backupPolicy(up1, `["`+up3+`", "`+up2+`"]`) + "[[tenant.rule]]\ndirection = \"out\"\naction = \"deny\"\nservice = [\"tcp/25\"]\n")
	for n := range flows {
		if w, why := r.out(n); why != verdict.Pass || w != first[n] {
			t.Fatalf("flow %d: %s, %s, before by %s", n, why, macs[w.mac], macs[first[n].mac])
		}
	}
	for r.sh.Rejudge(r.now, 4096); !r.sh.Settled(); {
		r.sh.Rejudge(r.now, 4096)
	}
	r.apply(backupPolicy(up1, `"`+up3+`"`))
	by("one backup less", up3)
	r.apply(ecmpPolicy(up1, up3))
	by("a backup that is one of the first", up3)
	r.state(up1).Answered(11)
	by("who is there stays", up3)
	r.state(up3).Settle(11, 0)
	r.apply(backupPolicy(up1, `"`+up3+`"`))
	by("it is a backup again, and the first is not back for long", up3)
	r.state(up1).Settle(11, 0)
	by("it is a backup again", up1)
}

// Each router is looked after once, whatever it is to how many routes; and a report says who takes what.
func TestBackupIsListed(t *testing.T) {
	r := newRig(t, ecmpNode(), backupPolicy(up1, `["`+up2+`", "`+up3+`"]`))
	got := map[string]string{}
	for _, h := range r.sh.View().NextHops() {
		if _, twice := got[h.Addr.String()]; twice {
			t.Errorf("%s is there twice", h.Addr)
		}
		got[h.Addr.String()] = fmt.Sprintf("shared %v, backup %v", h.Shared, h.Backup)
	}
	for a, want := range map[string]string{up1: "shared true, backup false", up2: "shared true, backup false", up3: "shared true, backup true"} {
		if got[a] != want {
			t.Errorf("%s: %s, want %s", a, got[a], want)
		}
	}
	takes := func() (list []string) {
		v := r.sh.View()
		for _, x := range v.Routes() {
			for _, h := range v.RouteHops(x.NextHop) {
				if h.Takes && x.Prefix.String() == "198.51.100.0/24" {
					list = append(list, h.Via.Netip(4).String())
				}
			}
		}
		return list
	}
	want := func(want ...string) {
		t.Helper()
		if list := takes(); fmt.Sprint(list) != fmt.Sprint(want) {
			t.Errorf("%v take conversations, want %v", list, want)
		}
	}
	want(up1)
	r.state(up1).Silent(1)
	want(up2, up3)
	r.state(up3).Answered(2)
	want(up3)
	r.state(up3).Silent(3)
	r.state(up2).Silent(3)
	want()
	r.state(up1).Answered(4)
	want(up1) // better than one that is dead
	r.state(up2).Answered(5)
	want(up1) // neither is sure
	r.state(up2).Settle(5, 0)
	want(up2)
	r.state(up1).Settle(6, 0)
	want(up1)
	var names []string
	for _, h := range r.sh.View().StandsIn(1, netip.MustParseAddr(up1)) {
		names = append(names, h.Via.Netip(4).String())
	}
	if fmt.Sprint(names) != fmt.Sprint([]string{up2, up3}) {
		t.Errorf("%v stand in for the first", names)
	}
}

// A copy, and what an earlier process has left, name a session's router: it is found by that name as the router that it is, and not as the route that has the name of its first one, which no session ever leaves.
func TestRoutersHaveNamesOfTheirOwn(t *testing.T) {
	for _, policy := range []string{ecmpPolicy(up1), ecmpPolicy(up1, up2, up3), backupPolicy(up1, `["`+up3+`", "`+up2+`"]`)} {
		r := newRig(t, ecmpNode(), policy)
		v, c := r.sh.View(), &Copied{Shards: []*Shard{r.sh}}
		seen := map[string]uint16{}
		for nh := range v.Hops {
			for _, via := range slices.Concat(v.Hops[nh].Vias, v.Hops[nh].Backups) {
				name := nameOf(v, replica.NameHop, via)
				if was, known := seen[name]; known && was != via {
					t.Errorf("%q is two routers", name)
				}
				seen[name] = via
				if got, ok := c.Local(replica.NameHop, name); !ok || got != via {
					t.Errorf("%q is found as %d (%v), want %d", name, got, ok, via)
				}
			}
		}
		if len(seen) == 0 {
			t.Error("no routers")
		}
	}
}
