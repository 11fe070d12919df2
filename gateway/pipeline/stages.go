package pipeline

import (
	"demarc/gateway/conntrack"
	"demarc/gateway/flow"
	"demarc/gateway/meter"
	"demarc/gateway/nat"
	"demarc/gateway/packet"
	"demarc/gateway/snapshot"
	"demarc/gateway/verdict"
)

// Process judges a burst. Frames are rewritten in place; the driver then does what each Slot.Verdict says. Drops are counted here.
//
// Four sweeps, so that the memory that a packet will need is on its way while others are worked on: parse and hash, touch the
// index, touch the sessions, then each packet to the end.
func (sh *Shard) Process(slots []Slot, nowNs uint64) {
	sh.setNow(nowNs)
	if sh.view == nil {
		for i := range slots {
			sh.drop(&slots[i], verdict.Shutdown)
			sh.Meter.Drop(0, verdict.Shutdown)
		}
		return
	}
	sink := sh.sink
	for i := range slots {
		s := &slots[i]
		s.Verdict = sh.receive(s)
		if s.Verdict == verdict.Next {
			s.hash = sh.Sessions.Hash(&s.Key)
		} else if s.Verdict == verdict.Drop {
			sh.Meter.Drop(s.Tenant, s.Reason)
		}
	}
	// A loop of loads and nothing else: the processor has many of them under way at once, which it has not between parsing.
	for i := range slots {
		if s := &slots[i]; s.Verdict == verdict.Next {
			sink ^= sh.Sessions.Touch(s.hash)
		}
	}
	for i := range slots {
		if s := &slots[i]; s.Verdict == verdict.Next {
			sink ^= sh.Sessions.TouchSession(s.hash)
		}
	}
	sh.sink = sink
	for i := range slots {
		s := &slots[i]
		if s.Verdict != verdict.Next {
			continue
		}
		if s.Verdict = sh.find(s); s.Verdict == verdict.Drop {
			sh.Meter.Drop(s.Tenant, s.Reason)
		}
	}
}

func (sh *Shard) drop(s *Slot, r verdict.Reason) verdict.Verdict {
	s.Verdict, s.Reason = verdict.Drop, r
	return verdict.Drop
}

// receive parses a frame and finds out where it came in, and whether it is this worker's.
func (sh *Shard) receive(s *Slot) verdict.Verdict {
	s.Verdict, s.Reason, s.Tenant, s.Voice, s.in = verdict.Drop, verdict.Unset, 0, false, nil
	if r := packet.Parse(&s.Packet); r != verdict.Pass {
		if f := sh.ingress(s); f != nil {
			s.Tenant = f.Zone
		}
		return sh.drop(s, r)
	}
	s.IPLen = uint16(s.L3End - s.L3)
	if s.Looped {
		s.Key.Zone = flow.Backbone
	} else {
		f := sh.ingress(s)
		if f == nil || !f.Used {
			return sh.drop(s, verdict.UnknownVLAN)
		}
		s.in, s.Tenant, s.Key.Zone = f, f.Zone, f.Zone
		if s.Flags&packet.FlagMcastMAC == 0 && [6]byte(s.Frame()[:6]) != f.MAC {
			return sh.drop(s, verdict.ForeignMAC)
		}
		if s.Flags&(packet.FlagARP|packet.FlagND) != 0 {
			s.OutIface = f.Index
			return verdict.Punt
		}
		if r := sane(&s.Packet, f); r != verdict.Pass {
			return sh.drop(s, r)
		}
	}
	if s.Flags&(packet.FlagFragFirst|packet.FlagFragLater) != 0 {
		return sh.drop(s, verdict.Fragment)
	}
	if sh.view.Workers > 1 && !s.Handed {
		if w := sh.home(s); w != sh.Worker {
			s.Home = uint16(w)
			return verdict.Hand
		}
	}
	return verdict.Next
}

func (sh *Shard) ingress(s *Slot) *snapshot.Iface {
	if i := sh.view.Iface(s.Port, s.VLAN); i != 0 {
		return &sh.view.Ifaces[i]
	}
	return nil
}

// sane refuses addresses that no forwarded packet may carry (RFC 1812 5.3.7, RFC 6890, RFC 4291 2.5).
func sane(p *packet.Packet, f *snapshot.Iface) verdict.Reason {
	if p.Key.Family == 4 {
		src, dst := p.Key.Src.V4(), p.Key.Dst.V4()
		switch {
		case dst>>28 == 0xe || p.Flags&packet.FlagMcastMAC != 0:
			return verdict.Multicast
		case src == dst:
			return verdict.Land
		case src>>24 == 0 || src>>24 == 127 || src>>28 >= 0xe, dst>>24 == 0 || dst>>24 == 127 || dst>>28 == 0xf:
			return verdict.Martian
		case src>>16 == 0xa9fe || dst>>16 == 0xa9fe:
			return verdict.LinkLocal
		}
		return verdict.Pass
	}
	src, dst := &p.Key.Src, &p.Key.Dst
	switch {
	case dst[0] == 0xff || p.Flags&packet.FlagMcastMAC != 0:
		return verdict.Multicast
	case *src == *dst:
		return verdict.Land
	case src[0] == 0xff || reserved6(src) || reserved6(dst):
		return verdict.Martian
	case linkLocal6(src) && *dst != f.LinkLocal || linkLocal6(dst) && *dst != f.LinkLocal:
		return verdict.LinkLocal
	}
	return verdict.Pass
}

func linkLocal6(a *flow.Addr) bool { return a[0] == 0xfe && a[1]&0xc0 == 0x80 }

// reserved6: unspecified, loopback, IPv4-compatible and IPv4-mapped addresses (::/8 but for what is never routed anyway).
func reserved6(a *flow.Addr) bool { return a[0] == 0 && a[1] == 0 && a[2] == 0 && a[3] == 0 }

// home is the worker that a packet belongs to: that of its inside host, from either side.
func (sh *Shard) home(s *Slot) int {
	v, k := sh.view, s.Key
	if s.Flags&packet.FlagICMPError != 0 {
		in, r := packet.ParseInner(&s.Packet)
		if r != verdict.Pass {
			return sh.Worker
		}
		k = in.Key.Reverse(s.Key.Zone)
	}
	_, ports := nat.ClassOf(k.Proto)
	if k.Zone != flow.Backbone {
		if !ports && k.Proto != flow.ICMPv6 { // found again by the far address: that is all that both directions show
			return v.HomeOf(0, k.Family, &k.Dst)
		}
		if _, h, ok := v.Lookup(k.Zone, k.Family, &k.Dst); ok && h.Kind == snapshot.HopForward {
			return v.HomeOf(k.Zone, k.Family, lesser(&k.Src, &k.Dst))
		}
		return v.HomeOf(k.Zone, k.Family, &k.Src)
	}
	if !ports && k.Proto != flow.ICMPv6 {
		return v.HomeOf(0, k.Family, &k.Src)
	}
	_, h, ok := v.Lookup(flow.Backbone, k.Family, &k.Dst)
	if !ok {
		return sh.Worker
	}
	switch h.Kind {
	case snapshot.HopTenant:
		return v.HomeOf(h.Tenant, k.Family, &k.Dst)
	case snapshot.HopPublic:
		p := &v.Publics[h.Public]
		if p.Static {
			return v.HomeOf(p.Tenant, 4, &p.Inside)
		}
		if f, ok := p.Forwards[snapshot.ForwardKey(k.Proto, k.DPort)]; ok {
			return v.HomeOf(p.Tenant, 4, &f.Inside)
		}
		if w, ok := sh.Space.Owner(p.ID, k.DPort); ok {
			return w
		}
	}
	return sh.Worker
}

func lesser(a, b *flow.Addr) *flow.Addr {
	if string(a[:]) < string(b[:]) {
		return a
	}
	return b
}

// find looks the session up, or opens one.
func (sh *Shard) find(s *Slot) verdict.Verdict {
	if s.Flags&packet.FlagICMPError != 0 {
		return sh.related(s)
	}
	ref, ok := sh.Sessions.Lookup(&s.Key, s.hash)
	if !ok {
		if s.Key.Zone == flow.Backbone {
			return sh.openIn(s)
		}
		return sh.openOut(s)
	}
	slot, dir := ref.Slot(), ref.Dir()
	se := sh.Sessions.At(slot)
	if se.ViewGen != sh.view.Gen {
		if r := sh.judgeAgain(se); r != verdict.Pass {
			s.Tenant = se.Tenant
			sh.end(slot, se)
			return sh.drop(s, r)
		}
	}
	if sh.impostor(s, se, dir) {
		s.Tenant = se.Tenant
		return sh.drop(s, verdict.SpoofedSource)
	}
	if se.Proto == flow.TCP {
		seg := segment(&s.Packet)
		if conntrack.Reopens(se, dir, &seg) {
			sh.end(slot, se)
			if s.Key.Zone == flow.Backbone {
				return sh.openIn(s)
			}
			return sh.openOut(s)
		}
		before := se.State
		if r := conntrack.Track(se, dir, &seg); r != verdict.Pass {
			s.Tenant = se.Tenant
			return sh.drop(s, r)
		}
		if se.State != before { // a shorter time-out must not wait for the longer one's deadline
			sh.Sessions.SetDeadline(slot, sh.tick+se.Timeout(&sh.view.Timeouts))
		}
	}
	if dir == 1 && se.Flags&conntrack.FlagReplied == 0 {
		if unfinished(&s.Packet) {
			s.Tenant = se.Tenant
			return sh.drop(s, verdict.UnfinishedChecksum)
		}
		se.BeginWrite()
		se.Flags |= conntrack.FlagReplied
		se.EndWrite()
	}
	return sh.forward(s, se, dir)
}

// impostor reports whether a packet that came over the wire from the backbone bears a source that is ours, a public address or a
// tenant's: those come round by Loop. The session knows, because its way back leads there.
func (sh *Shard) impostor(s *Slot, se *conntrack.Session, dir int) bool {
	if s.Key.Zone != flow.Backbone || s.Looped {
		return false
	}
	back := se.NextHop[1-dir]
	if back == noHop {
		return false
	}
	k := sh.view.Hops[back].Kind
	return k != snapshot.HopForward && k != snapshot.HopDiscard
}

// segment is what connection tracking wants to know of a TCP packet.
func segment(p *packet.Packet) conntrack.Segment {
	seg := conntrack.Segment{Flags: p.TCPFlags, Seq: p.Seq, Ack: p.Ack, Window: p.Window, Payload: p.PayloadLen, Scale: -1}
	if p.TCPFlags&packet.TCPSyn != 0 {
		seg.Scale = packet.WindowScale(p)
	}
	return seg
}

// openOut is the first packet of a conversation that a tenant's host starts.
func (sh *Shard) openOut(s *Slot) verdict.Verdict {
	v, k := sh.view, &s.Key
	t := v.Tenant(k.Zone)
	if t == nil {
		return sh.drop(s, verdict.InterfaceDown)
	}
	if k.Family == 6 && k.Dst == s.in.LinkLocal {
		return sh.local(s)
	}
	if !t.Prefixes.Contains(k.Family, &k.Src) {
		return sh.drop(s, verdict.SpoofedSource)
	}
	back := hopInto(v, t.ID, k.Family, &k.Src)
	if back != noHop && v.Hops[back].Kind == snapshot.HopLocal {
		return sh.drop(s, verdict.SpoofedSource) // our own address
	}
	nh := hopTo(v, t.ID, k.Family, &k.Dst)
	if nh == noHop {
		return sh.drop(s, verdict.NoRoute)
	}
	hop := &v.Hops[nh]
	switch hop.Kind {
	case snapshot.HopLocal:
		return sh.local(s)
	case snapshot.HopDiscard:
		return sh.drop(s, verdict.NoRoute)
	case snapshot.HopPublic:
		if p := &v.Publics[hop.Public]; !p.Static && isEcho(&s.Packet) {
			return sh.local(s)
		}
	}
	se := conntrack.Session{
		OrigSrc: k.Src, OrigDst: k.Dst, OrigSPort: k.SPort, OrigDPort: k.DPort, XlatSPort: k.SPort, XlatDPort: k.DPort,
		Proto: k.Proto, Tenant: t.ID, Mapping: conntrack.NoMapping,
	}
	toBackbone := outOf(v, nh, t.ID)
	if toBackbone {
		se.Flags |= conntrack.FlagToBackbone
	}
	if k.Family == 6 {
		se.Flags |= conntrack.FlagV6
	} else {
		copy(se.XlatSrc[:], k.Src[:4])
		copy(se.XlatDst[:], k.Dst[:4])
	}
	// ACL before limits and translation: what is denied costs the tenant nothing.
	ak := snapshot.ACLKey(&k.Src, &k.Dst, k.SPort, k.DPort, k.Proto, k.Family)
	if !sh.allowed(s, t, meter.Out, &se, t.Judge(meter.Out, &ak)) {
		return verdict.Drop
	}
	if r := sh.admit(s, t, &se); r != verdict.Pass {
		return sh.drop(s, r)
	}
	se.NextHop = [2]uint16{nh, back}
	if toBackbone && k.Family == 4 && t.NAT && !t.Bypass.Contains(4, &k.Dst) {
		if r := sh.translateSource(t, &se); r != verdict.Pass {
			return sh.drop(s, r)
		}
	}
	return sh.create(s, t, &se)
}

// translateSource chooses the public address and port of a session that leaves tenant t.
func (sh *Shard) translateSource(t *snapshot.Tenant, se *conntrack.Session) verdict.Reason {
	se.Flags |= conntrack.FlagNAT
	if i, ok := t.StaticByInside[se.OrigSrc]; ok {
		copy(se.XlatSrc[:], sh.view.Publics[i].Addr[:4])
		return verdict.Pass
	}
	if len(t.Pool) == 0 {
		return verdict.NATNoPool
	}
	class, ports := nat.ClassOf(se.Proto)
	if !ports {
		n := flow.HomeHash(t.ID, 4, &se.OrigSrc, sh.view.HomeSeed)
		copy(se.XlatSrc[:], t.PoolAddrs[flow.Home(n, len(t.PoolAddrs))][:4])
		return verdict.Pass
	}
	req := nat.Request{Tenant: t.ID, Class: class, PerHost: t.PerHost, Inside: [4]byte(se.OrigSrc[:4]), Port: se.OrigSPort, Pool: t.Pool, Hold: sh.view.NATHold}
	id, r := sh.NAT.Map(&req, sh.tick, sh.random())
	if r != verdict.Pass {
		return r
	}
	sh.making = id
	a, port := sh.NAT.Mapping(id).Public()
	se.XlatSrc, se.XlatSPort, se.Mapping = sh.Space.Addr(a), port, id
	return verdict.Pass
}

// openIn is the first packet of a conversation that the backbone starts.
func (sh *Shard) openIn(s *Slot) verdict.Verdict {
	v, k := sh.view, &s.Key
	if k.Family == 6 && s.in != nil && k.Dst == s.in.LinkLocal {
		return sh.local(s)
	}
	if !s.Looped {
		// A source that is ours cannot come from outside (RFC 2827 the other way round).
		if _, h, ok := v.Lookup(flow.Backbone, k.Family, &k.Src); ok && h.Kind != snapshot.HopForward && h.Kind != snapshot.HopDiscard {
			return sh.drop(s, verdict.SpoofedSource)
		}
	}
	_, hop, ok := v.Lookup(flow.Backbone, k.Family, &k.Dst)
	if !ok {
		return sh.drop(s, verdict.NoRoute)
	}
	se := conntrack.Session{
		OrigSrc: k.Src, OrigDst: k.Dst, OrigSPort: k.SPort, OrigDPort: k.DPort, XlatSPort: k.SPort, XlatDPort: k.DPort,
		Proto: k.Proto, Mapping: conntrack.NoMapping, Flags: conntrack.FlagFromBackbone,
	}
	inside := k.Dst
	var m *nat.Mapping
	switch hop.Kind {
	case snapshot.HopLocal:
		return sh.local(s)
	case snapshot.HopTenant:
		s.Tenant = hop.Tenant
	case snapshot.HopPublic:
		p := &v.Publics[hop.Public]
		s.Tenant = p.Tenant
		r := sh.translateDestination(s, p, &se, &inside)
		if r == verdict.NATUnusedAddress && isEcho(&s.Packet) && !p.Host {
			return sh.local(s)
		}
		if r != verdict.Pass {
			return sh.drop(s, r)
		}
		if se.Mapping != conntrack.NoMapping {
			m = sh.NAT.Mapping(se.Mapping)
		}
	default:
		return sh.drop(s, verdict.NotForUs) // no transit from backbone to backbone
	}
	t := v.Tenant(s.Tenant)
	if t == nil {
		return sh.drop(s, verdict.NoRoute)
	}
	se.Tenant = t.ID
	if k.Family == 6 {
		se.Flags |= conntrack.FlagV6
	} else {
		copy(se.XlatSrc[:], k.Src[:4])
		copy(se.XlatDst[:], inside[:4])
	}
	if k.Family == 4 && hop.Kind == snapshot.HopTenant && t.NAT && !t.Bypass.Contains(4, &k.Src) {
		return sh.drop(s, verdict.NoRoute) // only the bypassed far ends may use the inside addresses
	}
	ak := snapshot.ACLKey(&k.Src, &inside, k.SPort, se.XlatDPort, k.Proto, k.Family)
	d := t.Judge(meter.In, &ak)
	if m != nil && d.Rule == flow.NoRule && t.EIFiltering {
		d.Allow = true
	}
	if !sh.allowed(s, t, meter.In, &se, d) {
		return verdict.Drop
	}
	if r := sh.admit(s, t, &se); r != verdict.Pass {
		return sh.drop(s, r)
	}
	ih := hopInto(v, t.ID, k.Family, &inside)
	if ih == noHop || v.Hops[ih].Kind == snapshot.HopDiscard {
		return sh.drop(s, verdict.NoRoute)
	}
	if v.Hops[ih].Kind == snapshot.HopLocal {
		return sh.drop(s, verdict.LocalUnhandled)
	}
	se.NextHop = [2]uint16{ih, hopTo(v, flow.Backbone, k.Family, &k.Src)}
	return sh.create(s, t, &se)
}

// translateDestination finds the inside host behind a public address: 1:1, forwarded port, or mapping.
func (sh *Shard) translateDestination(s *Slot, p *snapshot.Public, se *conntrack.Session, inside *flow.Addr) verdict.Reason {
	k := &s.Key
	se.Flags |= conntrack.FlagNAT
	if p.Static {
		*inside = p.Inside
		return verdict.Pass
	}
	if f, ok := p.Forwards[snapshot.ForwardKey(k.Proto, k.DPort)]; ok {
		*inside, se.XlatDPort = f.Inside, f.Port
		return verdict.Pass
	}
	if class, ports := nat.ClassOf(k.Proto); ports && p.Dynamic && s.Flags&packet.FlagICMPQuery == 0 {
		if id, ok := sh.NAT.Lookup(p.ID, class, k.DPort); ok {
			t := sh.view.Tenant(p.Tenant)
			if t == nil || !t.EIFiltering {
				return verdict.NATFiltered
			}
			owner, a, port := sh.NAT.Mapping(id).Inside()
			*inside = flow.Addr{}
			copy(inside[:4], a[:])
			// A mapping may outlive the policy that it was made under, until its sessions are judged again: of a tenant that had
			// this address before, of a host that is translated 1:1 now, of a port that the host has now.
			if _, static := t.StaticByInside[*inside]; static || owner != t.ID || p.Reserved(class, k.DPort) {
				return verdict.NATUnusedAddress
			}
			se.XlatDPort, se.Mapping = port, id
			return verdict.Pass
		}
	}
	return verdict.NATUnusedAddress
}

// allowed applies what the ACL said, counts it for the rule and logs it if the rule wants that.
func (sh *Shard) allowed(s *Slot, t *snapshot.Tenant, d meter.Dir, se *conntrack.Session, j snapshot.Decision) bool {
	s.Tenant = t.ID
	t.HitsOf(d, j.Rule).Add(sh.Worker)
	se.Rule = j.Rule
	if j.Rule != flow.NoRule {
		r := &t.Rules[d][j.Rule]
		if r.Voice {
			se.Class = classVoice
		}
		if r.Log {
			sh.event(Event{Tick: sh.tick, Tenant: t.ID, Dir: d, Rule: j.Rule, Allow: j.Allow, Key: s.Key})
		}
	}
	if !j.Allow {
		r := verdict.ACLDeny
		if j.Rule == flow.NoRule {
			r = verdict.ACLDefault
		}
		sh.drop(s, r)
	}
	return j.Allow
}

// admit checks the first packet itself and the tenant's limits on sessions.
func (sh *Shard) admit(s *Slot, t *snapshot.Tenant, se *conntrack.Session) verdict.Reason {
	if s.Flags&packet.FlagICMPReply != 0 {
		return verdict.ICMPNoSession // an answer to nothing
	}
	if (s.Key.Proto == flow.ICMP || s.Key.Proto == flow.ICMPv6) && s.Flags&packet.FlagICMPQuery == 0 {
		return verdict.ICMPNoSession
	}
	if unfinished(&s.Packet) {
		return verdict.UnfinishedChecksum
	}
	if se.Proto == flow.TCP {
		seg := segment(&s.Packet)
		if r := conntrack.First(se, &seg); r != verdict.Pass {
			return r
		}
	}
	if t.MaxSessions > 0 && t.Shared.Sessions.Load() >= t.MaxSessions {
		return verdict.TenantSessions
	}
	if !t.SessionRate.Unlimited() && !t.SessionRate.Take(&t.Shared.SessionRate, sh.now, 1) {
		return verdict.TenantSessionRate
	}
	return sh.admitHost(t, se)
}

// create puts the session into the table and sends its first packet on. What it had taken is given back if the table refuses.
func (sh *Shard) create(s *Slot, t *snapshot.Tenant, se *conntrack.Session) verdict.Verdict {
	se.ViewGen = sh.view.Gen
	se.LastSeen = [2]uint32{sh.tick, sh.tick}
	sh.countHost(t, se)
	slot, r := sh.Sessions.Create(se, sh.tick, se.Timeout(&sh.view.Timeouts))
	if r != verdict.Pass {
		if se.Mapping != conntrack.NoMapping {
			sh.NAT.Drop(se.Mapping)
			sh.making = conntrack.NoMapping
		}
		if se.Flags&conntrack.FlagCounted != 0 {
			sh.uncountHost(se)
		}
		return sh.drop(s, r)
	}
	if se.Mapping != conntrack.NoMapping {
		sh.NAT.Ref(se.Mapping)
		sh.making = conntrack.NoMapping
	}
	t.Shared.Sessions.Add(1)
	t.Shared.Created.Add(1)
	return sh.forward(s, sh.Sessions.At(slot), 0)
}

// forward carries a packet of an established session in direction dir to its next hop.
func (sh *Shard) forward(s *Slot, se *conntrack.Session, dir int) verdict.Verdict {
	s.Tenant, s.Dir = se.Tenant, Direction(se, dir)
	t := sh.view.Tenant(se.Tenant)
	s.Voice = se.Class == classVoice || t.Voice(s.TOS)
	hop, v := sh.usable(s, t, se.NextHop[dir])
	if v != verdict.Next {
		return v
	}
	if se.Flags&conntrack.FlagNAT != 0 {
		src, dst, sport, dport := se.Out(dir)
		packet.Translate4(&s.Packet, src, dst, sport, dport)
	}
	v = sh.send(s, t, hop)
	if v != verdict.Drop {
		se.LastSeen[dir] = sh.tick
		se.Packets[dir]++
		se.Bytes[dir] += uint64(s.IPLen)
	}
	return v
}
