package bench

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"demarc/bench/report"
)

// resultsFileOf writes results with one rate, or with a damage, and returns the file.
func resultsFileOf(t *testing.T, name string, rate float64, spoil func(*report.Output)) string {
	t.Helper()
	o := &report.Output{Schema: report.Schema, Began: name, Machine: report.Machine{CPU: "EPYC", CPUs: 2, Mode: "copy"}}
	for _, side := range []string{report.Us, "kernel"} {
		o.Add(report.Row{Scenario: "throughput", Case: "64B", Metric: "rate", Unit: "Mpps", Better: report.Higher, Side: side, Values: []float64{rate, rate * 1.01, rate * 0.99, rate * 1.02}, Digits: 4})
	}
	o.Judge()
	if spoil != nil {
		spoil(o)
	}
	dir := filepath.Join(t.TempDir(), name)
	var b bytes.Buffer
	if err := errors.Join(os.Mkdir(dir, 0o755), o.JSON(&b), os.WriteFile(filepath.Join(dir, resultsFile), b.Bytes(), 0o644)); err != nil {
		t.Fatal(err)
	}
	return filepath.Join(dir, resultsFile)
}

func benchCommand(t *testing.T, args ...string) (out string, err error) {
	t.Helper()
	c := Command("")
	var b, e bytes.Buffer
	c.SetOut(&b)
	c.SetErr(&e)
	c.SetArgs(args)
	c.SilenceErrors, c.SilenceUsage = true, true
	err = c.ExecuteContext(t.Context())
	return b.String() + e.String(), err
}

// The exit status says whether something is worse, and a script can tell that from two results that cannot be compared by what is printed.
func TestCompareCommand(t *testing.T) {
	two, one := resultsFileOf(t, "a", 2, nil), resultsFileOf(t, "b", 1, nil)
	other := resultsFileOf(t, "c", 2, func(o *report.Output) { o.Machine.CPU = "Xeon" })
	for _, c := range []struct {
		args []string
		want string // of the error; "" = none
		out  string
	}{
		{[]string{two, one}, "1 figures are worse", "1 worse"},
		{[]string{one, two}, "", "1 better, 0 worse"},
		{[]string{two, two}, "", "1 unresolved"},
		{[]string{filepath.Dir(two), one, "--peers"}, "1 figures are worse", "2 worse"},
		{[]string{two, other}, "CPU: EPYC and Xeon", ""},
		{[]string{two, other, "--any-machine"}, "", "1 unresolved"},
		{[]string{two, one, "--json"}, "1 figures are worse", `"verdict":"worse"`},
		{[]string{two, filepath.Join(t.TempDir(), "x")}, "no such file", ""},
		{[]string{two}, "want two results files", ""},
	} {
		out, err := benchCommand(t, append([]string{"compare"}, c.args...)...)
		if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) || !strings.Contains(out, c.out) {
			t.Errorf("%q: %v, want %q\n%s", c.args, err, c.want, out)
		}
	}
}

func TestReadResultsRefusesWhatIsNone(t *testing.T) {
	file := filepath.Join(t.TempDir(), "x.json")
	for text, want := range map[string]string{"{": "not results of demarc bench", `{"schema":2,"results":[{}]}`: "schema 2; this program reads schema 1", `{"schema":1,"results":[]}`: "no results in it", `[]`: "not results"} {
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		if _, err := readResults(file); err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), file) {
			t.Errorf("%s: %v, want %q", text, err, want)
		}
	}
}

func TestHistoryCommand(t *testing.T) {
	dir := t.TempDir()
	for i, name := range []string{"2026-01-02", "2026-01-01"} {
		b, err := os.ReadFile(resultsFileOf(t, name, float64(2-i), nil))
		if err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(os.Mkdir(filepath.Join(dir, name), 0o755), os.WriteFile(filepath.Join(dir, name, resultsFile), b, 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "other.json"), []byte(`{"a":1}`), 0o644); err != nil {
		t.Fatal(err)
	}
	out, err := benchCommand(t, "history", dir)
	if err != nil || !strings.Contains(out, "left out: ") || strings.Index(out, "2026-01-01") > strings.Index(out, "2026-01-02") || !strings.Contains(out, ") better") {
		t.Errorf("%v\n%s", err, out)
	}
	out, err = benchCommand(t, "history", dir, "--json", "--figure", "64B rate")
	var list []report.Series
	if e := json.Unmarshal([]byte(out[strings.Index(out, "["):strings.LastIndex(out, "]")+1]), &list); err != nil || e != nil || len(list) != 1 || len(list[0].Moments) != 2 {
		t.Errorf("%v %v\n%s", err, e, out)
	}
	for _, args := range [][]string{{dir, "--figure", "nothing"}, {t.TempDir()}, {filepath.Join(dir, "x")}, {}} {
		if _, err := benchCommand(t, append([]string{"history"}, args...)...); err == nil {
			t.Errorf("%q: no error", args)
		}
	}
}

func TestPageCommand(t *testing.T) {
	file := resultsFileOf(t, "a", 2, nil)
	out, err := benchCommand(t, "page", file)
	if err != nil || !strings.HasPrefix(out, "<!DOCTYPE html>") || !strings.Contains(out, "64B") {
		t.Errorf("%v\n%.300s", err, out)
	}
	to := filepath.Join(t.TempDir(), "page.html")
	if _, err := benchCommand(t, "page", filepath.Dir(file), "--out", to); err != nil {
		t.Fatal(err)
	}
	if b, err := os.ReadFile(to); err != nil || string(b) != out {
		t.Errorf("%v: the file is not what is printed", err)
	}
}
