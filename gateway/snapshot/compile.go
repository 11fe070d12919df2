package snapshot

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	"demarc/acl"
	"demarc/configs"
	"demarc/gateway/conntrack"
	"demarc/gateway/fib"
	"demarc/gateway/flow"
	"demarc/gateway/meter"
	"demarc/gateway/nat"
	"demarc/gateway/packet"
	"demarc/gateway/police"
)

// Link is what the machine says of a port.
type Link struct {
	MAC [6]byte
	MTU int // IP bytes
}

// Break switches one stage off. It exists so that a test can show that the demo notices; never set in service.
type Break string

// The stages that can be broken.
const (
	BreakNothing Break = ""
	BreakNAT     Break = "nat"
	BreakACL     Break = "acl"
	BreakLimit   Break = "limit"
	BreakTenant  Break = "tenant"

	// BreakPoison switches nothing off: it makes whatever a tenant sends to PoisonAddr panic in the pipeline, for the test that such a
	// fault is contained.
	BreakPoison Break = "poison"
)

// PoisonAddr is the destination that BreakPoison spoils.
var PoisonAddr = netip.MustParseAddr("203.0.113.66")

// Input is everything that Compile looks at.
type Input struct {
	Policy    *configs.Policy
	Node      *configs.Node
	Links     []Link // parallel to Node.Ports
	Prev      *View  // nil at the first
	Settled   uint32 // every session of every worker has been judged under this View or a later one
	HomeSeed  uint64
	Ephemeral [2]uint16 // the kernel's own port range, kept from the allocator on addresses shared with the host
	LinkLocal func(mac [6]byte) netip.Addr
	Break     Break
	Words     func(flow.TenantID) *[2]police.Words // where a tenant's rate words lie, if another executor moves them too; nil = anywhere
}

type compiler struct {
	in    Input
	v     *View
	byIf  map[string]uint16
	byPub map[flow.Addr]uint32 // index into v.Publics
	next  flow.TenantID        // ids below are taken, or rest
	byVia map[viaKey]uint16    // number of each router, those of the View before included
	named map[uint16]bool      // those that a route of this View names
	hops  []fib.NextHop
	route []fib.Route
	errs  []error

	groupOf  map[string]*Group   // by tenant
	resolved map[string]hostList // see hosts
}

func (c *compiler) fail(format string, args ...any) {
	c.errs = append(c.errs, fmt.Errorf(format, args...))
}

// Compile makes the View of a policy on this node, or says everything that is wrong with it. It changes nothing: Input.Prev stays as
// it is, and public addresses have no number until Register.
func Compile(in Input) (*View, error) {
	c := &compiler{in: in, byIf: map[string]uint16{}, byPub: map[flow.Addr]uint32{}, next: 1, groupOf: map[string]*Group{}}
	c.v = &View{
		Gen: 1, Workers: max(1, in.Node.Workers.Count), HomeSeed: in.HomeSeed,
		Timeouts: timeouts(in.Policy.Timeouts), NATHold: ticks(in.Policy.Timeouts.NATHold.Duration), OneTenant: len(in.Policy.Tenants) == 1,
		byName: map[string]flow.TenantID{}, retired: map[flow.TenantID]uint32{}, marked: map[flow.Addr]bool{},
	}
	c.errorRates()
	if p := in.Prev; p != nil {
		c.v.Gen = p.Gen + 1
		maps.Copy(c.v.retired, p.retired)
		maps.Copy(c.v.marked, p.marked)
	}
	c.keepVias()
	c.interfaces()
	c.groups()
	c.tenants()
	c.backbone()
	c.presences()
	c.dropVias()
	c.reserve()
	if p := in.Prev; p != nil {
		for name, id := range p.byName {
			if c.v.byName[name] == 0 {
				c.v.retired[id] = c.v.Gen
			}
		}
	}
	if len(c.errs) > 0 {
		return nil, errors.Join(c.errs...)
	}
	if in.Break == BreakPoison {
		c.add(flow.Backbone, netip.PrefixFrom(PoisonAddr, 32), c.hop(Hop{Kind: HopPublic, Public: 1 << 31, Family: 4})) // there is no such Public
	}
	t, err := fib.Compile(c.route, c.hops)
	if err != nil {
		return nil, fmt.Errorf("compile routes: %w", err)
	}
	c.v.FIB, c.v.routes = t, c.route
	return c.v, nil
}

// hurry is how long a half-open session may be silent while its tenant has too many: beyond the first three repetitions of a SYN (1, 3
// and 7 s, RFC 6298), each of which opens it anew anyway.
const hurry = 10 * time.Second

// errorBurst is how long errors at the full rate may come at once: a traceroute sends three probes a hop and many hops at a time.
const errorBurst = 250 * time.Millisecond

func (c *compiler) errorRates() {
	e := c.in.Policy.ICMPErrors
	c.v.ErrRate, c.v.SideRate = police.PacketRate(uint64(e.Total), errorBurst), police.PacketRate(uint64(e.PerSide), errorBurst)
	if c.in.Prev != nil {
		c.v.Errors = c.in.Prev.Errors
		return
	}
	c.v.Errors = &Errors{Backbone: newTold(c.v.Workers)}
}

func newTold(workers int) Told { return Told{Sent: NewHits(workers), Held: NewHits(workers)} }

func ticks(d time.Duration) uint32 { return uint32(uint64(d) >> 20) }

func timeouts(t configs.Timeouts) conntrack.Timeouts {
	return conntrack.Timeouts{
		TCPEstablished: ticks(t.TCPEstablished.Duration), TCPTransitory: ticks(t.TCPTransitory.Duration),
		TCPClosing: ticks(t.TCPClosing.Duration), TCPClosed: ticks(t.TCPClosed.Duration),
		UDP: ticks(t.UDP.Duration), UDPUnanswered: ticks(t.UDPUnanswered.Duration), ICMP: ticks(t.ICMP.Duration), Other: ticks(t.Other.Duration),
		Hurry: ticks(hurry),
	}
}

func (c *compiler) interfaces() {
	c.v.Ifaces = make([]Iface, 1, len(c.in.Node.Interfaces)+1)
	c.v.ports = make([][]uint16, len(c.in.Node.Ports))
	for i := range c.in.Node.Interfaces {
		n := &c.in.Node.Interfaces[i]
		port := slices.IndexFunc(c.in.Node.Ports, func(p configs.Port) bool { return p.Name == n.Port })
		if port < 0 || port >= len(c.in.Links) {
			c.fail("interface %q: no port %q in the node file", n.Name, n.Port)
			continue
		}
		l := c.in.Links[port]
		f := Iface{Index: uint16(len(c.v.Ifaces)), Name: n.Name, Port: uint16(port), VLAN: uint16(n.VLAN), MAC: l.MAC, MTU: n.MTU, Addrs: n.Addresses,
			NoErrors: n.ICMPErrors != nil && !*n.ICMPErrors}
		if f.MTU == 0 {
			f.MTU = l.MTU
		}
		if l.MTU > 0 && f.MTU > l.MTU && c.in.Prev != nil { // it fitted at the start: the device has shrunk since, and what it takes now holds
			f.MTU = l.MTU
		}
		if l.MTU > 0 && f.MTU > l.MTU {
			c.fail("interface %q: mtu %d is larger than the device's %d", n.Name, f.MTU, l.MTU)
		}
		for _, p := range n.Addresses {
			a := flow.AddrFrom(p.Addr())
			if p.Addr().Is4() && !f.Has4 {
				f.Addr4, f.Has4 = a, true
			} else if p.Addr().Is6() && !p.Addr().IsLinkLocalUnicast() && !f.Has6 {
				f.Addr6, f.Has6 = a, true
			}
		}
		if c.in.LinkLocal != nil {
			f.LinkLocal = flow.AddrFrom(c.in.LinkLocal(l.MAC))
		}
		f.MSS4, f.MSS6 = n.MSS(4, f.MTU), n.MSS(6, f.MTU)
		if c.v.ports[port] == nil {
			c.v.ports[port] = make([]uint16, 4095)
		}
		if n.VLAN < 0 || n.VLAN > 4094 {
			c.fail("interface %q: vlan %d is not 0 (untagged) or 1 to 4094", n.Name, n.VLAN)
			continue
		}
		if c.v.ports[port][n.VLAN] != 0 {
			c.fail("interface %q: port %q vlan %d is taken by another interface", n.Name, n.Port, n.VLAN)
			continue
		}
		c.v.ports[port][n.VLAN] = f.Index
		c.byIf[n.Name] = f.Index
		c.v.Ifaces = append(c.v.Ifaces, f)
	}
}

// claim gives an interface to a zone.
func (c *compiler) claim(name string, zone flow.TenantID, who string) uint16 {
	i, ok := c.byIf[name]
	if !ok {
		c.fail("%s: no interface %q in the node file", who, name)
		return 0
	}
	f := &c.v.Ifaces[i]
	if f.Used {
		c.fail("%s: interface %q belongs to somebody else already", who, name)
		return 0
	}
	f.Used, f.Zone = true, zone
	return i
}

func (c *compiler) hop(h Hop) uint16 {
	if len(c.hops) >= topVia {
		c.fail("more than %d next hops", topVia)
		return 0
	}
	c.hops = append(c.hops, fib.NextHop{Iface: h.Iface, Family: h.Family, Via: h.Via, OnLink: h.OnLink, Discard: h.Kind == HopDiscard, Local: h.Kind == HopLocal})
	c.v.Hops = append(c.v.Hops, h)
	return uint16(len(c.hops) - 1)
}

func (c *compiler) add(zone flow.TenantID, p netip.Prefix, nh uint16) {
	if c.in.Break == BreakTenant && slices.ContainsFunc(c.route, func(r fib.Route) bool { return r.Zone == zone && r.Prefix == p.Masked() }) {
		return // two tenants in one zone: the first one's networks
	}
	c.route = append(c.route, fib.Route{Zone: zone, Prefix: p.Masked(), NextHop: nh})
}

func family(a netip.Addr) uint8 {
	if a.Is4() {
		return 4
	}
	return 6
}

// connected adds an interface's own prefixes and addresses to its zone.
func (c *compiler) connected(i uint16) {
	f := &c.v.Ifaces[i]
	for j, p := range f.Addrs {
		twice := slices.ContainsFunc(f.Addrs[:j], func(q netip.Prefix) bool { return q.Masked() == p.Masked() })
		if !twice && p.Bits() < p.Addr().BitLen() {
			c.add(f.Zone, p, c.hop(Hop{Kind: HopForward, Iface: i, OnLink: true, Family: family(p.Addr())}))
		}
		if f.Zone == flow.Backbone && c.isPublic(p.Addr()) {
			continue // a NAT address of its own: the public entry answers
		}
		c.add(f.Zone, netip.PrefixFrom(p.Addr(), p.Addr().BitLen()), c.hop(Hop{Kind: HopLocal, Iface: i, Family: family(p.Addr())}))
	}
}

func (c *compiler) isPublic(a netip.Addr) bool {
	_, ok := c.byPub[flow.AddrFrom(a)]
	return ok && a.Is4()
}

func (c *compiler) backbone() {
	var ifs []uint16
	for _, name := range c.in.Policy.Backbone.Interfaces {
		if i := c.claim(name, flow.Backbone, "backbone"); i != 0 {
			if ifs = append(ifs, i); c.v.Outside == 0 {
				c.v.Outside = i
			}
		}
	}
	for _, i := range ifs {
		c.connected(i)
	}
	for i := range c.v.Publics {
		p := &c.v.Publics[i]
		a := p.Addr.Netip(4)
		c.add(flow.Backbone, netip.PrefixFrom(a, 32), c.hop(Hop{Kind: HopPublic, Public: uint32(i), Tenant: p.Tenant, Group: c.v.GroupOf(p.Tenant), Family: 4}))
	}
	for _, r := range c.in.Policy.Routes {
		c.static(flow.Backbone, r, ifs, "backbone")
	}
}

func (c *compiler) tenants() {
	seen := map[netip.Prefix]string{}
	ids := make([]flow.TenantID, len(c.in.Policy.Tenants))
	top := flow.TenantID(0)
	for i := range c.in.Policy.Tenants {
		ct := &c.in.Policy.Tenants[i]
		if p := c.in.Prev; p != nil {
			ids[i] = p.byName[ct.Name]
		}
		if ids[i] == 0 {
			if ids[i] = c.freshID(); ids[i] == 0 {
				return
			}
		}
		top = max(top, ids[i])
	}
	c.v.Tenants = make([]*Tenant, int(top)+1)
	if limit := c.in.Node.Tables.Tenants; limit > 0 && len(ids) > limit {
		c.fail("%d tenants, but the node file's tables.tenants is %d", len(ids), limit)
		return
	}
	for i := range c.in.Policy.Tenants {
		ct := &c.in.Policy.Tenants[i]
		if _, dup := c.v.byName[ct.Name]; dup {
			c.fail("tenant %q is there twice", ct.Name)
			continue
		}
		c.v.byName[ct.Name] = ids[i]
		c.tenant(ct, ids[i], seen)
	}
}

// MaxTenantID is the highest tenant id of a node: twice its tenants, because the id of a tenant that is gone rests until no session
// of it is left, so that no such session can ever meet another tenant's rules.
func MaxTenantID(n *configs.Node) int { return min(2*max(1, n.Tables.Tenants), 65534) }

// freshID finds an id that no tenant has or had in the View before, and that no session can still carry.
func (c *compiler) freshID() flow.TenantID {
	for int(c.next) <= MaxTenantID(c.in.Node) {
		id := c.next
		c.next++
		if c.in.Prev != nil && c.in.Prev.Tenant(id) != nil {
			continue
		}
		if gen, resting := c.v.retired[id]; resting {
			if c.in.Settled < gen {
				continue
			}
			delete(c.v.retired, id)
		}
		c.v.Fresh = append(c.v.Fresh, id)
		return id
	}
	c.fail("no tenant id is free: tables.tenants is %d, and the sessions of tenants that were removed are still being ended: try again in a few seconds", c.in.Node.Tables.Tenants)
	return 0
}

// The words of a policy, which has been checked and given its defaults.
var (
	modes = map[string]nat.Mode{"endpoint-independent": nat.EndpointIndependent, "address-dependent": nat.AddressDependent,
		"address-and-port-dependent": nat.AddressAndPortDependent}
	rejects = map[string]Reject{"silent": RejectSilent, "icmp": RejectICMP, "reset": RejectReset}
	extras  = map[string]packet.Extra{"record-route": packet.ExtraRecordRoute, "timestamp": packet.ExtraTimestamp, "router-alert": packet.ExtraRouterAlert,
		"security": packet.ExtraSecurity, "other": packet.ExtraOther,
		"hop-by-hop": packet.ExtraHopByHop, "destination-options": packet.ExtraDestination, "routing": packet.ExtraRouting}
	poolings = map[string]nat.Pooling{"paired": nat.Paired, "paired-soft": nat.PairedSoft, "arbitrary": nat.Arbitrary}
)

func (c *compiler) tenant(ct *configs.Tenant, id flow.TenantID, seen map[netip.Prefix]string) {
	who := fmt.Sprintf("tenant %q", ct.Name)
	var prev *Tenant
	if c.in.Prev != nil {
		prev = c.in.Prev.TenantByName(ct.Name)
	}
	t := &Tenant{ID: id, Name: ct.Name, DefaultOut: ct.DefaultOut != "deny" && ct.DefaultOut != "reject", DefaultTell: ct.DefaultOut == "reject",
		Reject: rejects[ct.Reject], Shared: &Shared{Words: &[2]police.Words{}, Told: newTold(c.v.Workers)}, Prefixes: NewPrefixSet(ct.Prefixes), Inside: ct.Prefixes,
		Mapping: modes[ct.NAT.Mapping], Filtering: modes[ct.NAT.Filtering], Pooling: poolings[ct.NAT.Pooling], PerHost: ct.NAT.Ports == "blocks", StaticByInside: map[flow.Addr]uint32{}}
	if c.in.Words != nil {
		t.Shared.Words = c.in.Words(id)
	}
	if prev != nil {
		t.Shared = prev.Shared
	}
	if t.Group = c.groupOf[ct.Name]; t.Group != nil {
		t.Group.Tenants = append(t.Group.Tenants, id)
	}
	for _, list := range [][]string{ct.IPv4Options, ct.IPv6Headers} {
		for _, word := range list {
			t.Extra |= extras[word]
		}
	}
	c.v.Tenants[id] = t
	for _, name := range ct.Interfaces {
		if i := c.claim(name, id, who); i != 0 {
			if c.in.Break == BreakTenant {
				c.v.Ifaces[i].Zone = 1
			}
			t.Ifaces = append(t.Ifaces, i)
		}
	}
	c.tenantNAT(ct, t, who)
	for _, i := range t.Ifaces {
		c.connected(i)
	}
	for _, r := range ct.Routes {
		c.static(id, r, t.Ifaces, who)
	}
	for _, p := range ct.Prefixes {
		if p.Addr().Is4() && t.NAT && t.Bypass.Empty() {
			continue
		}
		p = p.Masked()
		if other, dup := seen[p]; dup && c.in.Break == BreakNAT {
			continue // the first one gets it: what is broken shows as untranslated sources
		} else if dup {
			c.fail("%s: prefix %s is routed to the backbone untranslated, and so is tenant %q's: one of them needs a NAT pool", who, p, other)
			continue
		}
		seen[p] = ct.Name
		c.add(flow.Backbone, p, c.hop(Hop{Kind: HopTenant, Tenant: id, Group: t.Group, Family: family(p.Addr())}))
	}
	c.rules(ct, t, prev, who)
	c.limits(ct, t)
}

func (c *compiler) tenantNAT(ct *configs.Tenant, t *Tenant, who string) {
	if c.in.Break == BreakNAT {
		return
	}
	pool, err := configs.PoolAddrs(ct.NAT.Pool)
	if err != nil {
		c.fail("%s: nat.pool: %w", who, err)
		return
	}
	t.NAT = len(pool) > 0 || len(ct.NAT.Static) > 0
	t.Bypass = NewPrefixSet(ct.NAT.Bypass)
	public := func(a netip.Addr) (*Public, uint32) {
		fa := flow.AddrFrom(a)
		if i, ok := c.byPub[fa]; ok {
			if c.v.Publics[i].Tenant != t.ID {
				c.fail("%s: public address %s belongs to another tenant", who, a)
			}
			return &c.v.Publics[i], i
		}
		i := uint32(len(c.v.Publics))
		c.byPub[fa] = i
		c.v.Publics = append(c.v.Publics, Public{Addr: fa, ID: nat.NoAddr, Tenant: t.ID, Forwards: map[uint32]Forward{}})
		return &c.v.Publics[i], i
	}
	for _, a := range pool {
		p, _ := public(a)
		p.Dynamic = true
		t.PoolAddrs = append(t.PoolAddrs, p.Addr)
	}
	for _, s := range ct.NAT.Static {
		p, i := public(s.Public)
		if p.Dynamic || p.Static {
			c.fail("%s: static %s: the address is in the pool or translated already", who, s.Public)
			continue
		}
		p.Static, p.Inside = true, flow.AddrFrom(s.Inside)
		if _, dup := t.StaticByInside[p.Inside]; dup {
			c.fail("%s: static %s: the inside address %s is translated already", who, s.Public, s.Inside)
			continue
		}
		t.StaticByInside[p.Inside] = i
	}
	for _, f := range ct.NAT.Forward {
		p, i := public(f.Public)
		proto := uint8(flow.TCP)
		if f.Proto == "udp" {
			proto = flow.UDP
		}
		to := cmp.Or(f.InsidePort, f.Port)
		for port := f.Port; port <= max(f.Port, f.LastPort); port++ {
			k := ForwardKey(proto, uint16(port))
			if _, dup := p.Forwards[k]; dup || p.Static {
				c.fail("%s: forward %s %s/%d: the port is forwarded already", who, f.Public, f.Proto, port)
				break
			}
			inside := End{flow.AddrFrom(f.Inside), uint16(to + port - f.Port), proto}
			p.Forwards[k] = Forward{Inside: inside.Addr, Port: inside.Port}
			if t.ForwardByEnd == nil {
				t.ForwardByEnd = map[End]PublicEnd{}
			}
			if t.ForwardByEnd[inside] == (PublicEnd{}) {
				t.ForwardByEnd[inside] = PublicEnd{i, uint16(port)}
			}
		}
	}
}

func (c *compiler) rules(ct *configs.Tenant, t *Tenant, prev *Tenant, who string) {
	var list [2][]acl.Rule
	old := [2]map[string]*Hits{{}, {}}
	for d := range old {
		t.DefaultHits[d] = NewHits(c.v.Workers)
		if prev != nil {
			t.DefaultHits[d] = prev.DefaultHits[d]
			for _, r := range prev.Rules[d] {
				old[d][r.Text] = r.Hits
			}
		}
	}
	for i := range ct.Rules {
		r := &ct.Rules[i]
		d := meter.Out
		if r.Direction == "in" {
			d = meter.In
		}
		name := r.Name
		if name == "" {
			name = fmt.Sprintf("rule %d", i+1)
		}
		ar := acl.Rule{Allow: r.Action == "allow", ID: uint32(len(list[d]))}
		var err error
		if ar.From, ar.FromRanges, err = c.hosts(ct, r.From); err != nil {
			c.fail("%s: %s: from: %w", who, name, err)
		}
		if ar.To, ar.ToRanges, err = c.hosts(ct, r.To); err != nil {
			c.fail("%s: %s: to: %w", who, name, err)
		}
		svcs, err := c.in.Policy.Services(ct, r.Service)
		if err != nil {
			c.fail("%s: %s: service: %w", who, name, err)
		}
		// What it names holds nothing (yet): that is nobody, and not everybody.
		ar.Never = len(r.From) > 0 && len(ar.From)+len(ar.FromRanges) == 0 || len(r.To) > 0 && len(ar.To)+len(ar.ToRanges) == 0 || len(r.Service) > 0 && len(svcs) == 0
		for _, s := range svcs {
			ar.Services = append(ar.Services, acl.Service{Proto: s.Proto, AnyProto: s.AnyProto, SPortLo: s.SPortLo, SPortHi: s.SPortHi, DPortLo: s.DPortLo, DPortHi: s.DPortHi})
		}
		text := strings.Join([]string{r.Name, r.Direction, r.Action, strings.Join(r.From, ","), strings.Join(r.To, ","), strings.Join(r.Service, ","), r.Class, fmt.Sprint(r.Log)}, "|")
		h := old[d][text]
		if h == nil {
			h = NewHits(c.v.Workers)
		} else {
			delete(old[d], text) // a second rule with the same text counts for itself
		}
		list[d] = append(list[d], ar)
		t.Rules[d] = append(t.Rules[d], Rule{Name: name, Text: text, Allow: ar.Allow, Tell: r.Action == "reject", Log: r.Log, Voice: r.Class == "voice", Hits: h})
	}
	if c.in.Break == BreakACL {
		list, t.DefaultOut = [2][]acl.Rule{{{Allow: true}}, {{Allow: true}}}, true
		for d := range t.Rules {
			t.Rules[d] = []Rule{{Name: "broken on purpose", Allow: true, Hits: NewHits(c.v.Workers)}}
		}
	}
	for d := range list {
		p, err := acl.Compile(list[d])
		var at *acl.RuleError
		if errors.As(err, &at) && at.Index < len(t.Rules[d]) { // the list is of one direction: by its place there nobody finds it
			err = fmt.Errorf("%q: %w", t.Rules[d][at.Index].Name, at.Err)
		}
		if err != nil {
			c.fail("%s: %s rules: %w", who, meter.Dir(d), err)
			continue
		}
		t.ACL[d] = p
	}
}

// hosts is Policy.Hosts, once for rules that name the same: an object of thousands stands in many.
func (c *compiler) hosts(ct *configs.Tenant, names []string) (prefixes []netip.Prefix, ranges [][2]netip.Addr, err error) {
	if len(names) == 0 {
		return nil, nil, nil
	}
	of := ""
	if len(ct.Objects.Hosts) > 0 { // its own go before those of all
		of = ct.Name
	}
	key := of + "\x00" + strings.Join(names, "\x00")
	h, ok := c.resolved[key]
	if !ok {
		if h.prefixes, h.ranges, err = c.in.Policy.Hosts(ct, names); err != nil {
			return nil, nil, err
		}
		if c.resolved == nil {
			c.resolved = map[string]hostList{}
		}
		c.resolved[key] = h
	}
	return h.prefixes, h.ranges, nil
}

// hostList is what names of hosts and host objects hold. Nobody changes it.
type hostList struct {
	prefixes []netip.Prefix
	ranges   [][2]netip.Addr
}

func (c *compiler) limits(ct *configs.Tenant, t *Tenant) {
	if c.in.Break == BreakLimit {
		return
	}
	l := &ct.Limits
	t.MaxSessions, t.HostSessions = int64(l.Sessions), uint32(l.HostSessions)
	// Whatever floods one direction, the other can still open sessions; and unanswered ones never fill more than half.
	quarter := (t.MaxSessions + 3) / 4
	t.MaxInbound, t.MaxUnanswered = max(1, t.MaxSessions-quarter), quarter
	if l.SessionRate > 0 {
		t.SessionRate = police.PacketRate(uint64(l.SessionRate), time.Second/4)
		if in := l.SessionRate / 4; in > 0 { // of less there is no part to give away
			t.SessionRateIn = police.PacketRate(uint64(in), time.Second/8)
		}
	}
	if l.HostSessionRate > 0 {
		t.HostRate = police.PacketRate(uint64(l.HostSessionRate), time.Second)
	}
	beside := uint16(ct.Rates.Overhead)
	for d, r := range [2]configs.HostRate{ct.Rates.Host.Out, ct.Rates.Host.In} {
		t.HostBits[d], t.HostPackets[d] = police.BitRate(uint64(r.Bits), r.Burst.Duration).Beside(beside), police.PacketRate(r.Packets, r.Burst.Duration)
		t.HostRates = t.HostRates || r.Bits > 0 || r.Packets > 0
	}
	t.HostLimits = t.HostRates || t.HostSessions > 0 || !t.HostRate.Unlimited()
	for d, r := range [2]configs.RateDir{ct.Rates.Out, ct.Rates.In} {
		burst, queue := r.Burst.Duration, r.Queue.Duration
		pd := police.Dir{QueueNs: uint64(queue), Shape: r.Mode != "police"}
		if r.Bits > 0 {
			pd.Bits = police.BitRate(uint64(r.Bits), burst).Beside(beside)
			pd.QueueBytes = int(uint64(r.Bits) / 8 * uint64(queue/time.Microsecond) / 1e6)
		}
		if r.Packets > 0 {
			pd.Packets = police.PacketRate(r.Packets, burst)
		}
		if voice := ct.VoiceBits(&r); voice > 0 {
			pd.Voice = police.BitRate(uint64(voice), burst).Beside(beside)
		}
		t.Dir[d] = pd
	}
	codes, err := configs.DSCPs(ct.Rates.Voice.DSCP)
	if err != nil {
		c.fail("tenant %q: rates.voice.dscp: %w", ct.Name, err)
		return
	}
	for _, d := range codes {
		t.VoiceDSCP |= 1 << (d & 63)
	}
}

// reserve sets aside the forwarded ports of each public address, and on addresses that the host has too, the host's ports.
func (c *compiler) reserve() {
	shared := map[flow.Addr][]*configs.Host{}
	for n := range c.in.Node.Ports {
		h := &c.in.Node.Ports[n].Host
		for _, a := range h.Shared {
			shared[flow.AddrFrom(a)] = append(shared[flow.AddrFrom(a)], h)
		}
	}
	before := map[flow.Addr]*Public{}
	if c.in.Prev != nil {
		for i := range c.in.Prev.Publics {
			before[c.in.Prev.Publics[i].Addr] = &c.in.Prev.Publics[i]
		}
	}
	for i := range c.v.Publics {
		p := &c.v.Publics[i]
		hosts := shared[p.Addr]
		p.Host = len(hosts) > 0
		old := before[p.Addr]
		for class, proto := range [...]uint8{nat.TCP: flow.TCP, nat.UDP: flow.UDP, nat.ICMP: flow.ICMP} {
			bits := c.portsOf(p, proto, hosts)
			p.reserved[class] = bits
			if bits == nil {
				bits = &noPorts
			}
			if old != nil && *bits == *old.ports(nat.Class(class)) || old == nil && bits == &noPorts && !c.v.marked[p.Addr] {
				continue // the allocators know it so
			}
			c.v.marked[p.Addr] = true
			before := &noPorts
			if old != nil {
				before = old.ports(nat.Class(class))
			}
			c.v.reserved = append(c.v.reserved, reservation{uint32(i), nat.Class(class), bits, before})
		}
	}
}

// portsOf is the ports of one protocol that no mapping may have, nil for none.
func (c *compiler) portsOf(p *Public, proto uint8, hosts []*configs.Host) (bits *[1024]uint64) {
	set := func(port int) {
		if bits == nil {
			bits = &[1024]uint64{}
		}
		bits[port/64] |= 1 << (port % 64)
	}
	for k := range p.Forwards {
		if uint8(k>>16) == proto {
			set(int(uint16(k)))
		}
	}
	for _, h := range hosts {
		var ports []int // of ICMP identifiers none but the ephemeral range: those below 1024, the host's too, are never handed out
		switch proto {
		case flow.TCP:
			ports = h.TCPPorts
		case flow.UDP:
			ports = h.UDPPorts
		}
		for _, port := range ports {
			set(port)
		}
		for port := int(c.in.Ephemeral[0]); c.in.Ephemeral[1] > 0 && port <= int(c.in.Ephemeral[1]); port++ {
			set(port)
		}
	}
	return bits
}
