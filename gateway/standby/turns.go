package standby

import "time"

// turns is a lock that may be waited for for a bounded time: it is held while workers write, and one of them may hang.
type turns chan struct{}

func newTurns() turns { return make(turns, 1) }

// Lock waits for as long as it takes.
func (t turns) Lock() { t <- struct{}{} }

// Unlock lets the next one have it.
func (t turns) Unlock() { <-t }

// lockFor waits for so long at most, and says whether it has got the lock.
func (t turns) lockFor(d time.Duration) bool {
	select {
	case t <- struct{}{}:
		return true
	default:
	}
	late := time.NewTimer(d)
	defer late.Stop()
	select {
	case t <- struct{}{}:
		return true
	case <-late.C:
		return false
	}
}
