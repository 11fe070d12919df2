package replica

import (
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"testing"
	"time"

	"demarc/gateway/flow"
)

var (
	schedules = flag.Int("schedules", 40, "how many random schedules TestSchedules goes through")
	seed      = flag.Uint64("seed", 0, "of the first schedule; 0 = by the clock. It is printed")
	showTrace = flag.Bool("trace", false, "print what happens in a schedule")
)

// schedule is a second and a half of faults, then all is mended, and owner and standbys must come to have the same.
func schedule(seed uint64, plant plants, trace func(string, ...any)) []string {
	dice := rand.New(rand.NewPCG(seed, 5))
	w := newWorld(seed, 2+dice.IntN(2), plant)
	if trace != nil {
		w.trace = func(f string, a ...any) { trace(fmt.Sprintf("%5d ", w.now/msec)+f, a...) }
	}
	w.connectAll()
	for w.now < 1500*msec {
		w.turn(1 + dice.IntN(6))
		if dice.IntN(60) == 0 {
			w.strike(dice)
		}
		if dice.IntN(40) == 0 {
			w.connectAll()
		}
		if dice.IntN(30) == 0 { // somebody hears who owns what
			n := w.nodes[dice.IntN(len(w.nodes))]
			for g := uint8(1); g <= 2; g++ {
				if n.up && n != w.owner[g] && n.epoch[g] != w.epoch[g] {
					n.follow(g)
				}
			}
		}
	}
	w.mend()
	for range 300 { // traffic goes on while copies are made
		w.turn(1)
	}
	for i := 0; i < 300 || !w.whole() && i < 20000; i++ {
		w.turn(0)
	}
	w.judge()
	return w.faults
}

func (w *world) strike(dice *rand.Rand) {
	n := w.nodes[dice.IntN(len(w.nodes))]
	g := uint8(1 + dice.IntN(2))
	switch dice.IntN(8) {
	case 0:
		w.trace("%s is killed", n.name)
		if n.up {
			n.kill()
		}
		for g := uint8(1); g <= 2; g++ {
			if w.owner[g] == n {
				for _, o := range w.nodes {
					if o.up {
						w.elect(g, o)
						break
					}
				}
			}
		}
	case 1:
		if !n.up {
			w.trace("%s starts", n.name)
			n.start()
		}
	case 2, 3:
		if n.up && w.owner[g] != n {
			w.elect(g, n)
		}
	case 4:
		for _, c := range w.conns {
			if c.open && dice.IntN(2) == 0 {
				w.trace("%s to %s is cut", c.from.name, c.to.name)
				c.close()
				if dice.IntN(2) == 0 { // what is on its way comes late, maybe after a new connection was made
					for i := range c.late {
						c.late[i].at += int64(dice.IntN(300)) * msec
					}
				} else {
					c.late = nil
				}
			}
		}
	case 5:
		w.delay = int64(1+dice.IntN(200)) * msec / 4
	case 6:
		if n.up {
			w.trace("%s loses some of what it has copied", n.name)
			n.lose()
		}
	case 7:
		if n.up && w.owner[g] != n {
			n.lie(g, w.epoch[g]+1+uint64(dice.IntN(1<<20)))
		}
	}
}

// whole reports whether every standby says that its copies are.
func (w *world) whole() bool {
	for g := uint8(1); g <= 2; g++ {
		for _, n := range w.nodes {
			if n != w.owner[g] {
				if ok, _ := n.recv.Whole(g); !ok {
					return false
				}
			}
		}
	}
	return true
}

// judge holds the tables of owner and standbys against each other, by what is in them and by digest.
func (w *world) judge() {
	for g := uint8(1); g <= 2; g++ {
		owner := w.owner[g]
		want, wantSum := owner.all(g)
		for _, n := range w.nodes {
			if n == owner {
				continue
			}
			if ok, why := n.recv.Whole(g); !ok {
				w.fault("group %d at %s is not whole: %s", g, n.name, why)
			}
			have, sum := n.all(g)
			if !maps.Equal(have, want) {
				w.fault("group %d: %s has %d sessions, its owner %s %d", g, n.name, len(have), owner.name, len(want))
			} else if sum != wantSum {
				w.fault("group %d: %s has the same sessions as %s, and another digest", g, n.name, owner.name)
			}
			for i, s := range owner.senders[n.name] {
				if a, b := s.Digest(g); !w.plant.earlyDigest {
					if c, d := s.Recount(g); a != c || b != d {
						w.fault("group %d: stream %d of %s says %d records, %d are there", g, i, owner.name, b, d)
					}
				}
			}
		}
	}
	for _, n := range w.nodes {
		w.stats.Copies += n.recv.Stats.Copies
		w.stats.Records += n.recv.Stats.Records
		w.stats.Older += n.recv.Stats.Older
		if m := n.recv.Stats.Mismatches; m > 0 {
			w.fault("%s found %d digests different, and nothing has damaged its tables", n.name, m)
		}
	}
}

type what struct {
	key   flow.Key
	state uint8
	class uint8
	port  uint16
}

// all is what a node has of a group, and the sum of its hashes.
func (n *node) all(g uint8) (map[what]bool, uint64) {
	out, sum := map[what]bool{}, uint64(0)
	for i, sh := range n.shards {
		for slot := range sh.slots {
			if e := &sh.slots[slot]; e.live && groupOf(e.tenant) == g {
				out[what{keyOf(e.tenant, &e.s), e.s.State, e.s.Class, e.s.XlatSPort}] = true
				sum += sink{n}.read(PlaceAt(uint8(i), uint32(slot), e.gen)).Hash(1, uint64(e.tenant))
			}
		}
	}
	return out, sum
}

// TestSchedules: whatever links and nodes do, in the end each standby has what the owner has, by count, content and digest; and no digest differs on the way.
func TestSchedules(t *testing.T) {
	first := *seed
	if first == 0 {
		first = uint64(time.Now().UnixNano())
	}
	t.Logf("seed %d", first)
	for i := range *schedules {
		s := first + uint64(i)
		var trace func(string, ...any)
		if *showTrace {
			trace = t.Logf
		}
		if faults := schedule(s, plants{}, trace); len(faults) > 0 {
			for _, f := range faults {
				t.Errorf("seed %d: %s", s, f)
			}
			return
		}
	}
}

// TestFaultsAreFound: each fault that is put in is found by the schedules, within as many as a run of the tests goes through.
func TestFaultsAreFound(t *testing.T) {
	for _, c := range []struct {
		name  string
		plant plants
	}{
		{"a copy ignores what goes meanwhile", plants{deafBulk: true}},
		{"the epoch is not compared", plants{anyEpoch: true}},
		{"the digest is of another moment than its place in the stream", plants{earlyDigest: true}},
		{"what is older is taken too", plants{anyOrder: true}},
		{"who may own a group is not asked", plants{anyPeer: true}},
		{"what a standby has ended by itself is not missed", plants{deafLost: true}},
	} {
		t.Run(c.name, func(t *testing.T) {
			for i := range uint64(*schedules) {
				if faults := schedule(i, c.plant, nil); len(faults) > 0 {
					t.Logf("found by schedule %d: %s", i, faults[0])
					return
				}
			}
			t.Errorf("%d schedules, and nothing was found", *schedules)
		})
	}
}
