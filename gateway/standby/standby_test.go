package standby

import (
	"fmt"
	"testing"
)

// TestCopiesComeOverAConnection: what an owner has, what it opens and ends meanwhile, and after its connection was cut, is in the standby's tables, with as many workers or others; the driver is told
// that the copy is whole, under the right epoch.
func TestCopiesComeOverAConnection(t *testing.T) {
	for _, workers := range [][2]int{{1, 2}, {2, 3}, {3, 1}, {2, 2}} {
		t.Run(fmt.Sprintf("%d to %d workers", workers[0], workers[1]), func(t *testing.T) {
			f := newFar(t, workers[1], 1<<14, policyText+groupText(`"alpha"`))
			n := newNear(t, workers[0], 1<<14)
			n.open(1, 0, 3000)
			end := connect(n, f)
			same := func(what string) {
				t.Helper()
				eventually(t, what, func() bool {
					all, _ := f.sessions()
					whole, _ := f.whole()
					return whole && all == n.count()
				})
			}
			same("all is copied")
			eventually(t, "the driver is told", func() bool { return f.marks.Load() > 0 && f.epoch.Load() == 5 })
			n.mu.Lock()
			n.open(1, 3000, 5000)
			n.end(func(i int) bool { return i%3 == 0 })
			n.mu.Unlock()
			same("changes")
			if a, b := end(); b != nil {
				t.Errorf("it ended with %v, %v", a, b)
			}
			n.mu.Lock()
			n.open(1, 5000, 5500)
			n.end(func(i int) bool { return i%5 == 0 })
			n.mu.Unlock()
			was := f.sb.Status().Copies
			end = connect(n, f)
			same("what happened meanwhile")
			if now := f.sb.Status().Copies; now != was {
				t.Errorf("%d copies were begun anew because a connection was cut: it goes on from where it was", now-was)
			}
			end()
		})
	}
}
