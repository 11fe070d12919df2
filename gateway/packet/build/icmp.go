package build

import (
	"encoding/binary"

	"demarc/gateway/flow"
	"demarc/gateway/packet"
	"demarc/gateway/packet/csum"
	"demarc/gateway/verdict"
)

const (
	ethLen  = 14
	ip4Len  = 20
	ip6Len  = 40
	tcpLen  = 20
	icmpLen = 8

	maxError4 = 576  // RFC 1812 section 4.3.2.3
	maxError6 = 1280 // RFC 4443 section 2.4 (c): the smallest MTU

	ttl = 64
)

var be = binary.BigEndian

// host4 reports whether an answer may go to a: one host, and a host that can be on another machine (RFC 1122 section 3.2.1.3).
func host4(a *flow.Addr) bool {
	return a[0] != 0 && a[0] != 127 && a[0] < 224
}

// group4 reports whether a names more than one host. Directed broadcasts look like hosts here; the caller knows the prefixes.
func group4(a *flow.Addr) bool { return a[0] >= 224 }

func host6(a *flow.Addr) bool {
	return a[0] != 0xff && *a != flow.Addr{} && *a != flow.Addr{15: 1}
}

// prepend moves the frame's Ethernet header forward so that n bytes of new headers stand between it and quote bytes from L3 on, and
// cuts the frame there. Without headroom it moves the quote back instead, shortened to the room there is, but not below need. It
// returns the frame's bytes from the new headers on, or nil.
func prepend(p *packet.Packet, n, quote, need int) []byte {
	l2 := int(p.L2Len)
	if p.Off >= n {
		copy(p.Buf[p.Off-n:], p.Buf[p.Off:p.Off+l2])
		p.Off -= n
	} else {
		at := p.Off + p.L3
		quote = min(quote, len(p.Buf)-at-n)
		if quote < need {
			return nil
		}
		copy(p.Buf[at+n:at+n+quote], p.Buf[at:at+quote])
	}
	p.Len = l2 + n + quote
	return p.Buf[p.Off+l2 : p.Off+p.Len]
}

// again parses p after it was rebuilt.
func again(p *packet.Packet) bool { return packet.Parse(p) == verdict.Pass }

// header4 writes an IPv4 header without options over h.
func header4(h []byte, tos uint8, total int, proto uint8, src, dst [4]byte) {
	h[0], h[1] = 0x45, tos
	be.PutUint16(h[2:4], uint16(total))
	be.PutUint32(h[4:8], 0x4000) // never fragmented, so it needs no identification (RFC 6864)
	h[8], h[9] = ttl, proto
	be.PutUint16(h[10:12], 0)
	copy(h[12:16], src[:])
	copy(h[16:20], dst[:])
	be.PutUint16(h[10:12], csum.Checksum(csum.Sum(0, h[:ip4Len])))
}

// header6 writes an IPv6 header over h.
func header6(h []byte, tc uint8, payload int, proto, hops uint8, src, dst [16]byte) {
	be.PutUint32(h[0:4], 6<<28|uint32(tc)<<20)
	be.PutUint16(h[4:6], uint16(payload))
	h[6], h[7] = proto, hops
	copy(h[8:24], src[:])
	copy(h[24:40], dst[:])
}

// ICMPError4 turns p into the ICMP error about it, sent by src to p's sender, quoting as much as fits 576 bytes. mtu goes into
// "fragmentation needed" (type 3 code 4, RFC 1191) and, as the pointer, into a parameter problem. It returns false where RFC 1122 section 3.2.2
// forbids an answer: to an ICMP error, a later fragment, a multicast or broadcast, or a source that is no single host.
func ICMPError4(p *packet.Packet, src [4]byte, typ, code uint8, mtu uint16) bool {
	if p.Key.Family != 4 || p.Flags&(packet.FlagICMPError|packet.FlagFragLater|packet.FlagMcastMAC) != 0 ||
		!host4(&p.Key.Src) || group4(&p.Key.Dst) {
		return false
	}
	to := [4]byte(p.Key.Src[:4])
	tos := p.TOS &^ 3 // the class of what it is about (RFC 5508 section 7.7, which comes after RFC 1812 section 4.3.2.5); never ECN
	have := p.L3End - p.L3
	b := prepend(p, ip4Len+icmpLen, min(have, maxError4-ip4Len-icmpLen), min(have, p.L4-p.L3+8))
	if b == nil {
		return false
	}
	header4(b, tos, len(b), flow.ICMP, src, to)
	m := b[ip4Len:]
	m[0], m[1] = typ, code
	clear(m[2:8])
	switch {
	case typ == packet.ICMPUnreachable && code == 4:
		be.PutUint16(m[6:8], mtu)
	case typ == packet.ICMPParameterProblem:
		m[4] = uint8(mtu)
	}
	be.PutUint16(m[2:4], csum.Checksum(csum.Sum(0, m)))
	return again(p)
}

// ICMPError6 turns p into the ICMPv6 error about it, sent by src to p's sender, quoting as much as fits 1280 bytes. mtu goes into "packet too
// big" and, as the pointer, into a parameter problem. It returns false where RFC 4443 section 2.4 (e) forbids an answer: to
// an ICMPv6 error or redirect, to a multicast (except packet too big and parameter problem code 2), to a source that is no
// single host.
func ICMPError6(p *packet.Packet, src [16]byte, typ, code uint8, mtu uint32) bool {
	if p.Key.Family != 6 || p.Flags&packet.FlagICMPError != 0 || !host6(&p.Key.Src) {
		return false
	}
	if p.Flags&packet.FlagND != 0 && p.ICMPType == packet.ICMP6Redirect {
		return false
	}
	group := p.Key.Dst[0] == 0xff || p.Flags&packet.FlagMcastMAC != 0
	if group && typ != packet.ICMP6TooBig && !(typ == packet.ICMP6ParameterProblem && code == 2) {
		return false
	}
	to := [16]byte(p.Key.Src)
	have := p.L3End - p.L3
	b := prepend(p, ip6Len+icmpLen, min(have, maxError6-ip6Len-icmpLen), min(have, p.L4-p.L3+8))
	if b == nil {
		return false
	}
	header6(b, 0, len(b)-ip6Len, flow.ICMPv6, ttl, src, to)
	m := b[ip6Len:]
	m[0], m[1] = typ, code
	clear(m[2:8])
	if typ == packet.ICMP6TooBig || typ == packet.ICMP6ParameterProblem {
		be.PutUint32(m[4:8], mtu)
	}
	be.PutUint16(m[2:4], csum.Checksum(csum.Sum(csum.Pseudo6(&src, &to, flow.ICMPv6, len(m)), m)))
	return again(p)
}

// EchoReply turns an echo request, IPv4 or IPv6, into its reply. It returns false for anything else, for a wrong ICMP checksum (as the end
// of the conversation we must look), and for addresses that are no single host's. IPv4 options go back as they came (RFC 1122
// section 3.2.2.6). A request in fragments is answered piece by piece, its checksum right or wrong as it was; whoever calls knows that
// a later one belongs to a request.
func EchoReply(p *packet.Packet) bool {
	first, later := p.Flags&packet.FlagFragFirst != 0, p.Flags&packet.FlagFragLater != 0
	if !later && p.Flags&(packet.FlagICMPQuery|packet.FlagICMPReply) != packet.FlagICMPQuery {
		return false
	}
	f := p.Frame()
	h, m := f[p.L3:p.L4], f[p.L4:p.L3End]
	if p.Key.Family == 4 {
		if !later && p.ICMPType != packet.ICMPEcho || p.Key.Proto != flow.ICMP || !host4(&p.Key.Src) || group4(&p.Key.Dst) ||
			!first && !later && csum.Fold(csum.Sum(0, m)) != 0xffff {
			return false
		}
		copy(h[12:16], p.Key.Dst[:4])
		copy(h[16:20], p.Key.Src[:4])
		h[8] = ttl
		be.PutUint16(h[10:12], 0)
		be.PutUint16(h[10:12], csum.Checksum(csum.Sum(0, h)))
		if !later {
			reply(m, packet.ICMPEchoReply, first, 0)
		}
		return again(p)
	}
	src, dst := [16]byte(p.Key.Src), [16]byte(p.Key.Dst)
	ext := 0 // other extension headers would have to be answered by their own rules
	if first || later {
		ext = 8
	}
	pseudo := csum.Pseudo6(&src, &dst, flow.ICMPv6, len(m))
	if !later && p.ICMPType != packet.ICMP6Echo || p.Key.Proto != flow.ICMPv6 || !host6(&p.Key.Src) || p.Key.Dst[0] == 0xff ||
		p.L4 != p.L3+ip6Len+ext || !first && !later && csum.Fold(csum.Sum(pseudo, m)) != 0xffff {
		return false
	}
	copy(h[8:24], dst[:])
	copy(h[24:40], src[:])
	h[7] = ttl
	if !later {
		reply(m, packet.ICMP6EchoReply, first, pseudo)
	}
	return again(p)
}

// reply makes a request the reply. Of a piece the checksum cannot be computed, only changed with the type (RFC 1624).
func reply(m []byte, typ uint8, piece bool, pseudo uint64) {
	was := be.Uint16(m[0:2])
	m[0], m[1] = typ, 0
	if piece {
		be.PutUint16(m[2:4], csum.Update16(be.Uint16(m[2:4]), was, be.Uint16(m[0:2])))
		return
	}
	be.PutUint16(m[2:4], 0)
	be.PutUint16(m[2:4], csum.Checksum(csum.Sum(pseudo, m)))
}
