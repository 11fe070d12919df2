package e2e

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"demarc/cluster/failover"
	"demarc/gateway/api"
	"demarc/gateway/netlab/quiet"
	nodes "demarc/gateway/trio"
)

// The owner's process is killed, and stopped for times around the lease. The other one serves, within half a second; who wakes up sends nothing under the
// group's address; a stop of less than half a lease moves nothing.
func TestPairOwnerKilledAndStopped(t *testing.T) {
	pairJudged(t, func(t *testing.T, l *quiet.Limits) { ownerKilledAndStopped(t, l, nodes.Options{Lab: "pair"}) })
}

// TestPairOwnerKilledAndStoppedCarried has the owner's XDP programs carry what is established: they outlive its process, and go on while it is stopped, until its deadline is over.
func TestPairOwnerKilledAndStoppedCarried(t *testing.T) {
	pairJudged(t, func(t *testing.T, l *quiet.Limits) {
		ownerKilledAndStopped(t, l, nodes.Options{Lab: "pair", Offload: true})
	})
}

func ownerKilledAndStopped(t *testing.T, l *quiet.Limits, o nodes.Options) {
	p := newPairOf(t, o, "", nil)
	p.limits = l
	p.start()
	p.serve(5*time.Second, p.GW1)
	carried := func(n *nodes.Node) {
		t.Helper()
		if !o.Offload {
			return
		}
		var st *api.Status
		if !until(5*time.Second, func() bool {
			var err error
			st, err = n.Status(t.Context())
			return err == nil && st.Workers[0].Cruising > 0
		}) {
			p.wrong("programs carry nothing at %s: %+v", n.Name, st)
		}
	}
	carried(p.GW1)
	var events []event
	owner, want := p.GW1, "gw1"
	move := func(e event) {
		t.Helper()
		owner = p.Other(owner)
		want += " " + owner.Name
		p.serve(5*time.Second, owner)
		time.Sleep(500 * time.Millisecond) // the gap ends at the hosts, not at the gateway
		e.to = time.Now()
		events = append(events, e)
		time.Sleep(apart)
	}
	p.protected(p.GW1)                                                                                                    // whose copy is not whole when it dies leaves translated flows without ports for the hold time
	e := event{what: "kill -9 of the owner", from: time.Now(), least: 2 * time.Millisecond, most: 500 * time.Millisecond} // its parent process says so
	dead := owner
	dead.Kill()
	move(e)
	back := event{what: "a killed node comes back as a standby", from: time.Now(), most: 100 * time.Millisecond}
	check(t, dead.Start(t.Context()))
	check(t, p.Whole(t.Context(), 20*time.Second, nil))
	back.to = time.Now()
	events = append(events, back)
	time.Sleep(apart)
	for _, d := range []time.Duration{45 * time.Millisecond, 250 * time.Millisecond, 600 * time.Millisecond} {
		carried(owner)
		p.protected(owner)
		e := event{what: fmt.Sprintf("the owner is stopped for %s", d), from: time.Now(), most: max(d, 500*time.Millisecond)}
		const closed = "a lease ended while frames"
		before := strings.Count(owner.Log(1000), closed)
		from, to := p.stop(owner, d)
		for try := 0; d < failover.Default.Lease/2 && to.Sub(from) > d+5*time.Millisecond && (try < 5 || to.Sub(from) > failover.Default.Lease/2); try++ { // a busy machine: it was stopped for longer than was meant
			now, err := p.Owner(t.Context(), 5*time.Second)
			check(t, err)
			if now != owner {
				owner, want = now, want+" "+now.Name
				p.leases++
			}
			time.Sleep(500 * time.Millisecond)
			e.from = time.Now()
			before = strings.Count(owner.Log(1000), closed) // by the longer stop
			from, to = p.stop(owner, d)
		}
		if d < failover.Default.Lease/2 {
			time.Sleep(300 * time.Millisecond)
			p.serve(time.Second, owner)
			// The lease has not run out: no port is closed, and nothing stands still for longer than the process did.
			e.to, e.most = time.Now(), d+30*time.Millisecond
			// Close to half a lease a machine that is busy has no time left to renew it.
			if text := owner.Log(1000); strings.Count(text, closed) > before && to.Sub(from) <= d+5*time.Millisecond {
				t.Errorf("a port was closed after a stop of %s:\n%s", to.Sub(from), text)
			}
			events = append(events, e)
			time.Sleep(apart)
			continue
		}
		e.least = leaseRest
		p.leases++
		move(e)
	}
	p.agreed(owner)
	last, err := p.says(owner)
	check(t, err)
	seen, v := p.end()
	p.held(seen, events)
	// What the new owner says of the last failover is what the hosts saw, but for what each of them cannot see.
	e = events[len(events)-1]
	worst, _ := seen.Worst(e.from, e.to)
	switch m := last.Last; {
	case m == nil || m.To != owner.Name || m.From != p.Other(owner).Name || m.Cause != "lease" || m.Gap == nil:
		p.wrong("the last failover, by its new owner: %+v", m)
	case *m.Gap < leaseRest.Seconds() || *m.Gap < worst.Gap.Seconds()-0.08 || *m.Gap > worst.Gap.Seconds()+0.15:
		p.missed("the new owner says that the last failover took %.3f s; the hosts saw %s", *m.Gap, worst.Gap)
	}
	p.turns(v, want)
	// What each node has seen of it is told in order, and by whom.
	out, err := owner.Run(t.Context(), "group", "events")
	check(t, err)
	for _, want := range []string{"claiming epoch", fmt.Sprintf("%s owns it, epoch %d", owner.Name, last.Epoch)} {
		if !strings.Contains(out, want) {
			t.Errorf("group events of %s say nothing of %q:\n%s", owner.Name, want, out)
		}
	}
}

// leaseRest is what lies, by the times that nodes run with, between an owner's last frame and the first that another one may send when nobody says that the first has stopped: a voter's
// promise holds for 120 ms, the owner stops after 94 (failover.Times.Use).
const leaseRest = 25 * time.Millisecond

// apart is between two events, so that no silence of the one reaches into the other.
const apart = 30 * time.Millisecond

// What takes nothing from an owner that lives, and what does: the witness dies, ways of the cluster's network are cut one by one, a node is alone.
func TestPairCutOff(t *testing.T) { pairJudged(t, pairCutOff) }

func pairCutOff(t *testing.T, l *quiet.Limits) {
	p := newPair(t, "pair", "")
	p.limits = l
	p.start()
	p.serve(5*time.Second, p.GW1)
	p.protected(p.GW1) // else gw2 takes over with a copy that was never equal, and translated flows have no ports for the hold time
	var events []event
	note := func(e event) {
		e.to = time.Now()
		events = append(events, e)
		time.Sleep(apart)
	}
	e := event{what: "the two gateways do not hear each other", from: time.Now(), most: 100 * time.Millisecond}
	check(t, p.Cut(p.GW1, p.GW2, true))
	time.Sleep(300 * time.Millisecond)
	p.serve(time.Second, p.GW1)
	check(t, p.Cut(p.GW1, p.GW2, false))
	note(e)

	e = event{what: "the owner is cut off from both others", from: time.Now(), least: leaseRest, most: 600 * time.Millisecond}
	p.leases++
	check(t, p.Isolate(p.GW1, true))
	p.serve(5*time.Second, p.GW2)
	time.Sleep(100 * time.Millisecond)
	note(e)
	e = event{what: "it is reached again", from: time.Now(), most: 100 * time.Millisecond}
	check(t, p.Isolate(p.GW1, false))
	check(t, p.Whole(t.Context(), 20*time.Second, nil))
	p.serve(time.Second, p.GW2)
	p.agreed(p.GW2)
	note(e)

	e = event{what: "kill -9 of the witness", from: time.Now(), most: 100 * time.Millisecond}
	p.Witness.Kill()
	time.Sleep(300 * time.Millisecond)
	p.serve(time.Second, p.GW2)
	note(e)

	e = event{what: "and the owner is cut off from the last other one", from: time.Now(), least: 300 * time.Millisecond, most: 20 * time.Second}
	p.leases++ // whoever is first
	check(t, p.Cut(p.GW1, p.GW2, true))
	p.serve(5 * time.Second) // nobody
	time.Sleep(300 * time.Millisecond)
	check(t, p.Cut(p.GW1, p.GW2, false))
	_, err := p.Owner(t.Context(), 15*time.Second)
	check(t, err)
	time.Sleep(100 * time.Millisecond)
	note(e)
	seen, v := p.end()
	p.held(seen, events)
	t.Logf("these have sent data for the group, in turn: %s", terms(v))
}
