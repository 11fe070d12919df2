package e2e

import (
	"strings"
	"testing"
	"time"

	"demarc/gateway/api"
	"demarc/gateway/netlab/quiet"
	nodes "demarc/gateway/trio"
)

// TestPairRestartAlone: a gateway that is ended in order while the other one is away, and started again, goes on with its group's sessions on the same public ports, none of which rest; and the other one's copy of them
// becomes equal when it is back. Where the other one has served meanwhile, nothing of what was left is used.
func TestPairRestartAlone(t *testing.T) {
	mostlyWaits(t)
	pairJudged(t, restartAlone)
}

func restartAlone(t *testing.T, l *quiet.Limits) {
	p := newPair(t, "ralone", "\n[timeouts]\nnat_hold = \"6s\"\n")
	p.limits = l
	p.start()
	p.serve(5*time.Second, p.GW1)
	const count = 40
	conns, outside := p.hold(count)
	p.protected(p.GW1)
	check(t, p.GW2.Stop())
	for range 2 { // what was taken up is left again
		time.Sleep(time.Second)
		check(t, p.GW1.Stop())
		p.serve(time.Second)
		began := time.Now()
		check(t, p.GW1.Start(t.Context()))
		p.serve(5*time.Second, p.GW1)
		t.Logf("figure: alone with its witness, gw1 serves %.2f s after its start", time.Since(began).Seconds())
		g, err := p.says(p.GW1)
		check(t, err)
		if g.Ports != nil && g.Ports.Rest > 0 {
			t.Errorf("ports rest for %.1f s", g.Ports.Rest)
		}
		var s api.Status
		check(t, p.GW1.Client.Get(t.Context(), api.PathStatus, &s))
		if r := s.Resumed; r == nil || r.Problem != "" || r.Taken < 8*count {
			t.Errorf("taken up: %+v", r)
		}
		if log := p.GW1.Log(200); !strings.Contains(log, "nobody has had it since this node's process before") || strings.Contains(log, "is not known to the last here") {
			t.Errorf("the log does not say that all is known:\n%s", log)
		}
	}
	check(t, p.GW2.Start(t.Context()))
	check(t, p.Whole(t.Context(), 20*time.Second, nil))
	p.protected(p.GW1)
	p.copies(p.GW1)
	p.release(count, conns, outside)

	p.GW2.Kill()
	time.Sleep(time.Second)
	check(t, p.GW1.Stop())
	check(t, p.GW2.Start(t.Context())) // with nothing
	p.serve(5*time.Second, p.GW2)
	var g api.Group
	if !until(12*time.Second, func() bool { g, _ = p.says(p.GW2); return g.Ports != nil && g.Ports.Rest == 0 }) {
		t.Fatalf("ports rest where nothing is known of what was used, for longer than the hold time: %+v", g.Ports)
	}
	conns, outside = p.hold(count)
	check(t, p.GW1.Start(t.Context())) // with what it had
	check(t, p.Whole(t.Context(), 20*time.Second, nil))
	p.protected(p.GW2)
	p.copies(p.GW2)
	if log := p.GW1.Log(200); strings.Contains(log, "nobody has had it since") {
		t.Errorf("gw1 takes what it had before for what is:\n%s", log)
	}
	_, err := p.GW2.Run(t.Context(), "group", "move", nodes.PairGroup, "gw1")
	check(t, err)
	p.serve(5*time.Second, p.GW1)
	p.release(count, conns, outside)
	_, v := p.end()
	p.turns(v, "gw1 gw2 gw1")
}
