package stream

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"demarc/gateway/replica"
)

// How much of its time a Stream takes from the goroutine that owns it. Figures are in DESIGN.md.
const (
	pace       = time.Millisecond       // between two looks at what has changed: what a packet changes is not a frame by itself
	busyPace   = 160 * time.Microsecond // while there is more to write and packets wait
	busyBudget = 40                     // slots that a copy goes on by in a turn then
	idleBudget = 1024                   // slots that are looked at while none do
	changeTime = 2 * time.Microsecond   // packets wait: of so much time that has gone by a change may be written, so for a quarter of it or less
	mostBusy   = 256                    // changes in a turn then
	showPace   = 20 * time.Millisecond  // between two publications of how it stands, where nothing changes
	restPace   = 100 * time.Millisecond
	maxOrders  = 64
)

// ErrEnded is returned for what is asked of a stream of a set that has ended.
var ErrEnded = errors.New("the stream has ended")

// Stream is one Sender. It has several owners for several fields, and says so beside each.
type Stream struct {
	out  *replica.Sender // owner
	set  *Set
	wake func() // has the owner call Turn soon; from anywhere

	orders  chan func(now int64)
	starved atomic.Bool // frames wait for a buffer: whoever frees one calls

	linked bool    // owner
	due    int64   // owner: of the next look
	looked int64   // owner: the last one
	shown  int64   // owner: when it was last published how it stands
	lags   bool    // owner: that it lags
	flushs []flush // owner

	mu    sync.Mutex
	stand standing // mu
}

// flush is somebody who waits until all that was done by a moment is acknowledged.
type flush struct {
	seq   uint64 // 0 = not all of it is written
	until int64  // nobody waits for it any longer then
	done  func(acked bool)
}

// standing is how a stream was when its owner last looked.
type standing struct {
	at int64
	replica.Stream
	groups []copied
}

type copied struct {
	group uint8
	replica.Copy
}

// Turn does what is due: orders, answers, writing what has changed, handing out frames. busy says that packets wait. It returns how much there was to do.
func (s *Stream) Turn(now int64, busy bool) (n int) {
	for len(s.orders) > 0 {
		(<-s.orders)(now)
		n++
	}
	if !s.linked {
		return n
	}
	due := now >= s.due
	if due {
		changes, copied, next := idleBudget, idleBudget, pace
		if busy {
			changes, copied = min(max(int(time.Duration(now-s.looked)/changeTime), busyBudget), mostBusy), busyBudget
		}
		from := s.out.Looked()
		s.out.Write(now, changes, copied)
		if s.out.Short() {
			n += max(s.out.Looked()-from, 1)
			if next = 0; busy {
				next = busyPace
			}
		}
		s.due, s.looked = now+int64(next), now
	}
	n += s.hand()
	if len(s.flushs) > 0 {
		n += s.flush(now)
	}
	switch since := now - s.shown; {
	case since >= int64(showPace), since >= int64(pace) && (s.lags || due && s.out.Behind()): // who looks counts on from what was shown last
		s.show(now)
	}
	return n
}

// hand gives frames to who carries them, as long as there are buffers.
func (s *Stream) hand() (n int) {
	for s.out.Ready() {
		select {
		case b := <-s.set.free:
			*b = append((*b)[:0], s.out.Take()...)
			s.set.full <- b // has room for all buffers that there are
			n++
		default:
			s.starved.Store(true)
			return n
		}
	}
	return n
}

// Rest is how long the owner may sleep before the next Turn, if nobody calls.
func (s *Stream) Rest(now int64) time.Duration {
	switch {
	case len(s.orders) > 0:
		return 0
	case !s.linked:
		return time.Hour
	case s.out.Ready(): // starved: whoever frees a buffer calls
		return restPace
	case len(s.flushs) > 0:
		return time.Duration(max(min(s.due, s.flushs[0].until)-now, 0))
	case s.out.Pending():
		return time.Duration(max(s.due-now, 0))
	case s.lags && !s.out.Behind(): // and nobody knows
		return time.Duration(max(s.shown+int64(pace)-now, 0))
	}
	return restPace
}

// show publishes how it stands.
func (s *Stream) show(now int64) {
	s.shown = now
	s.mu.Lock()
	defer s.mu.Unlock()
	s.stand.at, s.stand.Stream = now, s.out.Status(now)
	s.lags = s.stand.Lag > 0
	s.stand.groups = s.stand.groups[:0]
	for _, g := range s.out.Groups() {
		if c, ok := s.out.Copy(now, g); ok {
			s.stand.groups = append(s.stand.groups, copied{g, c})
		}
	}
}

// flush looks at those who wait. What they wait for goes at once, however little it is.
func (s *Stream) flush(now int64) (n int) {
	acked := s.out.Acked()
	keep := s.flushs[:0]
	for _, f := range s.flushs {
		if f.seq == 0 {
			s.out.Drain(now, idleBudget)
			n++
			if seq, all := s.out.Next(); all {
				f.seq = seq
			}
			s.hand()
		}
		switch {
		case f.seq > 0 && acked >= f.seq:
			f.done(true)
		case now >= f.until:
			f.done(false)
		default:
			keep = append(keep, f)
		}
	}
	clear(s.flushs[len(keep):])
	s.flushs = keep
	return n
}

// order has the owner do something with the Sender, between two of its turns. It waits for room, not for that to be done.
func (s *Stream) order(ctx context.Context, fn func(now int64)) error {
	select {
	case s.orders <- fn:
		s.wake()
		return nil
	case <-ctx.Done():
		return ctx.Err()
	case <-s.set.ended:
		return ErrEnded
	}
}

// ask waits for it to be done as well.
func (s *Stream) ask(ctx context.Context, fn func(now int64)) error {
	done := make(chan struct{})
	if err := s.order(ctx, func(now int64) { fn(now); close(done) }); err != nil {
		return err
	}
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	case <-s.set.ended:
		return ErrEnded
	}
}

// Renew is the owner's: its tables go by another policy.
func (s *Stream) Renew() { s.out.Renew() }

// Fail is the owner's, after a panic in Turn: nobody knows how its Sender is, so the set ends, and another one begins anew.
func (s *Stream) Fail() {
	s.linked = false
	s.set.Close()
}

// Sender is what the owner's tables mark.
func (s *Stream) Sender() *replica.Sender { return s.out }
