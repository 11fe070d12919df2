package cluster

import (
	"context"
	"fmt"
	"testing"
	"time"

	"demarc/cluster/command"
	"demarc/cluster/store"
)

// TestFollowersLearnAtOnce: that a change is agreed on comes to followers with it, not with Raft's next empty message, which is seconds away here.
func TestFollowersLearnAtOnce(t *testing.T) {
	s := newSite(t)
	slow := func(c *store.Config) { c.Commit = 3 * time.Second }
	var ms []*member
	for _, h := range []*host{s.host("gw1", command.RoleGateway), s.host("gw2", command.RoleGateway), s.host("wit", command.RoleWitness)} {
		h.tune = slow
		if len(ms) == 0 {
			m := h.run()
			begun(t, m)
			ms = append(ms, m)
		} else {
			ms = append(ms, h.enter(ms[0], ""))
		}
	}
	voting(t, ms, 3)
	for _, m := range ms {
		// Whoever waits for the next message does so nearly each time; a busy machine does not take a second five times.
		quickest := time.Hour
		for k := 0; k < 5 && quickest > time.Second; k++ {
			ctx, cancel := context.WithTimeout(t.Context(), patient)
			defer cancel()
			began := time.Now()
			o, err := m.Apply(ctx, Change{Text: []byte(fmt.Sprint(m.cfg.Name, k)), Who: command.Who{Author: "x"}})
			quickest = min(quickest, time.Since(began))
			if err != nil || len(o.Late()) > 0 {
				t.Fatalf("%v, %v", err, o.Late())
			}
		}
		if quickest > time.Second {
			t.Errorf("an apply on %s took %s at least", m.cfg.Name, quickest)
		}
	}
}

// TestApplyTakesWhatWasAsked: who has asked the others already while it compiled itself does not ask them twice, and their problems stop the change all the same.
func TestApplyTakesWhatWasAsked(t *testing.T) {
	hs, ms := trio(t)
	voting(t, ms, 3)
	gw1 := ms[0]
	asked := func() int {
		hs[1].comp.mu.Lock()
		defer hs[1].comp.mu.Unlock()
		return len(hs[1].comp.texts)
	}
	change := func(text string) (Outcome, error) {
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		return gw1.Apply(ctx, Change{Text: []byte(text), Who: command.Who{Author: "x"}, Checked: true, Asked: gw1.Ask(ctx, "file", []byte(text), nil)})
	}
	before := asked()
	o, err := change("once")
	if err != nil || len(o.Checked) != 2 || len(o.Late()) > 0 {
		t.Fatalf("%+v, %v", o, err)
	}
	if n := asked() - before; n != 1 {
		t.Errorf("gw2 was asked %d times", n)
	}
	hs[1].comp.say(Report{Problems: []Problem{{Text: "no such interface"}}})
	if _, err := change("unfit"); err == nil || err.Error() != "gw2: no such interface" {
		t.Errorf("%v", err)
	}
	if ms[0].State().Serving != o.Revision.Number {
		t.Error("a change that gw2 cannot serve was made")
	}
}

func TestFarMembersHaveMoreUnderWay(t *testing.T) {
	if inFlight(0) != 0 || inFlight(600*time.Millisecond) < 4 {
		t.Errorf("%d near, %d far", inFlight(0), inFlight(600*time.Millisecond))
	}
}
