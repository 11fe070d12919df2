package pipeline

import (
	"encoding/binary"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"

	"demarc/gateway/verdict"
)

// What the tests of the NAT RFCs share: rfc4787_test.go, rfc5382_test.go, rfc5508_test.go and rfc7857_test.go go through the requirements by their
// numbers, with packets in and packets out, and docs/rfc.md names them.

// rfcPolicy is one tenant, and a second to be the stranger; NAT stands for further keys of its translation.
const rfcPolicy = `
schema = 1
[backbone]
interfaces = ["backbone"]
[[route]]
prefix = "0.0.0.0/0"
via = "203.0.113.254"
[[tenant]]
name = "alpha"
interfaces = ["alpha"]
prefixes = ["198.18.10.0/24"]
[tenant.nat]
pool = ["192.0.2.16"]
# NAT
[[tenant.nat.static]]
public = "192.0.2.100"
inside = "198.18.10.100"
[[tenant.nat.forward]]
public = "192.0.2.16"
proto = "tcp"
port = 8080
inside = "198.18.10.11"
inside_port = 80
[[tenant.nat.forward]]
public = "192.0.2.16"
proto = "udp"
port = 8080
inside = "198.18.10.11"
inside_port = 80
[[tenant.rule]]
direction = "in"
action = "deny"
from = ["203.0.113.66"]
[[tenant.rule]]
direction = "in"
action = "allow"
service = ["udp/80", "tcp/80", "icmp/echo-request"]
`

const (
	pub    = "192.0.2.16"
	pubS   = "192.0.2.100"
	hostA  = "198.18.10.10"
	server = "198.18.10.11" // has the forwarded port
	hostB  = "198.18.10.12"
	hostS  = "198.18.10.100" // translated 1:1
	far    = "203.0.113.11"
	far2   = "203.0.113.12"
)

func rfcWorld(t testing.TB, keys ...string) *world {
	t.Helper()
	return newWorld(t, 1, rfcText(t, keys...))
}

func rfcText(t testing.TB, keys ...string) string {
	t.Helper()
	return strings.Replace(rfcPolicy, "# NAT\n", strings.Join(keys, "\n")+"\n", 1)
}

// from brings a frame in on a port and follows it to its end.
func (w *world) from(port int, f []byte) hop {
	w.t.Helper()
	hops := w.carry(0, port, false, false, f)
	return hops[len(hops)-1]
}

// sent is the frame that left on a port, with every checksum right.
func (w *world) sent(h hop, port int) wire {
	w.t.Helper()
	if h.verdict != verdict.Send || int(h.port) != port {
		w.t.Fatalf("%s (%s) on port %d, want it sent on port %d", h.verdict, h.reason, h.port, port)
	}
	return readWire(w.t, h.frame)
}

func (w *world) dropped4(h hop, why verdict.Reason) {
	w.t.Helper()
	if h.verdict != verdict.Drop || h.reason != why {
		w.t.Fatalf("%s (%s), want drop (%s)", h.verdict, h.reason, why)
	}
}

// out sends UDP from inside and returns what it looks like outside.
func (w *world) out(src string, sport uint16, dst string, dport uint16) wire {
	w.t.Helper()
	return w.sent(w.from(1, udp4(w.t, 1, src, sport, dst, dport)), 0)
}

// in sends UDP from outside.
func (w *world) in(src string, sport uint16, dst string, dport uint16) hop {
	w.t.Helper()
	return w.from(0, udp4(w.t, 0, src, sport, dst, dport))
}

// reaches checks that a packet from outside came to an inside end.
func (w *world) reaches(h hop, host string, port uint16) {
	w.t.Helper()
	if x := w.sent(h, 1); x.dst.String() != host || x.dport != port {
		w.t.Fatalf("went to %s:%d, want %s:%d", x.dst, x.dport, host, port)
	}
}

func (w *world) outTCP(src string, sport uint16, dst string, dport uint16, set func(*layers.TCP)) wire {
	w.t.Helper()
	return w.sent(w.from(1, tcp4(w.t, 1, src, sport, dst, dport, set)), 0)
}

func (w *world) inTCP(src string, sport uint16, dst string, dport uint16, set func(*layers.TCP)) hop {
	w.t.Helper()
	return w.from(0, tcp4(w.t, 0, src, sport, dst, dport, set))
}

// seg sets the flags of SAFRP, and the numbers.
func seg(flags string, seq, ack uint32) func(*layers.TCP) {
	return func(t *layers.TCP) {
		t.Seq, t.Ack, t.Window = seq, ack, 10000
		for _, c := range flags {
			switch c {
			case 'S':
				t.SYN = true
			case 'A':
				t.ACK = true
			case 'F':
				t.FIN = true
			case 'R':
				t.RST = true
			case 'P':
				t.PSH = true
			}
		}
	}
}

// open makes a connection from inside: the client's next number is 1001, the server's 5001. It returns the public port.
func (w *world) open(src string, sport uint16, dst string, dport uint16) uint16 {
	w.t.Helper()
	p := w.outTCP(src, sport, dst, dport, seg("S", 1000, 0)).sport
	w.reaches(w.inTCP(dst, dport, pub, p, seg("SA", 5000, 1001)), src, sport)
	w.outTCP(src, sport, dst, dport, seg("A", 1001, 5001))
	return p
}

// wait lets time pass, with the maintenance that a worker does.
func (w *world) wait(d time.Duration) {
	for end := w.now + uint64(d); w.now < end; {
		w.now = min(end, w.now+uint64(time.Second))
		for _, sh := range w.shards {
			sh.Maintain(w.now, 1<<14)
		}
	}
}

// apply publishes another policy.
func (w *world) apply(text string) {
	w.t.Helper()
	w.view = compileView(w.t, w.node, w.space, w.view, text)
	for _, sh := range w.shards {
		sh.SetView(w.view)
		for !sh.Settled() {
			sh.Rejudge(w.now, 1<<14)
		}
	}
	w.view.Acknowledged(w.space)
}

func echo(t testing.TB, port int, src, dst string, id uint16, reply bool) []byte {
	typ := uint8(8)
	if reply {
		typ = 0
	}
	return frame(t, eth(macs[port], layers.EthernetTypeIPv4), ip4(src, dst, layers.IPProtocolICMPv4),
		&layers.ICMPv4{TypeCode: layers.CreateICMPv4TypeCode(typ, 0), Id: id, Seq: 1}, gopacket.Payload("abcd"))
}

// icmpErr is an ICMP error about an IP packet. rest is the second word of its header.
func icmpErr(t testing.TB, port int, src, dst string, typ, code uint8, rest uint32, quoted []byte) []byte {
	return frame(t, eth(macs[port], layers.EthernetTypeIPv4), ip4(src, dst, layers.IPProtocolICMPv4),
		&layers.ICMPv4{TypeCode: layers.CreateICMPv4TypeCode(typ, code), Id: uint16(rest >> 16), Seq: uint16(rest)}, gopacket.Payload(quoted))
}

// quote is an ICMP error as it arrived, read by the test's own eyes.
type quote struct {
	wire          // the outer header
	typ, code     uint8
	rest          uint32
	inner         []byte // the quoted packet
	qsrc, qdst    netip.Addr
	qsport, qport uint16 // of a quoted echo: both the identifier
}

// readQuote checks the outer checksums and that of the quoted header.
func readQuote(t testing.TB, f []byte) (q quote) {
	t.Helper()
	q.wire = readWire(t, f)
	ip := f[14:]
	l4 := ip[int(ip[0]&15)*4 : binary.BigEndian.Uint16(ip[2:])]
	q.typ, q.code, q.rest, q.inner = l4[0], l4[1], binary.BigEndian.Uint32(l4[4:]), l4[8:]
	in := q.inner
	n := int(in[0]&15) * 4
	if sum16(in[:n]) != 0xffff {
		t.Fatalf("checksum of the quoted header %x", in[:n])
	}
	q.qsrc, q.qdst = netip.AddrFrom4([4]byte(in[12:16])), netip.AddrFrom4([4]byte(in[16:20]))
	switch in[9] {
	case 6, 17:
		q.qsport, q.qport = binary.BigEndian.Uint16(in[n:]), binary.BigEndian.Uint16(in[n+2:])
	case 1:
		q.qsport = binary.BigEndian.Uint16(in[n+4:])
		q.qport = q.qsport
	}
	return q
}

func sum16(b []byte) uint16 {
	var s uint32
	for i, c := range b {
		if i%2 == 0 {
			s += uint32(c) << 8
		} else {
			s += uint32(c)
		}
	}
	for s > 0xffff {
		s = s>>16 + s&0xffff
	}
	return uint16(s)
}

// packetOf is the IPv4 packet in a frame, without what Ethernet pads.
func packetOf(f []byte) []byte { return f[14:][:binary.BigEndian.Uint16(f[16:])] }
