package packet

import (
	"encoding/binary"
	"math/bits"

	"demarc/gateway/flow"
	"demarc/gateway/packet/csum"
)

// Protocols beside TCP and UDP whose checksum covers the addresses; both keep it where UDP does.
const (
	protoDCCP    = 33  // RFC 4340 section 9
	protoUDPLite = 136 // RFC 3828 section 3.1
)

// le16, le32 and put16 work in the order of memory on the machines we run on: one's complement sums do not mind as long as what is
// added and what is stored agree (RFC 1071 section 2B), and it saves swapping.
func le16(b []byte) uint16     { return binary.LittleEndian.Uint16(b) }
func le32(b []byte) uint32     { return binary.LittleEndian.Uint32(b) }
func put16(b []byte, v uint16) { binary.LittleEndian.PutUint16(b, v) }
func put32(b []byte, v uint32) { binary.LittleEndian.PutUint32(b, v) }

// ip4 is the IPv4 header, nil where there is none.
func (p *Packet) ip4() *[ip4Len]byte {
	if p.Key.Family != 4 || p.Len-p.L3 < ip4Len {
		return nil
	}
	return (*[ip4Len]byte)(p.Buf[p.Off+p.L3:])
}

// swapAddrs writes the addresses of the IPv4 header h, given in the order of memory, and mends its checksum for them and what else is changed; it returns the delta for checksums that cover a
// pseudo header, in the order of memory.
func swapAddrs(h *[ip4Len]byte, src, dst uint32, also uint64) (delta uint64) {
	delta = uint64(^le32(h[12:16])) + uint64(^le32(h[16:20])) + uint64(src) + uint64(dst)
	put32(h[12:16], src)
	put32(h[16:20], dst)
	put16(h[10:12], csum.Apply(le16(h[10:12]), delta+also))
	return delta
}

// Translate4 gives an IPv4 packet new addresses and ports and mends every checksum that covers them, incrementally
// (RFC 1624): damage done elsewhere stays visible. Ports are as in flow.Key: of an ICMP query the identifier is whichever
// of the two is not the type. A UDP checksum of zero (none) stays zero. Later fragments and protocols without ports
// get the addresses only. p.Key follows.
func Translate4(p *Packet, src, dst [4]byte, sport, dport uint16) {
	if h := p.ip4(); h != nil {
		p.translate4(h, le32(src[:]), le32(dst[:]), sport, dport, 0)
	}
}

// Header4 is the header of an IPv4 packet, for those who have several things to do with it; nil where there is none.
func Header4(p *Packet) *[ip4Len]byte { return p.ip4() }

// Words4 is Translate4 of the packet with header h, the addresses as words in the order of memory (binary.LittleEndian.Uint32). also is what ID4 and Hop4 have left for the checksum.
func Words4(p *Packet, h *[ip4Len]byte, src, dst uint32, sport, dport uint16, also uint64) {
	p.translate4(h, src, dst, sport, dport, also)
}

// ID4 is SetID, but for the checksum: Words4 is to be told what it returns.
func ID4(h *[ip4Len]byte, id uint16) (also uint64) {
	id = bits.ReverseBytes16(id)
	also = uint64(^le16(h[4:6])) + uint64(id)
	put16(h[4:6], id)
	return also
}

// Hop4 is DecTTL of a packet whose TTL is not 0, but for the checksum: Words4 is to be told what it returns.
func Hop4(p *Packet, h *[ip4Len]byte) (also uint64) {
	h[8]--
	p.TTL--
	return 0xfffe // the complement of the word in which the TTL stands, and that word less 1
}

func (p *Packet) translate4(h *[ip4Len]byte, src, dst uint32, sport, dport uint16, also uint64) {
	delta := swapAddrs(h, src, dst, also)
	put32(p.Key.Src[:4], src)
	put32(p.Key.Dst[:4], dst)
	if p.Flags&FlagFragLater != 0 {
		return
	}
	t4 := p.Len - p.L4 // bytes from the transport header on
	switch p.Key.Proto {
	case flow.UDP:
		if t4 < udpLen {
			return
		}
		t := (*[udpLen]byte)(p.Buf[p.Off+p.L4:])
		ports := uint32(bits.ReverseBytes16(sport)) | uint32(bits.ReverseBytes16(dport))<<16
		old := le32(t[0:4])
		put32(t[0:4], ports)
		if c := le16(t[6:8]); c != 0 {
			put16(t[6:8], csum.NonZero(csum.Apply(c, delta+uint64(^old)+uint64(ports))))
		}
	case flow.TCP:
		if t4 < tcpLen {
			return
		}
		t := (*[tcpLen]byte)(p.Buf[p.Off+p.L4:])
		ports := uint32(bits.ReverseBytes16(sport)) | uint32(bits.ReverseBytes16(dport))<<16
		old := le32(t[0:4])
		put32(t[0:4], ports)
		put16(t[16:18], csum.Apply(le16(t[16:18]), delta+uint64(^old)+uint64(ports)))
	case flow.ICMP:
		if p.Flags&FlagICMPQuery == 0 || t4 < icmpLen {
			return
		}
		t := (*[icmpLen]byte)(p.Buf[p.Off+p.L4:])
		id := sport
		if p.Flags&FlagICMPReply != 0 {
			id, sport = dport, p.Key.SPort
		} else {
			dport = p.Key.DPort
		}
		id = bits.ReverseBytes16(id)
		// Of the two zeros take 0xffff: it alone is right for a reply whose every other byte is zero, where RFC 1624 gives the other.
		put16(t[2:4], csum.NonZero(csum.Update16(le16(t[2:4]), le16(t[4:6]), id)))
		put16(t[4:6], id)
	case protoDCCP, protoUDPLite:
		f := p.Buf[p.Off : p.Off+p.Len]
		if t := f[p.L4:min(p.L3End, len(f))]; len(t) >= 8 {
			c := csum.Apply(le16(t[6:8]), delta)
			if p.Key.Proto == protoUDPLite {
				c = csum.NonZero(c)
			}
			put16(t[6:8], c)
		}
		return
	default:
		return
	}
	p.Key.SPort, p.Key.DPort = sport, dport
}

// TranslateOuter4 changes the addresses of the outer IPv4 header and its checksum, nothing behind it: for ICMP errors, whose
// checksum does not cover addresses. p.Key follows.
func TranslateOuter4(p *Packet, src, dst [4]byte) {
	if h := p.ip4(); h != nil {
		swapAddrs(h, le32(src[:]), le32(dst[:]), 0)
		copy(p.Key.Src[:4], src[:])
		copy(p.Key.Dst[:4], dst[:])
	}
}

// DecTTL lowers the TTL or hop limit by one. It never goes below zero: whether a packet may be forwarded is for the caller to say before.
func DecTTL(p *Packet) {
	if p.TTL == 0 {
		return
	}
	if h := p.ip4(); h != nil {
		h[8]--
		// The TTL is the first byte of its word: the sum falls by 1 in the order of memory, its complement rises by as much (RFC 1141). 0xffff must wrap too, or the result would be the other zero.
		c := uint32(le16(h[10:12])) + 1
		if c >= 0xffff {
			c++
		}
		put16(h[10:12], uint16(c))
		p.TTL--
	} else if p.Key.Family == 6 && p.Len-p.L3 >= ip6Len {
		p.Buf[p.Off+p.L3+7]--
		p.TTL--
	}
}

// SetTOS writes the IPv4 TOS byte or the IPv6 traffic class: DSCP in the upper six bits, ECN in the lower two.
func SetTOS(p *Packet, tos uint8) {
	f := p.Buf[p.Off : p.Off+p.Len]
	switch {
	case p.Key.Family == 4 && len(f)-p.L3 >= ip4Len:
		h := (*[ip4Len]byte)(f[p.L3:])
		put16(h[10:12], csum.Update16(le16(h[10:12]), uint16(h[1])<<8, uint16(tos)<<8))
		h[1] = tos
	case p.Key.Family == 6 && len(f)-p.L3 >= ip6Len:
		h := (*[ip6Len]byte)(f[p.L3:])
		h[0] = h[0]&0xf0 | tos>>4
		h[1] = h[1]&0x0f | tos<<4
	default:
		return
	}
	p.TOS = tos
}

// SetL2 writes the Ethernet header: both addresses, and one 802.1Q tag pushed, popped or rewritten so that the frame is in vlan (0 =
// untagged). A tag that stays keeps its priority bits. Off, Len and all offsets follow. It returns false, with nothing
// changed, when there is no headroom for a tag or vlan is no VLAN id.
func SetL2(p *Packet, dst, src *[6]byte, vlan uint16) bool {
	if vlan == 0 && p.L2Len == ethLen && p.Len >= ethLen { // as nearly all are
		p.setMACs((*[ethLen]byte)(p.Buf[p.Off:]), dst, src)
		p.VLAN = 0
		return true
	}
	if vlan >= vidMask || p.L2Len != ethLen && p.L2Len != ethLen+tagLen || p.Len < int(p.L2Len) {
		return false
	}
	tci := vlan
	switch {
	case vlan != 0 && p.L2Len == ethLen:
		if p.Off < tagLen {
			return false
		}
		p.shiftL2(tagLen)
	case vlan == 0 && p.L2Len != ethLen:
		p.shiftL2(-tagLen)
	case vlan != 0:
		tci |= be16(p.Buf[p.Off+14:p.Off+16]) &^ vidMask
	}
	f := p.Buf[p.Off : p.Off+p.Len]
	h := (*[ethLen]byte)(f)
	p.setMACs(h, dst, src)
	et := h[12:14]
	if vlan != 0 {
		t := (*[ethLen + tagLen]byte)(f)
		binary.BigEndian.PutUint32(t[12:16], EtherVLAN<<16|uint32(tci))
		et = t[16:18]
	}
	binary.BigEndian.PutUint16(et, p.EtherType)
	p.VLAN = vlan
	return true
}

func (p *Packet) setMACs(h *[ethLen]byte, dst, src *[6]byte) {
	put32(h[0:4], le32(dst[0:4]))
	put16(h[4:6], le16(dst[4:6]))
	put32(h[6:10], le32(src[0:4]))
	put16(h[10:12], le16(src[4:6]))
	p.Flags = p.Flags&^FlagMcastMAC | Flags(dst[0]&1)*FlagMcastMAC
}

// shiftL2 makes the Ethernet header n bytes longer towards the front; the caller has checked that there is room and fills it.
func (p *Packet) shiftL2(n int) {
	p.Off -= n
	p.Len += n
	p.L2Len = uint8(int(p.L2Len) + n)
	p.L3 += n
	p.L4 += n
	p.L3End += n
}

// ClampMSS lowers the maximum segment size that a SYN or SYN/ACK announces to mss and mends the TCP checksum; it never raises or adds
// one. It reports whether it changed the packet.
func ClampMSS(p *Packet, mss uint16) bool {
	if p.Key.Proto != flow.TCP || p.TCPFlags&TCPSyn == 0 || p.Flags&FlagFragLater != 0 {
		return false
	}
	f := p.Buf[p.Off : p.Off+p.Len]
	if p.L3End > len(f) || p.L3End-p.L4 < tcpLen {
		return false
	}
	t := f[p.L4:p.L3End]
	end := min(int(t[12]>>4)*4, len(t))
	for at := tcpLen; at < end; {
		switch t[at] {
		case 0:
			return false
		case 1:
			at++
			continue
		}
		if end-at < 2 || t[at+1] < 2 || int(t[at+1]) > end-at {
			return false
		}
		if t[at] == 2 && t[at+1] == 4 {
			v := be16(t[at+2 : at+4])
			if v <= mss {
				return false
			}
			binary.BigEndian.PutUint16(t[at+2:at+4], mss)
			old, new := v, mss
			if at&1 != 0 { // the value straddles two words: in the sum its bytes stand swapped
				old, new = bits.ReverseBytes16(old), bits.ReverseBytes16(new)
			}
			binary.BigEndian.PutUint16(t[16:18], csum.Update16(be16(t[16:18]), old, new))
			return true
		}
		at += int(t[at+1])
	}
	return false
}

// WindowScale finds the window scale option of a SYN or SYN/ACK (RFC 7323 section 2.2); -1 when there is none. Values above 14 count as 14.
func WindowScale(p *Packet) int8 {
	if p.Key.Proto != flow.TCP || p.TCPFlags&TCPSyn == 0 || p.Flags&FlagFragLater != 0 {
		return -1
	}
	f := p.Buf[p.Off : p.Off+p.Len]
	if p.L3End > len(f) || p.L3End-p.L4 < tcpLen {
		return -1
	}
	t := f[p.L4:p.L3End]
	o := t[tcpLen:max(tcpLen, min(int(t[12]>>4)*4, len(t)))]
	for len(o) > 0 && o[0] != 0 {
		if o[0] == 1 {
			o = o[1:]
			continue
		}
		if len(o) < 2 || o[1] < 2 || int(o[1]) > len(o) {
			return -1
		}
		if o[0] == 3 && o[1] == 3 {
			return int8(min(o[2], 14))
		}
		o = o[o[1]:]
	}
	return -1
}

// minFrame is the shortest Ethernet frame without its checksum (IEEE 802.3 section 4.2.3.3).
const minFrame = 60

// Pad60 lengthens a shorter frame to 60 bytes with zeros, as far as Buf has room; what lay there before must not leave the machine (the
// padding leak CVE-2003-0001).
func Pad60(p *Packet) {
	end := min(p.Off+minFrame, len(p.Buf))
	if p.Off+p.Len < end {
		clear(p.Buf[p.Off+p.Len : end])
		p.Len = end - p.Off
	}
}
