package bench

import (
	"strings"
	"testing"

	"demarc/bench/pktgen"
	"demarc/bench/report"
	"demarc/gateway/netlab/roottest"
)

func TestConnectionsWrongCalls(t *testing.T) {
	for _, args := range [][]string{{"--flows", "1"}, {"--flows", "1M"}, {"--flows", "3000"}, {"--at-once", "0"}, {"--at-once", "257"}, {"--peers", "testpmd"}, {"--peers", "vpp"}, {"--trials", "0"}, {"--offload", "auto"}, {"x"}} {
		wrongCall(t, append([]string{"connections"}, args...))
	}
}

// The whole command, short.
func TestConnections(t *testing.T) {
	r, said, err := asJSON(t, "connections", "--peers", "nft-expert", "--trials", "1", "--rules", "100", "--flows", "4096", "--at-once", "8,64", "--budget", "1s")
	if err != nil {
		t.Fatalf("%v\n%s", err, said)
	}
	by := byMetric(t, &r, said, err)
	for _, name := range []string{"8-at-a-time/nat44", "64-at-a-time/nat44", "8-at-a-time/nat44/offload", "64-at-a-time/nat44/offload"} {
		rate, p50, lost, cpu := by[name+" rate"], by[name+" p50"], by[name+" lost"], by[name+" cpu-per-connection"]
		if rate.Demarc.N != 1 || rate.Demarc.Min <= 0 || rate.Peers[sideExpert].N != 1 || rate.Peers[sideExpert].Min <= 0 {
			t.Errorf("%s: %+v", name, rate)
		}
		// Nobody bounds but the side: what the ends do by themselves is more.
		if rate.Peers[report.Direct].Min <= rate.Demarc.Max {
			t.Errorf("%s: %v connections/s through the gateway, and %v with nothing between the ends", name, rate.Demarc, rate.Peers[report.Direct])
		}
		if strings.HasSuffix(name, offloadCase) != (rate.Peers[sideNever].N == 1) {
			t.Errorf("%s: %+v", name, rate.Peers)
		}
		if lost.Demarc.Max > 4 || p50.Demarc.Min < 1 || cpu.Demarc.Min <= 0 || cpu.Demarc.Max > 1000 {
			t.Errorf("%s: lost %v, p50 %v µs, CPU %v µs", name, lost.Demarc, p50.Demarc, cpu.Demarc)
		}
	}
	if !strings.Contains(r.Configs[report.Us], "[tenant.nat]") || !strings.Contains(r.Machine.Mode, "copy") {
		t.Errorf("mode %q, configuration:\n%s", r.Machine.Mode, r.Configs[report.Us])
	}
}

// What a device loses is no connection, and one that changes frames, sends them twice or lets none through gets no figures.
func TestConnectionsOfFaultyDevices(t *testing.T) {
	roottest.Require(t)
	for _, c := range []struct{ name, rule, want string }{
		{"loses", "tcp flags syn tcp dport 5004 numgen inc mod 50 7 drop", ""},
		{"silent", "ip protocol tcp drop", "none of"},
		{"no FIN", "tcp flags fin drop", "none of"},
		{"changes the TTL", "ip protocol tcp numgen inc mod 20 7 ip ttl set 9", pktgen.WrongTTL.String()},
		{"changes numbers", "tcp flags & (fin | syn | ack) == ack numgen inc mod 20 7 tcp ackseq set 99", pktgen.NotSent.String()},
		{"twice", "ip protocol tcp numgen inc mod 20 7 dup to " + outsideVia.String() + " device \"" + devOut + "\"", pktgen.Duplicate.String()},
	} {
		q := connections{Each: 1024, AtOnce: []int{64}}
		q.traffic = traffic{Scenario: "connections", Trials: 1, Rules: 1, Seed: 1, Progress: t.Output(), extra: func(r *room) map[string]device {
			return map[string]device{report.Us: &faulty{plain{r: r}, c.rule}}
		}}
		out, err := q.run(t.Context())
		clean(t)
		if (err != nil) != (c.want != "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", c.name, err, c.want)
			continue
		}
		if c.want != "" {
			if len(out.Results) > 0 {
				t.Errorf("%s: %d figures", c.name, len(out.Results))
			}
			continue
		}
		// Each fiftieth SYN: what is begun while others have been lost waits for nothing.
		if lost := byMetric(t, out, "", nil)["64-at-a-time/nat44 lost"].Demarc; lost.Min != 21 && lost.Min != 20 {
			t.Errorf("%s: %v", c.name, lost)
		}
	}
}
