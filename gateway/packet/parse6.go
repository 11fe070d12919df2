package packet

import (
	"demarc/gateway/flow"
	"demarc/gateway/verdict"
)

// maxExtensions bounds the IPv6 extension headers that Parse walks; more than this has no honest use (RFC 9098).
const maxExtensions = 8

// IPv6 extension header types (RFC 8200 section 4).
const (
	nhHopByHop = 0
	nhRouting  = 43
	nhFragment = 44
	nhDestOpts = 60
)

func parse6(p *Packet, f []byte, l3 int) verdict.Reason {
	if len(f)-l3 < ip6Len {
		return verdict.Truncated
	}
	h := (*[ip6Len]byte)(f[l3:])
	if h[0]>>4 != 6 {
		return verdict.BadVersion
	}
	end := l3 + ip6Len + int(be16(h[4:6]))
	if end > len(f) {
		return verdict.Truncated
	}
	p.TOS, p.TTL = h[0]<<4|h[1]>>4, h[7]
	p.Key.Family = 6
	p.Key.Src = flow.Addr(h[8:24])
	p.Key.Dst = flow.Addr(h[24:40])
	p.L4, p.L3End = l3+ip6Len, end
	proto := h[6]
	p.Key.Proto = proto
	switch proto { // the common case has no extension header
	case nhHopByHop, nhRouting, nhFragment, nhDestOpts:
		c, r := walk6(f[:end], l3)
		if r != verdict.Pass {
			return r
		}
		proto = c.proto
		p.Key.Proto, p.L4, p.Extra = proto, c.l4, c.extra
		if c.frag {
			p.FragID = c.fragID
			if r := fragment(p, c.fragOff, c.more, proto, end-c.fragEnd, c.fragEnd-8-l3-ip6Len); r != verdict.Pass || p.Flags&FlagFragLater != 0 {
				return r
			}
			if c.cut {
				return verdict.Fragment
			}
		} else if c.cut {
			return verdict.BadExtensionHeader
		}
	}
	return parseL4(p, f[:end], p.L4, proto)
}

// chain6 is what walk6 found between the IPv6 header and the transport header.
type chain6 struct {
	extra   Extra
	proto   uint8 // first header that is none of those walked; behind a later fragment the type of what was fragmented
	l4      int   // where it starts
	cut     bool  // the bytes end before the chain does
	frag    bool  // a fragment header of a real fragment; atomic ones (RFC 6946) count as absent
	more    bool
	fragOff uint16
	fragEnd int // where the fragmented part starts
	fragID  uint32
}

// walk6 follows the extension headers of the IPv6 packet at l3, whose fixed header is complete. f ends where the packet, or what is
// quoted of it, ends.
func walk6(f []byte, l3 int) (c chain6, r verdict.Reason) {
	nh, at := f[l3+6], l3+ip6Len
	for n := 0; ; n++ {
		switch nh {
		case nhHopByHop, nhRouting, nhDestOpts, nhFragment:
		default:
			c.proto, c.l4 = nh, at
			return c, verdict.Pass
		}
		if n == maxExtensions || nh == nhHopByHop && n > 0 { // RFC 8200 section 4.1: hop-by-hop only as the first
			return c, verdict.BadExtensionHeader
		}
		if len(f)-at < 8 {
			c.proto, c.l4, c.cut = nh, at, true
			return c, verdict.Pass
		}
		if nh == nhFragment {
			if c.fragEnd != 0 { // one is enough; two hide a fragment in a fragment
				return c, verdict.BadExtensionHeader
			}
			fo := be16(f[at+2 : at+4])
			c.fragOff, c.more, c.fragID = fo&0xfff8, fo&1 != 0, be32(f[at+4:at+8])
			c.frag = c.fragOff != 0 || c.more
			nh = f[at]
			at += 8
			c.fragEnd = at
			if c.fragOff != 0 {
				c.proto, c.l4 = nh, at
				return c, verdict.Pass
			}
			continue
		}
		size := int(f[at+1])*8 + 8
		if len(f)-at < size {
			c.proto, c.l4, c.cut = nh, at, true
			return c, verdict.Pass
		}
		switch nh {
		case nhRouting:
			c.extra |= ExtraRouting
		case nhHopByHop:
			c.extra |= ExtraHopByHop
		case nhDestOpts:
			c.extra |= ExtraDestination
		}
		if nh == nhRouting {
			if f[at+2] == 0 { // RFC 5095: deprecated, an amplifier
				return c, verdict.SourceRoute
			}
		} else if !options6(f[at+2 : at+size]) {
			return c, verdict.BadExtensionHeader
		}
		nh = f[at]
		at += size
	}
}

// options6 reports whether hop-by-hop or destination options are well formed (RFC 8200 section 4.2). A jumbo payload (RFC 2675)
// counts as malformed: no frame here is that long.
func options6(o []byte) bool {
	for len(o) > 0 {
		if o[0] == 0 { // Pad1
			o = o[1:]
			continue
		}
		if o[0] == 0xc2 || len(o) < 2 || int(o[1])+2 > len(o) {
			return false
		}
		o = o[2+int(o[1]):]
	}
	return true
}

func parseICMP6(p *Packet, t []byte) verdict.Reason {
	if len(t) < icmpLen {
		return short(p, verdict.BadL4Length)
	}
	p.ICMPType, p.ICMPCode = t[0], t[1]
	k, fl := icmp6Class(t[0])
	p.Flags |= fl
	setQuery(&p.Key, fl, k, be16(t[4:6]))
	if t[0] >= ICMP6RouterSolicit && t[0] <= ICMP6Redirect {
		return checkND(p, t)
	}
	return verdict.Pass
}

// ndFixed is the length of each neighbour discovery message before its options, from router solicitation on (RFC 4861 section 4).
var ndFixed = [...]uint8{8, 16, 24, 24, 40}

// checkND checks what a receiver must before it looks at a neighbour discovery message (RFC 4861 sections 6.1, 7.1, 8.1), except the
// checksum.
func checkND(p *Packet, t []byte) verdict.Reason {
	if p.Flags&FlagFragFirst != 0 {
		return verdict.Fragment // RFC 6980 section 5
	}
	if p.TTL != 255 || t[1] != 0 { // 255: nobody has forwarded it, so it comes from this link
		return verdict.BadL4Header
	}
	n := int(ndFixed[t[0]-ICMP6RouterSolicit])
	if len(t) < n {
		return verdict.BadL4Length
	}
	for o := t[n:]; len(o) > 0; {
		if len(o) < 8 || o[1] == 0 || int(o[1])*8 > len(o) {
			return verdict.BadL4Length
		}
		o = o[int(o[1])*8:]
	}
	p.Flags |= FlagND
	return verdict.Pass
}
