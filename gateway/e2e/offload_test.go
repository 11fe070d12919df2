package e2e

import (
	"context"
	"encoding/binary"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"demarc/gateway/api"
	"demarc/gateway/nat"
	"demarc/gateway/netlab"
	"demarc/gateway/netlab/host"
	"demarc/gateway/trace"
)

// offloadPorts is a node file all of whose ports have this line of it.
func offloadPorts(node, line string) string {
	return regexp.MustCompile(`(?m)^(offload = .*\n)?(device = .*)$`).ReplaceAllString(node, line+"$2")
}

func offloadRig(t *testing.T, name, policy string) *rig {
	r := newRigWith(t, name, policy, netlab.Options{Redirects: true})
	r.write(r.node, offloadPorts(rigNode(r.data, r.socket, ""), offloadLine))
	return r
}

// stream is 1,000 probes a second from alpha to the public side and back.
func (r *rig) stream(p *host.Probe, d time.Duration) *job {
	return r.spawn(r.Alpha1.Name, p, "udp-probe", "-dst", addrPort(r.Public1.V4, 7007), "-pps", "1000", "-duration", d.String())
}

// streamUntil is stream until ctx ends. What comes back of it is not waited for.
func (r *rig) streamUntil(ctx context.Context, p *host.Probe) *job {
	return r.spawnUntil(ctx, r.Alpha1.Name, p, "udp-probe", "-dst", addrPort(r.Public1.V4, 7007), "-pps", "1000", "-duration", "2m", "-wait", "1ms")
}

// arrives counts what the public host receives of it.
func (r *rig) arrives() func() uint64 {
	r.t.Helper()
	m, err := r.Meter(r.Public1.Name, netlab.HostDevice, netlab.Ingress, netlab.Match{Proto: unix.IPPROTO_UDP, DstPort: 7007})
	check(r.t, err)
	return func() uint64 {
		n, err := m.Read()
		check(r.t, err)
		return n.Packets
	}
}

// newest says when the newest of what the public host has received of it was sent, by clockOfProbes. What was on its way while the machine was elsewhere arrives late, and was sent before all the same.
func (r *rig) newest() func() int64 {
	r.t.Helper()
	by := r.newestByPort()
	return func() (last int64) {
		for _, at := range by() {
			last = max(last, at)
		}
		return last
	}
}

// newestByPort is newest for each public port that it came from.
func (r *rig) newestByPort() func() map[uint16]int64 {
	r.t.Helper()
	var mu sync.Mutex
	last := map[uint16]int64{}
	c, err := r.Capture(r.Public1.Name, netlab.HostDevice, 0, func(f []byte) bool {
		const head = 14 + 20 + 8
		if len(f) < head || f[12] != 8 || f[13] != 0 || f[23] != unix.IPPROTO_UDP || binary.BigEndian.Uint16(f[36:]) != 7007 {
			return false
		}
		at, ok := host.ProbeSent(f[head:])
		from := binary.BigEndian.Uint16(f[34:])
		mu.Lock()
		last[from] = max(last[from], at)
		mu.Unlock()
		return ok
	})
	check(r.t, err)
	return func() map[uint16]int64 {
		check(r.t, c.CatchUp(time.Second))
		time.Sleep(2 * time.Millisecond) // what was read last is being looked at
		mu.Lock()
		defer mu.Unlock()
		return maps.Clone(last)
	}
}

func (r *rig) flows(count func() uint64) {
	r.t.Helper()
	r.until(5*time.Second, "the stream comes", func() (bool, string) { n := count(); return n > 100, fmt.Sprint(n) })
	carried := func() uint64 { return portOf(r.status(), "alpha0").Offload.Carried }
	before := carried()
	r.until(5*time.Second, "the program carries it", func() (bool, string) { n := carried(); return n > before+20, fmt.Sprint(n) })
}

// What the XDP program carries is translated, arrives, and is counted as if workers had carried it, by session, tenant and port. The session lives for as long as packets come, of which no worker sees one.
func TestOffloadCarries(t *testing.T) {
	r := offloadRig(t, "offload", strings.Replace(rigPolicy("[tenant.rates.out]\nbits = \"50M\"\n[tenant.rates.in]\nbits = \"50M\"", ""), "[backbone]", "[timeouts]\nudp = \"2500ms\"\nudp_unanswered = \"2500ms\"\n[backbone]", 1))
	r.start()
	r.serve(r.Public1.Name, "udp-echo", "-addr", ":7007")
	byPort := r.newestByPort()
	var p host.Probe
	r.wait(r.stream(&p, 4*time.Second))
	if ports := byPort(); len(ports) != 1 {
		t.Errorf("one stream came from %d public ports: its session ended before it did", len(ports))
	}
	if p.Sent < 3000 || p.Received != p.Sent || p.Duplicate > 0 || p.Foreign > 0 {
		t.Errorf("%+v", p)
	}
	st := r.status()
	a := rigTenantOf(st, "alpha")
	if got := [2]api.Counter{a.Out, a.In}; got[0].Packets != p.Sent || got[0] != got[1] || got[0].Bytes != p.Sent*228 || a.Offered.Out != a.Out || a.Offered.In != a.In {
		t.Errorf("the tenant has %+v, offered %+v, and %d were sent", got, a.Offered, p.Sent)
	}
	for _, name := range []string{"alpha0", "bb0"} {
		o := portOf(st, name).Offload
		if !o.On || o.Carried < p.Sent*9/10 || o.Sent.Packets < p.Sent*9/10 || o.Carried > p.Sent {
			t.Errorf("port %s: %+v", name, o)
		}
	}
	var s api.Sessions
	r.ask(&s, "sessions", "--tenant", "alpha")
	if len(s.Sessions) != 1 || !s.Sessions[0].Cruising || s.Sessions[0].Orig.Packets != p.Sent || s.Sessions[0].Reply.Packets != p.Sent || s.Sessions[0].Idle > 2 {
		t.Errorf("sessions: %+v", s.Sessions)
	}
	if st.Workers[0].Cruising != 1 || !st.Conservation.OK {
		t.Errorf("%+v, frames %s", st.Workers[0], st.Conservation.Detail)
	}
	r.until(10*time.Second, "it ends when nothing comes any more", func() (bool, string) {
		r.ask(&s, "sessions", "--tenant", "alpha")
		return len(s.Sessions) == 0, fmt.Sprintf("%+v", s.Sessions)
	})
	// A download, whose connections begin and end with workers.
	r.serve(r.Public2.Name, "http-serve", "-addr", ":8080")
	var g host.Download
	r.wait(r.spawn(r.Beta1.Name, &g, "http-get", "-url", "http://"+addrPort(r.Public2.V4, 8080), "-size", "200000000")) // without a gap to be handed down in, it is at the 255th try, which one of 40 MB may not live to see
	if !g.OK {
		t.Errorf("%+v", g)
	}
	if o := portOf(r.status(), "bb0").Offload; o.Carried < p.Sent+1000 {
		t.Errorf("of the download: %+v", o)
	}
	// What looks at packets sees them all: they go up meanwhile, and down again.
	before := portOf(r.status(), "alpha0").Offload
	var x api.Explanation
	j := r.stream(&p, time.Second)
	r.ask(&x, "explain", "--tenant", "alpha", "--proto", "udp", "--from", r.Alpha1.V4.String()+":40000", "--to", addrPort(r.Public1.V4, 7007))
	r.wait(j)
	if p.Received != p.Sent || x.Verdict != "send" {
		t.Errorf("beside a trial: %+v, %+v", p, x.Verdict)
	}
	if o := portOf(r.status(), "alpha0").Offload; o.Carried-before.Carried < p.Sent/2 {
		t.Errorf("behind a trial %d of %d were carried", o.Carried-before.Carried, p.Sent)
	}
}

// Telephones that send without DF are carried as well: what leaves has an identification of its own, whoever carries it (RFC 7857 section 10), though both hosts have chosen the same ones.
func TestOffloadNamesWhatMayBeCut(t *testing.T) {
	always(t)
	r := offloadRig(t, "offnames", strings.Replace(rigPolicy("", ""), "pool = [\""+netlab.AlphaPool+"\"]", "pool = [\"192.0.2.16\"]", 1)) // one public address for both
	r.start()
	r.serve(r.Public1.Name, "udp-echo", "-addr", ":7007", "-no-df")
	var mu sync.Mutex
	type end struct {
		host     string
		from, to [4]byte
	}
	names, twice, atomic := map[end]map[uint16]bool{}, 0, 0
	var captures []*netlab.Capture
	for _, h := range []netlab.Host{r.Public1, r.Alpha1, r.Alpha2} {
		c, err := r.Capture(h.Name, netlab.HostDevice, 0, func(f []byte) bool {
			if len(f) < 42 || f[12] != 8 || f[13] != 0 || f[23] != unix.IPPROTO_UDP || [4]byte(f[30:34]) != h.V4.As4() {
				return false
			}
			e, id := end{h.Name, [4]byte(f[26:30]), [4]byte(f[30:34])}, binary.BigEndian.Uint16(f[18:])
			mu.Lock()
			defer mu.Unlock()
			if f[20]&0x40 != 0 {
				atomic++
			}
			if names[e] == nil {
				names[e] = map[uint16]bool{}
			}
			if names[e][id] || id >= nat.WholeIdents {
				twice++
			}
			names[e][id] = true
			return true
		})
		check(t, err)
		captures = append(captures, c)
	}
	before := portOf(r.status(), "alpha0").Offload.Carried
	var p [2]host.Probe
	args := []string{"udp-probe", "-dst", addrPort(r.Public1.V4, 7007), "-pps", "1000", "-duration", "2500ms", "-no-df"}
	r.wait(r.spawn(r.Alpha1.Name, &p[0], args...), r.spawn(r.Alpha2.Name, &p[1], args...))
	for _, p := range p {
		if p.Sent != 2500 || p.Received != p.Sent || p.Duplicate > 0 || p.Reordered > 0 {
			t.Errorf("%+v", p)
		}
	}
	if n := portOf(r.status(), "alpha0").Offload.Carried - before; n < 4500 {
		t.Errorf("the program has carried %d of 5000", n)
	}
	for _, c := range captures {
		check(t, c.CatchUp(time.Second))
	}
	mu.Lock()
	defer mu.Unlock()
	if len(names) != 3 || atomic > 0 || twice > 0 {
		t.Errorf("between %d pairs of addresses %d packets had DF, and %d an identification of another one", len(names), atomic, twice)
	}
	for e, ids := range names {
		if want := map[bool]int{true: 5000, false: 2500}[e.host == r.Public1.Name]; len(ids) != want {
			t.Errorf("%s: %d identifications from %v to %v, want %d", e.host, len(ids), e.from, e.to, want)
		}
	}
}

// With several workers nothing comes out of order, is lost or comes twice, whoever carries it: what programs redirect passes nothing by that a worker has in hand.
func TestOffloadKeepsOrderBetweenWorkers(t *testing.T) {
	always(t)
	workersHandOver(t, handOver{2, false}, handOver{4, false})
}

// Each policy has all packets go up for a moment, and sessions handed down again: nothing is lost by that, and nothing comes out of order.
func TestOffloadLosesNothingByAPolicy(t *testing.T) {
	always(t)
	applyLosesNothing(t)
}

// While packets of a tenant wait for its rate, those that the program would carry go up and wait behind them: nothing passes by.
func TestOffloadKeepsOrderBehindAQueue(t *testing.T) {
	always(t)
	r := offloadRig(t, "offqueue", rigPolicy("[tenant.rates.out]\nbits = \"20M\"\n", ""))
	r.start()
	r.serve(r.Public1.Name, "udp-echo", "-addr", ":7007")
	r.serve(r.Public2.Name, "udp-sink", "-addr", ":9000")
	count := r.arrives()
	var p host.Probe
	j := r.stream(&p, 4*time.Second)
	r.flows(count)
	waits := func() uint64 {
		o := portOf(r.status(), "alpha0").Offload
		return o.Frames["up_queue"] + o.Frames["up_rate"]
	}
	for range 3 { // three times as much as the rate for a while, then time to be handed down again
		before := waits()
		var f host.Flood
		r.wait(r.spawn(r.Alpha2.Name, &f, "udp-flood", "-dst", addrPort(r.Public2.V4, 9000), "-bits", "60e6", "-duration", "300ms"))
		if waits() == before { // one is enough: those behind it go up because it did
			t.Error("no packet of the stream went up because others wait: this proves nothing")
		}
		r.flows(count)
	}
	r.wait(j)
	o := portOf(r.status(), "alpha0").Offload
	t.Logf("%d of %d came back, %d reordered; %d carried, %d up because others wait, %d behind those", p.Received, p.Sent, p.Reordered, o.Carried, waits(), o.Frames["up_not_down"])
	if o.Carried < p.Sent/4 || o.Frames["up_not_down"] < 50 {
		t.Errorf("the program carried %d, and %d went up behind others: this proves nothing", o.Carried, o.Frames["up_not_down"])
	}
	if p.Reordered > 0 || p.Duplicate > 0 || p.Foreign > 0 || p.Received < p.Sent/3 {
		t.Errorf("%+v", p)
	}
}

// Who begins to look at a session that the program carries sees each packet from then on.
func TestOffloadHidesNothingFromACapture(t *testing.T) {
	always(t)
	r := offloadRig(t, "offlook", rigPolicy("", ""))
	r.start()
	r.serve(r.Public1.Name, "udp-echo", "-addr", ":7007")
	count := r.arrives()
	var p host.Probe
	going, end := context.WithCancel(t.Context())
	defer end()
	j := r.streamUntil(going, &p)
	file := filepath.Join(r.dir, "c.pcapng")
	const packets = 400
	for range 3 {
		r.flows(count)
		if out, bad, code := r.cli("capture", "-w", file, "--tenant", "alpha", "--proto", "udp", "--before", "--count", fmt.Sprint(packets)); code != 0 {
			t.Fatal(out, bad)
		}
		frames, err := trace.ReadFrames([]byte(read(t, file)), packets)
		check(t, err)
		next := map[bool]uint64{} // by direction: the number of the probe that must come
		for _, f := range frames {
			const udp = 14 + 20
			out := binary.BigEndian.Uint16(f[udp+2:]) == 7007
			n, ok := host.ProbeNumber(f[udp+8:])
			if want, begun := next[out]; !ok || begun && n != want {
				t.Fatalf("probe %d where %d must come, outward %t, of %d frames", n, want, out, len(frames))
			}
			next[out] = n + 1
		}
		if len(frames) != packets || len(next) != 2 {
			t.Errorf("%d frames in %d directions", len(frames), len(next))
		}
		check(t, os.Remove(file))
	}
	end()
	r.wait(j)
}

// What is cut by policy or blocked is cut when it is acknowledged: not one packet comes that is sent after.
func TestOffloadCutIsACut(t *testing.T) {
	r := offloadRig(t, "offcut", rigPolicy("", ""))
	r.start()
	r.serve(r.Public1.Name, "udp-echo", "-addr", ":7007")
	count, newest := r.arrives(), r.newest()
	var p host.Probe
	going, end := context.WithCancel(t.Context())
	defer end()
	j := r.streamUntil(going, &p)
	silent := func(after string) {
		t.Helper()
		from := clockOfProbes(t)
		time.Sleep(250 * time.Millisecond)
		switch last := newest(); {
		case last == 0:
			t.Error("no probe has been seen: this proves nothing")
		case last > from:
			t.Errorf("a packet came that was sent %v after %s", time.Duration(last-from), after)
		}
	}
	r.flows(count)
	r.apply(rigPolicy("[[tenant.rule]]\nname = \"none\"\ndirection = \"out\"\naction = \"deny\"\n", ""))
	silent("the policy was acknowledged")
	r.apply(rigPolicy("", ""))
	r.flows(count)
	if _, bad, code := r.cli("block", r.Public1.V4.String(), "for", "30s"); code != 0 {
		t.Fatal(bad)
	}
	silent("the block was acknowledged")
	if _, bad, code := r.cli("unblock", r.Public1.V4.String()); code != 0 {
		t.Fatal(bad)
	}
	r.flows(count)
	end()
	r.wait(j)
}

// What an operator cuts is cut when it is acknowledged: what is sent after begins anew, and not one packet of it comes from the public port of the session that was cut.
func TestOffloadOperatorsCutIsACut(t *testing.T) {
	r := offloadRig(t, "offopcut", rigPolicy("", ""))
	r.start()
	r.serve(r.Public1.Name, "udp-echo", "-addr", ":7007")
	count, byPort := r.arrives(), r.newestByPort()
	var p host.Probe
	going, end := context.WithCancel(t.Context())
	defer end()
	j := r.streamUntil(going, &p)
	was := map[uint16]bool{}
	for range 3 {
		r.flows(count)
		r.until(5*time.Second, "the session is handed down", func() (bool, string) {
			var s api.Sessions
			r.ask(&s, "sessions", "--tenant", "alpha")
			return len(s.Sessions) == 1 && s.Sessions[0].Cruising, fmt.Sprintf("%+v", s.Sessions)
		})
		for port := range byPort() {
			was[port] = true
		}
		if out, bad, code := r.cli("sessions", "cut", "--address", r.Alpha1.V4.String(), "--yes"); code != 0 || !strings.Contains(out, "1 session of 1 cut") {
			t.Fatal(out, bad)
		}
		from := clockOfProbes(t)
		time.Sleep(250 * time.Millisecond)
		anew := false
		for port, last := range byPort() {
			if was[port] && last > from {
				t.Errorf("a packet came from port %d that was sent %v after its session was cut", port, time.Duration(last-from))
			}
			anew = anew || !was[port] && last > from
		}
		if !anew {
			t.Error("nothing comes from another port: this proves nothing")
		}
	}
	end()
	r.wait(j)
	if p.Foreign > 0 || p.Duplicate > 0 || p.Received < p.Sent*9/10 {
		t.Errorf("%+v", p)
	}
}

// A node that is killed or stopped, or whose worker is caught in a loop that does not end, carries nothing after half a second, although its programs stay attached.
func TestOffloadClosesWhenDead(t *testing.T) {
	mostlyWaits(t)
	for name, signal := range map[string]syscall.Signal{"killed": unix.SIGKILL, "stopped": unix.SIGSTOP, "caught in a loop": unix.SIGUSR2} {
		r := offloadRig(t, "offdead", rigPolicy("", ""))
		if signal == unix.SIGUSR2 {
			r.program = plantProgram(t)
			r.start("env", "DEMARC_PLANT=worker-loops")
		} else {
			r.start()
		}
		r.serve(r.Public1.Name, "udp-echo", "-addr", ":7007")
		count, newest := r.arrives(), r.newest()
		var p host.Probe
		going, end := context.WithCancel(t.Context()) // until it carries again, however long a busy machine takes for what is before
		defer end()
		j := r.streamUntil(going, &p)
		r.flows(count)
		pid := netlab.Worker(r.cmd.Process.Pid)
		began := clockOfProbes(t)
		if pid != r.cmd.Process.Pid && signal != unix.SIGUSR2 {
			check(t, unix.Kill(r.cmd.Process.Pid, signal)) // first who would start it again
		}
		check(t, unix.Kill(pid, signal))
		time.Sleep(1200 * time.Millisecond)
		last, was := time.Duration(newest()-began), count()
		t.Logf("%s: the last packet that came was sent %v after", name, last)
		if last > 500*time.Millisecond || last < -500*time.Millisecond { // far before: there was no stream to be cut
			t.Errorf("%s: the last packet that came was sent %v after", name, last)
		}
		switch signal {
		case unix.SIGSTOP:
			check(t, unix.Kill(pid, unix.SIGCONT))
			check(t, unix.Kill(r.cmd.Process.Pid, unix.SIGCONT))
			r.until(3*time.Second, "it carries again", func() (bool, string) { n := count(); return n > was+20, fmt.Sprint(n - was) })
			r.stop()
		case unix.SIGUSR2:
			if !r.running() || unix.Kill(pid, 0) != nil {
				t.Error("the node has ended: this proves nothing")
			}
			check(t, unix.Kill(pid, unix.SIGKILL)) // it hears nothing else
			<-r.ended
		default:
			<-r.ended
		}
		end()
		r.wait(j)
	}
}

// A start is refused where what is redirected to a port would be lost, and where that begins later, workers carry what goes there.
func TestOffloadNeedsWhoTakesIt(t *testing.T) {
	r := offloadRig(t, "offlost", rigPolicy("", ""))
	far := netlab.PortName(netlab.End{NS: netlab.GW, Name: netlab.PublicPort})
	check(t, r.TakesRedirected("sw-public", far, false))
	r.launch()
	if !r.gone(20*time.Second) || r.err == nil || !strings.Contains(r.logged(), `port bb0: offload = "always" cannot be: the far end of the veth takes no redirected frames: ethtool -K FAR-END gro on, there`) {
		t.Errorf("it ended with %v:\n%s", r.err, r.logged())
	}
	check(t, r.TakesRedirected("sw-public", far, true))
	r.start()
	r.serve(r.Public1.Name, "udp-echo", "-addr", ":7007")
	count := r.arrives()
	var p host.Probe
	going, end := context.WithCancel(t.Context())
	defer end()
	j := r.streamUntil(going, &p)
	r.flows(count)
	check(t, r.TakesRedirected("sw-public", far, false))
	r.until(4*time.Second, "it is seen", func() (bool, string) {
		o := portOf(r.status(), "bb0").Offload
		return !o.On && strings.Contains(o.Why, "no redirected frames"), fmt.Sprintf("%+v", o)
	})
	was := count()
	r.until(2*time.Second, "workers carry it", func() (bool, string) { n := count(); return n > was+100, fmt.Sprint(n - was) })
	check(t, r.TakesRedirected("sw-public", far, true))
	r.until(4*time.Second, "it is on again", func() (bool, string) { o := portOf(r.status(), "bb0").Offload; return o.On, fmt.Sprintf("%+v", o) })
	end()
	r.wait(j)
}

// What workers carry on ports with offload, here all of a tenant with rates of single hosts, leaves many at a time by a program where much comes at once: in order, whole, and counted by port and tenant.
func TestOffloadSendsManyAtOnce(t *testing.T) {
	r := offloadRig(t, "offloadmany", rigPolicy("[tenant.rates.host.out]\nbits = \"10G\"\n[tenant.rates.host.in]\nbits = \"10G\"", ""))
	r.start()
	if log := read(t, r.log); strings.Contains(log, "sockets alone") {
		t.Fatalf("workers send by their sockets alone:\n%s", log)
	}
	r.serve(r.Public1.Name, "udp-echo", "-addr", ":7007")
	figures := func() (redirected, sent uint64) {
		var ports api.Ports
		r.ask(&ports, "ports")
		for _, p := range ports.Ports {
			for _, q := range p.Queues {
				redirected += q.TxRedirected
				sent += q.Tx.Packets
			}
		}
		return redirected, sent
	}
	var first, p host.Probe
	r.wait(r.spawn(r.Alpha1.Name, &first, "udp-probe", "-dst", addrPort(r.Public1.V4, 7007), "-pps", "100", "-duration", "200ms")) // neighbours are found
	r.wait(r.spawn(r.Alpha1.Name, &p, "udp-probe", "-dst", addrPort(r.Public1.V4, 7007), "-pps", "20000", "-duration", "3s"))
	st := r.status()
	a := rigTenantOf(st, "alpha")
	redirected, sent := figures()
	t.Logf("%d sent, %d came back, %d reordered; %d frames left by the program of %d and %d packets", p.Sent, p.Received, p.Reordered, redirected, a.Out.Packets, a.In.Packets)
	if redirected == 0 {
		t.Error("nothing left by the program")
	}
	if p.Received < p.Sent*95/100 || p.Duplicate > 0 || p.Reordered > 0 || p.Foreign > 0 {
		t.Errorf("%+v", p)
	}
	if portOf(st, "alpha0").Offload.Carried != 0 || !st.Conservation.OK {
		t.Errorf("%+v, %+v", portOf(st, "alpha0").Offload, st.Conservation)
	}
	if want := a.Out.Packets + a.In.Packets; sent < want || sent > want+want/100+200 { // questions for neighbours are few
		t.Errorf("%d frames were sent, and %d packets of the tenant", sent, want)
	}
	r.stop()
}

// By itself a node has programs carry between veths while their far ends take what is redirected. Where one takes it no more, workers carry what goes there within milliseconds, and programs again when it does.
func TestOffloadByItselfOnAVeth(t *testing.T) {
	r := newRigWith(t, "offauto", rigPolicy("", ""), netlab.Options{Redirects: true})
	r.write(r.node, offloadPorts(rigNode(r.data, r.socket, ""), "offload = \"auto\"\n"))
	far := netlab.PortName(netlab.End{NS: netlab.GW, Name: netlab.PublicPort})
	r.start()
	r.serve(r.Public1.Name, "udp-echo", "-addr", ":7007")
	var p host.Probe
	going, end := context.WithCancel(t.Context())
	defer end()
	j := r.spawnUntil(going, r.Alpha1.Name, &p, "udp-probe", "-dst", addrPort(r.Public1.V4, 7007), "-pps", "2000", "-duration", "2m", "-wait", "200ms")
	carried := func() uint64 { return portOf(r.status(), "alpha0").Offload.Carried }
	was := carried()
	r.until(5*time.Second, "the program carries it", func() (bool, string) { n := carried(); return n > was+100, fmt.Sprint(n - was) })
	const times = 3
	for range times {
		for _, on := range []bool{false, true} {
			check(t, r.TakesRedirected("sw-public", far, on))
			r.until(4*time.Second, "it is seen", func() (bool, string) {
				o := portOf(r.status(), "bb0").Offload
				return o.On == on, fmt.Sprintf("%+v", o)
			})
			time.Sleep(200 * time.Millisecond)
		}
	}
	was = carried()
	r.until(5*time.Second, "the program carries it again", func() (bool, string) { n := carried(); return n > was+100, fmt.Sprint(n - was) })
	end()
	r.wait(j)
	t.Logf("%d of %d came back with gro off %d times, longest gap %.1f ms", p.Received, p.Sent, times, p.LongestMs)
	// Once a second would be 1,000 packets each time on average.
	if lost := p.Sent - p.Received; lost > times*50 || p.Duplicate > 0 || p.Foreign > 0 {
		t.Errorf("%+v", p)
	}
	r.stop()
}
