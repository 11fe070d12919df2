package failover

import (
	"fmt"
	"slices"
	"strings"
	"time"
)

// follow is the turn of a node that does not own the group: should it?
func (n *Node) follow(g *group, now Time) {
	if !slices.Contains(g.conf.Nodes, n.name) || !n.known || g.at.Rev == 0 && n.behind || n.ended {
		g.since = 0
		return
	}
	if g.kept.Term.Epoch > 0 && n.served(g, now) && !n.plant.keptAnyway {
		g.kept = Kept{}
	}
	if g.forced > 0 {
		n.push(g, now)
		return
	}
	if slices.Contains(n.state.Drained, n.name) || n.leaving {
		g.since = 0
		return
	}
	if words := n.elsewhere(g); words != "" {
		if g.since = 0; g.apart == 0 {
			g.apart = max(now, 1)
		}
		if now.Sub(g.apart) > 10*n.t.Lease && g.stuck != words { // who joins, or reads its log, is told of the others soon
			g.stuck = words // others may be missing later
			n.do(Tell{Group: g.name, Words: words, Warn: true})
		}
		return
	}
	g.apart = 0
	n.ask(g, now)
	right, cause := n.right(g, now)
	if right == "" || n.served(g, now) {
		g.since = 0
		return
	}
	if g.since == 0 {
		g.since = max(now, 1)
	}
	wait, stale, ok := n.turn(g, now)
	if !ok || now.Sub(g.since) < wait {
		return
	}
	if right == RightSolo {
		n.goAlone(g, now, cause)
		return
	}
	if now >= g.nextPropose {
		next := n.nextEpoch(g)
		if g.claimed != next {
			g.claimed = next
			n.tell(g, fmt.Sprintf("claiming epoch %d: %s", g.claimed, cause))
		}
		if n.plant.earlyWord {
			n.do(Announce{Group: g.name, Epoch: next})
		}
		n.propose(g, now, Entry{Kind: KindClaim, Term: n.me(next), Alone: n.want(g), Cause: cause, Why: right, Stale: stale || n.keptAll(g)}) // the log does not know what is kept
	}
}

// nextEpoch is that of the term behind the one that is agreed on. The first of a group is behind those of all other groups there have been: what nodes know of copies and ports goes by a group's id, which may have been
// another group's, and epochs of an id only rise.
func (n *Node) nextEpoch(g *group) uint64 {
	if g.at.Epoch > 0 {
		return g.at.Epoch + 1
	}
	most := uint64(0)
	for _, o := range n.state.Groups {
		most = max(most, o.Epoch)
	}
	return most + 1
}

// elsewhere says why a group that nobody here has owned may have an owner all the same; "" = it cannot. A node that was started before it has joined, or whose directory was moved away, is a
// cluster of its own and knows nothing of the one that serves. So the first term of all needs a majority of the group's nodes among those that vote here: of two clusters one has it at most.
func (n *Node) elsewhere(g *group) string {
	if g.at.Epoch > 0 || n.plant.firstAlone {
		return ""
	}
	var here, missing []string
	for _, o := range g.conf.Nodes {
		if n.votes(o) {
			here = append(here, o)
		} else {
			missing = append(missing, o)
		}
	}
	if len(here) > len(g.conf.Nodes)/2 {
		return ""
	}
	return fmt.Sprintf("nobody serves it: of its nodes (%s) only %d of %d vote in this cluster, and the others may serve it in one of their own. Have %s join (demarc cluster join), or name other nodes in the policy; if certainly no other node serves it: `demarc group take %s --force` here",
		strings.Join(g.conf.Nodes, ", "), len(here), len(g.conf.Nodes), strings.Join(missing, " and "), g.name)
}

// ask finds out whether the voters still help the owner, once it is silent for half a lease. A node that cannot hear the owner is no proof: a link
// between the two may be all that is broken.
func (n *Node) ask(g *group, now Time) {
	if g.at.Epoch == 0 || now < g.nextAsk {
		return
	}
	v, known := n.view(g.at.Node, g)
	p := n.peers[g.at.Node]
	silent := g.at.Node == n.name || g.rel == g.at.Term || !known || now.Sub(p.heard) > n.t.Lease/2 || !v.Serving
	if !silent {
		clear(g.free)
		return
	}
	g.nextAsk = now.Add(n.t.Ask)
	if len(g.free) > 0 && g.since > 0 && now.Sub(g.since) > 10*n.t.Lease {
		g.nextAsk = now.Add(n.t.Renew) // it will be a while
	}
	n.seq++
	g.sent = append(g.sent, question{n.seq, now})
	if len(g.sent) > 64 {
		g.sent = slices.Clone(g.sent[32:])
	}
	for _, o := range n.others { // who has no vote may have a copy
		if n.votes(o) || slices.Contains(g.conf.Nodes, o) {
			n.send(o, Message{Kind: Ask, Group: g.name, Term: g.at.Term, Seq: n.seq})
		}
	}
	if n.votes(n.name) {
		free, gone := n.helps(g, g.at.Term, now)
		g.free[n.name] = answer{at: now, free: free, gone: gone}
	}
}

func (n *Node) freed(g *group, from string, m Message) {
	i := slices.IndexFunc(g.sent, func(q question) bool { return q.seq == m.Seq })
	if m.Term != g.at.Term || m.Seq < n.floor || i < 0 {
		return
	}
	if at := g.sent[i].at; at >= g.free[from].at {
		g.free[from] = answer{at, m.Yes, m.Gone, m.Bare}
	}
}

// right is what gives this node the right to the group, so far as it can know; the log has the last word. "" = nothing does.
func (n *Node) right(g *group, now Time) (Right, Cause) {
	if g.at.Epoch == 0 {
		return RightExpired, CauseFirst
	}
	free, gone := 0, n.over(g, now)
	for v, a := range g.free {
		if n.votes(v) && now.Sub(a.at) <= n.t.Lease && a.free {
			free++
		}
	}
	most := n.majority() > 0 && free >= n.majority()
	switch {
	case n.lonely(g, now): // a claim would go nowhere
		return RightSolo, CauseSilence
	case gone:
		return RightReleased, CauseReleased
	case most && (g.at.Alone == Fence || g.at.Node == n.name || n.plant.keepTakes):
		if n.plant.keepTakes {
			return RightReleased, CauseLease
		}
		return RightExpired, CauseLease
	}
	return "", ""
}

// over says whether the term that is agreed on was released, as this node or a voter has heard.
func (n *Node) over(g *group, now Time) bool {
	gone := g.rel == g.at.Term
	for v, a := range g.free {
		gone = gone || a.gone && n.votes(v) && now.Sub(a.at) <= n.t.Lease
	}
	return gone
}

// served says whether somebody that lives serves the group under a later epoch than is agreed on: that will be agreed on next.
func (n *Node) served(g *group, now Time) bool {
	for _, o := range n.others {
		if v, ok := n.view(o, g); ok && n.alive(o, now) && v.Serving && v.Epoch > g.at.Epoch {
			return true
		}
	}
	return false
}

// lonely says whether this node may go on without a majority: it hears nobody at all, and either the group's choice is auto, or it was the owner
// itself before it restarted and nobody else can have become it, because there is no majority without this node's own log.
func (n *Node) lonely(g *group, now Time) bool {
	if len(n.voters.Names) != 2 || !n.votes(n.name) || n.behind {
		return false
	}
	if !(g.at.Alone == Auto || g.at.Alone == Keep && g.at.Node == n.name) {
		return false
	}
	for _, o := range n.others {
		heard, proof := n.awake, n.logged
		if p := n.peers[o]; p != nil {
			heard, proof = max(heard, p.heard), max(proof, p.met)
		}
		if now.Sub(heard) <= n.t.Lease*6/5 {
			return false
		}
		// Two cannot agree on anything unless both live. So where the log goes on, or its own messages come through, and beats do not, the other one is there, and it has the group: it is not taken from it by silence, else
		// each would take it from the other as often as a claim is agreed on. Who dies, dies for the log too: then nothing of it comes for long after its last beat. For so long and no longer: a node that cannot say anything
		// (Deaf), or whose driver hangs, lives for the log and serves nobody.
		if g.at.Node == o && proof > heard.Add(n.patience()) && now.Sub(proof) <= 10*n.t.Lease && now.Sub(heard) <= 250*n.t.Lease {
			return false
		}
	}
	return true
}

func (n *Node) goAlone(g *group, now Time, cause Cause) {
	g.knows, g.here, g.onward = n.whole(g, now), false, false
	if n.keptAll(g) { // another one may have served without agreement, by an operator's force
		g.here = true
		g.knows, g.onward, g.lapsed = g.kept.All && len(g.conf.Nodes) == 1, cause != CauseForce, max(g.lapsed, g.kept.At)
	}
	n.tell(g, fmt.Sprintf("serving alone, without a majority: %s; the copy is %s", cause, n.age(g, now)))
	g.solo = n.nextEpoch(g)
	g.yield, g.since, g.forced = 0, 0, 0
	g.nextPropose = now
}

// keptAll says whether this node has all sessions of a group because the term that is agreed on was an earlier life's of its own, which has left them to it as it ended. Whoever was owner since would have a term. Where
// another one may serve without one by itself (auto), it would not show; who was made to serve without one, by force, an operator has answered for.
func (n *Node) keptAll(g *group) bool {
	if n.plant.keptAnyway && g.kept.Term.Epoch > 0 && g.at.Term != n.me(g.at.Epoch) {
		return true
	}
	return g.at.Epoch > 0 && g.at.Term == g.kept.Term && (g.at.Alone != Auto || len(g.conf.Nodes) == 1)
}

// whole says whether this node's copy is in sync: the owner must have said so, and a digest must have been equal not long ago.
func (n *Node) whole(g *group, now Time) bool {
	if n.mine(g) {
		return g.serving
	}
	if g.at.Epoch > 0 && g.at.Term == n.me(g.at.Epoch) || n.keptAll(g) { // it gave the term up, and nobody has had another since
		return true
	}
	return g.marker > 0 && g.marked == g.at.Epoch && now.Sub(g.marker) <= n.t.MaxMarker && slices.Contains(g.at.InSync, n.name)
}

// lacks says why this node, whose the term is that begins, does not know all that owners before it have used; "" = it does: nobody was owner before, or it was this node's turn directly behind a term whose owner had
// said that this copy is in sync. The log says so of the state just before, and this process must have had a digest of that very owner's, and have heard not long ago that it serves: what an earlier life of it had is
// gone, and who serves without a majority uses things a while later that nobody was told of. An owner that goes by its lease does not, for Times.Waits behind a digest
// that was equal: so where it fences it is enough that it was heard of, and an election that takes a second makes nobody forget.
func (n *Node) lacks(g *group, o Ownership, now Time) string {
	was := g.at.Node
	last := g.marker
	if g.at.Alone == Fence && now.Sub(last) <= n.t.Waits && !n.plant.digestOnly {
		last = max(last, g.seen)
	}
	switch {
	case g.at.Epoch == 0 && o.From == "":
		return ""
	case o.Epoch != g.at.Epoch+1:
		return fmt.Sprintf("of epoch %d, which was before this one, nothing was heard here", o.Epoch-1)
	case g.at.Term == n.me(g.at.Epoch): // nobody was in between
		if g.knows {
			return ""
		}
		return "nor was it when this node began its term before"
	case o.Rev != g.at.Rev+1:
		return "something else was agreed on in between, and heard of here at the same time"
	case n.keptAll(g) && g.kept.All:
		return ""
	case n.keptAll(g):
		return "what rested as an earlier life of this node ended is not known"
	case was == n.name:
		return "what an earlier life of this node had is gone"
	case g.digest != g.at.Epoch:
		return "the copy here was never equal to that of " + was + " in its term"
	case !slices.Contains(g.at.InSync, n.name):
		return "the copy here was not in sync with that of " + was
	case now.Sub(last) > n.t.MaxMarker:
		return fmt.Sprintf("the copy here was equal to that of %s %s, and %s not heard of since", was, n.age(g, now), was)
	}
	return ""
}

// Known is how much the node that begins to serve a group knows of what owners before it have used, of public ports above all.
type Known struct {
	All  bool // each thing that may be in use: the owner before waited for this node's word before it used one
	Here bool // this node itself was the owner before, and its process has left what it had to this one. With All nobody else has used anything since
	Last Time // when it last had all of it; 0 = never

	Unagreed bool // it serves without anybody's agreement: others may have owned the group since it did itself
}

// Knows is that of a group that this node is about to serve.
func (n *Node) Knows(group string) (k Known) {
	if g := n.groups[group]; g != nil {
		k.All, k.Here, k.Last, k.Unagreed = g.knows, g.here, max(g.marker, g.lapsed), g.solo > 0
	}
	return k
}

func (n *Node) age(g *group, now Time) string {
	if g.marker == 0 {
		return "none"
	}
	return "of " + now.Sub(g.marker).Round(time.Millisecond).String() + " ago"
}

// turn says how long this node leaves others first, and whether it may take over at all. One that is heard of and better has time to do it. One
// that is in sync but not heard of keeps only a stale one waiting.
func (n *Node) turn(g *group, now Time) (wait time.Duration, stale, ok bool) {
	whole := n.whole(g, now) || g.at.Epoch == 0
	stale = !whole
	if stale && n.plant.staleTakes {
		return 0, true, true
	}
	if stale && !g.conf.Stale && !n.nothingLeft(g, now) && !n.onlyCopy(g, now) {
		if g.stuck != "stale" {
			g.stuck = "stale"
			n.tell(g, n.waits(g, now))
		}
		return 0, true, false
	}
	for i, o := range g.conf.Nodes {
		if o == n.name || slices.Contains(n.state.Drained, o) {
			continue
		}
		v, known := n.view(o, g)
		live := known && n.alive(o, now)
		if live && v.Leaving {
			continue
		}
		if o == g.at.Node && known && n.peers[o].life == g.at.Life && n.over(g, now) {
			continue // this very life of it has given the group up, most likely by its death: it was heard a moment ago and does not come back
		}
		in := slices.Contains(g.at.InSync, o) && (!live || v.Whole) || o == g.at.Node && live && v.Whole && v.Epoch == g.at.Epoch // who was left all by its own last life
		switch {
		case stale && o == g.at.Node && !live && now < n.listens.Add(2*Earlier): // nobody was heard yet, and it may be back with all that it had
			return 0, true, false
		case stale && in && live:
			wait = max(wait, 20*n.t.Lease)
		case stale && in:
			wait = max(wait, 4*n.t.Lease)
		case live && (in || stale || g.at.Epoch == 0) && n.ahead(g, o, v, i):
			wait = max(wait, 2*n.t.Lease)
		case g.at.Epoch == 0 && i < slices.Index(g.conf.Nodes, n.name): // at first the preferred ones are waited for: all may be starting
			wait = max(wait, 4*n.t.Lease)
		}
	}
	return wait, stale, true
}

// nothingLeft says whether waiting could bring no session back, so that the group's owner goes on with none after its restart: nobody has had the group since, and nobody has
// a copy of what the life before had, be it an old one. Whoever may take over by the log has to say so; of another one that is not heard of the log says that its copy was
// not whole. That no other one emits is the promises' matter, as ever.
func (n *Node) nothingLeft(g *group, now Time) bool {
	if g.at.Node != n.name {
		return false
	}
	if n.plant.bareTakes {
		return true
	}
	if n.copies { // what was carried out is noted a moment later than it is in the log: whose copy is in sync may stand there alone
		return false
	}
	if now < n.awake.Add(2*Earlier) { // long enough to be answered: a first message may take 300 ms, however long a lease is
		return false
	}
	for _, o := range n.others {
		a, told := g.free[o] // to a question of this life: what was true before is no answer
		told = told && now.Sub(a.at) <= n.t.Lease
		switch in := slices.Contains(g.at.InSync, o); {
		case !in && !slices.Contains(g.conf.Nodes, o):
		case told && !a.bare, !told && in:
			return false
		}
	}
	return true
}

// onlyCopy says whether waiting could bring no better copy than this node's: the log has it in sync with the owner of the very term that its digest was equal in, and every other node of the group, the owner's next life
// among them, has said that it has none. Where the owner fences, its last digest is only too old because owner and majority were lost in the same moment, and for longer than that.
func (n *Node) onlyCopy(g *group, now Time) bool {
	if g.at.Alone != Fence || g.at.Node == n.name || g.marker == 0 || g.marked != g.at.Epoch || !slices.Contains(g.at.InSync, n.name) || n.copies || now < n.awake.Add(2*Earlier) {
		return false
	}
	for _, o := range g.conf.Nodes {
		if a, told := g.free[o]; o != n.name && (!told || now.Sub(a.at) > n.t.Lease || !a.bare) {
			return false
		}
	}
	return true
}

// bare says whether this node has no copy of what the owner of a term had. It cannot say so of a term that it has not heard of: it may be the one that hands over to it,
// and have everything. A copy of a later term, which somebody serves alone and nobody has agreed on, is one of all that is left. So is what this process or the one before it served itself in the term before, or alone since: the
// heir may have ended before it served.
func (n *Node) bare(g *group, t Term) bool {
	last := max(g.epoch, g.had) // that it served under, or the process before
	served := last > 0 && last+1 >= t.Epoch && !n.plant.bareServed
	return (t == g.at.Term || n.plant.bareUnheard) && (g.marker == 0 || g.marked < t.Epoch) && !served
}

// ahead says whether another node as whole as this one comes first: fewer conditions, then preference.
func (n *Node) ahead(g *group, other string, v View, place int) bool {
	mine := n.faults(g)
	if v.Faults != mine {
		return v.Faults < mine
	}
	if v.Panics != n.has(g, CausePanics) {
		return !v.Panics
	}
	return place < slices.Index(g.conf.Nodes, n.name)
}

// take is an operator's word. It goes by the log where that has a majority, and without it otherwise.
func (n *Node) take(g *group, now Time) {
	why := ""
	switch {
	case !slices.Contains(g.conf.Nodes, n.name):
		why = fmt.Sprintf("this node is not one of the group's nodes, which are %v", g.conf.Nodes)
	case n.mine(g) && g.serving || g.solo > 0:
		why = "this node serves the group already"
	case n.mine(g) && n.majorityHeard(now): // a lease that came late
		why = "this node serves the group already, or will as soon as the majority that it hears has answered"
	case n.leaving:
		why = "this node is about to end"
	case n.stands && n.majorityHeard(now): // those could agree on it, and this node would not hear of it
		why = standsWords(n.name) + ": it would not hear that the group is its own"
	case n.deaf:
		why = "this node takes no part in who serves a group, because its messages cannot be carried: see status"
	}
	if why != "" {
		n.do(Tell{Group: g.name, Words: why, Refused: true})
		return
	}
	g.forced, g.nextPropose = max(now, 1), now
	if n.mine(g) { // it has the term and cannot serve: no majority
		n.goAlone(g, now, CauseForce)
	}
}

// push claims by force, and serves alone if nothing is agreed on within a second. While a majority is heard whose logs take entries it can be agreed on, however long that takes (an election, a
// slow disk): then whoever has a lease from that majority would be met.
func (n *Node) push(g *group, now Time) {
	n.ask(g, now)
	if now.Sub(g.forced) > time.Second && !n.majorityHeard(now) && !n.helped(g, now) {
		n.goAlone(g, now, CauseForce)
		return
	}
	if now >= g.nextPropose {
		n.propose(g, now, Entry{Kind: KindClaim, Term: n.me(n.nextEpoch(g)), Alone: n.want(g), Cause: CauseForce, Why: RightForce, Stale: true})
	}
}

// helped reports whether a voter that is heard of helps the owner still, or has not said that it does not: then somebody may serve the group by a lease, whatever can be agreed on.
func (n *Node) helped(g *group, now Time) bool {
	if g.at.Epoch == 0 {
		return false
	}
	for _, v := range n.voters.Names {
		if v == n.name || !n.alive(v, now) {
			continue
		}
		if a, told := g.free[v]; !told || now.Sub(a.at) > n.t.Lease || !a.free && !a.gone {
			return true
		}
	}
	return false
}

// majorityHeard reports whether a majority of the voters lives and takes entries of the log, as far as this node hears.
func (n *Node) majorityHeard(now Time) bool {
	heard := 0
	for _, v := range n.voters.Names {
		if (v == n.name || n.alive(v, now)) && !n.still(v) {
			heard++
		}
	}
	return n.majority() > 0 && heard >= n.majority()
}
