package gateway

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"demarc/configs"
	"demarc/gateway/api"
	"demarc/gateway/conntrack"
	"demarc/gateway/flow"
	"demarc/gateway/meter"
	"demarc/gateway/nat"
	"demarc/gateway/pipeline"
	"demarc/gateway/snapshot"
	"demarc/gateway/verdict"
	"demarc/gateway/xsk"
)

// backend answers the node's interface. It only reads.
type backend struct{ g *Gateway }

func faultOf(err error) error {
	var list configs.ErrorList
	switch {
	case err == nil:
		return nil
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

func (b backend) Apply(ctx context.Context, r api.ApplyRequest) (*api.Applied, error) {
	a, err := b.g.Apply(ctx, r)
	return a, faultOf(err)
}

func (b backend) Diff(ctx context.Context, r api.DiffRequest) (*api.Diff, error) {
	d, err := b.g.Diff(ctx, r)
	return d, faultOf(err)
}

func (b backend) Status(ctx context.Context, rules bool) (*api.Status, error) {
	g := b.g
	v := g.view.Load()
	s := &api.Status{Node: g.o.Node.Name, Version: g.o.Version, Started: g.started, Uptime: time.Since(g.started).Seconds(), Ready: g.ready.Load(),
		Broken: string(g.o.Break), Revision: *g.revision.Load(), Drops: map[string]uint64{}}
	if !s.Ready {
		s.WhyNotReady = "starting or stopping"
	}
	for _, name := range g.uncovered() {
		s.Ready, s.WhyNotReady = false, fmt.Sprintf("port %s: its XDP program was taken off: restart the node", name)
	}
	if p := g.problems.Load(); p != nil {
		s.Damaged = *p
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
			Busy: busy[i], HandedOut: st.HandedOut, HandedIn: st.HandedIn, Panics: st.Panics, Bursts: st.Bursts, Wakeups: st.Wakeups, Crossings: st.Crossings, UMEMBytes: uint64(st.Frames) * uint64(g.chunk),
			TableBytes: uint64(len(g.mem[2*i]) + len(g.mem[2*i+1]))})
	}
	ports, err := b.ports(&in)
	if err != nil {
		return nil, err
	}
	s.Ports = ports.Ports
	drops, _ := b.Drops(ctx)
	s.Drops = drops.ByReason
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
	ss := g.slow.Stats()
	s.SlowPath = api.SlowPath{Neighbours: g.neigh.Len(), Received: ss.Learned + ss.Resolves, Sent: ss.Replies + ss.Solicited + ss.Announced + ss.Forwarded}
	for _, e := range g.slow.Neighbors() {
		s.SlowPath.Waiting += e.Waiting
		if e.State == "incomplete" {
			s.SlowPath.Pending++
		}
	}
	return s, nil
}

// uncovered names the ports whose XDP program somebody has taken off.
func (g *Gateway) uncovered() (names []string) {
	g.linkMu.Lock()
	defer g.linkMu.Unlock()
	for _, p := range g.ports {
		if p.gone {
			names = append(names, p.cfg.Name)
		}
	}
	return names
}

// inside is what only the workers themselves can tell.
type inside struct {
	conservation api.Conservation
	queued       map[flow.TenantID][2]int // packets in the shapers, by meter.Out, meter.In
	inUse, held  map[nat.AddrID]int       // public ports
	rings        map[[2]int][3]int        // port, queue -> frames in fill, rx, tx and completion
}

// ask has every worker tell, between two bursts.
func (b backend) ask(ctx context.Context) (in inside) {
	in = inside{queued: map[flow.TenantID][2]int{}, inUse: map[nat.AddrID]int{}, held: map[nat.AddrID]int{}, rings: map[[2]int][3]int{}}
	g := b.g
	var errs []error
	frames := 0
	err := g.each(ctx, func(i int, sh *pipeline.Shard) {
		if err := g.workers[i].Account(); err != nil {
			errs = append(errs, err)
		}
		frames += g.workers[i].Stats().Frames
		for _, t := range g.view.Load().Tenants {
			if t == nil {
				continue
			}
			q := in.queued[t.ID]
			for d := range q {
				n, _ := sh.Shaper.HeldIn(int(t.ID)*2 + d)
				q[d] += n
			}
			in.queued[t.ID] = q
		}
		sh.NAT.EachBlock(func(u nat.Use) bool {
			for c := range u.InUse {
				in.inUse[u.Addr] += u.InUse[c]
				in.held[u.Addr] += u.Held[c]
			}
			return true
		})
		for pi, p := range g.ports {
			for _, q := range p.queues {
				if q.worker == i {
					fill, rx, tx := q.sock.InKernel()
					in.rings[[2]int{pi, q.n}] = [3]int{fill, rx, tx}
				}
			}
		}
	})
	if err = errors.Join(append(errs, err)...); err != nil {
		in.conservation.Detail = err.Error()
		return in
	}
	in.conservation = api.Conservation{OK: true, Detail: fmt.Sprintf("all %d frames accounted for", frames)}
	return in
}

func (b backend) volume(t flow.TenantID, d meter.Dir) (c api.Counter) {
	for _, sh := range b.g.shards {
		v := sh.Meter.Volume(t, d)
		c.Packets += v.Packets
		c.Bytes += v.Bytes
	}
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
	a := api.Tenant{ID: int(t.ID), Name: t.Name, Sessions: int(t.Shared.Sessions.Load()), SessionsCap: int(t.MaxSessions), Created: t.Shared.Created.Load(),
		In: b.volume(t.ID, meter.In), Out: b.volume(t.ID, meter.Out), Drops: b.dropsOf(t.ID), Queued: api.TenantQueued{Out: in.queued[t.ID][meter.Out], In: in.queued[t.ID][meter.In]}}
	for _, sh := range b.g.shards {
		for d, c := range map[meter.Dir]*api.Counter{meter.Out: &a.Offered.Out, meter.In: &a.Offered.In} {
			v := sh.Meter.Offered(t.ID, d)
			c.Packets += v.Packets
			c.Bytes += v.Bytes
		}
	}
	b.g.mu.Lock()
	for _, c := range b.g.policy.Tenants {
		if c.Name == t.Name {
			a.Limits = api.TenantRates{InBits: uint64(c.Rates.In.Bits), OutBits: uint64(c.Rates.Out.Bits), InPackets: c.Rates.In.Packets, OutPackets: c.Rates.Out.Packets}
		}
	}
	b.g.mu.Unlock()
	if len(t.Pool) > 0 {
		a.Pool = &api.Pool{Addresses: len(t.Pool), Ports: len(t.Pool) * 64512}
		for _, id := range t.Pool {
			a.Pool.InUse += in.inUse[id]
			a.Pool.Held += in.held[id]
			a.Pool.FreeBlocks += b.g.space.FreeBlocks(id)
		}
	}
	if rules {
		a.Rules = ruleHits(t)
	}
	return a
}

func ruleHits(t *snapshot.Tenant) (out []api.RuleHits) {
	for d := meter.Out; d <= meter.In; d++ {
		for i := range t.Rules[d] {
			r := &t.Rules[d][i]
			out = append(out, api.RuleHits{Rule: i, Name: r.Name, Direction: d.String(), Action: action(r.Allow), Hits: r.Hits.Sum()})
		}
		out = append(out, api.RuleHits{Rule: -1, Name: "default", Direction: d.String(), Action: action(d == meter.Out && t.DefaultOut), Hits: t.DefaultHits[d].Sum()})
	}
	return out
}

func action(allow bool) string {
	if allow {
		return "allow"
	}
	return "deny"
}

func (b backend) Drops(context.Context) (*api.Drops, error) {
	g := b.g
	d := &api.Drops{ByReason: map[string]uint64{}, ByTenant: map[string]map[string]uint64{}, ByPort: map[string]map[string]uint64{}}
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
				if h.Action == "deny" && h.Hits > 0 {
					h.Name = t.Name + ": " + h.Name
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

func (b backend) Ports(ctx context.Context) (*api.Ports, error) {
	in := b.ask(ctx)
	return b.ports(&in)
}

func (b backend) ports(in *inside) (*api.Ports, error) {
	g := b.g
	out := &api.Ports{}
	stats := map[[2]int]int{}
	var socks []socketFigures
	for wi, w := range g.workers {
		for _, s := range w.SocketStats() {
			stats[[2]int{int(s.Port), s.Queue}] = len(socks)
			socks = append(socks, socketFigures{wi, s.RxPackets, s.RxBytes, s.TxPackets, s.TxBytes, s.TxFull, s.TxErrors, s.Kicks})
		}
	}
	for i, p := range g.ports {
		g.linkMu.Lock()
		link, gone := p.link, p.gone
		g.linkMu.Unlock()
		ap := api.Port{Name: p.cfg.Name, Device: p.cfg.Device, Ifindex: link.Index, MTU: link.MTU, Driver: link.Driver,
			Up: link.Up, Carrier: link.Carrier, Asked: p.asked.String(), Attach: "generic"}
		switch {
		case gone:
			ap.Problem = "its XDP program was taken off: the host's stack sees all that arrives; restart the node"
		case !ap.Up:
			ap.Problem = fmt.Sprintf("device %s is down: ip link set %s up", p.cfg.Device, p.cfg.Device)
		case !ap.Carrier:
			ap.Problem = fmt.Sprintf("device %s has no carrier: nothing is connected to it, or its far end is down", p.cfg.Device)
		}
		m := link.MAC
		ap.MAC = fmt.Sprintf("%02x:%02x:%02x:%02x:%02x:%02x", m[0], m[1], m[2], m[3], m[4], m[5])
		if p.native {
			ap.Attach = "native"
		}
		if gone {
			ap.Attach = "none"
		}
		if p.prog != nil {
			c, err := p.prog.Counters()
			if err != nil {
				return nil, fmt.Errorf("port %s: read the XDP program's counters: %w", p.cfg.Name, err)
			}
			ap.XDPToHost = c.Host()
			for _, n := range c.Dropped {
				ap.XDPDropped += n
			}
		}
		for _, q := range p.queues {
			aq := b.queue(i, p, q, socks, stats)
			r := in.rings[[2]int{i, q.n}]
			aq.InFill, aq.InRx, aq.InTx = r[0], r[1], r[2]
			ap.Queues = append(ap.Queues, aq)
		}
		out.Ports = append(out.Ports, ap)
	}
	v := g.view.Load()
	for i := 1; i < len(v.Ifaces); i++ {
		f := &v.Ifaces[i]
		ai := api.Interface{Name: f.Name, Port: g.ports[f.Port].cfg.Name, VLAN: int(f.VLAN), MTU: f.MTU}
		if f.Used {
			ai.Faces = "backbone"
			if t := v.Tenant(f.Zone); t != nil {
				ai.Faces = t.Name
			}
		}
		for _, a := range f.Addrs {
			ai.Addresses = append(ai.Addresses, a.String())
		}
		out.Interfaces = append(out.Interfaces, ai)
	}
	return out, nil
}

type socketFigures struct {
	worker                                                          int
	rxPackets, rxBytes, txPackets, txBytes, txFull, txErrors, kicks uint64
}

func (b backend) queue(port int, p *port, q *queue, socks []socketFigures, at map[[2]int]int) api.Queue {
	a := api.Queue{Queue: q.n, Worker: q.worker, Asked: p.asked.String(), WhyNotBetter: p.why, NeedWakeup: q.sock.Config().NeedWakeup}
	a.Mode = "unknown"
	if zc, err := q.sock.ZeroCopy(); err == nil {
		switch {
		case zc:
			a.Mode = xsk.ZeroCopy.String()
		case p.native:
			a.Mode = xsk.Copy.String()
		default:
			a.Mode = xsk.Generic.String()
		}
	}
	if i, ok := at[[2]int{port, q.n}]; ok {
		f := socks[i]
		a.Rx, a.Tx = api.Counter{Packets: f.rxPackets, Bytes: f.rxBytes}, api.Counter{Packets: f.txPackets, Bytes: f.txBytes}
		a.TxFull, a.TxErrors, a.Kicks = f.txFull, f.txErrors, f.kicks
	}
	if st, err := q.sock.Stats(); err == nil {
		a.Rings = api.RingStats{RxDropped: st.Rx_dropped, RxInvalidDescs: st.Rx_invalid_descs, TxInvalidDescs: st.Tx_invalid_descs,
			RxRingFull: st.Rx_ring_full, FillEmpty: st.Rx_fill_ring_empty_descs, TxEmpty: st.Tx_ring_empty_descs}
	}
	return a
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
				a.Kind, a.Via = "static", h.Via.Netip(h.Family).String()
				_, a.Resolved = b.g.neigh.Lookup(h.Iface, h.Family, &h.Via)
			}
		}
		out.Routes = append(out.Routes, a)
	}
	return out, nil
}

func (b backend) Neighbours(context.Context) (*api.Neighbours, error) {
	out := &api.Neighbours{Neighbours: []api.Neighbour{}}
	for _, e := range b.g.slow.Neighbors() {
		a := api.Neighbour{Interface: e.Interface, Address: e.Addr.String(), State: e.State, Age: float64(e.AgeNs) / 1e9, Used: e.InUse, Waiting: e.Waiting}
		if m := e.MAC; m != [6]byte{} {
			a.MAC = fmt.Sprintf("%02x:%02x:%02x:%02x:%02x:%02x", m[0], m[1], m[2], m[3], m[4], m[5])
		}
		out.Neighbours = append(out.Neighbours, a)
	}
	return out, nil
}

// sessionMatch is a compiled SessionFilter.
type sessionMatch struct {
	tenant flow.TenantID
	prefix netip.Prefix
	port   uint16
	proto  int // -1 = any
}

func (b backend) match(f api.SessionFilter) (m sessionMatch, err error) {
	m.proto = -1
	bad := func(format string, args ...any) error {
		return &api.Fault{Status: http.StatusBadRequest, Err: fmt.Errorf(format, args...)}
	}
	if f.Tenant != "" {
		t := b.g.view.Load().TenantByName(f.Tenant)
		if t == nil {
			return m, bad("there is no tenant %q", f.Tenant)
		}
		m.tenant = t.ID
	}
	if f.Address != "" {
		if m.prefix, err = netip.ParsePrefix(f.Address); err != nil {
			a, err := netip.ParseAddr(f.Address)
			if err != nil {
				return m, bad("address %q is neither an address nor a prefix", f.Address)
			}
			m.prefix = netip.PrefixFrom(a, a.BitLen())
		}
		m.prefix = m.prefix.Masked()
	}
	if f.Port > 65535 {
		return m, bad("port %d is above 65535", f.Port)
	}
	m.port = uint16(f.Port)
	if f.Proto != "" {
		names := map[string]int{"icmp": flow.ICMP, "tcp": flow.TCP, "udp": flow.UDP, "icmpv6": flow.ICMPv6}
		n, ok := names[strings.ToLower(f.Proto)]
		if !ok {
			if n, err = strconv.Atoi(f.Proto); err != nil || n < 0 || n > 255 {
				return m, bad("proto %q is none of tcp, udp, icmp, icmpv6 or a number up to 255", f.Proto)
			}
		}
		m.proto = n
	}
	return m, nil
}

func (m *sessionMatch) matches(se *conntrack.Session) bool {
	if m.tenant != 0 && se.Tenant != m.tenant || m.proto >= 0 && int(se.Proto) != m.proto {
		return false
	}
	if m.port != 0 && se.OrigSPort != m.port && se.OrigDPort != m.port && se.XlatSPort != m.port && se.XlatDPort != m.port {
		return false
	}
	if !m.prefix.IsValid() {
		return true
	}
	a := addresses(se)
	for _, x := range a {
		if m.prefix.Contains(x) {
			return true
		}
	}
	return false
}

// addresses are original source and destination, then the translated ones.
func addresses(se *conntrack.Session) [4]netip.Addr {
	if se.Flags&conntrack.FlagV6 != 0 {
		s, d := se.OrigSrc.Netip(6), se.OrigDst.Netip(6)
		return [4]netip.Addr{s, d, s, d}
	}
	return [4]netip.Addr{se.OrigSrc.Netip(4), se.OrigDst.Netip(4), netip.AddrFrom4(se.XlatSrc), netip.AddrFrom4(se.XlatDst)}
}

func (b backend) Sessions(ctx context.Context, f api.SessionFilter) (*api.Sessions, error) {
	m, err := b.match(f)
	if err != nil {
		return nil, err
	}
	if f.Limit == 0 {
		f.Limit = 1000
	}
	out := &api.Sessions{Sessions: []api.Session{}}
	now := uint32(b.g.clock.Now() >> 20)
	err = b.g.walk(ctx, func(w int, _ *pipeline.Shard, slot uint32, se *conntrack.Session) bool {
		out.Total++
		if m.matches(se) {
			out.Matched++
			if len(out.Sessions) < f.Limit {
				out.Sessions = append(out.Sessions, b.g.wireSession(w, slot, se, now))
			} else {
				out.Truncated = true
			}
		}
		return true
	})
	return out, err
}

func protoName(p uint8) string {
	switch p {
	case flow.ICMP:
		return "icmp"
	case flow.TCP:
		return "tcp"
	case flow.UDP:
		return "udp"
	case flow.ICMPv6:
		return "icmpv6"
	}
	return strconv.Itoa(int(p))
}

// wireSession runs on the session's worker.
func (g *Gateway) wireSession(w int, slot uint32, se *conntrack.Session, now uint32) api.Session {
	v := g.view.Load()
	a := addresses(se)
	seconds := func(ticks uint32) float64 { return float64(uint64(ticks)<<20) / 1e9 }
	last := se.LastSeen[0]
	if int32(se.LastSeen[1]-last) > 0 {
		last = se.LastSeen[1]
	}
	idle := uint32(max(0, int32(now-last)))
	out := api.Session{Worker: w, Slot: slot, Gen: se.Gen, From: "tenant", Proto: protoName(se.Proto), State: stateName(se),
		Src: netip.AddrPortFrom(a[0], se.OrigSPort).String(), Dst: netip.AddrPortFrom(a[1], se.OrigDPort).String(),
		XlatSrc: netip.AddrPortFrom(a[2], se.XlatSPort).String(), XlatDst: netip.AddrPortFrom(a[3], se.XlatDPort).String(),
		NAT: se.Flags&conntrack.FlagNAT != 0, Rule: -1, Idle: seconds(idle),
		Orig:  api.Counter{Packets: uint64(se.Packets[0]), Bytes: se.Bytes[0]},
		Reply: api.Counter{Packets: uint64(se.Packets[1]), Bytes: se.Bytes[1]}}
	if left := se.Timeout(&v.Timeouts); left > idle {
		out.Expires = seconds(left - idle)
	}
	d := meter.Out
	if se.Flags&conntrack.FlagFromBackbone != 0 {
		out.From, d = "backbone", meter.In
	}
	if se.Class != 0 {
		out.Class = "voice"
	}
	if t := v.Tenant(se.Tenant); t != nil {
		out.Tenant = t.Name
		if int64(se.Rule) < int64(len(t.Rules[d])) {
			out.Rule, out.RuleName = int(se.Rule), t.Rules[d][se.Rule].Name
		}
	}
	return out
}

// stateName is the TCP state, or whether an answer has been seen.
func stateName(se *conntrack.Session) string {
	if se.Proto == flow.TCP {
		return conntrack.TCPStateText(se.State)
	}
	if se.Flags&conntrack.FlagReplied != 0 {
		return "answered"
	}
	return "unanswered"
}
