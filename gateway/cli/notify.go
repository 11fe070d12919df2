package cli

import (
	"context"
	"log/slog"
	"net"
	"os"
	"strconv"
	"strings"
	"time"
)

// notify tells systemd states, a line each (sd_notify(3)). Nobody listening is no error.
func notify(states ...string) {
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
