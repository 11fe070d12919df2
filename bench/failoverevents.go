package bench

import (
	"context"
	"errors"
	"os"
	"runtime"

	"demarc/gateway/copyload"
)

// The row events: session events from an owner's tables into a standby's. What is promised: eventsLeast a second, and at half of that a lag of lagMs at most for 99 of 100.
const eventsLeast = 100_000.0

// events has one worker's sessions begin and end as fast as they can, both ends in this process; then at half of what is promised.
func (q *failoverBench) events(ctx context.Context, r *failoverRow) (err error) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(max(8, runtime.NumCPU()))) // as a gateway does: a worker that sleeps keeps its processor from others for up to a millisecond
	dir, err := os.MkdirTemp("", "demarc-events-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	p, err := copyload.Open(ctx, dir)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, p.Close()) }()
	runs := r.runs
	if q.Full {
		runs = r.full
	}
	if q.Runs > 0 {
		runs = q.Runs
	}
	begun, err := sampleCPU(nil)
	if err != nil {
		return err
	}
	if _, err := p.Round(); err != nil { // memory that nobody has touched yet
		return err
	}
	var rates, lags, got []float64
	for range runs {
		rate, err := p.Round()
		if err != nil {
			return err
		}
		rates = append(rates, rate)
	}
	for range runs {
		l, n, err := p.Lags(eventsLeast / 2)
		if err != nil {
			return err
		}
		lags, got = append(lags, l...), append(got, n)
	}
	q.addLeast(r.name, "events", "events/s", rates, "median", eventsLeast)
	q.addLeast(r.name, "events-at-half", "events/s", got, "median", 0.9*eventsLeast/2) // what lags less when fewer are made says nothing
	q.add(r.name, "lag", "ms", lags, "p99", lagMs)
	end, err := sampleCPU(nil)
	if err != nil {
		return err
	}
	q.beside(r.name, begun.until(end))
	return nil
}
