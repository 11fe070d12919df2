package configs

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// claim is public addresses and who uses them.
type claim struct {
	addrRange
	at     loc
	tenant int
	kind   string // "pool", "static", "forward", "prefix"; "virtual": an address of a group, on an interface of the tenant, or of the backbone (-1)
	text   string
	group  int // with "virtual"
}

func (c *policyCheck) nat(at loc, tenant int, t *Tenant) {
	n := &t.NAT
	checkChoice(at, "mapping", n.Mapping, "endpoint-independent", "address-dependent", "address-and-port-dependent")
	checkChoice(at, "filtering", n.Filtering, "address-and-port-dependent", "address-dependent", "endpoint-independent")
	checkChoice(at, "pooling", n.Pooling, "paired", "paired-soft", "arbitrary")
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
		c.public = append(c.public, claim{addrRange: r, at: where, tenant: tenant, kind: "pool", text: item})
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
			c.public = append(c.public, claim{addrRange: addrRange{s.Public, s.Public}, at: where.key("public"), tenant: tenant, kind: "static", text: s.Public.String()})
		}
		if checkInside(where.key("inside"), t, s.Inside) {
			if first, dup := inside[s.Inside]; dup {
				where.key("inside").bad(s.Inside, "is there twice", fmt.Sprintf("static[%d] has it", first+1))
			}
			inside[s.Inside] = i
		}
	}
	type forwarded struct{ first, last, i int }
	type end struct {
		a     netip.Addr
		proto string
	}
	forwards, addrs := map[end][]forwarded{}, map[netip.Addr]bool{}
	for i, f := range n.Forward {
		where := at.key("forward").at(i)
		for _, key := range []string{"public", "proto", "port", "inside"} {
			where.missing(key, "")
		}
		checkChoice(where, "proto", f.Proto, "tcp", "udp")
		last, to, ports := f.LastPort, f.InsidePort, true
		if !where.has("last_port") {
			last = cmp.Or(last, f.Port)
		}
		if !where.has("inside_port") {
			to = cmp.Or(to, f.Port)
		}
		for _, port := range []struct {
			key string
			n   int
		}{{"port", f.Port}, {"last_port", last}, {"inside_port", to}} {
			if port.n >= 1 && port.n <= 65535 {
				continue
			}
			if ports = false; where.has(port.key) && textAt(where, port.key) {
				where.key(port.key).bad(port.n, "is not a port", "1 to 65535")
			}
		}
		more := last - f.Port // behind the first
		switch {
		case !ports:
			more = 0
		case more < 0:
			where.key("last_port").bad(last, fmt.Sprintf("is below port, which is %d", f.Port), "the last port of the range")
			more = 0
		case to+more > 65535:
			where.key("inside_port").bad(to, fmt.Sprintf("leaves no room for %d ports", more+1), fmt.Sprintf("at most %d", 65535-more))
		}
		if more > 0 { // single ones have a bound of their own, and what was taken before there were ranges is taken still
			c.forwarded += more + 1
		}
		if checkNATAddr(where.key("public"), f.Public) {
			if ports {
				key := end{f.Public, f.Proto}
				forwards[key] = append(forwards[key], forwarded{f.Port, f.Port + more, i})
			}
			if !addrs[f.Public] { // many forwards on one address are one claim on it
				addrs[f.Public] = true
				outside(where.key("public"), t, f.Public, addrRange{f.Public, f.Public})
				c.public = append(c.public, claim{addrRange: addrRange{f.Public, f.Public}, at: where.key("public"), tenant: tenant, kind: "forward", text: f.Public.String()})
			}
		}
		checkInside(where.key("inside"), t, f.Inside)
	}
	for end, list := range forwards {
		slices.SortFunc(list, func(a, b forwarded) int { return cmp.Or(cmp.Compare(a.first, b.first), cmp.Compare(a.i, b.i)) })
		far := list[0] // of those before, the one that reaches farthest
		for _, f := range list[1:] {
			if f.first <= far.last {
				one, other := max(f.i, far.i), min(f.i, far.i)
				at.key("forward").at(one).key("port").bad(f.first, fmt.Sprintf("of %s is forwarded twice", end.a), fmt.Sprintf("forward[%d] has it", other+1))
			}
			if f.last > far.last {
				far = f
			}
		}
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

// publicConflicts finds public addresses that two uses claim. What is allowed: forwards (of different ports) and a pool of the
// same tenant on one address; forwards on an address of one's own outside the pool.
func (c *policyCheck) publicConflicts() {
	if c.forwarded > maxForwarded {
		c.root.bad(nil, fmt.Sprintf("forwards %d ports in ranges", c.forwarded), fmt.Sprintf("at most %d, those of all tenants together; a static translation takes all ports of an address", maxForwarded))
	}
	sorted := slices.Clone(c.public)
	slices.SortStableFunc(sorted, func(a, b claim) int { return cmp.Or(a.lo.Compare(b.lo), a.hi.Compare(b.hi)) })
	var total, next uint64 // next: the first that is not counted yet
	for _, k := range sorted {
		if k.kind == "prefix" || k.kind == "virtual" || !k.lo.Is4() {
			continue
		}
		lo, hi := max(uint64(v4(k.lo)), next), uint64(v4(k.hi))
		if lo <= hi {
			total, next = total+hi-lo+1, hi+1
		}
	}
	if total > MaxPool {
		c.root.bad(nil, fmt.Sprintf("has %d public addresses", total), fmt.Sprintf("at most %d, those of pools, static translations and forwards together", MaxPool))
		return
	}
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
	switch {
	case a.kind == "virtual" && b.kind == "virtual":
		return false // groups has said so
	case a.kind == "virtual":
		return c.virtualConflict(a, b)
	case b.kind == "virtual":
		return c.virtualConflict(b, a)
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
