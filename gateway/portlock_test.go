package gateway

import (
	"errors"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// A lock that takes nothing any more is one of a process on its way out: it is waited for.
func TestPortLockOfADyingProcess(t *testing.T) {
	const device = 1<<31 - 4
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Bind(fd, &unix.SockaddrUnix{Name: portLock(device)}); err != nil { // and not listening, as one that is being closed
		t.Fatal(err)
	}
	if c, err := net.Dial("unix", portLock(device)); !errors.Is(err, unix.ECONNREFUSED) {
		t.Fatal(c, err)
	}
	const lasts = 150 * time.Millisecond
	begin := time.Now()
	time.AfterFunc(lasts, func() { _ = unix.Close(fd) })
	l, err := LockPort(device)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if took := time.Since(begin); took < lasts {
		t.Errorf("it had the lock after %s", took)
	}
}

// Who holds the lock of a port is told with its command line, as often as somebody asks, and it is free when it is closed.
func TestPortLock(t *testing.T) {
	const device = 1<<31 - 2 // no device has this number
	l, err := LockPort(device)
	if err != nil {
		t.Fatal(err)
	}
	for range 5000 { // more than a socket's queue holds
		other, err := LockPort(device)
		var held *PortHeldError
		if !errors.As(err, &held) || other != nil {
			t.Fatalf("held, and locked again: %v", err)
		}
	}
	if _, err := LockPort(device - 1); err != nil {
		t.Errorf("another device: %v", err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if l, err = LockPort(device); err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	var held *PortHeldError
	if _, err := LockPort(device); !errors.As(err, &held) || held.PID != os.Getpid() || !strings.Contains(held.Error(), ".test") {
		t.Errorf("held by %v, want this process", err)
	}
}
