package e2e

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"demarc/gateway/api"
	"demarc/gateway/netlab"
)

// farLab is the standard lab with a router, public2, and behind it on a link of 1400 bytes a host.
func farLab(t *testing.T, workers int) *site {
	s := standard(t, netlab.Options{Queues: workers})
	check(t, s.AddNamespace("far"))
	check(t, s.AddLink(netlab.LinkSpec{MTU: 1400, A: netlab.End{NS: s.Public2.Name, Name: "r0", Addrs: []netip.Prefix{prefix("198.51.100.1/24"), prefix("2001:db8:f::1/64")}},
		B: netlab.End{NS: "far", Name: netlab.HostDevice, Addrs: []netip.Prefix{prefix("198.51.100.2/24"), prefix("2001:db8:f::2/64")}}}))
	check(t, s.AddRoute("far", prefix("0.0.0.0/0"), addr("198.51.100.1")))
	check(t, s.AddRoute("far", prefix("::/0"), addr("2001:db8:f::1")))
	check(t, s.Sysctl(s.Public2.Name, "net.ipv4.ip_forward", "1"))
	check(t, s.Sysctl(s.Public2.Name, "net.ipv6.conf.all.forwarding", "1"))
	for _, ns := range []string{s.Public2.Name, "far"} { // a kernel sends few errors to one host
		check(t, s.Sysctl(ns, "net.ipv4.icmp_ratelimit", "0"))
		check(t, s.Sysctl(ns, "net.ipv6.icmp.ratelimit", "0"))
	}
	for _, a := range []string{"198.51.100.77/32", "2001:db8:f:7::/64"} {
		_, err := s.Exec(s.Public2.Name, "ip", "route", "add", "unreachable", a)
		check(t, err)
	}
	policy := read(t, s.policy)
	at := strings.Index(policy, "[[tenant]]")
	s.write(replace(t, read(t, s.node), "count = 1", fmt.Sprintf("count = %d", workers)), policy[:at]+"[[route]]\nprefix = \"198.51.100.0/24\"\nvia = \"203.0.113.12\"\n[[route]]\nprefix = \"2001:db8:f::/48\"\nvia = \"2001:db8:ff::12\"\n"+policy[at:])
	s.start()
	return s
}

// Pings of the gateway's own, from the backbone's and the tenants' sides, IPv4 and IPv6: answers, and each kind of error with who said it.
func TestPingFromTheGateway(t *testing.T) {
	mostlyWaits(t)
	s := farLab(t, 1)
	before := s.status()
	for _, c := range []struct {
		args string
		ok   bool
		says string
	}{
		{"ping 203.0.113.11 -c 3 -i 50ms", true, `^PING 203\.0\.113\.11 from 203\.0\.113\.1 on backbone: 56 bytes of data\n64 bytes from 203\.0\.113\.11: icmp_seq=1 ttl=64 time=[\d.]+ ms\n.*icmp_seq=3 .*3 packets transmitted, 3 received, 0% packet loss.*rtt min/avg/max/mdev = `},
		{"ping 2001:db8:ff::11 -c 2 -i 50ms", true, `from 2001:db8:ff::1 on backbone.*2 packets transmitted, 2 received, 0% packet loss`},
		{"ping 198.51.100.2 -c 2 -i 50ms", true, `from 203\.0\.113\.1 on backbone via 203\.0\.113\.12.*icmp_seq=2 ttl=63 .*2 received`},
		{"ping 2001:db8:f::2 -c 1 -s 1200", true, `1208 bytes from 2001:db8:f::2: icmp_seq=1 ttl=63`},
		{"ping 198.18.10.11 -c 1 --tenant alpha", true, `from 198\.18\.10\.1 on alpha: .*1 received`},
		{"ping 198.18.10.11 -c 1 --interface beta", true, `from 198\.18\.10\.1 on beta: .*1 received`},
		{"ping 2001:db8:a::11 -c 1 --tenant alpha", true, `from 2001:db8:a::1 on alpha: .*1 received`},
		{"ping 198.51.100.2 -c 1 -t 1", false, `From 203\.0\.113\.12 icmp_seq=1 Time to live exceeded`},
		{"ping 2001:db8:f::2 -c 1 -t 1", false, `From 2001:db8:ff::12 icmp_seq=1 Time exceeded: Hop limit`},
		{"ping 198.51.100.2 -c 1 -s 1450 --df", false, `From 203\.0\.113\.12 icmp_seq=1 Frag needed and DF set \(mtu = 1400\)`},
		{"ping 2001:db8:f::2 -c 1 -s 1450", false, `icmp_seq=1 Packet too big: mtu=1400`},
		// A kernel lets one such error a second go to one host, whatever its sysctls say.
		{"ping 198.51.100.77 -c 4 -i 500ms", false, `From 203\.0\.113\.12 icmp_seq=\d Destination Host Unreachable.*4 packets transmitted, 0 received, \+[1-4] errors, 100% packet loss`},
		{"ping 2001:db8:f:7::1 -c 4 -i 500ms", false, `icmp_seq=\d Destination unreachable: (No route|Address unreachable|Reject route)`},
		{"ping 203.0.113.99 -c 2 -i 100ms -W 500ms", false, `2 packets transmitted, 0 received, 100% packet loss.*203\.0\.113\.99 does not answer on backbone`},
		{"ping 203.0.113.1 -c 1", false, `203\.0\.113\.1 is the gateway's own address`},
		{"ping 192.0.2.16 -c 1", false, `behind the gateway itself`},
		{"ping 198.18.10.11 -c 1", false, `no route of the backbone leads to 198\.18\.10\.11`},
		{"ping 203.0.113.11 -c 1 --tenant alpha", false, `no route of tenant "alpha" leads to 203\.0\.113\.11`},
		{"ping 203.0.113.11 -c 1 --interface wan", false, `there is no interface "wan" in use: there are backbone, alpha, beta`},
		{"ping www.example -c 1", false, `"www\.example" is not an address`},
		{"ping 203.0.113.11 -c 1 -s 1473", false, `packets of 1501 bytes, and interface backbone takes 1500: .*at most 1472`},
		{"ping 224.0.0.1 -c 1", false, `no address of a host`},
	} {
		out, err := s.demarc(strings.Fields(c.args)...)
		if (err == nil) != c.ok || !regexp.MustCompile("(?s)"+c.says).MatchString(out+errText(err)) {
			t.Errorf("%s: %v\n%s\nwant %s", c.args, err, out, c.says)
		}
	}

	// A link-local address, from the one interface that it is on; each of two tenants' hosts with one address, at the same time.
	mac, err := s.MAC(s.Alpha1.Name, netlab.HostDevice)
	check(t, err)
	if out, err := s.demarc("ping", linkLocal(mac), "--interface", "alpha", "-c", "1"); err != nil {
		t.Errorf("link-local: %v\n%s", err, out)
	}
	requests := func(f []byte) bool { return len(f) > 34 && f[12] == 8 && f[13] == 0 && f[23] == 1 && f[34] == 8 }
	atAlpha, atBeta := s.capture(s.Alpha1.Name, netlab.HostDevice, 100, requests), s.capture(s.Beta1.Name, netlab.HostDevice, 100, requests)
	var wg sync.WaitGroup
	for tenant, n := range map[string]string{"alpha": "7", "beta": "12"} {
		wg.Go(func() {
			if out, err := s.demarc("ping", "198.18.10.11", "--tenant", tenant, "-c", n, "-i", "30ms", "--json"); err != nil {
				t.Errorf("%s: %v\n%s", tenant, err, out)
			}
		})
	}
	wg.Wait()
	if !until(2*time.Second, func() bool { return atAlpha.Seen() == 7 && atBeta.Seen() == 12 }) {
		t.Errorf("%d requests at alpha, %d at beta, want 7 and 12", atAlpha.Seen(), atBeta.Seen())
	}
	if d := drops(before, s.status()); d["local_unhandled"]+d["icmp_no_session"] > 0 {
		t.Errorf("answers were dropped: %v", d)
	}

	// Nobody waits now, so what looks like an answer ends where it did before.
	before = s.status()
	gw, err := s.MAC(netlab.GW, netlab.PublicPort)
	check(t, err)
	own, err := s.MAC(s.Public1.Name, netlab.HostDevice)
	check(t, err)
	reply := echoRequest(7)
	reply[0] = 0
	send := s.rawFrames(s.Public1.Name, netlab.HostDevice)
	for range 10 {
		check(t, send(raw4(gw, own, s.Public1.V4, addr("203.0.113.1"), 1, 64, false, reply, 2)))
	}
	if !until(2*time.Second, func() bool { return drops(before, s.status())["local_unhandled"] == 10 }) {
		t.Errorf("unasked replies: %v", drops(before, s.status()))
	}
}

// Traceroutes by each protocol, IPv4 and IPv6, find both hops and end at the far one.
func TestTracerouteFromTheGateway(t *testing.T) {
	mostlyWaits(t)
	s := farLab(t, 2) // answers come to whichever worker their queue belongs to
	for _, how := range [][]string{{}, {"--icmp"}, {"--tcp", "80"}} {
		for _, to := range [][2]string{{"198.51.100.2", "203.0.113.12"}, {"2001:db8:f::2", "2001:db8:ff::12"}} {
			args := append([]string{"traceroute", to[0], "-m", "6", "-q", "2"}, how...)
			out, err := s.demarc(args...)
			lines := strings.Split(strings.TrimSpace(out), "\n")
			if err != nil || len(lines) != 3 || !strings.HasPrefix(lines[1], " 1  "+to[1]+"  ") || !strings.HasPrefix(lines[2], " 2  "+to[0]+"  ") || strings.Count(lines[1], " ms") != 2 || strings.Count(lines[2], " ms") != 2 {
				t.Errorf("%v: %v\n%s", args, err, out)
			}
		}
	}
	// A port that is open, by TCP: the far end is reached, and no half-open connection is left behind there.
	var l net.Listener
	check(t, s.Do("far", func() (err error) { l, err = net.Listen("tcp", "198.51.100.2:443"); return err }))
	defer l.Close()
	resets := s.capture("far", netlab.HostDevice, 10, func(f []byte) bool {
		return len(f) >= 54 && f[23] == 6 && bytes.Equal(f[36:38], []byte{1, 443 & 255}) && f[47]&4 != 0
	})
	if out, err := s.demarc("traceroute", "198.51.100.2", "--tcp", "443", "-q", "1"); err != nil || !strings.Contains(out, "\n 2  198.51.100.2  ") {
		t.Errorf("to an open port: %v\n%s", err, out)
	}
	if !until(2*time.Second, func() bool { return resets.Seen() > 0 }) {
		t.Error("what answered was left half open")
	}
	// What is unreachable is said, and ends it; too big is said with the MTU; from a tenant's side, and as JSON.
	for _, c := range []struct{ args, says string }{
		{"traceroute 198.51.100.77 -q 1 -w 1s -m 15", ` 203\.0\.113\.12  [\d.]+ ms !H\n$`},
		{"traceroute 2001:db8:f::2 -q 1 -s 1430 -m 5", `\n 1  2001:db8:ff::12  [\d.]+ ms\n 2  2001:db8:ff::12  [\d.]+ ms !F-1400\n$`},
		{"traceroute 198.18.10.12 --tenant beta -q 1 --icmp", `from 198\.18\.10\.1 on beta, 30 hops max, icmp\n 1  198\.18\.10\.12  [\d.]+ ms\n$`},
	} {
		if out, err := s.demarc(strings.Fields(c.args)...); err != nil || !regexp.MustCompile(c.says).MatchString(out) {
			t.Errorf("%s: %v\n%s\nwant %s", c.args, err, out, c.says)
		}
	}
	out, err := s.demarc("traceroute", "198.51.100.2", "-q", "1", "--json")
	check(t, err)
	last := new(api.ProbeEvent)
	lines := strings.Split(strings.TrimSpace(out), "\n")
	check(t, json.Unmarshal([]byte(lines[len(lines)-1]), last))
	if last.Event != "end" || !last.Reached || len(lines) != 4 {
		t.Errorf("as JSON: %s", out)
	}
	if out, err := s.demarc("traceroute", "203.0.113.99", "-q", "1", "-m", "2", "-w", "300ms"); err == nil || !strings.Contains(out, "203.0.113.99 does not answer") {
		t.Errorf("to nobody: %v\n%s", err, out)
	}
}

func errText(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

// linkLocal is the address that a kernel makes of a MAC.
func linkLocal(m net.HardwareAddr) string {
	return netip.AddrFrom16([16]byte{0xfe, 0x80, 8: m[0] ^ 2, 9: m[1], 10: m[2], 11: 0xff, 12: 0xfe, 13: m[3], 14: m[4], 15: m[5]}).String()
}
