package cruise

import (
	"testing"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"demarc/gateway/cruise/bpf"
	"demarc/gateway/flow"
	"demarc/gateway/netlab/roottest"
)

// A session is handed down unless one of its packets has gone up since it was begun, and each frame that goes to a socket is counted for its queue before.
func TestWhatGoesUpHindersHandDown(t *testing.T) {
	roottest.Require(t)
	w := newWorld(t, seeded(t), 1, true)
	w.populate(16)
	se, slot := w.inside(flow.UDP)
	r := &round{form: w.form(se, 0)}
	r.ttl, r.flags, r.payload, r.mac = 255, 0x4000, 100, r.iface.MAC
	frame := w.build(r.form)

	spec, err := bpf.LoadCruise()
	if err != nil {
		t.Fatal(err)
	}
	of := map[string]*ebpf.Map{}
	for _, name := range []string{bpf.CruiseMapXsks, bpf.CruiseMapUps} {
		if of[name], err = ebpf.NewMap(spec.Maps[name]); err != nil {
			t.Fatal(err)
		}
		defer of[name].Close()
	}
	fd, err := unix.Socket(unix.AF_XDP, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if err := of[bpf.CruiseMapXsks].Put(uint32(0), uint32(fd)); err != nil {
		t.Fatal(err)
	}
	p, err := w.tab.load(spec, r.iface.Port, of)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	ups := func() uint64 {
		t.Helper()
		var line [8]uint64
		if err := of[bpf.CruiseMapUps].Lookup(uint32(0), &line); err != nil {
			t.Fatal(err)
		}
		return line[0]
	}
	send := func(up uint64) {
		t.Helper()
		before := ups()
		if action, _, err := run(p, frame); err != nil || action != 4 {
			t.Fatalf("action %d, %v", action, err)
		}
		if n := ups() - before; n != up {
			t.Fatalf("%d frames went up, want %d", n, up)
		}
	}
	ways := [2]Way{w.tab.Way(w.hopOf(w.shards[0], se, 0)), w.tab.Way(w.hopOf(w.shards[0], se, 1))}
	down := func(batch uint16, tries int, ok bool) {
		t.Helper()
		if n, is := w.tab.HandDown(0, slot, se, ways, batch); n != tries || is != ok {
			t.Fatalf("%d tries, %v; want %d, %v", n, is, tries, ok)
		}
	}
	send(0) // it is handed down
	w.tab.CallBack(0, slot)
	send(1)
	note := func(batch uint16) {
		t.Helper()
		if !w.tab.Note(0, slot, se, batch, false) || w.tab.Note(0, slot, se, batch, false) {
			t.Fatal("it is to be noted once")
		}
	}
	note(7)
	send(1) // before it is begun: the batch waits for it
	if w.tab.Begin(0, slot, 6) || !w.tab.Begin(0, slot, 7) {
		t.Fatal("not begun with its batch")
	}
	send(1) // and this one hinders
	down(7, 1, false)
	note(8)
	if !w.tab.Begin(0, slot, 8) {
		t.Fatal("not begun again")
	}
	down(6, 0, false) // of a batch long before
	send(1)
	down(8, 2, false)
	note(9) // it has no part in this one: that is no hindrance
	note(10)
	if !w.tab.Begin(0, slot, 10) {
		t.Fatal("not begun a third time")
	}
	send(1)
	down(10, 3, false)
	note(11)
	if !w.tab.Begin(0, slot, 11) {
		t.Fatal("not begun a fourth time")
	}
	down(11, 0, true)
	send(0)
	w.tab.Hold(true)
	send(1)
	w.tab.Hold(false)
	send(1) // those behind it go up too
	if !w.tab.Down(0, slot, se) || w.tab.Stands(0, slot, se) {
		t.Error("it is handed down, and packets go up for the moment")
	}
	note(12)
	w.tab.CallBack(0, slot)
	down(12, 0, false)

	// While its batch is under way: a packet that was in hand before is what the batch waits for; one that has gone up since hinders, once each batch, and it is noted for the next one.
	note(20)
	send(1) // in hand
	if !w.tab.Begin(0, slot, 20) {
		t.Fatal("not begun a fifth time")
	}
	if w.tab.Note(0, slot, se, 21, true) {
		t.Fatal("it has lost its part in the batch under way, and nothing hinders it")
	}
	down(20, 0, true)
	w.tab.CallBack(0, slot)
	note(30)
	for batch := uint16(30); batch < 34; batch++ {
		if !w.tab.Begin(0, slot, batch) {
			t.Fatalf("not begun with batch %d", batch)
		}
		send(1)
		if !w.tab.Note(0, slot, se, batch+1, true) || w.tab.Note(0, slot, se, batch+1, true) {
			t.Fatal("what is hindered is to be noted again, once")
		}
		send(1)
		down(batch, int(batch-29), false)
	}
	if !w.tab.Begin(0, slot, 34) {
		t.Fatal("not begun at last")
	}
	down(34, 0, true)
	send(0)
}
