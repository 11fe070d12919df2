package xsk

import (
	"encoding/binary"
	"math/bits"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"demarc/gateway/netlab/roottest"
	"demarc/gateway/verdict"
)

var (
	portMAC  = [6]byte{2, 0, 0, 0, 0, 1}
	groupMAC = [6]byte{0, 0, 0x5e, 0, 1, 7} // this node serves it
	group6   = [6]byte{0, 0, 0x5e, 0, 2, 7}
	awayMAC  = [6]byte{0, 0, 0x5e, 0, 1, 8} // another node does
	away6    = [6]byte{0, 0, 0x5e, 0, 2, 8}
	vrrpMAC  = [6]byte{0, 0, 0x5e, 0, 1, 9} // nobody's that we know
	otherMAC = [6]byte{2, 0, 0, 0, 0, 99}
	castMAC  = [6]byte{255, 255, 255, 255, 255, 255}
	mcastMAC = [6]byte{0x33, 0x33, 0, 0, 0, 1}
)

func cat(parts ...[]byte) []byte { return slices.Concat(parts...) }

func be(v uint16) []byte { return binary.BigEndian.AppendUint16(nil, v) }

func ether(dst [6]byte, typ uint16, rest ...[]byte) []byte {
	return cat(dst[:], []byte{2, 0, 0, 0, 0, 50}, be(typ), cat(rest...))
}

// tagged puts an 802.1Q tag into an Ethernet frame.
func tagged(vid uint16, f []byte) []byte {
	return cat(f[:12], be(0x8100), be(vid), f[12:])
}

func ip4With(options []byte, frag uint16, proto byte, src, dst string, payload ...[]byte) []byte {
	body := cat(payload...)
	s, d := netip.MustParseAddr(src).As4(), netip.MustParseAddr(dst).As4()
	return cat([]byte{0x45 + byte(len(options)/4), 0}, be(uint16(20+len(options)+len(body))), be(1), be(frag), []byte{64, proto}, be(0), s[:], d[:], options, body)
}

func ip4(proto byte, src, dst string, payload ...[]byte) []byte {
	return ip4With(nil, 0, proto, src, dst, payload...)
}

func ip6(next, hops byte, src, dst string, payload ...[]byte) []byte {
	body := cat(payload...)
	s, d := netip.MustParseAddr(src).As16(), netip.MustParseAddr(dst).As16()
	return cat([]byte{0x60, 0, 0, 0}, be(uint16(len(body))), []byte{next, hops}, s[:], d[:], body)
}

func l4(sport, dport uint16) []byte { return cat(be(sport), be(dport), make([]byte, 16)) }

func icmp(typ byte, id uint16, rest ...[]byte) []byte {
	return cat([]byte{typ, 0}, be(0), be(id), be(1), cat(rest...))
}

func arpFrame(op uint16, spa, tpa string) []byte {
	s, t := netip.MustParseAddr(spa).As4(), netip.MustParseAddr(tpa).As4()
	return cat(be(1), be(0x800), []byte{6, 4}, be(op), []byte{2, 0, 0, 0, 0, 50}, s[:], make([]byte, 6), t[:], make([]byte, 18))
}

func ndTarget(typ byte, target string) []byte {
	a := netip.MustParseAddr(target).As16()
	return cat([]byte{typ, 0, 0, 0, 0, 0, 0, 0}, a[:], []byte{1, 1, 2, 0, 0, 0, 0, 50})
}

const (
	hostA, sharedA, gateA, otherA, farA = "192.0.2.1", "192.0.2.2", "192.0.2.3", "192.0.2.77", "203.0.113.9"
	host6, shared6, gate6, other6, far6 = "2001:db8::1", "2001:db8::2", "2001:db8::3", "2001:db8::77", "2001:db8:f::9"
	allNodes, allRouters                = "ff02::1", "ff02::2"
)

func steerConfig() ProgramConfig {
	addrs := func(s ...string) (a []netip.Addr) {
		for _, x := range s {
			a = append(a, netip.MustParseAddr(x))
		}
		return a
	}
	return ProgramConfig{
		Ifindex: 1, Queues: 1, MAC: portMAC, Groups: []uint8{7, 8},
		HostPrefixes: []netip.Prefix{netip.MustParsePrefix(hostA + "/32"), netip.MustParsePrefix(host6 + "/128"),
			netip.MustParsePrefix("198.51.100.0/24"), netip.MustParsePrefix("fe80::1/128"), netip.MustParsePrefix("224.0.0.18/32")},
		Shared: addrs(sharedA, shared6), GatewayAddrs: addrs(gateA, gate6, "198.51.100.9"),
		VLANs: []VLANRules{{VLAN: 20, AddressRules: AddressRules{HostPrefixes: []netip.Prefix{netip.MustParsePrefix("203.0.113.20/32")}}}},

		SharedTCP: []uint16{22, 179}, SharedUDP: []uint16{53}, EphemeralLo: 32768, EphemeralHi: 60999,
	}
}

type steerCase struct {
	name  string
	frame []byte
	want  int
}

// routing4 is a strict source route, alert4 a router alert.
var routing4, alert4 = []byte{137, 7, 4, 203, 0, 113, 1, 0}, []byte{148, 4, 0, 0}

func steerCases() []steerCase {
	own := func(typ uint16, p ...[]byte) []byte { return ether(portMAC, typ, p...) }
	v4 := func(p []byte) []byte { return own(0x800, p) }
	v6 := func(p []byte) []byte { return own(0x86dd, p) }
	q4 := func(proto byte, src string, l []byte) []byte { return ip4(proto, src, farA, l) }
	q6 := func(proto byte, src string, l []byte) []byte { return ip6(proto, 60, src, far6, l) }
	lldp := [6]byte{1, 0x80, 0xc2, 0, 0, 14}
	dhcp := func(dst string, ch [6]byte) []byte {
		d := netip.MustParseAddr(dst).As4()
		return ip4(17, farA, dst, be(67), be(68), be(248), be(0), []byte{2, 1, 6, 0}, make([]byte, 12), d[:], make([]byte, 8), ch[:], make([]byte, 200))
	}
	return []steerCase{
		{"foreign mac", ether(otherMAC, 0x800, ip4(6, farA, hostA, l4(1, 22))), dropMAC},
		{"foreign mac, transit", ether(otherMAC, 0x800, ip4(6, farA, otherA, l4(1, 22))), dropMAC},
		{"group mac, host address", ether(groupMAC, 0x800, ip4(6, farA, hostA, l4(1, 22))), toSocket},
		{"group mac, arp for host", ether(groupMAC, 0x806, arpFrame(1, otherA, hostA)), toSocket},
		{"group mac, ipv6", ether(group6, 0x86dd, ip6(6, 64, far6, host6, l4(1, 22))), toSocket},
		{"group mac, tagged", tagged(20, ether(groupMAC, 0x800, ip4(6, farA, "203.0.113.20", l4(1, 22)))), toSocket},
		{"mac of a group that another node serves", ether(awayMAC, 0x800, ip4(6, farA, otherA, l4(1, 22))), dropNotOwner},
		{"mac of a group that another node serves, host address", ether(awayMAC, 0x800, ip4(6, farA, hostA, l4(1, 22))), dropNotOwner},
		{"mac of a group that another node serves, arp for host", ether(awayMAC, 0x806, arpFrame(1, otherA, hostA)), dropNotOwner},
		{"mac of a group that another node serves, ipv6", ether(away6, 0x86dd, ip6(6, 64, far6, other6, l4(1, 22))), dropNotOwner},
		{"mac of a group that another node serves, tagged", tagged(20, ether(awayMAC, 0x800, ip4(6, farA, otherA, l4(1, 22)))), dropNotOwner},
		{"virtual mac of nobody here", ether(vrrpMAC, 0x800, ip4(6, farA, otherA, l4(1, 22))), dropMAC},
		{"lldp", ether(lldp, 0x88cc, make([]byte, 46)), hostLink},
		{"lacp, tagged", tagged(20, ether(lldp, 0x8809, make([]byte, 46))), hostLink},
		{"stp, 802.3 length", ether([6]byte{1, 0x80, 0xc2, 0, 0, 0}, 38, make([]byte, 46)), hostLink},
		{"transit to a link control mac", ether(lldp, 0x800, ip4(6, farA, otherA, l4(1, 22))), toSocket},
		{"unknown ethertype", own(0x88cc, make([]byte, 46)), toSocket},
		{"double tag", tagged(20, tagged(20, v4(ip4(6, farA, hostA, l4(1, 22))))), toSocket},
		{"service tag", own(0x88a8, be(20), be(0x800), ip4(6, farA, hostA, l4(1, 22))), toSocket},

		{"tcp to host", v4(ip4(6, farA, hostA, l4(1, 22))), hostAddress},
		{"host, inside a prefix", v4(ip4(17, farA, "198.51.100.200", l4(1, 2))), hostAddress},
		{"gateway inside a host prefix", v4(ip4(17, farA, "198.51.100.9", l4(1, 2))), toSocket},
		{"host, later fragment", v4(ip4With(nil, 100, 17, farA, hostA, make([]byte, 30))), hostAddress},
		{"host, router alert", v4(ip4With(alert4, 0, 6, farA, hostA, l4(1, 22))), hostAddress},
		{"host, source route", v4(ip4With(routing4, 0, 6, farA, hostA, l4(1, 22))), toSocket},
		{"host, source route behind padding", v4(ip4With(cat([]byte{1, 1, 1}, routing4, []byte{0}), 0, 6, farA, hostA, l4(1, 22))), toSocket},
		{"host, option of length 0", v4(ip4With([]byte{7, 0, 0, 0}, 0, 6, farA, hostA, l4(1, 22))), toSocket},
		{"host, option of length 1", v4(ip4With([]byte{7, 1, 0, 0}, 0, 6, farA, hostA, l4(1, 22))), toSocket},
		{"host, priority tag", tagged(0xe000, v4(ip4(6, farA, hostA, l4(1, 22)))), hostAddress},
		{"host's address on a tenant's vlan", tagged(30, v4(ip4(6, farA, hostA, l4(1, 22)))), toSocket},
		{"host's address on another vlan of the host", tagged(20, v4(ip4(6, farA, hostA, l4(1, 22)))), toSocket},
		{"host's vlan", tagged(20, v4(ip4(6, farA, "203.0.113.20", l4(1, 22)))), hostAddress},
		{"that address untagged", v4(ip4(6, farA, "203.0.113.20", l4(1, 22))), toSocket},
		{"host's multicast group", ether([6]byte{1, 0, 0x5e, 0, 0, 18}, 0x800, ip4(112, farA, "224.0.0.18", make([]byte, 20))), hostAddress},
		{"other multicast group", ether([6]byte{1, 0, 0x5e, 0, 0, 5}, 0x800, ip4(89, farA, "224.0.0.5", make([]byte, 20))), toSocket},
		{"transit", v4(ip4(6, farA, otherA, l4(1, 22))), toSocket},
		{"transit, broadcast mac", ether(castMAC, 0x800, ip4(6, farA, otherA, l4(1, 22))), toSocket},
		{"gateway", v4(ip4(1, farA, gateA, icmp(8, 7))), toSocket},
		{"version 6 in ipv4", v4(cat([]byte{0x65}, ip4(6, farA, hostA, l4(1, 22))[1:])), toSocket},
		{"header length 4", v4(cat([]byte{0x44}, ip4(6, farA, hostA, l4(1, 22))[1:])), toSocket},

		{"shared, named tcp", v4(ip4(6, farA, sharedA, l4(1, 22))), hostShared},
		{"shared, tcp not named", v4(ip4(6, farA, sharedA, l4(22, 80))), toSocket},
		{"shared, tcp port named for udp", v4(ip4(6, farA, sharedA, l4(1, 53))), toSocket},
		{"shared, named udp", v4(ip4(17, farA, sharedA, l4(1, 53))), hostShared},
		{"shared, ephemeral low end", v4(ip4(6, farA, sharedA, l4(443, 32768))), hostShared},
		{"shared, below ephemeral", v4(ip4(6, farA, sharedA, l4(443, 32767))), toSocket},
		{"shared, ephemeral high end", v4(ip4(17, farA, sharedA, l4(443, 60999))), hostShared},
		{"shared, above ephemeral", v4(ip4(17, farA, sharedA, l4(443, 61000))), toSocket},
		{"shared, with options", v4(ip4With(alert4, 0, 6, farA, sharedA, l4(1, 179))), hostShared},
		{"shared, source route", v4(ip4With(routing4, 0, 6, farA, sharedA, l4(1, 22))), toSocket},
		{"shared, first fragment", v4(ip4With(nil, 0x2000, 17, farA, sharedA, l4(1, 53))), toSocket},
		{"shared, later fragment", v4(ip4With(nil, 3, 17, farA, sharedA, l4(1, 53))), toSocket},
		{"shared, sctp", v4(ip4(132, farA, sharedA, l4(1, 22))), toSocket},
		{"shared, echo request", v4(ip4(1, farA, sharedA, icmp(8, 40000))), toSocket},
		{"shared, echo reply to the host", v4(ip4(1, farA, sharedA, icmp(0, 40000))), hostShared},
		{"shared, echo reply to a ping socket", v4(ip4(1, farA, sharedA, icmp(0, 5))), hostShared},
		{"shared, echo reply to a tenant", v4(ip4(1, farA, sharedA, icmp(0, 5000))), toSocket},
		{"shared, error for the host's tcp", v4(ip4(1, otherA, sharedA, icmp(3, 0, q4(6, sharedA, l4(40000, 80))))), hostShared},
		{"shared, error for the host's server", v4(ip4(1, otherA, sharedA, icmp(11, 0, q4(6, sharedA, l4(22, 8000))))), hostShared},
		{"shared, error for the host's ping", v4(ip4(1, otherA, sharedA, icmp(11, 0, q4(1, sharedA, icmp(8, 40000))))), hostShared},
		{"shared, error for a tenant's tcp", v4(ip4(1, otherA, sharedA, icmp(3, 0, q4(6, sharedA, l4(2000, 22))))), toSocket},
		{"shared, error quoting another source", v4(ip4(1, otherA, sharedA, icmp(3, 0, q4(6, otherA, l4(40000, 80))))), toSocket},
		{"shared, error quoting a later fragment", v4(ip4(1, otherA, sharedA, icmp(3, 0, ip4With(nil, 9, 6, sharedA, farA, l4(40000, 80))))), toSocket},
		{"shared, error quoting an error", v4(ip4(1, otherA, sharedA, icmp(3, 0, q4(1, sharedA, icmp(3, 40000))))), toSocket},
		{"shared, error quoting options", v4(ip4(1, otherA, sharedA, icmp(12, 0, ip4With(alert4, 0, 17, sharedA, farA, l4(53, 9))))), hostShared},
		{"shared, timestamp reply", v4(ip4(1, farA, sharedA, icmp(14, 40000))), toSocket},

		{"dhcp broadcast", ether(castMAC, 0x800, dhcp("255.255.255.255", portMAC)), hostDHCP},
		{"dhcp unicast, not asked for", v4(dhcp(otherA, portMAC)), toSocket},
		{"dhcp to host", v4(dhcp(hostA, portMAC)), hostAddress},
		{"dhcp request, broadcast", ether(castMAC, 0x800, ip4(17, "0.0.0.0", "255.255.255.255", l4(68, 67))), toSocket},
		{"dhcp broadcast on a tenant's vlan", tagged(30, ether(castMAC, 0x800, dhcp("255.255.255.255", portMAC))), toSocket},
		{"dhcpv6 to link-local", v6(ip6(17, 64, "fe80::9", "fe80::77", l4(547, 546))), hostDHCP},
		{"dhcpv6 to transit", v6(ip6(17, 64, "fe80::9", other6, l4(547, 546))), toSocket},

		{"arp request for host", ether(castMAC, 0x806, arpFrame(1, otherA, hostA)), hostARP},
		{"arp probe for host", ether(castMAC, 0x806, arpFrame(1, "0.0.0.0", hostA)), hostARP},
		{"arp reply to host", own(0x806, arpFrame(2, otherA, hostA)), hostARP},
		{"arp for shared", ether(castMAC, 0x806, arpFrame(1, otherA, sharedA)), hostARP},
		{"arp for gateway", ether(castMAC, 0x806, arpFrame(1, otherA, gateA)), toSocket},
		{"arp reply to gateway", own(0x806, arpFrame(2, otherA, gateA)), toSocket},
		{"arp for other", ether(castMAC, 0x806, arpFrame(1, gateA, otherA)), toSocket},
		{"arp announcement where the kernel resolves", ether(castMAC, 0x806, arpFrame(1, otherA, otherA)), hostARP},
		{"arp announcement of the gateway's address", ether(castMAC, 0x806, arpFrame(1, gateA, gateA)), toSocket},
		{"arp announcement where it does not", tagged(20, ether(castMAC, 0x806, arpFrame(1, otherA, otherA))), toSocket},
		{"arp for host on a tenant's vlan", tagged(30, ether(castMAC, 0x806, arpFrame(1, otherA, hostA))), toSocket},
		{"arp, hardware length 8", ether(castMAC, 0x806, cat(arpFrame(1, otherA, hostA)[:4], []byte{8}, arpFrame(1, otherA, hostA)[5:])), toSocket},

		{"host6", v6(ip6(6, 64, far6, host6, l4(1, 22))), hostAddress},
		{"host6, hop-by-hop", v6(ip6(0, 64, far6, host6, []byte{6, 0, 5, 2, 0, 0, 1, 0}, l4(1, 22))), hostAddress},
		{"host6, routing header", v6(ip6(43, 64, far6, host6, []byte{6, 2, 0, 1, 0, 0, 0, 0}, make([]byte, 16), l4(1, 22))), toSocket},
		{"host6, routing behind options", v6(ip6(60, 64, far6, host6, []byte{43, 0, 1, 4, 0, 0, 0, 0}, []byte{6, 2, 0, 1, 0, 0, 0, 0}, make([]byte, 16), l4(1, 22))), toSocket},
		{"host6, later fragment", v6(ip6(44, 64, far6, host6, []byte{17, 0, 1, 0, 0, 0, 0, 1}, make([]byte, 30))), hostAddress},
		{"transit6", v6(ip6(6, 64, far6, other6, l4(1, 22))), toSocket},
		{"gateway6", v6(ip6(58, 64, far6, gate6, icmp(128, 1))), toSocket},
		{"shared6, named", v6(ip6(6, 64, far6, shared6, l4(1, 22))), hostShared},
		{"shared6, not named", v6(ip6(6, 64, far6, shared6, l4(1, 80))), toSocket},
		{"shared6, behind an extension header", v6(ip6(60, 64, far6, shared6, []byte{6, 0, 1, 4, 0, 0, 0, 0}, l4(1, 22))), toSocket},
		{"shared6, echo reply to the host", v6(ip6(58, 64, far6, shared6, icmp(129, 40000))), hostShared},
		{"shared6, echo reply to a tenant", v6(ip6(58, 64, far6, shared6, icmp(129, 5000))), toSocket},
		{"shared6, echo request", v6(ip6(58, 64, far6, shared6, icmp(128, 40000))), toSocket},
		{"shared6, too big for the host's tcp", v6(ip6(58, 64, far6, shared6, icmp(2, 0, q6(6, shared6, l4(40000, 80))))), hostShared},
		{"shared6, too big for a tenant", v6(ip6(58, 64, far6, shared6, icmp(2, 0, q6(6, shared6, l4(4000, 80))))), toSocket},
		{"shared6, error quoting another source", v6(ip6(58, 64, far6, shared6, icmp(1, 0, q6(6, other6, l4(40000, 80))))), toSocket},

		{"ns for host", ether(mcastMAC, 0x86dd, ip6(58, 255, "fe80::9", "ff02::1:ff00:1", ndTarget(135, host6))), hostND},
		{"ns for host, unicast", v6(ip6(58, 255, "fe80::9", host6, ndTarget(135, host6))), hostND},
		{"ns for shared", ether(mcastMAC, 0x86dd, ip6(58, 255, "fe80::9", "ff02::1:ff00:2", ndTarget(135, shared6))), hostND},
		{"ns for gateway", ether(mcastMAC, 0x86dd, ip6(58, 255, "fe80::9", "ff02::1:ff00:3", ndTarget(135, gate6))), toSocket},
		{"ns for other", ether(mcastMAC, 0x86dd, ip6(58, 255, "fe80::9", "ff02::1:ff00:77", ndTarget(135, other6))), toSocket},
		{"ns for host to a transit address", v6(ip6(58, 255, "fe80::9", other6, ndTarget(135, host6))), toSocket},
		{"na to host", v6(ip6(58, 255, "fe80::9", host6, ndTarget(136, other6))), hostND},
		{"na to the host's link-local", v6(ip6(58, 255, "fe80::9", "fe80::1", ndTarget(136, other6))), hostND},
		{"na to gateway", v6(ip6(58, 255, "fe80::9", gate6, ndTarget(136, other6))), toSocket},
		{"na unsolicited where the kernel resolves", ether(mcastMAC, 0x86dd, ip6(58, 255, "fe80::9", allNodes, ndTarget(136, other6))), hostND},
		{"na unsolicited of the gateway's address", ether(mcastMAC, 0x86dd, ip6(58, 255, "fe80::9", allNodes, ndTarget(136, gate6))), toSocket},
		{"na unsolicited where it does not", tagged(20, ether(mcastMAC, 0x86dd, ip6(58, 255, "fe80::9", allNodes, ndTarget(136, other6)))), toSocket},
		{"ra", ether(mcastMAC, 0x86dd, ip6(58, 255, "fe80::9", allNodes, icmp(134, 0, make([]byte, 8)))), hostRA},
		{"ra to a transit address", v6(ip6(58, 255, "fe80::9", other6, icmp(134, 0, make([]byte, 8)))), toSocket},
		{"ra, hop limit 64", ether(mcastMAC, 0x86dd, ip6(58, 64, "fe80::9", allNodes, icmp(134, 0, make([]byte, 8)))), toSocket},
		{"rs", ether(mcastMAC, 0x86dd, ip6(58, 255, "fe80::9", allRouters, icmp(133, 0))), toSocket},
		{"redirect to host", v6(ip6(58, 255, "fe80::9", host6, ndTarget(137, other6))), hostAddress},
		{"redirect to gateway", v6(ip6(58, 255, "fe80::9", gate6, ndTarget(137, other6))), toSocket},
	}
}

// run gives the program one frame and says what it counted and answered.
func run(t *testing.T, p *Program, frame []byte) (what int, action uint32) {
	t.Helper()
	read := func() (n [numWhats]uint64) {
		for i := range n {
			var perCPU []uint64
			if err := p.counters.Lookup(uint32(i), &perCPU); err != nil {
				t.Fatal(err)
			}
			for _, c := range perCPU {
				n[i] += c
			}
		}
		return n
	}
	before := read()
	in := slices.Clone(frame)
	out := make([]byte, len(in)+512)
	ro := ebpf.RunOptions{Data: in, DataOut: out}
	action, err := p.prog.Run(&ro)
	if err != nil {
		t.Fatalf("run a frame of %d bytes: %v", len(frame), err)
	}
	if !slices.Equal(ro.DataOut, frame) {
		t.Fatalf("the program changed the frame")
	}
	what = -1
	for i, n := range read() {
		switch n - before[i] {
		case 0:
		case 1:
			if what >= 0 {
				t.Fatalf("counted as %d and as %d", what, i)
			}
			what = i
		default:
			t.Fatalf("counter %d rose by %d", i, n-before[i])
		}
	}
	return what, action
}

const xdpDrop, xdpPass, xdpRedirect = 1, 2, 4

func actionOf(what int) uint32 {
	switch what {
	case toSocket, kept:
		return xdpRedirect
	case dropMAC, dropNoSocket, dropNotOwner:
		return xdpDrop
	}
	return xdpPass
}

func loadSteer(t *testing.T, c ProgramConfig) *Program {
	t.Helper()
	roottest.Require(t)
	p, _ := loadServing(t, c)
	return p
}

// loadServing loads the program with deadlines by which group 7 is served.
func loadServing(t *testing.T, c ProgramConfig) (*Program, *Deadlines) {
	t.Helper()
	roottest.Require(t)
	d, err := NewDeadlines()
	if err != nil {
		t.Fatalf("%+v", err)
	}
	d.Table().Write(7, 1, bootNow(t)+uint64(time.Hour))
	p, err := LoadProgram(c, d)
	if err != nil {
		t.Fatalf("%+v", err)
	}
	t.Cleanup(func() { p.Close(); d.Close() })
	return p, d
}

func bootNow(t *testing.T) uint64 {
	t.Helper()
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		t.Fatal(err)
	}
	return uint64(ts.Nano())
}

// withSocket puts a socket into queue 0; test runs go there.
func withSocket(t *testing.T, p *Program) (fd int) {
	t.Helper()
	fd, err := unix.Socket(unix.AF_XDP, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	if err := p.SetSocket(0, fd); err != nil {
		t.Fatal(err)
	}
	return fd
}

func TestSteering(t *testing.T) {
	open, closed := loadSteer(t, steerConfig()), loadSteer(t, steerConfig())
	withSocket(t, open)
	for _, c := range steerCases() {
		t.Run(c.name, func(t *testing.T) {
			if what, action := run(t, open, c.frame); what != c.want || action != actionOf(c.want) {
				t.Errorf("what %d, action %d: want %d, %d", what, action, c.want, actionOf(c.want))
			}
			want := c.want
			if want == toSocket {
				want = dropNoSocket
			}
			if what, action := run(t, closed, c.frame); what != want || action != actionOf(want) {
				t.Errorf("without a socket: what %d, action %d: want %d, %d", what, action, want, actionOf(want))
			}
		})
	}
}

// Whatever is cut off a frame, it is never the host's unless the whole one is.
func TestSteeringOfTruncatedFrames(t *testing.T) {
	p := loadSteer(t, steerConfig())
	for _, c := range steerCases() {
		whole := actionOf(c.want)
		for n := 14; n < min(len(c.frame), 160); n++ {
			what, action := run(t, p, c.frame[:n])
			if action == xdpPass && whole != xdpPass || action != xdpPass && action != xdpDrop {
				t.Errorf("%s cut to %d bytes: what %d, action %d", c.name, n, what, action)
			}
		}
	}
}

// Whose an address is does not depend on which others are known by then: an address that is asked no trie for its sum is nobody's.
func TestEachAddressIsKnown(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 4))
	some4 := func() netip.Addr { return netip.AddrFrom4([4]byte{198, 18, byte(rnd.Uint32()), byte(rnd.Uint32())}) }
	some6 := func() netip.Addr {
		a := [16]byte{0x20, 1, 0xd, 0xb8, 13: byte(rnd.Uint32()), 14: byte(rnd.Uint32()), 15: byte(rnd.Uint32())}
		return netip.AddrFrom16(a)
	}
	c := ProgramConfig{Ifindex: 1, Queues: 1, MAC: portMAC, SharedTCP: []uint16{22}}
	want := map[netip.Addr]int{} // of a segment to port 22
	for range 8 {
		for _, some := range []func() netip.Addr{some4, some6} {
			var fresh [3]netip.Addr
			for i := range fresh {
				for fresh[i] = some(); ; fresh[i] = some() {
					if _, ok := want[fresh[i]]; !ok {
						break
					}
				}
				want[fresh[i]] = []int{hostAddress, hostShared, toSocket}[i]
			}
			c.HostPrefixes, c.Shared = append(c.HostPrefixes, netip.PrefixFrom(fresh[0], fresh[0].BitLen())), append(c.Shared, fresh[1])
			c.GatewayAddrs = append(c.GatewayAddrs, fresh[2])
		}
	}
	tab, err := c.compile()
	if err != nil {
		t.Fatal(err)
	}
	set := 0
	for _, w := range tab.settings.Known {
		set += bits.OnesCount64(w)
	}
	if set == 0 || set > len(want) {
		t.Errorf("%d of 256 sums are known, of %d addresses", set, len(want))
	}
	for range 500 {
		for _, a := range []netip.Addr{some4(), some6()} {
			if _, ok := want[a]; !ok {
				want[a] = toSocket
			}
		}
	}
	frame := func(a netip.Addr) []byte {
		if a.Is4() {
			return ether(portMAC, 0x800, ip4(6, farA, a.String(), l4(1, 22)))
		}
		return ether(portMAC, 0x86dd, ip6(6, 64, far6, a.String(), l4(1, 22)))
	}
	check := func() {
		t.Helper()
		p := loadSteer(t, c)
		withSocket(t, p)
		for a, w := range want {
			if what, _ := run(t, p, frame(a)); what != w {
				t.Errorf("%s: what %d, want %d", a, what, w)
			}
		}
		// The kernel resolves here, so it hears whoever announces himself, but for the gateway's own addresses.
		for a := range want {
			wantARP := hostARP
			if slices.Contains(c.GatewayAddrs, a) {
				wantARP = toSocket
			}
			if a.Is4() {
				if what, _ := run(t, p, ether(castMAC, 0x806, arpFrame(1, a.String(), a.String()))); what != wantARP {
					t.Errorf("%s announces itself: what %d, want %d", a, what, wantARP)
				}
			}
		}
	}
	check()
	// A shorter prefix has addresses of every sum.
	more := netip.MustParsePrefix("198.18.0.0/17")
	c.HostPrefixes = append(c.HostPrefixes, more)
	for a, w := range want {
		if more.Contains(a) && w == toSocket && !slices.Contains(c.GatewayAddrs, a) {
			want[a] = hostAddress
		}
	}
	check()
}

// Host ports in Go and in the map are the same, as NAT goes by the former.
func TestHostOwnsAgrees(t *testing.T) {
	c := steerConfig()
	p := loadSteer(t, c)
	withSocket(t, p)
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 2))
	for i := range 600 {
		port := []uint16{22, 53, 179, 1023, 1024, 32767, 32768, 60999, 61000, uint16(rnd.Uint32())}[min(i, 9)]
		for proto, body := range map[byte][]byte{6: l4(9, port), 17: l4(9, port), 1: icmp(0, port)} {
			want := toSocket
			if c.HostOwns(proto, port) {
				want = hostShared
			}
			if what, _ := run(t, p, ether(portMAC, 0x800, ip4(proto, farA, sharedA, body))); what != want {
				t.Errorf("protocol %d port %d: what %d, want %d", proto, port, what, want)
			}
		}
	}
}

// Random bytes behind the Ethernet header, and random changes of the known frames, never crash and count once each.
func TestSteeringOfGarbage(t *testing.T) {
	p := loadSteer(t, steerConfig())
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 3))
	cases := steerCases()
	hosts := []netip.Prefix{netip.MustParsePrefix("198.51.100.0/24"), netip.MustParsePrefix(hostA + "/32"), netip.MustParsePrefix(sharedA + "/32"),
		netip.MustParsePrefix("203.0.113.20/32"), netip.MustParsePrefix("224.0.0.18/32"), netip.MustParsePrefix("255.255.255.255/32")}
	for range 3000 {
		f := slices.Clone(cases[rnd.IntN(len(cases))].frame)
		for range rnd.IntN(6) {
			f[12+rnd.IntN(len(f)-12)] = byte(rnd.Uint32())
		}
		f = f[:14+rnd.IntN(len(f)-13)]
		what, action := run(t, p, f)
		if what < 0 || action != actionOf(what) {
			t.Fatalf("what %d, action %d for % x", what, action, f)
		}
		at := 14
		if binary.BigEndian.Uint16(f[12:]) == 0x8100 {
			at = 18
		}
		if action == xdpPass && len(f) >= at+20 && binary.BigEndian.Uint16(f[at-2:]) == 0x800 {
			dst := netip.AddrFrom4([4]byte(f[at+16:]))
			if !slices.ContainsFunc(hosts, func(p netip.Prefix) bool { return p.Contains(dst) }) {
				t.Fatalf("transit to %s was passed to the host: % x", dst, f)
			}
		}
	}
}

func TestSettings(t *testing.T) {
	dhcp := func(ch [6]byte, yiaddr string) []byte {
		y := netip.MustParseAddr(yiaddr).As4()
		return ether(portMAC, 0x800, ip4(17, farA, otherA, be(67), be(68), be(248), be(0), []byte{2, 1, 6, 0}, make([]byte, 12), y[:], make([]byte, 8), ch[:], make([]byte, 200)))
	}
	c := steerConfig()
	c.AcceptAllMAC, c.DHCPUnicast = true, true
	p := loadSteer(t, c)
	withSocket(t, p)
	for _, x := range []steerCase{
		{"foreign mac accepted, never the host's", ether(otherMAC, 0x800, ip4(6, farA, hostA, l4(1, 22))), toSocket},
		{"dhcp answer to this port", dhcp(portMAC, otherA), hostDHCP},
		{"dhcp answer to another client", dhcp(otherMAC, otherA), toSocket},
		{"dhcp answer that offers another address", dhcp(portMAC, gateA), toSocket},
	} {
		if what, _ := run(t, p, x.frame); what != x.want {
			t.Errorf("%s: what %d, want %d", x.name, what, x.want)
		}
	}
}

// An update changes rules and keeps sockets and counters; a bad one changes nothing.
func TestUpdate(t *testing.T) {
	c := steerConfig()
	p := loadSteer(t, c)
	withSocket(t, p)
	ssh := ether(portMAC, 0x800, ip4(6, farA, sharedA, l4(1, 22)))
	http := ether(portMAC, 0x800, ip4(6, farA, sharedA, l4(1, 80)))
	check := func(step string, wantSSH, wantHTTP int) {
		t.Helper()
		a, _ := run(t, p, ssh)
		b, _ := run(t, p, http)
		if a != wantSSH || b != wantHTTP {
			t.Errorf("%s: ssh %d, http %d: want %d, %d", step, a, b, wantSSH, wantHTTP)
		}
	}
	check("before", hostShared, toSocket)
	c.SharedTCP = []uint16{80}
	if err := p.Update(c); err != nil {
		t.Fatal(err)
	}
	check("after", toSocket, hostShared)
	bad := c
	bad.GatewayAddrs = append(slices.Clone(bad.GatewayAddrs), netip.MustParseAddr(hostA))
	if err := p.Update(bad); err == nil {
		t.Error("an address of both host and gateway that is not named as shared was accepted")
	}
	bad = c
	bad.Queues = 2
	if err := p.Update(bad); err == nil {
		t.Error("another number of queues was accepted")
	}
	check("after refused updates", toSocket, hostShared)
	n, err := p.Counters()
	if err != nil {
		t.Fatal(err)
	}
	if n.Socket != 3 || n.HostShared != 3 || n.Host() != 3 {
		t.Errorf("counters were not kept: %+v", n)
	}
	if err := p.ClearSocket(0); err != nil {
		t.Fatal(err)
	}
	check("closed", dropNoSocket, hostShared)
	if n, _ := p.Counters(); n.Dropped[verdict.XDPNoSocket] != 1 {
		t.Errorf("no socket: counted %d", n.Dropped[verdict.XDPNoSocket])
	}
	if err := p.ClearSocket(0); err != nil {
		t.Errorf("closing a closed queue: %v", err)
	}
}

func TestConfigErrors(t *testing.T) {
	for name, change := range map[string]func(*ProgramConfig){
		"no queue":            func(c *ProgramConfig) { c.Queues = 0 },
		"ephemeral backwards": func(c *ProgramConfig) { c.EphemeralHi = 1 },
		"vlan 4095":           func(c *ProgramConfig) { c.VLANs[0].VLAN = 4095 },
		"vlan 0":              func(c *ProgramConfig) { c.VLANs[0].VLAN = 0 },
		"vlan twice":          func(c *ProgramConfig) { c.VLANs = append(c.VLANs, c.VLANs[0]) },
		"group 0":             func(c *ProgramConfig) { c.Groups = []uint8{1, 0} },
		"zero prefix":         func(c *ProgramConfig) { c.HostPrefixes = []netip.Prefix{{}} },
		"zero address":        func(c *ProgramConfig) { c.Shared = []netip.Addr{{}} },
		"zero gateway":        func(c *ProgramConfig) { c.GatewayAddrs = []netip.Addr{{}} },
	} {
		c := steerConfig()
		change(&c)
		if _, err := c.compile(); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	c := steerConfig()
	if _, err := c.compile(); err != nil {
		t.Errorf("the good one was refused: %v", err)
	}
}
