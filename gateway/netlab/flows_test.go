package netlab

import (
	"context"
	"net"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"demarc/gateway/netlab/host"
)

// more gives a host so many addresses, from its own on.
func more(t *testing.T, top *Topology, h Host, n int) (v4, v6 []netip.Addr) {
	t.Helper()
	v4, v6 = []netip.Addr{h.V4}, []netip.Addr{h.V6}
	a, b := hostAddr(netip.PrefixFrom(h.V4, 24), 100), hostAddr(netip.PrefixFrom(h.V6, 64), 100)
	for range n - 1 {
		check(t, top.AddAddr(h.Name, HostDevice, netip.PrefixFrom(a, 24)))
		check(t, top.AddAddr(h.Name, HostDevice, netip.PrefixFrom(b, 64)))
		v4, v6 = append(v4, a), append(v6, b)
		a, b = a.Next(), b.Next()
	}
	return v4, v6
}

// Before a gateway is judged by them: through a kernel that forwards, an interruption of a known length is measured as what it was, in the direction
// that was interrupted and in no other, on both families; and a flow that never comes back counts to the end.
func TestFlowsMeasureTheGap(t *testing.T) {
	top := routed(t, "flows")
	v4, v6 := more(t, top, top.Alpha1, 5)
	cut, err := top.Valve(GW, AlphaPort)
	check(t, err)
	back, err := top.Valve(GW, PublicPort)
	check(t, err)
	flows, err := top.StartFlows(
		FlowSpec{Inside: "alpha1", From: v4, Ports: 2, Tag: "alpha", Outside: "public1", To: netip.AddrPortFrom(top.Public1.V4, 7100)},
		FlowSpec{Inside: "alpha1", From: v6, Port: 30000, Tag: "alpha6", Outside: "public1", To: netip.AddrPortFrom(top.Public1.V6, 7100)})
	check(t, err)
	watch, err := WatchMachine() // senders that pause are seen; a processor that takes what comes may be elsewhere too
	check(t, err)
	// interrupt says when it was surely interrupted, and when surely not.
	type span struct{ begin, in, out, end time.Time }
	interrupt := func(v *Valve, d time.Duration, from ...netip.Addr) (s span) {
		s.begin = time.Now()
		for _, a := range from {
			check(t, v.Lose(a, 1))
		}
		s.in = time.Now()
		time.Sleep(d) // the length is what is measured
		s.out = time.Now()
		for _, a := range from {
			check(t, v.Lose(a, 0))
		}
		s.end = time.Now()
		return s
	}
	quiet := time.Now()
	time.Sleep(100 * time.Millisecond)
	still := time.Now()
	time.Sleep(20 * time.Millisecond)
	there := interrupt(cut, 120*time.Millisecond, v4...)
	time.Sleep(100 * time.Millisecond)
	home := interrupt(back, 60*time.Millisecond, top.Public1.V4)
	time.Sleep(100 * time.Millisecond)
	check(t, cut.Lose(v4[1], 1)) // two flows that never come back
	gone := time.Now()
	time.Sleep(150 * time.Millisecond)
	seen, err := flows.End()
	check(t, err)
	var machine host.Machine
	check(t, watch.Stop(&machine))
	t.Log(machine)
	away := time.Duration(machine.WorstMs * 1e6)
	if seen.Wrong > 0 {
		t.Errorf("%d packets were wrong: %s", seen.Wrong, seen.Example)
	}

	if n := len(seen.Flows); n != 2*(5*2+5) {
		t.Fatalf("%d flows and directions, want 30", n)
	}
	within := func(what string, s span, paused time.Duration, hit func(f string) bool) {
		t.Helper()
		most, least := s.end.Sub(s.begin), s.out.Sub(s.in)
		for _, g := range seen.Gaps(s.begin, s.end) {
			switch {
			case hit(g.Flow) && (g.Gap < least-away-2*time.Millisecond || g.Gap > most+paused+away+4*time.Millisecond):
				t.Errorf("%s: %s has a gap of %s, it was interrupted for %s to %s", what, g.Flow, g.Gap, least, most)
			case !hit(g.Flow) && g.Gap > paused+away+15*time.Millisecond:
				t.Errorf("%s: %s has a gap of %s, and was not interrupted", what, g.Flow, g.Gap)
			}
		}
		w, _ := seen.Worst(s.begin, s.end)
		t.Logf("%s: %s to %s, measured %s (%s); senders paused for %s", what, least, most, w.Gap, w.Flow, paused)
	}
	dir := func(suffix string) func(string) bool {
		return func(f string) bool { return len(f) > 7 && f[:6] == "alpha " && f[len(f)-len(suffix):] == suffix }
	}
	_, paused := seen.Worst(there.begin, there.end)
	within("there", there, paused, dir(" out"))
	_, paused = seen.Worst(home.begin, home.end)
	within("home", home, paused, dir(" in"))
	if w, paused := seen.Worst(quiet, still); w.Gap > paused+away+15*time.Millisecond {
		t.Errorf("nothing was interrupted, and %s has a gap of %s", w.Flow, w.Gap)
	}
	_, paused = seen.Worst(gone, time.Now())
	for _, g := range seen.Gaps(gone, time.Now()) {
		never := g.Flow == "alpha 2 out" || g.Flow == "alpha 3 out"
		if never && g.Gap < 140*time.Millisecond || !never && g.Gap > 140*time.Millisecond+paused+away {
			t.Errorf("%s: a gap of %s at the end; gone: %v; senders paused for %s", g.Flow, g.Gap, never, paused)
		}
	}
	lost, sent := seen.Lost()
	// 10 flows for 120 ms, 10 for 60 ms, or how long it was; less what senders missed by pausing. What two lost at the end is in their gap.
	least, most := there.out.Sub(there.in)+home.out.Sub(home.in), there.end.Sub(there.begin)+home.end.Sub(home.begin)
	missed := time.Duration(machine.AwayMs * 1e6) // of both senders, and some of it twice; pauses are told from host.Shortest on, and the machine may be away for less, often
	for _, p := range seen.Pauses {
		for _, in := range []span{there, home} {
			missed += max(0, time.Duration(min(p.To, in.end.UnixNano())-max(p.From, in.begin.UnixNano())))
		}
	}
	if lost < uint64(8*max(0, least-missed)/seen.Interval) || lost > uint64(10*most/seen.Interval+200) || sent < lost {
		t.Errorf("%d of %d packets lost, want some 10 each %s of %s to %s; senders missed %s of it at most", lost, sent, seen.Interval, least, most, missed)
	}
	if m := seen.Moved(); len(m) > 0 {
		t.Errorf("without translation sources stay: %v", m)
	}
}

// A connection that is cut and one that is not are told apart, with data on the way and idle.
func TestHeldConnections(t *testing.T) {
	top := routed(t, "held")
	v4, _ := more(t, top, top.Alpha1, 2)
	cut, err := top.Valve(GW, AlphaPort)
	check(t, err)
	outside, err := top.Serve("public1", "tcp-hold-serve", "-addr", ":8081")
	check(t, err)
	hold := func(from netip.Addr, every string) *Server {
		s, err := top.Serve("alpha1", "tcp-hold", "-dst", top.Public1.V4.String()+":8081", "-from", from.String(), "-count", "40", "-every", every, "-within", "500ms")
		check(t, err)
		return s
	}
	busy, idle, lost := hold(v4[0], "20ms"), hold(v4[0], "0s"), hold(v4[1], "20ms")
	var some [2]*Server // 10 with data and 30 idle ones of which 15 are tried
	for i := range some {
		some[i], err = top.Serve("alpha1", "tcp-hold", "-dst", top.Public1.V4.String()+":8081", "-from", v4[i].String(), "-count", "10", "-every", "20ms", "-idle", "30", "-sample", "15", "-within", "500ms")
		check(t, err)
	}
	check(t, cut.Lose(v4[0], 1))
	time.Sleep(150 * time.Millisecond)
	check(t, cut.Lose(v4[0], 0)) // a while is no loss
	check(t, cut.Lose(v4[1], 1))
	var h host.Held
	check(t, busy.Stop(&h))
	if h.Opened != 40 || h.Lost != 0 || h.Blocks < 80 || h.LongestMs < 100 {
		t.Errorf("with data: %+v", h)
	}
	h = host.Held{}
	check(t, idle.Stop(&h))
	if h.Opened != 40 || h.Lost != 0 || h.Blocks != 40 {
		t.Errorf("idle: %+v", h)
	}
	h = host.Held{}
	check(t, lost.Stop(&h))
	if h.Opened != 40 || h.Lost != 40 || h.Why["timeout"] != 40 {
		t.Errorf("cut off: %+v", h)
	}
	for i, want := range []int{0, 25} {
		h = host.Held{}
		check(t, some[i].Stop(&h))
		if h.Opened != 40 || h.Idle != 30 || h.Tried != 15 || h.Lost != want || h.LostIdle != max(0, want-10) {
			t.Errorf("some with data, some idle, of those some tried: %+v, want %d lost", h, want)
		}
	}
	var s host.HoldServed
	check(t, outside.Stop(&s))
	if s.Accepted != 200 || s.Bad != 0 {
		t.Errorf("the outside: %+v", s)
	}
}

// Connections that are opened all the time: those that were open, or on their way, when a way was cut for good are lost, none that began afterwards opens, and those of the other address
// go on. The other end takes its time, so that some are on their way whenever the cut comes, also where who opens them was kept from its CPU just before.
func TestFreshConnections(t *testing.T) {
	const answers = 300 * time.Millisecond
	top := routed(t, "fresh")
	v4, _ := more(t, top, top.Alpha1, 2)
	cut, err := top.Valve(GW, AlphaPort)
	check(t, err)
	outside, err := top.Serve("public1", "tcp-hold-serve", "-addr", ":8081", "-after", answers.String())
	check(t, err)
	var s [2]*Server
	began := time.Now().UnixNano()
	for i := range s {
		s[i], err = top.Serve("alpha1", "tcp-open", "-dst", top.Public1.V4.String()+":8081", "-from", v4[i].String(), "-rate", "200", "-within", "2s")
		check(t, err)
	}
	time.Sleep(600 * time.Millisecond) // it is the number that matters
	before := time.Now().UnixNano()
	check(t, cut.Lose(v4[1], 1))
	after := time.Now().UnixNano() // nothing that is sent from here on passes
	time.Sleep(300 * time.Millisecond)
	var all [2]host.Fresh
	for i := range s {
		check(t, s[i].Stop(&all[i]))
	}
	ended := time.Now().UnixNano()
	for i, f := range all {
		for _, o := range f.Open {
			if o.Began < began || !o.Half && o.Open < o.Began+int64(answers) || o.Open < o.Began || o.Open > ended || o.Half && !o.Lost {
				t.Errorf("client %d: one began %s after the start and was open after %s: its answer takes %s", i, time.Duration(o.Began-began), time.Duration(o.Open-o.Began), answers)
			}
		}
	}
	if f := all[0]; f.Tried < 40 || len(f.Open) != f.Tried || f.Failed+len(f.Lost()) > 0 {
		t.Errorf("not cut: %d tried, %d open, %d failed, %d lost: %v", f.Tried, len(f.Open), f.Failed, len(f.Lost()), f.Why)
	}
	f := all[1]
	if f.Tried < 40 || len(f.Open) < 20 || len(f.Lost()) != len(f.Open) || f.Failed == 0 || f.Failed+len(f.Open) != f.Tried || f.Why["timeout"] != f.Tried {
		t.Errorf("cut: %d tried, %d open, %d failed, %d lost: %v", f.Tried, len(f.Open), f.Failed, len(f.Lost()), f.Why)
	}
	onTheWay := 0
	for _, o := range f.Open {
		if o.Began > after {
			t.Errorf("one is said to have opened that began %s after the cut", time.Duration(o.Began-after))
		}
		if o.Began <= after && o.Open > before {
			onTheWay++
		}
	}
	if onTheWay == 0 {
		t.Error("none was on its way when the cut came: nothing is tried")
	}
	check(t, outside.Stop(nil))
}

// A valve loses the share that it is told, of that sender.
func TestValve(t *testing.T) {
	top := routed(t, "valve")
	v, err := top.Valve(GW, AlphaPort)
	check(t, err)
	sink, err := top.Serve("public1", "udp-sink", "-addr", ":9000")
	check(t, err)
	check(t, v.Lose(top.Alpha1.V4, 0.2))
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	sent := map[string]uint64{}
	for _, h := range []Host{top.Alpha1, top.Alpha2} {
		var f host.Flood
		check(t, top.Run(ctx, h.Name, &f, "udp-flood", "-dst", top.Public1.V4.String()+":9000", "-tag", h.Name, "-bits", "8e6", "-size", "172", "-duration", "400ms"))
		sent[h.Name] = f.Sent
	}
	var r host.Sink
	check(t, sink.Stop(&r))
	for name, least := range map[string]float64{"alpha1": 0.7, "alpha2": 0.99} {
		got := 0.0
		if s := r.Tags[name]; s != nil {
			got = float64(s.Packets) / float64(sent[name])
		}
		if got < least || name == "alpha1" && got > 0.9 {
			t.Errorf("%s: %.3f of %d packets arrived", name, got, sent[name])
		}
	}
	for range 2 { // the second time there is nothing to take back
		check(t, v.Lose(top.Alpha1.V4, 0))
	}
	if err := v.Lose(top.Alpha1.V6, 1); err == nil {
		t.Error("an IPv6 sender was taken, which it does not look at")
	}
	// One protocol: datagrams are lost and counted, pings pass.
	if _, err := v.LostOf(top.Alpha1.V4, unix.IPPROTO_UDP); err == nil {
		t.Error("it has an account of what it was not told to lose")
	}
	check(t, v.LoseOf(top.Alpha1.V4, unix.IPPROTO_UDP, 1))
	sink, err = top.Serve("public1", "udp-sink", "-addr", ":9000")
	check(t, err)
	var f host.Flood
	check(t, top.Run(ctx, "alpha1", &f, "udp-flood", "-dst", top.Public1.V4.String()+":9000", "-tag", "alpha1", "-bits", "8e6", "-size", "172", "-duration", "100ms"))
	var ping host.Ping
	check(t, top.Run(ctx, "alpha1", &ping, "ping", "-dst", top.Public1.V4.String(), "-count", "5", "-interval", "10ms"))
	r = host.Sink{}
	check(t, sink.Stop(&r))
	lost, err := v.LostOf(top.Alpha1.V4, unix.IPPROTO_UDP)
	check(t, err)
	if r.Tags["alpha1"] != nil || lost != f.Sent || f.Sent == 0 || ping.Received != 5 {
		t.Errorf("of %d datagrams %d were lost by its word, and the sink has %+v; %d of 5 pings were answered", f.Sent, lost, r.Tags["alpha1"], ping.Received)
	}
	if err := v.LoseOf(top.Alpha1.V4, 0, 1); err == nil {
		t.Error("no protocol was taken for one")
	}
}

// A deaf host keeps the neighbour that it knows when another MAC is announced, and resolves when it has none.
func TestDeafHost(t *testing.T) {
	top := routed(t, "deaf")
	check(t, top.Deafen("alpha1", HostDevice))
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	for _, h := range []string{"alpha1", "alpha2"} {
		for _, dst := range []string{InsideGW4, "2001:db8:a::1"} { // both know the router
			var p host.Ping
			check(t, top.Run(ctx, h, &p, "ping", "-dst", dst, "-count", "1", "-interval", "10ms"))
			if p.Received != 1 {
				t.Fatalf("%s does not reach %s", h, dst)
			}
		}
	}
	forged, all := net.HardwareAddr{2, 0, 0, 0, 0, 0x77}, net.HardwareAddr{255, 255, 255, 255, 255, 255}
	gw4, gw6 := netip.MustParseAddr(InsideGW4).As4(), netip.MustParseAddr("2001:db8:a::1").As16()
	// RFC 826 with the sender for a target; RFC 4861 7.2.6, flags R and O.
	arp := append(append(append(append([]byte{}, all...), forged...), 8, 6, 0, 1, 8, 0, 6, 4, 0, 1), forged...)
	arp = append(append(append(arp, gw4[:]...), 0, 0, 0, 0, 0, 0), gw4[:]...)
	na := append(append([]byte{0x33, 0x33, 0, 0, 0, 1}, forged...), 0x86, 0xdd, 0x60, 0, 0, 0, 0, 32, 58, 255)
	na = append(append(na, gw6[:]...), 0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1)
	icmp := append(append([]byte{136, 0, 0, 0, 0xa0, 0, 0, 0}, gw6[:]...), append([]byte{2, 1}, forged...)...)
	sum := uint32(32 + 58)
	for _, b := range [][]byte{na[22:54], icmp} {
		for i := 0; i < len(b); i += 2 {
			sum += uint32(b[i])<<8 | uint32(b[i+1])
		}
	}
	for sum > 0xffff {
		sum = sum&0xffff + sum>>16
	}
	icmp[2], icmp[3] = byte(^sum>>8), byte(^sum)
	na = append(na, icmp...)
	check(t, top.Do(GW, func() error {
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		dev, err := net.InterfaceByName(AlphaPort)
		if err != nil {
			return err
		}
		for _, f := range [][]byte{arp, na} {
			if err := unix.Sendto(fd, f, 0, &unix.SockaddrLinklayer{Ifindex: dev.Index, Protocol: htons(unix.ETH_P_ALL)}); err != nil {
				return err
			}
		}
		return nil
	}))
	knows := func(h string, dst netip.Addr, mac string) bool {
		s, link, err := top.link(h, HostDevice)
		check(t, err)
		family := unix.AF_INET
		if dst.Is6() {
			family = unix.AF_INET6
		}
		list, err := s.h.NeighList(link.Attrs().Index, family)
		check(t, err)
		for _, n := range list {
			if a, ok := netip.AddrFromSlice(n.IP); ok && a.Unmap() == dst && n.HardwareAddr.String() == mac {
				return true
			}
		}
		return false
	}
	own, err := top.MAC(GW, AlphaPort)
	check(t, err)
	for _, dst := range []netip.Addr{netip.AddrFrom4(gw4), netip.AddrFrom16(gw6)} {
		for end := time.Now().Add(5 * time.Second); !knows("alpha2", dst, forged.String()); time.Sleep(5 * time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("alpha2, which hears, does not take the announcement of %s", dst)
			}
		}
		if !knows("alpha1", dst, own.String()) {
			t.Errorf("alpha1, which is deaf, does not keep what it knows of %s", dst)
		}
	}
}

// What a device receives from chosen MACs is captured with the kernel's time, and nothing else.
func TestCaptureSources(t *testing.T) {
	top := routed(t, "macs")
	one, err := top.MAC("alpha1", HostDevice)
	check(t, err)
	two, err := top.MAC("alpha2", HostDevice)
	check(t, err)
	began := time.Now() // before either looks: hosts join groups of their own in the first seconds, and say so twice
	only, err := top.CaptureSources(GW, AlphaPort, 1000, 42, one)
	check(t, err)
	either, err := top.CaptureSources(GW, AlphaPort, 1000, 42, net.HardwareAddr{1, 2, 3}, one[:5])
	check(t, err)
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	for _, h := range []string{"alpha1", "alpha2"} {
		var p host.Ping
		check(t, top.Run(ctx, h, &p, "ping", "-dst", InsideGW4, "-count", "3", "-interval", "5ms"))
	}
	for _, c := range []struct {
		c    *Capture
		macs []net.HardwareAddr
	}{{only, []net.HardwareAddr{one}}, {either, []net.HardwareAddr{one, two}}} {
		check(t, c.c.CatchUp(2*time.Second)) // all pings were answered, so all of them have come to it; a number of frames has those in it that ask for neighbours
		_, err := c.c.Stop()
		check(t, err)
		ended := time.Now() // hosts may ask for a neighbour again at any time
		pings := map[string]int{}
		for _, f := range c.c.Frames() {
			if f.Outgoing || len(f.Data) > 42 || f.At.Before(began) || f.At.After(ended) {
				t.Errorf("a frame of %d bytes, sent %v, at %s; it was between %s and %s", len(f.Data), f.Outgoing, f.At, began, ended)
			}
			if f.Data[12] == 8 && f.Data[13] == 0 {
				pings[net.HardwareAddr(f.Data[6:12]).String()]++
			}
		}
		for _, m := range c.macs {
			if pings[m.String()] != 3 {
				t.Errorf("%d pings of %s, want 3", pings[m.String()], m)
			}
			delete(pings, m.String())
		}
		if len(pings) > 0 {
			t.Errorf("pings of others: %v", pings)
		}
	}
}
