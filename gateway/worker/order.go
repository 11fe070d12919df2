package worker

import (
	"sync/atomic"
	"time"

	"demarc/gateway/flow"
)

// A session is handed down when the last of its packets that went up has left, wherever it was: else the next one, which the program carries, passes it by. So a worker that begins with a batch of sessions
// looks at how far everything has come that may be in hand somewhere, and hands down when it has come so far:
//
//  1. what programs have sent up has been received, by whichever worker, and is on its way;
//  2. what had been handed over to this worker, and what the slow path has given to workers, is on its way;
//  3. none of the session waits for its rate, and what this worker has handed over to be sent is with its sender;
//  4. what is in a tx ring has left: the kernel has completed it. Of what a worker has launched (launch.go) nobody says so: launchQuiet has gone by since.
//
// What comes meanwhile of a session hinders it (cruise.Tables.Begin): it is tried again with a batch to come, behind its next packet. A session that is hindered again and again is handed down when it has
// been tried mostTries times, and where a worker of the node loses packets triesInHaste times: a packet that is lost is worse than one out of order. Both are counted, and so is what is handed down after a
// loss since the batch began: frames that were lost count as received, and they may have been behind others that are in the ring still.
const (
	mostTries    = 255
	triesInHaste = 3
	hasteFor     = 100 * time.Millisecond // after a loss

	// orderMost is how long a batch may take: a worker that does not move for so long is looked after by others.
	orderMost = time.Second
	// underEvery is how often a worker that would sleep looks whether a batch has come further.
	underEvery = 200 * time.Microsecond
	// lateAfter is in how many looks nothing moves before what does not add up is put right: a driver that says late what it has sent, some with the next frame only; a frame that the kernel has lost
	// without counting it. Looks are 10 ms apart while the worker is busy, also with a batch, and feedEvery where it sleeps and sessions are handed down: 60 to 300 ms in all. Where nothing is, nothing waits for it.
	lateAfter = 5
)

// passage is how far what a socket carries has come, as others see it at the end of a turn. Worker: wo, others: ro.
type passage struct {
	through     atomic.Uint64 // of the frames that Up counts: received or lost; it falls where more was received than counted, see reckon
	given, left atomic.Uint64 // put into the tx ring; completed
	gone        atomic.Bool   // it is a socket of the worker's no more

	base, lost uint64 // of Up: what was there before the socket, and what the kernel has lost
	late       [2]int // looks at which through and left were behind and had not moved
	was        [2]uint64
}

// raise stores what has changed only: others read it.
func raise(to *atomic.Uint64, n uint64) {
	if to.Load() != n {
		to.Store(n)
	}
}

// passed publishes how far this worker has come, at the end of a turn: behind flush, and what was put into tx rings before what was received, so that who sees the one sees the other.
func (w *Worker) passed() {
	for _, s := range w.socks {
		raise(&s.given, s.S.Sent())
		if n := s.S.Completed(); n > s.left.Load() {
			s.left.Store(n)
		}
	}
	for _, s := range w.socks {
		raise(&s.through, s.base+s.S.Received()+s.lost)
	}
	for _, r := range w.in {
		if r != nil {
			raise(&r.through, r.tail.Load())
		}
	}
	if c := &w.second; c.served > 0 {
		c.through.Add(c.served)
		c.served = 0
	}
}

// reckon puts right what does not add up, with upkeep.
func (w *Worker) reckon(now uint64) {
	for _, s := range w.socks {
		if s.Up == nil {
			continue
		}
		through := s.base + s.S.Received() + s.lost
		up := s.Up.Load()
		if through != up {
			if st, err := s.S.Stats(); err == nil {
				if lost := st.Rx_dropped + st.Rx_ring_full; lost != s.lost {
					s.lost = lost
					w.count.lostAt.Store(now)
				}
			}
			through = s.base + s.S.Received() + s.lost
			up = s.Up.Load()
		}
		if through > up || through < up && s.isLate(0, up, through) {
			s.base += up - through // of unsigned numbers: it may become smaller
		}
		if given, left := s.S.Sent(), s.left.Load(); left < given && s.S.Taken() == s.S.Queued() && s.isLate(1, given, left) {
			s.left.Store(given)
		}
	}
}

// isLate reports whether one number has been behind another for long, and nothing has moved.
func (s *sockState) isLate(i int, first, second uint64) bool {
	if sum := first<<32 ^ second; s.was[i] != sum {
		s.was[i], s.late[i] = sum, 0
	}
	s.late[i]++
	return s.late[i] > lateAfter
}

// order is how far the batch under way has come.
type order struct {
	stage int // of the list above; what it waits for is in goals
	goals []goal
	began uint64 // ns
	quiet uint64 // ns: until when launched frames may be in a device
}

// goal is a number that has to come as far.
type goal struct {
	at   *atomic.Uint64
	to   uint64
	gone *atomic.Bool // nil, or then it never will, and nobody waits for it
	down *atomic.Bool // nil, or then it will not for now: what stands in a ring leaves when the link is back, and no other port's sessions wait for that
}

func (g *goal) met() bool {
	return int64(g.at.Load()-g.to) >= 0 || g.gone != nil && g.gone.Load() || g.down != nil && g.down.Load()
}

// Answers of goOn.
const (
	orderUnderWay = iota
	orderKept
	orderGivenUp
)

// all is the workers of the node, this one too.
func (w *Worker) all() []*Worker {
	if w.peers == nil {
		return []*Worker{w}
	}
	return w.peers
}

func (w *Worker) beginOrder(now uint64) {
	o := &w.second.order
	o.stage, o.began, o.goals = 0, now, o.goals[:0]
	w.nextStage()
}

// nextStage notes what the next stage waits for, as it stands now.
func (w *Worker) nextStage() {
	o := &w.second.order
	o.stage++
	switch o.stage {
	case 1:
		for _, p := range w.all() {
			for _, s := range *p.shown.Load() {
				if s.Up != nil && !s.gone.Load() {
					o.wait(&s.through, s.Up.Load(), &s.gone, nil)
				}
			}
		}
	case 2:
		for _, r := range w.in {
			if r != nil {
				o.wait(&r.through, r.head.Load(), nil, nil)
			}
		}
		for _, p := range w.all() {
			o.wait(&p.second.through, p.second.given.Load(), nil, nil)
		}
	case 3:
		if c, k := &w.second, 0; w.shard.Shaper.Held() > 0 { // before the heads are read: what its rate lets go after that is behind them
			for _, slot := range c.batch {
				if w.shard.Sessions.Live(slot) && !w.waits(w.shard.Sessions.At(slot).Tenant) {
					c.batch[k] = slot
					k++
				}
			}
			c.batch = c.batch[:k]
		}
		for _, p := range w.peers {
			if r := p.in[w.cfg.ID]; r != nil {
				o.wait(&r.through, r.head.Load(), nil, nil)
			}
		}
	case 4:
		o.quiet = 0
		for _, p := range w.all() {
			if at := p.lastLaunch.Load(); at != 0 {
				o.quiet = max(o.quiet, at+uint64(launchQuiet))
			}
			for _, s := range *p.shown.Load() {
				o.wait(&s.left, s.given.Load(), &s.gone, &p.down[s.Port])
			}
		}
	}
}

func (o *order) wait(at *atomic.Uint64, to uint64, gone, down *atomic.Bool) {
	if g := (goal{at, to, gone, down}); !g.met() {
		o.goals = append(o.goals, g)
	}
}

// goOn reports how far the batch is.
func (w *Worker) goOn(now uint64) int {
	o := &w.second.order
	for {
		k := 0
		for _, g := range o.goals {
			if !g.met() {
				o.goals[k] = g
				k++
			}
		}
		switch o.goals = o.goals[:k]; {
		case k > 0 && now-o.began > uint64(orderMost):
			return orderGivenUp
		case k > 0 || o.stage == 4 && now < o.quiet:
			return orderUnderWay
		case o.stage == 4:
			return orderKept
		}
		w.nextStage()
	}
}

// waits reports whether something of a tenant waits for its rate here.
func (w *Worker) waits(t flow.TenantID) bool {
	for d := range 2 {
		if n, _ := w.shard.Shaper.HeldIn(int(t)*2 + d); n > 0 {
			return true
		}
	}
	return false
}

// lost is when a worker last lost packets that programs had sent up, ns; 0 = none has.
func (w *Worker) lost() (at uint64) {
	for _, p := range w.all() {
		at = max(at, p.count.lostAt.Load())
	}
	return at
}

// loses reports whether that was of late. Another worker's turn may have begun after this one's.
func loses(at, now uint64) bool { return at != 0 && int64(now-at) < int64(hasteFor) }
