package worker

import (
	"context"
	"fmt"
	"time"

	"demarc/gateway/pipeline"
)

// What Steps may take of a turn: where there was something to do, a third of what that took, so that it has a quarter of the worker's time at most; never so little that nothing
// moves, and never so much that packets wait for longer than stepMost.
const (
	stepLeast = 10 * time.Microsecond
	stepMost  = 100 * time.Microsecond
	stepShare = 3
)

// steps is work that goes over many turns.
type steps struct {
	fn   func(sh *pipeline.Shard, room time.Duration) (done bool)
	done chan error
}

// Steps has fn run on the worker's thread once a turn, between two bursts, until it says that it is done, and waits for that. Packets, and orders of others, go on in between. room is
// how long it may take this time. Several that are asked for at the same time come one after the other. Errors are as those of Do.
func (w *Worker) Steps(ctx context.Context, fn func(sh *pipeline.Shard, room time.Duration) (done bool)) error {
	j := steps{fn, make(chan error, 1)}
	select {
	case <-w.ended:
		return fmt.Errorf("worker %d: %w", w.cfg.ID, ErrStopped)
	default:
	}
	select {
	case w.walks <- j:
	case <-w.ended:
		return fmt.Errorf("worker %d: %w", w.cfg.ID, ErrStopped)
	case <-ctx.Done():
		return fmt.Errorf("worker %d does not take orders: %w", w.cfg.ID, ctx.Err())
	}
	w.call()
	select {
	case err := <-j.done:
		return err
	case <-w.ended:
	}
	select {
	case err := <-j.done:
		return err
	default:
		return fmt.Errorf("worker %d: %w", w.cfg.ID, ErrStopped)
	}
}

// step goes on with what Steps was given. busy says that the turn, which has begun at now, had something else to do.
func (w *Worker) step(now uint64, busy bool) int {
	if w.walk.fn == nil {
		select {
		case w.walk = <-w.walks:
		default:
			return 0
		}
	}
	began, room := w.cfg.Clock.Now(), stepMost
	if busy {
		room = min(max(time.Duration(began-now)/stepShare, stepLeast), stepMost)
	}
	done := false
	err := w.order(&job{fn: func(sh *pipeline.Shard) { done = w.walk.fn(sh, room) }})
	w.count.longestOrder.Store(max(w.count.longestOrder.Load(), w.cfg.Clock.Now()-began))
	if done || err != nil {
		w.count.orders.Add(1)
		w.walk.done <- err
		w.walk = steps{}
	}
	return 1
}

// noMoreSteps answers those who wait when the worker ends.
func (w *Worker) noMoreSteps() {
	if w.walk.fn != nil {
		w.walk.done <- ErrStopped
		w.walk = steps{}
	}
	for {
		select {
		case j := <-w.walks:
			j.done <- ErrStopped
		default:
			return
		}
	}
}
