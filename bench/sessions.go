package bench

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"math"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"demarc/bench/pktgen"
	"demarc/bench/report"
	"demarc/gateway/api"
)

// manySessions is one run of `demarc bench sessions`.
type manySessions struct {
	Sessions   int     // a power of two; the gateway's tables have room for these and no more
	Rounds     int     // frames of each session that carry data, one in a round
	Rate       float64 // of these, frames per second; as many answers come back
	Rules      int
	Binary     string
	BreakStage string
	Progress   io.Writer
	Rates      establishing // measured after it, where Trials is not 0
}

// held is what was found of a gateway that holds them.
type held struct {
	Sessions int // that it counts itself, after all
	Answered int // flows whose answer came back inside

	Start     time.Duration // from exec to forwarding
	Establish time.Duration // sending first packets, those sent again included
	Rounds    []round       // the last one is what counts: those before it lost something
	Bare      int64         // bytes resident of a gateway that has next to no tables, ready
	Resident  [3]int64      // bytes: ready, with all sessions, at the end
	Ended     time.Duration // of all sessions at once, until the gateway had none
	Pauses    pauses        // of the garbage collector, from the start to the end
	Ask       time.Duration // the slowest answer of the interface while the data went
	Order     time.Duration // the longest that a report has kept packets waiting, as the gateway says
	Mode      string
	Took      time.Duration
}

// round is data on all sessions in both directions.
type round struct {
	Sent      pktgen.Sent
	There     pktgen.Judged // at the outside
	Back      pktgen.Counts // answers, at the inside
	Use       usage
	Disturbed bool
}

func (r *round) lost() (out, back int64) {
	return int64(r.Sent.Frames) - int64(r.There.Counts[pktgen.Right]), int64(r.There.Counts[pktgen.Right]) - int64(r.Back[pktgen.Right])
}

func (r *round) whole() bool {
	out, back := r.lost()
	return out == 0 && back == 0 && r.There.Counts.Wrong()+r.Back.Wrong() == 0
}

// pauses is what the Go runtime of the gateway says of its collections (GODEBUG=gctrace=1).
type pauses struct {
	Count      int
	Longest    time.Duration // a single stop of all threads
	Sum        time.Duration
	LargestMiB int // heap before a collection
}

// gcLine is "gc 7 @2.1s 0%: 0.02+1.3+0.03 ms clock, … ms cpu, 4->4->2 MB, …": the first and the last of the three stop everything.
var gcLine = regexp.MustCompile(`(?m)^gc \d+ @[0-9.]+s \d+%: ([0-9.]+)\+[0-9.]+\+([0-9.]+) ms clock, .* (\d+)->\d+->\d+ MB`)

func parsePauses(log []byte) (p pauses) {
	for _, m := range gcLine.FindAllSubmatch(log, -1) {
		p.Count++
		for _, text := range m[1:3] {
			ms, err := strconv.ParseFloat(string(text), 64)
			if err != nil {
				continue // the expression lets only numbers through, "1.2.3" among them
			}
			d := time.Duration(ms * float64(time.Millisecond))
			p.Longest = max(p.Longest, d)
			p.Sum += d
		}
		if mib, err := strconv.Atoi(string(m[3])); err == nil {
			p.LargestMiB = max(p.LargestMiB, mib)
		}
	}
	return p
}

// resident is the memory of a process that is in RAM, in bytes.
func resident(pid int) (int64, error) { return memory(pid, "VmRSS:") }

// memory is one of the sizes that the kernel knows of a process, in bytes.
func memory(pid int, field string) (int64, error) {
	return memoryOf(fmt.Sprintf("/proc/%d/status", pid), field)
}

func memoryOf(file, field string) (int64, error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return 0, err
	}
	for line := range bytes.Lines(b) {
		if f := strings.Fields(string(line)); len(f) == 3 && f[0] == field {
			kib, err := strconv.ParseInt(f[1], 10, 64)
			return kib << 10, err
		}
	}
	return 0, fmt.Errorf("%s has no %s", file, field)
}

// table is the size of the gateway's tables: a little more than the sessions, since those that wait for their answer may be half of what is free.
func (q *manySessions) table() int { return q.Sessions + q.Sessions/64 }

func (q *manySessions) say(format string, args ...any) { fmt.Fprintf(q.Progress, format+"\n", args...) }

// memoryMiB is what the gateway and the flows of both ends take, with some to spare.
func (q *manySessions) memoryMiB() int { return 150 + q.Sessions*300>>20 }

// dataTries is how often data goes over all sessions, at half the rate each time, until nothing was lost.
const dataTries = 4

// run measures. What it could measure is in the result also when there is an error.
func (q *manySessions) run(ctx context.Context) (out *held, err error) {
	began := time.Now()
	out = &held{}
	if runtime.NumCPU() < 2 {
		return out, errors.New("the bench needs two CPUs: one makes frames, one moves them")
	}
	if err := enoughMemory(q.memoryMiB()); err != nil {
		return out, err
	}
	p := plan(q.Sessions)
	rules, err := makeRules(1, q.Rules, &p)
	if err != nil {
		return out, err
	}
	r, err := openRoom(p)
	if err != nil {
		return out, err
	}
	defer func() { err = errors.Join(err, r.Close()) }()
	d := &demarc{r: r, binary: q.Binary, rules: rules, pool: p.Pool, rate: benchRate, table: bareTable, breakStage: q.BreakStage, offload: never, env: []string{"GODEBUG=gctrace=1"}}
	if out.Bare, err = q.bare(ctx, *d); err != nil {
		return out, fmt.Errorf("a gateway with next to no tables: %w", err)
	}
	d.table = q.table()
	defer func() { err = errors.Join(err, d.stop()) }()
	if err := d.start(ctx); err != nil {
		return out, err
	}
	out.Start, out.Mode = d.took, d.mode
	if out.Resident[0], err = resident(d.cmd.Process.Pid); err != nil {
		return out, err
	}
	q.say("ready after %s with room for %d sessions, %d MiB resident", out.Start.Round(time.Millisecond), q.table(), out.Resident[0]>>20)
	e, took, err := r.establish(ctx, q.Sessions, q.Rate)
	if err != nil {
		if st, e := d.status(ctx, false); e == nil {
			err = fmt.Errorf("%w; dropped by the gateway, all in all: %v, by the kernel at its queues: %v; try a lower --rate", err, dropped(st), st.AtQueues())
		}
		return out, fmt.Errorf("establish %d sessions: %w", q.Sessions, err)
	}
	out.Answered, out.Establish = e.Answered, took
	if out.Resident[1], err = resident(d.cmd.Process.Pid); err != nil {
		return out, err
	}
	q.say("%d sessions answered after %s (%.0f thousand/s), %d public ports, %d MiB resident", e.Answered, took.Round(time.Millisecond), float64(q.Sessions)/took.Seconds()/1e3, e.Ports, out.Resident[1]>>20)
	// From here on the judge only compares, but goes on to answer: see Learn.
	if err := r.ends.Learn(true); err != nil {
		return out, err
	}
	rate := q.Rate
	for try := range dataTries {
		rd, ask, err := q.data(ctx, r, d, rate)
		out.Ask = max(out.Ask, ask)
		out.Rounds = append(out.Rounds, rd)
		if err != nil {
			return out, err
		}
		lost, back := rd.lost()
		mark := ""
		if rd.Disturbed {
			mark = " (disturbed: " + rd.Use.words() + ")"
		}
		q.say("data, try %d: %d frames there and as many back at %.0f thousand/s, lost %d and %d, wrong %d and %d%s", try+1, rd.Sent.Frames, rd.Sent.Rate()/1e3, lost, back, rd.There.Counts.Wrong(), rd.Back.Wrong(), mark)
		if rd.There.Counts.Wrong()+rd.Back.Wrong() > 0 {
			return out, fmt.Errorf("frames arrived wrong: outside %v, inside %v", rd.There.Counts.WrongKinds(), rd.Back.WrongKinds())
		}
		if rd.whole() {
			break
		}
		rate = max(5000, rate/2)
	}
	if out.Resident[2], err = resident(d.cmd.Process.Pid); err != nil {
		return out, err
	}
	st, err := d.status(ctx, false)
	if err != nil {
		return out, err
	}
	for _, w := range st.Workers {
		out.Sessions += w.Sessions
		out.Order = max(out.Order, time.Duration(w.LongestOrder*float64(time.Second)))
	}
	log, err := os.ReadFile(filepath.Join(dirRun, "log"))
	if err != nil {
		return out, err
	}
	out.Pauses, out.Took = parsePauses(log), time.Since(began)
	switch last := &out.Rounds[len(out.Rounds)-1]; {
	case !st.Conservation.OK:
		return out, fmt.Errorf("the gateway's account of frames does not close: %s", st.Conservation.Detail)
	case out.Sessions < q.Sessions:
		return out, fmt.Errorf("the gateway holds %d sessions after the data, want %d", out.Sessions, q.Sessions)
	case !last.whole():
		lost, back := last.lost()
		return out, fmt.Errorf("%d frames were lost there and %d back in the last of %d tries; dropped by the gateway, all in all: %v, by the kernel at its queues: %v; try a lower --rate, or a machine that does nothing else", lost, back, len(out.Rounds), dropped(st), st.AtQueues())
	}
	ending := time.Now()
	if err := d.clear(ctx); err != nil {
		return out, fmt.Errorf("end %d sessions: %w", out.Sessions, err)
	}
	out.Ended = time.Since(ending)
	out.Took = time.Since(began)
	q.say("all %d sessions ended in %s (%.0f thousand/s)", out.Sessions, out.Ended.Round(time.Millisecond), float64(out.Sessions)/out.Ended.Seconds()/1e3)
	return out, nil
}

// dropped is what a gateway dropped, by reason.
func dropped(st *api.Status) map[string]uint64 {
	m := maps.Clone(st.Drops)
	maps.DeleteFunc(m, func(_ string, n uint64) bool { return n == 0 })
	return m
}

// data sends frames on all sessions in an order that no cache guesses, each answered by the outside, while somebody looks at the gateway.
func (q *manySessions) data(ctx context.Context, r *room, d *demarc, rate float64) (rd round, ask time.Duration, err error) {
	if err := r.ends.Fresh(); err != nil {
		return rd, 0, err
	}
	pids := d.pids()
	before, err := sampleCPU(pids)
	if err != nil {
		return rd, 0, err
	}
	// An operator's screen and a scraper: what makes the gateway's heap grow, and so its collector run.
	looking, stop := context.WithCancel(ctx)
	type look struct {
		slowest time.Duration
		err     error
	}
	looked := make(chan look, 1)
	go func() {
		var l look
		for looking.Err() == nil && l.err == nil {
			began := time.Now()
			if _, err := d.status(looking, true); err == nil {
				_, err = d.client.Text(looking, api.PathMetrics)
				l.err = err
			} else {
				l.err = err
			}
			l.slowest = max(l.slowest, time.Since(began))
			select {
			case <-looking.Done():
			case <-time.After(100 * time.Millisecond):
			}
		}
		if looking.Err() != nil {
			l.err = nil // it was told to stop
		}
		looked <- l
	}()
	frames := uint64(q.Rounds) * uint64(q.Sessions)
	slowdown, err := yard.around(func() (err error) {
		rd.Sent, err = r.send(ctx, pktgen.Order{Duration: time.Duration(2*float64(frames)/rate*1e9) + 5*time.Second, Frames: frames, Rate: rate})
		stop()
		return errors.Join(err, r.ends.Settle(3*time.Second))
	})
	stop()
	l := <-looked
	if err := errors.Join(err, l.err); err != nil {
		return rd, l.slowest, err
	}
	after, err := sampleCPU(pids)
	if err != nil {
		return rd, l.slowest, err
	}
	rd.Use = before.until(after)
	rd.Use.slowdown = slowdown
	rd.Disturbed = rd.Use.disturbed()
	if rd.There, err = r.ends.Judged(); err != nil {
		return rd, l.slowest, err
	}
	rd.Back, err = r.ends.Answered()
	return rd, l.slowest, err
}

// bareTable is the least that a node file takes as tables.sessions.
const bareTable = 1024

// bare is what the gateway takes of memory without tables. What a session takes is what comes on top of it: a gateway with tables makes their memory ahead, so its own size when it is ready says
// nothing of that.
func (q *manySessions) bare(ctx context.Context, d demarc) (n int64, err error) {
	defer func() { err = errors.Join(err, d.stop()) }()
	if err := d.start(ctx); err != nil {
		return 0, err
	}
	return resident(d.cmd.Process.Pid)
}

// figures are what is reported.
func (q *manySessions) figures(h *held) []report.Result {
	var list []report.Result
	name := caseName(q.Sessions)
	if q.Sessions%(1<<20) == 0 {
		name = fmt.Sprintf("64B/%dM/nat44", q.Sessions>>20)
	}
	add := func(metric, unit string, v float64) {
		list = append(list, report.Result{Scenario: "sessions", Case: name, Metric: metric, Unit: unit, Demarc: report.Of([]float64{v}).Round(4), Peers: map[string]report.Peer{}})
	}
	n := float64(q.Sessions)
	add("sessions", "sessions", float64(h.Sessions))
	add("start", "seconds", h.Start.Seconds())
	if h.Establish > 0 {
		add("establish", "seconds", h.Establish.Seconds())
		add("establish-rate", "sessions/s", n/h.Establish.Seconds())
	}
	add("resident-start", "MiB", float64(h.Resident[0])/(1<<20))
	add("resident", "MiB", float64(h.Resident[1])/(1<<20))
	add("resident-end", "MiB", float64(h.Resident[2])/(1<<20))
	add("resident-per-session", "bytes", float64(h.Resident[1])/n)
	add("added-per-session", "bytes", float64(h.Resident[1]-h.Bare)/n)
	if len(h.Rounds) > 0 {
		last := &h.Rounds[len(h.Rounds)-1]
		out, back := last.lost()
		add("data", "frames", float64(last.Sent.Frames))
		add("data-rate", "frames/s", last.Sent.Rate())
		add("lost", "frames", float64(out+back))
		add("wrong", "frames", float64(last.There.Counts.Wrong()+last.Back.Wrong()))
		add("tries", "loads", float64(len(h.Rounds)))
	}
	if h.Ended > 0 {
		add("tear-down", "ms", h.Ended.Seconds()*1e3)
		add("tear-down-rate", "connections/s", float64(h.Sessions)/h.Ended.Seconds())
	}
	add("gc", "collections", float64(h.Pauses.Count))
	add("gc-longest-pause", "ms", h.Pauses.Longest.Seconds()*1e3)
	add("gc-pauses", "ms", h.Pauses.Sum.Seconds()*1e3)
	add("gc-heap", "MiB", float64(h.Pauses.LargestMiB))
	add("slowest-answer", "ms", h.Ask.Seconds()*1e3)
	add("longest-order", "ms", h.Order.Seconds()*1e3)
	return list
}

func (q *manySessions) report(h *held, version string) *report.Output {
	r := &report.Output{Schema: report.Schema, Machine: machine(), Results: q.figures(h)}
	r.Machine.Demarc, r.Machine.Mode, r.Machine.Seconds = version, h.Mode, float64(int(h.Took.Seconds()*10))/10
	for i := range h.Rounds {
		if h.Rounds[i].Disturbed {
			r.Machine.Disturbed++
		}
	}
	r.Machine.Again = max(0, len(h.Rounds)-1)
	if f := q.Rates.out; f != nil {
		r.Results = append(r.Results, f.Results...)
		r.Configs, r.Notes = f.Configs, f.Notes
		r.Machine.Nft, r.Machine.Seed = f.Machine.Nft, f.Machine.Seed
		r.Machine.Seconds = math.Round((r.Machine.Seconds+f.Machine.Seconds)*10) / 10
		r.Machine.Again += f.Machine.Again
		r.Machine.Disturbed += f.Machine.Disturbed
	}
	return r
}

// print is what a person reads.
func (q *manySessions) print(w io.Writer, r *report.Output) error {
	var b strings.Builder
	p := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	m := &r.Machine
	p("")
	p("demarc bench sessions: %d sessions, access list of %d rules, every session a mapping of its own; tables for %d sessions", q.Sessions, q.Rules, q.table())
	p("machine     %s", machineWords(m))
	p("demarc      %s, %s, AF_XDP: %s; one worker on CPU %d, frames made on CPU %d", m.Demarc, m.Go, m.Mode, deviceCPU, makerCPU)
	last := ""
	for _, f := range r.Results {
		if f.Case != last {
			p("")
			p("%s", f.Case)
			last = f.Case
		}
		digits := 0
		if f.Unit == "ms" || f.Unit == "seconds" || f.Unit == "bytes" {
			digits = 2
		}
		beside := ""
		for _, side := range slices.Sorted(maps.Keys(f.Peers)) {
			beside += fmt.Sprintf("   %s %s", side, strconv.FormatFloat(f.Peers[side].Median, 'f', digits, 64))
		}
		if f.Unit == "ratio" {
			digits = 3
		}
		if f.Limit != nil {
			beside += "   " + f.Limit.Fared()
		}
		p("%-24s %14s %s%s", f.Metric, strconv.FormatFloat(f.Demarc.Median, 'f', digits, 64), f.Unit, beside)
	}
	if len(r.Notes) > 0 {
		p("")
	}
	for _, n := range r.Notes {
		p("- %s", n)
	}
	_, err := io.WriteString(w, b.String())
	return err
}

func init() {
	register(scenario{place: 20, name: "sessions", about: "RFC 9693: connections established and ended a second beside nftables; a table full of sessions that carry data", command: sessionsCommand,
		needs: func() error { _, err := nftVersion(); return err },
		short: &stint{args: []string{"--sessions", "131072", "--rounds", "1", "--resolution", "0.1"}, seconds: 60, memoryMiB: 500},
		table: &stint{args: []string{"--sessions", "4194304", "--trials", "4", "--peers", "nft-linear,nft-expert"}, seconds: 800, memoryMiB: 1500},
		full:  &stint{args: []string{"--sessions", "4194304", "--trials", "5", "--peers", "nft-linear,nft-expert"}, seconds: 900, memoryMiB: 1500}})
}

func sessionsCommand() *cobra.Command {
	q := manySessions{Binary: "/proc/self/exe"}
	rates := &q.Rates
	rates.Scenario, rates.Budget = "sessions", time.Hour
	var f flowFlags
	flows := ""
	c := &cobra.Command{
		Use:   "sessions",
		Short: "how fast sessions are established and ended, and a table full of them that carry data: time, memory, pauses",
		Long: "Start the gateway with tables for hardly more than so many sessions, establish that many UDP sessions, each with a mapping and a public port of its own and an\n" +
			"answer that came back, then send data on all of them in random order, answered too, and end them. Every frame is judged at both ends: translated source, destination,\n" +
			"checksums, not lost, not twice. Prints how long start and establishing took, the gateway's memory, and the pauses of its garbage collector while status\n" +
			"and metrics are read ten times a second. Fails when a frame is wrong, or lost in each of four tries, each at half the rate of the one before.\n" +
			"Then, by RFC 9693, gateway and nftables in turns: the highest rate at which so many connections are established without one lost frame, by binary search, each trial on\n" +
			"an empty table (section 4.5); a trial is valid when afterwards a frame to the inside arrives on every connection (4.6). Then all are ended at once, and the time\n" +
			"until the device has none is the tear-down (4.8); none may carry a frame then. The capacity of the table (4.9) is what the first part fills.\n" +
			"Needs root, two CPUs and the package nftables (not with --trials 0, which leaves the second part out); 400 MiB of memory for a million sessions.",
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			n, err := parseFlows(flows)
			switch {
			case err != nil:
				return err
			case n < 1024:
				return usageError{fmt.Errorf("--flows %q: want at least 1k", flows)}
			case q.Sessions < 1024 || q.Sessions > pktgen.MaxFlows || q.Sessions&(q.Sessions-1) != 0:
				return usageError{fmt.Errorf("--sessions %d: want a power of two from 1024 to %d", q.Sessions, pktgen.MaxFlows)}
			case q.Rounds < 1 || q.Rate < 1000 || q.Rules < 1:
				return usageError{errors.New("--rounds and --rules must be more than 0, --rate at least 1000")}
			case rates.Trials < 0 || rates.Resolution < 0.001 || rates.Resolution > 0.5:
				return usageError{errors.New("--trials must not be negative, --resolution must be from 0.001 to 0.5")}
			}
			for _, p := range f.peers {
				if p != sideLinear && p != sideExpert {
					return usageError{fmt.Errorf("--peers %q: want some of %s,%s, which have sessions", p, sideLinear, sideExpert)}
				}
			}
			q.Progress = cmd.ErrOrStderr()
			if rates.Trials > 0 {
				if err := rates.check(&f, cmd.Flags().Changed); err != nil {
					return err
				}
			}
			h, err := q.run(cmd.Context())
			if rates.Trials > 0 && cmd.Context().Err() == nil {
				rates.Cases, rates.Binary, rates.Progress = []flowCase{{Size: "64", Flows: n, Offload: true}}, q.Binary, q.Progress
				_, e := rates.run(cmd.Context())
				err = errors.Join(err, e)
			}
			var rep *report.Output
			switch {
			case h.Sessions > 0:
				rep = q.report(h, version())
			case rates.out != nil && len(rates.out.Results) > 0:
				rep = rates.out
			default:
				return err // there is nothing to report
			}
			if f.asJSON {
				return errors.Join(err, rep.JSON(cmd.OutOrStdout()))
			}
			return errors.Join(err, q.print(cmd.OutOrStdout(), rep))
		},
	}
	s := c.Flags()
	s.BoolVar(&f.asJSON, "json", false, "print one JSON object; progress goes to standard error")
	s.StringSliceVar(&f.peers, "peers", []string{sideExpert}, "of the second part: some of nft-linear,nft-expert")
	s.IntVar(&rates.Trials, "trials", 1, "turns of each side in the second part, a search each; 0 leaves it out")
	rates.offloadFlag(c)
	s.StringVar(&flows, "flows", "64k", "connections of the second part, a power of two")
	s.Float64Var(&rates.Resolution, "resolution", 0.05, "of the search, as a part of what gets through when more is offered")
	s.Uint64Var(&rates.Seed, "seed", 1, "of the access lists")
	s.IntVar(&rates.Rules, "list", 1000, "rules of the second part's access list; the last one matches")
	s.IntVar(&q.Sessions, "sessions", 1<<20, "of the first part, a power of two")
	s.IntVar(&q.Rounds, "rounds", 4, "data frames of each session, and answers")
	s.Float64Var(&q.Rate, "rate", 50_000, "frames per second, first ones and data, and as many answers; halved while something is lost")
	s.IntVar(&q.Rules, "rules", 100, "of the first part's access list; the last one matches")
	s.StringVar(&q.Binary, "binary", q.Binary, "the gateway's binary")
	s.StringVar(&q.BreakStage, "break", "", "switch a stage of the gateway off; the bench must then fail")
	for _, hidden := range []string{"binary", "break"} {
		_ = s.MarkHidden(hidden) // they exist
	}
	return c
}
