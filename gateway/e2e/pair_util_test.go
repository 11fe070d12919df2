package e2e

import (
	"cmp"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"demarc/gateway/api"
	"demarc/gateway/netlab"
	"demarc/gateway/netlab/judge"
	"demarc/gateway/netlab/quiet"
	"demarc/gateway/netlab/roottest"
	nodes "demarc/gateway/trio"
)

// pairLab is two gateways that serve the same networks, and a witness.
type pairLab struct {
	*nodes.Pair
	t     testing.TB
	flows *netlab.Flows
	began time.Time // of the flows

	limits *quiet.Limits // nil = what is missed is a fault
	leases int           // how often the test, or its beginning, has had a node claim a group because a lease ran out
	woken  []woken
}

// woken is a node that was stopped, and when it was let go.
type woken struct {
	node string
	at   time.Time
}

// pairJudged runs a test of a pair on a machine that is there. An owner whose processor is elsewhere for a lease loses it, as promised: the group moves, and nothing was done to it. Who finds that something is wrong says so
// by wrong, which ends the test then; a gap that was too long is missed. Another try has a pair of its own.
func pairJudged(t *testing.T, once func(t *testing.T, l *quiet.Limits)) {
	t.Helper()
	roottest.Require(t)
	program(t)
	quiet.Judge(t, func(l *quiet.Limits) {
		t.Run("run", func(t *testing.T) {
			defer func() {
				if e := recover(); e != nil && e != any(lapse{}) {
					panic(e)
				}
			}()
			once(t, l)
		})
	})
}

// lapse is what ends a try.
type lapse struct{}

var leaseClaim = regexp.MustCompile(`claiming epoch [0-9]+: lease`)

// claims is how often a gateway has claimed a group because its owner's lease had run out, by the logs of all of their lives.
func (p *pairLab) claims() (n int) {
	p.t.Helper()
	for _, gw := range p.Gateways() {
		logs, err := filepath.Glob(filepath.Join(filepath.Dir(gw.File), "log-*"))
		check(p.t, err)
		for _, f := range logs {
			n += len(leaseClaim.FindAllString(read(p.t, f), -1))
		}
	}
	return n
}

// missed takes a gap, or what the machine may have done.
func (p *pairLab) missed(format string, args ...any) {
	p.t.Helper()
	if p.limits == nil {
		p.t.Errorf(format, args...)
		return
	}
	p.limits.Missed(format, args...)
}

// wrong says that something is wrong with who serves, or with what follows from that. It is a fault, unless a lease has run out that the test had let be: then the try ends.
func (p *pairLab) wrong(format string, args ...any) {
	p.t.Helper()
	if p.limits != nil && p.claims() > p.leases {
		p.limits.Missed(format, args...)
		panic(lapse{})
	}
	p.t.Errorf(format, args...)
}

// turns holds who has sent data for the group, in turn, against who should.
func (p *pairLab) turns(v *judge.Verdict, want string) {
	p.t.Helper()
	if got := terms(v); got != want {
		p.wrong("these have sent data for the group, in turn: %s; want %s", got, want)
	}
}

// newPair has three nodes agree, in a lab of that name, on a policy with a group in it; more goes into the group.
func newPair(t testing.TB, name, more string) *pairLab {
	t.Helper()
	return newPairOf(t, nodes.Options{Lab: name}, more, nil)
}

// newPairOf is newPair with more options. prepare is called before anything runs.
func newPairOf(t testing.TB, o nodes.Options, more string, prepare func(*pairLab)) *pairLab {
	t.Helper()
	roottest.Require(t)
	dir := t.TempDir()
	o.Dir, o.Binary, o.Offload = dir, cmp.Or(o.Binary, program(t)), o.Offload || offloaded()
	lab, err := nodes.NewPair(o, 3)
	check(t, err)
	p := &pairLab{Pair: lab, t: t}
	t.Cleanup(func() {
		if t.Failed() {
			for _, n := range p.Nodes() {
				t.Logf("the log of %s:\n%s", n.Name, n.Log(40))
			}
		}
		for _, n := range p.Nodes() { // one that a failed test left stopped would not end
			if n.Runs() {
				_ = unix.Kill(n.Pid(), unix.SIGCONT)
			}
		}
		if err := p.Close(); err != nil {
			t.Errorf("close the lab: %v", err)
		}
		nothingLeft(t, p.Name())
	})
	file := filepath.Join(dir, "pair.toml")
	policy := nodes.PairPolicy(more)
	if o.Split {
		policy = nodes.SplitPolicy()
	}
	check(t, os.WriteFile(file, []byte(policy), 0o644))
	if prepare != nil {
		prepare(p)
	}
	check(t, p.Begin(t.Context(), file, time.Minute))
	p.first(nodes.PairGroup, p.GW1)
	if o.Split {
		p.first(nodes.PairWest, p.GW2)
	}
	p.leases = p.claims()
	return p
}

// first has a gateway serve the group that prefers it before a test begins, which it does unless its lease ran out while the others still started, or it was not there yet when the other had waited for it: all of them on a
// machine with two processors, and 120 ms, or 480, are soon gone.
func (p *pairLab) first(group string, owner *nodes.Node) {
	p.t.Helper()
	var g api.Group
	var err error
	other := p.Other(owner)
	if !until(20*time.Second, func() bool {
		if g, err = p.saysOf(owner, group); err != nil || g.Owner != other.Name {
			return err == nil && g.Owner == owner.Name && g.Serving
		}
		if h := g.Here; h != nil && h.Whole && h.Epoch == g.Epoch { // else its ports would rest
			p.t.Logf("figure: %s has owned the group %s since before the test, epoch %d", other.Name, group, g.Epoch) // testrun prints what begins so
			_, err = other.Run(p.t.Context(), "group", "move", group, owner.Name)
		}
		return false
	}) {
		p.t.Fatalf("%s does not come to serve the group %s: %+v, %v", owner.Name, group, g, err)
	}
}

// apply has the pair serve another policy.
func (p *pairLab) apply(text string) {
	p.t.Helper()
	file := filepath.Join(p.t.TempDir(), "next.toml")
	check(p.t, os.WriteFile(file, []byte(text), 0o644))
	a, _, err := p.GW1.Apply(p.t.Context(), file)
	check(p.t, err)
	if late := nodes.Late(a); late != nil {
		p.wrong("an applied policy is late: %v", late)
	}
}

// serve waits until these alone send packets for the group.
func (p *pairLab) serve(within time.Duration, want ...*nodes.Node) {
	p.t.Helper()
	if err := p.Serves(p.t.Context(), within, want...); err != nil {
		p.wrong("%v", err)
		p.t.FailNow()
	}
}

// start has packets go both ways through the group and watches what either gateway sends for it.
func (p *pairLab) start() { p.startEach(2 * time.Millisecond) }

func (p *pairLab) startEach(interval time.Duration) {
	p.t.Helper()
	check(p.t, p.Watch())
	flows, err := p.StartFlows(p.FlowSpecs(1, interval)...)
	check(p.t, err)
	p.flows, p.began = flows, time.Now()
}

// end stops the packets and says what was seen of them, and what the judge has found.
func (p *pairLab) end() (*netlab.FlowsSeen, *judge.Verdict) {
	p.t.Helper()
	ended := time.Now()
	seen, err := p.flows.End()
	check(p.t, err)
	if seen.Wrong > 0 {
		p.t.Errorf("%d packets were wrong: %s", seen.Wrong, seen.Example)
	}
	v, err := p.Judge()
	check(p.t, err)
	for _, o := range v.Offences {
		switch {
		case slices.ContainsFunc(p.woken, func(w woken) bool { return o.Handful(w.node, w.at, judge.Burst) }):
			p.t.Logf("conceded: %s", o) // what it had in hand when it was stopped
		default:
			p.t.Error(o)
		}
	}
	// A flow that has not come back does not count as one with a short gap. One that has is silent for no longer than the machine is elsewhere.
	_, paused := seen.Worst(ended.Add(-time.Second), time.Now())
	for i := range seen.Flows {
		f := &seen.Flows[i]
		if silent := time.Duration(f.Ended - f.Last); silent > 550*time.Millisecond+paused {
			p.missed("%s has not come back: it is silent for %s; of all flows the own stack refused %d sends inside and %d outside", f.Name(), silent, seen.Refused[0], seen.Refused[1])
		}
	}
	if v.Marked == 0 {
		p.t.Error("nothing was sent with the address of the group: the judge has judged nothing")
	}
	return seen, v
}

// terms names the nodes that have sent data for the group, in order.
func terms(v *judge.Verdict) string { return termsOf(v, nodes.PairGroup) }

func termsOf(v *judge.Verdict, group string) string {
	var list []string
	for _, t := range v.Terms[group] {
		list = append(list, t.Node)
	}
	return strings.Join(list, " ")
}

// event is something that was done to the pair while packets went.
type event struct {
	what     string
	from, to time.Time
	most     time.Duration // the gap that it may cost the flow in the middle; the worst one may wait for a neighbour, or a busy machine, for a second more
	least    time.Duration // it costs as much at least, or nothing has happened
}

// held says of each event what it cost, and whether it may.
func (p *pairLab) held(seen *netlab.FlowsSeen, events []event) {
	p.t.Helper()
	for _, e := range events {
		worst, paused := seen.Worst(e.from, e.to)
		var all []time.Duration
		for _, g := range seen.Gaps(e.from, e.to) {
			all = append(all, g.Gap)
		}
		slices.Sort(all)
		p.t.Logf("%-44s gap %6.1f ms (%s), median flow %6.1f ms; senders paused for %.1f ms", e.what, ms(worst.Gap), worst.Flow, ms(all[len(all)/2]), ms(paused))
		if middle := all[len(all)/2]; middle > e.most+paused || worst.Gap > e.most+paused+time.Second {
			p.missed("%s: a gap of %s in the middle and %s at worst (%s), at most %s and a second more; senders paused for %s", e.what, middle, worst.Gap, worst.Flow, e.most, paused)
		}
		if worst.Gap < e.least {
			p.t.Errorf("%s: the worst gap is %s, it takes %s at least", e.what, worst.Gap, e.least)
		}
	}
	lost, sent := seen.Lost()
	p.t.Logf("%d of %d packets lost; %d flows have another public port now", lost, sent, len(seen.Moved()))
}

func ms(d time.Duration) float64 { return float64(d) / 1e6 }

// stop stops a node's process for a time, and says from when to when it was surely stopped.
func (p *pairLab) stop(n *nodes.Node, d time.Duration) (from, to time.Time) {
	p.t.Helper()
	from = time.Now()
	check(p.t, unix.Kill(n.Pid(), unix.SIGSTOP))
	time.Sleep(d) // it is the length that matters
	to = time.Now()
	check(p.t, unix.Kill(n.Pid(), unix.SIGCONT))
	p.woken = append(p.woken, woken{n.Name, to})
	return from, to
}

// says is what a node says of the group.
func (p *pairLab) says(n *nodes.Node) (g api.Group, err error) {
	return p.saysOf(n, nodes.PairGroup)
}

func (p *pairLab) saysOf(n *nodes.Node, group string) (g api.Group, err error) {
	var all api.Groups
	if err := n.Client.Get(p.t.Context(), api.PathGroups, &all); err != nil {
		return g, err
	}
	for _, g := range all.Groups {
		if g.Name == group {
			return g, nil
		}
	}
	return g, fmt.Errorf("%s knows no group %s: %s", n.Name, group, all.Problem)
}

// leads has a node lead the log, for the moment: it hands the lead to the witness some seconds later.
func (p *pairLab) leads(n *nodes.Node) {
	p.t.Helper()
	var err error
	if !until(10*time.Second, func() bool {
		m, e := n.Members(p.t.Context())
		if err = e; err == nil && m.Leader == n.Name {
			return true
		}
		_, err = n.Run(p.t.Context(), "cluster", "lead", n.Name)
		return false
	}) {
		p.t.Fatalf("%s does not come to lead: %v", n.Name, err)
	}
}

// agreed waits until every node that runs says that this one owns the group, all under one epoch, and that it alone serves it; and its metrics say the same.
func (p *pairLab) agreed(owner *nodes.Node) {
	p.t.Helper()
	var why string
	epoch := uint64(0)
	look := func() bool {
		epoch = 0
		for _, n := range p.Nodes() {
			if !n.Runs() {
				continue
			}
			g, err := p.says(n)
			switch {
			case err != nil:
				why = err.Error()
				return false
			case g.Owner != owner.Name || g.Serving != (n == owner) || epoch != 0 && g.Epoch != epoch || (g.Lease > 0) != (n == owner):
				why = fmt.Sprintf("%s says: %+v", n.Name, g)
				return false
			}
			epoch = g.Epoch
		}
		return true
	}
	if !until(5*time.Second, look) {
		p.wrong("not all say that %s serves the group: %s", owner.Name, why)
	}
	for _, n := range p.Gateways() {
		if !n.Runs() {
			continue
		}
		b, err := n.Client.Text(p.t.Context(), api.PathMetrics)
		check(p.t, err)
		serving := 0
		if n == owner {
			serving = 1
		}
		for _, want := range []string{fmt.Sprintf("demarc_group_serving{group=%q} %d", nodes.PairGroup, serving), fmt.Sprintf("demarc_group_owner{group=%q,node=%q} 1", nodes.PairGroup, owner.Name),
			fmt.Sprintf("demarc_group_epoch{group=%q} %d", nodes.PairGroup, epoch)} {
			if !strings.Contains(string(b), want+"\n") {
				p.t.Errorf("the metrics of %s have no line %q", n.Name, want)
			}
		}
	}
}
