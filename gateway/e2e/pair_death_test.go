package e2e

import (
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"demarc/gateway/netlab"
	"demarc/gateway/netlab/quiet"
)

// deathRounds is how often each way of TestPairDeathIsTold is taken. Three and more say something of the spread.
const deathRounds = 1

// What each end of an owner costs, in turn, judged from the hosts: its data plane is killed, and its parent process says so; all of it is killed, and the lease runs out; so does it where the node
// leads the log as well, and the lease is not much shorter than what it takes to miss a leader; its parent process is killed, and the data plane hands over.
func TestPairDeathIsTold(t *testing.T) { pairJudged(t, deathIsTold) }

func deathIsTold(t *testing.T, l *quiet.Limits) {
	p := newPair(t, "pair", "")
	p.limits = l
	p.start()
	p.serve(5*time.Second, p.GW1)
	const told = "the others have been told"
	var events []event
	owner := p.GW1
	away := func(e event, dies bool, do func()) {
		t.Helper()
		if e.least > 0 {
			p.leases++
		}
		p.protected(owner) // whose copy is not whole when it dies leaves translated flows without ports for the hold time
		e.from = time.Now()
		dead := owner
		do()
		owner = p.Other(owner)
		p.serve(5*time.Second, owner)
		time.Sleep(300 * time.Millisecond) // the gap ends at the hosts, not at the gateway
		e.to = time.Now()
		events = append(events, e)
		if g, err := p.says(owner); err != nil || g.Last == nil || g.Last.To != owner.Name || (g.Last.Cause == "lease") != (e.least > 0) {
			p.wrong("%s: the new owner says %+v (%v)", e.what, g.Last, err)
		}
		if got := strings.Contains(dead.Log(1000), told); got != dies {
			t.Errorf("%s: told: %v\n%s", e.what, got, dead.Log(5))
		}
		if !dead.Runs() {
			check(t, dead.Start(t.Context()))
		}
		check(t, p.Whole(t.Context(), 20*time.Second, nil))
		p.agreed(owner)
		time.Sleep(apart)
	}
	for range deathRounds {
		resident(t, owner.Parent(), 32<<10)
		away(event{what: "the data plane is killed", most: 400 * time.Millisecond}, true, func() { owner.Kill() })
		away(event{what: "all of the node is killed", most: 900 * time.Millisecond, least: 50 * time.Millisecond}, false, func() { owner.Vanish() })
		p.leads(owner)
		away(event{what: "all of the leader is killed", most: 900 * time.Millisecond, least: 50 * time.Millisecond}, false, func() { owner.Vanish() })
		away(event{what: "the parent process is killed", most: 400 * time.Millisecond}, false, func() {
			pid := owner.Pid()
			check(t, unix.Kill(owner.Parent(), unix.SIGKILL))
			if !until(10*time.Second, func() bool { return !netlab.Lives(pid) }) {
				t.Error("the data plane does not end without its parent process")
				_ = unix.Kill(pid, unix.SIGKILL)
			}
		})
	}
	seen, v := p.end()
	p.held(seen, events)
	for _, what := range []string{"the data plane is killed", "all of the node is killed", "all of the leader is killed", "the parent process is killed"} {
		var all []time.Duration
		for _, e := range events {
			if e.what == what {
				worst, _ := seen.Worst(e.from, e.to)
				all = append(all, worst.Gap)
			}
		}
		slices.Sort(all)
		t.Logf("%-28s worst flow of each run: least %.0f, median %.0f, most %.0f ms", what, ms(all[0]), ms(all[len(all)/2]), ms(all[len(all)-1]))
	}
	t.Logf("these have sent data for the group, in turn: %s", terms(v))
}
