package worker

import (
	"time"

	"demarc/gateway/conntrack"
	"demarc/gateway/cruise"
	"demarc/gateway/pipeline"
	"demarc/gateway/snapshot"
)

// Second is what a worker has its sessions carried by, beside itself.
type Second struct {
	Tables *cruise.Tables
	Hops   *cruise.Hops
}

const (
	// feedAhead is until when a worker that has just finished a turn says that it lives; it does so each feedEvery at least.
	feedAhead = 400 * time.Millisecond
	feedEvery = 50 * time.Millisecond
	// downAfter is how many packets a session has had before it is handed down: what is over after a question and its answer is not worth it.
	downAfter = 4
	// downTurns is for how many turns a worker that always has packets in hand waits with it: some milliseconds.
	downTurns = 64
	// downMost is how many sessions are handed down in a turn.
	downMost = 256
)

// second is the worker's side of it.
type second struct {
	*Second
	wait  [downMost]uint32 // slots to be handed down behind what is sent in this turn
	n     int
	turns int    // since the first of them was noted
	fed   uint64 // ns
	watch bool   // as the tables have been told
}

func (w *Worker) useSecond() {
	w.shard.SetSecond(&pipeline.Second{
		Sent: w.sent, Changes: w.callBack,
		Gen: func(gen uint32) { w.second.Tables.SetGen(w.cfg.ID, gen) },
	})
	w.nap = feedEvery
}

// sent notes a session of which a packet is about to leave. It is handed down behind that, so that the next one does not overtake it.
func (w *Worker) sent(slot uint32, se *conntrack.Session) {
	c := &w.second
	if se.Packets[0]+se.Packets[1] < downAfter || c.n == len(c.wait) || c.n > 0 && c.wait[c.n-1] == slot || c.watch {
		return
	}
	if c.Tables.Stands(w.cfg.ID, slot, se) || !cruise.Suits(w.shard.View(), se) {
		return
	}
	c.wait[c.n] = slot
	c.n++
}

func (w *Worker) callBack(slot uint32, se *conntrack.Session) {
	if w.second.Tables.Down(w.cfg.ID, slot, se) {
		w.second.Tables.CallBack(w.cfg.ID, slot)
		w.count.cruising.Add(-1)
	}
}

// quiet reports whether nothing is in hand that what is handed down now could pass by.
func (w *Worker) quiet() bool {
	for _, s := range w.socks {
		if s.S.Queued() != s.S.Taken() || s.S.Waits() {
			return false
		}
	}
	for _, r := range w.in {
		if r != nil && !r.empty() {
			return false
		}
	}
	return true
}

// handDown hands down what has been noted, behind flush: when nothing else is in hand, or has been all the while. Where many wait it does so at once: a worker that has more than it can
// carry gets rid of it so.
func (w *Worker) handDown() {
	c, v := &w.second, w.shard.View()
	if c.turns++; c.turns < downTurns && c.n < len(c.wait) && !w.quiet() {
		return
	}
	for _, slot := range c.wait[:c.n] {
		if !w.shard.Sessions.Live(slot) {
			continue
		}
		se := w.shard.Sessions.At(slot)
		var ways [2]cruise.Way
		ok := se.ViewGen == w.shard.Gen() && !w.shard.Copied(se)
		for dir := range ways {
			if ok {
				ways[dir], ok = w.wayOf(v, se, dir)
			}
		}
		if !ok || !cruise.Suits(v, se) { // behind the ways, see HandDown
			continue
		}
		if !c.Tables.Down(w.cfg.ID, slot, se) {
			w.count.cruising.Add(1)
		}
		c.Tables.HandDown(w.cfg.ID, slot, se, ways)
	}
	c.n, c.turns = 0, 0
}

// wayOf is how packets of direction dir leave, as pipeline.send finds it.
func (w *Worker) wayOf(v *snapshot.View, se *conntrack.Session, dir int) (cruise.Way, bool) {
	nh := se.NextHop[dir]
	if nh == snapshot.NoHop || v.Hop(nh).Kind != snapshot.HopForward {
		return 0, false
	}
	hop, family := v.Hop(nh), uint8(4)
	if se.Flags&conntrack.FlagV6 != 0 {
		family = 6
	}
	f, to := &v.Ifaces[hop.Iface], hop.Via
	if hop.OnLink {
		to = se.Key(1 - dir).Src // whom it answers
	}
	k := cruise.Neighbor{Iface: f.Index, Family: family, Addr: to, Src: *f.Source(v.GroupOf(se.Tenant), family)}
	return w.second.Hops.Find(v.Gen, k, func() (h cruise.Hop, ok bool) {
		h = cruise.Hop{Port: f.Port, VLAN: f.VLAN, MTU: f.MTU, Src: k.Src}
		h.Dst, ok = w.shard.Neighbors.Lookup(k.Iface, k.Family, &k.Addr)
		return h, ok
	})
}

// feed says that the worker lives, and whether it wants to see all packets.
func (w *Worker) feed(now uint64) {
	c := &w.second
	w.tellWatch()
	if now-c.fed >= uint64(feedEvery)/2 {
		c.fed = now
		c.Tables.Feed(w.cfg.ID, now+uint64(feedAhead))
	}
}

// tellWatch comes before an order is answered: who has given it may settle then.
func (w *Worker) tellWatch() {
	c := &w.second
	if watch := w.shard.Watches(); watch != c.watch {
		c.watch = watch
		c.Tables.Watch(w.cfg.ID, watch)
	}
}

// HandedDown reports whether the second executor has a session. Call it inside Do.
func (w *Worker) HandedDown(slot uint32, se *conntrack.Session) bool {
	return w.second.Second != nil && w.second.Tables.Down(w.cfg.ID, slot, se)
}
