package main

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestRecordJudges feeds the record what go test says in each case that must fail a run, and in those that must not.
func TestRecordJudges(t *testing.T) {
	const good = `{"Action":"run","Package":"p/a","Test":"TestA"}
{"Action":"output","Package":"p/a","Test":"TestA","Output":"    a_test.go:1: figure: 12 executions, seed 7\n"}
{"Action":"pass","Package":"p/a","Test":"TestA","Elapsed":1.5}
{"Action":"pass","Package":"p/a","Elapsed":2}
`
	for _, c := range []struct {
		name, events string
		ci           bool
		want         string // of the error
		prints       string
		printsNot    string
	}{
		{name: "passed", events: good, prints: "TestA: 12 executions, seed 7"},
		{name: "package without tests", events: good + `{"Action":"skip","Package":"p/b"}`, ci: true, printsNot: "p/b"},
		{name: "nothing ran", events: "", want: "no test ran"},
		{name: "skip at home", events: good + `{"Action":"skip","Package":"p/a","Test":"TestB"}`},
		{name: "skip in CI", events: good + `{"Action":"skip","Package":"p/a","Test":"TestB"}`, ci: true, want: "a.TestB was skipped"},
		{name: "failed", events: good + `{"Action":"output","Package":"p/b","Test":"TestB","Output":"b_test.go:3: wrong\n"}
{"Action":"fail","Package":"p/b","Test":"TestB"}
{"Action":"fail","Package":"p/b","Elapsed":1}`, want: "b.TestB failed", prints: "b_test.go:3: wrong"},
		{name: "what passed stays quiet in a package that failed", events: `{"Action":"output","Package":"p/b","Test":"TestB","Output":"chatter\n"}
{"Action":"pass","Package":"p/b","Test":"TestB"}
{"Action":"fail","Package":"p/b"}`, want: "p/b failed", printsNot: "chatter"},
		{name: "panicked", events: `{"Action":"run","Package":"p/b","Test":"TestB"}
{"Action":"output","Package":"p/b","Test":"TestB","Output":"panic: oh\n"}
{"Action":"fail","Package":"p/b"}`, want: "b.TestB began and did not end", prints: "panic: oh"},
		{name: "did not build", events: `{"ImportPath":"p/b","Action":"build-output","Output":"b.go:1: undefined: x\n"}
{"ImportPath":"p/b","Action":"build-fail"}
{"Action":"fail","Package":"p/b","FailedBuild":"p/b"}`, want: "p/b failed", prints: "undefined: x"},
		{name: "not of test2json", events: good + "warning: of the tool\n", prints: "warning: of the tool"},
	} {
		t.Run(c.name, func(t *testing.T) {
			var out strings.Builder
			r := newRecord(&out)
			if err := r.read(strings.NewReader(c.events)); err != nil {
				t.Fatal(err)
			}
			err := r.verdict(c.ci)
			switch {
			case c.want == "" && err != nil:
				t.Errorf("refused: %v", err)
			case c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)):
				t.Errorf("got %v, want %q", err, c.want)
			case !strings.Contains(out.String(), c.prints) || c.printsNot != "" && strings.Contains(out.String(), c.printsNot):
				t.Errorf("printed %q", out.String())
			}
		})
	}
}

// TestRunIsHonest runs the program on a module that it makes, with go test itself.
func TestRunIsHonest(t *testing.T) {
	const ok = "package x\nimport \"testing\"\nfunc TestX(t *testing.T) {}\n"
	for _, c := range []struct{ name, test, ci, want string }{
		{"passes", ok, "", ""},
		{"fails", strings.Replace(ok, "{}", "{ t.Fatal(1) }", 1), "", "x.TestX failed"},
		{"panics", strings.Replace(ok, "{}", "{ panic(1) }", 1), "", "exit status 1"},
		{"exits early with a good status", strings.Replace(ok, "{}", "{ os.Exit(0) }", 1) + "", "", "exit status 1"},
		{"does not build", ok + "var y = nothing\n", "", "exit status 1"},
		{"skips at home", strings.Replace(ok, "{}", "{ t.Skip() }", 1), "", ""},
		{"skips in CI", strings.Replace(ok, "{}", "{ t.Skip() }", 1), "1", "was skipped"},
		{"no tests", "package x\n", "", "no test ran"},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			if strings.Contains(c.test, "os.") {
				c.test = strings.Replace(c.test, "import \"testing\"", "import (\n\"os\"\n\"testing\"\n)", 1)
			}
			for name, text := range map[string]string{"go.mod": "module x\ngo 1.24\n", "x_test.go": c.test} {
				if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			t.Chdir(dir)
			t.Setenv("CI", c.ci)
			var out strings.Builder
			err := run(&out, "", filepath.Join(dir, "build", "record.txt"), 3, []string{"-count=1", "./..."})
			if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
				t.Errorf("got %v, want %q\n%s", err, c.want, out.String())
			}
			if b, e := os.ReadFile(filepath.Join(dir, "build", "record.txt")); e != nil || c.name == "passes" && !strings.Contains(string(b), "x TestX") {
				t.Errorf("the record: %q, %v", b, e)
			}
		})
	}
}

func TestSecondRunIsInTheSameRecord(t *testing.T) {
	dir := t.TempDir()
	for name, text := range map[string]string{"go.mod": "module x\ngo 1.24\n", "a/a_test.go": "package a\nimport \"testing\"\nfunc TestA(t *testing.T) { t.Fail() }\n",
		"b/b_test.go": "package b\nimport \"testing\"\nfunc TestB(t *testing.T) {}\n"} {
		file := filepath.Join(dir, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(file), 0o755), os.WriteFile(file, []byte(text), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	t.Chdir(dir)
	var out strings.Builder
	err := run(&out, "", filepath.Join(dir, "record.txt"), 3, []string{"-count=1", "./a", "--", "-count=1", "./b"})
	b, e := os.ReadFile(filepath.Join(dir, "record.txt"))
	if err == nil || e != nil || !strings.Contains(string(b), "TestA") || !strings.Contains(string(b), "TestB") {
		t.Errorf("a failed first run and a good second one: got %v, %v, record %q\n%s", err, e, b, out.String())
	}
}

func TestSummaryNamesTheSlowest(t *testing.T) {
	var out strings.Builder
	r := newRecord(&out)
	for name, s := range map[string]float64{"TestA": 1, "TestB": 30, "TestB/part": 29, "TestC": 5} {
		*r.of("p/a", name) = result{"p/a", name, "pass", s}
	}
	r.summary(2, time.Minute)
	got := out.String()
	if !strings.Contains(got, "4 tests passed") || strings.Contains(got, "part") || strings.Contains(got, "TestA") || strings.Index(got, "TestB") > strings.Index(got, "TestC") {
		t.Errorf("%s", got)
	}
}
