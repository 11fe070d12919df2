package pipeline

import (
	"strings"
	"testing"

	"github.com/google/gopacket/layers"

	"demarc/gateway/flow"
	"demarc/gateway/meter"
	"demarc/gateway/nat"
	"demarc/gateway/replica"
	"demarc/gateway/verdict"
)

// newSettledDuo is two nodes of which one's copy is in sync, by a link without delay.
func newSettledDuo(t testing.TB, policy string) *duo {
	t.Helper()
	d := &duo{t: t, policy: policy, now: 1e12, epoch: 1, hold: 2e9, disk: map[string]map[string]Reserve{}, known: Known{All: true}}
	d.seed(1)
	d.own, d.by = d.gate("a", 2), d.gate("b", 3)
	d.begin()
	d.await(func() bool { return d.candidate })
	return d
}

// await takes turns until something holds.
func (d *duo) await(ok func() bool) {
	d.t.Helper()
	for range 2000 {
		if d.turn(0); ok() {
			return
		}
	}
	whole, why := d.by.in.Whole(1)
	d.t.Fatalf("it does not come to that in 4 s: whole %v (%s), guard %v, in sync %v", whole, why, d.guard, d.candidate)
}

func (d *duo) public(g *gate) nat.AddrID {
	id, ok := g.space.Find([4]byte{192, 0, 2, 16})
	if !ok {
		d.t.Fatal("the pool's address is not there")
	}
	return id
}

// TestACopyIsNotSettledBeforeItsBlocksAreKnown: without a guard nothing is settled, with one only what was acknowledged; and a node that has neither groups nor standbys closes nothing.
func TestACopyIsNotSettledBeforeItsBlocksAreKnown(t *testing.T) {
	d := newSettledDuo(t, testPolicy+testGroups+testHold)
	c := d.own.c
	if !c.Settled(1, "b") || c.Settled(1, "c") || c.Settled(200, "b") {
		t.Errorf("settled: %v, of a stranger %v, of a group of another node %v", c.Settled(1, "b"), c.Settled(1, "c"), c.Settled(200, "b"))
	}
	open := func(g *gate) (n int) {
		for w := range nat.BlockWords {
			for m := ^g.space.Closed(d.public(g), nat.UDP, w); m != 0; m &= m - 1 {
				n++
			}
		}
		return n
	}
	if n := open(d.own); n < 32 || n > 128 {
		t.Errorf("%d blocks are open while a standby may take over, want some 32", n)
	}
	const all = 1024 - 2*nat.BlockWords // but what two nodes have in reserve
	if n := open(d.by); n != 0 {
		t.Errorf("%d blocks are open at the standby: workers that serve before it has gone through its addresses would use them", n)
	}
	// A worker takes one that was open; so many are asked for that the standby hears of a new one, and is settled again only then.
	for range 40 {
		d.open()
	}
	c.Turn(int64(d.now))
	if !c.Settled(1, "b") {
		t.Error("what is asked for, and not used, is no reason not to be settled")
	}
	d.own.c.Guard(1, "b", false)
	if c.Turn(int64(d.now)); c.Settled(1, "b") || open(d.own) != all {
		t.Errorf("without a guard: settled %v, %d open", c.Settled(1, "b"), open(d.own))
	}
	d.own.c.Drop("b")
	lone := d.gate("c", 2)
	lone.c.TakeOver(1, 1, Known{All: true}, int64(d.now), nil)
	for range 10 {
		lone.c.Turn(int64(d.now))
	}
	if n := open(lone); n != all || lone.c.calm < len(lone.c.addrs) {
		t.Errorf("without a standby %d blocks are open", n)
	}
}

// TestWhatNeedsNoPortIsUntouchedByClosedBlocks: with every block closed, what is translated 1:1 or forwarded passes both ways, a mapping that there is serves, and only who needs a new port
// is refused, with that reason.
func TestWhatNeedsNoPortIsUntouchedByClosedBlocks(t *testing.T) {
	w := newWorld(t, 2, testPolicy+testGroups)
	id, _ := w.space.Find([4]byte{192, 0, 2, 16})
	pass := func(what string, port int, f []byte, want verdict.Verdict, reason verdict.Reason) {
		t.Helper()
		hops := w.arrive(arrival{worker: 0, port: port, frame: f})
		if h := hops[len(hops)-1]; h.verdict != want || want == verdict.Drop && h.reason != reason {
			t.Errorf("%s: %v (%v), want %v (%v)", what, h.verdict, h.reason, want, reason)
		}
	}
	syn := func(l *layers.TCP) { l.SYN = true; l.Seq = 1 }
	pass("before", 1, udp4(t, 1, "198.18.10.20", 5000, "203.0.113.50", 53), verdict.Send, 0)
	for c := range nat.NumClasses {
		for word := range nat.BlockWords {
			w.space.Close(id, nat.Class(c), word, ^uint64(0))
		}
	}
	pass("another far end of the same inside port", 1, udp4(t, 1, "198.18.10.20", 5000, "203.0.113.51", 53), verdict.Send, 0)
	pass("1:1, from inside", 1, udp4(t, 1, "198.18.10.100", 5000, "203.0.113.50", 53), verdict.Send, 0)
	pass("1:1, from outside", 0, tcp4(t, 0, "203.0.113.50", 4000, "192.0.2.100", 80, syn), verdict.Send, 0)
	pass("forwarded", 0, tcp4(t, 0, "203.0.113.50", 4000, "192.0.2.16", 8080, syn), verdict.Send, 0)
	pass("a new port", 1, udp4(t, 1, "198.18.10.21", 5000, "203.0.113.50", 53), verdict.Drop, verdict.NATNoPort)
	pass("another tenant", 2, udp4(t, 2, "198.18.30.20", 5000, "203.0.113.50", 53), verdict.Send, 0)
}

// TestAnExOwnerRemembersWhatItHadOpen: who was the owner before, and is again within the hold time, lets rest what it had open itself, also where the owner in between never heard of that. Nobody
// was in between: nothing rests. After the hold time nothing does.
func TestAnExOwnerRemembersWhatItHadOpen(t *testing.T) {
	w := newWorld(t, 2, testPolicy+testGroups+testHold)
	c := NewCommon(w.space, w.shards, 64, 5)
	now := int64(w.now)
	c.Renew(w.view, now)
	id, _ := w.space.Find([4]byte{192, 0, 2, 16})
	closed := func() (n int) {
		for word := range nat.BlockWords {
			for m := w.space.Closed(id, nat.UDP, word); m != 0; m &= m - 1 {
				n++
			}
		}
		return n
	}
	c.TakeOver(1, 5, Known{All: true}, now, nil)
	if closed() != 0 {
		t.Fatal("a node that nobody was before has blocks that rest")
	}
	for i := range 20 {
		w.arrive(arrival{worker: 0, port: 1, frame: udp4(t, 1, "198.18.10.20", uint16(5000+i), "203.0.113.50", 53)})
	}
	c.GiveUp(1, 99, now)
	c.TakeOver(1, 6, Known{All: true}, now+1e8, nil)
	if closed() != 0 {
		t.Error("nobody was the owner in between, and blocks rest")
	}
	c.GiveUp(1, 99, now+2e8)
	for _, sh := range w.shards { // what the owner in between does not know goes
		sh.GiveUp(1)
		for slot := range sh.Sessions.Slots() {
			if sh.Sessions.Live(slot) {
				sh.leave(slot)
			}
		}
		for range 100 {
			sh.Maintain(w.now, 4096)
		}
	}
	c.TakeOver(1, 8, Known{All: true}, now+3e8, nil)
	n := closed()
	if n == 0 {
		t.Fatal("another was the owner in between, and what was open here does not rest")
	}
	c.GiveUp(1, 99, now+4e8)
	c.TakeOver(1, 9, Known{All: true}, now+5e8, nil)
	if closed() != n {
		t.Errorf("%d blocks rest, and %d did before nobody else was the owner", closed(), n)
	}
	for at := now + 6e8; at < now+3e9; at += 1e8 {
		c.Turn(at)
		if rests := closed() == n; rests != (at < now+3e8+2e9) {
			t.Fatalf("%d ms after the takeover %d blocks rest", (at-now-3e8)/1e6, closed())
		}
	}
	c.GiveUp(1, 99, now+3e9)
	c.TakeOver(1, 20, Known{All: true}, now+6e9, nil)
	if closed() != 0 {
		t.Error("what was open longer ago than the hold time rests")
	}
}

// TestWhatTheProcessBeforeHasLeftRestsNot: a node whose process before has left all of a group serves it as if it had gone on: nothing rests, what is in use can be built on, and all is known again at once. Where
// it only knows all that is in use, what is in use rests; and where nobody has agreed to its serving, whatever it says.
func TestWhatTheProcessBeforeHasLeftRestsNot(t *testing.T) {
	for _, c := range []struct {
		known Known
		rests bool
	}{
		{Known{All: true, Here: true}, false},
		{Known{All: true}, true},
		{Known{All: true, Here: true, Unagreed: true}, true},
		{Known{Here: true, Age: 1e9}, true},
	} {
		w := newWorld(t, 2, testPolicy+testGroups+testHold)
		now := int64(w.now)
		for i := range 20 {
			w.arrive(arrival{worker: 0, port: 1, frame: udp4(t, 1, "198.18.10.20", uint16(5000+i), "203.0.113.50", 53)})
		}
		x := NewCommon(w.space, w.shards, 64, 5)
		x.Renew(w.view, now)
		if x.Knows(1, now) {
			t.Error("a node that does not serve a group knows all of it")
		}
		if forget := x.TakeOver(1, 7, c.known, now, nil); forget {
			t.Errorf("%+v: sessions are to end", c.known)
		}
		closed := false
		id, _ := w.space.Find([4]byte{192, 0, 2, 16})
		for word := range nat.BlockWords {
			closed = closed || w.space.Closed(id, nat.UDP, word) != 0
		}
		if closed != c.rests || x.Knows(1, now) == c.rests {
			t.Errorf("%+v: blocks are closed: %v, it knows all: %v", c.known, closed, x.Knows(1, now))
		}
		for at := now; at < now+3e9; at += 1e8 {
			x.Turn(at)
		}
		if !x.Knows(1, now+3e9) {
			t.Errorf("%+v: after the hold time it does not know all", c.known)
		}
		if x.GiveUp(1, 99, now+3e9); x.Knows(1, now+3e9) {
			t.Error("who has given a group up knows all of it")
		}
	}
}

// TestAHandOverIsGuardedAtOnce: a node that has handed a group over counts as in sync, and may have it back as soon as its copy is whole. Each port that the new owner has given away by then or does after
// that lies in a block which it knows of, so it lets it rest; a guard that is on 100 ms later is found. The new owner has ports to give all the time.
func TestAHandOverIsGuardedAtOnce(t *testing.T) {
	for _, late := range []bool{false, true} {
		d := newSettledDuo(t, testPolicy+testGroups+testHold)
		d.lateGuard = late
		for range 50 {
			d.turn(6)
		}
		d.handOver()
		for range 20 { // some before the copy has begun
			d.open()
		}
		for i := 0; ; i++ {
			if whole, why := d.by.in.Whole(1); whole {
				break
			} else if i == 45 {
				t.Fatalf("late %v: after 90 ms the copy is not whole: %s", late, why)
			}
			d.turn(1)
		}
		d.delay = 1e12 // nothing comes any more
		for range 20 {
			d.turn(20)
		}
		if d.refused > 0 || d.made < 400 || len(d.faults) > 0 {
			t.Errorf("late %v: %d of %d found no port, %v", late, d.refused, d.made, d.faults)
		}
		ports := d.live
		d.takeover(true)
		lost := 0
		for port, host := range ports {
			if block := port / 64; host != (flow.Addr{}) && d.own.space.Closed(d.public(d.own), nat.UDP, block/64)>>(block&63)&1 == 0 {
				lost++
			}
		}
		if lost > 0 != late {
			t.Errorf("late %v: %d ports that somebody has may be given to somebody else", late, lost)
		}
	}
}

// TestRatesAndCountersGoOn: a tenant's rates are as far used up at the next owner as they were, however often the group moves, and its counters go on there: nothing twice, and nothing lost that was
// told.
func TestRatesAndCountersGoOn(t *testing.T) {
	d := newSettledDuo(t, strings.Replace(testPolicy, "[[tenant]]\nname = \"beta\"", "[tenant.rates.out]\nbits = \"64k\"\nburst = \"2s\"\nmode = \"police\"\n[[tenant]]\nname = \"beta\"", 1)+testGroups+testHold)
	alpha := func(g *gate) flow.TenantID { return g.view.TenantByName("alpha").ID }
	usage := func(g *gate) Usage { return g.c.Usage(alpha(g)) }
	spent := func(g *gate) uint64 {
		tn := g.view.TenantByName("alpha")
		return tn.Dir[meter.Out].Bits.Ahead(&tn.Shared.Words[meter.Out].Bits, d.now)
	}
	total := 0
	for round := range 4 {
		for range 300 {
			for _, h := range d.own.arrive(arrival{worker: 0, port: 1, frame: udp4(t, 1, "198.18.10.20", 5000, "203.0.113.50", 53)}) {
				if h.verdict == verdict.Send {
					total++
				}
			}
		}
		for _, sh := range d.own.shards {
			sh.Meter.Publish()
		}
		d.own.c.Turn(int64(d.now) + int64(markEvery)) // as if it had not just looked
		d.await(func() bool { return usage(d.by).Volume[meter.Out].Packets == uint64(total) })
		if got := usage(d.own).Volume[meter.Out]; got.Packets != uint64(total) || got.Bytes == 0 {
			t.Fatalf("round %d: %d packets at the owner, want %d", round, got.Packets, total)
		}
		a, b := spent(d.own), spent(d.by)
		if a < 5e8 || b > a || a-b > 3e8 {
			t.Fatalf("round %d: the rate is used up by %d ms at the owner, by %d at the standby", round, a/1e6, b/1e6)
		}
		before := usage(d.own)
		d.takeover(true)
		if got := usage(d.own); got != before {
			t.Fatalf("round %d: after the takeover %+v, before %+v", round, got, before)
		}
		d.await(func() bool { return d.candidate })
		if got := usage(d.by); got != before {
			t.Fatalf("round %d: at who was the owner %+v, before %+v", round, got, before)
		}
	}
	if total < 400 {
		t.Fatalf("%d packets: nothing was tested", total)
	}
}

// TestWhatPassedAtTheEndOfATermIsCounted: what an owner has passed on is in a tenant's sum although its account came late, as that of the second executor does, and where it serves again after itself.
func TestWhatPassedAtTheEndOfATermIsCounted(t *testing.T) {
	w := newWorld(t, 1, testPolicy+testGroups)
	c := NewCommon(w.space, w.shards, 64, 5)
	c.Renew(w.view, int64(w.now))
	tn := w.view.TenantByName("alpha")
	passes := func(n int) {
		for range n {
			w.shards[0].Meter.Add(tn.ID, meter.Out, 100)
		}
		w.shards[0].Meter.Publish()
	}
	for epoch := uint64(1); epoch < 4; epoch++ {
		c.TakeOver(tn.Group.ID, epoch, Known{All: true, Here: true}, int64(w.now), nil)
		passes(3)
		c.GiveUp(tn.Group.ID, epoch, int64(w.now))
		passes(2)
	}
	c.TakeOver(tn.Group.ID, 4, Known{All: true, Here: true}, int64(w.now), nil)
	if got := c.Usage(tn.ID).Volume[meter.Out]; got != (meter.Volume{Packets: 15, Bytes: 1500}) {
		t.Errorf("%+v, and 15 packets of 100 bytes have passed", got)
	}
}

// TestAStandbyTakesNoMoreThanItKnows: what a peer says of blocks, rates and counters is refused with its outcome where it cannot be, and changes nothing.
func TestAStandbyTakesNoMoreThanItKnows(t *testing.T) {
	w := newWorld(t, 2, testPolicy+testGroups)
	c := NewCommon(w.space, w.shards, 64, 5)
	c.Renew(w.view, int64(w.now))
	alpha := uint16(w.view.TenantByName("alpha").ID)
	beta := uint16(w.view.TenantByName("beta").ID)
	if w.view.GroupOf(flow.TenantID(beta)) != nil {
		t.Fatal("beta is in a group: nothing is tested")
	}
	pool := [4]byte{192, 0, 2, 16}
	for name, r := range map[string]struct {
		rec  replica.Record
		want replica.Outcome
	}{
		"a block":                      {replica.Record{Kind: replica.KindBlock, Tenant: alpha, Block: replica.Block{Addr: pool, Class: 1, Number: 1023}}, replica.Taken},
		"a class that there is not":    {replica.Record{Kind: replica.KindBlock, Tenant: alpha, Block: replica.Block{Addr: pool, Class: 3}}, replica.Malformed},
		"a block beyond the last":      {replica.Record{Kind: replica.KindBlock, Tenant: alpha, Block: replica.Block{Addr: pool, Number: 1024}}, replica.Malformed},
		"an address of another tenant": {replica.Record{Kind: replica.KindBlock, Tenant: alpha, Block: replica.Block{Addr: [4]byte{192, 0, 2, 48}}}, replica.NoTenant},
		"an address of 1:1":            {replica.Record{Kind: replica.KindBlock, Tenant: alpha, Block: replica.Block{Addr: [4]byte{192, 0, 2, 100}}}, replica.NoTenant},
		"an address that there is not": {replica.Record{Kind: replica.KindBlock, Tenant: alpha, Block: replica.Block{Addr: [4]byte{8, 8, 8, 8}}}, replica.NoTenant},
		"a tenant beyond all":          {replica.Record{Kind: replica.KindCount, Tenant: 65535, Count: replica.Count{Index: countVolume}}, replica.NoTenant},
		"a rate":                       {replica.Record{Kind: replica.KindRate, Tenant: alpha, Rate: replica.Rate{Index: rateSessions, Ahead: 1 << 63}}, replica.Taken},
		"a rate of a newer release":    {replica.Record{Kind: replica.KindRate, Tenant: alpha, Rate: replica.Rate{Index: numRates}}, replica.NotKnown},
		"a rate, by another group":     {replica.Record{Kind: replica.KindRate, Group: 2, Tenant: alpha, Rate: replica.Rate{Index: rateSessions, Ahead: 1 << 63}}, replica.NoTenant},
		"a block, by another group":    {replica.Record{Kind: replica.KindBlock, Group: 2, Tenant: alpha, Block: replica.Block{Addr: pool, Class: 1, Number: 1023}}, replica.NoTenant},
		"a rate of who is in no group": {replica.Record{Kind: replica.KindRate, Tenant: beta, Rate: replica.Rate{Index: rateSessions, Ahead: 1 << 63}}, replica.NoTenant},
		"a counter":                    {replica.Record{Kind: replica.KindCount, Tenant: alpha, Count: replica.Count{Index: countCreated, Value: 5}}, replica.Taken},
		"a counter that is a rate":     {replica.Record{Kind: replica.KindCount, Tenant: alpha, Count: replica.Count{Index: 0, Value: 5}}, replica.NotKnown},
		"a counter of a newer release": {replica.Record{Kind: replica.KindCount, Tenant: alpha, Count: replica.Count{Index: uint16(numCounts), Value: 5}}, replica.NotKnown},
		"a session":                    {replica.Record{Kind: replica.KindSession, Tenant: alpha}, replica.NotKnown},
	} {
		if r.rec.Group == 0 {
			r.rec.Group = 1
		}
		if _, out := c.put(&r.rec, w.now); out != r.want {
			t.Errorf("%s: %v, want %v", name, out, r.want)
		}
	}
	if u := c.Usage(flow.TenantID(alpha)); u.Created != 5 {
		t.Errorf("%d sessions were begun, want 5", u.Created)
	}
	bt := w.view.TenantByName("beta")
	if bt.SessionRate.Ahead(&bt.Shared.SessionRate, w.now) != 0 {
		t.Error("the rate of a tenant in no group is used up by what another node says")
	}
	// A group of which nothing is taken any more, since this node is about to serve it.
	deaf := &Copied{Shards: w.shards, View: w.view, Common: timed{c, w}, Deaf: func(group uint8) bool { return group == 1 }}
	ops := []replica.Op{{Do: replica.Put, At: replica.NoPlace, Rec: replica.Record{Kind: replica.KindCount, Group: 1, Tenant: alpha, Count: replica.Count{Index: countCreated, Value: 77}}}}
	if deaf.Do(ops, &replica.Context{}); ops[0].Outcome != replica.Conflict || ops[0].At != replica.NoPlace || c.Usage(flow.TenantID(alpha)).Created != 5 {
		t.Errorf("of a group that is this node's: %v, and %d sessions were begun", ops[0].Outcome, c.Usage(flow.TenantID(alpha)).Created)
	}
	// An owner believes nobody.
	c.TakeOver(1, 1, Known{All: true}, int64(w.now), nil)
	c.put(&replica.Record{Kind: replica.KindCount, Group: 1, Tenant: alpha, Count: replica.Count{Index: countCreated, Value: 500}}, w.now)
	if u := c.Usage(flow.TenantID(alpha)); u.Created != 5 {
		t.Errorf("%d sessions were begun, want 5: an owner takes what another says", u.Created)
	}
}

// TestACopyGoesPastWhatIsNotTold: a copy of what workers share looks at what is told and little else, wherever that is.
func TestACopyGoesPastWhatIsNotTold(t *testing.T) {
	d := newSettledDuo(t, testPolicy+testGroups+testHold)
	if len(d.own.c.all) != 1 {
		t.Fatalf("%d streams", len(d.own.c.all))
	}
	p := d.own.c.all[0]
	slots, told, steps := p.Slots(), 0, 0
	for slot := uint32(0); slot < slots; steps++ {
		n := p.Next(slot)
		if n == slot {
			if p.Look(slot).Group != 0 {
				told++
			}
			slot++
			continue
		}
		for ; slot < min(n, slots); slot++ {
			if p.Look(slot).Group != 0 {
				t.Fatalf("slot %d is told, and a copy goes past it", slot)
			}
		}
	}
	if first := int(p.c.blockSlot(0)); told == 0 || steps > first+4*told {
		t.Errorf("%d steps for %d of %d slots, of which %d are rates and counters", steps, told, slots, first)
	}
	for _, words := range []int{1, 3, 1 << 13} { // as far as it was asked to look, and no further
		for slot := range slots - p.c.blockSlot(0) {
			if n := d.own.c.blocks.Next(slot, words); n < slot || n > slot+64*uint32(words) {
				t.Fatalf("%d words on from block %d is block %d", words, slot, n)
			}
		}
	}
}
