package store

import (
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/raft"
)

// away is which members did not answer this node's last heartbeat. Raft sends those and the log side by side. A member that does not answer is asked again by a heartbeat
// after half a heartbeat's time at most, but the log waits for twice as long after each failure, up to ten seconds: so a member that came back had no log, and was nobody's
// standby, for up to ten seconds more. Here what carries the log waits until a heartbeat is answered, which to Raft is one try.
type away struct {
	mu   sync.Mutex
	gone map[raft.ServerID]missed    // mu
	here map[raft.ServerID]time.Time // mu: when it was last asked something that it has answered
}

// missed is a member that did not answer in a term of this node's. Of another term it says nothing: the first entry of a leader must not wait for its first heartbeat, which comes up to a
// tenth of a heartbeat's time later, because of who was away when this node led before.
type missed struct {
	term uint64
	back chan struct{} // closed when it answers, or is missed in another term
}

// answered notes how a heartbeat of a term went.
func (a *away) answered(id raft.ServerID, term uint64, ok bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	m, gone := a.gone[id]
	if gone && (ok || m.term != term) {
		close(m.back)
		delete(a.gone, id)
		gone = false
	}
	if !ok && !gone {
		if a.gone == nil {
			a.gone = map[raft.ServerID]missed{}
		}
		a.gone[id] = missed{term, make(chan struct{})}
	}
}

// lived notes that a member has answered what it was asked then: it lived not before that.
func (a *away) lived(id raft.ServerID, at time.Time) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.here == nil {
		a.here = map[raft.ServerID]time.Time{}
	}
	if at.After(a.here[id]) {
		a.here[id] = at
	}
}

// last is when a member was last asked something as a follower that it has answered; the zero time = never.
func (a *away) last(id raft.ServerID) time.Time {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.here[id]
}

// awayPace is how often one who waits looks whether there is still something to wait for: Raft tells him nothing meanwhile.
const awayPace = 100 * time.Millisecond

var errAway = errors.New("it does not answer")

// wait returns when a member answers again, at once where it has not been missed in that term. The error says that there is nothing to wait for any more: this node does not bring
// it the log, or ends.
func (a *away) wait(id raft.ServerID, term uint64, still func() bool, end <-chan struct{}) error {
	a.mu.Lock()
	m, gone := a.gone[id]
	a.mu.Unlock()
	if !gone || m.term != term {
		return nil
	}
	t := time.NewTicker(awayPace)
	defer t.Stop()
	for still() {
		select {
		case <-m.back:
			return nil
		case <-t.C:
		case <-end:
			return errEnded
		}
	}
	return fmt.Errorf("%s: %w", id, errAway)
}

// beats says whether a message is a heartbeat, which says nothing of the log.
func beats(q *raft.AppendEntriesRequest) bool {
	return len(q.Entries) == 0 && q.LeaderCommitIndex == 0 && q.PrevLogEntry == 0
}

// brings reports whether this node leads in a term and brings that member the log.
func (s *Store) brings(id raft.ServerID, term uint64) bool {
	select {
	case <-s.started:
	default:
		return false
	}
	if s.raft.State() != raft.Leader || s.raft.CurrentTerm() != term {
		return false
	}
	return slices.ContainsFunc(s.members().Servers, func(v raft.Server) bool { return v.ID == id })
}
