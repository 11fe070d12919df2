package pipeline

import (
	"demarc/gateway/conntrack"
	"demarc/gateway/flow"
	"demarc/gateway/meter"
	"demarc/gateway/packet"
	"demarc/gateway/packet/build"
	"demarc/gateway/snapshot"
	"demarc/gateway/verdict"
)

// tell turns a packet into the ICMP error for its sender, counted as the drop that it is. Where no error may or can be sent, it is only dropped.
// A packet that came round by one of our own addresses was translated on its way: its error goes the same way back.
func (sh *Shard) tell(s *Slot, why verdict.Reason, typ, code uint8, mtu int) verdict.Verdict {
	f := s.in
	if f == nil && sh.view.Outside != 0 {
		f = &sh.view.Ifaces[sh.view.Outside]
	}
	if f == nil || s.in != nil && f.NoErrors {
		return sh.drop(s, why)
	}
	told := sh.mayTell(s)
	if told == nil {
		return sh.drop(s, why)
	}
	from, ok := [6]byte(s.Frame()[6:12]), false
	sh.keep(s)
	if s.Key.Family == 4 {
		ok = f.Has4 && build.ICMPError4(&s.Packet, [4]byte(f.Addr4[:4]), typ, code, uint16(mtu))
	} else {
		src := f.Addr6
		if !f.Has6 {
			src = f.LinkLocal
		}
		ok = build.ICMPError6(&s.Packet, src, typ, code, uint32(mtu))
	}
	return sh.toSender(s, told, ok, from, why)
}

// reset answers a TCP segment as a closed port would, within the same bounds.
func (sh *Shard) reset(s *Slot, why verdict.Reason) verdict.Verdict {
	if s.in == nil || s.in.NoErrors {
		return sh.drop(s, why)
	}
	told := sh.mayTell(s)
	if told == nil {
		return sh.drop(s, why)
	}
	from := [6]byte(s.Frame()[6:12])
	sh.keep(s)
	return sh.toSender(s, told, build.TCPReset(&s.Packet), from, why)
}

// toSender sends what was made of a packet, if it could be made.
func (sh *Shard) toSender(s *Slot, told *snapshot.Told, ok bool, to [6]byte, why verdict.Reason) verdict.Verdict {
	if !ok {
		return sh.drop(s, why)
	}
	told.Sent.Add(sh.Worker)
	sh.told(s, why)
	if s.in == nil {
		return verdict.Loop
	}
	return sh.answer(s, to, sh.view.GroupOf(s.Tenant))
}

// mayTell takes an error to the packet's sender from what its side may be sent, and from what all may (RFC 1812 section 4.3.2.8, RFC 4443
// section 2.4 f). It returns what the error is counted by, or nil. The words are shared by all workers.
func (sh *Shard) mayTell(s *Slot) *snapshot.Told {
	v, zone := sh.view, s.Key.Zone
	if s.in == nil { // whose address the sender has: the error goes round to that tenant
		if _, h, ok := v.Lookup(flow.Backbone, s.Key.Family, &s.Key.Src); ok {
			switch h.Kind {
			case snapshot.HopPublic:
				zone = v.Publics[h.Public].Tenant
			case snapshot.HopTenant:
				zone = h.Tenant
			}
		}
	}
	told := v.Told(zone)
	if told == nil {
		return nil
	}
	if !v.SideRate.Take(&told.Word, sh.now, 1) {
		told.Held.Add(sh.Worker)
		return nil
	}
	if !v.ErrRate.Take(&v.Errors.Word, sh.now, 1) {
		v.SideRate.Refund(&told.Word, 1)
		told.Held.Add(sh.Worker)
		return nil
	}
	return told
}

// answer sends a frame that the gateway made, as a group or as the node (nil), back to where the packet came from.
func (sh *Shard) answer(s *Slot, to [6]byte, as *snapshot.Group) verdict.Verdict {
	if !packet.SetL2(&s.Packet, &to, s.in.Source(as, s.Key.Family), s.in.VLAN) {
		return sh.drop(s, verdict.FrameTooLarge)
	}
	s.OutIface, s.OutPort, s.Group = s.in.Index, s.in.Port, leavesAs(as)
	return verdict.Send
}

// noRoute drops a packet that nothing leads on, and tells a sender inside (RFC 1812 section 5.2.7.1, RFC 4443 section 3.1). Whoever is outside
// learns nothing of what is not there.
func (sh *Shard) noRoute(s *Slot) verdict.Verdict { return sh.noWay(s, verdict.NoRoute, 0, 0) }

// deadHop is noRoute for a route of which no next hop lives.
func (sh *Shard) deadHop(s *Slot, hop *snapshot.Hop) verdict.Verdict {
	if hop.State.NoLink() {
		return sh.noWay(s, verdict.InterfaceDown, 0, 0)
	}
	return sh.noWay(s, verdict.NoNeighbor, 1, 3) // host, or address, unreachable: as where the slow path finds it out
}

func (sh *Shard) noWay(s *Slot, why verdict.Reason, code4, code6 uint8) verdict.Verdict {
	switch {
	case s.in == nil || s.in.Zone == flow.Backbone:
		return sh.drop(s, why)
	case s.Key.Family == 4:
		return sh.tell(s, why, packet.ICMPUnreachable, code4, 0)
	}
	return sh.tell(s, why, packet.ICMP6Unreachable, code6, 0)
}

// refuse drops the first packet of a conversation that an inside host may not begin, and tells it so where how says to (RFC 5508 REQ-8, RFC 1812
// section 5.2.7.1 code 13, RFC 4443 section 3.1 code 1). The packet is as its sender wrote it.
func (sh *Shard) refuse(s *Slot, how snapshot.Reject, why verdict.Reason) verdict.Verdict {
	switch {
	case how == snapshot.RejectSilent || !refusal(why) || s.in == nil || s.in.Zone == flow.Backbone:
		return sh.drop(s, why)
	case how == snapshot.RejectReset && s.Key.Proto == flow.TCP:
		return sh.reset(s, why)
	case s.Key.Family == 4:
		return sh.tell(s, why, packet.ICMPUnreachable, 13, 0)
	}
	return sh.tell(s, why, packet.ICMP6Unreachable, 1, 0)
}

// refusal reports whether a reason is that of a rule, of a limit on sessions, or of public ports that are used up. What is wrong with the packet
// itself is not told, and a rate that is exceeded is the ends' own to notice (RFC 6633).
func refusal(why verdict.Reason) bool {
	switch why {
	case verdict.ACLDeny, verdict.ACLDefault,
		verdict.TenantSessions, verdict.TenantSessionRate, verdict.TenantUnanswered, verdict.TableShare, verdict.SessionTableFull,
		verdict.HostSessions, verdict.HostSessionRate, verdict.HostTableFull,
		verdict.NATNoPort, verdict.NATNoPool, verdict.NATMappingTableFull:
		return true
	}
	return false
}

// howToRefuse is what an inside host hears when outbound rule r, or the default, denies.
func howToRefuse(t *snapshot.Tenant, r flow.RuleID) snapshot.Reject {
	tell := t.DefaultTell
	if r != flow.NoRule {
		tell = t.Rules[meter.Out][r].Tell
	}
	if tell && t.Reject == snapshot.RejectSilent {
		return snapshot.RejectICMP
	}
	return t.Reject
}

// extra refuses options and extension headers that are not among those let through.
func extra(s *Slot, let packet.Extra) verdict.Reason {
	switch {
	case s.Extra&^let == 0:
		return verdict.Pass
	case s.Key.Family == 4:
		return verdict.OptionRefused
	}
	return verdict.HeaderRefused
}

// unreached takes back a frame whose next hop did not answer, finished as it was for that, and tells its sender if that is inside (RFC 1812
// section 5.2.7.1 code 1, RFC 4443 section 3.1 code 3). The session knows who that is, and how the packet was written.
func (sh *Shard) unreached(s *Slot) verdict.Verdict {
	v := sh.view
	if int(s.OutIface) >= len(v.Ifaces) || s.Flags&(packet.FlagICMPError|packet.FlagFragLater) != 0 {
		return sh.drop(s, verdict.NoNeighbor)
	}
	if broadcast(&v.Ifaces[s.OutIface], &s.Packet) {
		return sh.drop(s, verdict.NoNeighbor) // no error is about a broadcast (RFC 1812 section 4.3.2.7)
	}
	k := s.Key.Reverse(v.Ifaces[s.OutIface].Zone)
	ref, ok := sh.Sessions.Lookup(&k, sh.Sessions.Hash(&k))
	if !ok {
		return sh.drop(s, verdict.NoNeighbor)
	}
	se, dir := sh.Sessions.At(ref.Slot()), 1-ref.Dir()
	s.Tenant = se.Tenant
	if !sh.serves(v.GroupOf(se.Tenant)) {
		return sh.drop(s, verdict.NotOwner)
	}
	outside := [2]uint8{conntrack.FlagFromBackbone, conntrack.FlagToBackbone}[dir]
	back := se.NextHop[1-dir]
	if se.Flags&outside != 0 || se.ViewGen < sh.judged || back == noHop || v.Hop(back).Kind != snapshot.HopForward {
		return sh.drop(s, verdict.NoNeighbor)
	}
	if se.Flags&conntrack.FlagNAT != 0 {
		src, dst, sport, dport := se.Out(1 - dir) // the answer's, as the sender would see it
		packet.Translate4(&s.Packet, dst, src, dport, sport)
	}
	hop := v.Hop(back)
	s.in = &v.Ifaces[hop.Iface]
	s.Key.Zone = s.in.Zone
	s.NextHop = hop.Via
	if hop.OnLink {
		s.NextHop = s.Key.Src
	}
	mac, ok := sh.Neighbors.Lookup(hop.Iface, s.Key.Family, &s.NextHop)
	if !ok {
		return sh.drop(s, verdict.NoNeighbor)
	}
	copy(s.Frame()[6:12], mac[:]) // where tell looks for whom the error goes to
	if s.Key.Family == 4 {
		return sh.tell(s, verdict.NoNeighbor, packet.ICMPUnreachable, 1, 0)
	}
	return sh.tell(s, verdict.NoNeighbor, packet.ICMP6Unreachable, 3, 0)
}

// broadcast reports whether a packet is to all hosts of a network on the interface.
func broadcast(f *snapshot.Iface, p *packet.Packet) bool {
	if p.Key.Family != 4 {
		return false
	}
	dst := p.Key.Dst.V4()
	for _, a := range f.Addrs {
		if !a.Addr().Is4() || a.Bits() > 30 { // two hosts alone have no broadcast (RFC 3021)
			continue
		}
		net, all := flow.AddrFrom(a.Addr()), uint32(1)<<(32-a.Bits())-1
		if dst|all == net.V4()|all && (dst&all == all || dst&all == 0) {
			return true
		}
	}
	return false
}
