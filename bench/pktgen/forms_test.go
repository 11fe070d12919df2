package pktgen

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
)

// whole checks a made frame of either family against what gopacket would have written.
func whole(t *testing.T, f []byte) {
	t.Helper()
	p := gopacket.NewPacket(f, layers.LayerTypeEthernet, gopacket.NoCopy)
	eth, udp := p.Layer(layers.LayerTypeEthernet).(*layers.Ethernet), p.Layer(layers.LayerTypeUDP).(*layers.UDP)
	if udp == nil || p.ErrorLayer() != nil {
		t.Fatalf("frame %x: %v", f, p.ErrorLayer())
	}
	net := p.NetworkLayer()
	if err := udp.SetNetworkLayerForChecksum(net); err != nil {
		t.Fatal(err)
	}
	again := gopacket.NewSerializeBuffer()
	err := gopacket.SerializeLayers(again, gopacket.SerializeOptions{ComputeChecksums: true, FixLengths: true}, eth, net.(gopacket.SerializableLayer), udp, gopacket.Payload(udp.Payload))
	want := again.Bytes()
	// A sum of zero is sent as its other form, which gopacket leaves out.
	if at := len(f) - len(udp.Payload) - 2; want[at] == 0 && want[at+1] == 0 {
		want[at], want[at+1] = 0xff, 0xff
	}
	if err != nil || !bytes.Equal(want, f) {
		t.Fatalf("frame %x\nis not %x %v", f, again.Bytes(), err)
	}
}

// Every size of both families is made whole, arrives right, and a bit that changes anywhere in it is found.
func TestSizesOfBothFamilies(t *testing.T) {
	for _, plan := range []Plan{testPlan(), testPlan6()} {
		plan.Flows = 16
		plan.Sizes = []int{MinSize(plan.V6()), 128, 512, 594, 1518}
		e := loadPlan(t, plan)
		if err := e.Expect(true, 0); err != nil {
			t.Fatal(err)
		}
		if err := e.Learn(true); err != nil {
			t.Fatal(err)
		}
		seen := map[int]int{}
		for range 5 * plan.Flows {
			f := make1(t, e)
			seen[len(f)+FCS]++
			whole(t, f)
			if k := judge1(t, e, f, xdpRedirect); k != Right {
				t.Fatalf("a right frame of %d bytes is %q", len(f), k)
			}
			at := ethLen + rand.IntN(len(f)-ethLen)
			bad := bytes.Clone(f)
			bad[at] ^= 1 << rand.IntN(8)
			before, err := e.Judged()
			if err != nil {
				t.Fatal(err)
			}
			if _, _, err := e.objs.DemarcJudge.Test(bad); err != nil {
				t.Fatal(err)
			}
			after, err := e.Judged()
			if err != nil {
				t.Fatal(err)
			}
			// Hop limit, traffic class and flow label have no checksum in IPv6; the last two are no business of the judge's.
			if plan.V6() && at < ethLen+4 {
				continue
			}
			if d := after.Counts.Sub(before.Counts); d[Right] != 0 {
				t.Fatalf("byte %d of %d changed, and it is right", at, len(f))
			}
		}
		for _, n := range plan.Sizes {
			if seen[n] != plan.Flows {
				t.Errorf("%d of %d frames have %d bytes: %v", seen[n], 5*plan.Flows, n, seen)
			}
		}
	}
}

// Filler that was changed together with the checksum is found, and a frame that was cut.
func TestFillerChanged(t *testing.T) {
	p := testPlan()
	p.Sizes = []int{512}
	e := loadPlan(t, p)
	if err := e.Learn(true); err != nil {
		t.Fatal(err)
	}
	f := make1(t, e)
	if k := judge1(t, e, translate(t, f, func(_ *layers.IPv4, _ *layers.UDP, b []byte) { b[300] ^= 4 }), xdpDrop); k != WrongPayload {
		t.Errorf("a changed byte of filler: %q", k)
	}
	cut := bytes.Clone(f[:500])
	binary.BigEndian.PutUint16(cut[16:], 486)
	binary.BigEndian.PutUint16(cut[38:], 466)
	if k := judge1(t, e, translate(t, cut, nil), xdpDrop); k != WrongPayload {
		t.Errorf("a frame that was cut: %q", k)
	}
	if k := judge1(t, e, translate(t, f, nil), xdpRedirect); k != Right {
		t.Errorf("the right frame: %q", k)
	}
}

// Frames of the outside go to where the flow was learned, and the inside's judge tells what is wrong with them.
func TestFramesToTheInside(t *testing.T) {
	p := testPlan()
	p.Flows = 4
	e := loadPlan(t, p)
	if err := e.Learn(true); err != nil {
		t.Fatal(err)
	}
	for range p.Flows {
		if k := judge1(t, e, translate(t, make1(t, e), nil), xdpRedirect); k != Right {
			t.Fatal(k)
		}
	}
	if err := e.Learn(false); err != nil {
		t.Fatal(err)
	}
	back := func(f []byte, change func(ip *layers.IPv4, udp *layers.UDP, payload []byte)) []byte {
		return translate(t, f, func(ip *layers.IPv4, udp *layers.UDP, payload []byte) {
			n := int(binary.BigEndian.Uint32(payload))
			in, out := p.Flow(n)
			ip.SrcIP, ip.DstIP = out.Addr().AsSlice(), in.Addr().AsSlice()
			udp.DstPort = layers.UDPPort(in.Port())
			if change != nil {
				change(ip, udp, payload)
			}
		})
	}
	inside := func(f []byte) Kind {
		before, err := e.JudgedIn()
		if err != nil {
			t.Fatal(err)
		}
		if _, _, err := e.objs.DemarcAnswer.Test(f); err != nil {
			t.Fatal(err)
		}
		after, err := e.JudgedIn()
		if err != nil {
			t.Fatal(err)
		}
		d := after.Counts.Sub(before.Counts)
		if d[Reordered] > 0 {
			return Reordered
		}
		for k, n := range d {
			if n > 0 {
				return Kind(k)
			}
		}
		t.Fatal("the judge counted nothing")
		return 0
	}
	var rounds [4][][]byte
	for i := range rounds {
		for range p.Flows {
			f := makeTo(t, e, In)
			whole(t, f)
			if f[30] != 192 || f[33] != 17 {
				t.Fatalf("a frame to %v, want the learned address", f[30:34])
			}
			rounds[i] = append(rounds[i], f)
		}
	}
	for _, s := range []struct {
		name  string
		frame []byte
		want  Kind
	}{
		{"first", back(rounds[0][0], nil), Right},
		{"lost one between", back(rounds[2][0], nil), Right},
		{"late", back(rounds[1][0], nil), Reordered},
		{"twice", back(rounds[2][0], nil), Duplicate},
		{"not translated", translate(t, rounds[0][1], func(ip *layers.IPv4, _ *layers.UDP, _ []byte) { ip.SrcIP = []byte{203, 0, 113, 17} }), WrongDst},
		{"another port", back(rounds[0][1], func(_ *layers.IPv4, udp *layers.UDP, _ []byte) { udp.DstPort++ }), WrongDst},
		{"hops", back(rounds[0][1], func(ip *layers.IPv4, _ *layers.UDP, _ []byte) { ip.TTL-- }), WrongTTL},
		{"stamp", back(rounds[0][1], func(_ *layers.IPv4, _ *layers.UDP, b []byte) { b[9] ^= 1 }), NotSent},
		{"another flow", back(rounds[0][1], nil), Right},
	} {
		if k := inside(s.frame); k != s.want {
			t.Errorf("%s: %q, want %q", s.name, k, s.want)
		}
	}
	// A frame to the inside is none that the outside may get.
	if k := judge1(t, e, translate(t, rounds[3][0], nil), xdpDrop); k != NotSent {
		t.Errorf("the outside's own frame at the outside: %q", k)
	}
}

// Buckets are those of the program and of HdrHistogram: one value in each, within one in a hundred of what it stands for.
func TestBuckets(t *testing.T) {
	if last := bucketOf(longestTime); last != buckets-1 {
		t.Errorf("the longest time is in bucket %d of %d", last, buckets)
	}
	last := -1
	for ns := uint64(0); ns <= longestTime; ns += 1 + ns/512 {
		i := bucketOf(uint32(ns))
		if i < last || i > last+1 {
			t.Fatalf("%d ns is in bucket %d, the time before it in %d", ns, i, last)
		}
		last = i
		if d := bucketTime(i) - int64(ns); d > int64(ns)/100 || -d > int64(ns)/100 {
			t.Fatalf("%d ns is told as %d", ns, bucketTime(i))
		}
	}
}

// A frame that was under way for a known time is noted as such.
func TestTimesAreThoseOfTheFrames(t *testing.T) {
	p := testPlan()
	p.Flows = 1
	e := loadPlan(t, p)
	for _, err := range []error{e.Expect(true, 0), e.Learn(true), e.Time(true), e.Fresh()} {
		if err != nil {
			t.Fatal(err)
		}
	}
	waits := []time.Duration{0, 3 * time.Millisecond, 20 * time.Millisecond, 3 * time.Millisecond}
	var least, most []time.Duration
	for _, w := range waits {
		before := monotonic()
		if err := e.objs.Progresses.Update(uint32(0), progress{Index: [2]uint64{uint64(len(least))}}, 0); err != nil {
			t.Fatal(err)
		}
		f := make1(t, e)
		made := monotonic()
		time.Sleep(w)
		shown := monotonic()
		if k := judge1(t, e, f, xdpRedirect); k != Right {
			t.Fatal(k)
		}
		least, most = append(least, time.Duration(shown-made)), append(most, time.Duration(monotonic()-before))
	}
	got, err := e.Times(Out)
	if err != nil {
		t.Fatal(err)
	}
	h := got.Histogram
	if h.TotalCount() != int64(len(waits)) {
		t.Fatalf("%d times were noted", h.TotalCount())
	}
	// Whichever it was: a machine that is elsewhere makes any of them the worst.
	if a, b := slices.Max(least), slices.Max(most); got.Worst < a || got.Worst > b {
		t.Errorf("the worst is %v, want %v to %v", got.Worst, a, b)
	}
	if max := time.Duration(h.Max()); max < got.Worst*98/100 || max > got.Worst*102/100 {
		t.Errorf("the histogram's last is %v, the worst %v", max, got.Worst)
	}
	var lo, hi time.Duration
	for i := 1; i < len(waits); i++ {
		up, down := most[i]-least[i-1], most[i-1]-least[i] // at most; less than nothing = surely the other way
		lo, hi = lo+max(0, -up, -down), hi+max(up, down)
	}
	if got.Jitter < lo/3-1 || got.Jitter > hi/3+1 {
		t.Errorf("jitter %v, want %v to %v", got.Jitter, lo/3, hi/3)
	}
}

// Of a plan with calls every second flow is one: its frames are small, marked and accounted for by themselves, the others are neither.
func TestCallsAreToldFromBulk(t *testing.T) {
	p := testPlan()
	p.Flows, p.Sizes, p.Calls = 8, []int{218, 1518}, true
	e := loadPlan(t, p)
	for _, err := range []error{e.Expect(true, 0), e.Learn(true), e.Time(true), e.Fresh()} {
		if err != nil {
			t.Fatal(err)
		}
	}
	for i := range uint64(3 * 8) {
		if err := e.objs.Progresses.Update(uint32(0), progress{Index: [2]uint64{i}}, 0); err != nil {
			t.Fatal(err)
		}
		f := make1(t, e)
		whole(t, f)
		flow := binary.BigEndian.Uint32(f[14+20+8:])
		size, tos := 1514, byte(0)
		if flow%2 == 0 {
			size, tos = 214, 0xb8
		}
		if len(f) != size || f[15] != tos {
			t.Errorf("flow %d: %d bytes, TOS %#x", flow, len(f), f[15])
		}
		if flow == 2 && i >= 16 { // the last of the third call is lost
			continue
		}
		if flow == 4 && i < 8 {
			time.Sleep(Late + time.Millisecond)
		}
		if k := judge1(t, e, f, xdpRedirect); k != Right {
			t.Fatal(k)
		}
	}
	got, err := e.Calls(Out)
	if err != nil {
		t.Fatal(err)
	}
	for i, want := range []Call{{Right: 3}, {Right: 2}, {Right: 3, Late: 1}, {Right: 3}} {
		if c := got[i]; c.Right != want.Right || c.Late != want.Late || c.Mean <= 0 || c.Worst < c.Mean || (c.Worst > Late) != (want.Late > 0) || want.Late > 0 && c.Jitter < Late/20 {
			t.Errorf("call %d: %+v, want %+v", i, c, want)
		}
	}
	x, err := e.Times(Out)
	if err != nil || x.Histogram.TotalCount() != 11 {
		t.Errorf("%d times were noted, want those of 11 frames of calls; %v", x.Histogram.TotalCount(), err)
	}
	if err := e.Fresh(); err != nil {
		t.Fatal(err)
	}
	if got, err = e.Calls(Out); err != nil || got[0] != (Call{}) {
		t.Errorf("after Fresh: %+v, %v", got[0], err)
	}
}

// Of a plan with tenants each flow has its own tag and account; the first may flood, and its frames are numbered on their own.
func TestTenantsAreTagged(t *testing.T) {
	p := testPlan()
	p.Flows, p.VLAN = 8, 100
	e := loadPlan(t, p)
	for _, err := range []error{e.Expect(true, 0), e.Learn(true), e.Time(true), e.Fresh()} {
		if err != nil {
			t.Fatal(err)
		}
	}
	made := map[uint32]int{}
	for sent := range uint64(4 * 8) {
		var pr progress
		if err := e.objs.Progresses.Lookup(uint32(0), &pr); err != nil {
			t.Fatal(err)
		}
		if err := e.objs.Orders.Put(uint32(0), order{End: monotonic() + uint64(time.Minute), Flood: 3}); err != nil {
			t.Fatal(err)
		}
		page := e.plan.page()
		o := &ebpf.RunOptions{Data: page, DataOut: make([]byte, 2000)}
		if verdict, err := e.objs.DemarcMake.Run(o); err != nil || verdict != xdpTX {
			t.Fatalf("frame %d: verdict %d, %v", sent, verdict, err)
		}
		f := o.DataOut
		flow := binary.BigEndian.Uint32(f[18+20+8:])
		if len(f) != FrameLen+4 || binary.BigEndian.Uint16(f[12:]) != 0x8100 || binary.BigEndian.Uint16(f[14:]) != uint16(100+flow) || binary.BigEndian.Uint16(f[16:]) != 0x0800 {
			t.Fatalf("frame %x of flow %d", f[:18], flow)
		}
		if !bytes.Equal(f[:6], p.To[:]) || !bytes.Equal(f[6:12], p.From[:]) {
			t.Errorf("MAC addresses %x", f[:12])
		}
		plain := append(bytes.Clone(f[:12]), f[16:]...)
		whole(t, plain)
		made[flow]++
		if k := judge1(t, e, plain, xdpRedirect); k != Right {
			t.Fatalf("frame %d, flow %d: %v", sent, flow, k)
		}
	}
	if made[0] != 3*8+1 || len(made) != 8 || made[5] != 1 {
		t.Errorf("made %v", made)
	}
	got, err := e.Calls(Out)
	if err != nil || len(got) != 8 || got[0].Right != 25 || got[5].Right != 1 {
		t.Errorf("%+v, %v", got, err)
	}
}
