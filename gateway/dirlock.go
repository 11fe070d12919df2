package gateway

import (
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// lockWait is how long a start waits for a process that may be dying: one that was killed holds what it had until its sockets have gone, some 400 ms on an idle machine.
const lockWait = 3 * time.Second

// lockDir makes sure that one process alone uses a data directory: two would give their revisions the same numbers. The lock ends with the
// process, leaves no file, and works where nothing can be written.
func lockDir(dir string) (io.Closer, error) {
	f, err := os.Open(dir)
	if err != nil {
		return nil, fmt.Errorf("data directory: %w", err)
	}
	err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	for end := time.Now().Add(lockWait); errors.Is(err, unix.EWOULDBLOCK) && time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	}
	switch {
	case err == nil, errors.Is(err, unix.ENOTSUP), errors.Is(err, unix.ENOLCK), errors.Is(err, unix.ENOSYS): // a file system without locks is still one
		return f, nil
	case errors.Is(err, unix.EWOULDBLOCK):
		err = fmt.Errorf("data directory %s: another demarc process uses it: stop that one first, or give each node its own data_dir", dir)
		return nil, errors.Join(err, f.Close())
	default:
		return nil, errors.Join(fmt.Errorf("lock data directory %s: %w", dir, err), f.Close())
	}
}
