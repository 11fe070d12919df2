package stream

import (
	"testing"
	"time"

	"demarc/gateway/replica"
)

// BenchmarkTurn is what a stream takes from a worker's turn: between two looks at what has changed, at a look that finds nothing, and for each change.
func BenchmarkTurn(b *testing.B) {
	const slots = 1 << 16
	linked := func() (*table, *Stream) {
		t := &table{slots: make([]struct {
			gen  uint32
			live bool
			what uint32
		}, slots)}
		out := replica.NewSender(t, slots, 0, 1, 7, 9, replica.Limits{Refresh: time.Hour})
		t.marks = []*replica.Sender{out}
		s := NewSet("b", 7).Add(out, func() {})
		out.Own(1, 1)
		s.link(1, &replica.Answer{Anew: true})
		return t, s
	}
	acked := func(s *Stream) { // the standby has all, at once
		for {
			select {
			case f := <-s.set.full:
				s.set.free <- f
			default:
				seq, _ := s.out.Next()
				s.out.Answer(1, &replica.Answer{Life: 7, Seq: seq})
				return
			}
		}
	}
	run := func(b *testing.B, step int64, each func(t *table, i int)) {
		t, s := linked()
		now := int64(1)
		for s.out.Pending() {
			now += int64(time.Second)
			s.Turn(now, false)
			acked(s)
		}
		for i := 0; b.Loop(); i++ {
			each(t, i)
			now += step
			s.Turn(now, true)
			if len(s.set.full) > buffers/2 {
				acked(s)
			}
		}
	}
	b.Run("not due", func(b *testing.B) { run(b, 100, func(*table, int) {}) })
	b.Run("nothing changed", func(b *testing.B) { run(b, int64(pace), func(*table, int) {}) })
	b.Run("64 changed", func(b *testing.B) {
		run(b, int64(pace), func(t *table, i int) {
			for k := range 64 {
				t.put((i*64+k)%slots, uint32(i))
			}
		})
	})
}
