package zerocopy

import (
	"bytes"
	"context"
	"debug/elf"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"demarc/gateway/netlab/roottest"
)

// queuesWord is what this test binary is told when it is the init of that guest.
const queuesWord = "queues-guest"

// Limits of what may take long where nothing is wrong: an emulated processor on a busy machine is a hundred times slower than a quiet one's own.
const (
	slow       = 2 * time.Minute // with 0.4 of a processor a start has taken more than one
	guestLimit = 6 * time.Minute
)

func TestMain(m *testing.M) {
	if told(queuesWord) {
		live(queuesGuest)
	}
	code := m.Run()
	if built != "" {
		os.RemoveAll(built)
	}
	os.Exit(code)
}

var built string // directory of the programs, once there are any

// gatewayProgram is the gateway as a static program, built once for all tests.
var gatewayProgram = sync.OnceValues(func() (string, error) { return build("build", "demarc", "demarc") })

// testProgram is this test as a static program.
var testProgram = sync.OnceValues(func() (string, error) {
	if self, err := os.Executable(); err == nil && static(self) == nil {
		return self, nil
	}
	return build("test", "guest", "-c", "demarc/gateway/zerocopy")
})

func build(verb, name string, args ...string) (file string, err error) {
	if built == "" {
		if built, err = os.MkdirTemp("", "demarc-guest-"); err != nil {
			return "", err
		}
	}
	file = filepath.Join(built, name)
	c := exec.Command("go", slices.Concat([]string{verb, "-trimpath", "-o", file}, args)...)
	c.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := c.CombinedOutput(); err != nil {
		return "", fmt.Errorf("go %s: %w\n%s", verb, err, out)
	}
	return file, nil
}

// tree collects the files of a guest's root, with the directories above them and the libraries that programs load.
type tree struct {
	list  []entry
	names map[string]bool
}

func (r *tree) put(e entry) {
	e.name = strings.TrimPrefix(path.Clean(e.name), "/")
	for i, c := range e.name { // usr, usr/lib, …
		if c == '/' {
			r.one(entry{name: e.name[:i], mode: modeDir})
		}
	}
	r.one(e)
}

func (r *tree) one(e entry) {
	if !r.names[e.name] {
		r.names[e.name] = true
		r.list = append(r.list, e)
	}
}

// program takes one of this machine's, with its loader and libraries, to where they lie here.
func (r *tree) program(name string) error {
	b, err := os.ReadFile(name)
	if err != nil {
		return err
	}
	r.put(entry{name: name, mode: modeExec, data: b})
	f, err := elf.NewFile(bytes.NewReader(b))
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	defer f.Close()
	var need []string
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP {
			l := make([]byte, p.Filesz)
			if _, err := p.ReadAt(l, 0); err != nil {
				return err
			}
			need = append(need, string(bytes.TrimRight(l, "\x00")))
		}
	}
	libs, err := f.ImportedLibraries()
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	for _, l := range libs {
		need = append(need, "/lib/x86_64-linux-gnu/"+l)
	}
	for _, l := range need {
		if r.names[strings.TrimPrefix(l, "/")] {
			continue
		}
		if err := r.program(l); err != nil {
			return fmt.Errorf("%s needs %s: %w", name, l, err)
		}
	}
	return nil
}

// newTree is init, the modules, the gateway, and some programs of this machine.
func newTree(t testing.TB, kernel string, programs ...string) *tree {
	t.Helper()
	self, err := testProgram()
	if err != nil {
		t.Fatal(err)
	}
	files, err := initFiles(kernel, self)
	if err != nil {
		t.Fatal(err)
	}
	gateway, err := gatewayProgram()
	if err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(gateway)
	if err != nil {
		t.Fatal(err)
	}
	r := &tree{names: map[string]bool{}}
	for _, e := range append(files, entry{name: guestGateway, mode: modeExec, data: b}) {
		r.put(e)
	}
	for _, p := range programs {
		if err := r.program(p); err != nil {
			t.Fatal(err)
		}
	}
	return r
}

// tools finds QEMU and the kernel. Where they cannot be had nothing is shown, which in CI is a failure.
func tools(t *testing.T, ctx context.Context) (o options, qemu, kernelDir string) {
	t.Helper()
	if testing.Short() {
		roottest.Missing(t, "the time to boot a guest, which -short does not give")
	}
	roottest.Require(t)
	cache, err := os.UserCacheDir()
	if err != nil {
		t.Fatal(err)
	}
	o.cache = filepath.Join(cache, "demarc", "zerocopy")
	if err = os.MkdirAll(o.cache, 0o755); err == nil {
		if qemu, err = emulator(ctx); err == nil {
			kernelDir, err = kernel(ctx, o.cache)
		}
	}
	var u unavailable
	switch {
	case errors.As(err, &u):
		roottest.Missing(t, "a guest to show it in: %v", err)
	case err != nil:
		t.Fatal(err)
	}
	o.out, o.console = os.Stderr, os.Getenv("DEMARC_CONSOLE") != ""
	return o, qemu, kernelDir
}

// shown boots a machine and demands that it reports all of its plan.
func (m *machine) shown(t *testing.T, ctx context.Context, o options, qemu, kernelDir string) {
	t.Helper()
	start := time.Now()
	s, err := m.run(ctx, o, qemu, filepath.Join(kernelDir, "vmlinuz"))
	if err != nil {
		t.Fatal(err)
	}
	if s.fatal != "" {
		t.Fatal(s.fatal)
	}
	for _, v := range s.list {
		for _, c := range m.plan.checks {
			if d, made := v.done[c]; made {
				t.Logf("%s, %s: %s", v.name, c, d)
			}
		}
		for _, f := range v.failed {
			if c, _, _ := strings.Cut(f, ": "); f != c+": "+v.done[c] { // those stand above
				t.Error(f)
			}
		}
		if !v.ok() {
			t.Errorf("%s failed, ended %v", v.name, v.ended)
		}
	}
	if t.Failed() {
		t.Logf("the guest printed:\n%s\nand outside of it there is:\n%s", s.rest, m.around)
	}
	t.Logf("kernel %s, %s", s.kernel, time.Since(start).Round(time.Second/10))
}
