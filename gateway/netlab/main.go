package netlab

import (
	"fmt"
	"os"
	"os/exec"
	"runtime"

	"golang.org/x/sys/unix"

	"demarc/gateway/netlab/host"
)

// Main is the hidden command `demarc lab-host`: exec NETNS-FILE PROGRAM ARG… enters a namespace and becomes the program; everything else
// is a tool of package host. It returns the exit status.
func Main(args []string) int {
	if len(args) > 0 && args[0] == "exec" {
		if err := enterAndExec(args[1:]); err != nil {
			fmt.Fprintln(os.Stderr, "demarc lab-host exec:", err)
		}
		return 126
	}
	return host.Main(args)
}

// enterAndExec only returns on error. The program keeps the thread's namespace, since exec makes the calling thread the process.
func enterAndExec(args []string) error {
	if len(args) < 2 {
		return fmt.Errorf("want NETNS-FILE PROGRAM ARG…, got %d arguments", len(args))
	}
	program, err := exec.LookPath(args[1])
	if err != nil {
		return err
	}
	runtime.LockOSThread()
	ns, err := os.Open(args[0])
	if err != nil {
		return err
	}
	defer ns.Close()
	if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("enter %s: %w", args[0], err)
	}
	return unix.Exec(program, args[1:], os.Environ())
}
