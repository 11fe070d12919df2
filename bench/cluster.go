package bench

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"demarc/bench/report"
	"demarc/gateway/api"
	"demarc/gateway/trio"
)

// clusterBench is one run of `demarc bench cluster`.
type clusterBench struct {
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
	Progress  io.Writer

	began   time.Time
	results []report.Result
	machine report.Machine
	number  int // of labs made
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

func (q *clusterBench) say(format string, args ...any) { fmt.Fprintf(q.Progress, format+"\n", args...) }

// add notes a figure; where of is not empty it must keep to most.
func (q *clusterBench) add(row, metric, unit string, values []float64, of string, most float64) {
	r := report.Result{Scenario: "cluster", Case: row, Metric: metric, Unit: unit, Demarc: report.OfMany(values).Round(3), Peers: map[string]report.Peer{}}
	if of != "" {
		r.Hold(of, most)
	}
	q.results = append(q.results, r)
	limit := ""
	if r.Limit != nil {
		limit = fmt.Sprintf("  %s at most %s: %s", of, number(most), whether(r.Limit))
	}
	q.say("%-28s %-20s %s %s%s", row, metric, stat(r.Demarc), unit, limit)
}

func number(v float64) string { return strconv.FormatFloat(v, 'f', -1, 64) }

func whether(l *report.Limit) string {
	if l.Held {
		return "held"
	}
	return "MISSED"
}

func stat(s report.Stat) string {
	if s.N < 2 {
		return number(s.Median)
	}
	return fmt.Sprintf("%s (%s–%s, p99 %s, n %d)", number(s.Median), number(s.Min), number(s.Max), number(s.P99), s.N)
}

// watched is what else ran while fn did.
func watched(t *trio.Trio, fn func() error) (u usage, err error) {
	before, err := sampleCPU(t.Pids())
	if err != nil {
		return u, err
	}
	if err := fn(); err != nil {
		return u, err
	}
	after, err := sampleCPU(t.Pids())
	return before.until(after), err
}

// beside notes what else ran during a row that is not repeated.
func (q *clusterBench) beside(row string, u usage) {
	q.add(row, "cpus-for-others", "CPUs", []float64{u.foreign}, "", 0)
	if u.disturbed() {
		q.machine.Disturbed++
	}
}

// open makes three nodes that agree. far is how long frames take one way from a node to the switch.
func (q *clusterBench) open(ctx context.Context, x *texts, wait map[string]time.Duration, roundTrip time.Duration) (*trio.Trio, *far, error) {
	q.number++
	dir := filepath.Join(dirRun, strconv.Itoa(q.number))
	f := &far{wait: wait}
	t, err := trio.New(trio.Options{Lab: "bench", Dir: dir, Binary: q.Binary, RoundTrip: roundTrip, Gateway: x.node(), Wire: f.wire})
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

// commits applies version after version by asking these nodes in turn, in batches; a batch that something else disturbed is repeated while there is time.
func (q *clusterBench) commits(ctx context.Context, t *trio.Trio, x *texts, row string, many int, ask []*trio.Node, of string, most float64) error {
	var all []float64
	by := map[string][]float64{}
	// The first ones fill caches and connections.
	version := 0
	one := func(n *trio.Node) (float64, error) {
		version++
		file := filepath.Join(dirRun, strconv.Itoa(q.number), "policy.toml")
		if err := os.WriteFile(file, []byte(x.text(version)), 0o600); err != nil {
			return 0, err
		}
		a, took, err := n.Apply(ctx, file)
		switch {
		case err != nil:
			return 0, err
		case len(a.Nodes) != 2 || len(trio.Late(a)) > 0:
			return 0, fmt.Errorf("revision %d is not acknowledged by both gateways: %v", a.Revision.Number, a.Nodes)
		case version > 1 && n != t.Witness && len(a.Changes) != changedLines: // a witness compares nothing
			return 0, fmt.Errorf("revision %d has %d changes, want %d", a.Revision.Number, len(a.Changes), changedLines)
		}
		return took.Seconds() * 1e3, nil
	}
	for _, n := range ask {
		if _, err := one(n); err != nil {
			return err
		}
	}
	kept := 0 // batches that were disturbed
	for len(all) < many {
		var took []float64
		var who []string
		u, err := watched(t, func() error {
			for range min(batch, many-len(all)) {
				n := ask[(len(all)+len(took))%len(ask)]
				ms, err := one(n)
				if err != nil {
					return err
				}
				took, who = append(took, ms), append(who, n.Name)
			}
			return nil
		})
		if err != nil {
			return fmt.Errorf("%s: %w", row, err)
		}
		if u.disturbed() && time.Since(q.began) < q.Budget {
			q.machine.Repeated++
			q.say("%-28s %d commits, %.2f CPUs for others, %.1f %% stolen: again", row, len(took), u.foreign, 100*u.steal)
			continue
		}
		if u.disturbed() {
			kept++
		}
		all = append(all, took...)
		for i, ms := range took {
			by[who[i]] = append(by[who[i]], ms)
		}
	}
	q.machine.Disturbed += kept
	q.add(row, "commit", "ms", all, of, most)
	if len(ask) > 1 {
		for _, n := range ask {
			q.add(row, "commit-asked-"+n.Name, "ms", by[n.Name], "", 0)
		}
	}
	q.add(row, "disturbed-batches", "batches", []float64{float64(kept)}, "", 0)
	return nil
}

// near is what is measured where all nodes are in one site.
func (q *clusterBench) near(ctx context.Context) (err error) {
	x := &texts{seed: q.Seed, tenants: 1, rules: changedLines}
	wait := map[string]time.Duration{}
	if q.Near > 0 {
		wait["witness"] = q.Near
	}
	t, _, err := q.open(ctx, x, wait, 0)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, t.Close()) }()
	if slices.Contains(q.Rows, "commit") {
		if err := q.commits(ctx, t, x, "commit/100-lines/near", q.Commits, t.Nodes(), "p99", commitMs); err != nil {
			return err
		}
	}
	if slices.Contains(q.Rows, "death") {
		return q.deaths(ctx, t, x)
	}
	return nil
}

// deaths kills who leads, again and again, and has a change made at once, while packets go through the gateways that live.
func (q *clusterBench) deaths(ctx context.Context, t *trio.Trio, x *texts) error {
	file := filepath.Join(dirRun, strconv.Itoa(q.number), "policy.toml")
	version := 1 << 20
	for _, c := range []struct {
		row     string
		victim  *trio.Node
		through []*trio.Node
		times   int
	}{
		{"death/witness-leads", t.Witness, t.Gateways(), q.Deaths},
		{"death/gateway-leads", t.GW1, []*trio.Node{t.GW2}, (q.Deaths + 1) / 2},
	} {
		var accepted, lost, sent []float64
		var longest time.Duration
		u, err := watched(t, func() error {
			for range c.times {
				// With the lead comes the wish to hand it on to the witness: who is asked again has it for a while.
				if err := q.leads(ctx, t, c.victim); err != nil {
					return err
				}
				var streams []*trio.Stream
				for _, n := range c.through {
					s, err := n.Stream(ctx, 2, 500)
					if err != nil {
						return err
					}
					streams = append(streams, s)
				}
				if err := rest(ctx, 300*time.Millisecond); err != nil {
					return err
				}
				version++
				if err := os.WriteFile(file, []byte(x.text(version)), 0o600); err != nil {
					return err
				}
				began := time.Now()
				c.victim.Kill()
				a, _, err := c.through[len(accepted)%len(c.through)].Apply(ctx, file)
				took := time.Since(began)
				p, serr := passed(streams)
				if err := errors.Join(err, serr); err != nil {
					return err
				}
				for _, n := range c.through {
					if i := slices.IndexFunc(a.Nodes, func(s api.Serves) bool { return s.Node == n.Name }); i < 0 || a.Nodes[i].Why != "" {
						return fmt.Errorf("revision %d is not acknowledged by %s: %v", a.Revision.Number, n.Name, a.Nodes)
					}
				}
				accepted, longest = append(accepted, took.Seconds()*1e3), max(longest, p.Longest)
				lost, sent = append(lost, float64(p.Lost())), append(sent, float64(p.Sent))
				if err := c.victim.Start(ctx); err != nil {
					return err
				}
				if err := t.Whole(ctx, time.Minute, nil); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			return fmt.Errorf("%s: %w", c.row, err)
		}
		q.add(c.row, "change-served", "ms", accepted, "max", acceptedMs)
		q.add(c.row, "sent", "packets", sent, "", 0)
		q.add(c.row, "lost", "packets", lost, "max", 0)
		q.add(c.row, "longest-gap", "ms", []float64{longest.Seconds() * 1e3}, "", 0)
		q.beside(c.row, u)
	}
	return nil
}

// leads has a node lead, whoever does now.
func (q *clusterBench) leads(ctx context.Context, t *trio.Trio, n *trio.Node) error {
	var err error
	for range 20 {
		if err = t.Whole(ctx, time.Minute, nil); err != nil {
			return err
		}
		m, e := n.Members(ctx)
		if e == nil && m.Leader == n.Name {
			return nil
		}
		_, err = n.Run(ctx, "cluster", "lead", n.Name)
		if err := rest(ctx, 50*time.Millisecond); err != nil {
			return err
		}
	}
	return fmt.Errorf("%s does not come to lead: %w", n.Name, err)
}

func rest(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}

// far measures commits with a site at the end of a satellite link, each case in which that makes a difference.
func (q *clusterBench) far(ctx context.Context) error {
	half := q.RoundTrip / 2
	for _, c := range []struct {
		row  string
		wait map[string]time.Duration
		ask  []string
	}{
		{"witness-far", map[string]time.Duration{"witness": half}, []string{"gw1"}},
		{"gateway-far", map[string]time.Duration{"gw2": half}, []string{"gw1", "gw2"}},
		{"all-apart", map[string]time.Duration{"gw1": half / 2, "gw2": half / 2, "witness": half / 2}, []string{"gw1"}},
	} {
		if err := q.farCase(ctx, "commit/100-lines/"+c.row, c.wait, c.ask); err != nil {
			return err
		}
	}
	return nil
}

func (q *clusterBench) farCase(ctx context.Context, row string, wait map[string]time.Duration, ask []string) (err error) {
	x := &texts{seed: q.Seed, tenants: 1, rules: changedLines}
	t, f, err := q.open(ctx, x, wait, q.RoundTrip)
	if err != nil {
		return fmt.Errorf("%s: %w", row, err)
	}
	defer func() { err = errors.Join(err, t.Close()) }()
	var nodes []*trio.Node
	for _, name := range ask {
		nodes = append(nodes, t.Node(name))
	}
	if err := q.commits(ctx, t, x, row, q.FarEach*len(nodes), nodes, "max", farMs); err != nil {
		return err
	}
	lost, moved, late := f.lost()
	q.add(row, "frames-over-the-line", "frames", []float64{float64(moved)}, "", 0)
	q.add(row, "frames-lost-by-the-line", "frames", []float64{float64(lost)}, "", 0)
	q.add(row, "line-late", "ms", []float64{late.Seconds() * 1e3}, "", 0)
	return nil
}

// big is what is measured with a large policy.
func (q *clusterBench) big(ctx context.Context) (err error) {
	x := &texts{seed: q.Seed, tenants: q.Tenants, rules: q.Rules}
	t, _, err := q.open(ctx, x, nil, 0)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, t.Close()) }()
	if slices.Contains(q.Rows, "large") {
		if err := q.large(ctx, t, x); err != nil {
			return err
		}
	}
	if slices.Contains(q.Rows, "applies") {
		return q.applies(ctx, t, x)
	}
	return nil
}

// apply applies one version of the large policy.
func (q *clusterBench) apply(ctx context.Context, n *trio.Node, x *texts, version int) (took time.Duration, err error) {
	file := filepath.Join(dirRun, strconv.Itoa(q.number), "large.toml")
	if err := os.WriteFile(file, []byte(x.text(version)), 0o600); err != nil {
		return 0, err
	}
	a, took, err := n.Apply(ctx, file)
	if err == nil && (len(a.Nodes) != 2 || len(trio.Late(a)) > 0) {
		err = fmt.Errorf("revision %d is not acknowledged by both gateways: %v", a.Revision.Number, a.Nodes)
	}
	return took, err
}

func (q *clusterBench) large(ctx context.Context, t *trio.Trio, x *texts) error {
	row := fmt.Sprintf("apply/%d-rules/%d-tenants", x.rules, x.tenants)
	var took []float64
	var p trio.Passed
	u, err := watched(t, func() error {
		var streams []*trio.Stream
		for _, n := range t.Gateways() {
			s, err := n.Stream(ctx, 4, 250)
			if err != nil {
				return err
			}
			streams = append(streams, s)
		}
		if err := rest(ctx, 500*time.Millisecond); err != nil {
			return err
		}
		for i := range q.Large {
			d, err := q.apply(ctx, t.Nodes()[i%3], x, i)
			if err != nil {
				return err
			}
			took = append(took, d.Seconds())
		}
		var err error
		p, err = passed(streams)
		return err
	})
	if err != nil {
		return fmt.Errorf("%s: %w", row, err)
	}
	q.add(row, "apply", "seconds", took, "max", largeSeconds)
	q.add(row, "text", "bytes", []float64{float64(len(x.text(0)))}, "", 0)
	q.add(row, "sent", "packets", []float64{float64(p.Sent)}, "", 0)
	q.add(row, "lost", "packets", []float64{float64(p.Lost())}, "max", 0)
	q.add(row, "longest-gap", "ms", []float64{p.Longest.Seconds() * 1e3}, "", 0)
	q.beside(row, u)
	return nil
}

// applies has a large policy applied again and again, and looks at what that leaves in memory and on disk, before and after a restart of all.
func (q *clusterBench) applies(ctx context.Context, t *trio.Trio, x *texts) error {
	row := fmt.Sprintf("applies/%d-rules", x.rules)
	var took []float64
	u, err := watched(t, func() error {
		for i := range q.Applies {
			d, err := q.apply(ctx, t.Nodes()[i%3], x, 1000+i)
			if err != nil {
				return fmt.Errorf("apply %d: %w", i+1, err)
			}
			if took = append(took, d.Seconds()); (i+1)%50 == 0 {
				q.say("%-28s %d of %d", row, i+1, q.Applies)
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("%s: %w", row, err)
	}
	q.add(row, "apply", "seconds", took, "", 0)
	q.beside(row, u)
	if err := q.left(ctx, t, row, "end"); err != nil {
		return err
	}
	peak, err := memory(t.Witness.Pid(), "VmHWM:")
	if err != nil {
		return err
	}
	q.add(row, "witness-peak", "MB", []float64{float64(peak) / 1e6}, "", 0)
	for _, n := range t.Nodes() {
		if err := n.Stop(); err != nil {
			return err
		}
	}
	for _, n := range t.Nodes() {
		if err := n.Start(ctx); err != nil {
			return err
		}
	}
	if err := t.Whole(ctx, time.Minute, nil); err != nil {
		return fmt.Errorf("after a restart: %w", err)
	}
	return q.left(ctx, t, row, "restarted")
}

// left is what nodes hold in memory and on disk.
func (q *clusterBench) left(ctx context.Context, t *trio.Trio, row, when string) error {
	rss, err := resident(t.Witness.Pid())
	if err != nil {
		return err
	}
	q.add(row, "witness-resident-"+when, "MB", []float64{float64(rss) / 1e6}, "max", witnessMB)
	var dirs []float64
	for _, n := range t.Nodes() {
		size, err := directory(n.Data)
		if err != nil {
			return err
		}
		dirs = append(dirs, float64(size)/(1<<20))
	}
	q.add(row, "directories-"+when, "MiB", dirs, "max", directoryMiB)
	return ctx.Err()
}

// directory is how many bytes the files below it have. One that goes away meanwhile counts as none.
func directory(dir string) (size int64, err error) {
	err = filepath.WalkDir(dir, func(_ string, e fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) || err == nil && !e.Type().IsRegular() {
			return nil
		}
		if err != nil {
			return err
		}
		i, err := e.Info()
		if err == nil {
			size += i.Size()
		} else if errors.Is(err, fs.ErrNotExist) {
			err = nil
		}
		return err
	})
	return size, err
}

// missed are the figures that do not keep to their limits.
func (q *clusterBench) missed() (list []string) {
	for _, r := range q.results {
		if r.Limit != nil && !r.Limit.Held {
			v := map[string]float64{"p99": r.Demarc.P99, "max": r.Demarc.Max}[r.Limit.Of]
			list = append(list, fmt.Sprintf("%s, %s: %s %s, at most %s", r.Case, r.Metric, number(v), r.Unit, number(r.Limit.Most)))
		}
	}
	return list
}

func (q *clusterBench) report(version string) *report.Output {
	m := machine()
	m.Demarc, m.Mode, m.Seconds, m.Seed, m.Foreign, m.Disturbed, m.Repeated = version, q.machine.Mode, q.machine.Seconds, q.Seed, q.machine.Foreign, q.machine.Disturbed, q.machine.Repeated
	return &report.Output{Schema: report.Schema, Machine: m, Results: q.results}
}

// print is what a person reads.
func (q *clusterBench) print(w io.Writer, r *report.Output) error {
	var b strings.Builder
	p := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	m := &r.Machine
	virtual := ""
	if m.Virtual {
		virtual = ", virtual machine"
	}
	p("")
	p("demarc bench cluster: two gateways and a witness, a process and a namespace each, log synced to disk, mutual TLS; far: %s round trip over a line in user space", q.RoundTrip)
	p("machine     %s, %d CPUs, %d MiB%s, kernel %s", m.CPU, m.CPUs, m.MemoryMiB, virtual, m.Kernel)
	p("demarc      %s, %s, AF_XDP: %s; seed %d", m.Demarc, m.Go, m.Mode, m.Seed)
	p("")
	p("%-30s %-26s %12s %12s %12s %12s %5s  %s", "case", "figure", "least", "median", "p99", "most", "n", "promised")
	for _, f := range r.Results {
		s, promised := f.Demarc, ""
		if f.Limit != nil {
			promised = fmt.Sprintf("%s at most %s %s: %s", f.Limit.Of, number(f.Limit.Most), f.Unit, whether(f.Limit))
		}
		digits := 1
		if s.Max < 10 {
			digits = 3
		}
		v := func(x float64) string { return strconv.FormatFloat(x, 'f', digits, 64) }
		if f.Unit == "packets" || f.Unit == "frames" || f.Unit == "batches" || f.Unit == "bytes" {
			v = func(x float64) string { return strconv.FormatFloat(x, 'f', 0, 64) }
		}
		p("%-30s %-26s %12s %12s %12s %12s %5d  %s", f.Case, f.Metric+", "+f.Unit, v(s.Min), v(s.Median), v(s.P99), v(s.Max), s.N, promised)
	}
	p("")
	p("took %.0f s; other work on the machine took %.2f CPUs over all; %d batches of commits were repeated because of it, %d batches and rows were kept all the same", m.Seconds, m.Foreign, m.Repeated, m.Disturbed)
	_, err := io.WriteString(w, b.String())
	return err
}

func clusterCommand() *cobra.Command {
	q := clusterBench{Binary: "/proc/self/exe", Rows: clusterRows}
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
			rep := q.report(version())
			if asJSON {
				err = errors.Join(err, rep.JSON(cmd.OutOrStdout()))
			} else {
				err = errors.Join(err, q.print(cmd.OutOrStdout(), rep))
			}
			if list := q.missed(); len(list) > 0 {
				err = errors.Join(err, fmt.Errorf("not as promised:\n  %s", strings.Join(list, "\n  ")))
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
