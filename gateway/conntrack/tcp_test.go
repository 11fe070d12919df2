package conntrack

import (
	"math/rand/v2"
	"testing"

	"demarc/gateway/flow"
	"demarc/gateway/verdict"
)

// endpoint is a TCP that sends want bytes and then FIN, or RST: enough of RFC 9293 to produce what real ones send.
type endpoint struct {
	rng                *rand.Rand
	dir                int
	state              int // 0 listens, 1 SYN sent, 2 SYN received, 3 open, 4 gone
	iss, una, nxt, top uint32
	rcv, edge          uint32 // next expected; right edge of the window that was advertised
	peerEdge           uint32
	offer, peer        int8 // window scale options
	want, buf, unread  int
	finAt              uint32
	finSent, finRcv    bool
	abort              bool // ends by RST
	fast               bool // sends data on the SYN, takes what comes on one, and answers before the handshake is complete (RFC 7413)
	timer              int
	out, early         []Segment // early: came before what precedes it
}

func (e *endpoint) shift(s int8) uint {
	if e.offer < 0 || e.peer < 0 {
		return 0
	}
	return uint(s)
}

func (e *endpoint) send(flags uint8, seq uint32, n int) {
	g := Segment{Flags: flags, Seq: seq, Payload: uint16(n), Scale: -1}
	w := uint32(e.buf - e.unread)
	if flags&tcpSYN != 0 {
		g.Scale = e.offer
		w = min(w, 0xffff)
	} else {
		w = min(w>>e.shift(e.offer), 0xffff)
	}
	g.Window = uint16(w)
	if flags&tcpACK != 0 {
		g.Ack = e.rcv
	}
	e.out = append(e.out, g)
}

func (e *endpoint) synFlags() uint8 {
	if e.state == 2 {
		return tcpSYN | tcpACK
	}
	return tcpSYN
}

// patience is after how many turns a SYN or SYN/ACK comes again.
func (e *endpoint) patience() int {
	if e.fast && e.state == 2 {
		return 120
	}
	return 40
}

// tick sends what may be sent, and on time-out again.
func (e *endpoint) tick() {
	e.unread = max(0, e.unread-e.rng.IntN(3000))
	e.timer--
	switch e.state {
	case 1, 2:
		switch {
		case e.timer <= 0:
			n := 0
			if e.fast && e.state == 1 && e.top == e.iss+1 { // the first try alone has data
				n = min(e.want, e.rng.IntN(1400))
				e.top += uint32(n)
			}
			e.send(e.synFlags(), e.iss, n)
			e.timer = e.patience()
		case e.fast && e.state == 2 && !e.abort && e.timer > 60 && e.timer < 90: // neither this SYN/ACK nor the next one is under way beside it
			e.fill()
		}
	case 3:
		if e.timer <= 0 { // everything unacknowledged again
			e.nxt = e.una
			e.timer = 60
			if int32(e.peerEdge-e.una) <= 0 && e.una != e.finAt {
				if e.rng.IntN(2) == 0 {
					e.send(tcpACK, e.una-1, 0) // Linux's window probe, and everybody's keep-alive
				} else if e.una != e.finAt+1 {
					e.send(tcpACK, e.una, 1) // one byte beyond
					if int32(e.una+1-e.top) > 0 {
						e.top = e.una + 1
					}
				}
				return
			}
			if e.rng.IntN(4) == 0 {
				e.send(tcpACK, e.una-1, e.rng.IntN(2))
			}
		}
		e.fill()
	}
}

// fill sends what the other's window has room for.
func (e *endpoint) fill() {
	for range 4 {
		n := min(int32(e.finAt-e.nxt), int32(e.peerEdge-e.nxt), int32(1+e.rng.IntN(1460)))
		if n > 0 {
			e.send(tcpACK, e.nxt, int(n))
			e.nxt += uint32(n)
		} else if e.nxt == e.finAt {
			if e.abort {
				e.send(tcpRST|tcpACK, e.nxt, 0)
				e.state = 4
				return
			}
			e.send(tcpFIN|tcpACK, e.nxt, 0)
			e.nxt++
			e.finSent = true
		}
		if int32(e.nxt-e.top) > 0 {
			e.top = e.nxt
		}
	}
}

func (e *endpoint) receive(g *Segment) {
	if e.state == 4 {
		if g.Flags&(tcpRST|tcpACK) == tcpACK {
			e.send(tcpRST, g.Ack, 0)
		}
		return
	}
	if g.Flags&tcpRST != 0 {
		if e.state >= 2 && g.Seq == e.rcv || e.state == 1 && g.Flags&tcpACK != 0 && g.Ack == e.nxt {
			e.state = 4
		} else if e.state == 3 && int32(g.Seq-e.rcv) > 0 && int32(g.Seq-e.edge) < 0 {
			e.send(tcpACK, e.nxt, 0) // RFC 5961 challenge
		}
		return
	}
	if g.Flags&tcpSYN != 0 {
		switch {
		case e.state <= 1:
			if g.Flags&tcpACK != 0 && g.Ack-(e.iss+1) > e.top-(e.iss+1) {
				return
			}
			e.peer = g.Scale
			e.rcv = g.Seq + 1
			e.peerEdge = e.iss + 1 + uint32(g.Window)
			e.nxt, e.una = e.iss+1, e.iss
			if g.Flags&tcpACK != 0 {
				e.una, e.nxt = g.Ack, g.Ack
				e.peerEdge = g.Ack + uint32(g.Window)
				e.state = 3
				e.send(tcpACK, e.nxt, 0)
			} else {
				if e.fast && e.state == 0 { // read at once: each SYN/ACK bears the same window
					e.rcv += uint32(g.Payload)
				}
				e.state = 2
				e.send(tcpSYN|tcpACK, e.iss, 0)
			}
			e.timer = e.patience()
			return
		case e.state == 2 && g.Flags&tcpACK != 0 && g.Ack == e.iss+1:
			e.state, e.una = 3, e.iss+1
		}
		e.send(tcpACK, e.nxt, 0)
		return
	}
	if e.state < 2 {
		return
	}
	if e.state == 2 {
		if g.Ack-(e.iss+1) > e.top-(e.iss+1) {
			return
		}
		e.state, e.una = 3, e.iss+1
	}
	if int32(g.Ack-e.una) > 0 && int32(g.Ack-e.top) <= 0 {
		e.una = g.Ack
		if int32(e.nxt-e.una) < 0 {
			e.nxt = e.una
		}
		e.timer = 60
	}
	if edge := g.Ack + uint32(g.Window)<<e.shift(e.peer); int32(edge-e.peerEdge) > 0 {
		e.peerEdge = edge
	}
	if int32(g.end()-e.rcv) > 0 && (len(e.early) < 50 || int32(g.Seq-e.rcv) <= 0) {
		e.early = append(e.early, *g)
	}
	for again := true; again; {
		again = false
		for _, p := range e.early {
			n := uint32(p.Payload)
			if off := e.rcv - p.Seq; off <= n && !e.finRcv {
				if fresh := int(n - off); e.unread+fresh <= e.buf && p.end() != e.rcv {
					e.unread += fresh
					e.rcv += n - off
					if p.Flags&tcpFIN != 0 {
						e.rcv++
						e.finRcv = true
					}
					again = true
				}
			}
		}
		kept := e.early[:0]
		for _, p := range e.early {
			if int32(p.end()-e.rcv) > 0 {
				kept = append(kept, p)
			}
		}
		e.early = kept
	}
	if g.end() != g.Seq || g.Seq == e.rcv-1 && e.rng.IntN(3) == 0 {
		e.send(tcpACK, e.nxt, 0)
	}
}

func (e *endpoint) done() bool { return e.state == 4 || e.finRcv && e.finSent && e.una == e.finAt+1 }

func newEndpoint(rng *rand.Rand, dir int) *endpoint {
	e := &endpoint{rng: rng, dir: dir, iss: rng.Uint32(), offer: int8(rng.IntN(16) - 1), peer: -1, want: rng.IntN(100_000), abort: rng.IntN(5) == 0}
	if rng.IntN(4) == 0 {
		e.iss = -uint32(1 + rng.IntN(100_000)) // wraps soon
	}
	if e.offer > 14 {
		e.offer = 14
	}
	e.buf = 2000 + rng.IntN(60_000)<<rng.IntN(5)
	for e.offer > 0 && e.buf>>e.offer < 100 { // nobody offers a scale that rounds his buffer to nothing
		e.offer--
	}
	e.edge = 1 << 31
	e.from(e.iss)
	return e
}

// from has it begin with that sequence number.
func (e *endpoint) from(iss uint32) {
	e.iss, e.una, e.nxt, e.top = iss, iss, iss+1, iss+1
	e.finAt = iss + 1 + uint32(e.want)
}

// Two endpoints talk through Track over links that lose, repeat and reorder: no segment that either of them sends is refused.
func TestNoGenuineSegmentIsRefused(t *testing.T) {
	rng := seeded(t)
	finished, aborted, states := 0, 0, [numTCPStates]int{}
	const runs = 200
	for run := range runs {
		ends := [2]*endpoint{newEndpoint(rng, 0), newEndpoint(rng, 1)}
		ends[0].state = 1
		simultaneous := run%10 == 0
		if simultaneous {
			ends[1].state = 1
		} else {
			ends[0].fast, ends[1].fast = rng.IntN(3) == 0, rng.IntN(3) == 0
		}
		s := &Session{Proto: flow.TCP}
		started, reborn := false, false
		loss := rng.IntN(15)
		late := 1 + rng.IntN(25)
		type flight struct {
			at, dir int
			g       Segment
			passed  bool
		}
		var air []flight
		over := 0
		for now := 0; now < 6000 && over < 200; now++ {
			for d, e := range ends {
				e.tick()
				for _, g := range e.out {
					for copies := 1 + rng.IntN(30)/29; copies > 0; copies-- {
						if rng.IntN(100) >= loss {
							air = append(air, flight{now + 1 + rng.IntN(late), d, g, false})
						}
					}
				}
				e.out = e.out[:0]
			}
			var later []flight
			for _, f := range air {
				switch {
				case f.at > now:
					later = append(later, f)
				case f.passed:
					ends[1-f.dir].receive(&f.g)
				default:
					var r verdict.Reason
					if !started {
						if f.dir == 1 { // before there is a session: the ACL's business
							continue
						}
						if r = First(s, &f.g); r == verdict.Pass {
							started = true
						} else if f.g.Flags&tcpRST != 0 {
							continue
						}
					} else {
						before := s.State
						r = Track(s, f.dir, &f.g)
						reborn = reborn || before == TCPClosed && s.State == TCPSynSent
					}
					// A late copy of the SYN after the RST starts the session again; what either had sent before is then nobody's.
					if reborn && (ends[0].state == 4 || ends[1].state == 4) {
						continue
					}
					states[s.State]++
					// A RST that answers a late copy is late itself: its receiver has gone on beyond it, and would throw it away.
					if to := ends[1-f.dir]; r == verdict.TCPOutOfWindow && f.g.Flags&tcpRST != 0 && int32(f.g.Seq-to.rcv) < 0 {
						continue
					}
					if r != verdict.Pass {
						t.Fatalf("run %d (simultaneous %v): %+v of direction %d refused: %v\nsession %+v\norig %+v\nreply %+v", run, simultaneous, f.g, f.dir, r, *s, *ends[0], *ends[1])
					}
					if rng.IntN(100) >= loss {
						later = append(later, flight{now + 1 + rng.IntN(late), f.dir, f.g, true})
					}
				}
			}
			air = later
			if ends[0].done() && ends[1].done() {
				over++
			}
		}
		if over > 0 {
			finished++
			switch {
			case ends[0].state != 4 && ends[1].state != 4:
				if s.State != TCPTimeWait {
					t.Errorf("run %d: both closed, and the session is %s", run, TCPStateText(s.State))
				}
			default:
				aborted++
			}
		}
	}
	t.Logf("%d of %d runs came to their end, %d by RST; segments by state %v", finished, runs, aborted, states)
	if finished < runs*8/10 || aborted < runs/20 {
		t.Errorf("only %d of %d runs came to their end, %d by RST: the model does not work", finished, runs, aborted)
	}
	for st := TCPSynSent; st <= TCPTimeWait; st++ {
		if states[st] == 0 && st != TCPResync {
			t.Errorf("no segment met state %s", TCPStateText(st))
		}
	}
}

// Two ends that know nothing of the conversation before begin one on its tuple, whatever became of the old one, and the client's number lies where a late copy's would: once the server has
// accepted, nothing of theirs is refused.
func TestATupleUsedAgainByALowerNumber(t *testing.T) {
	rng := seeded(t)
	met, stalled := [numTCPStates]int{}, 0
	const runs = 300
	for run := range runs {
		c := newConversation(rng)
		for _, e := range c.ends {
			e.abort = rng.IntN(3) == 0
		}
		if c.run(1+rng.IntN(8<<rng.IntN(10)), true, rng.IntN(3)) { // often early
			c.run(rng.IntN(100), true, 0)
		}
		if !c.started || c.s.State == TCPFinOrig || c.s.State == TCPFinReply { // half closed: a known limit
			continue
		}
		old, client := *c.s, c.ends[0]
		c.air, c.refused = nil, 0
		for d := range c.ends {
			e := newEndpoint(rng, d)
			e.abort, e.fast = false, rng.IntN(3) == 0
			c.ends[d] = e
		}
		if old.State == TCPSynRecv { // where it may be taken for the SYN before, which told the scale
			c.ends[0].offer, c.ends[0].buf = client.offer, client.buf
		}
		c.ends[0].state = 1
		c.ends[0].from(old.TCPEnd[0] - 1 - rng.Uint32N(reach(&old, 1)))
		for !newerThan(&old, 1, c.ends[1].iss) { // the one number that is known of it: two that both look old are a known limit
			c.ends[1].from(rng.Uint32())
		}
		met[old.State]++
		loss := rng.IntN(3)
		for range 2000 {
			if c.run(1, true, loss); c.ends[0].state == 3 {
				break
			}
		}
		c.refused = 0 // what the server sent while its SYN/ACK was lost is nobody's
		done := c.run(6000, true, loss)
		if c.refused > 0 || c.ends[0].state < 3 {
			t.Fatalf("run %d: %d segments refused on the tuple of a session that was %s\nsession %+v\nit was %+v\norig %+v\nreply %+v", run, c.refused, TCPStateText(old.State), *c.s, old, *c.ends[0], *c.ends[1])
		}
		if !done {
			stalled++ // the model by itself: what came early fills what it keeps
		} else if c.s.State != TCPTimeWait && c.s.State != TCPClosing {
			t.Fatalf("run %d: both closed, and the session is %s", run, TCPStateText(c.s.State))
		}
	}
	t.Logf("%d runs by what the session was %v; %d stalled", runs, met, stalled)
	met[TCPClosing] += met[TCPTimeWait] // what lies between both FINs and their acknowledgements is met in one seed and not in another; TestTrack has each
	for _, st := range []uint8{TCPSynSent, TCPSynRecv, TCPEstablished, TCPClosing, TCPClosed} {
		if met[st] == 0 {
			t.Errorf("no session was %s", TCPStateText(st))
		}
	}
	if stalled*6 > runs {
		t.Errorf("%d of %d runs stalled: the model does not work", stalled, runs)
	}
}

// opened is an established session: the client's next number is 1001, the server's 5001, both windows 10,000.
func opened(t *testing.T) *Session {
	t.Helper()
	s := &Session{Proto: flow.TCP}
	syn := Segment{Flags: tcpSYN, Seq: 1000, Window: 10000, Scale: -1}
	if r := First(s, &syn); r != verdict.Pass {
		t.Fatal(r)
	}
	if r := Track(s, 1, &Segment{Flags: tcpSYN | tcpACK, Seq: 5000, Ack: 1001, Window: 10000, Scale: -1}); r != verdict.Pass {
		t.Fatal(r)
	}
	if r := Track(s, 0, &Segment{Flags: tcpACK, Seq: 1001, Ack: 5001, Window: 10000}); r != verdict.Pass || s.State != TCPEstablished {
		t.Fatal(r, s.State)
	}
	return s
}

func TestFirst(t *testing.T) {
	for flags := range 256 {
		g := Segment{Flags: uint8(flags), Scale: -1}
		s := Session{Proto: flow.TCP}
		want := verdict.TCPNotSyn
		switch flags & 0x17 {
		case tcpSYN:
			want = verdict.Pass
		case 0, tcpFIN, tcpSYN | tcpFIN, tcpRST | tcpFIN, tcpRST | tcpSYN, tcpRST | tcpSYN | tcpFIN, tcpACK | tcpSYN | tcpFIN,
			tcpACK | tcpRST | tcpFIN, tcpACK | tcpRST | tcpSYN, tcpACK | tcpRST | tcpSYN | tcpFIN:
			want = verdict.TCPInvalidFlags
		}
		if got := First(&s, &g); got != want {
			t.Errorf("flags %#02x: %v, want %v", flags, got, want)
		}
	}
}

// Before the handshake is complete a RST beside its place moves nothing: it would be a way to an established session past the third step, which who sends under a false source cannot make.
func TestRSTBesideItsPlaceBeforeTheHandshake(t *testing.T) {
	var s Session
	s.Proto = flow.TCP
	First(&s, &Segment{Flags: tcpSYN, Seq: 1000, Window: 5000, Scale: -1})
	for _, step := range []struct {
		dir int
		g   Segment
	}{
		{1, Segment{Flags: tcpSYN | tcpACK, Seq: 7000, Ack: 1001, Window: 3000, Scale: -1}},
		{0, Segment{Flags: tcpRST, Seq: 1001 + 3000 + 1}},
		{1, Segment{Flags: tcpRST, Seq: 7001 + 100, Ack: 1}},
	} {
		if r := Track(&s, step.dir, &step.g); r != verdict.Pass || s.State != TCPSynRecv {
			t.Fatalf("%+v: %v, %s", step, r, TCPStateText(s.State))
		}
	}
}

func TestTrack(t *testing.T) {
	type step struct {
		dir   int
		g     Segment
		want  verdict.Reason
		state uint8
	}
	const A, S, F, R = tcpACK, tcpSYN, tcpFIN, tcpRST
	pass, out, flags, notSyn := verdict.Pass, verdict.TCPOutOfWindow, verdict.TCPInvalidFlags, verdict.TCPNotSyn
	est := TCPEstablished
	const wrap = 1 << 32
	for name, steps := range map[string][]step{
		"data in the window":             {{0, Segment{Flags: A, Seq: 1001, Ack: 5001, Payload: 1000}, pass, est}},
		"starts at the end: probe":       {{0, Segment{Flags: A, Seq: 11001, Ack: 5001, Payload: 1}, pass, est}},
		"starts beyond the end":          {{0, Segment{Flags: A, Seq: 11003, Ack: 5001, Payload: 1}, out, est}},
		"keep-alive":                     {{1, Segment{Flags: A, Seq: 5000, Ack: 1001}, pass, est}},
		"far behind":                     {{1, Segment{Flags: A, Seq: wrap - 294999, Ack: 1001}, out, est}},
		"acknowledges what was not sent": {{1, Segment{Flags: A, Seq: 5001, Ack: 1002}, out, est}},
		"acknowledges what is long past": {{1, Segment{Flags: A, Seq: 5001, Ack: wrap - 298999}, out, est}},
		"no flags":                       {{0, Segment{Seq: 1001, Ack: 5001}, flags, est}},
		"FIN without ACK":                {{0, Segment{Flags: F, Seq: 1001}, flags, est}},
		"Christmas tree":                 {{0, Segment{Flags: 0xff, Seq: 1001, Ack: 5001}, flags, est}},
		"FIN out of the window":          {{1, Segment{Flags: F | A, Seq: 30000, Ack: 1001}, out, est}},
		"half close goes on": {{0, Segment{Flags: F | A, Seq: 1001, Ack: 5001, Window: 10000}, pass, TCPFinOrig},
			{1, Segment{Flags: A, Seq: 5001, Ack: 1002, Payload: 1400}, pass, TCPFinOrig},
			{0, Segment{Flags: A, Seq: 1002, Ack: 6401, Window: 10000}, pass, TCPFinOrig},
			{1, Segment{Flags: F | A, Seq: 6401, Ack: 1002}, pass, TCPClosing},
			{0, Segment{Flags: A, Seq: 1002, Ack: 6402}, pass, TCPTimeWait}},
		"reply closes first": {{1, Segment{Flags: F | A, Seq: 5001, Ack: 1001}, pass, TCPFinReply},
			{0, Segment{Flags: F | A, Seq: 1001, Ack: 5002}, pass, TCPClosing},
			{0, Segment{Flags: F | A, Seq: 1001, Ack: 5002}, pass, TCPClosing}, // lost, and comes again
			{1, Segment{Flags: A, Seq: 5002, Ack: 1002}, pass, TCPTimeWait},
			{0, Segment{Flags: S, Seq: 990, Scale: -1}, pass, TCPReuse}, // late copy
			{1, Segment{Flags: S, Seq: 9990, Scale: -1}, notSyn, TCPReuse},
			{0, Segment{Flags: S, Seq: 90000, Window: 500, Scale: 3}, pass, TCPSynSent},
			{1, Segment{Flags: S | A, Seq: 70000, Ack: 90001, Window: 500, Scale: 7}, pass, TCPSynRecv}},
		"both close at once": {{0, Segment{Flags: F | A, Seq: 1001, Ack: 5001}, pass, TCPFinOrig},
			{1, Segment{Flags: F | A, Seq: 5001, Ack: 1001}, pass, TCPClosing},
			{0, Segment{Flags: A, Seq: 1002, Ack: 5002}, pass, TCPClosing},
			{1, Segment{Flags: A, Seq: 5002, Ack: 1002}, pass, TCPTimeWait}},
		"RST while closing": {{0, Segment{Flags: F | A, Seq: 1001, Ack: 5001}, pass, TCPFinOrig},
			{1, Segment{Flags: F | A, Seq: 5001, Ack: 1001}, pass, TCPClosing},
			{1, Segment{Flags: R, Seq: 5002}, pass, TCPClosed}},
		"FIN acknowledged too far": {{0, Segment{Flags: F | A, Seq: 1001, Ack: 5001}, pass, TCPFinOrig},
			{1, Segment{Flags: F | A, Seq: 5001, Ack: 1003}, out, TCPFinOrig}},
		"RST at its place":            {{1, Segment{Flags: R, Seq: 5001}, pass, TCPClosed}, {0, Segment{Flags: A, Seq: 1001, Ack: 5001}, pass, TCPClosed}, {0, Segment{Flags: S, Seq: 7, Scale: -1}, pass, TCPSynSent}},
		"RST elsewhere, not believed": {{1, Segment{Flags: R, Seq: 5002}, pass, TCPReset}, {0, Segment{Flags: A, Seq: 1001, Ack: 5001}, pass, est}},
		"RST elsewhere, then exact":   {{1, Segment{Flags: R, Seq: 5002}, pass, TCPReset}, {1, Segment{Flags: R, Seq: 5001}, pass, TCPClosed}},
		"client restarted, server has too": {{0, Segment{Flags: S, Seq: 999999, Scale: 5}, pass, TCPResync},
			{1, Segment{Flags: S | A, Seq: 777777, Ack: 1000000, Window: 60000, Scale: 6}, pass, TCPSynRecv},
			{0, Segment{Flags: A, Seq: 1000000, Ack: 777778, Window: 2000}, pass, est},
			{1, Segment{Flags: A, Seq: 777778, Ack: 1000000, Window: 2000, Payload: 1400}, pass, est}},
		"client restarted by a lower number, server has too": {{0, Segment{Flags: S, Seq: 900, Scale: 5}, pass, TCPResync},
			{1, Segment{Flags: S | A, Seq: 777777, Ack: 901, Window: 60000, Scale: 6}, pass, TCPSynRecv},
			{0, Segment{Flags: S, Seq: 900, Scale: 5}, pass, TCPSynRecv},
			{0, Segment{Flags: A, Seq: 901, Ack: 777778, Window: 2000}, pass, est},
			{1, Segment{Flags: A, Seq: 777778, Ack: 901, Window: 2000, Payload: 1400}, pass, est}},
		"client restarted, and the server by a number that looks old": {{0, Segment{Flags: S, Seq: 999999, Scale: 5}, pass, TCPResync},
			{1, Segment{Flags: S | A, Seq: 4000, Ack: 1000000, Window: 60000, Scale: 6}, pass, TCPSynRecv}},
		"late copies of the handshake": {{0, Segment{Flags: S, Seq: 1000, Window: 10000, Scale: -1}, pass, TCPResync},
			{1, Segment{Flags: S | A, Seq: 5000, Ack: 1001, Window: 10000, Scale: -1}, pass, TCPResync},
			{1, Segment{Flags: A, Seq: 5001, Ack: 1001, Window: 10000, Payload: 100}, pass, TCPResync},
			{1, Segment{Flags: A, Seq: 30000, Ack: 1001, Window: 10000, Payload: 100}, out, TCPResync},
			{0, Segment{Flags: A, Seq: 1001, Ack: 5101, Window: 10000}, pass, est},
			{0, Segment{Flags: A, Seq: 30000, Ack: 5101, Window: 10000}, out, est}},
		"a late copy of the SYN, and the server closes": {{0, Segment{Flags: S, Seq: 1000, Window: 10000, Scale: -1}, pass, TCPResync},
			{1, Segment{Flags: F | A, Seq: 5001, Ack: 1001, Window: 10000}, pass, TCPFinReply},
			{0, Segment{Flags: F | A, Seq: 1001, Ack: 5002, Window: 10000}, pass, TCPClosing},
			{1, Segment{Flags: A, Seq: 5002, Ack: 1002, Window: 10000}, pass, TCPTimeWait}},
		"a late copy of the SYN, half closed": {{0, Segment{Flags: F | A, Seq: 1001, Ack: 5001, Window: 10000}, pass, TCPFinOrig},
			{0, Segment{Flags: S, Seq: 1000, Window: 10000, Scale: -1}, pass, TCPFinOrig},
			{0, Segment{Flags: S, Seq: 999999, Window: 10000, Scale: -1}, pass, TCPResync}},
		"used again by a lower number": {{1, Segment{Flags: F | A, Seq: 5001, Ack: 1001, Window: 10000}, pass, TCPFinReply},
			{0, Segment{Flags: F | A, Seq: 1001, Ack: 5002, Window: 10000}, pass, TCPClosing},
			{1, Segment{Flags: A, Seq: 5002, Ack: 1002, Window: 10000}, pass, TCPTimeWait},
			{0, Segment{Flags: S, Seq: 900, Window: 500, Scale: 3}, pass, TCPReuse},
			{1, Segment{Flags: A, Seq: 5002, Ack: 1002, Window: 10000}, pass, TCPReuse}, // the challenge
			{1, Segment{Flags: S | A, Seq: 70000, Ack: 901, Window: 500, Scale: 7}, pass, TCPSynRecv},
			{0, Segment{Flags: A, Seq: 901, Ack: 70001, Window: 500}, pass, est},
			{1, Segment{Flags: A, Seq: 70001, Ack: 901, Payload: 1400}, pass, est}},
		"used again by a lower number before all is acknowledged": {{1, Segment{Flags: F | A, Seq: 5001, Ack: 1001, Window: 10000}, pass, TCPFinReply},
			{0, Segment{Flags: F | A, Seq: 1001, Ack: 5002, Window: 10000}, pass, TCPClosing},
			{0, Segment{Flags: S, Seq: 900, Window: 500, Scale: -1}, pass, TCPReuse},
			{1, Segment{Flags: S | A, Seq: 5000, Ack: 1001, Window: 500, Scale: 7}, pass, TCPReuse}, // a late copy
			{1, Segment{Flags: S | A, Seq: 70000, Ack: 901, Window: 500, Scale: -1}, pass, TCPSynRecv}},
		"used again by a lower number, and refused": {{0, Segment{Flags: F | A, Seq: 1001, Ack: 5001, Window: 10000}, pass, TCPFinOrig},
			{1, Segment{Flags: F | A, Seq: 5001, Ack: 1002, Window: 10000}, pass, TCPClosing},
			{0, Segment{Flags: S, Seq: 900, Window: 500, Scale: 3}, pass, TCPReuse},
			{1, Segment{Flags: R | A, Ack: 901}, pass, TCPReuse},
			{1, Segment{Flags: R, Seq: 4000000}, out, TCPReuse},
			{0, Segment{Flags: S, Seq: 90000, Window: 500, Scale: 3}, pass, TCPSynSent}},
		"a late copy of the SYN when all is over": {{0, Segment{Flags: F | A, Seq: 1001, Ack: 5001, Window: 10000}, pass, TCPFinOrig},
			{1, Segment{Flags: F | A, Seq: 5001, Ack: 1001, Window: 10000}, pass, TCPClosing},
			{0, Segment{Flags: S, Seq: 1000, Window: 10000, Scale: -1}, pass, TCPReuse},
			{1, Segment{Flags: F | A, Seq: 5001, Ack: 1002, Window: 10000}, pass, TCPReuse},
			{0, Segment{Flags: A, Seq: 1002, Ack: 5002, Window: 10000}, pass, TCPTimeWait},
			{0, Segment{Flags: S, Seq: 1000, Window: 10000, Scale: -1}, pass, TCPReuse},
			{0, Segment{Flags: R, Seq: 1002}, pass, TCPClosed}},
		"client restarted, server refuses": {{0, Segment{Flags: S, Seq: 999999, Scale: 5}, pass, TCPResync}, {1, Segment{Flags: R | A, Ack: 1000000}, pass, TCPReset}},
		"forged SYN":                       {{0, Segment{Flags: S, Seq: 999999, Scale: 5}, pass, TCPResync}, {0, Segment{Flags: A, Seq: 1001, Ack: 5001}, pass, est}},
		"SYN/ACK without a SYN":            {{1, Segment{Flags: S | A, Seq: 777777, Ack: 1000000, Scale: 6}, pass, est}, {1, Segment{Flags: A, Seq: 777778, Ack: 1000000}, out, est}},
		"RST before what was acknowledged": {{1, Segment{Flags: A, Seq: 5001, Ack: 1001, Window: 10000, Payload: 100}, pass, est}, {0, Segment{Flags: A, Seq: 1001, Ack: 5101, Window: 10000}, pass, est},
			{1, Segment{Flags: R, Seq: 5100}, out, est}, {1, Segment{Flags: R | A, Seq: 5001, Ack: 1001}, out, est}, {1, Segment{Flags: R, Seq: 5101}, pass, TCPClosed}},
		"RST before what is under way": {{1, Segment{Flags: A, Seq: 5001, Ack: 1001, Window: 10000, Payload: 100}, pass, est}, {0, Segment{Flags: A, Seq: 1001, Ack: 5051, Window: 10000}, pass, est},
			{1, Segment{Flags: R, Seq: 5051}, pass, TCPReset}, {0, Segment{Flags: A, Seq: 1001, Ack: 5101, Window: 10000}, pass, est}},
		"RST out of the window": {{1, Segment{Flags: R, Seq: 15003}, out, est}, {0, Segment{Flags: R, Seq: wrap - 298999}, out, est}},
	} {
		t.Run(name, func(t *testing.T) {
			s := opened(t)
			for i, st := range steps {
				before := *s
				if got := Track(s, st.dir, &st.g); got != st.want || s.State != st.state {
					t.Fatalf("step %d: %v and %s, want %v and %s", i, got, TCPStateText(s.State), st.want, TCPStateText(st.state))
				}
				if st.want != pass && *s != before {
					t.Fatalf("step %d: refused, and it moved %+v to %+v", i, before, *s)
				}
			}
		})
	}
}

func TestOpening(t *testing.T) {
	begun := func() *Session {
		s := &Session{Proto: flow.TCP}
		First(s, &Segment{Flags: tcpSYN, Seq: 1000, Window: 64000, Scale: 7, Payload: 100}) // RFC 7413: data on the SYN
		return s
	}
	for name, c := range map[string]struct {
		dir   int
		g     Segment
		want  verdict.Reason
		state uint8
	}{
		"accepted":                    {1, Segment{Flags: tcpSYN | tcpACK, Seq: 1, Ack: 1001, Scale: -1}, verdict.Pass, TCPSynRecv},
		"accepted with the data":      {1, Segment{Flags: tcpSYN | tcpACK, Seq: 1, Ack: 1101, Scale: -1}, verdict.Pass, TCPSynRecv},
		"answer to another SYN":       {1, Segment{Flags: tcpSYN | tcpACK, Seq: 1, Ack: 1102, Scale: -1}, verdict.Pass, TCPSynSent},
		"half-open server":            {1, Segment{Flags: tcpACK, Seq: 77, Ack: 88}, verdict.Pass, TCPSynSent},
		"reset of that":               {0, Segment{Flags: tcpRST, Seq: 88}, verdict.Pass, TCPSynSent},
		"refused":                     {1, Segment{Flags: tcpRST | tcpACK, Ack: 1001}, verdict.Pass, TCPClosed},
		"forged refusal":              {1, Segment{Flags: tcpRST | tcpACK, Ack: 1102}, verdict.TCPOutOfWindow, TCPSynSent},
		"refusal without ACK":         {1, Segment{Flags: tcpRST, Seq: 1001}, verdict.TCPOutOfWindow, TCPSynSent},
		"simultaneous":                {1, Segment{Flags: tcpSYN, Seq: 9, Scale: -1}, verdict.Pass, TCPSimOpen},
		"data before any answer":      {0, Segment{Flags: tcpACK, Seq: 1001, Payload: 1}, verdict.TCPInvalidFlags, TCPSynSent},
		"SYN again with a new number": {0, Segment{Flags: tcpSYN, Seq: 5, Scale: -1}, verdict.Pass, TCPSynSent},
	} {
		s := begun()
		if got := Track(s, c.dir, &c.g); got != c.want || s.State != c.state {
			t.Errorf("%s: %v and %s, want %v and %s", name, got, TCPStateText(s.State), c.want, TCPStateText(c.state))
		}
	}
}

// A SYN that comes again behind the SYN/ACK moves nothing, whatever of its data it still has (RFC 7413); one with another number starts afresh.
func TestSYNAgainBehindItsAnswer(t *testing.T) {
	const S, A, F = tcpSYN, tcpACK, tcpFIN
	for name, c := range map[string]struct {
		data, taken uint16 // on the SYN, and acknowledged
		early       []Segment
		again       Segment
		next        uint8
	}{
		"without data":                  {0, 0, nil, Segment{Seq: 1000}, TCPSynRecv},
		"with the same data":            {100, 100, nil, Segment{Seq: 1000, Payload: 100}, TCPSynRecv},
		"without its data":              {100, 100, nil, Segment{Seq: 1000}, TCPSynRecv},
		"without what was not taken":    {1400, 0, nil, Segment{Seq: 1000}, TCPSynRecv},
		"with a part of its data":       {1400, 1400, nil, Segment{Seq: 1000, Payload: 500}, TCPSynRecv},
		"with data, late":               {0, 0, nil, Segment{Seq: 1000, Payload: 100}, TCPSynRecv},
		"behind data of the server":     {100, 100, []Segment{{Flags: A, Seq: 5001, Ack: 1101, Window: 100, Payload: 1400}}, Segment{Seq: 1000}, TCPSynRecv},
		"behind all that it has to say": {100, 100, []Segment{{Flags: A, Seq: 5001, Ack: 1101, Window: 100, Payload: 1400}, {Flags: F | A, Seq: 6401, Ack: 1101, Window: 100}}, Segment{Seq: 1000}, TCPFinReply},
		"with a new number":             {100, 100, nil, Segment{Seq: 70000}, TCPSynSent},
		"with a new one that is lower":  {100, 100, nil, Segment{Seq: 1<<32 - 69000}, TCPSynSent},
	} {
		s := &Session{Proto: flow.TCP}
		First(s, &Segment{Flags: S, Seq: 1000, Window: 64000, Scale: 7, Payload: c.data})
		for _, g := range append([]Segment{{Flags: S | A, Seq: 5000, Ack: 1001 + uint32(c.taken), Window: 10000, Scale: 7}}, c.early...) {
			if r := Track(s, 1, &g); r != verdict.Pass {
				t.Fatalf("%s: %+v: %v", name, g, r)
			}
		}
		before := *s
		c.again.Flags, c.again.Window, c.again.Scale = S, 64000, 7
		if r := Track(s, 0, &c.again); r != verdict.Pass || s.State != c.next || c.next != TCPSynSent && *s != before {
			t.Errorf("%s: %v, moved %+v to %+v", name, r, before, *s)
		}
		if c.next == TCPSynSent {
			continue
		}
		if r := Track(s, 1, &Segment{Flags: S | A, Seq: 5000, Ack: 1001 + uint32(c.taken), Window: 10000, Scale: 7}); r != verdict.Pass || *s != before {
			t.Errorf("%s: the SYN/ACK again: %v, moved %+v to %+v", name, r, before, *s)
		}
		if r := Track(s, 0, &Segment{Flags: A, Seq: 1001 + uint32(c.taken), Ack: before.TCPEnd[1], Window: 500, Payload: 100}); r != verdict.Pass {
			t.Errorf("%s: the third step: %v in %s", name, r, TCPStateText(s.State))
		}
		if r := Track(s, 1, &Segment{Flags: A, Seq: before.TCPEnd[1], Ack: 1101 + uint32(c.taken), Window: 500}); r != verdict.Pass {
			t.Errorf("%s: its acknowledgement: %v in %s", name, r, TCPStateText(s.State))
		}
	}
}

// Without a SYN of the client since its last segment, no SYN/ACK moves anything in a session that has begun, whatever its numbers.
func TestSYNACKAloneMovesNothing(t *testing.T) {
	rng := seeded(t)
	for state := TCPEstablished; state < numTCPStates; state++ {
		if state == TCPResync || state == TCPReuse {
			continue
		}
		for range 1000 {
			s := opened(t)
			s.State = state
			s.Scale[0] |= uint8(rng.IntN(4)) << 5 // finAcked, allAcked
			before := *s
			if r := Track(s, 1, &Segment{Flags: tcpSYN | tcpACK, Seq: rng.Uint32(), Ack: rng.Uint32(), Window: uint16(rng.Uint32()), Scale: int8(rng.IntN(16) - 1)}); r != verdict.Pass || *s != before {
				t.Fatalf("%s: %v, moved %+v to %+v", TCPStateText(state), r, before, *s)
			}
		}
	}
}

func TestReopens(t *testing.T) {
	syn := Segment{Flags: tcpSYN, Seq: 2_000_000, Scale: -1}
	old := Segment{Flags: tcpSYN, Seq: 900, Scale: -1}
	for state := range numTCPStates {
		for dir := range 2 {
			s := opened(t)
			s.State = state
			want := state == TCPClosed || state == TCPTimeWait || state == TCPClosing || state == TCPReuse
			if got := Reopens(s, dir, &syn); got != want {
				t.Errorf("%s, direction %d: %v, want %v", TCPStateText(state), dir, got, want)
			}
			if Reopens(s, dir, &Segment{Flags: tcpSYN | tcpACK, Seq: 2_000_000}) {
				t.Errorf("%s: a SYN/ACK opens", TCPStateText(state))
			}
		}
	}
	s := opened(t)
	s.State = TCPTimeWait
	if Reopens(s, 0, &old) {
		t.Error("a late copy of the old SYN opens")
	}
}

// Arbitrary segments never panic, and what is refused moves nothing.
func FuzzTrack(f *testing.F) {
	f.Add(uint64(1), []byte{2, 0x12, 0x10, 0x18, 0x11, 4})
	f.Fuzz(func(t *testing.T, seed uint64, in []byte) {
		rng := rand.New(rand.NewPCG(seed, 1))
		s := &Session{Proto: flow.TCP, State: uint8(seed)}
		for _, b := range in[:min(len(in), 200)] {
			g := Segment{Flags: b, Seq: s.TCPEnd[b>>7] + uint32(rng.IntN(200)) - 100, Ack: s.TCPEnd[1-b>>7] - uint32(rng.IntN(100)), Window: uint16(rng.Uint32()), Payload: uint16(rng.Uint32()), Scale: int8(rng.IntN(256) - 128)}
			if rng.IntN(4) == 0 {
				g.Seq = rng.Uint32()
			}
			before := *s
			r := Track(s, int(b>>7), &g)
			if r != verdict.Pass && *s != before {
				t.Fatalf("%+v refused by %v and moved %+v to %+v", g, r, before, *s)
			}
			if r == verdict.Unset || r == verdict.Pass && s.State >= numTCPStates {
				t.Fatalf("%+v: %v, state %d", g, r, s.State)
			}
		}
	})
}
