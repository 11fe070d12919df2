package store

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"
)

// Transport carries Raft's messages between members. Others hand one on without knowing Raft.
type Transport interface {
	raft.Transport
	raft.WithPreVote
}

// screen stands between the transport and Raft, as disk stands between Raft and the engine: what comes from another member is looked at before Raft acts on it, and
// what another member answers before Raft counts it. DESIGN.md has the list of what Raft does otherwise.
type screen struct {
	Transport
	stand   func() standing
	members func() raft.Configuration
	stale   func() raft.ServerAddress // the leader that Raft has in mind although it looks for another one, or that is in doubt; "" = none
	log     *slog.Logger
	out     chan raft.RPC
	end     chan struct{}
	once    sync.Once
	why     atomic.Pointer[string] // the last message that was refused; nil = one came after it that was not
	said    atomic.Int64           // unix seconds of the last refusal that was logged

	away   away
	brings func(id raft.ServerID, term uint64) bool // this node leads in that term, and brings that member the log
	over   <-chan struct{}                          // closed when the store closes

	goal     atomic.Uint64 // pass: wo; what the first leader that was heard, or the first of a later term, said to be agreed on; 0 = none has
	goalTerm uint64        // pass only: whose term that was
}

func newScreen(t Transport, log *slog.Logger) *screen {
	return &screen{Transport: t, log: log, brings: func(raft.ServerID, uint64) bool { return false }, out: make(chan raft.RPC), end: make(chan struct{})}
}

// standing is where Raft stands on this node.
type standing struct {
	term           uint64
	applied        uint64 // the last entry that Raft has had carried out
	base, baseTerm uint64 // the last entry that the newest snapshot covers; 0 = there is none
}

// Consumer implements raft.Transport: here Raft gets what came through.
func (c *screen) Consumer() <-chan raft.RPC { return c.out }

// pass hands on what comes in, until the end. Raft must be there.
func (c *screen) pass() {
	in := c.Transport.Consumer()
	for {
		var rpc raft.RPC
		select {
		case rpc = <-in:
		case <-c.end:
			return
		}
		command, answer, err := c.judge(rpc.Command)
		if answer != nil {
			c.respond(rpc, answer, err)
			continue
		}
		rpc.Command = command
		select {
		case c.out <- rpc:
		case <-c.end:
			return
		}
	}
}

// respond answers in Raft's place. What comes with a snapshot is read to its end, else it would be taken for the next message.
func (c *screen) respond(rpc raft.RPC, answer any, err error) {
	if rpc.Reader == nil {
		rpc.Respond(answer, err)
		return
	}
	go func() {
		_, cerr := io.Copy(io.Discard, rpc.Reader)
		rpc.Respond(answer, errors.Join(err, cerr))
	}()
}

// judge looks at one message. With an answer it does not get to Raft.
func (c *screen) judge(command any) (out, answer any, err error) {
	var from raft.RPCHeader
	switch q := command.(type) {
	case *raft.AppendEntriesRequest:
		from = q.RPCHeader
		if len(q.Entries) == 0 && q.LeaderCommitIndex == 0 {
			return q, nil, nil // a heartbeat
		}
		at, agreed := c.stand(), q.LeaderCommitIndex
		q, err = screenEntries(q, at)
		if err == nil {
			c.why.Store(nil)
			if agreed > 0 && q.Term >= at.term && q.Term > c.goalTerm {
				c.goalTerm = q.Term
				c.goal.Store(agreed)
			}
			return q, nil, nil
		}
		answer = &raft.AppendEntriesResponse{}
	case *raft.InstallSnapshotRequest:
		from = q.RPCHeader
		a, err := screenSnapshot(q, c.stand())
		if err == nil {
			c.why.Store(nil)
			if a == nil {
				return q, nil, nil
			}
			return nil, a, nil
		}
		return nil, &raft.InstallSnapshotResponse{}, c.refuse(from, err)
	case *raft.RequestVoteRequest:
		return screenVote(q, c.members(), c.stale()), nil, nil
	case *raft.RequestPreVoteRequest:
		return screenPreVote(q, c.members(), c.stale()), nil, nil
	default:
		return command, nil, nil
	}
	return nil, answer, c.refuse(from, err)
}

// refuse remembers what was wrong and whose message it was, and says so at most once a second.
func (c *screen) refuse(from raft.RPCHeader, err error) error {
	err = fmt.Errorf("a message from %s (%s) is refused: %w", from.Addr, from.ID, err)
	why := err.Error()
	c.why.Store(&why)
	if now := time.Now().Unix(); c.said.Swap(now) != now {
		c.log.Error("a member sends what cannot be right", "err", err)
	}
	return err
}

// problem is the last message that was refused; "" when none was since one that was taken.
func (c *screen) problem() string {
	if why := c.why.Load(); why != nil {
		return *why
	}
	return ""
}

// screenEntries refuses entries that Raft could only panic about, and leaves out those that this node has a snapshot of. A message of a term that is over is Raft's to
// refuse: only the leader of this node's term or a later one is known to have everything that was agreed on here.
func screenEntries(q *raft.AppendEntriesRequest, at standing) (*raft.AppendEntriesRequest, error) {
	for i, e := range q.Entries {
		if err := entrySound(e); err != nil {
			return nil, err
		}
		if want := q.PrevLogEntry + 1 + uint64(i); e.Index != want {
			return nil, fmt.Errorf("entry %d stands where entry %d belongs", e.Index, want)
		}
	}
	if q.Term < at.term {
		return q, nil
	}
	out := *q
	if q.PrevLogEntry < at.base {
		skip := min(at.base-q.PrevLogEntry, uint64(len(q.Entries)))
		if last := q.PrevLogEntry + skip; last == at.base && q.Entries[skip-1].Term != at.baseTerm {
			return nil, fmt.Errorf("entry %d is of term %d, and the one that was agreed on here of term %d: one of the two nodes has lost what it promised to keep",
				last, q.Entries[skip-1].Term, at.baseTerm)
		}
		out.PrevLogEntry, out.PrevLogTerm, out.Entries = at.base, at.baseTerm, q.Entries[skip:]
	}
	// Raft would take everything for agreed on that it has up to there. What follows the message in its log may be somebody else's (Raft paper, section 5.3,
	// AppendEntries, receiver, 5: "index of last new entry").
	out.LeaderCommitIndex = min(q.LeaderCommitIndex, out.PrevLogEntry+uint64(len(out.Entries)))
	return &out, nil
}

// entrySound says what is wrong with an entry that Raft would panic about.
func entrySound(e *raft.Log) error {
	switch {
	case e == nil:
		return errors.New("an entry is missing")
	case e.Type == raft.LogConfiguration:
		if _, err := decodeMembers(e.Data); err != nil {
			return fmt.Errorf("entry %d: %w", e.Index, err)
		}
	case e.Type != raft.LogCommand && e.Type != raft.LogNoop && e.Type != raft.LogBarrier:
		return fmt.Errorf("entry %d is of a kind (%d) that this release does not know", e.Index, e.Type)
	}
	return nil
}

// decodeMembers reads a list of members. Raft panics where it cannot be read.
func decodeMembers(b []byte) (c raft.Configuration, err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("it is no list of members: %v", r)
		}
	}()
	c = raft.DecodeConfiguration(b)
	if !slices.ContainsFunc(c.Servers, func(s raft.Server) bool { return s.Suffrage == raft.Voter && s.ID != "" && s.Address != "" }) {
		return c, errors.New("it is a list of members of whom none has a vote")
	}
	return c, nil
}

// screenSnapshot refuses a snapshot whose members cannot be read, and answers for one that brings nothing new: Raft would go back to it, and to the members of then,
// which it would keep although the log behind it has later ones. a is the answer; nil = it is for Raft.
func screenSnapshot(q *raft.InstallSnapshotRequest, at standing) (a *raft.InstallSnapshotResponse, err error) {
	if q.SnapshotVersion < 1 {
		return nil, errors.New("a snapshot of a release that is too old")
	}
	if _, err := decodeMembers(q.Configuration); err != nil {
		return nil, fmt.Errorf("the snapshot of entry %d: %w", q.LastLogIndex, err)
	}
	if q.Term >= at.term && q.LastLogIndex <= at.applied {
		return &raft.InstallSnapshotResponse{Term: q.Term, Success: true}, nil
	}
	return nil, nil
}

func votes(c raft.Configuration, id []byte) bool {
	return slices.ContainsFunc(c.Servers, func(s raft.Server) bool { return s.Suffrage == raft.Voter && string(s.ID) == string(id) })
}

// screenVote lets a candidate be voted for that has no vote by this node's list of members, because that list may be old: where a leader is lost a moment after it gave
// somebody a vote, nobody else might be electable (Raft dissertation, section 4.1: a server votes for who is not in its list). Raft looks nobody up who gives no
// id. That a removed member disturbs nobody is up to the pre-vote, and to those who hear a leader and give none.
//
// And it has Raft vote although it has a leader in mind, where that one is stale: installSnapshot names the leader and leaves a candidate a candidate, which would refuse
// everybody from then on; and where it is in doubt: see Store.Doubt. A hand-over of the lead is voted for in any case.
func screenVote(q *raft.RequestVoteRequest, c raft.Configuration, stale raft.ServerAddress) *raft.RequestVoteRequest {
	out := *q
	if !votes(c, q.ID) {
		out.ID = nil
	}
	out.LeadershipTransfer = q.LeadershipTransfer || stale != ""
	return &out
}

// screenPreVote does the same for a pre-vote. There Raft wants an id in its list in any case: it gets the one of somebody who has a vote; and the one whom it may vote for
// beside a leader is that leader, by address. Neither is used for anything else.
func screenPreVote(q *raft.RequestPreVoteRequest, c raft.Configuration, stale raft.ServerAddress) *raft.RequestPreVoteRequest {
	out := *q
	if i := slices.IndexFunc(c.Servers, func(s raft.Server) bool { return s.Suffrage == raft.Voter }); i >= 0 && !votes(c, q.ID) {
		out.ID = []byte(c.Servers[i].ID)
	}
	if stale != "" {
		out.Addr = []byte(stale)
	}
	return &out
}

// answers says whether it is the member that was asked who has answered. Raft asks by address: at a lost member's address there may be a new one, whose log is
// empty, and whose word must not count as the lost one's, which had promised something.
func answers(id raft.ServerID, address raft.ServerAddress, from raft.RPCHeader) error {
	if len(from.ID) == 0 || string(from.ID) == string(id) {
		return nil
	}
	return fmt.Errorf("at %s is another member, %s, and not %s", address, from.ID, id)
}

// AppendEntries implements raft.Transport, as the following do.
func (c *screen) AppendEntries(id raft.ServerID, to raft.ServerAddress, q *raft.AppendEntriesRequest, a *raft.AppendEntriesResponse) error {
	beat := beats(q)
	if !beat {
		if err := c.absent(id, q.Term); err != nil {
			return err
		}
	}
	asked := time.Now()
	err := c.Transport.AppendEntries(id, to, q, a)
	if err == nil {
		err = answers(id, to, a.RPCHeader)
	}
	if err == nil {
		c.away.lived(id, asked)
	}
	if beat {
		c.away.answered(id, q.Term, err == nil)
	}
	return err
}

// InstallSnapshot implements raft.Transport.
func (c *screen) InstallSnapshot(id raft.ServerID, to raft.ServerAddress, q *raft.InstallSnapshotRequest, a *raft.InstallSnapshotResponse, data io.Reader) error {
	if err := c.absent(id, q.Term); err != nil {
		return err
	}
	return c.Transport.InstallSnapshot(id, to, q, a, data)
}

// absent waits for a member that does not answer, as long as this node brings it the log in that term.
func (c *screen) absent(id raft.ServerID, term uint64) error {
	return c.away.wait(id, term, func() bool { return c.brings(id, term) }, c.over)
}

// RequestVote implements raft.Transport.
func (c *screen) RequestVote(id raft.ServerID, to raft.ServerAddress, q *raft.RequestVoteRequest, a *raft.RequestVoteResponse) error {
	if err := c.Transport.RequestVote(id, to, q, a); err != nil {
		return err
	}
	return answers(id, to, a.RPCHeader)
}

// RequestPreVote implements raft.WithPreVote.
func (c *screen) RequestPreVote(id raft.ServerID, to raft.ServerAddress, q *raft.RequestPreVoteRequest, a *raft.RequestPreVoteResponse) error {
	if err := c.Transport.RequestPreVote(id, to, q, a); err != nil {
		return err
	}
	return answers(id, to, a.RPCHeader)
}

// AppendEntriesPipeline implements raft.Transport.
func (c *screen) AppendEntriesPipeline(id raft.ServerID, to raft.ServerAddress) (raft.AppendPipeline, error) {
	in, err := c.Transport.AppendEntriesPipeline(id, to)
	if err != nil {
		return nil, err
	}
	p := &pipeline{AppendPipeline: in, out: make(chan raft.AppendFuture), end: make(chan struct{})}
	go p.pass(id, to, &c.away)
	return p, nil
}

// Close implements raft.WithClose.
func (c *screen) Close() error {
	c.once.Do(func() { close(c.end) })
	if t, ok := c.Transport.(io.Closer); ok {
		return t.Close()
	}
	return nil
}

// pipeline looks at who answers on a pipeline.
type pipeline struct {
	raft.AppendPipeline
	out  chan raft.AppendFuture
	end  chan struct{}
	once sync.Once
}

func (p *pipeline) pass(id raft.ServerID, to raft.ServerAddress, met *away) {
	in := p.AppendPipeline.Consumer()
	for {
		select {
		case f := <-in:
			if answers(id, to, f.Response().RPCHeader) != nil {
				f = stranger{f}
			} else {
				met.lived(id, f.Start())
			}
			select {
			case p.out <- f:
			case <-p.end:
				return
			}
		case <-p.end:
			return
		}
	}
}

// Consumer implements raft.AppendPipeline.
func (p *pipeline) Consumer() <-chan raft.AppendFuture { return p.out }

// Close implements raft.AppendPipeline.
func (p *pipeline) Close() error {
	p.once.Do(func() { close(p.end) })
	return p.AppendPipeline.Close()
}

// stranger is an answer that counts for nothing: Raft ends the pipeline, and asks again without one.
type stranger struct{ raft.AppendFuture }

// Response implements raft.AppendFuture.
func (stranger) Response() *raft.AppendEntriesResponse { return &raft.AppendEntriesResponse{} }
