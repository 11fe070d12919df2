package gateway

import (
	"context"
	"errors"
	"fmt"
	"math"
	"net/http"
	"slices"
	"time"

	"demarc/cluster"
	"demarc/cluster/beat"
	"demarc/cluster/command"
	"demarc/configs"
	"demarc/gateway/api"
)

// membership answers what is asked about members, on a gateway and on a witness alike.
type membership struct {
	name string
	dir  string // of the replicated state
	node func() (*cluster.Node, error)
	// ready is the node once changes can be proposed. done ends what was begun with the context.
	ready func(ctx context.Context) (within context.Context, n *cluster.Node, done func(), err error)

	driver  *cluster.Driver
	carrier func() *beat.Carrier               // nil = there is none
	problem func() string                      // why the node takes no part in who serves a group; "" = it does; nil = it always does
	copies  func(group string) []api.GroupCopy // of what this node serves; nil = it serves nothing
	held    func(*api.Groups)                  // puts in what this node copies of others; nil = it copies nothing
	group   func(name string) (id int)         // in the policy that is served; 0 = it does not have it
}

// clusterNet is where other members reach a node; nil = nowhere.
func clusterNet(c *configs.Cluster) *cluster.Net {
	if c == nil {
		return nil
	}
	return &cluster.Net{Listen: c.Listen, Advertise: c.Advertise, Paths: c.Paths, Keys: c.Keys, RoundTrip: c.RoundTrip.Duration}
}

func (m membership) who(ctx context.Context) command.Who {
	p := api.PeerOf(ctx)
	w := command.Who{Author: p.Name, From: m.name}
	if p.From != "" {
		w.From += ", " + p.From
	}
	return w
}

func (m membership) Members(context.Context) (*api.Members, error) {
	n, err := m.node()
	if err != nil {
		return nil, err
	}
	s := n.State()
	out := &api.Members{Cluster: n.ClusterID(), Node: m.name, Address: n.Address(), Tokens: len(s.Tokens), Refused: map[string]uint64{}, Members: []api.MemberState{}, Revoked: []api.RevokedClient{}}
	for _, v := range s.Revoked {
		out.Revoked = append(out.Revoked, api.RevokedClient{Client: v.Client, Key: v.Key, Why: v.Why, By: v.By, Time: v.Time})
	}
	e := n.Election()
	out.Election = api.Election{Term: e.Term, Led: e.Led, Stood: e.Stood}
	w := n.Writes()
	out.Log = api.LogWrites{Count: w.Count, Seconds: w.Total.Seconds(), Longest: w.Longest.Seconds()}
	for kind, count := range n.Refused() {
		out.Refused[string(kind)] = count
	}
	for _, x := range n.Members() {
		o := api.MemberState{Name: x.Member.Name, ID: x.Member.ID, Role: string(x.Member.Role), Address: x.Member.Address, Version: x.Member.Version, Level: x.Member.Level,
			Features: x.Member.Features, Lacks: x.Lacks,
			Votes: x.Votes, Leads: x.Leads, Self: x.Self, ClockOff: math.Round(x.Offset.Seconds()), Problem: x.Problem}
		if x.Status != nil {
			ago := x.Ago.Seconds()
			o.Answered, o.Serving, o.Applied, o.Stopped = &ago, x.Status.Serving, x.Status.Applied, x.Status.Stopped
			if !x.Status.Until.IsZero() {
				o.Until = &x.Status.Until
			}
		}
		if x.Leads {
			out.Leader = x.Member.Name
		}
		out.Members = append(out.Members, o)
	}
	return out, nil
}

// refusedByMembers is a change of the members that was not made.
func refusedByMembers(err error) error {
	var r *command.Refusal
	switch {
	case err == nil:
		return nil
	case errors.As(err, &r), !errors.Is(err, context.DeadlineExceeded) && !errors.Is(err, cluster.ErrUnknownOutcome):
		return &api.Fault{Status: http.StatusConflict, Err: err}
	case errors.Is(err, cluster.ErrUnknownOutcome):
		return &api.Fault{Status: http.StatusGatewayTimeout, Err: err}
	}
	return &api.Fault{Status: http.StatusServiceUnavailable, Err: err}
}

func (m membership) Token(ctx context.Context, r api.TokenRequest) (*api.Token, error) {
	role := command.Role(r.Role)
	if role != command.RoleGateway && role != command.RoleWitness {
		return nil, api.BadRequest("role %q: want gateway or witness", r.Role)
	}
	if !(r.Seconds >= 1 && r.Seconds <= command.MaxTokenLife.Seconds()) {
		return nil, api.BadRequest("a token good for %g s: want 1 to %g", r.Seconds, command.MaxTokenLife.Seconds())
	}
	ctx, n, done, err := m.ready(ctx)
	if err != nil {
		return nil, err
	}
	defer done()
	token, until, err := n.Token(ctx, role, time.Duration(r.Seconds*float64(time.Second)), m.who(ctx))
	if err != nil {
		return nil, refusedByMembers(err)
	}
	return &api.Token{Token: token, Role: r.Role, Until: until, Address: n.Address()}, nil
}

// Kept is how much of the past the cluster keeps, and has.
func (m membership) Kept(context.Context) (*api.Kept, error) {
	n, err := m.node()
	if err != nil {
		return nil, err
	}
	s := n.State()
	k := &api.Kept{Bounds: api.Bounds{Revisions: s.Bounds.Revisions, Seconds: s.Bounds.Age.Seconds(), TextBytes: s.Bounds.TextBytes, Audit: s.Bounds.Audit}}
	k.Now.Revisions, k.Now.Audit = len(s.Revisions), len(s.Audit)
	if len(s.Revisions) > 1 {
		k.Now.Seconds = (s.Elapsed - s.Revisions[1].Since).Seconds()
	}
	seen := map[string]bool{}
	for i := range s.Revisions {
		if r := &s.Revisions[i]; !seen[r.Digest] {
			seen[r.Digest] = true
			k.Now.TextBytes += int64(r.Bytes)
		}
	}
	return k, nil
}

// Keep changes it.
func (m membership) Keep(ctx context.Context, r api.KeepRequest) (*api.Kept, error) {
	b := command.Bounds{Revisions: r.Revisions, Age: time.Duration(r.Seconds * float64(time.Second)), TextBytes: r.TextBytes, Audit: r.Audit}
	if err := b.Check(); err != nil {
		return nil, api.BadRequest("%v", err)
	}
	ctx, n, done, err := m.ready(ctx)
	if err != nil {
		return nil, err
	}
	defer done()
	if err := n.Keep(ctx, b, m.who(ctx)); err != nil {
		return nil, refusedByMembers(err)
	}
	return m.Kept(ctx)
}

// awhile waits, for a second at most, until this node has heard of what was agreed on just now. An answer that comes before that is only older.
func awhile(ctx context.Context, ok func() bool) {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	t := time.NewTicker(2 * time.Millisecond)
	defer t.Stop()
	for !ok() {
		select {
		case <-t.C:
		case <-ctx.Done():
			return
		}
	}
}

// change makes one change and lists the members after it.
func (m membership) change(ctx context.Context, r api.MemberRequest, fn func(n *cluster.Node, ctx context.Context, name string, who command.Who) error) (*api.Members, error) {
	if r.Name == "" {
		return nil, api.BadRequest("name a member")
	}
	ctx, n, done, err := m.ready(ctx)
	if err != nil {
		return nil, err
	}
	defer done()
	if err := fn(n, ctx, r.Name, m.who(ctx)); err != nil {
		return nil, refusedByMembers(err)
	}
	return m.Members(ctx)
}

func (m membership) Remove(ctx context.Context, r api.MemberRequest) (*api.Members, error) {
	if r.Name == m.name {
		return nil, api.BadRequest("%s is the node that you ask: demarc cluster leave", r.Name)
	}
	out, err := m.change(ctx, r, (*cluster.Node).Remove)
	if err == nil {
		out.Warnings = m.named(ctx, r.Name)
	}
	return out, err
}

// named warns of groups of the policy that name a node which is no member any more.
func (m membership) named(ctx context.Context, node string) (warnings []string) {
	if m.driver == nil {
		return nil
	}
	list, err := m.driver.Status(ctx)
	if err != nil {
		return nil
	}
	for _, s := range list {
		if slices.Contains(s.Group.Nodes, node) {
			warnings = append(warnings, fmt.Sprintf("group %s names %s still, which takes nothing over any more: name another node in the policy", s.Group.Name, node))
		}
	}
	return warnings
}

func (m membership) Promote(ctx context.Context, r api.MemberRequest) (*api.Members, error) {
	return m.change(ctx, r, (*cluster.Node).Promote)
}

func (m membership) Lead(ctx context.Context, r api.MemberRequest) (*api.Members, error) {
	return m.change(ctx, r, (*cluster.Node).Yield)
}

func (m membership) Leave(ctx context.Context, r api.MemberRequest) (*api.Left, error) {
	if r.Name != m.name {
		return nil, api.BadRequest("this node is %s, not %s: ask that one, or demarc cluster remove %s", m.name, r.Name, r.Name)
	}
	ctx, n, done, err := m.ready(ctx)
	if err != nil {
		return nil, err
	}
	defer done()
	serving := uint64(0)
	for _, x := range n.Members() {
		if x.Self && x.Status != nil {
			serving = x.Status.Serving
		}
	}
	if err := n.Remove(ctx, m.name, m.who(ctx)); err != nil {
		return nil, refusedByMembers(err)
	}
	return &api.Left{Name: m.name, Serving: serving, Dir: m.dir}, nil
}

func (m membership) Revoke(ctx context.Context, r api.RevokeRequest) (*api.Members, error) {
	ctx, n, done, err := m.ready(ctx)
	if err != nil {
		return nil, err
	}
	defer done()
	if r.Client == "" {
		return nil, api.BadRequest("name a client")
	}
	if err := n.Revoke(ctx, command.Revoke{Client: r.Client, Key: r.Key, Why: r.Why, Undo: r.Undo}, m.who(ctx)); err != nil {
		return nil, refusedByMembers(err)
	}
	// Where another node leads, its answer may be here before the entry is, and the list would be the one before.
	awhile(ctx, func() bool {
		return r.Undo != slices.ContainsFunc(n.State().Revoked, func(v command.Revoked) bool { return v.Client == r.Client && v.Key == r.Key })
	})
	return m.Members(ctx)
}

// membership answers for the gateway.
func (g *Gateway) membership() membership {
	return membership{name: g.o.Node.Name, dir: g.clusterDir(),
		node: func() (*cluster.Node, error) {
			m, err := g.known()
			if err != nil {
				return nil, err
			}
			return m.Node, nil
		},
		ready: func(ctx context.Context) (context.Context, *cluster.Node, func(), error) {
			ctx, cancel, m, err := g.changer(ctx)
			if err != nil {
				return nil, nil, nil, err
			}
			return ctx, m.Node, cancel, nil
		},
		driver: g.groups.driver, copies: g.copiesOf, held: g.heldHere, carrier: g.groups.carrier.Load, problem: func() string {
			if p := g.groups.problem.Load(); p != nil {
				return *p
			}
			return ""
		}, group: func(name string) int {
			if x := g.view.Load().GroupByName(name); x != nil {
				return int(x.ID)
			}
			return 0
		}}
}

func (b backend) Members(ctx context.Context) (*api.Members, error) {
	return b.g.membership().Members(ctx)
}

func (b backend) Token(ctx context.Context, r api.TokenRequest) (*api.Token, error) {
	return b.g.membership().Token(ctx, r)
}

func (b backend) Remove(ctx context.Context, r api.MemberRequest) (*api.Members, error) {
	return b.g.membership().Remove(ctx, r)
}

func (b backend) Promote(ctx context.Context, r api.MemberRequest) (*api.Members, error) {
	return b.g.membership().Promote(ctx, r)
}

func (b backend) Lead(ctx context.Context, r api.MemberRequest) (*api.Members, error) {
	return b.g.membership().Lead(ctx, r)
}

func (b backend) Leave(ctx context.Context, r api.MemberRequest) (*api.Left, error) {
	return b.g.membership().Leave(ctx, r)
}

func (b backend) Kept(ctx context.Context) (*api.Kept, error) { return b.g.membership().Kept(ctx) }

func (b backend) Keep(ctx context.Context, r api.KeepRequest) (*api.Kept, error) {
	return b.g.membership().Keep(ctx, r)
}

func (b backend) Revoke(ctx context.Context, r api.RevokeRequest) (*api.Members, error) {
	return b.g.membership().Revoke(ctx, r)
}

// compiler is what this gateway says of a text to whichever node proposes it.
type compiler struct{ g *Gateway }

// Check finds all that check does, and keeps what it has compiled for when that is agreed on.
func (c compiler) Check(ctx context.Context, source string, text []byte) cluster.Report {
	ch := change{Change: cluster.Change{Text: text, Source: source}}
	c.g.mu.Lock()
	i, err := c.g.checkText(ctx, &ch)
	c.g.mu.Unlock()
	if err == nil {
		return cluster.Report{Name: ch.Name, Features: ch.Features, Sessions: i.checked, Cut: i.cut, Tenants: i.byTenant, Warnings: ch.warnings}
	}
	var out cluster.Report
	if f := (*api.Fault)(nil); errors.As(faultOf(err), &f) {
		for _, p := range f.Problems {
			out.Problems = append(out.Problems, cluster.Problem{File: p.File, Line: p.Line, Path: p.Path, Value: p.Value, Want: p.Want, Text: p.Text})
		}
	}
	if len(out.Problems) == 0 {
		out.Problems = []cluster.Problem{{Text: err.Error()}}
	}
	return out
}
