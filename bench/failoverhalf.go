package bench

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"demarc/gateway/api"
	"demarc/gateway/netlab"
	"demarc/gateway/trio"
)

// Loads are probes as well, more of them: so many hosts of each tenant and family, and from the tenth on so many ports of each. Each step is known to have been reached or not by the
// sequence numbers of all of them, both ways.
var loadSteps = []int{1, 2, 4, 6, 8, 10, 20, 30, 40, 50}

const (
	loadLost  = 0.001 // of its packets: more is more than the pair, its hosts and this machine carry
	loadPace  = 0.9   // of what is asked for, which a sender that paused does not make good: less is more than the senders make
	loadTries = 2     // of a step, since a machine pauses
	loadTime  = time.Second
)

// loaded is what became of a load.
type loaded struct {
	lost, sent uint64
	rate       float64 // packets a second that came
	gap        time.Duration
}

// probeSpecs are paced flows of so many hosts and ports of each tenant and family.
func (q *failoverBench) probeSpecs(p *trio.Pair, units int) (list []netlab.FlowSpec) {
	for _, s := range p.FlowSpecs(max(1, units/addresses), q.Interval) {
		s.From = s.From[:min(len(s.From), units)]
		list = append(list, s)
	}
	return list
}

// asked is how many packets a second such flows are, both ways, with those of the deaf host.
func (q *failoverBench) asked(units int) float64 {
	return 2 * float64(4*units+2) / q.Interval.Seconds()
}

// lossOf is how many packets of a flow and direction were lost, by their numbers, and of how many.
func lossOf(e *netlab.FlowEnd, interval time.Duration) (lost, sent uint64) {
	sent = e.HighSeq - e.FirstSeq + 1
	lost = sent - min(sent, e.Received)
	if silent := e.Ended - e.Last; silent > int64(gone) { // those after the last one that came
		after := uint64(silent / int64(interval))
		lost, sent = lost+after, sent+after
	}
	return lost, sent
}

// under has a load go while something is done.
func (q *failoverBench) under(p *trio.Pair, units int, do func() error) (l loaded, err error) {
	f, err := p.StartFlows(q.probeSpecs(p, units)...)
	if err != nil {
		return l, err
	}
	from := time.Now()
	done := do()
	to := time.Now()
	seen, err := f.End()
	if err := errors.Join(done, err); err != nil {
		return l, err
	}
	for i := range seen.Flows {
		e := &seen.Flows[i]
		if e.Received == 0 {
			return l, fmt.Errorf("nothing came on %s", e.Name())
		}
		lost, sent := lossOf(e, seen.Interval)
		l.lost, l.sent = l.lost+lost, l.sent+sent
		if e.Last > e.First {
			l.rate += float64(e.Received-1) / time.Duration(e.Last-e.First).Seconds()
		}
	}
	worst, _ := seen.Worst(from, to)
	l.gap = worst.Gap
	return l, nil
}

// found is the largest load that the pair, its hosts and this machine carry.
func (q *failoverBench) found(ctx context.Context, p *trio.Pair) (units int, rate float64, err error) {
	return mostCarried(loadSteps, q.asked, func(n int) (loaded, error) {
		l, err := q.under(p, n, func() error { return rest(ctx, loadTime) })
		if err != nil {
			q.say("  %3d flows each %s: %v", 4*n+2, q.Interval, err)
			return l, errors.Join(err, ctx.Err())
		}
		q.say("  %3d flows each %s: %.0f of %.0f packets a second came, %d of %d lost, no longer silent than %.1f ms", 4*n+2, q.Interval, l.rate, q.asked(n), l.lost, l.sent, l.gap.Seconds()*1e3)
		return l, nil
	})
}

// mostCarried is the last of rising steps that was carried, before the first one that was not in so many tries. Flows that do not even come up are not carried, but where they are the fewest something else is wrong.
func mostCarried(steps []int, asked func(n int) float64, try func(n int) (loaded, error)) (most int, rate float64, err error) {
	for i, n := range steps {
		held := false
		for t := 0; t < loadTries && !held; t++ {
			l, err := try(n)
			if err != nil && (i == 0 || errors.Is(err, context.Canceled)) {
				return 0, 0, err
			}
			if held = err == nil && float64(l.lost) <= loadLost*float64(l.sent) && l.rate >= loadPace*asked(n); held {
				most, rate = n, l.rate
			}
		}
		if !held {
			break
		}
	}
	if most == 0 {
		return 0, 0, fmt.Errorf("this machine does not carry %.0f packets a second", asked(steps[0]))
	}
	return most, rate, nil
}

// halfLoad has the group be moved while half of what the pair carries goes over it: by `group move`, `node drain` and SIGTERM in turn.
func (q *failoverBench) halfLoad(ctx context.Context, r *failoverRow, runs int, lab **trio.Pair) (err error) {
	p, err := q.anew(ctx, r, lab)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, p.Close()) }()
	most, rate, err := q.found(ctx, p)
	if err != nil {
		return err
	}
	half := loadSteps[0]
	for _, n := range loadSteps {
		if q.asked(n) <= rate/2 {
			half = n
		}
	}
	if q.asked(half) > 0.6*rate {
		q.notes = append(q.notes, fmt.Sprintf("%s: the least load, %.0f packets a second, is more than half of the %.0f that were found", r.name, q.asked(half), rate))
	}
	var still, lost, of, gaps []float64
	away := 0.0
	rounds := pacer{due: q.due}
	for i := range runs {
		if !rounds.fits(time.Now()) {
			q.fewer(r.name, i, runs, "runs")
			break
		}
		if _, err := q.ready(ctx, p, q.Patience); err != nil {
			return err
		}
		owner, err := q.serving(ctx, p)
		if err != nil {
			return err
		}
		calm, err := q.under(p, half, func() error { return rest(ctx, loadTime) })
		if err != nil {
			return err
		}
		a := []func(*failoverBench, context.Context, *trio.Pair, int, int, time.Duration) act{moved, drained, ended}[i%3](q, ctx, p, i, runs, 0)
		l, err := q.under(p, half, func() error {
			if err := rest(ctx, before); err != nil {
				return err
			}
			if err := a.do(owner); err != nil {
				return err
			}
			if !q.comesToServe(ctx, p.Other(owner)) {
				away++
			}
			return rest(ctx, behind)
		})
		if err != nil {
			return fmt.Errorf("run %d: %w", i+1, err)
		}
		q.say("%-16s run %2d: %s: %d of %d packets lost, no longer silent than %.1f ms; before, with nothing done, %d of %d, and %.1f ms", r.name, i+1, []string{"move", "drain", "SIGTERM"}[i%3],
			l.lost, l.sent, l.gap.Seconds()*1e3, calm.lost, calm.sent, calm.gap.Seconds()*1e3)
		still, lost, of, gaps = append(still, float64(calm.lost)), append(lost, float64(l.lost)), append(of, float64(l.sent)), append(gaps, l.gap.Seconds()*1e3)
		if a.undo != nil {
			if err := a.undo(owner); err != nil {
				return err
			}
		}
	}
	if len(lost) == 0 {
		return nil
	}
	q.add(r.name, "flows-most", "flows", []float64{float64(4*most + 2)}, "", 0)
	q.add(r.name, "rate-most", "packets/s", []float64{rate}, "", 0)
	q.add(r.name, "rate", "packets/s", []float64{q.asked(half)}, "", 0)
	q.add(r.name, "packets-lost", "packets", lost, "median", 0)
	q.add(r.name, "packets-lost-of", "packets", of, "", 0)
	q.add(r.name, "packets-lost-with-nothing-done", "packets", still, "", 0)
	q.add(r.name, "gap", "ms", gaps, "median", r.median)
	q.add(r.name, "not-handed-over", "runs", []float64{away}, "max", 0)
	return nil
}

// comesToServe waits until a node says that it serves the group. Nobody watches the switches here: captures of so much would be what is measured.
func (q *failoverBench) comesToServe(ctx context.Context, n *trio.Node) bool {
	for end := time.Now().Add(takes); time.Now().Before(end) && ctx.Err() == nil; {
		var all api.Groups
		if n.Client.Get(ctx, api.PathGroups, &all) == nil && slices.ContainsFunc(all.Groups, func(g api.Group) bool { return g.Serving }) {
			return true
		}
		_ = rest(ctx, 10*time.Millisecond) // ctx is looked at
	}
	return false
}

// fullRate has the copy of the table begin anew while the pair has as much to carry as it can, and the same load go without a copy before that, in turns. Two gateways, their hosts and the copy have the
// same two CPUs: what the owner loses is what all of them take from each other, so nothing is promised of it here.
func (q *failoverBench) fullRate(ctx context.Context, p *trio.Pair, r *failoverRow, owner *trio.Node, calm time.Duration) error {
	units, turns := loadSteps[0], 1
	if !q.Brief {
		var err error
		if units, _, err = q.found(ctx, p); err != nil {
			return err
		}
		turns = 3
	}
	var without, with, took, part []float64
	for range turns {
		a, err := q.under(p, units, func() error { return rest(ctx, calm) })
		if err != nil {
			return err
		}
		var t time.Duration
		b, err := q.under(p, units, func() (err error) { t, err = q.copyAnew(ctx, p, owner); return err })
		if err != nil {
			return err
		}
		without, with, took, part = append(without, a.rate), append(with, b.rate), append(took, t.Seconds()), append(part, 100*max(0, 1-b.rate/a.rate))
	}
	q.add(r.name, "copy-at-full-rate", "s", took, "", 0)
	q.add(r.name, "full-rate-before", "packets/s", without, "", 0)
	q.add(r.name, "full-rate-meanwhile", "packets/s", with, "", 0)
	q.add(r.name, "full-rate-lost", "%", slices.Clone(part), "", 0)
	return nil
}

// copyAnew kills the other gateway, and has it come again until its copy is whole.
func (q *failoverBench) copyAnew(ctx context.Context, p *trio.Pair, owner *trio.Node) (took time.Duration, err error) {
	other := p.Other(owner)
	other.Kill()
	began := time.Now()
	if err := other.Start(ctx); err != nil {
		return 0, err
	}
	for !q.whole(ctx, owner, other) {
		if time.Since(began) > time.Minute {
			return 0, errors.New("the copy is not whole after a minute")
		}
		if err := rest(ctx, 10*time.Millisecond); err != nil {
			return 0, err
		}
	}
	return time.Since(began), nil
}
