package store

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
	raftboltdb "github.com/hashicorp/raft-boltdb/v2"
	"go.etcd.io/bbolt"

	"demarc/cluster/command"
)

// Config is what a Store is opened with. Dir and ID are required.
type Config struct {
	Dir       string       // belongs to this store alone
	ID        string       // of this member, see command.Member
	Transport Transport    // nil = a cluster of one, that nobody can reach
	Log       *slog.Logger // nil = silent

	// Timers of Raft. Zero means what suits machines in one site; a cluster over a satellite needs longer ones.
	Heartbeat, Election, Lease, Commit time.Duration

	// A snapshot is due after SnapshotBytes or SnapshotEntries, whichever comes first; TrailingBytes of the log stay behind it, at most TrailingEntries.
	// Zero means 2 MiB, 256, 2 MiB and 64.
	SnapshotBytes, TrailingBytes     int64
	TrailingEntries, SnapshotEntries uint64

	Hooks *Hooks // nil = none; for tests

	// Applied is told each entry that has taken effect, in order, on the goroutine that applies: it must not block. At a start it is told those
	// again that the last snapshot does not hold.
	Applied func(Applied)
	// Members is called when the newest members in the log are others than before, agreed on or not, before anything goes on by them. It must not block.
	Members func()
	// Reset is told a state that replaces everything: a snapshot from the leader, or the one that a start begins with.
	Reset func(*command.State)
}

// Store is the replicated state of one node.
type Store struct {
	cfg     Config
	raft    *raft.Raft    // after started
	started chan struct{} // closed when raft is set
	disk    *disk
	screen  *screen
	snaps   *snapshots
	fsm     *fsm
	tail    raft.Log // the last entry that was on disk at the start, without its data; Index 0 = none

	keepWake  chan struct{} // the state has changed
	keepEnd   chan struct{} // closed at the end
	keepDone  chan struct{}
	once      sync.Once
	ended     sync.Once
	again     chan struct{} // closed when it must be opened again
	spreading atomic.Int32  // how often Spread was called since none was under way; 0 = none is
	tuning    sync.Mutex    // of Raft's configuration, which is read, changed and written
	doubted   atomic.Pointer[doubt]
}

// ErrNotLeader means that an entry must be proposed elsewhere; nothing was done.
var ErrNotLeader = errors.New("this node does not lead the cluster")

// ErrUnknownOutcome means that an entry may or may not take effect later: the leader was lost while it was on its way.
var ErrUnknownOutcome = errors.New("whether it took effect is not known")

// maxTrailing is how many entries stay in the log behind a snapshot, however small they are.
const maxTrailing = 64

// memberRoom is what a change of members may take on disk, generously.
const memberRoom = 8 << 10

// ErrDamaged wraps what is wrong with the files of a data directory.
var ErrDamaged = errors.New("the replicated state on disk is damaged")

// Open reads what is on disk and starts Raft. A store that was never begun or joined waits for either.
func Open(c Config) (*Store, error) {
	s, logger, err := newStore(c)
	if err != nil {
		return nil, err
	}
	if err := s.openFiles(logger); err != nil {
		return nil, err
	}
	s.screen = newScreen(s.cfg.Transport, s.cfg.Log)
	s.screen.stand, s.screen.members, s.screen.stale, s.disk.done = s.stand, s.members, s.stale, s.applied
	s.screen.brings, s.screen.over = s.brings, s.disk.end
	s.raft, err = raft.NewRaft(s.raftConfig(logger), s.fsm, s.disk, s.disk, s.snaps, s.screen)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("%w: %w", ErrDamaged, err), s.disk.close())
	}
	close(s.started)
	go s.screen.pass()
	if s.fsm.stopped.Load() != nil {
		s.raft.Shutdown()
	}
	go s.keep()
	s.hurry()
	return s, nil
}

// stand is where Raft stands. A snapshot that is on disk counts once Raft knows of it.
func (s *Store) stand() standing {
	at := standing{term: s.raft.CurrentTerm()}
	if s.fsm.stopped.Load() != nil {
		return at // what Raft takes for carried out was not
	}
	at.applied = s.applied()
	if i, term := s.snaps.base(); i <= at.applied {
		at.base, at.baseTerm = i, term
	}
	return at
}

// applied is the last entry that Raft has had carried out.
func (s *Store) applied() uint64 {
	select {
	case <-s.started:
		return s.raft.AppliedIndex()
	default:
		return 0
	}
}

// stale is a leader that Raft has in mind although it looks for another one, or that is in doubt.
func (s *Store) stale() raft.ServerAddress {
	a, id := s.raft.LeaderWithID()
	if s.raft.State() != raft.Candidate && !s.doubts(id) {
		return ""
	}
	return a
}

// members is Raft's own list.
func (s *Store) members() raft.Configuration { return s.raft.GetConfiguration().Configuration() }

// newStore makes a store without log and snapshots.
func newStore(c Config) (*Store, hclog.Logger, error) {
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.Transport == nil {
		_, c.Transport = raft.NewInmemTransport(raft.ServerAddress(c.ID))
	}
	for _, d := range []string{c.Dir, filepath.Join(c.Dir, "snapshots")} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			return nil, nil, fmt.Errorf("open the replicated state: %w%s", err, helps(err))
		}
	}
	t, err := openTexts(filepath.Join(c.Dir, "texts"), c.Hooks)
	if err != nil {
		return nil, nil, err
	}
	s := &Store{cfg: c, fsm: &fsm{texts: t, hooks: c.Hooks}, started: make(chan struct{}),
		keepWake: make(chan struct{}, 1), keepEnd: make(chan struct{}), keepDone: make(chan struct{}), again: make(chan struct{})}
	s.fsm.told = func(a Applied) {
		select {
		case s.keepWake <- struct{}{}:
		default:
		}
		if c.Applied != nil {
			c.Applied(a)
		}
	}
	s.fsm.reset = c.Reset
	s.fsm.state.Store(&command.State{})
	return s, (&lines{log: c.Log, now: time.Now, said: map[about]*said{}}).logger(), nil
}

func (s *Store) raftConfig(logger hclog.Logger) *raft.Config {
	c, cfg := s.cfg, raft.DefaultConfig()
	cfg.LocalID = raft.ServerID(c.ID)
	cfg.HeartbeatTimeout = cmp.Or(c.Heartbeat, 500*time.Millisecond)
	cfg.ElectionTimeout = cmp.Or(c.Election, 500*time.Millisecond)
	cfg.LeaderLeaseTimeout = cmp.Or(c.Lease, 250*time.Millisecond)
	cfg.CommitTimeout = cmp.Or(c.Commit, 20*time.Millisecond)
	cfg.TrailingLogs = cmp.Or(c.TrailingEntries, maxTrailing)
	cfg.SnapshotThreshold = cmp.Or(c.SnapshotEntries, 256)
	cfg.SnapshotInterval = 30 * time.Second
	cfg.MaxAppendEntries = 2 // of up to 8 MiB each, and a member that is behind is sent several messages at a time
	cfg.NoLegacyTelemetry = true
	cfg.Logger = logger
	return cfg
}

// openFiles opens log and snapshots and holds them against each other.
func (s *Store) openFiles(logger hclog.Logger) (err error) {
	dir := s.cfg.Dir
	file := filepath.Join(dir, "raft.db")
	damaged := func(errs ...error) error {
		all := errs[0]
		for _, err := range errs[1:] {
			all = fmt.Errorf("%w; %w", all, err)
		}
		return fmt.Errorf("%w: %s: %w: see docs/recovery.md", ErrDamaged, file, all)
	}
	if _, err := os.Stat(file); errors.Is(err, fs.ErrNotExist) {
		// Without it a node would vote again where it has voted: whoever takes it away takes the rest as well.
		for _, rest := range []string{keptFile, "snapshots/*-*"} {
			if list, _ := filepath.Glob(filepath.Join(dir, rest)); len(list) > 0 {
				return damaged(fmt.Errorf("it is gone, and %s is there", list[0]))
			}
		}
	}
	var in engine
	err = guard(func() (err error) {
		if err := whole(file); err != nil {
			return err
		}
		// The lock is waited for only shortly: who holds it is another process, and says so better than a hang.
		in, err = raftboltdb.New(raftboltdb.Options{Path: file, BoltOptions: &bbolt.Options{Timeout: time.Second}})
		return err
	})
	switch {
	case errors.Is(err, bbolt.ErrTimeout):
		return fmt.Errorf("open %s: another process uses it: a data directory belongs to one node", file)
	case refusal(err):
		return fmt.Errorf("open %s: %w%s", file, err, helps(err))
	case err != nil:
		return damaged(err)
	}
	if s.cfg.Hooks != nil {
		in = &hooked{in, s.cfg.Hooks}
	}
	if s.disk, err = openDisk(in, s.cfg.Log, s.halt); err != nil {
		return errors.Join(damaged(err), in.Close())
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.disk.close())
		}
	}()
	files, err := raft.NewFileSnapshotStoreWithLogger(dir, 2, logger)
	if err != nil {
		return fmt.Errorf("open the snapshots: %w%s", err, helps(err))
	}
	s.snaps = &snapshots{in: files, dir: filepath.Join(dir, "snapshots"), aside: filepath.Join(dir, "damaged-snapshot"), texts: s.fsm.texts, log: s.cfg.Log,
		hooks: s.cfg.Hooks, writing: map[string]bool{}}
	s.disk.base = s.snaps.base
	m, bad, err := s.snaps.newest()
	if err != nil {
		return fmt.Errorf("open the snapshots: %w", err)
	}
	base := uint64(0)
	if m != nil {
		if err := s.snaps.readable(m.ID); errors.Is(err, command.ErrLater) {
			// Raft would take the one before, whose log is gone.
			return fmt.Errorf("%s: %w", filepath.Join(dir, "snapshots", m.ID), err)
		}
		base = m.Index
		// Entries that were never agreed on, in the way of a snapshot from the leader: see took.
		if s.disk.differs(m.Index, m.Term) {
			if err := s.disk.clear(); err != nil {
				return fmt.Errorf("take off what was never agreed on: %w%s", err, helps(err))
			}
		}
	}
	s.snaps.took = s.took
	s.disk.others = s.cfg.Members
	if s.tail, err = s.disk.check(base); err != nil {
		return damaged(append(bad, err)...)
	}
	if st, err := readKept(dir); err == nil && st.Index > max(base, s.tail.Index) {
		// The engine goes back to the commit before when the page that names the last one is damaged.
		return damaged(append(bad, fmt.Errorf("the log ends with entry %d, and %d was carried out: its end is lost", max(base, s.tail.Index), st.Index))...)
	}
	switch {
	case len(bad) > 0 && m == nil && s.tail.Index == 0:
		return damaged(bad...) // it was all that there is
	case len(bad) > 0:
		s.cfg.Log.Warn("a damaged snapshot is not needed: the log and the one before it have everything", "err", errors.Join(bad...))
		return s.snaps.putAside()
	}
	return nil
}

// took looks whether the log has another entry where a snapshot from the leader ends. Raft would keep that one in mind, hold the leader's entries against it and
// refuse them all, until a restart. So this node starts again, from the snapshot.
func (s *Store) took(c caption) error {
	if !s.disk.differs(c.Index, c.Term) {
		return nil
	}
	err := errors.New("the log has entries that were never agreed on where the leader's snapshot ends: the replicated state is opened again")
	s.halt(err)
	s.ended.Do(func() { close(s.again) })
	return err
}

// whole finds a file that is shorter than what is in it. The engine would map memory that is not there, and fault when it gets to it.
func whole(file string) error {
	f, err := os.Stat(file)
	if errors.Is(err, fs.ErrNotExist) || err == nil && f.Size() == 0 {
		return nil // it is made
	}
	if err != nil {
		return err
	}
	db, err := bbolt.Open(file, 0, &bbolt.Options{ReadOnly: true, Timeout: time.Second})
	if err != nil {
		return err
	}
	defer db.Close()
	return db.View(func(tx *bbolt.Tx) error {
		if tx.Size() > f.Size() {
			return fmt.Errorf("it has %d bytes, and %d are in use: its end is cut off", f.Size(), tx.Size())
		}
		return nil
	})
}

// halt ends taking part in the cluster for good: the files stay as they are, and State and Problem go on answering. It returns at once.
func (s *Store) halt(err error) {
	_ = s.fsm.stop(err)
	s.disk.shut()
	select {
	case <-s.started:
		s.raft.Shutdown()
	default: // Open looks
	}
}

// hurry has a sole voter elect itself now. Raft would first wait whether somebody leads, and it takes a shorter time-out as a reason to look at once.
func (s *Store) hurry() {
	v, err := s.Voters()
	if err != nil || len(v) != 1 || v[0].ID != s.cfg.ID || !v[0].Votes {
		return
	}
	s.tuning.Lock()
	defer s.tuning.Unlock()
	c := s.raft.ReloadableConfig()
	h := c.HeartbeatTimeout
	c.HeartbeatTimeout = h - time.Millisecond
	err = s.raft.ReloadConfig(c)
	c.HeartbeatTimeout = h
	if err := errors.Join(err, s.raft.ReloadConfig(c)); err != nil {
		s.cfg.Log.Warn("the first election takes its time", "err", err)
	}
}

// Begun reports whether the store is part of a cluster, by what is on disk.
func (s *Store) Begun() bool { return s.raft.LastIndex() > 0 }

// Bootstrap makes this node a cluster of one. It is done once, by the node that begins the cluster.
func (s *Store) Bootstrap() error {
	if err := s.disk.undo(); err != nil {
		return err
	}
	if err := s.disk.room(memberRoom); err != nil { // Raft waits for a term to be written
		return &notWritten{err}
	}
	err := s.wait(s.raft.BootstrapCluster(raft.Configuration{Servers: []raft.Server{{ID: raft.ServerID(s.cfg.ID), Address: s.cfg.Transport.LocalAddr()}}}))
	if errors.Is(err, raft.ErrCantBootstrap) {
		return errors.New("this node is part of a cluster already")
	}
	if err == nil {
		s.hurry()
	}
	return err
}

// Propose has an entry carried out by the cluster and waits for that here. The result is the cluster's answer, which may be a refusal;
// the error says that there is no answer.
func (s *Store) Propose(ctx context.Context, e *command.Entry) (command.Result, error) {
	if h := s.cfg.Hooks; h != nil && h.Proposing != nil {
		if r, err, done := h.Proposing(s, e); done {
			return r, err
		}
	}
	b, err := e.Encode()
	if err != nil {
		return command.Result{}, err
	}
	if why := s.fsm.stopped.Load(); why != nil {
		return command.Result{}, s.refused(stoppedBy(*why))
	}
	fits := false
	if s.disk.refuses() != nil && !s.Leads() {
		if err := s.disk.room(len(b)); err != nil { // somebody may have made room a moment ago, or it is less than what was refused
			return command.Result{}, s.refused(&notWritten{err})
		}
		fits = true
	}
	timeout := 5 * time.Second
	if d, ok := ctx.Deadline(); ok {
		timeout = max(time.Until(d), time.Millisecond)
	}
	f := s.raft.Apply(b, timeout)
	done := make(chan error, 1)
	go func() { done <- s.wait(f) }()
	select {
	case err = <-done:
	case <-ctx.Done():
		return command.Result{}, fmt.Errorf("%w: %w", ErrUnknownOutcome, ctx.Err())
	}
	err = elsewhere(err)
	switch {
	case errors.Is(err, ErrNotWritten):
		return command.Result{}, s.refused(err)
	case errors.Is(err, ErrNotLeader):
		if why := s.disk.refuses(); why != nil && !fits { // which is why it does not lead any more
			return command.Result{}, s.refused(&notWritten{why})
		}
		return command.Result{}, err
	case err != nil:
		return command.Result{}, fmt.Errorf("%w: %w", ErrUnknownOutcome, err)
	}
	o := f.Response().(outcome)
	if o.err != nil { // it is agreed on: those that can carry it out
		return o.result, fmt.Errorf("%w: %w", ErrUnknownOutcome, o.err)
	}
	return o.result, nil
}

// refused says of an entry that is not in the log whether another node may take it: the lead is given up where it cannot be written or carried out.
func (s *Store) refused(err error) error {
	if v, verr := s.Voters(); verr == nil && len(v) > 1 {
		return fmt.Errorf("%w: %w", ErrNotLeader, err)
	}
	return err
}

// Again is closed when this store takes part no more until it is closed and opened again, for the reason that Problem gives. Nothing is damaged.
func (s *Store) Again() <-chan struct{} { return s.again }

// State is the state so far, never nil.
func (s *Store) State() *command.State { return s.fsm.state.Load() }

// Text finds the text of a revision.
func (s *Store) Text(digest string) ([]byte, error) { return s.fsm.texts.get(digest) }

// Refused is why the disk takes no entry at the moment; nil when it does.
func (s *Store) Refused() error {
	if err := s.disk.refuses(); err != nil {
		return fmt.Errorf("the disk refuses the replicated log: %w%s", err, helps(err))
	}
	return nil
}

// Problem says why this node does not follow the log, or does not keep what it should; "" when it does.
func (s *Store) Problem() string {
	if why := s.fsm.stopped.Load(); why != nil {
		return "no entry is applied any more: " + *why
	}
	if err := s.Refused(); err != nil {
		return err.Error()
	}
	if err := s.fsm.texts.problem(); err != nil {
		return err.Error() + helps(err)
	}
	if err := s.snaps.problem(); err != nil {
		return "no snapshot can be written, so the log grows: " + err.Error() + helps(err)
	}
	return s.screen.problem()
}

// Leads reports whether this node leads.
func (s *Store) Leads() bool { return s.raft.State() == raft.Leader }

// Term is Raft's: it goes up with each election, also one that comes to nothing.
func (s *Store) Term() uint64 { return s.raft.CurrentTerm() }

// Leader is who leads as far as this node knows; "" = nobody.
func (s *Store) Leader() (id, address string) {
	a, i := s.raft.LeaderWithID()
	if s.raft.State() == raft.Candidate {
		return "", "" // see stale
	}
	return string(i), string(a)
}

// Leadership tells each change: true when this node begins to lead. One reader.
func (s *Store) Leadership() <-chan bool { return s.raft.LeaderCh() }

// wait waits for an answer of Raft's. Raft leaves some without one when it ends: what was on the way to be applied.
func (s *Store) wait(f interface{ Error() error }) error {
	done := make(chan error, 1)
	go func() { done <- f.Error() }()
	select {
	case err := <-done:
		return err
	case <-s.disk.end:
	}
	select {
	case err := <-done:
		return err
	case <-time.After(endWait):
		return fmt.Errorf("%w: %w", ErrUnknownOutcome, errEnded)
	}
}

// endWait is how long an answer may take once the store is being closed.
const endWait = 200 * time.Millisecond

// Barrier waits until everything that was committed before is applied here. Leader only.
func (s *Store) Barrier(timeout time.Duration) error {
	return elsewhere(s.wait(s.raft.Barrier(timeout)), raft.ErrLeadershipLost)
}

// elsewhere says ErrNotLeader of what Raft did not take because another node leads or is about to, and of what else means that to who asked.
func elsewhere(err error, more ...error) error {
	for _, e := range append(more, raft.ErrNotLeader, raft.ErrLeadershipTransferInProgress, raft.ErrEnqueueTimeout) {
		if errors.Is(err, e) {
			return fmt.Errorf("%w: %w", ErrNotLeader, err)
		}
	}
	return err
}

// CaughtUp reports whether State is what the cluster had agreed on when this node started, or later. Before, the log is being applied again
// and states of long ago pass by. Without a majority it stays false: nobody can say what was agreed on. What a leader said first that is agreed on counts: a newcomer, and
// who was away for long, gets the log in pieces, each of which Raft takes for all that is agreed on.
func (s *Store) CaughtUp() bool {
	commit := s.raft.CommitIndex()
	if commit == 0 || commit < s.screen.goal.Load() {
		return false
	}
	var l raft.Log
	if s.fsm.stopped.Load() != nil {
		return false
	}
	// Our last entry is either agreed on by now, or was never and has been overwritten.
	if commit < s.tail.Index && s.disk.read(s.tail.Index, &l) == nil && l.Term == s.tail.Term {
		return false
	}
	// The state counts entries of ours. What a snapshot has been made of besides is in no log any more, and nothing of it is missing.
	base, _ := s.snaps.base()
	if base > s.applied() { // Raft has not taken it up
		base = 0
	}
	for i := commit; i > max(s.fsm.state.Load().Index, base); i-- {
		if s.disk.read(i, &l) != nil || l.Type == raft.LogCommand {
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
	return s.change(func() raft.IndexFuture {
		return s.raft.AddNonvoter(raft.ServerID(id), raft.ServerAddress(address), 0, timeout)
	})
}

// Promote gives a learner its vote.
func (s *Store) Promote(id, address string, timeout time.Duration) error {
	return s.change(func() raft.IndexFuture {
		return s.raft.AddVoter(raft.ServerID(id), raft.ServerAddress(address), 0, timeout)
	})
}

// Remove takes a node out.
func (s *Store) Remove(id string, timeout time.Duration) error {
	return s.change(func() raft.IndexFuture { return s.raft.RemoveServer(raft.ServerID(id), 0, timeout) })
}

// change changes whom Raft replicates to. It looks first whether the disk will take it: see disk.StoreLogs.
func (s *Store) change(fn func() raft.IndexFuture) error {
	if s.Leads() {
		if err := s.disk.room(memberRoom); err != nil {
			return &notWritten{err}
		}
	}
	return elsewhere(s.wait(fn()))
}

// Yield hands the lead to another node; "" = to whichever is best.
func (s *Store) Yield(id, address string) error {
	if id == "" {
		return elsewhere(s.wait(s.raft.LeadershipTransfer()))
	}
	return elsewhere(s.wait(s.raft.LeadershipTransferToServer(raft.ServerID(id), raft.ServerAddress(address))))
}

// compact writes a snapshot when enough bytes have come, and has the log keep only as many entries as its bytes allow.
func (s *Store) compact() {
	trailing, due := s.disk.due(cmp.Or(s.cfg.SnapshotBytes, 2<<20), cmp.Or(s.cfg.TrailingBytes, 2<<20))
	if !due {
		return
	}
	s.tuning.Lock()
	c := s.raft.ReloadableConfig()
	c.TrailingLogs = min(trailing, cmp.Or(s.cfg.TrailingEntries, maxTrailing))
	err := s.raft.ReloadConfig(c)
	s.tuning.Unlock()
	if err = errors.Join(err, s.Compact()); err != nil {
		s.cfg.Log.Debug("shorten the log", "err", err) // the disk's trouble is told by Problem; it comes due again
	}
}

// Compact writes a snapshot now and shortens the log.
func (s *Store) Compact() error {
	err := s.wait(s.raft.Snapshot())
	if errors.Is(err, raft.ErrNothingNewToSnapshot) {
		return nil
	}
	return err
}

// Close stops Raft and closes the files. What was proposed and not answered has an unknown outcome.
func (s *Store) Close() error {
	s.disk.shut()
	err := s.raft.Shutdown().Error()
	s.once.Do(func() { close(s.keepEnd) })
	<-s.keepDone
	if c, ok := s.cfg.Transport.(io.Closer); ok {
		err = errors.Join(err, c.Close())
	}
	return errors.Join(err, s.disk.close())
}
