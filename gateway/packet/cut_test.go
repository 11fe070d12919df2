package packet_test

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"testing"

	"demarc/gateway/flow"
	"demarc/gateway/packet"
	"demarc/gateway/packet/csum"
	"demarc/gateway/verdict"
)

// Cut against what RFC 791 says, by any size, with any options, of whole packets and of fragments.
func TestCut(t *testing.T) {
	rng := rand.New(rand.NewPCG(11, 12))
	copied, own := []byte{0x94, 4, 1, 2}, []byte{7, 7, 4, 9, 9, 9, 9}
	for range 20000 {
		var options, kept []byte
		for range rng.IntN(4) {
			switch rng.IntN(3) {
			case 0:
				options, kept = append(options, copied...), append(kept, copied...)
			case 1:
				options = append(options, own...)
			default:
				options = append(options, 1)
			}
		}
		for len(options)%4 != 0 {
			options = append(options, 0)
		}
		if len(options) > 40 {
			continue
		}
		size := 1 + rng.IntN(1500)
		at, more := rng.IntN(2)*rng.IntN(4096), rng.IntN(2) == 1
		if more {
			size = (size + 7) &^ 7
		}
		f := make([]byte, 14+20+len(options)+size)
		f[12] = 8
		ip := f[14:]
		ip[0], ip[8], ip[9] = byte(0x45+len(options)/4), 64, 200
		binary.BigEndian.PutUint16(ip[2:], uint16(len(ip)))
		binary.BigEndian.PutUint16(ip[4:], 4711)
		fo := uint16(at)
		if more {
			fo |= 0x2000
		}
		binary.BigEndian.PutUint16(ip[6:], fo)
		copy(ip[12:], []byte{198, 18, 0, 1, 198, 18, 0, 2})
		copy(ip[20:], options)
		payload := ip[20+len(options):]
		for i := range payload {
			payload[i] = byte(rng.Uint32())
		}
		binary.BigEndian.PutUint16(ip[10:], csum.Checksum(csum.Sum(0, ip[:20+len(options)])))
		p := packet.Packet{Buf: f, Len: len(f)}
		if r := packet.Parse(&p); r != verdict.Pass {
			t.Fatalf("%s: %x", r, f)
		}
		mtu := 68 + rng.IntN(1500)
		var got []byte
		for from := 0; ; {
			dst := make([]byte, 2048)
			n, next := packet.Cut(&p, from, mtu, dst)
			if n == 0 {
				t.Fatalf("nothing at %d of %d", from, size)
			}
			x := dst[14:n]
			head := int(x[0]&15) * 4
			want := options
			if from > 0 {
				for want = bytes.Clone(kept); len(want)%4 != 0; {
					want = append(want, 0)
				}
			}
			fo := binary.BigEndian.Uint16(x[6:])
			if int(binary.BigEndian.Uint16(x[2:])) != len(x) || len(x) > mtu || !bytes.Equal(x[20:head], want) || csum.Fold(csum.Sum(0, x[:head])) != 0xffff ||
				int(fo&0x1fff) != at+from/8 || fo&0x2000 != 0 != (more || next != 0) || !bytes.Equal(x[12:20], ip[12:20]) || binary.BigEndian.Uint16(x[4:]) != 4711 {
				t.Fatalf("at %d of %d, for %d, options %x: %x", from, size, mtu, options, x)
			}
			if next != 0 && len(x)+8 <= mtu {
				t.Fatalf("a piece of %d for %d", len(x), mtu)
			}
			if got = append(got, x[head:]...); next == 0 {
				break
			}
			from = next
		}
		if !bytes.Equal(got, payload) {
			t.Fatal("the payload is another")
		}
	}
	p := packet.Packet{Buf: make([]byte, 100), Len: 60, L3: 14, L4: 34, L3End: 60, Key: flow.Key{Family: 6}}
	if n, _ := packet.Cut(&p, 0, 68, make([]byte, 2048)); n != 0 {
		t.Fatal("IPv6 is cut")
	}
}

// Words4 is Translate4, with ID4 it is that and SetID, with Hop4 that and DecTTL, with both all three, to the last bit.
func TestWordsAreTranslateAndID(t *testing.T) {
	r := rand.New(rand.NewPCG(8, 0))
	for i := range 4000 {
		frame, _ := randomFrame(t, r)
		var p [8]*packet.Packet
		for j := range p {
			p[j] = load(frame, headroom, 0)
			packet.Parse(p[j])
		}
		var src, dst [4]byte
		binary.LittleEndian.PutUint32(src[:], r.Uint32())
		binary.LittleEndian.PutUint32(dst[:], r.Uint32())
		sport, dport, id := uint16(r.Uint32()), uint16(r.Uint32()), uint16(r.Uint32())
		if i%8 == 0 {
			src, dst, sport, dport, id = [4]byte{}, [4]byte{}, 0, 0, 0
		}
		packet.Translate4(p[0], src, dst, sport, dport)
		if packet.Header4(p[1]) == nil {
			if p[0].Key.Family == 4 {
				t.Fatalf("round %d: no header in %x", i, frame)
			}
			continue
		}
		for j, also := range []func(p *packet.Packet, h *[20]byte) uint64{
			func(p *packet.Packet, h *[20]byte) uint64 { return 0 },
			func(p *packet.Packet, h *[20]byte) uint64 { return packet.ID4(h, id) },
			func(p *packet.Packet, h *[20]byte) uint64 { return packet.Hop4(p, h) },
			func(p *packet.Packet, h *[20]byte) uint64 { return packet.ID4(h, id) + packet.Hop4(p, h) },
		} {
			a, b := p[2*j], p[2*j+1]
			if j >= 2 && a.TTL == 0 {
				continue
			}
			if j > 0 {
				packet.Translate4(a, src, dst, sport, dport)
			}
			if j&1 != 0 {
				packet.SetID(a, id)
			}
			if j >= 2 {
				packet.DecTTL(a)
			}
			h := packet.Header4(b)
			packet.Words4(b, h, le.Uint32(src[:]), le.Uint32(dst[:]), sport, dport, also(b, h))
			if !bytes.Equal(a.Frame(), b.Frame()) || a.Key != b.Key || a.TTL != b.TTL {
				t.Fatalf("round %d, %d: %x\n%x\n%x", i, j, frame, a.Frame(), b.Frame())
			}
		}
	}
}

var le = binary.LittleEndian

// SetID changes the identification and mends the checksum; Atomic says what may never be cut.
func TestSetID(t *testing.T) {
	f := make([]byte, 60)
	f[12] = 8
	ip := f[14:]
	ip[0], ip[3], ip[6], ip[8], ip[9] = 0x45, 40, 0x40, 64, 200
	binary.BigEndian.PutUint16(ip[10:], csum.Checksum(csum.Sum(0, ip[:20])))
	p := packet.Packet{Buf: f, Len: len(f)}
	if r := packet.Parse(&p); r != verdict.Pass {
		t.Fatal(r)
	}
	for id := range 1 << 16 {
		packet.SetID(&p, uint16(id))
		if int(binary.BigEndian.Uint16(ip[4:])) != id || csum.Fold(csum.Sum(0, ip[:20])) != 0xffff {
			t.Fatalf("identification %d: %x", id, ip[:20])
		}
	}
	for fo, want := range map[uint16]bool{0x4000: true, 0xc000: true, 0: false, 0x2000: false, 0x6000: false, 0x4001: false} {
		if binary.BigEndian.PutUint16(ip[6:], fo); packet.Atomic(&p) != want {
			t.Errorf("%04x: atomic %v", fo, !want)
		}
	}
}
