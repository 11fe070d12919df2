package lab

import (
	"context"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
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

// show is a demo of several nodes, with its lab built.
type show interface {
	run(ctx context.Context) error // goes through all that is shown, and measures
	judged() []Promise
	keep(ctx context.Context) // leaves everything running until ctx ends
	close() error
}

// play has build make a demo with its files in a directory, and goes through it. The error says that there is no verdict.
func play(ctx context.Context, o Options, stages []string, picture string, build func(o Options, dir string) (show, error)) (result Result, err error) {
	if o.Break != "" && !slices.Contains(stages, o.Break) {
		return Result{}, fmt.Errorf("break %q: want one of %s", o.Break, strings.Join(stages, ", "))
	}
	if o.Out == nil {
		o.Out = io.Discard
	}
	start := time.Now()
	dir, err := os.MkdirTemp("", "demarc-lab-")
	if err != nil {
		return Result{}, err
	}
	defer os.RemoveAll(dir)
	fmt.Fprint(o.Out, picture)
	d, err := build(o, dir)
	if err != nil {
		return Result{}, fmt.Errorf("build the lab: %w", err)
	}
	defer func() {
		if e := d.close(); e != nil && err == nil {
			err = e
		}
	}()
	if err := d.run(ctx); err != nil {
		return Result{}, err
	}
	result = Result{Promises: d.judged(), Seconds: time.Since(start).Seconds()}
	result.OK = len(result.Broken()) == 0
	writeVerdict(o.Out, &result)
	if o.Keep {
		d.keep(ctx)
	}
	return result, nil
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
