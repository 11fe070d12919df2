package bench

import (
	"context"
	"errors"
	"fmt"
	"math"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"demarc/bench/pktgen"
	"demarc/bench/report"
)

// fairness is one run of `demarc bench fairness`.
type fairness struct {
	traffic
	Tenants []int
	Seconds float64 // of each load
	Rate    float64 // frames per second of all tenants together, when nobody floods: half of their limits
	Flood   int     // frames of the first tenant for each frame of all in turn
}

// fairTurn is what a turn's three loads found.
type fairTurn struct {
	Alone, Beside fairLoad
	Flooder       float64   // what the flooder got, of its limit
	Offered       float64   // what it offered, of its limit
	Deviation     []float64 // percent of what each tenant's limit, or what it offered, would have given it; rising. nil = the side has no limits
}

// fairLoad is what the paced tenants met.
type fairLoad struct {
	load    trial
	times   timed
	lost    float64 // part, of all paced tenants
	worst   float64 // of the worst one
	without int     // tenants that lost nothing
}

const (
	fairBytes   = 512 // of frames, the tag left out
	fairHeaders = 18  // Ethernet and checksum: a limit counts what is within
)

// tenantAddr is the one host of a tenant.
func tenantAddr(p *pktgen.Plan, i int) netip.Addr {
	in, _ := p.Flow(i)
	return in.Addr()
}

// fairGate is the gateway with many tenants. They are routed: their hosts are told apart at the outside by their addresses.
type fairGate struct {
	*demarc
	limit func(tenant int) uint64 // bit/s to the outside
}

func (d *fairGate) hops() int { return 1 }

func (d *fairGate) start(ctx context.Context) error {
	d.own = d.texts
	return d.demarc.start(ctx)
}

func (d *fairGate) texts() (node, policy string) {
	p := &d.r.plan
	var n, b strings.Builder
	fmt.Fprintf(&n, "schema = 1\nname = \"bench\"\ndata_dir = %q\n\n[workers]\ncount = 1\ncpus = [%d]\n\n[tables]\nsessions = %d\ntenants = %d\n\n[log]\nlevel = \"warn\"\n", filepath.Join(dirRun, "data"), deviceCPU, d.table, p.Flows+16)
	for _, dev := range []string{devIn, devOut} {
		fmt.Fprintf(&n, "\n[[port]]\ndevice = %q\nmode = \"auto\"\noffload = %q\nprepare = true\n", dev, d.offload)
	}
	fmt.Fprintf(&n, "\n[[interface]]\nname = \"out\"\nport = %q\naddresses = [\"198.51.100.3/24\"]\n", devOut)
	fmt.Fprintf(&b, "schema = 1\nname = \"bench\"\n\n[backbone]\ninterfaces = [\"out\"]\n\n[[route]]\nprefix = %q\nvia = %q\n", outsideNet, outsideVia)
	for i := range p.Flows {
		fmt.Fprintf(&n, "\n[[interface]]\nname = \"t%d\"\nport = %q\nvlan = %d\naddresses = [\"198.18.15.254/20\"]\n", i, devIn, int(p.VLAN)+i)
		fmt.Fprintf(&b, "\n[[tenant]]\nname = \"t%d\"\ninterfaces = [\"t%d\"]\nprefixes = [\"%s/32\"]\nrates.out.bits = %d\n", i, i, tenantAddr(p, i), d.limit(i))
	}
	return n.String(), b.String()
}

// config shows the first two tenants: the others are like them.
func (d *fairGate) config() string {
	short := func(text, head string) string {
		parts := strings.Split(text, head)
		if len(parts) < 4 {
			return text
		}
		return strings.Join(parts[:3], head) + fmt.Sprintf("# and %d more like it\n", len(parts)-3)
	}
	node, policy := d.texts()
	return short(node, "\n[[interface]]") + "\n" + short(policy, "\n[[tenant]]")
}

func (d *fairGate) missing(ctx context.Context, flows int) (string, error) {
	st, err := d.status(ctx, false)
	if err != nil {
		return "", err
	}
	if len(st.Tenants) != flows {
		return fmt.Sprintf("tenants: it has %d of %d", len(st.Tenants), flows), nil
	}
	for i := range st.Tenants {
		t := &st.Tenants[i]
		switch {
		case t.Limits.OutBits == 0:
			return "the limit of " + t.Name, nil
		case t.Out.Packets == 0:
			return "accounting of " + t.Name, nil
		}
	}
	return "", nil
}

// limitOf is a tenant's, in frames per second: twice its pace.
func (q *fairness) limitOf(tenants int) float64 { return 2 * q.Rate / float64(tenants) }

// bits is that as a policy has it.
func (q *fairness) bits(tenants int) uint64 {
	return uint64(math.Round(q.limitOf(tenants) * 8 * (fairBytes - fairHeaders)))
}

func (q *fairness) gate(r *room, limit func(tenant int) uint64) *fairGate {
	return &fairGate{demarc: &demarc{r: r, binary: q.Binary, table: max(4096, 2*r.plan.Flows), offload: never}, limit: limit}
}

// run measures. What it could measure is in the output also when there is an error.
func (q *fairness) run(ctx context.Context) (*report.Output, error) {
	q.Rules, q.Begin = 1, 10_000 // below the limits; the policy has no list
	for _, n := range q.Tenants {
		q.Cases = append(q.Cases, flowCase{Size: fmt.Sprint(fairBytes), Flows: n, Tenants: n})
	}
	tests := q.extra
	q.extra = func(r *room) map[string]device {
		list := map[string]device{report.Us: q.gate(r, func(int) uint64 { return q.bits(r.plan.Flows) })}
		if tests != nil {
			for name, d := range tests(r) {
				list[name] = d
			}
		}
		return list
	}
	err := q.each(ctx, q.measure, q.rows)
	if q.out == nil {
		return q.finish(), err
	}
	q.note("tenants: each a VLAN, one host, routed, a limit of twice its pace to the outside, its shaper as it is by default (a burst of 20 ms and a queue of 30 ms are in what it got); %.0f frames of %d bytes a second of all together; the flooder sends %d frames for each frame of all in turn", q.Rate, fairBytes, q.Flood)
	q.note("no peer: a kernel that only forwards limits nobody, and what nftables makes of a limit for each tenant is not measured here")
	out := q.finish()
	out.Notes = q.notes // the terms of one tenant's benches are not those of this one
	return out, err
}

// fair is one load: every tenant's frames are counted by themselves. Where the maker is held up it takes longer; what is judged is what was sent.
func (q *fairness) fair(ctx context.Context, c *flowCase, d device, t *turn, rate float64, flood int) (l fairLoad, accounts []pktgen.Call, rounds float64, err error) {
	rounds = math.Max(1, math.Round(rate*q.Seconds/float64(c.Flows)))
	o := pktgen.Order{Frames: uint64(rounds) * uint64(c.Flows) * uint64(flood+1), Rate: rate * float64(flood+1), Direction: pktgen.Out, Batch: latencyBatch, Flood: uint64(flood)}
	o.Duration = time.Duration(patienceOfCalls*q.Seconds*float64(time.Second)) + 100*time.Millisecond
	if l.load, err = q.room.load(ctx, o, d.pids()); err != nil {
		return l, nil, 0, err
	}
	if l.load.sent.Frames != o.Frames {
		return l, nil, 0, fmt.Errorf("the maker sent %d of %d frames in %v: this machine cannot make so many now", l.load.sent.Frames, o.Frames, o.Duration)
	}
	if wrong := l.load.wrong(); wrong > 0 {
		return l, nil, 0, fmt.Errorf("%d frames arrived wrong: %v", wrong, l.load.wrongKinds())
	}
	if l.load.use.disturbed() || l.load.sent.Seconds > 1.1*q.Seconds+0.1 {
		t.Disturbed = true
	}
	x, err := q.room.ends.Times(pktgen.Out)
	if err != nil {
		return l, nil, 0, err
	}
	l.times = timed{times: x.Histogram, worst: x.Worst, jitter: x.Jitter}
	if accounts, err = q.room.ends.Calls(pktgen.Out); err != nil {
		return l, nil, 0, err
	}
	l.lost, l.worst, l.without = othersLost(accounts, rounds)
	return l, accounts, rounds, nil
}

// othersLost is what all tenants but the first lost of so many frames each.
func othersLost(accounts []pktgen.Call, each float64) (all, worst float64, without int) {
	for i := range accounts[1:] {
		part := max(0, 1-float64(accounts[1+i].Right)/each)
		if all, worst = all+part, max(worst, part); part == 0 {
			without++
		}
	}
	return ratio(all, float64(len(accounts)-1)), worst, without
}

// deviations are what each tenant got beside what its limit, or its own pace where that is less, would have given it in a time. Percent, rising.
func deviations(accounts []pktgen.Call, each, limit, seconds float64) (list []float64) {
	due := min(each, limit*seconds)
	for i := range accounts {
		list = append(list, 100*(float64(accounts[i].Right)/due-1))
	}
	slices.Sort(list)
	return list
}

// measure is a turn's loads: paced, beside a flood, all above their limits.
func (q *fairness) measure(ctx context.Context, c *flowCase, d device, t *turn) (err error) {
	if err := q.room.ends.Time(true); err != nil {
		return err
	}
	defer q.room.ends.Time(false)
	f := &t.Fair
	if f.Alone, _, _, err = q.fair(ctx, c, d, t, q.Rate, 0); err != nil {
		return fmt.Errorf("paced: %w", err)
	}
	var accounts []pktgen.Call
	var each float64
	if f.Beside, accounts, each, err = q.fair(ctx, c, d, t, q.Rate, q.Flood); err != nil {
		return fmt.Errorf("beside a flood: %w", err)
	}
	limit := q.limitOf(c.Flows)
	seconds := f.Beside.load.sent.Seconds
	f.Flooder, f.Offered = ratio(float64(accounts[0].Right), limit*seconds), ratio(float64(f.Beside.load.sent.Frames)-each*float64(c.Flows-1), limit*seconds)
	// Where the maker is held up more is ordered, until what is really offered is more than the limits.
	var l fairLoad
	for order := 4.0; ; order *= 2 {
		if l, accounts, each, err = q.fair(ctx, c, d, t, order*q.Rate, 0); err != nil {
			return fmt.Errorf("above the limits: %w", err)
		}
		got := each / l.load.sent.Seconds
		if got >= 1.2*limit {
			break
		}
		if order > 16 {
			return fmt.Errorf("the tenants offered %.0f frames a second each, and the limit is %.0f: this machine cannot make so many now", got, limit)
		}
	}
	f.Deviation = deviations(accounts, each, limit, l.load.sent.Seconds)
	words := fmt.Sprintf("limits kept within %+.1f and %+.1f %%", rank(f.Deviation, 0), rank(f.Deviation, 1))
	q.say("  %-11s others lost %.3f %% alone, %.3f %% beside a flood of %.1f limits, of which %.2f passed; p99 %.0f and %.0f µs; %s%s", t.Side, 100*f.Alone.lost, 100*f.Beside.lost, f.Offered, f.Flooder,
		micro(f.Alone.times.times.ValueAtQuantile(99)), micro(f.Beside.times.times.ValueAtQuantile(99)), words, map[bool]string{true: "  disturbed"}[t.Disturbed])
	if g, ok := d.(*fairGate); ok {
		// A worker publishes its figures now and then.
		for end := time.Now().Add(2 * time.Second); ; time.Sleep(20 * time.Millisecond) {
			why, err := g.missing(ctx, c.Flows)
			if err != nil || why == "" {
				return err
			}
			if time.Now().After(end) {
				return fmt.Errorf("it does not do %s", why)
			}
		}
	}
	return nil
}

// rows hands a case's figures to the report.
func (q *fairness) rows(c *flowCase, turns map[string][]turn) {
	add := func(load, metric, unit string, digits int, better report.Better, of func(f *fairTurn) (float64, bool)) {
		addRow(q.out, report.Row{Scenario: q.Scenario, Case: c.name() + "/" + load, Metric: metric, Unit: unit, Better: better, Digits: digits}, turns, func(t *turn) ([]float64, bool) {
			if v, ok := of(&t.Fair); ok {
				return []float64{v}, t.Disturbed
			}
			return nil, false
		})
	}
	for _, load := range []struct {
		name string
		of   func(f *fairTurn) *fairLoad
	}{{"alone", func(f *fairTurn) *fairLoad { return &f.Alone }}, {"flood", func(f *fairTurn) *fairLoad { return &f.Beside }}} {
		figure := func(metric, unit string, digits int, better report.Better, of func(l *fairLoad) float64) {
			add(load.name, metric, unit, digits, better, func(f *fairTurn) (float64, bool) { return of(load.of(f)), true })
		}
		figure("others-loss", "percent", 4, report.Lower, func(l *fairLoad) float64 { return 100 * l.lost })
		figure("worst-tenant-loss", "percent", 3, report.Lower, func(l *fairLoad) float64 { return 100 * l.worst })
		figure("tenants-without-loss", "tenants", 0, report.Higher, func(l *fairLoad) float64 { return float64(l.without) })
		figure("others-p50", "µs", 3, report.Lower, func(l *fairLoad) float64 { return micro(l.times.times.ValueAtQuantile(50)) })
		figure("others-p99", "µs", 3, report.Lower, func(l *fairLoad) float64 { return micro(l.times.times.ValueAtQuantile(99)) })
		figure("others-worst", "µs", 3, report.Lower, func(l *fairLoad) float64 { return micro(l.times.worst.Nanoseconds()) })
		figure("load", "Mpps", 4, "", func(l *fairLoad) float64 { return l.load.sent.Rate() / 1e6 })
	}
	add("flood", "flooder-got", "limits", 3, "", func(f *fairTurn) (float64, bool) { return f.Flooder, true })
	add("flood", "flooder-offered", "limits", 3, "", func(f *fairTurn) (float64, bool) { return f.Offered, true })
	has := func(of func(list []float64) float64) func(f *fairTurn) (float64, bool) {
		return func(f *fairTurn) (float64, bool) {
			if f.Deviation == nil {
				return 0, false
			}
			return of(f.Deviation), true
		}
	}
	add("limits", "least", "percent", 2, "", has(func(l []float64) float64 { return rank(l, 0) }))
	add("limits", "median", "percent", 2, "", has(func(l []float64) float64 { return rank(l, 0.5) }))
	add("limits", "most", "percent", 2, "", has(func(l []float64) float64 { return rank(l, 1) }))
	add("limits", "worst", "percent", 2, report.Lower, has(func(l []float64) float64 { return max(math.Abs(rank(l, 0)), math.Abs(rank(l, 1))) }))
}

func init() {
	register(scenario{place: 90, name: "fairness", about: "one tenant floods, the others are paced: their loss and latency, and how well limits are kept", command: fairnessCommand,
		short: &stint{args: []string{"--tenants", "64", "--trials", "4"}, seconds: 17, memoryMiB: 400},
		table: bites(600, []string{"--trials", "4", "--seconds", "2", "--budget", "24h"}, part{[]string{"--tenants", "64"}, 40}, part{[]string{"--tenants", "1024"}, 120}),
		full: &stint{args: []string{"--trials", "10", "--seconds", "5", "--budget", "24h"}, seconds: 1200, memoryMiB: 600,
			parts: []part{{[]string{"--tenants", "64"}, 300}, {[]string{"--tenants", "1024"}, 900}}}})
}

func fairnessCommand() *cobra.Command {
	q := fairness{traffic: traffic{Scenario: "fairness"}}
	var f flowFlags
	var rate float64
	c := &cobra.Command{
		Use:   "fairness",
		Short: "one tenant floods, the others are paced: their loss and latency, and how well limits are kept",
		Long: "Give each of many tenants a VLAN, a host and a limit, and send for all of them to the outside: paced at half of the limits; the same while the first one floods; all at twice their limits. Every\n" +
			"tenant's frames are counted by themselves: what the paced ones lose and how late they are, what the flooder gets, and by how much what each gets is off its limit. There is no peer. Needs root and two CPUs.",
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if len(q.Tenants) == 0 {
				return usageError{errors.New("--tenants: want numbers of tenants")}
			}
			for _, n := range q.Tenants {
				if n < 2 || n > pktgen.InsideHosts || n&(n-1) != 0 {
					return usageError{fmt.Errorf("--tenants %d: want powers of two from 2 to %d", n, pktgen.InsideHosts)}
				}
				if bits := 2 * rate * 1e6 / float64(n) * 8 * (fairBytes - fairHeaders); bits < 8000 || bits > 1e10 {
					return usageError{fmt.Errorf("--rate %v: the limit of each of %d tenants would be %.0f bit/s; want from 8000 to 10^10", rate, n, bits)}
				}
			}
			switch {
			case q.Seconds < 0.2 || q.Seconds > 3600:
				return usageError{errors.New("--seconds must be from 0.2 to 3600")}
			case q.Flood < 1 || q.Flood > 1000:
				return usageError{errors.New("--flood must be from 1 to 1000")}
			}
			if err := q.check(&f, cmd.Flags().Changed); err != nil {
				return err
			}
			q.Rate, q.Progress = rate*1e6, cmd.ErrOrStderr()
			out, err := q.run(cmd.Context())
			return q.deliver(cmd, &f, out, err)
		},
	}
	q.Rules = 1
	q.peerFlags(c, &f)
	s := c.Flags()
	f.peers = nil
	_ = s.MarkHidden("peers") // it exists
	s.IntSliceVar(&q.Tenants, "tenants", []int{64, 1024}, "numbers of tenants, powers of two")
	s.Float64Var(&q.Seconds, "seconds", 1, "of each load")
	s.Float64Var(&rate, "rate", 0.032, "million frames per second of all tenants together, when nobody floods")
	s.IntVar(&q.Flood, "flood", 4, "frames of the first tenant for each frame of all in turn")
	return c
}
