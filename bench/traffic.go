package bench

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"

	"demarc/bench/peers"
	"demarc/bench/pktgen"
	"demarc/bench/report"
)

// flowCase is one kind of load.
type flowCase struct {
	Size      string // bytes on a wire, or imix
	Flows     int
	V6        bool // routed; IPv4 is translated
	Direction pktgen.Direction
	Search    bool // for the highest rate with at most lossLimit of loss
	Rules     int  // of the access list, in the case's name; 0 = as many as the run's
	Calls     int  // half of the flows are so many calls, the others bulk beside them
	Tenants   int  // each flow is one's, with a VLAN of its own
	Once      bool // each side is started and its flows are established once, for all of its turns
	Offload   bool // the gateway takes part a second time, its XDP programs carrying established sessions
}

const imix = "imix"

// trafficRate is the limit of those sides that have one, bit/s of IP in each direction: more than the largest frames reach here.
const trafficRate = 40_000_000_000

// imixSizes are seven small frames, four of middle size and one large (Simple IMIX); with IPv6 the small ones are the smallest that there are. Interleaved, so that
// no burst of a flow is of one size.
func imixSizes(v6 bool) []int {
	s := pktgen.MinSize(v6)
	return []int{s, 594, s, s, 594, s, 1518, s, 594, s, 594, s}
}

// sizes are those of the case's frames, on a wire.
func (c *flowCase) sizes() []int {
	if c.Calls > 0 {
		return []int{callBytes, bulkBytes}
	}
	if c.Size == imix {
		return imixSizes(c.V6)
	}
	n, _ := strconv.Atoi(c.Size) // the command line has looked at it
	return []int{max(n, pktgen.MinSize(c.V6))}
}

// bytes is the mean size on a wire.
func (c *flowCase) bytes() float64 {
	sum := 0
	for _, n := range c.sizes() {
		sum += n
	}
	return float64(sum) / float64(len(c.sizes()))
}

func (c *flowCase) plan() pktgen.Plan {
	p := plan(c.Flows)
	if c.V6 {
		p = plan6(c.Flows)
	}
	p.Sizes, p.Calls = c.sizes(), c.Calls > 0
	if c.Tenants > 0 {
		p.VLAN = firstVLAN
	}
	return p
}

// name is "64B/64k/nat44", with the direction behind it where it is not out.
func (c *flowCase) name() string {
	if c.Calls > 0 {
		return fmt.Sprintf("G.711/%d-calls/nat44", c.Calls)
	}
	if c.Tenants > 0 {
		return fmt.Sprintf("%dB/%d-tenants/routed", c.sizes()[0], c.Tenants)
	}
	size, family, flows := fmt.Sprintf("%dB", c.sizes()[0]), "nat44", fmt.Sprint(c.Flows)
	if c.Size == imix {
		size = "IMIX"
	}
	if c.V6 {
		family = "ipv6"
	}
	switch {
	case c.Flows >= 1<<20 && c.Flows%(1<<20) == 0:
		flows = fmt.Sprintf("%dM", c.Flows>>20)
	case c.Flows >= 1024 && c.Flows%1024 == 0:
		flows = fmt.Sprintf("%dk", c.Flows>>10)
	}
	n := size + "/" + flows + "/" + family
	if c.Rules > 0 {
		n += fmt.Sprintf("/%d-rules", c.Rules)
	}
	if c.Direction != pktgen.Out {
		n += "/" + c.Direction.String()
	}
	return n
}

// sideOffload is the gateway with offload = "always" on its ports. What is measured of it is a case of its own, in which it is demarc, and the gateway whose workers carry everything is beside it as sideNever.
const (
	sideOffload = report.Us + "-offload"
	sideNever   = report.Us + "-never"
	offloadCase = "/offload" // behind the case's name
)

// inModes calls fn with the turns of a case as they are reported: the gateway beside its peers, and, where it took part, the gateway with offload beside the same turns of theirs.
func inModes[T any](name string, turns map[string][]T, fn func(name string, turns map[string][]T)) {
	with, without := turns[sideOffload], turns[report.Us]
	others := maps.Clone(turns)
	delete(others, sideOffload)
	if len(without) > 0 || len(with) == 0 {
		fn(name, maps.Clone(others))
	}
	if len(with) == 0 {
		return
	}
	if others[report.Us] = with; len(without) > 0 {
		others[sideNever] = without
	}
	fn(name+offloadCase, others)
}

// Sides beside the gateway.
const (
	sideKernel  = "kernel"
	sideLinear  = "nft-linear"
	sideExpert  = peerName
	sideTestpmd = "testpmd"

	sideFewer = sideExpert + "-fewer" // that one with fewer flows than the case has, see withFewer
)

var (
	allPeers     = []string{sideKernel, sideLinear, sideExpert, sideTestpmd}
	defaultPeers = []string{sideKernel, sideLinear, sideExpert}
)

// traffic is what throughput and latency share: cases, sides that take turns, and loads that are repeated when something else ran.
type traffic struct {
	Scenario string
	Cases    []flowCase
	Peers    []string
	Named    bool     // the peers were named: none is left out to save time
	floor    bool     // testpmd takes part where it can, named or not
	noLinear bool     // nft-linear takes no part where it is not named
	Offload  []string // of the gateway, in cases that have both: never, always
	Trials   int      // turns of each side
	Rules    int
	Begin    float64 // first packets per second that are offered; 0 = establishRate
	NewFlows bool    // what gets through of them is a figure: it is looked at what runs beside them
	Seed     uint64
	Budget   time.Duration
	Binary   string
	Progress io.Writer
	extra    func(*room) map[string]device // for tests: devices that take a side's place
	weigh    func(*flowCase) float64       // what a case takes beside the others, roughly; nil = all the same

	out      *report.Output
	looks    int           // rounds of turns in which rates are looked for, the first ones
	aside    time.Duration // what that took in this round
	began    time.Time
	testpmd  string            // its version; "" = it cannot take part
	probed   bool              // it was tried
	notes    []string          // what was left out, and why
	mode     string            // of the gateway's ports
	devices  map[string]device // of the room that is open
	room     *room
	due      time.Time // of the case that runs; zero = it has all the time that it needs
	plannedT int       // turns of all cases
	doneT    int
}

func (q *traffic) say(format string, args ...any) { fmt.Fprintf(q.Progress, format+"\n", args...) }

// note says what a reader must know, once.
func (q *traffic) note(format string, args ...any) {
	s := fmt.Sprintf(format, args...)
	if !slices.Contains(q.notes, s) {
		q.notes = append(q.notes, s)
		q.say("%s", s)
	}
}

// late says that nothing may be tried twice any more, so that the run ends within its budget.
func (q *traffic) late() bool {
	return time.Since(q.began) > q.Budget*time.Duration(q.doneT+1)/time.Duration(q.plannedT+1)
}

// leastWatch is how long what ran beside is looked at, at least: the kernel counts by the tick of 10 ms, and in less a tick more or less would be a disturbance.
const leastWatch = 400 * time.Millisecond

// forwarder is a device that only forwards: it knows no sessions and leaves sources as they are.
type forwarder interface {
	hops() int // that it takes off the TTL
}

// turn is one side's turn in a case.
type turn struct {
	Side        string
	Establish   time.Duration
	New         float64 // flows per second that got through when all were offered as first packets
	BegunBeside usage   // what ran meanwhile, where that is a figure
	Sessions    int
	Load        time.Duration // until the device had its rules, where that is looked at
	Full        trial
	Paced       trial // of the bench of rates: below it

	FullDisturbed, PacedDisturbed bool // of the bench of rates, each load by itself
	Again                         int
	Disturbed                     bool
	HandDown                      time.Duration // with offload: from when all sessions were established until its programs had them
	Found                         foundRate     // with Search
	Doubted                       bool          // a trial failed although something else ran, and was not repeated
	Lossless                      trial         // its confirming trial
	Loads                         []timed       // of the latency bench
	Calls                         calls         // of the bench of calls
	Fair                          fairTurn      // of the bench of tenants
	Changes                       []float64     // of the bench of changes: ms that each took
	Version                       int           // the last one
}

// each measures every case: all sides take their turns Trials times, in an order that changes. measure is what a turn does once its flows are established.
// What was measured before an error is handed to done all the same.
func (q *traffic) each(ctx context.Context, measure func(context.Context, *flowCase, device, *turn) error, done func(*flowCase, map[string][]turn)) error {
	if runtime.NumCPU() < 2 {
		return errors.New("the bench needs two CPUs: one makes frames, one moves them")
	}
	q.began = time.Now()
	due := dueOf(ctx)
	q.Budget = within(q.Budget, due)
	q.plannedT = 0
	for i := range q.Cases {
		q.plannedT += q.Trials * (len(q.Peers) + len(q.ways(&q.Cases[i])))
	}
	q.out = &report.Output{Schema: report.Schema, Machine: machine(), Results: []report.Result{}, Configs: map[string]string{}}
	for i := range q.Cases {
		c := &q.Cases[i]
		if i > 0 && !due.IsZero() && time.Now().After(due) {
			q.note(report.LeftOut+"%s", c.name())
			continue
		}
		q.due = share(time.Now(), due, q.weight(c), q.weights(q.Cases[i:]))
		turns, err := q.oneCase(ctx, c, measure)
		if len(turns) > 0 {
			done(c, turns)
		}
		if err != nil {
			return fmt.Errorf("%s: %w", c.name(), err)
		}
	}
	return nil
}

func (q *traffic) weight(c *flowCase) float64 {
	if q.weigh == nil {
		return 1
	}
	return q.weigh(c)
}

func (q *traffic) weights(cases []flowCase) (sum float64) {
	for i := range cases {
		sum += q.weight(&cases[i])
	}
	return sum
}

func (q *traffic) oneCase(ctx context.Context, c *flowCase, measure func(context.Context, *flowCase, device, *turn) error) (turns map[string][]turn, err error) {
	turns = map[string][]turn{}
	sides, err := q.openCase(ctx, c)
	if err != nil {
		return turns, err
	}
	defer func() { err = errors.Join(err, q.room.Close()) }()
	q.say("%s: %s", c.name(), strings.Join(sides, ", "))
	if c.Once {
		return turns, q.once(ctx, c, sides, turns, measure)
	}
	return turns, q.inTurns(c.name(), sides, func(side string) (*turn, error) {
		t, err := q.turn(ctx, c, q.devices[side], measure)
		if err == nil {
			turns[side] = append(turns[side], t)
			q.config(c, side)
		}
		return &t, err
	})
}

// openCase builds a case's room and its devices, and says which sides take part.
func (q *traffic) openCase(ctx context.Context, c *flowCase) (sides []string, err error) {
	if err := enoughMemory(300 + c.Flows*400>>20); err != nil {
		return nil, err
	}
	p := c.plan()
	p.Pool = poolFor(&p)
	rules, err := makeRules(q.Seed, cmp.Or(c.Rules, q.Rules), &p)
	if err != nil {
		return nil, err
	}
	if q.room, err = openRoom(p); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, q.room.Close())
		}
	}()
	q.room.bothSides = c.Direction != pktgen.Out
	q.devices = map[string]device{
		report.Us:   &demarc{r: q.room, binary: q.Binary, rules: rules, pool: p.Pool, rate: trafficRate, table: max(4096, 2*c.Flows), offload: never},
		sideOffload: &demarc{r: q.room, binary: q.Binary, rules: rules, pool: p.Pool, rate: trafficRate, table: max(4096, 2*c.Flows), offload: always, called: sideOffload},
		sideKernel:  &plain{r: q.room},
		sideLinear:  &kernel{r: q.room, rules: rules, form: peers.Linear, called: sideLinear, rate: trafficRate},
		sideExpert:  &kernel{r: q.room, rules: rules, form: peers.Maps, called: sideExpert, rate: trafficRate},
		sideTestpmd: &testpmd{r: q.room},
	}
	if q.extra != nil {
		maps.Copy(q.devices, q.extra(q.room))
	}
	if slices.Contains(q.Peers, sideTestpmd) && !q.probed {
		q.probed = true
		if q.testpmd, err = (&testpmd{r: q.room}).probe(ctx); err != nil {
			if q.Named && !q.floor {
				return nil, fmt.Errorf("testpmd: %w", err)
			}
			q.testpmd = ""
			q.note("testpmd is left out: %v", err)
		}
	}
	return q.sides(c)
}

// inTurns has each side measured Trials times, another one first each time, or as often as there is time for.
func (q *traffic) inTurns(what string, sides []string, one func(side string) (*turn, error)) error {
	rounds := pacer{due: q.due}
	q.aside = 0
	for n := range q.Trials {
		// A round in which rates were looked for says nothing of how long those take in which they are not.
		rounds.aside, rounds.next, q.aside = q.aside, 0, 0
		if n < q.looks {
			rounds.next = rounds.aside
		}
		if !rounds.fits(time.Now()) {
			q.note("%s", fewer(what, n, q.Trials, "turns of each side"))
			q.doneT += (q.Trials - n) * len(sides)
			return nil
		}
		for _, side := range slices.Concat(sides[n%len(sides):], sides[:n%len(sides)]) {
			t, err := one(side)
			if err != nil {
				return fmt.Errorf("turn %d, %s: %w", n+1, side, err)
			}
			q.count(t)
		}
	}
	return nil
}

// poolFor is poolOf for plans of either family.
func poolFor(p *pktgen.Plan) (pool [2]netip.Addr) {
	if !p.V6() {
		pool = poolOf(p.Flows)
	}
	return pool
}

// linearFlows are the most that nftables with a chain of all rules is asked to establish where nobody asked for it by name: at some 20,000 new flows a second a million takes
// a minute each turn, and established packets never come to the list.
const linearFlows = 65536

// linearElsewhere says that the list is measured in another part of the plan.
const linearElsewhere = "to save time (name it with --peers): its list is met by first packets only, and acl has it"

// ways are the gateway's sides in a case.
func (q *traffic) ways(c *flowCase) (list []string) {
	if !c.Offload || len(q.Offload) == 0 || slices.Contains(q.Offload, never) {
		list = append(list, report.Us)
	}
	if c.Offload && slices.Contains(q.Offload, always) {
		list = append(list, sideOffload)
	}
	return list
}

// sides are those that take part in a case. Who does not is told.
func (q *traffic) sides(c *flowCase) ([]string, error) {
	list := q.ways(c)
	for _, p := range q.Peers {
		switch {
		case (p == sideLinear || p == sideExpert) && c.Rules > nftRules:
			q.note("%s: %s is left out: %s", c.name(), p, nftTooMany)
			continue
		case (p == sideLinear || p == sideExpert) && !c.V6 && c.Flows > 1:
			limit, err := conntrackMax()
			if err != nil {
				return nil, err
			}
			if limit < c.Flows+c.Flows/16 {
				q.note("%s: %s is left out: net.netfilter.nf_conntrack_max is %d on this machine, for %d flows set it to %d", c.name(), p, limit, c.Flows, 2*c.Flows)
				continue
			}
			fallthrough
		case p == sideLinear:
			if q.noLinear && p == sideLinear && !q.Named {
				q.note("%s: %s is left out %s", c.name(), p, linearElsewhere)
				continue
			}
			if p == sideLinear && c.Flows > linearFlows && !q.Named {
				q.note("%s: %s is left out to save time (name it with --peers): established packets never come to its list", c.name(), p)
				continue
			}
		case p == sideTestpmd && q.testpmd == "": // told when it was tried
			continue
		}
		list = append(list, p)
	}
	return list, nil
}

// conntrackMax is how many connections the kernel tracks at most. It is the machine's, not the namespace's, so the bench leaves it as it is.
func conntrackMax() (int, error) {
	b, err := os.ReadFile("/proc/sys/net/netfilter/nf_conntrack_max")
	if errors.Is(err, os.ErrNotExist) {
		return 1 << 30, nil // not loaded yet: the first ruleset does it, and what is too small shows there
	}
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(strings.TrimSpace(string(b)))
}

// config notes what a side is configured with, the access list left out: it is the same for all, and made again from the seed.
func (q *traffic) config(c *flowCase, side string) {
	name := side
	if c.V6 {
		name += "/ipv6"
	}
	if q.out.Configs[name] != "" {
		return
	}
	d, ok := q.devices[side].(interface{ config() string })
	if !ok {
		return
	}
	q.out.Configs[name] = d.config()
	if g, ok := q.devices[side].(interface{ modes() string }); ok && (side == report.Us || q.mode == "") {
		q.mode = g.modes()
	}
}

// once has each side measured Trials times on what was established once.
func (q *traffic) once(ctx context.Context, c *flowCase, sides []string, turns map[string][]turn, measure func(context.Context, *flowCase, device, *turn) error) error {
	q.note("%s: each side is started and its flows are established once, to save time, and then it is loaded so many times: where its memory lies is drawn once", c.name())
	due := q.due
	for i, side := range sides {
		rounds := pacer{due: share(time.Now(), due, 1, float64(len(sides)-i))}
		again := func(ctx context.Context, c *flowCase, d device, first *turn) error {
			for n := range q.Trials {
				if !rounds.fits(time.Now()) {
					q.note("%s", fewer(c.name()+", "+side, n, q.Trials, "turns"))
					q.doneT += q.Trials - n
					break
				}
				t := *first
				if n > 0 {
					t.Establish, t.HandDown = 0, 0 // the first says it
				}
				if err := measure(ctx, c, d, &t); err != nil {
					return fmt.Errorf("turn %d: %w", n+1, err)
				}
				turns[side] = append(turns[side], t)
				q.count(&t)
			}
			return nil
		}
		if _, err := q.turn(ctx, c, q.devices[side], again); err != nil {
			turns[side] = nil // what it lacked may have been missing in all of them
			return fmt.Errorf("%s: %w", side, err)
		}
		q.config(c, side)
	}
	return nil
}

// count takes a turn that has ended into the account of the run.
func (q *traffic) count(t *turn) {
	q.doneT++
	q.out.Machine.Again += t.Again
	if t.Disturbed || t.BegunBeside.disturbed() {
		q.out.Machine.Disturbed++
	}
}

// turn is one device's from its start to its end.
func (q *traffic) turn(ctx context.Context, c *flowCase, d device, measure func(context.Context, *flowCase, device, *turn) error) (t turn, err error) {
	defer func() { err = errors.Join(err, d.stop()) }()
	t.Side = d.name()
	if err := d.start(ctx); err != nil {
		return t, err
	}
	f, plain := d.(forwarder)
	hops := 1
	if plain {
		hops = f.hops()
	}
	if err := q.room.ends.Expect(plain, hops); err != nil {
		return t, err
	}
	before, err := sampleCPU(d.pids())
	if err != nil {
		return t, err
	}
	slowdown, err := yard.around(func() (err error) {
		_, t.Establish, err = q.room.establish(ctx, c.Flows, cmp.Or(q.Begin, establishRate))
		return err
	})
	if err != nil {
		return t, fmt.Errorf("establish %d flows: %w", c.Flows, err)
	}
	if q.NewFlows {
		time.Sleep(leastWatch - time.Since(before.at))
		after, err := sampleCPU(d.pids())
		if err != nil {
			return t, err
		}
		t.BegunBeside = before.until(after)
		t.BegunBeside.slowdown = slowdown
	}
	// One frame in 64 is looked at for its time: of few frames it says nothing.
	if t.New = ratio(float64(c.Flows), t.Establish.Seconds()); q.room.firsts.Between >= 256 {
		t.New = q.room.firsts.Rate()
	}
	held := func() (err error) {
		if plain {
			return nil
		}
		// A worker publishes its figures now and then.
		for end := time.Now().Add(2 * time.Second); ; time.Sleep(20 * time.Millisecond) {
			if t.Sessions, err = d.sessions(ctx); err != nil || t.Sessions >= c.Flows {
				return err
			}
			if time.Now().After(end) {
				return fmt.Errorf("it holds %d established sessions, want %d", t.Sessions, c.Flows)
			}
		}
	}
	if err := held(); err != nil {
		return t, err
	}
	if g, ok := d.(*demarc); ok && g.offload == always {
		began := time.Now()
		if err := q.handDown(ctx, c, g); err != nil {
			return t, err
		}
		t.HandDown = time.Since(began)
		q.say("  %-14s %d sessions were handed down in %.2f s of packets on all of them", t.Side, c.Flows, t.HandDown.Seconds())
	}
	if err := measure(ctx, c, d, &t); err != nil {
		return t, err
	}
	if plain {
		return t, nil
	}
	// Asked after the load, a device that lost sessions or never looked at its rules under way is found too.
	if err := held(); err != nil {
		return t, fmt.Errorf("after the load: %w", err)
	}
	why, err := d.missing(ctx, c.Flows)
	if err == nil && why != "" {
		err = fmt.Errorf("it does not do %s, so it did not do the same work as the others", why)
	}
	return t, err
}

// handDown sends on all flows until the gateway has handed their sessions down, which it does after some packets of each: what is measured afterwards is what its programs carry.
func (q *traffic) handDown(ctx context.Context, c *flowCase, d *demarc) error {
	const some, tries = 6, 10 // packets of each flow in a try
	n, rate, want := 0, float64(establishRate), (c.Flows*95+99)/100
	for range tries {
		if err := q.room.ends.Fresh(); err != nil {
			return err
		}
		frames := uint64(some * c.Flows)
		if _, err := q.room.send(ctx, pktgen.Order{Duration: 2*seconds(float64(frames)/rate) + 5*time.Second, Frames: frames, Rate: rate, Direction: c.Direction}); err != nil {
			return err
		}
		if err := q.room.ends.Settle(3 * time.Second); err != nil {
			return err
		}
		for end := time.Now().Add(300 * time.Millisecond); time.Now().Before(end); time.Sleep(20 * time.Millisecond) { // a worker publishes its figures now and then
			var err error
			if n, err = d.cruising(ctx); err != nil || n >= want {
				return err
			}
		}
		rate = max(20_000, rate/1.5)
	}
	return fmt.Errorf("%d of %d sessions were handed down to the XDP programs, want %d", n, c.Flows, want)
}

// undisturbed repeats a load at once while something else runs, or the maker was held up, while the sessions are there. Only what others used and what was offered decide, never the result.
func (q *traffic) undisturbed(ctx context.Context, t *turn, d device, o pktgen.Order) (l trial, err error) {
	for try := 0; ; try++ {
		before, err := carriedBy(ctx, d)
		if err != nil {
			return l, err
		}
		if l, err = q.room.load(ctx, o, d.pids()); err != nil {
			return l, err
		}
		after, err := carriedBy(ctx, d)
		if err != nil {
			return l, err
		}
		if l.carried = (carried{after.by - before.by, after.of - before.of}); t.Side == sideOffload {
			if err := l.carried.enough(); err != nil {
				return l, err
			}
		}
		held := heldUp(&l, o)
		if !l.use.disturbed() && !held {
			return l, soundLoad(&l)
		}
		if !l.use.again(try) && !(held && try < 2) || q.late() {
			t.Disturbed = true
			return l, soundLoad(&l)
		}
		t.Again++
	}
}

// heldUp reports whether a load whose frames are timed was offered less than was ordered: the maker makes up for a tenth of a millisecond and leaves out what is older, so a pause of its own would be no frame's delay, and one of the device would.
func heldUp(l *trial, o pktgen.Order) bool {
	return o.Batch > 0 && o.Rate > 0 && l.sent.Rate() < 0.95*o.Rate
}

// soundLoad refuses a load that measured nothing. Wrong frames are counted as lost; many of them are a fault, not a result.
func soundLoad(l *trial) error {
	if l.right() == 0 || l.rate() == 0 {
		return fmt.Errorf("no right frame arrived of %d sent; wrong ones: %v", l.sent.Frames, l.wrongKinds())
	}
	for i, j := range []*pktgen.Judged{&l.judged, &l.inside} {
		if l.sent.By[i] > 0 && j.Counts[pktgen.Right] == 0 {
			return fmt.Errorf("no right frame arrived of %d sent %s; wrong ones: %v", l.sent.By[i], pktgen.Direction(i), l.wrongKinds())
		}
	}
	if wrong := l.wrong(); float64(wrong) > lossLimit*float64(l.right()) {
		return fmt.Errorf("%d frames arrived wrong beside %d right ones: %v", wrong, l.right(), l.wrongKinds())
	}
	return nil
}
