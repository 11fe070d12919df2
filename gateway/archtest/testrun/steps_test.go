package main

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// module makes a module of these files and goes there.
func module(t *testing.T, files map[string]string) {
	t.Helper()
	dir := t.TempDir()
	files["go.mod"] = "module x\ngo 1.24\n"
	for name, text := range files {
		file := filepath.Join(dir, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(file), 0o755), os.WriteFile(file, []byte(text), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	t.Chdir(dir)
	t.Setenv("CI", "")
}

const testHead = "import (\n\"testing\"\n\"x/roottest\"\n)\n"

// The tests of three packages, of which one has both kinds: those that say that they mostly wait are in the one step, the others in the other one, and each of them
// is in exactly one of the two.
func twoKinds() map[string]string {
	return map[string]string{
		"roottest/roottest.go": "package roottest\nimport \"testing\"\nfunc MostlyWaits(t *testing.T) { t.Parallel() }\n",
		"a/a_test.go":          "package a\n" + testHead + "func TestA(t *testing.T) { roottest.MostlyWaits(t); t.Run(\"sub\", func(t *testing.T) {}) }\nfunc TestAB(t *testing.T) {}\nfunc TestB(t *testing.T) {}\n",
		"b/b_test.go":          "package b\n" + testHead + "func mostlyWaits(t *testing.T) { roottest.MostlyWaits(t) }\nfunc TestB(t *testing.T) {\n\tmostlyWaits(t)\n}\n",
		"c/c_test.go":          "package c_test\nimport \"testing\"\nfunc TestA(t *testing.T) {}\n",
	}
}

// ran runs, and is what the record has of tests.
func ran(t *testing.T, args ...string) (text string, err error) {
	t.Helper()
	var out strings.Builder
	err = run(&out, "", "record.txt", 3, args)
	b, rerr := os.ReadFile("record.txt")
	if rerr != nil {
		t.Fatalf("%v, %v\n%s", err, rerr, &out)
	}
	for l := range strings.Lines(string(b)) {
		if f := strings.Fields(l); len(f) == 4 {
			text += strings.TrimPrefix(f[2], "x/") + "." + f[3] + " "
		}
	}
	return text, err
}

func TestStepsChooseByWhatATestSays(t *testing.T) {
	module(t, twoKinds())
	for _, c := range []struct{ words, want string }{
		{waiting, "a.TestA a.TestA/sub b.TestB "},
		{others, "a.TestAB a.TestB c.TestA "},
	} {
		got, err := ran(t, c.words, "-count=1", "-p=1", "./...")
		if err != nil || cmp.Diff(set(strings.Fields(c.want)), set(strings.Fields(got))) != "" {
			t.Errorf("%s: ran %q, want %q; %v", c.words, got, c.want, err)
		}
	}
	got, err := ran(t, waiting, "-count=1", "./...", "--", others, "-count=1", "./...")
	if err != nil || len(set(strings.Fields(got))) != 6 || len(strings.Fields(got)) != 6 {
		t.Errorf("one after the other: ran %q; %v", got, err)
	}
}

func set(list []string) map[string]bool {
	m := map[string]bool{}
	for _, s := range list {
		m[s] = true
	}
	return m
}

// Where it would not be found, it is refused: nobody shall think that a test is in the step that it names.
func TestStepsRefuseWhatTheyWouldNotSee(t *testing.T) {
	for _, body := range []string{
		"func TestX(t *testing.T) {\n\tt.Log(1)\n\troottest.MostlyWaits(t)\n}\n",
		"func TestX(t *testing.T) {\n\tt.Run(\"sub\", func(t *testing.T) { roottest.MostlyWaits(t) })\n}\n",
		"func lab(t *testing.T) {\n\troottest.MostlyWaits(t)\n}\nfunc TestX(t *testing.T) { lab(t) }\n",
	} {
		files := twoKinds()
		files["a/x_test.go"] = "package a\n" + testHead + body
		module(t, files)
		if _, err := ran(t, others, "-count=1", "./..."); err == nil || !strings.Contains(err.Error(), "a/x_test.go:") || !strings.Contains(err.Error(), "can only be the first statement of a test") {
			t.Errorf("%s\ngot %v", body, err)
		}
	}
	module(t, twoKinds())
	if err := run(&strings.Builder{}, "", "", 3, []string{"@alone", "./..."}); err == nil || !strings.Contains(err.Error(), "@alone: want @waiting") {
		t.Errorf("an unknown word: %v", err)
	}
	if err := run(&strings.Builder{}, "", "", 3, []string{waiting, "-count=1", "./nowhere"}); err == nil || !strings.Contains(err.Error(), "nowhere") {
		t.Errorf("an unknown package: %v", err)
	}
}

// Tests of a later step are compiled by the time that the step before has ended.
func TestStepsAreCompiledAhead(t *testing.T) {
	files := twoKinds()
	files["c/c_test.go"] = fmt.Sprintf("package c\nimport \"testing\"\nfunc TestA(t *testing.T) { t.Log(%d) }\n", rand.Int64()) // nothing that was ever compiled
	module(t, files)
	stale := func() string {
		b, err := exec.Command("go", "list", "-test", "-f", "{{if .ForTest}}{{.Stale}}{{end}}", "./c").CombinedOutput()
		if err != nil {
			t.Fatalf("%v: %s", err, b)
		}
		return strings.TrimSpace(string(b))
	}
	if s := stale(); s != "true" {
		t.Fatalf("stale: %q", s)
	}
	steps, err := split([]string{"-count=1", "./a", "--", others, "-count=1", "./c"})
	if err != nil {
		t.Fatal(err)
	}
	ahead(steps[1:])()
	if s := stale(); s != "false" {
		t.Errorf("it is not compiled: stale: %q", s)
	}
}

// A package of which two runs take a part each has failed when either has.
func TestAPackageInTwoRuns(t *testing.T) {
	for _, actions := range [][3]string{{"pass", "pass", "pass"}, {"fail", "pass", "fail"}, {"pass", "fail", "fail"}, {"skip", "pass", "pass"}, {"pass", "skip", "pass"}} {
		r := newRecord(&strings.Builder{})
		for i, a := range actions[:2] {
			if err := r.read(strings.NewReader(`{"Action":"pass","Package":"p","Test":"Test` + string(rune('A'+i)) + "\"}\n" + `{"Action":"` + a + `","Package":"p","Elapsed":2}` + "\n")); err != nil {
				t.Fatal(err)
			}
		}
		if got := r.of("p", ""); got.Action != actions[2] || got.Elapsed != 4 {
			t.Errorf("%v: %+v", actions, got)
		}
	}
}
