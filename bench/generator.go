package bench

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"demarc/bench/pktgen"
	"demarc/bench/report"
)

// generator is one run of `demarc bench generator`: what the bench's own maker and judge can do, with nothing between them.
type generator struct {
	traffic
	Seconds float64
	Rate    float64 // frames per second of the load whose times are noted
}

// generatorTurn is one load without a pace, and one with.
type generatorTurn struct {
	full, paced trial
	times       timed
	disturbed   bool
}

var generatorMetrics = []struct {
	name, unit string
	digits     int
	better     report.Better
	of         func(c *flowCase, t *generatorTurn) float64
}{
	{"made", "Mpps", 4, report.Higher, func(_ *flowCase, t *generatorTurn) float64 { return t.full.sent.Rate() / 1e6 }},
	{"judged", "Mpps", 4, report.Higher, func(_ *flowCase, t *generatorTurn) float64 { return t.full.rate() / 1e6 }},
	{"judged-gbit-l2", "Gbit/s", 4, "", func(c *flowCase, t *generatorTurn) float64 { return t.full.rate() * c.bytes() * 8 / 1e9 }},
	{"cpu-to-make", "ns", 1, "", func(_ *flowCase, t *generatorTurn) float64 {
		return ratio(1e9*t.full.use.cpus[makerCPU], t.full.sent.Rate())
	}},
	{"cpu-to-judge", "ns", 1, "", func(_ *flowCase, t *generatorTurn) float64 {
		return ratio(1e9*t.full.use.cpus[deviceCPU], t.full.rate())
	}},
	{"wrong", "frames", 0, report.Lower, func(_ *flowCase, t *generatorTurn) float64 { return float64(t.full.wrong()) }},
	{"p50", "µs", 3, "", func(_ *flowCase, t *generatorTurn) float64 { return micro(t.times.times.ValueAtQuantile(50)) }},
	{"p99", "µs", 3, "", func(_ *flowCase, t *generatorTurn) float64 { return micro(t.times.times.ValueAtQuantile(99)) }},
	{"p99.9", "µs", 3, "", func(_ *flowCase, t *generatorTurn) float64 { return micro(t.times.times.ValueAtQuantile(99.9)) }},
	{"worst", "µs", 3, "", func(_ *flowCase, t *generatorTurn) float64 { return micro(t.times.worst.Nanoseconds()) }},
	{"jitter", "µs", 3, "", func(_ *flowCase, t *generatorTurn) float64 { return micro(t.times.jitter.Nanoseconds()) }},
}

// run measures. What it could measure is in the output also when there is an error.
func (q *generator) run(ctx context.Context) (*report.Output, error) {
	q.began = time.Now()
	due := dueOf(ctx)
	q.Budget = within(q.Budget, due)
	q.plannedT = len(q.Cases) * q.Trials
	q.out = &report.Output{Schema: report.Schema, Machine: machine(), Results: []report.Result{}}
	for i := range q.Cases {
		c := &q.Cases[i]
		q.due = share(time.Now(), due, 1, float64(len(q.Cases)-i))
		turns, err := q.oneCase(ctx, c)
		q.rows(c, turns)
		if err != nil {
			return q.end(), fmt.Errorf("%s: %w", c.name(), err)
		}
	}
	return q.end(), nil
}

func (q *generator) end() *report.Output {
	out := q.finish()
	out.Machine.Mode, out.Machine.Asked, out.Machine.Nft = "", "", ""
	out.Notes = append(slices.Clone(q.notes),
		"the maker's device is the other end of the judge's: nothing is between them. No gateway and no peer takes part, so what is called demarc here is the bench's own generator",
		fmt.Sprintf("frames are made on CPU %d and judged on CPU %d, where the device under test has its work otherwise", makerCPU, deviceCPU),
		"times are what every latency of the other benches has in it: from the program that makes a frame to the one that judges it",
	)
	return out
}

func (q *generator) oneCase(ctx context.Context, c *flowCase) (turns []generatorTurn, err error) {
	if q.room, err = openDirect(c.plan()); err != nil {
		return nil, err
	}
	r := q.room
	defer func() { err = errors.Join(err, r.Close()) }()
	threads, err := r.napi(nsDst, devDst)
	if err != nil {
		return nil, err
	}
	if _, _, err := r.establish(ctx, c.Flows, establishRate); err != nil {
		return nil, fmt.Errorf("establish %d flows: %w", c.Flows, err)
	}
	d := nothing{threads}
	rounds := pacer{due: q.due}
	for n := range q.Trials {
		if !rounds.fits(time.Now()) {
			q.note("%s", fewer(c.name(), n, q.Trials, "loads"))
			break
		}
		var t generatorTurn
		var x turn
		o := pktgen.Order{Duration: time.Duration(q.Seconds * float64(time.Second))}
		if t.full, err = q.undisturbed(ctx, &x, d, o); err != nil {
			return turns, fmt.Errorf("load %d: %w", n+1, err)
		}
		o.Rate, o.Batch = q.Rate, latencyBatch
		if err := r.ends.Time(true); err != nil {
			return turns, err
		}
		if t.paced, err = q.undisturbed(ctx, &x, d, o); err != nil {
			return turns, fmt.Errorf("paced load %d: %w", n+1, err)
		}
		times, err := r.ends.Times(pktgen.Out)
		if err := errors.Join(err, r.ends.Time(false)); err != nil {
			return turns, err
		}
		t.times, t.disturbed = timed{times: times.Histogram, worst: times.Worst, jitter: times.Jitter}, x.Disturbed
		turns = append(turns, t)
		q.doneT++
		q.out.Machine.Again += x.Again
		q.say("%s: %.3f Mpps made, %.3f judged, under way p50 %.1f p99 %.1f µs%s", c.name(), t.full.sent.Rate()/1e6, t.full.rate()/1e6,
			micro(times.Histogram.ValueAtQuantile(50)), micro(times.Histogram.ValueAtQuantile(99)), map[bool]string{true: "  disturbed"}[x.Disturbed])
	}
	return turns, nil
}

// nothing is no device under test.
type nothing struct{ threads []int }

func (w nothing) name() string                                 { return "nothing" }
func (w nothing) pids() []int                                  { return w.threads }
func (w nothing) start(context.Context) error                  { return nil }
func (w nothing) stop() error                                  { return nil }
func (w nothing) sessions(context.Context) (int, error)        { return 0, nil }
func (w nothing) missing(context.Context, int) (string, error) { return "", nil }

func (q *generator) rows(c *flowCase, turns []generatorTurn) {
	for _, m := range generatorMetrics {
		row := report.Row{Scenario: q.Scenario, Case: c.name(), Metric: m.name, Unit: m.unit, Better: m.better, Digits: m.digits, Side: report.Us}
		for i := range turns {
			row.Values = append(row.Values, m.of(c, &turns[i]))
			if turns[i].disturbed {
				row.Disturbed++
			}
		}
		if len(row.Values) > 0 {
			q.out.Add(row)
		}
	}
}

func init() {
	register(scenario{place: 8, name: "generator", about: "the bench's own frames with nothing between maker and judge: the ceiling of all rates, the floor of all times", command: generatorCommand,
		short: &stint{args: []string{"--trials", "4", "--seconds", "0.5"}, seconds: 11, memoryMiB: 300},
		table: &stint{args: []string{"--trials", "4", "--seconds", "0.5"}, seconds: 11, memoryMiB: 300},
		full:  &stint{args: []string{"--sizes", "64,128,512,1518,imix", "--flows", "1,64k,1M", "--family", "4,6"}, seconds: 300, memoryMiB: 800}})
}

func generatorCommand() *cobra.Command {
	q := generator{traffic: traffic{Scenario: "generator", Budget: 5 * time.Minute}}
	f := flowFlags{directions: []string{"out"}}
	var rate float64
	c := &cobra.Command{
		Use:   "generator",
		Short: "what the bench's own maker and judge of frames can do, with nothing between them",
		Long: "Make frames as fast as CPU 0 can and judge them on CPU 1, over one veth pair with nothing between: no rate of another bench can be above these. Then make them at a\n" +
			"pace and note how long they are under way: no time of another bench can be below these. Needs root and two CPUs.",
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) (err error) {
			if q.Cases, err = f.cases(); err != nil {
				return err
			}
			if q.Trials < 1 || q.Seconds < 0.1 || rate <= 0 {
				return usageError{errors.New("--trials and --rate must be more than 0, --seconds at least 0.1")}
			}
			q.Rate, q.Progress = rate*1e6, cmd.ErrOrStderr()
			out, err := q.run(cmd.Context())
			return q.deliver(cmd, &f, out, err)
		},
	}
	s := c.Flags()
	s.BoolVar(&f.asJSON, "json", false, "print one JSON object; progress goes to standard error")
	s.StringSliceVar(&f.sizes, "sizes", []string{"64", "1518"}, "bytes of frames on a wire, and imix")
	s.StringSliceVar(&f.flows, "flows", []string{"64k"}, "powers of two, such as 1,64k,1M")
	s.StringSliceVar(&f.families, "family", []string{"4"}, "4, 6, or 4,6")
	s.IntVar(&q.Trials, "trials", 5, "loads of each case")
	s.Float64Var(&q.Seconds, "seconds", 1, "of each load")
	s.StringVar(&q.Binary, "binary", "", "not used")
	_ = s.MarkHidden("binary") // the tests give it to every bench
	s.Float64Var(&rate, "rate", 0.5, "million frames per second of the loads whose times are noted")
	return c
}
