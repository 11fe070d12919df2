package e2e

import (
	"strings"
	"testing"
	"time"

	"demarc/gateway/netlab/quiet"
	nodes "demarc/gateway/trio"
)

// A witness that is farther away than a lease allows is named by both gateways, with the way to it, before anything has happened; and what they say is so: when the owner's machine is gone, nobody
// serves.
func TestPairFarWitness(t *testing.T) {
	mostlyWaits(t)
	pairJudged(t, farWitness)
}

func farWitness(t *testing.T, l *quiet.Limits) {
	p := newPairOf(t, nodes.Options{Lab: labName(t, "far"), Lines: true}, "", nil)
	p.limits = l
	p.protected(p.GW1)
	for _, gw := range p.Gateways() { // there and back
		for _, way := range [][2]*nodes.Node{{gw, p.Witness}, {p.Witness, gw}} {
			_, err := p.Hinder(way[0], way[1], 0, 0, 70*time.Millisecond)
			check(t, err)
		}
	}
	for _, gw := range p.Gateways() {
		var why string
		if !until(10*time.Second, func() bool {
			g, err := p.says(gw)
			why = strings.Join(g.Why, "; ")
			return err == nil && strings.Contains(why, "witness is too far away") && g.Expected == 0
		}) {
			p.wrong("%s says of a witness 140 ms away: %q", gw.Name, why)
		}
	}
	if g, err := p.says(p.GW1); err != nil || !g.Serving || g.Solo { // each gateway is the other's second vote
		p.wrong("the owner does not serve beside a far witness: %+v, %v", g, err)
	}
	p.GW1.Vanish()
	for end := time.Now().Add(1500 * time.Millisecond); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		if g, err := p.says(p.GW2); err == nil && g.Serving {
			t.Fatalf("gw2 serves, and should have no lease by a witness that is 140 ms away: %+v", g)
		}
	}
}
