package store

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/hashicorp/raft"
	raftboltdb "github.com/hashicorp/raft-boltdb/v2"

	"demarc/cluster/command"
)

// faulty is a disk whose writes larger than room bytes fail with why.
type faulty struct {
	room atomic.Int64
	why  atomic.Pointer[error]
	late atomic.Pointer[error] // of a commit that is there all the same
	bad  atomic.Uint64         // an entry that cannot be read
	none atomic.Int64          // so many more reads fail
	logs atomic.Bool           // entries fail, terms and votes do not
	Hooks
}

func newFaulty() *faulty {
	f := &faulty{}
	f.works()
	f.Write = func(n int) error {
		if int64(n) > f.room.Load() {
			return *f.why.Load()
		}
		if f.logs.Load() && n != 0 && n != len(hard{candidate: []byte("n0")}.bytes()) {
			return syscall.ENOSPC
		}
		return nil
	}
	f.Sync = func() error {
		if e := f.late.Load(); e != nil {
			return *e
		}
		return nil
	}
	f.Read = func(i uint64) error {
		if i == f.bad.Load() || f.none.Load() > 0 && f.none.Add(-1) >= 0 {
			return errors.New("a page that cannot be read")
		}
		return nil
	}
	return f
}

func (f *faulty) works()                    { f.room.Store(1 << 40); f.late.Store(nil); f.logs.Store(false) }
func (f *faulty) fails(room int, err error) { f.why.Store(&err); f.room.Store(int64(room)) }

func faultyConfig(dir string) (Config, *faulty) {
	c, f := config(dir), newFaulty()
	c.Hooks = &f.Hooks
	return c, f
}

func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); !ok(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("waited in vain: ", what)
		}
	}
}

func initEntry() *command.Entry {
	return &command.Entry{Level: 1, Kind: command.KindInit, Init: &command.Init{Cluster: "c", Bounds: command.Bounds{Revisions: 3, Age: time.Hour, TextBytes: 1 << 30, Audit: 100}}}
}

func open(t testing.TB, c Config) *Store {
	t.Helper()
	s, err := Open(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

// TestFullDisk: what a disk refuses is refused with the reason and certainly not done, whatever the disk's reason; when it takes something again the node goes
// on by itself.
func TestFullDisk(t *testing.T) {
	for _, c := range []struct {
		err  error
		help string
	}{{syscall.ENOSPC, "make room on that file system"}, {syscall.EDQUOT, "raise the quota"}, {syscall.EROFS, "must be writable"}, {syscall.EIO, ""}} {
		t.Run(c.err.Error(), func(t *testing.T) {
			dir := t.TempDir()
			cfg, f := faultyConfig(dir)
			s, err := Open(cfg)
			if err != nil {
				t.Fatal(err)
			}
			f.fails(0, c.err)
			if err := s.Bootstrap(); !errors.Is(err, ErrNotWritten) || s.Begun() {
				t.Errorf("a cluster began on it: %v", err)
			}
			f.works()
			eventually(t, "it begins", func() bool { return s.Bootstrap() == nil })
			propose(t, s, initEntry())
			propose(t, s, revise("a"))
			f.fails(0, c.err)
			for i := range 3 {
				ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
				_, err := s.Propose(ctx, revise("refused"))
				cancel()
				if !errors.Is(err, ErrNotWritten) || !errors.Is(err, c.err) || errors.Is(err, ErrUnknownOutcome) || !strings.Contains(err.Error(), c.help) {
					t.Fatalf("attempt %d: %v", i, err)
				}
			}
			if p := s.Problem(); !strings.Contains(p, c.err.Error()) || !strings.Contains(p, c.help) {
				t.Errorf("says %q", p)
			}
			f.works()
			if r := propose(t, s, revise("b")); r.Revision != 2 {
				t.Errorf("with room again: revision %d, want 2: what was refused took effect", r.Revision)
			}
			eventually(t, "nothing is said any more", func() bool { return s.Problem() == "" })
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			cfg.Hooks = nil
			s = open(t, cfg)
			eventually(t, "the log is applied", s.CaughtUp)
			if st := s.State(); st.Last != 2 || len(st.Revisions) != 2 {
				t.Errorf("after a restart: %+v", st.Revisions)
			}
		})
	}
}

// TestCommitThatIsThere: a commit of the engine's that fails after it was written is taken back, or its outcome is not known. It is never called undone and comes back.
func TestCommitThatIsThere(t *testing.T) {
	dir := t.TempDir()
	cfg, f := faultyConfig(dir)
	s, err := Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Bootstrap(); err != nil {
		t.Fatal(err)
	}
	propose(t, s, initEntry())
	eio := error(syscall.EIO)
	f.late.Store(&eio)
	_, err = s.Propose(t.Context(), revise("taken back"))
	if !errors.Is(err, ErrNotWritten) {
		t.Fatalf("%v", err)
	}
	f.works()
	if r := propose(t, s, revise("a")); r.Revision != 1 {
		t.Errorf("revision %d", r.Revision)
	}
	f.Sync = func() error { // from now on nothing can be taken back
		if e := f.late.Load(); e != nil {
			f.room.Store(-1)
			return *e
		}
		return nil
	}
	f.why.Store(&eio)
	f.late.Store(&eio)
	if _, err = s.Propose(t.Context(), revise("b")); !errors.Is(err, ErrUnknownOutcome) || errors.Is(err, ErrNotWritten) {
		t.Errorf("%v, want that the outcome is not known", err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	cfg.Hooks = nil
	s = open(t, cfg)
	eventually(t, "the log is applied", s.CaughtUp)
	if st := s.State(); st.Last != 2 { // this time it was there
		t.Errorf("after a restart: %+v", st.Revisions)
	}
}

func testDisk(t *testing.T) (*disk, *faulty) {
	t.Helper()
	in, err := raftboltdb.New(raftboltdb.Options{Path: filepath.Join(t.TempDir(), "db")})
	if err != nil {
		t.Fatal(err)
	}
	f := newFaulty()
	d, err := openDisk(&hooked{in, &f.Hooks}, slog.New(slog.DiscardHandler), func(error) {})
	if err != nil {
		t.Fatal(err)
	}
	return d, f
}

// TestRoomForLess: a disk that refuses much and takes little is not said to work before it takes as much again, whatever failed first and whoever asks for less meanwhile.
func TestRoomForLess(t *testing.T) {
	d, f := testDisk(t)
	f.fails(0, syscall.ENOSPC)
	if d.Set([]byte(keyCandidate), []byte("n2")) == nil {
		t.Fatal("a vote was given that is not on disk")
	}
	f.fails(1000, syscall.ENOSPC)
	if err := d.StoreLog(&raft.Log{Index: 1, Term: 1, Data: make([]byte, 2000)}); !errors.Is(err, ErrNotWritten) {
		t.Fatal(err)
	}
	for end := time.Now().Add(3 * diskPace); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		if err := d.room(500); err != nil || d.refuses() == nil {
			t.Fatalf("%v; refuses 2,000 bytes and says %v", err, d.refuses())
		}
	}
	f.fails(2100, syscall.ENOSPC)
	eventually(t, "it takes them", func() bool { return d.refuses() == nil })
	if err := d.StoreLog(&raft.Log{Index: 1, Term: 1, Data: make([]byte, 2000)}); err != nil {
		t.Error(err)
	}
}

// TestTermWaits: Raft panics when a term cannot be written, so that waits. A vote is given when it is on disk, or not. When the store closes, nothing of a term that
// is not on disk gets there, so that it matters to nobody.
func TestTermWaits(t *testing.T) {
	d, f := testDisk(t)
	if err := d.SetUint64([]byte(keyTerm), 3); err != nil {
		t.Fatal(err)
	}
	f.fails(0, syscall.ENOSPC)
	done := make(chan error, 1)
	go func() { done <- d.SetUint64([]byte(keyTerm), 4) }()
	eventually(t, "it is tried", func() bool { return d.refuses() != nil })
	if err := errors.Join(d.SetUint64([]byte(keyVoteTerm), 4), d.Set([]byte(keyCandidate), []byte("n2"))); err == nil {
		t.Error("a vote was given that is not on disk")
	}
	select {
	case err := <-done:
		t.Fatalf("it came back: %v", err)
	case <-time.After(3 * waitPace):
	}
	f.works()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	eventually(t, "the disk is said to work", func() bool { return d.refuses() == nil })
	if err := errors.Join(d.SetUint64([]byte(keyVoteTerm), 4), d.Set([]byte(keyCandidate), []byte("n2"))); err != nil {
		t.Fatal(err)
	}
	f.fails(0, syscall.ENOSPC)
	go func() { done <- d.SetUint64([]byte(keyTerm), 5) }()
	eventually(t, "it is tried", func() bool { return d.refuses() != nil })
	d.shut()
	if err := <-done; err != nil {
		t.Errorf("Raft would panic: %v", err)
	}
	f.works()
	if d.Set([]byte(keyCandidate), []byte("n3")) == nil || d.StoreLog(&raft.Log{Index: 1, Term: 5}) == nil {
		t.Error("something of a term that is not on disk was written")
	}
	again, err := openDisk(d.in, d.log, nil)
	if err != nil {
		t.Fatal(err)
	}
	if h := again.hard; h.term != 4 || h.voted != 4 || string(h.candidate) != "n2" {
		t.Errorf("on disk: %+v", h)
	}
	if err := d.close(); err != nil {
		t.Fatal(err)
	}
}

// TestStartWritesNoTerm: Raft writes its term at each start; on a full disk that must not keep a node from starting.
func TestStartWritesNoTerm(t *testing.T) {
	dir := t.TempDir()
	s := begin(t, dir)
	propose(t, s, revise("a"))
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	cfg, f := faultyConfig(dir)
	f.fails(0, syscall.ENOSPC)
	s = open(t, cfg)
	if _, err := s.Propose(t.Context(), revise("b")); err == nil {
		t.Error("written on a full disk")
	}
	eventually(t, "it says so", func() bool { return strings.Contains(s.Problem(), "no space left") })
	f.works()
	propose(t, s, revise("b"))
}

// TestDamagedVote: bits of the term or the vote that have changed are found at start.
func TestDamagedVote(t *testing.T) {
	dir := t.TempDir()
	s := begin(t, dir)
	b := s.disk.hard.bytes()
	b[0] ^= 1
	if err := s.disk.in.Set(hardKey, b); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(config(dir)); !errors.Is(err, ErrDamaged) || !strings.Contains(err.Error(), "term and vote") {
		t.Errorf("%v", err)
	}
}

// TestShortFile: a file that was cut is found at start, not by a fault in memory, wherever it was cut.
func TestShortFile(t *testing.T) {
	dir := t.TempDir()
	s := begin(t, dir)
	for i := range 5 {
		propose(t, s, revise(strings.Repeat("policy", 5000)+string(rune('a'+i))))
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "raft.db")
	whole, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	found := 0
	for n := len(whole) - 4096; n > 0; n -= 8192 + 1000 {
		if err := os.WriteFile(file, whole[:n], 0o600); err != nil {
			t.Fatal(err)
		}
		s, err := Open(config(dir))
		switch {
		case err == nil: // nothing that is in use was cut off
			eventually(t, "all is there", s.CaughtUp)
			if s.State().Last != 5 {
				t.Errorf("cut at %d: revision %d", n, s.State().Last)
			}
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
		case !errors.Is(err, ErrDamaged) || !strings.Contains(err.Error(), file):
			t.Errorf("cut at %d: %v", n, err)
		default:
			found++
		}
	}
	if found == 0 {
		t.Error("nothing was found")
	}
}

// TestNoHalfSnapshots: a snapshot that a full disk refuses leaves nothing on it.
func TestNoHalfSnapshots(t *testing.T) {
	dir := t.TempDir()
	cfg, f := faultyConfig(dir)
	s := open(t, cfg)
	if err := s.Bootstrap(); err != nil {
		t.Fatal(err)
	}
	propose(t, s, initEntry())
	propose(t, s, revise("a"))
	f.fails(2048, syscall.ENOSPC)
	for range 3 {
		if err := s.Compact(); !errors.Is(err, syscall.ENOSPC) && !strings.Contains(err.Error(), "no space left") {
			t.Fatalf("%v", err)
		}
	}
	list, err := os.ReadDir(filepath.Join(dir, "snapshots"))
	if err != nil || len(list) > 0 {
		t.Errorf("left: %v (%v)", list, err)
	}
	if p := s.Problem(); !strings.Contains(p, "no snapshot can be written, so the log grows") || !strings.Contains(p, "make room") {
		t.Errorf("says %q", p)
	}
	f.works()
	if err := s.Compact(); err != nil || s.Problem() != "" {
		t.Errorf("%v; %q", err, s.Problem())
	}
}
