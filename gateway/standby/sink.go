package standby

import (
	"sync"
	"sync/atomic"
	"time"

	"demarc/gateway/pipeline"
	"demarc/gateway/replica"
)

// sink has each worker write its part of a batch, a step between two bursts, and the next one a turn later.
type sink struct {
	*pipeline.Copied
	s *Standby
}

// How much is done before the clock is asked again: a session costs a microsecond or two, a slot that is only looked at some nanoseconds.
const (
	writeStep = 16
	sweepStep = 512
)

// Do implements replica.Sink.
func (k *sink) Do(ops []replica.Op, ctx *replica.Context) {
	for i := range ops {
		k.s.takes(ops[i].Rec.Group)
	}
	leave, enter := k.Plan(ops, ctx)
	k.each(leave, len(ops), func(w, from, to int) { k.Leave(w, ops[from:to], ctx) })
	k.each(enter, len(ops), func(w, from, to int) { k.Enter(w, ops[from:to], ctx) })
}

// each has all workers that have something to do of n things do it, and waits for them.
func (k *sink) each(has []bool, n int, fn func(w, from, to int)) {
	var wg sync.WaitGroup
	last := -1
	for w := range has {
		if !has[w] {
			continue
		}
		if before := last; before >= 0 {
			wg.Go(func() { k.write(before, n, fn) })
		}
		last = w
	}
	if last >= 0 {
		k.write(last, n, fn)
	}
	wg.Wait()
}

func (k *sink) write(w, n int, fn func(w, from, to int)) {
	at, step := 0, writeStep*len(k.Shards) // about writeStep of them are this worker's
	k.steps(w, func(more func() bool) bool {
		for at < n && more() {
			to := min(at+step, n)
			fn(w, at, to)
			at = to
		}
		return at >= n
	})
}

// Sweep implements replica.Sink.
func (k *sink) Sweep(group uint8, keep func(replica.Place) bool) {
	k.s.takes(group)
	for w := range k.Shards {
		from, done := uint32(0), false
		k.steps(w, func(more func() bool) bool {
			for !done && more() {
				from, done = k.SweepSome(w, group, from, sweepStep, keep)
			}
			return done
		})
	}
	if k.Common != nil {
		k.Common.Sweep(group, keep)
	}
}

// Lost implements replica.Sink: where a worker has not come to its end, nobody knows what of it is done, and what was to be swept may stand there still.
func (k *sink) Lost() uint64 { return k.Copied.Lost() + k.s.failed.Load() }

// steps has a worker do something bit by bit: fn goes on while more says so, and reports whether it is done. For how long packets waited each time is measured. What a worker does not do,
// because it has ended or has met a fault, is not taken: the owner hears that.
func (k *sink) steps(w int, fn func(more func() bool) (done bool)) {
	s := k.s
	var began int64
	var room time.Duration
	first := false
	more := func() bool {
		if first {
			first = false
			return true
		}
		return time.Duration(s.c.Now()-began) < room
	}
	s.since[w].Store(max(s.c.Now(), 1))
	defer s.since[w].Store(0)
	err := s.c.Steps(w, func(_ *pipeline.Shard, r time.Duration) bool {
		began, room, first = s.c.Now(), r, true
		done := fn(more)
		s.held(w, time.Duration(s.c.Now()-began))
		return done
	})
	if err != nil {
		s.failed.Add(1)
		s.complain("a worker did not write what was copied", "worker", w, "err", err)
	}
}

// held notes that a step has taken so long. The worker calls it.
func (s *Standby) held(w int, d time.Duration) {
	s.steps.Add(1)
	s.heldNs.Add(int64(d))
	for was := s.longest.Load(); int64(d) > was && !s.longest.CompareAndSwap(was, int64(d)); {
		was = s.longest.Load()
	}
	if s.c.Held != nil {
		s.c.Held(w, d)
	}
}

// roles is which groups this node owns, as far as it matters for what is taken of them.
type roles struct {
	deaf [256]atomic.Bool // nothing is taken any more: this node owns the group. Looked at by each worker before it writes
	took [256]atomic.Bool // something was taken from another node
	mu   sync.Mutex
	turn [256]uint64 // mu: how often it has changed
	told []role      // mu: what the receiver is yet to be told
}

type role struct {
	group uint8
	own   bool
	epoch uint64
	turn  uint64
}
