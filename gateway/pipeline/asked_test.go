package pipeline

import (
	"net/netip"
	"testing"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"

	"demarc/gateway/flow"
	"demarc/gateway/packet"
	"demarc/gateway/packet/build"
	"demarc/gateway/verdict"
)

func (r *rig) answered() (list []Answer) {
	r.sh.Answers(func(a *Answer) { list = append(list, *a) })
	return list
}

// What somebody waits for is taken, and nothing else: neither another identifier, nor another far end, nor another side, and nothing at all when nobody
// waits.
func TestOnlyWhatIsWaitedForIsTaken(t *testing.T) {
	r := newRig(t, testNode, testPolicy)
	gw, far := flow.AddrFrom(netip.MustParseAddr("203.0.113.1")), flow.AddrFrom(netip.MustParseAddr("203.0.113.11"))
	echo := func(src string, id, seq uint16, typ uint8) []byte {
		return frame(t, eth(macs[0], layers.EthernetTypeIPv4), ip4(src, "203.0.113.1", layers.IPProtocolICMPv4), &layers.ICMPv4{TypeCode: layers.CreateICMPv4TypeCode(typ, 0), Id: id, Seq: seq},
			gopacket.Payload([]byte{1, 2, 3, 4, 5, 6, 7, 8, 9}))
	}
	syn := func(flags func(*layers.TCP)) []byte {
		return frame(t, eth(macs[0], layers.EthernetTypeIPv4), ip4("203.0.113.11", "203.0.113.1", layers.IPProtocolTCP), func() *layers.TCP {
			l := &layers.TCP{SrcPort: 80, DstPort: 50000, Seq: 1, Ack: 1001}
			flags(l)
			return l
		}())
	}
	sent := func(proto uint8, sport, dport uint16, seq uint32) []byte {
		p := build.Probe{Src: gw, Dst: far, Family: 4, Proto: proto, TTL: 1, SPort: sport, DPort: dport, Seq: seq, Payload: make([]byte, 20)}
		return p.Append(nil)[14:]
	}
	errorOf := func(quoted []byte) []byte { return icmpError(t, 0, "203.0.113.99", "203.0.113.1", quoted) }
	r.wantDrop(&r.send(0, echo("203.0.113.11", 7, 1, 0))[0], verdict.LocalUnhandled)
	r.wantDrop(&r.send(0, errorOf(sent(flow.ICMP, 7, 0, 1)))[0], verdict.ICMPNoSession)
	r.sh.SetWaits([]Wait{{Token: 5, Family: 4, Proto: flow.ICMP, Local: gw, Far: far, ID: 7}, {Token: 6, Family: 4, Proto: flow.TCP, Local: gw, Far: far, ID: 50000},
		{Token: 7, Family: 4, Proto: flow.UDP, Local: gw, Far: far, ID: 50001}})
	for name, c := range map[string]struct {
		f   []byte
		why verdict.Reason
	}{
		"another identifier":       {echo("203.0.113.11", 8, 1, 0), verdict.LocalUnhandled},
		"another far end":          {echo("203.0.113.12", 7, 1, 0), verdict.LocalUnhandled},
		"about another identifier": {errorOf(sent(flow.ICMP, 8, 0, 1)), verdict.ICMPNoSession},
		"about another port":       {errorOf(sent(flow.UDP, 50000, 33434, 1)), verdict.ICMPNoSession},
	} {
		if s := &r.send(0, c.f)[0]; s.Verdict != verdict.Drop || s.Reason != c.why {
			t.Errorf("%s: %s (%s)", name, s.Verdict, s.Reason)
		}
	}
	if got := r.answered(); len(got) != 0 {
		t.Fatalf("taken: %+v", got)
	}
	// A request to the gateway is answered as ever, with the same identifier too.
	if s := &r.send(0, echo("203.0.113.11", 7, 1, 8))[0]; s.Verdict != verdict.Send {
		t.Errorf("a ping to the gateway: %s (%s)", s.Verdict, s.Reason)
	}
	for _, c := range []struct {
		name string
		f    []byte
		want Answer
	}{
		{"a reply", echo("203.0.113.11", 7, 9, 0), Answer{Token: 5, From: far, Seq: 9, Nonce: 0x0102030405060708, TTL: 64, Len: 37}},
		{"an error about an echo", errorOf(sent(flow.ICMP, 7, 0, 3)), Answer{Token: 5, Error: true, Type: packet.ICMPTimeExceeded, Seq: 3, TTL: 64}},
		{"a SYN and ACK", syn(func(l *layers.TCP) { l.SYN, l.ACK = true, true }), Answer{Token: 6, From: far, Seq: 1000, Flags: packet.TCPSyn | packet.TCPAck, TTL: 64, Len: 40}},
		{"a reset", syn(func(l *layers.TCP) { l.RST, l.ACK = true, true }), Answer{Token: 6, From: far, Seq: 1000, Flags: packet.TCPRst | packet.TCPAck, TTL: 64, Len: 40}},
		{"an error about a SYN", errorOf(sent(flow.TCP, 50000, 80, 77)), Answer{Token: 6, Error: true, Type: packet.ICMPTimeExceeded, Seq: 77, TTL: 64}},
		{"an error about a datagram", errorOf(sent(flow.UDP, 50001, 33436, 0)), Answer{Token: 7, Error: true, Type: packet.ICMPTimeExceeded, Seq: 33436, TTL: 64}},
	} {
		s := &r.send(0, c.f)[0]
		got := r.answered()
		if s.Verdict != verdict.Taken || len(got) != 1 {
			t.Errorf("%s: %s (%s), %d taken", c.name, s.Verdict, s.Reason, len(got))
			continue
		}
		if c.want.Error {
			c.want.From, c.want.Len = flow.AddrFrom(netip.MustParseAddr("203.0.113.99")), got[0].Len
		}
		if c.want.Ns = r.now; got[0] != c.want {
			t.Errorf("%s: %+v, want %+v", c.name, got[0], c.want)
		}
	}
	// From a tenant's side the same words mean nothing.
	if s := &r.send(1, frame(t, eth(macs[1], layers.EthernetTypeIPv4), ip4("203.0.113.11", "203.0.113.1", layers.IPProtocolICMPv4), &layers.ICMPv4{Id: 7}, gopacket.Payload("12345678")))[0]; s.Verdict != verdict.Drop {
		t.Errorf("from a tenant: %s", s.Verdict)
	}
	r.sh.SetWaits(nil)
	r.wantDrop(&r.send(0, echo("203.0.113.11", 7, 1, 0))[0], verdict.LocalUnhandled)
}

// Whoever knows what is waited for cannot load the control side with it: a rate, and a ring that is full when nobody reads.
func TestAnswersAreBounded(t *testing.T) {
	r := newRig(t, testNode, testPolicy)
	gw, far := flow.AddrFrom(netip.MustParseAddr("203.0.113.1")), flow.AddrFrom(netip.MustParseAddr("203.0.113.11"))
	r.sh.SetWaits([]Wait{{Token: 5, Family: 4, Proto: flow.ICMP, Local: gw, Far: far, ID: 7}})
	f := frame(t, eth(macs[0], layers.EthernetTypeIPv4), ip4("203.0.113.11", "203.0.113.1", layers.IPProtocolICMPv4), &layers.ICMPv4{Id: 7}, gopacket.Payload("12345678"))
	taken := 0
	for range 100_000 { // a second of 100,000 a second
		r.now += 10_000
		if s := &r.send(0, f)[0]; s.Verdict == verdict.Taken {
			taken++
		} else if s.Reason != verdict.ICMPRateLimited {
			t.Fatalf("%s (%s)", s.Verdict, s.Reason)
		}
		if taken%50 == 0 {
			r.answered()
		}
	}
	if taken < answersPerSecond || taken > answersPerSecond*13/10 {
		t.Errorf("%d taken in a second, want about %d", taken, answersPerSecond)
	}
	r.answered()
	for range 10 * answerRing { // nobody reads
		r.now += 10e6
		r.send(0, f)
	}
	if n := len(r.answered()); n != answerRing {
		t.Errorf("%d kept, want %d", n, answerRing)
	}
	if n := testing.AllocsPerRun(200, func() { r.now += 10e6; r.send(0, f) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}
