package bench

import (
	"cmp"
	"fmt"
	"slices"

	"github.com/spf13/cobra"
)

// scenario is a bench of its own, and a part of `demarc bench`. The file that builds it registers it in its init.
type scenario struct {
	place int // in help, run and report, rising
	name  string
	about string // one line
	// command makes `demarc bench NAME`. With --json it prints one report.Output to its standard output, also of what it had measured when it was interrupted or
	// failed; its progress, lines, goes to its standard error.
	command func() *cobra.Command
	short   *stint       // its part in `demarc bench`; nil = none
	full    *stint       // its part in `demarc bench --full`; nil = none
	needs   func() error // says what is missing on this machine besides root and two CPUs: packages; nil = nothing
}

// stint is what a scenario does in a plan.
type stint struct {
	args      []string // of its command
	seconds   float64  // that it takes here
	memoryMiB int      // free memory without which it is not begun
}

var registered []scenario

// register takes a scenario into the suite.
func register(s scenario) { registered = append(registered, s) }

// scenarios are those that are registered, in order.
func scenarios() []scenario {
	list := slices.Clone(registered)
	slices.SortFunc(list, func(a, b scenario) int { return cmp.Or(cmp.Compare(a.place, b.place), cmp.Compare(a.name, b.name)) })
	return list
}

// names of the scenarios that are part of a plan.
func names(of func(*scenario) bool) (list []string) {
	for _, s := range scenarios() {
		if of(&s) {
			list = append(list, s.name)
		}
	}
	return list
}

// enoughMemory says what to do when so much is not free.
func enoughMemory(mib int) error {
	free, err := memoryOf("/proc/meminfo", "MemAvailable:")
	if err != nil {
		return err
	}
	if have := int(free >> 20); have < mib {
		return fmt.Errorf("the bench needs %d MiB of free memory, and %d MiB are free: end what uses it, or measure less", mib, have)
	}
	return nil
}
