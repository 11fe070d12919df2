package e2e

import (
	"encoding/binary"
	"net"
	"net/netip"

	"demarc/gateway/packet/csum"
)

// raw4 is a whole Ethernet frame with an IPv4 packet. The transport checksum is written at offset sum of the payload (0 = none).
func raw4(dst, src net.HardwareAddr, from, to netip.Addr, proto, ttl uint8, df bool, payload []byte, sum int) []byte {
	f := make([]byte, 34, 34+len(payload))
	copy(f, dst)
	copy(f[6:], src)
	f[12] = 8
	h := f[14:34]
	h[0] = 0x45
	binary.BigEndian.PutUint16(h[2:], uint16(20+len(payload)))
	if df {
		h[6] = 0x40
	}
	h[8], h[9] = ttl, proto
	copy(h[12:], from.AsSlice())
	copy(h[16:], to.AsSlice())
	binary.BigEndian.PutUint16(h[10:], csum.Checksum(csum.Sum(0, h)))
	f = append(f, payload...)
	if sum > 0 {
		l4 := f[34:]
		acc := uint64(0)
		if proto != 1 {
			acc = csum.Pseudo4(from.As4(), to.As4(), proto, len(l4))
		}
		binary.BigEndian.PutUint16(l4[sum:], csum.NonZero(csum.Checksum(csum.Sum(acc, l4))))
	}
	return f
}

func udp(sport, dport uint16, body []byte) []byte {
	b := binary.BigEndian.AppendUint16(nil, sport)
	b = binary.BigEndian.AppendUint16(b, dport)
	b = binary.BigEndian.AppendUint16(b, uint16(8+len(body)))
	return append(append(b, 0, 0), body...)
}

func tcpSyn(sport, dport uint16) []byte {
	b := binary.BigEndian.AppendUint16(nil, sport)
	b = binary.BigEndian.AppendUint16(b, dport)
	return append(b, 1, 2, 3, 4, 0, 0, 0, 0, 5<<4, 2, 0xff, 0xff, 0, 0, 0, 0)
}

func echoRequest(id uint16) []byte {
	b := []byte{8, 0, 0, 0}
	b = binary.BigEndian.AppendUint16(b, id)
	return append(b, 0, 1, 'd', 'e', 'm', 'a', 'r', 'c')
}
