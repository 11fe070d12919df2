package snapshot

import (
	"net/netip"
	"strings"
	"testing"

	"demarc/configs"
	"demarc/gateway/flow"
)

// grouped is plan with both tenants in groups: alpha in east (1), beta in west (255) which has no MAC of its own.
func grouped() (*configs.Policy, *configs.Node) {
	p, n := plan()
	p.Tenants[1].NAT.Pool = []string{"192.0.2.32", "203.0.113.9"}
	p.Groups = []configs.Group{
		{Name: "east", ID: 1, Nodes: []string{"a", "b"}, Tenants: []string{"alpha"}, Addresses: []configs.GroupAddress{
			{Interface: "alpha", Addresses: []netip.Prefix{pfx("198.18.10.254/24"), pfx("2001:db8:a::fe/64")}},
			{Interface: "backbone", Addresses: []netip.Prefix{pfx("203.0.113.8/24")}}}},
		{Name: "west", ID: 255, Nodes: []string{"b"}, Tenants: []string{"beta"}, MAC: "port", Addresses: []configs.GroupAddress{
			{Interface: "backbone", Addresses: []netip.Prefix{pfx("203.0.113.9/24")}}}},
	}
	return p, n
}

// TestGroupsAreCompiled: the view says which group a tenant, an address and a MAC are of, on which interface.
func TestGroupsAreCompiled(t *testing.T) {
	v := mustCompile(t, input(grouped()))
	east, west := v.Group(1), v.GroupByName("west")
	if gs := v.Groups(); len(gs) != 2 || gs[0] != east || gs[1] != west || v.Group(2) != nil {
		t.Fatalf("groups %v", gs)
	}
	alpha, beta := v.TenantByName("alpha"), v.TenantByName("beta")
	if alpha.Group != east || beta.Group != west || v.GroupOf(alpha.ID) != east || v.GroupOf(flow.Backbone) != nil {
		t.Errorf("alpha is in %v, beta in %v", alpha.Group, beta.Group)
	}
	if len(east.Tenants) != 1 || east.Tenants[0] != alpha.ID {
		t.Errorf("east has tenants %v", east.Tenants)
	}
	bb, fa, fb := &v.Ifaces[v.Iface(0, 0)], &v.Ifaces[v.Iface(1, 0)], &v.Ifaces[v.Iface(1, 20)]
	if len(bb.Groups) != 2 || len(fa.Groups) != 1 || len(fb.Groups) != 1 || fa.Groups[0].Group != east || fb.Groups[0].Group != west {
		t.Fatalf("on backbone %v, alpha %v, beta %v", bb.Groups, fa.Groups, fb.Groups)
	}
	if p := fa.Groups[0]; len(p.Addrs) != 2 || !p.Six || fb.Groups[0].Six || len(fb.Groups[0].Addrs) != 0 {
		t.Errorf("alpha %+v, beta %+v", p, fb.Groups[0])
	}

	mac4, mac6, of255 := [6]byte{0, 0, 0x5e, 0, 1, 1}, [6]byte{0, 0, 0x5e, 0, 2, 1}, [6]byte{0, 0, 0x5e, 0, 1, 255}
	for _, c := range []struct {
		f    *Iface
		mac  [6]byte
		want bool
	}{{bb, mac4, true}, {bb, mac6, true}, {fa, mac4, true}, {fa, mac6, true}, {fb, mac4, false}, {fb, fb.MAC, true}, {bb, of255, false}, {bb, [6]byte{0, 0, 0x5e, 0, 1, 9}, false}, {bb, [6]byte{0, 0, 0x5e, 0, 3, 1}, false}} {
		if got := v.Takes(c.f, &c.mac); got != c.want {
			t.Errorf("interface %s takes %x: %t", c.f.Name, c.mac, got)
		}
	}
	if *fa.Source(east, 4) != mac4 || *fa.Source(east, 6) != mac6 || fb.Source(west, 4) != &fb.MAC || fa.Source(nil, 4) != &fa.MAC {
		t.Error("a frame of east leaves from the virtual MAC of its family, one of west and of nobody from the port's")
	}

	ll := flow.AddrFrom(adr("fe80::200:5eff:fe00:201"))
	if g, ok := v.Speaks(fa, &ll); !ok || g != east {
		t.Errorf("link-local on alpha: %v %t", g, ok)
	}
	if g, ok := v.Speaks(bb, &ll); !ok || g != east {
		t.Errorf("link-local on the backbone: %v %t", g, ok)
	}
	if _, ok := v.Speaks(fb, &ll); ok {
		t.Error("link-local of east on beta, which has no IPv6 and is in another group")
	}

	for _, c := range []struct {
		zone  flow.TenantID
		addr  string
		kind  HopKind
		group *Group
	}{
		{alpha.ID, "198.18.10.254", HopLocal, east}, {alpha.ID, "198.18.10.1", HopLocal, nil}, {alpha.ID, "2001:db8:a::fe", HopLocal, east},
		{flow.Backbone, "203.0.113.8", HopLocal, east}, {flow.Backbone, "203.0.113.1", HopLocal, nil},
		{flow.Backbone, "203.0.113.9", HopPublic, west}, {flow.Backbone, "192.0.2.16", HopPublic, east}, {flow.Backbone, "2001:db8:a::77", HopTenant, east},
		{alpha.ID, "198.18.10.77", HopForward, nil},
	} {
		a := adr(c.addr)
		fa := flow.AddrFrom(a)
		if _, h, ok := v.Lookup(c.zone, family(a), &fa); !ok || h.Kind != c.kind || h.Group != c.group {
			t.Errorf("%s in zone %d: %+v", c.addr, c.zone, h)
		}
	}
	if v := mustCompile(t, input(plan())); v.Groups() != nil || v.Group(1) != nil || v.Takes(&v.Ifaces[1], &mac4) || v.Ifaces[1].Groups != nil {
		t.Error("a policy without groups has some")
	}
}

func TestGroupsThatCannotBeCompiledSayWhy(t *testing.T) {
	for want, do := range map[string]func(*configs.Policy){
		`group "west": id 256 is not 1 to 255, or another group's`:                             func(p *configs.Policy) { p.Groups[1].ID = 256 },
		`group "west": id 1 is not 1 to 255, or another group's`:                               func(p *configs.Policy) { p.Groups[1].ID = 1 },
		`tenant "alpha" is in group "east" and in group "west"`:                                func(p *configs.Policy) { p.Groups[1].Tenants = []string{"alpha"} },
		`group "west": interface "alpha" is neither one of its tenants' nor of the backbone`:   func(p *configs.Policy) { p.Groups[1].Addresses[0].Interface = "alpha" },
		`group "west": interface "nowhere" is neither one of its tenants' nor of the backbone`: func(p *configs.Policy) { p.Groups[1].Addresses[0].Interface = "nowhere" },
		`group "east": 198.18.10.1 is the node's own address on interface "alpha"`:             func(p *configs.Policy) { p.Groups[0].Addresses[0].Addresses[0] = pfx("198.18.10.1/24") },
	} {
		p, n := grouped()
		do(p)
		if _, err := Compile(input(p, n)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %s", err, want)
		}
	}
}
