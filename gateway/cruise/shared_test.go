package cruise

import (
	"sync"
	"testing"
	"time"

	"github.com/cilium/ebpf"

	"demarc/gateway/conntrack"
	"demarc/gateway/cruise/bpf"
	"demarc/gateway/flow"
	"demarc/gateway/meter"
	"demarc/gateway/netlab/roottest"
	"demarc/gateway/pipeline"
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
	sh := w.shards[0]
	var se *conntrack.Session
	for _, h := range w.live {
		if x := sh.Sessions.At(h.slot); x.Proto == flow.UDP && pipeline.Direction(x, 0) == meter.Inside {
			se = x
		}
	}
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
