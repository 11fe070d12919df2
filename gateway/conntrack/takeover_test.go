package conntrack

import (
	"math/rand/v2"
	"testing"

	"demarc/gateway/flow"
	"demarc/gateway/verdict"
)

// conversation is two endpoints that talk through Track until the node dies that does so, and then through another's copy of the session, which is somewhat older.
type conversation struct {
	rng     *rand.Rand
	ends    [2]*endpoint
	s       *Session
	kept    []Session // what the copy may be: by the turn in which it was told
	started bool
	air     []inAir
	forge   func(dir int) *Segment // of somebody who sends under one end's name and reads nothing; nil = nobody
	victim  int                    // whose name that is
	now     int
	refused int // segments of the two, after the takeover
	late    int // and in which turn the last one
}

type inAir struct {
	at, dir int
	g       Segment
	passed  bool
}

// run goes on for so many turns at most, through the box if up. It reports whether both ends have finished.
func (c *conversation) run(turns int, up bool, loss int) bool {
	for range turns {
		c.now++
		for d, e := range c.ends {
			e.tick()
			for _, g := range e.out {
				if c.rng.IntN(100) >= loss {
					c.air = append(c.air, inAir{c.now + 1 + c.rng.IntN(8), d, g, false})
				}
			}
			e.out = e.out[:0]
		}
		if c.forge != nil && up && c.s.Scale[1]&learning != 0 {
			_ = Track(c.s, c.victim, c.forge(c.victim)) // what the victim's peer makes of it is its own matter
		}
		var later []inAir
		for _, f := range c.air {
			switch {
			case f.at > c.now:
				later = append(later, f)
			case f.passed:
				c.ends[1-f.dir].receive(&f.g)
			case !up:
			case !c.started:
				if f.dir == 0 && First(c.s, &f.g) == verdict.Pass {
					c.started = true
					later = append(later, inAir{c.now + 1 + c.rng.IntN(8), f.dir, f.g, true})
				}
			case Track(c.s, f.dir, &f.g) == verdict.Pass:
				later = append(later, inAir{c.now + 1 + c.rng.IntN(8), f.dir, f.g, true})
			default:
				c.refused, c.late = c.refused+1, c.now
			}
		}
		c.air = later
		if up && c.started {
			c.kept = append(c.kept, *c.s)
		}
		if c.ends[0].done() && c.ends[1].done() {
			return true
		}
	}
	return false
}

// takeOver has another node follow the session, by what it was told so many turns ago.
func (c *conversation) takeOver(lag int) {
	old := c.kept[max(0, len(c.kept)-1-lag)]
	old.Bytes = [2]uint64{}
	c.s, c.refused = &old, 0
	TakeOver(c.s)
	kept := c.air[:0]
	for _, f := range c.air { // what was before the node is lost with it, what has passed is on its way
		if f.passed {
			kept = append(kept, f)
		}
	}
	c.air = kept
}

func newConversation(rng *rand.Rand) *conversation {
	c := &conversation{rng: rng, ends: [2]*endpoint{newEndpoint(rng, 0), newEndpoint(rng, 1)}, s: &Session{Proto: flow.TCP}}
	c.ends[0].state = 1
	for _, e := range c.ends {
		e.want = 20_000 + rng.IntN(400_000)
		e.finAt = e.iss + 1 + uint32(e.want)
		e.abort = false
		if e.offer < 0 {
			e.buf = min(e.buf, 60_000)
		}
	}
	return c
}

// Whatever a node has been told last, and however many segments were lost in between, a conversation goes on through it and comes to its end; also where somebody who is not on the path sends
// under the name of one end from the first moment on.
func TestConversationsGoOnAfterATakeover(t *testing.T) {
	rng := seeded(t)
	states, far, forged, stalled := [numTCPStates]int{}, 0, 0, 0
	met := func() bool {
		return far >= 3 && forged >= 12 && states[TCPEstablished] >= 12 && states[TCPFinOrig]+states[TCPFinReply] >= 3
	}
	const least, most = 100, 2000
	run := 0
	for ; run < most && (run < least || !met()); run++ {
		c := newConversation(rng)
		if c.run(8+rng.IntN(1+run%least*8), true, rng.IntN(3)) || !c.started {
			continue // over before anything was taken over, or not begun
		}
		c.run(rng.IntN(100), false, 0)
		lag := rng.IntN(1 + rng.IntN(run%least*8+1))
		told, was := c.kept[max(0, len(c.kept)-1-lag)], *c.s
		if told.State < TCPEstablished && lag > 3 {
			continue // younger than a standby may be late
		}
		c.takeOver(lag)
		states[c.s.State]++
		if d := was.TCPEnd[0] - told.TCPEnd[0]; d > 100_000 || was.TCPEnd[1]-told.TCPEnd[1] > 100_000 {
			far++
		}
		if rng.IntN(2) == 0 {
			forged++
			c.victim = rng.IntN(2)
			c.forge = func(int) *Segment {
				return &Segment{Flags: []uint8{tcpACK, tcpACK, tcpFIN | tcpACK, tcpRST, tcpRST | tcpACK}[rng.IntN(5)], Seq: rng.Uint32(), Ack: rng.Uint32(), Window: uint16(rng.Uint32()),
					Payload: uint16(rng.IntN(1400)), Scale: -1}
			}
		}
		if !c.run(6_000, true, rng.IntN(3)) {
			if c.refused == 0 || c.late < c.now-1000 {
				stalled++ // the model by itself: what came early fills what it keeps
				continue
			}
			t.Fatalf("run %d: from %s, %d turns old, forged as %d (%v): nothing goes on: %d segments refused\nsession now %+v\nas told %+v\nas it was %+v\norig %+v\nreply %+v", run, TCPStateText(told.State), lag, c.victim, c.forge != nil, c.refused,
				*c.s, told, was, *c.ends[0], *c.ends[1])
		}
		if c.s.State == TCPClosed || c.s.State == TCPReset && c.forge == nil {
			t.Fatalf("run %d: nobody has reset it, and it is %s", run, TCPStateText(c.s.State))
		}
	}
	t.Logf("%d runs: %d more than 100,000 bytes late, %d with forged segments, by state %v; %d stalled", run, far, forged, states, stalled)
	if !met() || stalled*6 > run { // 1 in 25 does
		t.Error("too little was met")
	}
}

// What is accepted of the first segments after a takeover, segment by segment. Both windows are 10,000 and not scaled: a direction's numbers reach 196,605 back.
func TestFirstSegmentsAfterATakeover(t *testing.T) {
	const (
		S, A, F, R = tcpSYN, tcpACK, tcpFIN, tcpRST
		pass, out  = verdict.Pass, verdict.TCPOutOfWindow
		est        = TCPEstablished
		far        = 1 << 30 // numbers that the other node had not told
	)
	type step struct {
		dir  int
		seg  Segment
		want verdict.Reason
		then uint8
	}
	for name, steps := range map[string][]step{
		"nothing was sent since":                {{0, Segment{Flags: A, Seq: 1001, Ack: 5001, Window: 10000, Payload: 100}, pass, est}, {1, Segment{Flags: A, Seq: 5001, Ack: 1101, Window: 10000}, pass, est}, {0, Segment{Flags: A, Seq: far, Ack: 5001, Window: 10000}, out, est}},
		"a keep-alive, and its answer":          {{1, Segment{Flags: A, Seq: 5000, Ack: 1001, Window: 10000}, pass, est}, {0, Segment{Flags: A, Seq: 1001, Ack: 5001, Window: 10000}, pass, est}, {1, Segment{Flags: A, Seq: far, Ack: 1001, Window: 10000}, out, est}},
		"far, then strict":                      {{1, Segment{Flags: A, Seq: far, Ack: 1001, Window: 10000, Payload: 1000}, pass, est}, {0, Segment{Flags: A, Seq: 1001, Ack: far + 1000, Window: 10000}, pass, est}, {0, Segment{Flags: A, Seq: 1001, Ack: 5001, Window: 10000}, out, est}, {1, Segment{Flags: A, Seq: 5001, Ack: 1001, Window: 10000}, out, est}, {1, Segment{Flags: A, Seq: far + 1000, Ack: 1001, Window: 10000, Payload: 1000}, pass, est}},
		"both directions cross":                 {{0, Segment{Flags: A, Seq: far, Ack: 2 * far, Window: 10000, Payload: 1000}, pass, est}, {1, Segment{Flags: A, Seq: 2*far + 500, Ack: far - 3000, Window: 10000, Payload: 1000}, pass, est}, {0, Segment{Flags: A, Seq: 1001, Ack: 5001, Window: 10000}, out, est}},
		"a repetition that fills a gap":         {{0, Segment{Flags: A, Seq: far, Ack: 5001, Window: 10000, Payload: 1000}, pass, est}, {1, Segment{Flags: A, Seq: 5001, Ack: far + 2000, Window: 10000}, pass, est}, {0, Segment{Flags: A, Seq: far + 2000, Ack: 5001, Window: 10000, Payload: 1000}, pass, est}, {1, Segment{Flags: A, Seq: 5001, Ack: far + 9000, Window: 10000}, pass, est}, {1, Segment{Flags: A, Seq: 5001, Ack: far + 300000, Window: 10000}, out, est}},
		"a repetition that fits fills a gap":    {{1, Segment{Flags: A, Seq: 5001, Ack: 1001, Window: 10000, Payload: 1000}, pass, est}, {0, Segment{Flags: A, Seq: 1001, Ack: 45001, Window: 10000}, pass, est}, {1, Segment{Flags: A, Seq: 45001, Ack: 1001, Window: 10000, Payload: 1000}, pass, est}},
		"RST off the path":                      {{1, Segment{Flags: R, Seq: 5002}, pass, est}, {1, Segment{Flags: R | A, Seq: 7777, Ack: 1001}, pass, est}, {1, Segment{Flags: R, Seq: far}, pass, est}, {0, Segment{Flags: A, Seq: 1001, Ack: 5001, Window: 10000}, pass, est}, {1, Segment{Flags: R, Seq: 9999}, pass, est}},
		"RST off the path with numbers put in":  {{1, Segment{Flags: A, Seq: far, Ack: far, Window: 10000, Payload: 1}, pass, est}, {1, Segment{Flags: R, Seq: far + 1}, pass, est}, {0, Segment{Flags: A, Seq: 1001, Ack: 5001, Window: 10000, Payload: 100}, pass, est}, {1, Segment{Flags: R, Seq: far + 1}, pass, est}, {1, Segment{Flags: A, Seq: 5001, Ack: 1101, Window: 10000}, pass, est}, {1, Segment{Flags: R, Seq: far + 1}, out, est}},
		"RST at its place":                      {{1, Segment{Flags: R, Seq: 5001}, pass, TCPClosed}},
		"FIN off the path":                      {{1, Segment{Flags: F | A, Seq: far, Ack: far}, pass, est}, {0, Segment{Flags: A, Seq: 1001, Ack: 5001, Window: 10000}, pass, est}, {1, Segment{Flags: A, Seq: 5001, Ack: 1001, Window: 10000}, pass, est}},
		"closes at once":                        {{0, Segment{Flags: F | A, Seq: 1001, Ack: 5001, Window: 10000}, pass, TCPFinOrig}, {1, Segment{Flags: F | A, Seq: 5001, Ack: 1002, Window: 10000}, pass, TCPClosing}, {0, Segment{Flags: A, Seq: 1002, Ack: 5002, Window: 10000}, pass, TCPTimeWait}},
		"data, then FIN, of one end":            {{0, Segment{Flags: A, Seq: 1001, Ack: 5001, Window: 10000, Payload: 100}, pass, est}, {0, Segment{Flags: F | A, Seq: 1101, Ack: 5001, Window: 10000}, pass, TCPFinOrig}},
		"SYN of a client that has started anew": {{0, Segment{Flags: S, Seq: far, Scale: 5}, pass, TCPResync}, {1, Segment{Flags: A, Seq: 5001, Ack: 1001, Window: 10000}, pass, TCPResync}, {0, Segment{Flags: R, Seq: 1001}, pass, TCPClosed}},
	} {
		s := opened(t)
		TakeOver(s)
		for i, x := range steps {
			if r := Track(s, x.dir, &x.seg); r != x.want || s.State != x.then {
				t.Fatalf("%s: step %d: %v, now %s; want %v, %s", name, i+1, r, TCPStateText(s.State), x.want, TCPStateText(x.then))
			}
		}
	}

	// Half closed: the client has sent its FIN, the server goes on for gigabytes.
	half := opened(t)
	_ = Track(half, 0, &Segment{Flags: F | A, Seq: 1001, Ack: 5001, Window: 10000})
	TakeOver(half)
	for i, x := range []step{{1, Segment{Flags: A, Seq: far, Ack: 1002, Window: 10000, Payload: 1000}, pass, TCPFinOrig}, {0, Segment{Flags: A, Seq: 1002, Ack: far + 1000, Window: 10000}, pass, TCPFinOrig},
		{1, Segment{Flags: F | A, Seq: far + 1000, Ack: 1002, Window: 10000}, pass, TCPClosing}, {0, Segment{Flags: A, Seq: 1002, Ack: far + 1001, Window: 10000}, pass, TCPTimeWait}} {
		if r := Track(half, x.dir, &x.seg); r != x.want || half.State != x.then {
			t.Fatalf("half closed: step %d: %v, now %s; want %v, %s", i+1, r, TCPStateText(half.State), x.want, TCPStateText(x.then))
		}
	}
}

// A copy of a session that was only asked for: whatever has happened since, it goes on.
func TestTakeoverInTheHandshake(t *testing.T) {
	const S, A = tcpSYN, tcpACK
	begun := func() *Session {
		s := &Session{Proto: flow.TCP}
		if r := First(s, &Segment{Flags: S, Seq: 1000, Window: 64000, Scale: 7}); r != verdict.Pass {
			t.Fatal(r)
		}
		TakeOver(s)
		return s
	}
	for name, segs := range map[string][]struct {
		dir int
		seg Segment
	}{
		"the SYN comes again":              {{0, Segment{Flags: S, Seq: 1000, Window: 64000, Scale: 7}}, {1, Segment{Flags: S | A, Seq: 5000, Ack: 1001, Window: 64000, Scale: 7}}, {0, Segment{Flags: A, Seq: 1001, Ack: 5001, Window: 500}}},
		"the answer comes":                 {{1, Segment{Flags: S | A, Seq: 5000, Ack: 1001, Window: 64000, Scale: 7}}, {0, Segment{Flags: A, Seq: 1001, Ack: 5001, Window: 500}}},
		"the answer had gone":              {{0, Segment{Flags: A, Seq: 1001, Ack: 5001, Window: 500}}, {1, Segment{Flags: A, Seq: 5001, Ack: 1001, Window: 500, Payload: 1400}}, {0, Segment{Flags: A, Seq: 1001, Ack: 6401, Window: 500}}},
		"the answer had gone, and data":    {{1, Segment{Flags: A, Seq: 90000, Ack: 3001, Window: 500, Payload: 1400}}, {0, Segment{Flags: A, Seq: 3001, Ack: 91400, Window: 500}}, {1, Segment{Flags: A, Seq: 91400, Ack: 3001, Window: 500, Payload: 1400}}, {0, Segment{Flags: A, Seq: 3001, Ack: 92800, Window: 500}}},
		"a new attempt under a new number": {{0, Segment{Flags: S, Seq: 777777, Window: 64000, Scale: -1}}, {1, Segment{Flags: S | A, Seq: 5000, Ack: 777778, Window: 64000, Scale: -1}}, {0, Segment{Flags: A, Seq: 777778, Ack: 5001, Window: 500}}},
	} {
		s := begun()
		for i, x := range segs {
			if r := Track(s, x.dir, &x.seg); r != verdict.Pass {
				t.Errorf("%s: step %d: %v in %s", name, i+1, r, TCPStateText(s.State))
			}
		}
		if s.State != TCPEstablished {
			t.Errorf("%s: it is %s in the end", name, TCPStateText(s.State))
		}
		if r := Track(s, 1, &Segment{Flags: A, Seq: 3 << 30, Ack: 1001}); r != verdict.TCPOutOfWindow {
			t.Errorf("%s: then something from far off: %v", name, r)
		}
	}
	s := begun() // what is of no such SYN is nobody's
	if r := Track(s, 0, &Segment{Flags: A, Seq: 1 << 30, Ack: 5001, Window: 500}); r != verdict.TCPOutOfWindow || s.State != TCPSynSent {
		t.Errorf("of another SYN: %v, %s", r, TCPStateText(s.State))
	}
	if r := Track(s, 1, &Segment{Flags: tcpRST | A, Seq: 0, Ack: 999}); r != verdict.Pass || s.State != TCPSynSent {
		t.Errorf("RST that refuses another SYN: %v, %s", r, TCPStateText(s.State))
	}
	if r := Track(s, 1, &Segment{Flags: tcpRST | A, Seq: 0, Ack: 1001}); r != verdict.Pass || s.State != TCPClosed {
		t.Errorf("RST that refuses this SYN: %v, %s", r, TCPStateText(s.State))
	}
}
