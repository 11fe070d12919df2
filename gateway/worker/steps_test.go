package worker

import (
	"context"
	"errors"
	"slices"
	"testing"
	"time"

	"demarc/gateway/pipeline"
)

// TestStepsGoOnBetweenTurns: what Steps was given goes on from turn to turn, with orders of others in between; two that ask at the same time come one after the other; one that panics is told so,
// and the next goes on.
func TestStepsGoOnBetweenTurns(t *testing.T) {
	ws := newWorkers(t, 1)
	w := ws[0]
	defer start(t, ws)()
	run := make(chan int, 2)
	var order, ends []int // of the worker's thread
	hold := make(chan struct{})
	for i := range 2 {
		go func() {
			n := 0
			if err := w.Steps(t.Context(), func(_ *pipeline.Shard, room time.Duration) bool {
				if room < stepLeast || room > stepMost {
					t.Errorf("may take %s", room)
				}
				order = append(order, i)
				n++
				select {
				case <-hold:
					if n > 20 {
						ends = append(ends, i)
					}
					return n > 20
				default:
					return false
				}
			}); err != nil {
				t.Error(err)
			}
			run <- i
		}()
	}
	for range 100 { // while one is under way
		if err := w.Do(t.Context(), func(*pipeline.Shard) {}); err != nil {
			t.Fatal(err)
		}
	}
	close(hold)
	<-run
	<-run
	changes := 0
	for i := 1; i < len(order); i++ {
		if order[i] != order[i-1] {
			changes++
		}
	}
	if changes != 1 || !slices.Equal(ends, []int{order[0], 1 - order[0]}) || len(order) < 40 {
		t.Errorf("%d steps, begun with %d, ended in the order %v, %d changes between the two", len(order), order[0], ends, changes)
	}
	if err := w.Steps(t.Context(), func(*pipeline.Shard, time.Duration) bool { panic("no") }); err == nil {
		t.Error("a panic is no error")
	}
	if err := w.Steps(t.Context(), func(*pipeline.Shard, time.Duration) bool { return true }); err != nil {
		t.Error(err)
	}
}

// TestStepsEndWithTheWorker: who waits is told, also when the step would never end.
func TestStepsEndWithTheWorker(t *testing.T) {
	ws := newWorkers(t, 1)
	w := ws[0]
	stop := start(t, ws)
	ended := make(chan error, 3)
	begun := make(chan struct{}, 1)
	for range 3 {
		go func() {
			ended <- w.Steps(context.Background(), func(*pipeline.Shard, time.Duration) bool {
				select {
				case begun <- struct{}{}:
				default:
				}
				return false
			})
		}()
	}
	<-begun
	stop()
	for range 3 {
		if err := <-ended; !errors.Is(err, ErrStopped) {
			t.Error(err)
		}
	}
	if err := w.Steps(context.Background(), nil); !errors.Is(err, ErrStopped) {
		t.Error(err)
	}
}

// TestStepsLeaveRoom: where a turn has had something to do, a step may take a third of what that took.
func TestStepsLeaveRoom(t *testing.T) {
	w := newWorkers(t, 1)[0]
	room := func(busy bool, before time.Duration) (r time.Duration) {
		w.walk = steps{func(_ *pipeline.Shard, x time.Duration) bool { r = x; return true }, make(chan error, 1)}
		w.step(w.cfg.Clock.Now()-uint64(before), busy)
		return r
	}
	if r := room(false, 50*time.Millisecond); r != stepMost {
		t.Errorf("idle: %s", r)
	}
	if r := room(true, 0); r < stepLeast || r > stepMost/2 {
		t.Errorf("behind a turn of nothing: %s", r)
	}
	if r := room(true, 150*time.Microsecond); r < 50*time.Microsecond {
		t.Errorf("behind 150 µs: %s", r)
	}
	if r := room(true, 50*time.Millisecond); r != stepMost {
		t.Errorf("behind 50 ms: %s", r)
	}
}
