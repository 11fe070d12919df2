package pktgen

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"

	"demarc/gateway/netlab/roottest"
)

const xdpAborted, xdpDrop, xdpPass, xdpTX, xdpRedirect = 0, 1, 2, 3, 4

func testPlan() Plan {
	return Plan{
		Flows: 4096, Key: 0x1122334455667788, Inside: netip.MustParseAddr("198.18.4.0"), InsidePort: 20000,
		Outside: netip.MustParseAddr("203.0.113.16"), OutsidePort: 5004,
		Pool: [2]netip.Addr{netip.MustParseAddr("192.0.2.16"), netip.MustParseAddr("192.0.2.31")},
		From: [6]byte{2, 0, 0, 0, 0, 1}, To: [6]byte{2, 0, 0, 0, 0, 2},
	}
}

// testPlan6 is the same with IPv6.
func testPlan6() Plan {
	p := testPlan()
	p.Inside, p.Outside = netip.MustParseAddr("2001:db8:1::400"), netip.MustParseAddr("2001:db8:2::10")
	return p
}

func load(t *testing.T) *Ends { return loadPlan(t, testPlan()) }

func loadPlan(t *testing.T, p Plan) *Ends {
	t.Helper()
	roottest.Require(t)
	e, err := Load(p)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { e.Close() })
	return e
}

// make1 lets the program make one frame to the outside.
func make1(t *testing.T, e *Ends) []byte { return makeTo(t, e, Out) }

// makeTo lets the program make one frame. One to the inside would leave by a device that is not there.
func makeTo(t *testing.T, e *Ends, d Direction) []byte {
	t.Helper()
	if err := e.objs.Orders.Put(uint32(0), order{End: monotonic() + uint64(time.Minute), Direction: uint64(d)}); err != nil {
		t.Fatal(err)
	}
	page := e.plan.page()
	// What lies in the page of headers must not matter.
	copy(page, bytes.Repeat([]byte{0xa5}, e.plan.headers()))
	o := &ebpf.RunOptions{Data: page, DataOut: make([]byte, 2000)}
	verdict, err := e.objs.DemarcMake.Run(o)
	want := uint32(xdpTX)
	if d == In {
		want = xdpAborted
	}
	if err != nil || verdict != want {
		t.Fatalf("make: verdict %d, want %d, %v", verdict, want, err)
	}
	return o.DataOut
}

// translate does to a frame what a right device under test does, with the checksums computed anew by gopacket.
func translate(t *testing.T, frame []byte, change func(ip *layers.IPv4, udp *layers.UDP, payload []byte)) []byte {
	t.Helper()
	p := gopacket.NewPacket(frame, layers.LayerTypeEthernet, gopacket.NoCopy)
	eth, ip, udp := p.Layer(layers.LayerTypeEthernet).(*layers.Ethernet), p.Layer(layers.LayerTypeIPv4).(*layers.IPv4), p.Layer(layers.LayerTypeUDP).(*layers.UDP)
	payload := bytes.Clone(udp.Payload)
	ip.TTL--
	ip.SrcIP = []byte{192, 0, 2, 17}
	if change != nil {
		change(ip, udp, payload)
	}
	if err := udp.SetNetworkLayerForChecksum(ip); err != nil {
		t.Fatal(err)
	}
	b := gopacket.NewSerializeBuffer()
	if err := gopacket.SerializeLayers(b, gopacket.SerializeOptions{ComputeChecksums: true}, eth, ip, udp, gopacket.Payload(payload)); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// judge1 shows one frame to the judge and says which kind it was.
func judge1(t *testing.T, e *Ends, frame []byte, want uint32) Kind {
	t.Helper()
	before, err := e.Judged()
	if err != nil {
		t.Fatal(err)
	}
	verdict, err := e.objs.DemarcJudge.Run(&ebpf.RunOptions{Data: frame, DataOut: make([]byte, 2000)})
	if err != nil || verdict != want {
		t.Fatalf("judge: verdict %d, want %d, %v", verdict, want, err)
	}
	after, err := e.Judged()
	if err != nil {
		t.Fatal(err)
	}
	d := after.Counts.Sub(before.Counts)
	if d[Reordered] == 1 {
		return Reordered
	}
	for k, n := range d {
		if n == 1 {
			return Kind(k)
		}
	}
	t.Fatalf("the judge counted %v", d)
	return 0
}

// Every field of a made frame is what the plan says in Go, the checksums are what gopacket computes, and each round visits every flow once.
func TestMadeFramesFollowThePlan(t *testing.T) {
	e := load(t)
	plan := testPlan()
	for round := range 2 {
		seen := make([]bool, plan.Flows)
		for range plan.Flows {
			f := make1(t, e)
			n, seq := int(binary.BigEndian.Uint32(f[42:])), int(binary.BigEndian.Uint32(f[46:]))
			if n >= plan.Flows || seen[n] || seq != round {
				t.Fatalf("round %d made flow %d with sequence number %d, seen before: %v", round, n, seq, n < plan.Flows && seen[n])
			}
			seen[n] = true
			p := gopacket.NewPacket(f, layers.LayerTypeEthernet, gopacket.NoCopy)
			ip, udp := p.Layer(layers.LayerTypeIPv4).(*layers.IPv4), p.Layer(layers.LayerTypeUDP).(*layers.UDP)
			in, out := plan.Flow(n)
			src, _ := netip.AddrFromSlice(ip.SrcIP)
			dst, _ := netip.AddrFromSlice(ip.DstIP)
			if got := netip.AddrPortFrom(src, uint16(udp.SrcPort)); got != in {
				t.Fatalf("flow %d is from %s, want %s", n, got, in)
			}
			if got := netip.AddrPortFrom(dst, uint16(udp.DstPort)); got != out {
				t.Fatalf("flow %d is to %s, want %s", n, got, out)
			}
			whole(t, f)
		}
	}
}

// Whoever was answered is passed over where only the others are asked for, and the round still ends where it should.
func TestMakerPassesOverWhoWasAnswered(t *testing.T) {
	e := load(t)
	plan := testPlan()
	answered := map[int]bool{}
	for n := range plan.Flows {
		if n%3 > 0 {
			answered[n] = true
			if err := e.objs.Answers.Put(uint32(n), backState{Answers: 1}); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := e.objs.Orders.Put(uint32(0), order{End: monotonic() + 60e9, Limit: uint64(plan.Flows), Missing: 1}); err != nil {
		t.Fatal(err)
	}
	page := e.plan.page()
	made := map[int]bool{}
	runs := 0
	var p progress
	for ; p.Done == 0 && runs <= plan.Flows; runs++ {
		o := &ebpf.RunOptions{Data: page, DataOut: make([]byte, 2000)}
		verdict, err := e.objs.DemarcMake.Run(o)
		if err != nil {
			t.Fatal(err)
		}
		if verdict == xdpTX {
			made[int(binary.BigEndian.Uint32(o.DataOut[42:]))] = true
		}
		if err := e.objs.Progresses.Lookup(uint32(0), &p); err != nil {
			t.Fatal(err)
		}
	}
	if runs != plan.Flows || len(made)+len(answered) != plan.Flows || p.Sent[Out] != uint64(len(made)) || p.Passed != uint64(len(answered)) {
		t.Errorf("%d runs made %d flows, %d were answered of %d; %+v", runs, len(made), len(answered), plan.Flows, p)
	}
	for n := range made {
		if answered[n] {
			t.Errorf("flow %d was sent again", n)
		}
	}
}

func TestJudgeFindsPlantedFaults(t *testing.T) {
	e := load(t)
	frames := make([][]byte, 64)
	for i := range frames {
		frames[i] = make1(t, e)
	}
	if err := e.Learn(true); err != nil {
		t.Fatal(err)
	}
	for _, f := range frames {
		if k := judge1(t, e, translate(t, f, nil), xdpRedirect); k != Right {
			t.Fatalf("a right frame is %q", k)
		}
	}
	if err := e.Learn(false); err != nil {
		t.Fatal(err)
	}
	// The next frames of the same flows, one round later.
	var p progress
	if err := e.objs.Progresses.Lookup(uint32(0), &p); err != nil {
		t.Fatal(err)
	}
	p.Index[Out] = uint64(testPlan().Flows)
	if err := e.objs.Progresses.Put(uint32(0), p); err != nil {
		t.Fatal(err)
	}
	flip := func(at int) func([]byte) []byte {
		return func(f []byte) []byte { f[at] ^= 1; return f }
	}
	cases := []struct {
		name   string
		change func(ip *layers.IPv4, udp *layers.UDP, payload []byte)
		spoil  func(f []byte) []byte
		want   Kind
	}{
		{"right", nil, nil, Right},
		{"ip checksum", nil, flip(24), BadIPSum},
		{"udp checksum", nil, flip(40), BadL4Sum},
		{"udp checksum left out", nil, func(f []byte) []byte { f[40], f[41] = 0, 0; return f }, BadL4Sum},
		{"untranslated source", func(ip *layers.IPv4, _ *layers.UDP, _ []byte) { ip.SrcIP = []byte{198, 18, 4, 0} }, nil, WrongTuple},
		{"address beside the pool", func(ip *layers.IPv4, _ *layers.UDP, _ []byte) { ip.SrcIP = []byte{192, 0, 2, 32} }, nil, WrongTuple},
		{"another address of the pool", func(ip *layers.IPv4, _ *layers.UDP, _ []byte) { ip.SrcIP = []byte{192, 0, 2, 18} }, nil, WrongMapping},
		{"another port", func(_ *layers.IPv4, udp *layers.UDP, _ []byte) { udp.SrcPort++ }, nil, WrongMapping},
		{"another destination", func(ip *layers.IPv4, _ *layers.UDP, _ []byte) { ip.DstIP = []byte{203, 0, 113, 99} }, nil, WrongDst},
		{"another destination port", func(_ *layers.IPv4, udp *layers.UDP, _ []byte) { udp.DstPort++ }, nil, WrongDst},
		{"ttl as sent", func(ip *layers.IPv4, _ *layers.UDP, _ []byte) { ip.TTL++ }, nil, WrongTTL},
		{"ttl two less", func(ip *layers.IPv4, _ *layers.UDP, _ []byte) { ip.TTL-- }, nil, WrongTTL},
		{"flow that was not sent", func(_ *layers.IPv4, _ *layers.UDP, b []byte) { b[0] = 0xff }, nil, NotSent},
		{"sequence number that was not sent", func(_ *layers.IPv4, _ *layers.UDP, b []byte) { b[7] += 3 }, nil, NotSent},
		{"check word", func(_ *layers.IPv4, _ *layers.UDP, b []byte) { b[8] ^= 0x80 }, nil, NotSent},
		{"payload", func(_ *layers.IPv4, _ *layers.UDP, b []byte) { b[17] = 1 }, nil, WrongPayload},
		{"fragment", func(ip *layers.IPv4, _ *layers.UDP, _ []byte) { ip.Flags = layers.IPv4MoreFragments }, nil, BadForm},
		{"tcp", func(ip *layers.IPv4, _ *layers.UDP, _ []byte) { ip.Protocol = layers.IPProtocolTCP }, nil, BadForm},
		{"longer", nil, func(f []byte) []byte { return append(f, 0) }, BadForm},
		{"shorter", nil, func(f []byte) []byte { return f[:59] }, BadForm},
		{"arp", nil, func(f []byte) []byte { f[13] = 6; return f }, Other},
	}
	for _, c := range cases {
		f := translate(t, make1(t, e), c.change)
		if c.spoil != nil {
			f = c.spoil(f)
		}
		want := uint32(xdpDrop)
		if c.want == Other {
			want = xdpPass
		}
		if k := judge1(t, e, f, want); k != c.want {
			t.Errorf("%s: %q, want %q", c.name, k, c.want)
		}
	}
	good := translate(t, make1(t, e), nil)
	if k := judge1(t, e, good, xdpDrop); k != Right {
		t.Errorf("right: %q", k)
	}
	if k := judge1(t, e, good, xdpDrop); k != Duplicate {
		t.Errorf("the same frame again: %q, want a duplicate", k)
	}
	if k := judge1(t, e, translate(t, frames[0], nil), xdpDrop); k != Duplicate {
		t.Errorf("a frame of the round before again: %q, want a duplicate", k)
	}
}

// A lost, a late, a repeated and a much too late frame of one flow are told apart.
func TestJudgeKeepsAWindowPerFlow(t *testing.T) {
	e := load(t)
	if err := e.Learn(true); err != nil {
		t.Fatal(err)
	}
	at := func(round uint64) []byte {
		if err := e.objs.Progresses.Put(uint32(0), progress{Index: [2]uint64{round * uint64(testPlan().Flows)}}); err != nil {
			t.Fatal(err)
		}
		return translate(t, make1(t, e), nil)
	}
	for i, step := range []struct {
		round uint64
		want  Kind
	}{{3, Right}, {5, Right}, {4, Reordered}, {4, Duplicate}, {5, Duplicate}, {40, Right}, {9, Reordered}, {9, Duplicate}, {8, Stale}, {41, Right}} {
		want := uint32(xdpRedirect)
		if step.want != Right && step.want != Reordered {
			want = xdpDrop
		}
		if k := judge1(t, e, at(step.round), want); k != step.want {
			t.Errorf("step %d, round %d: %q, want %q", i, step.round, k, step.want)
		}
	}
}

func TestKindsAreThoseOfTheProgram(t *testing.T) {
	src, err := os.ReadFile("bpf/frame.h")
	if err != nil {
		t.Fatal(err)
	}
	_, list, _ := strings.Cut(string(src), "enum kind {")
	list, _, _ = strings.Cut(list, "}")
	names := regexp.MustCompile(`(?m)^\t([A-Z0-9_]+),`).FindAllStringSubmatch(list, -1)
	if len(names) != int(kinds)+1 {
		t.Fatalf("the program has %d kinds, Go %d", len(names)-1, kinds)
	}
	if names[NotLearned][1] != "NOT_LEARNED" || names[kinds][1] != "KINDS" {
		t.Errorf("kinds are in another order: %v", names)
	}
	for k := range kinds {
		if k.String() == "" {
			t.Errorf("kind %d has no text", k)
		}
	}
}

func TestPlansThatCannotBeSent(t *testing.T) {
	for name, change := range map[string]func(*Plan){
		"no power of two": func(p *Plan) { p.Flows = 1000 },
		"too many":        func(p *Plan) { p.Flows = MaxFlows * 2 },
		"no ports left":   func(p *Plan) { p.Flows, p.InsidePort = 1<<16, 65500 },
		"two families":    func(p *Plan) { p.Outside = netip.MustParseAddr("2001:db8::1") },
		"pool of IPv6":    func(p *Plan) { p.Pool[1] = netip.MustParseAddr("2001:db8::1") },
		"frame too short": func(p *Plan) { p.Sizes = []int{60} },
		"frame too long":  func(p *Plan) { p.Sizes = []int{1520} },
		"odd frame":       func(p *Plan) { p.Sizes = []int{64, 65} },
		"IPv6 too short":  func(p *Plan) { *p = testPlan6(); p.Sizes = []int{64} },
		"calls of a size": func(p *Plan) { p.Sizes, p.Calls = []int{218}, true },
		"too many VLANs":  func(p *Plan) { p.Flows, p.VLAN = 1024, 3500 },
		"tenants of IPv6": func(p *Plan) { *p = testPlan6(); p.Flows, p.VLAN = 64, 2 },
		"too many sizes":  func(p *Plan) { p.Sizes = make([]int, 13) },
	} {
		p := testPlan()
		change(&p)
		if _, err := p.wire(); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}
