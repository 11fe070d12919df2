package failover

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"runtime/debug"
	"slices"
	"strings"
	"testing"
	"time"
)

var (
	schedules = flag.Int("schedules", 150, "how many random schedules TestSchedules goes through, of each kind of cluster")
	seed      = flag.Uint64("seed", 0, "of the first schedule; 0 = by the clock. It is printed")
	showTrace = flag.Bool("trace", false, "print what happens in a schedule")
)

// Garbage is most of what schedules cost.
func TestMain(m *testing.M) {
	debug.SetGCPercent(1000)
	os.Exit(m.Run())
}

// shape is a kind of cluster.
type shape struct {
	name                string
	gateways, witnesses int
	alone               []Alone
}

var shapes = []shape{
	{"pair and witness", 2, 1, []Alone{"", Fence, Keep}},
	{"three gateways", 3, 0, []Alone{"", Fence, Keep}},
	{"two alone", 2, 0, []Alone{"", Fence, Keep}},
	{"two alone that may split", 2, 0, []Alone{Auto}},
}

const (
	healAt  = 6000 * ms
	quietAt = healAt + 4000*ms // longer than a stale node waits for one that is in sync
	faultsN = 10
)

// faulty is a fault of the data plane.
type faulty int

const (
	sound faulty = iota
	noKick
	noRing
	stillDrains
)

// schedule is one run: ten faults in five seconds, then all is mended and it must be well.
func schedule(s uint64, sh shape, plant plants, data faulty, trace func(string, ...any)) (offences []string, w *world) {
	dice := rand.New(rand.NewPCG(s, 11))
	var names []string
	for i := range sh.gateways {
		names = append(names, string(rune('a'+i)))
	}
	var groups []Group
	wait := map[string]bool{}
	for i := range 2 {
		nodes := append(slices.Clone(names[i%len(names):]), names[:i%len(names)]...)
		g := Group{Name: fmt.Sprint("g", i), Nodes: nodes, Alone: sh.alone[dice.IntN(len(sh.alone))], Stale: dice.IntN(2) == 0, Prefer: dice.IntN(2) == 0}
		wait[g.Name] = !g.Stale
		groups = append(groups, g)
	}
	w = newWorld(s, sh.gateways, sh.witnesses, groups, Default)
	if trace != nil {
		w.trace = func(f string, a ...any) { trace("%9.3f "+f, append([]any{float64(w.now) / 1e6}, a...)...) }
	}
	w.plant, w.noKick, w.noRing, w.stillDrains, w.judge.wait, w.judge.forced = plant, data == noKick, data == noRing, data == stillDrains, wait, map[string]int64{}
	w.hitches = healAt
	w.judge.auto = slices.Contains(sh.alone, Auto)
	for _, b := range w.boxes {
		if b.older = dice.IntN(4) == 0; b.older { // in the midst of an upgrade
			b.kill()
			b.start()
		}
		b.m.plant = plant
	}
	for range faultsN {
		f := &fault{w: w, dice: dice, groups: groups, plant: plant}
		w.at(w.between(1000*ms, healAt-300*ms), f.strike)
	}
	w.at(healAt, w.heal)
	w.run(quietAt)
	for _, g := range groups { // where nobody may take over an operator does
		if w.now-w.judge.last[g.Name].at > 300*ms && wait[g.Name] {
			w.judge.forced[g.Name] = w.now + 1500*ms
			w.trace("an operator takes %s to %s", g.Name, g.Nodes[0])
			w.box(g.Nodes[0]).step(Take{g.Name})
		}
	}
	w.run(quietAt + 1500*ms)
	w.judge.reset(w.now)
	w.run(w.now + 500*ms)
	offences = append(w.judge.faults, w.judge.stale...)
	for _, g := range groups {
		who := 0
		for _, n := range names {
			if w.judge.any[[2]string{g.Name, n}] {
				who++
			}
		}
		worst := max(w.judge.worst[g.Name], w.now-max(w.judge.last[g.Name].at, w.judge.mark))
		runs := 0
		for _, f := range w.judge.runs[g.Name] {
			if f.at > w.judge.mark {
				runs++
			}
		}
		if who < 1 || runs > 1 || worst > 60*ms {
			offences = append(offences, fmt.Sprintf("in the end group %s (%+v) is served by %d nodes in %d turns, the longest silence is %d ms", g.Name, g, who, runs, worst/ms))
		}
		if o, head := w.owner(g.Name), w.judge.heads[g.Name]; o != head { // nobody would see a frame of it: hosts send elsewhere
			offences = append(offences, fmt.Sprintf("in the end group %s (%+v) is served by %s, and hosts were last told to send to %s", g.Name, g, o, head))
		}
	}
	return offences, w
}

// fault is one thing that goes wrong, for a while.
type fault struct {
	w      *world
	dice   *rand.Rand
	groups []Group
	plant  plants
}

func (w *world) heal() {
	w.trace("all is mended")
	for k, p := range w.paths {
		p.cut, p.loss, p.late = false, 0, 0
		delete(w.raft, k)
		delete(w.sync, k)
	}
	w.slow, w.stall = 2*ms, 0
	for _, b := range w.boxes {
		if !b.up {
			b.start()
		} else {
			for _, c := range Conditions {
				b.step(Condition{"", c, 0})
			}
		}
		for _, later := range []int64{0, 50 * ms, 500 * ms, 3000 * ms} { // the last one when nobody is stopped any more
			w.at(w.now+later, func() { w.propose(b, Entry{Kind: KindDrain, Node: b.name}) })
		}
	}
}

// strike does it. Owners are struck more often than others.
func (f *fault) strike() {
	w, dice := f.w, f.dice
	g := f.groups[dice.IntN(len(f.groups))]
	victim := w.boxes[dice.IntN(len(w.boxes))]
	if o := w.owner(g.Name); o != "" && dice.IntN(2) == 0 {
		victim = w.box(o)
	}
	other := w.boxes[dice.IntN(len(w.boxes))]
	long := w.between(50*ms, 1500*ms)
	mend := func(d int64, do func()) {
		w.at(w.now+d, func() {
			if w.now < healAt {
				do()
			}
		})
	}
	switch dice.IntN(22) {
	case 0, 1, 2: // a process dies; its parent may say so; it comes back, sometimes at once
		if !victim.up {
			return
		}
		proof := dice.IntN(2) == 0
		w.trace("-- %s is killed, its parent lives: %v", victim.name, proof)
		owns := victim.m.Owns()
		victim.kill()
		if proof {
			for name, t := range owns {
				for _, o := range w.voters {
					if o != victim.name {
						w.send(victim, Send{o, Message{Kind: Release, Group: name, Term: t}})
					}
				}
			}
		}
		back := w.between(200*ms, 2000*ms)
		if dice.IntN(2) == 0 {
			back = w.between(5*ms, 120*ms)
		}
		w.at(w.now+back, func() {
			if !victim.up {
				w.trace("-- %s starts", victim.name)
				victim.start()
			}
		})
	case 3, 4: // stopped and continued, dense around the lease
		d := w.between(50*ms, 3000*ms)
		if dice.IntN(2) == 0 {
			d = w.between(90*ms, 260*ms)
		}
		w.trace("-- %s is stopped for %d ms", victim.name, d/ms)
		victim.pause(d)
	case 5, 6: // alone
		w.trace("-- %s is isolated for %d ms", victim.name, long/ms)
		w.isolate(victim.name, true)
		mend(long, func() { w.isolate(victim.name, false) })
	case 7, 8: // one link, one way or both
		if other == victim {
			return
		}
		both := dice.IntN(2) == 0
		w.trace("-- link %s to %s is cut for %d ms, both ways %v", victim.name, other.name, long/ms, both)
		for _, on := range []bool{true, false} {
			do := func() {
				w.link(victim.name, other.name, on)
				if both {
					w.link(other.name, victim.name, on)
				}
			}
			if on {
				do()
			} else {
				mend(long, do)
			}
		}
	case 9: // only the log's links, or only the copies'
		set := w.raft
		if dice.IntN(2) == 0 {
			set = w.sync
		}
		w.trace("-- %s has no log or no copies for %d ms", victim.name, long/ms)
		for _, o := range w.voters {
			if o != victim.name {
				set[[2]string{o, victim.name}] = true
				mend(long, func() { delete(set, [2]string{o, victim.name}) })
			}
		}
	case 10: // loss everywhere
		part := dice.Float64() * 0.4
		w.trace("-- %.0f%% are lost for %d ms", part*100, long/ms)
		for _, p := range w.paths {
			p.loss = part
			mend(long, func() { p.loss = 0 })
		}
	case 11: // delay, so that messages overtake each other
		w.slow = w.between(5*ms, 130*ms)
		w.trace("-- messages take up to %d ms for %d ms", w.slow/ms, long/ms)
		mend(long, func() { w.slow = 2 * ms })
	case 12: // an election, a slow disk
		w.stall = w.now + w.between(50*ms, 800*ms)
		w.trace("-- nothing is agreed on for %d ms", (w.stall-w.now)/ms)
		o := w.owner(g.Name)
		if o == "" || dice.IntN(2) == 0 {
			return
		}
		cut, alone := w.between(0, w.stall-w.now), w.between(0, 100*ms)
		w.trace("-- and %s has no copies %d ms from now, and is isolated %d ms behind that", o, cut/ms, (w.stall-w.now-cut+alone)/ms)
		w.at(w.now+cut, func() {
			for _, n := range w.voters {
				if n != o && w.now < healAt {
					w.sync[[2]string{n, o}] = true
					mend(long, func() { delete(w.sync, [2]string{n, o}) })
				}
			}
		})
		w.at(w.stall+alone, func() {
			w.isolate(o, w.now < healAt)
			mend(long, func() { w.isolate(o, false) })
		})
	case 13: // a condition
		if !victim.up || victim.paused {
			return
		}
		c := Conditions[dice.IntN(len(Conditions))]
		w.trace("-- %s has %s", victim.name, c)
		victim.step(Condition{"", c, 1 + dice.IntN(2)})
		gen := victim.gen
		mend(long, func() {
			if victim.gen == gen {
				victim.after(0, false, func() { victim.step(Condition{"", c, 0}) })
			}
		})
	case 14: // an operator moves
		to := g.Nodes[dice.IntN(len(g.Nodes))]
		if o := w.owner(g.Name); o != "" && w.box(o).up && !w.box(o).paused {
			w.trace("-- an operator moves %s from %s to %s", g.Name, o, to)
			w.box(o).step(Move{g.Name, to})
		}
	case 15, 16: // answers to a node come late, and then it is not heard any more
		late := w.between(20*ms, 120*ms)
		w.trace("-- what is sent to %s comes %d ms late, and soon it is not heard for %d ms", victim.name, late/ms, long/ms)
		for _, o := range w.voters {
			in, out := w.paths[[2]string{o, victim.name}], [2]string{victim.name, o}
			if o == victim.name {
				continue
			}
			in.late = late
			w.at(w.now+w.between(100*ms, 300*ms), func() { w.link(out[0], out[1], w.now < healAt) })
			mend(long+300*ms, func() {
				in.late = 0
				w.link(out[0], out[1], false)
			})
		}
	case 17, 18: // an owner and a standby do not hear each other, and whoever the owner relies on restarts
		o := w.owner(g.Name)
		standbys := slices.DeleteFunc(slices.Clone(g.Nodes), func(n string) bool { return n == o })
		if o == "" {
			return
		}
		other = w.box(standbys[dice.IntN(len(standbys))])
		w.trace("-- link %s to %s is cut, and the others restart", o, other.name)
		w.link(o, other.name, true)
		w.link(other.name, o, true)
		mend(w.between(300*ms, 900*ms), func() {
			w.link(o, other.name, false)
			w.link(other.name, o, false)
		})
		for _, third := range w.boxes {
			if third.name != o && third != other {
				w.at(w.now+w.between(170*ms, 350*ms), func() { third.restart(w.between(ms, 20*ms)) })
			}
		}
	case 20, 21: // a process ends in order, sometimes while nobody can take over; it comes back, and sometimes somebody has and dies
		back := w.between(5*ms, 120*ms)
		if dice.IntN(2) == 0 {
			back = w.between(200*ms, 2000*ms)
		}
		others := func(back int64) {
			for _, o := range w.boxes {
				if o.gateway && o != victim && o.up && w.now < healAt {
					w.trace("-- %s is killed", o.name)
					o.kill()
					w.at(w.now+back, func() {
						if !o.up {
							o.start()
						}
					})
				}
			}
		}
		again := int64(0)
		switch dice.IntN(4) {
		case 0, 1: // they take over with what they have, and die again as it comes back, before it has a copy of that
			back, again = w.between(1000*ms, 2000*ms), w.between(100*ms, 300*ms)
			fallthrough
		case 2:
			others(w.between(300*ms, 600*ms))
		}
		victim.leave(back, func() {
			if again > 0 {
				w.at(w.now+again, func() { others(w.between(500*ms, 1500*ms)) })
			}
		})
	case 19: // a node is drained, and comes back
		w.trace("-- %s is drained for %d ms", victim.name, long/ms)
		w.propose(victim, Entry{Kind: KindDrain, Node: victim.name, On: true})
		mend(long, func() { w.propose(victim, Entry{Kind: KindDrain, Node: victim.name}) })
	}
}

// TestSchedules: never two owners, never a stale one where that is not wanted, and in the end all groups are served.
func TestSchedules(t *testing.T) {
	first := *seed
	if first == 0 {
		first = uint64(time.Now().UnixNano())
	}
	for _, sh := range shapes {
		t.Run(sh.name, func(t *testing.T) {
			t.Parallel()
			bad, moves := 0, 0
			for k := range *schedules {
				s := first + uint64(k)
				var trace func(string, ...any)
				if *showTrace {
					trace = func(f string, a ...any) { t.Logf(f, a...) }
				}
				offences, w := schedule(s, sh, plants{}, sound, trace)
				for _, r := range w.judge.runs {
					moves += len(r) - 1
				}
				if len(offences) > 0 {
					bad++
					t.Errorf("seed %d:\n%s", s, strings.Join(offences, "\n"))
					if bad == 5 {
						t.Fatal("and so on")
					}
				}
			}
			t.Logf("seeds %d and on: %d schedules, the owner changed %d times", first, *schedules, moves)
			if moves < *schedules {
				t.Errorf("%d moves in %d schedules: nothing happened in them", moves, *schedules)
			}
		})
	}
}

// TestPlantedFaults judges the judge: each fault is found by the schedules that TestSchedules makes, from seeds that are the same each time.
func TestPlantedFaults(t *testing.T) {
	for _, c := range []struct {
		name  string
		plant plants
		data  faulty
		from  uint64 // a seed near one that finds it, where one in hundreds does
	}{
		{"the lease counts from the reply", plants{fromReply: true}, sound, 1000},
		{"no wait after a restart", plants{noWait: true}, sound, 1000},
		{"no check before the kick", plants{}, noKick, 1000},
		{"the epoch is not compared", plants{noEpoch: true}, sound, 1000},
		{"a standby announces", plants{earlyWord: true}, sound, 1000},
		{"a stale node takes over", plants{staleTakes: true}, sound, 1000},
		{"taken over from an owner that serves on alone", plants{keepTakes: true}, sound, 1000},
		{"released before the workers have stopped", plants{early: true}, sound, 1000},
		{"what is queued leaves behind the lease", plants{overdrawn: true}, sound, 1000},
		{"released while what is queued may leave", plants{}, noRing, 1000},
		{"what comes later is carried though it was said to have stopped", plants{}, stillDrains, 1000},
		{"one promise is enough", plants{minority: true}, sound, 1000},
		{"a restarted node takes its old term for its own", plants{reborn: true}, sound, 1000},
		{"an owner that has restarted does not look who has a copy", plants{bareTakes: true}, sound, 1000},
		{"what the process before has left is good whoever had the group since", plants{keptAnyway: true}, sound, 1000},
		{"a term that another one still has is promised", plants{overlap: true}, sound, 1000},
		{"a promise is shorter than an owner of an earlier release relies on", plants{ownLease: true}, sound, 1000},
		{"no word is waited for of whose copy was proposed", plants{hasty: true}, sound, 2000},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			for k := range plantedWithin {
				sh := shapes[k%2] // two alone cannot agree on anything when one is gone
				if offences, _ := schedule(c.from+uint64(k), sh, c.plant, c.data, nil); len(offences) > 0 {
					t.Logf("schedule %d, %s: %s", k+1, sh.name, offences[0])
					return
				}
			}
			t.Errorf("not found in %d schedules", plantedWithin)
		})
	}
}

const plantedWithin = 200
