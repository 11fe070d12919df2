package snapshot

import (
	"fmt"
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
	over   string // Hop.over
}

func (h *Hop) viaKey() viaKey { return viaKey{h.Iface, h.Family, h.Via, fmt.Sprint(h.over)} }

// Hop is next hop nh, which is not NoHop: of a route (what Lookup gives), or a router (what Choose gives).
func (v *View) Hop(nh uint16) *Hop {
	if int(nh) < len(v.Hops) {
		return &v.Hops[nh]
	}
	return &v.vias[topVia-nh]
}

// Leave reports whether conversations are to go on by another router than nh, if there is one: to nh nothing may be sent now, or it stands in for others and one of them is settled again. nh may be NoHop.
func (v *View) Leave(nh uint16) bool {
	if !v.MayLeave(nh) {
		return false
	}
	h := &v.vias[topVia-nh]
	return h.State.Dead() || h.over != nil && v.anySettled(h.over)
}

// MayLeave reports whether Leave is worth asking: nh is dead, or stands in for others. It is asked for each packet.
func (v *View) MayLeave(nh uint16) bool {
	i := int(topVia - nh)
	return i < len(v.first) && v.first[i].Dead()
}

// standsIn is what MayLeave sees of a router that stands in for others: dead for good.
var standsIn = func() *fib.HopState {
	s := &fib.HopState{}
	s.Silent(0)
	return s
}()

func (v *View) anySettled(vias []uint16) bool {
	for _, nh := range vias {
		if v.Hop(nh).State.Settled() {
			return true
		}
	}
	return false
}

// Choose turns the next hop of a route into that of one conversation, which k is the key of (of its first packet, for both directions). Where
// the route has several routers each gets its share by highest random weight: of all hashes of conversation and router, the
// highest, so that when one dies only its own conversations go elsewhere. keep is where the conversation is now, or NoHop: it stays
// there while that router is one of the route's and not dead, also when another that it had before has come back. What stands in for others gets conversations, and
// keeps them, only while none of these is settled. nh may be NoHop.
func (v *View) Choose(nh uint16, k *flow.Key, keep uint16) uint16 {
	if nh == NoHop {
		return NoHop
	}
	vias, backups := v.Hops[nh].Vias, v.Hops[nh].Backups
	switch {
	case len(vias) == 0:
		return nh
	case len(vias) == 1 && len(backups) == 0:
		return vias[0]
	}
	c := choice{hash: k.Hash(v.HomeSeed), keep: keep, rank: fib.HopDead}
	if v.among(vias, &c, true) {
		return keep
	}
	if len(backups) > 0 && !v.anySettled(vias) {
		if v.anySettled(backups) {
			c.rank = min(c.rank, fib.HopAsked) // it is better than one that has just come back
		}
		if v.among(backups, &c, false) {
			return keep
		}
	}
	if c.here && c.rank == fib.HopDead {
		return keep // all are dead: one is as good as the other
	}
	return c.best
}

// choice is the best router so far.
type choice struct {
	hash   uint64
	keep   uint16
	here   bool // keep is one of them, and dead
	best   uint16
	rank   fib.Rank
	weight uint64
}

// among goes on with a choice among more routers: one is better by its rank, or by its weight where the best one is of these. It reports whether keep is one of them that lives.
func (v *View) among(vias []uint16, c *choice, mine bool) bool {
	for _, nh := range vias {
		via := v.Hop(nh)
		r := via.State.Rank()
		if nh == c.keep {
			if r != fib.HopDead {
				return true
			}
			c.here = true
		}
		hi, lo := bits.Mul64(c.hash^via.weight, 0x9e3779b97f4a7c15^via.weight)
		if w := hi ^ lo; r > c.rank || r == c.rank && mine && w >= c.weight {
			c.best, c.rank, c.weight, mine = nh, r, w, true
		}
	}
	return false
}

// NextHop is a router that a View's routes lead to.
type NextHop struct {
	Iface  uint16
	Addr   netip.Addr
	Shared bool // some route has others beside it: that it is dead should be seen soon
	Backup bool // it only stands in for others
	State  *fib.HopState
}

// NextHops lists the routers of all routes, each once.
func (v *View) NextHops() (out []NextHop) {
	at := map[*fib.HopState]int{}
	for i := range v.vias {
		h := &v.vias[i]
		if h.Kind != HopForward {
			continue
		}
		n, known := at[h.State]
		if !known {
			n = len(out)
			at[h.State] = n
			out = append(out, NextHop{h.Iface, h.Via.Netip(h.Family), false, true, h.State})
		}
		out[n].Shared = out[n].Shared || h.shared
		out[n].Backup = out[n].Backup && h.over != nil
	}
	return out
}

// Over lists what a router stands in for.
func (v *View) Over(h *Hop) (out []*Hop) {
	for _, nh := range h.over {
		out = append(out, v.Hop(nh))
	}
	return out
}

// StandsIn lists the routers that stand in for one.
func (v *View) StandsIn(iface uint16, a netip.Addr) (out []*Hop) {
	for i := range v.vias {
		for _, nh := range v.vias[i].over {
			if h := v.Hop(nh); h.Iface == iface && h.Via.Netip(h.Family) == a {
				out = append(out, &v.vias[i])
				break
			}
		}
	}
	return out
}

// RouteHop is a router of a route.
type RouteHop struct {
	*Hop
	Backup bool // it stands in for those that are not
	Takes  bool // conversations go there now: those that begin, and who has it already stays
}

// RouteHops lists the routers of what a route leads to, none when it leads elsewhere.
func (v *View) RouteHops(nh uint16) (out []RouteHop) {
	r := &v.Hops[nh]
	add := func(vias []uint16, backup bool) (best fib.Rank) {
		for _, m := range vias {
			h := v.Hop(m)
			best = max(best, h.State.Rank())
			out = append(out, RouteHop{Hop: h, Backup: backup})
		}
		return best
	}
	first, second := add(r.Vias, false), add(r.Backups, true)
	before := first
	if v.anySettled(r.Backups) {
		before = min(first, fib.HopAsked)
	}
	backup := !v.anySettled(r.Vias) && second > before
	for i := range out {
		h := &out[i]
		h.Takes = h.Backup == backup && !h.State.Dead() && h.State.Rank() == map[bool]fib.Rank{false: first, true: second}[backup]
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
	c.v.first = make([]*fib.HopState, len(c.v.vias))
	for i := range c.v.vias {
		if c.v.first[i] = c.v.vias[i].State; c.v.vias[i].over != nil {
			c.v.first[i] = standsIn
		}
	}
	if len(c.v.Hops)+len(c.v.vias) > topVia {
		c.fail("more than %d next hops", topVia)
	}
}

// via finds or makes the router at an address on an interface; over: what it stands in for, nil for nothing.
func (c *compiler) via(iface uint16, a netip.Addr, over []uint16, shared bool) uint16 {
	h := Hop{Kind: HopForward, Iface: iface, Via: flow.AddrFrom(a.WithZone("")), Family: family(a), over: over}
	nh, ok := c.byVia[h.viaKey()]
	if !ok {
		k := flow.Key{Src: h.Via, Proto: h.Family, Zone: flow.TenantID(iface), Family: 6}
		h.weight, h.State = k.Hash(c.in.HomeSeed), c.stateOf(&h)
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

// stateOf is the state of a router: one, whatever it is to how many routes.
func (c *compiler) stateOf(h *Hop) *fib.HopState {
	for i := range c.v.vias {
		if x := &c.v.vias[i]; x.Kind == HopForward && x.Iface == h.Iface && x.Family == h.Family && x.Via == h.Via {
			return x.State
		}
	}
	return &fib.HopState{}
}

// static adds a configured route; ifaces are those of the zone.
func (c *compiler) static(zone flow.TenantID, r configs.Route, ifaces []uint16, who string) {
	if r.Discard {
		c.add(zone, r.Prefix, c.hop(Hop{Kind: HopDiscard, Family: family(r.Prefix.Addr())}))
		return
	}
	routers := func(key string, list []netip.Addr, over []uint16) (vias []uint16, ok bool) {
		for _, a := range list {
			i := c.neighbourOf(a, r.Interface, ifaces)
			if i == 0 {
				c.fail("%s: route %s: %s %s is in the prefix of none of its interfaces' addresses", who, r.Prefix, key, a)
				return nil, false
			}
			if nh := c.via(i, a, over, len(r.Via)+len(r.Backup) > 1); !slices.Contains(vias, nh) {
				vias = append(vias, nh)
			}
		}
		return vias, true
	}
	vias, ok := routers("via", r.Via, nil)
	if !ok {
		return
	}
	backups, ok := routers("backup", r.Backup, slices.Sorted(slices.Values(vias)))
	if !ok {
		return
	}
	if len(vias) == 0 {
		c.fail("%s: route %s has no next hop", who, r.Prefix)
		return
	}
	// All are of one zone, so the first stands for where the route leads.
	first := c.v.Hop(vias[0])
	c.add(zone, r.Prefix, c.hop(Hop{Kind: HopForward, Iface: first.Iface, Via: first.Via, Family: first.Family, Vias: vias, Backups: backups}))
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
