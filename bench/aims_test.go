package bench

import (
	"path"
	"slices"
	"testing"

	"demarc/bench/report"
)

// Each aim stands on its figure, by the ratio to its peer; a second peer's is a figure of its own; what a run has no peer for is not judged.
func TestAimsAreSet(t *testing.T) {
	o := &report.Output{}
	add := func(scenario, kase, metric string, better report.Better, values map[string]float64) {
		for side, v := range values {
			o.Add(report.Row{Scenario: scenario, Case: kase, Metric: metric, Unit: "x", Better: better, Side: side, Values: []float64{100 * v, 101 * v, 99 * v, 102 * v}})
		}
	}
	add("acl", "64B/16k/nat44/1000-rules", "new-flows", report.Higher, map[string]float64{report.Us: 21, sideExpert: 10, sideLinear: 4})
	add("acl", "64B/16k/nat44/100-rules", "new-flows", report.Higher, map[string]float64{report.Us: 21, sideExpert: 10})
	add("latency", "64B/64k/nat44/load-50", "p99", report.Lower, map[string]float64{report.Us: 33, sideKernel: 10})
	add("throughput", "64B/64k/nat44", "rate", report.Higher, map[string]float64{report.Us: 15, sideExpert: 10})
	add("throughput", "64B/64k/nat44/offload", "rate", report.Higher, map[string]float64{report.Us: 3, sideNever: 1})
	add("throughput", "64B/1M/nat44/offload", "rate", report.Higher, map[string]float64{report.Us: 30, sideFewer: 10})
	o.Judge()
	setAims(o)
	setAims(o) // what stands already stays as it is
	for _, x := range []struct {
		kase, metric, text string
		how                string
	}{
		{"64B/16k/nat44/1000-rules", "new-flows", "ratio to nft-expert at least 2", "held"},
		{"64B/16k/nat44/1000-rules", "new-flows-to-nft-linear", "median at least 10", "MISSED"},
		{"64B/16k/nat44/100-rules", "new-flows", "", ""},
		{"64B/64k/nat44/load-50", "p99", "ratio to kernel at most 3", "MISSED"},
		{"64B/64k/nat44", "rate", "ratio to nft-expert at least 1.5", "unresolved"},
		{"64B/64k/nat44/offload", "rate", "", ""},
		{"64B/1M/nat44/offload", "rate", "ratio to nft-expert-fewer at least 2.5", "held"},
	} {
		var r *report.Result
		for i := range o.Results {
			if o.Results[i].Case == x.kase && o.Results[i].Metric == x.metric {
				r = &o.Results[i]
			}
		}
		switch {
		case r == nil:
			t.Errorf("%s %s is missing", x.kase, x.metric)
		case x.text == "" && r.Limit != nil:
			t.Errorf("%s %s: %s, want no promise", x.kase, x.metric, r.Limit.Text())
		case x.text != "" && (r.Limit == nil || r.Limit.Fared() != "aimed at "+x.text+": "+x.how):
			t.Errorf("%s %s: %+v, want %q: %s", x.kase, x.metric, r.Limit, x.text, x.how)
		}
	}
	if want := []string{"64B/64k/nat44/offload, rate: aimed at is at least 3 times nft-expert's, which was not measured beside it", "64B/64k/nat44/offload, rate: aimed at is at least 1 times kernel's, which was not measured beside it"}; !slices.Equal(o.Notes, want) {
		t.Errorf("notes %q, want %q", o.Notes, want)
	}
	if len(o.Results) != 7 || len(o.Missed()) != 2 {
		t.Errorf("%d figures, missed: %q", len(o.Results), o.Missed())
	}
}

// An aim that no case of a plan has would never be looked at: each names cases as flowCase and the bench of TCP do.
func TestAimsNameCases(t *testing.T) {
	names := []string{"bulk/1-streams/nat44/no-gro/offload", "round-trip/udp/nat44/offload", "exchange/32-at-a-time/nat44/offload", "128-at-a-time/nat44/offload"}
	for _, size := range []string{"64", "1518", imix} {
		for _, flows := range []int{1, 64 << 10, 1 << 20} {
			for _, rules := range []int{0, 1000} {
				c := flowCase{Size: size, Flows: flows, Rules: rules}
				names = append(names, c.name(), c.name()+offloadCase, c.name()+"/load-50", c.name()+"/load-50"+offloadCase)
			}
		}
	}
	for _, a := range aims {
		n := 0
		for _, name := range names {
			if ok, err := path.Match(a.cases, name); err != nil {
				t.Fatalf("%s: %v", a.cases, err)
			} else if ok {
				n++
			}
		}
		if n == 0 {
			t.Errorf("%s %s names no case", a.scenario, a.cases)
		}
	}
}
