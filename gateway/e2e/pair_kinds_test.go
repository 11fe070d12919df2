package e2e

import (
	"fmt"
	"net"
	"net/netip"
	"testing"
	"time"

	"demarc/gateway/netlab/host"
	"demarc/gateway/netlab/quiet"
	nodes "demarc/gateway/trio"
)

const (
	kindsForward = "198.51.100.17" // of alpha's pool
	kindsStatic  = "198.51.100.30"
)

// TestPairKeepsKinds: what the outside began lives on behind the owner's death too: to a forwarded port, to and from a host that has a public address of its own, from one inside host to another by a forwarded port, and to an inside host by a
// rule (IPv6). TestPairKeepsConnections has what the inside begins.
func TestPairKeepsKinds(t *testing.T) {
	mostlyWaits(t)
	pairJudged(t, keepsKinds)
}

func keepsKinds(t *testing.T, l *quiet.Limits) {
	p := newPair(t, "kinds", "")
	p.limits = l
	inside := p.Addresses(nodes.PairAlpha, false)
	const rule = `
[[tenant.rule]]
name = "let-in"
direction = "in"
action = "allow"
service = ["tcp/8081-8083"]
`
	policy := replace(t, nodes.PairPolicy(""), "nat.pool = [\""+nodes.PairPool+"\"]\n", fmt.Sprintf(`[tenant.nat]
pool = [%q]
[[tenant.nat.forward]]
public = %q
proto = "tcp"
port = 8080
inside = %q
inside_port = 8081
[[tenant.nat.static]]
public = %q
inside = %q
%s`, nodes.PairPool, kindsForward, inside[0], kindsStatic, inside[1], rule))
	policy = replace(t, policy, "nat.pool = [\""+nodes.PairLinkPool+"\"]\n", "nat.pool = [\""+nodes.PairLinkPool+"\"]\n"+rule)
	p.apply(policy)

	const count = 10
	var conns []heldConns
	accepted := map[string]int{}
	servers := map[string]heldConns{}
	at := func(a netip.Addr, port int) string { return net.JoinHostPort(a.String(), fmt.Sprint(port)) }
	serve := func(ns string, a netip.Addr, port int) (to string) {
		t.Helper()
		to = at(a, port)
		s, err := p.Serve(ns, "tcp-hold-serve", "-addr", to)
		check(t, err)
		servers[to] = heldConns{ns, s}
		return to
	}
	begin := func(what, ns string, from netip.Addr, to, server string) {
		t.Helper()
		for _, every := range []string{"20ms", "0s"} {
			s, err := p.Serve(ns, "tcp-hold", "-dst", to, "-from", from.String(), "-count", fmt.Sprint(count), "-every", every, "-within", "5s")
			check(t, err)
			conns = append(conns, heldConns{what + ", a block each " + every, s})
			accepted[server] += count
		}
	}
	out, out6, beta6 := p.Outside(false), p.Outside(true), p.Inside(nodes.PairBeta, true)
	forwarded := serve(nodes.PairAlpha, inside[0], 8081)
	public := at(netip.MustParseAddr(kindsForward), 8080)
	begin("to a forwarded port", nodes.PairOut, out, public, forwarded)
	begin("to a forwarded port from inside", nodes.PairAlpha, inside[2], public, forwarded)
	begin("to a host with an address of its own", nodes.PairOut, out, at(netip.MustParseAddr(kindsStatic), 8082), serve(nodes.PairAlpha, inside[1], 8082))
	beyond := serve(nodes.PairOut, out, nodes.PairHoldPort)
	begin("from a host with an address of its own", nodes.PairAlpha, inside[1], beyond, beyond)
	routed := serve(nodes.PairBeta, beta6, 8083)
	begin("to an inside host by a rule", nodes.PairOut, out6, routed, routed)

	owner := p.GW1
	for range 2 { // and back: of what was a copy another one is made
		p.protected(owner)
		owner.Kill()
		dead := owner
		owner = p.Other(owner)
		p.owned(owner, "", dead.Name)
		check(t, dead.Start(t.Context()))
		check(t, p.Whole(t.Context(), 20*time.Second, nil))
	}
	for _, c := range conns {
		var h host.Held
		check(t, c.s.StopWithin(10*time.Second, &h))
		t.Logf("%-60s %3d open, %d lost, %4d blocks, the longest took %6.1f ms", c.what, h.Opened, h.Lost, h.Blocks, h.LongestMs)
		if h.Opened != count || h.Lost != 0 {
			t.Errorf("%s: of %d connections %d are lost: %v", c.what, h.Opened, h.Lost, h.Why)
		}
	}
	for to, s := range servers {
		var h host.HoldServed
		check(t, s.s.Stop(&h))
		if h.Bad != 0 || h.Accepted != accepted[to] {
			t.Errorf("%s in %s: %d accepted, want %d, %d blocks with another's content", to, s.what, h.Accepted, accepted[to], h.Bad)
		}
	}
	p.agreed(owner)
}
