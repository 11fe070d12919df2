package bench

import (
	"cmp"
	"context"
	"math"
)

// rateSearch is how the highest rate that loses at most lossLimit is looked for (RFC 2544, section 26.1; RFC 9411 asks for the same of what was found).
type rateSearch struct {
	Most       float64 // frames per second; what is found is not above it
	Resolution float64 // part of Most: the search ends when what passed and what failed are no further apart
	Near       float64 // where to begin, what was found before; 0 = nothing is known
	Tries      int     // how often a rate must fail to have failed; 0 = hiccups
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
		for range cmp.Or(s.Tries, hiccups) {
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
	if s.Near > 0 && s.Near < s.Most {
		low, high, err = s.around(passes, step)
	} else {
		var ok bool
		if ok, err = passes(high, false); ok {
			low = high
		}
	}
	if err != nil {
		return f, err
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

// around looks for what passes and what fails, from what was found before by steps that double.
func (s *rateSearch) around(passes func(float64, bool) (bool, error), step float64) (low, high float64, err error) {
	ok, err := passes(s.Near, false)
	if err != nil {
		return 0, 0, err
	}
	if ok {
		for low, high = s.Near, s.Most; low < high; step *= 2 {
			rate := math.Min(low+step, s.Most)
			if ok, err := passes(rate, false); err != nil {
				return 0, 0, err
			} else if !ok {
				return low, rate, nil
			}
			low = rate
		}
		return low, low, nil
	}
	for high = s.Near; high > step; step *= 2 {
		rate := high - step
		if ok, err := passes(rate, false); ok || err != nil {
			return rate, high, err
		}
		high = rate
	}
	return 0, high, nil
}
