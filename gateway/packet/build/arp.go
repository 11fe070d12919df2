package build

import "demarc/gateway/packet"

// ARP operations (RFC 826).
const (
	ARPOpRequest = 1
	ARPOpReply   = 2
)

// ARP is an IPv4 over Ethernet ARP message: sender and target hardware and protocol addresses.
type ARP struct {
	Op       uint16
	SHA, THA [6]byte
	SPA, TPA [4]byte
}

const (
	arpLen   = 28
	minFrame = 60 // without the frame check sequence
)

var broadcast = [6]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}

// ethernet writes an Ethernet header over buf, tagged unless vlan is 0, and returns its length. buf has room for it.
func ethernet(buf []byte, dst, src [6]byte, vlan, etherType uint16) int {
	copy(buf[0:6], dst[:])
	copy(buf[6:12], src[:])
	n := ethLen
	if vlan != 0 {
		be.PutUint16(buf[12:14], packet.EtherVLAN)
		be.PutUint16(buf[14:16], vlan&0x0fff)
		n += 4
	}
	be.PutUint16(buf[n-2:n], etherType)
	return n
}

func arp(buf []byte, op uint16, dst, src [6]byte, a *ARP, vlan uint16) int {
	n := minFrame
	if vlan != 0 {
		n += 4 // still a full frame where a switch takes the tag off
	}
	if len(buf) < n {
		return 0
	}
	clear(buf[:n])
	m := buf[ethernet(buf, dst, src, vlan, packet.EtherARP):]
	be.PutUint16(m[0:2], 1)
	be.PutUint16(m[2:4], packet.EtherIPv4)
	m[4], m[5] = 6, 4
	be.PutUint16(m[6:8], op)
	copy(m[8:14], a.SHA[:])
	copy(m[14:18], a.SPA[:])
	copy(m[18:24], a.THA[:])
	copy(m[24:28], a.TPA[:])
	return n
}

// ARPRequest writes the frame that asks who has dstIP: to everyone when dstMAC is zero, else to that station alone (a probe of
// a known neighbour). srcIP 0.0.0.0 makes it an RFC 5227 probe, srcIP = dstIP an announcement. It returns the frame's length, 0 when
// buf is too short (60 bytes, 64 tagged).
func ARPRequest(buf []byte, srcMAC [6]byte, srcIP, dstIP [4]byte, dstMAC [6]byte, vlan uint16) int {
	to := dstMAC
	if to == [6]byte{} {
		to = broadcast
	}
	return arp(buf, ARPOpRequest, to, srcMAC, &ARP{SHA: srcMAC, SPA: srcIP, TPA: dstIP}, vlan)
}

// ARPReply writes the frame that tells dstMAC, dstIP that srcIP is at srcMAC. It returns the frame's length, 0 when buf is too
// short (60 bytes, 64 tagged).
func ARPReply(buf []byte, srcMAC [6]byte, srcIP [4]byte, dstMAC [6]byte, dstIP [4]byte, vlan uint16) int {
	return arp(buf, ARPOpReply, dstMAC, srcMAC, &ARP{SHA: srcMAC, SPA: srcIP, THA: dstMAC, TPA: dstIP}, vlan)
}

// ParseARP reads the ARP message of a frame that Parse flagged FlagARP. It refuses a sender hardware address that is a group's or
// zero (RFC 1812 section 3.3.2: such a reply must not be believed) and a sender protocol address that is no host's, except 0.0.0.0
// in a request (RFC 5227).
func ParseARP(p *packet.Packet) (a ARP, ok bool) {
	if p.Flags&packet.FlagARP == 0 {
		return a, false
	}
	f := p.Frame()
	if p.L3+arpLen > len(f) {
		return a, false
	}
	m := f[p.L3 : p.L3+arpLen]
	a = ARP{Op: be.Uint16(m[6:8]), SHA: [6]byte(m[8:14]), SPA: [4]byte(m[14:18]), THA: [6]byte(m[18:24]), TPA: [4]byte(m[24:28])}
	if a.SHA[0]&1 != 0 || a.SHA == [6]byte{} {
		return ARP{}, false
	}
	if a.SPA == [4]byte{} && a.Op == ARPOpRequest {
		return a, true
	}
	if a.SPA[0] == 0 || a.SPA[0] == 127 || a.SPA[0] >= 224 {
		return ARP{}, false
	}
	return a, true
}
