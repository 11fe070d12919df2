package bench

import (
	"math"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"demarc/bench/report"
	"demarc/gateway/netlab/roottest"
)

func TestTCPWrongCalls(t *testing.T) {
	for _, args := range [][]string{{"--seconds", "0"}, {"--many", "0"}, {"--streams", "0"}, {"--streams", "200"}, {"--peers", "testpmd"}, {"--peers", "vpp"}, {"--trials", "0"}, {"x"}} {
		wrongCall(t, append([]string{"tcp"}, args...))
	}
}

func TestParseIperf(t *testing.T) {
	good := `{"end":{"streams":[{"receiver":{"bytes":5}},{"receiver":{"bytes":0}}],"sum_sent":{"retransmits":7},"sum_received":{"seconds":1,"bytes":5,"bits_per_second":40}}}`
	if b, err := parseIperf([]byte(good)); err != nil || b != (bulk{Bits: 40, Resent: 7, Streams: 1}) {
		t.Errorf("%+v, %v", b, err)
	}
	for _, bad := range []string{"", "{}", `{"error":"unable to connect"}`, `{"end":{"sum_received":{"bits_per_second":0}}}`} {
		if _, err := parseIperf([]byte(bad)); err == nil {
			t.Errorf("%q: no error", bad)
		}
	}
}

// The whole command, short.
func TestTCP(t *testing.T) {
	r, said, err := asJSON(t, "tcp", "--peers", "nft-expert", "--trials", "1", "--streams", "4", "--rules", "100", "--many", "8", "--budget", "1s", "--no-gro=false")
	if err != nil {
		t.Fatalf("%v\n%s", err, said)
	}
	by := byMetric(t, &r, said, err)
	for _, figure := range []string{"bulk/4-streams/nat44 rate", "exchange/8-at-a-time/nat44 connections", "exchange/8-at-a-time/nat44 p99"} {
		f := by[figure]
		if f.Demarc.N != 1 || f.Demarc.Min <= 0 || f.Peers[sideExpert].N != 1 || f.Peers[sideExpert].Min <= 0 {
			t.Errorf("%s: %+v", figure, f)
		}
	}
	for _, figure := range []string{"bulk/4-streams/nat44/offload rate", "round-trip/udp/nat44/offload p50", "exchange/8-at-a-time/nat44/offload connections"} {
		if f := by[figure]; f.Demarc.N != 1 || f.Demarc.Min <= 0 || f.Peers[sideNever].N != 1 || f.Peers[sideExpert].Min <= 0 {
			t.Errorf("%s: %+v", figure, f)
		}
	}
	// What the ends cost by themselves is beside each side's, without a verdict, and off what the device costs.
	for _, name := range []string{"exchange/8-at-a-time/nat44", "exchange/8-at-a-time/nat44/offload"} {
		all, own := by[name+" cpu-per-connection"], by[name+" device-cpu-per-connection"]
		floor := all.Peers[report.Direct]
		if _, ok := own.Peers[report.Direct]; ok || floor.N != 1 || floor.Min <= 0 || floor.Verdict != "" || own.Demarc.N != 1 || math.Abs(own.Demarc.Median-(all.Demarc.Median-floor.Median)) > 0.02 {
			t.Errorf("%s: %+v of which the device's %+v", name, all, own)
		}
	}
	// A thread that waits does not hear an answer within a microsecond, and the way through a worker takes some.
	if f := by["round-trip/udp/nat44 p50"]; f.Demarc.Min < 1 || f.Demarc.Min > 100_000 {
		t.Errorf("round trips: %+v", f)
	}
	if f := by["exchange/8-at-a-time/nat44 failed"]; f.Demarc.Max != 0 {
		t.Errorf("failed: %+v", f)
	}
	if !strings.Contains(r.Configs[report.Us], "[tenant.nat]") || !strings.Contains(r.Machine.Mode, "copy") {
		t.Errorf("mode %q, configuration:\n%s", r.Machine.Mode, r.Configs[report.Us])
	}
}

// Rows of the same bulk stand beside each other, and each has its own load's figures.
func TestTCPRows(t *testing.T) {
	q := tcpBench{traffic: traffic{Scenario: "tcp", out: &report.Output{}}, Streams: []int{1, 16}, Bare: true, Many: 8}
	load := func(at float64) usage {
		return usage{cpus: map[int]float64{makerCPU: at / 4, makerCPU + 1: 3 * at / 4}}
	}
	q.rows(map[string][]tcpTurn{report.Us: {{Bulk: []bulk{{Bits: 1e9}, {Bits: 2e9}, {Bits: 3e9}}, Uses: []usage{load(0.1), load(0.2), load(0.3), load(0.4), load(0.5)}}}})
	var cases []string
	got := map[string]float64{}
	for _, r := range q.out.Results {
		if cases = append(cases, r.Case); r.Metric == "rate" || r.Metric == "cpu" || r.Metric == "cpu-of-ends" {
			got[r.Case+" "+r.Metric] = r.Demarc.Median
		}
	}
	cases = slices.Compact(cases)
	if want := []string{"bulk/1-streams/nat44", "bulk/1-streams/nat44/no-gro", "bulk/16-streams/nat44", "round-trip/udp/nat44", "exchange/8-at-a-time/nat44"}; !slices.Equal(cases, want) {
		t.Errorf("%q, want %q", cases, want)
	}
	want := map[string]float64{}
	for i, name := range []string{"bulk/1-streams/nat44", "bulk/16-streams/nat44", "bulk/1-streams/nat44/no-gro", "round-trip/udp/nat44", "exchange/8-at-a-time/nat44"} {
		if want[name+" cpu"], want[name+" cpu-of-ends"] = float64(i+1)/10, float64(i+1)/40; i < 3 {
			want[name+" rate"] = float64(i + 1)
		}
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
}

// What a device loses is seen in both figures; one that changes what is carried, or lets nothing through, gets none.
func TestTCPOfFaultyDevices(t *testing.T) {
	roottest.Require(t)
	for _, c := range []struct{ name, rule, want string }{
		{"loses", "ip protocol tcp numgen inc mod 12 3 drop", ""},
		{"resets new ones", "tcp flags syn tcp dport 7000-7100 reject with tcp reset", "none of"},
		{"silent", "ip protocol tcp drop", "iperf3"},
	} {
		q := tcpBench{Seconds: 1, Streams: []int{1}, Many: 4}
		q.traffic = traffic{Scenario: "tcp", Trials: 1, Rules: 1, Seed: 1, Progress: t.Output(), extra: func(r *room) map[string]device {
			return map[string]device{report.Us: &faulty{plain{r: r}, c.rule}}
		}}
		out, err := q.run(t.Context())
		clean(t)
		if (err != nil) != (c.want != "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", c.name, err, c.want)
			continue
		}
		by := byMetric(t, out, "", nil)
		resent, slow := by["bulk/1-streams/nat44 resent"].Demarc, by["exchange/4-at-a-time/nat44 p99"].Demarc
		if c.want != "" && len(out.Results) > 0 {
			t.Errorf("%s: %d figures", c.name, len(out.Results))
		}
		// A lost first packet is sent again after a second.
		if c.want == "" && (resent.Min < 10 || slow.Min < 150) {
			t.Errorf("%s: %v segments sent again, p99 of short connections %v ms", c.name, resent.Min, slow.Min)
		}
	}
}
