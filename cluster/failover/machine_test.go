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

// TestSteady: while all is well nobody asks whether the owner is still helped, and only the owner announces: three times, then every 30 s.
func TestSteady(t *testing.T) {
	w := newWorld(60, 2, 1, []Group{{Name: "g", Nodes: []string{"a", "b"}}}, Default)
	w.calm, w.judge.forced = true, map[string]int64{}
	w.run(2000 * ms)
	asked := w.said[Ask]
	w.run(66_000 * ms)
	w.served(t, 60, "a")
	if n := w.said[Ask] - asked; n > 0 {
		t.Errorf("%d questions whether a healthy owner is helped", n)
	}
	if w.judge.announced < 5 || w.judge.announced > 6 {
		t.Errorf("%d announcements in 66 s", w.judge.announced)
	}
}

// TestBehind: what stands in a node's own log, and may be agreed on for all it knows, keeps it from serving alone; a claim of its own last life does not.
func TestBehind(t *testing.T) {
	for _, behind := range []bool{false, true} {
		w := quietWorld(t, 61, 2, 0, Group{Stale: true})
		w.box("b").kill()
		a := w.box("a")
		a.kill()
		w.run(w.now + 100*ms)
		a.start()
		a.step(Agreed{w.states[len(w.states)-1], behind, true, false})
		w.judge.reset(w.now)
		w.run(w.now + 2000*ms)
		if served := w.now-w.judge.last["g"].at < 60*ms; served == behind {
			t.Errorf("behind %v: served %v", behind, served)
		}
	}
}

// TestShortPauseMovesNothing: a node that is stopped for less than half a lease keeps its groups, whatever clocks do, and is silent for no longer than it was stopped.
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
		if w.moves() != 0 || w.judge.worst["g"] > 80*ms {
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

// TestAutoByLogAlone: the two agree on things and hear no beats of each other, as behind a filter that passes no datagrams. Whoever has the group goes on, and the other one does not take it, or once, where no message of the log
// came in time; and not as often as its claims are agreed on where it is not told of those messages.
func TestAutoByLogAlone(t *testing.T) {
	for seed := range uint64(40) {
		w := quietWorld(t, seed, 2, 0, Group{Alone: Auto, Stale: true})
		most := 2 // the one before, and one alone, which is agreed on under its number
		if w.wordless = seed%2 == 1; w.wordless {
			most = 6 // one for each ten leases, and what begins it
		}
		w.judge.auto = true
		before := len(w.states)
		w.paths[[2]string{"a", "b"}].cut, w.paths[[2]string{"b", "a"}].cut = true, true
		w.run(w.now + 4000*ms)
		terms := map[uint64]bool{}
		for _, s := range w.states[before:] {
			terms[s.Groups["g"].Epoch] = true
		}
		if len(terms) > most {
			t.Errorf("seed %d: %d terms in 4 s", seed, len(terms))
		}
		if last := w.judge.last["g"]; w.now-last.at > 100*ms {
			t.Errorf("seed %d: nobody serves, the last was %s %d ms ago", seed, last.node, (w.now-last.at)/ms)
		}
		w.paths[[2]string{"a", "b"}].cut, w.paths[[2]string{"b", "a"}].cut = false, false
		w.run(w.now + 2000*ms)
		if n := len(w.states); w.states[n-1].Groups["g"].Node != w.owner("g") {
			t.Errorf("seed %d: agreed is %+v, and %s serves", seed, w.states[n-1].Groups["g"], w.owner("g"))
		}
	}
}

// TestAutoDeafOwner: an owner that can neither say nor hear anything serves nobody, and its log answers all the same. The other one takes over: at once where no message of the log came in time, else after half a minute.
func TestAutoDeafOwner(t *testing.T) {
	late := 0
	for seed := range uint64(8) {
		w := quietWorld(t, seed, 2, 0, Group{Alone: Auto, Stale: true})
		w.judge.auto = true
		a := w.box(w.owner("g"))
		a.step(Deaf{On: true})
		w.run(w.now + 10_000*ms)
		if last := w.judge.last["g"]; last.node == a.name {
			late++
			w.run(w.now + 25_000*ms)
		}
		if last := w.judge.last["g"]; last.node == a.name || w.now-last.at > 100*ms {
			t.Errorf("seed %d: %s served last, %d ms ago, and %s is deaf", seed, last.node, (w.now-last.at)/ms, a.name)
		}
	}
	if late == 0 {
		t.Error("the other one took over at once each time: this tries nothing")
	}
}

// TestAutoSaysWhere: in a split both serve, and hosts send to whoever said last where the group is. When they hear each other again that may be the one that yields, so the one that goes on says it
// again, also where it never heard that the other one served: that one hears it first and is silent by then.
func TestAutoSaysWhere(t *testing.T) {
	for _, first := range []int64{0, 150 * ms} {
		others := 0
		for seed := range uint64(20) {
			w := quietWorld(t, seed, 2, 0, Group{Alone: Auto, Stale: true})
			w.judge.auto = true
			w.link("a", "b", true)
			w.link("b", "a", true)
			w.run(w.now + 1000*ms)
			w.box("a").restart(50 * ms) // it serves alone again, later than b, under the same epoch most often: then its name has it yield
			w.run(w.now + 1500*ms)
			if head := w.judge.heads["g"]; head != "a" {
				t.Fatalf("seed %d: %s was the last to say where the group is, a was to be", seed, head)
			}
			w.link("b", "a", false)
			w.run(w.now + first)
			w.link("a", "b", false)
			w.run(w.now + 500*ms)
			w.judge.reset(w.now)
			w.run(w.now + 500*ms)
			owner, head := w.owner("g"), w.judge.heads["g"]
			w.served(t, seed, owner)
			if owner == "b" {
				others++
			}
			if head != owner {
				t.Errorf("seed %d, b hears a %d ms later than a hears b: %s serves, and hosts send to %s", seed, first/ms, owner, head)
			}
		}
		if others < 5 {
			t.Errorf("in %d of 20 the one that goes on was not the last to say so: nothing was tried", others)
		}
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

// TestTimes holds the arithmetic: with clocks that differ as much as may be, the owner has stopped before a voter may help another.
func TestTimes(t *testing.T) {
	if err := Default.Check(); err != nil {
		t.Fatal(err)
	}
	if s := Default.Slack(); s < 15*time.Millisecond || s > 16*time.Millisecond {
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

// TestOftenStoppedStandbyTakesOver: a standby whose clock shows gaps again and again, because the machine is busy, still claims from a dead owner.
func TestOftenStoppedStandbyTakesOver(t *testing.T) {
	w := quietWorld(t, 5, 2, 1, Group{Alone: Fence})
	for i := range int64(30) {
		w.at(w.now+i*60*ms, func() { w.box("b").pause(25 * ms) })
	}
	w.at(w.now+100*ms, func() { w.box("a").kill() })
	w.run(w.now + 1800*ms)
	if w.owner("g") != "b" {
		t.Errorf("%s is the owner after 1.7 s", w.owner("g"))
	}
	for _, f := range w.judge.faults {
		t.Error(f)
	}
}

// TestForceIsAgreedOnWhereItCanBe: while a majority is heard the log can say who owns the group, and who has a lease from that majority would be met by a node that
// serves without one. So it waits for the log, as long as it takes.
func TestForceIsAgreedOnWhereItCanBe(t *testing.T) {
	at := func(ms int) Time { return Time(1e9).Add(time.Duration(ms) * time.Millisecond) }
	n := New(Config{"b", 5, Default}, at(0))
	n.Step(at(0), Voters{1, []string{"a", "b", "wit"}})
	n.Step(at(0), Groups{{Name: "g", Nodes: []string{"a", "b"}}})
	n.Step(at(0), Agreed{State: State{Groups: map[string]Ownership{"g": {Term: Term{1, "a", 7}, Rev: 1, Alone: Fence}}}})
	proposed, lone := 0, 0
	look := func(list []Action) {
		for _, a := range list {
			switch a := a.(type) {
			case Propose:
				proposed++
			case Lease:
				if a.Until > 0 {
					lone++
				}
			}
		}
	}
	now := 10
	run := func(until int, heard bool) {
		for ; now < until; now += 10 {
			if heard && now%30 == 10 {
				look(n.Step(at(now), Received{"wit", Message{Kind: Beat, Life: 9}}))
			}
			look(n.Step(at(now), Tick{}))
		}
	}
	run(500, true)
	look(n.Step(at(now), Take{"g"}))
	run(5000, true)
	if lone > 0 || proposed < 10 {
		t.Errorf("a majority is heard, and nothing is agreed on: served alone %d times, proposed %d times", lone, proposed)
	}
	run(7000, false)
	if lone == 0 {
		t.Error("no majority is heard: an operator's word does nothing")
	}
}
