package failover

import (
	"testing"
	"time"
)

// TestReleasedOwnerIsNotWaitedFor: whose term was released, most likely because its process has died, counts as heard of for a hundred milliseconds more, and may come first in the
// list. It is not waited for. A next life of it is.
func TestReleasedOwnerIsNotWaitedFor(t *testing.T) {
	for _, c := range []struct {
		name  string
		life  uint64 // that was heard last
		claim time.Duration
	}{{"it is dead", 5, 5 * time.Millisecond}, {"it has started again", 6, 2 * Default.Lease}} {
		now := Time(1e9)
		n := New(Config{"b", 9, Default}, now)
		term := Term{1, "a", 5}
		var claimed Time
		step := func(e Event) {
			for _, a := range n.Step(now, e) {
				if p, ok := a.(Propose); ok && p.Kind == KindClaim && claimed == 0 {
					claimed = now
					if p.Why != RightReleased || p.Term != (Term{2, "b", 9}) {
						t.Errorf("%s: it claims by %+v", c.name, p.Entry)
					}
				}
			}
		}
		beat := func(life uint64, serving bool) {
			step(Received{"a", Message{Kind: Beat, Life: life, Views: []View{{Group: "g", Epoch: 1, Serving: serving}}}})
		}
		step(Voters{1, []string{"a", "b", "w"}})
		step(Groups{{Name: "g", Nodes: []string{"a", "b"}, Stale: true}})
		step(Agreed{State: State{Groups: map[string]Ownership{"g": {Term: term, Rev: 1, Alone: Fence}}}})
		for range 200 {
			now = now.Add(5 * time.Millisecond)
			beat(5, true)
		}
		if claimed != 0 {
			t.Fatalf("%s: it claims from an owner that lives", c.name)
		}
		beat(c.life, c.life == 5)
		step(Received{"a", Message{Kind: Release, Life: 5, Group: "g", Term: term}})
		released := now
		for range 200 {
			now = now.Add(5 * time.Millisecond)
			if c.life != 5 {
				beat(c.life, false)
			}
			step(Tick{})
		}
		if took := claimed.Sub(released); claimed == 0 || took > c.claim+20*time.Millisecond || took < c.claim-5*time.Millisecond {
			t.Errorf("%s: it claims after %s, want %s", c.name, took, c.claim)
		}
	}
}

// TestTerms: what a parent process is to release is what this life of the node has by agreement, and nothing that another one or an earlier life has, or that was given up.
func TestTerms(t *testing.T) {
	now := Time(1e9)
	n := New(Config{"a", 5, Default}, now)
	n.Step(now, Voters{1, []string{"a", "b", "w"}})
	n.Step(now, Groups{{Name: "g", Nodes: []string{"a", "b"}}, {Name: "h", Nodes: []string{"a", "b"}}, {Name: "i", Nodes: []string{"a", "b"}}})
	n.Step(now, Agreed{State: State{Groups: map[string]Ownership{"g": {Term: Term{3, "a", 5}, Rev: 1, Alone: Fence}, "h": {Term: Term{4, "b", 8}, Rev: 1, Alone: Fence}, "i": {Term: Term{5, "a", 4}, Rev: 1, Alone: Fence}}}})
	if all := n.Terms(); len(all) != 1 || all["g"] != (Term{3, "a", 5}) { // it has no lease yet
		t.Errorf("%v", all)
	}
	n.Step(now, Leave{Now: true})
	n.Step(now.Add(5*time.Millisecond), Tick{})
	if all := n.Terms(); len(all) != 0 {
		t.Errorf("after it has given all up: %v", all)
	}
}
