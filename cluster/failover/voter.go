package failover

import (
	"cmp"
	"time"
)

// promise is what this node as a voter has promised: that it helps nobody but the holder of the term until then, on its own clock.
type promise struct {
	Term
	until Time
}

// refused is a question for a promise that was not made.
type refused struct {
	from string
	Message
	at Time
}

// answer makes a promise that could not be made when it was asked for, as soon as it can be: the term before is released here, or this node hears that the new one is agreed on. Who asks would ask
// again, later. It counts from when it asked, and this promise is from now: longer than it needs. A question that is as old as the next but three is nobody's any more.
func (n *Node) answer(g *group, now Time) {
	q := g.refused
	if q == nil {
		return
	}
	if now.Sub(q.at) > n.t.Renew {
		g.refused = nil
		return
	}
	yes, gone := n.grant(g, q.from, q.Term, q.Voters, q.Lease, now)
	if !yes && !gone {
		return
	}
	n.send(q.from, Message{Kind: Promise, Group: g.name, Term: q.Term, Seq: q.Seq, Yes: yes, Gone: gone})
	g.refused = nil
}

// grant answers Renew. It is the whole of fencing: a voter has at most one live promise, and two majorities share a voter. The promise lasts for as long as who asks says that it will rely on it, since
// nodes of two releases may have two leases; lease 0 is who does not say it.
func (n *Node) grant(g *group, from string, t Term, voters uint64, lease time.Duration, now Time) (yes, gone bool) {
	if lease = cmp.Or(lease, Earlier); n.plant.ownLease {
		lease = n.t.Lease
	}
	switch {
	case n.young(now): // what it promised before it ended may still be relied on
		return false, false
	case from != n.name && n.busy(g, now): // this node emits for the group itself
		return false, false
	case from != n.name && n.behind: // it has restarted, and its log may have another owner, whom it helped before
		return false, false
	case from != n.name && n.past && !n.plant.ownForgets: // or it was the owner itself, and the term before that one is over
		return false, false
	case voters < n.voters.Version: // the owner counts by voters that are not the newest: its majority may not meet another's
		return false, false
	case lease < 0 || lease > Earlier: // others count on no promise being longer: see young
		return false, false
	case n.plant.noEpoch:
		g.promise = promise{t, now.Add(lease)}
		return true, false
	case t != g.at.Term || from != t.Node: // only a term that this node knows to be agreed on, and no other than the last one
		return false, false
	case t == g.rel: // a question that was on its way when the owner gave up
		return false, true
	case g.promise.Term != t && now < g.promise.until && g.promise.Term != g.rel && !n.plant.overlap:
		return false, false
	}
	until := now.Add(lease)
	if g.promise.Term == t {
		until = max(until, g.promise.until)
	}
	g.promise = promise{t, until}
	return true, false
}

// helps answers Ask: is the holder of the term still helped by this voter? A term that has just begun has time to ask for its first lease, and so has its owner when the voters have changed: a new
// one has been asked for nothing yet.
func (n *Node) helps(g *group, t Term, now Time) (free, gone bool) {
	if t != g.at.Term || n.young(now) || n.busy(g, now) {
		return false, false
	}
	if t == g.rel {
		return true, true
	}
	since := g.began
	if !n.plant.newFree {
		since = max(since, n.changed)
	}
	return now >= g.promise.until && now >= since.Add(2*n.t.Lease), false
}

// young: a voter that has started less than the longest lease ago. It has forgotten its promises, and others rely on them.
func (n *Node) young(now Time) bool { return now < n.quiet && !n.plant.noWait }

// busy: what this node's own data plane may emit counts as a promise too. Workers that have not said within a lease that they have stopped have
// found the deadline closed at any rate.
func (n *Node) busy(g *group, now Time) bool {
	return g.serving || g.closing && now < g.lapsed.Add(n.t.Lease)
}

// gone takes in a release. Only who had the term can give it up; its parent and its next life speak for it. One that nobody here has heard of yet is kept apart: what is
// agreed on may have been released too, and stays so whatever becomes of the other.
func (n *Node) gone(g *group, from string, t Term, now Time) {
	if from != t.Node || t.Epoch < g.rel.Epoch {
		return
	}
	if t.Epoch > g.at.Epoch {
		g.early = t
	} else {
		g.rel = t
	}
	g.nextRenew, g.nextAsk, g.nextPropose = now, now, now
}
