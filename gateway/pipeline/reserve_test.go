package pipeline

import (
	"testing"
	"time"

	"demarc/gateway/flow"
	"demarc/gateway/nat"
	"demarc/gateway/replica"
	"demarc/gateway/snapshot"
)

// blindSchedule has nodes die, stop and hand over at any point, in sync or not, often soon behind each other, so that who takes over often knows but a part of what was used.
func blindSchedule(t testing.TB, seed uint64, fault func(*duo, *gate) Known) *duo {
	d := newDuo(t, seed, replica.Plant{})
	d.believe = fault
	soon := uint64(0) // until then more is likely
	for d.now < 1e12+24e9 && (fault == nil || len(d.faults) == 0) {
		d.turn(6)
		switch n := d.dice.IntN(2000); {
		case n < 1, d.now < soon && n < 12:
			d.takeover(d.dice.IntN(2) == 0)
			soon = d.now + uint64(d.dice.IntN(3))*500e6
		case n < 3 && d.now >= d.cutOff && d.candidate:
			d.cutOff = d.now + uint64(1+d.dice.IntN(4))*1e9
		case n < 4 && d.candidate:
			d.handOver()
			soon = d.now + 1e9
		}
	}
	for _, f := range d.faults[:min(3, len(d.faults))] {
		t.Logf("seed %d: %s", seed, f)
	}
	return d
}

// loseSchedule has more come together: owners that restart with nothing and go on, standbys that restart, links that carry nothing for longer than the hold time and an owner that dies at the end of it, moves right behind each of these.
func loseSchedule(t testing.TB, seed uint64) *duo {
	d := newDuo(t, seed, replica.Plant{})
	d.delay = 20e6
	calm, kill := uint64(0), false // until then nothing comes but that, and then the owner dies
	for d.now < 1e12+24e9 {
		if d.turn(4); d.now < calm {
			continue
		}
		if kill {
			kill = false
			d.takeover(d.dice.IntN(2) == 0)
		}
		switch d.dice.IntN(900) {
		case 0, 1:
			d.takeover(d.dice.IntN(2) == 0)
		case 2:
			d.restart()
		case 3:
			d.by, d.handed = d.gate(d.by.name, 1+d.dice.IntN(3)), 0
			d.begin()
		case 4:
			if d.candidate {
				d.handOver()
			}
		case 5:
			d.cutOff = d.now + uint64(d.dice.IntN(5000))*1e6
			calm, kill = d.cutOff-min(d.cutOff-d.now, uint64(d.dice.IntN(500))*1e6), d.dice.IntN(2) == 0
		}
	}
	for _, f := range d.faults[:min(3, len(d.faults))] {
		t.Logf("seed %d: %s", seed, f)
	}
	return d
}

// restart has the owner lose all that it had but its disk, and go on.
func (d *duo) restart() {
	for p, h := range d.live { // remote hosts keep sending
		if h != (flow.Addr{}) {
			d.last[p], d.until[p] = h, d.now
		}
	}
	d.live = [65536]flow.Addr{}
	d.own, d.handed, d.known = d.gate(d.own.name, 1+d.dice.IntN(3)), 0, Known{Age: -1}
	d.epoch++
	d.moved++
	d.blind++
	d.begin()
}

// TestAPublicPortHasOneHostWhateverIsLost: as the test above, where also processes lose everything, one after the other.
func TestAPublicPortHasOneHostWhateverIsLost(t *testing.T) {
	first := *commonSeed
	if first == 0 {
		first = uint64(time.Now().UnixNano())
	}
	blind, reserved, made := 0, 0, 0
	for i := uint64(0); i < 3 || i < 8 && (blind < 30 || reserved < 20); i++ {
		d := loseSchedule(t, first+i)
		for _, f := range d.faults {
			t.Errorf("seed %d: %s", first+i, f)
		}
		blind, reserved, made = blind+d.blind, reserved+d.reserved, made+d.made
	}
	t.Logf("from seed %d: %d takeovers without knowing all, %d ports of reserves, %d packets out", first, blind, reserved, made)
	if blind < 30 || reserved < 20 || made < 10000 {
		t.Errorf("%d takeovers without knowing all, %d ports of reserves, %d packets: nothing was tested", blind, reserved, made)
	}
}

// TestAnHeirHasItsReserve: who takes over in order from an owner that does not know all knows no more, so it needs its own reserve, and has it: else a move right behind such a takeover would leave the group without ports for the rest of the
// hold time.
func TestAnHeirHasItsReserve(t *testing.T) {
	d := newSettledDuo(t, testPolicy+testGroups+testHold)
	d.await(func() bool { return d.own.c.groups[1].reserve.clean && d.by.c.groups[1].reserve.clean })
	d.restart()
	d.await(func() bool { return d.own.c.groups[1].reserve.open && d.candidate })
	d.handOver()
	if left, _ := d.own.c.Rests(1); !d.known.All || left == 0 || left >= d.own.c.hold() {
		t.Fatalf("the heir: %+v, its ports rest for %d", d.known, left)
	}
	d.await(func() bool { return d.own.c.groups[1].reserve.open })
	d.reserved, d.made, d.refused = 0, 0, 0
	for range 20 {
		d.open()
	}
	if d.made != 20 || d.reserved != 20 || len(d.faults) > 0 {
		t.Errorf("of 20 conversations %d got a port, %d of them one of the reserve, %d were refused: %v", d.made, d.reserved, d.refused, d.faults)
	}
}

// TestAPublicPortHasOneHostWhateverIsKnown: takeovers by nodes that know all, a part or nothing of what was used, restarted ones among them, and several within the hold time. No public port has a second inside
// host within the hold time; and who does not know all makes new mappings all the same, where its reserve is clean.
func TestAPublicPortHasOneHostWhateverIsKnown(t *testing.T) {
	first := *commonSeed
	if first == 0 {
		first = uint64(time.Now().UnixNano())
	}
	blind, reserved, made := 0, 0, 0
	for i := uint64(0); i < 3 || i < 12 && (blind < 8 || reserved < 20); i++ {
		d := blindSchedule(t, first+i, nil)
		t.Logf("seed %d: %d takeovers, %d of them without knowing all, %d packets out, %d found no port, %d got one of a reserve", first+i, d.moved, d.blind, d.made, d.refused, d.reserved)
		for _, f := range d.faults {
			t.Errorf("seed %d: %s", first+i, f)
		}
		blind, reserved, made = blind+d.blind, reserved+d.reserved, made+d.made
	}
	if blind < 8 || reserved < 20 || made < 10000 {
		t.Errorf("%d takeovers without knowing all, %d ports of reserves, %d packets: nothing was tested", blind, reserved, made)
	}
}

// TestFaultsOfReservesAreFound: the same schedules find each rule that is left out.
func TestFaultsOfReservesAreFound(t *testing.T) {
	for name, fault := range map[string]struct {
		from uint64 // the first schedule, near one that finds it
		do   func(*duo, *gate) Known
	}{
		"who takes over believes that it knows all":           {0, func(*duo, *gate) Known { return Known{All: true} }},
		"a reserve is used though something may be in it":     {0, func(d *duo, g *gate) Known { g.c.groups[1].reserve.clean = true; return d.known }},
		"copies are served however old they are":              {6, func(d *duo, g *gate) Known { return Known{All: d.known.All} }},
		"the next owner is not told what the one before knew": {20, func(d *duo, g *gate) Known { g.c.groups[1].rests = 0; return d.known }},
	} {
		for i := range uint64(40) {
			if len(blindSchedule(t, fault.from+i, fault.do).faults) > 0 {
				t.Logf("%s: found by schedule %d", name, fault.from+i)
				break
			} else if i == 39 {
				t.Errorf("%s: 40 schedules, and nothing was found", name)
			}
		}
	}
}

// In a reserve is nothing but what a node has put there that did not know all: who knows all has it closed, and what was mapped there lives on.
func TestReserveOfANode(t *testing.T) {
	w := newWorld(t, 2, testPolicy+testGroups+testHold)
	now := int64(w.now)
	c := NewCommon(w.space, w.shards, 64, 5)
	c.Renew(w.view, now)
	nodes := []string{"a", "b"}
	c.Reserve("b", map[string]Reserve{"east": {nodes, true}, "west": {[]string{"c", "d"}, true}})
	id, _ := w.space.Find([4]byte{192, 0, 2, 16})
	const all = uint64(3) << 62
	closed := func(want uint64, say string) {
		t.Helper()
		for class := range nat.NumClasses {
			for word := range nat.BlockWords {
				if got := w.space.Closed(id, nat.Class(class), word); got != want {
					t.Fatalf("%s: closed are %#x of word %d, want %#x", say, got, word, want)
				}
			}
		}
	}
	kept := func() map[string]Reserve {
		list := c.Reserves()
		c.Unkept()
		return list
	}
	if list := kept(); !list["east"].Clean || list["west"].Clean { // west has other nodes than the file says
		t.Fatalf("taken up: %+v", list)
	}
	c.TakeOver(1, 4, Known{All: true}, now, nil)
	closed(all, "who knows all")
	c.GiveUp(1, 99, now)
	if !c.TakeOver(1, 8, Known{Age: 3e9}, now, nil) || c.TakeOver(1, 8, Known{}, now, nil) {
		t.Error("a copy of 3 s ago is older than the hold time of 2 s, and it is said once")
	}
	closed(1<<64-1, "who does not, before it is on disk that the reserve is used")
	list := c.Reserves()
	if list["east"].Clean {
		t.Fatal("it is to be on disk that the reserve is not clean")
	}
	c.Kept(map[string]Reserve{"east": {nodes, true}})
	closed(1<<64-1, "an older file")
	c.Kept(list)
	closed(^(uint64(1) << 62), "it is on disk")
	if left, open := c.Rests(1); left != c.hold() || !open {
		t.Errorf("rests for %d, reserve %t", left, open)
	}
	for now += 1e7; now < int64(w.now)+2e9+1e8; now += 1e7 {
		c.Turn(now)
	}
	closed(all, "after the hold time")
	if kept()["east"].Clean {
		t.Error("it is clean, and was not unused for the hold time")
	}
	for ; now < int64(w.now)+6e9; now += 1e7 {
		c.Turn(now)
	}
	if !kept()["east"].Clean {
		t.Error("unused for the hold time by an owner that knows all, and not clean")
	}
}

// What else lets all rest, or not: a node that nobody has agreed to, whatever it served before; an address that comes to the group a while later; and not what has left the group.
func TestWhatRestsWhereNobodyKnows(t *testing.T) {
	at := func() (w *world, c *Common, now int64, closed func() bool) {
		w = newWorld(t, 2, testPolicy+testGroups+testHold)
		now = int64(w.now)
		c = NewCommon(w.space, w.shards, 64, 5)
		id, _ := w.space.Find([4]byte{192, 0, 2, 16})
		return w, c, now, func() bool { return w.space.Closed(id, nat.UDP, 8) == 1<<64-1 }
	}
	w, c, now, closed := at()
	c.Renew(w.view, now)
	c.Reserve("b", nil)
	c.TakeOver(1, 5, Known{All: true}, now, nil)
	if closed() {
		t.Error("it knows all")
	}
	if c.TakeOver(1, 6, Known{Age: 1}, now+1e9, nil); closed() {
		t.Error("nobody was the owner in between")
	}
	if c.TakeOver(1, 7, Known{Age: 1, Unagreed: true}, now+2e9, nil); !closed() {
		t.Error("others may have been, for it was cut off and is forced to go on: its ports do not rest")
	}
	// The number was nobody's word, and may have been another's by agreement: the term behind it is not the next one.
	hold := c.hold()
	c.GiveUp(1, 7, now+2e9+2*hold)
	c.Turn(now + 2e9 + 2*hold)
	if c.TakeOver(1, 8, Known{Age: 1}, now+2e9+3*hold, nil); !closed() {
		t.Error("another node may have had all of the term before, and its ports do not rest")
	}
	now += 3 * hold
	w2 := newWorld(t, 2, testPolicy+testHold) // the group goes, and its tenant is served by each node for itself
	if c.Renew(w2.view, now+2e9+1e6); closed() {
		t.Error("what is in no group any more rests, and nothing ends that")
	}
	if w2.view.GroupOf(w2.view.TenantByName("alpha").ID) != nil {
		t.Fatal("nothing was tested")
	}

	w, c, now, closed = at()
	bare := snapshot.View{}
	bare = *w.view
	bare.Publics = nil
	c.Renew(&bare, now)
	c.Reserve("b", nil)
	c.TakeOver(1, 5, Known{Age: -1}, now, nil)
	if c.Renew(w.view, now+1e9); !closed() {
		t.Error("an address that came a second after the takeover does not rest")
	}
	for n := now + 1e9; n < now+25e8; n += 1e7 {
		if c.Turn(n); closed() != (n < now+2e9) {
			t.Fatalf("%d ms after the takeover it rests: %v", (n-now)/1e6, closed())
		}
	}
}

// TestACleanReserveThatIsUsed: what counts as unused does so no more once the owner, which may be of an earlier release, is seen to have something there.
func TestACleanReserveThatIsUsed(t *testing.T) {
	w := newWorld(t, 2, testPolicy+testGroups+testHold)
	now := int64(w.now)
	c := NewCommon(w.space, w.shards, 64, 5)
	c.Renew(w.view, now)
	c.Reserve("b", map[string]Reserve{"east": {[]string{"a", "b"}, true}})
	alpha := uint16(w.view.TenantByName("alpha").ID)
	put := func(number uint16) {
		c.put(&replica.Record{Kind: replica.KindBlock, Group: 1, Tenant: alpha, Block: replica.Block{Addr: [4]byte{192, 0, 2, 16}, Class: uint8(nat.UDP), Number: number}}, uint64(now))
		now += int64(emptyEvery)
		c.Turn(now)
	}
	for number, want := range map[uint16]bool{64*3 + 61: true, 64*3 + 63: true} {
		if put(number); c.groups[1].reserve.clean != want {
			t.Errorf("block %d is another's: clean %v", number, !want)
		}
	}
	if put(64*3 + 62); c.groups[1].reserve.clean {
		t.Error("its own block is in use, and its reserve counts as unused")
	}
	c.news = true
	if list := c.Reserves(); list["east"].Clean {
		t.Error("and so it does on disk")
	}
}

// TestAReserveIsOpenForOneTerm: who gives the group up has lost sight of what it had mapped there, so at its next takeover its reserve is shut, however soon that is.
func TestAReserveIsOpenForOneTerm(t *testing.T) {
	w := newWorld(t, 2, testPolicy+testGroups+testHold)
	now := int64(w.now)
	c := NewCommon(w.space, w.shards, 64, 5)
	c.Renew(w.view, now)
	c.Reserve("b", map[string]Reserve{"east": {[]string{"a", "b"}, true}})
	for i, want := range []bool{true, false} {
		c.TakeOver(1, uint64(4+4*i), Known{Age: 1}, now, nil)
		if list := c.Reserves(); list != nil {
			c.Kept(list)
		}
		if _, open := c.Rests(1); open != want {
			t.Errorf("takeover %d: open %v", i, open)
		}
		c.GiveUp(1, 99, now)
	}
}
