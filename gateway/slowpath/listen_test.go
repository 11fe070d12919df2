package slowpath

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
)

// heard passes time and says what switches were told meanwhile, with the second of each.
func (r *rig) heard(d uint64) (out []string) {
	began := r.now
	r.sent = nil
	for end := r.now + d; r.now < end; r.now += 10 * ms {
		r.m.listen(r.now)
		for _, b := range r.sent {
			out = append(out, fmt.Sprintf("%d: %s", (r.now-began)/sec, report(r.t, b)))
		}
		r.sent = nil
	}
	return out
}

func report(t *testing.T, b []byte) string {
	t.Helper()
	g := gopacket.NewPacket(b, layers.LayerTypeEthernet, gopacket.Default)
	m, ok := g.Layer(layers.LayerTypeMLDv2MulticastListenerReport).(*layers.MLDv2MulticastListenerReportMessage)
	if !ok {
		t.Fatalf("not a listener report: %v", g)
	}
	s := short(b[6:12]) + " " + g.NetworkLayer().(*layers.IPv6).SrcIP.String()
	if tag, ok := g.Layer(layers.LayerTypeDot1Q).(*layers.Dot1Q); ok {
		s += fmt.Sprint(" tagged ", tag.VLANIdentifier)
	}
	for _, a := range m.MulticastAddressRecords {
		s += fmt.Sprintf(" %s(%d)", strings.TrimPrefix(a.MulticastAddress.String(), "ff02::1:ff"), a.RecordType)
	}
	return s
}

// without takes the seconds off.
func without(list []string) (out []string) {
	for _, s := range list {
		_, what, _ := strings.Cut(s, ": ")
		out = append(out, what)
	}
	return out
}

const (
	news  = "gw fe80::de:6a00:1 00:1(4)" // 2001:db8::1 and fe80::de:6a00:1 have the same group
	still = "gw fe80::de:6a00:1 00:1(2)"
)

// Switches are told of new addresses twice within a second or so, then at least once a minute, whether anybody asks or not.
func TestSwitchesKnowWhoListens(t *testing.T) {
	r := newRig(t, nil)
	first := r.heard(2 * sec)
	if d := cmp.Diff([]string{news, news}, without(first)); d != "" || !strings.HasPrefix(first[0], "0:") {
		t.Fatalf("%s\n%v", d, first)
	}
	last := uint64(0)
	for i, s := range r.heard(3600 * sec) {
		var at uint64
		if _, err := fmt.Sscanf(s, "%d:", &at); err != nil {
			t.Fatal(err)
		}
		if !strings.HasSuffix(s, still) || at-last > 60 {
			t.Fatalf("%d: after %d s of silence: %s", i, at-last, s)
		}
		last = at
	}
	if last < 3540 {
		t.Errorf("silent since second %d of 3600", last)
	}
	// The same again is no news; another address is, and so is a link that was away.
	r.m.setInterfaces([]Interface{plainIface()}, r.now)
	if got := r.heard(sec); slices.ContainsFunc(got, func(s string) bool { return strings.Contains(s, "(4)") }) {
		t.Errorf("told as news what was known: %v", got)
	}
	c := plainIface()
	c.VLAN = 9
	c.Addrs = append(c.Addrs, netip.MustParsePrefix("2001:db8::ab:cdef/64"))
	r.m.setInterfaces([]Interface{c}, r.now)
	tagged := "gw fe80::de:6a00:1 tagged 9 00:1(4) ab:cdef(4)"
	if d := cmp.Diff([]string{tagged, tagged}, without(r.heard(2*sec))); d != "" {
		t.Error(d)
	}
	r.m.setInterfaces(nil, r.now)
	if got := r.heard(200 * sec); got != nil {
		t.Errorf("without an interface: %v", got)
	}
	r.m.setInterfaces([]Interface{plainIface()}, r.now)
	if d := cmp.Diff([]string{news, news}, without(r.heard(2*sec))); d != "" {
		t.Error(d)
	}
}

// Addresses that the kernel has too are told of as well: no query comes to it on our port. What finds no room is told later.
func TestWhoListensIsToldLater(t *testing.T) {
	c := plainIface()
	c.Addrs, c.Proxy = c.Addrs[:1], nil
	c.HostShared = []netip.Addr{netip.MustParseAddr("2001:db8::abcd")}
	r := newRig(t, nil, c)
	shared := "gw fe80::de:6a00:1 00:abcd(4) 00:1(4)"
	if d := cmp.Diff([]string{shared, shared}, without(r.heard(2*sec))); d != "" {
		t.Error(d)
	}
	r.m.setInterfaces([]Interface{plainIface()}, r.now)
	r.full = true
	if got := r.heard(5 * sec); got != nil {
		t.Fatal(got)
	}
	if n := r.m.stats.SendFull; n < 40 || n > 60 {
		t.Errorf("tried %d times in 5 s", n)
	}
	r.full = false
	if d := cmp.Diff([]string{news, news}, without(r.heard(2*sec))); d != "" {
		t.Error(d)
	}
	r.m.jobs = nil
	if at := r.m.next(); at <= r.now || at > r.now+60*sec {
		t.Errorf("waits for %d s", (at-r.now)/sec)
	}
}

// A group's addresses are told of by who serves it, from its MAC, at once when it begins to.
func TestSwitchesKnowWhoServesAGroup(t *testing.T) {
	r, serve := groupRig(t)
	if d := cmp.Diff([]string{news, news}, without(r.heard(2*sec))); d != "" {
		t.Fatalf("a standby: %s", d)
	}
	r.m.announceGroup(7, r.now)
	if got := r.heard(2 * sec); got != nil {
		t.Errorf("a standby that is told to announce: %v", got)
	}
	*serve = r.now + 100*sec
	r.m.announceGroup(7, r.now)
	first := r.heard(2 * sec)
	group := "v6 fe80::200:5eff:fe00:207 00:207(4) 00:100(4)"
	if d := cmp.Diff([]string{news, group, news, group}, without(first)); d != "" || !strings.HasPrefix(first[1], "0:") {
		t.Errorf("who begins to serve it: %s\n%v", d, first)
	}
	r.m.announceGroup(7, r.now) // a round more
	if got := r.heard(10 * sec); got != nil {
		t.Errorf("told again what was known: %v", got)
	}
	of := func(list []string) (n int) {
		for _, s := range list {
			if strings.Contains(s, "v6 fe80::200:5eff:fe00:207 00:207(2) 00:100(2)") {
				n++
			}
		}
		return n
	}
	if n := of(r.heard(88 * sec)); n < 1 {
		t.Error("not told again while it is served")
	}
	if got := r.heard(200 * sec); of(got) != 0 || len(got) < 3 {
		t.Errorf("past the deadline: %v", got)
	}
}

// Many interfaces have their turn, a few at a time.
func TestWhoListensIsPaced(t *testing.T) {
	var list []Interface
	for i := range uint16(1000) {
		c := plainIface()
		c.Index, c.VLAN = i+1, i+1
		list = append(list, c)
	}
	r := newRig(t, nil, list...)
	for end := r.now + 5*sec; r.now < end; r.now += ms {
		before := len(r.sent)
		if r.m.listen(r.now); len(r.sent)-before > listenBurst {
			t.Fatalf("%d frames at once", len(r.sent)-before)
		}
	}
	if n := len(r.sent); n != 2000 {
		t.Errorf("%d reports, want two of each interface", n)
	}
	// So do many groups on one interface, and where there is no room it goes on where it stopped.
	c := plainIface()
	for i := range 100 {
		c.Groups = append(c.Groups, Group{ID: uint8(i + 1), MAC6: virtual6, Addrs: []netip.Addr{netip.MustParseAddr(fmt.Sprintf("2001:db8::%x:2", i+1))}})
	}
	r.m.cfg.May = func(uint8, uint64) bool { return true }
	r.m.setInterfaces([]Interface{c}, r.now)
	r.sent = nil
	for i := range 100 {
		before := len(r.sent)
		r.full = i == 3
		if r.m.listen(r.now); len(r.sent)-before > listenBurst {
			t.Fatalf("%d frames at once", len(r.sent)-before)
		}
		r.now += announcePace
	}
	count := map[string]int{}
	for _, b := range r.sent {
		count[report(t, b)]++
	}
	for what, n := range count {
		if n > 2 {
			t.Errorf("%d times: %s", n, what)
		}
	}
	if len(count) != 101 {
		t.Errorf("%d of 101 were told", len(count))
	}
	// More addresses than one frame has room for go in several.
	c = plainIface()
	for i := range 120 {
		c.Addrs = append(c.Addrs, netip.PrefixFrom(netip.MustParseAddr(fmt.Sprintf("2001:db8::%x:1", i+1)), 64))
	}
	r.m.setInterfaces([]Interface{c}, r.now)
	r.sent = nil
	r.m.listen(r.now)
	n := 0
	for _, b := range r.sent {
		n += strings.Count(report(t, b), "(4)")
	}
	if len(r.sent) != 3 || n != 121 {
		t.Errorf("%d groups in %d frames", n, len(r.sent))
	}
}
