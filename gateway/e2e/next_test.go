package e2e

import (
	"bytes"
	"os"
	"testing"
)

// TestNextReleaseReadsToday: the next release reads entries, states, snapshots and copies as today's builds write them, and what today's refuses is what it writes. Today's
// program has nothing of it.
func TestNextReleaseReadsToday(t *testing.T) {
	later, err := os.ReadFile(nextRelease(t))
	check(t, err)
	now, err := os.ReadFile(program(t))
	check(t, err)
	for _, mark := range []string{nextVersion, "cluster/command.KindNote", "write a line into the audit log", "a note has 1 to 4096 bytes"} {
		if mark != "cluster/command.KindNote" && !bytes.Contains(later, []byte(mark)) {
			t.Errorf("the stand-in has no %q: it is not the next release", mark)
		}
		if bytes.Contains(now, []byte(mark)) {
			t.Errorf("today's program has %q", mark)
		}
	}
	check(t, goTool("test", "-count=1", "-overlay", next.overlay, "-run", "^TestGolden", "./cluster/command", "./cluster/store"))
}
