package e2e

import (
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestClusterLostQuorum: two of three are lost, which docs/recovery.md and docs/cluster.md have the way out of. Until then the one that is left serves and names those that are missing;
// by accident nothing happens; afterwards it takes changes at once, a lost one that comes back is refused by name, and both come as new ones.
func TestClusterLostQuorum(t *testing.T) {
	mostlyWaits(t)
	r := newTrio(t)
	gw1, gw2, wit := r.begin()
	id := gw1.members().Cluster
	gw2.kill()
	wit.kill()
	r.eventually(10*time.Second, "nobody leads, and gw1 has asked both", func() (bool, string) {
		l := gw1.members()
		return l.Leader == "" && gw1.says("gw2").Problem != "" && gw1.says("wit").Problem != "", gw1.must("cluster", "members")
	})
	if _, bad, err := gw1.cli("apply", r.policy("alone")); err == nil || !strings.Contains(bad, "nothing was changed") || !strings.Contains(bad, "gw2 and wit do not answer") {
		t.Errorf("a change without a majority: %v, %s", err, bad)
	}
	recoverCmd := []string{"cluster", "recover", "--data-dir", gw1.dir + "/data"}
	refused := func(says string, more ...string) {
		t.Helper()
		if out, bad, err := gw1.cli(append(recoverCmd, more...)...); err == nil || !strings.Contains(bad, says) {
			t.Errorf("recover %v: %v, %s%s, want %q", more, err, out, bad, says)
		}
	}
	refused("another process uses it", "--cluster-id", id)
	gw1.serves("first", 0)
	check(t, r.end(gw1.p, unix.SIGTERM))
	refused("nothing was changed: if the others are lost for good, say --cluster-id " + id)
	refused("nothing was changed", "--cluster-id", "0123")
	if out := gw1.must(append(recoverCmd, "--cluster-id", id)...); !strings.Contains(out, "forgotten") || !strings.Contains(out, "gw2") || !strings.Contains(out, "wit") {
		t.Error(out)
	}
	gw1.start()
	if out := gw1.must("apply", r.policy("recovered")); !strings.Contains(out, "is served") {
		t.Error(out)
	}
	wit.start()
	r.eventually(10*time.Second, "the lost one is told", func() (bool, string) {
		out, bad, _ := wit.cli("status")
		return strings.Contains(out, "was removed from this cluster"), out + bad
	})
	check(t, r.end(wit.p, unix.SIGTERM))
	for _, m := range []*machine{wit, gw2} {
		m.aside()
		m.enter(gw1, "")
	}
	for _, m := range []*machine{gw1, gw2, wit} {
		m.whole(3)
	}
	if out := gw2.must("apply", r.policy("again")); !strings.Contains(out, "gw1 and gw2 serve it") {
		t.Error(out)
	}
}
