package snapshot

import (
	"math/bits"
	"net/netip"
	"slices"

	"demarc/configs"
	"demarc/gateway/fib"
	"demarc/gateway/flow"
)

// NoHop stands where there is no route.
const NoHop = 0xffff

// topVia is the number of the first router. A router keeps its number from one View to the next, so that a session can stay with it; so
// routers count down from the top, and what else a route can lead to counts up from 0 and has other numbers in each View.
const topVia = NoHop - 1

// viaKey is what makes a router the same in two Views.
type viaKey struct {
	iface  uint16
	family uint8
	addr   flow.Addr
}

func (h *Hop) viaKey() viaKey { return viaKey{h.Iface, h.Family, h.Via} }

// Hop is next hop nh, which is not NoHop: of a route (what Lookup gives), or a router (what Choose gives).
func (v *View) Hop(nh uint16) *Hop {
	if int(nh) < len(v.Hops) {
		return &v.Hops[nh]
	}
	return &v.vias[topVia-nh]
}

// Dead reports whether nh is a router to which nothing may be sent now. nh may be NoHop.
func (v *View) Dead(nh uint16) bool {
	i := int(topVia - nh)
	return i < len(v.vias) && v.vias[i].State.Dead()
}

// Choose turns the next hop of a route into that of one conversation, which k is the key of (of its first packet, for both directions). Where
// the route has several routers each gets its share by highest random weight: of all hashes of conversation and router, the
// highest, so that when one dies only its own conversations go elsewhere. keep is where the conversation is now, or NoHop: it stays
// there while that router is one of the route's and not dead, also when another that it had before has come back. nh may be NoHop.
func (v *View) Choose(nh uint16, k *flow.Key, keep uint16) uint16 {
	if nh == NoHop {
		return NoHop
	}
	vias := v.Hops[nh].Vias
	switch len(vias) {
	case 0:
		return nh
	case 1:
		return vias[0]
	}
	h := k.Hash(v.HomeSeed)
	best, rank, weight, here := uint16(0), fib.HopDead, uint64(0), false
	for _, nh := range vias {
		via := v.Hop(nh)
		r := via.State.Rank()
		if nh == keep {
			if r != fib.HopDead {
				return keep
			}
			here = true
		}
		hi, lo := bits.Mul64(h^via.weight, 0x9e3779b97f4a7c15^via.weight)
		if w := hi ^ lo; r > rank || r == rank && w >= weight {
			best, rank, weight = nh, r, w
		}
	}
	if here && rank == fib.HopDead {
		return keep // all are dead: one is as good as the other
	}
	return best
}

// NextHop is a router that a View's routes lead to.
type NextHop struct {
	Iface  uint16
	Addr   netip.Addr
	Shared bool // some route has others beside it: that it is dead should be seen soon
	State  *fib.HopState
}

// NextHops lists the routers of all routes.
func (v *View) NextHops() (out []NextHop) {
	for i := range v.vias {
		if h := &v.vias[i]; h.Kind == HopForward {
			out = append(out, NextHop{h.Iface, h.Via.Netip(h.Family), h.shared, h.State})
		}
	}
	return out
}

// RouteHops lists the routers of what a route leads to, none when it leads elsewhere.
func (v *View) RouteHops(nh uint16) (out []*Hop) {
	for _, m := range v.Hops[nh].Vias {
		out = append(out, v.Hop(m))
	}
	return out
}

// keepVias gives the routers of the View before the numbers that they had. Those that no route names any more are taken out by dropVias.
func (c *compiler) keepVias() {
	c.byVia, c.named = map[viaKey]uint16{}, map[uint16]bool{}
	if c.in.Prev == nil {
		return
	}
	c.v.vias = slices.Clone(c.in.Prev.vias)
	for i := range c.v.vias {
		if h := &c.v.vias[i]; h.Kind == HopForward {
			h.shared = false
			c.byVia[h.viaKey()] = topVia - uint16(i)
		}
	}
}

func (c *compiler) dropVias() {
	for i := range c.v.vias {
		if !c.named[topVia-uint16(i)] {
			c.v.vias[i] = Hop{Kind: HopDiscard}
		}
	}
	for n := len(c.v.vias); n > 0 && c.v.vias[n-1].Kind == HopDiscard; n-- {
		c.v.vias = c.v.vias[:n-1]
	}
	if len(c.v.Hops)+len(c.v.vias) > topVia {
		c.fail("more than %d next hops", topVia)
	}
}

// via finds or makes the router at an address on an interface.
func (c *compiler) via(iface uint16, a netip.Addr, shared bool) uint16 {
	h := Hop{Kind: HopForward, Iface: iface, Via: flow.AddrFrom(a.WithZone("")), Family: family(a)}
	nh, ok := c.byVia[h.viaKey()]
	if !ok {
		k := flow.Key{Src: h.Via, Proto: h.Family, Zone: flow.TenantID(iface), Family: 6}
		h.weight, h.State = k.Hash(c.in.HomeSeed), &fib.HopState{}
		// A number that the View before has not used either, so that no session takes the new router for its own.
		i := slices.IndexFunc(c.v.vias, func(x Hop) bool { return x.Kind == HopDiscard })
		if i < 0 {
			if i = len(c.v.vias); i >= topVia {
				c.fail("more than %d next hops", topVia)
				return 0
			}
			c.v.vias = append(c.v.vias, Hop{})
		}
		c.v.vias[i] = h
		nh = topVia - uint16(i)
		c.byVia[h.viaKey()] = nh
	}
	c.named[nh] = true
	if shared {
		c.v.vias[topVia-nh].shared = true
	}
	return nh
}

// static adds a configured route; ifaces are those of the zone.
func (c *compiler) static(zone flow.TenantID, r configs.Route, ifaces []uint16, who string) {
	if r.Discard {
		c.add(zone, r.Prefix, c.hop(Hop{Kind: HopDiscard, Family: family(r.Prefix.Addr())}))
		return
	}
	var vias []uint16
	for _, a := range r.Via {
		i := c.neighbourOf(a, r.Interface, ifaces)
		if i == 0 {
			c.fail("%s: route %s: via %s is in the prefix of none of its interfaces' addresses", who, r.Prefix, a)
			return
		}
		if nh := c.via(i, a, len(r.Via) > 1); !slices.Contains(vias, nh) {
			vias = append(vias, nh)
		}
	}
	if len(vias) == 0 {
		c.fail("%s: route %s has no next hop", who, r.Prefix)
		return
	}
	// All are of one zone, so the first stands for where the route leads.
	first := c.v.Hop(vias[0])
	c.add(zone, r.Prefix, c.hop(Hop{Kind: HopForward, Iface: first.Iface, Via: first.Via, Family: first.Family, Vias: vias}))
}

// neighbourOf is the interface that a router is a neighbour on, 0 if there is none.
func (c *compiler) neighbourOf(a netip.Addr, iface string, ifaces []uint16) uint16 {
	if a.Zone() != "" {
		iface, a = a.Zone(), a.WithZone("")
	}
	for _, i := range ifaces {
		f := &c.v.Ifaces[i]
		if iface != "" && f.Name != iface {
			continue
		}
		if a.Is6() && a.IsLinkLocalUnicast() && (iface != "" || len(ifaces) == 1) {
			return i
		}
		for _, p := range f.Addrs {
			if p.Contains(a) {
				return i
			}
		}
	}
	return 0
}
