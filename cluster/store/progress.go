package store

import (
	"time"

	"github.com/hashicorp/raft"
)

// Stopped says why no entry is applied any more; "" = they are. What was applied stays; entries are still kept and voted on unless Raft has ended here.
func (s *Store) Stopped() string {
	if why := s.fsm.stopped.Load(); why != nil {
		return *why
	}
	return ""
}

// Progress is how far this node's log has come.
type Progress struct {
	Applied   uint64 // the last entry that was carried out here, Raft's own included
	Committed uint64 // the last one that is known to be agreed on
	Term      uint64
}

// Progress can be asked at any time. On another node, Applied at or beyond the leader's Committed of before means that it has caught up.
func (s *Store) Progress() Progress {
	return Progress{s.raft.AppliedIndex(), s.raft.CommitIndex(), s.raft.CurrentTerm()}
}

// Current makes sure that this node leads still, by asking a majority. Leader only.
func (s *Store) Current() error {
	return elsewhere(s.wait(s.raft.VerifyLeader()), raft.ErrLeadershipLost)
}

// Heard is when the leader was last heard of; the zero time on the leader itself, or when there never was one.
func (s *Store) Heard() time.Time { return s.raft.LastContact() }

// Contact is when Raft's own messages last showed that a member lives: one from it while it leads, or what it has answered where this node does, by when it was asked. The zero time = never.
func (s *Store) Contact(id string) time.Time {
	at := s.screen.away.last(raft.ServerID(id))
	if leader, _ := s.Leader(); leader == id && !s.Leads() {
		if heard := s.Heard(); heard.After(at) {
			at = heard
		}
	}
	return at
}

// Move changes the address of a member, whose vote stays what it is. Leader only.
func (s *Store) Move(v Voter, address string, timeout time.Duration) error {
	if v.Votes {
		return s.wait(s.raft.AddVoter(raft.ServerID(v.ID), raft.ServerAddress(address), 0, timeout))
	}
	return s.wait(s.raft.AddNonvoter(raft.ServerID(v.ID), raft.ServerAddress(address), 0, timeout))
}
