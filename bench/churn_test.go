package bench

import (
	"cmp"
	"context"
	"errors"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"demarc/acl"
	"demarc/bench/peers"
	"demarc/bench/report"
	quietly "demarc/gateway/netlab/quiet" // the package has a quiet of its own
	"demarc/gateway/netlab/roottest"
)

func TestChurnWrongCalls(t *testing.T) {
	for _, args := range [][]string{{"--seconds", "0"}, {"--every", "1ms"}, {"--seconds", "1", "--every", "2s"}, {"--rate", "0"}, {"--peers", "kernel"}, {"--flows", "3"}, {"x"}} {
		wrongCall(t, append([]string{"churn"}, args...))
	}
}

// Every version is another list, of which still only the last rule is about what the bench sends.
func TestChangedLists(t *testing.T) {
	p := plan(4096)
	rules, err := makeRules(1, 50, &p)
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{}
	for v := range 3 {
		list := changed(rules, v)
		text, err := policy(list, []netip.Prefix{insideNet, insideLink}, pool, benchRate, outsideVia, insideVia, outsideNet)
		if err == nil {
			_, err = peers.Ruleset(peers.Config{Form: peers.Maps, Rules: list, In: "a", Out: "b", Inside: insideNet, Pool: pool, RateBits: benchRate})
		}
		if err != nil || seen[text] {
			t.Errorf("version %d is as one before, or %v", v, err)
		}
		seen[text] = true
		prog, err := acl.Compile(list)
		if err != nil {
			t.Fatal(err)
		}
		for _, k := range planKeys(&p, 17) {
			if m := prog.Lookup(&k); m.Index != 49 {
				t.Fatalf("rule %d decides", m.Index)
			}
		}
	}
}

// The whole command, short.
func TestChurn(t *testing.T) {
	r, said, err := asJSON(t, "churn", "--flows", "1024", "--peers", "nft-expert", "--trials", "1", "--seconds", "1", "--every", "300ms", "--rules", "100", "--rate", "0.02", "--budget", "1s")
	if err != nil {
		t.Fatalf("%v\n%s", err, said)
	}
	by := byMetric(t, &r, said, err)
	if a := by["64B/1k/nat44/changed apply"]; a.Demarc.N < 2 || a.Demarc.Min <= 0 || a.Peers[sideExpert].N < 2 {
		t.Errorf("apply: %+v", a)
	}
	for _, load := range []string{"still", "changed"} {
		for _, m := range []string{"p99", "worst", "sent"} {
			if f := by["64B/1k/nat44/"+load+" "+m]; f.Demarc.N != 1 || f.Demarc.Min <= 0 || f.Peers[sideExpert].Min <= 0 {
				t.Errorf("%s %s: %+v", load, m, f)
			}
		}
		if f := by["64B/1k/nat44/"+load+" lost"]; f.Demarc.N != 1 {
			t.Errorf("%s: %+v", load, f)
		}
	}
}

// pausing stops forwarding for a while at each change.
type pausing struct {
	faulty
	pause time.Duration
	every time.Duration // between changes; 0 = 200 ms
	fail  error
}

func (p *pausing) prepare(int) (func(context.Context) error, error) {
	return func(context.Context) error {
		if p.fail != nil {
			return p.fail
		}
		err := p.r.forwarding(false)
		time.Sleep(p.pause)
		return errors.Join(err, p.r.forwarding(true))
	}, nil
}

// A device that stands still at each change is seen to lose what came meanwhile, and only then; a change that fails ends the run.
func TestChurnOfFaultyDevices(t *testing.T) {
	roottest.Require(t)
	run := func(p *pausing) (*report.Output, error) {
		q := churn{Seconds: 0.6, Every: cmp.Or(p.every, 200*time.Millisecond), Rate: 20_000}
		q.traffic = traffic{Scenario: "churn", Cases: []flowCase{{Size: "64", Flows: 64}}, Trials: 1, Rules: 1, Seed: 1, Progress: t.Output(), extra: func(r *room) map[string]device {
			p.plain = plain{r: r}
			return map[string]device{report.Us: p}
		}}
		out, err := q.run(t.Context())
		clean(t)
		return out, err
	}
	// A CPU that is elsewhere for a tenth of a second loses as much as two changes.
	quietly.Judge(t, func(l *quietly.Limits) {
		out, err := run(&pausing{faulty: faulty{rule: "accept"}, pause: 50 * time.Millisecond})
		if err != nil {
			t.Fatal(err)
		}
		by := byMetric(t, out, "", nil)
		n := float64(by["64B/64/nat44/changed apply"].Demarc.N)
		sent, lost := by["64B/64/nat44/changed sent"].Demarc.Median, by["64B/64/nat44/changed lost"].Demarc.Median
		// 50 ms each, at the pace that was really kept.
		if want := n * 0.05 * sent / 0.6; lost < want/2 {
			l.Missed("%v of %v frames were lost at %v changes, want some %.0f", lost, sent, n, want)
		}
		if still := by["64B/64/nat44/still lost"].Demarc.Median; still > lost/2 {
			l.Missed("%v were lost while nothing changed, %v at changes", still, lost)
		}
	})
	if out, err := run(&pausing{faulty: faulty{rule: "accept"}, pause: time.Second, every: 500 * time.Millisecond}); err != nil || !slices.ContainsFunc(out.Notes, func(n string) bool { return strings.HasPrefix(n, "1 changes ended behind their load") }) {
		t.Errorf("a change that ends behind the load: %v, notes %q", err, out.Notes)
	}
	if _, err := run(&pausing{faulty: faulty{rule: "accept"}, fail: errors.New("refused on purpose")}); err == nil || !strings.Contains(err.Error(), "refused on purpose") {
		t.Errorf("a change that fails: %v", err)
	}
}
