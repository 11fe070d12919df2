package cruise

import (
	"math"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cilium/ebpf"

	"demarc/gateway/conntrack"
	"demarc/gateway/cruise/bpf"
	"demarc/gateway/flow"
	"demarc/gateway/meter"
	"demarc/gateway/netlab/roottest"
	"demarc/gateway/pipeline"
	"demarc/gateway/police"
	"demarc/gateway/verdict"
)

// twoWriters is a data plane of one worker with sessions that are handed down, and the programs of its ports. The caller closes those.
func twoWriters(t *testing.T) (*world, *programs) {
	t.Helper()
	roottest.Require(t)
	w := newWorld(t, seeded(t), 1, true)
	w.populate(16)
	ps, err := w.load(bpf.LoadCruise)
	if err != nil {
		ps.close(t)
		t.Fatal(err)
	}
	return w, &ps
}

// floods has a program take a frame as fast as it can, and returns what waits for the end of that.
func floods(t *testing.T, p *Program, frame []byte, end time.Time) *sync.WaitGroup {
	var stop sync.WaitGroup
	stop.Go(func() {
		out := make([]byte, len(frame)+headroom)
		for time.Now().Before(end) {
			if _, err := p.prog.Run(&ebpf.RunOptions{Data: frame, DataOut: out}); err != nil {
				t.Errorf("run: %v", err)
				return
			}
		}
	})
	return &stop
}

// Both executors carry packets of one session at the same time, on two CPUs: what the session counts is the sum to the byte.
func TestTwoWritersLoseNothing(t *testing.T) {
	w, ps := twoWriters(t)
	defer ps.close(t)
	se, _ := w.inside(flow.UDP)
	r := &round{form: w.form(se, 0)}
	r.ttl, r.flags, r.payload = 255, 0x4000, 100
	frame := w.build(r.form)
	const ipLen = 20 + 8 + 100

	packets, bytes := se.Packets[0], se.Bytes[0]
	p := ps[r.iface.Port]
	end := time.Now().Add(1500 * time.Millisecond)
	stop := floods(t, p, frame, end)
	defer stop.Wait()
	mine := uint64(0)
	for time.Now().Before(end) {
		for range 1000 {
			if s := w.process(r.iface.Port, frame, bootNow(t)); s.Verdict != verdict.Send {
				t.Fatalf("%s (%s)", s.Verdict, s.Reason)
			}
			mine++
		}
	}
	stop.Wait()
	theirs, _, err := p.Count(Carried)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%d by the pipeline, %d by the program", mine, theirs)
	if mine < 10_000 || theirs < 10_000 {
		t.Error("too few to have met")
	}
	if got := uint64(se.Packets[0] - packets); got != mine+theirs {
		t.Errorf("%d packets counted, want %d", got, mine+theirs)
	}
	if got := se.Bytes[0] - bytes; got != (mine+theirs)*ipLen {
		t.Errorf("%d bytes counted, want %d", got, (mine+theirs)*ipLen)
	}
}

// A segment is carried by each executor at the same time, again and again: of the numbers that both move forwards neither is lost.
func TestTwoWritersKeepTheHighestNumbers(t *testing.T) {
	w, ps := twoWriters(t)
	defer ps.close(t)
	se, _ := w.inside(flow.TCP)
	p := ps[w.at(se, 0).Port]
	segment := func(dir, payload int, window uint16) []byte {
		f := w.form(se, dir)
		f.ttl, f.payload, f.window = 255, payload, window
		f.seq, f.ack = atomic.LoadUint32(&se.TCPEnd[dir]), atomic.LoadUint32(&se.TCPEnd[1-dir])
		return w.build(f)
	}
	process := func(dir int, frame []byte) {
		if s := w.process(w.at(se, dir).Port, frame, bootNow(t)); s.Verdict != verdict.Send {
			t.Fatalf("%s (%s)", s.Verdict, s.Reason)
		}
	}
	limit := func(window uint16) uint32 {
		shift := 0
		if a, b := se.Scale[0], se.Scale[1]; a&b&0x80 != 0 { // both offered one
			shift = int(a & 15)
		}
		return se.TCPEnd[1] + uint32(window)<<shift
	}

	var round, done atomic.Int64
	var theirs atomic.Pointer[[]byte]
	var stop sync.WaitGroup
	stop.Add(1)
	go func() {
		defer stop.Done()
		out := make([]byte, 4096)
		for n := int64(1); ; n++ {
			for round.Load() != n {
				if round.Load() < 0 {
					return
				}
				runtime.Gosched()
			}
			if _, err := p.prog.Run(&ebpf.RunOptions{Data: *theirs.Load(), DataOut: out}); err != nil {
				t.Errorf("run: %v", err)
			}
			done.Store(n)
		}
	}()
	defer func() { round.Store(-1); stop.Wait() }()
	const rounds = 30_000
	var busy, calm uint8 // the scales of who sends, with something under way and without
	for n := int64(1); n <= rounds && !t.Failed(); n++ {
		end, before := se.TCPEnd[0], se.TCPLimit[0]
		mine, his := 1+w.rng.IntN(200), 1+w.rng.IntN(200)
		a, b := uint16(w.rng.Uint32()), uint16(w.rng.Uint32())
		frame, other := segment(0, mine, a), segment(0, his, b)
		theirs.Store(&other)
		round.Store(n)
		for wait := w.rng.IntN(3000); wait > 0; wait-- { // from before it begins until it has ended
			_ = round.Load()
		}
		process(0, frame)
		for done.Load() != n && !t.Failed() {
			runtime.Gosched()
		}
		if want := end + uint32(max(mine, his)); se.TCPEnd[0] != want {
			t.Errorf("round %d: the end is at +%d, want +%d", n, se.TCPEnd[0]-end, want-end)
		}
		want := before
		for _, l := range []uint32{limit(a), limit(b)} {
			if int32(l-want) > 0 {
				want = l
			}
		}
		if se.TCPLimit[0] != want {
			t.Errorf("round %d: the limit is %d, want %d", n, se.TCPLimit[0], want)
		}
		if n == 1 {
			busy = se.Scale[0]
		}
		under := se.Scale[0]
		process(1, segment(1, 0, 65535)) // acknowledges all, and opens the window for the next ones
		if n == 1 {
			calm = se.Scale[0]
		}
		if under != busy || se.Scale[0] != calm || busy == calm {
			t.Errorf("round %d: all is acknowledged: %#x with data under way, %#x behind its acknowledgement; %#x and %#x in the first round", n, under, se.Scale[0], busy, calm)
		}
	}
	round.Store(-1)
	stop.Wait()
	if carried, _, err := p.Count(Carried); err != nil || carried != rounds {
		t.Errorf("the program carried %d of %d segments; %v", carried, rounds, err)
	}
}

// Both executors send as fast as they can what a tenant's rate lets through, from one bucket: together it is the rate, and not twice.
func TestTwoWritersShareARate(t *testing.T) {
	w, ps := twoWriters(t)
	defer ps.close(t)
	se, slot := w.alphas(1, meter.In)
	const bits, burst = 300e6, 20 * time.Millisecond // of testPolicy
	f := w.form(se, 1)
	f.ttl, f.tos, f.payload = 255, 0, 1000
	frame := w.build(f)
	p := ps[f.iface.Port]
	let := func() uint64 {
		return w.carried(se.Tenant).volume[meter.In].Bytes + w.metered(se.Tenant).volume[meter.In].Bytes
	}

	had, began := let(), time.Now()
	end := began.Add(1500 * time.Millisecond)
	stop := floods(t, p, frame, end)
	defer stop.Wait()
	sent, held := 0, 0
	for time.Now().Before(end) {
		if s := w.process(f.iface.Port, frame, bootNow(t)); s.Verdict == verdict.Send {
			sent++
			continue
		}
		held++
		if !w.tab.Stands(0, slot, se) { // a packet went up for want of room, and those behind it go up too
			w.handDown(0, slot)
		}
		for now, wait := time.Now(), time.Duration(w.rng.IntN(500))*time.Microsecond; time.Since(now) < wait; { // it is the faster one, and would leave nothing
		}
	}
	stop.Wait()
	took := time.Since(began)
	theirs, _, err := p.Count(Carried)
	if err != nil {
		t.Fatal(err)
	}
	got, want := float64(let()-had), bits/8*took.Seconds()
	t.Logf("%d by the pipeline, which did not send %d, %d by the program; %.1f MB, the rate is %.1f MB", sent, held, theirs, got/1e6, want/1e6)
	if sent < 100 || theirs < 100 || held < 100 {
		t.Error("too few to have met")
	}
	if most := want + bits/8*burst.Seconds() + 8*1100; got > most || got < 0.5*want { // less than all where both wait for a processor for longer than the burst
		t.Errorf("%.0f bytes were let through in %s, want %.0f to %.0f", got, took, 0.5*want, most)
	}
}

// Both executors take from a bucket that is never empty: what it says afterwards is the cost of all packets, so neither takes unseen.
func TestTwoWritersPayForEachPacket(t *testing.T) {
	w, ps := twoWriters(t)
	defer ps.close(t)
	se, _ := w.alphas(0, meter.Out)
	f := w.form(se, 0)
	f.ttl, f.tos, f.payload = 255, 0, 1000
	frame := w.build(f)
	p, words := ps[f.iface.Port], &w.view.Tenant(se.Tenant).Shared.Words[meter.Out]
	const (
		perByte, perPacket = police.UnitsPerNs * 8 / 20.0, police.UnitsPerNs * 1e9 / 3e6 // of testPolicy
		bytes              = 20 + 8 + 1000
		ahead              = 10 * time.Millisecond // of the clock, and as far from the burst
	)
	var round, done atomic.Int64
	var stop sync.WaitGroup
	stop.Add(1)
	go func() {
		defer stop.Done()
		out := make([]byte, len(frame)+headroom)
		for n := int64(1); round.Load() >= 0; n++ {
			for round.Load() != n && round.Load() >= 0 {
				runtime.Gosched()
			}
			for range 200 {
				if _, err := p.prog.Run(&ebpf.RunOptions{Data: frame, DataOut: out}); err != nil {
					t.Errorf("run: %v", err)
				}
			}
			done.Store(n)
		}
	}()
	defer func() { round.Store(-1); stop.Wait() }()
	mine, theirs := 0, 0
	for n := int64(1); n <= 400 && !t.Failed(); n++ {
		had, _, err := p.Count(Carried)
		if err != nil {
			t.Fatal(err)
		}
		now := bootNow(t)
		start := (now + uint64(ahead)) * police.UnitsPerNs
		words.Bits.Store(start)
		words.Packets.Store(start)
		round.Store(n)
		sent := 0
		for done.Load() != n {
			at := bootNow(t)
			if sent == 5000 || at-now > uint64(ahead)/2 { // the other one waits for a processor: more would empty the bucket, or it would be full
				runtime.Gosched()
				continue
			}
			if s := w.process(f.iface.Port, frame, at); s.Verdict != verdict.Send {
				t.Fatalf("%s (%s)", s.Verdict, s.Reason)
			}
			sent++
		}
		if bootNow(t)-now > uint64(ahead) { // the machine was elsewhere, and the bucket was full again
			continue
		}
		carried, _, err := p.Count(Carried)
		if err != nil {
			t.Fatal(err)
		}
		all := float64(sent) + float64(carried-had)
		mine, theirs = mine+sent, theirs+int(carried-had)
		for name, cost := range map[string][2]float64{"bits": {float64(words.Bits.Load() - start), all * bytes * perByte}, "packets": {float64(words.Packets.Load() - start), all * perPacket}} {
			if math.Abs(cost[0]-cost[1]) > all { // a unit a packet, for rounding; a packet is more than 20,000
				t.Errorf("round %d: %.0f packets (%d by the pipeline) took %.0f units of the rate of %s, want %.0f", n, all, sent, cost[0], name, cost[1])
			}
		}
	}
	round.Store(-1)
	stop.Wait()
	t.Logf("%d by the pipeline, %d by the program", mine, theirs)
	if mine < 10_000 || theirs < 10_000 {
		t.Error("too few to have met")
	}
}

// alphas is a session of UDP of tenant alpha whose packets of that direction go that way, and are handed down.
func (w *world) alphas(dir int, way meter.Dir) (se *conntrack.Session, slot uint32) {
	for _, h := range w.live {
		x := w.shards[0].Sessions.At(h.slot)
		if x.Proto == flow.UDP && pipeline.Direction(x, dir) == way && w.view.Tenant(x.Tenant).Name == "alpha" {
			return x, h.slot
		}
	}
	w.t.Fatal("there is none")
	return nil, 0
}

// After Settle no packet leaves that was begun before: without it some do.
func TestNothingLeavesOnceSettled(t *testing.T) {
	w, ps := twoWriters(t)
	defer ps.close(t)
	h := w.live[0]
	se := w.shards[0].Sessions.At(h.slot)
	r := &round{form: w.form(se, 0)}
	r.flags, r.payload = 0x4000, 100
	frame := w.build(r.form)
	done := make(chan struct{})
	var stop sync.WaitGroup
	stop.Add(1)
	go func() {
		defer stop.Done()
		out := make([]byte, len(frame)+headroom)
		for {
			select {
			case <-done:
				return
			default:
			}
			if _, err := ps[r.iface.Port].prog.Run(&ebpf.RunOptions{Data: frame, DataOut: out}); err != nil {
				t.Errorf("run: %v", err)
				return
			}
		}
	}()
	// late counts how often a packet was counted after the session was called back.
	late := func(times int, settle bool) (n int) {
		for range times {
			w.handDown(0, h.slot)
			for at := atomic.LoadUint32(&se.Packets[0]); atomic.LoadUint32(&se.Packets[0]) == at; {
				if !w.tab.Stands(0, h.slot, se) { // the packet before found it not handed down, and marks it by now
					w.handDown(0, h.slot)
				}
				runtime.Gosched() // it is being carried
			}
			for wait := w.rng.IntN(8000); wait > 0; wait-- { // some time into the next one
				_ = atomic.LoadUint32(&se.Packets[0])
			}
			w.tab.CallBack(0, h.slot)
			if settle {
				if err := w.tab.Settle(); err != nil {
					t.Fatal(err)
				}
			}
			at := atomic.LoadUint32(&se.Packets[0])
			for range 2000 {
				if atomic.LoadUint32(&se.Packets[0]) != at {
					n++
					break
				}
			}
		}
		return n
	}
	without, times := 0, 0
	for began := time.Now(); without < 50 && time.Since(began) < 10*time.Second; times += 1000 { // one CPU for both shows it more rarely
		without += late(1000, false)
	}
	began := time.Now()
	with := late(100, true)
	close(done)
	stop.Wait()
	t.Logf("late packets: %d in %d times without Settle, %d in 100 with (%v)", without, times, with, time.Since(began))
	if with != 0 {
		t.Errorf("%d packets left after Settle", with)
	}
	if without < 50 {
		t.Errorf("only %d of %d were late without Settle: 100 times with it show nothing", without, times)
	}
}
