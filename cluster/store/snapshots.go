package store

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"sync"

	"github.com/hashicorp/raft"
)

// snapshots keeps Raft's snapshots in its file store, and adds what that one leaves out: each file begins with what its meta.json says, so that this too is under the
// checksum; a snapshot that cannot be read is named and put aside instead of being passed over; what a full disk left half written is
// removed. On disk a snapshot has no texts, they are in files of their own already: they are put in while it is read.
type snapshots struct {
	in    *raft.FileSnapshotStore
	dir   string // of the snapshots
	aside string // where a damaged one goes
	texts *texts
	log   *slog.Logger
	hooks *Hooks
	took  func(caption) error // is told of a snapshot from the leader before it takes effect; its error refuses it

	mu      sync.Mutex
	writing map[string]bool // mu: directories that are being written
	trouble error           // mu: why the last one could not be written; nil = it could
	last    caption         // mu: the newest one that is whole
}

// base is what the newest snapshot is of.
func (s *snapshots) base() (index, term uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.last.Index, s.last.Term
}

const tmpSuffix = ".tmp" // of the file store: a snapshot that is being written

// caption is what a snapshot is of, as it stands at the beginning of its file.
type caption struct {
	Index, Term        uint64
	Configuration      raft.Configuration
	ConfigurationIndex uint64
}

func captionOf(m *raft.SnapshotMeta) caption {
	return caption{m.Index, m.Term, m.Configuration, m.ConfigurationIndex}
}

// clean removes what was half written.
func (s *snapshots) clean() {
	list, _ := filepath.Glob(filepath.Join(s.dir, "*"+tmpSuffix))
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, name := range list {
		if !s.writing[name] {
			if err := os.RemoveAll(name); err != nil {
				s.log.Warn("remove a snapshot that was not finished", "err", err)
			}
		}
	}
}

// note keeps how writing ended, and says so when that changes.
func (s *snapshots) note(err error) error {
	s.mu.Lock()
	was := s.trouble
	s.trouble = err
	s.mu.Unlock()
	if err != nil && was == nil {
		s.log.Error("no snapshot can be written", "err", err)
	}
	return err
}

// problem is why the last snapshot could not be written; nil when it could.
func (s *snapshots) problem() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.trouble
}

// Create begins a snapshot.
func (s *snapshots) Create(v raft.SnapshotVersion, index, term uint64, c raft.Configuration, ci uint64, t raft.Transport) (raft.SnapshotSink, error) {
	if err := s.overtaken(index); err != nil {
		return nil, err
	}
	s.clean()
	in, err := s.in.Create(v, index, term, c, ci, t)
	if err != nil {
		s.clean()
		return nil, s.note(err)
	}
	if err := s.hooks.write(4096); err != nil {
		_ = in.Cancel()
		s.clean()
		return nil, s.note(err)
	}
	k := &sink{SnapshotSink: in, s: s, name: filepath.Join(s.dir, in.ID()+tmpSuffix), of: caption{index, term, c, ci}}
	s.mu.Lock()
	s.writing[k.name] = true
	s.mu.Unlock()
	head, err := json.Marshal(k.of)
	if err == nil {
		_, err = in.Write(append(binary.AppendUvarint(nil, uint64(len(head))), head...))
	}
	if err != nil {
		_ = k.Cancel()
		return nil, s.note(err)
	}
	return k, nil
}

// overtaken refuses a snapshot when there is a newer one: Raft began it, the leader's came meanwhile, and Raft would take the older one for the newest. A leader would then
// look for entries in the log that only its snapshot has, and send that for ever.
func (s *snapshots) overtaken(index uint64) error {
	if newest, _ := s.base(); index < newest && !calledBy("installSnapshot") {
		return fmt.Errorf("a snapshot of entry %d is not needed: one of entry %d has come meanwhile", index, newest)
	}
	return nil
}

type sink struct {
	raft.SnapshotSink
	s    *snapshots
	name string
	of   caption
}

func (k *sink) done() {
	k.s.mu.Lock()
	delete(k.s.writing, k.name)
	k.s.mu.Unlock()
	k.s.clean()
}

// Close finishes the snapshot.
func (k *sink) Close() error {
	if err := k.s.overtaken(k.of.Index); err != nil {
		return errors.Join(err, k.Cancel())
	}
	err := k.s.note(k.SnapshotSink.Close())
	if err == nil && k.s.took != nil && calledBy("installSnapshot") {
		err = k.s.took(k.of)
	}
	if err == nil {
		k.s.mu.Lock()
		if k.of.Index > k.s.last.Index {
			k.s.last = k.of
		}
		k.s.mu.Unlock()
	}
	k.done()
	return err
}

// Cancel leaves nothing of it. The file store's own leaves what it could not flush.
func (k *sink) Cancel() error {
	err := k.SnapshotSink.Cancel()
	k.done()
	return err
}

// List names the snapshots that can be read, the newest first.
func (s *snapshots) List() ([]*raft.SnapshotMeta, error) {
	list, err := s.in.List()
	if err != nil {
		return nil, err
	}
	var out []*raft.SnapshotMeta
	for _, m := range list {
		_, r, _, err := s.open(m.ID)
		if err != nil {
			s.log.Error("a snapshot is damaged", "file", filepath.Join(s.dir, m.ID), "err", err)
			continue
		}
		r.Close()
		out = append(out, m)
	}
	return out, nil
}

// open opens a snapshot behind its caption. size is what is left of its file.
func (s *snapshots) open(id string) (m *raft.SnapshotMeta, r io.ReadCloser, size int64, err error) {
	m, in, err := s.in.Open(id)
	if err != nil {
		return nil, nil, 0, err
	}
	fail := func(err error) (*raft.SnapshotMeta, io.ReadCloser, int64, error) {
		in.Close()
		return nil, nil, 0, err
	}
	b := bufio.NewReader(in)
	n, err := binary.ReadUvarint(b)
	if err != nil || n > 1<<20 {
		return fail(errors.New("it has no caption"))
	}
	head := make([]byte, n)
	if _, err := io.ReadFull(b, head); err != nil {
		return fail(errors.New("its caption is cut off"))
	}
	var c caption
	if err := json.Unmarshal(head, &c); err != nil || m.ID != id || !reflect.DeepEqual(c, captionOf(m)) {
		return fail(errors.New("meta.json says something else than the snapshot itself"))
	}
	left := m.Size - int64(n) - int64(len(binary.AppendUvarint(nil, n)))
	if left < 0 {
		return fail(errors.New("meta.json says a wrong size"))
	}
	return m, &wrapped{b, in}, left, nil
}

// Open reads a snapshot, with the texts.
func (s *snapshots) Open(id string) (*raft.SnapshotMeta, io.ReadCloser, error) {
	m, r, size, err := s.open(id)
	if err != nil {
		return nil, nil, err
	}
	full, more, err := s.texts.fill(r)
	if err != nil {
		r.Close()
		return nil, nil, err
	}
	o := *m
	o.Size = size + more
	return &o, &wrapped{full, r}, nil
}

type wrapped struct {
	io.Reader
	io.Closer
}

// newest finds the newest snapshot that can be read, puts those aside that cannot, and says which and why. Called before Raft reads them.
func (s *snapshots) newest() (m *raft.SnapshotMeta, damaged []error, err error) {
	s.clean()
	list, err := os.ReadDir(s.dir)
	if err != nil {
		return nil, nil, err
	}
	for _, e := range list {
		if !e.IsDir() || strings.HasSuffix(e.Name(), tmpSuffix) {
			continue
		}
		o, r, _, err := s.open(e.Name())
		if err != nil {
			damaged = append(damaged, fmt.Errorf("the snapshot %s is damaged: %w", filepath.Join(s.dir, e.Name()), err))
			continue
		}
		r.Close()
		if m == nil || o.Index > m.Index || o.Index == m.Index && o.Term > m.Term {
			m = o
		}
	}
	if m != nil {
		s.mu.Lock()
		s.last = captionOf(m)
		s.mu.Unlock()
	}
	return m, damaged, nil
}

// readable reads the state of a snapshot and says whether this build can.
func (s *snapshots) readable(id string) error {
	_, r, _, err := s.open(id)
	if err != nil {
		return err
	}
	defer r.Close()
	_, _, err = readHead(bufio.NewReaderSize(r, 1<<16))
	return err
}

// putAside moves the damaged snapshots out of Raft's way, which would count them when it removes old ones. The last one is kept for whoever wants to look.
func (s *snapshots) putAside() error {
	list, err := os.ReadDir(s.dir)
	if err != nil {
		return err
	}
	for _, e := range list {
		if !e.IsDir() || strings.HasSuffix(e.Name(), tmpSuffix) {
			continue
		}
		_, r, _, err := s.open(e.Name())
		if err == nil {
			r.Close()
			continue
		}
		if err := errors.Join(os.RemoveAll(s.aside), os.Rename(filepath.Join(s.dir, e.Name()), s.aside)); err != nil {
			return fmt.Errorf("put a damaged snapshot aside: %w", err)
		}
	}
	return nil
}

// fill reads a snapshot and puts the texts in that are files of their own, by how many bytes it becomes longer.
func (t *texts) fill(r io.Reader) (full io.Reader, more int64, err error) {
	b := bufio.NewReader(r)
	s, head, err := readHead(b)
	if err != nil {
		return nil, 0, err
	}
	parts := []io.Reader{bytes.NewReader(head)}
	for _, d := range s.Digests() {
		n, err := binary.ReadUvarint(b)
		if err != nil {
			return nil, 0, fmt.Errorf("it ends too early: %w", err)
		}
		if n > 0 { // from another node, as it came
			return io.MultiReader(append(parts, bytes.NewReader(binary.AppendUvarint(nil, n)), b)...), more, nil
		}
		text, err := t.get(d)
		if err != nil {
			parts = append(parts, bytes.NewReader([]byte{0}))
			continue
		}
		size := binary.AppendUvarint(nil, uint64(len(text)))
		parts = append(parts, bytes.NewReader(size), &lazy{t: t, digest: d, size: len(text)})
		more += int64(len(size)+len(text)) - 1
	}
	return io.MultiReader(parts...), more, nil
}

// lazy reads a text when its turn comes, so that only one is in memory.
type lazy struct {
	t      *texts
	digest string
	size   int
	r      *bytes.Reader
}

func (l *lazy) Read(b []byte) (int, error) {
	if l.r == nil {
		text, err := l.t.get(l.digest)
		if err != nil {
			return 0, err
		}
		l.r = bytes.NewReader(text)
	}
	n, err := l.r.Read(b)
	if err == io.EOF {
		l.r = bytes.NewReader(nil)
	}
	return n, err
}
