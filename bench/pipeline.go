package bench

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"demarc/bench/report"
	"demarc/gateway/pureload"
)

// pipelineBench is one run of `demarc bench pipeline`: what a worker's pipeline takes of a packet, without device, kernel and generator.
type pipelineBench struct {
	sheet
	Rules   int
	Flows   []int
	Trials  int
	Packets int // of each trial
	Retries int // of trials of a figure that had hardly a calm part, all in all

	cpu int
}

// beginning is how many flows begin in a trial.
const beginning = 256 << 10

// pipelineAims are ns at most: of a packet by flows, and of the first packet of one with a list of 1,000 rules.
var pipelineAims = map[int]float64{64 << 10: 100, 1 << 20: 180}

const beginAim = 1000

func (q *pipelineBench) run(ctx context.Context) (err error) {
	began := time.Now()
	defer func() { q.machine.Seconds = math.Round(time.Since(began).Seconds()*10) / 10 }()
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if q.cpu, err = lastCPU(); err != nil {
		return err
	}
	back, err := stayOn(q.cpu)
	if err != nil {
		return err
	}
	defer back()
	for _, flows := range q.Flows {
		c := flowCase{Size: "64", Flows: flows, Rules: q.Rules}
		if err := q.one(ctx, c.name(), "packet", flows, pipelineAims[flows], func(l *pureload.Load, each pureload.Part) (float64, error) { return l.Packets(q.Packets, each) }); err != nil {
			return err
		}
	}
	aim := 0.0
	if q.Rules <= 1000 {
		aim = beginAim
	}
	c := flowCase{Size: "64", Flows: beginning, Rules: q.Rules}
	return q.one(ctx, c.name(), "new-flow", beginning, aim, (*pureload.Load).Begin)
}

// calmParts are those of a trial before and behind which the CPU was at its speed. Only they count, where they are a thirty-second of the trial and four at least: what another machine that shares the core takes is no part of what the pipeline does,
// and it comes and goes by the millisecond. Whether one counts is decided by other work than what is measured.
type calmParts struct {
	cpu   int
	was   bool // at its speed, when it was looked at last
	all   int  // packets
	parts int
	of    int // packets in them
	took  time.Duration
}

func (c *calmParts) part(packets int, took time.Duration) {
	c.all += packets
	is := yard.atSpeed(c.cpu)
	if c.was && is {
		c.parts, c.of, c.took = c.parts+1, c.of+packets, c.took+took
	}
	c.was = is
}

// packet is what one took in calm parts; false = they were too few.
func (c *calmParts) packet() (ns float64, ok bool) {
	if c.parts < 4 || c.of*32 < c.all {
		return 0, false
	}
	return float64(c.took.Nanoseconds()) / float64(c.of), true
}

// one measures a figure: a trial that nobody counts, which touches all memory, and then so many; one beside which something else ran is made again, twice at most, and one that has hardly a calm part as often as Retries are left.
func (q *pipelineBench) one(ctx context.Context, name, metric string, flows int, aim float64, trial func(*pureload.Load, pureload.Part) (float64, error)) (err error) {
	if err := enoughMemory(100 + 4*flows*400>>20); err != nil {
		return err
	}
	l, err := pureload.Open(flows, q.Rules)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, l.Close()) }()
	if metric == "packet" {
		if err := l.Establish(); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	if _, err := trial(l, nil); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	var values []float64
	disturbed, due, tries := 0, dueOf(ctx), q.Retries
	for len(values) < q.Trials {
		for try := 0; ; try++ {
			if ctx.Err() != nil {
				return fmt.Errorf("interrupted: %w", ctx.Err())
			}
			before, err := sampleCPU(nil)
			if err != nil {
				return err
			}
			calm := calmParts{cpu: q.cpu, was: yard.atSpeed(q.cpu)}
			ns, err := trial(l, calm.part)
			if err != nil {
				return fmt.Errorf("%s: %w", name, err)
			}
			time.Sleep(leastWatch - time.Since(before.at)) // the tick is too coarse for less
			after, err := sampleCPU(nil)
			if err != nil {
				return err
			}
			u := before.until(after)
			at, calmly := calm.packet()
			if calmly {
				ns = at
			}
			_ = yard.look(q.cpu) // for the report: calm parts are what decides
			wait := !calmly && tries > 0 && (due.IsZero() || time.Now().Before(due))
			if u.again(try) || wait {
				if wait {
					tries--
				}
				q.machine.Repeated++
				continue
			}
			if u.disturbed() || !calmly {
				disturbed++
				q.machine.Disturbed++
			}
			values = append(values, ns)
			break
		}
	}
	r := report.Result{Scenario: q.scenario, Case: name, Metric: metric, Unit: "ns", Better: report.Lower, Demarc: report.OfMany(values).Round(1), Peers: map[string]report.Peer{}}
	if r.Demarc.Disturbed = disturbed; aim > 0 {
		r.Hold("median", aim)
		r.Limit.Aim = true
	}
	q.note(r)
	return nil
}

func init() {
	register(scenario{place: 9, name: "pipeline", about: "what the pipeline takes of a packet and of a new flow by itself, without device and kernel", command: pipelineCommand,
		short: &stint{args: []string{"--flows", "1,64k", "--trials", "4"}, seconds: 10, memoryMiB: 600},
		table: &stint{args: []string{"--trials", "10"}, seconds: 32, memoryMiB: 1800},
		full:  &stint{args: []string{"--trials", "20", "--packets", "4194304"}, seconds: 120, memoryMiB: 1800}})
}

func pipelineCommand() *cobra.Command {
	q := pipelineBench{sheet: sheet{scenario: "pipeline"}}
	var asJSON bool
	var flows []string
	c := &cobra.Command{
		Use:   "pipeline",
		Short: "what the pipeline takes of a packet and of a new flow by itself, without device and kernel",
		Long: "Give one worker's pipeline bursts of 64 frames of 64 bytes by hand, as a kernel that copies leaves them, with an access list of which the last rule matches, NAT, a rate limit and\n" +
			"counters, and measure what it takes of a packet of established flows in random order, and of the first packet of a flow. Making the frames is not in it, and each must come out to be\n" +
			"sent. Needs neither root nor a device; a CPU, and 1.8 GiB of free memory for a million flows.",
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			for _, s := range flows {
				n, err := parseFlows(s)
				if err != nil {
					return err
				}
				if n > 1<<20 {
					return usageError{fmt.Errorf("--flows %q: want at most 1M", s)}
				}
				if slices.Contains(q.Flows, n) {
					return usageError{fmt.Errorf("--flows %q is given twice", s)}
				}
				q.Flows = append(q.Flows, n)
			}
			if q.Trials < 1 || q.Packets < 1 || q.Retries < 0 || q.Rules < 1 || q.Rules > 10_000 {
				return usageError{errors.New("--trials and --packets must be more than 0, --retries 0 or more, --rules from 1 to 10,000")}
			}
			q.Progress = cmd.ErrOrStderr()
			err := q.run(cmd.Context())
			if len(q.results) == 0 {
				return err
			}
			rep := q.report(version(), 1)
			rep.Notes = append(rep.Notes, fmt.Sprintf("pipeline: bursts of 64 frames of 64 bytes in one process: parsing, session, limits, translation, neighbour, rewriting, counters; an access list of %d rules of which the last one matches; frames are made between bursts, and that is not in it. Counted are the milliseconds before and behind which the CPU was at its speed; a run that had hardly any counts all, and is called disturbed. No peer: nobody else's path can be taken out of its kernel", q.Rules))
			if asJSON {
				return errors.Join(err, rep.JSON(cmd.OutOrStdout()))
			}
			return errors.Join(err, q.page(cmd.OutOrStdout(), rep))
		},
	}
	f := c.Flags()
	f.BoolVar(&asJSON, "json", false, "print one JSON object; progress goes to standard error")
	f.StringSliceVar(&flows, "flows", []string{"1", "64k", "1M"}, "established flows, powers of two")
	f.IntVar(&q.Rules, "rules", 1000, "of the access list; the last one matches")
	f.IntVar(&q.Trials, "trials", 5, "of each figure")
	f.IntVar(&q.Packets, "packets", 2<<20, "of each trial with established flows")
	f.IntVar(&q.Retries, "retries", 8, "of trials in which a CPU was slowed nearly all the while, all in all of each figure")
	f.String("binary", "", "")
	_ = f.MarkHidden("binary") // it exists; the suite gives it to all
	return c
}

// page is what a person reads.
func (q *pipelineBench) page(w io.Writer, r *report.Output) error {
	var b strings.Builder
	fmt.Fprintf(&b, "\ndemarc bench pipeline\nmachine  %s\ndemarc   %s, %s\n", machineWords(&r.Machine), r.Machine.Demarc, r.Machine.Go)
	if err := r.Table(&b); err != nil {
		return err
	}
	for _, n := range r.Notes {
		fmt.Fprintf(&b, "\n- %s\n", n)
	}
	_, err := io.WriteString(w, b.String())
	return err
}
