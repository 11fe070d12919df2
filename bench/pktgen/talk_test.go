package pktgen

import (
	"bytes"
	"net/netip"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"

	"demarc/gateway/netlab/roottest"
)

func loadTalks(t *testing.T) *Talks {
	t.Helper()
	roottest.Require(t)
	p := testPlan()
	p.OutsideFrom, p.OutsideTo = [6]byte{2, 0, 0, 0, 0, 4}, [6]byte{2, 0, 0, 0, 0, 3}
	e, err := LoadTalks(p)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { e.Close() })
	if err := e.Fresh(false, 1); err != nil {
		t.Fatal(err)
	}
	return e
}

// shown runs a program on a frame: what it makes of it, nil where it drops it, and how many of each kind it has counted.
func shown(t *testing.T, e *Talks, p *ebpf.Program, row uint32, frame []byte) ([]byte, Counts) {
	t.Helper()
	var before, after talkTally
	if err := e.objs.TalkTallies.Lookup(row, &before); err != nil {
		t.Fatal(err)
	}
	o := &ebpf.RunOptions{Data: frame, DataOut: make([]byte, 2000)}
	verdict, err := p.Run(o)
	if err != nil {
		t.Fatal(err)
	}
	if err := e.objs.TalkTallies.Lookup(row, &after); err != nil {
		t.Fatal(err)
	}
	counts := after.Kinds.Sub(before.Kinds)
	switch verdict {
	case xdpDrop:
		return nil, counts
	case xdpTX, xdpRedirect, xdpAborted: // nothing can be redirected in a test run without a device
		return o.DataOut, counts
	}
	t.Fatalf("verdict %d", verdict)
	return nil, counts
}

// dial1 begins a connection.
func dial1(t *testing.T, e *Talks) []byte {
	t.Helper()
	if err := e.objs.TalkOrders.Put(uint32(0), talkOrder{End: monotonic() + 1e10, Limit: 100, AtOnce: 100, Patience: 1e10, Batch: 1}); err != nil {
		t.Fatal(err)
	}
	f, _ := shown(t, e, e.objs.DemarcDial, 0, bytes.Repeat([]byte{0xa5}, 58))
	if f == nil {
		t.Fatal("no connection is begun")
	}
	return f
}

// mapped does to a frame what a right device under test does: out to the outside, or back.
func mapped(t *testing.T, frame []byte, back *netip.AddrPort, change func(ip *layers.IPv4, tcp *layers.TCP, payload []byte)) []byte {
	t.Helper()
	p := gopacket.NewPacket(frame, layers.LayerTypeEthernet, gopacket.NoCopy)
	eth, ip, tcp := p.Layer(layers.LayerTypeEthernet).(*layers.Ethernet), p.Layer(layers.LayerTypeIPv4).(*layers.IPv4), p.Layer(layers.LayerTypeTCP).(*layers.TCP)
	payload := bytes.Clone(tcp.Payload)
	ip.TTL--
	if back == nil {
		ip.SrcIP, tcp.SrcPort = []byte{192, 0, 2, 17}, 40000
	} else {
		ip.DstIP, tcp.DstPort = back.Addr().AsSlice(), layers.TCPPort(back.Port())
	}
	if change != nil {
		change(ip, tcp, payload)
	}
	if err := tcp.SetNetworkLayerForChecksum(ip); err != nil {
		t.Fatal(err)
	}
	b := gopacket.NewSerializeBuffer()
	if err := gopacket.SerializeLayers(b, gopacket.SerializeOptions{ComputeChecksums: true}, eth, ip, tcp, gopacket.Payload(payload)); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()[:ethLen+int(ip.Length)] // not filled up to what a wire wants
}

// A connection is seven frames, each as RFC 9293 has it and with the checksums that gopacket computes, and is over behind the last one.
func TestTalkFrames(t *testing.T) {
	e := loadTalks(t)
	f := dial1(t, e)
	var state talkState
	n, inside := -1, netip.AddrPort{}
	for i := range e.plan.Flows {
		if err := e.objs.Talks.Lookup(uint32(i), &state); err != nil {
			t.Fatal(err)
		}
		if state.Client > 0 {
			n = i
			inside, _ = e.plan.Flow(i)
		}
	}
	_, outside := e.plan.Flow(n)
	type said struct {
		out                bool
		syn, ack, psh, fin bool
		told               int
	}
	want := []said{{true, true, false, false, false, 0}, {false, true, true, false, false, 0}, {true, false, true, true, false, 4}, {false, false, true, true, false, 4},
		{true, false, true, false, true, 0}, {false, false, true, false, true, 0}, {true, false, true, false, false, 0}}
	next := map[bool]uint32{} // sequence numbers, by direction
	for i, w := range want {
		p := gopacket.NewPacket(f, layers.LayerTypeEthernet, gopacket.NoCopy)
		ip, tcp := p.Layer(layers.LayerTypeIPv4).(*layers.IPv4), p.Layer(layers.LayerTypeTCP).(*layers.TCP)
		if tcp == nil || len(f) != 14+int(ip.Length) {
			t.Fatalf("frame %d: %v", i, p)
		}
		if got := (said{w.out, tcp.SYN, tcp.ACK, tcp.PSH, tcp.FIN, len(tcp.Payload)}); got != w {
			t.Errorf("frame %d says %+v, want %+v", i, got, w)
		}
		src, _ := netip.AddrFromSlice(ip.SrcIP)
		dst, _ := netip.AddrFromSlice(ip.DstIP)
		from, to := netip.AddrPortFrom(src, uint16(tcp.SrcPort)), netip.AddrPortFrom(dst, uint16(tcp.DstPort))
		if w.out && (from != inside || to != outside) || !w.out && (from != outside || to != netip.MustParseAddrPort("192.0.2.17:40000")) {
			t.Errorf("frame %d goes from %v to %v", i, from, to)
		}
		if s, ok := next[w.out]; ok && tcp.Seq != s || tcp.ACK && tcp.Ack != next[!w.out] {
			t.Errorf("frame %d: sequence number %d, want %d; acknowledges %d, want %d", i, tcp.Seq, s, tcp.Ack, next[!w.out])
		}
		if next[w.out] = tcp.Seq + uint32(len(tcp.Payload)); w.syn || w.fin {
			next[w.out]++
		}
		ipSum, sum := ip.Checksum, tcp.Checksum
		again := mapped(t, f, &to, func(ip *layers.IPv4, _ *layers.TCP, _ []byte) { ip.TTL++ })
		if !bytes.Equal(again, f) {
			t.Errorf("frame %d has checksums %#x and %#x:\n% x\n% x", i, ipSum, sum, f, again)
		}
		prog, row, back := e.objs.DemarcServer, uint32(0), (*netip.AddrPort)(nil)
		if !w.out {
			prog, row, back = e.objs.DemarcClient, 1, &inside
		}
		at := mapped(t, f, back, nil)
		answer, counts := shown(t, e, prog, row, at)
		if counts != (Counts{Right: 1}) || (answer == nil) != (i == len(want)-1) {
			t.Fatalf("frame %d is judged %v, answered: %v", i, counts, answer != nil)
		}
		if _, counts := shown(t, e, prog, row, at); counts != (Counts{Duplicate: 1}) {
			t.Errorf("frame %d once more is judged %v", i, counts)
		}
		f = answer
	}
	p := talkProgress{Begun: 1}
	if got, err := e.talked(&p); err != nil || got.Over != 1 || got.Lost() != 0 || got.Times.TotalCount() != 1 || got.Server[Right] != talkOut || got.Client[Right] != talkIn {
		t.Errorf("%+v, %v", got, err)
	}
}

// What a device under test does wrong is told apart, at both ends.
func TestTalkJudges(t *testing.T) {
	type ip = *layers.IPv4
	type tcp = *layers.TCP
	for _, c := range []struct {
		name   string
		change func(ip, tcp, []byte)
		break_ func(f []byte)
		want   Kind
	}{
		{"ttl", func(i ip, _ tcp, _ []byte) { i.TTL-- }, nil, WrongTTL},
		{"sequence number", func(_ ip, t tcp, _ []byte) { t.Seq++ }, nil, NotSent},
		{"acknowledgement", func(_ ip, t tcp, _ []byte) { t.Ack++ }, nil, NotSent},
		{"flags", func(_ ip, t tcp, _ []byte) { t.RST = true }, nil, NotSent},
		{"what was told", func(_ ip, _ tcp, b []byte) { b[2] ^= 1 }, nil, WrongPayload},
		{"checksum", nil, func(f []byte) { f[14+20+16] ^= 1 }, BadL4Sum},
		{"IP checksum", nil, func(f []byte) { f[14+10] ^= 1 }, BadIPSum},
		{"fragment", func(i ip, _ tcp, _ []byte) { i.Flags = layers.IPv4MoreFragments }, nil, BadForm},
		{"other protocol", func(i ip, _ tcp, _ []byte) { i.Protocol = layers.IPProtocolSCTP }, nil, Other},
	} {
		for _, inside := range []bool{false, true} {
			e := loadTalks(t)
			state := talkState{Client: 2, Server: 1, Addr: 0xc0000211, Port: 40000}
			if inside {
				state.Server = 2
			}
			if err := e.objs.Talks.Put(uint32(7), state); err != nil {
				t.Fatal(err)
			}
			own, _ := e.plan.Flow(7)
			prog, row, back := e.objs.DemarcServer, uint32(0), (*netip.AddrPort)(nil)
			if inside {
				prog, row, back = e.objs.DemarcClient, 1, &own
			}
			f := told(t, e, inside)
			if c.change == nil {
				c.change = func(ip, tcp, []byte) {}
			}
			g := mapped(t, f, back, c.change)
			if c.break_ != nil {
				c.break_(g)
			}
			want := Counts{}
			want[c.want]++
			if c.want == Other {
				o := &ebpf.RunOptions{Data: g, DataOut: make([]byte, 2000)}
				if verdict, err := prog.Run(o); err != nil || verdict != xdpPass {
					t.Errorf("%s, inside %v: verdict %d, %v", c.name, inside, verdict, err)
				}
				continue
			}
			if answer, counts := shown(t, e, prog, row, g); counts != want || answer != nil {
				t.Errorf("%s, inside %v: judged %v, want %q", c.name, inside, counts, c.want)
			}
			// What the right frame would have been is still awaited.
			if _, counts := shown(t, e, prog, row, mapped(t, f, back, nil)); counts != (Counts{Right: 1}) {
				t.Errorf("%s, inside %v: the right one behind it is judged %v", c.name, inside, counts)
			}
		}
	}
}

// told makes the frame of connection 7 that tells something, of either end, as that end sends it.
func told(t *testing.T, e *Talks, server bool) []byte {
	t.Helper()
	// What makes it say so is the frame before it, which the other end has sent.
	other := loadTalks(t)
	state := talkState{Client: 1, Addr: 0xc0000211, Port: 40000}
	if err := other.objs.Talks.Put(uint32(7), state); err != nil {
		t.Fatal(err)
	}
	own, out := e.plan.Flow(7)
	syn := handmade(t, e, own, out, 7<<10)
	answer, counts := shown(t, other, other.objs.DemarcServer, 0, mapped(t, syn, nil, nil))
	if counts[Right] != 1 {
		t.Fatalf("a SYN by hand: %v", counts)
	}
	asked, counts := shown(t, other, other.objs.DemarcClient, 1, mapped(t, answer, &own, nil))
	if counts[Right] != 1 {
		t.Fatalf("its answer: %v", counts)
	}
	if !server {
		return asked
	}
	heard, counts := shown(t, other, other.objs.DemarcServer, 0, mapped(t, asked, nil, nil))
	if counts[Right] != 1 {
		t.Fatalf("what was asked: %v", counts)
	}
	return heard
}

func handmade(t *testing.T, e *Talks, from, to netip.AddrPort, seq uint32) []byte {
	t.Helper()
	ip := &layers.IPv4{Version: 4, TTL: 64, Protocol: layers.IPProtocolTCP, Flags: layers.IPv4DontFragment, SrcIP: from.Addr().AsSlice(), DstIP: to.Addr().AsSlice()}
	tcp := &layers.TCP{SrcPort: layers.TCPPort(from.Port()), DstPort: layers.TCPPort(to.Port()), Seq: seq, SYN: true, Window: 0xffff,
		Options: []layers.TCPOption{{OptionType: layers.TCPOptionKindMSS, OptionLength: 4, OptionData: []byte{5, 0xb4}}}}
	if err := tcp.SetNetworkLayerForChecksum(ip); err != nil {
		t.Fatal(err)
	}
	b := gopacket.NewSerializeBuffer()
	if err := gopacket.SerializeLayers(b, gopacket.SerializeOptions{ComputeChecksums: true, FixLengths: true},
		&layers.Ethernet{SrcMAC: e.plan.From[:], DstMAC: e.plan.To[:], EthernetType: layers.EthernetTypeIPv4}, ip, tcp); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()[:ethLen+int(ip.Length)] // not filled up to what a wire wants
}

func TestTalksThatCannotBe(t *testing.T) {
	for name, change := range map[string]func(*Plan){
		"IPv6":    func(p *Plan) { *p = testPlan6() },
		"calls":   func(p *Plan) { p.Sizes, p.Calls = []int{218, 1518}, true },
		"tenants": func(p *Plan) { p.Flows, p.VLAN = 64, 2 },
		"flows":   func(p *Plan) { p.Flows = 1000 },
	} {
		p := testPlan()
		change(&p)
		if _, err := LoadTalks(p); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	e := loadTalks(t)
	for name, o := range map[string]TalkOrder{"none": {AtOnce: 1}, "more than there are": {Limit: 5000, AtOnce: 1}, "none at a time": {Limit: 1}} {
		if _, err := e.Dial(o); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}
