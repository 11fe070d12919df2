package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"demarc/gateway/netlab"
	"demarc/gateway/netlab/host"
	nodes "demarc/gateway/trio"
)

// What is planned costs hardly a gap and no connection: a move by hand, a drain, the end of a gateway by SIGTERM, and its restart with the next one's takeover just behind. A move
// to a node whose copy is not whole is refused, in words, and moves nothing; so is a policy in which a tenant leaves its group.
func TestPairPlannedMoves(t *testing.T) {
	p := newPair(t, "pair", "")
	p.start()
	p.serve(5*time.Second, p.GW1)
	p.protected(p.GW1)
	held := p.hold(20, 20*time.Millisecond)
	idle := p.hold(100, 0)
	var events []event
	owner, want := p.GW1, "gw1"
	do := func(what string, fn func() error) {
		t.Helper()
		p.protected(owner)
		e := event{what: what, from: time.Now(), most: 150 * time.Millisecond} // on a machine with hardly a core for it; what it takes is printed
		check(t, fn())
		owner = p.Other(owner)
		want += " " + owner.Name
		p.serve(5*time.Second, owner)
		e.to = time.Now()
		events = append(events, e)
		time.Sleep(apart)
	}
	run := func(n *nodes.Node, args ...string) func() error {
		return func() error { _, err := n.Run(t.Context(), args...); return err }
	}
	do("group move, asked of the other one", run(p.GW2, "group", "move", nodes.PairGroup, "gw2"))
	do("node drain", run(p.Witness, "node", "drain", "gw2"))
	check(t, run(p.GW2, "node", "undrain", "gw2")())
	do("SIGTERM", p.GW1.Stop)
	if _, err := p.GW2.Run(t.Context(), "group", "move", nodes.PairGroup, "gw1"); err == nil || !strings.Contains(err.Error(), "nothing is heard of gw1") {
		t.Errorf("to a node that is gone: %v", err)
	}
	check(t, p.GW1.Start(t.Context()))
	if _, err := p.GW2.Run(t.Context(), "group", "move", nodes.PairGroup, "gw1"); err != nil && // if it is not whole already
		(!strings.Contains(err.Error(), "is not whole: sessions would be cut") || !strings.Contains(err.Error(), "demarc group take east --force")) && !strings.Contains(err.Error(), "nothing is heard of") {
		t.Errorf("to a node that is back: %v", err)
	} else if err == nil {
		owner, want = p.GW1, want+" gw1"
		p.serve(5*time.Second, owner)
	}
	do("restart", func() error {
		n := owner
		if err := n.Stop(); err != nil {
			return err
		}
		return n.Start(t.Context())
	})
	// Without its group a tenant would be every node's.
	text := nodes.PairPolicy("")
	file := filepath.Join(t.TempDir(), "none.toml")
	check(t, os.WriteFile(file, []byte(text[:strings.Index(text, "[[group]]")]), 0o644))
	if _, _, err := owner.Apply(t.Context(), file); err == nil || !strings.Contains(err.Error(), `leaves group "east", and every node would serve it`) {
		t.Errorf("a policy without the group: %v", err)
	}
	p.protected(owner)
	p.agreed(owner)
	for what, s := range map[string][]*netlab.Server{"with data": held, "idle": idle} {
		for _, s := range s {
			var h host.Held
			check(t, s.Stop(&h))
			t.Logf("connections %s: %d, %d lost, the longest exchange %.0f ms", what, h.Opened, h.Lost, h.LongestMs)
			if h.Lost > 0 {
				t.Errorf("connections %s: %d of %d are lost: %v", what, h.Lost, h.Opened, h.Why)
			}
		}
	}
	seen, v := p.end()
	p.held(seen, events)
	if got := terms(v); got != want {
		t.Errorf("these have sent data for the group, in turn: %s; want %s", got, want)
	}
	if n := len(seen.Moved()); n > 0 {
		t.Errorf("%d flows have another public port now", n)
	}
}

// protected waits until the owner says that the other node could take over without loss.
func (p *pairLab) protected(owner *nodes.Node) {
	p.t.Helper()
	why := ""
	if !until(20*time.Second, func() bool {
		g, err := p.says(owner)
		why = fmt.Sprint(g.Why, err)
		return err == nil && g.Owner == owner.Name && len(g.Why) == 0
	}) {
		p.t.Fatalf("the group is not protected: %s", why)
	}
}

// hold opens so many TCP connections of each tenant, IPv4 with translation and IPv6 without; every = how often a block goes there and back on each, 0 = at the end alone.
func (p *pairLab) hold(count int, every time.Duration) (list []*netlab.Server) {
	p.t.Helper()
	for _, six := range []bool{false, true} {
		to := fmt.Sprintf("%s:%d", p.Outside(six), nodes.PairHoldPort)
		if six {
			to = fmt.Sprintf("[%s]:%d", p.Outside(six), nodes.PairHoldPort)
		}
		if p.holding == nil {
			s, err := p.Serve(nodes.PairOut, "tcp-hold-serve", "-addr", fmt.Sprintf(":%d", nodes.PairHoldPort))
			check(p.t, err)
			p.holding = s
		}
		for _, side := range []string{nodes.PairAlpha, nodes.PairBeta} {
			s, err := p.Serve(side, "tcp-hold", "-dst", to, "-from", p.Inside(side, six).String(), "-count", fmt.Sprint(count), "-every", every.String())
			check(p.t, err)
			list = append(list, s)
		}
	}
	return list
}
