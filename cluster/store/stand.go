package store

import (
	"context"
	"errors"
	"strconv"
	"time"

	"github.com/hashicorp/raft"
)

// Heartbeat is after how long without a word from the leader Raft stands for election by itself.
func (s *Store) Heartbeat() time.Duration { return s.raft.ReloadableConfig().HeartbeatTimeout }

// doubt is a leader that is not heard of any more by other ways than Raft's.
type doubt struct {
	leader string
	after  time.Duration
}

// Doubt has this node vote as if it had no leader, once Raft has not heard the leader of that id for so long either. It changes nothing else. "" = nobody is in doubt.
func (s *Store) Doubt(leader string, after time.Duration) {
	s.doubted.Store(&doubt{leader, after})
}

// doubts says whether the leader that Raft has in mind is in doubt, and Raft has not heard it either.
func (s *Store) doubts(leader raft.ServerID) bool {
	d := s.doubted.Load()
	return d != nil && leader != "" && d.leader == string(leader) && s.raft.State() == raft.Follower && time.Since(s.raft.LastContact()) >= d.after
}

// Follows reports whether this node is a follower of the leader of that id; "" = of nobody, and stands for election itself neither.
func (s *Store) Follows(leader string) bool {
	_, id := s.raft.LeaderWithID()
	return s.raft.State() == raft.Follower && string(id) == leader
}

// errHeard ends Stand without anything having happened.
var errHeard = errors.New("the leader is heard")

// Stand has this node stand for election now, and not when Raft's heartbeat is due, if its leader is in doubt, or it follows nobody, and a majority would vote for it: that is asked first, by
// Raft's own pre-vote, which changes nothing anywhere, and those who hear the leader refuse. So a leader that a majority hears stays, whatever this node hears.
func (s *Store) Stand(ctx context.Context) error {
	voters := s.members().Servers
	term := s.raft.CurrentTerm()
	_, leader := s.raft.LeaderWithID()
	misses := func() bool { return s.doubts(leader) || leader == "" && s.Follows("") }
	if !misses() {
		return errHeard
	}
	head := raft.RPCHeader{ProtocolVersion: raft.ProtocolVersionMax, ID: []byte(s.cfg.ID), Addr: s.screen.EncodePeer(raft.ServerID(s.cfg.ID), s.screen.LocalAddr())}
	q := &raft.RequestPreVoteRequest{RPCHeader: head, Term: term + 1}
	q.LastLogIndex, q.LastLogTerm = s.end()
	said := make(chan bool, len(voters))
	all, yes, asked := 0, 0, 0
	for _, v := range voters {
		switch {
		case v.Suffrage != raft.Voter:
			continue
		case string(v.ID) == s.cfg.ID:
			yes++
		case v.ID != leader:
			asked++
			go func() {
				var a raft.RequestPreVoteResponse
				err := s.screen.RequestPreVote(v.ID, v.Address, q, &a)
				said <- err == nil && a.Granted && a.Term <= q.Term
			}()
		}
		all++
	}
	if yes == 0 {
		return errors.New("this node has no vote")
	}
	for ; asked > 0 && yes <= all/2; asked-- {
		select {
		case ok := <-said:
			if ok {
				yes++
			}
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	switch {
	case yes <= all/2:
		return errors.New("no majority misses the leader, or has no more in its log than this node")
	case s.raft.CurrentTerm() != term || !misses():
		return errHeard
	}
	// What a leader says that hands over the lead. Those who are asked vote, as in any election, for whose log is no older than theirs.
	rpc := raft.RPC{Command: &raft.TimeoutNowRequest{RPCHeader: head}, RespChan: make(chan raft.RPCResponse, 1)}
	select {
	case s.screen.out <- rpc:
		return nil
	case <-s.screen.end:
		return errEnded
	case <-ctx.Done():
		return ctx.Err()
	}
}

// end is the last entry that this node has, in its log or in a snapshot.
func (s *Store) end() (index, term uint64) {
	at := s.raft.Stats()
	number := func(name string) uint64 {
		n, _ := strconv.ParseUint(at[name], 10, 64) // 0 gets nobody's vote
		return n
	}
	index, term = number("last_log_index"), number("last_log_term")
	if i := number("last_snapshot_index"); i > index {
		index, term = i, number("last_snapshot_term")
	}
	return index, term
}
