package pipeline

import (
	"fmt"
	"slices"
	"strings"

	"demarc/gateway/conntrack"
	"demarc/gateway/flow"
	"demarc/gateway/nat"
	"demarc/gateway/prefetch"
	"demarc/gateway/replica"
	"demarc/gateway/snapshot"
	"demarc/gateway/verdict"
)

// changed marks a session for each standby.
func (sh *Shard) changed(slot uint32, se *conntrack.Session) {
	for _, c := range sh.copies {
		c.Mark(slot, settled(se))
	}
}

// settled reports whether a session goes before others to a standby.
func settled(se *conntrack.Session) bool {
	return se.Flags&conntrack.FlagUnanswered == 0 || se.Proto == flow.TCP && se.State >= conntrack.TCPEstablished
}

// CopyTo has what changes in the shard marked in c too, which was made with Copies as its Source.
func (sh *Shard) CopyTo(c *replica.Sender) { sh.copies = append(sh.copies, c) }

// CopyNoMore ends that.
func (sh *Shard) CopyNoMore(c *replica.Sender) {
	sh.copies = slices.DeleteFunc(sh.copies, func(o *replica.Sender) bool { return o == c })
}

// Copying is how many standbys what changes is marked for.
func (sh *Shard) Copying() int { return len(sh.copies) }

// Copies is the shard's sessions, with their mappings, as a replica.Source. It belongs to the shard's worker.
type Copies struct{ Shard *Shard }

// Slots implements replica.Source.
func (c Copies) Slots() uint32 { return c.Shard.Sessions.Slots() }

// Look implements replica.Source.
func (c Copies) Look(slot uint32) replica.Look {
	t := c.Shard.Sessions
	se := t.At(slot)
	l := replica.Look{Gen: se.Gen}
	if !t.Live(slot) {
		return l
	}
	if g := c.Shard.view.GroupOf(se.Tenant); g != nil {
		l.Group = g.ID
	}
	l.Early = settled(se)
	l.Seen = uint8(se.Seen(c.Shard.tick) >> 13)
	return l
}

// same is flags that mean the same in both.
var same = [...]struct {
	table uint8
	copy  replica.Flags
}{
	{conntrack.FlagV6, replica.FlagV6}, {conntrack.FlagFromBackbone, replica.FlagFromBackbone}, {conntrack.FlagToBackbone, replica.FlagToBackbone}, {conntrack.FlagNAT, replica.FlagNAT},
	{conntrack.FlagReplied, replica.FlagReplied}, {conntrack.FlagPermit, replica.FlagPermit}, {conntrack.FlagUnanswered, replica.FlagUnanswered},
}

// flagsOf is what same makes of a table's flags, and flagsIn the other way round for the flags of a copy that same knows: all of them are among the lowest eight.
var flagsOf, flagsIn = func() (of [256]replica.Flags, in [256]uint8) {
	for i := range of {
		for _, f := range same {
			if uint8(i)&f.table != 0 {
				of[i] |= f.copy
			}
			if replica.Flags(i)&f.copy != 0 {
				in[i] |= f.table
			}
		}
	}
	return of, in
}()

// Fill implements replica.Source.
func (c Copies) Fill(slot uint32, r *replica.Record) {
	sh := c.Shard
	se := sh.Sessions.At(slot)
	s := &r.Session
	*s = replica.Session{State: se.State, Class: se.Class, Rule: se.Rule, Hop: se.NextHop, Scale: se.Scale, End: se.TCPEnd, Limit: se.TCPLimit, Bytes: se.Bytes, Packets: se.Packets}
	sh.bind(se, r)
	if s.State == conntrack.TCPReuse { // releases before do not know it, and would refuse all of the session
		s.State = conntrack.TCPClosing
	}
	if se.ViewGen >= sh.judged {
		r.Revision = sh.view.Text
	} else { // yet to be judged under any that another node might have; its next hops are numbers of another View
		s.Hop = [2]uint16{replica.NoName, replica.NoName}
	}
	if left := int32(se.Seen(sh.tick) + se.Timeout(&sh.view.Timeouts) - sh.tick); left > 0 {
		s.Left = uint32(uint64(left) << 20 / 1e6)
	}
	if se.Mapping != conntrack.NoMapping {
		m := sh.NAT.Describe(se.Mapping)
		if m.Aside {
			s.Flags |= replica.FlagAside
		}
		if t := sh.view.Tenant(se.Tenant); t != nil && t.PerHost {
			s.Flags |= replica.FlagPerHost
		}
		s.Hold = uint32(uint64(m.Hold) << 20 / 1e6)
	}
}

// bind makes r all of a session that its hash is of, and its flags. What else r has it leaves.
func (sh *Shard) bind(se *conntrack.Session, r *replica.Record) {
	r.Kind, r.Tenant = replica.KindSession, uint16(se.Tenant)
	s := &r.Session
	s.OrigSrc, s.OrigDst, s.XlatSrc, s.XlatDst = se.OrigSrc, se.OrigDst, se.XlatSrc, se.XlatDst
	s.OrigSPort, s.OrigDPort, s.XlatSPort, s.XlatDPort = se.OrigSPort, se.OrigDPort, se.XlatSPort, se.XlatDPort
	s.Proto, s.Flags, s.Remote = se.Proto, flagsOf[se.Flags], [4]byte{}
	if se.Mapping != conntrack.NoMapping {
		s.Flags |= replica.FlagMapped
		s.Remote, _ = sh.NAT.Mapping(se.Mapping).Remote()
	}
}

// Name implements replica.Source: a router is told by interface and address, what else a route leads to by its interface.
func (c Copies) Name(kind replica.NameKind, local uint16) string {
	return nameOf(c.Shard.view, kind, local)
}

func nameOf(v *snapshot.View, kind replica.NameKind, local uint16) string {
	if kind == replica.NameTenant {
		if t := v.Tenant(flow.TenantID(local)); t != nil {
			return t.Name
		}
		return ""
	}
	h := v.Hop(local)
	if h.Kind != snapshot.HopForward {
		return ""
	}
	name := fmt.Sprintf("%s via %s", v.Ifaces[h.Iface].Name, h.Via.Netip(h.Family))
	var over []string
	for _, first := range v.Over(h) { // it has a number for each set of them
		over = append(over, fmt.Sprintf(" for %s via %s", v.Ifaces[first.Iface].Name, first.Via.Netip(first.Family)))
	}
	slices.Sort(over) // numbers are each node's own
	return name + strings.Join(over, "")
}

// Copied is the tables of a standby, as a replica.Sink: all shards of a node. Each shard may be written by its own worker, between two bursts: see Plan. Do and Sweep are for who
// has all of them to himself.
type Copied struct {
	Shards []*Shard
	// View is the one that names are looked up in; nil = that of the shards, for who has them to himself. A shard may have the next one already, or not yet.
	View *snapshot.View
	// Deaf says of a group that nothing is taken of it any more. It may be asked from all workers. nil = of none.
	Deaf func(group uint8) bool
	// Common takes what is no session; nil = nothing does.
	Common replica.Sink
	// Own has what is entered be this node's own, of whatever group: see Resumed.
	Own bool

	hops          map[string]uint16
	of            *snapshot.View // that hops is of
	leave, enters []bool
}

// names is the View that names are looked up in.
func (c *Copied) names() *snapshot.View {
	if c.View != nil {
		return c.View
	}
	return c.Shards[0].view
}

// Local implements replica.Sink.
func (c *Copied) Local(kind replica.NameKind, name string) (uint16, bool) {
	v := c.names()
	if kind == replica.NameTenant {
		if t := v.TenantByName(name); t != nil {
			return uint16(t.ID), true
		}
		return 0, false
	}
	if c.of != v {
		c.of, c.hops = v, map[string]uint16{}
		for nh := range v.Hops {
			vias := slices.Concat(v.Hops[nh].Vias, v.Hops[nh].Backups)
			if len(vias) == 0 { // a route by routers has the name of the first one, and is none: whoever goes by it never leaves it
				vias = []uint16{uint16(nh)}
			}
			for _, via := range vias {
				c.hops[nameOf(v, kind, via)] = via
			}
		}
	}
	nh, ok := c.hops[name]
	return nh, ok && strings.TrimSpace(name) != ""
}

// Do implements replica.Sink.
func (c *Copied) Do(ops []replica.Op, ctx *replica.Context) {
	leave, enter := c.Plan(ops, ctx)
	for w := range c.Shards {
		if leave[w] {
			c.Leave(w, ops, ctx)
		}
	}
	for w := range c.Shards {
		if enter[w] {
			c.Enter(w, ops, ctx)
		}
	}
}

// Plan is what Do does for whoever has each worker write its own shard: it says of each worker whether it has something to Leave, and whether it has something to Enter. Every Leave
// is to be done before the first Enter: what takes a place comes behind what was there, which may be another shard's. What is no session is done with then.
func (c *Copied) Plan(ops []replica.Op, ctx *replica.Context) (leave, enter []bool) {
	if c.leave == nil {
		c.leave, c.enters = make([]bool, len(c.Shards)), make([]bool, len(c.Shards))
	}
	clear(c.leave)
	clear(c.enters)
	v := c.names()
	for i := range ops {
		op := &ops[i]
		op.Outcome, op.Old, op.New, op.From, op.To = replica.Taken, 0, 0, replica.NoShard, replica.NoShard
		if session := op.Rec.Kind == replica.KindSession; op.Do == replica.Put && !session || op.At != replica.NoPlace && int(op.At.Shard()) >= len(c.Shards) {
			if c.Common != nil && !c.deaf(op) {
				c.Common.Do(ops[i:i+1], ctx)
			} else if c.Common != nil {
				op.Outcome, op.At = replica.Conflict, replica.NoPlace
			} else {
				op.Outcome, op.At = replica.NotKnown, replica.NoPlace
			}
			continue
		}
		if op.Do == replica.Put {
			if op.To = 0; len(c.Shards) > 1 {
				se := entered(&op.Rec)
				op.To = uint16(c.home(v, &se))
			}
			c.enters[op.To] = true
			op.Outcome = replica.Conflict // until it is entered
		}
		if at := uint16(op.At.Shard()); op.At != replica.NoPlace && at != op.To {
			op.From = at
			c.leave[at] = true
		}
	}
	return c.leave, c.enters
}

// placesAhead is how many ops before its own the place of one is asked for.
const placesAhead = 8

// Leave has shard w let go of what is dropped or is entered elsewhere, and refreshes what lives on. Its worker calls it.
func (c *Copied) Leave(w int, ops []replica.Op, ctx *replica.Context) {
	sh := c.Shards[w]
	for i := range min(placesAhead, len(ops)) {
		sh.askPlace(w, &ops[i])
	}
	for i := range ops {
		if i+placesAhead < len(ops) {
			sh.askPlace(w, &ops[i+placesAhead])
		}
		op := &ops[i]
		if int(op.From) != w || c.deaf(op) {
			continue
		}
		if op.Do != replica.Live {
			c.goes(sh, op, ctx)
		} else if sh.there(op.At) && !c.served(sh, op.At.Slot()) {
			sh.refresh(sh.Sessions.At(op.At.Slot()), &op.Rec.Session)
		}
	}
}

// askPlace asks for what an op lets go of or refreshes in shard w.
func (sh *Shard) askPlace(w int, op *replica.Op) {
	if int(op.From) == w {
		place := sh.Sessions.PlaceAt(op.At.Slot())
		prefetch.Lines(place[:])
	}
}

// entering is a session that is about to be entered.
type entering struct {
	op   *replica.Op
	se   conntrack.Session
	hash [2]uint64 // of its keys
	nat  nat.Copied
	why  replica.Outcome // Taken: nat is its mapping, if it has one
}

// Enter enters in shard w what has its home there. Its worker calls it. What a session needs lies in five lines that nobody has looked at for long: they are asked for before
// the first of several sessions is entered, while others are made ready.
func (c *Copied) Enter(w int, ops []replica.Op, ctx *replica.Context) {
	sh := c.Shards[w]
	var list [16]entering
	for len(ops) > 0 {
		n := 0
		for len(ops) > 0 && n < len(list) {
			if op := &ops[0]; int(op.To) == w {
				c.comes(sh, op, &list[n])
				n++
			}
			ops = ops[1:]
		}
		for i := range list[:n] {
			e := &list[i]
			if c.deaf(e.op) {
				e.op.Outcome, e.op.At = replica.Conflict, replica.NoPlace
				continue
			}
			if e.op.At != replica.NoPlace {
				c.goes(sh, e.op, ctx)
			}
			c.put(w, e, ctx)
		}
	}
}

// comes makes e of op, and asks for what put will want.
func (c *Copied) comes(sh *Shard, op *replica.Op, e *entering) {
	if c.View != nil && c.View != sh.view { // numbers of next hops are another View's
		op.Rec.Session.Hop = [2]uint16{replica.NoName, replica.NoName}
	}
	e.op, e.se, e.why = op, entered(&op.Rec), replica.Taken
	tab := sh.Sessions
	if op.At != replica.NoPlace {
		place := tab.PlaceAt(op.At.Slot())
		prefetch.Lines(place[:])
	}
	var lines [4]uintptr
	for dir := range e.hash {
		k := e.se.Key(dir)
		e.hash[dir] = tab.Hash(&k)
		lines[dir] = tab.BucketAt(e.hash[dir])
	}
	n := 2
	if op.Rec.Session.Flags&replica.FlagMapped != 0 {
		if e.nat, e.why = sh.mapping(&e.se, &op.Rec.Session); e.why == replica.Taken {
			lines[2], lines[3] = sh.NAT.LinesAt(&e.nat)
			n = 4
		}
	}
	prefetch.Lines(lines[:n])
}

func (c *Copied) deaf(op *replica.Op) bool { return c.Deaf != nil && c.Deaf(op.Rec.Group) }

// goes takes out what is at the place of an op.
func (c *Copied) goes(sh *Shard, op *replica.Op, ctx *replica.Context) {
	if sh.there(op.At) {
		ctx.Release(op.At)
		if !c.served(sh, op.At.Slot()) {
			op.Old = sh.readBack(op.At.Slot(), ctx)
			sh.leave(op.At.Slot())
		}
	}
	op.At = replica.NoPlace
}

// speaks reports whether who owns the group of op may enter what is a tenant's here: while nodes serve different policies, a tenant may be in another group on this one, or in none.
func (c *Copied) speaks(sh *Shard, op *replica.Op, id flow.TenantID) bool {
	g := sh.view.GroupOf(id)
	return c.Own || g != nil && g.ID == op.Rec.Group
}

// served reports whether a session is of a group that the shard serves: it may have come into that one with its tenant, by a policy that who has entered it does not serve yet.
func (c *Copied) served(sh *Shard, slot uint32) bool {
	g := sh.view.GroupOf(sh.Sessions.At(slot).Tenant)
	return !c.Own && g != nil && sh.serving[g.ID]
}

// place is where the shard with a number has what is in slot.
func (sh *Shard) place(w int, slot uint32) replica.Place {
	return replica.PlaceAt(uint8(w), slot, sh.Sessions.At(slot).Gen)
}

// there reports whether a place holds what was put there, and no other session.
func (sh *Shard) there(p replica.Place) bool {
	return sh.Sessions.Live(p.Slot()) && sh.Sessions.At(p.Slot()).Gen == p.Gen()
}

// Lost implements replica.Sink.
func (c *Copied) Lost() (n uint64) {
	for _, sh := range c.Shards {
		n += sh.lost.Load()
	}
	if c.Common != nil {
		n += c.Common.Lost()
	}
	return n
}

// readBack is the hash of what the table has in a slot.
func (sh *Shard) readBack(slot uint32, ctx *replica.Context) uint64 {
	sh.bind(sh.Sessions.At(slot), &sh.read)
	return ctx.Hash(&sh.read)
}

// put enters a session at its home.
func (c *Copied) put(w int, e *entering, ctx *replica.Context) {
	sh, op, se := c.Shards[w], e.op, &e.se
	if !sh.sameTenant(c.names(), se.Tenant) || !c.speaks(sh, op, se.Tenant) {
		op.Outcome = replica.NoTenant
		return
	}
	for dir := range 2 { // what stands in its way and is nobody's any more goes
		k := se.Key(dir)
		if ref, ok := sh.Sessions.Lookup(&k, e.hash[dir]); ok {
			if ctx.Claimed(sh.place(w, ref.Slot())) || c.served(sh, ref.Slot()) {
				op.Outcome = replica.Conflict
				return
			}
			sh.leave(ref.Slot())
		}
	}
	slot, out := sh.enter(e)
	if op.Outcome = out; out != replica.Taken {
		return
	}
	op.At = sh.place(w, slot)
	ctx.Claim(op.At)
	op.New = sh.readBack(slot, ctx)
	sh.meets(se)
}

// meets has neighbours be asked for that packets of a session go to, should this node take it over: else the first packets of each would wait for an answer then. Routers are asked for in any case.
func (sh *Shard) meets(se *conntrack.Session) {
	if sh.Want == nil {
		return
	}
	for dir, id := range se.NextHop {
		if id == noHop {
			continue
		}
		h := sh.view.Hop(id)
		if h.Kind != snapshot.HopForward || !h.OnLink {
			continue
		}
		to := se.Key(1 - dir) // what comes back comes from there
		if _, known := sh.Neighbors.Lookup(h.Iface, to.Family, &to.Src); !known {
			sh.Want(h.Iface, se.Tenant, to.Family, &to.Src)
		}
	}
}

// sameTenant reports whether the shard has the tenant that a number stands for in another View.
func (sh *Shard) sameTenant(v *snapshot.View, id flow.TenantID) bool {
	t, o := sh.view.Tenant(id), v.Tenant(id)
	return t != nil && o != nil && (t == o || t.Name == o.Name)
}

// home is the worker of a session: that of its inside host, or where there are no ports, by the far address.
func (c *Copied) home(v *snapshot.View, se *conntrack.Session) int {
	family, inside := insideOf(se)
	if Direction(se, 0) == Direction(se, 1) { // between interfaces of one tenant
		return v.HomeOf(se.Tenant, family, lesser(&se.OrigSrc, &se.OrigDst))
	}
	if _, ports := nat.ClassOf(se.Proto); !ports && se.Proto != flow.ICMPv6 {
		_, outside := ends(se, family)
		return v.HomeOf(0, family, &outside)
	}
	return v.HomeOf(se.Tenant, family, &inside)
}

// entered is a record as a session, without what hangs on a shard.
func entered(r *replica.Record) conntrack.Session {
	s := &r.Session
	se := conntrack.Session{OrigSrc: s.OrigSrc, OrigDst: s.OrigDst, XlatSrc: s.XlatSrc, XlatDst: s.XlatDst, OrigSPort: s.OrigSPort, OrigDPort: s.OrigDPort,
		XlatSPort: s.XlatSPort, XlatDPort: s.XlatDPort, Proto: s.Proto, State: s.State, Class: s.Class, Rule: s.Rule, NextHop: s.Hop, Mapping: conntrack.NoMapping,
		Scale: s.Scale, TCPEnd: s.End, TCPLimit: s.Limit, Bytes: s.Bytes, Packets: s.Packets, Tenant: flow.TenantID(r.Tenant)}
	se.Flags = flagsIn[uint8(s.Flags)]
	return se
}

// enter puts a session of another node into the tables, with its mapping. Neither of its keys is taken. Of another revision than this node's, it is judged before its first packet.
func (sh *Shard) enter(e *entering) (slot uint32, out replica.Outcome) {
	se, r := &e.se, &e.op.Rec
	t := sh.view.Tenant(se.Tenant)
	if se.ViewGen = sh.gen; r.Revision != sh.view.Text || se.NextHop[0] == noHop || se.NextHop[1] == noHop {
		se.ViewGen = 0
	}
	sh.refresh(se, &r.Session)
	if r.Session.Flags&replica.FlagMapped != 0 {
		if e.why != replica.Taken {
			return 0, e.why
		}
		switch id, why := sh.NAT.Enter(&e.nat); why {
		case verdict.Pass:
			se.Mapping = id
		case verdict.NATMappingTableFull:
			return 0, replica.Full
		default:
			return 0, replica.Conflict
		}
	}
	sh.countHost(t, se)
	slot, reason := sh.Sessions.Begin(se, e.hash[0], e.hash[1], sh.tick, farAhead)
	sh.counted = nil
	if reason != verdict.Pass {
		if se.Mapping != conntrack.NoMapping {
			sh.NAT.Drop(se.Mapping) // unless others use it
		}
		if se.Flags&conntrack.FlagCounted != 0 {
			sh.uncountHost(se)
		}
		if reason == verdict.SessionTableFull {
			return 0, replica.Full
		}
		return 0, replica.Conflict
	}
	se = sh.Sessions.At(slot)
	if se.Mapping != conntrack.NoMapping {
		sh.NAT.Ref(se.Mapping)
		sh.permit(se)
	}
	sh.countSession(t, se)
	return slot, replica.Taken
}

// farAhead is how many ticks ahead the deadline of a copied session lies: only its owner ends it.
const farAhead = 1 << 30

// mapping is that of a session of another node, as this node has it to enter.
func (sh *Shard) mapping(se *conntrack.Session, s *replica.Session) (m nat.Copied, out replica.Outcome) {
	class, ports := nat.ClassOf(se.Proto)
	if !ports {
		return m, replica.Malformed
	}
	var pub flow.Addr
	m = nat.Copied{Tenant: se.Tenant, Class: class, PerHost: s.Flags&replica.FlagPerHost != 0, Aside: s.Flags&replica.FlagAside != 0, Remote: s.Remote,
		Hold: uint32(uint64(s.Hold) * 1e6 >> 20)}
	if se.Flags&conntrack.FlagFromBackbone != 0 {
		pub, m.Public, m.Inside, m.Port = se.OrigDst, se.OrigDPort, se.XlatDst, se.XlatDPort
	} else {
		copy(pub[:4], se.XlatSrc[:])
		m.Public, m.Inside, m.Port = se.XlatSPort, [4]byte(se.OrigSrc[:4]), se.OrigSPort
	}
	p := publicOf(sh.view, &pub)
	if p == nil || p.Tenant != se.Tenant {
		return m, replica.NoTenant // this node's policy gives the address to somebody else
	}
	m.Addr = p.ID
	return m, replica.Taken
}

// refresh enters the time that is left, counters and windows.
func (sh *Shard) refresh(se *conntrack.Session, s *replica.Session) {
	last := sh.tick - se.Timeout(&sh.view.Timeouts) + uint32(uint64(s.Left)*1e6>>20)
	se.LastSeen = [2]uint32{last, last}
	se.Bytes, se.Packets = s.Bytes, s.Packets
	if se.Proto == flow.TCP {
		se.Scale, se.TCPEnd, se.TCPLimit = s.Scale, s.End, s.Limit
	}
}

// leave takes a copied session out. Its public port does not rest: the owner says when it is somebody's again.
func (sh *Shard) leave(slot uint32) {
	se := sh.Sessions.At(slot)
	m := se.Mapping
	if m != conntrack.NoMapping {
		sh.unpermit(se)
		sh.NAT.Leave(m)
		se.BeginWrite()
		se.Mapping = conntrack.NoMapping
		se.EndWrite()
	}
	sh.end(slot, se)
}

// Sweep implements replica.Sink.
func (c *Copied) Sweep(group uint8, keep func(replica.Place) bool) {
	for w, sh := range c.Shards {
		c.SweepSome(w, group, 0, sh.Sessions.Capacity(), keep)
	}
	if c.Common != nil {
		c.Common.Sweep(group, keep)
	}
}

// SweepSome sweeps the next budget slots of shard w from from on. Go on with next until done. Its worker calls it.
func (c *Copied) SweepSome(w int, group uint8, from uint32, budget int, keep func(replica.Place) bool) (next uint32, done bool) {
	if c.Deaf != nil && c.Deaf(group) {
		return from, true
	}
	sh := c.Shards[w]
	return sh.Sessions.Each(from, budget, func(slot uint32, se *conntrack.Session) bool {
		if g := sh.view.GroupOf(se.Tenant); g != nil && g.ID == group && !keep(replica.PlaceAt(uint8(w), slot, se.Gen)) {
			sh.leave(slot)
		}
		return true
	})
}
