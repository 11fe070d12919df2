package configs

import (
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

const grouped = small + `[tenant.nat]
pool = ["203.0.113.8"]
[[group]]
name = "east"
id = 0x2a
nodes = ["gw1", "gw2"]
tenants = ["a"]
[[group.address]]
interface = "in"
addresses = ["198.18.0.1/24"]
[[group.address]]
interface = "wan"
addresses = ["203.0.113.8/24", "2001:db8::8/64"]
`

// TestGroup: what is left out has its default, the addresses are those of RFC 9568, and a NAT address of the group's own tenant may be a virtual one.
func TestGroup(t *testing.T) {
	p := decodePolicy(t, grouped)
	want := []Group{{Name: "east", ID: 42, Nodes: []string{"gw1", "gw2"}, Tenants: []string{"a"}, Stale: "serve", MAC: "virtual", Addresses: []GroupAddress{
		{"in", []netip.Prefix{netip.MustParsePrefix("198.18.0.1/24")}},
		{"wan", []netip.Prefix{netip.MustParsePrefix("203.0.113.8/24"), netip.MustParsePrefix("2001:db8::8/64")}}}}}
	if d := cmp.Diff(want, p.Groups, cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })); d != "" {
		t.Error(d)
	}
	g := &p.Groups[0]
	v4, v6 := g.MACs()
	if got, want := fmt.Sprintf("% x | % x | %s", v4, v6, g.LinkLocal()), "00 00 5e 00 01 2a | 00 00 5e 00 02 2a | fe80::200:5eff:fe00:22a"; got != want {
		t.Errorf("%s, want %s", got, want)
	}
	if m := p.GroupsByTenant(); len(m) != 1 || m["a"] != g {
		t.Errorf("by tenant: %v", m)
	}
	if w := p.Warnings(); len(w) != 0 {
		t.Error(w)
	}
}

// TestGroupIsAFeature: a member whose release knows no groups is named before a policy with one is agreed on; a policy without one asks nothing of it.
func TestGroupIsAFeature(t *testing.T) {
	if u := decodePolicy(t, grouped).Uses(); !slices.Equal(u, []string{"group"}) {
		t.Errorf("a policy with a group uses %v", u)
	}
	if u := decodePolicy(t, small).Uses(); len(u) != 0 {
		t.Errorf("one without uses %v", u)
	}
	if !slices.Contains(Features(), "group") {
		t.Errorf("this build tells the others %v", Features())
	}
}

func TestDiffGroups(t *testing.T) {
	old := decodePolicy(t, grouped)
	for name, c := range map[string]struct {
		change *strings.Replacer
		want   string
	}{
		"same": {strings.NewReplacer(), ""},
		"fields": {strings.NewReplacer("id = 0x2a", "id = 43\nalone = \"keep\"\nstale = \"wait\"\nprefer = true\nmac = \"port\"", `"gw1", "gw2"`, `"gw2", "gw1"`), `
changed group "east" id: 42 -> 43
changed group "east" nodes: gw1,gw2 -> gw2,gw1
changed group "east" alone: none -> keep
changed group "east" stale: serve -> wait
changed group "east" prefer: false -> true
changed group "east" mac: virtual -> port`},
		"addresses": {strings.NewReplacer(`"203.0.113.8/24", `, "", "198.18.0.1/24", "198.18.0.2/24"), `
removed group "east" address: 198.18.0.1/24 on in
removed group "east" address: 203.0.113.8/24 on wan
added group "east" address: 198.18.0.2/24 on in`},
		"another": {strings.NewReplacer(`"east"`, `"west"`), `
removed group "east": id 42, nodes gw1,gw2, tenants a, 198.18.0.1/24 on in, 203.0.113.8/24 on wan, 2001:db8::8/64 on wan
added group "west": id 42, nodes gw1,gw2, tenants a, 198.18.0.1/24 on in, 203.0.113.8/24 on wan, 2001:db8::8/64 on wan`},
	} {
		if d := cmp.Diff(strings.TrimSpace(c.want), lines(Diff(old, decodePolicy(t, c.change.Replace(grouped))))); d != "" {
			t.Errorf("%s:\n%s", name, d)
		}
	}
}

func TestWarnsOfGroups(t *testing.T) {
	p := decodePolicy(t, `schema = 1
[backbone]
interfaces = ["wan"]
[[tenant]]
name = "a"
interfaces = ["in", "in2"]
prefixes = ["198.18.0.0/24", "2001:db8:1::/64"]
[tenant.nat]
pool = ["203.0.113.8"]
[[group]]
name = "east"
id = 1
nodes = ["gw1"]
tenants = ["a"]
[[group.address]]
interface = "in"
addresses = ["198.18.0.1/24"]
`)
	want := `p.toml:13: group[1].nodes: "gw1" is alone: name another node, which takes over when this one is gone
p.toml:14: group[1].tenants: "a" has addresses that the backbone routes here, to one that does not move: a [[group.address]] on an interface of the backbone
p.toml:14: group[1].tenants: "a" has interface "in2" without a virtual address: hosts there have an address as their router that does not move`
	if d := cmp.Diff(want, p.Warnings().Error()); d != "" {
		t.Error(d)
	}
}

// TestGroupsTogether: virtual addresses stand beside the node's own, and what moves is nothing that stays.
func TestGroupsTogether(t *testing.T) {
	policy := `schema = 1
[backbone]
interfaces = ["wan"]
[[route]]
prefix = "0.0.0.0/0"
via = "203.0.113.9"
[[route]]
prefix = "::/0"
via = "fe80::200:5eff:fe00:201"
[[tenant]]
name = "a"
interfaces = ["in"]
prefixes = ["198.18.0.0/24"]
[tenant.nat]
pool = ["203.0.113.2", "203.0.113.40"]
[[tenant.nat.forward]]
public = "203.0.113.41"
proto = "tcp"
port = 80
inside = "198.18.0.5"
[[group]]
name = "east"
id = 1
nodes = ["gw1", "gw2"]
tenants = ["a"]
[[group.address]]
interface = "in"
addresses = ["198.18.0.2/24", "198.18.0.3/25", "198.19.0.1/24", "2001:db8:1::1/64", "198.18.0.70/24"]
[[group.address]]
interface = "wan"
addresses = ["203.0.113.9/24", "203.0.113.50/24", "2001:db8::9/64"]
`
	node := `schema = 1
name = "gw1"
[[port]]
device = "eth0"
[port.host]
addresses = ["203.0.113.48/29"]
shared = ["203.0.113.40", "203.0.113.41"]
[[port]]
device = "eth1"
[port.host]
addresses = ["198.18.0.64/29"]
[[interface]]
name = "wan"
port = "eth0"
addresses = ["203.0.113.2/24", "2001:db8::2/64"]
[[interface]]
name = "in"
port = "eth1"
vlan = 5
addresses = ["198.18.0.2/24"]
`
	p := decodePolicy(t, policy)
	check := func(what, node, want string) {
		t.Helper()
		n, err := DecodeNode("node.toml", []byte(node))
		if err != nil {
			t.Fatal(err)
		}
		got := ""
		if err := CheckTogether(p, n); err != nil {
			got = err.Error()
		}
		if d := cmp.Diff(strings.TrimSpace(want), got); d != "" {
			t.Errorf("%s:\n%s", what, d)
		}
	}
	const moves = `
p.toml:15: tenant[1].nat.pool: "203.0.113.2" holds the node's own address on interface "wan": NAT addresses of a tenant in group "east" move with it
p.toml:15: tenant[1].nat.pool: "203.0.113.40" holds an address that is shared with the host on port "eth0": NAT addresses of a tenant in group "east" move with it
p.toml:17: tenant[1].nat.forward[1].public: "203.0.113.41" holds an address that is shared with the host on port "eth0": NAT addresses of a tenant in group "east" move with it`
	const routes = `
p.toml:6: route[1].via: "203.0.113.9" is an address of group "east": the gateway itself: the address of the next router
p.toml:9: route[2].via: "fe80::200:5eff:fe00:201" is an address of group "east": the gateway itself: the address of the next router` + moves
	const own = `
p.toml:28: group[1].address[1].addresses: "198.18.0.2/24" is the node's own address on interface "in": a virtual address moves, so each node has another one of its own beside it`
	check("a node of the group", node, routes+own+`
p.toml:28: group[1].address[1].addresses: "198.18.0.3/25" is in no network of the node's own addresses on interface "in": an address in 198.18.0.0/24, of that length
p.toml:28: group[1].address[1].addresses: "198.19.0.1/24" is in no network of the node's own addresses on interface "in": an address in 198.18.0.0/24, of that length
p.toml:28: group[1].address[1].addresses: "2001:db8:1::1/64" is of a family of which the node has no address on interface "in": give the node one of its own in that network: it asks for neighbours from there
p.toml:31: group[1].address[2].addresses: "203.0.113.50/24" is the host's: 203.0.113.48/29 in host.addresses of port "eth0": what the host has does not move: another address`)
	check("a node that never serves it", strings.Replace(node, "gw1", "gw3", 1), routes+own)
	check("a node without a name", strings.Replace(node, "name = \"gw1\"\n", "", 1), `
node.toml:1: name: is missing: groups of the policy go by the names of nodes`+routes+own)
}

// TestExamplePair: the policy of the pair goes with the files of both nodes.
func TestExamplePair(t *testing.T) {
	p, a := readExample(t, "pair")
	data, err := os.ReadFile("examples/pair-b.node.toml")
	if err != nil {
		t.Fatal(err)
	}
	b, err := DecodeNode("pair-b.node.toml", data)
	if err != nil {
		t.Fatal(err)
	}
	if err := CheckTogether(p, b); err != nil {
		t.Error(err)
	}
	if w := p.Warnings(); len(w) != 0 {
		t.Error(w)
	}
	for i := range p.Groups {
		if nodes := p.Groups[i].Nodes; !slices.Contains(nodes, a.Name) || !slices.Contains(nodes, b.Name) {
			t.Errorf("group %s has nodes %v, the files are %s's and %s's", p.Groups[i].Name, nodes, a.Name, b.Name)
		}
	}
	for i := range a.Interfaces {
		for _, q := range a.Interfaces[i].Addresses {
			if slices.Contains(b.Interfaces[i].Addresses, q) {
				t.Errorf("both have %s", q)
			}
		}
	}
}

// TestGroupsFollow: nothing passes from one group to another in one step, since two nodes that serve different texts would both have a lease for it.
func TestGroupsFollow(t *testing.T) {
	text, err := os.ReadFile("examples/pair.policy.toml")
	if err != nil {
		t.Fatal(err)
	}
	was := decodePolicy(t, string(text))
	for name, c := range map[string]struct{ old, now, want string }{
		"the same":            {"x", "x", ""},
		"another order":       {`nodes = ["gw1", "gw2"]`, `nodes = ["gw2", "gw1"]`, ""},
		"another id":          {"id = 1 ", "id = 7 ", "is another one than 1"},
		"another name":        {`name = "east"`, `name = "south"`, `is that of group "east" now`},
		"a tenant":            {`tenants = ["acme"]`, `tenants = ["bolt"]`, `is in group "west" now`},
		"an address":          {`["203.0.113.4/29", "2001:db8:ff::4/64"]`, `["203.0.113.6/29", "2001:db8:ff::4/64"]`, ""},
		"a virtual address":   {`["203.0.113.4/29", "2001:db8:ff::4/64"]`, `["203.0.113.6/29", "2001:db8:ff::4/64"]`, `is an address of group "east" now`},
		"a NAT address":       {`pool = ["192.0.2.0/30"]`, `pool = ["203.0.113.5"]`, `has addresses that move with group "west" now`},
		"a new NAT address":   {`pool = ["192.0.2.0/30"]`, `pool = ["192.0.2.8/30"]`, ""},
		"a group less":        {`tenants = ["bolt"]`, `tenants = ["bolt"]`, ""},
		"a new name, new all": {"name = \"east\"\nid = 1 ", "name = \"south\"\nid = 9 ", `is in group "east" now`},
	} {
		now := strings.Replace(string(text), c.old, c.now, 1)
		switch name {
		case "a tenant": // and the other one's
			now = strings.Replace(now, "interface = \"acme\"\naddresses", "interface = \"bolt\"\naddresses", 1)
			now = strings.Replace(now, "name = \"west\"\nid = 2\nnodes = [\"gw2\", \"gw1\"]\ntenants = [\"bolt\"]\n\n[[group.address]]\ninterface = \"bolt\"", "name = \"west\"\nid = 2\nnodes = [\"gw2\", \"gw1\"]\ntenants = [\"acme\"]\n\n[[group.address]]\ninterface = \"acme\"", 1)
			now = strings.Replace(now, "\"198.18.10.1/24\", \"2001:db8:a::1/64\"", "\"198.18.10.1/24\"", 1)
		case "a NAT address":
			now = strings.Replace(string(text), `pool = ["203.0.113.5"]`, `pool = ["203.0.113.6"]`, 1)
			now = strings.Replace(now, c.old, c.now, 1)
		case "a virtual address":
			now = strings.Replace(now, "interface = \"bolt\"\naddresses = [\"198.18.10.1/24\"]\n", "interface = \"bolt\"\naddresses = [\"198.18.10.1/24\"]\n[[group.address]]\ninterface = \"transit\"\naddresses = [\"203.0.113.4/29\"]\n", 1)
		case "a group less":
			i, j := strings.Index(now, "[[group]]\nname = \"west\""), strings.Index(now, "[[tenant]]")
			now = now[:i] + now[j:]
		}
		p := decodePolicy(t, now)
		err := CheckGroupsFollow(was, p, false)
		if name == "a group less" { // its tenant is every node's then: with several gateways that is refused, and the other way too
			for _, x := range []struct {
				was, p *Policy
				want   string
			}{{was, p, `leaves group "west", and every node would serve it`}, {p, was, `is in no group now, so that every node serves it`}} {
				switch err := CheckGroupsFollow(x.was, x.p, true); {
				case err == nil || !strings.Contains(err.Error(), x.want) || !strings.Contains(err.Error(), "first a policy without this tenant") || strings.Count(err.Error(), "bolt") != 1:
					t.Errorf("%v, want %q once", err, x.want)
				}
				if err := CheckGroupsFollow(x.was, x.p, false); err != nil {
					t.Errorf("one gateway: %v", err)
				}
			}
			// Its public address may not go to a tenant of the other group either, as long as every node answers for it.
			other := *was
			other.Tenants = slices.Clone(was.Tenants)
			i := slices.IndexFunc(other.Tenants, func(t Tenant) bool { return t.Name == "acme" })
			other.Tenants[i].NAT.Pool = []string{"203.0.113.5"}
			other.Tenants = slices.DeleteFunc(other.Tenants, func(t Tenant) bool { return t.Name == "bolt" })
			if err := CheckGroupsFollow(p, &other, true); err == nil || !strings.Contains(err.Error(), `has addresses of tenant "bolt", which every node serves now`) {
				t.Error(err)
			}
		}
		if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
	}
}
