package e2e

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"demarc/gateway/api"
	"demarc/gateway/netlab"
	"demarc/gateway/netlab/quiet"
	nodes "demarc/gateway/trio"
)

// TestPairTwoGroups: two tenants on one trunk, each in a group of its own that prefers another gateway: both gateways work. The router of the backbone does not reach gw1 any more though its port has a link: its
// group goes to gw2, which serves both. An operator moves it back. gw2 is killed: gw1 serves both. What happens to one group costs the other nothing.
func TestPairTwoGroups(t *testing.T) { pairJudged(t, twoGroups) }

func twoGroups(t *testing.T, l *quiet.Limits) {
	p := newPairOf(t, nodes.Options{Lab: "pair", Split: true}, "", nil)
	p.limits = l
	deaf, err := p.Gate("swo", "gw1-wan0", netlab.Egress)
	check(t, err)
	p.start()
	both := func(east, west *nodes.Node) {
		t.Helper()
		var why string
		if !until(20*time.Second, func() bool {
			for group, owner := range map[string]*nodes.Node{nodes.PairGroup: east, nodes.PairWest: west} {
				g, err := p.saysOf(owner, group)
				if err != nil || !g.Serving || g.Owner != owner.Name {
					why = fmt.Sprintf("%s of %s: %+v, %v", owner.Name, group, g, err)
					return false
				}
				if o := p.Other(owner); o.Runs() && (!slices.Contains(g.InSync, o.Name) || len(g.Why) > 0) {
					why = fmt.Sprintf("%s is not protected: %+v", group, g)
					return false
				}
			}
			return true
		}) {
			p.wrong("%s", why)
			t.FailNow()
		}
		want := []*nodes.Node{p.GW1, p.GW2}
		if east == west {
			want = []*nodes.Node{east}
		}
		p.serve(5*time.Second, want...)
	}
	both(p.GW1, p.GW2)

	var lost, killed event
	lost = event{what: "the router does not reach gw1", from: time.Now(), least: 500 * time.Millisecond, most: 4 * time.Second}
	check(t, deaf.Lose(1))
	var g api.Group
	if !until(10*time.Second, func() bool {
		g, err = p.says(p.GW2)
		return err == nil && g.Serving && g.Last != nil && g.Last.Epoch == g.Epoch
	}) { // asked: who does not reach its router sends nothing either. It has the term a moment before it has made itself ready
		p.wrong("gw2 does not serve: %+v, %v", g, err)
		t.FailNow()
	}
	p.serve(5*time.Second, p.GW2)
	time.Sleep(300 * time.Millisecond)
	lost.to = time.Now()
	if g.Last == nil || g.Last.Cause != "uplink" || g.Last.From != "gw1" {
		p.wrong("the last move, by its new owner: %+v", g.Last)
	}
	if g, err = p.says(p.GW1); err != nil || !slices.Equal(g.Against, []string{"no next hop of the backbone answers, backups aside"}) {
		t.Errorf("gw1 says that this counts against it: %q (%v)", g.Against, err)
	}
	check(t, deaf.Lose(0))
	if !until(10*time.Second, func() bool { g, err = p.says(p.GW1); return err == nil && len(g.Against) == 0 }) {
		t.Fatalf("gw1 is reached again, and says %+v", g)
	}
	both(p.GW2, p.GW2)
	_, err = p.GW2.Run(t.Context(), "group", "move", nodes.PairGroup, "gw1")
	check(t, err)
	both(p.GW1, p.GW2)

	killed = event{what: "kill -9 of gw2", from: time.Now(), least: time.Millisecond, most: 500 * time.Millisecond}
	p.GW2.Kill()
	both(p.GW1, p.GW1)
	time.Sleep(300 * time.Millisecond)
	killed.to = time.Now()
	seen, v := p.end()
	for group, want := range map[string]string{nodes.PairGroup: "gw1 gw2 gw1", nodes.PairWest: "gw2 gw1"} {
		if got := termsOf(v, group); got != want {
			p.wrong("these have sent data for %s, in turn: %s; want %s", group, got, want)
		}
	}
	// Each event is one group's: the other's flows may be held up by the machine, and by nothing else.
	for _, x := range []struct {
		event
		west bool
	}{{lost, false}, {killed, true}} {
		worst := map[bool]time.Duration{}
		for _, g := range seen.Gaps(x.from, x.to) {
			west := strings.HasPrefix(g.Flow, "beta")
			worst[west] = max(worst[west], g.Gap)
		}
		_, paused := seen.Worst(x.from, x.to)
		t.Logf("%-30s %.1f ms for the flows of its group at worst, %.1f ms for the others; senders paused for %.1f ms", x.what, ms(worst[x.west]), ms(worst[!x.west]), ms(paused))
		if mine := worst[x.west]; mine > x.most+paused+time.Second || mine < x.least {
			p.missed("%s: a gap of %s, want %s to %s", x.what, mine, x.least, x.most)
		}
		if others := worst[!x.west]; others > 150*time.Millisecond+paused {
			p.missed("%s: a gap of %s for the other group", x.what, others)
		}
	}
	if n := len(seen.Moved()); n > 0 {
		t.Errorf("%d flows have another public port now", n)
	}
}
