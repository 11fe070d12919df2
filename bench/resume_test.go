package bench

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/spf13/cobra"

	"demarc/bench/report"
)

// Parts of a table have together what the table has, and nothing twice.
func TestPartsAreTheWholeTable(t *testing.T) {
	cases := map[string]int{}
	rows := map[string]int{}
	for _, s := range scenarios() {
		if s.full == nil {
			continue
		}
		for _, u := range inParts(planFull, []scenario{s}) {
			c := s.command()
			if err := c.ParseFlags(u.full.args); err != nil {
				t.Fatal(err)
			}
			list := func(flag string) []string {
				v, err := c.Flags().GetStringSlice(flag)
				if err != nil {
					t.Fatal(err)
				}
				return v
			}
			switch s.name {
			case "throughput", "latency":
				f := flowFlags{sizes: list("sizes"), families: list("family"), directions: list("direction"), flows: list("flows")}
				got, err := f.cases()
				if err != nil {
					t.Fatal(err)
				}
				for i := range got {
					cases[s.name]++
					if rows[s.name+got[i].name()]++; rows[s.name+got[i].name()] > 1 {
						t.Errorf("%s %s is in two parts", s.name, got[i].name())
					}
				}
			case "failover":
				names := list("rows")
				for _, n := range names {
					cases[s.name]++
					if rows[n]++; rows[n] > 1 {
						t.Errorf("row %s is in two parts", n)
					}
				}
				if slices.Contains(names, "keepalived/gated") && !slices.Contains(names, "gone") {
					t.Error("keepalived is not beside the row that it is held against")
				}
			}
		}
	}
	if cases["throughput"] != 5*3*2*3 || cases["latency"] != 2*2*2*2 || cases["failover"] != len(failoverRows) {
		t.Errorf("%v", cases)
	}
}

// inThree is a scenario whose full plan has three parts, each with a figure of its own; what fails in a part is said by fail.
func inThree(ran *[]string, fail func(part string) error) scenario {
	command := func() *cobra.Command {
		c := &cobra.Command{Use: "a"}
		kase := c.Flags().String("case", "", "")
		c.Flags().Bool("json", false, "")
		c.RunE = func(cmd *cobra.Command, _ []string) error {
			*ran = append(*ran, *kase)
			out := report.Output{Schema: report.Schema, Machine: report.Machine{Mode: "copy"}}
			out.Add(report.Row{Scenario: "a", Case: *kase, Metric: "rate", Unit: "Mpps", Better: report.Higher, Side: report.Us, Values: []float64{float64(len(*ran))}, Digits: 3})
			out.Judge()
			return errors.Join(fail(*kase), out.JSON(cmd.OutOrStdout()))
		}
		return c
	}
	three := &stint{seconds: 30, memoryMiB: 1, parts: []part{{[]string{"--case", "x"}, 10}, {[]string{"--case", "y"}, 10}, {[]string{"--case", "z"}, 10}}}
	return scenario{place: 1, name: "a", about: "about a", command: command, full: three, table: three}
}

// A run that ended early goes on: what it had measured stays as it was, what was not whole is measured again, and the result is one of the whole plan.
func TestResume(t *testing.T) {
	var ran []string
	broken := errors.New("no devices")
	withScenarios(t, inThree(&ran, func(p string) error {
		if p == "y" {
			return broken
		}
		return nil
	}))
	begin := func(dir string, resume bool, within time.Duration) (q *suite, err error) {
		q = &suite{Plan: planFull, Resume: resume, Dir: dir, commit: "abc", Budget: within, Progress: &strings.Builder{}, sweep: func() ([]string, error) { return nil, nil }}
		if err := q.choose(); err != nil {
			t.Fatal(err)
		}
		if resume {
			if err := q.resume(); err != nil {
				return q, err
			}
		}
		return q, q.measure(t.Context(), nil)
	}
	dir := t.TempDir()
	// There is time for none, then for all, one of which fails.
	q, err := begin(dir, false, reserve+5*time.Second)
	if r := resultsOf(t, q); err == nil || !strings.Contains(err.Error(), "a-1 to 3): demarc bench --resume "+dir) || len(ran) != 0 || r.Partial != "not measured yet: a-1 to 3" {
		t.Fatalf("%v; %q; partial %q", err, ran, r.Partial)
	}
	q, err = begin(dir, true, 0)
	r := resultsOf(t, q)
	if err == nil || !strings.Contains(err.Error(), "a-2: no devices") || len(r.Results) != 3 || r.Partial != "a was not measured to its end (no devices)" {
		t.Fatalf("%v; %d results; partial %q", err, len(r.Results), r.Partial)
	}
	began := r.Began
	broken = nil
	q, err = begin(dir, true, 0)
	r = resultsOf(t, q)
	if err != nil || r.Partial != "" || strings.Join(ran, "") != "xyzy" {
		t.Fatalf("%v; ran %q; partial %q", err, ran, r.Partial)
	}
	for i, want := range []float64{1, 4, 3} { // in the order of the plan, and those that were whole are the first run's
		if r.Results[i].Demarc.Median != want {
			t.Errorf("figure %d is %+v, want %v", i, r.Results[i], want)
		}
	}
	if r.Began != began || len(r.Scenarios) != 3 || strings.Join(r.Scenarios[1].Args, " ") != "a --case y" {
		t.Errorf("%q %+v", r.Began, r.Scenarios)
	}
	if b, err := os.ReadFile(filepath.Join(dir, reportFile)); err != nil || strings.Count(string(b), "bench a --case") < 3 {
		t.Errorf("%v: the page does not say how to repeat each part", err)
	}
	// Nothing is left: the files are made once more, and nothing runs.
	if err := os.Chtimes(filepath.Join(dir, resultsFile), time.Unix(1, 0), time.Unix(1, 0)); err != nil {
		t.Fatal(err)
	}
	if q, err = begin(dir, true, 0); err != nil || len(ran) != 4 || resultsOf(t, q).Partial != "" {
		t.Errorf("%v; ran %q", err, ran)
	}
	if at, err := os.Stat(filepath.Join(dir, resultsFile)); err != nil || at.ModTime().Unix() == 1 {
		t.Errorf("the results are those of before: %v, %v", at, err)
	}
	// A part of another plan, or one that is no JSON, is not taken for one of this.
	for _, text := range []string{"{", `{"schema":1,"scenarios":[{"name":"a","args":["a","--case","q"]}]}`} {
		if err := os.WriteFile(filepath.Join(dir, partsDir, "a-1.json"), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		if _, err := begin(dir, true, 0); err == nil || !strings.Contains(err.Error(), "a-1.json") {
			t.Errorf("%s: %v", text, err)
		}
	}
	if _, err := begin(t.TempDir(), true, 0); err == nil || !strings.Contains(err.Error(), "no run to go on with") {
		t.Error(err)
	}
}

// Of a plan some scenarios can be asked for: what lacks is told of these, and that others were not asked for.
func TestPartsOfSome(t *testing.T) {
	var ran []string
	other := inThree(&ran, func(string) error { return nil })
	other.name, other.place = "b", 2
	withScenarios(t, inThree(&ran, func(string) error { return nil }), other)
	dir := t.TempDir()
	for _, c := range []struct {
		only, partial string
		within        time.Duration
	}{{"a", "not measured yet: a-1 to 3; only a was asked for", reserve + 5*time.Second}, {"a", "only a was asked for", 0}, {"b", "", 0}} {
		_, err := os.Stat(filepath.Join(dir, resultsFile))
		q := &suite{Plan: planTable, Only: []string{c.only}, Resume: err == nil, Dir: dir, commit: "abc", Budget: c.within, Progress: &strings.Builder{}, sweep: func() ([]string, error) { return nil, nil }}
		if err := q.choose(); err != nil {
			t.Fatal(err)
		}
		if q.Resume {
			if err := q.resume(); err != nil {
				t.Fatal(err)
			}
		}
		_ = q.measure(t.Context(), nil) // what it could not do is what is looked at
		if r := resultsOf(t, q); r.Partial != c.partial || r.Plan != "table" || planOf(dir) != planTable {
			t.Errorf("%q of plan %s, want %q", r.Partial, r.Plan, c.partial)
		}
	}
	if strings.Join(ran, "") != "xyzxyz" {
		t.Errorf("ran %q", ran)
	}
}

// The plan of the table has each row of it: what a sample is to show. No case is in two parts.
func TestTableHasEachRow(t *testing.T) {
	has := map[string]bool{}
	seen := map[string]int{}
	all := 0.0
	for _, s := range scenarios() {
		for _, u := range inParts(planTable, []scenario{s}) {
			if u.table == nil {
				continue
			}
			all += u.table.seconds
			if u.table.seconds > 1200 && u.name != "soak" {
				t.Errorf("%s takes %.0f s: it is no bite", u.key(), u.table.seconds)
			}
			c := s.command()
			if err := c.ParseFlags(append(slices.Clone(u.table.args), "--json", "--binary", "x")); err != nil {
				t.Errorf("%s: %v", u.key(), err)
			}
			add := func(flag string) (list []string) {
				f := c.Flags().Lookup(flag)
				if f == nil {
					t.Fatalf("%s has no --%s", s.name, flag)
				}
				for v := range strings.SplitSeq(strings.Trim(f.Value.String(), "[]"), ",") {
					has[s.name+" "+flag+" "+v] = true
					list = append(list, v)
				}
				return list
			}
			switch s.name {
			case "throughput", "latency":
				f := flowFlags{sizes: add("sizes"), families: add("family"), directions: add("direction"), flows: add("flows")}
				got, err := f.cases()
				if err != nil {
					t.Fatal(err)
				}
				if s.name == "throughput" && !c.Flags().Changed("sizes") {
					got = shortCases()
				}
				for i := range got {
					name := got[i].name() + fmt.Sprint(!slices.Contains(add("offload"), never))
					if seen[s.name+name]++; seen[s.name+name] > 1 {
						t.Errorf("%s %s is in two parts", s.name, name)
					}
					has[fmt.Sprintf("%s of %d flows", s.name, got[i].Flows)] = true
				}
			case "acl":
				add("lists")
			case "tcp":
				add("streams")
			case "voip":
				add("calls")
			case "fairness":
				add("tenants")
			case "sessions":
				add("sessions")
			case "soak":
				add("for")
			case "failover", "cluster":
				if c.Flags().Changed("rows") {
					t.Errorf("%s: not all rows", u.key())
				}
			}
			has[s.name] = true
		}
	}
	for name, list := range map[string]string{
		"throughput sizes": "64 128 512 1518 imix", "throughput family": "4 6", "throughput direction": "out in both", "latency flows": "1 64k",
		"sessions sessions": "4194304", "acl lists": "10 100 1000 10000 100000", "tcp streams": "1 16", "fairness tenants": "64 1024", "voip calls": "512 1024 2048 4096", "soak for": "1h0m0s",
	} {
		for v := range strings.FieldsSeq(list) {
			if !has[name+" "+v] {
				t.Errorf("the plan lacks %s %s", name, v)
			}
		}
	}
	for _, name := range []string{"throughput of 1 flows", "throughput of 65536 flows", "throughput of 1048576 flows", "generator", "latency", "churn", "cluster", "failover"} {
		if !has[name] {
			t.Errorf("the plan lacks %s", name)
		}
	}
	if all > 2.5*3600 {
		t.Errorf("it takes %.0f s", all)
	}
	t.Logf("%.0f s", all)
}

// An interruption leaves what is whole, and does not keep the part that it ended.
func TestResumeAfterInterruption(t *testing.T) {
	var ran []string
	ctx, cancel := context.WithCancel(t.Context())
	withScenarios(t, inThree(&ran, func(p string) error {
		if p == "y" {
			cancel()
			return ctx.Err()
		}
		return nil
	}))
	q := &suite{Plan: planFull, Dir: t.TempDir(), Progress: &strings.Builder{}, sweep: func() ([]string, error) { return nil, nil }}
	if err := q.choose(); err != nil {
		t.Fatal(err)
	}
	err := q.measure(ctx, nil)
	kept, _ := filepath.Glob(filepath.Join(q.Dir, partsDir, "*"))
	if err == nil || len(kept) != 1 || filepath.Base(kept[0]) != "a-1.json" || strings.Join(ran, "") != "xy" {
		t.Errorf("%v; kept %q, ran %q", err, kept, ran)
	}
	if r := resultsOf(t, q); r.Partial != "a was not measured to its end (interrupted); not measured yet: a-3" {
		t.Errorf("partial %q", r.Partial)
	}
}

// Figures of another program or machine are not put together with these.
func TestResumeRefusesStrangers(t *testing.T) {
	base := report.Output{Schema: report.Schema, Plan: "full", Commit: "abc", Machine: report.Machine{Kernel: "6.1", CPU: "x", CPUs: 2, MemoryMiB: 100, Demarc: "abc", Go: "go1"}}
	was := base
	was.Machine.Mode, was.Machine.Asked, was.Machine.Nft = "copy", "auto", "1.0"
	now := base
	now.Machine.Nft = "1.0"
	if why := strangers(&was, &now); why != nil {
		t.Errorf("the same, and refused: %q", why)
	}
	for want, change := range map[string]func(*report.Output){
		"schema":          func(o *report.Output) { o.Schema++ },
		"plan":            func(o *report.Output) { o.Plan = "short" },
		"commit":          func(o *report.Output) { o.Commit = "abd" },
		"built of (abc-c": func(o *report.Output) { o.Commit = "abc" + changedTree },
		"built of (abc-d": func(o *report.Output) { o.Commit = "abc-dirty" },
		"built of (none)": func(o *report.Output) { o.Commit = "" },
		"version":         func(o *report.Output) { o.Machine.Demarc = "abd" },
		"Go":              func(o *report.Output) { o.Machine.Go = "go2" },
		"nftables":        func(o *report.Output) { o.Machine.Nft = "1.1" },
		"kernel":          func(o *report.Output) { o.Machine.Kernel = "6.2" },
		"CPUs":            func(o *report.Output) { o.Machine.CPUs = 4 },
		"memory":          func(o *report.Output) { o.Machine.MemoryMiB = 200 },
	} {
		other := now
		change(&other)
		if why := strangers(&was, &other); !strings.Contains(strings.Join(why, "; "), want) {
			t.Errorf("%s: %q", want, why)
		}
	}
	if got := keyWords([]string{"generator", "a-1", "a-2", "a-4", "b-3", "c"}); got != "generator, a-1 to 2, a-4, b-3, c" {
		t.Error(got)
	}
	// What stands in a file is what is compared.
	b, err := json.Marshal(was)
	if err != nil || !strings.Contains(string(b), `"commit":"abc"`) {
		t.Errorf("%v: %s", err, b)
	}
}
