package worker

import (
	"encoding/binary"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"time"

	"demarc/configs"
	"demarc/gateway/conntrack"
	"demarc/gateway/cruise"
	"demarc/gateway/fib"
	"demarc/gateway/flow"
	"demarc/gateway/nat"
	"demarc/gateway/netlab/roottest"
	"demarc/gateway/packet/csum"
	"demarc/gateway/pipeline"
	"demarc/gateway/snapshot"
	"demarc/gateway/verdict"
	"demarc/gateway/xsk"
)

// downNode and downPolicy are testNode and testPolicy with room for as many as are handed down, and without a rate that would hold them up.
var (
	downNode         = strings.NewReplacer("sessions = 1024", "sessions = 16384", "mappings = 1024", "mappings = 16384").Replace(testNode)
	downPolicy, _, _ = strings.Cut(testPolicy, "[tenant.rates.out]")
)

// newSecond makes a worker without sockets that hands down, in tables that there are, and lets n conversations begin in it, of two packets each way: all of them could be handed down.
func newSecond(t testing.TB, n int) (w *Worker, slots []uint32) {
	t.Helper()
	const sessions = 16384
	node, err := configs.DecodeNode("node.toml", []byte(downNode))
	if err != nil {
		t.Fatal(err)
	}
	policy, err := configs.DecodePolicy("policy.toml", []byte(downPolicy))
	if err != nil {
		t.Fatal(err)
	}
	space := nat.NewSpace(16)
	v, err := snapshot.Compile(snapshot.Input{Policy: policy, Node: node, HomeSeed: 1, Links: []snapshot.Link{{MAC: peerMAC, MTU: 1500}, {MAC: portMAC, MTU: 1500}}})
	if err != nil {
		t.Fatal(err)
	}
	if err := v.Register(space); err != nil {
		t.Fatal(err)
	}
	v.Activate(space)
	neigh := fib.NewNeighbors(64, 1)
	host, far := flow.Addr{198, 18, 10, 20}, flow.Addr{203, 0, 113, 11}
	for iface, a := range map[uint16]flow.Addr{v.Iface(0, 0): far, v.Iface(1, 0): host} {
		if err := neigh.Set(iface, 4, &a, peerMAC, fib.Permanent, 0); err != nil {
			t.Fatal(err)
		}
	}
	tab, err := cruise.Open(cruise.Config{Seeds: []uint64{1}, Sessions: sessions, Ports: 2, Interfaces: len(v.Ifaces), Tenants: snapshot.MaxTenantID(node), Hops: 16})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := tab.Close(); err != nil {
			t.Error(err)
		}
	})
	for _, tn := range v.Tenants {
		if tn != nil {
			tn.Shared.Words = tab.Words(tn.ID)
		}
	}
	hops := cruise.NewHops(tab)
	hops.Renew(v.Gen)
	sh, err := pipeline.NewShard(pipeline.Config{SessionMem: tab.SessionMem(0), Sessions: sessions, Shared: true, NATMem: make([]byte, nat.Bytes(sessions)+64), PermitMem: make([]byte, nat.PermitBytes(sessions)+64),
		Mappings: sessions, Tenants: snapshot.MaxTenantID(node), ShaperMax: 256, Seed: 1, Space: space, Neighbors: neigh})
	if err != nil {
		t.Fatal(err)
	}
	u, err := xsk.NewUMEM(512, 2048)
	if err != nil {
		t.Fatal(err)
	}
	clock, err := NewClock()
	if err != nil {
		t.Fatal(err)
	}
	w, err = New(Config{CPU: -1, Ports: 2, Areas: []*xsk.UMEM{u}, Shard: sh, Clock: clock, Spin: 1, Log: slog.New(slog.DiscardHandler), Second: &Second{Tables: tab, Hops: hops}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = w.Close(); _ = u.Close() })
	Connect([]*Worker{w})
	sh.SetView(v)

	now := clock.Now()
	list := make([]pipeline.Slot, 1)
	send := func(port uint16, src, dst flow.Addr, sport, dport uint16) {
		t.Helper()
		b := udpFrame(src, dst, sport, dport)
		if port == 0 {
			copy(b, peerMAC[:])
		}
		s := &list[0]
		*s = pipeline.Slot{Port: port}
		s.Buf, s.Off, s.Len = make([]byte, 2048), 256, len(b)
		copy(s.Buf[s.Off:], b)
		sh.Process(list, now)
		if s.Verdict != verdict.Send {
			t.Fatalf("%s %s", s.Verdict, s.Reason)
		}
	}
	for i := range n {
		sport := uint16(20000 + i)
		send(1, host, far, sport, 9)
		k := flow.Key{Src: host, Dst: far, SPort: sport, DPort: 9, Proto: flow.UDP, Family: 4, Zone: v.Ifaces[v.Iface(1, 0)].Zone}
		ref, ok := sh.Sessions.Lookup(&k, sh.Sessions.Hash(&k))
		if !ok {
			t.Fatal("there is no session")
		}
		se := sh.Sessions.At(ref.Slot())
		back := se.Key(1)
		send(0, back.Src, back.Dst, back.SPort, back.DPort)
		send(1, host, far, sport, 9)
		send(0, back.Src, back.Dst, back.SPort, back.DPort)
		slots = append(slots, ref.Slot())
	}
	return w, slots
}

func udpFrame(src, dst flow.Addr, sport, dport uint16) []byte {
	be := binary.BigEndian
	b := append(append(portMAC[:len(portMAC):len(portMAC)], peerMAC[:]...), 8, 0)
	h := make([]byte, 36)
	h[0], h[6], h[8], h[9] = 0x45, 0x40, 64, flow.UDP
	be.PutUint16(h[2:], 36)
	copy(h[12:], src[:4])
	copy(h[16:], dst[:4])
	be.PutUint16(h[10:], csum.Checksum(csum.Sum(0, h[:20])))
	be.PutUint16(h[20:], sport)
	be.PutUint16(h[22:], dport)
	be.PutUint16(h[24:], 16)
	return append(b, h...)
}

// All that it takes to hand a session down, and to call it back: it is noted behind a packet, begun with a batch, its ways are looked up, it is asked whether it suits, it is marked.
func TestAHandDownCostsLessThanAMicrosecond(t *testing.T) {
	roottest.Require(t)
	w, slots := newSecond(t, downMost)
	least, longest := time.Hour, time.Hour
	for range 20 { // the least of them: what else runs on the machine comes on top
		turns := 0
		w.second.next, w.second.batch = w.second.next[:0], w.second.batch[:0]
		for _, slot := range slots {
			w.callBack(slot, w.shard.Sessions.At(slot))
		}
		began := time.Now()
		for _, slot := range slots {
			w.sent(slot, w.shard.Sessions.At(slot))
		}
		turn := time.Duration(0)
		for w.second.under() {
			from := time.Now()
			w.handDown(w.cfg.Clock.Now())
			turn = max(turn, time.Since(from))
			if turns++; w.Stats().Cruising > turns*downStep {
				t.Fatalf("%d sessions in %d turns", w.Stats().Cruising, turns)
			}
		}
		for _, slot := range slots {
			if !w.second.Tables.Stands(0, slot, w.shard.Sessions.At(slot)) {
				t.Fatal("a session is not handed down")
			}
		}
		least, longest = min(least, time.Since(began)), min(longest, turn)
	}
	each := least / time.Duration(len(slots))
	t.Logf("%d sessions: %v each, the longest turn %v", len(slots), each, longest)
	if each >= time.Microsecond {
		t.Errorf("%v a session", each)
	}
	if got := w.Stats().Cruising; got != len(slots) {
		t.Errorf("%d sessions cruise, want %d", got, len(slots))
	}
}

// The place of a session that programs carried has no other one before they have been waited for: one that is under way with its packet would write its counters, and its TCP numbers, to that. A program that began behind the end has nothing
// to do with it, and who began before is through when Settle has begun behind it and returned.
func TestASlotRestsUntilProgramsAreThrough(t *testing.T) {
	roottest.Require(t)
	w, slots := newSecond(t, 6)
	table, tables := w.shard.Sessions, w.second.Tables
	settle := func() {
		t.Helper()
		if err := tables.Settle(); err != nil {
			t.Fatal(err)
		}
		w.reuse()
	}
	end := func(list ...uint32) {
		t.Helper()
		for _, slot := range list {
			if n := w.shard.Cut(func(se *conntrack.Session) bool { return se == table.At(slot) }); n != 1 {
				t.Fatalf("%d sessions ended", n)
			}
		}
	}
	next := uint16(1)
	begins := func() uint32 {
		t.Helper()
		next++
		slot, r := table.Create(&conntrack.Session{OrigSrc: flow.Addr{198, 18, 10, 99}, OrigDst: flow.Addr{203, 0, 113, 99}, OrigSPort: next, OrigDPort: 9, XlatSPort: next, XlatDPort: 10, Proto: flow.UDP}, 1, 1000)
		if r != verdict.Pass {
			t.Fatal(r)
		}
		return slot
	}
	end(slots[0])
	if got := begins(); got != slots[0] || tables.Resting() != 0 {
		t.Errorf("nothing carried the session in %d, and the next one is in %d", slots[0], got)
	}
	down := slots[1:]
	for _, slot := range down {
		w.sent(slot, table.At(slot))
	}
	for w.second.under() {
		w.handDown(w.cfg.Clock.Now())
	}
	settle()
	end(down[:2]...)
	w.callBack(down[2], table.At(down[2])) // closes, say, and ends a while later
	end(down[2])
	w.reuse()
	if n, room := tables.Resting(), table.Room(); n != 3 || room != table.Capacity()-table.Len()-3 {
		t.Fatalf("%d places rest, want 3; room for %d beside %d of %d", n, room, table.Len(), table.Capacity())
	}
	if got := begins(); slices.Contains(down, got) {
		t.Errorf("the place %d of a session that was just carried has another one", got)
	}
	settle()
	end(down[3])
	w.reuse()
	if n := tables.Resting(); n != 1 {
		t.Errorf("%d places rest, want that of the last one alone", n)
	}
	for range 3 {
		if got := begins(); !slices.Contains(down[:3], got) {
			t.Errorf("a session begins in %d, and three have rested: %d", got, down[:3])
		}
	}
	settle()
	if got := begins(); got != down[3] || tables.Resting() != 0 || table.Room() != table.Capacity()-table.Len() {
		t.Errorf("a session begins in %d, want %d; %d rest", got, down[3], tables.Resting())
	}
	w.callBack(down[4], table.At(down[4]))
	settle()
	end(down[4])
	if got := begins(); got != down[4] {
		t.Errorf("its session was called back long ago, and %d rests: the next one is in %d", down[4], got)
	}
}
