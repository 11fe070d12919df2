package replica

import (
	"fmt"
	"math/bits"
	"math/rand/v2"
	"slices"
	"testing"
	"time"
)

// A model of ports: blocks of four, one public address. Mappings go to the standby by one stream, blocks by another.
const (
	bPorts  = 4
	bBlocks = 96
	bHold   = 1500 * msec
)

type port struct {
	host int // 0 = nobody's
	gen  uint32
	rest int64 // until then nobody's but this host's: it rests
}

type pnode struct {
	w      *pworld
	name   string
	ports  [bBlocks * bPorts]port
	known  [bBlocks]bool // as standby: the owner has it open
	blocks *Blocks
	pool   *Pool
	closed [bBlocks/64 + 1]uint64
	seq    [bBlocks]uint64 // as which record a block was written first
	rested int64           // when what was open before a takeover may be used again
	since  [bBlocks]int64  // when a block was claimed
	maps   *Sender
	opens  *Sender
	recv   *Receiver
	life   uint64
}

type pmaps struct{ n *pnode }

func (x pmaps) Slots() uint32 { return bBlocks * bPorts }
func (x pmaps) Look(slot uint32) Look {
	p := &x.n.ports[slot]
	l := Look{Gen: p.gen, Early: true}
	if p.host != 0 {
		l.Group = 1
	}
	return l
}
func (x pmaps) Fill(slot uint32, r *Record) {
	r.Kind, r.Session.XlatSPort, r.Session.OrigSPort = KindSession, uint16(slot), uint16(x.n.ports[slot].host)
	r.Session.Flags = FlagMapped
}
func (x pmaps) Name(NameKind, uint16) string { return "t" }

type popens struct{ n *pnode }

func (x popens) Slots() uint32 { return bBlocks }
func (x popens) Look(slot uint32) Look {
	l := Look{Gen: x.n.blocks.Gen(slot), Early: true}
	if x.n.blocks.Told(slot) {
		l.Group = 1
	}
	return l
}
func (x popens) Fill(slot uint32, r *Record)  { r.Kind, r.Block.Number = KindBlock, uint16(slot) }
func (x popens) Name(NameKind, uint16) string { return "t" }
func (x popens) Anew()                        { x.n.seq = [bBlocks]uint64{} }
func (x popens) Wrote(slot uint32, seq uint64) {
	if x.n.seq[slot] == 0 {
		x.n.seq[slot] = seq
	}
}

// The sink of the standby.
func (n *pnode) Local(NameKind, string) (uint16, bool) { return 0, true }
func (n *pnode) Sweep(uint8, func(Place) bool)         {}
func (n *pnode) Lost() uint64                          { return 0 }
func (n *pnode) Do(ops []Op, c *Context) {
	for i := range ops {
		op := &ops[i]
		if op.Do == Live {
			continue
		}
		if op.At != NoPlace {
			c.Release(op.At)
			op.Old = c.Hash(n.read(op.At))
			if op.At.Shard() == 0 {
				p := &n.ports[op.At.Slot()]
				p.host, p.rest = 0, n.w.now+bHold
				p.gen++
			} else {
				n.known[op.At.Slot()] = false
			}
		}
		if op.Do != Put {
			continue
		}
		if s := op.Rec.Session; op.Rec.Kind == KindSession {
			op.At = PlaceAt(0, uint32(s.XlatSPort), 0)
			n.ports[s.XlatSPort].host = int(s.OrigSPort)
		} else {
			op.At = PlaceAt(1, uint32(op.Rec.Block.Number), 0)
			n.known[op.Rec.Block.Number] = true
		}
		op.New = c.Hash(n.read(op.At))
		op.Outcome = Taken
		c.Claim(op.At)
	}
}

// read is the record that stands at a place.
func (n *pnode) read(p Place) *Record {
	r := &Record{}
	if p.Shard() == 0 {
		pmaps{n}.Fill(p.Slot(), r)
	} else {
		popens{n}.Fill(p.Slot(), r)
	}
	return r
}

type pworld struct {
	dice      *rand.Rand
	now       int64
	own, by   *pnode // owner and standby
	candidate bool
	guard     bool
	epoch     uint64
	delay     int64
	late      []item2
	plant     Plant
	last      [bBlocks * bPorts]struct { // the judge's: who had the port last, and until when
		host  int
		until int64
	}
	faults         []string
	moved, refused int
	made           int
}

func (w *pworld) fault(f string, a ...any) {
	w.faults = append(w.faults, fmt.Sprintf("%d ms: ", w.now/msec)+fmt.Sprintf(f, a...))
}

func (w *pworld) node(name string) *pnode {
	n := &pnode{w: w, name: name, blocks: &Blocks{Plant: w.plant}, life: w.dice.Uint64() | 1}
	n.blocks.Grow(len(n.closed))
	n.pool = &Pool{To: uint32(len(n.closed)), First: 1<<64 - 1, Least: 3, Most: 4, Look: n.look, Close: func(w uint32, c uint64) { n.closed[w] = c },
		Over: func(uint32) uint64 {
			if w.now >= n.rested {
				return 1<<64 - 1
			}
			return 0
		},
		Known: func(s uint32) bool { return n.seq[s] != 0 && n.seq[s] < n.opens.Acked() },
		Mark:  func(s uint32) { n.opens.Mark(s, true) }, Gone: func(s uint32) { n.seq[s] = 0; n.opens.Gone(s) }}
	lim := Limits{Digest: 100 * time.Millisecond, Pause: time.Millisecond}
	n.maps = NewSender(pmaps{n}, bBlocks*bPorts, 0, 2, n.life, 1, lim)
	n.opens = NewSender(popens{n}, bBlocks, 1, 2, n.life, 1, lim)
	n.recv = NewReceiver(n, 1<<14)
	return n
}

func (w *pworld) link() {
	for i, s := range []*Sender{w.own.maps, w.own.opens} {
		a := w.by.recv.Hello(w.own.name, uint8(i))
		s.Link(w.now, &a)
	}
}

// free reports whether nothing in a block is used or rests.
func (n *pnode) free(slot uint32) bool {
	for i := range bPorts {
		if p := &n.ports[slot*bPorts+uint32(i)]; p.host != 0 || p.rest > n.w.now {
			return false
		}
	}
	return true
}

func (n *pnode) look(word uint32) (free, used uint64) {
	for i := range uint32(64) {
		switch slot := word*64 + i; {
		case slot >= bBlocks:
		case n.free(slot):
			free |= 1 << i
		default:
			used |= 1 << i
		}
	}
	return free, used
}

// turn is one millisecond of the owner's: mappings come and go, streams go on.
func (w *pworld) turn() {
	w.now += msec
	n := w.own
	n.blocks.Step(n.pool, w.guard, w.now, w.dice.Uint64())
	for range 96 {
		slot := w.dice.IntN(len(n.ports))
		p := &n.ports[slot]
		switch {
		case p.host != 0 && w.dice.IntN(40) == 0:
			w.last[slot].until = w.now
			p.host, p.rest = 0, w.now+bHold
			p.gen++
			n.maps.Gone(uint32(slot))
		case p.host != 0:
		case n.closed[slot/bPorts/64]>>(slot/bPorts%64)&1 != 0:
			w.refused++
		case p.rest > w.now:
		case n.free(uint32(slot / bPorts)): // a worker claims one when it needs one
			if w.dice.IntN(600) == 0 {
				n.since[slot/bPorts] = w.now
				w.give(n, slot)
			}
		case w.now-n.since[slot/bPorts] < 700*msec:
			w.give(n, slot)
		}
	}
	n.opens.Drain(w.now, 100)
	n.maps.Drain(w.now, 100)
	w.carry()
}

// give has a host get a port, and judges that.
func (w *pworld) give(n *pnode, slot int) {
	host := 1 + w.dice.IntN(200)
	if l := w.last[slot]; l.host != 0 && l.host != host && w.now-l.until < bHold {
		w.fault("%s gives port %d to host %d, and host %d had it until %d ms ago", n.name, slot, host, l.host, (w.now-l.until)/msec)
	}
	w.made++
	n.ports[slot].host = host
	w.last[slot].host, w.last[slot].until = host, w.now
	n.maps.Mark(uint32(slot), true)
}

func (w *pworld) carry() {
	for i, s := range []*Sender{w.own.maps, w.own.opens} {
		for f := s.Take(); f != nil; f = s.Take() {
			w.late = append(w.late, item2{at: w.now + w.delay, stream: i, frame: append([]byte(nil), f...)})
		}
	}
	var keep []item2
	for _, it := range w.late {
		switch {
		case it.at > w.now:
			keep = append(keep, it)
		case it.answer != nil:
			[]*Sender{w.own.maps, w.own.opens}[it.stream].Answer(w.now, it.answer)
		default:
			a, err := w.by.recv.Frame(w.now, w.own.name, it.frame)
			if err != nil {
				w.fault("%v", err)
			}
			keep = append(keep, item2{at: w.now + w.delay, stream: it.stream, answer: &a})
		}
	}
	w.late = keep
}

// sync is the log: who may take over. The guard is on before that is proposed, and blocks that were opened before are known by then.
func (w *pworld) sync() {
	n := w.own
	whole, _ := w.by.recv.Whole(1)
	for _, s := range []*Sender{n.maps, n.opens} {
		c, _ := s.Copy(w.now, 1)
		whole = whole && !c.Copying && s.Acked() > 1
	}
	w.guard = whole || w.candidate
	w.candidate = whole && n.blocks.Settled(n.pool, n.pool.Known)
}

// takeover: the owner is gone at once, with all that is on its way.
func (w *pworld) takeover() {
	old := w.own
	for i := range old.ports { // remote hosts keep sending
		if h := old.ports[i].host; h != 0 && h == w.last[i].host {
			w.last[i].until = w.now
		}
	}
	w.own, w.moved, w.candidate = w.by, w.moved+1, false
	w.late = nil
	w.epoch++
	n := w.own
	n.recv.Own(1, w.epoch)
	n.rested, w.guard = w.now+bHold, false
	n.blocks.Takeover(n.pool, func(word uint32) (m uint64) {
		for i := range min(64, bBlocks-int(word)*64) {
			if n.known[int(word)*64+i] {
				m |= 1 << i
			}
		}
		return m
	})
	n.known = [bBlocks]bool{}
	n.maps.Own(1, w.epoch)
	n.opens.Own(1, w.epoch)
	w.by = w.node(old.name)
	w.by.recv.Follow(1, w.epoch)
	w.link()
}

func portSchedule(seed uint64, plant Plant) *pworld {
	w := &pworld{dice: rand.New(rand.NewPCG(seed, 9)), plant: plant, delay: 200 * msec, epoch: 1}
	w.own, w.by = w.node("a"), w.node("b")
	w.own.recv.Own(1, 1)
	w.own.maps.Own(1, 1)
	w.own.opens.Own(1, 1)
	w.by.recv.Follow(1, 1)
	w.link()
	for w.now < 10000*msec {
		w.turn()
		w.sync()
		if w.candidate && w.dice.IntN(1200) == 0 {
			w.takeover()
		}
	}
	return w
}

// TestAPortHasOneHost: hundreds of mappings a second, a stream that is 200 ms late, kills at any point; no public port has a second host within the hold time.
func TestAPortHasOneHost(t *testing.T) {
	first := *seed
	if first == 0 {
		first = uint64(time.Now().UnixNano())
	}
	t.Logf("seed %d", first)
	moved, made := 0, 0
	for i := range uint64(6) {
		w := portSchedule(first+i, Plant{})
		for _, f := range w.faults {
			t.Errorf("seed %d: %s", first+i, f)
		}
		moved, made = moved+w.moved, made+w.made
	}
	if t.Logf("%d takeovers, %d mappings", moved, made); moved < 15 || made < 2500 {
		t.Errorf("%d takeovers and %d mappings in 6 schedules: nothing was tested", moved, made)
	}
}

// TestFaultsOfBlocksAreFound: the same schedules find what would give a port to two.
func TestFaultsOfBlocksAreFound(t *testing.T) {
	for name, plant := range map[string]Plant{
		"blocks are not closed at a takeover":         {StayOn: true},
		"a block is used before the standby knows it": {OpenAtOnce: true},
	} {
		found := 0
		for i := range uint64(6) {
			if len(portSchedule(i, plant).faults) > 0 {
				found++
			}
		}
		if t.Logf("%s: found by %d of 6", name, found); found == 0 {
			t.Errorf("%s: 6 schedules, and nothing was found", name)
		}
	}
}

// Takeovers in short turn, each of which has all that was open before rest, leave blocks to give: each takes a part of what there is.
func TestTakeoversInShortTurnLeaveBlocks(t *testing.T) {
	const words, takeovers = 16, 8
	b := NewBlocks()
	b.Grow(words)
	p := &Pool{To: words, First: 1<<64 - 1, Ahead: 256, Least: 32, Most: 256, Look: func(uint32) (free, used uint64) { return 1<<64 - 1, 0 }, Over: func(uint32) uint64 { return 0 },
		Close: func(uint32, uint64) {}, Known: func(uint32) bool { return true }, Mark: func(uint32) {}, Gone: func(uint32) {}}
	count := func(list []uint64) (n int) {
		for _, w := range list {
			n += bits.OnesCount64(w)
		}
		return n
	}
	for i := range takeovers {
		for step := range uint64(100) {
			b.Step(p, true, int64(step)*10*msec, step*0x9e3779b97f4a7c15)
		}
		open, left := count(b.open), 64*words-count(b.rests)
		if b.Dry(p) || open < 32 || open > max(left/share, 32) {
			t.Errorf("behind %d takeovers %d blocks of %d are open, %d rest", i, open, left, 64*words-left)
		}
		was := slices.Clone(b.told)
		b.Takeover(p, func(w uint32) uint64 { return was[w] })
	}
	if rest := count(b.rests); rest > 64*words-32 {
		t.Errorf("behind %d takeovers %d of %d blocks rest", takeovers, rest, 64*words)
	}
}

// A standby that says nothing for as long as it may count as in sync is not noticed by who begins conversations: as many blocks are open ahead as were taken in that time, and no more than that needs. When less is needed, fewer are.
func TestAsManyAreAheadAsAreTaken(t *testing.T) {
	const words, rate = 256, 100 // blocks a second
	const load, silence, over = int64(100 * time.Second), int64(95 * time.Second), int64(400 * time.Second)
	b := NewBlocks()
	b.Grow(words)
	var used [words]uint64
	late := false
	p := &Pool{To: words, First: 1<<64 - 1, Least: 32, Most: 256, Look: func(w uint32) (uint64, uint64) { return ^used[w], used[w] }, Over: func(uint32) uint64 { return 0 },
		Close: func(uint32, uint64) {}, Known: func(uint32) bool { return !late }, Mark: func(uint32) {}, Gone: func(uint32) {}}
	dice := rand.New(rand.NewPCG(1, 2))
	take := func() bool {
		for w, m := range b.open {
			if m &^= used[w]; m != 0 {
				used[w] |= m & -m
				return true
			}
		}
		return false
	}
	b.Step(p, true, 0, dice.Uint64())
	begun, refused, most := 0, 0, 0
	for now := 10 * msec; now < over; now += 10 * msec {
		late = now >= silence && now < silence+cover-100*msec
		if now < load && now/msec%(1000/rate) == 0 {
			if begun++; !take() {
				refused++
			}
		}
		if now == load {
			used = [words]uint64{}
		}
		b.Step(p, true, now, dice.Uint64())
		if now < silence {
			most = max(most, p.Ahead)
		}
	}
	if begun < int(load/int64(time.Second))*rate-1 || refused > 0 {
		t.Errorf("%d of %d found no block, while the standby said nothing for 1.4 s", refused, begun)
	}
	if want := rate * cover / 1e9 * 5 / 4 * 1.05; most > int(want) {
		t.Errorf("%d were open ahead before that, want %.0f at most", most, want)
	}
	if p.Ahead != p.Least {
		t.Errorf("5 minutes behind the load %d are kept open", p.Ahead)
	}
}

// What rests behind a takeover waits for the hold time and nobody's word: a pool in which all else is used is not dry.
func TestWhatRestsIsNotWaitedFor(t *testing.T) {
	b := NewBlocks()
	b.Grow(1)
	used := ^uint64(0xff)
	p := &Pool{To: 1, First: 1<<64 - 1, Least: 8, Most: 16, Look: func(uint32) (uint64, uint64) { return ^used, used }, Over: func(uint32) uint64 { return 0 },
		Close: func(uint32, uint64) {}, Known: func(uint32) bool { return false }, Mark: func(uint32) {}, Gone: func(uint32) {}}
	b.Takeover(p, func(uint32) uint64 { return 0xff })
	b.Step(p, true, 0, 1)
	if b.Dry(p) {
		t.Error("all is used but 8 blocks that rest, and the pool waits for a standby")
	}
	used = ^uint64(0x1ff)
	b.untell(p, 0, 0x100) // one that nobody has, and the standby knows nothing of
	if !b.Dry(p) {
		t.Error("one is free and not open, and the pool waits for nobody")
	}
}
