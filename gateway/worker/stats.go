package worker

import (
	"fmt"
	"sync/atomic"
	"time"
)

// Stats is what a worker says of itself; all figures since start but the gauges.
type Stats struct {
	Sessions, Mappings             int // gauges
	Frames, Free, Held             int // gauges
	Fragments, FragmentsCap        int // gauges: those that wait for the first of their datagram, and how many may
	Datagrams                      int // gauge: those in fragments whose first one has come, while more may
	Bursts, Wakeups, Panics        uint64
	HandedOut, HandedIn, Crossings uint64
	BusyNs, Orders                 uint64
	LongestOrder                   time.Duration // how long one has kept packets waiting, at most, since start
	Blocked                        int           // gauge: flows and sources that have made it panic
	Gen                            uint32        // of the view that it works with
	Overruns                       uint64        // system calls with a group's frames that came back later than the guard after the look at the deadline
	Watched                        bool          // it looks at every packet, so the second executor carries none
	Cruising                       int           // gauge: sessions that the second executor has
	Hasty                          uint64        // sessions handed down although not all of their packets were seen to have left
	GivenUp                        uint64        // batches of sessions to be handed down that waited too long for packets in hand
	HandedOn                       uint64        // frames that came for a group just after it was handed over, and were sent on to its next owner
	Fenced                         uint64        // sockets closed because a deadline had passed while a group's frames were queued
}

type counters struct {
	sessions, mappings, free, held, blocked atomic.Int64
	cruising                                atomic.Int64
	watched                                 atomic.Bool
	bursts, wakeups, panics                 atomic.Uint64
	handedOut, handedIn, crossings, busyNs  atomic.Uint64
	orders, longestOrder                    atomic.Uint64
	gen                                     atomic.Uint32
	overruns, fenced, handedOn              atomic.Uint64
	givenUp                                 atomic.Uint64
	hasty, lostAt                           atomic.Uint64 // lostAt: ns, when the kernel was last found to have lost what programs sent up
	fragments, fragmentsCap, datagrams      atomic.Int64
}

func (w *Worker) gauges() int {
	free := 0
	for _, u := range w.cfg.Areas {
		free += u.FreeCount()
	}
	w.count.free.Store(int64(free))
	w.count.held.Store(int64(w.shard.Shaper.Held()))
	waiting, most, known := w.shard.Fragments()
	w.count.fragments.Store(int64(waiting))
	w.count.fragmentsCap.Store(int64(most))
	w.count.datagrams.Store(int64(known))
	w.count.sessions.Store(int64(w.shard.Sessions.Len()))
	w.count.mappings.Store(int64(w.shard.NAT.Len()))
	w.count.blocked.Store(int64(w.shard.Poisoned()))
	if at := w.grownAt.Load(); at != 0 && w.cfg.Grown != nil && int64(max(w.shard.Sessions.Len(), w.shard.NAT.Len())) >= at && w.grownAt.CompareAndSwap(at, 0) {
		w.cfg.Grown()
	}
	return 0
}

// TellGrown has Grown called, once, when there are more than n sessions or mappings, as Stats says it. It is looked at when a worker's figures are: each 10 ms at least while it works. Any goroutine.
func (w *Worker) TellGrown(n int) { w.grownAt.Store(int64(n) + 1) }

// Stats reads the worker's figures. Any goroutine.
func (w *Worker) Stats() Stats {
	c := &w.count
	frames := 0
	for _, u := range w.cfg.Areas {
		frames += u.Frames()
	}
	return Stats{
		Sessions: int(c.sessions.Load()), Mappings: int(c.mappings.Load()), Frames: frames, Free: int(c.free.Load()), Held: int(c.held.Load()), Blocked: int(c.blocked.Load()),
		Fragments: int(c.fragments.Load()), FragmentsCap: int(c.fragmentsCap.Load()), Datagrams: int(c.datagrams.Load()),
		Bursts: c.bursts.Load(), Wakeups: c.wakeups.Load(), Panics: c.panics.Load(), HandedOut: c.handedOut.Load(), HandedIn: c.handedIn.Load(),
		Crossings: c.crossings.Load(), BusyNs: c.busyNs.Load(), Orders: c.orders.Load(), LongestOrder: time.Duration(c.longestOrder.Load()), Gen: c.gen.Load(), Overruns: c.overruns.Load(), Fenced: c.fenced.Load(), Cruising: int(c.cruising.Load()), Watched: c.watched.Load(), Hasty: c.hasty.Load(), GivenUp: c.givenUp.Load(), HandedOn: c.handedOn.Load(),
	}
}

// SocketStats is what one socket has carried.
type SocketStats struct {
	Socket
	RxPackets, RxBytes, TxPackets, TxBytes, TxFull, TxErrors, Kicks, Launched uint64
}

// SocketStats reads the figures of the worker's sockets. Any goroutine.
func (w *Worker) SocketStats() []SocketStats {
	shown := *w.shown.Load()
	out := make([]SocketStats, len(shown))
	for i, s := range shown {
		out[i] = SocketStats{Socket: s.Socket, RxPackets: s.rxPackets.Load(), RxBytes: s.rxBytes.Load(), TxPackets: s.txPackets.Load(),
			TxBytes: s.txBytes.Load(), TxFull: s.txFull.Load(), TxErrors: s.txErrors.Load(), Kicks: s.kicks.Load(), Launched: s.launched.Load()}
	}
	return out
}

// Account adds up where the worker's frames are, per memory area: it must be every frame. Call it inside Do, or after Run has returned.
func (w *Worker) Account() error {
	for i, u := range w.cfg.Areas {
		free, batched, rings := u.FreeCount(), 0, 0
		for _, s := range w.socks {
			if int(s.Area) == i {
				fill, rx, tx := s.S.InKernel()
				rings += fill + rx + tx
				batched += s.n
			}
		}
		for _, s := range w.leaving {
			if int(s.Area) == i {
				rings += s.S.Holds()
			}
		}
		if sum := free + w.held[i] + w.keeping.area[i] + batched + rings + u.Limbo(); sum != u.Frames() {
			return fmt.Errorf("worker %d area %d: free %d + shaped %d + kept %d + batched %d + fill, rx, tx, completion %d + limbo %d = %d, but there are %d frames",
				w.cfg.ID, i, free, w.held[i], w.keeping.area[i], batched, rings, u.Limbo(), sum, u.Frames())
		}
	}
	held := 0
	for _, n := range w.held {
		held += n
	}
	if held != w.shard.Shaper.Held() {
		return fmt.Errorf("worker %d: %d frames given to the shaper, which holds %d", w.cfg.ID, held, w.shard.Shaper.Held())
	}
	return nil
}

// Rings says which frames the kernel has of each queue: fill, rx, tx and completion. Call it inside Do.
func (w *Worker) Rings(fn func(port uint16, queue, fill, rx, tx int)) {
	for _, s := range w.socks {
		fill, rx, tx := s.S.InKernel()
		fn(s.Port, s.Queue, fill, rx, tx)
	}
}
