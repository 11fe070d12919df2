package pipeline

import "demarc/gateway/conntrack"

// Second is another executor, which carries packets of this shard's sessions that were handed down to it (gateway/cruise). All is called on the worker.
type Second struct {
	// Sent: the pipeline has sent a packet of a session that is none of another executor's now, or was one that is unusual. It may be handed down.
	Sent func(slot uint32, se *conntrack.Session)
	// Changes: something of the session that it goes by is about to change, or the session is about to end, or has begun to close. It is called back.
	Changes func(slot uint32, se *conntrack.Session)
	// Gen: sessions of another ViewGen must be brought up to date before their next packet.
	Gen func(gen uint32)
}

// SetSecond gives the shard a second executor, before it has a View.
func (sh *Shard) SetSecond(s *Second) { sh.second = s }

// changes is asked before the second executor's knowledge of a session becomes wrong, and when a session begins to close: the second executor carries none that does, as it sees itself.
func (sh *Shard) changes(slot uint32, se *conntrack.Session) {
	if sh.second != nil {
		sh.second.Changes(slot, se)
	}
}

// newGen begins another generation: what was judged before is brought up to date first.
func (sh *Shard) newGen() {
	sh.gen++
	if sh.second != nil {
		sh.second.Gen(sh.gen)
	}
}

// Watches reports whether the shard wants to see every packet: somebody looks, addresses are blocked, or flows are that made it panic. Worker only.
func (sh *Shard) Watches() bool {
	return len(sh.watch.taps) > 0 || sh.blocks != nil || sh.poisons.live > 0
}
