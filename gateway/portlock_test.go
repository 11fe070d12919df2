package gateway

import (
	"errors"
	"os"
	"strings"
	"testing"
)

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
