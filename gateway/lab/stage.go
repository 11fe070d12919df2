package lab

import (
	"context"
	"fmt"
	"sync"
	"time"
)

// stage is what a demo of several nodes shows itself on: lines with their time, and what went wrong with the demo itself.
type stage struct {
	o     Options
	start time.Time

	out    sync.Mutex // of o.Out
	mu     sync.Mutex
	errors []string // mu
}

// say prints a line with its time.
func (d *stage) say(format string, args ...any) {
	d.out.Lock()
	defer d.out.Unlock()
	fmt.Fprintf(d.o.Out, "%7.3f s  %s\n", time.Since(d.start).Seconds(), fmt.Sprintf(format, args...))
}

// fail notes that something could not be measured.
func (d *stage) fail(err error) {
	if err != nil {
		d.mu.Lock()
		d.errors = append(d.errors, err.Error())
		d.mu.Unlock()
	}
}

// now is the time since the demo began.
func (d *stage) now() time.Duration { return time.Since(d.start) }

func (d *stage) rest(ctx context.Context, t time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(t):
		return nil
	}
}

func (d *stage) until(ctx context.Context, within time.Duration, ok func() bool) error {
	for end := time.Now().Add(within); !ok(); {
		if time.Now().After(end) {
			return fmt.Errorf("not within %s", within)
		}
		if err := d.rest(ctx, lookEvery); err != nil {
			return err
		}
	}
	return nil
}
