package pipeline

import (
	"bytes"
	"cmp"
	"fmt"
	"math/rand/v2"
	"net"
	"slices"
	"testing"
	"time"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"

	"demarc/gateway/conntrack"
	"demarc/gateway/fib"
	"demarc/gateway/flow"
	"demarc/gateway/meter"
	"demarc/gateway/packet/csum"
	"demarc/gateway/verdict"
)

// split makes the fragments of a frame, each of at most size bytes of payload, by the test's own hands.
func split(t testing.TB, f []byte, id uint16, size int) (all [][]byte) {
	t.Helper()
	l3, family := l3Of(f)
	switch {
	case family == 4:
		ip := f[l3:][:be.Uint16(f[l3+2:])]
		head := int(ip[0]&15) * 4
		for from := 0; from < len(ip)-head; from += size {
			to := min(from+size, len(ip)-head)
			p := append(append([]byte(nil), f[:l3+head]...), ip[head+from:head+to]...)
			be.PutUint16(p[l3+2:], uint16(head+to-from))
			be.PutUint16(p[l3+4:], id)
			fo := uint16(from / 8)
			if to < len(ip)-head {
				fo |= 0x2000
			}
			be.PutUint16(p[l3+6:], fo)
			be.PutUint16(p[l3+10:], 0)
			be.PutUint16(p[l3+10:], csum.Checksum(csum.Sum(0, p[l3:l3+head])))
			all = append(all, p)
		}
	case family == 6:
		ip := f[l3:][:40+be.Uint16(f[l3+4:])]
		for from := 0; from < len(ip)-40; from += size {
			to := min(from+size, len(ip)-40)
			more := byte(0)
			if to < len(ip)-40 {
				more = 1
			}
			p := append(append([]byte(nil), f[:l3+40]...), ip[6], 0, byte(from>>8), byte(from)|more, 0, 1, byte(id>>8), byte(id))
			p = append(p, ip[40+from:40+to]...)
			p[l3+6] = 44
			be.PutUint16(p[l3+4:], uint16(8+to-from))
			all = append(all, p)
		}
	}
	if len(all) < 2 {
		t.Fatalf("%d bytes are no fragments of %d", len(f), size)
	}
	return all
}

// join puts fragments together as a receiver does, by their own headers alone, and returns the frame that they were. They are of one datagram.
func join(t testing.TB, frames [][]byte) []byte {
	t.Helper()
	type piece struct {
		from int
		more bool
		data []byte
	}
	var all []piece
	var head, name []byte
	for _, f := range frames {
		l3, family := l3Of(f)
		var p piece
		var n []byte
		var front int
		if family == 4 {
			ip := f[l3:][:be.Uint16(f[l3+2:])]
			if sum16(ip[:20]) != 0xffff {
				t.Fatalf("header checksum of %x", ip)
			}
			fo := be.Uint16(ip[6:])
			front = l3 + 20
			n = slices.Concat(ip[4:6], ip[9:10], ip[12:20])
			p = piece{int(fo&0x1fff) * 8, fo&0x2000 != 0, ip[20:]}
		} else {
			ip := f[l3:][:40+be.Uint16(f[l3+4:])]
			if ip[6] != 44 {
				t.Fatalf("no fragment: %x", ip)
			}
			fo := be.Uint16(ip[42:])
			front = l3 + 40
			n = slices.Concat(ip[8:40], ip[44:48])
			p = piece{int(fo &^ 7), fo&1 != 0, ip[48:]}
		}
		if name == nil {
			name = n
		}
		if !bytes.Equal(name, n) {
			t.Fatalf("fragments of two datagrams: %x and %x", name, n)
		}
		if p.from == 0 {
			head = append([]byte(nil), f[:front]...)
			if family == 6 {
				head[l3+6] = f[front]
			}
		}
		all = append(all, p)
	}
	slices.SortStableFunc(all, func(a, b piece) int { return cmp.Compare(a.from, b.from) })
	var payload []byte
	for i, p := range all {
		if i > 0 && p.from == all[i-1].from && bytes.Equal(p.data, all[i-1].data) {
			continue // it came twice
		}
		if p.from != len(payload) || head == nil {
			t.Fatalf("a piece at %d behind %d bytes", p.from, len(payload))
		}
		payload = append(payload, p.data...)
	}
	if all[len(all)-1].more {
		t.Fatal("the end is missing")
	}
	out := append(head, payload...)
	l3, family := l3Of(out)
	if family == 4 {
		be.PutUint16(out[l3+2:], uint16(20+len(payload)))
		be.PutUint16(out[l3+6:], 0)
		be.PutUint16(out[l3+10:], 0)
		be.PutUint16(out[l3+10:], csum.Checksum(csum.Sum(0, out[l3:l3+20])))
	} else {
		be.PutUint16(out[l3+4:], uint16(len(payload)))
	}
	return out
}

func load(n int) gopacket.Payload {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i*7 + i>>8)
	}
	return b
}

func bigUDP(t testing.TB, port int, src string, sport uint16, dst string, dport uint16, n int) []byte {
	return frame(t, eth(macs[port], layers.EthernetTypeIPv4), ip4(src, dst, layers.IPProtocolUDP), udp(sport, dport), load(n))
}

func bigEcho(t testing.TB, port int, src, dst string, typ uint8, id uint16, n int) []byte {
	return frame(t, eth(macs[port], layers.EthernetTypeIPv4), ip4(src, dst, layers.IPProtocolICMPv4),
		&layers.ICMPv4{TypeCode: layers.CreateICMPv4TypeCode(typ, 0), Id: id, Seq: 1}, load(n))
}

func bigUDP6(t testing.TB, port int, src string, sport uint16, dst string, dport uint16, n int) []byte {
	ip := &layers.IPv6{Version: 6, HopLimit: 64, SrcIP: net.ParseIP(src), DstIP: net.ParseIP(dst), NextHeader: layers.IPProtocolUDP}
	return frame(t, eth(macs[port], layers.EthernetTypeIPv6), ip, udp(sport, dport), load(n))
}

// pass sends frames in, each at some worker, and returns those that left.
func (w *world) pass(port int, frames ...[]byte) (out [][]byte) {
	w.t.Helper()
	for i, f := range frames {
		for _, h := range w.carry(i%len(w.shards), port, false, false, f) {
			switch h.verdict {
			case verdict.Send:
				out = append(out, h.frame)
			case verdict.Drop:
				w.t.Fatalf("fragment %d of %d: dropped (%s)", i, len(frames), h.reason)
			}
		}
	}
	return out
}

// waiting is how many fragments wait in all shards.
func (w *world) waiting() (n int) {
	for _, sh := range w.shards {
		if err := sh.frags.Check(); err != nil {
			w.t.Fatal(err)
		}
		n += sh.frags.Waiting()
	}
	return n
}

func permutations(n int) (all [][]int) {
	var walk func(p []int, rest []int)
	walk = func(p []int, rest []int) {
		if len(rest) == 0 {
			all = append(all, slices.Clone(p))
		}
		for i := range rest {
			walk(append(p, rest[i]), slices.Delete(slices.Clone(rest), i, i+1))
		}
	}
	order := make([]int, n)
	for i := range order {
		order[i] = i
	}
	walk(nil, order)
	return all
}

func order(frames [][]byte, by []int) (out [][]byte) {
	for _, i := range by {
		out = append(out, frames[i])
	}
	return out
}

// RFC 4787 REQ-14: fragments pass, in whatever order they come, both ways and by every kind of translation, with whatever number of workers.
func TestRFC4787Req14FragmentsInAnyOrder(t *testing.T) {
	for workers := 1; workers <= 4; workers++ {
		w := newWorld(t, workers, replaceOnce(t, rfcText(t), `prefixes = ["198.18.10.0/24"]`, `prefixes = ["198.18.10.0/24", "2001:db8:a::/64"]`)+"\n[[tenant.rule]]\ndirection = \"in\"\naction = \"allow\"\nservice = [\"udp/53\"]\n")
		id := uint16(0)
		through := func(name string, port int, f []byte, check func(x wire)) {
			t.Helper()
			for _, by := range permutations(4) {
				id++
				in := split(t, f, id, (len(f)/4+8)&^7)
				if len(in) != 4 {
					t.Fatalf("%d fragments", len(in))
				}
				whole := join(t, w.pass(port, order(in, by)...))
				if len(whole) != len(f) {
					t.Fatalf("%s, order %v: %d bytes, want %d", name, by, len(whole), len(f))
				}
				check(readWire(t, whole))
				if n := w.waiting(); n != 0 {
					t.Fatalf("%s, order %v: %d fragments still wait", name, by, n)
				}
			}
		}
		var mapped uint16
		through("out", 1, bigUDP(t, 1, hostA, 4000, far, 53, 1000), func(x wire) {
			if mapped == 0 {
				mapped = x.sport
			}
			if x.src.String() != pub || x.sport != mapped || x.dst.String() != far {
				t.Fatalf("left as %s", x)
			}
		})
		through("answer", 0, bigUDP(t, 0, far, 53, pub, mapped, 1000), func(x wire) {
			if x.dst.String() != hostA || x.dport != 4000 {
				t.Fatalf("came as %s", x)
			}
		})
		through("forward", 0, bigUDP(t, 0, far, 53, pub, 8080, 1000), func(x wire) {
			if x.dst.String() != server || x.dport != 80 {
				t.Fatalf("came as %s", x)
			}
		})
		through("1:1", 0, bigUDP(t, 0, far, 5353, pubS, 80, 1000), func(x wire) {
			if x.dst.String() != hostS || x.dport != 80 {
				t.Fatalf("came as %s", x)
			}
		})
		through("hairpin", 1, bigUDP(t, 1, hostA, 4000, pub, 8080, 1000), func(x wire) {
			if x.src.String() != pub || x.dst.String() != server || x.dport != 80 {
				t.Fatalf("came as %s", x)
			}
		})
		var query uint16
		through("ping", 1, bigEcho(t, 1, hostA, far, 8, 77, 1000), func(x wire) {
			if query = x.sport; x.src.String() != pub {
				t.Fatalf("left as %s", x)
			}
		})
		through("pong", 0, bigEcho(t, 0, far, pub, 0, query, 1000), func(x wire) {
			if x.dst.String() != hostA || x.sport != 77 {
				t.Fatalf("came as %s", x)
			}
		})
		six := bigUDP6(t, 1, "2001:db8:a::5", 4000, "2001:db8:ff::11", 53, 1000)
		back := bigUDP6(t, 0, "2001:db8:ff::11", 53, "2001:db8:a::5", 4000, 1000)
		for _, by := range permutations(4) {
			id++
			for i, f := range [][]byte{six, back} {
				whole := join(t, w.pass(1-i, order(split(t, f, id, 256), by)...))
				if !bytes.Equal(whole[14+8:], f[14+8:]) {
					t.Fatalf("IPv6, order %v: %x became %x", by, f, whole)
				}
			}
		}
		w.whole()
	}
}

// Copies of any fragment at any place do no harm: what waits is kept once, what is known passes as often as it comes.
func TestFragmentsDuplicated(t *testing.T) {
	for workers := 1; workers <= 3; workers++ {
		w := newWorld(t, workers, rfcText(t))
		rng := rand.New(rand.NewPCG(1, uint64(workers)))
		for id := range uint16(200) {
			in := split(t, bigUDP(t, 1, hostA, 4000, far, 53, 900), id, 240)
			var line [][]byte
			for _, f := range in {
				for range 1 + rng.IntN(3) {
					line = append(line, f)
				}
			}
			rng.Shuffle(len(line), func(i, j int) { line[i], line[j] = line[j], line[i] })
			var out [][]byte
			for i, f := range line {
				for _, h := range w.carry(i%workers, 1, false, false, f) {
					if h.verdict == verdict.Send {
						out = append(out, h.frame)
					} else if h.verdict == verdict.Drop && h.reason != verdict.FragmentDuplicate {
						t.Fatalf("dropped (%s)", h.reason)
					}
				}
			}
			if x := readWire(t, join(t, out)); x.src.String() != pub || x.dst.String() != far {
				t.Fatalf("left as %s", x)
			}
		}
		w.whole()
	}
}

// RFC 4787 REQ-14a: who floods with fragments that never become whole keeps nobody else's from passing, in order or not; memory and time are bounded.
func TestRFC4787Req14aFragmentFlood(t *testing.T) {
	late := func(t *testing.T, w *world, id uint16, f []byte, port int) {
		t.Helper()
		p := split(t, f, id, 504)
		slices.Reverse(p)
		whole := join(t, w.pass(port, p...))
		if len(whole) != len(f) {
			t.Fatalf("%d bytes of %d", len(whole), len(f))
		}
	}
	orphan := func(t *testing.T, port int, src, dst string, id uint16) []byte {
		return split(t, bigUDP(t, port, src, 9, dst, 9, 300), id, 160)[1]
	}
	rng := rand.New(rand.NewPCG(7, 7))
	random := func() string { return fmt.Sprintf("203.0.113.%d", 12+rng.IntN(200)) }
	for name, flood := range map[string]func(t *testing.T, n int) (int, []byte){
		"outside, one source":     func(t *testing.T, n int) (int, []byte) { return 0, orphan(t, 0, far2, pub, uint16(n)) },
		"outside, random sources": func(t *testing.T, n int) (int, []byte) { return 0, orphan(t, 0, random(), pub, uint16(n)) },
		"another tenant":          func(t *testing.T, n int) (int, []byte) { return 2, orphan(t, 2, "198.18.30.5", far, uint16(n)) },
		"another inside host":     func(t *testing.T, n int) (int, []byte) { return 1, orphan(t, 1, hostB, far, uint16(n)) },
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, 1, testPolicy)
			w.from(1, udp4(t, 1, hostA, 4000, far, 53))
			mapped := w.out(hostA, 4000, far, 53).sport
			most := w.shards[0].frags.Capacity()
			for n := range 4000 {
				w.now += 1e5
				port, f := flood(t, n)
				w.carry(0, port, false, false, f)
				if got := w.shards[0].frags.Waiting(); got > most {
					t.Fatalf("%d fragments wait, of %d", got, most)
				}
				if n > 500 && n%50 == 0 {
					late(t, w, uint16(n), bigUDP(t, 1, hostA, 4000, far, 53, 1200), 1)
					late(t, w, uint16(n), bigUDP(t, 0, far, 53, pub, mapped, 1200), 0)
				}
			}
			if w.waiting() < most/4 {
				t.Fatalf("only %d waited: no flood", w.waiting())
			}
			before := w.dropsOf(verdict.FragmentTimeout)
			n := w.waiting()
			w.wait(1900 * time.Millisecond)
			if w.waiting() == 0 {
				t.Fatal("none waited for two seconds")
			}
			w.wait(200 * time.Millisecond)
			if got := w.dropsOf(verdict.FragmentTimeout) - before; w.waiting() != 0 || got != uint64(n) {
				t.Fatalf("%d still wait, %d of %d dropped in time", w.waiting(), got, n)
			}
			w.whole()
		})
	}
}

func (w *world) dropsOf(r verdict.Reason) (n uint64) {
	for _, sh := range w.shards {
		sh.Meter.Publish()
		for id := range sh.Meter.Tenants() {
			n += sh.Meter.Drops(flow.TenantID(id), r)
		}
	}
	return n
}

// Known datagrams are shared likewise: who sends first fragments alone takes no place from anybody.
func TestFirstFragmentFloodOfATenant(t *testing.T) {
	w := newWorld(t, 1, testPolicy)
	for n := range 1000 {
		w.pass(2, split(t, bigUDP(t, 2, "198.18.30.5", 4000, far, 53, 300), uint16(n), 160)[0])
		p := split(t, bigUDP(t, 1, hostA, 4000, far, 53, 300), uint16(n), 160)
		got := w.pass(1, p[0])
		for k := range 8 { // the other goes on in between
			w.pass(2, split(t, bigUDP(t, 2, "198.18.30.6", 4000, far, 53, 300), uint16(8*n+k), 160)[0])
		}
		join(t, append(got, w.pass(1, p[1])...))
	}
	w.whole()
}

// RFC 5722, RFC 1858, RFC 3128, RFC 8200 section 4.5: pieces that contradict each other end the datagram, in any order, and what is made to slip
// past a filter does not pass at all.
func TestFragmentsThatOverlap(t *testing.T) {
	at := func(port int, id uint16, from, n int, more bool) []byte {
		p := split(t, bigUDP(t, port, hostA, 4000, far, 53, 1400), id, 1392)[0]
		p = p[:34+n]
		be.PutUint16(p[16:], uint16(20+n))
		fo := uint16(from / 8)
		if more {
			fo |= 0x2000
		}
		be.PutUint16(p[20:], fo)
		be.PutUint16(p[24:], 0)
		be.PutUint16(p[24:], csum.Checksum(csum.Sum(0, p[14:34])))
		return p
	}
	for name, c := range map[string][3][]any{
		"inside another":          {{0, 160, true}, {160, 160, true}, {168, 80, true}},
		"over two":                {{0, 160, true}, {160, 160, false}, {80, 160, true}},
		"over the first":          {{0, 160, true}, {160, 160, false}, {8, 160, true}},
		"the same place, shorter": {{0, 160, true}, {160, 160, true}, {160, 80, true}},
		"two ends":                {{0, 160, true}, {160, 160, false}, {320, 80, false}},
		"beyond the end":          {{0, 160, true}, {320, 160, false}, {480, 80, true}},
		"an end before the rest":  {{0, 160, true}, {320, 160, true}, {160, 80, false}},
		"the last one goes on":    {{0, 160, true}, {320, 160, false}, {320, 160, true}},
	} {
		for i, by := range permutations(3) {
			w := rfcWorld(t)
			overlaps := 0
			for _, k := range by {
				h := w.from(1, at(1, uint16(i), c[k][0].(int), c[k][1].(int), c[k][2].(bool)))
				if h.verdict == verdict.Drop {
					if h.reason != verdict.FragmentOverlap {
						t.Fatalf("%s, order %v: dropped (%s)", name, by, h.reason)
					}
					overlaps++
				}
			}
			if overlaps == 0 {
				a, b := c[by[0]], c[by[1]] // were these two a whole datagram? Then what follows is another of the same name
				if a[0].(int) > b[0].(int) {
					a, b = b, a
				}
				if a[0] != 0 || a[1] != b[0] || b[2].(bool) {
					t.Errorf("%s, order %v: none dropped as overlapping", name, by)
				}
				continue
			}
			if h := w.from(1, at(1, uint16(i), 640, 80, true)); h.verdict != verdict.Drop || h.reason != verdict.FragmentOverlap {
				t.Errorf("%s, order %v: the rest is %s (%s)", name, by, h.verdict, h.reason)
			}
			w.whole()
		}
	}
	// Two firsts of two conversations in one place.
	w := rfcWorld(t)
	w.pass(1, split(t, bigUDP(t, 1, hostA, 4000, far, 53, 400), 9, 160)[0])
	w.dropped4(w.from(1, split(t, bigUDP(t, 1, hostA, 4001, far, 53, 400), 9, 160)[0]), verdict.FragmentOverlap)
	w.dropped4(w.from(1, split(t, bigUDP(t, 1, hostA, 4000, far, 53, 400), 9, 160)[1]), verdict.FragmentOverlap)
	// Tiny firsts, and a second that would write over the flags.
	syn := tcp4(t, 1, hostA, 4000, far, 80, func(c *layers.TCP) { c.SYN = true })
	w.dropped4(w.from(1, split(t, syn, 10, 16)[0]), verdict.Fragment)
	w.dropped4(w.from(1, split(t, syn, 11, 8)[1]), verdict.Fragment)
}

// What is refused is refused as a whole, also what comes before the refusal and after it.
func TestFragmentsOfARefusedDatagram(t *testing.T) {
	for _, by := range permutations(3) {
		w := newWorld(t, 1, replaceOnce(t, testPolicy, `service = ["tcp/25"]`, `service = ["tcp/25", "udp/5060"]`))
		for _, f := range order(split(t, bigUDP(t, 1, hostA, 4000, far, 5060, 400), 1, 160), by) {
			for _, h := range w.carry(0, 1, false, false, f) {
				if h.verdict == verdict.Send {
					t.Fatalf("order %v: sent", by)
				}
			}
		}
		if n := w.dropsOf(verdict.ACLDeny); n != 3 || w.waiting() != 0 {
			t.Fatalf("order %v: %d denied, %d wait", by, n, w.waiting())
		}
	}
}

// Between two fragments the policy may change, the session may be cut, and the tenant may go.
func TestFragmentsBetweenPolicies(t *testing.T) {
	denied := replaceOnce(t, testPolicy, `service = ["tcp/25"]`, `service = ["tcp/25", "udp/53"]`)
	w := newWorld(t, 1, testPolicy)
	p := split(t, bigUDP(t, 1, hostA, 4000, far, 53, 400), 1, 160)
	w.pass(1, p[0], p[1])
	w.apply(denied)
	w.dropped4(w.from(1, p[2]), verdict.SessionCut)
	w.apply(testPolicy)
	p = split(t, bigUDP(t, 1, hostA, 4000, far, 53, 400), 2, 160)
	w.pass(1, p[0])
	w.view = compileView(t, w.node, w.space, w.view, denied) // and this time its next packet finds out
	w.shards[0].SetView(w.view)
	w.dropped4(w.from(1, p[1]), verdict.SessionCut)
	w.whole()

	w = newWorld(t, 1, testPolicy)
	w.pass(2, split(t, bigUDP(t, 2, "198.18.30.5", 4000, far, 53, 400), 3, 160)[1])
	w.pass(1, split(t, bigUDP(t, 1, hostA, 4000, far, 53, 400), 3, 160)[1])
	w.apply(testPolicy[:bytes.Index([]byte(testPolicy), []byte("[[tenant]]\nname = \"gamma\""))])
	if n := w.waiting(); n != 1 {
		t.Fatalf("%d wait, want the other tenant's one", n)
	}
}

// A segment in fragments moves the windows like a whole one: its acknowledgement passes, and so does what comes behind a FIN.
func TestTCPSegmentInFragments(t *testing.T) {
	w := rfcWorld(t)
	p := w.open(hostA, 4000, far, 80)
	data := func(seq, ack uint32, fin bool) []byte {
		return frame(t, eth(macs[1], layers.EthernetTypeIPv4), ip4(hostA, far, layers.IPProtocolTCP),
			&layers.TCP{SrcPort: 4000, DstPort: 80, Seq: seq, Ack: ack, ACK: true, FIN: fin, Window: 10000}, load(1200))
	}
	for _, by := range permutations(3) {
		w = rfcWorld(t)
		p = w.open(hostA, 4000, far, 80)
		x := readWire(t, join(t, w.pass(1, order(split(t, data(1001, 5001, false), 1, 496), by)...)))
		if x.sport != p {
			t.Fatalf("left as %s", x)
		}
		w.reaches(w.inTCP(far, 80, pub, p, seg("A", 5001, 2201)), hostA, 4000)
		w.dropped4(w.inTCP(far, 80, pub, p, seg("A", 5001, 2202+70000)), verdict.TCPOutOfWindow)
		join(t, w.pass(1, order(split(t, data(2201, 5001, true), 2, 496), by)...))
		w.reaches(w.inTCP(far, 80, pub, p, seg("FA", 5001, 3402)), hostA, 4000)
		w.outTCP(hostA, 4000, far, 80, seg("A", 3402, 5002))
		if se := w.session(); se.State != 9 { // time wait: both FINs were followed to their place
			t.Fatalf("order %v: state %d", by, se.State)
		}
		w.whole()
	}
}

// IPv6: an atomic fragment is a whole packet (RFC 6946), and a first one without all headers is dropped (RFC 7112), with what follows it.
func TestIPv6FragmentHeaders(t *testing.T) {
	w := newWorld(t, 1, testPolicy)
	f := bigUDP6(t, 1, "2001:db8:a::5", 4000, "2001:db8:ff::11", 53, 100)
	atomic := append(append([]byte(nil), f[:54]...), 17, 0, 0, 0, 0, 0, 0, 9)
	atomic = append(atomic, f[54:]...)
	atomic[20] = 44
	be.PutUint16(atomic[18:], be.Uint16(atomic[18:])+8)
	for range 2 { // the name of one says nothing of the next
		if out := w.pass(1, atomic); len(out) != 1 || !bytes.Equal(out[0][54:], atomic[54:]) || w.shards[0].frags.Known() != 0 {
			t.Fatalf("an atomic fragment became %x", out)
		}
	}
	options := append(append([]byte(nil), f[:54]...), 17, 1, 1, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0)
	options = append(options, f[54:]...)
	options[20] = 60
	be.PutUint16(options[18:], be.Uint16(options[18:])+16)
	cut := split(t, options, 5, 8)
	w.dropped4(w.from(1, cut[0]), verdict.Fragment)
	if h := w.from(1, cut[1]); h.verdict != verdict.Keep {
		t.Fatalf("%s (%s)", h.verdict, h.reason)
	}
	for workers := 1; workers <= 3; workers++ { // with all headers in the first it passes, though the others name another protocol
		w = newWorld(t, workers, testPolicy)
		for _, by := range permutations(3) {
			if whole := join(t, w.pass(1, order(split(t, options, uint16(10+by[0]*9+by[1]*3), 56), by)...)); !bytes.Equal(whole[54:], options[54:]) {
				t.Fatalf("%x", whole)
			}
		}
	}
	big := bigUDP6(t, 1, "2001:db8:a::5", 4000, "2001:db8:ff::11", 53, 1500)
	if h := w.from(1, big); h.verdict != verdict.Send || h.frame[54] != 2 {
		t.Fatalf("too large: %s, type %d: want packet too big", h.verdict, h.frame[54])
	}
}

// A ping of the gateway's own address may come in fragments, at any worker.
func TestPingOfTheGatewayInFragments(t *testing.T) {
	for workers := 1; workers <= 3; workers++ {
		w := newWorld(t, workers, testPolicy)
		for i, by := range permutations(3) {
			whole := join(t, w.pass(1, order(split(t, bigEcho(t, 1, hostA, "198.18.10.1", 8, 7, 1400), uint16(i), 512), by)...))
			if x := readWire(t, whole); x.icmp != 0 || x.src.String() != "198.18.10.1" || x.dst.String() != hostA {
				t.Fatalf("answered %s type %d", x, x.icmp)
			}
			whole = join(t, w.pass(0, order(split(t, bigEcho(t, 0, far, "203.0.113.1", 8, 7, 1400), uint16(i), 512), by)...))
			if x := readWire(t, whole); x.icmp != 0 || x.dst.String() != far {
				t.Fatalf("answered %s type %d", x, x.icmp)
			}
		}
		ip := &layers.IPv6{Version: 6, HopLimit: 64, SrcIP: net.ParseIP("2001:db8:a::5"), DstIP: net.ParseIP("2001:db8:a::1"), NextHeader: layers.IPProtocolICMPv6}
		f := frame(t, eth(macs[1], layers.EthernetTypeIPv6), ip, &layers.ICMPv6{TypeCode: layers.CreateICMPv6TypeCode(128, 0)}, &layers.ICMPv6Echo{Identifier: 3}, load(1400))
		whole := join(t, w.pass(1, order(split(t, f, 9, 512), []int{2, 0, 1})...))
		src, dst := [16]byte(whole[22:38]), [16]byte(whole[38:54])
		if whole[54] != 129 || csum.Fold(csum.Sum(csum.Pseudo6(&src, &dst, flow.ICMPv6, len(whole)-54), whole[54:])) != 0xffff {
			t.Fatalf("answered %x", whole[:60])
		}
	}
}

// The same later fragment over and over is answered no more often than pings are.
func TestLaterFragmentsOfAPingAreLimited(t *testing.T) {
	r := newRig(t, testNode, testPolicy)
	pieces := split(t, bigEcho(t, 1, "198.18.10.11", "198.18.10.1", 8, 77, 3000), 9, 1000)
	r.want(&r.send(1, pieces[0])[0], verdict.Send)
	sent := 0
	for range 5 * echoPerSecond {
		if s := r.send(1, pieces[1]); s[0].Verdict == verdict.Send {
			sent++
		} else if s[0].Reason != verdict.ICMPRateLimited {
			t.Fatal(s[0].Reason)
		}
	}
	if sent == 0 || sent > echoPerSecond {
		t.Errorf("%d of %d at once were answered, want some and not more than %d", sent, 5*echoPerSecond, echoPerSecond)
	}
}

// A fragment is a packet to meters, rates and neighbours, like any other.
func TestFragmentsAreCounted(t *testing.T) {
	w := newWorld(t, 1, testPolicy)
	p := split(t, bigUDP(t, 1, hostA, 4000, far, 53, 1000), 1, 256)
	w.pass(1, p[1], p[0], p[2], p[3])
	w.shards[0].Meter.Publish()
	bytes := 0
	for _, f := range p {
		bytes += len(packetOf(f))
	}
	id := w.tenant("alpha")
	if v := w.shards[0].Meter.Volume(id, meter.Out); v.Packets != 4 || v.Bytes != uint64(bytes) {
		t.Fatalf("counted %+v, want 4 packets of %d bytes", v, bytes)
	}
	if se := w.session(); se.Packets[0] != 4 || se.Bytes[0] != uint64(bytes) {
		t.Fatalf("the session counted %d packets, %d bytes", se.Packets[0], se.Bytes[0])
	}
	for _, h := range w.carry(0, 1, false, false, bigUDP(t, 1, hostA, 4000, "203.0.113.254", 53, 1500)) {
		if h.verdict != verdict.Send {
			t.Fatalf("%s (%s)", h.verdict, h.reason)
		}
	}
	if v := w.shards[0].Meter.Volume(id, meter.Out); v.Packets != 4 {
		t.Fatal("published by itself")
	}
	w.shards[0].Meter.Publish()
	if v := w.shards[0].Meter.Volume(id, meter.Out); v.Packets != 6 || v.Bytes != uint64(bytes+1528+20) {
		t.Fatalf("counted %+v, want two pieces more", v)
	}
	// The next hop is not known: both pieces wait for it, finished but for the link header.
	w.shards[0].Neighbors = fib.NewNeighbors(64, 1)
	n := 0
	for _, h := range w.carry(0, 1, false, false, bigUDP(t, 1, hostA, 4000, far, 53, 1500)) {
		if h.verdict == verdict.Neighbor {
			n++
		}
	}
	if n != 2 {
		t.Fatalf("%d pieces wait for the neighbour", n)
	}
}

// session is the only one there is.
func (w *world) session() (found *conntrack.Session) {
	w.t.Helper()
	for _, sh := range w.shards {
		sh.Sessions.Each(0, sh.Sessions.Capacity(), func(_ uint32, se *conntrack.Session) bool {
			if found != nil {
				w.t.Fatal("there are several sessions")
			}
			found = se
			return true
		})
	}
	return found
}

func (w *world) tenant(name string) flow.TenantID {
	for _, t := range w.view.Tenants {
		if t != nil && t.Name == name {
			return t.ID
		}
	}
	w.t.Fatalf("no tenant %s", name)
	return 0
}
