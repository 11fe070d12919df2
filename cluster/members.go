package cluster

import (
	"context"
	"crypto/rand"
	"encoding/base32"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"demarc/cluster/command"
	"demarc/cluster/failover"
	"demarc/cluster/store"
	"demarc/cluster/transport"
)

// Status is what a node says of itself to other members.
type Status struct {
	Member    command.Member `json:"member"`
	Cluster   string         `json:"cluster"`
	Applied   uint64         `json:"applied"` // entries of the log, see store.Progress
	Committed uint64         `json:"committed"`
	Current   bool           `json:"current"` // it has gone through the log of before its start
	Leads     bool           `json:"leads"`
	Serving   uint64         `json:"serving"` // the revision that its gateway serves; 0 = none
	Problem   string         `json:"problem,omitempty"`
	Stopped   string         `json:"stopped,omitempty"` // why it carries out no entry any more
	Until     time.Time      `json:"certificate_until"`
	Clock     time.Time      `json:"clock"` // its wall time
}

func (n *Node) status() *Status {
	p := n.st.Progress()
	s := &Status{Member: n.self(), Cluster: n.ClusterID(), Applied: p.Applied, Committed: p.Committed, Current: n.current.Load(), Leads: n.st.Leads(),
		Problem: n.Problem(), Stopped: n.st.Stopped(), Clock: n.cfg.Wall().UTC()}
	if s.Stopped != "" { // Raft counts on
		s.Applied = n.st.State().Index
	}
	if n.cfg.Role == command.RoleGateway {
		n.mu.Lock()
		s.Serving = n.served.number
		n.mu.Unlock()
	}
	if n.keys != nil {
		s.Until, _ = n.keys.Expiry()
	}
	return s
}

// Election is how the lead of the log has changed, as this node has seen it since it started.
type Election struct {
	Term  uint64 // it goes up with each election, also one that comes to nothing
	Led   uint64 // times that it has come to lead
	Stood uint64 // times that it stood for election since the leader was silent beside Raft, or had ended, or nobody led
}

// Election says so.
func (n *Node) Election() Election {
	return Election{Term: n.st.Term(), Led: n.came.Load(), Stood: n.stood.Load()}
}

// Writes is what this node's log has taken of its disk.
func (n *Node) Writes() store.Writes { return n.st.Writes() }

// self is what the cluster is to know of this node.
func (n *Node) self() command.Member {
	m := command.Member{ID: n.id, Name: n.cfg.Name, Role: n.cfg.Role, Version: n.cfg.Version, Level: command.Level, Address: n.address, Features: n.cfg.Features}
	if n.keys != nil {
		m.Key = n.keys.Key()
	}
	return m
}

// seen is what was last heard of another member.
type seen struct {
	status *Status   // nil = it never answered
	at     time.Time // of the last answer
	rtt    time.Duration
	offset time.Duration // its wall clock against ours, known to within rtt/2
	err    string        // why the last try came to nothing
}

func (n *Node) seenOf(id string) (seen, bool) {
	n.peersMu.Lock()
	defer n.peersMu.Unlock()
	s, ok := n.seen[id]
	return s, ok
}

// ping asks one member how it is, and remembers the answer.
func (n *Node) ping(ctx context.Context, m command.Member) (*Status, error) {
	before, _ := n.seenOf(m.ID)
	t := 2*time.Second + 4*n.cfg.RoundTrip()
	if before.err != "" {
		t /= 2
	}
	ctx, cancel := context.WithTimeout(ctx, t)
	defer cancel()
	sent, wall := time.Now(), n.cfg.Wall()
	a, _, _, err := n.call(ctx, m.Address, request{Kind: askStatus}, nil)
	switch {
	case err != nil:
	case a.Refused != "":
		err = errors.New(a.Refused)
	case a.Status == nil:
		err = errors.New("it does not say how it is")
	case a.Status.Member.ID != m.ID:
		err = fmt.Errorf("at %s is another node: %s (%s)", m.Address, a.Status.Member.Name, a.Status.Member.ID)
	}
	s := before
	s.err = ""
	if err != nil {
		s.err = shortly(err)
	} else {
		s.status, s.at, s.rtt = a.Status, time.Now(), time.Since(sent)
		s.offset = a.Status.Clock.Sub(wall.Add(s.rtt / 2))
	}
	n.peersMu.Lock()
	if n.seen == nil {
		n.seen = map[string]seen{}
	}
	n.seen[m.ID] = s
	n.peersMu.Unlock()
	return a.Status, err
}

// watch asks all members how they are, again and again, which keeps connections to them open too.
func (n *Node) watch(ctx context.Context) {
	t := time.NewTicker(n.pace(time.Second))
	defer t.Stop()
	var wg sync.WaitGroup
	defer wg.Wait()
	var mu sync.Mutex
	asking := map[string]bool{}
	for {
		var keep []string
		for _, m := range n.State().Members {
			if m.ID == n.id || m.Address == "" {
				continue
			}
			keep = append(keep, m.Address)
			mu.Lock()
			busy := asking[m.ID]
			asking[m.ID] = true
			mu.Unlock()
			if busy {
				continue
			}
			wg.Go(func() {
				_, _ = n.ping(ctx, m) // what went wrong is remembered
				mu.Lock()
				delete(asking, m.ID)
				mu.Unlock()
			})
		}
		if len(keep) > 0 {
			n.pool.close(keep)
		}
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
	}
}

// MemberStatus is one line of the list of members.
type MemberStatus struct {
	Member  command.Member
	Self    bool
	Leads   bool
	Votes   bool          // Raft counts it
	Status  *Status       // what it last said; nil = it never answered here
	Ago     time.Duration // since then
	Problem string        // why it cannot be reached, or what is wrong with it
	Offset  time.Duration // of its wall clock against ours, when that is more than clockOff
	Lacks   []string      // what other members' releases know and its own does not: refused until it is upgraded
}

// clockOff is by how much a wall clock may differ: certificates and the times in the history are about days and minutes.
const clockOff = 5 * time.Second

// Members lists all members, by name.
func (n *Node) Members() []MemberStatus {
	voters, _ := n.st.Voters() // none of them on a node that is in no cluster
	leader, _ := n.st.Leader()
	var out []MemberStatus
	state := n.st.State()
	for _, m := range state.Members {
		s := MemberStatus{Member: m, Self: m.ID == n.id, Leads: m.ID == leader, Lacks: lacks(state, m),
			Votes: slices.ContainsFunc(voters, func(v store.Voter) bool { return v.ID == m.ID && v.Votes })}
		if s.Self {
			s.Status = n.status()
			s.Problem = s.Status.Problem
		} else if seen, ok := n.seenOf(m.ID); ok {
			s.Status, s.Problem = seen.status, seen.err
			if seen.status != nil {
				s.Ago = time.Since(seen.at)
				if s.Problem == "" {
					s.Problem = seen.status.Problem
				}
				if seen.offset.Abs() > clockOff+seen.rtt {
					s.Offset = seen.offset
				}
			}
		} else {
			s.Problem = "not asked yet"
		}
		out = append(out, s)
	}
	slices.SortFunc(out, func(a, b MemberStatus) int { return strings.Compare(a.Member.Name, b.Member.Name) })
	return out
}

// Token is what a newcomer joins by. It is told once: the cluster keeps only its hash.
func (n *Node) Token(ctx context.Context, role command.Role, life time.Duration, who command.Who) (string, time.Time, error) {
	if n.address == "" {
		return "", time.Time{}, errors.New("nobody could join: this node has no [cluster] section in its node file, so nobody can reach it")
	}
	if life <= 0 || life > command.MaxTokenLife {
		return "", time.Time{}, fmt.Errorf("a token good for %s: want more than nothing and at most %s", life, command.MaxTokenLife)
	}
	var b [20]byte
	_, _ = rand.Read(b[:]) // never fails
	token := "demarc-" + strings.ToLower(base32.StdEncoding.EncodeToString(b[:]))
	until := n.cfg.Wall().UTC().Add(life)
	_, err := n.propose(ctx, &command.Entry{Kind: command.KindToken, Who: who, Token: &command.Token{Hash: command.Digest([]byte(token)), Role: role, Expires: until, By: who.Author}})
	if err != nil {
		return "", time.Time{}, err
	}
	return token, until, nil
}

// Keep changes how much of the past the cluster keeps. What is 0 in b stays as it is; less than now forgets at once.
func (n *Node) Keep(ctx context.Context, b command.Bounds, who command.Who) error {
	_, err := n.propose(ctx, &command.Entry{Kind: command.KindBounds, Who: who, Bounds: &b})
	return err
}

// Remove takes a member out, by its name. Removing this node is leaving.
func (n *Node) Remove(ctx context.Context, name string, who command.Who) error {
	return n.member(ctx, askRemove, name, who)
}

// Promote gives a learner its vote now, if it has caught up. It gets it by itself too.
func (n *Node) Promote(ctx context.Context, name string, who command.Who) error {
	return n.member(ctx, askPromote, name, who)
}

// Yield has another member lead: the one that is named, or whichever is best.
func (n *Node) Yield(ctx context.Context, name string, who command.Who) error {
	return n.member(ctx, askYield, name, who)
}

func (n *Node) member(ctx context.Context, kind, name string, who command.Who) error {
	if err := n.able(); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, n.leaderWait()+5*time.Second)
	defer cancel()
	q := request{Kind: kind, Target: name, Who: who}
	_, _, err := n.atLeader(ctx, q, nil, func(ctx context.Context) (answer, []byte) { return n.lead(ctx, &q, nil) })
	if err == nil && kind == askRemove && name == n.cfg.Name {
		// The entry that says so may never get here: nothing is sent to who is out.
		n.turned.Store(&turned{n.address, command.Gone{ID: n.id, Name: n.cfg.Name}.Words(), transport.RefusedRemoved, time.Now()})
	}
	return err
}

// The functions below are the leader's, unless they say otherwise.

const changeTime = 5 * time.Second // for one change of Raft's own list

func refused(format string, args ...any) answer {
	return answer{Leads: true, Refused: fmt.Sprintf(format, args...)}
}

// passOn has the leader take a newcomer in that has asked here.
func (n *Node) passOn(ctx context.Context, q *request) (answer, []byte) {
	if err := n.able(); err != nil {
		return refused("%v", err), nil
	}
	a, out, err := n.atLeader(ctx, *q, nil, func(ctx context.Context) (answer, []byte) { return n.lead(ctx, q, nil) })
	if err != nil && a.Refused == "" {
		a = refused("%v", err)
	}
	return a, out
}

// takeIn makes a newcomer a learner.
func (n *Node) takeIn(ctx context.Context, q *request) (answer, []byte) {
	if q.Member == nil {
		return refused("a newcomer must say what it is"), nil
	}
	m := *q.Member
	if q.Seen != nil {
		if m.Name != q.Seen.Name {
			return refused("the certificate is %s's, the node is called %s: make one with `demarc cluster cert %s`", q.Seen.Name, m.Name, m.Name), nil
		}
		m.Key = q.Seen.Key
	}
	if m.Address == "" {
		return refused("%s does not say where the others reach it: [cluster] advertise", m.Name), nil
	}
	if a, known := n.known("who is a member"); !known { // who has just come to lead may not have all that was agreed on
		return a, nil
	}
	s := n.st.State()
	j := &command.Join{Member: m, Token: command.Digest([]byte(q.Token))}
	for _, o := range s.Members {
		if o.Address == m.Address && o.ID != m.ID && o.Name != q.Replace {
			return refused("%s is the address of member %s: give the newcomer another one, or join with --replace %s", m.Address, o.Name, o.Name), nil
		}
	}
	was, again := s.Member(m.ID)
	if again && (was.Name != m.Name || was.Key != "" && m.Key != "" && was.Key != m.Key) { // else whoever knows an id takes that member's place, without a token
		n.log.Warn("somebody asks to be taken in by the id of a member", "asker", m.Name, "member", was.Name, "id", m.ID)
		return refused("%s is the id of member %s, with another name or key: a node that joins anew has a data directory without cluster, and joins with another token and --replace %s", m.ID, was.Name, was.Name), nil
	}
	if !again { // what has no good token gets nothing into the log, where it would push out what operators did
		if r := s.MayJoin(j, n.cfg.Wall().UTC()); r != nil {
			n.log.Warn("a newcomer was refused", "name", m.Name, "address", m.Address, "why", r.Text)
			return answer{Leads: true, Result: command.Result{Refused: r}}, nil
		}
	}
	if q.Replace != "" && !again {
		old, ok := s.Named(q.Replace)
		if !ok {
			return refused("there is no member %s to replace: the members are %s", q.Replace, list(names(s.Members))), nil
		}
		if old.ID == n.id { // it cannot lead without itself
			if err := n.st.Yield("", ""); err != nil && !errors.Is(err, store.ErrNotLeader) {
				return refused("%s leads the cluster and nobody can take over: %v", old.Name, err), nil
			}
			return answer{}, nil
		}
		if why := servesAlone(s, old.Name); why != "" {
			return refused("%s", why), nil
		}
		if err := n.majorityWithout(ctx, old); err != nil {
			return refused("%v", err), nil
		}
		j.Replace = old.ID
	}
	e := &command.Entry{Level: 1, Kind: command.KindJoin, Time: n.cfg.Wall().UTC(), Who: q.Who, Join: j}
	if a := n.here(ctx, e); !a.Leads || a.Refused != "" || a.Unknown != "" || a.Result.Refused != nil {
		return a, nil
	}
	n.reconcile()
	// Raft asks for votes by address, and a newcomer's log is empty: it must not start where a lost member was while that one's removal may still be
	// undone. Behind a barrier it is agreed on. Until then the newcomer asks again, which changes nothing more.
	voters, err := n.st.Voters()
	if err == nil && slices.ContainsFunc(voters, func(v store.Voter) bool { return v.Address == m.Address && v.ID != m.ID }) {
		err = fmt.Errorf("the member that had %s is not taken out yet", m.Address)
	}
	if err == nil {
		err = n.st.Barrier(changeTime)
	}
	if err != nil {
		return answer{Leads: true, Unknown: fmt.Sprintf("%s is taken in, but %v: join again", m.Name, err)}, nil
	}
	s = n.st.State()
	a := answer{Leads: true, Joined: &Joined{Cluster: s.Cluster, Members: s.Members}}
	for _, v := range s.Revoked { // without the words, which the log has and which could be longer than an answer
		a.Joined.Revoked = append(a.Joined.Revoked, command.Revoked{Client: v.Client, Key: v.Key, Time: v.Time})
	}
	r, ok := s.Revision(s.Confirmed)
	if !ok {
		return a, nil
	}
	a.Joined.Revision = *r
	text, err := n.st.Text(r.Digest)
	if err != nil { // it comes with the log
		n.log.Warn("no policy for a newcomer", "name", m.Name, "err", err)
		a.Joined.Revision = command.Revision{}
	}
	n.log.Info("a newcomer joins", "name", m.Name, "role", string(m.Role), "address", m.Address, "replaces", q.Replace)
	return a, text
}

// takeOut forgets a member.
func (n *Node) takeOut(ctx context.Context, q *request) answer {
	if a, known := n.known("what the members serve"); !known {
		return a
	}
	s := n.st.State()
	m, ok := s.Named(q.Target)
	if !ok {
		return refused("there is no member %s: the members are %s", q.Target, list(names(s.Members)))
	}
	if len(s.Members) == 1 {
		return refused("%s is the only member: there would be no cluster left", m.Name)
	}
	if why := servesAlone(s, m.Name); why != "" {
		return refused("%s", why)
	}
	if err := n.majorityWithout(ctx, m); err != nil {
		return refused("%v", err)
	}
	if m.ID == n.id {
		if err := n.st.Yield("", ""); err != nil && !errors.Is(err, store.ErrNotLeader) {
			return refused("%s leads the cluster and nobody can take over: %v", m.Name, err)
		}
		return answer{}
	}
	e := &command.Entry{Level: 1, Kind: command.KindForget, Time: n.cfg.Wall().UTC(), Who: q.Who, Forget: &command.Forget{ID: m.ID}}
	a := n.here(ctx, e)
	if a.Leads && a.Refused == "" && a.Unknown == "" && a.Result.Refused == nil {
		n.log.Info("member removed", "name", m.Name)
		n.reconcile()
	}
	return a
}

// servesAlone says why a member may not be taken out: it owns a group and may serve it without a majority, so nobody can tell that it has stopped. A new member of its
// name would take its term for an earlier one of its own, which is over.
func servesAlone(s *command.State, name string) string {
	for _, group := range slices.Sorted(maps.Keys(s.Groups.Groups)) {
		if o := s.Groups.Groups[group]; o.Node == name && o.Epoch > 0 && o.Alone != failover.Fence {
			return fmt.Sprintf("%s owns group %s and serves it without a majority too (%s): have another node serve it first, by `demarc group move %s NODE`, or where %s is off for certain by `demarc group take %s --force` at that node",
				name, group, o.Alone, group, name, group)
		}
	}
	return ""
}

// majorityWithout asks the voters that would be left, and says no when too few of them answer.
func (n *Node) majorityWithout(ctx context.Context, m command.Member) error {
	voters, err := n.st.Voters()
	if err != nil {
		return err
	}
	i := slices.IndexFunc(voters, func(v store.Voter) bool { return v.ID == m.ID })
	if i < 0 || !voters[i].Votes {
		return nil // it has no vote: nothing depends on it
	}
	s := n.st.State()
	var left, live int
	var dead []string
	var mu sync.Mutex
	var wg sync.WaitGroup
	for _, v := range voters {
		if v.ID == m.ID || !v.Votes {
			continue
		}
		left++
		o, ok := s.Member(v.ID)
		if !ok {
			o = command.Member{ID: v.ID, Name: v.ID, Address: v.Address}
		}
		if v.ID == n.id {
			mu.Lock()
			live++
			mu.Unlock()
			continue
		}
		wg.Go(func() {
			_, err := n.ping(ctx, o)
			mu.Lock()
			defer mu.Unlock()
			if err == nil {
				live++
			} else {
				dead = append(dead, o.Name)
			}
		})
	}
	wg.Wait()
	if live*2 > left {
		return nil
	}
	slices.Sort(dead)
	return fmt.Errorf("without %s there would be %d with a vote, and %s not answer: no majority of them, so nothing could be changed any more; bring %s back first",
		m.Name, left, list(dead)+map[bool]string{true: " does", false: " do"}[len(dead) == 1], list(dead))
}

// promote gives a learner its vote if it has caught up with what was agreed on when it was asked.
func (n *Node) promote(ctx context.Context, name string) answer {
	s := n.st.State()
	m, ok := s.Named(name)
	if !ok {
		return refused("there is no member %s: the members are %s", name, list(names(s.Members)))
	}
	voters, err := n.st.Voters()
	if err != nil {
		return refused("%v", err)
	}
	if slices.ContainsFunc(voters, func(v store.Voter) bool { return v.ID == m.ID && v.Votes }) {
		return refused("%s has its vote already", name)
	}
	if err := n.promoteIf(ctx, m); err != nil {
		return refused("%v", err)
	}
	return answer{Leads: true}
}

func (n *Node) promoteIf(ctx context.Context, m command.Member) error {
	agreed := n.st.Progress().Committed
	s, err := n.ping(ctx, m)
	if err != nil {
		return fmt.Errorf("%s does not answer, so it gets no vote yet: %w", m.Name, err)
	}
	if err := caughtUp(s, agreed); err != nil {
		return err
	}
	if err := n.st.Promote(m.ID, m.Address, changeTime); err != nil {
		return fmt.Errorf("give %s its vote: %w", m.Name, err)
	}
	n.log.Info("member has its vote", "name", m.Name)
	return nil
}

// caughtUp holds what a member says of itself against what had been agreed on when it was asked. A vote of one that is behind could leave the cluster
// waiting for it.
func caughtUp(s *Status, agreed uint64) error {
	if s.Applied < agreed {
		return fmt.Errorf("%s has not caught up: it is at entry %d of %d", s.Member.Name, s.Applied, agreed)
	}
	return nil
}

// yield hands the lead on.
func (n *Node) yield(name string) answer {
	if name == "" {
		return yielded("hand the lead on", n.st.Yield("", ""))
	}
	m, ok := n.st.State().Named(name)
	if !ok {
		return refused("there is no member %s: the members are %s", name, list(names(n.st.State().Members)))
	}
	if m.ID == n.id {
		return answer{Leads: true}
	}
	return yielded("hand the lead to "+name, n.st.Yield(m.ID, m.Address))
}

// yielded is the answer to who asked for another leader. While one is being handed the lead already, he asks whoever leads then.
func yielded(what string, err error) answer {
	switch {
	case errors.Is(err, store.ErrNotLeader):
		return answer{}
	case err != nil:
		return refused("%s: %v", what, err)
	}
	return answer{Leads: true}
}

// reconcile has Raft's list of members follow the state: what is agreed on there is carried out here, by whichever node leads, however often
// a leader dies in between.
func (n *Node) reconcile() {
	n.changing.Lock()
	defer n.changing.Unlock()
	voters, err := n.st.Voters()
	if err != nil || !n.st.Leads() {
		return
	}
	s := n.st.State()
	say := func(what string, name string, err error) {
		if err != nil && n.st.Leads() {
			n.log.Warn("change the members", "what", what, "name", name, "err", err)
		}
	}
	for _, v := range voters {
		if g, gone := s.Left(v.ID); gone {
			say("remove", g.Name, n.st.Remove(v.ID, changeTime))
			continue
		}
		m, ok := s.Member(v.ID)
		if ok && m.Address != "" && m.Address != v.Address {
			say("move", m.Name, n.st.Move(v, m.Address, changeTime))
		}
	}
	for _, m := range s.Members {
		if m.Address != "" && !slices.ContainsFunc(voters, func(v store.Voter) bool { return v.ID == m.ID }) {
			say("add", m.Name, n.st.AddLearner(m.ID, m.Address, changeTime))
		}
	}
}

// stands reports whether this node's log takes no entries: what the others agree on comes no further here.
func (n *Node) stands() bool { return n.st.Refused() != nil || n.st.Stopped() != "" }

// tend does what a leader does by itself, and what every node does: tell the others what it is and runs.
func (n *Node) tend(ctx context.Context) {
	t := time.NewTicker(n.pace(250 * time.Millisecond))
	defer t.Stop()
	var told time.Time
	said := false // who is stopped tells once what it is: it cannot see that it was heard
	stands := n.stands()
	for first := true; ; first = false {
		if now := n.stands(); (now != stands || first) && n.cfg.Groups != nil {
			stands = now
			n.cfg.Groups.Stands(stands)
		}
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
		if _, leader := n.st.Leader(); n.Stopped() != "" && !said && leader != "" && !n.st.Leads() && time.Since(told) > 5*time.Second {
			told = time.Now()
			said = n.tell(ctx) == nil
		}
		if !n.current.Load() || n.Stopped() != "" {
			continue
		}
		s := n.st.State()
		if _, gone := s.Left(n.id); gone || s.Cluster == "" {
			continue
		}
		if m, ok := s.Member(n.id); (!ok || !m.Equal(n.self())) && time.Since(told) > 5*time.Second {
			told = time.Now()
			if err := n.tell(ctx); err != nil {
				n.log.Warn("tell the others what this node is", "err", err)
			}
		}
		if !n.st.Leads() {
			n.led = time.Time{}
			continue
		}
		if n.led.IsZero() {
			n.led = time.Now()
			n.came.Add(1)
		}
		n.reconcile()
		voters, err := n.st.Voters()
		if err != nil {
			continue
		}
		for _, v := range voters {
			if m, ok := s.Member(v.ID); ok && !v.Votes {
				if seen, _ := n.seenOf(m.ID); seen.status == nil || seen.err != "" {
					continue // the watch says when it answers
				}
				if err := n.promoteIf(ctx, m); err != nil {
					n.log.Debug("a learner stays one", "name", m.Name, "err", err)
				}
			}
		}
		n.prefer(ctx, s, voters)
	}
}

// tell has the cluster know what this node is and runs.
func (n *Node) tell(ctx context.Context) error {
	me := n.self()
	_, err := n.hand(ctx, &command.Entry{Kind: command.KindMember, Who: command.Who{Author: n.cfg.Name}, Member: &me})
	return err
}

// Of the hold-down of the lead: an unstable witness must not be handed it over and over.
const (
	holdLeast = 3 * time.Second
	holdMost  = 5 * time.Minute
	holdReset = 10 * time.Minute // without a hand-over
)

// prefer hands the lead to a witness, else to a gateway that owns no group: an owner that leads and dies takes the leader away from its own group just when that needs one.
func (n *Node) prefer(ctx context.Context, s *command.State, voters []store.Voter) {
	if n.cfg.Role == command.RoleWitness {
		return
	}
	if n.hold == 0 || !n.handed.IsZero() && time.Since(n.handed) > holdReset {
		n.hold = n.pace(holdLeast)
	}
	if time.Since(n.led) < n.hold {
		return
	}
	var to []command.Member
	for _, v := range voters {
		if m, ok := s.Member(v.ID); ok && v.Votes && m.Role == command.RoleWitness {
			to = append(to, m)
		}
	}
	for _, m := range append(to, n.better(s, voters)...) {
		if seen, _ := n.seenOf(m.ID); seen.status == nil || seen.err != "" {
			continue
		}
		agreed := n.st.Progress().Committed
		st, err := n.ping(ctx, m)
		if err != nil || caughtUp(st, agreed) != nil {
			continue
		}
		n.hold, n.handed = min(2*n.hold, holdMost), time.Now()
		if err := n.st.Yield(m.ID, m.Address); err != nil {
			n.log.Warn("hand the lead on", "name", m.Name, "role", string(m.Role), "err", err)
		} else {
			n.log.Info("the lead is handed on", "name", m.Name, "role", string(m.Role))
		}
		return
	}
}
