package replica

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"
)

// Place names what a Sink keeps for a record: a slot of a shard, and the slot's generation, so that what has been put there since is something else.
type Place struct {
	slot, gen uint32
	shard     uint8
}

// NoPlace is nowhere.
var NoPlace = Place{slot: 1<<32 - 1, gen: 1<<32 - 1, shard: 1<<8 - 1}

// NoShard is no shard.
const NoShard uint16 = 1<<16 - 1

// PlaceAt is slot of shard in a generation.
func PlaceAt(shard uint8, slot, gen uint32) Place { return Place{slot, gen, shard} }

// Shard is where the slot is.
func (p Place) Shard() uint8 { return p.shard }

// Slot is the place within its shard.
func (p Place) Slot() uint32 { return p.slot }

// Gen changes whenever the slot is used anew.
func (p Place) Gen() uint32 { return p.gen }

// Action is what is to be done with a record.
type Action uint8

// The actions.
const (
	Put  Action = iota + 1 // enter it, or make what is At so
	Live                   // of what is At only the time that is left, counters and windows
	Drop                   // the owner has ended what is At
)

// Op is one thing to be done in a Sink's tables.
type Op struct {
	Do      Action
	At      Place   // where it is; a Put of something new: NoPlace, and the Sink enters where it has put it
	Outcome Outcome // of a Put. What is not Taken leaves nothing behind
	Old     uint64  // the hash of what was At before a Put or a Drop, 0 where there was nothing
	New     uint64  // and after a Put, read back from the table
	From    uint16  // the Sink's own notes: the shard that lets go of it, and
	To      uint16  // the one that a Put is for
	Rec     Record  // local numbers
	Over    bool    // of an Unpacker: a session whose time has run out since. Its public port is to rest, and nothing else is left of it

	in    *inbound
	slot  uint32
	fresh bool // a Put: what was there is in no sum of this round
}

// Sink is the tables of the standby, all shards of them.
type Sink interface {
	// Local is this node's number for a name.
	Local(kind NameKind, name string) (local uint16, ok bool)
	// Do carries out ops, those of one shard in their order. What takes a place that nothing claims may remove what is there; what is claimed stays, and the
	// newcomer is refused as a Conflict. It calls c.Claim for what it has put, and c.Release for what it has dropped. What is At may be gone, see Lost: then
	// there is nothing to drop, and a Put enters it anew.
	Do(ops []Op, c *Context)
	// Sweep removes what it has of a group and keep does not want.
	Sweep(group uint8, keep func(Place) bool)
	// Lost is how often something that Do had put was ended by other hands. It may be called at any time.
	Lost() uint64
}

// Context is what a Sink goes by. Claim, Release and Claimed of one shard belong to one goroutine at a time; Hash may be called by all.
type Context struct {
	key     uint64   // of the stream
	tenants []uint64 // by local number: HashName
	claims  *claims
}

// claims is by shard and slot the generation that is a stream's, plus one.
type claims [256][]uint32

// Hash is the hash of a record as the Sink's table has it.
func (c *Context) Hash(r *Record) uint64 {
	var t uint64
	if int(r.Tenant) < len(c.tenants) {
		t = c.tenants[r.Tenant]
	}
	return r.Hash(c.key, t)
}

// Claim notes that what is at p is a stream's.
func (c *Context) Claim(p Place) {
	c.claims.set(p)
}

func (c *claims) set(p Place) {
	w := &c[p.shard]
	for int(p.slot) >= len(*w) {
		*w = append(*w, make([]uint32, len(*w)+pageItems)...)
	}
	if had := (*w)[p.slot]; had == 0 || int32(p.gen+1-had) > 0 { // what is gone may still be in the books
		(*w)[p.slot] = p.gen + 1
	}
}

// Release notes that it is nobody's.
func (c *Context) Release(p Place) {
	if c.claims.has(p) {
		c.claims[p.shard][p.slot] = 0
	}
}

// Claimed reports whether a stream has it.
func (c *Context) Claimed(p Place) bool { return c.claims.has(p) }

func (c *claims) has(p Place) bool {
	w := c[p.shard]
	return int(p.slot) < len(w) && w[p.slot] == p.gen+1 && p.gen+1 != 0
}

const (
	pageItems = 4096
	batch     = 2048
	maxSlots  = 1 << 28 // a sender's slot beyond this is a mistake
)

// item is what the receiver has of one slot of a sender.
type item struct {
	slot  uint32 // of the place
	at    uint32 // and the generation there
	gen   uint32 // of the sender's slot
	era   uint32 // of the group's state in the stream; another one: nothing
	round uint16
	shard uint8
	how   uint8
}

const (
	itemNone    = iota
	itemPlaced  // it is in a table
	itemPending // an op for it is in the batch
	itemMissing // it could not be taken: itemMissing + Outcome
)

func (it *item) place() Place { return Place{it.slot, it.at, it.shard} }

type page [pageItems]item

// inGroup is a group as one stream brings it.
type inGroup struct {
	marker
	id      uint8
	era     uint32 // changes with each Begin of another epoch
	active  bool   // it is taken: this node follows, and the epoch is not over
	copying bool
	ended   bool // a round has come to its end since the epoch began
	want    bool
	sum     uint64
	number  uint64
	missing [numOutcomes]uint32
	strange uint32 // records of this round that must be understood and are not
	equal   uint64 // the last record at which digests were equal, and
	equalAt int64  // when that was
	retry   int64  // when what is missing is asked for again
	wait    time.Duration

	refused string // why nothing of it is taken from this peer; "" = it is
	since   int64  // refused: since when
	counted bool   // refused: in Stats
}

func (g *inGroup) lost() (n uint32, why Outcome) {
	for o, m := range g.missing {
		if m > 0 {
			n, why = n+m, Outcome(o)
		}
	}
	if g.strange > 0 {
		n, why = n+g.strange, NotKnown
	}
	return n, why
}

type inName struct {
	kind  NameKind
	name  string
	local uint16
	ok    bool
}

// inbound is one stream.
type inbound struct {
	life   uint64
	stream uint8
	next   uint64
	names  []inName
	pages  []*page
	ctx    Context
	groups map[uint8]*inGroup
	last   *inGroup // of groups, that was asked for last; nil = none yet
}

// Standing is a group at this node, whoever owns it.
type standing struct {
	epoch uint64 // what is of an earlier one is not taken
	own   bool
	swept bool // what no stream has was removed in this epoch
}

// Stats counts what a Receiver met.
type Stats struct {
	Records, Older, Unknown, Outdated, Mismatches, Copies uint64

	Refused uint64 // groups that a peer has said are its own, and may not have
}

// ErrEarly is part of why a peer's word about a group is not taken, where the next entry of the log may allow it. Only what lasts is held against the peer.
var ErrEarly = errors.New("the log of this node does not have that yet")

// Refusal is a group that a peer says is its own, and that nothing is taken of.
type Refusal struct {
	Peer  string
	Group uint8
	Epoch uint64 // under which it says so
	Why   string
}

// Receiver keeps a Sink what the owners of groups say that they have.
type Receiver struct {
	sink   Sink
	items  int // how many slots of senders it remembers at most
	pages  int
	groups [256]standing
	peers  map[string]map[uint8]*inbound
	claims claims
	ops    []Op
	eras   uint32
	rec    Record
	gone   Record // of what is dropped
	lost   uint64 // Sink.Lost, when it was asked last
	stale  bool   // claims are to be worked out anew before the next frame

	// May says why a peer may not be the owner of a group under an epoch; nil = it may. The epochs of a peer that may not are not gone by: else whoever can connect could have the true
	// owner's word mean nothing. nil = every peer may be the owner of everything.
	May func(peer string, group uint8, epoch uint64) error

	Stats Stats
	plant plants
}

// NewReceiver makes a receiver that remembers at most so many slots of senders: a table a little larger than the Sink's is enough.
func NewReceiver(sink Sink, items int) *Receiver {
	return &Receiver{sink: sink, items: items, peers: map[string]map[uint8]*inbound{}, ops: make([]Op, 0, batch), lost: sink.Lost(), plant: planted()}
}

// Own notes that this node owns a group from now on, under an epoch: what others say of it is not taken any more. What is in the tables stays.
func (r *Receiver) Own(group uint8, epoch uint64) {
	st := &r.groups[group]
	st.own, st.epoch = true, max(st.epoch, epoch)
	r.void(group, 1<<64-1)
}

// Follow notes that another node owns it, under an epoch.
func (r *Receiver) Follow(group uint8, epoch uint64) {
	r.groups[group].own = false
	r.raise(group, epoch)
	for _, streams := range r.peers {
		for _, in := range streams {
			if g := in.groups[group]; g != nil && !g.active && g.refused == "" && g.Epoch >= r.groups[group].epoch {
				g.want = true
			}
		}
	}
}

// Judge asks May again about all that peers say is theirs: the log or the policy has gone on. What has become right is asked for, what has become wrong is nobody's from then on.
func (r *Receiver) Judge(now int64) {
	if r.May == nil {
		return
	}
	for _, peer := range slices.Sorted(maps.Keys(r.peers)) {
		for _, in := range r.peers[peer] {
			for _, g := range in.groups {
				if g.refused == "" && (!g.active || g.Epoch < r.groups[g.id].epoch) {
					continue // Follow asks for it, or nobody any more
				}
				was := g.refused != ""
				r.allow(now, peer, g)
				switch {
				case was && g.refused == "" && !r.groups[g.id].own && g.Epoch >= r.groups[g.id].epoch:
					g.want = true
				case !was && g.refused != "":
					r.eras++
					g.active, g.copying, g.ended, g.want, g.equal, g.era = false, false, false, false, 0, r.eras
					r.groups[g.id].swept = false
					r.stale = true
				}
			}
		}
	}
}

// allow asks whether a peer may say what it says of a group.
func (r *Receiver) allow(now int64, peer string, g *inGroup) {
	var err error
	if r.May != nil && !r.plant.anyPeer {
		err = r.May(peer, g.id, g.Epoch)
	}
	if err == nil {
		g.refused, g.counted = "", false
		return
	}
	if g.refused == "" {
		g.since = now
	}
	if g.refused = err.Error(); !g.counted && (!errors.Is(err, ErrEarly) || now-g.since > int64(Silence)) {
		g.counted = true
		r.Stats.Refused++
	}
}

// Refused are the groups that peers say are theirs, and that nothing is taken of, by peer and group: one for all streams of a peer.
func (r *Receiver) Refused() (out []Refusal) {
	for _, peer := range slices.Sorted(maps.Keys(r.peers)) {
		of := map[uint8]*inGroup{}
		for _, in := range r.peers[peer] {
			for id, g := range in.groups {
				if g.refused != "" && g.counted && (of[id] == nil || of[id].Epoch < g.Epoch) {
					of[id] = g
				}
			}
		}
		for _, id := range slices.Sorted(maps.Keys(of)) {
			out = append(out, Refusal{peer, id, of[id].Epoch, of[id].refused})
		}
	}
	return out
}

// raise makes nothing of what was said of a group under epochs before.
func (r *Receiver) raise(group uint8, epoch uint64) {
	if st := &r.groups[group]; epoch > st.epoch {
		st.epoch = epoch
		r.void(group, epoch)
	}
}

// void makes nothing of what streams have of a group under epochs before one. What that is stays in the tables, as nobody's.
func (r *Receiver) void(group uint8, before uint64) {
	for _, streams := range r.peers {
		for _, in := range streams {
			if g := in.groups[group]; g != nil && g.Epoch < before && !r.plant.anyEpoch {
				r.eras++
				g.active, g.copying, g.ended, g.want, g.equal, g.era = false, false, false, false, 0, r.eras
			}
		}
	}
	r.groups[group].swept = false
	r.stale = true // a takeover does not wait for that
}

// reclaim works out anew what is claimed. What an earlier round has brought is not: should the owner have ended it since, a round that goes on says no word of
// that, and what has taken its place is as new. It stays until the round is over; all includes it.
func (r *Receiver) reclaim(all bool) {
	r.stale = false
	for i := range r.claims {
		clear(r.claims[i])
	}
	for _, streams := range r.peers {
		for _, in := range streams {
			in.each(func(_ uint32, it *item) {
				if it.how != itemPlaced {
					return
				}
				if g := in.of(it); g != nil && (all || it.round == g.Round) {
					r.claims.set(it.place())
				}
			})
		}
	}
}

// of is the group that an item belongs to, nil when that is over.
func (in *inbound) of(it *item) *inGroup {
	if it.how == itemNone {
		return nil
	}
	if in.last != nil && in.last.era == it.era {
		return in.last
	}
	for _, g := range in.groups {
		if g.era == it.era {
			in.last = g
			return g
		}
	}
	return nil
}

// group is the group with this id, or nil.
func (in *inbound) group(id uint8) *inGroup {
	if in.last != nil && in.last.id == id {
		return in.last
	}
	g := in.groups[id]
	if g != nil {
		in.last = g
	}
	return g
}

func (in *inbound) each(fn func(slot uint32, it *item)) {
	for p, pg := range in.pages {
		if pg == nil {
			continue
		}
		for i := range pg {
			if pg[i].how != itemNone {
				fn(uint32(p*pageItems+i), &pg[i])
			}
		}
	}
}

// item is what is known of a slot; nil when no more can be remembered.
func (r *Receiver) item(in *inbound, slot uint32) *item {
	p := int(slot / pageItems)
	if p >= len(in.pages) || in.pages[p] == nil {
		if r.pages > r.items/pageItems || slot >= maxSlots {
			return nil
		}
		for len(in.pages) <= p {
			in.pages = append(in.pages, nil)
		}
		in.pages[p] = new(page)
		r.pages++
	}
	return &in.pages[p][slot%pageItems]
}

// Room lets it remember so many slots of senders, where that is more than before.
func (r *Receiver) Room(items int) { r.items = max(r.items, items) }

// Hello is what is said first on a new connection to a peer, about each of its streams: how far this node is.
func (r *Receiver) Hello(peer string, stream uint8) Answer {
	if in := r.peers[peer][stream]; in != nil {
		return Answer{Life: in.life, Stream: stream, Seq: in.next}
	}
	return Answer{Stream: stream, Anew: true}
}

// Answer is what the owner is told when nothing has come: how one of its streams stands.
func (r *Receiver) Answer(now int64, peer string, stream uint8) Answer {
	if in := r.peers[peer][stream]; in != nil {
		return in.answer(r, now)
	}
	return Answer{Stream: stream, Anew: true}
}

// Peers are those whose streams are known, by name.
func (r *Receiver) Peers() []string { return slices.Sorted(maps.Keys(r.peers)) }

// Epoch is the one that a group is heard under.
func (r *Receiver) Epoch(group uint8) uint64 { return r.groups[group].epoch }

// Forget ends all that came from a peer: it has left the cluster.
func (r *Receiver) Forget(peer string) {
	for _, in := range r.peers[peer] {
		r.end(in)
	}
	delete(r.peers, peer)
	r.reclaim(false)
}

// end forgets a stream. What it had brought stays in the tables, as nobody's, until another has copied the group.
func (r *Receiver) end(in *inbound) {
	for group, g := range in.groups {
		if g.active {
			r.groups[group].swept = false
		}
	}
	for _, pg := range in.pages {
		if pg != nil {
			r.pages--
		}
	}
}

// Frame takes in one frame. The answer goes back to the peer, also beside an error, which is a word for the log and has cost nothing but that record or frame.
func (r *Receiver) Frame(now int64, peer string, b []byte) (Answer, error) {
	in, a, err := r.take(now, peer, b)
	r.flush()
	if in != nil {
		a = in.answer(r, now)
	}
	return a, err
}

// Frames takes in frames of one peer, those of each stream in their order, and answers each stream once. What they change goes to the Sink in larger batches than frame by frame, if
// those of one stream stand together. The error is the first.
func (r *Receiver) Frames(now int64, peer string, list [][]byte) (answers []Answer, first error) {
	var ins []*inbound
	for _, b := range list {
		in, a, err := r.take(now, peer, b)
		first = cmp.Or(first, err)
		switch {
		case in == nil && err == nil, in == nil && a.Anew:
			answers = append(answers, a)
		case in != nil && !slices.Contains(ins, in):
			ins = append(ins, in)
		}
	}
	r.flush()
	for _, in := range ins {
		answers = append(answers, in.answer(r, now))
	}
	return answers, first
}

// take takes in one frame. What it changes may wait for the next flush. The answer is in's when that has come, or a.
func (r *Receiver) take(now int64, peer string, b []byte) (in *inbound, a Answer, err error) {
	var h header
	if err := h.get(b); err != nil {
		return nil, a, err
	}
	if int(h.Len) != len(b) {
		return nil, a, fmt.Errorf("frame: %d bytes, and says that it is %d long", len(b), h.Len)
	}
	if len(r.ops) > 0 && (h.First || r.stale || r.peers[peer][h.Stream] != r.ops[0].in) { // a batch is of one stream
		r.flush()
	}
	r.missed()
	if r.stale {
		r.reclaim(false)
	}
	in = r.stream(peer, &h)
	switch {
	case in == nil || h.Seq > in.next:
		return nil, Answer{Life: h.Life, Stream: h.Stream, Anew: true, Seq: h.Seq}, nil
	case h.Seq < in.next && !r.plant.anyOrder:
		r.Stats.Older += uint64(h.Count)
		return in, a, nil
	}
	rest, seq, first := b[headerLen:], h.Seq, error(nil)
	for range h.Count {
		k, group, body, more, err := nextRecord(rest)
		if err != nil {
			// Nothing of this frame after it can be told apart, so the stream cannot go on.
			return nil, Answer{Life: h.Life, Stream: h.Stream, Anew: true, Seq: h.Seq}, cmp.Or(first, err)
		}
		rest = more
		if err := r.record(now, peer, in, seq, k, group, body); err != nil && first == nil {
			first = fmt.Errorf("record %d of stream %d of %s: %w", seq, h.Stream, peer, err)
		}
		seq++
	}
	in.next = max(in.next, seq)
	r.Stats.Records += uint64(h.Count)
	return in, a, first
}

// stream is the stream that a frame belongs to, begun anew if it says so; nil when it does not belong to any.
func (r *Receiver) stream(peer string, h *header) *inbound {
	streams := r.peers[peer]
	in := streams[h.Stream]
	if !h.First || in != nil && in.life == h.Life && h.Seq < in.next {
		if in == nil || in.life != h.Life {
			return nil
		}
		return in
	}
	if streams == nil {
		streams = map[uint8]*inbound{}
		r.peers[peer] = streams
	}
	for n, old := range streams {
		if n == h.Stream || old.life != h.Life { // another life of the peer: all that the former one said is over
			r.end(old)
			delete(streams, n)
		}
	}
	r.reclaim(false)
	in = &inbound{life: h.Life, stream: h.Stream, next: h.Seq, groups: map[uint8]*inGroup{}, ctx: Context{claims: &r.claims}}
	streams[h.Stream] = in
	return in
}

// record takes in one record.
func (r *Receiver) record(now int64, peer string, in *inbound, seq uint64, k Kind, group uint8, body []byte) error {
	switch k {
	case KindName:
		return r.name(in, body)
	case KindBegin, KindEnd, KindDigest:
		m, err := decodeMarker(body)
		if err != nil {
			return err
		}
		r.flush()
		r.mark(now, peer, in, seq, k, group, &m)
		return nil
	}
	g := in.group(group)
	if g == nil || !g.active || g.Epoch < r.groups[group].epoch && !r.plant.anyEpoch {
		r.Stats.Outdated++
		return nil
	}
	switch k {
	case KindSession, KindBlock, KindRate, KindCount, KindTouch, KindGone:
		return r.slot(in, g, k, group, body)
	}
	r.Stats.Unknown++
	if k >= Critical {
		g.strange++
		return fmt.Errorf("kind %d must be understood, and is not known here: the owner runs a newer release", k)
	}
	return nil
}

// name enters a name of the stream.
func (r *Receiver) name(in *inbound, body []byte) error {
	kind, number, name, err := decodeName(body)
	if err != nil {
		return err
	}
	if int(number) > len(in.names) {
		return fmt.Errorf("name %q has number %d, and %d names came before it", name, number, len(in.names))
	}
	n := inName{kind: kind, name: name}
	n.local, n.ok = r.sink.Local(kind, name)
	in.tenantHash(n)
	if int(number) == len(in.names) {
		in.names = append(in.names, n)
	} else {
		in.names[number] = n
	}
	return nil
}

// missed asks for all groups again when the Sink has ended something by itself: what was put is not there, whatever the digest of what was put says.
func (r *Receiver) missed() {
	n := r.sink.Lost()
	if n == r.lost || r.plant.deafLost {
		return
	}
	r.lost = n
	for _, streams := range r.peers {
		for _, in := range streams {
			for _, g := range in.groups {
				if g.active {
					g.want, g.equal = true, 0
					r.groups[g.id].swept = false
				}
			}
		}
	}
}

// Renew asks the Sink anew for its numbers of all names: its policy has changed. What could not be taken because of that is asked for again.
func (r *Receiver) Renew() {
	for _, streams := range r.peers {
		for _, in := range streams {
			for i := range in.names {
				n := &in.names[i]
				n.local, n.ok = r.sink.Local(n.kind, n.name)
			}
			for _, g := range in.groups {
				if g.missing[NoTenant] > 0 {
					g.want = true
				}
			}
			in.tenantHashes()
		}
	}
}

// tenantHashes works out anew what stands for tenants in hashes.
func (in *inbound) tenantHashes() {
	clear(in.ctx.tenants)
	for _, n := range in.names {
		in.tenantHash(n)
	}
}

func (in *inbound) tenantHash(n inName) {
	if n.kind != NameTenant || !n.ok {
		return
	}
	for len(in.ctx.tenants) <= int(n.local) {
		in.ctx.tenants = append(in.ctx.tenants, 0)
	}
	in.ctx.tenants[n.local] = HashName(in.ctx.key, n.kind, n.name)
}

// local turns a number of the stream into this node's.
func (in *inbound) local(kind NameKind, number uint16) (uint16, bool) {
	if int(number) < len(in.names) && in.names[number].kind == kind && in.names[number].ok {
		return in.names[number].local, true
	}
	return NoName, false
}

// Whole says whether the copy of a group is whole, or in words why not. It may be so at two nodes only if their tables are.
func (r *Receiver) Whole(group uint8) (bool, string) {
	st := &r.groups[group]
	if st.own {
		return false, "this node owns the group"
	}
	of, have := 0, 0
	for _, peer := range slices.Sorted(maps.Keys(r.peers)) {
		for _, n := range slices.Sorted(maps.Keys(r.peers[peer])) {
			g := r.peers[peer][n].groups[group]
			if g == nil || g.Epoch < st.epoch || g.refused != "" {
				continue
			}
			of, have = max(of, int(g.Of)), have+1
			lost, why := g.lost()
			switch {
			case !g.active:
				return false, fmt.Sprintf("stream %d of %s is not taken yet", n, peer)
			case lost > 0:
				return false, fmt.Sprintf("%s: %d records of stream %d of %s were not taken", why, lost, n, peer)
			case g.copying:
				return false, fmt.Sprintf("being copied: %d records of stream %d of %s so far", g.number, n, peer)
			case g.want || g.equal == 0:
				return false, fmt.Sprintf("the digest of stream %d of %s differs: it is copied again", n, peer)
			}
		}
	}
	switch {
	case have == 0:
		return false, "nothing has come from the owner"
	case have < of:
		return false, fmt.Sprintf("%d of %d streams of the owner have come", have, of)
	}
	return true, ""
}

// Marked is how long ago the last digests were equal, in that stream of the owner's for which it is longest; false when the copy is not whole.
func (r *Receiver) Marked(now int64, group uint8) (age time.Duration, ok bool) {
	if ok, _ = r.Whole(group); !ok {
		return 0, false
	}
	for _, streams := range r.peers {
		for _, in := range streams {
			if g := in.groups[group]; g != nil && g.active {
				age = max(age, time.Duration(now-g.equalAt))
			}
		}
	}
	return age, true
}
