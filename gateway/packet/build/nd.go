package build

import (
	"demarc/gateway/flow"
	"demarc/gateway/packet"
	"demarc/gateway/packet/csum"
)

// ND is a neighbour discovery message (RFC 4861). Target is zero in router messages; in a redirect it is the better first hop.
type ND struct {
	Type             uint8 // ICMPv6 type, 133..137
	Src, Dst, Target [16]byte
	LLA              [6]byte // source link-layer address, in advertisements and redirects the target's
	HasLLA           bool

	// Flags of a neighbour advertisement.
	Solicited, Override, Router bool
}

const (
	ndHops   = 255
	ndFixed  = 24 // solicitation and advertisement before options
	ndOption = 8  // one Ethernet link-layer address option

	optSourceLLA = 1
	optTargetLLA = 2
)

// nd writes a solicitation or advertisement with at most one link-layer address option.
func nd(buf []byte, m *ND, dstMAC, srcMAC [6]byte, vlan uint16) int {
	n := ndFixed
	if m.HasLLA {
		n += ndOption
	}
	l2 := ethLen
	if vlan != 0 {
		l2 += 4
	}
	end := l2 + ip6Len + n
	if len(buf) < end {
		return 0
	}
	buf = buf[:end]
	ethernet(buf, dstMAC, srcMAC, vlan, packet.EtherIPv6)
	header6(buf[l2:], 0, n, flow.ICMPv6, ndHops, m.Src, m.Dst)
	t := buf[l2+ip6Len:]
	clear(t)
	t[0] = m.Type
	if m.Router {
		t[4] |= 0x80
	}
	if m.Solicited {
		t[4] |= 0x40
	}
	if m.Override {
		t[4] |= 0x20
	}
	copy(t[8:24], m.Target[:])
	if m.HasLLA {
		t[24], t[25] = optSourceLLA, 1
		if m.Type == packet.ICMP6NeighborAdvert {
			t[24] = optTargetLLA
		}
		copy(t[26:32], m.LLA[:])
	}
	be.PutUint16(t[2:4], csum.Checksum(csum.Sum(csum.Pseudo6(&m.Src, &m.Dst, flow.ICMPv6, n), t)))
	return end
}

// SolicitedNode is the multicast group that a host with address a listens to (RFC 4291 section 2.7.1), and its MAC (RFC 2464 section 7).
func SolicitedNode(a [16]byte) (group [16]byte, mac [6]byte) {
	group = [16]byte{0: 0xff, 1: 0x02, 11: 1, 12: 0xff, 13: a[13], 14: a[14], 15: a[15]}
	return group, [6]byte{0x33, 0x33, 0xff, a[13], a[14], a[15]}
}

// NeighborSolicitation writes the frame that asks who has target: to its solicited-node group when dstMAC is zero, else to target at
// dstMAC (a probe of a known neighbour). From the unspecified address it is a duplicate address probe and says no MAC (RFC 4861
// section 4.3). It returns the frame's length, 0 when buf is too short (86 bytes, 90 tagged).
func NeighborSolicitation(buf []byte, srcMAC [6]byte, srcIP, target [16]byte, dstMAC [6]byte, vlan uint16) int {
	m := ND{Type: packet.ICMP6NeighborSolicit, Src: srcIP, Dst: target, Target: target, LLA: srcMAC, HasLLA: srcIP != [16]byte{}}
	if dstMAC == [6]byte{} {
		m.Dst, dstMAC = SolicitedNode(target)
	}
	return nd(buf, &m, dstMAC, srcMAC, vlan)
}

// NeighborAdvertisement writes the frame that tells dstIP at dstMAC that target is at srcMAC. The router flag is always set: a host that uses
// us as its router and hears an advertisement without it drops the route (RFC 4861 section 7.2.5). It returns the frame's
// length, 0 when buf is too short (86 bytes, 90 tagged).
func NeighborAdvertisement(buf []byte, srcMAC [6]byte, srcIP [16]byte, dstMAC [6]byte, dstIP, target [16]byte, solicited, override bool, vlan uint16) int {
	m := ND{
		Type: packet.ICMP6NeighborAdvert, Src: srcIP, Dst: dstIP, Target: target, LLA: srcMAC, HasLLA: true,
		Solicited: solicited, Override: override, Router: true,
	}
	return nd(buf, &m, dstMAC, srcMAC, vlan)
}

// ParseND reads a message that Parse flagged FlagND, with the checks that Parse leaves: the checksum and the rules of RFC 4861
// sections 7.1.1, 7.1.2 and 8.1 about addresses.
func ParseND(p *packet.Packet) (n ND, ok bool) {
	if p.Flags&packet.FlagND == 0 {
		return n, false
	}
	t := p.Frame()[p.L4:p.L3End]
	n = ND{Type: p.ICMPType, Src: p.Key.Src, Dst: p.Key.Dst}
	if csum.Fold(csum.Sum(csum.Pseudo6(&n.Src, &n.Dst, flow.ICMPv6, len(t)), t)) != 0xffff || n.Src[0] == 0xff {
		return ND{}, false
	}
	fixed, want := 0, uint8(optSourceLLA)
	switch n.Type {
	case packet.ICMP6RouterSolicit:
		fixed = 8
	case packet.ICMP6RouterAdvert:
		fixed = 16
		if !linkLocal(&n.Src) {
			return ND{}, false
		}
	case packet.ICMP6NeighborSolicit:
		fixed = ndFixed
		n.Target = [16]byte(t[8:24])
	case packet.ICMP6NeighborAdvert:
		fixed, want = ndFixed, optTargetLLA
		n.Target = [16]byte(t[8:24])
		n.Router, n.Solicited, n.Override = t[4]&0x80 != 0, t[4]&0x40 != 0, t[4]&0x20 != 0
		if n.Solicited && n.Dst[0] == 0xff || n.Src == [16]byte{} {
			return ND{}, false
		}
	default:
		fixed, want = 40, optTargetLLA
		n.Target = [16]byte(t[8:24])
		if !linkLocal(&n.Src) {
			return ND{}, false
		}
	}
	if n.Target[0] == 0xff {
		return ND{}, false
	}
	for o := t[fixed:]; len(o) >= 8; o = o[int(o[1])*8:] { // lengths were checked by Parse
		if o[0] == want && o[1] == 1 && !n.HasLLA {
			n.LLA, n.HasLLA = [6]byte(o[2:8]), true
		}
	}
	if n.HasLLA && (n.LLA[0]&1 != 0 || n.LLA == [6]byte{}) {
		return ND{}, false
	}
	if n.Src == [16]byte{} { // a probe for a duplicate: only to the solicited-node group, and without a MAC
		if group, _ := SolicitedNode(n.Target); n.HasLLA || n.Type == packet.ICMP6NeighborSolicit && n.Dst != group {
			return ND{}, false
		}
	}
	return n, true
}

func linkLocal(a *[16]byte) bool { return a[0] == 0xfe && a[1]&0xc0 == 0x80 }
