package cli

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"demarc/gateway/netlab/roottest"
)

// TestPrecede: all threads of a node come before others of the machine, unless somebody chose otherwise; where that is refused nothing is changed, and it is said how to allow it.
func TestPrecede(t *testing.T) {
	if os.Getenv("DEMARC_TEST_PRECEDE") != "" {
		err := precede()
		tasks, e := os.ReadDir("/proc/self/task")
		if e != nil {
			t.Fatal(e)
		}
		seen := map[int]bool{}
		for _, task := range tasks {
			var tid int
			fmt.Sscan(task.Name(), &tid)
			if prio, err := unix.Getpriority(unix.PRIO_PROCESS, tid); err == nil {
				seen[20-prio] = true
			}
		}
		fmt.Printf("nice %v error %v\n", seen, err)
		return
	}
	roottest.Require(t)
	own, err := unix.Getpriority(unix.PRIO_PROCESS, 0) // other tests of this process may have run a node
	if err != nil {
		t.Fatal(err)
	}
	for _, x := range []struct {
		name string
		nice int
		with []string
		want string
	}{
		{"as it is", 0, nil, "nice map[-10:true] error <nil>"},
		{"chosen", 3, nil, "nice map[3:true] error <nil>"},
		{"refused", 0, []string{"setpriv", "--bounding-set", "-sys_nice"}, "nice map[0:true] error a niceness of -10: "},
	} {
		t.Run(x.name, func(t *testing.T) {
			args := append(append([]string{"nice", "-n", fmt.Sprint(x.nice - (20 - own))}, x.with...), os.Args[0], "-test.run", "^TestPrecede$", "-test.v")
			c := exec.Command(args[0], args[1:]...)
			c.Env = append(os.Environ(), "DEMARC_TEST_PRECEDE=1")
			if out, err := c.CombinedOutput(); err != nil || !strings.Contains(string(out), x.want) {
				t.Errorf("%v: %s, want %q", err, out, x.want)
			}
		})
	}
}
