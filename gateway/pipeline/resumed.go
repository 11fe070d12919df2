package pipeline

import (
	"demarc/gateway/conntrack"
	"demarc/gateway/flow"
	"demarc/gateway/nat"
	"demarc/gateway/replica"
	"demarc/gateway/snapshot"
)

// Left is what a shard leaves to the process after this one, as slots of a replica.Source: its sessions as Copies has them, then the ports that rest. No worker runs any more.
type Left struct {
	Copies
	goes  func(*snapshot.Group) bool
	slots uint32
	rests []nat.Resting
}

// Leaves is what a shard leaves behind at nowNs. goes says of a group that what is its goes to the next process: no other node can take it over, or it is seen by something else whether one has.
func (sh *Shard) Leaves(nowNs uint64, goes func(*snapshot.Group) bool) *Left {
	sh.setNow(nowNs)
	l := &Left{Copies: Copies{sh}, goes: goes, slots: sh.Sessions.Slots()}
	sh.NAT.Resting(sh.tick, func(r *nat.Resting) {
		if l.ours(r.Tenant) {
			l.rests = append(l.rests, *r)
		}
	})
	return l
}

// ours reports whether what is a tenant's goes to the next process.
func (l *Left) ours(id flow.TenantID) bool {
	t := l.Shard.view.Tenant(id)
	return t != nil && (t.Group == nil || l.goes(t.Group))
}

// Slots implements replica.Source.
func (l *Left) Slots() uint32 { return l.slots + uint32(len(l.rests)) }

// Has reports whether there is something in a slot for the next process.
func (l *Left) Has(slot uint32) bool {
	return slot >= l.slots || l.Shard.Sessions.Live(slot) && l.ours(l.Shard.Sessions.At(slot).Tenant)
}

// Look implements replica.Source.
func (l *Left) Look(slot uint32) replica.Look {
	if slot < l.slots {
		return l.Copies.Look(slot)
	}
	return replica.Look{}
}

// Fill implements replica.Source.
func (l *Left) Fill(slot uint32, r *replica.Record) {
	if slot < l.slots {
		l.Copies.Fill(slot, r)
		return
	}
	x := &l.rests[slot-l.slots]
	r.Kind, r.Tenant = replica.KindBlock, uint16(x.Tenant)
	r.Block = replica.Block{Addr: l.Shard.Space.Addr(x.Addr), Class: uint8(x.Class), Number: x.Block, Held: x.Ports, Rest: uint32(uint64(x.Left) << 20 / 1e6)}
	if x.PerHost {
		r.Block.Inside = x.Inside
	}
}

// Resumed is the tables of a process that goes on where the one before it ended, as a replica.Sink: all shards of a node before its workers run. What is entered is this node's own, so it
// is served as soon as its group is, if it has one, and ends by its own timers then.
type Resumed struct {
	Copied
	Goes   func(*snapshot.Group) bool // as for Leaves
	Judge  bool                       // each session is judged before its first packet, whatever revision it names
	over   map[overKey]*nat.Resting   // what is to rest of sessions that are over, see End
	Beside func(n int, fn func(int))  // calls fn for 0 to n-1, beside each other; nil = one after the other
}

// Do implements replica.Sink, for Put alone: nothing is there before.
func (c *Resumed) Do(ops []replica.Op, ctx *replica.Context) {
	_, enters := c.Plan(ops, ctx)
	for i := range ops {
		op := &ops[i]
		if why := c.refuses(op); why != replica.Taken {
			op.Outcome, op.To = why, replica.NoShard
			continue
		}
		if op.Over {
			op.Outcome, op.To = c.isOver(op), replica.NoShard
			continue
		}
		if op.Rec.Kind == replica.KindBlock {
			op.Outcome = c.rest(&op.Rec.Block, flow.TenantID(op.Rec.Tenant))
		}
		if c.Judge {
			op.Rec.Revision = noRevision
		}
	}
	enter := func(w int) {
		if !enters[w] {
			return
		}
		c.Enter(w, ops, ctx)
		for i := range ops {
			if op := &ops[i]; int(op.To) == w && op.Outcome == replica.Taken {
				c.Shards[w].resume(op.At.Slot(), op.Rec.Session.Left)
			}
		}
	}
	if c.Beside != nil {
		c.Beside(len(c.Shards), enter)
		return
	}
	for w := range c.Shards {
		enter(w)
	}
}

// refuses says why a record is not entered.
func (c *Resumed) refuses(op *replica.Op) replica.Outcome {
	t := c.names().Tenant(flow.TenantID(op.Rec.Tenant))
	switch {
	case t == nil, t.Group != nil && !c.Goes(t.Group):
		return replica.NoTenant
	case op.Rec.Kind == replica.KindSession && op.Rec.Session.Proto == flow.TCP && !known(op.Rec.Session.State):
		return replica.Malformed
	}
	return replica.Taken
}

// noRevision is that of no policy.
const noRevision = 1<<64 - 1

// known reports whether there is such a state of TCP here.
func known(state uint8) bool {
	return state != 0 && conntrack.TCPStateText(state) != "invalid"
}

// leastLeft is how long a session lives at least after its node was away: a packet that would have kept it alive may have come to closed ports.
const leastLeft = 30_000 // ms

// resume has a session that was entered end when its time is over: what was left of it, in ms, or leastLeft, but not later than if a packet came now.
func (sh *Shard) resume(slot, left uint32) {
	se := sh.Sessions.At(slot)
	if se.ViewGen == 0 { // not judged under this policy: before its first packet, or by Rejudge
		sh.rejudge, sh.stale = 0, true
	}
	idle := se.Timeout(&sh.view.Timeouts)
	t := min(uint32(uint64(max(left, leastLeft))*1e6>>20), idle)
	last := sh.tick + t - idle
	se.LastSeen = [2]uint32{last, last}
	sh.Sessions.SetDeadline(slot, sh.tick+min(t, se.Look(&sh.view.Timeouts)))
}

// blockPorts is how many ports a block has.
const blockPorts = 64

// overKey is a block of which ports are to rest.
type overKey struct {
	addr    nat.AddrID
	class   nat.Class
	block   uint16
	tenant  flow.TenantID
	perHost bool
	inside  [4]byte
}

// isOver notes that the public port of a session that is over is to rest. Not before all is entered: a session that lives may have the same mapping.
func (c *Resumed) isOver(op *replica.Op) replica.Outcome {
	se := entered(&op.Rec)
	m, why := c.Shards[0].mapping(&se, &op.Rec.Session)
	if why != replica.Taken {
		return why
	}
	k := overKey{addr: m.Addr, class: m.Class, block: m.Public / blockPorts, tenant: m.Tenant, perHost: m.PerHost}
	if m.PerHost {
		k.inside = m.Inside
	}
	r := c.over[k]
	if r == nil {
		if c.over == nil {
			c.over = map[overKey]*nat.Resting{}
		}
		r = &nat.Resting{Tenant: k.tenant, PerHost: k.perHost, Inside: k.inside, Addr: k.addr, Class: k.class, Block: k.block}
		c.over[k] = r
	}
	r.Ports |= 1 << (m.Public % blockPorts)
	r.Left = max(r.Left, m.Hold)
	return replica.Taken
}

// End has the public ports rest of what is over, but those that something has that is not. It is called once, behind the last record. whole is false where that was not possible for all of them.
func (c *Resumed) End() (whole bool) {
	whole = true
	for _, r := range c.over {
		whole = c.restsAt(r) && whole
	}
	c.over = nil
	return whole
}

// rest has ports rest that rested.
func (c *Resumed) rest(b *replica.Block, tenant flow.TenantID) replica.Outcome {
	v := c.names()
	var pub flow.Addr
	copy(pub[:4], b.Addr[:])
	p := publicOf(v, &pub)
	if p == nil || p.Tenant != tenant {
		return replica.NoTenant
	}
	r := nat.Resting{Tenant: tenant, PerHost: b.Inside != [4]byte{}, Inside: b.Inside, Addr: p.ID, Class: nat.Class(b.Class), Block: b.Number, Ports: b.Held, Left: uint32(uint64(b.Rest) * 1e6 >> 20)}
	if !c.restsAt(&r) {
		return replica.Malformed
	}
	return replica.Taken
}

// restsAt has ports rest at the worker that has their block, or will have it.
func (c *Resumed) restsAt(r *nat.Resting) bool {
	w, ok := c.Shards[0].Space.Holder(r.Addr, r.Class, r.Block)
	switch {
	case ok:
	case r.PerHost:
		inside := flow.Addr{}
		copy(inside[:4], r.Inside[:])
		w = c.names().HomeOf(r.Tenant, 4, &inside)
	default:
		w = int(r.Block) % len(c.Shards)
	}
	sh := c.Shards[w]
	return sh.NAT.Rest(r, sh.tick)
}

// Forsake ends all sessions, also those of groups that this node is yet to take over: what was entered of a whole that has turned out to be none. No worker runs.
func (sh *Shard) Forsake() {
	sh.Sessions.Each(0, sh.Sessions.Capacity(), func(slot uint32, se *conntrack.Session) bool {
		sh.end(slot, se)
		return true
	})
}

// Resume is that for shards that have no worker yet: they serve v, and it is nowNs.
func Resume(shards []*Shard, v *snapshot.View, nowNs uint64, goes func(*snapshot.Group) bool) *Resumed {
	for _, sh := range shards {
		if sh.view != v {
			sh.SetView(v)
		}
		sh.setNow(nowNs)
	}
	return &Resumed{Copied: Copied{Shards: shards, Own: true}, Goes: goes}
}
