package gateway

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"

	"demarc/cluster"
	"demarc/cluster/beat"
	"demarc/cluster/command"
	"demarc/cluster/failover"
	"demarc/configs"
	"demarc/gateway/api"
	"demarc/gateway/pipeline"
)

// groupsOf is what a node knows of groups. id finds one in the policy that is served; nil = this node has no data plane, and none is found.
func groupsOf(ctx context.Context, name string, d *cluster.Driver, id func(string) int) (*api.Groups, error) {
	all, err := d.Status(ctx)
	if err != nil {
		return &api.Groups{Node: name, Groups: []api.Group{}, Problem: err.Error()}, ctx.Err()
	}
	f := d.Figures()
	out := &api.Groups{Node: name, Groups: []api.Group{}, Clock: api.GroupClock{Gaps: f.Gaps, Longest: f.Longest.Seconds(), Lost: f.Lost, Realtime: f.Realtime}}
	drained := map[string]bool{}
	for _, s := range all {
		g := api.Group{Name: s.Group.Name, ID: id(s.Group.Name), Nodes: slices.Clone(s.Group.Nodes), Owner: s.Node, Epoch: s.Epoch, Serving: s.Serving, Lease: s.Left.Seconds(),
			Alone: string(s.Ownership.Alone), Solo: s.Status.Alone, InSync: s.InSync, Cause: string(s.Cause), From: s.From, Expected: s.Gap.Seconds(), Why: slices.Clone(s.Why)}
		g.Conditions = map[string]int{}
		for _, c := range failover.Conditions {
			g.Conditions[string(c)] = s.Against[c]
			if n := s.Against[c]; n > 0 {
				g.Against = append(g.Against, conditionWords(c, n))
			}
		}
		if g.Nodes == nil {
			g.Nodes = []string{}
			g.Why = []string{"this node knows the group from the log alone, and not from a policy: ask a gateway that serves it"}
		}
		if g.Why == nil {
			g.Why = []string{}
		}
		if l := s.Last; l != nil {
			g.Last = &api.GroupMove{Epoch: l.Epoch, From: l.From, To: l.To, Cause: string(l.Cause), Time: l.At}
			if l.Seen {
				gap := l.Gap.Seconds()
				g.Last.Gap = &gap
			}
		}
		for _, n := range s.Drained {
			drained[n] = true
		}
		out.Groups = append(out.Groups, g)
	}
	for n := range drained {
		out.Drained = append(out.Drained, n)
	}
	slices.Sort(out.Drained)
	return out, nil
}

// pathsOf is how datagrams fare. A member without a path is there too: that is what somebody has to know.
func pathsOf(s beat.Status) ([]api.GroupPath, map[string]uint64) {
	var paths []api.GroupPath
	for _, p := range s.Peers {
		why := ""
		if !p.Keyed {
			if why = p.Problem; why == "" {
				why = "no keys yet"
			}
		}
		for _, w := range p.Paths {
			heard := -1.0
			if w.Heard >= 0 {
				heard = w.Heard.Seconds()
			}
			paths = append(paths, api.GroupPath{Member: p.Name, Local: w.Local, Remote: w.Remote, Heard: heard, RoundTrip: w.RoundTrip.Seconds(), Loss: w.Loss, Problem: why})
		}
		if len(p.Paths) == 0 {
			paths = append(paths, api.GroupPath{Member: p.Name, Heard: -1, Problem: cmp.Or(why, "it has told no address yet")})
		}
	}
	dropped := map[string]uint64{}
	for d, n := range s.Dropped {
		dropped[string(d)] = n
	}
	return paths, dropped
}

// conditionWords say what counts against a node.
func conditionWords(c failover.Cause, n int) string {
	switch c {
	case failover.CausePort:
		return fmt.Sprintf("%d of its ports carry nothing", n)
	case failover.CauseUplink:
		return "no next hop of the backbone answers, backups aside"
	case failover.CauseWorker:
		return fmt.Sprintf("%d workers do not answer", n)
	case failover.CausePolicy:
		return "it could not serve the policy that is agreed on"
	case failover.CausePanics:
		return "packets have met faults of the gateway's own within the last minute"
	}
	return string(c)
}

// Groups says who serves which group, as far as this node knows.
func (m membership) Groups(ctx context.Context) (*api.Groups, error) {
	out, err := groupsOf(ctx, m.name, m.driver, m.group)
	if err != nil {
		return nil, err
	}
	if m.copies != nil {
		for i := range out.Groups {
			x := &out.Groups[i]
			x.Copies = m.copies(x.Name)
			whyNot(x)
		}
	}
	if m.held != nil {
		m.held(out)
	}
	if c := m.carrier(); c != nil {
		out.Paths, out.Dropped = pathsOf(c.Status())
	}
	n, err := m.node()
	switch {
	case m.problem != nil && m.problem() != "":
		out.Problem = m.problem()
	case err != nil && out.Problem == "" && len(out.Groups) > 0:
		out.Problem = err.Error() + ": what is agreed on is not heard of here, and nothing is proposed"
	case err == nil:
		out.Drained = n.State().Groups.Drained
	}
	return out, nil
}

// whyNot puts the owner's reason behind what the machine says of a copy.
func whyNot(x *api.Group) {
	for _, c := range x.Copies {
		for i, w := range x.Why {
			if c.Why != "" && w == failover.NotInSync(c.Node) {
				x.Why[i] += ": " + c.Why
			}
		}
	}
}

// GroupEvents are lines of the audit log that are about groups, and what this node did and saw, by time.
func (m membership) GroupEvents(context.Context) (*api.GroupEvents, error) {
	out := &api.GroupEvents{Events: []api.GroupEvent{}}
	for _, e := range m.driver.Events() {
		out.Events = append(out.Events, api.GroupEvent{Time: e.Time, Node: m.name, Group: e.Group, What: e.Words})
	}
	if n, err := m.node(); err == nil {
		for _, l := range n.State().Audit {
			if l.Kind == command.KindGroup {
				out.Events = append(out.Events, api.GroupEvent{Time: l.Time, What: l.What, By: l.Who.Author})
			}
		}
	}
	slices.SortStableFunc(out.Events, func(a, b api.GroupEvent) int { return a.Time.Compare(b.Time) })
	return out, nil
}

// refusedGroup is a wish about a group that was not carried out.
func refusedGroup(err error) error {
	var r *command.Refusal
	switch {
	case err == nil:
		return nil
	case errors.As(err, &r):
		return &api.Fault{Status: http.StatusConflict, Err: err}
	case errors.Is(err, cluster.ErrUnknownOutcome):
		return &api.Fault{Status: http.StatusGatewayTimeout, Err: err}
	}
	return &api.Fault{Status: http.StatusServiceUnavailable, Err: err}
}

func (m membership) MoveGroup(ctx context.Context, r api.MoveRequest) (*api.Groups, error) {
	if r.Group == "" || r.To == "" {
		return nil, api.BadRequest("name a group, and the node that it is to move to")
	}
	ctx, n, done, err := m.ready(ctx)
	if err != nil {
		return nil, err
	}
	defer done()
	if _, ok := n.State().Groups.Groups[r.Group]; !ok && m.group(r.Group) == 0 {
		if near := configs.Nearest(r.Group, slices.Collect(maps.Keys(n.State().Groups.Groups))); near != "" {
			return nil, &api.Fault{Status: http.StatusNotFound, Err: fmt.Errorf("there is no group %s: did you mean %s?", r.Group, near)}
		}
	}
	if err := n.MoveGroup(ctx, r.Group, r.To, m.who(ctx)); err != nil {
		return nil, refusedGroup(err)
	}
	// It is agreed on: what this node shows of it, and whether it serves, is a moment behind.
	var out *api.Groups
	awhile(ctx, func() bool {
		if out, err = m.Groups(ctx); err != nil {
			return true
		}
		i := slices.IndexFunc(out.Groups, func(g api.Group) bool { return g.Name == r.Group })
		return i >= 0 && out.Groups[i].Owner == r.To && out.Groups[i].Serving == (r.To == m.name)
	})
	return out, err
}

// TakeGroup needs no majority and no open log: it is for when there is none.
func (m membership) TakeGroup(ctx context.Context, r api.TakeRequest) (*api.Groups, error) {
	switch {
	case r.Group == "":
		return nil, api.BadRequest("name a group")
	case !r.Force:
		return nil, api.BadRequest("taking group %s is by force alone: whoever asks for it answers for it that no other node serves the group; see `demarc group move` for what is not by force", r.Group)
	}
	n, err := m.node()
	if err != nil {
		return nil, err
	}
	if err := n.TakeGroup(ctx, r.Group, m.who(ctx)); err != nil {
		return nil, refusedGroup(err)
	}
	return m.Groups(ctx)
}

// owns reports whether this node serves a group, by its name in the policy that is served.
func (g *Gateway) owns(group string) (own bool) {
	for _, x := range g.view.Load().Groups() {
		if x.Name == group {
			g.common.soon(func(c *pipeline.Common, _ int64) { own = c.Owns(x.ID) })
		}
	}
	return own
}

func (m membership) Drain(ctx context.Context, r api.DrainRequest) (*api.Drained, error) {
	ctx, n, done, err := m.ready(ctx)
	if err != nil {
		return nil, err
	}
	defer done()
	out := &api.Drained{Node: r.Node, Undo: r.Undo}
	if out.Node == "" {
		out.Node = m.name
	}
	if out.Still, err = n.DrainNode(ctx, r.Node, !r.Undo, m.who(ctx)); err != nil { // which knows whether a node is named
		return nil, refusedGroup(err)
	}
	return out, nil
}

func (b backend) Groups(ctx context.Context) (*api.Groups, error) {
	return b.g.membership().Groups(ctx)
}

func (b backend) GroupEvents(ctx context.Context) (*api.GroupEvents, error) {
	return b.g.membership().GroupEvents(ctx)
}

func (b backend) MoveGroup(ctx context.Context, r api.MoveRequest) (*api.Groups, error) {
	return b.g.membership().MoveGroup(ctx, r)
}

func (b backend) TakeGroup(ctx context.Context, r api.TakeRequest) (*api.Groups, error) {
	return b.g.membership().TakeGroup(ctx, r)
}

func (b backend) Drain(ctx context.Context, r api.DrainRequest) (*api.Drained, error) {
	return b.g.membership().Drain(ctx, r)
}
