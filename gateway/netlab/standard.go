package netlab

import (
	"fmt"
	"net"
	"net/netip"
)

// Addresses of the standard lab. Both tenants use the same inside prefix on purpose.
const (
	Inside4    = "198.18.10.0/24"
	InsideGW4  = "198.18.10.1"
	AlphaNet6  = "2001:db8:a::/64"
	BetaNet6   = "2001:db8:b::/64"
	PublicNet4 = "203.0.113.0/24"
	PublicNet6 = "2001:db8:ff::/64"
	PublicGW4  = "203.0.113.1"
	PublicGW6  = "2001:db8:ff::1"
	AlphaPool  = "192.0.2.16/28"
	BetaPool   = "192.0.2.32/28"
	PoolRoute  = "192.0.2.0/24" // what the public hosts send to the gateway
)

// Namespaces and devices of the standard lab.
const (
	GW         = "gw"
	HostDevice = "eth0"
	AlphaPort  = "alpha0"
	BetaPort   = "beta0"
	PublicPort = "bb0"
)

// Host is one host of the standard lab; its namespace has its name.
type Host struct {
	Name   string
	V4, V6 netip.Addr
}

// Topology is the standard lab: two hosts of tenant alpha on the gateway's port alpha0, two of beta on beta0, two public ones on bb0, each
// three joined by a learning switch. The gateway's namespace has the bare ports: no address, no route, no forwarding.
type Topology struct {
	*Lab
	Alpha1, Alpha2, Beta1, Beta2, Public1, Public2 Host
}

// Hosts are all six.
func (t *Topology) Hosts() []Host {
	return []Host{t.Alpha1, t.Alpha2, t.Beta1, t.Beta2, t.Public1, t.Public2}
}

// Options of the standard lab.
type Options struct {
	Queues int // of each gateway port; 0 = 1
	MTU    int // of everything; 0 = 1500

	Redirects bool // the gateway's ports take redirected frames: their far ends have NAPI
}

// Standard builds the standard lab. On error nothing is left.
func Standard(name string, o Options) (*Topology, error) {
	l, err := New(name)
	if err != nil {
		return nil, err
	}
	t := &Topology{Lab: l}
	if err := t.build(o); err != nil {
		l.Close()
		return nil, err
	}
	return t, nil
}

func (t *Topology) build(o Options) error {
	if err := t.AddNamespace(GW); err != nil {
		return err
	}
	sides := []struct {
		side          byte
		sw, port      string
		net4, gw4     string
		net6          string
		first, second *Host
		names         [2]string
	}{
		{0xa, "sw-alpha", AlphaPort, Inside4, InsideGW4, AlphaNet6, &t.Alpha1, &t.Alpha2, [2]string{"alpha1", "alpha2"}},
		{0xb, "sw-beta", BetaPort, Inside4, InsideGW4, BetaNet6, &t.Beta1, &t.Beta2, [2]string{"beta1", "beta2"}},
		{0xf, "sw-public", PublicPort, PublicNet4, PublicGW4, PublicNet6, &t.Public1, &t.Public2, [2]string{"public1", "public2"}},
	}
	for _, s := range sides {
		if err := t.AddSwitch(s.sw); err != nil {
			return err
		}
		if err := t.Plug(s.sw, End{NS: GW, Name: s.port, MAC: labMAC(s.side, 1)}, o.Queues, o.MTU); err != nil {
			return err
		}
		if o.Redirects {
			if err := t.TakesRedirected(s.sw, PortName(End{NS: GW, Name: s.port}), true); err != nil {
				return err
			}
		}
		net4, net6 := netip.MustParsePrefix(s.net4), netip.MustParsePrefix(s.net6)
		gw4, gw6 := netip.MustParseAddr(s.gw4), hostAddr(net6, 1)
		for i, h := range []*Host{s.first, s.second} {
			n := byte(0x11 + i)
			*h = Host{Name: s.names[i], V4: hostAddr(net4, 11+byte(i)), V6: hostAddr(net6, n)}
			if err := t.AddNamespace(h.Name); err != nil {
				return err
			}
			addrs := []netip.Prefix{netip.PrefixFrom(h.V4, net4.Bits()), netip.PrefixFrom(h.V6, net6.Bits())}
			if err := t.Plug(s.sw, End{NS: h.Name, Name: HostDevice, MAC: labMAC(s.side, n), Addrs: addrs}, 1, o.MTU); err != nil {
				return err
			}
			routes := []string{"0.0.0.0/0", "::/0"}
			if s.side == 0xf { // the public side knows the gateway's networks and nothing else
				routes = []string{PoolRoute, AlphaNet6, BetaNet6}
			}
			for _, r := range routes {
				p, via := netip.MustParsePrefix(r), gw4
				if p.Addr().Is6() {
					via = gw6
				}
				if err := t.AddRoute(h.Name, p, via); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// hostAddr is host n of a prefix: 198.18.10.11 and 2001:db8:a::11 read the same.
func hostAddr(p netip.Prefix, n byte) netip.Addr {
	b := p.Masked().Addr().AsSlice()
	b[len(b)-1] = n
	a, _ := netip.AddrFromSlice(b) // 4 or 16 bytes by construction
	return a
}

// labMAC is a locally administered address that tells side and host.
func labMAC(side, n byte) net.HardwareAddr { return net.HardwareAddr{0x02, 0xd3, 0, 0, side, n} }

// String shows who is where, for a person.
func (t *Topology) String() string {
	s := ""
	for _, h := range t.Hosts() {
		s += fmt.Sprintf("  %-28s %-14s %s\n", t.NetNS(h.Name), h.V4, h.V6)
	}
	return s
}
