package packet

import (
	"encoding/binary"
	"math/bits"

	"demarc/gateway/flow"
	"demarc/gateway/packet/csum"
	"demarc/gateway/verdict"
)

// Inner is the packet that an ICMP or ICMPv6 error quotes.
type Inner struct {
	// Key is as quoted: the direction of the packet that caused the error, so Src is who gets the error. An ICMP query has
	// its ports as flow.Key says. Zone is 0.
	Key flow.Key

	OK        bool // Key is good for a session lookup
	Truncated bool // the quote ends before the quoted packet does, as most do
	HasPorts  bool // Key's ports come from the quote

	L3, L4 int   // offsets in the frame; L4 is where the quoted transport header starts
	End    int   // where the quoted packet ends in the frame; what follows (RFC 4884 extensions) is not part of it
	Proto  uint8 // = Key.Proto
	Query  Flags // FlagICMPQuery, FlagICMPReply of a quoted ICMP query
}

// ParseInner reads the packet quoted by the ICMP or ICMPv6 error p. The reason is Pass or ICMPBadInner; with Pass, OK is set.
//
// The checksum of the error itself is verified, because the rewrite computes it anew and would hide damage (RFC 5508 REQ-3a).
// So is the one of a quoted IPv4 header (REQ-3a), and the quoted transport checksum is not (REQ-3c): most quotes end before what it covers.
// Refused: redirects (good only on the link they come from), source quench (RFC 5508 REQ-10c, RFC 6633), errors in fragments, quotes of errors
// (RFC 1122 section 3.2.2), of later fragments and of source routes (RFC 5508 section 7.3), and quotes that end before the ports.
func ParseInner(p *Packet) (in Inner, r verdict.Reason) {
	f := p.Buf[p.Off : p.Off+p.Len]
	if p.Flags&FlagICMPError == 0 || p.Flags&(FlagFragFirst|FlagFragLater) != 0 ||
		p.L3End > len(f) || p.L3End-p.L4 < icmpLen {
		return in, verdict.ICMPBadInner
	}
	f = f[:p.L3End]
	in.L3 = p.L4 + icmpLen
	if p.Key.Family == 4 {
		if p.ICMPType == ICMPRedirect || p.ICMPType == ICMPSourceQuench || csum.Fold(csum.Sum(0, f[p.L4:])) != 0xffff || !inner4(f, &in) {
			return in, verdict.ICMPBadInner
		}
	} else {
		s := csum.Pseudo6((*[16]byte)(&p.Key.Src), (*[16]byte)(&p.Key.Dst), flow.ICMPv6, len(f)-p.L4)
		if csum.Fold(csum.Sum(s, f[p.L4:])) != 0xffff || !inner6(f, &in) {
			return in, verdict.ICMPBadInner
		}
	}
	in.Proto = in.Key.Proto
	if !innerPorts(f[:in.End], &in) {
		return in, verdict.ICMPBadInner
	}
	in.OK = true
	return in, verdict.Pass
}

func inner4(f []byte, in *Inner) bool {
	if len(f)-in.L3 < ip4Len {
		return false
	}
	h := (*[ip4Len]byte)(f[in.L3:])
	ihl, total := int(h[0]&15)*4, int(be16(h[2:4]))
	if h[0]>>4 != 4 || ihl < ip4Len || ihl > len(f)-in.L3 || total < ihl || be16(h[6:8])&0x1fff != 0 ||
		csum.Fold(csum.Sum(0, f[in.L3:in.L3+ihl])) != 0xffff {
		return false
	}
	if ihl > ip4Len {
		if _, r := walkOptions(f[in.L3+ip4Len : in.L3+ihl]); r == verdict.SourceRoute {
			return false // RFC 5508 section 7.3: the addresses in it would be of the wrong realm
		}
	}
	in.L4 = in.L3 + ihl
	in.End = min(len(f), in.L3+total)
	in.Truncated = in.L3+total > len(f)
	in.Key.Family, in.Key.Proto = 4, h[9]
	copy(in.Key.Src[:4], h[12:16])
	copy(in.Key.Dst[:4], h[16:20])
	return true
}

func inner6(f []byte, in *Inner) bool {
	if len(f)-in.L3 < ip6Len {
		return false
	}
	h := (*[ip6Len]byte)(f[in.L3:])
	if h[0]>>4 != 6 {
		return false
	}
	total := ip6Len + int(be16(h[4:6]))
	in.End = min(len(f), in.L3+total)
	in.Truncated = in.L3+total > len(f)
	c, r := walk6(f[:in.End], in.L3)
	if r != verdict.Pass || c.cut || c.frag && c.fragOff != 0 {
		return false
	}
	in.L4 = c.l4
	in.Key.Family, in.Key.Proto = 6, c.proto
	in.Key.Src, in.Key.Dst = flow.Addr(h[8:24]), flow.Addr(h[24:40])
	return true
}

// innerPorts fills the ports from the quoted transport header, of which RFC 792 promises eight bytes. f ends with the quote.
func innerPorts(f []byte, in *Inner) bool {
	t := f[in.L4:]
	switch in.Key.Proto {
	case flow.TCP, flow.UDP:
		if len(t) < 8 {
			return false
		}
		in.Key.SPort, in.Key.DPort, in.HasPorts = be16(t[0:2]), be16(t[2:4]), true
	case flow.ICMP, flow.ICMPv6:
		if len(t) < icmpLen || (in.Key.Proto == flow.ICMP) != (in.Key.Family == 4) {
			return false
		}
		class := icmp4Class
		if in.Key.Proto == flow.ICMPv6 {
			class = icmp6Class
		}
		k, fl := class(t[0])
		if fl&FlagICMPError != 0 {
			return false
		}
		in.Query = fl
		in.HasPorts = fl&FlagICMPQuery != 0
		setQuery(&in.Key, fl, k, be16(t[4:6]))
	}
	return true
}

// TranslateInner4 gives the packet quoted by the IPv4 ICMP error p new addresses and ports, in the quoted packet's own direction, and
// of a quoted ICMP query the identifier (RFC 5508 REQ-4). The quoted IP checksum and, where the quote reaches it, the transport
// checksum are updated incrementally, the latter right or wrong as it was; then the checksum of the error is computed anew.
// in.Key follows. The outer addresses are TranslateOuter4's.
func TranslateInner4(p *Packet, in *Inner, src, dst [4]byte, sport, dport uint16) {
	f := p.Buf[p.Off : p.Off+p.Len]
	if !in.OK || in.Key.Family != 4 || p.L3End > len(f) || in.End > p.L3End || in.L4 < in.L3+ip4Len || in.L4 > in.End || p.L3End-p.L4 < icmpLen {
		return
	}
	delta := swapAddrs((*[ip4Len]byte)(f[in.L3:]), le32(src[:]), le32(dst[:]), 0)
	copy(in.Key.Src[:4], src[:])
	copy(in.Key.Dst[:4], dst[:])
	t := f[in.L4:in.End]
	switch in.Key.Proto {
	case flow.TCP, flow.UDP:
		if len(t) < 8 {
			break
		}
		ports := uint32(bits.ReverseBytes16(sport)) | uint32(bits.ReverseBytes16(dport))<<16
		delta += uint64(^le32(t[0:4])) + uint64(ports)
		put32(t[0:4], ports)
		if in.Key.Proto == flow.UDP {
			if c := le16(t[6:8]); c != 0 {
				put16(t[6:8], csum.NonZero(csum.Apply(c, delta)))
			}
		} else if len(t) >= 18 {
			put16(t[16:18], csum.Apply(le16(t[16:18]), delta))
		}
		in.Key.SPort, in.Key.DPort = sport, dport
	case flow.ICMP:
		if in.Query&FlagICMPQuery == 0 || len(t) < icmpLen {
			break
		}
		id := sport
		if in.Query&FlagICMPReply != 0 {
			id = dport
			in.Key.DPort = id
		} else {
			in.Key.SPort = id
		}
		id = bits.ReverseBytes16(id)
		put16(t[2:4], csum.NonZero(csum.Update16(le16(t[2:4]), le16(t[4:6]), id)))
		put16(t[4:6], id)
	case protoDCCP, protoUDPLite:
		if len(t) >= 8 {
			c := csum.Apply(le16(t[6:8]), delta)
			if in.Key.Proto == protoUDPLite {
				c = csum.NonZero(c)
			}
			put16(t[6:8], c)
		}
	}
	m := f[p.L4:p.L3End]
	m[2], m[3] = 0, 0
	binary.BigEndian.PutUint16(m[2:4], csum.Checksum(csum.Sum(0, m)))
}
