package pipeline

import (
	"demarc/gateway/conntrack"
	"demarc/gateway/flow"
	"demarc/gateway/meter"
	"demarc/gateway/trace"
)

// Levels is how full is what a packet is held against.
type Levels struct {
	Now                  uint64 // ns
	Sessions, Unanswered int64  // of the tenant, over all workers; the latter of the side that begins the conversation
	HostSessions         uint32
	Table, TableCap      int    // sessions of the worker
	Queued               int    // packets in the tenant's shaper of this worker and direction
	MappingRefs          uint32 // sessions of the mapping that the packet's own would use; 0 = it would be a new one
}

// Levels is how full is now what the packet of a journey meets. It changes nothing. Worker only.
func (sh *Shard) Levels(j *trace.Journey) (l Levels) {
	l.Now, l.Table, l.TableCap = j.Ns, sh.Sessions.Len(), sh.Sessions.Capacity()
	t := sh.view.Tenant(j.Tenant)
	if t == nil {
		return l
	}
	d := meter.Out
	inside := j.In.Src
	if j.In.Zone == flow.Backbone || j.Looped {
		d, inside = meter.In, j.In.Dst
		if j.Dest != trace.NoDestination {
			inside = j.Inside
		}
	}
	l.Sessions, l.Unanswered = t.Shared.Sessions.Load(), t.Shared.Unanswered[d].Load()
	if h := sh.hosts.find(t.ID, j.In.Family, &inside); h != nil {
		l.HostSessions = h.sessions
	}
	if dir := meter.Dir(j.Dir); dir <= meter.In {
		l.Queued, _ = sh.Shaper.HeldIn(int(t.ID)*2 + int(dir))
	}
	if j.Mapping != conntrack.NoMapping {
		l.MappingRefs = sh.NAT.Mapping(j.Mapping).Live()
	}
	return l
}

// Expects is what a TCP segment under key k must say to be the next one of its session.
func (sh *Shard) Expects(k *flow.Key) (seq, ack uint32, ok bool) {
	ref, ok := sh.Sessions.Lookup(k, sh.Sessions.Hash(k))
	if !ok {
		return 0, 0, false
	}
	se, d := sh.Sessions.At(ref.Slot()), ref.Dir()
	return se.TCPEnd[d], se.TCPEnd[1-d], true
}
