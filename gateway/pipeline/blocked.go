package pipeline

import (
	"demarc/gateway/block"
	"demarc/gateway/conntrack"
	"demarc/gateway/flow"
	"demarc/gateway/meter"
	"demarc/gateway/packet"
)

// SetBlocks replaces the list of blocked addresses; nil blocks nothing. Worker only, between bursts: what is received from then on meets it.
func (sh *Shard) SetBlocks(l *block.List) { sh.blocks = l }

// barred reports whether a packet may not enter: source or destination, as the side that it comes from sees them, is blocked. Neighbour
// discovery goes on, as ARP does: a blocked router must still be found by those who go through it.
func (sh *Shard) barred(s *Slot) bool {
	if s.Flags&packet.FlagND != 0 {
		return false
	}
	k := &s.Key
	return sh.blocks.Match(k.Zone, k.Family, &k.Src, sh.now, sh.Worker) || sh.blocks.Match(k.Zone, k.Family, &k.Dst, sh.now, sh.Worker)
}

// barredOut is barred on the side that packets of direction dir of a session leave to.
func (sh *Shard) barredOut(se *conntrack.Session, dir int) bool {
	zone := se.Tenant
	if Direction(se, dir) == meter.Out {
		zone = flow.Backbone
	}
	var src, dst flow.Addr
	family := uint8(4)
	if se.Flags&conntrack.FlagV6 != 0 {
		family = 6
		if src, dst = se.OrigSrc, se.OrigDst; dir == 1 {
			src, dst = dst, src
		}
	} else {
		from, to, _, _ := se.Out(dir)
		copy(src[:4], from[:])
		copy(dst[:4], to[:])
	}
	return sh.blocks.Match(zone, family, &src, sh.now, sh.Worker) || sh.blocks.Match(zone, family, &dst, sh.now, sh.Worker)
}

// CutSome looks at most at look slots from from on and ends at most cut sessions that match says yes to and that are no copies, so that a long cut can be done in
// pieces between bursts. Go on with next until done.
func (sh *Shard) CutSome(from uint32, look, cut int, match func(slot uint32, se *conntrack.Session) bool) (next uint32, n int, done bool) {
	next, done = sh.Sessions.Each(from, look, func(slot uint32, se *conntrack.Session) bool {
		if match(slot, se) && !sh.Copied(se) {
			sh.end(slot, se)
			n++
		}
		return n < cut
	})
	return next, n, done
}
