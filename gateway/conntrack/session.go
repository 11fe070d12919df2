package conntrack

import (
	"encoding/binary"
	"sync/atomic"
	"unsafe"

	"demarc/gateway/flow"
)

// SessionSize is what one session takes in the table: two cache lines.
const SessionSize = 128

// Session is one conversation. session.h is the same struct in C; a test holds the two together.
//
// The first 64 bytes hold all that finding and translating a packet reads, the second 64 what it writes, but for State.
// "orig" is the direction of the first packet (0), "reply" the other (1). Ports are host byte order with the meaning
// of flow.Key, addresses are network byte order.
type Session struct {
	Seq uint32 // sequence word: odd while what finds and translates is being written, or the slot is empty
	Gen uint32 // changes whenever the slot is given up: a (slot, Gen) pair names one session only

	OrigSrc, OrigDst     flow.Addr // as the first packet entered
	XlatSrc, XlatDst     [4]byte   // IPv4: the same packet as it leaves (= orig when untranslated); IPv6: zero
	OrigSPort, OrigDPort uint16
	XlatSPort, XlatDPort uint16 // as it leaves, also for IPv6 (= orig)
	Proto                uint8  // IP protocol number
	Flags                uint8  // Flag…
	State                uint8  // TCP…; 0 for other protocols. One byte that changes alone, outside the sequence word
	Class                uint8  // the pipeline's: class of traffic (voice)
	Tenant               flow.TenantID
	NextHop              [2]uint16 // the pipeline's, per direction

	Scale   [2]uint8    // TCP window scale that this direction announced, see scaleOffered
	Rule    flow.RuleID // the rule that allowed it
	ViewGen uint32      // the view that it was judged under
	Mapping uint32      // NAT mapping of the worker's shard, or NoMapping
	// Below: single words that change alone, outside the sequence word.
	LastSeen [2]uint32 // tick of the last packet, per direction
	Bytes    [2]uint64 // IP bytes, per direction
	Packets  [2]uint32 // per direction; wraps
	TCPEnd   [2]uint32 // highest sequence number + length that this direction has sent
	TCPLimit [2]uint32 // highest ack + window that this direction has advertised: the other may send up to here
}

// Both lines exactly: a compile-time assertion.
var _ = [1]struct{}{}[unsafe.Sizeof(Session{})-SessionSize]

// NoMapping stands in Session.Mapping where the session has no NAT mapping.
const NoMapping = 1<<32 - 1

// The flags of a session.
const (
	FlagV6           uint8 = 1 << iota // IPv6
	FlagFromBackbone                   // the first packet came from the backbone, else from Tenant
	FlagToBackbone                     // it left to the backbone, so replies enter from there, else from Tenant
	FlagNAT                            // translated: Xlat differs from Orig, or may
	FlagReplied                        // a packet of the reply direction was seen
	FlagCounted                        // the pipeline's: counted for its inside host
	FlagPermit                         // the pipeline's: outwards, its far address may open others to its mapping; inwards, it was let in so
	FlagUnanswered                     // the pipeline's: who began it has not yet shown that it hears the other end
)

// Key is the key under which packets of direction dir enter: 0 as the first packet did, 1 as its answer does.
func (s *Session) Key(dir int) (k flow.Key) {
	k.Proto = s.Proto
	k.Family = 4
	if s.Flags&FlagV6 != 0 {
		k.Family = 6
	}
	k.Zone = s.Tenant
	if dir == 0 {
		k.Src, k.Dst = s.OrigSrc, s.OrigDst
		k.SPort, k.DPort = s.OrigSPort, s.OrigDPort
		if s.Flags&FlagFromBackbone != 0 {
			k.Zone = flow.Backbone
		}
		return k
	}
	if s.Flags&FlagV6 != 0 {
		k.Src, k.Dst = s.OrigDst, s.OrigSrc
	} else {
		copy(k.Src[:4], s.XlatDst[:])
		copy(k.Dst[:4], s.XlatSrc[:])
	}
	k.SPort, k.DPort = s.XlatDPort, s.XlatSPort
	if s.Flags&FlagToBackbone != 0 {
		k.Zone = flow.Backbone
	}
	return k
}

// is reports whether k is the key of direction dir: Key(dir) == *k without building it. It reads the first cache line only.
func (s *Session) is(k *flow.Key, dir int) bool {
	family, inward := uint8(4), s.Flags&FlagFromBackbone
	if s.Flags&FlagV6 != 0 {
		family = 6
	}
	if dir != 0 {
		inward = s.Flags & FlagToBackbone
	}
	zone := s.Tenant
	if inward != 0 {
		zone = flow.Backbone
	}
	if k.Proto != s.Proto || k.Family != family || k.Zone != zone {
		return false
	}
	// All words at once: which of them differs decides nothing, and a branch for each costs more than the loads.
	sport, dport, src, dst := s.OrigSPort, s.OrigDPort, &s.OrigSrc, &s.OrigDst
	if dir != 0 {
		sport, dport, src, dst = s.XlatDPort, s.XlatSPort, &s.OrigDst, &s.OrigSrc
		if family == 4 {
			return k.SPort == sport && k.DPort == dport && (low(&k.Src)^uint64(binary.LittleEndian.Uint32(s.XlatDst[:])))|high(&k.Src)|(low(&k.Dst)^uint64(binary.LittleEndian.Uint32(s.XlatSrc[:])))|high(&k.Dst) == 0
		}
	}
	return k.SPort == sport && k.DPort == dport && (low(&k.Src)^low(src))|(high(&k.Src)^high(src))|(low(&k.Dst)^low(dst))|(high(&k.Dst)^high(dst)) == 0
}

func low(a *flow.Addr) uint64  { return binary.LittleEndian.Uint64(a[:8]) }
func high(a *flow.Addr) uint64 { return binary.LittleEndian.Uint64(a[8:]) }

// Out is what a packet of direction dir becomes when it leaves. IPv4 only: IPv6 is never translated.
func (s *Session) Out(dir int) (src, dst [4]byte, sport, dport uint16) {
	if dir == 0 {
		return s.XlatSrc, s.XlatDst, s.XlatSPort, s.XlatDPort
	}
	return [4]byte(s.OrigDst[:4]), [4]byte(s.OrigSrc[:4]), s.OrigDPort, s.OrigSPort
}

// OutWords is Out with the addresses as words in the order of memory.
func (s *Session) OutWords(dir int) (src, dst uint32, sport, dport uint16) {
	if dir == 0 {
		return binary.LittleEndian.Uint32(s.XlatSrc[:]), binary.LittleEndian.Uint32(s.XlatDst[:]), s.XlatSPort, s.XlatDPort
	}
	return binary.LittleEndian.Uint32(s.OrigDst[:]), binary.LittleEndian.Uint32(s.OrigSrc[:]), s.OrigDPort, s.OrigSPort
}

// BeginWrite makes the sequence word odd: a concurrent reader takes nothing from the session until EndWrite. Whoever
// changes any of bytes 8..79 (but State and Scale, which change alone) of a session that is in the table brackets it with the two.
func (s *Session) BeginWrite() { atomic.StoreUint32(&s.Seq, s.Seq|1) }

// EndWrite makes the session readable again.
func (s *Session) EndWrite() { atomic.StoreUint32(&s.Seq, (s.Seq|1)+1) }

// Timeouts are idle times in ticks, each below 2^30.
type Timeouts struct {
	TCPEstablished, TCPTransitory, TCPClosing, TCPClosed, UDP, UDPUnanswered, ICMP, Other uint32

	Hurry uint32 // of half-open sessions that are in the way of others
}

// HalfOpen reports whether the backbone began the session and has not yet shown that it hears the answers, or whoever began it was refused: anybody can make those, under
// any source. Ending one early costs its sender a repetition, or nothing.
func (s *Session) HalfOpen() bool {
	return s.Flags&FlagUnanswered != 0 && (s.Flags&FlagFromBackbone != 0 || s.Proto == flow.TCP && s.State == TCPClosed)
}

// Look is in how many ticks from its last packet Sweep shall look at the session: when it may have ended. At half-open ones it looks
// often, because they may have to hurry by then.
func (s *Session) Look(tm *Timeouts) uint32 {
	idle := s.Timeout(tm)
	if s.HalfOpen() && tm.Hurry > 0 {
		return min(idle, tm.Hurry)
	}
	return idle
}

// Timeout is how long the session may be idle as it stands.
func (s *Session) Timeout(tm *Timeouts) uint32 {
	switch s.Proto {
	case flow.TCP:
		switch {
		case s.State < TCPEstablished:
			return tm.TCPTransitory
		case s.State < TCPClosing: // also half closed (RFC 5382 section 5), and doubtful: a forged SYN shortens nothing
			return tm.TCPEstablished
		case s.State == TCPTimeWait, s.State == TCPReuse && s.Scale[0]&s.Scale[1]&finAcked != 0: // a SYN alone lengthens nothing
			return tm.TCPClosed
		}
		return tm.TCPClosing // also after RST (RFC 7857 section 2.2)
	case flow.UDP:
		if s.Flags&FlagReplied == 0 {
			return tm.UDPUnanswered
		}
		return tm.UDP
	case flow.ICMP, flow.ICMPv6:
		return tm.ICMP
	}
	return tm.Other
}

// stampAhead is how far a stamp may be ahead of the tick that it is looked at with: programs read a clock of their own.
const stampAhead = 1 << 16

// Seen is when a packet was seen last, as it is now: that of the direction which is less long ago. Both are asked by their age, for one of them may have been silent for longer than half of what a tick counts.
func (s *Session) Seen(now uint32) uint32 {
	if s.Flags&FlagReplied != 0 && now+stampAhead-s.LastSeen[1] < now+stampAhead-s.LastSeen[0] {
		return s.LastSeen[1]
	}
	return s.LastSeen[0]
}
