package pipeline

import (
	"demarc/gateway/conntrack"
	"demarc/gateway/flow"
	"demarc/gateway/nat"
	"demarc/gateway/packet"
	"demarc/gateway/snapshot"
	"demarc/gateway/verdict"
)

// translateSource chooses the public address and port of a session that leaves tenant t.
func (sh *Shard) translateSource(t *snapshot.Tenant, se *conntrack.Session) verdict.Reason {
	se.Flags |= conntrack.FlagNAT
	if i, ok := t.StaticByInside[se.OrigSrc]; ok {
		copy(se.XlatSrc[:], sh.view.Publics[i].Addr[:4])
		return verdict.Pass
	}
	if f, ok := t.Forwarded(&se.OrigSrc, se.OrigSPort, se.Proto); ok { // one inside end has one public end (RFC 4787 REQ-1), whoever begins
		copy(se.XlatSrc[:], sh.view.Publics[f.Public].Addr[:4])
		se.XlatSPort = f.Port
		return verdict.Pass
	}
	if len(t.Pool) == 0 {
		return verdict.NATNoPool
	}
	class, ports := nat.ClassOf(se.Proto)
	first := flow.HomeHash(t.ID, 4, &se.OrigSrc, sh.view.HomeSeed)
	if !ports {
		copy(se.XlatSrc[:], t.PoolAddrs[flow.Home(first, len(t.PoolAddrs))][:4])
		return verdict.Pass
	}
	req := nat.Request{Tenant: t.ID, Class: class, Mapping: t.Mapping, Pooling: t.Pooling, PerHost: t.PerHost, Inside: [4]byte(se.OrigSrc[:4]), Port: se.OrigSPort,
		Remote: [4]byte(se.OrigDst[:4]), Pool: t.Pool, First: first, Hold: sh.view.NATHold}
	id, r := sh.NAT.Map(&req, sh.random())
	if r == verdict.NATNoPort && sh.Space.ForeignAny(t.Pool) { // this node has just begun to serve the group: the pool is not used up, and nobody is told so
		return verdict.NotOwner
	}
	if r != verdict.Pass {
		return r
	}
	sh.making = id
	a, port := sh.NAT.Mapping(id).Public()
	se.XlatSrc, se.XlatSPort, se.Mapping = sh.Space.Addr(a), port, id
	if sh.givesPermit(t, se) {
		se.Flags |= conntrack.FlagPermit
	}
	return verdict.Pass
}

// givesPermit reports whether the session is one by which its far address gets to open others (RFC 4787 section 5). A mapping that was made for
// one far address says so itself.
func (sh *Shard) givesPermit(t *snapshot.Tenant, se *conntrack.Session) bool {
	if t.Filtering != nat.AddressDependent || se.Mapping == conntrack.NoMapping || se.Flags&conntrack.FlagFromBackbone != 0 {
		return false
	}
	_, one := sh.NAT.Mapping(se.Mapping).Remote()
	return !one
}

// permit counts an outward session with FlagPermit.
func (sh *Shard) permit(se *conntrack.Session) {
	if se.Flags&(conntrack.FlagPermit|conntrack.FlagFromBackbone) == conntrack.FlagPermit {
		sh.permits.Add(se.Mapping, [4]byte(se.OrigDst[:4])) // there is room for every session of the table
	}
}

func (sh *Shard) unpermit(se *conntrack.Session) {
	if se.Flags&(conntrack.FlagPermit|conntrack.FlagFromBackbone) == conntrack.FlagPermit {
		sh.permits.Remove(se.Mapping, [4]byte(se.OrigDst[:4]))
	}
}

// filtered reports whether the tenant lets src open a conversation to a mapping.
func (sh *Shard) filtered(t *snapshot.Tenant, id uint32, src *flow.Addr) bool {
	switch t.Filtering {
	case nat.EndpointIndependent:
		return false
	case nat.AddressDependent:
		from := [4]byte(src[:4])
		if remote, one := sh.NAT.Mapping(id).Remote(); one {
			return remote != from
		}
		return !sh.permits.Has(id, from)
	}
	return true
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
			if t == nil || sh.filtered(t, id, &k.Src) {
				return verdict.NATFiltered
			}
			owner, a, port := sh.NAT.Mapping(id).Inside()
			*inside = flow.Addr{}
			copy(inside[:4], a[:])
			// A mapping may outlive the policy that it was made under, until its sessions are judged again: of a tenant that had
			// this address before, of a host that is translated 1:1 now, of a port that the host has now, of a host that is the tenant's no more.
			if _, static := t.StaticByInside[*inside]; static || owner != t.ID || p.Reserved(class, k.DPort) || !t.Prefixes.Contains(4, inside) {
				return verdict.NATUnusedAddress
			}
			if _, forwarded := t.Forwarded(inside, port, k.Proto); forwarded && k.Proto == flow.UDP { // its public end is the forward's now
				return verdict.NATUnusedAddress
			}
			se.XlatDPort, se.Mapping = port, id
			if t.Filtering == nat.AddressDependent {
				se.Flags |= conntrack.FlagPermit
			}
			return verdict.Pass
		}
	}
	return verdict.NATUnusedAddress
}
