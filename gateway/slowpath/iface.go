package slowpath

import (
	"net/netip"

	"demarc/gateway/flow"
)

// LinkLocal is the fe80::/64 address that an interface with this MAC gets. The kernel has the modified EUI-64 of the same MAC (RFC 4291
// appendix A) on the same device, so ours is another stable identifier (RFC 7136): "de:6a" in place of "ff:fe".
func LinkLocal(mac [6]byte) netip.Addr {
	return netip.AddrFrom16([16]byte{0xfe, 0x80, 8: mac[0] ^ 2, mac[1], mac[2], 0xde, 0x6a, mac[3], mac[4], mac[5]})
}

// claim says whose an address is on an interface.
type claim uint8

const (
	foreign claim = iota
	own
	proxied
	hosts // the kernel's: it answers, we do not
)

// netif is an Interface prepared for look-ups.
type netif struct {
	Interface
	linkLocal netip.Addr
	shared    map[netip.Addr]bool
	own       map[netip.Addr]bool
	virtual   map[netip.Addr]virtual // addresses of groups, NAT addresses of their tenants included
	isVirtual map[[6]byte]bool       // MACs of groups

	asked, answered uint64    // ns: theoretical arrival times of what leaves here, see allow
	first           uint64    // the same: of answers that are the first ones of a station
	defended        [2]uint64 // the same: of what is announced in defence of others' addresses that are answered for here, and of own ones
	complained      uint64    // ns: when a duplicate was last logged; 0 = never
	moved           uint64    // ns: when a moved neighbour was last logged; 0 = never
	probed          uint64    // ns: when a station that asked for one of our addresses was; 0 = never

	listen listener
}

// virtual is what an address of a group is.
type virtual struct {
	group *Group
	is    claim // own, or proxied
}

func newNetif(c Interface) *netif {
	f := &netif{Interface: c, linkLocal: LinkLocal(c.MAC), shared: map[netip.Addr]bool{}, own: map[netip.Addr]bool{}}
	for _, a := range c.HostShared {
		f.shared[a.Unmap()] = true
	}
	for _, p := range c.Addrs {
		f.own[p.Addr().Unmap()] = true
	}
	f.own[f.linkLocal] = true
	for i := range c.Groups {
		f.group(&c.Groups[i])
	}
	return f
}

// group notes what a group has here.
func (f *netif) group(g *Group) {
	if f.virtual == nil {
		f.virtual, f.isVirtual = map[netip.Addr]virtual{}, map[[6]byte]bool{}
	}
	for _, a := range g.Proxy {
		f.virtual[a.Unmap()] = virtual{g, proxied}
	}
	for _, a := range g.Addrs {
		f.virtual[a.Unmap()] = virtual{g, own}
	}
	for _, mac := range [][6]byte{g.MAC4, g.MAC6} {
		f.isVirtual[mac] = mac != f.MAC
	}
}

// sends reports whether a MAC is one that the gateway itself, or with a group another node of its, sends from.
func (f *netif) sends(mac [6]byte) bool { return mac == f.MAC || f.isVirtual[mac] }

// from is the group that an address is of, nil = none, and the MAC that is told for it.
func (f *netif) from(a netip.Addr) (g *Group, mac [6]byte) {
	g = f.virtual[a].group
	switch {
	case g == nil:
		return nil, f.MAC
	case a.Is4():
		return g, g.MAC4
	}
	return g, g.MAC6
}

func (f *netif) claims(a netip.Addr) claim {
	switch {
	case f.shared[a]:
		return hosts
	case f.own[a]:
		return own
	}
	if v, ok := f.virtual[a]; ok {
		return v.is
	}
	for _, p := range f.Proxy {
		if p.Contains(a) {
			return proxied
		}
	}
	return foreign
}

// onLink reports whether a is in the prefix of one of the interface's addresses, and so may be a neighbour there.
func (f *netif) onLink(a netip.Addr) bool {
	if a.Is6() && a.IsLinkLocalUnicast() {
		return true
	}
	for _, p := range f.Addrs {
		if p.Contains(a) {
			return true
		}
	}
	return false
}

// host reports whether a can be a single station's address on this link: only such a one is worth asking for.
func (f *netif) host(a netip.Addr) bool {
	if !a.IsValid() || a.IsUnspecified() || a.IsMulticast() || a.IsLoopback() || a == netip.AddrFrom4([4]byte{255, 255, 255, 255}) {
		return false
	}
	if !a.Is4() {
		return true
	}
	for _, p := range f.Addrs {
		if p.Contains(a) && p.Bits() < 31 && (a == p.Masked().Addr() || a == last(p)) {
			return false // the network itself, or its broadcast address
		}
	}
	return true
}

// last is the highest address of an IPv4 prefix.
func last(p netip.Prefix) netip.Addr {
	b := p.Masked().Addr().As4()
	for i := p.Bits(); i < 32; i++ {
		b[i/8] |= 0x80 >> (i % 8)
	}
	return netip.AddrFrom4(b)
}

// source is the address to ask for target with: that of the same prefix first (a station may ignore a question from
// elsewhere), for IPv6 then the link-local one (RFC 4861 section 7.2.2 leaves the choice; every neighbour can answer it), then any. byKernel means that the
// fitting one is the kernel's: the answer would go to the kernel, so the kernel must ask.
func (f *netif) source(target netip.Addr) (src netip.Addr, byKernel bool) {
	v6 := !target.Is4()
	if v6 && target.IsLinkLocalUnicast() {
		return f.linkLocal, f.shared[f.linkLocal]
	}
	var kernels, any netip.Addr
	for _, p := range f.Addrs {
		a := p.Addr().Unmap()
		switch {
		case a.Is4() == v6:
		case !p.Contains(target):
			if !f.shared[a] && !any.IsValid() {
				any = a
			}
		case !f.shared[a]:
			return a, false
		default:
			kernels = a
		}
	}
	switch {
	case kernels.IsValid():
		return kernels, true
	case v6:
		return f.linkLocal, f.shared[f.linkLocal]
	case any.IsValid():
		return any, false
	}
	for _, p := range f.Addrs {
		if a := p.Addr().Unmap(); a.Is4() {
			return a, true // only the kernel's are left
		}
	}
	return netip.IPv4Unspecified(), false // unnumbered: asked as RFC 5227 probes do
}

func keyOf(iface uint16, a netip.Addr) key {
	k := key{addr: flow.AddrFrom(a), iface: iface, family: 4}
	if !a.Is4() {
		k.family = 6
	}
	return k
}
