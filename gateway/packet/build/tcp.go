package build

import (
	"demarc/gateway/flow"
	"demarc/gateway/packet"
	"demarc/gateway/packet/csum"
)

// TCPReset turns a TCP segment into the reset that a closed port answers with (RFC 9293 section 3.10.7.1), without options. It
// returns false for a reset, a fragment, a wrong TCP checksum, and addresses that are no single host's.
func TCPReset(p *packet.Packet) bool {
	if p.Key.Proto != flow.TCP || p.Flags&(packet.FlagFragFirst|packet.FlagFragLater|packet.FlagMcastMAC) != 0 || p.TCPFlags&packet.TCPRst != 0 {
		return false
	}
	f := p.Frame()
	l3 := p.L3
	src6, dst6 := [16]byte(p.Key.Src), [16]byte(p.Key.Dst)
	src4, dst4 := [4]byte(p.Key.Src[:4]), [4]byte(p.Key.Dst[:4])
	seg := f[p.L4:p.L3End]
	var pseudo uint64
	if p.Key.Family == 4 {
		if !host4(&p.Key.Src) || group4(&p.Key.Dst) {
			return false
		}
		pseudo = csum.Pseudo4(src4, dst4, flow.TCP, len(seg))
	} else {
		if !host6(&p.Key.Src) || p.Key.Dst[0] == 0xff {
			return false
		}
		pseudo = csum.Pseudo6(&src6, &dst6, flow.TCP, len(seg))
	}
	if csum.Fold(csum.Sum(pseudo, seg)) != 0xffff {
		return false
	}

	// RFC 9293 section 3.10.7.1: with ACK, <SEQ=SEG.ACK><CTL=RST>; without, <SEQ=0><ACK=SEG.SEQ+SEG.LEN><CTL=RST,ACK>.
	seq, ack, flags := p.Ack, uint32(0), uint8(packet.TCPRst)
	if p.TCPFlags&packet.TCPAck == 0 {
		n := uint32(p.PayloadLen)
		if p.TCPFlags&packet.TCPSyn != 0 {
			n++
		}
		if p.TCPFlags&packet.TCPFin != 0 {
			n++
		}
		seq, ack, flags = 0, p.Seq+n, packet.TCPRst|packet.TCPAck
	}

	// The answer is never longer than what it answers: both parts of the header lie within the segment's own.
	var t []byte
	if p.Key.Family == 4 {
		header4(f[l3:], 0, ip4Len+tcpLen, flow.TCP, dst4, src4)
		t = f[l3+ip4Len : l3+ip4Len+tcpLen]
		pseudo = csum.Pseudo4(dst4, src4, flow.TCP, tcpLen)
	} else {
		header6(f[l3:], 0, tcpLen, flow.TCP, ttl, dst6, src6)
		t = f[l3+ip6Len : l3+ip6Len+tcpLen]
		pseudo = csum.Pseudo6(&dst6, &src6, flow.TCP, tcpLen)
	}
	be.PutUint16(t[0:2], p.Key.DPort)
	be.PutUint16(t[2:4], p.Key.SPort)
	be.PutUint32(t[4:8], seq)
	be.PutUint32(t[8:12], ack)
	t[12], t[13] = tcpLen/4<<4, flags
	clear(t[14:20])
	be.PutUint16(t[16:18], csum.Checksum(csum.Sum(pseudo, t)))
	p.Len = l3 + ip4Len + tcpLen
	if p.Key.Family == 6 {
		p.Len = l3 + ip6Len + tcpLen
	}
	return again(p)
}
