package netlab

import (
	"errors"
	"fmt"
	"math/bits"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Threads has what comes to a device be taken by a thread of the kernel's, many frames at a time, as a real device's interrupt would have it. Without that each frame goes
// all its way, into the next host's program, inside of the call that sends it, and wakes whoever waits there: most of what a lab costs. The thread comes before
// all programs. It returns its pid: what it does is the lab's work.
func (l *Lab) Threads(ns, dev string) (pid int, err error) {
	before := NAPIThreads(dev)
	if err := l.TakesRedirected(ns, dev, true); err != nil {
		return 0, err
	}
	if err := l.Do(ns, func() error { return Threaded(true, dev) }); err != nil {
		return 0, err
	}
	for end := time.Now().Add(2 * time.Second); ; time.Sleep(time.Millisecond) {
		for p := range NAPIThreads(dev) {
			if !before[p] {
				// The lowest real-time priority: without it frames wait for programs.
				if err := unix.SchedSetAttr(p, &unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: unix.SCHED_FIFO, Priority: 1}, 0); err != nil {
					return 0, fmt.Errorf("priority of the thread of %s: %w", dev, err)
				}
				return p, nil
			}
		}
		if time.Now().After(end) {
			return 0, fmt.Errorf("%s in %s got no NAPI thread within 2 s", dev, ns)
		}
	}
}

// Threaded moves devices' NAPI into threads or back. It must be called on a thread that ends, in the devices' namespace, as by Do: the
// namespace's own sysfs is mounted in a private mount namespace.
func Threaded(on bool, devs ...string) error {
	if err := ownSysfs(); err != nil {
		return err
	}
	v := "0"
	if on {
		v = "1"
	}
	var errs []error
	for _, dev := range devs {
		errs = append(errs, os.WriteFile("/sys/class/net/"+dev+"/threaded", []byte(v), 0o644))
	}
	return errors.Join(errs...)
}

// ownSysfs mounts the sysfs of the thread's namespace, for this thread alone.
func ownSysfs() error {
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("private mounts: %w", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("private mounts: %w", err)
	}
	if err := unix.Mount("sysfs", "/sys", "sysfs", 0, ""); err != nil {
		return fmt.Errorf("mount sysfs: %w", err)
	}
	return nil
}

// takeOn has one CPU take all that comes to devices, whichever CPU it was sent on (receive packet steering). Called as Threaded is.
func takeOn(cpu int, devs ...string) error {
	if err := ownSysfs(); err != nil {
		return err
	}
	mask := fmt.Sprintf("%x", 1<<(cpu%32)) + strings.Repeat(",00000000", cpu/32)
	var errs []error
	for _, dev := range devs {
		errs = append(errs, os.WriteFile("/sys/class/net/"+dev+"/queues/rx-0/rps_cpus", []byte(mask), 0o644))
	}
	return errors.Join(errs...)
}

// firstCPU is the first of those that this process may use.
func firstCPU() (int, error) {
	var set unix.CPUSet
	if err := unix.SchedGetaffinity(0, &set); err != nil {
		return 0, err
	}
	for cpu := range len(set) * bits.UintSize {
		if set.IsSet(cpu) {
			return cpu, nil
		}
	}
	return 0, errors.New("this process may use no CPU")
}

// NAPIThreads are the kernel's threads for devices of these names, in any namespace.
func NAPIThreads(devs ...string) map[int]bool {
	out := map[int]bool{}
	files, _ := filepath.Glob("/proc/[0-9]*/comm")
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil || !slices.ContainsFunc(devs, func(dev string) bool {
			name := "napi/" + dev + "-"
			return strings.HasPrefix(string(b), name[:min(len(name), 15)]) // as much as a thread's name holds
		}) {
			continue
		}
		if p, err := strconv.Atoi(strings.Split(f, "/")[2]); err == nil {
			out[p] = true
		}
	}
	return out
}

// TakesRedirected has a veth take what is redirected to its other end, or no longer: without NAPI of its own all of that is lost without a word, and it has one as long as gro is on.
func (l *Lab) TakesRedirected(ns, dev string, on bool) error {
	return l.features(ns, dev, []string{"rx-gro"}, on)
}
