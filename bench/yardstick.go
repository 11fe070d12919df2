package bench

import (
	"errors"
	"fmt"
	"math"
	"math/bits"
	"runtime"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"demarc/bench/report"
)

// A core may have two threads (SMT), and the other one of a virtual machine's may be somebody else's machine. Then a CPU does little more than half of its work, for milliseconds or hours, and
// neither /proc/stat nor the time that the host took has a word of it. So a known piece of work is done beside loads, and what it takes is held to what it took at best.

// yardstick is what that work took, all in all. The zero value is ready.
type yardstick struct {
	mu     sync.Mutex
	piece  func(cpu int) (step, link float64, ok bool) // nil = pieceOfWork
	best   map[int]float64                             // cycles a step, of each CPU
	looks  int
	slow   int    // looks at which a CPU was slowed
	recent uint16 // the last looks, a bit each: it was
}

// yard is this process's: a machine has one best.
var yard yardstick

const (
	pieces      = 5 // of a look at a CPU; the middle one counts, so that an interrupt does not
	firstPieces = 200
	apart       = time.Millisecond // of pieces of a look beside a load: a core is shared by the millisecond
	steps       = 1 << 16          // of a piece: 0.05 ms
	maxSlowdown = 1.3              // beside another machine's thread it was 1.4 to 2.2
	fewCycles   = 2.2              // that a step takes at most on a core of its own; 2.0 were measured, 2.5 are expected of one with four adders
	perMultiple = 3                // cycles, on all of amd64
)

// idleSteps keeps the compiler from leaving the work out.
var idleSteps uint64

// pieceOfWork is what a step takes on a CPU, in ns: additions that depend on little, so that they fill a core; and a link of a chain of multiplications, which hides behind its own latency and takes hardly longer where the core is shared. So that says what a cycle is, and a clock
// that changes is not taken for other work.
func pieceOfWork(cpu int) (step, link float64, ok bool) {
	wide, ok := onCPU(cpu, func() {
		var a, b, c, d, e, f, g, h uint64 = 1, 2, 3, 4, 5, 6, 7, 8
		for range steps {
			a += 3
			b ^= a
			c += 7
			d ^= c
			e += 11
			f ^= e
			g += 13
			h ^= g
		}
		idleSteps += b + d + f + h
	})
	if !ok {
		return 0, 0, false
	}
	const links = steps / 4
	chain, ok := onCPU(cpu, func() {
		x := uint64(3)
		for range links {
			x *= 0x9e3779b97f4a7c15
		}
		idleSteps += x
	})
	return wide / steps, chain / links, ok && wide > 0 && chain > 0
}

// onCPU is what work takes on a CPU, in ns of its thread's own time: who waits for a CPU is no slower.
func onCPU(cpu int, work func()) (ns float64, ok bool) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	back, err := stayOn(cpu)
	if err != nil {
		return 0, false
	}
	defer back()
	var from, to unix.Timespec
	if unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &from) != nil {
		return 0, false
	}
	work()
	if unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &to) != nil {
		return 0, false
	}
	return float64(to.Nano() - from.Nano()), true
}

// stayOn has the thread, which must be locked, stay on a CPU until back.
func stayOn(cpu int) (back func(), err error) {
	was, err := allowed()
	if err != nil {
		return nil, err
	}
	if cpu < 0 || !was.IsSet(cpu) {
		return nil, fmt.Errorf("CPU %d is none of those that this process may use", cpu)
	}
	var one unix.CPUSet
	one.Set(cpu)
	if err := unix.SchedSetaffinity(0, &one); err != nil {
		return nil, fmt.Errorf("stay on CPU %d: %w", cpu, err)
	}
	return func() { _ = unix.SchedSetaffinity(0, &was) }, nil // it was allowed before
}

// allowed are the CPUs that the thread may run on.
func allowed() (set unix.CPUSet, err error) {
	if err := unix.SchedGetaffinity(0, &set); err != nil {
		return set, fmt.Errorf("the CPUs of this process: %w", err)
	}
	return set, nil
}

// lastCPU is the last one that this process may use: the first one of a machine has its interrupts.
func lastCPU() (int, error) {
	set, err := allowed()
	for cpu := 1023; err == nil && cpu >= 0; cpu-- {
		if set.IsSet(cpu) {
			return cpu, nil
		}
	}
	return 0, errors.Join(err, errors.New("this process may use no CPU"))
}

// look is how many times as long as at its best work takes now, on the slower one of these CPUs, or of the bench's two; 0 = that cannot be said. It takes some 5 ms for each, the first one four times that.
func (y *yardstick) look(cpus ...int) (slowdown float64) {
	y.mu.Lock()
	defer y.mu.Unlock()
	if cpus == nil {
		cpus = []int{makerCPU, deviceCPU}
	}
	for _, cpu := range cpus {
		at := y.at(cpu, apart)
		if at == 0 {
			return 0
		}
		slowdown = max(slowdown, at)
	}
	y.looks++
	y.recent <<= 1
	if slowdown > maxSlowdown {
		y.slow++
		y.recent |= 1
	}
	return slowdown
}

// at is that of one CPU.
func (y *yardstick) at(cpu int, apart time.Duration) (slowdown float64) {
	piece := y.piece
	if piece == nil {
		piece = pieceOfWork
	}
	several := func(n int, apart time.Duration) (cycles []float64) { // sorted
		cycle := math.Inf(1)
		for range n {
			step, link, ok := piece(cpu)
			if !ok {
				return nil
			}
			// The least counts: an interrupt in a chain would make of a cycle twice that, and of a core that is shared one at its best.
			cycle = min(cycle, link/perMultiple)
			cycles = append(cycles, step)
			time.Sleep(apart)
		}
		for i := range cycles {
			cycles[i] /= cycle
		}
		slices.Sort(cycles)
		return cycles
	}
	if y.best == nil {
		y.best = map[int]float64{}
	}
	if y.best[cpu] == 0 {
		first := several(firstPieces, 0)
		if first == nil {
			return 0
		}
		// There may be no calm moment in the whole run. A core that is shared is never twice the same, one that is narrow is.
		y.best[cpu] = first[0]
		if runtime.GOARCH == "amd64" && first[0] > fewCycles && first[len(first)*9/10] > 1.05*first[len(first)/10] {
			y.best[cpu] = fewCycles
		}
	}
	now := several(pieces, apart)
	if now == nil {
		return 0
	}
	y.best[cpu] = min(y.best[cpu], now[0])
	return now[len(now)/2] / y.best[cpu]
}

// atSpeed says that a CPU is no slower now than it should be, or that it cannot be told. It takes half a millisecond and is in no account.
func (y *yardstick) atSpeed(cpu int) bool {
	y.mu.Lock()
	defer y.mu.Unlock()
	return y.at(cpu, 0) <= maxSlowdown
}

// around runs something between two looks, and says how many times as long as at its best the machine takes for its work; 0 = that cannot be said.
func (y *yardstick) around(run func() error) (slowdown float64, err error) {
	before := y.look()
	if err := run(); err != nil {
		return 0, err
	}
	if after := y.look(); before > 0 && after > 0 {
		slowdown = (before + after) / 2
	}
	return slowdown, nil
}

// calm says that the CPUs were at their speed in more than half of the last looks: elsewise to do something again finds nothing else.
func (y *yardstick) calm() bool {
	y.mu.Lock()
	defer y.mu.Unlock()
	return bits.OnesCount16(y.recent) < 8
}

// speed is that of all looks since an earlier account.
func (y *yardstick) speed(since report.Speed) report.Speed {
	y.mu.Lock()
	defer y.mu.Unlock()
	return report.Speed{Looks: y.looks - since.Looks, Slow: y.slow - since.Slow}
}

// others says that something else ran on this machine, or its host took time.
func (u usage) others() bool { return u.foreign > maxForeign || u.steal > maxSteal }

func (u usage) disturbed() bool { return u.others() || u.slowdown > maxSlowdown }

// again says that what was disturbed is to be tried once more: twice where others used this machine, once where another one shares its cores, unless that is how it is all the while.
func (u usage) again(try int) bool {
	if u.others() {
		return try < 2
	}
	return u.slowdown > maxSlowdown && try < 1 && yard.calm()
}

// words say what ran beside.
func (u usage) words() string {
	s := fmt.Sprintf("%.2f CPUs for others, %.1f %% stolen", u.foreign, 100*u.steal)
	if u.slowdown > maxSlowdown {
		s += fmt.Sprintf(", a CPU at %.2f of its speed", 1/u.slowdown)
	}
	return s
}
