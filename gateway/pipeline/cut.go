package pipeline

import (
	"encoding/binary"
	"sync/atomic"

	"demarc/gateway/conntrack"
	"demarc/gateway/flow"
	"demarc/gateway/nat"
	"demarc/gateway/packet"
	"demarc/gateway/verdict"
)

// isPiece in Slot.cut says that the slot is a piece of what was cut.
const isPiece = 0xffff

// Piece makes the piece of s, whose verdict is Cut, that begins at byte from of its payload, in a slot whose Buf, Area and Addr are the
// driver's. next is where the one after it begins, 0 = that was the last. Pieces go through SendPieces. False when no piece fits:
// then s is dropped.
func (sh *Shard) Piece(s, piece *Slot, from, off int) (next int, ok bool) {
	buf := piece.Buf
	n, next := packet.Cut(&s.Packet, from, int(s.cut), buf[off:])
	if n == 0 {
		sh.drop(s, verdict.TooBig)
		sh.dropped(s)
		return 0, false
	}
	area, addr := piece.Area, piece.Addr
	*piece = *s
	piece.Buf, piece.Off, piece.Len, piece.Area, piece.Addr = buf, off, n, area, addr
	piece.IPLen, piece.cut = binary.BigEndian.Uint16(buf[off+s.L3+2:]), isPiece
	piece.L4, piece.L3End = s.L3+int(buf[off+s.L3]&15)*4, s.L3+int(piece.IPLen)
	return next, true
}

// SendPieces carries what Piece made to the next hop of the whole.
func (sh *Shard) SendPieces(slots []Slot) {
	sh.pieces(slots, 0)
}

func (sh *Shard) pieces(slots []Slot, from int) {
	sh.sweep, sh.key = sweepPieces, flow.Key{}
	for i := from; i < len(slots); i++ {
		sh.at = i
		s := &slots[i]
		if s.Verdict = sh.send(s, sh.view.Tenant(s.Tenant), s.hop, true); s.Verdict == verdict.Drop {
			sh.dropped(s)
		}
	}
	sh.sweep = sweepDone
}

// rename gives a translated IPv4 packet an identification of ident.
func (sh *Shard) rename(s *Slot, se *conntrack.Session) bool {
	id, ok := sh.ident(s, se, binary.LittleEndian.Uint32(s.Key.Src[:]), binary.LittleEndian.Uint32(s.Key.Dst[:]))
	if ok {
		packet.SetID(&s.Packet, id)
	}
	return ok
}

// ident is the identification of a translated IPv4 packet that is a fragment, or may become one: one of its own between the addresses that it leaves with, words in the order of
// memory (RFC 6864 section 5.3.1, RFC 7857 section 10). What is in pieces, or about to be, has one that no other inside host has at the
// same time; false when there is none.
func (sh *Shard) ident(s *Slot, se *conntrack.Session, src, dst uint32) (id uint16, ok bool) {
	if s.cut == 0 && s.Flags&inPieces == 0 {
		h := (uint64(src)<<32 | uint64(dst)) * 0x9e3779b97f4a7c15
		w := &sh.idents[(h>>52^uint64(s.Key.Proto))%nat.WholeWords]
		if sh.shared {
			return sh.identLo | uint16(atomic.AddUint64(w, 1))&sh.identMsk, true
		}
		*w++
		return sh.identLo | uint16(*w)&sh.identMsk, true
	}
	return sh.identOfParts(s, se, src, dst)
}

func (sh *Shard) identOfParts(s *Slot, se *conntrack.Session, src, dst uint32) (id uint16, ok bool) {
	d := sh.frag
	if d != nil && d.Reissued {
		return d.ID, true
	}
	var from, to [4]byte
	binary.LittleEndian.PutUint32(from[:], src)
	binary.LittleEndian.PutUint32(to[:], dst)
	family, a := insideOf(se)
	take := sh.Space.Idents.Take
	if sh.looks {
		take = sh.Space.Idents.Look
	}
	if id, ok = take(from, to, s.Key.Proto, uint32(flow.HomeHash(se.Tenant, family, &a, sh.view.HomeSeed))|1, sh.now); ok && d != nil {
		d.ID, d.Reissued = id, true
	}
	return id, ok
}
