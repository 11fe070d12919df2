package failover

import (
	"slices"
	"strings"
	"testing"
	"time"
)

// TestOwnerIsUpgradedAlone: an owner whose pair is away ends in order and comes back: it goes on as one that knows all, at once, also where nobody may take over with less than a whole copy.
func TestOwnerIsUpgradedAlone(t *testing.T) {
	for seed := range uint64(20) {
		for _, alone := range []Alone{"", Keep} {
			w := quietWorld(t, seed, 2, 1, Group{Alone: alone})
			w.box("b").kill()
			w.run(w.now + 1000*ms)
			a := w.box("a")
			a.leave(50*ms, func() {})
			for a.up { // it ends within half a second
				w.run(w.now + ms)
			}
			w.judge.reset(w.now)
			w.run(w.now + 1000*ms)
			w.served(t, seed, "a")
			if k, full := a.m.Knows("g"), a.m.groups["g"].kept.All; k.All != full || !k.Here || k.Last == 0 {
				t.Errorf("seed %d: it knows %+v, left whole: %v", seed, k, full)
			}
			if w.judge.worst["g"] > 50*ms+150*ms+60*ms { // it was away for 50, and a voter that has started, or a lease, is 150 at most
				t.Errorf("seed %d: %d ms of silence", seed, w.judge.worst["g"]/ms)
			}
			w.box("b").start()
			w.run(w.now + 2000*ms)
			w.served(t, seed, "a")
			if in := w.states[len(w.states)-1].Groups["g"].InSync; !slices.Contains(in, "b") {
				t.Errorf("seed %d: %v are in sync", seed, in)
			}
		}
	}
}

// TestWhatIsKeptIsLeftAgain: a node that comes to nothing with what it was left, since nobody can agree to it, leaves it to its next process.
func TestWhatIsKeptIsLeftAgain(t *testing.T) {
	for seed := range uint64(20) {
		w := quietWorld(t, seed, 2, 1, Group{})
		a := w.box("a")
		w.box("b").kill()
		w.run(w.now + 1000*ms)
		w.box("wc").kill()
		w.run(w.now + 10*ms)
		var first Kept
		for i := range 3 {
			a.leave(50*ms, func() {})
			for a.up {
				w.run(w.now + ms)
			}
			switch k := a.kept["g"]; {
			case i == 0:
				first = k
			case k.Term != first.Term || k.All != first.All || k.Term.Epoch == 0:
				t.Fatalf("seed %d: it leaves %+v, and was left %+v", seed, k, first)
			}
			w.run(w.now + 700*ms)
		}
		w.box("wc").start()
		w.run(w.now + 1500*ms)
		w.served(t, seed, "a")
		if k := a.m.Knows("g"); k.All != first.All || k.Last == 0 {
			t.Errorf("seed %d: it knows %+v, and was left %+v", seed, k, first)
		}
	}
}

// TestTwoAloneAndOneIsUpgraded: the same without a witness: nothing can be agreed on, and the owner serves alone with the sessions that it had, as often as it is restarted. Its ports rest, since the other one may have been
// made to serve by force.
func TestTwoAloneAndOneIsUpgraded(t *testing.T) {
	for seed := range uint64(20) {
		w := quietWorld(t, seed, 2, 0, Group{Alone: Keep})
		w.box("b").kill()
		w.run(w.now + 1000*ms)
		a := w.box("a")
		a.leave(50*ms, func() {})
		w.run(w.now + 1500*ms)
		w.served(t, seed, "a")
		for again := range 2 { // what it has is left again
			if k := a.m.Knows("g"); a.m.groups["g"].kept.Group == "" || k.All || !k.Here || k.Last == 0 || !k.Unagreed {
				t.Errorf("seed %d: it knows %+v", seed, k)
			}
			if again == 0 {
				a.leave(50*ms, func() {})
				w.run(w.now + 1500*ms)
				w.served(t, seed, "a")
			}
		}
		w.box("b").start()
		w.run(w.now + 2000*ms)
		w.served(t, seed, "a")
	}
}

// TestLeft: what a node that has ended leaves is of terms that it had to its end. What it handed over, never served, or served without anybody's agreement is not among them.
func TestLeft(t *testing.T) {
	w := quietWorld(t, 1, 2, 1, Group{})
	a, b := w.box("a"), w.box("b")
	if l := a.m.Left(); len(l) != 0 {
		t.Errorf("it has not ended, and leaves %v", l)
	}
	term := w.states[len(w.states)-1].Groups["g"].Term
	b.step(Leave{Now: true})
	if l := b.m.Left(); len(l) != 0 {
		t.Errorf("a standby leaves %v", l)
	}
	b.kill()
	w.run(w.now + 1000*ms)
	for range 2 { // once when it is told, and again as its driver ends
		a.step(Leave{Now: true})
		w.run(w.now + 100*ms)
		if l := a.m.Left(); len(l) != 1 || l["g"].Term != term {
			t.Errorf("its owner leaves %v, want %v", l, term)
		}
	}

	w = quietWorld(t, 2, 2, 1, Group{})
	a = w.box("a")
	a.step(Leave{})
	w.run(w.now + 300*ms)
	a.step(Leave{Now: true})
	w.run(w.now + 50*ms)
	if l := a.m.Left(); len(l) != 0 || w.owner("g") != "b" {
		t.Errorf("who has handed over to %s leaves %v", w.owner("g"), l)
	}

	w = quietWorld(t, 3, 2, 0, Group{Alone: Auto})
	w.judge.auto = true
	w.box("a").kill()
	w.run(w.now + 1000*ms)
	b = w.box("b")
	if b.m.groups["g"].solo == 0 {
		t.Fatal("it does not serve alone")
	}
	b.step(Leave{Now: true})
	w.run(w.now + 50*ms)
	if l := b.m.Left(); len(l) != 0 {
		t.Errorf("who served alone leaves %v", l)
	}
}

// TestForceIsNoKnowledge: who is made to serve without a majority, by an operator who answers for it that nobody else does, has been told nothing of who did before.
func TestForceIsNoKnowledge(t *testing.T) {
	w := quietWorld(t, 4, 2, 1, Group{})
	a := w.box("a")
	w.box("b").kill()
	w.run(w.now + 1000*ms)
	w.box("wc").kill()
	a.leave(50*ms, func() {})
	w.run(w.now + 1000*ms)
	a.step(Take{"g"})
	w.run(w.now + 2000*ms)
	g := a.m.groups["g"]
	if k := a.m.Knows("g"); g.solo == 0 || g.kept.Term != g.at.Term || k.All {
		t.Errorf("it serves alone: %v, and knows %+v", g.solo > 0, k)
	}
	a.step(Leave{Now: true})
	w.run(w.now + 50*ms)
	if l := a.m.Left(); len(l) != 0 {
		t.Errorf("it leaves %+v", l)
	}
}

// TestWhoIsLeftAllGoesFirst: a node that has come back with nothing, and is preferred, leaves the group to the one whose own last life has left it all.
func TestWhoIsLeftAllGoesFirst(t *testing.T) {
	for seed := range uint64(20) {
		w := quietWorld(t, seed, 2, 1, Group{Stale: true})
		a, b := w.box("a"), w.box("b")
		a.kill()
		w.run(w.now + 1000*ms)
		w.served(t, seed, "b")
		w.box("wc").kill() // nothing can be agreed on until both are back
		b.leave(50*ms, func() {})
		w.run(w.now + 1000*ms)
		if b.m.groups["g"].kept.Term.Node != "b" {
			t.Fatalf("seed %d: nothing is left", seed)
		}
		a.start()
		w.run(w.now + 1500*ms)
		w.served(t, seed, "b")
	}
}

// TestWhatIsKeptIsOfOneTerm: what the process before has left counts directly behind the term that it is of, and nowhere else.
func TestWhatIsKeptIsOfOneTerm(t *testing.T) {
	const start = Time(time.Hour)
	me := func(epoch uint64) Term { return Term{epoch, "b", 5} }
	at := func(term Term, rev uint64, alone Alone) Agreed {
		return Agreed{State: State{Groups: map[string]Ownership{"g": {Term: term, Rev: rev, Alone: alone}}}}
	}
	before := Term{3, "b", 4}
	late := at(Term{2, "a", 1}, 5, Fence)
	late.Past = true // it has more
	for _, c := range []struct {
		name  string
		kept  Kept
		steps []Agreed
		whole bool // before the last step
		all   bool
		last  Time
		why   string
	}{
		{"directly behind it", Kept{"g", before, start - 9, true}, []Agreed{at(before, 9, Fence), at(me(4), 10, Fence)}, true, true, start - 9, ""},
		{"of one that serves on alone", Kept{"g", before, start - 9, true}, []Agreed{at(before, 9, Keep), at(me(4), 10, Keep)}, true, true, start - 9, ""},
		{"with ports that rested", Kept{"g", before, start - 9, false}, []Agreed{at(before, 9, Fence), at(me(4), 10, Fence)}, true, false, start - 9, "what rested as an earlier life"},
		{"the log is heard of late", Kept{"g", before, start - 9, true}, []Agreed{late, at(before, 9, Fence), at(me(4), 10, Fence)}, true, true, start - 9, ""},
		{"the log is another one", Kept{"g", before, start - 9, true}, []Agreed{at(Term{2, "a", 1}, 5, Fence), at(before, 9, Fence), at(me(4), 10, Fence)}, false, false, 0, "what an earlier life of this node had is gone"},
		{"nothing", Kept{}, []Agreed{at(before, 9, Fence), at(me(4), 10, Fence)}, false, false, 0, "what an earlier life of this node had is gone"},
		{"of another life", Kept{"g", Term{3, "b", 3}, start - 9, true}, []Agreed{at(before, 9, Fence), at(me(4), 10, Fence)}, false, false, 0, "what an earlier life of this node had is gone"},
		{"of an earlier term", Kept{"g", Term{2, "b", 4}, start - 9, true}, []Agreed{at(before, 9, Fence), at(me(4), 10, Fence)}, false, false, 0, "what an earlier life of this node had is gone"},
		{"another one was owner since", Kept{"g", before, start - 9, true}, []Agreed{at(before, 9, Fence), at(Term{4, "a", 1}, 10, Fence), at(me(5), 11, Fence)}, false, false, 0, "the copy here was never equal"},
		{"another one was owner since, heard of with its own term", Kept{"g", before, start - 9, true}, []Agreed{at(before, 9, Fence), at(me(5), 11, Fence)}, true, false, 0, "of epoch 4"},
		{"something else was agreed on", Kept{"g", before, start - 9, true}, []Agreed{at(before, 9, Fence), at(me(4), 11, Fence)}, true, false, start - 9, "something else was agreed on"},
		{"somebody may have served without agreement", Kept{"g", before, start - 9, true}, []Agreed{at(before, 9, Auto), at(me(4), 10, Auto)}, false, false, 0, "what an earlier life of this node had is gone"},
	} {
		n := New(Config{"b", 5, Default}, start)
		if c.kept.Group != "" {
			n.Step(start, c.kept)
		}
		n.Step(start, Voters{1, []string{"a", "b", "w"}})
		n.Step(start, Groups{{Name: "g", Nodes: []string{"a", "b"}}})
		why, whole := "", false
		for _, s := range c.steps {
			whole = n.whole(n.group("g"), start)
			for _, a := range n.Step(start, s) {
				if w, ok := a.(Tell); ok {
					if _, words, ok := strings.Cut(w.Words, "not known to the last here: "); ok {
						why = words
					}
				}
			}
		}
		if k := n.Knows("g"); k.All != c.all || k.Here != (c.last > 0) || k.Last != c.last || whole != c.whole || !strings.Contains(why, c.why) || (why == "") != (c.why == "") {
			t.Errorf("%s: %+v, whole before: %v, because %q; want all %v, last %d, whole %v, because %q", c.name, k, whole, why, c.all, c.last, c.whole, c.why)
		}
	}
}
