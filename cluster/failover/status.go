package failover

import (
	"fmt"
	"slices"
	"time"
)

// Status is how a group stands, as this node knows it.
type Status struct {
	Ownership
	Serving bool
	Alone   bool          // without a majority
	Left    time.Duration // of this node's lease
	Gap     time.Duration // what a death of the owner would cost: a lease, a commit, a round trip to the nearest voter. 0 = there is nobody to take over
	Why     []string      // why the group is not protected now; empty = it is

	Against map[Cause]int // what counts against this node, and how often
}

// Status of a group. commit is how long one takes.
func (n *Node) Status(name string, commit time.Duration, now Time) Status {
	g := n.groups[name]
	if g == nil {
		return Status{Why: []string{"no such group is known here"}}
	}
	now = max(now, n.last)
	s := Status{Ownership: g.at, Serving: g.serving && now < g.written, Against: map[Cause]int{}}
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
		why("this node is its owner and has no lease: a majority of the voters does not answer")
	case g.at.Node != n.name && (!ok || !n.alive(g.at.Node, now)):
		why("nothing is heard of its owner, %s", g.at.Node)
	case g.at.Node != n.name && !v.Serving:
		why("its owner, %s, has no lease", g.at.Node)
	}
	if s.Serving && n.mine(g) {
		if words := n.stays(g, now); words != "" {
			s.Why = append(s.Why, words)
		}
	}
	if s.Alone {
		why("it is served without a majority: nothing can be agreed on, so nobody can take over")
	}
	if g.at.Alone != Fence && g.at.Epoch > 0 {
		why("its owner serves on without a majority (%s): nobody takes over without proof that it has stopped", g.at.Alone)
	}
	ready := 0
	var others []string
	for _, o := range g.conf.Nodes {
		if o == g.at.Node {
			continue
		}
		if w := n.unready(g, o, now); w != "" {
			others = append(others, w)
		} else {
			ready++
		}
	}
	switch {
	case len(g.conf.Nodes) < 2:
		why("it has no other node")
	case ready == 0: // one is enough
		s.Why = append(s.Why, others...)
	case g.at.Alone == Fence && !s.Alone:
		s.Gap = n.t.Lease + commit + n.nearest()
	}
	return s
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
	case !v.Whole || !slices.Contains(g.at.InSync, name):
		return NotInSync(name)
	case v.Faults > 0:
		return fmt.Sprintf("%s has %d conditions against it", name, v.Faults)
	}
	return ""
}

// NotInSync is what Status says of a node whose copy is not.
func NotInSync(node string) string { return "the copy of " + node + " is not in sync" }

// nearest is how long the fastest voter took to answer last.
func (n *Node) nearest() (d time.Duration) {
	for _, v := range n.voters.Names {
		if p := n.peers[v]; p != nil && p.trip > 0 && (d == 0 || p.trip < d) {
			d = p.trip
		}
	}
	return d
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

// Idle says that there is no group, so that nothing has to happen in time.
func (n *Node) Idle() bool { return len(n.groups) == 0 }

// Drained are those of some nodes that are to own nothing.
func (n *Node) Drained(of []string) (out []string) {
	for _, o := range of {
		if slices.Contains(n.state.Drained, o) {
			out = append(out, o)
		}
	}
	return out
}
