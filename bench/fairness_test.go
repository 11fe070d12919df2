package bench

import (
	"math"
	"strings"
	"testing"

	"demarc/bench/pktgen"
	"demarc/bench/report"
	"demarc/configs"
	quietly "demarc/gateway/netlab/quiet" // the package has a quiet of its own
	"demarc/gateway/netlab/roottest"
)

func TestFairnessWrongCalls(t *testing.T) {
	for _, args := range [][]string{{"--tenants", "1"}, {"--tenants", "100"}, {"--tenants", "2048"}, {"--rate", "0.0001"}, {"--seconds", "0"}, {"--flood", "0"}, {"--peers", "vpp"}, {"x"}} {
		wrongCall(t, append([]string{"fairness"}, args...))
	}
}

// What the gateway is given decodes, with a limit of each tenant's own.
func TestFairnessIsServable(t *testing.T) {
	for _, n := range []int{64, 1024} {
		c := flowCase{Size: "512", Flows: n, Tenants: n}
		d := &fairGate{demarc: &demarc{r: &room{plan: c.plan()}, table: 4096, offload: never}, limit: func(i int) uint64 { return 100_000 + uint64(i) }}
		node, policy := d.texts()
		if _, err := configs.DecodeNode("node.toml", []byte(node)); err != nil {
			t.Error(err)
		}
		p, err := configs.DecodePolicy("policy.toml", []byte(policy))
		if err != nil {
			t.Fatal(err)
		}
		if len(p.Tenants) != n || p.Tenants[n-1].Rates.Out.Bits != configs.Rate(100_000+n-1) {
			t.Errorf("%d tenants, %+v", len(p.Tenants), p.Tenants[n-1].Rates)
		}
		if text := d.config(); len(text) > 4000 || !strings.Contains(text, "more like it") {
			t.Errorf("the configuration that is printed has %d bytes", len(text))
		}
	}
}

func TestFairnessFigures(t *testing.T) {
	accounts := []pktgen.Call{{Right: 5000}, {Right: 100}, {Right: 90}, {Right: 100}, {Right: 110}}
	all, worst, without := othersLost(accounts, 100)
	if math.Abs(all-0.025) > 1e-9 || math.Abs(worst-0.1) > 1e-9 || without != 3 {
		t.Errorf("lost %v, worst %v, %d without", all, worst, without)
	}
	// A limit of 50 a second for two seconds; who offers less is held to that.
	if l := deviations(accounts[1:], 200, 50, 2); math.Abs(l[0]+10) > 1e-9 || math.Abs(l[3]-10) > 1e-9 {
		t.Errorf("%v", l)
	}
	if l := deviations(accounts[1:2], 80, 50, 2); math.Abs(l[0]-25) > 1e-9 {
		t.Errorf("%v", l)
	}
}

// The whole command, short.
func TestFairness(t *testing.T) {
	roottest.Require(t)
	quietly.Judge(t, func(l *quietly.Limits) { fairnessRun(t, l) })
}

func fairnessRun(t *testing.T, l *quietly.Limits) {
	r, said, err := asJSON(t, "fairness", "--tenants", "16", "--trials", "1", "--seconds", "0.5", "--rate", "0.008", "--budget", "1s")
	if err != nil {
		t.Fatalf("%v\n%s", err, said)
	}
	by := byMetric(t, &r, said, err)
	name := "512B/16-tenants/routed/"
	if f := by[name+"flood others-loss"]; f.Demarc.N != 1 {
		t.Errorf("%+v", f)
	}
	// The flooder offers 32 limits and gets its own. Of half a second a CPU that is elsewhere may take more than half.
	if got := by[name+"flood flooder-got"]; got.Demarc.Max > 1.5 || got.Demarc.Min < 0.5 {
		l.Missed("flooder: %+v", got)
	}
	if f := by[name+"limits worst"]; f.Demarc.N != 1 {
		t.Errorf("limits: %+v", f)
	} else if f.Demarc.Max > 45 {
		l.Missed("limits: %+v", f)
	}
	if f := by[name+"alone tenants-without-loss"]; f.Demarc.N != 1 {
		t.Errorf("%+v", f)
	}
}

// A gateway whose limits are not what was ordered is found: a flooder without one, a tenant with a fortieth, and the others with twice as much.
func TestFairnessOfWrongLimits(t *testing.T) {
	roottest.Require(t)
	quietly.Judge(t, func(l *quietly.Limits) { wrongLimits(t, l) })
}

func wrongLimits(t *testing.T, l *quietly.Limits) {
	q := fairness{Tenants: []int{16}, Seconds: 0.5, Rate: 8000, Flood: 4}
	q.traffic = traffic{Scenario: "fairness", Trials: 1, Seed: 1, Progress: t.Output(), Binary: binary(t)}
	q.extra = func(r *room) map[string]device {
		return map[string]device{report.Us: q.gate(r, func(i int) uint64 {
			switch bits := q.bits(16); i {
			case 0:
				return 100 * bits
			case 5:
				return bits / 40
			default:
				return 2 * bits
			}
		})}
	}
	out, err := q.run(t.Context())
	clean(t)
	if err != nil {
		t.Fatal(err)
	}
	by := byMetric(t, out, "", nil)
	name := "512B/16-tenants/routed/"
	if v := by[name+"alone worst-tenant-loss"].Demarc.Median; v < 40 {
		t.Errorf("a tenant that may send a twentieth of its frames loses %v %%", v)
	}
	if v := by[name+"flood flooder-got"].Demarc.Median; v < 3 {
		l.Missed("a flood that nothing limits reads as %v limits", v)
	}
	if least, most := by[name+"limits least"].Demarc.Median, by[name+"limits most"].Demarc.Median; least > -40 || most < 12 {
		l.Missed("limits of a fortieth and of twice as much read as %v and %v %%", least, most)
	}
}
