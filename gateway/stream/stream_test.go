package stream

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"net"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"demarc/gateway/replica"
)

// table is a shard's sessions at the owner: a session is a number, which is its inside address.
type table struct {
	slots []struct {
		gen  uint32
		live bool
		what uint32
	}
	marks []*replica.Sender
}

func (t *table) Slots() uint32 { return uint32(len(t.slots)) }

func (t *table) Look(slot uint32) replica.Look {
	l := replica.Look{Gen: t.slots[slot].gen, Early: true}
	if t.slots[slot].live {
		l.Group = 1
	}
	return l
}

func (t *table) Fill(slot uint32, r *replica.Record) {
	r.Kind = replica.KindSession
	binary.BigEndian.PutUint32(r.Session.OrigSrc[:], t.slots[slot].what)
	r.Session.Proto, r.Session.Hop = 17, [2]uint16{replica.NoName, replica.NoName}
}

func (t *table) Name(replica.NameKind, uint16) string { return "alpha" }

func (t *table) put(slot int, what uint32) {
	t.slots[slot].live, t.slots[slot].what = true, what
	for _, s := range t.marks {
		s.Mark(uint32(slot), true)
	}
}

func (t *table) drop(slot int) {
	t.slots[slot].live = false
	t.slots[slot].gen++
	for _, s := range t.marks {
		s.Gone(uint32(slot))
	}
}

// standby is a receiver with a table of its own.
type standby struct {
	mu   sync.Mutex
	recv *replica.Receiver
	have map[replica.Place]replica.Record
	next uint32
	room int
	why  replica.Outcome // of what there is no room for
}

func newStandby(room int) *standby {
	b := &standby{have: map[replica.Place]replica.Record{}, room: room, why: replica.Full}
	b.recv = replica.NewReceiver(b, 1<<20)
	b.recv.Follow(1, 1)
	return b
}

func (b *standby) Local(replica.NameKind, string) (uint16, bool) { return 0, true }

func (b *standby) Do(ops []replica.Op, c *replica.Context) {
	for i := range ops {
		op := &ops[i]
		op.Outcome, op.Old, op.New = replica.Taken, 0, 0
		if op.At != replica.NoPlace {
			if op.Do == replica.Live {
				continue
			}
			r := b.have[op.At]
			op.Old = c.Hash(&r)
			delete(b.have, op.At)
			c.Release(op.At)
			op.At = replica.NoPlace
		}
		if op.Do == replica.Put {
			if len(b.have) >= b.room {
				op.Outcome = b.why
				continue
			}
			b.next++
			op.At = replica.PlaceAt(0, b.next, 0)
			b.have[op.At] = op.Rec
			c.Claim(op.At)
			op.New = c.Hash(&op.Rec)
		}
	}
}

func (b *standby) Lost() uint64 { return 0 }

func (b *standby) Sweep(_ uint8, keep func(replica.Place) bool) {
	for p := range b.have {
		if !keep(p) {
			delete(b.have, p)
		}
	}
}

// serve is the other end of one connection, until it ends.
func (b *standby) serve(c net.Conn) {
	defer c.Close()
	r := bufio.NewReaderSize(c, replica.MaxFrame)
	h, err := replica.ReadHello(r)
	if err != nil {
		return
	}
	var wmu sync.Mutex
	say := func(a replica.Answer) error {
		wmu.Lock()
		defer wmu.Unlock()
		_, err := c.Write(replica.AppendAnswer(nil, &a))
		return err
	}
	hello := func() error {
		for i := range h.Streams {
			b.mu.Lock()
			a := b.recv.Hello("a", uint8(i))
			b.mu.Unlock()
			if err := say(a); err != nil {
				return err
			}
		}
		return nil
	}
	if hello() != nil {
		return
	}
	end := make(chan struct{})
	defer close(end)
	go func() {
		t := time.NewTicker(replica.Beat)
		defer t.Stop()
		for {
			select {
			case <-t.C:
				if hello() != nil {
					return
				}
			case <-end:
				return
			}
		}
	}()
	for {
		f, err := replica.ReadFrame(r)
		if err != nil {
			return
		}
		b.mu.Lock()
		a, _ := b.recv.Frame(time.Now().UnixNano(), "a", f)
		b.mu.Unlock()
		if say(a) != nil {
			return
		}
	}
}

func (b *standby) number() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.have)
}

func (b *standby) copies() uint64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.recv.Stats.Copies
}

// pair is an owner with one goroutine for each stream, as workers are, and a standby that it reaches by dial.
type pair struct {
	t      *testing.T
	tables []*table
	set    *Set
	own    []*owner
	cut    func() // the connection that there is
	mu     sync.Mutex
}

type owner struct {
	called chan struct{}
	box    chan func()
	turns  atomic.Int64
	worst  atomic.Int64 // ns of a turn
	most   atomic.Int64 // that a turn did
}

// run is what a worker does with a stream.
func (o *owner) run(ctx context.Context, s *Stream) {
	for ctx.Err() == nil {
		select {
		case fn := <-o.box:
			fn()
		default:
		}
		now := time.Now()
		n := s.Turn(now.UnixNano(), true)
		o.worst.Store(max(o.worst.Load(), int64(time.Since(now))))
		o.most.Store(max(o.most.Load(), int64(n)))
		o.turns.Add(1)
		if n > 0 {
			continue
		}
		select {
		case <-o.called:
		case fn := <-o.box:
			fn()
		case <-time.After(s.Rest(time.Now().UnixNano())):
		case <-ctx.Done():
		}
	}
}

// do runs fn where the tables are.
func (o *owner) do(fn func()) {
	done := make(chan struct{})
	o.box <- func() { fn(); close(done) }
	<-done
}

func newPair(t *testing.T, streams, slots int, dial func(p *pair) (net.Conn, error)) *pair {
	p := &pair{t: t, set: NewSet("b", 7)}
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	t.Cleanup(func() { cancel(); wg.Wait() })
	for i := range streams {
		tb := &table{slots: make([]struct {
			gen  uint32
			live bool
			what uint32
		}, slots)}
		out := replica.NewSender(tb, slots, uint8(i), uint8(streams), 7, 9, replica.Limits{Digest: 50 * time.Millisecond})
		tb.marks = []*replica.Sender{out}
		o := &owner{called: make(chan struct{}, 1), box: make(chan func(), 16)}
		s := p.set.Add(out, func() {
			select {
			case o.called <- struct{}{}:
			default:
			}
		})
		p.tables, p.own = append(p.tables, tb), append(p.own, o)
		wg.Go(func() { o.run(ctx, s) })
	}
	if err := p.set.Own(ctx, 1, 1); err != nil {
		t.Fatal(err)
	}
	wg.Go(func() { p.set.Run(ctx, func(context.Context) (net.Conn, error) { return dial(p) }) })
	return p
}

// to dials a standby, over a pipe.
func to(b *standby) func(p *pair) (net.Conn, error) {
	return func(p *pair) (net.Conn, error) {
		here, there := net.Pipe()
		p.mu.Lock()
		p.cut = func() { _ = there.Close() }
		p.mu.Unlock()
		go b.serve(there)
		return here, nil
	}
}

func (p *pair) cutOff() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.cut()
}

func (p *pair) copy() Copy { return p.set.Copy(time.Now().UnixNano(), 1) }

func (p *pair) whole(what string) Copy {
	p.t.Helper()
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(2 * time.Millisecond) {
		c := p.copy()
		if c.Whole && c.Lag < 40*time.Millisecond {
			return c
		}
		if time.Now().After(end) {
			p.t.Fatalf("%s: %+v, %+v", what, c, p.set.State())
		}
	}
}

func (p *pair) says(words string) Copy {
	p.t.Helper()
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(2 * time.Millisecond) {
		c := p.copy()
		if strings.Contains(c.Words, words) {
			if c.Whole {
				p.t.Errorf("%q, and yet whole", c.Words)
			}
			return c
		}
		if time.Now().After(end) {
			p.t.Fatalf("%q: want %q", c.Words, words)
		}
	}
}

func live(all []*table) (n int) {
	for _, t := range all {
		for i := range t.slots {
			if t.slots[i].live {
				n++
			}
		}
	}
	return n
}

// TestVanishedGoesOn: a standby that is cut off and comes back goes on where it was, without a further copy of what it has; one that has forgotten all gets all.
func TestVanishedGoesOn(t *testing.T) {
	b := newStandby(1 << 20)
	var away atomic.Bool // it cannot be reached: a connection is there again after 50 ms otherwise, and whoever has no processor meanwhile never sees that it was gone
	p := newPair(t, 2, 4096, func(p *pair) (net.Conn, error) {
		for away.Load() {
			time.Sleep(time.Millisecond)
		}
		return to(b)(p)
	})
	t.Cleanup(func() { away.Store(false) }) // before the pair's, which waits for who dials
	for i, o := range p.own {
		o.do(func() {
			for s := range 2000 {
				p.tables[i].put(s, uint32(i<<16|s))
			}
		})
	}
	p.whole("a first copy")
	if n := b.number(); n != 4000 {
		t.Fatalf("the standby has %d sessions, want 4000", n)
	}
	copies := b.copies()
	for range 5 {
		away.Store(true)
		p.cutOff()
		for i, o := range p.own {
			o.do(func() {
				for s := range 300 {
					p.tables[i].drop(s)
				}
				for s := range 200 {
					p.tables[i].put(s, uint32(i<<16|s|1<<24))
				}
				for s := 200; s < 300; s++ {
					p.tables[i].put(s, uint32(i<<16|s))
				}
			})
		}
		p.says("closed")
		away.Store(false)
		for end := time.Now().Add(10 * time.Second); ; { // whole with a lag: what is younger than that may be missing still
			c := p.whole("after a cut")
			n := b.number()
			if n == live(p.tables) {
				break
			}
			if c.Lag == 0 || time.Now().After(end) {
				t.Fatalf("the standby has %d sessions, want %d: %+v", n, live(p.tables), c)
			}
		}
	}
	if c := b.copies(); c != copies || copies == 0 {
		t.Errorf("%d copies before, %d after cuts: it did not go on where it was", copies, c)
	}
	dials := p.set.State().Dials
	b.mu.Lock()
	b.recv, b.have = replica.NewReceiver(b, 1<<20), map[replica.Place]replica.Record{}
	b.recv.Follow(1, 1)
	b.mu.Unlock()
	p.cutOff()
	for p.set.State().Dials == dials {
		time.Sleep(time.Millisecond)
	}
	for end := time.Now().Add(10 * time.Second); b.number() != 4000; time.Sleep(2 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("a standby that has forgotten all has %d sessions again, want 4000", b.number())
		}
	}
	p.whole("a second copy")
}

// TestSlowStandby: one that takes nothing costs the owner no memory beyond the window and no time; what has changed meanwhile comes when it takes something again.
//
// Time is synctest's: it goes on when everybody waits and never else. So a turn that waits for anything takes time here, and one that does not takes none, however busy the machine is.
func TestSlowStandby(t *testing.T) { synctest.Test(t, slowStandby) }

func slowStandby(t *testing.T) {
	const slots = 1 << 15
	b := newStandby(1 << 20)
	var stopped atomic.Bool
	gate := make(chan struct{})
	p := newPair(t, 1, slots, func(*pair) (net.Conn, error) {
		here, there := net.Pipe()
		go b.serve(&gated{there, &stopped, gate})
		return here, nil
	})
	p.whole("nothing")
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	stopped.Store(true)
	o := p.own[0]
	turns := o.turns.Load()
	began := time.Now()
	busy := func() { // packets come all the time, and a turn behind each burst
		for range 40 {
			o.do(func() {})
			time.Sleep(busyPace)
		}
	}
	for round := range 6 { // changes of all: 4 MB of records a round
		for s := 0; s < slots; s += 4096 {
			o.do(func() {
				for i := s; i < s+4096; i++ {
					p.tables[0].put(i, uint32(i+round<<20))
				}
			})
			busy()
		}
	}
	for last := -1; last != p.set.State().Waiting; { // as long as it gets more
		last = p.set.State().Waiting
		for end := time.Now().Add(2 * showPace); time.Now().Before(end); {
			busy()
		}
	}
	full := false
	o.do(func() { full = p.set.streams[0].out.Pending() })
	runtime.GC()
	runtime.ReadMemStats(&after)
	st, grown, n := p.set.State(), int64(after.HeapAlloc)-int64(before.HeapAlloc), o.turns.Load()-turns
	t.Logf("%d changes in %s while nothing is taken: %d KiB wait, the heap has grown by %d KiB; %d turns, the longest did %d things and waited for %s", 6*slots, time.Since(began), st.Waiting>>10, grown>>10, n, o.most.Load(),
		time.Duration(o.worst.Load()))
	if st.Waiting > 4<<20+64<<10 || !full || grown > 6<<20 {
		t.Errorf("%d bytes wait, the heap has grown by %d, and more is not written though the owner has the time: %v. The window is 4 MiB of buffers, and must be full", st.Waiting, grown, full)
	}
	if c := p.copy(); c.Lag < 20*time.Millisecond {
		t.Errorf("a lag of %s is shown", c.Lag)
	}
	stopped.Store(false)
	close(gate)
	p.whole("taken again")
	if n := b.number(); n != slots {
		t.Errorf("the standby has %d sessions, want %d", n, slots)
	}
	if worst := time.Duration(o.worst.Load()); worst != 0 || n < 1000 {
		t.Errorf("of %d turns while nothing was taken, and those after it, the longest waited for %s: an owner waits for nobody", n, worst)
	}
	// What a turn does is bounded too: slots, and a last one that is too many; orders; frames that are handed out.
	if most := o.most.Load(); most > mostBusy+1+maxOrders+buffers {
		t.Errorf("a turn did %d things", most)
	}
}

// gated is a connection of which nothing is read while it is stopped; answers go on.
type gated struct {
	net.Conn
	stopped *atomic.Bool
	gate    chan struct{}
}

func (g *gated) Read(b []byte) (int, error) {
	if g.stopped.Load() {
		<-g.gate
	}
	return g.Conn.Read(b)
}

// TestWhyNotWhole: what keeps a copy from being whole is said in words, with what would be right.
func TestWhyNotWhole(t *testing.T) {
	fill := func(p *pair) {
		p.own[0].do(func() {
			for s := range 500 {
				p.tables[0].put(s, uint32(s))
			}
		})
	}
	t.Run("tables too small", func(t *testing.T) {
		b := newStandby(300)
		p := newPair(t, 1, 1024, to(b))
		fill(p)
		if c := p.says("200 sessions were not taken: its tables have no room"); c.Missing != 200 || c.Why != replica.Full {
			t.Errorf("%+v", c)
		}
	})
	t.Run("older release", func(t *testing.T) {
		b := newStandby(300)
		b.why = replica.NotKnown
		p := newPair(t, 1, 1024, to(b))
		fill(p)
		p.says("its release is older")
	})
	t.Run("refused", func(t *testing.T) {
		p := newPair(t, 1, 64, func(*pair) (net.Conn, error) {
			here, there := net.Pipe()
			go func() {
				_, _ = replica.ReadHello(bufio.NewReader(there))
				_, _ = there.Write(replica.AppendRefusal(nil, "this node copies sessions by version 0"))
				_ = there.Close()
			}()
			return here, nil
		})
		p.says("the standby takes no sessions: this node copies sessions by version 0")
	})
	t.Run("no connection", func(t *testing.T) {
		p := newPair(t, 1, 64, func(*pair) (net.Conn, error) { return nil, errors.New("gw-b is not a member") })
		p.says("no connection: gw-b is not a member")
	})
	t.Run("rubbish", func(t *testing.T) {
		p := newPair(t, 1, 64, func(*pair) (net.Conn, error) {
			here, there := net.Pipe()
			go func() {
				_, _ = replica.ReadHello(bufio.NewReader(there))
				_, _ = there.Write([]byte("HTTP/1.1 400 Bad Request\r\n\r\n"))
				_ = there.Close()
			}()
			return here, nil
		})
		p.says("answer: says that it is")
	})
	t.Run("silent", func(t *testing.T) {
		p := newPair(t, 1, 64, func(*pair) (net.Conn, error) {
			here, there := net.Pipe()
			go func() { // one answer, and no other
				r := bufio.NewReader(there)
				_, _ = replica.ReadHello(r)
				_, _ = there.Write(replica.AppendAnswer(nil, &replica.Answer{Anew: true}))
				for {
					if _, err := r.ReadByte(); err != nil {
						return
					}
				}
			}()
			return here, nil
		})
		p.says("nothing was heard for 3s")
	})
	t.Run("its owner hangs", func(t *testing.T) {
		b := newStandby(1000)
		p := newPair(t, 1, 1024, to(b))
		p.whole("a copy")
		hung := make(chan struct{})
		p.own[0].box <- func() { <-hung }
		for end := time.Now().Add(10 * time.Second); p.copy().Lag < time.Second; time.Sleep(10 * time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("it has hung for ten seconds: %+v", p.copy())
			}
		}
		close(hung)
		p.whole("it goes on")
	})
}

// TestFlush: done comes when all is at the standby, and says no where that cannot be.
func TestFlush(t *testing.T) {
	b := newStandby(1 << 20)
	p := newPair(t, 3, 8192, to(b))
	p.set.patient = time.Minute
	p.whole("nothing")
	for round := range uint32(20) {
		for i, o := range p.own {
			o.do(func() {
				for s := range 700 {
					p.tables[i].put(s, uint32(i)<<16|uint32(s)|round<<24)
				}
			})
		}
		done := make(chan bool, 2)
		began := time.Now()
		p.set.Flush(func(acked bool) { done <- acked })
		if !<-done {
			t.Fatal("not acknowledged")
		}
		took := time.Since(began)
		b.mu.Lock()
		for _, r := range b.have {
			if what := binary.BigEndian.Uint32(r.Session.OrigSrc[:]); what>>24 != round {
				t.Fatalf("round %d, %s after it was asked for: the standby has %x", round, took, what)
			}
		}
		if len(b.have) != 2100 {
			t.Fatalf("round %d: the standby has %d sessions, want 2100", round, len(b.have))
		}
		b.mu.Unlock()
		if len(done) > 0 {
			t.Fatal("done twice")
		}
		if round == 19 {
			t.Logf("2,100 sessions of three streams flushed in %s", took)
		}
	}
	none := newPair(t, 1, 64, func(*pair) (net.Conn, error) { return nil, errors.New("gone") })
	none.says("gone")
	done := make(chan bool, 1)
	none.set.Flush(func(acked bool) { done <- acked })
	if <-done {
		t.Error("without a connection something was acknowledged")
	}
}

// TestFlushing: streams of a flush begin one after the other, each with what its table has by then, and who asks is told behind the last one, whenever he asks.
func TestFlushing(t *testing.T) {
	b := newStandby(1 << 20)
	p := newPair(t, 3, 512, to(b))
	p.set.patient = time.Minute
	p.whole("nothing")
	for round := range uint32(9) {
		f, done := p.set.Flushing(), make(chan bool, 2)
		if f.Streams() != 3 || !f.Of(p.set) || f.Of(new(Set)) || (*Flushing)(nil).Of(p.set) {
			t.Fatal("it is not told whose it is")
		}
		ask := func(at uint32) {
			if round%3 == at {
				f.Done(func(acked bool) { done <- acked })
			}
		}
		ask(0)
		for i, o := range p.own {
			o.do(func() {
				for s := range 100 {
					p.tables[i].put(s, uint32(i)<<16|uint32(s)|round<<24)
				}
			})
			if len(done) > 0 {
				t.Fatalf("told before stream %d began", i)
			}
			f.Stream(i)
		}
		ask(1)
		if round%3 == 2 {
			p.whole("it is over")
		}
		ask(2)
		if !<-done {
			t.Fatal("not acknowledged")
		}
		b.mu.Lock()
		for _, r := range b.have {
			if what := binary.BigEndian.Uint32(r.Session.OrigSrc[:]); what>>24 != round {
				t.Fatalf("round %d: the standby has %x", round, what)
			}
		}
		b.mu.Unlock()
		if len(done) > 0 {
			t.Fatal("told twice")
		}
	}
}

// TestFlushEndsInTime: who hands over is told that a flush will not come to its end, be it that there is more than can be written in that time or that the standby does not answer.
func TestFlushEndsInTime(t *testing.T) {
	b := newStandby(1 << 20)
	p := newPair(t, 1, 1<<13, to(b))
	p.whole("nothing")
	for _, c := range []struct {
		name    string
		patient time.Duration
	}{{"the standby does not answer", flushTime}, {"there is too much", 1}} {
		p.set.patient = c.patient
		if c.patient == flushTime {
			b.mu.Lock()
		}
		p.own[0].do(func() {
			for s := range 1 << 13 {
				p.tables[0].put(s, uint32(s)|uint32(c.patient)<<16)
			}
		})
		done := make(chan bool, 1)
		p.set.Flush(func(acked bool) { done <- acked })
		select {
		case acked := <-done:
			if acked {
				t.Errorf("%s, and all is acknowledged", c.name)
			}
		case <-time.After(20 * time.Second):
			t.Errorf("%s: nobody is told", c.name)
		}
		if c.patient == flushTime {
			b.mu.Unlock()
		}
	}
	p.whole("and all of it comes there")
}
