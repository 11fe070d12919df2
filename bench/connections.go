package bench

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"demarc/bench/peers"
	"demarc/bench/pktgen"
	"demarc/bench/report"
	"demarc/gateway/netlab"
)

// connections is one run of `demarc bench connections`.
type connections struct {
	traffic
	Each   int   // connections in a load
	AtOnce []int // of each load: so many are under way at a time
	Direct bool  // the two ends take part with nothing between them
}

// talkTurn is one side's turn: a load for each number at a time.
type talkTurn struct {
	turn
	Loads []talkLoad
}

// talkLoad is one load on a device that has just begun.
type talkLoad struct {
	pktgen.Talked
	cpu       float64 // s, of all cores
	disturbed bool
}

// cpuEach is what a connection takes of all cores, µs.
func (l *talkLoad) cpuEach() float64 { return ratio(1e6*l.cpu, float64(l.Over)) }

// sound refuses a load that measured nothing, and a device that changes what it carries.
func (l *talkLoad) sound() error {
	wrong, right := l.Server.Wrong()+l.Client.Wrong(), l.Server[pktgen.Right]+l.Client[pktgen.Right]
	switch {
	case l.Over == 0:
		return fmt.Errorf("none of %d connections came to its end; wrong frames at the server %v, at the client %v", l.Begun, l.Server.WrongKinds(), l.Client.WrongKinds())
	case float64(wrong) > lossLimit*float64(right):
		return fmt.Errorf("%d frames arrived wrong beside %d right ones: at the server %v, at the client %v", wrong, right, l.Server.WrongKinds(), l.Client.WrongKinds())
	}
	return nil
}

// openTalks builds a room whose far ends talk TCP and keep nothing of it, on the link through the device under test and on the one past it.
func openTalks(p pktgen.Plan) (r *room, err error) {
	r = &room{plan: p, bothSides: true}
	defer func() {
		if err != nil {
			err = errors.Join(err, r.Close())
		}
	}()
	if err := r.connect(); err != nil {
		return r, err
	}
	if err := r.AddLink(netlab.LinkSpec{A: netlab.End{NS: nsSrc, Name: devSrcDirect}, B: netlab.End{NS: nsDst, Name: devDstDirect}}); err != nil {
		return r, err
	}
	if r.talks, err = pktgen.LoadTalks(p); err != nil {
		return r, err
	}
	return r, errors.Join(r.inside(nsSrc, devSrc, r.talks.AttachClient), r.inside(nsDst, devDst, r.talks.AttachServer),
		r.inside(nsSrc, devSrcDirect, r.talks.AttachClient), r.inside(nsDst, devDstDirect, r.talks.AttachServer))
}

// run measures. What it could measure is in the output also when there is an error.
func (q *connections) run(ctx context.Context) (*report.Output, error) {
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
	q.rows(turns)
	if len(turns) > 0 {
		q.note("connections: %d a load, each of a client's address and port of its own, on a device that was just started (the kernel's table was flushed); seven frames each: SYN, SYN ACK, 4 bytes there and 4 back, FIN ACK both ways, ACK. A frame that is lost is not sent again: what came to no end is lost, and what is under way then is given up after 0.2 s", q.Each)
	}
	return q.finish(), err
}

func (q *connections) turns(ctx context.Context, ways []string) (turns map[string][]talkTurn, err error) {
	turns = map[string][]talkTurn{}
	if err := enoughMemory(300 + q.Each*1600>>20); err != nil {
		return turns, err
	}
	p := plan(q.Each)
	rules, err := rulesFor(q.Seed, q.Rules, false, planKeys(&p, 6))
	if err != nil {
		return turns, err
	}
	if q.room, err = openTalks(p); err != nil {
		return turns, err
	}
	defer func() { err = errors.Join(err, q.room.Close()) }()
	table := 4 * q.Each // sessions that wait for an answer may fill half of what is free, and ended ones stay for a while
	q.devices = map[string]device{
		report.Us:   &demarc{r: q.room, binary: q.Binary, rules: rules, pool: p.Pool, rate: trafficRate, table: table, offload: never},
		sideOffload: &demarc{r: q.room, binary: q.Binary, rules: rules, pool: p.Pool, rate: trafficRate, table: table, offload: always, called: sideOffload},
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
	sides, err := q.sides(&flowCase{Flows: q.Each, Offload: true})
	if err != nil {
		return turns, err
	}
	if sides = slices.DeleteFunc(sides, func(s string) bool { return s == report.Us && !slices.Contains(ways, s) }); q.Direct {
		sides = append(sides, report.Direct)
	}
	return turns, q.inTurns("connections", sides, func(side string) (*turn, error) {
		t, err := q.talkTurn(ctx, side, q.devices[side])
		if err == nil {
			turns[side] = append(turns[side], t)
			q.config(&flowCase{}, side)
		}
		return &t.turn, err
	})
}

// talkTurn is one side's turn.
func (q *connections) talkTurn(ctx context.Context, side string, d device) (t talkTurn, err error) {
	t.Side = side
	words := ""
	for _, n := range q.AtOnce {
		l, err := q.load(ctx, &t, d, n)
		if err != nil {
			return t, fmt.Errorf("%d at a time: %w", n, err)
		}
		t.Loads = append(t.Loads, l)
		words += fmt.Sprintf("  %d at a time %.0f connections/s, p50 %.0f µs, %d lost", n, l.Rate(), float64(l.Times.ValueAtQuantile(50))/1e3, l.Lost())
		if l.disturbed {
			words += " (disturbed)"
		}
	}
	q.say("  %-14s%s", side, words)
	return t, nil
}

// load is one load, made again while something else runs.
func (q *connections) load(ctx context.Context, t *talkTurn, d device, atOnce int) (l talkLoad, err error) {
	for try := 0; ; try++ {
		use, err := q.carry(ctx, d, atOnce, &l)
		if err != nil || !use.disturbed() {
			return l, err
		}
		if !use.again(try) || q.late() {
			l.disturbed, t.Disturbed = true, true
			return l, nil
		}
		t.Again++
	}
}

// carry starts a device, has it carry connections and stops it.
func (q *connections) carry(ctx context.Context, d device, atOnce int, l *talkLoad) (use usage, err error) {
	defer func() { err = errors.Join(err, d.stop()) }()
	if err := d.start(ctx); err != nil {
		return use, err
	}
	hops, dev := 1, devSrc
	f, plain := d.(forwarder)
	if plain {
		hops = f.hops()
	}
	if _, past := d.(*direct); past {
		dev = devSrcDirect
	}
	if err := q.room.talks.Fresh(plain, hops); err != nil {
		return use, err
	}
	// The device finds its neighbours first: what waits for them is not what is measured.
	if l.Talked, err = q.room.dial(ctx, dev, pktgen.TalkOrder{Duration: 5 * time.Second, Limit: firstTalks, AtOnce: 1, CPU: makerCPU, Patience: time.Second}); err != nil {
		return use, err
	}
	if err := l.sound(); err != nil {
		return use, err
	}
	slowdown, err := yard.around(func() error {
		before, err := sampleCPU(d.pids())
		if err != nil {
			return err
		}
		if l.Talked, err = q.room.dial(ctx, dev, pktgen.TalkOrder{Duration: 20 * time.Second, Limit: uint64(q.Each), AtOnce: atOnce, CPU: makerCPU}); err != nil {
			return err
		}
		after, err := sampleCPU(d.pids())
		use = before.until(after)
		// The maker's CPU is busy all the time: by its own account.
		l.cpu = max(0, l.Seconds-l.Idle)
		for n, busy := range use.cpus {
			if n != makerCPU {
				l.cpu += busy * after.at.Sub(before.at).Seconds()
			}
		}
		return err
	})
	use.slowdown = slowdown
	if err == nil {
		err = l.sound()
	}
	if err != nil || plain {
		return use, err
	}
	// As many as surely began one each, and one port for them: ports of ended ones are free again.
	why, err := d.missing(ctx, 1)
	if err == nil && why != "" {
		err = fmt.Errorf("it does not do %s, so it did not do the same work as the others", why)
	}
	return use, err
}

// dial has connections made until the order is done or ctx ends.
func (r *room) dial(ctx context.Context, dev string, o pktgen.TalkOrder) (t pktgen.Talked, err error) {
	err = r.until(ctx, r.talks.Halt, func() error {
		return r.inside(nsSrc, dev, func(ifindex int) (err error) {
			o.Device = ifindex
			t, err = r.talks.Dial(o)
			return err
		})
	})
	return t, err
}

// rows hands the figures to the report.
func (q *connections) rows(turns map[string][]talkTurn) {
	for i, n := range q.AtOnce {
		inModes(fmt.Sprintf("%d-at-a-time/nat44", n), turns, func(name string, turns map[string][]talkTurn) {
			add := func(metric, unit string, digits int, better report.Better, of func(l *talkLoad) float64) {
				addRow(q.out, report.Row{Scenario: q.Scenario, Case: name, Metric: metric, Unit: unit, Better: better, Digits: digits}, turns, func(t *talkTurn) ([]float64, bool) {
					return []float64{of(&t.Loads[i])}, t.Loads[i].disturbed
				})
			}
			quantile := func(at float64) func(l *talkLoad) float64 {
				return func(l *talkLoad) float64 { return float64(l.Times.ValueAtQuantile(at)) / 1e3 }
			}
			add("rate", "connections/s", 0, report.Higher, func(l *talkLoad) float64 { return l.Rate() })
			add("p50", "µs", 1, report.Lower, quantile(50))
			add("p99", "µs", 1, report.Lower, quantile(99))
			add("lost", "connections", 0, report.Lower, func(l *talkLoad) float64 { return float64(l.Lost()) })
			add("cpu-per-connection", "µs", 2, report.Lower, func(l *talkLoad) float64 { return l.cpuEach() })
		})
	}
}

func init() {
	register(scenario{place: 65, name: "connections", about: "TCP connections of one request each, made by ends that cost next to nothing", command: connectionsCommand,
		needs: func() error { _, err := nftVersion(); return err },
		short: &stint{args: []string{"--trials", "4", "--at-once", "128", "--flows", "32k", "--direct=false", "--peers", "nft-expert"}, seconds: 20, memoryMiB: 500},
		table: &stint{args: []string{"--trials", "5", "--budget", "24h"}, seconds: 180, memoryMiB: 500},
		full:  &stint{args: []string{"--trials", "10", "--budget", "24h"}, seconds: 360, memoryMiB: 500}})
}

func connectionsCommand() *cobra.Command {
	q := connections{traffic: traffic{Scenario: "connections"}}
	var f flowFlags
	each := ""
	c := &cobra.Command{
		Use:   "connections",
		Short: "how many TCP connections of one request each go through a second, beside the kernel and nftables",
		Long: "Carry TCP connections through each side in turns, so many under way at a time: connect, 4 bytes there, 4 bytes back, both ends close; seven frames. Client and server are XDP programs that keep\n" +
			"of a connection no more than how far it is, so that the side under test is what bounds, which real stacks on two CPUs do not allow (`tcp` has those: there the ends cost more than any side). Each frame is judged at both ends: translated source,\n" +
			"destination, sequence numbers, checksums, what was told, order. Each load is on a device that has just begun. `direct` is the ends with nothing between them: what they could do. Needs root, two CPUs and the package nftables.",
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) (err error) {
			if q.Each, err = parseFlows(each); err != nil {
				return err
			}
			switch {
			case q.Each < 1024 || q.Each > 1<<17:
				return usageError{fmt.Errorf("--flows %q: want connections from 1k to 128k", each)}
			case len(q.AtOnce) == 0:
				return usageError{errors.New("--at-once: want numbers of connections")}
			}
			for _, n := range q.AtOnce {
				if n < 1 || n > mostAtOnce {
					return usageError{fmt.Errorf("--at-once %d: want from 1 to %d, the frames that a veth device holds for its far end: of more some are lost before any side has seen them", n, mostAtOnce)}
				}
			}
			if slices.Contains(f.peers, sideTestpmd) {
				return usageError{errors.New("--peers testpmd: it leaves destinations as they are, and no answer comes back to an inside host by it; want some of kernel,nft-linear,nft-expert")}
			}
			if err := q.check(&f, cmd.Flags().Changed); err != nil {
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
	s.BoolVar(&q.Direct, "direct", true, "the two ends with nothing between them take turns too")
	s.IntVar(&q.Rules, "rules", 1000, "of the access list; the last one matches")
	s.StringVar(&each, "flows", "64k", "connections of each load, a power of two")
	s.IntSliceVar(&q.AtOnce, "at-once", []int{32, 128}, "connections under way at a time, of each load")
	return c
}

// firstTalks are so many connections before those that count, one after the other.
const firstTalks = 16

// mostAtOnce is how many frames wait at most for the far end of a veth device.
const mostAtOnce = 256
