package e2e

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"demarc/gateway/api"
	"demarc/gateway/netlab/quiet"
	nodes "demarc/gateway/trio"
)

// What is planned costs hardly a gap and no connection: a move by hand, a drain, the end of a gateway by SIGTERM, and its restart with the next one's takeover just behind. A move
// to a node whose copy is not whole is refused, in words, and moves nothing; so is a policy in which a tenant leaves its group.
func TestPairPlannedMoves(t *testing.T) { pairJudged(t, plannedMoves) }

func plannedMoves(t *testing.T, l *quiet.Limits) {
	p := newPair(t, "pair", "")
	p.limits = l
	p.start()
	p.serve(5*time.Second, p.GW1)
	const count = 40
	conns, outside := p.hold(count)
	var events []event
	owner, want, said := p.GW1, "gw1", timeline{}
	do := func(what string, fn func() error) {
		t.Helper()
		p.protected(owner)
		e := event{what: what, from: time.Now(), most: 150 * time.Millisecond} // on a machine with hardly a core for it; what it takes is printed
		if err := fn(); err != nil {
			p.wrong("%s: %v", what, err)
			t.FailNow()
		}
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
	if _, err := p.GW2.Run(t.Context(), "group", "move", "est", "gw2"); err == nil || !strings.Contains(err.Error(), "there is no group est: did you mean east?") {
		t.Errorf("a group that there is not: %v", err)
	}
	for command, says := range map[string]string{"drops": "this node is a witness, which forwards nothing and has none of this", "node drain": "is a witness: it owns no group, so name the node that is meant: the gateways are gw1 and gw2"} {
		if _, err := p.Witness.Run(t.Context(), strings.Fields(command)...); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%s, asked of the witness: %v", command, err)
		}
	}
	do("group move, asked of the other one", func() error {
		out, err := p.GW2.Run(t.Context(), "group", "move", nodes.PairGroup, "gw2")
		if line := regexp.MustCompile(`(?m)^east +\d+ +gw1, gw2 +gw2 +\d+ +move +yes `); err == nil && !line.MatchString(out) {
			t.Errorf("the node that serves now answers a move with\n%s", out)
		}
		return err
	})
	do("node drain", run(p.Witness, "node", "drain", "gw2"))
	on := uint64(0)
	for _, n := range []*nodes.Node{p.GW1, p.GW2} { // each has handed over once
		st, err := n.Status(t.Context())
		check(t, err)
		for _, w := range st.Workers {
			on += w.HandedOn
		}
	}
	if t.Logf("%d frames that came behind two moves were handed on", on); on == 0 { // workers that have all hands full hand none on
		p.missed("no frame was handed on that came behind two moves")
	}
	check(t, run(p.GW2, "node", "undrain", "gw2")())
	do("SIGTERM", p.GW1.Stop)
	said.read(p.GW1)
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
	do("restart, as the unit does it", func() error { // for an upgrade, say: nobody has drained it
		n := owner
		if err := n.StopForRestart(); err != nil {
			return err
		}
		if want := `what="handing over to ` + p.Other(n).Name + `: drain"`; !strings.Contains(n.Log(5000), want) {
			t.Errorf("%s was ended for a restart and does not say %s", n.Name, want)
		}
		said.read(n)
		return n.Start(t.Context())
	})
	// Without its group a tenant would be every node's.
	text := nodes.PairPolicy("")
	file := filepath.Join(t.TempDir(), "none.toml")
	check(t, os.WriteFile(file, []byte(text[:strings.Index(text, "[[group]]")]), 0o644))
	if _, _, err := owner.Apply(t.Context(), file); err == nil || !strings.Contains(err.Error(), `leaves group "east", and every node would serve it`) {
		t.Errorf("a policy without the group: %v", err)
	}
	// The witness serves none, whoever is asked.
	check(t, os.WriteFile(file, []byte(replace(t, text, `["gw1", "gw2"]`, `["gw1", "gw2", "`+p.Witness.Name+`"]`)), 0o644))
	for _, n := range []*nodes.Node{owner, p.Witness} {
		if _, _, err := n.Apply(t.Context(), file); err == nil || !strings.Contains(err.Error(), `is a witness, which serves no group: gateways alone`) {
			t.Errorf("a group of the witness's, asked of %s: %v", n.Name, err)
		}
	}
	// Nor is it taken from who serves it, at once and with what the other one has of it by chance.
	check(t, os.WriteFile(file, []byte(replace(t, text, `["gw1", "gw2"]`, fmt.Sprintf("[%q]", p.Other(owner).Name))), 0o644))
	for _, n := range p.Gateways() {
		if _, _, err := n.Apply(t.Context(), file); err == nil || !strings.Contains(err.Error(), fmt.Sprintf("does not name %s, which serves the group now: its sessions would be cut: first `demarc group move east %s`", owner.Name, p.Other(owner).Name)) {
			t.Errorf("a group that does not name its owner, asked of %s: %v", n.Name, err)
		}
	}
	p.protected(owner)
	p.agreed(owner)
	p.release(count, conns, outside)
	seen, v := p.end()
	p.held(seen, events)
	said.read(p.GW1, p.GW2)
	t.Logf("what the nodes said:\n%s", said)
	for i, x := range v.Terms[nodes.PairGroup] {
		if i > 0 {
			last := v.Terms[nodes.PairGroup][i-1].Last
			t.Logf("on the wire: the last data frame at %s, %.1f ms later a word of %s, %.1f ms later its first data frame", last.UTC().Format("15:04:05.0000"), ms(x.Word.Sub(last)), x.Node, ms(x.First.Sub(last)))
		}
	}
	p.turns(v, want)
	if n := len(seen.Moved()); n > 0 {
		t.Errorf("%d flows have another public port now", n)
	}
}

// timeline is what the nodes have said of their groups' moves, which share a clock here: where the time of a move went. A node that starts again has a log of its own.
type timeline map[string]bool

func (l timeline) read(list ...*nodes.Node) {
	for _, n := range list {
		for line := range strings.Lines(n.Log(5000)) {
			if strings.Contains(line, "msg=group ") || strings.Contains(line, "handed over or given up") || strings.Contains(line, "late to take over") || strings.Contains(line, "closed and opened again") {
				l[strings.TrimSpace(line)+" ("+n.Name+")"] = true
			}
		}
	}
}

func (l timeline) String() string { return strings.Join(slices.Sorted(maps.Keys(l)), "\n") }

// TestPairPreferred: with `prefer` a group goes home when the preferred gateway is back and whole, and not before, and costs no connection. One that is drained stays away, also from a group whose
// owner dies: then nobody serves it until an operator says so, who knows why the node was drained.
func TestPairPreferred(t *testing.T) { pairJudged(t, preferred) }

func preferred(t *testing.T, l *quiet.Limits) {
	p := newPair(t, "pair", "prefer = true\n")
	p.limits = l
	p.byLinkLocal()
	p.start()
	p.serve(5*time.Second, p.GW1)
	const count = 10
	conns, outside := p.hold(count)
	p.protected(p.GW1)
	time.Sleep(apart)
	var events []event
	u := p.usage(p.GW1)
	time.Sleep(500 * time.Millisecond) // what is counted is brought to the other gateway ten times a second
	u.goesOn(p.usage(p.GW1))
	dies := event{what: "kill -9 of gw1", from: time.Now(), least: time.Millisecond, most: 400 * time.Millisecond}
	p.GW1.Kill()
	p.serve(5*time.Second, p.GW2)
	time.Sleep(apart)
	dies.to = time.Now()
	time.Sleep(500 * time.Millisecond)
	u.goesOn(p.usage(p.GW2))
	home := event{what: "gw1 is back, and the group goes home", from: time.Now(), most: 150 * time.Millisecond}
	check(t, p.GW1.Start(t.Context()))
	p.owned(p.GW1, "prefer", "gw2")
	p.serve(5*time.Second, p.GW1)
	home.to = time.Now()
	p.protected(p.GW1)
	time.Sleep(apart)
	drain := event{what: "node drain gw1", from: time.Now(), most: 150 * time.Millisecond}
	_, err := p.GW2.Run(t.Context(), "node", "drain", "gw1")
	check(t, err)
	u.goesOn(p.usage(p.GW1))
	p.owned(p.GW2, "drain", "gw1")
	p.serve(5*time.Second, p.GW2)
	u.goesOn(p.usage(p.GW2))
	time.Sleep(2 * time.Second) // its copy is whole long before that, and it is the preferred one
	drain.to = time.Now()
	u.goesOn(p.usage(p.GW2))
	if g, err := p.says(p.GW2); err != nil || !g.Serving || !slices.Contains(g.Why, "gw1 is drained") {
		p.wrong("gw1 is drained, and gw2 says %+v, %v", g, err)
	}
	forced := event{what: "kill -9 of gw2, and 1.5 s later force", from: time.Now(), least: 1500 * time.Millisecond, most: 4 * time.Second}
	p.GW2.Kill()
	time.Sleep(1500 * time.Millisecond)
	if g, err := p.says(p.GW1); err != nil || g.Serving || g.Owner != "gw2" {
		t.Errorf("gw1 is drained, gw2 dead, and gw1 says %+v, %v", g, err)
	}
	_, err = p.GW1.Run(t.Context(), "group", "take", nodes.PairGroup, "--force")
	check(t, err)
	p.serve(5*time.Second, p.GW1)
	time.Sleep(apart)
	forced.to = time.Now()
	_, err = p.GW1.Run(t.Context(), "node", "undrain", "gw1")
	check(t, err)
	check(t, p.GW2.Start(t.Context()))
	p.protected(p.GW1)
	p.release(count, conns, outside)
	seen, v := p.end()
	events = append(events, dies, home, drain, forced)
	p.held(seen, events)
	p.turns(v, "gw1 gw2 gw1 gw2 gw1")
	if n := len(seen.Moved()); n > 0 {
		t.Errorf("%d flows have another public port now", n)
	}
}

// usage is what a gateway says that all of them have passed on for each tenant, which is billed.
type usage struct {
	t     testing.TB
	at    time.Time
	bytes map[string]uint64  // by tenant, both directions
	rate  map[string]float64 // bytes a second that hosts get, as measured first
}

func (p *pairLab) usage(n *nodes.Node) usage {
	p.t.Helper()
	u := usage{t: p.t, at: time.Now(), bytes: map[string]uint64{}, rate: map[string]float64{}}
	s, err := n.Status(p.t.Context())
	check(p.t, err)
	for _, x := range s.Tenants {
		u.bytes[x.Name] = x.Usage.Out.Bytes + x.Usage.In.Bytes
	}
	return u
}

// goesOn holds what is said later, by whichever gateway, against what was: nothing that was counted half a second before is forgotten, and all of it is not counted again. TestPairPortMAC has it to the byte.
func (u *usage) goesOn(now usage) {
	u.t.Helper()
	for name, was := range u.bytes {
		grown, took := float64(now.bytes[name])-float64(was), now.at.Sub(u.at).Seconds()
		if u.rate[name] == 0 {
			now.rate[name] = grown / took
		} else if now.rate[name] = u.rate[name]; grown < 0 || grown > 4*u.rate[name]*(took+0.25) { // figures are some tens of milliseconds old, and the first half second may have been a slow one
			u.t.Errorf("%s had used %d bytes, and %.1f s later %d, at some %.0f a second", name, was, took, now.bytes[name], u.rate[name])
		}
		u.t.Logf("%s has used %d bytes, %.0f more in %.2f s", name, now.bytes[name], grown, took)
	}
	*u = now
}

// owned waits until a gateway serves the group, for that cause ("" = any) and from that gateway.
func (p *pairLab) owned(n *nodes.Node, cause, from string) {
	p.t.Helper()
	var g api.Group
	var err error
	if !until(20*time.Second, func() bool {
		g, err = p.says(n)
		return err == nil && g.Serving
	}) || cause != "" && g.Cause != cause || g.From != from {
		p.wrong("%s is to own the group, from %s for the cause %q, and says %+v, %v", n.Name, from, cause, g, err)
		p.t.FailNow()
	}
}
