package worker

import (
	"sync/atomic"
	"time"

	"demarc/gateway/xsk"
)

// Clock reads CLOCK_BOOTTIME in nanoseconds without a system call: the runtime's monotonic clock plus the difference of the two,
// which only a suspend changes; Resync measures it again.
type Clock struct {
	start time.Time
	boot  func() (uint64, error) // reads CLOCK_BOOTTIME; a seam for tests: nobody may suspend the machine for one
	base  atomic.Uint64
}

// NewClock starts a clock.
func NewClock() (*Clock, error) {
	c := &Clock{start: time.Now(), boot: xsk.BootTime}
	return c, c.Resync()
}

// BootTime reads CLOCK_BOOTTIME itself. It and a Clock are all that leases, sessions and rates are counted by.
func BootTime() (uint64, error) {
	now, err := xsk.BootTime()
	return paced(now), err
}

// Resync measures CLOCK_BOOTTIME again. Time never runs backwards by it.
func (c *Clock) Resync() error {
	_, err := c.measure()
	return err
}

func (c *Clock) measure() (uint64, error) {
	now, err := c.boot()
	if err != nil {
		return 0, err
	}
	base := now - uint64(time.Since(c.start)) // never above what is true: the second reading is the later one
	for {
		old := c.base.Load()
		if base <= old || c.base.CompareAndSwap(old, base) {
			return now, nil
		}
	}
}

// Now is CLOCK_BOOTTIME in nanoseconds.
func (c *Clock) Now() uint64 { return paced(c.base.Load() + uint64(time.Since(c.start))) }

// Exact reads CLOCK_BOOTTIME itself, by a system call: after a suspend Now is behind until somebody has measured. A clock that cannot be read is at the
// end of time, where no deadline holds.
func (c *Clock) Exact() uint64 {
	now, err := c.measure()
	if err != nil {
		return ^uint64(0)
	}
	return paced(now)
}
