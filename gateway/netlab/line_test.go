package netlab

import (
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"demarc/gateway/netlab/host"
	"demarc/gateway/netlab/roottest"
)

// A line has some be late and some be lost, by who sends, to whom and by what protocol, until it is told otherwise; so does a gate, for all.
func TestLineAndGate(t *testing.T) {
	roottest.Require(t)
	l, err := New("lines")
	check(t, err)
	defer l.Close()
	check(t, l.AddSwitch("net"))
	a, b := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.2")
	lines := map[string]*Line{}
	for ns, at := range map[string]netip.Addr{"a": a, "b": b} {
		check(t, l.AddNamespace(ns))
		lines[ns], err = l.PlugByLine("net", End{NS: ns, Name: "mgmt", Addrs: []netip.Prefix{netip.PrefixFrom(at, 24)}})
		check(t, err)
	}
	out, err := l.Gate("neta", "none", Egress)
	if err == nil || out != nil {
		t.Error("a gate on a device that is not there")
	}
	gate, err := l.Gate("a", "mgmt", Egress)
	check(t, err)
	echo, err := l.Serve("b", "udp-echo", "-addr", ":7007")
	check(t, err)
	probe := func() (p host.Probe) {
		t.Helper()
		check(t, l.Run(t.Context(), "a", &p, "udp-probe", "-dst", "192.0.2.2:7007", "-pps", "200", "-duration", "250ms", "-wait", "400ms"))
		return p
	}
	for _, x := range []struct {
		what    string
		to      string // whose line
		fault   LineFault
		gate    float64
		all     bool // comes back, but for what a busy machine loses
		slowest time.Duration
	}{
		{"nothing", "a", LineFault{}, 0, true, 0},
		{"the way there", "b", LineFault{From: a, To: b, Lose: 1}, 0, false, 0},
		{"the way back, of another protocol", "a", LineFault{From: b, To: a, Proto: unix.IPPROTO_TCP, Lose: 1}, 0, true, 0},
		{"the way back", "a", LineFault{From: b, To: a, Proto: unix.IPPROTO_UDP, Lose: 1}, 0, false, 0},
		{"of another sender", "b", LineFault{From: netip.MustParseAddr("192.0.2.3"), To: b, Lose: 1}, 0, true, 0},
		{"late", "b", LineFault{From: a, To: b, Wait: 60 * time.Millisecond}, 0, true, 60 * time.Millisecond},
		{"a gate that is shut", "a", LineFault{}, 1, false, 0},
		{"well again", "a", LineFault{}, 0, true, 0},
	} {
		lines[x.to].Set(x.fault)
		check(t, gate.Lose(x.gate))
		p := probe()
		if x.all && p.Received < p.Sent*9/10 || !x.all && p.Received > 0 || p.Sent < 10 || p.Duplicate > 0 || time.Duration(p.RTT.P50*1e6) < x.slowest {
			t.Errorf("%s: %+v", x.what, p)
		}
		lines[x.to].Set()
	}
	if err := gate.Lose(2); err == nil {
		t.Error("a gate loses twice what comes")
	}
	check(t, echo.Stop(nil))
	check(t, l.Close())
}
