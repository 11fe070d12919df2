package cluster

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"demarc/cluster/command"
	"demarc/cluster/failover"
)

// heard is all that a driver says of one group, in order.
type heard struct {
	said []string
	done []func()
}

func (h *heard) say(f string, a ...any) { h.said = append(h.said, fmt.Sprintf(f, a...)) }

func (h *heard) Role(group string, epoch uint64, serving bool, _ failover.Known, done func()) {
	h.say("role %d %t", epoch, serving)
	if done != nil {
		h.done = append(h.done, done)
	}
}

func (h *heard) Write(group string, epoch uint64, until, leave failover.Time, done func()) {
	if until > 0 {
		h.say("lease %d", epoch)
	} else {
		if h.say("no lease %d", epoch); leave > 0 {
			h.say("what is queued leaves")
		}
		done()
	}
}

func (h *heard) Announce(group string, epoch uint64, round int) { h.say("announce %d", epoch) }

// runFor is what Run does, by a clock that the test moves.
func runFor(d *Driver, now *failover.Time, by time.Duration) {
	for end := now.Add(by); *now < end; *now = now.Add(2 * time.Millisecond) {
		d.step(d.now(), failover.Tick{})
		d.mu.Lock()
		list := d.queue
		d.queue = nil
		d.mu.Unlock()
		for _, fn := range list {
			fn(d.now())
		}
	}
}

// TestDriverRoles: no deadline is written and nothing announced before the node is ready to serve, a lease that lapses asks for nothing again, and who has become a standby is told
// so behind the end of its lease, once for each term.
func TestDriverRoles(t *testing.T) {
	now := failover.Time(time.Hour)
	h := &heard{}
	d, err := NewDriver(DriverConfig{Name: "gw-a", Clock: func() failover.Time { return now }, CPU: -1, Leases: h, Words: h, Roles: h})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Discard()
	run := func(by time.Duration) { runFor(d, &now, by) }
	want := func(what string, said ...string) {
		t.Helper()
		if !slices.Equal(slices.Compact(slices.Clone(h.said)), said) {
			t.Errorf("%s: %q, want %q", what, h.said, said)
		}
		h.said = nil
	}
	agreed := func(rev uint64, term failover.Term) {
		d.step(now, failover.Agreed{State: failover.State{Groups: map[string]failover.Ownership{"east": {Term: term, Rev: rev, Alone: failover.Fence}}}})
	}
	d.Policy([]failover.Group{east()})
	d.step(now, failover.Voters{Version: 1, Names: []string{"gw-a"}})
	run(400 * time.Millisecond)
	h.said = nil
	agreed(1, failover.Term{Epoch: 7, Node: "gw-b", Life: 3})
	want("another is the owner", "role 7 false")
	agreed(2, failover.Term{Epoch: 8, Node: "gw-a", Life: d.life})
	run(100 * time.Millisecond)
	want("it is not ready", "role 8 true")
	h.done[0]()
	run(2 * time.Millisecond)
	want("it is ready", "lease 8", "announce 8")
	run(100 * time.Millisecond)
	now = now.Add(time.Second) // it was stopped
	h.said = nil
	run(100 * time.Millisecond)
	if s := strings.Join(slices.Compact(h.said), ", "); !strings.HasPrefix(s, "no lease 8, lease 8") || strings.Contains(s, "role") {
		t.Errorf("a lease that came back: %s", s)
	}
	h.said = nil
	agreed(3, failover.Term{Epoch: 9, Node: "gw-a", Life: d.life})
	run(200 * time.Millisecond) // until the promise for the term before is over
	agreed(4, failover.Term{Epoch: 10, Node: "gw-b", Life: 3})
	h.done[1]() // too late
	run(20 * time.Millisecond)
	want("it lost the group before it was ready", "no lease 8", "role 9 true", "no lease 9", "role 10 false")
	agreed(5, failover.Term{Epoch: 11, Node: "gw-b", Life: 3})
	agreed(6, failover.Term{Epoch: 11, Node: "gw-b", Life: 3})
	want("the other one's next term", "role 11 false")
	agreed(7, failover.Term{Epoch: 12, Node: "gw-a", Life: d.life})
	run(200 * time.Millisecond)
	h.done[2]()
	run(20 * time.Millisecond)
	h.said = nil
	d.Policy(nil)
	run(20 * time.Millisecond)
	if s := strings.Join(h.said, ", "); !strings.Contains(s, "no lease 12") || strings.Count(s, "role 12 false") != 1 {
		t.Errorf("the policy does not know the group any more: %s", s)
	}
}

// TestDriverGivesUpBehindTheLastChanges: who hands over keeps what it has of the group as its own until the heir has the last changes, or is waited for no longer: the heir waits for that alone. And
// only then.
func TestDriverGivesUpBehindTheLastChanges(t *testing.T) {
	for _, comes := range []bool{true, false} {
		now := failover.Time(time.Hour)
		h := &heard{}
		var flushed func()
		d, err := NewDriver(DriverConfig{Name: "gw-a", Clock: func() failover.Time { return now }, CPU: -1, Leases: h, Words: h, Roles: h, Flush: func(_, peer string, done func()) {
			h.say("flush %s", peer)
			flushed = done
		}})
		if err != nil {
			t.Fatal(err)
		}
		defer d.Discard()
		run := func(by time.Duration) { runFor(d, &now, by) }
		heir := failover.Term{Epoch: 8, Node: "gw-b", Life: 3}
		agreed := func(rev uint64, term failover.Term, from string) {
			d.step(now, failover.Agreed{State: failover.State{Groups: map[string]failover.Ownership{"east": {Term: term, Rev: rev, Alone: failover.Fence, InSync: []string{"gw-b"}, From: from}}}})
		}
		d.Policy([]failover.Group{east()})
		d.step(now, failover.Voters{Version: 1, Names: []string{"gw-a"}})
		run(400 * time.Millisecond)
		agreed(1, failover.Term{Epoch: 7, Node: "gw-a", Life: d.life}, "")
		run(10 * time.Millisecond)
		h.done[0]()
		run(20 * time.Millisecond)
		d.step(now, failover.Received{From: "gw-b", Message: failover.Message{Kind: failover.Beat, Life: 3, Views: []failover.View{{Group: "east", Epoch: 7, Whole: true}}}})
		d.step(now, failover.Copied{Group: "east", Peer: "gw-b", Equal: true, Seq: 1})
		d.step(now, failover.Move{Group: "east", To: "gw-b"})
		h.said = nil
		agreed(2, heir, "gw-a")
		d.step(now, failover.Received{From: "gw-b", Message: failover.Message{Kind: failover.Renew, Life: 3, Group: "east", Term: heir, Seq: 1, Voters: 1}})
		run(20 * time.Millisecond)
		want := "no lease 7, what is queued leaves, flush gw-b"
		if got := strings.Join(h.said, ", "); got != want {
			t.Fatalf("until the last changes are there: %s; want %s", got, want)
		}
		if comes {
			flushed()
			run(4 * time.Millisecond)
		} else {
			run(failover.Default.Flush)
		}
		if got := strings.Join(h.said, ", "); got != want+", role 8 false" {
			t.Errorf("the last changes have come (%t): %s", comes, got)
		}
	}
}

// TestDriverWaitsForACopy: a move that is asked for while the heir's copy is on its way is carried out when that is whole, noted once, and refused with the time that it was waited for where it does not come. What else is in
// the way is said at once. So is what is in the way only when the move has begun, as behind a cut that is just mended: another entry was first, or nothing is agreed on.
func TestDriverWaitsForACopy(t *testing.T) {
	for _, c := range []struct {
		name  string
		comes time.Duration // 0 = never
		to    string
		want  string
		least time.Duration // that it takes

		first string // what is agreed on when the move has begun; "" = the move
	}{
		{"it comes", 300 * time.Millisecond, "gw-b", "", 300 * time.Millisecond, ""},
		{"it does not", 0, "gw-b", "sessions would be cut", copyWait, ""},
		{"another reason", 0, "gw-c", "not one of the group's nodes", 0, ""},
		{"first it is not whole any more", time.Millisecond, "gw-b", "sessions would be cut", copyWait, "copy"},
		{"first another one owns it", time.Millisecond, "gw-b", "something else was agreed on first: gw-c owns it since epoch 8", 0, "owner"},
		{"nothing is agreed on", time.Millisecond, "gw-b", "was not agreed on within a second", copyWait, "nothing"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			now := failover.Time(time.Hour)
			h := &heard{}
			d, err := NewDriver(DriverConfig{Name: "gw-a", Clock: func() failover.Time { return now }, CPU: -1, Leases: h, Words: h, Roles: h})
			if err != nil {
				t.Fatal(err)
			}
			defer d.Discard()
			rev := uint64(0)
			first := failover.Term{Epoch: 7, Node: "gw-a", Life: d.life}
			agreed := func(term failover.Term, inSync ...string) {
				rev++
				d.step(now, failover.Agreed{State: failover.State{Groups: map[string]failover.Ownership{"east": {Term: term, Rev: rev, Alone: failover.Fence, InSync: inSync}}}})
			}
			d.Policy([]failover.Group{east()})
			d.step(now, failover.Voters{Version: 1, Names: []string{"gw-a"}})
			runFor(d, &now, 400*time.Millisecond)
			agreed(first)
			runFor(d, &now, 10*time.Millisecond)
			h.done[0]()
			runFor(d, &now, 20*time.Millisecond)
			moving := false
			began, done := time.Now(), make(chan error, 1)
			go func() { done <- d.Move(t.Context(), "east", c.to, command.Who{Author: "root"}) }()
			for came := false; ; time.Sleep(time.Millisecond) {
				d.step(now, failover.Received{From: "gw-b", Message: failover.Message{Kind: failover.Beat, Life: 3, Views: []failover.View{{Group: "east", Epoch: 7, Whole: true}}}})
				if !came && c.comes > 0 && time.Since(began) >= c.comes {
					came = true
					agreed(first, "gw-b")
				}
				if came && !(moving && c.first == "copy") { // as it is told all the time
					d.step(now, failover.Copied{Group: "east", Peer: "gw-b", Equal: true, Seq: 1})
				}
				if !moving && d.m.Moving("east") != "" {
					switch moving = true; c.first {
					case "":
						agreed(failover.Term{Epoch: 8, Node: "gw-b", Life: 3})
					case "copy":
						agreed(first)
						d.step(now, failover.Copied{Group: "east", Peer: "gw-b", Seq: 2})
					case "owner":
						agreed(failover.Term{Epoch: 8, Node: "gw-c", Life: 4})
					}
				}
				runFor(d, &now, 2*time.Millisecond)
				if len(done) > 0 {
					break
				}
			}
			// A try takes a second by the test's clock, which goes on by 2 ms a round: on a busy machine the last one, begun before copyWait was over, ends long behind it.
			err, took, asked := <-done, time.Since(began), 0
			if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) || took < c.least || took > c.least+5*time.Second {
				t.Errorf("after %s: %v", took, err)
			}
			if err != nil {
				_, words, told := strings.Cut(err.Error(), "That was so for ")
				if waited, _ := time.ParseDuration(words); told != (c.least > 0) || told && (waited < copyWait || waited > took+100*time.Millisecond) {
					t.Errorf("how long it was waited for, in %s: %v", took, err)
				}
			}
			handing := false
			for _, e := range d.Events() {
				if strings.Contains(e.Words, "is asked for") {
					asked++
				}
				handing = handing || strings.Contains(e.Words, "handing over to gw-b")
			}
			if asked != 1 || handing != (c.want == "" || c.first != "") {
				t.Errorf("noted %d times; handing over: %v; %+v", asked, handing, d.Events())
			}
		})
	}
}
