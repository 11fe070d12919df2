package gateway

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"demarc/gateway/api"
	"demarc/gateway/block"
	"demarc/gateway/conntrack"
	"demarc/gateway/flow"
	"demarc/gateway/meter"
	"demarc/gateway/pipeline"
	"demarc/gateway/snapshot"
)

// How long something may be blocked: what is to last longer is a rule.
const (
	minBlock = time.Second
	maxBlock = 7 * 24 * time.Hour

	// What is shorter needs to be forced: more than a sixteenth of IPv4, more than what one provider has of IPv6.
	wideBlock4, wideBlock6 = 8, 20

	keepBlocksEvery = 10 * time.Second
)

// blocked is one entry of the operator's list.
type blocked struct {
	prefix netip.Prefix
	side   api.Side
	until  uint64 // ns of the node's clock
	hits   *block.Hits
}

// blocks is the list. What workers read is compiled from it.
type blocks struct {
	mu     sync.Mutex
	list   []*blocked
	kept   uint64 // ns: when the file was last written
	stored bool   // there is a file with entries
	live   bool   // workers run and take orders
}

// find is the place of an entry, or -1. The caller holds mu.
func (l *blocks) find(p netip.Prefix, s api.Side) int {
	return slices.IndexFunc(l.list, func(b *blocked) bool { return b.prefix == p && b.side == s })
}

// compile makes what workers read. Entries of tenants that there are not now wait for theirs. The caller holds mu.
func (l *blocks) compile(v *snapshot.View) (*block.List, error) {
	var out []block.Entry
	for _, b := range l.list {
		e := block.Entry{Prefix: b.prefix, Any: b.side == api.Side{}, Until: b.until, Hits: b.hits}
		if b.side.Tenant != "" {
			t := v.TenantByName(b.side.Tenant)
			if t == nil {
				continue
			}
			e.Zone = t.ID
		}
		out = append(out, e)
	}
	return block.Compile(out)
}

// notCompiled says that no worker was told of a list.
type notCompiled struct{ error }

func (e *notCompiled) Unwrap() error { return e.error }

// publish has every worker go by the list. When it returns, all do. The caller holds blocks.mu.
func (g *Gateway) publishBlocks(ctx context.Context) error {
	l, err := g.blocks.compile(g.view.Load())
	if err != nil {
		return &notCompiled{err}
	}
	if !g.blocks.live {
		for _, sh := range g.shards {
			sh.SetBlocks(l)
		}
		return nil
	}
	if err := g.each(ctx, func(_ int, sh *pipeline.Shard) { sh.SetBlocks(l) }); err != nil {
		return err
	}
	return g.off.settle()
}

// changeBlocks has every worker go by the list as it is now. Where that fails undo makes the list what it was, and the workers that have come by the new one go by that again: one that hangs meets both, in this order, when it goes
// on. The caller holds blocks.mu.
func (g *Gateway) changeBlocks(ctx context.Context, undo func()) error {
	err := g.publishBlocks(ctx)
	if err == nil {
		return nil
	}
	undo()
	if compiled := (*notCompiled)(nil); errors.As(err, &compiled) { // no worker has seen it
		return err
	}
	if back := g.publishBlocks(context.WithoutCancel(ctx)); back != nil { // for 10 s at most: see each
		g.log.Warn("take up the block list as it was", "err", back)
		return &api.Fault{Status: http.StatusGatewayTimeout, Err: fmt.Errorf("%w; workers may go by it all the same, because the list as it was is not taken up by all either: %w", err, back)}
	}
	return err
}

// republishBlocks follows a policy: names may stand for other tenants now.
func (g *Gateway) republishBlocks(ctx context.Context) error {
	g.blocks.mu.Lock()
	defer g.blocks.mu.Unlock()
	if len(g.blocks.list) == 0 {
		return nil
	}
	return g.publishBlocks(ctx)
}

// tendBlocks forgets what is over, and keeps how much is left of the others.
func (g *Gateway) tendBlocks(ctx context.Context) {
	l := &g.blocks
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.list) == 0 {
		return
	}
	now, n := g.clock.Now(), len(l.list)
	l.list = slices.DeleteFunc(l.list, func(b *blocked) bool {
		if b.until > now {
			return false
		}
		g.log.Info("block is over", "addr", b.prefix.String(), "side", b.side.String(), "dropped", b.hits.Sum())
		return true
	})
	if len(l.list) != n {
		if err := g.publishBlocks(ctx); err != nil {
			g.log.Warn("take up the block list", "err", err) // what is over blocks nothing: its time stands in the list that workers have
		}
	}
	if len(l.list) != n || now-l.kept >= uint64(keepBlocksEvery) {
		g.keepBlocks()
	}
}

// touches reports whether a session has an address of the prefix on a side.
func touches(se *conntrack.Session, p netip.Prefix, any bool, zone flow.TenantID) bool {
	a := addresses(se)
	in, out := se.Tenant, se.Tenant
	if se.Flags&conntrack.FlagFromBackbone != 0 {
		in = flow.Backbone
	}
	if pipeline.Direction(se, 0) == meter.Out {
		out = flow.Backbone
	}
	return (any || in == zone) && (p.Contains(a[0]) || p.Contains(a[1])) || (any || out == zone) && (p.Contains(a[2]) || p.Contains(a[3]))
}

// target checks address and side of a request.
func (g *Gateway) target(address string, s api.Side, gone bool) (p netip.Prefix, any bool, zone flow.TenantID, err error) {
	p, err = netip.ParsePrefix(address)
	if err != nil {
		a, aerr := netip.ParseAddr(address)
		if aerr != nil {
			return p, false, 0, api.BadRequest("address %q is neither an address nor a prefix", address)
		}
		if a.Zone() != "" {
			return p, false, 0, api.BadRequest("address %q has a zone: say the address alone", address)
		}
		p = netip.PrefixFrom(a, a.BitLen())
	}
	if p.Addr().Is4In6() {
		return p, false, 0, api.BadRequest("%s is an IPv4 address written as IPv6: say %s", address, p.Addr().Unmap())
	}
	if p != p.Masked() {
		return p, false, 0, api.BadRequest("%s has bits beyond its length: did you mean %s or %s?", address, p.Masked(), p.Addr())
	}
	if s.Tenant != "" && s.Backbone {
		return p, false, 0, api.BadRequest("a tenant and the backbone: name one side, or none for every side")
	}
	if s.Tenant != "" {
		t := g.view.Load().TenantByName(s.Tenant)
		if t == nil && !gone {
			return p, false, 0, api.BadRequest("there is no tenant %q", s.Tenant)
		}
		if t != nil {
			zone = t.ID
		}
	}
	return p, s == api.Side{}, zone, nil
}

// own says which of the gateway's own addresses p holds; "" = none. Virtual ones are its own wherever the policy has them: whoever serves the group now, this node may in a moment.
func own(v *snapshot.View, p netip.Prefix, any bool, zone flow.TenantID) string {
	for i := range v.Ifaces {
		f := &v.Ifaces[i]
		if i == 0 || !f.Used || !any && f.Zone != zone {
			continue
		}
		for _, a := range f.Addrs {
			if p.Contains(a.Addr()) {
				return fmt.Sprintf("%s is the gateway's own address on interface %s", a.Addr(), f.Name)
			}
		}
		for j := range f.Groups {
			for _, a := range virtualAddrs(&f.Groups[j]) {
				if p.Contains(a) {
					return fmt.Sprintf("%s is the virtual address of group %s on interface %s", a, f.Groups[j].Group.Name, f.Name)
				}
			}
		}
	}
	return ""
}

// own is the same of an entry; where its tenant is not there it holds nothing.
func (b *blocked) own(v *snapshot.View) string {
	if b.side.Tenant == "" {
		return own(v, b.prefix, b.side == api.Side{}, flow.Backbone)
	}
	t := v.TenantByName(b.side.Tenant)
	if t == nil {
		return ""
	}
	return own(v, b.prefix, false, t.ID)
}

// warnOwn names what is blocked and has become the gateway's own address by the policy: it stays blocked, because somebody wanted that, and may have meant it.
func (g *Gateway) warnOwn(was, now *snapshot.View) (warnings []string) {
	g.blocks.mu.Lock()
	defer g.blocks.mu.Unlock()
	for _, b := range g.blocks.list {
		why := b.own(now)
		if why == "" || b.own(was) == why {
			continue
		}
		left := time.Duration(0)
		if now := g.clock.Now(); b.until > now {
			left = time.Duration(b.until - now).Round(time.Second)
		}
		g.log.Warn("a blocked address is the gateway's own by this policy: it stays blocked", "addr", b.prefix.String(), "side", b.side.String(), "why", why, "for", left.String())
		warnings = append(warnings, fmt.Sprintf("%s is blocked on %s for %s still, and %s: demarc unblock %s", text(b.prefix), b.side, left, why, b.unblock()))
	}
	return warnings
}

// unblock is what follows the command that ends it.
func (b *blocked) unblock() string {
	switch {
	case b.side.Backbone:
		return text(b.prefix) + " --backbone"
	case b.side.Tenant != "":
		return text(b.prefix) + " --tenant " + b.side.Tenant
	}
	return text(b.prefix)
}

// mistake says what speaks against blocking p.
func (g *Gateway) mistake(p netip.Prefix, any bool, zone flow.TenantID) string {
	v := g.view.Load()
	wide := wideBlock4
	if p.Addr().Is6() {
		wide = wideBlock6
	}
	if p.Bits() < wide {
		return fmt.Sprintf("%s is most of what there is", p)
	}
	if why := own(v, p, any, zone); why != "" {
		return why
	}
	for _, h := range v.NextHops() {
		if f := &v.Ifaces[h.Iface]; p.Contains(h.Addr) && (any || f.Zone == zone) {
			return fmt.Sprintf("%s is the next hop of a route through %s", h.Addr, f.Name)
		}
	}
	for _, t := range v.Tenants {
		if t == nil || any && p.IsSingleIP() || !any && zone != t.ID {
			continue
		}
		for _, a := range t.Inside {
			if p.Bits() <= a.Bits() && p.Contains(a.Addr()) {
				return fmt.Sprintf("%s is a whole network of tenant %q", a, t.Name)
			}
		}
	}
	return ""
}

func (b backend) Block(ctx context.Context, r api.BlockRequest) (*api.Blocked, error) {
	g := b.g
	p, any, zone, err := g.target(r.Address, r.Side, false)
	if err != nil {
		return nil, err
	}
	d := time.Duration(r.Seconds * float64(time.Second))
	if r.Seconds < minBlock.Seconds() || r.Seconds > maxBlock.Seconds() {
		return nil, api.BadRequest("%s: want a time from %s to %s: what is to last is a rule of the policy", d, minBlock, maxBlock)
	}
	if why := g.mistake(p, any, zone); why != "" && !r.Force {
		return nil, &api.Fault{Status: 409, Err: fmt.Errorf("%s was not blocked: %s: say force if that is meant (--force)", p, why)}
	}
	out := &api.Blocked{ByTenant: map[string]int{}, DryRun: r.DryRun, Block: api.Block{Address: text(p), Side: r.Side, Seconds: r.Seconds}}
	v := g.view.Load()
	if err := g.walk(ctx, walkLook, func(_ int, _ *pipeline.Shard, _ uint32, se *conntrack.Session) bool {
		if touches(se, p, any, zone) {
			out.Sessions++
			if t := v.Tenant(se.Tenant); t != nil {
				out.ByTenant[t.Name]++
			}
		}
		return true
	}); err != nil {
		return nil, err
	}
	if r.DryRun {
		return out, nil
	}
	l := &g.blocks
	l.mu.Lock()
	defer l.mu.Unlock()
	until := g.clock.Now() + uint64(d)
	undo := func() {}
	if i := l.find(p, r.Side); i >= 0 {
		was := l.list[i].until
		l.list[i].until, out.Replaced = until, true
		undo = func() { l.list[i].until = was }
	} else {
		if len(l.list) >= block.Max {
			return nil, &api.Fault{Status: 409, Err: fmt.Errorf("%d addresses are blocked, and that is as many as there may be: unblock some, block a prefix instead, or write a rule", len(l.list))}
		}
		n := len(l.list)
		l.list = append(l.list, &blocked{prefix: p, side: r.Side, until: until, hits: block.NewHits(len(g.workers))})
		undo = func() { l.list = l.list[:n] }
	}
	if err := g.changeBlocks(ctx, undo); err != nil {
		return nil, err
	}
	out.NotKept = g.keepBlocks()
	g.log.Info("blocked", "addr", p.String(), "side", r.Side.String(), "for", d.String(), "sessions", out.Sessions)
	return out, nil
}

func (b backend) Unblock(ctx context.Context, r api.UnblockRequest) (*api.Unblocked, error) {
	g := b.g
	l := &g.blocks
	out := &api.Unblocked{Removed: []api.Block{}}
	var p netip.Prefix
	if !r.All {
		var err error
		if p, _, _, err = g.target(r.Address, r.Side, true); err != nil {
			return nil, err
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	var left []*blocked
	var elsewhere []string
	for _, x := range l.list {
		if r.All || x.prefix == p && x.side == r.Side {
			out.Removed = append(out.Removed, g.wireBlock(x))
			continue
		}
		if x.prefix.Overlaps(p) {
			elsewhere = append(elsewhere, fmt.Sprintf("%s on %s", text(x.prefix), x.side))
		}
		left = append(left, x)
	}
	if len(out.Removed) == 0 && !r.All {
		hint := ""
		if len(elsewhere) > 0 {
			hint = ": blocked is " + strings.Join(elsewhere, ", ")
		}
		return nil, &api.Fault{Status: 404, Err: fmt.Errorf("%s is not blocked on %s%s", text(p), r.Side, hint)}
	}
	was := l.list
	l.list = left
	if err := g.changeBlocks(ctx, func() { l.list = was }); err != nil {
		return nil, err
	}
	out.NotKept = g.keepBlocks()
	for _, x := range out.Removed {
		g.log.Info("unblocked", "addr", x.Address, "side", x.Side.String(), "dropped", x.Dropped)
	}
	return out, nil
}

func text(p netip.Prefix) string {
	if p.IsSingleIP() {
		return p.Addr().String()
	}
	return p.String()
}

func (g *Gateway) wireBlock(b *blocked) api.Block {
	out := api.Block{Address: text(b.prefix), Side: b.side, Dropped: b.hits.Sum()}
	if now := g.clock.Now(); b.until > now {
		out.Seconds = float64(b.until-now) / 1e9
	}
	v := g.view.Load()
	if b.side.Tenant != "" && v.TenantByName(b.side.Tenant) == nil {
		out.Idle = "the policy has no such tenant now"
	}
	out.Own = b.own(v)
	return out
}

func (b backend) Blocks(context.Context) (*api.Blocks, error) {
	l := &b.g.blocks
	l.mu.Lock()
	defer l.mu.Unlock()
	out := &api.Blocks{Blocks: []api.Block{}, Max: block.Max}
	for _, x := range l.list {
		out.Blocks = append(out.Blocks, b.g.wireBlock(x))
	}
	return out, nil
}

// keptBlock is an entry in the file: what is left of its time, because no clock of this machine's is the next start's.
type keptBlock struct {
	Prefix netip.Prefix  `json:"prefix"`
	Side   api.Side      `json:"side"`
	Left   time.Duration `json:"left_ns"`
}

const blocksMagic = "demarc blocks 1 "

func (g *Gateway) blocksFile() string { return filepath.Join(g.o.Node.DataDir, "blocks") }

// keepBlocks writes the list to disk. A block stands also where it cannot be kept; the answer says why. The caller holds blocks.mu.
func (g *Gateway) keepBlocks() (problem string) {
	l := &g.blocks
	now := g.clock.Now()
	l.kept = now
	if len(l.list) == 0 && !l.stored {
		return ""
	}
	list := make([]keptBlock, 0, len(l.list))
	for _, b := range l.list {
		if b.until > now {
			list = append(list, keptBlock{b.prefix, b.side, time.Duration(b.until - now)})
		}
	}
	err := writeKept(g.blocksFile(), blocksMagic, list)
	if err != nil {
		g.log.Warn("keep the block list", "err", err)
		return err.Error()
	}
	l.stored = len(list) > 0
	return ""
}

// loadBlocks takes up again what was blocked when the node ended, for the time that was left then. A damaged file is named and passed over: what
// it held is not blocked, which status and log say.
func (g *Gateway) loadBlocks() {
	name := g.blocksFile()
	var list []keptBlock
	err := readKept(name, blocksMagic, &list)
	if errors.Is(err, fs.ErrNotExist) {
		return
	}
	if err != nil {
		g.log.Warn("the kept block list is passed over: block again what must be blocked", "file", name, "err", err)
		lines := append(slices.Clone(*g.problems.Load()), name+": "+err.Error())
		g.problems.Store(&lines)
		return
	}
	now := g.clock.Now()
	for _, k := range list[:min(len(list), block.Max)] {
		if !k.Prefix.IsValid() || k.Prefix != k.Prefix.Masked() || k.Left <= 0 || k.Left > maxBlock {
			continue
		}
		g.blocks.list = append(g.blocks.list, &blocked{prefix: k.Prefix, side: k.Side, until: now + uint64(k.Left), hits: block.NewHits(max(1, g.o.Node.Workers.Count))})
		g.log.Info("blocked still", "addr", k.Prefix.String(), "side", k.Side.String(), "for", k.Left.Round(time.Second).String())
	}
	g.blocks.kept, g.blocks.stored = now, true
}

// startBlocks is called when the workers take orders, endBlocks when they soon will not.
func (g *Gateway) startBlocks() {
	g.blocks.mu.Lock()
	g.blocks.live = true
	g.blocks.mu.Unlock()
}

func (g *Gateway) endBlocks() {
	g.blocks.mu.Lock()
	defer g.blocks.mu.Unlock()
	g.keepBlocks()
}
