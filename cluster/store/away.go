package store

import (
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/hashicorp/raft"
)

// away is which members did not answer this node's last heartbeat. Raft sends those and the log side by side. A member that does not answer is asked again by a heartbeat
// after half a heartbeat's time at most, but the log waits for twice as long after each failure, up to ten seconds: so a member that came back had no log, and was nobody's
// standby, for up to ten seconds more. Here what carries the log waits until a heartbeat is answered, which to Raft is one try.
type away struct {
	mu   sync.Mutex
	gone map[raft.ServerID]chan struct{} // mu: closed when it answers
}

// answered notes how a heartbeat went.
func (a *away) answered(id raft.ServerID, ok bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	back, gone := a.gone[id]
	switch {
	case ok && gone:
		close(back)
		delete(a.gone, id)
	case !ok && !gone:
		if a.gone == nil {
			a.gone = map[raft.ServerID]chan struct{}{}
		}
		a.gone[id] = make(chan struct{})
	}
}

// awayPace is how often one who waits looks whether there is still something to wait for: Raft tells him nothing meanwhile.
const awayPace = 100 * time.Millisecond

var errAway = errors.New("it does not answer")

// wait returns when a member answers again, at once where it has not been missed. The error says that there is nothing to wait for any more: this node does not bring
// it the log, or ends.
func (a *away) wait(id raft.ServerID, still func() bool, end <-chan struct{}) error {
	a.mu.Lock()
	back, gone := a.gone[id]
	a.mu.Unlock()
	if !gone {
		return nil
	}
	t := time.NewTicker(awayPace)
	defer t.Stop()
	for still() {
		select {
		case <-back:
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
	for _, v := range s.members().Servers {
		if v.ID == id {
			return true
		}
	}
	return false
}
