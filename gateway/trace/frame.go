package trace

import (
	"encoding/binary"
	"errors"
	"fmt"

	"demarc/gateway/flow"
	"demarc/gateway/packet"
	"demarc/gateway/packet/csum"
)

// Spec describes a frame to be built.
type Spec struct {
	SrcMAC, DstMAC [6]byte
	VLAN           uint16 // 0 = untagged
	Key            flow.Key
	TTL            uint8
	TOS            uint8
	DF             bool
	Len            int // IP bytes; 0 = as short as it may be
	TCPFlags       uint8
	Seq, Ack       uint32
	ICMPType       uint8 // of ICMP that is no query: Key has no ports then
	ICMPCode       uint8
	Quote          *flow.Key // of an ICMP error
}

var be = binary.BigEndian

// MaxLen is the longest packet that Build makes, IP bytes.
const MaxLen = 9000

// Build makes the frame, with right checksums. Payload is zeroes.
func Build(s *Spec) ([]byte, error) {
	l2, l3 := 14, 20
	if s.VLAN != 0 {
		l2 = 18
	}
	if s.Key.Family == 6 {
		l3 = 40
	}
	l4, err := transport(s)
	if err != nil {
		return nil, err
	}
	total := l3 + len(l4)
	if s.Len != 0 {
		if s.Len < total {
			return nil, fmt.Errorf("length %d: the headers alone are %d bytes", s.Len, total)
		}
		if s.Len > MaxLen {
			return nil, fmt.Errorf("length %d: at most %d bytes can be tried", s.Len, MaxLen)
		}
		l4 = append(l4, make([]byte, s.Len-total)...)
		total = s.Len
	}
	f := make([]byte, l2+l3, l2+total)
	copy(f, s.DstMAC[:])
	copy(f[6:], s.SrcMAC[:])
	et := f[12:]
	if s.VLAN != 0 {
		be.PutUint32(et, uint32(packet.EtherVLAN)<<16|uint32(s.VLAN))
		et = et[4:]
	}
	header(f[l2:], &s.Key, total, s.TTL, s.TOS, s.DF)
	be.PutUint16(et, packet.EtherIPv4)
	if s.Key.Family == 6 {
		be.PutUint16(et, packet.EtherIPv6)
	}
	seal(&s.Key, l4)
	return append(f, l4...), nil
}

// header writes an IP header for k.
func header(h []byte, k *flow.Key, total int, ttl, tos uint8, df bool) {
	if k.Family == 6 {
		be.PutUint32(h, 6<<28|uint32(tos)<<20)
		be.PutUint16(h[4:], uint16(total-40))
		h[6], h[7] = k.Proto, ttl
		copy(h[8:], k.Src[:])
		copy(h[24:], k.Dst[:])
		return
	}
	h[0], h[1] = 0x45, tos
	be.PutUint16(h[2:], uint16(total))
	if df {
		h[6] = 0x40
	}
	h[8], h[9] = ttl, k.Proto
	copy(h[12:], k.Src[:4])
	copy(h[16:], k.Dst[:4])
	be.PutUint16(h[10:], csum.Checksum(csum.Sum(0, h[:20])))
}

// transport makes the transport header, its checksum still 0.
func transport(s *Spec) ([]byte, error) {
	k := &s.Key
	switch k.Proto {
	case flow.UDP:
		t := make([]byte, 8)
		be.PutUint16(t, k.SPort)
		be.PutUint16(t[2:], k.DPort)
		return t, nil
	case flow.TCP:
		t := make([]byte, 20)
		be.PutUint16(t, k.SPort)
		be.PutUint16(t[2:], k.DPort)
		be.PutUint32(t[4:], s.Seq)
		be.PutUint32(t[8:], s.Ack)
		t[12], t[13] = 5<<4, s.TCPFlags
		be.PutUint16(t[14:], 65535)
		return t, nil
	case flow.ICMP, flow.ICMPv6:
		if (k.Proto == flow.ICMP) != (k.Family == 4) {
			return nil, errors.New("icmp belongs to IPv4 and icmpv6 to IPv6")
		}
		t := make([]byte, 8)
		t[0], t[1] = s.ICMPType, s.ICMPCode
		be.PutUint16(t[4:], k.SPort)
		if s.Quote == nil {
			return t, nil
		}
		q := s.Quote
		if q.Family != k.Family {
			return nil, errors.New("an icmp error quotes a packet of its own family")
		}
		clear(t[4:])
		n := 20
		if q.Family == 6 {
			n = 40
		}
		inner, err := transport(&Spec{Key: *q, TCPFlags: packet.TCPSyn, ICMPType: map[uint8]uint8{flow.ICMP: packet.ICMPEcho, flow.ICMPv6: packet.ICMP6Echo}[q.Proto]})
		if err != nil {
			return nil, err
		}
		h := make([]byte, n)
		header(h, q, n+len(inner), 1, 0, false)
		seal(q, inner)
		return append(append(t, h...), inner...), nil
	}
	return nil, nil
}

// seal writes lengths and checksum into a transport header with all that follows it.
func seal(k *flow.Key, t []byte) {
	at := -1
	switch k.Proto {
	case flow.UDP:
		be.PutUint16(t[4:], uint16(len(t)))
		at = 6
	case flow.TCP:
		at = 16
	case flow.ICMP, flow.ICMPv6:
		at = 2
	}
	if at < 0 {
		return
	}
	var sum uint64
	switch {
	case k.Family == 6:
		src, dst := [16]byte(k.Src), [16]byte(k.Dst)
		sum = csum.Pseudo6(&src, &dst, k.Proto, len(t))
	case k.Proto != flow.ICMP:
		sum = csum.Pseudo4([4]byte(k.Src[:4]), [4]byte(k.Dst[:4]), k.Proto, len(t))
	}
	t[at], t[at+1] = 0, 0
	be.PutUint16(t[at:], csum.NonZero(csum.Checksum(csum.Sum(sum, t))))
}
