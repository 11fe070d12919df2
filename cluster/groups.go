package cluster

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"demarc/cluster/command"
	"demarc/cluster/failover"
	"demarc/cluster/store"
)

// attach has the driver of groups hear of what is agreed on, and propose by this node.
func (n *Node) attach() {
	if d := n.cfg.Groups; d != nil {
		d.node.Store(n)
		s := n.st.Carried()
		n.groupsMu.Lock()
		n.before = s
		n.groupsMu.Unlock()
		n.tellGroups(s)
	}
}

func (n *Node) detach() {
	if d := n.cfg.Groups; d != nil {
		if d.node.CompareAndSwap(n, nil) {
			d.Stands(true) // until another one is opened
		}
	}
}

// tellVoters tells the driver who votes. It is called when the log has other members, before anybody hears that it has.
func (n *Node) tellVoters() {
	d := n.cfg.Groups
	if d == nil {
		return
	}
	select {
	case <-n.opened:
	default:
		return // attach tells it
	}
	n.groupsMu.Lock()
	defer n.groupsMu.Unlock()
	version, ids, err := n.st.Newest()
	if err != nil {
		n.log.Error("who votes cannot be read from the log: promises for groups go by whom it named before", "err", err)
		return
	}
	s := n.newer()
	v := failover.Voters{Version: version}
	for _, id := range ids {
		name := id // it is told again when the log has its name
		if m, ok := s.Member(id); ok {
			name = m.Name
		}
		v.Names = append(v.Names, name)
	}
	slices.Sort(v.Names)
	if t := n.toldVoters; v.Version == t.Version && slices.Equal(v.Names, t.Names) {
		return
	}
	n.toldVoters = v
	d.post(false, func(now failover.Time) { d.step(now, v) })
}

// newer is what is agreed on, as far as this node has ever carried it out: the log is applied again behind a start, and without a leader nobody can say how much of it is agreed on. The caller holds groupsMu.
func (n *Node) newer() *command.State {
	s := n.st.State()
	if n.before != nil && n.before.Index > s.Index {
		return n.before
	}
	return s
}

// knows is that.
func (n *Node) knows() *command.State {
	n.groupsMu.Lock()
	defer n.groupsMu.Unlock()
	return n.newer()
}

// tellGroups tells the driver what is agreed on about groups, as of s.
func (n *Node) tellGroups(s *command.State) {
	d := n.cfg.Groups
	if d == nil || s.Cluster == "" {
		return
	}
	n.tellVoters()
	n.groupsMu.Lock()
	defer n.groupsMu.Unlock()
	if s.Index < n.toldAt {
		return // of long ago: the log is being applied again
	}
	a := failover.Agreed{State: s.Groups}
	if n.st.Last() > s.Index {
		err := n.st.Beyond(s.Index, func(e *command.Entry) bool {
			behind, past := claims(e, n.cfg.Name, d.Life())
			a.Behind, a.Past, a.Copies = a.Behind || behind, a.Past || past, a.Copies || inSync(e)
			return !a.Behind || !a.Past || !a.Copies
		})
		if err != nil { // what cannot be read might be anything
			a.Behind, a.Past, a.Copies = true, true, true
		}
	}
	same := n.toldAt > 0 && a.Behind == n.toldGroups.Behind && a.Past == n.toldGroups.Past && a.Copies == n.toldGroups.Copies && sameGroups(a.State, n.toldGroups.State)
	n.toldAt = s.Index
	if same {
		return
	}
	n.toldGroups = a
	d.post(false, func(now failover.Time) { d.step(now, a) })
}

// claims says whether an entry makes another node the owner of something, or an earlier life of this one.
func claims(e *command.Entry, name string, life uint64) (behind, past bool) {
	if e.Kind != command.KindGroup || e.Group.Kind != failover.KindClaim {
		return false, false
	}
	t := e.Group.Term
	return t.Node != name, t.Node == name && t.Life != life
}

// inSync says whether an entry has somebody's copy in sync.
func inSync(e *command.Entry) bool {
	return e.Kind == command.KindGroup && e.Group.Kind == failover.KindSync && e.Group.On
}

// sameGroups: every change of a group has a Rev of its own.
func sameGroups(a, b failover.State) bool {
	return slices.Equal(a.Drained, b.Drained) && maps.EqualFunc(a.Groups, b.Groups, func(x, y failover.Ownership) bool { return x.Rev == y.Rev && x.Term == y.Term })
}

// owns says whether a member owns a group, by what is agreed on.
func owns(s *command.State, name string) bool {
	for _, g := range s.Groups.Groups {
		if g.Node == name {
			return true
		}
	}
	return false
}

const (
	groupWait = 5 * time.Second // for what an operator asked for to happen
	groupPoll = 5 * time.Millisecond
)

// errNoGroups is for a node that was opened without a driver.
var errNoGroups = errors.New("this node takes no part in who serves a group")

// MoveGroup hands a group over to another node, and returns when that owns it. It may be asked of any member.
func (n *Node) MoveGroup(ctx context.Context, group, to string, who command.Who) error {
	g, ok := n.State().Groups.Groups[group]
	if !ok || g.Epoch == 0 {
		return refuseGroup("group %s has no owner: %s", group, n.groupNames())
	}
	if g.Node == to {
		return refuseGroup("%s owns group %s already", to, group)
	}
	ctx, cancel := context.WithTimeout(ctx, groupWait+4*n.cfg.RoundTrip())
	defer cancel()
	if err := n.moveAt(ctx, g.Node, group, to, who); err != nil {
		return err
	}
	return n.until(ctx, fmt.Sprintf("the move of group %s to %s", group, to), func() bool { return n.State().Groups.Groups[group].Node == to })
}

func (n *Node) moveAt(ctx context.Context, owner, group, to string, who command.Who) error {
	if owner == n.cfg.Name {
		if n.cfg.Groups == nil {
			return errNoGroups
		}
		return n.cfg.Groups.Move(ctx, group, to, who)
	}
	m, ok := n.State().Named(owner)
	if !ok || m.Address == "" {
		return refuseGroup("its owner, %s, is no member that could be asked: `demarc group take %s --force` on %s does it", owner, group, to)
	}
	a, _, _, err := n.call(ctx, m.Address, request{Kind: askMove, Group: group, Target: to, Who: who}, nil)
	switch {
	case err != nil:
		return fmt.Errorf("its owner, %s, does not answer: %w", owner, err)
	case a.Refused != "":
		return refuseGroup("%s", a.Refused)
	}
	return nil
}

// TakeGroup has this node own a group by force, and returns when it serves it.
func (n *Node) TakeGroup(ctx context.Context, group string, who command.Who) error {
	d := n.cfg.Groups
	if d == nil {
		return errNoGroups
	}
	ctx, cancel := context.WithTimeout(ctx, groupWait+4*n.cfg.RoundTrip())
	defer cancel()
	if err := d.Take(ctx, group, who); err != nil {
		return err
	}
	return n.until(ctx, "taking group "+group, func() bool {
		all, err := d.Owns(ctx)
		_, mine := all[group]
		return err == nil && mine
	})
}

// DrainNode says that a node, by its name, is to own nothing, or may again; no name = this one. It returns when the node owns nothing, or tells what it still does.
func (n *Node) DrainNode(ctx context.Context, name string, on bool, who command.Who) (left []string, err error) {
	if name == "" {
		if n.cfg.Role == command.RoleWitness {
			return nil, refuseGroup("%s, which is asked, is a witness: it owns no group, so name the node that is meant: the gateways are %s", n.cfg.Name, list(names(n.gateways())))
		}
		name = n.cfg.Name
	}
	if s := n.State(); !on { // the log takes it of anybody, as of one who has left meanwhile
		m, member := s.Named(name)
		if _, drained := slices.BinarySearch(s.Groups.Drained, name); !drained && !member {
			return nil, &command.Refusal{Why: command.WhyUnknown, Text: fmt.Sprintf("%s is neither drained nor a member: %s", name, whoIsDrained(s))}
		} else if !drained && m.Role == command.RoleWitness {
			return nil, refuseGroup("%s is a witness: it owns no group", name)
		}
	}
	if _, err := n.propose(ctx, &command.Entry{Kind: command.KindGroup, Who: who, Group: &failover.Entry{Kind: failover.KindDrain, Node: name, On: on}}); err != nil {
		return nil, err
	}
	still := func() (left []string) {
		for _, g := range slices.Sorted(maps.Keys(n.State().Groups.Groups)) {
			if n.State().Groups.Groups[g].Node == name && (n.cfg.Groups == nil || !n.cfg.Groups.ended(g)) {
				left = append(left, g)
			}
		}
		return left
	}
	if !on {
		return nil, nil
	}
	ctx, cancel := context.WithTimeout(ctx, groupWait+4*n.cfg.RoundTrip())
	defer cancel()
	_ = n.until(ctx, "", func() bool { return len(still()) == 0 }) // told by what is left
	return still(), nil
}

// whoIsDrained names those whom an undrain may be about.
func whoIsDrained(s *command.State) string {
	if len(s.Groups.Drained) == 0 {
		return "no node is drained, the members are " + list(names(s.Members))
	}
	return "drained are " + list(s.Groups.Drained) + ", the members are " + list(names(s.Members))
}

// until waits for what was begun.
func (n *Node) until(ctx context.Context, what string, ok func() bool) error {
	t := time.NewTicker(groupPoll)
	defer t.Stop()
	for !ok() {
		select {
		case <-t.C:
		case <-ctx.Done():
			return fmt.Errorf("%s was begun and is not done after %s: `demarc group` shows how it stands: %w: %w", what, groupWait, ErrUnknownOutcome, ctx.Err())
		}
	}
	return nil
}

func (n *Node) groupNames() string {
	names := slices.Sorted(maps.Keys(n.State().Groups.Groups))
	if len(names) == 0 {
		return "no group has one yet"
	}
	return "those that have one are " + list(names)
}

func refuseGroup(format string, args ...any) error {
	return &command.Refusal{Why: command.WhyGroup, Text: fmt.Sprintf(format, args...)}
}

// moveHere is the owner's answer to MoveGroup at another member.
func (n *Node) moveHere(ctx context.Context, q *request) (a answer) {
	d := n.cfg.Groups
	if d == nil {
		return answer{Refused: n.cfg.Name + ": " + errNoGroups.Error()}
	}
	if err := d.Move(ctx, q.Group, q.Target, q.Who); err != nil {
		a.Refused = err.Error()
	}
	return a
}

// better finds a gateway that owns nothing, to lead in place of one that owns a group; see prefer.
func (n *Node) better(s *command.State, voters []store.Voter) (out []command.Member) {
	if !owns(s, n.cfg.Name) {
		return nil
	}
	for _, v := range voters {
		if m, ok := s.Member(v.ID); ok && v.Votes && m.ID != n.id && !owns(s, m.Name) {
			out = append(out, m)
		}
	}
	return out
}
