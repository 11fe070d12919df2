package worker

import (
	"errors"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"demarc/gateway/cruise"
	"demarc/gateway/trace"
	"demarc/gateway/verdict"
	"demarc/gateway/xsk"
)

// Many frames of a turn leave by the transmitting program (cruise.Transmit), all ports' by one system call, where the second executor may send to their port: in copy mode a tx ring costs two and a half times of it. A call has
// its price, so few frames go by the tx rings. A device may send the two by different queues of its own: so all of a port's go by the ring while something is in there that has not left, and all by the program for some
// time behind a call that had many. What the program does not get rid of goes by the ring too. Nothing is
// kept from one turn to the next.
const (
	// launchLeast is from how many frames on a call is cheaper: 14 us and 0.16 us for each, against 0.94 us for each.
	launchLeast = 24
	// launchRest is how long all frames go by the tx rings after an error of the kernel's, and launchFull where it has no number left for a page pool: those come back when far ends have read.
	launchRest = time.Second
	launchFull = time.Minute
	// launchQuiet is how long few frames go by the program too behind many: a device of 1 Gbit/s sends 250 of the longest in that time.
	launchQuiet = 3 * time.Millisecond
	// launchMost is how many calls all workers of a node make in a second at most. The kernel has a page pool for each call, and keeps it for a second where a device has not let go of its frames by the end; it has numbers for
	// 65,534 of them, which every driver of the machine needs too.
	launchMost   = 16384
	launchWindow = time.Second / 16
)

// launches reports whether the batch of a socket may leave by the program.
func (w *Worker) launches(s *sockState) bool {
	if w.out == nil || !w.second.Transmit.Takes(s.Port) || w.outRests != 0 || s.long || s.fenced || w.down[s.Port].Load() {
		return false
	}
	if s.S.InTx() > 0 {
		s.S.Complete()
	}
	return s.S.InTx() == 0
}

// full makes room in the batch of a socket.
func (w *Worker) full(s *sockState) {
	if !w.launches(s) || w.out.Len() == 0 && !w.mayLaunch() {
		w.launch() // what is staged is earlier
		w.push(s)
		return
	}
	w.stage(s)
}

// stage adds a batch to what leaves by the program. There is a call for it, see mayLaunch, or there is another one for what finds no room.
func (w *Worker) stage(s *sockState) {
	if w.out.Room() < s.n {
		w.launch()
		if !w.launches(s) || !w.mayLaunch() {
			w.push(s)
			return
		}
	}
	if s.grouped {
		w.keepOwn(s)
	}
	u := w.cfg.Areas[s.Area]
	for i := range s.n {
		d := &s.batch[i]
		w.out.Add(s.Port, s.group[i], u.Mem()[d.Addr:d.Addr+uint64(d.Len)])
		w.free(s.Area, d.Addr&^(uint64(u.Chunk())-1))
	}
	w.outGrouped = w.outGrouped || s.grouped && s.n > 0
	s.n, s.grouped = 0, false
}

// gathers reports whether a turn takes a further burst of each socket, where that makes so many frames: the more a call has, the less each costs.
func (w *Worker) gathers(frames int) bool {
	return w.out != nil && w.outRests == 0 && frames <= cruise.SendMost && slices.ContainsFunc(w.socks, func(s *sockState) bool { return w.second.Transmit.Takes(s.Port) })
}

// flushAll sends what is batched, by the program where that is cheaper.
func (w *Worker) flushAll() {
	if w.out != nil {
		w.flushByProgram()
	}
	for _, s := range w.socks {
		w.flush(s)
	}
}

func (w *Worker) flushByProgram() {
	if w.outRests != 0 && w.cfg.Clock.Now() >= w.outRests {
		w.outRests = 0
	}
	n := 0
	for _, s := range w.socks {
		if s.n == 0 || !w.launches(s) {
			continue
		}
		if n += s.n; s.launchedAt != 0 && w.cfg.Clock.Now()-s.launchedAt < uint64(launchQuiet) {
			n = max(n, launchLeast)
		}
	}
	if staged := w.out.Len(); staged == 0 && (n < launchLeast || !w.mayLaunch()) {
		return
	}
	for _, s := range w.socks {
		if s.n > 0 && w.launches(s) {
			w.stage(s)
		}
	}
	w.launch()
}

// mayLaunch counts a call, and reports whether this worker has one left.
func (w *Worker) mayLaunch() bool {
	if now := w.cfg.Clock.Now(); now-w.outWindow >= uint64(launchWindow) {
		w.outWindow, w.outCalls = now, 0
	}
	if w.outCalls >= launchMost/int(time.Second/launchWindow)/len(w.all()) {
		return false
	}
	w.outCalls++
	return true
}

// launch has the program send what is staged.
func (w *Worker) launch() {
	o := w.out
	if o == nil || o.Len() == 0 {
		return
	}
	looked := uint64(0)
	if w.outGrouped && !noLook {
		looked = w.cfg.Clock.Exact()
		for i := range o.Len() {
			if _, id, _ := o.Frame(i); id != 0 {
				o.Until(i, w.leaveBy(id, looked)) // what is late by then is dropped on its way to the ring
			}
		}
	}
	port, _, _ := o.Frame(0)
	first := w.socks[w.txOf[port]] // Detach launches before it lets go of a socket
	first.kicks.Add(1)
	err := o.Run()
	w.lastLaunch.Store(w.cfg.Clock.Now())
	if looked != 0 && w.cfg.Clock.Exact()-looked > uint64(w.cfg.Guard) {
		w.count.overruns.Add(1)
	}
	if err != nil {
		rest := launchRest
		if errors.Is(err, unix.ENOSPC) {
			rest = launchFull
		}
		w.outRests = w.cfg.Clock.Now() + uint64(rest)
		if first.txErrors.Add(1) == 1 {
			w.cfg.Log.Warn("send by the XDP program: frames go by the tx rings for a while", "worker", w.cfg.ID, "port", port, "err", err)
		}
	}
	w.launched(o)
	o.Reset()
	w.outGrouped = false
}

// launched accounts for what the program has sent, and gives the rest to the tx rings.
func (w *Worker) launched(o *cruise.Sender) {
	var of *sockState
	var packets, bytes uint64
	count := func() {
		if of != nil && packets > 0 {
			of.txPackets.Add(packets)
			of.txBytes.Add(bytes)
			of.launched.Add(packets)
			if o.Len() >= launchLeast {
				of.launchedAt = w.cfg.Clock.Now()
			}
		}
		packets, bytes = 0, 0
	}
	for i := range o.Len() {
		port, group, b := o.Frame(i)
		s := w.socks[w.txOf[port]]
		if s != of {
			count()
			of = s
		}
		if o.Left(i) {
			packets++
			bytes += uint64(len(b))
			continue
		}
		w.byRing(s, group, b)
	}
	count()
}

// byRing puts a frame that the program has not got rid of into the batch of its socket.
func (w *Worker) byRing(s *sockState, group uint8, b []byte) {
	if s.n == len(s.batch) { // it was full already: what is in it is later, and goes first
		w.push(s)
	}
	u := w.cfg.Areas[s.Area]
	addr, ok := u.Alloc()
	if !ok {
		w.shard.Dropped(0, verdict.FrameExhausted, trace.NoPort, b, true)
		return
	}
	copy(u.Mem()[addr:], b)
	s.batch[s.n] = xsk.Desc{Addr: addr, Len: uint32(len(b))}
	s.group[s.n] = group
	s.grouped = s.grouped || group != 0
	if s.n++; s.n == len(s.batch) { // send finds room
		w.push(s)
	}
}
