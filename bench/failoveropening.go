package bench

import (
	"context"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"time"

	"demarc/gateway/api"
	"demarc/gateway/trio"
)

// opening watches a pair while very many sessions begin: what becomes slow, and who drops what, is seen while it happens.
type opening struct {
	q     *failoverBench
	p     *trio.Pair
	began time.Time
	step  int // at every how many sessions something is said
	next  int // at so many

	cpu     cpuSample
	procs   map[string]float64 // ticks of each node
	drops   map[string]map[string]uint64
	gaps    map[string]uint64
	lag     time.Duration // the longest since the last word
	samples int
}

// watchOpening says at every so many sessions how the pair is, until the function that it returns is called.
func (q *failoverBench) watchOpening(ctx context.Context, p *trio.Pair, step int) (end func()) {
	ctx, cancel := context.WithCancel(ctx)
	o := &opening{q: q, p: p, began: time.Now(), step: step, next: step, drops: map[string]map[string]uint64{}, gaps: map[string]uint64{}}
	o.cpu, o.procs = o.times()
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for rest(ctx, 100*time.Millisecond) == nil {
			o.look(ctx)
		}
	}()
	return func() { cancel(); <-ended }
}

// times are those of the machine, and of each node. A node that has no process has none.
func (o *opening) times() (all cpuSample, each map[string]float64) {
	each = map[string]float64{}
	for _, n := range o.p.Nodes() {
		if b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", n.Pid())); err == nil {
			each[n.Name], _, _ = parsePidStat(string(b))
		}
	}
	all, _ = sampleCPU(nil) // a word less in a line of progress
	return all, each
}

// look asks the owner how far it is, and both when there is something to be said.
func (o *opening) look(ctx context.Context) {
	owner, err := o.q.serving(ctx, o.p)
	if err != nil {
		return
	}
	c, ok := o.q.look(ctx, owner, o.p.Other(owner))
	if ok {
		o.lag, o.samples = max(o.lag, time.Duration(c.lag*float64(time.Second))), o.samples+1
	}
	if o.samples%5 != 0 { // counting sessions is not free
		return
	}
	if s, err := owner.Status(ctx); err != nil || sessionsOf(s) < o.next {
		return
	}
	var words []string
	for _, n := range []*trio.Node{owner, o.p.Other(owner)} {
		s, err := n.Status(ctx)
		if err != nil {
			return
		}
		w := fmt.Sprintf("%s %d", n.Name, sessionsOf(s))
		if n == owner {
			o.next = (sessionsOf(s)/o.step + 1) * o.step
		}
		for _, why := range slices.Sorted(maps.Keys(s.Drops)) {
			if d := s.Drops[why] - o.drops[n.Name][why]; d > 0 {
				w += fmt.Sprintf(", %s %d", why, d)
			}
		}
		if o.drops[n.Name] = s.Drops; s.Groups != nil {
			c := s.Groups.Clock
			if c.Gaps > o.gaps[n.Name] {
				w += fmt.Sprintf(", did not run %d times, for %.0f ms at most", c.Gaps-o.gaps[n.Name], c.Longest*1e3)
			}
			o.gaps[n.Name] = c.Gaps
			for _, g := range s.Groups.Groups {
				if g.Serving && len(g.Why) > 0 {
					w += ", not protected: " + strings.Join(g.Why, "; ")
				}
			}
			if st := s.Groups.Standby; st != nil && n != owner {
				w += fmt.Sprintf(", %d copies begun, %d digests unequal, steps of up to %.1f ms", st.Copies, st.Mismatches, st.Longest*1e3)
			}
		}
		words = append(words, w)
	}
	all, each := o.times()
	u, ticks := o.cpu.until(all), all.at.Sub(o.cpu.at).Seconds()*userHz
	busy := 0.0
	for _, b := range u.cpus {
		busy += b
	}
	cpu := fmt.Sprintf("%.2f CPUs busy", busy)
	for _, name := range slices.Sorted(maps.Keys(each)) {
		cpu += fmt.Sprintf(", %s %.2f", name, (each[name]-o.procs[name])/ticks)
	}
	o.q.say("  after %3.0f s: %s; the copy at most %.0f ms behind; %s", time.Since(o.began).Seconds(), strings.Join(words, "; "), o.lag.Seconds()*1e3, cpu)
	o.cpu, o.procs, o.lag = all, each, 0
}

// drops are what the gateways that answer have dropped, by reason.
func (q *failoverBench) drops(ctx context.Context, p *trio.Pair) map[string]map[string]uint64 {
	all := map[string]map[string]uint64{}
	for _, n := range p.Gateways() {
		if s, err := n.Status(ctx); err == nil {
			all[n.Name] = s.Drops
		}
	}
	return all
}

// grown says by how much they have become more, of those that answer now.
func grown(had, have map[string]map[string]uint64) (words string) {
	for _, name := range slices.Sorted(maps.Keys(have)) {
		for _, why := range slices.Sorted(maps.Keys(have[name])) {
			if d := have[name][why] - had[name][why]; d > 0 {
				words += fmt.Sprintf(" %s %s %d,", name, why, d)
			}
		}
	}
	return strings.TrimSuffix(words, ",")
}

// sessionsOf is how many there are, of all tenants.
func sessionsOf(s *api.Status) (n int) {
	for _, t := range s.Tenants {
		n += t.Sessions
	}
	return n
}

// settled waits until the copy has all that open connections have done: only what is younger than the lag that is shown may be lost, so an idle connection is one that is older. It returns the lag that
// was shown, and why the copy is not whole.
func (q *failoverBench) settled(ctx context.Context, p *trio.Pair) (lag time.Duration, why string, err error) {
	for end := time.Now().Add(copied); ; {
		if why, err = q.ready(ctx, p, time.Until(end)); err != nil || why != "" {
			return lag, why, err
		}
		owner, err := q.serving(ctx, p)
		if err != nil {
			return lag, "", err
		}
		if c, ok := q.look(ctx, owner, p.Other(owner)); ok {
			if lag = time.Duration(c.lag * float64(time.Second)); lag.Seconds()*1e3 <= lagMs {
				return lag, "", nil
			}
		}
		if time.Now().After(end) {
			return lag, fmt.Sprintf("the copy is %.0f ms behind", lag.Seconds()*1e3), nil
		}
		if err := rest(ctx, 10*time.Millisecond); err != nil {
			return lag, "", err
		}
	}
}
