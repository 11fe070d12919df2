package meter

import (
	"math/rand/v2"
	"sync"
	"testing"

	"demarc/gateway/flow"
	"demarc/gateway/verdict"
)

func TestPublishedEqualsCounted(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 1))
	s := NewShard(5)
	var vol [5][NumDirs]Volume
	var drops [5][verdict.NumReasons]uint64
	for range 2000 {
		id := flow.TenantID(rng.IntN(7)) // 5 and 6 have no counters: they must land in 0, not vanish
		slot := int(id)
		if slot >= 5 {
			slot = 0
		}
		switch rng.IntN(3) {
		case 0:
			d, n := Dir(rng.IntN(int(NumDirs))), rng.IntN(1500)
			s.Add(id, d, n)
			vol[slot][d].Packets++
			vol[slot][d].Bytes += uint64(n)
		case 1:
			r := verdict.Reason(rng.IntN(int(verdict.NumReasons)))
			s.Drop(id, r)
			drops[slot][r]++
		default:
			s.Publish()
		}
	}
	s.Publish()
	for id := range 5 {
		for d := Dir(0); d < NumDirs; d++ {
			if got := s.Volume(flow.TenantID(id), d); got != vol[id][d] {
				t.Errorf("tenant %d %s: %+v, want %+v", id, d, got, vol[id][d])
			}
		}
		for r := verdict.Reason(0); r < verdict.NumReasons; r++ {
			if got := s.Drops(flow.TenantID(id), r); got != drops[id][r] {
				t.Errorf("tenant %d %s: %d, want %d", id, r, got, drops[id][r])
			}
		}
	}
}

func TestReadersBesideTheWriter(t *testing.T) {
	s := NewShard(2)
	var wg sync.WaitGroup
	stop := make(chan struct{})
	wg.Go(func() {
		var last uint64
		for {
			select {
			case <-stop:
				return
			default:
			}
			v := s.Volume(1, Out)
			if v.Packets < last {
				t.Errorf("counter ran backwards: %d after %d", v.Packets, last)
				return
			}
			last = v.Packets
		}
	})
	for range 10000 {
		s.Add(1, Out, 100)
		s.Drop(1, verdict.NoRoute)
		s.Publish()
	}
	close(stop)
	wg.Wait()
}

func TestResetReachesReaders(t *testing.T) {
	s := NewShard(2)
	s.Add(1, In, 100)
	for r := verdict.Reason(0); r < verdict.NumReasons; r++ {
		s.Drop(1, r)
	}
	s.Offer(1, In, 150)
	s.Passed(1, In, 70)
	s.Voice(1, In, 70, VoiceWithin)
	s.Voice(1, In, 80, VoiceAbove)
	s.Voice(1, In, 81, VoiceAbove)
	s.Voice(1, In, 82, VoiceLost)
	s.Voice(1, Out, 90, VoiceWithin)
	s.Publish()
	if in, out := s.VoiceOf(1, In), s.VoiceOf(1, Out); in != (Voice{{1, 70}, {2, 161}, {1, 82}}) || out != (Voice{{1, 90}}) {
		t.Errorf("voice %+v, %+v", in, out)
	}
	if v := s.Offered(1, In); v != (Volume{2, 220}) {
		t.Errorf("offered %+v", v)
	}
	if v := s.Volume(1, In); v != (Volume{2, 170}) {
		t.Errorf("volume %+v", v)
	}
	s.Reset(1)
	s.Publish()
	if v := s.Volume(1, In); v != (Volume{}) {
		t.Errorf("volume %+v after reset", v)
	}
	if v := s.Offered(1, In); v != (Volume{}) {
		t.Errorf("offered %+v after reset", v)
	}
	if v := s.VoiceOf(1, In); v != (Voice{}) {
		t.Errorf("voice %+v after reset", v)
	}
	s.Add(1, In, 100)
	s.Publish()
	s.Reset(1)
	s.Add(1, In, 60) // as many packets as readers know of, and other bytes
	s.Publish()
	if v := s.Volume(1, In); v != (Volume{1, 60}) {
		t.Errorf("volume %+v of another tenant with as many packets", v)
	}
	for r := verdict.Reason(0); r < verdict.NumReasons; r++ {
		if n := s.Drops(1, r); n != 0 {
			t.Errorf("%s %d after reset", r, n)
		}
	}
}

func TestCountingAllocatesNothing(t *testing.T) {
	s := NewShard(4)
	if n := testing.AllocsPerRun(100, func() {
		s.Add(1, In, 64)
		s.Drop(2, verdict.NoRoute)
		s.Publish()
	}); n != 0 {
		t.Fatalf("%v allocations", n)
	}
}

// BenchmarkPublish is what a burst that passed for one tenant costs to be counted and published.
func BenchmarkPublish(b *testing.B) {
	s := NewShard(4)
	for b.Loop() {
		s.Passed(1, In, 64)
		s.Publish()
	}
}
