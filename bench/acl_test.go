package bench

import (
	"context"
	"strings"
	"testing"

	"demarc/bench/report"
	"demarc/gateway/netlab/roottest"
)

func TestAclWrongCalls(t *testing.T) {
	for _, args := range [][]string{{"--lists", "0"}, {"--lists", "100001"}, {"--lists", "-1"}, {"--flows", "3"}, {"--flows", "1k,2k"}, {"--seconds", "0"}, {"--trials", "0"}, {"x"}} {
		wrongCall(t, append([]string{"acl"}, args...))
	}
}

// The whole command, short: a list that both sides have, one that is too long for nftables, one that no policy has room for.
func TestAcl(t *testing.T) {
	r, said, err := asJSON(t, "acl", "--lists", "10,1001,64000", "--flows", "4096", "--peers", "nft-expert", "--trials", "1", "--seconds", "0.2", "--budget", "1s")
	if err != nil {
		t.Fatalf("%v\n%s", err, said)
	}
	by := byMetric(t, &r, said, err)
	for _, c := range []struct {
		name               string
		served, beside     bool
		compile, mostBytes float64
	}{{"64B/4k/nat44/10-rules", true, true, 0, 64}, {"64B/4k/nat44/1001-rules", true, false, 0, 2048}, {"64B/4k/nat44/64000-rules", false, false, 20, 65536}} {
		rate, begin := by[c.name+" rate"], by[c.name+" new-flows"]
		if (rate.Demarc.Min > 0) != c.served || (begin.Demarc.Min > 0) != c.served || (rate.Peers[sideExpert].N == 1) != c.beside || (begin.Peers[sideExpert].N == 1) != c.beside {
			t.Errorf("%s: rate %+v, new flows %+v", c.name, rate, begin)
		}
		if s := by[c.name+" compile"].Demarc; s.N < 3 || s.Min <= c.compile {
			t.Errorf("%s: compile %+v", c.name, s)
		}
		if s := by[c.name+" lookup"].Demarc; s.N < 3 || s.Min <= 0 {
			t.Errorf("%s: lookup %+v", c.name, s)
		}
		if s := by[c.name+" program"].Demarc; s.Median <= 0 || s.Median > c.mostBytes {
			t.Errorf("%s: program %+v", c.name, s)
		}
	}
	notes := strings.Join(r.Notes, "\n")
	for _, want := range []string{"1001-rules: nft-expert is left out", "64000-rules: only compiler"} {
		if !strings.Contains(notes, want) {
			t.Errorf("no note %q in\n%s", want, notes)
		}
	}
}

// slowStart lets so many new flows through and cuts the rest; what is established is not its business.
type slowStart struct{ faulty }

func (s *slowStart) start(ctx context.Context) error {
	s.rule = "ip protocol udp ct state new limit rate over 30000/second burst 32 packets drop"
	return s.faulty.start(ctx)
}

// A device that begins few flows a second reads as one, and a gateway that does not look at its rules gets no figures.
func TestAclOfFaultyDevices(t *testing.T) {
	roottest.Require(t)
	run := func(extra func(*room) map[string]device) (*report.Output, error) {
		q := aclLists{Lists: []int{20}, Seconds: 0.1}
		q.traffic = traffic{Scenario: "acl", Cases: []flowCase{{Flows: 16384}}, Begin: 200_000, Trials: 1, Rules: 1, Seed: 1, Progress: t.Output(), Binary: binary(t), extra: extra}
		out, err := q.run(t.Context())
		clean(t)
		return out, err
	}
	out, err := run(func(r *room) map[string]device {
		return map[string]device{report.Us: &slowStart{faulty{plain: plain{r: r}}}}
	})
	if err != nil {
		t.Fatal(err)
	}
	by := byMetric(t, out, "", nil)
	if s := by["64B/16k/nat44/20-rules new-flows"].Demarc; s.Min < 0.01 || s.Max > 0.04 {
		t.Errorf("30,000 new flows a second were let through, measured %v million", s.Median)
	}
	if s := by["64B/16k/nat44/20-rules rate"].Demarc; s.Min < 0.05 {
		t.Errorf("established flows were not cut, measured %v Mpps", s.Median)
	}
	_, err = run(func(r *room) map[string]device {
		p := r.plan
		rules, e := makeRules(1, 20, &p)
		if e != nil {
			t.Fatal(e)
		}
		return map[string]device{report.Us: &demarc{r: r, binary: binary(t), rules: rules, pool: p.Pool, rate: trafficRate, table: 65536, breakStage: "acl"}}
	})
	if err == nil || !strings.Contains(err.Error(), "acl") {
		t.Errorf("a gateway that asks no list: %v", err)
	}
}
