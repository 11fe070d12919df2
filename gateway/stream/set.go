package stream

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"demarc/gateway/replica"
)

const (
	buffers   = 32 // frames between the owners of a set's senders and the connection: that many and no more wait there
	redialMin = 50 * time.Millisecond
	redialMax = 2 * time.Second
	writeTime = 10 * time.Second // for what bufio holds to be taken by the other end
)

// Set is all streams to one standby, over one connection.
type Set struct {
	Peer    string
	life    uint64
	streams []*Stream
	ended   chan struct{}
	end     func()
	patient time.Duration // flushTime, longer in tests

	full, free chan *[]byte

	mu      sync.Mutex
	problem string    // mu: why there is no connection; "" = there is one
	since   time.Time // mu: since when it is so
	frames  atomic.Uint64
	bytes   atomic.Uint64
	dials   atomic.Uint64
}

// NewSet makes one without streams. life is a random number that no set had before: senders of the set have it too.
func NewSet(peer string, life uint64) *Set {
	s := &Set{Peer: peer, life: life, ended: make(chan struct{}), full: make(chan *[]byte, buffers), free: make(chan *[]byte, buffers), patient: flushTime, problem: "not yet dialled", since: time.Now()}
	s.end = sync.OnceFunc(func() { close(s.ended) })
	for range buffers {
		s.free <- new([]byte)
	}
	return s
}

// Add puts the set's next stream into it: the first one is number 0. All are there before Run. wake has the owner call Turn soon.
func (s *Set) Add(out *replica.Sender, wake func()) *Stream {
	t := &Stream{out: out, set: s, wake: wake, orders: make(chan func(int64), maxOrders)}
	s.streams = append(s.streams, t)
	return t
}

// Close ends the set: nobody who waits for one of its streams waits any longer. Owners let go of the streams afterwards.
func (s *Set) Close() { s.end() }

// Ended is closed when the set has ended, be it by Close, with Run or because of a fault.
func (s *Set) Ended() <-chan struct{} { return s.ended }

// Streams are those of the set, by number.
func (s *Set) Streams() []*Stream { return s.streams }

// Own has all streams send a group under an epoch.
func (s *Set) Own(ctx context.Context, group uint8, epoch uint64) error {
	return s.each(func(t *Stream) error { return t.order(ctx, func(int64) { t.out.Own(group, epoch); t.due = 0 }) })
}

// Disown has them end it.
func (s *Set) Disown(ctx context.Context, group uint8) error {
	return s.each(func(t *Stream) error { return t.order(ctx, func(int64) { t.out.Disown(group) }) })
}

func (s *Set) each(fn func(t *Stream) error) error {
	for _, t := range s.streams {
		if err := fn(t); err != nil {
			return err
		}
	}
	return nil
}

// Flush calls done, once, when all that is in the senders' tables now is acknowledged by the standby, or when that cannot be: there is no connection, or it
// breaks meanwhile, or it takes longer than who hands over waits: a million of sessions that were all judged anew, say. It waits for nothing.
func (s *Set) Flush(done func(acked bool)) {
	f := s.Flushing()
	for i := range s.streams {
		f.Stream(i)
	}
	f.Done(done)
}

// Flushing is a Flush whose streams begin one after the other. Its methods wait for nothing, and any goroutine may call them.
type Flushing struct {
	set *Set

	mu     sync.Mutex
	left   int
	missed bool
	done   func(acked bool) // nil = nobody has asked yet, or it was called
}

// Flushing begins one.
func (s *Set) Flushing() *Flushing { return &Flushing{set: s, left: len(s.streams)} }

// Of reports whether it is of a set.
func (f *Flushing) Of(s *Set) bool { return f != nil && f.set == s }

// Streams is how many there are.
func (f *Flushing) Streams() int { return len(f.set.streams) }

// Stream has what is in the table of a stream's sender now acknowledged. It is called once for each.
func (f *Flushing) Stream(i int) {
	t := f.set.streams[i]
	select {
	case t.orders <- func(now int64) {
		if !t.linked {
			f.one(false)
			return
		}
		t.flushs = append(t.flushs, flush{until: now + int64(f.set.patient), done: f.one})
	}:
		t.wake()
	default: // its owner hangs
		f.one(false)
	}
}

// Done has fn called, once, when that has come to an end of all streams, be it before this call.
func (f *Flushing) Done(fn func(acked bool)) {
	f.mu.Lock()
	over, missed := f.left == 0, f.missed
	if !over {
		f.done = fn
	}
	f.mu.Unlock()
	if over {
		fn(!missed)
	}
}

func (f *Flushing) one(acked bool) {
	f.mu.Lock()
	f.left--
	f.missed = f.missed || !acked
	fn, missed := f.done, f.missed
	over := f.left == 0 && fn != nil
	f.mu.Unlock()
	if over {
		fn(!missed)
	}
}

// flushTime is for how long what is marked may take: who hands over waits for 30 ms behind the last stream's beginning, and what packets there are has the worker's time again behind that.
const flushTime = 100 * time.Millisecond

// Run keeps a connection to the standby and carries frames and answers, until ctx or the set ends.
func (s *Set) Run(ctx context.Context, dial func(context.Context) (net.Conn, error)) {
	stop := context.AfterFunc(ctx, s.end) // owners may have ended with it: nobody is to wait for them
	defer stop()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		select {
		case <-s.ended:
			cancel()
		case <-ctx.Done():
		}
	}()
	wait := redialMin
	for ctx.Err() == nil {
		linked, err := s.once(ctx, dial)
		if ctx.Err() != nil {
			return
		}
		s.say(err.Error())
		if wait *= 2; linked {
			wait = redialMin
		}
		wait = min(wait, redialMax)
		select {
		case <-time.After(wait):
		case <-ctx.Done():
		}
	}
}

func (s *Set) say(problem string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if (s.problem == "") != (problem == "") {
		s.since = time.Now()
	}
	s.problem = problem
}

// once is one connection, from dialling to its end.
func (s *Set) once(ctx context.Context, dial func(context.Context) (net.Conn, error)) (linked bool, err error) {
	s.dials.Add(1)
	c, err := dial(ctx)
	if err != nil {
		return false, fmt.Errorf("no connection: %w", err)
	}
	ctx, cancel := context.WithCancel(ctx)
	stop := context.AfterFunc(ctx, func() { _ = c.Close() })
	defer func() { cancel(); stop(); _ = c.Close() }()
	_ = c.SetDeadline(time.Now().Add(replica.Silence))
	if _, err := c.Write((&replica.Hello{Version: replica.WireVersion, Streams: uint16(len(s.streams)), Life: s.life}).Append(nil)); err != nil {
		return false, ended("saying hello", err)
	}
	r := bufio.NewReaderSize(c, replica.MaxAnswer+64)
	first := make([]replica.Answer, len(s.streams))
	for i := range first {
		if first[i], err = replica.ReadAnswer(r); err != nil {
			return false, ended("its first answer", err)
		}
		if int(first[i].Stream) != i {
			return false, fmt.Errorf("its answer %d is about stream %d: want one about each stream in order", i, first[i].Stream)
		}
	}
	_ = c.SetDeadline(time.Time{})
	defer s.unlink()
	for i, t := range s.streams {
		if err := t.ask(ctx, func(now int64) { t.link(now, &first[i]) }); err != nil {
			return false, err
		}
	}
	s.say("")
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	wrote := make(chan error, 1)
	wg.Go(func() {
		err := s.write(ctx, c)
		wrote <- err
		if err != nil {
			_ = c.Close() // the reader is not to wait for more
		}
	})
	err = s.read(ctx, c, r)
	select {
	case e := <-wrote:
		if e != nil {
			err = e // the reader's is only that the connection was closed
		}
	default:
	}
	return true, err
}

// ended words the end of a connection.
func ended(what string, err error) error {
	var r replica.Refused
	var n net.Error
	switch {
	case errors.As(err, &r):
		return err
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, net.ErrClosed), errors.Is(err, io.ErrClosedPipe):
		return errors.New("the other end has closed the connection")
	case errors.As(err, &n) && n.Timeout():
		return fmt.Errorf("nothing was heard for %s", replica.Silence)
	}
	return fmt.Errorf("%s: %w", what, err)
}

func (t *Stream) link(now int64, a *replica.Answer) {
	t.linked, t.due = true, 0
	t.out.Link(now, a)
	t.show(now)
}

// unlink has every stream know that the connection is gone, and empties what was on its way.
func (s *Set) unlink() {
	for _, t := range s.streams {
		_ = t.ask(context.Background(), func(now int64) { // until the set ends
			t.linked = false
			t.out.Unlink()
			for _, f := range t.flushs {
				f.done(false)
			}
			t.flushs = nil
			t.show(now)
		})
	}
	for {
		select {
		case b := <-s.full:
			s.free <- b
			continue
		default:
		}
		return
	}
}

func (s *Set) write(ctx context.Context, c net.Conn) error {
	w := bufio.NewWriterSize(c, 64<<10)
	for {
		var b *[]byte
		select {
		case b = <-s.full:
		case <-ctx.Done():
			return nil
		}
		_ = c.SetWriteDeadline(time.Now().Add(writeTime))
		n, err := w.Write(*b)
		s.frames.Add(1)
		s.bytes.Add(uint64(n))
		s.free <- b
		for _, t := range s.streams {
			if t.starved.Swap(false) {
				t.wake()
			}
		}
		if err == nil && len(s.full) == 0 {
			err = w.Flush()
		}
		if err != nil {
			if n := net.Error(nil); errors.As(err, &n) && n.Timeout() {
				return fmt.Errorf("it has taken nothing for %s", writeTime)
			}
			return ended("writing", err)
		}
	}
}

func (s *Set) read(ctx context.Context, c net.Conn, r *bufio.Reader) error {
	for {
		_ = c.SetReadDeadline(time.Now().Add(replica.Silence))
		a, err := replica.ReadAnswer(r)
		if err != nil {
			return ended("reading its answers", err)
		}
		if int(a.Stream) >= len(s.streams) {
			return fmt.Errorf("it answers about stream %d: there are %d", a.Stream, len(s.streams))
		}
		t := s.streams[a.Stream]
		if err := t.order(ctx, func(now int64) { t.out.Answer(now, &a) }); err != nil {
			return err
		}
	}
}
