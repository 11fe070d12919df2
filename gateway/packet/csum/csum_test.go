package csum

import (
	"encoding/binary"
	"math/rand/v2"
	"testing"
)

// naive is RFC 1071 read aloud: add 16-bit words, carry around after each.
func naive(b []byte) uint16 {
	var s uint32
	for i := 0; i < len(b); i += 2 {
		w := uint32(b[i]) << 8
		if i+1 < len(b) {
			w |= uint32(b[i+1])
		}
		if s += w; s > 0xffff {
			s -= 0xffff
		}
	}
	return uint16(s)
}

func TestSumAgainstNaive(t *testing.T) {
	const seed = 1
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	for i := range 20000 {
		b := make([]byte, r.IntN(300))
		for j := range b {
			switch i % 3 { // all ones make the carries long
			case 0:
				b[j] = 0xff
			case 1:
				b[j] = byte(r.Uint32())
			default:
				b[j] = byte(r.Uint32()) | 0xf0
			}
		}
		if got, want := Fold(Sum(0, b)), naive(b); got != want {
			t.Fatalf("round %d: sum of %d bytes is %04x, want %04x", i, len(b), got, want)
		}
		cut := r.IntN(len(b)+1) &^ 1
		if got, want := Fold(Sum(Sum(0, b[:cut]), b[cut:])), naive(b); got != want {
			t.Fatalf("round %d: in two pieces %04x, want %04x", i, got, want)
		}
	}
}

func TestSumCarriesFromFull(t *testing.T) {
	ones := make([]byte, 64)
	for i := range ones {
		ones[i] = 0xff
	}
	for n := range ones {
		want := naive(append([]byte{0xff, 0xff}, ones[:n]...))
		if got := Fold(Sum(^uint64(0), ones[:n])); got != want {
			t.Errorf("full accumulator plus %d bytes of ones: %04x, want %04x", n, got, want)
		}
	}
}

func TestRFC1071Example(t *testing.T) {
	b := []byte{0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7} // section 3
	if got := Fold(Sum(0, b)); got != 0xddf2 {
		t.Fatalf("sum %04x, want ddf2", got)
	}
}

func TestUpdateAgainstFull(t *testing.T) {
	if got := Update16(0xdd2f, 0x5555, 0x3285); got != 0x0000 {
		t.Errorf("RFC 1624 section 4 example gives %04x, want 0000", got)
	}
	const seed = 2
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	for i := range 20000 {
		b := make([]byte, 20)
		for j := range b {
			b[j] = byte(r.Uint32())
		}
		b[0] |= 1 // not all zero: there one's complement has no single answer
		if i%4 == 0 {
			clear(b[4:])
		}
		check := Checksum(Sum(0, b))
		old := binary.BigEndian.Uint32(b[8:])
		new := r.Uint32()
		if i%4 < 2 {
			new &= 0xffff
		}
		binary.BigEndian.PutUint32(b[8:], new)
		want := ^naive(b)
		if got := Update32(check, old, new); got != want {
			t.Fatalf("round %d: Update32 %04x, want %04x", i, got, want)
		}
		if got := Update16(Update16(check, uint16(old>>16), uint16(new>>16)), uint16(old), uint16(new)); got != want {
			t.Fatalf("round %d: Update16 %04x, want %04x", i, got, want)
		}
	}
}

func TestPseudo(t *testing.T) {
	src, dst := [4]byte{192, 0, 2, 1}, [4]byte{198, 51, 100, 255}
	if got, want := Fold(Pseudo4(src, dst, 17, 0x1234)), naive([]byte{192, 0, 2, 1, 198, 51, 100, 255, 0, 17, 0x12, 0x34}); got != want {
		t.Errorf("IPv4 %04x, want %04x", got, want)
	}
	var a, b [16]byte
	for i := range a {
		a[i], b[i] = byte(0xf0+i), byte(i*17)
	}
	whole := append(append(append([]byte(nil), a[:]...), b[:]...), 0, 0, 0x12, 0x34, 0, 0, 0, 58)
	if got, want := Fold(Pseudo6(&a, &b, 58, 0x1234)), naive(whole); got != want {
		t.Errorf("IPv6 %04x, want %04x", got, want)
	}
}

func BenchmarkSum1500(b *testing.B) {
	buf := make([]byte, 1500)
	b.SetBytes(1500)
	var s uint64
	for b.Loop() {
		s = Sum(s, buf)
	}
	if s != 0 {
		b.Fatal(s)
	}
}
