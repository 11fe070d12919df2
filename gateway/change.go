package gateway

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"time"

	"demarc/cluster"
	"demarc/cluster/command"
	"demarc/configs"
	"demarc/gateway/api"
	"demarc/gateway/meter"
	"demarc/gateway/snapshot"
)

// ErrConflict says that the served revision is not the one that the caller had seen.
var ErrConflict = errors.New("conflict")

// minConfirm is the shortest confirm time: below it nobody could confirm.
const minConfirm = time.Second

// prepared is a policy that was compiled before it was proposed, so that this is not done again when it is agreed on. It is good for the view that
// it was compiled against.
type prepared struct {
	digest, source string
	base           *snapshot.View
	policy         *configs.Policy
	view           *snapshot.View
	impact         impact
}

// outcome is what serving a revision did.
type outcome struct {
	number  uint64
	changes []api.Change
	impact  impact

	warnings []string
}

// outcomesKept is for how many revisions the outcome is remembered: an apply may learn late that its own was served and replaced.
const outcomesKept = 16

// change is a policy that somebody wants served, with what was found out about it.
type change struct {
	cluster.Change
	base   uint64   // the revision that it was held against
	except []string // gateways whose problems stop nothing

	warnings []string // of what can be served and is hardly meant
}

// serveRevision has the node serve what was agreed on: on its way forward, and on its way back. It returns when every worker does. The cluster's
// node calls it, one at a time.
func (g *Gateway) serveRevision(ctx context.Context, r command.Revision, text []byte) error {
	start := time.Now()
	if unknown := configs.Unknown(r.Features); len(unknown) > 0 {
		return fmt.Errorf("it uses %s, which this node's release (version %s) does not know: upgrade this node", command.Listed(unknown), g.o.Version)
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if err := g.settle(ctx); err != nil {
		return err
	}
	c := g.prepared
	g.prepared = nil
	if c == nil || c.digest != r.Digest || c.source != r.Source || c.base != g.view.Load() {
		var err error
		if c, err = g.judge(ctx, r.Source, text); err != nil {
			return err
		}
	}
	if err := c.view.Register(g.space); err != nil {
		return err
	}
	if r.Fate == command.FateProvisional {
		if err := g.store.Reserve(r.Number); err != nil { // it is in the replicated state: only without that its number could be given again
			g.log.Warn("note a revision's number", "revision", r.Number, "err", err)
		}
	}
	o := outcome{number: r.Number, changes: wireChanges(configs.Diff(g.policy, c.policy)), impact: c.impact}
	w, was := wireRevision(&r), g.view.Load()
	g.unkept = false
	g.serve(c.policy, c.view, text, &w)
	if err := g.waitFor(ctx, c.view.Gen); err != nil {
		return fmt.Errorf("it is published, but %w", err)
	}
	c.view.Acknowledged(g.space) // nor is anything under way by the old view in an XDP program: offloadView held all
	g.tellGone(was, c.view)
	if err := g.republishBlocks(ctx); err != nil {
		return fmt.Errorf("it is served, but its tenants' blocked addresses are not taken up: %w", err)
	}
	o.warnings = g.warnOwn(was, c.view)
	g.outcomes = append(g.outcomes, o)
	g.outcomes = g.outcomes[max(0, len(g.outcomes)-outcomesKept):]
	g.log.Info("policy applied", "revision", r.Number, "digest", w.Digest, "source", r.Source, "author", r.Author, "fate", string(r.Fate), "cut", o.impact.cut, "took", time.Since(start).String())
	return nil
}

// tellGone notes what tenants that have just been removed have passed here: no figure has it from now on, and who bills by volume may have asked last some time ago.
func (g *Gateway) tellGone(was, is *snapshot.View) {
	for _, t := range was.Tenants {
		if t == nil || is.TenantByName(t.Name) != nil {
			continue
		}
		out, in := backend{g}.volume(t.ID, meter.Out), backend{g}.volume(t.ID, meter.In)
		g.log.Info("tenant removed", "tenant", t.Name, "out_packets", out.Packets, "out_bytes", out.Bytes, "in_packets", in.Packets, "in_bytes", in.Bytes)
	}
}

// judge compiles a text and finds out what it would cut. The caller holds mu.
func (g *Gateway) judge(ctx context.Context, source string, text []byte) (*prepared, error) {
	base := g.view.Load()
	p, v, err := g.compile(source, text, base)
	if err != nil {
		return nil, err
	}
	i, err := g.impact(ctx, v, 0)
	if err != nil {
		return nil, err
	}
	return &prepared{command.Digest(text), source, base, p, v, i}, nil
}

// check finds every fault of a change that can be found before anybody agrees on it, and every error of a policy at once. It changes nothing.
func (g *Gateway) check(ctx context.Context, c *change) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if c.Expected != 0 && c.Expected != c.base {
		return fmt.Errorf("%w: revision %d is served, not %d: look at the difference again", ErrConflict, c.base, c.Expected)
	}
	_, err := g.checkText(ctx, c)
	return err
}

// checkText is check without what only the node knows that was asked. The caller holds mu.
func (g *Gateway) checkText(ctx context.Context, c *change) (impact, error) {
	if err := g.settle(ctx); err != nil {
		return impact{}, err
	}
	p, err := g.judge(ctx, c.Source, c.Text) // with the header of an export, so that errors name lines of the file as it was given
	if err != nil {
		return impact{}, err
	}
	if err := configs.CheckSound(p.policy, g.o.Node, g.eph); err != nil {
		return impact{}, err
	}
	if err := configs.CheckGroupsFollow(g.policy, p.policy, g.severalGateways()); err != nil {
		return impact{}, g.ofLater(err)
	}
	var left error
	if c.warnings, left, err = g.checkGroupNodes(p.policy); err == nil {
		err = left
	}
	if err != nil {
		return impact{}, err
	}
	c.Text = withoutHeader(c.Text)
	p.digest = command.Digest(c.Text)
	if err := g.store.Prove(c.Text); err != nil {
		return impact{}, fmt.Errorf("keep the policy: %w", err)
	}
	if err := p.view.Register(g.space); err != nil {
		return impact{}, err
	}
	c.Name, c.Features = p.policy.Name, p.policy.Uses()
	g.prepared = p
	return p.impact, nil
}

// checkGroupNodes holds the groups of a policy against the members; left = it takes one from this node, which serves it. Where nobody knows of any yet there is nothing to hold them against.
func (g *Gateway) checkGroupNodes(p *configs.Policy) (warnings []string, left, err error) {
	m, err := g.known()
	if err != nil {
		return nil, nil, nil // nothing can be agreed on either
	}
	var members []configs.NodeName
	for _, x := range m.State().Members {
		members = append(members, configs.NodeName{Name: x.Name, Witness: x.Role == command.RoleWitness})
	}
	if len(members) == 0 {
		return nil, nil, nil
	}
	list, err := configs.CheckGroupNodes(p, members)
	for i := range list {
		warnings = append(warnings, list[i].Error())
	}
	return warnings, configs.CheckGroupLeft(g.policy, p, g.o.Node.Name, members, g.owns), err
}

// propose checks a change, has the cluster agree on it, and returns when the node serves it.
func (g *Gateway) propose(ctx context.Context, start time.Time, c change) (*api.Applied, error) {
	within, cancel, m, closed := g.changer(ctx)
	if closed == nil {
		defer cancel()
		ctx = within
		c.base = m.State().Serving
	} else {
		c.base = g.revision.Load().Number
	}
	// A policy's own errors come first: they are there whatever becomes of the rest. The others compile it meanwhile.
	spared := slices.Contains(c.except, g.o.Node.Name)
	if closed == nil && !spared && (c.Change.Expected == 0 || c.Change.Expected == c.base) {
		asking, stop := context.WithCancel(ctx)
		defer stop()
		c.Asked = m.Ask(asking, c.Source, withoutHeader(c.Text), c.except)
	}
	if err := g.check(ctx, &c); err != nil && !spared {
		return nil, err
	}
	if closed != nil {
		return nil, closed
	}
	// What was found out holds against what was served then: another change in between is a conflict, also for whoever named no revision.
	c.Expected = c.base
	c.Change.Checked = !spared
	o, err := m.Apply(ctx, c.Change, c.except...)
	if err != nil {
		return nil, refusal(err)
	}
	a, err := g.applied(ctx, m, start, o.Revision)
	if err != nil && spared { // it was said before, and that it does not matter
		a, err = &api.Applied{Revision: wireRevision(&o.Revision), CutByTenant: map[string]int{}, Took: time.Since(start).Seconds()}, nil
	}
	if err == nil {
		outcomeOf(a, &o, g.o.Node.Name)
		a.Warnings = append(c.warnings, a.Warnings...)
	}
	return a, err
}

// outcomeOf adds what other gateways have said and done to what this node, by its name, knows of itself.
func outcomeOf(a *api.Applied, o *cluster.Outcome, own string) {
	for i, k := range o.Acks {
		n := api.Serves{Node: k.Name, Why: k.Why}
		if i < len(o.Checked) && o.Checked[i].Name == k.Name {
			c := &o.Checked[i]
			n.Later = c.Later != ""
			if n.Cut = c.Report.Cut; k.Name == own {
				n.Cut = a.Cut
			}
			for _, p := range c.Report.Problems {
				n.Problems = append(n.Problems, p.Text)
			}
		}
		a.Nodes = append(a.Nodes, n)
	}
}

// refusal makes what the cluster said no with a Fault.
func refusal(err error) error {
	var ref *command.Refusal
	var no *cluster.Rejection
	switch {
	case errors.As(err, &no):
		f := &api.Fault{Status: http.StatusUnprocessableEntity, Err: err}
		for _, n := range no.Nodes {
			for _, p := range n.Report.Problems {
				f.Problems = append(f.Problems, api.Problem{Node: n.Name, File: p.File, Line: p.Line, Path: p.Path, Value: p.Value, Want: p.Want, Text: n.Name + ": " + p.Text})
			}
			if n.Report.More > 0 {
				f.Problems = append(f.Problems, api.Problem{Node: n.Name, Text: fmt.Sprintf("%s: and %d more", n.Name, n.Report.More)})
			}
		}
		return f
	case errors.Is(err, cluster.ErrExcept):
		return &api.Fault{Status: http.StatusBadRequest, Err: err}
	case errors.As(err, &ref) && ref.Why == command.WhyUnknown:
		return &api.Fault{Status: http.StatusNotFound, Err: err}
	case errors.As(err, &ref) && ref.Why == command.WhyRelease:
		return &api.Fault{Status: http.StatusUnprocessableEntity, Err: err}
	case errors.As(err, &ref):
		return &api.Fault{Status: http.StatusConflict, Err: err}
	case errors.Is(err, cluster.ErrUnasked):
		return &api.Fault{Status: http.StatusServiceUnavailable, Err: err}
	case errors.Is(err, cluster.ErrLate):
		return &api.Fault{Status: http.StatusGatewayTimeout, Err: err}
	case errors.Is(err, cluster.ErrUnknownOutcome):
		return &api.Fault{Status: http.StatusGatewayTimeout, Err: fmt.Errorf("%w: demarc history tells", err)}
	}
	return &api.Fault{Status: http.StatusServiceUnavailable, Err: err}
}

// applied waits until the node serves a revision that was agreed on, and keeps it if it is confirmed.
func (g *Gateway) applied(ctx context.Context, m *member, start time.Time, r command.Revision) (*api.Applied, error) {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	err := m.Await(ctx, r.Number)
	g.mu.Lock()
	var o *outcome
	for i := range g.outcomes {
		if g.outcomes[i].number == r.Number {
			o = &g.outcomes[i]
		}
	}
	g.mu.Unlock()
	if err != nil && o == nil {
		return nil, fmt.Errorf("revision %d is agreed on, but this node does not serve it: %w", r.Number, err)
	}
	a := &api.Applied{Revision: wireRevision(&r), Changes: []api.Change{}, CutByTenant: map[string]int{}}
	if o != nil { // else it was served already
		a.Changes, a.Cut, a.CutByTenant, a.Warnings = o.changes, o.impact.cut, o.impact.byTenant, o.warnings
	}
	if err == nil {
		if kerr := m.AwaitKept(ctx, r.Number); kerr != nil {
			a.NotKept = kerr.Error()
		}
	}
	if r.Fate == command.FateProvisional {
		a.Confirm = r.Confirm.Seconds()
	}
	a.Took = time.Since(start).Seconds()
	return a, nil
}

// Apply has the cluster agree on a policy and returns when every worker of this node serves it.
func (g *Gateway) Apply(ctx context.Context, req api.ApplyRequest) (*api.Applied, error) {
	start := time.Now()
	confirm, err := confirmTime(req.Confirm)
	if err != nil {
		return nil, err
	}
	if err := short(req.Source, req.Comment); err != nil {
		return nil, err
	}
	return g.propose(ctx, start, change{Change: cluster.Change{Text: []byte(req.Policy), Source: req.Source, Comment: req.Comment, Expected: req.Expected,
		Confirm: confirm, Who: g.who(ctx)}, except: req.Except})
}

// short refuses words that no entry of the log holds, before anybody is asked.
func short(words ...string) error {
	for _, w := range words {
		if len(w) > command.MaxField {
			return api.BadRequest("a source or comment of %d bytes: at most %d", len(w), command.MaxField)
		}
	}
	return nil
}

func confirmTime(seconds float64) (time.Duration, error) {
	if seconds == 0 {
		return 0, nil
	}
	if !(seconds >= minConfirm.Seconds() && seconds <= command.MaxConfirm.Seconds()) {
		return 0, api.BadRequest("confirm within %g s: want %s to %gh", seconds, minConfirm, command.MaxConfirm.Hours())
	}
	return time.Duration(seconds * float64(time.Second)), nil
}

// Confirm keeps the provisional revision.
func (g *Gateway) Confirm(ctx context.Context, req api.ConfirmRequest) (*api.Confirmed, error) {
	who := g.who(ctx)
	ctx, cancel, m, err := g.changer(ctx)
	if err != nil {
		return nil, err
	}
	defer cancel()
	number := req.Revision
	if number == 0 {
		p, ok := m.Pending()
		if !ok {
			return nil, &api.Fault{Status: http.StatusConflict, Err: nothingPends(m.Node)}
		}
		number = p.Number
	}
	if err := m.Confirm(ctx, number, who); err != nil {
		return nil, refusal(err)
	}
	r, ok := m.State().Revision(number)
	if !ok {
		return nil, fmt.Errorf("revision %d is confirmed and forgotten already", number)
	}
	c := &api.Confirmed{Revision: wireRevision(r)}
	ctx, stop := context.WithTimeout(ctx, 10*time.Second)
	defer stop()
	if err := m.AwaitKept(ctx, number); err != nil {
		c.NotKept = err.Error()
	}
	g.log.Info("policy confirmed", "revision", number, "author", who.Author)
	return c, nil
}

// nothingPends says why there is nothing to confirm or take back: most often because it is too late.
func nothingPends(m *cluster.Node) error {
	s := m.State()
	if n := len(s.Revisions); n > 0 {
		if r := &s.Revisions[n-1]; r.Fate == command.FateExpired {
			return fmt.Errorf("too late: revision %d was not confirmed within %s, revision %d is served again", r.Number, r.Confirm, s.Serving)
		}
	}
	return fmt.Errorf("nothing waits for a confirmation: revision %d is served and confirmed", s.Serving)
}

// Rollback has the text of an earlier revision served again, as a new one; without a number it takes the provisional one back.
func (g *Gateway) Rollback(ctx context.Context, req api.RollbackRequest) (*api.Applied, error) {
	start, who := time.Now(), g.who(ctx)
	confirm, err := rollbackTime(&req)
	if err != nil {
		return nil, err
	}
	if req.To == 0 {
		return g.takeBack(ctx, start, who, req.Expected)
	}
	m, err := g.known()
	if err != nil {
		return nil, err
	}
	r, text, err := earlier(m.Node, req.To)
	if err != nil {
		return nil, err
	}
	return g.propose(ctx, start, change{Change: cluster.Change{Text: text, Source: r.Source, Comment: req.Comment, Expected: req.Expected, Back: req.To,
		Confirm: confirm, Who: who}})
}

// rollbackTime checks what is asked for before anybody is asked, and gives its confirm time.
func rollbackTime(r *api.RollbackRequest) (time.Duration, error) {
	confirm, err := confirmTime(r.Confirm)
	switch {
	case err != nil:
		return 0, err
	case r.To == 0 && (r.Confirm != 0 || r.Comment != ""):
		return 0, api.BadRequest("a confirm time and a comment belong to a rollback to a revision: name it")
	}
	return confirm, short(r.Comment)
}

// earlier is the revision that a rollback goes back to.
func earlier(n *cluster.Node, number uint64) (command.Revision, []byte, error) {
	r, text, err := n.Text(number)
	switch {
	case err != nil:
		return r, nil, &api.Fault{Status: http.StatusNotFound, Err: err}
	case n.State().Serving == number:
		return r, nil, &api.Fault{Status: http.StatusConflict, Err: fmt.Errorf("revision %d is served already", number)}
	}
	return r, text, nil
}

// provisional is the revision that a rollback without a number takes back.
func provisional(n *cluster.Node, expected uint64) (command.Revision, error) {
	p, ok := n.Pending()
	switch {
	case !ok:
		return p, &api.Fault{Status: http.StatusConflict, Err: fmt.Errorf("%w: name the revision to go back to", nothingPends(n))}
	case expected != 0 && expected != p.Number:
		return p, &api.Fault{Status: http.StatusConflict, Err: fmt.Errorf("%w: revision %d is served, not %d: look at the history again", ErrConflict, p.Number, expected)}
	}
	return p, nil
}

func (g *Gateway) takeBack(ctx context.Context, start time.Time, who command.Who, expected uint64) (*api.Applied, error) {
	ctx, cancel, m, err := g.changer(ctx)
	if err != nil {
		return nil, err
	}
	defer cancel()
	p, err := provisional(m.Node, expected)
	if err != nil {
		return nil, err
	}
	g.forget(p.Before)
	if err := m.TakeBack(ctx, p.Number, who); err != nil {
		return nil, refusal(err)
	}
	s := m.State()
	r, ok := s.Revision(s.Serving)
	if !ok {
		return nil, fmt.Errorf("revision %d is taken back, and revision %d is not kept", p.Number, s.Serving)
	}
	a, err := g.applied(ctx, m, start, *r)
	if err == nil {
		outcomeOf(a, &cluster.Outcome{Acks: m.Acknowledged(ctx, r.Number, nil)}, g.o.Node.Name)
	}
	return a, err
}

// forget drops the outcome of a revision that is about to be served again.
func (g *Gateway) forget(number uint64) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for i := range g.outcomes {
		if g.outcomes[i].number == number {
			g.outcomes[i].number = 0
		}
	}
}

// text is a kept revision, decoded.
func (g *Gateway) kept(number uint64) (command.Revision, []byte, error) {
	m, err := g.known()
	if err != nil {
		return command.Revision{}, nil, err
	}
	r, text, err := m.Text(number)
	if err != nil {
		return r, nil, &api.Fault{Status: http.StatusNotFound, Err: err}
	}
	return r, text, nil
}

// Diff says what a policy would change and which live sessions it would end. It changes nothing.
func (g *Gateway) Diff(ctx context.Context, req api.DiffRequest) (*api.Diff, error) {
	text, source := []byte(req.Policy), req.Source
	d := &api.Diff{}
	if req.To != 0 {
		if req.Policy != "" {
			return nil, api.BadRequest("the difference to a revision, or to a policy: not both")
		}
		r, kept, err := g.kept(req.To)
		if err != nil {
			return nil, err
		}
		w := wireRevision(&r)
		text, source, d.To = kept, fmt.Sprintf("revision %d", req.To), &w
	}
	var from *configs.Policy
	if req.From != 0 {
		r, kept, err := g.kept(req.From)
		if err != nil {
			return nil, err
		}
		if from, err = configs.DecodePolicy(fmt.Sprintf("revision %d", req.From), kept); err != nil {
			return nil, err
		}
		d.From = wireRevision(&r)
	}
	if err := g.difference(ctx, d, from, source, text); err != nil {
		return nil, err
	}
	d.Nodes = g.elsewhere(ctx, source, withoutHeader(text))
	return d, nil
}

// elsewhere asks the other gateways what a text would end there.
func (g *Gateway) elsewhere(ctx context.Context, source string, text []byte) (out []api.Elsewhere) {
	m, err := g.known()
	if err != nil {
		return nil // status says why
	}
	list, err := m.CheckOthers(ctx, source, text)
	if err != nil {
		return nil
	}
	for _, c := range list {
		e := api.Elsewhere{Node: c.Name, Why: c.Later, Cut: c.Report.Cut, Checked: c.Report.Sessions, CutByTenant: c.Report.Tenants}
		for _, p := range c.Report.Problems {
			e.Problems = append(e.Problems, p.Text)
		}
		out = append(out, e)
	}
	return out
}

// difference fills in what this node knows. A nil from is what it serves.
func (g *Gateway) difference(ctx context.Context, d *api.Diff, from *configs.Policy, source string, text []byte) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if from == nil {
		from, d.From = g.policy, *g.revision.Load()
	}
	p, v, err := g.compile(source, text, g.view.Load())
	if err != nil {
		return err
	}
	if err := configs.CheckSound(p, g.o.Node, g.eph); err != nil {
		return err
	}
	d.Digest, d.Changes = digest(withoutHeader(text)), wireChanges(configs.Diff(from, p))
	d.Same = len(d.Changes) == 0
	var left error
	if d.Warnings, left, err = g.checkGroupNodes(p); err != nil {
		return err
	}
	if left != nil { // what it would cut is shown all the same
		d.Warnings = append(d.Warnings, left.Error())
	}
	i, err := g.impact(ctx, v, 100)
	d.Cut, d.CutByTenant, d.Checked, d.Cuts = i.cut, i.byTenant, i.checked, i.cuts
	return err
}

func wireRevision(r *command.Revision) api.Revision {
	return api.Revision{Number: r.Number, Digest: "sha256:" + r.Digest, Source: r.Source, Name: r.Name, Author: r.Author, Comment: r.Comment, AppliedAt: r.Time}
}
