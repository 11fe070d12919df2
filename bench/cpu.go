package bench

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// userHz is the unit of /proc/stat: 1/100 s on every Linux.
const userHz = 100

// cpuTimes is one line of /proc/stat, in ticks since boot.
type cpuTimes struct{ busy, steal float64 }

// cpuSample is the account at one moment.
type cpuSample struct {
	at   time.Time
	cpus map[int]cpuTimes
	ours float64 // ticks of our processes
}

// usage is what happened between two samples.
type usage struct {
	cpus     map[int]float64 // busy part of each CPU, 0..1
	steal    float64         // part of all CPUs' time that the hypervisor took
	foreign  float64         // CPUs' worth of time that went to what is not ours
	slowdown float64         // how many times as long as at its best the machine took for a known piece of work before and behind; 0 = nobody looked
}

// parseStat reads the cpuN lines of /proc/stat.
func parseStat(text string) (map[int]cpuTimes, error) {
	out := map[int]cpuTimes{}
	for line := range strings.Lines(text) {
		f := strings.Fields(line)
		if len(f) < 9 || !strings.HasPrefix(f[0], "cpu") || f[0] == "cpu" {
			continue
		}
		n, err := strconv.Atoi(f[0][3:])
		if err != nil {
			return nil, fmt.Errorf("line %q of /proc/stat: %w", strings.TrimSpace(line), err)
		}
		var v [8]float64 // user nice system idle iowait irq softirq steal
		for i := range v {
			if v[i], err = strconv.ParseFloat(f[i+1], 64); err != nil {
				return nil, fmt.Errorf("line %q of /proc/stat: %w", strings.TrimSpace(line), err)
			}
		}
		out[n] = cpuTimes{busy: v[0] + v[1] + v[2] + v[5] + v[6], steal: v[7]}
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("/proc/stat has no line per cpu")
	}
	return out, nil
}

// parsePidStat is the CPU time of a process and of its threads, and of its children that have ended and were waited for, in ticks. The name in brackets may
// hold anything.
func parsePidStat(text string) (own, children float64, err error) {
	f := strings.Fields(text[strings.LastIndexByte(text, ')')+1:])
	if len(f) < 15 {
		return 0, 0, fmt.Errorf("%q is no process", text)
	}
	var v [4]float64
	for i := range v {
		if v[i], err = strconv.ParseFloat(f[11+i], 64); err != nil {
			return 0, 0, err
		}
	}
	return v[0] + v[1], v[2] + v[3], nil
}

// sampleCPU looks at all CPUs and at the named processes, ours among them.
func sampleCPU(pids []int) (s cpuSample, err error) {
	b, err := os.ReadFile("/proc/stat")
	if err != nil {
		return s, err
	}
	s.at = time.Now()
	if s.cpus, err = parseStat(string(b)); err != nil {
		return s, err
	}
	for i, p := range append([]int{unix.Getpid()}, pids...) {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p))
		if err != nil {
			return s, err
		}
		t, children, err := parsePidStat(string(b))
		if err != nil {
			return s, err
		}
		if s.ours += t; i == 0 { // what began and ended between two samples is ours too
			s.ours += children
		}
	}
	return s, nil
}

func (s cpuSample) until(e cpuSample) usage {
	ticks := e.at.Sub(s.at).Seconds() * userHz
	u := usage{cpus: map[int]float64{}}
	if ticks <= 0 {
		return u
	}
	busy, steal := 0.0, 0.0
	for n, t := range e.cpus {
		b := t.busy - s.cpus[n].busy
		u.cpus[n] = min(1, b/ticks)
		busy += b
		steal += t.steal - s.cpus[n].steal
	}
	u.steal = steal / ticks / float64(len(e.cpus))
	u.foreign = max(0, busy-(e.ours-s.ours)) / ticks
	return u
}

// What counts as a disturbance. /proc/stat counts by the tick, so a second is known to about two in a hundred.
const (
	maxForeign = 0.10 // CPUs
	maxSteal   = 0.02
)
