package configs

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// side is one owner of interfaces, the backbone or a tenant, while both files are checked together.
type side struct {
	at     loc
	name   string
	ifaces []*Interface
	where  []loc // of each interface, in the node file

	virtual map[netip.Addr]string // addresses of groups here, and of which
}

// CheckTogether checks what only both files together show. The error is an ErrorList; it names lines when the files were decoded.
func CheckTogether(p *Policy, n *Node) error {
	pAt, nAt := p.src.loc(), n.src.loc()
	nAt.c.list = nil
	byName := map[string]int{}
	var names []string
	for i := range n.Interfaces {
		byName[n.Interfaces[i].Name] = i
		names = append(names, n.Interfaces[i].Name)
	}
	if tables := max(n.Tables.Tenants, 0); tables > 0 && len(p.Tenants) > tables {
		nAt.key("tables").key("tenants").bad(tables, fmt.Sprintf("is less than the %d tenants of the policy", len(p.Tenants)), "")
	}
	has := "the node file has " + cut(strings.Join(names, ", "))
	sides := map[string]*side{}
	gather := func(at loc, name string, list []string) *side {
		s := &side{at: at, name: name, virtual: map[netip.Addr]string{}}
		for i, f := range list {
			j, ok := byName[f]
			if !ok {
				at.key("interfaces").item(i).bad(f, "is not an interface of the node", didYouMean(f, at.c.guess(func() []string { return names }), has))
				continue
			}
			s.ifaces = append(s.ifaces, &n.Interfaces[j])
			s.where = append(s.where, nAt.key("interface").at(j))
			sides[f] = s
		}
		return s
	}
	backbone := gather(pAt.key("backbone"), "the backbone", p.Backbone.Interfaces)
	var tenants []*side
	for i := range p.Tenants {
		tenants = append(tenants, gather(pAt.key("tenant").at(i), "tenant "+quote(p.Tenants[i].Name), p.Tenants[i].Interfaces))
	}
	groupsTogether(pAt, nAt, p, n, sides)
	backbone.connected()
	backbone.routes(pAt, p.Routes)
	groups := p.GroupsByTenant()
	for i, s := range tenants {
		t := &p.Tenants[i]
		s.connected()
		s.routes(s.at, t.Routes)
		s.reachable(s.at, t)
		publicAddresses(s.at, t, n, backbone, groups[t.Name])
	}
	list := append(pAt.c.list, nAt.c.list...).sort()
	return list.err()
}

// connected finds interfaces of one side whose networks overlap: a packet could leave by either.
func (s *side) connected() {
	for i, f := range s.ifaces {
		for k, p := range f.Addresses {
			for j, g := range s.ifaces[:i] {
				for _, q := range g.Addresses {
					if p.IsValid() && q.IsValid() && p.Overlaps(q) && !p.Addr().IsLinkLocalUnicast() {
						s.where[i].key("addresses").item(k).bad(p, fmt.Sprintf("overlaps %s of interface %s", q, quote(s.ifaces[j].Name)), "both face "+s.name)
					}
				}
			}
		}
	}
}

// routes checks that each next hop is a neighbour on this side.
func (s *side) routes(owner loc, routes []Route) {
	for i, r := range routes {
		if r.Discard {
			continue
		}
		for key, list := range map[string][]netip.Addr{"via": r.Via, "backup": r.Backup} {
			for j, via := range list {
				if via.IsValid() {
					s.hop(owner.key("route").at(i).key(key).item(j), r.Interface, via)
				}
			}
		}
	}
}

// hop checks one next hop; iface is what the route says.
func (s *side) hop(at loc, iface string, via netip.Addr) {
	if zone := via.Zone(); zone != "" {
		iface = zone
	}
	bare := via.WithZone("")
	on, own := 0, false
	for _, f := range s.ifaces {
		if iface != "" && f.Name != iface {
			continue
		}
		for _, p := range f.Addresses {
			own = own || p.Addr() == bare
			if p.Contains(bare) {
				on++
				break
			}
		}
		if bare.IsLinkLocalUnicast() && bare.Is6() && hasFamily(f.Addresses, false) {
			on = max(on, 1)
		}
	}
	switch {
	case own:
		at.bad(via, "is the gateway itself", "the address of the next router")
	case s.virtual[bare] != "":
		at.bad(via, "is an address of group "+quote(s.virtual[bare])+": the gateway itself", "the address of the next router")
	case on == 0 && len(s.ifaces) > 0:
		at.bad(via, "is on no network of "+s.name, "an address in "+s.networks(via.Is4()))
	}
}

func (s *side) networks(v4 bool) string {
	var out []string
	for _, f := range s.ifaces {
		for _, p := range f.Addresses {
			if p.Addr().Is4() == v4 {
				out = append(out, p.Masked().String())
			}
		}
	}
	if out == nil {
		return "none: no interface has an address of that family"
	}
	return cut(strings.Join(out, ", "))
}

func hasFamily(list []netip.Prefix, v4 bool) bool {
	return slices.ContainsFunc(list, func(p netip.Prefix) bool { return p.Addr().Is4() == v4 })
}

// reachable finds tenant prefixes to which nothing leads, most often a typo or a missing IPv6 address.
func (s *side) reachable(at loc, t *Tenant) {
	if len(s.ifaces) == 0 {
		return
	}
	for i, p := range t.Prefixes {
		ok := slices.ContainsFunc(t.Routes, func(r Route) bool { return r.Prefix.IsValid() && r.Prefix.Overlaps(p) })
		for _, f := range s.ifaces {
			ok = ok || slices.ContainsFunc(f.Addresses, func(q netip.Prefix) bool { return q.Bits() < q.Addr().BitLen() && q.Masked().Overlaps(p) })
		}
		if !ok {
			at.key("prefixes").item(i).bad(p, "is behind no interface and no route of the tenant", "its networks are "+s.networks(p.Addr().Is4()))
		}
	}
}

// publicAddresses checks a tenant's translation against the addresses of the node.
func publicAddresses(at loc, t *Tenant, n *Node, backbone *side, g *Group) {
	nat := at.key("nat")
	for i, item := range t.NAT.Pool {
		r, err := parsePool(item)
		if err != nil {
			continue
		}
		backbone.usable(nat.key("pool").item(i), item, r)
		hostOwns(nat.key("pool").item(i), item, r, n)
		if g != nil {
			moves(nat.key("pool").item(i), g, n, item, r)
		}
	}
	for i, s := range t.NAT.Static {
		if !s.Public.IsValid() {
			continue
		}
		where := nat.key("static").at(i).key("public")
		one := addrRange{s.Public, s.Public}
		backbone.usable(where, s.Public.String(), one)
		hostOwns(where, s.Public.String(), one, n)
		for j := range n.Interfaces {
			f := &n.Interfaces[j]
			if slices.ContainsFunc(f.Addresses, func(p netip.Prefix) bool { return p.Addr() == s.Public }) {
				where.bad(s.Public, "is the gateway's own address on interface "+quote(f.Name), "a static translation takes all of its address")
			}
		}
		for j := range n.Ports {
			if slices.Contains(n.Ports[j].Host.Shared, s.Public) {
				where.bad(s.Public, "is shared with the host on port "+quote(n.Ports[j].Name), "a static translation takes all of its address")
			}
		}
	}
	for i, f := range t.NAT.Forward {
		if !f.Public.IsValid() {
			continue
		}
		where := nat.key("forward").at(i)
		one := addrRange{f.Public, f.Public}
		backbone.usable(where.key("public"), f.Public.String(), one)
		hostOwns(where.key("public"), f.Public.String(), one, n)
		if g != nil {
			moves(where.key("public"), g, n, f.Public.String(), one)
		}
		for j := range n.Ports {
			h := &n.Ports[j].Host
			taken := h.TCPPorts
			if f.Proto == "udp" {
				taken = h.UDPPorts
			}
			k := slices.IndexFunc(taken, func(port int) bool { return port >= f.Port && port <= f.LastPort })
			if k >= 0 && slices.Contains(h.Shared, f.Public) {
				where.key("port").bad(taken[k], fmt.Sprintf("of %s is the host's on port %s", f.Public, quote(n.Ports[j].Name)), "see host."+f.Proto+"_ports in the node file")
			}
		}
	}
}

// usable refuses addresses that cannot be a host's on a network of the backbone.
func (s *side) usable(at loc, text string, r addrRange) {
	for _, f := range s.ifaces {
		for _, p := range f.Addresses {
			if !p.Addr().Is4() || p.Bits() >= 31 {
				continue
			}
			first, last := p.Masked().Addr(), lastAddr(p)
			if r.contains(first) || r.contains(last) {
				at.bad(text, "holds the network or broadcast address of "+p.Masked().String(), "the network of interface "+quote(f.Name))
			}
		}
	}
}

// hostOwns refuses addresses that the XDP program hands to the host wholly.
func hostOwns(at loc, text string, r addrRange, n *Node) {
	for i := range n.Ports {
		for _, p := range n.Ports[i].Host.Addresses {
			if p.IsValid() && p.Addr().Is4() && !lastAddr(p).Less(r.lo) && !r.hi.Less(p.Masked().Addr()) {
				at.bad(text, fmt.Sprintf("is the host's: %s in host.addresses of port %s", p, quote(n.Ports[i].Name)), "host.shared lets both use an address")
			}
		}
	}
}

func (r addrRange) contains(a netip.Addr) bool { return !a.Less(r.lo) && !r.hi.Less(a) }
