package gateway

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"sync"
	"time"

	"demarc/gateway/api"
	"demarc/gateway/flow"
	"demarc/gateway/meter"
	"demarc/gateway/pipeline"
	"demarc/gateway/trace"
	"demarc/gateway/verdict"
)

const (
	lookEvery  = 40 * time.Millisecond // how often rings are read while somebody looks
	lookers    = 8                     // how many may look at live packets at once: each takes some memory of every worker
	drainBatch = 256                   // of one worker between two bursts: some microseconds
	maxSnap    = 9216
)

// looking is what those who look at packets share.
type looking struct {
	mu   sync.Mutex
	n    int
	slow *trace.Recorder // drops of the slow path; under mu
	try  sync.Mutex      // one trial at a time: it may hold up several workers
}

// filter compiles a PacketFilter.
func (b backend) filter(f api.PacketFilter) (trace.Filter, error) {
	out := trace.All()
	m, err := b.match(f.SessionFilter)
	if err != nil {
		return out, err
	}
	out.Tenant, out.Prefix, out.Port, out.Proto = m.tenant, m.prefix, m.port, m.proto
	bad := func(format string, args ...any) (trace.Filter, error) {
		return out, &api.Fault{Status: http.StatusBadRequest, Err: fmt.Errorf(format, args...)}
	}
	if f.Reason != "" {
		r, ok := verdict.ParseReason(f.Reason)
		if !ok || r == verdict.Pass || r == verdict.Unset {
			return bad("there is no reason %q: `demarc drops --all` lists them", f.Reason)
		}
		out.Reason = r
	}
	if f.Rule == "" {
		return out, nil
	}
	t := b.g.view.Load().Tenant(out.Tenant)
	if t == nil {
		return bad("rule %q: rules belong to a tenant: name it", f.Rule)
	}
	for d := meter.Out; d <= meter.In; d++ {
		for i := range t.Rules[d] {
			if t.Rules[d][i].Name == f.Rule {
				out.Rules, out.Dir = append(out.Rules, flow.RuleID(i)), uint8(d)
			}
		}
		if out.Rules != nil {
			return out, nil
		}
	}
	return bad("tenant %q has no rule %q", t.Name, f.Rule)
}

// watch lets taps, one for each worker, look until the returned function is called.
func (g *Gateway) watch(ctx context.Context, make func() *trace.Tap) (taps []*trace.Tap, stop func(), err error) {
	g.look.mu.Lock()
	if g.look.n >= lookers {
		g.look.mu.Unlock()
		return nil, nil, &api.Fault{Status: http.StatusTooManyRequests, Err: fmt.Errorf("%d others look at packets already", lookers)}
	}
	g.look.n++
	g.look.mu.Unlock()
	for range g.workers {
		taps = append(taps, make())
	}
	stop = func() {
		c, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		_ = g.each(c, func(i int, sh *pipeline.Shard) { sh.Untap(taps[i]) }) // a worker that has ended looks at nothing more
		g.look.mu.Lock()
		g.look.n--
		g.look.mu.Unlock()
	}
	if err = g.each(ctx, func(i int, sh *pipeline.Shard) { sh.Tap(taps[i]) }); err == nil {
		err = g.off.settle() // what the program was carrying passes by no tap after this
	}
	if err != nil {
		stop()
		return nil, nil, err
	}
	return taps, stop, nil
}

// wall turns a time of the data plane into one of the wall clock.
func (g *Gateway) wall() func(ns uint64) time.Time {
	now, at := time.Now(), g.clock.Now()
	return func(ns uint64) time.Time { return now.Add(-time.Duration(at - ns)) }
}

// portName is the device of a port, "" where a packet came in by none.
func (g *Gateway) portName(p uint16) string {
	if int(p) < len(g.ports) {
		return g.ports[p].cfg.Device
	}
	return ""
}

// until calls read every so often until the client goes, the time is over or read says why it is enough. read is called once more at the end.
func (g *Gateway) until(ctx context.Context, seconds float64, read func() (why string, err error)) (why string, err error) {
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	var over <-chan time.Time
	if seconds > 0 {
		t := time.NewTimer(time.Duration(seconds * float64(time.Second)))
		defer t.Stop()
		over = t.C
	}
	for {
		last := ""
		select {
		case <-ctx.Done():
			return "", ctx.Err()
		case <-over:
			last = "time"
		case <-tick.C:
		}
		if why, err = read(); err != nil || why != "" {
			return why, err
		}
		if last != "" {
			return last, nil
		}
	}
}

func (b backend) begin(emit func(*api.StreamLine) error) error {
	names := make([]string, len(b.g.ports))
	for i, p := range b.g.ports {
		names[i] = p.cfg.Device
	}
	return emit(&api.StreamLine{Begin: &api.StreamBegin{Node: b.g.o.Node.Name, Interfaces: names}})
}

// finish sends the last line of a stream.
func (g *Gateway) finish(ctx context.Context, taps []*trace.Tap, why string, sent, count uint64, emit func(*api.StreamLine) error) error {
	e := &api.StreamEnd{Why: why, Sent: sent}
	_ = g.each(ctx, func(i int, _ *pipeline.Shard) {
		e.Matched += taps[i].Matched
		e.Lost += taps[i].Lost
	})
	return emit(&api.StreamLine{End: e})
}

func checkLook(seconds float64, snap int) error {
	if seconds < 0 || seconds > 86400*7 {
		return &api.Fault{Status: http.StatusBadRequest, Err: fmt.Errorf("duration %vs: want 0 (no end) to a week", seconds)}
	}
	if snap < 0 || snap > maxSnap {
		return &api.Fault{Status: http.StatusBadRequest, Err: fmt.Errorf("snap length %d: want 0 (the default, 256) to %d", snap, maxSnap)}
	}
	return nil
}

// Trace follows live packets.
func (b backend) Trace(ctx context.Context, r api.TraceRequest, emit func(*api.StreamLine) error) error {
	g := b.g
	f, err := b.filter(r.PacketFilter)
	if err == nil {
		err = checkLook(r.Seconds, 0)
	}
	if err != nil {
		return err
	}
	taps, stop, err := g.watch(ctx, func() *trace.Tap { return trace.NewTracer(f, r.Every, r.Count) })
	if err != nil {
		return err
	}
	defer stop()
	if err := b.begin(emit); err != nil {
		return err
	}
	buf, sent := make([]trace.Journey, drainBatch), uint64(0)
	why, err := g.until(ctx, r.Seconds, func() (string, error) {
		var all []trace.Journey
		for i, t := range taps {
			for n := drainBatch; n == drainBatch; {
				if err := g.workers[i].Do(ctx, func(*pipeline.Shard) { n = t.Journeys(buf) }); err != nil {
					return "", err
				}
				all = append(all, buf[:n]...)
			}
		}
		slices.SortStableFunc(all, func(x, y trace.Journey) int { return int(int64(x.Ns) - int64(y.Ns)) })
		v, at := g.view.Load(), g.wall()
		for i := range all {
			j := &all[i]
			if err := emit(&api.StreamLine{Packet: &api.Packet{Time: at(j.Ns), Pass: pass(v, j, nil), Looped: j.Looped, Handed: j.Handed}}); err != nil {
				return "", err
			}
			if sent++; r.Count > 0 && sent >= r.Count {
				return "count", nil
			}
		}
		return "", nil
	})
	if err != nil {
		return err
	}
	return g.finish(ctx, taps, why, sent, r.Count, emit)
}

// Capture copies live packets.
func (b backend) Capture(ctx context.Context, r api.CaptureRequest, emit func(*api.StreamLine) error) error {
	g := b.g
	f, err := b.filter(r.PacketFilter)
	if err == nil {
		err = checkLook(r.Seconds, r.Snap)
	}
	if err == nil && !r.Before && !r.After {
		err = &api.Fault{Status: http.StatusBadRequest, Err: errors.New("neither before nor after: say which side is wanted")}
	}
	if err != nil {
		return err
	}
	if r.Snap == 0 {
		r.Snap = 256
	}
	taps, stop, err := g.watch(ctx, func() *trace.Tap { return trace.NewCapture(f, r.Count, r.Snap, r.Before, r.After) })
	if err != nil {
		return err
	}
	defer stop()
	if err := b.begin(emit); err != nil {
		return err
	}
	type captured struct {
		trace.Frame
		data []byte
	}
	buf, sent, packets := make([]trace.Frame, drainBatch), uint64(0), uint64(0)
	why, err := g.until(ctx, r.Seconds, func() (string, error) {
		var all []captured
		for i, t := range taps {
			for n := drainBatch; n == drainBatch; {
				data := make([]byte, 0, drainBatch*r.Snap)
				if err := g.workers[i].Do(ctx, func(*pipeline.Shard) { n, data = t.Frames(buf, data) }); err != nil {
					return "", err
				}
				for _, f := range buf[:n] {
					all = append(all, captured{f, data[:f.N]})
					data = data[f.N:]
				}
			}
		}
		slices.SortStableFunc(all, func(x, y captured) int { return int(int64(x.Ns) - int64(y.Ns)) })
		v, at := g.view.Load(), g.wall()
		for i := range all {
			c := &all[i]
			w := &api.Frame{Time: at(c.Ns), Side: "before", Port: g.portName(c.Port), Verdict: c.Verdict.String(), Length: int(c.Len), Data: c.data}
			first := c.Side == trace.Before || !r.Before
			if c.Side == trace.After {
				w.Side = "after"
			}
			if first {
				if r.Count > 0 && packets >= r.Count {
					return "count", nil
				}
				packets++
			}
			if t := v.Tenant(c.Tenant); t != nil {
				w.Tenant = t.Name
			}
			if c.Verdict == verdict.Drop {
				w.Reason = c.Reason.String()
			}
			if err := emit(&api.StreamLine{Frame: w}); err != nil {
				return "", err
			}
			sent++
		}
		if r.Count > 0 && packets >= r.Count {
			return "count", nil
		}
		return "", nil
	})
	if err != nil {
		return err
	}
	return g.finish(ctx, taps, why, sent, r.Count, emit)
}

// slowDropped records a frame that the slow path has given up. It is as it would have left, but for the MAC of the next hop.
func (g *Gateway) slowDropped(frame []byte, why verdict.Reason) {
	ns := g.clock.Now()
	g.look.mu.Lock()
	g.look.slow.Frame(ns, 0, why, trace.NoPort, frame, true)
	g.look.mu.Unlock()
}

// Dropped reads the recorders.
func (b backend) Dropped(ctx context.Context, r api.DroppedRequest, emit func(*api.StreamLine) error) error {
	g := b.g
	f, err := b.filter(r.PacketFilter)
	if err == nil && f.Rules != nil {
		err = &api.Fault{Status: http.StatusBadRequest, Err: errors.New("the recorder of drops knows no rules: ask for the reason acl_deny, or follow live packets with `demarc trace --rule`")}
	}
	if err == nil && r.Last < 0 {
		err = &api.Fault{Status: http.StatusBadRequest, Err: fmt.Errorf("last %d: want 0 or more", r.Last)}
	}
	if err != nil {
		return err
	}
	type dropped struct {
		trace.Drop
		worker int
	}
	next := make([]uint64, len(g.workers)+1) // the last one is the slow path's
	buf, lost := make([]trace.Drop, drainBatch), uint64(0)
	read := func() (all []dropped, err error) {
		for i := range next {
			for n := drainBatch; n == drainBatch; {
				var gone uint64
				from := func(rec *trace.Recorder) { next[i], n, gone = rec.From(next[i], buf) }
				if i < len(g.workers) {
					err = g.workers[i].Do(ctx, func(sh *pipeline.Shard) { from(sh.Drops()) })
				} else {
					g.look.mu.Lock()
					from(g.look.slow)
					g.look.mu.Unlock()
				}
				if err != nil {
					return nil, err
				}
				lost += gone
				for _, d := range buf[:n] {
					if f.Drop(&d) {
						w := i
						if i == len(g.workers) {
							w = -1
						}
						all = append(all, dropped{d, w})
					}
				}
			}
		}
		slices.SortStableFunc(all, func(x, y dropped) int { return int(int64(x.Ns) - int64(y.Ns)) })
		return all, nil
	}
	sent := uint64(0)
	send := func(all []dropped) error {
		v, at := g.view.Load(), g.wall()
		for i := range all {
			d := &all[i]
			w := &api.DroppedFrame{Time: at(d.Ns), Worker: d.worker, Port: g.portName(d.Port), VLAN: int(d.VLAN), Reason: d.Reason.String(), In: tuple(&d.In), Length: int(d.Len),
				After: d.After, Skipped: d.Skipped, Data: d.Data[:d.N]}
			if t := v.Tenant(d.Tenant); t != nil {
				w.Tenant = t.Name
			}
			if d.After && d.Out.Family != 0 && d.Out != d.In {
				o := tuple(&d.Out)
				w.Out = &o
			}
			if err := emit(&api.StreamLine{Dropped: w}); err != nil {
				return err
			}
			sent++
		}
		return nil
	}
	all, err := read()
	if err != nil {
		return err
	}
	if err := b.begin(emit); err != nil {
		return err
	}
	lost = 0 // what was overwritten before anybody asked
	if err := send(all[max(0, len(all)-r.Last):]); err != nil {
		return err
	}
	if r.Follow {
		_, err = g.until(ctx, 0, func() (string, error) {
			all, err := read()
			if err == nil {
				err = send(all)
			}
			return "", err
		})
		return err
	}
	return emit(&api.StreamLine{End: &api.StreamEnd{Why: "that is all", Matched: uint64(len(all)), Sent: sent, Lost: lost}})
}
