package e2e

import (
	"slices"
	"testing"
	"time"

	"demarc/gateway/api"
	nodes "demarc/gateway/trio"
)

// TestPairKeep is `alone = "keep"` of two gateways without a witness: the owner serves on by itself, be the other one not heard or gone, and again after its own death; the other one takes over by a move, by a release, and by an operator's force, and
// by nothing else, however long the owner is gone. Never do both serve.
func TestPairKeep(t *testing.T) {
	mostlyWaits(t)
	const long = 1200 * time.Millisecond                                                                                             // eight leases
	p := newPairOf(t, nodes.Options{Lab: labName(t, "keep"), Two: true}, "alone = \"keep\"\n\n[timeouts]\nnat_hold = \"1s\"\n", nil) // ports rest for so long behind a start with nothing, and behind force
	p.start()
	p.serve(5*time.Second, p.GW1)
	says := func(what string, n *nodes.Node, want func(*api.Group) bool) {
		t.Helper()
		var g api.Group
		var err error
		if !until(15*time.Second, func() bool { g, err = p.says(n); return err == nil && want(&g) }) {
			t.Fatalf("%s: %s says %+v (%v)", what, n.Name, g, err)
		}
	}
	copied := func(owner *nodes.Node) {
		t.Helper()
		check(t, p.Whole(t.Context(), 20*time.Second, nil))
		says("a whole copy", owner, func(g *api.Group) bool {
			return g.Serving && !g.Solo && slices.Contains(g.InSync, p.Other(owner).Name) && len(g.Copies) > 0 && g.Copies[0].Whole && g.Copies[0].Lag < 0.2
		})
	}
	alone := func(what string, owner *nodes.Node) {
		t.Helper()
		p.serve(5*time.Second, owner)
		says(what, owner, func(g *api.Group) bool { return g.Serving && g.Solo })
		time.Sleep(long)
		p.serve(time.Second, owner)
		if o := p.Other(owner); o.Runs() {
			if g, err := p.says(o); err != nil || g.Serving {
				t.Errorf("%s: %s says %+v (%v)", what, o.Name, g, err)
			}
		}
	}
	copied(p.GW1)
	check(t, p.Cut(p.GW1, p.GW2, true))
	alone("neither hears the other", p.GW1)
	check(t, p.Cut(p.GW1, p.GW2, false))
	copied(p.GW1)

	// What was proposed of the copy while nothing could be agreed on may come first, and then it is asked for again.
	var err error
	if !until(20*time.Second, func() bool {
		_, err = p.GW1.Run(t.Context(), "group", "move", nodes.PairGroup, "gw2")
		return err == nil
	}) {
		t.Fatal(err)
	}
	p.serve(5*time.Second, p.GW2)
	copied(p.GW2)
	check(t, p.GW2.Stop()) // it hands over
	alone("the other one has ended", p.GW1)
	p.GW1.Kill()
	p.serve(5 * time.Second) // nobody
	check(t, p.GW1.Start(t.Context()))
	alone("killed, and started again", p.GW1)
	check(t, p.GW2.Start(t.Context()))
	copied(p.GW1)

	p.GW1.Vanish()
	p.serve(5 * time.Second)
	time.Sleep(long)
	p.serve(time.Second)
	says("its owner is gone", p.GW2, func(g *api.Group) bool { return !g.Serving && g.Owner == "gw1" })
	_, err = p.GW2.Run(t.Context(), "group", "take", nodes.PairGroup, "--force")
	check(t, err)
	p.serve(5*time.Second, p.GW2)
	check(t, p.GW1.Start(t.Context())) // its log says that it owns the group
	copied(p.GW2)
	p.serve(time.Second, p.GW2)
	p.agreed(p.GW2)
	time.Sleep(long) // flows come back
	_, v := p.end()
	if got, want := terms(v), "gw1 gw2 gw1 gw2"; got != want {
		t.Errorf("these have sent data for the group, in turn: %s; want %s", got, want)
	}
}
