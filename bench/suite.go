package bench

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"time"

	"demarc/bench/report"
)

// suite is one run of `demarc bench`.
type suite struct {
	Plan     planName // "" = short
	Only     []string // scenarios; none = all of the plan
	Dir      string   // of the results
	Resume   bool     // go on in Dir, where a run that is measured in parts has ended early
	Budget   time.Duration
	Binary   string    // that is the gateway; "" = each scenario's own choice
	Progress io.Writer // of a person

	list   []scenario               // to run now
	plans  []scenario               // all of the plan, or of the short one those that were asked for
	taken  map[string]taken         // by key: what was measured
	put    []string                 // off, for want of time or of an operator's patience: keys
	commit string                   // for tests: that the program is of
	sweep  func() ([]string, error) // what a scenario has left behind; called between them
	header report.Output            // what the run is of
	before float64                  // seconds that the runs before it took
	out    report.Output
	show   *progress
	began  time.Time
}

// taken is what a part of the run has measured; of = nil where that is nothing.
type taken struct {
	part report.Part
	of   *report.Output
}

// shortBudget is what `demarc bench` may take, its end included.
const (
	shortBudget = 12 * time.Minute
	leastBudget = 30 * time.Second
	reserve     = 15 * time.Second // for an interrupted scenario to take everything down, and for the report
)

func (q *suite) plan() string { return string(cmp.Or(q.Plan, planShort)) }

func (q *suite) stint(s *scenario) *stint { return *q.Plan.of(s) }

// bites reports whether what is measured is kept part by part, and a run may go on.
func (q *suite) bites() bool { return q.Plan == planTable || q.Plan == planFull }

// choose finds the scenarios to run; the error is one of usage.
func (q *suite) choose() error {
	q.list, q.plans = nil, nil
	in := names(func(s *scenario) bool { return q.stint(s) != nil })
	for _, name := range q.Only {
		if !slices.Contains(in, name) {
			return fmt.Errorf("--scenarios %q: want some of %s", name, strings.Join(in, ","))
		}
	}
	for _, s := range scenarios() {
		if q.stint(&s) != nil && (len(q.Only) == 0 || slices.Contains(q.Only, s.name)) {
			q.list = append(q.list, s)
		}
		if q.bites() && q.stint(&s) != nil {
			q.plans = append(q.plans, s)
		}
	}
	if !q.bites() {
		q.plans = q.list
		return nil
	}
	q.list, q.plans = inParts(q.Plan, q.list), inParts(q.Plan, q.plans)
	return nil
}

// ready says what keeps the run from beginning, before anything is set up.
func (q *suite) ready() error {
	if os.Geteuid() != 0 {
		return errNoRoot
	}
	if runtime.NumCPU() < 2 {
		return errors.New("the bench needs two CPUs: one makes frames, one moves them")
	}
	var lacks []string
	for i := range q.list {
		if s := &q.list[i]; s.needs != nil {
			if err := s.needs(); err != nil {
				lacks = append(lacks, fmt.Sprintf("%s: %v", s.name, err))
			}
		}
	}
	if lacks != nil {
		return fmt.Errorf("%s (or name other ones with --scenarios)", strings.Join(lacks, "; "))
	}
	need := 0
	for i := range q.list {
		need = max(need, q.stint(&q.list[i]).memoryMiB)
	}
	if err := enoughMemory(need); err != nil {
		return err
	}
	if q.Resume {
		return nil
	}
	if _, err := os.Stat(filepath.Join(q.Dir, resultsFile)); err == nil {
		return fmt.Errorf("%s has results already: name another directory with --out, or go on with a run of --table or --full with --resume", q.Dir)
	}
	return os.MkdirAll(q.Dir, 0o755)
}

// The files of a run.
const (
	resultsFile = "results.json"
	reportFile  = "report.html"
	logFile     = "progress.log"
)

// run measures. What is done is in the directory, and in out, also when there is an error.
func (q *suite) run(ctx context.Context) (err error) {
	if q.Resume {
		if err := q.resume(); err != nil {
			return err
		}
	}
	if err := q.ready(); err != nil {
		return err
	}
	lock, err := takeRun()
	if err != nil {
		return err
	}
	lock.keep()
	defer func() { err = errors.Join(err, lock.letGo()) }()
	q.sweep = sweep
	return q.measure(ctx, lock.swept)
}

// measure runs the scenarios; the machine is ours.
func (q *suite) measure(ctx context.Context, swept []string) error {
	how := os.O_WRONLY | os.O_CREATE | os.O_TRUNC
	if q.Resume {
		how = os.O_WRONLY | os.O_CREATE | os.O_APPEND
	}
	log, err := os.OpenFile(filepath.Join(q.Dir, logFile), how, 0o644)
	if err != nil {
		return err
	}
	defer log.Close()
	total := 0.0
	for i := range q.list {
		total += q.stint(&q.list[i]).seconds
	}
	q.began = time.Now()
	q.show = newProgress(q.Progress, log, len(q.list), total)
	defer q.show.close()
	for _, name := range swept {
		q.show.say("left by a run that was killed, removed: " + name)
	}
	if !q.Resume {
		q.header, q.taken = q.head(), map[string]taken{}
	}
	if err := q.merge(""); err != nil {
		return err
	}
	var failed []string
	for i := range q.list {
		if err := q.next(ctx, &q.list[i]); err != nil {
			failed = append(failed, err.Error())
		}
		// What a kill -9 finds is what was done until then.
		q.partial(ctx, i+1 < len(q.list))
		if err := q.write(); err != nil {
			return err
		}
	}
	if len(q.list) == 0 { // a resume that finds nothing left puts together what there is all the same
		q.partial(ctx, false)
		if err := q.write(); err != nil {
			return err
		}
	}
	if err := writePage(filepath.Join(q.Dir, reportFile), &q.out); err != nil {
		return err
	}
	if q.put != nil {
		failed = append(failed, fmt.Sprintf("%d parts are still to be measured (%s): demarc bench --resume %s goes on", len(q.put), keyWords(q.put), q.Dir))
	}
	if failed != nil {
		return errors.New(strings.Join(failed, "\n"))
	}
	return nil
}

// head is what a run that begins now is of.
func (q *suite) head() report.Output {
	o := report.Output{Schema: report.Schema, Machine: machine(), Plan: q.plan(), Commit: cmp.Or(q.commit, commit()), Began: time.Now().UTC().Format(time.RFC3339)}
	o.Machine.Demarc = version()
	return o
}

// merge puts together what was measured, in the order of the plan; the error is that of the part with this key.
func (q *suite) merge(key string) (err error) {
	q.out = q.header
	q.out.Results, q.out.Configs = []report.Result{}, map[string]string{}
	for i := range q.plans {
		k := q.plans[i].key()
		if t, ok := q.taken[k]; ok {
			if e := q.out.Take(t.part, t.of); k == key {
				err = e
			}
		}
	}
	q.out.Machine.Seconds = float64(int((q.before+time.Since(q.began).Seconds())*10)) / 10
	return err
}

// leastPart of a part's time must be left for it to begin: with less it would measure too little.
const leastPart = 0.4

// allot is when a scenario should have ended: those that are still to come have the rest of the time by what the plan gives each, so that what one was
// early is for all of them, and what it was late too.
func (q *suite) allot(s *scenario, now time.Time) time.Time {
	all, found := 0.0, false
	for i := range q.list {
		if found = found || q.list[i].name == s.name; found {
			all += q.stint(&q.list[i]).seconds
		}
	}
	return share(now, q.began.Add(q.Budget-reserve), q.stint(s).seconds, all)
}

// next runs one scenario, or notes why it does not.
func (q *suite) next(ctx context.Context, s *scenario) error {
	st, key := q.stint(s), s.key()
	p := report.Part{Name: s.name, About: s.about, Args: append([]string{s.name}, st.args...)}
	limit := time.Duration(0)
	left := q.Budget - reserve - time.Since(q.began)
	switch {
	case q.bites() && (ctx.Err() != nil || q.Budget > 0 && left < seconds(st.seconds)):
		q.put = append(q.put, key)
		return nil
	case ctx.Err() != nil:
		p.Error = "interrupted before it began"
	case q.Budget > 0 && left < time.Duration(st.seconds*leastPart*float64(time.Second)):
		p.Error = fmt.Sprintf("no time left of %s", q.Budget)
	}
	if p.Error != "" {
		q.show.say(fmt.Sprintf("%s: %s", s.name, p.Error))
		q.taken[key] = taken{p, nil}
		return errors.Join(fmt.Errorf("%s was not measured: %s", s.name, p.Error), q.merge(key))
	}
	if q.Budget > 0 && !q.bites() { // what hangs must not cost the others their turn
		due := q.allot(s, time.Now())
		limit = min(left, time.Until(due)*3/2+20*time.Second)
		ctx = withDue(ctx, due)
	}
	began, speed := time.Now(), yard.speed(report.Speed{})
	q.show.begin(s.name, st.seconds)
	of, err := q.scenario(ctx, s, st, limit)
	q.show.end()
	if of == nil && err == nil {
		err = errors.New("it printed no results")
	}
	if of != nil {
		of.Machine.Seconds = float64(int(time.Since(began).Seconds()*10)) / 10
		of.Machine.Speed = yard.speed(speed)
	}
	if err != nil {
		p.Error = err.Error()
		err = fmt.Errorf("%s: %w", key, err)
	}
	q.taken[key] = taken{p, of}
	if q.bites() && of != nil && (p.Error == "" || missedOnly(p.Error)) {
		err = errors.Join(err, q.keep(key, q.taken[key]))
	}
	return errors.Join(err, q.merge(key))
}

// scenario runs a bench by its own command line, so that anybody can repeat that part alone.
func (q *suite) scenario(ctx context.Context, s *scenario, st *stint, limit time.Duration) (of *report.Output, err error) {
	if limit > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, limit, fmt.Errorf("it took longer than %s", limit.Round(time.Second)))
		defer cancel()
	}
	args := append(slices.Clone(st.args), "--json")
	if q.Binary != "" {
		args = append(args, "--binary", q.Binary)
	}
	var stdout bytes.Buffer
	c := s.command()
	c.SetArgs(args)
	c.SetOut(&stdout)
	c.SetErr(q.show)
	c.SilenceErrors, c.SilenceUsage = true, true
	err = c.ExecuteContext(ctx)
	if ctx.Err() != nil {
		err = context.Cause(ctx)
		if errors.Is(err, context.Canceled) {
			err = errors.New("interrupted")
		}
	}
	if left, e := q.sweep(); e != nil || left != nil {
		err = errors.Join(err, e, fmt.Errorf("it left behind, and this run has removed: %s", strings.Join(left, ", ")))
	}
	if stdout.Len() > 0 {
		of = new(report.Output)
		if e := json.Unmarshal(stdout.Bytes(), of); e != nil {
			return nil, errors.Join(err, fmt.Errorf("its results: %w", e))
		}
	}
	debug.FreeOSMemory() // a million flows were in it
	return of, err
}

// partial says why the results are not those of the whole plan; more = scenarios are still to come.
func (q *suite) partial(ctx context.Context, more bool) {
	var lacks []string
	for _, p := range q.out.Scenarios {
		if p.Skipped {
			lacks = append(lacks, fmt.Sprintf("%s was not measured (%s)", p.Name, firstLine(p.Error)))
		} else if p.Error != "" && !missedOnly(p.Error) {
			lacks = append(lacks, fmt.Sprintf("%s was not measured to its end (%s)", p.Name, firstLine(p.Error)))
		}
	}
	if more && ctx.Err() == nil {
		lacks = append(lacks, "the run did not come to its end")
	}
	var missing []string
	others := !q.bites() // of the plan, and not asked for: they are there where a run before had them
	for i := range q.plans {
		s := &q.plans[i]
		if _, ok := q.taken[s.key()]; ok {
			continue
		}
		if q.Only == nil || slices.Contains(q.Only, s.name) {
			missing = append(missing, s.key())
		} else {
			others = true
		}
	}
	if q.bites() && missing != nil {
		lacks = append(lacks, "not measured yet: "+keyWords(missing))
	}
	if q.Only != nil && others {
		lacks = append(lacks, "only "+strings.Join(q.Only, ", ")+" was asked for")
	}
	q.out.Partial = strings.Join(lacks, "; ")
}

// missedPromises begins the error of a bench that measured everything and found promises that were not kept.
const missedPromises = "not as promised:"

func missedOnly(text string) bool { return strings.HasPrefix(text, missedPromises) }

func firstLine(s string) string {
	line, _, _ := strings.Cut(s, "\n")
	return line
}

// write puts the results into the directory, whole or not at all.
func (q *suite) write() error {
	var b bytes.Buffer
	if err := q.out.JSON(&b); err != nil {
		return err
	}
	return writeWhole(filepath.Join(q.Dir, resultsFile), b.Bytes())
}

func writeWhole(name string, text []byte) error {
	if err := os.WriteFile(name+".new", text, 0o644); err != nil {
		return err
	}
	return os.Rename(name+".new", name)
}

func writePage(name string, out *report.Output) error {
	var b bytes.Buffer
	if err := out.HTML(&b); err != nil {
		return err
	}
	return writeWhole(name, b.Bytes())
}

// print is what a person reads.
func (q *suite) print(w io.Writer) error {
	fmt.Fprintf(w, "\ndemarc bench, %s plan: %s, %s, commit %s\nmachine  %s\n", q.plan(), q.out.Machine.Demarc, q.out.Machine.Go, cmp.Or(q.out.Commit, "unknown"), machineWords(&q.out.Machine))
	if err := q.out.Table(w); err != nil {
		return err
	}
	for i, n := range q.out.LeftOut() {
		if i == 0 {
			fmt.Fprintln(w)
		}
		fmt.Fprintf(w, "- %s\n", n)
	}
	for i, n := range q.out.Missed() {
		if i == 0 {
			fmt.Fprintln(w, "\nnot as promised or aimed at:")
		}
		fmt.Fprintf(w, "- %s\n", n)
	}
	v := q.out.Wins()
	fmt.Fprintf(w, "\nbeside peers: %d better, %d worse, %d the same, %d unresolved; took %s; results in %s\n", v[report.Wins], v[report.Loses], v[report.Same], v[report.Unresolved], span(q.out.Machine.Seconds), q.Dir)
	return nil
}
