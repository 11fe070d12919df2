package bench

import (
	"context"
	"math"
)

// rateSearch is how the highest rate that loses at most lossLimit is looked for (RFC 2544, section 26.1; RFC 9411 asks for the same of what was found).
type rateSearch struct {
	Most       float64 // frames per second; what is found is not above it
	Resolution float64 // part of Most: the search ends when what passed and what failed are no further apart
	// try sends at a rate and says what happened; confirm is a longer trial that what was found must pass.
	try func(ctx context.Context, rate float64, confirm bool) (passed bool, err error)
}

// foundRate is the outcome.
type foundRate struct {
	Rate   float64 // that passed its confirming trial; 0 = none did
	Failed float64 // the lowest that failed above it; 0 = none failed
	Trials int
}

// hiccups is how often a rate must fail to have failed: one pause of the machine loses more than the limit.
const hiccups = 2

// run halves the range until it is as narrow as the resolution, and then goes down from there in steps of it until a longer trial passes.
func (s *rateSearch) run(ctx context.Context) (f foundRate, err error) {
	passes := func(rate float64, confirm bool) (bool, error) {
		for range hiccups {
			f.Trials++
			ok, err := s.try(ctx, rate, confirm)
			if ok || err != nil {
				return ok, err
			}
		}
		f.Failed = rate
		return false, nil
	}
	step := s.Resolution * s.Most
	low, high := 0.0, s.Most
	if ok, err := passes(high, false); err != nil {
		return f, err
	} else if ok {
		low = high
	}
	for high-low > step {
		rate := (low + high) / 2
		ok, err := passes(rate, false)
		if err != nil {
			return f, err
		}
		if ok {
			low = rate
		} else {
			high = rate
		}
	}
	// Each step down is twice as large as the one before: a device that passes short trials only by luck is not asked for ever.
	for down := step; low > 0; down *= 2 {
		ok, err := passes(low, true)
		if err != nil {
			return f, err
		}
		if ok {
			f.Rate = low
			return f, nil
		}
		low = math.Max(0, low-down)
	}
	return f, nil
}
