package fib

import (
	"fmt"
	"net/netip"

	"github.com/gaissmai/bart"

	"demarc/gateway/flow"
)

// NextHop is where a route leads. Family 0 fits routes of both families (OnLink, Discard and Local need no address).
type NextHop struct {
	Iface   uint16
	Family  uint8     // of Via: 4 or 6
	Via     flow.Addr // the router; unset with OnLink, Discard, Local
	OnLink  bool      // the destination itself is the neighbour
	Discard bool      // drop, no route
	Local   bool      // one of the gateway's own addresses
}

// Route is one line of the routing table of a zone (a tenant, or the backbone).
type Route struct {
	Zone    flow.TenantID
	Prefix  netip.Prefix // bits beyond its length are ignored; a length of 0 is the default route
	NextHop uint16       // index into the hops given to Compile
}

// lpm holds the tries of one zone, one per family. bart.Fast is not faster here by what can be measured, and is larger;
// DESIGN.md has the figures.
type lpm = bart.Table[uint16]

// Table is a compiled routing table: immutable, one trie per zone and family.
type Table struct {
	zones []*lpm // by flow.TenantID; nil = no routes
	hops  []NextHop
}

// maxHops is what a uint16 can name.
const maxHops = 1 << 16

// Compile builds a Table. Errors name the route by its index. The same prefix twice in a zone is an error: nothing here
// could say which of the two is meant.
func Compile(routes []Route, hops []NextHop) (*Table, error) {
	if len(hops) > maxHops {
		return nil, fmt.Errorf("%d next hops, at most %d", len(hops), maxHops)
	}
	t := &Table{hops: append([]NextHop(nil), hops...)}
	for i, r := range routes {
		switch {
		case !r.Prefix.IsValid():
			return nil, fmt.Errorf("route %d: invalid prefix", i)
		case r.Prefix.Addr().Is4In6():
			return nil, fmt.Errorf("route %d: %v is an IPv4-mapped prefix; write it as IPv4", i, r.Prefix)
		case int(r.NextHop) >= len(hops):
			return nil, fmt.Errorf("route %d: %v: next hop %d of %d", i, r.Prefix, r.NextHop, len(hops))
		}
		family := uint8(6)
		if r.Prefix.Addr().Is4() {
			family = 4
		}
		if h := &hops[r.NextHop]; h.Family != family && (h.Family != 0 || !h.OnLink && !h.Discard && !h.Local) {
			return nil, fmt.Errorf("route %d: %v: next hop %d is of family %d", i, r.Prefix, r.NextHop, h.Family)
		}
		for int(r.Zone) >= len(t.zones) {
			t.zones = append(t.zones, nil)
		}
		z := t.zones[r.Zone]
		if z == nil {
			z = new(lpm)
			t.zones[r.Zone] = z
		}
		p := r.Prefix.Masked()
		if _, ok := z.Get(p); ok {
			return nil, fmt.Errorf("route %d: %v stands twice in zone %d", i, p, r.Zone)
		}
		z.Insert(p, r.NextHop)
	}
	return t, nil
}

// Lookup finds the longest prefix of zone that holds a; family is 4 or 6. It does not allocate.
func (t *Table) Lookup(zone flow.TenantID, family uint8, a *flow.Addr) (nh uint16, ok bool) {
	if int(zone) >= len(t.zones) {
		return 0, false
	}
	z := t.zones[zone]
	if z == nil {
		return 0, false
	}
	if family == 4 {
		return z.Lookup(netip.AddrFrom4([4]byte(a[:4])))
	}
	return z.Lookup(netip.AddrFrom16(*a))
}

// Hop is next hop nh, valid as long as the table; nil if there is none. The caller must not write to it.
func (t *Table) Hop(nh uint16) *NextHop {
	if int(nh) >= len(t.hops) {
		return nil
	}
	return &t.hops[nh]
}

// Hops is how many next hops there are.
func (t *Table) Hops() int { return len(t.hops) }
