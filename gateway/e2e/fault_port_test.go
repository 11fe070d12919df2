package e2e

import (
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"demarc/gateway/api"
	"demarc/gateway/netlab"
	"demarc/gateway/netlab/host"
)

// A device that is deleted takes its port along and nothing else: the other tenant loses no packet, sessions live, every frame comes back; a device of
// that name, with another number and MAC, is closed before it is up and carries the same sessions by itself. All this while the kernel beside it
// would forward whatever it is given.
func TestFaultDeviceDeletedAndRecreated(t *testing.T) {
	mostlyWaits(t)
	r := newRig(t, "device", rigPolicy("", ""))
	check(t, r.AddNamespace("spare"))
	r.start()
	r.serve(r.Public1.Name, "udp-echo", "-addr", ":7007")
	for range 8 { // so that a device made there has a number of its own
		check(t, r.Plug("sw-beta", netlab.End{NS: "spare", Name: "x"}, 1, 1500))
		check(t, r.RemoveLink("spare", "x"))
	}
	outside := rigAccept(r, r.Public1.Name, ":7100")
	inside := rigDial(r, r.Beta1.Name, addrPort(r.Public1.V4, 7100))
	pushed := <-outside
	f := kernelWouldForward(r)
	var alpha, beta host.Probe
	stream := func(from netlab.Host, into *host.Probe) *job {
		return r.spawn(from.Name, into, "udp-probe", "-dst", addrPort(r.Public1.V4, 7007), "-local", from.V4.String()+":5000", "-pps", "200", "-duration", "3s", "-wait", "1s")
	}
	a := stream(r.Alpha1, &alpha)
	b := stream(r.Beta1, &beta)
	var before []api.Session
	r.until(3*time.Second, "beta's stream has a session", func() (bool, string) {
		before = sessionsOf(r, "beta", 5000)
		return len(before) == 1 && before[0].Reply.Packets > 20, fmt.Sprint(before)
	})
	begin := r.size()
	was := portOf(r.status(), "beta0")
	f.tight("before")

	check(t, r.RemoveLink(netlab.GW, netlab.BetaPort))
	st := r.portIs("beta0", "gone")
	r.until(2*time.Second, "its socket is closed", func() (bool, string) { // where programs carry, a grace period later
		st = r.status()
		p := portOf(st, "beta0")
		return len(p.Queues) == 1 && p.Queues[0].Mode == "none", fmt.Sprintf("%+v", p)
	})
	p := portOf(st, "beta0")
	if !st.Ready || !st.Conservation.OK || p.Ifindex != 0 || p.Attach != "none" || !strings.Contains(p.Problem, "device beta0 is gone") || len(p.Queues) != 1 || p.Queues[0].Mode != "none" {
		t.Errorf("gone: ready %v, frames %s, port %+v", st.Ready, st.Conservation.Detail, p)
	}
	if p.Queues[0].Rx.Packets < was.Queues[0].Rx.Packets {
		t.Errorf("its queue had %d packets and now %d", was.Queues[0].Rx.Packets, p.Queues[0].Rx.Packets)
	}
	if r.metric(`demarc_xsk_port_state{port="beta0",state="gone"}`) != 1 || r.metric(`demarc_xsk_port_state{port="beta0",state="open"}`) != 0 || r.metric(`demarc_xsk_port_up{port="beta0"}`) != 0 {
		t.Error("the metrics do not show that the port is gone")
	}
	if out, _, _ := r.cli("status"); !strings.Contains(out, "port beta0: device beta0 is gone") {
		t.Errorf("status says nothing of it:\n%s", out)
	}
	// What the outside still sends to beta has nowhere to go and is counted.
	lost := st.Drops["interface_down"]
	if _, err := pushed.Write(make([]byte, 1000)); err != nil {
		t.Error(err)
	}
	r.until(3*time.Second, "drops for a port that is gone are counted", func() (bool, string) {
		now := r.status()
		return now.Drops["interface_down"] > lost, fmt.Sprint(drops(st, now))
	})
	// An apply in the meantime is no different from any other.
	r.apply(rigPolicy("", "\n[tenant.rates.out]\nbits = \"900M\"\n"))
	f.tight("gone")

	mac := net.HardwareAddr{0x02, 0xd3, 0, 0, 0xb, 0x77}
	r.plug("sw-beta", netlab.BetaPort, mac, false)
	r.until(5*time.Second, "closed because the device is down", func() (bool, string) {
		p = portOf(r.status(), "beta0")
		return p.State == "closed" && strings.Contains(p.Problem, "ip link set beta0 up"), fmt.Sprintf("%+v", p)
	})
	if f.site.xdpID(netlab.BetaPort) == 0 || p.Ifindex == 0 || p.Ifindex == was.Ifindex {
		t.Errorf("a device that is down: program %d, number %d, was %d", f.site.xdpID(netlab.BetaPort), p.Ifindex, was.Ifindex)
	}
	check(t, r.SetUp(netlab.GW, netlab.BetaPort, true))
	up := time.Now()
	st = r.portIs("beta0", "open")
	took := time.Since(up)
	r.wait(a, b)
	f.tight("open again")
	if alpha.Received != alpha.Sent {
		t.Errorf("the other tenant lost %d of %d", alpha.Sent-alpha.Received, alpha.Sent)
	}
	inside.SetReadDeadline(time.Now().Add(10 * time.Second))
	if n, err := io.ReadFull(inside, make([]byte, 1000)); err != nil { // sent again until it comes through
		t.Errorf("of what was sent meanwhile over TCP %d of 1000 bytes came: %v", n, err)
	}
	after := sessionsOf(r, "beta", 5000)
	if len(after) != 1 || after[0].XlatSrc != before[0].XlatSrc || after[0].Slot != before[0].Slot || after[0].Reply.Packets <= before[0].Reply.Packets {
		t.Errorf("the session before and after: %+v, %+v", before, after)
	}
	if beta.Received == beta.Sent || beta.LongestMs > 4000 {
		t.Errorf("beta's stream: %d of %d, longest gap %.0f ms", beta.Received, beta.Sent, beta.LongestMs)
	}
	if p = portOf(st, "beta0"); len(p.Changed) == 0 {
		t.Errorf("the new device, which has offloads on, was not prepared: %+v", p)
	}
	if p.MAC != mac.String() || p.Queues[0].Mode != "copy" || p.Problem != "" || !st.Conservation.OK || r.metric(`demarc_xsk_port_state{port="beta0",state="open"}`) != 1 {
		t.Errorf("open again: frames %s, port %+v", st.Conservation.Detail, p)
	}
	t.Logf("open %.0f ms after it was up; beta's longest gap %.0f ms, %d of %d; alpha %d of %d, longest gap %.0f ms", took.Seconds()*1e3, beta.LongestMs, beta.Received, beta.Sent,
		alpha.Received, alpha.Sent, alpha.LongestMs)

	// Again and again, at once or after a while, up or down when it goes: nothing piles up. Memory that was handed in is touched bit by bit at first: 160 times take
	// 50 MiB and the next 160 half a MiB.
	again := func() {
		for i := range 8 {
			check(t, r.RemoveLink(netlab.GW, netlab.BetaPort))
			if i%2 == 0 {
				r.portIs("beta0", "gone")
			}
			r.plug("sw-beta", netlab.BetaPort, mac, i%4 != 1)
			if i%4 == 1 {
				r.portIs("beta0", "closed")
			} else if i%4 == 2 {
				r.portIs("beta0", "open")
			}
		}
	}
	again()
	r.portIs("beta0", "open")
	settled := r.size()
	again()
	st = r.portIs("beta0", "open")
	var ping host.Ping
	r.wait(r.spawn(r.Beta1.Name, &ping, "ping", "-dst", r.Public1.V4.String(), "-count", "10", "-interval", "20ms"))
	if ping.Received < 9 || !st.Conservation.OK {
		t.Errorf("after all that %d of 10 pings, frames %s", ping.Received, st.Conservation.Detail)
	}
	begin.grew(t, r.size(), 32<<10)
	settled.grew(t, r.size(), 16<<10)

	// None left: it waits.
	f.stop()
	for _, dev := range []string{netlab.PublicPort, netlab.AlphaPort, netlab.BetaPort} {
		check(t, r.RemoveLink(netlab.GW, dev))
	}
	r.until(5*time.Second, "all are gone", func() (bool, string) {
		st = r.status()
		return !st.Ready && strings.Contains(st.WhyNotReady, "no port is open"), st.WhyNotReady
	})
	r.until(2*time.Second, "without ports every frame is free", func() (bool, string) {
		st = r.status()
		return st.Workers[0].FramesFree == st.Workers[0].Frames && st.Conservation.OK, fmt.Sprintf("%d of %d, %s", st.Workers[0].FramesFree, st.Workers[0].Frames, st.Conservation.Detail)
	})
	r.plug("sw-public", netlab.PublicPort, net.HardwareAddr{0x02, 0xd3, 0, 0, 0xf, 0x78}, true)
	r.plug("sw-alpha", netlab.AlphaPort, net.HardwareAddr{0x02, 0xd3, 0, 0, 0xa, 0x78}, true)
	r.portIs("bb0", "open")
	if st = r.portIs("alpha0", "open"); !st.Ready || portOf(st, "beta0").State != "gone" {
		t.Errorf("two of three: ready %v, %s", st.Ready, st.WhyNotReady)
	}
	r.wait(r.spawn(r.Alpha1.Name, &ping, "ping", "-dst", r.Public1.V4.String(), "-count", "10", "-interval", "20ms"))
	if ping.Received < 9 {
		t.Errorf("on new devices %d of 10 pings", ping.Received)
	}
	if log := read(t, r.log); strings.Contains(log, "taken off") || strings.Contains(log, "panic") {
		t.Errorf("the log complains of what was not:\n%s", r.logged())
	}
	r.stop()
}

// A cable that is pulled and put back, under load: status says so, what is sent there is dropped and counted, the other tenant loses nothing,
// sessions live, and traffic goes on by itself.
func TestFaultCable(t *testing.T) {
	mostlyWaits(t)
	r := newRig(t, "cable", rigPolicy("", ""))
	r.start()
	r.serve(r.Public1.Name, "udp-echo", "-addr", ":7007")
	outside := rigAccept(r, r.Public1.Name, ":7100")
	inside := rigDial(r, r.Beta1.Name, addrPort(r.Public1.V4, 7100))
	pushed := <-outside
	f := kernelWouldForward(r)
	var alpha, beta host.Probe
	stream := func(from netlab.Host, into *host.Probe) *job {
		return r.spawn(from.Name, into, "udp-probe", "-dst", addrPort(r.Public1.V4, 7007), "-local", from.V4.String()+":5000", "-pps", "200", "-duration", "2500ms", "-wait", "1s")
	}
	a, b := stream(r.Alpha1, &alpha), stream(r.Beta1, &beta)
	var before []api.Session
	r.until(3*time.Second, "beta's stream has a session", func() (bool, string) {
		before = sessionsOf(r, "beta", 5000)
		return len(before) == 1 && before[0].Reply.Packets > 20, fmt.Sprint(before)
	})
	f.tight("before")
	check(t, r.SetUp("sw-beta", "gw-beta0", false))
	r.until(3*time.Second, "status says that there is no carrier", func() (bool, string) {
		p := portOf(r.status(), "beta0")
		return p.State == "open" && p.Up && !p.Carrier && strings.Contains(p.Problem, "no carrier"), fmt.Sprintf("%+v", p)
	})
	if r.metric(`demarc_xsk_port_up{port="beta0"}`) != 0 {
		t.Error("the metrics show the port as up")
	}
	st := r.status()
	if _, err := pushed.Write(make([]byte, 1000)); err != nil {
		t.Error(err)
	}
	r.until(3*time.Second, "drops for a port without carrier are counted", func() (bool, string) {
		now := r.status()
		return now.Drops["interface_down"] > st.Drops["interface_down"], fmt.Sprint(drops(st, now))
	})
	check(t, r.SetUp("sw-beta", "gw-beta0", true))
	r.until(3*time.Second, "the port is well again", func() (bool, string) {
		p := portOf(r.status(), "beta0")
		return p.Carrier && p.Problem == "", fmt.Sprintf("%+v", p)
	})
	r.wait(a, b)
	inside.SetReadDeadline(time.Now().Add(10 * time.Second))
	if n, err := io.ReadFull(inside, make([]byte, 1000)); err != nil {
		t.Errorf("of what was sent meanwhile over TCP %d of 1000 bytes came: %v", n, err)
	}
	f.tight("after")
	after := sessionsOf(r, "beta", 5000)
	if len(after) != 1 || after[0].XlatSrc != before[0].XlatSrc || after[0].Reply.Packets <= before[0].Reply.Packets {
		t.Errorf("the session before and after: %+v, %+v", before, after)
	}
	if alpha.Received != alpha.Sent || beta.Received == beta.Sent || beta.Received == 0 {
		t.Errorf("the other tenant: %d of %d; this one: %d of %d", alpha.Received, alpha.Sent, beta.Received, beta.Sent)
	}
	if st := r.status(); !st.Ready || !st.Conservation.OK || st.Drops["unset"] > 0 {
		t.Errorf("ready %v, frames %s", st.Ready, st.Conservation.Detail)
	}
	t.Logf("alpha %d of %d; beta %d of %d, longest gap %.0f ms", alpha.Received, alpha.Sent, beta.Received, beta.Sent, beta.LongestMs)
	r.stop()
}

// The MTU of a port changes under a running node: senders are told the new one with the next packet that is too large; more than a frame of packet
// memory holds is said to be so and no more is promised than it holds; back is back.
func TestFaultMTU(t *testing.T) {
	mostlyWaits(t)
	r := newRig(t, "mtu", rigPolicy("", ""))
	r.write(r.node, replace(t, rigNode(r.data, r.socket, ""), "port = \"bb0\"\n", "port = \"bb0\"\nmtu = 1450\n"))
	r.start()
	ping := func(size string) (bool, string) { // with DF; what was learned of the path is forgotten before
		t.Helper()
		_, err := r.Exec(r.Alpha1.Name, "ip", "route", "flush", "cache")
		check(t, err)
		var out strings.Builder
		c := r.Command(r.Alpha1.Name, "ping", "-n", "-c", "1", "-W", "1", "-M", "do", "-s", size, r.Public1.V4.String())
		c.Stdout, c.Stderr = &out, &out
		err = c.Run()
		return err == nil, out.String()
	}
	is := func(mtu, served int, problem string) {
		t.Helper()
		check(t, r.SetMTU(netlab.GW, netlab.PublicPort, mtu))
		var p api.Ports
		r.until(3*time.Second, fmt.Sprintf("mtu %d is served as %d", mtu, served), func() (bool, string) {
			r.ask(&p, "ports")
			return p.Ports[0].MTU == mtu && p.Interfaces[0].MTU == served, fmt.Sprintf("%+v %+v", p.Ports[0], p.Interfaces[0])
		})
		if got := p.Ports[0].Problem; p.Ports[0].State != "open" || (problem == "") != (got == "") || !strings.Contains(got, problem) {
			t.Errorf("mtu %d: %s, %q, want %q", mtu, p.Ports[0].State, got, problem)
		}
		// 28 bytes of headers.
		if ok, out := ping(fmt.Sprint(served - 28)); !ok {
			t.Errorf("mtu %d: a packet of %d does not pass:\n%s", mtu, served, out)
		}
		if served < 1500 { // the sender's own
			if ok, out := ping(fmt.Sprint(served - 27)); ok || !strings.Contains(out, fmt.Sprintf("mtu = %d", served)) && !strings.Contains(out, fmt.Sprintf("mtu=%d", served)) {
				t.Errorf("mtu %d: a packet of %d: passed %v:\n%s", mtu, served+1, ok, out)
			}
		}
	}
	is(1500, 1450, "")
	is(1400, 1400, "interface backbone has mtu 1450, its device only 1400, which holds: a restart would be refused")
	is(1300, 1300, "interface backbone has mtu 1450")
	is(9000, 1450, "mtu 9000 is more than the 1774 that a frame of packet memory holds: larger packets that arrive are lost; ip link set bb0 mtu 1774")
	is(1500, 1450, "")
	if st := r.status(); !st.Ready || !st.Conservation.OK || st.Drops["unset"] > 0 {
		t.Errorf("ready %v, frames %s", st.Ready, st.Conservation.Detail)
	}
	r.stop()
}

// rigAccept gives the connections that come to a TCP port.
func rigAccept(r *rig, ns, at string) <-chan net.Conn {
	r.t.Helper()
	var l net.Listener
	check(r.t, r.Do(ns, func() (err error) {
		l, err = net.Listen("tcp", at)
		return err
	}))
	r.t.Cleanup(func() { l.Close() })
	out := make(chan net.Conn, 4)
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			r.t.Cleanup(func() { c.Close() })
			out <- c
		}
	}()
	return out
}

// sessionsOf are a tenant's sessions of one inside port.
func sessionsOf(r *rig, tenant string, port int) (out []api.Session) {
	r.t.Helper()
	var s api.Sessions
	r.ask(&s, "sessions", "--tenant", tenant)
	for _, x := range s.Sessions {
		if strings.HasSuffix(x.Src, fmt.Sprintf(":%d", port)) {
			out = append(out, x)
		}
	}
	return out
}
