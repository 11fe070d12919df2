package snapshot

import (
	"fmt"
	"maps"
	"net/netip"
	"strings"
	"testing"
	"time"

	"demarc/configs"
	"demarc/gateway/archtest/cputime"
	"demarc/gateway/flow"
	"demarc/gateway/meter"
	"demarc/gateway/nat"
)

func pfx(s string) netip.Prefix { return netip.MustParsePrefix(s) }
func adr(s string) netip.Addr   { return netip.MustParseAddr(s) }

// plan is a policy and a node that fit; a test changes what it is about.
func plan() (*configs.Policy, *configs.Node) {
	n := &configs.Node{
		Workers: configs.Workers{Count: 2}, Tables: configs.Tables{Tenants: 4},
		Ports: []configs.Port{{Name: "bb0"}, {Name: "t0"}},
		Interfaces: []configs.Interface{
			{Name: "backbone", Port: "bb0", Addresses: []netip.Prefix{pfx("203.0.113.1/24"), pfx("2001:db8:ff::1/64")}},
			{Name: "alpha", Port: "t0", Addresses: []netip.Prefix{pfx("198.18.10.1/24"), pfx("2001:db8:a::1/64")}},
			{Name: "beta", Port: "t0", VLAN: 20, Addresses: []netip.Prefix{pfx("198.18.10.1/24")}},
		},
	}
	p := &configs.Policy{
		Backbone: configs.Backbone{Interfaces: []string{"backbone"}},
		Routes:   []configs.Route{{Prefix: pfx("0.0.0.0/0"), Via: []netip.Addr{adr("203.0.113.254")}}},
		Tenants: []configs.Tenant{
			{Name: "alpha", Interfaces: []string{"alpha"}, Prefixes: []netip.Prefix{pfx("198.18.10.0/24"), pfx("2001:db8:a::/64")},
				NAT:   configs.NAT{Pool: []string{"192.0.2.16"}},
				Rules: []configs.Rule{{Name: "web", Direction: "in", Action: "allow", Service: []string{"tcp/80"}}, {Direction: "out", Action: "deny", Service: []string{"tcp/25"}}}},
			{Name: "beta", Interfaces: []string{"beta"}, Prefixes: []netip.Prefix{pfx("198.18.10.0/24")}, NAT: configs.NAT{Pool: []string{"192.0.2.32"}}},
		},
	}
	return p, n
}

func input(p *configs.Policy, n *configs.Node) Input {
	return Input{Policy: p, Node: n, Links: []Link{{MTU: 1500}, {MTU: 1500}}, HomeSeed: 7}
}

func mustCompile(t testing.TB, in Input) *View {
	t.Helper()
	v, err := Compile(in)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func TestWhatCannotBeCompiledSaysWhy(t *testing.T) {
	for _, c := range []struct {
		name string
		do   func(*configs.Policy, *configs.Node, *Input)
		want []string
	}{
		{"no such port", func(_ *configs.Policy, n *configs.Node, _ *Input) { n.Interfaces[2].Port = "t9" },
			[]string{`interface "beta": no port "t9" in the node file`, `tenant "beta": no interface "beta" in the node file`}},
		{"mtu", func(_ *configs.Policy, n *configs.Node, _ *Input) { n.Interfaces[0].MTU = 9000 }, []string{`interface "backbone": mtu 9000 is larger than the device's 1500`}},
		{"vlan", func(_ *configs.Policy, n *configs.Node, _ *Input) { n.Interfaces[2].VLAN = 4095 }, []string{`vlan 4095 is not 0 (untagged) or 1 to 4094`}},
		{"vlan twice", func(_ *configs.Policy, n *configs.Node, _ *Input) { n.Interfaces[2].VLAN = 0 }, []string{`interface "beta": port "t0" vlan 0 is taken by another interface`}},
		{"interface twice", func(p *configs.Policy, _ *configs.Node, _ *Input) { p.Tenants[1].Interfaces = []string{"alpha"} },
			[]string{`tenant "beta": interface "alpha" belongs to somebody else already`}},
		{"tenants' interface on the backbone", func(p *configs.Policy, _ *configs.Node, _ *Input) {
			p.Backbone.Interfaces = append(p.Backbone.Interfaces, "alpha")
		},
			[]string{`backbone: interface "alpha" belongs to somebody else already`}},
		{"tenant twice", func(p *configs.Policy, _ *configs.Node, _ *Input) { p.Tenants[1].Name = "alpha" }, []string{`tenant "alpha" is there twice`}},
		{"too many tenants", func(_ *configs.Policy, n *configs.Node, _ *Input) { n.Tables.Tenants = 1 }, []string{`2 tenants, but the node file's tables.tenants is 1`}},
		{"route via nowhere", func(p *configs.Policy, _ *configs.Node, _ *Input) {
			p.Routes[0].Via = []netip.Addr{adr("198.51.100.1")}
		},
			[]string{`backbone: route 0.0.0.0/0: via 198.51.100.1 is in the prefix of none of its interfaces' addresses`}},
		{"route of a tenant via the backbone", func(p *configs.Policy, _ *configs.Node, _ *Input) {
			p.Tenants[0].Routes = []configs.Route{{Prefix: pfx("198.19.0.0/16"), Via: []netip.Addr{adr("203.0.113.9")}}}
		}, []string{`tenant "alpha": route 198.19.0.0/16: via 203.0.113.9`}},
		{"prefix untranslated twice", func(p *configs.Policy, _ *configs.Node, _ *Input) {
			p.Tenants[0].NAT, p.Tenants[1].NAT = configs.NAT{}, configs.NAT{}
		}, []string{`tenant "beta": prefix 198.18.10.0/24 is routed to the backbone untranslated, and so is tenant "alpha"'s`}},
		{"route twice", func(p *configs.Policy, _ *configs.Node, _ *Input) { p.Routes = append(p.Routes, p.Routes[0]) }, []string{`compile routes`, `stands twice`}},
		{"pool", func(p *configs.Policy, _ *configs.Node, _ *Input) { p.Tenants[0].NAT.Pool = []string{"nonsense"} }, []string{`tenant "alpha": nat.pool`}},
		{"public address of another", func(p *configs.Policy, _ *configs.Node, _ *Input) { p.Tenants[1].NAT.Pool = []string{"192.0.2.16"} },
			[]string{`tenant "beta": public address 192.0.2.16 belongs to another tenant`}},
		{"static in the pool", func(p *configs.Policy, _ *configs.Node, _ *Input) {
			p.Tenants[0].NAT.Static = []configs.StaticNAT{{Public: adr("192.0.2.16"), Inside: adr("198.18.10.5")}}
		}, []string{`static 192.0.2.16: the address is in the pool or translated already`}},
		{"inside address translated twice", func(p *configs.Policy, _ *configs.Node, _ *Input) {
			p.Tenants[0].NAT.Static = []configs.StaticNAT{{Public: adr("192.0.2.17"), Inside: adr("198.18.10.5")}, {Public: adr("192.0.2.18"), Inside: adr("198.18.10.5")}}
		}, []string{`static 192.0.2.18: the inside address 198.18.10.5 is translated already`}},
		{"port forwarded twice", func(p *configs.Policy, _ *configs.Node, _ *Input) {
			f := configs.PortForward{Public: adr("192.0.2.16"), Proto: "tcp", Port: 80, Inside: adr("198.18.10.5")}
			p.Tenants[0].NAT.Forward = []configs.PortForward{f, f}
		}, []string{`forward 192.0.2.16 tcp/80: the port is forwarded already`}},
		{"rule", func(p *configs.Policy, _ *configs.Node, _ *Input) {
			p.Tenants[0].Rules = []configs.Rule{{Name: "r", Direction: "in", From: []string{"nobody"}, To: []string{"nowhere"}, Service: []string{"nothing"}}}
		}, []string{`tenant "alpha": r: from:`, `tenant "alpha": r: to:`, `tenant "alpha": r: service:`}},
		{"dscp", func(p *configs.Policy, _ *configs.Node, _ *Input) { p.Tenants[0].Rates.Voice.DSCP = []string{"loud"} }, []string{`tenant "alpha": rates.voice.dscp`}},
	} {
		t.Run(c.name, func(t *testing.T) {
			p, n := plan()
			in := input(p, n)
			c.do(p, n, &in)
			v, err := Compile(in)
			if err == nil || v != nil {
				t.Fatal("compiled")
			}
			for _, want := range c.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("error %q does not say %q", err, want)
				}
			}
		})
	}
}

func lookup(v *View, zone flow.TenantID, a string) *Hop {
	x := adr(a)
	fa := flow.AddrFrom(x)
	_, h, ok := v.Lookup(zone, family(x), &fa)
	if !ok {
		return nil
	}
	return h
}

func TestRoutesOfEachZone(t *testing.T) {
	p, n := plan()
	p.Routes = append(p.Routes, configs.Route{Prefix: pfx("198.51.100.0/24"), Discard: true})
	p.Tenants[0].Routes = []configs.Route{{Prefix: pfx("198.19.0.0/16"), Via: []netip.Addr{adr("198.18.10.254")}}}
	p.Tenants[0].Prefixes = append(p.Tenants[0].Prefixes, pfx("198.19.0.0/16"))
	p.Tenants[0].NAT.Bypass = []netip.Prefix{pfx("203.0.113.64/28")}
	n.Ports[0].Host.Shared = []netip.Addr{adr("203.0.113.1")}
	p.Tenants[1].NAT.Pool = []string{"203.0.113.1"} // the gateway's own address, translated to as well
	v := mustCompile(t, input(p, n))
	a, b := v.TenantByName("alpha").ID, v.TenantByName("beta").ID
	for _, c := range []struct {
		zone flow.TenantID
		addr string
		want string
	}{
		{0, "203.0.113.9", "forward backbone"}, {0, "8.8.8.8", "forward backbone"}, {0, "198.51.100.1", "discard"},
		{0, "203.0.113.1", "public beta"}, {0, "192.0.2.16", "public alpha"}, {0, "2001:db8:ff::1", "local"},
		{0, "2001:db8:a::5", "tenant alpha"}, {0, "198.18.10.5", "tenant alpha"}, {0, "198.19.1.1", "tenant alpha"}, {0, "2001:db8:b::1", "none"},
		{a, "198.18.10.5", "forward alpha"}, {a, "198.18.10.1", "local"}, {a, "198.19.1.1", "forward alpha"}, {a, "203.0.113.9", "none"},
		{b, "198.18.10.5", "forward beta"}, {b, "198.18.10.1", "local"}, {b, "198.19.1.1", "none"}, {b, "2001:db8:a::5", "none"},
	} {
		got := "none"
		if h := lookup(v, c.zone, c.addr); h != nil {
			switch h.Kind {
			case HopForward:
				got = "forward " + v.Ifaces[h.Iface].Name
			case HopDiscard:
				got = "discard"
			case HopLocal:
				got = "local"
			case HopPublic:
				got = "public " + v.Tenant(v.Publics[h.Public].Tenant).Name
			case HopTenant:
				got = "tenant " + v.Tenant(h.Tenant).Name
			}
		}
		if got != c.want {
			t.Errorf("zone %d, %s: %s, want %s", c.zone, c.addr, got, c.want)
		}
	}
	if via := lookup(v, a, "198.19.1.1").Via.Netip(4); via != adr("198.18.10.254") {
		t.Errorf("via %s", via)
	}
	if i := v.Iface(1, 20); v.Ifaces[i].Name != "beta" || v.Ifaces[i].Zone != b {
		t.Errorf("port 1 vlan 20 is %+v", v.Ifaces[i])
	}
	for _, x := range [][2]uint16{{0, 20}, {1, 21}, {2, 0}, {1, 4095}} {
		if v.Iface(x[0], x[1]) != 0 {
			t.Errorf("port %d vlan %d is an interface", x[0], x[1])
		}
	}
}

func TestWhatLivesOnFromOneViewToTheNext(t *testing.T) {
	p, n := plan()
	in := input(p, n)
	one := mustCompile(t, in)
	a := one.TenantByName("alpha")
	a.Rules[meter.In][0].Hits.Add(0)
	a.Rules[meter.In][0].Hits.Add(1)
	a.DefaultHits[meter.Out].Add(1)
	a.Shared.Sessions.Store(5)

	p2, _ := plan()
	p2.Tenants[0], p2.Tenants[1] = p2.Tenants[1], p2.Tenants[0] // order means nothing
	r := &p2.Tenants[1].Rules
	*r = append([]configs.Rule{{Name: "new", Direction: "in", Action: "deny", Service: []string{"udp"}}}, *r...)
	in.Policy, in.Prev = p2, one
	two := mustCompile(t, in)
	a2 := two.TenantByName("alpha")
	if two.Gen != one.Gen+1 || a2.ID != a.ID || a2.Shared != a.Shared || len(two.Fresh) != 0 {
		t.Fatalf("gen %d, id %d, fresh %v", two.Gen, a2.ID, two.Fresh)
	}
	if got := a2.Rules[meter.In][1].Hits.Sum(); got != 2 {
		t.Errorf("the rule that moved has %d hits, want 2", got)
	}
	if got := a2.Rules[meter.In][0].Hits.Sum(); got != 0 {
		t.Errorf("the new rule has %d hits", got)
	}
	if got := a2.DefaultHits[meter.Out].Sum(); got != 1 {
		t.Errorf("the default has %d hits", got)
	}
	if one.TenantByName("alpha").Rules[meter.In][0].Name != "web" || len(one.TenantByName("alpha").Rules[meter.In]) != 1 {
		t.Error("the view before was changed")
	}
}

func TestTheIDOfARemovedTenantRests(t *testing.T) {
	p, n := plan()
	in := input(p, n)
	one := mustCompile(t, in)
	gone := one.TenantByName("beta").ID

	without, _ := plan()
	without.Tenants = without.Tenants[:1]
	in.Policy, in.Prev = without, one
	two := mustCompile(t, in)

	back, _ := plan()
	in.Policy, in.Prev, in.Settled = back, two, one.Gen
	three := mustCompile(t, in)
	if id := three.TenantByName("beta").ID; id == gone || three.TenantByName("beta").Shared == one.TenantByName("beta").Shared {
		t.Fatalf("id %d is used again while sessions of the old tenant may live", id)
	}
	in.Settled = two.Gen
	three = mustCompile(t, in)
	if id := three.TenantByName("beta").ID; id != gone {
		t.Fatalf("id %d, want the settled %d", id, gone)
	}
	if len(three.Fresh) != 1 || three.Fresh[0] != gone {
		t.Fatalf("fresh %v: the counters of the old tenant would be the new one's", three.Fresh)
	}
	if n := three.TenantByName("beta").Shared.Sessions.Load(); n != 0 {
		t.Fatalf("%d sessions", n)
	}
	// With all ids resting there is none to give.
	in.Settled = 0
	prev := one
	for i := 0; ; i++ {
		fresh, _ := plan()
		fresh.Tenants = fresh.Tenants[:1]
		fresh.Tenants[0].Name = fmt.Sprintf("t%d", i)
		in.Policy, in.Prev = fresh, prev
		v, err := Compile(in)
		if err != nil {
			if !strings.Contains(err.Error(), "try again in a few seconds") || i < 4 {
				t.Fatalf("after %d: %v", i, err)
			}
			break
		}
		if prev = v; i > 100 {
			t.Fatal("ids were used again")
		}
	}
}

// A forward of a range is a forward of each of its ports, to the inside port as many behind.
func TestForwardOfARange(t *testing.T) {
	p, n := plan()
	p.Tenants[0].NAT.Forward = []configs.PortForward{
		{Public: adr("192.0.2.16"), Proto: "udp", Port: 10000, LastPort: 10002, Inside: adr("198.18.10.5"), InsidePort: 30000},
		{Public: adr("192.0.2.16"), Proto: "tcp", Port: 65534, LastPort: 65535, Inside: adr("198.18.10.6")},
	}
	v := mustCompile(t, input(p, n))
	want := map[uint32]Forward{}
	for i := range uint16(3) {
		want[ForwardKey(flow.UDP, 10000+i)] = Forward{flow.AddrFrom(adr("198.18.10.5")), 30000 + i}
	}
	for _, port := range []uint16{65534, 65535} {
		want[ForwardKey(flow.TCP, port)] = Forward{flow.AddrFrom(adr("198.18.10.6")), port}
	}
	pub := &v.Publics[0]
	if !maps.Equal(pub.Forwards, want) {
		t.Errorf("%v, want %v", pub.Forwards, want)
	}
	tenant := v.TenantByName(p.Tenants[0].Name)
	for k, f := range want {
		e, ok := tenant.Forwarded(&f.Inside, f.Port, uint8(k>>16))
		if !ok || e != (PublicEnd{0, uint16(k)}) || !pub.Reserved(map[uint8]nat.Class{flow.UDP: nat.UDP, flow.TCP: nat.TCP}[uint8(k>>16)], uint16(k)) {
			t.Errorf("what comes from %v leaves by %+v, %v", f, e, ok)
		}
	}
	if pub.Reserved(nat.UDP, 10003) || pub.Reserved(nat.UDP, 9999) || pub.Reserved(nat.TCP, 10000) {
		t.Error("ports beside the ranges are set aside")
	}
}

func TestReservedPorts(t *testing.T) {
	p, n := plan()
	n.Ports[0].Host = configs.Host{Shared: []netip.Addr{adr("192.0.2.16")}, TCPPorts: []int{22}, UDPPorts: []int{500}}
	p.Tenants[0].NAT.Forward = []configs.PortForward{
		{Public: adr("192.0.2.16"), Proto: "tcp", Port: 8080, Inside: adr("198.18.10.5"), InsidePort: 80},
		{Public: adr("192.0.2.16"), Proto: "udp", Port: 5060, Inside: adr("198.18.10.5")},
	}
	in := input(p, n)
	in.Ephemeral = [2]uint16{32768, 60999}
	v, space := mustCompile(t, in), nat.NewSpace(8)
	if err := v.Register(space); err != nil {
		t.Fatal(err)
	}
	v.Activate(space)
	type row struct {
		addr  string
		class nat.Class
		port  uint16
		want  bool
	}
	check := func(v *View, rows []row) {
		t.Helper()
		for _, c := range rows {
			id, _ := space.Find(adr(c.addr).As4())
			if got := space.Reserved(id, c.class, c.port); got != c.want {
				t.Errorf("%s class %d port %d: the space says %v", c.addr, c.class, c.port, got)
			}
			for i := range v.Publics {
				if p := &v.Publics[i]; p.ID == id && p.Reserved(c.class, c.port) != c.want {
					t.Errorf("%s class %d port %d: the view says %v", c.addr, c.class, c.port, !c.want)
				}
			}
		}
	}
	check(v, []row{
		{"192.0.2.16", nat.TCP, 8080, true}, {"192.0.2.16", nat.UDP, 8080, false}, {"192.0.2.16", nat.UDP, 5060, true}, {"192.0.2.16", nat.TCP, 5060, false},
		{"192.0.2.16", nat.TCP, 22, true}, {"192.0.2.16", nat.UDP, 22, false}, {"192.0.2.16", nat.UDP, 500, true},
		{"192.0.2.16", nat.TCP, 32768, true}, {"192.0.2.16", nat.UDP, 60999, true}, {"192.0.2.16", nat.ICMP, 40000, true},
		{"192.0.2.16", nat.TCP, 32767, false}, {"192.0.2.16", nat.TCP, 61000, false},
		{"192.0.2.32", nat.TCP, 8080, false}, {"192.0.2.32", nat.TCP, 40000, false}, {"192.0.2.32", nat.TCP, 0, true},
	})
	if !v.Publics[0].Host || v.Publics[1].Host {
		t.Error("which address is the host's too is not known")
	}
	if f := v.Publics[0].Forwards[ForwardKey(flow.UDP, 5060)]; f.Port != 5060 {
		t.Errorf("a forward without an inside port leads to %d", f.Port)
	}
	// The same again has nothing to tell; another forward only its own class.
	in.Prev = v
	if same := mustCompile(t, in); len(same.reserved) != 0 {
		t.Errorf("%d reservations to tell again", len(same.reserved))
	}
	p.Tenants[0].NAT.Forward = p.Tenants[0].NAT.Forward[1:]
	next := mustCompile(t, in)
	if len(next.reserved) != 1 || next.reserved[0].class != nat.TCP {
		t.Errorf("to tell: %d", len(next.reserved))
	}
	if err := next.Register(space); err != nil {
		t.Fatal(err)
	}
	next.Activate(space)
	// A worker may still have the View before, which forwards the port: no mapping gets it until all have the new one.
	if id, _ := space.Find(adr("192.0.2.16").As4()); !space.Reserved(id, nat.TCP, 8080) || !space.Reserved(id, nat.TCP, 22) {
		t.Error("a forwarded port is free before every worker knows that it is no longer forwarded")
	}
	next.Acknowledged(space)
	check(next, []row{{"192.0.2.16", nat.TCP, 8080, false}, {"192.0.2.16", nat.TCP, 22, true}, {"192.0.2.16", nat.UDP, 5060, true}})
	// An address that leaves and comes back without forwards must not keep what was set aside on it.
	forwards := p.Tenants[0].NAT.Forward
	p.Tenants[0].NAT.Forward, p.Tenants[0].NAT.Pool = nil, []string{"192.0.2.17"}
	in.Prev = next
	away := mustCompile(t, in)
	if err := away.Register(space); err != nil {
		t.Fatal(err)
	}
	away.Activate(space)
	n.Ports[0].Host = configs.Host{}
	p.Tenants[0].NAT.Pool = []string{"192.0.2.16"}
	in.Prev = away
	again := mustCompile(t, in)
	if err := again.Register(space); err != nil {
		t.Fatal(err)
	}
	again.Activate(space)
	check(again, []row{{"192.0.2.16", nat.UDP, 5060, false}, {"192.0.2.16", nat.TCP, 22, false}, {"192.0.2.16", nat.TCP, 40000, false}})
	_ = forwards
}

// A switched-off limit must cost nothing and limit nothing.
func TestZeroIsNoLimit(t *testing.T) {
	p, n := plan()
	v := mustCompile(t, input(p, n))
	a := v.TenantByName("alpha")
	for d := range a.Dir {
		if !a.Dir[d].Bits.Unlimited() || !a.Dir[d].Packets.Unlimited() || !a.Dir[d].Voice.Unlimited() || a.Dir[d].QueueBytes != 0 {
			t.Errorf("%s: %+v", meter.Dir(d), a.Dir[d])
		}
	}
	if a.MaxSessions != 0 || !a.SessionRate.Unlimited() || a.HostSessions != 0 || !a.HostRate.Unlimited() || a.VoiceDSCP != 0 {
		t.Errorf("%+v", a)
	}
	if a.Voice(0xb8) {
		t.Error("EF is voice without anybody's having said so")
	}
	k := ACLKey(&flow.Addr{}, &flow.Addr{}, 1, 25, flow.TCP, 4)
	inside := flow.AddrFrom(adr("198.18.10.5"))
	if n := testing.AllocsPerRun(100, func() {
		_ = a.Judge(meter.Out, &k)
		_, _, _ = v.Lookup(0, 4, &inside)
		_ = v.HomeOf(a.ID, 4, &inside)
		_ = a.Prefixes.Contains(4, &inside)
		_ = v.Iface(1, 20)
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func TestPrefixSetAgainstNetip(t *testing.T) {
	list := []netip.Prefix{pfx("198.18.10.0/24"), pfx("0.0.0.0/1"), pfx("203.0.113.7/32"), pfx("2001:db8::/32"), pfx("2001:db8:1::8/125"), pfx("fe80::/64"), pfx("2002::1/128")}
	addrs := []netip.Addr{adr("198.18.10.255"), adr("198.18.11.0"), adr("127.255.255.255"), adr("128.0.0.0"), adr("203.0.113.7"), adr("203.0.113.6"), adr("2001:db8:ffff::"),
		adr("2001:db9::"), adr("2001:db8:1::f"), adr("2001:db8:1::10"), adr("fe80::1"), adr("fe80:0:0:1::"), adr("2002::1"), adr("2002::"), adr("::"), adr("0.0.0.0")}
	for i := range list {
		for _, p := range [][]netip.Prefix{list[i : i+1], list[:i]} {
			s := NewPrefixSet(p)
			for _, a := range addrs {
				want := false
				for _, x := range p {
					want = want || x.Contains(a)
				}
				fa := flow.AddrFrom(a)
				if got := s.Contains(family(a), &fa); got != want {
					t.Errorf("%v holds %s: %v", p, a, got)
				}
			}
			if s.Empty() != (len(p) == 0) {
				t.Errorf("%v is empty: %v", p, s.Empty())
			}
		}
	}
	all := NewPrefixSet([]netip.Prefix{pfx("0.0.0.0/0"), pfx("::/0")})
	for _, a := range addrs {
		fa := flow.AddrFrom(a)
		if !all.Contains(family(a), &fa) {
			t.Errorf("everything does not hold %s", a)
		}
	}
}

// many is a provider: tenants on VLANs of one trunk with one prefix all, four public addresses each.
func many(tenants int) Input {
	p := &configs.Policy{Backbone: configs.Backbone{Interfaces: []string{"backbone"}}}
	n := &configs.Node{Workers: configs.Workers{Count: 4}, Tables: configs.Tables{Tenants: tenants}, Ports: []configs.Port{{Name: "bb0"}, {Name: "t0"}},
		Interfaces: []configs.Interface{{Name: "backbone", Port: "bb0", Addresses: []netip.Prefix{pfx("203.0.113.1/24")}}}}
	for i := range tenants {
		name := fmt.Sprintf("t%d", i)
		n.Interfaces = append(n.Interfaces, configs.Interface{Name: name, Port: "t0", VLAN: 1 + i, Addresses: []netip.Prefix{pfx("198.18.10.1/24")}})
		p.Tenants = append(p.Tenants, configs.Tenant{Name: name, Interfaces: []string{name}, Prefixes: []netip.Prefix{pfx("198.18.10.0/24")},
			NAT: configs.NAT{Pool: []string{fmt.Sprintf("198.19.%d.%d/30", i/64, i%64*4)}},
			Rules: []configs.Rule{{Direction: "in", Action: "allow", Service: []string{"tcp/443"}}, {Direction: "out", Action: "deny", Service: []string{"tcp/25"}},
				{Direction: "out", Action: "allow", To: []string{"203.0.113.0/24"}}}})
	}
	in := input(p, n)
	return in
}

func big(rules int) Input {
	p, n := plan()
	p.Tenants[0].Rules = nil
	for i := range rules {
		p.Tenants[0].Rules = append(p.Tenants[0].Rules, configs.Rule{Direction: []string{"in", "out"}[i%2], Action: "allow",
			From: []string{fmt.Sprintf("198.18.%d.%d", i>>8&255, i&255)}, Service: []string{fmt.Sprintf("tcp/%d", 1+i)}})
	}
	return input(p, n)
}

// Apply compiles while it holds the node's lock, and an operator waits for it. The bounds are ten times what this takes, in processor time: others may have the machine.
func TestLargePoliciesCompileInTime(t *testing.T) {
	for _, c := range []struct {
		name string
		in   Input
		max  time.Duration
	}{{"1,000 tenants, 4,000 public addresses", many(1000), 5 * time.Second}, {"10,000 rules of one tenant", big(10000), 10 * time.Second}} {
		used := cputime.Spent(t)
		v := mustCompile(t, c.in)
		first := used()
		used = cputime.Spent(t)
		space := nat.NewSpace(4096)
		if err := v.Register(space); err != nil {
			t.Fatal(err)
		}
		v.Activate(space)
		active := used()
		c.in.Prev = v
		used = cputime.Spent(t)
		mustCompile(t, c.in)
		again := used()
		t.Logf("%s: compiled in %s, activated in %s, again in %s", c.name, first, active, again)
		if first > c.max || again > c.max {
			t.Errorf("%s: %s, then %s", c.name, first, again)
		}
	}
}

func BenchmarkCompile(b *testing.B) {
	for _, c := range []struct {
		name string
		in   Input
	}{{"tenants=100", many(100)}, {"tenants=1000", many(1000)}, {"rules=1000", big(1000)}, {"rules=10000", big(10000)}} {
		b.Run(c.name, func(b *testing.B) {
			v := mustCompile(b, c.in)
			c.in.Prev = v
			for b.Loop() {
				mustCompile(b, c.in)
			}
		})
	}
}

func TestOnlyARegisteredViewTakesPlaces(t *testing.T) {
	p, n := plan()
	v := mustCompile(t, input(p, n))
	if len(v.Publics) < 2 {
		t.Fatalf("%d public addresses, the test wants two", len(v.Publics))
	}
	for i := range v.Publics {
		if id := v.Publics[i].ID; id != nat.NoAddr {
			t.Errorf("%s has number %d before Register", v.Publics[i].Addr.Netip(4), id)
		}
	}
	small := nat.NewSpace(len(v.Publics) - 1)
	err := v.Register(small)
	if err == nil || !strings.Contains(err.Error(), fmt.Sprintf("%d public addresses are new, and there are places for %d", len(v.Publics), len(v.Publics)-1)) {
		t.Errorf("no place for the last address: %v", err)
	}
	if n := small.Addrs(); n != 0 {
		t.Errorf("what is refused has taken %d places", n)
	}
	space := nat.NewSpace(len(v.Publics))
	for range 2 { // registering again changes nothing
		if err := v.Register(space); err != nil {
			t.Fatal(err)
		}
	}
	for _, tn := range v.Tenants {
		if tn != nil && len(tn.Pool) != len(tn.PoolAddrs) {
			t.Errorf("tenant %s: %d numbers for %d pool addresses", tn.Name, len(tn.Pool), len(tn.PoolAddrs))
		}
	}
}

// An object that holds nothing is nobody, in each part of a rule, and not everybody.
func TestARuleForNobodyMatchesNobody(t *testing.T) {
	for _, r := range []configs.Rule{{From: []string{"none"}}, {To: []string{"none"}}, {Service: []string{"nothing"}}, {From: []string{"nested"}, Service: []string{"tcp/80"}}} {
		p, n := plan()
		p.Objects = configs.Objects{Hosts: map[string][]string{"none": {}, "nested": {"none"}}, Services: map[string][]string{"nothing": {}}}
		r.Direction, r.Action = "in", "allow"
		p.Tenants[0].Rules = []configs.Rule{r, {Name: "web", Direction: "in", Action: "allow", Service: []string{"tcp/80"}}}
		tenant := mustCompile(t, input(p, n)).TenantByName("alpha")
		src, dst := flow.AddrFrom(adr("203.0.113.7")), flow.AddrFrom(adr("198.18.10.5"))
		k := ACLKey(&src, &dst, 1, 22, flow.TCP, 4)
		if j := tenant.Judge(meter.In, &k); j.Allow {
			t.Errorf("%+v allows %+v", r, j)
		}
		k = ACLKey(&src, &dst, 1, 80, flow.TCP, 4)
		if j := tenant.Judge(meter.In, &k); !j.Allow || j.Rule != 1 {
			t.Errorf("behind %+v: %+v, want rule 1", r, j)
		}
	}
}

// Two addresses in one network, and one that is a network of its own, are no reason to refuse a node.
func TestAddressesOfOneNetwork(t *testing.T) {
	p, n := plan()
	n.Interfaces[0].Addresses = append(n.Interfaces[0].Addresses, pfx("203.0.113.2/24"), pfx("192.0.2.1/32"), pfx("2001:db8:ff::2/64"), pfx("2001:db8:fe::1/128"))
	v := mustCompile(t, input(p, n))
	for _, a := range []string{"203.0.113.1", "203.0.113.2", "192.0.2.1", "2001:db8:ff::2", "2001:db8:fe::1"} {
		fa := flow.AddrFrom(adr(a))
		if _, h, ok := v.Lookup(flow.Backbone, family(adr(a)), &fa); !ok || h.Kind != HopLocal {
			t.Errorf("%s: %+v, %v; want the node itself", a, h, ok)
		}
	}
	fa := flow.AddrFrom(adr("203.0.113.9"))
	if _, h, ok := v.Lookup(flow.Backbone, 4, &fa); !ok || h.Kind != HopForward || !h.OnLink {
		t.Errorf("a neighbour: %+v, %v", h, ok)
	}
}
