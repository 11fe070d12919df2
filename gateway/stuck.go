package gateway

import (
	"context"
	"sync/atomic"
	"time"

	"demarc/gateway/pipeline"
	"demarc/gateway/worker"
)

// stuckAfter: a worker that has not answered for so long is stuck. A copy that is a second behind is not in sync any more (failover.Times.MaxLag), and a worker that is stuck brings its own
// no further: the group is to be gone by then, its hand-over agreed on. It is more than a guest's processor is seen to be away.
const stuckAfter = 600 * time.Millisecond

// looks asks the workers whether they answer, each by itself, and holds up nobody. One goroutine calls count.
type looks struct {
	at    time.Time // of the last
	asked []*asked  // by worker
}

// asked is what one worker was asked.
type asked struct {
	out    atomic.Bool   // it has not answered
	waited time.Duration // for so long, in looks
}

// count is how many workers have not answered for too long. What passes between two looks counts as two of their turns at most: who looks may have been away as well, and is not to blame a worker for it.
func (l *looks) count(ctx context.Context, workers []*worker.Worker, now time.Time) (n int) {
	step := max(0, min(now.Sub(l.at), 2*lookPace))
	l.at = now
	if len(l.asked) != len(workers) {
		l.asked = make([]*asked, len(workers))
		for i := range l.asked {
			l.asked[i] = &asked{}
		}
	}
	for i, w := range workers {
		a := l.asked[i]
		if !a.out.Load() {
			a.waited = 0
			a.out.Store(true)
			go func() {
				if w.Do(ctx, func(*pipeline.Shard) {}) == nil { // else it has ended, or this gateway ends
					a.out.Store(false)
				}
			}()
			continue
		}
		if a.waited += step; a.waited >= stuckAfter {
			n++
		}
	}
	return n
}
