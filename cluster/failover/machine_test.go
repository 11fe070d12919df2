package failover

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"
)

// quietWorld is a pair and a witness that have been running for two seconds; a owns the group.
func quietWorld(t *testing.T, seed uint64, gateways, witnesses int, g Group) *world {
	t.Helper()
	return timedWorld(t, seed, gateways, witnesses, g, Default)
}

func timedWorld(t *testing.T, seed uint64, gateways, witnesses int, g Group, times Times) *world {
	t.Helper()
	if g.Name == "" {
		g.Name = "g"
	}
	if g.Nodes == nil {
		g.Nodes = []string{"a", "b", "c"}[:gateways]
	}
	w := newWorld(seed, gateways, witnesses, []Group{g}, times)
	w.judge.forced = map[string]int64{}
	if testing.Verbose() && *showTrace {
		w.trace = func(f string, a ...any) { t.Logf("%9.3f "+f, append([]any{float64(w.now) / 1e6}, a...)...) }
	}
	w.run(1500 * ms)
	w.calm = true
	w.run(2000 * ms)
	if w.owner("g") != "a" || !slices.Contains(w.states[len(w.states)-1].Groups["g"].InSync, "b") {
		t.Fatalf("seed %d: after two seconds %q owns the group, %+v is agreed on", seed, w.owner("g"), w.states[len(w.states)-1])
	}
	w.judge.reset(w.now)
	return w
}

func (w *world) served(t *testing.T, seed uint64, by string) {
	t.Helper()
	for _, f := range w.judge.faults {
		t.Errorf("seed %d: %s", seed, f)
	}
	if l := w.judge.last["g"]; l.node != by || w.now-l.at > 60*ms {
		t.Errorf("seed %d: %s served last, %d ms ago; want %s", seed, l.node, (w.now-l.at)/ms, by)
	}
}

func (w *world) moves() int { return len(w.judge.runs["g"]) - 1 }

func spread(gaps []int64) string {
	slices.Sort(gaps)
	return fmt.Sprintf("%d runs: least %d, median %d, worst %d ms", len(gaps), gaps[0]/ms, gaps[len(gaps)/2]/ms, gaps[len(gaps)-1]/ms)
}

// TestTakeoverTime: a majority lives and the copy is whole, so the group is served again within the rest of the lease, a commit and a round trip.
func TestTakeoverTime(t *testing.T) {
	for _, c := range []struct {
		name  string
		proof bool
		bound int64
	}{
		{"machine gone", false, 250 * ms},
		{"proof of death", true, 60 * ms},
	} {
		t.Run(c.name, func(t *testing.T) {
			var gaps []int64
			for seed := range uint64(60) {
				w := quietWorld(t, seed, 2, 1, Group{})
				w.run(w.now + w.between(0, 60*ms))
				a := w.box("a")
				owns := a.m.Owns()
				a.kill()
				if c.proof {
					for _, o := range []string{"b", "wc"} {
						w.send(a, Send{o, Message{Kind: Release, Group: "g", Term: owns["g"]}})
					}
				}
				w.run(w.now + 1000*ms)
				w.served(t, seed, "b")
				gaps = append(gaps, w.judge.worst["g"])
			}
			if t.Log(spread(gaps)); gaps[len(gaps)-1] > c.bound {
				t.Errorf("the bound is %d ms", c.bound/ms)
			}
		})
	}
}

// TestPlannedMove: an operator's, a drain, and a node that leaves; nobody is asked to wait for a lease.
func TestPlannedMove(t *testing.T) {
	var gaps []int64
	for seed := range uint64(60) {
		w := quietWorld(t, seed, 2, 1, Group{})
		switch a := w.box("a"); seed % 3 {
		case 0:
			a.step(Move{"g", "b"})
		case 1:
			w.propose(a, Entry{Kind: KindDrain, Node: "a", On: true})
		case 2:
			a.step(Leave{})
		}
		w.run(w.now + 1000*ms)
		w.served(t, seed, "b")
		gaps = append(gaps, w.judge.worst["g"])
	}
	if t.Log(spread(gaps)); gaps[len(gaps)/2] > 20*ms || gaps[len(gaps)-1] > 60*ms {
		t.Error("want a median of at most 20 ms, and at most 60")
	}
}

// TestLeaves: a node that ends gives up what it could not hand over, so that nobody has to wait for its lease.
func TestLeaves(t *testing.T) {
	for seed := range uint64(10) {
		w := quietWorld(t, seed, 2, 1, Group{Stale: true})
		w.sync[[2]string{"a", "b"}] = true
		w.run(w.now + 1500*ms) // b is not in sync any more
		w.judge.reset(w.now)
		w.box("a").step(Leave{})
		w.run(w.now + 300*ms)
		w.served(t, seed, "a") // there is nobody to hand over to
		w.box("a").step(Leave{Now: true})
		w.run(w.now + 300*ms)
		w.served(t, seed, "b")
		if w.judge.worst["g"] > 60*ms {
			t.Errorf("seed %d: %d ms of silence", seed, w.judge.worst["g"]/ms)
		}
	}
}

// TestRestartProves: a node that is back says that its last life's term is over. That is said three times, since it is not answered.
func TestRestartProves(t *testing.T) {
	for seed := range uint64(10) {
		w := quietWorld(t, seed, 2, 1, Group{Alone: Keep}) // nobody takes over without proof
		a := w.box("a")
		a.kill()
		w.run(w.now + 10*ms)
		deaf := func(cut bool) {
			w.paths[[2]string{"a", "b"}].cut = cut
			w.paths[[2]string{"a", "wc"}].cut = cut
		}
		deaf(true)
		a.start()
		w.run(w.now + 35*ms) // two of the three are lost
		deaf(false)
		w.run(w.now + 500*ms)
		w.served(t, seed, "b")
		if w.judge.worst["g"] > 140*ms {
			t.Errorf("seed %d: %d ms of silence", seed, w.judge.worst["g"]/ms)
		}
	}
}

// TestWholeFirst: an empty node lets one that is in sync go first, heard of or not, but not for ever.
func TestWholeFirst(t *testing.T) {
	for seed := range uint64(10) {
		w := quietWorld(t, seed, 2, 1, Group{Stale: true})
		w.box("a").restart(10 * ms)
		w.run(w.now + 1000*ms)
		w.served(t, seed, "b")

		w = quietWorld(t, seed, 2, 1, Group{Stale: true})
		raft := func(cut bool) { w.raft[[2]string{"b", "a"}], w.raft[[2]string{"b", "wc"}] = cut, cut }
		raft(true) // it lives, and what it proposes goes nowhere for a while
		w.box("a").restart(10 * ms)
		w.run(w.now + 1200*ms)
		raft(false)
		w.run(w.now + 500*ms)
		w.served(t, seed, "b")

		w = quietWorld(t, seed, 2, 1, Group{Stale: true})
		w.box("b").kill() // in sync by the log, and dead before the owner can say otherwise
		w.box("a").restart(10 * ms)
		w.run(w.now + 1500*ms)
		w.served(t, seed, "a")
		if s := w.judge.worst["g"]; s < 550*ms || s > 900*ms {
			t.Errorf("seed %d: the empty node waited %d ms for the one that is in sync", seed, s/ms)
		}
	}
}

// TestPolicyChanges: a node that the policy takes a group from gives it up, and takes it again when it is given back.
func TestPolicyChanges(t *testing.T) {
	w := quietWorld(t, 50, 2, 1, Group{})
	policy := func(list ...Group) {
		for _, b := range w.boxes {
			b.step(Groups(list))
		}
	}
	policy()
	w.run(w.now + 500*ms)
	if l := w.judge.last["g"]; w.now-l.at < 480*ms {
		t.Errorf("%s emitted %d ms ago for a group that is not there any more", l.node, (w.now-l.at)/ms)
	}
	policy(Group{Name: "g", Nodes: []string{"a", "b"}}) // back again, and nobody has had it meanwhile
	w.run(w.now + 700*ms)
	w.served(t, 50, w.owner("g"))
	w.box(w.owner("g")).step(Take{"g"})
	other := map[string]string{"a": "b", "b": "a"}[w.owner("g")]
	w.run(w.now + 500*ms)
	w.judge.reset(w.now)
	policy(Group{Name: "g", Nodes: []string{other}, Stale: true})
	w.run(w.now + 500*ms)
	w.served(t, 50, other)
	if w.judge.worst["g"] > 60*ms {
		t.Errorf("%d ms of silence", w.judge.worst["g"]/ms)
	}
}

// TestShortPauseMovesNothing: a node that is stopped for less than half a lease keeps its groups, whatever clocks do.
func TestShortPauseMovesNothing(t *testing.T) {
	for seed := range uint64(60) {
		w := quietWorld(t, seed, 2, 1, Group{})
		for range 8 {
			v := w.boxes[w.dice.IntN(3)]
			v.pause(w.between(10*ms, int64(Default.Lease/2)))
			w.run(w.now + w.between(150*ms, 400*ms))
		}
		w.run(w.now + 300*ms)
		w.served(t, seed, "a")
		if w.moves() != 0 || w.judge.worst["g"] > 110*ms {
			t.Errorf("seed %d: %d moves, %d ms of silence", seed, w.moves(), w.judge.worst["g"]/ms)
		}
	}
}

// TestFrozenOwner: stopped for longer, it emits after it wakes at most the burst that it had in hand, and yields.
func TestFrozenOwner(t *testing.T) {
	hands := 0
	for seed := range uint64(100) {
		w := quietWorld(t, seed, 2, 1, Group{Alone: Fence})
		w.box("a").pause(w.between(450*ms, 3000*ms)) // nothing is agreed on while the leader is stopped too
		w.run(w.now + 4000*ms)
		w.served(t, seed, "b")
		hands += len(w.judge.burst)
	}
	t.Logf("a burst in hand left late in %d of 100", hands)
}

// TestCutsMoveNothing: as long as a majority hears the owner, no cut moves the group or stops it.
func TestCutsMoveNothing(t *testing.T) {
	for _, c := range []struct {
		name string
		do   func(w *world)
	}{
		{"owner and standby", func(w *world) { w.link("a", "b", true); w.link("b", "a", true) }},
		{"owner and witness", func(w *world) { w.link("a", "wc", true); w.link("wc", "a", true) }},
		{"standby alone", func(w *world) { w.isolate("b", true) }},
		{"witness alone", func(w *world) { w.isolate("wc", true) }},
		{"witness dead", func(w *world) { w.box("wc").kill() }},
		{"standby dead", func(w *world) { w.box("b").kill() }},
		{"no log at all", func(w *world) { w.stall = w.now + 1e12 }},
		{"no copies", func(w *world) { w.sync[[2]string{"a", "b"}] = true }},
		{"every fifth message lost", func(w *world) {
			for _, p := range w.paths {
				p.loss = 0.05
			}
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			for seed := range uint64(10) {
				w := quietWorld(t, seed, 2, 1, Group{})
				c.do(w)
				w.run(w.now + 3000*ms)
				w.served(t, seed, "a")
				if w.moves() != 0 || w.judge.worst["g"] > 60*ms {
					t.Errorf("seed %d: %d moves, %d ms of silence", seed, w.moves(), w.judge.worst["g"]/ms)
				}
			}
		})
	}
}

// TestIsolatedOwner: by the group's choice it stops and another takes over, or it serves on and nobody does.
func TestIsolatedOwner(t *testing.T) {
	for _, c := range []struct {
		alone     Alone
		witnesses int
		by        string
	}{
		{"", 1, "b"}, {Fence, 1, "b"}, {Keep, 1, "a"}, {Auto, 1, "b"}, // auto is for two alone, and means fence otherwise
		{"", 0, "a"}, {Keep, 0, "a"},
	} {
		t.Run(fmt.Sprintf("%s with %d", c.alone, c.witnesses), func(t *testing.T) {
			for seed := range uint64(8) {
				w := quietWorld(t, seed, 2, c.witnesses, Group{Alone: c.alone})
				w.isolate("a", true)
				w.run(w.now + 2500*ms)
				w.served(t, seed, c.by)
				w.isolate("a", false)
				w.run(w.now + 1500*ms)
				w.served(t, seed, c.by)
			}
		})
	}
	t.Run("fence, two alone", func(t *testing.T) {
		w := quietWorld(t, 1, 2, 0, Group{Alone: Fence})
		w.isolate("a", true)
		w.run(w.now + 2000*ms)
		if l := w.judge.last["g"]; w.now-l.at < 1800*ms {
			t.Errorf("%s emitted %d ms ago: neither has a majority", l.node, (w.now-l.at)/ms)
		}
		w.isolate("a", false)
		w.run(w.now + 1000*ms)
		w.served(t, 1, "a")
	})
}

// TestMoveUnheard: an owner that serves on alone has proposed a move and is cut off before it hears that it was agreed on. It goes by its lease then.
func TestMoveUnheard(t *testing.T) {
	for seed := range uint64(20) {
		w := quietWorld(t, seed, 2, 1, Group{Alone: Keep})
		n := len(w.log)
		w.box("a").step(Move{"g", "b"})
		for len(w.log) == n && w.now < 4000*ms {
			for _, o := range []string{"b", "wc"} { // what a says is heard, and a hears nothing
				w.link(o, "a", true)
				w.raft[[2]string{o, "a"}] = false
			}
			w.run(w.now + ms/10)
		}
		w.isolate("a", true)
		w.run(w.now + 2000*ms)
		w.served(t, seed, "b")
		w.isolate("a", false)
		w.run(w.now + 1000*ms)
		w.served(t, seed, "b")
	}
}

// TestMoveNotAgreedOn: nothing is agreed on for a while, so a move is given up; the owner serves on, alone too, once that is settled.
func TestMoveNotAgreedOn(t *testing.T) {
	w := quietWorld(t, 31, 2, 1, Group{Alone: Keep})
	w.stall = w.now + 1500*ms
	w.box("a").step(Move{"g", "b"})
	w.run(w.now + 1400*ms)
	w.served(t, 31, "a")
	w.run(w.now + 1500*ms)
	owner := w.owner("g") // an entry that waited may have been agreed on after all
	if s := w.states[len(w.states)-1].Groups["g"]; s.Node != owner {
		t.Fatalf("%s serves, agreed is %+v", owner, s)
	}
	w.isolate(owner, true)
	w.run(w.now + 2000*ms)
	w.served(t, 31, owner)
}

// TestKeptOwnerRestarts: two alone, the other one is away: whoever was the owner serves again, since nobody else can have become it.
func TestKeptOwnerRestarts(t *testing.T) {
	for seed := range uint64(10) {
		w := quietWorld(t, seed, 2, 0, Group{Stale: true})
		w.box("b").kill()
		w.run(w.now + 1000*ms)
		w.box("a").restart(50 * ms)
		w.run(w.now + 2000*ms)
		w.served(t, seed, "a")
		w.box("b").start()
		w.run(w.now + 2000*ms)
		w.served(t, seed, "a")
		if s := w.states[len(w.states)-1].Groups["g"]; s.Node != "a" || s.Life != w.box("a").m.life {
			t.Errorf("seed %d: it is not agreed on: %+v", seed, s)
		}
	}
}

// TestAuto does what it promises, and no more: the standby takes over when it hears nothing, two serve while they are cut, and one yields within a beat.
func TestAuto(t *testing.T) {
	var gaps, meets []int64
	for seed := range uint64(20) {
		w := quietWorld(t, seed, 2, 0, Group{Alone: Auto})
		w.judge.auto = true
		w.box("a").kill()
		w.run(w.now + 1500*ms)
		w.served(t, seed, "b")
		gaps = append(gaps, w.judge.worst["g"])
		w.box("a").start() // as a standby
		w.run(w.now + 2000*ms)
		w.served(t, seed, "b")

		last := map[string]int64{}
		w.link("a", "b", true)
		w.link("b", "a", true)
		w.run(w.now + 1000*ms)
		mended := w.now
		w.link("a", "b", false)
		w.link("b", "a", false)
		for range 400 {
			w.run(w.now + ms)
			last[w.judge.last["g"].node] = w.judge.last["g"].at
			if p := w.box("b").dp["g"]; May(w.box("b").clock(), p.until) {
				last["b"] = w.now
			}
		}
		if last["a"] < mended {
			t.Errorf("seed %d: a did not serve while it was cut off", seed)
		}
		meets = append(meets, last["b"]-mended)
		w.run(w.now + 1000*ms)
		if s := w.states[len(w.states)-1].Groups["g"]; s.Node != "a" {
			t.Errorf("seed %d: a served under the later epoch, agreed is %+v", seed, s)
		}
	}
	t.Logf("takeover: %s; until one yields: %s", spread(gaps), spread(meets))
	if limit := int64(Default.Renew)*106/100 + 10*ms; meets[len(meets)-1] > limit {
		t.Errorf("two served for more than a beat after they could hear each other: %d ms", meets[len(meets)-1]/ms)
	}
	if gaps[len(gaps)-1] > 300*ms {
		t.Error("takeover by silence took more than 300 ms")
	}
}

// TestForce is the operator's way in, in each mode.
func TestForce(t *testing.T) {
	for _, alone := range []Alone{Fence, Keep, Auto} {
		for _, witnesses := range []int{0, 1} {
			w := quietWorld(t, 3, 2, witnesses, Group{Alone: alone})
			w.judge.auto = true
			w.box("a").kill()
			w.propose(w.box("b"), Entry{Kind: KindDrain, Node: "b", On: true})
			w.run(w.now + 100*ms)
			w.box("b").step(Take{"g"})
			w.run(w.now + 2500*ms)
			w.served(t, 3, "b")
		}
	}
}

// TestPoison: packets that meet a fault of ours follow the group. They move it once, and then never again while they come.
func TestPoison(t *testing.T) {
	for seed := range uint64(3) {
		times := Default
		times.PanicRest /= 20 // and all that follows, so that it takes less time
		w := timedWorld(t, seed, 2, 1, Group{Prefer: seed == 2}, times)
		// The flow is blocked for a while after each panic, so panics come and go.
		var poison func()
		on := false
		poison = func() {
			on = !on
			for _, b := range w.boxes {
				b.step(Condition{"g", CausePanics, btoi(on && b.name == w.owner("g"))})
			}
			if w.now > 45_000*ms && w.now < 48_000*ms && seed == 1 { // the owner restarts, and has forgotten
				w.box(w.owner("g")).restart(10 * ms)
			}
			w.at(w.now+w.between(250*ms, 3_000*ms), poison)
		}
		w.at(w.now, poison)
		w.run(120_000 * ms) // four times the rest
		demoted := 0
		for _, e := range w.log {
			demoted += btoi(e.Kind == KindClaim && e.Cause == CausePanics)
		}
		if demoted != 1 || len(w.judge.faults) > 0 {
			t.Errorf("seed %d: panics moved the group %d times, want once; %v", seed, demoted, w.judge.faults)
		}
	}
}

// TestConditions: a group moves to a node that is better, at once the first time, then more and more slowly, and never to one that is no better.
func TestConditions(t *testing.T) {
	for _, c := range Conditions {
		w := quietWorld(t, 5, 2, 1, Group{})
		w.box("a").step(Condition{"", c, 1})
		w.run(w.now + 500*ms)
		w.served(t, 5, "b")
		if w.judge.worst["g"] > 60*ms {
			t.Errorf("%s: %d ms of silence", c, w.judge.worst["g"]/ms)
		}
	}
	w := quietWorld(t, 6, 2, 1, Group{})
	for _, n := range []string{"b", "a"} { // both are as bad
		w.box(n).step(Condition{"", CausePort, 1})
		w.run(w.now + 100*ms)
	}
	w.run(w.now + 3000*ms)
	w.served(t, 6, "a")
	var when []int64
	bad := "a"
	w.box("b").step(Condition{"", CausePort, 0})
	for range 5 { // a port that flaps wherever the group is
		for w.owner("g") == bad {
			w.run(w.now + 20*ms)
			if w.now > 400_000*ms {
				t.Fatal("it does not move any more")
			}
		}
		when = append(when, w.now)
		w.box(bad).step(Condition{"", CausePort, 0})
		bad = w.owner("g")
		w.run(w.now + 1500*ms)
		w.box(bad).step(Condition{"", CausePort, 1})
	}
	for i := 1; i < len(when); i++ {
		hold := int64(Default.HoldFirst) << (i - 1)
		if d := when[i] - when[i-1]; d < hold*95/105 || d > hold*105/95+2000*ms {
			t.Errorf("move %d came after %d ms, a group stays %d ms then", i+1, d/ms, hold/ms)
		}
	}
}

// TestPreference: a preferred node takes over again only when it is back, whole, and the group says so.
func TestPreference(t *testing.T) {
	for _, prefer := range []bool{true, false} {
		w := quietWorld(t, 9, 2, 1, Group{Prefer: prefer})
		w.box("a").kill()
		w.run(w.now + 1000*ms)
		w.sync[[2]string{"b", "a"}] = true
		w.box("a").start()
		w.run(w.now + 5000*ms)
		w.served(t, 9, "b") // a is back and not whole
		delete(w.sync, [2]string{"b", "a"})
		w.run(w.now + 2000*ms)
		w.served(t, 9, map[bool]string{true: "a", false: "b"}[prefer])
	}
}

// TestDrained: the rest may be worked on, and the owner serves without a majority, since nobody takes over; afterwards it is as before.
func TestDrained(t *testing.T) {
	w := quietWorld(t, 12, 2, 1, Group{})
	w.propose(w.box("a"), Entry{Kind: KindDrain, Node: "b", On: true})
	w.run(w.now + 500*ms)
	if s := w.states[len(w.states)-1].Groups["g"]; s.Alone != Keep {
		t.Fatalf("agreed: %+v", s)
	}
	w.box("b").kill()
	w.box("wc").kill()
	w.run(w.now + 3000*ms)
	w.served(t, 12, "a")
	w.box("b").start()
	w.box("wc").start()
	w.propose(w.box("b"), Entry{Kind: KindDrain, Node: "b"})
	w.run(w.now + 2000*ms)
	w.served(t, 12, "a")
	if s := w.states[len(w.states)-1].Groups["g"]; s.Alone != Fence {
		t.Errorf("agreed: %+v", s)
	}
	w.isolate("a", true)
	w.run(w.now + 1000*ms)
	w.served(t, 12, "b")
}

// TestMoveRefused: an operator hears why, and nothing happens.
func TestMoveRefused(t *testing.T) {
	w := quietWorld(t, 20, 2, 1, Group{})
	refused := func(node string, e Event) string {
		for _, a := range w.box(node).m.Step(w.box(node).clock(), e) {
			if a, ok := a.(Tell); ok && a.Refused {
				return a.Words
			}
		}
		return ""
	}
	w.box("b").m.peers["wc"] = &peer{}
	for _, c := range []struct {
		node string
		e    Event
		want string
	}{
		{"b", Move{"g", "a"}, "does not own"}, {"a", Move{"g", "a"}, "already"}, {"a", Move{"g", "x"}, "not one of"}, {"a", Take{"g"}, "already"}, {"wc", Take{"g"}, "not one of"},
		{"a", Move{"unheard", "b"}, "does not own"},
	} {
		if got := refused(c.node, c.e); !strings.Contains(got, c.want) {
			t.Errorf("%s %+v: %q, want %q", c.node, c.e, got, c.want)
		}
	}
	w.sync[[2]string{"a", "b"}] = true
	w.run(w.now + 1700*ms)
	if got := refused("a", Move{"g", "b"}); !strings.Contains(got, "not in sync") {
		t.Errorf("a copy that is behind: %q", got)
	}
	w.box("b").kill()
	w.run(w.now + 500*ms)
	if got := refused("a", Move{"g", "b"}); !strings.Contains(got, "nothing is heard") {
		t.Errorf("a node that is gone: %q", got)
	}
	w.served(t, 20, "a")
}

// TestTimes holds the arithmetic: with clocks that differ as much as may be, the owner has stopped before a voter may help another.
func TestTimes(t *testing.T) {
	if err := Default.Check(); err != nil {
		t.Fatal(err)
	}
	if s := Default.Slack(); s < 13*time.Millisecond || s > 15*time.Millisecond {
		t.Errorf("slack is %s", s)
	}
	dice := rand.New(rand.NewPCG(1, 2))
	for range 10_000 {
		x := Default
		x.Lease = time.Duration(dice.Int64N(int64(2 * time.Second)))
		x.Guard = time.Duration(dice.Int64N(int64(200 * time.Millisecond)))
		x.Renew = time.Duration(dice.Int64N(int64(200 * time.Millisecond)))
		if x.Check() != nil {
			continue
		}
		slow, fast := 0.95, 1.05
		owner := float64(x.Use()) / slow // true time until it stops
		voter := float64(x.Lease) / fast // true time until another is helped
		if owner+float64(x.Guard)/2 > voter+1 {
			t.Fatalf("%+v: the owner stops after %.1f, a voter helps another after %.1f ms", x, owner/1e6, voter/1e6)
		}
	}
	for _, c := range []struct {
		change func(*Times)
		want   string
	}{
		{func(x *Times) { x.Guard = 8 * time.Millisecond }, "longer guard"},
		{func(x *Times) { x.Renew = 40 * time.Millisecond }, "three renewals"},
		{func(x *Times) { x.Lease = 0 }, "more than nothing"},
		{func(x *Times) { x.HoldMost = time.Second }, "at most must be more"},
	} {
		x := Default
		c.change(&x)
		if err := x.Check(); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%+v: %v, want %q", x, err, c.want)
		}
	}
}

// TestStrangeMessages: what a member sends makes neither a panic nor memory grow, and a term that nobody agreed on takes nothing from the owner.
func TestStrangeMessages(t *testing.T) {
	w := quietWorld(t, 40, 2, 1, Group{})
	dice := rand.New(rand.NewPCG(40, 1))
	name := func() string { return []string{"a", "b", "wc", "x", ""}[dice.IntN(5)] }
	kinds := []Say{0, Beat, Renew, Ask, Free, Release, Release + 1}
	for range 20_000 {
		m := Message{Kind: kinds[dice.IntN(len(kinds))], Life: dice.Uint64N(3), Group: []string{"g", "", fmt.Sprint(dice.Uint64())}[dice.IntN(3)],
			Term: Term{dice.Uint64N(5), name(), dice.Uint64N(3)}, Seq: dice.Uint64N(1000), Voters: dice.Uint64N(3), Yes: dice.IntN(2) == 0, Gone: dice.IntN(2) == 0}
		for range dice.IntN(3) {
			m.Views = append(m.Views, View{Group: fmt.Sprint("v", dice.Uint64()), Epoch: dice.Uint64(), Serving: true, Panics: true, Faults: -1})
		}
		for _, b := range w.boxes {
			b.step(Received{name(), m})
		}
		if dice.IntN(20) == 0 {
			w.run(w.now + ms)
		}
	}
	w.run(w.now + 500*ms)
	w.served(t, 40, "a")
	for _, b := range w.boxes {
		if len(b.m.groups) != 1 || len(b.m.peers) > 5 {
			t.Errorf("%s keeps %d groups and %d peers", b.name, len(b.m.groups), len(b.m.peers))
		}
	}
}
