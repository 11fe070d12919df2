package bench

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"demarc/bench/pktgen"
	"demarc/bench/report"
)

// voip is one run of `demarc bench voip`.
type voip struct {
	traffic
	Calls   []int
	Seconds float64
}

// Calls as G.711 sends them: 20 ms of sound in 160 bytes, IP packets of 200, each way; and the bulk beside them.
const (
	callPackets = 50 // a second and direction
	callBytes   = 218
	bulkBytes   = 1518
	// How many times their time the packets of a load may take to be made.
	patienceOfCalls = 10
	callFrame       = 20 * time.Millisecond // of sound in a packet
)

// calls is what a load's calls met.
type calls struct {
	MOS    []float64 // of each call, its worse direction, rising
	Lost   float64   // part of the calls' packets, those that came too late among them
	Jitter []float64 // µs, of each direction of each call, rising
}

// emodel is the rating of ITU-T G.107 (06/2015) with its default values, for G.711 with concealment of lost packets (ITU-T G.113, appendix I: Ie = 0, Bpl = 25.1),
// packets lost at random (BurstR = 1). delay is from mouth to ear, lost a part from 0 to 1.
func emodel(delay time.Duration, lost float64) (r float64) {
	const (
		ro, is       = 94.77, 1.41 // of SLR 8, RLR 2, noise and STMR by default
		no, rlr      = -61.18, 2.0
		telr, wepl   = 65.0, 110.0
		ie, bpl      = 0.0, 25.1
		burst, terv0 = 1.0, 14.0
	)
	t := delay.Seconds() * 1e3
	// 7.4: talker's echo, listener's echo, delay by itself.
	idte := 0.0
	if t >= 1 {
		terv := telr - 40*math.Log10((1+t/10)/(1+t/150)) + 6*math.Exp(-0.3*t*t)
		roe, re := -1.5*(no-rlr), 80+2.5*(terv-terv0)
		idte = ((roe-re)/2 + math.Sqrt((roe-re)*(roe-re)/4+100) - 1) * (1 - math.Exp(-t))
	}
	rle := 10.5 * (wepl + 7) * math.Pow(2*t+1, -0.25)
	idle := (ro-rle)/2 + math.Sqrt((ro-rle)*(ro-rle)/4+169)
	idd := 0.0
	if t > 100 {
		x := math.Log2(t / 100)
		idd = 25 * (math.Pow(1+math.Pow(x, 6), 1.0/6) - 3*math.Pow(1+math.Pow(x/3, 6), 1.0/6) + 2)
	}
	ppl := 100 * lost
	ieff := ie + (95-ie)*ppl/(ppl/burst+bpl)
	return ro - is - idte - idle - idd - ieff
}

// mos is the mean opinion of a rating (annex B).
func mos(r float64) float64 {
	switch {
	case r <= 0:
		return 1
	case r >= 100:
		return 4.5
	}
	return max(1, 1+0.035*r+r*(r-60)*(100-r)*7e-6)
}

// heard rates one direction of a call of which so many packets were sent: the packet's own time, the time that a listener waits, the way.
func heard(c *pktgen.Call, sent uint64) (opinion, lost float64) {
	if sent == 0 {
		return 1, 1
	}
	good := c.Right - c.Late
	lost = max(0, 1-float64(good)/float64(sent))
	if good == 0 {
		return 1, 1
	}
	return mos(emodel(callFrame+pktgen.Late+c.Mean, lost)), lost
}

// judgeCalls rates all calls of a load; sent is packets of each direction of each call.
func judgeCalls(both [2][]pktgen.Call, sent uint64) (x calls) {
	sum := 0.0
	for i := range both[0] {
		worse := 5.0
		for d := range both {
			m, lost := heard(&both[d][i], sent)
			worse, sum = min(worse, m), sum+lost
			x.Jitter = append(x.Jitter, micro(both[d][i].Jitter.Nanoseconds()))
		}
		x.MOS = append(x.MOS, worse)
	}
	x.Lost = ratio(sum, float64(2*len(both[0])))
	slices.Sort(x.MOS)
	slices.Sort(x.Jitter)
	return x
}

// below is the part of a rising list that is less than v.
func below(list []float64, v float64) float64 {
	n, _ := slices.BinarySearch(list, v)
	return ratio(float64(n), float64(len(list)))
}

// rank is the value of a rising list that a part of it does not exceed.
func rank(list []float64, part float64) float64 {
	if len(list) == 0 {
		return 0
	}
	return list[min(len(list)-1, int(part*float64(len(list))))]
}

// goodMOS is what users are satisfied with (G.109: R of 80 and more).
const goodMOS = 4.03

// voipMetrics are what is reported of a turn.
var voipMetrics = []struct {
	name, unit string
	digits     int
	better     report.Better
	of         func(t *turn) float64
}{
	{"mos-worst-call", "", 3, report.Higher, func(t *turn) float64 { return rank(t.Calls.MOS, 0) }},
	{"mos-worst-1%", "", 3, report.Higher, func(t *turn) float64 { return rank(t.Calls.MOS, 0.01) }},
	{"mos-median", "", 3, report.Higher, func(t *turn) float64 { return rank(t.Calls.MOS, 0.5) }},
	{"calls-below-4.03", "percent", 3, report.Lower, func(t *turn) float64 { return 100 * below(t.Calls.MOS, goodMOS) }},
	{"loss", "percent", 4, report.Lower, func(t *turn) float64 { return 100 * t.Calls.Lost }},
	{"jitter-median", "µs", 3, report.Lower, func(t *turn) float64 { return rank(t.Calls.Jitter, 0.5) }},
	{"jitter-p99", "µs", 3, report.Lower, func(t *turn) float64 { return rank(t.Calls.Jitter, 0.99) }},
	{"delay-p50", "µs", 3, report.Lower, func(t *turn) float64 { return micro(t.Loads[0].times.ValueAtQuantile(50)) }},
	{"delay-p99", "µs", 3, report.Lower, func(t *turn) float64 { return micro(t.Loads[0].times.ValueAtQuantile(99)) }},
	{"delay-worst", "µs", 3, report.Lower, func(t *turn) float64 { return micro(t.Loads[0].worst.Nanoseconds()) }},
	{"load", "Mpps", 4, "", func(t *turn) float64 { return t.Loads[0].load.sent.Rate() / 1e6 }},
	{"loss-with-bulk", "percent", 4, "", func(t *turn) float64 { return 100 * t.Loads[0].load.loss() }},
	{"cpu-per-packet", "ns", 1, "", func(t *turn) float64 { return ratio(1e9*busy(t.Loads[0].load.use), t.Loads[0].load.rate()) }},
}

// run measures. What it could measure is in the output also when there is an error.
func (q *voip) run(ctx context.Context) (*report.Output, error) {
	for _, n := range q.Calls {
		q.Cases = append(q.Cases, flowCase{Flows: 2 * n, Calls: n, Direction: pktgen.Both})
	}
	err := q.each(ctx, q.measure, q.rows)
	if q.out != nil {
		q.note("calls: %d packets a second and direction, 200 bytes of IP, marked EF; beside each call a flow of as many packets of %d bytes. MOS by the E-model (ITU-T G.107, default values; G.711 with concealment, Bpl 25.1) of each call's worse direction; from mouth to ear: %v of sound in a packet, %v that a listener waits, and the way; what takes longer is lost to the listener", callPackets, bulkBytes-pktgen.FCS-14, callFrame, pktgen.Late)
	}
	return q.finish(), err
}

// measure is a turn's calls.
func (q *voip) measure(ctx context.Context, c *flowCase, d device, t *turn) error {
	if err := q.room.ends.Time(true); err != nil {
		return err
	}
	defer q.room.ends.Time(false)
	rate := float64(2*c.Flows) * callPackets
	rounds := uint64(math.Round(q.Seconds * callPackets))
	o := pktgen.Order{Frames: 2 * uint64(c.Flows) * rounds, Rate: rate, Direction: c.Direction, Batch: latencyBatch}
	// Where the maker is held up a call's packets come late, but all are sent: what is judged is what was sent.
	o.Duration = time.Duration(patienceOfCalls*max(q.Seconds, 1)*float64(time.Second)) + 100*time.Millisecond
	var l timed
	var err error
	if l.load, err = q.undisturbed(ctx, t, d, o); err != nil {
		return err
	}
	var both [2][]pktgen.Call
	for _, dir := range []pktgen.Direction{pktgen.Out, pktgen.In} {
		if both[dir], err = q.room.ends.Calls(dir); err != nil {
			return err
		}
		x, err := q.room.ends.Times(dir)
		if err != nil {
			return err
		}
		if dir == pktgen.Out {
			l.times, l.worst = x.Histogram, x.Worst
			continue
		}
		l.times.Merge(x.Histogram)
		l.worst = max(l.worst, x.Worst)
	}
	if l.load.sent.Frames != o.Frames {
		return fmt.Errorf("the maker sent %d of %d frames in %v: this machine cannot make so many calls now", l.load.sent.Frames, o.Frames, o.Duration)
	}
	t.Calls = judgeCalls(both, rounds)
	if slow := l.load.sent.Seconds / q.Seconds; slow > 1.1 {
		t.Disturbed = true
		q.say("  %s: the calls took %.2f times their time: the machine was busy", t.Side, slow)
	}
	t.Loads = []timed{l}
	q.say("  %-11s MOS worst %.2f, median %.2f; lost %.3f %%, jitter p99 %.0f µs, delay p99 %.0f µs%s", t.Side, rank(t.Calls.MOS, 0), rank(t.Calls.MOS, 0.5), 100*t.Calls.Lost, rank(t.Calls.Jitter, 0.99), micro(l.times.ValueAtQuantile(99)), map[bool]string{true: "  disturbed"}[t.Disturbed])
	return nil
}

// rows hands a case's figures to the report.
func (q *voip) rows(c *flowCase, turns map[string][]turn) {
	for _, m := range voipMetrics {
		addRow(q.out, report.Row{Scenario: q.Scenario, Case: c.name(), Metric: m.name, Unit: m.unit, Better: m.better, Digits: m.digits}, turns, func(t *turn) ([]float64, bool) {
			return []float64{m.of(t)}, t.Disturbed
		})
	}
}

func init() {
	register(scenario{place: 80, name: "voip", about: "hundreds to thousands of calls beside bulk: loss, jitter, and what a listener thinks of each call", command: voipCommand,
		needs: func() error { _, err := nftVersion(); return err },
		short: &stint{args: []string{"--calls", "512", "--peers", "kernel,nft-expert", "--trials", "4", "--seconds", "0.5"}, seconds: 20, memoryMiB: 500},
		table: bites(500, []string{"--trials", "4", "--seconds", "2", "--budget", "24h"}, part{[]string{"--calls", "512,1024"}, 120}, part{[]string{"--calls", "2048,4096"}, 150}),
		full: &stint{args: []string{"--trials", "10", "--seconds", "10", "--budget", "24h"}, seconds: 2400, memoryMiB: 500,
			parts: []part{{[]string{"--calls", "512"}, 600}, {[]string{"--calls", "1024"}, 600}, {[]string{"--calls", "2048"}, 600}, {[]string{"--calls", "4096"}, 600}}}})
}

func voipCommand() *cobra.Command {
	q := voip{traffic: traffic{Scenario: "voip"}}
	var f flowFlags
	c := &cobra.Command{
		Use:   "voip",
		Short: "calls beside bulk: loss, jitter and mean opinion of each call, beside kernel and nftables",
		Long: "Send calls as G.711 sends them (50 packets of 200 bytes a second each way) and beside each a flow of as many packets of 1500 bytes through each side in turns, and rate every call by the E-model\n" +
			"(ITU-T G.107) from the packets that it lost, those that came later than a listener waits (40 ms) among them, and their delay. Jitter is that of RFC 3550. 4,096 calls are 0.8 million packets a second,\n" +
			"their bulk included. Needs root, two CPUs and the package nftables.",
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if len(q.Calls) == 0 {
				return usageError{errors.New("--calls: want numbers of calls")}
			}
			for _, n := range q.Calls {
				if n < 1 || n > 16384 || n&(n-1) != 0 {
					return usageError{fmt.Errorf("--calls %d: want powers of two from 1 to 16384", n)}
				}
			}
			if q.Seconds < 0.2 || q.Seconds > 3600 {
				return usageError{errors.New("--seconds must be from 0.2 to 3600")}
			}
			if err := q.check(&f, cmd.Flags().Changed); err != nil {
				return err
			}
			q.Progress = cmd.ErrOrStderr()
			out, err := q.run(cmd.Context())
			return q.deliver(cmd, &f, out, err)
		},
	}
	q.peerFlags(c, &f)
	s := c.Flags()
	s.IntVar(&q.Rules, "rules", 1000, "of the access list; the last one matches")
	s.IntSliceVar(&q.Calls, "calls", []int{512, 1024, 2048, 4096}, "numbers of calls, powers of two")
	s.Float64Var(&q.Seconds, "seconds", 1, "of each load")
	return c
}
