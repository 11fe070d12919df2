package snapshot

import (
	"net/netip"
	"slices"

	"demarc/configs"
	"demarc/gateway/flow"
)

// Group is tenants and virtual addresses of which one node at a time carries the packets. Whether that is this node, no View knows: it is asked of the
// deadlines by the group's ID, for each packet.
type Group struct {
	ID        uint8 // 1..255
	Name      string
	Nodes     []string // who may serve it, the preferred one first
	Virtual   bool     // it sends from MAC4 and MAC6, else from the port's MAC
	MAC4      [6]byte
	MAC6      [6]byte
	LinkLocal flow.Addr // on each interface where it is that has IPv6
	Tenants   []flow.TenantID
}

// Presence is a group on an interface: its tenants' interfaces, and those of the backbone.
type Presence struct {
	Group *Group
	Addrs []netip.Prefix // its virtual addresses here
	Six   bool           // it has its link-local address here
}

// bits256 is a set of ids.
type bits256 [4]uint64

func (b *bits256) has(n uint8) bool { return b[n/64]>>(n%64)&1 != 0 }
func (b *bits256) set(n uint8)      { b[n/64] |= 1 << (n % 64) }

// Grouped reports whether the policy has groups at all.
func (v *View) Grouped() bool { return v.groups != nil }

// Group is the group with this id, or nil.
func (v *View) Group(id uint8) *Group {
	if v.groups == nil {
		return nil
	}
	return v.groups[id]
}

// Groups lists the groups by their ids.
func (v *View) Groups() (out []*Group) {
	if v.groups == nil {
		return nil
	}
	for _, g := range v.groups {
		if g != nil {
			out = append(out, g)
		}
	}
	return out
}

// GroupByName finds a group, nil when there is none.
func (v *View) GroupByName(name string) *Group {
	for _, g := range v.Groups() {
		if g.Name == name {
			return g
		}
	}
	return nil
}

// GroupOf is the group of a tenant, nil when every node serves it, or there is no such tenant.
func (v *View) GroupOf(id flow.TenantID) *Group {
	if t := v.Tenant(id); t != nil {
		return t.Group
	}
	return nil
}

// Source is the MAC that a frame of the family leaves an interface from when it is the group's; of no group (nil), the port's.
func (f *Iface) Source(g *Group, family uint8) *[6]byte {
	switch {
	case g == nil || !g.Virtual:
		return &f.MAC
	case family == 4:
		return &g.MAC4
	}
	return &g.MAC6
}

// Takes reports whether a unicast frame to mac is for the gateway: to the port's own MAC, or a virtual one of a group that is here.
func (v *View) Takes(f *Iface, mac *[6]byte) bool {
	if *mac == f.MAC {
		return true
	}
	g := v.GroupOfMAC(mac)
	return g != nil && f.here.has(g.ID)
}

// GroupOfMAC is the group whose virtual MAC it is, or nil.
func (v *View) GroupOfMAC(mac *[6]byte) *Group {
	if v.groups == nil || mac[0] != 0 || mac[1] != 0 || mac[2] != 0x5e || mac[3] != 0 {
		return nil
	}
	if g := v.groups[mac[5]]; g != nil && g.Virtual && (*mac == g.MAC4 || *mac == g.MAC6) {
		return g
	}
	return nil
}

// Speaks reports whether a link-local address is the gateway's on an interface: its own, or a group's, which is returned then.
func (v *View) Speaks(f *Iface, a *flow.Addr) (g *Group, ok bool) {
	if *a == f.LinkLocal {
		return nil, true
	}
	if v.groups == nil {
		return nil, false
	}
	if g = v.groups[a[15]]; g != nil && *a == g.LinkLocal && f.here6.has(g.ID) {
		return g, true
	}
	return nil, false
}

// groups makes the groups, before the tenants that are in them.
func (c *compiler) groups() {
	if len(c.in.Policy.Groups) == 0 {
		return
	}
	c.v.groups = &[256]*Group{}
	for i := range c.in.Policy.Groups {
		cg := &c.in.Policy.Groups[i]
		if cg.ID < 1 || cg.ID > configs.MaxGroupID || c.v.groups[cg.ID] != nil {
			c.fail("group %q: id %d is not 1 to %d, or another group's", cg.Name, cg.ID, configs.MaxGroupID)
			continue
		}
		g := &Group{ID: uint8(cg.ID), Name: cg.Name, Nodes: cg.Nodes, Virtual: cg.MAC != "port", LinkLocal: flow.AddrFrom(cg.LinkLocal())}
		g.MAC4, g.MAC6 = cg.MACs()
		c.v.groups[cg.ID] = g
		for _, name := range cg.Tenants {
			if c.groupOf[name] != nil {
				c.fail("tenant %q is in group %q and in group %q", name, c.groupOf[name].Name, g.Name)
			}
			c.groupOf[name] = g
		}
	}
}

// presences says which group is on which interface, and adds the virtual addresses to their zones. After tenants and backbone.
func (c *compiler) presences() {
	if c.v.groups == nil {
		return
	}
	at := func(f *Iface, g *Group) *Presence {
		f.here.set(g.ID)
		six := slices.ContainsFunc(f.Addrs, func(p netip.Prefix) bool { return p.Addr().Is6() })
		if six {
			f.here6.set(g.ID)
		}
		f.Groups = append(f.Groups, Presence{Group: g, Six: six})
		return &f.Groups[len(f.Groups)-1]
	}
	for i := range c.v.Ifaces {
		f := &c.v.Ifaces[i]
		switch {
		case !f.Used:
		case f.Zone == flow.Backbone:
			for _, g := range c.v.Groups() {
				at(f, g)
			}
		case c.v.GroupOf(f.Zone) != nil:
			f.Group = c.v.GroupOf(f.Zone)
			at(f, f.Group)
		}
	}
	for i := range c.in.Policy.Groups {
		cg := &c.in.Policy.Groups[i]
		for _, a := range cg.Addresses {
			f := c.byIf[a.Interface]
			g := c.v.groups[cg.ID&0xff]
			p := slices.IndexFunc(c.v.Ifaces[f].Groups, func(p Presence) bool { return p.Group == g })
			if f == 0 || p < 0 {
				c.fail("group %q: interface %q is neither one of its tenants' nor of the backbone", cg.Name, a.Interface)
				continue
			}
			for _, addr := range a.Addresses {
				c.virtual(&c.v.Ifaces[f], &c.v.Ifaces[f].Groups[p], addr)
			}
		}
	}
}

// virtual adds one virtual address. Its network is that of an own address of the interface, so it is connected already.
func (c *compiler) virtual(f *Iface, p *Presence, addr netip.Prefix) {
	for _, own := range f.Addrs {
		if own.Addr() == addr.Addr() {
			c.fail("group %q: %s is the node's own address on interface %q", p.Group.Name, addr.Addr(), f.Name)
			return
		}
	}
	p.Addrs = append(p.Addrs, addr)
	if f.Zone == flow.Backbone && c.isPublic(addr.Addr()) {
		return // a NAT address of the group's own: the public entry answers
	}
	c.add(f.Zone, netip.PrefixFrom(addr.Addr(), addr.Addr().BitLen()), c.hop(Hop{Kind: HopLocal, Iface: f.Index, Family: family(addr.Addr()), Group: p.Group}))
}
