package bench

import (
	"errors"
	"fmt"
	"math/bits"
	"runtime"
	"slices"
	"sync"

	"golang.org/x/sys/unix"

	"demarc/bench/report"
)

// A core may have two threads (SMT), and the other one of a virtual machine's may be somebody else's machine. Then a CPU does little more than half of its work, for milliseconds or hours, and
// neither /proc/stat nor the time that the host took has a word of it. So a known piece of work is done beside loads, and what it takes is held to what it took at best.

// yardstick is what that work took, all in all. The zero value is ready.
type yardstick struct {
	mu     sync.Mutex
	piece  func(cpu int) (ns float64, ok bool) // of CPU time for a step; nil = pieceOfWork
	best   float64                             // of all pieces
	looks  int
	slow   int    // looks at which a CPU was slowed
	recent uint16 // the last looks, a bit each: it was
}

// yard is this process's: a machine has one best.
var yard yardstick

const (
	pieces  = 5 // of a look at a CPU; the middle one counts, so that an interrupt does not
	firstly = 200
	steps   = 1 << 17 // of a piece: 0.1 ms at 0.8 ns
	slowed  = 1.3     // times the best, on the worse CPU. Beside another machine's thread it was 1.35 to 2
)

// idleSteps keeps the compiler from leaving the work out.
var idleSteps uint64

// pieceOfWork takes the time of steps on a CPU: additions that depend on little, so that they fill a core. A chain of multiplications, or of loads, takes hardly longer where the core is shared.
func pieceOfWork(cpu int) (ns float64, ok bool) {
	took, ok := onCPU(cpu, func() {
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
	return took / steps, ok
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
	var was, one unix.CPUSet
	one.Set(cpu)
	if err := errors.Join(unix.SchedGetaffinity(0, &was), unix.SchedSetaffinity(0, &one)); err != nil {
		return nil, fmt.Errorf("stay on CPU %d: %w", cpu, err)
	}
	return func() { _ = unix.SchedSetaffinity(0, &was) }, nil // it was allowed before
}

// unshared is what a step takes at most on a core that has nothing else to do: 2.2 cycles, where 2.0 and 2.5 were seen and expected. What a cycle takes a chain of multiplications says, each of which is 3 on all of this
// architecture, and which a shared core makes hardly slower. 0 = it cannot be said.
func unshared(cpu int) (ns float64) {
	if runtime.GOARCH != "amd64" {
		return 0
	}
	for range pieces {
		took, ok := onCPU(cpu, func() {
			x := uint64(3)
			for range steps / 4 {
				x *= 0x9e3779b97f4a7c15
			}
			idleSteps += x
		})
		if v := took / (steps / 4) * 2.2 / 3; ok && v > 0 && (ns == 0 || v < ns) {
			ns = v
		}
	}
	return ns
}

// look is what a step takes now on the slower one of the bench's two CPUs; 0 = that cannot be said. It takes a millisecond, the first one 20.
func (y *yardstick) look() float64 {
	y.mu.Lock()
	defer y.mu.Unlock()
	worst := max(y.at(makerCPU), y.at(deviceCPU))
	if worst == 0 {
		return 0
	}
	y.looks++
	y.recent <<= 1
	if worst > slowed*y.best {
		y.slow++
		y.recent |= 1
	}
	return worst
}

// at is what a step takes on a CPU.
func (y *yardstick) at(cpu int) float64 {
	piece, n := y.piece, pieces
	if piece == nil {
		piece = pieceOfWork
	}
	if y.best == 0 {
		n = firstly
		if y.piece == nil {
			y.best = unshared(cpu) // there may be no calm moment in the whole run
		}
	}
	var took []float64
	for range n {
		ns, ok := piece(cpu)
		if !ok || ns <= 0 {
			return 0
		}
		if took = append(took, ns); y.best == 0 || ns < y.best {
			y.best = ns
		}
	}
	slices.Sort(took)
	return took[len(took)/2]
}

// atSpeed says that a CPU is no slower now than it should be, or that it cannot be told. It takes half a millisecond and is in no account.
func (y *yardstick) atSpeed(cpu int) bool {
	y.mu.Lock()
	defer y.mu.Unlock()
	return y.at(cpu) <= slowed*y.best
}

// times is how many times what it takes at best a step took, by two looks around something; 0 = that cannot be said.
func (y *yardstick) times(before, after float64) float64 {
	y.mu.Lock()
	defer y.mu.Unlock()
	if before == 0 || after == 0 {
		return 0
	}
	return (before + after) / 2 / y.best
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
	return report.Speed{Step: float64(int(y.best*1000)) / 1000, Looks: y.looks - since.Looks, Slow: y.slow - since.Slow}
}

// around runs something between two looks, and says how many times as long as at its best the machine takes for its work.
func (y *yardstick) around(run func() error) (times float64, err error) {
	before := y.look()
	if err := run(); err != nil {
		return 0, err
	}
	return y.times(before, y.look()), nil
}

// again says that what was disturbed is to be tried once more: twice where others used this machine, once where another one shares its cores, unless that is how it is all the while.
func (u usage) again(try int) bool {
	if u.foreign > maxForeign || u.steal > maxSteal {
		return try < 2
	}
	return u.slow > slowed && try < 1 && yard.calm()
}

// words say what ran beside.
func (u usage) words() string {
	s := fmt.Sprintf("%.2f CPUs for others, %.1f %% stolen", u.foreign, 100*u.steal)
	if u.slow > slowed {
		s += fmt.Sprintf(", a CPU at %.2f of its speed", 1/u.slow)
	}
	return s
}
