package e2e

import (
	"testing"
	"time"

	"demarc/gateway/netlab/quiet"
	nodes "demarc/gateway/trio"
)

// TestPairPortDown: the owner's port on the backbone goes down, and later the next owner's port to a tenant: the group moves with all of its connections, its copy at the node whose
// port is up again becomes whole, and a planned move goes back there.
func TestPairPortDown(t *testing.T) { pairJudged(t, portDown) }

func portDown(t *testing.T, l *quiet.Limits) {
	p := newPair(t, "pair", "")
	p.limits = l
	p.start()
	p.serve(5*time.Second, p.GW1)
	const count = 10
	conns, outside := p.hold(count)
	var events []event
	want := "gw1"
	for _, dev := range []string{"wan0", "alpha0"} {
		p.protected(p.GW1)
		time.Sleep(300 * time.Millisecond) // a term of less than the judge's Settle could be two that send at once
		e := event{what: dev + " of gw1 goes down", from: time.Now(), least: 5 * time.Millisecond, most: 300 * time.Millisecond}
		check(t, p.SetUp("gw1", dev, false))
		p.serve(5*time.Second, p.GW2)
		e.to = time.Now()
		events = append(events, e)
		if g, err := p.says(p.GW2); err != nil || g.Cause != "port" || g.From != "gw1" {
			p.wrong("%s went down, and gw2 says that it owns the group since %q, from %q, %v", dev, g.Cause, g.From, err)
		}
		check(t, p.SetUp("gw1", dev, true))
		if dev == "wan0" { // a group that has moved because of a condition stays for a while: a node that has just started knows of no such move
			check(t, p.GW1.Stop())
			check(t, p.GW1.Start(t.Context()))
		}
		p.protected(p.GW2)
		e = event{what: "planned move back", from: time.Now(), most: 150 * time.Millisecond}
		_, err := p.GW2.Run(t.Context(), "group", "move", nodes.PairGroup, "gw1")
		check(t, err)
		p.serve(5*time.Second, p.GW1)
		e.to = time.Now()
		events = append(events, e)
		want += " gw2 gw1"
	}
	p.agreed(p.GW1)
	p.release(count, conns, outside)
	seen, v := p.end()
	p.held(seen, events)
	p.turns(v, want)
	if n := len(seen.Moved()); n > 0 {
		t.Errorf("%d flows have another public port now", n)
	}
}
