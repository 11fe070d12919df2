package gateway

import (
	"context"
	"time"

	"demarc/gateway/api"
	"demarc/gateway/conntrack"
	"demarc/gateway/pipeline"
)

// What a report has a worker do between two bursts is bounded, however large its tables: packets wait meanwhile. A slot that is looked at costs some
// nanoseconds, one that is judged a few hundred, so either is some tens of microseconds, about a burst.
const (
	walkLook  = 1024
	walkJudge = 128
)

// each runs fn on every worker between two bursts, one after the other. fn must not take longer than a burst or so: what grows with the tables
// goes by walk.
func (g *Gateway) each(ctx context.Context, fn func(i int, sh *pipeline.Shard)) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	for i, w := range g.workers {
		if err := w.Do(ctx, func(sh *pipeline.Shard) { fn(i, sh) }); err != nil {
			return err
		}
	}
	return nil
}

// walk calls fn for every session of every worker, budget table slots at a time so that packets go on in between.
func (g *Gateway) walk(ctx context.Context, budget int, fn func(w int, sh *pipeline.Shard, slot uint32, se *conntrack.Session) bool) error {
	for i := range g.workers {
		from, done, stop := uint32(0), false, false
		for !done && !stop {
			c, cancel := context.WithTimeout(ctx, 10*time.Second)
			err := g.workers[i].Do(c, func(sh *pipeline.Shard) {
				from, done = sh.Sessions.Each(from, budget, func(slot uint32, se *conntrack.Session) bool {
					stop = !fn(i, sh, slot, se)
					return !stop
				})
			})
			cancel()
			if err != nil {
				return err
			}
		}
	}
	return nil
}

// picked is a session as it was when a walk met it. It is put into words when the worker has gone on.
type picked struct {
	worker int
	slot   uint32
	se     conntrack.Session
	copied bool
	down   bool
}

// wire puts picked sessions into the interface's struct.
func (g *Gateway) wire(list []picked, now uint32) []api.Session {
	out := make([]api.Session, 0, len(list))
	for i := range list {
		p := &list[i]
		out = append(out, g.wireSession(p, now))
	}
	return out
}
