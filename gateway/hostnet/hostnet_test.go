package hostnet

import (
	"testing"
	"time"

	"net/netip"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

func TestParseRange(t *testing.T) {
	for _, c := range []struct {
		in     string
		lo, hi uint16
		ok     bool
	}{
		{"32768\t60999\n", 32768, 60999, true},
		{"1024 65535", 1024, 65535, true},
		{"5 5", 5, 5, true},
		{"6 5", 0, 0, false},
		{"1024 65536", 0, 0, false},
		{"1024", 0, 0, false},
		{"", 0, 0, false},
		{"1 2 3", 0, 0, false},
		{"a b", 0, 0, false},
	} {
		lo, hi, err := parseRange("f", c.in)
		if lo != c.lo || hi != c.hi || (err == nil) != c.ok {
			t.Errorf("%q: %d, %d, %v", c.in, lo, hi, err)
		}
	}
}

// bitset writes a verbose bit set as the kernel does.
func bitset(plain bool, on map[string]bool) []byte {
	top := nested(0)
	if plain {
		top.AddRtAttr(unix.ETHTOOL_A_BITSET_NOMASK, nil)
	}
	list := nested(unix.ETHTOOL_A_BITSET_BITS)
	for name, v := range on {
		b := nested(unix.ETHTOOL_A_BITSET_BITS_BIT)
		b.AddRtAttr(unix.ETHTOOL_A_BITSET_BIT_INDEX, nl.Uint32Attr(7))
		b.AddRtAttr(unix.ETHTOOL_A_BITSET_BIT_NAME, nl.ZeroTerminated(name))
		if v && !plain {
			b.AddRtAttr(unix.ETHTOOL_A_BITSET_BIT_VALUE, nil)
		}
		list.AddChild(b)
	}
	top.AddChild(list)
	return top.Serialize()[4:]
}

func TestBits(t *testing.T) {
	for name, c := range map[string]struct {
		in   []byte
		want map[string]bool
	}{
		"a list names what is set":        {bitset(true, map[string]bool{"rx-gro": false, "rx-lro": false}), map[string]bool{"rx-gro": true, "rx-lro": true}},
		"with a mask, only with a value":  {bitset(false, map[string]bool{"rx-gro": true, "rx-lro": false}), map[string]bool{"rx-gro": true}},
		"nothing set":                     {bitset(true, nil), map[string]bool{}},
		"no attributes":                   {nil, map[string]bool{}},
		"not a set, but a lone attribute": {nl.NewRtAttr(unix.ETHTOOL_A_BITSET_SIZE, nl.Uint32Attr(64)).Serialize(), map[string]bool{}},
	} {
		got, err := bits(c.in)
		if err != nil || !cmp.Equal(got, c.want) {
			t.Errorf("%s: %v, %v", name, got, err)
		}
	}
	if _, err := bits([]byte{1, 0, 1, 0}); err == nil {
		t.Error("an attribute shorter than its header was taken")
	}
}

func FuzzBits(f *testing.F) {
	f.Add(bitset(true, map[string]bool{"rx-gro": true}))
	f.Add(bitset(false, map[string]bool{"rx-gro": true, "tx-nocache-copy": false}))
	f.Fuzz(func(t *testing.T, b []byte) {
		_, _ = bits(b)
		_, _, _ = parseAddr(b)
	})
}

func TestOffloadsOf(t *testing.T) {
	set := func(names ...string) map[string]bool {
		m := map[string]bool{}
		for _, n := range names {
			m[n] = true
		}
		return m
	}
	got := offloadsOf(set("tx-checksum-ip-generic", "rx-vlan-hw-parse", "rx-gro"), set("tx-checksum-ip-generic", "rx-gro", "tx-generic-segmentation"), set("tx-generic-segmentation"))
	want := Offloads{
		TxChecksum: {On: true}, TSO: {Fixed: true}, GSO: {Fixed: true}, GRO: {On: true}, LRO: {Fixed: true}, RxVLAN: {On: true, Fixed: true}, TxVLAN: {Fixed: true},
		RxSTag: {Fixed: true}, TxSTag: {Fixed: true}, HWGRO: {Fixed: true}, RxFilter: {Fixed: true}, RxSTagFilter: {Fixed: true},
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
}

func TestParseAddr(t *testing.T) {
	msg := func(bits uint8, local, peer string) []byte {
		m := nl.NewIfAddrmsg(unix.AF_INET)
		m.Prefixlen, m.Index = bits, 9
		b := m.Serialize()
		for typ, s := range map[int]string{unix.IFA_LOCAL: local, unix.IFA_ADDRESS: peer} {
			if s != "" {
				b = append(b, nl.NewRtAttr(typ, netip.MustParseAddr(s).AsSlice()).Serialize()...)
			}
		}
		return b
	}
	for name, c := range map[string]struct {
		in   []byte
		want string
	}{
		"a network":      {msg(24, "192.0.2.1", "192.0.2.1"), "192.0.2.1/24"},
		"point to point": {msg(31, "192.0.2.1", "192.0.2.2"), "192.0.2.1/32"},
		"ipv6":           {msg(64, "", "2001:db8::1"), "2001:db8::1/64"},
	} {
		i, p, ok := parseAddr(c.in)
		if !ok || i != 9 || p.String() != c.want {
			t.Errorf("%s: %d %v %v", name, i, p, ok)
		}
	}
	for name, in := range map[string][]byte{"empty": nil, "no address": msg(24, "", ""), "length beyond the family": msg(33, "192.0.2.1", "192.0.2.1")} {
		if _, p, ok := parseAddr(in); ok {
			t.Errorf("%s: %v", name, p)
		}
	}
}

// eventually polls until ok holds.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not within 10 s: %s", what)
		}
	}
}
