package configs

import (
	"fmt"
	"net/netip"
	"slices"
)

// CheckSound finds what must not be served anew, and is served where it is served or kept already: earlier releases took it, and a node that has it must start. It wants a policy that was decoded without
// errors; n is the node file, or nil, and ephemeral the range from which that node's kernel takes ports for its own connections, both ends included: 0, 0 where nobody knows. The error is an ErrorList.
func CheckSound(p *Policy, n *Node, ephemeral [2]uint16) error {
	at := p.src.loc()
	at.c.list = nil
	// Of tenants one of which is translated but for a bypass, what comes from the backbone for the one would go to the other.
	routed := func(t *Tenant) bool { return len(t.NAT.Pool)+len(t.NAT.Static) == 0 || len(t.NAT.Bypass) > 0 }
	overlapping(p.owned(at, routed), func(first, o owned) {
		if o.p.Addr().Is4() {
			o.at.bad(o.p, fmt.Sprintf("overlaps %s of tenant %s", first.p, quote(p.Tenants[first.tenant].Name)), "only IPv4 that is always translated may be the same in two tenants (nat.pool, and no nat.bypass)")
		}
	})
	if n != nil {
		for i := range p.Tenants {
			nat := at.key("tenant").at(i).key("nat")
			p.routersApart(nat, &p.Tenants[i].NAT, n)
			hostsOwnPorts(nat, p, p.Tenants[i].NAT.Forward, n, ephemeral)
		}
	}
	return at.c.list.sort().err()
}

// routersApart finds public addresses that are the next hop of a route: the gateway would answer for the router.
func (p *Policy) routersApart(at loc, t *NAT, n *Node) {
	holds := func(where loc, text string, r addrRange) {
		for _, route := range p.Routes {
			for _, via := range slices.Concat(route.Via, route.Backup) {
				if !route.Discard && via.Is4() && r.contains(via) && !n.has(via) {
					where.bad(text, "holds "+via.String()+", the next hop of a route", "addresses that nobody else has: the gateway would answer for the router, and never reach it")
					return
				}
			}
		}
	}
	for i, item := range t.Pool {
		if r, err := parsePool(item); err == nil {
			holds(at.key("pool").item(i), item, r)
		}
	}
	for i, s := range t.Static {
		holds(at.key("static").at(i).key("public"), s.Public.String(), addrRange{s.Public, s.Public})
	}
	for i, f := range t.Forward {
		holds(at.key("forward").at(i).key("public"), f.Public.String(), addrRange{f.Public, f.Public})
	}
}

// hostsOwnPorts finds forwards that nobody on the backbone gets through: on an address that the host has too, a port of the kernel's own range is the host's, and the XDP program hands it to the host on each port
// that has the address in host.shared, untagged. What comes by another interface of the backbone gets through, so then nothing is said.
func hostsOwnPorts(at loc, p *Policy, list []PortForward, n *Node, ephemeral [2]uint16) {
	for i, f := range list {
		if f.LastPort < int(ephemeral[0]) || f.Port > int(ephemeral[1]) {
			continue
		}
		hosts, other := "", false
		for _, x := range n.Interfaces {
			if !slices.Contains(p.Backbone.Interfaces, x.Name) {
				continue
			}
			j := slices.IndexFunc(n.Ports, func(q Port) bool { return q.Name == x.Port })
			if j >= 0 && x.VLAN == 0 && slices.Contains(n.Ports[j].Host.Shared, f.Public) {
				hosts = n.Ports[j].Name
			} else {
				other = true
			}
		}
		if hosts != "" && !other {
			at.key("forward").at(i).key("port").bad(max(f.Port, int(ephemeral[0])), fmt.Sprintf("of %s is the host's on port %s, whose kernel takes ports from %d-%d", f.Public, quote(hosts), ephemeral[0], ephemeral[1]),
				"a port that is not of these, or fewer of them (net.ipv4.ip_local_port_range)")
		}
	}
}

// has reports whether an address is the node's own.
func (n *Node) has(a netip.Addr) bool {
	return slices.ContainsFunc(n.Interfaces, func(f Interface) bool {
		return slices.ContainsFunc(f.Addresses, func(p netip.Prefix) bool { return p.Addr() == a })
	})
}
