package standby

import (
	"errors"
	"testing"
	"time"

	"demarc/gateway/pipeline"
	"demarc/gateway/replica"
	"demarc/gateway/snapshot"
)

// TestWorkerThatFailsIsALoss: what a worker has not written to its end is asked for again, though nothing of it is in a digest.
func TestWorkerThatFailsIsALoss(t *testing.T) {
	w := newFar(t, 2, 1024, policyText+groupText(`"alpha"`)).shards
	s := New(Config{Shards: w, View: func() *snapshot.View { return &snapshot.View{} }, Taken: func(*snapshot.View) bool { return true }, Now: func() int64 { return 1 },
		Steps: func(int, func(*pipeline.Shard, time.Duration) bool) error { return errors.New("a panic") }})
	if n := s.sink.Lost(); n != 0 {
		t.Fatalf("%d are lost before anything was", n)
	}
	s.sink.Sweep(1, func(replica.Place) bool { return true })
	if n := s.sink.Lost(); n != uint64(len(w)) {
		t.Errorf("%d are lost, %d workers have failed", n, len(w))
	}
}
