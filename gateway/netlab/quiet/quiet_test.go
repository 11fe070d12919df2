package quiet

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"demarc/gateway/netlab"
	"demarc/gateway/netlab/host"
	"demarc/gateway/netlab/roottest"
)

func TestMain(m *testing.M) {
	netlab.Init()
	os.Exit(m.Run())
}

// told is a test that is judged.
type told struct {
	testing.TB
	errors, logs []string
	fatal        string
}

func (t *told) Helper()                   {}
func (t *told) Logf(f string, a ...any)   { t.logs = append(t.logs, fmt.Sprintf(f, a...)) }
func (t *told) Failed() bool              { return len(t.errors) > 0 }
func (t *told) Error(a ...any)            { t.errors = append(t.errors, fmt.Sprint(a...)) }
func (t *told) Fatalf(f string, a ...any) { t.fatal = fmt.Sprintf(f, a...); runtime.Goexit() }

func TestJudge(t *testing.T) {
	there, away := host.Machine{Seconds: 4, CPUs: 2, WorstMs: 2, AwayMs: 20}, host.Machine{Seconds: 4, CPUs: 2, WorstMs: 30, AwayMs: 60}
	for _, c := range []struct {
		name   string
		seen   []host.Machine // in each try
		missed []bool
		faults int
	}{
		{"held, the machine was there", []host.Machine{there}, []bool{false}, 0},
		{"held, the machine was elsewhere", []host.Machine{away}, []bool{false}, 0},
		{"missed, the machine was there", []host.Machine{there}, []bool{true}, 1},
		{"missed while it was elsewhere, then held", []host.Machine{away, there}, []bool{true, false}, 0},
		{"missed while it was elsewhere, and again while it was there", []host.Machine{away, there}, []bool{true, true}, 1},
		{"missed, and the machine was never there", []host.Machine{away, away, away}, []bool{true, true, true}, 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			x, n, pauses := &told{}, 0, 0
			judge(x, 3, func(time.Duration) { pauses++ }, func() (func() (host.Machine, error), error) {
				return func() (host.Machine, error) { return c.seen[n-1], nil }, nil
			}, func(l *Limits) {
				n++
				if c.missed[n-1] {
					l.Missed("%d ms", 50)
				}
			})
			if n != len(c.seen) || len(x.errors) != c.faults || pauses != n-1 {
				t.Errorf("%d tries, %d pauses, faults %q", n, pauses, x.errors)
			}
			if said := strings.Count(strings.Join(x.logs, "\n"), "figure: not judged"); said != n-1 {
				t.Errorf("%d of %d tries that do not count are in the log: %q", said, n-1, x.logs)
			}
		})
	}
}

// What is no time counts at once, and nothing is tried again behind it.
func TestJudgeAFault(t *testing.T) {
	x, n := &told{}, 0
	judge(x, 3, nil, func() (func() (host.Machine, error), error) {
		return func() (host.Machine, error) { return host.Machine{Seconds: 1, CPUs: 2, WorstMs: 30}, nil }, nil
	}, func(l *Limits) {
		n++
		x.Error("a packet was lost")
		l.Missed("50 ms")
	})
	if n != 1 || len(x.errors) != 2 {
		t.Errorf("%d tries, faults %q", n, x.errors)
	}
}

// A machine that cannot be looked at judges nothing.
func TestJudgeCannotLook(t *testing.T) {
	for _, c := range []struct{ start, end error }{{errors.New("no"), nil}, {nil, errors.New("no")}} {
		x, done := &told{}, make(chan struct{})
		go func() {
			defer close(done)
			judge(x, 3, nil, func() (func() (host.Machine, error), error) {
				return func() (host.Machine, error) { return host.Machine{}, c.end }, c.start
			}, func(*Limits) {})
		}()
		if <-done; x.fatal != "watch the machine: no" {
			t.Errorf("%q", x.fatal)
		}
	}
}

// Threads that come before all programs, with all CPUs to themselves, are a machine that is elsewhere; programs at work on all of them are not.
func TestMachineIsElsewhere(t *testing.T) {
	roottest.Require(t)
	look := func(work func()) host.Machine {
		seen, err := watch()
		if err != nil {
			t.Fatal(err)
		}
		var all sync.WaitGroup
		for range runtime.NumCPU() {
			all.Go(work)
		}
		all.Wait()
		m, err := seen()
		if err != nil {
			t.Fatal(err)
		}
		t.Log(m)
		return m
	}
	spin := func(d time.Duration) {
		for begin := time.Now(); time.Since(begin) < d; {
		}
	}
	// Another guest of the machine's may take it away at any time: the least of some looks is what programs do. A thread that waits its turn among them would be late most of the time.
	least := 1.0
	for range 5 {
		m := look(func() {
			var more sync.WaitGroup
			for range 4 {
				more.Go(func() { spin(200 * time.Millisecond) })
			}
			more.Wait()
		})
		least = min(least, m.AwayMs/1e3/m.Seconds/float64(m.CPUs))
	}
	away := look(func() {
		runtime.LockOSThread() // and it ends with the goroutine
		if err := unix.SchedSetAttr(0, &unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: unix.SCHED_FIFO, Priority: 99}, 0); err != nil {
			t.Error(err)
		}
		time.Sleep(50 * time.Millisecond)
		spin(40 * time.Millisecond)
		time.Sleep(50 * time.Millisecond)
	})
	if least > 0.3 {
		t.Errorf("beside programs it is said to be elsewhere for %.0f %% of the time", 100*least)
	}
	if away.WorstMs < 25 || !away.Disturbed() {
		t.Errorf("while it was elsewhere for 40 ms: %s", away)
	}
}
