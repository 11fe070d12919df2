package bench

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestMostCarried(t *testing.T) {
	asked := func(n int) float64 { return 1000 * float64(n) }
	down := errors.New("flows did not come up")
	for _, c := range []struct {
		name  string
		try   func(n, time int) (loaded, error)
		want  int
		error bool
	}{
		{"all of them", func(n, _ int) (loaded, error) { return loaded{sent: 1000, rate: asked(n)}, nil }, 8, false},
		{"one that loses", func(n, _ int) (loaded, error) {
			l := loaded{sent: 1000, rate: asked(n)}
			if n == 4 {
				l.lost = 2
			}
			return l, nil
		}, 2, false},
		{"one that loses once", func(n, time int) (loaded, error) {
			l := loaded{sent: 1000, rate: asked(n)}
			if n == 4 && time == 0 {
				l.lost = 2
			}
			return l, nil
		}, 8, false},
		{"senders that do not keep the pace", func(n, _ int) (loaded, error) { return loaded{sent: 1000, rate: min(asked(n), 3500)}, nil }, 2, false},
		{"flows that do not come up", func(n, _ int) (loaded, error) {
			if n == 8 {
				return loaded{}, down
			}
			return loaded{sent: 1000, rate: asked(n)}, nil
		}, 4, false},
		{"the fewest do not come up", func(int, int) (loaded, error) { return loaded{}, down }, 0, true},
		{"the fewest are too many", func(n, _ int) (loaded, error) { return loaded{lost: 500, sent: 1000, rate: asked(n)}, nil }, 0, true},
		{"somebody ends it", func(n, _ int) (loaded, error) {
			if n == 4 {
				return loaded{}, context.Canceled
			}
			return loaded{sent: 1000, rate: asked(n)}, nil
		}, 0, true},
	} {
		times := map[int]int{}
		most, rate, err := mostCarried([]int{1, 2, 4, 8}, asked, func(n int) (loaded, error) {
			times[n]++
			return c.try(n, times[n]-1)
		})
		if most != c.want || (err != nil) != c.error || err == nil && rate != asked(c.want) {
			t.Errorf("%s: %d, %v packets a second, %v", c.name, most, rate, err)
		}
	}
}

// A row has of the time that is left by what it takes, and what one did not need the next ones have.
func TestFailoverRowsShareTheTime(t *testing.T) {
	var q failoverBench
	if err := q.check(); err == nil || !q.all {
		t.Fatalf("%v; all rows: %v", err, q.all) // it has no flags
	}
	now := time.Now()
	due := now.Add(tenMinutes)
	var rows []*failoverRow
	for i := range failoverRows {
		rows = append(rows, &failoverRows[i])
	}
	for i, r := range rows {
		takes := r.estimate(false, 0, 0)
		if end := q.allot(now, due, rows[i:]); end.Sub(now) < takes || end.After(due) {
			t.Errorf("%s takes %s and has %s", r.name, takes, end.Sub(now))
		}
		now = now.Add(takes)
	}
	if end := q.allot(due.Add(-time.Second), due, rows[len(rows)-1:]); !end.Equal(due) {
		t.Errorf("the last row has %s too much", end.Sub(due))
	}
	for _, c := range []struct {
		q    failoverBench
		want bool
	}{{failoverBench{Rows: []string{"kill"}}, false}, {failoverBench{Runs: 3}, false}, {failoverBench{Full: true}, false}} {
		if _ = c.q.check(); c.q.all != c.want { // flags that are not there are its error
			t.Errorf("%+v: all rows in ten minutes: %v", c.q.Rows, c.q.all)
		}
	}
	bulk := slices.IndexFunc(rows, func(r *failoverRow) bool { return r.bulk })
	if rows[0].planned(false, 0) != rows[0].runs || rows[0].planned(true, 0) != rows[0].full || rows[0].planned(true, 3) != 3 || rows[bulk].planned(false, 3) != 1 {
		t.Error("planned runs")
	}
}

// What a plan says of --full is what its rows take, and each row is in one part.
func TestFailoverEstimate(t *testing.T) {
	seen := map[string]int{}
	for _, p := range failoverParts() {
		for _, row := range strings.Split(p.args[1], ",") {
			seen[row]++
		}
		if p.seconds < 60 {
			t.Errorf("%v: %v s", p.args, p.seconds)
		}
	}
	var all, few time.Duration
	for i := range failoverRows {
		r := &failoverRows[i]
		if seen[r.name] != 1 {
			t.Errorf("%s is in %d parts", r.name, seen[r.name])
		}
		all, few = all+r.estimate(true, 0, fullIdle), few+r.estimate(false, 0, 0)
	}
	if s := secondsOf(failoverParts()); s < all.Seconds() {
		t.Errorf("parts take %v s, rows %v", s, all)
	}
	if few > 10*time.Minute {
		t.Errorf("without --full %v", few)
	}
	kill := &failoverRows[0]
	if a, b := kill.estimate(true, 0, fullIdle), kill.estimate(true, 0, 5000); a <= b || kill.estimate(true, 1, 5000) != b/time.Duration(kill.full) {
		t.Errorf("kill: %v with all idle connections, %v with few", a, b)
	}
	t.Logf("%.0f min with --full, %.1f without", all.Minutes(), few.Minutes())
}
