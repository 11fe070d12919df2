package configs

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"
	"unicode"
)

// Bounds of a policy. They are far above any use and keep a hostile file from costing more than seconds.
const (
	MaxTenants        = 65_534 // a tenant is 16 bits in a session, and 0 is the backbone
	MaxRules          = 100_000
	MaxRoutes         = 16_384
	MaxObjects        = 16_384
	maxItems          = 65_536 // in one object
	maxRuleItems      = 4_096
	maxNamed          = 64
	maxStatics        = 16_384
	maxPrefixes       = 1_024 // of one tenant
	maxPoolItems      = 4_096
	maxIfaces         = 4_096 // of one side
	maxLimit          = 1 << 30
	minRate      Rate = 8_000 // what is less was meant with a prefix
)

// policyCheck is one pass over one policy. Positions come from loc; cross references live here.
type policyCheck struct {
	p       *Policy
	root    loc
	tenants []string
	usedBy  map[string]int // interface -> the tenant that has it, -1 for the backbone
	public  []claim        // every public address that somebody uses
	rules   int
}

// claim is public addresses and who uses them.
type claim struct {
	addrRange
	at     loc
	tenant int
	kind   string // "pool", "static", "forward", "prefix"
	text   string
}

func checkPolicy(at loc, p *Policy) {
	c := &policyCheck{p: p, root: at, usedBy: map[string]int{}}
	checkSchema(at, p.Schema)
	checkText(at, "name", p.Name)
	c.timeouts()
	c.interfaces(at.key("backbone"), p.Backbone.Interfaces, -1)
	checkRoutes(at, p.Routes, p.Backbone.Interfaces)
	c.objects(at.key("objects"), nil, p.Objects)
	if len(p.Tenants) > MaxTenants {
		at.key("tenant").bad(nil, fmt.Sprintf("are %d", len(p.Tenants)), fmt.Sprintf("at most %d", MaxTenants))
		return
	}
	names := map[string]int{}
	for i := range p.Tenants {
		t := &p.Tenants[i]
		where := at.key("tenant").at(i)
		if checkName(where, "name", t.Name) {
			if first, dup := names[t.Name]; dup {
				where.key("name").bad(t.Name, "is there twice", fmt.Sprintf("tenant[%d] has that name", first+1))
			} else {
				names[t.Name] = i
			}
		}
		c.tenant(where, i, t)
	}
	c.overlaps()
	c.publicConflicts()
}

func checkSchema(at loc, schema int) {
	if !at.has("schema") {
		at.missing("schema", fmt.Sprintf("the file begins with: schema = %d", SchemaVersion))
	} else if schema != SchemaVersion {
		at.key("schema").bad(schema, "is a version that this build does not read", fmt.Sprintf("it reads %d", SchemaVersion))
	}
}

// checkText is for what people read: bounded and printable.
func checkText(at loc, key, s string) {
	if len(s) > 256 || strings.ContainsFunc(s, func(r rune) bool { return !unicode.IsPrint(r) }) {
		at.key(key).bad(s, "is not a name", "at most 256 printable characters")
	}
}

// goodName is what identifies tenants, interfaces and objects: it must be fit for a command line and a metric.
func goodName(s string) bool {
	if s == "" || len(s) > maxNamed || s == "any" || looksLikeAddr(s) {
		return false
	}
	for i, r := range s {
		ok := r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || i > 0 && (r == '-' || r == '_' || r == '.')
		if !ok {
			return false
		}
	}
	return true
}

const nameRule = "letters, digits, then also - _ . up to 64 in all; not an address"

func checkName(at loc, key, s string) bool {
	if s == "" && !at.has(key) {
		at.missing(key, "")
		return false
	}
	if !goodName(s) {
		if s != "" || textAt(at, key) {
			at.key(key).bad(s, "is not a name", nameRule)
		}
		return false
	}
	return true
}

// textAt says whether an empty string was really written at key: a value of the wrong type was already reported there.
func textAt(at loc, key string) bool {
	path := at.key(key).path
	return !slices.ContainsFunc(at.c.list, func(e Error) bool { return e.Path == path })
}

// checkChoice reports value at key unless it is empty (a default) or among allowed.
func checkChoice(at loc, key, value string, allowed ...string) bool {
	if value == "" && (!at.has(key) || !textAt(at, key)) || slices.Contains(allowed, value) {
		return true
	}
	at.key(key).bad(value, "is not a choice here", didYouMean(value, allowed, oneOf(allowed...)))
	return false
}

func checkDuration(at loc, key string, d Duration, least, most time.Duration) {
	if d.Duration != 0 && (d.Duration < least || d.Duration > most) {
		at.key(key).bad(d, "is out of range", fmt.Sprintf("%s to %s", Duration{least}, Duration{most}))
	}
}

func checkCount(at loc, key string, n, least, most int) {
	if n != 0 && (n < least || n > most) {
		at.key(key).bad(n, "is out of range", fmt.Sprintf("%d to %d", least, most))
	}
}

func (c *policyCheck) timeouts() {
	at, t := c.root.key("timeouts"), &c.p.Timeouts
	const most = 7 * 24 * time.Hour
	checkDuration(at, "tcp_established", t.TCPEstablished, time.Second, most)
	checkDuration(at, "tcp_transitory", t.TCPTransitory, time.Second, most)
	checkDuration(at, "tcp_closed", t.TCPClosed, time.Second, most)
	checkDuration(at, "udp", t.UDP, time.Second, most)
	checkDuration(at, "udp_unanswered", t.UDPUnanswered, time.Second, most)
	checkDuration(at, "icmp", t.ICMP, time.Second, most)
	checkDuration(at, "other", t.Other, time.Second, most)
	checkDuration(at, "nat_hold", t.NATHold, time.Second, time.Hour)
}

// interfaces checks the interfaces of one owner: a tenant by its position, or -1 for the backbone.
func (c *policyCheck) interfaces(at loc, names []string, owner int) {
	if !at.has("interfaces") {
		at.missing("interfaces", `such as ["wan0"]; the node file says where they are`)
		return
	}
	list := at.key("interfaces")
	if len(names) == 0 && textAt(at, "interfaces") {
		list.bad(nil, "is empty", "at least one interface")
	}
	if len(names) > maxIfaces {
		list.bad(nil, fmt.Sprintf("has %d entries", len(names)), fmt.Sprintf("at most %d", maxIfaces))
		return
	}
	for i, name := range names {
		item := list.item(i)
		first, used := c.usedBy[name]
		switch {
		case !goodName(name):
			if name != "" || textAt(at, "interfaces") {
				item.bad(name, "is not a name", nameRule)
			}
		case used && first == owner:
			item.bad(name, "is there twice", "")
		case used:
			who := "the backbone"
			if first >= 0 {
				who = "tenant " + quote(c.p.Tenants[first].Name)
			}
			item.bad(name, "belongs to "+who+" already", "an interface faces one side only; use VLANs to share a port")
		default:
			c.usedBy[name] = owner
		}
	}
}

// checkPrefix reports p unless it is a clean prefix of unicast addresses.
func checkPrefix(at loc, p netip.Prefix) bool {
	switch {
	case !p.IsValid():
		return false // a bad text has been reported, a missing one by who knows that it is needed
	case p != p.Masked():
		msg, want, _ := strings.Cut(hostBits(p).Error(), ": ")
		at.bad(p, msg, want)
		return false
	case p.Addr().IsMulticast() || p.Addr().IsLoopback() && p.Bits() > 0:
		at.bad(p, "is not a prefix of hosts", "unicast addresses")
		return false
	}
	return true
}

func checkRoutes(owner loc, routes []Route, interfaces []string) {
	if len(routes) > MaxRoutes {
		owner.key("route").bad(nil, fmt.Sprintf("are %d", len(routes)), fmt.Sprintf("at most %d", MaxRoutes))
		return
	}
	have := map[netip.Prefix]int{}
	for i, r := range routes {
		at := owner.key("route").at(i)
		at.missing("prefix", `such as "0.0.0.0/0"`)
		if checkPrefix(at.key("prefix"), r.Prefix) {
			if first, dup := have[r.Prefix]; dup {
				at.key("prefix").bad(r.Prefix, "is routed twice", fmt.Sprintf("route[%d] has it; one next hop per prefix", first+1))
			} else {
				have[r.Prefix] = i
			}
		}
		via := at.key("via")
		switch {
		case r.Discard && at.has("via"):
			via.bad(r.Via, "stands beside discard = true", "a route has one or the other")
		case r.Discard:
		case !at.has("via"):
			at.missing("via", "the address of the next router, or discard = true")
		case !r.Via.IsValid():
		case publicAddr(r.Via) != nil:
			via.bad(r.Via, publicAddr(r.Via).Error(), "the address of the next router")
		case r.Prefix.IsValid() && r.Via.Is4() != r.Prefix.Addr().Is4():
			via.bad(r.Via, "is of the other family than "+r.Prefix.String(), "")
		case r.Via.IsLinkLocalUnicast() && r.Interface == "" && len(interfaces) != 1:
			at.key("interface").bad(nil, "is missing", "a link-local next hop needs it")
		}
		if r.Interface != "" && !slices.Contains(interfaces, r.Interface) {
			at.key("interface").bad(r.Interface, "is not an interface of this side", didYouMean(r.Interface, at.c.guess(func() []string { return interfaces }), "one of "+cut(strings.Join(interfaces, ", "))))
		}
	}
}

// objects checks one set of objects; t is nil for the shared ones.
func (c *policyCheck) objects(at loc, t *Tenant, o Objects) {
	for _, set := range []struct {
		kind  string
		items map[string][]string
		check func(loc, *Tenant, string)
	}{{"hosts", o.Hosts, c.host}, {"services", o.Services, c.service}} {
		kind := at.key(set.kind)
		if len(set.items) > MaxObjects {
			kind.bad(nil, fmt.Sprintf("has %d objects", len(set.items)), fmt.Sprintf("at most %d", MaxObjects))
			continue
		}
		sound := map[seen]bool{}
		for _, name := range sortedKeys(set.items) {
			list := kind.key(name)
			_, err := ParseService(name)
			switch items := set.items[name]; {
			case !goodName(name):
				list.bad(name, "is not a name for an object", nameRule)
			case set.kind == "services" && err == nil:
				list.bad(name, "is not a name for an object", "it is a service already")
			case len(items) > maxItems:
				list.bad(nil, fmt.Sprintf("has %d entries", len(items)), fmt.Sprintf("at most %d", maxItems))
			default:
				for i, item := range items {
					set.check(list.item(i), t, item)
				}
				c.loops(list, t, set.kind, name, sound)
			}
		}
	}
}

// loops reports an object that, through others, names itself. Unknown names in it are reported where they stand.
// sound holds what was found to be in order before.
func (c *policyCheck) loops(at loc, t *Tenant, kind, name string, sound map[seen]bool) {
	if len(at.c.list) >= maxErrors {
		return
	}
	s, leaf := c.p.hostScope(t), func(item string) (bool, error) { _, literal, _ := parseHost(item); return literal, nil }
	if kind == "services" {
		s = c.p.serviceScope(t)
		leaf = func(item string) (bool, error) { return !s.named(item), nil }
	}
	if t == nil {
		s.own = nil
	}
	known := func(item string) (bool, error) {
		if ok, _ := leaf(item); ok || !s.named(item) {
			return true, nil
		}
		return false, nil
	}
	if err := s.walk([]string{name}, known, "known", sound); err != nil {
		_, why, _ := strings.Cut(err.Error(), `" `)
		at.bad(nil, why, "objects may name each other, but not in a circle")
	}
}

func (c *policyCheck) host(at loc, t *Tenant, item string) {
	_, literal, err := parseHost(item)
	if err != nil {
		msg, want, _ := strings.Cut(err.Error(), ": ")
		at.bad(item, msg, want)
	} else if s := c.p.hostScope(t); !literal && !s.named(item) {
		at.bad(item, "is not an address or a host object", didYouMean(item, at.c.guess(s.names), `write "192.0.2.1", "192.0.2.0/24", "192.0.2.1-192.0.2.9" or a name from objects.hosts`))
	}
}

func (c *policyCheck) service(at loc, t *Tenant, item string) {
	s := c.p.serviceScope(t)
	if s.named(item) {
		return
	}
	if _, err := ParseService(item); err != nil {
		msg, want, _ := strings.Cut(err.Error(), ": ")
		if n := nearest(item, at.c.guess(s.names)); n != "" && !strings.HasPrefix(want, "did you") {
			want = fmt.Sprintf("did you mean %s?", quote(n))
		}
		at.bad(item, msg, want)
	}
}

func (c *policyCheck) tenant(at loc, i int, t *Tenant) {
	c.interfaces(at, t.Interfaces, i)
	at.missing("prefixes", `the inside addresses, such as ["198.18.10.0/24"]; what comes from others is spoofed`)
	if len(t.Prefixes) == 0 && at.has("prefixes") && textAt(at, "prefixes") {
		at.key("prefixes").bad(nil, "is empty", "at least one prefix: everything else is spoofed")
	}
	if len(t.Prefixes) > maxPrefixes || len(t.NAT.Pool) > maxPoolItems || len(t.NAT.Bypass) > maxPrefixes {
		at.bad(nil, "has too many prefixes or pool entries", fmt.Sprintf("at most %d prefixes, %d in nat.bypass and %d in nat.pool", maxPrefixes, maxPrefixes, maxPoolItems))
		return
	}
	for j, p := range t.Prefixes {
		item := at.key("prefixes").item(j)
		if !checkPrefix(item, p) {
			continue
		}
		if p.Bits() == 0 {
			item.bad(p, "is everything", "the tenant's own addresses: sources outside them are dropped as spoofed")
		}
		for _, q := range t.Prefixes[:j] {
			if q.IsValid() && p.Overlaps(q) {
				item.bad(p, "overlaps "+q.String()+" of the same tenant", "write the larger one only")
				break
			}
		}
	}
	checkRoutes(at, t.Routes, t.Interfaces)
	c.objects(at.key("objects"), t, t.Objects)
	c.nat(at.key("nat"), i, t)
	limits := at.key("limits")
	checkCount(limits, "sessions", t.Limits.Sessions, 1, maxLimit)
	checkCount(limits, "session_rate", t.Limits.SessionRate, 1, maxLimit)
	checkCount(limits, "host_sessions", t.Limits.HostSessions, 1, maxLimit)
	checkCount(limits, "host_session_rate", t.Limits.HostSessionRate, 1, maxLimit)
	checkRates(at.key("rates"), &t.Rates)
	checkChoice(at, "default_out", t.DefaultOut, "allow", "deny")
	if c.rules += len(t.Rules); c.rules > MaxRules {
		at.key("rule").bad(nil, fmt.Sprintf("are %d together with those of the tenants before", c.rules), fmt.Sprintf("at most %d", MaxRules))
		return
	}
	names := map[string]int{}
	families := map[seen]uint8{}
	for j := range t.Rules {
		r := &t.Rules[j]
		where := at.key("rule").at(j)
		checkText(where, "name", r.Name)
		if first, dup := names[r.Name]; dup && r.Name != "" {
			where.key("name").bad(r.Name, "is there twice", fmt.Sprintf("rule[%d] has that name; counters and logs go by it", first+1))
		} else {
			names[r.Name] = j
		}
		c.rule(where, t, r, families)
	}
}

func (c *policyCheck) rule(at loc, t *Tenant, r *Rule, families map[seen]uint8) {
	at.missing("direction", oneOf("out", "in"))
	checkChoice(at, "direction", r.Direction, "out", "in")
	at.missing("action", oneOf("allow", "deny"))
	checkChoice(at, "action", r.Action, "allow", "deny")
	checkChoice(at, "class", r.Class, "", "voice")
	before := len(at.c.list)
	for _, list := range []struct {
		key   string
		items []string
		check func(loc, *Tenant, string)
	}{{"from", r.From, c.host}, {"to", r.To, c.host}, {"service", r.Service, c.service}} {
		where := at.key(list.key)
		if len(list.items) > maxRuleItems {
			where.bad(nil, fmt.Sprintf("has %d entries", len(list.items)), fmt.Sprintf("at most %d; make an object of them", maxRuleItems))
			continue
		}
		if len(list.items) == 0 && at.has(list.key) && textAt(at, list.key) {
			where.bad(nil, "is an empty list", "leave it out to match all")
		}
		for i, item := range list.items {
			list.check(where.item(i), t, item)
		}
	}
	if len(at.c.list) != before {
		return
	}
	from, to := c.family(t, r.From, families), c.family(t, r.To, families)
	if from != 0 && to != 0 && from&to == 0 {
		at.bad(nil, "can never match", "from and to have no address family in common")
	}
}

// family says which families items hold: 1 IPv4, 2 IPv6; no items are both. 0 is not known (an error elsewhere) or empty. cache
// belongs to the tenant.
func (c *policyCheck) family(t *Tenant, items []string, cache map[seen]uint8) (mask uint8) {
	if len(items) == 0 {
		return 3
	}
	return familyOf(c.p.hostScope(t), items, true, cache)
}

func familyOf(s scope, items []string, own bool, cache map[seen]uint8) (mask uint8) {
	for _, item := range items {
		hosts, literal, _ := parseHost(item)
		if !literal {
			key := seen{own, item}
			list, ok := s.own[item]
			if !own || !ok {
				key.own = false
				list = s.shared[item]
			}
			m, ok := cache[key]
			if !ok {
				cache[key] = 0 // a loop is reported elsewhere and must only end here
				m = familyOf(s, list, key.own, cache)
				cache[key] = m
			}
			mask |= m
		}
		for _, h := range hosts {
			if h.prefix.IsValid() {
				mask |= familyBit(h.prefix.Addr())
			} else {
				mask |= familyBit(h.lo)
			}
		}
	}
	return mask
}

func familyBit(a netip.Addr) uint8 {
	if a.Is4() {
		return 1
	}
	return 2
}

func checkRates(at loc, r *Rates) {
	for _, d := range []struct {
		key string
		dir *RateDir
	}{{"out", &r.Out}, {"in", &r.In}} {
		where := at.key(d.key)
		if b := d.dir.Bits; b != 0 && b < minRate {
			want := fmt.Sprintf("at least %s bit/s", minRate)
			if b < 1000 {
				want = fmt.Sprintf("did you mean \"%dM\"?", b)
			}
			where.key("bits").bad(b, "is a rate at which nothing moves", want)
		}
		if d.dir.Packets > 10_000_000_000 {
			where.key("packets").bad(d.dir.Packets, "is out of range", "at most 10000000000 packets per second")
		}
		checkDuration(where, "burst", d.dir.Burst, time.Millisecond, 10*time.Second)
		checkDuration(where, "queue", d.dir.Queue, time.Millisecond, time.Second)
		checkChoice(where, "mode", d.dir.Mode, "shape", "police")
		if d.dir.Mode == "police" && d.dir.Queue.Duration != 0 {
			where.key("queue").bad(d.dir.Queue, "does nothing with mode = \"police\"", "leave it out, or shape")
		}
		if d.dir.Bits == 0 && d.dir.Packets == 0 && textAt(where, "bits") && textAt(where, "packets") {
			for _, key := range []string{"burst", "queue", "mode"} {
				if where.has(key) {
					where.key(key).bad(nil, "does nothing without a rate", "bits or packets")
				}
			}
		}
	}
	voice := at.key("voice")
	have := map[uint8]bool{}
	for i, s := range r.Voice.DSCP {
		v, err := parseDSCP(s)
		if err != nil {
			msg, want, _ := strings.Cut(err.Error(), ": ")
			voice.key("dscp").item(i).bad(s, msg, want)
		} else if have[v] {
			voice.key("dscp").item(i).bad(s, "is there twice", "")
		}
		have[v] = true
	}
	switch b := r.Voice.Bits; {
	case b == 0:
	case b < minRate:
		voice.key("bits").bad(b, "is a rate at which nothing moves", fmt.Sprintf("at least %s bit/s", minRate))
	case r.Out.Bits == 0 && r.In.Bits == 0:
		if textAt(at.key("out"), "bits") && textAt(at.key("in"), "bits") {
			voice.key("bits").bad(b, "is a part of a rate that is not there", "rates.out.bits or rates.in.bits")
		}
	case b > max(r.Out.Bits, r.In.Bits):
		voice.key("bits").bad(b, "is more than the line it is a part of", fmt.Sprintf("at most %s", max(r.Out.Bits, r.In.Bits)))
	}
}

func (c *policyCheck) nat(at loc, tenant int, t *Tenant) {
	n := &t.NAT
	checkChoice(at, "mapping", n.Mapping, "endpoint-independent")
	checkChoice(at, "filtering", n.Filtering, "address-and-port-dependent", "endpoint-independent")
	checkChoice(at, "ports", n.Ports, "dynamic", "blocks")
	for i, item := range n.Pool {
		where := at.key("pool").item(i)
		r, err := parsePool(item)
		if err != nil {
			msg, want, _ := strings.Cut(err.Error(), ": ")
			where.bad(item, msg, want)
			continue
		}
		outside(where, t, item, r)
		c.public = append(c.public, claim{r, where, tenant, "pool", item})
	}
	if len(n.Static) > maxStatics || len(n.Forward) > maxStatics {
		at.bad(nil, "has too many static or forward entries", fmt.Sprintf("at most %d each", maxStatics))
		return
	}
	inside := map[netip.Addr]int{}
	for i, s := range n.Static {
		where := at.key("static").at(i)
		where.missing("public", "")
		where.missing("inside", "")
		if checkNATAddr(where.key("public"), s.Public) {
			outside(where.key("public"), t, s.Public, addrRange{s.Public, s.Public})
			c.public = append(c.public, claim{addrRange{s.Public, s.Public}, where.key("public"), tenant, "static", s.Public.String()})
		}
		if checkInside(where.key("inside"), t, s.Inside) {
			if first, dup := inside[s.Inside]; dup {
				where.key("inside").bad(s.Inside, "is there twice", fmt.Sprintf("static[%d] has it", first+1))
			}
			inside[s.Inside] = i
		}
	}
	type port struct {
		a     netip.Addr
		proto string
		port  int
	}
	forwards, addrs := map[port]int{}, map[netip.Addr]bool{}
	for i, f := range n.Forward {
		where := at.key("forward").at(i)
		for _, key := range []string{"public", "proto", "port", "inside"} {
			where.missing(key, "")
		}
		checkChoice(where, "proto", f.Proto, "tcp", "udp")
		for _, port := range []struct {
			key string
			n   int
		}{{"port", f.Port}, {"inside_port", f.InsidePort}} {
			if where.has(port.key) && textAt(where, port.key) && (port.n < 1 || port.n > 65535) {
				where.key(port.key).bad(port.n, "is not a port", "1 to 65535")
			}
		}
		if checkNATAddr(where.key("public"), f.Public) {
			key := port{f.Public, f.Proto, f.Port}
			if first, dup := forwards[key]; dup {
				where.key("port").bad(f.Port, fmt.Sprintf("of %s is forwarded twice", f.Public), fmt.Sprintf("forward[%d] has it", first+1))
			} else {
				forwards[key] = i
			}
			if !addrs[f.Public] { // many forwards on one address are one claim on it
				addrs[f.Public] = true
				outside(where.key("public"), t, f.Public, addrRange{f.Public, f.Public})
				c.public = append(c.public, claim{addrRange{f.Public, f.Public}, where.key("public"), tenant, "forward", f.Public.String()})
			}
		}
		checkInside(where.key("inside"), t, f.Inside)
	}
	for i, p := range n.Bypass {
		item := at.key("bypass").item(i)
		if !checkPrefix(item, p) {
			continue
		}
		if !p.Addr().Is4() {
			item.bad(p, "is IPv6, which is never translated", "leave it out")
		}
		for _, q := range n.Bypass[:i] {
			if q.IsValid() && p.Overlaps(q) {
				item.bad(p, "overlaps "+q.String(), "write the larger one only")
				break
			}
		}
	}
}

// outside refuses public addresses within the tenant's own translated prefixes. Untranslated ones are compared with everybody's.
func outside(at loc, t *Tenant, value any, r addrRange) {
	if len(t.NAT.Pool) == 0 {
		return
	}
	for _, p := range t.Prefixes {
		if p.IsValid() && p.Bits() > 0 && p.Addr().Is4() && !lastAddr(p).Less(r.lo) && !r.hi.Less(p.Masked().Addr()) {
			at.bad(value, "is inside: the tenant has "+p.String(), "an address is inside or public, not both")
			return
		}
	}
}

func checkNATAddr(at loc, a netip.Addr) bool {
	switch {
	case !a.IsValid():
		return false
	case !a.Is4():
		at.bad(a, "is IPv6, which is never translated", "an IPv4 address")
	case publicAddr(a) != nil:
		at.bad(a, publicAddr(a).Error(), "an address of your own")
	default:
		return true
	}
	return false
}

func checkInside(at loc, t *Tenant, a netip.Addr) bool {
	if !checkNATAddr(at, a) {
		return false
	}
	if len(t.Prefixes) > 0 && !slices.ContainsFunc(t.Prefixes, func(p netip.Prefix) bool { return p.Contains(a) }) {
		at.bad(a, "is not inside", "an address in one of the tenant's prefixes")
		return false
	}
	return true
}

// overlaps finds tenants whose untranslated prefixes overlap: a packet from the backbone could not be told apart.
func (c *policyCheck) overlaps() {
	type owned struct {
		p      netip.Prefix
		tenant int
		at     loc
	}
	var all []owned
	for i := range c.p.Tenants {
		t := &c.p.Tenants[i]
		for j, p := range t.Prefixes {
			if p.IsValid() && p == p.Masked() && p.Bits() > 0 && (p.Addr().Is6() || len(t.NAT.Pool) == 0) {
				all = append(all, owned{p, i, c.root.key("tenant").at(i).key("prefixes").item(j)})
			}
		}
	}
	slices.SortStableFunc(all, func(a, b owned) int {
		return cmp.Or(a.p.Addr().Compare(b.p.Addr()), cmp.Compare(a.p.Bits(), b.p.Bits()), cmp.Compare(a.tenant, b.tenant))
	})
	// Sorted this way, whatever overlaps a prefix and comes before it contains it: a stack of open ones is enough.
	var open []owned
	for _, o := range all {
		for len(open) > 0 && !open[len(open)-1].p.Overlaps(o.p) {
			open = open[:len(open)-1]
		}
		if len(open) > 0 && open[len(open)-1].tenant != o.tenant {
			first := open[len(open)-1]
			if first.tenant > o.tenant {
				first, o = o, first
			}
			o.at.bad(o.p, fmt.Sprintf("overlaps %s of tenant %s", first.p, quote(c.p.Tenants[first.tenant].Name)),
				"only translated IPv4 may be the same in two tenants (nat.pool)")
			continue
		}
		open = append(open, o)
	}
	for _, o := range all {
		if o.p.Addr().Is4() {
			c.public = append(c.public, claim{addrRange{o.p.Addr(), lastAddr(o.p)}, o.at, o.tenant, "prefix", o.p.String()})
		}
	}
}

// publicConflicts finds public addresses that two uses claim. What is allowed: forwards (of different ports) and a pool of the
// same tenant on one address; forwards on an address of one's own outside the pool.
func (c *policyCheck) publicConflicts() {
	var total uint64
	for _, k := range c.public {
		if k.kind != "prefix" {
			total += k.count()
		}
	}
	if total > MaxPool {
		c.root.bad(nil, fmt.Sprintf("has %d public addresses in all pools", total), fmt.Sprintf("at most %d", MaxPool))
		return
	}
	sorted := slices.Clone(c.public)
	slices.SortStableFunc(sorted, func(a, b claim) int { return cmp.Or(a.lo.Compare(b.lo), a.hi.Compare(b.hi)) })
	for i, a := range sorted {
		reported := 0
		for _, b := range sorted[i+1:] {
			if a.hi.Less(b.lo) {
				break
			}
			if c.conflict(a, b) {
				if reported++; reported == 20 { // one wide mistake: enough said
					break
				}
			}
		}
	}
}

// conflict reports a and b, which overlap, at the one that stands later in the file.
func (c *policyCheck) conflict(a, b claim) bool {
	if a.at.line > b.at.line {
		a, b = b, a
	}
	var msg, want string
	other := quote(c.p.Tenants[a.tenant].Name)
	switch {
	case a.tenant != b.tenant && a.kind == "prefix" && b.kind == "prefix":
		return false // overlaps has said so
	case a.tenant != b.tenant:
		msg, want = fmt.Sprintf("is in use by tenant %s (%s %s)", other, a.kind, a.text), "a public address belongs to one tenant"
	case a.kind == "forward" && b.kind == "pool" || a.kind == "pool" && b.kind == "forward":
		return false
	case a.kind == "prefix" && b.kind == "prefix":
		return false
	case a.kind == "prefix" || b.kind == "prefix":
		msg, want = fmt.Sprintf("overlaps %s %s", a.kind, a.text), "a public address is translated or routed, not both"
	case a.kind == "pool" && b.kind == "pool":
		msg, want = fmt.Sprintf("overlaps %s of the same pool", quote(a.text)), ""
	default: // something static and anything else
		msg, want = fmt.Sprintf("is in use by %s %s", a.kind, a.text), "a static translation takes all of its address"
	}
	var value any = b.text
	if b.kind == "forward" || b.kind == "static" {
		value = b.lo
	}
	b.at.bad(value, msg, want)
	return true
}
