package worker

import (
	"bytes"
	"encoding/binary"
	"testing"
	"time"

	"demarc/gateway/lease"
	"demarc/gateway/xsk"
)

// comes has a frame come in as from the port's socket, and reports whether it is to be judged. Numbered as hand numbers them.
func (r *fenceRig) comes(dst, src [6]byte, vid uint16) (n byte, judged bool) {
	r.t.Helper()
	r.n++
	f := append(dst[:], src[:]...)
	if vid != 0 {
		f = binary.BigEndian.AppendUint16(append(f, 0x81, 0), vid)
	}
	f = append(binary.BigEndian.AppendUint16(f, 0x88b5), r.n)
	f = append(f, make([]byte, 60-len(f))...)
	addr, ok := r.u.Alloc()
	if !ok {
		r.t.Fatal("no frame is free")
	}
	copy(r.u.Mem()[addr+handHeadroom:], f)
	if len(r.w.socks) == 0 {
		r.open()
	}
	r.w.descs[0] = xsk.Desc{Addr: addr + handHeadroom, Len: uint32(len(f))}
	left := r.w.keep(r.w.socks[0], 1, r.w.cfg.Clock.Exact())
	if left == 1 {
		r.w.free(0, addr)
	}
	return r.n, left == 1
}

// left wants what left in a turn that came before anything else was sent.
func (r *fenceRig) left(step string, want ...byte) {
	r.t.Helper()
	time.Sleep(handOnPace) // since the ones before
	r.w.turn(r.w.cfg.Clock.Exact())
	r.want(step, want...)
}

// TestWhatComesBehindAHandOver: it is kept until the group's next owner is heard where it came, and then sent there under the port's own address; never without that, never for longer, and never
// more than there is room for.
func TestWhatComesBehindAHandOver(t *testing.T) {
	r := newFenceRig(t)
	r.w.cfg.HandOn = &HandOn{}
	r.w.shard.SetView(r.w.view.Load())
	v4, v6, other, host, all := xsk.VirtualMACs(7)[0], xsk.VirtualMACs(7)[1], xsk.VirtualMACs(8)[0], [6]byte{2, 0, 0, 0, 0, 9}, [6]byte{255, 255, 255, 255, 255, 255}
	comes := func(step string, dst, src [6]byte, vid uint16, judged bool) byte {
		t.Helper()
		n, got := r.comes(dst, src, vid)
		if got != judged {
			t.Errorf("%s: judged is %t", step, got)
		}
		return n
	}
	keepFor := func(d time.Duration) {
		until := r.w.cfg.Clock.Exact() + uint64(d)
		r.w.cfg.HandOn.Begin(7, until)
		r.d.Keep(7, until)
		r.d.Write(7, 1, 0)
		r.w.cfg.HandOn.Closed()
	}
	r.serve(7, 1, time.Hour)
	r.d.Keep(7, r.w.cfg.Clock.Exact()+uint64(time.Hour))
	comes("while it is served", v4, host, 0, true)

	keepFor(time.Hour)
	a := comes("behind it", v4, host, 0, false)
	b := comes("behind it, IPv6", v6, host, 0, false)
	comes("another group", other, host, 0, true)
	comes("the port's own address", peerMAC, host, 0, true)
	comes("a word of another group", all, other, 0, true)
	comes("a word on a VLAN", all, v4, 20, true)
	r.left("nobody was heard where they came")
	comes("a word of its next owner, IPv4", all, v4, 0, true)
	r.left("it was heard by IPv4", a)
	comes("a word of its next owner, IPv6", all, v6, 0, true)
	c := comes("when that was heard", v4, host, 0, false)
	r.from = nil
	r.left("it was heard", b, c)
	for _, from := range r.from {
		if from != peerMAC {
			t.Errorf("handed on from %x, want the port's own address %x", from, peerMAC)
		}
	}
	d := comes("and later", v6, host, 0, false)
	r.left("later", d)
	if n := r.w.Stats().HandedOn; n != 4 || r.refused() != 0 {
		t.Errorf("%d handed on, %d dropped: want 4 and none", n, r.refused())
	}

	// The next time what was heard before does not count.
	keepFor(time.Hour)
	comes("handed over once more", v4, host, 0, false)
	comes("on a VLAN that is nobody's", v4, host, 20, false)
	comes("its owner is heard there", all, v4, 20, true)
	r.left("not heard in this term")
	if r.refused() != 1 {
		t.Errorf("%d dropped, want the one of the VLAN that is nobody's", r.refused())
	}
	r.ahead += uint64(2 * time.Hour)
	r.left("kept for long enough")
	if r.refused() != 2 {
		t.Errorf("%d dropped, want 2", r.refused())
	}
	comes("when it is over", v4, host, 0, true)

	keepFor(time.Hour)
	most := r.u.Frames() / keptShare
	for range most {
		comes("as many as there is room for", v4, host, 0, false)
	}
	comes("one more", v4, host, 0, false)
	if r.refused() != 3 || len(r.w.keeping.list) != most {
		t.Errorf("%d dropped, %d kept: want 3 and %d", r.refused(), len(r.w.keeping.list), most)
	}
	r.serve(7, 2, time.Hour)
	r.left("it is served again")
	if len(r.w.keeping.list) != 0 {
		t.Errorf("%d are kept still", len(r.w.keeping.list))
	}
	keepFor(time.Hour)
	comes("as it ends", v4, host, 0, false)
	r.w.letGo()
	if err := r.w.Account(); err != nil {
		t.Error(err)
	}
}

// TestTheNextOwnerIsHeardByAnotherWorker: its words come to one queue of a port, and what is kept came to others as well.
func TestTheNextOwnerIsHeardByAnotherWorker(t *testing.T) {
	r := newFenceRig(t)
	ws := newWorkers(t, 2)
	h := &HandOn{}
	r.w.cfg.HandOn = h
	r.w.shard.SetView(r.w.view.Load())
	ws[1].cfg.HandOn, ws[1].cfg.Deadlines, ws[1].cfg.Clock = h, r.d, r.w.cfg.Clock
	ws[1].shard.SetView(ws[1].view.Load())
	Connect([]*Worker{r.w, ws[1]})
	until := r.w.cfg.Clock.Exact() + uint64(time.Hour)
	h.Begin(7, until)
	r.d.Keep(7, until)
	v4, host := xsk.VirtualMACs(7)[0], [6]byte{2, 0, 0, 0, 0, 9}
	n, _ := r.comes(v4, host, 0)
	r.left("nobody was heard")
	u := ws[1].cfg.Areas[0]
	addr, _ := u.Alloc()
	copy(u.Mem()[addr:], bytes.Repeat([]byte{255}, 6))
	copy(u.Mem()[addr+6:], append(v4[:], 8, 6))
	ws[1].descs[0] = xsk.Desc{Addr: addr, Len: 60}
	r.w.called.Store(false)
	if left := ws[1].keep(&sockState{Socket: Socket{S: r.w.socks[0].S}, figures: new(figures)}, 1, r.w.cfg.Clock.Now()); left != 1 || !r.w.called.Load() {
		t.Errorf("the word is judged: %t; the worker that keeps something is called: %t", left == 1, r.w.called.Load())
	}
	r.left("heard by another one", n)
}

// TestAHandOverWhileAsleep: a worker that noted what was in its rings, and went to sleep before it was asked whether it had stopped, notes it anew at the next hand-over.
func TestAHandOverWhileAsleep(t *testing.T) {
	r := newFenceRig(t)
	ending := &lease.Deadlines{}
	r.w.cfg.HandOn, r.w.cfg.Ending = &HandOn{}, ending
	r.w.shard.SetView(r.w.view.Load())
	v4, host := xsk.VirtualMACs(7)[0], [6]byte{2, 0, 0, 0, 0, 9}
	until := r.w.cfg.Clock.Exact() + uint64(time.Hour)
	r.serve(7, 1, time.Hour)
	ending.Write(7, 1, until)
	r.w.cfg.HandOn.Begin(7, until)
	r.d.Keep(7, until)
	r.d.Write(7, 1, 0)
	r.w.cfg.HandOn.Closed()
	r.comes(v4, host, 0)
	if !r.w.draining {
		t.Error("it has not noted what was in its rings")
	}
	r.w.called.Store(false)
	r.w.sleep()
	r.w.EndNow() // as who finds it at rest does
	if r.w.draining {
		t.Error("at the next hand-over it would go by what it noted at this one")
	}
	r.w.letGo()
}
