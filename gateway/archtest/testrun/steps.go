package main

import (
	"bytes"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

// The words before the arguments of a step.
const (
	waiting = "@waiting" // only the tests that say of themselves that they mostly wait
	others  = "@others"  // all but those
)

// step is runs of go test, one after the other.
type step struct {
	word string   // "" = all tests
	args []string // of go test
}

// split takes arguments apart: "--" is between steps.
func split(args []string) (steps []step, err error) {
	for _, words := range cut(args, "--") {
		var s step
		if len(words) > 0 && strings.HasPrefix(words[0], "@") {
			if s.word, words = words[0], words[1:]; s.word != waiting && s.word != others {
				return nil, fmt.Errorf("%s: want %s or %s", s.word, waiting, others)
			}
		}
		s.args = words
		steps = append(steps, s)
	}
	return steps, nil
}

func cut(args []string, at string) (lists [][]string) {
	for {
		i := slices.Index(args, at)
		if i < 0 {
			return append(lists, args)
		}
		lists, args = append(lists, args[:i]), args[i+1:]
	}
}

// ahead compiles the tests of steps while the one before them runs, in the time that it leaves: then nothing is compiled beside tests that measure. Whether they
// compile is for their own run to say.
func ahead(steps []step) (wait func()) {
	args := []string{"-n", "19", "go", "test", "-run=^$", "-exec=true", "-p=1", "-vet=off"}
	for _, s := range steps {
		_, packages := s.parts()
		args = append(args, packages...)
	}
	cmd := exec.Command("nice", args...)
	if len(steps) == 0 || cmd.Start() != nil {
		return func() {}
	}
	return func() { _ = cmd.Wait() }
}

func (s *step) run(r *record) error {
	runs, err := s.runs()
	for _, args := range runs {
		err = errors.Join(err, goTest(r, args))
	}
	return err
}

// runs are the arguments of each run of go test. Packages that have tests of both kinds have runs of their own, because a pattern of names holds for
// every package that it is given to.
func (s *step) runs() (runs [][]string, err error) {
	if s.word == "" {
		return [][]string{s.args}, nil
	}
	flags, packages := s.parts()
	all, err := sources(packages)
	if err != nil {
		return nil, err
	}
	var rest []string
	for _, p := range all {
		names, e := p.waiting()
		err = errors.Join(err, e)
		pattern := "^(" + strings.Join(names, "|") + ")$"
		switch {
		case len(names) == 0:
			rest = append(rest, p.path)
		case s.word == waiting:
			runs = append(runs, append(flags, "-run="+pattern, p.path))
		default:
			runs = append(runs, append(flags, "-skip="+pattern, p.path))
		}
	}
	if len(rest) > 0 && s.word == others {
		runs = append(runs, append(flags, rest...))
	}
	return runs, err
}

// parts are the flags of go test, each one word, and the packages.
func (s *step) parts() (flags, packages []string) {
	i := 0
	for i < len(s.args) && strings.HasPrefix(s.args[i], "-") {
		i++
	}
	return s.args[:i:i], s.args[i:]
}

func goTest(r *record, args []string) error {
	cmd := exec.Command("go", append([]string{"test", "-json"}, args...)...)
	cmd.Stderr = os.Stderr
	pipe, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	return errors.Join(r.read(pipe), cmd.Wait())
}

// source is where the tests of a package stand.
type source struct {
	path, dir string
	files     []string
}

func sources(packages []string) (all []source, err error) {
	cmd := exec.Command("go", append([]string{"list", "-f", `{{.ImportPath}}{{"\t"}}{{.Dir}}{{range .TestGoFiles}}{{"\t"}}{{.}}{{end}}{{range .XTestGoFiles}}{{"\t"}}{{.}}{{end}}`}, packages...)...)
	var said bytes.Buffer
	cmd.Stderr = &said
	b, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("go list: %w: %s", err, &said)
	}
	for l := range strings.Lines(string(b)) {
		f := strings.Split(strings.TrimSuffix(l, "\n"), "\t")
		all = append(all, source{f[0], f[1], f[2:]})
	}
	return all, nil
}

var testName = regexp.MustCompile(`^Test([^a-z].*)?$`)

// waiting are the tests of a package that begin with roottest.MostlyWaits, or with a function of that name that calls it. Said anywhere else it would
// not be found here, and is an error.
func (s source) waiting() (names []string, err error) {
	var bad []error
	set := token.NewFileSet()
	for _, name := range s.files {
		f, err := parser.ParseFile(set, filepath.Join(s.dir, name), nil, parser.SkipObjectResolution)
		if err != nil {
			return nil, err
		}
		for _, d := range f.Decls {
			fn, ok := d.(*ast.FuncDecl)
			if !ok || fn.Body == nil || says(fn.Name.Name) {
				continue
			}
			var first ast.Node
			if fn.Recv == nil && testName.MatchString(fn.Name.Name) && len(fn.Body.List) > 0 {
				if x, ok := fn.Body.List[0].(*ast.ExprStmt); ok && isWord(x.X) {
					first = x.X
					names = append(names, fn.Name.Name)
				}
			}
			ast.Inspect(fn.Body, func(n ast.Node) bool {
				if n != nil && n != first && isWord(n) {
					bad = append(bad, fmt.Errorf("%s: MostlyWaits can only be the first statement of a test", set.Position(n.Pos())))
				}
				return true
			})
		}
	}
	return names, errors.Join(bad...)
}

func says(name string) bool { return strings.EqualFold(name, "mostlyWaits") }

// isWord says whether a node is a call of MostlyWaits.
func isWord(n ast.Node) bool {
	call, ok := n.(*ast.CallExpr)
	if !ok {
		return false
	}
	switch f := call.Fun.(type) {
	case *ast.Ident:
		return says(f.Name)
	case *ast.SelectorExpr:
		return says(f.Sel.Name)
	}
	return false
}
