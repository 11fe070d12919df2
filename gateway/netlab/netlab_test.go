package netlab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"demarc/gateway/netlab/host"
)

func TestMain(m *testing.M) {
	Init()
	os.Exit(m.Run())
}

func prefix(s string) netip.Prefix { return netip.MustParsePrefix(s) }

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// routed is the standard lab with the kernel in the gateway's place: alpha and the public side, no translation.
func routed(t *testing.T, name string) *Topology {
	t.Helper()
	top, err := Standard(name, Options{Queues: 2})
	check(t, err)
	t.Cleanup(func() {
		check(t, top.Close())
		if left, _ := filepath.Glob(filepath.Join(netnsDir, top.Name()+"-*")); len(left) > 0 {
			t.Errorf("namespaces left: %v", left)
		}
		if pids := marked(top.Name()); len(pids) > 0 {
			t.Errorf("processes left: %v", pids)
		}
	})
	for _, a := range [][2]string{{AlphaPort, InsideGW4 + "/24"}, {AlphaPort, "2001:db8:a::1/64"}, {PublicPort, PublicGW4 + "/24"}, {PublicPort, PublicGW6 + "/64"}} {
		check(t, top.AddAddr(GW, a[0], prefix(a[1])))
	}
	check(t, top.Sysctl(GW, "net.ipv4.ip_forward", "1"))
	check(t, top.Sysctl(GW, "net.ipv6.conf.all.forwarding", "1"))
	for _, h := range []string{"public1", "public2"} {
		check(t, top.AddRoute(h, prefix(Inside4), netip.MustParseAddr(PublicGW4)))
	}
	return top
}

func TestToolsThroughKernel(t *testing.T) {
	before, err := os.Readlink("/proc/self/ns/net")
	check(t, err)
	top := routed(t, "tools")
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()

	serve := func(ns string, args ...string) *Server {
		s, err := top.Serve(ns, args...)
		check(t, err)
		return s
	}
	web := serve("public1", "http-serve", "-addr", ":80")
	echo := serve("public1", "udp-echo", "-addr", ":7007")
	sink := serve("public2", "udp-sink", "-addr", ":9000")
	paced := serve("public2", "udp-sink", "-addr", ":9001")
	dns := serve("public2", "dns-serve", "-addr", ":53")
	tcp := serve("alpha1", "tcp-serve", "-addr", ":8080", "-banner", "alpha1")

	meter, err := top.Meter("public2", HostDevice, Ingress, Match{Src: prefix(Inside4), Proto: unix.IPPROTO_UDP, DstPort: 9000})
	check(t, err)
	other, err := top.Meter("public2", HostDevice, Ingress, Match{Src: prefix("198.18.11.0/24")})
	check(t, err)
	meter6, err := top.Meter("public2", HostDevice, Ingress, Match{Src: prefix(AlphaNet6), Proto: unix.IPPROTO_ICMPV6})
	check(t, err)
	cap, err := top.Capture("public2", HostDevice, 10, func(f []byte) bool { return bytes.Contains(f, host.ProbeMarker("fl")) })
	check(t, err)

	for _, dst := range []string{"203.0.113.12", "2001:db8:ff::12"} {
		var p host.Ping
		check(t, top.Run(ctx, "alpha2", &p, "ping", "-dst", dst, "-count", "10", "-interval", "20ms"))
		if p.Sent != 10 || p.Received != 10 || p.Bad != 0 || p.RTT.N != 10 || p.RTT.P50 <= 0 {
			t.Errorf("ping %s: %+v", dst, p)
		}
	}
	var lost host.Ping
	check(t, top.Run(ctx, "alpha2", &lost, "ping", "-dst", "203.0.113.99", "-count", "2", "-interval", "10ms", "-wait", "100ms"))
	if lost.Received != 0 {
		t.Errorf("ping to nobody: %+v", lost)
	}

	var d host.Download
	check(t, top.Run(ctx, "alpha1", &d, "http-get", "-url", "http://203.0.113.11", "-seed", "7", "-size", "3000001"))
	if !d.OK || d.Bytes != 3000001 || d.SeenAs != d.Local {
		t.Errorf("download: %+v", d)
	}
	check(t, top.Run(ctx, "alpha1", &d, "http-get", "-url", "http://[2001:db8:ff::11]", "-seed", "8", "-size", "100000"))
	if !d.OK {
		t.Errorf("download over IPv6: %+v", d)
	}

	var p host.Probe
	check(t, top.Run(ctx, "alpha1", &p, "udp-probe", "-dst", "203.0.113.11:7007", "-local", "198.18.10.11:40000", "-tag", "alpha1", "-duration", "500ms", "-pps", "200"))
	if p.Sent != 100 || p.Received != 100 || p.Foreign+p.Duplicate != 0 {
		t.Errorf("probe: %+v", p)
	}
	var f host.Flood
	check(t, top.Run(ctx, "alpha1", &f, "udp-flood", "-dst", "203.0.113.12:9000", "-tag", "fl", "-bits", "20e6", "-duration", "300ms"))
	// A machine that is busy does not let it send as fast as it is told: then again.
	var pace host.Flood
	tag := ""
	for try := 0; try < 6 && (pace.Bits < 19e6 || pace.Bits > 21e6); try++ {
		tag = fmt.Sprint("fl", try)
		check(t, top.Run(ctx, "alpha1", &pace, "udp-flood", "-dst", "203.0.113.12:9001", "-tag", tag, "-bits", "20e6", "-duration", "700ms"))
		if pace.Bits > 21e6 {
			break
		}
	}
	if pace.Bits < 19e6 || pace.Bits > 21e6 {
		t.Errorf("flood: %+v", pace)
	}
	var q host.DNS
	check(t, top.Run(ctx, "alpha1", &q, "dns-query", "-server", "203.0.113.12:53", "-count", "3", "-interval", "1ms"))
	if q.Answered != 3 || q.Wrong != 0 {
		t.Errorf("dns: %+v", q)
	}
	check(t, top.Run(ctx, "alpha1", &q, "dns-query", "-server", "203.0.113.12:53", "-want", "203.0.113.81"))
	if q.Answered != 0 || q.Wrong != 1 {
		t.Errorf("dns with another answer: %+v", q)
	}
	var a host.Attempt
	check(t, top.Run(ctx, "public1", &a, "tcp-connect", "-dst", "198.18.10.11:8080"))
	if !a.Connected || a.Banner != "alpha1" || !strings.HasPrefix(a.SeenAs, "203.0.113.11:") {
		t.Errorf("connect: %+v", a)
	}
	check(t, top.Run(ctx, "public1", &a, "tcp-connect", "-dst", "198.18.10.11:8081"))
	if a.Connected || a.How != "refused" {
		t.Errorf("connect to a closed port: %+v", a)
	}
	check(t, top.Run(ctx, "public1", &a, "tcp-connect", "-dst", "198.18.10.99:8081", "-timeout", "300ms"))
	if a.Connected || a.How != "timeout" {
		t.Errorf("connect to nobody: %+v", a)
	}

	var hs host.HTTPServed
	check(t, web.Stop(&hs))
	if hs.Requests != 2 || hs.Bytes != 3100001 || hs.Peers["198.18.10.11"] != 1 || hs.Peers["2001:db8:a::11"] != 1 {
		t.Errorf("http server: %+v", hs)
	}
	var e host.Echo
	check(t, echo.Stop(&e))
	if g := e.Tags["alpha1"]; g == nil || g.Packets != 100 || g.Sources["198.18.10.11:40000"] != 100 || g.IPBytes != 22800 {
		t.Errorf("echo: %+v", e)
	}
	var sk host.Sink
	check(t, sink.Stop(&sk))
	s := sk.Tags["fl"]
	if s == nil || s.Packets != f.Sent || s.IPBytes != f.IPBytes || s.Highest != f.Sent-1 {
		t.Fatalf("sink: %+v of %+v", s, f)
	}
	var rates []float64 // a sender that pauses and catches up changes those windows that begin or end meanwhile
	check(t, paced.Stop(&sk))
	if s = sk.Tags[tag]; s == nil || s.Packets != pace.Sent || s.IPBytes != pace.IPBytes {
		t.Fatalf("sink of the pace: %+v of %+v", s, pace)
	}
	for skip := time.Duration(0); skip <= 250*time.Millisecond; skip += host.SinkBucket {
		rates = append(rates, s.Rate(skip, 400*time.Millisecond))
	}
	slices.Sort(rates)
	if r := rates[len(rates)/2]; r < 18e6 || r > 22e6 {
		t.Errorf("rates at the sink: %.0f bit/s", rates)
	}
	var ds host.DNSServed
	check(t, dns.Stop(&ds))
	if ds.Queries != 4 {
		t.Errorf("dns server: %+v", ds)
	}
	var ts host.TCPServed
	check(t, tcp.Stop(&ts))
	if ts.Accepted != 1 || ts.Peers["203.0.113.11"] != 1 {
		t.Errorf("tcp server: %+v", ts)
	}

	for _, c := range []struct {
		what string
		m    *Meter
		want Count
	}{{"flood", meter, Count{f.Sent, f.IPBytes}}, {"another source", other, Count{}}} {
		if got, err := c.m.Read(); err != nil || got != c.want {
			t.Errorf("meter of %s: %+v %v, want %+v", c.what, got, err, c.want)
		}
	}
	// 10 echo requests of 104 IP bytes; neighbour discovery may come from the same prefix.
	if got, err := meter6.Read(); err != nil || got.Packets != 10 || got.Bytes != 1040 {
		t.Errorf("meter of ICMPv6: %+v %v", got, err)
	}
	if n, err := cap.Stop(); err != nil || uint64(n) != f.Sent || len(cap.Frames()) != 10 {
		t.Errorf("capture: %d frames, %d held, %v; want %d and 10", n, len(cap.Frames()), err, f.Sent)
	}
	if after, _ := os.Readlink("/proc/self/ns/net"); after != before {
		t.Errorf("the process changed its namespace from %s to %s", before, after)
	}
}

// Every thread of the process must be where it was, whatever Do did and on whichever thread it was called.
func TestDoKeepsThreadsHome(t *testing.T) {
	top, err := New("threads")
	check(t, err)
	defer top.Close()
	check(t, top.AddNamespace("a"))
	home, err := os.Readlink("/proc/self/ns/net")
	check(t, err)
	for range 50 {
		err := top.Do("a", func() error {
			own, err := os.Readlink(fmt.Sprintf("/proc/self/task/%d/ns/net", unix.Gettid()))
			if own == home {
				return errors.New("still at home")
			}
			return err
		})
		check(t, err)
	}
	if err := top.Do("a", func() error { runtime.Goexit(); return nil }); err == nil {
		t.Error("a function that left its goroutine counts as done")
	}
	// A dying thread may take a moment.
	deadline := time.Now().Add(5 * time.Second)
	for {
		away := 0
		tasks, err := filepath.Glob("/proc/self/task/*/ns/net")
		check(t, err)
		for _, p := range tasks {
			if ns, err := os.Readlink(p); err == nil && ns != home {
				away++
			}
		}
		if away == 0 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d threads are still in another namespace", away)
		}
		time.Sleep(time.Millisecond)
	}
	if err := top.Do("b", func() error { return nil }); err == nil {
		t.Error("an unknown namespace was entered")
	}
}

// Two hosts with a tag each on one switch: they hear their own VLAN only, and the tag is in the frame on the wire.
func TestTag(t *testing.T) {
	l, err := New("tag")
	check(t, err)
	defer l.Close()
	check(t, l.AddSwitch("sw"))
	for i, vid := range []uint16{100, 100, 200} {
		ns := fmt.Sprintf("h%d", i)
		check(t, l.AddNamespace(ns))
		check(t, l.Plug("sw", End{NS: ns, Name: "eth0", Addrs: []netip.Prefix{prefix(fmt.Sprintf("198.18.0.%d/24", i+1)), prefix(fmt.Sprintf("2001:db8:1::%d/64", i+1))}}, 1, 1500))
		check(t, l.Tag(ns, "eth0", vid))
	}
	ctx := context.Background()
	wire, err := l.Capture("sw", "h0-eth0", 1000, nil)
	check(t, err)
	for _, c := range []struct {
		dst  string
		want int
	}{{"198.18.0.2", 3}, {"2001:db8:1::2", 3}, {"198.18.0.3", 0}, {"2001:db8:1::3", 0}} {
		var p host.Ping
		check(t, l.Run(ctx, "h0", &p, "ping", "-dst", c.dst, "-count", "3", "-interval", "10ms", "-wait", "200ms"))
		if p.Received != c.want {
			t.Errorf("ping %s: %d answers, want %d", c.dst, p.Received, c.want)
		}
	}
	_, err = wire.Stop()
	check(t, err)
	tagged := 0
	for _, f := range wire.Frames() {
		if !f.Outgoing && len(f.Data) > 18 {
			if !bytes.Equal(f.Data[12:16], []byte{0x81, 0x00, 0, 100}) {
				t.Errorf("frame without tag 100 from h0: % x", f.Data[:18])
			}
			tagged++
		}
	}
	if tagged < 6 {
		t.Errorf("%d frames of h0 on the wire, want at least 6", tagged)
	}
}

func TestOffloadsAreOff(t *testing.T) {
	l, err := New("offl")
	check(t, err)
	defer l.Close()
	check(t, l.AddNamespace("a"))
	check(t, l.AddNamespace("b"))
	check(t, l.AddLink(LinkSpec{A: End{NS: "a", Name: "x0"}, B: End{NS: "b", Name: "y0"}, Queues: 4}))
	for ns, dev := range map[string]string{"a": "x0", "b": "y0"} {
		out, err := l.Exec(ns, "ethtool", "-k", dev)
		check(t, err)
		for _, f := range []string{"tx-checksumming", "tcp-segmentation-offload", "generic-segmentation-offload", "generic-receive-offload", "rx-vlan-offload", "tx-vlan-offload"} {
			if !strings.Contains(string(out), "\n"+f+": off") {
				t.Errorf("%s of %s is not off:\n%s", f, dev, out)
			}
		}
		_, dl, err := l.link(ns, dev)
		check(t, err)
		if a := dl.Attrs(); a.NumRxQueues != 4 || a.NumTxQueues != 4 || a.MTU != 1500 {
			t.Errorf("%s has %d/%d queues, MTU %d", dev, a.NumRxQueues, a.NumTxQueues, a.MTU)
		}
	}
}

// A lab of a maker that died is removed with its processes by the next one of the same name; one of a live maker stays.
func TestLeftoversOfDeadMakers(t *testing.T) {
	dead := exec.Command("/bin/true")
	check(t, dead.Run())
	gone := &Lab{name: fmt.Sprintf("dmleft-%d", dead.Process.Pid), spaces: map[string]*space{}}
	live := &Lab{name: fmt.Sprintf("dmleft-%d", os.Getppid()), spaces: map[string]*space{}}
	defer live.Close()
	check(t, os.MkdirAll(netnsDir, 0o755))
	check(t, gone.AddNamespace("x"))
	check(t, live.AddNamespace("x"))
	sleeper := gone.Command("x", "sleep", "100")
	check(t, sleeper.Start())
	gone.spaces["x"].h.Close()
	gone.spaces["x"].file.Close()

	l, err := New("left")
	check(t, err)
	defer l.Close()
	if err := sleeper.Wait(); err == nil {
		t.Error("the dead maker's process ended by itself")
	}
	if _, err := os.Stat(filepath.Join(netnsDir, gone.NetNS("x"))); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the dead maker's namespace is still there: %v", err)
	}
	if _, err := os.Stat(filepath.Join(netnsDir, live.NetNS("x"))); err != nil {
		t.Errorf("the live maker's namespace is gone: %v", err)
	}
}

func TestCloseEndsProcessesAndLinks(t *testing.T) {
	l, err := New("close")
	check(t, err)
	defer l.Close()
	check(t, l.AddNamespace("a"))
	check(t, l.AddNamespace("b"))
	check(t, l.AddLink(LinkSpec{A: End{NS: "a", Name: "x0", MAC: net.HardwareAddr{2, 0, 0, 0, 0, 1}}, B: End{NS: "b", Name: "x0"}}))
	if mac, err := l.MAC("a", "x0"); err != nil || mac.String() != "02:00:00:00:00:01" {
		t.Errorf("MAC %v %v", mac, err)
	}
	c := l.Command("a", "sleep", "100")
	check(t, c.Start())
	ended := make(chan error, 1)
	go func() { ended <- c.Wait() }()
	check(t, l.Close())
	check(t, l.Close())
	select {
	case <-ended:
	case <-time.After(5 * time.Second):
		t.Error("the process still runs")
	}
	if err := l.Do("a", func() error { return nil }); err == nil {
		t.Error("a closed lab was entered")
	}
	if _, err := New("Bad-Name"); err == nil {
		t.Error("a bad name was taken")
	}
}
