package store

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
	raftboltdb "github.com/hashicorp/raft-boltdb/v2"
	"go.etcd.io/bbolt"

	"demarc/cluster/command"
)

// Transport carries Raft's messages between members. The alias lets others hand one on without knowing Raft.
type Transport = raft.Transport

// Config is what a Store is opened with. Dir and ID are required.
type Config struct {
	Dir       string       // belongs to this store alone
	ID        string       // of this member, see command.Member
	Transport Transport    // nil = a cluster of one, that nobody can reach
	Log       *slog.Logger // nil = silent

	// Timers of Raft. Zero means what suits machines in one site; a cluster over a satellite needs longer ones.
	Heartbeat, Election, Lease, Commit time.Duration

	// TrailingEntries stay in the log after a snapshot, SnapshotEntries make the next one due. Zero means 64 and 256: an entry may be 8 MiB.
	TrailingEntries, SnapshotEntries uint64

	// Applied is told each entry that has taken effect, in order, on the goroutine that applies: it must not block. At a start it is told those
	// again that the last snapshot does not hold.
	Applied func(Applied)
	// Reset is told a state that replaces everything: a snapshot from the leader, or the one that a start begins with.
	Reset func(*command.State)
}

// Store is the replicated state of one node.
type Store struct {
	cfg  Config
	raft *raft.Raft
	db   *raftboltdb.BoltStore
	log  checkedLog
	fsm  *fsm
	tail raft.Log // the last entry that was on disk at the start, without its data; Index 0 = none
}

// ErrNotLeader means that an entry must be proposed elsewhere; nothing was done.
var ErrNotLeader = errors.New("this node does not lead the cluster")

// ErrUnknownOutcome means that an entry may or may not take effect later: the leader was lost while it was on its way.
var ErrUnknownOutcome = errors.New("whether it took effect is not known")

// ErrDamaged wraps what is wrong with the files of a data directory.
var ErrDamaged = errors.New("the replicated state on disk is damaged")

// Open reads what is on disk and starts Raft. A store that was never begun or joined waits for either.
func Open(c Config) (_ *Store, err error) {
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.Transport == nil {
		_, c.Transport = raft.NewInmemTransport(raft.ServerAddress(c.ID))
	}
	for _, d := range []string{c.Dir, filepath.Join(c.Dir, "snapshots")} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			return nil, fmt.Errorf("open the replicated state: %w", err)
		}
	}
	t, err := openTexts(filepath.Join(c.Dir, "texts"))
	if err != nil {
		return nil, err
	}
	s := &Store{cfg: c, fsm: &fsm{texts: t, told: c.Applied, reset: c.Reset}}
	s.fsm.state.Store(&command.State{})
	logger := hclog.New(&hclog.LoggerOptions{Name: "raft", Level: hclog.Warn, Output: lines{c.Log}, DisableTime: true})
	file := filepath.Join(c.Dir, "raft.db")
	// The lock is waited for only shortly: who holds it is another process, and says so better than a hang.
	s.db, err = raftboltdb.New(raftboltdb.Options{Path: file, BoltOptions: &bbolt.Options{Timeout: time.Second}})
	switch {
	case errors.Is(err, bbolt.ErrTimeout):
		return nil, fmt.Errorf("open %s: another process uses it: a data directory belongs to one node", file)
	case err != nil:
		return nil, fmt.Errorf("%w: %s: %w", ErrDamaged, file, err)
	}
	defer func() {
		if err != nil {
			s.db.Close()
		}
	}()
	s.log = checkedLog{s.db}
	if s.tail, err = s.log.check(); err != nil {
		return nil, fmt.Errorf("%w: %s: %w", ErrDamaged, file, err)
	}
	snaps, err := raft.NewFileSnapshotStoreWithLogger(c.Dir, 2, logger)
	if err != nil {
		return nil, fmt.Errorf("open the snapshots: %w", err)
	}
	cfg := raft.DefaultConfig()
	cfg.LocalID = raft.ServerID(c.ID)
	cfg.HeartbeatTimeout = cmp.Or(c.Heartbeat, 500*time.Millisecond)
	cfg.ElectionTimeout = cmp.Or(c.Election, 500*time.Millisecond)
	cfg.LeaderLeaseTimeout = cmp.Or(c.Lease, 250*time.Millisecond)
	cfg.CommitTimeout = cmp.Or(c.Commit, 20*time.Millisecond)
	cfg.TrailingLogs = cmp.Or(c.TrailingEntries, 64)
	cfg.SnapshotThreshold = cmp.Or(c.SnapshotEntries, 256)
	cfg.SnapshotInterval = 30 * time.Second
	cfg.MaxAppendEntries = 8 // of up to 8 MiB each
	cfg.NoLegacyTelemetry = true
	cfg.Logger = logger
	s.raft, err = raft.NewRaft(cfg, s.fsm, s.log, s.db, snaps, c.Transport)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	return s, nil
}

// lines hands Raft's own messages to our log.
type lines struct{ log *slog.Logger }

func (l lines) Write(b []byte) (int, error) {
	l.log.Warn("raft", "says", strings.TrimSpace(string(b)))
	return len(b), nil
}

// Begun reports whether the store is part of a cluster, by what is on disk.
func (s *Store) Begun() bool { return s.raft.LastIndex() > 0 }

// Bootstrap makes this node a cluster of one. It is done once, by the node that begins the cluster.
func (s *Store) Bootstrap() error {
	err := s.raft.BootstrapCluster(raft.Configuration{Servers: []raft.Server{{ID: raft.ServerID(s.cfg.ID), Address: s.cfg.Transport.LocalAddr()}}}).Error()
	if errors.Is(err, raft.ErrCantBootstrap) {
		return errors.New("this node is part of a cluster already")
	}
	return err
}

// Propose has an entry carried out by the cluster and waits for that here. The result is the cluster's answer, which may be a refusal;
// the error says that there is no answer.
func (s *Store) Propose(ctx context.Context, e *command.Entry) (command.Result, error) {
	b, err := e.Encode()
	if err != nil {
		return command.Result{}, err
	}
	timeout := 5 * time.Second
	if d, ok := ctx.Deadline(); ok {
		timeout = max(time.Until(d), time.Millisecond)
	}
	f := s.raft.Apply(b, timeout)
	done := make(chan error, 1)
	go func() { done <- f.Error() }() // ends with Raft at the latest
	select {
	case err = <-done:
	case <-ctx.Done():
		return command.Result{}, fmt.Errorf("%w: %w", ErrUnknownOutcome, ctx.Err())
	}
	switch {
	case errors.Is(err, raft.ErrNotLeader), errors.Is(err, raft.ErrLeadershipTransferInProgress), errors.Is(err, raft.ErrEnqueueTimeout):
		return command.Result{}, fmt.Errorf("%w: %w", ErrNotLeader, err)
	case err != nil:
		return command.Result{}, fmt.Errorf("%w: %w", ErrUnknownOutcome, err)
	}
	o := f.Response().(outcome)
	return o.result, o.err
}

// State is the state so far, never nil.
func (s *Store) State() *command.State { return s.fsm.state.Load() }

// Text finds the text of a revision.
func (s *Store) Text(digest string) ([]byte, error) { return s.fsm.texts.get(digest) }

// Problem says why this node does not follow the log, or does not keep what it should; "" when it does.
func (s *Store) Problem() string {
	if why := s.fsm.stopped.Load(); why != nil {
		return "no entry is applied any more: " + *why
	}
	if err := s.fsm.texts.problem(); err != nil {
		return err.Error()
	}
	return ""
}

// Leads reports whether this node leads.
func (s *Store) Leads() bool { return s.raft.State() == raft.Leader }

// Leader is who leads as far as this node knows; "" = nobody.
func (s *Store) Leader() (id, address string) {
	a, i := s.raft.LeaderWithID()
	return string(i), string(a)
}

// Leadership tells each change: true when this node begins to lead. One reader.
func (s *Store) Leadership() <-chan bool { return s.raft.LeaderCh() }

// Barrier waits until everything that was committed before is applied here. Leader only.
func (s *Store) Barrier(timeout time.Duration) error {
	err := s.raft.Barrier(timeout).Error()
	if errors.Is(err, raft.ErrNotLeader) {
		return fmt.Errorf("%w: %w", ErrNotLeader, err)
	}
	return err
}

// CaughtUp reports whether State is what the cluster had agreed on when this node started, or later. Before, the log is being applied again
// and states of long ago pass by. Without a majority it stays false: nobody can say what was agreed on.
func (s *Store) CaughtUp() bool {
	commit := s.raft.CommitIndex()
	if commit == 0 {
		return false
	}
	var l raft.Log
	// Our last entry is either agreed on by now, or was never and has been overwritten.
	if commit < s.tail.Index && s.log.GetLog(s.tail.Index, &l) == nil && l.Term == s.tail.Term {
		return false
	}
	for i := commit; i > s.fsm.state.Load().Index; i-- {
		if s.log.GetLog(i, &l) != nil || l.Type == raft.LogCommand {
			return false
		}
	}
	return true
}

// Voter is one line of Raft's own list of members.
type Voter struct {
	ID, Address string
	Votes       bool
}

// Voters lists whom Raft replicates to.
func (s *Store) Voters() ([]Voter, error) {
	f := s.raft.GetConfiguration()
	if err := f.Error(); err != nil {
		return nil, err
	}
	var out []Voter
	for _, v := range f.Configuration().Servers {
		out = append(out, Voter{string(v.ID), string(v.Address), v.Suffrage == raft.Voter})
	}
	return out, nil
}

// AddLearner has the leader replicate to a node that has no vote yet; Promote gives it one; Remove ends both. Leader only.
func (s *Store) AddLearner(id, address string, timeout time.Duration) error {
	return s.raft.AddNonvoter(raft.ServerID(id), raft.ServerAddress(address), 0, timeout).Error()
}

// Promote gives a learner its vote.
func (s *Store) Promote(id, address string, timeout time.Duration) error {
	return s.raft.AddVoter(raft.ServerID(id), raft.ServerAddress(address), 0, timeout).Error()
}

// Remove takes a node out.
func (s *Store) Remove(id string, timeout time.Duration) error {
	return s.raft.RemoveServer(raft.ServerID(id), 0, timeout).Error()
}

// Yield hands the lead to another node; "" = to whichever is best.
func (s *Store) Yield(id, address string) error {
	if id == "" {
		return s.raft.LeadershipTransfer().Error()
	}
	return s.raft.LeadershipTransferToServer(raft.ServerID(id), raft.ServerAddress(address)).Error()
}

// Compact writes a snapshot now and shortens the log.
func (s *Store) Compact() error {
	err := s.raft.Snapshot().Error()
	if errors.Is(err, raft.ErrNothingNewToSnapshot) {
		return nil
	}
	return err
}

// Close stops Raft and closes the files. What was proposed and not answered has an unknown outcome.
func (s *Store) Close() error {
	err := s.raft.Shutdown().Error()
	if c, ok := s.cfg.Transport.(io.Closer); ok {
		err = errors.Join(err, c.Close())
	}
	return errors.Join(err, s.db.Close())
}
