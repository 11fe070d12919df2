package pipeline

import (
	"demarc/gateway/conntrack"
	"demarc/gateway/flow"
	"demarc/gateway/meter"
	"demarc/gateway/packet"
	"demarc/gateway/police"
	"demarc/gateway/snapshot"
	"demarc/gateway/verdict"
)

// usable checks that a packet may go to a next hop as it is: there is one, it lives, hop limit, size. It answers verdict.Next, or what becomes of
// the packet instead. It runs before translation, so that an ICMP error quotes what its sender wrote. What is too large and may be cut
// (IPv4 without DF, RFC 1812 section 5.2.6) is noted in s.cut.
func (sh *Shard) usable(s *Slot, t *snapshot.Tenant, nh uint16) (*snapshot.Hop, verdict.Verdict) {
	if nh == noHop {
		return nil, sh.noRoute(s)
	}
	hop := sh.view.Hop(nh)
	switch hop.Kind {
	case snapshot.HopDiscard:
		return nil, sh.drop(s, verdict.NoRoute)
	case snapshot.HopLocal:
		return nil, sh.drop(s, verdict.LocalUnhandled)
	}
	if hop.State.Dead() { // and so are all others of its route
		return nil, sh.deadHop(s, hop)
	}
	if s.TTL <= 1 {
		if s.Key.Family == 4 {
			return nil, sh.tell(s, verdict.TTLExceeded, packet.ICMPTimeExceeded, 0, 0)
		}
		return nil, sh.tell(s, verdict.TTLExceeded, packet.ICMP6TimeExceeded, 0, 0)
	}
	if hop.Kind == snapshot.HopForward {
		if mtu := sh.view.Ifaces[hop.Iface].MTU; int(s.IPLen) > mtu {
			if s.Key.Family == 6 {
				return nil, sh.tell(s, verdict.TooBig, packet.ICMP6TooBig, 0, mtu)
			}
			if s.Frame()[s.L3+6]&0x40 != 0 {
				return nil, sh.tell(s, verdict.TooBig, packet.ICMPUnreachable, 4, mtu)
			}
			s.cut = uint16(mtu)
		}
	}
	return hop, verdict.Next
}

// send carries a translated packet through neighbour, hop limit (unless that is lowered already), link header, rate and account.
func (sh *Shard) send(s *Slot, t *snapshot.Tenant, hop *snapshot.Hop, lowered bool) verdict.Verdict {
	v := verdict.Send
	s.Group = leavesAs(t.Group)
	if s.Looped && s.Group == 0 && sh.view.Grouped() { // to a tenant of no group: it is of the group that it comes from
		if _, h, ok := sh.view.Lookup(flow.Backbone, s.Key.Family, &s.Key.Src); ok {
			s.Group = leavesAs(h.Group)
		}
	}
	if hop.Kind != snapshot.HopForward {
		// Towards one of our own public addresses, or another tenant: it enters again from the backbone side, once.
		if s.Looped {
			return sh.drop(s, verdict.LoopTwice)
		}
		v = verdict.Loop
	} else {
		f := &sh.view.Ifaces[hop.Iface]
		s.OutIface, s.OutPort = f.Index, f.Port
		s.NextHop = hop.Via
		if hop.OnLink {
			s.NextHop = s.Key.Dst
		}
		n := sh.neighbor(hop.Iface, s)
		if !n.known {
			v = verdict.Neighbor
		}
		if s.cut != isPiece {
			if !lowered {
				packet.DecTTL(&s.Packet)
			}
			if s.TCPFlags&packet.TCPSyn != 0 && s.Key.Proto == flow.TCP {
				sh.clampMSS(s, f)
			}
			if s.cut != 0 {
				s.hop = hop
				return verdict.Cut
			}
		}
		if !packet.SetL2(&s.Packet, &n.mac, f.Source(t.Group, s.Key.Family), f.VLAN) {
			return sh.drop(s, verdict.FrameTooLarge)
		}
	}
	switch {
	case s.Dir == meter.Inside:
		sh.Meter.Add(t.ID, s.Dir, int(s.IPLen))
	case !s.Voice && sh.Shaper.Passes(int(t.ID)*2+int(s.Dir), &t.Dir[s.Dir], &t.Shared.Words[s.Dir], int(s.IPLen), sh.now):
		sh.Meter.Passed(t.ID, s.Dir, int(s.IPLen))
	default:
		return sh.offer(s, t, v)
	}
	return v
}

// offer is the rate for what does not simply pass: voice, what has to wait, and what finds no rate. v is what becomes of it otherwise.
func (sh *Shard) offer(s *Slot, t *snapshot.Tenant, v verdict.Verdict) verdict.Verdict {
	it := police.Item{Frame: s.Addr, Area: s.Area, Voice: s.Voice, Ruled: s.ruled, Port: s.OutPort, Off: uint16(s.Off), Len: uint16(s.Len), IPLen: s.IPLen, Tag: uint32(s.Group)}
	if v == verdict.Loop {
		it.Port = LoopPort
	}
	sh.Meter.Offer(t.ID, s.Dir, int(s.IPLen))
	d := &t.Dir[s.Dir]
	if v == verdict.Neighbor { // it waits elsewhere: it may take of the rate what there is, and not stand in its queue as well
		strict := *d
		strict.Shape = false
		d = &strict
	}
	ov, r := sh.Shaper.Offer(int(t.ID)*2+int(s.Dir), d, &t.Shared.Words[s.Dir], &it, sh.now)
	if ov == verdict.Queue {
		v = verdict.Queue
		s.Verdict = v // at once: should anything after this panic, the frame is the shaper's and nobody else's
	}
	if s.Voice {
		fate := meter.VoiceWithin
		switch {
		case it.Above:
			fate = meter.VoiceAbove
		case ov == verdict.Drop:
			fate = meter.VoiceLost
		}
		sh.Meter.Voice(t.ID, s.Dir, int(s.IPLen), fate)
	}
	if ov == verdict.Drop {
		return sh.drop(s, r)
	}
	sh.Meter.Add(t.ID, s.Dir, int(s.IPLen))
	return v
}

// near is a neighbour as Neighbors has it, for the rest of a burst.
type near struct {
	to     flow.Addr
	iface  uint16
	family uint8 // 0 = nothing yet
	known  bool
	mac    [6]byte
}

// neighbor is who stands at s.NextHop. A burst mostly goes to few, so who was asked for last on an interface is kept until setNow.
func (sh *Shard) neighbor(iface uint16, s *Slot) *near {
	n := &sh.near[iface%uint16(len(sh.near))]
	if n.iface != iface || n.family != s.Key.Family || n.to != s.NextHop {
		sh.meet(n, iface, s)
	}
	return n
}

func (sh *Shard) meet(n *near, iface uint16, s *Slot) {
	mac, known := sh.Neighbors.Lookup(iface, s.Key.Family, &s.NextHop)
	*n = near{to: s.NextHop, iface: iface, family: s.Key.Family, known: known, mac: mac}
}

// clampMSS applies the smaller clamp of the two interfaces that a SYN crosses.
func (sh *Shard) clampMSS(s *Slot, out *snapshot.Iface) {
	mss := clampOf(out, s.Key.Family)
	if s.in != nil {
		if m := clampOf(s.in, s.Key.Family); m != 0 && (mss == 0 || m < mss) {
			mss = m
		}
	}
	if mss != 0 {
		packet.ClampMSS(&s.Packet, mss)
	}
}

func clampOf(f *snapshot.Iface, family uint8) uint16 {
	if family == 4 {
		return f.MSS4
	}
	return f.MSS6
}

// related carries an ICMP error to the sender of the packet that it quotes, both translated (RFC 5508 section 4).
func (sh *Shard) related(s *Slot) verdict.Verdict {
	in, r := packet.ParseInner(&s.Packet)
	if r != verdict.Pass {
		return sh.drop(s, r)
	}
	// The quoted packet left through the side that the error comes from, so its answers enter there under the reverse key.
	k := in.Key.Reverse(s.Key.Zone)
	if s.Key.Dst != in.Key.Src {
		return sh.drop(s, verdict.ICMPBadInner) // an error goes to whoever sent what it quotes; another way round it would be a way past the ACL
	}
	ref, ok := sh.Sessions.Lookup(&k, sh.Sessions.Hash(&k))
	if !ok {
		if sh.asked.waits != nil {
			if v, ok := sh.quoted(s, &in); ok {
				return v
			}
		}
		return sh.drop(s, verdict.ICMPNoSession)
	}
	se, dir := sh.Sessions.At(ref.Slot()), ref.Dir()
	s.Tenant = se.Tenant
	if !sh.serves(sh.view.GroupOf(se.Tenant)) {
		return sh.drop(s, verdict.NotOwner)
	}
	if se.ViewGen != sh.gen {
		if r := sh.current(ref.Slot(), se); r != verdict.Pass {
			sh.expel(ref.Slot(), se)
			return sh.drop(s, r)
		}
	}
	if sh.elsewhere(se.NextHop[dir]) {
		return sh.drop(s, verdict.NotOwner)
	}
	s.Dir = Direction(se, dir)
	t := sh.view.Tenant(se.Tenant)
	if r := extra(s, t.Extra); r != verdict.Pass {
		return sh.drop(s, r)
	}
	if sh.blocks != nil && sh.barredOut(se, dir) {
		return sh.drop(s, verdict.Blocked)
	}
	if sh.falseSource(s, t, se) {
		return sh.drop(s, verdict.SpoofedSource)
	}
	hop, v := sh.usable(s, t, sh.way(se, dir))
	if v != verdict.Next {
		return v
	}
	if se.Flags&conntrack.FlagNAT != 0 {
		src, dst, sport, dport := se.Out(dir)
		packet.TranslateInner4(&s.Packet, &in, dst, src, dport, sport)
		outer := [4]byte(s.Key.Src[:4])
		if s.Key.Zone != flow.Backbone {
			outer = src // whoever inside sends it, outside it comes from the address that the conversation has there,
			if i, static := t.StaticByInside[s.Key.Src]; static {
				outer = [4]byte(sh.view.Publics[i].Addr[:4]) // or from its own (RFC 5508 REQ-5c)
			}
		}
		packet.TranslateOuter4(&s.Packet, outer, dst)
		if !packet.Atomic(&s.Packet) && !sh.rename(s, se) {
			return sh.drop(s, verdict.FragmentNoID)
		}
	}
	return sh.send(s, t, hop, false)
}

// falseSource reports whether an ICMP error bears a source that may not come from its side. Any router on the way may send one, so a
// tenant's may have an address outside the tenant's prefixes where the translation replaces it.
func (sh *Shard) falseSource(s *Slot, t *snapshot.Tenant, se *conntrack.Session) bool {
	if s.Key.Zone != flow.Backbone {
		return se.Flags&conntrack.FlagNAT == 0 && !t.Prefixes.Contains(s.Key.Family, &s.Key.Src)
	}
	if s.Looped {
		return false
	}
	_, h, ok := sh.view.Lookup(flow.Backbone, s.Key.Family, &s.Key.Src)
	return ok && h.Kind != snapshot.HopForward && h.Kind != snapshot.HopDiscard
}

func isEcho(p *packet.Packet) bool {
	return p.Flags&(packet.FlagICMPQuery|packet.FlagICMPReply) == packet.FlagICMPQuery &&
		(p.Key.Proto == flow.ICMP && p.ICMPType == packet.ICMPEcho || p.Key.Proto == flow.ICMPv6 && p.ICMPType == packet.ICMP6Echo)
}

// local answers what is addressed to the gateway itself: pings, nothing else. What somebody waits for is handed to them.
func (sh *Shard) local(s *Slot) verdict.Verdict {
	if sh.asked.waits != nil && !s.Looped {
		if v, ok := sh.answers(s); ok {
			return v
		}
	}
	if s.Looped || s.in == nil || !isEcho(&s.Packet) {
		return sh.drop(s, verdict.LocalUnhandled)
	}
	let := packet.Extra(0)
	if t := sh.view.Tenant(s.Key.Zone); t != nil {
		if !t.Prefixes.Contains(s.Key.Family, &s.Key.Src) && !linkLocal6(&s.Key.Src) {
			return sh.drop(s, verdict.SpoofedSource)
		}
		let = t.Extra
	}
	if r := extra(s, let); r != verdict.Pass {
		return sh.drop(s, r)
	}
	if !sh.echoRate.Take(&sh.echo[s.Key.Zone], sh.now, 1) {
		return sh.drop(s, verdict.ICMPRateLimited)
	}
	return sh.pong(s)
}
