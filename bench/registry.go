package bench

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

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
	table   *stint       // its part in `demarc bench --table`; nil = none
	full    *stint       // its part in `demarc bench --full`; nil = none
	needs   func() error // says what is missing on this machine besides root and two CPUs: packages; nil = nothing
	part    int          // of its stint, from 1, where that is in parts
}

// stint is what a scenario does in a plan.
type stint struct {
	args      []string // of its command
	seconds   float64  // that it takes here
	memoryMiB int      // free memory without which it is not begun
	parts     []part   // not of the short plan: it is measured in these, so that a run that ends loses one of them; nil = in one
}

// part of a stint: cases that no other part has.
type part struct {
	args    []string // behind those of the stint
	seconds float64
}

// planName is which stints a run is made of.
type planName string

// The plans, as they are named in results. Those but the short one are measured in parts, which are kept.
const (
	planShort planName = "short" // twelve minutes
	planTable planName = "table" // each row of the table once: what the sample is made of
	planFull  planName = "full"  // all of the table's cases with each other
)

// of is where a scenario has its stint of a plan.
func (p planName) of(s *scenario) **stint {
	switch p {
	case planTable:
		return &s.table
	case planFull:
		return &s.full
	}
	return &s.short
}

// inParts are the scenarios of a plan as they are run: one that is in parts stands there once for each.
func inParts(p planName, list []scenario) (units []scenario) {
	for _, s := range list {
		whole := *p.of(&s)
		if whole == nil || whole.parts == nil {
			units = append(units, s)
			continue
		}
		for i, x := range whole.parts {
			s.part, *p.of(&s) = i+1, &stint{args: slices.Concat(whole.args, x.args), seconds: x.seconds, memoryMiB: whole.memoryMiB}
			units = append(units, s)
		}
	}
	return units
}

// bites is a stint of these parts.
func bites(memoryMiB int, args []string, parts ...part) *stint {
	return &stint{args: args, seconds: secondsOf(parts), memoryMiB: memoryMiB, parts: parts}
}

// key names a part of a run, in the names of files too.
func (s *scenario) key() string {
	if s.part == 0 {
		return s.name
	}
	return fmt.Sprintf("%s-%d", s.name, s.part)
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

// failoverParts are the rows of failover, each by itself, but those of peers, which are held against the row gone.
func failoverParts() (list []part) {
	beside, peers := []string{besidePeers}, 0.0
	for i := range failoverRows {
		if r := &failoverRows[i]; r.peer {
			beside, peers = append(beside, r.name), peers+r.estimate(true, 0, 0).Seconds()
		}
	}
	for i := range failoverRows {
		if r := &failoverRows[i]; !r.peer {
			rows, seconds := r.name, r.estimate(true, 0, fullIdle).Seconds()
			if r.name == besidePeers {
				rows, seconds = strings.Join(beside, ","), seconds+peers
			}
			list = append(list, part{[]string{"--rows", rows}, max(60, seconds)})
		}
	}
	return list
}

// secondsOf are those of all parts.
func secondsOf(list []part) (seconds float64) {
	for _, p := range list {
		seconds += p.seconds
	}
	return seconds
}
