package main

import (
	"bytes"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
)

// The words before the arguments of a lane.
const (
	waiting = "@waiting" // only the tests that say of themselves that they mostly wait
	others  = "@others"  // all but those
	low     = "@low"     // takes what processor time the other lanes leave
)

// lane is runs of go test, one after the other.
type lane struct {
	words []string
	args  []string // of go test
}

// split takes arguments apart: "--" is between steps, which come one after the other, "++" between the lanes of a step, which run at the same time.
func split(args []string) (steps [][]lane, err error) {
	for _, step := range cut(args, "--") {
		var lanes []lane
		for _, words := range cut(step, "++") {
			var l lane
			for len(words) > 0 && strings.HasPrefix(words[0], "@") {
				if !slices.Contains([]string{waiting, others, low}, words[0]) {
					return nil, fmt.Errorf("%s: want %s, %s or %s", words[0], waiting, others, low)
				}
				l.words, words = append(l.words, words[0]), words[1:]
			}
			l.args = words
			lanes = append(lanes, l)
		}
		steps = append(steps, lanes)
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

// ahead compiles the tests of a step while the one before runs, so that they wait for nothing when they come. Whether they compile is for their own run to say.
func ahead(lanes []lane) (wait func()) {
	args := []string{"-n", "19", "go", "test", "-run=^$", "-exec=true", "-p=1"}
	for _, l := range lanes {
		_, packages := l.parts()
		args = append(args, packages...)
	}
	cmd := exec.Command("nice", args...)
	if cmd.Start() != nil {
		return func() {}
	}
	return func() { _ = cmd.Wait() }
}

// step runs lanes at the same time, and waits for all of them.
func step(r *record, lanes []lane) error {
	errs := make([]error, len(lanes))
	var wg sync.WaitGroup
	for i, l := range lanes {
		wg.Go(func() { errs[i] = l.run(r) })
	}
	wg.Wait()
	return errors.Join(errs...)
}

func (l *lane) run(r *record) error {
	runs, err := l.runs()
	for _, args := range runs {
		err = errors.Join(err, l.goTest(r, args))
	}
	return err
}

// runs are the arguments of each run of go test. Packages that have tests of both kinds have runs of their own, because a pattern of names holds for
// every package that it is given to.
func (l *lane) runs() (runs [][]string, err error) {
	if !slices.Contains(l.words, waiting) && !slices.Contains(l.words, others) {
		return [][]string{l.args}, nil
	}
	flags, packages := l.parts()
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
		case slices.Contains(l.words, waiting):
			runs = append(runs, append(flags, "-run="+pattern, p.path))
		default:
			runs = append(runs, append(flags, "-skip="+pattern, p.path))
		}
	}
	if len(rest) > 0 && slices.Contains(l.words, others) {
		runs = append(runs, append(flags, rest...))
	}
	return runs, err
}

// parts are the flags of go test, each one word, and the packages.
func (l *lane) parts() (flags, packages []string) {
	i := 0
	for i < len(l.args) && strings.HasPrefix(l.args[i], "-") {
		i++
	}
	return l.args[:i:i], l.args[i:]
}

func (l *lane) goTest(r *record, args []string) error {
	args = append([]string{"go", "test", "-json"}, args...)
	if slices.Contains(l.words, low) {
		args = append([]string{"nice", "-n", "19"}, args...)
	}
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Stderr = os.Stderr
	pipe, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	err = r.read(pipe)
	io.Copy(io.Discard, pipe) // after an error, or it would wait for a reader
	return errors.Join(err, cmd.Wait())
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
