package cluster

import (
	"cmp"
	"context"
	"slices"
	"time"

	"demarc/cluster/command"
)

// A claim of a group is an entry of the log, so where the owner that died was the leader too, its standby waits for an election. Raft alone takes a second for that: half a second of
// silence at least, up to twice as much, and a second try where two stand at once. Members hear each other every 20 ms beside Raft, so they know better. See DESIGN.md.

// silence is what this node knows of its leader's. It is judged by times of Go's monotonic clock, in which a stopped process misses nothing but its own readings.
type silence struct {
	heartbeat, trip time.Duration // Raft's, and to the farthest member

	read   time.Time // the last reading
	awake  time.Time // since when there was no gap between readings: what came meanwhile may be waiting to be read
	leader string    // id
	stood  time.Time // when this node last stood for election by this
	tried  time.Time // when it last asked
	proof  time.Time // since when it is known that the leader's process has ended; zero = it is not
	none   time.Time // since when it follows nobody, and hears a majority; zero = it is not so
	term   uint64    // Raft's
	voted  time.Time // when that was seen to become another one: somebody stands; zero = not since the start
}

const (
	missEvery = 10 * time.Millisecond // between two readings
	missGap   = 50 * time.Millisecond // between two readings, that is one in this node: with Raft's 40 between two messages 10 less than patience, see DESIGN.md
	missBeats = 70 * time.Millisecond // of silence beside Raft: three beats are lost, or the member is
	missRest  = 2 * time.Second       // between two elections that this node begins by it

	// Where it is known that the leader's process has ended there is no silence to be waited for.
	deadStep  = 30 * time.Millisecond  // for so long each that may stand is left to those before it
	deadAgain = 4 * time.Millisecond   // between two times that this node asks: another may hear of it a moment later
	deadRest  = 150 * time.Millisecond // between two elections: one takes some 20
)

// patience is for how long Raft must have heard nothing of the leader either: several times as long as it takes between two of its messages.
func (s *silence) patience() time.Duration { return max(s.heartbeat/5, missBeats) + 2*s.trip }

// doubtful is for how long Raft must have heard nothing before this node votes as if it had no such leader.
func (s *silence) doubtful() time.Duration {
	if !s.proof.IsZero() {
		return 0
	}
	return s.patience() / 2
}

// judge says, with a leader that was heard beside Raft and by Raft when said, whether it is in doubt, and whether to ask now for its place. Ended: its process is over. Rank is how many better leaders
// there are.
func (s *silence) judge(now time.Time, leader string, ended bool, heard, contact time.Time, rank int) (doubt, stand bool) {
	if s.read.IsZero() || now.Sub(s.read) > missGap {
		s.awake = now
	}
	if s.read = now; leader != s.leader {
		s.leader, s.awake, s.proof = leader, now, time.Time{}
	}
	if ended && leader != "" {
		return true, s.succeed(now, rank)
	}
	s.proof = time.Time{}
	beats := missBeats + s.trip
	switch {
	case leader == "" || heard.IsZero() || contact.IsZero() || s.patience() >= s.heartbeat:
		return false, false
	case contact.Sub(heard) > beats: // datagrams do not come through: that they do not says nothing
		return false, false
	}
	quiet := now.Sub(later(heard, s.awake))
	silent := now.Sub(later(contact, s.awake))
	if quiet < beats*3/4 || silent < s.patience()/2 {
		return false, false
	}
	step := s.patience() / 2
	if quiet < beats || silent < s.patience()+time.Duration(rank)*step || silent >= s.heartbeat || // then Raft does
		now.Sub(s.tried) < step || !s.stood.IsZero() && now.Sub(s.stood) < missRest+s.heartbeat {
		return true, false
	}
	s.tried = now
	return true, true
}

// succeed says whether to ask now for the place of a leader whose process has ended.
func (s *silence) succeed(now time.Time, rank int) bool {
	if s.proof.IsZero() {
		s.proof = now
	}
	if now.Sub(s.proof) < time.Duration(rank)*(deadStep+2*s.trip) || now.Sub(s.tried) < deadAgain || now.Sub(s.stood) < deadRest+4*s.trip {
		return false
	}
	s.tried = now
	return true
}

// vacant says whether to ask now for the lead that nobody has: this node follows no leader, and hears a majority beside Raft, both without a break in its readings, and Raft has heard neither a leader nor given a vote since contact. A
// leader that lives reaches who has just started within half a heartbeat, or the others refuse.
func (s *silence) vacant(now time.Time, majority bool, contact time.Time, term uint64, rank int) bool {
	if term != s.term && !s.read.IsZero() {
		s.voted = now // who stands writes that down first, on a disk that may be slow: Raft's own time is left to it
	}
	s.term = term
	if now.Sub(s.voted) < s.heartbeat {
		s.none = time.Time{}
		return false
	}
	if !majority || s.none.IsZero() || now.Sub(s.read) > missGap {
		s.none = time.Time{}
		if majority {
			s.none = now
		}
		return false
	}
	step := s.patience() / 2
	if now.Sub(later(s.none, contact)) < s.patience()+time.Duration(rank)*step || now.Sub(s.tried) < step || !s.stood.IsZero() && now.Sub(s.stood) < missRest+s.heartbeat || s.patience() >= s.heartbeat {
		return false
	}
	s.tried = now
	return true
}

// died is told that the process of a member has ended. It must not block: it has this node vote as if that one did not lead.
func (n *Node) died(name string) {
	id, _ := n.st.Leader()
	if m, ok := n.st.State().Named(name); ok && m.ID == id {
		n.st.Doubt(id, 0)
	}
}

// ended reports whether it is known that the process of a member has ended.
func (n *Node) ended(id string) bool {
	if n.cfg.Groups == nil || id == "" {
		return false
	}
	m, ok := n.st.State().Member(id)
	return ok && n.cfg.Groups.Ended(m.Name)
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

// missLeader looks for a new leader as soon as the old one is neither heard beside Raft nor by it.
func (n *Node) missLeader(ctx context.Context) {
	s := silence{heartbeat: n.st.Heartbeat(), trip: n.cfg.RoundTrip()}
	t := time.NewTicker(missEvery)
	defer t.Stop()
	defer n.st.Doubt("", 0)
	var again <-chan time.Time
	told := map[string]time.Time{}
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		case <-n.cfg.Groups.deaths:
		case <-again: // another one may not have heard of the death yet
		}
		again = nil
		n.tellContacts(told)
		id, _ := n.st.Leader()
		if n.st.Leads() || !n.current.Load() || n.Stopped() != "" {
			id = ""
		}
		var heard time.Time
		rank, ended := 0, n.ended(id)
		if id != "" {
			st := n.st.State()
			if m, ok := st.Member(id); ok {
				heard = n.cfg.Groups.Heard(m.Name)
			}
			if ended || time.Since(heard) >= missBeats/2 { // else nobody asks
				rank = n.rank(st, id)
			}
		}
		now := time.Now()
		vacant := false
		if n.st.Follows("") && n.Stopped() == "" && n.hearsMajority() {
			vacant = s.vacant(now, true, n.st.Heard(), n.st.Term(), n.rankOf(n.knows(), n.hears))
		} else {
			s.vacant(now, false, time.Time{}, n.st.Term(), 0)
		}
		doubt, stand := s.judge(now, id, ended, heard, n.st.Heard(), rank)
		if doubt {
			n.st.Doubt(id, s.doubtful())
		} else {
			n.st.Doubt("", 0)
		}
		if !stand && !vacant {
			continue
		}
		within, cancel := context.WithTimeout(ctx, s.patience()/2)
		err := n.st.Stand(within)
		cancel()
		if s.read = time.Now(); err == nil { // this was no gap
			s.stood = s.read
			n.stood.Add(1)
			if vacant {
				n.log.Info("nobody leads, and a majority is heard: this node stands for election")
			} else {
				n.log.Info("the leader is silent: this node stands for election", "leader", id, "ended", ended)
			}
		} else if ended {
			again = time.After(deadAgain)
		}
	}
}

// tellContacts tells of members that Raft reaches although their beats do not come, each time once: see failover.Contact. Of the others it would say nothing new.
func (n *Node) tellContacts(told map[string]time.Time) {
	st := n.knows()
	if len(st.Groups.Groups) == 0 {
		return
	}
	for _, m := range st.Members {
		if m.ID == n.id {
			continue
		}
		if heard, met := n.cfg.Groups.Heard(m.Name), n.st.Contact(m.ID); met.Sub(heard) > missBeats && met.After(told[m.Name]) {
			told[m.Name] = met
			n.cfg.Groups.Contact(m.Name, met)
		}
	}
}

// hears reports whether a member is this node, or was heard beside Raft not long ago.
func (n *Node) hears(m command.Member) bool {
	return m.ID == n.id || time.Since(n.cfg.Groups.Heard(m.Name)) < missBeats+n.cfg.RoundTrip()
}

// hearsMajority reports whether this node has a vote, and has heard enough other voters beside Raft not long ago for more than half of all.
func (n *Node) hearsMajority() bool {
	voters, err := n.st.Voters()
	if err != nil {
		return false
	}
	st, all, here, votes := n.knows(), 0, 0, false
	for _, v := range voters {
		if !v.Votes {
			continue
		}
		all++
		votes = votes || v.ID == n.id
		if m, ok := st.Member(v.ID); ok && n.hears(m) {
			here++
		}
	}
	return votes && here > all/2
}

// rank is how many others are to stand before this node for the place of that leader.
func (n *Node) rank(s *command.State, leader string) (before int) {
	return n.rankOf(s, func(m command.Member) bool { return m.ID != leader })
}

// rankOf is how many of these voters are to stand before this node: a witness first, then who owns nothing. So that not all stand at once, and votes are not split.
func (n *Node) rankOf(s *command.State, of func(command.Member) bool) (before int) {
	weight := func(m command.Member) int {
		switch {
		case m.Role == command.RoleWitness:
			return 0
		case !owns(s, m.Name):
			return 1
		}
		return 2
	}
	voters, err := n.st.Voters()
	if err != nil {
		return 0
	}
	var all []command.Member
	for _, v := range voters {
		if m, ok := s.Member(v.ID); ok && v.Votes && of(m) {
			all = append(all, m)
		}
	}
	slices.SortFunc(all, func(a, b command.Member) int {
		return cmp.Or(cmp.Compare(weight(a), weight(b)), cmp.Compare(a.Name, b.Name))
	})
	return max(slices.IndexFunc(all, func(m command.Member) bool { return m.ID == n.id }), 0)
}
