package pipeline

import (
	"encoding/binary"
	"sync/atomic"
	"time"

	"demarc/gateway/flow"
	"demarc/gateway/packet"
	"demarc/gateway/police"
	"demarc/gateway/verdict"
)

// Wait says which packets to the gateway itself somebody waits for: answers to, and errors about, what was sent from Local and ID to Far.
type Wait struct {
	Token      uint32 // who waits
	Zone       flow.TenantID
	Family     uint8
	Proto      uint8 // ICMP, ICMPv6, UDP, TCP
	Local, Far flow.Addr
	ID         uint16 // identifier of the echo, or the port that we sent from: not to be guessed
}

// Answer is what came.
type Answer struct {
	Ns    uint64 // when
	Token uint32
	From  flow.Addr
	Error bool   // an ICMP error about what was sent, else the far end itself
	Type  uint8  // of ICMP
	Code  uint8  // of ICMP
	TTL   uint8  // as received
	Flags uint8  // of TCP
	Len   uint16 // IP bytes
	MTU   uint16 // of a packet too big
	Seq   uint32 // which of ours: of ICMP the sequence number, of UDP the far port, of TCP the sequence number that we sent
	Nonce uint64 // first bytes of an echo reply's payload
}

const (
	answerRing       = 256 // a power of two
	answersPerSecond = 500 // of all that is waited for, per worker: an outsider who guesses an identifier must not load the control side
)

// asked is what a shard has for those who wait. Without any waits is nil, and nothing of a packet is looked at for it.
type asked struct {
	waits []Wait
	rate  police.Rate
	word  police.Word
	ring  [answerRing]Answer
	head  atomic.Uint64 // worker: wo
	tail  atomic.Uint64 // reader: wo
}

func newAsked() *asked {
	return &asked{rate: police.PacketRate(answersPerSecond, 200*time.Millisecond)}
}

// quiet is for who only asks: its answers go nowhere.
func (a *asked) quiet() *asked {
	q := newAsked()
	q.waits = a.waits
	return q
}

// SetWaits replaces who waits. Worker only, between bursts.
func (sh *Shard) SetWaits(w []Wait) { sh.asked.waits = w }

// Answers hands what came so far to fn. One reader, any goroutine.
func (sh *Shard) Answers(fn func(*Answer)) {
	a := sh.asked
	t := a.tail.Load()
	for h := a.head.Load(); t < h; t++ {
		fn(&a.ring[t%answerRing])
	}
	a.tail.Store(t)
}

// answers takes a packet to the gateway itself that somebody waits for. ok is false when nobody does.
func (sh *Shard) answers(s *Slot) (v verdict.Verdict, ok bool) {
	k := &s.Key
	for i := range sh.asked.waits {
		w := &sh.asked.waits[i]
		if w.Zone != k.Zone || w.Family != k.Family || w.Proto != k.Proto || w.ID != k.DPort || w.Local != k.Dst || w.Far != k.Src {
			continue
		}
		a := Answer{Token: w.Token, From: k.Src, Type: s.ICMPType, Code: s.ICMPCode}
		f := s.Frame()[:s.L3End]
		switch w.Proto {
		case flow.ICMP, flow.ICMPv6:
			if s.Flags&packet.FlagICMPReply == 0 {
				continue
			}
			a.Seq = uint32(binary.BigEndian.Uint16(f[s.L4+6:]))
			if b := f[s.L4+8:]; len(b) >= 8 {
				a.Nonce = binary.BigEndian.Uint64(b)
			}
		case flow.TCP:
			a.Flags, a.Seq = s.TCPFlags, s.Ack-1
		default:
			a.Seq = uint32(k.SPort)
		}
		return sh.take(s, &a), true
	}
	return verdict.Drop, false
}

// quoted is answers for an ICMP error, which quotes what was sent.
func (sh *Shard) quoted(s *Slot, in *packet.Inner) (v verdict.Verdict, ok bool) {
	k := &in.Key
	for i := range sh.asked.waits {
		w := &sh.asked.waits[i]
		if w.Zone != s.Key.Zone || w.Family != k.Family || w.Proto != k.Proto || w.ID != k.SPort || w.Local != k.Src || w.Far != k.Dst {
			continue
		}
		f := s.Frame()[:s.L3End]
		a := Answer{Token: w.Token, From: s.Key.Src, Error: true, Type: s.ICMPType, Code: s.ICMPCode}
		a.MTU = binary.BigEndian.Uint16(f[s.L4+6:]) // of both families, in the error that has one
		if q := f[in.L4:]; len(q) >= 8 {
			switch w.Proto {
			case flow.ICMP, flow.ICMPv6:
				a.Seq = uint32(binary.BigEndian.Uint16(q[6:]))
			case flow.TCP:
				a.Seq = binary.BigEndian.Uint32(q[4:])
			default:
				a.Seq = uint32(k.DPort)
			}
		}
		return sh.take(s, &a), true
	}
	return verdict.Drop, false
}

func (sh *Shard) take(s *Slot, a *Answer) verdict.Verdict {
	x := sh.asked
	h := x.head.Load()
	if !x.rate.Take(&x.word, sh.now, 1) || h-x.tail.Load() >= answerRing {
		return sh.drop(s, verdict.ICMPRateLimited)
	}
	a.Ns, a.TTL, a.Len = sh.now, s.TTL, s.IPLen
	x.ring[h%answerRing] = *a
	x.head.Store(h + 1)
	s.Reason = verdict.Pass
	return verdict.Taken
}
