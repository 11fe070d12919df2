package bench

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"demarc/bench/pktgen"
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
	r, said, err := asJSON(t, "sessions", "--sessions", "262144", "--rounds", "1", "--rate", "50000")
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
	const n = 1 << 18
	if by["sessions"] != n || by["data"] != n || by["lost"] != 0 || by["wrong"] != 0 {
		t.Errorf("%v sessions, %v frames of data, %v lost, %v wrong", by["sessions"], by["data"], by["lost"], by["wrong"])
	}
	// 192 bytes a session are bounded by a test of the pure room; pages that are touched as a whole and port state come on top.
	if got := by["added-per-session"]; got < 128 || got > 224 {
		t.Errorf("%.1f bytes of memory for each session", got)
	}
	if by["gc"] == 0 || by["gc-longest-pause"] > 50 {
		t.Errorf("%v collections, the longest pause %v ms", by["gc"], by["gc-longest-pause"])
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
