package nat

import (
	"encoding/binary"
	"math/bits"
	"unsafe"

	"demarc/gateway/flow"
	"demarc/gateway/undo"
)

// anchor is the public address that an inside host keeps, and how many mappings hold it there.
type anchor struct {
	inside [4]byte
	tenant flow.TenantID
	addr   AddrID
	refs   uint32 // 0 = empty
}

const anchorSize = int(unsafe.Sizeof(anchor{}))

// anchors finds the address of an inside host: open addressing with backward shift, a power of two slots.
type anchors struct {
	slots []anchor
	n     int
	seed  uint64
	log   *undo.Log

	// Where find was last, and for whom: hold mostly asks next, for the same host. -1 = slots have changed since, or nothing yet.
	last       int
	lastInside [4]byte
	lastTenant flow.TenantID
}

// numAnchors is a host for every 16 to 32 mappings. Hosts beyond seven eighths of that get their address by hash alone, as PairedSoft does.
func numAnchors(capacity int) int { return max(64, 1<<bits.Len(uint(capacity-1)/32)) }

func (x *anchors) home(t flow.TenantID, inside [4]byte) int {
	h := mix(uint64(binary.LittleEndian.Uint32(inside[:]))|uint64(t)<<32^x.seed, 0x8ebc6af09c88c6e3)
	return int(h) & (len(x.slots) - 1)
}

// at is the host's slot, or the empty one where it would be.
func (x *anchors) at(t flow.TenantID, inside [4]byte) int {
	i := x.home(t, inside)
	for {
		a := &x.slots[i]
		if a.refs == 0 || a.inside == inside && a.tenant == t {
			return i
		}
		i = (i + 1) & (len(x.slots) - 1)
	}
}

// find is the address that the host keeps.
func (x *anchors) find(t flow.TenantID, inside [4]byte) (AddrID, bool) {
	x.last, x.lastInside, x.lastTenant = x.at(t, inside), inside, t
	a := &x.slots[x.last]
	return a.addr, a.refs != 0
}

// hold counts one more mapping of the host, on address addr; false where there is no room to. A host whose address has left the pool moves.
func (x *anchors) hold(t flow.TenantID, inside [4]byte, addr AddrID, pool []AddrID) bool {
	i := x.last
	if i < 0 || x.lastInside != inside || x.lastTenant != t {
		i = x.at(t, inside)
	}
	x.last = -1
	a := &x.slots[i]
	undo.Keep(x.log, a)
	if a.refs == 0 {
		if x.n >= len(x.slots)/8*7 {
			return false
		}
		x.n++
		*a = anchor{inside, t, addr, 1}
		return true
	}
	a.refs++
	if a.addr != addr {
		if _, in := inPool(pool, a.addr); !in {
			a.addr = addr
		}
	}
	return true
}

// release counts one less. With the last one the host may get another address.
func (x *anchors) release(t flow.TenantID, inside [4]byte) {
	x.last = -1
	i := x.at(t, inside)
	if x.slots[i].refs == 0 {
		return
	}
	undo.Keep(x.log, &x.slots[i])
	if x.slots[i].refs--; x.slots[i].refs != 0 {
		return
	}
	x.n--
	mask := len(x.slots) - 1
	for j := (i + 1) & mask; x.slots[j].refs != 0; j = (j + 1) & mask {
		if home := x.home(x.slots[j].tenant, x.slots[j].inside); (j-home)&mask >= (j-i)&mask {
			x.slots[i] = x.slots[j]
			undo.Keep(x.log, &x.slots[j])
			i = j
		}
	}
	x.slots[i] = anchor{}
}

// address says where in the pool to begin, how many addresses may be tried, and whether all there is at the first is to be tried before another:
// the host has it already, or there is no other.
func (s *Shard) address(r *Request, rnd uint64) (first, tries int, stay bool) {
	n := len(r.Pool)
	if n == 1 {
		return 0, 1, true
	}
	if r.Pooling == Arbitrary {
		hi, _ := bits.Mul64(mix(rnd, 0x589965cc75374cc3), uint64(n))
		return int(hi), n, false
	}
	if a, ok := s.anchors.find(r.Tenant, r.Inside); ok {
		if i, in := inPool(r.Pool, a); in {
			if r.Pooling == Paired {
				return i, 1, true
			}
			return i, n, true
		}
	}
	return flow.Home(r.First, n), n, false
}
