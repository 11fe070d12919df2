package cli

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"demarc/gateway/guard"
)

// notify tells systemd states, a line each (sd_notify(3)), by way of the parent process where there is one. Nobody listening is no error.
func notify(states ...string) {
	if p := guard.Above(); p != nil {
		_ = p.Notify(strings.Join(states, "\n"))
		return
	}
	path := os.Getenv("NOTIFY_SOCKET")
	if path == "" {
		return
	}
	// The net package takes a leading @ for the abstract name space, as systemd writes it.
	c, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		return
	}
	defer c.Close()
	_, _ = c.Write([]byte(strings.Join(states, "\n")))
}

// failed tells systemd why this process ends, and waits until that was taken in (sd_notify_barrier(3)), a second at most: of a process that is gone systemd does
// not know whose words came, and the journal at times neither, so that `systemctl status` would not say why a start failed.
func failed(err error) {
	if err == nil {
		return
	}
	if status := exitStatus(0); !errors.As(err, &status) { // else the data plane has said why
		notify("STATUS=" + strings.ReplaceAll(strings.TrimSpace(err.Error()), "\n", "; "))
	}
	path := os.Getenv("NOTIFY_SOCKET")
	if path == "" { // also below a parent process, which waits for the same before it ends
		return
	}
	c, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		return
	}
	defer c.Close()
	r, w, err := os.Pipe()
	if err != nil {
		return
	}
	defer r.Close()
	raw, err := c.SyscallConn() // WriteMsgUnix wants an address of a socket that has none
	if err == nil {
		_ = raw.Control(func(fd uintptr) {
			_ = unix.Sendmsg(int(fd), []byte("BARRIER=1"), unix.UnixRights(int(w.Fd())), nil, 0)
		})
	}
	w.Close()                                          // not sent: the end is here at once
	_ = r.SetReadDeadline(time.Now().Add(time.Second)) // a pipe can
	_, _ = r.Read(make([]byte, 1))                     // the end of it: systemd has closed what it was sent
}

// watchdogInterval is how often systemd wants to hear from this process (sd_watchdog_enabled(3)); 0 = not at all.
func watchdogInterval() time.Duration {
	if pid := os.Getenv("WATCHDOG_PID"); pid != "" && pid != strconv.Itoa(os.Getpid()) {
		return 0
	}
	us, err := strconv.ParseInt(os.Getenv("WATCHDOG_USEC"), 10, 64)
	if err != nil || us <= 0 {
		return 0
	}
	return time.Duration(us) * time.Microsecond
}

// feed tells systemd the state in a line, and that the node lives as long as alive says so: every worker has answered between two bursts.
// A worker that hangs is thus ended and started again. It returns when ctx ends.
func feed(ctx context.Context, log *slog.Logger, headline func() string, alive func(context.Context) error) {
	every := watchdogInterval() / 3
	if every == 0 {
		every = 10 * time.Second // only the line
	}
	last := headline() // told with READY
	for sleep(ctx, every) {
		var states []string
		if watchdogInterval() > 0 {
			c, cancel := context.WithTimeout(ctx, every)
			err := alive(c)
			cancel()
			switch {
			case err == nil:
				states = append(states, "WATCHDOG=1")
			case ctx.Err() == nil:
				log.Warn("a worker does not answer, so the watchdog is not fed", "err", err)
			}
		}
		if now := headline(); now != last {
			states = append(states, "STATUS="+now)
			last = now
		}
		if len(states) > 0 {
			notify(states...)
		}
	}
}
