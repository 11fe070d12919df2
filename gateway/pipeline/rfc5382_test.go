package pipeline

import (
	"fmt"
	"maps"
	"slices"
	"testing"
	"time"

	"demarc/gateway/verdict"
)

// RFC 5382, NAT Behavioral Requirements for TCP. Windows and numbers in detail are conntrack's tests.

func TestRFC5382Req1EndpointIndependentMapping(t *testing.T) {
	w := rfcWorld(t)
	p := w.open(hostA, 4000, far, 80)
	for i := range 10 {
		src := fmt.Sprintf("198.18.10.%d", 20+i)
		q := w.open(src, 4000, far, 80)
		if q == p {
			t.Fatal("one public port of two hosts")
		}
		if again := w.open(src, 4000, far2, uint16(81+i)); again != q {
			t.Fatalf("%s:4000 is %d and %d", src, q, again)
		}
	}
	if again := w.open(hostA, 4000, far2, 443); again != p {
		t.Fatalf("%d and %d", p, again)
	}
}

// exchange is segments in either direction of one connection, from the SYN on: all must pass.
type exchange []struct {
	dir      int // 0 from who begins
	flags    string
	seq, ack uint32
}

var exchanges = map[string]exchange{
	"handshake, data, close": {{0, "S", 1000, 0}, {1, "SA", 5000, 1001}, {0, "A", 1001, 5001}, {0, "PA", 1001, 5001}, {1, "A", 5001, 1001}, {0, "FA", 1001, 5001}, {1, "A", 5001, 1002},
		{1, "FA", 5001, 1002}, {0, "A", 1002, 5002}},
	"SYN lost and repeated":                   {{0, "S", 1000, 0}, {0, "S", 1000, 0}, {1, "SA", 5000, 1001}, {0, "A", 1001, 5001}},
	"SYN again with another number":           {{0, "S", 1000, 0}, {0, "S", 777000, 0}, {1, "SA", 5000, 777001}, {0, "A", 777001, 5001}, {1, "A", 5001, 777001}},
	"SYN/ACK lost":                            {{0, "S", 1000, 0}, {1, "SA", 5000, 1001}, {0, "S", 1000, 0}, {1, "SA", 5000, 1001}, {0, "A", 1001, 5001}, {1, "PA", 5001, 1001}},
	"third step lost":                         {{0, "S", 1000, 0}, {1, "SA", 5000, 1001}, {0, "A", 1001, 5001}, {1, "SA", 5000, 1001}, {0, "A", 1001, 5001}, {1, "A", 5001, 1001}},
	"SYN/ACK repeated by a SYN cookie":        {{0, "S", 1000, 0}, {1, "SA", 5000, 1001}, {1, "SA", 900000, 1001}, {0, "A", 1001, 900001}, {1, "A", 900001, 1001}},
	"simultaneous open":                       {{0, "S", 1000, 0}, {1, "S", 5000, 0}, {0, "SA", 1000, 5001}, {1, "SA", 5000, 1001}, {0, "A", 1001, 5001}, {1, "A", 5001, 1001}},
	"simultaneous open, acknowledged at once": {{0, "S", 1000, 0}, {1, "S", 5000, 0}, {0, "A", 1001, 5001}, {1, "A", 5001, 1001}},
	"half close, the other goes on": {{0, "S", 1000, 0}, {1, "SA", 5000, 1001}, {0, "A", 1001, 5001}, {0, "FA", 1001, 5001}, {1, "A", 5001, 1002}, {1, "PA", 5001, 1002}, {0, "A", 1002, 5001},
		{1, "FA", 5001, 1002}, {0, "A", 1002, 5002}},
	"closed by who answered": {{0, "S", 1000, 0}, {1, "SA", 5000, 1001}, {0, "A", 1001, 5001}, {1, "FA", 5001, 1001}, {0, "A", 1001, 5002}, {0, "PA", 1001, 5002}, {0, "FA", 1001, 5002}, {1, "A", 5002, 1002}},
	"closed by both at once": {{0, "S", 1000, 0}, {1, "SA", 5000, 1001}, {0, "A", 1001, 5001}, {0, "FA", 1001, 5001}, {1, "FA", 5001, 1001}, {0, "A", 1002, 5002}, {1, "A", 5002, 1002}},
	"last ACK lost":          {{0, "S", 1000, 0}, {1, "SA", 5000, 1001}, {0, "A", 1001, 5001}, {0, "FA", 1001, 5001}, {1, "FA", 5001, 1002}, {1, "FA", 5001, 1002}, {0, "A", 1002, 5002}, {1, "FA", 5001, 1002}, {0, "A", 1002, 5002}},
	"refused":                {{0, "S", 1000, 0}, {1, "RA", 0, 1001}},
	"the old one is half open: SYN, ACK, RST, SYN": {{0, "S", 1000, 0}, {1, "A", 70000, 90000}, {0, "R", 90000, 0}, {0, "S", 1000, 0}, {1, "SA", 5000, 1001}, {0, "A", 1001, 5001}},
	"late copies of the handshake":                 {{0, "S", 1000, 0}, {1, "SA", 5000, 1001}, {0, "A", 1001, 5001}, {0, "S", 1000, 0}, {1, "SA", 5000, 1001}, {1, "A", 5001, 1001}, {0, "A", 1001, 5001}},
	"keep-alive and its answer":                    {{0, "S", 1000, 0}, {1, "SA", 5000, 1001}, {0, "A", 1001, 5001}, {1, "A", 5000, 1001}, {0, "A", 1001, 5001}},
}

// REQ-2, REQ-2a: whoever begins, through a mapping, a forwarded port and a 1:1 address.
func TestRFC5382Req2EverySequence(t *testing.T) {
	for name, x := range exchanges {
		for _, c := range []struct {
			way, inside string
			iport       uint16
			pub         string
			pport       uint16 // 0 = a mapping's
			outward     bool   // the inside begins
		}{
			{"mapping", hostA, 4000, pub, 0, true}, {"1:1 out", hostS, 4000, pubS, 4000, true}, {"forwarded port", server, 80, pub, 8080, false}, {"1:1 in", hostS, 80, pubS, 80, false},
		} {
			w := rfcWorld(t)
			for i, s := range x {
				if (s.dir == 0) == c.outward {
					h := w.from(1, tcp4(t, 1, c.inside, c.iport, far, 443, seg(s.flags, s.seq, s.ack)))
					if h.verdict != verdict.Send {
						t.Fatalf("%s, %s, segment %d: %s (%s)", name, c.way, i, h.verdict, h.reason)
					}
					got := w.sent(h, 0)
					if c.pport == 0 {
						c.pport = got.sport
					}
					if got.src.String() != c.pub || got.sport != c.pport {
						t.Fatalf("%s, %s, segment %d left as %s, want from %s:%d", name, c.way, i, got, c.pub, c.pport)
					}
				} else {
					h := w.inTCP(far, 443, c.pub, c.pport, seg(s.flags, s.seq, s.ack))
					if h.verdict != verdict.Send {
						t.Fatalf("%s, %s, segment %d: %s (%s)", name, c.way, i, h.verdict, h.reason)
					}
					w.reaches(h, c.inside, c.iport)
				}
			}
			if n := w.shards[0].Sessions.Len(); n != 1 {
				t.Errorf("%s, %s: %d sessions", name, c.way, n)
			}
			w.whole()
		}
	}
}

// REQ-2a with REQ-4: the inbound SYN comes first and dies without a word; the outbound one then crosses the next, and both ends open at once.
func TestRFC5382Req2aCrossingSYNs(t *testing.T) {
	w := rfcWorld(t)
	p := w.open(hostA, 4000, far2, 80) // there is a mapping
	w.dropped4(w.inTCP(far, 443, pub, p, seg("S", 5000, 0)), verdict.NATFiltered)
	if q := w.outTCP(hostA, 4000, far, 443, seg("S", 1000, 0)).sport; q != p {
		t.Fatalf("%d and %d", p, q)
	}
	w.reaches(w.inTCP(far, 443, pub, p, seg("S", 5000, 0)), hostA, 4000)
	w.outTCP(hostA, 4000, far, 443, seg("SA", 1000, 5001))
	w.reaches(w.inTCP(far, 443, pub, p, seg("SA", 5000, 1001)), hostA, 4000)
	w.outTCP(hostA, 4000, far, 443, seg("PA", 1001, 5001))
}

// REQ-3: filtering by choice is tested with that of UDP, TestRFC4787Req8FilteringByChoice; a connection that was let in works.
func TestRFC5382Req3FilteringByChoice(t *testing.T) {
	for _, filtering := range []string{ei, ad} {
		w := rfcWorld(t, fmt.Sprintf("filtering = %q", filtering))
		p := w.open(hostA, 4000, far, 80)
		w.reaches(w.inTCP(far, 999, pub, p, seg("S", 9000, 0)), hostA, 4000)
		if x := w.outTCP(hostA, 4000, far, 999, seg("SA", 3000, 9001)); x.sport != p {
			t.Fatalf("%s: answered from port %d, not %d", filtering, x.sport, p)
		}
		w.reaches(w.inTCP(far, 999, pub, p, seg("A", 9001, 3001)), hostA, 4000)
	}
}

// REQ-4 by REQ-4a: nothing answers an unsolicited SYN, not after six seconds and not later: silence to the outside is the policy.
func TestRFC5382Req4UnsolicitedSYN(t *testing.T) {
	w := rfcWorld(t)
	p := w.open(hostA, 4000, far2, 80)
	for _, c := range []struct {
		dst   string
		dport uint16
		why   verdict.Reason
	}{{pub, p, verdict.NATFiltered}, {pub, 9, verdict.NATUnusedAddress}, {pubS, 81, verdict.ACLDefault}} {
		for range 4 {
			w.dropped4(w.inTCP(far, 443, c.dst, c.dport, seg("S", 5000, 0)), c.why)
			w.wait(3 * time.Second)
		}
	}
	if n := w.shards[0].Sessions.Len(); n != 1 {
		t.Fatalf("%d sessions", n)
	}
	// What is dropped leaves nothing that the outbound SYN would meet.
	w.outTCP(hostA, 4000, far, 443, seg("S", 1000, 0))
	w.reaches(w.inTCP(far, 443, pub, p, seg("SA", 5000, 1001)), hostA, 4000)
}

func TestRFC5382Req5IdleTimeouts(t *testing.T) {
	established := 2*time.Hour + 4*time.Minute
	open := exchanges["SYN lost and repeated"]
	for name, c := range map[string]struct {
		x    exchange
		idle time.Duration
	}{
		"SYN sent":               {open[:1], 4 * time.Minute},
		"answered":               {open[:3], 4 * time.Minute},
		"simultaneous":           {exchanges["simultaneous open"][:2], 4 * time.Minute},
		"established":            {open, established},
		"half closed":            {exchanges["half close, the other goes on"][:7], established},
		"half closed, the other": {exchanges["closed by who answered"][:6], established},
		"closing":                {exchanges["closed by both at once"][:5], 4 * time.Minute},
		"last ACK to come":       {exchanges["handshake, data, close"][:8], 4 * time.Minute},
		"TIME_WAIT":              {exchanges["handshake, data, close"], 10 * time.Second},
	} {
		w := rfcWorld(t)
		var p uint16
		for _, s := range c.x {
			if s.dir == 0 {
				p = w.outTCP(hostA, 4000, far, 443, seg(s.flags, s.seq, s.ack)).sport
			} else {
				w.reaches(w.inTCP(far, 443, pub, p, seg(s.flags, s.seq, s.ack)), hostA, 4000)
			}
		}
		w.wait(c.idle - 2*time.Second)
		if n := w.shards[0].Sessions.Len(); n != 1 {
			t.Errorf("%s: ended within %v", name, c.idle-2*time.Second)
		}
		w.wait(10 * time.Second)
		if n := w.shards[0].Sessions.Len(); n != 0 {
			t.Errorf("%s: still there after %v", name, c.idle+8*time.Second)
		}
		w.whole()
	}
}

func TestRFC5382Req7NoPortOverloading(t *testing.T) {
	for _, mode := range []string{ei, ad, apd} {
		w := rfcWorld(t, fmt.Sprintf("mapping = %q", mode))
		owner := map[uint16]string{}
		for h := range 60 {
			src := fmt.Sprintf("198.18.10.%d", 20+h)
			for i := range 3 {
				p := w.outTCP(src, 4000, fmt.Sprintf("203.0.113.%d", 20+(h*7+i)%50), 80, seg("S", 1, 0)).sport
				if who, taken := owner[p]; taken && who != src {
					t.Fatalf("%s: port %d is %s's and %s's", mode, p, who, src)
				}
				owner[p] = src
			}
		}
	}
}

// REQ-8, REQ-8a: to a 1:1 address, a forwarded port and a mapping, to the end of the handshake.
func TestRFC5382Req8Hairpin(t *testing.T) {
	for _, workers := range []int{1, 3} {
		w := newWorld(t, workers, rfcText(t, "filtering = \"endpoint-independent\""))
		dynamic := w.open(hostB, 5000, far, 443)
		mine := w.open(hostA, 4000, far, 443)
		for _, c := range []struct {
			name, dst string
			dport     uint16
			to        string
			tport     uint16
		}{{"1:1", pubS, 80, hostS, 80}, {"forwarded port", pub, 8080, server, 80}, {"mapping", pub, dynamic, hostB, 5000}} {
			x := w.sent(w.from(1, tcp4(t, 1, hostA, 4000, c.dst, c.dport, seg("S", 1000, 0))), 1)
			if x.src.String() != pub || x.sport != mine || x.dst.String() != c.to || x.dport != c.tport {
				t.Fatalf("%s: arrived as %s", c.name, x)
			}
			y := w.sent(w.from(1, tcp4(t, 1, c.to, c.tport, pub, mine, seg("SA", 5000, 1001))), 1)
			if y.src.String() != c.dst || y.sport != c.dport || y.dst.String() != hostA || y.dport != 4000 {
				t.Fatalf("%s: the answer arrived as %s", c.name, y)
			}
			w.reaches(w.from(1, tcp4(t, 1, hostA, 4000, c.dst, c.dport, seg("PA", 1001, 5001))), c.to, c.tport)
		}
		w.whole()
	}
}

func TestRFC5382Req9TranslatesUnreachable(t *testing.T) {
	w := rfcWorld(t)
	h := w.from(1, tcp4(t, 1, hostA, 4000, far, 443, seg("S", 1000, 0)))
	p := w.sent(h, 0).sport
	for code := range uint8(16) {
		q := w.reachesICMP(w.from(0, icmpErr(t, 0, "203.0.113.254", pub, 3, code, 1400, packetOf(h.frame))), 3, code, "203.0.113.254", hostA)
		if q.qsrc.String() != hostA || q.qsport != 4000 || q.qdst.String() != far || q.qport != 443 {
			t.Fatalf("code %d quotes %s:%d > %s:%d, public port %d", code, q.qsrc, q.qsport, q.qdst, q.qport, p)
		}
	}
}

// REQ-10: no ICMP message ends mapping or connection, hard errors about the SYN included.
func TestRFC5382Req10ICMPEndsNothing(t *testing.T) {
	w := rfcWorld(t)
	h := w.from(1, tcp4(t, 1, hostA, 4000, far, 443, seg("S", 1000, 0)))
	p := w.sent(h, 0).sport
	errors := func(quoted []byte) {
		t.Helper()
		w.dropped4(w.from(0, icmpErr(t, 0, far2, pub, 4, 0, 0, quoted)), verdict.ICMPBadInner)
		for _, typ := range []uint8{3, 11, 12} {
			for code := range uint8(16) {
				w.reachesICMP(w.from(0, icmpErr(t, 0, far2, pub, typ, code, 1400, quoted)), typ, code, far2, hostA)
			}
		}
	}
	errors(packetOf(h.frame)[:28])
	w.reaches(w.inTCP(far, 443, pub, p, seg("SA", 5000, 1001)), hostA, 4000)
	h = w.from(1, tcp4(t, 1, hostA, 4000, far, 443, seg("A", 1001, 5001)))
	errors(packetOf(h.frame))
	w.reaches(w.inTCP(far, 443, pub, p, seg("PA", 5001, 1001)), hostA, 4000)
	if q := w.open(hostA, 4000, far2, 443); q != p {
		t.Fatalf("%d and %d", p, q)
	}
	w.wait(2 * time.Hour)
	w.reaches(w.inTCP(far, 443, pub, p, seg("PA", 5001, 1001)), hostA, 4000)
}

// A tuple that was closed, by FIN or RST, or that both ends have forgotten, is used again by either end at once (RFC 9293 section 3.6.1, RFC 6191), through each translation, also by a number that a late copy of the old SYN might have.
func TestTCPTupleIsUsedAgain(t *testing.T) {
	closed := map[string]exchange{
		"FIN":              exchanges["handshake, data, close"],
		"RST":              {{0, "S", 1000, 0}, {1, "SA", 5000, 1001}, {0, "A", 1001, 5001}, {0, "R", 1001, 0}},
		"RST by the other": {{0, "S", 1000, 0}, {1, "SA", 5000, 1001}, {0, "A", 1001, 5001}, {1, "R", 5001, 0}},
		"refused":          exchanges["refused"],
		"last ACK lost":    exchanges["handshake, data, close"][:8],
		"forgotten":        exchanges["handshake, data, close"][:5],
	}
	higher := exchange{{0, "S", 900000, 0}, {1, "SA", 800000, 900001}, {0, "A", 900001, 800001}, {1, "PA", 800001, 900001}}
	lower := exchange{{0, "S", 900, 0}, {1, "SA", 800000, 901}, {0, "A", 901, 800001}, {1, "PA", 800001, 901}}
	for i, name := range slices.Repeat(slices.Sorted(maps.Keys(closed)), 2) {
		x, again := closed[name], higher
		if i >= len(closed) {
			name, again = name+", by a lower number", lower
		}
		for _, inward := range []bool{false, true} {
			w := rfcWorld(t)
			p := uint16(8080)
			run := func(x exchange) {
				t.Helper()
				for i, s := range x {
					if (s.dir == 0) != inward {
						iport := uint16(4000)
						src := hostA
						if inward {
							src, iport = server, 80
						}
						h := w.from(1, tcp4(t, 1, src, iport, far, 443, seg(s.flags, s.seq, s.ack)))
						if h.verdict != verdict.Send {
							t.Fatalf("%s, inward %v, segment %d: %s (%s)", name, inward, i, h.verdict, h.reason)
						}
						if q := w.sent(h, 0).sport; !inward && i == 0 && x[0].seq == 1000 {
							p = q
						} else if q != p {
							t.Fatalf("%s, inward %v, segment %d left from port %d, not %d", name, inward, i, q, p)
						}
					} else {
						h := w.inTCP(far, 443, pub, p, seg(s.flags, s.seq, s.ack))
						if h.verdict != verdict.Send {
							t.Fatalf("%s, inward %v, segment %d: %s (%s)", name, inward, i, h.verdict, h.reason)
						}
					}
				}
			}
			run(x)
			run(again)
			if n := w.shards[0].Sessions.Len(); n != 1 {
				t.Errorf("%s, inward %v: %d sessions", name, inward, n)
			}
			w.whole()
		}
	}
	// The other end may begin the next one where the rules let it: to a 1:1 address.
	w := rfcWorld(t)
	w.outTCP(hostS, 80, far, 443, seg("S", 1000, 0))
	w.reaches(w.inTCP(far, 443, pubS, 80, seg("RA", 0, 1001)), hostS, 80)
	w.reaches(w.inTCP(far, 443, pubS, 80, seg("S", 70000, 0)), hostS, 80)
	w.outTCP(hostS, 80, far, 443, seg("SA", 60000, 70001))
	w.reaches(w.inTCP(far, 443, pubS, 80, seg("A", 70001, 60001)), hostS, 80)
	// And where they do not, its SYN ends nothing that is over: it is dropped.
	w.outTCP(hostA, 4000, far, 443, seg("S", 1000, 0))
	p := w.outTCP(hostA, 4000, far, 443, seg("S", 1000, 0)).sport
	w.reaches(w.inTCP(far, 443, pub, p, seg("RA", 0, 1001)), hostA, 4000)
	n := w.shards[0].Sessions.Len()
	w.dropped4(w.inTCP(far, 443, pub, p, seg("S", 70000, 0)), verdict.NATFiltered)
	if w.shards[0].Sessions.Len() != n {
		t.Fatal("a SYN from outside ended what it may not open")
	}
}

// What lies outside the window, or is forged without knowing the numbers, is dropped and moves nothing; the conversation goes on.
func TestTCPOutOfWindowIsHarmless(t *testing.T) {
	w := rfcWorld(t)
	p := w.open(hostA, 4000, far, 443)
	before := w.shards[0].Sessions.At(0)
	was := [4]uint32{before.TCPEnd[0], before.TCPEnd[1], before.TCPLimit[0], before.TCPLimit[1]}
	for _, c := range []struct {
		flags    string
		seq, ack uint32
	}{{"A", 900000, 1001}, {"PA", 5001, 77777777}, {"R", 4000000, 0}, {"RA", 900000, 1001}, {"FA", 900000, 1001}, {"A", 3000000000, 1001}} {
		w.dropped4(w.inTCP(far, 443, pub, p, seg(c.flags, c.seq, c.ack)), verdict.TCPOutOfWindow)
	}
	for _, flags := range []string{"", "SF", "SR", "FR", "F", "SAFR"} {
		w.dropped4(w.inTCP(far, 443, pub, p, seg(flags, 5001, 1001)), verdict.TCPInvalidFlags)
	}
	if now := [4]uint32{before.TCPEnd[0], before.TCPEnd[1], before.TCPLimit[0], before.TCPLimit[1]}; now != was {
		t.Fatalf("numbers moved from %v to %v", was, now)
	}
	// A SYN, and a RST that lies in the window but not at its place, are the receiver's to answer: neither shortens anything.
	w.reaches(w.inTCP(far, 443, pub, p, seg("S", 123456, 0)), hostA, 4000)
	w.outTCP(hostA, 4000, far, 443, seg("A", 1001, 5001))
	w.reaches(w.inTCP(far, 443, pub, p, seg("R", 5100, 0)), hostA, 4000)
	w.outTCP(hostA, 4000, far, 443, seg("A", 1001, 5001)) // the challenge (RFC 5961 section 3)
	w.wait(2 * time.Hour)
	w.reaches(w.inTCP(far, 443, pub, p, seg("PA", 5001, 1001)), hostA, 4000)
}
