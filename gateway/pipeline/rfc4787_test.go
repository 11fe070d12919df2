package pipeline

import (
	"bytes"
	"fmt"
	"testing"
	"time"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"

	"demarc/gateway/nat"
	"demarc/gateway/verdict"
)

// RFC 4787, NAT Behavioral Requirements for Unicast UDP. Fragments (REQ-13a, REQ-14) have their tests beside the fragments.

func TestRFC4787Req1EndpointIndependentMapping(t *testing.T) {
	w := rfcWorld(t)
	a := w.out(hostA, 4000, far, 53).sport
	for i := range 20 { // other hosts have the same inside port: each one gets another public one, and keeps it
		src := fmt.Sprintf("198.18.10.%d", 20+i)
		p := w.out(src, 4000, far, 53).sport
		for j := range 3 {
			if again := w.out(src, 4000, far2, uint16(7000+j)).sport; again != p {
				t.Fatalf("%s:4000 is %d to one far end and %d to another", src, p, again)
			}
		}
		if again := w.out(hostA, 4000, far2, uint16(8000+i)).sport; again != a {
			t.Fatalf("after a collision %s:4000 is %d, was %d", hostA, again, a)
		}
	}
	// A mapping whose port is forwarded now serves what it served, and the new one is endpoint-independent too.
	w.apply(rfcText(t, "[[tenant.nat.forward]]", fmt.Sprintf("public = %q\nproto = \"udp\"\nport = %d\ninside = %q", pub, a, server)))
	b := w.out(hostA, 4000, far, 9000).sport
	if b == a {
		t.Fatalf("the forwarded port %d is given out", a)
	}
	if again := w.out(hostA, 4000, far2, 9001).sport; again != b {
		t.Fatalf("%d and %d", b, again)
	}
	w.whole()
}

// By choice, mapping depends on the far address, or on address and port (RFC 4787 section 4.1).
func TestRFC4787Req1MappingByChoice(t *testing.T) {
	for mode, want := range map[string][3]bool{ // the same public port to: the same far end later, another port of it, another address
		ei: {true, true, true}, ad: {true, true, false}, apd: {true, false, false},
	} {
		w := rfcWorld(t, fmt.Sprintf("mapping = %q", mode))
		first := w.out(hostA, 4000, far, 53).sport
		for i, x := range []wire{w.out(hostA, 4000, far, 53), w.out(hostA, 4000, far, 54), w.out(hostA, 4000, far2, 53)} {
			if x.src.String() != pub || (x.sport == first) != want[i] {
				t.Errorf("%s, %d: left as %s, the first as port %d", mode, i, x, first)
			}
			w.reaches(w.in(x.dst.String(), x.dport, pub, x.sport), hostA, 4000)
		}
		w.whole()
	}
}

// A change of nat.mapping ends nothing: what runs keeps its mapping, what begins gets one by the new mode.
func TestRFC4787Req1ChangedMappingCutsNothing(t *testing.T) {
	modes := []string{ei, ad, apd}
	for _, before := range modes {
		for _, after := range modes {
			w := rfcWorld(t, fmt.Sprintf("mapping = %q", before))
			p := w.out(hostA, 4000, far, 53).sport
			w.apply(rfcText(t, fmt.Sprintf("mapping = %q", after)))
			if again := w.out(hostA, 4000, far, 53).sport; again != p {
				t.Errorf("%s to %s: the session's port went from %d to %d", before, after, p, again)
			}
			w.reaches(w.in(far, 53, pub, p), hostA, 4000)
			q := w.out(hostA, 4000, far2, 53).sport
			r := w.out(hostA, 4000, far2, 54).sport
			if (q == p) != (before == ei && after == ei) || (q == r) != (after != apd) {
				t.Errorf("%s to %s: new sessions have ports %d and %d, the old one %d", before, after, q, r, p)
			}
			w.whole()
		}
	}
}

const bigPool = `pool = ["192.0.2.16", "192.0.2.17", "192.0.2.18", "192.0.2.19"]`

func bigPoolWorld(t *testing.T, workers int, keys ...string) *world {
	t.Helper()
	return newWorld(t, workers, replaceOnce(t, rfcText(t, keys...), `pool = ["192.0.2.16"]`, bigPool))
}

func TestRFC4787Req2PairedPooling(t *testing.T) {
	for _, workers := range []int{1, 3} {
		w := bigPoolWorld(t, workers)
		used := map[string]bool{}
		for h := range 30 {
			src := fmt.Sprintf("198.18.10.%d", 20+h)
			first := ""
			for i := range 12 {
				f := udp4(t, 1, src, uint16(4000+i), far, 53)
				switch i % 4 {
				case 1:
					f = tcp4(t, 1, src, uint16(4000+i), far2, 80, seg("S", 1, 0))
				case 2:
					f = echo(t, 1, src, far, uint16(i), false)
				case 3: // no ports
					f = frame(t, eth(macs[1], layers.EthernetTypeIPv4), ip4(src, fmt.Sprintf("203.0.113.%d", 10+h), layers.IPProtocolGRE), gopacket.Payload("gregregre"))
				}
				hops := w.carry(i%workers, 1, false, false, f)
				x := readWire(t, hops[len(hops)-1].frame)
				if first == "" {
					first = x.src.String()
					used[first] = true
				}
				if x.src.String() != first {
					t.Fatalf("%s leaves as %s and as %s", src, first, x.src)
				}
			}
		}
		if len(used) < 3 {
			t.Fatalf("30 hosts use %v of four addresses", used)
		}
	}
}

func TestRFC4787Req3NoPortOverloading(t *testing.T) {
	for _, mode := range []string{ei, ad, apd} {
		w := rfcWorld(t, fmt.Sprintf("mapping = %q", mode))
		owner := map[uint16]string{}
		for h := range 40 {
			for i := range 4 { // one inside port, and far ends that differ: overloading would give them one public port
				src := fmt.Sprintf("198.18.10.%d", 20+h)
				x := w.out(src, 4000, fmt.Sprintf("203.0.113.%d", 20+(h+i)%40), uint16(50+i))
				if who, taken := owner[x.sport]; taken && who != src {
					t.Fatalf("%s: public port %d is %s's and %s's", mode, x.sport, who, src)
				}
				owner[x.sport] = src
			}
		}
	}
}

func TestRFC4787Req3aPortRange(t *testing.T) {
	w := rfcWorld(t)
	for i := range 100 {
		src := fmt.Sprintf("198.18.10.%d", 20+i)
		if p := w.out(src, uint16(500+i), far, 53).sport; p >= 1024 {
			t.Errorf("inside port %d became %d", 500+i, p)
		}
		if p := w.out(src, uint16(1024+i), far, 53).sport; p < 1024 {
			t.Errorf("inside port %d became %d", 1024+i, p)
		}
	}
}

func TestRFC4787Req4PortParity(t *testing.T) {
	w := rfcWorld(t)
	for i := range 200 {
		src := fmt.Sprintf("198.18.10.%d", 20+i)
		rtp := w.out(src, uint16(20000+2*i), far, 5004).sport
		rtcp := w.out(src, uint16(20001+2*i), far, 5005).sport
		if rtp&1 != 0 || rtcp != rtp+1 {
			t.Fatalf("RTP pair %d/%d became %d/%d", 20000+2*i, 20001+2*i, rtp, rtcp)
		}
	}
}

func TestRFC4787Req5MappingTimer(t *testing.T) {
	w := rfcWorld(t)
	// Not answered: two minutes at least. Well-known destinations are no exception (REQ-5a is a MAY).
	p, dns := w.out(hostA, 4000, far, 5000).sport, w.out(hostA, 4001, far, 53).sport
	w.wait(2*time.Minute - time.Second)
	w.reaches(w.in(far, 5000, pub, p), hostA, 4000)
	w.reaches(w.in(far, 53, pub, dns), hostA, 4001)
	// Answered: five minutes (REQ-5c).
	w.wait(5*time.Minute - time.Second)
	w.reaches(w.in(far, 5000, pub, p), hostA, 4000)
	w.wait(5*time.Minute + 2*time.Second)
	w.dropped4(w.in(far, 5000, pub, p), verdict.NATUnusedAddress)
	// And it can be set (REQ-5b).
	w.apply("schema = 1\n[timeouts]\nudp_unanswered = \"3m\"\n" + rfcText(t)[len("\nschema = 1\n"):])
	p = w.out(hostA, 4000, far, 5000).sport
	w.wait(3*time.Minute - time.Second)
	w.reaches(w.in(far, 5000, pub, p), hostA, 4000)
	// What is answered ends by its own timer, also where that is the shorter one.
	w.apply("schema = 1\n[timeouts]\nudp = \"2m\"\nudp_unanswered = \"20m\"\n" + rfcText(t)[len("\nschema = 1\n"):])
	p = w.out(hostA, 4002, far, 5000).sport
	w.reaches(w.in(far, 5000, pub, p), hostA, 4002)
	w.wait(2*time.Minute - time.Second)
	w.reaches(w.in(far, 5000, pub, p), hostA, 4002)
	w.wait(2*time.Minute + 2*time.Second)
	w.dropped4(w.in(far, 5000, pub, p), verdict.NATUnusedAddress)
	// A policy with shorter ones holds for what is idle already.
	p = w.out(hostA, 4003, far, 5000).sport
	w.wait(3 * time.Minute)
	w.apply("schema = 1\n[timeouts]\nudp_unanswered = \"4m\"\n" + rfcText(t)[len("\nschema = 1\n"):])
	w.wait(time.Minute - time.Second)
	w.reaches(w.in(far, 5000, pub, p), hostA, 4003)
	p = w.out(hostA, 4004, far, 5000).sport
	w.wait(3 * time.Minute)
	w.apply("schema = 1\n[timeouts]\nudp_unanswered = \"2m\"\n" + rfcText(t)[len("\nschema = 1\n"):])
	w.wait(2 * time.Second)
	w.dropped4(w.in(far, 5000, pub, p), verdict.NATUnusedAddress)
}

func TestRFC4787Req6OutboundRefresh(t *testing.T) {
	w := rfcWorld(t)
	p := w.out(hostA, 4000, far, 5000).sport
	for range 20 {
		w.wait(110 * time.Second)
		if again := w.out(hostA, 4000, far, 5000).sport; again != p {
			t.Fatalf("the mapping went from %d to %d", p, again)
		}
	}
	w.reaches(w.in(far, 5000, pub, p), hostA, 4000)
	// REQ-6a: inbound packets of the conversation refresh it too.
	for range 10 {
		w.wait(290 * time.Second)
		w.reaches(w.in(far, 5000, pub, p), hostA, 4000)
	}
	// A mapping lives while any of its conversations does.
	w.out(hostA, 4000, far2, 5000)
	w.wait(115 * time.Second)
	if again := w.out(hostA, 4000, far2, 6000).sport; again != p {
		t.Fatalf("the mapping went from %d to %d", p, again)
	}
}

// What a filter lets in: the far end that was spoken to, another port of it, a stranger. UDP and TCP alike.
func TestRFC4787Req8FilteringByChoice(t *testing.T) {
	for _, mapping := range []string{ei, ad, apd} {
		for filtering, want := range map[string][3]bool{ei: {true, true, true}, ad: {true, true, false}, apd: {true, false, false}} {
			w := rfcWorld(t, fmt.Sprintf("mapping = %q\nfiltering = %q", mapping, filtering))
			p := w.out(hostA, 4000, far, 5000).sport
			q := w.outTCP(hostA, 4000, far, 5000, seg("S", 1000, 0)).sport
			for i, src := range []struct {
				addr string
				port uint16
			}{{far, 5000}, {far, 5001}, {far2, 5000}} {
				udp, tcp := w.in(src.addr, src.port, pub, p), w.inTCP(src.addr, src.port, pub, q, seg("S", 9000, 0))
				if want[i] {
					w.reaches(udp, hostA, 4000)
					w.reaches(tcp, hostA, 4000)
				} else {
					w.dropped4(udp, verdict.NATFiltered)
					w.dropped4(tcp, verdict.NATFiltered)
				}
			}
			// What an operator has denied stays denied.
			w.out(hostA, 4000, "203.0.113.66", 5000)
			if h := w.in("203.0.113.66", 5009, pub, p); h.verdict != verdict.Drop {
				t.Errorf("%s, %s: a denied address came in", mapping, filtering)
			}
			w.whole()
		}
	}
}

// Address-dependent filtering goes by the conversations that there are: with the last to an address, that may begin none.
func TestRFC4787Req8AddressDependentFilteringEnds(t *testing.T) {
	w := rfcWorld(t, fmt.Sprintf("filtering = %q", ad))
	p := w.out(hostA, 4000, far, 5000).sport
	w.out(hostA, 4000, far, 5001)
	w.wait(100 * time.Second)
	w.out(hostA, 4000, far2, 1) // keeps the mapping
	w.out(hostA, 4000, far, 5001)
	w.wait(100 * time.Second) // far:5000 is over, far:5001 is not
	w.reaches(w.in(far, 7000, pub, p), hostA, 4000)
	w.out(hostA, 4000, far2, 1)
	for range 4 { // the conversation that came in lives on, and gives nobody else the right
		w.wait(100 * time.Second)
		w.out(hostA, 4000, far2, 1)
		w.reaches(w.in(far, 7000, pub, p), hostA, 4000)
	}
	w.dropped4(w.in(far, 7001, pub, p), verdict.NATFiltered)
	// A mapping of the same number later inherits nothing.
	w.wait(20 * time.Minute)
	w.whole()
	if n := w.shards[0].permits.Len(); n != 0 {
		t.Fatalf("%d far addresses are remembered of no conversation", n)
	}
}

// A change of filtering: what it lets in no longer ends, whoever was let in by the same filter stays, and a new filter goes by the conversations
// that there were before it.
func TestRFC4787Req8ChangedFiltering(t *testing.T) {
	for _, c := range []struct {
		before, after string
		lives, later  bool // who had come in from another port of a far address; who comes in so afterwards
	}{
		{ei, ei, true, true}, {ei, ad, false, true}, {ei, apd, false, false},
		{ad, ei, true, true}, {ad, ad, true, true}, {ad, apd, false, false},
		{apd, ei, false, true}, {apd, ad, false, true}, {apd, apd, false, false},
	} {
		w := rfcWorld(t, fmt.Sprintf("filtering = %q", c.before))
		p := w.out(hostA, 4000, far, 5000).sport
		came := w.in(far, 5001, pub, p)
		if (came.verdict == verdict.Send) != (c.before != apd) {
			t.Fatalf("%s: %s (%s)", c.before, came.verdict, came.reason)
		}
		v := compileView(t, w.node, w.space, w.view, rfcText(t, fmt.Sprintf("filtering = %q", c.after)))
		would := 0
		w.shards[0].Sessions.Each(0, 4096, func(_ uint32, se *sessionT) bool {
			if w.shards[0].WouldCut(v, se) {
				would++
			}
			return true
		})
		n := w.shards[0].Sessions.Len()
		w.apply(rfcText(t, fmt.Sprintf("filtering = %q", c.after)))
		if cut := n - w.shards[0].Sessions.Len(); cut != would || (cut == 0) != (c.lives || came.verdict == verdict.Drop) {
			t.Errorf("%s to %s: %d sessions cut, %d foretold", c.before, c.after, cut, would)
		}
		if h := w.in(far, 5002, pub, p); (h.verdict == verdict.Send) != c.later {
			t.Errorf("%s to %s: afterwards %s (%s)", c.before, c.after, h.verdict, h.reason)
		}
		w.reaches(w.in(far, 5000, pub, p), hostA, 4000)
		w.whole()
	}
}

// REQ-9 and REQ-9a: to a 1:1 address, to a forwarded port and to a mapping, over UDP; the far end that is seen is the public one.
func TestRFC4787Req9Hairpin(t *testing.T) {
	for _, workers := range []int{1, 3} {
		w := newWorld(t, workers, rfcText(t, "filtering = \"endpoint-independent\""))
		dynamic := w.out(hostB, 5000, far, 53).sport
		mine := w.out(hostA, 4000, far, 53).sport // hostA's public end, also to hosts of its own network
		for _, c := range []struct {
			name, dst string
			dport     uint16
			to        string
			tport     uint16
		}{
			{"1:1", pubS, 80, hostS, 80}, {"forwarded port", pub, 8080, server, 80}, {"mapping", pub, dynamic, hostB, 5000}, {"itself", pub, mine, hostA, 4000},
		} {
			x := w.sent(w.from(1, udp4(t, 1, hostA, 4000, c.dst, c.dport)), 1)
			if x.src.String() != pub || x.sport != mine || x.dst.String() != c.to || x.dport != c.tport || x.ttl != 63 {
				t.Errorf("%s: arrived as %s ttl %d, want from %s:%d to %s:%d (REQ-9a)", c.name, x, x.ttl, pub, mine, c.to, c.tport)
			}
			y := w.sent(w.from(1, udp4(t, 1, c.to, c.tport, pub, mine)), 1)
			if y.src.String() != c.dst || y.sport != c.dport || y.dst.String() != hostA || y.dport != 4000 {
				t.Errorf("%s: the answer arrived as %s, want from %s:%d", c.name, y, c.dst, c.dport)
			}
		}
		// From the 1:1 host to the others.
		x := w.sent(w.from(1, udp4(t, 1, hostS, 700, pub, 8080)), 1)
		if x.src.String() != pubS || x.sport != 700 || x.dst.String() != server {
			t.Errorf("from the 1:1 host it arrived as %s", x)
		}
		w.whole()
	}
}

// Filtering stands in hairpin's way like in anybody's: two inside hosts that speak to each other's mappings both open their filter.
func TestRFC4787Req9HairpinMeetsTheFilter(t *testing.T) {
	w := rfcWorld(t)
	a, b := w.out(hostA, 4000, far, 53).sport, w.out(hostB, 5000, far, 53).sport
	w.dropped4(w.from(1, udp4(t, 1, hostA, 4000, pub, b)), verdict.NATFiltered)
	w.reaches(w.from(1, udp4(t, 1, hostB, 5000, pub, a)), hostA, 4000) // hostA had spoken to it
	w.reaches(w.from(1, udp4(t, 1, hostA, 4000, pub, b)), hostB, 5000)
	w.whole()
}

// There are no application gateways: what packets carry is carried as it is, also where it names addresses.
func TestRFC4787Req10NoALG(t *testing.T) {
	w := rfcWorld(t)
	for _, c := range []struct {
		port uint16
		text string
	}{
		{5060, "INVITE sip:bob@203.0.113.11 SIP/2.0\r\nVia: SIP/2.0/UDP 198.18.10.10:5060;rport\r\nContact: <sip:a@198.18.10.10:5060>\r\n\r\nc=IN IP4 198.18.10.10\r\nm=audio 20000 RTP/AVP 0\r\n"},
		{69, "\x00\x01file\x00octet\x00"},
		{3478, "\x00\x01\x00\x08\x21\x12\xa4\x42aaaabbbbcccc\xc6\x12\x0a\x0a"},
	} {
		f := frame(t, eth(macs[1], layers.EthernetTypeIPv4), ip4(hostA, far, layers.IPProtocolUDP), udp(c.port, c.port), gopacket.Payload(c.text))
		h := w.from(1, f)
		p := w.sent(h, 0).sport
		if !bytes.Contains(h.frame, []byte(c.text)) {
			t.Errorf("port %d: left as %q", c.port, h.frame)
		}
		f = frame(t, eth(macs[0], layers.EthernetTypeIPv4), ip4(far, pub, layers.IPProtocolUDP), udp(c.port, p), gopacket.Payload(c.text))
		if h = w.from(0, f); h.verdict != verdict.Send || !bytes.Contains(h.frame, []byte(c.text)) {
			t.Errorf("port %d: came as %q", c.port, h.frame)
		}
	}
}

// REQ-11: a first host, one in the crowd and one when the ports run short are translated and filtered alike.
func TestRFC4787Req11Deterministic(t *testing.T) {
	w := rfcWorld(t, fmt.Sprintf("filtering = %q", ad))
	id, _ := w.space.Find([4]byte{192, 0, 2, 16})
	alike := func(host string) {
		t.Helper()
		p := w.out(host, 4000, far, 53).sport
		if q := w.out(host, 4000, far2, 54).sport; q != p {
			t.Fatalf("%s: %d and %d", host, p, q)
		}
		w.reaches(w.in(far, 999, pub, p), host, 4000)
		w.dropped4(w.in("203.0.113.99", 53, pub, p), verdict.NATFiltered)
	}
	alike("198.18.10.20")
	for i := range 600 {
		w.out(fmt.Sprintf("198.18.10.%d", 30+i%100), uint16(4000+i/100), far, 53)
	}
	alike("198.18.10.21")
	// All but a few ports are gone.
	var most [1024]uint64
	for i := range most {
		most[i] = ^uint64(0)
	}
	most[700] = ^uint64(0xff)
	w.space.SetReserved(id, nat.UDP, &most)
	alike("198.18.10.22")
	alike("198.18.10.23")
}

// REQ-12, REQ-12a, REQ-12b: errors of every kind, from any source and from either side, are carried and end nothing.
func TestRFC4787Req12ICMPNeverEndsAMapping(t *testing.T) {
	w := rfcWorld(t)
	h := w.from(1, udp4(t, 1, hostA, 4000, far, 53))
	p := w.sent(h, 0).sport
	asSent := packetOf(h.frame)[:28]
	back := w.in(far, 53, pub, p)
	w.reaches(back, hostA, 4000)
	asCame := packetOf(back.frame)[:28]
	// Source quench is for the bin (RFC 5508 REQ-10c), and ends nothing either.
	w.dropped4(w.from(0, icmpErr(t, 0, far, pub, 4, 0, 0, asSent)), verdict.ICMPBadInner)
	for _, typ := range []uint8{3, 11, 12} {
		for code := range uint8(16) {
			for _, src := range []string{far, "203.0.113.254", "198.51.100.9", "10.0.0.1"} {
				w.reachesICMP(w.from(0, icmpErr(t, 0, src, pub, typ, code, 1400, asSent)), typ, code, src, hostA)
			}
			w.reachesICMP(w.from(1, icmpErr(t, 1, hostA, far, typ, code, 0, asCame)), typ, code, pub, far)
			if again := w.out(hostA, 4000, far2, uint16(1000+int(typ)*16+int(code))).sport; again != p {
				t.Fatalf("after type %d code %d the mapping went from %d to %d", typ, code, p, again)
			}
			w.reaches(w.in(far, 53, pub, p), hostA, 4000)
		}
	}
}

// reachesICMP checks that an ICMP error went on with its type and code, from one address to another.
func (w *world) reachesICMP(h hop, typ, code uint8, src, dst string) quote {
	w.t.Helper()
	if h.verdict != verdict.Send {
		w.t.Fatalf("type %d code %d: %s (%s)", typ, code, h.verdict, h.reason)
	}
	q := readQuote(w.t, h.frame)
	if q.typ != typ || q.code != code || q.src.String() != src || q.dst.String() != dst {
		w.t.Fatalf("type %d code %d from %s arrived as type %d code %d from %s at %s, want at %s", typ, code, src, q.typ, q.code, q.src, q.dst, dst)
	}
	return q
}

func TestRFC4787Req13FragmentationNeeded(t *testing.T) {
	w := rfcWorld(t)
	ip := ip4(hostA, far, layers.IPProtocolUDP)
	ip.Flags = layers.IPv4DontFragment
	f := frame(t, eth(macs[1], layers.EthernetTypeIPv4), ip, udp(4000, 53), gopacket.Payload(make([]byte, 1480)))
	h := w.from(1, f)
	if h.verdict != verdict.Send || h.port != 1 {
		t.Fatalf("%s (%s) on port %d", h.verdict, h.reason, h.port)
	}
	q := readQuote(t, h.frame)
	if q.typ != 3 || q.code != 4 || q.rest&0xffff != 1500 || q.dst.String() != hostA || q.qsrc.String() != hostA || q.qdst.String() != far || q.qsport != 4000 {
		t.Fatalf("told %+v", q)
	}
	if n := w.shards[0].Sessions.Len(); n != 0 {
		t.Fatalf("%d sessions of a packet that went nowhere", n)
	}
}
