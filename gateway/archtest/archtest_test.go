package archtest

import (
	"bytes"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"demarc/gateway/verdict"
)

const module = "demarc"

// source is one parsed Go file.
type source struct {
	name string // from the project's root
	pkg  string // its directory from the root; "." for main.go
	test bool
	file *ast.File
}

// tree is the project as it stands on disk.
type tree struct {
	root  string
	fset  *token.FileSet
	files []*source
	texts []string // every file that people write or read, by name
}

var project = read()

func read() *tree {
	root, err := filepath.Abs("../..")
	if err != nil {
		panic(err)
	}
	t := &tree{root: root, fset: token.NewFileSet()}
	err = filepath.WalkDir(root, func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel(root, name)
		if d.IsDir() {
			if rel == ".git" || rel == "build" || rel == "bench-results" {
				return filepath.SkipDir
			}
			return nil
		}
		if ignored(rel) || !d.Type().IsRegular() {
			return nil
		}
		if textual(rel) {
			t.texts = append(t.texts, filepath.ToSlash(rel))
		}
		if filepath.Ext(rel) != ".go" || strings.Contains(rel, "testdata") {
			return nil
		}
		f, err := parser.ParseFile(t.fset, name, nil, parser.ParseComments|parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		rel = filepath.ToSlash(rel)
		t.files = append(t.files, &source{rel, path.Dir(rel), strings.HasSuffix(rel, "_test.go"), f})
		return nil
	})
	if err != nil {
		panic(err)
	}
	return t
}

// ignored follows .gitignore.
func ignored(name string) bool {
	return name == "demarc" || name == "bench-results" || slices.Contains([]string{".test", ".out", ".prof"}, filepath.Ext(name))
}

func textual(name string) bool {
	switch filepath.Ext(name) {
	case ".go", ".md", ".c", ".h", ".sh", ".toml", ".txt", ".mod", ".yml", ".yaml", ".service":
		return true
	}
	switch filepath.Base(name) {
	case "Makefile", "LICENSE", "run", ".gitignore":
		return true
	}
	return false
}

func (t *tree) text(tb testing.TB, name string) string {
	tb.Helper()
	b, err := os.ReadFile(filepath.Join(t.root, name))
	if err != nil {
		tb.Fatal(err)
	}
	return string(b)
}

// within says whether a package stands in the tree of one of the rooms.
func within(pkg string, rooms ...string) bool {
	for _, r := range rooms {
		if pkg == r || strings.HasPrefix(pkg, r+"/") && r != "." && r != "gateway" {
			return true
		}
	}
	return false
}

// roomOf is the entry of m with the longest name that pkg stands in.
func roomOf[V any](m map[string]V, pkg string) (room string, ok bool) {
	for p := pkg; ; p = path.Dir(p) {
		if _, ok := m[p]; ok && within(pkg, p) {
			return p, true
		}
		if p == "." {
			return "", false
		}
	}
}

// imports lists what a file imports: ours by directory, the others by path.
func (s *source) imports() (ours, others []string) {
	for _, i := range s.file.Imports {
		p, _ := strconv.Unquote(i.Path.Value)
		if rest, ok := strings.CutPrefix(p, module+"/"); ok {
			ours = append(ours, rest)
		} else {
			others = append(others, p)
		}
	}
	return ours, others
}

// TestDownward holds imports of ours to levels, only and importedBy. Tests are free: they build what they need.
func TestDownward(t *testing.T) { project.downward(t.Errorf) }

// fault is told each violation; tests hand it t.Errorf.
type fault func(format string, args ...any)

func (t *tree) downward(bad fault) {
	for _, s := range t.files {
		if s.test {
			continue
		}
		ours, _ := s.imports()
		room, ranked := roomOf(levels, s.pkg)
		list, listed := roomOf(only, s.pkg)
		if !ranked && !listed {
			bad("%s: room %s stands in neither table of rules_test.go: say there whom it may know", s.name, s.pkg)
			continue
		}
		for _, o := range ours {
			if o == s.pkg || within(o, s.pkg) || ranked && within(o, room) || listed && within(o, list) {
				continue // its own tree
			}
			if top, _, _ := strings.Cut(s.pkg, "/"); listed && !slices.ContainsFunc(only[list], func(r string) bool { return within(o, r) }) && !(top == "acl" && within(o, "acl")) {
				bad("%s imports %s: %s may import only %v", s.name, o, list, only[list])
			}
			if other, ok := roomOf(levels, o); ranked && ok && levels[other] >= levels[room] {
				bad("%s imports %s: imports go downward, and %s (%d) does not stand below %s (%d)", s.name, o, other, levels[other], room, levels[room])
			}
			if target, ok := roomOf(importedBy, o); ok && !within(s.pkg, importedBy[target]...) {
				bad("%s imports %s, which is for %v only", s.name, o, importedBy[target])
			}
		}
	}
}

// TestPure holds the pure packages to what purity can be seen by: imports, go statements, channels, clocks, dice.
func TestPure(t *testing.T) { project.pure(t.Errorf) }

func (t *tree) pure(bad fault) {
	for _, s := range t.files {
		if s.test || !within(s.pkg, pure...) {
			continue
		}
		_, others := s.imports()
		for _, o := range others {
			if !slices.Contains(pureImports, o) && !slices.Contains(pureExtra[s.pkg], o) {
				bad("%s imports %s: %s is pure", s.name, o, s.pkg)
			}
		}
		names := map[string]string{} // as the file calls a package -> its path
		for _, i := range s.file.Imports {
			p, _ := strconv.Unquote(i.Path.Value)
			if _, watched := impureCalls[p]; !watched {
				continue
			}
			name := strings.TrimSuffix(p, "/v2")
			if name = path.Base(name); i.Name != nil {
				name = i.Name.Name
			}
			names[name] = p
		}
		ast.Inspect(s.file, func(n ast.Node) bool {
			what := ""
			switch n := n.(type) {
			case *ast.GoStmt:
				what = "starts a goroutine"
			case *ast.SelectStmt, *ast.SendStmt, *ast.ChanType:
				what = "uses a channel"
			case *ast.CallExpr:
				if f, ok := n.Fun.(*ast.Ident); ok && f.Name == "panic" {
					what = "panics: input must not be able to"
				}
			case *ast.SelectorExpr:
				if x, ok := n.X.(*ast.Ident); ok && slices.Contains(impureCalls[names[x.Name]], n.Sel.Name) {
					what = "uses " + x.Name + "." + n.Sel.Name + ": time and randomness are arguments"
				}
			}
			if what != "" {
				bad("%s: %s is pure, and this %s", t.fset.Position(n.Pos()), s.pkg, what)
			}
			return true
		})
	}
}

// TestFences keeps dependencies and powers in their rooms.
func TestFences(t *testing.T) {
	used := project.fences(t.Errorf)
	for _, must := range []string{"unsafe", "eBPF", "netlink", "TOML", "cobra", "Prometheus", "gopacket"} {
		if !used[must] {
			t.Errorf("nothing imports what the fence %q is about: it guards nothing", must)
		}
	}
}

// fences returns which of them anything came near.
func (t *tree) fences(bad fault) map[string]bool {
	used := map[string]bool{}
	for _, s := range t.files {
		_, others := s.imports()
		for _, f := range fences {
			for _, o := range others {
				hit := o == f.path || strings.HasSuffix(f.path, "/") && (o+"/" == f.path || strings.HasPrefix(o, f.path) && o != "math/rand/v2")
				if !hit {
					continue
				}
				used[f.name] = true
				if !within(s.pkg, f.rooms...) && !(s.test && f.inTests) {
					bad("%s imports %s: %s is for %v", s.name, o, f.name, f.rooms)
				}
			}
		}
		if s.pkg != "gateway/netlab/roottest" && (s.test || slices.Contains(others, "testing")) {
			ast.Inspect(s.file, func(n ast.Node) bool {
				if x, ok := n.(*ast.SelectorExpr); ok && slices.Contains(skips, x.Sel.Name) {
					bad("%s: %s skips, in CI too: roottest.Missing does not", t.fset.Position(n.Pos()), x.Sel.Name)
				}
				return true
			})
		}
		if s.test {
			t.waits(s, bad)
		}
		if s.test || within(s.pkg, rawCallRooms...) {
			continue
		}
		ast.Inspect(s.file, func(n ast.Node) bool {
			if x, ok := n.(*ast.SelectorExpr); ok && slices.Contains(rawCalls, x.Sel.Name) {
				bad("%s: %s is for %v", t.fset.Position(n.Pos()), x.Sel.Name, rawCallRooms)
			}
			return true
		})
	}
	return used
}

// waits holds MostlyWaits to the first statement of a test: said later, it would stop there until all tests that run alone are over, with all that the test has made until then.
func (t *tree) waits(s *source, bad fault) {
	says := func(n ast.Node) bool {
		call, ok := n.(*ast.CallExpr)
		if !ok {
			return false
		}
		name := call.Fun
		if x, ok := name.(*ast.SelectorExpr); ok {
			name = x.Sel
		}
		id, ok := name.(*ast.Ident)
		return ok && strings.EqualFold(id.Name, "mostlyWaits")
	}
	for _, d := range s.file.Decls {
		fn, ok := d.(*ast.FuncDecl)
		if !ok || fn.Body == nil || strings.EqualFold(fn.Name.Name, "mostlyWaits") { // a short name for it
			continue
		}
		var first ast.Node
		if x, ok := append(fn.Body.List, nil)[0].(*ast.ExprStmt); ok && fn.Recv == nil && strings.HasPrefix(fn.Name.Name, "Test") {
			first = x.X
		}
		ast.Inspect(fn.Body, func(n ast.Node) bool {
			if n != nil && n != first && says(n) {
				bad("%s: MostlyWaits can only be the first statement of a test", t.fset.Position(n.Pos()))
			}
			return true
		})
	}
}

var (
	notDoes     = regexp.MustCompile(`\b[Ii]t (does not|never) `)
	whoOwns     = regexp.MustCompile(`goroutine|concurren|immutable|pure|owner|owns|belong|no state|one process|one after the other`)
	oneSentence = regexp.MustCompile(`(?s)^Package (\w+) .*?[.:]`)
)

// TestPackageDocs wants a doc.go in each package: its job in one sentence, what it does not do, who owns what.
func TestPackageDocs(t *testing.T) { project.packageDocs(t.Errorf) }

func (t *tree) packageDocs(bad fault) {
	docs, packages := map[string]bool{}, map[string]bool{}
	for _, s := range t.files {
		if s.file.Name.Name == "main" {
			continue
		}
		packages[s.pkg] = true
		if s.file.Doc == nil {
			continue
		}
		if path.Base(s.name) != "doc.go" {
			if !strings.HasPrefix(s.file.Doc.Text(), "Code generated") {
				bad("%s: a package comment stands in doc.go", s.name)
			}
			continue
		}
		docs[s.pkg] = true
		text := s.file.Doc.Text()
		if m := oneSentence.FindStringSubmatch(text); m == nil || m[1] != s.file.Name.Name {
			bad("%s: does not begin with its job in one sentence, \"Package %s …\"", s.name, s.file.Name.Name)
		}
		if !notDoes.MatchString(text) {
			bad("%s: does not say what it does not do (\"It does not …\")", s.name)
		}
		if !whoOwns.MatchString(text) {
			bad("%s: says nothing of concurrency or ownership", s.name)
		}
	}
	for p := range packages {
		if !docs[p] {
			bad("%s: has no doc.go with a package comment", p)
		}
	}
}

// TestRoot: nothing stray at the top, and main.go stays what it is.
func TestRoot(t *testing.T) {
	entries, err := os.ReadDir(project.root)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		allowed := rootFiles
		if e.IsDir() {
			allowed = rootDirs
		}
		if !slices.Contains(allowed, e.Name()) && !ignored(e.Name()) {
			t.Errorf("%s: stands at the root, where only %v belong", e.Name(), allowed)
		}
	}
	if n := strings.Count(project.text(t, "main.go"), "\n"); n >= mainLines {
		t.Errorf("main.go has %d lines: logic belongs into a room", n)
	}
	for _, s := range project.files {
		if top, _, _ := strings.Cut(s.pkg, "/"); top != "." && !slices.Contains([]string{"acl", "bench", "cluster", "configs", "gateway"}, top) {
			t.Errorf("%s: Go code stands in acl, bench, cluster, configs, gateway, and main.go", s.name)
		}
	}
}

// TestNothingLeftOver finds notes to oneself and paths of somebody's machine.
func TestNothingLeftOver(t *testing.T) {
	notes := regexp.MustCompile(`\b(` + strings.Join([]string{"TO" + "DO", "FIX" + "ME", "X" + "XX", "HA" + "CK"}, "|") + `)\b`)
	paths := regexp.MustCompile(`(^|[^\w./~-])/(wo` + `rk|tmp/d` + `m|ro` + `ot|home/\w+)(/[\w.]|["'\s` + "`" + `])`)
	for _, name := range project.texts {
		for i, line := range strings.Split(project.text(t, name), "\n") {
			if m := notes.FindString(line); m != "" {
				t.Errorf("%s:%d: %s: do it, or file it", name, i+1, m)
			}
			if m := paths.FindString(line); m != "" {
				t.Errorf("%s:%d: %q is a path of one machine", name, i+1, strings.TrimSpace(m))
			}
		}
	}
}

// TestGenerated: a committed eBPF object has its source, its Go file, the script that makes both, and a test that runs it.
func TestGenerated(t *testing.T) {
	n := 0
	err := filepath.WalkDir(project.root, func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() && d.Name() == ".git" {
			return cmpErr(err, filepath.SkipDir)
		}
		if filepath.Ext(name) != ".o" {
			return nil
		}
		n++
		dir := filepath.Dir(name)
		rel, _ := filepath.Rel(project.root, dir)
		base, ok := strings.CutSuffix(d.Name(), "_bpfel.o")
		if !ok {
			t.Errorf("%s/%s: an object that bpf2go has not made", rel, d.Name())
			return nil
		}
		for _, want := range []string{base + ".c", base + "_bpfel.go", "generate.sh", "generate_test.go"} {
			if _, err := os.Stat(filepath.Join(dir, want)); err != nil {
				t.Errorf("%s/%s: has no %s beside it", rel, d.Name(), want)
			}
		}
		doc, err := os.ReadFile(filepath.Join(dir, "doc.go"))
		if err != nil || !bytes.Contains(doc, []byte("//go:generate ./generate.sh")) {
			t.Errorf("%s/doc.go: does not say //go:generate ./generate.sh", rel)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if n == 0 {
		t.Error("no eBPF object was found: is this the project?")
	}
}

func cmpErr(err, otherwise error) error {
	if err != nil {
		return err
	}
	return otherwise
}

// TestDocuments holds the documents to what they describe: a dependency has its line, a command and a series their mention.
func TestDocuments(t *testing.T) {
	arch := project.text(t, "ARCHITECTURE.md")
	for line := range strings.Lines(project.text(t, "go.mod")) {
		f := strings.Fields(line)
		if len(f) == 2 && strings.Contains(f[0], ".") && strings.HasPrefix(f[1], "v") && !strings.Contains(arch, f[0]) {
			t.Errorf("ARCHITECTURE.md: %s is required and has no line that says why", f[0])
		}
	}
	readme := project.text(t, "README.md")
	for line := range strings.Lines(project.text(t, "gateway/cli/testdata/help.golden")) {
		if verb, ok := strings.CutPrefix(strings.TrimSpace(line), "==== "); ok && !strings.Contains(readme, "demarc "+verb) {
			t.Errorf("README.md: does not show demarc %s", verb)
		}
	}
	links := regexp.MustCompile(`\]\(([^)#:]+)(#[^)]*)?\)`)
	for _, name := range project.texts {
		if filepath.Ext(name) != ".md" {
			continue
		}
		for _, m := range links.FindAllStringSubmatch(project.text(t, name), -1) {
			if _, err := os.Stat(filepath.Join(project.root, filepath.Dir(name), m[1])); err != nil {
				t.Errorf("%s: links to %s, which is not there", name, m[1])
			}
		}
	}
}

// TestDropsPage: docs/drops.md explains every reason, and calls those reserved that no code gives.
func TestDropsPage(t *testing.T) {
	used := map[string]bool{} // constants of verdict that something outside of it and of its tests names
	for _, s := range project.files {
		if s.test || s.pkg == "gateway/verdict" || s.pkg == "gateway/packet/badpackets" {
			continue
		}
		ast.Inspect(s.file, func(n ast.Node) bool {
			if x, ok := n.(*ast.SelectorExpr); ok {
				if p, ok := x.X.(*ast.Ident); ok && p.Name == "verdict" {
					used[x.Sel.Name] = true
				}
			}
			return true
		})
	}
	constant := map[string]string{} // text of a reason -> its constant
	for _, m := range regexp.MustCompile(`(\w+): "([a-z0-9_]+)"`).FindAllStringSubmatch(project.text(t, "gateway/verdict/verdict.go"), -1) {
		constant[m[2]] = m[1]
	}
	page := map[string]string{} // reason -> its row
	name := regexp.MustCompile("`([a-z0-9_]+)`")
	for line := range strings.Lines(project.text(t, "docs/drops.md")) {
		if cells := strings.Split(line, "|"); strings.HasPrefix(line, "| `") && len(cells) == 5 {
			for _, m := range name.FindAllStringSubmatch(cells[1], -1) {
				page[m[1]] = line
			}
		}
	}
	rows := maps.Clone(page)
	for r := verdict.Reason(0); r < verdict.NumReasons; r++ {
		row, ok := page[r.String()]
		delete(page, r.String())
		if r == verdict.Pass {
			continue
		}
		c := constant[r.String()]
		switch reserved := strings.Contains(row, "*reserved*"); {
		case c == "":
			t.Errorf("cannot find the constant of %s in verdict.go", r)
		case !ok:
			t.Errorf("docs/drops.md: no row for %s", r)
		case r == verdict.Unset: // given by nobody, and that is the point
		case reserved == used[c]:
			t.Errorf("docs/drops.md: %s: reserved %v, but verdict.%s used %v", r, reserved, c, used[c])
		}
	}
	plain := strings.NewReplacer("`", "", "*", "")
	for r := verdict.Reason(0); r < verdict.NumReasons; r++ { // what explain says is what the page says
		row := rows[r.String()]
		if r == verdict.Pass || strings.Contains(row, "*reserved*") {
			continue
		}
		if cells := strings.Split(row, "|"); len(cells) == 5 {
			what, helps := r.Words()
			if want := plain.Replace(strings.TrimSpace(cells[2])); what != want {
				t.Errorf("verdict/words.go: %s: what happened is %q, in docs/drops.md %q", r, what, want)
			}
			if want := plain.Replace(strings.TrimSpace(cells[3])); helps != want {
				t.Errorf("verdict/words.go: %s: what helps is %q, in docs/drops.md %q", r, helps, want)
			}
		}
	}
	for r := range page {
		t.Errorf("docs/drops.md: there is no reason %s", r)
	}
}

// TestRulesNotice shows each rule a file that breaks it, and one that does not.
func TestRulesNotice(t *testing.T) {
	for _, c := range []struct {
		name, text string
		want       string // of the fault; "" = none
	}{
		{"gateway/nat/x.go", `package nat; import "demarc/gateway/pipeline"`, "imports go downward"},
		{"gateway/nat/x.go", `package nat; import "demarc/gateway/police"`, "imports go downward"},
		{"gateway/nat/x.go", `package nat; import "demarc/gateway/flow"`, ""},
		{"gateway/nat/x_test.go", `package nat; import "demarc/gateway/pipeline"`, ""},
		{"gateway/pipeline/x.go", `package pipeline; import "demarc/configs"`, "which is for"},
		{"gateway/worker/x.go", `package worker; import "demarc/gateway/api"`, "which is for"},
		{"gateway/lab/x.go", `package lab; import "demarc/gateway/worker"`, "may import only"},
		{"acl/x.go", `package acl; import "demarc/gateway/flow"`, "may import only"},
		{"gateway/xsk/x.go", `package xsk; import "demarc/gateway/xsk/bpf"`, ""},
		{"gateway/unheard/x.go", `package unheard`, "stands in neither table"},
		{"gateway/slowpath/x.go", `package slowpath; import "demarc/gateway/packet/badpackets"`, "which is for"},

		{"gateway/fib/x.go", `package fib; import "os"`, "is pure"},
		{"gateway/fib/x.go", `package fib; import "sync"`, "is pure"},
		{"gateway/fib/x.go", `package fib; import "net"`, "is pure"},
		{"gateway/fib/x.go", `package fib; import "net/netip"`, ""},
		{"gateway/fib/x.go", `package fib; import "time"; var x = time.Now()`, "uses time.Now"},
		{"gateway/fib/x.go", `package fib; import clock "time"; var x = clock.Now()`, "uses clock.Now"},
		{"gateway/fib/x.go", `package fib; import "time"; var x = time.Second`, ""},
		{"acl/aclgen/x.go", `package aclgen; import "math/rand/v2"; var x = rand.IntN(3)`, "uses rand.IntN"},
		{"acl/aclgen/x.go", `package aclgen; import "math/rand/v2"; var x = rand.New(rand.NewPCG(1, 2))`, ""},
		{"gateway/packet/csum/x.go", `package csum; func f() { go f() }`, "starts a goroutine"},
		{"gateway/packet/csum/x.go", `package csum; var c chan int`, "uses a channel"},
		{"gateway/packet/csum/x.go", `package csum; func f() { panic(1) }`, "panics"},
		{"gateway/worker/x.go", `package worker; func f() { panic(1) }`, ""},

		{"gateway/pipeline/x.go", `package pipeline; import "unsafe"`, "unsafe is for"},
		{"gateway/api/x.go", `package api; import "github.com/spf13/cobra"`, "cobra is for"},
		{"gateway/cli/x.go", `package cli; import "github.com/google/gopacket/layers"`, "gopacket is for"},
		{"gateway/cli/x_test.go", `package cli; import "github.com/google/gopacket/layers"`, ""},
		{"gateway/cli/x.go", `package cli; import "C"`, "cgo is for"},
		{"gateway/cli/x.go", `package cli; import "math/rand"`, "global randomness is for"},
		{"gateway/cli/x.go", `package cli; import "math/rand/v2"`, ""},
		{"gateway/cli/x.go", `package cli; import "github.com/google/go-cmp/cmp"`, "go-cmp is for"},
		{"gateway/worker/x.go", `package worker; import "golang.org/x/sys/unix"; var _ = unix.RawSyscall`, "RawSyscall is for"},

		{"gateway/cli/x_test.go", `package cli; import "testing"; func TestX(t *testing.T) { t.Skip() }`, "roottest.Missing does not"},
		{"gateway/cli/x_test.go", `package cli; import "demarc/gateway/netlab/roottest"; import "testing"; func TestX(t *testing.T) { roottest.Missing(t, "rain") }`, ""},
		{"gateway/netlab/host/x.go", `package host; import "testing"; func f(t testing.TB) { t.Skipf("no") }`, "roottest.Missing does not"},
		{"gateway/cli/x.go", `package cli; func f(s interface{ Skip() }) { s.Skip() }`, ""},

		{"gateway/cli/x_test.go", `package cli; import "testing"; func TestX(t *testing.T) { roottest.MostlyWaits(t); t.Log(1) }`, ""},
		{"gateway/cli/x_test.go", `package cli; import "testing"; func mostlyWaits(t *testing.T) { roottest.MostlyWaits(t) }; func TestX(t *testing.T) { mostlyWaits(t) }`, ""},
		{"gateway/cli/x_test.go", `package cli; import "testing"; func TestX(t *testing.T) { t.Log(1); roottest.MostlyWaits(t) }`, "the first statement of a test"},
		{"gateway/cli/x_test.go", `package cli; import "testing"; func TestX(t *testing.T) { t.Run("sub", func(t *testing.T) { roottest.MostlyWaits(t) }) }`, "the first statement of a test"},
		{"gateway/cli/x_test.go", `package cli; import "testing"; func lab(t *testing.T) { mostlyWaits(t) }; func TestX(t *testing.T) { lab(t) }`, "the first statement of a test"},

		{"gateway/cli/doc.go", "// Package cli is a line.\n//\n// It does not hurry.\n//\n// It has no state.\npackage cli", ""},
		{"gateway/cli/doc.go", "// Package cli is a line.\n//\n// It has no state.\npackage cli", "what it does not do"},
		{"gateway/cli/doc.go", "// Package cli is a line.\n//\n// It does not hurry.\npackage cli", "concurrency or ownership"},
		{"gateway/cli/doc.go", "// The line.\n//\n// It does not hurry. It has no state.\npackage cli", "one sentence"},
		{"gateway/cli/x.go", "// Package cli is a line.\npackage cli", "stands in doc.go"},
	} {
		fset := token.NewFileSet()
		f, err := parser.ParseFile(fset, c.name, c.text, parser.ParseComments|parser.SkipObjectResolution)
		if err != nil {
			t.Fatalf("%s: %v", c.text, err)
		}
		one := &tree{fset: fset, files: []*source{{c.name, path.Dir(c.name), strings.HasSuffix(c.name, "_test.go"), f}}}
		var faults []string
		bad := func(format string, args ...any) { faults = append(faults, fmt.Sprintf(format, args...)) }
		one.downward(bad)
		one.pure(bad)
		one.fences(bad)
		if f.Doc != nil {
			one.packageDocs(bad)
		}
		switch all := strings.Join(faults, "\n"); {
		case c.want == "" && all != "":
			t.Errorf("%s: %s: refused: %s", c.name, c.text, all)
		case !strings.Contains(all, c.want):
			t.Errorf("%s: %s: want a fault with %q, have %q", c.name, c.text, c.want, all)
		}
	}
}

// TestRooms holds down what counts as standing in a room.
func TestRooms(t *testing.T) {
	for _, c := range []struct {
		pkg, room string
		want      bool
	}{
		{"gateway/xsk/bpf", "gateway/xsk", true}, {"gateway/xsk", "gateway/xsk", true}, {"gateway/xskx", "gateway/xsk", false},
		{"gateway/nat", "gateway", false}, {"gateway", "gateway", true}, {".", ".", true}, {"acl", ".", false},
	} {
		if got := within(c.pkg, c.room); got != c.want {
			t.Errorf("within(%s, %s) = %v", c.pkg, c.room, got)
		}
	}
	if r, ok := roomOf(levels, "gateway/packet/csum"); r != "gateway/packet" || !ok {
		t.Errorf("gateway/packet/csum stands in %q", r)
	}
	if r, ok := roomOf(levels, "gateway/unheard"); ok {
		t.Errorf("a new room counts as %q", r)
	}
}
