package bench

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"math"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"demarc/bench/pktgen"
	"demarc/bench/report"
)

// throughput is one run of `demarc bench throughput`.
type throughput struct {
	traffic
	Seconds    float64 // of each load without a pace
	Step       float64 // of each trial of the search; the confirming one takes four times as long
	Offer      float64 // frames per second of the former; 0 = as many as the maker's CPU makes
	Resolution float64 // of the search
	Searches   int     // of each side in each case; 0 = one a turn

	fewer    map[string][]turn  // of peers in cases of fewer flows, by fewerKey
	of       map[string]int     // flows of those
	searched map[string]int     // of each side in each case, by both names
	found    map[string]float64 // of each side in each case, by both names: where its next search begins
	rnd      *rand.Rand
}

const wireExtra = 20 // bytes between two frames on Ethernet: preamble, start of frame, gap

func busy(u usage) (n float64) {
	for _, v := range u.cpus {
		n += v
	}
	return n
}

// loadKind is which of a turn's loads a figure is of.
type loadKind uint8

const (
	ofFull   loadKind = iota
	ofPaced           // below it
	ofSearch          // only where there was one
)

// throughputMetrics are what is reported of a turn, in this order.
var throughputMetrics = []struct {
	name, unit string
	digits     int
	better     report.Better
	load       loadKind
	of         func(c *flowCase, t *turn) float64
}{
	{"rate", "Mpps", 4, report.Higher, ofFull, func(_ *flowCase, t *turn) float64 { return t.Full.rate() / 1e6 }},
	{"rate-per-cpu", "Mpps", 4, report.Higher, ofPaced, func(_ *flowCase, t *turn) float64 { return ratio(t.Paced.rate()/1e6, busy(t.Paced.use)) }},
	{"cpu-per-packet", "ns", 1, "", ofPaced, func(_ *flowCase, t *turn) float64 { return ratio(1e9*busy(t.Paced.use), t.Paced.rate()) }},
	{"rate-at-80", "Mpps", 4, "", ofPaced, func(_ *flowCase, t *turn) float64 { return t.Paced.rate() / 1e6 }},
	{"loss-at-80", "percent", 3, "", ofPaced, func(_ *flowCase, t *turn) float64 { return 100 * t.Paced.loss() }},
	{"gbit-l2", "Gbit/s", 4, "", ofFull, func(c *flowCase, t *turn) float64 { return t.Full.rate() * c.bytes() * 8 / 1e9 }},
	{"gbit-l1", "Gbit/s", 4, "", ofFull, func(c *flowCase, t *turn) float64 { return t.Full.rate() * (c.bytes() + wireExtra) * 8 / 1e9 }},
	{"offered", "Mpps", 4, "", ofFull, func(_ *flowCase, t *turn) float64 { return t.Full.sent.Rate() / 1e6 }},
	{"loss", "percent", 3, "", ofFull, func(_ *flowCase, t *turn) float64 { return 100 * t.Full.loss() }},
	{"wrong", "frames", 0, "", ofFull, func(_ *flowCase, t *turn) float64 {
		return float64(t.Full.wrong() - t.Full.kind(pktgen.Duplicate) - t.Full.kind(pktgen.Stale))
	}},
	{"duplicates", "frames", 0, "", ofFull, func(_ *flowCase, t *turn) float64 { return float64(t.Full.kind(pktgen.Duplicate)) }},
	{"reordered", "frames", 0, "", ofFull, func(_ *flowCase, t *turn) float64 { return float64(t.Full.reordered() + t.Full.kind(pktgen.Stale)) }},
	{"rate-0.1%-loss", "Mpps", 4, report.Higher, ofSearch, func(_ *flowCase, t *turn) float64 { return t.Lossless.rate() / 1e6 }},
	{"rate-0.1%-loss-cpu-per-packet", "ns", 1, "", ofSearch, func(_ *flowCase, t *turn) float64 { return ratio(1e9*busy(t.Lossless.use), t.Lossless.rate()) }},
	{"carried", "percent", 2, "", ofFull, func(_ *flowCase, t *turn) float64 {
		return 100 * ratio(float64(t.Full.carried.by), float64(t.Full.carried.of))
	}},
	{"search-trials", "trials", 0, "", ofSearch, func(_ *flowCase, t *turn) float64 { return float64(t.Found.Trials) }},
	{"hand-down", "s", 3, "", ofFull, func(_ *flowCase, t *turn) float64 { return t.HandDown.Seconds() }},
	{"establish-rate", "flows/s", 0, "", ofFull, func(c *flowCase, t *turn) float64 { return ratio(float64(c.Flows), t.Establish.Seconds()) }},
}

// ratio is a over b, 0 where there is nothing to divide by.
func ratio(a, b float64) float64 {
	if b <= 0 {
		return 0
	}
	return a / b
}

// run measures. What it could measure is in the output also when there is an error.
func (q *throughput) run(ctx context.Context) (*report.Output, error) {
	q.fewer, q.of = map[string][]turn{}, map[string]int{}
	q.found, q.searched, q.rnd = map[string]float64{}, map[string]int{}, rand.New(rand.NewPCG(q.Seed, 3))
	q.weigh, q.looks = throughputWeight, cmp.Or(q.Searches, q.Trials)
	err := q.each(ctx, q.measure, q.rows)
	return q.finish(), err
}

// pacedPart is at what part of its rate without a pace a side's use of CPUs is measured. At full speed the CPU that makes frames has no rest, so whoever is faster would use less by that alone.
const pacedPart = 0.8

// throughputWeight is how much longer a case takes than one of few flows: 64k flows are established again in each turn, and the search is more loads than one.
func throughputWeight(c *flowCase) float64 {
	w := 1.5
	if c.Flows >= 1<<14 {
		w += 0.8
	}
	if c.Flows >= 1<<20 {
		w += 0.6
	}
	if c.Once {
		w -= 0.9
	}
	if c.Search {
		w += 3.6
	}
	if c.Offload {
		w *= 1.3
	}
	return w
}

// measure is a turn's loads: one that warms caches, one at full speed, one below it, the search.
func (q *throughput) measure(ctx context.Context, c *flowCase, d device, t *turn) (err error) {
	full := pktgen.Order{Duration: time.Duration(q.Seconds * float64(time.Second)), Rate: q.Offer, Direction: c.Direction}
	warm := full
	warm.Duration /= 5
	if _, err := q.room.load(ctx, warm, d.pids()); err != nil {
		return err
	}
	if t.Full, err = q.undisturbed(ctx, t, d, full); err != nil {
		return err
	}
	paced := full
	paced.Duration, paced.Rate = full.Duration*2/3, pacedPart*t.Full.rate() // above 0: the load was sound
	t.FullDisturbed, t.Disturbed = t.Disturbed, false
	t.Paced, err = q.undisturbed(ctx, t, d, paced)
	t.PacedDisturbed, t.Disturbed = t.Disturbed, t.Disturbed || t.FullDisturbed
	if err != nil {
		return err
	}
	if key := searchKey(c, t); c.Search && (q.Searches == 0 || q.searched[key] < q.Searches) {
		began := time.Now()
		if err := q.search(ctx, c, d, t); err != nil {
			return err
		}
		q.aside += time.Since(began)
		q.searched[key]++
	}
	q.say("  %-14s %7.3f Mpps right of %7.3f offered, %5.0f ns CPU a packet at %.0f %% of it%s%s", t.Side, t.Full.rate()/1e6, t.Full.sent.Rate()/1e6, ratio(1e9*busy(t.Paced.use), t.Paced.rate()), 100*pacedPart, foundWords(c, t), disturbedWords(t))
	return nil
}

// searchKey is the name under which is known what a side's searches have found.
func searchKey(c *flowCase, t *turn) string { return c.name() + " " + t.Side }

func foundWords(c *flowCase, t *turn) string {
	if !c.Search || t.Found.Trials == 0 {
		return ""
	}
	return fmt.Sprintf(", at most %.1f %% loss at %.3f Mpps (%d trials)", 100*lossLimit, t.Lossless.rate()/1e6, t.Found.Trials)
}

func disturbedWords(t *turn) string {
	if !t.Disturbed {
		return ""
	}
	u := t.Full.use
	if !t.FullDisturbed {
		u = t.Paced.use
	}
	return "  disturbed: " + u.words()
}

// search finds the rate; its confirming trial is what is reported.
func (q *throughput) search(ctx context.Context, c *flowCase, d device, t *turn) (err error) {
	key := searchKey(c, t)
	s := rateSearch{Most: 1.05 * t.Full.rate(), Resolution: q.Resolution}
	// Not where the last one ended, but up to a step beside it: else all turns would try the same few rates, and their spread would be none.
	if rate, ok := q.found[key]; ok {
		s.Near = max(0, rate+(q.rnd.Float64()*2-1)*s.Resolution*s.Most)
	}
	s.try = func(ctx context.Context, rate float64, confirm bool) (bool, error) {
		o := pktgen.Order{Duration: time.Duration(q.Step * float64(time.Second)), Rate: rate, Direction: c.Direction}
		if confirm {
			o.Duration *= 4
		}
		// One pause of a few milliseconds fails a trial, whoever took the CPU: a trial is repeated as a load without a pace is, by what others used and not by what it lost.
		for try := 0; ; try++ {
			l, err := q.room.load(ctx, o, d.pids())
			if err != nil {
				return false, err
			}
			if l.use.again(try) && !q.late() {
				t.Again++
				continue
			}
			ok := l.loss() <= lossLimit
			if ok && confirm {
				t.Lossless = l
			}
			t.Doubted = t.Doubted || !ok && l.use.disturbed()
			return ok, nil
		}
	}
	if t.Found, err = s.run(ctx); err == nil {
		q.found[key] = t.Found.Rate
	}
	return err
}

// fewerKey names what a peer did in cases that differ in nothing but their flows.
func fewerKey(c *flowCase, side string) string {
	one := *c
	one.Flows = 1
	return one.name() + " " + side
}

// withFewer adds turns of peers that a case has left out because they cannot hold so many connections: those of the case before with the most flows that they had in this run.
func (q *throughput) withFewer(c *flowCase, turns map[string][]turn) map[string][]turn {
	all := maps.Clone(turns)
	for _, p := range q.Peers {
		key := fewerKey(c, p)
		if p != sideExpert {
			continue
		}
		if own := turns[p]; len(own) > 0 {
			if q.of[key] < c.Flows {
				q.fewer[key], q.of[key] = own, c.Flows
			}
			continue
		}
		if n := q.of[key]; n > 1 && n < c.Flows {
			all[sideFewer] = q.fewer[key]
			few := *c
			few.Flows = n
			q.note("%s: %s is what %s made of fewer flows in this run (%s), each of which costs it less: what it would make of so many, were they let in, is no more", c.name(), sideFewer, p, few.name())
		}
	}
	return all
}

// rows hands a case's figures to the report.
func (q *throughput) rows(c *flowCase, turns map[string][]turn) {
	turns = q.withFewer(c, turns)
	inModes(c.name(), turns, func(name string, turns map[string][]turn) {
		for _, m := range throughputMetrics {
			if m.load == ofSearch && !c.Search {
				continue
			}
			turns := turns
			if !slices.Contains([]string{"rate", "rate-per-cpu", "cpu-per-packet"}, m.name) { // what is of that many flows, or says what of
				turns = maps.Clone(turns)
				delete(turns, sideFewer)
			}
			addRow(q.out, report.Row{Scenario: q.Scenario, Case: name, Metric: m.name, Unit: m.unit, Better: m.better, Digits: m.digits}, turns, func(t *turn) ([]float64, bool) {
				if m.name == "establish-rate" && t.Establish == 0 || m.name == "hand-down" && t.HandDown == 0 || m.load == ofSearch && t.Found.Trials == 0 || m.name == "carried" && t.Full.carried.of == 0 {
					return nil, false
				}
				return []float64{m.of(c, t)}, [...]bool{ofFull: t.FullDisturbed, ofPaced: t.PacedDisturbed, ofSearch: t.Doubted}[m.load]
			})
		}
	})
}

// addRow hands a figure to the report, for each side: the values of its turns, and whether a turn was disturbed. A side without a value has no such figure.
func addRow[T any](out *report.Output, row report.Row, turns map[string][]T, of func(t *T) (values []float64, disturbed bool)) {
	for _, side := range sortedSides(turns) {
		r := row
		r.Side = side
		for i := range turns[side] {
			values, disturbed := of(&turns[side][i])
			if r.Values = append(r.Values, values...); disturbed && len(values) > 0 {
				r.Disturbed++
			}
		}
		if len(r.Values) > 0 {
			out.Add(r)
		}
	}
}

// sortedSides are the gateway and then its peers.
func sortedSides[T any](turns map[string][]T) []string {
	list := slices.Sorted(maps.Keys(turns))
	slices.SortStableFunc(list, func(a, b string) int {
		switch {
		case a == report.Us:
			return -1
		case b == report.Us:
			return 1
		}
		return slices.Index(allPeers, a) - slices.Index(allPeers, b)
	})
	return list
}

// finish fills in what the run as a whole knows.
func (q *traffic) finish() *report.Output {
	if q.out == nil {
		return &report.Output{Schema: report.Schema, Machine: machine(), Results: []report.Result{}}
	}
	m := &q.out.Machine
	m.Demarc, m.Mode, m.Asked, m.Seed, m.Seconds = version(), q.mode, "auto", q.Seed, math.Round(time.Since(q.began).Seconds()*10)/10
	m.Nft, _ = nftVersion() // told when it was asked for
	m.Speed = yard.speed(report.Speed{})
	if q.testpmd != "" {
		m.Versions = map[string]string{sideTestpmd: q.testpmd}
	}
	q.out.Notes = append(q.notes, q.standing()...)
	q.out.Judge()
	setAims(q.out)
	return q.out
}

// standing are the terms of every run, which a reader needs to judge its figures.
func (q *traffic) standing() (list []string) {
	if slices.ContainsFunc(q.out.Results, func(r report.Result) bool { return strings.Contains(r.Case, offloadCase) }) {
		list = []string{offloadWords}
	}
	return append(list,
		fmt.Sprintf("gateway and nftables: access list (rules: %s) of which the last one matches (seed %d), NAT44 or routed IPv6, a rate limit of %d Gbit/s each way that cuts nothing, counters; sessions established on every side first", q.rulesWords(), q.Seed, int64(trafficRate)/1e9),
		"kernel only forwards (no rules, no sessions, no translation) and testpmd only changes MAC addresses: they do less than the others and are no rivals",
		fmt.Sprintf("CPU is that of all cores, those that make and judge frames (CPU %d) included, the same for all sides; of a paced load without the time in which no frame was due; only frames that arrive right are counted", makerCPU),
		fmt.Sprintf("throughput's CPU per packet and rate per CPU are those of a load of %.0f %% of what the side forwards at full speed (rate-at-80, and what it loses there)", 100*pacedPart),
	)
}

// offloadWords say what a case with offload is.
var offloadWords = fmt.Sprintf("in cases that end in %s the gateway's ports have offload = \"always\": its XDP programs carry established sessions on the CPU that brings a packet, which is CPU %d here, and what its worker sends leaves by one of them too where it is much at once; peers are the same turns as in the case without, in which workers carry everything and which is %s here",
	offloadCase, makerCPU, sideNever)

// rulesWords says how long the list is.
func (q *traffic) rulesWords() string {
	if len(q.Cases) == 0 || q.Cases[0].Rules > 0 {
		return "as many as the case says"
	}
	return fmt.Sprint(q.Rules)
}

// print is what a person reads.
func (q *traffic) print(w io.Writer, r *report.Output) error {
	var b strings.Builder
	p := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	m := &r.Machine
	p("")
	p("demarc bench %s", q.Scenario)
	p("machine     %s", machineWords(m))
	p("demarc      %s, %s, AF_XDP: %s; one worker on CPU %d, frames made on CPU %d", m.Demarc, m.Go, m.Mode, deviceCPU, makerCPU)
	for _, side := range slices.Sorted(maps.Keys(m.Versions)) {
		p("%-11s %s", side, m.Versions[side])
	}
	if m.Nft != "" {
		p("nftables    %s", m.Nft)
	}
	last := ""
	for _, f := range r.Results {
		if f.Case != last {
			p("")
			p("%-36s %30s   %s", f.Case, "median (least–most), n", "demarc to it (95 %)")
			last = f.Case
		}
		digits := 3
		if f.Unit != "Mpps" && f.Unit != "Gbit/s" && f.Unit != "percent" {
			digits = 0
		}
		if f.Unit == "µs" {
			digits = 1
		}
		if f.Unit == "ratio" {
			digits = 3
		}
		label := f.Metric + ", " + f.Unit
		for _, side := range append([]string{report.Us}, slices.SortedFunc(maps.Keys(f.Peers), func(a, b string) int { return slices.Index(allPeers, a) - slices.Index(allPeers, b) })...) {
			s, words := f.Demarc, ""
			if side != report.Us {
				s, words = f.Peers[side].Stat, f.Peers[side].Text()
			}
			mark := ""
			if s.Disturbed > 0 {
				mark = fmt.Sprintf(", %d disturbed", s.Disturbed)
			}
			p("  %-22s %-14s %30s   %s", label, side, fmt.Sprintf("%s, %d%s", s.Text(digits), s.N, mark), words)
			label = ""
		}
		if f.Limit != nil {
			p("  %-22s %s", "", f.Limit.Fared())
		}
	}
	p("")
	for _, n := range r.Notes {
		p("- %s", n)
	}
	for _, side := range slices.Sorted(maps.Keys(r.Configs)) {
		p("")
		p("configuration of %s:", side)
		for line := range strings.Lines(r.Configs[side]) {
			b.WriteString("  " + line)
		}
	}
	p("")
	p("took %.0f s; loads that were disturbed and repeated: %d, kept disturbed: %d", m.Seconds, m.Again, m.Disturbed)
	_, err := io.WriteString(w, b.String())
	return err
}

// flowFlags are the flags that throughput and latency share, as they were given.
type flowFlags struct {
	sizes, families, directions, peers []string
	flows                              []string
	asJSON                             bool
}

// parseFlows reads a number of flows: 65536, 64k, 1M.
func parseFlows(s string) (int, error) {
	number, unit := s, 1
	switch {
	case strings.HasSuffix(s, "k"):
		number, unit = s[:len(s)-1], 1<<10
	case strings.HasSuffix(s, "M"):
		number, unit = s[:len(s)-1], 1<<20
	}
	n, err := strconv.Atoi(number)
	if n *= unit; err != nil || n < 1 || n > maxFlows || n&(n-1) != 0 {
		return 0, usageError{fmt.Errorf("--flows %q: want powers of two from 1 to %dM, such as 1, 64k, 1M", s, maxFlows>>20)}
	}
	return n, nil
}

// maxFlows is what the room's pool, a /24, has ports for with room to spare.
const maxFlows = 1 << 22

// cases are all combinations of what was asked for.
func (f *flowFlags) cases() (list []flowCase, err error) {
	for _, family := range f.families {
		if family != "4" && family != "6" {
			return nil, usageError{fmt.Errorf("--family %q: want 4 (IPv4, translated), 6 (IPv6, routed) or 4,6", family)}
		}
		for _, size := range f.sizes {
			n, err := strconv.Atoi(size)
			if size != imix && (err != nil || n < pktgen.MinSize(false) || n > 1518 || n%2 != 0) {
				return nil, usageError{fmt.Errorf("--sizes %q: want imix or even numbers of bytes from %d to 1518, such as 64,128,512,1518,imix", size, pktgen.MinSize(false))}
			}
			for _, flows := range f.flows {
				n, err := parseFlows(flows)
				if err != nil {
					return nil, err
				}
				for _, dir := range f.directions {
					d, ok := map[string]pktgen.Direction{"out": pktgen.Out, "in": pktgen.In, "both": pktgen.Both}[dir]
					if !ok {
						return nil, usageError{fmt.Errorf("--direction %q: want out, in or both", dir)}
					}
					list = append(list, flowCase{Size: size, Flows: n, V6: family == "6", Direction: d, Offload: true})
				}
			}
		}
	}
	return list, nil
}

// check looks at what both commands are given, and finds out who is there.
func (q *traffic) check(f *flowFlags, changed func(string) bool) error {
	for _, o := range q.Offload {
		if o != never && o != always {
			return usageError{fmt.Errorf("--offload %q: want never (workers carry everything), always (XDP programs carry established sessions) or never,always", o)}
		}
	}
	for _, p := range f.peers {
		if !slices.Contains(allPeers, p) {
			return usageError{fmt.Errorf("--peers %q: want some of %s", p, strings.Join(allPeers, ","))}
		}
	}
	if q.Trials < 1 || q.Rules < 1 {
		return usageError{errors.New("--trials and --rules must be more than 0")}
	}
	q.Peers, q.Named = f.peers, changed("peers")
	if slices.Contains(q.Peers, sideLinear) || slices.Contains(q.Peers, sideExpert) {
		if _, err := nftVersion(); err != nil {
			return err
		}
	}
	return nil
}

// offloadFlag is that of benches that measure both.
func (q *traffic) offloadFlag(c *cobra.Command) {
	c.Flags().StringSliceVar(&q.Offload, "offload", []string{never, always}, "of the gateway: never = workers carry everything; always = XDP programs carry established sessions, in cases that end in "+offloadCase)
}

func (q *traffic) flags(c *cobra.Command, f *flowFlags) {
	q.offloadFlag(c)
	s := c.Flags()
	s.StringSliceVar(&f.families, "family", []string{"4"}, "4 = IPv4, translated; 6 = IPv6, routed; 4,6 = both")
	s.StringSliceVar(&f.directions, "direction", []string{"out"}, "out, in, both, or several of them")
	s.IntVar(&q.Rules, "rules", 1000, "of the access list; the last one matches")
	q.peerFlags(c, f)
}

// peerFlags are those of every bench with peers in turns.
func (q *traffic) peerFlags(c *cobra.Command, f *flowFlags) {
	s := c.Flags()
	s.BoolVar(&f.asJSON, "json", false, "print one JSON object; progress goes to standard error")
	s.StringSliceVar(&f.peers, "peers", defaultPeers, "some of "+strings.Join(allPeers, ","))
	s.IntVar(&q.Trials, "trials", 5, "turns of each side in each case")
	s.Uint64Var(&q.Seed, "seed", 1, "of the access list")
	s.DurationVar(&q.Budget, "budget", 10*time.Minute, "no disturbed load is repeated past its share of it")
	s.StringVar(&q.Binary, "binary", "/proc/self/exe", "the gateway's binary")
	_ = s.MarkHidden("binary") // it exists
}

// deliver prints what was measured, also when it is not all.
func (q *traffic) deliver(c *cobra.Command, f *flowFlags, out *report.Output, err error) error {
	if len(out.Results) == 0 {
		return err
	}
	if f.asJSON {
		return errors.Join(err, out.JSON(c.OutOrStdout()))
	}
	return errors.Join(err, q.print(c.OutOrStdout(), out))
}

func init() {
	register(scenario{place: 10, name: "throughput", about: "frame rates by size, flows, family and direction, beside four peers", command: throughputCommand,
		needs: func() error { _, err := nftVersion(); return err },
		short: &stint{args: []string{"--searches", "2", "--resolution", "0.1", "--step", "0.15", "--seconds", "0.7"}, seconds: 253, memoryMiB: 1000},
		table: bites(1500, []string{"--seconds", "0.7", "--budget", "24h"}, throughputTable()...),
		full:  &stint{args: []string{"--floor", "--search", "--budget", "24h"}, seconds: 24300, memoryMiB: 1500, parts: throughputParts()}})
}

// throughputParts are the whole table: a size and family each, and of a million flows, which take the longest, a direction.
func throughputParts() (list []part) {
	for _, family := range []string{"4", "6"} {
		for _, size := range []string{"64", "128", "512", "1518", imix} {
			of := []string{"--sizes", size, "--family", family}
			list = append(list, part{slices.Concat(of, []string{"--flows", "1,64k", "--direction", "out,in,both"}), 1080})
			for _, d := range []string{"out", "in", "both"} {
				list = append(list, part{slices.Concat(of, []string{"--flows", "1M", "--direction", d}), 450})
			}
		}
	}
	return list
}

// throughputTable has each size, number of flows, family and direction of the table, and not each with all others: one thing is another than in 64 bytes, 64k flows, IPv4, to the outside. nft-linear has the
// same packets as nft-expert once its connections are established, and is in the first part of acl.
func throughputTable() []part {
	few := []string{"--peers", "kernel,nft-expert", "--trials", "5"}
	return []part{
		{[]string{"--floor", "--searches", "2", "--resolution", "0.1", "--step", "0.15"}, 300}, // the cases of the short plan
		{slices.Concat(few, []string{"--sizes", "128,512,1518"}), 230},
		{slices.Concat(few, []string{"--sizes", "64,imix", "--direction", "in,both"}), 310},
		{slices.Concat(few, []string{"--sizes", "64", "--family", "6", "--direction", "out,in,both"}), 230},
		{slices.Concat(few, []string{"--sizes", "imix", "--family", "6"}), 80},
		{[]string{"--peers", "kernel,nft-expert", "--trials", "4", "--flows", "128k,1M", "--sizes", "64", "--offload", "always"}, 570}, // see withFewer; without offload they are a case of the short plan
	}
}

// shortCases are what is measured where nothing was asked for. What one does not need of its time the later ones have: those that are of as many turns as there is time for come last.
func shortCases() []flowCase {
	return []flowCase{{Size: "64", Flows: 65536, Search: true, Offload: true}, {Size: "64", Flows: 1 << 20, Once: true}, {Size: "64", Flows: 1, Offload: true}, {Size: imix, Flows: 65536, Offload: true}}
}

func throughputCommand() *cobra.Command {
	q := throughput{traffic: traffic{Scenario: "throughput"}}
	var f flowFlags
	var search, floor bool
	var offer float64
	c := &cobra.Command{
		Use:   "throughput",
		Short: "frame rates by size, flows, family and direction, beside four peers",
		Long: "Send the same UDP frames through the gateway and its peers, in turns on the same veth devices, and count those that arrive right: as many as CPU 0 makes, and by\n" +
			"binary search the highest rate with at most 0.1 % loss (RFC 2544; the rate that is found must pass a longer trial). Each frame has its flow's sequence number and a\n" +
			"check word, and every byte is summed: loss, duplicates, reordering and changed frames are told apart. The gateway has 1,000 rules, NAT or routing, limits and accounting.\n" +
			"Peers: kernel (forwards only), nft-linear (all rules in a chain), nft-expert (verdict maps, established first), testpmd (DPDK on AF_XDP, changes MAC addresses only).\n" +
			"Without --sizes and --flows: 64 bytes at 64k flows with the search, IMIX at 64k, 64 bytes at 1 and 1M flows, some 4 minutes,\n" +
			"without nft-linear. IMIX is 7 frames of the smallest\n" +
			"size, 4 of 594 bytes and 1 of 1518. Sizes are those on a wire, checksum included; IPv6 frames have at least 82 bytes. Needs root, two CPUs and the package nftables.",
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cases, err := f.cases()
			if err != nil {
				return err
			}
			switch {
			case q.Seconds < 0.1 || q.Step < 0.05:
				return usageError{errors.New("--seconds must be at least 0.1, --step at least 0.05")}
			case offer < 0:
				return usageError{errors.New("--offer must not be negative")}
			case q.Resolution < 0.001 || q.Resolution > 0.5:
				return usageError{errors.New("--resolution must be from 0.001 to 0.5")}
			case q.Searches < 0:
				return usageError{errors.New("--searches must not be negative; 0 is one in each turn")}
			}
			named := cmd.Flags().Changed("sizes") || cmd.Flags().Changed("flows") || cmd.Flags().Changed("family") || cmd.Flags().Changed("direction")
			if !named {
				cases = shortCases()
				q.noLinear = true
			}
			for i := range cases {
				if search || !named && !cmd.Flags().Changed("search") && cases[i].Search {
					cases[i].Search = true
				} else {
					cases[i].Search = false
				}
			}
			if err := q.check(&f, cmd.Flags().Changed); err != nil {
				return err
			}
			if floor && !slices.Contains(q.Peers, sideTestpmd) {
				q.Peers, q.floor = append(slices.Clone(q.Peers), sideTestpmd), true
			}
			q.Cases, q.Offer, q.Progress = cases, offer*1e6, cmd.ErrOrStderr()
			out, err := q.run(cmd.Context())
			return q.deliver(cmd, &f, out, err)
		},
	}
	q.flags(c, &f)
	s := c.Flags()
	s.StringSliceVar(&f.sizes, "sizes", []string{"64"}, "bytes of frames on a wire, and imix")
	s.StringSliceVar(&f.flows, "flows", []string{"64k"}, "powers of two, such as 1,64k,1M")
	s.Float64Var(&q.Seconds, "seconds", 1, "of each load without a pace")
	s.Float64Var(&q.Step, "step", 0.25, "seconds of each trial of the search; the confirming one takes four times as long")
	s.Float64Var(&q.Resolution, "resolution", 0.02, "of the search, as a part of the rate without a pace")
	s.Float64Var(&offer, "offer", 0, "million frames per second of the loads without a pace, the same for all; 0 = as many as CPU 0 makes")
	s.IntVar(&q.Searches, "searches", 0, "of each side in each case; 0 = one in each turn")
	s.BoolVar(&floor, "floor", false, "testpmd too, where Debian's dpdk-dev and librte-net-af-xdp23 are there: what DPDK takes to move frames and do nothing else")
	s.BoolVar(&search, "search", false, "search for the highest rate with at most 0.1 % loss in each case")
	return c
}
