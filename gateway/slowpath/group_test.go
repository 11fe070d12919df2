package slowpath

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

var (
	virtual4 = [6]byte{0, 0, 0x5e, 0, 1, 7}
	virtual6 = [6]byte{0, 0, 0x5e, 0, 2, 7}
)

// groupRig is an interface where group 7 has a virtual address of each family, its link-local one and a NAT address, and an own address beside them.
func groupRig(t *testing.T) (r *rig, serve *uint64) {
	serve = new(uint64)
	c := plainIface()
	c.Proxy = nil
	c.Groups = []Group{{ID: 7, MAC4: virtual4, MAC6: virtual6, Addrs: []netip.Addr{netip.MustParseAddr("192.0.2.100"), netip.MustParseAddr("fe80::200:5eff:fe00:207"), netip.MustParseAddr("2001:db8::100")},
		Proxy: []netip.Addr{netip.MustParseAddr("192.0.2.64")}}}
	r = newRig(t, func(cfg *Config) {
		send := cfg.Send
		cfg.Send = func(port uint16, group uint8, b []byte) bool { // the group that is handed on is that of the MAC
			virtual := [6]byte(b[6:12]) == virtual4 || [6]byte(b[6:12]) == virtual6
			if virtual != (group == 7) || !virtual && group != 0 {
				t.Errorf("a frame from %x was sent as group %d's", b[6:12], group)
			}
			return send(port, group, b)
		}
		cfg.May = func(group uint8, now uint64) bool { return group == 7 && now < *serve }
	}, c)
	return r, serve
}

// TestAGroupIsAnsweredForWhereItIsServed: its addresses are answered with its MACs by the node that serves it, and by no other.
func TestAGroupIsAnsweredForWhereItIsServed(t *testing.T) {
	for _, c := range []struct {
		in   []byte
		want string
	}{
		{arpAsk(hostMAC, "192.0.2.9", "192.0.2.100"), "host<v4 reply 192.0.2.100 192.0.2.9"},
		{arpAsk(hostMAC, "192.0.2.9", "192.0.2.64"), "host<v4 reply 192.0.2.64 192.0.2.9"},
		{ns(hostMAC, "2001:db8::9", "2001:db8::100", [6]byte{}), "host<v6 reply 2001:db8::100 2001:db8::100 S O"},
		{ns(hostMAC, "fe80::9", "fe80::200:5eff:fe00:207", virtual6), "host<v6 reply fe80::200:5eff:fe00:207 fe80::200:5eff:fe00:207 S O"},
	} {
		r, serve := groupRig(t)
		r.learn(c.in)
		if got := r.took(); got != nil {
			t.Errorf("who does not serve it says %v", got)
		}
		r.learn(arpAsk(hostMAC, "192.0.2.9", "192.0.2.1"))
		if d := cmp.Diff([]string{"host<gw reply 192.0.2.1 192.0.2.9"}, r.took()); d != "" {
			t.Errorf("the node's own address: %s", d)
		}
		*serve = r.now + sec
		r.learn(c.in)
		if d := cmp.Diff([]string{c.want}, r.took()); d != "" {
			t.Error(d)
		}
		r.now += sec // the deadline is the first moment at which nothing goes
		r.learn(c.in)
		if got := r.took(); got != nil {
			t.Errorf("past the deadline: %v", got)
		}
	}
}

// TestAGroupIsAnnounced: the switches first, of both MACs, then all else, each frame only while the group is served; and what is still under way is not begun anew.
func TestAGroupIsAnnounced(t *testing.T) {
	r, serve := groupRig(t)
	r.m.announceGroup(7, r.now)
	r.pass(sec)
	if got := r.took(); got != nil {
		t.Fatalf("announced by a standby: %v", got)
	}
	*serve = r.now + 10*sec
	round := []string{"all<v4 ask 192.0.2.100 192.0.2.100", "allnodes<v6 reply fe80::200:5eff:fe00:207 fe80::200:5eff:fe00:207 O", "allnodes<v6 reply 2001:db8::100 2001:db8::100 O", "all<v4 ask 192.0.2.64 192.0.2.64"}
	r.m.announceGroup(7, r.now)
	r.m.announce(r.now)
	if d := cmp.Diff(round, r.took()); d != "" {
		t.Fatalf("at once: %s", d)
	}
	r.pass(5 * sec)
	if got := r.took(); got != nil {
		t.Fatalf("rounds are for who serves to call for: %v", got)
	}
	r.m.announceGroup(7, r.now)
	r.m.announceGroup(7, r.now)
	r.pass(sec)
	if d := cmp.Diff(round, r.took()); d != "" {
		t.Fatalf("two calls at a time are one round: %s", d)
	}
	r.m.announceGroup(7, r.now)
	*serve = 0
	r.pass(sec)
	if got := r.took(); got != nil {
		t.Fatalf("announced after it had lost the group: %v", got)
	}
	if len(r.m.jobs) != 0 {
		t.Errorf("jobs are left: %v", r.m.jobs)
	}
	r.m.announceGroup(8, r.now) // nobody's
	if len(r.m.jobs) != 0 {
		t.Errorf("jobs of a group that is not here: %v", r.m.jobs)
	}
}

// TestGroupsMoveSwitchesFirst: with many interfaces every switch is moved before the second address of any is announced, and NAT addresses come last.
func TestGroupsMoveSwitchesFirst(t *testing.T) {
	r := newRig(t, func(c *Config) { c.May = func(uint8, uint64) bool { return true } })
	r.took()
	var list []Interface
	for i := range 100 {
		g := Group{ID: 7, MAC4: virtual4, MAC6: virtual6, Addrs: []netip.Addr{netip.MustParseAddr("192.0.2.100"), netip.MustParseAddr("192.0.2.101")}}
		for n := range 4 {
			g.Proxy = append(g.Proxy, netip.AddrFrom4([4]byte{192, 0, 2, byte(1 + n)}))
		}
		list = append(list, Interface{Index: uint16(i + 1), Port: 3, VLAN: uint16(i + 1), MAC: gwMAC, Groups: []Group{g}})
	}
	r.m.setInterfaces(list, r.now)
	r.m.jobs = nil
	r.m.announceGroup(7, r.now)
	for range 2 {
		r.m.announce(r.now)
		r.now += announcePace
	}
	vlans := map[uint16]bool{}
	for _, b := range r.sent {
		vlans[uint16(b[14])<<8|uint16(b[15])] = true
	}
	if len(vlans) != 100 {
		t.Errorf("after 10 ms %d of 100 switches know, by %d frames", len(vlans), len(r.sent))
	}
	r.pass(10 * sec)
	got := r.took()
	if len(got) != 600 {
		t.Fatalf("%d frames, want 600", len(got))
	}
	for i, s := range got {
		want := " 192.0.2.100"
		switch {
		case i >= 200:
			want = " 192.0.2."
		case i >= 100:
			want = " 192.0.2.101"
		}
		if !strings.Contains(s, want) || i >= 200 && strings.Contains(s, ".10") {
			t.Fatalf("frame %d is %s", i, s)
		}
	}
}

// TestAStationWithAGroupsAddress: it is told, and counted, by who serves the group alone; and what the node that serves the group says itself is no news to a standby.
func TestAStationWithAGroupsAddress(t *testing.T) {
	for what, frame := range map[string][]byte{"arp": announcement(evilMAC, "192.0.2.100"), "nd": na(evilMAC, "2001:db8::100", "ff02::1", false, true)} {
		r, serve := groupRig(t)
		r.learn(frame)
		if got := r.took(); got != nil || r.m.stats.Duplicates != 0 {
			t.Errorf("%s: a standby says %v and counts %d", what, got, r.m.stats.Duplicates)
		}
		*serve = r.now + sec
		r.learn(frame)
		want := "all<v4 ask 192.0.2.100 192.0.2.100"
		if what == "nd" {
			want = "allnodes<v6 reply 2001:db8::100 2001:db8::100 O"
		}
		if d := cmp.Diff([]string{want}, r.took()); d != "" {
			t.Errorf("%s: %s", what, d)
		}
		if c := r.m.clashes; r.m.stats.Duplicates != 1 || len(c) != 1 || c[0].MAC != evilMAC || c[0].Defended != 1 {
			t.Errorf("%s: counted %d times, noted %+v", what, r.m.stats.Duplicates, c)
		}
		r.learn(announcement(virtual4, "192.0.2.100")) // another owner, or our own frame come back: the MAC does not say
		if r.m.stats.Duplicates != 1 || r.m.t.len() != 0 {
			t.Errorf("%s: the group's own MAC counted as another station, or was learnt", what)
		}
	}
}

// TestAnInterfaceThatComesBackIsToldOfTheGroup: without waiting for the next round.
func TestAnInterfaceThatComesBackIsToldOfTheGroup(t *testing.T) {
	r, serve := groupRig(t)
	c := r.m.ifaces[1].Interface
	*serve = r.now + 60*sec
	r.m.setInterfaces(nil, r.now)
	r.m.setInterfaces([]Interface{c}, r.now)
	r.m.announce(r.now)
	got := strings.Join(r.took(), "\n")
	for _, want := range []string{"all<v4 ask 192.0.2.100 192.0.2.100", "allnodes<v6 reply 2001:db8::100", "all<gw ask 192.0.2.1 192.0.2.1"} {
		if !strings.Contains(got, want) {
			t.Errorf("not told %s:\n%s", want, got)
		}
	}
	*serve = 0
	r.m.setInterfaces(nil, r.now)
	r.m.setInterfaces([]Interface{c}, r.now)
	r.pass(10 * sec)
	if got := strings.Join(r.took(), "\n"); strings.Contains(got, "<v") || !strings.Contains(got, "all<gw ask 192.0.2.1 192.0.2.1") {
		t.Errorf("a standby whose port came back says:\n%s", got)
	}
}
