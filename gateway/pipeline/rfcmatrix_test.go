package pipeline

import (
	"testing"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"

	"demarc/configs"
	"demarc/gateway/verdict"
)

// Source quench and information requests do not pass, from neither side and to nobody (RFC 5508 REQ-10c, RFC 6633).
func TestRFC5508Req10cWhatIsObsolete(t *testing.T) {
	w := rfcWorld(t)
	_, asSent, asCame := errorsAbout(t, w, hostA, 4000)
	w.dropped4(w.from(0, icmpErr(t, 0, far, pub, 4, 0, 0, asSent)), verdict.ICMPBadInner)
	w.dropped4(w.from(1, icmpErr(t, 1, hostA, far, 4, 0, 0, asCame)), verdict.ICMPBadInner)
	for _, typ := range []uint8{15, 16} {
		for port, ends := range [][2]string{{far, pubS}, {hostS, far}, {far, pub}, {hostA, far}, {hostA, pubS}} {
			port = []int{0, 1, 0, 1, 1}[port]
			f := frame(t, eth(macs[port], layers.EthernetTypeIPv4), ip4(ends[0], ends[1], layers.IPProtocolICMPv4), &layers.ICMPv4{TypeCode: layers.CreateICMPv4TypeCode(typ, 0), Id: 7})
			if h := w.from(port, f); h.verdict != verdict.Drop {
				t.Errorf("type %d from %s to %s: %s", typ, ends[0], ends[1], h.verdict)
			}
		}
	}
}

// expired is a packet from inside that dies here, with a DS field.
func expired(t testing.TB, src string, sport uint16, tos uint8) []byte {
	ip := ip4(src, far, layers.IPProtocolUDP)
	ip.TTL, ip.TOS = 1, tos
	return frame(t, eth(macs[1], layers.EthernetTypeIPv4), ip, udp(sport, 5000), gopacket.Payload("x"))
}

// An error of ours has the class of what it is about, without the congestion bits (RFC 5508 REQ-10d, section 7.7).
func TestRFC5508Req10dClassOfOurErrors(t *testing.T) {
	for _, tos := range []uint8{0, 0xb8, 0x28, 0xbb, 0xff} {
		w := rfcWorld(t)
		h := w.from(1, expired(t, hostA, 4000, tos))
		if q := readQuote(t, h.frame); q.typ != 11 || packetOf(h.frame)[1] != tos&^3 {
			t.Errorf("class %#x: type %d with class %#x", tos, q.typ, packetOf(h.frame)[1])
		}
	}
}

// No error is about an error, a later fragment, a broadcast, or a source that is no single host (RFC 5508 REQ-10e, RFC 1812 section 4.3.2.7).
func TestRFC5508Req10eNoErrorAbout(t *testing.T) {
	w := rfcWorld(t)
	_, _, asCame := errorsAbout(t, w, hostA, 4000)
	dying := icmpErr(t, 1, hostA, far, 3, 3, 0, asCame)
	dying[14+8] = 1
	for name, f := range map[string][]byte{
		"an error":        dying,
		"a loopback":      expired(t, "127.0.0.1", 4000, 0),
		"no address":      expired(t, "0.0.0.0", 4000, 0),
		"a group":         expired(t, "224.0.0.1", 4000, 0),
		"class E":         expired(t, "240.0.0.1", 4000, 0),
		"another's space": expired(t, "198.18.99.1", 4000, 0),
	} {
		seal(f)
		if h := w.from(1, f); h.verdict != verdict.Drop {
			t.Errorf("about %s: %s %x", name, h.verdict, h.frame)
		}
	}
}

// Errors of ours are few a second to one tenant, whatever it sends (RFC 5508 REQ-10f, RFC 1812 section 4.3.2.8).
func TestRFC5508Req10fRateOfOurErrors(t *testing.T) {
	w := rfcWorld(t)
	told := 0
	for i := range 20000 { // a second of 20,000 packets/s
		w.now += 50_000
		if h := w.from(1, expired(t, hostA, uint16(1024+i), 0)); h.verdict == verdict.Send {
			told++
		}
	}
	if told < 50 || told > 2*configs.DefaultICMPErrorsPerSide {
		t.Errorf("%d errors in a second, want about %d", told, configs.DefaultICMPErrorsPerSide)
	}
}

// DF is honoured, and who is told learns the next hop's MTU, from outside towards a tenant as well (RFC 5508 section 7.1.1).
func TestRFC5508Sec711DontFragment(t *testing.T) {
	w := rfcWorld(t)
	p := w.out(hostA, 4000, far, 5000).sport
	ip := ip4(far, pub, layers.IPProtocolUDP)
	ip.Flags = layers.IPv4DontFragment
	h := w.from(0, frame(t, eth(macs[0], layers.EthernetTypeIPv4), ip, udp(5000, p), gopacket.Payload(make([]byte, 1480))))
	if h.verdict != verdict.Send || h.port != 0 {
		t.Fatalf("%s (%s) on port %d", h.verdict, h.reason, h.port)
	}
	q := readQuote(t, h.frame)
	if q.typ != 3 || q.code != 4 || q.rest&0xffff != 1500 || q.dst.String() != far || q.qdst.String() != pub || q.qport != p {
		t.Errorf("told %+v", q)
	}
	w.reaches(w.in(far, 5000, pub, p), hostA, 4000)
}

// A source route does not pass, in the outer header or the quoted one (RFC 5508 section 7.3).
func TestRFC5508Sec73SourceRoute(t *testing.T) {
	w := rfcWorld(t)
	_, _, asCame := errorsAbout(t, w, hostA, 4000)
	lsrr := []byte{131, 7, 4, 203, 0, 113, 9, 0}
	route := func(ipPacket []byte) []byte {
		out := append(append(append([]byte(nil), ipPacket[:20]...), lsrr...), ipPacket[20:]...)
		out[0] = 0x47
		be.PutUint16(out[2:], be.Uint16(out[2:])+8)
		return out
	}
	outer := icmpErr(t, 1, hostA, far, 3, 3, 0, asCame)
	outer = append(outer[:14:14], route(outer[14:])...)
	quoted := route(asCame)
	clear(quoted[10:12])
	sealed := append(make([]byte, 12, 100), 8, 0)
	sealed = append(sealed, quoted...)
	seal(sealed)
	inner := icmpErr(t, 1, hostA, far, 3, 3, 0, sealed[14:])
	seal(outer)
	w.dropped4(w.from(1, outer), verdict.SourceRoute)
	if h := w.from(1, inner); h.verdict != verdict.Drop {
		t.Errorf("a quoted source route left: %s %x", h.verdict, h.frame)
	}
}

// Connections that the gateway gives up end in silence: nothing is sent to either end, and what comes later is dropped (RFC 5382 section 5).
func TestRFC5382Sec5AbandonedInSilence(t *testing.T) {
	w := rfcWorld(t)
	p := w.outTCP(hostA, 4000, far, 443, seg("S", 100, 0)).sport
	w.reaches(w.inTCP(far, 443, pub, p, seg("SA", 900, 101)), hostA, 4000)
	w.outTCP(hostA, 4000, far, 443, seg("A", 101, 901))
	w.shards[0].Cut(func(*sessionT) bool { return true })
	w.dropped4(w.inTCP(far, 443, pub, p, seg("A", 901, 101)), verdict.NATUnusedAddress)
	w.dropped4(w.from(1, tcp4(t, 1, hostA, 4000, far, 443, seg("A", 101, 901))), verdict.TCPNotSyn)
}
