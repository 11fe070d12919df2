package worker

import (
	"context"
	"slices"

	"demarc/gateway/pipeline"
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
