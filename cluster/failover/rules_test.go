package failover

import (
	"encoding/json"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// TestApply: what the log takes, and what it refuses with which words.
func TestApply(t *testing.T) {
	owner := Term{3, "a", 10}
	base := State{Groups: map[string]Ownership{"g": {Term: owner, Rev: 7, Alone: Fence, InSync: []string{"b"}}}}
	kept := State{Groups: map[string]Ownership{"g": {Term: owner, Rev: 7, Alone: Keep, InSync: []string{"b"}}}}
	drained := State{Groups: base.Groups, Drained: []string{"b"}}
	claim := func(node string, right Right, change ...func(*Entry)) Entry {
		e := Entry{Kind: KindClaim, Group: "g", After: 7, By: Term{0, node, 20}, Term: Term{4, node, 20}, Alone: Fence, Cause: CauseLease, Why: right}
		for _, c := range change {
			c(&e)
		}
		return e
	}
	for _, c := range []struct {
		name string
		s    State
		e    Entry
		want string // part of the refusal; "" = taken
	}{
		{"in sync, the lease ran out", base, claim("b", RightExpired), ""},
		{"not in sync", base, claim("c", RightExpired), "not in sync"},
		{"not in sync, and says so", base, claim("c", RightExpired, func(e *Entry) { e.Stale = true }), ""},
		{"somebody was first", base, claim("b", RightExpired, func(e *Entry) { e.After = 6 }), "look again"},
		{"an epoch that was", base, claim("b", RightExpired, func(e *Entry) { e.Term.Epoch = 3 }), "not above"},
		{"the owner serves on", kept, claim("b", RightExpired), "or by force"},
		{"the owner has stopped", kept, claim("b", RightReleased), ""},
		{"force", kept, claim("c", RightForce), ""},
		{"force on a drained one", drained, claim("b", RightForce), ""},
		{"drained", drained, claim("b", RightExpired), "drained"},
		{"no right", base, claim("b", ""), "gives no right"},
		{"handed over by the owner", kept, claim("b", RightOwner, func(e *Entry) { e.By = owner }), ""},
		{"handed over by somebody else", base, claim("b", RightOwner), "only the owner"},
		{"handed over by an earlier life", base, claim("b", RightOwner, func(e *Entry) { e.By = Term{3, "a", 9} }), "only the owner"},
		{"handed over to one that is not in sync", base, claim("c", RightOwner, func(e *Entry) { e.By = owner }), "not in sync"},
		{"the same node again", kept, claim("a", RightExpired, func(e *Entry) { e.Stale = true }), ""},
		{"says not what it does alone", base, claim("b", RightExpired, func(e *Entry) { e.Alone = "" }), "alone"},
		{"a first owner", State{}, claim("c", RightExpired, func(e *Entry) { e.After = 0 }), ""},
		{"in sync, by the owner", base, Entry{Kind: KindSync, Group: "g", After: 7, By: owner, Node: "c", On: true}, ""},
		{"in sync, by another", base, Entry{Kind: KindSync, Group: "g", After: 7, By: Term{3, "a", 9}, Node: "c", On: true}, "only the owner"},
		{"in sync with itself", base, Entry{Kind: KindSync, Group: "g", After: 7, By: owner, Node: "a", On: true}, "not the owner's"},
		{"alone, by another", base, Entry{Kind: KindAlone, Group: "g", After: 7, By: Term{3, "b", 1}, Alone: Keep}, "only the owner"},
		{"alone, unheard", base, Entry{Kind: KindAlone, Group: "g", After: 7, By: owner, Alone: "pray"}, "fence, keep or auto"},
		{"drain nobody", base, Entry{Kind: KindDrain, On: true}, "has a name"},
		{"no group", base, Entry{Kind: KindSync}, "has a name"},
		{"no kind", base, Entry{Kind: "sing", Group: "g", After: 7}, "no kind"},
	} {
		before, _ := json.Marshal(c.s)
		got, err := c.s.Apply(c.e)
		if after, _ := json.Marshal(c.s); string(after) != string(before) {
			t.Errorf("%s: the state that was is changed", c.name)
		}
		switch {
		case c.want == "" && err != nil:
			t.Errorf("%s: refused: %v", c.name, err)
		case c.want == "" && got.Groups["g"].Rev != c.s.Groups["g"].Rev+1:
			t.Errorf("%s: is not counted: %+v", c.name, got)
		case c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)):
			t.Errorf("%s: %v, want %q", c.name, err, c.want)
		case c.want != "":
			if d := cmp.Diff(c.s, got); d != "" {
				t.Errorf("%s: refused, and yet: %s", c.name, d)
			}
		}
	}
	s, _ := base.Apply(claim("b", RightOwner, func(e *Entry) { e.By = owner }))
	if want := (Ownership{Term: Term{4, "b", 20}, Rev: 8, Alone: Fence, InSync: []string{"a"}, Cause: CauseLease, From: "a"}); !cmp.Equal(s.Groups["g"], want) {
		t.Errorf("after a move: %+v, want %+v", s.Groups["g"], want)
	}
}

// TestApplyRandom: whatever entries come, epochs only go up, and a refusal changes nothing.
func TestApplyRandom(t *testing.T) {
	dice := rand.New(rand.NewPCG(3, 4))
	pick := func(s ...string) string { return s[dice.IntN(len(s))] }
	s, taken := State{}, 0
	for range 20_000 {
		e := Entry{Kind: Kind(pick("claim", "sync", "alone", "drain", "")), Group: pick("g", "h", ""), Node: pick("a", "b", ""), On: dice.IntN(2) == 0,
			By: Term{uint64(dice.IntN(4)), pick("a", "b"), uint64(dice.IntN(2))}, Term: Term{s.Groups["g"].Epoch + uint64(dice.IntN(3)), pick("a", "b", ""), uint64(dice.IntN(2))},
			Alone: Alone(pick("fence", "keep", "auto", "")), Why: Right(pick("owner", "expired", "released", "solo", "force", "")), Stale: dice.IntN(2) == 0}
		e.After = s.Groups[e.Group].Rev - uint64(dice.IntN(2))
		if dice.IntN(2) == 0 {
			e.By = s.Groups[e.Group].Term
		}
		n, err := s.Apply(e)
		for name, g := range s.Groups {
			o := n.Groups[name]
			if o.Epoch < g.Epoch || o.Rev < g.Rev || err != nil && o.Rev != g.Rev || o.Rev == g.Rev && o.Term != g.Term || o.Epoch == g.Epoch && o.Term != g.Term {
				t.Fatalf("%+v after %+v is %+v (%v)", g, e, o, err)
			}
		}
		if err == nil {
			taken++
		}
		s = n
	}
	if taken < 1000 {
		t.Errorf("only %d of 20000 entries were taken: nothing was tried", taken)
	}
}

// TestVoter: one promise at a time, for the term that is agreed on, and for voters that are the newest.
func TestVoter(t *testing.T) {
	term := func(epoch uint64, node string) Term { return Term{epoch, node, 5} }
	agreed := func(rev uint64, x Term) Agreed {
		return Agreed{State: State{Groups: map[string]Ownership{"g": {Term: x, Rev: rev, Alone: Fence}}}}
	}
	at := func(ms int) Time { return Time(1e9).Add(time.Duration(ms) * time.Millisecond) }
	var n *Node
	ask := func(now Time, from string, x Term, voters uint64) bool {
		for _, a := range n.Step(now, Received{from, Message{Kind: Renew, Group: "g", Term: x, Seq: 1, Voters: voters}}) {
			if s, ok := a.(Send); ok && s.Kind == Promise {
				return s.Yes
			}
		}
		t.Fatal("no answer")
		return false
	}
	begin := func() {
		n = New(Config{"w", 9, Default}, at(0))
		n.Step(at(0), Voters{4, []string{"a", "b", "w"}})
		n.Step(at(0), agreed(1, term(1, "a")))
	}
	begin()
	for _, c := range []struct {
		name   string
		at     int
		from   string
		term   Term
		voters uint64
		before func(now Time)
		want   bool
	}{
		{"just started", 149, "a", term(1, "a"), 4, nil, false},
		{"a lease after the start", 151, "a", term(1, "a"), 4, nil, true},
		{"another life", 152, "a", Term{1, "a", 6}, 4, nil, false},
		{"somebody else's term", 153, "b", term(1, "a"), 4, nil, false},
		{"not agreed on yet", 154, "b", term(2, "b"), 4, nil, false},
		{"older voters", 155, "a", term(1, "a"), 3, nil, false},
		{"newer voters than here", 156, "a", term(1, "a"), 5, nil, true},
		{"the last promise lasts", 200, "b", term(2, "b"), 4, func(now Time) { n.Step(now, agreed(2, term(2, "b"))) }, false},
		{"the term before", 201, "a", term(1, "a"), 4, nil, false},
		{"until the very end", 156 + 149, "b", term(2, "b"), 4, nil, false},
		{"it has run out", 156 + 150, "b", term(2, "b"), 4, nil, true},
		{"released", 310, "a", term(3, "a"), 4, func(now Time) {
			n.Step(now, agreed(3, term(3, "a")))
			n.Step(now, Received{"b", Message{Kind: Release, Group: "g", Term: term(2, "b")}})
		}, true},
		{"released by somebody else", 320, "b", term(4, "b"), 4, func(now Time) {
			n.Step(now, agreed(4, term(4, "b")))
			n.Step(now, Received{"b", Message{Kind: Release, Group: "g", Term: term(3, "a")}})
		}, false},
		{"an older release again", 330, "b", term(4, "b"), 4, func(now Time) {
			n.Step(now, Received{"b", Message{Kind: Release, Group: "g", Term: term(2, "b")}})
		}, false},
		{"a question that was on its way", 500, "b", term(4, "b"), 4, func(now Time) {
			n.Step(now, Received{"a", Message{Kind: Release, Group: "g", Term: term(3, "a")}})
			n.Step(now, Received{"b", Message{Kind: Release, Group: "g", Term: term(4, "b")}})
		}, false},
	} {
		if c.before != nil {
			c.before(at(c.at))
		}
		if got := ask(at(c.at), c.from, c.term, c.voters); got != c.want {
			t.Errorf("%s: promised %v", c.name, got)
		}
	}
	// A term that has just begun has two leases' time to get its first promise before anybody may take the group from it.
	begin()
	n.Step(at(160), agreed(2, term(2, "b")))
	for _, c := range []struct {
		at   int
		want bool
	}{{170, false}, {399, false}, {401, true}} {
		for _, a := range n.Step(at(c.at), Received{"a", Message{Kind: Ask, Group: "g", Term: term(2, "b"), Seq: 1}}) {
			if s, ok := a.(Send); ok && s.Kind == Free && s.Yes != c.want {
				t.Errorf("%d ms: free %v", c.at, s.Yes)
			}
		}
	}
	// A promise lasts for as long as who asks relies on it, and none lasts longer than a voter that has started waits. No question makes one shorter.
	begin()
	long := func(ms int, lease time.Duration) (yes bool) {
		for _, a := range n.Step(at(ms), Received{"a", Message{Kind: Renew, Group: "g", Term: term(1, "a"), Seq: 1, Voters: 4, Lease: lease}}) {
			if s, ok := a.(Send); ok && s.Kind == Promise {
				yes = s.Yes
			}
		}
		return yes
	}
	for _, c := range []struct {
		at    int
		lease time.Duration
		yes   bool
		until int
	}{{200, 120 * time.Millisecond, true, 320}, {210, 100 * time.Millisecond, true, 320}, {220, 120 * time.Millisecond, true, 340}, {230, 0, true, 380}, {240, Earlier + 1, false, 380}, {240, -1, false, 380}} {
		if yes := long(c.at, c.lease); yes != c.yes || n.groups["g"].promise.until != at(c.until) {
			t.Errorf("asked at %d ms for %s: promised %v, until %d; want %v, until %d", c.at, c.lease, yes, n.groups["g"].promise.until.Sub(at(0)).Milliseconds(), c.yes, c.until)
		}
	}
	begin() // a clock that jumps ahead, or a node that slept, makes no difference to what was promised
	if !ask(at(160), "a", term(1, "a"), 4) {
		t.Fatal("not promised")
	}
	n.Step(at(160), agreed(2, term(2, "b")))
	if ask(at(100), "b", term(2, "b"), 4) || !ask(at(5000), "b", term(2, "b"), 4) {
		t.Error("a clock that goes back frees a promise, or one that went on does not")
	}
}

// TestOwnerCounts: a lease is a majority of the newest voters, from when each was asked; a gap in the clock's readings does not make it longer; and
// where voters have changed a first lease waits until those of before have certainly run out.
func TestOwnerCounts(t *testing.T) {
	at := func(ms int) Time { return Time(1e9).Add(time.Duration(ms) * time.Millisecond) }
	n := New(Config{"a", 5, Default}, at(0))
	var seq uint64
	var until Time
	var sent Time
	step := func(ms int, e Event) {
		for now := n.last.Add(10 * time.Millisecond); now < at(ms); now = now.Add(10 * time.Millisecond) {
			for _, a := range n.Step(now, Tick{}) {
				if s, ok := a.(Send); ok && s.Kind == Renew {
					seq, sent = s.Seq, now
				}
			}
		}
		for _, a := range n.Step(at(ms), e) {
			switch a := a.(type) {
			case Lease:
				until = a.Until
			case Send:
				if a.Kind == Renew {
					seq, sent = a.Seq, at(ms)
				}
			}
		}
	}
	yes := func(from string) Received {
		return Received{from, Message{Kind: Promise, Group: "g", Term: Term{1, "a", 5}, Seq: seq, Yes: true}}
	}
	step(0, Voters{1, []string{"a", "b", "c", "d", "e"}})
	step(0, Groups{{Name: "g", Nodes: []string{"a", "b"}}})
	step(0, Agreed{State: State{Groups: map[string]Ownership{"g": {Term: Term{1, "a", 5}, Rev: 1, Alone: Fence}}}})
	step(200, Tick{})
	asked := sent
	step(201, yes("b"))
	step(202, yes("b")) // twice the same
	step(203, yes("x")) // no voter
	if until != 0 {
		t.Fatal("two of five are a majority")
	}
	step(204, yes("c"))
	if want := asked.Add(Default.Use()); until != want {
		t.Errorf("until %d, want %d: the lease counts from the question", until, want)
	}
	old, had := seq, until
	n.Step(at(230), Tick{}) // 26 ms without a reading
	if !n.groups["g"].serving || until != had {
		t.Error("a short gap ends a lease that has not run out, or makes it longer")
	}
	list := n.groups["g"].sent
	seq = old
	step(231, yes("b"))
	step(232, yes("c"))
	if until != had {
		t.Error("answers from before the gap count")
	}
	seq = list[len(list)-1].seq // it asked at once
	step(241, yes("b"))
	step(242, yes("c"))
	if until <= had {
		t.Error("answers from behind the gap do not count")
	}
	had = until
	n.Step(had, Tick{})
	if n.groups["g"].serving {
		t.Error("a lease outlives its promises by a long gap")
	}
	step(355, yes("b"))
	step(356, yes("c"))
	if n.groups["g"].serving {
		t.Error("answers from before a long gap count")
	}
	step(360, Tick{})
	step(361, yes("b"))
	step(362, yes("c"))
	if !n.groups["g"].serving {
		t.Error("it does not serve again after the gap")
	}
	n.Step(n.last.Add(Default.Guard), Tick{})
	for n.last < until.Add(-2*time.Millisecond) { // nobody answers, and short gaps follow
		n.Step(n.last.Add(min(Default.Guard*3/2, until.Sub(n.last)-time.Millisecond)), Tick{})
		if !n.groups["g"].serving {
			t.Fatal("a short gap ends a lease that has not run out")
		}
	}
	if n.Step(n.last.Add(Default.Guard*3/2), Tick{}); n.groups["g"].serving {
		t.Error("a lease outlives its promises by a short gap")
	}
	step(500, Tick{})
	step(501, yes("b"))
	step(502, yes("c"))
	step(520, Voters{2, []string{"a", "f", "g"}}) // those that promised have no vote any more
	if n.groups["g"].serving {
		t.Error("promises of those who do not vote count")
	}
	step(540, yes("f"))
	if n.groups["g"].serving {
		t.Error("a first lease from other voters counts at once: somebody may have one from those before")
	}
	step(660, Tick{})
	step(661, yes("f"))
	step(680, yes("f"))
	if !n.groups["g"].serving {
		t.Error("it does not count later either")
	}
}

// TestListensFirst: an owner that serves on without a majority does so without a hole, but after a gap in its clock's readings it listens for one lease:
// who has taken over meanwhile is heard then.
func TestListensFirst(t *testing.T) {
	now := Time(1e9)
	n := New(Config{"a", 5, Default}, now)
	term := Term{1, "a", 5}
	serving := func() bool { return n.groups["g"].serving }
	tick := func(d, step time.Duration) {
		for end := now.Add(d); now < end; {
			now = now.Add(step)
			n.Step(now, Tick{})
		}
	}
	n.Step(now, Voters{1, []string{"a", "b"}})
	n.Step(now, Groups{{Name: "g", Nodes: []string{"a", "b"}}})
	n.Step(now, Agreed{State: State{Groups: map[string]Ownership{"g": {Term: term, Rev: 1, Alone: Keep}}}})
	tick(400*time.Millisecond, 5*time.Millisecond)
	if serving() {
		t.Fatal("it serves before it had any lease: who had the term before may still serve")
	}
	n.Step(now, Received{"b", Message{Kind: Promise, Group: "g", Term: term, Seq: n.groups["g"].sent[len(n.groups["g"].sent)-1].seq, Yes: true}})
	for range 100 {
		if tick(5*time.Millisecond, 5*time.Millisecond); !serving() {
			t.Fatal("it stops though it is to serve on alone")
		}
	}
	tick(50*time.Millisecond, 50*time.Millisecond)
	for d := 5 * time.Millisecond; d < Default.Lease; d += 5 * time.Millisecond {
		if serving() {
			t.Fatalf("it serves %s after a gap", d)
		}
		tick(5*time.Millisecond, 5*time.Millisecond)
	}
	tick(10*time.Millisecond, 5*time.Millisecond)
	if !serving() {
		t.Error("it does not serve again")
	}
}

// TestStandbyHolds: what keeps a standby from claiming, though the owner's term was released.
func TestStandbyHolds(t *testing.T) {
	start := Time(1e9)
	owner := Term{3, "a", 7}
	for _, c := range []struct {
		name   string
		inSync []string
		marked uint64
		age    time.Duration
		serves uint64 // another one says that it serves under this epoch
		want   bool
	}{
		{"in sync", []string{"b"}, 3, time.Second, 0, true},
		{"the log does not say so", nil, 3, time.Second, 0, false},
		{"the last digest is old", []string{"b"}, 3, 2100 * time.Millisecond, 0, false},
		{"the digest was another owner's", []string{"b"}, 2, time.Second, 0, false},
		{"no digest at all", []string{"b"}, 0, time.Second, 0, false},
		{"somebody serves already", []string{"b"}, 3, time.Second, 4, false},
	} {
		n := New(Config{"b", 5, Default}, start)
		n.Step(start, Voters{1, []string{"a", "b", "w"}})
		n.Step(start, Groups{{Name: "g", Nodes: []string{"a", "b", "c"}}})
		n.Step(start, Agreed{State: State{Groups: map[string]Ownership{"g": {Term: owner, Rev: 9, Alone: Fence, InSync: c.inSync}}}})
		if c.marked > 0 {
			n.Step(start, Marked{"g", c.marked})
		}
		now := start
		for now < start.Add(c.age) {
			now = now.Add(5 * time.Millisecond)
			n.Step(now, Received{"a", Message{Kind: Beat, Life: 7, Views: []View{{Group: "g", Epoch: 3, Serving: true}}}})
		}
		if c.serves > 0 {
			n.Step(now, Received{"c", Message{Kind: Beat, Life: 8, Views: []View{{Group: "g", Epoch: c.serves, Serving: true}}}})
		}
		got := false
		for _, a := range n.Step(now, Received{"a", Message{Kind: Release, Group: "g", Term: owner}}) {
			if p, ok := a.(Propose); ok && p.Kind == KindClaim {
				got = true
			}
		}
		if got != c.want {
			t.Errorf("%s: it claims: %v", c.name, got)
		}
	}
}

// TestPanicsAreRemembered: by the log over a restart, and as long as they last.
func TestPanicsAreRemembered(t *testing.T) {
	now := Time(1e9)
	may := func(n *Node) bool {
		n.Step(now, Condition{"g", CausePanics, 1})
		return n.groups["g"].mayPanic
	}
	begin := func(panicked uint64) *Node {
		n := New(Config{"a", 5, Default}, now)
		n.Step(now, Voters{1, []string{"a"}})
		n.Step(now, Groups{{Name: "g", Nodes: []string{"a", "b"}}})
		n.Step(now, Agreed{State: State{Groups: map[string]Ownership{"g": {Term: Term{3, "a", 5}, Rev: 9, Alone: Fence, Panicked: panicked}}}})
		return n
	}
	if !may(begin(0)) {
		t.Error("the first panics of all may not move the group")
	}
	n := begin(2)
	if may(n) {
		t.Error("after a restart it is forgotten that panics have moved the group")
	}
	for end := now.Add(Default.PanicRest + time.Minute); now < end; {
		now = now.Add(10 * time.Millisecond)
		n.Step(now, Tick{})
	}
	n.Step(now, Condition{"g", CausePanics, 0})
	if may(n) {
		t.Error("panics that have lasted for long count as long past")
	}
}

// TestStatus says why a group is not protected, in words.
func TestStatus(t *testing.T) {
	w := quietWorld(t, 30, 2, 1, Group{})
	status := func(node string) (Status, string) {
		s := w.box(node).m.Status("g", 4*time.Millisecond, w.box(node).clock())
		return s, strings.Join(s.Why, "; ")
	}
	for _, node := range []string{"a", "b", "wc"} {
		s, why := status(node)
		if why != "" || s.Gap < 124*time.Millisecond || s.Gap > 140*time.Millisecond || s.Serving != (node == "a") || s.Node != "a" {
			t.Errorf("%s: %+v", node, s)
		}
		if (s.Left > 0) != (node == "a") || s.Left > Default.Use() {
			t.Errorf("%s has %s left", node, s.Left)
		}
	}
	for _, c := range []struct {
		do   func()
		want string
	}{
		{func() { w.box("b").step(Condition{"", CausePort, 2}) }, "b has 2 conditions against it"},
		{func() { w.sync[[2]string{"a", "b"}] = true }, "the copy of b is not in sync"},
		{func() { w.box("b").kill() }, "nothing is heard of b"},
		{func() { w.propose(w.box("a"), Entry{Kind: KindDrain, Node: "b", On: true}) }, "b is drained"},
		{func() { w.box("wc").kill() }, "served without a majority"},
	} {
		c.do()
		w.run(w.now + 2500*ms)
		if s, why := status("a"); !strings.Contains(why, c.want) || s.Gap != 0 {
			t.Errorf("%q, gap %s; want %q", why, s.Gap, c.want)
		}
	}
	if s, why := status("wc"); s.Serving || why == "" {
		t.Errorf("the witness that is gone: %+v", s)
	}
}

// TestGroupCheck: what is wrong is said, with what would be right.
func TestGroupCheck(t *testing.T) {
	for want, g := range map[string]Group{
		"":                    {Name: "g", Nodes: []string{"a", "b"}, Alone: Auto},
		"has a name":          {Nodes: []string{"a"}},
		"names no node":       {Name: "g"},
		"fence, keep or auto": {Name: "g", Nodes: []string{"a"}, Alone: "both"},
		"twice":               {Name: "g", Nodes: []string{"a", "b", "a"}},
	} {
		if err := g.Check(); (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%+v: %v, want %q", g, err, want)
		}
	}
}

// TestANewVoterTakesNothing: the owner has served by its own promise alone, and gets voters: none of these was asked for a promise yet, and one that is new does not let another node have
// the group before the owner has had time to ask.
func TestANewVoterTakesNothing(t *testing.T) {
	for _, planted := range []bool{false, true} {
		at := func(ms int) Time { return Time(1e9).Add(time.Duration(ms) * time.Millisecond) }
		owner := Term{1, "a", 7}
		n := New(Config{"b", 5, Default}, at(0))
		n.plant.newFree = planted
		n.Step(at(0), Voters{1, []string{"a"}})
		n.Step(at(0), Groups{{Name: "g", Nodes: []string{"a", "b"}}})
		n.Step(at(0), Agreed{State: State{Groups: map[string]Ownership{"g": {Term: owner, Rev: 1, Alone: Fence, InSync: []string{"b"}}}}})
		claims := 0
		for ms := 5; ms <= 900; ms += 5 {
			if ms == 600 {
				n.Step(at(ms), Voters{2, []string{"a", "b", "w"}})
			}
			var list []Action
			if ms > 600 && ms%30 == 0 { // its beats are lost, its questions are not: those come when it has heard of the voters too
				list = append(list, n.Step(at(ms), Received{"a", Message{Kind: Renew, Life: 7, Group: "g", Term: owner, Seq: uint64(ms), Voters: 2}})...)
			}
			list = append(list, n.Step(at(ms), Marked{"g", 1})...)
			for _, a := range list {
				switch a := a.(type) {
				case Send:
					if a.To == "w" && a.Kind == Ask && ms > 600 && ms < 630 { // as new as this one
						free, _ := n.helps(n.groups["g"], owner, at(ms))
						list = append(list, n.Step(at(ms), Received{"w", Message{Kind: Free, Life: 9, Group: "g", Term: owner, Seq: a.Seq, Yes: free}})...)
					}
				}
			}
			for _, a := range list {
				if p, ok := a.(Propose); ok && p.Kind == KindClaim {
					claims++
				}
			}
		}
		if (claims > 0) != planted {
			t.Errorf("planted %v: %d claims", planted, claims)
		}
	}
}

// TestWhoKnowsAll: what was used by owners before is known only to whom the log has said to be in sync in the very state that its term began on, in the life that had a digest of that owner's a moment ago; or where
// nobody was owner before. Everything else is not enough, a hand-over among it whose heir has not been heard of yet.
func TestWhoKnowsAll(t *testing.T) {
	const start = Time(time.Hour)
	owner, me := Term{3, "a", 7}, func(epoch uint64) Term { return Term{epoch, "b", 5} }
	first := func(o Ownership) Agreed { return Agreed{State: State{Groups: map[string]Ownership{"g": o}}} }
	insync := Ownership{Term: owner, Rev: 9, Alone: Fence, InSync: []string{"b"}}
	keeps := insync
	keeps.Alone = Keep
	mine := Ownership{Term: me(4), Rev: 10, Alone: Fence}
	serves := func(life, epoch uint64) Received {
		return Received{"a", Message{Kind: Beat, Life: life, Views: []View{{Group: "g", Epoch: epoch, Serving: true}}}}
	}
	type step struct {
		after time.Duration
		e     Event
	}
	for _, c := range []struct {
		name  string
		steps []step
		all   bool
	}{
		{"in sync", []step{{0, first(insync)}, {0, Marked{"g", 3}}, {time.Second, first(mine)}}, true},
		{"nobody was before", []step{{0, first(Ownership{Term: me(1), Rev: 1, Alone: Fence})}}, true},
		{"an earlier life of it was", []step{{0, first(Ownership{Term: Term{1, "b", 4}, Rev: 1, Alone: Fence})}, {0, first(Ownership{Term: me(2), Rev: 2, Alone: Fence})}}, false},
		{"the log does not say so", []step{{0, first(Ownership{Term: owner, Rev: 9, Alone: Fence})}, {0, Marked{"g", 3}}, {time.Second, first(mine)}}, false},
		{"the log said so, and something else since", []step{{0, first(insync)}, {0, Marked{"g", 3}}, {time.Second, first(Ownership{Term: me(4), Rev: 11, Alone: Fence})}}, false},
		{"another term was in between", []step{{0, first(insync)}, {0, Marked{"g", 3}}, {time.Second, first(Ownership{Term: me(5), Rev: 10, Alone: Fence})}}, false},
		{"no digest in this life", []step{{0, first(insync)}, {time.Second, first(mine)}}, false},
		{"an old digest", []step{{0, first(insync)}, {0, Marked{"g", 3}}, {2100 * time.Millisecond, first(mine)}}, false},
		{"an old digest, and the owner was heard of", []step{{0, first(insync)}, {0, Marked{"g", 3}}, {1500 * time.Millisecond, serves(7, 3)}, {1900 * time.Millisecond, first(mine)}}, true},
		{"an old digest, and the owner was heard of long ago", []step{{0, first(insync)}, {0, Marked{"g", 3}}, {1500 * time.Millisecond, serves(7, 3)}, {2100 * time.Millisecond, first(mine)}}, false},
		{"an old digest, and another life of the owner was heard of", []step{{0, first(insync)}, {0, Marked{"g", 3}}, {1500 * time.Millisecond, serves(8, 3)}, {1900 * time.Millisecond, first(mine)}}, false},
		{"an old digest, and the owner was heard of under another term", []step{{0, first(insync)}, {0, Marked{"g", 3}}, {1500 * time.Millisecond, serves(7, 4)}, {1900 * time.Millisecond, first(mine)}}, false},
		{"a digest that no owner waits for any more", []step{{0, first(insync)}, {0, Marked{"g", 3}}, {7500 * time.Millisecond, serves(7, 3)}, {time.Second, first(mine)}}, false},
		{"an old digest of one that serves on alone, heard of", []step{{0, first(keeps)}, {0, Marked{"g", 3}}, {1500 * time.Millisecond, serves(7, 3)}, {1900 * time.Millisecond, first(mine)}}, false},
		{"heard of, and no digest in this life", []step{{0, first(insync)}, {1500 * time.Millisecond, serves(7, 3)}, {time.Second, first(mine)}}, false},
		{"a digest of the owner before that", []step{{0, first(insync)}, {0, Marked{"g", 2}}, {time.Second, first(mine)}}, false},
		{"again, nobody in between", []step{{0, first(insync)}, {0, Marked{"g", 3}}, {0, first(mine)}, {time.Minute, first(Ownership{Term: me(5), Rev: 11, Alone: Fence})}}, true},
		{"handed over, and back before the heir was heard of", []step{{0, first(insync)}, {0, Marked{"g", 3}}, {0, first(mine)}, {time.Second, first(Ownership{Term: Term{5, "a", 7}, Rev: 11, Alone: Fence, From: "b", InSync: []string{"b"}})},
			{100 * time.Millisecond, first(Ownership{Term: me(6), Rev: 12, Alone: Fence})}}, false},
		{"handed over, and back behind its digest", []step{{0, first(insync)}, {0, Marked{"g", 3}}, {0, first(mine)}, {time.Second, first(Ownership{Term: Term{5, "a", 7}, Rev: 11, Alone: Fence, From: "b", InSync: []string{"b"}})},
			{100 * time.Millisecond, Marked{"g", 5}}, {100 * time.Millisecond, first(Ownership{Term: me(6), Rev: 12, Alone: Fence})}}, true},
	} {
		n := New(Config{"b", 5, Default}, start)
		n.Step(start, Voters{1, []string{"a", "b", "w"}})
		n.Step(start, Groups{{Name: "g", Nodes: []string{"a", "b"}}})
		now, said := start, false
		for _, s := range c.steps {
			now, said = now.Add(s.after), false
			for _, a := range n.Step(now, s.e) {
				w, ok := a.(Tell)
				said = said || ok && strings.Contains(w.Words, "not known to the last here: ")
			}
		}
		if k := n.Knows("g"); k.All != c.all || said == c.all {
			t.Errorf("%s: %+v; said why not: %v", c.name, k, said)
		}
	}
}

// TestCopiesInSyncAreTold: the owner says when the log has a copy as in sync, and why it has not any more; a node that is not the owner says nothing of it.
func TestCopiesInSyncAreTold(t *testing.T) {
	for _, node := range []string{"a", "b"} {
		now := Time(time.Hour)
		n := New(Config{node, 7, Default}, now)
		n.Step(now, Voters{1, []string{"a", "b", "w"}})
		n.Step(now, Groups{{Name: "g", Nodes: []string{"a", "b", "c"}}})
		rev := uint64(0)
		agreed := func(inSync ...string) (said []string) {
			rev++
			for _, a := range n.Step(now, Agreed{State: State{Groups: map[string]Ownership{"g": {Term: Term{3, "a", 7}, Rev: rev, Alone: Fence, InSync: inSync}}}}) {
				if w, ok := a.(Tell); ok && strings.Contains(w.Words, "in sync") {
					said = append(said, w.Words)
				}
			}
			return said
		}
		agreed()
		n.Step(now, Copied{Group: "g", Peer: "c", Equal: true, Lag: 1500 * time.Millisecond})
		for _, c := range []struct{ now, want []string }{
			{[]string{"b"}, []string{"the copy of b is in sync by agreement"}},
			{[]string{"b", "c"}, []string{"the copy of c is in sync by agreement"}},
			{[]string{"b", "c"}, nil},
			{nil, []string{"the copy of b is not in sync any more: it was not whole yet in this term", "the copy of c is not in sync any more: it was 1.5s behind"}},
		} {
			want := c.want
			if node == "b" {
				want = nil
			}
			if got := agreed(c.now...); !slices.Equal(got, want) {
				t.Errorf("%s, in sync %v: %q, want %q", node, c.now, got, want)
			}
		}
	}
}

// TestKnowingIsNotTheDigestsAge: the plant that goes by it alone is found by the row of an election that takes long.
func TestKnowingIsNotTheDigestsAge(t *testing.T) {
	for _, planted := range []bool{false, true} {
		now := Time(time.Hour)
		n := New(Config{"b", 5, Default}, now)
		n.plant.digestOnly = planted
		n.Step(now, Voters{1, []string{"a", "b", "w"}})
		n.Step(now, Groups{{Name: "g", Nodes: []string{"a", "b"}}})
		owner := Ownership{Term: Term{3, "a", 7}, Rev: 9, Alone: Fence, InSync: []string{"b"}}
		n.Step(now, Agreed{State: State{Groups: map[string]Ownership{"g": owner}}})
		n.Step(now, Marked{"g", 3})
		for range 60 { // it beats for 1.2 s, is cut off, and a leader takes a second
			now = now.Add(Default.Renew)
			n.Step(now, Received{"a", Message{Kind: Beat, Life: 7, Views: []View{{Group: "g", Epoch: 3, Serving: true}}}})
		}
		now = now.Add(time.Second)
		n.Step(now, Agreed{State: State{Groups: map[string]Ownership{"g": {Term: Term{4, "b", 5}, Rev: 10, Alone: Fence}}}})
		if k := n.Knows("g"); k.All == planted {
			t.Errorf("planted %v: %+v", planted, k)
		}
	}
}

// TestWhoServesUnagreedKnowsNothing: a node that is forced to go on without a majority knows nothing of what others have used since, though it was the owner itself as far as it has heard; and whoever serves by agreement does not say so.
func TestWhoServesUnagreedKnowsNothing(t *testing.T) {
	now := Time(time.Hour)
	n := New(Config{"a", 5, Default}, now)
	n.Step(now, Voters{1, []string{"a", "b", "w"}})
	n.Step(now, Groups{{Name: "g", Nodes: []string{"a", "b"}}})
	n.Step(now, Agreed{State: State{Groups: map[string]Ownership{"g": {Term: Term{1, "a", 5}, Rev: 1, Alone: Fence}}}})
	if k := n.Knows("g"); !k.All || k.Unagreed {
		t.Fatalf("the first owner: %+v", k)
	}
	now = now.Add(time.Minute)
	n.Step(now, Take{"g"})
	served := false
	for range 100 {
		now = now.Add(5 * time.Millisecond)
		for _, a := range n.Step(now, Tick{}) {
			if l, ok := a.(Lease); ok && l.Until > now {
				served = true
			}
		}
	}
	if k := n.Knows("g"); !served || k.All || !k.Unagreed {
		t.Errorf("forced, after a minute in which nobody was heard: serves %v, %+v", served, k)
	}
}

// TestFirstTerm: two nodes of a group that are each a cluster of its own, as one that was started before it has joined, do not both take it. As soon as they vote in one cluster, one of them does; and an operator may say it.
func TestFirstTerm(t *testing.T) {
	at := func(ms int) Time { return Time(1e9).Add(time.Duration(ms) * time.Millisecond) }
	claims := func(plant bool, nodes, voters []string, force bool) (claimed bool, said string) {
		n := New(Config{"b", 9, Default}, at(0))
		n.plant.firstAlone = plant
		warned := 0
		do := func(now Time, e Event) {
			for _, a := range n.Step(now, e) {
				switch a := a.(type) {
				case Propose:
					claimed = claimed || a.Kind == KindClaim && a.Term.Node == "b"
				case Tell:
					if a.Warn {
						warned++
						said = a.Words
					}
				}
			}
		}
		do(at(0), Voters{1, voters})
		do(at(0), Groups{{Name: "g", Nodes: nodes}})
		do(at(0), Agreed{})
		if force {
			do(at(1), Take{Group: "g"})
		}
		for i := 10; i < 4000; i += 10 {
			do(at(i), Tick{})
		}
		if warned > 1 {
			t.Errorf("it is said %d times: %s", warned, said)
		}
		if why := strings.Join(n.Status("g", 0, at(4000)).Why, "\n"); said != "" && !strings.Contains(why, said) {
			t.Errorf("the log says %q, the status %q", said, why)
		}
		return claimed, said
	}
	for _, c := range []struct {
		nodes, voters []string
		force         bool
		want          bool
	}{
		{[]string{"a", "b"}, []string{"b"}, false, false},
		{[]string{"b", "a"}, []string{"b", "w"}, false, false},
		{[]string{"b", "a"}, []string{"b"}, true, true},
		{[]string{"b"}, []string{"b"}, false, true},
		{[]string{"a", "b"}, []string{"a", "b", "w"}, false, true},
		{[]string{"a", "b", "c"}, []string{"a", "b"}, false, true},
		{[]string{"a", "b", "c"}, []string{"b"}, false, false},
	} {
		claimed, said := claims(false, c.nodes, c.voters, c.force)
		if claimed != c.want {
			t.Errorf("nodes %v, voters %v, force %v: claims it: %v, want %v", c.nodes, c.voters, c.force, claimed, c.want)
		}
		if !c.force && (said == "") != c.want {
			t.Errorf("nodes %v, voters %v: it says %q", c.nodes, c.voters, said)
		}
		for _, o := range c.nodes {
			if !c.want && o != "b" && !strings.Contains(said, o) {
				t.Errorf("it does not name %s: %s", o, said)
			}
		}
		if claimed, _ := claims(true, c.nodes, c.voters, c.force); !claimed {
			t.Errorf("nodes %v, voters %v: with the rule left out it does not claim either: the test sees nothing", c.nodes, c.voters)
		}
	}
}

// TestStatusOfFarVoters: a voter that cannot complete a lease in time, or is not heard of, protects nothing, however far its commits carry; where enough others are near it does not matter.
func TestStatusOfFarVoters(t *testing.T) {
	far := Default.Reach() + time.Millisecond
	for _, c := range []struct {
		name   string
		node   string
		trips  map[string]time.Duration
		want   string
		gapped time.Duration
	}{
		{"near", "a", map[string]time.Duration{"b": time.Millisecond, "wc": 40 * time.Millisecond}, "", 164 * time.Millisecond},
		{"as far as may be", "b", map[string]time.Duration{"a": time.Millisecond, "wc": Default.Reach()}, "", Default.Lease + 4*time.Millisecond + Default.Reach()},
		{"far, says the owner", "a", map[string]time.Duration{"b": time.Millisecond, "wc": far + 2*time.Millisecond}, "wc is too far away: without its owner it completes the majority, and between it and b a round trip takes 76ms at least, where a lease allows 74ms", 0},
		{"far, says the standby", "b", map[string]time.Duration{"a": time.Millisecond, "wc": time.Second}, "wc is too far away: without its owner it completes the majority, and between it and b a round trip takes 1s at least", 0},
		{"far, says the witness", "wc", map[string]time.Duration{"a": time.Second, "b": 200 * time.Millisecond}, "between it and b a round trip takes 200ms at least", 0},
		{"far from the standby alone, says the owner", "a", map[string]time.Duration{"b": 100 * time.Millisecond, "wc": time.Millisecond}, "between it and b a round trip takes 99ms at least", 0},
		{"not measured", "b", nil, "", 124 * time.Millisecond},
	} {
		w := quietWorld(t, 30, 2, 1, Group{})
		m := w.box(c.node).m
		m.Trips(c.trips)
		s := m.Status("g", 4*time.Millisecond, w.box(c.node).clock())
		if why := strings.Join(s.Why, "; "); (why == "") != (c.want == "") || !strings.Contains(why, c.want) {
			t.Errorf("%s: %q, want %q", c.name, why, c.want)
		}
		if s.Gap != c.gapped {
			t.Errorf("%s: a gap of %s is expected, want %s", c.name, s.Gap, c.gapped)
		}
	}
	// Five voters of which one is far: the others are enough. With two more away it is the one that counts.
	w := quietWorld(t, 30, 2, 3, Group{})
	m := w.box("a").m
	m.Trips(map[string]time.Duration{"wc": time.Second})
	if s := m.Status("g", 0, w.box("a").clock()); len(s.Why) > 0 {
		t.Errorf("one of five voters is far: %q", s.Why)
	}
	w.box("wd").kill()
	w.run(w.now + 2500*ms)
	m.Trips(map[string]time.Duration{"wc": time.Second})
	if why := strings.Join(m.Status("g", 0, w.box("a").clock()).Why, "; "); !strings.Contains(why, "wc is too far away") {
		t.Errorf("one of five voters is far, one is gone: %q", why)
	}
	// A witness that is gone leaves the owner its lease, and nobody else one.
	w = quietWorld(t, 30, 2, 1, Group{})
	w.box("wc").kill()
	w.run(w.now + 2500*ms)
	if why := strings.Join(w.box("a").m.Status("g", 0, w.box("a").clock()).Why, "; "); why != "nothing is heard of wc: without its owner those that are left are no majority" {
		t.Errorf("the witness is gone: %q", why)
	}
}

// TestStatusOfWhoServesAlone: what keep and auto cannot promise is said as it is.
func TestStatusOfWhoServesAlone(t *testing.T) {
	for alone, want := range map[Alone]string{
		Keep: "of two votes neither is one: when the owner is gone nobody serves it before `demarc group take g --force`",
		Auto: "the other node takes over as soon as it hears nothing of it (auto): where every path between the two is cut, both serve",
	} {
		w := quietWorld(t, 30, 2, 0, Group{Alone: alone})
		s := w.box("a").m.Status("g", 0, w.box("a").clock())
		if why := strings.Join(s.Why, "; "); !strings.Contains(why, want) || s.Gap != 0 || strings.Contains(why, "proof") {
			t.Errorf("%s: %q", alone, why)
		}
	}
	w := quietWorld(t, 30, 2, 1, Group{Alone: Keep})
	if why := strings.Join(w.box("a").m.Status("g", 0, w.box("a").clock()).Why, "; "); why != "without a majority its owner serves on (keep): nobody takes over without proof that it has stopped" {
		t.Errorf("keep with a witness: %q", why)
	}
}

// TestPolicyComesBack: an owner whose policy loses the group gives its term up, and one that has it again before the workers have stopped does not: it would be given up at its next pause, by the word of before.
func TestPolicyComesBack(t *testing.T) {
	for _, after := range []int64{0, 100 * ms} {
		w := quietWorld(t, 4, 2, 1, Group{})
		a := w.box("a")
		term := a.m.groups["g"].at.Term
		if a.m.Ended("g") {
			t.Error("it has ended, and the policy has it")
		}
		a.step(Groups{})
		w.box("b").step(Groups{})
		if !a.m.Ended("g") || !w.box("b").m.Ended("g") {
			t.Error("it has not ended, and the policy has it no more")
		}
		w.run(w.now + after)
		w.box("b").step(Groups(w.groups))
		a.step(Groups(w.groups))
		w.run(w.now + 1000*ms)
		g := a.m.groups["g"]
		if g.past.Epoch > 0 {
			t.Errorf("after %d ms: it serves under %v and is to release %v", after/ms, g.at.Term, g.past)
		}
		if same := g.at.Term == term; same != (after == 0) {
			t.Errorf("after %d ms: the term is %v, it was %v", after/ms, g.at.Term, term)
		}
	}
}

// TestAFirstTermIsBehindAllOthers: a group that takes the place, and perhaps the id, of one that has ended begins behind every epoch there was: copies and ports go by id and epoch. It is the first all the same: whoever has it knows
// all that its owners have used.
func TestAFirstTermIsBehindAllOthers(t *testing.T) {
	at := func(ms int) Time { return Time(1e9).Add(time.Duration(ms) * time.Millisecond) }
	for _, force := range []bool{false, true} {
		n := New(Config{"b", 9, Default}, at(0))
		var claim *Entry
		do := func(now Time, e Event) {
			for _, a := range n.Step(now, e) {
				if a, ok := a.(Propose); ok && a.Kind == KindClaim {
					claim = &a.Entry
				}
			}
		}
		s := State{Groups: map[string]Ownership{"old": {Term: Term{7, "a", 3}, Rev: 12, Alone: Fence}, "older": {Term: Term{5, "b", 2}, Rev: 5, Alone: Fence}}}
		do(at(0), Voters{1, []string{"a", "b", "w"}})
		do(at(0), Groups{{Name: "new", Nodes: []string{"b", "a"}}})
		do(at(0), Agreed{State: s})
		if force {
			do(at(1), Take{Group: "new"})
		}
		for i := 10; i < 4000 && claim == nil; i += 10 {
			do(at(i), Tick{})
		}
		if claim == nil || claim.Term.Epoch != 8 {
			t.Fatalf("force %v: it claims %+v, want epoch 8", force, claim)
		}
		next, err := s.Apply(*claim)
		if err != nil {
			t.Fatal(err)
		}
		do(at(4000), Agreed{State: next})
		if k := n.Knows("new"); !k.All {
			t.Errorf("force %v: of a group that nobody has had it knows %+v", force, k)
		}
		c := Entry{Kind: KindClaim, Group: "new", After: next.Groups["new"].Rev, Term: n.me(9), Alone: Fence, Cause: CauseReleased, Why: RightOwner, By: claim.Term, Stale: true}
		if g := n.groups["new"]; n.nextEpoch(g) != 9 {
			t.Errorf("the term behind it has epoch %d", n.nextEpoch(g))
		}
		if _, err := next.Apply(c); err != nil {
			t.Error(err)
		}
	}
}
