package packet_test

import (
	"bytes"
	"math/rand/v2"
	"net"
	"testing"

	"demarc/gateway/flow"
	"demarc/gateway/packet"
	"demarc/gateway/packet/badpackets"
	"demarc/gateway/verdict"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
)

// randomFrame serialises a random frame with gopacket, which computes lengths and checksums by itself.
func randomFrame(t *testing.T, r *rand.Rand) (frame []byte, key flow.Key) {
	bytesOf := func(n int) []byte {
		b := make([]byte, n)
		for i := range b {
			b[i] = byte(r.Uint32())
		}
		return b
	}
	eth := &layers.Ethernet{SrcMAC: bytesOf(6), DstMAC: bytesOf(6)}
	eth.DstMAC[0] &^= 1
	stack := []gopacket.SerializableLayer{eth}
	var ip gopacket.NetworkLayer
	v6 := r.IntN(3) == 0
	et := layers.EthernetTypeIPv4
	if v6 {
		et = layers.EthernetTypeIPv6
	}
	if r.IntN(2) == 0 {
		eth.EthernetType = layers.EthernetTypeDot1Q
		stack = append(stack, &layers.Dot1Q{VLANIdentifier: uint16(1 + r.IntN(4094)), Priority: uint8(r.IntN(8)), Type: et})
	} else {
		eth.EthernetType = et
	}
	proto := []layers.IPProtocol{layers.IPProtocolUDP, layers.IPProtocolTCP, layers.IPProtocolICMPv4}[r.IntN(3)]
	key.Family, key.Proto = 4, uint8(proto)
	if v6 {
		if proto == layers.IPProtocolICMPv4 {
			proto = layers.IPProtocolICMPv6
		}
		h := &layers.IPv6{Version: 6, TrafficClass: uint8(r.Uint32()), FlowLabel: r.Uint32() & 0xfffff, NextHeader: proto, HopLimit: uint8(1 + r.IntN(255)), SrcIP: bytesOf(16), DstIP: bytesOf(16)}
		key.Src, key.Dst, key.Family, key.Proto = flow.Addr(h.SrcIP), flow.Addr(h.DstIP), 6, uint8(proto)
		stack, ip = append(stack, h), h
	} else {
		h := &layers.IPv4{Version: 4, TOS: uint8(r.Uint32()), Id: uint16(r.Uint32()), TTL: uint8(1 + r.IntN(255)), Protocol: proto, SrcIP: bytesOf(4), DstIP: bytesOf(4)}
		if r.IntN(4) == 0 {
			h.Options = []layers.IPv4Option{{OptionType: 148, OptionLength: 4, OptionData: bytesOf(2)}}
		}
		copy(key.Src[:], h.SrcIP)
		copy(key.Dst[:], h.DstIP)
		stack, ip = append(stack, h), h
	}
	key.SPort, key.DPort = uint16(r.Uint32()), uint16(r.Uint32())
	switch proto {
	case layers.IPProtocolUDP:
		u := &layers.UDP{SrcPort: layers.UDPPort(key.SPort), DstPort: layers.UDPPort(key.DPort)}
		_ = u.SetNetworkLayerForChecksum(ip)
		stack = append(stack, u)
	case layers.IPProtocolTCP:
		c := &layers.TCP{SrcPort: layers.TCPPort(key.SPort), DstPort: layers.TCPPort(key.DPort), Seq: r.Uint32(), Ack: r.Uint32(), Window: uint16(r.Uint32()), ACK: true, SYN: r.IntN(2) == 0}
		if r.IntN(2) == 0 { // on an odd offset every other time
			if r.IntN(2) == 0 {
				c.Options = append(c.Options, layers.TCPOption{OptionType: layers.TCPOptionKindNop})
			}
			c.Options = append(c.Options, layers.TCPOption{OptionType: layers.TCPOptionKindMSS, OptionLength: 4, OptionData: bytesOf(2)})
		}
		_ = c.SetNetworkLayerForChecksum(ip)
		stack = append(stack, c)
	case layers.IPProtocolICMPv4:
		m := &layers.ICMPv4{TypeCode: layers.CreateICMPv4TypeCode(8, 0), Id: key.SPort, Seq: uint16(r.Uint32())}
		key.DPort = 8
		if r.IntN(2) == 0 {
			m.TypeCode = layers.CreateICMPv4TypeCode(0, 0)
			key.SPort, key.DPort = 8, m.Id
		}
		stack = append(stack, m)
	case layers.IPProtocolICMPv6:
		m := &layers.ICMPv6{TypeCode: layers.CreateICMPv6TypeCode(128, 0)}
		_ = m.SetNetworkLayerForChecksum(ip)
		key.DPort = 128
		stack = append(stack, m, &layers.ICMPv6Echo{Identifier: key.SPort})
	}
	stack = append(stack, gopacket.Payload(bytesOf(r.IntN(80))))
	out := gopacket.NewSerializeBuffer()
	if err := gopacket.SerializeLayers(out, gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true}, stack...); err != nil {
		t.Fatal(err)
	}
	return append([]byte(nil), out.Bytes()...), key
}

// TestParseAgainstGopacket compares Parse with what gopacket put in, and with what it reads out again.
func TestParseAgainstGopacket(t *testing.T) {
	const seed = 5
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	for i := range 3000 {
		frame, key := randomFrame(t, r)
		p := load(frame, headroom, 0)
		if v := packet.Parse(p); v != verdict.Pass {
			t.Fatalf("round %d: %v: %x", i, v, frame)
		}
		if p.Key != key {
			t.Fatalf("round %d: key %+v, want %+v", i, p.Key, key)
		}
		if err := valid(p); err != nil {
			t.Fatalf("round %d: %v", i, err)
		}
		g := gopacket.NewPacket(frame, layers.LayerTypeEthernet, gopacket.NoCopy)
		if l, ok := g.Layer(layers.LayerTypeTCP).(*layers.TCP); ok {
			if p.Seq != l.Seq || p.Ack != l.Ack || p.Window != l.Window || int(p.PayloadLen) != len(l.Payload) || p.TCPFlags&packet.TCPSyn != 0 != l.SYN || p.TCPFlags&packet.TCPAck == 0 {
				t.Fatalf("round %d: %+v, gopacket %+v", i, parsed(p), l)
			}
		}
		if l, ok := g.Layer(layers.LayerTypeIPv4).(*layers.IPv4); ok {
			if p.TTL != l.TTL || p.TOS != l.TOS || p.L3End-p.L3 != int(l.Length) || p.L4-p.L3 != int(l.IHL)*4 {
				t.Fatalf("round %d: %+v, gopacket %+v", i, parsed(p), l)
			}
		}
		if l, ok := g.Layer(layers.LayerTypeIPv6).(*layers.IPv6); ok {
			if p.TTL != l.HopLimit || p.TOS != l.TrafficClass || p.L3End-p.L3 != 40+int(l.Length) {
				t.Fatalf("round %d: %+v, gopacket %+v", i, parsed(p), l)
			}
		}
		if l, ok := g.Layer(layers.LayerTypeDot1Q).(*layers.Dot1Q); ok != (p.L2Len == 18) || ok && p.VLAN != l.VLANIdentifier {
			t.Fatalf("round %d: vlan %d", i, p.VLAN)
		}
	}
}

// equalButZero compares frames, taking the two zeros of an ICMP checksum for one.
func equalButZero(p *packet.Packet, got, want []byte) bool {
	if p.Key.Proto == flow.ICMP && p.L4+4 <= len(want) && be.Uint16(want[p.L4+2:]) == 0 {
		want = bytes.Clone(want)
		want[p.L4+2], want[p.L4+3] = got[p.L4+2], got[p.L4+3]
		if c := be.Uint16(got[p.L4+2:]); c != 0 && c != 0xffff {
			return false
		}
	}
	return bytes.Equal(got, want)
}

// TestRewritesAgainstRecompute does every rewrite on random frames and compares all bytes with the same frame whose fields were
// written by hand and whose checksums were then computed from nothing; gopacket must read the new values.
func TestRewritesAgainstRecompute(t *testing.T) {
	const seed = 6
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	clamped := 0
	for i := range 6000 {
		frame, _ := randomFrame(t, r)
		p, q := load(frame, headroom, 0), load(frame, headroom, 0)
		packet.Parse(p)
		packet.Parse(q)
		f := q.Frame()
		src, dst, sport, dport := [4]byte{}, [4]byte{}, uint16(r.Uint32()), uint16(r.Uint32())
		be.PutUint32(src[:], r.Uint32())
		be.PutUint32(dst[:], r.Uint32())
		if i%8 == 0 { // zeros are where one's complement has its corner
			src, dst, sport, dport = [4]byte{}, [4]byte{}, 0, 0
		}
		tos, mss := uint8(r.Uint32()), uint16(r.Uint32())
		packet.DecTTL(p)
		packet.SetTOS(p, tos)
		if packet.ClampMSS(p, mss) {
			clamped++
		}
		if q.Key.Family == 4 {
			packet.Translate4(p, src, dst, sport, dport)
			f[q.L3+1], f[q.L3+8] = tos, f[q.L3+8]-1
			copy(f[q.L3+12:], src[:])
			copy(f[q.L3+16:], dst[:])
			switch {
			case q.Key.Proto != flow.ICMP:
				be.PutUint16(f[q.L4:], sport)
				be.PutUint16(f[q.L4+2:], dport)
			case q.ICMPType == 8:
				be.PutUint16(f[q.L4+4:], sport)
			default:
				be.PutUint16(f[q.L4+4:], dport)
			}
		} else {
			be.PutUint32(f[q.L3:], be.Uint32(f[q.L3:])&^0x0ff00000|uint32(tos)<<20)
			f[q.L3+7]--
		}
		if q.Key.Proto == flow.TCP && q.TCPFlags&packet.TCPSyn != 0 {
			for at := q.L4 + 20; at < q.L4+int(f[q.L4+12]>>4)*4; at++ {
				if f[at] == 2 {
					be.PutUint16(f[at+2:], min(mss, be.Uint16(f[at+2:])))
				}
				if f[at] != 1 {
					break
				}
			}
		}
		recompute(q)
		if !equalButZero(p, p.Frame(), f) {
			t.Fatalf("round %d: got\n%x, want\n%x", i, p.Frame(), f)
		}
		if p.TTL > 0 || p.Key.Family == 4 {
			if err := same(p); err != nil {
				t.Fatalf("round %d: %v", i, err)
			}
		}
		g := gopacket.NewPacket(p.Frame(), layers.LayerTypeEthernet, gopacket.NoCopy)
		if l, ok := g.Layer(layers.LayerTypeIPv4).(*layers.IPv4); ok && (!l.SrcIP.Equal(net.IP(src[:])) || !l.DstIP.Equal(net.IP(dst[:]))) {
			t.Fatalf("round %d: gopacket reads %v > %v", i, l.SrcIP, l.DstIP)
		}
		if l, ok := g.Layer(layers.LayerTypeUDP).(*layers.UDP); ok && p.Key.Family == 4 && (uint16(l.SrcPort) != sport || uint16(l.DstPort) != dport) {
			t.Fatalf("round %d: gopacket reads ports %v > %v", i, l.SrcPort, l.DstPort)
		}
	}
	if clamped < 200 {
		t.Errorf("only %d segments were clamped: the test does not test", clamped)
	}
}

// TestHeaderChecksumEveryValue goes through all checksums that a header can have, where the corners of RFC 1141 and 1624 are.
func TestHeaderChecksumEveryValue(t *testing.T) {
	frame := good(t, "udp4", 0)
	for id := range 1 << 16 {
		p := load(frame, 0, 0)
		packet.Parse(p)
		be.PutUint16(p.Buf[18:], uint16(id))
		recompute(p)
		q := load(p.Frame(), 0, 0)
		packet.Parse(q)
		packet.DecTTL(p) // each compared alone: the second would put right the wrong zero of the first
		q.Buf[22]--
		recompute(q)
		if !bytes.Equal(p.Buf, q.Buf) {
			t.Fatalf("id %04x: TTL: checksum %x, want %x", id, p.Buf[24:26], q.Buf[24:26])
		}
		packet.SetTOS(p, uint8(id))
		q.Buf[15] = uint8(id)
		recompute(q)
		if !bytes.Equal(p.Buf, q.Buf) {
			t.Fatalf("id %04x: checksum %x, want %x", id, p.Buf[24:26], q.Buf[24:26])
		}
	}
}

func TestTranslateKeepsNoChecksum(t *testing.T) {
	p := load(good(t, "udp4 no checksum", 0), 0, 0)
	packet.Parse(p)
	packet.Translate4(p, newSrc, newDst, 1, 2)
	if f := p.Frame(); f[p.L4+6] != 0 || f[p.L4+7] != 0 {
		t.Errorf("no checksum became %x", f[p.L4+6:p.L4+8])
	}
}

// TestTranslateUDPNeverZero looks for the port that makes the sum zero: it must be sent as 0xffff.
func TestTranslateUDPNeverZero(t *testing.T) {
	frame := good(t, "udp4", 0)
	found := 0
	for port := range 1 << 16 {
		p := load(frame, 0, 0)
		packet.Parse(p)
		packet.Translate4(p, newSrc, newDst, uint16(port), 53)
		switch c := be.Uint16(p.Frame()[p.L4+6:]); c {
		case 0:
			t.Fatalf("port %d: checksum zero", port)
		case 0xffff:
			found++
			if err := valid(p); err != nil {
				t.Error(err)
			}
		}
	}
	if found == 0 {
		t.Error("no port gave a zero sum: the test does not test")
	}
}

// TestTranslateAllZeroReply is the reply whose bytes are all zero but the identifier, translated to identifier 0: RFC 1624 alone gives a checksum that no receiver accepts.
func TestTranslateAllZeroReply(t *testing.T) {
	frame := good(t, "echo reply4", 0)
	p := load(frame, 0, 0)
	packet.Parse(p)
	clear(p.Frame()[p.L4:])
	be.PutUint16(p.Frame()[p.L4+4:], 0x1234)
	recompute(p)
	packet.Parse(p)
	packet.Translate4(p, newSrc, newDst, 8, 0)
	if err := valid(p); err != nil || p.Key.DPort != 0 {
		t.Errorf("%v, key %+v", err, p.Key)
	}
}

// TestTranslateKeepsDamage: what was wrong before must be wrong after, or a receiver would take damaged data for good.
func TestTranslateKeepsDamage(t *testing.T) {
	for _, name := range []string{"udp4", "tcp4 data", "echo4", "echo reply4"} {
		frame := good(t, name, 0)
		frame[len(frame)-1] ^= 0x10
		p := load(frame, 0, 0)
		packet.Parse(p)
		packet.Translate4(p, newSrc, newDst, 4, 5)
		if valid(p) == nil {
			t.Errorf("%s: damage was mended", name)
		}
	}
}

// TestTranslateFragments translates both halves of a datagram and checks it as put together again.
func TestTranslateFragments(t *testing.T) {
	for _, name := range []string{"udp4", "tcp4 data", "echo4"} {
		whole := load(good(t, name, 0), 0, 0)
		packet.Parse(whole)
		data := whole.Frame()[whole.L4:whole.L3End]
		cut := 24
		half := func(b []byte, field uint16) *packet.Packet {
			p := load(append(bytes.Clone(whole.Frame()[:34]), b...), 0, 0)
			be.PutUint16(p.Buf[16:], uint16(20+len(b)))
			be.PutUint16(p.Buf[20:], field)
			p.Buf[24], p.Buf[25] = 0, 0
			be.PutUint16(p.Buf[24:], ^sum16(p.Buf[14:34]))
			if r := packet.Parse(p); r != verdict.Pass {
				t.Fatalf("%s: %v", name, r)
			}
			packet.Translate4(p, newSrc, newDst, 777, 888)
			if err := same(p); err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			return p
		}
		a, b := half(data[:cut], 0x2000), half(data[cut:], uint16(cut/8))
		packet.Translate4(whole, newSrc, newDst, 777, 888)
		together := append(bytes.Clone(a.Frame()[34:]), b.Frame()[34:]...)
		if err := valid(whole); err != nil || !bytes.Equal(together, whole.Frame()[34:]) {
			t.Errorf("%s: %v: fragments\n%x, whole\n%x", name, err, together, whole.Frame()[34:])
		}
	}
}

func TestTranslateUDPLite(t *testing.T) {
	p := load(good(t, "udplite", 0), 0, 0)
	packet.Parse(p)
	packet.Translate4(p, newSrc, newDst, 1, 2)
	f := p.Frame()
	if s := sum16(f[26:34], []byte{0, 136, 0, byte(p.L3End - p.L4)}, f[p.L4:p.L3End]); s != 0xffff {
		t.Errorf("sums to %04x", s)
	}
	if p.Key.SPort != 0 || !bytes.Equal(f[34:38], []byte{1, 2, 3, 4}) {
		t.Error("ports of a protocol without port translation changed")
	}
}

func TestDecTTLStopsAtZero(t *testing.T) {
	for _, name := range []string{"udp4", "udp6"} {
		p := load(good(t, name, 0), 0, 0)
		packet.Parse(p)
		for range 64 {
			packet.DecTTL(p)
		}
		if p.TTL != 0 || same(p) != nil {
			t.Fatalf("%s: TTL %d: %v", name, p.TTL, same(p))
		}
		before := bytes.Clone(p.Frame())
		if packet.DecTTL(p); !bytes.Equal(before, p.Frame()) {
			t.Errorf("%s: went below zero", name)
		}
	}
}

func TestSetL2(t *testing.T) {
	for _, tc := range []struct {
		name     string
		from, to uint16
		head     int
		ok       bool
		off, len int // change
	}{
		{"untagged stays", 0, 0, 0, true, 0, 0},
		{"push", 0, 5, 4, true, -4, 4},
		{"push without headroom", 0, 5, 3, false, 0, 0},
		{"pop", 5, 0, 0, true, 4, -4},
		{"other tag", 5, 4094, 0, true, 0, 0},
		{"no such tag", 5, 4095, 0, false, 0, 0},
		{"beyond", 5, 4096, 0, false, 0, 0},
	} {
		frame := good(t, "udp4", tc.from)
		if tc.from != 0 {
			frame[14] |= 0xd0 // priority 6, drop eligible
		}
		p := load(frame, tc.head, 0)
		packet.Parse(p)
		off, n, payload := p.Off, p.Len, bytes.Clone(p.Frame()[p.L3:])
		if ok := packet.SetL2(p, &macA, &macB, tc.to); ok != tc.ok {
			t.Errorf("%s: %v", tc.name, ok)
			continue
		}
		if !tc.ok {
			if !bytes.Equal(p.Frame(), frame) {
				t.Errorf("%s: changed", tc.name)
			}
			continue
		}
		if p.Off-off != tc.off || p.Len-n != tc.len || !bytes.Equal(p.Frame()[p.L3:], payload) {
			t.Errorf("%s: Off %+d Len %+d", tc.name, p.Off-off, p.Len-n)
		}
		want := append(append([]byte(nil), macA[:]...), macB[:]...)
		if tc.to != 0 {
			tci := tc.to
			if tc.from != 0 {
				tci |= 0xd000
			}
			want = be.AppendUint16(be.AppendUint16(want, 0x8100), tci)
		}
		want = be.AppendUint16(want, 0x0800)
		if !bytes.Equal(p.Frame()[:p.L3], want) {
			t.Errorf("%s: header %x, want %x", tc.name, p.Frame()[:p.L3], want)
		}
		if err := same(p); err != nil {
			t.Errorf("%s: %v", tc.name, err)
		}
	}
}

func TestClampMSS(t *testing.T) {
	for _, tc := range []struct {
		name string
		mss  uint16
		want bool
	}{
		{"tcp4 syn", 1460, false}, {"tcp4 syn", 1459, true}, {"tcp4 syn", 1, true}, {"tcp4 syn", 9000, false},
		{"tcp4 syn odd mss", 1400, true}, {"tcp4 syn odd mss", 0x0505, true}, {"tcp6 syn", 1220, true}, {"tcp4 data", 1, false}, {"udp4", 1, false},
	} {
		p := load(good(t, tc.name, 0), 0, 0)
		packet.Parse(p)
		before := bytes.Clone(p.Frame())
		if got := packet.ClampMSS(p, tc.mss); got != tc.want {
			t.Errorf("%s to %d: %v", tc.name, tc.mss, got)
		}
		if err := valid(p); err != nil {
			t.Errorf("%s to %d: %v", tc.name, tc.mss, err)
		}
		if !tc.want != bytes.Equal(before, p.Frame()) {
			t.Errorf("%s to %d: bytes changed: %v", tc.name, tc.mss, !tc.want)
		}
		if packet.ClampMSS(p, tc.mss) {
			t.Errorf("%s to %d: clamped twice", tc.name, tc.mss)
		}
	}
}

func TestWindowScale(t *testing.T) {
	for name, want := range map[string]int8{"tcp4 syn": 7, "tcp6 syn": 7, "tcp4 syn odd mss": -1, "tcp4 data": -1, "udp4": -1} {
		p := load(good(t, name, 0), 0, 0)
		packet.Parse(p)
		if got := packet.WindowScale(p); got != want {
			t.Errorf("%s: %d, want %d", name, got, want)
		}
	}
	frame := good(t, "tcp4 syn", 0)
	frame[73] = 200
	p := load(frame, 0, 0)
	packet.Parse(p)
	if got := packet.WindowScale(p); got != 14 {
		t.Errorf("200 counts as %d, want 14 (RFC 7323 section 2.3)", got)
	}
}

func TestPad60(t *testing.T) {
	frame := good(t, "udp4 no checksum", 0)
	p := load(frame, 2, 64)
	packet.Parse(p)
	packet.Pad60(p)
	if p.Len != 60 || !bytes.Equal(p.Frame()[:len(frame)], frame) || !bytes.Equal(p.Frame()[len(frame):], make([]byte, 60-len(frame))) {
		t.Errorf("%x", p.Frame())
	}
	p = load(frame, 2, 3)
	if packet.Pad60(p); p.Len != len(frame)+3 {
		t.Errorf("no room: Len %d", p.Len)
	}
	p = load(good(t, "tcp4 data", 0), 0, 64)
	if n := p.Len; n < 60 {
		t.Fatal(n)
	} else if packet.Pad60(p); p.Len != n {
		t.Errorf("long frame became %d", p.Len)
	}
}

// TestTranslateInner translates what errors quote and checks every field by a second look.
func TestTranslateInner(t *testing.T) {
	for _, tc := range []struct {
		name         string
		sport, dport uint16 // as quoted
		cut          bool
	}{
		{"unreachable4 udp", 40000, 53, false}, {"unreachable4 tcp cut", 40001, 80, true}, {"unreachable4 tcp", 40001, 80, false}, {"exceeded4 echo", 0x1234, 8, false},
		{"exceeded4 echo reply", 8, 0x1234, false},
	} {
		p := load(good(t, tc.name, 0), 0, 0)
		packet.Parse(p)
		in, r := packet.ParseInner(p)
		e := badEnds(0)
		if r != verdict.Pass || [4]byte(in.Key.Src[:4]) != e.Dst4 || [4]byte(in.Key.Dst[:4]) != e.Src4 || in.Key.SPort != tc.sport || in.Key.DPort != tc.dport || in.Truncated != tc.cut || !in.HasPorts {
			t.Errorf("%s: %v: %+v", tc.name, r, in)
		}
		quoteOK := func() bool {
			q := load(append(make([]byte, 12, 200), append([]byte{8, 0}, p.Frame()[in.L3:in.End]...)...), 0, 0)
			return packet.Parse(q) == verdict.Pass && valid(q) == nil
		}
		if !tc.cut && !quoteOK() {
			t.Fatalf("%s: quote is bad to begin with", tc.name)
		}
		packet.TranslateInner4(p, &in, newSrc, newDst, 1111, 2222)
		packet.TranslateOuter4(p, newDst, newSrc)
		if err := valid(p); err != nil {
			t.Errorf("%s: %v", tc.name, err)
		}
		if err := same(p); err != nil {
			t.Errorf("%s: %v", tc.name, err)
		}
		if sum16(p.Frame()[in.L3:in.L4]) != 0xffff {
			t.Errorf("%s: quoted IP checksum", tc.name)
		}
		if !tc.cut && !quoteOK() {
			t.Errorf("%s: quoted checksums", tc.name)
		}
		after, r := packet.ParseInner(p)
		if after != in || r != verdict.Pass {
			t.Errorf("%s: %v: %+v, says %+v", tc.name, r, after, in)
		}
		want := flow.Key{SPort: 1111, DPort: 2222, Proto: in.Proto, Family: 4}
		if in.Proto == flow.ICMP && in.Query&packet.FlagICMPReply != 0 {
			want.SPort = 8
		} else if in.Proto == flow.ICMP {
			want.DPort = 8
		}
		copy(want.Src[:], newSrc[:])
		copy(want.Dst[:], newDst[:])
		if in.Key != want {
			t.Errorf("%s: key %+v, want %+v", tc.name, in.Key, want)
		}
	}
}

// TestTranslateInnerKeepsDamage: the transport checksum inside a quote is not looked at, and stays as wrong as it was (RFC 5508 REQ-3c).
func TestTranslateInnerKeepsDamage(t *testing.T) {
	for _, c := range badpackets.AllFor(1, badEnds(0)) {
		if c.Name != "icmp/quoted transport checksum wrong" {
			continue
		}
		p := load(c.Frame, 0, 0)
		packet.Parse(p)
		in, r := packet.ParseInner(p)
		if r != verdict.Pass {
			t.Fatal(r)
		}
		in0 := in.Key
		src, dst := in0.Src[:4], in0.Dst[:4]
		packet.TranslateInner4(p, &in, newSrc, newDst, 5, 6)
		if err := valid(p); err != nil {
			t.Error(err)
		}
		if sum16(p.Frame()[in.L3:in.L4]) != 0xffff {
			t.Error("the quoted IP checksum was not kept right")
		}
		packet.TranslateInner4(p, &in, [4]byte(src[:]), [4]byte(dst[:]), in0.SPort, in0.DPort)
		if got := p.Frame()[in.L4+6 : in.L4+8]; got[0] != 0xbe || got[1] != 0xef {
			t.Errorf("there and back, the quoted checksum is %x", got)
		}
		return
	}
	t.Fatal("case is gone")
}

func TestNoAllocation(t *testing.T) {
	for _, c := range badpackets.Good(badEnds(3)) {
		p := load(c.Frame, headroom, 64)
		n := testing.AllocsPerRun(20, func() {
			p.Off, p.Len = headroom, len(c.Frame)
			copy(p.Buf[p.Off:], c.Frame)
			packet.Parse(p)
			if in, r := packet.ParseInner(p); r == verdict.Pass {
				packet.TranslateInner4(p, &in, newSrc, newDst, 1, 2)
			}
			packet.Translate4(p, newSrc, newDst, 1, 2)
			packet.TranslateOuter4(p, newDst, newSrc)
			packet.DecTTL(p)
			packet.SetTOS(p, 0xb8)
			packet.ClampMSS(p, 1000)
			packet.WindowScale(p)
			packet.SetL2(p, &macA, &macB, 0)
			packet.SetL2(p, &macA, &macB, 9)
			packet.Pad60(p)
		})
		if n != 0 {
			t.Errorf("%s: %v allocations", c.Name, n)
		}
	}
}

func benchParse(b *testing.B, name string, vlan uint16) {
	p := load(good(b, name, vlan), headroom, 0)
	b.ReportAllocs()
	for b.Loop() {
		if packet.Parse(p) != verdict.Pass {
			b.Fatal("does not parse")
		}
	}
}

func BenchmarkParseUDP4(b *testing.B)     { benchParse(b, "udp4", 0) }
func BenchmarkParseUDP4VLAN(b *testing.B) { benchParse(b, "udp4", 5) }
func BenchmarkParseTCP4(b *testing.B)     { benchParse(b, "tcp4 data", 0) }
func BenchmarkParseUDP6(b *testing.B)     { benchParse(b, "udp6", 0) }

func benchTranslate(b *testing.B, name string) {
	p := load(good(b, name, 0), headroom, 0)
	packet.Parse(p)
	b.ReportAllocs()
	var port uint16
	for b.Loop() {
		port++
		packet.Translate4(p, newSrc, newDst, port, 53)
	}
}

func BenchmarkTranslate4UDP(b *testing.B)  { benchTranslate(b, "udp4") }
func BenchmarkTranslate4TCP(b *testing.B)  { benchTranslate(b, "tcp4 data") }
func BenchmarkTranslate4Echo(b *testing.B) { benchTranslate(b, "echo4") }

func BenchmarkDecTTL(b *testing.B) {
	p := load(good(b, "udp4", 0), headroom, 0)
	packet.Parse(p)
	for b.Loop() {
		p.TTL = 64
		packet.DecTTL(p)
	}
}

func BenchmarkSetL2(b *testing.B) {
	p := load(good(b, "udp4", 0), headroom, 0)
	packet.Parse(p)
	for b.Loop() {
		packet.SetL2(p, &macA, &macB, 0)
	}
}

func BenchmarkParseInner(b *testing.B) {
	p := load(good(b, "unreachable4 udp", 0), headroom, 0)
	packet.Parse(p)
	for b.Loop() {
		if _, r := packet.ParseInner(p); r != verdict.Pass {
			b.Fatal(r)
		}
	}
}
