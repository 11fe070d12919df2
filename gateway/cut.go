package gateway

import (
	"context"
	"time"

	"demarc/gateway/api"
	"demarc/gateway/conntrack"
	"demarc/gateway/flow"
	"demarc/gateway/pipeline"
)

// What of a cut is done between two bursts. Ending a session costs a few cache misses, looking at one hardly anything.
const (
	cutLook = walkLook
	cutEnd  = 256
)

// Cut ends the sessions that a filter meets. When it returns, what they had waiting in shapers has left or been dropped too.
func (b backend) Cut(ctx context.Context, r api.CutRequest) (*api.Cut, error) {
	g, start := b.g, time.Now()
	f := r.Filter
	m, err := b.match(f)
	if err != nil {
		return nil, err
	}
	if f.Tenant == "" && f.Address == "" && f.Port == 0 && f.Proto == "" && !r.All {
		return nil, api.BadRequest("the filter is empty, which means every session of every tenant: name a tenant, an address, a port or a protocol, or say all")
	}
	if f.Limit = min(f.Limit, maxListedAll); f.Limit == 0 {
		f.Limit = 20
	}
	out := &api.Cut{ByTenant: map[string]int{}}
	var first []picked
	now, v := uint32(g.clock.Now()>>20), g.view.Load()
	touched := map[flow.TenantID]bool{}
	note := func(w int, slot uint32, se *conntrack.Session, copied bool) bool {
		out.Total++
		if !m.matches(se) {
			return false
		}
		if copied {
			out.Copies++
			return false
		}
		out.Matched++
		if t := v.Tenant(se.Tenant); t != nil {
			out.ByTenant[t.Name]++
		}
		touched[se.Tenant] = true
		if len(first) < f.Limit {
			first = append(first, picked{w, slot, *se, false, g.workers[w].HandedDown(slot, se)})
		}
		return !r.DryRun
	}
	if !r.DryRun { // from here on workers alone carry: what is cut is not under way anywhere, and a slot is not taken again while a program is at it
		release, err := g.off.hold()
		if err != nil {
			return nil, err
		}
		defer release()
	}
	for w := range g.workers {
		for from, done := uint32(0), false; !done; {
			c, cancel := context.WithTimeout(ctx, 10*time.Second)
			err := g.workers[w].Do(c, func(sh *pipeline.Shard) {
				was, n := time.Now(), 0
				from, n, done = sh.CutSome(from, cutLook, cutEnd, func(slot uint32, se *conntrack.Session) bool { return note(w, slot, se, sh.Copied(se)) })
				out.Cut += n
				out.Longest = max(out.Longest, time.Since(was).Seconds())
			})
			cancel()
			if err != nil {
				return nil, err
			}
		}
	}
	out.Sessions = g.wire(first, now)
	if out.Cut > 0 {
		if err := g.drained(ctx, touched); err != nil {
			return nil, err
		}
		g.log.Info("sessions cut", "cut", out.Cut, "of", out.Total, "copies", out.Copies, "tenant", f.Tenant, "address", f.Address, "port", f.Port, "proto", f.Proto)
	}
	out.Took = time.Since(start).Seconds()
	return out, nil
}

// drained waits until what the workers had in hand, and what waited in the shapers of tenants, has left: a shaper is served in order, so a queue
// that was empty once, or has had the time that a packet may wait in it, holds nothing from before.
func (g *Gateway) drained(ctx context.Context, tenants map[flow.TenantID]bool) error {
	v, start := g.view.Load(), g.clock.Now()
	waits := map[int]uint64{} // queue -> until when at the latest
	for id := range tenants {
		t := v.Tenant(id)
		if t == nil {
			continue
		}
		for d := range t.Dir {
			if t.Dir[d].Shape {
				q := t.Dir[d].QueueNs
				waits[int(id)*2+d] = start + q + q/4 + uint64(20*time.Millisecond) // the shaper lets a packet wait a quarter more
			}
		}
	}
	left := make([]map[int]uint64, len(g.workers))
	for i := range left {
		left[i] = map[int]uint64{}
		for q, at := range waits {
			left[i][q] = at
		}
	}
	for settled := false; ; {
		n := 0
		err := g.each(ctx, func(i int, sh *pipeline.Shard) {
			for q, at := range left[i] {
				if items, _ := sh.Shaper.HeldIn(q); items == 0 || g.clock.Now() > at {
					delete(left[i], q)
				}
			}
			n += len(left[i])
		})
		if err != nil {
			return err
		}
		if n == 0 && settled { // one round more: what was handed over or batched during the one before has gone by then
			return nil
		}
		settled = n == 0
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(time.Millisecond):
		}
	}
}
