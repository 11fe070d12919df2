package worker

import (
	"context"
	"slices"

	"demarc/gateway/flow"
	"demarc/gateway/pipeline"
	"demarc/gateway/snapshot"
	"demarc/gateway/stream"
)

// CopyTo has the worker keep a stream of its shard, whose Sender was made with pipeline.Copies of it.
func (w *Worker) CopyTo(ctx context.Context, s *stream.Stream) error {
	return w.Do(ctx, func(sh *pipeline.Shard) {
		sh.CopyTo(s.Sender())
		w.streams = append(w.streams, s)
	})
}

// CopyNoMore has it let go of the stream: it is not marked for any more.
func (w *Worker) CopyNoMore(ctx context.Context, s *stream.Stream) error {
	return w.Do(ctx, func(sh *pipeline.Shard) {
		sh.CopyNoMore(s.Sender())
		w.streams = slices.DeleteFunc(w.streams, func(o *stream.Stream) bool { return o == s })
	})
}

// Call has the worker begin a turn soon, from anywhere.
func (w *Worker) Call() { w.call() }

// copy is a stream's turn. One that panics, as on a table whose memory is gone, costs the streams to that standby: they begin anew.
func (w *Worker) copy(s *stream.Stream, now uint64, busy bool) (n int) {
	defer func() {
		if e := recover(); e != nil {
			s.Fail()
			w.panicked("panic in a session stream contained", e, nil)
		}
	}()
	return s.Turn(int64(now), busy)
}

// renew tells streams that the shard goes by another view.
func (w *Worker) renew(old, v *snapshot.View) {
	if len(w.streams) == 0 {
		return
	}
	var changed []uint8 // groups that a tenant with sessions has come into or left: no mark says so
	if old != nil {
		for _, t := range old.Tenants {
			if t == nil || v.Tenant(t.ID) == nil {
				continue
			}
			if was, is := groupID(old, t.ID), groupID(v, t.ID); was != is {
				changed = append(changed, was, is)
			}
		}
		slices.Sort(changed)
		changed = slices.Compact(changed)
	}
	for _, s := range w.streams {
		s.Renew(changed)
	}
}

func groupID(v *snapshot.View, tenant flow.TenantID) uint8 {
	if g := v.GroupOf(tenant); g != nil {
		return g.ID
	}
	return 0
}
