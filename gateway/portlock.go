package gateway

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// portLock is the name that stands for a device. It is the network namespace's, as the device is, and is gone with the process that holds it.
func portLock(ifindex int) string { return fmt.Sprintf("@demarc-port-%d", ifindex) }

// PortHeldError says that another process of demarc serves a device.
type PortHeldError struct {
	PID     int    // 0 = not known
	Command string // its command line; "" = not known

	ending bool // it has no memory any more, or its lock takes nothing: it is on its way out
}

// Error names the process, as far as it is known.
func (e *PortHeldError) Error() string {
	switch {
	case e.PID == 0:
		return "another demarc process"
	case e.Command == "":
		return fmt.Sprintf("another demarc process (%d)", e.PID)
	}
	return fmt.Sprintf("another demarc process (%d: %s)", e.PID, e.Command)
}

// LockPort makes sure that no other process serves a device, and that none begins to until the lock is closed. A process that was killed holds it until its sockets have gone: that
// is waited for. The error is a *PortHeldError where one serves it.
func LockPort(ifindex int) (io.Closer, error) {
	for end := time.Now().Add(lockWait); ; time.Sleep(10 * time.Millisecond) {
		l, err := net.Listen("unix", portLock(ifindex))
		if err == nil {
			return l, nil
		}
		if !errors.Is(err, unix.EADDRINUSE) {
			return nil, fmt.Errorf("lock: %w", err)
		}
		if h := holder(ifindex); !h.ending || time.Now().After(end) {
			return nil, h
		}
	}
}

// holder asks the kernel who holds the lock. That it is held is certain already: whoever cannot be found out stays without a name.
func holder(ifindex int) *PortHeldError {
	h := &PortHeldError{}
	c, err := net.Dial("unix", portLock(ifindex))
	if err != nil {
		h.ending = errors.Is(err, unix.ECONNREFUSED)
		return h
	}
	defer c.Close()
	raw, err := c.(syscall.Conn).SyscallConn()
	if err != nil {
		return h
	}
	raw.Control(func(fd uintptr) { // an error leaves it without a name
		if u, err := unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED); err == nil {
			h.PID = int(u.Pid)
		}
	})
	if h.PID == 0 {
		return h
	}
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", h.PID))
	if h.ending = len(b) == 0 && (err == nil || errors.Is(err, fs.ErrNotExist)); len(b) > 0 {
		args := strings.Split(strings.TrimRight(string(b), "\x00"), "\x00")
		args[0] = filepath.Base(args[0])
		h.Command = strings.Join(args, " ")
	}
	return h
}
