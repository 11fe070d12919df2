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

// Each step runs, also behind one that fails, and all of them are in one record.
func TestStepsRunOneAfterTheOther(t *testing.T) {
	module(t, map[string]string{
		"a/a_test.go": "package a\nimport \"testing\"\nfunc TestA(t *testing.T) { t.Run(\"sub\", func(t *testing.T) {}) }\n",
		"b/b_test.go": "package b\nimport \"testing\"\nfunc TestB(t *testing.T) { t.Parallel() }\nfunc TestC(t *testing.T) { t.Error(1) }\n",
	})
	for args, want := range map[string]string{"-count=1 ./a": "a.TestA a.TestA/sub ", "-count=1 ./b -- -count=1 ./a": "b.TestB b.TestC a.TestA a.TestA/sub "} {
		got, err := ran(t, strings.Fields(args)...)
		if cmp.Diff(set(strings.Fields(want)), set(strings.Fields(got))) != "" || (err != nil) != strings.Contains(want, "TestC") {
			t.Errorf("%s: ran %q, want %q; %v", args, got, want, err)
		}
	}
	if err := run(&strings.Builder{}, "", "", 3, []string{"-count=1", "./nowhere"}); err == nil {
		t.Error("an unknown package: no error")
	}
}

func set(list []string) map[string]bool {
	m := map[string]bool{}
	for _, s := range list {
		m[s] = true
	}
	return m
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

// Tests of a later step are compiled by the time that the step before has ended.
func TestStepsAreCompiledAhead(t *testing.T) {
	module(t, map[string]string{"c/c_test.go": fmt.Sprintf("package c\nimport \"testing\"\nfunc TestA(t *testing.T) { t.Log(%d) }\n", rand.Int64())}) // nothing that was ever compiled
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
	ahead(split([]string{"-count=1", "./a", "--", "-count=1", "./c"})[1:])()
	if s := stale(); s != "false" {
		t.Errorf("it is not compiled: stale: %q", s)
	}
}
