package replica

import (
	"cmp"
	"slices"
	"time"
)

// Source is the tables of one owner shard, as slots.
type Source interface {
	// Slots is how many slots from 0 on were ever in use.
	Slots() uint32
	// Look says in short what a slot holds.
	Look(slot uint32) Look
	// Fill describes it: everything of r but Slot, Gen and Group. Tenant and Hop are local numbers.
	Fill(slot uint32, r *Record)
	// Name is what a local number stands for.
	Name(kind NameKind, local uint16) string
}

// Writer is a Source that wants to know as what number of the stream a slot was written last: acknowledged is what lies before Sender.Acked.
type Writer interface {
	Wrote(slot uint32, seq uint64)
	// Anew says that the stream begins anew: what was written before counts no more.
	Anew()
}

// Sparse is a Source most of whose slots hold nothing: a copy goes from one that does to the next. Next is the first slot from one on that may hold something, or one from which it is to be asked again; never more than Slots.
type Sparse interface {
	Next(slot uint32) uint32
}

// Look is what is known of a slot at a glance.
type Look struct {
	Gen   uint32
	Group uint8 // 0 = empty, or nobody's: not copied
	Early bool  // goes before others where there is not room for all: established sessions, blocks of ports
	Seen  uint8 // changes as its time goes on, about every eight seconds while packets come
}

// Limits bound what a Sender takes. Zero values are replaced by those of DefaultLimits.
type Limits struct {
	Window  int           // bytes of buffers with what is written and not acknowledged: more waits as marks, which take no memory
	Frame   int           // bytes of a frame
	Digest  time.Duration // so often the digest of each group goes into the stream
	Refresh time.Duration // so often every session is looked at, whether its time has gone on
	Pause   time.Duration // at least so long between two copies of a group
}

// DefaultLimits is what a node runs with.
var DefaultLimits = Limits{Window: 4 << 20, Frame: 16 << 10, Digest: time.Second, Refresh: 8 * time.Second, Pause: 100 * time.Millisecond}

// refreshLooks is how many slots are looked at, for each of a Drain's budget, whether their time has gone on: one after the other, in memory's order, they cost a tenth of what one costs that is written. They count as nothing that is
// still to be done: else a table of a million is reason enough for a turn, and a frame of its own, six times a millisecond.
const refreshLooks = 8

// The sets of marked slots, in the order in which they are written. What is gone goes first and completely: so whatever takes the place of
// something (its addresses, its public port) comes after the word that it is free.
const (
	markGone = iota
	markEarly
	markLate
	numMarks
)

// sent is what the standby was told of a slot.
type sent struct {
	hash  uint64
	gen   uint32
	round uint16
	group uint8 // 0 = nothing
	seen  uint8
}

// outGroup is one group that this node owns.
type outGroup struct {
	epoch   uint64
	sum     uint64 // of the hashes of what was written in this round
	number  uint64
	round   uint16
	copying bool
	late    bool   // copying: the second way through the table, for all that is left
	slots   uint32 // copying: of the table
	todo    uint32 // copying: those of them that this way has still to look at
	digest  int64  // when the next one is due
	again   int64  // not copied again before
	answer  GroupAnswer
	equalAt int64
}

type frame struct {
	seq   uint64
	count int
	since int64 // nothing in it had changed before
	at    int64 // when it was written
	buf   []byte
}

// A copy goes on as long as what is written and not acknowledged is less than copyLeast, or the oldest of it was written no longer ago than copyAhead beyond what an answer takes by itself: what changes meanwhile comes behind that,
// and not behind all that the window holds. What an answer takes by itself is seen where it waits for no copy: so once in copyProbe a copy rests until what it had on its way is acknowledged. A long way, or a machine that is busy, must not starve it.
const (
	copyLeast = 64 << 10
	copyAhead = 20 * time.Millisecond
	copyProbe = time.Second // and no oftener than in ten times such an answer
)

// walkStep is how many slots a copy goes on by before it looks again at how all copies stand.
const walkStep = 64

type nameKey struct {
	kind NameKind
	name string
}

// Sender writes the changes of one owner shard as a stream. The packet path marks slots; Drain, called by the same goroutine between bursts,
// writes what they hold by then. So however slow the standby is, the owner pays a bit for each change, and memory does not grow.
type Sender struct {
	src    Source
	wrote  Writer // src, or nil
	sparse Sparse // src, or nil
	stream uint8
	of     uint8
	life   uint64
	key    uint64
	lim    Limits

	dirty  [numMarks]marks
	sent   []sent
	groups [256]*outGroup
	active []uint8
	rounds uint16
	at     uint32 // where the walk through the table has come to
	walked int64  // when it last went on without copying

	linked bool
	seq    uint64 // of the next record
	first  bool   // the next frame begins the stream anew
	again  int64  // not begun anew before, unless the connection is
	began  uint64 // the first record since it was begun anew
	names  map[nameKey]uint16
	local  [numNames][]uint16 // by local number: number of the stream + 1
	hashes []uint64           // by number of the stream
	cur    []byte
	count  int
	queue  []frame // written and not acknowledged
	next   int     // of queue, to be handed out
	queued int     // bytes in it
	held   int     // bytes that it keeps from others: a frame of one record has a buffer for many
	spare  [][]byte
	looked int
	now    int64 // of the last Drain
	round  int64 // an answer takes so long by itself, as was seen last; 0 = there was none on this connection
	least  int64 // the least since the copy rested last; 0 = there was none
	probe  int64 // when it rests next
	rests  int64 // since when it rests; 0 = it does not
	short  bool  // it would have looked at more
	clean  int64 // what has changed before is written
	rec    Record

	plant plants
}

// plants are faults that tests put in, to see that they are found. Nothing else sets one.
type plants struct {
	deafBulk    bool // what goes while a group is copied is not said
	anyEpoch    bool // epochs are not compared
	earlyDigest bool // the digest is that of the table now, not of what was written
	anyOrder    bool // what is older is taken too
	anyPeer     bool // who may own a group is not asked
	deafLost    bool // what the Sink has ended by itself is not asked for again
}

// NewSender makes the sender of one stream of several, for tables of at most slots slots. life and key are fresh random numbers of this process; all streams of a
// process have the same.
func NewSender(src Source, slots int, stream, of uint8, life, key uint64, lim Limits) *Sender {
	d := DefaultLimits
	lim = Limits{cmp.Or(lim.Window, d.Window), min(cmp.Or(lim.Frame, d.Frame), MaxFrame/2), cmp.Or(lim.Digest, d.Digest), cmp.Or(lim.Refresh, d.Refresh), cmp.Or(lim.Pause, d.Pause)}
	s := &Sender{src: src, stream: stream, of: of, life: life, key: key, lim: lim, sent: make([]sent, slots), seq: 1, names: map[nameKey]uint16{}, plant: planted()}
	s.wrote, _ = src.(Writer)
	s.sparse, _ = src.(Sparse)
	for i := range s.dirty {
		s.dirty[i] = newMarks(slots)
	}
	return s
}

// Grow makes room for more slots.
func (s *Sender) Grow(slots int) {
	if slots <= len(s.sent) {
		return
	}
	s.sent = append(s.sent, make([]sent, slots-len(s.sent))...)
	for i := range s.dirty {
		s.dirty[i].grow(slots)
	}
}

// Mark notes that what a slot holds is new or has changed. The packet path calls it; a nil Sender costs it one comparison.
func (s *Sender) Mark(slot uint32, early bool) {
	if s == nil {
		return
	}
	if early {
		s.dirty[markEarly].set(slot)
	} else {
		s.dirty[markLate].set(slot)
	}
}

// Gone notes that what a slot held is over. The slot may be used anew at once.
func (s *Sender) Gone(slot uint32) {
	if s != nil {
		s.dirty[markGone].set(slot)
	}
}

// Renew forgets what local numbers stand for: the next policy may use them otherwise.
func (s *Sender) Renew() { s.local = [numNames][]uint16{} }

// Own begins to send a group that this node owns now. A higher epoch of a group that it sends already begins it anew.
func (s *Sender) Own(group uint8, epoch uint64) {
	if g := s.groups[group]; group == 0 || g != nil && g.epoch >= epoch {
		return
	}
	s.groups[group] = &outGroup{epoch: epoch}
	if !slices.Contains(s.active, group) {
		s.active = append(s.active, group)
	}
	if s.linked {
		s.copy(group)
	}
}

// Disown ends it.
func (s *Sender) Disown(group uint8) {
	s.groups[group] = nil
	s.active = slices.DeleteFunc(s.active, func(g uint8) bool { return g == group })
}

// Link begins to send after the connection was made: a is what the standby said first. It goes on where the standby is, or begins anew.
func (s *Sender) Link(now int64, a *Answer) {
	s.linked = true
	s.now = now
	s.round, s.least, s.probe, s.rests = 0, 0, now+int64(copyProbe), 0
	if a.Life == s.life && !a.Anew && !s.first && a.Seq > 0 {
		s.pop(a.Seq)
		if s.seek(a.Seq) {
			for _, group := range s.active {
				if s.groups[group].round == 0 {
					s.copy(group)
				}
			}
			return // what changed while there was no connection has waited since
		}
	}
	s.clean = now
	s.anew()
}

// seek makes the frame that begins with seq the next one.
func (s *Sender) seek(seq uint64) bool {
	for i := range s.queue {
		if s.queue[i].seq == seq {
			s.next = i
			return true
		}
	}
	s.next = len(s.queue)
	return seq == s.seq-uint64(s.count)
}

// Unlink notes that the connection is gone. Frames that were not acknowledged are kept for the next one.
func (s *Sender) Unlink() { s.linked = false }

// anew begins the stream anew: nothing that the standby was told counts.
func (s *Sender) anew() {
	for i := range s.queue {
		s.spare = append(s.spare, s.queue[i].buf[:0])
	}
	s.queue, s.next, s.queued, s.held = s.queue[:0], 0, 0, 0
	s.cur, s.count = s.cur[:0], 0
	s.first, s.began = true, s.seq
	s.names, s.hashes = map[nameKey]uint16{}, s.hashes[:0]
	s.local = [numNames][]uint16{}
	if s.wrote != nil {
		s.wrote.Anew()
	}
	for _, g := range s.active {
		s.copy(g)
	}
}

// copy begins a copy of all that a group has. What was told of it in earlier rounds is void; what of it is not written until the end of
// this one the standby removes.
func (s *Sender) copy(group uint8) {
	g := s.groups[group]
	s.rounds = max(s.rounds+1, 1) // 0 is none
	*g = outGroup{epoch: g.epoch, round: s.rounds, copying: true, slots: s.src.Slots(), todo: s.src.Slots()}
	s.marker(KindBegin, group, g)
}

func (s *Sender) marker(k Kind, group uint8, g *outGroup) {
	sum, number := g.sum, g.number
	if s.plant.earlyDigest && k == KindDigest {
		sum, number = s.Recount(group)
	}
	s.cur = appendMarker(s.open(), k, group, &marker{Epoch: g.epoch, Key: s.key, Sum: sum, Number: number, Round: g.round, Of: s.of})
	s.wroteOne()
}

// open is the frame under way.
func (s *Sender) open() []byte {
	if len(s.cur) == 0 {
		if n := len(s.spare); n > 0 {
			s.cur, s.spare = s.spare[n-1], s.spare[:n-1]
		} else {
			s.cur = make([]byte, 0, s.lim.Frame+1024)
		}
		s.cur = append(s.cur, make([]byte, headerLen)...)
	}
	return s.cur
}

func (s *Sender) wroteOne() {
	s.seq++
	s.count++
	if len(s.cur) >= s.lim.Frame || s.count == 1<<16-1 {
		s.flush()
	}
}

// flush ends the frame under way.
func (s *Sender) flush() {
	if s.count == 0 {
		return
	}
	h := header{First: s.first, Stream: s.stream, Len: uint32(len(s.cur)), Life: s.life, Seq: s.seq - uint64(s.count), Count: uint16(s.count)}
	h.put(s.cur)
	s.queue = append(s.queue, frame{h.Seq, s.count, s.clean, s.now, s.cur})
	s.queued += len(s.cur)
	s.held += cap(s.cur)
	s.cur, s.count, s.first = nil, 0, false
}

// Take hands out the next frame, nil when there is none. It stays valid until the standby has acknowledged it.
func (s *Sender) Take() []byte {
	if !s.linked || s.next >= len(s.queue) {
		return nil
	}
	s.next++
	return s.queue[s.next-1].buf
}

func (s *Sender) room() bool { return s.held+len(s.cur) < s.lim.Window }

// ahead reports whether a copy may go on: see copyAhead.
func (s *Sender) ahead() bool {
	if s.rests == 0 && s.now >= s.probe {
		s.rests = s.now
	}
	if s.rests != 0 {
		if len(s.queue) > 0 && s.queue[0].at <= s.rests {
			return false
		}
		s.round, s.least = cmp.Or(s.least, s.round), 0
		s.rests, s.probe = 0, s.now+max(int64(copyProbe), 10*s.round)
	}
	return s.queued+len(s.cur) < copyLeast || len(s.queue) == 0 || s.now-s.queue[0].at < s.round+int64(copyAhead)
}

// name is the number of the stream for a local number.
func (s *Sender) name(kind NameKind, local uint16) uint16 {
	if local == NoName {
		return NoName
	}
	if l := s.local[kind]; int(local) < len(l) && l[local] != 0 {
		return l[local] - 1
	}
	k := nameKey{kind, s.src.Name(kind, local)}
	if len(k.name) > maxName {
		k.name = k.name[:maxName]
	}
	n, ok := s.names[k]
	if !ok {
		if len(s.names) >= NoName-1 {
			return NoName // Drain begins anew
		}
		n = uint16(len(s.names))
		s.names[k] = n
		s.hashes = append(s.hashes, HashName(s.key, kind, k.name))
		s.cur = appendName(s.open(), kind, n, k.name)
		s.wroteOne()
	}
	for len(s.local[kind]) <= int(local) {
		s.local[kind] = append(s.local[kind], 0)
	}
	s.local[kind][local] = n + 1
	return n
}

// told reports whether the standby knows what p says.
func (s *Sender) told(p *sent) bool {
	g := s.groups[p.group]
	return g != nil && g.round == p.round
}

// put writes how a slot is now.
func (s *Sender) put(slot uint32) { s.putAs(slot, s.src.Look(slot)) }

// putAs is put for who has just looked.
func (s *Sender) putAs(slot uint32, l Look) {
	p := &s.sent[slot]
	g, told := s.groups[l.Group], s.told(p)
	if told && (g == nil || p.group != l.Group || p.gen != l.Gen) {
		was := s.groups[p.group]
		if !s.plant.deafBulk || !was.copying {
			s.cur = appendGone(s.open(), p.group, slot, p.gen)
			s.wroteOne()
		}
		was.sum -= p.hash
		was.number--
		told = false
	}
	if !told {
		*p = sent{}
	}
	if g == nil {
		return
	}
	r := &s.rec
	hash := s.fill(slot, l, r)
	if told {
		g.sum -= p.hash
	} else {
		g.number++
	}
	g.sum += hash
	*p = sent{hash, l.Gen, g.round, l.Group, l.Seen}
	seq := s.seq
	s.cur = appendRecord(s.open(), r)
	s.wroteOne()
	if s.wrote != nil {
		s.wrote.Wrote(slot, seq)
	}
}

// fill makes r what the slot holds, in numbers of the stream.
func (s *Sender) fill(slot uint32, l Look, r *Record) (hash uint64) {
	r.Reset()
	s.src.Fill(slot, r)
	r.Slot, r.Gen, r.Group = slot, l.Gen, l.Group
	r.Tenant = s.name(NameTenant, r.Tenant)
	for d := range r.Session.Hop {
		r.Session.Hop[d] = s.name(NameHop, r.Session.Hop[d])
	}
	var tenant uint64
	if int(r.Tenant) < len(s.hashes) {
		tenant = s.hashes[r.Tenant]
	}
	return r.Hash(s.key, tenant)
}

// touch says that a session's time has gone on.
func (s *Sender) touch(slot uint32, l Look) {
	r := &s.rec
	s.fill(slot, l, r)
	if r.Kind != KindSession {
		s.put(slot)
		return
	}
	r.Kind = KindTouch
	s.sent[slot].seen = l.Seen
	s.cur = appendRecord(s.open(), r)
	s.wroteOne()
}

// Drain writes what was marked, and goes on with copies and refreshed times, at most about budget records, and fewer where the standby has not yet
// acknowledged what there is. It returns how many it wrote.
func (s *Sender) Drain(now int64, budget int) int { return s.Write(now, budget, budget) }

// Write is Drain that looks at so many changes, and of them for copies at no more than copied slots.
func (s *Sender) Write(now int64, changes, copied int) int {
	s.short = false
	if !s.linked {
		return 0
	}
	if len(s.names) >= NoName-1 {
		s.anew()
	}
	from := s.seq
	s.now = now
	left, looks := changes, refreshLooks*copied
	more := func() bool {
		left--
		s.looked++
		return left >= 0 && s.room()
	}
	s.dirty[markGone].take(now, more, s.put)
	kept := 0 // what is new waits neither for all that is established, nor until all of that is copied
	if !s.dirty[markLate].empty() {
		kept = left / 4
	}
	early := func() bool { return left > kept && more() }
	copying := func() bool {
		if copied <= 0 {
			s.short = true
			return false
		}
		copied--
		return s.ahead() && early()
	}
	s.dirty[markEarly].take(now, early, s.put)
	s.walk(copying, false)
	s.dirty[markLate].take(now, more, s.put)
	kept = 0
	s.dirty[markEarly].take(now, early, s.put)
	s.walk(copying, false)
	s.walk(copying, true)
	s.short = s.short || left <= 0
	busy, clean := left < 0 || !s.room(), now
	for _, group := range s.active {
		g := s.groups[group]
		if g.copying { // how far behind it is no lag says: it is not equal until it has ended. What others of the stream have written stays as young as it is
			busy = true
		} else if s.room() && now >= g.digest {
			s.marker(KindDigest, group, g)
			g.digest = now + int64(s.lim.Digest)
		}
	}
	if !busy {
		s.refresh(now, func() bool {
			looks--
			return looks >= 0 && int(s.seq-from) < changes && s.room()
		})
	}
	s.flush()
	for i := range s.dirty {
		if m := &s.dirty[i]; !m.empty() {
			clean = min(clean, m.clean)
		}
	}
	s.clean = max(s.clean, clean)
	return int(s.seq - from)
}

// walk goes on with copies: first what is early, then, on a second way through the table, all that is left.
func (s *Sender) walk(more func() bool, late bool) {
	for on := s.copying(late) && more(); on; {
		slots := s.src.Slots()
		most := uint32(walkStep)         // of slots, before it is to be looked again how the copies stand: no copy has fewer left
		for _, group := range s.active { // the way round has become longer
			if g := s.groups[group]; g.copying {
				g.todo += slots - g.slots
				g.slots = slots
				if !g.late || late {
					most = min(most, g.todo)
				}
			}
		}
		if s.at >= slots {
			s.at = 0
		}
		past := uint32(1)
		if n := s.empty(slots, late); n > 0 {
			past = n
			s.at += n
		} else if slots > 0 {
			for most = min(most, slots-s.at); ; past++ {
				slot := s.at
				s.at++
				l := s.src.Look(slot)
				if g := s.groups[l.Group]; g != nil && g.copying && (l.Early || g.late) && !(s.told(&s.sent[slot]) && s.sent[slot].gen == l.Gen) {
					s.putAs(slot, l)
				}
				if past >= most || s.sparse != nil {
					break
				}
				if on = more(); !on {
					break
				}
			}
		}
		for _, group := range s.active {
			g := s.groups[group]
			if !g.copying || g.late && !late {
				continue
			}
			if g.todo -= min(past, g.todo); g.todo > 0 {
				continue
			}
			if !g.late {
				g.late, g.todo = true, slots
				continue
			}
			g.copying = false
			s.marker(KindEnd, group, g)
		}
		on = on && s.copying(late) && more()
	}
}

// empty is how many slots from where the walk is hold nothing, as far as the source says; no more than any copy has still to look at.
func (s *Sender) empty(slots uint32, late bool) uint32 {
	if s.sparse == nil || slots == 0 {
		return 0
	}
	n := min(s.sparse.Next(s.at), slots) - s.at
	for _, group := range s.active {
		if g := s.groups[group]; g.copying && (!g.late || late) {
			n = min(n, g.todo)
		}
	}
	return n
}

// copying reports whether there is something for walk to do.
func (s *Sender) copying(late bool) bool {
	for _, group := range s.active {
		if g := s.groups[group]; g.copying && g.late == late {
			return true
		}
	}
	return false
}

// refresh looks for sessions whose time has gone on, each as often as Limits says.
func (s *Sender) refresh(now int64, more func() bool) {
	slots := s.src.Slots()
	part := min(float64(now-s.walked)/float64(s.lim.Refresh), 1)
	n := uint32(part * float64(slots))
	if n == 0 {
		return
	}
	for ; n > 0 && more(); n-- {
		if s.at >= slots {
			s.at = 0
		}
		slot := s.at
		s.at++
		l, p := s.src.Look(slot), &s.sent[slot]
		if p.group != 0 && s.told(p) && p.gen == l.Gen && p.group == l.Group && p.seen != l.Seen {
			s.touch(slot, l)
		}
	}
	s.walked = now - int64(float64(n)/float64(slots)*float64(s.lim.Refresh)) // what is left is for the next time
}
