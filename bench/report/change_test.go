package report

import (
	"bytes"
	"strings"
	"testing"
)

// run is results of one machine: a rate of demarc and of a peer, and losses.
func run(commit, began string, rate float64) *Output {
	o := &Output{Schema: Schema, Commit: commit, Began: began, Machine: Machine{Kernel: "6.18", CPU: "EPYC", CPUs: 2, MemoryMiB: 100, Mode: "copy"}}
	five := func(f float64) []float64 { return []float64{f, 1.01 * f, 0.99 * f, 1.02 * f, 0.98 * f} }
	add := func(metric string, better Better, side string, v []float64) {
		o.Add(Row{Scenario: "throughput", Case: "64B", Metric: metric, Unit: "Mpps", Better: better, Side: side, Values: v, Digits: 4})
	}
	add("rate", Higher, Us, five(rate))
	add("rate", Higher, "kernel", five(1))
	add("lost", Lower, Us, []float64{0, 0, 0, 0, 0})
	add("offered", "", Us, five(4))
	o.Judge()
	return o
}

func TestCompareRuns(t *testing.T) {
	a, b := run("a", "2026-01-01T00:00:00Z", 2), run("b", "2026-01-02T00:00:00Z", 1)
	b.Add(Row{Scenario: "acl", Case: "10", Metric: "rate", Better: Higher, Side: Us, Values: []float64{1}})
	a.Add(Row{Scenario: "tcp", Case: "1", Metric: "rate", Better: Higher, Side: Us, Values: []float64{1}})
	verdicts := func(list []Change) string {
		var s []string
		for _, c := range list {
			s = append(s, c.Scenario+" "+c.Metric+" "+c.Side+": "+c.Verdict)
		}
		return strings.Join(s, "\n")
	}
	list := Across{}.Compare(a, b)
	if got, want := verdicts(list), "throughput rate demarc: worse\nthroughput lost demarc: same\ntcp rate demarc: only in A\nacl rate demarc: only in B"; got != want {
		t.Errorf("%s\nwant\n%s", got, want)
	}
	if c := list[0]; c.Ratio == nil || *c.Ratio != 0.5 || len(c.Interval) != 2 || Worse(list) != 1 {
		t.Errorf("%+v", c)
	}
	// The other way round it is better, and the same results are not different.
	if list := (Across{}).Compare(b, a); list[0].Verdict != string(Wins) || Worse(list) != 0 {
		t.Error(verdicts(list))
	}
	if list := (Across{Peers: true, All: true}).Compare(a, a); Worse(list) != 0 || len(list) != 5 || list[1].Side != "kernel" || list[0].Verdict != string(Unresolved) || list[3].Verdict != "" {
		t.Error(verdicts(list))
	}
	var w bytes.Buffer
	if err := PrintChanges(&w, list); err != nil || !strings.Contains(w.String(), "0 better, 1 worse, 1 the same, 0 unresolved, 1 only in A, 1 only in B") || !strings.Contains(w.String(), "0.5 (0.") {
		t.Errorf("%v\n%s", err, &w)
	}
}

// A peer that only got worse is no fault of demarc's.
func TestWorseCountsOnlyDemarc(t *testing.T) {
	if n := Worse([]Change{{Side: "kernel", Verdict: string(Loses)}, {Side: Us, Verdict: string(Unresolved)}, {Side: Us, Verdict: onlyA}}); n != 0 {
		t.Errorf("%d", n)
	}
}

func TestDiffer(t *testing.T) {
	if why := Differ(run("a", "", 1), run("b", "", 2)); why != nil {
		t.Errorf("two runs of one machine differ: %v", why)
	}
	for _, c := range []struct {
		want  string
		spoil func(o *Output)
	}{
		{"kernel: 6.18 and 6.1", func(o *Output) { o.Machine.Kernel = "6.1" }},
		{"CPUs: 2 and 4", func(o *Output) { o.Machine.CPUs = 4 }},
		{"memory: 100 MiB and 1 MiB", func(o *Output) { o.Machine.MemoryMiB = 1 }},
		{"mode: copy and zerocopy", func(o *Output) { o.Machine.Mode = "zerocopy" }},
		{"mode asked: none and generic", func(o *Output) { o.Machine.Asked = "generic" }},
	} {
		o := run("b", "", 2)
		c.spoil(o)
		if why := Differ(run("a", "", 1), o); len(why) != 1 || why[0] != c.want {
			t.Errorf("%q, want %q", why, c.want)
		}
	}
	a, b := run("a", "", 1), run("b", "", 1)
	a.Scenarios, b.Scenarios = []Part{{Name: "quick", Mode: "copy"}, {Name: "tcp", Mode: "copy"}}, []Part{{Name: "tcp", Mode: "generic"}, {Name: "acl"}}
	if why := Differ(a, b); len(why) != 1 || why[0] != "mode in tcp: copy and generic" {
		t.Errorf("%q", why)
	}
}

// Two runs of one machine whose cores were shared in one of them are compared, and it is said.
func TestSpeedsApart(t *testing.T) {
	a, b := run("a", "", 1), run("b", "", 1)
	if s := SpeedsApart(a, b); s != "" {
		t.Errorf("nobody looked: %q", s)
	}
	a.Machine.Speed, b.Machine.Speed = Speed{100, 10}, Speed{50, 15}
	if s := SpeedsApart(a, b); s != "" {
		t.Errorf("10 and 30 in a hundred: %q", s)
	}
	b.Machine.Speed.Slow = 16
	const want = "the machines were not equally fast (A: a CPU below 3/4 of its best speed at 10 % of 100 looks; B: a CPU below 3/4 of its best speed at 32 % of 50 looks): look at ratios and at the peers' rows (--peers)"
	if got := SpeedsApart(a, b); got != want {
		t.Errorf("%q, want %q", got, want)
	}
	a.Machine.Speed, b.Machine.Speed = Speed{9, 9}, Speed{9, 0}
	if s := SpeedsApart(a, b); s != "" {
		t.Errorf("nine looks say something: %q", s)
	}
	a.Machine.Speed, b.Machine.Speed = Speed{10, 0}, Speed{10, 9}
	if SpeedsApart(b, a) == "" {
		t.Error("the other way round it is not said")
	}
	var sum Speed
	sum.take(Speed{10, 1})
	sum.take(Speed{})
	sum.take(Speed{21, 2})
	if sum != (Speed{31, 3}) {
		t.Errorf("parts together: %+v", sum)
	}
}

func TestHistoryIsInOrderOfTime(t *testing.T) {
	elsewhere := run("other", "2026-01-04T00:00:00Z", 9)
	elsewhere.Machine.CPU = "Xeon"
	list := []Named{{"c", run("third", "2026-01-03T00:00:00Z", 3)}, {"a", run("first", "2026-01-01T00:00:00Z", 2)}, {"b", run("second", "2026-01-02T00:00:00Z", 2.001)}}
	h := History(list, "")
	if len(h) != 2 || h[0].Metric != "rate" || h[0].Moments[0].Commit != "first" || h[0].Moments[2].Commit != "third" || h[0].Last != Wins || h[0].Moments[2].Ratios["kernel"] != 3 {
		t.Errorf("%+v", h)
	}
	if h := History(list[1:], "rate"); len(h) != 1 || h[0].Last != Unresolved {
		t.Errorf("%+v", h)
	}
	if h := History(append(list, Named{"d", elsewhere}), "rate"); h[0].Last != "" || len(h[0].Moments) != 4 {
		t.Errorf("another machine's run has a verdict: %+v", h[0].Last)
	}
	var w bytes.Buffer
	if err := PrintHistory(&w, h); err != nil || strings.Index(w.String(), "first") > strings.Index(w.String(), "third") || !strings.Contains(w.String(), "×3 of kernel") || !strings.Contains(w.String(), "better") {
		t.Errorf("%v\n%s", err, &w)
	}
}
