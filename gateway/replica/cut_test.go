package replica

import (
	"testing"
	"time"
)

// TestLagGoesOnThroughACut: what changes while there is no connection has waited since, also when the next one goes on where the last one was.
func TestLagGoesOnThroughACut(t *testing.T) {
	const slots, life = 100, 7
	s := NewSender(flat{slots}, slots, 0, 1, life, 9, Limits{Digest: time.Hour, Refresh: time.Hour})
	now := int64(time.Second)
	s.Own(1, 1)
	s.Link(now, &Answer{Life: life, Anew: true})
	drain := func() {
		s.Drain(now, 1024)
		for s.Ready() {
			s.Take()
		}
	}
	for s.Behind() {
		now += int64(time.Millisecond)
		drain()
		s.Answer(now, &Answer{Life: life, Seq: s.seq})
	}
	s.Unlink()
	now += int64(time.Second)
	s.Mark(3, true)
	now += int64(4 * time.Second)
	s.Link(now, &Answer{Life: life, Seq: s.seq})
	if s.first {
		t.Fatal("it begins anew")
	}
	for _, what := range []string{"before it is written", "before it is answered"} {
		if lag := s.Status(now).Lag; lag < 4*time.Second || lag > 6*time.Second {
			t.Errorf("%s the lag is %s", what, lag)
		}
		drain()
	}
	s.Answer(now, &Answer{Life: life, Seq: s.seq})
	if lag := s.Status(now).Lag; lag != 0 {
		t.Errorf("all is answered, and the lag is %s", lag)
	}
}
