package bench

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
)

// usageError is a wrong call; the command line tells it by its method.
type usageError struct{ error }

// Usage marks it.
func (usageError) Usage() {}

func noArgs(cmd *cobra.Command, args []string) error {
	if err := cobra.NoArgs(cmd, args); err != nil {
		return usageError{err}
	}
	return nil
}

// Command is `demarc bench` of a program that was built as version.
func Command(version string) *cobra.Command {
	linked = version
	q := suite{}
	var asJSON, asTable, whole bool
	var resume string
	var about strings.Builder
	for _, s := range scenarios() {
		if s.short != nil || s.full != nil {
			fmt.Fprintf(&about, "  %-11s %s\n", s.name, s.about)
		}
	}
	c := &cobra.Command{
		Use:   "bench",
		Short: "measure the gateway beside its peers: one scenario, or all of them in 12 minutes",
		Long: "Without the name of a bench: run a short plan of all scenarios, at most 12 minutes, with --table each row of their tables, two hours and a half, with --full all cases of these, fifteen.\n" + about.String() +
			"The gateway and its peers take turns on the same devices in the same run. A figure is a median with the least and the most, and a difference\n" +
			"inside the spread is called unresolved. Loads during which something else used the machine are repeated, or marked. Prints a table and writes\n" +
			"results.json (docs/bench/results.schema.json), report.html and progress.log; what is done is there also after an interruption, which is said. The longer plans are measured in\n" +
			"parts, and --resume goes on with those that are missing: the same program on the same machine only. Exit status 1\n" +
			"when a scenario failed or a figure is not as promised. Needs root, two CPUs, and the packages of the peers.",
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			switch {
			case asTable && whole || resume != "" && asTable:
				return usageError{errors.New("--table, --full and --resume: a run has one plan, and one that goes on has its own")}
			case asTable:
				q.Plan = planTable
			case whole:
				q.Plan = planFull
			}
			if resume != "" {
				if q.Dir != "" {
					return usageError{errors.New("--resume and --out: a run that goes on writes where it was")}
				}
				q.Dir, q.Resume, q.Plan = resume, true, planOf(resume)
			}
			if err := q.choose(); err != nil {
				return usageError{err}
			}
			if q.Dir == "" {
				q.Dir = filepath.Join("bench-results", time.Now().UTC().Format("20060102-150405"))
			}
			switch {
			case q.bites() && !cmd.Flags().Changed("within"):
				q.Budget = 0
			case q.Budget < leastBudget:
				return usageError{fmt.Errorf("--within %s: want at least %s", q.Budget, leastBudget)}
			}
			q.Progress = cmd.ErrOrStderr()
			err := q.run(cmd.Context())
			if q.out.Scenarios == nil {
				return err
			}
			if asJSON {
				return errors.Join(err, q.out.JSON(cmd.OutOrStdout()))
			}
			return errors.Join(err, q.print(cmd.OutOrStdout()))
		},
	}
	f := c.Flags()
	f.BoolVar(&asTable, "table", false, "each row of the table of each scenario, with as many turns as resolve a difference: two hours and a half, one of them the soak; what a sample is made of")
	f.BoolVar(&whole, "full", false, "the whole table of each scenario, all its cases with each other: some fifteen hours")
	f.DurationVar(&q.Budget, "within", shortBudget, "that the run ends in, its end included: with less time figures of the short plan are of fewer turns, and of the others, which have no end by default, no part is begun that would end later")
	f.StringVar(&resume, "resume", "", "go on in the `directory` of a run with --table or --full that has ended early: its parts are kept, what is missing is measured")
	f.StringSliceVar(&q.Only, "scenarios", nil, "only these, of those above")
	f.StringVar(&q.Dir, "out", "", "`directory` for the results; bench-results/TIME by default")
	f.BoolVar(&asJSON, "json", false, "print results.json instead of a table")
	f.StringVar(&q.Binary, "binary", "", "the gateway's binary")
	_ = f.MarkHidden("binary") // it exists
	for _, s := range scenarios() {
		c.AddCommand(s.command())
	}
	c.AddCommand(compareCommand(), historyCommand(), pageCommand(), figuresCommand())
	return c
}

func init() {
	register(scenario{place: 5, name: "quick", about: "64-byte UDP of 64k flows beside nftables", command: quickCommand, needs: func() error { _, err := nftVersion(); return err }})
}

func quickCommand() *cobra.Command {
	q := quick{Binary: "/proc/self/exe"}
	var asJSON bool
	var ruleset string
	var offer float64
	c := &cobra.Command{
		Use:   "quick",
		Short: "64-byte UDP, 64k flows, NAT, 1,000 rules, a rate limit: gateway and nftables in turns",
		Long: "Send the same 64-byte UDP frames of 64k flows through the gateway and through the kernel with nftables, in turns, on the same veth devices\n" +
			"in namespaces of the bench's own. Both translate addresses, have the same 1,000 rules (the last one matches), a rate limit that cuts nothing,\n" +
			"and counters. A frame counts only when it arrives with the right translated source, checksums, flow and sequence number.\n" +
			"CPU 0 makes frames, CPU 1 moves them. Needs root and the package nftables. Takes about 90 s.",
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			switch {
			case q.Pairs < 1 || q.Seconds <= 0 || q.Step <= 0:
				return usageError{errors.New("--pairs, --seconds and --step must be more than 0")}
			case q.Flows > maxQuickFlows:
				return usageError{fmt.Errorf("--flows %d: at most %d, so that a pool of 16 addresses has ports for all", q.Flows, maxQuickFlows)}
			case !slices.Contains([]string{"auto", "zerocopy", "copy", "generic"}, q.Mode):
				return usageError{fmt.Errorf("--mode %q: want auto, zerocopy, copy or generic", q.Mode)}
			case !slices.Contains([]string{"auto", "always", "never"}, q.Offload):
				return usageError{fmt.Errorf("--offload %q: want auto, always or never", q.Offload)}
			case q.Rules < 1 || offer < 0:
				return usageError{errors.New("--rules must be more than 0, --offer at least 0")}
			}
			q.Rate, q.Offer = benchRate, offer*1e6
			q.Progress = cmd.ErrOrStderr()
			out, err := q.run(cmd.Context())
			if len(out.Pairs) == 0 && out.Refused == "" {
				return err
			}
			rep := q.report(out, version())
			if ruleset != "" {
				if err := os.WriteFile(ruleset, []byte(out.Ruleset), 0o644); err != nil {
					return err
				}
			}
			if asJSON {
				err = errors.Join(err, rep.JSON(cmd.OutOrStdout()))
			} else {
				err = errors.Join(err, q.table(cmd.OutOrStdout(), out, rep))
			}
			if err == nil && out.Refused != "" {
				err = fmt.Errorf("no ratio: %s, so the two did not do the same work", out.Refused)
			}
			return err
		},
	}
	f := c.Flags()
	f.BoolVar(&asJSON, "json", false, "print one JSON object; progress goes to standard error")
	f.IntVar(&q.Pairs, "pairs", 5, "turns of each side")
	f.Float64Var(&q.Seconds, "seconds", 1, "of each load at full speed")
	f.Float64Var(&q.Step, "step", 0.25, "seconds of each step of the search for the highest rate without loss")
	f.Float64Var(&offer, "offer", 4, "million frames per second at full load, the same for both; 0 = as many as CPU 0 makes")
	f.IntVar(&q.Flows, "flows", 65536, "a power of two")
	f.IntVar(&q.Rules, "rules", 1000, "of the access list; the last one matches")
	f.DurationVar(&q.Budget, "budget", 90*time.Second, "no disturbed pair is repeated past it")
	f.StringVar(&ruleset, "ruleset", "", "write the whole nftables ruleset to this `file`")
	f.StringVar(&q.Mode, "mode", "auto", "of the gateway's ports: auto, zerocopy, copy, generic")
	f.StringVar(&q.Offload, "offload", "auto", "of the gateway's ports: auto, always, never")
	f.StringVar(&q.Binary, "binary", q.Binary, "the gateway's binary")
	f.StringVar(&q.BreakStage, "break", "", "switch a stage of the gateway off; the bench must then refuse the ratio")
	for _, hidden := range []string{"binary", "break"} {
		_ = f.MarkHidden(hidden) // they exist
	}
	return c
}

// maxQuickFlows is what a pool of 16 addresses surely has ports for, however the hosts fall on them.
const maxQuickFlows = 65536

// benchRate is the limit of both sides, bit/s of IP in each direction: ten times what 64-byte frames reach here.
const benchRate = 10_000_000_000
