package pktgen

import (
	"math/bits"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
)

// Buckets of the programs' times: those that an HdrHistogram of two significant digits has, 128 to each power of two.
const (
	parts   = 128
	buckets = 26 * parts
)

// bucketOf is the place of a time, as the program computes it.
func bucketOf(ns uint32) int {
	shift := max(0, bits.Len32(ns)-bits.Len32(2*parts-1))
	return shift*parts + int(ns>>shift)
}

// bucketTime is the middle of the times that fall into a bucket.
func bucketTime(i int) int64 {
	if i < 2*parts {
		return int64(i)
	}
	shift := i/parts - 1
	return int64(i-shift*parts)<<shift + int64(1)<<shift/2
}

// longestTime is what the programs' stamps of 32 bits can tell.
const longestTime = 1<<32 - 1

// Times is how long frames were under way, from the program that made them to the one that judged them.
type Times struct {
	Histogram *hdrhistogram.Histogram // ns
	Worst     time.Duration           // exact
	// Jitter is the mean difference between the times of two frames that arrived one after the other.
	Jitter time.Duration
}

// Times reads what the judge of one direction noted since Fresh, while Time was on.
func (e *Ends) Times(d Direction) (t Times, err error) {
	row := uint32(rowJudge)
	if d == In {
		row = rowAnswer
	}
	var raw times
	if err := e.objs.Delays.Lookup(row, &raw); err != nil {
		return t, err
	}
	y, err := e.tally(row)
	if err != nil {
		return t, err
	}
	if t.Histogram, err = raw.histogram(); err != nil {
		return t, err
	}
	t.Worst = time.Duration(y.Worst)
	if y.Timed > 1 {
		t.Jitter = time.Duration(y.Changes / (y.Timed - 1))
	}
	return t, nil
}

func (raw *times) histogram() (*hdrhistogram.Histogram, error) {
	h := hdrhistogram.New(1, longestTime, 2)
	for i, n := range raw.Frames {
		if n > 0 {
			if err := h.RecordValues(bucketTime(i), int64(n)); err != nil {
				return nil, err
			}
		}
	}
	return h, nil
}
