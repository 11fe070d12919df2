package host

import (
	"testing"
	"time"
)

// So many are due after a time, whatever the pace of who asks.
func TestDue(t *testing.T) {
	for _, x := range []struct {
		rate  float64
		since time.Duration
		want  uint64
	}{{1000, 0, 0}, {1000, time.Second, 1000}, {5000, 2 * time.Millisecond, 10}, {0, time.Hour, 0}, {0.5, 3 * time.Second, 1}} {
		if n := due(x.rate, x.since); n != x.want {
			t.Errorf("%v a second after %s: %d, want %d", x.rate, x.since, n, x.want)
		}
	}
}
