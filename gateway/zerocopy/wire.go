package zerocopy

import (
	"encoding/binary"
	"net/netip"
)

// mac is an Ethernet address.
type mac [6]byte

const (
	etherIPv4 = 0x0800
	etherARP  = 0x0806
	etherIPv6 = 0x86dd

	protoICMP   = 1
	protoTCP    = 6
	protoUDP    = 17
	protoICMPv6 = 58
)

// message is everything that a frame of the test says. frame builds it whole: nothing is taken over from a received frame.
type message struct {
	from, to mac
	src, dst netip.Addr
	proto    byte
	sport    uint16 // of ICMP: the identifier
	dport    uint16 // of ICMP: the sequence number
	icmpType byte
	tcpSeq   uint32
	tcpAck   uint32
	tcpFlags byte
	tos, ttl byte
	id       uint16 // IPv4 identification
	payload  []byte
}

// add is the ones' complement sum of RFC 1071 over big-endian words, folded at the end by fold.
func add(sum uint32, b []byte) uint32 {
	for ; len(b) >= 2; b = b[2:] {
		sum += uint32(b[0])<<8 | uint32(b[1])
	}
	if len(b) == 1 {
		sum += uint32(b[0]) << 8
	}
	return sum
}

func fold(sum uint32) uint16 {
	for sum>>16 != 0 {
		sum = sum&0xffff + sum>>16
	}
	return ^uint16(sum)
}

// headerBytes is where the payload begins.
func (m *message) headerBytes() int {
	n := 14 + 20
	if m.src.Is6() {
		n = 14 + 40
	}
	switch m.proto {
	case protoTCP:
		return n + 20
	default:
		return n + 8
	}
}

func (m *message) frame() []byte {
	be := binary.BigEndian
	var l4 []byte
	switch m.proto {
	case protoUDP:
		l4 = make([]byte, 8, 8+len(m.payload))
		be.PutUint16(l4, m.sport)
		be.PutUint16(l4[2:], m.dport)
		be.PutUint16(l4[4:], uint16(8+len(m.payload)))
	case protoTCP:
		l4 = make([]byte, 20, 20+len(m.payload))
		be.PutUint16(l4, m.sport)
		be.PutUint16(l4[2:], m.dport)
		be.PutUint32(l4[4:], m.tcpSeq)
		be.PutUint32(l4[8:], m.tcpAck)
		l4[12], l4[13] = 5<<4, m.tcpFlags
		be.PutUint16(l4[14:], 64000)
	default:
		l4 = make([]byte, 8, 8+len(m.payload))
		l4[0] = m.icmpType
		be.PutUint16(l4[4:], m.sport)
		be.PutUint16(l4[6:], m.dport)
	}
	l4 = append(l4, m.payload...)
	sum := uint32(0)
	if m.proto != protoICMP { // RFC 768, 9293, 8200 8.1: with the pseudo header
		sum = add(add(uint32(m.proto)+uint32(len(l4)), m.src.AsSlice()), m.dst.AsSlice())
	}
	check := fold(add(sum, l4))
	switch m.proto {
	case protoUDP:
		if check == 0 {
			check = 0xffff
		}
		be.PutUint16(l4[6:], check)
	case protoTCP:
		be.PutUint16(l4[16:], check)
	default:
		be.PutUint16(l4[2:], check)
	}
	f := make([]byte, 0, 54+len(l4))
	f = append(append(f, m.to[:]...), m.from[:]...)
	if m.src.Is4() {
		f = be.AppendUint16(f, etherIPv4)
		h := [20]byte{0: 0x45, 1: m.tos, 8: m.ttl, 9: m.proto}
		be.PutUint16(h[2:], uint16(20+len(l4)))
		be.PutUint16(h[4:], m.id)
		copy(h[12:], m.src.AsSlice())
		copy(h[16:], m.dst.AsSlice())
		be.PutUint16(h[10:], fold(add(0, h[:])))
		f = append(f, h[:]...)
	} else {
		f = be.AppendUint16(f, etherIPv6)
		h := [40]byte{0: 0x60 | m.tos>>4, 1: m.tos << 4, 6: m.proto, 7: m.ttl}
		be.PutUint16(h[4:], uint16(len(l4)))
		copy(h[8:], m.src.AsSlice())
		copy(h[24:], m.dst.AsSlice())
		f = append(f, h[:]...)
	}
	return append(f, l4...)
}

// arp builds a request (1) or a reply (2), RFC 826.
func arp(op byte, from mac, fromIP netip.Addr, to mac, toIP netip.Addr) []byte {
	dst := to
	if op == 1 {
		dst, to = mac{255, 255, 255, 255, 255, 255}, mac{}
	}
	f := append(append(append([]byte(nil), dst[:]...), from[:]...), 8, 6, 0, 1, 8, 0, 6, 4, 0, op)
	f = append(append(f, from[:]...), fromIP.AsSlice()...)
	f = append(append(f, to[:]...), toIP.AsSlice()...)
	return append(f, make([]byte, 60-len(f))...)
}

// advertisement answers a neighbour solicitation, RFC 4861 4.4: solicited, override, target link-layer address.
func advertisement(from mac, target netip.Addr, to mac, dst netip.Addr) []byte {
	return discovery(from, target, to, dst, 136, 0x60, target, 2)
}

// solicitation asks for target at its solicited-node group, RFC 4861 4.3, RFC 2464 section 7.
func solicitation(from mac, own, target netip.Addr) []byte {
	t := target.As16()
	group := netip.AddrFrom16([16]byte{0: 0xff, 1: 2, 11: 1, 12: 0xff, 13: t[13], 14: t[14], 15: t[15]})
	return discovery(from, own, mac{0x33, 0x33, 0xff, t[13], t[14], t[15]}, group, 135, 0, target, 1)
}

func discovery(from mac, src netip.Addr, to mac, dst netip.Addr, typ, flags byte, target netip.Addr, option byte) []byte {
	body := append([]byte{typ, 0, 0, 0, flags, 0, 0, 0}, target.AsSlice()...)
	body = append(append(body, option, 1), from[:]...)
	sum := add(add(uint32(protoICMPv6)+uint32(len(body)), src.AsSlice()), dst.AsSlice())
	binary.BigEndian.PutUint16(body[2:], fold(add(sum, body)))
	h := [40]byte{0: 0x60, 5: byte(len(body)), 6: protoICMPv6, 7: 255}
	copy(h[8:], src.AsSlice())
	copy(h[24:], dst.AsSlice())
	f := append(append([]byte(nil), to[:]...), from[:]...)
	return append(append(append(f, 0x86, 0xdd), h[:]...), body...)
}
