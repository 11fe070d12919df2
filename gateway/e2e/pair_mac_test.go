package e2e

import (
	"fmt"
	"maps"
	"slices"
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
// planned move cost no connection. The judge goes by the ports' MACs, and the hosts' neighbour tables say who was believed.
func TestPairPortMAC(t *testing.T) { pairJudged(t, portMAC) }

func portMAC(t *testing.T, l *quiet.Limits) {
	p := newPairOf(t, nodes.Options{Lab: "pair", PortMAC: true}, "mac = \"port\"\n", nil)
	p.limits = l
	p.byLinkLocal()
	const count = 10
	p.owned(p.GW1, "first", "")
	var events []event
	begin := func() {
		t.Helper()
		events = nil
		check(t, p.Watch())
		specs := slices.DeleteFunc(p.FlowSpecs(1, 2*time.Millisecond), func(s netlab.FlowSpec) bool { return s.Inside == nodes.PairDeaf }) // who does not listen finds out by its own timer
		var err error
		p.flows, err = p.StartFlows(specs...)
		check(t, err)
		p.began = time.Now()
		time.Sleep(200 * time.Millisecond)
	}
	judged := func(turns string) {
		t.Helper()
		seen, v := p.end()
		p.held(seen, events)
		p.turns(v, turns)
		if m := seen.Moved(); len(m) > 0 {
			t.Errorf("%d flows have another public port now: %s", len(m), strings.Join(m[:min(len(m), 3)], ", "))
		}
	}
	begin()
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
		time.Sleep(apart)
		e := event{what: "group move to " + to.Name, from: time.Now(), most: 300 * time.Millisecond}
		_, err := from.Run(t.Context(), "group", "move", nodes.PairGroup, to.Name)
		check(t, err)
		p.owned(to, "move", from.Name)
		at(to)
		e.to = time.Now()
		events = append(events, e)
		time.Sleep(150 * time.Millisecond) // the judge takes a shorter term for none
	}
	move(p.GW1)
	move(p.GW2)
	p.protected(p.GW1)
	p.release(count, conns, outside)
	judged("gw1 gw2 gw1")

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

	begin()
	conns, outside = p.hold(count)
	p.protected(p.GW1)
	time.Sleep(apart)
	e := event{what: "kill -9 of gw1", from: time.Now(), least: time.Millisecond, most: 500 * time.Millisecond}
	p.GW1.Kill()
	p.owned(p.GW2, "", "gw1")
	at(p.GW2)
	e.to = time.Now()
	events = append(events, e)
	check(t, p.GW1.Start(t.Context()))
	p.protected(p.GW2)
	p.agreed(p.GW2)
	p.release(count, conns, outside)
	judged("gw1 gw2")
}
