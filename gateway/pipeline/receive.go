package pipeline

import (
	"demarc/gateway/conntrack"
	"demarc/gateway/flow"
	"demarc/gateway/nat"
	"demarc/gateway/packet"
	"demarc/gateway/prefetch"
	"demarc/gateway/snapshot"
	"demarc/gateway/verdict"
)

// Process judges a burst. Frames are rewritten in place; the driver then does what each Slot.Verdict says. Drops are counted here.
//
// It sweeps several times, so that the memory that a packet will need is on its way while others are worked on: parse, hash, and ask for a line of the index; guess
// the session by it; each packet to the end, asking for the sessions of those behind it.
func (sh *Shard) Process(slots []Slot, nowNs uint64) {
	sh.setNow(nowNs)
	if sh.view == nil {
		for i := range slots {
			sh.drop(&slots[i], verdict.Shutdown)
			sh.Meter.Drop(0, verdict.Shutdown)
		}
		return
	}
	sh.parse(slots, 0)
	sh.touch(slots)
	sh.carry(slots, 0)
}

// sweep is where Process is, so that Contain and Resume know after a panic.
type sweep uint8

const (
	sweepDone sweep = iota
	sweepParse
	sweepTouch
	sweepCarry
	sweepPieces // SendPieces, which nobody is blocked for: what was cut has been translated
)

// Resume goes on with a burst after Contain, behind the frame that was under way.
func (sh *Shard) Resume(slots []Slot) {
	switch sh.sweep {
	case sweepParse:
		sh.parse(slots, sh.at+1)
		sh.touch(slots)
		sh.carry(slots, 0)
	case sweepTouch: // it only saves time, and who it was that could not be touched, carry will find out
		sh.carry(slots, 0)
	case sweepCarry:
		from := sh.at + 1
		for i := from; i < len(slots); i++ { // parsed before their flow or source was blocked
			if s := &slots[i]; s.Verdict == verdict.Next && sh.poisons.has(&s.Key, sh.now) {
				sh.drop(s, verdict.FlowBlocked)
				sh.dropped(s)
			}
		}
		sh.carry(slots, from)
	case sweepPieces:
		sh.pieces(slots, sh.at+1)
	}
}

// aheadBy is how many packets before it is looked at a thing is asked for, two lines each. Four packets take as long as memory does; with more lines under way the processor waits for those before.
const aheadBy = 4

var _ = [1]struct{}{}[Burst%aheadBy]

func (sh *Shard) parse(slots []Slot, from int) {
	sh.sweep = sweepParse
	var buckets, frames [aheadBy]uintptr
	n := uint(0)
	for i := from; i < len(slots); i++ {
		if i%aheadBy == 0 && i+2*aheadBy <= len(slots) { // another CPU has written the frames
			next := slots[i+aheadBy : i+2*aheadBy]
			for j := range next {
				frames[j] = prefetch.Of(next[j].Buf, next[j].Off)
			}
			prefetch.Pairs(frames[:])
		}
		sh.at = i
		s := &slots[i]
		s.Verdict = sh.receive(s)
		if s.Verdict == verdict.Next {
			s.hash = sh.Sessions.Hash(&s.Key)
			buckets[n%aheadBy] = sh.Sessions.BucketAt(s.hash)
			if n++; n%aheadBy == 0 {
				prefetch.Lines(buckets[:])
			}
		} else if s.Verdict == verdict.Drop {
			sh.dropped(s)
		}
	}
	prefetch.Lines(buckets[:n%aheadBy])
}

// touch finds out which sessions carry will look at. It asks for the first ones.
func (sh *Shard) touch(slots []Slot) {
	sh.sweep = sweepTouch
	tab, begins := sh.Sessions, 0
	for i := range slots {
		if s := &slots[i]; s.Verdict == verdict.Next {
			s.guess = tab.Guess(s.hash)
			sh.ahead[i%Burst] = tab.SessionAt(s.guess)
			if s.guess == conntrack.NoRef {
				begins++
			}
		}
	}
	prefetch.Pairs(sh.ahead[:aheadBy])
	// What is refused comes to no mapping: a flood of that pays nothing, because few of the burst before have begun sessions.
	if begins > 0 && 2*sh.begun >= sh.ofNone {
		sh.touchBegins(slots)
	}
	sh.begun, sh.ofNone = 0, begins
}

// touchBegins asks for where a mapping will be looked for of each packet that seems to begin a session.
func (sh *Shard) touchBegins(slots []Slot) {
	var lines [Burst]uintptr
	n := uint(0)
	var t *snapshot.Tenant
	zone, maps := flow.Backbone, sh.NAT
	for i := range slots {
		s := &slots[i]
		if s.Verdict != verdict.Next || s.guess != conntrack.NoRef || s.Key.Zone == flow.Backbone || s.Key.Family != 4 {
			continue
		}
		if s.Key.Zone != zone {
			zone = s.Key.Zone
			t = sh.view.Tenant(zone)
		}
		if t == nil || len(t.Pool) == 0 || t.Mapping == nat.AddressAndPortDependent {
			continue
		}
		if class, ports := nat.ClassOf(s.Key.Proto); ports {
			var remote [4]byte
			if t.Mapping != nat.EndpointIndependent {
				remote = [4]byte(s.Key.Dst[:4])
			}
			lines[n%Burst] = maps.InsideAt(t.ID, class, [4]byte(s.Key.Src[:4]), s.Key.SPort, remote)
			n++
		}
	}
	prefetch.Lines(lines[:min(n, Burst)])
}

func (sh *Shard) carry(slots []Slot, from int) {
	sh.sweep = sweepCarry
	if len(sh.watch.taps) > 0 {
		sh.watched(slots, from)
		sh.sweep = sweepDone
		return
	}
	known := min(len(slots), Burst)
	for i := from; i < len(slots); i++ {
		if next := i + aheadBy; i%aheadBy == 0 && next < known {
			prefetch.Pairs(sh.ahead[next : next+aheadBy]) // behind known is what was there
		}
		s := &slots[i]
		if s.Verdict != verdict.Next {
			continue
		}
		sh.at, sh.key = i, s.Key // which translation changes
		if s.Verdict = sh.onward(s); s.Verdict == verdict.Drop {
			sh.dropped(s)
		}
	}
	sh.sweep = sweepDone
}

// onward takes a packet to its end.
func (sh *Shard) onward(s *Slot) verdict.Verdict {
	if s.Flags&inPieces != 0 {
		return sh.fragment(s)
	}
	return sh.find(s)
}

func (sh *Shard) drop(s *Slot, r verdict.Reason) verdict.Verdict {
	s.Verdict, s.Reason = verdict.Drop, r
	return verdict.Drop
}

// A frame of Ethernet is padded to 60 bytes; some do that before its tag is put in.
const (
	ethLeast  = 60
	ethMost   = 64
	ethHeader = 14
)

// receive parses a frame and finds out where it came in, and whether it is this worker's.
func (sh *Shard) receive(s *Slot) verdict.Verdict {
	s.Verdict, s.Reason, s.Tenant, s.Group, s.Voice, s.ruled, s.in, s.cut = verdict.Drop, verdict.Unset, 0, 0, false, false, nil, 0
	s.Key.Family = 0 // of the frame that was here before: should anything panic now, nobody is to blame
	if r := packet.Parse(&s.Packet); r != verdict.Pass {
		if f := sh.ingress(s); f != nil {
			s.Tenant = f.Zone
		}
		return sh.drop(s, r)
	}
	s.IPLen = uint16(s.L3End - s.L3)
	if s.Len > ethMost && s.L3End < s.Len && s.Key.Family != 0 { // what stands behind the packet is neither counted nor of its size
		s.Len = max(s.L3End, ethLeast+s.L3-ethHeader) // of a tag that goes, the four bytes too
	}
	if s.Looped {
		s.Key.Zone = flow.Backbone
		if s.Unreached {
			return sh.unreached(s)
		}
		if sh.blocks != nil && sh.barred(s) {
			return sh.drop(s, verdict.Blocked)
		}
	} else {
		f := sh.ingress(s)
		if f == nil || !f.Used {
			return sh.drop(s, verdict.UnknownVLAN)
		}
		s.in, s.Tenant, s.Key.Zone = f, f.Zone, f.Zone
		if sh.blocks != nil && sh.barred(s) {
			return sh.drop(s, verdict.Blocked)
		}
		if mac := (*[6]byte)(s.Frame()); *mac != f.MAC && s.Flags&packet.FlagMcastMAC == 0 && !sh.view.Takes(f, mac) {
			return sh.drop(s, verdict.ForeignMAC)
		}
		if s.Flags&(packet.FlagARP|packet.FlagND) != 0 {
			s.OutIface = f.Index
			return verdict.Punt
		}
		if !plain(&s.Packet) {
			if r := sane(&s.Packet, sh.view, f); r != verdict.Pass {
				return sh.drop(s, r)
			}
		}
		if !sh.serves(f.Group) && !sh.forNode(s) {
			return sh.drop(s, verdict.NotOwner)
		}
	}
	if sh.poisons.live > 0 && sh.poisons.has(&s.Key, sh.now) {
		return sh.drop(s, verdict.FlowBlocked)
	}
	if s.Flags&inPieces != 0 {
		return sh.gather(s)
	}
	if sh.view.Workers > 1 && !s.Handed {
		if w := sh.home(s); w != sh.Worker {
			s.Home = uint16(w)
			return verdict.Hand
		}
	}
	return verdict.Next
}

func (sh *Shard) ingress(s *Slot) *snapshot.Iface {
	if i := sh.view.Iface(s.Port, s.VLAN); i != 0 {
		return &sh.view.Ifaces[i]
	}
	return nil
}

// plain reports whether sane need not look: a function that is inlined, for nearly all IPv4 packets.
func plain(p *packet.Packet) bool {
	return p.Key.Family == 4 && odd[p.Key.Src[0]]|odd[p.Key.Dst[0]] == 0 && p.Flags&packet.FlagMcastMAC == 0 && [4]byte(p.Key.Src[:4]) != [4]byte(p.Key.Dst[:4])
}

// sane refuses addresses that no forwarded packet may carry (RFC 1812 5.3.7, RFC 6890, RFC 4291 2.5).
func sane(p *packet.Packet, v *snapshot.View, f *snapshot.Iface) verdict.Reason {
	if p.Key.Family == 4 {
		src, dst := p.Key.Src.V4(), p.Key.Dst.V4()
		switch {
		case dst>>28 == 0xe || p.Flags&packet.FlagMcastMAC != 0:
			return verdict.Multicast
		case src == dst:
			return verdict.Land
		case src>>24 == 0 || src>>24 == 127 || src>>28 >= 0xe, dst>>24 == 0 || dst>>24 == 127 || dst>>28 == 0xf:
			return verdict.Martian
		case src>>16 == 0xa9fe || dst>>16 == 0xa9fe:
			return verdict.LinkLocal
		}
		return verdict.Pass
	}
	src, dst := &p.Key.Src, &p.Key.Dst
	switch {
	case dst[0] == 0xff || p.Flags&packet.FlagMcastMAC != 0:
		return verdict.Multicast
	case *src == *dst:
		return verdict.Land
	case src[0] == 0xff || reserved6(src) || reserved6(dst):
		return verdict.Martian
	case linkLocal6(src) || linkLocal6(dst):
		if _, ours := v.Speaks(f, dst); !ours {
			return verdict.LinkLocal
		}
	}
	return verdict.Pass
}

// odd has 1 for each first octet of an IPv4 address at which sane has to look, see plain.
var odd = func() (o [256]uint8) {
	o[0], o[127], o[169] = 1, 1, 1
	for i := 0xe0; i < len(o); i++ {
		o[i] = 1
	}
	return o
}()

func linkLocal6(a *flow.Addr) bool { return a[0] == 0xfe && a[1]&0xc0 == 0x80 }

// reserved6: unspecified, loopback, IPv4-compatible and IPv4-mapped addresses (::/8 but for what is never routed anyway).
func reserved6(a *flow.Addr) bool { return a[0] == 0 && a[1] == 0 && a[2] == 0 && a[3] == 0 }
