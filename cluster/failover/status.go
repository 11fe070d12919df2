package failover

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"
)

// Status is how a group stands, as this node knows it.
type Status struct {
	Ownership
	Serving bool
	Alone   bool          // without a majority
	Left    time.Duration // of this node's lease
	Gap     time.Duration // what a death of the owner would cost: a lease, a commit, a round trip to the voter that makes the majority. 0 = there is nobody to take over
	Why     []string      // why the group is not protected now; empty = it is

	Against map[Cause]int // what counts against this node, and how often
	MayTake []string      // at the owner: whose copy is in sync by agreement, or may come to be without another Copied
}

// Status of a group. commit is how long one takes.
func (n *Node) Status(name string, commit time.Duration, now Time) Status {
	g := n.groups[name]
	if g == nil {
		return Status{Why: []string{"no such group is known here"}}
	}
	now = max(now, n.last)
	s := Status{Ownership: g.at, Serving: g.serving && now < g.written, Against: map[Cause]int{}}
	if n.mine(g) {
		s.MayTake = n.mayTake(g, now)
	}
	for _, c := range Conditions {
		if sum := n.conds[c] + g.conds[c]; sum > 0 {
			s.Against[c] = sum
		}
	}
	if s.Serving {
		s.Left = max(g.until.Sub(now), 0)
		s.Alone = g.until <= now
		if g.parting != nil { // by the lease that it had
			s.Left, s.Alone = g.written.Sub(now), false
		}
	}
	why := func(format string, args ...any) { s.Why = append(s.Why, fmt.Sprintf(format, args...)) }
	elsewhere := n.elsewhere(g)
	switch v, ok := n.view(g.at.Node, g); {
	case elsewhere != "":
		s.Why = append(s.Why, elsewhere)
	case g.at.Epoch == 0:
		why("nobody has owned it yet")
	case g.at.Node == n.name && !s.Serving:
		s.Why = append(s.Why, n.idle(g, now))
	case g.at.Node != n.name && (!ok || !n.alive(g.at.Node, now)):
		why("nothing is heard of its owner, %s", g.at.Node)
	case g.at.Node != n.name && !v.Serving:
		why("its owner, %s, has no lease", g.at.Node)
	}
	if v, ok := n.view(g.at.Node, g); g.stuck == "stale" && !s.Serving && g.at.Node != n.name && !(ok && v.Serving && n.alive(g.at.Node, now)) {
		s.Why = append(s.Why, n.waits(g, now))
	}
	if s.Serving && n.mine(g) {
		if words := n.stays(g, now); words != "" {
			s.Why = append(s.Why, words)
		}
	}
	if s.Alone {
		why("it is served without a majority: nothing can be agreed on, so nobody can take over")
	}
	if g.at.Epoch > 0 {
		switch {
		case g.at.Alone == Auto:
			why("without a majority its owner serves on, and the other node takes over as soon as it hears nothing of it (auto): where every path between the two is cut, both serve")
		case g.at.Alone == Keep && len(n.voters.Names) <= 2:
			why("without a majority its owner serves on (keep), and of two votes neither is one: when the owner is gone nobody serves it before `demarc group take %s --force`", g.name)
		case g.at.Alone == Keep:
			why("without a majority its owner serves on (keep): nobody takes over without proof that it has stopped")
		}
	}
	ready := 0
	far := time.Duration(0)
	var others []string
	for _, o := range g.conf.Nodes {
		if o == g.at.Node {
			continue
		}
		w := n.unready(g, o, now)
		trip, alone := n.without(g, o, now)
		if w == "" && g.at.Alone == Fence { // else it is said above what holds
			w = alone
		}
		switch {
		case w != "":
			if !slices.Contains(others, w) {
				others = append(others, w)
			}
		case ready == 0 || trip < far:
			ready, far = ready+1, trip
		default:
			ready++
		}
	}
	switch {
	case len(g.conf.Nodes) < 2:
		why("it has no other node")
	case ready == 0: // one is enough
		s.Why = append(s.Why, others...)
	case g.at.Alone == Fence && !s.Alone:
		s.Gap = n.t.Lease + commit + far
	}
	return s
}

// idle says why this node, which the log has as the group's owner, does not serve it.
func (n *Node) idle(g *group, now Time) string {
	switch {
	case n.deaf:
		return "this node is its owner and takes no part, because its messages cannot be carried"
	case !slices.Contains(g.conf.Nodes, n.name):
		return "this node was its last owner, and the policy does not name it any more"
	case n.mine(g):
		return "this node is its owner and has no lease: a majority of the voters does not answer"
	case slices.Contains(n.state.Drained, n.name):
		return "an earlier process of this node was its owner, and the node is drained: it takes it by `demarc node undrain` or by `demarc group take " + g.name + " --force`"
	case g.stuck == "stale":
		return n.waits(g, now)
	}
	return "an earlier process of this node was its owner, and this one has not taken it: a majority of the voters does not answer, or another node may come to have it"
}

// waits says that this node does not take a group over since its copy is not whole, and that this is to be waited for.
func (n *Node) waits(g *group, now Time) string {
	return "this node could take over, but its copy is not whole (" + n.age(g, now) + ") and the group is to wait: `demarc group take " + g.name + " --force` on it does it, and what is not in the copy is lost"
}

// unready says why a node could not take over without loss; "" = it could.
func (n *Node) unready(g *group, name string, now Time) string {
	v, ok := n.view(name, g)
	ok = ok && n.alive(name, now)
	if name == n.name {
		v, ok = View{Whole: n.whole(g, now), Faults: n.faults(g)}, true
	}
	switch {
	case slices.Contains(n.state.Drained, name):
		return name + " is drained"
	case !ok:
		return "nothing is heard of " + name
	case v.Leaving:
		return name + " is about to end"
	case n.still(name):
		return standsWords(name) + ": it could not take over"
	case !v.Whole || !slices.Contains(g.at.InSync, name):
		return NotInSync(name)
	case v.Faults > 0:
		return fmt.Sprintf("%s has %d conditions against it", name, v.Faults)
	}
	return ""
}

// NotInSync is what Status says of a node whose copy is not.
func NotInSync(node string) string { return "the copy of " + node + " is not in sync" }

// Trips tells how long messages to other members and their answers take. Whoever is left out is not measured. It is for Status alone: what is decided goes by promises.
func (n *Node) Trips(all map[string]time.Duration) {
	for name, p := range n.peers {
		p.path = all[name]
	}
}

// trip is the round trip to a member; 0 = not known.
func (n *Node) trip(name string) time.Duration {
	p := n.peers[name]
	if p == nil || name == n.name {
		return 0
	}
	return cmp.Or(p.path, p.trip)
}

// measured reports whether it is known how far a member is.
func (n *Node) measured(name string) bool { return name == n.name || n.trip(name) > 0 }

// without says what an heir's majority would be like when the owner is gone: how far the voter is that completes it, and why there would be none in time. A node knows its own
// distances: the one between two others is the difference of theirs at least.
func (n *Node) without(g *group, heir string, now Time) (trip time.Duration, why string) {
	need := n.majority()
	if n.votes(heir) {
		need--
	}
	type voter struct {
		name      string
		far, here time.Duration // from the heir, from this node
	}
	var all []voter
	var silent, still []string
	for _, v := range n.voters.Names {
		far := time.Duration(0)
		if n.measured(v) && n.measured(heir) {
			far = (n.trip(v) - n.trip(heir)).Abs()
		}
		switch {
		case v == heir || v == g.at.Node:
		case v != n.name && !n.alive(v, now):
			silent = append(silent, v)
		case n.still(v):
			still = append(still, v)
		default:
			all = append(all, voter{v, far, max(n.trip(v), far)})
		}
	}
	slices.SortStableFunc(all, func(a, b voter) int { return cmp.Compare(a.far, b.far) })
	switch {
	case need <= 0:
		return 0, ""
	case len(all) < need && len(still) > 0:
		return 0, standsWords(strings.Join(still, " and ")) + ": without its owner those that are left could agree on nothing"
	case len(all) < need && len(silent) == 0:
		return 0, "without its owner those that are left are no majority: a witness is missing"
	case len(all) < need:
		return 0, "nothing is heard of " + strings.Join(silent, " and ") + ": without its owner those that are left are no majority"
	}
	for _, v := range all[:need] {
		trip = max(trip, v.here)
	}
	last := all[need-1]
	if last.far > n.t.Reach() {
		return trip, fmt.Sprintf("%s is too far away: without its owner it completes the majority, and between it and %s a round trip takes %s at least, where a lease allows %s",
			last.name, heir, last.far.Round(time.Millisecond), n.t.Reach().Truncate(time.Millisecond))
	}
	return trip, ""
}

// Groups are those that the policy or the log knows. One that the policy does not know has no nodes.
func (n *Node) Groups() map[string]Group {
	out := map[string]Group{}
	for name, g := range n.groups {
		if len(g.conf.Nodes) > 0 || g.at.Epoch > 0 {
			out[name] = g.conf
		}
	}
	return out
}

// Ended says that the policy has no such group any more. What is agreed on of it stays in the log, for its epochs only go up; nobody serves it, and nobody is to.
func (n *Node) Ended(name string) bool {
	g := n.groups[name]
	return g != nil && n.told && len(g.conf.Nodes) == 0 && !g.serving
}

// Idle says that there is no group, so that nothing has to happen in time.
func (n *Node) Idle() bool { return len(n.groups) == 0 }

// Rests says that there is nobody to tell anything either, so that nothing happens by time alone.
func (n *Node) Rests() bool { return n.Idle() && len(n.others) == 0 }

// Drained are those of some nodes that are to own nothing.
func (n *Node) Drained(of []string) (out []string) {
	for _, o := range of {
		if slices.Contains(n.state.Drained, o) {
			out = append(out, o)
		}
	}
	return out
}
