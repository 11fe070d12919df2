package archtest

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// The profile that the compiler is shown names functions that are still there: of those of demarc that it says take most, one that was renamed, or moved to another package, is compiled as if it were cold. Then `make pgo`.
func TestTheProfileIsOfThisCode(t *testing.T) {
	root := "../.."
	out, err := exec.Command("go", "tool", "pprof", "-top", "-nodecount=80", filepath.Join(root, "default.pgo")).CombinedOutput()
	if err != nil {
		t.Fatalf("go tool pprof -top default.pgo: %v\n%s", err, out)
	}
	// 1.20s  5.1% 40.2%  2.00s 8.5%  demarc/gateway/pipeline.(*Shard).receive (inline)
	line := regexp.MustCompile(`(?m)^\s+\S+\s+(\S+)%\s+\S+%\s+\S+\s+\S+%\s+demarc/([\w/]+)\.(?:\(\*?(\w+)(?:\[\.\.\.\])?\)\.|(\w+)\.)?(\w+)`)
	unnamed := regexp.MustCompile(`^(func|deferwrap|gowrap)\d+$`)
	known, seen := 0, map[string]string{}
	for _, m := range line.FindAllStringSubmatch(string(out), -1) {
		dir, typ, name := filepath.Join(root, strings.TrimSuffix(m[2], "_test")), m[3]+m[4], m[5]
		if unnamed.MatchString(name) {
			continue
		}
		if _, ok := seen[dir]; !ok {
			files, err := filepath.Glob(filepath.Join(dir, "*.go"))
			if err != nil {
				t.Fatal(err)
			}
			for _, f := range files {
				text, err := os.ReadFile(f)
				if err != nil {
					t.Fatal(err)
				}
				seen[dir] += string(text)
			}
		}
		want := `func ` + name + `[(\[]`
		if typ != "" {
			want = `func \(\w* ?\*?` + typ + `(\[[^]]*\])?\) ` + name + `\(`
		}
		if known++; !regexp.MustCompile(want).MatchString(seen[dir]) {
			t.Errorf("%s %% of default.pgo are in %s of %s, which is not there: make pgo", m[1], strings.TrimPrefix(typ+"."+name, "."), m[2])
		}
	}
	if known < 30 {
		t.Errorf("default.pgo names %d functions of demarc among the first 80, want 30 at least: make pgo\n%s", known, out)
	}
}
