package main

import (
	"bufio"
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// event is one line of go test -json (go doc test2json).
type event struct {
	Action      string
	Package     string
	ImportPath  string // of build output, instead of Package
	Test        string // empty: the package's own
	Elapsed     float64
	Output      string
	FailedBuild string
}

// result is what became of one test; Test is empty for a package as a whole.
type result struct {
	Package, Test string
	Action        string // pass, fail, skip; run = it began and never ended: the package panicked or ran out of time
	Elapsed       float64
}

type line struct{ test, text string }

// record is what runs of go test did.
type record struct {
	out     io.Writer
	results map[string]*result // by package, space, test
	order   []*result
	shown   int // figures printed
}

// pending is the output of a run's packages that have not ended.
type pending map[string][]line

// figureMark begins what a passing test wants to be read by whoever reads the log of a run: how much it did, with which seed.
const figureMark = "figure: "

func newRecord(out io.Writer) *record {
	return &record{out: out, results: map[string]*result{}}
}

// read takes in the whole output of go test -json and prints what a person wants to see of it: a line for each package, everything of what
// failed.
func (r *record) read(in io.Reader) error {
	lines, p := bufio.NewReader(in), pending{}
	for {
		text, err := lines.ReadBytes('\n')
		if len(bytes.TrimSpace(text)) > 0 {
			var e event
			if json.Unmarshal(text, &e) != nil || e.Action == "" {
				r.out.Write(text) // not of test2json: somebody has to see it
			} else {
				r.take(e, p)
			}
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read go test: %w", err)
		}
	}
}

func (r *record) take(e event, p pending) {
	switch e.Action {
	case "build-output":
		fmt.Fprint(r.out, e.Output)
	case "output":
		p[e.Package] = append(p[e.Package], line{e.Test, e.Output})
	case "run":
		r.of(e.Package, e.Test).Action = "run"
	case "pass", "fail", "skip":
		res := r.of(e.Package, e.Test)
		if e.Test == "" {
			r.ended(result{e.Package, "", e.Action, e.Elapsed}, p, e.FailedBuild != "")
			if res.Action == "fail" { // in a step before
				e.Action = res.Action
			}
		}
		res.Action, res.Elapsed = e.Action, e.Elapsed
	}
}

func (r *record) of(pkg, test string) *result {
	k := pkg + " " + test
	res := r.results[k]
	if res == nil {
		res = &result{Package: pkg, Test: test}
		r.results[k] = res
		r.order = append(r.order, res)
	}
	return res
}

// ended prints a package.
func (r *record) ended(res result, p pending, build bool) {
	lines := p[res.Package]
	delete(p, res.Package)
	switch {
	case res.Action == "skip": // has no tests
		return
	case res.Action == "pass":
		for _, l := range lines {
			if _, f, ok := strings.Cut(l.text, figureMark); ok {
				fmt.Fprintf(r.out, "      %s: %s\n", l.test, strings.TrimSpace(f))
				r.shown++
			}
		}
		fmt.Fprintf(r.out, "ok    %-44s %7.1f s\n", res.Package, res.Elapsed)
		return
	}
	for _, l := range lines {
		if l.test == "" || r.of(res.Package, l.test).Action != "pass" {
			fmt.Fprint(r.out, l.text)
		}
	}
	why := ""
	if build {
		why = " (did not build)"
	}
	fmt.Fprintf(r.out, "FAIL  %-44s %7.1f s%s\n", res.Package, res.Elapsed, why)
}

// summary names the slowest tests and the time over all.
func (r *record) summary(slow int, took time.Duration) {
	var tests []*result
	passed := 0
	for _, res := range r.order {
		if res.Test == "" {
			continue
		}
		if res.Action == "pass" {
			passed++
		}
		if !strings.Contains(res.Test, "/") {
			tests = append(tests, res)
		}
	}
	slices.SortStableFunc(tests, func(a, b *result) int { return cmp.Compare(b.Elapsed, a.Elapsed) })
	fmt.Fprintf(r.out, "\n%d tests passed, subtests included; %s over all; the slowest:\n", passed, took.Round(time.Second))
	for _, res := range tests[:min(slow, len(tests))] {
		fmt.Fprintf(r.out, "  %7.1f s  %s.%s\n", res.Elapsed, filepath.Base(res.Package), res.Test)
	}
}

// verdict is the error that the run deserves by its record alone. go test's own exit status comes on top of it.
func (r *record) verdict(ci bool) error {
	var bad []error
	any := false
	for _, res := range r.order {
		switch {
		case res.Action == "fail" && res.Test != "":
			bad = append(bad, fmt.Errorf("%s.%s failed", filepath.Base(res.Package), res.Test))
		case res.Action == "fail":
			bad = append(bad, fmt.Errorf("%s failed", res.Package))
		case res.Action == "run":
			bad = append(bad, fmt.Errorf("%s.%s began and did not end", filepath.Base(res.Package), res.Test))
		case res.Action == "skip" && res.Test != "" && ci:
			bad = append(bad, fmt.Errorf("%s.%s was skipped, and CI must not skip", filepath.Base(res.Package), res.Test))
		case res.Test != "": // passed, or skipped where that is allowed
			any = true
		}
	}
	if !any && len(bad) == 0 {
		bad = append(bad, errors.New("no test ran"))
	}
	return errors.Join(bad...)
}

// write leaves the record in a file, one line a test.
func (r *record) write(file string) error {
	var b bytes.Buffer
	for _, res := range r.order {
		fmt.Fprintf(&b, "%-4s %8.3f %s %s\n", res.Action, res.Elapsed, res.Package, res.Test)
	}
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		return err
	}
	return os.WriteFile(file, b.Bytes(), 0o644)
}

// find is a test by the name that the matrix gives it: last element of its package, dot, name.
func (r *record) find(name string) (*result, error) {
	pkg, test, _ := strings.Cut(name, ".")
	var found *result
	for _, res := range r.order {
		if res.Test == test && filepath.Base(res.Package) == pkg {
			if found != nil {
				return nil, fmt.Errorf("%s is in %s and in %s", name, found.Package, res.Package)
			}
			found = res
		}
	}
	if found == nil {
		return nil, fmt.Errorf("%s did not run", name)
	}
	return found, nil
}
