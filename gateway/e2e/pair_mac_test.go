package e2e

import (
	"fmt"
	"maps"
	"strings"
	"testing"
	"time"

	"demarc/configs"
	"demarc/gateway/netlab"
	"demarc/gateway/netlab/quiet"
	nodes "demarc/gateway/trio"
)

// byLinkLocal has the hosts send IPv6 to the group's link-local address, as those do that were told of their router by an advertisement.
func (p *pairLab) byLinkLocal() {
	p.t.Helper()
	router := (&configs.Group{ID: 1}).LinkLocal().String()
	for ns, to := range map[string][]string{nodes.PairAlpha: {"default"}, nodes.PairDeaf: {"default"}, nodes.PairBeta: {"default"}, nodes.PairOut: {"2001:db8:a::/64", "2001:db8:b::/64"}} {
		for _, to := range to {
			if out, err := p.Exec(ns, "ip", "-6", "route", "replace", to, "via", router, "dev", netlab.HostDevice); err != nil {
				p.t.Fatalf("%s: %v %s", ns, err, out)
			}
		}
	}
}

// TestPairPortMAC: with `mac = "port"` the group's addresses, its link-local one too, are at the MAC of the port of who serves, and hosts with ordinary neighbour caches are told of the next one by who has it now: a death and a
// planned move cost no connection. The judge of the other tests knows a group by its virtual MACs, so here it is the hosts' neighbour tables that say who was believed.
func TestPairPortMAC(t *testing.T) { pairJudged(t, portMAC) }

func portMAC(t *testing.T, l *quiet.Limits) {
	p := newPair(t, "pair", "mac = \"port\"\n")
	p.limits = l
	p.byLinkLocal()
	const count = 10
	p.owned(p.GW1, "first", "")
	conns, outside := p.hold(count)
	at := func(owner *nodes.Node) {
		t.Helper()
		for _, side := range []struct {
			ns, sw, v4 string
		}{{nodes.PairAlpha, "swa", nodes.PairInside4 + "1"}, {nodes.PairBeta, "swb", nodes.PairInside4 + "1"}, {nodes.PairOut, "swo", "203.0.113.1"}} {
			own := 2
			if owner == p.GW2 {
				own = 3
			}
			mac := fmt.Sprintf("lladdr 02:d3:00:01:%02x:%02x", side.sw[2], own)
			for _, addr := range []string{side.v4, (&configs.Group{ID: 1}).LinkLocal().String()} {
				var out []byte
				var err error
				if !until(2*time.Second, func() bool {
					out, err = p.Exec(side.ns, "ip", "neigh", "show", addr, "dev", netlab.HostDevice)
					return err == nil && strings.Contains(string(out), mac)
				}) {
					p.wrong("%s serves, and %s has %s at %q, want %s (%v)", owner.Name, side.ns, addr, strings.TrimSpace(string(out)), mac, err)
				}
			}
		}
	}
	at(p.GW1)
	move := func(from *nodes.Node) {
		t.Helper()
		to := p.Other(from)
		p.protected(from)
		_, err := from.Run(t.Context(), "group", "move", nodes.PairGroup, to.Name)
		check(t, err)
		p.owned(to, "move", from.Name)
		at(to)
	}
	move(p.GW1)
	move(p.GW2)
	p.protected(p.GW1)
	p.release(count, conns, outside)

	// What was passed on for each tenant is billed: moves under traffic bring all of it, which is what both processes have counted themselves.
	time.Sleep(500 * time.Millisecond)
	billed, own := p.usage(p.GW1).bytes, map[string]uint64{}
	for _, n := range p.Gateways() {
		s, err := n.Status(t.Context())
		check(t, err)
		for _, x := range s.Tenants {
			own[x.Name] += x.Out.Bytes + x.In.Bytes
		}
	}
	if !maps.Equal(billed, own) || billed["alpha"] == 0 {
		p.missed("both gateways have passed on %v bytes, and %v are billed", own, billed)
	}

	conns, outside = p.hold(count)
	p.protected(p.GW1)
	time.Sleep(apart)
	p.GW1.Kill()
	p.owned(p.GW2, "", "gw1")
	at(p.GW2)
	check(t, p.GW1.Start(t.Context()))
	p.protected(p.GW2)
	p.agreed(p.GW2)
	p.release(count, conns, outside)
}
