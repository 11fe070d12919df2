package e2e

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"demarc/gateway/netlab"
	"demarc/gateway/netlab/host"
)

const trunkNode = `schema = 1
name = "trunk"
data_dir = "x"
[tables]
sessions = 4096
tenants = 8
frames = 4096
[api]
socket = "x"
[[port]]
device = "bb0"
[[port]]
device = "trunk0"
[[interface]]
name = "backbone"
port = "bb0"
addresses = ["203.0.113.1/24", "2001:db8:ff::1/64"]
[[interface]]
name = "cust-101"
port = "trunk0"
vlan = 101
addresses = ["198.18.0.1/24", "2001:db8:1:101::1/64"]
[[interface]]
name = "cust-102"
port = "trunk0"
vlan = 102
addresses = ["198.18.0.1/24", "2001:db8:1:102::1/64"]
`

const trunkPolicy = `schema = 1
name = "trunk"
[backbone]
interfaces = ["backbone"]
[[tenant]]
name = "one"
interfaces = ["cust-101"]
prefixes = ["198.18.0.0/24", "2001:db8:1:101::/64"]
[tenant.nat]
pool = ["192.0.2.1"]
[[tenant.nat.forward]]
public = "192.0.2.1"
proto = "tcp"
port = 80
inside = "198.18.0.11"
[[tenant.rule]]
direction = "in"
action = "allow"
service = ["tcp/80"]
[[tenant]]
name = "two"
interfaces = ["cust-102"]
prefixes = ["198.18.0.0/24", "2001:db8:1:102::/64"]
[tenant.nat]
pool = ["192.0.2.2"]
[[tenant.nat.forward]]
public = "192.0.2.2"
proto = "tcp"
port = 80
inside = "198.18.0.11"
[[tenant.rule]]
direction = "in"
action = "allow"
service = ["tcp/80"]
`

// trunk is two tenants' hosts one and two, with the same address, behind VLANs 101 and 102 of port trunk0; stray on the same
// switch without a tag; and public1.
func trunk(t *testing.T) *site {
	s := bare(t)
	check(t, s.AddSwitch("sw-trunk"))
	check(t, s.Plug("sw-trunk", netlab.End{NS: netlab.GW, Name: "trunk0"}, 1, 0))
	check(t, s.Sysctl(netlab.GW, "net.ipv6.conf.trunk0.disable_ipv6", "1")) // the kernel's own frames would be untagged
	for i, ns := range []string{"one", "two", "stray"} {
		check(t, s.AddNamespace(ns))
		e := netlab.End{NS: ns, Name: netlab.HostDevice}
		e.Addrs = append(e.Addrs, prefix("198.18.0.11/24"), prefix(fmt.Sprintf("2001:db8:1:10%d::11/64", i+1)))
		check(t, s.Plug("sw-trunk", e, 1, 0))
		if ns != "stray" {
			check(t, s.Tag(ns, netlab.HostDevice, uint16(101+i)))
			check(t, s.AddRoute(ns, prefix("::/0"), addr(fmt.Sprintf("2001:db8:1:10%d::1", i+1))))
		}
		check(t, s.AddRoute(ns, prefix("0.0.0.0/0"), addr("198.18.0.1")))
	}
	check(t, s.AddNamespace("public1"))
	check(t, s.AddLink(netlab.LinkSpec{A: netlab.End{NS: netlab.GW, Name: "bb0"},
		B: netlab.End{NS: "public1", Name: netlab.HostDevice, Addrs: []netip.Prefix{prefix("203.0.113.11/24"), prefix("2001:db8:ff::11/64")}}}))
	check(t, s.AddRoute("public1", prefix("192.0.2.0/24"), addr("203.0.113.1")))
	check(t, s.AddRoute("public1", prefix("2001:db8:1::/48"), addr("2001:db8:ff::1")))
	redirectable(t, s.Topology, "sw-trunk", netlab.PortName(netlab.End{NS: netlab.GW, Name: "trunk0"}))
	redirectable(t, s.Topology, "public1", netlab.HostDevice)
	s.write(trunkNode, trunkPolicy)
	return s
}

// tagOf is the VLAN of a frame, 0 without a tag.
func tagOf(f []byte) uint16 {
	if len(f) < 18 || binary.BigEndian.Uint16(f[12:]) != unix.ETH_P_8021Q {
		return 0
	}
	return binary.BigEndian.Uint16(f[14:]) & 0xfff
}

// Two tenants on VLANs of one trunk port, with the same inside address, at the same time: each frame carries its tenant's tag on the wire,
// both ways, and neither tenant sees anything of the other.
func TestLinkTwoTenantsOnOneTrunk(t *testing.T) {
	s := trunk(t)
	trunkMAC, err := s.MAC(netlab.GW, "trunk0")
	check(t, err)
	var mu sync.Mutex
	tags := map[string]int{} // what passes the trunk, by direction and tag
	wrong := 0
	watch := func(f []byte) bool {
		way := "from the gateway"
		if !bytes.Equal(f[6:12], trunkMAC) {
			way = "to the gateway"
			if !bytes.Equal(f[:6], trunkMAC) && f[0]&1 == 0 {
				return false // the switch does not know better yet
			}
		}
		v := tagOf(f)
		mu.Lock()
		defer mu.Unlock()
		tags[fmt.Sprintf("%s, tag %d", way, v)]++
		for i, tag := range []string{"one", "two"} {
			if bytes.Contains(f, host.ProbeMarker(tag)) && v != uint16(101+i) {
				wrong++
			}
		}
		return false
	}
	s.capture("sw-trunk", "gw-trunk0", 0, watch)
	s.serve("public1", "http-serve", "-addr", ":80")
	s.serve("public1", "udp-echo", "-addr", ":7007")
	for _, ns := range []string{"one", "two"} {
		s.serve(ns, "tcp-serve", "-addr", ":80", "-banner", ns)
	}
	s.start()
	var wg sync.WaitGroup
	var probes [4]host.Probe
	var downloads [4]host.Download
	var pings [2]host.Ping
	for i, ns := range []string{"one", "two"} {
		for j, at := range []string{"203.0.113.11", "[2001:db8:ff::11]"} {
			k := i*2 + j
			wg.Go(func() {
				local := "198.18.0.11:40000"
				if j == 1 {
					local = fmt.Sprintf("[2001:db8:1:10%d::11]:40000", i+1)
				}
				s.runAny(ns, &probes[k], "udp-probe", "-dst", at+":7007", "-local", local, "-tag", ns, "-pps", "200", "-duration", "1500ms")
			})
			// Full frames: 1500 bytes and the tag.
			wg.Go(func() {
				s.runAny(ns, &downloads[k], "http-get", "-url", "http://"+at, "-size", "2000000", "-seed", fmt.Sprint(k+1))
			})
		}
		wg.Go(func() {
			s.runAny(ns, &pings[i], "ping", "-dst", "203.0.113.11", "-size", "1472", "-count", "10", "-interval", "50ms")
		})
	}
	wg.Wait()
	for k, p := range probes {
		if p.Sent == 0 || p.Received != p.Sent || p.Foreign+p.Duplicate > 0 {
			t.Errorf("probe %d: %+v", k, p)
		}
	}
	for k, d := range downloads {
		want := []string{"192.0.2.1:", "[2001:db8:1:101::11]:", "192.0.2.2:", "[2001:db8:1:102::11]:"}[k]
		if !d.OK || !strings.HasPrefix(d.SeenAs, want) {
			t.Errorf("download %d: %+v, want it seen as %s", k, d, want)
		}
	}
	for i, p := range pings {
		if p.Received != p.Sent || p.Bad > 0 {
			t.Errorf("ping %d: %+v", i, p)
		}
	}
	for i, ns := range []string{"one", "two"} { // the other way: opened from outside
		var a host.Attempt
		s.run("public1", &a, "tcp-connect", "-dst", fmt.Sprintf("192.0.2.%d:80", i+1))
		if a.Banner != ns {
			t.Errorf("forward of tenant %s: %+v", ns, a)
		}
	}

	// Nobody's: no tag, a tag of nobody, a tag of nobody inside a priority tag's place.
	before := s.status()
	seen := s.capture("public1", netlab.HostDevice, 10, func(f []byte) bool { return bytes.Contains(f, []byte("stray!")) })
	own, err := s.MAC("stray", netlab.HostDevice)
	check(t, err)
	send := s.rawFrames("stray", netlab.HostDevice)
	plain := raw4(trunkMAC, own, addr("198.18.0.11"), addr("203.0.113.11"), 17, 64, false, udp(40001, 7007, []byte("stray!")), 6)
	tagged := func(tci uint16) []byte {
		f := append(append([]byte{}, plain[:12]...), 0x81, 0)
		return append(binary.BigEndian.AppendUint16(f, tci), plain[12:]...)
	}
	for range 5 {
		check(t, send(plain))
		check(t, send(tagged(103)))
		check(t, send(tagged(0)))
		check(t, send(tagged(5<<13)))
	}
	until(2*time.Second, func() bool { return drops(before, s.status())["unknown_vlan"] >= 20 })
	if d := drops(before, s.status()); d["unknown_vlan"] < 20 {
		t.Errorf("20 frames of nobody's VLAN were dropped as %v", d)
	}
	if n := seen.Seen(); n > 0 {
		t.Errorf("%d frames of nobody's VLAN came out", n)
	}
	// A tenant's tag behind a service tag is not the tenant's.
	before = s.status()
	double := append(append([]byte{}, plain[:12]...), 0x88, 0xa8, 0, 5)
	check(t, send(append(double, tagged(101)[12:]...)))
	if !until(2*time.Second, func() bool { return drops(before, s.status())["bad_ethertype"] == 1 }) || seen.Seen() > 0 {
		t.Errorf("a tenant's tag behind a service tag: dropped as %v, %d came out", drops(before, s.status()), seen.Seen())
	}
	// The same with a tenant's tag is the tenant's, whatever its priority.
	check(t, send(tagged(6<<13|101)))
	if !until(2*time.Second, func() bool { return seen.Seen() == 1 }) {
		t.Error("a frame with the tenant's tag and a priority did not come out")
	}
	mu.Lock()
	if wrong > 0 {
		t.Errorf("%d frames with the wrong tag", wrong)
	}
	for k, n := range tags {
		if strings.HasPrefix(k, "from") && !strings.HasSuffix(k, " 101") && !strings.HasSuffix(k, " 102") {
			t.Errorf("%d frames %s", n, k)
		}
	}
	for _, k := range []string{"to the gateway, tag 101", "to the gateway, tag 102", "from the gateway, tag 101", "from the gateway, tag 102"} {
		least := 1500
		if strings.HasPrefix(k, "to") { // acknowledgements of downloads, mostly: the busier the machine, the more each of them covers
			least = 600
		}
		if tags[k] < least {
			t.Errorf("%d frames %s", tags[k], k)
		}
	}
	t.Logf("on the trunk: %v; downloads %.0f %.0f %.0f %.0f Mbit/s", tags, downloads[0].Mbits, downloads[1].Mbits, downloads[2].Mbits, downloads[3].Mbits)
	mu.Unlock()
	s.stop()
}

// A driver that strips tags would let the tenants of a trunk fall together: where nobody may change that, the start is refused, with the line that
// mends it, and that line does.
func TestLinkTrunkRefusesTagStripping(t *testing.T) {
	mostlyWaits(t)
	s := trunk(t)
	s.write(replace(t, replace(t, trunkNode, "device = \"trunk0\"\n", "device = \"trunk0\"\nprepare = false\n"), "device = \"bb0\"\n", "device = \"bb0\"\nprepare = false\n"), trunkPolicy)
	for _, feature := range []string{"rxvlan", "rx-vlan-stag-hw-parse"} {
		_, err := s.Exec(netlab.GW, "ethtool", "-K", "trunk0", feature, "on")
		check(t, err)
		p := s.launch(nil)
		select {
		case <-p.ended:
		case <-time.After(5 * time.Second):
			s.end(p, unix.SIGTERM)
			t.Fatal("it started")
		}
		mend := "ethtool -K trunk0 " + feature + " off"
		said := p.lastLines(10)
		if p.err == nil || !strings.Contains(said, mend) || strings.Count(said, "\n") > 0 {
			t.Errorf("it ended with %v and says %q, want one line with %q", p.err, said, mend)
		}
		if a, b := s.xdpID("trunk0"), s.xdpID("bb0"); a != 0 || b != 0 {
			t.Errorf("programs are left: %d %d", a, b)
		}
		t.Log(said)
		f := strings.Fields(mend)
		_, err = s.Exec(netlab.GW, f[0], f[1:]...)
		check(t, err)
	}
	// On the port without VLANs stripping harms nobody.
	_, err := s.Exec(netlab.GW, "ethtool", "-K", "bb0", "rxvlan", "on")
	check(t, err)
	s.start()
	var g host.Ping
	s.run("one", &g, "ping", "-dst", "203.0.113.11", "-count", "3", "-interval", "20ms")
	if g.Received != 3 {
		t.Errorf("%d of 3 pings", g.Received)
	}
	s.stop()
}
