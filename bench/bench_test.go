package bench

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/santhosh-tekuri/jsonschema/v6"

	"demarc/acl"
	"demarc/bench/peers"
	"demarc/bench/pktgen"
	"demarc/bench/report"
	"demarc/configs"
	"demarc/gateway/api"
	"demarc/gateway/netlab"
	"demarc/gateway/netlab/roottest"
)

func TestMain(m *testing.M) {
	netlab.Init()
	status := m.Run()
	if program.dir != "" {
		os.RemoveAll(program.dir)
	}
	os.Exit(status)
}

func TestParseStat(t *testing.T) {
	got, err := parseStat("cpu  9 9 9 9 9 9 9 9 0 0\ncpu0 10 1 20 500 3 2 4 5 0 0\ncpu1 1 0 1 700 0 0 0 0 0 0\nintr 5\n")
	if err != nil {
		t.Fatal(err)
	}
	want := map[int]cpuTimes{0: {37, 5}, 1: {2, 0}}
	if d := cmp.Diff(want, got, cmp.AllowUnexported(cpuTimes{})); d != "" {
		t.Error(d)
	}
	for _, bad := range []string{"", "cpu0 a b c d e f g h\n", "cpux 1 2 3 4 5 6 7 8\n"} {
		if _, err := parseStat(bad); err == nil {
			t.Errorf("%q: no error", bad)
		}
	}
}

func TestParsePidStat(t *testing.T) {
	got, children, err := parsePidStat("77 (a b) c) S 1 77 77 0 -1 4194560 1 2 3 4 150 50 7 8 20 0 1 0 5 6 7")
	if err != nil || got != 200 || children != 15 {
		t.Errorf("%v ticks, children %v, %v; want 200 and 15", got, children, err)
	}
	if _, _, err := parsePidStat("77 (x) S 1"); err == nil {
		t.Error("a short line is no error")
	}
}

func TestUsage(t *testing.T) {
	at := time.Unix(100, 0)
	a := cpuSample{at: at, cpus: map[int]cpuTimes{0: {100, 0}, 1: {100, 0}}, ours: 50}
	b := cpuSample{at: at.Add(time.Second), cpus: map[int]cpuTimes{0: {200, 0}, 1: {150, 10}}, ours: 150}
	u := a.until(b)
	if u.cpus[0] != 1 || u.cpus[1] != 0.5 || math.Abs(u.foreign-0.5) > 1e-9 || math.Abs(u.steal-0.05) > 1e-9 || !u.disturbed() {
		t.Errorf("%+v", u)
	}
	b.ours, b.cpus[1] = 200, cpuTimes{150, 0}
	if u := a.until(b); u.foreign != 0 || u.disturbed() {
		t.Errorf("only ours ran, but %+v", u)
	}
}

// testRules are the bench's own, with their flows.
func testRules(t *testing.T) ([]acl.Rule, pktgen.Plan) {
	t.Helper()
	p := plan(65536)
	rules, err := makeRules(1, 1000, &p)
	if err != nil {
		t.Fatal(err)
	}
	return rules, p
}

// What the gateway is given decodes without an error, fits its node file, and has every rule.
func TestPolicyIsServable(t *testing.T) {
	rules, _ := testRules(t)
	text, err := policy(rules, []netip.Prefix{insideNet, insideLink}, pool, benchRate, outsideVia, insideVia, outsideNet)
	if err != nil {
		t.Fatal(err)
	}
	pol, err := configs.DecodePolicy("policy.toml", []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	if n := len(pol.Tenants[0].Rules); n != 1000 {
		t.Errorf("%d rules", n)
	}
	d := &demarc{r: &room{plan: plan(4096)}, table: 4096}
	if _, err := configs.DecodeNode("node.toml", []byte(d.node())); err != nil {
		t.Error(err)
	}
}

func TestServicesThatAPolicyCannotSay(t *testing.T) {
	for _, s := range []acl.Service{
		{Proto: 17, SPortLo: 1024, SPortHi: 65535, DPortHi: 65535},
		{Proto: 47, SPortHi: 65535, DPortHi: 65535},
		{Proto: 1, SPortHi: 65535, DPortLo: 0x0801, DPortHi: 0x0901},
	} {
		if text, err := service(s); err == nil {
			t.Errorf("%+v became %q", s, text)
		}
	}
}

// A gateway that lacks any of its duties is found out.
func TestLacks(t *testing.T) {
	good := func() (*api.Status, *configs.Policy) {
		st := &api.Status{Tenants: []api.Tenant{{
			Pool: &api.Pool{InUse: 100}, Limits: api.TenantRates{OutBits: 1, InBits: 1},
			Rules: []api.RuleHits{{Rule: 9, Direction: "out", Action: "allow", Hits: 100}},
			Out:   api.Counter{Packets: 100}, In: api.Counter{Packets: 100},
		}}}
		tn := configs.Tenant{NAT: configs.NAT{Pool: []string{"192.0.2.1"}}, Rules: make([]configs.Rule, 10)}
		tn.Rates.Out.Bits, tn.Rates.In.Bits = 1, 1
		return st, &configs.Policy{Tenants: []configs.Tenant{tn}}
	}
	if st, p := good(); lacks(st, p, 10, 100, true) != "" {
		t.Errorf("a whole gateway lacks %s", lacks(st, p, 10, 100, true))
	}
	for _, c := range []struct {
		want  string
		spoil func(*api.Status, *configs.Policy)
	}{
		{"nat (switched off", func(s *api.Status, _ *configs.Policy) { s.Broken = "nat" }},
		{"source translation", func(_ *api.Status, p *configs.Policy) { p.Tenants[0].NAT.Pool = nil }},
		{"source translation", func(s *api.Status, _ *configs.Policy) { s.Tenants[0].Pool.InUse = 99 }},
		{"the rate limit", func(_ *api.Status, p *configs.Policy) { p.Tenants[0].Rates.Out.Bits = 0 }},
		{"the rate limit", func(s *api.Status, _ *configs.Policy) { s.Tenants[0].Limits.InBits = 0 }},
		{"rules: it has 9", func(_ *api.Status, p *configs.Policy) { p.Tenants[0].Rules = p.Tenants[0].Rules[:9] }},
		{"the last rule", func(s *api.Status, _ *configs.Policy) { s.Tenants[0].Rules[0].Hits = 99 }},
		{"the last rule", func(s *api.Status, _ *configs.Policy) { s.Tenants[0].Rules[0].Rule = 8 }},
		{"accounting", func(s *api.Status, _ *configs.Policy) { s.Tenants[0].In.Packets = 0 }},
		{"the one tenant", func(s *api.Status, _ *configs.Policy) { s.Tenants = nil }},
	} {
		st, p := good()
		c.spoil(st, p)
		if got := lacks(st, p, 10, 100, true); !strings.HasPrefix(got, c.want) {
			t.Errorf("lacks %q, want %q", got, c.want)
		}
	}
}

func fakeLeg(rate uint64) leg {
	l := leg{Sessions: 100}
	l.Full.sent = pktgen.Sent{Frames: 2 * rate, Seconds: 1}
	l.Full.judged = pktgen.Judged{Seconds: 1, Between: rate}
	l.Full.judged.Counts[pktgen.Right] = rate
	l.Full.use.cpus = map[int]float64{0: 1, 1: 0.6}
	l.Lossless = l.Full
	return l
}

// Without equal work there are figures but no ratio, in neither form of output.
func TestRefusedMeansNoRatio(t *testing.T) {
	q := &quick{Flows: 65536, Rules: 1000, Rate: benchRate}
	out := &outcome{Pairs: []pair{{Legs: map[string]leg{"demarc": fakeLeg(2.8e6), peerName: fakeLeg(2e6)}, First: "demarc"}}, Ruleset: "table ip x {\n}\n"}
	r := q.report(out, "v")
	first := r.Results[0]
	if first.Case != "64B/64k/nat44" || first.Metric != "rate" || first.Demarc.Median != 2.8 || *first.Peers[peerName].Ratio != 1.4 {
		t.Errorf("%+v", first)
	}
	var b bytes.Buffer
	if err := q.table(&b, out, r); err != nil || !strings.Contains(b.String(), "1.40") {
		t.Errorf("no ratio in the table: %v\n%s", err, b.String())
	}
	out.Refused = "demarc does not do nat"
	r = q.report(out, "v")
	for _, res := range r.Results {
		if res.Peers[peerName].Ratio != nil {
			t.Errorf("%s has a ratio", res.Metric)
		}
	}
	b.Reset()
	if err := q.table(&b, out, r); err != nil || strings.Contains(b.String(), "1.40") {
		t.Errorf("a refused ratio is in the table: %v\n%s", err, b.String())
	}
}

func TestBetterForm(t *testing.T) {
	for _, c := range []struct {
		name         string
		maps, linear formTrial
		want         peers.Form
	}{
		{"the same", formTrial{100, 1, false}, formTrial{100, 1, false}, peers.Maps},
		{"disturbed", formTrial{10, 0.1, true}, formTrial{100, 1, false}, peers.Maps},
		{"noise", formTrial{100, 1, false}, formTrial{105, 1.05, false}, peers.Maps},
		{"linear forwards more", formTrial{100, 1, false}, formTrial{10, 1.2, false}, peers.Linear},
		{"maps forward more", formTrial{10, 1.2, false}, formTrial{100, 1, false}, peers.Maps},
		{"linear begins more", formTrial{100, 1, false}, formTrial{150, 1.05, false}, peers.Linear},
	} {
		if got := better(map[peers.Form]formTrial{peers.Maps: c.maps, peers.Linear: c.linear}); got != c.want {
			t.Errorf("%s: %s, want %s", c.name, got, c.want)
		}
	}
}

// Few flows have no rate of new ones, and none is printed; nor is there one in a figure that JSON has no word for.
func TestFormOfFewFlows(t *testing.T) {
	f := formTrial{NewPerSecond: ratio(1, 0), Rate: 1.5e6}
	if s := f.String(); strings.Contains(s, "Inf") || !strings.Contains(s, "too few") || !strings.Contains(s, "1.500 Mpps") {
		t.Errorf("%q", s)
	}
	if s := (formTrial{NewPerSecond: 2e5}).String(); !strings.Contains(s, "200 thousand new flows/s") {
		t.Errorf("%q", s)
	}
}

// binary builds the program once for the tests that run it.
func binary(t *testing.T) string {
	t.Helper()
	program.once.Do(func() {
		if program.dir, program.err = os.MkdirTemp("", "demarc-bench-test"); program.err != nil {
			return
		}
		c := exec.Command("go", "build", "-ldflags", "-s -w", "-o", filepath.Join(program.dir, "demarc"), "demarc")
		c.Env = append(os.Environ(), "CGO_ENABLED=0")
		if b, err := c.CombinedOutput(); err != nil {
			program.err = fmt.Errorf("build: %w\n%s", err, b)
		}
	})
	if program.err != nil {
		t.Fatal(program.err)
	}
	return filepath.Join(program.dir, "demarc")
}

// program is what binary has built, once for all tests.
var program struct {
	once sync.Once
	dir  string
	err  error
}

// clean fails when a run left namespaces, processes or files.
func clean(t *testing.T) {
	t.Helper()
	for _, pattern := range []string{"/run/netns/dmbench-*", dirRun + "*"} {
		if left, _ := filepath.Glob(pattern); len(left) > 0 {
			t.Errorf("left behind: %v", left)
		}
	}
}

// The whole command, short: figures of both sides, one JSON object of the promised form, no wrong frame, nothing left behind.
func TestQuick(t *testing.T) {
	r, said := quickReport(t, "--pairs", "2", "--seconds", "0.5", "--budget", "1s")
	if r.Schema != 1 || r.Machine.CPUs < 2 || r.Machine.Kernel == "" || !strings.Contains(r.Machine.Mode, "copy") {
		t.Errorf("machine: %+v", r.Machine)
	}
	by := map[string]report.Result{}
	for _, res := range r.Results {
		by[res.Metric] = res
		if res.Scenario != "throughput" || res.Case != "64B/4k/nat44" || res.Demarc.N != 2 || res.Peers[peerName].N != 2 {
			t.Errorf("%+v", res)
		}
	}
	rate, peer := by["rate"], by["rate"].Peers[peerName]
	if rate.Unit != "Mpps" || rate.Demarc.Min <= 0 || peer.Min <= 0 || peer.Ratio == nil {
		t.Fatalf("rate: %+v", rate)
	}
	if want := rate.Demarc.Median / peer.Median; math.Abs(*peer.Ratio-want) > 0.01 {
		t.Errorf("ratio %v, want %v", *peer.Ratio, want)
	}
	if !strings.Contains(peer.Ruleset, "snat to") || !strings.Contains(peer.Ruleset, "limit rate over") {
		t.Errorf("ruleset:\n%.500s", peer.Ruleset)
	}
	if e := by["established"]; e.Demarc.Min != 4096 || e.Peers[peerName].Min < 4096 {
		t.Errorf("established: %+v", e)
	}
	if w := by["wrong"]; w.Demarc.Max != 0 || w.Peers[peerName].Max != 0 {
		t.Errorf("wrong frames: %+v", w)
	}
	for _, p := range []string{"pair 1 demarc", "pair 2 nft-expert"} {
		if !strings.Contains(said, p) {
			t.Errorf("no line %q in\n%s", p, said)
		}
	}
}

// Generic mode is measured on devices as the kernel's own forwarding has them.
func TestQuickGeneric(t *testing.T) {
	r, _ := quickReport(t, "--pairs", "1", "--seconds", "0.3", "--mode", "generic", "--budget", "1s")
	if !strings.Contains(r.Machine.Mode, "generic (generic attach)") {
		t.Errorf("mode %s", r.Machine.Mode)
	}
	for _, f := range r.Results {
		if f.Metric == "rate" && f.Demarc.Min <= 0 || f.Metric == "established" && f.Demarc.Min != 4096 || f.Metric == "wrong" && f.Demarc.Max != 0 {
			t.Errorf("%+v", f)
		}
	}
}

// asJSON runs a bench by its command line and decodes the one object that it prints, also where it fails because figures are not as promised; said is its progress.
func asJSON(t *testing.T, args ...string) (r report.Output, said string, err error) {
	t.Helper()
	roottest.Require(t)
	c := Command("")
	var stdout, stderr bytes.Buffer
	c.SetOut(&stdout)
	c.SetErr(&stderr)
	c.SilenceUsage, c.SilenceErrors = true, true
	c.SetArgs(append(args, "--json", "--binary", binary(t)))
	err = c.ExecuteContext(context.Background())
	clean(t)
	satisfies(t, stdout.Bytes())
	d := json.NewDecoder(&stdout)
	d.DisallowUnknownFields()
	if derr := d.Decode(&r); derr != nil || d.More() {
		t.Fatalf("not one object: %v; %v\n%s", derr, err, &stderr)
	}
	return r, stderr.String(), err
}

// satisfies fails when an object is not as docs/bench/results.schema.json says.
func satisfies(t *testing.T, object []byte) {
	t.Helper()
	schema, err := jsonschema.NewCompiler().Compile("../docs/bench/results.schema.json")
	if err != nil {
		t.Fatal(err)
	}
	v, err := jsonschema.UnmarshalJSON(bytes.NewReader(object))
	if err == nil {
		err = schema.Validate(v)
	}
	if err != nil {
		t.Errorf("not as the schema says: %v", err)
	}
}

// byMetric are figures by case and metric. Those that miss their limit are the command's error, and nothing else is.
func byMetric(t *testing.T, r *report.Output, said string, err error) (by map[string]report.Result) {
	t.Helper()
	t.Logf("%s", said)
	by = map[string]report.Result{}
	missed := 0
	for _, f := range r.Results {
		by[f.Case+" "+f.Metric] = f
		if f.Limit != nil && !f.Limit.Held && !f.Limit.Aim {
			missed++
		}
	}
	if (missed > 0) != (err != nil) {
		t.Errorf("%d limits are missed, and the command says: %v", missed, err)
	}
	return by
}

// quickReport runs the bench on 4,096 flows.
func quickReport(t *testing.T, args ...string) (r report.Output, said string) {
	t.Helper()
	r, said, err := asJSON(t, append([]string{"quick", "--step", "0.1", "--flows", "4096", "--budget", "20s"}, args...)...)
	if err != nil {
		t.Fatalf("%v\n%s", err, said)
	}
	return r, said
}

// With a stage switched off there is no ratio, and the exit says why.
func TestQuickRefusesABrokenGateway(t *testing.T) {
	roottest.Require(t)
	bin := binary(t)
	for _, stage := range []string{"nat", "acl", "limit"} {
		c := Command("")
		var stdout bytes.Buffer
		c.SetOut(&stdout)
		c.SetErr(&bytes.Buffer{})
		c.SetArgs([]string{"quick", "--json", "--pairs", "1", "--seconds", "0.1", "--step", "0.05", "--flows", "256", "--rules", "50", "--binary", bin, "--break", stage})
		c.SilenceUsage, c.SilenceErrors = true, true
		err := c.ExecuteContext(context.Background())
		if err == nil || !strings.Contains(err.Error(), stage) {
			t.Errorf("--break %s: %v", stage, err)
		}
		if strings.Contains(stdout.String(), "ratio") {
			t.Errorf("--break %s shows a ratio: %s", stage, stdout.String())
		}
		clean(t)
	}
}

// Interrupted in the middle of a load it ends soon and leaves nothing.
func TestQuickInterrupted(t *testing.T) {
	roottest.Require(t)
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	q := &quick{Pairs: 1, Seconds: 30, Step: 30, Flows: 1024, Rules: 100, Rate: benchRate, Binary: binary(t), Progress: &bytes.Buffer{}}
	stopped := make(chan time.Time, 1)
	q.Progress = writerFunc(func(b []byte) {
		// After the second form comes the first long load.
		if strings.Contains(string(b), string(peers.Linear)) {
			time.AfterFunc(3*time.Second, func() {
				stopped <- time.Now()
				cancel()
			})
		}
	})
	if _, err := q.run(ctx); err == nil || !strings.Contains(err.Error(), context.Canceled.Error()) {
		t.Fatalf("run: %v", err)
	}
	if took := time.Since(<-stopped); took > 10*time.Second {
		t.Errorf("it took %v to end", took)
	}
	clean(t)
}

type writerFunc func([]byte)

func (f writerFunc) Write(b []byte) (int, error) {
	f(b)
	return len(b), nil
}

// A wrong call is told from a bench that failed: the command line gives it another exit status.
func TestWrongCalls(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel() // a call that is not wrong after all runs nothing
	for _, args := range [][]string{{"foo"}, {"--scenarios", "foo"}, {"--within", "1s"}, {"--full", "--within", "1s"}, {"--resume", "x", "--out", "y"}, {"quick", "foo"}, {"quick", "--pairs", "0"}, {"quick", "--mode", "fast"}, {"quick", "--rules", "0"}, {"quick", "--flows", "2097152"}, {"sessions", "--sessions", "1000"}, {"sessions", "--rounds", "0"}, {"sessions", "x"}} {
		c := Command("")
		c.SetArgs(args)
		c.SilenceErrors, c.SilenceUsage = true, true
		var u interface{ Usage() }
		if err := c.ExecuteContext(ctx); !errors.As(err, &u) {
			t.Errorf("%q: %v is no usage error", args, err)
		}
	}
}

// Results say of which program they are, also where the build keeps no record of that.
func TestResultsNameTheProgram(t *testing.T) {
	defer func() { linked = "" }()
	Command("v1.2-3-gabcdef")
	if v, c := version(), commit(); v != "v1.2-3-gabcdef" || c != v { // go test keeps no record
		t.Errorf("version %q, commit %q", v, c)
	}
}
