package worker

import (
	"slices"
	"time"

	"demarc/gateway/pipeline"
	"demarc/gateway/police"
	"demarc/gateway/trace"
	"demarc/gateway/verdict"
)

// A frame of a group leaves only while this node serves the group. The pipeline asks once for each packet, with the burst's time; here is asked again by the
// clock itself, when a batch goes into a tx ring and before each system call by which the kernel may send what is in one. Frames of no group cost
// a compare with zero.

// fence is what a socket's frames of groups need until the kernel has taken them.
type fence struct {
	group   [pipeline.Burst]uint8 // of each frame in the batch
	grouped bool                  // one of them is of a group
	queued  []queued              // groups with frames in the tx ring; one entry each
	looked  uint64                // ns of the look before the system call under way, 0 = none
	fenced  bool                  // what is in the tx ring may not leave: no system call any more
}

// queued is a group's frames in a tx ring: all before last, which counts as xsk.Socket.Queued does.
type queued struct {
	epoch uint64
	last  uint32
	id    uint8
}

// mayGo says whether a frame of a group may be put into a tx ring: it is served, or is being handed over and this worker is not done with what had come for it by then.
func (w *Worker) mayGo(id uint8, now uint64) bool {
	d, e := w.cfg.Deadlines, w.cfg.Ending
	return d.May(id, now) || e.May(id, now) && e.Epoch(id) == d.Epoch(id)
}

// leaveBy is until when a frame of a group may be sent, as mayGo has it; 0 = not at all.
func (w *Worker) leaveBy(id uint8, now uint64) uint64 {
	switch d, e := w.cfg.Deadlines, w.cfg.Ending; {
	case d.May(id, now):
		return d.Until(id)
	case w.mayGo(id, now):
		return e.Until(id)
	}
	return 0
}

// keepOwn takes out of a batch what this node may not send any more.
func (w *Worker) keepOwn(s *sockState) {
	if noLook {
		dawdle(s.n)
		return
	}
	now, k := w.cfg.Clock.Exact(), 0
	for i := range s.n {
		if w.mayGo(s.group[i], now) {
			s.batch[k], s.group[k] = s.batch[i], s.group[i]
			k++
			continue
		}
		d := &s.batch[i]
		u := w.cfg.Areas[s.Area]
		w.shard.Dropped(0, verdict.NotOwner, trace.NoPort, u.Mem()[d.Addr:d.Addr+uint64(d.Len)], true)
		w.free(s.Area, d.Addr&^(uint64(u.Chunk())-1))
	}
	s.n = k
}

// note remembers of which groups frames have gone into the tx ring.
func (w *Worker) note(s *sockState, groups []uint8) {
	last := s.S.Queued()
next:
	for _, id := range groups {
		if id == 0 {
			continue
		}
		for i := range s.queued {
			if q := &s.queued[i]; q.id == id {
				q.last = last // those of an earlier term stay what they are
				continue next
			}
		}
		s.queued = append(s.queued, queued{epoch: w.cfg.Deadlines.Epoch(id), last: last, id: id}) // has room for all ids
	}
}

// mayCall is asked before each system call by which the kernel may send what is queued on s. It also sees to it that the call before did not take too long.
func (w *Worker) mayCall(s *sockState) bool {
	w.overran(s)
	now, ok := w.mayStay(s, s.S.Calls() && !w.closed.Load())
	s.looked = now
	return ok
}

// lateMost is for how long after a deadline what is queued is kept for the next one of the same term. It is longer than what a lease comes late by when the machine was elsewhere, and as long as packets may be late.
const lateMost = 50 * time.Millisecond

// leaseLate reports whether frames were queued under a deadline that has just passed and that nobody has taken back: the lease may come yet.
func (w *Worker) leaseLate(q *queued, now uint64) bool {
	until := w.cfg.Deadlines.Until(q.id)
	return until != 0 && w.cfg.Deadlines.Epoch(q.id) == q.epoch && now < until+uint64(lateMost)
}

// mayStay fences the socket if frames of a group that is not served, or is in another term, are in its tx ring. now is when it looked; 0 = there are none. Wait: those whose lease is late are no reason yet, but the
// answer is no; that is for who can leave them there, which takes nothing but not to call.
func (w *Worker) mayStay(s *sockState, wait bool) (now uint64, ok bool) {
	if s.fenced || len(s.queued) == 0 || noLook {
		return 0, !s.fenced
	}
	if s.forget(); len(s.queued) == 0 {
		return 0, true
	}
	now, ok = w.cfg.Clock.Exact(), true
	for i := range s.queued {
		switch q := &s.queued[i]; {
		case w.mayLeave(q, now):
		case wait && w.leaseLate(q, now):
			ok = false
		default:
			s.fenced, w.fenced = true, true
			return 0, false
		}
	}
	if !ok {
		return 0, false
	}
	return now, true
}

// mayLeave says whether what is in a tx ring may leave: the group is served, in the same term, or is being handed over and has been given that time for it.
func (w *Worker) mayLeave(q *queued, now uint64) bool {
	d, l := w.cfg.Deadlines, w.cfg.Leaving
	return d.May(q.id, now) && d.Epoch(q.id) == q.epoch || l.May(q.id, now) && l.Epoch(q.id) == q.epoch
}

// mayAll looks once more at frames of a batch after a system call, which takes its time.
func (w *Worker) mayAll(groups []uint8) bool {
	now := w.cfg.Clock.Exact()
	return noLook || !slices.ContainsFunc(groups, func(id uint8) bool { return !w.mayGo(id, now) })
}

// forget lets go of what the kernel has taken.
func (s *sockState) forget() {
	taken, k := s.S.Taken(), 0
	for _, q := range s.queued {
		if int32(taken-q.last) < 0 {
			s.queued[k] = q
			k++
		}
	}
	s.queued = s.queued[:k]
}

// overran counts a system call that ended later than the guard after the look before it: what it sent may have left after the deadline.
func (w *Worker) overran(s *sockState) {
	if s.looked == 0 {
		return
	}
	if w.cfg.Clock.Exact()-s.looked > uint64(w.cfg.Guard) {
		w.count.overruns.Add(1)
	}
	s.looked = 0
}

// pollFD is what a sleeping worker polls for the socket: nothing while frames of groups are in its tx ring. Polling sends them, in copy mode, and once more
// whenever the sleeper wakes, also after a stop that it has slept through; nobody looks then.
func (s *sockState) pollFD() int32 {
	if len(s.queued) > 0 {
		s.forget()
	}
	if s.fenced || len(s.queued) > 0 {
		return -1
	}
	return int32(s.S.FD())
}

// may looks at what the shaper lets go towards one of our own addresses. It frees the frame where the group is served no more.
func (w *Worker) may(it *police.Item) bool {
	if id := uint8(it.Tag); id != 0 && !noLook && !w.cfg.Deadlines.May(id, w.cfg.Clock.Exact()) {
		at := it.Frame + uint64(it.Off)
		w.shard.Dropped(0, verdict.NotOwner, trace.NoPort, w.cfg.Areas[it.Area].Mem()[at:at+uint64(it.Len)], true)
		w.free(it.Area, it.Frame)
		return false
	}
	return true
}

// sever lets go of sockets whose tx ring has frames that may not leave. They are closed, and opened again, beside the worker; what is queued dies with them.
func (w *Worker) sever() {
	w.fenced = false
	keep := w.socks[:0:0]
	for _, s := range w.socks {
		if !s.fenced {
			keep = append(keep, s)
			continue
		}
		w.giveUp(s)
		s.gone.Store(true)
		if n := s.S.Queued() - s.S.Taken(); n > 0 {
			w.shard.Meter.DropN(0, verdict.NotOwner, uint64(n))
		}
		w.leaving = append(w.leaving, s)
		w.count.fenced.Add(1)
		if w.cfg.Fenced != nil {
			w.cfg.Fenced(s.Port, s.S)
		}
	}
	w.socks = keep
	w.tables()
}

// Clean reports whether nothing can leave any more of a group that is not served: what had come for one that is handed over is carried, such frames in tx rings have left, where they may, or their sockets have been
// shut. A zero-copy driver takes what is in a ring without being called, so a look before a call is not enough here. Call it inside Do.
func (w *Worker) Clean() bool {
	if !w.drained() {
		return false
	}
	clean := true
	for _, s := range w.socks {
		now, ok := w.mayStay(s, false)
		clean = clean && ok && !slices.ContainsFunc(s.queued, func(q queued) bool { return !w.cfg.Deadlines.May(q.id, now) })
	}
	if !clean {
		return false
	}
	for _, s := range w.leaving {
		if s.fenced && !s.S.IsShut() {
			return false
		}
	}
	return true
}

// drained reports whether this worker is done with what lay in its rings when a group that is handed over was closed: no more of it comes, the programs go by the deadline. From then on nothing of it is judged or
// put into a tx ring any more, so what another worker hands over later is dropped. What comes for other groups meanwhile is not waited for.
func (w *Worker) drained() bool {
	if !w.noteDue(w.cfg.Clock.Exact()) {
		return true
	}
	for _, s := range w.socks {
		if s.S.Received() < s.due {
			return false
		}
	}
	for i, r := range w.in {
		if r != nil && int64(r.tail.Load()-w.due[i]) < 0 {
			return false
		}
	}
	w.flushAll()
	for _, s := range w.socks {
		if s.n > 0 { // its tx ring is full
			return false
		}
	}
	w.EndNow()
	w.draining = false
	return true
}

// noteDue reports whether a group is being handed over, and notes how much there is in the rings where it was not so before.
func (w *Worker) noteDue(now uint64) (open bool) {
	if w.cfg.Ending == nil {
		return false
	}
	for id := 1; id < len(w.cfg.Ending) && !open; id++ {
		open = w.cfg.Ending.May(uint8(id), now)
	}
	if open && !w.draining {
		for _, s := range w.socks {
			s.due = s.S.Received() + uint64(s.S.Waiting())
		}
		for i, r := range w.in {
			if r != nil {
				w.due[i] = r.head.Load()
			}
		}
	}
	w.draining = open
	return open
}

// EndNow ends what Ending allows. Any goroutine may call it of a worker that Rests, and looks again whether it does: it has nothing in hand, and what comes to it later is not to be carried.
func (w *Worker) EndNow() {
	for id := range w.cfg.Ending {
		w.cfg.Ending.End(uint8(id))
	}
}

// bare reports whether no frame of a group is in hand: none in a batch, none in a tx ring, none on a socket that has still to be shut.
func (w *Worker) bare() bool {
	if w.outGrouped {
		return false
	}
	for _, s := range w.socks {
		if s.n > 0 || len(s.queued) > 0 || s.fenced {
			return false
		}
	}
	for _, s := range w.leaving {
		if s.fenced && !s.S.IsShut() {
			return false
		}
	}
	return true
}

// guardDefault is failover's.
const guardDefault = 20 * time.Millisecond
