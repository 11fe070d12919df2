package nat

import (
	"encoding/binary"
	"fmt"
	"math/bits"
	"unsafe"

	"demarc/gateway/flow"
	"demarc/gateway/verdict"
)

// Mapping is one inside port and the public port that it has.
type Mapping struct {
	inside  [4]byte
	refs    uint32 // sessions that use it; in an empty place, the next empty one
	changed uint32 // tick at which it was made or last lost a session
	port    uint16
	public  uint16
	addr    AddrID
	tenant  flow.TenantID
	hold    uint16 // how long the public port rests afterwards, in units of 2^holdShift ticks
	class   Class
	flags   uint8
}

var _ = [1]struct{}{}[unsafe.Sizeof(Mapping{})-24]

const (
	mapLive     uint8 = 1 << iota
	mapReplaced       // no longer in the inside index: another mapping serves new sessions of that inside port

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

// Refs is how many sessions use it.
func (m *Mapping) Refs() uint32 { return m.refs }

// Shard is one worker's mappings and the blocks of ports that it owns. The memory handed in holds, in this order: the lines of the
// inside index, those of the outside index, the mappings, the heads of the groups' hash chains.
type Shard struct {
	sp      *Space
	seed    uint64
	worker  int
	inside  index // by tenant, class, inside address and port
	outside index // by public address, class and port
	maps    []Mapping
	heads   []blockID // leaders of groups + 1, so that zeroed memory is empty
	mask    uint64
	free    uint32 // first empty mapping, or noMapping
	fresh   uint32 // mappings from here on were never used
	live    int
	hand    blockID // where Sweep goes on in the list of all blocks, or noBlock
	blocks  int
}

func numHeads(capacity int) int { return 1 << bits.Len(uint(capacity/32)) }

// Bytes is the memory that NewShard wants. The ports' own state is the Space's, see Space.Bytes.
func Bytes(capacity int) int {
	return numLines(capacity)*128 + capacity*24 + (numHeads(capacity)*4+63)&^63
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
	s := &Shard{sp: sp, seed: seed, worker: worker, free: noMapping, hand: noBlock}
	// The only unsafe of this package: the layout above laid over the memory handed in.
	n := numLines(capacity)
	idBits := uint(bits.Len(uint(capacity)))
	s.inside = index{unsafe.Slice((*line)(p), n), idBits}
	p = unsafe.Add(p, n*64)
	s.outside = index{unsafe.Slice((*line)(p), n), idBits}
	p = unsafe.Add(p, n*64)
	s.maps = unsafe.Slice((*Mapping)(p), capacity)
	p = unsafe.Add(p, capacity*24)
	s.heads = unsafe.Slice((*blockID)(p), numHeads(capacity))
	s.mask = uint64(len(s.heads) - 1)
	return s, nil
}

func mix(a, b uint64) uint64 {
	hi, lo := bits.Mul64(a, b)
	return hi ^ lo
}

func (s *Shard) hashInside(t flow.TenantID, c Class, a [4]byte, port uint16) uint64 {
	x := uint64(binary.LittleEndian.Uint32(a[:])) | uint64(port)<<32 | uint64(t)<<48
	return mix(mix(x^s.seed^0xa0761d6478bd642f, 0xe7037ed1a0b428db^uint64(c)), s.seed^0x8ebc6af09c88c6e3)
}

func (s *Shard) hashOutside(a AddrID, c Class, port uint16) uint64 {
	x := uint64(port) | uint64(a)<<16 | uint64(c)<<32
	return mix(mix(x^s.seed^0x589965cc75374cc3, 0xa0761d6478bd642f), s.seed^0xe7037ed1a0b428db)
}

func (s *Shard) findInside(h uint64, t flow.TenantID, c Class, a [4]byte, port uint16) (uint32, bool) {
	x := &s.inside
	tag, low := uint32(h)<<x.idBits, uint32(1)<<x.idBits-1
	at := x.home(h)
	for range x.lines {
		l := &x.lines[at]
		for _, e := range l.entry {
			if e&^low != tag || e&low == 0 {
				continue
			}
			m := &s.maps[e&low-1]
			if m.inside == a && m.port == port && m.tenant == t && m.class == c {
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

// Lookup finds the mapping of a public port.
func (s *Shard) Lookup(a AddrID, c Class, port uint16) (id uint32, ok bool) {
	h := s.hashOutside(a, c, port)
	x := &s.outside
	tag, low := uint32(h)<<x.idBits, uint32(1)<<x.idBits-1
	at := x.home(h)
	for range x.lines {
		l := &x.lines[at]
		for _, e := range l.entry {
			if e&^low != tag || e&low == 0 {
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

func inPool(pool []AddrID, a AddrID) bool {
	for _, p := range pool {
		if p == a {
			return true
		}
	}
	return false
}

// Map is the mapping of an inside port: the one that there is (endpoint-independent, RFC 4787 REQ-1) while its address is in the pool and its
// port is not reserved, else a new one without sessions, which the caller must Ref or Drop. rnd is fresh randomness.
//
// The public port keeps the parity of the inside port and, below 1024, its range (RFC 4787 REQ-3, REQ-4), as preferences; of two UDP
// ports 2n and 2n+1 the second gets the neighbour of the first one's where that is free, for RTP and RTCP. A port of 1024 or
// more gets none below 1024. The host keeps one address while that has ports (paired pooling, REQ-2).
//
// Pass, NATNoPool, NATNoPort or NATMappingTableFull.
func (s *Shard) Map(r *Request, now uint32, rnd uint64) (id uint32, reason verdict.Reason) {
	if len(r.Pool) == 0 {
		return noMapping, verdict.NATNoPool
	}
	if r.Class >= numClasses {
		return noMapping, verdict.InternalError
	}
	h := s.hashInside(r.Tenant, r.Class, r.Inside, r.Port)
	old, found := s.findInside(h, r.Tenant, r.Class, r.Inside, r.Port)
	if found {
		m := &s.maps[old]
		if inPool(r.Pool, m.addr) && !s.sp.Reserved(m.addr, m.class, m.public) {
			return old, verdict.Pass
		}
	}
	if s.free == noMapping && int(s.fresh) == len(s.maps) {
		return noMapping, verdict.NATMappingTableFull
	}
	b, bit, ok := s.port(r, rnd)
	if !ok {
		return noMapping, verdict.NATNoPort
	}
	if found {
		s.inside.erase(h, old)
		s.maps[old].flags |= mapReplaced
	}
	if id = s.free; id != noMapping {
		s.free = s.maps[id].refs
	} else {
		id = s.fresh
		s.fresh++
	}
	s.take(b, r.Class, bit)
	s.maps[id] = Mapping{
		inside: r.Inside, port: r.Port, tenant: r.Tenant, class: r.Class, flags: mapLive, changed: now,
		addr: AddrID(b >> 10), public: uint16(b<<6) | uint16(bit),
		hold: uint16(min((uint64(r.Hold)+1<<holdShift-1)>>holdShift, 0xffff)),
	}
	s.inside.insert(h, id)
	s.outside.insert(s.hashOutside(s.maps[id].addr, r.Class, s.maps[id].public), id)
	s.live++
	return id, verdict.Pass
}

// port chooses a free port for r: the block, opened if need be, and the place in it.
func (s *Shard) port(r *Request, rnd uint64) (blockID, uint, bool) {
	if r.Class == UDP {
		if b, bit, ok := s.neighbour(r); ok {
			return b, bit, true
		}
	}
	key := groupKey{tenant: uint16(r.Tenant)}
	if r.PerHost {
		key.flags, key.inside = groupPerHost, r.Inside
	}
	h := mix(uint64(binary.LittleEndian.Uint32(r.Inside[:]))^s.seed, uint64(r.Tenant)^0x8ebc6af09c88c6e3)
	first, _ := bits.Mul64(mix(h, 0x589965cc75374cc3), uint64(len(r.Pool)))
	want := int(r.Port & 1)
	for i := range r.Pool {
		key.addr = r.Pool[(int(first)+i)%len(r.Pool)]
		for _, parity := range [2]int{want, 1 - want} {
			if r.Port < 1024 && r.Class != ICMP {
				low := key
				low.flags |= groupLow
				if b, bit, ok := s.portIn(&low, r.Class, parity, rnd); ok {
					return b, bit, true
				}
			}
			if b, bit, ok := s.portIn(&key, r.Class, parity, rnd); ok {
				return b, bit, true
			}
		}
	}
	return noBlock, 0, false
}

// neighbour is the port beside the one that the other port of an RTP pair has, if it is free. A block never parts a pair.
func (s *Shard) neighbour(r *Request) (blockID, uint, bool) {
	p := r.Port ^ 1
	id, ok := s.findInside(s.hashInside(r.Tenant, UDP, r.Inside, p), r.Tenant, UDP, r.Inside, p)
	if !ok {
		return noBlock, 0, false
	}
	m := &s.maps[id]
	if (m.public^p)&1 != 0 || !inPool(r.Pool, m.addr) {
		return noBlock, 0, false
	}
	b, bit := blockID(m.addr)<<10|blockID(m.public>>6), uint(m.public&63)^1
	return b, bit, s.sp.usable(b, UDP)>>bit&1 != 0
}

// portIn chooses a free port of one group, opening a block where the group has none, or too few to choose from.
func (s *Shard) portIn(key *groupKey, class Class, parity int, rnd uint64) (blockID, uint, bool) {
	leader := s.findGroup(key)
	perHost := key.flags&groupPerHost != 0
	if leader == noBlock || !perHost && s.sp.block(leader).group.blocks < spread {
		s.open(key, leader, class, parity, rnd)
		if leader = s.findGroup(key); leader == noBlock {
			return noBlock, 0, false
		}
	}
	if b, bit, ok := s.pick(leader, class, parity, rnd); ok {
		return b, bit, true
	}
	if gen := s.sp.resGen.Load(); s.sp.block(leader).group.resGen != gen {
		s.relinkGroup(leader, gen)
		if b, bit, ok := s.pick(leader, class, parity, rnd); ok {
			return b, bit, true
		}
	}
	if !s.open(key, leader, class, parity, rnd) {
		return noBlock, 0, false
	}
	return s.pick(leader, class, parity, rnd)
}

// pick chooses a port at random in one of the next few blocks of the group's list, and lets the next choice go on from there.
func (s *Shard) pick(leader blockID, class Class, parity int, rnd uint64) (blockID, uint, bool) {
	head := &s.sp.block(leader).group.head[class][parity]
	b := *head
	if b == noBlock {
		return noBlock, 0, false
	}
	for range rnd & (spread - 1) {
		b = s.sp.block(b).ports[class].next[parity]
	}
	for {
		m := s.sp.usable(b, class) & parityMask(parity)
		if m != 0 {
			*head = b
			for range (rnd >> 8 & 0xffff) * uint64(bits.OnesCount64(m)) >> 16 {
				m &= m - 1
			}
			return b, uint(bits.TrailingZeros64(m)), true
		}
		// Ports were reserved since: the list is made true where that is noticed.
		next := s.sp.block(b).ports[class].next[parity]
		s.unlink(b, class, parity)
		if *head == noBlock {
			return noBlock, 0, false
		}
		b = next
	}
}

// take marks a port busy.
func (s *Shard) take(b blockID, class Class, bit uint) {
	s.sp.block(b).ports[class].busy |= 1 << bit
	s.relink(b, class)
}

// Mapping is the mapping with that id. It stays valid until the mapping ends.
func (s *Shard) Mapping(id uint32) *Mapping { return &s.maps[id] }

func (s *Shard) isLive(id uint32) bool { return id < s.fresh && s.maps[id].flags&mapLive != 0 }

// Ref counts one more session of the mapping.
func (s *Shard) Ref(id uint32) {
	if s.isLive(id) {
		s.maps[id].refs++
	}
}

// Unref counts one session less. With the last one the mapping ends and its port rests for the hold time.
func (s *Shard) Unref(id uint32, now uint32) {
	if !s.isLive(id) || s.maps[id].refs == 0 {
		return
	}
	m := &s.maps[id]
	m.changed = now
	if m.refs--; m.refs != 0 {
		return
	}
	b, class, bit, hold := blockID(m.addr)<<10|blockID(m.public>>6), m.class, uint64(1)<<(m.public&63), uint32(m.hold)<<holdShift
	s.end(id)
	if hold == 0 {
		s.sp.block(b).ports[class].busy &^= bit
		s.relink(b, class)
		return
	}
	k := s.sp.block(b)
	if s.turn(k, class, now) {
		s.relink(b, class)
	}
	if k.resting() == 0 {
		k.turn = 0
	}
	k.turn = max(k.turn, (hold+gens-2)/(gens-1))
	p := &k.ports[class]
	if p.held == [gens]uint64{} {
		k.start[class] = now
	}
	p.held[0] |= bit
}

// Drop ends a mapping that no session ever used: its port may be used at once.
func (s *Shard) Drop(id uint32) {
	if !s.isLive(id) || s.maps[id].refs != 0 {
		return
	}
	m := &s.maps[id]
	b, class, bit := blockID(m.addr)<<10|blockID(m.public>>6), m.class, uint64(1)<<(m.public&63)
	s.end(id)
	s.sp.block(b).ports[class].busy &^= bit
	s.relink(b, class)
}

func (s *Shard) end(id uint32) {
	m := &s.maps[id]
	if m.flags&mapReplaced == 0 {
		s.inside.erase(s.hashInside(m.tenant, m.class, m.inside, m.port), id)
	}
	s.outside.erase(s.hashOutside(m.addr, m.class, m.public), id)
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
