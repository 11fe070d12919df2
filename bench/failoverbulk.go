package bench

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"sync"
	"time"

	"demarc/gateway/api"
	"demarc/gateway/netlab"
	"demarc/gateway/netlab/host"
	"demarc/gateway/trio"
)

// The row bulk: a table as full as the default one is when it is copied.
const (
	bulkHosts = 100 // of each tenant, from .100 on, so that one public address has ports for those that fall on it. No tenant may have all of the table
	bulkPort  = 7300
	copyMost  = 10.0 // s

	// A tenant may have four times what is left of the table, so two that grow alike have eight ninths of it.
	bulkTables = "\n[tables]\nsessions = 1179648\n"
	rateLost   = 5.0 // %
)

// copyOf is how the copy of the group at a node stands, and by how much it was behind.
type copyOf struct {
	at      time.Time
	records uint64  // that have come to the standby since it started
	lag     float64 // s, by the owner's word
}

// anew is a pair of the row's own, protected and with empty tables. The caller closes it.
func (q *failoverBench) anew(ctx context.Context, r *failoverRow, lab **trio.Pair) (*trio.Pair, error) {
	if p := *lab; p != nil {
		*lab = nil
		if err := p.Close(); err != nil {
			return nil, err
		}
	}
	q.args = r.args
	p, err := q.open(ctx, r)
	if err != nil {
		return nil, err
	}
	if why, err := q.ready(ctx, p, copied); err != nil || why != "" {
		return nil, errors.Join(err, fmt.Errorf("not protected: %s", why), p.Close())
	}
	return p, nil
}

// bulk fills the owner's table with sessions of packets that are answered, watching the copy follow, kills the other gateway and has it come again: its copy begins anew,
// while packets go.
func (q *failoverBench) bulk(ctx context.Context, r *failoverRow, lab **trio.Pair) (err error) {
	p, err := q.anew(ctx, r, lab)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, p.Close()) }()
	owner, err := q.serving(ctx, p)
	if err != nil {
		return err
	}
	if err := q.fill(ctx, p, r, owner); err != nil {
		return err
	}
	calm := 3 * time.Second
	if q.Brief {
		calm = time.Second
	}
	before, err := q.passing(ctx, p, func() error { return rest(ctx, calm) })
	if err != nil {
		return err
	}
	var took time.Duration
	during, err := q.passing(ctx, p, func() (err error) { took, err = q.copyAnew(ctx, p, owner); return err })
	if err != nil {
		return err
	}
	apart, err := q.agree(ctx, p)
	if err != nil {
		return err
	}
	q.add(r.name, "copy", "s", []float64{took.Seconds()}, "max", copyMost)
	q.add(r.name, "rate-before", "packets/s", []float64{before}, "", 0)
	q.add(r.name, "rate-meanwhile", "packets/s", []float64{during}, "", 0)
	q.add(r.name, "rate-lost", "%", []float64{100 * max(0, 1-during/before)}, "max", rateLost)
	q.add(r.name, "tables-apart", "sessions", []float64{float64(apart)}, "max", 0)
	if !q.Full && !q.Brief {
		return nil // there are ten minutes for all rows
	}
	return q.fullRate(ctx, p, r, owner, calm)
}

// serving is who says that it serves the group.
func (q *failoverBench) serving(ctx context.Context, p *trio.Pair) (*trio.Node, error) {
	for _, n := range p.Gateways() {
		var all api.Groups
		if err := n.Client.Get(ctx, api.PathGroups, &all); err != nil {
			return nil, err
		}
		for _, g := range all.Groups {
			if g.Serving {
				return n, nil
			}
		}
	}
	return nil, errors.New("neither gateway says that it serves the group")
}

// whole reports whether the owner says that all that it has is at the other node.
func (q *failoverBench) whole(ctx context.Context, owner, other *trio.Node) bool {
	var all api.Groups
	if owner.Client.Get(ctx, api.PathGroups, &all) != nil {
		return false
	}
	for _, g := range all.Groups {
		for _, c := range g.Copies {
			if g.Serving && len(g.Why) == 0 && c.Node == other.Name && c.Whole {
				return true
			}
		}
	}
	return false
}

// fill begins sessions, and notes how the copy follows.
func (q *failoverBench) fill(ctx context.Context, p *trio.Pair, r *failoverRow, owner *trio.Node) error {
	var hosts []netip.Addr
	sides := []string{trio.PairAlpha, trio.PairBeta} // with the same inside addresses
	for i := range bulkHosts {
		a := netip.MustParseAddr(trio.PairInside4 + strconv.Itoa(100+i))
		hosts = append(hosts, a)
		for _, side := range sides {
			if err := p.AddAddr(side, netlab.HostDevice, netip.PrefixFrom(a, 24)); err != nil {
				return err
			}
		}
	}
	far, err := p.Serve(trio.PairOut, "udp-mirror", "-addr", netip.AddrPortFrom(p.Outside(false), bulkPort).String())
	if err != nil {
		return err
	}
	said := q.watchOpening(ctx, p, max(10_000, q.Many/10))
	end, ended := make(chan struct{}), make(chan struct{})
	var seen []copyOf
	go func() {
		defer close(ended)
		for {
			select {
			case <-end:
				return
			case <-time.After(10 * time.Millisecond):
			}
			if c, ok := q.look(ctx, owner, p.Other(owner)); ok {
				seen = append(seen, c)
			}
		}
	}()
	each, errs := make([]host.Many, len(sides)), make([]error, len(sides))
	var wg sync.WaitGroup
	for i, side := range sides {
		wg.Go(func() {
			errs[i] = p.Run(ctx, side, &each[i], "udp-many", "-dst", netip.AddrPortFrom(p.Outside(false), bulkPort).String(), "-from", joined(hosts),
				"-ports", strconv.Itoa(q.Many/bulkHosts/len(sides)), "-rate", strconv.FormatFloat(q.ManyRate/float64(len(sides)), 'f', -1, 64),
				"-rounds", "40") // where the machine does not carry that rate the last few take many: with 8, up to 26,000 of a million had no answer
		})
	}
	wg.Wait()
	close(end)
	<-ended
	said()
	if err := errors.Join(append(errs, far.Stop(nil))...); err != nil {
		return err
	}
	var m host.Many
	for _, x := range each {
		m.Asked, m.Answered, m.Wrong, m.Seconds = m.Asked+x.Asked, m.Answered+x.Answered, m.Wrong+x.Wrong, max(m.Seconds, x.Seconds)
	}
	if m.Answered < m.Asked || m.Wrong > 0 {
		return errors.Join(fmt.Errorf("of %d sessions %d were answered, %d answers were another's", m.Asked, m.Answered, m.Wrong), q.state(ctx, p, r))
	}
	var lags []float64
	for _, c := range seen {
		lags = append(lags, c.lag*1e3)
	}
	q.add(r.name, "sessions", "sessions", []float64{float64(m.Answered)}, "", 0)
	q.add(r.name, "session-rate", "sessions/s", []float64{float64(m.Answered) / m.Seconds}, "", 0)
	if n := len(seen); n > 1 {
		q.add(r.name, "events", "events/s", []float64{float64(seen[n-1].records-seen[0].records) / seen[n-1].at.Sub(seen[0].at).Seconds()}, "", 0)
		q.add(r.name, "lag", "ms", lags, "", 0) // row events has what is promised of it
	}
	return nil
}

func (q *failoverBench) look(ctx context.Context, owner, other *trio.Node) (c copyOf, ok bool) {
	var a, b api.Groups
	if owner.Client.Get(ctx, api.PathGroups, &a) != nil || other.Client.Get(ctx, api.PathGroups, &b) != nil || b.Standby == nil {
		return c, false
	}
	c.at, c.records = time.Now(), b.Standby.Records
	for _, g := range a.Groups {
		for _, x := range g.Copies {
			if g.Serving && x.Node == other.Name {
				c.lag, ok = x.Lag, true
			}
		}
	}
	return c, ok
}

// passing is how many packets a second of probes and calls come through while something is done. They are paced, so it falls short of what is asked for where they are lost, and where nobody
// has time to send them.
func (q *failoverBench) passing(ctx context.Context, p *trio.Pair, do func() error) (rate float64, err error) {
	probes, calls := q.flows(p, true)
	for _, specs := range [][]netlab.FlowSpec{probes, calls} {
		f, e := p.StartFlows(specs...)
		if e != nil {
			return 0, errors.Join(err, e)
		}
		defer func() {
			seen, e := f.End()
			if err = errors.Join(err, e); err != nil {
				return
			}
			for _, x := range seen.Flows {
				if x.Last > x.First {
					rate += float64(x.Received-1) / time.Duration(x.Last-x.First).Seconds()
				}
			}
		}()
	}
	return 0, do()
}
