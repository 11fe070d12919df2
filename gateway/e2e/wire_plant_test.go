package e2e

import (
	"flag"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"demarc/gateway/netlab/judge"
	nodes "demarc/gateway/trio"
)

var wireControls = flag.Bool("faults.controls", false, "TestWirePlants does the same harm to nodes without the fault as well, which must bring out nothing")

// wirePlant is a fault that is put into all three nodes, and the harm that brings it out: drawn by hand from what a random run may do, and done again until it is found.
type wirePlant struct {
	fault string
	rate  float64 // of all clocks: what goes by the lease takes longer, so that a busy machine has time for it
	fresh float64
	harms func(owner, other string) []harm
	want  []judge.Kind // any of these finds it; none = that another node than the owner sends for the group, where nobody may
	stale string       // of the group; "" = serve
}

var wirePlants = []wirePlant{
	// The answers are late; then the owner is cut off, and believes the last ones for as long as they were under way.
	{fault: "lease-from-reply", rate: 0.25, fresh: 1000, harms: func(owner, other string) []harm {
		me, others := []string{owner}, []string{other, "witness"}
		return []harm{
			{at: 0, last: 3500 * ms1, kind: harmDelay, ways: waysOf(others, me, wUDP), wait: 300 * ms1},
			cutOff(1200*ms1, 2300*ms1, both(me, others, wUDP, wTCP)...),
			unheard(0, 3500*ms1, other),
		}
	}, want: []judge.Kind{judge.Both}},
	// The owner is stopped; when it wakes it hears nothing of the log, and asks the witness to help it on.
	{fault: "any-epoch", rate: 0.25, fresh: 1000, harms: func(owner, other string) []harm {
		me, it, w := []string{owner}, []string{other}, []string{"witness"}
		return []harm{
			{at: 0, last: 1500 * ms1, kind: harmStop, node: owner},
			cutOff(0, 3*time.Second, both(me, it, wUDP, wTCP)...),
			cutOff(0, 3*time.Second, both(me, w, wTCP)...),
			unheard(0, 3*time.Second, other),
		}
	}, want: []judge.Kind{judge.Both}},
	// The owner goes on by the witness, which dies, is back before the last promise of its life before is used up, and helps the other one. A lease lasts 4 s here: the process is started meanwhile, and since the other one, which
	// leads the log, hears no majority for longer than 250 ms, there is an election of a second too. Copies go on until then, else the other one's would be out of sync, and it leads as late as that is sure, since it hands the lead back.
	{fault: "no-wait", rate: 0.03, fresh: 1000, harms: func(owner, other string) []harm {
		me, it, w := []string{owner}, []string{other}, []string{"witness"}
		return []harm{
			cutOff(500*ms1, 8*time.Second, both(me, it, wUDP)...),
			unheard(500*ms1, 8*time.Second, other),
			{at: 3500 * ms1, kind: harmLead, node: other},
			cutOff(5*time.Second, 3500*ms1, both(me, it, wTCP)...),
			cutOff(5*time.Second, 3500*ms1, both(me, w, wUDP, wTCP)...),
			{at: 5 * time.Second, last: ms1, kind: harmWitness, node: "witness"},
		}
	}, want: []judge.Kind{judge.Both}},
	// The owner's machine is gone, and the last 200 ms of its conversations are known to nobody.
	{fault: "blocks-stay-open", rate: 1, fresh: 5000, harms: lateCopies, want: []judge.Kind{judge.Port, judge.Binding}},
	// The owner is stopped, and has frames in hand when it wakes that came while it might send. A lease lasts 480 ms here: where machines are slow an owner by the true clock had lost its lease when the stop came, and nothing in hand.
	{fault: "no-look", rate: 0.25, fresh: 2000, harms: func(owner, other string) []harm {
		return []harm{{at: 0, last: 2500 * ms1, kind: harmStop, node: owner}, unheard(0, 2700*ms1, other)}
	}, want: []judge.Kind{judge.Both}},
	// Nothing is done.
	{fault: "standby-announces", rate: 1, fresh: 500, harms: func(string, string) []harm {
		return []harm{{at: 300 * ms1, last: ms1, kind: harmLoss, ways: both([]string{"gw1"}, []string{"gw2"}, wTCP), lose: 0.05}}
	}, want: []judge.Kind{judge.Both}},
	// The copy gets nothing for longer than it counts as whole without (failover.Times.MaxMarker); then the owner's machine is gone, and the group is to wait for it.
	{fault: "stale-takes", rate: 1, fresh: 500, stale: "wait", harms: func(owner, other string) []harm {
		return []harm{
			cutOff(0, 3100*ms1, both([]string{owner}, []string{other}, wTCP)...),
			{at: 2400 * ms1, last: 700 * ms1, kind: harmVanish, node: owner},
		}
	}},
}

// unheard has alpha's switch hear nothing of a node, so that its hosts go on sending to the owner before: it has something to send for as long as it thinks that it may.
func unheard(at, last time.Duration, node string) harm {
	return harm{at: at, last: last, kind: harmShut, sides: []harmSide{{node, "alpha", false}}, lose: 1}
}

// lateCopies kills an owner whose copies are 200 ms late.
func lateCopies(owner, other string) []harm {
	return []harm{
		{at: 0, last: 1200 * ms1, kind: harmDelay, ways: waysOf([]string{owner}, []string{other}, wTCP), wait: 200 * ms1},
		{at: time.Second, last: 1500 * ms1, kind: harmVanish, node: owner},
	}
}

// The judge is judged: each fault is found by what the gateways send. With -faults.controls the same harm is done without the fault too, and brings out nothing; TestWireFaults and TestWireKillUnderNew show that of every run.
//
// One of the eight cannot be found here: bulk-ignores-deletes leaves sessions at a standby that are over. A copy that is being made is not in sync, so who takes over with it ends what has a public port, or had a digest that was
// equal so short a while ago that no port that has come free since was given to another host; and with such a session no digest is equal any more. See docs/faults.md. Replica's schedules find it, in every run.
func TestWirePlants(t *testing.T) {
	// Alone: beside other tests that mostly wait, a third pair had leases of theirs run out.
	var next atomic.Int32
	var wg sync.WaitGroup
	for range 2 { // at a time: most of it is waiting
		wg.Go(func() {
			for i := int(next.Add(1)) - 1; i < len(wirePlants); i = int(next.Add(1)) - 1 {
				wirePlants[i].test(t)
			}
		})
	}
	wg.Wait()
}

func (x *wirePlant) test(t *testing.T) {
	if *wireControls {
		t.Run(x.fault+"/control", func(t *testing.T) {
			for _, f := range x.run(t, 1, plantProgram(t)) {
				t.Error(f)
			}
		})
	}
	t.Run(x.fault, func(t *testing.T) {
		began := time.Now()
		found := x.run(t, 8, plantProgram(t), "DEMARC_PLANT="+x.fault)
		if len(found) == 0 {
			t.Fatal("not found")
		}
		t.Logf("found after %s: %d offences, the first: %s", time.Since(began).Round(ms1), len(found), found[0])
	})
}

// run does the harm, at most so many times, until something is found that finds this fault. What else is found comes with it, and where nothing does, of the last time.
func (x *wirePlant) run(t *testing.T, times int, binary string, env ...string) (found []string) {
	t.Helper()
	p := &wirePlan{alone: "fence", stale: "serve", fresh: x.fresh, ahead: map[string]time.Duration{}, rate: map[string]float64{}, wall: map[string]time.Duration{}}
	if x.stale != "" {
		p.stale = x.stale
	}
	for _, n := range wireNodes {
		p.rate[n] = x.rate
	}
	l := wireOpen(t, p, binary, true, env...)
	l.start()
	owner, other := l.GW1, l.GW2
	for i := range times {
		l.began, p.harms = time.Now(), x.harms(owner.Name, other.Name)
		l.harm(t.Context())
		v, err := l.Judge()
		check(t, err)
		found = x.found(v, owner, len(env) > 0)
		if len(found) > 0 || i == times-1 {
			return found
		}
		t.Logf("not found in try %d", i+1)
		check(t, l.Watch())
		for _, n := range l.Nodes() {
			check(t, n.Ready(t.Context()))
		}
		if owner, err = l.Owner(t.Context(), 8*time.Second); err != nil {
			return nil
		}
		other = l.Other(owner)
		h := &pairLab{Pair: l.Pair, t: t}
		until(8*time.Second, func() bool {
			g, err := h.says(owner)
			return err == nil && slices.Contains(g.InSync, other.Name)
		})
	}
	return nil
}

// found is what is wrong, where it may be this fault's doing; where there is none, all of it.
func (x *wirePlant) found(v *judge.Verdict, owner *nodes.Node, planted bool) (list []string) {
	its := !planted
	if len(x.want) == 0 && terms(v) != owner.Name {
		its = true
		list = append(list, fmt.Sprintf("these have sent data for the group, in turn: %s; only %s may", terms(v), owner.Name))
	}
	for _, o := range v.Offences {
		its = its || slices.Contains(x.want, o.Kind)
		list = append(list, o.String())
	}
	if !its {
		return nil
	}
	return list
}
