package cputime

import (
	"syscall"
	"testing"
	"time"
)

// Spent begins to count the processor time that this process uses, in user space and for it in the kernel; it returns how much that was so far.
func Spent(t testing.TB) func() time.Duration {
	now := func() time.Duration {
		var r syscall.Rusage
		if err := syscall.Getrusage(syscall.RUSAGE_SELF, &r); err != nil {
			t.Fatal(err)
		}
		return time.Duration(r.Utime.Nano() + r.Stime.Nano())
	}
	began := now()
	return func() time.Duration { return now() - began }
}
