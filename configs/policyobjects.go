package configs

import (
	"fmt"
	"net/netip"
	"strings"
)

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
