package gateway

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	"demarc/configs"
	"demarc/gateway/api"
	"demarc/gateway/fib"
	"demarc/gateway/flow"
	"demarc/gateway/meter"
	"demarc/gateway/nat"
	"demarc/gateway/pipeline"
	"demarc/gateway/snapshot"
	"demarc/gateway/verdict"
)

// backend answers the node's interface.
type backend struct{ g *Gateway }

func faultOf(err error) error {
	var list configs.ErrorList
	var f *api.Fault
	switch {
	case err == nil:
		return nil
	case errors.As(err, &f):
		return err
	case errors.As(err, &list):
		f := &api.Fault{Status: http.StatusUnprocessableEntity, Err: err}
		for _, e := range list {
			f.Problems = append(f.Problems, api.Problem{File: e.File, Line: e.Line, Path: e.Path, Value: e.Value, Want: e.Want, Text: e.Error()})
		}
		return f
	case errors.Is(err, ErrConflict):
		return &api.Fault{Status: http.StatusConflict, Err: err}
	}
	return &api.Fault{Status: http.StatusUnprocessableEntity, Err: err}
}

func (b backend) Policy(context.Context) ([]byte, error) {
	b.g.mu.Lock()
	defer b.g.mu.Unlock()
	return b.g.text, nil
}

func (b backend) Status(ctx context.Context, rules bool) (*api.Status, error) {
	g := b.g
	v := g.view.Load()
	s := &api.Status{Node: g.o.Node.Name, Version: g.o.Version, Started: g.started, Uptime: time.Since(g.started).Seconds(), Ready: g.ready.Load(),
		Broken: string(g.o.Break), Revision: *g.revision.Load(), Cluster: g.clusterStatus(), Drops: map[string]uint64{}}
	if !s.Ready {
		s.WhyNotReady = "starting or stopping"
	}
	if why := g.unfit(); why != "" && s.Ready {
		s.Ready, s.WhyNotReady = false, why
	}
	if p := g.problems.Load(); p != nil {
		s.Damaged = *p
	}
	s.Later = g.later
	if h := &g.handover; h.found {
		s.Resumed = &h.result
	}
	if x, err := b.Groups(ctx); err == nil && (len(x.Groups) > 0 || len(x.Drained) > 0) {
		s.Groups = x
	}
	in := b.ask(ctx)
	s.Conservation = in.conservation
	g.busyMu.Lock()
	busy := append([]float64(nil), g.busy...)
	g.busyMu.Unlock()
	for i, w := range g.workers {
		st := w.Stats()
		cpu := -1
		if c := g.o.Node.Workers.CPUs; len(c) > i {
			cpu = c[i]
		}
		s.Workers = append(s.Workers, api.Worker{ID: i, CPU: cpu, Sessions: st.Sessions, SessionsCap: g.shards[i].Sessions.Capacity(), Mappings: st.Mappings,
			MappingsCap: max(64, g.o.Node.Tables.Mappings/len(g.workers)), Frames: st.Frames, FramesFree: st.Free, FramesHeld: st.Held, Generation: uint64(st.Gen),
			Busy: busy[i], HandedOut: st.HandedOut, HandedIn: st.HandedIn, Panics: st.Panics, BlockedFlows: st.Blocked, Bursts: st.Bursts, Wakeups: st.Wakeups, Crossings: st.Crossings, Orders: st.Orders, LongestOrder: st.LongestOrder.Seconds(), Cruising: st.Cruising, Hasty: st.Hasty, GivenUp: st.GivenUp, HandedOn: st.HandedOn, Fenced: st.Fenced, Overruns: st.Overruns, UMEMBytes: uint64(st.Frames) * uint64(g.chunk),
			TableBytes: g.tableBytes[i], FragmentsWaiting: st.Fragments, FragmentsCap: st.FragmentsCap, FragmentedKnown: st.Datagrams})
	}
	ports, err := b.ports(&in)
	if err != nil {
		return nil, err
	}
	s.Ports = ports.Ports
	drops, err := b.Drops(ctx)
	if err != nil {
		return nil, err // the client gave up while the workers were asked
	}
	s.Drops, s.Blocks = drops.ByReason, drops.ByBlock
	for _, t := range v.Tenants {
		if t != nil {
			s.Tenants = append(s.Tenants, b.tenant(t, &in, rules))
		}
	}
	for _, t := range s.Tenants {
		s.Backbone.In.Packets += t.In.Packets
		s.Backbone.In.Bytes += t.In.Bytes
		s.Backbone.Out.Packets += t.Out.Packets
		s.Backbone.Out.Bytes += t.Out.Bytes
	}
	s.Backbone.ICMPErrors = errorsOf(&v.Errors.Backbone)
	ss := g.slow.Stats()
	s.SlowPath = api.SlowPath{Received: ss.Learned + ss.Resolves, Sent: ss.Replies + ss.Solicited + ss.Announced + ss.Listens + ss.Forwarded,
		Routers: b.routers(v), Unanswered: ss.Unanswered, Limited: ss.RateLimited, TableFull: ss.TableFull, MACChanges: ss.MACChanges,
		Duplicates: ss.Duplicates, Defended: ss.Defended, Probed: ss.Probed, Conflicts: b.conflicts(v)}
	s.SlowPath.Routers.Died, s.SlowPath.Routers.Returned = ss.Died, ss.Returned
	s.API = g.server.State()
	for _, e := range g.slow.Neighbors() {
		s.SlowPath.Waiting += e.Waiting
		if e.MAC != [6]byte{} {
			s.SlowPath.Neighbours++
		}
		if e.State == "incomplete" {
			s.SlowPath.Pending++
		}
	}
	return s, nil
}

// unfit says why a running node must not be called ready: a port is open to the host's stack, or none carries traffic. A port that is gone beside
// others which work is their problem alone.
func (g *Gateway) unfit() (why string) {
	g.linkMu.Lock()
	defer g.linkMu.Unlock()
	open := 0
	for _, p := range g.ports {
		switch {
		case p.bare:
			return fmt.Sprintf("port %s: its XDP program was taken off: restart the node", p.cfg.Name)
		case p.state == portOpen:
			open++
		default:
			why = fmt.Sprintf("no port is open; %s: %s", p.cfg.Name, p.problem)
		}
	}
	if open > 0 {
		return ""
	}
	return why
}

// inside is what only the workers themselves can tell.
type inside struct {
	conservation api.Conservation
	queued       []int             // packets in the shapers, by queue: a tenant's id and direction
	use          []nat.Use         // of public addresses, by id
	rings        map[[2]int][3]int // port, queue -> frames in fill, rx, tx and completion
}

// askTenants is how many tenants a worker is asked about between two bursts.
const askTenants = 1024

// askTime is how long the workers are waited for: who scrapes the node gives up after 10 s, and is to hear that a worker is stuck.
const askTime = 2 * time.Second

// ask has every worker tell, between two bursts: a step for each queue of a port, public address and tenant, and none for each session, mapping or
// block of ports, of which there may be millions.
func (b backend) ask(ctx context.Context) (in inside) {
	g := b.g
	ctx, cancel := context.WithTimeout(ctx, askTime)
	defer cancel()
	v := g.view.Load()
	in = inside{queued: make([]int, 2*len(v.Tenants)), rings: map[[2]int][3]int{}}
	addrs := 0
	for _, t := range v.Tenants {
		if t != nil {
			for _, id := range t.Pool {
				addrs = max(addrs, int(id)+1)
			}
		}
	}
	in.use = make([]nat.Use, addrs)
	type ring struct{ port, queue, fill, rx, tx int }
	rings := make([]ring, 0, 256)
	var errs []error
	frames := 0
	err := g.each(ctx, func(i int, sh *pipeline.Shard) {
		if err := g.workers[i].Account(); err != nil {
			errs = append(errs, err)
		}
		frames += g.workers[i].Stats().Frames
		sh.NAT.Use(in.use)
		g.workers[i].Rings(func(port uint16, queue, fill, rx, tx int) {
			rings = append(rings, ring{int(port), queue, fill, rx, tx})
		})
	})
	for from := 0; from < len(in.queued) && err == nil; from += 2 * askTenants {
		err = g.each(ctx, func(_ int, sh *pipeline.Shard) { addQueued(sh, in.queued, from) })
	}
	if err != nil { // a worker that was late may yet write to what it was given
		return inside{conservation: api.Conservation{Detail: err.Error()}}
	}
	for _, r := range rings {
		in.rings[[2]int{r.port, r.queue}] = [3]int{r.fill, r.rx, r.tx}
	}
	if err := errors.Join(errs...); err != nil {
		in.conservation.Detail = err.Error()
		return in
	}
	in.conservation = api.Conservation{OK: true, Detail: fmt.Sprintf("all %d frames accounted for", frames)}
	return in
}

// addQueued adds what waits in the queues of askTenants tenants, from queue from on.
func addQueued(sh *pipeline.Shard, sum []int, from int) {
	for q := from; q < min(len(sum), from+2*askTenants); q++ {
		n, _ := sh.Shaper.HeldIn(q)
		sum[q] += n
	}
}

func (in *inside) queuedOf(t flow.TenantID, d meter.Dir) int {
	if q := int(t)*2 + int(d); q < len(in.queued) {
		return in.queued[q]
	}
	return 0 // of a policy that was applied while the workers were asked
}

func (in *inside) useOf(a nat.AddrID) (u nat.Use) {
	if int(a) < len(in.use) {
		u = in.use[a]
	}
	return u
}

func (b backend) volume(t flow.TenantID, d meter.Dir) (c api.Counter) {
	for _, sh := range b.g.shards {
		v := sh.Meter.Volume(t, d)
		c.Packets += v.Packets
		c.Bytes += v.Bytes
	}
	v := b.g.off.carried(t, d)
	c.Packets += v.Packets
	c.Bytes += v.Bytes
	return c
}

// voice is of workers and programs.
func (b backend) voice(t flow.TenantID, d meter.Dir) (c api.VoiceCounts) {
	add := func(v meter.Voice) {
		for f, to := range [meter.NumVoiceFates]*api.Counter{meter.VoiceWithin: &c.Within, meter.VoiceAbove: &c.Above, meter.VoiceLost: &c.Lost} {
			to.Packets += v[f].Packets
			to.Bytes += v[f].Bytes
		}
	}
	for _, sh := range b.g.shards {
		add(sh.Meter.VoiceOf(t, d))
	}
	add(b.g.off.voice(t, d))
	return c
}

func (b backend) dropsOf(t flow.TenantID) map[string]uint64 {
	out := map[string]uint64{}
	for r := verdict.Reason(0); r < verdict.NumReasons; r++ {
		n := uint64(0)
		for _, sh := range b.g.shards {
			n += sh.Meter.Drops(t, r)
		}
		if n > 0 {
			out[r.String()] = n
		}
	}
	return out
}

func (b backend) tenant(t *snapshot.Tenant, in *inside, rules bool) api.Tenant {
	a := api.Tenant{ID: int(t.ID), Name: t.Name, Sessions: int(t.Shared.Sessions.Load()), SessionsCap: int(t.MaxSessions), Created: t.Shared.Created.Load(), Inbound: int(t.Shared.Inbound.Load()),
		Unanswered: api.TenantUnanswered{Out: int(t.Shared.Unanswered[meter.Out].Load()), In: int(t.Shared.Unanswered[meter.In].Load()), Cap: int(t.MaxUnanswered)},
		In:         b.volume(t.ID, meter.In), Out: b.volume(t.ID, meter.Out), Drops: b.dropsOf(t.ID), Queued: api.TenantQueued{Out: in.queuedOf(t.ID, meter.Out), In: in.queuedOf(t.ID, meter.In)}}
	a.ICMPErrors = errorsOf(&t.Shared.Told)
	if b.g.common != nil {
		b.g.off.readOf(t.ID)
		u := b.g.common.usage(t)
		a.Usage = api.TenantUsage{In: api.Counter(u.Volume[meter.In]), Out: api.Counter(u.Volume[meter.Out]), Created: u.Created}
	}
	for d, c := range map[meter.Dir]*api.Counter{meter.Out: &a.Offered.Out, meter.In: &a.Offered.In} {
		v := b.g.off.carried(t.ID, d) // it takes none but what the rate lets pass
		c.Packets, c.Bytes = v.Packets, v.Bytes
		for _, sh := range b.g.shards {
			v := sh.Meter.Offered(t.ID, d)
			c.Packets += v.Packets
			c.Bytes += v.Bytes
		}
	}
	a.Voice = api.TenantVoice{Out: b.voice(t.ID, meter.Out), In: b.voice(t.ID, meter.In)}
	b.g.mu.Lock()
	for i := range b.g.policy.Tenants {
		if c := &b.g.policy.Tenants[i]; c.Name == t.Name {
			a.Limits = api.TenantRates{InBits: uint64(c.Rates.In.Bits), OutBits: uint64(c.Rates.Out.Bits), InPackets: c.Rates.In.Packets, OutPackets: c.Rates.Out.Packets,
				VoiceIn: uint64(c.VoiceBits(&c.Rates.In)), VoiceOut: uint64(c.VoiceBits(&c.Rates.Out)), Overhead: c.Rates.Overhead,
				Host: api.HostRates{InBits: uint64(c.Rates.Host.In.Bits), OutBits: uint64(c.Rates.Host.Out.Bits), InPackets: c.Rates.Host.In.Packets, OutPackets: c.Rates.Host.Out.Packets}}
		}
	}
	b.g.mu.Unlock()
	if len(t.Pool) > 0 {
		a.Pool = &api.Pool{Addresses: len(t.Pool), Ports: len(t.Pool) * 64512}
		var free [3]int // by class: what is short is what tells
		for _, id := range t.Pool {
			u := in.useOf(id)
			a.Pool.InUse += int(u.InUse)
			a.Pool.Held += int(u.Held)
			for c := range free {
				free[c] += b.g.space.FreeBlocks(id, nat.Class(c))
			}
		}
		a.Pool.FreeBlocks = min(free[nat.TCP], free[nat.UDP], free[nat.ICMP])
	}
	if rules {
		a.Rules = ruleHits(t)
	}
	return a
}

func errorsOf(t *snapshot.Told) api.ICMPErrors {
	return api.ICMPErrors{Sent: t.Sent.Sum(), Held: t.Held.Sum()}
}

func ruleHits(t *snapshot.Tenant) (out []api.RuleHits) {
	for d := meter.Out; d <= meter.In; d++ {
		for i := range t.Rules[d] {
			r := &t.Rules[d][i]
			out = append(out, api.RuleHits{Rule: i, Name: r.Name, Direction: d.String(), Action: action(r.Allow, r.Tell), Hits: r.Hits.Sum()})
		}
		out = append(out, api.RuleHits{Rule: -1, Name: "default", Direction: d.String(), Action: action(d == meter.Out && t.DefaultOut, d == meter.Out && t.DefaultTell), Hits: t.DefaultHits[d].Sum()})
	}
	return out
}

func action(allow, tell bool) string {
	switch {
	case allow:
		return "allow"
	case tell:
		return "reject"
	}
	return "deny"
}

func (b backend) Drops(ctx context.Context) (*api.Drops, error) {
	g := b.g
	blocks, err := b.Blocks(ctx)
	if err != nil {
		return nil, err
	}
	d := &api.Drops{ByReason: map[string]uint64{}, ByTenant: map[string]map[string]uint64{}, ByPort: map[string]map[string]uint64{}, ByBlock: blocks.Blocks}
	for r := verdict.Reason(0); r < verdict.NumReasons; r++ {
		if r != verdict.Pass {
			d.ByReason[r.String()] = 0
		}
	}
	add := func(m map[string]uint64) {
		for k, n := range m {
			d.ByReason[k] += n
			d.Total += n
		}
	}
	nobody := b.dropsOf(0)
	for r := range g.slowDrops {
		if n := g.slowDrops[r].Load(); n > 0 {
			nobody[verdict.Reason(r).String()] += n
		}
	}
	add(nobody)
	v := g.view.Load()
	for id := 1; id <= snapshot.MaxTenantID(g.o.Node); id++ {
		m := b.dropsOf(flow.TenantID(id))
		if len(m) == 0 {
			continue
		}
		add(m)
		if t := v.Tenant(flow.TenantID(id)); t != nil {
			d.ByTenant[t.Name] = m
			for _, h := range ruleHits(t) {
				if h.Action != "allow" && h.Hits > 0 {
					h.Tenant, h.Name = t.Name, t.Name+": "+h.Name
					d.ByRule = append(d.ByRule, h)
				}
			}
		}
	}
	for _, p := range g.ports {
		if p.prog == nil {
			continue
		}
		c, err := p.prog.Counters()
		if err != nil {
			return nil, fmt.Errorf("port %s: read the XDP program's counters: %w", p.cfg.Name, err)
		}
		m := map[string]uint64{}
		for r, n := range c.Dropped {
			if n > 0 {
				m[verdict.Reason(r).String()] = n
			}
		}
		if len(m) > 0 {
			d.ByPort[p.cfg.Name] = m
			add(m)
		}
	}
	return d, nil
}

type socketFigures struct {
	worker                                                                    int
	rxPackets, rxBytes, txPackets, txBytes, txFull, txErrors, kicks, launched uint64
}

func (b backend) Routes(context.Context) (*api.Routes, error) {
	v := b.g.view.Load()
	out := &api.Routes{}
	for _, r := range v.Routes() {
		h := &v.Hops[r.NextHop]
		a := api.Route{Zone: "backbone", Prefix: r.Prefix.String(), Resolved: true}
		if t := v.Tenant(r.Zone); t != nil {
			a.Zone = t.Name
		}
		if h.Iface != 0 {
			a.Interface = v.Ifaces[h.Iface].Name
		}
		switch h.Kind {
		case snapshot.HopDiscard:
			a.Kind = "discard"
		case snapshot.HopLocal:
			a.Kind = "local"
		case snapshot.HopPublic:
			a.Kind = "nat"
		case snapshot.HopTenant:
			a.Kind = "tenant"
			if t := v.Tenant(h.Tenant); t != nil {
				a.Via = t.Name
			}
		default:
			a.Kind = "connected"
			if !h.OnLink {
				a.Kind, a.Via, a.Resolved = "static", h.Via.Netip(h.Family).String(), false
			}
			for _, via := range v.RouteHops(r.NextHop) {
				rh := api.RouteHop{Via: via.Via.Netip(via.Family).String(), Interface: v.Ifaces[via.Iface].Name, State: via.State.String(), Since: b.since(via.State.Since()), Backup: via.Backup, Takes: via.Takes}
				_, rh.Resolved = b.g.neigh.Lookup(via.Iface, via.Family, &via.Via)
				a.Resolved = a.Resolved || rh.Resolved
				a.Hops = append(a.Hops, rh)
			}
		}
		out.Routes = append(out.Routes, a)
	}
	return out, nil
}

// since is how long ago ns was, in seconds; 0 for 0.
func (b backend) since(ns uint64) float64 {
	if now := b.g.clock.Now(); ns > 0 && now > ns {
		return float64(now-ns) / 1e9
	}
	return 0
}

const (
	deadListed   = 64
	conflictsFor = 3600.0 // seconds that a conflict is shown
)

// routers counts the next hops that routes name and lists the dead ones.
func (b backend) routers(v *snapshot.View) (r api.Routers) {
	for _, h := range v.NextHops() {
		switch {
		case h.State.NoLink():
			r.NoLink++
		case h.State.Dead():
			r.NoAnswer++
		case h.State.Rank() == fib.HopUp:
			r.Up++
			continue
		default:
			r.Asked++
			continue
		}
		if len(r.Dead) < deadListed {
			r.Dead = append(r.Dead, api.DeadHop{Interface: v.Ifaces[h.Iface].Name, Address: h.Addr.String(), Why: h.State.String(), Since: b.since(h.State.Since())})
		}
	}
	for _, route := range v.Routes() {
		for _, h := range v.RouteHops(route.NextHop) {
			if h.Backup && h.Takes {
				r.OnBackup++
				break
			}
		}
	}
	for _, sh := range b.g.shards {
		r.Moved += sh.Moved.Load()
	}
	return r
}

func (b backend) conflicts(v *snapshot.View) (out []api.Conflict) {
	for _, c := range b.g.slow.Conflicts() {
		if age := b.since(c.LastNs); age < conflictsFor && int(c.Iface) < len(v.Ifaces) {
			out = append(out, api.Conflict{Interface: v.Ifaces[c.Iface].Name, Address: c.Addr.String(), MAC: macText(c.MAC), Count: c.Count, Age: age})
		}
	}
	return out
}

func macText(m [6]byte) string {
	return fmt.Sprintf("%02x:%02x:%02x:%02x:%02x:%02x", m[0], m[1], m[2], m[3], m[4], m[5])
}

func (b backend) Neighbours(context.Context) (*api.Neighbours, error) {
	out := &api.Neighbours{Neighbours: []api.Neighbour{}}
	for _, e := range b.g.slow.Neighbors() {
		a := api.Neighbour{Interface: e.Interface, Address: e.Addr.String(), State: e.State, Age: float64(e.AgeNs) / 1e9, Used: e.InUse, Waiting: e.Waiting}
		if m := e.MAC; m != [6]byte{} {
			a.MAC = macText(m)
		}
		out.Neighbours = append(out.Neighbours, a)
	}
	return out, nil
}
