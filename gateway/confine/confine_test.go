package confine

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"demarc/gateway/netlab/roottest"
)

const childEnv = "DEMARC_CONFINE_TEST"

func TestMain(m *testing.M) {
	if os.Getenv(childEnv) != "" {
		child()
	}
	os.Exit(m.Run())
}

// child keeps two capabilities, and prints what each of its threads has and what a program has that it executes.
func child() {
	for range 8 { // threads of all sorts: in system calls, and running
		go func() { time.Sleep(time.Minute) }()
		go func() { exec.Command("sleep", "60").Run() }()
	}
	time.Sleep(50 * time.Millisecond)
	left, err := Keep([]Capability{NetRaw, BPF})
	fmt.Println("left", left, err)
	files, _ := filepath.Glob("/proc/self/task/*/status")
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			continue // a thread that has ended
		}
		fmt.Print(string(b))
	}
	out, err := exec.Command("cat", "/proc/self/status").CombinedOutput()
	fmt.Print(string(out))
	if err != nil {
		fmt.Println("exec", err)
	}
	os.Exit(0)
}

func TestKeepOnEveryThread(t *testing.T) {
	roottest.Require(t)
	c := exec.Command(os.Args[0])
	c.Env = append(os.Environ(), childEnv+"=1")
	out, err := c.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	want := uint64(1<<NetRaw | 1<<BPF)
	threads := 0
	for line := range strings.Lines(string(out)) {
		k, v, _ := strings.Cut(strings.TrimSpace(line), ":")
		v = strings.TrimSpace(v)
		switch k {
		case "CapPrm", "CapEff":
			threads++
			if n, err := strconv.ParseUint(v, 16, 64); err != nil || n != want {
				t.Errorf("%s is %s, want %016x", k, v, want)
			}
		case "CapInh", "CapAmb":
			if n, err := strconv.ParseUint(v, 16, 64); err != nil || n != 0 {
				t.Errorf("%s is %s", k, v)
			}
		case "NoNewPrivs":
			if v != "1" {
				t.Errorf("NoNewPrivs is %s", v)
			}
		}
	}
	if threads < 2*4 || !strings.HasPrefix(string(out), "left net_raw bpf <nil>\n") {
		t.Errorf("%d threads looked at:\n%s", threads/2, out)
	}
}

func TestNames(t *testing.T) {
	for _, c := range append([]Capability{SysAdmin}, Running...) {
		if _, err := strconv.Atoi(c.String()); err == nil {
			t.Errorf("capability %d has no name", c)
		}
	}
	if Capability(40).String() != "40" {
		t.Error(Capability(40).String())
	}
}
