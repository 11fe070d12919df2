package netlab

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// Worker is the process that does the work of one that was started: its child of the same program, where it has one, else itself.
func Worker(pid int) int {
	tasks, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid)) // the pattern is well formed
	own, err := os.Stat(fmt.Sprintf("/proc/%d/exe", pid))
	if err != nil {
		return pid
	}
	for _, t := range tasks {
		b, _ := os.ReadFile(t) // a thread that has ended has none
		for _, f := range strings.Fields(string(b)) {
			if exe, err := os.Stat("/proc/" + f + "/exe"); err == nil && os.SameFile(own, exe) {
				if child, err := strconv.Atoi(f); err == nil {
					return child
				}
			}
		}
	}
	return pid
}

// Lives says whether a process is there, and more than a zombie.
func Lives(pid int) bool {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	_, rest, ok := strings.Cut(string(b), ") ")
	return err == nil && ok && !strings.HasPrefix(rest, "Z") && !strings.HasPrefix(rest, "X")
}
