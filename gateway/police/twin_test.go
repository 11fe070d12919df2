package police

import (
	"math/rand/v2"
	"reflect"
	"slices"
	"testing"
	"time"

	"demarc/gateway/undo"
	"demarc/gateway/verdict"
)

// A twin says what the shaper would say, whatever waits in it, and when it is undone the shaper is as it was to the last field.
func TestATwinSaysTheSameAndLeavesNothing(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 1))
	var verdicts [verdict.NumReasons]int
	waited := 0
	for range 300 {
		const queues = 6
		s := NewShaper(24, queues)
		d := Dir{Bits: BitRate(64000, 2*time.Millisecond), Voice: BitRate(16000, 2*time.Millisecond), QueueNs: uint64(rng.IntN(400)) * 1e6, Shape: true}
		var words [queues]Words
		now := uint64(1e12)
		item := func() *Item {
			return &Item{Frame: rng.Uint64N(1 << 20), IPLen: uint16(60 + rng.IntN(1400)), Voice: rng.IntN(4) == 0}
		}
		for range rng.IntN(60) {
			now += rng.Uint64N(5e6)
			q := rng.IntN(queues)
			s.Offer(q, &d, &words[q], item(), now)
			if rng.IntN(4) == 0 {
				s.Release(now, func(q int) (*Dir, *Words) { return &d, &words[q] }, func(*Item) bool { return true })
			}
		}
		was := *s
		was.nodes, was.queues, was.heap = slices.Clone(s.nodes), slices.Clone(s.queues), slices.Clone(s.heap)
		log := &undo.Log{}
		twin := s.Twin(log)
		type offer struct {
			q  int
			it *Item
			v  verdict.Verdict
			r  verdict.Reason
		}
		var said []offer
		before := make([][3]uint64, queues)
		for q := range words {
			before[q] = [3]uint64{words[q].Bits.Load(), words[q].Packets.Load(), words[q].Voice.Load()}
		}
		for range 1 + rng.IntN(8) {
			o := offer{q: rng.IntN(queues), it: item()}
			o.v, o.r = twin.Offer(o.q, &d, &words[o.q], o.it, now)
			if o.v == verdict.Queue {
				waited++
			}
			verdicts[o.r]++
			said = append(said, o)
		}
		log.Undo()
		for q := range words {
			if n, _ := s.HeldIn(q); (n > 0) != (words[q].Queued.Load() == 1) {
				t.Fatalf("queue %d has %d, and %d are counted", q, n, words[q].Queued.Load())
			}
		}
		for q := range words { // the words are whoever's who has the twin
			words[q].Bits.Store(before[q][0])
			words[q].Packets.Store(before[q][1])
			words[q].Voice.Store(before[q][2])
		}
		if !reflect.DeepEqual(was, *s) {
			t.Fatalf("the twin left something behind:\nwas %+v\nis  %+v", was, *s)
		}
		for i, o := range said {
			if v, r := s.Offer(o.q, &d, &words[o.q], o.it, now); v != o.v || r != o.r {
				t.Fatalf("offer %d: the twin said %s (%s), it was %s (%s)", i, o.v, o.r, v, r)
			}
		}
	}
	if waited < 100 || verdicts[verdict.Pass] == 0 || verdicts[verdict.TenantQueueFull] == 0 {
		t.Errorf("too little was met: %d waited, reasons %v", waited, verdicts)
	}
}
