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
	MaxVias           = 16 // of one route
	MaxObjects        = 16_384
	maxItems          = 65_536 // in one object
	maxRuleItems      = 4_096
	maxNamed          = 64
	maxStatics        = 16_384
	maxForwarded      = 131_072 // ports, of all forwards of ranges
	maxPrefixes       = 1_024   // of one tenant
	maxPoolItems      = 4_096
	maxIfaces         = 4_096 // of one side
	maxLimit          = 1 << 30
	maxOverhead       = 256   // bytes a packet: more than any tunnel over any line
	minRate      Rate = 8_000 // what is less was meant with a prefix
)

// policyCheck is one pass over one policy. Positions come from loc; cross references live here.
type policyCheck struct {
	p       *Policy
	root    loc
	named   map[string]bool // tenants
	grouped map[string]int  // tenant -> the group that has it
	usedBy  map[string]int  // interface -> the tenant that has it, -1 for the backbone
	public  []claim         // every public address that somebody uses
	rules   int

	forwarded int // public ports
}

func checkPolicy(at loc, p *Policy) {
	c := &policyCheck{p: p, root: at, usedBy: map[string]int{}, named: map[string]bool{}, grouped: map[string]int{}}
	checkSchema(at, p.Schema)
	checkText(at, "name", p.Name)
	c.timeouts()
	checkCount(at.key("icmp_errors"), "total", p.ICMPErrors.Total, 1, 1_000_000)
	checkCount(at.key("icmp_errors"), "per_side", p.ICMPErrors.PerSide, 1, 1_000_000)
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
		c.named[t.Name] = true
	}
	c.groups()
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

// The words of Tenant.IPv4Options and Tenant.IPv6Headers.
var (
	IPv4Options = []string{"record-route", "timestamp", "router-alert", "security", "other"}
	IPv6Headers = []string{"hop-by-hop", "destination-options", "routing"}
)

// checkWords checks a list of which each entry is one of the words, once.
func checkWords(at loc, list, words []string) {
	for i, s := range list {
		switch {
		case s == "source-route" || s == "routing-0":
			at.item(i).bad(s, "never passes", "it would lead past the rules (RFC 7126, RFC 5095)")
		case !slices.Contains(words, s):
			at.item(i).bad(s, "is not a choice here", didYouMean(s, words, oneOf(words...)))
		case slices.Contains(list[:i], s):
			at.item(i).bad(s, "is there twice", "")
		}
	}
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
	checkDuration(at, "tcp_closing", t.TCPClosing, time.Second, most)
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
				at.key("prefix").bad(r.Prefix, "is routed twice", fmt.Sprintf("route[%d] has it; several next hops are written as one list: via = [\"…\", \"…\"]", first+1))
			} else {
				have[r.Prefix] = i
			}
		}
		via, backup := at.key("via"), at.key("backup")
		switch {
		case len(r.Backup) > MaxVias:
			backup.bad(nil, fmt.Sprintf("has %d next hops", len(r.Backup)), fmt.Sprintf("at most %d", MaxVias))
		case len(r.Backup) == 0 && at.has("backup") && textAt(at, "backup"):
			backup.bad(nil, "is empty", "the address of a router for when none of via is up, or a list of several; without one leave it out")
		case r.Discard && at.has("backup"):
			backup.bad(firstHop(r.Backup), "stands beside discard = true", "a route has one or the other")
		case at.has("backup") && !at.has("via"):
			at.missing("via", "the address of the next router that is used first")
		default:
			for j, hop := range r.Backup {
				if item := backup.item(j); hop.IsValid() && slices.Contains(r.Via, hop) {
					item.bad(hop, "is one of via too", "a router that is used first, or one for when none of these is up")
				} else {
					checkHop(item, at, &r, hop, slices.Contains(r.Backup[:j], hop), interfaces)
				}
			}
		}
		switch {
		case at.has("backup") && !at.has("via"):
		case r.Discard && at.has("via"):
			via.bad(firstHop(r.Via), "stands beside discard = true", "a route has one or the other")
		case r.Discard:
		case !at.has("via"):
			at.missing("via", "the address of the next router, or discard = true")
		case len(r.Via) == 0 && textAt(at, "via"):
			via.bad(nil, "is empty", "the address of the next router, or a list of several")
		case len(r.Via) > MaxVias:
			via.bad(nil, fmt.Sprintf("has %d next hops", len(r.Via)), fmt.Sprintf("at most %d", MaxVias))
		default:
			for j, hop := range r.Via {
				checkHop(via.item(j), at, &r, hop, slices.Contains(r.Via[:j], hop), interfaces)
			}
		}
		if r.Interface != "" && !slices.Contains(interfaces, r.Interface) {
			at.key("interface").bad(r.Interface, "is not an interface of this side", didYouMean(r.Interface, at.c.guess(func() []string { return interfaces }), "one of "+cut(strings.Join(interfaces, ", "))))
		}
	}
}

// checkHop checks one next hop of a route, which is written at owner.
func checkHop(via, owner loc, r *Route, hop netip.Addr, twice bool, interfaces []string) {
	zone := hop.Zone()
	switch {
	case !hop.IsValid():
	case publicAddr(hop) != nil:
		via.bad(hop, publicAddr(hop).Error(), "the address of the next router")
	case r.Prefix.IsValid() && hop.Is4() != r.Prefix.Addr().Is4():
		via.bad(hop, "is of the other family than "+r.Prefix.String(), "")
	case twice:
		via.bad(hop, "stands in the list twice", "each next hop gets the same share")
	case zone != "" && r.Interface != "" && zone != r.Interface:
		via.bad(hop, "is on another interface than the route's "+quote(r.Interface), "leave interface out where a next hop names its own")
	case zone != "" && !slices.Contains(interfaces, zone):
		via.bad(hop, "names no interface of this side", didYouMean(zone, via.c.guess(func() []string { return interfaces }), "one of "+cut(strings.Join(interfaces, ", "))))
	case hop.IsLinkLocalUnicast() && r.Interface == "" && zone == "" && len(interfaces) != 1:
		owner.key("interface").bad(nil, "is missing", "a link-local next hop needs it")
	}
}

// firstHop is what is shown of a list of next hops; nil when it is empty.
func firstHop(list []netip.Addr) any {
	if len(list) == 0 {
		return nil
	}
	return list[0]
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
	checkChoice(at, "default_out", t.DefaultOut, "allow", "deny", "reject")
	checkChoice(at, "reject", t.Reject, "silent", "icmp", "reset")
	checkWords(at.key("ipv4_options"), t.IPv4Options, IPv4Options)
	checkWords(at.key("ipv6_headers"), t.IPv6Headers, IPv6Headers)
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
	at.missing("action", oneOf("allow", "deny", "reject"))
	if checkChoice(at, "action", r.Action, "allow", "deny", "reject") && r.Action == "reject" && r.Direction == "in" {
		at.key("action").bad(r.Action, "tells who is refused, and whoever is outside is told nothing", `"deny"`)
	}
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

func checkRates(at loc, r *Rates) {
	for _, d := range []struct {
		key string
		dir *RateDir
	}{{"out", &r.Out}, {"in", &r.In}} {
		where := at.key(d.key)
		checkSpeed(where, d.dir.Bits, d.dir.Packets, d.dir.Burst)
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
	checkHostRate(at.key("host").key("out"), &r.Host.Out, r.Out.Bits)
	checkHostRate(at.key("host").key("in"), &r.Host.In, r.In.Bits)
	checkCount(at, "overhead", r.Overhead, 1, maxOverhead)
	if r.Overhead != 0 && max(r.Out.Bits, r.In.Bits, r.Host.Out.Bits, r.Host.In.Bits) == 0 && textAt(at, "overhead") &&
		!slices.ContainsFunc([]loc{at.key("out"), at.key("in"), at.key("host").key("out"), at.key("host").key("in")}, func(l loc) bool { return !textAt(l, "bits") }) {
		at.key("overhead").bad(r.Overhead, "does nothing without a rate in bits", "bits in rates.out, rates.in or rates.host")
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

// checkSpeed checks what every rate has: bit/s, packet/s and burst.
func checkSpeed(at loc, bits Rate, packets uint64, burst Duration) {
	if bits != 0 && bits < minRate {
		want := fmt.Sprintf("at least %s bit/s", minRate)
		if bits < 1000 {
			want = fmt.Sprintf("did you mean \"%dM\"?", bits)
		}
		at.key("bits").bad(bits, "is a rate at which nothing moves", want)
	}
	if packets > 10_000_000_000 {
		at.key("packets").bad(packets, "is out of range", "at most 10000000000 packets per second")
	}
	checkDuration(at, "burst", burst, time.Millisecond, 10*time.Second)
}

// checkHostRate checks what one inside host may use of a line of so many bit/s (0 = no limit).
func checkHostRate(at loc, r *HostRate, line Rate) {
	checkSpeed(at, r.Bits, r.Packets, r.Burst)
	if line != 0 && r.Bits > line && line >= minRate {
		at.key("bits").bad(r.Bits, "is more than the tenant's own line", fmt.Sprintf("at most %s", line))
	}
	if r.Bits == 0 && r.Packets == 0 && textAt(at, "bits") && textAt(at, "packets") && at.has("burst") {
		at.key("burst").bad(nil, "does nothing without a rate", "bits or packets")
	}
}

// owned is a prefix that is routed to a tenant.
type owned struct {
	p      netip.Prefix
	tenant int
	at     loc
}

// owned are the prefixes that are routed to tenants as they are: of IPv4 only those of whom routed says so.
func (p *Policy) owned(root loc, routed func(*Tenant) bool) (all []owned) {
	for i := range p.Tenants {
		t := &p.Tenants[i]
		for j, q := range t.Prefixes {
			if q.IsValid() && q == q.Masked() && q.Bits() > 0 && (q.Addr().Is6() || routed(t)) {
				all = append(all, owned{q, i, root.key("tenant").at(i).key("prefixes").item(j)})
			}
		}
	}
	return all
}

// overlapping sorts prefixes and calls found for each that overlaps another tenant's; o is the later tenant's.
func overlapping(all []owned, found func(first, o owned)) {
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
			found(first, o)
			continue
		}
		open = append(open, o)
	}
}

// overlaps finds tenants whose untranslated prefixes overlap: a packet from the backbone could not be told apart.
func (c *policyCheck) overlaps() {
	all := c.p.owned(c.root, func(t *Tenant) bool { return len(t.NAT.Pool) == 0 })
	overlapping(all, func(first, o owned) {
		o.at.bad(o.p, fmt.Sprintf("overlaps %s of tenant %s", first.p, quote(c.p.Tenants[first.tenant].Name)), "only translated IPv4 may be the same in two tenants (nat.pool)")
	})
	for _, o := range all {
		if o.p.Addr().Is4() {
			c.public = append(c.public, claim{addrRange: addrRange{o.p.Addr(), lastAddr(o.p)}, at: o.at, tenant: o.tenant, kind: "prefix", text: o.p.String()})
		}
	}
}
