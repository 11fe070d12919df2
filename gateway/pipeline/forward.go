package pipeline

import (
	"demarc/gateway/conntrack"
	"demarc/gateway/meter"
	"demarc/gateway/packet"
	"demarc/gateway/verdict"
)

// forward carries a packet of an established session in direction dir to its next hop.
func (sh *Shard) forward(s *Slot, se *conntrack.Session, dir int) verdict.Verdict {
	s.Tenant, s.Dir = se.Tenant, Direction(se, dir)
	t := sh.view.Tenant(se.Tenant)
	s.Voice = se.Class == classVoice || t.Voice(s.TOS)
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
		if h, r = sh.takeHost(t, se, s.Dir, int(s.IPLen)); r != verdict.Pass {
			return sh.drop(s, r)
		}
	}
	if se.Flags&conntrack.FlagNAT != 0 {
		src, dst, sport, dport := se.OutWords(dir)
		if h4 := packet.Header4(&s.Packet); h4 == nil {
			v = sh.drop(s, verdict.InternalError) // such a session has IPv4 packets only
		} else if packet.Atomic4(h4) {
			packet.Words4(&s.Packet, h4, src, dst, sport, dport)
		} else if id, ok := sh.ident(s, se, src, dst); ok {
			packet.Words4ID(&s.Packet, h4, src, dst, sport, dport, id)
		} else {
			v = sh.drop(s, verdict.FragmentNoID)
		}
	}
	if v == verdict.Next {
		v = sh.send(s, t, hop)
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
