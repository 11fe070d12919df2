package pipeline

import (
	"demarc/gateway/conntrack"
	"demarc/gateway/flow"
	"demarc/gateway/verdict"
)

// leastLife is how long each session lives at least after a takeover, in ticks: about 30 s. What its owner last said of its time may be as old as the owner was slow.
const leastLife = 30_000_000_000 >> 20

// tenure is whose a tenant's sessions are.
type tenure struct {
	taken  uint32 // Shard.gen when they became this node's own, after they had been copies; 0 = they never were
	copied bool   // its group is one that this node does not serve
}

// Hold is TakeOver or GiveUp, by what this node is to a group now. given is how often it has given the group up: a worker that hung through a whole term of another node has missed
// that, and what it has is as old.
func (sh *Shard) Hold(group uint8, serves bool, given uint64) {
	if sh.given[group] != given {
		sh.given[group] = given
		sh.GiveUp(group)
	}
	if serves {
		sh.TakeOver(group)
	}
}

// TakeOver makes a group's sessions this node's own: they were copies until now. It touches no session: each is brought up to what holds now before its first packet, or by Rejudge.
// To be called on the worker, before the node serves the group.
func (sh *Shard) TakeOver(group uint8) {
	if group == 0 || sh.serving[group] {
		return
	}
	sh.serving[group] = true
	sh.newGen()
	sh.standing()
	sh.rejudge, sh.stale = 0, true
}

// ForgetSome ends those sessions of a group that have a mapping, and are copies: they are so old that the public ports may be somebody else's by now. To be called before TakeOver. It looks at so many slots from
// one on; next is where to go on until done. A million take most of a second.
func (sh *Shard) ForgetSome(group uint8, from uint32, look int) (next uint32, done bool) {
	return sh.Sessions.Each(from, look, func(slot uint32, se *conntrack.Session) bool {
		if g := sh.view.GroupOf(se.Tenant); g != nil && g.ID == group && se.Mapping != conntrack.NoMapping {
			sh.end(slot, se)
		}
		return true
	})
}

// GiveUp makes what the shard has of a group copies: from now on nothing here ends them but the word of who serves the group, and the loss of their tenant. To be called on the worker, when the
// node serves the group no longer.
func (sh *Shard) GiveUp(group uint8) {
	if group == 0 || !sh.serving[group] {
		return
	}
	sh.serving[group] = false
	if sh.second != nil { // which asks for the deadline alone: what was handed down in this term is not, in a later one
		sh.newGen()
	}
	sh.standing()
}

// standing works out of which tenants the sessions are copies. A tenant may also come to this node or leave it by going from one group to another.
func (sh *Shard) standing() {
	if sh.view == nil {
		return
	}
	for id := range sh.tenures {
		h, g := &sh.tenures[id], sh.view.GroupOf(flow.TenantID(id))
		copied := g != nil && !sh.serving[g.ID]
		switch {
		case h.copied && !copied:
			h.taken = sh.gen
		case copied && !h.copied:
			sh.frags.Flush(flow.TenantID(id), verdict.NotOwner)
		}
		h.copied = copied
	}
}

// Copied reports whether a session is a copy of what another node has, or would have.
func (sh *Shard) Copied(se *conntrack.Session) bool { return sh.tenures[se.Tenant].copied }

// keeps reports whether time does not end a session, however long it was silent: because it is a copy, or has been one until now.
func (sh *Shard) keeps(se *conntrack.Session) bool {
	h := &sh.tenures[se.Tenant]
	return h.copied || se.ViewGen < h.taken
}

// current brings a session up to what holds now: it is judged under the View, and what was a copy until now begins to live here. It is called where ViewGen is not sh.gen, and never for a copy.
func (sh *Shard) current(slot uint32, se *conntrack.Session) verdict.Reason {
	sh.changes(slot, se)
	if se.ViewGen < sh.tenures[se.Tenant].taken {
		if sh.view.Tenant(se.Tenant) == nil {
			return verdict.SessionCut
		}
		sh.adopt(slot, se)
	}
	if se.ViewGen < sh.judged {
		r := sh.judgeAgain(se)
		if r == verdict.Pass {
			sh.Sessions.Sooner(slot, sh.tick, &sh.view.Timeouts)
		}
		return r
	}
	se.BeginWrite()
	se.ViewGen = sh.gen
	se.EndWrite()
	return verdict.Pass
}

// expel ends a session that current refuses. A copy that loses its tenant is missed by who has put it there, and the port of its mapping does not rest: its owner may go on with it.
func (sh *Shard) expel(slot uint32, se *conntrack.Session) {
	if se.ViewGen >= sh.tenures[se.Tenant].taken || sh.view.Tenant(se.Tenant) != nil {
		sh.end(slot, se)
		return
	}
	sh.lost.Store(sh.lost.Load() + 1)
	sh.leave(slot)
}

func (sh *Shard) adopt(slot uint32, se *conntrack.Session) {
	if se.Proto == flow.TCP {
		conntrack.TakeOver(se)
	}
	idle := se.Timeout(&sh.view.Timeouts)
	last := se.Seen(sh.tick)
	if left := int32(last + idle - sh.tick); left < leastLife {
		last = sh.tick + leastLife - idle
		se.LastSeen = [2]uint32{last, last}
	}
	sh.Sessions.SetDeadline(slot, min(last+idle-sh.tick, se.Look(&sh.view.Timeouts))+sh.tick)
}
