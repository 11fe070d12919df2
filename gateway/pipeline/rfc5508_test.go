package pipeline

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"testing"
	"time"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"

	"demarc/gateway/verdict"
)

// RFC 5508, NAT Behavioral Requirements for ICMP.

// ping sends an echo request from inside and returns its public identifier.
func (w *world) ping(src string, id uint16, dst string) uint16 {
	w.t.Helper()
	x := w.sent(w.from(1, echo(w.t, 1, src, dst, id, false)), 0)
	if x.icmp != 8 || x.dst.String() != dst {
		w.t.Fatalf("left as type %d, %s", x.icmp, x)
	}
	return x.sport
}

func TestRFC5508Req1Queries(t *testing.T) {
	for _, workers := range []int{1, 3} {
		w := newWorld(t, workers, rfcText(t))
		id := w.ping(hostA, 7, far)
		w.reaches(w.from(0, echo(t, 0, far, pub, id, true)), hostA, 7)
		// Timestamp (REQ-10b.2).
		ts := func(port int, typ uint8, src, dst string, id uint16) []byte {
			return frame(t, eth(macs[port], layers.EthernetTypeIPv4), ip4(src, dst, layers.IPProtocolICMPv4),
				&layers.ICMPv4{TypeCode: layers.CreateICMPv4TypeCode(typ, 0), Id: id, Seq: 1}, gopacket.Payload(make([]byte, 12)))
		}
		x := w.sent(w.from(1, ts(1, 13, hostA, far, 9)), 0)
		w.reaches(w.from(0, ts(0, 14, far, pub, x.sport)), hostA, 9)
		// Answers to nothing.
		for _, f := range [][]byte{echo(t, 0, far2, pub, id, true), echo(t, 0, far, pub, id+1, true), ts(0, 14, far, pub, id)} {
			if h := w.from(0, f); h.verdict != verdict.Drop {
				t.Errorf("an answer to nothing came in: %s", readWire(t, h.frame))
			}
		}
		w.whole()
	}
}

func TestRFC5508Req1aIdentifierIsEndpointIndependent(t *testing.T) {
	w := rfcWorld(t)
	owner := map[uint16]string{}
	for h := range 30 {
		src := fmt.Sprintf("198.18.10.%d", 20+h)
		id := w.ping(src, 7, far)
		if who, taken := owner[id]; taken {
			t.Fatalf("identifier %d is %s's and %s's", id, who, src)
		}
		owner[id] = src
		for i := range 5 {
			dst := fmt.Sprintf("203.0.113.%d", 20+i)
			if again := w.ping(src, 7, dst); again != id {
				t.Fatalf("%s: identifier %d and %d", src, id, again)
			}
			w.reaches(w.from(0, echo(t, 0, dst, pub, id, true)), src, 7)
		}
	}
}

func TestRFC5508Req2QueryTimer(t *testing.T) {
	w := rfcWorld(t)
	id := w.ping(hostA, 7, far)
	w.wait(59 * time.Second)
	w.reaches(w.from(0, echo(t, 0, far, pub, id, true)), hostA, 7)
	w.wait(62 * time.Second)
	if n := w.shards[0].Sessions.Len(); n != 0 {
		t.Fatalf("%d sessions after 62 s", n)
	}
	w.apply("schema = 1\n[timeouts]\nicmp = \"2m\"\n" + rfcText(t)[len("\nschema = 1\n"):]) // REQ-2a
	id = w.ping(hostA, 7, far)
	w.wait(119 * time.Second)
	w.reaches(w.from(0, echo(t, 0, far, pub, id, true)), hostA, 7)
}

// errorsAbout is a session outwards, and what each side has seen of it.
func errorsAbout(t *testing.T, w *world, src string, sport uint16) (pport uint16, asSent, asCame []byte) {
	t.Helper()
	h := w.from(1, udp4(t, 1, src, sport, far, 5000))
	x := w.sent(h, 0)
	asSent = packetOf(h.frame)
	back := w.in(far, 5000, x.src.String(), x.sport)
	w.sent(back, 1)
	return x.sport, asSent, packetOf(back.frame)
}

// REQ-3, REQ-3a, REQ-3c: what is wrong in an error, and what is done with it, from either side.
func TestRFC5508Req3Checksums(t *testing.T) {
	w := rfcWorld(t)
	_, asSent, asCame := errorsAbout(t, w, hostA, 4000)
	for name, c := range map[string]struct {
		damage func(f []byte) // of the frame: 14 Ethernet, 20 IP, 8 ICMP, then the quote
		why    verdict.Reason
	}{
		"right":                  {func([]byte) {}, verdict.Pass},
		"ICMP checksum":          {func(f []byte) { f[36] ^= 0x55 }, verdict.ICMPBadInner},
		"damage in the quote":    {func(f []byte) { f[65] ^= 1 }, verdict.ICMPBadInner},
		"quoted header checksum": {func(f []byte) { f[52] ^= 0x55; fixICMP(f) }, verdict.ICMPBadInner},
		"quoted UDP checksum":    {func(f []byte) { f[68] ^= 0x55; fixICMP(f) }, verdict.Pass},
		"no quoted UDP checksum": {func(f []byte) { f[68], f[69] = 0, 0; fixICMP(f) }, verdict.Pass},
	} {
		for side, f := range [][]byte{icmpErr(t, 0, far2, pub, 3, 1, 0, asSent), icmpErr(t, 1, hostA, far, 3, 1, 0, asCame)} {
			c.damage(f)
			h := w.from(side, f)
			if c.why == verdict.Pass {
				w.sent(h, 1-side)
				readQuote(t, h.frame)
				continue
			}
			if h.verdict != verdict.Drop || h.reason != c.why {
				t.Errorf("%s, from port %d: %s (%s)", name, side, h.verdict, h.reason)
			}
		}
	}
	w.whole()
}

// fixICMP makes the ICMP checksum of a plain frame right.
func fixICMP(f []byte) {
	f[36], f[37] = 0, 0
	binary.BigEndian.PutUint16(f[36:], ^sum16(f[34:]))
}

// REQ-3b: the quoted header may have options. REQ-3d: what follows the quote, RFC 4884 padding and extensions, stays as it is.
func TestRFC5508Req3OptionsAndExtensions(t *testing.T) {
	w := rfcWorld(t)
	p, asSent, _ := errorsAbout(t, w, hostA, 4000)
	withOptions := append([]byte(nil), asSent[:20]...)
	withOptions = append(withOptions, 7, 7, 4, 0, 0, 0, 0, 0) // record route, end
	withOptions = append(withOptions, asSent[20:]...)
	withOptions[0] = 0x47
	binary.BigEndian.PutUint16(withOptions[2:], uint16(len(withOptions)))
	withOptions[10], withOptions[11] = 0, 0
	binary.BigEndian.PutUint16(withOptions[10:], ^sum16(withOptions[:28]))
	q := w.reachesICMP(w.from(0, icmpErr(t, 0, far2, pub, 11, 0, 0, withOptions)), 11, 0, far2, hostA)
	if q.qsrc.String() != hostA || q.qsport != 4000 || q.qport != 5000 || !bytes.Equal(q.inner[20:28], withOptions[20:28]) {
		t.Fatalf("quotes %+v", q)
	}
	_ = p
	// 128 bytes of quote, padded, and an MPLS label behind (RFC 4884, RFC 4950).
	ext := append(append([]byte(nil), asSent...), make([]byte, 128-len(asSent))...)
	tail := []byte{0x20, 0, 0xde, 0xad, 0, 8, 1, 1, 0x12, 0x34, 0x51, 0x40}
	ext = append(ext, tail...)
	q = w.reachesICMP(w.from(0, icmpErr(t, 0, far2, pub, 11, 0, 32<<16, ext)), 11, 0, far2, hostA)
	if q.qsrc.String() != hostA || !bytes.Equal(q.inner[128:], tail) || q.rest != 32<<16 {
		t.Fatalf("extensions became %x", q.inner[len(q.inner)-len(tail):])
	}
	// The transport checksum of the whole quote is right again: padding and extensions are no part of it.
	ip := q.inner[:len(asSent)]
	pseudo := append(append([]byte(nil), ip[12:20]...), 0, 17, 0, byte(len(ip)-20))
	if sum16(append(pseudo, ip[20:]...)) != 0xffff {
		t.Fatal("quoted UDP checksum")
	}
}

// Whatever an error quotes: eight bytes of transport, one less, protocols without ports, a tunnel, another error.
func TestRFC5508Req4WhateverIsQuoted(t *testing.T) {
	w := rfcWorld(t)
	gre := func(port int, src, dst string) []byte {
		return frame(t, eth(macs[port], layers.EthernetTypeIPv4), ip4(src, dst, layers.IPProtocolGRE), gopacket.Payload("gregregregregregre"))
	}
	ipip := func(port int, src, dst string) []byte {
		inner := packetOf(udp4(t, 1, "10.1.1.1", 1, "10.2.2.2", 2))
		return frame(t, eth(macs[port], layers.EthernetTypeIPv4), ip4(src, dst, layers.IPProtocolIPv4), gopacket.Payload(inner))
	}
	esp := func(port int, src, dst string) []byte {
		return frame(t, eth(macs[port], layers.EthernetTypeIPv4), ip4(src, dst, layers.IPProtocolESP), gopacket.Payload("spi.seq.data"))
	}
	for name, c := range map[string]struct {
		made func(port int, src, dst string) []byte
		cuts []int // transport bytes that a quote may end after
	}{
		"GRE": {gre, []int{0, 4, 8}}, "IP in IP": {ipip, []int{0, 8, 20, 28}}, "ESP": {esp, []int{0, 8}},
		"UDP":  {func(port int, src, dst string) []byte { return udp4(t, port, src, 4000, dst, 5000) }, []int{8, 12}},
		"TCP":  {func(port int, src, dst string) []byte { return tcp4(t, port, src, 4000, dst, 80, seg("S", 1000, 0)) }, []int{8, 17, 18, 20}},
		"echo": {func(port int, src, dst string) []byte { return echo(t, port, src, dst, 9, false) }, []int{8, 12}},
	} {
		h := w.from(1, c.made(1, hostA, far))
		if h.verdict != verdict.Send {
			t.Fatalf("%s: %s (%s)", name, h.verdict, h.reason)
		}
		sent := packetOf(h.frame)
		for _, n := range c.cuts {
			q := w.reachesICMP(w.from(0, icmpErr(t, 0, far2, pub, 3, 3, 0, sent[:20+n])), 3, 3, far2, hostA)
			if q.qsrc.String() != hostA || q.qdst.String() != far {
				t.Errorf("%s cut at %d quotes %s > %s", name, n, q.qsrc, q.qdst)
			}
			if name == "UDP" && (q.qsport != 4000 || q.qport != 5000) || name == "TCP" && (q.qsport != 4000 || q.qport != 80) || name == "echo" && q.qsport != 9 {
				t.Errorf("%s cut at %d quotes ports %d > %d", name, n, q.qsport, q.qport)
			}
		}
	}
	_, asSent, _ := errorsAbout(t, w, hostB, 4000)
	for n := range 28 { // less than the ports
		if n == 0 {
			continue
		}
		h := w.from(0, icmpErr(t, 0, far2, pub, 3, 3, 0, asSent[:n]))
		w.dropped4(h, verdict.ICMPBadInner)
	}
	nested := packetOf(icmpErr(t, 0, pub, far, 3, 3, 0, asSent))
	w.dropped4(w.from(0, icmpErr(t, 0, far, pub, 3, 3, 0, nested)), verdict.ICMPBadInner)
	w.whole()
}

func TestRFC5508Req4ErrorsFromOutside(t *testing.T) {
	for _, workers := range []int{1, 3} {
		w := newWorld(t, workers, rfcText(t))
		p, asSent, _ := errorsAbout(t, w, hostA, 4000)
		// REQ-4a, b, c.
		q := w.reachesICMP(w.from(0, icmpErr(t, 0, "203.0.113.254", pub, 3, 4, 1300, asSent)), 3, 4, "203.0.113.254", hostA)
		if q.rest != 1300 || q.qsrc.String() != hostA || q.qsport != 4000 || q.qdst.String() != far || q.qport != 5000 {
			t.Fatalf("mtu %d, quotes %s:%d > %s:%d", q.rest, q.qsrc, q.qsport, q.qdst, q.qport)
		}
		// About nothing known: no mapping, a mapping but not that far end, another public address.
		for _, quoted := range [][]byte{
			packetOf(udp4(t, 0, pub, p^3, far, 5000)), packetOf(udp4(t, 0, pub, p, far2, 5000)), packetOf(tcp4(t, 0, pub, p, far, 5000, seg("S", 1, 0))),
		} {
			w.dropped4(w.from(0, icmpErr(t, 0, far, pub, 3, 3, 0, quoted)), verdict.ICMPNoSession)
		}
		// About a 1:1 address, and about the answers of a forwarded port.
		_, asSent, _ = errorsAbout(t, w, hostS, 700)
		q = w.reachesICMP(w.from(0, icmpErr(t, 0, far2, pubS, 11, 0, 0, asSent)), 11, 0, far2, hostS)
		if q.qsrc.String() != hostS || q.qsport != 700 {
			t.Fatalf("1:1 quotes %s:%d", q.qsrc, q.qsport)
		}
		w.reaches(w.in(far, 6000, pub, 8080), server, 80)
		h := w.from(1, udp4(t, 1, server, 80, far, 6000))
		w.sent(h, 0)
		q = w.reachesICMP(w.from(0, icmpErr(t, 0, far2, pub, 3, 3, 0, packetOf(h.frame))), 3, 3, far2, server)
		if q.qsrc.String() != server || q.qsport != 80 || q.qport != 6000 {
			t.Fatalf("forwarded port quotes %s:%d > %d", q.qsrc, q.qsport, q.qport)
		}
		w.whole()
	}
}

func TestRFC5508Req5ErrorsFromInside(t *testing.T) {
	for _, workers := range []int{1, 3} {
		w := newWorld(t, workers, rfcText(t))
		p, _, asCame := errorsAbout(t, w, hostA, 4000)
		for _, src := range []string{hostA, "198.18.10.1", "10.9.9.9"} { // the host, and routers inside: REQ-5c, the NAT's own address
			if src == "198.18.10.1" {
				continue // the gateway's own
			}
			q := w.reachesICMP(w.from(1, icmpErr(t, 1, src, far, 3, 3, 0, asCame)), 3, 3, pub, far)
			if q.qsrc.String() != far || q.qsport != 5000 || q.qdst.String() != pub || q.qport != p {
				t.Fatalf("quotes %s:%d > %s:%d, want %s:%d", q.qsrc, q.qsport, q.qdst, q.qport, pub, p)
			}
		}
		// An inside router that has a 1:1 address sends from that.
		w.reachesICMP(w.from(1, icmpErr(t, 1, hostS, far, 11, 0, 0, asCame)), 11, 0, pubS, far)
		// About nothing known.
		w.dropped4(w.from(1, icmpErr(t, 1, hostA, far, 3, 3, 0, packetOf(udp4(t, 1, far, 5001, hostA, 4000)))), verdict.ICMPNoSession)
		// About a forwarded port, and a 1:1 address.
		h := w.in(far, 6000, pub, 8080)
		w.reaches(h, server, 80)
		q := w.reachesICMP(w.from(1, icmpErr(t, 1, server, far, 3, 3, 0, packetOf(h.frame))), 3, 3, pub, far)
		if q.qdst.String() != pub || q.qport != 8080 || q.qsport != 6000 {
			t.Fatalf("forwarded port quotes %s:%d", q.qdst, q.qport)
		}
		h = w.in(far, 6000, pubS, 80)
		w.reaches(h, hostS, 80)
		q = w.reachesICMP(w.from(1, icmpErr(t, 1, hostS, far, 3, 3, 0, packetOf(h.frame))), 3, 3, pubS, far)
		if q.qdst.String() != pubS || q.qport != 80 {
			t.Fatalf("1:1 quotes %s:%d", q.qdst, q.qport)
		}
		w.whole()
	}
}

// REQ-6: errors about a query neither refresh its session nor end it.
func TestRFC5508Req6ErrorsNeitherRefreshNorEnd(t *testing.T) {
	w := rfcWorld(t)
	h := w.from(1, echo(t, 1, hostA, far, 7, false))
	id := w.sent(h, 0).sport
	for range 11 {
		w.wait(5 * time.Second)
		q := w.reachesICMP(w.from(0, icmpErr(t, 0, far2, pub, 3, 1, 0, packetOf(h.frame))), 3, 1, far2, hostA)
		if q.qsport != 7 {
			t.Fatalf("quotes identifier %d", q.qsport)
		}
	}
	w.reaches(w.from(0, echo(t, 0, far, pub, id, true)), hostA, 7) // 55 s: not ended
	h = w.from(1, echo(t, 1, hostB, far, 7, false))
	id = w.sent(h, 0).sport
	for range 13 {
		w.wait(5 * time.Second)
		w.from(0, icmpErr(t, 0, far2, pub, 3, 1, 0, packetOf(h.frame)))
	}
	if h := w.from(0, echo(t, 0, far, pub, id, true)); h.verdict != verdict.Drop { // 65 s: not refreshed
		t.Fatal("errors kept the session alive")
	}
}

// REQ-7, REQ-7a: queries to a 1:1 address come round, and errors about what came round go back to who sent it, by every kind of translation.
func TestRFC5508Req7Hairpin(t *testing.T) {
	for _, workers := range []int{1, 3} {
		w := newWorld(t, workers, rfcText(t, "filtering = \"endpoint-independent\""))
		x := w.sent(w.from(1, echo(t, 1, hostA, pubS, 7, false)), 1)
		if x.src.String() != pub || x.dst.String() != hostS {
			t.Fatalf("a query came round as %s", x)
		}
		y := w.sent(w.from(1, echo(t, 1, hostS, pub, x.sport, true)), 1)
		if y.src.String() != pubS || y.dst.String() != hostA || y.dport != 7 {
			t.Fatalf("its answer came round as %s", y)
		}
		dynamic := w.out(hostB, 5000, far, 53).sport
		mine := w.out(hostA, 4000, far, 53).sport
		for _, c := range []struct {
			name, dst string
			dport     uint16
			to        string
			tport     uint16
		}{{"1:1", pubS, 80, hostS, 80}, {"forwarded port", pub, 8080, server, 80}, {"mapping", pub, dynamic, hostB, 5000}} {
			h := w.from(1, udp4(t, 1, hostA, 4000, c.dst, c.dport))
			w.reaches(h, c.to, c.tport)
			// Who got it refuses it.
			q := w.reachesICMPAt(w.from(1, icmpErr(t, 1, c.to, pub, 3, 3, 0, packetOf(h.frame))), 1, 3, 3, c.dst, hostA)
			if q.qsrc.String() != hostA || q.qsport != 4000 || q.qdst.String() != c.dst || q.qport != c.dport {
				t.Fatalf("%s: quotes %s:%d > %s:%d", c.name, q.qsrc, q.qsport, q.qdst, q.qport)
			}
			// And who sent it refuses the answer.
			h = w.from(1, udp4(t, 1, c.to, c.tport, pub, mine))
			w.reaches(h, hostA, 4000)
			q = w.reachesICMPAt(w.from(1, icmpErr(t, 1, hostA, c.dst, 3, 3, 0, packetOf(h.frame))), 1, 3, 3, pub, c.to)
			if q.qsrc.String() != c.to || q.qsport != c.tport || q.qdst.String() != pub || q.qport != mine {
				t.Fatalf("%s: about the answer quotes %s:%d > %s:%d", c.name, q.qsrc, q.qsport, q.qdst, q.qport)
			}
		}
		w.whole()
	}
}

func (w *world) reachesICMPAt(h hop, port int, typ, code uint8, src, dst string) quote {
	w.t.Helper()
	if int(h.port) != port && h.verdict == verdict.Send {
		w.t.Fatalf("left on port %d, want %d", h.port, port)
	}
	return w.reachesICMP(h, typ, code, src, dst)
}

// REQ-10a: unreachable, time exceeded and echo; REQ-10b.5 parameter problem; redirects and the rest (REQ-11) are dropped.
func TestRFC5508Req10Messages(t *testing.T) {
	w := rfcWorld(t)
	_, asSent, _ := errorsAbout(t, w, hostA, 4000)
	for _, typ := range []uint8{3, 11, 12} {
		w.reachesICMP(w.from(0, icmpErr(t, 0, far2, pub, typ, 0, 0, asSent)), typ, 0, far2, hostA)
	}
	if h := w.from(0, icmpErr(t, 0, far2, pub, 5, 1, 0xcb007101, asSent)); h.verdict != verdict.Drop {
		t.Error("a redirect came in")
	}
	for _, typ := range []uint8{1, 2, 6, 7, 9, 10, 15, 16, 17, 18, 19, 30, 37, 40, 42, 43, 255} {
		for port, ends := range [][2]string{{far, pub}, {hostA, far}} {
			f := frame(t, eth(macs[port], layers.EthernetTypeIPv4), ip4(ends[0], ends[1], layers.IPProtocolICMPv4),
				&layers.ICMPv4{TypeCode: layers.CreateICMPv4TypeCode(typ, 0), Id: 7}, gopacket.Payload(make([]byte, 20)))
			if h := w.from(port, f); h.verdict != verdict.Drop {
				t.Errorf("type %d from port %d: %s", typ, port, h.verdict)
			}
		}
	}
}
