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
