package host

import (
	"context"
	"flag"
	"fmt"
	"runtime"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Machine is how far the processors were there, seen by a thread on each that comes before all programs of the machine: what holds it up is not load, it is the
// machine itself, which was elsewhere (a hypervisor's other guests, mostly).
type Machine struct {
	Seconds float64 `json:"seconds"`
	CPUs    int     `json:"cpus"`
	AwayMs  float64 `json:"away_ms"`  // over all CPUs, of waits longer than awayLeast
	WorstMs float64 `json:"worst_ms"` // the longest
	Times   int     `json:"times"`    // how many
}

// Disturbed says whether a time of a few milliseconds, or a rate, could have been another one on a machine that was there.
func (m Machine) Disturbed() bool {
	return m.WorstMs >= awayWorst || m.AwayMs >= awayPart*1000*m.Seconds*float64(m.CPUs)
}

func (m Machine) String() string {
	return fmt.Sprintf("the machine was away %d times, %.0f ms in all (%.1f %% of %d CPUs), %.1f ms at the longest", m.Times, m.AwayMs, m.AwayMs/10/max(0.001, m.Seconds)/float64(max(1, m.CPUs)), m.CPUs, m.WorstMs)
}

const (
	awayEvery = 2 * time.Millisecond // how often a thread looks
	awayLeast = time.Millisecond     // a thread that is this late was held up

	// Programs alone, on a guest that is left alone, make a thread that comes before them late by 3 to 8 ms at most and 0.1 to 0.4 % of the time. Those that failed had 25 ms and more, and 5 to 11 %.
	awayWorst = 10.0 // ms
	awayPart  = 0.01 // of all CPUs' time
)

func machine(ctx context.Context, fs *flag.FlagSet, args []string) (any, error) {
	if err := fs.Parse(args); err != nil {
		return nil, err
	}
	var allowed unix.CPUSet
	if err := unix.SchedGetaffinity(0, &allowed); err != nil {
		return nil, err
	}
	runtime.GOMAXPROCS(allowed.Count() + 2) // nobody waits for a turn in here
	m := Machine{CPUs: allowed.Count()}
	var mu sync.Mutex
	var all sync.WaitGroup
	stop := make(chan struct{})
	ready := make(chan error, m.CPUs)
	for cpu := range len(allowed) * 64 {
		if !allowed.IsSet(cpu) {
			continue
		}
		all.Go(func() {
			runtime.LockOSThread() // and it ends with the goroutine
			if err := alone(cpu); err != nil {
				ready <- fmt.Errorf("watch CPU %d: %w", cpu, err)
				return
			}
			ready <- nil
			for next := time.Now(); ; {
				select {
				case <-stop:
					return
				default:
				}
				next = next.Add(awayEvery)
				for d := time.Until(next); d > 0; d = time.Until(next) {
					t := unix.NsecToTimespec(int64(d))
					_ = unix.ClockNanosleep(unix.CLOCK_MONOTONIC, 0, &t, nil) // a signal may end it early
				}
				if late := time.Since(next); late >= awayLeast {
					mu.Lock()
					ms := float64(late) / 1e6
					m.AwayMs, m.WorstMs, m.Times = m.AwayMs+ms, max(m.WorstMs, ms), m.Times+1
					mu.Unlock()
					next = time.Now()
				}
			}
		})
	}
	for range m.CPUs {
		if err := <-ready; err != nil {
			return nil, err
		}
	}
	start := time.Now()
	end, err := serving(ctx, "machine")
	if err != nil {
		return nil, err
	}
	<-end.Done()
	m.Seconds = time.Since(start).Seconds()
	close(stop)
	all.Wait()
	return m, nil
}

// alone binds the calling thread to a CPU, where it comes before all that is not the kernel's own.
func alone(cpu int) error {
	var only unix.CPUSet
	only.Set(cpu)
	if err := unix.SchedSetaffinity(0, &only); err != nil {
		return err
	}
	if err := unix.SchedSetAttr(0, &unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: unix.SCHED_FIFO, Priority: 98}, 0); err != nil {
		return err
	}
	return unix.Prctl(unix.PR_SET_TIMERSLACK, 1000, 0, 0, 0) // ns
}
