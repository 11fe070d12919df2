package pipeline

import (
	"demarc/gateway/flow"
	"demarc/gateway/packet/build"
	"demarc/gateway/snapshot"
	"demarc/gateway/verdict"
)

// leavesAs is what a frame bears that leaves as a group's; 0 = nobody's.
func leavesAs(g *snapshot.Group) uint8 {
	if g == nil {
		return 0
	}
	return g.ID
}

// serves reports whether this node serves a group now: it may, or hands it over and has still to carry what had come by then, and the shard was told to take over what was copied. nil is what every node serves.
func (sh *Shard) serves(g *snapshot.Group) bool {
	return g == nil || sh.serving[g.ID] && (sh.until.May(g.ID, sh.now) || sh.parts.May(g.ID, sh.now) && sh.parts.Epoch(g.ID) == sh.until.Epoch(g.ID))
}

// elsewhere reports whether a next hop leads round to an address whose tenant is in a group that another node serves.
func (sh *Shard) elsewhere(nh uint16) bool {
	return sh.view.Grouped() && nh != noHop && !sh.serves(sh.view.Hop(nh).Group)
}

// forNode reports whether a packet that a tenant has sent is to an address of the node's own, which is answered whoever serves the tenant.
func (sh *Shard) forNode(s *Slot) bool {
	v, k := sh.view, &s.Key
	if k.Family == 6 {
		if g, ours := v.Speaks(s.in, &k.Dst); ours {
			return g == nil
		}
	}
	nh := hopTo(v, k.Zone, k.Family, &k.Dst)
	if nh == noHop {
		return false
	}
	h := v.Hop(nh)
	return h.Kind == snapshot.HopLocal && h.Group == nil
}

// addressed is the group of the address of ours that a packet is to, nil when that is the node's own.
func (sh *Shard) addressed(s *Slot) *snapshot.Group {
	v, k := sh.view, &s.Key
	if k.Family == 6 {
		if g, ours := v.Speaks(s.in, &k.Dst); ours {
			return g
		}
	}
	if nh := hopTo(v, k.Zone, k.Family, &k.Dst); nh != noHop {
		return v.Hop(nh).Group
	}
	return nil
}

// pong answers a ping of an address of ours. On an interface of a tenant the gateway speaks as that tenant's group, whose ever the address is;
// but it is of the address's group whether the answer may leave.
func (sh *Shard) pong(s *Slot) verdict.Verdict {
	from, of := [6]byte(s.Frame()[6:12]), sh.addressed(s)
	if !sh.serves(of) {
		return sh.drop(s, verdict.NotOwner)
	}
	as := of
	if of != nil && s.in.Zone != flow.Backbone {
		as = s.in.Group
	}
	if !build.EchoReply(&s.Packet) {
		return sh.drop(s, verdict.LocalUnhandled)
	}
	s.Reason = verdict.Pass
	v := sh.answer(s, from, as)
	s.Group = leavesAs(of)
	return v
}
