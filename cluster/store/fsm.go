package store

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"sync/atomic"

	"github.com/hashicorp/raft"

	"demarc/cluster/command"
)

// Applied is one entry that has taken effect here.
type Applied struct {
	Entry  *command.Entry // its Text is set for a revision
	Result command.Result
	State  *command.State // after it
}

// fsm applies entries. Raft calls it from one goroutine, but for persist.
type fsm struct {
	state   atomic.Pointer[command.State] // fsm: wo, all: ro
	stopped atomic.Pointer[string]        // why nothing is applied any more; nil = it is
	texts   *texts
	told    func(Applied) // after each entry, on Raft's goroutine
	reset   func(*command.State)
}

// stop ends applying for good: this build, or this disk, cannot go where the others go. What was applied stays; a restart tries again.
func (f *fsm) stop(err error) error {
	why := err.Error()
	f.stopped.CompareAndSwap(nil, &why)
	return err
}

// outcome is what Apply answers through Raft.
type outcome struct {
	result command.Result
	err    error
}

// Apply is called with each committed entry.
func (f *fsm) Apply(l *raft.Log) any {
	if why := f.stopped.Load(); why != nil {
		return outcome{err: fmt.Errorf("this node has stopped applying entries: %s", *why)}
	}
	e, err := command.Decode(l.Data)
	if err != nil {
		return outcome{err: f.stop(fmt.Errorf("entry %d: %w", l.Index, err))}
	}
	s, r := f.state.Load().Apply(l.Index, e)
	if e.Kind == command.KindRevise && r.Refused == nil {
		f.texts.put(e.Text)
	}
	f.state.Store(s)
	for _, d := range r.Dropped {
		f.texts.drop(d)
	}
	if f.told != nil {
		f.told(Applied{Entry: e, Result: r, State: s})
	}
	return outcome{result: r}
}

// Snapshot catches the state; texts are read while it is written.
func (f *fsm) Snapshot() (raft.FSMSnapshot, error) {
	if why := f.stopped.Load(); why != nil {
		return nil, fmt.Errorf("no snapshot of a node that has stopped applying: %s", *why)
	}
	if err := f.texts.settle(); err != nil {
		return nil, fmt.Errorf("no snapshot while the log is the only place of a text: %w", err)
	}
	return &image{f.state.Load(), f.texts}, nil
}

type image struct {
	state *command.State
	texts *texts
}

const imageMagic = "demarc-state 1\n"

// Persist writes the magic, the state and each text, every one with its length. Raft's file snapshots have a checksum of their own.
func (m *image) Persist(sink raft.SnapshotSink) error {
	err := m.write(sink)
	if err != nil {
		return errors.Join(err, sink.Cancel())
	}
	return sink.Close()
}

func (m *image) write(to io.Writer) error {
	w := bufio.NewWriterSize(to, 1<<16)
	b, err := m.state.EncodeState()
	if err != nil {
		return err
	}
	_, _ = w.WriteString(imageMagic) // a bufio.Writer keeps its error until Flush
	block := func(b []byte) {
		_, _ = w.Write(binary.AppendUvarint(nil, uint64(len(b))))
		_, _ = w.Write(b)
	}
	block(b)
	for _, d := range m.state.Digests() {
		text, err := m.texts.get(d)
		if err != nil {
			return err
		}
		block(text)
	}
	return w.Flush()
}

// Release has nothing to give back.
func (m *image) Release() {}

// Restore replaces everything by a snapshot.
func (f *fsm) Restore(from io.ReadCloser) error {
	defer from.Close()
	s, err := f.read(from)
	if err != nil {
		return f.stop(fmt.Errorf("snapshot: %w", err))
	}
	f.state.Store(s)
	if err := f.texts.retain(s.Digests()); err != nil {
		return fmt.Errorf("remove texts that the snapshot does not name: %w", err)
	}
	f.stopped.Store(nil)
	if f.reset != nil {
		f.reset(s)
	}
	return nil
}

const maxState = 64 << 20 // bytes of a state without texts

func (f *fsm) read(from io.Reader) (*command.State, error) {
	r := bufio.NewReaderSize(from, 1<<16)
	magic := make([]byte, len(imageMagic))
	if _, err := io.ReadFull(r, magic); err != nil || string(magic) != imageMagic {
		return nil, fmt.Errorf("%w: it is not a snapshot of this program, or of a later release", command.ErrUnreadable)
	}
	block := func(most uint64) ([]byte, error) {
		n, err := binary.ReadUvarint(r)
		if err != nil {
			return nil, fmt.Errorf("it ends too early: %w", err)
		}
		if n > most {
			return nil, fmt.Errorf("a part of %d bytes, at most %d", n, most)
		}
		b := make([]byte, n)
		if _, err := io.ReadFull(r, b); err != nil {
			return nil, fmt.Errorf("it ends too early: %w", err)
		}
		return b, nil
	}
	b, err := block(maxState)
	if err != nil {
		return nil, err
	}
	s, err := command.DecodeState(b)
	if err != nil {
		return nil, err
	}
	for _, d := range s.Digests() {
		text, err := block(command.MaxText)
		if err != nil {
			return nil, err
		}
		if command.Digest(text) != d {
			return nil, fmt.Errorf("the text of %s is damaged", d)
		}
		f.texts.put(text)
	}
	// What is owed now is not in the log: a restart could not have it.
	return s, f.texts.settle()
}
