package build_test

import (
	"bytes"
	"encoding/binary"
	"net"
	"testing"

	"demarc/gateway/flow"
	"demarc/gateway/packet"
	"demarc/gateway/packet/badpackets"
	"demarc/gateway/packet/build"
	"demarc/gateway/verdict"

	"github.com/google/go-cmp/cmp"
	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
)

var (
	be         = binary.BigEndian
	macA, macB = [6]byte{2, 1, 2, 3, 4, 5}, [6]byte{6, 5, 4, 3, 2, 1}
	gw4        = [4]byte{203, 0, 113, 1}
	gw6        = [16]byte{0x20, 1, 0xd, 0xb8, 15: 0xfe}
	ends       = badpackets.Ends{
		SrcMAC: macA, DstMAC: macB, Src4: [4]byte{198, 18, 10, 5}, Dst4: [4]byte{192, 0, 2, 1},
		Src6: [16]byte{0x20, 1, 0xd, 0xb8, 15: 5}, Dst6: [16]byte{0x20, 1, 0xd, 0xb8, 5: 1, 15: 1},
	}
)

func load(frame []byte, head, tail int) *packet.Packet {
	buf := bytes.Repeat([]byte{0xa5}, head+len(frame)+tail)
	copy(buf[head:], frame)
	p := &packet.Packet{Buf: buf, Off: head, Len: len(frame)}
	packet.Parse(p)
	return p
}

func good(t testing.TB, name string, vlan uint16) []byte {
	e := ends
	e.VLAN = vlan
	for _, c := range badpackets.Good(e) {
		if c.Name == name {
			return c.Frame
		}
	}
	t.Fatalf("no good packet %q", name)
	return nil
}

// checked decodes a frame with gopacket, serialises it again with lengths and checksums computed there, and demands the same bytes: so
// the frame is what gopacket would have sent.
func checked(t *testing.T, name string, frame []byte) gopacket.Packet {
	t.Helper()
	g := gopacket.NewPacket(frame, layers.LayerTypeEthernet, gopacket.Default)
	if e := g.ErrorLayer(); e != nil {
		t.Errorf("%s: gopacket: %v", name, e.Error())
		return g
	}
	var stack []gopacket.SerializableLayer
	var ip gopacket.NetworkLayer
	for _, l := range g.Layers() {
		if n, ok := l.(gopacket.NetworkLayer); ok {
			ip = n
		}
		if n, ok := l.(interface {
			SetNetworkLayerForChecksum(gopacket.NetworkLayer) error
		}); ok {
			_ = n.SetNetworkLayerForChecksum(ip)
		}
		s, ok := l.(gopacket.SerializableLayer)
		if !ok {
			t.Errorf("%s: cannot serialise %v", name, l.LayerType())
			return g
		}
		stack = append(stack, s)
		if m, ok := l.(*layers.ICMPv6); ok && m.TypeCode.Type() >= 128 && m.TypeCode.Type() < 130 {
			stack = append(stack, gopacket.Payload(m.Payload)) // gopacket reads an echo's data but does not write it
			break
		}
	}
	out := gopacket.NewSerializeBuffer()
	if err := gopacket.SerializeLayers(out, gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true}, stack...); err != nil {
		t.Errorf("%s: %v", name, err)
	}
	if n := len(frame); len(out.Bytes()) < n || !bytes.Equal(out.Bytes()[:n], frame) {
		t.Errorf("%s: sent\n%x, gopacket makes\n%x", name, frame, out.Bytes())
	}
	return g
}

func TestICMPError4(t *testing.T) {
	long := make([]byte, 1400)
	for i := range long {
		long[i] = byte(i)
	}
	big := good(t, "gre", 0)[:34]
	big = append(bytes.Clone(big), long...)
	be.PutUint16(big[16:], uint16(len(big)-14))
	big[24], big[25] = 0, 0
	var s uint32
	for i := 14; i < 34; i += 2 {
		s += uint32(be.Uint16(big[i:]))
	}
	be.PutUint16(big[24:], ^uint16(s+s>>16))
	for name, frame := range map[string][]byte{
		"udp": good(t, "udp4", 0), "tagged": good(t, "tcp4 data", 9), "options": good(t, "options", 0), "big": big,
		"first fragment": good(t, "first fragment", 0), "padded": append(good(t, "udp4 no checksum", 0), 0, 0, 0),
	} {
		for _, head := range []int{256, 28, 27, 0} {
			p := load(frame, head, 64)
			packet.SetTOS(p, 0xbb) // EF, congestion experienced
			quote := bytes.Clone(p.Frame()[p.L3:p.L3End])
			if !build.ICMPError4(p, gw4, packet.ICMPUnreachable, 4, 1400) {
				t.Errorf("%s: refused", name)
				continue
			}
			room := 548
			g := checked(t, name, p.Frame())
			ip, _ := g.Layer(layers.LayerTypeIPv4).(*layers.IPv4)
			m, _ := g.Layer(layers.LayerTypeICMPv4).(*layers.ICMPv4)
			if ip == nil || m == nil {
				t.Fatalf("%s: %v", name, g)
			}
			if !ip.SrcIP.Equal(net.IP(gw4[:])) || !ip.DstIP.Equal(net.IP(ends.Src4[:])) || ip.TTL != 64 || ip.TOS != quote[1]&^3 {
				t.Errorf("%s: %+v", name, ip)
			}
			if m.TypeCode != layers.CreateICMPv4TypeCode(3, 4) || m.Seq != 1400 || m.Id != 0 {
				t.Errorf("%s: %+v", name, m)
			}
			if want := quote[:min(len(quote), room)]; !bytes.Equal(m.Payload, want) {
				t.Errorf("%s headroom %d: quotes %d bytes, want %d", name, head, len(m.Payload), len(want))
			}
			if ip.Length > 576 {
				t.Errorf("%s: %d bytes", name, ip.Length)
			}
			in, r := packet.ParseInner(p)
			if r != verdict.Pass || in.Key.Src != p.Key.Dst {
				t.Errorf("%s: quote %+v: %v", name, in, r)
			}
			if !packet.SetL2(p, &macB, &macA, 0) || p.Frame()[0] != macB[0] {
				t.Errorf("%s: SetL2", name)
			}
		}
	}
	p := load(good(t, "udp4", 0), 0, 5)
	if !build.ICMPError4(p, gw4, packet.ICMPTimeExceeded, 0, 99) {
		// 46 bytes of packet, 28 of new headers and 5 of room leave less than header + 8 only below 28.
		if p.L3End-p.L3 >= 28+28-5 {
			t.Error("refused with room enough")
		}
	}
	p = load(good(t, "udp4", 0), 28, 0)
	if !build.ICMPError4(p, gw4, packet.ICMPParameterProblem, 0, 20) || p.Frame()[p.L4+4] != 20 {
		t.Error("parameter problem has no pointer")
	}
	p = load(good(t, "udp4", 0), 28, 0)
	if !build.ICMPError4(p, gw4, packet.ICMPTimeExceeded, 0, 1400) || be.Uint32(p.Frame()[p.L4+4:]) != 0 {
		t.Error("time exceeded carries an MTU")
	}
}

// TestICMPError4Forbidden is the list of RFC 1122 section 3.2.2.
func TestICMPError4Forbidden(t *testing.T) {
	addr := func(name string, at int, a ...byte) []byte {
		p := load(good(t, name, 0), 0, 0)
		src, dst := ends.Src4, ends.Dst4
		if at == 12 {
			src = [4]byte(a)
		} else {
			dst = [4]byte(a)
		}
		packet.Translate4(p, src, dst, 1, 2)
		return p.Frame()
	}
	mcast := good(t, "udp4", 0)
	mcast[0] |= 1
	for name, frame := range map[string][]byte{
		"unreachable": good(t, "unreachable4 udp", 0), "exceeded": good(t, "exceeded4 echo", 0), "later fragment": good(t, "later fragment", 0),
		"group MAC": mcast, "to multicast": addr("udp4", 16, 224, 0, 0, 1), "to broadcast": addr("udp4", 16, 255, 255, 255, 255),
		"from zero": addr("udp4", 12, 0, 0, 0, 0), "from loopback": addr("udp4", 12, 127, 0, 0, 1), "from multicast": addr("udp4", 12, 239, 1, 1, 1),
		"from broadcast": addr("udp4", 12, 255, 255, 255, 255), "ipv6": good(t, "udp6", 0), "arp": good(t, "arp request", 0),
	} {
		p := load(frame, 64, 64)
		if build.ICMPError4(p, gw4, 3, 1, 0) || !bytes.Equal(p.Frame(), frame) {
			t.Errorf("%s: answered", name)
		}
	}
	redirect := good(t, "unreachable4 udp", 0)
	redirect[34] = 5
	if build.ICMPError4(load(redirect, 64, 0), gw4, 3, 1, 0) {
		t.Error("redirect: answered")
	}
}

func TestICMPError6(t *testing.T) {
	big := append(good(t, "esp6", 0), make([]byte, 1360)...)
	be.PutUint16(big[18:], uint16(len(big)-54))
	for name, frame := range map[string][]byte{"udp": good(t, "udp6", 0), "tagged": good(t, "tcp6 syn", 9), "big": big, "extensions": good(t, "udp6 extensions", 0), "later": good(t, "later fragment6", 0)} {
		for _, head := range []int{256, 48, 47, 0} {
			p := load(frame, head, 64)
			quote := bytes.Clone(frame[p.L3:p.L3End])
			if !build.ICMPError6(p, gw6, packet.ICMP6TooBig, 0, 1400) {
				t.Errorf("%s: refused", name)
				continue
			}
			if p.L3End-p.L3 > 1280 || p.Key.Src != flow.Addr(gw6) || p.Key.Dst != flow.Addr(ends.Src6) || p.ICMPType != 2 || be.Uint32(p.Frame()[p.L4+4:]) != 1400 {
				t.Errorf("%s: %+v", name, p.Key)
			}
			if got, want := p.Frame()[p.L4+8:p.L3End], quote[:min(len(quote), 1232)]; !bytes.Equal(got, want) {
				t.Errorf("%s headroom %d: quotes %d bytes, want %d", name, head, len(got), len(want))
			}
			if name != "later" {
				if _, r := packet.ParseInner(p); r != verdict.Pass { // verifies the checksum, too
					t.Errorf("%s: %v", name, r)
				}
			}
			checked(t, name, p.Frame())
		}
	}
	toGroup := good(t, "udp6", 0)
	toGroup[38] = 0xff
	fromGroup, fromNone, redirect := good(t, "udp6", 0), good(t, "udp6", 0), good(t, "solicitation", 0)
	fromGroup[22] = 0xff
	clear(fromNone[22:38])
	redirect = append(redirect, make([]byte, 8)...)
	redirect[54] = 137
	redirect[19] += 8
	clear(redirect[78:])
	for name, c := range map[string]struct {
		frame     []byte
		typ, code uint8
		want      bool
	}{
		"to group": {toGroup, 1, 0, false}, "to group, too big": {toGroup, 2, 0, true}, "to group, option": {toGroup, 4, 2, true}, "to group, header": {toGroup, 4, 1, false},
		"from group": {fromGroup, 2, 0, false}, "from nobody": {fromNone, 2, 0, false}, "error": {good(t, "too big6", 0), 1, 0, false},
		"exceeded": {good(t, "exceeded6 extensions", 0), 3, 0, false}, "ipv4": {good(t, "udp4", 0), 1, 0, false}, "echo": {good(t, "echo6", 0), 3, 0, true},
		"redirect": {redirect, 1, 0, false},
	} {
		p := load(c.frame, 64, 0)
		if name == "redirect" {
			// 24 fixed + 8 of option do for 40 bytes of a redirect without options.
			if p.ICMPType != packet.ICMP6Redirect || p.Flags&packet.FlagND == 0 {
				t.Fatalf("redirect does not parse: %+v", p)
			}
		}
		if got := build.ICMPError6(p, gw6, c.typ, c.code, 1300); got != c.want {
			t.Errorf("%s: %v", name, got)
		}
	}
}

func TestEchoReply(t *testing.T) {
	for _, name := range []string{"echo4", "echo6"} {
		frame := good(t, name, 3)
		p := load(frame, 0, 0)
		data := bytes.Clone(p.Frame()[p.L4+4 : p.L3End])
		want := p.Key.Reverse(0)
		want.SPort, want.DPort = p.Key.DPort, p.Key.SPort
		if !build.EchoReply(p) {
			t.Errorf("%s: refused", name)
			continue
		}
		if p.Key != want || p.Flags != packet.FlagICMPQuery|packet.FlagICMPReply || p.TTL != 64 || !bytes.Equal(p.Frame()[p.L4+4:p.L3End], data) {
			t.Errorf("%s: key %+v, want %+v", name, p.Key, want)
		}
		checked(t, name, p.Frame())
		if build.EchoReply(p) {
			t.Errorf("%s: answered an answer", name)
		}
		frame[len(frame)-1] ^= 1
		if p = load(frame, 0, 0); build.EchoReply(p) || !bytes.Equal(p.Frame(), frame) {
			t.Errorf("%s: answered a damaged request", name)
		}
	}
	for _, name := range []string{"udp4", "timestamp4", "echo reply4", "echo reply6", "unreachable4 udp", "solicitation", "arp request", "tcp6 syn"} {
		if build.EchoReply(load(good(t, name, 0), 0, 0)) {
			t.Errorf("%s: answered", name)
		}
	}
}

// TestTCPReset is RFC 9293 section 3.10.7.1.
func TestTCPReset(t *testing.T) {
	for _, tc := range []struct {
		name     string
		flags    uint8
		seq, ack uint32
		want     uint8 // flags; 0 = no answer
	}{
		{"tcp4 syn", 0, 0, 0x01020305, 0x14},
		{"tcp6 syn", 0, 0, 0x01020305, 0x14},
		{"tcp4 data", 0, 0x05060708, 0, 0x04},
		{"tcp4 data", 0x01, 0, 0x01020304 + 33 + 1, 0x14},
		{"tcp4 data", 0x08, 0, 0x01020304 + 33, 0x14},
		{"tcp4 data", 0x04, 0, 0, 0},
		{"tcp4 data", 0x14, 0, 0, 0},
		{"udp4", 0, 0, 0, 0},
	} {
		p := load(good(t, tc.name, 0), 0, 0)
		if tc.flags != 0 {
			f := p.Frame()
			delta := uint32(f[p.L4+13]) - uint32(tc.flags)
			f[p.L4+13] = tc.flags
			c := uint32(be.Uint16(f[p.L4+16:])) + delta&0xffff
			if int32(delta) < 0 {
				c--
			}
			be.PutUint16(f[p.L4+16:], uint16(c+c>>16))
			packet.Parse(p)
		}
		key, before := p.Key, bytes.Clone(p.Frame())
		if got := build.TCPReset(p); got != (tc.want != 0) {
			t.Errorf("%s %02x: %v", tc.name, tc.flags, got)
			continue
		}
		if tc.want == 0 {
			if !bytes.Equal(before, p.Frame()) {
				t.Errorf("%s %02x: changed", tc.name, tc.flags)
			}
			continue
		}
		if p.TCPFlags != tc.want || p.Seq != tc.seq || p.Ack != tc.ack || p.PayloadLen != 0 || p.Window != 0 || p.Key != key.Reverse(0) || p.Len != p.L3End {
			t.Errorf("%s %02x: flags %02x seq %x ack %x key %+v", tc.name, tc.flags, p.TCPFlags, p.Seq, p.Ack, p.Key)
		}
		checked(t, tc.name, p.Frame())
	}
	frame := good(t, "tcp4 data", 0)
	frame[len(frame)-1] ^= 1
	if build.TCPReset(load(frame, 0, 0)) {
		t.Error("answered a damaged segment")
	}
}

func TestARP(t *testing.T) {
	a, b := [4]byte{192, 0, 2, 1}, [4]byte{192, 0, 2, 2}
	all := [6]byte{255, 255, 255, 255, 255, 255}
	var buf [64]byte
	for _, vlan := range []uint16{0, 77} {
		for _, tc := range []struct {
			name string
			make func() int
			dst  [6]byte
			want build.ARP
		}{
			{"request", func() int { return build.ARPRequest(buf[:], macA, a, b, [6]byte{}, vlan) }, all, build.ARP{Op: 1, SHA: macA, SPA: a, TPA: b}},
			{"probe of a neighbour", func() int { return build.ARPRequest(buf[:], macA, a, b, macB, vlan) }, macB, build.ARP{Op: 1, SHA: macA, SPA: a, TPA: b}},
			{"reply", func() int { return build.ARPReply(buf[:], macA, a, macB, b, vlan) }, macB, build.ARP{Op: 2, SHA: macA, SPA: a, THA: macB, TPA: b}},
		} {
			p := load(buf[:tc.make()], 0, 0)
			got, ok := build.ParseARP(p)
			if !ok || got != tc.want || [6]byte(p.Frame()[:6]) != tc.dst || p.VLAN != vlan {
				t.Errorf("vlan %d: %s: %v %+v to %x", vlan, tc.name, ok, got, p.Frame()[:6])
			}
			if p.Len != 60 && vlan == 0 || p.Len != 64 && vlan != 0 || bytes.Count(p.Frame()[p.L3End:], []byte{0}) != p.Len-p.L3End {
				t.Errorf("vlan %d: %s: %d bytes: %x", vlan, tc.name, p.Len, p.Frame())
			}
			g := gopacket.NewPacket(p.Frame(), layers.LayerTypeEthernet, gopacket.Default)
			if l, ok := g.Layer(layers.LayerTypeARP).(*layers.ARP); !ok || l.Operation != tc.want.Op || !bytes.Equal(l.SourceProtAddress, a[:]) || !bytes.Equal(l.DstProtAddress, b[:]) {
				t.Errorf("%s: gopacket reads %v", tc.name, g)
			}
		}
	}
	if n := build.ARPRequest(buf[:59], macA, a, b, macB, 0) + build.ARPReply(buf[:63], macA, a, macB, b, 1); n != 0 {
		t.Error("wrote into a short buffer")
	}
	n := build.ARPRequest(buf[:], macA, [4]byte{}, b, [6]byte{}, 0)
	if _, ok := build.ParseARP(load(buf[:n], 0, 0)); !ok {
		t.Error("RFC 5227 probe refused")
	}
	for name, sha := range map[string][6]byte{"broadcast": all, "zero": {}, "multicast": {1, 0, 0x5e, 0, 0, 1}} {
		n := build.ARPReply(buf[:], sha, a, macB, b, 0)
		if _, ok := build.ParseARP(load(buf[:n], 0, 0)); ok {
			t.Errorf("sender MAC %s believed", name)
		}
	}
	for _, spa := range [][4]byte{{}, {127, 0, 0, 1}, {224, 0, 0, 1}, {255, 255, 255, 255}} {
		n := build.ARPReply(buf[:], macA, spa, macB, b, 0)
		if _, ok := build.ParseARP(load(buf[:n], 0, 0)); ok {
			t.Errorf("sender %v believed", spa)
		}
	}
	if _, ok := build.ParseARP(load(good(t, "udp4", 0), 0, 0)); ok {
		t.Error("UDP is no ARP")
	}
}

func TestND(t *testing.T) {
	target := [16]byte{0x20, 1, 0xd, 0xb8, 13: 0xaa, 14: 0xbb, 15: 0xcc}
	group := [16]byte{0: 0xff, 1: 2, 11: 1, 12: 0xff, 13: 0xaa, 14: 0xbb, 15: 0xcc}
	var buf [90]byte
	for _, vlan := range []uint16{0, 77} {
		for _, tc := range []struct {
			name string
			make func() int
			dst  [6]byte
			want build.ND
		}{
			{"solicitation", func() int { return build.NeighborSolicitation(buf[:], macA, gw6, target, [6]byte{}, vlan) }, [6]byte{0x33, 0x33, 0xff, 0xaa, 0xbb, 0xcc},
				build.ND{Type: 135, Src: gw6, Dst: group, Target: target, LLA: macA, HasLLA: true}},
			{"probe of a neighbour", func() int { return build.NeighborSolicitation(buf[:], macA, gw6, target, macB, vlan) }, macB,
				build.ND{Type: 135, Src: gw6, Dst: target, Target: target, LLA: macA, HasLLA: true}},
			{"duplicate probe", func() int { return build.NeighborSolicitation(buf[:], macA, [16]byte{}, target, [6]byte{}, vlan) }, [6]byte{0x33, 0x33, 0xff, 0xaa, 0xbb, 0xcc},
				build.ND{Type: 135, Dst: group, Target: target}},
			{"advertisement", func() int { return build.NeighborAdvertisement(buf[:], macA, gw6, macB, target, gw6, true, true, vlan) }, macB,
				build.ND{Type: 136, Src: gw6, Dst: target, Target: gw6, LLA: macA, HasLLA: true, Solicited: true, Override: true, Router: true}},
			{"unsolicited", func() int {
				return build.NeighborAdvertisement(buf[:], macA, gw6, [6]byte{0x33, 0x33, 0, 0, 0, 1}, [16]byte{0: 0xff, 1: 2, 15: 1}, gw6, false, true, vlan)
			}, [6]byte{0x33, 0x33, 0, 0, 0, 1},
				build.ND{Type: 136, Src: gw6, Dst: [16]byte{0: 0xff, 1: 2, 15: 1}, Target: gw6, LLA: macA, HasLLA: true, Override: true, Router: true}},
		} {
			n := tc.make()
			p := load(buf[:n], 0, 0)
			got, ok := build.ParseND(p)
			if d := cmp.Diff(tc.want, got); !ok || d != "" || [6]byte(p.Frame()[:6]) != tc.dst || p.VLAN != vlan || p.TTL != 255 {
				t.Errorf("vlan %d: %s: %v to %x:\n%s", vlan, tc.name, ok, p.Frame()[:6], d)
			}
			checked(t, tc.name, p.Frame())
			for i := p.L4; i < p.Len; i++ { // any damage makes the checksum wrong or the message another
				q := load(p.Frame(), 0, 0)
				q.Buf[i] ^= 0x04
				if packet.Parse(q) == verdict.Pass {
					if _, ok := build.ParseND(q); ok {
						t.Fatalf("%s: byte %d damaged and believed", tc.name, i)
					}
				}
			}
		}
	}
	if n := build.NeighborSolicitation(buf[:85], macA, gw6, target, macB, 0) + build.NeighborAdvertisement(buf[:89], macA, gw6, macB, target, gw6, true, true, 1); n != 0 {
		t.Error("wrote into a short buffer")
	}
}

// TestLearnersRefuse: ARP and ND from badpackets that are well formed but must not be believed.
func TestLearnersRefuse(t *testing.T) {
	seen := 0
	for _, c := range badpackets.AllFor(1, ends) {
		if c.Want != verdict.Unset || len(c.Name) < 3 || c.Name[:3] != "nd/" && c.Name[:4] != "arp/" || c.Name == "arp/sender is the target" {
			continue
		}
		seen++
		p := load(c.Frame, 0, 0)
		_, arp := build.ParseARP(p)
		_, nd := build.ParseND(p)
		if arp || nd {
			t.Errorf("%s: believed", c.Name)
		}
	}
	if seen < 15 {
		t.Errorf("only %d cases", seen)
	}
}

func TestNoAllocation(t *testing.T) {
	var buf [128]byte
	for _, c := range badpackets.Good(ends) {
		for i, f := range []func(p *packet.Packet) bool{
			func(p *packet.Packet) bool { return build.ICMPError4(p, gw4, 11, 0, 0) }, func(p *packet.Packet) bool { return build.ICMPError6(p, gw6, 3, 0, 0) },
			build.EchoReply, build.TCPReset,
			func(p *packet.Packet) bool { _, ok := build.ParseARP(p); return ok }, func(p *packet.Packet) bool { _, ok := build.ParseND(p); return ok },
		} {
			p := load(c.Frame, 64, 0)
			if n := testing.AllocsPerRun(5, func() {
				p.Off, p.Len = 64, len(c.Frame)
				copy(p.Buf[64:], c.Frame)
				packet.Parse(p)
				f(p)
			}); n != 0 {
				t.Errorf("%s: function %d: %v allocations", c.Name, i, n)
			}
		}
	}
	if n := testing.AllocsPerRun(5, func() {
		build.ARPRequest(buf[:], macA, gw4, gw4, macB, 1)
		build.ARPReply(buf[:], macA, gw4, macB, gw4, 0)
		build.NeighborSolicitation(buf[:], macA, gw6, gw6, [6]byte{}, 1)
		build.NeighborAdvertisement(buf[:], macA, gw6, macB, gw6, gw6, true, true, 0)
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// FuzzARP feeds bytes behind an ARP header's Ethernet part; what is believed must be a host, and come back the same when sent again.
func FuzzARP(f *testing.F) {
	for _, c := range badpackets.All(1) {
		if len(c.Frame) > 14 && be.Uint16(c.Frame[12:]) == packet.EtherARP {
			f.Add(c.Frame[14:])
		}
	}
	f.Add(good(f, "arp request", 0)[14:])
	f.Add(good(f, "arp reply padded", 0)[14:])
	f.Fuzz(func(t *testing.T, body []byte) {
		p := load(append(append(make([]byte, 12), 8, 6), body...), 0, 0)
		a, ok := build.ParseARP(p)
		if !ok {
			return
		}
		if a.SHA[0]&1 != 0 || a.SHA == [6]byte{} || a.SPA[0] >= 224 || a.Op != 1 && a.Op != 2 {
			t.Fatalf("believed %+v", a)
		}
		if a.Op == 2 {
			var buf [64]byte
			n := build.ARPReply(buf[:], a.SHA, a.SPA, a.THA, a.TPA, uint16(len(body)))
			if b, ok := build.ParseARP(load(buf[:n], 0, 0)); !ok && len(body)%4096 != 4095 || ok && b != a {
				t.Fatalf("%+v came back as %+v", a, b)
			}
		}
	})
}

// FuzzND makes the bytes an ICMPv6 message with a right checksum and hop limit, so that every input reaches the last checks.
func FuzzND(f *testing.F) {
	for i, c := range badpackets.All(1) {
		if len(c.Frame) > 58 && be.Uint16(c.Frame[12:]) == packet.EtherIPv6 && c.Frame[20] == flow.ICMPv6 && i%2 == 0 {
			f.Add(c.Frame[54:], c.Frame[22:54])
		}
	}
	for _, name := range []string{"solicitation", "advertisement"} {
		f.Add(good(f, name, 0)[54:], good(f, name, 0)[22:54])
	}
	f.Fuzz(func(t *testing.T, m, addrs []byte) {
		if len(m) < 4 || len(m) > 1400 || len(addrs) != 32 {
			return
		}
		frame := append(make([]byte, 12), 0x86, 0xdd, 0x60, 0, 0, 0)
		frame = be.AppendUint16(frame, uint16(len(m)))
		frame = append(append(append(frame, 58, 255), addrs...), m...)
		frame[56], frame[57] = 0, 0
		s := uint32(58 + len(m))
		for i := 22; i < len(frame); i += 2 {
			s += uint32(frame[i]) << 8
			if i+1 < len(frame) {
				s += uint32(frame[i+1])
			}
		}
		for s > 0xffff {
			s = s>>16 + s&0xffff
		}
		be.PutUint16(frame[56:], ^uint16(s))
		p := load(frame, 0, 0)
		n, ok := build.ParseND(p)
		if !ok {
			return
		}
		if p.Flags&packet.FlagND == 0 || n.Type < 133 || n.Type > 137 || n.Target[0] == 0xff || n.Src[0] == 0xff || n.HasLLA && (n.LLA[0]&1 != 0 || n.LLA == [6]byte{}) {
			t.Fatalf("believed %+v", n)
		}
		if n.HasLLA && !bytes.Contains(m, n.LLA[:]) {
			t.Fatalf("MAC from nowhere: %+v", n)
		}
		at := int(m[2])<<8 | int(m[3])       // as good as random
		p.Buf[54+at%len(m)] ^= 1 << (at % 8) // one bit: the checksum must notice, except in what Parse refuses first
		if packet.Parse(p) == verdict.Pass {
			if _, ok := build.ParseND(p); ok {
				t.Fatalf("damage believed: %x", p.Frame())
			}
		}
	})
}
