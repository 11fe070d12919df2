package bench

import (
	"context"
	"errors"
	"io"
	"math"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"demarc/bench/peers"
	"demarc/bench/pktgen"
	"demarc/bench/report"
	"demarc/gateway/api"
	quietly "demarc/gateway/netlab/quiet" // the package has a quiet of its own
	"demarc/gateway/netlab/roottest"
)

func TestCases(t *testing.T) {
	f := flowFlags{sizes: []string{"64", "imix"}, flows: []string{"1", "64k", "1M"}, families: []string{"4", "6"}, directions: []string{"out", "both"}}
	list, err := f.cases()
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for i := range list {
		names = append(names, list[i].name())
		p := list[i].plan()
		if p.Flows > 1 {
			continue
		}
		if _, err := makeRules(1, 5, &p); err != nil {
			t.Errorf("%s: %v", list[i].name(), err)
		}
	}
	for _, want := range []string{"64B/64k/nat44", "64B/1/nat44/both", "IMIX/1M/nat44", "82B/64k/ipv6", "IMIX/64k/ipv6/both"} {
		if !slices.Contains(names, want) {
			t.Errorf("no case %s: %v", want, names)
		}
	}
	if len(names) != 24 || len(slices.Compact(slices.Sorted(slices.Values(names)))) != 24 {
		t.Errorf("%d cases: %v", len(names), names)
	}
	c := flowCase{Size: imix}
	small, middle, large := 0, 0, 0
	for _, n := range c.sizes() {
		switch n {
		case 64:
			small++
		case 594:
			middle++
		case 1518:
			large++
		}
	}
	if small != 7 || middle != 4 || large != 1 || math.Abs(c.bytes()-(7*64+4*594+1518)/12.0) > 1e-9 {
		t.Errorf("IMIX is %v, %v bytes in the mean", c.sizes(), c.bytes())
	}
}

// In the short plan nft-linear takes no part; who is named takes part.
func TestSidesOfTheShortPlan(t *testing.T) {
	for _, c := range []struct {
		named, search bool
		want          []string
	}{{false, false, []string{report.Us, sideKernel, sideExpert}}, {false, true, []string{report.Us, sideKernel, sideExpert}}, {true, false, []string{report.Us, sideKernel, sideLinear, sideExpert}}} {
		q := traffic{Peers: defaultPeers, Named: c.named, noLinear: true, Progress: io.Discard}
		list, err := q.sides(&flowCase{Size: "64", Flows: 1, Search: c.search})
		if err != nil || !slices.Equal(list, c.want) || (len(q.notes) > 0) != (len(list) < 4) {
			t.Errorf("%+v: %v, notes %q; %v", c, list, q.notes, err)
		}
	}
}

func TestThroughputWrongCalls(t *testing.T) {
	for _, args := range [][]string{
		{"--sizes", "63"}, {"--sizes", "65"}, {"--sizes", "1520"}, {"--sizes", "large"}, {"--flows", "1000"}, {"--flows", "8M"}, {"--flows", "0"}, {"--family", "5"},
		{"--direction", "up"}, {"--peers", "vpp"}, {"--trials", "0"}, {"--seconds", "0"}, {"--resolution", "0"}, {"--offer", "-1"}, {"--searches", "-1"}, {"--offload", "auto"}, {"x"},
	} {
		wrongCall(t, append([]string{"throughput"}, args...))
	}
	for _, args := range [][]string{{"--load", "0"}, {"--load", "101"}, {"--step", "0"}, {"--sizes", "1"}, {"x"}} {
		wrongCall(t, append([]string{"latency"}, args...))
	}
	for _, args := range [][]string{{"--rate", "0"}, {"--flows", "3"}, {"x"}} {
		wrongCall(t, append([]string{"generator"}, args...))
	}
}

func wrongCall(t *testing.T, args []string) {
	t.Helper()
	c := Command("")
	c.SetArgs(args)
	c.SilenceErrors, c.SilenceUsage = true, true
	var u interface{ Usage() }
	if err := c.ExecuteContext(t.Context()); !errors.As(err, &u) {
		t.Errorf("%q: %v is no usage error", args, err)
	}
}

// The gateway with offload is reported beside the same turns of its peers, the gateway without among them, and in a case of its own; without offload nothing changes.
func TestBothModesOfTheGateway(t *testing.T) {
	got := map[string]map[string][]int{}
	note := func(name string, turns map[string][]int) { got[name] = turns }
	inModes("a", map[string][]int{report.Us: {1}, sideOffload: {2}, sideKernel: {3}}, note)
	inModes("b", map[string][]int{report.Us: {4}, sideKernel: {5}}, note)
	inModes("c", map[string][]int{sideOffload: {6}, sideKernel: {7}}, note)
	want := map[string]map[string][]int{
		"a": {report.Us: {1}, sideKernel: {3}}, "a/offload": {report.Us: {2}, sideNever: {1}, sideKernel: {3}},
		"b":         {report.Us: {4}, sideKernel: {5}},
		"c/offload": {report.Us: {6}, sideKernel: {7}},
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
	for _, c := range []struct {
		both    bool
		offload []string
		want    []string
	}{{false, []string{never, always}, []string{report.Us}}, {true, []string{never, always}, []string{report.Us, sideOffload}}, {true, []string{always}, []string{sideOffload}}, {true, []string{never}, []string{report.Us}}} {
		q := traffic{Offload: c.offload}
		if list := q.ways(&flowCase{Offload: c.both}); !slices.Equal(list, c.want) {
			t.Errorf("%+v: %v", c, list)
		}
	}
	d := demarc{offload: always}
	off := &api.Status{Ports: []api.Port{{Name: "bb0", Offload: api.Offload{On: true}}, {Name: "in0", Offload: api.Offload{Why: "nobody takes it"}}}}
	if err := d.carries(off); err == nil || !strings.Contains(err.Error(), "in0 does not carry sessions: nobody takes it") {
		t.Errorf("a port that carries nothing: %v", err)
	}
	if (carried{by: 51, of: 100}).enough() != nil || (carried{by: 50, of: 100}).enough() == nil || (carried{}).enough() == nil {
		t.Error("half of all packets is what offload does, or all of them are not")
	}
}

// Figures come from what was counted: rates of both directions together, CPU of all cores, loss, and kinds of wrong frames apart.
func TestThroughputFigures(t *testing.T) {
	q := throughput{traffic: traffic{Scenario: "throughput"}}
	q.out = &report.Output{}
	var x turn
	x.Full.sent = pktgen.Sent{Frames: 4000, By: [2]uint64{2000, 2000}, Seconds: 0.002}
	x.Full.judged = pktgen.Judged{Seconds: 0.001, Between: 900}
	x.Full.inside = pktgen.Judged{Seconds: 0.001, Between: 600}
	x.Full.judged.Counts[pktgen.Right], x.Full.inside.Counts[pktgen.Right] = 1500, 1000
	x.Full.judged.Counts[pktgen.Duplicate], x.Full.inside.Counts[pktgen.Reordered], x.Full.judged.Counts[pktgen.BadL4Sum] = 3, 4, 5
	x.Full.use.cpus = map[int]float64{0: 1, 1: 1}
	x.Paced = x.Full
	x.Paced.judged.Between, x.Paced.inside.Between = 600, 400
	x.Paced.use.cpus = map[int]float64{0: 0.3, 1: 0.5}
	q.rows(&flowCase{Size: "512", Flows: 65536, Direction: pktgen.Both}, map[string][]turn{report.Us: {x}})
	got := map[string]float64{}
	for _, r := range q.out.Results {
		if r.Case != "512B/64k/nat44/both" {
			t.Errorf("case %s", r.Case)
		}
		got[r.Metric] = r.Demarc.Median
	}
	for metric, want := range map[string]float64{
		"rate": 1.5, "rate-per-cpu": 1.25, "cpu-per-packet": 800, "rate-at-80": 1, "gbit-l2": 1.5e6 * 512 * 8 / 1e9, "gbit-l1": 1.5e6 * 532 * 8 / 1e9, "offered": 2, "loss": 37.5,
		"duplicates": 3, "reordered": 4, "wrong": 5,
	} {
		if v, ok := got[metric]; !ok || math.Abs(v-want) > 1e-4*want {
			t.Errorf("%s: %v, want %v", metric, v, want)
		}
	}
	// Where a trial failed beside something else, the rate that was found is marked, and no other.
	x.Found.Trials, x.Doubted, x.HandDown = 3, true, 2*time.Second
	q.out = &report.Output{}
	q.rows(&flowCase{Size: "512", Flows: 65536, Search: true}, map[string][]turn{report.Us: {x}})
	if a, b := q.out.Find("throughput", "512B/64k/nat44", "rate-0.1%-loss"), q.out.Find("throughput", "512B/64k/nat44", "rate"); a == nil || a.Demarc.Disturbed != 1 || b.Demarc.Disturbed != 0 {
		t.Errorf("%+v %+v", a, b)
	}
	if h := q.out.Find("throughput", "512B/64k/nat44", "hand-down"); h == nil || h.Demarc.Median != 2 {
		t.Errorf("hand-down %+v", h)
	}
	if _, ok := got["rate-0.1%-loss"]; ok {
		t.Error("a rate that was not searched for is reported")
	}
}

// faulty forwards plainly, with what a ruleset does to packets on their way.
type faulty struct {
	plain
	rule string
}

func (f *faulty) start(ctx context.Context) error {
	file := filepath.Join(dirRun, "faulty.nft")
	text := "table ip " + peers.Table + " {\n\tchain forward {\n\t\ttype filter hook forward priority filter;\n\t\tiif \"" + devIn + "\" " + f.rule + "\n\t}\n}\n"
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		return err
	}
	if _, err := f.r.Exec(nsGW, "nft", "-f", file); err != nil {
		return err
	}
	return f.plain.start(ctx)
}

func (f *faulty) stop() error {
	_, err := f.r.Exec(nsGW, "nft", "flush", "ruleset")
	return errors.Join(err, f.plain.stop())
}

// A device that drops gets no rate without loss, and one that duplicates or changes frames gets no figures at all.
func TestThroughputOfFaultyDevices(t *testing.T) {
	roottest.Require(t)
	for _, c := range []struct {
		name, rule, want string
	}{
		{"right", "accept", ""},
		{"drops", "ip protocol udp numgen inc mod 50 0 drop", ""},
		// Not before all flows are established.
		{"duplicates", "ip protocol udp numgen inc mod 500 499 dup to " + outsideVia.String() + " device \"" + devOut + "\"", "duplicate"},
		{"changes the TTL", "ip protocol udp numgen inc mod 500 499 ip ttl set 9", pktgen.WrongTTL.String()},
		{"changes payload", "ip protocol udp numgen inc mod 500 499 @th,96,8 set 0x55", pktgen.BadL4Sum.String()},
	} {
		q := throughput{Seconds: 0.2, Step: 0.05, Resolution: 0.2, Offer: 100_000}
		q.traffic = traffic{Scenario: "throughput", Cases: []flowCase{{Size: "64", Flows: 64, Search: true}}, Trials: 1, Rules: 1, Seed: 1, Budget: 0, Progress: t.Output(),
			extra: func(r *room) map[string]device { return map[string]device{report.Us: &faulty{plain{r: r}, c.rule}} }}
		// What is right is established once, and loaded twice.
		if c.name == "right" {
			q.Cases[0].Once, q.Trials = true, 2
		}
		out, err := q.run(t.Context())
		clean(t)
		if (err != nil) != (c.want != "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", c.name, err, c.want)
			continue
		}
		by := byMetric(t, out, "", nil)
		found, loss := by["64B/64/nat44 rate-0.1%-loss"].Demarc, by["64B/64/nat44 loss"].Demarc
		switch {
		case c.want != "" && len(out.Results) > 0:
			t.Errorf("%s: %d figures", c.name, len(out.Results))
		case c.name == "drops" && (found.Max != 0 || found.N != 1 || loss.Min < 1 || loss.Max > 30):
			t.Errorf("%s: %v Mpps without loss, %v %% lost", c.name, found, loss)
		case c.name == "right" && (found.N != 2 || by["64B/64/nat44 rate"].Demarc.N != 2 || by["64B/64/nat44 establish-rate"].Demarc.N != 1 || by["64B/64/nat44 rate"].Demarc.Min <= 0): // how much without loss is the machine's luck
			t.Errorf("%s: %v Mpps without loss, %v %% lost", c.name, found, loss)
		}
	}
}

// The whole command, short: both families, both directions at once, frames of several sizes; figures of every side and their configurations.
func TestThroughput(t *testing.T) {
	r, said, err := asJSON(t, "throughput", "--sizes", "imix", "--flows", "1024", "--family", "4,6", "--direction", "both", "--peers", "kernel,nft-expert", "--trials", "1", "--rules", "200",
		"--seconds", "0.2", "--budget", "5s")
	if err != nil {
		t.Fatalf("%v\n%s", err, said)
	}
	by := byMetric(t, &r, said, err)
	for _, name := range []string{"IMIX/1k/nat44/both", "IMIX/1k/ipv6/both"} {
		rate, wrong := by[name+" rate"], by[name+" wrong"]
		if rate.Demarc.Min <= 0 || wrong.Demarc.N != 1 || wrong.Demarc.Max != 0 {
			t.Errorf("%s: rate %+v, wrong %+v", name, rate.Demarc, wrong.Demarc)
		}
		for _, peer := range []string{sideKernel, sideExpert} {
			if rate.Peers[peer].Min <= 0 || wrong.Peers[peer].Max != 0 {
				t.Errorf("%s, %s: rate %+v, wrong %+v", name, peer, rate.Peers[peer], wrong.Peers[peer])
			}
		}
	}
	for _, name := range []string{"IMIX/1k/nat44/both", "IMIX/1k/ipv6/both"} {
		with, carried := by[name+"/offload rate"], by[name+"/offload carried"].Demarc
		if with.Demarc.Min <= 0 || carried.N != 1 || carried.Min < 50 || by[name+"/offload wrong"].Demarc.Max != 0 || by[name+" carried"].Demarc.N != 0 {
			t.Errorf("%s with offload: rate %+v, carried %+v", name, with.Demarc, carried)
		}
		if with.Peers[sideNever].Median != by[name+" rate"].Demarc.Median || with.Peers[sideExpert].Median != by[name+" rate"].Peers[sideExpert].Median {
			t.Errorf("%s with offload has other turns beside it: %+v", name, with.Peers)
		}
	}
	for side, want := range map[string]string{sideOffload: `offload = "always"`, report.Us: "[tenant.nat]", "demarc/ipv6": "2001:db8", sideKernel: "no nftables", sideExpert: "snat to", sideExpert + "/ipv6": "table ip6"} {
		if !strings.Contains(r.Configs[side], want) {
			t.Errorf("configuration of %s has no %q:\n%s", side, want, r.Configs[side])
		}
	}
	if len(r.Notes) == 0 || !strings.Contains(r.Machine.Mode, "copy") {
		t.Errorf("notes %q, mode %q", r.Notes, r.Machine.Mode)
	}
}

// Of two turns one searches: each figure is of the turns that it was looked for in.
func TestThroughputSearchesSomeTurns(t *testing.T) {
	r, said, err := asJSON(t, "throughput", "--sizes", "64", "--flows", "1024", "--peers", "kernel", "--trials", "2", "--rules", "200", "--seconds", "0.1", "--step", "0.05", "--resolution", "0.5", "--search", "--searches", "1", "--budget", "3s", "--offload", "never")
	if err != nil {
		t.Fatalf("%v\n%s", err, said)
	}
	by := byMetric(t, &r, said, err)
	rate, found, trials := by["64B/1k/nat44 rate"], by["64B/1k/nat44 rate-0.1%-loss"], by["64B/1k/nat44 search-trials"]
	if rate.Demarc.N != 2 || found.Demarc.N != 1 || found.Peers[sideKernel].N != 1 || trials.Demarc.Min < 1 {
		t.Errorf("rate of %d turns, the rate with at most 0.1 %% loss of %d and %d, trials %+v", rate.Demarc.N, found.Demarc.N, found.Peers[sideKernel].N, trials.Demarc)
	}
}

// Times of frames through gateway and kernel rise from p50 to the worst, and their curve too.
func TestLatency(t *testing.T) {
	r, said, err := asJSON(t, "latency", "--offload", "never", "--flows", "1024", "--peers", "kernel", "--trials", "1", "--rules", "200", "--seconds", "0.2", "--step", "0.05", "--resolution", "0.2", "--load", "20", "--budget", "5s")
	if err != nil {
		t.Fatalf("%v\n%s", err, said)
	}
	by := byMetric(t, &r, said, err)
	for side, of := range map[string]func(string) report.Stat{
		report.Us:  func(m string) report.Stat { return by["64B/1k/nat44/load-20 "+m].Demarc },
		sideKernel: func(m string) report.Stat { return by["64B/1k/nat44/load-20 "+m].Peers[sideKernel].Stat },
	} {
		last := 0.5 // a frame goes through two devices
		for _, m := range []string{"p50", "p99", "p99.9", "worst"} {
			s := of(m)
			if s.N != 1 || s.Median < last*0.99 {
				t.Errorf("%s: %s is %+v, the one before it %v", side, m, s, last)
			}
			last = s.Median
		}
		if last > 4e6 {
			t.Errorf("%s: the worst took %v µs", side, last)
		}
		if c := of("p99").Curve; len(c) < 5 || !slices.IsSortedFunc(c, func(a, b report.Point) int { return int(a.Value - b.Value) }) {
			t.Errorf("%s: curve %v", side, c)
		}
	}
}

// Nothing is between maker and judge: no frame is wrong, and the generator can do more than any device was seen to.
// A paced maker asks the clock all the time. What it says of the time in which no frame was due is most of a slow load, less of a faster one, none of one without a pace, and of each load by itself.
func TestTheMakersRestIsTold(t *testing.T) {
	roottest.Require(t)
	c := flowCase{Size: "64", Flows: 1024}
	r, err := openDirect(c.plan())
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	}()
	if _, err := r.napi(nsDst, devDst); err != nil {
		t.Fatal(err)
	}
	if _, _, err := r.establish(t.Context(), c.Flows, establishRate); err != nil {
		t.Fatal(err)
	}
	rest := func(rate float64, batch uint32) (part, cpu float64) {
		l, err := r.load(t.Context(), pktgen.Order{Duration: 400 * time.Millisecond, Rate: rate, Batch: batch}, nil)
		if err != nil {
			t.Fatal(err)
		}
		return ratio(l.sent.Idle, l.sent.Seconds), l.use.cpus[makerCPU]
	}
	quietly.Judge(t, func(q *quietly.Limits) {
		for _, batch := range []uint32{0, 4} {
			slow, used := rest(20e3, batch)
			fast, _ := rest(400e3, batch)
			if slow > 1 || fast > 1 {
				t.Errorf("batch %d: it rested %.2f and %.2f of the time", batch, slow, fast)
			}
			if slow < 0.6 || fast > slow-0.05 || fast < 0.05 || used > 0.5 {
				q.Missed("batch %d: it rested %.2f of the time at 20,000 frames a second, %.2f at 400,000, and used %.2f CPUs at the former", batch, slow, fast, used)
			}
		}
	})
	if full, used := rest(0, 0); full != 0 || used < 0.6 {
		t.Errorf("without a pace it rested %.2f of the time, and used %.2f CPUs", full, used)
	}
}

func TestGenerator(t *testing.T) {
	r, said, err := asJSON(t, "generator", "--sizes", "64", "--flows", "1024", "--trials", "1", "--seconds", "0.2", "--rate", "0.05")
	if err != nil {
		t.Fatalf("%v\n%s", err, said)
	}
	by := byMetric(t, &r, said, err)
	if made, wrong := by["64B/1k/nat44 made"].Demarc, by["64B/1k/nat44 wrong"].Demarc; made.Min <= 0 || wrong.Max != 0 || wrong.N != 1 {
		t.Errorf("made %+v, wrong %+v", made, wrong)
	}
}

// A peer that cannot hold so many connections stands beside the case with what it made of the most that it had in the run, under a name of its own, in what it makes and costs alone.
func TestFewerFlowsStandBeside(t *testing.T) {
	q := &throughput{traffic: traffic{Scenario: "throughput", Peers: []string{sideKernel, sideExpert}, Progress: io.Discard}, fewer: map[string][]turn{}, of: map[string]int{}}
	q.out = &report.Output{}
	made := func(rate float64) []turn {
		return []turn{{Full: trial{sent: pktgen.Sent{Frames: uint64(rate), Seconds: 1}, judged: pktgen.Judged{Between: uint64(rate), Seconds: 1}}}}
	}
	for _, c := range []struct {
		flows int
		v6    bool
		turns map[string][]turn
	}{
		{64 << 10, false, map[string][]turn{report.Us: made(2e6), sideExpert: made(5e5), sideKernel: made(1e6)}},
		{1, false, map[string][]turn{report.Us: made(2e6), sideExpert: made(7e5), sideKernel: made(1e6)}},
		{1 << 20, true, map[string][]turn{report.Us: made(2e6), sideKernel: made(9e5)}},
		{1 << 20, false, map[string][]turn{report.Us: made(1e6), sideOffload: made(3e6), sideKernel: made(9e5)}},
	} {
		q.rows(&flowCase{Size: "64", Flows: c.flows, V6: c.v6, Direction: pktgen.Out}, c.turns)
	}
	for _, r := range q.out.Results {
		p, ok := r.Peers[sideFewer]
		want := strings.HasPrefix(r.Case, "64B/1M/nat44") && (r.Metric == "rate" || r.Metric == "rate-per-cpu" || r.Metric == "cpu-per-packet")
		if ok != want || r.Metric == "rate" && ok && math.Abs(p.Median-0.5) > 0.01 {
			t.Errorf("%s %s: %s there %v, %+v", r.Case, r.Metric, sideFewer, ok, p)
		}
	}
	if len(q.notes) != 1 || !strings.Contains(q.notes[0], "64B/1M/nat44: nft-expert-fewer is what nft-expert made of fewer flows in this run (64B/64k/nat44)") {
		t.Errorf("notes %q", q.notes)
	}
}
