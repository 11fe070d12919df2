package bench

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"demarc/gateway/netlab/roottest"
)

// Killed in the middle of a load a run leaves its gateway and its namespaces, and the next one removes them and says so; interrupted, it takes everything down by itself and says what
// is missing.
func TestSuiteKilledThenInterrupted(t *testing.T) {
	roottest.Require(t)
	bin := binary(t)
	begin := func() (c *exec.Cmd, dir string, said *lockedBuffer) {
		dir, said = t.TempDir(), &lockedBuffer{}
		c = exec.Command(bin, "bench", "--scenarios", "sessions", "--out", dir)
		c.Stdout, c.Stderr = said, said
		if err := c.Start(); err != nil {
			t.Fatal(err)
		}
		for end := time.Now().Add(time.Minute); !strings.Contains(said.String(), "ready after"); time.Sleep(10 * time.Millisecond) {
			if time.Now().After(end) {
				_ = c.Process.Kill()
				t.Fatalf("no gateway after a minute:\n%s", said)
			}
		}
		return c, dir, said
	}
	c, _, _ := begin()
	if err := c.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = c.Wait() // killed
	if left, _ := filepath.Glob("/run/netns/dmbench-*"); len(left) == 0 {
		t.Error("there is nothing for the next run to remove")
	}
	c, dir, said := begin()
	if s := said.String(); !strings.Contains(s, "left by a run that was killed, removed: "+dirRun) || !strings.Contains(s, "removed: /run/netns/dmbench-") || !strings.Contains(s, "removed: 1 processes of dmbench-") {
		t.Errorf("what the killed run left was not removed:\n%s", s)
	}
	if err := c.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	if err := c.Wait(); err == nil {
		t.Error("an interrupted run ends with status 0")
	}
	if took := time.Since(began); took > 20*time.Second {
		t.Errorf("it took %s to end", took)
	}
	clean(t)
	b, err := os.ReadFile(filepath.Join(dir, resultsFile))
	if err != nil || !strings.Contains(string(b), "interrupted") || !strings.Contains(said.String(), "interrupted") {
		t.Errorf("%v; results:\n%s\nsaid:\n%s", err, b, said)
	}
}

// lockedBuffer takes what a process says while somebody reads it.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}
