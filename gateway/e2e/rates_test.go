package e2e

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"demarc/gateway/flow"
	"demarc/gateway/netlab"
	"demarc/gateway/netlab/host"
	"demarc/gateway/netlab/quiet"
	"demarc/gateway/netlab/roottest"
)

// Inbound floods come over IPv6: one rule lets them in, no translation is between them and the limit.
const rigLetIn = `
[[tenant.rule]]
name = "let-in"
direction = "in"
action = "allow"
service = ["udp/9000-9010", "udp/7007-7008"]
`

// rated is one flood against one limit.
type rated struct {
	tenant, dir, mode string
	bits              float64 // the limit; 0: packets
	packets           float64
	payload           int
	overhead          int // of the tenant: bytes that its rates in bits count for each packet beside its IP bytes
}

func (x *rated) limit() string {
	if x.bits > 0 {
		return fmt.Sprintf("bits = %.0f\nmode = %q", x.bits, x.mode)
	}
	return fmt.Sprintf("packets = %.0f\nmode = %q", x.packets, x.mode)
}

// Each limit lets through what it says, within 2 % over 5 s, with three times as much offered; all four of a round at once.
func TestRatesUnderOverload(t *testing.T) {
	rounds := [][]rated{{
		{tenant: "alpha", dir: "out", mode: "shape", bits: 20e6, payload: 1172},
		{tenant: "alpha", dir: "in", mode: "shape", bits: 10e6, payload: 1400},
		{tenant: "beta", dir: "out", mode: "shape", packets: 1500, payload: 36},
		{tenant: "beta", dir: "in", mode: "police", bits: 10e6, payload: 1172},
	}, {
		{tenant: "alpha", dir: "out", mode: "police", bits: 10e6, payload: 172, overhead: 38},
		{tenant: "alpha", dir: "in", mode: "shape", packets: 2000, payload: 100},
		{tenant: "beta", dir: "out", mode: "police", packets: 1000, payload: 200},
		{tenant: "beta", dir: "in", mode: "shape", bits: 2e6, payload: 172, overhead: 38},
	}}
	policy := func(round []rated) string {
		more := map[string]string{"alpha": "", "beta": ""}
		for _, x := range round {
			more[x.tenant] += fmt.Sprintf("[tenant.rates.%s]\n%s\n", x.dir, x.limit())
			if x.overhead > 0 {
				more[x.tenant] += fmt.Sprintf("[tenant.rates]\noverhead = %d\n", x.overhead)
			}
		}
		return rigPolicy(more["alpha"]+rigLetIn, more["beta"]+rigLetIn)
	}
	r := newRig(t, "rates", policy(rounds[0]))
	r.start()
	inside := map[string]netlab.Host{"alpha": r.Alpha1, "beta": r.Beta1}
	for n, round := range rounds {
		if n > 0 {
			r.apply(policy(round))
		}
		quiet.Judge(t, func(l *quiet.Limits) {
			sinks, floods, jobs := make([]*netlab.Server, len(round)), make([]host.Flood, len(round)), []*job{}
			for i, x := range round {
				from, to, dst := inside[x.tenant], r.Public1, r.Public1.V4
				if x.dir == "in" {
					from, to, dst = r.Public2, inside[x.tenant], inside[x.tenant].V6
				}
				port := uint16(9000 + i)
				sinks[i] = r.serve(to.Name, "udp-sink", "-addr", fmt.Sprintf(":%d", port))
				ip := x.payload + 28
				if dst.Is6() {
					ip += 20
				}
				offered := 3 * x.bits
				if x.bits == 0 {
					offered = 3 * x.packets * float64(ip) * 8
				}
				jobs = append(jobs, r.spawn(from.Name, &floods[i], "udp-flood", "-dst", addrPort(dst, port), "-size", fmt.Sprint(x.payload),
					"-bits", fmt.Sprintf("%.0f", offered), "-duration", "6500ms"))
			}
			r.wait(jobs...)
			for i, x := range round {
				var s host.Sink
				if err := sinks[i].Stop(&s); err != nil {
					t.Fatal(err)
				}
				got := s.Tags["flood"]
				if got == nil || got.Packets == 0 {
					t.Errorf("round %d: %s %s: nothing arrived", n, x.tenant, x.dir)
					continue
				}
				rate, want, unit := got.Rate(time.Second, 5*time.Second), x.bits, "bit/s"
				if size := float64(got.IPBytes) / float64(got.Packets); x.bits > 0 {
					want *= size / (size + float64(x.overhead))
				}
				offered := floods[i].Bits
				if x.bits == 0 {
					size := float64(got.IPBytes) / float64(got.Packets) * 8
					rate, want, unit, offered = rate/size, x.packets, "packet/s", offered/size
				}
				t.Logf("round %d: %s %-3s %-6s limit %9.0f %s, offered %10.0f, got %11.1f (%+.2f %%)", n, x.tenant, x.dir, x.mode, want, unit, offered, rate, 100*(rate-want)/want)
				exact(t, l, rate, want, "round %d: %s %s: %.0f %s got through a limit of %.0f", n, x.tenant, x.dir, rate, unit, want)
				if offered < 2*want {
					l.Missed("round %d: %s %s: only %.0f %s were offered: no overload", n, x.tenant, x.dir, offered, unit)
				}
			}
		})
	}
	st := r.status()
	for _, name := range []string{"alpha", "beta"} {
		d := rigTenantOf(st, name).Drops
		if d["tenant_queue_full"] == 0 || d["tenant_rate_bits"]+d["tenant_rate_packets"] == 0 {
			t.Errorf("%s: shaped and policed drops are counted as %v", name, d)
		}
	}
}

// iperf is what matters of iperf3's report.
type iperf struct {
	Error string `json:"error"`
	End   struct {
		Received struct {
			Bits float64 `json:"bits_per_second"`
		} `json:"sum_received"`
		SenderCC string `json:"sender_tcp_congestion"`
	} `json:"end"`
}

// One TCP stream fills a 20 Mbit/s line with each congestion control, while the own ping stays short and the other tenant sees nothing.
func TestRatesOneTCPStream(t *testing.T) {
	const limit = 20e6
	r := newRig(t, "ratestcp", rigPolicy("[tenant.rates.out]\nbits = \"20M\"\n[tenant.rates.in]\nbits = \"20M\"\n", ""))
	r.start()
	b, err := os.ReadFile("/proc/sys/net/ipv4/tcp_available_congestion_control")
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("the kernel has %s", strings.TrimSpace(string(b)))
	r.serve(r.Public1.Name, "udp-echo", "-addr", ":7007")
	server := r.Command(r.Public2.Name, "iperf3", "-s", "-p", "5201")
	if err := server.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		server.Process.Kill()
		server.Wait()
	})
	// It turns away who comes before it is done with the one before, and listens anew then, which takes as long as it has to wait for a processor.
	free := func() {
		t.Helper()
		r.until(5*time.Second, "iperf3 listens, and has nobody", func() (bool, string) {
			out, err := r.Exec(r.Public2.Name, "ss", "-Htan", "sport", "=", "5201")
			text := string(out)
			return err == nil && strings.Contains(text, "LISTEN") && !strings.Contains(text, "ESTAB") && !strings.Contains(text, "CLOSE-WAIT"), fmt.Sprint(text, err)
		})
	}
	tried := 0
	for _, cc := range []string{"reno", "cubic", "bbr"} {
		if !strings.Contains(" "+string(b)+" ", cc) {
			t.Logf("%s: this kernel does not have it: not tested", cc)
			continue
		}
		tried++
		for _, dir := range []string{"out", "in"} {
			args := []string{"-c", r.Public2.V4.String(), "-p", "5201", "-C", cc, "-t", "4", "-O", "1", "-J", "--connect-timeout", "3000"}
			if dir == "in" {
				args = append(args, "-R")
			}
			quiet.Judge(t, func(l *quiet.Limits) {
				free()
				var own, other host.Ping
				var stream host.Probe
				var out []byte
				var ierr error
				done := make(chan struct{})
				go func() {
					defer close(done)
					out, ierr = r.Exec(r.Alpha1.Name, "iperf3", args...)
				}()
				time.Sleep(time.Second) // past slow start, which iperf3 leaves out too
				// So many pings that p99 is not one hiccup.
				r.wait(r.spawn(r.Alpha2.Name, &own, "ping", "-dst", r.Public1.V4.String(), "-count", "350", "-interval", "10ms"),
					r.spawn(r.Beta2.Name, &other, "ping", "-dst", r.Public1.V4.String(), "-count", "350", "-interval", "10ms"),
					r.spawn(r.Beta1.Name, &stream, "udp-probe", "-dst", addrPort(r.Public1.V4, 7007), "-pps", "400", "-duration", "3500ms"))
				<-done
				var rep iperf
				if err := json.Unmarshal(out, &rep); err != nil || ierr != nil || rep.Error != "" {
					t.Fatalf("%s %s: iperf3: %v %v %s", cc, dir, ierr, err, rep.Error)
				}
				goodput := rep.End.Received.Bits
				// With 1500-byte packets and time stamps 1448 of 1500 IP bytes are payload: the limit counts the 1500.
				line := goodput * 1500 / 1448
				t.Logf("%-5s %-3s payload %.2f Mbit/s (%.1f %%), on the line %.2f (%.1f %%) of 20; own ping p50 %.1f p99 %.1f max %.1f ms; other tenant's ping p50 %.2f p99 %.2f max %.2f ms, stream %d of %d",
					cc, dir, goodput/1e6, 100*goodput/limit, line/1e6, 100*line/limit, own.RTT.P50, own.RTT.P99, own.RTT.Max, other.RTT.P50, other.RTT.P99, other.RTT.Max, stream.Received, stream.Sent)
				if rep.End.SenderCC != cc {
					t.Errorf("the sender used %q, not %s", rep.End.SenderCC, cc)
				}
				if goodput < 0.9*limit || line > 1.02*limit {
					l.Missed("%s %s: %.2f Mbit/s of payload on a 20 Mbit/s line", cc, dir, goodput/1e6)
				}
				if own.RTT.P99 >= 40 || own.Received < own.Sent*95/100 {
					l.Missed("%s %s: the tenant's own ping: %d of %d, p99 %.1f ms", cc, dir, own.Received, own.Sent, own.RTT.P99)
				}
				if other.Received != other.Sent || stream.Received != stream.Sent {
					t.Errorf("%s %s: the other tenant notices: ping %d of %d, stream %d of %d", cc, dir, other.Received, other.Sent, stream.Received, stream.Sent)
				}
				if other.RTT.P50 > 3 || other.RTT.P99 > 15 {
					l.Missed("%s %s: the other tenant notices: ping p50 %.1f p99 %.1f ms", cc, dir, other.RTT.P50, other.RTT.P99)
				}
			})
		}
	}
	if tried == 0 {
		t.Error("no congestion control was tested")
	}
}

// Voice leaves first while bulk overloads the line: by DSCP, and by a rule, which makes the answers voice too.
func TestRatesVoiceLeavesFirst(t *testing.T) {
	r := newRig(t, "ratesvoice", rigPolicy(rigLetIn+`
[tenant.rates.out]
bits = "10M"
[tenant.rates.in]
bits = "10M"
[tenant.rates.voice]
dscp = ["ef"]
bits = "3M"
[[tenant.rule]]
name = "calls"
direction = "out"
action = "allow"
service = ["udp/7008"]
class = "voice"
`, ""))
	r.start()
	for _, port := range []string{":7007", ":7008", ":7009"} {
		r.serve(r.Public1.Name, "udp-echo", "-addr", port)
	}
	r.serve(r.Public2.Name, "udp-sink", "-addr", ":9000")
	r.serve(r.Alpha2.Name, "udp-sink", "-addr", ":9000")
	run := func(both bool) (dscp, rule, bulk host.Probe) {
		var f [2]host.Flood
		floods := []*job{r.spawn(r.Alpha2.Name, &f[0], "udp-flood", "-dst", addrPort(r.Public2.V4, 9000), "-bits", "40e6", "-duration", "5s")}
		if both {
			floods = append(floods, r.spawn(r.Public2.Name, &f[1], "udp-flood", "-dst", addrPort(r.Alpha2.V6, 9000), "-bits", "40e6", "-duration", "5s"))
		}
		time.Sleep(300 * time.Millisecond)
		probe := func(into *host.Probe, port uint16, tos string) *job {
			// A G.711 call: 50 packets of 200 IP bytes a second; twice as fast here for more samples.
			return r.spawn(r.Alpha1.Name, into, "udp-probe", "-dst", addrPort(r.Public1.V4, port), "-size", "172", "-pps", "100", "-tos", tos, "-duration", "4s")
		}
		r.wait(probe(&dscp, 7007, "184"), probe(&rule, 7008, "0"), probe(&bulk, 7009, "0"))
		r.wait(floods...)
		return
	}
	for _, both := range []bool{false, true} {
		quiet.Judge(t, func(l *quiet.Limits) {
			before := rigTenantOf(r.status(), "alpha").Voice
			dscp, rule, bulk := run(both)
			t.Logf("overload in both directions %v: voice by DSCP %d of %d p50 %.2f p99 %.2f max %.2f ms; by rule %d of %d p50 %.2f p99 %.2f max %.2f ms; bulk %d of %d p50 %.1f ms",
				both, dscp.Received, dscp.Sent, dscp.RTT.P50, dscp.RTT.P99, dscp.RTT.Max, rule.Received, rule.Sent, rule.RTT.P50, rule.RTT.P99, rule.RTT.Max, bulk.Received, bulk.Sent, bulk.RTT.P50)
			judge := map[string]host.Probe{"rule": rule}
			if !both { // the echo does not mark its answers
				judge["DSCP"] = dscp
			}
			for what, p := range judge {
				if p.Received != p.Sent || p.RTT.P50 > 5 || p.RTT.P99 > 15 { // what is late beyond the queue's time is lost
					l.Missed("both=%v: voice by %s: %d of %d, p50 %.1f p99 %.1f ms", both, what, p.Received, p.Sent, p.RTT.P50, p.RTT.P99)
				}
			}
			is := rigTenantOf(r.status(), "alpha").Voice
			within, above := is.Out.Within.Packets-before.Out.Within.Packets, is.Out.Above.Packets-before.Out.Above.Packets
			if sent := uint64(dscp.Sent + rule.Sent); within+above > sent {
				t.Errorf("both=%v: %d packets out are counted as voice within its rate and %d above, of %d", both, within, above, sent)
			} else if above > 0 || within < sent {
				l.Missed("both=%v: of %d packets of voice %d had room in its rate, and %d none", both, sent, within, above)
			}
			if in := is.In.Within.Packets - before.In.Within.Packets; in < uint64(rule.Received) || in > uint64(rule.Sent) {
				l.Missed("both=%v: %d answers are counted as voice, of %d that arrived", both, in, rule.Received)
			}
			if bulk.Received > bulk.Sent*9/10 && bulk.RTT.P50 < 15 {
				l.Missed("bulk lost %d of %d and waited %.1f ms: there was no overload", bulk.Sent-bulk.Received, bulk.Sent, bulk.RTT.P50)
			}
		})
	}
}

// One limit holds over two workers: flows of one tenant that different workers carry share it, in both directions.
func TestRatesSharedByWorkers(t *testing.T) {
	roottest.Require(t)
	top, err := netlab.Standard("ratestwo", netlab.Options{Queues: 2, Redirects: offloaded()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := top.Close(); err != nil {
			t.Errorf("close the lab: %v", err)
		}
		nothingLeft(t, top.Name())
	})
	r := rigOn(t, top, program(t), rigPolicy("[tenant.rates.out]\nbits = \"40M\"\n[tenant.rates.in]\nbits = \"30M\"\nmode = \"police\"\n"+rigLetIn, ""))
	r.write(r.node, rigNode(r.data, r.socket, "[workers]\ncount = 2\n"))
	// A seed under which alpha's two hosts belong to different workers, by both of their addresses.
	at := func(seed uint64, a netip.Addr, family uint8) int {
		fa := flow.AddrFrom(a)
		return flow.Home(flow.HomeHash(1, family, &fa, seed), 2)
	}
	seed := uint64(1)
	for at(seed, r.Alpha1.V4, 4) == at(seed, r.Alpha2.V4, 4) || at(seed, r.Alpha1.V6, 6) == at(seed, r.Alpha2.V6, 6) {
		seed++
	}
	r.args = []string{"--seed", fmt.Sprint(seed)}
	r.start()
	const flows = 4
	quiet.Judge(t, func(l *quiet.Limits) {
		out := []*netlab.Server{r.serve(r.Public1.Name, "udp-sink", "-addr", ":9000")}
		in := []*netlab.Server{r.serve(r.Alpha1.Name, "udp-sink", "-addr", ":9001"), r.serve(r.Alpha2.Name, "udp-sink", "-addr", ":9001")}
		floods, jobs := make([]host.Flood, 2*flows), []*job{}
		for i := range flows {
			jobs = append(jobs,
				r.spawn([]string{r.Alpha1.Name, r.Alpha2.Name}[i%2], &floods[2*i], "udp-flood", "-dst", addrPort(r.Public1.V4, 9000), "-bits", "25e6", "-duration", "6500ms"),
				r.spawn([]string{r.Public1.Name, r.Public2.Name}[i%2], &floods[2*i+1], "udp-flood", "-dst", addrPort([]netip.Addr{r.Alpha1.V6, r.Alpha2.V6}[i%2], 9001), "-bits", "20e6", "-duration", "6500ms"))
		}
		r.wait(jobs...)
		for _, x := range []struct {
			what  string
			sinks []*netlab.Server
			want  float64
		}{{"out, shaped", out, 40e6}, {"in, policed", in, 30e6}} {
			rate, sources := 0.0, 0
			for _, sink := range x.sinks {
				var s host.Sink
				if err := sink.Stop(&s); err != nil {
					t.Fatal(err)
				}
				if s.Tags["flood"] == nil {
					t.Errorf("%s: nothing arrived at one of the sinks", x.what)
					continue
				}
				rate += s.Tags["flood"].Rate(time.Second, 5*time.Second)
				sources += len(s.Tags["flood"].Sources)
			}
			t.Logf("%s: limit %.0f, got %.0f bit/s (%+.2f %%) from %d sources", x.what, x.want, rate, 100*(rate-x.want)/x.want, sources)
			exact(t, l, rate, x.want, "%s: %.0f bit/s got through a limit of %.0f", x.what, rate, x.want)
		}
	})
	for _, w := range r.status().Workers {
		t.Logf("worker %d: %d sessions, handed out %d, in %d", w.ID, w.Sessions, w.HandedOut, w.HandedIn)
		if w.Sessions < 2 {
			t.Errorf("worker %d carries %d sessions: the limits were not shared", w.ID, w.Sessions)
		}
	}
}

// A fast line is as exact as a slow one.
func TestRatesFastLine(t *testing.T) {
	r := newRig(t, "ratesfast", rigPolicy("[tenant.rates.out]\nbits = \"150M\"\n", ""))
	r.start()
	quiet.Judge(t, func(l *quiet.Limits) {
		sink := r.serve(r.Public1.Name, "udp-sink", "-addr", ":9000")
		var f host.Flood
		r.wait(r.spawn(r.Alpha1.Name, &f, "udp-flood", "-dst", addrPort(r.Public1.V4, 9000), "-bits", "300e6", "-size", "1400", "-duration", "6500ms"))
		var s host.Sink
		if err := sink.Stop(&s); err != nil {
			t.Fatal(err)
		}
		rate := s.Tags["flood"].Rate(time.Second, 5*time.Second)
		t.Logf("limit 150 Mbit/s, offered %.1f, got %.3f (%+.2f %%)", f.Bits/1e6, rate/1e6, 100*(rate-150e6)/150e6)
		exact(t, l, rate, 150e6, "%.0f bit/s got through a limit of 150M", rate)
	})
}

// Each inside host has its own rate beside the line of its tenant, in bits and in packets, both ways: two hosts of alpha get what each may have, at the
// same time, and beta, which has no such limit, all that it sends.
func TestRatesPerInsideHost(t *testing.T) {
	const outBits, inPackets = 3e6, 400.0
	r := newRig(t, "rateshost", rigPolicy(fmt.Sprintf("[tenant.rates.host.out]\nbits = %.0f\n[tenant.rates.host.in]\npackets = %.0f\n", outBits, inPackets)+rigLetIn, rigLetIn))
	r.start()
	quiet.Judge(t, func(l *quiet.Limits) {
		type flow struct {
			from, to netlab.Host
			dst      netip.Addr
			bits     float64 // offered
			sink     *netlab.Server
			sent     host.Flood
		}
		flows := []*flow{
			{from: r.Alpha1, to: r.Public1, dst: r.Public1.V4, bits: 3 * outBits}, {from: r.Alpha2, to: r.Public1, dst: r.Public1.V4, bits: 3 * outBits},
			{from: r.Public2, to: r.Alpha1, dst: r.Alpha1.V6, bits: 3 * inPackets * 348 * 8}, {from: r.Public2, to: r.Alpha2, dst: r.Alpha2.V6, bits: 3 * inPackets * 348 * 8},
			{from: r.Beta1, to: r.Public1, dst: r.Public1.V4, bits: 3 * outBits},
		}
		var jobs []*job
		for i, f := range flows {
			port := uint16(9000 + i)
			f.sink = r.serve(f.to.Name, "udp-sink", "-addr", fmt.Sprintf(":%d", port))
			jobs = append(jobs, r.spawn(f.from.Name, &f.sent, "udp-flood", "-dst", addrPort(f.dst, port), "-size", "300", "-bits", fmt.Sprintf("%.0f", f.bits), "-duration", "3500ms"))
		}
		r.wait(jobs...)
		for i, f := range flows {
			var s host.Sink
			check(t, f.sink.Stop(&s))
			got := s.Tags["flood"]
			if got == nil || got.Packets == 0 {
				t.Errorf("%s to %s: nothing arrived", f.from.Name, f.to.Name)
				continue
			}
			rate, want := got.Rate(time.Second, 2*time.Second), outBits
			switch i {
			case 2, 3:
				rate, want = rate/(float64(got.IPBytes)/float64(got.Packets)*8), inPackets
			case 4:
				rate, want = float64(got.Packets), float64(f.sent.Sent)
			}
			t.Logf("%s to %s: offered %.0f bit/s, got %.1f of %.0f (%+.2f %%)", f.from.Name, f.to.Name, f.sent.Bits, rate, want, 100*(rate-want)/want)
			exact(t, l, rate, want, "%s to %s: %.0f got through a limit of %.0f", f.from.Name, f.to.Name, rate, want)
		}
	})
	if d := rigTenantOf(r.status(), "alpha").Drops; d["host_rate_bits"] == 0 || d["host_rate_packets"] == 0 {
		t.Errorf("alpha's drops: %v", d)
	}
}
