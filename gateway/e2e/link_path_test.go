package e2e

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"demarc/gateway/api"
	"demarc/gateway/netlab"
	"demarc/gateway/netlab/host"
)

// What real clients see of the gateway as a hop: traceroute, ping, dig, with and without translation.
func TestLinkRealClients(t *testing.T) {
	mostlyWaits(t)
	s := standard(t, netlab.Options{})
	// Linux sends few unreachables a second to one peer, and all of alpha is one.
	check(t, s.Sysctl(s.Public1.Name, "net.ipv4.icmp_ratelimit", "0"))
	check(t, s.Sysctl(s.Public1.Name, "net.ipv6.icmp.ratelimit", "0"))
	s.start()
	s.serve(s.Public2.Name, "dns-serve", "-addr", ":53")
	s.serve(s.Public1.Name, "http-serve", "-addr", ":80")

	// Two hops: the gateway, then the far end.
	hop := regexp.MustCompile(`(?m)^ *([0-9]+) +(\S+) `)
	trace := func(h netlab.Host, args ...string) {
		var hops string
		run := func(which ...string) {
			out, err := s.Exec(h.Name, "traceroute", slices.Concat([]string{"-n", "-q", "2", "-w", "2"}, which, args)...)
			if err != nil {
				t.Error(err)
			}
			_, lines, _ := strings.Cut(string(out), "\n")
			hops += lines
		}
		if slices.Contains(args, "-I") { // each hop by a socket of its own: see TestSeeingICMPErrors
			run("-m", "1")
			run("-f", "2", "-m", "5")
		} else {
			run("-m", "5")
		}
		want := [][2]string{{"1", netlab.InsideGW4}, {"2", s.Public1.V4.String()}}
		if args[len(args)-1] == s.Public1.V6.String() {
			want = [][2]string{{"1", map[string]string{s.Alpha1.Name: "2001:db8:a::1", s.Beta1.Name: "2001:db8:b::1"}[h.Name]}, {"2", s.Public1.V6.String()}}
		}
		got := hop.FindAllStringSubmatch(hops, -1)
		ok := len(got) == len(want)
		for i := range got {
			ok = ok && got[i][1] == want[i][0] && got[i][2] == want[i][1]
		}
		if !ok || strings.Contains(hops, "*") || strings.Contains(hops, "!") {
			t.Errorf("traceroute %v from %s: want %v\n%s", args, h.Name, want, hops)
		}
	}
	// traceroute sends 16 probes at once: more than wait for a neighbour that nobody knows yet.
	for _, to := range []string{s.Public1.V4.String(), s.Public1.V6.String()} {
		if out, err := s.Exec(s.Alpha1.Name, "ping", "-n", "-c", "1", "-W", "3", to); err != nil {
			t.Errorf("%v\n%s", err, out)
		}
	}
	s.each(func(h netlab.Host) {
		trace(h, "-U", s.Public1.V4.String())
		trace(h, "-I", s.Public1.V4.String())
		trace(h, "-T", "-p", "80", s.Public1.V4.String())
		trace(h, s.Public1.V4.String())
		trace(h, "-6", s.Public1.V6.String())
		trace(h, "-6", "-I", s.Public1.V6.String())
	})
	// From outside, to a host that the policy lets in, the hop is the outer address; a refused one shows nothing behind the gateway.
	out, err := s.Exec(s.Public1.Name, "traceroute", "-n", "-q", "1", "-w", "1", "-m", "2", "-T", "-p", "8080", "192.0.2.16")
	if err != nil || !strings.Contains(string(out), " 203.0.113.1 ") {
		t.Errorf("traceroute from outside: %v\n%s", err, out)
	}

	dig, err := s.Exec(s.Beta1.Name, "dig", "+short", "+tries=1", "+time=2", "@"+s.Public2.V4.String(), "www.lab.example")
	if strings.TrimSpace(string(dig)) != "203.0.113.80" {
		t.Errorf("dig: %q, %v", dig, err)
	}

	// The gateway answers pings of its own and of its NAT addresses, to those who may see them, and of nobody else's.
	pings := func(ns, to string, answered bool) {
		t.Helper()
		args := []string{"-n", "-c", "2", "-i", "0.05", "-W", "1", to}
		out, err := s.Exec(ns, "ping", args...)
		if got := strings.Contains(string(out), " 0% packet loss") && err == nil; got != answered {
			t.Errorf("ping %s from %s: answered %v, want %v\n%s", to, ns, got, answered, out)
		}
	}
	for _, p := range []struct {
		ns, to   string
		answered bool
	}{
		{s.Alpha1.Name, netlab.InsideGW4, true}, {s.Beta2.Name, netlab.InsideGW4, true}, {s.Alpha1.Name, "2001:db8:a::1", true},
		{s.Public1.Name, netlab.PublicGW4, true}, {s.Public1.Name, netlab.PublicGW6, true},
		{s.Alpha1.Name, netlab.PublicGW4, true}, {s.Alpha1.Name, netlab.PublicGW6, true},
		{s.Public1.Name, "192.0.2.16", true}, {s.Public2.Name, "192.0.2.31", true}, {s.Public1.Name, "192.0.2.47", true},
		{s.Alpha1.Name, "192.0.2.40", true},
		{s.Public1.Name, "192.0.2.48", false}, {s.Public1.Name, "192.0.2.200", false}, // routed here, but nobody's
		{s.Alpha1.Name, "2001:db8:b::1", false}, // another tenant's side
	} {
		pings(p.ns, p.to, p.answered)
	}
	before := s.status()
	if _, err := s.Exec(s.Public1.Name, "ping", "-6", "-n", "-c", "1", "-W", "1", "fe80::d3:ff:fe00:f01%"+netlab.HostDevice); err != nil {
		t.Errorf("the gateway's link-local address does not answer: %v", err)
	}

	// An unused NAT address, or a port of one that nobody has, ends here: nothing is sent anywhere.
	mac, err := s.MAC(netlab.GW, netlab.PublicPort)
	check(t, err)
	own, err := s.MAC(s.Public1.Name, netlab.HostDevice)
	check(t, err)
	word := []byte("nobody's")
	has := func(f []byte) bool { return bytes.Contains(f, word) }
	fromGateway := s.capture(netlab.GW, netlab.PublicPort, 10, has) // AF_XDP frames pass no tap of their own device: look at the far ends
	atPublic := s.capture(s.Public1.Name, netlab.HostDevice, 100, func(f []byte) bool { return has(f) && bytes.Equal(f[6:12], mac) })
	atAlpha := s.capture(s.Alpha1.Name, netlab.HostDevice, 10, has)
	send := s.rawFrames(s.Public1.Name, netlab.HostDevice)
	for _, to := range []string{"192.0.2.20", "192.0.2.40", "192.0.2.200", "192.0.2.16"} {
		for range 5 {
			check(t, send(raw4(mac, own, s.Public1.V4, addr(to), 17, 64, false, udp(5000, 6000, word), 6)))
			check(t, send(raw4(mac, own, s.Public1.V4, addr(to), 6, 64, false, append(tcpSyn(5000, 6000), word...), 16)))
			check(t, send(raw4(mac, own, s.Public1.V4, addr(to), 47, 64, false, word, 0)))
		}
	}
	ended := func() uint64 {
		d := drops(before, s.status())
		return d["nat_unused_address"] + d["not_for_us"] + d["no_route"]
	}
	until(2*time.Second, func() bool { return ended() >= 60 })
	if n := ended(); n != 60 || atPublic.Seen()+atAlpha.Seen()+fromGateway.Seen() > 0 {
		t.Errorf("60 packets to unused addresses: %d dropped for it (%v), %d came back, %d went in, %d to the kernel", n, drops(before, s.status()), atPublic.Seen(), atAlpha.Seen(), fromGateway.Seen())
	}

	// Anti-spoofing: a tenant's host may not use an address outside its tenant's prefixes, nor the other tenant's prefix of IPv6.
	before = s.status()
	mac, err = s.MAC(netlab.GW, netlab.AlphaPort)
	check(t, err)
	own, err = s.MAC(s.Alpha1.Name, netlab.HostDevice)
	check(t, err)
	word = []byte("spoofed!")
	came := s.capture(s.Public1.Name, netlab.HostDevice, 10, func(f []byte) bool { return bytes.Contains(f, []byte("spoofed!")) })
	send = s.rawFrames(s.Alpha1.Name, netlab.HostDevice)
	for _, from := range []string{"198.18.11.11", "192.0.2.16", "203.0.113.12", "198.51.100.1"} {
		for range 5 {
			check(t, send(raw4(mac, own, addr(from), s.Public1.V4, 17, 64, false, udp(5000, 6000, word), 6)))
			check(t, send(raw4(mac, own, addr(from), s.Public1.V4, 1, 64, false, append(echoRequest(7), word...), 2)))
		}
	}
	until(2*time.Second, func() bool { return drops(before, s.status())["spoofed_source"] >= 40 })
	if d := drops(before, s.status()); d["spoofed_source"] != 40 || came.Seen() > 0 {
		t.Errorf("40 spoofed packets: dropped as %v, %d came out", d, came.Seen())
	}
	// The real host is not taken for one.
	var p host.Ping
	s.run(s.Alpha1.Name, &p, "ping", "-dst", s.Public1.V4.String(), "-count", "3", "-interval", "20ms")
	if p.Received != 3 {
		t.Errorf("after spoofing: %d of 3 pings", p.Received)
	}
	t.Logf("drops: %v", drops(&api.Status{}, s.status()))
	s.stop()
}

// The backbone interface takes 1400 bytes and nobody on either side knows. What does not fit and may not be cut is told to its sender, and
// TCP finds its way.
func TestLinkPathMTU(t *testing.T) {
	mostlyWaits(t)
	s := standard(t, netlab.Options{})
	node := replace(t, read(t, s.node), "addresses = [\"203.0.113.1/24\", \"2001:db8:ff::1/64\"]\n", "addresses = [\"203.0.113.1/24\", \"2001:db8:ff::1/64\"]\nmtu = 1400\n")
	policy := replace(t, unlimited(t, read(t, s.policy)), "trusted-outside = [\"203.0.113.11\"]", "trusted-outside = [\"203.0.113.11\", \"2001:db8:ff::11\"]")
	s.write(node, replace(t, policy, "to = [\"198.18.10.11\"]", "to = [\"198.18.10.11\", \"2001:db8:a::11\"]"))
	s.start()
	s.serve(s.Public1.Name, "http-serve", "-addr", ":80")
	s.serve(s.Alpha1.Name, "http-serve", "-addr", ":80")

	ping := func(ns, to, size string) (string, bool) {
		// -M do: the kernel sets DF and tells what MTU it has learned.
		c := s.Command(ns, "ping", "-n", "-c", "3", "-i", "0.1", "-W", "1", "-M", "do", "-s", size, to)
		var out bytes.Buffer
		c.Stdout, c.Stderr = &out, &out
		err := c.Run()
		if _, ok := err.(*exec.ExitError); err != nil && !ok {
			t.Fatal(err)
		}
		return out.String(), strings.Contains(out.String(), " 0% packet loss")
	}
	for _, c := range []struct{ to, fits, tooLong, said string }{
		{s.Public1.V4.String(), "1372", "1373", `From 198.18.10.1 icmp_seq=1 .*mtu = 1400`},
		{s.Public1.V6.String(), "1352", "1353", `From 2001:db8:a::1 icmp_seq=1 Packet too big: mtu=1400`},
	} {
		if out, ok := ping(s.Alpha2.Name, c.to, c.fits); !ok {
			t.Errorf("what just fits does not pass:\n%s", out)
		}
		if out, ok := ping(s.Alpha2.Name, c.to, c.tooLong); ok || !regexp.MustCompile(c.said).MatchString(out) {
			t.Errorf("what is a byte too long: want %q\n%s", c.said, out)
		}
	}
	for _, h := range []string{s.Alpha2.Name, s.Beta1.Name} {
		for _, at := range []string{"203.0.113.11", "[2001:db8:ff::11]"} {
			var d host.Download
			s.run(h, &d, "http-get", "-url", "http://"+at, "-size", "2000000")
			if !d.OK {
				t.Errorf("download of %s: %+v", h, d)
			}
		}
	}
	// The other way alpha1, which has learned nothing so far, sends full segments, which must become smaller by what the gateway tells it.
	for _, url := range []string{"http://192.0.2.16:8080", "http://[2001:db8:a::11]"} {
		before := s.status()
		var up host.Download
		s.run(s.Public1.Name, &up, "http-get", "-url", url, "-size", "2000000")
		d := drops(before, s.status())
		if !up.OK || d["too_big"] == 0 || d["too_big"] > 200 {
			t.Errorf("upload of %s: %+v, drops %v", url, up, d)
		}
		t.Logf("upload of %s: %.0f Mbit/s with drops %v", url, up.Mbits, d)
	}

	// A packet without DF goes on in pieces.
	before := s.status()
	mac, err := s.MAC(netlab.GW, netlab.AlphaPort)
	check(t, err)
	own, err := s.MAC(s.Alpha2.Name, netlab.HostDevice)
	check(t, err)
	word := []byte("too long")
	came := s.capture(s.Public1.Name, netlab.HostDevice, 10, func(f []byte) bool {
		return len(f) >= 34 && f[12] == 8 && f[13] == 0 && f[23] == 17 && (bytes.Contains(f, word) || f[20]&0x1f|f[21] != 0) // the first piece, or a later one
	})
	body := append(append([]byte{}, word...), make([]byte, 1400)...)
	check(t, s.rawFrames(s.Alpha2.Name, netlab.HostDevice)(raw4(mac, own, s.Alpha2.V4, s.Public1.V4, 17, 64, false, udp(1000, 9, body), 6)))
	if !until(time.Second, func() bool { return came.Seen() >= 2 }) || drops(before, s.status())["too_big"] != 0 {
		t.Errorf("a long packet without DF: dropped as %v, %d pieces came out", drops(before, s.status()), came.Seen())
	}
	s.stop()
}

// The MSS clamp, from the MTU and fixed, IPv4 and IPv6, both ways, as the hosts see it on the wire.
func TestLinkMSSClamp(t *testing.T) {
	mostlyWaits(t)
	s := standard(t, netlab.Options{})
	node := replace(t, read(t, s.node), "addresses = [\"203.0.113.1/24\", \"2001:db8:ff::1/64\"]\n",
		"addresses = [\"203.0.113.1/24\", \"2001:db8:ff::1/64\"]\nmtu = 1450\nmss_clamp = \"mtu\"\n")
	node = replace(t, node, "addresses = [\"198.18.10.1/24\", \"2001:db8:b::1/64\"]\n", "addresses = [\"198.18.10.1/24\", \"2001:db8:b::1/64\"]\nmss_clamp = \"1200\"\n")
	s.write(node, read(t, s.policy))
	s.start()
	s.serve(s.Public1.Name, "http-serve", "-addr", ":80")
	s.serve(s.Alpha1.Name, "http-serve", "-addr", ":80")

	// mss is what a SYN, or SYN and ACK, in the frame offers; 0 when it is none.
	mss := func(f []byte) uint16 {
		at := 34
		switch binary.BigEndian.Uint16(f[12:]) {
		case 0x0800:
			if f[23] != 6 {
				return 0
			}
		case 0x86dd:
			if at = 54; f[20] != 6 {
				return 0
			}
		default:
			return 0
		}
		if len(f) < at+24 || f[at+13]&2 == 0 || f[at+20] != 2 {
			return 0
		}
		return binary.BigEndian.Uint16(f[at+22:])
	}
	for _, c := range []struct {
		client, url string
		server      string
		want        uint16
	}{
		{s.Alpha2.Name, "http://203.0.113.11", s.Public1.Name, 1410},
		{s.Alpha2.Name, "http://[2001:db8:ff::11]", s.Public1.Name, 1390},
		{s.Beta1.Name, "http://203.0.113.11", s.Public1.Name, 1200},
		{s.Beta1.Name, "http://[2001:db8:ff::11]", s.Public1.Name, 1200},
		{s.Public1.Name, "http://192.0.2.16:8080", s.Alpha1.Name, 1410}, // opened from outside
	} {
		seen := map[string]*netlab.Capture{}
		for _, ns := range []string{c.client, c.server} {
			out, err := s.MAC(ns, netlab.HostDevice)
			check(t, err)
			seen[ns] = s.capture(ns, netlab.HostDevice, 10, func(f []byte) bool { return !bytes.Equal(f[6:12], out) && mss(f) != 0 })
		}
		var d host.Download
		s.run(c.client, &d, "http-get", "-url", c.url, "-size", "500000")
		if !d.OK {
			t.Errorf("download %s from %s: %+v", c.url, c.client, d)
		}
		for ns, k := range seen {
			until(time.Second, func() bool { return k.Seen() > 0 })
			k.Stop()
			list := k.Frames()
			if len(list) == 0 {
				t.Errorf("%s from %s: %s saw no SYN", c.url, c.client, ns)
			}
			for _, f := range list {
				if got := mss(f.Data); got != c.want {
					t.Errorf("%s from %s: %s was offered %d, want %d", c.url, c.client, ns, got, c.want)
				}
			}
		}
	}
	t.Log(fmt.Sprintf("drops: %v", drops(&api.Status{}, s.status())))
	s.stop()
}
