package configs

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// Bounds of groups.
const (
	MaxGroupID    = 255 // a virtual router identifier (RFC 9568 section 5.2.3): 1 to 255
	maxGroupNodes = 16
)

// MACs are the group's virtual MACs for IPv4 and IPv6 (RFC 9568 section 7.3). They are what it sends from unless MAC says "port".
func (g *Group) MACs() (v4, v6 [6]byte) {
	return [6]byte{0, 0, 0x5e, 0, 1, byte(g.ID)}, [6]byte{0, 0, 0x5e, 0, 2, byte(g.ID)}
}

// LinkLocal is the group's virtual link-local address: fe80::/64 with the modified EUI-64 of its MAC for IPv6 (RFC 4291 appendix A), the same on each link
// and with mac = "port" as well, so that hosts may have it as their router.
func (g *Group) LinkLocal() netip.Addr {
	return netip.AddrFrom16([16]byte{0xfe, 0x80, 8: 0x02, 9: 0, 10: 0x5e, 11: 0xff, 12: 0xfe, 13: 0, 14: 2, 15: byte(g.ID)})
}

// GroupsByTenant says which group a tenant is in; those that every node serves are not there.
func (p *Policy) GroupsByTenant() map[string]*Group {
	m := map[string]*Group{}
	for i := range p.Groups {
		for _, t := range p.Groups[i].Tenants {
			m[t] = &p.Groups[i]
		}
	}
	return m
}

// groups checks the groups. It comes after the tenants.
func (c *policyCheck) groups() {
	at := c.root.key("group")
	if len(c.p.Groups) > MaxGroupID {
		at.bad(nil, fmt.Sprintf("are %d", len(c.p.Groups)), fmt.Sprintf("at most %d: each has an id of its own", MaxGroupID))
		return
	}
	names, ids := map[string]int{}, map[int]int{}
	used := map[virtual]int{} // address -> the group that has it
	for i := range c.p.Groups {
		g := &c.p.Groups[i]
		where := at.at(i)
		if checkName(where, "name", g.Name) {
			if first, dup := names[g.Name]; dup {
				where.key("name").bad(g.Name, "is there twice", fmt.Sprintf("group[%d] has that name", first+1))
			} else {
				names[g.Name] = i
			}
		}
		c.groupID(where, g, i, ids)
		groupNodes(where, g)
		c.groupTenants(where, g, i)
		checkChoice(where, "alone", g.Alone, "fence", "keep", "auto")
		checkChoice(where, "stale", g.Stale, "serve", "wait")
		checkChoice(where, "mac", g.MAC, "virtual", "port")
		c.groupAddresses(where, g, i, used)
	}
}

func (c *policyCheck) groupID(where loc, g *Group, i int, ids map[int]int) {
	where.missing("id", fmt.Sprintf("a number from 1 to %d that no other group has: its virtual MAC ends with it", MaxGroupID))
	if !where.has("id") || !textAt(where, "id") {
		return
	}
	if g.ID < 1 || g.ID > MaxGroupID {
		where.key("id").bad(g.ID, "is out of range", fmt.Sprintf("1 to %d: a group's virtual MAC ends with it", MaxGroupID))
	} else if first, dup := ids[g.ID]; dup {
		where.key("id").bad(g.ID, "is there twice", fmt.Sprintf("group[%d] has it: their virtual MACs would be the same", first+1))
	} else {
		ids[g.ID] = i
	}
}

func groupNodes(where loc, g *Group) {
	where.missing("nodes", `the nodes that may serve it, the preferred one first, such as ["gw1", "gw2"]`)
	nodes := where.key("nodes")
	if len(g.Nodes) == 0 && where.has("nodes") && textAt(where, "nodes") {
		nodes.bad(nil, "is empty", "who may serve it, the preferred one first")
	}
	if len(g.Nodes) > maxGroupNodes {
		nodes.bad(nil, fmt.Sprintf("has %d entries", len(g.Nodes)), fmt.Sprintf("at most %d", maxGroupNodes))
		return
	}
	for i, name := range g.Nodes {
		switch {
		case !goodName(name):
			if name != "" || textAt(where, "nodes") {
				nodes.item(i).bad(name, "is not the name of a node", nameRule)
			}
		case slices.Contains(g.Nodes[:i], name):
			nodes.item(i).bad(name, "is there twice", "each node once, the preferred one first")
		}
	}
}

func (c *policyCheck) groupTenants(where loc, g *Group, i int) {
	where.missing("tenants", "the tenants that move together; one that is in no group is served by every node")
	list := where.key("tenants")
	if len(g.Tenants) == 0 && where.has("tenants") && textAt(where, "tenants") {
		list.bad(nil, "is empty", "the tenants that move together")
	}
	known := func() (names []string) {
		for i := range c.p.Tenants {
			names = append(names, c.p.Tenants[i].Name)
		}
		return names
	}
	for j, name := range g.Tenants {
		first, dup := c.grouped[name]
		switch {
		case name == "" && !textAt(where, "tenants"):
		case !c.named[name]:
			list.item(j).bad(name, "is not a tenant of this policy", didYouMean(name, list.c.guess(known), "the name of a [[tenant]]"))
		case dup && first == i:
			list.item(j).bad(name, "is there twice", "")
		case dup:
			list.item(j).bad(name, fmt.Sprintf("is in group %s already", quote(c.p.Groups[first].Name)), "a tenant moves with one group")
		default:
			c.grouped[name] = i
		}
	}
}

// inGroup reports whether tenant t is in group g.
func (c *policyCheck) inGroup(t, g int) bool {
	in, ok := c.grouped[c.p.Tenants[t].Name]
	return ok && in == g
}

// virtual is an address where it means something: tenants may have the same ones.
type virtual struct {
	tenant int // -1 = the backbone
	addr   netip.Addr
}

func (c *policyCheck) groupAddresses(where loc, g *Group, i int, used map[virtual]int) {
	ifaces := map[string]bool{}
	for j := range g.Addresses {
		a := &g.Addresses[j]
		at := where.key("address").at(j)
		owner, ok := c.groupInterface(at, i, a, ifaces)
		if len(a.Addresses) == 0 && textAt(at, "addresses") {
			at.key("addresses").bad(nil, "is missing or empty", `the virtual addresses, such as ["198.51.100.1/24", "2001:db8:1::1/64"]`)
		}
		if len(a.Addresses) > maxIfaceAddrs {
			at.key("addresses").bad(nil, fmt.Sprintf("are %d", len(a.Addresses)), fmt.Sprintf("at most %d", maxIfaceAddrs))
			continue
		}
		for k, p := range a.Addresses {
			item := at.key("addresses").item(k)
			if !p.IsValid() {
				continue
			}
			if p.Addr().Is6() && p.Addr().IsLinkLocalUnicast() {
				want := "leave it out"
				if g.ID >= 1 && g.ID <= MaxGroupID {
					want += fmt.Sprintf(": on each of its interfaces the group has %s", g.LinkLocal())
				}
				item.bad(p, "is link-local", want)
				continue
			}
			if !checkIfaceAddr(item, p) || !ok {
				continue
			}
			key := virtual{owner, p.Addr()}
			if first, dup := used[key]; dup && first == i {
				item.bad(p, "is there twice", "")
				continue
			} else if dup {
				item.bad(p, fmt.Sprintf("is an address of group %s", quote(c.p.Groups[first].Name)), "an address moves with one group")
				continue
			}
			used[key] = i
			if p.Addr().Is4() {
				c.public = append(c.public, claim{addrRange: addrRange{p.Addr(), p.Addr()}, at: item, tenant: owner, kind: "virtual", text: p.String(), group: i})
			}
		}
	}
}

// groupInterface finds whose the interface of a virtual address is: a tenant by its position, or -1 for the backbone.
func (c *policyCheck) groupInterface(at loc, i int, a *GroupAddress, ifaces map[string]bool) (owner int, ok bool) {
	at.missing("interface", "an interface of one of its tenants, or of the backbone")
	if !at.has("interface") || !textAt(at, "interface") {
		return 0, false
	}
	where := at.key("interface")
	owner, ok = c.usedBy[a.Interface]
	switch {
	case !ok:
		may := func() []string {
			names := slices.Clone(c.p.Backbone.Interfaces)
			for k := range c.p.Tenants {
				if c.inGroup(k, i) {
					names = append(names, c.p.Tenants[k].Interfaces...)
				}
			}
			return names
		}
		where.bad(a.Interface, "is an interface of nobody", didYouMean(a.Interface, where.c.guess(may), "one of "+cut(strings.Join(may(), ", "))))
	case owner >= 0 && !c.inGroup(owner, i):
		where.bad(a.Interface, "is tenant "+quote(c.p.Tenants[owner].Name)+"'s, which is not in this group", "an interface of one of its tenants, or of the backbone")
		return 0, false
	case ifaces[a.Interface]:
		where.bad(a.Interface, "is there twice", "one [[group.address]] for an interface, with all its addresses")
	}
	ifaces[a.Interface] = true
	return owner, ok
}

// virtualConflict says whether a virtual address may be what b claims too: the same group's NAT may use its address on the backbone, as it may one of
// the node's own, but for static translations, which take all of it.
func (c *policyCheck) virtualConflict(v, b claim) bool {
	who := quote(c.p.Tenants[b.tenant].Name)
	switch {
	case b.kind == "prefix" && v.tenant >= 0: // inside, where it belongs
		return false
	case b.kind == "prefix":
		v.at.bad(v.text, fmt.Sprintf("is inside: tenant %s has %s", who, b.text), "an address is the backbone's or a tenant's, not both")
	case v.tenant >= 0:
		v.at.bad(v.text, fmt.Sprintf("is in use by tenant %s (%s %s)", who, b.kind, b.text), "a public address has no place on an interface of a tenant")
	case !c.inGroup(b.tenant, v.group):
		v.at.bad(v.text, fmt.Sprintf("is in use by tenant %s (%s %s), which is not in this group", who, b.kind, b.text), "a public address moves with its tenant")
	case b.kind == "static":
		v.at.bad(v.text, fmt.Sprintf("is in use by tenant %s (static)", who), "a static translation takes all of its address")
	default:
		return false
	}
	return true
}

// groupsTogether checks what both files show of groups: virtual addresses stand beside the node's own, which stay when they move.
func groupsTogether(at, nAt loc, p *Policy, n *Node, sides map[string]*side) {
	if len(p.Groups) > 0 && n.Name == "" {
		nAt.key("name").bad(nil, "is missing", "groups of the policy go by the names of nodes")
	}
	for i := range p.Groups {
		g := &p.Groups[i]
		where := at.key("group").at(i)
		for j := range g.Addresses {
			s := sides[g.Addresses[j].Interface]
			if s == nil {
				continue
			}
			s.virtual[g.LinkLocal()] = g.Name
			for k, v := range g.Addresses[j].Addresses {
				s.virtual[v.Addr()] = g.Name
				item := where.key("address").at(j).key("addresses").item(k)
				if s.alone(item, v) && slices.Contains(g.Nodes, n.Name) { // a node that never serves it has no need of its networks
					s.beside(item, g.Addresses[j].Interface, v, n)
				}
			}
		}
	}
}

// alone reports whether no interface of the side has a virtual address as the node's own.
func (s *side) alone(at loc, v netip.Prefix) bool {
	for _, f := range s.ifaces {
		if slices.ContainsFunc(f.Addresses, func(p netip.Prefix) bool { return p.Addr() == v.Addr() }) {
			at.bad(v, "is the node's own address on interface "+quote(f.Name), "a virtual address moves, so each node has another one of its own beside it")
			return false
		}
	}
	return true
}

// beside checks that a virtual address has one of the node's own beside it, and that it is nothing of the host's.
func (s *side) beside(at loc, iface string, v netip.Prefix, n *Node) {
	f := s.ifaces[slices.IndexFunc(s.ifaces, func(f *Interface) bool { return f.Name == iface })]
	var nets []string
	for _, p := range f.Addresses {
		if p.Masked() == v.Masked() {
			nets = nil
			break
		}
		if p.Addr().Is4() == v.Addr().Is4() {
			nets = append(nets, p.Masked().String())
		}
	}
	switch {
	case nets != nil:
		at.bad(v, "is in no network of the node's own addresses on interface "+quote(iface), "an address in "+cut(strings.Join(nets, ", "))+", of that length")
	case !slices.ContainsFunc(f.Addresses, func(p netip.Prefix) bool { return p.Masked() == v.Masked() }):
		at.bad(v, "is of a family of which the node has no address on interface "+quote(iface), "give the node one of its own in that network: it asks for neighbours from there")
	}
	for i := range n.Ports {
		pt := &n.Ports[i]
		if pt.Name != f.Port || f.VLAN != 0 {
			continue
		}
		if slices.Contains(pt.Host.Shared, v.Addr()) {
			at.bad(v, "is shared with the host on port "+quote(pt.Name), "what the host has does not move: another address")
		}
		for _, h := range pt.Host.Addresses {
			if h.IsValid() && h.Contains(v.Addr()) {
				at.bad(v, fmt.Sprintf("is the host's: %s in host.addresses of port %s", h, quote(pt.Name)), "what the host has does not move: another address")
			}
		}
	}
}

// moves refuses NAT addresses of a tenant in a group that the node has for itself: those stay where the node is.
func moves(at loc, g *Group, n *Node, text string, r addrRange) {
	why := fmt.Sprintf("NAT addresses of a tenant in group %s move with it", quote(g.Name))
	for j := range n.Interfaces {
		f := &n.Interfaces[j]
		if slices.ContainsFunc(f.Addresses, func(p netip.Prefix) bool { return p.Addr().Is4() && r.contains(p.Addr()) }) {
			at.bad(text, "holds the node's own address on interface "+quote(f.Name), why)
		}
	}
	for j := range n.Ports {
		if slices.ContainsFunc(n.Ports[j].Host.Shared, r.contains) {
			at.bad(text, "holds an address that is shared with the host on port "+quote(n.Ports[j].Name), why)
		}
	}
}

// String is the group on one line, without its name.
func (g *Group) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "id %d, nodes %s, tenants %s", g.ID, join(g.Nodes), join(g.Tenants))
	for _, a := range g.placed() {
		b.WriteString(", " + a)
	}
	return b.String()
}

// warnGroups names groups that hardly do what a group is for.
func (p *Policy) warnGroups(at loc) {
	tenants := tenantsByName(p)
	for i := range p.Groups {
		g := &p.Groups[i]
		where := at.key("group").at(i)
		if len(g.Nodes) == 1 {
			where.key("nodes").bad(g.Nodes[0], "is alone", "name another node, which takes over when this one is gone")
		}
		has := map[string]bool{}
		for j := range g.Addresses {
			has[g.Addresses[j].Interface] = true
		}
		for j, name := range g.Tenants {
			t := tenants[name]
			for _, f := range t.Interfaces {
				if !has[f] {
					where.key("tenants").item(j).bad(name, "has interface "+quote(f)+" without a virtual address", "hosts there have an address as their router that does not move")
				}
			}
		}
		onBackbone := slices.ContainsFunc(p.Backbone.Interfaces, func(f string) bool { return has[f] })
		for j, name := range g.Tenants {
			t := tenants[name]
			routed := slices.ContainsFunc(t.Prefixes, func(q netip.Prefix) bool { return q.Addr().Is6() || len(t.NAT.Pool) == 0 })
			if !onBackbone && routed {
				where.key("tenants").item(j).bad(name, "has addresses that the backbone routes here, to one that does not move", "a [[group.address]] on an interface of the backbone")
			}
		}
	}
}
