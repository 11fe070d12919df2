package nat

import (
	"encoding/binary"
	"fmt"
	"math/bits"
	"unsafe"

	"demarc/gateway/flow"
	"demarc/gateway/undo"
	"demarc/gateway/verdict"
)

// Mapping is one inside port and the public port that it has.
type Mapping struct {
	inside [4]byte
	refs   uint32  // sessions that use it; in an empty place, the next empty one
	remote [4]byte // far address that it was made for; zero where the mapping is endpoint-independent
	port   uint16
	public uint16
	addr   AddrID
	tenant flow.TenantID
	hold   uint16 // how long the public port rests afterwards, in units of 2^holdShift ticks
	class  Class
	flags  uint8
}

var _ = [1]struct{}{}[unsafe.Sizeof(Mapping{})-24]

const (
	mapLive     uint8 = 1 << iota
	mapAside          // not in the inside index: replaced by another for new sessions, or made for one session
	mapAnchored       // counted by its host's anchor
	mapLent           // its port is of another worker's block

	holdShift = 10 // 2^10 ticks: about 1.07 s
	noMapping = 1<<32 - 1

	// MaxCapacity is the largest number of mappings of one shard.
	MaxCapacity = 1 << 30

	// spread is how many blocks a group that is not per host keeps open to choose from, so that a port is hard to guess (RFC 6056).
	spread = 8
)

// Public is the public address and port.
func (m *Mapping) Public() (AddrID, uint16) { return m.addr, m.public }

// Inside is whose port it is.
func (m *Mapping) Inside() (flow.TenantID, [4]byte, uint16) { return m.tenant, m.inside, m.port }

// Class is the port space of the mapping.
func (m *Mapping) Class() Class { return m.class }

// Remote is the far address that the mapping was made for, false where it is endpoint-independent.
func (m *Mapping) Remote() (a [4]byte, ok bool) { return m.remote, m.remote != [4]byte{} }

// Live is how many sessions use it; 0 where there is no mapping at this place.
func (m *Mapping) Live() uint32 {
	if m.flags&mapLive == 0 {
		return 0
	}
	return m.refs
}

// Refs is how many sessions use it.
func (m *Mapping) Refs() uint32 { return m.refs }

// Shard is one worker's mappings and the blocks of ports that it owns. The memory handed in holds, in this order: the lines of the
// inside index, those of the outside index, the mappings, the heads of the groups' hash chains, the anchors.
type Shard struct {
	sp      *Space
	seed    uint64
	worker  int
	inside  index // by tenant, class, inside address and port, and far address where mapping depends on it
	outside index // by public address, class and port
	maps    []Mapping
	heads   []blockID // leaders of groups + 1, so that zeroed memory is empty
	anchors anchors
	mask    uint64
	free    uint32 // first empty mapping, or noMapping
	fresh   uint32 // mappings from here on were never used
	live    int
	hand    blockID // where Sweep goes on in the list of all blocks, or noBlock
	blocks  int
	use     []Use // by AddrID: what reports ask for, kept so that none has to walk the blocks
	log     *undo.Log
	aside   map[blockID]uint64 // a twin's: ports that it has freed, which the others shall not see
	sink    uint32             // of loads that only bring memory near
	missed  func()             // tests: called after each look at an address that found no port
}

// Twin is a shard over the same memory that remembers in l what it writes, blocks included. Until l is undone, only the twin may be used. Ports that
// it takes nobody else can have meanwhile, and those that it frees neither.
func (s *Shard) Twin(l *undo.Log) *Shard {
	c := *s
	c.log, c.inside.log, c.outside.log, c.anchors.log = l, l, l, l
	c.aside = map[blockID]uint64{}
	return &c
}

// block is the state of a block that the shard owns.
func (s *Shard) block(b blockID) *owned {
	k := &s.sp.block(b).owned
	undo.Keep(s.log, k)
	return k
}

// place is a port that was taken for a mapping.
type place struct {
	block blockID
	bit   uint8
	lent  bool // the block is another worker's
}

func numHeads(capacity int) int { return 1 << bits.Len(uint(capacity/32)) }

// Bytes is the memory that NewShard wants. The ports' own state is the Space's, see Space.Bytes.
func Bytes(capacity int) int {
	return numLines(capacity)*128 + capacity*24 + (numHeads(capacity)*4+numAnchors(capacity)*anchorSize+63)&^63
}

// Entries is where in that memory the mappings themselves lie, and how large one is: they are used from the front on, as far as there ever were mappings at once. All else is met at random.
func Entries(capacity int) (from, to, size int) {
	size = int(unsafe.Sizeof(Mapping{}))
	from = numLines(capacity) * 128
	return from, from + capacity*size, size
}

// NewShard lays the mappings of one worker over mem, which must be zeroed, aligned to 64 bytes, at least Bytes(capacity) long, and
// outlive the shard.
func NewShard(mem []byte, capacity, worker int, sp *Space, seed uint64) (*Shard, error) {
	switch {
	case capacity < 1 || capacity > MaxCapacity:
		return nil, fmt.Errorf("mapping table of %d entries: want 1 to %d", capacity, MaxCapacity)
	case worker < 0 || worker >= MaxWorkers:
		return nil, fmt.Errorf("mapping table of worker %d: want 0 to %d", worker, MaxWorkers-1)
	case len(mem) < Bytes(capacity):
		return nil, fmt.Errorf("mapping table of %d entries: %d bytes of memory, want %d", capacity, len(mem), Bytes(capacity))
	case sp == nil:
		return nil, fmt.Errorf("mapping table of worker %d: no public addresses", worker)
	}
	p := unsafe.Pointer(unsafe.SliceData(mem))
	if uintptr(p)&63 != 0 {
		return nil, fmt.Errorf("mapping table: memory at %#x is not aligned to 64 bytes", uintptr(p))
	}
	s := &Shard{sp: sp, seed: seed, worker: worker, free: noMapping, hand: noBlock, use: make([]Use, len(sp.addrs))}
	// The only unsafe of this package: the layout above laid over the memory handed in.
	n := numLines(capacity)
	idBits := uint(bits.Len(uint(capacity)))
	s.inside = index{lines: unsafe.Slice((*line)(p), n), idBits: idBits}
	p = unsafe.Add(p, n*64)
	s.outside = index{lines: unsafe.Slice((*line)(p), n), idBits: idBits}
	p = unsafe.Add(p, n*64)
	s.maps = unsafe.Slice((*Mapping)(p), capacity)
	p = unsafe.Add(p, capacity*24)
	s.heads = unsafe.Slice((*blockID)(p), numHeads(capacity))
	s.mask = uint64(len(s.heads) - 1)
	p = unsafe.Add(p, len(s.heads)*4)
	s.anchors = anchors{slots: unsafe.Slice((*anchor)(p), numAnchors(capacity)), seed: seed, last: -1}
	return s, nil
}

func mix(a, b uint64) uint64 {
	hi, lo := bits.Mul64(a, b)
	return hi ^ lo
}

// hashInside is the same for both ports of an RTP pair, so that they stand in one line, and one look finds both.
func (s *Shard) hashInside(t flow.TenantID, c Class, a [4]byte, port uint16, remote [4]byte) uint64 {
	if c == UDP {
		port &^= 1
	}
	x := uint64(binary.LittleEndian.Uint32(a[:])) | uint64(port)<<32 | uint64(t)<<48
	return mix(mix(x^s.seed^0xa0761d6478bd642f, 0xe7037ed1a0b428db^uint64(c)^uint64(binary.LittleEndian.Uint32(remote[:]))<<8), s.seed^0x8ebc6af09c88c6e3)
}

func (s *Shard) hashOutside(a AddrID, c Class, port uint16) uint64 {
	x := uint64(port) | uint64(a)<<16 | uint64(c)<<32
	return mix(mix(x^s.seed^0x589965cc75374cc3, 0xa0761d6478bd642f), s.seed^0xe7037ed1a0b428db)
}

// InsideAt is where the line lies in which Map will look for a mapping of an inside port, for package prefetch. remote is none where mappings are endpoint-independent.
func (s *Shard) InsideAt(t flow.TenantID, c Class, a [4]byte, port uint16, remote [4]byte) uintptr {
	return s.inside.at(s.hashInside(t, c, a, port, remote))
}

// findInside finds the mapping of an inside port, or else that of the other port of its RTP pair.
func (s *Shard) findInside(h uint64, t flow.TenantID, c Class, a [4]byte, port uint16, remote [4]byte) (id, beside uint32) {
	x := &s.inside
	tag, low := uint32(h)<<x.idBits, uint32(1)<<x.idBits-1
	at := x.home(h)
	beside = noMapping
	for range x.lines {
		l := &x.lines[at]
		for _, e := range l.like(tag, low) {
			if (e^tag)-1 >= low { // another tag, or no id
				continue
			}
			m := &s.maps[e&low-1]
			if m.inside != a || m.port&^1 != port&^1 || m.tenant != t || m.class != c || m.remote != remote {
				continue
			}
			if m.port == port {
				return e&low - 1, noMapping
			}
			beside = e&low - 1
		}
		if l.passed == 0 {
			break
		}
		at = x.after(at)
	}
	return noMapping, beside
}

// Lookup finds the mapping of a public port.
func (s *Shard) Lookup(a AddrID, c Class, port uint16) (id uint32, ok bool) {
	h := s.hashOutside(a, c, port)
	x := &s.outside
	tag, low := uint32(h)<<x.idBits, uint32(1)<<x.idBits-1
	at := x.home(h)
	for range x.lines {
		l := &x.lines[at]
		for _, e := range l.like(tag, low) {
			if (e^tag)-1 >= low { // another tag, or no id
				continue
			}
			m := &s.maps[e&low-1]
			if m.addr == a && m.public == port && m.class == c {
				return e&low - 1, true
			}
		}
		if l.passed == 0 {
			break
		}
		at = x.after(at)
	}
	return noMapping, false
}

// inPool is where in a pool an address is. Most pools are one range, whose numbers follow each other.
func inPool(pool []AddrID, a AddrID) (int, bool) {
	if len(pool) == 0 {
		return 0, false
	}
	if i := int(a) - int(pool[0]); uint(i) < uint(len(pool)) && pool[i] == a {
		return i, true
	}
	for i, p := range pool {
		if p == a {
			return i, true
		}
	}
	return 0, false
}

// Map is the mapping of an inside port: the one that there is while its address is in the pool and its port is not reserved, else a new
// one without sessions, which the caller must Ref or Drop. Endpoint-independent (RFC 4787 REQ-1), an inside port has one; address-dependent,
// one for each far address; address-and-port-dependent, one for each session. In no mode do two inside ports share a public one (REQ-3).
// rnd is fresh randomness.
//
// The public port keeps the parity of the inside port and, below 1024, its range (RFC 4787 REQ-3a, REQ-4), as preferences; of two UDP
// ports 2n and 2n+1 the second gets the neighbour of the first one's where that is free, for RTP and RTCP. A port of 1024 or
// more gets none below 1024. Which address it is, see Pooling.
//
// Pass, NATNoPool, NATNoPort or NATMappingTableFull.
func (s *Shard) Map(r *Request, rnd uint64) (id uint32, reason verdict.Reason) {
	if len(r.Pool) == 0 {
		return noMapping, verdict.NATNoPool
	}
	if r.Class >= numClasses {
		return noMapping, verdict.InternalError
	}
	flags := mapLive
	remote := r.remote()
	var h uint64
	old, beside := uint32(noMapping), uint32(noMapping)
	if r.Mapping == AddressAndPortDependent {
		flags |= mapAside // nobody will ask for it: what belongs to its session is found by the session
	} else {
		h = s.hashInside(r.Tenant, r.Class, r.Inside, r.Port, remote)
		old, beside = s.findInside(h, r.Tenant, r.Class, r.Inside, r.Port, remote)
	}
	if old != noMapping {
		m := &s.maps[old]
		if _, in := inPool(r.Pool, m.addr); in && !s.sp.Reserved(m.addr, m.class, m.public) {
			return old, verdict.Pass
		}
		if r.Class == UDP {
			beside, _ = s.findInside(h, r.Tenant, r.Class, r.Inside, r.Port^1, remote)
		}
	}
	if s.free == noMapping && int(s.fresh) == len(s.maps) {
		return noMapping, verdict.NATMappingTableFull
	}
	p, ok := s.port(r, beside, rnd)
	if !ok {
		return noMapping, verdict.NATNoPort
	}
	if old != noMapping {
		s.inside.erase(h, old)
		undo.Keep(s.log, &s.maps[old])
		s.maps[old].flags |= mapAside
	}
	return s.fill(r, p, h, flags, remote, r.Pooling != Arbitrary), verdict.Pass
}

// fill makes a mapping of a port that was taken. There is room for one. h is hashInside, where it is not aside.
func (s *Shard) fill(r *Request, p place, h uint64, flags uint8, remote [4]byte, anchored bool) (id uint32) {
	b := p.block
	public := uint16(numberOf(b))<<6 | uint16(p.bit)
	outside := s.hashOutside(addrOf(b), r.Class, public)
	s.sink ^= s.outside.lines[s.outside.home(outside)].passed // which is in no cache: it comes while the rest is written
	if id = s.free; id != noMapping {
		s.free = s.maps[id].refs
	} else {
		id = s.fresh
		s.fresh++
	}
	undo.Keep(s.log, &s.maps[id])
	s.portUse(addrOf(b)).InUse++
	if p.lent {
		flags |= mapLent
	} else {
		s.relink(b)
	}
	if anchored && s.anchors.hold(r.Tenant, r.Inside, addrOf(b), r.Pool) {
		flags |= mapAnchored
	}
	s.maps[id] = Mapping{
		inside: r.Inside, port: r.Port, tenant: r.Tenant, class: r.Class, flags: flags, remote: remote,
		addr: addrOf(b), public: public,
		hold: uint16(min((uint64(r.Hold)+1<<holdShift-1)>>holdShift, 0xffff)),
	}
	if flags&mapAside == 0 {
		s.inside.insert(h, id)
	}
	s.outside.insert(outside, id)
	s.live++
	return id
}

// port takes a free port for r: the address, the block, opened if need be, and the place in it. What other workers have free in their blocks is
// asked for last, but before a host leaves the address that it has. beside is the mapping of the other port of an RTP pair, if there is one.
func (s *Shard) port(r *Request, beside uint32, rnd uint64) (place, bool) {
	if r.Class == UDP && beside != noMapping {
		if p, ok := s.neighbour(r, &s.maps[beside]); ok {
			return p, true
		}
	}
	key := groupKey{tenant: uint16(r.Tenant)}
	if r.PerHost {
		key.flags, key.inside = groupPerHost, r.Inside
	}
	first, tries, stay := s.address(r, rnd)
	if r.PerHost {
		stay = false // its ports are in its blocks, and nowhere else
	}
	turn := func(i int) AddrID {
		if i += first; i >= len(r.Pool) {
			i -= len(r.Pool)
		}
		return r.Pool[i]
	}
	for i := range tries {
		if p, ok := s.portAt(r, turn(i), &key, stay && i == 0, rnd); ok {
			return p, true
		}
	}
	if r.PerHost {
		return place{}, false
	}
	for i := range tries {
		if stay && i == 0 {
			continue
		}
		if p, ok := s.portAt(r, turn(i), &key, true, rnd); ok {
			return p, true
		}
	}
	return place{}, false
}

// portAt takes a free port of one address. With lend it is false only if there was an instant at which the address had none: what moved past the
// search, from where it had not yet looked to where it had, is seen by the count of moves. A worker that the kernel stops amid such a move, a few
// instructions long, is not waited for.
func (s *Shard) portAt(r *Request, a AddrID, key *groupKey, lend bool, rnd uint64) (p place, ok bool) {
	of, want := blockOf(a, r.Class, 0), int(r.Port&1)
	low := *key
	low.flags |= groupLow
	for range searches {
		before := s.sp.moved(of)
		for _, parity := range [2]int{want, 1 - want} {
			if r.Port < 1024 && r.Class != ICMP {
				if p, ok = s.portIn(of, &low, parity, rnd); !ok && lend {
					p, ok = s.lend(of, true, parity, rnd)
				}
			}
			if !ok {
				if p, ok = s.portIn(of, key, parity, rnd); !ok && lend {
					p, ok = s.lend(of, false, parity, rnd)
				}
			}
			if ok {
				return p, true
			}
		}
		if s.missed != nil {
			s.missed()
		}
		if after := s.sp.moved(of); !lend || after == before && uint32(after) == 0 {
			break
		}
	}
	return place{}, false
}

// neighbour is the port beside the one that the other port of an RTP pair has by m, if it is free. A block never parts a pair.
func (s *Shard) neighbour(r *Request, m *Mapping) (place, bool) {
	lent := m.flags&mapLent != 0
	if (m.public^m.port)&1 != 0 || lent && r.PerHost {
		return place{}, false
	}
	if _, in := inPool(r.Pool, m.addr); !in {
		return place{}, false
	}
	p := place{blockOf(m.addr, UDP, m.public), uint8(m.public&63) ^ 1, lent}
	return p, s.usable(p.block)>>p.bit&1 != 0 && s.take(p)
}

// portIn takes a free port of one group of the address and class of the block of, opening a block where the group has none, or too few
// to choose from.
func (s *Shard) portIn(of blockID, key *groupKey, parity int, rnd uint64) (place, bool) {
	leader := s.findGroup(of, key)
	perHost := key.flags&groupPerHost != 0
	short := !perHost && s.sp.short(of)
	if leader == noBlock || !perHost && !short && s.block(leader).group.blocks < spread {
		s.open(of, key, leader, parity, rnd)
		if leader = s.findGroup(of, key); leader == noBlock {
			return place{}, false
		}
	}
	if short {
		s.fullest(leader, parity)
		rnd &^= spread - 1
	}
	if p, ok := s.pick(leader, parity, rnd); ok {
		return p, true
	}
	if gen := s.sp.resGen.Load(); s.block(leader).group.resGen != gen {
		s.relinkGroup(leader, gen)
		if p, ok := s.pick(leader, parity, rnd); ok {
			return p, true
		}
	}
	if !s.open(of, key, leader, parity, rnd) {
		return place{}, false
	}
	return s.pick(leader, parity, rnd)
}

// fullest puts the block with the fewest free ports of the next few in front, so that the emptier ones become empty and go back.
func (s *Shard) fullest(leader blockID, parity int) {
	head := &s.block(leader).group.head[parity]
	if *head == noNumber {
		return
	}
	best, fewest := *head, blockPorts+1
	b := beside(leader, *head)
	for range spread {
		if m := s.usable(b); m&parityMask(parity) != 0 && bits.OnesCount64(m) < fewest {
			best, fewest = numberOf(b), bits.OnesCount64(m)
		}
		b = beside(b, s.block(b).next[parity])
	}
	*head = best
}

// pick takes a port at random in one of the next few blocks of the group's list, and lets the next choice go on from there.
func (s *Shard) pick(leader blockID, parity int, rnd uint64) (place, bool) {
	head := &s.block(leader).group.head[parity]
	if *head == noNumber {
		return place{}, false
	}
	blocks, n := s.sp.class(leader), *head
	for range rnd & (spread - 1) {
		n = blocks[n%blocksPerAddr].next[parity]
	}
	for b := beside(leader, n); ; {
		m := s.usable(b) & parityMask(parity)
		if m != 0 {
			if p := (place{block: b, bit: anyOf(m, rnd)}); s.take(p) {
				*head = numberOf(b)
				return p, true
			}
			continue // it was lent just now
		}
		// Ports were reserved or lent since: the list is made true where that is noticed.
		next := s.block(b).next[parity]
		s.unlink(b, parity)
		if *head == noNumber {
			return place{}, false
		}
		b = beside(b, next)
	}
}

// anyOf chooses one of the ports of m, which has some.
func anyOf(m, rnd uint64) uint8 {
	const ones = 0x0101010101010101
	// How many there are in each byte, and up to each byte, it included.
	c := m - m>>1&(ones*0x55)
	c = c&(ones*0x33) + c>>2&(ones*0x33)
	c = (c + c>>4) & (ones * 0x0f) * ones
	k := (rnd >> 8 & 0xffff) * (c >> 56) >> 16 // which one, from 0
	// It lies behind all bytes up to which there are k or fewer: of those a top bit stays.
	at := bits.OnesCount64(((k*ones|ones*0x80)-c)&(ones*0x80)) * 8
	m >>= at
	for range k - c<<8>>at&0xff {
		m &= m - 1
	}
	return uint8(at + bits.TrailingZeros64(m))
}

// Mapping is the mapping with that id. It stays valid until the mapping ends.
func (s *Shard) Mapping(id uint32) *Mapping { return &s.maps[id] }

func (s *Shard) isLive(id uint32) bool { return id < s.fresh && s.maps[id].flags&mapLive != 0 }

// Ref counts one more session of the mapping.
func (s *Shard) Ref(id uint32) {
	if s.isLive(id) {
		undo.Keep(s.log, &s.maps[id])
		s.maps[id].refs++
	}
}

// Unref counts one session less. With the last one the mapping ends and its port rests for the hold time.
func (s *Shard) Unref(id uint32, now uint32) {
	if !s.isLive(id) || s.maps[id].refs == 0 {
		return
	}
	m := &s.maps[id]
	undo.Keep(s.log, m)
	if m.refs--; m.refs != 0 {
		return
	}
	b, bit, hold, lent := blockOf(m.addr, m.class, m.public), uint64(1)<<(m.public&63), uint32(m.hold)<<holdShift, m.flags&mapLent != 0
	s.end(id)
	if hold == 0 {
		s.letGo(b, bit, lent)
		return
	}
	s.portUse(addrOf(b)).Held++
	if lent {
		s.bringBack(b, bit, hold)
		return
	}
	if s.wake(b, now) {
		s.relink(b)
	}
	s.block(b).rest(bit, hold, now)
}

// Drop ends a mapping that no session ever used: its port may be used at once.
func (s *Shard) Drop(id uint32) {
	if !s.isLive(id) || s.maps[id].refs != 0 {
		return
	}
	m := &s.maps[id]
	b, bit, lent := blockOf(m.addr, m.class, m.public), uint64(1)<<(m.public&63), m.flags&mapLent != 0
	s.end(id)
	s.letGo(b, bit, lent)
}

// letGo frees a port that need not rest.
func (s *Shard) letGo(b blockID, bit uint64, lent bool) {
	if lent {
		s.unlend(b, bit)
		return
	}
	s.put(b, bit)
	s.relink(b)
}

func (s *Shard) end(id uint32) {
	m := &s.maps[id]
	undo.Keep(s.log, m)
	if m.flags&mapAside == 0 {
		s.inside.erase(s.hashInside(m.tenant, m.class, m.inside, m.port, m.remote), id)
	}
	if m.flags&mapAnchored != 0 {
		s.anchors.release(m.tenant, m.inside)
	}
	s.outside.erase(s.hashOutside(m.addr, m.class, m.public), id)
	s.portUse(m.addr).InUse--
	m.flags = 0
	m.refs = s.free
	s.free = id
	s.live--
}

// Len is the number of mappings.
func (s *Shard) Len() int { return s.live }

// Capacity is how many mappings fit.
func (s *Shard) Capacity() int { return len(s.maps) }

// Each calls fn for the mappings among the next budget places from from, until fn returns false. Go on with next until done.
func (s *Shard) Each(from uint32, budget int, fn func(id uint32, m *Mapping) bool) (next uint32, done bool) {
	for ; from < s.fresh && budget > 0; budget-- {
		id := from
		from++
		if s.maps[id].flags&mapLive != 0 && !fn(id, &s.maps[id]) {
			break
		}
	}
	return from, from >= s.fresh
}
