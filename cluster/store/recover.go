package store

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"

	"demarc/cluster/command"
)

// Recovery says what Recover found, or has done.
type Recovery struct {
	Cluster string
	State   *command.State // as it is afterwards
	Gone    []command.Member
	Damage  error // of log and snapshots; nil = they were whole. Set, the copy was taken instead
	Aside   string
}

// Recover makes this node the only member of its cluster, for a cluster whose other voters are lost for good. What only they knew is lost, and what
// they had not agreed on yet may take effect. entry is what the state notes; who is left is filled in. Without the cluster's id nothing is
// changed, and the error comes with what was found. The store must be closed.
func Recover(c Config, cluster string, entry *command.Entry) (r Recovery, err error) {
	if _, err := os.Stat(filepath.Join(c.Dir, "raft.db")); errors.Is(err, fs.ErrNotExist) {
		if _, err := os.Stat(filepath.Join(c.Dir, keptFile)); err != nil {
			return r, fmt.Errorf("%s has no replicated state", c.Dir)
		}
	}
	s, logger, err := newStore(c)
	if err != nil {
		return r, err
	}
	err = s.openFiles(logger)
	switch {
	case err == nil:
		defer func() { err = errors.Join(err, s.disk.close()) }()
		if r.State, err = s.replay(); err != nil {
			return r, err
		}
	case errors.Is(err, ErrDamaged):
		r.Damage = err
		if r.State, err = readKept(c.Dir); err != nil {
			return r, errors.Join(r.Damage, err)
		}
	default:
		return r, err
	}
	if r.Cluster = r.State.Cluster; r.Cluster == "" {
		return r, fmt.Errorf("%s belongs to no cluster", c.Dir)
	}
	for _, m := range r.State.Members {
		if m.ID != c.ID {
			r.Gone = append(r.Gone, m)
		}
	}
	if cluster != r.Cluster {
		return r, fmt.Errorf("this is a node of cluster %q, not of %q: nothing was changed", r.Cluster, cluster)
	}
	e := *entry
	body := command.Recover{ID: c.ID, Copy: r.Damage != nil}
	if entry.Recover != nil {
		body.Last = entry.Recover.Last
	}
	e.Level, e.Kind, e.Recover = 1, command.KindRecover, &body
	if _, err := e.Encode(); err != nil {
		return r, err
	}
	if r.Damage == nil {
		return r, s.recoverLog(&r, &e, logger)
	}
	return r, recoverCopy(c, &r, &e)
}

// replay is the state after everything that is on disk.
func (s *Store) replay() (*command.State, error) {
	m, _, err := s.snaps.newest()
	if err != nil {
		return nil, err
	}
	base := uint64(0)
	if m != nil {
		_, in, err := s.snaps.Open(m.ID)
		if err != nil {
			return nil, err
		}
		if err := s.fsm.Restore(in); err != nil {
			return nil, err
		}
		base = m.Index
	}
	for i := base + 1; i <= s.tail.Index; i++ {
		var l raft.Log
		if err := s.disk.read(i, &l); err != nil {
			return nil, err
		}
		if l.Type != raft.LogCommand {
			continue
		}
		if o := s.fsm.Apply(&l).(outcome); o.err != nil {
			return nil, o.err
		}
	}
	return s.State(), nil
}

// ending is a state machine that applies one more entry when its snapshot is taken.
type ending struct {
	*fsm
	e *command.Entry
}

func (f ending) Snapshot() (raft.FSMSnapshot, error) {
	s, r := f.state.Load().Apply(f.state.Load().Index, f.e)
	if r.Refused != nil {
		return nil, r.Refused
	}
	f.state.Store(s)
	return f.fsm.Snapshot()
}

func (s *Store) recoverLog(r *Recovery, e *command.Entry, logger hclog.Logger) error {
	f := &fsm{texts: s.fsm.texts}
	f.state.Store(&command.State{})
	err := raft.RecoverCluster(s.raftConfig(logger), ending{f, e}, s.disk, s.disk, s.snaps, s.cfg.Transport, s.alone(r.State))
	if err != nil {
		return err
	}
	r.State = f.state.Load()
	return writeKept(s.cfg.Dir, r.State)
}

// alone has this node as the only voter, under the address that it told the cluster.
func (s *Store) alone(st *command.State) raft.Configuration {
	address := s.cfg.Transport.LocalAddr()
	for _, m := range st.Members {
		if m.ID == s.cfg.ID && m.Address != "" {
			address = raft.ServerAddress(m.Address)
		}
	}
	return raft.Configuration{Servers: []raft.Server{{ID: raft.ServerID(s.cfg.ID), Address: address}}}
}

// recoverCopy begins a log and a snapshot from the copy. They are made beside the damaged ones and then take their places: what fails in between is found by the
// next start as damage, and can be recovered again.
func recoverCopy(c Config, r *Recovery, e *command.Entry) (err error) {
	st, res := r.State.Apply(r.State.Index, e)
	if res.Refused != nil {
		return res.Refused
	}
	build := c
	build.Dir = filepath.Join(c.Dir, "recovered")
	if err := os.RemoveAll(build.Dir); err != nil {
		return err
	}
	n, logger, err := newStore(build)
	if err != nil {
		return err
	}
	if err := n.openFiles(logger); err != nil {
		return err
	}
	err = func() error {
		if err := n.disk.SetUint64([]byte(keyTerm), 1); err != nil {
			return err
		}
		n.fsm.state.Store(st)
		k, err := n.snaps.Create(1, st.Index, 1, n.alone(st), 1, n.cfg.Transport)
		if err != nil {
			return err
		}
		return (&image{st}).Persist(k)
	}()
	if err := errors.Join(err, n.disk.close()); err != nil {
		return err
	}
	r.Aside = filepath.Join(c.Dir, "damaged-"+time.Now().UTC().Format("20060102T150405.000"))
	if err := os.Mkdir(r.Aside, 0o700); err != nil {
		return err
	}
	for _, name := range []string{"raft.db", "snapshots"} {
		if err := os.Rename(filepath.Join(c.Dir, name), filepath.Join(r.Aside, name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	for _, name := range []string{"snapshots", "raft.db"} {
		if err := os.Rename(filepath.Join(build.Dir, name), filepath.Join(c.Dir, name)); err != nil {
			return err
		}
	}
	r.State = st
	return errors.Join(os.RemoveAll(build.Dir), writeKept(c.Dir, st), SyncFile(c.Dir))
}
