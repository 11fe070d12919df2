package bench

import (
	"context"
	"errors"
	"fmt"
	"math"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
	"github.com/spf13/cobra"

	"demarc/bench/pktgen"
	"demarc/bench/report"
)

// latency is one run of `demarc bench latency`.
type latency struct {
	traffic
	Seconds    float64 // of each paced load
	Step       float64 // of each trial of the search; the confirming one takes four times as long
	Resolution float64
	Parts      []int              // of the found rate, percent
	found      map[string]float64 // the rate of each side in each case, by both names
}

// timed is one paced load.
type timed struct {
	part      int // percent of the side's found rate
	load      trial
	times     *hdrhistogram.Histogram // ns
	worst     time.Duration
	jitter    time.Duration
	disturbed bool
}

// latencyBatch is how many runs of the maker's program may hold a frame up: few, since a frame that waits for others would be told as late by all sides.
const latencyBatch = 4

// latencyMetrics are what is reported of a load.
var latencyMetrics = []struct {
	name, unit string
	digits     int
	better     report.Better
	of         func(t *timed) float64
}{
	{"p50", "µs", 3, report.Lower, func(t *timed) float64 { return micro(t.times.ValueAtQuantile(50)) }},
	{"p99", "µs", 3, report.Lower, func(t *timed) float64 { return micro(t.times.ValueAtQuantile(99)) }},
	{"p99.9", "µs", 3, report.Lower, func(t *timed) float64 { return micro(t.times.ValueAtQuantile(99.9)) }},
	{"worst", "µs", 3, report.Lower, func(t *timed) float64 { return micro(t.worst.Nanoseconds()) }},
	{"jitter", "µs", 3, report.Lower, func(t *timed) float64 { return micro(t.jitter.Nanoseconds()) }},
	{"load", "Mpps", 4, "", func(t *timed) float64 { return t.load.sent.Rate() / 1e6 }},
	{"loss", "percent", 3, report.Lower, func(t *timed) float64 { return 100 * t.load.loss() }},
	{"cpu-per-packet", "ns", 1, "", func(t *timed) float64 { return ratio(1e9*busy(t.load.use), t.load.rate()) }},
}

func micro(ns int64) float64 { return float64(ns) / 1e3 }

// run measures. What it could measure is in the output also when there is an error.
func (q *latency) run(ctx context.Context) (*report.Output, error) {
	q.looks = 1
	err := q.each(ctx, q.measure, q.rows)
	return q.finish(), err
}

// measure is a turn's loads. The first turn of a side looks for its rate; those after it take the same, so that all turns are of one load.
func (q *latency) measure(ctx context.Context, c *flowCase, d device, t *turn) error {
	if q.found == nil {
		q.found = map[string]float64{}
	}
	key := c.name() + " " + t.Side
	if q.found[key] == 0 {
		began := time.Now()
		rate, err := q.rate(ctx, c, d, t)
		q.aside += time.Since(began)
		if err != nil {
			return err
		}
		q.found[key] = rate
	}
	if err := q.room.ends.Time(true); err != nil {
		return err
	}
	defer q.room.ends.Time(false)
	words := ""
	for _, part := range q.Parts {
		l, err := q.paced(ctx, c, d, t, part, q.found[key]*float64(part)/100)
		if err != nil {
			return fmt.Errorf("at %d %%: %w", part, err)
		}
		t.Loads = append(t.Loads, l)
		words += fmt.Sprintf("  %d %%: p50 %.1f p99 %.1f µs", part, micro(l.times.ValueAtQuantile(50)), micro(l.times.ValueAtQuantile(99)))
	}
	q.say("  %-14s of %.3f Mpps:%s%s", t.Side, q.found[key]/1e6, words, map[bool]string{true: "  disturbed"}[t.Disturbed])
	return nil
}

// rate is the highest that loses at most lossLimit. Where none is found it is half of what gets through without a pace.
func (q *latency) rate(ctx context.Context, c *flowCase, d device, t *turn) (float64, error) {
	full, err := q.room.load(ctx, pktgen.Order{Duration: 400 * time.Millisecond, Direction: c.Direction}, d.pids())
	if err != nil {
		return 0, err
	}
	if err := soundLoad(&full); err != nil {
		return 0, err
	}
	s, doubts := rateSearch{Most: 1.05 * full.rate(), Resolution: q.Resolution}, map[float64]bool{}
	s.try = func(ctx context.Context, rate float64, confirm bool) (bool, error) {
		o := pktgen.Order{Duration: time.Duration(q.Step * float64(time.Second)), Rate: rate, Direction: c.Direction, Batch: latencyBatch}
		if confirm {
			o.Duration *= 4
		}
		for try := 0; ; try++ { // by what others used, not by what was lost, as throughput does
			l, err := q.room.load(ctx, o, d.pids())
			if err != nil {
				return false, err
			}
			if !l.use.again(try) || q.late() {
				ok := l.loss() <= lossLimit
				if delete(doubts, rate); !ok && l.use.disturbed() {
					doubts[rate] = true
				}
				return ok, nil
			}
			t.Again++
		}
	}
	f, err := s.run(ctx)
	if err == nil && len(doubts) > 0 {
		q.note("%s: a trial in the search for %s's rate failed while something else ran, each time that it was made: its loads may be parts of less than it carries", c.name(), t.Side)
	}
	if err != nil {
		return 0, err
	}
	if f.Rate == 0 {
		q.note("%s: no rate of %s was found that loses at most %.1f %%; its loads are parts of half of what it carries without a pace", c.name(), t.Side, 100*lossLimit)
		return full.rate() / 2, nil
	}
	return f.Rate, nil
}

// paced is one load of which times are noted; one that was disturbed is repeated.
func (q *latency) paced(ctx context.Context, c *flowCase, d device, t *turn, part int, rate float64) (l timed, err error) {
	before := t.Disturbed
	t.Disturbed = false
	l.part = part
	o := pktgen.Order{Duration: time.Duration(q.Seconds * float64(time.Second)), Rate: rate, Direction: c.Direction, Batch: latencyBatch}
	if l.load, err = q.undisturbed(ctx, t, d, o); err != nil {
		return l, err
	}
	l.disturbed, t.Disturbed = t.Disturbed, t.Disturbed || before
	for _, dir := range []pktgen.Direction{pktgen.Out, pktgen.In} {
		x, err := q.room.ends.Times(dir)
		if err != nil {
			return l, err
		}
		if l.times == nil {
			l.times, l.worst, l.jitter = x.Histogram, x.Worst, x.Jitter
			continue
		}
		if n := x.Histogram.TotalCount(); n > 0 {
			all := l.times.TotalCount()
			l.jitter = time.Duration((float64(l.jitter)*float64(all) + float64(x.Jitter)*float64(n)) / float64(all+n))
			l.times.Merge(x.Histogram)
			l.worst = max(l.worst, x.Worst)
		}
	}
	if l.times.TotalCount() == 0 {
		return l, errors.New("no frame was timed")
	}
	return l, nil
}

// rows hands a case's figures to the report, a case for each part of the load.
func (q *latency) rows(c *flowCase, turns map[string][]turn) {
	for i, part := range q.Parts {
		inModes(fmt.Sprintf("%s/load-%d", c.name(), part), turns, func(name string, turns map[string][]turn) { q.part(name, i, turns) })
	}
}

// part is that of one part of the load.
func (q *latency) part(name string, i int, turns map[string][]turn) {
	for _, m := range latencyMetrics {
		for _, side := range sortedSides(turns) {
			row := report.Row{Scenario: q.Scenario, Case: name, Metric: m.name, Unit: m.unit, Better: m.better, Digits: m.digits, Side: side}
			var all *hdrhistogram.Histogram
			for _, t := range turns[side] {
				l := &t.Loads[i]
				row.Values = append(row.Values, m.of(l))
				if l.disturbed {
					row.Disturbed++
				}
				if all == nil {
					all = hdrhistogram.Import(l.times.Export())
				} else {
					all.Merge(l.times)
				}
			}
			if m.name == "p99" { // the curve is drawn once, beside the figure that is promised
				row.Curve = curve(all)
			}
			q.out.Add(row)
		}
	}
}

// curve is a distribution by parts that come closer to the whole tenfold.
func curve(h *hdrhistogram.Histogram) (list []report.Point) {
	if h == nil || h.TotalCount() == 0 {
		return nil
	}
	for _, part := range []float64{0.01, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 0.995, 0.999, 0.9995, 0.9999, 0.99999, 1} {
		list = append(list, report.Point{Part: part, Value: math.Round(float64(h.ValueAtQuantile(100*part))) / 1e3})
	}
	return list
}

func init() {
	register(scenario{place: 40, name: "latency", about: "how long frames are under way at 10, 50 and 90 % of the rate without loss, beside kernel and nftables", command: latencyCommand,
		needs: func() error { _, err := nftVersion(); return err },
		short: &stint{args: []string{"--load", "50", "--trials", "4", "--seconds", "0.5", "--step", "0.15"}, seconds: 55, memoryMiB: 500},
		table: &stint{args: []string{"--flows", "1,64k", "--peers", "kernel,nft-expert", "--trials", "5", "--seconds", "1", "--budget", "24h"}, seconds: 280, memoryMiB: 500},
		full:  &stint{args: []string{"--flows", "1,64k", "--trials", "10", "--seconds", "5", "--budget", "24h"}, seconds: 7200, memoryMiB: 500, parts: latencyParts()}})
}

// latencyParts are the whole table.
func latencyParts() (list []part) {
	for _, family := range []string{"4", "6"} {
		for _, size := range []string{"64", imix} {
			for _, d := range []string{"out", "both"} {
				list = append(list, part{[]string{"--sizes", size, "--family", family, "--direction", d}, 900})
			}
		}
	}
	return list
}

func latencyCommand() *cobra.Command {
	q := latency{traffic: traffic{Scenario: "latency"}}
	var f flowFlags
	c := &cobra.Command{
		Use:   "latency",
		Short: "how long frames are under way at parts of the rate without loss, beside kernel and nftables",
		Long: "Look for each side's highest rate with at most 0.1 % loss, then send at parts of it and note how long each frame is under way, from the program that makes it to the one\n" +
			"that judges it, by the kernel's one clock. Times are counted in an HdrHistogram of two digits: p50, p99, p99.9, the worst, and jitter, the mean difference between\n" +
			"the times of two frames that arrive one after the other. What the way without any device takes: demarc bench generator. Needs root, two CPUs and the package nftables.",
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cases, err := f.cases()
			if err != nil {
				return err
			}
			if q.Seconds < 0.1 || q.Step < 0.05 || q.Resolution < 0.001 || q.Resolution > 0.5 {
				return usageError{errors.New("--seconds must be at least 0.1, --step at least 0.05, --resolution from 0.001 to 0.5")}
			}
			for _, p := range q.Parts {
				if p < 1 || p > 100 {
					return usageError{fmt.Errorf("--load %d: want percent of the rate without loss, from 1 to 100", p)}
				}
			}
			if err := q.check(&f, cmd.Flags().Changed); err != nil {
				return err
			}
			q.Cases, q.Progress = cases, cmd.ErrOrStderr()
			out, err := q.run(cmd.Context())
			return q.deliver(cmd, &f, out, err)
		},
	}
	q.flags(c, &f)
	s := c.Flags()
	s.Lookup("peers").DefValue = "[kernel,nft-expert]"
	f.peers = []string{sideKernel, sideExpert}
	s.StringSliceVar(&f.sizes, "sizes", []string{"64"}, "bytes of frames on a wire, and imix")
	s.StringSliceVar(&f.flows, "flows", []string{"64k"}, "powers of two, such as 1,64k,1M")
	s.IntSliceVar(&q.Parts, "load", []int{10, 50, 90}, "percent of the rate without loss")
	s.Float64Var(&q.Seconds, "seconds", 1, "of each load")
	s.Float64Var(&q.Step, "step", 0.2, "seconds of each trial of the search; the confirming one takes four times as long")
	s.Float64Var(&q.Resolution, "resolution", 0.05, "of the search, as a part of the rate without a pace")
	return c
}
