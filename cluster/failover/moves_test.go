package failover

import (
	"fmt"
	"strings"
	"testing"
)

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
		if s := w.judge.worst["g"]; s < 440*ms || s > 720*ms {
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

// TestMoveMeetsAnotherEntry: an operator's move whose entry comes after another one of the same group is refused by the log. It is proposed again, or it is said why not; it is not forgotten.
func TestMoveMeetsAnotherEntry(t *testing.T) {
	for _, c := range []struct {
		name  string
		plant plants
		whole bool
		want  string
	}{{"the copy is whole", plants{}, true, "b"}, {"the copy is not whole any more", plants{}, false, "a"}, {"planted: it is forgotten", plants{moveOnce: true}, true, "a"}} {
		for seed := range uint64(10) {
			w := quietWorld(t, seed, 2, 1, Group{Alone: Fence})
			a := w.box("a")
			a.m.plant, a.tardy = c.plant, 20*ms
			s := w.states[len(w.states)-1]
			was := s.Groups["g"]
			e := Entry{Kind: KindAlone, Group: "g", After: was.Rev, By: was.Term, Alone: Fence} // of the owner, and on its way
			if !c.whole {
				e = Entry{Kind: KindSync, Group: "g", After: was.Rev, By: was.Term, Node: "b"}
				w.sync[[2]string{"a", "b"}] = true
			}
			s, err := s.Apply(e)
			if err != nil {
				t.Fatal(err)
			}
			w.log, w.states, w.newest = append(w.log, e), append(w.states, s), w.now
			said := ""
			w.trace = func(f string, args ...any) { said += fmt.Sprintf(f, args...) + "\n" }
			a.step(Move{"g", "b"})
			w.run(w.now + 700*ms)
			w.served(t, seed, c.want)
			if told := strings.Contains(said, "the copy of b is not whole"); told == c.whole {
				t.Errorf("%s, seed %d: it is said that the copy is not whole: %v\n%s", c.name, seed, told, said)
			}
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
	for _, n := range []string{"a", "b"} {
		w.box(n).step(Condition{"", CausePort, 0})
	}
	w.box("a").step(Condition{"", CauseWorker, 1})
	for range 5 { // a worker that is stuck wherever the group is
		for w.owner("g") == bad {
			w.run(w.now + 20*ms)
			if w.now > 400_000*ms {
				t.Fatal("it does not move any more")
			}
		}
		when = append(when, w.now)
		w.box(bad).step(Condition{"", CauseWorker, 0})
		bad = w.owner("g")
		w.run(w.now + 1500*ms)
		w.box(bad).step(Condition{"", CauseWorker, 1})
	}
	for i := 1; i < len(when); i++ {
		hold := int64(Default.HoldFirst) << (i - 1)
		if d := when[i] - when[i-1]; d < hold*95/105 || d > hold*105/95+2000*ms {
			t.Errorf("move %d came after %d ms, a group stays %d ms then", i+1, d/ms, hold/ms)
		}
	}
}

// TestStays: a group that has moved because of a condition, and would go on for another one, says for how long it stays and how an operator moves it at once; and he does.
func TestStays(t *testing.T) {
	w := quietWorld(t, 7, 2, 1, Group{})
	w.box("a").step(Condition{"", CauseWorker, 1})
	w.run(w.now + 500*ms)
	w.served(t, 7, "b")
	why := func() []string { return w.box("b").m.Status("g", 0, w.box("b").clock()).Why }
	if got := why(); len(got) != 0 && !strings.Contains(strings.Join(got, " "), "against it") {
		t.Errorf("nothing is against b: %q", got)
	}
	w.box("a").step(Condition{"", CauseWorker, 0})
	w.run(w.now + 2000*ms)
	w.box("b").step(Condition{"", CauseWorker, 1})
	w.run(w.now + 1000*ms)
	w.served(t, 7, "b")
	got := strings.Join(why(), " ")
	for _, want := range []string{"conditions against its owner, b: 1; against a there are fewer", "stays for another 6.", "`demarc group move g a`"} {
		if !strings.Contains(got, want) {
			t.Errorf("why: %q, want %q", got, want)
		}
	}
	w.box("b").step(Move{"g", "a"})
	w.run(w.now + 500*ms)
	w.served(t, 7, "a")
}

// TestAGoodNodeIsNotWaitedFor: a group whose owner has lost a port goes to a node that is well at once, however often it has moved because of conditions; never to one that has also lost something, before it
// has stayed for its time, nor for what comes along with its packets.
func TestAGoodNodeIsNotWaitedFor(t *testing.T) {
	for _, c := range []Cause{CausePort, CauseUplink, CausePolicy} {
		w := quietWorld(t, 8, 2, 1, Group{})
		bad := "a"
		for i := range 8 {
			w.box(bad).step(Condition{"", c, 1})
			began := w.now
			for w.owner("g") == bad {
				if w.run(w.now + 20*ms); w.now-began > 500*ms {
					t.Fatalf("%s, move %d: after %d ms it is with a node that has lost something, and the other one is well", c, i+1, (w.now-began)/ms)
				}
			}
			w.run(w.now + 400*ms)
			w.box(bad).step(Condition{"", c, 0})
			bad = w.owner("g")
			w.run(w.now + 1000*ms)
		}
		if w.judge.worst["g"] > 100*ms {
			t.Errorf("%s: %d ms of silence", c, w.judge.worst["g"]/ms)
		}
		// Now less is broken there than here, and something is.
		other := map[string]string{"a": "b", "b": "a"}[bad]
		w.box(other).step(Condition{"", c, 1})
		w.run(w.now + 100*ms)
		w.box(bad).step(Condition{"", c, 2})
		w.run(w.now + 5000*ms)
		w.served(t, 8, bad)
		w.box(other).step(Condition{"", c, 0})
		w.run(w.now + 500*ms)
		w.served(t, 8, other)
		w.box(other).step(Condition{"", CausePanics, 1})
		w.box(bad).step(Condition{"", c, 0})
		w.run(w.now + 5000*ms)
		w.served(t, 8, other)
	}
}

// TestAStuckWorkerIsNotWaitedFor: a group that has moved because of a port goes on at once when a worker of its next owner is stuck, whose copies are out of sync a second later.
func TestAStuckWorkerIsNotWaitedFor(t *testing.T) {
	w := quietWorld(t, 8, 2, 1, Group{})
	w.box("a").step(Condition{"", CausePort, 1})
	w.run(w.now + 500*ms)
	w.served(t, 8, "b")
	w.box("a").step(Condition{"", CausePort, 0})
	w.run(w.now + 3000*ms)
	w.served(t, 8, "b")
	w.box("b").step(Condition{"", CauseWorker, 1})
	w.run(w.now + 500*ms)
	w.served(t, 8, "a")
	if s := w.box("a").m.Status("g", 0, w.box("a").clock()); s.Cause != CauseWorker {
		t.Errorf("it went back because of %q", s.Cause)
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

// TestTheOnlyCopyIsNotWaitedWith: owner and witness are gone in the same moment, for longer than a digest counts. Where a copy is to be waited for, the one that the log has in sync serves when the owner's next life has said that
// it has nothing, and not before: it might come back with all.
func TestTheOnlyCopyIsNotWaitedWith(t *testing.T) {
	for seed := range uint64(20) {
		w := quietWorld(t, seed, 2, 1, Group{})
		w.run(w.now + w.between(0, 500*ms))
		w.box("a").kill()
		w.box("wc").kill()
		w.run(w.now + 5000*ms)
		w.box("wc").start()
		w.run(w.now + 3000*ms)
		if l := w.judge.last["g"]; w.now-l.at < 7000*ms {
			t.Fatalf("seed %d: %s serves though a may have all: %q", seed, l.node, w.box("b").m.Status("g", 0, w.box("b").clock()).Why)
		}
		if why := strings.Join(w.box("b").m.Status("g", 0, w.box("b").clock()).Why, "; "); !strings.Contains(why, "its copy is not whole (of ") || !strings.Contains(why, "`demarc group take g --force`") {
			t.Errorf("seed %d: b does not say what it waits for: %s", seed, why)
		}
		w.box("a").start()
		w.run(w.now + 3000*ms)
		w.served(t, seed, "b")
	}
}

// TestWhyItsOwnerDoesNotServe: it is not always a majority that is missing.
func TestWhyItsOwnerDoesNotServe(t *testing.T) {
	w := quietWorld(t, 14, 2, 1, Group{})
	w.box("b").kill()
	w.run(w.now + 1000*ms)
	w.propose(w.box("a"), Entry{Kind: KindDrain, Node: "a", On: true})
	w.run(w.now + 500*ms)
	w.box("a").kill()
	w.run(w.now + 500*ms)
	w.box("a").start()
	w.run(w.now + 3000*ms)
	if why := w.box("a").m.Status("g", 0, w.box("a").clock()).Why; len(why) == 0 || !strings.Contains(why[0], "the node is drained: it takes it by `demarc node undrain`") {
		t.Errorf("a is drained, and says %q", why)
	}
	w = quietWorld(t, 15, 2, 1, Group{})
	w.box("b").kill()
	w.box("wc").kill()
	w.run(w.now + 1000*ms)
	if why := w.box("a").m.Status("g", 0, w.box("a").clock()).Why; len(why) == 0 || !strings.Contains(why[0], "a majority of the voters does not answer") {
		t.Errorf("a is alone, and says %q", why)
	}
}

// TestNotDrainedToWorse: who is to own nothing hands over to nobody who has more against him, says so, and does it when that is over. Who ends does not serve on, so there worse is better than nobody.
func TestNotDrainedToWorse(t *testing.T) {
	for _, ends := range []bool{false, true} {
		w := quietWorld(t, 13, 2, 1, Group{})
		w.box("b").step(Condition{"", CausePort, 1})
		w.run(w.now + 300*ms)
		if ends {
			w.box("a").step(Leave{})
			w.run(w.now + 1000*ms)
			w.served(t, 13, "b")
			continue
		}
		w.propose(w.box("b"), Entry{Kind: KindDrain, Node: "a", On: true})
		w.run(w.now + 5000*ms)
		w.served(t, 13, "a")
		w.box("b").step(Condition{"", CausePort, 0})
		w.run(w.now + 500*ms)
		w.served(t, 13, "b")
	}
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
	if got := refused("a", Move{"g", "b"}); !strings.Contains(got, "not whole: sessions would be cut") || !strings.Contains(got, "`demarc group take g --force` on b") {
		t.Errorf("a copy that is behind: %q", got)
	}
	w.box("b").kill()
	w.run(w.now + 500*ms)
	if got := refused("a", Move{"g", "b"}); !strings.Contains(got, "nothing is heard") {
		t.Errorf("a node that is gone: %q", got)
	}
	w.served(t, 20, "a")
}

// TestALogThatStandsStill: who takes no entries of the log is handed nothing, and protects nothing; with the witness's nothing could be agreed on. When it goes on all is as before.
func TestALogThatStandsStill(t *testing.T) {
	why := func(w *world) string {
		return strings.Join(w.box("a").m.Status("g", 0, w.box("a").clock()).Why, "; ")
	}
	for _, c := range []struct{ node, want string }{
		{"b", "the log of b takes no entries (its disk refuses them, or it is stopped: `demarc status` there): it could not take over"},
		{"wc", "the log of wc takes no entries (its disk refuses them, or it is stopped: `demarc status` there): without its owner those that are left could agree on nothing"},
	} {
		w := quietWorld(t, 16, 2, 1, Group{})
		if got := why(w); got != "" {
			t.Fatalf("%s: before: %s", c.node, got)
		}
		w.box(c.node).step(Stands{true})
		w.run(w.now + 200*ms)
		if got := why(w); got != c.want {
			t.Errorf("%s: %q, want %q", c.node, got, c.want)
		}
		if c.node == "b" {
			w.box("a").step(Condition{"", CausePort, 1})
			w.box("a").step(Move{"g", "b"})
			w.run(w.now + 2000*ms)
			w.served(t, 16, "a")
			w.box("a").step(Condition{"", CausePort, 0})
		}
		w.box(c.node).step(Stands{false})
		w.run(w.now + 200*ms)
		if got := why(w); got != "" {
			t.Errorf("%s: afterwards: %s", c.node, got)
		}
	}
}

// TestForceWhereNothingCanBeAgreedOn: the owner is dead and the other gateway's log stands still, or the witness's: nobody can be agreed on, and an operator's force is the way in, though a majority is heard of. Not where the witness still
// helps the owner, which this node alone does not hear: there would be two.
func TestForceWhereNothingCanBeAgreedOn(t *testing.T) {
	for _, node := range []string{"b", "wc"} {
		for _, lives := range []bool{false, true} {
			w := quietWorld(t, 17, 2, 1, Group{Stale: true})
			b := w.box("b")
			w.box(node).step(Stands{true})
			w.stall = 1 << 62
			want := "b"
			if lives {
				want = "a"
				for _, pair := range [][2]string{{"a", "b"}, {"b", "a"}} {
					w.paths[pair].cut = true
				}
			} else {
				w.box("a").kill()
			}
			w.run(w.now + 3000*ms)
			if l := w.judge.last["g"]; l.node != "a" {
				t.Fatalf("%s stands: %s serves", node, l.node)
			}
			if !lives {
				w.judge.forced["g"] = w.now
			}
			b.step(Take{"g"})
			w.run(w.now + 3000*ms)
			w.served(t, 17, want)
		}
	}
}
