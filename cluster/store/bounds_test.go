package store

import (
	"flag"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"strings"
	"testing"
	"time"

	"demarc/cluster/command"
)

var applies = flag.Int("applies", 100, "how many policies of 1 MB TestBounds applies; the issue's figure is 500")

// TestBounds: very many policies of 1 MB (10,000 rules) leave a data directory, and memory, that are bounded by bytes, at the end and after a start.
func TestBounds(t *testing.T) {
	dir := t.TempDir()
	s, err := Open(config(dir))
	must(t, err)
	must(t, s.Bootstrap())
	b := command.DefaultBounds()
	propose(t, s, &command.Entry{Level: 1, Kind: command.KindInit, Init: &command.Init{Cluster: "c", Bounds: b}})
	rules := rulesOf(1_000_000)
	began := time.Now()
	look := func(when string) {
		t.Helper()
		n := size(t, dir)
		var m runtime.MemStats
		debug.FreeOSMemory()
		runtime.ReadMemStats(&m)
		log, err := os.Stat(filepath.Join(dir, "raft.db"))
		must(t, err)
		t.Logf("%s: data directory %d MiB, of it the log's file %d MiB; heap %d MiB; %s", when, n>>20, log.Size()>>20, m.HeapAlloc>>20, resident(t))
		if want := int64(min(*applies, b.Revisions)) + 64; n>>20 > min(want, 512) || log.Size() > 48<<20 {
			t.Errorf("%s: data directory %d MiB, log's file %d MiB, want at most %d and 48", when, n>>20, log.Size()>>20, min(want, 512))
		}
		if m.HeapAlloc > 24<<20 {
			t.Errorf("%s: %d MiB of heap", when, m.HeapAlloc>>20)
		}
	}
	for i := range *applies {
		propose(t, s, revise(fmt.Sprintf("# policy %d\n%s", i, rules)))
		if i%100 == 99 {
			look(fmt.Sprint(i+1, " applies"))
		}
	}
	t.Logf("%d applies in %s", *applies, time.Since(began).Round(time.Millisecond))
	look("at the end")
	must(t, s.Close())
	s, err = Open(config(dir))
	must(t, err)
	defer s.Close()
	eventually(t, "the log is gone through", s.CaughtUp)
	if want := min(*applies, b.Revisions); len(s.State().Revisions) != want {
		t.Errorf("%d revisions are kept, want %d", len(s.State().Revisions), want)
	}
	look("after a start")
}

func size(t testing.TB, dir string) (n int64) {
	t.Helper()
	must(t, filepath.WalkDir(dir, func(_ string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		i, err := e.Info()
		if err == nil {
			n += i.Size()
		}
		return err
	}))
	return n
}

// resident is what the kernel says of this process's memory.
func resident(t testing.TB) string {
	t.Helper()
	b, err := os.ReadFile("/proc/self/status")
	must(t, err)
	var out []string
	for line := range strings.Lines(string(b)) {
		if strings.HasPrefix(line, "VmRSS") || strings.HasPrefix(line, "RssAnon") || strings.HasPrefix(line, "RssFile") {
			out = append(out, strings.Join(strings.Fields(line), " "))
		}
	}
	return strings.Join(out, ", ")
}

// rulesOf is so many bytes that look like a policy of many rules, no two alike.
func rulesOf(bytes int) string {
	dice := rand.New(rand.NewPCG(1, 2))
	var b strings.Builder
	for i := 0; b.Len() < bytes; i++ {
		fmt.Fprintf(&b, "[[tenant.rule]]\nname = \"rule-%d\"\naction = \"allow\"\nto = \"198.%d.%d.%d/32\"\nproto = \"tcp\"\nports = \"%d\"\n", i, 18+dice.IntN(2), dice.IntN(256), dice.IntN(256), 1+dice.IntN(65535))
	}
	return b.String()[:bytes]
}
