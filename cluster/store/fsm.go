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
	hooks   *Hooks
}

// stop ends applying for good: this build, or this disk, cannot go where the others go. What was applied stays; a restart tries again.
func (f *fsm) stop(err error) error {
	why := err.Error()
	f.stopped.CompareAndSwap(nil, &why)
	return err
}

func stoppedBy(why string) error {
	return fmt.Errorf("this node has stopped applying entries: %s", why)
}

// outcome is what Apply answers through Raft.
type outcome struct {
	result command.Result
	err    error
}

// Apply is called with each committed entry.
func (f *fsm) Apply(l *raft.Log) any {
	if why := f.stopped.Load(); why != nil {
		return outcome{err: stoppedBy(*why)}
	}
	e, err := command.Decode(l.Data)
	if h := f.hooks; err == nil && h != nil && h.Decoding != nil {
		err = h.Decoding(e)
	}
	if err != nil {
		return outcome{err: f.stop(fmt.Errorf("entry %d: %w", l.Index, err))}
	}
	if h := f.hooks; h != nil && h.Applying != nil {
		h.Applying(e)
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
	s := f.state.Load()
	if h := f.hooks; h != nil && h.Picture != nil {
		s = h.Picture(s)
	}
	return &image{s}, nil
}

type image struct{ state *command.State }

const imageMagic = "demarc-state 1\n"

// Persist writes the magic, the state with its length, and for each text a zero: it is in a file of its own, and is put in where the snapshot is read.
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
	_, _ = w.Write(binary.AppendUvarint(nil, uint64(len(b))))
	_, _ = w.Write(b)
	_, _ = w.Write(make([]byte, len(m.state.Digests())))
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
	// What cannot be removed is removed another time. An error would have Raft stay where it was, with a state that is beyond that.
	_ = f.texts.retain(s.Digests())
	f.stopped.Store(nil)
	if f.reset != nil {
		f.reset(s)
	}
	return nil
}

const maxState = 64 << 20 // bytes of a state without texts

// readHead reads a snapshot up to its first text. head is what was read.
func readHead(r *bufio.Reader) (s *command.State, head []byte, err error) {
	magic := make([]byte, len(imageMagic))
	if _, err := io.ReadFull(r, magic); err != nil || string(magic) != imageMagic {
		return nil, nil, fmt.Errorf("%w: it is not a snapshot of this program, or of a later release", command.ErrUnreadable)
	}
	b, err := block(r, maxState)
	if err != nil {
		return nil, nil, err
	}
	if s, err = command.DecodeState(b); err != nil {
		return nil, nil, err
	}
	return s, append(binary.AppendUvarint(magic, uint64(len(b))), b...), nil
}

// block reads a length and so many bytes.
func block(r *bufio.Reader, most uint64) ([]byte, error) {
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

func (f *fsm) read(from io.Reader) (*command.State, error) {
	r := bufio.NewReaderSize(from, 1<<16)
	s, _, err := readHead(r)
	if err != nil {
		return nil, err
	}
	for _, d := range s.Digests() {
		text, err := block(r, command.MaxText)
		switch {
		case err != nil:
			return nil, err
		case len(text) == 0:
			f.texts.miss(d)
		case command.Digest(text) != d:
			return nil, fmt.Errorf("the text of %s is damaged", d)
		default:
			f.texts.put(text)
		}
	}
	// What is owed now is not in the log: a restart could not have it.
	return s, f.texts.settle()
}
