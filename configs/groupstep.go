package configs

import (
	"fmt"
	"net/netip"
	"slices"
)

// CheckGroupsFollow refuses a policy in which something passes from one group to another at once. Nodes take up a policy one after the other, and a lease is
// of a group's name: while one serves the old text and another the new one, two of them would hold leases for the same thing. In two steps it is safe,
// because the second is refused until every gateway serves the first: out of the one group, then into the other. A tenant without a group is every node's: where there are
// several gateways it comes into a group, or leaves one, likewise in two steps, through a policy without it, or one node would serve it by the old text while another does by
// the new one. was is what is served. The error is an ErrorList.
func CheckGroupsFollow(was, p *Policy, several bool) error {
	if len(was.Groups) == 0 && len(p.Groups) == 0 {
		return nil
	}
	at := p.src.loc()
	at.c.list = nil
	ids, names := map[int]string{}, map[string]int{}
	for i := range was.Groups {
		ids[was.Groups[i].ID], names[was.Groups[i].Name] = was.Groups[i].Name, was.Groups[i].ID
	}
	tenants, virtuals, public := was.GroupsByTenant(), was.virtuals(), was.groupRanges()
	const how = "first a policy in which neither group has it, then this one"
	const without = "first a policy without this tenant, then this one: its sessions end"
	there := map[string]bool{}
	for i := range was.Tenants {
		there[was.Tenants[i].Name] = true
	}
	now := p.GroupsByTenant()
	named := map[string]bool{} // tenants that are moved themselves
	for i := range p.Groups {
		g := &p.Groups[i]
		where := at.key("group").at(i)
		if old, ok := names[g.Name]; ok && old != g.ID {
			where.key("id").bad(g.ID, fmt.Sprintf("is another one than %d, which group %s has now", old, quote(g.Name)), "a group keeps its id: first a policy without the group, then this one")
		} else if old, ok := ids[g.ID]; ok && old != g.Name {
			where.key("id").bad(g.ID, "is that of group "+quote(old)+" now", "another id, or first a policy without that group, then this one")
		}
		for j, t := range g.Tenants {
			switch old := tenants[t]; {
			case old != nil && old.Name != g.Name:
				named[t] = true
				where.key("tenants").item(j).bad(t, "is in group "+quote(old.Name)+" now", how)
			case old == nil && there[t] && several:
				named[t] = true
				where.key("tenants").item(j).bad(t, "is in no group now, so that every node serves it", without)
			}
		}
		for j := range g.Addresses {
			for k, a := range g.Addresses[j].Addresses {
				if old, ok := virtuals[placedAddr{g.Addresses[j].Interface, a.Addr()}]; ok && old != g.Name {
					where.key("address").at(j).key("addresses").item(k).bad(a, "is an address of group "+quote(old)+" now", how)
				}
			}
		}
	}
	for i := range p.Tenants {
		if t := p.Tenants[i].Name; several && tenants[t] != nil && now[t] == nil {
			named[t] = true
			at.key("tenant").at(i).key("name").bad(t, "leaves group "+quote(tenants[t].Name)+", and every node would serve it", without)
		}
	}
	for _, r := range p.groupRanges() {
		if named[r.tenant] {
			continue
		}
		j := slices.IndexFunc(public, func(o groupRange) bool {
			return o.group != r.group && (several || o.group != "" && r.group != "") && o.lo.Compare(r.hi) <= 0 && r.lo.Compare(o.hi) <= 0
		})
		switch {
		case j < 0:
		case public[j].group == "":
			at.key("tenant").at(r.at).bad(r.text, "has addresses of tenant "+quote(public[j].tenant)+", which every node serves now", "first a policy in which nobody has them, then this one")
		default:
			at.key("tenant").at(r.at).bad(r.text, "has addresses that move with group "+quote(public[j].group)+" now", how)
		}
	}
	list := at.c.list.sort()
	return list.err()
}

type placedAddr struct {
	iface string
	addr  netip.Addr
}

// virtuals are the virtual addresses, and whose group's they are.
func (p *Policy) virtuals() map[placedAddr]string {
	m := map[placedAddr]string{}
	for i := range p.Groups {
		for _, a := range p.Groups[i].Addresses {
			for _, v := range a.Addresses {
				m[placedAddr{a.Interface, v.Addr()}] = p.Groups[i].Name
			}
		}
	}
	return m
}

// groupRange is public addresses that move with a group, because they are its tenants'.
type groupRange struct {
	addrRange
	group, tenant, text string // group "" = they are every node's
	at                  int    // of the tenant
}

func (p *Policy) groupRanges() (all []groupRange) {
	groups := p.GroupsByTenant()
	for i := range p.Tenants {
		t := &p.Tenants[i]
		group := ""
		if g := groups[t.Name]; g != nil {
			group = g.Name
		}
		add := func(r addrRange, text string) { all = append(all, groupRange{r, group, t.Name, text, i}) }
		for _, s := range t.NAT.Pool {
			if r, err := parsePool(s); err == nil {
				add(r, s)
			}
		}
		for _, s := range t.NAT.Static {
			add(addrRange{s.Public, s.Public}, s.Public.String())
		}
		for _, f := range t.NAT.Forward {
			add(addrRange{f.Public, f.Public}, f.Public.String())
		}
	}
	return all
}
