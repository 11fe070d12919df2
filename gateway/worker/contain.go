package worker

import (
	"fmt"
	"runtime/debug"
	"time"

	"demarc/gateway/pipeline"
)

// stackEvery is how often a worker's panics are logged with their stack: a flood of poison must cost the worker little and the disk nothing.
const stackEvery = uint64(10 * time.Second)

// poisoned is called by the deferred function that has recovered e from the pipeline.
func (w *Worker) poisoned(slots []pipeline.Slot, e any) {
	at, repaired, again := w.containing(slots)
	w.panicked("pipeline panic contained", e, func() []any {
		args := []any{"repaired", repaired}
		if again != nil {
			args = append(args, "repair", fmt.Sprint(again))
		}
		if at >= 0 {
			k := w.shard.Culprit()
			args = append(args, "port", slots[at].Port, "vlan", slots[at].VLAN, "src", k.Src.Netip(max(k.Family, 4)).String(), "dst", k.Dst.Netip(max(k.Family, 4)).String(), "proto", k.Proto)
		}
		return args
	})
}

// containing is Contain, which may panic in turn: where the memory of a table is gone, so it is for the repair.
func (w *Worker) containing(slots []pipeline.Slot) (at int, repaired bool, again any) {
	at = -1
	defer func() { again = recover() }()
	at, repaired = w.shard.Contain(slots)
	return at, repaired, nil
}

// panicked counts a contained panic and logs it, unless one was logged shortly before. more says what else there is to log. Called with the stack
// of the panic still there.
func (w *Worker) panicked(what string, e any, more func() []any) {
	w.count.panics.Add(1)
	now := w.cfg.Clock.Now()
	if w.stackAt != 0 && now-w.stackAt < stackEvery {
		w.unlogged++
		return
	}
	args := []any{"worker", w.cfg.ID, "panic", fmt.Sprint(e)}
	if more != nil {
		args = append(args, more()...)
	}
	if w.unlogged > 0 {
		args = append(args, "unlogged", w.unlogged)
	}
	w.cfg.Log.Error(what, append(args, "stack", string(debug.Stack()))...)
	w.stackAt, w.unlogged = now, 0
}

// upkeep is the work that no packet asks for. Where it panics, as on a table whose memory is gone, it goes on behind that place next time.
func (w *Worker) upkeep(now uint64, budget int) {
	defer func() {
		if e := recover(); e != nil {
			w.shard.Skip()
			w.panicked("upkeep panic contained", e, nil)
		}
	}()
	if budget > 0 {
		w.shard.Maintain(now, budget)
	}
	if !w.shard.Settled() {
		w.shard.Rejudge(now, 256)
	}
}

// order runs what somebody else has given to do. One that panics is the loss of who gave it.
func (w *Worker) order(j *job) (err error) {
	defer func() {
		if e := recover(); e != nil {
			w.panicked("order panic contained", e, nil)
			err = fmt.Errorf("worker %d: what it was given to do panicked: %v", w.cfg.ID, e)
		}
	}()
	j.fn(w.shard)
	return nil
}
