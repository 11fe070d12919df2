package configs

import (
	"fmt"
	"net/netip"
	"slices"
)

// CheckGroupsFollow refuses a policy in which something passes from one group to another at once. Nodes take up a policy one after the other, and a lease is
// of a group's name: while one serves the old text and another the new one, two of them would hold leases for the same thing. In two steps it is safe,
// because the second is refused until every gateway serves the first: out of the one group, then into the other. was is what is served. The error is an
// ErrorList.
func CheckGroupsFollow(was, p *Policy) error {
	if len(was.Groups) == 0 || len(p.Groups) == 0 {
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
	for i := range p.Groups {
		g := &p.Groups[i]
		where := at.key("group").at(i)
		if old, ok := names[g.Name]; ok && old != g.ID {
			where.key("id").bad(g.ID, fmt.Sprintf("is another one than %d, which group %s has now", old, quote(g.Name)), "a group keeps its id: first a policy without the group, then this one")
		} else if old, ok := ids[g.ID]; ok && old != g.Name {
			where.key("id").bad(g.ID, "is that of group "+quote(old)+" now", "another id, or first a policy without that group, then this one")
		}
		for j, t := range g.Tenants {
			if old := tenants[t]; old != nil && old.Name != g.Name {
				where.key("tenants").item(j).bad(t, "is in group "+quote(old.Name)+" now", how)
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
	for _, r := range p.groupRanges() {
		j := slices.IndexFunc(public, func(o groupRange) bool {
			return o.group != r.group && o.lo.Compare(r.hi) <= 0 && r.lo.Compare(o.hi) <= 0
		})
		if old := tenants[r.tenant]; j >= 0 && (old == nil || old.Name == r.group) { // a tenant that moves itself was named above
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
	group, tenant, text string
	at                  int // of the tenant
}

func (p *Policy) groupRanges() (all []groupRange) {
	groups := p.GroupsByTenant()
	for i := range p.Tenants {
		t := &p.Tenants[i]
		g := groups[t.Name]
		if g == nil {
			continue
		}
		add := func(r addrRange, text string) { all = append(all, groupRange{r, g.Name, t.Name, text, i}) }
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
