package police

import (
	"math/big"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// seeded is a random source whose seed is printed when the test fails.
func seeded(t testing.TB) *rand.Rand {
	seed := uint64(time.Now().UnixNano())
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("seed %d", seed)
		}
	})
	return rand.New(rand.NewPCG(seed, 1))
}

// exact is the cost of n in units, as a rational.
func exact(num, den uint64, n int) *big.Rat {
	r := new(big.Rat).SetFrac(new(big.Int).SetUint64(num), new(big.Int).SetUint64(den))
	return r.Mul(r, big.NewRat(int64(n), 1))
}

func TestCostOfOnePacket(t *testing.T) {
	rng := seeded(t)
	for range 20000 {
		bps := uint64(1) + rng.Uint64()>>rng.IntN(64)
		if bps > 1e12 {
			continue
		}
		n := 1 + rng.IntN(maxBytes)
		r := BitRate(bps, 0)
		got := new(big.Rat).SetInt(new(big.Int).SetUint64(r.cost(n, rng.Uint64())))
		diff := got.Sub(got, exact(8*unitsPerSecond, bps, n))
		limit := big.NewRat(51, 100) // rounding to the nearest unit, and that of mul
		if r.fine {
			limit = big.NewRat(101, 100) // up or down
		}
		if limit.Add(limit, new(big.Rat).Quo(exact(8*unitsPerSecond, bps, n), big.NewRat(1<<44, 1))); diff.Abs(diff).Cmp(limit) > 0 {
			f, _ := diff.Float64()
			t.Fatalf("%d bit/s, %d bytes: off by %g units", bps, n, f)
		}
	}
}

func TestLongRunError(t *testing.T) {
	const packets = 30000
	check := func(name string, r Rate, num, den uint64, n int) {
		t.Helper()
		tat := uint64(12345)
		for range packets {
			tat += r.cost(n, tat)
		}
		got, _ := new(big.Float).SetUint64(tat - 12345).Float64()
		want, _ := exact(num, den, n*packets).Float64()
		if e := got/want - 1; e > 1e-3 || e < -1e-3 {
			t.Errorf("%s: %d a packet: error %.4f %%", name, n, 100*e)
		}
	}
	for _, bps := range []uint64{64e3, 100e3, 1e6, 3e6, 20e6, 999_999_937, 1e9, 1_024_000_001, 7e9, 10e9, 25e9, 40e9, 99_999_999_977, 100e9} {
		for _, n := range []int{1, 20, 28, 46, 63, 64, 65, 576, 1279, 1500, 9000, 65535} {
			check("bits", BitRate(bps, 0), 8*unitsPerSecond, bps, n)
		}
	}
	for _, pps := range []uint64{1, 50, 1000, 14_880_952, 148_809_523} {
		check("packets", PacketRate(pps, 0), unitsPerSecond, pps, 1)
	}
}

// TestTakeAgainstRationals runs random loads against a token bucket in exact arithmetic: time and words as rationals in ns,
// no wrap, no clamp, none of the integer tricks. Only the cost comes from the Rate; TestCostOfOnePacket checks that.
func TestTakeAgainstRationals(t *testing.T) {
	rng := seeded(t)
	for range 200 {
		bps := uint64(64e3) + rng.Uint64N(1<<(16+rng.IntN(21)))
		burst := time.Duration(rng.Int64N(int64(100 * time.Millisecond)))
		r := BitRate(bps, burst)
		now := rng.Uint64N(1 << 57)
		if rng.IntN(4) == 0 {
			now = 1<<58 - rng.Uint64N(1e9) // the word wraps during the run
		}
		var w Word
		w.Store(now * UnitsPerNs)
		tat := new(big.Rat).SetInt(new(big.Int).SetUint64(now))
		for step := range 200 {
			if rng.IntN(3) == 0 {
				now += rng.Uint64N(uint64(1e12/bps) * 1500 * 8 / 100)
			}
			n := 1 + rng.IntN(9000)
			at := new(big.Rat).SetInt(new(big.Int).SetUint64(now))
			base := new(big.Rat).Set(tat)
			if base.Cmp(at) < 0 {
				base.Set(at)
			}
			lead := new(big.Rat).Sub(base, at)
			lead.Sub(lead, big.NewRat(int64(burst), 1))
			want := lead.Sign() <= 0
			wait := r.Wait(&w, now, n)
			if (wait == 0) != want {
				t.Fatalf("step %d: %d bit/s, burst %v: Wait = %d, lead beyond burst %v ns", step, bps, burst, wait, lead)
			}
			if exactWait := new(big.Rat).SetInt(new(big.Int).SetUint64(wait)); !want && (exactWait.Cmp(lead) < 0 || exactWait.Sub(exactWait, lead).Cmp(big.NewRat(1, 1)) >= 0) {
				t.Fatalf("step %d: Wait = %d, want %v rounded up", step, wait, lead)
			}
			before := w.Load()
			if got := r.Take(&w, now, n); got != want {
				t.Fatalf("step %d: %d bit/s, burst %v: Take = %v, want %v", step, bps, burst, got, want)
			}
			if !want {
				if w.Load() != before {
					t.Fatal("a refused packet moved the word")
				}
				continue
			}
			baseUnits := now * UnitsPerNs
			if int64(before-baseUnits) > 0 {
				baseUnits = before
			}
			tat = base.Add(base, big.NewRat(int64(r.cost(n, baseUnits)), UnitsPerNs))
		}
	}
}

func TestIdleCreditIsTheBurst(t *testing.T) {
	const year = 365 * 86400e9
	for name, tc := range map[string]struct{ idle, least uint64 }{
		"a second":   {1e9, 50000},
		"a year":     {year, 50000},
		"four years": {4 * year, 50000},
		"nine years": {9 * year, 0}, // looks like the future: the burst is lost, nothing more
	} {
		t.Run(name, func(t *testing.T) {
			r := BitRate(20e6, 20*time.Millisecond) // 50,000 bytes
			var w Word
			r.Take(&w, 1e9, 1500)
			now, sum := 1e9+tc.idle, uint64(0)
			for r.Take(&w, now, 1500) {
				sum += 1500
			}
			if sum < tc.least || sum > 50000+1500 {
				t.Errorf("%d bytes at once, want the burst of 50000 and at most a packet more", sum)
			}
		})
	}
}

func TestExtremes(t *testing.T) {
	t.Run("zero is unlimited", func(t *testing.T) {
		var r Rate
		var w Word
		if !r.Unlimited() || !r.Take(&w, 0, 1<<30) || r.Wait(&w, 0, 1) != 0 || w.Load() != 0 {
			t.Error("the zero rate limits")
		}
		r.Refund(&w, 5)
		if b, p := BitRate(0, time.Second), PacketRate(0, time.Second); !b.Unlimited() || !p.Unlimited() || w.Load() != 0 {
			t.Error("rate 0 limits")
		}
	})
	t.Run("1 bit/s with 64 KiB", func(t *testing.T) {
		r := BitRate(1, time.Hour)
		var w Word
		now := uint64(4 * 365 * 86400e9)
		if !r.Take(&w, now, 65536) {
			t.Fatal("the first packet does not pass")
		}
		want := uint64(65536*8*1e9 - 3600e9)
		if got := r.Wait(&w, now, 1); got != want {
			t.Errorf("Wait = %d, want %d", got, want)
		}
		if r.Take(&w, now+want-1, 1) || !r.Take(&w, now+want, 1<<30) {
			t.Error("the second packet does not pass when it should")
		}
		if got := r.Wait(&w, now+want, 1); got != 65536*8*1e9 {
			t.Errorf("more than 64 KiB counted as %d ns", got)
		}
	})
	t.Run("negative burst and size", func(t *testing.T) {
		r := BitRate(1e6, -time.Second)
		var w Word
		if !r.Take(&w, 1e9, -5) || r.Wait(&w, 1e9, 1) != 0 || !r.Take(&w, 1e9, 1) || r.Take(&w, 1e9, 1) {
			t.Error("a burst below 0 is not 0, or a size below 0 not 0")
		}
	})
	t.Run("beyond any line rate", func(t *testing.T) {
		r := BitRate(1<<64-1, 0)
		var w Word
		if !r.Take(&w, 1, 1500) || !r.Take(&w, 2, 1500) {
			t.Error("2^64 bit/s limits")
		}
	})
	t.Run("a raised rate holds soon", func(t *testing.T) {
		slow, fast := BitRate(1, 0), BitRate(1e9, 10*time.Millisecond)
		var w Word
		slow.Take(&w, 1e9, 65536)
		if slow.Wait(&w, 1e9, 1) == 0 {
			t.Fatal("the slow rate does not limit")
		}
		if got := fast.Wait(&w, 1e9+1, 1500); got > 10e6 {
			t.Errorf("still waits %d ns", got)
		}
	})
	t.Run("refund", func(t *testing.T) {
		for _, bps := range []uint64{64e3, 20e6, 100e9} {
			r := BitRate(bps, 0)
			var w Word
			w.Store(64e9)
			r.Take(&w, 1e9, 1499)
			r.Refund(&w, 1499)
			if d := w.Load() - 64e9; d > 1 || d > 0 && !r.fine { // above 1 Gbit/s at most the unit that rounding added
				t.Errorf("%d bit/s: %d units are left after the refund", bps, d)
			}
		}
	})
}

// TestSharedWord lets 4 goroutines draw from one word as fast as they can, each with its own look at a common clock.
func TestSharedWord(t *testing.T) {
	const (
		start, end = uint64(1e9), uint64(19e8) // less than maxSkew, however long a goroutine stands still
		bps        = 1_000_000_000
		size       = 700
	)
	r := BitRate(bps, 5*time.Millisecond)
	var (
		w      Word
		clock  atomic.Uint64
		passed atomic.Int64
		wg     sync.WaitGroup
	)
	w.Store(start*UnitsPerNs + uint64(r.burst)) // an empty bucket
	clock.Store(start)
	for range 4 {
		wg.Go(func() {
			for {
				now := clock.Add(20_000)
				if now > end {
					return
				}
				for r.Take(&w, now, size) {
					passed.Add(size)
				}
			}
		})
	}
	wg.Wait()
	want := int64(float64(end-start) * bps / 8e9)
	if got := passed.Load(); got > want+size || got < want-want/100 {
		t.Errorf("%d bytes passed, want %d", got, want)
	}
}

// TestBeside: what a packet has on the line beside what Take is told costs what as many bytes more would, is given back with it, and never makes it cost more than the most that one Take may.
func TestBeside(t *testing.T) {
	for _, bps := range []uint64{64e3, 20e6, 999e6, 3e9, 100e9} {
		for _, n := range []int{0, 1, 40, 200, 1500, maxBytes - 1, maxBytes, maxBytes + 1} {
			plain := BitRate(bps, 20*time.Millisecond)
			r := plain.Beside(38)
			now := uint64(1e15)
			var a, b Word
			if !plain.Take(&a, now, n+38) || !r.Take(&b, now, n) || a.Load() != b.Load() {
				t.Fatalf("%d bit/s: %d bytes and 38 beside them cost %d, as %d bytes %d", bps, n, b.Load()-now*UnitsPerNs, n+38, a.Load()-now*UnitsPerNs)
			}
			r.Refund(&b, n)
			if left := b.Load() - now*UnitsPerNs; left > 1 {
				t.Errorf("%d bit/s: of %d bytes that are given back %d units stay", bps, n, left)
			}
			if x := r.Numbers(); x.Beside != 38 || plain.Numbers().Beside != 0 {
				t.Errorf("numbers %+v", x)
			}
		}
	}
}

func TestRateAllocatesNothing(t *testing.T) {
	r := BitRate(1e9, time.Millisecond)
	var w Word
	now := uint64(0)
	if a := testing.AllocsPerRun(100, func() {
		now += 1e6
		r.Take(&w, now, 1500)
		r.Wait(&w, now, 1500)
		r.Refund(&w, 1500)
	}); a != 0 {
		t.Errorf("%v allocations", a)
	}
}

func BenchmarkTake(b *testing.B) {
	for name, bps := range map[string]uint64{"1G": 1e9, "10G": 10e9} {
		b.Run(name, func(b *testing.B) {
			r := BitRate(bps, 20*time.Millisecond)
			var w Word
			now := uint64(1e9)
			for b.Loop() {
				now += 12_000
				r.Take(&w, now, 1500)
			}
		})
	}
}

// A word that looks like the future, which one that nobody has touched does after half of the circle, costs a burst and keeps nobody out, whoever takes.
func TestAWordOfTheFutureKeepsNobodyOut(t *testing.T) {
	r := PacketRate(10, time.Second)
	now := uint64(5 * 365 * 24 * time.Hour)
	for name, take := range map[string]func(*Word) bool{
		"Take":    func(w *Word) bool { return r.Take(w, now, 1) },
		"TakeLow": func(w *Word) bool { return r.TakeLow(w, now, 1) },
	} {
		var w Word
		if !take(&w) || take(&w) {
			t.Errorf("%s: not once and then no more", name)
		}
		if wait := r.Wait(&w, now, 1); wait > uint64(200*time.Millisecond) {
			t.Errorf("%s: the next one waits %v", name, time.Duration(wait))
		}
	}
}
