package bench

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"time"

	"demarc/gateway/netlab"
	"demarc/gateway/netlab/host"
	"demarc/gateway/trio"
)

// probes are the paced flows that gaps are measured by, calls the streams.
func (q *failoverBench) flows(p *trio.Pair, probe bool) (probes, calls []netlab.FlowSpec) {
	if probe {
		probes = q.probeSpecs(p, q.Probes)
	}
	many := q.Calls
	if !probe {
		many = min(many, 20) // captures hold so much
	}
	for _, s := range p.FlowSpecs(max(1, many/(4*addresses)), callEvery) {
		if s.Inside == trio.PairDeaf {
			continue
		}
		s.Port, s.Size, s.To = s.Port+5000, callSize, netip.AddrPortFrom(s.To.Addr(), callPort)
		s.From = s.From[:min(len(s.From), max(1, many/4))]
		calls = append(calls, s)
	}
	return probes, calls
}

// openRate is how many connections are opened a second where they are more than one process holds.
const openRate = 1500.0

// askedRate is how many connections are asked a second at the end, of idle ones and of others.
const askedRate = 2500.0

// perProcess is how many connections one process holds: fewer than systems let it have files.
const perProcess = 12_000

// hold opens connections of both tenants and families, and returns who holds them and their other ends.
func (q *failoverBench) hold(p *trio.Pair, part int) (held, far []*netlab.Server, err error) {
	fours := func(n int) int { return (n/part + 3) / 4 * 4 }
	data, idle, sample := fours(q.Data), fours(q.Idle), fours(q.Sample)
	each := (data + idle + 4*perProcess - 1) / (4 * perProcess) // processes of a tenant and family
	ends := 1
	if each > 1 {
		ends = 4 * each
	}
	for i := range ends {
		s, err := p.Serve(trio.PairOut, "tcp-hold-serve", "-addr", fmt.Sprintf(":%d", trio.PairHoldPort+i), "-most", strconv.Itoa(perProcess))
		if err != nil {
			return nil, nil, err
		}
		far = append(far, s)
	}
	long := 30*time.Second + time.Duration(data+idle)*time.Millisecond // to open all
	rate := 0.0                                                        // of each process
	if data+idle > perProcess {                                        // as fast as they can they keep both processors busy for half a minute, and leases end
		rate = openRate / float64(4*each)
	}
	var wg sync.WaitGroup
	held, errs := make([]*netlab.Server, 4*each), make([]error, 4*each)
	for i := range held {
		share := func(all int) string { return strconv.Itoa((all + i) / len(held)) }
		side, six := tenantOf(i)
		wg.Go(func() {
			held[i], errs[i] = p.ServeWithin(long+10*time.Second, side, "tcp-hold", "-dst", netip.AddrPortFrom(p.Outside(six), uint16(trio.PairHoldPort+i%ends)).String(), "-from", joined(p.Addresses(side, six)), "-patience", long.String(), "-rate", strconv.FormatFloat(rate, 'f', -1, 64),
				"-count", share(data), "-every", q.Every.String(), "-within", q.Within.String(), "-idle", share(idle), "-sample", share(sample),
				"-asked", strconv.FormatFloat(askedRate/float64(len(held)), 'f', -1, 64))
		})
	}
	wg.Wait()
	return held, far, errors.Join(errs...)
}

// openMost is how many connections of a tenant and family are opened one after the other.
const openMost = 4500

// openFresh opens connections of both tenants and families one after the other, until they are ended, to an end of their own.
func (q *failoverBench) openFresh(p *trio.Pair) (opening []*netlab.Server, far *netlab.Server, err error) {
	const port = trio.PairHoldPort - 1
	if far, err = p.Serve(trio.PairOut, "tcp-hold-serve", "-addr", fmt.Sprintf(":%d", port), "-most", strconv.Itoa(4*openMost)); err != nil {
		return nil, nil, err
	}
	for i := range 4 {
		side, six := tenantOf(i)
		s, err := p.Serve(side, "tcp-open", "-most", strconv.Itoa(openMost), "-within", q.Within.String(), "-dst", netip.AddrPortFrom(p.Outside(six), port).String(), "-from", joined(p.Addresses(side, six)), "-rate", strconv.FormatFloat(q.Rate/4, 'f', -1, 64))
		if err != nil {
			return nil, nil, err
		}
		opening = append(opening, s)
	}
	return opening, far, nil
}

// tenantOf spreads what there are many of over tenants and families.
func tenantOf(i int) (side string, six bool) {
	return []string{trio.PairAlpha, trio.PairBeta}[i%2], i/2%2 == 1
}

// end has connections be tried and ends them.
func (a *account) end(held, opening, far []*netlab.Server) error {
	a.held, a.fresh = make([]host.Held, len(held)), make([]host.Fresh, len(opening))
	errs := make([]error, len(held)+len(opening))
	var wg sync.WaitGroup
	for i, s := range held {
		wg.Go(func() { errs[i] = s.StopWithin(20*time.Second, &a.held[i]) })
	}
	for i, s := range opening {
		wg.Go(func() { errs[len(held)+i] = s.StopWithin(20*time.Second, &a.fresh[i]) })
	}
	wg.Wait()
	for _, s := range far {
		var one host.HoldServed
		errs = append(errs, s.Stop(&one))
		a.served.Accepted, a.served.Blocks, a.served.Bad = a.served.Accepted+one.Accepted, a.served.Blocks+one.Blocks, a.served.Bad+one.Bad
	}
	return errors.Join(errs...)
}

func joined(list []netip.Addr) string {
	var s []string
	for _, a := range list {
		s = append(s, a.String())
	}
	return strings.Join(s, ",")
}

// echoes are pings that go on until they are told to end.
type echoes struct {
	cancel context.CancelFunc
	wg     sync.WaitGroup
	pings  []host.Ping
	errs   []error
}

const pingEvery = 20 * time.Millisecond

// ping has a host of each tenant and family ping the outside. Who stands beside us copies no such conversation: it is not asked for it.
func (q *failoverBench) ping(p *trio.Pair, r *failoverRow) (*echoes, error) {
	e := &echoes{}
	var ctx context.Context
	ctx, e.cancel = context.WithCancel(context.Background())
	if r.peer || r.long > 0 {
		return e, nil
	}
	e.pings, e.errs = make([]host.Ping, 4), make([]error, 4)
	for i := range e.pings {
		side, six := tenantOf(i)
		e.wg.Go(func() {
			e.errs[i] = p.Run(ctx, side, &e.pings[i], "ping", "-dst", p.Outside(six).String(), "-count", "60000", "-interval", pingEvery.String())
		})
	}
	return e, nil
}

func (e *echoes) end() ([]host.Ping, error) {
	e.cancel()
	e.wg.Wait()
	return e.pings, errors.Join(e.errs...)
}
