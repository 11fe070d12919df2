package packet_test

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"testing"

	"demarc/gateway/flow"
	"demarc/gateway/packet"
	"demarc/gateway/packet/badpackets"
	"demarc/gateway/packet/build"
	"demarc/gateway/verdict"

	"github.com/google/go-cmp/cmp"
)

var be = binary.BigEndian

const headroom = 64

// load puts frame into a chunk with head bytes in front and tail bytes behind, both full of rubbish.
func load(frame []byte, head, tail int) *packet.Packet {
	buf := bytes.Repeat([]byte{0xa5}, head+len(frame)+tail)
	copy(buf[head:], frame)
	return &packet.Packet{Buf: buf, Off: head, Len: len(frame)}
}

// sum16 is the checksum as RFC 1071 tells it, word by word.
func sum16(parts ...[]byte) uint16 {
	var s uint32
	for _, b := range parts {
		for i := 0; i < len(b); i += 2 {
			w := uint32(b[i]) << 8
			if i+1 < len(b) {
				w |= uint32(b[i+1])
			}
			if s += w; s > 0xffff {
				s -= 0xffff
			}
		}
	}
	return uint16(s)
}

// l4 finds the bytes that the transport checksum of a parsed packet covers, the pseudo header, and where the field is. at is -1
// where there is none to check: fragments, unknown protocols, "no checksum" in UDP, routing headers.
func l4(p *packet.Packet) (pseudo, t []byte, at int) {
	if p.Flags&(packet.FlagFragFirst|packet.FlagFragLater|packet.FlagARP) != 0 {
		return nil, nil, -1
	}
	f := p.Frame()
	t = f[p.L4:p.L3End]
	switch p.Key.Proto {
	case flow.TCP:
		at = 16
	case flow.UDP:
		at = 6
		t = t[:be.Uint16(t[4:])]
		if t[6] == 0 && t[7] == 0 {
			return nil, nil, -1
		}
	case flow.ICMP:
		return nil, t, 2
	case flow.ICMPv6:
		at = 2
	default:
		return nil, nil, -1
	}
	if p.Key.Family == 4 {
		pseudo = append(pseudo, f[p.L3+12:p.L3+20]...)
	} else {
		if p.L4 != p.L3+40 && bytes.Contains(f[p.L3+6:p.L4], []byte{43}) { // maybe a routing header: the final address is elsewhere
			return nil, nil, -1
		}
		pseudo = append(pseudo, f[p.L3+8:p.L3+40]...)
	}
	pseudo = append(pseudo, 0, p.Key.Proto)
	return be.AppendUint16(pseudo, uint16(len(t))), t, at
}

// valid reports whether the transport checksum is right or there is none, and the IPv4 header checksum is right.
func valid(p *packet.Packet) error {
	f := p.Frame()
	if p.Key.Family == 4 {
		if s := sum16(f[p.L3 : p.L3+int(f[p.L3]&15)*4]); s != 0xffff {
			return fmt.Errorf("IP header sums to %04x", s)
		}
	}
	if pseudo, t, at := l4(p); at >= 0 {
		if s := sum16(pseudo, t); s != 0xffff {
			return fmt.Errorf("transport sums to %04x", s)
		}
	}
	return nil
}

// recompute writes all checksums of a parsed packet anew, the slow way.
func recompute(p *packet.Packet) {
	f := p.Frame()
	if p.Key.Family == 4 {
		h := f[p.L3 : p.L3+int(f[p.L3]&15)*4]
		h[10], h[11] = 0, 0
		be.PutUint16(h[10:], ^sum16(h))
	}
	if pseudo, t, at := l4(p); at >= 0 {
		t[at], t[at+1] = 0, 0
		c := ^sum16(pseudo, t)
		if c == 0 && p.Key.Proto == flow.UDP {
			c = 0xffff
		}
		be.PutUint16(t[at:], c)
	}
}

// parsed is what Parse found, without the bytes.
func parsed(p *packet.Packet) packet.Packet {
	q := *p
	q.Buf, q.Off = nil, 0
	return q
}

// inBounds checks the offsets that Parse promises after any result.
func inBounds(p *packet.Packet) error {
	if 0 <= p.L3 && p.L3 <= p.L4 && p.L4 <= p.L3End && p.L3End <= p.Len {
		return nil
	}
	return fmt.Errorf("L3 %d L4 %d L3End %d in a frame of %d", p.L3, p.L4, p.L3End, p.Len)
}

// same parses p's frame afresh and compares with what p says of itself.
func same(p *packet.Packet) error {
	q := load(p.Frame(), 0, 0)
	if r := packet.Parse(q); r != verdict.Pass {
		return fmt.Errorf("does not parse any more: %v", r)
	}
	if d := cmp.Diff(parsed(q), parsed(p)); d != "" {
		return fmt.Errorf("parsed again (-) differs from the packet's fields (+):\n%s", d)
	}
	return nil
}

var (
	newSrc, newDst = [4]byte{203, 0, 113, 7}, [4]byte{198, 51, 100, 255}
	macA, macB     = [6]byte{2, 1, 2, 3, 4, 5}, [6]byte{6, 5, 4, 3, 2, 1}
	src6           = [16]byte{0x20, 1, 0xd, 0xb8, 15: 99}
)

// survive runs everything there is over one frame and returns what went wrong. Whatever is in the frame, nothing may panic, leave the
// frame, or turn a valid checksum into a wrong one.
func survive(frame []byte, rnd *rand.Rand) error {
	first := load(frame, headroom, 8)
	r := packet.Parse(first)
	if err := inBounds(first); err != nil {
		return fmt.Errorf("parse (%v): %w", r, err)
	}
	if r == verdict.Unset || r >= verdict.NumReasons {
		return fmt.Errorf("parse returned %v", r)
	}
	if !bytes.Equal(first.Frame(), frame) {
		return fmt.Errorf("parse wrote")
	}
	good := r == verdict.Pass && valid(first) == nil
	sport, dport := uint16(rnd.Uint32()), uint16(rnd.Uint32())
	mss := uint16(rnd.Uint32())
	steps := []struct {
		name  string
		built bool // the result stands for itself: valid whatever came in
		run   func(p *packet.Packet) bool
	}{
		{"Translate4", false, func(p *packet.Packet) bool { packet.Translate4(p, newSrc, newDst, sport, dport); return true }},
		{"TranslateOuter4", false, func(p *packet.Packet) bool {
			if p.Flags&packet.FlagICMPError == 0 {
				return false
			}
			packet.TranslateOuter4(p, newSrc, newDst)
			return true
		}},
		{"DecTTL", false, func(p *packet.Packet) bool {
			if p.Flags&packet.FlagND != 0 {
				return false // its hop limit must stay 255 to parse
			}
			packet.DecTTL(p)
			return true
		}},
		{"SetTOS", false, func(p *packet.Packet) bool { packet.SetTOS(p, uint8(sport)); return true }},
		{"ClampMSS", false, func(p *packet.Packet) bool { packet.ClampMSS(p, mss); return true }},
		{"SetL2 untagged", false, func(p *packet.Packet) bool { return packet.SetL2(p, &macA, &macB, 0) }},
		{"SetL2 tagged", false, func(p *packet.Packet) bool { return packet.SetL2(p, &macA, &macB, 1+sport%4094) }},
		{"Pad60", false, func(p *packet.Packet) bool { packet.Pad60(p); return true }},
		{"TranslateInner4", false, func(p *packet.Packet) bool {
			in, r := packet.ParseInner(p)
			if r != verdict.Pass || in.Key.Family != 4 {
				return false
			}
			packet.TranslateInner4(p, &in, newSrc, newDst, sport, dport)
			again, r := packet.ParseInner(p)
			return r == verdict.Pass && again == in
		}},
		{"ICMPError4", true, func(p *packet.Packet) bool { return build.ICMPError4(p, newSrc, 3, 4, 1400) }},
		{"ICMPError6", true, func(p *packet.Packet) bool { return build.ICMPError6(p, src6, 2, 0, 1280) }},
		{"EchoReply", true, build.EchoReply},
		{"TCPReset", true, build.TCPReset},
	}
	for _, s := range steps {
		for _, head := range []int{headroom, 0} {
			p := load(frame, head, 64)
			if packet.Parse(p) != r {
				return fmt.Errorf("parse differs with headroom %d", head)
			}
			want := parsed(p)
			done := s.run(p)
			if p.Off < 0 || p.Len < 0 || p.Off+p.Len > len(p.Buf) {
				return fmt.Errorf("%s: frame left its buffer", s.name)
			}
			if r != verdict.Pass { // only promised: no panic, nothing outside the buffer
				continue
			}
			if !done {
				if s.name == "TranslateInner4" {
					continue
				}
				if !bytes.Equal(p.Frame(), frame) || !cmp.Equal(parsed(p), want) {
					return fmt.Errorf("%s said no but changed the packet", s.name)
				}
				continue
			}
			if err := same(p); err != nil {
				return fmt.Errorf("%s: %w", s.name, err)
			}
			if good || s.built {
				if err := valid(p); err != nil {
					return fmt.Errorf("%s: %w", s.name, err)
				}
			}
		}
	}
	if r == verdict.Pass {
		in, ir := packet.ParseInner(first)
		if (ir == verdict.Pass) != in.OK {
			return fmt.Errorf("inner: OK %v with %v", in.OK, ir)
		}
		if in.OK && !(first.L4+8 == in.L3 && in.L3 < in.L4 && in.L4 <= in.End && in.End <= first.L3End) {
			return fmt.Errorf("inner: offsets %d %d %d of %d", in.L3, in.L4, in.End, first.L3End)
		}
		build.ParseARP(first)
		build.ParseND(first)
		packet.WindowScale(first)
	}
	return nil
}

func TestBadPackets(t *testing.T) {
	const seed = 20
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 1))
	for _, vlan := range []uint16{0, 7} {
		e := badEnds(vlan)
		names := map[string]bool{}
		for _, c := range badpackets.AllFor(seed, e) {
			if names[c.Name] {
				t.Errorf("%s: name used twice", c.Name)
			}
			names[c.Name] = true
			p := load(c.Frame, headroom, 0)
			r := packet.Parse(p)
			if c.Want == verdict.ICMPBadInner {
				if r != verdict.Pass {
					t.Errorf("vlan %d: %s: %v, want it to parse", vlan, c.Name, r)
				}
				_, r = packet.ParseInner(p)
			}
			if c.Want != verdict.Unset && r != c.Want {
				t.Errorf("vlan %d: %s: %v, want %v", vlan, c.Name, r, c.Want)
			}
			if err := survive(c.Frame, rnd); err != nil {
				t.Errorf("vlan %d: %s: %v", vlan, c.Name, err)
			}
		}
		if len(names) < 2000 {
			t.Errorf("only %d cases", len(names))
		}
	}
}

func badEnds(vlan uint16) badpackets.Ends {
	return badpackets.Ends{
		SrcMAC: macA, DstMAC: macB, Src4: [4]byte{198, 18, 10, 5}, Dst4: [4]byte{192, 0, 2, 1},
		Src6: [16]byte{0x20, 1, 0xd, 0xb8, 15: 5}, Dst6: [16]byte{0x20, 1, 0xd, 0xb8, 5: 1, 15: 1}, VLAN: vlan,
	}
}

func TestGoodPackets(t *testing.T) {
	rnd := rand.New(rand.NewPCG(3, 1))
	for _, vlan := range []uint16{0, 4094} {
		for _, c := range badpackets.Good(badEnds(vlan)) {
			p := load(c.Frame, headroom, 0)
			if r := packet.Parse(p); r != verdict.Pass {
				t.Errorf("vlan %d: %s: %v", vlan, c.Name, r)
				continue
			}
			if err := valid(p); err != nil {
				t.Errorf("vlan %d: %s: %v", vlan, c.Name, err)
			}
			if p.Flags&packet.FlagICMPError != 0 {
				in, r := packet.ParseInner(p)
				if r != verdict.Pass || in.Key.Src != p.Key.Dst {
					t.Errorf("vlan %d: %s: quoted %+v: %v", vlan, c.Name, in, r)
				}
			}
			if err := survive(c.Frame, rnd); err != nil {
				t.Errorf("vlan %d: %s: %v", vlan, c.Name, err)
			}
		}
	}
}

// TestResetBetweenFrames parses every ordered pair of kinds in one Packet: nothing of the first may show in the second.
func TestResetBetweenFrames(t *testing.T) {
	all := badpackets.Good(badEnds(0))
	for _, a := range all {
		for _, b := range all {
			p := load(a.Frame, 0, 0)
			packet.Parse(p)
			p.Buf, p.Len = b.Frame, len(b.Frame)
			packet.Parse(p)
			if err := same(p); err != nil {
				t.Fatalf("%s after %s: %v", b.Name, a.Name, err)
			}
		}
	}
}

func TestParseOutsideBuffer(t *testing.T) {
	for _, p := range []packet.Packet{{}, {Off: 1}, {Len: 1}, {Buf: make([]byte, 60), Off: 30, Len: 31}, {Buf: make([]byte, 60), Off: -1, Len: 10}, {Buf: make([]byte, 60), Len: -5}} {
		if r := packet.Parse(&p); r != verdict.Truncated {
			t.Errorf("Off %d Len %d: %v", p.Off, p.Len, r)
		}
	}
}

func good(t testing.TB, name string, vlan uint16) []byte {
	for _, c := range badpackets.Good(badEnds(vlan)) {
		if c.Name == name {
			return c.Frame
		}
	}
	t.Fatalf("no good packet %q", name)
	return nil
}

func TestParseFields(t *testing.T) {
	v4 := func(k flow.Key) flow.Key {
		k.Src, k.Dst, k.Family = flow.Addr{198, 18, 10, 5}, flow.Addr{192, 0, 2, 1}, 4
		return k
	}
	v6 := func(k flow.Key) flow.Key {
		e := badEnds(0)
		k.Src, k.Dst, k.Family = e.Src6, e.Dst6, 6
		return k
	}
	for _, tc := range []struct {
		name string
		want packet.Packet
	}{
		{"udp4", packet.Packet{EtherType: 0x0800, L2Len: 14, L3: 14, L4: 34, L3End: 60, TTL: 64, Key: v4(flow.Key{SPort: 40000, DPort: 53, Proto: 17})}},
		{"tcp4 data", packet.Packet{EtherType: 0x0800, L2Len: 14, L3: 14, L4: 34, L3End: 87, TTL: 64, TCPFlags: 0x18, Seq: 0x01020304, Ack: 0x05060708, Window: 0x2000, PayloadLen: 33,
			Key: v4(flow.Key{SPort: 40001, DPort: 80, Proto: 6})}},
		{"tcp4 syn", packet.Packet{EtherType: 0x0800, L2Len: 14, L3: 14, L4: 34, L3End: 74, TTL: 64, TCPFlags: 2, Seq: 0x01020304, Ack: 0x05060708, Window: 0x2000,
			Key: v4(flow.Key{SPort: 40001, DPort: 80, Proto: 6})}},
		{"options", packet.Packet{EtherType: 0x0800, L2Len: 14, L3: 14, L4: 42, L3End: 55, Flags: packet.FlagOptions, Extra: packet.ExtraRecordRoute, TTL: 64, Key: v4(flow.Key{SPort: 40000, DPort: 53, Proto: 17})}},
		{"echo4", packet.Packet{EtherType: 0x0800, L2Len: 14, L3: 14, L4: 34, L3End: 74, Flags: packet.FlagICMPQuery, TTL: 64, ICMPType: 8, Key: v4(flow.Key{SPort: 0x1234, DPort: 8, Proto: 1})}},
		{"echo reply4", packet.Packet{EtherType: 0x0800, L2Len: 14, L3: 14, L4: 34, L3End: 73, Flags: packet.FlagICMPQuery | packet.FlagICMPReply, TTL: 64, Key: v4(flow.Key{SPort: 8, DPort: 0x1234, Proto: 1})}},
		{"timestamp4", packet.Packet{EtherType: 0x0800, L2Len: 14, L3: 14, L4: 34, L3End: 54, Flags: packet.FlagICMPQuery, TTL: 64, ICMPType: 13, Key: v4(flow.Key{SPort: 0x1234, DPort: 13, Proto: 1})}},
		{"unreachable4 udp", packet.Packet{EtherType: 0x0800, L2Len: 14, L3: 14, L4: 34, L3End: 110, Flags: packet.FlagICMPError, TTL: 64, ICMPType: 3, ICMPCode: 1, Key: v4(flow.Key{Proto: 1})}},
		{"gre", packet.Packet{EtherType: 0x0800, L2Len: 14, L3: 14, L4: 34, L3End: 54, TTL: 64, Key: v4(flow.Key{Proto: 47})}},
		{"first fragment", packet.Packet{EtherType: 0x0800, L2Len: 14, L3: 14, L4: 34, L3End: 66, Flags: packet.FlagFragFirst, TTL: 64, FragID: 0x1234, FragLen: 32, FragMore: true, Key: v4(flow.Key{SPort: 40000, DPort: 53, Proto: 17})}},
		{"later fragment", packet.Packet{EtherType: 0x0800, L2Len: 14, L3: 14, L4: 34, L3End: 58, Flags: packet.FlagFragLater, TTL: 64, FragID: 0x1234, FragOff: 32, FragLen: 24, Key: v4(flow.Key{Proto: 17})}},
		{"udp6", packet.Packet{EtherType: 0x86dd, L2Len: 14, L3: 14, L4: 54, L3End: 80, TTL: 64, Key: v6(flow.Key{SPort: 40000, DPort: 53, Proto: 17})}},
		{"udp6 extensions", packet.Packet{EtherType: 0x86dd, L2Len: 14, L3: 14, L4: 70, L3End: 96, Extra: packet.ExtraHopByHop | packet.ExtraDestination, TTL: 64, Key: v6(flow.Key{SPort: 40000, DPort: 53, Proto: 17})}},
		{"atomic fragment6", packet.Packet{EtherType: 0x86dd, L2Len: 14, L3: 14, L4: 62, L3End: 88, TTL: 64, FragID: 0, Key: v6(flow.Key{SPort: 40000, DPort: 53, Proto: 17})}},
		{"first fragment6", packet.Packet{EtherType: 0x86dd, L2Len: 14, L3: 14, L4: 62, L3End: 86, Flags: packet.FlagFragFirst, TTL: 64, FragID: 0x01020304, FragLen: 24, FragMore: true, Key: v6(flow.Key{SPort: 40000, DPort: 53, Proto: 17})}},
		{"later fragment6", packet.Packet{EtherType: 0x86dd, L2Len: 14, L3: 14, L4: 62, L3End: 73, Flags: packet.FlagFragLater, TTL: 64, FragID: 0x01020304, FragOff: 24, FragLen: 11, Key: v6(flow.Key{Proto: 17})}},
		{"no next header", packet.Packet{EtherType: 0x86dd, L2Len: 14, L3: 14, L4: 54, L3End: 54, TTL: 64, Key: v6(flow.Key{Proto: 59})}},
		{"esp6", packet.Packet{EtherType: 0x86dd, L2Len: 14, L3: 14, L4: 54, L3End: 94, TTL: 64, Key: v6(flow.Key{Proto: 50})}},
		{"echo6", packet.Packet{EtherType: 0x86dd, L2Len: 14, L3: 14, L4: 54, L3End: 94, Flags: packet.FlagICMPQuery, TTL: 64, ICMPType: 128, Key: v6(flow.Key{SPort: 0x1234, DPort: 128, Proto: 58})}},
		{"echo reply6", packet.Packet{EtherType: 0x86dd, L2Len: 14, L3: 14, L4: 54, L3End: 94, Flags: packet.FlagICMPQuery | packet.FlagICMPReply, TTL: 64, ICMPType: 129, Key: v6(flow.Key{SPort: 128, DPort: 0x1234, Proto: 58})}},
		{"arp request", packet.Packet{EtherType: 0x0806, L2Len: 14, L3: 14, L4: 14, L3End: 42, Flags: packet.FlagARP}},
		{"solicitation", packet.Packet{EtherType: 0x86dd, L2Len: 14, L3: 14, L4: 54, L3End: 86, Flags: packet.FlagND, TTL: 255, ICMPType: 135, Key: v6(flow.Key{Proto: 58})}},
		{"priority tag", packet.Packet{EtherType: 0x0800, L2Len: 18, L3: 18, L4: 38, L3End: 54, TTL: 64, Key: v4(flow.Key{SPort: 40000, DPort: 53, Proto: 17})}},
	} {
		p := load(good(t, tc.name, 0), 3, 0)
		packet.Parse(p)
		tc.want.Len = p.Len
		if d := cmp.Diff(tc.want, parsed(p)); d != "" {
			t.Errorf("%s: want (-), got (+):\n%s", tc.name, d)
		}
	}
	p := load(good(t, "udp4", 42), 3, 0)
	if packet.Parse(p); p.VLAN != 42 || p.L2Len != 18 || p.L4 != 38 {
		t.Errorf("tagged: %+v", parsed(p))
	}
	f := good(t, "udp4", 0)
	f[0] |= 1
	p = load(f, 0, 0)
	if packet.Parse(p); p.Flags != packet.FlagMcastMAC {
		t.Errorf("group MAC: flags %x", p.Flags)
	}
}
