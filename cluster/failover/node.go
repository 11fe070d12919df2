package failover

import (
	"fmt"
	"maps"
	"slices"
	"time"
)

// Config of a node.
type Config struct {
	Name  string
	Life  uint64 // drawn anew at each start, never 0
	Times Times
}

// Group is what the policy says of one.
type Group struct {
	Name   string
	Nodes  []string // who may own it, the preferred one first
	Alone  Alone    // "" = fence where there is a witness, keep for two nodes
	Stale  bool     // whose copy is not in sync may take over, once the lease has run out
	Prefer bool     // a preferred node takes over again when it is back and whole
}

// Check says what is wrong with a group.
func (g Group) Check() error {
	switch {
	case g.Name == "":
		return fmt.Errorf("a group has a name")
	case len(g.Nodes) == 0:
		return fmt.Errorf("group %s names no node: say who may own it, the preferred one first", g.Name)
	case g.Alone != "" && !g.Alone.known():
		return fmt.Errorf("group %s: %q is nothing that an owner does alone: %s, %s or %s", g.Name, g.Alone, Fence, Keep, Auto)
	}
	for i, o := range g.Nodes {
		if o == "" || slices.Contains(g.Nodes[:i], o) {
			return fmt.Errorf("group %s names %q twice, or not at all", g.Name, o)
		}
	}
	return nil
}

// Event is something that has happened.
type Event interface{ event() }

// The events.
type (
	// Tick: nothing but time has passed. There must be one at least every quarter of the guard.
	Tick struct{}
	// Received is a message from a member, as opened and checked by who carries them.
	Received struct {
		From string
		Message
	}
	// Agreed is the state after what this node has carried out of the log. Behind: its log has more, not known to be agreed on, by which another
	// node is the owner of something. Past: the same, by which an earlier life of this node is. Copies: by which somebody's copy is in sync.
	Agreed struct {
		State
		Behind bool
		Past   bool
		Copies bool
	}
	// Voters are those of the newest configuration in this node's log, agreed on or not. Version is the number of its entry: the same on every node that has it. It goes
	// back where that was never agreed on and is taken off the log again: those before are neighbours too, and counted from anew.
	Voters struct {
		Version uint64
		Names   []string
	}
	// Groups are those of the policy that is served.
	Groups []Group
	// Condition begins, changes or ends. Group "" = all of them.
	Condition struct {
		Group string
		Cause Cause
		Count int // 0 = it is over
	}
	// Copied tells an owner how far a peer's copy is behind. Equal: their digests were equal at Seq.
	Copied struct {
		Group, Peer string
		Lag         time.Duration
		Equal       bool
		Seq         uint64
	}
	// Marked tells a standby that its digest was equal to the owner's, in the stream of this epoch.
	Marked struct {
		Group string
		Epoch uint64
	}
	// Kept is what this process has of a group from the one before it, which has ended in order: all that its life had at the end of Term, by the group's sessions. It is told before anything of the log is.
	// All: nothing rested any more that owners before might have used, so this node knows all that may be in use.
	Kept struct {
		Group string
		Term  Term
		At    Time // when it ended, or later
		All   bool
	}
	// Stopped: all workers have passed a check since the Lease action with this turn.
	Stopped struct {
		Group string
		Turn  uint64
	}
	// Flushed: what the owner had when the Flush action with this turn came is at the heir, and the heir has said so.
	Flushed struct {
		Group string
		Turn  uint64
	}
	// Contact: a message of the log's own came through between this node and a member at that time, so that one lived then. It may be told late.
	Contact struct {
		Peer string
		At   Time
	}
	// Stands: the log of this node takes no entries, or takes them again.
	Stands struct{ On bool }
	// Deaf: this node cannot say or hear anything, so it takes no part; or it can again, and is as one that has just started.
	Deaf struct{ On bool }
	// Move: an operator asks for a planned move. It goes to the owner.
	Move struct{ Group, To string }
	// Take: an operator forces this node to own the group, and answers for it that nobody else does.
	Take struct{ Group string }
	// Leave: this node is about to end. It hands over what it can. Now: it ends, and gives up what is left.
	Leave struct{ Now bool }
)

func (Tick) event()      {}
func (Received) event()  {}
func (Agreed) event()    {}
func (Voters) event()    {}
func (Groups) event()    {}
func (Condition) event() {}
func (Copied) event()    {}
func (Marked) event()    {}
func (Kept) event()      {}
func (Stopped) event()   {}
func (Flushed) event()   {}
func (Contact) event()   {}
func (Stands) event()    {}
func (Deaf) event()      {}
func (Move) event()      {}
func (Take) event()      {}
func (Leave) event()     {}

// Action is something to be done, in the order given: the next one only when this one is.
type Action interface{ action() }

// The actions.
type (
	// Send a message to one member, on every path there is.
	Send struct {
		To string
		Message
	}
	// Lease writes until when this node may emit for the group into the table that worker and XDP program read. 0 = not at all: what is queued
	// dies, and Stopped with this Turn is told when no worker can have anything in hand. Leave is for who hands over: what the kernel was given before may leave until then, and nothing
	// more is given to it; Stopped is told when that has left too.
	Lease struct {
		Group string
		Epoch uint64
		Until Time
		Leave Time // 0 = nothing may; only where Until is 0, and never behind the lease
		Turn  uint64
	}
	// Flush brings the heir of a planned move what has changed to the end. Nothing changes any more: the workers have stopped. Flushed with this Turn is told when all
	// of it is there; who does not hear that within Times.Flush goes on without.
	Flush struct {
		Group, Peer string
		Turn        uint64
	}
	// Announce where the group's addresses are now. Round 0 is the first one after a takeover.
	Announce struct {
		Group string
		Epoch uint64
		Round int
	}
	// Propose an entry to the log. Its fate is told by Agreed, or by nothing.
	Propose struct{ Entry }
	// Tell is a line for the log and for the operator who asked.
	Tell struct {
		Group, Words string
		Refused      bool // what an operator asked for is not done, or comes to nothing after all
		Soon         bool // and could be in a moment: a copy is on its way
		Warn         bool // somebody has to do something
	}
)

func (Send) action()     {}
func (Lease) action()    {}
func (Flush) action()    {}
func (Announce) action() {}
func (Propose) action()  {}
func (Tell) action()     {}

// plants are faults that tests put in, to see that they are found. Nothing else sets one.
type plants struct {
	fromReply  bool // the lease counts from the answer
	noWait     bool // a voter that has just started promises at once
	noEpoch    bool // a voter does not look at the epoch
	earlyWord  bool // a standby announces when it claims
	staleTakes bool // a node takes over whatever its copy is
	keepTakes  bool // a standby takes over from an owner that serves on alone
	digestOnly bool // what a standby knows of public ports goes by how old its last digest is
	early      bool // a release goes out before the workers have stopped
	overdrawn  bool // what the kernel was given by who hands over may leave behind the lease
	minority   bool // one promise is enough
	overlap    bool // a voter does not wait for its last promise to run out
	ownLease   bool // a voter promises its own lease, whatever who asks relies on
	reborn     bool // a restarted node takes its old term for its own
	unflushed  bool // a planned move does not wait for the last changes
	bareTakes  bool // an owner that has restarted does not look who has a copy

	bareUnheard bool // a node that has not heard of a term says that it has no copy of it
	bareServed  bool // nor does one say that it has what it served itself until the term began
	moveOnce    bool // a move that meets another entry is forgotten
	ownForgets  bool // a voter that has restarted promises a term though its log has a later one of its own last life
	newFree     bool // a voter that is new says at once that it helps nobody
	firstAlone  bool // a node that is a cluster of its own takes a group of which it has nobody else
	hasty       bool // whose copy may come to be in sync is whose is
	keptAnyway  bool // what the process before has left is good whoever had the group since
	oldViews    bool // a node that has restarted stands as its last life did until its first beat
}

// Node is the machine of one node: voter for all groups, owner of some, standby for others.
type Node struct {
	name  string
	life  uint64
	t     Times
	last  Time // the newest reading of the clock
	quiet Time // as a voter it promises nothing before

	voters   Voters
	votersAt Time // since when
	changed  Time // when they were others before; 0 = not since the start
	state    State
	known    bool // state was told
	behind   bool // the log may have another owner for something
	copies   bool // the log may have a copy of something in sync that the state has not
	past     bool // or an earlier life of this node
	groups   map[string]*group
	told     bool     // the groups of a policy were
	names    []string // of groups, sorted: the same order each time
	peers    map[string]*peer
	others   []string // members that matter, sorted, without this node
	seq      uint64
	floor    uint64 // answers to older questions count for nothing: before a gap
	awake    Time   // since when readings of the clock have had no gap
	listens  Time   // since when it has had no long one; 0 = not yet
	nextBeat Time
	conds    map[Cause]int // of all groups
	leaving  bool
	left     Time // since when; of leaving
	ended    bool // Leave.Now
	deaf     bool
	stands   bool // this node's log takes no entries
	logged   Time // when something new was agreed on last; 0 = nothing since the start

	out   []Action
	plant plants
}

type peer struct {
	heard Time
	met   Time          // when the log's own messages last came through; see Contact
	trip  time.Duration // how long it took to answer last
	path  time.Duration // round trip to it, as who carries messages measures it all the time; 0 = not known
	life  uint64
	views map[string]View

	stands bool // its log takes no entries
}

// New is a node that has just started. It promises nothing for the longest lease, because it may have promised something before it ended.
func New(c Config, now Time) *Node {
	n := &Node{name: c.Name, life: c.Life, t: c.Times, last: now, quiet: now.Add(Earlier), awake: now, votersAt: now,
		groups: map[string]*group{}, peers: map[string]*peer{}, conds: map[Cause]int{}, plant: planted()}
	return n
}

// Step takes in one event that happened at now, and says what is to be done. A clock that goes back stands still.
func (n *Node) Step(now Time, e Event) []Action {
	n.out = nil
	now = max(now, n.last)
	if now.Sub(n.last) > n.t.Guard {
		n.gap(now, now.Sub(n.last))
	}
	n.last = now
	if n.listens == 0 {
		n.listens = max(now, 1)
	}
	switch e := e.(type) {
	case Received:
		n.received(e.From, e.Message, now)
	case Agreed:
		n.agreed(e, now)
	case Voters:
		if e.Version != n.voters.Version || n.voters.Names == nil || !slices.Equal(e.Names, n.voters.Names) {
			if n.voters.Names != nil {
				n.changed = now
			}
			n.voters, n.votersAt = Voters{e.Version, slices.Clone(e.Names)}, now
			n.know()
		}
	case Groups:
		n.policy(e)
	case Condition:
		n.condition(e, now)
	case Copied:
		if e.Peer != n.name {
			n.group(e.Group).copies[e.Peer] = copyOf{at: now, lag: e.Lag, equal: e.Equal, seq: e.Seq}
		}
	case Marked:
		g := n.group(e.Group)
		g.marker, g.marked, g.digest = now, e.Epoch, e.Epoch
	case Kept:
		g := n.group(e.Group)
		g.kept, g.had = e, e.Term.Epoch
	case Stopped:
		if g := n.group(e.Group); e.Turn == g.turn {
			g.closing = false
		}
	case Flushed:
		if g := n.group(e.Group); g.parting != nil && e.Turn == g.parting.turn {
			g.parting.flushed = true
		}
	case Deaf:
		if n.deaf && !e.On { // what it knew of others is old
			n.gap(now, n.t.Lease)
		}
		n.deaf = e.On
	case Contact:
		p := n.peer(e.Peer)
		p.met = max(p.met, min(e.At, now))
	case Stands:
		n.stands = e.On
	case Move:
		n.move(n.group(e.Group), e.To, now)
	case Take:
		n.take(n.group(e.Group), now)
	case Leave:
		if !n.leaving {
			n.leaving, n.left = true, now
		}
		if e.Now {
			n.end()
		}
	}
	n.run(now)
	return n.out
}

// gap: the node did not run for a while, and others may have gone on without it. What it knew of them is old, and what they have said lies unread.
// A short gap makes a standby's waiting longer by itself and no more: else one that is often stopped for a moment would never claim. A lease that has not run out goes
// on: this clock went on as the voters' did, and the promises that it counts from were made before. No answer to an older question makes it longer.
func (n *Node) gap(now Time, long time.Duration) {
	n.awake, n.floor = now, n.seq+1
	short := long < n.t.Lease/2
	for _, p := range n.peers {
		if p.heard == 0 { // it was met by the log alone
			continue
		}
		if p.heard = p.heard.Add(long); !short || p.heard > now {
			p.heard = now // silence counts from here
		}
	}
	if !short {
		n.listens = now
		n.doubt()
	}
	for _, name := range n.names {
		g := n.groups[name]
		clear(g.free)
		g.nextRenew, g.nextAsk = now, now
		if g.since > 0 && short && !n.mine(g) && g.solo == 0 {
			g.since = min(g.since.Add(long), now)
		} else {
			g.since = 0
		}
		if g.until > now {
			continue
		}
		clear(g.got)
		g.until = 0
		n.emit(g, 0, now)
	}
}

func (n *Node) run(now Time) {
	for _, name := range n.names {
		g := n.groups[name]
		switch {
		case n.deaf:
			g.solo, g.since, g.parting, g.refused = 0, 0, nil, nil
			n.emit(g, 0, now)
			n.lapse(g, now)
			continue
		case g.parting != nil:
			n.part(g, now)
		case n.mine(g) || g.solo > 0:
			n.lead(g, now)
		default:
			n.emit(g, 0, now)
			n.follow(g, now)
		}
		n.release(g, now)
		n.answer(g, now)
		n.lapse(g, now)
		n.announce(g, now)
	}
	if now >= n.nextBeat && !n.deaf { // last: what it says is what was written
		n.beat(now)
	}
}

// mine: this very life of the node has the term, and has not given it up.
func (n *Node) mine(g *group) bool {
	return g.at.Epoch > 0 && g.at.Node == n.name && g.at.Term != g.rel && (g.at.Life == n.life || n.plant.reborn)
}

func (n *Node) me(epoch uint64) Term { return Term{epoch, n.name, n.life} }

func (n *Node) do(a Action) { n.out = append(n.out, a) }

func (n *Node) tell(g *group, words string) { n.do(Tell{Group: g.name, Words: words}) }

func (n *Node) send(to string, m Message) {
	m.Life = n.life
	n.do(Send{to, m})
}

// majority is how many voters that is; 0 = there are no voters.
func (n *Node) majority() int {
	if len(n.voters.Names) == 0 {
		return 0
	}
	if n.plant.minority {
		return 1
	}
	return len(n.voters.Names)/2 + 1
}

func (n *Node) votes(name string) bool { return slices.Contains(n.voters.Names, name) }

// know works out who the other members that matter are: voters, and who may own a group.
func (n *Node) know() {
	all := map[string]bool{}
	for _, v := range n.voters.Names {
		all[v] = true
	}
	for _, g := range n.groups {
		for _, v := range g.conf.Nodes {
			all[v] = true
		}
	}
	delete(all, n.name)
	n.others = slices.Sorted(maps.Keys(all))
}

func (n *Node) group(name string) *group {
	g := n.groups[name]
	if g == nil {
		g = &group{name: name, got: map[string]Time{}, free: map[string]answer{}, copies: map[string]copyOf{}, offered: map[string]uint64{}, conds: map[Cause]int{}}
		n.groups[name] = g
		n.names = slices.Sorted(maps.Keys(n.groups))
	}
	return g
}

func (n *Node) peer(name string) *peer {
	p := n.peers[name]
	if p == nil {
		p = &peer{}
		n.peers[name] = p
	}
	return p
}

func (n *Node) policy(list Groups) {
	n.told = true
	for _, g := range n.groups {
		g.conf = Group{}
	}
	for _, c := range list {
		c.Nodes = slices.Clone(c.Nodes)
		n.group(c.Name).conf = c
	}
	n.know()
}

// agreed takes in what the log says now. Terms that were passed over make no difference: who had one was told by the releases and the promises.
func (n *Node) agreed(e Agreed, now Time) {
	first := !n.known
	n.state, n.behind, n.past, n.copies, n.known = e.State, e.Behind, e.Past, e.Copies, true
	for name, o := range e.State.Groups {
		g := n.group(name)
		if o.Rev <= g.at.Rev {
			continue
		}
		if !first {
			n.logged = now
		}
		before, was, moving, lacks, kept := g.at, n.mine(g), g.moving, n.lacks(g, o, now), n.keptAll(g)
		g.at = o
		if o.Term != g.kept.Term && !n.mine(g) && !n.behind && !n.past && !n.plant.keptAnyway { // somebody has had it since, or the log is another one
			g.kept = Kept{}
		}
		g.nextPropose = now
		if o.Panicked != before.Panicked {
			g.panicked = max(now, 1) // a restarted node counts from its start: longer, never shorter
		}
		if o.Term == before.Term {
			if n.mine(g) {
				n.tellSync(g, before.InSync)
			}
			continue
		}
		g.new(now)
		if first {
			g.began = 0 // it had this term before this node started, for all that is known
		}
		n.moved(g, before, now)
		switch {
		case was && !n.mine(g): // it stops below, and says so then
			if moving != nil && moving.term == o.Term && g.serving && !n.ended {
				g.part(before.Term, o.Term, now)
			} else if g.parting == nil || g.parting.from != before.Term {
				g.past = before.Term
			}
		case o.Node == n.name && !n.mine(g): // an earlier life of this node, which is certainly over
			g.past = o.Term
		}
		if o.From == n.name && o.Epoch == before.Epoch+1 && (was || g.parting != nil && g.parting.from == before.Term) {
			g.marker, g.marked = now, o.Epoch // nobody has a newer one
		}
		if o.Term == g.early { // it was given up before anybody had heard of it
			g.rel = g.early
		}
		if g.parting != nil && o.Epoch > g.parting.to.Epoch {
			g.parting.asked = true // that heir does not come any more
		}
		if n.mine(g) {
			if g.solo > 0 && o.Epoch >= g.solo {
				lacks = "this node has served alone since"
			}
			g.knows, g.here = lacks == "", kept && g.solo == 0 && o.Epoch == before.Epoch+1
			n.tell(g, "this node is the owner by agreement, "+string(o.Cause))
			if g.here {
				g.lapsed = max(g.lapsed, g.kept.At)
				n.tell(g, "nobody has had it since this node's process before, and what that had is here")
			}
			if !g.knows {
				n.tell(g, "what owners before have used is not known to the last here: "+lacks)
			}
			if g.solo > 0 && o.Epoch >= g.solo {
				g.held = true // it has served already
			}
		} else if g.solo > 0 && o.Epoch >= g.solo {
			n.tell(g, "another node is the owner by agreement: this one stops serving alone")
			g.solo = 0
		}
	}
}

// tellSync tells of the copies that the log has as in sync now, or does not any more.
func (n *Node) tellSync(g *group, before []string) {
	for _, p := range g.at.InSync {
		if !slices.Contains(before, p) {
			n.tell(g, "the copy of "+p+" is in sync by agreement")
		}
	}
	for _, p := range before {
		if slices.Contains(g.at.InSync, p) {
			continue
		}
		switch c, told := g.copies[p]; {
		case !told:
			n.tell(g, "the copy of "+p+" is not in sync any more: it was not whole yet in this term")
		case !c.equal:
			n.tell(g, "the copy of "+p+" is not in sync any more: it is not equal, or is being made anew")
		default:
			n.tell(g, fmt.Sprintf("the copy of %s is not in sync any more: it was %s behind", p, round(c.lag)))
		}
	}
}

// beat tells everybody that this node lives, and how it stands with each group.
func (n *Node) beat(now Time) {
	n.nextBeat = now.Add(n.t.Renew)
	m := Message{Kind: Beat, Stands: n.stands}
	for _, name := range n.names {
		g := n.groups[name]
		v := View{Group: name, Epoch: g.at.Epoch, Serving: g.serving, Whole: n.whole(g, now), Faults: n.faults(g), Panics: n.has(g, CausePanics), Leaving: n.leaving}
		if g.serving {
			v.Epoch = g.epoch
		}
		m.Views = append(m.Views, v)
	}
	for _, o := range n.others {
		n.send(o, m)
	}
}

// patience is for how long a node that is not heard of counts as there: three beats in a row may be lost, of a release too whose lease is Earlier and whose beats are as much farther apart.
func (n *Node) patience() time.Duration { return max(n.t.Renew, Earlier/5) * 7 / 2 }

func (n *Node) alive(name string, now Time) bool {
	p := n.peers[name]
	return p != nil && now.Sub(p.heard) <= n.patience()
}

func (n *Node) received(from string, m Message, now Time) {
	if from == n.name || n.deaf {
		return
	}
	p := n.peer(from)
	if now.Sub(p.heard) > n.patience() { // a new one was heard of never
		n.doubt()
	}
	p.heard = now
	// How its last life stood says nothing of this one: until its first beat nothing is known. A release is said by others too, for a life that is over.
	if m.Life != p.life && m.Life != 0 && m.Kind != Release && !n.plant.oldViews {
		p.life, p.views, p.stands = m.Life, nil, false
	}
	if m.Kind == Beat {
		n.heard(from, p, m, now)
		return
	}
	g := n.groups[m.Group]
	if g == nil { // neither the policy nor the log knows it, so nobody owns it
		return
	}
	switch m.Kind {
	case Renew:
		n.heir(g, from, m.Term, now)
		yes, gone := n.grant(g, from, m.Term, m.Voters, m.Lease, now)
		n.send(from, Message{Kind: Promise, Group: g.name, Term: m.Term, Seq: m.Seq, Yes: yes, Gone: gone})
		if g.refused = nil; !yes && !gone {
			g.refused = &refused{from, m, now}
		}
	case Promise:
		n.promised(g, from, m, now)
	case Ask:
		yes, gone := n.helps(g, m.Term, now)
		n.send(from, Message{Kind: Free, Group: g.name, Term: m.Term, Seq: m.Seq, Yes: yes, Gone: gone, Bare: n.bare(g, m.Term)})
	case Free:
		n.freed(g, from, m)
	case Release:
		n.gone(g, from, m.Term, now)
	}
}

// heard takes in how another node stands. Two that serve the same group: the lower epoch yields, then the lower name.
func (n *Node) heard(from string, p *peer, m Message, now Time) {
	p.life, p.views, p.stands = m.Life, map[string]View{}, m.Stands
	for _, v := range m.Views {
		g := n.groups[v.Group]
		if g == nil {
			continue
		}
		p.views[v.Group] = v
		if v.Serving && from == g.at.Node && v.Epoch == g.at.Epoch && m.Life == g.at.Life {
			g.seen = now
		}
		if v.Panics {
			g.panicked = max(now, 1)
		}
		if !v.Serving {
			continue
		}
		mine := g.at.Epoch
		if g.solo > 0 {
			mine = g.solo
		}
		if n.mine(g) || g.solo > 0 {
			g.astray = true
		}
		if (n.mine(g) || g.solo > 0) && (v.Epoch > mine || v.Epoch == mine && from > n.name) {
			if g.serving {
				n.tell(g, from+" serves this group too, under a later epoch or a later name: this node yields")
			}
			g.yield = now.Add(n.t.Lease)
			g.solo = 0
		}
	}
}
