package conntrack

import (
	"sync/atomic"
	"unsafe"

	"demarc/gateway/verdict"
)

// TrackShared is Track for a session of which another executor (cruise) carries plain segments meanwhile. What both write of those is moved by compare-and-swap, and numbers go forwards only: two
// segments on two CPUs lose none. All else is the owner's alone: the other one looks at State before each packet and leaves the rest to it.
func TrackShared(s *Session, dir int, seg *Segment) verdict.Reason {
	dir &= 1
	if s.State != TCPEstablished || s.Scale[1]&learning != 0 || seg.class() != cACK {
		return Track(s, dir, seg)
	}
	if !inWindow(s, dir, seg) {
		return verdict.TCPOutOfWindow
	}
	o, further := 1-dir, ahead(s, dir, seg)
	if raise(&s.TCPEnd[dir], seg.end()) {
		atomic.AndUint32(s.scales(), ^(allAcked << (16 + 8*dir)))
	}
	if further {
		raise(&s.TCPEnd[o], seg.Ack)
	}
	if seg.Ack == atomic.LoadUint32(&s.TCPEnd[o]) {
		atomic.OrUint32(s.scales(), allAcked<<(16+8*o))
	}
	raise(&s.TCPLimit[dir], s.limit(dir, seg))
	return verdict.Pass
}

// scales is the word whose upper half is Scale; the lower one is NextHop[1], which no compare-and-swap changes.
func (s *Session) scales() *uint32 { return (*uint32)(unsafe.Pointer(&s.NextHop[1])) }

var _ = [1]struct{}{}[unsafe.Offsetof(Session{}.NextHop)+2-64] // aligned
var _ = [1]struct{}{}[unsafe.Offsetof(Session{}.Scale)-66]

// raise moves a number forwards and reports whether it did.
func raise(w *uint32, to uint32) bool {
	for {
		old := atomic.LoadUint32(w)
		if int32(to-old) <= 0 {
			return false
		}
		if atomic.CompareAndSwapUint32(w, old, to) {
			return true
		}
	}
}

// Count counts a packet of so many IP bytes.
func (s *Session) Count(dir int, bytes uint64) {
	s.Packets[dir]++
	s.Bytes[dir] += bytes
}

// CountShared is Count beside another executor.
func (s *Session) CountShared(dir int, bytes uint64) {
	atomic.AddUint32(&s.Packets[dir], 1)
	atomic.AddUint64(&s.Bytes[dir], bytes)
}
