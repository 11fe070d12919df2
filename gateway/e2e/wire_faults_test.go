package e2e

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"demarc/gateway/api"
	"demarc/gateway/netlab/judge"
	"demarc/gateway/pipeline"
	nodes "demarc/gateway/trio"
)

var (
	wireSeed   = flag.Uint64("faults.seed", 0, "of the first round of TestWireFaults and TestWireAuto; 0 = drawn")
	wireFor    = flag.Duration("faults.for", 0, "how long they do harm, in rounds of 12 s; 0 = one short round")
	wireClocks = flag.Bool("faults.clocks", false, "the nodes' clocks have another pace, up to 5 %, and wall clocks that are off by weeks (a program that is built for it); TestWireFaults has that in its short round too")
)

const (
	wireShort = 5 * time.Second // a round of every run of the tests
	wireRound = 12 * time.Second
)

// Harm of all kinds from a seed, one on top of the other, to two gateways and a witness (or none, see wireDraw), while conversations begin, and remote hosts go on sending to every public port that they have heard from: what either
// gateway sends with the group's address is judged by captures at the switches. Never two owners, never a packet to another host than its own, never a public port with two hosts. When
// all is over one of them serves, and the other has a whole copy. In the short round of every run the nodes' clocks differ, by pace, wall clock and offset; TestWireAuto has the program as it is shipped.
func TestWireFaults(t *testing.T) {
	clocks := *wireClocks || *wireFor == 0
	wireRounds(t, clocks, func(seed uint64) *wirePlan {
		return wireDraw(seed, []string{"fence", "keep"}[seed%2], []string{"wait", "serve"}[seed/2%2], wireTime(), clocks)
	}, func(l *wireLab, v *judge.Verdict) {
		for _, o := range v.Offences {
			if !l.handful(o) {
				l.t.Error(o)
			}
		}
	})
}

var _ [pipeline.Burst]struct{} = [judge.Burst]struct{}{}

// handful reports whether what a node sent beside another is the one burst that it had in hand when it was stopped.
func (l *wireLab) handful(o judge.Offence) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	for i := range l.done {
		d := &l.done[i]
		if (d.kind == harmStop || d.kind == harmFreeze) && o.Handful(d.node, d.to, judge.Burst-d.conceded) {
			d.conceded += o.Frames
			l.t.Logf("conceded: %s", o)
			return true
		}
	}
	return false
}

func wireTime() time.Duration {
	if *wireFor == 0 {
		return wireShort
	}
	return wireRound
}

// wireRounds runs plans, of one seed and those after it, until the time is over. Each has nodes and hosts of its own, for the ports and sessions of an hour are more than there are.
func wireRounds(t *testing.T, clocks bool, draw func(seed uint64) *wirePlan, judged func(*wireLab, *judge.Verdict)) {
	seed := *wireSeed
	if seed == 0 {
		seed = rand.Uint64() >> 16
	}
	for harmed := time.Duration(0); ; seed++ {
		ok := t.Run(fmt.Sprint("seed=", seed), func(t *testing.T) {
			binary := program(t)
			if clocks {
				binary = plantProgram(t)
			}
			p := draw(seed)
			l := wireOpen(t, p, binary, clocks)
			l.start()
			if p.alone == "auto" {
				l.split()
			}
			l.harm(t.Context())
			l.heals()
			l.end(judged)
		})
		if harmed += wireTime(); !ok || harmed >= *wireFor {
			return
		}
	}
}

// heals waits until all is well again: every node runs and votes, one gateway serves, and the other has a whole copy.
func (l *wireLab) heals() {
	l.t.Helper()
	ctx := l.t.Context()
	for _, n := range l.Nodes() {
		if !n.Runs() {
			l.t.Fatalf("%s has ended by itself:\n%s", n.Name, n.Log(20))
		}
		check(l.t, n.Ready(ctx))
	}
	check(l.t, l.Whole(ctx, 30*time.Second, nil))
	h := &pairLab{Pair: l.Pair, t: l.t}
	var why string
	if !until(40*time.Second, func() bool {
		owner, err := l.Owner(ctx, 10*time.Second)
		if err != nil && l.plan.stale == "wait" { // no copy is whole: that is the operator's to decide
			l.tell("%v: gw1 takes it by force", err)
			_, err = l.GW1.Run(ctx, "group", "take", nodes.PairGroup, "--force")
			check(l.t, err)
			owner, err = l.Owner(ctx, 10*time.Second)
		}
		check(l.t, err)
		g, err := h.says(owner)
		why = fmt.Sprintf("%s serves, and says %+v (%v)", owner.Name, g, err)
		return err == nil && g.Serving && slices.Contains(g.InSync, l.Other(owner).Name)
	}) {
		l.t.Fatalf("not well again: %s", why)
	}
	l.tell("all is well: %s", why)
}

// end stops the traffic and judges. Traffic that did not go proves nothing.
func (l *wireLab) end(judged func(*wireLab, *judge.Verdict)) {
	l.t.Helper()
	seen, err := l.flows.End()
	check(l.t, err)
	begun, heard, err := l.fresh.End()
	check(l.t, err)
	if seen.Wrong > 0 {
		l.t.Errorf("%d packets were wrong: %s", seen.Wrong, seen.Example)
	}
	v, err := l.Judge()
	check(l.t, err)
	judged(l, v)
	if v.Marked < 1000 || heard < 100 { // who does not know which ports are in use gives away none for a while: most may come to nothing
		l.t.Errorf("%d packets of flows judged; of %d conversations the outside has heard %d: too little to say anything", v.Marked, begun, heard)
	}
	lost, sent := seen.Lost()
	t := terms(v)
	if n := len(v.Terms[nodes.PairGroup]); n > 30 { // of both at once
		t = fmt.Sprint(n, " terms")
	}
	l.t.Logf("%s, %s, %d nodes: %d times harm; owners in turn: %s; %d frames judged, %d of %d conversations heard of, %d of %d packets of flows lost", l.plan.alone, l.plan.stale, len(l.plan.nodes()), len(l.plan.harms), t, v.Frames,
		heard, begun, lost, sent)
}

// Two gateways without a witness, and `auto`: when neither hears the other both may serve. What is promised: each serves on then; when they hear each other again one of them yields, and nobody else than the two
// halves of a cut pair ever serve at once. Ports are not judged after the first such time, since both have given some away by themselves.
func TestWireAuto(t *testing.T) {
	wireRounds(t, *wireClocks, func(seed uint64) *wirePlan { return wireDraw(seed, "auto", "serve", wireTime(), *wireClocks) }, func(l *wireLab, v *judge.Verdict) {
		apart := l.apart()
		for _, o := range v.Offences {
			split := slices.ContainsFunc(apart, func(s span) bool { return !o.At.Before(s.from) && o.At.Before(s.to) })
			after := len(apart) > 0 && !o.At.Before(apart[0].from)
			if o.Kind == judge.Both && split || o.Kind != judge.Both && after || l.handful(o) {
				continue
			}
			l.t.Error(o)
		}
	})
}

// split has neither gateway hear the other: both serve. Once they hear each other again one of them does, and the other one says that it does not.
func (l *wireLab) split() {
	l.t.Helper()
	d := doneHarm{harm: cutOff(0, 0, both([]string{"gw1"}, []string{"gw2"}, 0)...), from: time.Now()}
	undo, err := l.hinder(d.harm)
	check(l.t, err)
	h := &pairLab{Pair: l.Pair, t: l.t} // asked, and not seen: the switches bring packets to whoever took over, and the other has nothing to send
	if !until(10*time.Second, func() bool {
		a, errA := h.says(l.GW1)
		b, errB := h.says(l.GW2)
		return errA == nil && errB == nil && a.Serving && b.Serving
	}) {
		l.t.Error("neither hears the other, and one of them alone serves")
	}
	check(l.t, undo())
	d.to = time.Now()
	l.done = append(l.done, d)
	var a, b api.Group
	if !until(wireYield+2*time.Second, func() bool { // asked one behind the other, on a machine without a core for it
		var errA, errB error
		a, errA = h.says(l.GW1)
		b, errB = h.says(l.GW2)
		return errA == nil && errB == nil && a.Serving != b.Serving
	}) {
		l.t.Errorf("they hear each other again, and not one of them alone serves: gw1 says %+v, gw2 %+v", a, b)
	}
	_, err = l.Owner(l.t.Context(), 10*time.Second)
	check(l.t, err)
	l.began = time.Now()
}

type span struct{ from, to time.Time }

// wireYield is how long after they hear each other again both may still send: a beat each 20 ms, some that are lost, and a machine without a core for it.
const wireYield = 500 * time.Millisecond

// wireKeys is for how long nothing must hinder a connection for keys to be there: what was lost of one that has begun is sent again by TCP's timers.
const wireKeys = 500 * time.Millisecond

// deafens says whether a gateway may not hear the other one's beats for long because of it, or starts anew. One in twenty that is lost is no silence, and what hinders the log and the copies alone does not hinder beats.
func (h *harm) deafens() bool {
	switch h.kind {
	case harmShut, harmPort, harmMove, harmDrain, harmLoss, harmWitness, harmLead:
		return false
	case harmCut, harmDelay:
		return slices.ContainsFunc(h.ways, func(w harmWay) bool { return w.proto != unix.IPPROTO_TCP })
	}
	return true
}

// renews says whether a node starts anew because of it: the keys of its beats are gone with it, and new ones come about on the next connection to the other one.
func (h *harm) renews() bool {
	return slices.Contains([]string{harmKill, harmVanish, harmRestart}, h.kind)
}

// hindersKeys says whether a connection between the gateways may be long in coming because of it.
func (h *harm) hindersKeys() bool {
	return h.kind == harmStop || h.kind == harmFreeze || (h.kind == harmCut || h.kind == harmDelay) && slices.ContainsFunc(h.ways, func(w harmWay) bool { return w.proto != unix.IPPROTO_UDP })
}

// apart are the times in which the gateways may not have heard each other, as they were done, not as they were planned.
func (l *wireLab) apart() (list []span) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return deafTimes(l.done)
}

func deafTimes(done []doneHarm) (list []span) {
	for _, d := range done {
		if !d.deafens() {
			continue
		}
		s := span{d.from, d.to}
		for more := d.renews(); more; {
			more = false
			for _, x := range done {
				if x.hindersKeys() && x.from.Before(s.to.Add(wireKeys)) && x.to.After(s.to) {
					s.to, more = x.to, true
				}
			}
		}
		s.to = s.to.Add(wireYield)
		list = append(list, s)
	}
	slices.SortFunc(list, func(a, b span) int { return a.from.Compare(b.from) })
	return list
}

// A gateway that starts anew while connections are hindered cannot read the other one's beats until one has come about, however well those get through. Seed 212369791541603: both served alone, half a second longer than
// the beats of either were lost.
func TestWireApart(t *testing.T) {
	began := time.Now()
	at := func(ms int) time.Time { return began.Add(time.Duration(ms) * time.Millisecond) }
	ways := func(proto uint8) []harmWay { return []harmWay{{"gw1", "gw2", proto}} }
	did := func(kind string, from, to int, proto uint8) doneHarm {
		h := harm{kind: kind}
		if kind == harmCut || kind == harmDelay || kind == harmLoss {
			h.ways = ways(proto)
		}
		return doneHarm{harm: h, from: at(from), to: at(to)}
	}
	yield := int(wireYield / time.Millisecond)
	for _, c := range []struct {
		name string
		done []doneHarm
		want []span
	}{
		{"nothing that deafens", []doneHarm{did(harmShut, 0, 100, 0), did(harmCut, 0, 100, unix.IPPROTO_TCP), did(harmLoss, 0, 100, 0)}, nil},
		{"a cut", []doneHarm{did(harmCut, 0, 100, unix.IPPROTO_UDP), did(harmCut, 50, 900, unix.IPPROTO_TCP)}, []span{{at(0), at(100 + yield)}}},
		{"a new life", []doneHarm{did(harmVanish, 0, 100, 0), did(harmCut, 90, 900, unix.IPPROTO_UDP)}, []span{{at(0), at(100 + yield)}, {at(90), at(900 + yield)}}},
		{"a new life without connections", []doneHarm{did(harmDelay, 880, 1200, unix.IPPROTO_TCP), did(harmVanish, 0, 100, 0), did(harmCut, 90, 900, unix.IPPROTO_TCP), did(harmCut, 1700, 3000, unix.IPPROTO_TCP), did(harmLoss, 1200, 3000, 0)}, []span{{at(0), at(1200 + yield)}}},
	} {
		if got := deafTimes(c.done); !slices.Equal(got, c.want) {
			t.Errorf("%s: %v, want %v", c.name, got, c.want)
		}
	}
}
