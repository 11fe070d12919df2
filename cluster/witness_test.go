package cluster

import (
	"bufio"
	"context"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime/debug"
	"strconv"
	"strings"
	"testing"
	"time"

	"demarc/cluster/clustertest"
	"demarc/cluster/command"
)

var witnessApplies = flag.Int("witness-applies", 60, "how many policies of 1 MB TestWitnessMemory applies; the issue's figure is 500")

const witnessEnv = "DEMARC_TEST_WITNESS" // directory, keys and address of a witness that this program is to be

func TestMain(m *testing.M) {
	if w := os.Getenv(witnessEnv); w != "" {
		if err := beWitness(strings.Split(w, "\n")); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

// beWitness runs a witness until its input ends.
func beWitness(at []string) error {
	debug.SetGCPercent(40) // as the program does
	debug.SetMemoryLimit(24 << 20)
	begin := time.Now()
	n, err := Open(Config{Dir: at[0], Name: "wit", Role: command.RoleWitness, Version: "test", Mono: func() uint64 { return uint64(time.Since(begin)) + 1<<40 }, Wall: time.Now,
		Serve: func(context.Context, command.Revision, []byte) error { return nil }, Net: &Net{Keys: at[1], Listen: at[2]}})
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(context.Background())
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		cancel()
	}()
	fmt.Println("runs")
	if err := n.Run(ctx); err != nil {
		return err
	}
	return n.Close()
}

// witness starts one. stop ends it.
func witness(t testing.TB, h *host) (pid int, stop func()) {
	t.Helper()
	c := exec.Command(os.Args[0])
	c.Env = append(os.Environ(), witnessEnv+"="+strings.Join([]string{h.dir, h.keys, h.address}, "\n"))
	c.Stderr = os.Stderr
	in, err := c.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := c.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	done := false
	stop = func() {
		if done {
			return
		}
		done = true
		in.Close()
		if err := c.Wait(); err != nil {
			t.Error(err)
		}
	}
	t.Cleanup(stop)
	if _, err := bufio.NewReader(out).ReadString('\n'); err != nil {
		t.Fatal(err)
	}
	return c.Process.Pid, stop
}

// memory is what the kernel says of a process, in kB.
func memory(t testing.TB, pid int) map[string]int {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]int{}
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); len(f) == 3 && f[2] == "kB" {
			out[strings.TrimSuffix(f[0], ":")], _ = strconv.Atoi(f[1])
		}
	}
	return out
}

// TestWitnessMemory: a witness in a process of its own stays under 40 MB resident while policies of 10,000 rules are applied, and after a start.
func TestWitnessMemory(t *testing.T) {
	s := newSite(t)
	gw1, wit := s.host("gw1", command.RoleGateway), s.host("wit", command.RoleWitness)
	m := gw1.run()
	begun(t, m)
	token, _, err := m.Token(t.Context(), command.RoleWitness, time.Hour, command.Who{Author: "root"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := wit.join(m.Address(), token, ""); err != nil {
		t.Fatal(err)
	}
	pid, stop := witness(t, wit)
	eventually(t, "the witness votes", func() bool {
		v, err := m.st.Voters()
		return err == nil && len(v) == 2 && v[0].Votes && v[1].Votes
	})
	most := 0
	look := func(when string) {
		t.Helper()
		k := memory(t, pid)
		most = max(most, k["VmRSS"])
		t.Logf("%s: resident %d kB (of its own %d, of files %d), at most %d", when, k["VmRSS"], k["RssAnon"], k["RssFile"], k["VmHWM"])
	}
	rules := clustertest.Rules(1_000_000)
	began := time.Now()
	for i := range *witnessApplies {
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		if _, err := m.Revise(ctx, Change{Text: []byte(fmt.Sprintf("# %d\n%s", i, rules))}); err != nil {
			t.Fatal(err)
		}
		cancel()
		if i%20 == 19 {
			look(fmt.Sprint(i+1, " applies"))
		}
	}
	t.Logf("%d applies in %s", *witnessApplies, time.Since(began).Round(time.Millisecond))
	look("at the end")
	stop()
	pid, stop = witness(t, wit)
	defer stop()
	eventually(t, "it takes part again", func() bool {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		_, err := m.Revise(ctx, Change{Text: []byte(rules)})
		return err == nil
	})
	look("after a start")
	if most > 40_000 {
		t.Errorf("%d kB resident, want at most 40 MB", most)
	}
}
