package configs

import (
	"fmt"
	"slices"
)

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

// CheckGroupLeft refuses a policy in which a group does not name the node that serves it now, where another one may come to serve it: the node would let go of it at once, whatever the others have of its sessions. serves says of
// which groups, by name, the node is the owner; was is what is served. The error is an ErrorList.
func CheckGroupLeft(was, p *Policy, node string, members []NodeName, serves func(group string) bool) error {
	at := p.src.loc()
	at.c.list = nil
	for i := range p.Groups {
		g := &p.Groups[i]
		may := slices.DeleteFunc(slices.Clone(g.Nodes), func(name string) bool {
			return !slices.ContainsFunc(members, func(m NodeName) bool { return m.Name == name && !m.Witness })
		})
		if len(may) == 0 || slices.Contains(g.Nodes, node) || !serves(g.Name) {
			continue
		}
		want := "first a policy that names both, and a move to one of these, then this policy"
		if j := slices.IndexFunc(was.Groups, func(o Group) bool { return o.Name == g.Name }); j >= 0 {
			to := slices.IndexFunc(may, func(name string) bool { return slices.Contains(was.Groups[j].Nodes, name) })
			switch {
			case to >= 0 && was.Groups[j].Prefer: // it would come back from a move
				want = fmt.Sprintf("first `demarc node drain %s`, then this policy", node)
			case to >= 0:
				want = fmt.Sprintf("first `demarc group move %s %s`, then this policy", g.Name, may[to])
			}
		}
		at.key("group").at(i).key("nodes").bad(nil, "does not name "+node+", which serves the group now: its sessions would be cut", want)
	}
	return at.c.list.sort().err()
}
