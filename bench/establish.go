package bench

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"time"

	"github.com/vishvananda/netlink"

	"demarc/bench/pktgen"
	"demarc/bench/report"
	"demarc/gateway/api"
)

// establishing is the part of `demarc bench sessions` that is made in turns, by RFC 9693: how fast connections are established at most without a lost frame (sections 4.5
// and 4.6), and how fast all of them are ended (section 4.8).
type establishing struct {
	traffic
	Resolution float64 // of the search

	started bool // the device whose turn it is
}

// validation is alpha of RFC 9693, section 4.6: the part of the rate at which all connections are asked whether they are there. It must not be what fails.
const validation = 0.5

// errLate ends a search whose time is over: it has no result.
var errLate = errors.New("no time is left")

// opened is one side's turn.
type opened struct {
	turn
	trials int
	rate   float64       // connections per second that were all established, and all there; 0 = no rate was found
	clear  time.Duration // until the device had none of them any more
}

// clearer is a device that ends all of its sessions at once. clear returns when it says itself that none is left.
type clearer interface {
	clear(ctx context.Context) error
}

func (d *demarc) clear(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	var cut api.Cut
	if err := d.client.Post(ctx, api.PathCut, api.CutRequest{All: true}, &cut); err != nil {
		return err
	}
	return none(ctx, d)
}

func (k *kernel) clear(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	if err := k.renew(); err != nil {
		return err
	}
	return none(ctx, k)
}

// none waits until a device counts no session.
func none(ctx context.Context, d device) error {
	for {
		n, err := d.sessions(ctx)
		if n == 0 || err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%d sessions are left although all were ended", n)
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// run measures. What it could measure is in the output also when there is an error.
func (q *establishing) run(ctx context.Context) (out *report.Output, err error) {
	if runtime.NumCPU() < 2 {
		return q.finish(), errors.New("the bench needs two CPUs: one makes frames, one moves them")
	}
	q.began = time.Now()
	q.plannedT = q.Trials * (len(q.Peers) + len(q.ways(&q.Cases[0])))
	q.out = &report.Output{Schema: report.Schema, Machine: machine(), Results: []report.Result{}, Configs: map[string]string{}}
	c := &q.Cases[0]
	sides, err := q.openCase(ctx, c)
	if err != nil {
		return q.finish(), err
	}
	defer func() { err = errors.Join(err, q.room.Close()) }()
	for _, side := range []string{report.Us, sideOffload} {
		if d, ok := q.devices[side].(*demarc); ok {
			d.table = 4 * c.Flows // sessions that wait for an answer may fill half of what is free
		}
	}
	q.due = dueOf(ctx)
	turns := map[string][]opened{}
	err = q.inTurns(c.name(), sides, func(side string) (*turn, error) {
		t, err := q.one(ctx, c, q.devices[side])
		if errors.Is(err, errLate) {
			q.note(report.LeftOut+"%s: the search of %s did not end", c.name(), side)
			return &t.turn, nil
		}
		if err == nil {
			turns[side] = append(turns[side], t)
			q.config(c, side)
		}
		return &t.turn, err
	})
	q.rows(c, turns)
	out = q.finish()
	if len(turns[sideOffload]) > 0 {
		q.notes = append(q.notes, offloadWords, "a session is handed down behind its fourth packet, and an establishment by RFC 9693 is two: what "+sideOffload+" establishes costs no hand-down (`hand-down` of throughput is that). Before they are torn down 95 of 100 at least are handed down, by six packets or more of each")
	}
	out.Notes = append(q.notes,
		fmt.Sprintf("RFC 9693: %d first packets at a rate, none lost, then at half of the rate a frame back on every connection, none lost, four tries each; each trial on an empty table (the gateway was just started, the kernel's was flushed), with an access list of %d rules (seed %d), no answers meanwhile", c.Flows, q.Rules, q.Seed),
		"tear-down: all connections at once, the gateway's by its interface (POST /v1/sessions/cut), nftables' by a flush of the kernel's table, until each says itself that none is left; the machine's other tables are not touched")
	setAims(out) // what it has no peer for is a note, too
	return out, err
}

// one is a side's turn: the search, each trial on an empty table, the last one of which has its connections ended.
func (q *establishing) one(ctx context.Context, c *flowCase, d device) (t opened, err error) {
	t.Side = d.name()
	q.started = false
	defer func() { err = errors.Join(err, d.stop()) }()
	// Without a pace more is offered than can be established: what gets through is where the search begins.
	full := 0.0
	if err := q.fresh(ctx, d, func() error {
		if _, err := q.send(ctx, pktgen.Order{Duration: 10 * time.Second, Frames: uint64(c.Flows)}); err != nil {
			return err
		}
		j, err := q.room.ends.Judged()
		if err == nil && (j.Rate() == 0 || j.Counts.Wrong() > 0) {
			err = fmt.Errorf("%d of %d first packets got through, wrong ones: %v", j.Counts[pktgen.Right], c.Flows, j.Counts.WrongKinds())
		}
		full = j.Rate()
		return err
	}); err != nil {
		return t, err
	}
	// A device that is offered more than it can take may do less than it could.
	const above = 8
	s := rateSearch{Most: above * full, Resolution: q.Resolution / above, Near: full, Tries: 2 * hiccups}
	doubts := map[float64]bool{}
	s.try = func(ctx context.Context, rate float64, confirm bool) (ok bool, err error) {
		if !q.due.IsZero() && time.Now().After(q.due) {
			return false, errLate
		}
		err = q.fresh(ctx, d, func() (err error) {
			for try := 0; ; try++ { // what failed while something else ran is tried again
				var u usage
				if ok, u, err = q.watched(ctx, c, d, rate); err != nil {
					return err
				}
				if ok || !u.disturbed() {
					break
				}
				if !u.again(try) || q.late() || !q.due.IsZero() && time.Now().After(q.due) {
					doubts[rate] = true // what failed may be the machine's
					break
				}
				t.Again++
				if err := q.anew(ctx, d); err != nil {
					return err
				}
			}
			if ok {
				delete(doubts, rate)
			}
			if !ok || !confirm {
				return nil
			}
			if n, err := d.sessions(ctx); err != nil || n < c.Flows {
				return errors.Join(err, fmt.Errorf("it counts %d sessions, and %d were found to be there", n, c.Flows))
			}
			if why, err := d.missing(ctx, c.Flows); err != nil || why != "" {
				return errors.Join(err, fmt.Errorf("it does not do %q, so it did not do the same work as the others", why))
			}
			if g, ok := d.(*demarc); ok && t.Side == sideOffload { // what is torn down is what programs carry
				if !q.due.IsZero() && time.Now().After(q.due) {
					return errLate
				}
				if err := q.handDown(ctx, c, g); err != nil {
					return err
				}
			}
			t.clear, err = q.ended(ctx, c, d, rate)
			return err
		})
		return ok, err
	}
	found, err := s.run(ctx)
	if err != nil {
		return t, err
	}
	t.rate, t.trials, t.Doubted = found.Rate, found.Trials, len(doubts) > 0
	if t.rate == 0 {
		q.note("%s: no rate was found at which %s establishes all connections; %.0f a second get through when more are offered", c.name(), t.Side, full)
	}
	q.say("  %-14s %8.0f connections/s of %.0f that get through of more (%d trials), all ended in %.0f ms", t.Side, t.rate, full, t.trials, t.clear.Seconds()*1e3)
	return t, nil
}

// renewer is a device whose table is emptied by other means than a new start, which takes it longer.
type renewer interface {
	renew() error
}

func (k *kernel) renew() error {
	return k.r.Do(nsGW, func() error { return netlink.ConntrackTableFlush(netlink.ConntrackTable) })
}

// fresh calls fn with a device whose table is empty.
func (q *establishing) fresh(ctx context.Context, d device, fn func() error) error {
	if err := q.anew(ctx, d); err != nil {
		return err
	}
	return fn()
}

// anew empties a device's table, and the account of what arrives.
func (q *establishing) anew(ctx context.Context, d device) (err error) {
	r, renews := d.(renewer)
	switch {
	case q.started && renews:
		err = r.renew()
	case q.started:
		err = errors.Join(d.stop(), d.start(ctx))
	default:
		q.started, err = true, d.start(ctx)
	}
	if err != nil {
		return err
	}
	return errors.Join(q.room.ends.Expect(false, 1), q.room.ends.Forget(), q.room.ends.Remember())
}

// watched is established with what ran beside it.
func (q *establishing) watched(ctx context.Context, c *flowCase, d device, rate float64) (ok bool, u usage, err error) {
	before, err := sampleCPU(d.pids())
	if err != nil {
		return false, u, err
	}
	slowdown, err := yard.around(func() (err error) {
		ok, err = q.established(ctx, c, rate)
		return err
	})
	if err != nil {
		return false, u, err
	}
	time.Sleep(leastWatch - time.Since(before.at)) // the tick is too coarse for less
	after, err := sampleCPU(d.pids())
	u = before.until(after)
	u.slowdown = slowdown
	return ok, u, err
}

// send carries an order out and waits until all that comes has come.
func (q *establishing) send(ctx context.Context, o pktgen.Order) (s pktgen.Sent, err error) {
	if s, err = q.room.send(ctx, o); err != nil {
		return s, err
	}
	return s, q.room.ends.Settle(3 * time.Second)
}

// established sends the first packet of every connection at a rate, and where all arrive, one back on each at a part of it: a connection is there when that arrives too.
func (q *establishing) established(ctx context.Context, c *flowCase, rate float64) (bool, error) {
	n := uint64(c.Flows)
	s, err := q.send(ctx, pktgen.Order{Duration: 2*seconds(float64(n)/rate) + 5*time.Second, Frames: n, Rate: rate})
	if err != nil {
		return false, err
	}
	there, err := q.room.ends.Judged()
	if err != nil {
		return false, err
	}
	if there.Counts.Wrong() > 0 {
		return false, fmt.Errorf("first packets arrived wrong: %v", there.Counts.WrongKinds())
	}
	// A machine that was held up has not offered the rate.
	if there.Counts[pktgen.Right] < n || s.Frames < n || s.Rate() < 0.95*rate {
		return false, nil
	}
	back, err := q.back(ctx, c, rate*validation)
	return back == n, err
}

// back sends a frame to the inside on every connection that was established, and counts those that arrive.
func (q *establishing) back(ctx context.Context, c *flowCase, rate float64) (uint64, error) {
	if err := errors.Join(q.room.ends.Learn(false), q.room.ends.Fresh()); err != nil {
		return 0, err
	}
	n := uint64(c.Flows)
	if _, err := q.send(ctx, pktgen.Order{Duration: 2*seconds(float64(n)/rate) + 5*time.Second, Frames: n, Rate: rate, Direction: pktgen.In}); err != nil {
		return 0, err
	}
	back, err := q.room.ends.JudgedIn()
	if err == nil && back.Counts.Wrong() > 0 {
		err = fmt.Errorf("frames to the inside arrived wrong: %v", back.Counts.WrongKinds())
	}
	return back.Counts[pktgen.Right], err
}

// ended ends all connections and looks that none carries a frame any more.
func (q *establishing) ended(ctx context.Context, c *flowCase, d device, rate float64) (time.Duration, error) {
	x, ok := d.(clearer)
	if !ok {
		return 0, fmt.Errorf("%s cannot end its sessions at once", d.name())
	}
	began := time.Now()
	if err := x.clear(ctx); err != nil {
		return 0, fmt.Errorf("end %d connections: %w", c.Flows, err)
	}
	took := time.Since(began)
	still, err := q.back(ctx, c, rate*validation)
	if err == nil && still > 0 {
		err = fmt.Errorf("%d of %d connections that were ended carry frames", still, c.Flows)
	}
	return took, err
}

func seconds(s float64) time.Duration { return time.Duration(s * float64(time.Second)) }

// rows hands the figures to the report.
func (q *establishing) rows(c *flowCase, turns map[string][]opened) {
	inModes(c.name(), turns, func(name string, turns map[string][]opened) { q.rowsOf(c, name, turns) })
}

func (q *establishing) rowsOf(c *flowCase, name string, turns map[string][]opened) {
	add := func(metric, unit string, digits int, better report.Better, of func(t *opened) []float64) {
		addRow(q.out, report.Row{Scenario: q.Scenario, Case: name, Metric: metric, Unit: unit, Better: better, Digits: digits}, turns, func(t *opened) ([]float64, bool) {
			return of(t), metric == "establish-rate-0-loss" && t.Doubted
		})
	}
	one := func(v float64) []float64 { return []float64{v} }
	add("establish-rate-0-loss", "connections/s", 0, report.Higher, func(t *opened) []float64 { return one(t.rate) })
	add("search-trials", "trials", 0, "", func(t *opened) []float64 { return one(float64(t.trials)) })
	torn := func(v func(t *opened) float64) func(t *opened) []float64 {
		return func(t *opened) []float64 {
			if t.clear == 0 {
				return nil // nothing was established that could be ended
			}
			return one(v(t))
		}
	}
	add("tear-down", "ms", 2, report.Lower, torn(func(t *opened) float64 { return t.clear.Seconds() * 1e3 }))
	add("tear-down-rate", "connections/s", 0, report.Higher, torn(func(t *opened) float64 { return float64(c.Flows) / t.clear.Seconds() }))
}
