package xsk

import "golang.org/x/sys/unix"

// membarrierGlobal is MEMBARRIER_CMD_GLOBAL of linux/membarrier.h.
const membarrierGlobal = 1

// Grace returns when every XDP program that was running when it was called has ended, and what it redirected has left: the kernel carries the command out as an RCU grace period (kernel/sched/membarrier.c), within which a
// receive poll lies whole. It takes 8 to 16 ms, and no right. Not on a kernel with nohz_full, where it is refused.
func Grace() error {
	if _, _, errno := unix.Syscall(unix.SYS_MEMBARRIER, membarrierGlobal, 0, 0); errno != 0 {
		return errno
	}
	return nil
}
