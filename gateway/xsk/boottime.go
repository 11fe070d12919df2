package xsk

import (
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

// BootTime reads CLOCK_BOOTTIME, which the programs go by too, in nanoseconds. It is a raw system call: it never waits, and is made before each that may send. Another one tells Go's scheduler that a thread has gone and
// come back, and where all else sleeps that wakes its watcher for some fifty looks.
func BootTime() (uint64, error) {
	var ts unix.Timespec
	if _, _, errno := unix.RawSyscall(unix.SYS_CLOCK_GETTIME, unix.CLOCK_BOOTTIME, uintptr(unsafe.Pointer(&ts)), 0); errno != 0 {
		return 0, fmt.Errorf("read CLOCK_BOOTTIME: %w", errno)
	}
	return uint64(ts.Nano()), nil
}
