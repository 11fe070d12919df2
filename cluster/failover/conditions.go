package failover

import (
	"fmt"
	"math"
	"slices"
	"time"
)

func (n *Node) condition(e Condition, now Time) {
	if !slices.Contains(Conditions, e.Cause) {
		return
	}
	set := n.conds
	if e.Group != "" {
		set = n.group(e.Group).conds
	}
	was := map[string]bool{}
	for name, g := range n.groups {
		was[name] = n.has(g, CausePanics)
	}
	if set[e.Cause] = e.Count; e.Count <= 0 {
		delete(set, e.Cause)
	}
	for name, g := range n.groups {
		if !was[name] && n.has(g, CausePanics) {
			// A poison flow comes along with the group. Only the first node that it meets may pass it on, until it has been quiet for long.
			g.mayPanic = g.panicked == 0 || now.Sub(g.panicked) >= n.t.PanicRest
			g.panicked = max(now, 1)
		}
	}
}

func (n *Node) has(g *group, c Cause) bool { return n.conds[c] > 0 || g.conds[c] > 0 }

// faults counts what is against this node, panics apart: those follow the group.
func (n *Node) faults(g *group) (sum int) {
	for _, c := range Conditions {
		if c != CausePanics {
			sum += n.conds[c] + g.conds[c]
		}
	}
	return sum
}

// worst names the condition that a move is for.
func (n *Node) worst(g *group) Cause {
	for _, c := range Conditions {
		if n.has(g, c) {
			return c
		}
	}
	return CauseMove
}

// moved keeps account of moves that nobody asked for: a group that has moved stays for a while, each time twice as long.
func (n *Node) moved(g *group, before Ownership, now Time) {
	if before.Epoch == 0 || g.at.From == g.at.Node {
		return
	}
	if !slices.Contains(Conditions, g.at.Cause) && g.at.Cause != CausePrefer {
		return
	}
	if g.hold == 0 || now.Sub(g.lastMove) > 2*n.t.HoldMost {
		g.hold = n.t.HoldFirst
	} else {
		g.hold = min(2*g.hold, n.t.HoldMost)
	}
	g.lastMove, g.holdUntil = now, now.Add(g.hold)
}

// leaveCopy is for how long a node that ends waits for a copy that is equal: below Times.MaxLag, after which one that nothing is heard of is not in sync.
const leaveCopy = 500 * time.Millisecond

// consider looks for a node that serves the group better, by the same measures, and hands over to it. Never to nobody. What could wait waits for a copy that is equal; a node that has
// something against it serves worse than one whose ports rest.
func (n *Node) consider(g *group, now Time) {
	if n.has(g, CausePanics) {
		g.panicked = max(now, 1)
	}
	if g.until <= now { // without a majority nothing can be agreed on
		return
	}
	if slices.Contains(n.state.Drained, n.name) || n.leaving {
		anybody := func(string, View) bool { return true }
		own := n.faults(g)
		if n.leaving { // it serves no more, whatever there is against the others
			own = math.MaxInt
		}
		to := n.best(g, now, func(o string, v View) bool { return v.Faults <= own && n.copied(g, o, now) })
		if to == "" && n.leaving && now.Sub(n.left) > leaveCopy {
			to = n.best(g, now, anybody)
		}
		worse := n.best(g, now, anybody)
		switch {
		case to != "":
			n.hand(g, to, CauseDrain, now)
		case worse == "" && g.stuck != "drain":
			g.stuck = "drain"
			n.tell(g, "this node is to own nothing, and there is no node with a whole copy to hand over to: it serves on")
		case worse != "" && !n.leaving && g.stuck != "drain, worse":
			if v, _ := n.view(worse, g); v.Faults > own {
				g.stuck = "drain, worse"
				n.tell(g, fmt.Sprintf("this node is to own nothing, and against %s count more conditions (%d) than against it (%d): it serves on", worse, v.Faults, own))
			}
		}
		return
	}
	if now < g.holdUntil {
		if to := n.rescue(g, now); to != "" {
			n.hand(g, to, n.worst(g), now)
			return
		}
		if words := n.stays(g, now); words == "" {
			g.stuck = ""
		} else if g.stuck != "hold" {
			g.stuck = "hold"
			n.tell(g, words)
		}
		return
	}
	g.stuck = ""
	own, panics := n.faults(g), n.has(g, CausePanics)
	if own > 0 {
		if to := n.best(g, now, func(_ string, v View) bool { return v.Faults < own }); to != "" {
			n.hand(g, to, n.worst(g), now)
			return
		}
	}
	if panics && g.mayPanic {
		if to := n.best(g, now, func(_ string, v View) bool { return v.Faults <= own && !v.Panics }); to != "" {
			n.hand(g, to, CausePanics, now)
			return
		}
	}
	if i := slices.Index(g.conf.Nodes, n.name); g.conf.Prefer && i > 0 && !panics {
		to := n.best(g, now, func(o string, v View) bool { return v.Faults <= own && !v.Panics && n.copied(g, o, now) })
		if j := slices.Index(g.conf.Nodes, to); j >= 0 && j < i {
			n.hand(g, to, CausePrefer, now)
		}
	}
}

// rescue is the node that a group goes to although it has moved not long ago: something outside is broken here (a port, all routers, a policy that cannot be served), which each node sees for itself whether it
// serves or not, and there it is well. What packets may have brought along, a worker that is stuck and panics, would follow the group: a worker that is stuck counts unless the group has come here because of one. It cannot
// wait, since its copies are out of sync soon, and who has none in sync hands over to nobody. What is known of the other node is to be of after the last move.
func (n *Node) rescue(g *group, now Time) string {
	outside := 0
	for _, c := range []Cause{CausePort, CauseUplink, CausePolicy} {
		outside += n.conds[c] + g.conds[c]
	}
	if g.at.Cause != CauseWorker {
		outside += n.conds[CauseWorker] + g.conds[CauseWorker]
	}
	if outside == 0 || now.Sub(g.lastMove) < 2*n.t.Lease {
		return ""
	}
	return n.best(g, now, func(_ string, v View) bool { return v.Faults == 0 && !v.Panics })
}

// stays says that a group would go to a better node and does not yet, since it has moved not long ago; "" = nothing is better, or nothing holds it.
func (n *Node) stays(g *group, now Time) string {
	own := n.faults(g)
	if own == 0 || now >= g.holdUntil || n.rescue(g, now) != "" {
		return ""
	}
	to := n.best(g, now, func(_ string, v View) bool { return v.Faults < own })
	if to == "" {
		return ""
	}
	return fmt.Sprintf("conditions against its owner, %s: %d; against %s there are fewer, but the group has moved because of one %s ago and stays for another %s: `demarc group move %s %s` moves it at once",
		n.name, own, to, now.Sub(g.lastMove).Round(100*time.Millisecond), g.holdUntil.Sub(now).Round(100*time.Millisecond), g.name, to)
}

// best is the best node of those that live, are in sync, may own the group and are good enough; "" = there is none.
func (n *Node) best(g *group, now Time, good func(string, View) bool) (name string) {
	var best View
	for _, o := range g.conf.Nodes {
		v, ok := n.view(o, g)
		if o == n.name || !ok || v.Leaving || !n.alive(o, now) || !slices.Contains(g.at.InSync, o) || !v.Whole || slices.Contains(n.state.Drained, o) || n.still(o) || !good(o, v) {
			continue
		}
		if name == "" || v.Faults < best.Faults || v.Faults == best.Faults && best.Panics && !v.Panics {
			name, best = o, v
		}
	}
	return name
}

func (n *Node) view(name string, g *group) (v View, ok bool) {
	p := n.peers[name]
	if p == nil {
		return v, false
	}
	v, ok = p.views[g.name]
	return v, ok
}

// still reports whether a node's log takes no entries, as far as is known: nothing can be agreed on with it, and it hears of nothing that is.
func (n *Node) still(name string) bool {
	if name == n.name {
		return n.stands
	}
	p := n.peers[name]
	return p != nil && p.stands
}

func standsWords(name string) string {
	return "the log of " + name + " takes no entries (its disk refuses them, or it is stopped: `demarc status` there)"
}

// hand proposes that another node is the owner. This one serves until that is agreed on, by its lease alone: it might not hear of it.
func (n *Node) hand(g *group, to string, c Cause, now Time) {
	n.passes(g)
	g.moving = &planned{to, g.at.Rev, now, Term{g.at.Epoch + 1, to, n.peers[to].life}, c}
	n.tell(g, fmt.Sprintf("handing over to %s: %s", to, c))
	n.propose(g, now, Entry{Kind: KindClaim, Term: g.moving.term, By: g.at.Term, Alone: n.want(g), Cause: c, Why: RightOwner})
}

// move is an operator's.
func (n *Node) move(g *group, to string, now Time) {
	why, soon := "", false
	switch v, known := n.view(to, g); {
	case !n.mine(g) || g.until <= now:
		soon = n.mine(g) // a lease that came late, or voters that are heard again since a moment ago
		why = "this node does not own the group with a majority behind it: ask the owner"
	case to == n.name:
		why = "this node owns the group already"
	case !slices.Contains(g.conf.Nodes, to):
		why = fmt.Sprintf("%s is not one of the group's nodes, which are %v", to, g.conf.Nodes)
	case slices.Contains(n.state.Drained, to):
		why = to + " is drained: end that first"
	case !known || !n.alive(to, now):
		why = "nothing is heard of " + to
	case v.Leaving:
		why = to + " is about to end"
	case n.still(to):
		why = standsWords(to) + ": it would not hear that the group is its own"
	case !slices.Contains(g.at.InSync, to) || !v.Whole || !n.copied(g, to, now):
		soon = true
		why = fmt.Sprintf("the copy of %s is not whole: sessions would be cut. Status says what it lacks; wait for it, or run `demarc group take %s --force` on %s, which cuts those that it does not have", to, g.name, to)
	case v.Faults > n.faults(g):
		why = fmt.Sprintf("%s has %d conditions against it, and this node %d: the group would come back at once. `demarc group` there says what they are", to, v.Faults, n.faults(g))
	case g.moving != nil:
		why = "it is being moved to " + g.moving.to
	}
	if why != "" {
		n.do(Tell{Group: g.name, Words: why, Refused: true, Soon: soon})
		return
	}
	n.hand(g, to, CauseMove, now)
}

// Moving is to whom this node has proposed to hand a group over, without its being agreed on yet; "" = to nobody.
func (n *Node) Moving(group string) string {
	if g := n.groups[group]; g != nil && g.moving != nil {
		return g.moving.to
	}
	return ""
}

// part is an owner's turn whose move is agreed on. Voters promise the heir nothing while the lease lasts or the term is not released, so going on until then costs nothing,
// and the heir hears of the log's word at its own time.
func (n *Node) part(g *group, now Time) {
	p := g.parting
	if g.serving && !p.asked && now < g.written {
		return
	}
	n.emit(g, 0, now)
	switch long := now.Sub(g.lapsed) > time.Second; {
	case p.done:
		if g.at.Epoch >= p.to.Epoch || long {
			g.parting = nil
		}
		return
	case g.closing && !long:
		return
	case g.closing || n.plant.unflushed:
	case p.flush == 0:
		p.flush, p.turn = now, g.turn
		n.do(Flush{Group: g.name, Peer: p.to.Node, Turn: p.turn})
		return
	case !p.flushed && now.Sub(p.flush) < n.t.Flush:
		return
	case !p.flushed:
		n.tell(g, fmt.Sprintf("%s has not said within %s that it has the last changes: what is missing is cut", p.to.Node, n.t.Flush))
	default:
		n.tell(g, fmt.Sprintf("handed over to %s: the workers had stopped after %s, and the last changes were done with %s later", p.to.Node, round(p.flush.Sub(g.lapsed)), round(now.Sub(p.flush))))
	}
	g.past, p.done = p.from, true
}

// round is a time as people read it.
func round(d time.Duration) time.Duration { return d.Round(100 * time.Microsecond) }

func (g *group) part(from, to Term, now Time) {
	if g.parting == nil || g.parting.from != from {
		g.parting = &parting{from: from, to: to, at: now}
	}
}

// heir takes in that a node asks for its first promise. If it is the one that this node is handing over to, it is ready, and its term agreed on, whether or not this node's log
// has come that far.
func (n *Node) heir(g *group, from string, t Term, now Time) {
	if g.moving != nil && g.moving.term == t && from == t.Node && n.mine(g) && g.serving {
		g.part(g.at.Term, t, now)
	}
	if p := g.parting; p != nil && p.to == t && from == t.Node {
		p.asked = true
	}
}

// Parts says whether this node is handing a group over and has still to bring the heir what changed to the end: what it has of the group stays its own until then.
func (n *Node) Parts(group string) bool {
	g := n.groups[group]
	return g != nil && g.parting != nil && !g.parting.done
}

// end gives up what could not be handed over, and what this node has claimed and may not hear of any more: nobody is to find an owner that is dead.
func (n *Node) end() {
	again := n.ended
	n.ended = true
	for _, name := range n.names {
		g := n.groups[name]
		switch {
		case again:
		case n.mine(g) && g.held && g.solo == 0 && g.parting == nil:
			g.leaves = Kept{Group: name, Term: g.at.Term}
		case !n.mine(g) && g.solo == 0: // it has come to nothing, or the log is not heard yet
			g.leaves = g.kept
		case n.mine(g) && g.here && g.solo == 0 && g.parting == nil: // it has had no lease yet
			g.leaves = Kept{name, g.at.Term, g.kept.At, g.kept.All && g.knows}
		case g.solo > 0 && (g.onward && g.at.Term == g.kept.Term || len(g.conf.Nodes) == 1 && g.conf.Nodes[0] == n.name):
			g.leaves = Kept{Group: name, Term: g.at.Term}
		}
		if g.flight.Epoch > g.at.Epoch && g.flightAt == g.at.Rev {
			g.never = g.flight
		}
		if g.parting != nil {
			g.parting.asked = true
		}
	}
}

// Left is what a node that has ended leaves to its next process: of groups that it had to the end, where no move away from it was agreed on as far as it has heard, and of what it was left itself and nobody has had since.
// Whether anybody has had a group since is for the next process to see, by the log. All is what it was for itself; of what it has served it is not known here.
func (n *Node) Left() map[string]Kept {
	all := map[string]Kept{}
	for name, g := range n.groups {
		k := g.leaves
		if n.ended && k.Term.Epoch > 0 && (k.Term == g.at.Term || k.Term.Epoch > g.at.Epoch) && g.parting == nil {
			all[name] = k
		}
	}
	return all
}

// Heirs is how many of the groups that this node serves are being handed over, or could be.
func (n *Node) Heirs() (sum int) {
	for _, g := range n.groups {
		if g.parting != nil && !g.parting.done {
			sum++
		} else if g.serving && n.mine(g) && (g.moving != nil || g.until > n.last && n.best(g, n.last, func(string, View) bool { return true }) != "") {
			sum++
		}
	}
	return sum
}

// Quiet says whether nothing is served and nothing is left to be said of it: a node that ends may go.
func (n *Node) Quiet() bool {
	for _, g := range n.groups {
		if g.serving || g.closing || g.past.Epoch > 0 || g.never.Epoch > 0 || g.words > 0 || g.parting != nil && !g.parting.done {
			return false
		}
	}
	return true
}

// Owns says which groups this node may emit for, and until when: what a node that leaves waits for.
func (n *Node) Owns() map[string]Term {
	all := map[string]Term{}
	for name, g := range n.groups {
		if g.serving {
			all[name] = n.me(g.epoch)
		}
	}
	return all
}

// Owner is the term of a group that is agreed on, and whether it is this very life of the node that has it.
func (n *Node) Owner(group string) (t Term, mine bool) {
	g := n.groups[group]
	if g == nil {
		return Term{}, false
	}
	return g.at.Term, n.mine(g)
}

// Terms are those that this life of the node has by agreement, whether it may emit at the moment or not: when it has ended, each of them is over.
func (n *Node) Terms() map[string]Term {
	all := map[string]Term{}
	for name, g := range n.groups {
		if n.mine(g) {
			all[name] = g.at.Term
		}
	}
	return all
}
