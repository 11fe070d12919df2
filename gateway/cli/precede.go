package cli

import (
	"errors"
	"fmt"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// niceness is what a node's threads ask for, in the kernel's terms (sched(7)): a thread of it has as much of a CPU as nine of 0 beside it, and is there sooner when it has something to do.
const niceness = -10

// precede has this process come before others of the machine: what it forwards, and what it copies to other nodes, waits for nobody. A niceness that somebody chose for it stays, and so does it all where that is refused;
// that is the error. It is called before the process has much to do, in the threads that there are; others begin as who starts them.
func precede() error {
	if prio, err := unix.Getpriority(unix.PRIO_PROCESS, 0); err != nil || prio != 20 { // the system call's way to say 0
		return err
	}
	for again := true; again; { // a thread that starts meanwhile may be an earlier one's
		again = false
		tasks, err := os.ReadDir("/proc/self/task")
		if err != nil {
			return err
		}
		for _, task := range tasks {
			tid, err := strconv.Atoi(task.Name())
			if err != nil {
				return err
			}
			prio, err := unix.Getpriority(unix.PRIO_PROCESS, tid)
			if errors.Is(err, unix.ESRCH) || err == nil && prio == 20-niceness {
				continue
			}
			if err == nil {
				err = unix.Setpriority(unix.PRIO_PROCESS, tid, niceness)
			}
			if err != nil {
				return fmt.Errorf("a niceness of %d: %w: allow it by CAP_SYS_NICE or `ulimit -e %d`, or give the process one: in a unit Nice=%d", niceness, err, 20-niceness, niceness)
			}
			again = true
		}
	}
	return nil
}
