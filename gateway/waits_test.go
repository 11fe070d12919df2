package gateway

import (
	"testing"
	"time"
)

// TestWhoseWordIsWaitedFor: for as long as a standby may take over as one that knows all, and no longer.
func TestWhoseWordIsWaitedFor(t *testing.T) {
	now := time.Now()
	for _, c := range []struct {
		name string
		w    waits
		last time.Duration // since there was a reason; 0 = there never was
		want bool
	}{
		{"a copy that was never whole", waits{}, 0, false},
		{"one that is about to be proposed", waits{equal: true, soon: true}, 0, true},
		{"whole, and too far behind", waits{equal: true, over: true}, 0, false},
		{"in sync", waits{may: true}, 0, true},
		{"in sync, and behind", waits{may: true, equal: true}, 0, true},
		{"not any more, and some entry may still be agreed on", waits{equal: true}, 2 * time.Second, true},
		{"the same long ago", waits{equal: true}, guardRest, false},
		{"not any more by agreement", waits{equal: true, over: true}, 2 * time.Second, false},
		{"since a moment ago", waits{equal: true, over: true}, guardLinger / 2, true},
		{"and no port is left", waits{equal: true, over: true, dry: true}, guardLinger / 2, false},
		{"none is left, and it may be proposed", waits{equal: true, soon: true, over: true, dry: true}, guardLinger / 2, true},
		{"in sync, nothing can be agreed on, and it goes on hearing, however late", waits{may: true, equal: true, alone: true}, 2 * guardRest, true},
		{"in sync, nothing can be agreed on, and it hears nothing", waits{may: true, alone: true}, guardRest / 2, true},
		{"and that for long", waits{may: true, alone: true}, guardRest, false},
	} {
		var last time.Time
		if c.last > 0 {
			last = now.Add(-c.last)
		}
		reason, on := c.w.hold(last, now)
		if on != c.want {
			t.Errorf("%s: %v, want %v", c.name, on, c.want)
		}
		if reason != last && reason != now || !on && reason != last {
			t.Errorf("%s: the last reason is %s before now, it was %s", c.name, now.Sub(reason), c.last)
		}
	}
}
