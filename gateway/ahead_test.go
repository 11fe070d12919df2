package gateway

import (
	"context"
	"runtime"
	"testing"

	"golang.org/x/sys/unix"

	"demarc/gateway/conntrack"
	"demarc/gateway/nat"
)

// touched is how many pages have come with their first touch, when each page between two places is read and written.
func touched(t *testing.T, mem []byte, from, to int) int {
	t.Helper()
	var before, after unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_THREAD, &before); err != nil {
		t.Fatal(err)
	}
	for i := from; i < to; i += 4096 {
		mem[i] |= 1
	}
	if err := unix.Getrusage(unix.RUSAGE_THREAD, &after); err != nil {
		t.Fatal(err)
	}
	return int(after.Minflt - before.Minflt)
}

// A worker finds the memory of its tables made: all that is met at random, and what is used in turn as far as sessions have come and somewhat further, no more.
func TestTablesAreMadeAhead(t *testing.T) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	const capacity = 400_000
	table := func(n int) []byte {
		m, err := unix.Mmap(-1, 0, n, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = unix.Munmap(m) })
		if err := unix.Madvise(m, unix.MADV_NOHUGEPAGE); err != nil { // so that each page has its own first touch
			t.Fatal(err)
		}
		return m
	}
	sm, nm := table(conntrack.Bytes(capacity)), table(nat.Bytes(capacity))
	used, next := 0, 0
	a := newAhead(sm, capacity, nm, capacity, func() (int, int) { return used, used / 2 }, func(n int) { next = n })
	if !a.turn(context.Background()) || next != aheadCall {
		t.Errorf("the first turn: called from %d entries on", next)
	}
	if a.off {
		t.Fatal("the kernel does not make pages ahead")
	}
	index, deadlines := conntrack.Index(capacity)
	maps, heads, size := nat.Entries(capacity)
	step := func(what string, mem []byte, from, to int, there bool) {
		t.Helper()
		pages := (to - from) / 4096
		if n := touched(t, mem, from, to); there && n > pages/50 || !there && n < pages*9/10 { // some of the runtime's own may be among them
			t.Errorf("%s: %d of %d pages came with their first touch", what, n, pages)
		}
	}
	step("index", sm, index, deadlines, true)
	step("lines", nm, 0, maps, true)
	step("heads and anchors", nm, heads, len(nm), true)
	step("first sessions", sm, 0, aheadOf*conntrack.SessionSize, true)
	step("first mappings", nm, maps, maps+aheadOf*size, true)
	used = 100_000
	ended, cancel := context.WithCancel(context.Background())
	cancel()
	if a.turn(ended) {
		t.Error("it says that all is there, and has been stopped before")
	}
	if !a.turn(context.Background()) || next != used+aheadCall {
		t.Errorf("with %d sessions: called from %d entries on", used, next)
	}
	step("more sessions", sm, aheadOf*conntrack.SessionSize, (used+aheadOf)*conntrack.SessionSize, true)
	step("more mappings", nm, maps+aheadOf*size, maps+(used+aheadOf)*size, true)
	step("deadlines", sm, deadlines, deadlines+(used+aheadOf)*4, true)
	// A step is 2 MiB: behind that nothing was asked for.
	step("sessions to come", sm, (used+aheadOf)*conntrack.SessionSize+aheadStep, index, false)
	used = capacity
	a.turn(context.Background())
	for _, p := range a.parts {
		if p.done != p.to {
			t.Errorf("part from %d: made to %d of %d", p.from, p.done, p.to)
		}
	}
	if got := conntrack.Bytes(capacity); deadlines >= got || got-deadlines < capacity*4 {
		t.Errorf("deadlines from %d of %d", deadlines, got)
	}
}

// Without sessions of its own it looks after mappings alone, and a kernel that refuses is not asked again.
func TestTablesOfTheKernelAreThere(t *testing.T) {
	a := newAhead(nil, 1000, make([]byte, 1), 1000, func() (int, int) { return 0, 0 }, func(int) {})
	if len(a.parts) != 3 || a.parts[0].to == 0 {
		t.Fatalf("%+v", a.parts)
	}
	a.parts = []stretch{{mem: make([]byte, 3<<20)[1:], to: 2 << 20}} // no page begins there
	a.turn(context.Background())
	if !a.off || a.parts[0].done != 0 {
		t.Fatalf("%+v", a)
	}
	if !a.turn(context.Background()) {
		t.Error("it asks again")
	}
}
