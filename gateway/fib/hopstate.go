package fib

import "sync/atomic"

// HopState is what is known of a router that routes lead to. It outlives the table that names the router. The zero value
// is of one that has not answered yet. One writer, the slow path; anybody may read, without a lock.
type HopState struct {
	bits  atomic.Uint32 // hop…; writer: rw, others: ro
	since atomic.Uint64 // ns, when bits last changed; writer: wo, others: ro
}

const (
	hopAnswered = 1 << iota // it has answered since it was last dead
	hopSilent               // it did not answer
	hopNoLink               // the port that it is behind has no link
	hopDied                 // it was dead, and has not answered for so long yet that it is trusted
)

// Rank orders routers by how well they may be used.
type Rank uint8

// The ranks. One that has not answered yet gets nothing while another one has.
const (
	HopDead Rank = iota
	HopAsked
	HopUp
)

// Dead reports whether nothing may be sent there. It is the one question that is asked of each packet. A nil HopState is never dead.
func (s *HopState) Dead() bool { return s != nil && s.bits.Load()&(hopSilent|hopNoLink) != 0 }

// Settled reports whether it is up and trusted to stay: it has never been dead, or answers for long enough again. What stands in for it gives way then.
func (s *HopState) Settled() bool { return s == nil || s.bits.Load() == hopAnswered }

// Died reports whether it is dead, or was and has not settled since.
func (s *HopState) Died() bool { return s != nil && s.bits.Load()&(hopSilent|hopNoLink|hopDied) != 0 }

// NoLink reports whether it is dead because its port has no link.
func (s *HopState) NoLink() bool { return s != nil && s.bits.Load()&hopNoLink != 0 }

// Rank is how well it may be used; a nil HopState is up, since nobody asks.
func (s *HopState) Rank() Rank {
	switch {
	case s == nil:
		return HopUp
	case s.Dead():
		return HopDead
	case s.bits.Load()&hopAnswered == 0:
		return HopAsked
	}
	return HopUp
}

// String says what it is, for the operator.
func (s *HopState) String() string {
	switch {
	case s.NoLink():
		return "no link"
	case s.Dead():
		return "no answer"
	case s.Rank() == HopAsked:
		return "asked"
	}
	return "up"
}

// Since is when it last changed, ns; 0 = never.
func (s *HopState) Since() uint64 { return s.since.Load() }

// set changes the bits and reports whether that made a difference. Writer only.
func (s *HopState) set(bits uint32, ns uint64) bool {
	if s.bits.Load() == bits {
		return false
	}
	s.since.Store(ns)
	s.bits.Store(bits)
	return true
}

// Answered notes that it has answered. Writer only, like the others; each reports whether that was news.
func (s *HopState) Answered(ns uint64) bool {
	return s.set(s.bits.Load()&(hopNoLink|hopDied)|hopAnswered, ns)
}

// Silent notes that it does not answer.
func (s *HopState) Silent(ns uint64) bool {
	return s.set(s.bits.Load()&hopNoLink|hopSilent|hopDied, ns)
}

// Link notes whether its port has link. What it answered before the link went says nothing of what is there now.
func (s *HopState) Link(up bool, ns uint64) bool {
	if !up {
		bits := uint32(hopNoLink)
		if s.bits.Load()&^hopNoLink != 0 { // else nothing was ever known of it
			bits |= hopDied
		}
		return s.set(bits, ns)
	}
	if !s.NoLink() {
		return false
	}
	return s.set(s.bits.Load()&^(hopNoLink|hopAnswered), ns)
}

// Settle trusts one that has been up since it was dead, for restore ns at least, and reports when it is to be asked again otherwise, 0 = not. When it was last seen to change stays.
func (s *HopState) Settle(ns, restore uint64) (at uint64) {
	if s.bits.Load() != hopAnswered|hopDied {
		return 0
	}
	if at := s.since.Load() + restore; ns < at {
		return at
	}
	s.bits.Store(hopAnswered)
	return 0
}
