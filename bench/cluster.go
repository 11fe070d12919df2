package bench

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"demarc/gateway/api"
	"demarc/gateway/trio"
)

// clusterBench is one run of `demarc bench cluster`.
type clusterBench struct {
	sheet
	Rows      []string // of clusterRows
	Commits   int      // near
	FarEach   int      // commits of each case with a far site
	RoundTrip time.Duration
	Large     int // applies of the large policy with traffic running
	Applies   int // of a large policy, one after the other
	Deaths    int // of the leader
	Rules     int // of the large policy
	Tenants   int
	Seed      uint64
	Budget    time.Duration // no disturbed batch is repeated past it
	Near      time.Duration // one way to the witness where all are near, to see that the figures show it
	Binary    string

	began  time.Time
	number int // of labs made
}

// clusterRows are what it measures, in this order. With what is in limits a row fails.
var clusterRows = []string{"commit", "death", "far", "large", "applies"}

// What was promised.
const (
	commitMs     = 60.0   // p99, all near
	farMs        = 3000.0 // a commit with a far site
	largeSeconds = 2.0    // an apply of the large policy
	acceptedMs   = 3000.0 // from the leader's death to a change that is served
	witnessMB    = 40.0   // resident
	directoryMiB = 512.0
)

// batch is how many commits are looked at together for what else ran: /proc/stat knows a second to two in a hundred.
const batch = 25

// watched is what else ran while fn did.
func watched(t *trio.Trio, fn func() error) (u usage, err error) {
	slowdown, err := yard.around(func() error {
		before, err := sampleCPU(t.Pids())
		if err != nil {
			return err
		}
		if err := fn(); err != nil {
			return err
		}
		after, err := sampleCPU(t.Pids())
		u = before.until(after)
		return err
	})
	u.slowdown = slowdown
	return u, err
}

// open makes three nodes that agree. far is how long frames take one way from a node to the switch.
func (q *clusterBench) open(ctx context.Context, x *texts, wait map[string]time.Duration, roundTrip time.Duration) (*trio.Trio, *far, error) {
	q.number++
	dir := filepath.Join(dirRun, strconv.Itoa(q.number))
	f := &far{wait: wait}
	t, err := trio.New(trio.Options{Lab: labName, Dir: dir, Binary: q.Binary, RoundTrip: roundTrip, Gateway: x.node(), Wire: f.wire})
	if err != nil {
		return nil, nil, err
	}
	first := filepath.Join(dir, "first.toml")
	err = os.WriteFile(first, []byte(x.small()), 0o600)
	if err == nil {
		err = t.Begin(ctx, first, time.Minute+20*roundTrip)
	}
	if err == nil && q.machine.Mode == "" {
		var modes []string
		for _, n := range t.Gateways() {
			var s *api.Status
			if s, err = n.Status(ctx); err == nil {
				modes = append(modes, n.Name+" "+modesOf(s))
			}
		}
		q.machine.Mode = strings.Join(modes, "; ")
	}
	if err != nil {
		return nil, nil, errors.Join(err, t.Close())
	}
	return t, f, nil
}

// modesOf is modes without the ports' names where all are alike.
func modesOf(s *api.Status) string {
	found := map[string]bool{}
	for _, p := range s.Ports {
		for _, q := range p.Queues {
			found[fmt.Sprintf("%s (%s attach)", q.Mode, p.Attach)] = true
		}
	}
	if len(found) == 1 {
		for m := range found {
			return m
		}
	}
	return modes(s)
}

// run measures. What it could measure is there also when there is an error.
func (q *clusterBench) run(ctx context.Context) (err error) {
	q.began = time.Now()
	if runtime.NumCPU() < 2 {
		return errors.New("the bench needs two CPUs")
	}
	lock, err := takeRun()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, leaveRun(lock)) }()
	before, err := sampleCPU(nil)
	if err != nil {
		return err
	}
	due := dueOf(ctx)
	q.Budget = within(q.Budget, due)
	has := func(row string) bool { return slices.Contains(q.Rows, row) }
	steps := []struct {
		need bool
		do   func(context.Context) error
	}{{has("commit") || has("death"), q.near}, {has("far"), q.far}, {has("large") || has("applies"), q.big}}
	for _, s := range steps {
		if s.need && err == nil {
			err = s.do(ctx)
		}
	}
	if after, e := sampleCPU(nil); e == nil {
		u := before.until(after)
		q.machine.Foreign = float64(int(u.foreign*1000)) / 1000
	}
	q.machine.Seconds = float64(int(time.Since(q.began).Seconds()*10)) / 10
	return err
}

func init() {
	register(scenario{place: 100, name: "cluster", about: "commits, deaths of the leader and large policies of two gateways and a witness", command: clusterCommand,
		short: &stint{args: []string{"--rows", "commit,death", "--commits", "50", "--deaths", "2"}, seconds: 9, memoryMiB: 500},
		table: &stint{seconds: 240, memoryMiB: 800},
		full:  &stint{args: []string{"--full"}, seconds: 900, memoryMiB: 1500}})
}

func clusterCommand() *cobra.Command {
	q := clusterBench{Binary: "/proc/self/exe", Rows: clusterRows, sheet: sheet{scenario: "cluster"}}
	var asJSON, full bool
	c := &cobra.Command{
		Use:   "cluster",
		Short: "commits, deaths of the leader, satellite links and large policies on two gateways and a witness",
		Long: "Run two gateways and a witness, a process in a namespace each, with their log synced to disk and mutual TLS between them, and measure:\n" +
			"  commit   a change of 100 lines, from the start of the command line until every worker of both gateways has acknowledged\n" +
			"  death    from kill -9 of who leads to a change that is served, while packets go through the gateways\n" +
			"  far      a commit with a site behind a line of 600 ms round trip, which delays frames in user space: the witness's, a gateway's, all apart\n" +
			"  large    apply of 10,000 rules for 1,000 tenants while packets go\n" +
			"  applies  20 of them, with --full 500: the witness's memory and every data directory, at the end and after a restart of all\n" +
			"It says what else ran on the machine meanwhile. Fails when a figure does not keep to what was promised. Needs root, two CPUs. Takes about\n" +
			"three minutes, with --full twelve.",
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if full {
				for name, value := range map[*int]int{&q.Applies: 500, &q.Commits: 1000, &q.FarEach: 50} {
					*name = max(*name, value)
				}
			}
			switch {
			case q.Commits < 1 || q.FarEach < 1 || q.Large < 1 || q.Applies < 1 || q.Deaths < 1:
				return usageError{errors.New("--commits, --far, --large, --applies and --deaths must be more than 0")}
			case q.Rules < changedLines || q.Tenants < 1 || q.Tenants > 1000:
				return usageError{fmt.Errorf("--rules at least %d, --tenants 1 to 1000", changedLines)}
			case q.RoundTrip < 4*time.Millisecond || q.RoundTrip > 5*time.Second:
				return usageError{errors.New("--round-trip: want 4ms to 5s")}
			}
			for _, r := range q.Rows {
				if !slices.Contains(clusterRows, r) {
					return usageError{fmt.Errorf("--rows %q: want some of %s", r, strings.Join(clusterRows, ","))}
				}
			}
			q.Progress = cmd.ErrOrStderr()
			err := q.run(cmd.Context())
			if len(q.results) == 0 {
				return err
			}
			rep := q.report(version(), q.Seed)
			if asJSON {
				err = errors.Join(err, rep.JSON(cmd.OutOrStdout()))
			} else {
				err = errors.Join(err, q.print(cmd.OutOrStdout(), rep, fmt.Sprintf("demarc bench cluster: two gateways and a witness, a process and a namespace each, log synced to disk, mutual TLS; far: %s round trip over a line in user space", q.RoundTrip),
					fmt.Sprintf("%d batches of commits were repeated because of it, %d batches and rows were kept all the same", q.machine.Repeated, q.machine.Disturbed)))
			}
			if list := q.missed(); len(list) > 0 {
				err = errors.Join(err, fmt.Errorf(missedPromises+"\n  %s", strings.Join(list, "\n  ")))
			}
			return err
		},
	}
	f := c.Flags()
	f.BoolVar(&asJSON, "json", false, "print one JSON object; progress goes to standard error")
	f.BoolVar(&full, "full", false, "500 applies, 1000 commits, 50 of each case with a far site")
	f.StringSliceVar(&q.Rows, "rows", q.Rows, "which rows to measure")
	f.IntVar(&q.Commits, "commits", 200, "with all nodes near")
	f.IntVar(&q.FarEach, "far", 10, "commits of each case with a far site, by each node that is asked")
	f.DurationVar(&q.RoundTrip, "round-trip", 600*time.Millisecond, "to the far site")
	f.IntVar(&q.Deaths, "deaths", 6, "of a witness that leads, and half as many of a gateway that does")
	f.IntVar(&q.Large, "large", 6, "applies of the large policy with packets going, the first onto a policy without rules")
	f.IntVar(&q.Applies, "applies", 20, "of the large policy, one after the other")
	f.IntVar(&q.Rules, "rules", 10000, "of the large policy")
	f.IntVar(&q.Tenants, "tenants", 1000, "of the large policy")
	f.Uint64Var(&q.Seed, "seed", 1, "of the policies")
	f.DurationVar(&q.Budget, "budget", 3*time.Minute, "no disturbed batch of commits is repeated past it")
	f.StringVar(&q.Binary, "binary", q.Binary, "the program")
	f.DurationVar(&q.Near, "near", 0, "delay of the witness's line where all are near, to see that the figures show it")
	for _, hidden := range []string{"binary", "near"} {
		_ = f.MarkHidden(hidden) // they exist
	}
	return c
}
