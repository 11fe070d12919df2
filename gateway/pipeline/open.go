package pipeline

import (
	"demarc/gateway/conntrack"
	"demarc/gateway/flow"
	"demarc/gateway/meter"
	"demarc/gateway/nat"
	"demarc/gateway/snapshot"
	"demarc/gateway/verdict"
)

// openOut is the first packet of a conversation that a tenant's host starts.
func (sh *Shard) openOut(s *Slot) verdict.Verdict {
	v, k := sh.view, &s.Key
	t := v.Tenant(k.Zone)
	if t == nil {
		return sh.drop(s, verdict.InterfaceDown)
	}
	if k.Family == 6 {
		if _, ours := v.Speaks(s.in, &k.Dst); ours {
			return sh.local(s)
		}
	}
	if !t.Prefixes.Contains(k.Family, &k.Src) {
		return sh.drop(s, verdict.SpoofedSource)
	}
	back := hopInto(v, t.ID, k.Family, &k.Src)
	if back != noHop && v.Hops[back].Kind == snapshot.HopLocal {
		return sh.drop(s, verdict.SpoofedSource) // our own address
	}
	nh := v.Choose(hopTo(v, t.ID, k.Family, &k.Dst), k, noHop)
	if nh == noHop {
		return sh.noRoute(s)
	}
	if sh.watch.tr != nil {
		sh.watch.tr.Hop = nh
	}
	hop := v.Hop(nh)
	if !sh.serves(hop.Group) { // what is there is answered, or goes on, by the node that serves it
		return sh.drop(s, verdict.NotOwner)
	}
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
	if d := t.Judge(meter.Out, &ak); !sh.allowed(s, t, meter.Out, &se, d) {
		return sh.refuse(s, howToRefuse(t, d.Rule), s.Reason)
	}
	back = v.Choose(back, k, noHop)
	if _, v := sh.usable(s, t, nh); v != verdict.Next {
		return v // what goes no further leaves nothing behind
	}
	if r := sh.admit(s, t, &se); r != verdict.Pass {
		return sh.refuse(s, t.Reject, r)
	}
	se.NextHop = [2]uint16{nh, back}
	if toBackbone && k.Family == 4 && t.NAT && !t.Bypass.Contains(4, &k.Dst) {
		if r := sh.translateSource(t, &se); r != verdict.Pass {
			return sh.refuse(s, t.Reject, r)
		}
	}
	if v := sh.create(s, t, &se); v != verdict.Drop {
		return v
	}
	return sh.refuse(s, t.Reject, s.Reason)
}

// openIn is the first packet of a conversation that the backbone starts.
func (sh *Shard) openIn(s *Slot) verdict.Verdict {
	v, k := sh.view, &s.Key
	if k.Family == 6 && s.in != nil {
		if g, ours := v.Speaks(s.in, &k.Dst); !sh.serves(g) {
			return sh.drop(s, verdict.NotOwner)
		} else if ours {
			return sh.local(s)
		}
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
	if !sh.serves(hop.Group) {
		s.Tenant = hop.Tenant
		return sh.drop(s, verdict.NotOwner)
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
		if sh.watch.tr != nil {
			sh.watch.tr.Behind(behind(p, r, &se), inside, se.XlatDPort)
		}
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
	if d.Rule == flow.NoRule && mayComeByMapping(t, &se, m) {
		d.Allow = true
	}
	if !sh.allowed(s, t, meter.In, &se, d) {
		return verdict.Drop
	}
	ih := v.Choose(hopInto(v, t.ID, k.Family, &inside), k, noHop)
	if sh.watch.tr != nil {
		sh.watch.tr.Hop = ih
	}
	if ih == noHop || v.Hop(ih).Kind == snapshot.HopDiscard {
		return sh.drop(s, verdict.NoRoute)
	}
	if v.Hop(ih).Kind == snapshot.HopLocal {
		return sh.drop(s, verdict.LocalUnhandled)
	}
	if _, v := sh.usable(s, t, ih); v != verdict.Next {
		return v
	}
	if r := sh.admit(s, t, &se); r != verdict.Pass {
		return sh.drop(s, r)
	}
	se.NextHop = [2]uint16{ih, v.Choose(hopTo(v, flow.Backbone, k.Family, &k.Src), k, noHop)}
	return sh.create(s, t, &se)
}
