package netlab

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"demarc/gateway/netlab/roottest"
)

// Somebody makes the machine's first namespace with iproute2 while a lab stands: the lab can be removed all the same. In a mount namespace whose /run has nothing, for what was done to the machine's own stays.
func TestLabBesideIproute2(t *testing.T) {
	roottest.Require(t)
	const env = "DEMARC_NAMES"
	if os.Getenv(env) == "" {
		self, err := os.Executable()
		check(t, err)
		cmd := exec.CommandContext(t.Context(), "unshare", "--mount", "--propagation", "private", "sh", "-c", `mount -t tmpfs none /run && exec "$0" -test.run '^TestLabBesideIproute2$' -test.v`, self)
		cmd.Env = append(os.Environ(), env+"=1")
		out, err := cmd.CombinedOutput()
		if t.Logf("%s", out); err != nil {
			t.Fatal(err)
		}
		return
	}
	l, err := New("names")
	check(t, err)
	check(t, l.AddNamespace("x"))
	for _, args := range [][]string{{"netns", "add", "foreign"}, {"netns", "del", "foreign"}} {
		if out, err := exec.Command("ip", args...).CombinedOutput(); err != nil {
			t.Errorf("ip %v: %v\n%s", args, err, out)
		}
	}
	check(t, l.Close())
	if left, _ := filepath.Glob(filepath.Join(netnsDir, "*")); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
}
