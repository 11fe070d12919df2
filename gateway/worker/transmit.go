package worker

import (
	"errors"

	"demarc/gateway/cruise"
	"demarc/gateway/flow"
	"demarc/gateway/pipeline"
	"demarc/gateway/police"
	"demarc/gateway/slowpath"
	"demarc/gateway/trace"
	"demarc/gateway/verdict"
	"demarc/gateway/xsk"
)

// emit sends what the shaper lets go.
func (w *Worker) emit(it *police.Item) bool {
	if it.Port == pipeline.LoopPort {
		if w.loops == len(w.loop) {
			return false
		}
		w.held[it.Area]--
		if !w.may(it) {
			return true
		}
		w.pushLoop(it.Area, it.Frame, int(it.Off), int(it.Len), 0)
		return true
	}
	w.held[it.Area]--
	w.send(it.Port, uint8(it.Tag), it.Area, it.Frame, int(it.Off), int(it.Len))
	return true
}

func (w *Worker) limitsOf(q int) (*police.Dir, *police.Words) {
	t := w.shard.View().Tenants
	if id := q / 2; id < len(t) && t[id] != nil {
		return &t[id].Dir[q%2], &t[id].Shared.Words[q%2]
	}
	return nil, nil
}

// send puts a frame that the worker owns, and that is a group's or (0) nobody's, into the tx batch of a port.
func (w *Worker) send(port uint16, group, area uint8, addr uint64, off, n int) {
	i := w.txOf[port]
	if i < 0 {
		u := w.cfg.Areas[area]
		frame := u.Mem()[addr+uint64(off) : addr+uint64(off)+uint64(n)]
		for to, p := range w.peers {
			if to != w.cfg.ID && p.Sends(port) {
				w.hand(to, handSend, port, group, frame, nil)
				w.free(area, addr)
				return
			}
		}
		why := verdict.NoTxSocket
		if w.down[port].Load() { // it had one
			why = verdict.InterfaceDown
		}
		w.shard.Dropped(0, why, trace.NoPort, frame, true)
		w.free(area, addr)
		return
	}
	s := w.socks[i]
	if s.Area != area {
		var ok bool
		frame := w.cfg.Areas[area].Mem()[addr+uint64(off) : addr+uint64(off)+uint64(n)]
		if area, addr, ok = w.cross(area, s.Area, addr, off, n); !ok {
			w.shard.Dropped(0, verdict.FrameExhausted, trace.NoPort, frame, true) // free, and still as it was: nobody has asked for it since
			return
		}
	}
	s.batch[s.n] = xsk.Desc{Addr: addr + uint64(off), Len: uint32(n)}
	s.long = s.long || n > cruise.SendBytes
	s.group[s.n] = group
	s.grouped = s.grouped || group != 0
	s.n++
	if s.n == len(s.batch) {
		w.full(s)
	}
}

// Originate sends a frame of the gateway's own out of an interface to a next hop, whose MAC is still to be written into it; where that is not
// known the slow path asks for it and sends the frame then. Call it inside Do.
func (w *Worker) Originate(port, iface uint16, family uint8, hop *flow.Addr, frame []byte) {
	mac, ok := w.shard.Neighbors.Lookup(iface, family, hop)
	if !ok {
		if !w.cfg.Slow.Input(w.cfg.ID, slowpath.Resolve, iface, 0, 0, family, hop, frame) {
			w.shard.Dropped(0, verdict.SlowPathFull, trace.NoPort, frame, true)
		}
		return
	}
	copy(frame, mac[:])
	u := w.cfg.Areas[0]
	addr, ok := u.Alloc()
	if ok && handHeadroom+len(frame) > u.Chunk() {
		u.Free(addr)
		ok = false
	}
	if !ok {
		w.shard.Dropped(0, verdict.FrameExhausted, trace.NoPort, frame, true)
		return
	}
	copy(u.Mem()[addr+handHeadroom:], frame)
	w.send(port, 0, 0, addr, handHeadroom, len(frame))
}

// cross copies a frame into another memory area and frees the old one.
func (w *Worker) cross(from, to uint8, addr uint64, off, n int) (uint8, uint64, bool) {
	a, b := w.cfg.Areas[from], w.cfg.Areas[to]
	na, ok := b.Alloc()
	if ok && off+n > b.Chunk() {
		b.Free(na)
		ok = false
	}
	if ok {
		copy(b.Mem()[na+uint64(off):na+uint64(off+n)], a.Mem()[addr+uint64(off):addr+uint64(off+n)])
		w.count.crossings.Add(1)
	}
	a.Free(addr)
	return to, na, ok
}

// push moves the batch into the tx ring. What does not fit even after the kernel has been asked to send is dropped.
func (w *Worker) push(s *sockState) {
	if s.n == 0 {
		return
	}
	if s.fenced || w.down[s.Port].Load() {
		w.giveUp(s)
		return
	}
	if s.grouped {
		w.keepOwn(s)
	}
	var bytes uint64
	done := w.publish(s, 0)
	if done < s.n {
		w.kick(s)
		if !s.fenced && (!s.grouped || w.mayAll(s.group[done:s.n])) {
			done += w.publish(s, done)
		}
	}
	for i := range done {
		bytes += uint64(s.batch[i].Len)
	}
	if lost := s.n - done; lost > 0 {
		chunk, mem := uint64(w.cfg.Areas[s.Area].Chunk()), w.cfg.Areas[s.Area].Mem()
		for _, d := range s.batch[done:s.n] {
			w.shard.Record(0, verdict.TxRingFull, trace.NoPort, mem[d.Addr:d.Addr+uint64(d.Len)], true)
			w.free(s.Area, d.Addr&^(chunk-1))
		}
		s.txFull.Add(uint64(lost))
		w.shard.Meter.DropN(0, verdict.TxRingFull, uint64(lost))
	}
	s.txPackets.Add(uint64(done))
	s.txBytes.Add(bytes)
	s.n, s.grouped, s.long = 0, false, false
	s.pending = s.pending || done > 0
}

// publish puts the batch from one place on into the tx ring, as far as there is room.
func (w *Worker) publish(s *sockState, from int) (done int) {
	done = s.S.Send(s.batch[from:s.n])
	if s.grouped {
		w.note(s, s.group[from:from+done])
	}
	return done
}

func (w *Worker) kick(s *sockState) {
	s.kicks.Add(1)
	err := s.S.KickTx()
	w.overran(s)
	if err != nil && !errors.Is(err, xsk.ErrFenced) {
		if s.txErrors.Add(1) == 1 {
			w.cfg.Log.Warn("transmit", "worker", w.cfg.ID, "port", s.Port, "queue", s.Queue, "err", err)
		}
	}
	s.S.Complete()
	s.pending = s.S.InTx() > 0
}

// flush sends what is batched and takes back what the kernel has sent.
func (w *Worker) flush(s *sockState) {
	w.push(s)
	if s.pending {
		w.kick(s)
	}
}

// refill keeps the fill ring at its level, also when idle: the kernel takes frames before it says so.
func (w *Worker) refill(s *sockState) {
	if n := s.target - s.S.InFill(); n > 0 {
		s.S.Fill(n)
	}
	if s.busyPoll || s.S.NeedsRxWake() { // busy poll drives the device from here; and a driver that ran dry does not look at the ring again by itself
		err := s.S.WakeRx()
		w.overran(s)
		if err != nil && !errors.Is(err, xsk.ErrFenced) && s.rxErrors.Add(1) == 1 {
			w.cfg.Log.Warn("wake receive", "worker", w.cfg.ID, "port", s.Port, "queue", s.Queue, "err", err)
		}
	}
}
