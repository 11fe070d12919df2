package bench

import (
	"context"
	"errors"
	"fmt"
	"math"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"demarc/acl"
	"demarc/bench/peers"
	"demarc/bench/pktgen"
	"demarc/bench/report"
	"demarc/gateway/api"
)

// churn is one run of `demarc bench churn`.
type churn struct {
	traffic
	Seconds float64 // of each load
	Every   time.Duration
	Rate    float64 // frames per second, the same for all
	behind  int     // changes that ended behind their load
}

// changer is a device whose policy can be changed while it forwards.
type changer interface {
	device
	// prepare makes what it takes to serve the list in another version. What that returns serves it, and returns when it is served.
	prepare(version int) (change func(context.Context) error, err error)
}

// changed is a list of which the first rule is another one in each version. No rule of it but the last is about what the bench sends.
func changed(rules []acl.Rule, version int) []acl.Rule {
	list := slices.Clone(rules)
	port := uint16(1024 + version%60000)
	list[0] = acl.Rule{ID: list[0].ID, To: []netip.Prefix{netip.MustParsePrefix("203.0.113.200/32")}, Services: []acl.Service{{Proto: 6, SPortHi: 65535, DPortLo: port, DPortHi: port}}}
	return list
}

// gatewayChanged is the gateway, asked over its socket.
type gatewayChanged struct{ *demarc }

func (d gatewayChanged) prepare(version int) (func(context.Context) error, error) {
	w := waysOf(&d.r.plan)
	text, err := policy(changed(d.rules, version), []netip.Prefix{w.inside, w.link}, d.pool, d.rate, w.outsideVia, w.insideVia, w.outside)
	return func(ctx context.Context) error {
		ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
		defer cancel()
		var a api.Applied
		return d.client.Post(ctx, api.PathApply, api.ApplyRequest{Policy: text, Source: fmt.Sprintf("bench, version %d", version)}, &a)
	}, err
}

// nftChanged is nftables, whose table is replaced in one transaction: no packet meets half of it, and connections stay.
type nftChanged struct{ *kernel }

func (k nftChanged) prepare(version int) (func(context.Context) error, error) {
	text, err := peers.Ruleset(peers.Config{Form: k.form, Rules: changed(k.rules, version), In: devIn, Out: devOut, Inside: insideNet, Pool: k.r.plan.Pool, RateBits: k.rate})
	if err != nil {
		return nil, err
	}
	file := filepath.Join(dirRun, fmt.Sprintf("changed-%d.nft", version))
	return func(context.Context) error {
		_, err := k.r.Exec(nsGW, "nft", "-f", file)
		return errors.Join(err, os.Remove(file))
	}, os.WriteFile(file, []byte("delete table ip "+peers.Table+"\n"+text), 0o600)
}

// missing does not ask for counts: they begin anew with each table.
func (k nftChanged) missing(ctx context.Context, _ int) (string, error) {
	return k.kernel.missing(ctx, 0)
}

// run measures. What it could measure is in the output also when there is an error.
func (q *churn) run(ctx context.Context) (*report.Output, error) {
	tests := q.extra
	q.extra = func(r *room) map[string]device {
		// The devices of the room, by their names, as those that can be changed.
		list := map[string]device{}
		for name, d := range q.devices {
			switch d := d.(type) {
			case *demarc:
				list[name] = gatewayChanged{d}
			case *kernel:
				list[name] = nftChanged{d}
			}
		}
		if tests != nil {
			for name, d := range tests(r) {
				list[name] = d
			}
		}
		return list
	}
	err := q.each(ctx, q.measure, q.rows)
	if q.out != nil {
		if q.behind > 0 {
			q.note("%d changes ended behind their load, so that nothing went beside their last part: they count, since to leave them out would leave out slow ones", q.behind)
		}
		q.note("a policy with one other rule is served every %v while frames go at %.0f a second, and was written before: the gateway by its socket, until every worker serves it; nftables by `nft -f`, the whole table in one transaction. \"still\" is the same load without changes", q.Every, q.Rate)
	}
	return q.finish(), err
}

// measure is a turn's loads: one without changes, one with.
func (q *churn) measure(ctx context.Context, c *flowCase, d device, t *turn) error {
	g, ok := d.(changer)
	if !ok {
		return fmt.Errorf("%s has no policy to change", d.name())
	}
	if err := q.room.ends.Time(true); err != nil {
		return err
	}
	defer q.room.ends.Time(false)
	still, err := q.timedLoad(ctx, c, d, t)
	if err != nil {
		return err
	}
	// What is measured is a change, and not how the bench writes it: all are written before.
	var list []func(context.Context) error
	for range int(q.Seconds/q.Every.Seconds()) + 1 {
		t.Version++
		c, err := g.prepare(t.Version)
		if err != nil {
			return fmt.Errorf("write version %d: %w", t.Version, err)
		}
		list = append(list, c)
	}
	changing, stop := context.WithCancel(ctx)
	ended := make(chan error, 1)
	var made []change
	go func() { ended <- q.changes(changing, list, &made) }()
	moved, err := q.timedLoad(ctx, c, d, t)
	stop()
	if err := errors.Join(<-ended, err); err != nil {
		return err
	}
	// All count, else slow ones would be left out: but what ended behind the load had nothing beside it in part.
	t.Changes = nil
	behind := 0
	for _, x := range made {
		if t.Changes = append(t.Changes, x.took.Seconds()*1e3); !x.ended.Before(moved.load.over) {
			behind++
		}
	}
	if len(made) == 0 {
		return errors.New("no change was made while frames went: give it longer with --seconds")
	}
	q.behind += behind
	t.Loads = []timed{still, moved}
	q.say("  %-11s still: lost %d, p99 %.0f µs, worst %.0f; changed %d times in %.1f ms: lost %d, p99 %.0f µs, worst %.0f%s", t.Side, lostFrames(&still.load), micro(still.times.ValueAtQuantile(99)), micro(still.worst.Nanoseconds()),
		len(t.Changes), report.Of(t.Changes).Median, lostFrames(&moved.load), micro(moved.times.ValueAtQuantile(99)), micro(moved.worst.Nanoseconds()), map[bool]string{true: "  disturbed"}[t.Disturbed])
	return nil
}

// change is one that was served.
type change struct {
	ended time.Time
	took  time.Duration
}

// changes serves one version after the other, until ctx ends. One that is under way then is finished, so that the device is whole.
func (q *churn) changes(ctx context.Context, list []func(context.Context) error, made *[]change) error {
	next := time.Now().Add(q.Every / 2)
	for i, serve := range list {
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(time.Until(next)):
		}
		if ctx.Err() != nil { // both may be due
			return nil
		}
		began := time.Now()
		if err := serve(context.WithoutCancel(ctx)); err != nil {
			return fmt.Errorf("change %d: %w", i+1, err)
		}
		*made = append(*made, change{time.Now(), time.Since(began)})
		next = next.Add(q.Every)
	}
	return nil
}

// timedLoad is a paced load of which times are noted. It is not repeated: changes have been made by then.
func (q *churn) timedLoad(ctx context.Context, c *flowCase, d device, t *turn) (l timed, err error) {
	o := pktgen.Order{Duration: time.Duration(q.Seconds * float64(time.Second)), Rate: q.Rate, Direction: c.Direction, Batch: latencyBatch}
	if l.load, err = q.room.load(ctx, o, d.pids()); err != nil {
		return l, err
	}
	if err := soundLoad(&l.load); err != nil {
		return l, err
	}
	if l.disturbed = l.load.use.disturbed(); l.disturbed {
		t.Disturbed = true
	}
	x, err := q.room.ends.Times(pktgen.Out)
	l.times, l.worst, l.jitter = x.Histogram, x.Worst, x.Jitter
	return l, err
}

// lostFrames is how many of a load did not arrive right.
func lostFrames(l *trial) int64 { return int64(l.sent.Frames) - int64(l.right()) }

// rows hands a case's figures to the report, a case for each load.
func (q *churn) rows(c *flowCase, turns map[string][]turn) {
	for i, load := range []string{"still", "changed"} {
		add := func(metric, unit string, digits int, better report.Better, of func(t *turn, l *timed) []float64) {
			addRow(q.out, report.Row{Scenario: q.Scenario, Case: c.name() + "/" + load, Metric: metric, Unit: unit, Better: better, Digits: digits}, turns, func(t *turn) ([]float64, bool) {
				return of(t, &t.Loads[i]), t.Loads[i].disturbed
			})
		}
		one := func(v float64) []float64 { return []float64{v} }
		add("lost", "frames", 0, report.Lower, func(_ *turn, l *timed) []float64 { return one(float64(lostFrames(&l.load))) })
		add("loss", "ppm", 1, report.Lower, func(_ *turn, l *timed) []float64 { return one(math.Max(0, 1e6*l.load.loss())) })
		add("p50", "µs", 3, report.Lower, func(_ *turn, l *timed) []float64 { return one(micro(l.times.ValueAtQuantile(50))) })
		add("p99", "µs", 3, report.Lower, func(_ *turn, l *timed) []float64 { return one(micro(l.times.ValueAtQuantile(99))) })
		add("worst", "µs", 3, report.Lower, func(_ *turn, l *timed) []float64 { return one(micro(l.worst.Nanoseconds())) })
		add("sent", "frames", 0, "", func(_ *turn, l *timed) []float64 { return one(float64(l.load.sent.Frames)) })
		if load == "changed" {
			add("apply", "ms", 3, report.Lower, func(t *turn, _ *timed) []float64 { return t.Changes })
		}
	}
}

func init() {
	register(scenario{place: 100, name: "churn", about: "a changed policy each second under load: lost packets, latency, and how long a change takes", command: churnCommand,
		needs: func() error { _, err := nftVersion(); return err },
		short: &stint{args: []string{"--peers", "nft-expert", "--trials", "4", "--seconds", "1.3", "--every", "520ms"}, seconds: 39, memoryMiB: 500},
		table: &stint{args: []string{"--trials", "4", "--seconds", "10", "--budget", "24h"}, seconds: 400, memoryMiB: 500},
		full:  &stint{args: []string{"--flows", "64k", "--trials", "10", "--seconds", "30", "--budget", "24h"}, seconds: 2400, memoryMiB: 800}})
}

func churnCommand() *cobra.Command {
	q := churn{traffic: traffic{Scenario: "churn"}}
	var f flowFlags
	var rate float64
	c := &cobra.Command{
		Use:   "churn",
		Short: "serve a changed policy each second under load, beside nftables: lost packets, latency",
		Long: "Send 64-byte frames of established flows at a pace through each side in turns, first with nothing else, then while a policy with one other rule is served each second, and count what is lost and how\n" +
			"long frames are under way. Sessions of the gateway are judged anew after each change. Needs root, two CPUs and the package nftables.",
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cases, err := f.cases()
			if err != nil {
				return err
			}
			switch {
			case q.Seconds < 0.2 || q.Every < 10*time.Millisecond || q.Every.Seconds() > q.Seconds:
				return usageError{errors.New("--seconds must be at least 0.2, --every from 10ms to --seconds")}
			case rate <= 0:
				return usageError{errors.New("--rate must be more than 0")}
			case slices.Contains(f.peers, sideKernel) || slices.Contains(f.peers, sideTestpmd):
				return usageError{errors.New("--peers: kernel and testpmd have no policy to change; want some of nft-linear,nft-expert")}
			}
			if err := q.check(&f, cmd.Flags().Changed); err != nil {
				return err
			}
			q.Cases, q.Rate, q.Progress = cases, rate*1e6, cmd.ErrOrStderr()
			out, err := q.run(cmd.Context())
			return q.deliver(cmd, &f, out, err)
		},
	}
	q.peerFlags(c, &f)
	s := c.Flags()
	f.sizes, f.families, f.directions = []string{"64"}, []string{"4"}, []string{"out"}
	f.peers, s.Lookup("peers").DefValue = []string{sideLinear, sideExpert}, "[nft-linear,nft-expert]"
	s.IntVar(&q.Rules, "rules", 1000, "of the access list; the last one matches, the first one changes")
	s.StringSliceVar(&f.flows, "flows", []string{"4k"}, "powers of two, such as 4k,64k")
	s.Float64Var(&q.Seconds, "seconds", 5, "of each load")
	s.DurationVar(&q.Every, "every", time.Second, "between two changes")
	s.Float64Var(&rate, "rate", 0.1, "million frames per second")
	return c
}
