package bench

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"os/exec"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/vishvananda/netlink"

	"demarc/acl"
	"demarc/bench/peers"
	"demarc/bench/report"
	"demarc/gateway/hostnet"
	"demarc/gateway/netlab"
	"demarc/gateway/netlab/host"
)

// tcpBench is one run of `demarc bench tcp`.
type tcpBench struct {
	traffic
	Seconds int   // of each load; iperf3 counts whole ones
	Streams []int // of each bulk load
	Many    int   // short connections at a time
	Bare    bool  // bulk of the first number of streams once more, no device putting segments together
	Direct  bool  // the two ends take part with nothing between them
}

// tcpTurn is one side's turn.
type tcpTurn struct {
	turn
	Bulk      []bulk // one for each number of streams, and with Bare one more
	Turned    host.Turned
	Exchanged host.Exchanged
	Uses      []usage // of the bulk loads, of the round trips and of the short connections
}

// bulk is what iperf3 says of a load.
type bulk struct {
	Bits    float64 // per second, that the receiver got
	Resent  float64 // segments
	Streams int     // that carried something
}

// The ends of the connections, and the server's ports.
var (
	tcpInside  = netip.MustParseAddr("198.18.4.1")
	tcpOutside = netip.MustParseAddr("203.0.113.16")
)

const (
	iperfPort, exchangePort, exchangePorts = 5201, 7000, 8
	turnsPort                              = 7100
	tcpTable                               = 1 << 18 // sessions: short connections stay in a table for a while
)

const noIperf = "the program iperf3 is not there: apt-get install iperf3"

func tcpNeeds() error {
	if _, err := exec.LookPath("iperf3"); err != nil {
		return errors.New(noIperf)
	}
	_, err := nftVersion()
	return err
}

// tcpKeys are what the benches' connections ask an access list: a sample of the client's ports.
func tcpKeys() (keys []acl.Key) {
	for port := uint16(32768); port < 61000; port += 7 {
		for _, to := range []uint16{iperfPort, exchangePort, exchangePort + 3, exchangePort + exchangePorts - 1} {
			keys = append(keys, keyOf(netip.AddrPortFrom(tcpInside, port), netip.AddrPortFrom(tcpOutside, to), 6))
		}
		keys = append(keys, keyOf(netip.AddrPortFrom(tcpInside, port), netip.AddrPortFrom(tcpOutside, turnsPort), 17))
	}
	return keys
}

// openStacks builds a room whose far ends are the kernel's own stacks: no program of the bench looks at frames.
func openStacks() (r *room, err error) {
	r = &room{plan: plan(1), bothSides: true}
	defer func() {
		if err != nil {
			err = errors.Join(err, r.Close())
		}
	}()
	if err := r.connect(); err != nil {
		return r, err
	}
	err = r.AddLink(netlab.LinkSpec{
		A: netlab.End{NS: nsSrc, Name: devSrcDirect, Addrs: []netip.Prefix{netip.PrefixFrom(insideDirect, 24)}},
		B: netlab.End{NS: nsDst, Name: devDstDirect, Addrs: []netip.Prefix{netip.PrefixFrom(outsideDirect, 24)}}})
	if err != nil {
		return r, err
	}
	return r, errors.Join(r.AddAddr(nsSrc, devSrc, netip.PrefixFrom(tcpInside, 32)), r.AddAddr(nsDst, devDst, netip.PrefixFrom(tcpOutside, 32)),
		// What an XDP program redirects to a veth is lost where the far end has no NAPI. It comes with gro, which is to put nothing together there: the stacks get single segments from all sides.
		r.TakesRedirected(nsSrc, devSrc, true), r.TakesRedirected(nsDst, devDst, true), r.together(nsSrc, false, devSrc), r.together(nsDst, false, devDst),
		r.TakesRedirected(nsSrc, devSrcDirect, true), r.TakesRedirected(nsDst, devDstDirect, true), r.together(nsSrc, false, devSrcDirect), r.together(nsDst, false, devDstDirect))
}

// The link that leads from one end to the other with nothing between them.
const devSrcDirect, devDstDirect = "dmbsrcd", "dmbdstd"

var (
	insideDirect  = netip.MustParseAddr("198.19.1.1")
	outsideDirect = netip.MustParseAddr("198.19.1.2")
)

// direct is no device: the two ends reach each other by a link of their own. What they cost without a device is the floor of all sides, and what a side costs above it is the device's.
type direct struct{ r *room }

func (d *direct) name() string                                 { return report.Direct }
func (d *direct) start(context.Context) error                  { return nil }
func (d *direct) stop() error                                  { return nil }
func (d *direct) pids() []int                                  { return nil }
func (d *direct) hops() int                                    { return 0 }
func (d *direct) sessions(context.Context) (int, error)        { return 0, nil }
func (d *direct) missing(context.Context, int) (string, error) { return "", nil }
func (d *direct) config() string {
	return fmt.Sprintf("one link from end to end, no device between: ip route add %s via %s dev %s\n", outsideNet, outsideDirect, devSrcDirect)
}

// together has devices with gro put segments together, as they do by default, or not.
func (r *room) together(ns string, on bool, devs ...string) error {
	most := 1 // a segment that is to be larger is not made
	if on {
		most = 1 << 16
	}
	return r.Do(ns, func() error {
		for _, dev := range devs {
			link, err := netlink.LinkByName(dev)
			if err != nil {
				return err
			}
			if err := netlink.LinkSetGROIPv4MaxSize(link, most); err != nil {
				return fmt.Errorf("gro_ipv4_max_size %d of %s: %w", most, dev, err)
			}
		}
		return nil
	})
}

// bareNote says what the two rows of the same bulk are.
const bareNote = "bulk: the devices of kernel and nftables put up to 44 segments of 1500 bytes together (gro), which is how people run them: one look at tables for all of them. The gateway takes each frame by itself, where its workers do with a copy in and one out. In cases with no-gro all sides take each frame by itself: those are equal terms, and what is between the two rows is what gro gives"

// lead has both stacks send by a device under test, which has its own addresses on the links, or straight to each other.
func (r *room) lead(d device) error {
	host, devSrc, devDst := byte(1), devSrc, devDst
	if _, us := d.(*demarc); us {
		host = 3
	}
	inside, outside := netip.AddrFrom4([4]byte{198, 19, 0, host}), netip.AddrFrom4([4]byte{198, 51, 100, host})
	if _, ok := d.(*direct); ok {
		inside, outside, devSrc, devDst = outsideDirect, insideDirect, devSrcDirect, devDstDirect
	}
	set := func(ns, dev string, from netip.Addr, via netip.Addr, nets ...netip.Prefix) error {
		return r.Do(ns, func() error {
			l, err := hostnet.LinkByName(dev)
			if err != nil {
				return err
			}
			for _, n := range nets {
				route := &netlink.Route{LinkIndex: l.Index, Dst: &net.IPNet{IP: n.Addr().AsSlice(), Mask: net.CIDRMask(n.Bits(), 32)}, Gw: via.AsSlice(), Src: from.AsSlice()}
				if err := netlink.RouteReplace(route); err != nil {
					return fmt.Errorf("route %s via %s in %s: %w", n, via, ns, err)
				}
			}
			return nil
		})
	}
	return errors.Join(set(nsSrc, devSrc, tcpInside, inside, outsideNet), set(nsDst, devDst, tcpOutside, outside, insideNet, netip.PrefixFrom(pool[0], 24).Masked()))
}

// run measures. What it could measure is in the output also when there is an error.
func (q *tcpBench) run(ctx context.Context) (*report.Output, error) {
	if runtime.NumCPU() < 2 {
		return q.finish(), errors.New("the bench needs two CPUs: one has the ends of connections, one moves frames")
	}
	q.began = time.Now()
	q.due = dueOf(ctx)
	q.Budget = within(q.Budget, q.due)
	ways := q.ways(&flowCase{Offload: true})
	q.plannedT = q.Trials * (len(q.Peers) + len(ways) + 1)
	q.out = &report.Output{Schema: report.Schema, Machine: machine(), Results: []report.Result{}, Configs: map[string]string{}}
	turns, err := q.turns(ctx, ways)
	if q.rows(turns); q.Bare && len(turns) > 0 {
		q.note("%s", bareNote)
	}
	if len(q.Peers) > 0 {
		q.note("%s", placeNote)
	}
	out := q.finish()
	if v := iperfVersion(); v != "" {
		out.Machine.Versions = map[string]string{"iperf3": v}
	}
	return out, err
}

// placeNote is on which CPU the kernel's sides do what.
var placeNote = fmt.Sprintf("kernel and nftables take frames on the CPU that sends them in round trips, as the kernel does by itself: a packet at a time waits for no thread. In bulk and short connections they take them in a thread on CPU %d, which gives them a second CPU beside the two ends'", deviceCPU)

func iperfVersion() string {
	out, _ := exec.Command("iperf3", "--version").Output() // that it is there was looked at before
	line, _, _ := strings.Cut(string(out), "\n")
	return strings.TrimSpace(line)
}

func (q *tcpBench) turns(ctx context.Context, ways []string) (turns map[string][]tcpTurn, err error) {
	turns = map[string][]tcpTurn{}
	rules, err := rulesFor(q.Seed, q.Rules, false, tcpKeys())
	if err != nil {
		return turns, err
	}
	if q.room, err = openStacks(); err != nil {
		return turns, err
	}
	defer func() { err = errors.Join(err, q.room.Close()) }()
	q.devices = map[string]device{
		report.Us:   &demarc{r: q.room, binary: q.Binary, rules: rules, pool: pool, rate: trafficRate, table: tcpTable, offload: never},
		sideOffload: &demarc{r: q.room, binary: q.Binary, rules: rules, pool: pool, rate: trafficRate, table: tcpTable, offload: always, called: sideOffload},
		sideKernel:  &plain{r: q.room},
		sideLinear:  &kernel{r: q.room, rules: rules, form: peers.Linear, called: sideLinear, rate: trafficRate},
		sideExpert:  &kernel{r: q.room, rules: rules, form: peers.Maps, called: sideExpert, rate: trafficRate},

		report.Direct: &direct{r: q.room},
	}
	if q.extra != nil {
		for name, d := range q.extra(q.room) {
			q.devices[name] = d
		}
	}
	sides := slices.Concat(ways, q.Peers)
	if q.Direct {
		sides = append(sides, report.Direct)
	}
	return turns, q.inTurns("bulk and exchange", sides, func(side string) (*turn, error) {
		t, err := q.tcpTurn(ctx, side, q.devices[side])
		if err == nil {
			turns[side] = append(turns[side], t)
			q.config(&flowCase{}, side)
		}
		return &t.turn, err
	})
}

// tcpTurn is one device's from its start to its end: bulk, then short connections.
func (q *tcpBench) tcpTurn(ctx context.Context, side string, d device) (t tcpTurn, err error) {
	defer func() { err = errors.Join(err, d.stop()) }()
	t.Side = side
	if err := d.start(ctx); err != nil {
		return t, err
	}
	if err := q.room.lead(d); err != nil {
		return t, err
	}
	loads := slices.Clone(q.Streams)
	if q.Bare {
		loads = append(loads, q.Streams[0])
		// The devices are the room's, and the next side's.
		defer func() { err = errors.Join(err, q.room.together(nsGW, true, devIn, devOut)) }()
	}
	for i, n := range loads {
		if i == len(q.Streams) {
			if err := q.room.together(nsGW, false, devIn, devOut); err != nil {
				return t, err
			}
		}
		var b bulk
		use, err := q.looked(ctx, &t, d, func() (err error) {
			b, err = q.iperf(ctx, n)
			return err
		})
		if err != nil {
			return t, fmt.Errorf("%d streams: %w", n, err)
		}
		t.Bulk, t.Uses = append(t.Bulk, b), append(t.Uses, use)
	}
	c, err := carriedBy(ctx, d)
	if err == nil && side == sideOffload {
		err = c.enough()
	}
	if err != nil {
		return t, err
	}
	before := c
	own, inlined := d.(inliner)
	if inlined { // else each packet waits for a thread to wake: a round trip of the kernel was 122 µs, and some 10 so
		if err := own.inline(true); err != nil {
			return t, err
		}
	}
	turned, err := q.looked(ctx, &t, d, func() (err error) {
		t.Turned, err = q.roundTrips(ctx)
		return err
	})
	if inlined {
		err = errors.Join(err, own.inline(false))
	}
	if err != nil {
		return t, fmt.Errorf("round trips: %w", err)
	}
	c, err = carriedBy(ctx, d)
	if err == nil && side == sideOffload { // of short connections, which come behind, the most part is a worker's
		err = carried{c.by - before.by, c.of - before.of}.enough()
	}
	if err != nil {
		return t, fmt.Errorf("round trips: %w", err)
	}
	t.Uses = append(t.Uses, turned)
	use, err := q.looked(ctx, &t, d, func() (err error) {
		t.Exchanged, err = q.exchanges(ctx)
		return err
	})
	if err != nil {
		return t, fmt.Errorf("short connections: %w", err)
	}
	t.Uses = append(t.Uses, use)
	words := ""
	for i, n := range loads {
		words += fmt.Sprintf("  %d streams %.3f Gbit/s", n, t.Bulk[i].Bits/1e9)
	}
	q.say("  %-14s%s  round trip p50 %.1f p99 %.1f µs  %.0f connections/s, p99 %.1f ms%s", side, words, 1e3*t.Turned.Times.P50, 1e3*t.Turned.Times.P99, q.perSecond(&t), t.Exchanged.Times.P99, map[bool]string{true: "  disturbed"}[t.Disturbed])
	if _, plain := d.(forwarder); plain {
		return t, nil
	}
	// As many as surely began a conversation each, and one port for them: ports of ended ones are free again.
	why, err := d.missing(ctx, 1)
	if err == nil && why != "" {
		err = fmt.Errorf("it does not do %s, so it did not do the same work as the others", why)
	}
	return t, err
}

func (q *tcpBench) perSecond(t *tcpTurn) float64 {
	return ratio(float64(t.Exchanged.Done), t.Exchanged.Seconds)
}

// looked repeats a load while something else runs.
func (q *tcpBench) looked(ctx context.Context, t *tcpTurn, d device, load func() error) (use usage, err error) {
	for try := 0; ; try++ {
		slowdown, err := yard.around(func() error {
			before, err := sampleCPU(d.pids())
			if err != nil {
				return err
			}
			if err := errors.Join(load(), ctx.Err()); err != nil {
				return err
			}
			after, err := sampleCPU(d.pids())
			use = before.until(after)
			return err
		})
		if err != nil {
			return use, err
		}
		if use.slowdown = slowdown; !use.disturbed() {
			return use, nil
		}
		if !use.again(try) || q.late() {
			t.Disturbed = true
			return use, nil
		}
		t.Again++
	}
}

// onMaker is a program that stays on the maker's CPU.
func (r *room) onMaker(ns string, args ...string) *exec.Cmd {
	return r.Command(ns, "taskset", append([]string{"-c", strconv.Itoa(makerCPU)}, args...)...)
}

// iperf carries n streams to the outside.
func (q *tcpBench) iperf(ctx context.Context, n int) (b bulk, err error) {
	server := q.room.onMaker(nsDst, "iperf3", "-s", "-1", "-B", tcpOutside.String(), "-p", strconv.Itoa(iperfPort))
	if err := server.Start(); err != nil {
		return b, err
	}
	ended := make(chan error, 1)
	go func() { ended <- server.Wait() }()
	defer func() {
		_ = server.Process.Kill() // it ends with its one client; where that came to nothing it waits
		<-ended
	}()
	if err := q.room.listening(nsDst, iperfPort); err != nil {
		return b, err
	}
	client := q.room.onMaker(nsSrc, "iperf3", "-c", tcpOutside.String(), "-B", tcpInside.String(), "-p", strconv.Itoa(iperfPort), "-P", strconv.Itoa(n), "-t", strconv.Itoa(q.Seconds), "-J", "--connect-timeout", "5000")
	var out strings.Builder
	client.Stdout = &out
	stop := context.AfterFunc(ctx, func() { _ = client.Process.Kill() })
	guard := time.AfterFunc(time.Duration(q.Seconds+20)*time.Second, func() { _ = client.Process.Kill() })
	err = client.Run()
	stop()
	guard.Stop()
	b, e := parseIperf([]byte(out.String()))
	if e == nil && err == nil && b.Streams != n {
		e = fmt.Errorf("iperf3: %d of %d streams carried something", b.Streams, n)
	}
	return b, errors.Join(e, err)
}

// parseIperf reads what iperf3 -J printed. Nothing that the receiver got is an error.
func parseIperf(text []byte) (b bulk, err error) {
	var r struct {
		Error string
		End   struct {
			Streams []struct {
				Receiver struct{ Bytes float64 }
			}
			Sent     struct{ Retransmits float64 }                     `json:"sum_sent"`
			Received struct{ Seconds, Bytes, Bits_per_second float64 } `json:"sum_received"`
		}
	}
	if err := json.Unmarshal(text, &r); err != nil {
		return b, fmt.Errorf("what iperf3 printed: %w", err)
	}
	if r.Error != "" {
		return b, fmt.Errorf("iperf3: %s", r.Error)
	}
	for _, s := range r.End.Streams {
		if s.Receiver.Bytes > 0 {
			b.Streams++
		}
	}
	b.Bits, b.Resent = r.End.Received.Bits_per_second, r.End.Sent.Retransmits
	if b.Bits <= 0 {
		return b, errors.New("iperf3: the receiver got nothing")
	}
	return b, nil
}

// listening waits until somebody listens on a TCP port.
func (r *room) listening(ns string, port int) error {
	want := fmt.Sprintf(":%04X ", port)
	for end := time.Now().Add(5 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		b, err := r.Exec(ns, "cat", "/proc/net/tcp")
		if err != nil {
			return err
		}
		for line := range strings.Lines(string(b)) {
			if f := strings.Fields(line); len(f) > 3 && strings.HasSuffix(f[1]+" ", want) && f[3] == "0A" {
				return nil
			}
		}
		if time.Now().After(end) {
			return fmt.Errorf("nobody listens on port %d after 5 s", port)
		}
	}
}

// roundTrips asks over UDP, one question at a time.
func (q *tcpBench) roundTrips(ctx context.Context) (x host.Turned, err error) {
	cpu := strconv.Itoa(makerCPU)
	s, err := q.room.Serve(nsDst, "udp-turns-serve", "-addr", fmt.Sprintf("%s:%d", tcpOutside, turnsPort), "-cpu", cpu)
	if err != nil {
		return x, err
	}
	err = q.room.Run(ctx, nsSrc, &x, "udp-turns", "-dst", s.Addr, "-from", tcpInside.String(), "-duration", (time.Duration(q.Seconds) * time.Second / 2).String(), "-cpu", cpu)
	err = errors.Join(err, s.Stop(nil))
	switch {
	case err != nil:
		return x, err
	case x.Wrong > 0:
		return x, fmt.Errorf("%d of %d questions got a wrong answer", x.Wrong, x.Done+x.Wrong+x.Lost)
	case x.Again > 0:
		return x, fmt.Errorf("%d of %d questions were answered more than once", x.Again, x.Done+x.Lost)
	case x.Times.N == 0:
		return x, fmt.Errorf("none of %d questions was answered after the first ones", x.Done+x.Lost)
	}
	return x, nil
}

// exchanges opens short connections for a while. Both ends have an account, and they must agree.
func (q *tcpBench) exchanges(ctx context.Context) (x host.Exchanged, err error) {
	cpu := strconv.Itoa(makerCPU)
	s, err := q.room.Serve(nsDst, "tcp-exchange-serve", "-addr", fmt.Sprintf("%s:%d", tcpOutside, exchangePort), "-ports", strconv.Itoa(exchangePorts), "-cpu", cpu)
	if err != nil {
		return x, err
	}
	err = q.room.Run(ctx, nsSrc, &x, "tcp-exchange", "-dst", s.Addr, "-from", tcpInside.String(), "-ports", strconv.Itoa(exchangePorts), "-many", strconv.Itoa(q.Many), "-duration", fmt.Sprintf("%ds", q.Seconds), "-cpu", cpu)
	var served host.ExchangeServed
	err = errors.Join(err, s.StopWithin(15*time.Second, &served))
	switch {
	case err != nil:
		return x, err
	case x.Wrong > 0:
		return x, fmt.Errorf("%d of %d connections heard a wrong reply", x.Wrong, x.Done+x.Wrong)
	case x.Done == 0:
		return x, fmt.Errorf("none of %d connections came about: %s", x.Failed, x.Example)
	case served.Served < x.Done:
		return x, fmt.Errorf("the client counts %d replies, the server gave %d", x.Done, served.Served)
	}
	return x, nil
}

// rows hands the figures to the report.
func (q *tcpBench) rows(turns map[string][]tcpTurn) {
	inModes("", turns, q.rowsOf)
}

// rowsOf is that of one mode of the gateway; behind is what goes behind the names.
func (q *tcpBench) rowsOf(behind string, turns map[string][]tcpTurn) {
	add := func(name, metric, unit string, digits int, better report.Better, of func(t *tcpTurn) float64) {
		addRow(q.out, report.Row{Scenario: q.Scenario, Case: name + behind, Metric: metric, Unit: unit, Better: better, Digits: digits}, turns, func(t *tcpTurn) ([]float64, bool) {
			return []float64{of(t)}, t.Disturbed
		})
	}
	// What a turn costs, and how much of it is the device's: the rest is what the ends cost with nothing between them, the median of those turns.
	costs := func(name, of, unit string, digits int, cost func(t *tcpTurn) float64) {
		add(name, "cpu-per-"+of, unit, digits, report.Lower, cost)
		var floor []float64
		for i := range turns[report.Direct] {
			floor = append(floor, cost(&turns[report.Direct][i]))
		}
		if floor == nil {
			return
		}
		ends := report.Of(floor).Median
		devices := maps.Clone(turns)
		delete(devices, report.Direct)
		addRow(q.out, report.Row{Scenario: q.Scenario, Case: name + behind, Metric: "device-cpu-per-" + of, Unit: unit, Better: report.Lower, Digits: digits}, devices, func(t *tcpTurn) ([]float64, bool) {
			return []float64{cost(t) - ends}, t.Disturbed
		})
	}
	// What all cores did, and what that did which the two ends have to themselves: where it had no time left they, and what a device has done on it, are what bounds.
	cpus := func(name string, i int) {
		add(name, "cpu", "CPUs", 3, "", func(t *tcpTurn) float64 { return busy(t.Uses[i]) })
		add(name, "cpu-of-ends", "CPUs", 3, "", func(t *tcpTurn) float64 { return t.Uses[i].cpus[makerCPU] })
	}
	bulks := func(i int, name string) {
		add(name, "rate", "Gbit/s", 4, report.Higher, func(t *tcpTurn) float64 { return t.Bulk[i].Bits / 1e9 })
		add(name, "resent", "segments", 0, "", func(t *tcpTurn) float64 { return t.Bulk[i].Resent })
		cpus(name, i)
		costs(name, "gbit", "ms", 1, func(t *tcpTurn) float64 { return ratio(1e3*busy(t.Uses[i]), t.Bulk[i].Bits/1e9) })
	}
	last := len(q.Streams)
	for i, n := range q.Streams {
		name := fmt.Sprintf("bulk/%d-streams/nat44", n)
		if bulks(i, name); i == 0 && q.Bare { // beside each other: the same load, and how much of it is the kernel's putting together
			bulks(last, name+"/no-gro")
		}
	}
	if q.Bare {
		last++
	}
	name := "round-trip/udp/nat44"
	add(name, "p50", "µs", 2, report.Lower, func(t *tcpTurn) float64 { return 1e3 * t.Turned.Times.P50 })
	add(name, "p99", "µs", 2, report.Lower, func(t *tcpTurn) float64 { return 1e3 * t.Turned.Times.P99 })
	add(name, "lost", "packets", 0, report.Lower, func(t *tcpTurn) float64 { return float64(t.Turned.Lost) })
	cpus(name, last)
	name = fmt.Sprintf("exchange/%d-at-a-time/nat44", q.Many)
	add(name, "connections", "connections/s", 1, report.Higher, q.perSecond)
	add(name, "p50", "ms", 3, report.Lower, func(t *tcpTurn) float64 { return t.Exchanged.Times.P50 })
	add(name, "p99", "ms", 3, report.Lower, func(t *tcpTurn) float64 { return t.Exchanged.Times.P99 })
	add(name, "failed", "connections", 0, report.Lower, func(t *tcpTurn) float64 { return float64(t.Exchanged.Failed) })
	cpus(name, last+1)
	costs(name, "connection", "µs", 2, func(t *tcpTurn) float64 { return ratio(1e6*busy(t.Uses[last+1]), q.perSecond(t)) })
}

func init() {
	register(scenario{place: 70, name: "tcp", about: "TCP through each side: bulk of one and 16 streams, and connections of one request each", command: tcpCommand, needs: tcpNeeds,
		short: &stint{args: []string{"--trials", "4", "--streams", "1", "--peers", "nft-expert"}, seconds: 82, memoryMiB: 400},
		table: &stint{args: []string{"--trials", "5", "--budget", "24h"}, seconds: 220, memoryMiB: 400},
		full:  &stint{args: []string{"--trials", "10", "--seconds", "10", "--budget", "24h"}, seconds: 1500, memoryMiB: 400}})
}

func tcpCommand() *cobra.Command {
	q := tcpBench{traffic: traffic{Scenario: "tcp"}}
	var f flowFlags
	c := &cobra.Command{
		Use:   "tcp",
		Short: "TCP through the gateway, the kernel and nftables: bulk, and connections of one request each",
		Long: "Carry TCP of real stacks through each side in turns: iperf3 with one and with 16 streams from the inside to the outside, then short connections, so many at a time: connect, 64 bytes there,\n" +
			"64 bytes back, both ends close. Each reply is compared, and the server's count with the client's. Both ends are on CPU 0 and cost more of it than any side takes of CPU 1: what is compared is\n" +
			"what TCP gets, not what a side could carry. So the ends take turns with nothing between them too (direct), and device-cpu-… is what each side costs on all cores above that. Segments are of 1500 bytes and whole checksums on all sides (no TSO). Needs root, two CPUs and the packages iperf3 and nftables.",
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			switch {
			case q.Seconds < 1:
				return usageError{errors.New("--seconds must be at least 1")}
			case q.Many < 1 || q.Many > 1000:
				return usageError{fmt.Errorf("--many %d: want from 1 to 1000 connections at a time", q.Many)}
			case len(q.Streams) == 0:
				return usageError{errors.New("--streams: want numbers of streams")}
			}
			for _, n := range q.Streams {
				if n < 1 || n > 128 {
					return usageError{fmt.Errorf("--streams %d: want from 1 to 128, as iperf3 does", n)}
				}
			}
			if slices.Contains(f.peers, sideTestpmd) {
				return usageError{errors.New("--peers testpmd: it has no addresses, and so no TCP; want some of kernel,nft-linear,nft-expert")}
			}
			if err := q.check(&f, cmd.Flags().Changed); err != nil {
				return err
			}
			if err := tcpNeeds(); err != nil {
				return err
			}
			q.Progress = cmd.ErrOrStderr()
			out, err := q.run(cmd.Context())
			return q.deliver(cmd, &f, out, err)
		},
	}
	q.peerFlags(c, &f)
	q.offloadFlag(c)
	s := c.Flags()
	s.BoolVar(&q.Bare, "no-gro", true, "bulk of the first number of streams once more, with no device putting segments together")
	s.BoolVar(&q.Direct, "direct", true, "the two ends with nothing between them take turns too: what they cost by themselves")
	s.IntVar(&q.Rules, "rules", 1000, "of the access list; the last one matches")
	s.IntVar(&q.Seconds, "seconds", 1, "of each load, whole ones")
	s.IntSliceVar(&q.Streams, "streams", []int{1, 16}, "numbers of streams of the bulk loads")
	s.IntVar(&q.Many, "many", 32, "short connections at a time")
	return c
}
