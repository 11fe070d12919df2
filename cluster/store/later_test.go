package store

import (
	"bytes"
	"encoding/hex"
	"errors"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/hashicorp/raft"

	"demarc/cluster/command"
)

var update = flag.Bool("update", false, "write the golden files of this level again; those of older levels are never written again")

// goldenState is what the golden files hold.
func goldenState(t *testing.T) *command.State {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("testdata", "level1", "state.json"))
	if err != nil {
		t.Fatal(err)
	}
	s, err := command.DecodeState(b)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// TestGoldenFiles: a snapshot and the copy of the state as level 1 has written them are read.
func TestGoldenFiles(t *testing.T) {
	want := goldenState(t)
	for name, write := range map[string]func(dir string) ([]byte, error){
		"snapshot": func(string) ([]byte, error) {
			var b bytes.Buffer
			err := (&image{want}).write(&b)
			return b.Bytes(), err
		},
		"copy": func(dir string) ([]byte, error) {
			if err := writeKept(dir, want); err != nil {
				return nil, err
			}
			return os.ReadFile(filepath.Join(dir, keptFile))
		},
	} {
		file := filepath.Join("testdata", "level1", name+".hex")
		if *update && command.Level == 1 {
			b, err := write(t.TempDir())
			if err == nil {
				err = os.MkdirAll(filepath.Dir(file), 0o755)
			}
			if err == nil {
				err = os.WriteFile(file, []byte(hex.EncodeToString(b)+"\n"), 0o644)
			}
			if err != nil {
				t.Fatal(err)
			}
		}
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		b, err := hex.DecodeString(strings.TrimSpace(string(text)))
		if err != nil {
			t.Fatal(err)
		}
		dir := t.TempDir()
		texts, err := openTexts(filepath.Join(dir, "texts"), nil)
		if err != nil {
			t.Fatal(err)
		}
		var got *command.State
		if name == "snapshot" {
			got, err = (&fsm{texts: texts}).read(bytes.NewReader(b))
		} else if err = os.WriteFile(filepath.Join(dir, keptFile), b, 0o600); err == nil {
			got, err = readKept(dir)
		}
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if d := cmp.Diff(want, got); d != "" {
			t.Errorf("%s:\n%s", name, d)
		}
	}
}

// TestSnapshotOfALaterRelease: it is named as that and not as damage, the snapshot before it is not taken in its place, and nothing is changed.
func TestSnapshotOfALaterRelease(t *testing.T) {
	dir := t.TempDir()
	c := config(dir)
	later := false
	c.Hooks = &Hooks{Picture: func(s *command.State) *command.State {
		if !later {
			return s
		}
		o := *s
		o.Level = command.Level + 1
		return &o
	}}
	s, err := Open(c)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Bootstrap(); err != nil {
		t.Fatal(err)
	}
	propose(t, s, initEntry())
	propose(t, s, revise("a"))
	if err := s.Compact(); err != nil {
		t.Fatal(err)
	}
	later = true
	propose(t, s, revise("b"))
	if err := s.Compact(); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	before, _ := os.ReadDir(filepath.Join(dir, "snapshots"))
	s, err = Open(c)
	if err == nil {
		s.Close()
	}
	if !errors.Is(err, command.ErrLater) || errors.Is(err, ErrDamaged) || !strings.Contains(err.Error(), "upgrade this node") {
		t.Fatalf("opened: %v", err)
	}
	if after, _ := os.ReadDir(filepath.Join(dir, "snapshots")); len(after) != len(before) {
		t.Errorf("%d snapshots became %d", len(before), len(after))
	}
	name := filepath.Join(dir, "snapshots", before[len(before)-1].Name(), "state.bin")
	if b, err := os.ReadFile(name); err != nil || !bytes.Contains(b, []byte(`{"level":2,"state":`)) {
		t.Errorf("the newest snapshot is not of a later release: %v", err)
	}
}

// TestSnapshotOfALaterReleaseArrives: a member that gets such a snapshot from the leader stops with a say, and goes on when it can read one again.
func TestSnapshotOfALaterReleaseArrives(t *testing.T) {
	f := &fsm{}
	f.state.Store(&command.State{})
	var b bytes.Buffer
	if err := (&image{&command.State{Cluster: "c", Level: command.Level + 1}}).write(&b); err != nil {
		t.Fatal(err)
	}
	if err := f.Restore(&wrapped{bytes.NewReader(b.Bytes()), nopCloser{}}); !errors.Is(err, command.ErrLater) {
		t.Fatal(err)
	}
	s := &Store{fsm: f}
	if why := s.Stopped(); !strings.Contains(why, "upgrade this node") {
		t.Errorf("stopped: %q", why)
	}
	if o := f.Apply(&raft.Log{Index: 9, Data: []byte("x")}).(outcome); o.err == nil || f.state.Load().Index != 0 {
		t.Errorf("it goes on: %+v", o)
	}
}

type nopCloser struct{}

func (nopCloser) Close() error { return nil }
