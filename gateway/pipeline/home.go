package pipeline

import (
	"demarc/gateway/flow"
	"demarc/gateway/nat"
	"demarc/gateway/packet"
	"demarc/gateway/snapshot"
	"demarc/gateway/verdict"
)

// home is the worker that a packet belongs to: that of its inside host, from either side.
func (sh *Shard) home(s *Slot) int {
	k := s.Key
	if s.Flags&packet.FlagICMPError != 0 {
		in, r := packet.ParseInner(&s.Packet)
		if r != verdict.Pass {
			return sh.Worker
		}
		k = in.Key.Reverse(s.Key.Zone)
	}
	return sh.homeOf(&k, false)
}

// gatherer is the worker where the fragments of a datagram meet: its home as far as every fragment shows that. Of what comes to
// a public address with several hosts behind it the first one alone says more.
func (sh *Shard) gatherer(s *Slot) int {
	k := s.Key
	if k.SPort, k.DPort = 0, 0; k.Family == 6 {
		k.Proto = flow.UDP // a later one does not show it
	}
	return sh.homeOf(&k, true)
}

// homeOf is the home of what comes with a key; portless says that its ports are not known.
func (sh *Shard) homeOf(k *flow.Key, portless bool) int {
	v := sh.view
	class, ports := nat.ClassOf(k.Proto)
	if k.Zone != flow.Backbone {
		if _, h, ok := v.Lookup(k.Zone, k.Family, &k.Dst); ok && h.Kind == snapshot.HopForward { // between two inside hosts
			return v.HomeOf(k.Zone, k.Family, lesser(&k.Src, &k.Dst))
		}
		if !ports && k.Proto != flow.ICMPv6 { // found again by the far address: that is all that both directions show
			return v.HomeOf(0, k.Family, &k.Dst)
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
		if portless {
			return v.HomeOf(0, 4, &k.Src)
		}
		if f, ok := p.Forwards[snapshot.ForwardKey(k.Proto, k.DPort)]; ok {
			return v.HomeOf(p.Tenant, 4, &f.Inside)
		}
		if w, ok := sh.Space.Owner(p.ID, class, k.DPort); ok {
			return w
		}
	}
	if portless {
		return v.HomeOf(0, k.Family, &k.Src)
	}
	return sh.Worker
}

func lesser(a, b *flow.Addr) *flow.Addr {
	if string(a[:]) < string(b[:]) {
		return a
	}
	return b
}
