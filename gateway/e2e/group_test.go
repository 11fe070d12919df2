package e2e

import (
	"fmt"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"demarc/configs"
	"demarc/configs/examples"
	"demarc/gateway/netlab"
	"demarc/gateway/netlab/host"
)

// The example of a pair on one of its nodes, which the other one has not joined: it serves neither group before an operator says so, because the other one might. Hosts and the upstream router know the virtual addresses alone, and
// have ordinary neighbour caches: what comes to them of a group comes from its MACs. When the policy gives a group to the other node, nothing of it leaves any more; the node's own
// addresses, and the other group, live on.
func TestGroupOnTheWire(t *testing.T) {
	mostlyWaits(t)
	l := exampleLab(t, "group", 1, []string{"ens1f0", "ens1f1"}, []exampleHost{
		{"upstream", "ens1f0", 0, []string{"203.0.113.1/29", "2001:db8:ff::1/64"}, map[string]string{"192.0.2.0/30": "203.0.113.4", "2001:db8:a::/64": "2001:db8:ff::4"}},
		{"acme", "ens1f1", 10, []string{"198.18.10.10/24", "2001:db8:a::10/64"}, map[string]string{"0.0.0.0/0": "198.18.10.1", "::/0": "2001:db8:a::1"}},
		{"bolt", "ens1f1", 20, []string{"198.18.10.10/24"}, map[string]string{"0.0.0.0/0": "198.18.10.1"}},
	})
	r := exampleRig(t, l, "pair", map[string]string{"[cluster]\nlisten = \"198.51.100.1:7400\"\n": "", "[api]\nmetrics = \"198.51.100.1:9090\"\n": "[api]\n"})
	mac := func(id int) (list []net.HardwareAddr) {
		v4, v6 := (&configs.Group{ID: id}).MACs()
		return []net.HardwareAddr{v4[:], v6[:]}
	}
	east, west := mac(1), mac(2)
	heard := func(ns string, macs ...net.HardwareAddr) *netlab.Capture {
		c, err := l.CaptureSources(ns, netlab.HostDevice, 4096, 128, macs...)
		check(t, err)
		return c
	}
	type place struct {
		ns   string
		from []net.HardwareAddr
	}
	places := []place{{"upstream", east}, {"upstream", west}, {"acme", east}, {"bolt", west}}
	var captures []*netlab.Capture
	for _, p := range places {
		captures = append(captures, heard(p.ns, p.from...))
	}
	r.start()
	r.serve("upstream", "tcp-serve", "-addr", ":80", "-banner", "upstream")
	r.until(5*time.Second, "the node says that it serves neither group", func() (bool, string) {
		said := r.logged()
		return strings.Count(said, "level=WARN msg=group") == 2 && strings.Contains(said, "group take west --force"), said
	})
	out, _, _ := r.cli("group")
	if n := strings.Count(out, "only 1 of 2 vote in this cluster"); n != 2 || !strings.Contains(out, "demarc cluster join") {
		t.Errorf("demarc group does not say why neither is served:\n%s", out)
	}
	for i, c := range captures {
		check(t, c.CatchUp(5*time.Second))
		if n := c.Seen(); n > 0 {
			t.Errorf("%d frames of a group that nobody has taken were heard by %s: %x", n, places[i].ns, c.Frames()[0].Data)
		}
	}
	for _, g := range []string{"east", "west"} {
		if _, bad, status := r.cli("group", "take", g, "--force"); status != 0 {
			t.Fatalf("group take %s --force: %s", g, bad)
		}
	}
	connect := func(from, dst string) (a host.Attempt) {
		r.wait(r.spawn(from, &a, "tcp-connect", "-dst", dst, "-timeout", "1s"))
		return a
	}
	for _, x := range []struct{ from, dst, as string }{
		{"acme", "203.0.113.1:80", "192.0.2."}, {"acme", "[2001:db8:ff::1]:80", "2001:db8:a::10"}, {"bolt", "203.0.113.1:80", "203.0.113.5"},
	} {
		r.until(20*time.Second, fmt.Sprintf("%s reaches %s", x.from, x.dst), func() (bool, string) {
			a := connect(x.from, x.dst)
			return a.Banner == "upstream" && strings.HasPrefix(rigAddr(a.SeenAs).String(), x.as), fmt.Sprintf("%s, %q, seen as %s", a.How, a.Banner, a.SeenAs)
		})
	}
	for _, x := range []struct{ ns, addr, mac string }{
		{"acme", "198.18.10.1", east[0].String()}, {"acme", "2001:db8:a::1", east[1].String()}, {"bolt", "198.18.10.1", west[0].String()},
		{"upstream", "203.0.113.4", east[0].String()}, {"upstream", "2001:db8:ff::4", east[1].String()}, {"upstream", "203.0.113.5", west[0].String()},
	} {
		out, err := r.Exec(x.ns, "ip", "neigh", "show", x.addr)
		if err != nil || !strings.Contains(string(out), x.mac) {
			t.Errorf("%s has %s at %q, want %s (%v)", x.ns, x.addr, strings.TrimSpace(string(out)), x.mac, err)
		}
	}
	for i, c := range captures {
		check(t, c.CatchUp(5*time.Second))
		if _, err := c.Stop(); err != nil {
			t.Error(err)
		}
		arp, packets, announced := 0, 0, 0
		for _, f := range c.Frames() {
			at := 12
			if f.Data[12] == 0x81 {
				at = 16
			}
			switch {
			case f.Data[at] == 8 && f.Data[at+1] == 6:
				arp++
				if f.Data[0] == 0xff {
					announced++
				}
			default:
				packets++
			}
		}
		if packets == 0 || announced == 0 {
			t.Errorf("%s heard %d packets, %d ARP frames, %d announcements of %s", places[i].ns, packets, arp, announced, places[i].from[0])
		}
	}

	policy, err := examples.FS.ReadFile("pair.policy.toml")
	check(t, err)
	if out, bad, code := r.cli("block", "203.0.113.4", "for", "1m"); code != 1 || !strings.Contains(bad, "203.0.113.4 is the virtual address of group east on interface transit: say force") {
		t.Errorf("block of a virtual address: status %d, %s%s", code, out, bad)
	}
	before := r.status()
	a := r.apply(replace(t, string(policy), `nodes = ["gw1", "gw2"]    # the`, `nodes = ["gw2"]    # the`))
	strangers := slices.DeleteFunc(slices.Clone(a.Warnings), func(w string) bool { return !strings.Contains(w, "is no member") }) // beside what check warns of
	if len(strangers) != 2 || !strings.Contains(strangers[0], `"gw2" is no member of this cluster: did you mean "gw1"?`) {        // of west, which names gw1 too, nothing is meant
		t.Errorf("nodes that are not there: %q", a.Warnings)
	}
	r.until(10*time.Second, "the group is let go of", func() (bool, string) {
		a := connect("acme", "203.0.113.1:80")
		return a.Banner == "", "acme still connects"
	})
	quiet := []*netlab.Capture{heard("upstream", east...), heard("acme", east...)}
	if a := connect("acme", "[2001:db8:ff::1]:80"); a.Banner != "" {
		t.Errorf("IPv6 of a group that is not served: %+v", a)
	}
	connect("acme", "203.0.113.1:80")
	connect("acme", "198.18.10.1:80") // a virtual address
	_, _ = r.Exec("upstream", "ping", "-c", "2", "-i", "0.2", "-W", "1", "192.0.2.1")
	if a := connect("bolt", "203.0.113.1:80"); a.Banner != "upstream" {
		t.Errorf("the other group: %s", a.How)
	}
	for _, own := range []struct{ ns, addr string }{{"acme", "198.18.10.252"}, {"acme", "2001:db8:a::252"}, {"upstream", "203.0.113.2"}} {
		if out, err := r.Exec(own.ns, "ping", "-c", "1", "-W", "2", own.addr); err != nil {
			t.Errorf("the node's own address %s: %v %s", own.addr, err, out)
		}
	}
	for i, c := range quiet {
		check(t, c.CatchUp(5*time.Second))
		if _, err := c.Stop(); err != nil {
			t.Error(err)
		}
		if n := c.Seen(); n != 0 {
			t.Errorf("%d frames of a group that is not served were heard by %s: %x", n, []string{"upstream", "acme"}[i], c.Frames()[0].Data)
		}
	}
	d := drops(before, r.status())
	if d["not_owner"]+d["xdp_not_owner"] == 0 {
		t.Errorf("drops: %v", d)
	}
	t.Logf("drops %v", d)
}
