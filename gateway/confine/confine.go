package confine

import (
	"fmt"
	"strings"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Capability is one of the kernel's, by number.
type Capability uint

// The capabilities that a gateway has to do with.
const (
	NetAdmin Capability = unix.CAP_NET_ADMIN // attach and exchange the XDP program, put settings of a device back
	NetRaw   Capability = unix.CAP_NET_RAW   // AF_XDP sockets
	IPCLock  Capability = unix.CAP_IPC_LOCK  // packet memory beyond RLIMIT_MEMLOCK
	BPF      Capability = unix.CAP_BPF       // load the XDP program, read its counters
	Perfmon  Capability = unix.CAP_PERFMON   // the verifier lets no other program do arithmetic with pointers to packets
	SysAdmin Capability = unix.CAP_SYS_ADMIN // open the program that an earlier process left, by its number, and make a network namespace (cruise.Transmit): at start only
)

var names = map[Capability]string{NetAdmin: "net_admin", NetRaw: "net_raw", IPCLock: "ipc_lock", BPF: "bpf", Perfmon: "perfmon", SysAdmin: "sys_admin"}

// String returns the name without "cap_".
func (c Capability) String() string {
	if s, ok := names[c]; ok {
		return s
	}
	return fmt.Sprint(uint(c))
}

// Running is what a gateway needs while it runs: to exchange its program when an address comes, and to open a port again.
var Running = []Capability{NetAdmin, NetRaw, IPCLock, BPF, Perfmon}

// Keep gives up all capabilities of the process but those of keep that it has, on all of its threads, also for what it might execute. It
// returns what is left.
func Keep(keep []Capability) (left string, err error) {
	// On the heap by the call below, which says that what it is given escapes.
	head := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var set [2]unix.CapUserData
	if err := unix.Capget(&head, &set[0]); err != nil {
		return "", fmt.Errorf("read capabilities: %w", err)
	}
	var mask [2]uint32
	var list []string
	for _, c := range keep {
		mask[c/32] |= 1 << (c % 32)
		if set[c/32].Permitted>>(c%32)&1 == 1 {
			list = append(list, c.String())
		}
	}
	for i := range set {
		set[i].Permitted &= mask[i]
		set[i].Effective = set[i].Permitted
		set[i].Inheritable = 0
	}
	// Without this a program that root executes would get the bounding set back.
	if _, _, errno := syscall.AllThreadsSyscall6(unix.SYS_PRCTL, unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0, 0); errno != 0 {
		return "", fmt.Errorf("set no_new_privs: %w", errno)
	}
	if _, _, errno := syscall.AllThreadsSyscall(unix.SYS_CAPSET, uintptr(unsafe.Pointer(&head)), uintptr(unsafe.Pointer(&set[0])), 0); errno != 0 {
		return "", fmt.Errorf("give up capabilities: %w", errno)
	}
	return strings.Join(list, " "), nil
}
