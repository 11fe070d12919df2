package configs

// NodeName is a member of the cluster, by the name that policies have for it.
type NodeName struct {
	Name    string
	Witness bool
}

// CheckGroupNodes holds the nodes that groups name against the cluster's members. A witness has no ports, so a group of its would be nobody's when it was its turn: that is an error. A name
// that no member has is a warning, because a node may join later. The error is an ErrorList.
func CheckGroupNodes(p *Policy, members []NodeName) (warnings ErrorList, err error) {
	at := p.src.loc()
	is := map[string]NodeName{}
	for _, m := range members {
		is[m.Name] = m
	}
	each := func(fn func(item loc, g *Group, name string)) ErrorList {
		at.c.list = nil
		for i := range p.Groups {
			g := &p.Groups[i]
			for j, name := range g.Nodes {
				fn(at.key("group").at(i).key("nodes").item(j), g, name)
			}
		}
		return at.c.list.sort()
	}
	// What is meant is a gateway that this group does not name already.
	left := func(g *Group) []string {
		named := map[string]bool{}
		for _, name := range g.Nodes {
			named[name] = true
		}
		var names []string
		for _, m := range members {
			if !m.Witness && !named[m.Name] {
				names = append(names, m.Name)
			}
		}
		return names
	}
	wrong := each(func(item loc, g *Group, name string) {
		if is[name].Witness {
			item.bad(name, "is a witness, which serves no group", didYouMean(name, item.c.guess(func() []string { return left(g) }), "gateways alone"))
		}
	})
	warnings = each(func(item loc, g *Group, name string) {
		if _, ok := is[name]; !ok {
			item.bad(name, "is no member of this cluster", didYouMean(name, item.c.guess(func() []string { return left(g) }), "the name of a gateway, or of one that joins later"))
		}
	})
	return warnings, wrong.err()
}
