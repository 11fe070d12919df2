package bench

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/spf13/cobra"

	"demarc/bench/report"
)

// withScenarios has the suite know only these, until the test ends.
func withScenarios(t *testing.T, list ...scenario) {
	t.Helper()
	before := registered
	registered = nil
	for _, s := range list {
		register(s)
	}
	t.Cleanup(func() { registered = before })
}

// pretend is a scenario that prints one figure, after do.
func pretend(name string, place int, do func(ctx context.Context, c *cobra.Command) error) scenario {
	command := func() *cobra.Command {
		c := &cobra.Command{Use: name}
		n := c.Flags().Int("n", 5, "runs")
		c.Flags().Bool("json", false, "")
		c.RunE = func(cmd *cobra.Command, _ []string) error {
			cmd.PrintErrln("line of " + name)
			var err error
			if do != nil {
				err = do(cmd.Context(), cmd)
			}
			out := report.Output{Schema: report.Schema, Machine: report.Machine{Mode: "copy", Disturbed: 1, Seed: 7}, Configs: map[string]string{"demarc": "c"}}
			for i, side := range []string{report.Us, "kernel"} {
				values := make([]float64, *n)
				for j := range values {
					values[j] = float64(10*(2-i)) + float64(j)/10
				}
				out.Add(report.Row{Scenario: name, Case: "c", Metric: "rate", Unit: "Mpps", Better: report.Higher, Side: side, Values: values, Digits: 3})
			}
			out.Judge()
			return errors.Join(err, out.JSON(cmd.OutOrStdout()))
		}
		return c
	}
	return scenario{place: place, name: name, about: "about " + name, command: command, short: &stint{args: []string{"--n", "6"}, seconds: 10}}
}

func testSuite(t *testing.T, budget time.Duration) (*suite, *bytes.Buffer) {
	t.Helper()
	var said bytes.Buffer
	q := &suite{Dir: t.TempDir(), Budget: budget, Progress: &said, sweep: func() ([]string, error) { return nil, nil }}
	if err := q.choose(); err != nil {
		t.Fatal(err)
	}
	return q, &said
}

func resultsOf(t *testing.T, q *suite) (r report.Output) {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(q.Dir, resultsFile))
	if err != nil {
		t.Fatal(err)
	}
	satisfies(t, b)
	if err := json.Unmarshal(b, &r); err != nil {
		t.Fatal(err)
	}
	return r
}

// The plans are whole: within 12 minutes, each scenario with a name and a line of its own, and flags that its command has.
func TestPlans(t *testing.T) {
	var short float64
	seen := map[string]bool{}
	for _, s := range scenarios() {
		if seen[s.name] || s.about == "" || s.place == 0 || s.command().Name() != s.name {
			t.Errorf("%s: twice, or without a line or a place, or its command is %q", s.name, s.command().Name())
		}
		seen[s.name] = true
		stints := []*stint{s.short}
		all := 0.0
		for _, u := range inParts(planFull, []scenario{s}) {
			if stints = append(stints, u.full); u.full != nil {
				all += u.full.seconds
			}
		}
		if s.full != nil && (all < s.full.seconds*0.95 || all > s.full.seconds*1.1) {
			t.Errorf("%s: its parts take %.0f s, all of it %.0f", s.name, all, s.full.seconds)
		}
		for _, st := range stints {
			if st == nil {
				continue
			}
			if st.seconds <= 0 || st.memoryMiB <= 0 {
				t.Errorf("%s: %+v", s.name, st)
			}
			if err := s.command().ParseFlags(append(slices.Clone(st.args), "--json", "--binary", "x")); err != nil {
				t.Errorf("%s: %v", s.name, err)
			}
		}
		if s.short != nil {
			short += s.short.seconds
		}
	}
	// A machine that is not as quiet takes a little longer, and is to have as many turns.
	if most := (shortBudget - reserve).Seconds() - 20; short > most {
		t.Errorf("the short plan should take %.0f s, at most %.0f are allowed", short, most)
	}
}

// Scenarios run in order with the arguments of the plan; what they print is one object, with what repeats them.
func TestSuiteRunsAll(t *testing.T) {
	withScenarios(t, pretend("second", 20, nil), pretend("first", 10, nil), scenario{name: "alone", place: 1})
	q, said := testSuite(t, time.Hour)
	if err := q.measure(t.Context(), []string{"/run/netns/x"}); err != nil {
		t.Fatal(err)
	}
	r := resultsOf(t, q)
	if len(r.Scenarios) != 2 || r.Scenarios[0].Name != "first" || strings.Join(r.Scenarios[1].Args, " ") != "second --n 6" || r.Partial != "" || r.Plan != "short" {
		t.Errorf("%+v, partial %q", r.Scenarios, r.Partial)
	}
	if f := r.Find("second", "c", "rate"); f == nil || f.Demarc.N != 6 || f.Peers["kernel"].Verdict != report.Wins {
		t.Errorf("%+v", f)
	}
	if r.Configs["first/demarc"] != "c" || r.Machine.Mode != "copy" || r.Machine.Disturbed != 2 || r.Scenarios[0].Seed != 7 {
		t.Errorf("%+v %+v", r.Configs, r.Machine)
	}
	for _, want := range []string{"1 of 2: first, some 10 s; 20 s left", "  line of second", "removed: /run/netns/x"} {
		if !strings.Contains(said.String(), want) {
			t.Errorf("no line %q in\n%s", want, said)
		}
	}
	if b, err := os.ReadFile(filepath.Join(q.Dir, reportFile)); err != nil || !bytes.Contains(b, []byte("./demarc bench second --n 6")) {
		t.Errorf("%v: the page does not say how to repeat it", err)
	}
	var b bytes.Buffer
	if err := q.print(&b); err != nil || !strings.Contains(b.String(), "2 better, 0 worse") || !strings.Contains(b.String(), "kernel") {
		t.Errorf("%v\n%s", err, &b)
	}
}

// What is done is kept when a scenario fails, hangs, or somebody interrupts; what is missing is said.
func TestSuiteKeepsWhatIsDone(t *testing.T) {
	hang := func(ctx context.Context, _ *cobra.Command) error { <-ctx.Done(); return ctx.Err() }
	t.Run("one fails", func(t *testing.T) {
		withScenarios(t, pretend("a", 1, func(context.Context, *cobra.Command) error { return errors.New("no devices") }), pretend("b", 2, nil))
		q, _ := testSuite(t, time.Hour)
		err := q.measure(t.Context(), nil)
		r := resultsOf(t, q)
		if err == nil || !strings.Contains(err.Error(), "a: no devices") || r.Partial != "a was not measured to its end (no devices)" || len(r.Results) != 2 {
			t.Errorf("%v; partial %q; %d results", err, r.Partial, len(r.Results))
		}
	})
	t.Run("a promise is missed", func(t *testing.T) {
		withScenarios(t, pretend("a", 1, func(context.Context, *cobra.Command) error { return errors.New(missedPromises + "\n  x") }))
		q, _ := testSuite(t, time.Hour)
		err := q.measure(t.Context(), nil)
		if r := resultsOf(t, q); err == nil || r.Partial != "" {
			t.Errorf("%v; partial %q", err, r.Partial)
		}
	})
	t.Run("interrupted", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		withScenarios(t, pretend("a", 1, nil), pretend("b", 2, func(ctx context.Context, c *cobra.Command) error { cancel(); return hang(ctx, c) }), pretend("c", 3, nil))
		q, _ := testSuite(t, time.Hour)
		err := q.measure(ctx, nil)
		r := resultsOf(t, q)
		if err == nil || r.Find("a", "c", "rate") == nil || r.Find("c", "c", "rate") != nil || len(r.Scenarios) != 3 || !r.Scenarios[2].Skipped ||
			r.Partial != "b was not measured to its end (interrupted); c was not measured (interrupted before it began)" {
			t.Errorf("%v; partial %q", err, r.Partial)
		}
	})
	t.Run("no time left", func(t *testing.T) {
		withScenarios(t, pretend("a", 1, nil), pretend("b", 2, nil))
		q, _ := testSuite(t, reserve+9*time.Second)
		q.list[1].short = &stint{seconds: 60}
		err := q.measure(t.Context(), nil)
		if r := resultsOf(t, q); err == nil || !strings.Contains(err.Error(), "b was not measured: no time left") || !strings.Contains(r.Partial, "b was not measured (no time left") {
			t.Errorf("%v; partial %q", err, r.Partial)
		}
	})
	t.Run("hangs", func(t *testing.T) {
		withScenarios(t, pretend("a", 1, hang))
		q, _ := testSuite(t, reserve+50*time.Millisecond)
		q.list[0].short = &stint{seconds: 0.01}
		err := q.measure(t.Context(), nil)
		if r := resultsOf(t, q); err == nil || !strings.Contains(r.Partial, "it took longer than") {
			t.Errorf("%v; partial %q", err, r.Partial)
		}
	})
	t.Run("leaves something", func(t *testing.T) {
		withScenarios(t, pretend("a", 1, nil))
		q, _ := testSuite(t, time.Hour)
		q.sweep = func() ([]string, error) { return []string{"/run/netns/y"}, nil }
		if err := q.measure(t.Context(), nil); err == nil || !strings.Contains(err.Error(), "/run/netns/y") {
			t.Error(err)
		}
	})
	t.Run("killed before its end", func(t *testing.T) {
		var q *suite
		var between report.Output
		withScenarios(t, pretend("a", 1, nil), pretend("b", 2, func(context.Context, *cobra.Command) error { between = resultsOf(t, q); return nil }))
		q, _ = testSuite(t, time.Hour)
		if err := q.measure(t.Context(), nil); err != nil {
			t.Fatal(err)
		}
		if between.Find("a", "c", "rate") == nil || !strings.Contains(between.Partial, "did not come to its end") {
			t.Errorf("after the first of two the file says %q", between.Partial)
		}
	})
}

func TestSuiteChoosesScenarios(t *testing.T) {
	withScenarios(t, pretend("a", 1, nil), pretend("b", 2, nil), scenario{name: "alone", place: 3})
	q, _ := testSuite(t, time.Hour)
	q.Only = []string{"b"}
	if err := q.choose(); err != nil || len(q.list) != 1 || q.list[0].name != "b" {
		t.Errorf("%v %v", q.list, err)
	}
	// What was not asked for is missing in the results, which is said, and no failure.
	if err := q.measure(t.Context(), nil); err != nil {
		t.Error(err)
	}
	if r := resultsOf(t, q); r.Partial != "only b was asked for" {
		t.Errorf("partial %q", r.Partial)
	}
	q.Only = []string{"alone"}
	if err := q.choose(); err == nil || !strings.Contains(err.Error(), "want some of a,b") {
		t.Error(err)
	}
	// What is missing is told in one line before anything begins.
	lacking := pretend("a", 1, nil)
	lacking.needs = func() error { return errors.New("install nftables") }
	greedy := pretend("b", 2, nil)
	greedy.short.memoryMiB = 1 << 30
	if os.Geteuid() == 0 {
		for _, c := range []struct {
			s    scenario
			want string
		}{{lacking, "a: install nftables"}, {greedy, "MiB of free memory"}} {
			q := &suite{Dir: filepath.Join(t.TempDir(), "x"), list: []scenario{c.s}}
			if err := q.ready(); err == nil || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "\n") {
				t.Errorf("%v, want %q", err, c.want)
			}
			if _, err := os.Stat(q.Dir); err == nil {
				t.Error("a directory was made")
			}
		}
		q := &suite{Dir: t.TempDir(), list: []scenario{pretend("a", 1, nil)}}
		if err := os.WriteFile(filepath.Join(q.Dir, resultsFile), []byte("{}"), 0o644); err != nil {
			t.Fatal(err)
		}
		if err := q.ready(); err == nil || !strings.Contains(err.Error(), "has results already") {
			t.Error(err)
		}
	}
}

// Each part is told when to end: its share of what is left, so that no part takes another's time, and a part that was early leaves the rest to all others.
func TestSuiteSharesItsTime(t *testing.T) {
	const took = 300 * time.Millisecond
	var due [2]time.Duration
	at := func(i int, d time.Duration) func(context.Context, *cobra.Command) error {
		return func(ctx context.Context, _ *cobra.Command) error {
			due[i] = time.Until(dueOf(ctx))
			time.Sleep(d)
			return nil
		}
	}
	withScenarios(t, pretend("a", 1, at(0, took)), pretend("b", 2, at(1, 0)))
	q, _ := testSuite(t, reserve+40*time.Second)
	q.list[1].short = &stint{seconds: 30}
	if err := q.measure(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	if due[0] > 10*time.Second || due[0] < 9*time.Second || due[1] > 40*time.Second-took || due[1] < 38*time.Second {
		t.Errorf("the first had %s of 40 s, a quarter is its part, and the second the rest, %s", due[0], due[1])
	}
	if !dueOf(t.Context()).IsZero() || within(time.Hour, time.Time{}) != time.Hour {
		t.Error("who is run alone has less time than it needs")
	}
}

// Rounds are begun while the longest so far would end in time; the first always is.
func TestPacer(t *testing.T) {
	at := time.Unix(1000, 0)
	second := func(n float64) time.Time { return at.Add(time.Duration(n * float64(time.Second))) }
	p := pacer{due: second(10)}
	for i, step := range []struct {
		at   float64
		want bool
	}{{0, true}, {3, true}, {7, false}} { // of 3 s and 4 s
		if got := p.fits(second(step.at)); got != step.want {
			t.Errorf("round %d at %v s: %v", i+1, step.at, got)
		}
	}
	// What the first round did besides is not expected of the next one, or it is.
	for _, c := range []struct {
		next float64
		want bool
	}{{0, true}, {2.5, false}} {
		p := pacer{due: second(6)}
		p.fits(second(0))
		p.aside, p.next = second(2.5).Sub(second(0)), second(c.next).Sub(second(0))
		if got := p.fits(second(4)); got != c.want {
			t.Errorf("a round of 4 s, 2.5 of them besides, and 2 s left, %v s besides in the next one: %v", c.next, got)
		}
	}
	late := pacer{due: second(-1)}
	if !late.fits(second(0)) || late.fits(second(1)) {
		t.Error("past its time a part measures one round")
	}
	if free := (pacer{}); !free.fits(second(0)) || !free.fits(second(1e6)) {
		t.Error("a part without an end was ended")
	}
	if d := share(at, second(90), 1, 3); !d.Equal(second(30)) {
		t.Errorf("a third of 90 s ends at %v", d)
	}
}

// What a case has no time for is said, with how much of it there is, and the sides have as many turns as each other.
func TestTurnsEndInTime(t *testing.T) {
	q := traffic{Trials: 5, Progress: io.Discard, out: &report.Output{}, due: time.Now().Add(25 * time.Millisecond)}
	turns := map[string]int{}
	if err := q.inTurns("64B/64k/nat44", []string{"demarc", "kernel"}, func(side string) (*turn, error) {
		turns[side]++
		time.Sleep(10 * time.Millisecond)
		return &turn{}, nil
	}); err != nil {
		t.Fatal(err)
	}
	if turns["demarc"] != 1 || turns["kernel"] != 1 || !slices.Equal(q.notes, []string{"for want of time: 64B/64k/nat44: 1 of 5 turns of each side"}) {
		t.Errorf("%v turns, notes %q", turns, q.notes)
	}
	// Looking for rates in the first round is not taken for what a round takes; where the next one looks too it is.
	for looks, want := range map[int]int{1: 5, 2: 1} {
		q := traffic{Trials: 5, Progress: io.Discard, out: &report.Output{}, due: time.Now().Add(1100 * time.Millisecond), looks: looks}
		n := 0
		if err := q.inTurns("64B/64k/nat44", []string{"demarc"}, func(string) (*turn, error) {
			if n++; n == 1 {
				time.Sleep(600 * time.Millisecond)
				q.aside += 600 * time.Millisecond
			}
			return &turn{}, nil
		}); err != nil || n != want {
			t.Errorf("%d rounds look for rates: %d turns, %v; want %d", looks, n, err, want)
		}
	}
	// A case that there is no time for at all is named too.
	q = traffic{Trials: 1, Progress: io.Discard, Cases: []flowCase{{Size: "64", Flows: 1 << 40}, {Size: "64", Flows: 64}}}
	if err := q.each(withDue(t.Context(), time.Now().Add(-time.Second)), nil, nil); err == nil {
		t.Error("the first case was left out")
	}
}

func TestTimeLeft(t *testing.T) {
	s := timeScale{total: 100}
	if left, part := s.left(40, 10); left != 90 || part != 0.1 {
		t.Errorf("%v left, part %v", left, part)
	}
	// A part that takes too long is about to end, and the bar does not go back.
	if left, part := s.left(40, 60); left != 65 || part <= 0.1 {
		t.Errorf("%v left, part %v", left, part)
	}
	// Those that took twice as long say that the others will.
	s.done, s.took = 50, 100
	if left, _ := s.left(50, 0); left != 100 {
		t.Errorf("%v left", left)
	}
	s.done, s.took = 100, 200
	if left, part := s.left(0, 0); left != 0 || part != 1 {
		t.Errorf("%v left, part %v", left, part)
	}
}

func TestBar(t *testing.T) {
	got := bar(80, 0.5, 390, 2, 9, "acl", "10,000 rules\x1b[31m: "+strings.Repeat("x", 80))
	if n := len([]rune(got)); n != 79 || !strings.HasPrefix(got, "[██████████░░░░░░░░░░]  50 %  6:30 min left  2/9 acl: 10,000 rules") || strings.ContainsAny(got, "\x1b\n") {
		t.Errorf("%d wide: %q", n, got)
	}
	for seconds, want := range map[float64]string{0: "0 s", 59.6: "60 s", 125: "2:05 min", 11100: "3:05 h"} {
		if got := span(seconds); got != want {
			t.Errorf("%v s is %q, want %q", seconds, got, want)
		}
	}
}

// A lock file that its holder has removed is nobody's.
func TestTakeFile(t *testing.T) {
	name := filepath.Join(t.TempDir(), "lock")
	a, err := takeFile(name)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := takeFile(name); err == nil || !strings.Contains(err.Error(), "another bench runs on this machine") {
		t.Error(err)
	}
	if err := errors.Join(os.Remove(name), a.Close()); err != nil {
		t.Fatal(err)
	}
	b, err := takeFile(name)
	if err != nil {
		t.Fatal(err)
	}
	b.Close()
}
