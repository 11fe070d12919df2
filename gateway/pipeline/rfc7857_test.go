package pipeline

import (
	"fmt"
	"testing"
	"time"

	"demarc/gateway/nat"
	"demarc/gateway/verdict"
)

// RFC 7857, updates to RFC 4787, 5382 and 5508. The IP identification (section 10) has its tests beside the fragments.

// Section 2.1: times for opening and for closing can be set apart.
func TestRFC7857Sec2OpeningAndClosingTimers(t *testing.T) {
	for name, c := range map[string]struct {
		x    exchange
		idle time.Duration
	}{
		"opening": {exchanges["SYN lost and repeated"][:3], 30 * time.Second}, "closing": {exchanges["closed by both at once"][:5], 90 * time.Second},
	} {
		w := newWorld(t, 1, "schema = 1\n[timeouts]\ntcp_transitory = \"30s\"\ntcp_closing = \"90s\"\n"+rfcText(t)[len("\nschema = 1\n"):])
		var p uint16
		for _, s := range c.x {
			if s.dir == 0 {
				p = w.outTCP(hostA, 4000, far, 443, seg(s.flags, s.seq, s.ack)).sport
			} else {
				w.reaches(w.inTCP(far, 443, pub, p, seg(s.flags, s.seq, s.ack)), hostA, 4000)
			}
		}
		w.wait(c.idle - 2*time.Second)
		if w.shards[0].Sessions.Len() != 1 {
			t.Errorf("%s: ended early", name)
		}
		w.wait(5 * time.Second)
		if w.shards[0].Sessions.Len() != 0 {
			t.Errorf("%s: still there", name)
		}
	}
}

// Section 2.2: a RST that fits is translated, and what it ends stays for four minutes more; a packet that shows that it was not believed
// takes the connection back.
func TestRFC7857Sec2RSTWaitsFourMinutes(t *testing.T) {
	for _, c := range []struct {
		name    string
		inward  bool
		seq     uint32
		revives bool
	}{{"from inside, in its place", false, 1001, false}, {"from outside, in its place", true, 5001, false}, {"from outside, in the window only", true, 5100, true}} {
		w := rfcWorld(t)
		p := w.open(hostA, 4000, far, 443)
		w.wait(time.Hour)
		rst := func() {
			if c.inward {
				w.reaches(w.inTCP(far, 443, pub, p, seg("R", c.seq, 0)), hostA, 4000)
			} else if x := w.outTCP(hostA, 4000, far, 443, seg("R", c.seq, 0)); x.sport != p {
				t.Fatalf("%s: left from port %d, not %d", c.name, x.sport, p)
			}
		}
		rst()
		w.wait(4*time.Minute - 2*time.Second)
		if w.shards[0].Sessions.Len() != 1 {
			t.Errorf("%s: state was removed within four minutes", c.name)
		}
		w.wait(10 * time.Second)
		if w.shards[0].Sessions.Len() != 0 {
			t.Errorf("%s: state is still there", c.name)
		}
		if !c.revives {
			continue
		}
		p = w.open(hostA, 4000, far, 443)
		rst()
		w.outTCP(hostA, 4000, far, 443, seg("A", 1001, 5001)) // the challenge
		w.wait(2 * time.Hour)
		w.reaches(w.inTCP(far, 443, pub, p, seg("PA", 5001, 1001)), hostA, 4000)
	}
}

// Section 3 allows one public port for several inside ends; here none is shared in any mode: TestRFC4787Req3NoPortOverloading, TestRFC5382Req7NoPortOverloading.

// Section 4: when the host's public address has no port left, its new sessions are dropped; by choice another address is taken.
func TestRFC7857Sec4PairedWhenPortsRunOut(t *testing.T) {
	for pooling, why := range map[string]verdict.Reason{"paired": verdict.NATNoPort, "paired-soft": verdict.Pass, "arbitrary": verdict.Pass} {
		w := bigPoolWorld(t, 1, fmt.Sprintf("pooling = %q", pooling))
		first := w.out(hostA, 4000, far, 53)
		id, _ := w.space.Find(first.src.As4())
		var all [1024]uint64
		for i := range all {
			all[i] = ^uint64(0)
		}
		w.space.SetReserved(id, nat.UDP, &all)
		h := w.from(1, udp4(t, 1, hostA, 4001, far, 53))
		if why != verdict.Pass {
			w.dropped4(h, why)
		} else if x := w.sent(h, 0); x.src == first.src {
			t.Fatalf("%s: left from %s, which has no port", pooling, x)
		}
		// A host that has nothing there yet is served by another address.
		if x := w.out(hostB, 4000, far, 53); x.src == first.src {
			t.Fatalf("%s: left from %s, which has no port", pooling, x)
		}
		w.whole()
	}
}

// Arbitrary pooling spreads the mappings of one host.
func TestRFC7857Sec4ArbitraryPooling(t *testing.T) {
	w := bigPoolWorld(t, 1, "pooling = \"arbitrary\"")
	used := map[string]bool{}
	for i := range 40 {
		used[w.out(hostA, uint16(4000+i), far, 53).src.String()] = true
	}
	if len(used) != 4 {
		t.Fatalf("40 mappings on %v", used)
	}
}

// Sections 5 and 6: mappings and filters are per protocol: one inside port has independent ones for TCP, UDP and ICMP.
func TestRFC7857Sec5And6ProtocolDependent(t *testing.T) {
	for _, filtering := range []string{ei, ad} {
		w := rfcWorld(t, fmt.Sprintf("filtering = %q", filtering))
		u := w.out(hostA, 4000, far, 53).sport
		// Until there is a TCP mapping, nothing comes in by the UDP one's port over TCP, and the other way round.
		w.dropped4(w.inTCP(far, 53, pub, u, seg("S", 1, 0)), verdict.NATUnusedAddress)
		c := w.outTCP(hostA, 4000, far2, 80, seg("S", 1, 0)).sport
		if h := w.in(far2, 80, pub, c); c != u && h.verdict != verdict.Drop {
			t.Fatal("UDP came in by the mapping of TCP")
		}
		if filtering == ad { // far was spoken to over UDP only, far2 over TCP only
			w.dropped4(w.inTCP(far, 999, pub, c, seg("S", 1, 0)), verdict.NATFiltered)
			w.dropped4(w.in(far2, 999, pub, u), verdict.NATFiltered)
		}
		w.reaches(w.in(far, 999, pub, u), hostA, 4000)
		w.reaches(w.inTCP(far2, 999, pub, c, seg("S", 1, 0)), hostA, 4000)
		if got := w.shards[0].NAT.Len(); got != 2 {
			t.Fatalf("%d mappings, want one for each protocol", got)
		}
	}
}

// Section 7: packets that the policy refuses do not refresh the mapping that they came to.
func TestRFC7857Sec7RefusedPacketsDoNotRefresh(t *testing.T) {
	for _, filtering := range []string{ei, ad, apd} {
		w := rfcWorld(t, fmt.Sprintf("filtering = %q", filtering))
		p := w.out(hostA, 4000, far, 5000).sport
		for range 13 {
			w.wait(10 * time.Second)
			if h := w.in("203.0.113.66", 5000, pub, p); h.verdict != verdict.Drop { // denied by a rule
				t.Fatal("a denied address came in")
			}
		}
		w.dropped4(w.in(far, 5000, pub, p), verdict.NATUnusedAddress)
		if n := w.shards[0].NAT.Len(); n != 0 {
			t.Fatalf("%s: the mapping lives on after 130 s of refused packets", filtering)
		}
	}
}

// Section 7.1: ICMP errors and RSTs that leave in answer to what comes in keep nothing alive.
func TestRFC7857Sec7ErrorsDoNotRefresh(t *testing.T) {
	w := rfcWorld(t)
	p := w.out(hostA, 4000, far, 5000).sport
	back := w.in(far, 5000, pub, p)
	w.reaches(back, hostA, 4000)
	for range 31 {
		w.wait(10 * time.Second)
		w.from(1, icmpErr(t, 1, hostA, far, 3, 3, 0, packetOf(back.frame)))
	}
	if n := w.shards[0].Sessions.Len(); n != 0 {
		t.Error("errors from inside kept a UDP mapping alive beyond its five minutes")
	}
	q := w.open(hostA, 4001, far, 443)
	for range 27 {
		if x := w.from(1, tcp4(t, 1, hostA, 4001, far, 443, seg("R", 1001, 0))); x.verdict == verdict.Send && w.sent(x, 0).sport != q {
			t.Fatal("a RST left from another port")
		}
		w.wait(10 * time.Second)
	}
	if n := w.shards[0].Sessions.Len(); n != 0 {
		t.Error("RSTs from inside kept a TCP session alive beyond four minutes")
	}
}

// Section 8: parity is kept, so no port of a pair needs to be asked for: TestRFC4787Req4PortParity.

// Section 9, RFC 6056: the next public port is hard to guess: over many mappings, neighbours in time are far apart, and every part of the range
// is used.
func TestRFC7857Sec9PortsAreHardToGuess(t *testing.T) {
	for name, send := range map[string]func(w *world, src string, i int) uint16{
		"udp": func(w *world, src string, i int) uint16 { return w.out(src, uint16(4000+4*i), far, 53).sport },
		"tcp": func(w *world, src string, i int) uint16 {
			return w.outTCP(src, uint16(4000+4*i), far, 80, seg("S", 1, 0)).sport
		},
		"icmp": func(w *world, src string, i int) uint16 { return w.ping(src, uint16(4000+4*i), far) },
	} {
		near, same, n := 0, 0, 0
		sectors, firsts := map[uint16]bool{}, map[uint16]bool{}
		for seed := range 20 { // of shards, as after 20 starts
			w := rfcWorld(t)
			w.shards[0].rnd = uint64(seed)*0x9e3779b97f4a7c15 | 1
			last := uint16(0)
			for i := range 100 {
				p := send(w, "198.18.10.20", i)
				if i == 0 {
					firsts[p] = true
				}
				if d := int(p) - int(last); i > 0 && d >= -4 && d <= 4 {
					near++
				}
				if p == uint16(4000+4*i) {
					same++
				}
				sectors[p>>12] = true
				last = p
				n++
			}
		}
		if near > n/10 || same > n/100 || len(sectors) < 12 || len(firsts) < 15 {
			t.Errorf("%s: of %d ports %d are near the one before and %d the inside's; %d of 16 sectors, %d first ports of 20", name, n, near, same, len(sectors), len(firsts))
		}
	}
}

// Section 11: a query mapping ends with the last session that uses it, not before.
func TestRFC7857Sec11QueryMappingEnds(t *testing.T) {
	w := rfcWorld(t)
	id := w.ping(hostA, 7, far)
	w.wait(40 * time.Second)
	if again := w.ping(hostA, 7, far2); again != id {
		t.Fatalf("%d and %d", id, again)
	}
	w.wait(40 * time.Second) // the first session is over, the second is not
	if again := w.ping(hostA, 7, "203.0.113.13"); again != id || w.shards[0].NAT.Len() != 1 {
		t.Fatalf("%d and %d", id, again)
	}
	w.wait(70 * time.Second)
	if n := w.shards[0].NAT.Len(); n != 0 {
		t.Fatalf("%d mappings of no session", n)
	}
}

// Section 12: for hairpinned queries and errors there are mappings from public address to public address: TestRFC5508Req7Hairpin.
