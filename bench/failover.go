package bench

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"demarc/gateway/api"
	"demarc/gateway/netlab"
	"demarc/gateway/trio"
)

// failoverBench is one run of `demarc bench failover`.
type failoverBench struct {
	sheet
	Rows     []string  // names, or what stands before the slash
	Runs     int       // of each row; 0 = as many as the row says
	due      time.Time // of the row that is measured; zero = it has all the time that it needs
	Full     bool
	Probes   int // hosts of each tenant and family that are probed
	Interval time.Duration
	Calls    int // streams of 50 packets a second each way
	Data     int // connections with data on the way
	Every    time.Duration
	Many     int     // sessions of the row bulk
	ManyRate float64 // that are begun a second
	Idle     int     // and without
	Sample   int     // of the idle ones that are tried
	Rate     float64 // of connections that are opened all the time, a second
	Binary   string
	Patience time.Duration // with a pair that is not protected
	Within   time.Duration // a connection that takes longer is lost
	Brief    bool          // less of what only takes time: for a test
	Stay     bool          // the other gateway is dead: nobody takes over, and the figures must show it

	all     bool // rows, with as many runs as they have: in ten minutes, its end included
	began   time.Time
	number  int       // of labs made
	stays   bool      // the lab's group has moved because of a condition
	moves   int       // how often it has moved in all, and
	moved   time.Time // when last
	args    []string  // more of its nodes' command lines
	frames  int       // that the judge has seen
	failed  int       // runs of the row that have not begun
	early   int       // terms of the group that ended while connections of the row were opened, before anything was done
	configs map[string]string
}

// tenMinutes is what all rows may take where nothing was asked for. What takes longer than it does here has fewer runs, which is said.
const tenMinutes = 10 * time.Minute

const (
	before  = 200 * time.Millisecond // packets go for so long before an event, to see that they do
	settles = 500 * time.Millisecond // before that, where it is held against what follows: that flows begin is heard too
	behind  = 700 * time.Millisecond // and after somebody serves again
	takes   = 3 * time.Second        // nobody waits longer for a takeover: it is not one
	copied  = 20 * time.Second       // nor for a copy to be whole, where that is measured

	// Each takeover lets what the owner before had kept open of public ports rest for the hold time, a thirtieth of all in this lab: after so many in short turn it is replaced, else the last runs would find no port. Where connections are
	// opened fast more is kept open: with ten in a minute and a half that was so.
	mostMoves = 6
	holdTime  = 2 * time.Minute // as shipped

	fullIdle  = 100_000               // idle connections with --full
	callEvery = 20 * time.Millisecond // G.711: 160 bytes of sound and the header of RFC 3550
	callSize  = 172
	callPort  = 7150                // at the outside
	widePool  = "198.51.100.128/25" // alpha's: a million sessions of a hundred hosts have ports in it
	linkPool  = "203.0.113.128/26"  // beta's, likewise; and not where what a gateway can be told to break on goes
	addresses = 10                  // of each tenant and family, for connections and calls
)

// run is what one run cost, and how it went.
type run struct {
	failure
	moves   bool
	led     bool          // its owner led the log when it began
	why     string        // it was not protected before, by its owner's word
	refused error         // the pair did not do what was asked
	apart   int           // sessions by which the tables differ afterwards
	missing int           // open connections that whoever serves then has no session of, by its own list
	stopped time.Duration // row stop: for so long, by when the signals were sent
	lag     time.Duration // of the copy, as shown when all connections were open
	dropped string        // what the gateways have dropped meanwhile
}

// open makes a pair that agrees, and waits until one of them serves.
func (q *failoverBench) open(ctx context.Context, r *failoverRow) (*trio.Pair, error) {
	q.number++
	q.stays, q.moves = false, 0
	dir := filepath.Join(dirRun, strconv.Itoa(q.number))
	config, more, said := r.config()
	p, err := trio.NewPair(trio.Options{Lab: labName, Dir: dir, Binary: q.Binary, Gateway: more}, addresses)
	if err != nil {
		return nil, err
	}
	policy, text := filepath.Join(dir, "pair.toml"), strings.NewReplacer(trio.PairPool, widePool, trio.PairLinkPool, linkPool).Replace(trio.PairPolicy(""))
	err = errors.Join(os.WriteFile(policy, []byte(text), 0o600), p.Threads())
	for _, n := range p.Gateways() {
		n.Args = r.args
	}
	if err == nil {
		err = p.Begin(ctx, policy, time.Minute)
	}
	var modes []string
	for _, n := range p.Gateways() {
		var s *api.Status
		if err == nil {
			s, err = n.Status(ctx)
		}
		if err == nil {
			modes = append(modes, n.Name+" "+modesOf(s))
		}
	}
	var node []byte
	if err == nil {
		node, err = os.ReadFile(p.GW1.File)
	}
	if err != nil {
		return nil, errors.Join(err, p.Close())
	}
	q.machine.Mode = strings.Join(modes, "; ")
	q.configs[config] = fmt.Sprintf("# node file of %s; that of %s differs in names and addresses, the witness's has no ports\n%s%s\n# policy\n%s", p.GW1.Name, p.GW2.Name, said, node, text)
	return p, nil
}

// errNotBegun: connections did not come to be open, so nothing was done to the pair. 100,000 of them take a minute in which two processors have no rest, and a guest's are taken away
// for longer than a lease at times.
var errNotBegun = errors.New("the run has not begun")

// mostNotBegun is how many runs of a row may not begin, and are made again.
const mostNotBegun = 3

// once has packets go and connections be open, does something to the owner, and says what that cost. What it leaves behind when it fails, the lab removes. It is one
// function because it is the order of its steps that makes the account: connections, captures, flows, event, end of flows, end of connections, judge.
func (q *failoverBench) once(ctx context.Context, p *trio.Pair, r *failoverRow, a act) (o run, err error) {
	part := 10
	if r.connections {
		part = 1
	}
	c := account{}
	var had map[string]map[string]uint64
	many, seen := (q.Data+q.Idle)/part > perProcess && !r.peer, func() {}
	if many {
		seen = q.watchOpening(ctx, p, 10_000)
	}
	term, were := q.epoch(ctx, p), 0
	held, far, err := q.hold(p, part)
	seen()
	if now := q.epoch(ctx, p); now > term && term > 0 {
		q.early += int(now - term)
	}
	if err != nil {
		return o, errors.Join(errNotBegun, err, q.state(ctx, p, r))
	}
	if r.agree && !q.Stay { // not only those of this run: what is there is to be there afterwards
		n, err := q.serving(ctx, p)
		if err == nil {
			were, err = established(ctx, n)
		}
		if err != nil {
			return o, errors.Join(errNotBegun, err)
		}
	}
	if !r.peer {
		if o.lag, o.why, err = q.settled(ctx, p); err != nil {
			return o, errors.Join(errNotBegun, err)
		}
	}
	if !r.peer {
		had = q.drops(ctx, p)
	}
	echo, err := q.ping(p, r)
	if err != nil {
		return o, err
	}
	defer echo.end()
	if err := p.Watch(); err != nil {
		return o, err
	}
	probeSpecs, callSpecs := q.flows(p, r.long == 0 && !r.opening)
	var probes *netlab.Flows
	if len(probeSpecs) > 0 {
		if probes, err = p.StartFlows(probeSpecs...); err != nil {
			return o, err
		}
	}
	calls, err := p.StartFlows(callSpecs...)
	if err != nil {
		return o, err
	}
	owner, err := p.Owner(ctx, takes)
	var opening []*netlab.Server
	if r.opening && err == nil {
		var end *netlab.Server
		opening, end, err = q.openFresh(p)
		far = append(far, end)
	}
	if err == nil && r.calm > 0 {
		err = rest(ctx, settles)
	}
	c.calm = time.Now()
	if err == nil {
		err = rest(ctx, max(before, r.calm))
	}
	c.calmed = time.Now()
	if err == nil && q.Stay {
		p.Other(owner).Kill()
	}
	if err == nil && a.prepare != nil {
		err = a.prepare(owner)
	}
	if err != nil {
		return o, err
	}
	if !r.peer {
		m, err := owner.Members(ctx)
		if err != nil {
			return o, err
		}
		o.led = m.Leader == owner.Name
	}
	was, shown, known := "", copyOf{}, false
	if !r.peer {
		was = q.copies(ctx, p)
		if shown, known = q.look(ctx, owner, p.Other(owner)); r.opening && !known { // what is lost could not be held against it
			return o, fmt.Errorf("%s does not say how far its copy is behind", owner.Name)
		}
	}
	c.from = time.Now()
	o.moves = a.moves
	if err := a.do(owner); err != nil && a.refusable {
		o.refused = err
	} else if err != nil {
		return o, err
	}
	if c.struck = time.Now(); a.struck != nil {
		c.struck = *a.struck
	}
	if a.halts {
		c.woken = owner.Name
	}
	if a.moves && o.refused == nil {
		// Whether it came in time is what the figures say.
		wait := max(a.wait, takes)
		if q.Stay {
			wait = takes / 2 // nobody comes
		}
		_ = p.Serves(ctx, wait, p.Other(owner))
	} else {
		_, _ = p.Owner(ctx, takes)
	}
	if err := rest(ctx, behind); err != nil {
		return o, err
	}
	c.to = time.Now()
	if probes != nil {
		if c.probes, err = probes.End(); err != nil {
			return o, err
		}
	}
	if c.calls, err = calls.End(); err != nil {
		return o, err
	}
	if c.pings, err = echo.end(); err != nil {
		return o, err
	}
	sessions := 0
	if r.agree && !q.Stay { // while they are open
		n, err := p.Owner(ctx, takes)
		if err == nil {
			sessions, err = established(ctx, n)
		}
		if err != nil {
			q.say("  what is open cannot be counted: %v", err) // all is missing then
		}
	}
	if err := c.end(held, opening, far); err != nil {
		return o, err
	}
	if !r.peer {
		o.dropped = grown(had, q.drops(ctx, p))
	}
	if c.verdict, err = p.Judge(); err != nil {
		return o, err
	}
	q.frames += c.verdict.Frames
	if o.failure, err = c.judge(); err != nil {
		return o, err
	}
	if r.agree && !q.Stay {
		o.missing = max(0, max(were, o.opened)-sessions)
	}
	if o.fresh.shown = time.Duration(shown.lag * float64(time.Second)); o.fresh.lost > 0 && known {
		o.fresh.beyond = max(0, o.fresh.age-o.fresh.shown-c.from.Sub(shown.at))
	}
	if !r.peer && (o.data[0]+o.idle[0]+o.fresh.after > 0 || o.fresh.age > lagMs*time.Millisecond) {
		q.say("  connections were lost; before the event %s; now:\n%v", was, q.state(ctx, p, r))
	}
	if r.still && o.lost > 0 {
		q.say("  packets were lost though nothing was to move:\n%v", q.state(ctx, p, r))
	}
	if a.undo != nil && !q.Stay {
		err = a.undo(owner)
	}
	if err == nil && r.agree && !q.Stay {
		o.apart, err = q.agree(ctx, p)
	}
	return o, err
}

// established is how many sessions of established TCP connections a node has, by its list. Those of connections that have ended are in other states.
func established(ctx context.Context, node *trio.Node) (n int, err error) {
	var all api.Sessions
	if err := node.Client.Get(ctx, api.PathSessions+"?proto=tcp&limit=2000000", &all); err != nil {
		return 0, err
	}
	if all.Truncated {
		return 0, fmt.Errorf("%s lists %d of its %d sessions of TCP", node.Name, len(all.Sessions), all.Matched)
	}
	for i := range all.Sessions {
		if s := all.Sessions[i].State; s == "established" || s == "resync" { // a SYN that came late makes it doubtful, and no more
			n++
		}
	}
	return n, nil
}

// epoch is the highest that a gateway which answers says of the group; 0 = none did.
func (q *failoverBench) epoch(ctx context.Context, p *trio.Pair) (epoch uint64) {
	for _, n := range p.Gateways() {
		var all api.Groups
		if n.Client.Get(ctx, api.PathGroups, &all) == nil {
			for _, g := range all.Groups {
				epoch = max(epoch, g.Epoch)
			}
		}
	}
	return epoch
}

// copies is what the nodes say of the copy of the sessions: for whoever reads that some were lost.
func (q *failoverBench) copies(ctx context.Context, p *trio.Pair) string {
	var said []string
	for _, n := range p.Gateways() {
		var all api.Groups
		if err := n.Client.Get(ctx, api.PathGroups, &all); err != nil {
			said = append(said, fmt.Sprintf("%s: %v", n.Name, err))
			continue
		}
		for _, g := range all.Groups {
			for _, c := range g.Copies {
				said = append(said, fmt.Sprintf("%s serves, epoch %d, in sync %v, not protected %q: %+v, ports %+v", n.Name, g.Epoch, g.InSync, g.Why, c, g.Ports))
			}
			if g.Here != nil {
				said = append(said, fmt.Sprintf("%s: %+v", n.Name, *g.Here))
			}
		}
	}
	return strings.Join(said, "; ")
}

// state is what the nodes say of a pair that does not work, for whoever reads the error.
func (q *failoverBench) state(ctx context.Context, p *trio.Pair, r *failoverRow) error {
	if r.peer {
		return nil
	}
	var errs []error
	for _, n := range p.Gateways() {
		for _, args := range [][]string{{"group"}, {"group", "events"}, {"status"}} {
			out, err := n.Run(ctx, args...)
			errs = append(errs, fmt.Errorf("%s says: %s", n.Name, out), err)
		}
	}
	return errors.Join(errs...)
}

// agree waits for both tables to hold the same, by the digests that the nodes compare and by count, and says by how many sessions they are apart after some time. An
// error = the digests do not come to be equal.
func (q *failoverBench) agree(ctx context.Context, p *trio.Pair) (apart int, err error) {
	why, err := q.ready(ctx, p, copied)
	if err != nil {
		return 0, err
	}
	if why != "" {
		return 0, fmt.Errorf("tables do not come to be equal: %s", why)
	}
	for end := time.Now().Add(takes); ; {
		var n [2]int
		for i, g := range p.Gateways() {
			s, err := g.Status(ctx)
			if err != nil {
				return 0, err
			}
			for _, t := range s.Tenants {
				n[i] += t.Sessions
			}
		}
		if apart = max(n[0], n[1]) - min(n[0], n[1]); apart == 0 || time.Now().After(end) {
			return apart, nil
		}
		if err := rest(ctx, 20*time.Millisecond); err != nil {
			return 0, err
		}
	}
}

// ready waits until all nodes see each other well and some time for the copy of the sessions, and says why it is not whole.
func (q *failoverBench) ready(ctx context.Context, p *trio.Pair, patience time.Duration) (why string, err error) {
	if err := p.Whole(ctx, time.Minute, nil); err != nil {
		return "", err
	}
	for end := time.Now().Add(patience); ; {
		for _, n := range p.Gateways() {
			var all api.Groups
			if err := n.Client.Get(ctx, api.PathGroups, &all); err != nil {
				return "", err
			}
			for _, g := range all.Groups {
				if g.Serving && len(g.Why) == 0 {
					return "", nil
				} else if g.Serving {
					why = strings.Join(g.Why, "; ")
				}
			}
		}
		if time.Now().After(end) {
			return why, nil
		}
		if err := rest(ctx, 20*time.Millisecond); err != nil {
			return "", err
		}
	}
}

// row does one thing as often as is asked. A lab that a run left in pieces is replaced: lab is the one to go on with. So is one whose group has moved because of a condition
// before another is to move it: it would stay for ten seconds, then twenty, as promised, and the row would measure that.
func (q *failoverBench) row(ctx context.Context, r *failoverRow, lab **trio.Pair) (err error) {
	q.failed, q.early = 0, 0
	if r.peer { // in a lab of the same name, and with nothing of ours running
		if p := *lab; p != nil {
			*lab = nil
			if err := p.Close(); err != nil {
				return err
			}
		}
		return q.peerRow(ctx, r)
	}
	if r.events { // with nothing else running
		if p := *lab; p != nil {
			*lab = nil
			if err := p.Close(); err != nil {
				return err
			}
		}
		if err := q.events(ctx, r); err != nil {
			return fmt.Errorf("%s: %w", r.name, err)
		}
		return nil
	}
	if r.bulk {
		if err := q.bulk(ctx, r, lab); err != nil {
			return fmt.Errorf("%s: %w", r.name, err)
		}
		return nil
	}
	runs, long := r.planned(q.Full, q.Runs), r.long
	if q.Full {
		long = r.longFull
	}
	if r.alone { // in a lab of the same name
		if p := *lab; p != nil {
			*lab = nil
			if err := p.Close(); err != nil {
				return err
			}
		}
		if err := q.alone(ctx, r, runs); err != nil {
			return fmt.Errorf("%s: %w", r.name, err)
		}
		return nil
	}
	if r.half {
		if err := q.halfLoad(ctx, r, runs, lab); err != nil {
			return fmt.Errorf("%s: %w", r.name, err)
		}
		return nil
	}
	var list []run
	var u usage // where most else ran
	rounds, over := pacer{due: q.due}, false
	for len(list) < runs && err == nil && !over {
		if *lab != nil && (r.condition && q.stays || !slices.Equal(r.args, q.args) || q.moves >= mostMoves && time.Since(q.moved) < holdTime) {
			p := *lab
			*lab = nil
			if err = p.Close(); err != nil {
				break
			}
		}
		if *lab == nil {
			q.args = r.args
			if *lab, err = q.open(ctx, r); err != nil {
				err = fmt.Errorf("%s: %w", r.name, err)
				break
			}
		}
		p, anew := *lab, false
		q.stays = q.stays || r.condition
		part, e := watched(p.Trio, func() error {
			if time.Since(q.moved) >= holdTime { // nothing rests any more
				q.moves = 0
			}
			for len(list) < runs && q.moves < mostMoves {
				i := len(list)
				if over = !rounds.fits(time.Now()); over {
					q.fewer(r.name, i, runs, "runs")
					return nil
				}
				why, err := q.ready(ctx, p, q.Patience)
				if err != nil {
					return fmt.Errorf("run %d: %w", i+1, err)
				}
				a := r.act(q, ctx, p, i, runs, long)
				o, err := q.once(ctx, p, r, a)
				if anew = errors.Is(err, errNotBegun) && q.failed < mostNotBegun && ctx.Err() == nil; anew {
					q.failed++
					q.say("%-16s run %2d is made again, with nodes of its own: %v", r.name, i+1, err)
					return nil
				}
				if err != nil {
					return fmt.Errorf("run %d: %w", i+1, err)
				}
				if o.why = cmp.Or(why, o.why); a.stopped != nil {
					o.stopped = *a.stopped
				}
				q.say("%-16s run %2d: %s", r.name, i+1, &o)
				list = append(list, o)
				if o.handed() {
					q.moves, q.moved = q.moves+1, time.Now()
				}
				if r.condition { // each has a pair of its own
					break
				}
			}
			return nil
		})
		if e != nil {
			*lab = nil
			err = fmt.Errorf("%s: %w", r.name, errors.Join(e, p.Close()))
		} else if part.foreign >= u.foreign {
			u = part
		}
		if anew {
			*lab, err = nil, p.Close()
		}
	}
	if len(list) > 0 {
		q.figures(r, list)
	}
	if err == nil {
		q.beside(r.name, u)
	}
	return err
}

// wants reports whether a row is asked for.
func (q *failoverBench) wants(name string) bool {
	kind, _, _ := strings.Cut(name, "/")
	return slices.Contains(q.Rows, name) || slices.Contains(q.Rows, kind)
}

// run measures. What it could measure is there also when there is an error.
func (q *failoverBench) run(ctx context.Context) (err error) {
	q.began, q.configs = time.Now(), map[string]string{}
	if runtime.NumCPU() < 2 {
		return errors.New("the bench needs two CPUs")
	}
	for name := range failoverPeers {
		if err := peerLacks(); err != nil && q.wants(name) {
			return err
		}
	}
	lock, err := takeRun()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, leaveRun(lock)) }()
	all, err := sampleCPU(nil)
	if err != nil {
		return err
	}
	var lab *trio.Pair
	var rows []*failoverRow
	for i := range failoverRows {
		if r := &failoverRows[i]; q.wants(r.name) {
			rows = append(rows, r)
		}
	}
	due := dueOf(ctx)
	if q.all && due.IsZero() {
		due = q.began.Add(tenMinutes - reserve)
	}
	if q.Full {
		q.estimate(rows)
	}
	for i, r := range rows {
		if i > 0 && !due.IsZero() && time.Now().After(due) {
			q.fewer(r.name, 0, r.planned(q.Full, q.Runs), "runs")
			continue
		}
		q.due = q.allot(time.Now(), due, rows[i:])
		if ctx.Err() == nil {
			began := time.Now()
			err = errors.Join(err, q.row(ctx, r, &lab))
			q.say("%s took %.0f s", r.name, time.Since(began).Seconds())
		}
	}
	if lab != nil {
		err = errors.Join(err, lab.Close())
	}
	if after, e := sampleCPU(nil); e == nil {
		q.machine.Foreign = float64(int(all.until(after).foreign*1000)) / 1000
	}
	q.machine.Seconds = float64(int(time.Since(q.began).Seconds()*10)) / 10
	return errors.Join(err, ctx.Err())
}

// allot is when the first of these rows should have ended: each has of what is left by what it takes.
func (q *failoverBench) allot(now, due time.Time, rows []*failoverRow) time.Time {
	all := 0.0
	for _, r := range rows {
		all += r.estimate(q.Full, q.Runs, q.Idle).Seconds()
	}
	return share(now, due, rows[0].estimate(q.Full, q.Runs, q.Idle).Seconds(), all)
}

// estimate says beforehand how long the rows take: --full is hours, and goes in parts.
func (q *failoverBench) estimate(rows []*failoverRow) {
	var all time.Duration
	for _, r := range rows {
		d := r.estimate(q.Full, q.Runs, q.Idle)
		q.say("%-20s about %4.0f min", r.name, d.Minutes())
		all += d
	}
	q.say("about %.0f min in all; in parts by --rows, or by `demarc bench --full --scenarios failover`, which keeps each row that is done, and its --resume", all.Minutes())
}

// check says what is wrong with the flags.
func (q *failoverBench) check() error {
	var kinds []string
	known := map[string]bool{}
	for _, r := range failoverRows {
		kind, _, _ := strings.Cut(r.name, "/")
		if known[r.name], known[kind] = true, true; !slices.Contains(kinds, kind) {
			kinds = append(kinds, kind)
		}
	}
	if q.all = len(q.Rows) == 0 && q.Runs == 0 && !q.Full; len(q.Rows) == 0 {
		q.Rows = kinds
	}
	for _, r := range q.Rows {
		if !known[r] {
			return fmt.Errorf("--rows %q: want some of %s", r, strings.Join(kinds, ","))
		}
	}
	switch {
	case q.Runs < 0 || q.Data < 0 || q.Idle < 0 || q.Sample < 0:
		return errors.New("--runs, --data, --idle and --sample must not be negative")
	case q.Within <= 0 || q.Within > 10*time.Second:
		return errors.New("--within: want up to 10s")
	case q.Every < 100*time.Millisecond || q.Every > time.Minute:
		return errors.New("--every: want 100ms to 1m")
	case q.Rate < 4 || q.Rate > 4000:
		return errors.New("--rate: want 4 to 4000")
	case q.Stay && q.Runs != 1:
		return errors.New("--stay: there is nobody left for a second run: want --runs 1")
	case q.Probes < 1 || q.Probes > 50 || q.Probes > addresses && q.Probes%addresses != 0:
		return fmt.Errorf("--probes %d: want 1 to %d, or a multiple of that up to 50", q.Probes, addresses)
	case q.Calls < 4 || q.Calls > 4000 || q.Calls%4 != 0 || q.Calls > 4*addresses && q.Calls%(4*addresses) != 0:
		return fmt.Errorf("--calls %d: want a multiple of 4 up to %d, or of %d up to 4000", q.Calls, 4*addresses, 4*addresses)
	case q.Interval < 100*time.Microsecond || q.Interval > time.Second:
		return errors.New("--interval: want 100us to 1s")
	case q.Many < 2*bulkHosts || q.Many > 1_000_000 || q.Many%(2*bulkHosts) != 0 || q.ManyRate < 1000 || q.ManyRate > 1e6:
		return fmt.Errorf("--many %d: want a multiple of %d up to a million; --many-rate: want 1000 to a million", q.Many, 2*bulkHosts)
	case q.Data+q.Idle > 200_000:
		return errors.New("--data and --idle: want 200000 at most together")
	}
	return nil
}

func init() {
	register(scenario{place: 110, name: "failover", about: "what the death of a node of a pair costs the hosts, beside keepalived", command: failoverCommand, needs: peerLacks,
		short: &stint{args: []string{"--rows", "kill,gone,keepalived/gated", "--runs", "4"}, seconds: 61, memoryMiB: 800},
		table: &stint{seconds: 570, memoryMiB: 2500},
		full:  &stint{args: []string{"--full"}, seconds: secondsOf(failoverParts()), memoryMiB: 2500, parts: failoverParts()}})
}

func failoverCommand() *cobra.Command {
	q := failoverBench{Binary: "/proc/self/exe", sheet: sheet{scenario: "failover"}}
	var about strings.Builder
	for _, r := range failoverRows {
		fmt.Fprintf(&about, "  %-16s %s\n", r.name, r.about)
	}
	var asJSON bool
	c := &cobra.Command{
		Use:   "failover",
		Short: "what the death of a node of a pair costs the hosts",
		Long: "Run two gateways that serve the same networks and a witness, a process in a namespace each, as they are shipped, between learning switches. Packets go both ways\n" +
			"on paced flows and calls of two tenants and both families, and connections are open. Then something happens to the pair:\n" + about.String() +
			"A gap is the longest silence of a flow and direction at its receiver, by the kernel's clock, less the interval; a run's is its worst flow's. A connection\n" +
			"is lost when it cannot carry a further 1 kB each way, with the right content, within 5 s. A flow that comes from another public address or port\n" +
			"afterwards has lost its session. What either node sends under the group's address is recorded at the switches and judged. A run in which the\n" +
			"hosts got what no recorded node has sent, or nothing, is no figure: it ends the row. Fails when a figure does not keep to what was promised.\n" +
			"Needs root, two CPUs. All rows take ten minutes at most: where the machine is slower some have fewer runs, which is said; with --rows, --runs or --full all are made.",
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if q.Full {
				q.Idle, q.Sample = max(q.Idle, fullIdle), max(q.Sample, 5_000)
			}
			if q.Idle > perProcess && !cmd.Flags().Changed("every") {
				q.Every = 2 * time.Second // while so many open and are asked, both CPUs have enough to do
			}
			if err := q.check(); err != nil {
				return usageError{err}
			}
			q.Progress = cmd.ErrOrStderr()
			err := q.run(cmd.Context())
			if len(q.results) == 0 {
				return err
			}
			rep := q.report(version(), 0)
			rep.Configs = q.configs
			if asJSON {
				err = errors.Join(err, rep.JSON(cmd.OutOrStdout()))
			} else {
				end := fmt.Sprintf("the judge looked at %d frames", q.frames)
				for _, who := range slices.Sorted(maps.Keys(q.configs)) {
					end += fmt.Sprintf("\n\n# ---- configuration of %s, the same for all its rows\n%s", who, q.configs[who])
				}
				err = errors.Join(err, q.print(cmd.OutOrStdout(), rep, fmt.Sprintf("demarc bench failover: two gateways and a witness, a process and a namespace each; %d flows both ways, a packet each %s, and %d calls; %d connections with 1 kB each way each %s and %d idle ones for kill, a tenth of them else",
					4*q.Probes+2, q.Interval, q.Calls, q.Data, q.Every, q.Idle), end))
			}
			if list := q.missed(); len(list) > 0 {
				err = errors.Join(err, fmt.Errorf(missedPromises+"\n  %s", strings.Join(list, "\n  ")))
			}
			return err
		},
	}
	f := c.Flags()
	f.BoolVar(&asJSON, "json", false, "print one JSON object; progress goes to standard error")
	f.BoolVar(&q.Full, "full", false, "20 runs of each row and 200 stops, 100,000 idle connections, harm for 10 minutes, the copy of a million sessions at full rate too: takes hours, and says beforehand how many")
	f.StringSliceVar(&q.Rows, "rows", nil, "which rows to measure: names, or what stands before the slash; all by default")
	f.IntVar(&q.Runs, "runs", 0, "of each row; 0 = as many as fit into ten minutes")
	f.IntVar(&q.Probes, "probes", 2, "flows of each tenant that are probed in each family, of a host each up to ten, beside two flows of a host that hears no announcement")
	f.DurationVar(&q.Interval, "interval", time.Millisecond, "between two probes of a flow, each way")
	f.IntVar(&q.Calls, "calls", 200, "streams of 50 packets a second each way, as G.711 makes them")
	f.IntVar(&q.Data, "data", 2000, "connections with data on the way")
	f.DurationVar(&q.Every, "every", 500*time.Millisecond, "between two exchanges of 1 kB each way on each of them; 2s where more than 12000 are idle")
	f.IntVar(&q.Idle, "idle", 5000, "idle connections")
	f.IntVar(&q.Sample, "sample", 5000, "of the idle ones, drawn after the event, that must go on; 0 = all")
	f.Float64Var(&q.Rate, "rate", 2000, "connections a second in the row opening")
	f.IntVar(&q.Many, "many", 1_000_000, "sessions in the row bulk")
	f.Float64Var(&q.ManyRate, "many-rate", 30_000, "of them that are begun a second")
	f.StringVar(&q.Binary, "binary", q.Binary, "the program")
	f.BoolVar(&q.Stay, "stay", false, "have nobody take over, to see that the figures show it")
	f.DurationVar(&q.Patience, "patience", takes, "with a pair whose copy of the sessions is not whole, before each run")
	f.DurationVar(&q.Within, "within", 5*time.Second, "a connection that takes longer to carry another 1 kB each way is lost")
	f.BoolVar(&q.Brief, "brief", false, "rows bulk and poison measure for a second")
	for _, hidden := range []string{"binary", "brief", "stay", "patience", "within"} {
		_ = f.MarkHidden(hidden) // they exist
	}
	return c
}
