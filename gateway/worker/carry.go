package worker

import (
	"demarc/gateway/pipeline"
	"demarc/gateway/slowpath"
	"demarc/gateway/trace"
	"demarc/gateway/verdict"
)

// receive takes one burst from a socket and carries it through.
func (w *Worker) receive(s *sockState, now uint64) int {
	k := s.S.Recv(w.descs[:w.cfg.Batch])
	if k == 0 {
		return 0
	}
	came := k
	if now < w.cfg.HandOn.Until() {
		k = w.keep(s, k, now)
	}
	u := w.cfg.Areas[s.Area]
	mem, chunk := u.Mem(), uint64(u.Chunk())
	bytes := uint64(0)
	for i := range k {
		d := &w.descs[i]
		base := d.Addr &^ (chunk - 1)
		sl := &w.slots[i]
		sl.Buf = mem[base : base+chunk]
		sl.Off, sl.Len = int(d.Addr-base), int(d.Len)
		sl.Port, sl.Looped, sl.Handed, sl.Area, sl.Addr = s.Port, false, false, s.Area, base
		sl.Gathered = false
		bytes += uint64(d.Len)
	}
	s.rxPackets.Add(uint64(k))
	s.rxBytes.Add(bytes)
	w.count.bursts.Add(1)
	if k > 0 {
		w.judge(w.slots[:k], now)
		w.settle(now)
	}
	return came
}

// judge has the pipeline decide and carries it out.
func (w *Worker) judge(slots []pipeline.Slot, now uint64) {
	w.contained(slots, now, false)
	w.carryOut(slots, now)
}

func (w *Worker) carryOut(slots []pipeline.Slot, now uint64) {
	for i := range slots {
		s := &slots[i]
		switch s.Verdict {
		case verdict.Send:
			w.send(s.OutPort, s.Group, s.Area, s.Addr, s.Off, s.Len)
		case verdict.Queue: // the shaper owns the frame now
			w.held[s.Area]++
		case verdict.Hand:
			kind := uint8(handProcess)
			switch {
			case s.Looped && s.Gathered:
				kind = handGatherLoop
			case s.Looped:
				kind = handLoop
			case s.Gathered:
				kind = handGather
			}
			w.hand(int(s.Home), kind, s.Port, 0, s.Frame(), s)
			w.free(s.Area, s.Addr)
		case verdict.Loop:
			w.pushLoop(s.Area, s.Addr, s.Off, s.Len, now)
		case verdict.Punt:
			w.slow(slowpath.Learn, s)
		case verdict.Neighbor:
			w.slow(slowpath.Resolve, s)
		case verdict.Cut:
			w.cut(s, now)
		default: // dropped, or the pipeline has its copy
			w.free(s.Area, s.Addr)
		}
	}
}

// cut makes pieces of a frame that is too large for its next hop, sends them and frees it. What there are no frames for is lost: its
// receiver will ask for all of it again.
func (w *Worker) cut(s *pipeline.Slot, now uint64) {
	u := w.cfg.Areas[s.Area]
	for from, more := 0, true; more; {
		k := 0
		for more && k < len(w.pieces) {
			addr, ok := u.Alloc()
			if !ok {
				w.shard.Meter.Drop(s.Tenant, verdict.FrameExhausted)
				more = false
				break
			}
			p := &w.pieces[k]
			p.Buf, p.Area, p.Addr = u.Mem()[addr:addr+uint64(u.Chunk())], s.Area, addr
			if from, ok = w.shard.Piece(s, p, from, handHeadroom); !ok {
				w.free(s.Area, addr)
				more = false
				break
			}
			k++
			more = from != 0
		}
		w.contained(w.pieces[:k], now, true)
		w.carryOut(w.pieces[:k], now)
	}
	w.free(s.Area, s.Addr)
}

// contained runs the pipeline and survives panics in it: the frame under way is dropped and its flow blocked, the rest of the burst goes on.
func (w *Worker) contained(slots []pipeline.Slot, now uint64, pieces bool) {
	for i := range slots {
		slots[i].Verdict, slots[i].Reason = verdict.Drop, verdict.Unset
	}
	if w.process(slots, now, pieces) {
		return
	}
	for range slots { // each panic takes a frame out of the burst
		if w.resume(slots) {
			return
		}
	}
	n := uint64(0)
	for i := range slots { // what goes on panicking without a frame to blame
		if v := slots[i].Verdict; v == verdict.Next || v == verdict.Drop && slots[i].Reason == verdict.Unset {
			slots[i].Verdict, slots[i].Reason = verdict.Drop, verdict.InternalError
			n++
		}
	}
	w.shard.Meter.DropN(0, verdict.InternalError, n)
}

func (w *Worker) process(slots []pipeline.Slot, now uint64, pieces bool) (done bool) {
	defer func() {
		if e := recover(); e != nil {
			w.poisoned(slots, e)
		}
	}()
	if pieces {
		w.shard.SendPieces(slots)
	} else {
		w.shard.Process(slots, now)
	}
	return true
}

func (w *Worker) resume(slots []pipeline.Slot) (done bool) {
	defer func() {
		if e := recover(); e != nil {
			w.poisoned(slots, e)
		}
	}()
	w.shard.Resume(slots)
	return true
}

func (w *Worker) slow(kind slowpath.Kind, s *pipeline.Slot) {
	if !w.cfg.Slow.Input(w.cfg.ID, kind, s.OutIface, s.Tenant, s.Group, s.Key.Family, &s.NextHop, s.Frame()) {
		w.shard.Dropped(s.Tenant, verdict.SlowPathFull, s.Port, s.Frame(), kind == slowpath.Resolve)
	}
	w.free(s.Area, s.Addr)
}

// unanswered has the pipeline tell the sender of a frame whose next hop did not answer.
func (w *Worker) unanswered(iface uint16, frame []byte, now uint64) {
	u := w.cfg.Areas[0]
	addr, ok := u.Alloc()
	if !ok {
		w.shard.Dropped(0, verdict.NoNeighbor, trace.NoPort, frame, true)
		return
	}
	if handHeadroom+len(frame) > u.Chunk() {
		w.free(0, addr)
		w.shard.Dropped(0, verdict.NoNeighbor, trace.NoPort, frame, true)
		return
	}
	sl := &w.returned[0]
	sl.Buf, sl.Off, sl.Len = u.Mem()[addr:addr+uint64(u.Chunk())], handHeadroom, len(frame)
	copy(sl.Buf[handHeadroom:], frame)
	sl.Port, sl.OutIface, sl.Looped, sl.Handed, sl.Unreached, sl.Area, sl.Addr = 0, iface, true, false, true, 0, addr
	w.judge(w.returned[:], now)
	w.runLoop(now)
}

func (w *Worker) free(area uint8, addr uint64) { w.cfg.Areas[area].Free(addr) }

// hand copies a frame to another worker. s is nil for frames that have no slot; group is of a finished one, others are judged there.
func (w *Worker) hand(to int, kind uint8, port uint16, group uint8, frame []byte, s *pipeline.Slot) {
	p := w.peers[to]
	if p.in[w.cfg.ID].push(kind, port, group, frame) {
		w.count.handedOut.Add(1)
		p.wake()
		return
	}
	if s != nil {
		w.shard.Dropped(s.Tenant, verdict.HandOverFull, s.Port, frame, false)
	} else {
		w.shard.Dropped(0, verdict.HandOverFull, trace.NoPort, frame, true)
	}
}

// takeOver serves what another worker has handed over.
func (w *Worker) takeOver(r *ring, now uint64) (n int) {
	u := w.cfg.Areas[0]
	k := 0
	for n < w.cfg.Batch {
		m, frame, ok := r.peek()
		if !ok {
			break
		}
		n++
		addr, ok := u.Alloc()
		if !ok {
			w.shard.Dropped(0, verdict.FrameExhausted, m.cameIn(), frame, m.kind == handSend)
			r.pop()
			continue
		}
		if handHeadroom+len(frame) > u.Chunk() {
			w.free(0, addr)
			w.shard.Dropped(0, verdict.FrameTooLarge, m.cameIn(), frame, m.kind == handSend)
			r.pop()
			continue
		}
		mem := u.Mem()[addr : addr+uint64(u.Chunk())]
		copy(mem[handHeadroom:], frame)
		r.pop()
		if m.kind == handSend {
			w.send(m.port, m.group, 0, addr, handHeadroom, int(m.n))
			continue
		}
		if m.kind == handProcess && now < w.cfg.HandOn.Until() && w.keepFrame(kept{place: place{port: m.port}, addr: addr, off: handHeadroom, n: uint32(m.n)}, now, false) {
			continue
		}
		sl := &w.slots[k]
		k++
		sl.Buf, sl.Off, sl.Len = mem, handHeadroom, int(m.n)
		sl.Port, sl.Looped, sl.Handed, sl.Area, sl.Addr = m.port, m.kind == handLoop || m.kind == handGatherLoop, true, 0, addr
		if sl.Gathered = m.kind >= handGather; sl.Gathered {
			sl.Handed = false
		}
	}
	if n > 0 {
		w.count.handedIn.Add(uint64(n))
	}
	if k > 0 {
		w.judge(w.slots[:k], now)
		w.settle(now)
	}
	return n
}

// pushLoop keeps a frame that enters again from the backbone side.
func (w *Worker) pushLoop(area uint8, addr uint64, off, n int, now uint64) {
	if w.loops == len(w.loop) {
		w.runLoop(now)
	}
	u := w.cfg.Areas[area]
	sl := &w.loop[w.loops]
	w.loops++
	sl.Buf, sl.Off, sl.Len = u.Mem()[addr:addr+uint64(u.Chunk())], off, n
	sl.Port, sl.Looped, sl.Handed, sl.Area, sl.Addr = 0, true, false, area, addr
	sl.Gathered = false
}

// settle goes on with what a burst has set free: frames that went round, and fragments that waited for their first one. It ends: frames
// go round once, and a fragment that waits again waits for somebody else.
func (w *Worker) settle(now uint64) {
	w.runLoop(now)
	for w.shard.Ready() > 0 {
		u, k := w.cfg.Areas[0], 0
		for k < len(w.late) && w.shard.Ready() > 0 {
			addr, ok := u.Alloc()
			if !ok {
				w.shard.Forgo()
				continue
			}
			s := &w.late[k]
			s.Buf, s.Area, s.Addr = u.Mem()[addr:addr+uint64(u.Chunk())], 0, addr
			if !w.shard.Fetch(s, handHeadroom) {
				w.free(0, addr)
				continue
			}
			k++
		}
		w.judge(w.late[:k], now)
		w.runLoop(now)
	}
}

// runLoop judges the frames that entered again. None of them can do so twice, but one that is too big may become an ICMP error that goes
// back the same way, and there is no error about an error: so this ends. While a slot is carried out its place, or an earlier
// one, may be taken by such an error: what is still to come never is.
func (w *Worker) runLoop(now uint64) {
	for w.loops > 0 {
		n := w.loops
		w.loops = 0
		w.judge(w.loop[:n], now)
	}
}
