package store

import (
	"errors"
	"fmt"

	"github.com/hashicorp/raft"

	"demarc/cluster/command"
)

// newest is the last entry of the log that says who the members are.
type newest struct {
	index   uint64 // 0 = the log has none
	members raft.Configuration
}

// noted keeps up with what is appended. d.mu is held.
func (d *disk) noted(l *raft.Log) {
	if l.Type != raft.LogConfiguration {
		return
	}
	if c, err := configuration(l.Data); err == nil {
		d.newest, d.scanned = &newest{l.Index, c}, true
	}
}

// configuration decodes members; Raft's own decoder panics on what is none.
func configuration(b []byte) (c raft.Configuration, err error) {
	err = guard(func() error { c = raft.DecodeConfiguration(b); return nil })
	return c, err
}

// forgot is for what is taken off the log. Where it was shortened at its beginning, what stood there holds. d.mu is held.
func (d *disk) forgot(from, to, last uint64) (gone bool) {
	if n := d.newest; n != nil && to >= last && n.index >= from {
		d.newest, d.scanned, gone = nil, false, true
	}
	return gone
}

// members finds the newest members in the log. It is read through once, and after its end was taken off.
func (d *disk) members() (newest, error) {
	for {
		d.mu.Lock()
		n, scanned := d.newest, d.scanned
		d.mu.Unlock()
		if scanned {
			if n == nil {
				return newest{}, nil
			}
			return *n, nil
		}
		first, err := d.FirstIndex()
		if err != nil {
			return newest{}, err
		}
		last, err := d.LastIndex()
		if err != nil {
			return newest{}, err
		}
		var found *newest
		for i := last; i >= max(first, 1) && found == nil; i-- {
			var l raft.Log
			if err := d.read(i, &l); errors.Is(err, raft.ErrLogNotFound) {
				continue
			} else if err != nil {
				return newest{}, err
			}
			if l.Type == raft.LogConfiguration {
				c, err := configuration(l.Data)
				if err != nil {
					return newest{}, fmt.Errorf("log entry %d: %w", i, err)
				}
				found = &newest{i, c}
			}
		}
		now, err := d.LastIndex()
		if err != nil {
			return newest{}, err
		}
		d.mu.Lock()
		if !d.scanned && now == last { // else it has changed meanwhile: again
			d.newest, d.scanned = found, true
		}
		d.mu.Unlock()
	}
}

// Newest lists who votes by the newest members in this node's log, agreed on or not, with the number of the entry that says so: it is the same on every node that has
// that entry, and goes back where the entry was never agreed on and is taken off again.
func (s *Store) Newest() (version uint64, voters []string, err error) {
	n, err := s.disk.members()
	if err != nil {
		return 0, nil, err
	}
	if c := s.snaps.caption(); c.ConfigurationIndex > n.index { // the log begins behind it
		n = newest{c.ConfigurationIndex, c.Configuration}
	}
	for _, v := range n.members.Servers {
		if v.Suffrage == raft.Voter {
			voters = append(voters, string(v.ID))
		}
	}
	return n.index, voters, nil
}

func (s *snapshots) caption() caption {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.last
}

// Last is the number of the last entry in this node's log, agreed on or not.
func (s *Store) Last() uint64 { return s.raft.LastIndex() }

// Beyond hands over the entries of this node's log after an index, agreed on or not, as far as they can be read, until fn says that it has seen enough.
func (s *Store) Beyond(index uint64, fn func(*command.Entry) bool) error {
	last, err := s.disk.LastIndex()
	if err != nil {
		return err
	}
	for i := index + 1; i <= last; i++ {
		var l raft.Log
		err := s.disk.read(i, &l)
		switch {
		case errors.Is(err, raft.ErrLogNotFound): // shortened meanwhile
			continue
		case err != nil:
			return err
		case l.Type != raft.LogCommand:
			continue
		}
		e, err := command.Decode(l.Data)
		if err != nil {
			return fmt.Errorf("log entry %d: %w", i, err)
		}
		if !fn(e) {
			return nil
		}
	}
	return nil
}

// Carried is the newest state that this node is known to have carried out: what it has now, or what it kept before its start. Until somebody leads nobody can say how much of
// the log was agreed on, and the state is that of the last snapshot.
func (s *Store) Carried() *command.State {
	now := s.State()
	if k, err := readKept(s.cfg.Dir); err == nil && k.Index > now.Index && (k.Cluster == now.Cluster || now.Cluster == "") {
		return k
	}
	return now
}
