package bench

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"time"

	"github.com/spf13/cobra"

	"demarc/acl"
	"demarc/bench/pktgen"
	"demarc/bench/report"
	"demarc/configs"
)

// aclLists is one run of `demarc bench acl`.
type aclLists struct {
	traffic
	Lists   []int   // rules of each case
	Seconds float64 // of each load
}

// nftRules are the longest lists that nftables is measured with.
const nftRules = 1000

const nftTooMany = "with 10,000 rules the verdict maps of nft-expert are 190 MB of text, and a chain of all rules begins fewer flows a second than a bench has time for"

// aclMost is the longest list that the compiler is asked for.
const aclMost = configs.MaxRules

// aclMetrics are what is reported of a turn.
var aclMetrics = []struct {
	name, unit string
	digits     int
	better     report.Better
	of         func(t *turn) float64
}{
	{"rate", "Mpps", 4, report.Higher, func(t *turn) float64 { return t.Full.rate() / 1e6 }},
	{"loss", "percent", 3, "", func(t *turn) float64 { return 100 * t.Full.loss() }},
	{"new-flows", "Mpps", 4, report.Higher, func(t *turn) float64 { return t.New / 1e6 }},
	{"load", "ms", 1, "", func(t *turn) float64 { return t.Load.Seconds() * 1e3 }},
}

// run measures. What it could measure is in the output also when there is an error.
func (q *aclLists) run(ctx context.Context) (*report.Output, error) {
	var served []flowCase
	var pure []report.Row
	for _, n := range q.Lists {
		c := flowCase{Size: "64", Flows: q.Cases[0].Flows, Rules: n, Offload: n <= nftRules} // where there is somebody beside it
		rows, fits, err := q.compiler(&c)
		if err != nil {
			return q.finish(), fmt.Errorf("%s: %w", c.name(), err)
		}
		pure = append(pure, rows...)
		if fits {
			served = append(served, c)
		}
	}
	q.Cases = served
	q.note("new flows: what ran beside them is looked at over %v at least, since the kernel counts by the tick, and they may take a tenth of that", leastWatch)
	err := q.each(ctx, q.measure, q.rows)
	if q.out != nil {
		for _, r := range pure {
			q.out.Add(r)
		}
	}
	return q.finish(), err
}

// lookups is how many decisions are timed at once.
const lookups = 1 << 18

// compiler measures the list by itself: to make a program of it, and to ask that. fits says that a policy can hold it.
func (q *aclLists) compiler(c *flowCase) (rows []report.Row, fits bool, err error) {
	p := c.plan()
	rules, err := makeRules(q.Seed, c.Rules, &p)
	if err != nil {
		return nil, false, err
	}
	keys := planKeys(&p, 17)
	rnd := rand.New(rand.NewPCG(q.Seed, 2))
	rnd.Shuffle(len(keys), func(i, j int) { keys[i], keys[j] = keys[j], keys[i] })
	var compile, lookup []float64
	size := 0
	for range 3 {
		began := time.Now()
		prog, err := acl.Compile(rules)
		if err != nil {
			return nil, false, err
		}
		compile = append(compile, time.Since(began).Seconds()*1e3)
		size = prog.Bytes()
		began = time.Now()
		last := 0
		for i := range lookups {
			if m := prog.Lookup(&keys[i%len(keys)]); m.Found && m.Index == uint32(c.Rules-1) {
				last++
			}
		}
		took := time.Since(began)
		if last != lookups {
			return nil, false, fmt.Errorf("the last rule decided %d of %d times", last, lookups)
		}
		lookup = append(lookup, float64(took.Nanoseconds())/lookups)
	}
	add := func(metric, unit string, digits int, values []float64) {
		rows = append(rows, report.Row{Scenario: q.Scenario, Case: c.name(), Metric: metric, Unit: unit, Digits: digits, Side: report.Us, Values: values})
	}
	add("compile", "ms", 3, compile)
	add("lookup", "ns", 1, lookup)
	add("program", "KiB", 1, []float64{float64(size) / 1024})
	text, err := policy(rules, []netip.Prefix{insideNet, insideLink}, pool, trafficRate, outsideVia, insideVia, outsideNet)
	if err != nil {
		return nil, false, err
	}
	q.say("%s: compiled in %.1f ms, %.1f ns a decision, %d KiB", c.name(), report.Of(compile).Median, report.Of(lookup).Median, size>>10)
	if len(text) > configs.MaxBytes {
		q.note("%s: only compiler and program are measured: written out as a policy these rules are %.1f MB, and a policy is at most %d MiB", c.name(), float64(len(text))/1e6, configs.MaxBytes>>20)
		return rows, false, nil
	}
	return rows, true, nil
}

// measure is a turn's load on established flows; their first packets were counted before it.
func (q *aclLists) measure(ctx context.Context, _ *flowCase, d device, t *turn) (err error) {
	switch x := d.(type) {
	case *demarc:
		t.Load = x.took
	case *kernel:
		t.Load = x.took
	}
	o := pktgen.Order{Duration: time.Duration(q.Seconds * float64(time.Second))}
	if t.Full, err = q.undisturbed(ctx, t, d, o); err != nil {
		return err
	}
	q.say("  %-11s %7.3f Mpps established, %7.3f million new flows/s, loaded in %.0f ms%s", t.Side, t.Full.rate()/1e6, t.New/1e6, t.Load.Seconds()*1e3, disturbedWords(t))
	return nil
}

// rows hands a case's figures to the report.
func (q *aclLists) rows(c *flowCase, turns map[string][]turn) {
	inModes(c.name(), turns, q.rowsOf)
}

func (q *aclLists) rowsOf(name string, turns map[string][]turn) {
	for _, m := range aclMetrics {
		addRow(q.out, report.Row{Scenario: q.Scenario, Case: name, Metric: m.name, Unit: m.unit, Better: m.better, Digits: m.digits}, turns, func(t *turn) ([]float64, bool) {
			if m.name == "load" && t.Side == sideKernel {
				return nil, false // it has no rules
			}
			if m.name == "new-flows" { // established once, so what was disturbed cannot be repeated
				return []float64{m.of(t)}, t.BegunBeside.disturbed()
			}
			return []float64{m.of(t)}, t.Disturbed
		})
	}
}

func init() {
	register(scenario{place: 60, name: "acl", about: "access lists of 10 to 100,000 rules: established and new flows, compiling", command: aclCommand,
		needs: func() error { _, err := nftVersion(); return err },
		short: &stint{args: []string{"--lists", "1000,100000", "--trials", "4", "--seconds", "0.3", "--offload", "never"}, seconds: 31, memoryMiB: 600},
		table: &stint{args: []string{"--trials", "4", "--seconds", "0.5", "--budget", "24h"}, seconds: 260, memoryMiB: 1000},
		full:  &stint{args: []string{"--flows", "64k", "--trials", "10", "--seconds", "2", "--budget", "24h"}, seconds: 1300, memoryMiB: 1000}})
}

func aclCommand() *cobra.Command {
	q := aclLists{traffic: traffic{Scenario: "acl"}}
	var f flowFlags
	c := &cobra.Command{
		Use:   "acl",
		Short: "access lists of 10 to 100,000 rules: established and new flows, and what compiling takes",
		Long: "Make lists of rules as an enterprise's edge has them (in the manner of ClassBench, from a seed) of which only the last rule matches, and measure for each: what the compiler takes, what a\n" +
			"decision takes, and beside kernel and nftables in turns the rate of 64-byte frames of flows that are established, and of first packets that begin a flow (all are offered once, each is answered).\n" +
			"\"load\" is from start to forwarding for the gateway, and `nft -f` for nftables. nftables takes part up to 1,000 rules. Lists that a policy has no room for are compiled and asked only. Needs root,\n" +
			"two CPUs and the package nftables.",
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cases, err := f.cases()
			if err != nil {
				return err
			}
			if len(cases) != 1 {
				return usageError{errors.New("--flows: want one number")}
			}
			if q.Seconds < 0.1 {
				return usageError{errors.New("--seconds must be at least 0.1")}
			}
			if len(q.Lists) == 0 {
				return usageError{errors.New("--lists: want numbers of rules")}
			}
			for _, n := range q.Lists {
				if n < 1 || n > aclMost {
					return usageError{fmt.Errorf("--lists %d: want from 1 to %d rules", n, aclMost)}
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
	q.peerFlags(c, &f)
	q.offloadFlag(c)
	s := c.Flags()
	f.sizes, f.families, f.directions = []string{"64"}, []string{"4"}, []string{"out"}
	q.Rules, q.Begin, q.NewFlows = 1, 1e6, true
	s.IntSliceVar(&q.Lists, "lists", []int{10, 100, 1000, 10000, 50000, 100000}, "numbers of rules")
	s.StringSliceVar(&f.flows, "flows", []string{"16k"}, "a power of two, such as 16k")
	s.Float64Var(&q.Seconds, "seconds", 1, "of each load")
	return c
}
