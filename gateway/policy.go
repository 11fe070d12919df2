package gateway

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"reflect"
	"time"

	"demarc/configs"
	"demarc/gateway/api"
	"demarc/gateway/conntrack"
	"demarc/gateway/pipeline"
	"demarc/gateway/revisions"
	"demarc/gateway/slowpath"
	"demarc/gateway/snapshot"
)

func digest(text []byte) string {
	h := sha256.Sum256(text)
	return "sha256:" + hex.EncodeToString(h[:])
}

// firstPolicy serves the newest intact kept policy, else the one given at start, which keepFirst keeps when the start has succeeded.
func (g *Gateway) firstPolicy() error {
	r, damaged, err := g.store.Latest()
	if err != nil && !errors.Is(err, revisions.ErrNone) {
		return err
	}
	var lines []string
	for _, d := range damaged {
		lines = append(lines, d.String())
		g.log.Warn("kept policy is damaged and was passed over", "file", d.String())
	}
	g.problems.Store(&lines)
	if err == nil {
		p, v, cerr := g.compile(r.Meta.Source, r.Text, nil)
		if cerr != nil {
			return fmt.Errorf("the kept policy, revision %d, does not fit this node: %w", r.Number, cerr)
		}
		if err := v.Register(g.space); err != nil {
			return err
		}
		src := r.Meta.Source
		if g.o.Source != "" && digest(g.o.Policy) != "sha256:"+r.Digest {
			src = fmt.Sprintf("kept revision %d (applied from %s), not %s", r.Number, r.Meta.Source, g.o.Source)
		}
		g.serve(p, v, r.Text, &api.Revision{Number: r.Number, Digest: "sha256:" + r.Digest, Source: src, Name: p.Name, AppliedAt: r.Meta.Time})
		return nil
	}
	if len(g.o.Policy) == 0 {
		return errors.New("no policy: none is kept in the data directory, so give one with --policy FILE")
	}
	p, v, err := g.compile(g.o.Source, g.o.Policy, nil)
	if err != nil {
		return err
	}
	if err := v.Register(g.space); err != nil {
		return err
	}
	g.unkept = true
	g.serve(p, v, g.o.Policy, &api.Revision{Digest: digest(g.o.Policy), Source: g.o.Source, Name: p.Name, AppliedAt: time.Now().UTC()})
	return nil
}

// keepFirst keeps the policy given at start. Not sooner than it is served: a start that fails must not decide what the next one serves,
// whose file may have been mended meanwhile.
func (g *Gateway) keepFirst() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if !g.unkept {
		return nil
	}
	r, err := g.keep(g.text, g.o.Source)
	if err != nil {
		return err
	}
	r.Name = g.policy.Name
	g.unkept = false
	g.view.Load().Revision = r.Number // only the control side reads it
	g.revision.Store(r)
	return nil
}

// compile checks a text and makes the view that would serve it. It changes nothing.
func (g *Gateway) compile(source string, text []byte, prev *snapshot.View) (*configs.Policy, *snapshot.View, error) {
	p, err := configs.DecodePolicy(source, text)
	if err != nil {
		return nil, nil, err
	}
	if err := configs.CheckTogether(p, g.o.Node); err != nil {
		return nil, nil, err
	}
	v, err := snapshot.Compile(snapshot.Input{
		Policy: p, Node: g.o.Node, Links: g.links(), Prev: prev, Settled: g.settled.Load(), HomeSeed: g.seed, Ephemeral: g.eph,
		LinkLocal: slowpath.LinkLocal, Break: g.o.Break,
	})
	return p, v, err
}

// keep writes a text to disk before it is served.
func (g *Gateway) keep(text []byte, source string) (*api.Revision, error) {
	r, err := g.store.Save(text, revisions.Meta{Source: source, Time: time.Now().UTC()})
	if err != nil {
		return nil, fmt.Errorf("keep the policy: %w", err)
	}
	return &api.Revision{Number: r.Number, Digest: "sha256:" + r.Digest, Source: source, AppliedAt: r.Meta.Time}, nil
}

// serve makes v, whose addresses are registered, what workers will read. The caller holds mu, or is New.
func (g *Gateway) serve(p *configs.Policy, v *snapshot.View, text []byte, r *api.Revision) {
	v.Revision = r.Number
	v.Activate(g.space)
	g.policy, g.text = p, text
	g.revision.Store(r)
	g.view.Store(v)
	for _, p := range g.ports {
		p.served = g.compiledOf(p)
	}
	g.steer(v)
	for _, w := range g.workers {
		w.Publish(v)
	}
	if g.slow != nil {
		g.tellSlow(v)
	}
}

// tellSlow has the slow path work for v.
func (g *Gateway) tellSlow(v *snapshot.View) {
	g.slow.SetInterfaces(g.slowInterfaces(v))
	var hops []slowpath.NextHop
	for _, h := range v.NextHops() {
		hops = append(hops, slowpath.NextHop{Iface: h.Iface, Addr: h.Addr, Shared: h.Shared, State: h.State})
	}
	g.slow.SetNextHops(hops)
}

// steer has the XDP programs know what v and the host's addresses ask for. The caller holds mu, or is New.
func (g *Gateway) steer(v *snapshot.View) {
	for i, pt := range g.ports {
		if pt.prog == nil || pt.state == portGone {
			continue
		}
		c := g.programConfig(i, v)
		if reflect.DeepEqual(c, pt.loaded) {
			continue // the same program again: nothing to exchange on a live port
		}
		if err := pt.prog.Update(c); err != nil {
			g.log.Error("update the XDP program's tables", "port", pt.cfg.Name, "err", err)
			continue
		}
		pt.loaded = c
	}
}

// recompile serves the same policy again on changed links. The caller holds mu.
func (g *Gateway) recompile() error {
	p, v, err := g.compile(g.revision.Load().Source, g.text, g.view.Load())
	if err != nil {
		return err
	}
	if err := v.Register(g.space); err != nil {
		return err
	}
	g.serve(p, v, g.text, g.revision.Load())
	return nil
}

// ErrConflict says that the served revision is not the one that the caller had seen.
var ErrConflict = errors.New("conflict")

// Apply serves a new policy: checked, compiled, kept on disk, published, and taken up by every worker before it returns.
func (g *Gateway) Apply(ctx context.Context, req api.ApplyRequest) (*api.Applied, error) {
	start := time.Now()
	g.mu.Lock()
	defer g.mu.Unlock()
	if now := g.revision.Load().Number; req.Expected != 0 && req.Expected != now {
		return nil, fmt.Errorf("%w: revision %d is served, not %d: look at the difference again", ErrConflict, now, req.Expected)
	}
	if err := g.settle(ctx); err != nil {
		return nil, err
	}
	p, v, err := g.compile(req.Source, []byte(req.Policy), g.view.Load())
	if err != nil {
		return nil, err
	}
	cut, _, _, err := g.impact(ctx, v, 0)
	if err != nil {
		return nil, err
	}
	if err := v.Register(g.space); err != nil {
		return nil, err
	}
	changes := wireChanges(configs.Diff(g.policy, p))
	r, err := g.keep([]byte(req.Policy), req.Source)
	if err != nil {
		return nil, err
	}
	r.Name = p.Name
	g.unkept = false
	g.serve(p, v, []byte(req.Policy), r)
	if err := g.waitFor(ctx, v.Gen); err != nil {
		return nil, fmt.Errorf("revision %d is kept and published, but %w", r.Number, err)
	}
	v.Acknowledged(g.space)
	if err := g.republishBlocks(ctx); err != nil {
		return nil, fmt.Errorf("revision %d is served, but its tenants' blocked addresses are not taken up: %w", r.Number, err)
	}
	g.log.Info("policy applied", "revision", r.Number, "digest", r.Digest, "source", r.Source, "cut", cut, "took", time.Since(start).String())
	return &api.Applied{Revision: *r, Changes: changes, Cut: cut, Took: time.Since(start).Seconds()}, nil
}

// settle notes how far the workers have come with judging sessions again. It waits for nothing.
func (g *Gateway) settle(ctx context.Context) error {
	gen, all := g.view.Load().Gen, true
	err := g.each(ctx, func(_ int, sh *pipeline.Shard) { all = all && sh.Settled() && sh.View() != nil && sh.View().Gen == gen })
	if err == nil && all {
		g.settled.Store(gen)
		g.view.Load().Acknowledged(g.space) // again, should an apply have ended before the last worker's acknowledgement
	}
	return err
}

// Diff says what a policy would change and which live sessions it would end. It changes nothing.
func (g *Gateway) Diff(ctx context.Context, req api.DiffRequest) (*api.Diff, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	p, v, err := g.compile(req.Source, []byte(req.Policy), g.view.Load())
	if err != nil {
		return nil, err
	}
	d := &api.Diff{From: *g.revision.Load(), Digest: digest([]byte(req.Policy)), Changes: wireChanges(configs.Diff(g.policy, p))}
	d.Same = len(d.Changes) == 0
	if d.Cut, d.Checked, d.Cuts, err = g.impact(ctx, v, 100); err != nil {
		return nil, err
	}
	return d, nil
}

// impact counts the live sessions that would end under v, and lists the first of them.
func (g *Gateway) impact(ctx context.Context, v *snapshot.View, list int) (cut, checked int, cuts []api.Session, err error) {
	now := uint32(g.clock.Now() >> 20)
	err = g.walk(ctx, func(w int, sh *pipeline.Shard, slot uint32, se *conntrack.Session) bool {
		checked++
		if sh.WouldCut(v, se) {
			cut++
			if len(cuts) < list {
				cuts = append(cuts, g.wireSession(w, slot, se, now))
			}
		}
		return true
	})
	return cut, checked, cuts, err
}

func wireChanges(in []configs.Change) []api.Change {
	out := make([]api.Change, 0, len(in))
	for _, c := range in {
		path := c.Path
		if c.Tenant != "" {
			path = fmt.Sprintf("tenant %q: %s", c.Tenant, c.Path)
		}
		out = append(out, api.Change{Path: path, Was: c.Old, Now: c.New})
	}
	return out
}
