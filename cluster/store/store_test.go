package store

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"demarc/cluster/command"
)

func revise(text string) *command.Entry {
	return &command.Entry{Level: 1, Kind: command.KindRevise, Text: []byte(text), Revise: &command.Revise{Digest: command.Digest([]byte(text)), Bytes: len(text)}}
}

func propose(t testing.TB, s *Store, e *command.Entry) command.Result {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		r, err := s.Propose(context.Background(), e)
		if err == nil {
			return r
		}
		if !errors.Is(err, ErrNotLeader) || time.Now().After(end) {
			t.Fatal(err)
		}
	}
}

func config(dir string) Config {
	return Config{Dir: dir, ID: "n1", Heartbeat: 60 * time.Millisecond, Election: 60 * time.Millisecond, Lease: 40 * time.Millisecond}
}

func begin(t testing.TB, dir string) *Store {
	t.Helper()
	s, err := Open(config(dir))
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Bootstrap(); err != nil {
		t.Fatal(err)
	}
	propose(t, s, &command.Entry{Level: 1, Kind: command.KindInit, Init: &command.Init{Cluster: "c", Bounds: command.Bounds{Revisions: 3, Age: time.Hour, TextBytes: 1 << 30, Audit: 100}}})
	return s
}

func TestRestartAndCompaction(t *testing.T) {
	dir := t.TempDir()
	s := begin(t, dir)
	for i := range 6 {
		propose(t, s, revise(fmt.Sprint("policy ", i)))
		if i == 3 {
			if err := s.Compact(); err != nil {
				t.Fatal(err)
			}
		}
	}
	want, err := s.State().EncodeState()
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Bootstrap(); err == nil || !strings.Contains(err.Error(), "already") {
		t.Errorf("begun twice: %v", err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	var told []uint64
	c := config(dir)
	c.Applied = func(a Applied) { told = append(told, a.State.Index) }
	s, err = Open(c)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	propose(t, s, &command.Entry{Level: 1, Kind: command.KindConfirm, Confirm: &command.Confirm{Revision: 99}}) // refused, and a sign that all is applied
	got := *s.State()
	got.Audit = got.Audit[:len(got.Audit)-1]
	var before command.State
	if b, err := command.DecodeState(want); err != nil {
		t.Fatal(err)
	} else {
		before = *b
	}
	got.Index = before.Index
	b, err := got.EncodeState()
	if err != nil || !bytes.Equal(b, want) {
		t.Errorf("after a restart:\n%s\nbefore:\n%s", b, want)
	}
	for _, d := range got.Digests() {
		if _, err := s.Text(d); err != nil {
			t.Error(err)
		}
	}
	files, err := os.ReadDir(filepath.Join(dir, "texts"))
	if err != nil || len(files) != 3 {
		t.Errorf("%d texts on disk (%v), want the 3 that are kept", len(files), err)
	}
	if len(told) == 0 {
		t.Error("entries after the snapshot were not told again")
	}
}

func TestSecondProcess(t *testing.T) {
	dir := t.TempDir()
	s := begin(t, dir)
	defer s.Close()
	if _, err := Open(config(dir)); err == nil || !strings.Contains(err.Error(), "another process uses it") {
		t.Errorf("%v", err)
	}
}

// TestDamage flips bits and cuts files: each is found at start, under the name of the file.
func TestDamage(t *testing.T) {
	dir := t.TempDir()
	s := begin(t, dir)
	mark := "a text that can be found in the file"
	propose(t, s, revise(mark))
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "raft.db")
	whole, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	damage := func(name string, fn func(b []byte) []byte, says string) {
		t.Helper()
		if err := os.WriteFile(file, fn(bytes.Clone(whole)), 0o600); err != nil {
			t.Fatal(err)
		}
		s, err := Open(config(dir))
		if err == nil {
			s.Close()
			t.Errorf("%s: opened", name)
			return
		}
		if !errors.Is(err, ErrDamaged) || !strings.Contains(err.Error(), file) || !strings.Contains(err.Error(), says) {
			t.Errorf("%s: %v", name, err)
		}
	}
	damage("a bit of every copy of an entry", func(b []byte) []byte {
		n := 0
		for i := 0; ; n++ {
			j := bytes.Index(b[i:], []byte(mark))
			if j < 0 {
				break
			}
			b[i+j] ^= 4
			i += j + 1
		}
		if n == 0 {
			t.Fatal("the text is not in the file")
		}
		return b
	}, "checksum does not match")
	damage("both first pages", func(b []byte) []byte { clear(b[:8192]); return b }, "")
	damage("nothing that is a database", func([]byte) []byte { return bytes.Repeat([]byte("x"), 40000) }, "")

	if err := os.WriteFile(file, whole, 0o600); err != nil {
		t.Fatal(err)
	}
	text := filepath.Join(dir, "texts", command.Digest([]byte(mark)))
	if err := os.WriteFile(text, []byte("something else"), 0o600); err != nil {
		t.Fatal(err)
	}
	s, err = Open(config(dir))
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	propose(t, s, &command.Entry{Level: 1, Kind: command.KindConfirm, Confirm: &command.Confirm{Revision: 9}})
	if b, err := s.Text(command.Digest([]byte(mark))); err != nil || string(b) != mark {
		t.Errorf("a damaged text was not mended from the log: %q, %v", b, err)
	}
}

type silent struct{ end chan struct{} }

func (f silent) Error() error { <-f.end; return nil }

// TestNoAnswerAtTheEnd: Raft leaves some of those who wait without an answer when it ends. They get one: that the outcome is not known.
func TestNoAnswerAtTheEnd(t *testing.T) {
	s := begin(t, t.TempDir())
	f := silent{make(chan struct{})}
	defer close(f.end)
	done := make(chan error, 1)
	go func() { done <- s.wait(f) }()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-done:
		if !errors.Is(err, ErrUnknownOutcome) {
			t.Errorf("%v", err)
		}
	case <-time.After(10 * time.Second):
		t.Fatal("it waits for ever")
	}
	if err := s.Barrier(time.Second); err == nil {
		t.Error("a barrier in a closed store")
	}
}

// TestUnreadableEntryStops: what this build cannot read stops the node where it is, with a say, and it stays so until a build that can.
func TestUnreadableEntryStops(t *testing.T) {
	s := begin(t, t.TempDir())
	defer s.Close()
	propose(t, s, revise("a"))
	later := []byte{1, 26}
	later = append(later, `{"level":2,"kind":"quota"}`...)
	if err := s.raft.Apply(later, time.Second).Error(); err != nil {
		t.Fatal(err)
	}
	if p := s.Problem(); !strings.Contains(p, `"quota" of level 2`) || !strings.Contains(p, "upgrade this node") {
		t.Errorf("says %q", p)
	}
	if _, err := s.Propose(t.Context(), revise("b")); err == nil || !strings.Contains(err.Error(), "stopped applying") {
		t.Errorf("goes on: %v", err)
	}
	if s.State().Serving != 1 {
		t.Errorf("serving %d", s.State().Serving)
	}
	if err := s.Compact(); err == nil {
		t.Error("a snapshot was made of a node that stands still: the entry would be lost")
	}
}

// TestFullDiskOwesTexts: a text that the disk refuses is served from memory, is not lost by a snapshot, and is written when it can be.
func TestFullDiskOwesTexts(t *testing.T) {
	dir := t.TempDir()
	s := begin(t, dir)
	defer s.Close()
	texts := filepath.Join(dir, "texts")
	if err := os.Rename(texts, texts+"-away"); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(texts, nil, 0o600); err != nil { // a directory that nothing can be made in
		t.Fatal(err)
	}
	r := propose(t, s, revise("owed"))
	if b, err := s.Text(command.Digest([]byte("owed"))); err != nil || string(b) != "owed" || r.Revision != 1 {
		t.Errorf("%q, %v", b, err)
	}
	if p := s.Problem(); !strings.Contains(p, "keep text") {
		t.Errorf("says %q", p)
	}
	if err := s.Compact(); err == nil {
		t.Error("a snapshot was made without the text")
	}
	if err := errors.Join(os.Remove(texts), os.Rename(texts+"-away", texts)); err != nil {
		t.Fatal(err)
	}
	if err := s.Compact(); err != nil || s.Problem() != "" {
		t.Errorf("%v; %q", err, s.Problem())
	}
	if _, err := os.Stat(filepath.Join(texts, command.Digest([]byte("owed")))); err != nil {
		t.Error(err)
	}
}
