package pipeline

import (
	"demarc/gateway/conntrack"
	"demarc/gateway/flow"
	"demarc/gateway/meter"
	"demarc/gateway/nat"
	"demarc/gateway/snapshot"
	"demarc/gateway/verdict"
)

// Judgement is what a View says of a conversation. Reason is verdict.Pass, or why it may not go on.
type Judgement struct {
	Reason verdict.Reason
	Rule   flow.RuleID
	Voice  bool
	Hop    [2]uint16 // per direction; noHop where there is no route now: that cuts nothing, the route may come back
}

// Direction is the direction, as its tenant sees it, in which packets of dir travel.
func Direction(se *conntrack.Session, dir int) meter.Dir {
	return directions[dir&1][se.Flags/conntrack.FlagFromBackbone&3]
}

const _ = uint(conntrack.FlagFromBackbone<<1-conntrack.FlagToBackbone) + uint(conntrack.FlagToBackbone-conntrack.FlagFromBackbone<<1) // they stand side by side

// directions is what Direction answers, by dir and by whether the first packet came from the backbone (1) and left to it (2). A table, because a flood of both directions is a branch that is never foreseen.
var directions = [2][4]meter.Dir{
	{meter.Inside, meter.In, meter.Out, meter.In},
	{meter.Inside, meter.Out, meter.In, meter.Out},
}

// Judge decides about a session by v alone: tenant, ACL, whether its translation still stands, routes. It is what the first packet
// meets (with the translation still to be made), what later packets meet after a policy change, and what `diff` asks beforehand.
// m is the session's mapping, nil if it has none.
func Judge(v *snapshot.View, se *conntrack.Session, m *nat.Mapping) (j Judgement) {
	j.Rule = flow.NoRule
	t := v.Tenant(se.Tenant)
	if t == nil {
		j.Reason = verdict.SessionCut
		return j
	}
	family := uint8(4)
	if se.Flags&conntrack.FlagV6 != 0 {
		family = 6
	}
	inside, outside := ends(se, family)
	dport := se.OrigDPort
	d, src, dst := meter.Out, &inside, &outside
	if !t.Prefixes.Contains(family, &inside) {
		j.Reason = verdict.SessionCut // its packets would be spoofed now, and who is not the tenant's any more is reached by nobody
		return j
	}
	if se.Flags&conntrack.FlagFromBackbone != 0 {
		if family == 4 {
			dport = se.XlatDPort
		}
		d, src, dst = meter.In, &outside, &inside
	}
	ak := snapshot.ACLKey(src, dst, se.OrigSPort, dport, se.Proto, family)
	said := t.Judge(d, &ak)
	j.Rule = said.Rule
	if said.Rule != flow.NoRule {
		j.Voice = t.Rules[d][said.Rule].Voice
	}
	if !said.Allow && !(d == meter.In && said.Rule == flow.NoRule && mayComeByMapping(t, se, m)) {
		j.Reason = verdict.ACLDeny
		if said.Rule == flow.NoRule {
			j.Reason = verdict.ACLDefault
		}
		return j
	}
	if j.Reason = natStands(v, t, se, m, family, &outside); j.Reason != verdict.Pass {
		return j
	}
	j.Hop = ways(v, t.ID, se, family, &inside, &outside)
	// A route that moved to the other side would let the packet leave without the translation that side needs.
	if far := j.Hop[0]; far != noHop && d == meter.Out {
		toBackbone := outOf(v, far, t.ID)
		if toBackbone != (se.Flags&conntrack.FlagToBackbone != 0) {
			j.Reason = verdict.SessionCut
			return j
		}
	}
	k := se.Key(0)
	for dir := range j.Hop {
		j.Hop[dir] = v.Choose(j.Hop[dir], &k, se.NextHop[dir])
	}
	return j
}

// ends are the inside address of a session, as its host has it, and the far one.
func ends(se *conntrack.Session, family uint8) (inside, outside flow.Addr) {
	if se.Flags&conntrack.FlagFromBackbone == 0 {
		return se.OrigSrc, se.OrigDst
	}
	if family == 4 {
		copy(inside[:4], se.XlatDst[:])
		return inside, se.OrigSrc
	}
	return se.OrigDst, se.OrigSrc
}

// ways are the routes of both directions of a session, or noHop.
func ways(v *snapshot.View, t flow.TenantID, se *conntrack.Session, family uint8, inside, outside *flow.Addr) [2]uint16 {
	if se.Flags&conntrack.FlagFromBackbone != 0 {
		return [2]uint16{hopInto(v, t, family, inside), hopTo(v, flow.Backbone, family, outside)}
	}
	return [2]uint16{hopTo(v, t, family, outside), hopInto(v, t, family, inside)}
}

// way is the next hop of a session in direction dir: the one that it has until it is to leave that, and then another router of the same route, if there is one that is better.
func (sh *Shard) way(se *conntrack.Session, dir int) uint16 {
	if nh := se.NextHop[dir]; !sh.view.MayLeave(nh) {
		return nh
	}
	return sh.moveOn(se, dir)
}

// moveOn finds a session another router. Only the one direction: the other has its own.
func (sh *Shard) moveOn(se *conntrack.Session, dir int) uint16 {
	if nh := se.NextHop[dir]; !sh.view.Leave(nh) {
		return nh
	}
	family := uint8(4)
	if se.Flags&conntrack.FlagV6 != 0 {
		family = 6
	}
	inside, outside := ends(se, family)
	k := se.Key(0)
	nh := sh.view.Choose(ways(sh.view, se.Tenant, se, family, &inside, &outside)[dir], &k, se.NextHop[dir])
	if nh != se.NextHop[dir] {
		sh.changes(sh.Sessions.SlotOf(se), se)
		se.BeginWrite()
		se.NextHop[dir] = nh
		se.EndWrite()
		sh.changed(sh.Sessions.SlotOf(se), se)
		sh.Moved.Store(sh.Moved.Load() + 1)
	}
	return nh
}

// natStands reports whether the session's translation, or its having none, is what v would choose.
func natStands(v *snapshot.View, t *snapshot.Tenant, se *conntrack.Session, m *nat.Mapping, family uint8, outside *flow.Addr) verdict.Reason {
	in, crosses := se.Flags&conntrack.FlagFromBackbone != 0, se.Flags&(conntrack.FlagFromBackbone|conntrack.FlagToBackbone) != 0
	must := family == 4 && t.NAT && crosses && !t.Bypass.Contains(4, outside)
	if se.Flags&conntrack.FlagNAT == 0 {
		if must {
			return verdict.SessionCut
		}
		if in { // the backbone reaches inside addresses only where they are routed to this tenant
			if _, h, ok := v.Lookup(flow.Backbone, family, &se.OrigDst); !ok || h.Kind != snapshot.HopTenant || h.Tenant != t.ID {
				return verdict.SessionCut
			}
		}
		return verdict.Pass
	}
	if !must && !in {
		return verdict.SessionCut
	}
	var pub, inside flow.Addr
	var pport, iport uint16
	if in {
		pub, pport, iport = se.OrigDst, se.OrigDPort, se.XlatDPort
		copy(inside[:4], se.XlatDst[:])
	} else {
		copy(pub[:4], se.XlatSrc[:])
		inside, pport, iport = se.OrigSrc, se.XlatSPort, se.OrigSPort
	}
	p := publicOf(v, &pub)
	if p == nil || p.Tenant != t.ID {
		return verdict.SessionCut
	}
	if m != nil { // dynamic
		class, _ := nat.ClassOf(se.Proto)
		if _, static := t.StaticByInside[inside]; static || !p.Dynamic || p.Reserved(class, pport) || in && !mayComeByMapping(t, se, m) {
			return verdict.SessionCut
		}
		if _, forwarded := t.Forwarded(&inside, iport, se.Proto); forwarded && se.Proto == flow.UDP { // it would keep out who comes by the forward; a TCP connection ends by itself
			return verdict.SessionCut
		}
		return verdict.Pass
	}
	if p.Static {
		if p.Inside == inside && pport == iport {
			return verdict.Pass
		}
		return verdict.SessionCut
	}
	if f, ok := p.Forwards[snapshot.ForwardKey(se.Proto, pport)]; ok {
		_, static := t.StaticByInside[inside]
		if f.Inside == inside && f.Port == iport && (in || !static) {
			return verdict.Pass
		}
		return verdict.SessionCut
	}
	if _, ports := nat.ClassOf(se.Proto); !ports && !in && p.Dynamic {
		if _, static := t.StaticByInside[inside]; !static {
			return verdict.Pass // protocol without ports, by address pair
		}
	}
	return verdict.SessionCut
}

// mayComeByMapping reports whether a conversation that the backbone opened to mapping m may be, as far as filtering goes. Who was let in by
// address-dependent filtering stays, also when nobody has spoken to its address since.
func mayComeByMapping(t *snapshot.Tenant, se *conntrack.Session, m *nat.Mapping) bool {
	return m != nil && (t.Filtering == nat.EndpointIndependent || t.Filtering == nat.AddressDependent && se.Flags&conntrack.FlagPermit != 0)
}

// publicOf finds one of our public addresses, or nil.
func publicOf(v *snapshot.View, a *flow.Addr) *snapshot.Public {
	_, h, ok := v.Lookup(flow.Backbone, 4, a)
	if !ok || h.Kind != snapshot.HopPublic {
		return nil
	}
	return &v.Publics[h.Public]
}

// hopInto finds the way to an inside address of tenant t: by its own routes alone. The backbone's must not be asked: its default route
// would carry inside addresses out.
func hopInto(v *snapshot.View, t flow.TenantID, family uint8, a *flow.Addr) uint16 {
	if nh, ok := v.FIB.Lookup(t, family, a); ok {
		return nh
	}
	return noHop
}

// hopTo finds the way to a in a zone; a tenant's own routes come before the backbone's.
func hopTo(v *snapshot.View, zone flow.TenantID, family uint8, a *flow.Addr) uint16 {
	if nh, ok := v.FIB.Lookup(zone, family, a); ok {
		return nh
	}
	if zone != flow.Backbone {
		if nh, ok := v.FIB.Lookup(flow.Backbone, family, a); ok {
			return nh
		}
	}
	return noHop
}

// outOf reports whether a next hop leads out of tenant t: to the backbone, or round to a public address or another tenant.
func outOf(v *snapshot.View, nh uint16, t flow.TenantID) bool {
	h := v.Hop(nh)
	return h.Kind != snapshot.HopForward || v.Ifaces[h.Iface].Zone != t
}

// judgeAgain brings a session up to the current View. It returns verdict.Pass, or why the session must end.
func (sh *Shard) judgeAgain(se *conntrack.Session) verdict.Reason {
	var m *nat.Mapping
	if se.Mapping != conntrack.NoMapping {
		m = sh.NAT.Mapping(se.Mapping)
	}
	j := Judge(sh.view, se, m)
	if j.Reason != verdict.Pass {
		return verdict.SessionCut
	}
	se.BeginWrite()
	if se.Flags&conntrack.FlagFromBackbone == 0 && sh.givesPermit(sh.view.Tenant(se.Tenant), se) != (se.Flags&conntrack.FlagPermit != 0) {
		// Filtering has changed: what it goes by is kept from now on, or no longer.
		sh.unpermit(se)
		se.Flags ^= conntrack.FlagPermit
		sh.permit(se)
	}
	se.Rule, se.NextHop, se.ViewGen = j.Rule, j.Hop, sh.gen
	se.Class = 0
	if j.Voice {
		se.Class = classVoice
	}
	if se.Flags&conntrack.FlagCounted == 0 {
		sh.countHost(sh.view.Tenant(se.Tenant), se) // a limit may have come with the View
		sh.counted = nil                            // it lives
	}
	se.EndWrite()
	sh.changed(sh.Sessions.SlotOf(se), se)
	return verdict.Pass
}

const classVoice = 1 // Session.Class of a conversation that a rule calls voice
