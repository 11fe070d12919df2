package police

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"demarc/gateway/verdict"
)

// limit is a Dir as snapshot compiles it.
func limit(bps uint64, burst, queue time.Duration) *Dir {
	return &Dir{
		Bits: BitRate(bps, burst), Voice: BitRate(bps/4*3, burst),
		QueueNs: uint64(queue), QueueBytes: int(bps / 8 * uint64(queue) / 1e9), Shape: true,
	}
}

// sent is a packet that has left; at is when, ns.
type sent struct {
	Item
	q  int
	at uint64
}

// bed drives shapers as workers do, in simulated time. Tag of an item is its serial; born tells when it was offered.
type bed struct {
	t       *testing.T
	now     uint64
	shapers []*Shaper
	dirs    []*Dir
	words   []Words
	born    []uint64
	out     []sent
	dropped map[verdict.Reason]int
	budget  int // what emit takes per Release; negative = all
	items   int
}

func newBed(t *testing.T, shapers, items int, dirs ...*Dir) *bed {
	b := &bed{t: t, now: 1e12, dirs: dirs, words: make([]Words, len(dirs)), dropped: map[verdict.Reason]int{}, budget: -1, items: items}
	for range shapers {
		b.shapers = append(b.shapers, NewShaper(items, len(dirs)))
	}
	return b
}

// offer has voice by a mark.
func (b *bed) offer(sh, q int, voice bool, size uint16) verdict.Verdict {
	return b.offerAs(sh, q, voice, false, size)
}

func (b *bed) offerAs(sh, q int, voice, ruled bool, size uint16) verdict.Verdict {
	it := Item{Frame: uint64(len(b.born)) << 11, Voice: voice, Ruled: ruled, Len: size + 14, IPLen: size, Tag: uint32(len(b.born))}
	b.born = append(b.born, b.now)
	if !voice && len(b.born)%2 == 0 && b.shapers[sh].Passes(q, b.dirs[q], &b.words[q], int(size), b.now) { // as the pipeline does; the others show that it is the same
		b.out = append(b.out, sent{it, q, b.now})
		return verdict.Send
	}
	v, r := b.shapers[sh].Offer(q, b.dirs[q], &b.words[q], &it, b.now)
	switch v {
	case verdict.Send:
		b.out = append(b.out, sent{it, q, b.now})
	case verdict.Drop:
		b.dropped[r]++
	case verdict.Queue:
		if r != verdict.Pass {
			b.t.Fatalf("queued for %v", r)
		}
	default:
		b.t.Fatalf("verdict %v", v)
	}
	return v
}

func (b *bed) release(sh int) int {
	left := b.budget
	q := -1
	return b.shapers[sh].Release(b.now, func(i int) (*Dir, *Words) {
		q = i
		return b.dirs[i], &b.words[i]
	}, func(it *Item) bool {
		if left == 0 {
			return false
		}
		left--
		b.out = append(b.out, sent{*it, q, b.now})
		return true
	})
}

// check asserts that no item was lost, doubled or reordered within its class and queue, and that the free list is whole.
func (b *bed) check() {
	b.t.Helper()
	held, drops := 0, 0
	for _, s := range b.shapers {
		free := 0
		for i := s.free; i != none; i = s.nodes[i].next {
			free++
		}
		if free != int(s.nfree) || free+s.held != b.items {
			b.t.Errorf("%d free, counted %d, %d held of %d", free, s.nfree, s.held, b.items)
		}
		held += s.Held()
	}
	for _, n := range b.dropped {
		drops += n
	}
	for q := range b.words {
		waiting := int64(0)
		for _, s := range b.shapers {
			if n, _ := s.HeldIn(q); n > 0 {
				waiting++
			}
		}
		if n := b.words[q].Queued.Load(); n != waiting {
			b.t.Errorf("queue %d: packets wait in %d shapers, and %d are counted", q, waiting, n)
		}
	}
	if len(b.out)+held+drops != len(b.born) {
		b.t.Errorf("%d offered, %d sent, %d held, %d dropped", len(b.born), len(b.out), held, drops)
	}
	seen := map[uint32]bool{}
	for _, o := range b.out {
		if seen[o.Tag] {
			b.t.Fatalf("item %d left twice", o.Tag)
		}
		seen[o.Tag] = true
	}
}

func (b *bed) bytes(q int) (n int) {
	for _, o := range b.out {
		if o.q == q {
			n += int(o.IPLen)
		}
	}
	return n
}

// TestRateUnderOverload: 20 Mbit/s, 20 ms burst, 30 ms queue, three times as much offered, 5 s.
func TestRateUnderOverload(t *testing.T) {
	for name, tc := range map[string]struct {
		shapers int
		size    uint16
		police  bool
		pps     uint64
	}{
		"one worker, 1500":        {shapers: 1, size: 1500},
		"one worker, 64":          {shapers: 1, size: 64},
		"two workers, 1500":       {shapers: 2, size: 1500},
		"two workers, 200":        {shapers: 2, size: 200},
		"policing":                {shapers: 1, size: 1500, police: true},
		"policing, two workers":   {shapers: 2, size: 700, police: true},
		"packets a second":        {shapers: 1, size: 100, pps: 2000},
		"packets, two workers":    {shapers: 2, size: 100, pps: 2000},
		"packets a second, drops": {shapers: 1, size: 100, pps: 2000, police: true},
	} {
		t.Run(name, func(t *testing.T) {
			d := limit(20e6, 20*time.Millisecond, 30*time.Millisecond)
			d.Shape = !tc.police
			if tc.pps != 0 {
				d.Packets = PacketRate(tc.pps, 20*time.Millisecond)
			}
			b := newBed(t, tc.shapers, 4096, d)
			start := b.now
			gap := uint64(tc.size) * 8 * 1e9 / 60e6
			for step := 0; b.now < start+5e9; step++ {
				b.offer(step%tc.shapers, 0, false, tc.size)
				b.now += gap
				for i := range b.shapers {
					if b.shapers[i].Next(b.now) == 0 {
						b.release(i)
					}
				}
			}
			want := 20e6 / 8 * 5.0
			if tc.pps != 0 {
				want = float64(tc.pps) * 5 * float64(tc.size)
			}
			if got := float64(b.bytes(0)); got < want*0.98 || got > want*1.02 {
				t.Errorf("%.2f %% of the rate passed", 100*got/want)
			}
			reason := verdict.TenantQueueFull
			if tc.police {
				reason = verdict.TenantRateBits
				if tc.pps != 0 {
					reason = verdict.TenantRatePackets
				}
			}
			if b.dropped[reason] == 0 || len(b.dropped) != 1 {
				t.Errorf("dropped: %v", b.dropped)
			}
			for _, o := range b.out {
				if wait := o.at - b.born[o.Tag]; wait > 45e6 || tc.shapers == 1 && wait > 32e6 || tc.police && wait != 0 {
					t.Fatalf("a packet waited %d us", wait/1000)
				}
			}
			b.check()
		})
	}
}

// TestVoiceUnderBulk: 50 packets of voice a second and call, 4 calls, through a line that bulk overfills.
func TestVoiceUnderBulk(t *testing.T) {
	for _, shapers := range []int{1, 2} {
		d := limit(20e6, 20*time.Millisecond, 30*time.Millisecond)
		b := newBed(t, shapers, 4096, d)
		start, voice := b.now, 0
		for step := 0; b.now < start+2e9; step++ {
			b.offer(step%shapers, 0, false, 1500)
			if step%25 == 7 { // each 5 ms
				b.offer(step/25%shapers, 0, true, 200)
				voice++
			}
			b.now += 200_000 // 60 Mbit/s of bulk
			for i := range b.shapers {
				b.release(i)
			}
		}
		got, worst := 0, uint64(0)
		for _, o := range b.out {
			if o.Voice {
				got++
				worst = max(worst, o.at-b.born[o.Tag])
			}
		}
		if got != voice || worst >= 3e6 {
			t.Errorf("%d workers: %d of %d voice packets left, the slowest after %d us", shapers, got, voice, worst/1000)
		}
		b.check()
	}
}

// TestVoiceAboveItsRate: voice may take 75 % of the line before the rest, not more; the rest gets the other quarter.
func TestVoiceAboveItsRate(t *testing.T) {
	d := limit(20e6, 20*time.Millisecond, 30*time.Millisecond)
	b := newBed(t, 1, 4096, d)
	start := b.now
	for b.now < start+5e9 {
		b.offer(0, 0, true, 500)
		b.offer(0, 0, true, 500)
		b.offer(0, 0, false, 500)
		b.now += 100_000 // 80 Mbit/s of voice, 40 of the rest
		b.release(0)
	}
	rest := 0
	for _, o := range b.out {
		if !o.Voice {
			rest += int(o.IPLen)
		}
	}
	// The quarter that is not voice's goes to the rest and the demoted voice by what they offer: 40 of 105 Mbit/s.
	if all, share := float64(b.bytes(0)), float64(rest)*8/5; all < 12.5e6*0.98 || all > 12.5e6*1.02 || share < 0.8e6 {
		t.Errorf("%.0f bytes left, the rest got %.1f Mbit/s", all, share/1e6)
	}
	if b.dropped[verdict.TenantVoiceRate] == 0 || b.dropped[verdict.TenantQueueFull] == 0 {
		t.Errorf("dropped: %v", b.dropped)
	}
	b.check()
}

// TestMarksTakeNothingFromRules: whoever marks packets as voice, however many, the conversations that a rule calls voice have that rate first, and marks what they leave of it.
func TestMarksTakeNothingFromRules(t *testing.T) {
	for _, shapers := range []int{1, 2} {
		d := limit(40e6, 20*time.Millisecond, 30*time.Millisecond)
		d.Voice = BitRate(8e6, 20*time.Millisecond)
		b := newBed(t, shapers, 4096, d)
		start, calls, marked := b.now, 0, 0
		for step := 0; b.now < start+4e9; step++ {
			sh := step % shapers
			b.offer(sh, 0, false, 1500) // 120 Mbit/s of bulk
			b.offer(sh, 0, true, 200)   // 16 Mbit/s that mark themselves
			if step%8 == 5 {            // 6 Mbit/s of calls by a rule, in bursts of three
				for range 3 {
					b.offerAs(sh, 0, true, true, 200)
					calls++
				}
			}
			b.now += 100_000
			for i := range b.shapers {
				b.release(i)
			}
		}
		got, worst := 0, uint64(0)
		for _, o := range b.out {
			switch {
			case o.Ruled:
				got++
				worst = max(worst, o.at-b.born[o.Tag])
			case o.Voice && o.at-b.born[o.Tag] < 3e6:
				marked++
			}
		}
		if got != calls || worst >= 5e6 {
			t.Errorf("%d workers: %d of %d packets of calls left, the slowest after %d us", shapers, got, calls, worst/1000)
		}
		if rate := float64(marked) * 200 * 8 / 4; rate < 1.5e6 { // of the 2 Mbit/s that calls leave
			t.Errorf("%d workers: %.1f Mbit/s of what marks itself left as voice", shapers, rate/1e6)
		}
		b.check()
	}
}

// TestALineWithMoreThanIP: small packets, which have as much again on the line, leave at the line's rate and not faster, and wait for no longer than the queue may be.
func TestALineWithMoreThanIP(t *testing.T) {
	const bps, size, beside = 10e6, 60, 38
	for _, bytes := range []bool{true, false} { // the queue is bounded by bytes, or by its time alone
		d := limit(bps, 20*time.Millisecond, 30*time.Millisecond)
		d.Bits, d.Voice = d.Bits.Beside(beside), Rate{}
		if !bytes {
			d.QueueBytes = 0
		}
		b := newBed(t, 1, 1<<14, d)
		for start := b.now; b.now < start+3e9; b.now += 20_000 { // 50,000 packets a second
			b.offer(0, 0, false, size)
			b.release(0)
		}
		const want = bps / 8 / (size + beside) * 3
		if got := float64(len(b.out)); got < want*0.99 || got > want*1.01+bps/8/(size+beside)*0.021 {
			t.Errorf("bounded by bytes %v: %.0f packets left, want %.0f", bytes, got, want)
		}
		worst := uint64(0)
		for _, o := range b.out {
			worst = max(worst, o.at-b.born[o.Tag])
		}
		if worst > 31e6 || worst < 25e6 {
			t.Errorf("bounded by bytes %v: the slowest waited for %d us", bytes, worst/1000)
		}
		b.check()
	}
}

// TestOrder: within queue and class, packets leave in the order in which they were offered.
func TestOrder(t *testing.T) {
	rng := seeded(t)
	dirs := make([]*Dir, 6)
	for i := range dirs {
		dirs[i] = limit(uint64(1+i)*2e6, 10*time.Millisecond, 30*time.Millisecond)
		dirs[i].Voice = Rate{} // else what is above it changes its class
	}
	b := newBed(t, 1, 300, dirs...)
	for range 20000 {
		b.offer(0, rng.IntN(len(dirs)), rng.IntN(5) == 0, uint16(64+rng.IntN(1436)))
		b.now += rng.Uint64N(1_000_000)
		b.budget = rng.IntN(4) - 1
		b.release(0)
	}
	last := map[[2]int]uint32{}
	for _, o := range b.out {
		k := [2]int{o.q, 0}
		if o.Voice {
			k[1] = 1
		}
		if p, ok := last[k]; ok && p >= o.Tag {
			t.Fatalf("queue %d: %d left after %d", o.q, o.Tag, p)
		}
		last[k] = o.Tag
	}
	b.check()
	b.shapers[0].Flush(func(it *Item) { b.out = append(b.out, sent{Item: *it}) })
	if n := b.shapers[0].Held(); n != 0 || b.shapers[0].Next(b.now) != ^uint64(0) {
		t.Errorf("%d held after Flush", n)
	}
	b.check()
}

// TestFairRound: the driver can emit far less than the tenants may send; each gets its part, whatever its packets' size.
func TestFairRound(t *testing.T) {
	var dirs []*Dir
	for range 4 {
		dirs = append(dirs, limit(1e9, time.Millisecond, 30*time.Millisecond))
	}
	b := newBed(t, 1, 4000, dirs...)
	b.budget = 1
	for range 20000 {
		b.offer(0, 0, false, 1500) // this one also offers most
		b.offer(0, 0, false, 1500)
		b.offer(0, 1, false, 1500)
		b.offer(0, 2, false, 500)
		b.offer(0, 2, false, 500)
		b.offer(0, 2, false, 500)
		b.offer(0, 3, false, 1000)
		b.offer(0, 3, false, 1000)
		b.now += 10_000
		b.release(0)
	}
	// What Offer sends at once does not pass the driver's budget here; only what was released is compared.
	got := make([]int, len(dirs))
	for _, o := range b.out {
		if o.at != b.born[o.Tag] {
			got[o.q] += int(o.IPLen)
		}
	}
	for q, n := range got {
		if n < got[0]*9/10 || n > got[0]*11/10 || n == 0 {
			t.Errorf("queue %d got %d bytes of %v", q, n, got)
		}
	}
	b.check()
}

func TestBounds(t *testing.T) {
	t.Run("one tenant leaves room for others", func(t *testing.T) {
		d := limit(1e9, 0, time.Second)
		d.Voice = Rate{}
		b := newBed(t, 1, 100, d, limit(1e6, 0, time.Second))
		for range 200 {
			b.offer(0, 0, false, 1500)
		}
		if n, _ := b.shapers[0].HeldIn(0); n != 50 || b.dropped[verdict.ShaperFull] != 149 {
			t.Errorf("holds %d, dropped %v", n, b.dropped)
		}
		b.offer(0, 1, false, 1500)
		if v := b.offer(0, 1, false, 1500); v != verdict.Queue {
			t.Errorf("another tenant: %v", v)
		}
		for range 100 {
			b.offer(0, 0, true, 100)
		}
		if n := b.shapers[0].Held(); n <= 85 || n >= 100 {
			t.Errorf("voice fills it to %d of 100", n)
		}
		if v := b.offer(0, 1, false, 1500); v != verdict.Queue {
			t.Errorf("another tenant, behind voice: %v", v)
		}
		b.check()
	})
	t.Run("a slow rate holds one packet", func(t *testing.T) {
		b := newBed(t, 1, 100, limit(64e3, 20*time.Millisecond, 30*time.Millisecond))
		got := []verdict.Verdict{b.offer(0, 0, false, 1500), b.offer(0, 0, false, 1500), b.offer(0, 0, false, 1500)}
		if diff := cmp.Diff([]verdict.Verdict{verdict.Send, verdict.Queue, verdict.Drop}, got); diff != "" {
			t.Error(diff)
		}
		b.now += b.shapers[0].Next(b.now)
		for range 100 { // it looks again now and then: the policy may have changed
			if b.release(0) == 1 {
				break
			}
			b.now += b.shapers[0].Next(b.now)
		}
		if wait := b.now - 1e12; b.shapers[0].Held() != 0 || wait < 167e6 || wait > 168e6 { // 187.5 ms less the burst
			t.Errorf("left after %d us", wait/1000)
		}
		b.check()
	})
	t.Run("no queue", func(t *testing.T) {
		d := limit(1e6, 0, 0)
		b := newBed(t, 1, 100, d)
		b.offer(0, 0, false, 1500)
		if v := b.offer(0, 0, false, 1500); v != verdict.Drop || b.dropped[verdict.TenantQueueFull] != 1 {
			t.Errorf("%v %v", v, b.dropped)
		}
	})
	t.Run("unlimited", func(t *testing.T) {
		b := newBed(t, 1, 0, &Dir{}, &Dir{Shape: true, QueueNs: 1e6})
		for range 1000 {
			if b.offer(0, 0, false, 1500) != verdict.Send || b.offer(0, 1, true, 1500) != verdict.Send {
				t.Fatal("not sent")
			}
		}
	})
	t.Run("no such queue", func(t *testing.T) {
		s := NewShaper(1, 1)
		for _, q := range []int{-1, 1} {
			if v, r := s.Offer(q, &Dir{}, &Words{}, &Item{}, 0); v != verdict.Drop || r != verdict.InternalError {
				t.Errorf("queue %d: %v %v", q, v, r)
			}
			s.FlushQueue(q, nil)
		}
	})
}

// TestRefusedEmit: an item that the driver cannot take stays first, and is not charged.
func TestRefusedEmit(t *testing.T) {
	b := newBed(t, 1, 10, limit(12e6, 0, 30*time.Millisecond)) // 1500 bytes = 1 ms
	b.offer(0, 0, false, 1500)
	b.offer(0, 0, false, 1500)
	b.offer(0, 0, false, 1500)
	b.budget = 0
	b.now += 2e6
	before := b.words[0].Bits.Load()
	for range 10 {
		if b.release(0) != 0 {
			t.Fatal("left")
		}
	}
	if d := b.words[0].Bits.Load() - before; int64(d) > 1e6*UnitsPerNs { // only the idle millisecond is gone
		t.Errorf("refused items were charged %d units", d)
	}
	if b.shapers[0].Next(b.now) != 0 {
		t.Error("Next does not say that it should be tried again")
	}
	b.budget = -1
	if b.release(0) != 1 || b.out[1].Tag != 1 {
		t.Error("the first item did not leave first")
	}
	b.check()
}

// TestPolicyChange: a raised rate holds for what waits already; a tenant that is gone keeps its frames until flushed.
func TestPolicyChange(t *testing.T) {
	b := newBed(t, 1, 10, limit(1, 0, time.Second), limit(1e6, 0, time.Second))
	for q := range b.dirs {
		b.offer(0, q, false, 1500)
		b.offer(0, q, false, 1500)
	}
	b.dirs[0], b.dirs[1] = limit(1e9, time.Millisecond, time.Second), nil
	end := b.now + 100e6
	for b.now < end {
		b.now += max(b.shapers[0].Next(b.now), 1000)
		b.release(0)
	}
	n0, _ := b.shapers[0].HeldIn(0)
	n1, _ := b.shapers[0].HeldIn(1)
	if n0 != 0 || n1 != 1 {
		t.Errorf("%d wait after the rate was raised, %d of a tenant that is gone", n0, n1)
	}
	flushed := 0
	b.shapers[0].FlushQueue(1, func(*Item) { flushed++ })
	if flushed != 1 || b.shapers[0].Held() != 0 || b.shapers[0].Next(b.now) != ^uint64(0) {
		t.Errorf("%d flushed, %d held", flushed, b.shapers[0].Held())
	}
}

// A rate that is lowered does not first send for seconds what had come by the one before: what is beyond the new bounds is dropped, the oldest first, and what comes afterwards has its rate.
func TestTrim(t *testing.T) {
	b := newBed(t, 1, 5000, limit(100e6, 20*time.Millisecond, 30*time.Millisecond))
	s := b.shapers[0]
	for range 1000 {
		b.offer(0, 0, false, 1000)
	}
	full, _ := s.HeldIn(0)
	b.dirs[0] = limit(1e6, 20*time.Millisecond, 30*time.Millisecond)
	first, last := uint32(0), uint32(0)
	s.Trim(0, b.dirs[0], func(it *Item) {
		if first == 0 {
			first = it.Tag
		}
		if it.Tag < last {
			t.Fatalf("%d was dropped behind %d", it.Tag, last)
		}
		last = it.Tag
		b.dropped[verdict.TenantQueueFull]++
	})
	b.check()
	if n, bytes := s.HeldIn(0); full < 300 || n != 3 || bytes != 3000 {
		t.Fatalf("%d waited, %d packets of %d bytes do now", full, n, bytes)
	}
	s.Trim(0, b.dirs[0], func(*Item) { t.Error("what may wait was dropped") })
	before, passed := len(b.out), 0
	for i := range 2000 { // half of the rate for 2 s, behind what the word is ahead by
		b.now += 1e6
		if b.release(0); i%16 == 0 && b.offer(0, 0, false, 1000) != verdict.Drop {
			passed++
		}
	}
	if passed < 120 || len(b.out)-before < 110 {
		t.Errorf("of 125 packets at half of the rate %d passed, %d left", passed, len(b.out)-before)
	}
	b.check()
	// One may always wait, whatever it is, and where nothing is to wait what does so still leaves.
	b.dirs[0] = limit(8, 0, time.Millisecond)
	b.offer(0, 0, false, 1500)
	b.offer(0, 0, false, 1500)
	s.Trim(0, b.dirs[0], func(*Item) { b.dropped[verdict.TenantQueueFull]++ })
	if n, _ := s.HeldIn(0); n != 1 {
		t.Errorf("%d wait", n)
	}
	s.Trim(9, b.dirs[0], nil)
	s.Trim(0, &Dir{}, nil)
	b.check()
}

// TestFlushAnywhere flushes queues in every state, in random order, and checks heap and round afterwards.
func TestFlushAnywhere(t *testing.T) {
	rng := seeded(t)
	dirs := make([]*Dir, 40)
	for i := range dirs {
		dirs[i] = limit(uint64(1+rng.IntN(20))*1e6, 0, 50*time.Millisecond)
	}
	b := newBed(t, 1, 500, dirs...)
	s := b.shapers[0]
	for step := range 20000 {
		b.offer(0, rng.IntN(len(dirs)), rng.IntN(4) == 0, 1000)
		b.now += rng.Uint64N(500_000)
		b.budget = rng.IntN(5)
		b.release(0)
		if rng.IntN(3) == 0 {
			s.FlushQueue(rng.IntN(len(dirs)), func(it *Item) { b.dropped[verdict.Shutdown]++ })
		}
		if step%50 != 0 {
			continue
		}
		inRound := map[uint32]bool{}
		for q := s.first; q != none; q = s.queues[q].next {
			inRound[q] = true
		}
		for i, h := range s.heap {
			if s.queues[h.q].pos != uint32(i) || s.queues[h.q].state != waiting || i > 0 && s.heap[(i-1)/2].wake > h.wake {
				t.Fatalf("heap entry %d is wrong", i)
			}
		}
		waits := 0
		for q := range s.queues {
			n, _ := s.HeldIn(q)
			if st := s.queues[q].state; (st == idle) != (n == 0) || (st == ready) != inRound[uint32(q)] {
				t.Fatalf("queue %d: %d items, state %d", q, n, st)
			} else if st == waiting {
				waits++
			}
		}
		if waits != len(s.heap) {
			t.Fatalf("%d queues wait, %d in the heap", waits, len(s.heap))
		}
	}
	b.check()
}

func TestShaperAllocatesNothing(t *testing.T) {
	s := NewShaper(1000, 100)
	d := limit(100e6, time.Millisecond, 30*time.Millisecond)
	words := make([]Words, 100)
	look := func(q int) (*Dir, *Words) { return d, &words[q] }
	emit := func(*Item) bool { return true }
	now, queued, left := uint64(1e9), 0, 0
	if a := testing.AllocsPerRun(200, func() {
		for i := range 100 {
			if v, _ := s.Offer(i%7, d, &words[i%7], &Item{IPLen: 1500, Voice: i%9 == 0}, now); v == verdict.Queue {
				queued++
			}
		}
		now += 500_000
		left += s.Release(now, look, emit)
		s.Next(now)
	}); a != 0 {
		t.Errorf("%v allocations", a)
	}
	if queued == 0 || left == 0 {
		t.Error("nothing was queued or released")
	}
}

func BenchmarkOffer(b *testing.B) {
	for _, tc := range []struct {
		name string
		d    Dir
	}{
		{"bits", Dir{Bits: BitRate(1e9, 20*time.Millisecond), Shape: true, QueueNs: 30e6, QueueBytes: 3.75e6}},
		{"bits10G", Dir{Bits: BitRate(10e9, 20*time.Millisecond), Shape: true, QueueNs: 30e6, QueueBytes: 37.5e6}},
		{"bits+packets", Dir{Bits: BitRate(1e9, 20*time.Millisecond), Packets: PacketRate(1e6, 20*time.Millisecond), Shape: true, QueueNs: 30e6, QueueBytes: 3.75e6}},
		{"unlimited", Dir{}},
	} {
		b.Run(tc.name, func(b *testing.B) {
			s := NewShaper(1024, 4000)
			words := make([]Words, 4000)
			it := Item{IPLen: 1500}
			now, q, sent := uint64(1e12), 0, 0
			for b.Loop() {
				if v, _ := s.Offer(q, &tc.d, &words[q], &it, now); v == verdict.Send {
					sent++
				}
				now += 12_100
				if q++; q == 64 {
					q = 0
				}
			}
			if sent < b.N {
				b.Fatalf("%d of %d sent", sent, b.N)
			}
		})
	}
}

// BenchmarkRelease is the cost of one packet through a queue, with few or all of 4000 queues active.
func BenchmarkRelease(b *testing.B) {
	for _, active := range []int{2, 4000} {
		b.Run(map[int]string{2: "2of4000", 4000: "4000of4000"}[active], func(b *testing.B) {
			s := NewShaper(1<<15, 4000)
			d := limit(1e9, 0, 30*time.Millisecond)
			words := make([]Words, 4000)
			look := func(q int) (*Dir, *Words) { return d, &words[q] }
			emit := func(*Item) bool { return true }
			now, left, q := uint64(1e12), 0, 0
			it := Item{IPLen: 1500}
			for range 4 * active {
				s.Offer(q, d, &words[q], &it, now)
				q = (q + 1) % active
			}
			for b.Loop() {
				s.Offer(q, d, &words[q], &it, now)
				q = (q + 1) % active
				now += uint64(12_000 / active)
				left += s.Release(now, look, emit)
			}
			if left < b.N/2 {
				b.Fatalf("%d of %d left", left, b.N)
			}
		})
	}
}
