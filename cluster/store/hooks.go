package store

import (
	"github.com/hashicorp/raft"

	"demarc/cluster/command"
)

// Hooks let tests make a disk slow or full, and plant faults that their checks must find. A nil function does nothing.
type Hooks struct {
	// Write comes before so many bytes are written to log, votes, texts or snapshots. Its error is the disk's.
	Write func(bytes int) error
	// Sync comes after something was written to the log, and before the caller hears so: its error is a commit that failed although it is there.
	Sync func() error
	// Read comes before an entry is read. Its error is the disk's.
	Read func(index uint64) error

	// Proposing may answer for Propose.
	Proposing func(s *Store, e *command.Entry) (r command.Result, err error, done bool)
	// Decoding may say that this build cannot read an entry.
	Decoding func(e *command.Entry) error
	// Applying may change an entry before it is applied.
	Applying func(e *command.Entry)
	// Picture may change what a snapshot holds.
	Picture func(*command.State) *command.State
}

func (h *Hooks) write(n int) error {
	if h == nil || h.Write == nil {
		return nil
	}
	return h.Write(n)
}

func (h *Hooks) sync() error {
	if h == nil || h.Sync == nil {
		return nil
	}
	return h.Sync()
}

// hooked is an engine with hooks.
type hooked struct {
	engine
	h *Hooks
}

func (e *hooked) Set(key, val []byte) error {
	if err := e.h.write(len(val)); err != nil {
		return err
	}
	return e.engine.Set(key, val)
}

func (e *hooked) StoreLogs(list []*raft.Log) error {
	n := 0
	for _, l := range list {
		n += len(l.Data) + len(l.Extensions)
	}
	if err := e.h.write(n); err != nil {
		return err
	}
	if err := e.engine.StoreLogs(list); err != nil {
		return err
	}
	return e.h.sync()
}

func (e *hooked) DeleteRange(from, to uint64) error {
	if err := e.h.write(0); err != nil {
		return err
	}
	return e.engine.DeleteRange(from, to)
}

func (e *hooked) GetLog(index uint64, l *raft.Log) error {
	if e.h.Read != nil {
		if err := e.h.Read(index); err != nil {
			return err
		}
	}
	return e.engine.GetLog(index, l)
}
