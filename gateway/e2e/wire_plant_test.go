//go:build faults

package e2e

import (
	"slices"
	"testing"
	"time"

	"demarc/gateway/netlab/judge"
)

// wirePlant is a fault that is put into all three nodes, and the harm that brings it out: drawn by hand from what a random run may do, and done again until it is found.
type wirePlant struct {
	fault string
	rate  float64 // of all clocks: what goes by the lease takes longer, so that a busy machine has time for it
	fresh float64
	harms func(owner, other string) []harm
	want  []judge.Kind // any of these finds it
}

var wirePlants = []wirePlant{
	// The answers are late; then the owner is cut off, and believes the last ones for as long as they were under way.
	{"lease-from-reply", 0.25, 1000, func(owner, other string) []harm {
		me, others := []string{owner}, []string{other, "witness"}
		return []harm{
			{at: 0, last: 3500 * ms1, kind: harmDelay, ways: waysOf(others, me, wUDP), wait: 300 * ms1},
			cutOff(1200*ms1, 2300*ms1, both(me, others, wUDP, wTCP)...),
		}
	}, []judge.Kind{judge.Both}},
	// The owner is stopped; when it wakes it hears nothing of the log, and asks the witness to help it on.
	{"any-epoch", 0.25, 1000, func(owner, other string) []harm {
		me, it, w := []string{owner}, []string{other}, []string{"witness"}
		return []harm{
			{at: 0, last: 1500 * ms1, kind: harmStop, node: owner},
			cutOff(0, 3*time.Second, both(me, it, wUDP, wTCP)...),
			cutOff(0, 3*time.Second, both(me, w, wTCP)...),
		}
	}, []judge.Kind{judge.Both}},
	// The owner's machine is gone, and the last 200 ms of its conversations are known to nobody.
	{"blocks-stay-open", 1, 5000, lateCopies, []judge.Kind{judge.Port, judge.Binding}},
	// The owner is stopped, and has frames in hand when it wakes that came while it might send.
	{"no-look", 1, 2000, func(owner, _ string) []harm {
		return []harm{{at: 0, last: 700 * ms1, kind: harmStop, node: owner}}
	}, []judge.Kind{judge.Both}},
	// Nothing is done.
	{"standby-announces", 1, 500, func(string, string) []harm {
		return []harm{{at: 300 * ms1, last: ms1, kind: harmLoss, ways: both([]string{"gw1"}, []string{"gw2"}, wTCP), lose: 0.05}}
	}, []judge.Kind{judge.Both}},
}

// lateCopies kills an owner whose copies are 200 ms late.
func lateCopies(owner, other string) []harm {
	return []harm{
		{at: 0, last: 1200 * ms1, kind: harmDelay, ways: waysOf([]string{owner}, []string{other}, wTCP), wait: 200 * ms1},
		{at: time.Second, last: 1500 * ms1, kind: harmVanish, node: owner},
	}
}

// The judge is judged: each fault is found by what the gateways send, and where there is none the same harm brings out nothing.
//
// Three are not found here. stale-takes costs connections that a group would rather have waited for, and nothing that may be seen on a wire: who does not know all lets every port rest; failover's schedules find it. bulk-ignores-deletes leaves sessions at a standby that are over: no port of theirs goes to another host within the hold time, so nothing is wrong on a wire that is watched for less than two minutes;
// replica's schedules find it. no-wait is a voter that promises at once after a restart: to the wire it is something only if the voter is back, and has helped a claim, before the last promise of its life before is used up (122 ms), and a process
// takes longer than that to start; failover's schedules find it.
func TestWirePlants(t *testing.T) {
	for _, x := range wirePlants {
		t.Run(x.fault+"/control", func(t *testing.T) {
			for _, o := range x.run(t, 1, plantProgram(t)) {
				t.Error(o)
			}
		})
		t.Run(x.fault, func(t *testing.T) {
			began := time.Now()
			found := x.run(t, 8, plantProgram(t), "DEMARC_PLANT="+x.fault)
			if !slices.ContainsFunc(found, func(o judge.Offence) bool { return slices.Contains(x.want, o.Kind) }) {
				t.Errorf("not found: %v", found)
			} else {
				t.Logf("found after %s: %d offences, the first: %s", time.Since(began).Round(ms1), len(found), found[0])
			}
		})
	}
}

// run does the harm, at most so many times, until there is an offence.
func (x *wirePlant) run(t *testing.T, times int, binary string, env ...string) []judge.Offence {
	t.Helper()
	p := &wirePlan{alone: "fence", stale: "serve", fresh: x.fresh, ahead: map[string]time.Duration{}, rate: map[string]float64{}, wall: map[string]time.Duration{}}
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
		if len(v.Offences) > 0 || i == times-1 {
			return v.Offences
		}
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
