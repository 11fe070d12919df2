package cruise

import (
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cilium/ebpf"

	"demarc/gateway/cruise/bpf"
	"demarc/gateway/flow"
	"demarc/gateway/netlab/roottest"
	"demarc/gateway/verdict"
)

// Both executors carry packets of one session at the same time, on two CPUs: what the session counts is the sum to the byte.
func TestTwoWritersLoseNothing(t *testing.T) {
	roottest.Require(t)
	w := newWorld(t, seeded(t), 1, true)
	w.populate(16)
	ps, err := w.load(bpf.LoadCruise)
	defer ps.close(t)
	if err != nil {
		t.Fatal(err)
	}
	se, _ := w.inside(flow.UDP)
	r := &round{form: w.form(se, 0)}
	r.ttl, r.flags, r.payload = 255, 0x4000, 100
	frame := w.build(r.form)
	const ipLen = 20 + 8 + 100

	packets, bytes := se.Packets[0], se.Bytes[0]
	var stop sync.WaitGroup
	stop.Add(1)
	p := ps[r.iface.Port]
	end := time.Now().Add(1500 * time.Millisecond)
	go func() {
		defer stop.Done()
		out := make([]byte, len(frame)+headroom)
		for time.Now().Before(end) {
			if _, err := p.prog.Run(&ebpf.RunOptions{Data: frame, DataOut: out}); err != nil {
				t.Errorf("run: %v", err)
				return
			}
		}
	}()
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

// After Settle no packet leaves that was begun before: without it some do.
func TestNothingLeavesOnceSettled(t *testing.T) {
	roottest.Require(t)
	w := newWorld(t, seeded(t), 1, true)
	w.populate(16)
	ps, err := w.load(bpf.LoadCruise)
	defer ps.close(t)
	if err != nil {
		t.Fatal(err)
	}
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
