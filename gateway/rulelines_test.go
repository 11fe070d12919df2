package gateway

import (
	"testing"
	"time"
)

// A scan under a rule that logs writes so many lines a second and no more; each that is not written is counted, and that is told now and then.
func TestRuleLinesAreBounded(t *testing.T) {
	var r ruleLines
	now := uint64(1e12)
	r.told(now)
	written, asked, lost, times := 0, 0, uint64(0), 0
	for range 40 { // ten seconds
		for range 1000 {
			if asked++; r.take() {
				written++
			}
		}
		now += uint64(250 * time.Millisecond)
		if n := r.told(now); n > 0 {
			lost, times = lost+n, times+1
		}
	}
	if want := ruleLinesBurst + 39*50; written != want {
		t.Errorf("%d were written of %d, want %d", written, asked, want)
	}
	if times != 2 || lost+r.lost != uint64(asked-written) {
		t.Errorf("told %d times of %d, %d not yet, and %d were not written", times, lost, r.lost, asked-written)
	}
	now += uint64(time.Minute)
	r.told(now)
	for range ruleLinesBurst {
		if !r.take() {
			t.Fatal("a few after a rest are refused")
		}
	}
	if r.take() {
		t.Error("a rest saves up more than a burst")
	}
}
