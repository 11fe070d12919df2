package packet_test

import (
	"math/rand/v2"
	"slices"
	"testing"

	"demarc/gateway/packet"
	"demarc/gateway/packet/badpackets"
	"demarc/gateway/verdict"
)

// seeds adds some of each kind of bad packet and all good ones.
func seeds(f *testing.F) {
	for _, vlan := range []uint16{0, 7} {
		for _, c := range badpackets.Good(badEnds(vlan)) {
			f.Add(c.Frame)
		}
	}
	for i, c := range badpackets.All(1) {
		if i%7 == 0 || c.Want != verdict.Truncated && c.Want != verdict.Unset {
			f.Add(c.Frame)
		}
	}
}

// FuzzParse: no frame panics anything, offsets lie in the frame, and what is accepted survives every rewrite and builder.
func FuzzParse(f *testing.F) {
	seeds(f)
	f.Fuzz(func(t *testing.T, frame []byte) {
		if err := survive(frame, rand.New(rand.NewPCG(uint64(len(frame)), 1))); err != nil {
			t.Fatalf("%v\n%x", err, frame)
		}
		// The same bytes with lengths and header checksum made right get further.
		p := load(frame, 0, 0)
		if packet.Parse(p) == verdict.BadHeaderChecksum {
			ihl := int(p.Frame()[p.L3]&15) * 4
			h := p.Frame()[p.L3 : p.L3+ihl]
			h[10], h[11] = 0, 0
			be.PutUint16(h[10:], ^sum16(h))
			if err := survive(p.Frame(), rand.New(rand.NewPCG(uint64(len(frame)), 2))); err != nil {
				t.Fatalf("mended: %v\n%x", err, p.Frame())
			}
		}
	})
}

// FuzzParseInner puts the bytes behind a right ICMP error header, of IPv4 and IPv6, so that every input reaches the quote.
func FuzzParseInner(f *testing.F) {
	for _, c := range badpackets.Good(badEnds(0)) {
		f.Add(c.Frame[14:], uint8(0x53))
	}
	for i, c := range badpackets.All(1) {
		if len(c.Frame) > 42 && i%5 == 0 {
			f.Add(c.Frame[14:], uint8(11))
			f.Add(c.Frame[42:], uint8(0x53))
		}
	}
	f.Fuzz(func(t *testing.T, quote []byte, typ uint8) {
		quote = slices.Clone(quote[:min(len(quote), 1400)])
		if n := int(typ>>4) & 15 * 4; n >= 20 && len(quote) >= n { // most with a right header checksum, or all would end there
			quote[0] = quote[0]&0xf0 | byte(n/4)
			quote[10], quote[11] = 0, 0
			be.PutUint16(quote[10:], ^sum16(quote[:n]))
		}
		e := badEnds(0)
		m4 := append([]byte{[]byte{3, 4, 5, 11, 12}[typ%5], 0, 0, 0, 0, 0, 0, 0}, quote...)
		be.PutUint16(m4[2:], ^sum16(m4))
		h4 := append([]byte{0x45, 0, 0, 0, 0, 0, 0, 0, 64, 1, 0, 0}, append(e.Src4[:], e.Dst4[:]...)...)
		be.PutUint16(h4[2:], uint16(20+len(m4)))
		be.PutUint16(h4[10:], ^sum16(h4))
		m6 := append([]byte{1 + typ%4, 0, 0, 0, 0, 0, 0, 0}, quote...)
		ends := append(e.Src6[:], e.Dst6[:]...)
		be.PutUint16(m6[2:], ^sum16(ends, be.AppendUint16([]byte{0, 58}, uint16(len(m6))), m6))
		h6 := append(be.AppendUint16([]byte{0x60, 0, 0, 0}, uint16(len(m6))), append([]byte{58, 64}, ends...)...)
		for _, frame := range [][]byte{
			append(append(make([]byte, 12), 8, 0), append(h4, m4...)...),
			append(append(make([]byte, 12), 0x86, 0xdd), append(h6, m6...)...),
		} {
			p := load(frame, 0, 0)
			if r := packet.Parse(p); r != verdict.Pass {
				t.Fatalf("outer header: %v", r)
			}
			if err := valid(p); err != nil {
				t.Fatal(err)
			}
			if err := survive(frame, rand.New(rand.NewPCG(uint64(len(frame)), 3))); err != nil {
				t.Fatalf("%v\n%x", err, frame)
			}
			in, r := packet.ParseInner(p)
			if r != verdict.Pass || in.Key.Family != 4 {
				continue
			}
			// There and back again is what there was, but for the two zeros of a checksum.
			src, dst := [4]byte(in.Key.Src[:4]), [4]byte(in.Key.Dst[:4])
			key := in.Key
			packet.TranslateInner4(p, &in, newSrc, newDst, 1, 2)
			if err := valid(p); err != nil {
				t.Fatal(err)
			}
			packet.TranslateInner4(p, &in, src, dst, key.SPort, key.DPort)
			if again, r := packet.ParseInner(p); r != verdict.Pass || again != in || in.Key != key {
				t.Fatalf("there and back: %v: %+v, was %+v", r, again, key)
			}
		}
	})
}
