package pipeline

import (
	"bytes"
	"encoding/binary"
	"net"
	"testing"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"

	"demarc/gateway/meter"
	"demarc/gateway/packet"
	"demarc/gateway/packet/csum"
	"demarc/gateway/verdict"
)

func TestOutboundUDPIsTranslatedAndItsAnswerComesBack(t *testing.T) {
	r := newRig(t, testNode, testPolicy)
	s := r.send(1, udp4(t, 1, "198.18.10.11", 5060, "203.0.113.11", 5061))
	p := r.want(&s[0], verdict.Send)
	ip, u := p.Layer(layers.LayerTypeIPv4).(*layers.IPv4), p.Layer(layers.LayerTypeUDP).(*layers.UDP)
	if ip.SrcIP.String() != "192.0.2.16" || ip.TTL != 63 || u.SrcPort%2 != 0 || s[0].OutPort != 0 {
		t.Fatalf("left as %s:%d ttl %d on port %d", ip.SrcIP, u.SrcPort, ip.TTL, s[0].OutPort)
	}
	back := r.send(0, udp4(t, 0, "203.0.113.11", 5061, "192.0.2.16", uint16(u.SrcPort)))
	p = r.want(&back[0], verdict.Send)
	ip, u = p.Layer(layers.LayerTypeIPv4).(*layers.IPv4), p.Layer(layers.LayerTypeUDP).(*layers.UDP)
	if ip.DstIP.String() != "198.18.10.11" || u.DstPort != 5060 || back[0].OutPort != 1 {
		t.Fatalf("came back to %s:%d on port %d", ip.DstIP, u.DstPort, back[0].OutPort)
	}
	// A stranger may not use the mapping: filtering is address-and-port-dependent by default.
	x := r.send(0, udp4(t, 0, "203.0.113.66", 5061, "192.0.2.16", uint16(5060)))
	if x[0].Verdict != verdict.Drop {
		t.Fatalf("stranger: %s", x[0].Verdict)
	}
	if v := r.sh.Meter.Volume(1, meter.Out); v.Packets != 1 || v.Bytes != 35 {
		t.Fatalf("metered %+v, want 1 packet of 35 IP bytes", v)
	}
}

func TestTenantsWithOnePrefixStayApart(t *testing.T) {
	r := newRig(t, testNode, testPolicy)
	a := r.send(1, udp4(t, 1, "198.18.10.11", 4000, "203.0.113.11", 53))
	pa := r.want(&a[0], verdict.Send)
	b := r.send(1, tagged(udp4(t, 1, "198.18.10.11", 4000, "203.0.113.11", 53), 20))
	pb := r.want(&b[0], verdict.Send)
	sa, sb := pa.Layer(layers.LayerTypeIPv4).(*layers.IPv4).SrcIP, pb.Layer(layers.LayerTypeIPv4).(*layers.IPv4).SrcIP
	if sa.String() != "192.0.2.16" || sb.String() != "192.0.2.32" {
		t.Fatalf("alpha left as %s, beta as %s", sa, sb)
	}
	back := r.send(0, udp4(t, 0, "203.0.113.11", 53, "192.0.2.32", uint16(pb.Layer(layers.LayerTypeUDP).(*layers.UDP).SrcPort)))
	p := r.want(&back[0], verdict.Send)
	tag, ok := p.Layer(layers.LayerTypeDot1Q).(*layers.Dot1Q)
	if !ok || tag.VLANIdentifier != 20 || back[0].OutPort != 1 {
		t.Fatalf("beta's answer left on port %d with tag %+v", back[0].OutPort, tag)
	}
}

func TestWhatMayNotPass(t *testing.T) {
	syn := func(t *layers.TCP) { t.SYN = true }
	for _, c := range []struct {
		name string
		port int
		make func(testing.TB) []byte
		want verdict.Reason
	}{
		{"spoofed source", 1, func(t testing.TB) []byte { return udp4(t, 1, "198.18.99.11", 1, "203.0.113.11", 2) }, verdict.SpoofedSource},
		{"our own source from outside", 0, func(t testing.TB) []byte { return udp4(t, 0, "192.0.2.16", 1, "192.0.2.32", 2) }, verdict.SpoofedSource},
		{"denied by rule", 1, func(t testing.TB) []byte { return tcp4(t, 1, "198.18.10.11", 1, "203.0.113.11", 25, syn) }, verdict.ACLDeny},
		{"inbound without a rule", 0, func(t testing.TB) []byte { return udp4(t, 0, "203.0.113.11", 1, "192.0.2.100", 2) }, verdict.ACLDefault},
		{"unused port of a NAT address", 0, func(t testing.TB) []byte { return udp4(t, 0, "203.0.113.11", 1, "192.0.2.16", 2) }, verdict.NATUnusedAddress},
		{"transit", 0, func(t testing.TB) []byte { return udp4(t, 0, "203.0.113.11", 1, "203.0.113.99", 2) }, verdict.NotForUs},
		{"inside address from outside", 0, func(t testing.TB) []byte { return udp4(t, 0, "203.0.113.11", 1, "198.18.10.11", 2) }, verdict.NotForUs},
		{"no syn", 1, func(t testing.TB) []byte {
			return tcp4(t, 1, "198.18.10.11", 1, "203.0.113.11", 80, func(t *layers.TCP) { t.ACK = true })
		}, verdict.TCPNotSyn},
		{"multicast", 1, func(t testing.TB) []byte { return udp4(t, 1, "198.18.10.11", 1, "224.0.0.5", 2) }, verdict.Multicast},
		{"class e", 1, func(t testing.TB) []byte { return udp4(t, 1, "198.18.10.11", 1, "240.0.0.5", 2) }, verdict.Martian},
		{"loopback", 1, func(t testing.TB) []byte { return udp4(t, 1, "198.18.10.11", 1, "127.0.0.1", 2) }, verdict.Martian},
		{"land", 1, func(t testing.TB) []byte { return udp4(t, 1, "198.18.10.11", 1, "198.18.10.11", 1) }, verdict.Land},
		{"unknown vlan", 1, func(t testing.TB) []byte {
			return tagged(udp4(t, 1, "198.18.10.11", 1, "203.0.113.11", 2), 21)
		}, verdict.UnknownVLAN},
		{"someone else's frame", 1, func(t testing.TB) []byte { return udp4(t, 2, "198.18.10.11", 1, "203.0.113.11", 2) }, verdict.ForeignMAC},
		{"gateway's own port", 1, func(t testing.TB) []byte { return udp4(t, 1, "198.18.10.11", 1, "198.18.10.1", 2) }, verdict.LocalUnhandled},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := newRig(t, testNode, testPolicy)
			s := r.send(c.port, c.make(t))
			r.wantDrop(&s[0], c.want)
			if n := r.sh.Sessions.Len(); n != 0 {
				t.Fatalf("%d sessions were left behind", n)
			}
			total := uint64(0)
			for id := range r.sh.Meter.Tenants() {
				total += r.sh.Meter.Drops(flowID(id), c.want)
			}
			if total != 1 {
				t.Fatalf("counted %d times under %s", total, c.want)
			}
		})
	}
}

func TestPortForwardAndStatic(t *testing.T) {
	r := newRig(t, testNode, testPolicy)
	syn := func(t *layers.TCP) { t.SYN = true }
	s := r.send(0, tcp4(t, 0, "203.0.113.11", 40000, "192.0.2.16", 8080, syn))
	p := r.want(&s[0], verdict.Send)
	if ip, tc := p.Layer(layers.LayerTypeIPv4).(*layers.IPv4), p.Layer(layers.LayerTypeTCP).(*layers.TCP); ip.DstIP.String() != "198.18.10.11" || tc.DstPort != 80 {
		t.Fatalf("forwarded to %s:%d", ip.DstIP, tc.DstPort)
	}
	s = r.send(1, tcp4(t, 1, "198.18.10.11", 80, "203.0.113.11", 40000, func(t *layers.TCP) { t.SYN, t.ACK, t.Ack = true, true, 1001 }))
	p = r.want(&s[0], verdict.Send)
	if ip, tc := p.Layer(layers.LayerTypeIPv4).(*layers.IPv4), p.Layer(layers.LayerTypeTCP).(*layers.TCP); ip.SrcIP.String() != "192.0.2.16" || tc.SrcPort != 8080 {
		t.Fatalf("answered from %s:%d", ip.SrcIP, tc.SrcPort)
	}
	s = r.send(1, udp4(t, 1, "198.18.10.100", 777, "203.0.113.11", 53))
	p = r.want(&s[0], verdict.Send)
	if ip, u := p.Layer(layers.LayerTypeIPv4).(*layers.IPv4), p.Layer(layers.LayerTypeUDP).(*layers.UDP); ip.SrcIP.String() != "192.0.2.100" || u.SrcPort != 777 {
		t.Fatalf("1:1 left as %s:%d", ip.SrcIP, u.SrcPort)
	}
}

// What comes from where a forward leads to leaves by the forward's public end, whoever speaks first: so the far end may begin conversations to that while one of the inside end's own lives (a telephone exchange that registers, and is called).
func TestWhatIsBehindAForwardLeavesByIt(t *testing.T) {
	r := newRig(t, testNode, testPolicy)
	const inside, public, far = "198.18.10.11", "192.0.2.16", "203.0.113.11"
	syn := func(t *layers.TCP) { t.SYN = true }
	s := r.send(1, tcp4(t, 1, inside, 80, far, 5060, syn))
	p := r.want(&s[0], verdict.Send)
	if ip, tc := p.Layer(layers.LayerTypeIPv4).(*layers.IPv4), p.Layer(layers.LayerTypeTCP).(*layers.TCP); ip.SrcIP.String() != public || tc.SrcPort != 8080 {
		t.Fatalf("left as %s:%d, and the forward is of %s:8080", ip.SrcIP, tc.SrcPort, public)
	}
	s = r.send(0, tcp4(t, 0, far, 5060, public, 8080, func(t *layers.TCP) { t.SYN, t.ACK, t.Ack = true, true, 1001 }))
	p = r.want(&s[0], verdict.Send)
	if ip, tc := p.Layer(layers.LayerTypeIPv4).(*layers.IPv4), p.Layer(layers.LayerTypeTCP).(*layers.TCP); ip.DstIP.String() != inside || tc.DstPort != 80 {
		t.Fatalf("answered to %s:%d", ip.DstIP, tc.DstPort)
	}
	// Another port of the same host, and another protocol of the same port, are translated as any.
	for what, f := range map[string][]byte{"another port": tcp4(t, 1, inside, 81, far, 5060, syn), "another protocol": udp4(t, 1, inside, 80, far, 5060)} {
		s = r.send(1, f)
		p = r.want(&s[0], verdict.Send)
		if tl := p.TransportLayer().TransportFlow().Src().String(); tl == "8080" {
			t.Errorf("%s left by the forward", what)
		}
	}
	// The other one may begin as well, from another port of its.
	s = r.send(0, tcp4(t, 0, far, 40000, public, 8080, syn))
	r.want(&s[0], verdict.Send)
}

// Bytes behind the packet are not sent: they would be neither counted nor limited. The padding of a short frame stays.
func TestWhatStandsBehindAPacketIsCutOff(t *testing.T) {
	r := newRig(t, testNode, testPolicy)
	for _, c := range []struct{ behind, want int }{{0, 60}, {4, 64}, {5, 60}, {1400, 60}} {
		f := udp4(t, 1, "198.18.10.5", 4000, "203.0.113.11", 53)
		f = append(f[:60:60], make([]byte, c.behind)...)
		s := r.send(1, f)
		r.want(&s[0], verdict.Send)
		if n := len(s[0].Frame()); n != c.want {
			t.Errorf("%d bytes behind 60: %d were sent, want %d", c.behind, n, c.want)
		}
	}
	long := tcp4(t, 1, "198.18.10.5", 4000, "203.0.113.11", 80, func(t *layers.TCP) {
		t.SYN = true
		t.Options = []layers.TCPOption{{OptionType: 2, OptionLength: 4, OptionData: []byte{5, 180}}, {OptionType: 4, OptionLength: 2}, {OptionType: 8, OptionLength: 10, OptionData: make([]byte, 8)}}
	})
	end := 14 + int(be.Uint16(long[16:]))
	s := r.send(1, append(long[:end:end], 1, 2, 3, 4))
	r.want(&s[0], verdict.Send)
	if n := len(s[0].Frame()); n != max(end, 60) {
		t.Errorf("four bytes behind %d: %d were sent", end, n)
	}
}

// cutToIP is a frame without what stands behind its packet, as receive has it.
func cutToIP(f []byte) []byte {
	p := packet.Packet{Buf: bytes.Clone(f), Len: len(f)}
	if packet.Parse(&p); len(f) > ethMost && p.L3End > 0 {
		return f[:max(p.L3End, ethLeast+p.L3-ethHeader)]
	}
	return f
}

func TestHairpinThroughAForwardedPort(t *testing.T) {
	r := newRig(t, testNode, testPolicy)
	s := r.send(1, tcp4(t, 1, "198.18.10.12", 40000, "192.0.2.16", 8080, func(t *layers.TCP) { t.SYN = true }))
	r.want(&s[0], verdict.Loop)
	p := r.want(r.loop(), verdict.Send)
	ip, tc := p.Layer(layers.LayerTypeIPv4).(*layers.IPv4), p.Layer(layers.LayerTypeTCP).(*layers.TCP)
	if ip.SrcIP.String() != "192.0.2.16" || ip.DstIP.String() != "198.18.10.11" || tc.DstPort != 80 || ip.TTL != 63 {
		t.Fatalf("hairpin arrived as %s:%d > %s:%d ttl %d (RFC 4787 REQ-9: external source)", ip.SrcIP, tc.SrcPort, ip.DstIP, tc.DstPort, ip.TTL)
	}
	s = r.send(1, tcp4(t, 1, "198.18.10.11", 80, "192.0.2.16", uint16(tc.SrcPort), func(t *layers.TCP) { t.SYN, t.ACK, t.Ack = true, true, 1001 }))
	r.want(&s[0], verdict.Loop)
	p = r.want(r.loop(), verdict.Send)
	ip, tc = p.Layer(layers.LayerTypeIPv4).(*layers.IPv4), p.Layer(layers.LayerTypeTCP).(*layers.TCP)
	if ip.SrcIP.String() != "192.0.2.16" || tc.SrcPort != 8080 || ip.DstIP.String() != "198.18.10.12" || tc.DstPort != 40000 {
		t.Fatalf("hairpin answer %s:%d > %s:%d", ip.SrcIP, tc.SrcPort, ip.DstIP, tc.DstPort)
	}
}

func TestICMPErrorReachesTheInsideHost(t *testing.T) {
	r := newRig(t, testNode, testPolicy)
	s := r.send(1, udp4(t, 1, "198.18.10.11", 33333, "203.0.113.11", 33434))
	out := r.want(&s[0], verdict.Send)
	quoted := out.Layer(layers.LayerTypeEthernet).(*layers.Ethernet).Payload
	f := frame(t, eth(macs[0], layers.EthernetTypeIPv4), ip4("203.0.113.254", "192.0.2.16", layers.IPProtocolICMPv4),
		&layers.ICMPv4{TypeCode: layers.CreateICMPv4TypeCode(11, 0)}, gopacket.Payload(quoted[:28]))
	s = r.send(0, f)
	p := r.want(&s[0], verdict.Send)
	if ip := p.Layer(layers.LayerTypeIPv4).(*layers.IPv4); ip.DstIP.String() != "198.18.10.11" || ip.SrcIP.String() != "203.0.113.254" {
		t.Fatalf("error went %s > %s", ip.SrcIP, ip.DstIP)
	}
	inner := gopacket.NewPacket(p.Layer(layers.LayerTypeICMPv4).LayerPayload(), layers.LayerTypeIPv4, gopacket.Default)
	ip, u := inner.Layer(layers.LayerTypeIPv4).(*layers.IPv4), inner.Layer(layers.LayerTypeUDP).(*layers.UDP)
	if ip.SrcIP.String() != "198.18.10.11" || u.SrcPort != 33333 || u.DstPort != 33434 {
		t.Fatalf("quotes %s:%d > %s:%d", ip.SrcIP, u.SrcPort, ip.DstIP, u.DstPort)
	}
}

func TestTimeExceededAndPingOfTheGateway(t *testing.T) {
	r := newRig(t, testNode, testPolicy)
	ip := ip4("198.18.10.11", "203.0.113.11", layers.IPProtocolUDP)
	ip.TTL = 1
	s := r.send(1, frame(t, eth(macs[1], layers.EthernetTypeIPv4), ip, udp(1, 2), gopacket.Payload("x")))
	p := r.want(&s[0], verdict.Send)
	ic := p.Layer(layers.LayerTypeICMPv4).(*layers.ICMPv4)
	if src := p.Layer(layers.LayerTypeIPv4).(*layers.IPv4).SrcIP.String(); src != "198.18.10.1" || ic.TypeCode.Type() != 11 || s[0].OutPort != 1 {
		t.Fatalf("%s from %s on port %d", ic.TypeCode, src, s[0].OutPort)
	}
	echo := func(port int, src, dst string) []byte {
		return frame(t, eth(macs[port], layers.EthernetTypeIPv4), ip4(src, dst, layers.IPProtocolICMPv4), &layers.ICMPv4{TypeCode: layers.CreateICMPv4TypeCode(8, 0), Id: 7, Seq: 1}, gopacket.Payload("abc"))
	}
	for _, c := range []struct {
		port     int
		src, dst string
	}{{1, "198.18.10.11", "198.18.10.1"}, {0, "203.0.113.11", "203.0.113.1"}, {0, "203.0.113.11", "192.0.2.16"}, {1, "198.18.10.11", "203.0.113.1"}, {1, "198.18.10.11", "192.0.2.16"}} {
		s = r.send(c.port, echo(c.port, c.src, c.dst))
		p = r.want(&s[0], verdict.Send)
		if e := p.Layer(layers.LayerTypeIPv4).(*layers.IPv4); e.SrcIP.String() != c.dst || e.DstIP.String() != c.src || s[0].OutPort != uint16(c.port) {
			t.Fatalf("ping %s > %s answered %s > %s", c.src, c.dst, e.SrcIP, e.DstIP)
		}
	}
	// The ping through: identifier mapped, answer translated back.
	s = r.send(1, echo(1, "198.18.10.11", "203.0.113.11"))
	p = r.want(&s[0], verdict.Send)
	id := p.Layer(layers.LayerTypeICMPv4).(*layers.ICMPv4).Id
	s = r.send(0, frame(t, eth(macs[0], layers.EthernetTypeIPv4), ip4("203.0.113.11", "192.0.2.16", layers.IPProtocolICMPv4), &layers.ICMPv4{TypeCode: layers.CreateICMPv4TypeCode(0, 0), Id: id, Seq: 1}, gopacket.Payload("abc")))
	p = r.want(&s[0], verdict.Send)
	if e := p.Layer(layers.LayerTypeICMPv4).(*layers.ICMPv4); e.Id != 7 || p.Layer(layers.LayerTypeIPv4).(*layers.IPv4).DstIP.String() != "198.18.10.11" {
		t.Fatalf("ping answer came back with id %d", e.Id)
	}
}

func TestIPv6IsRoutedStatefully(t *testing.T) {
	r := newRig(t, testNode, testPolicy)
	ip6 := func(src, dst string) *layers.IPv6 {
		return &layers.IPv6{Version: 6, HopLimit: 64, NextHeader: layers.IPProtocolUDP, SrcIP: net.ParseIP(src), DstIP: net.ParseIP(dst)}
	}
	in := r.send(0, frame(t, eth(macs[0], layers.EthernetTypeIPv6), ip6("2001:db8:ff::11", "2001:db8:a::11"), udp(53, 4000), gopacket.Payload("x")))
	r.wantDrop(&in[0], verdict.ACLDefault)
	out := r.send(1, frame(t, eth(macs[1], layers.EthernetTypeIPv6), ip6("2001:db8:a::11", "2001:db8:ff::11"), udp(4000, 53), gopacket.Payload("x")))
	p := r.want(&out[0], verdict.Send)
	if l := p.Layer(layers.LayerTypeIPv6).(*layers.IPv6); l.HopLimit != 63 || l.SrcIP.String() != "2001:db8:a::11" {
		t.Fatalf("left as %s hop limit %d", l.SrcIP, l.HopLimit)
	}
	in = r.send(0, frame(t, eth(macs[0], layers.EthernetTypeIPv6), ip6("2001:db8:ff::11", "2001:db8:a::11"), udp(53, 4000), gopacket.Payload("x")))
	r.want(&in[0], verdict.Send)
}

func TestMSSIsClamped(t *testing.T) {
	r := newRig(t, testNode, testPolicy)
	s := r.send(1, tcp4(t, 1, "198.18.10.11", 1, "203.0.113.11", 80, func(t *layers.TCP) {
		t.SYN = true
		t.Options = []layers.TCPOption{{OptionType: layers.TCPOptionKindMSS, OptionLength: 4, OptionData: []byte{0x05, 0xb4}}}
	}))
	p := r.want(&s[0], verdict.Send)
	if d := p.Layer(layers.LayerTypeTCP).(*layers.TCP).Options[0].OptionData; int(d[0])<<8|int(d[1]) != 1400 {
		t.Fatalf("mss %v, want 1400", d)
	}
}

func TestPolicyChangeCutsWhatItDeniesAndNothingElse(t *testing.T) {
	r := newRig(t, testNode, testPolicy)
	dns := udp4(t, 1, "198.18.10.11", 4000, "203.0.113.11", 53)
	ntp := udp4(t, 1, "198.18.10.11", 4001, "203.0.113.11", 123)
	for _, f := range [][]byte{dns, ntp} {
		r.want(&r.send(1, f)[0], verdict.Send)
	}
	text := testPolicy[:len(testPolicy)-1] + ""
	stricter := replaceOnce(t, text, `service = ["tcp/25"]`, `service = ["tcp/25", "udp/123"]`)
	v := compileView(t, r.node, r.space, r.view, stricter)
	would := 0
	r.sh.Sessions.Each(0, 1024, func(_ uint32, se *sessionT) bool {
		if r.sh.WouldCut(v, se) {
			would++
		}
		return true
	})
	if would != 1 {
		t.Fatalf("diff says %d sessions would be cut, want 1", would)
	}
	r.sh.SetView(v)
	r.want(&r.send(1, dns)[0], verdict.Send)
	r.wantDrop(&r.send(1, ntp)[0], verdict.SessionCut)
	r.wantDrop(&r.send(1, ntp)[0], verdict.ACLDeny)
	// A tenant that is gone takes its sessions with it, also idle ones.
	gone := replaceOnce(t, text, `name = "alpha"`, `name = "other"`)
	r.sh.SetView(compileView(t, r.node, r.space, v, gone))
	for !r.sh.Settled() {
		r.sh.Rejudge(r.now, 100)
	}
	if n := r.sh.Sessions.Len(); n != 0 {
		t.Fatalf("%d sessions of a removed tenant live on", n)
	}
}

func TestEndpointIndependentFiltering(t *testing.T) {
	r := newRig(t, testNode, testPolicy)
	s := r.send(2, udp4(t, 2, "198.18.30.5", 4000, "203.0.113.11", 53))
	port := r.want(&s[0], verdict.Send).Layer(layers.LayerTypeUDP).(*layers.UDP).SrcPort
	s = r.send(0, udp4(t, 0, "203.0.113.77", 9999, "192.0.2.48", uint16(port)))
	p := r.want(&s[0], verdict.Send)
	if ip := p.Layer(layers.LayerTypeIPv4).(*layers.IPv4); ip.DstIP.String() != "198.18.30.5" {
		t.Fatalf("went to %s", ip.DstIP)
	}
}

// A host that is the tenant's no more is reached by nobody: what strangers had begun to it ends, and its mapping lets no other in.
func TestAHostThatIsGoneIsReachedByNobody(t *testing.T) {
	r := newRig(t, testNode, testPolicy)
	s := r.send(2, udp4(t, 2, "198.18.30.200", 4000, "203.0.113.11", 53))
	port := uint16(r.want(&s[0], verdict.Send).Layer(layers.LayerTypeUDP).(*layers.UDP).SrcPort)
	stranger := udp4(t, 0, "203.0.113.77", 9999, "192.0.2.48", port)
	r.want(&r.send(0, stranger)[0], verdict.Send)
	r.sh.SetView(compileView(t, r.node, r.space, r.view, replaceOnce(t, testPolicy, `prefixes = ["198.18.30.0/24"]`, `prefixes = ["198.18.30.0/28"]`)))
	r.wantDrop(&r.send(0, stranger)[0], verdict.SessionCut)
	r.wantDrop(&r.send(0, udp4(t, 0, "203.0.113.78", 9999, "192.0.2.48", port))[0], verdict.NATUnusedAddress)
}

func TestBurstAllocatesNothing(t *testing.T) {
	limited := replaceOnce(t, testPolicy, "[[tenant.nat.static]]", "[tenant.limits]\nhost_sessions = 900\n[[tenant.nat.static]]")
	limited = replaceOnce(t, limited, "name = \"alpha\"\n", "name = \"alpha\"\nreject = \"reset\"\n")
	r := newRig(t, testNode, limited)
	syn := func(t *layers.TCP) { t.SYN = true }
	ip6 := &layers.IPv6{Version: 6, HopLimit: 64, NextHeader: layers.IPProtocolUDP, SrcIP: net.ParseIP("2001:db8:a::11"), DstIP: net.ParseIP("2001:db8:ff::11")}
	echo := frame(t, eth(macs[1], layers.EthernetTypeIPv4), ip4("198.18.10.11", "203.0.113.11", layers.IPProtocolICMPv4), &layers.ICMPv4{TypeCode: layers.CreateICMPv4TypeCode(8, 0), Id: 7}, gopacket.Payload("abc"))
	expired := ip4("198.18.10.11", "203.0.113.11", layers.IPProtocolUDP)
	expired.TTL = 1
	out := [][]byte{
		udp4(t, 1, "198.18.10.11", 2000, "203.0.113.11", 53), tcp4(t, 1, "198.18.10.11", 2001, "203.0.113.11", 80, syn), echo,
		frame(t, eth(macs[1], layers.EthernetTypeIPv6), ip6, udp(4000, 53), gopacket.Payload("x")),
		udp4(t, 1, "198.18.99.9", 1, "203.0.113.11", 2), tcp4(t, 1, "198.18.10.11", 2002, "203.0.113.11", 25, syn),
		frame(t, eth(macs[1], layers.EthernetTypeIPv4), expired, udp(1, 2), gopacket.Payload("x")),
		frame(t, eth(macs[1], layers.EthernetTypeIPv6), &layers.IPv6{Version: 6, HopLimit: 64, NextHeader: layers.IPProtocolUDP, SrcIP: net.ParseIP("2001:db8:a::11"), DstIP: net.ParseIP("2001:db8:99::1")}, udp(1, 2)),
		withOptions(udp4(t, 1, "198.18.10.11", 2000, "203.0.113.11", 53), []byte{148, 4, 0, 0}),
	}
	in := [][]byte{tcp4(t, 0, "203.0.113.11", 40000, "192.0.2.16", 8080, syn), udp4(t, 0, "203.0.113.11", 1, "192.0.2.16", 9)}
	for name, first := range map[string]bool{"first packets": true, "established": false} {
		if n := testing.AllocsPerRun(100, func() {
			r.now += 1e7
			if first {
				r.sh.Cut(func(*sessionT) bool { return true })
			}
			r.send(1, out...)
			r.send(0, in...)
			r.sh.Maintain(r.now, 100)
		}); n != 0 {
			t.Errorf("%s: %v allocations a round", name, n)
		}
		if n := r.sh.Sessions.Len(); n < 5 {
			t.Errorf("%s: only %d sessions, the frames were to make five", name, n)
		}
	}
}

func TestUnfinishedChecksumsAreNamed(t *testing.T) {
	spoil := func(f []byte, l4, at int, proto uint8) []byte {
		p := csum.Pseudo4([4]byte(f[26:30]), [4]byte(f[30:34]), proto, int(binary.BigEndian.Uint16(f[16:]))-20)
		binary.BigEndian.PutUint16(f[l4+at:], csum.Fold(p))
		return f
	}
	r := newRig(t, testNode, testPolicy)
	r.wantDrop(&r.send(1, spoil(udp4(t, 1, "198.18.10.11", 5, "203.0.113.11", 6), 34, 6, 17))[0], verdict.UnfinishedChecksum)
	r.wantDrop(&r.send(1, spoil(tcp4(t, 1, "198.18.10.11", 5, "203.0.113.11", 80, func(t *layers.TCP) { t.SYN = true }), 34, 16, 6))[0], verdict.UnfinishedChecksum)
	out := r.want(&r.send(1, udp4(t, 1, "198.18.10.11", 5, "203.0.113.11", 6))[0], verdict.Send)
	port := uint16(out.Layer(layers.LayerTypeUDP).(*layers.UDP).SrcPort)
	r.wantDrop(&r.send(0, spoil(udp4(t, 0, "203.0.113.11", 6, "192.0.2.16", port), 34, 6, 17))[0], verdict.UnfinishedChecksum)
	r.want(&r.send(0, udp4(t, 0, "203.0.113.11", 6, "192.0.2.16", port))[0], verdict.Send)
	// A checksum that is right and looks unfinished passes: payload chosen so.
	for n := range 1 << 17 {
		f := frame(t, eth(macs[1], layers.EthernetTypeIPv4), ip4("198.18.10.11", "203.0.113.11", layers.IPProtocolUDP), udp(9, 6), gopacket.Payload([]byte{byte(n >> 16), byte(n >> 8), byte(n), 0}))
		if binary.BigEndian.Uint16(f[40:]) == csum.Fold(csum.Pseudo4([4]byte(f[26:30]), [4]byte(f[30:34]), 17, 12)) {
			r.want(&r.send(1, f)[0], verdict.Send)
			return
		}
	}
	t.Fatal("no payload gives such a checksum")
}

func TestRecoverGivesBackAMappingThatNoSessionHolds(t *testing.T) {
	r := newRig(t, testNode, testPolicy)
	tn := r.view.TenantByName("alpha")
	se := sessionT{Proto: 17, Tenant: tn.ID, OrigSPort: 4000}
	se.OrigSrc.SetV4(0xc6120a0b)
	if why := r.sh.translateSource(tn, &se); why != verdict.Pass || r.sh.NAT.Len() != 1 {
		t.Fatalf("%s, %d mappings", why, r.sh.NAT.Len())
	}
	// Here a panic would leave it.
	if !r.sh.Recover() || r.sh.NAT.Len() != 0 {
		t.Errorf("%d mappings left behind", r.sh.NAT.Len())
	}
	// One that a session holds stays.
	r.want(&r.send(1, udp4(t, 1, "198.18.10.11", 4000, "203.0.113.11", 53))[0], verdict.Send)
	if r.sh.Recover() || r.sh.NAT.Len() != 1 {
		t.Errorf("a live mapping went: %d left", r.sh.NAT.Len())
	}
	// One that is kept while a tuple is used again, when its session is gone already.
	r.sh.Sessions.Each(0, 10, func(slot uint32, se *sessionT) bool {
		r.sh.keeping = se.Mapping
		r.sh.NAT.Ref(se.Mapping)
		r.sh.end(slot, se)
		return true
	})
	if r.sh.NAT.Len() != 1 || !r.sh.Recover() || r.sh.NAT.Len() != 0 || r.sh.Recover() {
		t.Errorf("%d mappings left behind", r.sh.NAT.Len())
	}
}

// Two tenants, or two hosts round a public address: the path's MTU must be found there too (RFC 1191).
func TestTooBigGoesBackRoundOurOwnAddress(t *testing.T) {
	node := replaceOnce(t, testNode, `port = "u0"
addresses`, `port = "u0"
mtu = 600
addresses`)
	policy := replaceOnce(t, testPolicy, `filtering = "endpoint-independent"`, `filtering = "endpoint-independent"
[[tenant.nat.forward]]
public = "192.0.2.48"
proto = "udp"
port = 7000
inside = "198.18.30.5"
[[tenant.rule]]
direction = "in"
action = "allow"
service = ["udp/7000"]`)
	r := newRig(t, node, policy)
	big := func() []byte {
		ip := ip4("198.18.10.11", "192.0.2.48", layers.IPProtocolUDP)
		ip.Flags = layers.IPv4DontFragment
		return frame(t, eth(macs[1], layers.EthernetTypeIPv4), ip, udp(4000, 7000), gopacket.Payload(make([]byte, 900)))
	}
	r.want(&r.send(1, big())[0], verdict.Loop)
	r.want(r.loop(), verdict.Loop) // the error, on its way back
	p := r.want(r.loop(), verdict.Send)
	ip, ic := p.Layer(layers.LayerTypeIPv4).(*layers.IPv4), p.Layer(layers.LayerTypeICMPv4).(*layers.ICMPv4)
	if ip.DstIP.String() != "198.18.10.11" || ip.SrcIP.String() != "203.0.113.1" || ic.TypeCode != layers.CreateICMPv4TypeCode(3, 4) || ic.Seq != 600 || r.slots[0].OutPort != 1 {
		t.Fatalf("%s > %s %s mtu %d on port %d", ip.SrcIP, ip.DstIP, ic.TypeCode, ic.Seq, r.slots[0].OutPort)
	}
	inner := gopacket.NewPacket(ic.LayerPayload(), layers.LayerTypeIPv4, gopacket.Lazy)
	if q := inner.Layer(layers.LayerTypeIPv4).(*layers.IPv4); q.SrcIP.String() != "198.18.10.11" || q.DstIP.String() != "192.0.2.48" {
		t.Fatalf("quotes %s > %s", q.SrcIP, q.DstIP)
	}
	// What fits goes through.
	r.want(&r.send(1, udp4(t, 1, "198.18.10.11", 4000, "192.0.2.48", 7000))[0], verdict.Loop)
	r.want(r.loop(), verdict.Send)
}
