package pipeline

import (
	"demarc/gateway/conntrack"
	"demarc/gateway/flow"
	"demarc/gateway/packet"
	"demarc/gateway/snapshot"
	"demarc/gateway/verdict"
)

// find looks the session up, or opens one.
func (sh *Shard) find(s *Slot) verdict.Verdict {
	if s.Flags&packet.FlagICMPError != 0 {
		return sh.related(s)
	}
	ref := s.guess
	if !sh.Sessions.Guessed(ref, &s.Key) {
		var ok bool
		if ref, ok = sh.Sessions.Lookup(&s.Key, s.hash); !ok {
			if s.Key.Zone == flow.Backbone {
				return sh.openIn(s)
			}
			return sh.openOut(s)
		}
	}
	slot, dir := ref.Slot(), ref.Dir()
	se := sh.Sessions.At(slot)
	t := sh.view.Tenant(se.Tenant)
	if t != nil && !sh.serves(t.Group) {
		s.Tenant = se.Tenant
		return sh.drop(s, verdict.NotOwner)
	}
	if se.ViewGen != sh.gen {
		if r := sh.current(slot, se); r != verdict.Pass {
			s.Tenant = se.Tenant
			sh.expel(slot, se)
			return sh.drop(s, r)
		}
	}
	if sh.elsewhere(se.NextHop[dir]) {
		s.Tenant = se.Tenant
		return sh.drop(s, verdict.NotOwner)
	}
	if sh.impostor(s, se, dir) {
		s.Tenant = se.Tenant
		return sh.drop(s, verdict.SpoofedSource)
	}
	before, flags := se.State, se.Flags
	if se.Proto == flow.TCP {
		seg := segment(&s.Packet)
		if conntrack.Reopens(se, dir, &seg) {
			return sh.reopen(s, slot, se, dir)
		}
		if r := sh.track(se, dir, &seg); r != verdict.Pass {
			s.Tenant = se.Tenant
			return sh.drop(s, r)
		}
		if se.State != before { // a shorter time-out must not wait for the longer one's deadline
			sh.Sessions.SetDeadline(slot, sh.tick+se.Look(&sh.view.Timeouts))
			if conntrack.TCPCloses(se.State) && !conntrack.TCPCloses(before) {
				sh.changes(slot, se) // from here on it is looked at packet by packet, and is handed down no more
			}
		}
	}
	if flags&(conntrack.FlagReplied|conntrack.FlagUnanswered) != conntrack.FlagReplied && !sh.hear(s, se, dir) {
		s.Tenant = se.Tenant
		return sh.drop(s, verdict.UnfinishedChecksum)
	}
	if se.State != before || se.Flags != flags {
		if tm := &sh.view.Timeouts; se.Proto == flow.UDP && tm.UDP < tm.UDPUnanswered && (se.Flags^flags)&conntrack.FlagReplied != 0 { // as above
			sh.Sessions.SetDeadline(slot, sh.tick+se.Look(tm))
		}
		sh.changed(slot, se)
	}
	return sh.forward(s, t, se, dir)
}

// track follows a segment.
func (sh *Shard) track(se *conntrack.Session, dir int, seg *conntrack.Segment) verdict.Reason {
	if sh.shared {
		return conntrack.TrackShared(se, dir, seg)
	}
	return conntrack.Track(se, dir, seg)
}

// reopen takes a SYN that begins a new conversation on the tuple of one that is over, and judges it like any first packet. The mapping is
// kept in between, so that the inside port keeps its public one and none rests for each use of a tuple.
func (sh *Shard) reopen(s *Slot, slot uint32, se *conntrack.Session, dir int) verdict.Verdict {
	if se.Mapping != conntrack.NoMapping {
		if t := sh.view.Tenant(se.Tenant); dir == 1 && se.Flags&conntrack.FlagFromBackbone == 0 && sh.filtered(t, se.Mapping, &s.Key.Src) {
			s.Tenant = se.Tenant
			return sh.drop(s, verdict.NATFiltered) // and what is over ends when it would
		}
		sh.keeping = se.Mapping
		sh.NAT.Ref(sh.keeping)
	}
	sh.end(slot, se)
	var v verdict.Verdict
	if s.Key.Zone == flow.Backbone {
		v = sh.openIn(s)
	} else {
		v = sh.openOut(s)
	}
	sh.letGo()
	return v
}

// letGo ends what reopen began.
func (sh *Shard) letGo() {
	if sh.keeping != conntrack.NoMapping {
		sh.NAT.Unref(sh.keeping, sh.tick)
		sh.keeping = conntrack.NoMapping
	}
}

// impostor reports whether a packet that came over the wire from the backbone bears a source that is ours, a public address or a
// tenant's: those come round by Loop. The session knows, because its way back leads there.
func (sh *Shard) impostor(s *Slot, se *conntrack.Session, dir int) bool {
	if s.Key.Zone != flow.Backbone || s.Looped {
		return false
	}
	back := se.NextHop[1-dir]
	if back == noHop {
		return false
	}
	k := sh.view.Hop(back).Kind
	return k != snapshot.HopForward && k != snapshot.HopDiscard
}

// segment is what connection tracking wants to know of a TCP packet.
func segment(p *packet.Packet) conntrack.Segment {
	seg := conntrack.Segment{Flags: p.TCPFlags, Seq: p.Seq, Ack: p.Ack, Window: p.Window, Payload: p.PayloadLen, Scale: -1}
	if p.TCPFlags&packet.TCPSyn != 0 {
		seg.Scale = packet.WindowScale(p)
	}
	if p.Flags&packet.FlagFragFirst != 0 && seg.Flags&(packet.TCPFin|packet.TCPSyn|packet.TCPRst|packet.TCPAck) == packet.TCPFin|packet.TCPAck {
		seg.Flags &^= packet.TCPFin // it stands behind the last fragment, see continuation
	}
	return seg
}
