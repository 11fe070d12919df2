package e2e

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"demarc/gateway/netlab"
	"demarc/gateway/netlab/host"
	"demarc/gateway/xsk"
)

// On a device whose driver has no native XDP the gateway runs in generic mode, by itself or when asked, and says so with its price in the log,
// in status and in doctor; a better mode that is asked for and cannot be had is refused. A restart takes over.
func TestGenericWithoutNativeXDP(t *testing.T) {
	mostlyWaits(t)
	s := bare(t)
	for _, l := range []struct{ dev, ns, far string }{{"bb", "public1", "203.0.113.11/24"}, {"in", "one", "198.18.0.11/24"}} {
		check(t, s.AddNamespace(l.ns))
		check(t, s.AddLink(netlab.LinkSpec{A: netlab.End{NS: netlab.GW, Name: l.dev}, B: netlab.End{NS: l.ns, Name: netlab.HostDevice, Addrs: []netip.Prefix{prefix(l.far)}}}))
		// A macvlan is a device of a container's sort: it has no native XDP.
		_, err := s.Exec(netlab.GW, "ip", "link", "add", l.dev+"0", "link", l.dev, "type", "macvlan", "mode", "bridge")
		check(t, err)
		check(t, s.OffloadsOff(netlab.GW, l.dev+"0"))
		check(t, s.SetUp(netlab.GW, l.dev+"0", true))
	}
	check(t, s.AddRoute("one", prefix("0.0.0.0/0"), addr("198.18.0.1")))
	check(t, s.AddRoute("public1", prefix("192.0.2.0/24"), addr("203.0.113.1")))
	node := `schema = 1
name = "generic"
data_dir = "x"
[tables]
sessions = 4096
frames = 4096
[api]
socket = "x"
[[port]]
device = "bb0"
mode = "auto"
[[port]]
device = "in0"
mode = "generic"
[[interface]]
name = "backbone"
port = "bb0"
addresses = ["203.0.113.1/24"]
[[interface]]
name = "one"
port = "in0"
addresses = ["198.18.0.1/24"]
`
	policy := `schema = 1
[backbone]
interfaces = ["backbone"]
[[tenant]]
name = "one"
interfaces = ["one"]
prefixes = ["198.18.0.0/24"]
[tenant.nat]
pool = ["192.0.2.1"]
`
	s.write(node, policy)
	s.serve("public1", "http-serve", "-addr", "203.0.113.11:80")
	works := func(when string) {
		t.Helper()
		var g host.Ping
		s.run("one", &g, "ping", "-dst", "203.0.113.11", "-count", "3", "-interval", "20ms")
		out, err := s.Exec("one", "curl", "-sS", "-m", "10", "-o", "/dev/null", "-w", "%{http_code} %{size_download}", "http://203.0.113.11/file?seed=3&size=1000000")
		if g.Received != 3 || string(out) != "200 1000000" {
			t.Errorf("%s: %d of 3 pings; curl: %q, %v", when, g.Received, out, err)
		}
	}
	for _, when := range []string{"first start", "restart"} {
		s.start()
		works(when)
		for _, p := range s.status().Ports {
			why := map[string]string{"bb0": "no native XDP", "in0": ""}[p.Name]
			if q := p.Queues[0]; p.Attach != "generic" || q.Mode != "generic" || !strings.Contains(q.WhyNotBetter, why) || len(p.Warnings) != 1 || !strings.Contains(p.Warnings[0], "generic mode") {
				t.Errorf("%s: port %s: attached %s, mode %s, why %q, warnings %q", when, p.Name, p.Attach, q.Mode, q.WhyNotBetter, p.Warnings)
			}
		}
		if log := read(t, s.gw.log); strings.Count(log, "generic mode") != 2 || strings.Count(log, xsk.GenericCost) != 2 {
			t.Errorf("%s: the log does not say what generic mode costs:\n%s", when, log)
		}
		s.stop()
	}
	var out string
	out, err := s.demarc("doctor", "--node", s.node)
	if !strings.Contains(out, "mode auto gives generic") || strings.Count(out, xsk.GenericCost) != 2 {
		t.Errorf("doctor does not say what generic mode costs: %v\n%s", err, out)
	}
	for _, mode := range []string{"copy", "zerocopy"} {
		for _, dev := range []string{"bb0", "in0"} {
			s.demarc("release", dev)
		}
		s.write(replace(t, node, `mode = "auto"`, `mode = "`+mode+`"`), policy)
		p := s.launch(nil)
		if !until(10*time.Second, p.done) || p.err == nil || !strings.Contains(p.lastLines(3), "no native XDP") || !strings.Contains(p.lastLines(3), `mode = "generic" works`) {
			t.Errorf("mode %s: %v\n%s", mode, p.err, p.lastLines(5))
		}
	}
}
