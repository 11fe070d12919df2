package pipeline

import (
	"demarc/gateway/conntrack"
	"demarc/gateway/flow"
	"demarc/gateway/frag"
	"demarc/gateway/packet"
	"demarc/gateway/snapshot"
	"demarc/gateway/verdict"
)

// inPieces are the flags of which a fragment has one.
const inPieces = packet.FlagFragFirst | packet.FlagFragLater

// gather sees to it that the fragments of a datagram meet at one worker. A later one does not show the ports by which the home is found.
func (sh *Shard) gather(s *Slot) verdict.Verdict {
	if sh.view.Workers > 1 && !s.Handed && !s.Gathered {
		if w := sh.gatherer(s); w != sh.Worker {
			s.Home, s.Gathered = uint16(w), true
			return verdict.Hand
		}
	}
	return verdict.Next
}

// fragment carries one fragment: by its own headers if it is the first of its datagram, else by what that one was. A later one that
// comes before it waits as a copy.
func (sh *Shard) fragment(s *Slot) verdict.Verdict {
	owner, r := sh.ownerOf(s)
	s.Tenant = owner.Tenant
	if r != verdict.Pass {
		return sh.drop(s, r)
	}
	k := frag.Key{Src: s.Key.Src, Dst: s.Key.Dst, ID: s.FragID, Zone: s.Key.Zone, Family: s.Key.Family}
	if k.Family == 4 {
		k.Proto = s.Key.Proto
	}
	d, what := sh.note(s, &k, owner)
	if d != nil && d.State == frag.Known && s.Flags&packet.FlagFragFirst != 0 && d.First != s.Key && what == frag.Again {
		if !d.Complete() {
			sh.frags.Kill(d, verdict.FragmentOverlap, sh.tick) // the same place twice, as two conversations
			return sh.drop(s, verdict.FragmentOverlap)
		}
		sh.frags.Forget(d)
		d, what = sh.note(s, &k, owner)
	}
	switch {
	case what == frag.Full:
		return sh.drop(s, verdict.FragmentTableFull)
	case what == frag.Overlap:
		return sh.drop(s, verdict.FragmentOverlap)
	case d.State == frag.Dead:
		return sh.drop(s, d.Reason)
	case s.Flags&packet.FlagFragFirst != 0:
		return sh.firstFragment(s, d)
	case d.State == frag.Known:
		return sh.laterFragment(s, d)
	case what == frag.Again:
		return sh.drop(s, verdict.FragmentDuplicate)
	case !sh.frags.Hold(d, s.Frame(), frag.Meta{Port: s.Port, Looped: s.Looped, Handed: s.Handed, Gathered: s.Gathered}):
		return sh.drop(s, verdict.FragmentTableFull)
	}
	return verdict.Keep
}

func (sh *Shard) note(s *Slot, k *frag.Key, o frag.Owner) (*frag.Datagram, frag.Outcome) {
	return sh.frags.Note(k, o, s.FragOff, s.FragOff+s.FragLen, s.FragMore, sh.tick)
}

// ownerOf says in whose share a fragment is followed, and refuses at once what no first fragment could bring further.
func (sh *Shard) ownerOf(s *Slot) (o frag.Owner, r verdict.Reason) {
	v, k := sh.view, &s.Key
	if k.Zone != flow.Backbone {
		if v.Tenant(k.Zone) == nil {
			return o, verdict.InterfaceDown
		}
		if v.Grouped() && sh.elsewhere(hopTo(v, k.Zone, k.Family, &k.Dst)) { // its first would go round to who is not served here
			return o, verdict.NotOwner
		}
		return frag.Owner{Tenant: k.Zone}, verdict.Pass
	}
	o.In = true
	if !s.Looped {
		if _, h, ok := v.Lookup(flow.Backbone, k.Family, &k.Src); ok && h.Kind != snapshot.HopForward && h.Kind != snapshot.HopDiscard {
			return o, verdict.SpoofedSource
		}
		if k.Family == 6 {
			if g, ours := v.Speaks(s.in, &k.Dst); !sh.serves(g) {
				return o, verdict.NotOwner
			} else if ours {
				return o, verdict.Pass
			}
		}
	}
	_, h, ok := v.Lookup(flow.Backbone, k.Family, &k.Dst)
	if !ok {
		return o, verdict.NoRoute
	}
	switch h.Kind {
	case snapshot.HopTenant:
		o.Tenant = h.Tenant
	case snapshot.HopPublic:
		o.Tenant = v.Publics[h.Public].Tenant
	case snapshot.HopLocal:
	default:
		return o, verdict.NotForUs
	}
	if !sh.serves(h.Group) {
		return o, verdict.NotOwner
	}
	return o, verdict.Pass
}

// firstFragment judges a datagram by its first fragment, like any packet. What becomes of it becomes of the rest.
func (sh *Shard) firstFragment(s *Slot, d *frag.Datagram) verdict.Verdict {
	if d.State == frag.Waiting {
		d.First, d.Home = s.Key, uint16(sh.Worker)
		if s.Key.Proto == flow.TCP {
			d.Seq, d.Ack, d.Window, d.TCPFlags = s.Seq, s.Ack, s.Window, s.TCPFlags
			d.Head = s.FragLen - s.PayloadLen // of IPv6, with the extension headers behind the fragment header
		}
		if sh.view.Workers > 1 && !s.Handed {
			d.Home = uint16(sh.home(s))
		}
	}
	if int(d.Home) != sh.Worker && !s.Handed {
		sh.frags.Resolve(d, sh.tick)
		s.Home, s.Gathered = d.Home, false
		return verdict.Hand
	}
	s.hash = sh.Sessions.Hash(&s.Key)
	sh.frag = d
	v := sh.find(s)
	sh.frag = nil
	switch s.Reason {
	case verdict.Pass: // a ping of the gateway's own address
		d.Local = true
		sh.frags.Resolve(d, sh.tick)
	case verdict.Unset:
		sh.frags.Resolve(d, sh.tick)
	default: // dropped, or the sender was told
		sh.frags.Kill(d, s.Reason, sh.tick)
	}
	return v
}

// laterFragment carries a fragment whose first one has gone on. The session is looked for anew: it may have ended, and the view may be
// another one.
func (sh *Shard) laterFragment(s *Slot, d *frag.Datagram) verdict.Verdict {
	if int(d.Home) != sh.Worker && !s.Handed {
		s.Home, s.Gathered = d.Home, false
		return verdict.Hand
	}
	s.Key.SPort, s.Key.DPort, s.Key.Proto = d.First.SPort, d.First.DPort, d.First.Proto
	if d.Local {
		return sh.localPiece(s)
	}
	s.hash = sh.Sessions.Hash(&s.Key)
	ref, ok := sh.Sessions.Lookup(&s.Key, s.hash)
	if !ok {
		return sh.drop(s, verdict.SessionCut)
	}
	slot, dir := ref.Slot(), ref.Dir()
	se := sh.Sessions.At(slot)
	s.Tenant = se.Tenant
	if !sh.serves(sh.view.GroupOf(se.Tenant)) {
		return sh.drop(s, verdict.NotOwner)
	}
	if se.ViewGen != sh.gen {
		if r := sh.current(slot, se); r != verdict.Pass {
			sh.expel(slot, se)
			return sh.drop(s, r)
		}
	}
	if sh.elsewhere(se.NextHop[dir]) {
		return sh.drop(s, verdict.NotOwner)
	}
	if sh.impostor(s, se, dir) {
		return sh.drop(s, verdict.SpoofedSource)
	}
	if se.Proto == flow.TCP && d.TCPFlags&(packet.TCPSyn|packet.TCPRst) == 0 {
		before, seg := se.State, continuation(s, d)
		if r := sh.track(se, dir, &seg); r != verdict.Pass {
			return sh.drop(s, r)
		}
		if se.State != before {
			sh.Sessions.SetDeadline(slot, sh.tick+se.Look(&sh.view.Timeouts))
			sh.changed(slot, se)
		}
	}
	sh.frag = d
	v := sh.forward(s, sh.view.Tenant(se.Tenant), se, dir)
	sh.frag = nil
	return v
}

// continuation is a later fragment of a TCP segment as connection tracking sees it: the bytes behind those of the fragments before it. A
// FIN stands behind the last of them.
func continuation(s *Slot, d *frag.Datagram) conntrack.Segment {
	seg := conntrack.Segment{Flags: d.TCPFlags &^ packet.TCPFin, Seq: d.Seq + uint32(s.FragOff) - uint32(d.Head), Ack: d.Ack, Window: d.Window,
		Payload: s.FragLen, Scale: -1}
	if !s.FragMore {
		seg.Flags = d.TCPFlags
	}
	return seg
}

// localPiece answers a later fragment of a ping of the gateway's own address, as local has answered the first.
func (sh *Shard) localPiece(s *Slot) verdict.Verdict {
	if s.in == nil {
		return sh.drop(s, verdict.LocalUnhandled)
	}
	if !sh.echoRate.Take(&sh.echo[s.Key.Zone], sh.now, 1) { // a datagram has as many as its sender likes
		return sh.drop(s, verdict.ICMPRateLimited)
	}
	return sh.pong(s)
}

// Fetch puts a fragment that has waited, and whose first one has come, into a slot for Process: Buf and Addr are the driver's, off is where the
// frame shall begin. False when there is none; what does not fit is given up.
func (sh *Shard) Fetch(s *Slot, off int) (ok bool) {
	for !ok && sh.frags.Ready() > 0 {
		var m frag.Meta
		s.Len, m, ok = sh.frags.Fetch(s.Buf[off:])
		s.Off, s.Port, s.Looped, s.Handed, s.Gathered = off, m.Port, m.Looped, m.Handed, m.Gathered
	}
	return ok
}

// Ready is how many fragments Fetch has. The driver asks after each Process: what has waited goes on at once.
func (sh *Shard) Ready() int { return sh.frags.Ready() }

// Forgo drops one that Fetch would have brought: there is no frame for it.
func (sh *Shard) Forgo() { sh.frags.Fetch(nil) }

// Fragments says how many fragments wait, of how many that may, and how many datagrams are followed besides.
func (sh *Shard) Fragments() (waiting, capacity, known int) {
	return sh.frags.Waiting(), sh.frags.Capacity(), sh.frags.Known()
}

// Leave gives up what waits, at the end.
func (sh *Shard) Leave() { sh.frags.Clear(verdict.Shutdown) }
