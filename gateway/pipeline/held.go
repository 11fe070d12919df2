package pipeline

import (
	"demarc/gateway/conntrack"
	"demarc/gateway/flow"
	"demarc/gateway/meter"
	"demarc/gateway/packet"
	"demarc/gateway/snapshot"
	"demarc/gateway/verdict"
)

// held is what one tenant holds of this shard's tables. The tenant's limits go by snapshot.Shared, over all workers; this is for what no
// limit bounds: the table itself, which a flood of one tenant must not take from the others.
type held struct {
	sessions   uint32
	unanswered [2]uint32 // by began
}

// A tenant beside others may hold shareOf times as many sessions as are still free: by itself four fifths of the table, two of them four
// ninths each, and there is always room for one more tenant. Unanswered sessions of one direction may be half as many as are free: alone a third
// of the table, both directions together half.
const shareOf = 4

// began is the side that began a session: meter.In for the backbone, meter.Out for the tenant, also where it stays inside.
func began(se *conntrack.Session) meter.Dir {
	if se.Flags&conntrack.FlagFromBackbone != 0 {
		return meter.In
	}
	return meter.Out
}

// room checks that the tenant may have one more session that begins as se does: within its own limit, and within its share of the table.
func (sh *Shard) room(t *snapshot.Tenant, se *conntrack.Session) verdict.Reason {
	d, mine := began(se), &sh.held[t.ID]
	if t.MaxSessions > 0 {
		switch {
		case t.Shared.Sessions.Load() >= t.MaxSessions:
			return verdict.TenantSessions
		case d == meter.In && t.Shared.Inbound.Load() >= t.MaxInbound:
			return verdict.TenantInbound
		case t.Shared.Unanswered[d].Load() >= t.MaxUnanswered:
			return verdict.TenantUnanswered
		}
	}
	free := sh.free(t, se)
	switch {
	case mine.unanswered[d] > free/2:
		return verdict.TenantUnanswered
	case mine.sessions/shareOf > free && !sh.view.OneTenant:
		return verdict.TableShare
	}
	return verdict.Pass
}

// free is how many more sessions such as se fit. Where there is less room for mappings than for sessions, that is what counts.
func (sh *Shard) free(t *snapshot.Tenant, se *conntrack.Session) uint32 {
	n := sh.Sessions.Room()
	if t.NAT && se.Flags&(conntrack.FlagV6|conntrack.FlagFromBackbone) == 0 {
		n = min(n, sh.NAT.Capacity()-sh.NAT.Len())
	}
	return uint32(n)
}

// answered reports whether a packet of direction dir, already followed, shows that who began the session hears the other end: what a
// sender under a false source never can. TCP: the handshake is complete. Others: begun inside, an answer came; begun outside, something
// came after an answer went.
func answered(s *Slot, se *conntrack.Session, dir int) bool {
	switch {
	case se.Proto == flow.TCP:
		return dir == 0 && se.State >= conntrack.TCPEstablished && se.State <= conntrack.TCPTimeWait && s.TCPFlags&packet.TCPSyn == 0 // a SYN shows nothing of what its sender hears
	case se.Flags&conntrack.FlagFromBackbone == 0:
		return dir == 1
	}
	return dir == 0 && se.Flags&conntrack.FlagReplied != 0
}

// countSession notes a new session of t.
func (sh *Shard) countSession(t *snapshot.Tenant, se *conntrack.Session) {
	d, mine := began(se), &sh.held[t.ID]
	mine.sessions++
	t.Shared.Sessions.Add(1)
	if se.Flags&conntrack.FlagUnanswered != 0 {
		mine.unanswered[d]++
		t.Shared.Unanswered[d].Add(1)
	}
	if d == meter.In {
		t.Shared.Inbound.Add(1)
	}
}

// hear notes what a packet of direction dir, already followed, shows of the other end for the first time: that it sends, and that who began the session hears it. False where it cannot be a first answer.
func (sh *Shard) hear(s *Slot, se *conntrack.Session, dir int) bool {
	flags := se.Flags
	if dir == 1 && flags&conntrack.FlagReplied == 0 {
		if unfinished(&s.Packet) {
			return false
		}
		flags |= conntrack.FlagReplied
	}
	hears := flags&conntrack.FlagUnanswered != 0 && answered(s, se, dir)
	if hears {
		flags &^= conntrack.FlagUnanswered
	}
	if flags == se.Flags {
		return true
	}
	se.BeginWrite()
	se.Flags = flags
	se.EndWrite()
	if hears {
		sh.countAnswered(se)
	}
	return true
}

// countAnswered notes that an unanswered session has become an answered one.
func (sh *Shard) countAnswered(se *conntrack.Session) {
	d := began(se)
	sh.held[se.Tenant].unanswered[d]--
	if t := sh.view.Tenant(se.Tenant); t != nil {
		t.Shared.Unanswered[d].Add(-1)
	}
}

// uncountSession notes the end of a session. Its tenant may be gone, and with it what its workers shared.
func (sh *Shard) uncountSession(se *conntrack.Session) {
	d, mine := began(se), &sh.held[se.Tenant]
	t := sh.view.Tenant(se.Tenant)
	mine.sessions--
	if se.Flags&conntrack.FlagUnanswered != 0 {
		mine.unanswered[d]--
		if t != nil {
			t.Shared.Unanswered[d].Add(-1)
		}
	}
	if t == nil {
		return
	}
	t.Shared.Sessions.Add(-1)
	if d == meter.In {
		t.Shared.Inbound.Add(-1)
	}
}

// hurry reports whether half-open sessions of this one's tenant fill more than half of what they may, or all sessions of its inside host more than half of that one's: then half-open ones that have
// been silent for conntrack.Timeouts.Hurry end, so that who really wants to come in finds room again soon.
func (sh *Shard) hurry(se *conntrack.Session) bool {
	t := sh.view.Tenant(se.Tenant)
	if t == nil {
		return false
	}
	d := began(se)
	if t.MaxSessions > 0 && 2*t.Shared.Unanswered[d].Load() > t.MaxUnanswered || sh.held[se.Tenant].unanswered[d] > sh.free(t, se)/4 {
		return true
	}
	if t.HostSessions == 0 {
		return false
	}
	family, a := insideOf(se)
	h := sh.hosts.find(t.ID, family, &a)
	return h != nil && (2*h.sessions > t.HostSessions || sh.hosts.in[sh.hosts.place(h)] >= inboundOf(t.HostSessions))
}
