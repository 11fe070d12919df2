package lab

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"demarc/gateway/netlab/roottest"
)

// The demo holds with the real gateway; with one stage switched off it fails and names that stage.
func TestDemoAndEachBrokenStage(t *testing.T) {
	roottest.Require(t)
	binary := filepath.Join(t.TempDir(), "demarc")
	build := exec.CommandContext(t.Context(), "go", "build", "-o", binary, "demarc")
	build.Env = append(build.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	for _, stage := range append([]string{""}, Stages...) {
		t.Run("break="+stage, func(t *testing.T) {
			var out bytes.Buffer
			r, err := Run(t.Context(), Options{Break: stage, Binary: binary, Duration: 8 * time.Second, Out: &out})
			if err != nil {
				t.Fatalf("%v\n%s", err, &out)
			}
			switch broken := r.Broken(); {
			case stage == "" && len(broken) > 0:
				t.Errorf("broken: %v\n%s", broken, &out)
			case stage != "" && (r.OK || !slices.Contains(broken, stage)):
				t.Errorf("with %s off the demo says that these are broken: %v\n%s", stage, broken, &out)
			}
			if r.Seconds > 59 {
				t.Errorf("it took %.0f s", r.Seconds)
			}
			nothingLeft(t, os.Getpid())
		})
	}
}
