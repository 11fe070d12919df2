//go:build plant

package worker

import (
	"os"
	"os/signal"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// noLook has nobody look at deadlines before frames leave: a fault that is there to see that a judge finds it. paced gives the clock another pace. Both are in programs alone that are
// built for a test, and set before anything runs. endless has all workers in a loop that does not end, from SIGUSR2 on.
var (
	noLook  bool
	endless atomic.Bool
	from    uint64 // ns of CLOCK_BOOTTIME: until then the clock is true
	rate    = 1.0
)

// Plant puts a fault into every worker; false = it is none of this room's.
func Plant(fault string) bool {
	switch fault {
	case "no-look":
		noLook = true
	case "worker-loops":
		c := make(chan os.Signal, 1)
		signal.Notify(c, unix.SIGUSR2)
		go func() {
			<-c
			endless.Store(true)
		}()
	default:
		return false
	}
	return true
}

func caught() bool { return endless.Load() }

// dawdle has a worker that does not look be slow with what it has in hand: for one that is done in microseconds a stop would fall between two bursts most times, and show nothing.
func dawdle(frames int) {
	if frames > 0 {
		time.Sleep(3 * time.Millisecond)
	}
}

// Pace has the clock of this process go so fast from a time on.
func Pace(since uint64, by float64) { from, rate = since, by }

// TrueTime is when, by CLOCK_BOOTTIME, the clock shows ns.
func TrueTime(ns uint64) uint64 {
	if rate == 1 || ns <= from || ns == ^uint64(0) {
		return ns
	}
	return from + uint64(float64(ns-from)/rate)
}

func paced(ns uint64) uint64 {
	if rate == 1 || ns <= from {
		return ns
	}
	return from + uint64(float64(ns-from)*rate)
}
