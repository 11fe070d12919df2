package failover

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"time"
)

const ms = int64(time.Millisecond)

// world is a simulated cluster: clocks of several speeds, two networks that lose, delay and break, a log that is agreed on where a majority can
// be reached, data planes with frames in hand. Time is true time in ns; every node has its own.
type world struct {
	now    int64
	seq    int
	queue  events
	dice   *rand.Rand
	boxes  []*box
	voters []string
	groups []Group
	times  Times

	paths   map[[2]string]*path // datagrams, one way
	raft    map[[2]string]bool  // cut for the log, one way
	sync    map[[2]string]bool  // cut for copies
	slow    int64               // the longest delay of a datagram
	calm    bool                // nothing takes long
	stall   int64               // nothing is agreed on before
	hitches int64               // until then owners are sometimes stopped as they hand over
	newest  int64               // when something was agreed on last
	log     []Entry
	states  []State // states[i] is the one after i entries
	plant   plants
	noKick  bool // the data plane does not look before it kicks
	noRing  bool // it says that it has stopped while there is in a ring what may leave

	stillDrains bool // it goes on with what comes for a group that it has said it has stopped for

	wordless bool       // nobody is told of others' messages of the log: where no group is `auto` nothing goes by them
	words    *rand.Rand // when they come: of its own, so that schedules are what they were without them

	judge judge
	trace func(format string, args ...any)
	said  map[Say]int
}

type path struct {
	cut  bool
	loss float64
	late int64 // longer than others
}

// box is a machine.
type box struct {
	w       *world
	name    string
	gateway bool
	rate    float64
	offset  int64
	m       *Node
	gen     int // of the process: what was scheduled for another one does not happen
	up      bool
	paused  bool
	pauses  int
	waiting []waiting
	carried int   // entries
	disk    int   // entries in its log
	tardy   int64 // so long it hears later than others of what is agreed on
	dp      map[string]*plane
	table   map[string]*table
	kept    map[string]Kept // of the process before, which has ended in order
	ended   int64           // when it had
	older   bool            // of a release with another lease, that says nothing of it and does not ask for whose
}

type waiting struct {
	plane bool
	do    func()
}

// plane is a group in the data plane: what the Lease action wrote.
type plane struct {
	until Time
	leave Time // what is in a ring may leave until then, under epoch
	late  Time // what had come may be put into one until then
	epoch uint64
	life  uint64
	turn  uint64
	ring  int  // bursts that the kernel was given, and has not been called for
	hand  int  // bursts behind the last look, not yet on the wire
	busy  bool // it looks again by itself
	waits waits
}

// waits is for whose word a plane waits before it uses what others must not, and since when there was a reason for it.
type waits struct {
	epoch uint64
	since map[string]Time
	whose []string // replaced, never changed
}

// table is a node's copy of the sessions of a group.
type table struct {
	whole  bool
	synced int64 // true time up to which it has everything
	begun  int64 // when a bulk copy began; 0 = none
}

type event struct {
	at  int64
	seq int
	do  func()
}

type events []event

func (q events) less(i, j int) bool {
	return q[i].at < q[j].at || q[i].at == q[j].at && q[i].seq < q[j].seq
}

func (q *events) push(e event) {
	*q = append(*q, e)
	for i := len(*q) - 1; i > 0; {
		up := (i - 1) / 2
		if !q.less(i, up) {
			return
		}
		(*q)[i], (*q)[up] = (*q)[up], (*q)[i]
		i = up
	}
}

func (q *events) pop() event {
	h := *q
	first, n := h[0], len(h)-1
	h[0] = h[n]
	h[n] = event{}
	*q = h[:n]
	for i := 0; ; {
		c := 2*i + 1
		if c >= n {
			return first
		}
		if c+1 < n && q.less(c+1, c) {
			c++
		}
		if !q.less(c, i) {
			return first
		}
		h[i], h[c] = h[c], h[i]
		i = c
	}
}

func newWorld(seed uint64, gateways, witnesses int, groups []Group, times Times) *world {
	w := &world{dice: rand.New(rand.NewPCG(seed, 7)), words: rand.New(rand.NewPCG(seed, 11)), paths: map[[2]string]*path{}, raft: map[[2]string]bool{}, sync: map[[2]string]bool{},
		slow: 2 * ms, states: []State{{}}, said: map[Say]int{}, groups: groups, times: times, trace: func(string, ...any) {}}
	for i := range gateways + witnesses {
		name := string(rune('a' + i))
		if i >= gateways {
			name = "w" + name
		}
		w.boxes = append(w.boxes, &box{w: w, name: name, gateway: i < gateways, table: map[string]*table{}})
		w.voters = append(w.voters, name)
	}
	for _, a := range w.voters {
		for _, b := range w.voters {
			w.paths[[2]string{a, b}] = &path{}
		}
	}
	for _, b := range w.boxes {
		b.rate = 1 + (w.dice.Float64()-0.5)/10
		switch w.dice.IntN(4) { // the ends are where it is hardest
		case 0:
			b.rate = 0.95
		case 1:
			b.rate = 1.05
		}
		b.offset = w.dice.Int64N(1e15)
		b.start()
	}
	w.wordless = !slices.ContainsFunc(groups, func(g Group) bool { return g.Alone == Auto })
	w.agree()
	w.meet()
	return w
}

func (w *world) at(t int64, do func()) {
	w.seq++
	w.queue.push(event{max(t, w.now), w.seq, do})
}

func (w *world) run(until int64) {
	for len(w.queue) > 0 && w.queue[0].at <= until {
		e := w.queue.pop()
		w.now = e.at
		e.do()
	}
	w.now = until
}

func (w *world) box(name string) *box {
	return w.boxes[slices.IndexFunc(w.boxes, func(b *box) bool { return b.name == name })]
}

func (w *world) between(a, b int64) int64 { return a + w.dice.Int64N(b-a+1) }

func (b *box) clock() Time { return Time(b.offset + int64(float64(b.w.now)*b.rate)) }

// after has the process do something a while from now. A paused one does it when it wakes; one that is gone does not.
func (b *box) after(d int64, plane bool, do func()) {
	gen := b.gen
	b.w.at(b.w.now+d, func() {
		switch {
		case gen != b.gen || !b.up:
		case b.paused:
			b.waiting = append(b.waiting, waiting{plane, do})
		default:
			do()
		}
	})
}

func (b *box) start() {
	b.gen++
	b.up, b.paused, b.waiting = true, false, nil
	b.dp = map[string]*plane{}
	life := b.w.dice.Uint64() | 1
	times := b.w.times
	if b.older {
		times.Lease, times.Renew = Earlier, Earlier/5
	}
	b.m = New(Config{Name: b.name, Life: life, Times: times}, b.clock())
	b.m.plant = b.w.plant
	for _, name := range slices.Sorted(maps.Keys(b.kept)) {
		b.step(b.kept[name])
	}
	b.step(Voters{1, b.w.voters})
	b.step(Groups(b.w.groups))
	// What it has on disk for carried out may be older than what it had carried out, and its log may have more.
	if b.carried > 0 && !b.w.calm && b.w.dice.IntN(3) == 0 {
		b.carried -= b.w.dice.IntN(min(b.carried, 3) + 1)
	}
	b.step(Agreed{b.w.states[b.carried], b.claims(false), b.claims(true), b.insync()})
	b.tick()
	if b.gateway {
		defer clear(b.kept)
		for _, g := range b.w.groups {
			b.dp[g.Name] = &plane{life: life}
			b.table[g.Name] = &table{}
			if k, ok := b.kept[g.Name]; ok {
				b.table[g.Name] = &table{whole: true, synced: b.ended}
				b.w.trace("-- %s has kept %s of %v", b.name, g.Name, k.Term)
			}
			b.copies(g.Name)
		}
	}
}

// claims: there is something in its log, carried out by nobody yet for all it knows, that makes another one the owner of something, or an earlier life of itself.
func (b *box) claims(own bool) bool {
	return slices.ContainsFunc(b.w.log[b.carried:b.disk], func(e Entry) bool { return e.Kind == KindClaim && (e.Term.Node == b.name) == own })
}

// insync: the same, that has somebody's copy in sync.
func (b *box) insync() bool {
	return slices.ContainsFunc(b.w.log[b.carried:b.disk], func(e Entry) bool { return e.Kind == KindSync && e.On })
}

func (b *box) tick() {
	b.step(Tick{})
	b.after(b.w.between(3*ms, 6*ms), false, b.tick)
}

func (b *box) kill() {
	b.up, b.paused, b.waiting = false, false, nil
	b.gen++
	b.pauses++
}

func (b *box) restart(after int64) {
	if !b.up {
		return
	}
	b.w.trace("-- %s restarts", b.name)
	b.kill()
	b.w.at(b.w.now+after, func() {
		if !b.up {
			b.start()
		}
	})
}

// leave has the process end in order, hand over what it can within some tenths of a second, and leave the rest to the next one; back is called when that has begun.
func (b *box) leave(after int64, back func()) {
	if !b.up || b.paused || !b.gateway {
		return
	}
	b.w.trace("-- %s is told to end", b.name)
	b.step(Leave{})
	b.after(b.w.between(0, 400*ms), false, func() {
		b.step(Leave{Now: true})
		var end func()
		end = func() {
			if !b.m.Quiet() {
				b.after(2*ms, false, end)
				return
			}
			b.kept, b.ended = map[string]Kept{}, b.w.now
			for name, k := range b.m.Left() {
				if k.At == 0 { // it has served
					k.All = b.w.dice.IntN(4) > 0
				}
				k.At = b.clock()
				b.kept[name] = k
			}
			b.w.trace("-- %s ends, and leaves %v", b.name, b.kept)
			b.kill()
			b.w.at(b.w.now+after, func() {
				if !b.up {
					b.start()
					back()
				}
			})
		}
		b.after(0, false, end)
	})
}

func (b *box) pause(d int64) {
	if !b.up || b.paused {
		return
	}
	b.paused = true
	b.pauses++
	gen := b.gen
	b.w.at(b.w.now+d, func() {
		if gen != b.gen || !b.paused {
			return
		}
		b.paused = false
		list := b.waiting
		b.waiting = nil
		if b.w.dice.IntN(2) == 0 { // threads wake in any order
			slices.SortStableFunc(list, func(x, y waiting) int { return btoi(y.plane) - btoi(x.plane) })
		}
		for i, x := range list {
			if gen == b.gen && b.paused { // stopped again: nothing of it runs
				b.waiting = append(list[i:], b.waiting...)
				return
			}
			if gen == b.gen && b.up {
				x.do()
			}
		}
	})
}

func btoi(b bool) int {
	if b {
		return 1
	}
	return 0
}

// step gives the machine an event and carries out what it says.
func (b *box) step(e Event) {
	for _, a := range b.m.Step(b.clock(), e) {
		switch a := a.(type) {
		case Send:
			b.w.send(b, a)
		case Lease:
			p := b.dp[a.Group]
			if p == nil {
				continue
			}
			p.until, p.leave, p.late, p.epoch, p.turn = a.Until, a.Leave, a.Leave, a.Epoch, a.Turn
			if a.Leave > 0 {
				b.drain(a.Group, a.Epoch)
			}
			if a.Until > 0 && !p.busy {
				p.busy = true
				b.burst(a.Group)
			}
			if a.Until == 0 {
				b.stopped(a.Group, a.Turn)
			}
			if a.Leave > 0 && b.w.now < b.w.hitches && b.w.dice.IntN(8) == 0 { // when it matters most
				b.w.trace("-- %s is stopped as it hands over", b.name)
				b.pause(b.w.between(20*ms, 500*ms))
			}
		case Flush:
			b.flush(a)
		case Announce:
			b.emit(a.Group, a.Epoch, false, "announce")
		case Propose:
			b.w.trace("%s proposes %s %s %v by %v %s %s stale %v after %d", b.name, a.Kind, a.Entry.Group, a.Entry.Term, a.By, a.Cause, a.Why, a.Stale, a.After)
			b.w.propose(b, a.Entry)
		case Tell:
			b.w.trace("%s %s: %s", b.name, a.Group, a.Words)
		}
	}
}

func (w *world) send(b *box, s Send) {
	w.said[s.Kind]++
	p := w.paths[[2]string{b.name, s.To}]
	if p == nil || p.cut || p.loss > 0 && w.dice.Float64() < p.loss {
		return
	}
	to := w.box(s.To)
	if b.older || to.older {
		s.Lease = 0
	}
	n := 1
	if w.dice.IntN(200) == 0 {
		n = 2 // by another path
	}
	for range n {
		d := w.between(ms/10, 1*ms)
		if w.slow > 2*ms {
			d = w.between(ms/10, w.slow)
		}
		w.at(w.now+d+p.late, func() {
			if !to.up || w.paths[[2]string{b.name, s.To}].cut || len(to.waiting) >= 400 { // a socket's buffer
				return
			}
			to.after(0, false, func() { to.step(Received{b.name, s.Message}) })
		})
	}
}

// quorum is the voters that one can reach both ways for the log, itself included, if they are a majority.
func (w *world) quorum(leader *box) []*box {
	var in []*box
	for _, b := range w.boxes {
		if b == leader || !w.raft[[2]string{leader.name, b.name}] && !w.raft[[2]string{b.name, leader.name}] {
			if b.up && !b.paused {
				in = append(in, b)
			}
		}
	}
	if !leader.up || leader.paused || len(in) < len(w.voters)/2+1 {
		return nil
	}
	return in
}

// propose brings an entry to somebody who may lead. There it is lost, agreed on, or agreed on much later.
func (w *world) propose(b *box, e Entry) {
	leader := w.boxes[w.dice.IntN(len(w.boxes))]
	if leader != b && (w.raft[[2]string{b.name, leader.name}] || !leader.up) {
		leader = b
	}
	d := w.between(1*ms, 4*ms)
	if !w.calm && w.dice.IntN(20) == 0 {
		d = w.between(20*ms, 400*ms)
	}
	tries := 0
	var try func()
	try = func() {
		in := w.quorum(leader)
		if in == nil || w.now < w.stall {
			if tries++; tries < 8 && w.dice.IntN(3) > 0 {
				w.at(w.now+w.between(20*ms, 200*ms), try)
			}
			return
		}
		s, err := w.states[len(w.states)-1].Apply(e)
		if err != nil {
			w.trace("refused: %s %v: %v", e.Kind, e.Term, err)
			return
		}
		w.log, w.states, w.newest = append(w.log, e), append(w.states, s), w.now
		w.trace("agreed: %s %s %v by %s %s", e.Kind, e.Group, e.Term, e.By.Node, e.Cause)
		for _, v := range in {
			v.disk = len(w.log)
		}
	}
	w.at(w.now+d, try)
}

// meet tells nodes of each other's messages of the log, as often as who leads sends them, some late.
func (w *world) meet() {
	for i, a := range w.boxes {
		for _, b := range w.boxes[:i] {
			if w.wordless || !a.up || !b.up || a.paused || b.paused || w.raft[[2]string{a.name, b.name}] || w.raft[[2]string{b.name, a.name}] {
				continue
			}
			for _, o := range [][2]*box{{a, b}, {b, a}} {
				at := o[0].clock()
				o[0].after(w.words.Int64N(10*ms), false, func() { o[0].step(Contact{o[1].name, at}) })
			}
		}
	}
	w.at(w.now+50*ms+w.words.Int64N(50*ms), w.meet)
}

// agree brings what is agreed on to all that can hear of it.
func (w *world) agree() {
	for _, b := range w.boxes {
		if !b.up || b.paused || w.now < w.stall && w.dice.IntN(4) > 0 {
			continue
		}
		if b.carried == len(w.log) && (b.m == nil || !b.m.behind && !b.m.past && !b.m.copies) || w.dice.IntN(5) == 0 || w.now < w.newest+b.tardy {
			continue
		}
		for _, l := range w.boxes {
			in := w.quorum(l)
			if !slices.Contains(in, b) {
				continue
			}
			b.carried, b.disk = len(w.log), len(w.log)
			b.step(Agreed{State: w.states[b.carried]})
			break
		}
	}
	w.at(w.now+w.between(1*ms, 4*ms), w.agree)
}

// burst is the worker: a check before it publishes, one before it kicks, and then the kernel has it.
func (b *box) burst(g string) {
	p := b.dp[g]
	if p.busy = May(b.clock(), p.until); !p.busy {
		return
	}
	b.publish(g)
	b.after(b.w.between(4*ms, 7*ms), true, func() { b.burst(g) })
}

// publish puts what was judged into the ring, and kicks.
func (b *box) publish(g string) {
	p := b.dp[g]
	epoch := p.epoch
	p.ring++
	b.after(b.w.between(ms/10, 4*ms), true, func() {
		p.ring--
		if !b.w.noKick && !May(b.clock(), p.until) && !(p.epoch == epoch && May(b.clock(), p.leave)) {
			return
		}
		pauses, took := b.pauses, b.w.between(0, ms/2)
		if b.w.dice.IntN(8) == 0 {
			took = b.w.between(0, 8*ms) // a system call may take long
		}
		p.hand++
		b.after(took, true, func() {
			p.hand--
			b.emit(g, epoch, b.pauses != pauses, "data")
		})
	})
}

// drain has the worker judge what had come when the group began to be handed over, and what comes to it a while later, as it may between workers: as long as it has not said that it has stopped.
func (b *box) drain(g string, epoch uint64) {
	p := b.dp[g]
	for range b.w.dice.IntN(4) {
		b.after(b.w.between(ms/10, 12*ms), true, func() {
			if p.epoch == epoch && May(b.clock(), p.late) {
				b.publish(g)
			}
		})
	}
}

// stopped tells when no worker has anything in hand any more.
func (b *box) stopped(g string, turn uint64) {
	b.after(b.w.between(ms/10, ms), false, func() {
		p := b.dp[g]
		if turn == p.turn && !b.w.stillDrains { // what had come is done with; what comes behind it is dropped
			p.late = 0
		}
		if p.hand > 0 || p.ring > 0 && May(b.clock(), p.leave) && !b.w.noRing { // else what is in a ring is dead
			b.stopped(g, turn)
			return
		}
		b.step(Stopped{g, turn})
	})
}

// flush brings the heir what changed to the end, unless it cannot be reached.
func (b *box) flush(f Flush) {
	b.after(b.w.between(ms, 6*ms), false, func() {
		o := b.w.box(f.Peer)
		if !o.up || o.paused || b.w.sync[[2]string{b.name, o.name}] || b.w.sync[[2]string{o.name, b.name}] {
			return
		}
		if !o.table[f.Group].whole { // it has restarted since: the last changes alone are nothing, and it does not say that it has them
			return
		}
		o.table[f.Group].synced = b.w.now
		b.step(Flushed{f.Group, f.Turn})
	})
}

// waitsLong is for how long a plane waits without another reason, where nothing can be agreed on or somebody may take over without.
const waitsLong = 10000 * ms

// waits looks for whose word it waits from now on: soon = whose copy it is about to call whole. It says who was among them before.
func (p *plane) wait(soon map[string]bool, s Status, now Time) (before []string) {
	w := &p.waits
	if w.epoch != p.epoch {
		w.epoch, w.since, w.whose = p.epoch, map[string]Time{}, nil
		for _, o := range s.InSync { // who handed over
			w.since[o] = now
		}
	}
	before = w.whose
	for _, o := range slices.Concat(slices.Collect(maps.Keys(soon)), s.MayTake) {
		if soon[o] || !s.Alone {
			w.since[o] = now
		}
	}
	w.whose = nil
	for _, o := range slices.Sorted(maps.Keys(w.since)) {
		long := waitsLong
		if !soon[o] && !slices.Contains(s.MayTake, o) && !s.Alone && s.Ownership.Alone == Fence && s.Epoch == p.epoch {
			long = -1 // a gateway goes on for a while, for another reason: this is to hold without
		}
		if now.Sub(w.since[o]) > time.Duration(long) {
			delete(w.since, o)
			continue
		}
		w.whose = append(w.whose, o)
	}
	return before
}

// copies is the owner's side of the copy of sessions, every 50 ms.
func (b *box) copies(g string) {
	b.after(50*ms, false, func() {
		defer b.copies(g)
		p := b.dp[g]
		if !May(b.clock(), p.until) {
			return
		}
		epoch, soon := p.epoch, map[string]bool{}
		defer func() {
			before := p.wait(soon, b.m.Status(g, 0, b.clock()), b.clock())
			for _, o := range slices.Sorted(maps.Keys(soon)) {
				if slices.Contains(before, o) { // all that it uses has been waited for
					b.after(b.w.between(2*ms, 5*ms), false, func() { b.step(Copied{Group: g, Peer: o, Equal: true, Seq: uint64(b.w.now)}) })
				}
			}
		}()
		for _, o := range b.w.boxes {
			if o == b || !o.gateway || !o.up || o.paused || b.w.sync[[2]string{b.name, o.name}] || b.w.sync[[2]string{o.name, b.name}] {
				continue
			}
			t := o.table[g]
			if !t.whole && t.begun == 0 {
				t.begun = b.w.now
			}
			if !t.whole && b.w.now-t.begun < 300*ms {
				continue
			}
			t.whole, t.begun, t.synced = true, 0, b.w.now
			o.after(b.w.between(ms, 3*ms), false, func() { o.step(Marked{g, epoch}) })
			soon[o.name] = true
		}
	})
}

// emit is a frame on the wire, seen by the judge.
func (b *box) emit(g string, epoch uint64, inHand bool, kind string) {
	f := frame{at: b.w.now, node: b.name, gen: b.gen, group: g, epoch: epoch, inHand: inHand, pause: b.pauses, kind: kind, solo: b.m.groups[g].solo > 0}
	if p := b.dp[g]; p != nil && p.waits.epoch == epoch {
		f.waits = p.waits.whose
	}
	b.w.judge.see(b, f)
	t := b.table[g]
	t.whole, t.synced = true, b.w.now
}

// frame is one that was seen on the wire.
type frame struct {
	at     int64
	node   string
	gen    int
	group  string
	epoch  uint64
	inHand bool // the node was stopped between the last look and the wire
	pause  int
	kind   string
	solo   bool     // without anybody's agreement
	waits  []string // whose word the node waits for before it uses what others must not
}

// oldest is how far behind the last frame of the owner before a whole copy may be: two seconds by a slow clock when it was claimed, and as long as an entry takes that is agreed on late.
const oldest = 2110*ms + 400*ms + 8*200*ms + 300*ms

type holder struct {
	group string
	epoch uint64
	node  string
	gen   int
}

// judge looks at frames alone. A frame of an owner after the first one of a later owner is an offence.
type judge struct {
	last      map[string]frame   // by group: the newest frame
	term      map[string]frame   // by group: the first frame of the newest term
	runs      map[string][]frame // by group: the first frame of each run of one node
	burst     map[string]frame   // what was in hand when a node was stopped: once each time
	behind    map[string]int64   // by group: how old the copy was with which the newest owner began, against the last frame of the one before
	worst     map[string]int64   // by group: the longest silence since mark
	mark      int64
	forced    map[string]int64 // by group: when an operator answered for it
	auto      bool             // two may serve until they have met
	faults    []string
	stale     []string
	wait      map[string]bool // groups that no stale copy may serve
	announced int
	heads     map[string]string  // by group: who said last where its addresses are. Hosts send there, and nobody else has anything to forward
	seen      map[holder]bool    // of terms
	any       map[[2]string]bool // groups and nodes that emitted since mark
}

func (j *judge) reset(mark int64) {
	j.mark, j.worst, j.any = mark, map[string]int64{}, map[[2]string]bool{}
}

func (j *judge) offence(format string, args ...any) {
	if len(j.faults) < 8 {
		j.faults = append(j.faults, fmt.Sprintf(format, args...))
	}
}

func (j *judge) see(b *box, f frame) {
	if j.last == nil {
		j.seen, j.behind, j.heads = map[holder]bool{}, map[string]int64{}, map[string]string{}
		j.last, j.term, j.runs, j.burst = map[string]frame{}, map[string]frame{}, map[string][]frame{}, map[string]frame{}
		if j.worst == nil {
			j.reset(0)
		}
	}
	if f.kind == "announce" {
		j.announced++
		j.heads[f.group] = f.node
	}
	last, ok := j.last[f.group]
	term := j.term[f.group]
	// Who served alone and who was agreed on meanwhile may have the same epoch: whoever comes later counts, and the other one must be silent then.
	same := f.node == term.node && f.gen == term.gen && f.epoch == term.epoch
	if ok && !same && f.node == term.node && f.gen == term.gen && f.epoch < term.epoch && f.at-term.at <= 10*ms {
		return // what the same process had in hand as it went on under a later epoch, alone: a system call's time
	}
	next := f.node == term.node && f.gen > term.gen && f.solo && term.solo // another process of who served alone, under an epoch that nobody has agreed on, and has not told its next one
	older := ok && !same && !j.auto && (f.epoch < term.epoch && !next || j.seen[holder{f.group, f.epoch, f.node, f.gen}])
	if !same {
		j.seen[holder{f.group, f.epoch, f.node, f.gen}] = true
	}
	if older && f.inHand {
		key := fmt.Sprint(f.group, f.node, f.pause)
		if first, again := j.burst[key]; !again || first.at == f.at && f.kind == "data" {
			j.burst[key] = f
			return // the burst in hand
		}
	}
	if older && f.at > j.forced[f.group] {
		j.offence("%.3f ms: %s of %s under epoch %d in group %s, which %s has served since %.3f ms under epoch %d", float64(f.at)/1e6, f.kind, f.node, f.epoch, f.group, term.node, float64(term.at)/1e6, term.epoch)
	}
	if older {
		return
	}
	if !ok || !same {
		j.term[f.group] = f
		// What was used before its last digest it has been told of with that. Who serves without anybody's agreement (auto) tells nobody.
		if k := b.m.Knows(f.group); ok && k.All && last.node != f.node && !last.solo && last.at > b.table[f.group].synced && !slices.Contains(last.waits, f.node) && !j.auto && f.at > j.forced[f.group] {
			j.offence("%.3f ms: %s serves %s as one that knows all, and %s did not wait for its word at %.3f ms", float64(f.at)/1e6, f.node, f.group, last.node, float64(last.at)/1e6)
		}
		if t := b.table[f.group]; ok {
			j.behind[f.group] = last.at - t.synced
		}
		if t := b.table[f.group]; ok && j.wait[f.group] && !j.nothingLeft(b, f) && f.at > j.forced[f.group] && (!t.whole || last.at-t.synced > oldest) {
			what := "that is not whole"
			if t.whole {
				what = fmt.Sprintf("%.0f ms behind the owner before", float64(last.at-t.synced)/1e6)
			}
			j.stale = append(j.stale, fmt.Sprintf("%.3f ms: %s serves %s with a copy %s", float64(f.at)/1e6, f.node, f.group, what))
		}
	}
	if ok && f.at > j.mark {
		j.worst[f.group] = max(j.worst[f.group], f.at-max(last.at, j.mark))
	}
	if !ok || last.node != f.node {
		j.runs[f.group] = append(j.runs[f.group], f)
	}
	if f.at > j.mark {
		j.any[[2]string{f.group, f.node}] = true
	}
	j.last[f.group] = f
}

// nothingLeft: an owner that has restarted may begin with no copy where nobody that the log named when it claimed has one. What a node had of the copy before it restarted
// itself is gone.
func (j *judge) nothingLeft(b *box, f frame) bool {
	was := b.w.states[b.carried].Groups[f.group] // where nobody could agree
	for i, e := range b.w.log {
		if e.Kind == KindClaim && e.Group == f.group && e.Term.Epoch == f.epoch {
			was = b.w.states[i].Groups[f.group]
		}
	}
	return was.Node == f.node && !slices.ContainsFunc(was.InSync, func(o string) bool { return b.w.box(o).table[f.group].whole })
}

func (w *world) isolate(name string, cut bool) {
	for _, o := range w.voters {
		if o != name {
			w.link(name, o, cut)
			w.link(o, name, cut)
		}
	}
}

// link cuts or mends one way, for everything.
func (w *world) link(a, b string, cut bool) {
	w.paths[[2]string{a, b}].cut = cut
	w.raft[[2]string{a, b}] = cut
	w.sync[[2]string{a, b}] = cut
}

// owner is who emitted last.
func (w *world) owner(g string) string { return w.judge.last[g].node }
