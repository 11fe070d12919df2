package pipeline

import (
	"demarc/gateway/conntrack"
	"demarc/gateway/meter"
	"demarc/gateway/packet"
	"demarc/gateway/snapshot"
	"demarc/gateway/verdict"
)

// forward carries a packet of tenant t's established session in direction dir to its next hop.
func (sh *Shard) forward(s *Slot, t *snapshot.Tenant, se *conntrack.Session, dir int) verdict.Verdict {
	s.Tenant, s.Dir = se.Tenant, Direction(se, dir)
	s.ruled = se.Class == classVoice
	s.Voice = s.ruled || t.Voice(s.TOS)
	if r := extra(s, t.Extra); r != verdict.Pass {
		return sh.drop(s, r)
	}
	if sh.blocks != nil && sh.barredOut(se, dir) {
		return sh.drop(s, verdict.Blocked)
	}
	hop, v := sh.usable(s, t, sh.way(se, dir))
	if v != verdict.Next {
		return v
	}
	var h *host
	if t.HostRates && s.Dir != meter.Inside {
		var r verdict.Reason
		if h, r = sh.takeHost(t, se, s.Dir, int(s.IPLen), s.Voice); r != verdict.Pass {
			return sh.drop(s, r)
		}
	}
	lowered := false
	if se.Flags&conntrack.FlagNAT != 0 {
		src, dst, sport, dport := se.OutWords(dir)
		h4, also, ok := packet.Header4(&s.Packet), uint64(0), true
		if h4 != nil && !packet.Atomic4(h4) {
			var id uint16
			if id, ok = sh.ident(s, se, src, dst); ok {
				also = packet.ID4(h4, id)
			}
		}
		switch {
		case h4 == nil:
			v = sh.drop(s, verdict.InternalError) // such a session has IPv4 packets only
		case !ok:
			v = sh.drop(s, verdict.FragmentNoID)
		default:
			if hop.Kind == snapshot.HopForward { // else it goes round, and that is no hop
				also += packet.Hop4(&s.Packet, h4)
				lowered = true
			}
			packet.Words4(&s.Packet, h4, src, dst, sport, dport, also)
		}
	}
	if v == verdict.Next {
		v = sh.send(s, t, hop, lowered)
	}
	if h != nil && (v == verdict.Drop || v == verdict.Neighbor) {
		sh.giveHost(h, t, s.Dir, int(s.IPLen))
	}
	if v != verdict.Drop {
		if s.TCPFlags&packet.TCPRst == 0 { // an answer to what was not wanted keeps nothing alive (RFC 7857 section 7.1)
			se.LastSeen[dir] = sh.tick
		}
		if sh.shared {
			se.CountShared(dir, uint64(s.IPLen))
		} else {
			se.Count(dir, uint64(s.IPLen))
		}
		if sh.second != nil && v == verdict.Send {
			sh.second.Sent(sh.Sessions.SlotOf(se), se)
		}
	}
	return v
}
