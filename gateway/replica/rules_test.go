package replica

import (
	"strings"
	"testing"
	"time"

	"demarc/gateway/flow"
)

// pair is an owner with one shard and a standby, without delays.
func pair(t *testing.T, cap, standbyCap int) (*world, *node, *node) {
	t.Helper()
	w := newWorld(1, 2, plants{})
	w.delay, w.limits = 0, Limits{}
	w.cap = cap
	a, b := w.nodes[0], w.nodes[1]
	a.start()
	w.cap = standbyCap
	b.start()
	w.cap = cap
	// a's senders were made by start, of b's too where it came later.
	w.owner = [3]*node{}
	w.epoch, w.owners = [3]uint64{}, [3]map[uint64]*node{}
	w.elect(1, a)
	w.elect(2, a)
	b.follow(1)
	b.follow(2)
	w.connectAll()
	return w, a, b
}

func session(i int) *Session {
	s := &Session{OrigSPort: uint16(i), OrigDPort: 80, Proto: flow.TCP, State: 1, Flags: FlagNAT, Hop: [2]uint16{NoName, NoName}}
	s.OrigSrc[3], s.OrigSrc[2], s.OrigDst[3] = byte(i), byte(i>>8), byte(i>>16)
	return s
}

func (n *node) add(i int, early bool) (*shard, uint32) {
	s := session(i)
	if early {
		s.State = 5
	}
	sh := n.shards[n.home(0, s)]
	slot, ok := sh.put(0, s, 1)
	if ok {
		n.mark(sh, slot, early)
	}
	return sh, slot
}

func (w *world) settle(turns int) {
	for range turns {
		w.turn(0)
	}
}

// TestTableFull: a standby with smaller tables is told apart from a whole one in words, costs the owner nothing, and becomes whole when there is room.
func TestTableFull(t *testing.T) {
	w, a, b := pair(t, 3000, 100)
	var slots []uint32
	var shards []*shard
	for i := range 1200 {
		sh, slot := a.add(i, true)
		slots, shards = append(slots, slot), append(shards, sh)
	}
	w.settle(200)
	ok, why := b.recv.Whole(1)
	if ok || !strings.HasPrefix(why, "table full: ") {
		t.Fatalf("with %d of 1200 sessions it says %v %q", len(b.shards)*100, ok, why)
	}
	for i, s := range a.senders["b"] {
		if c, _ := s.Copy(w.now, 1); c.Missing > 0 && c.Why != Full {
			t.Errorf("stream %d: the owner is told %+v", i, c)
		}
	}
	copies := b.recv.Stats.Copies
	w.settle(3000)
	if n := b.recv.Stats.Copies - copies; n > uint64(4*len(a.shards)*2) {
		t.Errorf("in three seconds it was copied %d times, and there was room for none", n)
	}
	for i := 50; i < len(slots); i++ {
		shards[i].remove(slots[i])
		for _, s := range a.shard(shards[i]) {
			s.Gone(slots[i])
		}
	}
	w.settle(20000)
	if ok, why := b.recv.Whole(1); !ok {
		t.Errorf("with 50 sessions left: %s", why)
	}
	w.judge()
	if len(w.faults) > 0 {
		t.Error(w.faults)
	}
}

// TestUnknownKind: a record of a kind that nobody knows is said and counted; one that must be understood makes the copy not whole.
func TestUnknownKind(t *testing.T) {
	for _, c := range []struct {
		kind Kind
		ok   bool
	}{{0x33, true}, {0xa0, false}} {
		r := NewReceiver(&anySink{}, 1<<14)
		b := make([]byte, headerLen)
		b = appendMarker(b, KindBegin, 7, &marker{Epoch: 1, Round: 1, Of: 1})
		b, at := begin(b, c.kind, 7)
		b = end(append(b, 1, 2, 3), at)
		b = appendMarker(b, KindEnd, 7, &marker{Epoch: 1, Round: 1, Of: 1})
		h := header{First: true, Len: uint32(len(b)), Life: 1, Seq: 1, Count: 3}
		h.put(b)
		_, err := r.Frame(1, "a", b)
		ok, why := r.Whole(7)
		if ok != c.ok || (err == nil) != c.ok || r.Stats.Unknown != 1 {
			t.Errorf("kind %#x: whole %v (%s), error %v, %d counted", uint8(c.kind), ok, why, err, r.Stats.Unknown)
		}
		if !c.ok && (!strings.Contains(why, "newer release") || !strings.Contains(err.Error(), "newer release")) {
			t.Errorf("kind %#x: says %q and %v", uint8(c.kind), why, err)
		}
	}
}

// TestTenantNotThere: a session of a tenant that the standby's policy has not yet is missing by that word, and comes when the policy has it.
func TestTenantNotThere(t *testing.T) {
	w, a, b := pair(t, 3000, 3000)
	b.local = []int{3, 2, 1, 3}
	a.add(1, true)
	w.settle(50)
	if ok, why := b.recv.Whole(1); ok || !strings.Contains(why, "tenant not in this node's policy") {
		t.Fatalf("it says %v %q", ok, why)
	}
	b.local = []int{3, 2, 1, 0}
	b.recv.Renew()
	w.settle(2500)
	if ok, why := b.recv.Whole(1); !ok {
		t.Errorf("after the policy: %s", why)
	}
	w.judge()
	if len(w.faults) > 0 {
		t.Error(w.faults)
	}
}

// TestEstablishedFirst: where the link is short, established sessions are there before others, whatever came first.
func TestEstablishedFirst(t *testing.T) {
	w, a, b := pair(t, 3000, 3000)
	w.settle(20)
	for i := range 1000 {
		a.add(i, i >= 800)
	}
	total := 0
	for _, ss := range a.senders["b"] {
		total += ss.Drain(w.now, 200/len(a.shards))
	}
	w.carry()
	early, late := 0, 0
	for _, sh := range b.shards {
		for i := range sh.slots {
			if sh.slots[i].live && sh.slots[i].s.State >= 4 {
				early++
			} else if sh.slots[i].live {
				late++
			}
		}
	}
	if early < 150 || late > early/2 {
		t.Errorf("of %d records %d established sessions are there and %d others", total, early, late)
	}
}

// TestASlowPeerCostsNoMemory: while the standby acknowledges nothing the owner writes one window and no more, however much changes; lag says how late it is, and
// in the end all is there.
func TestASlowPeerCostsNoMemory(t *testing.T) {
	w, a, b := pair(t, 3000, 20000)
	w.settle(20)
	w.delay = 1000 * msec
	for range 900 {
		w.turn(50)
	}
	for i, s := range a.senders["b"] {
		st := s.Status(w.now)
		if st.Bytes > s.lim.Window+s.lim.Frame+1024 {
			t.Errorf("stream %d: %d bytes wait, and the window is %d", i, st.Bytes, s.lim.Window)
		}
		if st.Lag < 800*time.Millisecond || st.Lag > time.Second {
			t.Errorf("stream %d: 900 ms without a word, and the lag is %s", i, st.Lag)
		}
	}
	w.delay = msec
	w.settle(3000)
	for i, s := range a.senders["b"] {
		if st := s.Status(w.now); st.Lag > 20*time.Millisecond {
			t.Errorf("stream %d: the lag is still %s", i, st.Lag)
		}
	}
	w.judge()
	if len(w.faults) > 0 {
		t.Error(w.faults)
	}
	_ = b
}

// TestAShortCutCopiesNothing: a connection that comes back within the window goes on where it was.
func TestAShortCutCopiesNothing(t *testing.T) {
	w, a, b := pair(t, 3000, 3000)
	for range 50 {
		w.turn(5)
	}
	copies := b.recv.Stats.Copies
	for _, c := range w.conns {
		c.close()
		c.late = nil
	}
	for range 50 {
		w.turn(5)
	}
	w.connectAll()
	w.settle(50)
	if b.recv.Stats.Copies != copies {
		t.Errorf("it was copied %d times", b.recv.Stats.Copies-copies)
	}
	w.judge()
	if len(w.faults) > 0 {
		t.Error(w.faults)
	}
	_ = a
}

// TestDamageIsMended: a table that has lost or changed something is found by the digest and copied again.
func TestDamageIsMended(t *testing.T) {
	w, _, b := pair(t, 3000, 3000)
	for range 50 {
		w.turn(20)
	}
	w.settle(50)
	damaged := 0
	for _, in := range b.recv.peers["a"] {
		g := in.groups[1]
		g.sum++
		damaged++
	}
	w.settle(3000)
	if b.recv.Stats.Mismatches != uint64(damaged) {
		t.Errorf("%d streams were damaged, and %d found different", damaged, b.recv.Stats.Mismatches)
	}
	b.recv.Stats.Mismatches = 0
	if ok, why := b.recv.Whole(1); !ok {
		t.Errorf("afterwards: %s", why)
	}
	w.judge()
	if len(w.faults) > 0 {
		t.Error(w.faults)
	}
}

// TestWindowIsMemory: a standby that takes nothing while one thing changes at a time costs the owner no more than the window, though each frame has a buffer for many records.
func TestWindowIsMemory(t *testing.T) {
	w := newWorld(1, 2, plants{})
	n := w.nodes[0]
	sh := n.shards[0]
	lim := Limits{Window: 256 << 10}
	s := NewSender(source{n, sh}, w.cap, 0, 1, 7, 9, lim)
	s.Own(1, 1)
	s.Link(0, &Answer{Anew: true})
	for i := range 5000 {
		var x Session
		x.OrigSrc[3], x.OrigSPort = byte(i), uint16(i)
		slot, ok := sh.put(0, &x, 1)
		if !ok {
			sh.remove(0)
			slot, _ = sh.put(0, &x, 1)
		}
		s.Mark(slot, true)
		s.Drain(int64(i)*1e6, 64)
		s.Take()
	}
	held := cap(s.cur)
	for _, f := range s.queue {
		held += cap(f.buf)
	}
	if len(s.queue) < 5 || held > lim.Window+2*(DefaultLimits.Frame+1024) {
		t.Errorf("%d frames hold %d bytes, the window is %d", len(s.queue), held, lim.Window)
	}
	if st := s.Status(5000e6); st.Lag < time.Second {
		t.Errorf("a lag of %s is shown", st.Lag)
	}
}

// TestWhoMayOwn: nothing of a group is taken from a peer that may not own it, under whatever epoch it says so, and the true owner's word goes on to count; who says so is told by name, once it lasts
// where the log might still allow it. What was early is asked for as soon as the log has it; a peer that may own a group no more is nobody's.
func TestWhoMayOwn(t *testing.T) {
	w, a, b := pair(t, 256, 256)
	for i := range 40 {
		a.add(i, true)
	}
	w.settle(50)
	liar := &node{w: w, name: "x"}
	w.nodes = append(w.nodes, liar)
	liar.start()
	liar.senders["b"], liar.conns = nil, map[string]*conn{}
	for i, sh := range liar.shards {
		liar.senders["b"] = append(liar.senders["b"], NewSender(source{liar, sh}, 256, uint8(i), uint8(len(liar.shards)), liar.life, 9, w.limits))
	}
	w.connect(liar, b)
	whole := func(what string) {
		t.Helper()
		w.settle(300)
		have, _ := b.all(1)
		want, _ := a.all(1)
		if ok, why := b.recv.Whole(1); !ok || len(have) != len(want) {
			t.Fatalf("%s: whole %v %q, %d sessions of %d", what, ok, why, len(have), len(want))
		}
	}
	for _, c := range []struct {
		epoch   uint64
		refused uint64 // at once
		words   string
	}{{w.epoch[1], 1, "x was never the owner under epoch 1"}, {1<<64 - 1, 0, "epoch 18446744073709551615 is ahead: " + ErrEarly.Error()}} {
		before := b.recv.Stats.Refused
		liar.lie(1, c.epoch)
		a.add(1000+int(c.refused), true)
		whole("beside a liar")
		if got := b.recv.Stats.Refused - before; got != c.refused*uint64(len(liar.shards)) {
			t.Errorf("epoch %d: %d were counted at once", c.epoch, got)
		}
		if got := b.recv.Epoch(1); got != w.epoch[1] {
			t.Errorf("heard under epoch %d, agreed on is %d", got, w.epoch[1])
		}
		w.settle(3100)
		if got := b.recv.Stats.Refused - before; got != uint64(len(liar.shards)) {
			t.Errorf("epoch %d: %d were counted in the end", c.epoch, got)
		}
		if got := b.recv.Refused(); len(got) != 1 || got[0] != (Refusal{"x", 1, c.epoch, c.words}) {
			t.Errorf("epoch %d: it is said %+v", c.epoch, got)
		}
	}
	b.recv.Forget("x")
	if len(b.recv.Refused()) != 0 {
		t.Error("who has left is still told")
	}

	early := b.epoch[1] + 1
	w.epoch[1], w.owners[1][early] = early, a
	a.own(1)
	w.settle(50)
	if ok, _ := b.recv.Whole(1); ok || b.recv.Epoch(1) != early-1 {
		t.Errorf("whole %v under epoch %d, and the log of b does not have %d", ok, b.recv.Epoch(1), early)
	}
	b.epoch[1] = early // and nobody tells the receiver but Judge
	whole("the log has come")
	if b.recv.Epoch(1) != early {
		t.Errorf("heard under %d", b.recv.Epoch(1))
	}

	delete(w.owners[1], early) // the policy takes a out of the group
	w.settle(5)
	if ok, why := b.recv.Whole(1); ok || why != "nothing has come from the owner" {
		t.Errorf("%v %q", ok, why)
	}
	if have, _ := b.all(1); len(have) == 0 {
		t.Error("what was copied is gone")
	}
}

// TestRoomGrows: what is remembered of senders is bounded, and the bound follows what there may be.
func TestRoomGrows(t *testing.T) {
	r, in := NewReceiver(&anySink{}, 4*pageItems), new(inbound)
	known := func() (n int) {
		for p := range 64 {
			if r.item(in, uint32(p*pageItems)) != nil {
				n++
			}
		}
		return n
	}
	before := known()
	r.Room(pageItems)
	if same := known(); before == 0 || before > 8 || same != before {
		t.Fatalf("%d pages, and %d with room for fewer", before, same)
	}
	r.Room(64 * pageItems)
	if n := known(); n != 64 {
		t.Errorf("%d of 64 pages with room for all", n)
	}
}
