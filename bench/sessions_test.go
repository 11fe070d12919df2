package bench

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"demarc/bench/pktgen"
	"demarc/bench/report"
	quietly "demarc/gateway/netlab/quiet" // the package has a quiet of its own
	"demarc/gateway/netlab/roottest"
)

func TestParsePauses(t *testing.T) {
	const log = `time=2026-01-01T00:00:00Z level=WARN msg="something else"
gc 1 @0.019s 0%: 0.015+0.36+0.25 ms clock, 0.030+0.14/0.31/0.049+0.005 ms cpu, 4->5->1 MB, 5 MB goal, 0 MB stacks, 0 MB globals, 2 P
gc 2 @12.345s 1%: 1.5+12+0.003 ms clock, 0.030+0.14/0.31/0.049+0.005 ms cpu, 61->62->30 MB, 62 MB goal, 0 MB stacks, 0 MB globals, 2 P (forced)
gc says the log of somebody
`
	got := parsePauses([]byte(log))
	want := pauses{Count: 2, Longest: 1500 * time.Microsecond, Sum: 1768 * time.Microsecond, LargestMiB: 61}
	if got != want {
		t.Errorf("%+v, want %+v", got, want)
	}
}

func TestARoundThatLostIsNotWhole(t *testing.T) {
	of := func(sent, there, back uint64, wrong pktgen.Kind) (r round) {
		r.Sent.Frames, r.There.Counts[pktgen.Right], r.Back[pktgen.Right] = sent, there, back
		if wrong != pktgen.Right {
			r.There.Counts[wrong]++
		}
		return r
	}
	for _, c := range []struct {
		r    round
		want bool
	}{
		{of(100, 100, 100, pktgen.Right), true}, {of(100, 99, 99, pktgen.Right), false}, {of(100, 100, 99, pktgen.Right), false},
		{of(100, 100, 100, pktgen.WrongMapping), false}, {of(100, 100, 100, pktgen.Duplicate), false},
	} {
		if c.r.whole() != c.want {
			t.Errorf("%+v", c.r)
		}
	}
}

// Pools of every size of table are within 192.0.2.0/24, and the plan's hosts find room in them.
func TestPoolOf(t *testing.T) {
	for flows := 1024; flows <= pktgen.MaxFlows; flows *= 2 {
		p := poolOf(flows)
		n := int(p[1].As4()[3]) - int(p[0].As4()[3]) + 1
		if a := p[0].As4(); a[0] != 192 || a[1] != 0 || a[2] != 2 || n < 16 || n*64512 < 3*flows {
			t.Errorf("%d flows: %v, %d addresses", flows, p, n)
		}
	}
}

// A quarter of a million sessions, established in both directions and carrying data, by the command itself; its default is a million, in a minute.
func TestSessionsCarryData(t *testing.T) {
	roottest.Require(t)
	quietly.Judge(t, func(l *quietly.Limits) { sessionsCarryData(t, l) })
}

func sessionsCarryData(t *testing.T, l *quietly.Limits) {
	r, said, err := asJSON(t, "sessions", "--trials", "0", "--sessions", "262144", "--rounds", "1", "--rate", "50000")
	if err != nil {
		t.Fatalf("%v\n%s", err, said)
	}
	t.Logf("%s", said)
	by := map[string]float64{}
	for _, f := range r.Results {
		if f.Scenario != "sessions" || f.Case != "64B/256k/nat44" {
			t.Errorf("%+v", f)
		}
		by[f.Metric] = f.Demarc.Median
	}
	if by["tear-down"] <= 0 || by["tear-down-rate"] <= 0 {
		t.Errorf("all sessions ended in %v ms, %v/s", by["tear-down"], by["tear-down-rate"])
	}
	const n = 1 << 18
	if by["sessions"] != n || by["data"] != n || by["lost"] != 0 || by["wrong"] != 0 {
		t.Errorf("%v sessions, %v frames of data, %v lost, %v wrong", by["sessions"], by["data"], by["lost"], by["wrong"])
	}
	// 192 bytes a session are bounded by a test of the pure room; pages that are touched as a whole and port state come on top.
	if got := by["added-per-session"]; got < 128 || got > 224 {
		t.Errorf("%.1f bytes of memory for each session", got)
	}
	if by["gc"] == 0 {
		t.Error("there was no collection, so no pause was measured")
	}
	if by["gc-longest-pause"] > 50 { // all threads are waited for, one of which may be on a CPU that is elsewhere
		l.Missed("%v collections, the longest pause %v ms", by["gc"], by["gc-longest-pause"])
	}
	t.Logf("figure: 256k sessions: start %.2f s, establish %.1f s, %.0f MiB, %.1f bytes each, data at %.0f/s after %v tries, %v collections, longest pause %.2f ms, longest order %.2f ms",
		by["start"], by["establish"], by["resident"], by["added-per-session"], by["data-rate"], by["tries"], by["gc"], by["gc-longest-pause"], by["longest-order"])
}

// A gateway that does not translate establishes nothing here.
func TestSessionsRefusesABrokenGateway(t *testing.T) {
	roottest.Require(t)
	q := &manySessions{Sessions: 1024, Rounds: 1, Rate: 50000, Rules: 10, Binary: binary(t), BreakStage: "nat", Progress: &bytes.Buffer{}}
	if _, err := q.run(t.Context()); err == nil || !strings.Contains(err.Error(), "establish 1024 sessions") {
		t.Errorf("run: %v", err)
	}
	clean(t)
}

// RFC 9693 by the command itself, short: both sides establish and end connections, and the figures say what they are. The gateway has offload: the table's part has none.
func TestSessionsAreEstablishedAndEnded(t *testing.T) {
	r, said, err := asJSON(t, "sessions", "--offload", "always", "--flows", "4k", "--trials", "1", "--resolution", "0.5", "--list", "100", "--sessions", "1024", "--rounds", "1", "--rate", "20000")
	if err != nil {
		t.Fatalf("%v\n%s", err, said)
	}
	by := byMetric(t, &r, said, err)
	rate, down, speed := by["64B/4k/nat44/offload establish-rate-0-loss"], by["64B/4k/nat44/offload tear-down"], by["64B/4k/nat44/offload tear-down-rate"]
	for side, of := range map[string]func(report.Result) report.Stat{
		report.Us:  func(x report.Result) report.Stat { return x.Demarc },
		sideExpert: func(x report.Result) report.Stat { return x.Peers[sideExpert].Stat },
	} {
		if of(rate).N != 1 {
			t.Errorf("%s: rate %+v", side, of(rate))
		}
		if of(rate).Median == 0 { // a machine that pauses in every trial loses a frame in each
			continue
		}
		if d, s := of(down).Median, of(speed).Median; d <= 0 || d > 10_000 || s < 4096/(d/1e3)*0.9 || s > 4096/(d/1e3)*1.1 {
			t.Errorf("%s: ended in %v ms, %v/s", side, d, s)
		}
	}
	if len(r.Notes) < 2 || by["64B/1k/nat44 sessions"].Demarc.Median != 1024 {
		t.Errorf("notes %q; %+v", r.Notes, by["64B/1k/nat44 sessions"])
	}
	t.Logf("figure: RFC 9693, 4,096 connections: %v/s at most, nft-expert %v/s; ended in %v and %v ms", rate.Demarc.Median, rate.Peers[sideExpert].Median, down.Demarc.Median, down.Peers[sideExpert].Median)
}

// forgetful is nftables with what a ruleset drops besides, and with a flush that may not happen.
type forgetful struct {
	*kernel
	rule string
	keep bool
}

func (f forgetful) start(ctx context.Context) error {
	if err := f.kernel.start(ctx); err != nil || f.rule == "" {
		return err
	}
	file := filepath.Join(dirRun, "forgetful.nft")
	text := "table ip forgetful {\n\tchain forward {\n\t\ttype filter hook forward priority -5;\n\t\t" + f.rule + "\n\t}\n}\n"
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		return err
	}
	_, err := f.kernel.r.Exec(nsGW, "nft", "-f", file)
	return err
}

func (f forgetful) clear(ctx context.Context) error {
	if f.keep {
		return nil
	}
	return f.kernel.clear(ctx)
}

// A device that loses a first packet in fifty, or one that lets all of them through and has no connection behind one in fifty, has no rate; sessions that were
// to be ended and still carry frames are an error.
func TestEstablishingIsNotBlind(t *testing.T) {
	roottest.Require(t)
	begin := func(f forgetful) *establishing {
		q := &establishing{Resolution: 0.5}
		q.traffic = traffic{Scenario: "sessions", Cases: []flowCase{{Size: "64", Flows: 1024}}, Trials: 1, Rules: 10, Seed: 1, Progress: t.Output()}
		q.extra = func(*room) map[string]device {
			f.kernel = q.devices[sideExpert].(*kernel)
			return map[string]device{report.Us: f}
		}
		return q
	}
	for name, rule := range map[string]string{
		"loses first packets":           "iif \"" + devIn + "\" numgen inc mod 50 0 drop",
		"has no connection behind them": "iif \"" + devOut + "\" numgen inc mod 50 0 drop",
	} {
		out, err := begin(forgetful{rule: rule}).run(t.Context())
		clean(t)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if by := byMetric(t, out, "", nil); by["64B/1k/nat44 establish-rate-0-loss"].Demarc.Max != 0 || by["64B/1k/nat44 establish-rate-0-loss"].Demarc.N != 1 || by["64B/1k/nat44 tear-down"].Demarc.N != 0 {
			t.Errorf("%s: %+v", name, by["64B/1k/nat44 establish-rate-0-loss"])
		}
	}
	for _, keep := range []bool{false, true} {
		q := begin(forgetful{keep: keep})
		q.out = &report.Output{}
		c := &q.Cases[0]
		if _, err := q.openCase(t.Context(), c); err != nil {
			t.Fatal(err)
		}
		d := q.devices[report.Us]
		err := q.fresh(t.Context(), d, func() error {
			// Slow, and again: what is looked at is not the machine.
			for end := time.Now().Add(20 * time.Second); ; {
				if ok, err := q.established(t.Context(), c, 4000); ok || err != nil {
					return err
				}
				if time.Now().After(end) {
					return errors.New("1024 connections were not established in 20 s")
				}
				if err := errors.Join(q.room.ends.Fresh(), q.room.ends.Remember()); err != nil {
					return err
				}
			}
		})
		if err != nil {
			t.Fatal(errors.Join(err, d.stop(), q.room.Close()))
		}
		_, err = q.ended(t.Context(), c, d, 4000)
		if (err != nil) != keep || err != nil && !strings.Contains(err.Error(), "of 1024 connections that were ended carry frames") {
			t.Errorf("kept: %v; %v", keep, err)
		}
		if err := errors.Join(d.stop(), q.room.Close()); err != nil {
			t.Error(err)
		}
		clean(t)
	}
}

func TestSessionsWrongCalls(t *testing.T) {
	for _, args := range [][]string{{"--flows", "512"}, {"--flows", "3"}, {"--sessions", "1000"}, {"--trials", "-1"}, {"--peers", "kernel"}, {"--resolution", "0"}, {"--rounds", "0"}, {"x"}} {
		wrongCall(t, append([]string{"sessions"}, args...))
	}
}
