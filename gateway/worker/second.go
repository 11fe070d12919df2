package worker

import (
	"sync/atomic"
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
	// Transmit sends frames of a worker's own in numbers, on ports that it takes; nil = tx rings do.
	Transmit *cruise.Transmit
}

const (
	// feedAhead is until when a worker that has just finished a turn says that it lives; it does so each feedEvery at least while sessions are handed down.
	feedAhead = 400 * time.Millisecond
	feedEvery = 50 * time.Millisecond
	// downAfter is how many packets a session has had before it is handed down: what is over after a question and its answer is not worth it.
	downAfter = 4
	// downMost is how many sessions a batch has at most. Others are noted by their next packets.
	downMost = 4096
	// downStep is how many of a batch are handed down in a turn.
	downStep = 256
)

// second is the worker's side of it.
type second struct {
	*Second
	next, batch []uint32 // slots to be handed down: those of the batch to come, and of the one under way
	number      uint16   // of the one to come
	order       order
	put         int    // slots of the batch that have had their turn; 0 = the batch waits
	fed         uint64 // ns
	watch       bool   // as the tables have been told

	given, through atomic.Uint64 // frames that Transmit was given, and those of them that are on their way or were refused
	served         uint64        // taken in this turn
}

func (w *Worker) useSecond() {
	w.shard.SetSecond(&pipeline.Second{
		Sent: w.sent, Changes: w.callBack,
		Gen: func(gen uint32) { w.second.Tables.SetGen(w.cfg.ID, gen) },
	})
	w.shard.Sessions.Rests(func(slot uint32) bool { return w.second.Tables.Rest(w.cfg.ID, slot) })
	if x := w.second.Transmit; x != nil {
		w.out = x.Sender(w.cfg.ID)
	}
	w.second.next, w.second.batch = make([]uint32, 0, downMost), make([]uint32, 0, downMost)
}

// sent notes a session of which a packet is about to leave.
func (w *Worker) sent(slot uint32, se *conntrack.Session) {
	c := &w.second
	if se.Packets[0]+se.Packets[1] < downAfter || len(c.next) == downMost || c.watch {
		return
	}
	if c.Tables.Stands(w.cfg.ID, slot, se) || !cruise.Suits(w.shard.View(), se) {
		return
	}
	if c.Tables.Note(w.cfg.ID, slot, se, c.number, len(c.batch) > 0) {
		c.next = append(c.next, slot)
	}
}

// reuse lets go of slots that no program is under way with any more, so many a turn: each is a line of memory. It reports whether there may be more.
func (w *Worker) reuse() (more bool) {
	for range downStep {
		slot, ok := w.second.Tables.Rested(w.cfg.ID)
		if !ok {
			return false
		}
		w.shard.Sessions.Reuse(slot)
	}
	return true
}

func (w *Worker) callBack(slot uint32, se *conntrack.Session) {
	if w.second.Tables.Down(w.cfg.ID, slot, se) {
		w.count.cruising.Add(-1)
	}
	w.second.Tables.CallBack(w.cfg.ID, slot) // also what is only noted
}

// under reports whether a batch is under way or waits.
func (c *second) under() bool { return len(c.batch)+len(c.next) > 0 }

// handDown goes on with the batch under way, behind flush and passed. A batch is handed down when all that was in hand when it began has left, see order.go; a part of it each turn, since packets wait
// meanwhile. It reports whether there is more to do at once.
func (w *Worker) handDown(now uint64) (more bool) {
	c := &w.second
	if len(c.batch) == 0 {
		if len(c.next) == 0 {
			return false
		}
		c.batch, c.next = c.next, c.batch[:0]
		c.number++
		k := 0
		for _, slot := range c.batch {
			if c.Tables.Begin(w.cfg.ID, slot, c.number-1) {
				c.batch[k] = slot
				k++
			}
		}
		c.batch, c.put = c.batch[:k], 0
		w.beginOrder(now)
	}
	if c.put == 0 {
		switch w.goOn(now) {
		case orderUnderWay:
			return false
		case orderGivenUp: // they are noted again by their next packets
			w.count.givenUp.Add(1)
			c.batch = c.batch[:0]
			return false
		}
		w.feed(now) // it may have slept for long, with nothing handed down
	}
	at, end := w.lost(), min(c.put+downStep, len(c.batch))
	for _, slot := range c.batch[c.put:end] {
		w.putDown(slot, loses(at, now), at != 0 && at >= c.order.began)
	}
	if c.put = end; end < len(c.batch) {
		return true
	}
	c.batch = c.batch[:0]
	return false
}

// putDown hands one session of the batch down. Haste: also where it was hindered, if often enough; unsure: packets were lost since the batch began.
func (w *Worker) putDown(slot uint32, haste, unsure bool) {
	c, v := &w.second, w.shard.View()
	if !w.shard.Sessions.Live(slot) {
		return
	}
	se := w.shard.Sessions.At(slot)
	if se.ViewGen != w.shard.Gen() || w.shard.Copied(se) {
		return
	}
	var ways [2]cruise.Way
	for dir := range ways {
		var ok bool
		if ways[dir], ok = w.wayOf(v, se, dir); !ok {
			return
		}
	}
	if !cruise.Suits(v, se) { // behind the ways, see HandDown
		return
	}
	was := c.Tables.Down(w.cfg.ID, slot, se)
	tries, ok := c.Tables.HandDown(w.cfg.ID, slot, se, ways, c.number-1)
	if !ok {
		if tries < mostTries && !(haste && tries >= triesInHaste) {
			return
		}
		c.Tables.HandDownNow(w.cfg.ID, slot, se, ways)
	}
	if !ok || unsure {
		w.count.hasty.Add(1)
	}
	if !was {
		w.count.cruising.Add(1)
	}
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
		w.count.watched.Store(watch)
		c.Tables.Watch(w.cfg.ID, watch)
	}
}

// HandedDown reports whether the second executor has a session. Call it inside Do.
func (w *Worker) HandedDown(slot uint32, se *conntrack.Session) bool {
	return w.second.Second != nil && w.second.Tables.Down(w.cfg.ID, slot, se)
}
