package pipeline

import (
	"demarc/gateway/flow"
	"demarc/gateway/snapshot"
)

// Deadlines says until when this node may send for each group, in ns of the clock that Process is given; 0 = not at all. Others write it while the
// workers read. A nil Deadlines serves no group.
type Deadlines interface {
	Until(group uint8) uint64
}

// serves reports whether this node serves a group now. nil is what every node serves.
func (sh *Shard) serves(g *snapshot.Group) bool {
	return g == nil || sh.until != nil && sh.now < sh.until.Until(g.ID)
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

// speaker is the group as which the gateway answers a packet that is addressed to itself, nil when it does so as the node. On an interface of a tenant it
// speaks as that tenant's group, whose ever the address is.
func (sh *Shard) speaker(s *Slot) *snapshot.Group {
	v, k := sh.view, &s.Key
	var g *snapshot.Group
	ours := false
	if k.Family == 6 {
		g, ours = v.Speaks(s.in, &k.Dst)
	}
	if nh := hopTo(v, k.Zone, k.Family, &k.Dst); !ours && nh != noHop {
		g = v.Hop(nh).Group
	}
	if g != nil && s.in.Zone != flow.Backbone {
		return s.in.Group
	}
	return g
}
