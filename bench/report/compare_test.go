package report

import (
	"math"
	"math/rand/v2"
	"testing"
)

// The ranks are those of printed tables of the Mann-Whitney test, two-sided at 5 %: critical U and one more.
func TestCutOffIsThatOfTheTables(t *testing.T) {
	for _, c := range []struct{ n, m, critical int }{
		{3, 5, 0}, {4, 4, 0}, {5, 5, 2}, {5, 8, 6}, {8, 8, 13}, {10, 10, 23}, {20, 20, 127}, {12, 17, 57}, {3, 4, -1}, {3, 3, -1}, {1, 20, -1}, {2, 8, 0},
	} {
		if got := cutOff(c.n, c.m); got != c.critical+1 {
			t.Errorf("%d and %d runs: rank %d, want %d", c.n, c.m, got, c.critical+1)
		}
	}
	// Where the exact distribution ends the other goes on.
	if a, b := cutOff(20, 20), cutOff(20, 21); b < a || b > a+10 {
		t.Errorf("rank %d at 20, %d at 21", a, b)
	}
}

func TestCompare(t *testing.T) {
	five := func(f float64) []float64 { return []float64{0.98 * f, 1.02 * f, f, 1.01 * f, 0.97 * f} }
	for _, c := range []struct {
		name   string
		a, b   []float64
		better Better
		want   Verdict
		ratio  float64 // 0 = none
	}{
		{"twice as fast", five(2), five(1), Higher, Wins, 2},
		{"twice as slow", five(1), five(2), Higher, Loses, 0.5},
		{"half the latency", five(1), five(2), Lower, Wins, 0.5},
		{"twice the latency", five(2), five(1), Lower, Loses, 2},
		{"no direction", five(2), five(1), "", "", 2},
		{"inside the spread", []float64{1, 1.4, 1.2, 0.9, 1.5}, []float64{1.1, 1.3, 1, 1.2, 0.8}, Higher, Unresolved, 1.2 / 1.1},
		{"too few runs", []float64{9, 9, 9}, []float64{1, 1, 1}, Higher, Unresolved, 9},
		{"nothing lost by either", []float64{0, 0, 0}, []float64{0, 0}, Lower, Same, 0},
		{"nothing lost beside much", []float64{0, 0, 0, 0, 0}, []float64{3, 7, 1, 9, 4}, Lower, Wins, 0},
		{"much lost beside nothing", []float64{3, 7, 1, 9, 4}, []float64{0, 0, 0, 0, 0}, Lower, Loses, 0},
		{"one side only", []float64{1, 1, 1, 1}, nil, Lower, Unresolved, 0},
	} {
		got := Compare(Of(c.a), Of(c.b), c.better)
		if got.Verdict != c.want {
			t.Errorf("%s: %s, want %s", c.name, got.Verdict, c.want)
		}
		if c.ratio == 0 && got.Ratio != nil && *got.Ratio != 0 || c.ratio != 0 && (got.Ratio == nil || math.Abs(*got.Ratio-c.ratio) > 1e-9) {
			t.Errorf("%s: ratio %v, want %v", c.name, got.Ratio, c.ratio)
		}
		if got.Interval != nil && (got.Interval[0] > *got.Ratio || got.Interval[1] < *got.Ratio) {
			t.Errorf("%s: %v is not around %v", c.name, got.Interval, *got.Ratio)
		}
	}
}

// Of two sides that are truly alike some 5 in a hundred are called different, and not many more; the true ratio of two that differ is inside
// the interval about 95 times in a hundred.
func TestCompareKeepsItsConfidence(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	draw := func(n int, f float64) Stat {
		v := make([]float64, n)
		for i := range v {
			v[i] = f * math.Exp(0.3*rnd.NormFloat64())
		}
		return Of(v)
	}
	for _, c := range []struct {
		n     int
		least float64 // in which part of the cases the interval must hold the truth; small samples are more careful
	}{{5, 0.95}, {10, 0.94}, {25, 0.93}} {
		const runs = 400
		inside, alarms := 0, 0
		for range runs {
			x := Compare(draw(c.n, 1.5), draw(c.n, 1), Higher)
			if x.Interval[0] <= 1.5 && 1.5 <= x.Interval[1] {
				inside++
			}
			if v := Compare(draw(c.n, 1), draw(c.n, 1), Higher).Verdict; v != Unresolved {
				alarms++
			}
		}
		if got := float64(inside) / runs; got < c.least || got > 0.99 {
			t.Errorf("n %d: the truth is inside in %.3f of the cases", c.n, got)
		}
		if got := float64(alarms) / runs; got > 0.07 {
			t.Errorf("n %d: %.3f of equal pairs are called different", c.n, got)
		}
	}
}

func TestRound3(t *testing.T) {
	for in, want := range map[float64]float64{1.23456: 1.235, 123.4567: 123.457, 0.0123456: 0.0123, 0: 0, -0.00012345: -0.000123} {
		if got := round3(in); math.Abs(got-want) > 1e-12 {
			t.Errorf("%v became %v, want %v", in, got, want)
		}
	}
}

func TestAddPutsSidesBesideEachOther(t *testing.T) {
	var o Output
	row := Row{Scenario: "s", Case: "c", Metric: "m", Unit: "Mpps", Better: Higher, Digits: 2}
	add := func(side string, disturbed int, v ...float64) *Result {
		r := row
		r.Side, r.Values, r.Disturbed = side, v, disturbed
		return o.Add(r)
	}
	add("kernel", 0, 1, 1.1, 1.2, 1.05, 1.15)
	r := add(Us, 2, 2.004, 2.1, 2.2, 2.05, 2.15)
	if r.AimRatio("kernel", 1.95); r.Limit.Held || r.Limit.Text() != "ratio to kernel at least 1.95" {
		t.Errorf("2.1 over 1.1 is %+v", r.Limit)
	}
	if r.AimRatio("kernel", 1.5); !r.Limit.Held {
		t.Errorf("2.1 over 1.1 is %+v", r.Limit)
	}
	if r.AimRatio("nft-expert", 1.5); r.Limit.Held {
		t.Error("a ratio to a peer that was not measured is held")
	}
	row.Metric = "other"
	add("kernel", 0, 3)
	o.Judge()
	if len(o.Results) != 2 {
		t.Fatalf("%d results", len(o.Results))
	}
	k := o.Results[0].Peers["kernel"]
	if k.Verdict != Wins || k.Ratio == nil || *k.Ratio != 1.909 || len(k.Interval) != 2 || o.Results[0].Demarc.Disturbed != 2 || o.Results[0].Demarc.Values[0] != 2 {
		t.Errorf("%+v", o.Results[0])
	}
	if p := o.Results[1].Peers["kernel"]; p.Verdict != "" || p.Ratio != nil {
		t.Errorf("a verdict on what demarc was not measured for: %+v", p)
	}
	if n := o.Wins(); n[Wins] != 1 || len(n) != 1 {
		t.Errorf("verdicts %v", n)
	}
	if got := k.Text(); got != "1.91 (1.74–2.10) better" {
		t.Error(got)
	}
}

// What is below nothing is not so many times of anything; which of the two is less is told all the same.
func TestBelowNothingHasNoRatio(t *testing.T) {
	a, b := Of([]float64{-30, -20, -25, -28, -22}), Of([]float64{10, 12, 14, 11, 13})
	for _, c := range []struct{ a, b Stat }{{a, b}, {b, a}} {
		if got := Compare(c.a, c.b, Lower); got.Ratio != nil || got.Interval != nil {
			t.Errorf("%+v", got)
		}
	}
	if got := Compare(a, b, Lower).Verdict; got != Wins {
		t.Error(got)
	}
}

// The ends without a device are beside every side, as a ratio, and are nobody's rival.
func TestDirectIsNoRival(t *testing.T) {
	var o Output
	for side, v := range map[string]float64{Us: 100, Direct: 50, "kernel": 200} {
		o.Add(Row{Scenario: "tcp", Case: "c", Metric: "cpu", Better: Lower, Side: side, Values: []float64{v, v + 1, v + 2, v + 3, v + 4}})
	}
	o.Judge()
	p := o.Results[0].Peers
	if d := p[Direct]; d.Verdict != "" || d.Ratio == nil || *d.Ratio < 1.9 || p["kernel"].Verdict != Wins {
		t.Errorf("%+v", p)
	}
	if n := o.Wins(); n[Wins] != 1 || n[Loses] != 0 {
		t.Errorf("%v", n)
	}
}
