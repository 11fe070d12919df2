package build

import (
	"encoding/binary"

	"demarc/gateway/flow"
	"demarc/gateway/packet"
	"demarc/gateway/packet/csum"
)

// Probe is a packet that the gateway sends of its own: an echo request, a UDP datagram, or a TCP SYN.
type Probe struct {
	SrcMAC   [6]byte // the receiver's is still to be written
	VLAN     uint16
	Src, Dst flow.Addr
	Family   uint8
	Proto    uint8 // flow.ICMP, flow.ICMPv6, flow.UDP, flow.TCP
	TTL      uint8
	DF       bool   // IPv4: do not fragment
	IPID     uint16 // IPv4, without DF
	SPort    uint16 // or the identifier of the echo
	DPort    uint16
	Seq      uint32 // of echo and TCP
	Flags    uint8  // of TCP; 0 = SYN
	Payload  []byte // not of TCP
}

// Append writes the frame behind b.
func (p *Probe) Append(b []byte) []byte {
	at := len(b)
	b = append(b, make([]byte, 6)...)
	b = append(b, p.SrcMAC[:]...)
	if p.VLAN != 0 {
		b = be.AppendUint16(b, packet.EtherVLAN)
		b = be.AppendUint16(b, p.VLAN)
	}
	var l4 []byte
	switch p.Proto {
	case flow.UDP:
		l4 = append(make([]byte, 8), p.Payload...)
		be.PutUint16(l4[0:], p.SPort)
		be.PutUint16(l4[2:], p.DPort)
		be.PutUint16(l4[4:], uint16(len(l4)))
	case flow.TCP:
		l4 = make([]byte, tcpLen+4)
		be.PutUint16(l4[0:], p.SPort)
		be.PutUint16(l4[2:], p.DPort)
		be.PutUint32(l4[4:], p.Seq)
		if l4[12], l4[13] = 6<<4, p.Flags; p.Flags == 0 {
			l4[13] = packet.TCPSyn
		}
		be.PutUint16(l4[14:], 5840)
		copy(l4[tcpLen:], []byte{2, 4, 1460 >> 8, 1460 & 255})
	default:
		l4 = append(make([]byte, icmpLen), p.Payload...)
		if l4[0] = packet.ICMPEcho; p.Family == 6 {
			l4[0] = packet.ICMP6Echo
		}
		be.PutUint16(l4[4:], p.SPort)
		be.PutUint16(l4[6:], uint16(p.Seq))
	}
	sum := uint64(0)
	if p.Family == 4 {
		src, dst := [4]byte(p.Src[:4]), [4]byte(p.Dst[:4])
		b = be.AppendUint16(b, packet.EtherIPv4)
		h := make([]byte, ip4Len)
		header4(h, 0, ip4Len+len(l4), p.Proto, src, dst)
		h[8] = p.TTL
		if !p.DF {
			binary.BigEndian.PutUint16(h[4:], p.IPID)
			h[6] = 0
		}
		be.PutUint16(h[10:12], 0)
		be.PutUint16(h[10:12], csum.Checksum(csum.Sum(0, h)))
		b = append(b, h...)
		if p.Proto != flow.ICMP {
			sum = csum.Pseudo4(src, dst, p.Proto, len(l4))
		}
	} else {
		src, dst := [16]byte(p.Src), [16]byte(p.Dst)
		b = be.AppendUint16(b, packet.EtherIPv6)
		h := make([]byte, ip6Len)
		header6(h, 0, len(l4), p.Proto, p.TTL, src, dst)
		b = append(b, h...)
		sum = csum.Pseudo6(&src, &dst, p.Proto, len(l4))
	}
	c := csum.Checksum(csum.Sum(sum, l4))
	switch p.Proto {
	case flow.UDP:
		be.PutUint16(l4[6:], csum.NonZero(c))
	case flow.TCP:
		be.PutUint16(l4[16:], c)
	default:
		be.PutUint16(l4[2:], c)
	}
	b = append(b, l4...)
	for len(b)-at < 60 {
		b = append(b, 0)
	}
	return b
}
