package bench

import (
	"math"
	"slices"
	"testing"
	"time"

	"demarc/bench/pktgen"
	"demarc/bench/report"
	"demarc/gateway/netlab/roottest"
)

func TestVoipWrongCalls(t *testing.T) {
	for _, args := range [][]string{{"--calls", "0"}, {"--calls", "500"}, {"--calls", "32768"}, {"--seconds", "0"}, {"--peers", "vpp"}, {"--trials", "0"}, {"x"}} {
		wrongCall(t, append([]string{"voip"}, args...))
	}
}

// The E-model at points that the recommendations give: 93.2 for all defaults (G.107, table 3), opinions of ratings (annex B), delays' impairment near figure 1 of G.114, and
// 1 % of random loss of G.711 with concealment (95/26.1).
func TestEmodel(t *testing.T) {
	if r := emodel(0, 0); math.Abs(r-93.2) > 0.3 {
		t.Errorf("defaults: R = %.2f, want 93.2", r)
	}
	for r, want := range map[float64]float64{93.2: 4.41, 90: 4.34, 80: 4.03, 70: 3.60, 60: 3.10, 50: 2.58, 0: 1, -5: 1, 120: 4.5} {
		if got := mos(r); math.Abs(got-want) > 0.01 {
			t.Errorf("R %v: MOS %.3f, want %.2f", r, got, want)
		}
	}
	if d := emodel(60*time.Millisecond, 0) - emodel(60*time.Millisecond, 0.01); math.Abs(d-95/26.1) > 1e-6 {
		t.Errorf("1 %% of loss costs %.3f", d)
	}
	last := 100.0
	for _, c := range []struct {
		ms       int
		from, to float64
	}{{0, 92, 94}, {100, 88, 93}, {150, 86, 92}, {250, 76, 84}, {400, 58, 68}, {500, 50, 60}} {
		r := emodel(time.Duration(c.ms)*time.Millisecond, 0)
		if r < c.from || r > c.to || r > last {
			t.Errorf("%d ms: R = %.1f, want %v to %v", c.ms, r, c.from, c.to)
		}
		last = r
	}
}

// A call is as good as its worse direction; what came late is lost, and nothing is a call of 1.
func TestJudgeCalls(t *testing.T) {
	whole := pktgen.Call{Right: 100, Mean: time.Millisecond, Jitter: 10 * time.Microsecond}
	late := whole
	late.Late = 10
	lossy := whole
	lossy.Right = 90
	x := judgeCalls([2][]pktgen.Call{{whole, whole, lossy, {}}, {whole, late, whole, whole}}, 100)
	good, bad := mos(emodel(61*time.Millisecond, 0)), mos(emodel(61*time.Millisecond, 0.1))
	if want := []float64{1, bad, bad, good}; !slices.EqualFunc(x.MOS, want, func(a, b float64) bool { return math.Abs(a-b) < 1e-9 }) {
		t.Errorf("MOS %v, want %v", x.MOS, want)
	}
	if want := (1 + 0.1 + 0.1) / 8; math.Abs(x.Lost-want) > 1e-9 {
		t.Errorf("lost %v, want %v", x.Lost, want)
	}
	if p := below(x.MOS, goodMOS); p != 0.75 {
		t.Errorf("%v of the calls are below %v: %v", p, goodMOS, x.MOS)
	}
	if rank(x.MOS, 0) != 1 || rank(x.MOS, 1) != good || rank(nil, 0.5) != 0 {
		t.Error("ranks")
	}
}

// The whole command, short.
func TestVoip(t *testing.T) {
	r, said, err := asJSON(t, "voip", "--calls", "64", "--peers", "nft-expert", "--trials", "1", "--seconds", "0.5", "--rules", "100", "--budget", "1s")
	if err != nil {
		t.Fatalf("%v\n%s", err, said)
	}
	by := byMetric(t, &r, said, err)
	name := "G.711/64-calls/nat44 "
	for _, m := range []string{"mos-worst-call", "mos-median", "jitter-p99", "delay-p99", "load"} {
		f := by[name+m]
		if f.Demarc.N != 1 || f.Demarc.Min <= 0 || f.Peers[sideExpert].N != 1 || f.Peers[sideExpert].Min <= 0 {
			t.Errorf("%s: %+v", m, f)
		}
	}
	if m := by[name+"mos-median"].Demarc; m.Max > 4.5 || m.Min < 1 || m.Min < by[name+"mos-worst-call"].Demarc.Max {
		t.Errorf("MOS %+v, worst %+v", m, by[name+"mos-worst-call"].Demarc)
	}
}

// Loss of calls only, of bulk only and of one call is told apart.
func TestVoipOfFaultyDevices(t *testing.T) {
	roottest.Require(t)
	// Flow 6 is the call of the inside's seventh address.
	for _, c := range []struct {
		name, rule           string
		worst, median, least float64 // MOS at most, at most, at least
		lost                 [2]float64
	}{
		{"right", "accept", 4.5, 4.5, 1, [2]float64{0, 100}},
		{"loses a tenth of calls", "ip dscp ef numgen inc mod 9 8 drop", 3.9, 3.9, 1, [2]float64{4.5, 100}},
		{"loses one call", "ip saddr 198.18.4.6 ip dscp ef numgen inc mod 2 1 drop", 2.5, 4.5, 1, [2]float64{0.3, 100}},
	} {
		q := voip{Calls: []int{64}, Seconds: 0.4}
		q.traffic = traffic{Scenario: "voip", Trials: 1, Rules: 1, Seed: 1, Progress: t.Output(), extra: func(r *room) map[string]device {
			return map[string]device{report.Us: &faulty{plain{r: r}, c.rule}}
		}}
		out, err := q.run(t.Context())
		clean(t)
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		by := byMetric(t, out, "", nil)
		of := func(m string) float64 { return by["G.711/64-calls/nat44 "+m].Demarc.Median }
		if of("mos-worst-call") > c.worst || of("mos-median") > c.median || of("mos-median") < c.least || of("loss") < c.lost[0] || of("loss") > c.lost[1] {
			t.Errorf("%s: MOS worst %v, median %v, lost %v %%", c.name, of("mos-worst-call"), of("mos-median"), of("loss"))
		}
	}
}
