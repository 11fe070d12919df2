package pipeline

import (
	"testing"
	"time"

	"demarc/gateway/nat"
	"demarc/gateway/replica"
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
	c.TakeOver(1, 4, Known{All: true}, now)
	closed(all, "who knows all")
	c.GiveUp(1, now)
	if !c.TakeOver(1, 8, Known{Age: 3e9}, now) || c.TakeOver(1, 8, Known{}, now) {
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
