package main

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"
)

// cpuTicks reads the first line of /proc/stat: how many ticks all CPUs have had, and how many of those their host gave to somebody else (steal, proc(5)).
func cpuTicks(text string) (all, stolen float64, err error) {
	line, _, _ := strings.Cut(text, "\n")
	f := strings.Fields(line)
	if len(f) < 9 || f[0] != "cpu" {
		return 0, 0, fmt.Errorf("the first line of /proc/stat is %q", line)
	}
	for i, s := range f[1:9] { // what follows is in user and nice already
		v, err := strconv.ParseFloat(s, 64)
		if err != nil {
			return 0, 0, fmt.Errorf("/proc/stat: %w", err)
		}
		if all += v; i == 7 {
			stolen = v
		}
	}
	return all, stolen, nil
}

// watchStolen looks at that each second. The function that it returns says what was seen: for whoever reads why a test that measures time has failed.
func watchStolen() (said func() string) {
	look := func() (all, stolen float64, err error) {
		b, err := os.ReadFile("/proc/stat")
		if err != nil {
			return 0, 0, err
		}
		return cpuTicks(string(b))
	}
	stop, out := make(chan struct{}), make(chan string)
	go func() {
		all0, stolen0, err := look()
		all, stolen, worst := all0, stolen0, 0.0
		for tick := time.NewTicker(time.Second); err == nil; {
			select {
			case <-tick.C:
				var a, s float64
				if a, s, err = look(); err == nil && a > all {
					worst = max(worst, (s-stolen)/(a-all))
					all, stolen = a, s
				}
				continue
			case <-stop:
			}
			break
		}
		<-stop
		if err != nil {
			out <- fmt.Sprintf("whether the machine had its processors cannot be told: %v", err)
			return
		}
		out <- fmt.Sprintf("the machine's host gave %.1f %% of its processors' time to others, in the worst second %.0f %%", 100*(stolen-stolen0)/max(1, all-all0), 100*worst)
	}()
	return func() string { close(stop); return <-out }
}
