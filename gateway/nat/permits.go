package nat

import (
	"encoding/binary"
	"fmt"
	"math/bits"
	"unsafe"

	"demarc/gateway/undo"
)

// Permits remembers to which far addresses inside hosts have sent by which mapping: what address-dependent filtering asks (RFC 4787
// section 5). Open addressing with backward shift over memory that is handed in; a table for so many sessions never fills up.
// One worker's, like its Shard.
type Permits struct {
	slots []permit
	n     int
	seed  uint64
	log   *undo.Log
}

// Twin is a table over the same memory that remembers in l what it writes. Until l is undone, only the twin may be used.
func (x *Permits) Twin(l *undo.Log) *Permits {
	c := *x
	c.log = l
	return &c
}

type permit struct {
	mapping uint32 // + 1; 0 = empty
	remote  [4]byte
	refs    uint32 // sessions that say so
}

var _ = [1]struct{}{}[unsafe.Sizeof(permit{})-12]

func numPermits(sessions int) int { return sessions + sessions/4 + 1 }

// PermitBytes is the memory that NewPermits wants. It is touched only where tenants filter by address.
func PermitBytes(sessions int) int { return (numPermits(sessions)*12 + 63) &^ 63 }

// NewPermits lays a table over mem, which must be zeroed, aligned to 4 bytes, at least PermitBytes(sessions) long, and outlive it.
func NewPermits(mem []byte, sessions int, seed uint64) (*Permits, error) {
	switch {
	case sessions < 1 || sessions > MaxCapacity:
		return nil, fmt.Errorf("filter table of %d sessions: want 1 to %d", sessions, MaxCapacity)
	case len(mem) < PermitBytes(sessions):
		return nil, fmt.Errorf("filter table of %d sessions: %d bytes of memory, want %d", sessions, len(mem), PermitBytes(sessions))
	}
	p := unsafe.Pointer(unsafe.SliceData(mem))
	if uintptr(p)&3 != 0 {
		return nil, fmt.Errorf("filter table: memory at %#x is not aligned to 4 bytes", uintptr(p))
	}
	return &Permits{slots: unsafe.Slice((*permit)(p), numPermits(sessions)), seed: seed}, nil
}

func (x *Permits) home(mapping uint32, remote [4]byte) int {
	h := mix(uint64(mapping)|uint64(binary.LittleEndian.Uint32(remote[:]))<<32^x.seed, 0xe7037ed1a0b428db)
	hi, _ := bits.Mul64(h, uint64(len(x.slots)))
	return int(hi)
}

func (x *Permits) after(i int) int {
	if i++; i == len(x.slots) {
		return 0
	}
	return i
}

// at is the slot of the pair, or the empty one where it would be. There always is an empty one.
func (x *Permits) at(mapping uint32, remote [4]byte) int {
	i := x.home(mapping-1, remote)
	for x.slots[i].mapping != 0 && (x.slots[i].mapping != mapping || x.slots[i].remote != remote) {
		i = x.after(i)
	}
	return i
}

// Has reports whether a session was opened to remote by that mapping.
func (x *Permits) Has(mapping uint32, remote [4]byte) bool {
	return x.slots[x.at(mapping+1, remote)].mapping != 0
}

// Add counts one session of that mapping to remote. False, and nothing counted, where the table is full: more sessions than it was made for.
func (x *Permits) Add(mapping uint32, remote [4]byte) bool {
	p := &x.slots[x.at(mapping+1, remote)]
	undo.Keep(x.log, p)
	if p.mapping == 0 {
		if x.n == len(x.slots)-1 {
			return false
		}
		x.n++
		p.mapping, p.remote = mapping+1, remote
	}
	p.refs++
	return true
}

// Remove counts one session less.
func (x *Permits) Remove(mapping uint32, remote [4]byte) {
	i := x.at(mapping+1, remote)
	if x.slots[i].mapping == 0 {
		return
	}
	undo.Keep(x.log, &x.slots[i])
	if x.slots[i].refs--; x.slots[i].refs != 0 {
		return
	}
	x.n--
	for j := x.after(i); x.slots[j].mapping != 0; j = x.after(j) {
		// May the one at j move to the hole at i: is its home not between them?
		home := x.home(x.slots[j].mapping-1, x.slots[j].remote)
		if x.from(home, j) >= x.from(i, j) {
			x.slots[i] = x.slots[j]
			undo.Keep(x.log, &x.slots[j])
			i = j
		}
	}
	x.slots[i] = permit{}
}

// from is how far j is after i, round the end.
func (x *Permits) from(i, j int) int {
	if j < i {
		j += len(x.slots)
	}
	return j - i
}

// Len is how many pairs of mapping and far address there are.
func (x *Permits) Len() int { return x.n }
