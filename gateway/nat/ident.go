package nat

import (
	"encoding/binary"
	"math/bits"
	"sync/atomic"
	"time"
)

// Reassembly is how long a receiver may keep pieces of a datagram: within it no identification comes twice (RFC 6864 section 4.2 leaves
// the time to the receivers; Linux keeps them for 30 s).
const Reassembly = 30 * time.Second

// WholeIdents is how many identifications, from 0, are for packets that leave whole: they come round soon where there are many, which matters
// only if somebody cuts them later. Those above are for what leaves in pieces.
const WholeIdents = 1 << 14

// WholeWords is how many counters of these a worker has, by a hash of both ends.
const WholeWords = 1 << 12

// WholeShare is which of WholeIdents are a worker's: from and what it counts within, by a mask. Workers share them by powers of two.
func WholeShare(worker, workers int) (from, mask uint16) {
	n := WholeIdents >> bits.Len(uint(max(1, workers)-1))
	return uint16(worker * n), uint16(n - 1)
}

const (
	pieceIdents = 1<<16 - WholeIdents
	identWords  = 1 << 14

	// Half of the identifications at once, and the other half evenly: so no window of Reassembly sees more than all of them.
	identEvery = uint64(Reassembly) / (pieceIdents / 2)
)

// Idents names what leaves in pieces. Two inside hosts behind one public address may have chosen the same identification, and the
// receiver would mix them (RFC 6864 section 5.3.1). Its words are shared by all workers.
type Idents struct {
	Seed  uint64 // hard to guess; set before the first use
	words [identWords]identWord
}

// identWord serves all that a secret hash of addresses and protocol leads to it.
type identWord struct {
	due  atomic.Uint64 // theoretical arrival time in ns (GCRA)
	user atomic.Uint64 // the inside host that had one last, and in the lower half the tick until when another's may be under way
	next atomic.Uint32
}

// Take names a datagram from src to dst that an inside host (a hash of it, not 0) has a part in. It is false while all names may still be in use,
// and not only by that host: whoever speaks alone to a far end may overtake himself, as without a gateway.
func (x *Idents) Take(src, dst [4]byte, proto uint8, host uint32, nowNs uint64) (uint16, bool) {
	h, w := x.word(src, dst, proto)
	alone := w.alone(host, uint32(nowNs>>20), true)
	for {
		old := w.due.Load()
		due := max(old, nowNs) + identEvery
		if due > nowNs+uint64(Reassembly) {
			if !alone {
				return 0, false
			}
			due = nowNs + 2*uint64(Reassembly) // and nobody else has one until all of these are out of the way
		}
		if w.due.CompareAndSwap(old, due) {
			return ident(h, w.next.Add(1)), true
		}
	}
}

// Look is what Take would say, and takes nothing.
func (x *Idents) Look(src, dst [4]byte, proto uint8, host uint32, nowNs uint64) (uint16, bool) {
	h, w := x.word(src, dst, proto)
	ok := max(w.due.Load(), nowNs)+identEvery <= nowNs+uint64(Reassembly) || w.alone(host, uint32(nowNs>>20), false)
	return ident(h, w.next.Load()+1), ok
}

func (x *Idents) word(src, dst [4]byte, proto uint8) (uint64, *identWord) {
	h := identHash(src, dst, proto, x.Seed)
	return h, &x.words[h%identWords]
}

func ident(h uint64, n uint32) uint16 {
	return uint16(WholeIdents + (n+uint32(h>>32)&0xffff)%pieceIdents)
}

// alone notes the user, if it shall, and reports whether no other one had a name within Reassembly.
func (w *identWord) alone(host, tick uint32, note bool) bool {
	for {
		old := w.user.Load()
		last, until := uint32(old>>32), uint32(old)
		if last == host { // by how long it has yet to wait: since then more ticks may have passed than a sign tells
			left := until - tick
			if left-1 <= uint32(Reassembly>>20) {
				return false
			}
			if note && -left > 1<<30 { // long before it looks like one to come
				w.user.CompareAndSwap(old, uint64(host)<<32|uint64(tick))
			}
			return true
		}
		until = tick
		if last != 0 {
			until += uint32(Reassembly>>20) + 1
		}
		if !note || w.user.CompareAndSwap(old, uint64(host)<<32|uint64(until)) {
			return last == 0
		}
	}
}

func identHash(src, dst [4]byte, proto uint8, seed uint64) uint64 {
	a := uint64(binary.LittleEndian.Uint32(src[:]))<<32 | uint64(binary.LittleEndian.Uint32(dst[:]))
	hi, lo := bits.Mul64(a^seed, 0xa0761d6478bd642f)
	hi, lo = bits.Mul64(hi^lo^uint64(proto), 0xe7037ed1a0b428db^seed)
	return hi ^ lo
}
