//go:build plant

package worker

// noLook has nobody look at deadlines before frames leave: a fault that is there to see that a judge finds it. paced gives the clock another pace. Both are in programs alone that are
// built for a test, and set before anything runs.
var (
	noLook bool
	from   uint64 // ns of CLOCK_BOOTTIME: until then the clock is true
	rate   = 1.0
)

// Plant puts a fault into every worker; false = it is none of this room's.
func Plant(fault string) bool {
	noLook = noLook || fault == "no-look"
	return fault == "no-look"
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
