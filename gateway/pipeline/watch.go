package pipeline

import (
	"demarc/gateway/conntrack"
	"demarc/gateway/flow"
	"demarc/gateway/meter"
	"demarc/gateway/packet"
	"demarc/gateway/snapshot"
	"demarc/gateway/trace"
	"demarc/gateway/verdict"
)

// watching is what a shard has for those who look at its packets. While nobody does, taps is empty and tr is nil.
type watching struct {
	drops   *trace.Recorder // always on
	taps    []*trace.Tap
	tr      *trace.Journey // of the packet in hand
	journey trace.Journey
	before  []byte // the packet in hand as it was received, as much of it as the taps want
	kept    trace.Drop
}

// Tap lets t look at every packet of the shard from now on. Worker only, between bursts.
func (sh *Shard) Tap(t *trace.Tap) {
	sh.watch.taps = append(sh.watch.taps, t)
	sh.resize()
}

// Untap ends that. Worker only, between bursts.
func (sh *Shard) Untap(t *trace.Tap) {
	var left []*trace.Tap
	for _, x := range sh.watch.taps {
		if x != t {
			left = append(left, x)
		}
	}
	sh.watch.taps = left
	sh.resize()
}

func (sh *Shard) resize() {
	n := 0
	for _, t := range sh.watch.taps {
		n = max(n, t.Snap)
	}
	sh.watch.before = make([]byte, n)
}

// Drops are the last drops of the shard. Worker only, between bursts.
func (sh *Shard) Drops() *trace.Recorder { return sh.watch.drops }

// watched takes the slots of a burst that receive has been through to their end, as Process does, and lets the taps see each.
func (sh *Shard) watched(slots []Slot, from int) {
	for i := from; i < len(slots); i++ {
		if s := &slots[i]; s.Verdict != verdict.Hand { // the worker that it goes to looks at it
			sh.at, sh.key = i, s.Key
			sh.follow(s)
		}
	}
}

// follow takes one packet to its end and shows its journey to the taps.
func (sh *Shard) follow(s *Slot) {
	w := &sh.watch
	j := &w.journey
	sh.embark(j, s)
	n, size := copy(w.before, s.Frame()), s.Len
	if s.Verdict == verdict.Next {
		sh.journey(j, s)
	} else {
		sh.arrive(j, s)
	}
	for _, t := range w.taps {
		if t.Filter.Journey(j) {
			sh.show(t, j, s, w.before[:n], size)
		}
	}
}

// journey is onward, with j to say what was decided.
func (sh *Shard) journey(j *trace.Journey, s *Slot) {
	sh.watch.tr = j
	if s.Verdict = sh.onward(s); s.Verdict == verdict.Drop {
		sh.dropped(s)
	}
	sh.watch.tr = nil
	sh.arrive(j, s)
}

func (sh *Shard) show(t *trace.Tap, j *trace.Journey, s *Slot, before []byte, size int) {
	if t.Snap == 0 {
		if t.Want(1) {
			t.Note(j)
		}
		return
	}
	was := t.Before && !s.Looped // what came round has been seen as it left
	is := t.After && s.Verdict != verdict.Drop && s.Verdict != verdict.Punt
	sides := 0
	for _, x := range [2]bool{was, is} {
		if x {
			sides++
		}
	}
	if sides == 0 || !t.Want(sides) {
		return
	}
	f := trace.Frame{Ns: sh.now, Port: s.Port, Tenant: s.Tenant, Verdict: s.Verdict, Reason: s.Reason}
	if was {
		f.Side, f.Len = trace.Before, uint16(size)
		t.Keep(f, before)
	}
	if is {
		f.Side, f.Len, f.Port = trace.After, uint16(s.Len), s.OutPort
		if s.Verdict == verdict.Loop {
			f.Port = trace.NoPort
		}
		t.Keep(f, s.Frame())
	}
}

// embark notes what is to be seen of a packet before anything is decided about it.
func (sh *Shard) embark(j *trace.Journey, s *Slot) {
	*j = trace.Journey{Ns: sh.now, In: s.Key, Worker: uint16(sh.Worker), Port: s.Port, VLAN: s.VLAN, IPLen: s.IPLen, TTL: s.TTL, TCP: s.TCPFlags,
		Looped: s.Looped, Handed: s.Handed, Frag: s.Flags&(packet.FlagFragFirst|packet.FlagFragLater) != 0, Hop: trace.NoHop, Rule: flow.NoRule, Mapping: conntrack.NoMapping}
	if s.in != nil {
		j.Iface = s.in.Index
	} else if f := sh.ingress(s); f != nil && !s.Looped {
		j.Iface = f.Index
	}
	if s.Verdict != verdict.Next {
		return
	}
	k, h := s.Key, s.hash
	if s.Flags&packet.FlagICMPError != 0 {
		j.Quotes = true
		in, r := packet.ParseInner(&s.Packet)
		if r != verdict.Pass {
			return
		}
		j.Quoted = in.Key
		k = in.Key.Reverse(s.Key.Zone)
		h = sh.Sessions.Hash(&k)
	}
	if ref, ok := sh.Sessions.Lookup(&k, h); ok {
		se := sh.Sessions.At(ref.Slot())
		j.Found, j.Back, j.Stale = true, ref.Dir() == 1, se.ViewGen < sh.judged
		sh.sessionOf(j, ref.Slot(), se)
		j.State, j.Next = se.State, se.State
	}
}

func (sh *Shard) sessionOf(j *trace.Journey, slot uint32, se *conntrack.Session) {
	j.Slot, j.Gen, j.Next, j.Mapping = slot, se.Gen, se.State, se.Mapping
	j.Replied, j.NAT = se.Flags&conntrack.FlagReplied != 0, se.Flags&conntrack.FlagNAT != 0
	j.Rule, j.RuleDir, j.Allow = se.Rule, uint8(began(se)), true
}

// arrive notes what became of it.
func (sh *Shard) arrive(j *trace.Journey, s *Slot) {
	j.Verdict, j.Reason, j.Tenant, j.Home, j.Voice = s.Verdict, s.Reason, s.Tenant, s.Home, s.Voice
	switch s.Verdict {
	case verdict.Send, verdict.Queue, verdict.Loop, verdict.Neighbor:
		j.Out, j.Dir = s.Key, uint8(s.Dir)
		j.Answer = s.Reason != verdict.Unset
		if s.Verdict != verdict.Loop {
			j.OutPort, j.OutIface, j.NextHop = s.OutPort, s.OutIface, s.NextHop
		}
	case verdict.Drop:
		if asLeaves(s.Reason) {
			j.Out, j.Dir = s.Key, uint8(s.Dir)
		}
	}
	if j.Quotes {
		return
	}
	ref, ok := sh.Sessions.Lookup(&j.In, s.hash)
	if !ok || s.hash == 0 {
		return
	}
	se := sh.Sessions.At(ref.Slot())
	was := j.State
	j.Made = !j.Found || se.Gen != j.Gen || ref.Slot() != j.Slot
	sh.sessionOf(j, ref.Slot(), se)
	j.State = was
}

// behind is what translateDestination found.
func behind(p *snapshot.Public, r verdict.Reason, se *conntrack.Session) trace.Destination {
	switch {
	case r == verdict.NATFiltered:
		return trace.Filtered
	case r != verdict.Pass:
		return trace.Unused
	case p.Static:
		return trace.Static
	case se.Mapping != conntrack.NoMapping:
		return trace.Mapped
	}
	return trace.PortForward
}

// asLeaves reports whether what is dropped for that reason has been translated before.
func asLeaves(r verdict.Reason) bool {
	switch r {
	case verdict.LoopTwice, verdict.TenantRateBits, verdict.TenantRatePackets, verdict.TenantVoiceRate, verdict.TenantQueueFull, verdict.ShaperFull:
		return true
	}
	return false
}

// dropped counts a packet whose verdict is Drop, and records it.
func (sh *Shard) dropped(s *Slot) {
	sh.Meter.Drop(s.Tenant, s.Reason)
	d := sh.watch.drops.Take(s.Tenant, s.Reason, sh.tick)
	if d == nil {
		return
	}
	sh.label(d, s, s.Reason)
	if d.After = asLeaves(s.Reason) || s.Unreached && s.in == nil; d.After {
		sh.whence(d, s)
	}
	d.After = d.After || s.Unreached
	d.Keep(s.Frame())
}

func (sh *Shard) label(d *trace.Drop, s *Slot, why verdict.Reason) {
	d.Ns, d.In, d.Tenant, d.Port, d.VLAN, d.Reason, d.Looped = sh.now, s.Key, s.Tenant, s.Port, s.VLAN, why, s.Looped
	d.After = false
	if s.Looped {
		d.Port = trace.NoPort
	}
}

// whence finds out as what a translated packet was received: its session knows.
func (sh *Shard) whence(d *trace.Drop, s *Slot) {
	d.Out = s.Key
	zone := s.Tenant
	if s.Dir == meter.Out {
		zone = flow.Backbone
	}
	k := s.Key.Reverse(zone)
	if ref, ok := sh.Sessions.Lookup(&k, sh.Sessions.Hash(&k)); ok {
		d.In = sh.Sessions.At(ref.Slot()).Key(1 - ref.Dir())
	}
}

// keep puts aside what told records of a packet that is about to become an ICMP error.
func (sh *Shard) keep(s *Slot) {
	d := &sh.watch.kept
	sh.label(d, s, verdict.Unset)
	d.Keep(s.Frame())
}

// told counts a packet as dropped that has become the ICMP error about it, and records it as keep found it.
func (sh *Shard) told(s *Slot, why verdict.Reason) {
	s.Reason = why
	sh.Meter.Drop(s.Tenant, why)
	if d := sh.watch.drops.Take(s.Tenant, why, sh.tick); d != nil {
		k, n := &sh.watch.kept, d.Skipped
		*d = *k
		d.Skipped, d.Reason, d.Tenant = n, why, s.Tenant
	}
}

// Dropped counts and records a frame that the driver drops. after: it is as it would have left, else as it was received. port is where it came
// in, or trace.NoPort.
func (sh *Shard) Dropped(t flow.TenantID, why verdict.Reason, port uint16, frame []byte, after bool) {
	sh.Meter.Drop(t, why)
	sh.Record(t, why, port, frame, after)
}

// Record records a dropped frame that is counted elsewhere.
func (sh *Shard) Record(t flow.TenantID, why verdict.Reason, port uint16, frame []byte, after bool) {
	sh.watch.drops.Frame(sh.now, t, why, port, frame, after)
}
