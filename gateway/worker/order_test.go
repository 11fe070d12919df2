package worker

import (
	"sync/atomic"
	"testing"
	"time"
)

// A batch waits for all that was in hand when it began, wherever it is, one place after the other, and for nothing that has come since.
func TestABatchWaitsForWhatIsInHand(t *testing.T) {
	ws := newWorkers(t, 3)
	w, other := ws[1], ws[2]
	up, s := new(atomic.Uint64), new(sockState)
	s.Up = up
	list := []*sockState{s}
	ws[0].shown.Store(&list)
	in, out := w.in[0], other.in[1]
	frame := make([]byte, 60)
	now := uint64(time.Hour)
	still := func(where string) {
		t.Helper()
		if got := w.goOn(now); got != orderUnderWay {
			t.Fatalf("%s: %d, want it to wait", where, got)
		}
	}

	up.Store(5) // sent up by a program, and not yet received
	s.through.Store(4)
	w.beginOrder(now)
	still("sent up")
	up.Store(6) // one more since: not this batch's
	in.push(handProcess, 0, 0, frame)
	ws[0].second.given.Store(1) // of the slow path
	s.through.Store(5)
	still("handed over")
	in.through.Store(1)
	still("given by the slow path")
	out.push(handSend, 0, 0, frame)
	s.given.Store(9)
	ws[0].second.through.Store(1)
	still("handed over to be sent")
	out.through.Store(1)
	still("in a tx ring")
	s.left.Store(8)
	still("one is in the tx ring")
	s.left.Store(9)
	if got := w.goOn(now); got != orderKept {
		t.Fatalf("%d when all has left", got)
	}

	w.beginOrder(now)
	still("the one that came since")
	s.gone.Store(true) // with its socket
	if got := w.goOn(now); got != orderKept {
		t.Fatalf("%d when the socket is gone", got)
	}
	s.gone.Store(false)
	up.Store(5)
	s.given.Store(10)
	w.beginOrder(now)
	still("one is in the tx ring of a port that is up")
	ws[0].SetLink(s.Port, false)
	if got := w.goOn(now); got != orderKept {
		t.Fatalf("%d where a port is down: no other port's sessions wait for its ring", got)
	}
	ws[0].SetLink(s.Port, true)
	w.beginOrder(now)
	if got := w.goOn(now + uint64(orderMost) + 1); got != orderGivenUp {
		t.Errorf("%d when nothing moves for too long", got)
	}
	w.second.batch = []uint32{3}
	w.beginOrder(now)
	w.handDown(now + uint64(orderMost)) // the last moment
	before := w.count.givenUp.Load()
	w.second.batch = []uint32{3}
	w.handDown(now + uint64(orderMost) + 1)
	if after := w.count.givenUp.Load(); before != 0 || after != 1 || len(w.second.batch) != 0 {
		t.Errorf("%d batches counted as given up after a second, %d behind it, and %d sessions still in one", before, after, len(w.second.batch))
	}
}

// A session of which a packet waits for its rate is left out, also where the rate lets go of it while the batch waits for others: it is behind what the batch has seen of the way to its sender.
func TestABatchLeavesOutWhatWaitsForItsRate(t *testing.T) {
	ws := newWorkers(t, 3)
	w := ws[1]
	now := w.cfg.Clock.Now()
	for range 2 {
		ws[0].hand(1, handProcess, 1, 0, udp(4000, 1000), nil) // 80 ms of the rate each
	}
	w.turn(now)
	slot := uint32(0)
	for !w.shard.Sessions.Live(slot) {
		slot++
	}
	out := ws[2].in[1]
	batch := func(between func()) int {
		w.second.batch = []uint32{slot}
		out.push(handSend, 0, 0, make([]byte, 60))
		w.in[0].through.Store(w.in[0].tail.Load())
		w.beginOrder(now)
		if got := w.goOn(now); got != orderUnderWay || w.second.order.stage != 3 {
			t.Fatalf("%d at stage %d: it is to wait for the ring of its sender", got, w.second.order.stage)
		}
		between()
		out.through.Store(out.head.Load())
		if got := w.goOn(now); got != orderKept {
			t.Fatalf("%d when all has left", got)
		}
		return len(w.second.batch)
	}
	if n := batch(func() {
		if w.shard.Shaper.Held() != 1 {
			t.Fatal("nothing waits: this proves nothing")
		}
		w.turn(now + uint64(200*time.Millisecond))
		if w.shard.Shaper.Held() != 0 {
			t.Fatal("it waits still: this proves nothing")
		}
	}); n != 0 {
		t.Error("a session whose packet waited for its rate")
	}
	if n := batch(func() {}); n != 1 {
		t.Error("not a session of which nothing waits")
	}
}

// Who has lost packets of late hands down in haste, and only then.
func TestWhoLosesIsInHaste(t *testing.T) {
	ws := newWorkers(t, 2)
	now := uint64(time.Hour)
	if loses(ws[1].lost(), now) {
		t.Error("without a loss")
	}
	ws[0].count.lostAt.Store(now - uint64(hasteFor) + 1)
	if !loses(ws[1].lost(), now) {
		t.Error("not after another's loss")
	}
	if loses(ws[1].lost(), now+1) {
		t.Error("long after")
	}
	if !loses(now+1, now) {
		t.Error("not after a loss in a turn that began later than this one")
	}
}
