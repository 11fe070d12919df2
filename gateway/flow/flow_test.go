package flow

import (
	"net/netip"
	"testing"
	"unsafe"
)

func TestKeyLayout(t *testing.T) {
	if n := unsafe.Sizeof(Key{}); n != 40 {
		t.Fatalf("Key is %d bytes, want 40: no padding, so that == compares all of it at once", n)
	}
}

func TestReverseTwiceIsIdentity(t *testing.T) {
	k := Key{Src: AddrFrom(netip.MustParseAddr("198.18.10.5")), Dst: AddrFrom(netip.MustParseAddr("192.0.2.1")), SPort: 1000, DPort: 53, Proto: UDP, Family: 4, Zone: 3}
	r := k.Reverse(Backbone)
	if r == k || r.Reverse(3) != k {
		t.Fatalf("reverse of %+v is %+v", k, r)
	}
}

func TestHashUsesEveryField(t *testing.T) {
	for _, fam := range []uint8{4, 6} {
		base := Key{Src: Addr{1}, Dst: Addr{2}, SPort: 3, DPort: 4, Proto: UDP, Family: fam, Zone: 5}
		h := base.Hash(42)
		for name, change := range map[string]func(*Key){
			"src": func(k *Key) { k.Src[1]++ }, "dst": func(k *Key) { k.Dst[2]++ }, "sport": func(k *Key) { k.SPort++ },
			"dport": func(k *Key) { k.DPort++ }, "proto": func(k *Key) { k.Proto++ }, "zone": func(k *Key) { k.Zone++ },
		} {
			k := base
			change(&k)
			if k.Hash(42) == h {
				t.Errorf("family %d: %s does not reach the hash", fam, name)
			}
		}
		if base.Hash(43) == h {
			t.Error("seed does not reach the hash")
		}
	}
	a, b := Key{Family: 6}, Key{Family: 6}
	b.Src[15] = 1
	if a.Hash(1) == b.Hash(1) {
		t.Error("last byte of an IPv6 address does not reach the hash")
	}
}

func TestHomeSpreads(t *testing.T) {
	var n [4]int
	for i := range 4000 {
		var a Addr
		a.SetV4(0xC6120A00 + uint32(i))
		n[Home(HomeHash(1, 4, &a, 99), 4)]++
	}
	for w, c := range n {
		if c < 800 || c > 1200 {
			t.Errorf("worker %d got %d of 4000 hosts", w, c)
		}
	}
}

func BenchmarkHash4(b *testing.B) {
	k := Key{Src: Addr{1}, Dst: Addr{2}, SPort: 3, DPort: 4, Proto: UDP, Family: 4, Zone: 5}
	var x uint64
	for i := 0; b.Loop(); i++ {
		k.SPort = uint16(i)
		x ^= k.Hash(42)
	}
	sink = x
}

var sink uint64
