package fib

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"

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

// few is how many routes of a family in a zone are looked at one by one, the longest first: as most tenants have, and less work than a trie, of IPv6 above all.
const few = 8

type route4 struct {
	addr, mask uint32
	nh         uint16
}

type route6 struct {
	hi, lo, mhi, mlo uint64
	nh               uint16
}

// zone is the routes of one zone. A family has its list, or more than few routes and stands in the trie.
type zone struct {
	v4           []route4
	v6           []route6
	trie4, trie6 bool
	trie         *lpm // nil where there are no more than few of either
}

// lpm holds the tries of one zone, one per family. bart.Fast is not faster here by what can be measured, and is larger;
// DESIGN.md has the figures.
type lpm = bart.Table[uint16]

// Table is a compiled routing table: immutable, one trie per zone and family.
type Table struct {
	zones []zone // by flow.TenantID
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
			t.zones = append(t.zones, zone{})
		}
		z := &t.zones[r.Zone]
		if z.trie == nil {
			z.trie = new(lpm)
		}
		p := r.Prefix.Masked()
		if _, ok := z.trie.Get(p); ok {
			return nil, fmt.Errorf("route %d: %v stands twice in zone %d", i, p, r.Zone)
		}
		z.trie.Insert(p, r.NextHop)
		z.list(p, r.NextHop)
	}
	for i := range t.zones {
		t.zones[i].settle()
	}
	return t, nil
}

// list notes a route in the list of its family.
func (z *zone) list(p netip.Prefix, nh uint16) {
	a := flow.AddrFrom(p.Addr())
	if p.Addr().Is4() {
		if z.trie4 = len(z.v4) == few; !z.trie4 {
			z.v4 = append(z.v4, route4{a.V4(), ^uint32(0) << (32 - p.Bits()), nh})
		}
		return
	}
	if z.trie6 = len(z.v6) == few; !z.trie6 {
		mhi, mlo := ^uint64(0), ^uint64(0)<<(128-max(p.Bits(), 64))
		if p.Bits() < 64 {
			mhi <<= 64 - p.Bits()
		}
		z.v6 = append(z.v6, route6{binary.BigEndian.Uint64(a[:8]), binary.BigEndian.Uint64(a[8:]), mhi, mlo, nh})
	}
}

// settle is what is left to do when all routes are known.
func (z *zone) settle() {
	slices.SortFunc(z.v4, func(a, b route4) int { return cmp.Compare(b.mask, a.mask) })
	slices.SortFunc(z.v6, func(a, b route6) int { return cmp.Or(cmp.Compare(b.mhi, a.mhi), cmp.Compare(b.mlo, a.mlo)) })
	if !z.trie4 && !z.trie6 {
		z.trie = nil
	}
}

// Lookup finds the longest prefix of zone that holds a; family is 4 or 6. It does not allocate.
func (t *Table) Lookup(zone flow.TenantID, family uint8, a *flow.Addr) (nh uint16, ok bool) {
	if int(zone) >= len(t.zones) {
		return 0, false
	}
	z := &t.zones[zone]
	if family == 4 {
		if z.trie4 {
			return z.trie.Lookup(netip.AddrFrom4([4]byte(a[:4])))
		}
		n := a.V4()
		for i := range z.v4 {
			if r := &z.v4[i]; n&r.mask == r.addr {
				return r.nh, true
			}
		}
		return 0, false
	}
	if z.trie6 {
		return z.trie.Lookup(netip.AddrFrom16(*a))
	}
	hi, lo := binary.BigEndian.Uint64(a[:8]), binary.BigEndian.Uint64(a[8:])
	for i := range z.v6 {
		if r := &z.v6[i]; hi&r.mhi == r.hi && lo&r.mlo == r.lo {
			return r.nh, true
		}
	}
	return 0, false
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
