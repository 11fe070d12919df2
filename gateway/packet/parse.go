package packet

import (
	"encoding/binary"
	"math/bits"

	"demarc/gateway/flow"
	"demarc/gateway/packet/csum"
	"demarc/gateway/verdict"
)

const (
	ethLen  = 14
	tagLen  = 4
	ip4Len  = 20
	ip6Len  = 40
	udpLen  = 8
	tcpLen  = 20
	icmpLen = 8
	arpLen  = 28

	vidMask = 0x0fff
)

// reset clears what Parse finds, so that nothing of the previous frame in the same Packet survives.
func (p *Packet) reset() {
	p.EtherType, p.VLAN, p.L2Len = 0, 0, 0
	p.L3, p.L4, p.L3End = 0, 0, 0
	p.Flags, p.TTL, p.TOS, p.TCPFlags, p.ICMPType, p.ICMPCode, p.Extra = 0, 0, 0, 0, 0, 0, 0
	p.Key = flow.Key{}
	p.Seq, p.Ack, p.Window, p.PayloadLen = 0, 0, 0, 0
	p.FragID, p.FragOff, p.FragLen, p.FragMore = 0, 0, 0, false
}

// Parse reads the frame's headers into p, after clearing what an earlier Parse had found, and returns verdict.Pass or why the
// frame is not to be carried. It never reads outside the frame. After any result the offsets lie inside the frame.
//
// Checked are: lengths against each other and the frame, IP version, IPv4 header checksum and options, IPv6 extension headers
// (at most maxExtensions), fragments that cannot be (RFC 791, RFC 1858, RFC 3128, RFC 7112), the TCP data offset,
// the UDP length, ARP and neighbour discovery lengths. A frame that ends before a header or before its IP length
// is Truncated; a length field that contradicts another is named after the field.
func Parse(p *Packet) verdict.Reason {
	p.reset()
	if uint(p.Off) > uint(len(p.Buf)) || uint(p.Len) > uint(len(p.Buf)-p.Off) {
		return verdict.Truncated
	}
	f := p.Buf[p.Off : p.Off+p.Len]
	if len(f) < ethLen {
		return verdict.Truncated
	}
	if f[0]&1 != 0 {
		p.Flags = FlagMcastMAC
	}
	l3 := ethLen
	et := be16(f[12:14])
	if et == EtherVLAN {
		if len(f) < ethLen+tagLen {
			return verdict.Truncated
		}
		p.VLAN = be16(f[14:16]) & vidMask
		et = be16(f[16:18])
		l3 = ethLen + tagLen
	}
	p.EtherType, p.L2Len = et, uint8(l3)
	p.L3, p.L4, p.L3End = l3, l3, l3
	if p.VLAN == vidMask { // reserved: IEEE 802.1Q table 9-2
		return verdict.BadVLAN
	}
	switch et {
	case EtherIPv4:
		return parse4(p, f, l3)
	case EtherIPv6:
		return parse6(p, f, l3)
	case EtherARP:
		return parseARP(p, f, l3)
	case EtherVLAN, 0x88a8, 0x9100, 0x9200:
		if l3 > ethLen { // a second tag could hide another tenant's VLAN
			return verdict.BadVLAN
		}
	}
	return verdict.BadEtherType
}

func parse4(p *Packet, f []byte, l3 int) verdict.Reason {
	if len(f)-l3 < ip4Len {
		return verdict.Truncated
	}
	h := (*[ip4Len]byte)(f[l3:])
	if h[0]>>4 != 4 {
		return verdict.BadVersion
	}
	ihl := int(h[0]&15) * 4
	if ihl < ip4Len {
		return verdict.BadHeaderLength
	}
	total := int(be16(h[2:4]))
	if total < ihl {
		return verdict.BadTotalLength
	}
	if total > len(f)-l3 {
		return verdict.Truncated
	}
	if ihl == ip4Len {
		// The sum of a valid header is 0xffff in either byte order, so no bytes need swapping.
		s, c := bits.Add64(binary.LittleEndian.Uint64(h[0:8]), binary.LittleEndian.Uint64(h[8:16]), 0)
		s, c = bits.Add64(s, uint64(binary.LittleEndian.Uint32(h[16:20])), c)
		if csum.Fold(s+c) != 0xffff {
			return verdict.BadHeaderChecksum
		}
	} else {
		if csum.Fold(csum.Sum(0, f[l3:l3+ihl])) != 0xffff {
			return verdict.BadHeaderChecksum
		}
		x, r := walkOptions(f[l3+ip4Len : l3+ihl])
		if r != verdict.Pass {
			return r
		}
		p.Flags |= FlagOptions
		p.Extra = x
	}
	p.TOS, p.TTL = h[1], h[8]
	p.Key.Family = 4
	p.Key.Proto = h[9]
	// Eight bytes, as Hash is about to read them: a load of what two stores have just left waits until both are in the cache.
	binary.LittleEndian.PutUint64(p.Key.Src[:8], uint64(le32(h[12:16])))
	binary.LittleEndian.PutUint64(p.Key.Dst[:8], uint64(le32(h[16:20])))
	l4, end := l3+ihl, l3+total
	p.L4, p.L3End = l4, end
	if fo := be16(h[6:8]); fo&0x3fff != 0 {
		p.FragID = uint32(be16(h[4:6]))
		if r := fragment(p, fo<<3, fo&0x2000 != 0, h[9], end-l4, ihl); r != verdict.Pass || p.Flags&FlagFragLater != 0 {
			return r
		}
	}
	return parseL4(p, f[:end], l4, h[9])
}

// fragment checks one fragment of either family: off and n are bytes, head is what precedes the fragmented part in the datagram
// put together again. proto is the transport protocol, or what else follows.
func fragment(p *Packet, off uint16, more bool, proto uint8, n, head int) verdict.Reason {
	p.FragOff, p.FragLen, p.FragMore = off, uint16(n), more
	switch {
	case n == 0, // carries nothing: only of use to keep reassembly busy
		more && n%8 != 0,              // RFC 791 section 3.2, RFC 8200 section 4.5: only the last one may be odd
		head+int(off)+n > 65535,       // longer than any datagram
		proto == flow.TCP && off == 8: // would overwrite the TCP flags (RFC 3128 section 2)
		return verdict.Fragment
	}
	if off != 0 {
		p.Flags |= FlagFragLater
	} else {
		p.Flags |= FlagFragFirst
	}
	return verdict.Pass
}

// Option types of IPv4 (RFC 791 section 3.1).
const (
	optEnd         = 0
	optNop         = 1
	optRecordRoute = 7
	optTimestamp   = 68
	optBasicSec    = 130
	optLSRR        = 131
	optExtendedSec = 133
	optCIPSO       = 134
	optSSRR        = 137
	optRouterAlert = 148
)

// walkOptions checks that IPv4 options are well formed and none of them is a source route, which would steer a packet past
// the addresses that were filtered (RFC 7126 section 4.3), and says which there are.
func walkOptions(o []byte) (x Extra, r verdict.Reason) {
	for len(o) > 0 {
		kind := ExtraOther
		switch o[0] {
		case optEnd:
			return x, verdict.Pass
		case optNop:
			o = o[1:]
			continue
		case optLSRR, optSSRR:
			return x, verdict.SourceRoute
		case optRecordRoute:
			kind = ExtraRecordRoute
		case optTimestamp:
			kind = ExtraTimestamp
		case optRouterAlert:
			kind = ExtraRouterAlert
		case optBasicSec, optExtendedSec, optCIPSO:
			kind = ExtraSecurity
		}
		if len(o) < 2 || o[1] < 2 || int(o[1]) > len(o) {
			return x, verdict.IPOptions
		}
		x |= kind
		o = o[o[1]:]
	}
	return x, verdict.Pass
}

// parseL4 reads the transport header at l4. f ends where the IP packet ends.
func parseL4(p *Packet, f []byte, l4 int, proto uint8) verdict.Reason {
	t := f[l4:]
	switch proto {
	case flow.UDP:
		if len(t) < udpLen {
			return short(p, verdict.BadL4Length)
		}
		// A UDP length below the IP payload is legal: what follows is the surplus area of RFC 9868. The first of several
		// fragments names the length of them all.
		if n := int(be16(t[4:6])); n < udpLen || n > len(t) && p.Flags&FlagFragFirst == 0 {
			return verdict.BadL4Length
		}
		p.Key.SPort, p.Key.DPort = be16(t[0:2]), be16(t[2:4])
	case flow.TCP:
		if len(t) < tcpLen {
			return short(p, verdict.BadL4Length)
		}
		off := int(t[12]>>4) * 4
		if off < tcpLen {
			return verdict.BadL4Header
		}
		if off > len(t) {
			return short(p, verdict.BadL4Header)
		}
		p.Key.SPort, p.Key.DPort = be16(t[0:2]), be16(t[2:4])
		p.Seq, p.Ack = be32(t[4:8]), be32(t[8:12])
		p.TCPFlags = t[13]
		p.Window = be16(t[14:16])
		p.PayloadLen = uint16(len(t) - off)
	case flow.ICMP:
		if p.Key.Family != 4 {
			return verdict.UnsupportedProtocol // ICMP for IPv4 has no meaning in IPv6
		}
		return parseICMP4(p, t)
	case flow.ICMPv6:
		if p.Key.Family != 6 {
			return verdict.UnsupportedProtocol
		}
		return parseICMP6(p, t)
	}
	return verdict.Pass
}

// short is the reason for a transport header that does not fit: a first fragment that small is made to slip ports past a filter
// (RFC 1858 section 3, RFC 7112 section 5).
func short(p *Packet, r verdict.Reason) verdict.Reason {
	if p.Flags&FlagFragFirst != 0 {
		return verdict.Fragment
	}
	return r
}

func parseICMP4(p *Packet, t []byte) verdict.Reason {
	if len(t) < icmpLen {
		return short(p, verdict.BadL4Length)
	}
	p.ICMPType, p.ICMPCode = t[0], t[1]
	k, fl := icmp4Class(t[0])
	p.Flags |= fl
	setQuery(&p.Key, fl, k, be16(t[4:6]))
	if fl&FlagICMPQuery != 0 && k == ICMPTimestamp && len(t) < 20 {
		return short(p, verdict.BadL4Length)
	}
	return verdict.Pass
}

// icmp4Class says what kind of message an ICMP type is, and for a query the type of the request.
func icmp4Class(typ uint8) (request uint8, fl Flags) {
	switch typ {
	case ICMPEcho, ICMPTimestamp:
		return typ, FlagICMPQuery
	case ICMPEchoReply:
		return ICMPEcho, FlagICMPQuery | FlagICMPReply
	case ICMPTimestampReply:
		return ICMPTimestamp, FlagICMPQuery | FlagICMPReply
	case ICMPUnreachable, ICMPSourceQuench, ICMPRedirect, ICMPTimeExceeded, ICMPParameterProblem:
		return 0, FlagICMPError
	}
	return 0, 0
}

// icmp6Class is icmp4Class for ICMPv6. All types below 128 are errors, known or not (RFC 4443 section 2.1).
func icmp6Class(typ uint8) (request uint8, fl Flags) {
	switch {
	case typ == ICMP6Echo:
		return ICMP6Echo, FlagICMPQuery
	case typ == ICMP6EchoReply:
		return ICMP6Echo, FlagICMPQuery | FlagICMPReply
	case typ < 128:
		return 0, FlagICMPError
	}
	return 0, 0
}

// setQuery writes the ports of an ICMP query as flow.Key defines them.
func setQuery(k *flow.Key, fl Flags, request uint8, id uint16) {
	switch fl & (FlagICMPQuery | FlagICMPReply) {
	case FlagICMPQuery:
		k.SPort, k.DPort = id, uint16(request)
	case FlagICMPQuery | FlagICMPReply:
		k.SPort, k.DPort = uint16(request), id
	}
}

// parseARP accepts IPv4 over Ethernet only (RFC 826).
func parseARP(p *Packet, f []byte, l3 int) verdict.Reason {
	if len(f)-l3 < arpLen {
		return verdict.Truncated
	}
	a := f[l3 : l3+arpLen]
	if be16(a[0:2]) != 1 || be16(a[2:4]) != EtherIPv4 {
		return verdict.UnsupportedProtocol
	}
	if a[4] != 6 || a[5] != 4 {
		return verdict.BadHeaderLength
	}
	if op := be16(a[6:8]); op != 1 && op != 2 {
		return verdict.UnsupportedProtocol
	}
	p.Flags |= FlagARP
	p.L4, p.L3End = l3, l3+arpLen
	return verdict.Pass
}
