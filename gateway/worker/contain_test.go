package worker

import (
	"bytes"
	"context"
	"encoding/binary"
	"log/slog"
	"strings"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"

	"demarc/gateway/conntrack"
	"demarc/gateway/flow"
	"demarc/gateway/packet/csum"
	"demarc/gateway/pipeline"
	"demarc/gateway/verdict"
)

// logged collects log lines.
type logged struct {
	bytes.Buffer
	lines atomic.Int64
}

func (l *logged) Write(b []byte) (int, error) {
	l.lines.Add(1)
	return l.Buffer.Write(b)
}

// judged has w judge frames without running, as receive does.
func judged(w *Worker, now uint64, frames ...[]byte) []pipeline.Slot {
	slots := make([]pipeline.Slot, len(frames))
	for i, f := range frames {
		mem := make([]byte, 2048)
		slots[i].Buf, slots[i].Off, slots[i].Len, slots[i].Port, slots[i].Handed = mem, 256, copy(mem[256:], f), 1, true
	}
	w.contained(slots, now, false)
	w.shard.Meter.Publish()
	return slots
}

func (w *Worker) dropsOf(r verdict.Reason) (n uint64) {
	for id := range w.shard.Meter.Tenants() {
		n += w.shard.Meter.Drops(flow.TenantID(id), r)
	}
	return n
}

// A frame that makes a stage panic costs no other frame, no packet memory, and not the worker.
func TestAPanicCostsItsFrameAlone(t *testing.T) {
	ws := newWorkers(t, 2)
	w := ws[1]
	neighbors := w.shard.Neighbors
	w.shard.Neighbors = nil // what reaches the neighbour stage panics
	stop := start(t, ws)
	if err := ws[0].Do(t.Context(), func(*pipeline.Shard) {
		for i := range 5 {
			ws[0].hand(1, handProcess, 1, 0, udp(uint16(4000+i), 8), nil)
		}
	}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "panic", func() bool { return w.Stats().HandedIn == 5 && w.Stats().Panics == 5 })
	stop()
	if err := w.Account(); err != nil {
		t.Fatal(err)
	}
	if u := w.cfg.Areas[0]; u.FreeCount() != u.Frames() || u.Faults() != 0 {
		t.Fatalf("%d of %d frames are free, %d faults", u.FreeCount(), u.Frames(), u.Faults())
	}
	bad := udp(5000, 8)
	bad[22] ^= 1 // its checksum is wrong: dropped before anything can panic
	w.shard.Neighbors = neighbors
	poison := udp(5001, 8)
	judged(w, 1e12, poison)
	w.shard.Sessions.Each(0, 1024, func(_ uint32, se *conntrack.Session) bool {
		if se.OrigSPort == 5001 {
			se.NextHop[0] = 60000
		}
		return true
	})
	before := w.dropsOf(verdict.InternalError)
	slots := judged(w, 1e12, bad, udp(5002, 8), poison, udp(5003, 8), bad)
	for i, want := range []verdict.Verdict{verdict.Drop, verdict.Send, verdict.Drop, verdict.Send, verdict.Drop} {
		if slots[i].Verdict != want {
			t.Errorf("slot %d: %s (%s), want %s", i, slots[i].Verdict, slots[i].Reason, want)
		}
	}
	if n := w.dropsOf(verdict.InternalError) - before; n != 1 || w.dropsOf(verdict.BadHeaderChecksum) != 2 {
		t.Errorf("%d counted as internal errors, want 1; %d bad checksums, want 2", n, w.dropsOf(verdict.BadHeaderChecksum))
	}
	w.gauges()
	if w.Stats().Blocked == 0 {
		t.Error("the blocked flow does not show")
	}
}

// The stack is logged once, not for every frame of a flood; what was left out is counted.
func TestPanicsAreLoggedAtARate(t *testing.T) {
	w := newWorkers(t, 1)[0]
	var l logged
	w.cfg.Log = slog.New(slog.NewTextHandler(&l, nil))
	w.view.Store(nil)
	judgeAll := func() {
		for i := range 1000 {
			judged(w, 1e12, udp(uint16(2000+i), 8))
		}
	}
	w.shard.SetView(newWorkers(t, 1)[0].view.Load())
	w.shard.Neighbors = nil
	judgeAll()
	if n := w.Stats().Panics; n != 16 { // then the source is blocked
		t.Fatalf("%d panics", n)
	}
	if n := l.lines.Load(); n != 1 {
		t.Fatalf("%d lines for 16 panics, want 1:\n%s", n, l.String())
	}
	for _, want := range []string{"pipeline panic contained", "goroutine", "contain.go", "src=198.18.10.11"} {
		if !strings.Contains(l.String(), want) {
			t.Errorf("no %q in %s", want, l.String())
		}
	}
	w.stackAt -= stackEvery
	w.panicked("again", "x", nil)
	if n := l.lines.Load(); n != 2 || !strings.Contains(l.String(), "unlogged=15") {
		t.Fatalf("%d lines, %s", n, l.String())
	}
}

// Memory of the session table that faults (a failing DIMM, a mapping that somebody cut) costs the packets that need it, not the worker: frames are
// all there, upkeep and orders go on, and so does traffic when the memory is back.
func TestMemoryFaultsAreContained(t *testing.T) {
	var tables [][]byte
	ws := newWorkersIn(t, 2, func(n int) []byte {
		m, err := unix.Mmap(-1, 0, n, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = unix.Munmap(m) })
		tables = append(tables, m)
		return m
	})
	w := ws[1]
	stop := start(t, ws)
	hand := func(port, n int) {
		t.Helper()
		if err := ws[0].Do(t.Context(), func(*pipeline.Shard) {
			for i := range n {
				ws[0].hand(1, handProcess, 1, 0, udp(uint16(port+i), 8), nil)
			}
		}); err != nil {
			t.Fatal(err)
		}
	}
	// A frame counts as handed in before it is judged; what was sent has made its session.
	sent := func() (n uint64) {
		_ = w.Do(context.Background(), func(sh *pipeline.Shard) { n = sh.Meter.Drops(0, verdict.NoTxSocket) })
		return n
	}
	hand(4000, 5)
	eventually(t, "traffic", func() bool { return sent() == 5 })
	if err := unix.Mprotect(tables[1], unix.PROT_NONE); err != nil {
		t.Fatal(err)
	}
	hand(5000, 5)
	eventually(t, "faults", func() bool { return w.Stats().HandedIn == 10 && w.Stats().Panics >= 5 })
	panics := w.Stats().Panics
	eventually(t, "faults of the upkeep", func() bool { return w.Stats().Panics > panics || w.Do(t.Context(), func(*pipeline.Shard) {}) != nil })
	if err := w.Do(t.Context(), func(sh *pipeline.Shard) {
		sh.Sessions.Each(0, 1024, func(uint32, *conntrack.Session) bool { return true })
	}); err == nil || !strings.Contains(err.Error(), "panicked") {
		t.Fatalf("an order that met the fault: %v", err)
	}
	if err := w.Do(t.Context(), func(*pipeline.Shard) {}); err != nil {
		t.Fatalf("the next order: %v", err)
	}
	if err := unix.Mprotect(tables[1], unix.PROT_READ|unix.PROT_WRITE); err != nil {
		t.Fatal(err)
	}
	was := sent()
	hand(6000, 5)
	eventually(t, "traffic again", func() bool { return sent() == was+5 })
	stop()
	if err := w.Account(); err != nil {
		t.Fatal(err)
	}
	if u := w.cfg.Areas[0]; u.FreeCount() != u.Frames() || u.Faults() != 0 {
		t.Fatalf("%d of %d frames are free, %d faults", u.FreeCount(), u.Frames(), u.Faults())
	}
}

// BenchmarkPoison is what a flood of frames costs each of which meets a fault in the neighbour stage: sound = without the fault; one-flow and
// one-source are blocked after their first ones; each = nothing blocks, every frame panics.
func BenchmarkPoison(b *testing.B) {
	for _, c := range []string{"sound", "one-flow", "one-source", "each"} {
		b.Run(c, func(b *testing.B) {
			w := newWorkers(b, 1)[0]
			w.shard.SetView(w.view.Load())
			if c != "sound" {
				w.shard.Neighbors = nil
			}
			slots := make([]pipeline.Slot, pipeline.Burst)
			mem := make([][2048]byte, pipeline.Burst)
			frames := make([][]byte, pipeline.Burst)
			for i := range frames {
				f := udp(4000, 8)
				if c != "one-flow" {
					binary.BigEndian.PutUint16(f[34:], uint16(4000+i))
				}
				if c == "each" {
					f[29] = byte(1 + i/16)
				}
				f[24], f[25], f[40], f[41] = 0, 0, 0, 0
				binary.BigEndian.PutUint16(f[24:], csum.Checksum(csum.Sum(0, f[14:34])))
				frames[i] = f
			}
			now := uint64(1e12)
			for b.Loop() {
				for i := range slots {
					s := &slots[i]
					s.Buf, s.Off, s.Len, s.Port, s.Handed = mem[i][:], 256, copy(mem[i][256:], frames[i]), 1, true
				}
				now += 50_000
				if c == "each" {
					now += 61e9
				}
				w.contained(slots, now, false)
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/pipeline.Burst, "ns/packet")
			b.ReportMetric(float64(w.Stats().Panics)/float64(b.N)/pipeline.Burst, "panics/packet")
		})
	}
}
