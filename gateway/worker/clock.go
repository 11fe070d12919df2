package worker

import (
	"fmt"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// Clock reads CLOCK_BOOTTIME in nanoseconds without a system call: the runtime's monotonic clock plus the difference of the two,
// which only a suspend changes; Resync measures it again.
type Clock struct {
	start time.Time
	base  atomic.Uint64
}

// NewClock starts a clock.
func NewClock() (*Clock, error) {
	c := &Clock{start: time.Now()}
	return c, c.Resync()
}

// Resync measures CLOCK_BOOTTIME again. Time never runs backwards by it.
func (c *Clock) Resync() error {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		return fmt.Errorf("read CLOCK_BOOTTIME: %w", err)
	}
	base := uint64(ts.Nano()) - uint64(time.Since(c.start))
	if base > c.base.Load() {
		c.base.Store(base)
	}
	return nil
}

// Now is CLOCK_BOOTTIME in nanoseconds.
func (c *Clock) Now() uint64 { return c.base.Load() + uint64(time.Since(c.start)) }
