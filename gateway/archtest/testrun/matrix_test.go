package main

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const pageFile = "../../../docs/rfc.md"

func pageOf(t *testing.T) (string, matrix) {
	t.Helper()
	b, err := os.ReadFile(pageFile)
	if err != nil {
		t.Fatal(err)
	}
	m, err := parseMatrix(string(b))
	if err != nil {
		t.Fatal(err)
	}
	return string(b), m
}

// functions lists every test function of the project as the page names them, and how often each name occurs.
func functions(t *testing.T) map[string]int {
	t.Helper()
	found := map[string]int{}
	err := filepath.WalkDir("../../..", func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() && (d.Name() == ".git" || d.Name() == "testdata") {
			return cmpErr(err, fs.SkipDir)
		}
		if !strings.HasSuffix(name, "_test.go") {
			return nil
		}
		f, err := parser.ParseFile(token.NewFileSet(), name, nil, parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		for _, d := range f.Decls {
			if fn, ok := d.(*ast.FuncDecl); ok && fn.Recv == nil && strings.HasPrefix(fn.Name.Name, "Test") {
				found[filepath.Base(filepath.Dir(name))+"."+fn.Name.Name]++
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}

func cmpErr(a, b error) error {
	if a != nil {
		return a
	}
	return b
}

// TestPageIsComplete holds docs/rfc.md as it stands against the requirements and against the tests that there are. Whether those ran is
// for a run of all of them to say.
func TestPageIsComplete(t *testing.T) {
	_, m := pageOf(t)
	if err := m.complete(requirements()); err != nil {
		t.Error(err)
	}
	have := functions(t)
	for _, r := range m.rows {
		for _, name := range r.tests {
			top, _, _ := strings.Cut(name, "/")
			if have[top] != 1 {
				t.Errorf("%s: %s exists %d times", r.id, top, have[top])
			}
		}
	}
	t.Logf("%s", m.count())
}

// TestRequirementList holds the built-in list to its form, and to how many requirements the texts have.
func TestRequirementList(t *testing.T) {
	count, seen := map[string]int{}, map[string]bool{}
	for _, r := range requirements() {
		if !idForm.MatchString(r.id) || !strengths[r.strength] || seen[r.id] {
			t.Errorf("%+v", r)
		}
		seen[r.id] = true
		count[r.id[:4]]++
	}
	for i, n := range map[string]int{"4787": 14, "5382": 10} {
		for k := range n {
			if id := i + " REQ-" + string(rune('0'+(k+1)/10)) + string(rune('0'+(k+1)%10)); !seen[strings.Replace(id, "REQ-0", "REQ-", 1)] {
				t.Errorf("%s is not in the list", id)
			}
		}
	}
	for k, n := range map[string]int{"4787": 27, "5382": 19, "5508": 45, "7857": 23} {
		if count[k] != n {
			t.Errorf("RFC %s: %d entries, want %d", k, count[k], n)
		}
	}
}

// TestPageFaults breaks the page in each way that must be noticed.
func TestPageFaults(t *testing.T) {
	const page = `
# Words before a table

| requirement | strength | in short | what we do | tests |
|---|---|---|---|---|
| 4787 REQ-1 | MUST | mapping | yes | ` + "`nat.TestMap`, `pipeline.TestFlow/one_case`" + ` |
| 4787 REQ-2 | SHOULD | pairs | by choice (` + "`nat.pooling`" + `) | ` + "`nat.TestMap`" + ` |
| 4787 REQ-7 | MUST | conflicts | not applicable: addresses are configured | |
| 7857 3 | MAY | overlap | not met: it would share a port between hosts | |
`
	want := []requirement{{"4787 REQ-1", "MUST"}, {"4787 REQ-2", "SHOULD"}, {"4787 REQ-7", "MUST"}, {"7857 3", "MAY"}}
	const log = `{"Action":"run","Package":"demarc/gateway/nat","Test":"TestMap"}
{"Action":"pass","Package":"demarc/gateway/nat","Test":"TestMap","Elapsed":0.5}
{"Action":"pass","Package":"demarc/gateway/nat","Elapsed":0.5}
{"Action":"run","Package":"demarc/gateway/pipeline","Test":"TestFlow"}
{"Action":"run","Package":"demarc/gateway/pipeline","Test":"TestFlow/one_case"}
{"Action":"pass","Package":"demarc/gateway/pipeline","Test":"TestFlow/one_case"}
{"Action":"pass","Package":"demarc/gateway/pipeline","Test":"TestFlow"}
{"Action":"pass","Package":"demarc/gateway/pipeline"}
`
	for _, c := range []struct {
		name          string
		old, now      string // of the page
		oldLog, nowLg string
		want          string // of the error; "" = none
	}{
		{name: "whole"},
		{name: "requirement missing", old: "| 4787 REQ-2 |", now: "| about |", want: "4787 REQ-2 (SHOULD) is missing"},
		{name: "twice", old: "| 7857 3 | MAY | overlap", now: "| 4787 REQ-7 | MUST | again", want: "4787 REQ-7 is there twice"},
		{name: "invented", old: "| 7857 3 |", now: "| 7857 99 |", want: "7857 99: there is no such requirement"},
		{name: "weakened", old: "| 4787 REQ-1 | MUST", now: "| 4787 REQ-1 | MAY", want: "4787 REQ-1 is a MUST, not a MAY"},
		{name: "no such strength", old: "| 4787 REQ-1 | MUST", now: "| 4787 REQ-1 | WILL", want: `strength "WILL"`},
		{name: "claimed without a test", old: "`nat.TestMap` |", now: " |", want: "claimed without a test"},
		{name: "test not written as one", old: "addresses are configured | |", now: "addresses are configured | see the model |", want: "names no test"},
		{name: "no answer", old: "not met: it would", now: "perhaps it would", want: "7857 3: answer"},
		{name: "column lost", old: "| 7857 3 | MAY | overlap |", now: "| 7857 3 | MAY |", want: "7857 3: 4 columns"},
		{name: "unknown test", old: "`nat.TestMap`, ", now: "`nat.TestNone`, ", want: "nat.TestNone did not run"},
		{name: "unknown package", old: "`nat.TestMap`, ", now: "`fib.TestMap`, ", want: "fib.TestMap did not run"},
		{name: "unknown subtest", old: "one_case", now: "two_cases", want: "pipeline.TestFlow/two_cases did not run"},
		{name: "skipped", oldLog: `{"Action":"pass","Package":"demarc/gateway/nat","Test":"TestMap"`, nowLg: `{"Action":"skip","Package":"demarc/gateway/nat","Test":"TestMap"`, want: "nat.TestMap ended as skip"},
		{name: "failed", oldLog: `{"Action":"pass","Package":"demarc/gateway/nat","Test":"TestMap"`, nowLg: `{"Action":"fail","Package":"demarc/gateway/nat","Test":"TestMap"`, want: "nat.TestMap ended as fail"},
		{name: "subtest skipped", oldLog: `{"Action":"pass","Package":"demarc/gateway/pipeline","Test":"TestFlow/one_case"`, nowLg: `{"Action":"skip","Package":"demarc/gateway/pipeline","Test":"TestFlow/one_case"`, want: "TestFlow/one_case ended as skip"},
		{name: "never ended", oldLog: `{"Action":"pass","Package":"demarc/gateway/nat","Test":"TestMap","Elapsed":0.5}` + "\n", want: "nat.TestMap ended as run"},
		{name: "one name in two packages", oldLog: `{"Action":"pass","Package":"demarc/gateway/nat","Elapsed":0.5}`, nowLg: `{"Action":"pass","Package":"demarc/other/nat","Test":"TestMap"}`, want: "is in demarc/gateway/nat and in demarc/other/nat"},
	} {
		t.Run(c.name, func(t *testing.T) {
			text, events := page, log
			if c.old != "" {
				if !strings.Contains(text, c.old) {
					t.Fatalf("the page has no %q", c.old)
				}
				text = strings.Replace(text, c.old, c.now, 1)
			}
			if c.oldLog != "" {
				if !strings.Contains(events, c.oldLog) {
					t.Fatalf("the log has no %q", c.oldLog)
				}
				events = strings.Replace(events, c.oldLog, c.nowLg, 1)
			}
			m, err := parseMatrix(text)
			r := newRecord(new(strings.Builder))
			if e := r.read(strings.NewReader(events)); e != nil {
				t.Fatal(e)
			}
			all := []string{}
			for _, e := range []error{err, m.complete(want), m.ran(r)} {
				if e != nil {
					all = append(all, e.Error())
				}
			}
			got := strings.Join(all, "\n")
			if c.want == "" && got != "" || !strings.Contains(got, c.want) {
				t.Errorf("got %q, want %q", got, c.want)
			}
		})
	}
}

// TestEveryRowOfThePageIsNeeded takes each row out of the real page, and renames each test: both must be noticed.
func TestEveryRowOfThePageIsNeeded(t *testing.T) {
	text, m := pageOf(t)
	lines := strings.SplitAfter(text, "\n")
	for _, r := range m.rows {
		i := slices.IndexFunc(lines, func(l string) bool { return strings.HasPrefix(l, "| "+r.id+" |") })
		if i < 0 {
			t.Fatalf("%s: no line begins with it", r.id)
		}
		rest, err := parseMatrix(strings.Join(slices.Concat(lines[:i], lines[i+1:]), ""))
		if err != nil {
			t.Fatal(err)
		}
		if err := rest.complete(requirements()); err == nil || !strings.Contains(err.Error(), r.id+" (") {
			t.Errorf("%s taken out: %v", r.id, err)
		}
	}
	all := newRecord(new(strings.Builder))
	for _, r := range m.rows {
		for _, name := range r.tests {
			pkg, test, _ := strings.Cut(name, ".")
			all.of("demarc/"+pkg, test).Action = "pass"
		}
	}
	if err := m.ran(all); err != nil {
		t.Fatal(err)
	}
	for _, res := range all.order {
		for _, a := range []string{"skip", "fail", "run"} {
			res.Action = a
			if m.ran(all) == nil {
				t.Errorf("%s %s ended as %s and nobody noticed", res.Package, res.Test, a)
			}
		}
		res.Action = "pass"
	}
}
