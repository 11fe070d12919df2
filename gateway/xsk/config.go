package xsk

import (
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"
)

// AddressRules says whose addresses are on one link. The longest prefix decides.
type AddressRules struct {
	HostPrefixes []netip.Prefix // wholly the kernel's; multicast groups too, where the host wants to hear them
	Shared       []netip.Addr   // the kernel's for ports of the host's (ProgramConfig.HostOwns), else the gateway's; the kernel resolves
	GatewayAddrs []netip.Addr   // the gateway's, also inside a host prefix: everything, ARP and ND too, goes to the socket
}

// VLANRules are the rules of a VLAN on which the host has a device of its own.
type VLANRules struct {
	VLAN uint16 // 1 to 4094
	AddressRules
}

// ProgramConfig is what the XDP program of one port goes by. On a VLAN that is not listed nothing is the host's, so that a
// tenant may use any address there.
type ProgramConfig struct {
	Ifindex, Queues int
	MAC             [6]byte
	Groups          []uint8 // ids of those that have virtual MACs here; frames to these are never the host's, and dropped but while this node serves the group
	AcceptAllMAC    bool    // frames for other MACs go to the socket instead of being dropped
	DHCPUnicast     bool    // the host has a DHCP client here that takes answers sent to the address being offered

	// Of untagged frames.
	HostPrefixes []netip.Prefix
	Shared       []netip.Addr
	GatewayAddrs []netip.Addr
	VLANs        []VLANRules

	// Ports of Shared addresses that are the host's.
	SharedTCP, SharedUDP     []uint16
	EphemeralLo, EphemeralHi uint16 // the kernel's own range, both ends included; 0, 0: none
}

// HostOwns says whether, on a shared address, a port (TCP, UDP; source port of what an ICMP error quotes) or an ICMP echo
// identifier is the host's. NAT must never hand those out. Of identifiers the host has its ephemeral range and all
// below 1024: an echo reply does not show who asked, so the host's own ping works with those (the kernel's ping sockets count
// up from 1; ping -e N sets one) and a tenant's ping works with the rest.
func (c *ProgramConfig) HostOwns(proto uint8, port uint16) bool {
	var named []uint16
	switch proto {
	case unix.IPPROTO_TCP:
		named = c.SharedTCP
	case unix.IPPROTO_UDP:
		named = c.SharedUDP
	case unix.IPPROTO_ICMP, unix.IPPROTO_ICMPV6:
		if port < 1024 {
			return true
		}
	default:
		return false
	}
	if c.EphemeralHi != 0 && port >= c.EphemeralLo && port <= c.EphemeralHi {
		return true
	}
	for _, p := range named {
		if p == port {
			return true
		}
	}
	return false
}

// Classes of an address, as enum class in bpf/steer.c.
const (
	classHost    = uint32(1)
	classShared  = uint32(2)
	classGateway = uint32(3)
)

// Bits of a VLAN's word and of settings.flags, as in bpf/steer.c.
const (
	vlanHost      = uint32(1)
	vlanResolves4 = uint32(2)
	vlanResolves6 = uint32(4)

	flagAnyMAC      = uint16(1)
	flagDHCPUnicast = uint16(2)
)

type settings struct {
	MAC   [6]byte
	Flags uint16
	Ahead int64
	Known [4]uint64
}

// know notes an address, or those of a prefix, as one that may be in the tries: known in bpf/steer.c.
func (s *settings) know(p netip.Prefix) {
	if p.Bits() < p.Addr().BitLen() { // addresses of every sum
		s.Known = [4]uint64{^uint64(0), ^uint64(0), ^uint64(0), ^uint64(0)}
		return
	}
	sum := byte(0)
	for _, b := range p.Addr().AsSlice() {
		sum ^= b
	}
	s.Known[sum>>6] |= 1 << (sum & 63)
}

// VirtualMACs are those of a group for IPv4 and for IPv6 (RFC 9568 section 7.3).
func VirtualMACs(id uint8) [2][6]byte {
	return [2][6]byte{{0, 0, 0x5e, 0, 1, id}, {0, 0, 0x5e, 0, 2, id}}
}

type key4 struct {
	PrefixLen, VID uint32
	Addr           [4]byte
}

type key6 struct {
	PrefixLen, VID uint32
	Addr           [16]byte
}

// tables is a ProgramConfig as the program's maps hold it.
type tables struct {
	settings settings
	macs     map[[8]byte]uint32
	addrs4   map[key4]uint32
	addrs6   map[key6]uint32
	ports    [3 * 1024]uint64
	vlans    [4096]uint32
}

func (c *ProgramConfig) compile() (*tables, error) {
	if c.Queues < 1 || c.Queues > 4096 {
		return nil, fmt.Errorf("%d queues: must be 1 to 4096", c.Queues)
	}
	if c.EphemeralLo > c.EphemeralHi {
		return nil, fmt.Errorf("ephemeral range %d to %d: ends before it begins", c.EphemeralLo, c.EphemeralHi)
	}
	t := &tables{settings: settings{MAC: c.MAC}, macs: map[[8]byte]uint32{}, addrs4: map[key4]uint32{}, addrs6: map[key6]uint32{}}
	if c.AcceptAllMAC {
		t.settings.Flags |= flagAnyMAC
	}
	if c.DHCPUnicast {
		t.settings.Flags |= flagDHCPUnicast
	}
	for _, id := range c.Groups {
		if id == 0 {
			return nil, fmt.Errorf("group 0: ids are 1 to 255")
		}
		for _, m := range VirtualMACs(id) {
			t.macs[[8]byte(append(m[:], 0, 0))] = uint32(id)
		}
	}
	for row, proto := range []uint8{unix.IPPROTO_TCP, unix.IPPROTO_UDP, unix.IPPROTO_ICMP} { // CLASS_TCP, CLASS_UDP, CLASS_ICMP
		for p := range 1 << 16 {
			if c.HostOwns(proto, uint16(p)) {
				t.ports[row*1024+p>>6] |= 1 << (p & 63)
			}
		}
	}
	if err := t.addVLAN(0, &AddressRules{c.HostPrefixes, c.Shared, c.GatewayAddrs}); err != nil {
		return nil, err
	}
	for i := range c.VLANs {
		v := &c.VLANs[i]
		if v.VLAN < 1 || v.VLAN > 4094 {
			return nil, fmt.Errorf("vlan %d: must be 1 to 4094", v.VLAN)
		}
		if t.vlans[v.VLAN] != 0 {
			return nil, fmt.Errorf("vlan %d: named twice", v.VLAN)
		}
		if err := t.addVLAN(v.VLAN, &v.AddressRules); err != nil {
			return nil, fmt.Errorf("vlan %d: %w", v.VLAN, err)
		}
	}
	return t, nil
}

func (t *tables) addVLAN(vid uint16, r *AddressRules) error {
	t.vlans[vid] |= vlanHost
	for _, p := range r.HostPrefixes {
		if !p.IsValid() {
			return fmt.Errorf("host prefix %v: is not a prefix", p)
		}
		t.set(vid, p, classHost)
	}
	for _, a := range r.Shared {
		if !a.IsValid() {
			return fmt.Errorf("shared address %v: is not an address", a)
		}
		a = a.Unmap().WithZone("")
		t.set(vid, netip.PrefixFrom(a, a.BitLen()), classShared)
		if a.Is4() {
			t.vlans[vid] |= vlanResolves4
		} else {
			t.vlans[vid] |= vlanResolves6
		}
	}
	for _, a := range r.GatewayAddrs {
		if !a.IsValid() {
			return fmt.Errorf("gateway address %v: is not an address", a)
		}
		a = a.Unmap().WithZone("")
		p := netip.PrefixFrom(a, a.BitLen())
		switch t.get(vid, p) {
		case classShared: // the kernel resolves
		case classHost:
			return fmt.Errorf("address %s is the host's and the gateway's: name it as shared", a)
		default:
			t.set(vid, p, classGateway)
		}
	}
	return nil
}

func makeKey4(vid uint16, p netip.Prefix) key4 {
	return key4{uint32(32 + p.Bits()), uint32(vid), p.Masked().Addr().As4()}
}

func makeKey6(vid uint16, p netip.Prefix) key6 {
	return key6{uint32(32 + p.Bits()), uint32(vid), p.Masked().Addr().As16()}
}

func (t *tables) set(vid uint16, p netip.Prefix, class uint32) {
	t.settings.know(p)
	if p.Addr().Is4() {
		t.addrs4[makeKey4(vid, p)] = class
	} else {
		t.addrs6[makeKey6(vid, p)] = class
	}
}

func (t *tables) get(vid uint16, p netip.Prefix) uint32 {
	if p.Addr().Is4() {
		return t.addrs4[makeKey4(vid, p)]
	}
	return t.addrs6[makeKey6(vid, p)]
}
