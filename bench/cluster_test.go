package bench

import (
	"context"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"demarc/bench/report"
	"demarc/configs"
	"demarc/gateway/netlab"
	"demarc/gateway/netlab/host"
	quietly "demarc/gateway/netlab/quiet" // the package has a quiet of its own
	"demarc/gateway/netlab/roottest"
)

// A hundred lines differ between two versions, whatever the policy's size, and the gateways' node file has a place for every tenant.
func TestClusterTexts(t *testing.T) {
	for _, x := range []texts{{seed: 1, tenants: 1, rules: 100}, {seed: 7, tenants: 1000, rules: 10000}, {seed: 3, tenants: 7, rules: 250}} {
		a, b := x.text(1), x.text(2)
		lines, other := strings.Split(a, "\n"), strings.Split(b, "\n")
		differ := 0
		for i := range lines {
			if len(lines) != len(other) || lines[i] != other[i] {
				differ++
			}
		}
		p, err := configs.DecodePolicy("p", []byte(a))
		if err != nil {
			t.Fatal(err)
		}
		rules := 0
		for i := range p.Tenants {
			rules += len(p.Tenants[i].Rules)
		}
		q, err := configs.DecodePolicy("p", []byte(b))
		if err != nil {
			t.Fatal(err)
		}
		if differ != changedLines || rules != x.rules || len(p.Tenants) != x.tenants || len(configs.Diff(p, q)) != changedLines {
			t.Errorf("%+v: %d lines differ, %d rules, %d tenants, %d changes", x, differ, rules, len(p.Tenants), len(configs.Diff(p, q)))
		}
		n, err := configs.DecodeNode("n", []byte("schema = 1\nname = \"gw1\"\n[[port]]\ndevice = \"in0\"\n[[port]]\ndevice = \"wan0\"\n[[interface]]\nname = \"in\"\nport = \"in0\"\naddresses = [\"198.18.1.1/24\"]\n"+
			"[[interface]]\nname = \"wan\"\nport = \"wan0\"\naddresses = [\"203.0.113.1/24\"]\n"+x.node()))
		if err != nil {
			t.Fatal(err)
		}
		if err := configs.CheckTogether(p, n); err != nil {
			t.Error(err)
		}
	}
}

// A line delays what goes over it, both ways, and keeps it in order.
func TestLine(t *testing.T) {
	roottest.Require(t)
	quietly.Judge(t, func(limits *quietly.Limits) { line(t, limits) })
}

func line(t *testing.T, limits *quietly.Limits) {
	l, err := netlab.New("line")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	const oneWay = 40 * time.Millisecond
	// Both go by a line: what has none is taken by whichever CPU sends it, and where one of them has more in hand than it may finish at once the next packet, sent on the other, overtakes it.
	f := &far{wait: map[string]time.Duration{"a": oneWay, "b": 0}}
	if err := l.AddSwitch("net"); err != nil {
		t.Fatal(err)
	}
	for i, ns := range []string{"a", "b"} {
		if err := l.AddNamespace(ns); err != nil {
			t.Fatal(err)
		}
		if err := f.wire(l, netlab.End{NS: ns, Name: "mgmt", Addrs: []netip.Prefix{netip.MustParsePrefix(fmt.Sprintf("192.0.2.%d/24", i+1))}}); err != nil {
			t.Fatal(err)
		}
	}
	echo, err := l.Serve("b", "udp-echo", "-addr", ":7007")
	if err != nil {
		t.Fatal(err)
	}
	var p host.Probe
	if err := l.Run(t.Context(), "a", &p, "udp-probe", "-dst", "192.0.2.2:7007", "-pps", "500", "-duration", "1s", "-wait", "2s"); err != nil {
		t.Fatal(err)
	}
	if err := echo.Stop(nil); err != nil {
		t.Fatal(err)
	}
	lost, moved, _ := f.lost()
	if p.Received != p.Sent || p.Duplicate > 0 || lost != 0 || moved < 4*p.Sent {
		t.Errorf("%+v; the line lost %d and moved %d", p, lost, moved)
	} else if p.Reordered > 0 { // a CPU that is elsewhere keeps what the line has written to it, and what is written on the other overtakes that
		limits.Missed("%+v", p)
	}
	if least := 2 * oneWay.Seconds() * 1e3; p.RTT.P50 < least || p.RTT.P50 > 2*least {
		t.Errorf("half of the answers took at most %.1f ms over two times %s", p.RTT.P50, oneWay)
	}
	if err := l.Close(); err != nil {
		t.Error(err)
	}
}

// clusterRun is the command itself. Figures that miss their limits are an error of it, on a machine that is busy with other tests.
func clusterRun(t *testing.T, args ...string) (by map[string]report.Result, r report.Output, err error) {
	t.Helper()
	r, said, err := asJSON(t, append([]string{"cluster", "--budget", "1ms"}, args...)...)
	return byMetric(t, &r, said, err), r, err
}

// A short form of all that is measured near, with real processes: every row is there, its figures can be true, and no packet is lost.
func TestClusterFigures(t *testing.T) {
	by, r, err := clusterRun(t, "--rows", "commit,death,large,applies", "--commits", "9", "--deaths", "1", "--large", "2", "--applies", "2", "--rules", "400", "--tenants", "4")
	if err != nil && !strings.Contains(err.Error(), "not as promised") {
		t.Fatal(err)
	}
	if r.Machine.Kernel == "" || !strings.Contains(r.Machine.Mode, "gw1 copy") || r.Machine.Seed != 1 || r.Machine.Seconds == 0 {
		t.Errorf("machine: %+v", r.Machine)
	}
	for _, c := range []struct {
		name        string
		n           int
		least, most float64
		limit       bool
	}{
		{"commit/100-lines/near commit", 9, 5, 5000, true},
		{"commit/100-lines/near commit-asked-witness", 3, 5, 5000, false},
		{"death/witness-leads change-served", 1, 50, 10000, true}, // a leader is missed after 70 ms of silence, which may have begun a little before its death
		{"death/witness-leads lost", 1, 0, 0, true},
		{"death/gateway-leads change-served", 1, 50, 10000, true},
		{"death/gateway-leads lost", 1, 0, 0, true},
		{"apply/400-rules/4-tenants apply", 2, 0.01, 10, true},
		{"apply/400-rules/4-tenants lost", 1, 0, 0, true},
		{"applies/400-rules witness-resident-end", 1, 5, 40, true},
		{"applies/400-rules witness-resident-restarted", 1, 5, 40, true},
		{"applies/400-rules directories-end", 3, 0.01, 64, true},
		{"applies/400-rules directories-restarted", 3, 0.01, 64, true},
	} {
		f, ok := by[c.name]
		if s := f.Demarc; !ok || s.N != c.n || s.Min < c.least || s.Max > c.most || (f.Limit != nil) != c.limit {
			t.Errorf("%s: %+v %+v, want %d figures from %v to %v, a limit: %v", c.name, s, f.Limit, c.n, c.least, c.most, c.limit)
		}
	}
	for _, name := range []string{"death/witness-leads sent", "apply/400-rules/4-tenants sent"} {
		if by[name].Demarc.Min < 500 {
			t.Errorf("%s: only %v packets", name, by[name].Demarc.Min)
		}
	}
}

// A witness behind a line that takes 40 ms one way is seen in the figures, and the command fails.
func TestClusterFiguresSeeASlowLine(t *testing.T) {
	by, _, err := clusterRun(t, "--rows", "commit", "--commits", "6", "--near", "40ms")
	f := by["commit/100-lines/near commit"]
	if f.Demarc.Min < 80 || f.Limit == nil || f.Limit.Held {
		t.Errorf("%+v %+v", f.Demarc, f.Limit)
	}
	if err == nil || !strings.Contains(err.Error(), "not as promised:\n  commit/100-lines/near, commit: ") {
		t.Errorf("the command says: %v", err)
	}
}

func TestClusterRefusesWrongOptions(t *testing.T) {
	for _, args := range [][]string{{"--rows", "else"}, {"--commits", "0"}, {"--tenants", "1001"}, {"--rules", "99"}, {"--round-trip", "1m"}} {
		c := Command("")
		c.SetArgs(append([]string{"cluster"}, args...))
		c.SilenceUsage, c.SilenceErrors = true, true
		var u interface{ Usage() }
		if err := c.ExecuteContext(context.Background()); err == nil {
			t.Errorf("%v: no error", args)
		} else if u, _ = err.(interface{ Usage() }); u == nil {
			t.Errorf("%v: %v is no wrong usage", args, err)
		}
	}
}
