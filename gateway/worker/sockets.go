package worker

import (
	"slices"

	"golang.org/x/sys/unix"

	"demarc/gateway/trace"
	"demarc/gateway/verdict"
	"demarc/gateway/xsk"
)

// Sockets come and go with their devices while the other ones carry traffic. Whoever changes them (one control goroutine at a time) does what may
// take its time beside the worker, and the little that touches rings, memory and lists in jobs on the worker's thread:
//
//	a device goes:   Do(Detach), Socket.Shut, Do(Reclaim)
//	a device comes:  xsk.Bind, Do(Adopt)

// Adopt takes a bound socket. Call it inside Do. What its queue has carried before goes on counting.
func (w *Worker) Adopt(s Socket) error {
	if err := s.S.Adopt(); err != nil {
		return err
	}
	w.list(s)
	w.tables()
	w.refill(w.socks[len(w.socks)-1])
	return nil
}

// list enters a socket whose frames are this worker's.
func (w *Worker) list(s Socket) {
	st := &sockState{Socket: s, busyPoll: s.S.Config().BusyPoll > 0, figures: new(figures)}
	for i, o := range w.idle {
		if o.Port == s.Port && o.Queue == s.Queue {
			st.figures = o.figures
			w.idle = slices.Delete(w.idle, i, i+1)
			break
		}
	}
	st.queued = make([]queued, 0, 255)
	s.S.SetFence(func() bool { return w.mayCall(st) })
	if s.Up != nil { // nothing comes before it is in the program's map
		st.base = s.Up.Load()
		st.through.Store(st.base)
	}
	w.socks = append(w.socks, st)
}

// Detach lets go of the sockets of a port: they are read and written no more, what was batched for them is dropped. Their frames stay
// theirs, and counted, until Reclaim. Call it inside Do.
func (w *Worker) Detach(port uint16) (out []*xsk.Socket) {
	w.launch()
	keep := w.socks[:0:0]
	var leaving []*sockState
	for _, s := range w.socks {
		if s.Port != port {
			keep = append(keep, s)
			continue
		}
		w.giveUp(s)
		s.gone.Store(true)
		leaving = append(leaving, s)
		out = append(out, s.S)
	}
	for _, s := range w.leaving { // severed, and perhaps not shut yet
		if s.Port == port {
			out = append(out, s.S)
		}
	}
	w.socks, w.leaving = keep, append(w.leaving, leaving...)
	w.tables()
	return out
}

// giveUp drops what is batched for a port that has gone or is down.
func (w *Worker) giveUp(s *sockState) {
	chunk, mem := uint64(w.cfg.Areas[s.Area].Chunk()), w.cfg.Areas[s.Area].Mem()
	for _, d := range s.batch[:s.n] {
		w.shard.Record(0, verdict.InterfaceDown, trace.NoPort, mem[d.Addr:d.Addr+uint64(d.Len)], true)
		w.free(s.Area, d.Addr&^(chunk-1))
	}
	w.shard.Meter.DropN(0, verdict.InterfaceDown, uint64(s.n))
	s.n, s.grouped, s.long = 0, false, false
}

// Reclaim takes the frames of detached sockets back, which Socket.Shut has closed meanwhile. goneIfindex is the device that they were on if it has
// left, else 0. Call it inside Do.
func (w *Worker) Reclaim(goneIfindex int) (err error) {
	var still []*sockState
	for _, s := range w.leaving {
		if !s.S.IsShut() { // severed meanwhile: somebody else is about to
			still = append(still, s)
			continue
		}
		if e := s.S.Close(); err == nil {
			err = e
		}
		w.idle = append(w.idle, s)
	}
	w.leaving = still
	w.tables()
	if goneIfindex != 0 {
		for _, u := range w.cfg.Areas {
			u.DeviceGone(goneIfindex)
		}
	}
	return err
}

// tables makes what is derived from the list of sockets.
func (w *Worker) tables() {
	for i := range w.txOf {
		w.txOf[i] = -1
	}
	w.polls = w.polls[:0]
	for i, s := range w.socks {
		share := w.cfg.Areas[s.Area].Frames() / 2 / len(w.socks)
		s.target = min(s.S.Config().FillSize, share)
		if w.txOf[s.Port] < 0 {
			w.txOf[s.Port] = i
		}
		w.polls = append(w.polls, unix.PollFd{Fd: int32(s.S.FD()), Events: unix.POLLIN})
	}
	w.polls = append(w.polls, unix.PollFd{Fd: int32(w.wakeFD), Events: unix.POLLIN})
	for p := range w.txOf {
		w.sends[p].Store(w.txOf[p] >= 0)
	}
	list := slices.Concat(w.socks, w.leaving, w.idle)
	w.shown.Store(&list)
}

// SetLink says whether a port can send. While it cannot, what is sent there is dropped and counted: the kernel would throw it away without
// a word. Any goroutine.
func (w *Worker) SetLink(port uint16, up bool) { w.down[port].Store(!up) }

// Area is the memory for sockets of a mode, nil when the worker has none. It may be given to xsk.Bind.
func (w *Worker) Area(zerocopy bool) (uint8, *xsk.UMEM) {
	for i, u := range w.cfg.Areas {
		if w.cfg.ZeroCopy[i] == zerocopy {
			return uint8(i), u
		}
	}
	return 0, nil
}
