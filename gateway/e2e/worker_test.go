package e2e

import (
	"errors"
	"fmt"
	"io/fs"
	"math"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"demarc/gateway/flow"
	"demarc/gateway/netlab"
	"demarc/gateway/netlab/host"
	"demarc/gateway/netlab/quiet"
)

// homes is the worker of each inside host under a seed: tenant ids go by the order of the policy.
func homes(s *site, seed uint64, workers int) (all []int) {
	for id, hosts := range map[flow.TenantID][]netlab.Host{1: {s.Alpha1, s.Alpha2}, 2: {s.Beta1, s.Beta2}} {
		for _, h := range hosts {
			for _, a := range []netip.Addr{h.V4, h.V6} {
				family := uint8(4)
				if a.Is6() {
					family = 6
				}
				fa := flow.AddrFrom(a)
				all = append(all, flow.Home(flow.HomeHash(id, family, &fa, seed), workers))
			}
		}
	}
	return all
}

// seedAwayFromFirst finds a seed under which no inside host belongs to worker 0, and each other worker has one.
func seedAwayFromFirst(s *site, workers int) uint64 {
	for seed := uint64(1); ; seed++ {
		used := map[int]bool{}
		for _, w := range homes(s, seed, workers) {
			used[w] = true
		}
		if !used[0] && len(used) == workers-1 {
			return seed
		}
	}
}

// Everything arrives on queue 0 of each port, so at worker 0, and no host belongs to it: each packet of both directions is handed over.
func TestWorkersHandOver(t *testing.T) {
	workersHandOver(t, handOver{2, false}, handOver{4, false}, handOver{2, true})
}

type handOver struct {
	workers int
	narrow  bool // the backbone port has one queue only: the workers behind hand their packets back to be sent
}

func workersHandOver(t *testing.T, cases ...handOver) {
	t.Helper()
	for _, c := range cases {
		t.Run(fmt.Sprintf("%d workers, narrow backbone %v", c.workers, c.narrow), func(t *testing.T) {
			s := standard(t, netlab.Options{Queues: c.workers})
			s.write(replace(t, read(t, s.node), "count = 1", fmt.Sprintf("count = %d", c.workers)), unlimited(t, read(t, s.policy)))
			// The far end of each port sends on one queue, so the port receives on queue 0 only.
			for sw, dev := range map[string]string{"sw-alpha": "gw-alpha0", "sw-beta": "gw-beta0", "sw-public": "gw-bb0"} {
				args := []string{"-L", dev, "tx", "1"}
				if offloaded() {
					args = append(args, "rx", "1")
				}
				_, err := s.Exec(sw, "ethtool", args...)
				check(t, err)
			}
			queues := c.workers
			if c.narrow {
				queues = 1
				_, err := s.Exec(netlab.GW, "ethtool", "-L", netlab.PublicPort, "rx", "1", "tx", "1")
				check(t, err)
			}
			seed := seedAwayFromFirst(s, c.workers)
			s.start("--seed", fmt.Sprint(seed))
			check(t, s.Sysctl(s.Public1.Name, "net.ipv4.icmp_ratelimit", "0")) // traceroute asks for more answers than a host gives
			check(t, s.Sysctl(s.Public1.Name, "net.ipv6.icmp.ratelimit", "0"))
			s.serve(s.Public1.Name, "http-serve", "-addr", ":80")
			s.serve(s.Public1.Name, "udp-echo", "-addr", ":7007")
			s.serve(s.Alpha1.Name, "tcp-serve", "-addr", ":80", "-banner", "inside")

			// Asleep: one packet at a time, each long after the spinning has ended.
			var calm [4]host.Ping
			var wg sync.WaitGroup
			for i, p := range []struct {
				ns  string
				dst netip.Addr
			}{{s.Alpha1.Name, s.Public1.V4}, {s.Alpha2.Name, s.Public1.V6}, {s.Beta1.Name, s.Public2.V4}, {s.Beta2.Name, s.Public2.V6}} {
				s.run(p.ns, new(host.Ping), "ping", "-dst", p.dst.String(), "-count", "1") // neighbours
				wg.Go(func() { s.runAny(p.ns, &calm[i], "ping", "-dst", p.dst.String(), "-count", "10", "-interval", "130ms") })
			}
			wg.Wait()
			for i, p := range calm {
				if p.Received != p.Sent || p.Bad+p.Errors > 0 || p.RTT.P50 > 20 {
					t.Errorf("asleep: ping %d: %+v", i, p)
				}
			}
			before := s.status()
			rest := 0
			for _, w := range before.Workers {
				rest += int(w.Wakeups)
			}
			if before.Workers[0].HandedOut < 80 || rest < 80 {
				t.Errorf("asleep: worker 0 handed %d packets over, workers slept %d times", before.Workers[0].HandedOut, rest)
			}

			// Awake, at a rate far below what two workers carry: downloads compared by checksum and numbered UDP, both ways and both families at once. It is a rate that they can carry as long as each has its
			// processor: what waits for one that is elsewhere for a twentieth of a second fills the ring between the two.
			last, hastyThen := before, uint64(0)
			quiet.Judge(t, func(l *quiet.Limits) {
				var downloads [6]host.Download
				var probes [4]host.Probe
				for i, d := range []struct{ ns, url string }{{s.Alpha1.Name, "http://203.0.113.11"}, {s.Alpha2.Name, "http://[2001:db8:ff::11]"},
					{s.Beta1.Name, "http://203.0.113.11"}, {s.Beta2.Name, "http://[2001:db8:ff::11]"}, {s.Alpha2.Name, "http://203.0.113.11"}, {s.Beta1.Name, "http://[2001:db8:ff::11]"}} {
					wg.Go(func() {
						s.runAny(d.ns, &downloads[i], "http-get", "-url", d.url, "-size", "4000000", "-rate", "20000000", "-seed", fmt.Sprint(i+1))
					})
				}
				for i, p := range []struct{ ns, dst string }{{s.Alpha1.Name, "203.0.113.11:7007"}, {s.Alpha2.Name, "[2001:db8:ff::11]:7007"},
					{s.Beta1.Name, "203.0.113.11:7007"}, {s.Beta2.Name, "[2001:db8:ff::11]:7007"}} {
					wg.Go(func() {
						s.runAny(p.ns, &probes[i], "udp-probe", "-dst", p.dst, "-pps", "500", "-duration", "2s", "-tag", fmt.Sprintf("w%d", i))
					})
				}
				wg.Wait()
				for i, d := range downloads {
					if !d.OK {
						t.Errorf("download %d: %+v", i, d)
					}
				}
				for i, p := range probes {
					switch {
					case p.Sent == 0 || p.Duplicate+p.Foreign > 0:
						t.Errorf("probe %d: %+v", i, p)
					case p.Received != p.Sent || p.Reordered > 0:
						l.Missed("probe %d: %+v", i, p)
					}
				}
				paced := s.status()
				if d := drops(last, paced); d["hand_over_full"]+d["no_tx_socket"]+d["frame_exhausted"]+d["tx_ring_full"] > 0 {
					l.Missed("drops between workers at a rate that they can carry: %v", d)
				}
				hasty := uint64(0)
				for _, w := range paced.Workers {
					hasty += w.Hasty
				}
				if hasty-hastyThen > 2 { // of ten conversations, none of which loses a packet
					l.Missed("%d sessions were handed down in haste at a rate that workers can carry", hasty-hastyThen)
				}
				last, hastyThen = paced, hasty
			})
			// As fast as it goes: what a full ring drops TCP sends again, and the file is still right.
			var fast host.Download
			s.run(s.Beta2.Name, &fast, "http-get", "-url", "http://203.0.113.11", "-size", "30000000", "-seed", "9")
			if !fast.OK {
				t.Errorf("fast download: %+v", fast)
			}
			// ICMP errors belong to the worker of what they quote.
			for _, p := range []struct{ ns, family, to, hop string }{{s.Alpha1.Name, "-4", "203.0.113.11", netlab.InsideGW4}, {s.Beta2.Name, "-6", "2001:db8:ff::11", "2001:db8:b::1"}} {
				out, err := s.Exec(p.ns, "traceroute", "-n", p.family, "-q", "3", "-w", "2", "-m", "4", p.to)
				check(t, err)
				lines := strings.Split(strings.TrimSpace(string(out)), "\n")
				if len(lines) != 3 || strings.Contains(lines[1]+lines[2], "*") || !strings.Contains(lines[1], " "+p.hop+" ") || !strings.Contains(lines[2], " "+p.to+" ") {
					t.Errorf("traceroute from %s:\n%s", p.ns, out)
				}
			}
			// A conversation that the outside opens: a forwarded port.
			var in host.Attempt
			s.run(s.Public1.Name, &in, "tcp-connect", "-dst", "192.0.2.16:8080")
			if in.Banner != "inside" {
				t.Errorf("forwarded port: %+v", in)
			}

			after := s.status()
			s.healthy(after)
			var other, carried uint64
			for _, p := range after.Ports {
				carried += p.Offload.Carried
				if offloaded() && p.Offload.Carried < 1000 {
					t.Errorf("port %s: %+v", p.Name, p.Offload)
				}
				want := c.workers
				if p.Name == netlab.PublicPort {
					want = queues
				}
				if len(p.Queues) != want {
					t.Errorf("port %s has %d queues, want %d", p.Name, len(p.Queues), want)
				}
				for _, q := range p.Queues {
					if q.Queue > 0 {
						other += q.Rx.Packets
					}
				}
			}
			if other > 0 {
				t.Errorf("%d packets came in on other queues than 0: the test does not force what it says", other)
			}
			sum := fmt.Sprintf("seed %d, asleep p50 %.2f %.2f %.2f %.2f ms, download %.0f Mbit/s, drops %v;", seed, calm[0].RTT.P50, calm[1].RTT.P50, calm[2].RTT.P50, calm[3].RTT.P50,
				fast.Mbits, drops(before, after))
			for _, w := range after.Workers {
				sum += fmt.Sprintf(" worker %d: %d sessions, %d out, %d in, slept %d, %d handed down in haste;", w.ID, w.Sessions, w.HandedOut, w.HandedIn, w.Wakeups, w.Hasty)
				if w.ID == 0 && (w.Sessions > 0 || w.HandedOut+carried < 10000 || w.HandedOut < 100) || w.ID > 0 && (w.Sessions == 0 || w.HandedIn == 0) {
					t.Errorf("worker %d: %d sessions, %d handed out, %d handed in", w.ID, w.Sessions, w.HandedOut, w.HandedIn)
				}
			}
			t.Log(sum)
			s.stop()
		})
	}
}

// unlimited takes the rates out of the lab's policy.
func unlimited(t testing.TB, policy string) string {
	t.Helper()
	return replace(t, replace(t, policy, "[tenant.rates.out]\nbits = \"20M\"\n", ""), "[tenant.rates.in]\nbits = \"20M\"\n", "")
}

// runAny is run for other goroutines than the test's.
func (s *site) runAny(ns string, result any, args ...string) {
	if err := s.Run(s.t.Context(), ns, result, args...); err != nil {
		s.t.Error(err)
	}
}

// An idle gateway, also one with two workers, takes next to nothing of a core, and its threads hardly wake.
func TestWorkersIdle(t *testing.T) {
	for _, workers := range []int{1, 2} {
		s := standard(t, netlab.Options{Queues: workers})
		s.write(replace(t, read(t, s.node), "count = 1", fmt.Sprintf("count = %d", workers)), read(t, s.policy))
		s.start()
		var p host.Ping // it has worked, so that it has sessions and neighbours to look after
		s.run(s.Alpha1.Name, &p, "ping", "-dst", "203.0.113.11", "-count", "3", "-interval", "10ms")
		if p.Received != 3 {
			t.Errorf("%d of 3 pings", p.Received)
		}
		time.Sleep(300 * time.Millisecond)
		// What it always takes it takes in each window; what a start leaves to do, and what other work on the machine costs it, comes on top of that in some.
		// Its threads go to sleep 120 to 210 times a second with one worker and 165 to 270 with two, the more right after its start; most of that is the runtime's watcher, which looks 57 times each time that a thread stays in a system
		// call. So a worker that slept 200 ms, a driver that polled each 100 and looks each 50 ms at groups that were none made 780 and 1020 of it.
		const window, most = 3 * time.Second, 0.03
		seldom := 300 + 100*float64(workers)
		part, sleeps := 1.0, math.Inf(1)
		for i := 0; i < 3 && (part > most || sleeps > seldom); i++ {
			a, n, slept := s.gw.cpu(t), s.gw.switches(t), s.status().Workers
			time.Sleep(window)
			used := s.gw.cpu(t) - a
			part = min(part, used.Seconds()/window.Seconds())
			sleeps = min(sleeps, float64(s.gw.switches(t)-n)/window.Seconds())
			for i, w := range s.status().Workers {
				if w.Wakeups == slept[i].Wakeups {
					t.Errorf("worker %d has not slept", i)
				}
			}
		}
		if part > most {
			t.Errorf("%d workers, idle: %.1f %% of a core in each of three windows", workers, part*100)
		}
		if sleeps > seldom {
			t.Errorf("%d workers, idle: threads went to sleep %.0f times a second in each of three windows, want at most %.0f", workers, sleeps, seldom)
		}
		t.Logf("%d workers, idle: %.2f %% of a core, threads went to sleep %.0f times a second", workers, part*100, sleeps)
		s.stop()
		check(t, s.Close())
	}
}

// switches is how often the process's threads that are there now have gone to sleep so far.
func (p *process) switches(t testing.TB) (n int) {
	t.Helper()
	list, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", p.cmd.Process.Pid))
	check(t, err)
	found := false
	for _, f := range list {
		b, err := os.ReadFile(f)
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ESRCH) { // it has ended
			continue
		}
		check(t, err)
		for line := range strings.Lines(string(b)) {
			if v, is := strings.CutPrefix(line, "voluntary_ctxt_switches:"); is {
				k, err := strconv.Atoi(strings.TrimSpace(v))
				check(t, err)
				n, found = n+k, true
			}
		}
	}
	if !found {
		t.Fatal("no thread of the gateway says how often it has gone to sleep")
	}
	return n
}

// cpu is the processor time that the process has used so far.
func (p *process) cpu(t testing.TB) time.Duration {
	t.Helper()
	stat := read(t, fmt.Sprintf("/proc/%d/stat", p.cmd.Process.Pid))
	f := strings.Fields(stat[strings.LastIndexByte(stat, ')')+2:]) // from the third field on
	var user, system int64
	_, err := fmt.Sscan(f[11]+" "+f[12], &user, &system)
	check(t, err)
	return time.Duration(user+system) * time.Second / 100 // USER_HZ is 100 on every Linux that Go runs on
}
