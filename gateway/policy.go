package gateway

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"time"

	"demarc/cluster/command"
	"demarc/configs"
	"demarc/gateway/api"
	"demarc/gateway/conntrack"
	"demarc/gateway/flow"
	"demarc/gateway/pipeline"
	"demarc/gateway/revisions"
	"demarc/gateway/slowpath"
	"demarc/gateway/snapshot"
	"demarc/gateway/worker"
)

func digest(text []byte) string {
	h := sha256.Sum256(text)
	return "sha256:" + hex.EncodeToString(h[:])
}

// reading changes when the same text means something else than it did to the release before: what that one has judged is judged again then.
const reading = "3: objects that hold nothing are nobody; hosts outside the prefixes are reached by nobody; what comes from where a forward leads to leaves by it\n"

// standsFor is a number for a policy's text, the same on every node that reads it the same way.
func standsFor(text []byte) uint64 {
	h := sha256.Sum256(append([]byte(reading), text...))
	return binary.LittleEndian.Uint64(h[:]) | 1
}

// KeepsPolicy reports whether a policy is kept in a node's data directory, which a start serves: an applied one, or the cluster's since the node has joined.
func KeepsPolicy(n *configs.Node) bool { return revisions.Any(filepath.Join(n.DataDir, "policies")) }

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
		if r, err = g.readable(r); err != nil {
			return err
		}
	}
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
		g.serve(p, v, r.Text, &api.Revision{Number: r.Number, Digest: "sha256:" + r.Digest, Source: src, Name: p.Name, Author: r.Meta.Author, Comment: r.Meta.Comment, AppliedAt: r.Meta.Time})
		g.unsound(configs.CheckSound(p, g.o.Node, g.eph))
		return nil
	}
	if len(g.o.Policy) == 0 {
		if g.o.NoPolicy != nil {
			return fmt.Errorf("no policy: none of those that are kept in %s can be read, and the one for a first start cannot either: %w", g.policiesDir(), g.o.NoPolicy)
		}
		if len(damaged) > 0 {
			return fmt.Errorf("no policy: none of those that are kept in %s is intact, so give one with --policy FILE", g.policiesDir())
		}
		return errors.New("no policy: none is kept in the data directory, so give one with --policy FILE, or join a cluster before the start (demarc cluster join), which brings its own")
	}
	p, v, err := g.compile(g.o.Source, g.o.Policy, nil)
	if err == nil {
		sound := configs.CheckSound(p, g.o.Node, g.eph)
		if len(damaged) > 0 { // this node has served something, and it may have been this
			g.unsound(sound)
		} else {
			err = sound
		}
	}
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

// unsound says what is wrong with a policy that is served because an earlier release took it.
func (g *Gateway) unsound(err error) {
	if err == nil {
		return
	}
	for line := range strings.Lines(err.Error()) {
		g.log.Warn("the policy that is served would not be taken anew: mend it and apply it", "problem", strings.TrimSuffix(line, "\n"))
	}
}

// readable is the newest kept policy from r on backwards that uses nothing that this release does not know: after a downgrade the node serves what it served before, and
// never a part of a policy. What was passed over is said.
func (g *Gateway) readable(r revisions.Revision) (revisions.Revision, error) {
	all, _, err := g.store.List()
	if err != nil {
		return r, err
	}
	var passed []string
	for _, o := range all {
		if o.Number > r.Number {
			continue
		}
		unknown := configs.Unknown(o.Meta.Features)
		if len(unknown) == 0 {
			g.later = passed
			if o.Number == r.Number {
				return r, nil
			}
			return g.store.Get(o.Number)
		}
		why := fmt.Sprintf("revision %d uses %s, which this release (version %s) does not know", o.Number, command.Listed(unknown), g.o.Version)
		g.log.Error("kept policy is of a later release and is not served: upgrade this node", "why", why)
		passed = append(passed, why)
	}
	return r, fmt.Errorf("%s, and no earlier policy is kept: upgrade this node; nothing is served, its ports stay closed", passed[0])
}

// ofLater says of keys that this release does not know, and another member's does, what would be right.
func (g *Gateway) ofLater(err error) error {
	var list configs.ErrorList
	m, _ := g.known()
	if m == nil || !errors.As(err, &list) {
		return err
	}
	for i := range list {
		if f := list[i].Feature(); f != "" {
			if who := m.KnownTo(f); who != "" {
				list[i].Msg, list[i].Want = "is of a later release, which "+who+" runs", fmt.Sprintf("upgrade %s (version %s) first", g.o.Node.Name, g.o.Version)
			}
		}
	}
	return err
}

// keepFirst keeps the policy given at start. Not sooner than it is served: a start that fails must not decide what the next one serves,
// whose file may have been mended meanwhile.
func (g *Gateway) keepFirst() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if !g.unkept {
		return nil
	}
	k, err := g.store.Save(g.text, revisions.Meta{Author: "start", Source: g.o.Source, Time: time.Now().UTC(), Features: g.policy.Uses()})
	if err != nil {
		return fmt.Errorf("keep the policy: %w", err)
	}
	g.unkept = false
	g.view.Load().Revision = k.Number // only the control side reads it
	g.revision.Store(&api.Revision{Number: k.Number, Digest: "sha256:" + k.Digest, Source: g.o.Source, Name: g.policy.Name, Author: k.Meta.Author, AppliedAt: k.Meta.Time})
	return nil
}

// compile checks a text and makes the view that would serve it. It changes nothing.
func (g *Gateway) compile(source string, text []byte, prev *snapshot.View) (*configs.Policy, *snapshot.View, error) {
	p, err := configs.DecodePolicy(source, text)
	if err != nil {
		return nil, nil, g.ofLater(err)
	}
	if err := configs.CheckTogether(p, g.o.Node); err != nil {
		return nil, nil, err
	}
	v, err := snapshot.Compile(snapshot.Input{
		Policy: p, Node: g.o.Node, Links: g.links(), Prev: prev, Settled: g.settled.Load(), HomeSeed: g.seed, Ephemeral: g.eph,
		LinkLocal: slowpath.LinkLocal, Break: g.o.Break, Words: g.off.words(),
	})
	return p, v, err
}

// serve makes v, whose addresses are registered, what workers will read. The caller holds mu, or is New.
func (g *Gateway) serve(p *configs.Policy, v *snapshot.View, text []byte, r *api.Revision) {
	v.Revision, v.Text = r.Number, standsFor(text)
	v.Activate(g.space)
	g.policy, g.text = p, text
	g.revision.Store(r)
	g.view.Store(v)
	for _, p := range g.ports {
		p.served = g.compiledOf(p)
	}
	g.steer(v)
	release := g.offloadView(v)
	for _, w := range g.workers {
		w.Publish(v)
	}
	if g.off != nil {
		g.fencing.Go(func() { g.carryAgain(v.Gen, release) })
	}
	if g.slow != nil {
		g.tellSlow(v)
	}
	g.tellGroups(p, v)
}

// carryAgain calls release once every worker goes by view gen, however late one is: before that programs would carry by another view than it. Where the workers end first it never does.
func (g *Gateway) carryAgain(gen uint32, release func()) {
	for late := false; ; late = true {
		err := g.waitFor(context.Background(), gen)
		if err == nil {
			release()
			if late {
				g.log.Info("offload: every worker goes by the view that one was late to take up", "view", gen)
			}
			return
		}
		if !late {
			g.log.Error("offload: workers carry everything until every one of them goes by the view", "err", err)
		}
		for _, w := range g.workers { // one that hangs answers when it goes on
			if errors.Is(w.Do(context.Background(), func(*pipeline.Shard) {}), worker.ErrStopped) {
				return
			}
		}
	}
}

// tellSlow has the slow path work for v.
func (g *Gateway) tellSlow(v *snapshot.View) {
	g.slow.SetInterfaces(g.slowInterfaces(v))
	g.slow.SetNextHops(watchedHops(v))
}

// watchedHops are the routers that the slow path looks after. One of the backbone is asked as often as one that shares its route where a group may go to another node because of it: asked only now and then it
// would be missed after half a minute.
func watchedHops(v *snapshot.View) (hops []slowpath.NextHop) {
	moves := slices.ContainsFunc(v.Groups(), func(x *snapshot.Group) bool { return len(x.Nodes) > 1 })
	for _, h := range v.NextHops() {
		backbone := int(h.Iface) < len(v.Ifaces) && v.Ifaces[h.Iface].Zone == flow.Backbone
		hops = append(hops, slowpath.NextHop{Iface: h.Iface, Addr: h.Addr, Often: h.Shared || moves && backbone, State: h.State})
	}
	return hops
}

// steer has the XDP programs know what v and the host's addresses ask for. The caller holds mu, or is New.
func (g *Gateway) steer(v *snapshot.View) {
	for i, pt := range g.ports {
		if pt.prog == nil || pt.state == portGone {
			continue
		}
		c := g.programConfig(i, v)
		if reflect.DeepEqual(c, pt.loaded) {
			g.hear(pt)
			continue // the same program again: nothing to exchange on a live port
		}
		if err := pt.prog.Update(c); err != nil {
			g.log.Error("update the XDP program's tables", "port", pt.cfg.Name, "err", err)
			continue
		}
		pt.loaded = c
		g.hear(pt)
		if pt.prep != nil {
			if err := pt.prep.Exchanged(); err != nil {
				g.log.Error("received packets may reach queues that nobody has bound", "port", pt.cfg.Name, "err", err)
			}
		}
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

// impact is what a view would do to live sessions.
type impact struct {
	cut      int
	byTenant map[string]int
	checked  int
	cuts     []api.Session // the first of them
}

// impact counts the live sessions that would end under v, and lists the first of them.
func (g *Gateway) impact(ctx context.Context, v *snapshot.View, list int) (out impact, err error) {
	now, is := uint32(g.clock.Now()>>20), g.view.Load()
	byTenant, cut, checked := map[flow.TenantID]int{}, 0, 0
	var first []picked
	err = g.walk(ctx, walkJudge, func(w int, sh *pipeline.Shard, slot uint32, se *conntrack.Session) bool {
		checked++
		if sh.WouldCut(v, se) {
			cut++
			byTenant[se.Tenant]++
			if len(first) < list {
				first = append(first, picked{w, slot, *se, sh.Copied(se), g.workers[w].HandedDown(slot, se)})
			}
		}
		return true
	})
	if err != nil {
		return impact{}, err
	}
	out = impact{cut: cut, checked: checked, byTenant: map[string]int{}}
	for id, n := range byTenant {
		if t := is.Tenant(id); t != nil {
			out.byTenant[t.Name] += n
		}
	}
	if len(first) > 0 {
		out.cuts = g.wire(first, now)
	}
	return out, nil
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
