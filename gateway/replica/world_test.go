package replica

import (
	"fmt"
	"math/rand/v2"

	"demarc/gateway/flow"
)

// The world: nodes with model tables of one to four shards, streams between them with delay, cuts and late copies of frames from connections that are gone,
// and a log that says who owns a group. Time is in milliseconds here.
const msec = int64(1e6)

// entry is one session in a model table.
type entry struct {
	gen    uint32
	live   bool
	tenant int // of the world
	s      Session
	rev    uint64
}

type shard struct {
	slots []entry
	free  []uint32
	keys  map[flow.Key]uint32
	cap   int
}

func (sh *shard) put(tenant int, s *Session, rev uint64) (uint32, bool) {
	var slot uint32
	if n := len(sh.free); n > 0 {
		slot, sh.free = sh.free[n-1], sh.free[:n-1]
	} else if len(sh.slots) < sh.cap {
		slot = uint32(len(sh.slots))
		sh.slots = append(sh.slots, entry{})
	} else {
		return 0, false
	}
	e := &sh.slots[slot]
	e.live, e.tenant, e.s, e.rev = true, tenant, *s, rev
	sh.keys[keyOf(tenant, s)] = slot
	return slot, true
}

func (sh *shard) remove(slot uint32) {
	e := &sh.slots[slot]
	delete(sh.keys, keyOf(e.tenant, &e.s))
	e.live = false
	e.gen++
	sh.free = append(sh.free, slot)
}

func keyOf(tenant int, s *Session) flow.Key {
	return flow.Key{Src: s.OrigSrc, Dst: s.OrigDst, SPort: s.OrigSPort, DPort: s.OrigDPort, Proto: s.Proto, Zone: flow.TenantID(tenant)}
}

// node is one gateway.
type node struct {
	w       *world
	name    string
	life    uint64
	up      bool
	shards  []*shard
	local   []int // local tenant number -> tenant of the world
	recv    *Receiver
	senders map[string][]*Sender // by peer
	conns   map[string]*conn     // to peers, of the streams that it sends
	epoch   [3]uint64            // by group: what it knows
	owns    [3]bool
	lied    [3]bool // its senders have an epoch that nobody has agreed on
	lost    uint64  // what it has ended of a group that it does not own
}

// source is one shard as a Sender sees it.
type source struct {
	n  *node
	sh *shard
}

func (x source) Slots() uint32 { return uint32(len(x.sh.slots)) }

func (x source) Look(slot uint32) Look {
	e := &x.sh.slots[slot]
	l := Look{Gen: e.gen, Early: e.s.State >= 4, Seen: uint8(e.s.Packets[0] >> 3)}
	if e.live {
		l.Group = groupOf(e.tenant)
	}
	return l
}

// Next has the schedules go through copies that leave out what is empty; now and then it says less than it knows.
func (x source) Next(slot uint32) uint32 {
	for from := slot; slot < x.Slots() && x.Look(slot).Group == 0 && slot < from+40; {
		slot++
	}
	return slot
}

func (x source) Fill(slot uint32, r *Record) {
	e := &x.sh.slots[slot]
	r.Kind, r.Revision, r.Session = KindSession, e.rev, e.s
	for l, t := range x.n.local {
		if t == e.tenant {
			r.Tenant = uint16(l)
		}
	}
	r.Session.Hop = [2]uint16{uint16(e.s.Class), NoName}
}

func (x source) Name(k NameKind, local uint16) string {
	if k == NameTenant {
		return fmt.Sprint("tenant", x.n.local[local])
	}
	return fmt.Sprint("hop", local)
}

// Tenants 0 and 1 move with group 1, 2 with group 2, 3 with none.
func groupOf(tenant int) uint8 { return []uint8{1, 1, 2, 0}[tenant] }

// sink is a node's tables as a Receiver sees them.
type sink struct{ n *node }

func (x sink) Local(k NameKind, name string) (uint16, bool) {
	if k == NameHop {
		return uint16(name[3] - '0'), true
	}
	for l, t := range x.n.local {
		if fmt.Sprint("tenant", t) == name {
			return uint16(l), true
		}
	}
	return 0, false
}

func (n *node) home(tenant int, s *Session) int {
	return (int(s.OrigSrc[3])*7 + tenant) % len(n.shards)
}

// read is the record that stands at a place.
func (x sink) read(p Place) *Record {
	e := &x.n.shards[p.Shard()].slots[p.Slot()]
	r := &Record{}
	source{x.n, x.n.shards[p.Shard()]}.Fill(p.Slot(), r)
	if !e.live || e.gen != p.Gen() {
		x.n.w.fault("%s: an op goes to an empty slot %x", x.n.name, p)
	}
	return r
}

func (x sink) Do(ops []Op, c *Context) {
	for i := range ops {
		op := &ops[i]
		op.Outcome, op.Old, op.New = Taken, 0, 0
		if op.At != NoPlace {
			if e := &x.n.shards[op.At.Shard()].slots[op.At.Slot()]; !e.live || e.gen != op.At.Gen() {
				if op.At = NoPlace; op.Do != Put { // it has ended that by itself, or something newer has its place
					continue
				}
			}
		}
		if op.At != NoPlace {
			sh := x.n.shards[op.At.Shard()]
			op.Old = c.Hash(x.read(op.At))
			if op.Do == Live {
				s := &sh.slots[op.At.Slot()].s
				s.Packets, s.Left = op.Rec.Session.Packets, op.Rec.Session.Left
				continue
			}
			sh.remove(op.At.Slot())
			c.Release(op.At)
			op.At = NoPlace
		}
		if op.Do != Put {
			continue
		}
		tenant := x.n.local[op.Rec.Tenant]
		if op.Rec.Group != groupOf(tenant) {
			x.n.w.fault("%s: a session of group %d comes as one of group %d", x.n.name, groupOf(tenant), op.Rec.Group)
		}
		at := x.n.home(tenant, &op.Rec.Session)
		sh := x.n.shards[at]
		if slot, taken := sh.keys[keyOf(tenant, &op.Rec.Session)]; taken {
			if c.Claimed(PlaceAt(uint8(at), slot, sh.slots[slot].gen)) {
				op.Outcome = Conflict
				continue
			}
			sh.remove(slot)
		}
		slot, ok := sh.put(tenant, &op.Rec.Session, op.Rec.Revision)
		if !ok {
			op.Outcome = Full
			continue
		}
		op.At = PlaceAt(uint8(at), slot, sh.slots[slot].gen)
		c.Claim(op.At)
		op.New = c.Hash(x.read(op.At))
	}
}

func (x sink) Lost() uint64 { return x.n.lost }

// lose has a standby end by itself some of what it has of groups that others own.
func (n *node) lose() {
	for _, sh := range n.shards {
		for slot := range sh.slots {
			if e := &sh.slots[slot]; e.live && groupOf(e.tenant) != 0 && !n.owns[groupOf(e.tenant)] && n.w.dice.IntN(4) == 0 {
				sh.remove(uint32(slot))
				for _, s := range n.shard(sh) {
					s.Gone(uint32(slot))
				}
				n.lost++
			}
		}
	}
}

func (x sink) Sweep(group uint8, keep func(Place) bool) {
	for i, sh := range x.n.shards {
		for slot := range sh.slots {
			if e := &sh.slots[slot]; e.live && groupOf(e.tenant) == group && !keep(PlaceAt(uint8(i), uint32(slot), e.gen)) {
				sh.remove(uint32(slot))
			}
		}
	}
}

// conn is one connection of a sender to a receiver.
type conn struct {
	from, to *node
	lifeTo   uint64
	open     bool
	late     []item2
}

type item2 struct {
	at     int64
	stream int
	frame  []byte
	answer *Answer
}

type world struct {
	dice    *rand.Rand
	now     int64
	nodes   []*node
	epoch   [3]uint64 // by group: agreed on
	owner   [3]*node
	owners  [3]map[uint64]*node // by group and epoch: agreed on
	plant   plants
	faults  []string
	delay   int64
	cap     int
	limits  Limits
	conns   []*conn
	stats   Stats
	created int
	zombies bool
	trace   func(string, ...any)
}

func (w *world) fault(f string, a ...any) {
	if len(w.faults) < 5 {
		w.faults = append(w.faults, fmt.Sprintf("%d ms: ", w.now/msec)+fmt.Sprintf(f, a...))
	}
}

func newWorld(seed uint64, nodes int, plant plants) *world {
	w := &world{dice: rand.New(rand.NewPCG(seed, 77)), plant: plant, delay: 3 * msec, cap: 4096, zombies: true, trace: func(string, ...any) {}}
	w.limits = Limits{Window: 1 << (11 + w.dice.IntN(6)), Frame: 512 << w.dice.IntN(4), Refresh: 100 * 1e6, Pause: 20 * 1e6, Digest: 100 * 1e6}
	for i := range nodes {
		n := &node{w: w, name: string(rune('a' + i))}
		w.nodes = append(w.nodes, n)
		n.start()
	}
	for g := uint8(1); g <= 2; g++ {
		w.elect(g, w.nodes[int(g-1)%nodes])
	}
	return w
}

// start is a process with empty tables.
func (n *node) start() {
	w := n.w
	n.up, n.life = true, w.dice.Uint64()|1
	n.shards = nil
	for range 1 + w.dice.IntN(4) {
		n.shards = append(n.shards, &shard{keys: map[flow.Key]uint32{}, cap: w.cap})
	}
	n.local = w.dice.Perm(4)
	n.recv = NewReceiver(sink{n}, 1<<16)
	n.recv.plant = w.plant
	n.recv.May = n.may
	n.senders, n.conns = map[string][]*Sender{}, map[string]*conn{}
	key := w.dice.Uint64()
	for _, o := range w.nodes {
		if o == n {
			continue
		}
		for i, sh := range n.shards {
			s := NewSender(source{n, sh}, w.cap, uint8(i), uint8(len(n.shards)), n.life, key, w.limits)
			s.plant = w.plant
			n.senders[o.name] = append(n.senders[o.name], s)
		}
	}
	for _, o := range w.nodes { // nodes made later have no sender for those before: they are told here
		if o != n && o.senders != nil && o.senders[n.name] == nil {
			for i, sh := range o.shards {
				s := NewSender(source{o, sh}, w.cap, uint8(i), uint8(len(o.shards)), o.life, o.life, w.limits)
				s.plant = w.plant
				o.senders[n.name] = append(o.senders[n.name], s)
			}
		}
	}
	n.owns, n.epoch = [3]bool{}, [3]uint64{}
	for g := uint8(1); g <= 2; g++ {
		if w.epoch[g] > 0 && w.owner[g] != n {
			n.follow(g)
		}
	}
}

func (n *node) kill() {
	n.up = false
	for _, c := range n.w.conns {
		if c.from == n || c.to == n {
			c.close()
		}
	}
}

// may goes by what the node has heard of the log.
func (n *node) may(peer string, group uint8, epoch uint64) error {
	switch o := n.w.owners[group][epoch]; {
	case epoch > n.epoch[group]:
		return fmt.Errorf("epoch %d is ahead: %w", epoch, ErrEarly)
	case o == nil || o.name != peer:
		return fmt.Errorf("%s was never the owner under epoch %d", peer, epoch)
	}
	return nil
}

// lie has a node send a group that is not its own, under an epoch that nobody has agreed on.
func (n *node) lie(group uint8, epoch uint64) {
	n.w.trace("%s lies that it owns %d under %d", n.name, group, epoch)
	n.lied[group] = true
	for _, ss := range n.senders {
		for _, s := range ss {
			s.Own(group, epoch)
		}
	}
}

// elect is an entry of the log: another owner. Nodes hear of it sooner or later, the new owner at once.
func (w *world) elect(group uint8, to *node) {
	was := w.owner[group]
	w.epoch[group]++
	w.owner[group] = to
	if w.owners[group] == nil {
		w.owners[group] = map[uint64]*node{}
	}
	w.owners[group][w.epoch[group]] = to
	to.own(group)
	for _, n := range w.nodes {
		if n == to {
			continue
		}
		if n == was || w.dice.IntN(2) == 0 {
			continue // hears it later
		}
		if n.up {
			n.follow(group)
		}
	}
}

func (n *node) own(group uint8) {
	e := n.w.epoch[group]
	n.w.trace("%s owns %d under %d", n.name, group, e)
	if n.lied[group] { // under a later epoch, and a Sender goes on to higher ones only
		n.lied[group] = false
		for _, ss := range n.senders {
			for _, s := range ss {
				s.Disown(group)
			}
		}
	}
	n.owns[group], n.epoch[group] = true, e
	n.recv.Own(group, e)
	for _, ss := range n.senders {
		for _, s := range ss {
			s.Own(group, e)
		}
	}
}

func (n *node) follow(group uint8) {
	n.owns[group], n.epoch[group] = false, n.w.epoch[group]
	for _, ss := range n.senders {
		for _, s := range ss {
			s.Disown(group)
		}
	}
	n.recv.Follow(group, n.epoch[group])
}

// connect opens a connection for the streams of from to to.
func (w *world) connect(from, to *node) {
	c := &conn{from: from, to: to, lifeTo: to.life, open: true}
	w.conns = append(w.conns, c)
	from.conns[to.name] = c
	for i, s := range from.senders[to.name] {
		a := to.recv.Hello(from.name, uint8(i))
		s.Link(w.now, &a)
	}
}

func (c *conn) close() {
	if !c.open {
		return
	}
	c.open = false
	delete(c.from.conns, c.to.name)
	for _, s := range c.from.senders[c.to.name] {
		s.Unlink()
	}
}

// carry moves frames and answers.
func (w *world) carry() {
	for _, c := range w.conns {
		if c.open && c.from.up {
			for i, s := range c.from.senders[c.to.name] {
				for f := s.Take(); f != nil; f = s.Take() {
					c.late = append(c.late, item2{at: w.now + w.delay, stream: i, frame: append([]byte(nil), f...)})
				}
			}
		}
	}
	conns := w.conns[:0]
	for _, c := range w.conns {
		var keep []item2
		for _, it := range c.late {
			switch {
			case it.at > w.now:
				keep = append(keep, it)
			case it.answer != nil:
				if c.open && c.from.up {
					c.from.senders[c.to.name][it.stream].Answer(w.now, it.answer)
				}
			case c.to.up && c.to.life == c.lifeTo && (c.open || w.zombies):
				a, err := c.to.recv.Frame(w.now, c.from.name, it.frame)
				if err != nil {
					w.fault("%s: %v", c.to.name, err)
				}
				if b := a.Append(nil); c.open {
					d, err := DecodeAnswer(b)
					if err != nil {
						w.fault("%v", err)
					}
					keep = append(keep, item2{at: w.now + w.delay, stream: it.stream, answer: &d})
				}
			}
		}
		if c.late = keep; c.open || len(keep) > 0 {
			conns = append(conns, c)
		}
	}
	w.conns = conns
}

// traffic changes sessions of what a node owns.
func (n *node) traffic(ops int) {
	w := n.w
	for range ops {
		tenant := w.dice.IntN(4)
		if g := groupOf(tenant); g != 0 && !n.owns[g] {
			continue
		}
		var s Session
		s.OrigSrc[3], s.OrigDst[3] = byte(w.dice.IntN(16)), byte(w.dice.IntN(4))
		s.OrigSPort, s.OrigDPort, s.Proto, s.XlatSrc = uint16(w.dice.IntN(20)), 80, flow.TCP, [4]byte{192, 0, 2, 1}
		s.XlatSPort, s.State, s.Hop = uint16(w.dice.IntN(1000)), 1, [2]uint16{NoName, NoName}
		s.Flags = FlagNAT | FlagMapped
		sh := n.shards[n.home(tenant, &s)]
		slot, have := sh.keys[keyOf(tenant, &s)]
		switch {
		case !have:
			if slot, have = sh.put(tenant, &s, uint64(w.epoch[1])); have {
				w.created++
				n.mark(sh, slot, false)
			}
		case w.dice.IntN(3) == 0:
			sh.remove(slot)
			for _, s := range n.shard(sh) {
				s.Gone(slot)
			}
		default:
			e := &sh.slots[slot]
			e.s.State = min(e.s.State+1, 8)
			e.s.Class = uint8(w.dice.IntN(8))
			n.mark(sh, slot, e.s.State >= 4)
		}
	}
}

func (n *node) mark(sh *shard, slot uint32, early bool) {
	for _, s := range n.shard(sh) {
		s.Mark(slot, early)
	}
}

func (n *node) shard(sh *shard) (out []*Sender) {
	for i := range n.shards {
		if n.shards[i] == sh {
			for _, ss := range n.senders {
				out = append(out, ss[i])
			}
		}
	}
	return out
}

// turn is one millisecond.
func (w *world) turn(traffic int) {
	w.now += msec
	for _, n := range w.nodes {
		if !n.up {
			continue
		}
		n.traffic(traffic)
		n.recv.Judge(w.now)
		for _, ss := range n.senders {
			for _, s := range ss {
				s.Drain(w.now, 64)
			}
		}
	}
	w.carry()
}

// mend makes all well: everybody is up, knows who owns what, and is connected.
func (w *world) mend() {
	w.delay = 3 * msec
	for _, n := range w.nodes {
		if !n.up {
			n.start()
		}
	}
	for g := uint8(1); g <= 2; g++ {
		if !w.owner[g].owns[g] {
			w.elect(g, w.owner[g])
		}
		for _, n := range w.nodes {
			if n != w.owner[g] && (n.owns[g] || n.epoch[g] != w.epoch[g]) {
				n.follow(g)
			}
		}
	}
	w.connectAll()
}

func (w *world) connectAll() {
	for _, n := range w.nodes {
		for _, o := range w.nodes {
			if n != o && n.up && o.up && n.conns[o.name] == nil {
				w.connect(n, o)
			}
		}
	}
}
