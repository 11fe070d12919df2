package standby

import (
	"sync"
	"sync/atomic"
	"time"

	"demarc/gateway/pipeline"
	"demarc/gateway/replica"
)

// sink has each worker write its part of a batch. Packets wait for one order of it at most.
type sink struct {
	*pipeline.Copied
	s *Standby
}

// perOrder is how many sessions of a batch one order is about, on average: each costs a microsecond or two. sweepStep is how many slots it looks at when it looks for what is to go.
const (
	perOrder  = 48
	sweepStep = 2048
)

// Do implements replica.Sink.
func (k *sink) Do(ops []replica.Op, ctx *replica.Context) {
	for step := perOrder * len(k.Shards); len(ops) > 0; {
		part := ops[:min(len(ops), step)]
		ops = ops[len(part):]
		leave, enter := k.Plan(part, ctx)
		k.each(leave, func(w int) { k.Leave(w, part, ctx) })
		k.each(enter, func(w int) { k.Enter(w, part, ctx) })
	}
}

// Sweep implements replica.Sink.
func (k *sink) Sweep(group uint8, keep func(replica.Place) bool) {
	for w := range k.Shards {
		for from, done := uint32(0), false; !done; {
			was := from
			k.order(w, func() { from, done = k.SweepSome(w, group, from, sweepStep, keep) })
			if from == was { // the worker has ended
				break
			}
		}
	}
	if k.Common != nil {
		k.Common.Sweep(group, keep)
	}
}

// each gives an order to all workers that have something to do, and waits for them.
func (k *sink) each(has []bool, fn func(w int)) {
	last, n := -1, 0
	for w := range has {
		if has[w] {
			last, n = w, n+1
		}
	}
	switch n {
	case 0:
	case 1:
		k.order(last, func() { fn(last) })
	default:
		var wg sync.WaitGroup
		for w := range has {
			if has[w] {
				wg.Go(func() { k.order(w, func() { fn(w) }) })
			}
		}
		wg.Wait()
	}
}

// order has a worker do something, and measures for how long its packets waited. What a worker does not do, because it has ended or has met a fault, is not taken: the owner hears that.
func (k *sink) order(w int, fn func()) {
	s := k.s
	s.pace(w)
	err := s.c.Order(w, func(*pipeline.Shard) {
		began := s.c.Now()
		fn()
		s.held(w, time.Duration(s.c.Now()-began))
	})
	if err != nil {
		s.failed.Add(1)
		s.complain("a worker did not write what was copied", "worker", w, "err", err)
	}
}

// owed is what a worker's packets are owed for the time that copying took. Its pacer alone uses it.
type owed struct {
	mu   sync.Mutex
	time time.Duration // held since the last rest
	busy uint64        // the worker's busy time then, ns
	at   int64
}

// Of a worker that has packets, copying takes a quarter of the time at most: what it holds is rested three times as long, in pieces that a timer can tell.
const (
	restFrom  = time.Millisecond
	restTimes = 3
)

// pace waits, where a worker has packets to move, until they have had their share.
func (s *Standby) pace(w int) {
	o := &s.owed[w]
	o.mu.Lock()
	held, at, busy := o.time, o.at, o.busy
	o.mu.Unlock()
	if held < restFrom || s.c.Busy == nil {
		return
	}
	now, busyNow := s.c.Now(), s.c.Busy(w)
	elapsed, other := time.Duration(now-at), time.Duration(busyNow-busy)-held
	o.mu.Lock()
	o.time, o.at, o.busy = 0, now, busyNow
	o.mu.Unlock()
	if other*4 < elapsed-held { // of the time that was left it used less than a quarter
		return
	}
	if rest := restTimes*held - (elapsed - held); rest > 0 {
		time.Sleep(rest)
	}
}

// held notes that an order has taken so long. The worker calls it.
func (s *Standby) held(w int, d time.Duration) {
	o := &s.owed[w]
	o.mu.Lock()
	o.time += d
	o.mu.Unlock()
	s.orders.Add(1)
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
