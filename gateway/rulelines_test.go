package gateway

import (
	"testing"
	"time"
)

// A scan under a rule that logs writes so many lines a second and no more, and leaves others theirs; each that is not written is counted, and that is told now and then.
func TestRuleLinesAreBounded(t *testing.T) {
	now := uint64(1e12)
	r := newRuleLines(now)
	written, asked, beside, lost, times := 0, 0, 0, uint64(0), 0
	for range 40 { // ten seconds
		for range 1000 {
			if asked++; r.take(1) {
				written++
			}
		}
		for range 5 {
			if asked++; r.take(2) {
				beside++
			}
		}
		now += uint64(250 * time.Millisecond)
		if n := r.told(now); n > 0 {
			lost, times = lost+n, times+1
		}
	}
	if all := written + beside; all > ruleLinesBurst+40*50 || written < 40*25 {
		t.Errorf("%d and %d were written of %d", written, beside, asked)
	}
	if beside != 200 {
		t.Errorf("%d of 200 of who is beside a scan were written", beside)
	}
	if times != 2 || lost+r.lost != uint64(asked-written-beside) {
		t.Errorf("told %d times of %d, %d not yet, and %d were not written", times, lost, r.lost, asked-written-beside)
	}
	now += uint64(time.Minute)
	r.told(now)
	n := 0
	for range 2 * ruleLinesBurst {
		if r.take(1) {
			n++
		}
		if r.take(2) {
			n++
		}
	}
	if n != ruleLinesBurst {
		t.Errorf("%d at once after a rest", n)
	}
}
