package gateway

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"demarc/gateway/api"
	"demarc/gateway/flow"
	"demarc/gateway/meter"
	"demarc/gateway/packet"
	"demarc/gateway/pipeline"
	"demarc/gateway/snapshot"
	"demarc/gateway/trace"
	"demarc/gateway/verdict"
)

// maxPasses is more than a packet can make: in, handed over, round, handed over, and the same way back for an error about it.
const maxPasses = 8

func badPacket(format string, args ...any) error {
	return &api.Fault{Status: http.StatusBadRequest, Err: fmt.Errorf(format, args...)}
}

// Explain tries a packet and says what each stage decided. See pipeline.Trial for how it leaves nothing behind.
func (b backend) Explain(ctx context.Context, r api.ExplainRequest) (*api.Explanation, error) {
	b.g.look.try.Lock()
	defer b.g.look.try.Unlock()
	for range 3 {
		x, err := b.explain(ctx, &r)
		if errors.Is(err, pipeline.ErrViewChanged) {
			continue
		}
		return x, err
	}
	return nil, &api.Fault{Status: http.StatusConflict, Err: fmt.Errorf("%w: ask again", pipeline.ErrViewChanged)}
}

func (b backend) explain(ctx context.Context, r *api.ExplainRequest) (*api.Explanation, error) {
	g := b.g
	v := g.view.Load()
	f, err := ingressOf(v, r)
	if err != nil {
		return nil, err
	}
	frame := r.Frame
	if len(frame) == 0 {
		spec, err := specOf(v, f, r)
		if err != nil {
			return nil, err
		}
		if r.Seq == 0 && r.Ack == 0 && spec.Key.Proto == flow.TCP && spec.TCPFlags&packet.TCPSyn == 0 {
			k := spec.Key
			k.Zone = f.Zone
			if err := g.each(ctx, func(_ int, sh *pipeline.Shard) {
				if seq, ack, ok := sh.Expects(&k); ok {
					spec.Seq, spec.Ack = seq, ack
				}
			}); err != nil {
				return nil, err
			}
		}
		if frame, err = trace.Build(spec); err != nil {
			return nil, badPacket("%w", err)
		}
	}
	if len(frame) > g.chunk-2*headroom {
		return nil, badPacket("a frame of %d bytes: the packet memory of this node holds %d", len(frame), g.chunk-2*headroom)
	}
	release, err := g.off.hold() // what programs count meanwhile would be put back with the rest
	if err != nil {
		return nil, err
	}
	defer release()
	t := &trial{g: g, v: v, trial: pipeline.NewTrial(v), ctx: ctx, held: map[int]*pipeline.Shard{}}
	first := 0
	for i, w := range g.workers { // in the fabric of queues any of the port's workers may get it: what it says does not depend on which
		if w.Sends(f.Port) {
			first = i
			break
		}
	}
	if err := t.pass(first, pipeline.Slot{Port: f.Port}, frame); err != nil {
		return nil, err
	}
	x := &api.Explanation{Interface: f.Name, Frame: frame, Revision: v.Revision}
	for i := range t.journeys {
		m := b.more(v, &t.journeys[i], &t.levels[i])
		x.Passes = append(x.Passes, pass(v, &t.journeys[i], m))
	}
	last := &t.journeys[len(t.journeys)-1]
	x.Verdict, x.Text = last.Verdict.String(), verdictText(last)
	// An error that goes back round ends elsewhere than the packet did.
	for i := range t.journeys {
		if j := &t.journeys[i]; j.Answer {
			last, x.Answer, x.Text = j, true, verdictText(j)
			break
		}
	}
	if last.Dropped() {
		x.Verdict, x.Reason = verdict.Drop.String(), last.Reason.String()
		_, x.Help = last.Reason.Words()
		if last.Reason == verdict.NATNoPort {
			x.Help = g.portsHelp(f, x.Help)
		}
	}
	return x, nil
}

// portsHelp is what helps a tenant without a public port: no more addresses where those that there are rest.
func (g *Gateway) portsHelp(f *snapshot.Iface, help string) string {
	if f.Group == nil || g.common == nil {
		return help
	}
	switch p := g.common.ports(f.Group.ID); {
	case p.Rest > 0:
		return fmt.Sprintf("public ports of group %s rest: %s", f.Group.Name, restWords(p))
	case p.Waiting > 0:
		return fmt.Sprintf("a port is given when another node of group %s has acknowledged that it is used: %d address pools wait for that", f.Group.Name, p.Waiting)
	}
	return help
}

// restWords says why new conversations get few public ports, or none.
func restWords(p *api.GroupPorts) string {
	line := fmt.Sprintf("this node took over without knowing which are in use; for %s new conversations get ", time.Duration(p.Rest*1e9).Round(time.Second))
	if p.Reserve {
		return line + "those of its reserve alone, one in 64"
	}
	return line + "none: its reserve may be in use too, or is not on disk as used yet"
}

// trial is a packet on its way through the workers. They are held one inside the other, and what was written is taken back while all are
// held: nothing runs after the innermost.
type trial struct {
	g        *Gateway
	v        *snapshot.View
	trial    *pipeline.Trial
	ctx      context.Context
	held     map[int]*pipeline.Shard
	journeys []trace.Journey
	levels   []pipeline.Levels // before the packet
}

// pass takes the packet through one worker, and on from there.
func (t *trial) pass(worker int, from pipeline.Slot, frame []byte) (err error) {
	if sh := t.held[worker]; sh != nil { // it waits for us
		return t.run(sh, from, frame)
	}
	e := t.hold(worker, func(sh *pipeline.Shard) {
		t.held[worker] = sh
		if err = t.run(sh, from, frame); len(t.levels) == 0 {
			t.trial.End()
			for i := range t.journeys {
				t.levels = append(t.levels, t.held[int(t.journeys[i].Worker)].Levels(&t.journeys[i]))
			}
		}
	})
	if e != nil {
		return e
	}
	return err
}

func (t *trial) run(sh *pipeline.Shard, from pipeline.Slot, frame []byte) error {
	if len(t.journeys) >= maxPasses {
		return errors.New("the packet does not come to an end")
	}
	s := pipeline.Slot{Port: from.Port, Looped: from.Looped, Handed: from.Handed}
	s.Buf, s.Off, s.Len = make([]byte, t.g.chunk), headroom, len(frame)
	copy(s.Buf[headroom:], frame)
	var j trace.Journey
	if err := t.trial.Run(sh, &s, t.g.clock.Now(), &j); err != nil {
		return err
	}
	t.journeys = append(t.journeys, j)
	out := append([]byte(nil), s.Frame()...)
	switch {
	case s.Verdict == verdict.Hand:
		return t.pass(int(s.Home), pipeline.Slot{Port: s.Port, Looped: s.Looped, Handed: true}, out)
	case s.Verdict == verdict.Loop, s.Verdict == verdict.Queue && j.OutIface == 0: // the latter waits for the rate on its way round
		return t.run(sh, pipeline.Slot{Looped: true}, out)
	}
	return nil
}

// hold runs fn on a worker and waits for it, however long: fn writes to the trial, so it must not run later than that. A worker that has not begun
// with it after two seconds does not get to.
func (t *trial) hold(worker int, fn func(*pipeline.Shard)) error {
	if worker < 0 || worker >= len(t.g.workers) {
		return fmt.Errorf("there is no worker %d", worker)
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(t.ctx), 2*time.Second)
	defer cancel()
	var begun atomic.Uint32
	done := make(chan struct{})
	err := t.g.workers[worker].Do(ctx, func(sh *pipeline.Shard) {
		if begun.CompareAndSwap(0, 1) {
			defer close(done)
			fn(sh)
		}
	})
	if err != nil && begun.CompareAndSwap(0, 2) {
		return err
	}
	<-done
	return nil
}

// ingressOf finds the interface that the packet comes in by.
func ingressOf(v *snapshot.View, r *api.ExplainRequest) (*snapshot.Iface, error) {
	var names []string
	for i := range v.Ifaces {
		if f := &v.Ifaces[i]; f.Index != 0 {
			if r.Interface != "" && f.Name == r.Interface {
				return f, nil
			}
			names = append(names, f.Name)
		}
	}
	switch {
	case r.Interface != "":
		return nil, badPacket("there is no interface %q: there are %s", r.Interface, strings.Join(names, ", "))
	case r.Tenant == "":
		return nil, badPacket("say where the packet comes in: --tenant NAME, or --interface with one of %s", strings.Join(names, ", "))
	}
	t := v.TenantByName(r.Tenant)
	if t == nil {
		return nil, badPacket("there is no tenant %q", r.Tenant)
	}
	if len(t.Ifaces) == 0 {
		return nil, badPacket("tenant %q has no interface", r.Tenant)
	}
	if from, err := endOf(r.From); err == nil {
		for _, i := range t.Ifaces {
			for _, p := range v.Ifaces[i].Addrs {
				if p.Contains(from.Addr()) {
					return &v.Ifaces[i], nil
				}
			}
		}
	}
	return &v.Ifaces[t.Ifaces[0]], nil
}

// endOf reads address or address:port.
func endOf(s string) (netip.AddrPort, error) {
	if a, err := netip.ParseAddr(strings.Trim(s, "[]")); err == nil {
		return netip.AddrPortFrom(a.Unmap(), 0), nil
	}
	ap, err := netip.ParseAddrPort(s)
	if err != nil || ap.Addr().Zone() != "" {
		return ap, badPacket("%q is neither an address nor address:port", s)
	}
	return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port()), nil
}

// keyOf reads the ends of a packet.
func keyOf(proto, from, to string) (k flow.Key, err error) {
	n, err := api.SessionFilter{Proto: proto}.Protocol()
	if err != nil {
		return k, badPacket("%w", err)
	}
	if n < 0 {
		return k, badPacket("no protocol: want tcp, udp, icmp, icmpv6 or a number")
	}
	src, err := endOf(from)
	if err != nil {
		return k, fmt.Errorf("from: %w", err)
	}
	dst, err := endOf(to)
	if err != nil {
		return k, fmt.Errorf("to: %w", err)
	}
	if src.Addr().Is4() != dst.Addr().Is4() {
		return k, badPacket("%s and %s are of two families", src.Addr(), dst.Addr())
	}
	k = flow.Key{Src: flow.AddrFrom(src.Addr()), Dst: flow.AddrFrom(dst.Addr()), SPort: src.Port(), DPort: dst.Port(), Proto: uint8(n), Family: 4}
	if src.Addr().Is6() {
		k.Family = 6
	}
	switch n {
	case flow.TCP, flow.UDP:
		if k.SPort == 0 || k.DPort == 0 {
			return k, badPacket("%s needs ports: %s and %s as address:port", proto, from, to)
		}
	case flow.ICMP, flow.ICMPv6:
		if k.DPort != 0 {
			return k, badPacket("to %s: icmp has no destination port", to)
		}
	default:
		if k.SPort != 0 || k.DPort != 0 {
			return k, badPacket("protocol %d has no ports", n)
		}
	}
	return k, nil
}

// specOf reads the fields of a described packet.
func specOf(v *snapshot.View, f *snapshot.Iface, r *api.ExplainRequest) (*trace.Spec, error) {
	k, err := keyOf(r.Proto, r.From, r.To)
	if err != nil {
		return nil, err
	}
	s := &trace.Spec{SrcMAC: [6]byte{2, 0, 0, 0, 0, 1}, DstMAC: f.MAC, VLAN: f.VLAN, Key: k, TTL: 64, DF: r.DF, Len: r.Len, Seq: r.Seq, Ack: r.Ack, TOS: uint8(r.DSCP) << 2}
	switch {
	case r.TTL < 0 || r.TTL > 255:
		return nil, badPacket("ttl %d: want 1 to 255", r.TTL)
	case r.DSCP < 0 || r.DSCP > 63:
		return nil, badPacket("dscp %d: want 0 to 63", r.DSCP)
	case r.Len < 0:
		return nil, badPacket("length %d: want the bytes of the IP packet", r.Len)
	}
	if r.TTL > 0 {
		s.TTL = uint8(r.TTL)
	}
	if r.MAC != "" {
		m, err := net.ParseMAC(r.MAC)
		if err != nil || len(m) != 6 {
			return nil, badPacket("mac %q: want six bytes as 02:00:00:00:00:01", r.MAC)
		}
		copy(s.DstMAC[:], m)
	}
	if k.Proto == flow.TCP {
		if s.TCPFlags, err = tcpFlags(r.Flags); err != nil {
			return nil, err
		}
	} else if r.Flags != "" {
		return nil, badPacket("flags belong to tcp")
	}
	if k.Proto != flow.ICMP && k.Proto != flow.ICMPv6 {
		if r.ICMP != "" || r.Quote != "" {
			return nil, badPacket("icmp type and quote belong to icmp and icmpv6")
		}
		return s, nil
	}
	s.ICMPType = map[uint8]uint8{4: packet.ICMPEcho, 6: packet.ICMP6Echo}[k.Family]
	if r.ICMP != "" {
		typ, code, _ := strings.Cut(r.ICMP, "/")
		a, err := strconv.ParseUint(typ, 10, 8)
		c := uint64(0)
		if err == nil && code != "" {
			c, err = strconv.ParseUint(code, 10, 8)
		}
		if err != nil {
			return nil, badPacket("icmp %q: want a type, or type/code, as numbers", r.ICMP)
		}
		s.ICMPType, s.ICMPCode = uint8(a), uint8(c)
	}
	if r.Quote != "" {
		part := strings.Split(r.Quote, ",")
		if len(part) != 3 {
			return nil, badPacket("quote %q: want proto,from,to", r.Quote)
		}
		q, err := keyOf(part[0], part[1], part[2])
		if err != nil {
			return nil, fmt.Errorf("quote: %w", err)
		}
		s.Quote = &q
	}
	return s, nil
}

func tcpFlags(s string) (fl uint8, err error) {
	if s == "" {
		return packet.TCPSyn, nil
	}
	names := map[string]uint8{"fin": packet.TCPFin, "syn": packet.TCPSyn, "rst": packet.TCPRst, "psh": packet.TCPPsh, "ack": packet.TCPAck, "urg": packet.TCPUrg, "ece": packet.TCPEce, "cwr": packet.TCPCwr}
	for _, name := range strings.Split(strings.ToLower(s), ",") {
		b, ok := names[strings.TrimSpace(name)]
		if !ok && s != "none" {
			return 0, badPacket("flag %q: want some of syn, ack, fin, rst, psh, urg, ece, cwr with commas, or none", name)
		}
		fl |= b
	}
	return fl, nil
}

// more is what is to be said beside a journey: how full limits and rates were, which route, what is known of the neighbour.
func (b backend) more(v *snapshot.View, j *trace.Journey, l *pipeline.Levels) *more {
	g := b.g
	m := &more{
		group: func(x *snapshot.Group) string { return servedText(g.table().Until(x.ID), j.Ns) },
		route: func(zone flow.TenantID, a flow.Addr, family uint8) string { return routeOf(v, zone, a, family) },
		mapping: func(uint32) string {
			if l.MappingRefs > 0 {
				return fmt.Sprintf(", by a mapping that %d sessions use", l.MappingRefs)
			}
			return ", by a new mapping"
		},
	}
	t := v.Tenant(j.Tenant)
	if t == nil {
		return m
	}
	var parts []string
	if !j.Found || j.Made {
		parts = append(parts, fmt.Sprintf("sessions of the tenant %s, begun on this side and unanswered %s", of(l.Sessions, t.MaxSessions), of(l.Unanswered, t.MaxUnanswered)))
		if !t.SessionRate.Unlimited() {
			parts = append(parts, "new sessions/s: "+t.SessionRate.Fill(&t.Shared.SessionRate, l.Now))
		}
		if t.HostLimits {
			said := "sessions of the inside host " + of(int64(l.HostSessions), int64(t.HostSessions))
			if t.HostSessions > 0 {
				said += ", strangers' at most three quarters of it"
			}
			parts = append(parts, said)
		}
		parts = append(parts, fmt.Sprintf("session table of the worker %s", of(int64(l.Table), int64(l.TableCap))))
		m.limits = strings.Join(parts, "; ")
	}
	d := meter.Dir(j.Dir)
	if d > meter.In {
		m.rate = "inside the tenant: not limited"
	} else if j.Out.Family != 0 {
		x, w := &t.Dir[d], &t.Shared.Words[d]
		class := "the rest"
		if j.Voice {
			class = "voice"
		}
		if x.Bits.Unlimited() && x.Packets.Unlimited() {
			m.rate = fmt.Sprintf("%s %s has no rate", t.Name, d)
		} else {
			mode := "police"
			if x.Shape {
				mode = fmt.Sprintf("shape, %d packets wait", l.Queued)
			}
			m.rate = fmt.Sprintf("%s %s, as %s: bits %s; packets %s; %s", t.Name, d, class, x.Bits.Fill(&w.Bits, l.Now), x.Packets.Fill(&w.Packets, l.Now), mode)
		}
		if j.Verdict == verdict.Queue {
			m.rate += ": waits"
		}
	}
	if t.HostRates && d <= meter.In {
		m.hostRate = "within the rate of the inside host"
	}
	if j.OutIface != 0 {
		hop := j.NextHop.Netip(j.Out.Family)
		m.neighbour = "nobody has asked for it yet"
		for _, e := range g.slow.Neighbors() {
			if e.Iface == j.OutIface && e.Addr == hop {
				m.neighbour = e.State
				if e.MAC != [6]byte{} {
					m.neighbour = fmt.Sprintf("%s, %s", net.HardwareAddr(e.MAC[:]), e.State)
				}
			}
		}
	}
	return m
}

// servedText says whether a group is served at a time, and how long its lease lasts.
func servedText(until, now uint64) string {
	switch {
	case until == 0:
		return "which this node does not serve"
	case until <= now:
		return fmt.Sprintf("which this node does not serve: its lease ended %s ago", time.Duration(now-until).Round(time.Millisecond))
	}
	return fmt.Sprintf("which this node serves: its lease lasts %s more", time.Duration(until-now).Round(time.Millisecond))
}

func of(n, limit int64) string {
	if limit <= 0 {
		return fmt.Sprintf("%d, no limit", n)
	}
	return fmt.Sprintf("%d of %d", n, limit)
}

// routeOf names the route that leads to a, by the longest prefix, as the FIB finds it: of a tenant its own, then the backbone's.
func routeOf(v *snapshot.View, zone flow.TenantID, a flow.Addr, family uint8) string {
	addr := a.Netip(family)
	for _, z := range []flow.TenantID{zone, flow.Backbone} {
		var best netip.Prefix
		for _, r := range v.Routes() {
			if r.Zone == z && r.Prefix.Contains(addr) && (!best.IsValid() || r.Prefix.Bits() > best.Bits()) {
				best = r.Prefix
			}
		}
		if best.IsValid() {
			who := "the backbone"
			if t := v.Tenant(z); t != nil {
				who = t.Name
			}
			return fmt.Sprintf("%s of %s", best, who)
		}
	}
	return addr.String()
}
