package e2e

import (
	"encoding/json"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

// The stand-in of the next release is today's source with the edits and files of testdata/next laid over it (go build -overlay): one key of policies more
// (tenant.contact), one kind of log entries more ("note", of level 2), a raised version. Nothing of it stands in a package of ours, so no build has it by mistake.
const (
	nextDir     = "testdata/next"
	nextVersion = "v9.9-next"
	nextFeature = "tenant.contact"
)

var next struct {
	once    sync.Once
	overlay string // file for go build
	path    string // the program
	err     error
}

// nextRelease is the program of the next release, built once for all tests of the run.
func nextRelease(t testing.TB) string {
	t.Helper()
	program(t) // makes the directory, which TestMain removes
	next.once.Do(func() {
		if next.overlay, next.err = layOver(filepath.Join(built.dir, "next")); next.err != nil {
			return
		}
		next.path = filepath.Join(built.dir, "demarc-next")
		next.err = goTool("build", "-overlay", next.overlay, "-ldflags", "-s -w -X main.version="+nextVersion, "-o", next.path, "demarc")
	})
	check(t, next.err)
	return next.path
}

func goTool(args ...string) error {
	c := exec.Command("nice", append([]string{"-n", "10", "go"}, args...)...) // other tests run beside it
	c.Dir = "../.."
	c.Env = append(c.Environ(), "CGO_ENABLED=0")
	if out, err := c.CombinedOutput(); err != nil {
		return fmt.Errorf("go %s: %w\n%s", strings.Join(args, " "), err, out)
	}
	return nil
}

// layOver writes the changed files to dir, and the list of what each one stands for.
func layOver(dir string) (overlay string, err error) {
	root, err := filepath.Abs("../..")
	if err != nil {
		return "", err
	}
	texts := map[string]string{} // by their place in the project
	err = fs.WalkDir(os.DirFS(nextDir), ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || filepath.Ext(name) != ".go" {
			return err
		}
		if _, err := os.Stat(filepath.Join(root, name)); err == nil {
			return fmt.Errorf("%s/%s: there is such a file already", nextDir, name)
		}
		b, err := os.ReadFile(filepath.Join(nextDir, name))
		texts[name] = string(b)
		return err
	})
	if err != nil {
		return "", err
	}
	edits, err := os.ReadFile(filepath.Join(nextDir, "edits.txt"))
	if err != nil {
		return "", err
	}
	_, list, _ := strings.Cut(string(edits), "\n@@ ")
	for _, e := range strings.Split(list, "\n@@ ") {
		name, body, _ := strings.Cut(e, "\n")
		var old, now []string
		for _, l := range strings.Split(strings.TrimRight(body, "\n"), "\n") {
			if rest, is := strings.CutPrefix(l, "-"); is {
				old = append(old, rest)
			} else if rest, is := strings.CutPrefix(l, "+"); is {
				now = append(now, rest)
			} else {
				return "", fmt.Errorf("%s: an edit of %s has the line %q", nextDir, name, l)
			}
		}
		text, ok := texts[name]
		if !ok {
			b, err := os.ReadFile(filepath.Join(root, name))
			if err != nil {
				return "", err
			}
			text = string(b)
		}
		was := strings.Join(old, "\n")
		if n := strings.Count(text, was); n != 1 {
			return "", fmt.Errorf("%s: %s has this %d times, want once: mend the edit:\n%s", nextDir, name, n, was)
		}
		texts[name] = strings.Replace(text, was, strings.Join(now, "\n"), 1)
	}
	o := struct{ Replace map[string]string }{map[string]string{}}
	for name, text := range texts {
		to := filepath.Join(dir, filepath.FromSlash(name))
		if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
			return "", err
		}
		if err := os.WriteFile(to, []byte(text), 0o644); err != nil {
			return "", err
		}
		o.Replace[filepath.Join(root, filepath.FromSlash(name))] = to
	}
	b, err := json.Marshal(o)
	if err != nil {
		return "", err
	}
	overlay = filepath.Join(dir, "overlay.json")
	return overlay, os.WriteFile(overlay, b, 0o644)
}
