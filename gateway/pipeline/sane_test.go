package pipeline

import (
	"net/netip"
	"testing"

	"demarc/gateway/packet"
	"demarc/gateway/verdict"
)

// What sane and plain say of IPv4 addresses, by each first octet of both and those others that matter, against what net/netip calls them.
func TestSaneByFirstOctets(t *testing.T) {
	for i := range 1 << 16 {
		for _, second := range []byte{0, 5, 254} {
			src, dst := [4]byte{byte(i >> 8), second, 1, 1}, [4]byte{byte(i), second, 1, byte(i >> 15)}
			p := packet.Packet{}
			p.Key.Family = 4
			copy(p.Key.Src[:], src[:])
			copy(p.Key.Dst[:], dst[:])
			s, d := netip.AddrFrom4(src), netip.AddrFrom4(dst)
			never := func(a netip.Addr) bool { return a.As4()[0] == 0 || a.IsLoopback() || a.As4()[0] >= 240 }
			want := verdict.Pass
			switch {
			case d.IsMulticast():
				want = verdict.Multicast
			case s == d:
				want = verdict.Land
			case never(s), s.IsMulticast(), never(d):
				want = verdict.Martian
			case s.IsLinkLocalUnicast() || d.IsLinkLocalUnicast():
				want = verdict.LinkLocal
			}
			if r := sane(&p, nil, nil); r != want {
				t.Fatalf("%s to %s: %s, want %s", s, d, r, want)
			}
			if plain(&p) && want != verdict.Pass {
				t.Fatalf("%s to %s is plain, want %s", s, d, want)
			}
			p.Flags = packet.FlagMcastMAC
			if r := sane(&p, nil, nil); r != verdict.Multicast {
				t.Fatalf("%s to %s to a group's MAC: %s", s, d, r)
			}
			if plain(&p) {
				t.Fatalf("%s to %s to a group's MAC is plain", s, d)
			}
		}
	}
}
