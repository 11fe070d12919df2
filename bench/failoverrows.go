package bench

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"math"
	"math/big"
	"net/netip"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"demarc/gateway/netlab"
	"demarc/gateway/netlab/host"
	"demarc/gateway/netlab/judge"
	"demarc/gateway/trio"
)

// act is what is done to a pair in one run. All but do may be nil.
type act struct {
	prepare, do, undo func(owner *trio.Node) error
	stopped           *time.Duration // for so long the owner was, told by do; at least what was asked for
	struck            *time.Time     // when it was surely done, told by do; nil = when that returns
	moves             bool           // the other gateway must come to serve
	wait              time.Duration  // for so long; 0 = takes
	halts             bool           // the owner is stopped, and goes on when do returns
	refusable         bool           // do may be refused by the pair: the run is counted as refused
}

// failoverRow is one kind of event.
type failoverRow struct {
	name, about    string
	runs, full     int           // by default, and with --full
	median, most   float64       // ms that the gap may have; 0 = nothing is promised of it. still: 0 is promised
	still          bool          // nothing may move, and nothing may be lost
	connections    bool          // as many as the flags say; else a tenth
	long, longFull time.Duration // how long harm is done, where it lasts
	seconds        float64       // that a run takes here, with its part of what comes before it; 0 = runSeconds
	calm           time.Duration // still: packets go for so long before the event, as long as behind it, since a longer time has longer silences
	opening        bool          // connections are opened all the time
	condition      bool          // it moves because of a condition: each run has a pair of its own
	peer           bool          // it is somebody else's pair, of that name
	agree          bool          // both tables must come to be equal afterwards
	bulk           bool          // it is the copy of a table as full as tables are
	events         bool          // it is session events, with both ends in one process
	alone          bool          // it is a gateway that nobody stands beside
	once           bool          // it may move, at most once
	half           bool          // it moves under half of the load that is found first
	args           []string      // more of the nodes' command lines: a fault that is planted in them
	act            func(q *failoverBench, ctx context.Context, p *trio.Pair, i, runs int, long time.Duration) act
}

// runSeconds is what a run of most rows takes here, with its part of making the lab; idleSeconds what one with 100,000 idle connections does; fullRateSeconds what row bulk takes longer for its copies at full rate.
const (
	runSeconds      = 5.0
	idleSeconds     = 110.0
	fullRateSeconds = 120.0
)

// estimate is how long a row takes with --full, or with so many runs (0 = as many as it has): for who wants to know before, and for a plan.
func (r *failoverRow) estimate(full bool, runs, idle int) time.Duration {
	n, long := r.planned(full, runs), r.long
	if full {
		long = r.longFull
	}
	each := cmp.Or(r.seconds, runSeconds)
	if r.bulk && full {
		each += fullRateSeconds
	}
	if r.connections && idle > perProcess {
		each += (idleSeconds - each) * float64(idle) / 100_000
	}
	return time.Duration(float64(n) * (each*float64(time.Second) + float64(long)))
}

// planned is how many runs a row has with --full, or where so many were asked for (0 = as many as it has).
func (r *failoverRow) planned(full bool, runs int) int {
	switch {
	case runs > 0 && !r.bulk:
		return runs
	case full:
		return r.full
	}
	return r.runs
}

// config is under what name its nodes' configuration is printed, what more stands in their files, and in what it is not the shipped default. That is: a node file says what
// cannot be guessed, and no more. But for a million sessions of two tenants, which may not have all of a table of that size, and for a fault that must be there to be met.
func (r *failoverRow) config() (name, more, said string) {
	name, more = "demarc", "\n"
	if r.bulk {
		name, more = "demarc, row "+r.name, bulkTables
		said += "# not the shipped default: [tables], since two tenants' million sessions have no room in it\n"
	}
	if len(r.args) > 0 {
		name = "demarc, row " + r.name
		said += "# not as shipped: started with " + strings.Join(r.args, " ") + ", which plants the fault\n"
	}
	return name, more, said
}

// lasts is how long is waited for what is done where nothing may move.
const lasts = 500 * time.Millisecond

// quiet: a run in which nothing moves has no gap that is so much longer, ms, than what senders and the time before show of the machine.
const quiet = 5.0

// lagMs is how far a copy may be behind: a connection that was older when its owner died must go on.
const lagMs = 50.0

// failoverRows are what it measures, in this order. The limits are what is promised.
var failoverRows = []failoverRow{
	{name: "kill", about: "kill -9 of the owner; in half of the runs it leads the log too", runs: 6, full: 20, seconds: 9, median: 100, most: 400, connections: true, agree: true, act: kill},
	{name: "gone", about: "the same, and all its devices go down", runs: 6, full: 20, median: 200, most: 500, act: leave},
	{name: "opening", about: "as kill, while connections are opened at 2,000 a second", runs: 2, full: 20, seconds: 9, median: 100, most: 400, opening: true, act: killOpening},
	{name: "stop", about: "the owner is stopped for 50 ms to 3 s, most often around the lease of 120 ms and around half of it, and goes on; one burst that it had in hand may leave then", runs: 12, full: 200, seconds: 3.5, median: 200, most: 500, act: freeze},
	{name: "port/backbone", about: "the owner's port on the backbone goes down", runs: 2, full: 20, seconds: 7, median: 200, condition: true, act: unplug("wan0")},
	{name: "port/tenant", about: "its port to a tenant goes down", runs: 2, full: 20, seconds: 7, median: 200, condition: true, act: unplug("alpha0")},
	{name: "nothing", about: "nothing is done: what the figures of the next five rows, and of deaths, are of the machine's own", runs: 2, full: 20, still: true, calm: lasts + behind, act: undisturbed},
	{name: "cut/gateways", about: "the two gateways do not reach each other", runs: 2, full: 20, still: true, calm: lasts + behind, act: cut(func(p *trio.Pair, owner *trio.Node, c bool) error { return p.Cut(owner, p.Other(owner), c) }, false)},
	{name: "cut/copies", about: "the two gateways have no TCP between them, by which copies go: nothing moves, and the lease goes on by datagrams", runs: 2, full: 20, still: true, seconds: 9, calm: silent + behind, act: cutTCP(func(p *trio.Pair, owner *trio.Node) [][2]*trio.Node { return [][2]*trio.Node{{owner, p.Other(owner)}} }, false)},
	{name: "cut/log", about: "no node has TCP to any other, by which the log goes: nothing can be agreed on, and nothing moves", runs: 2, full: 20, still: true, seconds: 9, calm: silent + behind, act: cutTCP(func(p *trio.Pair, _ *trio.Node) [][2]*trio.Node {
		return [][2]*trio.Node{{p.GW1, p.GW2}, {p.GW1, p.Witness}, {p.GW2, p.Witness}}
	}, true)},
	{name: "cut/standby", about: "the other gateway reaches nobody", runs: 2, full: 20, still: true, calm: lasts + behind, act: cut(func(p *trio.Pair, owner *trio.Node, c bool) error { return p.Isolate(p.Other(owner), c) }, false)},
	{name: "cut/witness", about: "the witness reaches nobody", runs: 2, full: 20, still: true, calm: lasts + behind, act: cut(func(p *trio.Pair, _ *trio.Node, c bool) error { return p.Isolate(p.Witness, c) }, false)},
	{name: "cut/owner", about: "the owner reaches nobody; in half of the runs it leads the log too", runs: 4, full: 20, median: 200, most: 500, act: isolated},
	{name: "death/witness", about: "kill -9 of the witness", runs: 2, full: 20, seconds: 6.5, still: true, calm: lasts + behind, act: dies(func(p *trio.Pair, _ *trio.Node) *trio.Node { return p.Witness }, false)},
	{name: "death/leader", about: "kill -9 of the gateway that owns nothing and leads the log", runs: 2, full: 20, seconds: 6.5, still: true, calm: lasts + behind, act: dies((*trio.Pair).Other, true)},
	{name: "planned/move", about: "group move", runs: 3, full: 20, seconds: 3, median: 20, act: moved},
	{name: "planned/drain", about: "node drain", runs: 3, full: 20, seconds: 3, median: 20, act: drained},
	{name: "planned/sigterm", about: "SIGTERM", runs: 3, full: 20, seconds: 4, median: 20, act: ended},
	{name: "planned/half-load", about: "the same three in turn, while half of the packets go that the pair, its hosts and this machine carry", runs: 3, full: 60, seconds: 9, median: 20, half: true},
	{name: "alone/restart", about: "a gateway that nobody stands beside gets SIGTERM and is started again; each connection goes on", runs: 3, full: 20, seconds: 3, alone: true},
	{name: "poison", about: "packets that make a worker panic are sent without end: it may move, once", runs: 1, full: 20, seconds: 12, once: true, args: []string{"--break", "poison"}, act: poison},
	{name: "certificates", about: "those of all nodes run out, and are not renewed for a while", runs: 1, full: 20, seconds: 25, still: true, calm: 5*time.Second + behind, act: expire},
	{name: "bulk", about: "a million sessions are copied to a gateway that has just started, while packets go", runs: 1, full: 1, seconds: 65, bulk: true},
	{name: "events", about: "sessions begin and end at an owner's worker as fast as they can, and at 50,000 a second, and are taken into a standby's tables: see copyload", runs: 5, full: 20, seconds: 2, events: true},
	{name: "keepalived/gated", about: "as gone, with keepalived (VRRPv3, 0.05 s), conntrackd and nftables in the gateways' places, and nothing passed before the copy is in the kernel", runs: 4, full: 20, peer: true},
	{name: "keepalived/as-run", about: "the same as people run it: VRRPv2, 1 s, Debian's script", runs: 3, full: 20, seconds: 13, peer: true},
	{name: "harm/stress", about: "busy loops, as many as there are CPUs", runs: 1, full: 1, still: true, long: 10 * time.Second, longFull: 10 * time.Minute, act: stress},
	{name: "harm/loss", about: "5 % of what nodes send each other is lost, and of what passes the gateways' ports either way", runs: 1, full: 1, still: true, long: 10 * time.Second, longFull: 10 * time.Minute, act: lossy},
}

// start runs a node again.
func start(ctx context.Context) func(*trio.Node) error {
	return func(n *trio.Node) error { return n.Start(ctx) }
}

// leading has the owner lead the log in half of the runs: those with each gateway in turn, since the group goes from one to the other in each.
func leading(ctx context.Context, p *trio.Pair, i int) func(*trio.Node) error {
	if i%4 == 0 || i%4 == 3 {
		return nil
	}
	return func(n *trio.Node) error { return leads(ctx, p.Trio, n) }
}

func kill(_ *failoverBench, ctx context.Context, p *trio.Pair, i, _ int, _ time.Duration) act {
	return act{prepare: leading(ctx, p, i), do: func(n *trio.Node) error { n.Kill(); return nil }, undo: start(ctx), moves: true}
}

// killOpening gives connections a second in which they open undisturbed. It looks itself when the process is dead: what was its parent goes on for a while.
func killOpening(q *failoverBench, ctx context.Context, p *trio.Pair, i, runs int, long time.Duration) act {
	a := kill(q, ctx, p, i, runs, long)
	a.struck = new(time.Time)
	a.do = func(n *trio.Node) error {
		pid := n.Pid()
		if pid == 0 {
			return fmt.Errorf("the owner has no process to kill")
		}
		if err := unix.Kill(pid, unix.SIGKILL); err != nil {
			return err
		}
		for end := time.Now().Add(takes); netlab.Lives(pid); time.Sleep(100 * time.Microsecond) {
			if time.Now().After(end) {
				return fmt.Errorf("process %d has been killed, and lives", pid)
			}
		}
		*a.struck = time.Now()
		n.Await() // its parent is to say that it has died, as in the row kill
		return nil
	}
	lead := a.prepare
	a.prepare = func(n *trio.Node) error {
		err := rest(ctx, time.Second)
		if err == nil && lead != nil {
			err = lead(n)
		}
		return err
	}
	return a
}

// devices has all of a node's go down, or come up.
func devices(p *trio.Pair, n *trio.Node, up bool) error {
	errs := []error{p.SetUp(n.Name, "mgmt", up)}
	for _, d := range p.Devices() {
		errs = append(errs, p.SetUp(n.Name, d, up))
	}
	return errors.Join(errs...)
}

func leave(_ *failoverBench, ctx context.Context, p *trio.Pair, i, _ int, _ time.Duration) act {
	return act{prepare: leading(ctx, p, i), do: func(n *trio.Node) error { n.Vanish(); return devices(p, n, false) },
		undo: func(n *trio.Node) error { return errors.Join(devices(p, n, true), n.Start(ctx)) }, moves: true}
}

// lease is that of the nodes as shipped; a stop that is shorter than half of it moves nothing.
const (
	lease = 120 * time.Millisecond
	half  = lease / 2
)

// stops say how long an owner is stopped in which part of a row's runs. Most are around the lease: an owner's own use of it ends 78 to 99 ms behind the stop, by when it was renewed
// last and by its clock, and others may be helped 93 to 126 ms behind it. A fifth are around half of it.
var stops = []struct {
	at float64 // part of the runs
	d  time.Duration
}{{0, 50 * time.Millisecond}, {0.1, 58 * time.Millisecond}, {0.2, 72 * time.Millisecond}, {0.7, 165 * time.Millisecond}, {0.8, 250 * time.Millisecond}, {1, 3 * time.Second}}

// stopFor is how long an owner is stopped in a run of so many: from 50 ms to 3 s.
func stopFor(i, runs int) time.Duration {
	at := 0.0
	if runs > 1 {
		at = float64(i) / float64(runs-1)
	}
	for k, to := range stops[1:] {
		if from := stops[k]; at < to.at {
			return from.d + time.Duration((at-from.at)/(to.at-from.at)*float64(to.d-from.d))
		}
	}
	return stops[len(stops)-1].d
}

func freeze(_ *failoverBench, ctx context.Context, _ *trio.Pair, i, runs int, _ time.Duration) act {
	a := act{halts: true, stopped: new(time.Duration)}
	a.do = func(n *trio.Node) error {
		began := time.Now()
		if err := unix.Kill(n.Pid(), unix.SIGSTOP); err != nil {
			return err
		}
		err := errors.Join(rest(ctx, stopFor(i, runs)), unix.Kill(n.Pid(), unix.SIGCONT))
		*a.stopped = time.Since(began)
		return err
	}
	return a
}

func unplug(dev string) func(*failoverBench, context.Context, *trio.Pair, int, int, time.Duration) act {
	return func(_ *failoverBench, _ context.Context, p *trio.Pair, _, _ int, _ time.Duration) act {
		return act{do: func(n *trio.Node) error { return p.SetUp(n.Name, dev, false) }, undo: func(n *trio.Node) error { return p.SetUp(n.Name, dev, true) }, moves: true}
	}
}

// cut has a way be cut for half a second, or until the group has moved.
func cut(set func(p *trio.Pair, owner *trio.Node, cut bool) error, moves bool) func(*failoverBench, context.Context, *trio.Pair, int, int, time.Duration) act {
	return func(_ *failoverBench, ctx context.Context, p *trio.Pair, _, _ int, _ time.Duration) act {
		a := act{do: func(n *trio.Node) error { return set(p, n, true) }, undo: func(n *trio.Node) error { return set(p, n, false) }, moves: moves}
		if !moves {
			a.do = func(n *trio.Node) error { return errors.Join(set(p, n, true), rest(ctx, lasts)) }
		}
		return a
	}
}

// silent is how long links are without TCP: longer than Raft's leaders are believed without a word, and than they believe that they lead.
const silent = 2 * time.Second

// cutTCP has nodes have no TCP between them for a while. That it was so is told by the valves that lost it, and, where it is all of the log's, by nobody knowing a leader.
func cutTCP(between func(p *trio.Pair, owner *trio.Node) [][2]*trio.Node, leaderless bool) func(*failoverBench, context.Context, *trio.Pair, int, int, time.Duration) act {
	return func(_ *failoverBench, ctx context.Context, p *trio.Pair, _, _ int, _ time.Duration) act {
		set := func(n *trio.Node, cut bool) (lost uint64, err error) {
			for _, w := range between(p, n) {
				l, e := p.CutOf(w[0], w[1], unix.IPPROTO_TCP, cut)
				lost, err = lost+l, errors.Join(err, e)
			}
			return lost, err
		}
		return act{do: func(n *trio.Node) error {
			_, err := set(n, true)
			err = errors.Join(err, rest(ctx, silent))
			for _, x := range p.Nodes() {
				if !leaderless || err != nil {
					break
				}
				m, e := x.Members(ctx)
				if err = e; err == nil && m.Leader != "" {
					err = fmt.Errorf("%s says that %s leads, and no node has heard of another over TCP for %s", x.Name, m.Leader, silent)
				}
			}
			lost, e := set(n, false)
			if err = errors.Join(err, e); err == nil && lost == 0 {
				err = errors.New("links were cut, and nothing was lost on them")
			}
			return err
		}}
	}
}

// isolated has the owner be cut off until the group has moved. Where it led, a leader comes first.
func isolated(q *failoverBench, ctx context.Context, p *trio.Pair, i, runs int, long time.Duration) act {
	a := cut(func(p *trio.Pair, owner *trio.Node, c bool) error { return p.Isolate(owner, c) }, true)(q, ctx, p, i, runs, long)
	a.prepare = leading(ctx, p, i)
	return a
}

// undisturbed has packets go for as long as in rows in which nothing moves.
func undisturbed(_ *failoverBench, ctx context.Context, _ *trio.Pair, _, _ int, _ time.Duration) act {
	return act{do: func(*trio.Node) error { return rest(ctx, lasts) }}
}

// dies has one die that owns nothing.
func dies(who func(p *trio.Pair, owner *trio.Node) *trio.Node, leader bool) func(*failoverBench, context.Context, *trio.Pair, int, int, time.Duration) act {
	return func(_ *failoverBench, ctx context.Context, p *trio.Pair, _, _ int, _ time.Duration) act {
		a := act{do: func(n *trio.Node) error { who(p, n).Kill(); return rest(ctx, lasts) }, undo: func(n *trio.Node) error { return who(p, n).Start(ctx) }}
		if leader {
			a.prepare = func(n *trio.Node) error { return leads(ctx, p.Trio, who(p, n)) }
		}
		return a
	}
}

func moved(_ *failoverBench, ctx context.Context, p *trio.Pair, _, _ int, _ time.Duration) act {
	return act{do: func(n *trio.Node) error {
		_, err := n.Run(ctx, "group", "move", trio.PairGroup, p.Other(n).Name)
		return err
	}, moves: true, refusable: true}
}

func drained(_ *failoverBench, ctx context.Context, _ *trio.Pair, _, _ int, _ time.Duration) act {
	return act{do: func(n *trio.Node) error { _, err := n.Run(ctx, "node", "drain"); return err },
		undo: func(n *trio.Node) error { _, err := n.Run(ctx, "node", "undrain"); return err }, moves: true, refusable: true}
}

func ended(_ *failoverBench, ctx context.Context, _ *trio.Pair, _, _ int, _ time.Duration) act {
	return act{do: (*trio.Node).Stop, undo: start(ctx), moves: true}
}

func stress(_ *failoverBench, ctx context.Context, p *trio.Pair, _, _ int, long time.Duration) act {
	return act{do: func(*trio.Node) error {
		var loops []*exec.Cmd
		defer func() {
			for _, c := range loops {
				_ = c.Process.Kill()
				_ = c.Wait() // killed
			}
		}()
		for range runtime.NumCPU() {
			c := p.Command(trio.PairOut, "sh", "-c", "while :; do :; done")
			if err := c.Start(); err != nil {
				return err
			}
			loops = append(loops, c)
		}
		return rest(ctx, long)
	}}
}

func lossy(_ *failoverBench, ctx context.Context, p *trio.Pair, _, _ int, long time.Duration) act {
	return act{do: func(*trio.Node) error { return errors.Join(p.LoseAll(0.05), rest(ctx, long), p.LoseAll(0)) }}
}

const (
	poisoner  = "198.18.10.240"  // an address of its own: who sends such packets is blocked as a whole
	poisonous = "203.0.113.66:9" // what goes there spoils the worker of a gateway that was told to break so
)

// poison sends packets that make a worker panic, to whoever serves, for some seconds.
func poison(q *failoverBench, ctx context.Context, p *trio.Pair, _, _ int, _ time.Duration) act {
	lasts := 5 * time.Second
	if q.Full {
		lasts = 20 * time.Second
	}
	if q.Brief {
		lasts = time.Second
	}
	return act{do: func(*trio.Node) error {
		// The address may be there from the run before.
		if err := p.AddAddr(trio.PairAlpha, netlab.HostDevice, netip.MustParsePrefix(poisoner+"/24")); err != nil && !errors.Is(err, unix.EEXIST) {
			return err
		}
		var sent host.Flood
		err := p.Run(ctx, trio.PairAlpha, &sent, "udp-flood", "-dst", poisonous, "-from", poisoner, "-bits", "400e3", "-size", "64", "-duration", lasts.String())
		if err == nil && sent.Sent < 100 {
			err = fmt.Errorf("only %d such packets were sent", sent.Sent)
		}
		return err
	}}
}

// expire has certificates run out in mid-run. For a second nobody renews them.
func expire(_ *failoverBench, ctx context.Context, p *trio.Pair, _, _ int, _ time.Duration) act {
	const life = 6 * time.Second // nodes look at their files now and then
	var end time.Time
	return act{prepare: func(*trio.Node) error {
		var errs []error
		for _, n := range p.Nodes() {
			errs = append(errs, p.Expire(n, life))
		}
		end = time.Now().Add(life)
		return errors.Join(append(errs, rest(ctx, life-2*time.Second))...)
	}, do: func(*trio.Node) error {
		if err := rest(ctx, time.Until(end.Add(3*time.Second))); err != nil {
			return err
		}
		// They must have run out, by each node's own word: else nothing has happened.
		for _, n := range p.Nodes() {
			m, err := n.Members(ctx)
			if err != nil {
				return err
			}
			for _, x := range m.Members {
				if x.Self && (x.Until == nil || x.Until.After(time.Now())) {
					return fmt.Errorf("%s does not say that its certificate has run out: %v", n.Name, x.Until)
				}
			}
		}
		return nil
	}, undo: func(*trio.Node) error {
		var errs []error
		for _, n := range p.Nodes() {
			errs = append(errs, p.Expire(n, 0))
		}
		return errors.Join(append(errs, p.Whole(ctx, time.Minute, nil))...)
	}}
}

// unlikely is how likely it is at most that what is no chance is taken for one.
const unlikely = 0.01

// byChance is how likely as many runs or more are worse by more than most than what came before them, if either may be the worse one as easily: a sign test, of those that differ by so much.
func byChance(worse, better []float64, most float64) (p float64) {
	n, k := 0, 0
	for i := range worse {
		switch {
		case worse[i] > most:
			n, k = n+1, k+1
		case better[i] > most:
			n++
		}
	}
	for x := k; x <= n; x++ {
		c, _ := new(big.Float).SetInt(new(big.Int).Binomial(int64(n), int64(x))).Float64()
		p += math.Ldexp(c, -n)
	}
	return p
}

// figures notes what the runs of a row have cost.
func (q *failoverBench) figures(r *failoverRow, runs []run) {
	collect := func(fn func(*run) float64) (list []float64) {
		for i := range runs {
			list = append(list, fn(&runs[i]))
		}
		return list
	}
	all := func(b bool) string {
		if b {
			return "max"
		}
		return ""
	}
	ms := func(d time.Duration) float64 { return d.Seconds() * 1e3 }
	gaps, calls := collect(func(o *run) float64 { return ms(o.gap) }), collect(func(o *run) float64 { return ms(o.callGap) })
	switch {
	case r.still:
		q.add(r.name, "gap", "ms", gaps, "", 0)
		if r.long == 0 { // a machine that is kept busy on purpose says nothing of it
			excess, spared := collect(func(o *run) float64 { return ms(o.excess) }), collect(func(o *run) float64 { return ms(o.spared) })
			each := "max"
			if r.name == "nothing" { // it is the machine's alone
				each = ""
			}
			q.add(r.name, "gap-beyond-the-machine", "ms", excess, each, ms(half))
			q.add(r.name, "gap-beyond-the-machine-median", "ms", []float64{median(excess)}, "median", quiet)
			q.addLeast(r.name, "gap-by-chance", "", []float64{byChance(excess, spared, quiet)}, "median", unlikely)
		}
		q.add(r.name, "failovers", "", collect(func(o *run) float64 { return float64(len(o.owners) - 1) }), "max", 0)
	case r.most > 0:
		q.add(r.name, "gap", "ms", gaps, "max", r.most)
		q.add(r.name, "gap-median", "ms", []float64{median(gaps)}, "median", r.median)
		q.add(r.name, "gap-calls", "ms", calls, "max", r.most+ms(callEvery))
		q.add(r.name, "gap-calls-median", "ms", []float64{median(calls)}, "median", r.median+ms(callEvery))
	case r.once:
		q.add(r.name, "gap", "ms", gaps, "", 0)
		q.add(r.name, "failovers", "", collect(func(o *run) float64 { return float64(len(o.owners) - 1) }), "max", 1)
	default:
		q.add(r.name, "gap", "ms", gaps, "median", r.median)
		q.add(r.name, "gap-calls", "ms", calls, "median", r.median+ms(callEvery))
	}
	q.add(r.name, "wrong-packets", "packets", collect(func(o *run) float64 { return float64(o.wrong) }), "max", 0)
	if !r.still && !r.peer {
		q.add(r.name, "between-owners", "ms", collect(func(o *run) float64 { return ms(o.between) }), "", 0)
	}
	if slices.ContainsFunc(runs, func(o run) bool { return o.pings[1] > 0 }) {
		q.add(r.name, "ping-silence", "ms", collect(func(o *run) float64 { return ms(o.silence) }), "", 0)
		q.add(r.name, "pings-lost", "packets", collect(func(o *run) float64 { return float64(o.pings[0]) }), "", 0)
	}
	if r.agree {
		q.add(r.name, "sessions-missing", "sessions", collect(func(o *run) float64 { return float64(o.missing) }), "max", 0)
		q.add(r.name, "tables-apart", "sessions", collect(func(o *run) float64 { return float64(o.apart) }), "max", 0)
	}
	if !r.peer {
		q.add(r.name, "lag-before", "ms", collect(func(o *run) float64 { return ms(o.lag) }), "", 0)
	}
	q.add(r.name, "gap-before", "ms", collect(func(o *run) float64 { return ms(o.before) }), "", 0)
	q.add(r.name, "senders-paused", "ms", collect(func(o *run) float64 { return ms(o.paused) }), "", 0)
	q.add(r.name, "flows-not-back", "flows", collect(func(o *run) float64 { return float64(o.away) }), "max", 0)
	q.add(r.name, "flows-on-another-session", "flows", collect(func(o *run) float64 { return float64(o.moved) }), "max", 0)
	if slices.ContainsFunc(runs, func(o run) bool { return o.opened > 0 }) {
		q.add(r.name, "lost", "connections", collect(func(o *run) float64 { return float64(o.data[0]) }), "max", 0)
		q.add(r.name, "lost-of", "connections", collect(func(o *run) float64 { return float64(o.data[1]) }), "", 0)
		q.add(r.name, "lost-idle", "connections", collect(func(o *run) float64 { return float64(o.idle[0]) }), "max", 0)
		q.add(r.name, "lost-idle-of", "connections", collect(func(o *run) float64 { return float64(o.idle[1]) }), "", 0)
	}
	if r.opening {
		q.add(r.name, "fresh-rate", "connections/s", collect(func(o *run) float64 { return o.fresh.rate }), "", 0)
		q.add(r.name, "fresh-open-before", "connections", collect(func(o *run) float64 { return float64(o.fresh.before) }), "", 0)
		q.add(r.name, "fresh-on-their-way", "connections", collect(func(o *run) float64 { return float64(o.fresh.way) }), "", 0)
		q.add(r.name, "fresh-lost", "connections", collect(func(o *run) float64 { return float64(o.fresh.lost) }), "", 0)
		q.add(r.name, "fresh-lost-oldest", "ms", collect(func(o *run) float64 { return ms(o.fresh.age) }), "max", lagMs)
		q.add(r.name, "fresh-lag-shown", "ms", collect(func(o *run) float64 { return ms(o.fresh.shown) }), "", 0)
		q.add(r.name, "fresh-lost-older-than-shown", "ms", collect(func(o *run) float64 { return ms(o.fresh.beyond) }), "max", 0)
		q.add(r.name, "fresh-lost-began-after", "connections", collect(func(o *run) float64 { return float64(o.fresh.after) }), "max", 0)
		q.add(r.name, "fresh-failed", "connections", collect(func(o *run) float64 { return float64(o.fresh.failed) }), "max", 0)
	}
	var losses []float64
	for _, o := range runs {
		losses = append(losses, o.calls...)
	}
	q.add(r.name, "call-loss", "packets", losses, "", 0)
	q.add(r.name, "packets-lost", "packets", collect(func(o *run) float64 { return float64(o.lost) }), "", 0)
	q.add(r.name, "offences", "", collect(func(o *run) float64 { return float64(len(o.faults)) }), "max", 0)
	count := func(metric string, fn func(*run) bool, limit bool) {
		n := 0.0
		for i := range runs {
			if fn(&runs[i]) {
				n++
			}
		}
		q.add(r.name, metric, "runs", []float64{n}, all(limit), 0)
	}
	if !r.still && !r.once {
		count("not-handed-over", func(o *run) bool { return o.moves && !o.handed() }, true)
	}
	if r.name == "stop" {
		q.add(r.name, "sent-on-waking", "frames", collect(func(o *run) float64 { return float64(o.inHand) }), "max", judge.Burst)
		count("shorter-than-half-a-lease", func(o *run) bool { return o.stopped < half }, false)
		count("moved-though-short", func(o *run) bool { return o.stopped < half && o.handed() }, true)
	}
	if strings.HasPrefix(r.name, "planned/") {
		count("refused", func(o *run) bool { return o.refused != nil }, true)
	}
	if r.name == "kill" || r.name == "gone" || r.name == "cut/owner" || r.opening {
		var led []float64
		for i := range runs {
			if runs[i].led {
				led = append(led, gaps[i])
			}
		}
		if len(led) > 0 { // an election comes first
			q.add(r.name, "gap-led-too", "ms", led, "", 0)
		}
		if len(runs) >= 3 && (r.name == "kill" || r.name == "gone") { // half of them are meant to
			q.addLeast(r.name, "led-too", "runs", []float64{float64(len(led))}, "median", float64(len(runs)/3))
		} else {
			count("led-too", func(o *run) bool { return o.led }, false)
		}
	}
	count("not-protected-before", func(o *run) bool { return o.why != "" }, false)
	q.add(r.name, "not-begun", "runs", []float64{float64(q.failed)}, "", 0)
	if !r.peer {
		q.add(r.name, "terms-ended-while-opening", "", []float64{float64(q.early)}, "", 0)
	}
}

func median(values []float64) float64 {
	v := slices.Sorted(slices.Values(values))
	if len(v)%2 == 0 {
		return (v[len(v)/2-1] + v[len(v)/2]) / 2
	}
	return v[len(v)/2]
}

// say tells of a run what it cost.
func (o *run) String() string {
	s := fmt.Sprintf("gap %.1f ms (%s, at %.0f ms), of calls %.1f ms (%s, at %.0f ms), %.1f ms while nothing was done, senders paused %.1f ms; %d flows not back, %d on another session; lost %d of %d connections with data, %d of %d idle; %d of %d packets; %v", o.gap.Seconds()*1e3, o.flow, o.at.Seconds()*1e3, o.callGap.Seconds()*1e3, o.call, o.callAt.Seconds()*1e3, o.before.Seconds()*1e3, o.paused.Seconds()*1e3,
		o.away, o.moved, o.data[0], o.data[1], o.idle[0], o.idle[1], o.lost, o.sent, o.owners)
	if len(o.calls) > 0 {
		s += fmt.Sprintf("; of a call each way at most %.0f packets, %.0f in the middle", slices.Max(o.calls), median(o.calls))
	}
	if o.fresh.tried > 0 {
		s += fmt.Sprintf("; %d connections were open when it came, %d on their way, of both %d lost, the oldest open for %s; %d lost that began afterwards, %d of %d did not open", o.fresh.before, o.fresh.way, o.fresh.lost, o.fresh.age, o.fresh.after, o.fresh.failed, o.fresh.tried)
	}
	for _, why := range slices.Sorted(maps.Keys(o.how)) {
		s += fmt.Sprintf("; %d lost: %s", o.how[why], why)
	}
	if len(o.owners) > 1 {
		s += fmt.Sprintf("; %.1f ms between owners, %.1f to the next one's word", o.between.Seconds()*1e3, o.word.Seconds()*1e3)
	}
	if o.pings[1] > 0 {
		s += fmt.Sprintf("; %d of %d pings not answered, for %.1f ms at most", o.pings[0], o.pings[1], o.silence.Seconds()*1e3)
	}
	if o.away > 0 {
		s += fmt.Sprintf("; not back: %s", strings.Join(o.still, ", "))
	}
	if o.wrong > 0 {
		s += fmt.Sprintf("; %d packets were wrong: %s", o.wrong, o.example)
	}
	if o.led {
		s += "; led too"
	}
	if o.why != "" {
		s += "; not protected before: " + o.why
	}
	if o.refused != nil {
		s += fmt.Sprintf("; refused: %v", o.refused)
	}
	if o.stopped > 0 {
		s += fmt.Sprintf("; stopped for %.1f ms", o.stopped.Seconds()*1e3)
	}
	if o.inHand > 0 {
		s += fmt.Sprintf("; sent %d frames on waking", o.inHand)
	}
	if o.dropped != "" {
		s += "; dropped meanwhile:" + o.dropped
	}
	for _, f := range o.faults {
		s += "\n  OFFENCE " + f.String()
	}
	return s
}
