package standby

import (
	"bufio"
	"cmp"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"demarc/gateway/replica"
)

// link is a connection that another gateway has dialled.
type link struct {
	peer  string
	conn  net.Conn
	hello replica.Hello
	since int64
	wait  time.Duration    // Config.Silence
	quiet time.Duration    // Config.Quiet
	last  []replica.Answer // beat: what was answered last
	busy  atomic.Int64     // frames that were read and are not answered

	mu  sync.Mutex // of what is written
	out []byte     // mu
}

var (
	errReplaced = errors.New("it has connected anew")
	errDeaf     = errors.New("it does not take our answers")
)

// Serve takes the streams of another gateway from a connection until that ends, and closes it. The error is what the other side has done wrong; an end alone is none.
func (s *Standby) Serve(peer string, c net.Conn) error {
	defer c.Close()
	l := &link{peer: peer, conn: c, since: s.c.Now(), wait: s.c.Silence, quiet: s.c.Quiet}
	in := bufio.NewReaderSize(c, 2*replica.MaxFrame)
	_ = c.SetReadDeadline(time.Now().Add(l.wait))
	var err error
	if l.hello, err = replica.ReadHello(in); err != nil {
		if err = l.fault(err, "its first word"); err != nil {
			_ = l.write(func(b []byte) []byte { return replica.AppendRefusal(b, err.Error()) })
		}
		return err
	}
	if !s.mu.lockFor(l.wait) { // each new connection would wait here until a worker goes on
		why := cmp.Or(s.late(), "what came before is not written yet")
		_ = l.write(func(b []byte) []byte { return replica.AppendRefusal(b, why) })
		s.complain("the connection of a gateway is not taken now", "peer", peer, "why", why)
		return nil
	}
	old := s.links[peer]
	s.links[peer] = l
	var hellos []replica.Answer
	for n := range l.hello.Streams {
		hellos = append(hellos, s.r.Hello(l.peer, uint8(n)))
	}
	s.shown.Store(s.status())
	s.mu.Unlock()
	s.Call()
	l.last = hellos
	if old != nil {
		old.conn.Close()
	}
	s.log.Info("sessions are copied from a gateway", "peer", peer, "streams", l.hello.Streams)
	err = s.streams(l, in)
	why := "it has ended it"
	if err != nil {
		why = err.Error()
	}
	s.mu.Lock()
	if s.links[peer] == l {
		delete(s.links, peer)
		s.gone[peer] = gone{s.c.Now(), why}
	}
	s.mu.Unlock()
	if errors.Is(err, errReplaced) {
		return nil
	}
	s.log.Info("sessions are no more copied from a gateway", "peer", peer, "why", why)
	if errors.Is(err, errQuiet) { // nobody's fault
		return nil
	}
	return err
}

// streams says how far this node is, takes frames and answers them.
func (s *Standby) streams(l *link, in *bufio.Reader) error {
	if err := l.answer(l.last); err != nil {
		return err
	}
	done := make(chan struct{})
	beaten := make(chan error, 1)
	go func() { beaten <- s.beat(l, done) }()
	err := s.frames(l, in)
	close(done)
	l.conn.Close() // it may be that an answer waits
	if b := <-beaten; b != nil && err == nil {
		err = b
	}
	return err
}

// beat tells how far this node is, also while nothing comes.
func (s *Standby) beat(l *link, done <-chan struct{}) error {
	t := time.NewTicker(replica.Beat)
	defer t.Stop()
	for {
		select {
		case <-done:
			return nil
		case <-t.C:
		}
		list, ok := s.answers(l)
		if !ok {
			l.conn.Close()
			return errReplaced
		}
		if err := l.answer(list); err != nil {
			l.conn.Close()
			return err
		}
	}
}

// ahead is how many frames are read ahead of what is being written: so what has come is written together.
const ahead = 64

// frames takes what comes. Another goroutine reads it, so that the workers and TLS do not wait for each other.
func (s *Standby) frames(l *link, in *bufio.Reader) error {
	came, spare := make(chan []byte, ahead), make(chan []byte, 2*ahead)
	ended := make(chan error, 1)
	go func() {
		ended <- l.read(in, came, spare)
		close(came)
	}()
	var list [][]byte
	for f := range came {
		list = append(list[:0], f)
		for n := len(came); n > 0; n-- {
			list = append(list, <-came)
		}
		slices.SortStableFunc(list, func(a, b []byte) int {
			_, x := replica.FrameHead(a)
			_, y := replica.FrameHead(b)
			return cmp.Compare(x, y)
		})
		got, err := s.take(l, list)
		if err == nil {
			err = l.answer(got)
		}
		if err != nil {
			l.conn.Close()
			for range came { // until its reader has seen that
			}
			return cmp.Or(<-ended, err)
		}
		l.busy.Add(int64(-len(list)))
		for _, f := range list {
			select {
			case spare <- f:
			default:
			}
		}
	}
	return <-ended
}

// read reads frames until the connection ends.
func (l *link) read(in *bufio.Reader, came chan<- []byte, spare <-chan []byte) error {
	for {
		if in.Buffered() == 0 {
			if ended, err := l.await(in); ended {
				return err
			}
		}
		_ = l.conn.SetReadDeadline(time.Now().Add(l.wait))
		f, err := replica.ReadFrame(in)
		if err != nil {
			return l.fault(err, "the rest of a frame")
		}
		life, stream := replica.FrameHead(f)
		if life != l.hello.Life || int(stream) >= int(l.hello.Streams) {
			return fmt.Errorf("a frame of stream %d of life %x, and it has said that it has %d streams of life %x", stream, life, l.hello.Streams, l.hello.Life)
		}
		var own []byte
		select {
		case own = <-spare:
		default:
		}
		l.busy.Add(1)
		came <- append(own[:0], f...)
	}
}

// errQuiet is the end of a connection by which nothing comes: the owner's machine has gone without a word, or the way to it.
var errQuiet = errors.New("nothing has come")

// await waits for the next frame. An owner sends the digest of each group every second, so one that is silent for long is not there any more; but while it waits for answers to all that it may send ahead of
// them it is silent too.
func (l *link) await(in *bufio.Reader) (ended bool, err error) {
	for {
		_ = l.conn.SetReadDeadline(time.Now().Add(l.quiet))
		_, err := in.Peek(1)
		switch {
		case err == nil:
			return false, nil
		case !errors.Is(err, os.ErrDeadlineExceeded):
			return true, l.fault(err, "")
		case l.busy.Load() == 0:
			return true, fmt.Errorf("%w for %s, not even a digest: its node or the way to it has gone", errQuiet, l.quiet)
		}
	}
}

// answer writes answers. A peer that does not take them for Silence is given up.
func (l *link) answer(list []replica.Answer) error {
	return l.write(func(b []byte) []byte {
		for i := range list {
			b = replica.AppendAnswer(b, &list[i])
		}
		return b
	})
}

func (l *link) write(put func([]byte) []byte) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.out = put(l.out[:0])
	_ = l.conn.SetWriteDeadline(time.Now().Add(l.wait))
	_, err := l.conn.Write(l.out)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return fmt.Errorf("%w: none for %s", errDeaf, l.wait)
	}
	return l.fault(err, "")
}

// fault is what of an error is the other side's doing: that a connection has ended is nobody's, but in the midst of something.
func (l *link) fault(err error, of string) error {
	switch {
	case err == nil, errors.Is(err, net.ErrClosed), errors.Is(err, io.ErrClosedPipe), errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE):
		return nil
	case errors.Is(err, os.ErrDeadlineExceeded):
		return fmt.Errorf("%s has not come for %s", of, l.wait)
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return nil // a process that ends does so wherever it is
	}
	return err
}
