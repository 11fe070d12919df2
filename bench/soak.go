package bench

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"demarc/bench/pktgen"
	"demarc/bench/report"
	"demarc/gateway/api"
)

// soak is one run of `demarc bench soak`.
type soak struct {
	For        time.Duration
	Every      time.Duration // between two looks
	Change     time.Duration // between two changes of the policy
	Flows      int
	Rate       float64 // frames per second, both directions together
	Rules      int
	Seed       uint64
	Binary     string
	BreakStage string
	Progress   io.Writer
	before     func(look int, d *demarc) error // for tests: what is planted before each look
}

// soakLook is what is found of the gateway at one moment.
type soakLook struct {
	At          time.Duration
	Resident    float64 // MiB
	Descriptors float64
	Threads     float64
	Sessions    float64
	Calls       uint64 // system calls of the workers, since their start
	Frames      uint64 // that they took, since then
	Broken      string // the account of frames, where it does not close
	Sent, Lost  int64  // frames, since the look before
	Wrong       uint64
	Disturbed   bool
}

// soaked is a whole run.
type soaked struct {
	Looks   []soakLook // the first is taken when all is warm
	Changes int
	Mode    string
	Config  string
	Took    time.Duration
}

func (q *soak) say(format string, args ...any) { fmt.Fprintf(q.Progress, format+"\n", args...) }

// run measures. What it could measure is in the result also when there is an error.
func (q *soak) run(ctx context.Context) (out *soaked, err error) {
	began := time.Now()
	out = &soaked{}
	defer func() { out.Took = time.Since(began) }()
	if runtime.NumCPU() < 2 {
		return out, errors.New("the bench needs two CPUs: one makes frames, one moves them")
	}
	p := plan(q.Flows)
	rules, err := makeRules(q.Seed, q.Rules, &p)
	if err != nil {
		return out, err
	}
	r, err := openRoom(p)
	if err != nil {
		return out, err
	}
	defer func() { err = errors.Join(err, r.Close()) }()
	r.bothSides = true
	d := &demarc{r: r, binary: q.Binary, rules: rules, pool: p.Pool, rate: trafficRate, table: max(4096, 2*q.Flows), breakStage: q.BreakStage, offload: never}
	defer func() { err = errors.Join(err, d.stop()) }()
	if err := d.start(ctx); err != nil {
		return out, err
	}
	out.Mode, out.Config = d.mode, d.config()
	if _, _, err := r.establish(ctx, q.Flows, establishRate); err != nil {
		return out, fmt.Errorf("establish %d flows: %w", q.Flows, err)
	}
	// What an operator's screen, a scraper and a hand at the policy do goes on all the time.
	around, stop := context.WithCancel(ctx)
	ended := make(chan error, 1)
	go func() { ended <- q.around(around, d, &out.Changes) }()
	err = q.looks(ctx, r, d, out)
	stop()
	return out, errors.Join(err, <-ended)
}

// leastLooks are those of which drift can be told, however busy the machine is.
const leastLooks = 4

// looks sends and looks until the time is over. The first load only warms up.
func (q *soak) looks(ctx context.Context, r *room, d *demarc, out *soaked) error {
	began := time.Now()
	for n := 0; n <= leastLooks || time.Since(began) < q.For; n++ {
		l, err := r.load(ctx, pktgen.Order{Duration: q.Every, Rate: q.Rate, Direction: pktgen.Both}, d.pids())
		if err != nil {
			return err
		}
		if err := soundLoad(&l); err != nil {
			return err
		}
		if q.before != nil {
			if err := q.before(n, d); err != nil {
				return err
			}
		}
		s, err := q.look(ctx, d)
		if err != nil {
			return err
		}
		s.At, s.Sent, s.Lost, s.Wrong, s.Disturbed = time.Since(began), int64(l.sent.Frames), lostFrames(&l), l.wrong(), l.use.disturbed()
		if n == 0 {
			continue
		}
		out.Looks = append(out.Looks, s)
		q.say("after %s: %.1f MiB, %.0f descriptors, %.0f threads, %.0f sessions, lost %d of %d%s", s.At.Round(time.Second), s.Resident, s.Descriptors, s.Threads, s.Sessions, s.Lost, s.Sent, map[bool]string{true: "; the account of frames does not close: " + s.Broken}[s.Broken != ""])
	}
	return nil
}

// look asks the kernel and the gateway.
func (q *soak) look(ctx context.Context, d *demarc) (s soakLook, err error) {
	pid := d.cmd.Process.Pid
	rss, err := resident(pid)
	if err != nil {
		return s, err
	}
	s.Resident = float64(rss) / (1 << 20)
	for name, v := range map[string]*float64{"fd": &s.Descriptors, "task": &s.Threads} {
		list, err := os.ReadDir("/proc/" + strconv.Itoa(pid) + "/" + name)
		if err != nil {
			return s, err
		}
		*v = float64(len(list))
	}
	st, err := d.status(ctx, false)
	if err != nil {
		return s, err
	}
	for _, w := range st.Workers {
		s.Sessions += float64(w.Sessions)
	}
	s.Calls, s.Frames = systemCalls(st)
	if !st.Conservation.OK {
		s.Broken = st.Conservation.Detail
	}
	return s, nil
}

// systemCalls are those of the workers by their own count, those that wait for frames and those that have the kernel send, and the frames that they took.
func systemCalls(st *api.Status) (calls, frames uint64) {
	for _, w := range st.Workers {
		calls += w.Wakeups
	}
	for _, p := range st.Ports {
		for _, q := range p.Queues {
			calls, frames = calls+q.Kicks, frames+q.Rx.Packets
		}
	}
	return calls, frames
}

// around reads status and metrics ten times a second and changes the policy now and then.
func (q *soak) around(ctx context.Context, d *demarc, changes *int) error {
	next := time.Now().Add(q.Change)
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(100 * time.Millisecond):
		}
		_, err := d.status(ctx, true)
		if err == nil {
			_, err = d.client.Text(ctx, api.PathMetrics)
		}
		if ctx.Err() != nil {
			return nil // it was told to stop
		}
		if err == nil && time.Now().After(next) {
			next = next.Add(q.Change)
			*changes++
			var serve func(context.Context) error
			if serve, err = (gatewayChanged{d}).prepare(*changes); err == nil {
				err = serve(context.WithoutCancel(ctx))
			}
		}
		if err != nil {
			return fmt.Errorf("while frames went: %w", err)
		}
	}
}

// drift is what the last quarter of the looks has, and the second, by medians. In the first one memory still grows with what is done for the first times: measured, it was level after a dozen changes.
func drift(looks []soakLook, of func(*soakLook) float64) (first, last float64) {
	n := max(1, len(looks)/4)
	part := func(list []soakLook) float64 {
		var v []float64
		for i := range list {
			v = append(v, of(&list[i]))
		}
		return report.Of(v).Median
	}
	return part(looks[min(n, len(looks)-n):min(2*n, len(looks))]), part(looks[len(looks)-n:])
}

// What a run may drift. Memory: the collector lets a heap of some MiB breathe. Descriptors: two who ask at the same moment have a connection each, which stays for a while.
const (
	soakMiB         = 16.0
	soakDescriptors = 2
)

// figures are what is reported.
func (q *soak) figures(s *soaked) (list []report.Result) {
	name := fmt.Sprintf("64B/%d/nat44/both", q.Flows)
	add := func(metric, unit string, better report.Better, values ...float64) *report.Result {
		list = append(list, report.Result{Scenario: "soak", Case: name, Metric: metric, Unit: unit, Better: better, Demarc: report.Of(values).Round(3), Peers: map[string]report.Peer{}})
		return &list[len(list)-1]
	}
	if len(s.Looks) == 0 {
		return nil
	}
	all := func(of func(*soakLook) float64) (v []float64) {
		for i := range s.Looks {
			v = append(v, of(&s.Looks[i]))
		}
		return v
	}
	disturbed, broken, sent, lost, wrong := 0, 0.0, 0.0, 0.0, 0.0
	for i := range s.Looks {
		l := &s.Looks[i]
		if l.Disturbed {
			disturbed++
		}
		if l.Broken != "" {
			broken++
		}
		sent, lost, wrong = sent+float64(l.Sent), lost+float64(l.Lost), wrong+float64(l.Wrong)
	}
	for _, f := range []struct {
		name, unit string
		most       float64
		of         func(*soakLook) float64
	}{
		{"resident", "MiB", soakMiB, func(l *soakLook) float64 { return l.Resident }},
		{"descriptors", "descriptors", soakDescriptors, func(l *soakLook) float64 { return l.Descriptors }},
		{"threads", "threads", -1, func(l *soakLook) float64 { return l.Threads }},
		{"sessions", "sessions", -1, func(l *soakLook) float64 { return l.Sessions }},
	} {
		r := add(f.name, f.unit, "", all(f.of)...)
		r.Demarc.Disturbed = disturbed
		first, last := drift(s.Looks, f.of)
		r = add(f.name+"-drift", f.unit, report.Lower, last-first)
		if f.most >= 0 {
			r.Hold("max", f.most)
		}
	}
	if a, z := &s.Looks[0], &s.Looks[len(s.Looks)-1]; z.Frames > a.Frames {
		add("system-calls", "calls/frame", report.Lower, float64(z.Calls-a.Calls)/float64(z.Frames-a.Frames))
	}
	add("account-broken", "looks", report.Lower, broken).Hold("max", 0)
	add("wrong", "frames", report.Lower, wrong).Hold("max", 0)
	add("lost", "ppm", report.Lower, 1e6*max(0, ratio(lost, sent)))
	add("sent", "frames", "", sent)
	add("changes", "policies", "", float64(s.Changes))
	add("looked-for", "seconds", "", s.Looks[len(s.Looks)-1].At.Seconds())
	return list
}

// report is what is printed with --json.
func (q *soak) report(s *soaked) *report.Output {
	r := &report.Output{Schema: report.Schema, Machine: machine(), Results: q.figures(s), Configs: map[string]string{report.Us: s.Config}}
	if r.Results == nil {
		r.Results = []report.Result{}
	}
	r.Machine.Demarc, r.Machine.Mode, r.Machine.Seed, r.Machine.Seconds = version(), s.Mode, q.Seed, float64(int(s.Took.Seconds()*10))/10
	for i := range s.Looks {
		if s.Looks[i].Disturbed {
			r.Machine.Disturbed++
		}
	}
	r.Notes = []string{
		fmt.Sprintf("frames of %d flows go both ways at %.0f a second, status and metrics are read ten times a second, and a policy of %d rules with one other rule is served every %v", q.Flows, q.Rate, q.Rules, q.Change),
		"drift is the median of the last quarter of the looks less that of the second: until then all is done for the first times. No peer: a kernel's memory is not a process's",
	}
	return r
}

// print is what a person reads.
func (q *soak) print(w io.Writer, r *report.Output) error {
	var b strings.Builder
	m := &r.Machine
	fmt.Fprintf(&b, "\ndemarc bench soak\nmachine     %s\ndemarc      %s, %s, AF_XDP: %s\n", machineWords(m), m.Demarc, m.Go, m.Mode)
	_, err := io.WriteString(w, b.String())
	if err == nil {
		err = r.Table(w)
	}
	b.Reset()
	for _, n := range r.Notes {
		fmt.Fprintf(&b, "- %s\n", n)
	}
	fmt.Fprintf(&b, "took %.0f s; looks that were disturbed: %d\n", m.Seconds, m.Disturbed)
	_, e := io.WriteString(w, b.String())
	return errors.Join(err, e)
}

func init() {
	register(scenario{place: 110, name: "soak", about: "a load that goes on: what memory, descriptors and the account of frames do", command: soakCommand,
		short: &stint{args: []string{"--for", "16s", "--every", "1s", "--change", "1s"}, seconds: 17, memoryMiB: 500},
		table: &stint{args: []string{"--for", "1h", "--every", "30s"}, seconds: 3700, memoryMiB: 500},
		full:  &stint{args: []string{"--for", "1h", "--flows", "65536"}, seconds: 3700, memoryMiB: 800}})
}

func soakCommand() *cobra.Command {
	q := soak{Binary: "/proc/self/exe"}
	var asJSON bool
	var rate float64
	c := &cobra.Command{
		Use:   "soak",
		Short: "a load that goes on for an hour: what memory, descriptors and the account of frames do",
		Long: "Send frames both ways on established flows at a pace while status and metrics are read all the time and the policy changes now and then, and look again and again at the gateway's memory, descriptors,\n" +
			"threads, sessions and its account of frames. Drift is the last quarter of the looks less the second. Fails when descriptors grow by more than 2, the account does not close, memory grows by more than 16 MiB, or a\n" +
			"frame arrives wrong. Needs root and two CPUs.",
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			switch {
			case q.Every < 200*time.Millisecond || q.For < 4*q.Every:
				return usageError{errors.New("--every must be at least 200ms, --for at least four times as long")}
			case q.Change < 50*time.Millisecond:
				return usageError{errors.New("--change must be at least 50ms")}
			case q.Flows < 1 || q.Flows > maxFlows || q.Flows&(q.Flows-1) != 0:
				return usageError{fmt.Errorf("--flows %d: want a power of two up to %d", q.Flows, maxFlows)}
			case rate <= 0 || q.Rules < 1:
				return usageError{errors.New("--rate and --rules must be more than 0")}
			}
			q.Rate, q.Progress = rate*1e6, cmd.ErrOrStderr()
			s, err := q.run(cmd.Context())
			if len(s.Looks) == 0 {
				return err
			}
			r := q.report(s)
			for i := range r.Results {
				if f := &r.Results[i]; f.Limit != nil && !f.Limit.Held {
					err = errors.Join(err, fmt.Errorf("%s, %s: %s %s, promised: %s", f.Case, f.Metric, number(f.Demarc.Max), f.Unit, f.Limit.Text()))
				}
			}
			if asJSON {
				return errors.Join(err, r.JSON(cmd.OutOrStdout()))
			}
			return errors.Join(err, q.print(cmd.OutOrStdout(), r))
		},
	}
	f := c.Flags()
	f.BoolVar(&asJSON, "json", false, "print one JSON object; progress goes to standard error")
	f.DurationVar(&q.For, "for", time.Minute, "how long")
	f.DurationVar(&q.Every, "every", 5*time.Second, "between two looks")
	f.DurationVar(&q.Change, "change", 5*time.Second, "between two changes of the policy")
	f.IntVar(&q.Flows, "flows", 4096, "a power of two")
	f.IntVar(&q.Rules, "rules", 1000, "of the access list; the last one matches, the first one changes")
	f.Float64Var(&rate, "rate", 0.1, "million frames per second, both directions together")
	f.Uint64Var(&q.Seed, "seed", 1, "of the access list")
	f.StringVar(&q.Binary, "binary", q.Binary, "the gateway's binary")
	_ = f.MarkHidden("binary") // it exists
	return c
}
