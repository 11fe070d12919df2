package failover

import (
	"fmt"
	"maps"
	"slices"
	"time"
)

// group is one group as one node sees it. It has many fields because one node has three parts in a group, and each reads the others': a voter
// frees what its own standby waits for, an owner becomes a standby within one event.
type group struct {
	name string
	conf Group // no nodes = the policy does not know it
	at   Ownership

	// As a voter.
	promise promise
	refused *refused // the last question for a promise that could not be made yet
	rel     Term     // given up for good by its owner
	early   Term     // the same, of one that nobody here has heard of yet
	began   Time     // when this node heard of the term that is agreed on

	// As the owner.
	sent        []question      // the newest ones
	got         map[string]Time // voter -> when the question was sent that it answered last
	until       Time            // the lease
	held        bool            // it has had a lease in this term
	serving     bool
	epoch       uint64   // that it serves under, or last did
	lapsed      Time     // when it last ceased to
	told        uint64   // the epoch under which it said that it serves; 0 = it does not
	written     Time     // what the last Lease action said
	turn        uint64   // of it
	closing     bool     // workers may still have something in hand
	past        Term     // to be released as soon as nothing is emitted any more
	never       Term     // with it: one that this node has claimed, which may yet be agreed on when it has ended
	said        []Term   // what was released
	words       int      // how often that is still to be said
	nextWord    Time     // and when
	yield       Time     // until then another is left to serve
	unsettled   bool     // at rev unsettledAt something was proposed that passes the group on: it may yet be agreed on
	unsettledAt uint64   //
	moving      *planned // a move that was proposed
	parting     *parting // one that was agreed on
	nextRenew   Time
	round       int
	nextRound   Time
	astray      bool // another one serves too, or may have: hosts may have been told to send there
	copies      map[string]copyOf
	leaves      Kept              // of which this process leaves all to the next one, see Left
	offered     map[string]uint64 // against which Rev a copy was last proposed to be in sync

	// As a standby.
	knows, here bool // what Knows says of this node's term
	free        map[string]answer
	nextAsk     Time
	nextPropose Time
	claimed     uint64 // the epoch that it was told of
	flight      Term   // the claim that was last proposed for this node
	flightAt    uint64 // against which Rev
	apart       Time   // since when its other nodes are none of this cluster's; 0 = they are
	since       Time   // since when it might take over; 0 = it might not
	marker      Time   // when its digest was last equal
	marked      uint64
	seen        Time   // when the owner last said that it serves, in the term that is agreed on
	digest      uint64 // under which owner's epoch there was last one: who hands over counts as whole before
	kept        Kept   // of the process before; no group = nothing, or it counts no more
	had         uint64 // the epoch that it was of, whether it counts or not
	forced      Time   // when an operator said so; 0 = not
	onward      bool   // it goes on alone with what is kept, by no operator's word
	solo        uint64 // it serves alone, under this epoch, that nobody has agreed on; 0 = not

	conds     map[Cause]int
	hold      time.Duration // how long the group stays after the last move
	holdUntil Time
	lastMove  Time
	panicked  Time // when panics were last heard of, here or elsewhere; 0 = never
	mayPanic  bool // the panics that last began after a rest: they may move the group
	stuck     string
}

type question struct {
	seq uint64
	at  Time
}

type answer struct {
	at         Time // when the question was sent
	free, gone bool
	bare       bool // it has no copy of what the term's owner had
}

type copyOf struct {
	at    Time
	lag   time.Duration
	equal bool
	seq   uint64
}

type planned struct {
	to    string
	rev   uint64
	since Time
	term  Term // the heir's
	cause Cause
}

// parting is an owner's last moments, once its move is agreed on: it goes on by the lease that it has until the heir is ready, stops, brings the heir what changed to the
// end, and releases its term.
type parting struct {
	from, to Term
	at       Time // when it began
	asked    bool // the heir is ready, or there is none any more
	turn     uint64
	flush    Time // when Flush was said; 0 = not yet
	flushed  bool
	done     bool // the term is released, or will be as soon as the workers have stopped
}

// new: another term has begun.
func (g *group) new(now Time) {
	g.began = now
	g.sent, g.until, g.held, g.moving, g.unsettled, g.round = nil, 0, false, nil, false, 0
	clear(g.got)
	clear(g.free)
	clear(g.copies)
	clear(g.offered)
	g.since, g.yield, g.forced, g.seen = 0, 0, 0, 0
	g.nextRenew, g.nextAsk = now, now
}

// lead is an owner's turn.
func (n *Node) lead(g *group, now Time) {
	if !slices.Contains(g.conf.Nodes, n.name) || n.ended { // the policy has taken it away, or the node ends
		g.solo = 0
		n.emit(g, 0, now)
		if n.mine(g) {
			g.past = g.at.Term
		}
		return
	}
	if now < g.yield {
		n.emit(g, 0, now)
		return
	}
	if n.mine(g) {
		if g.past == g.at.Term { // the policy has the group again, before the workers had stopped: else the term would end with its next pause
			g.past = Term{}
		}
		if now >= g.nextRenew {
			n.renew(g, now)
		}
		n.count(g, now)
		n.upkeep(g, now)
	} else if now >= g.nextPropose { // it serves alone, and has it agreed on as soon as there is somebody to agree
		n.propose(g, now, Entry{Kind: KindClaim, Term: n.me(g.solo), Alone: n.want(g), Cause: CauseSilence, Why: RightSolo, Stale: true})
	}
	switch {
	case g.until > now:
		g.solo = 0
		n.emit(g, g.until, now)
	case n.keeps(g, now):
		if g.written.Sub(now) < n.t.Use()-n.t.Renew {
			n.emit(g, now.Add(n.t.Use()), now)
		}
	default:
		n.emit(g, 0, now)
	}
}

// keeps says whether the owner goes on without a lease. Not before it has had one in this term: another may still have the last term's. Not while
// something that it proposed could make another the owner without its hearing of it. And not right after a gap: it listens first.
func (n *Node) keeps(g *group, now Time) bool {
	if now < n.awake.Add(n.t.Lease) && g.written <= now {
		return false
	}
	if g.solo > 0 {
		return true
	}
	return g.at.Alone != Fence && g.held && !(g.unsettled && g.unsettledAt == g.at.Rev) && g.at.Term != g.past
}

// renew asks every voter for its promise. The time that counts is this one, before anything is sent.
func (n *Node) renew(g *group, now Time) {
	n.seq++
	g.sent = append(g.sent, question{n.seq, now})
	if len(g.sent) > 64 {
		g.sent = slices.Clone(g.sent[32:])
	}
	for _, v := range n.voters.Names {
		if v != n.name {
			n.send(v, Message{Kind: Renew, Group: g.name, Term: g.at.Term, Seq: n.seq, Voters: n.voters.Version, Lease: n.t.Lease})
		} else if yes, _ := n.grant(g, n.name, g.at.Term, n.voters.Version, n.t.Lease, now); yes {
			g.got[v] = now
		}
	}
	g.nextRenew = now.Add(n.t.Renew)
	if g.until <= now.Add(n.t.Renew) {
		g.nextRenew = now.Add(n.t.Ask)
	}
}

// promised takes in an answer to Renew.
func (n *Node) promised(g *group, from string, m Message, now Time) {
	if !n.mine(g) || m.Term != g.at.Term || m.Seq < n.floor || !n.votes(from) {
		return
	}
	i := slices.IndexFunc(g.sent, func(q question) bool { return q.seq == m.Seq })
	if i < 0 {
		return
	}
	n.peers[from].trip = max(now.Sub(g.sent[i].at), 1)
	if m.Yes {
		at := g.sent[i].at
		if n.plant.fromReply {
			at = now
		}
		g.got[from] = max(g.got[from], at)
		return
	}
	if m.Gone && g.at.Alone != Fence && now >= g.nextPropose { // a term of this node that a voter takes for ended: another one does it
		n.propose(g, now, Entry{Kind: KindClaim, Term: n.me(g.at.Epoch + 1), Alone: n.want(g), Cause: CauseReleased, Why: RightOwner, By: g.at.Term, Stale: true})
	}
}

// count works out the lease: the promises of a majority of the newest voters, each from when it was asked for.
func (n *Node) count(g *group, now Time) {
	var at []Time
	for v, t := range g.got {
		if n.votes(v) {
			at = append(at, t)
		}
	}
	need := n.majority()
	if need == 0 || len(at) < need {
		g.until = 0
		return
	}
	slices.Sort(at)
	until := at[len(at)-need].Add(n.t.Use())
	// Other voters than before, and no lease from them yet: somebody may still have one from those that were before the ones before. Theirs has
	// run out after a lease. Whoever has one goes on: its majority meets the next one.
	if g.until <= now && now < n.votersAt.Add(Earlier) {
		until = 0
	}
	g.until = until
	if until > now {
		g.held = true
	}
}

// emit says until when the data plane may emit. Whoever has nothing to lose is not told twice.
func (n *Node) emit(g *group, until, now Time) {
	if until == 0 && !g.serving && g.written == 0 || until == g.written {
		return
	}
	began := until > 0 && !g.serving
	leave := Time(0)
	if g.serving && until == 0 {
		g.lapsed = now
		if g.parting != nil && g.written > now { // what is queued leaves by the lease that it was queued under; if it does not soon, closing the port takes no longer
			if leave = min(g.written, now.Add(n.t.Guard)); n.plant.overdrawn {
				leave = now.Add(4 * n.t.Lease)
			}
		}
	}
	g.serving, g.written = until > 0, until
	if until > 0 {
		g.epoch = g.at.Epoch
		if g.solo > 0 {
			g.epoch = g.solo
		}
	}
	epoch := g.epoch
	g.turn++
	g.closing = until == 0 && !n.plant.early
	n.do(Lease{Group: g.name, Epoch: epoch, Until: until, Leave: leave, Turn: g.turn})
	if began && g.told != epoch {
		g.told, g.round, g.nextRound = epoch, 0, now
		n.tell(g, fmt.Sprintf("this node serves, epoch %d", epoch))
	}
}

// lapse tells that this node serves no more, if that is more than a lease that came late.
func (n *Node) lapse(g *group, now Time) {
	if g.told == 0 || g.serving || (n.mine(g) || g.solo > 0) && now.Sub(g.lapsed) < 200*time.Millisecond {
		return
	}
	n.tell(g, fmt.Sprintf("this node does not serve any more, epoch %d", g.told))
	g.told = 0
}

// Announcements: three rounds, then every 30 s, for hosts and switches that forget or have missed them.
var rounds = []time.Duration{100 * time.Millisecond, time.Second, 30 * time.Second}

func (n *Node) announce(g *group, now Time) {
	if g.astray && g.serving && !n.rival(g, now) {
		g.astray, g.round, g.nextRound = false, 0, now
	}
	if !g.serving || now < g.nextRound || now >= g.written {
		return
	}
	n.do(Announce{Group: g.name, Epoch: g.told, Round: g.round})
	g.nextRound = now.Add(rounds[min(g.round, len(rounds)-1)])
	g.round++
}

// doubt: what others did meanwhile was not heard. Where an owner goes on without a majority another one may have served too, and have ended that before it was heard again.
func (n *Node) doubt() {
	for _, g := range n.groups {
		g.astray = g.astray || g.solo > 0 || g.at.Alone != Fence
	}
}

// rival says whether another one that lives serves the group.
func (n *Node) rival(g *group, now Time) bool {
	return slices.ContainsFunc(n.others, func(o string) bool {
		v, ok := n.view(o, g)
		return ok && n.alive(o, now) && v.Serving
	})
}

// release says that a term of this node is over: when the workers have stopped, and three times, since it is not answered.
func (n *Node) release(g *group, now Time) {
	if (g.past.Epoch > 0 || g.never.Epoch > 0) && !g.serving && !g.closing {
		g.said = nil
		for _, t := range []Term{g.past, g.never} {
			if t.Epoch > 0 {
				n.gone(g, n.name, t, now)
				g.said = append(g.said, t)
			}
		}
		g.words, g.nextWord = 3, now
		g.past, g.never = Term{}, Term{}
	}
	if g.words == 0 || now < g.nextWord {
		return
	}
	g.words--
	g.nextWord = now.Add(n.t.Renew)
	for _, o := range n.others {
		for _, t := range g.said {
			n.send(o, Message{Kind: Release, Group: g.name, Term: t})
		}
	}
}

// upkeep is what an owner does beside serving: it says whose copy is in sync, what it does alone, and looks for a better node.
func (n *Node) upkeep(g *group, now Time) {
	if m := g.moving; m != nil && (g.at.Rev != m.rev || now.Sub(m.since) > time.Second) {
		g.moving = nil
		switch {
		case now.Sub(m.since) > time.Second:
			words := "the move to " + m.to + " was not agreed on within a second: this node stays the owner"
			n.do(Tell{Group: g.name, Words: words, Refused: m.cause == CauseMove, Soon: true})
		case m.cause == CauseMove && !n.plant.moveOnce: // another entry was first, of a copy most likely: the operator's word still holds, or it is said why not
			if n.move(g, m.to, now); g.moving != nil {
				g.moving.since = m.since
			}
		}
	}
	if g.moving != nil || now < g.nextPropose {
		return
	}
	if want := n.want(g); want != g.at.Alone || g.unsettled && g.unsettledAt == g.at.Rev {
		if want == Fence { // from the moment that it is proposed it may be agreed on
			n.passes(g)
		}
		n.propose(g, now, Entry{Kind: KindAlone, By: g.at.Term, Alone: want})
		return
	}
	for _, p := range g.conf.Nodes {
		c, told := g.copies[p]
		if p == n.name {
			continue
		}
		is := slices.Contains(g.at.InSync, p)
		in := n.copied(g, p, now)
		if !told && is && now.Sub(g.began) <= n.t.MaxLag { // who handed over, until it has been looked at
			in = true
		}
		if in && !is {
			g.offered[p] = g.at.Rev
		}
		if in != is || !in && g.offers(p) { // the other entry is first, or it is refused
			n.propose(g, now, Entry{Kind: KindSync, By: g.at.Term, Node: p, On: in, Seq: c.seq})
			return
		}
	}
	n.consider(g, now)
}

// copied says whether this node, whose the group is, has found another one's copy equal and not behind. Who handed over to this one is in sync until it has been looked at: it is
// the one to take over if this node dies now. But nothing is handed to it before, since it does not know what is in use here, and would have its ports rest.
func (n *Node) copied(g *group, to string, now Time) bool {
	c, told := g.copies[to]
	return told && c.equal && c.lag+now.Sub(c.at) <= n.t.MaxLag
}

// offers says that a copy was proposed to be in sync, and that may yet be agreed on.
func (g *group) offers(p string) bool {
	rev, is := g.offered[p]
	return is && rev == g.at.Rev
}

// mayTake is who may be in sync by agreement from now on, without another word of how its copy is: who is, whose copy was proposed, and whose would be.
func (n *Node) mayTake(g *group, now Time) (out []string) {
	all := slices.Concat(g.conf.Nodes, g.at.InSync, slices.Collect(maps.Keys(g.offered))) // who is in the policy no more as well
	slices.Sort(all)
	for _, p := range slices.Compact(all) {
		if p != n.name && (slices.Contains(g.at.InSync, p) || !n.plant.hasty && (g.offers(p) || n.copied(g, p, now))) {
			out = append(out, p)
		}
	}
	return out
}

// want is what the owner shall do alone, by the policy and by who votes. While a node is drained nobody takes over but by force, so the owner need
// not stop when the rest is being worked on.
func (n *Node) want(g *group) Alone {
	for _, o := range g.conf.Nodes {
		if slices.Contains(n.state.Drained, o) && o != n.name {
			return Keep
		}
	}
	switch {
	case g.conf.Alone == Auto && len(n.voters.Names) == 2, g.conf.Alone == Keep, g.conf.Alone == Fence:
		return g.conf.Alone
	case g.conf.Alone == "" && len(n.voters.Names) == 2:
		return Keep
	}
	return Fence
}

func (n *Node) passes(g *group) { g.unsettled, g.unsettledAt = true, g.at.Rev }

func (n *Node) propose(g *group, now Time, e Entry) {
	e.Group, e.After = g.name, g.at.Rev
	if e.By == (Term{}) {
		e.By = n.me(g.at.Epoch)
	}
	g.nextPropose = now.Add(n.t.Retry)
	if e.Kind == KindClaim && e.Term.Node == n.name {
		g.flight, g.flightAt = e.Term, g.at.Rev
	}
	n.do(Propose{e})
}
