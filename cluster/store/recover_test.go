package store

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"demarc/cluster/command"
)

func contextFor(t testing.TB, d time.Duration) (context.Context, context.CancelFunc) {
	return context.WithTimeout(t.Context(), d)
}

// damageLog flips a bit in every copy of mark in the log's file.
func damageLog(t testing.TB, dir, mark string) {
	t.Helper()
	file := filepath.Join(dir, "raft.db")
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	digest := command.Digest([]byte(mark)) // stands in the entry's header
	if n := bytes.Count(b, []byte(digest)); n == 0 {
		t.Fatal("the entry is not in the file")
	}
	b = bytes.ReplaceAll(b, []byte(digest), []byte(strings.ToUpper(digest[:32])+digest[32:]))
	if err := os.WriteFile(file, b, 0o600); err != nil {
		t.Fatal(err)
	}
}

func by(author string) *command.Entry {
	return &command.Entry{Time: time.Date(2026, 11, 26, 12, 0, 0, 0, time.UTC), Who: command.Who{Author: author}}
}

// TestRecover: one voter of three is left. By accident nothing happens; by its name the cluster goes on from that voter, whoever did it stands in the audit log,
// and members that were lost are refused.
func TestRecover(t *testing.T) {
	x := newTrio(t)
	x.change("a", 0, 1, 2)
	for i, name := range []string{"gw1", "gw2", "witness"} {
		propose(t, x.s[x.leader(0, 1, 2)], &command.Entry{Level: 1, Kind: command.KindMember,
			Member: &command.Member{ID: x.c[i].ID, Name: name, Address: x.c[i].ID, Role: command.RoleGateway, Level: 1}})
	}
	x.level(0, 1, 2)
	// The log of a cluster ends with entries that say nothing: Spread puts one behind each change.
	eventually(t, "a barrier", func() bool { return x.s[x.leader(0, 1, 2)].Barrier(time.Second) == nil })
	last := func() uint64 {
		n, err := x.s[1].disk.LastIndex()
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	eventually(t, "it is there", func() bool { return last() > x.s[1].State().Index })
	if _, err := Recover(x.c[1], "c", by("root")); err == nil || !strings.Contains(err.Error(), "another process uses it") {
		t.Errorf("while it is open: %v", err)
	}
	for i := range 3 {
		x.stop(i)
	}
	before, err := os.ReadFile(filepath.Join(x.c[1].Dir, "raft.db"))
	if err != nil {
		t.Fatal(err)
	}
	for _, id := range []string{"", "d"} {
		r, err := Recover(x.c[1], id, by("root"))
		if err == nil || !strings.Contains(err.Error(), "nothing was changed") || r.Cluster != "c" || len(r.Gone) != 2 {
			t.Errorf("cluster %q: %+v, %v", id, r, err)
		}
	}
	if _, err := Recover(Config{Dir: t.TempDir(), ID: "n1"}, "c", by("root")); err == nil || !strings.Contains(err.Error(), "has no replicated state") {
		t.Errorf("an empty directory: %v", err)
	}
	if after, err := os.ReadFile(filepath.Join(x.c[1].Dir, "raft.db")); err != nil || !bytes.Equal(logOf(t, x.c[1], before), logOf(t, x.c[1], after)) {
		t.Errorf("the log was changed (%v)", err)
	}
	r, err := Recover(x.c[1], "c", by("root"))
	if err != nil || r.Damage != nil || r.State.Serving != 1 {
		t.Fatalf("%+v, %v", r, err)
	}
	x.tr[0], x.tr[2] = nil, nil
	x.start(1)
	s := x.s[1]
	eventually(t, "it knows what was agreed on, without a change", s.CaughtUp)
	if res := propose(t, s, revise("b")); res.Revision != 2 {
		t.Errorf("revision %d", res.Revision)
	}
	st := s.State()
	if len(st.Members) != 1 || st.Members[0].Name != "gw2" || len(st.Gone) != 2 {
		t.Errorf("members %+v, gone %v", st.Members, st.Gone)
	}
	l := st.Audit[len(st.Audit)-2]
	if l.Who.Author != "root" || !strings.Contains(l.What, "recovered with n1 as the only member") {
		t.Errorf("audit: %+v", l)
	}
	if res := propose(t, s, &command.Entry{Level: 1, Kind: command.KindMember, Member: &command.Member{ID: "n0", Name: "gw1", Role: command.RoleGateway, Level: 1}}); res.Refused == nil {
		t.Error("a lost member was taken back under its old id")
	}
}

// logOf leaves out the pages that only opening changes: it is the first page that names the data.
func logOf(t testing.TB, c Config, b []byte) []byte {
	t.Helper()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "raft.db"), b, 0o600); err != nil {
		t.Fatal(err)
	}
	c.Dir, c.Transport = dir, nil
	s, logger, err := newStore(c)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.openFiles(logger); err != nil {
		t.Fatal(err)
	}
	st, err := s.replay()
	if err := errors.Join(err, s.disk.close()); err != nil {
		t.Fatal(err)
	}
	out, err := st.EncodeState()
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// TestRecoverFromCopy: a cluster of one whose log or snapshot is damaged, or gone, says which, and is recovered from its copy with every text.
func TestRecoverFromCopy(t *testing.T) {
	for name, damage := range map[string]func(t *testing.T, dir string){
		"log":         func(t *testing.T, dir string) { damageLog(t, dir, "policy 3") },
		"log is gone": func(t *testing.T, dir string) { must(t, os.Remove(filepath.Join(dir, "raft.db"))) },
		"snapshot": func(t *testing.T, dir string) {
			flip(t, filepath.Join(dir, "snapshots", "*", "state.bin"), "revisions")
		},
		"what the snapshot is of": func(t *testing.T, dir string) { flip(t, filepath.Join(dir, "snapshots", "*", "meta.json"), `"Index":`) },
		"whose the snapshot is": func(t *testing.T, dir string) {
			flip(t, filepath.Join(dir, "snapshots", "*", "meta.json"), `"Suffrage":`)
		},
		"all is short": func(t *testing.T, dir string) {
			must(t, os.Truncate(filepath.Join(dir, "raft.db"), 5000))
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			c := config(dir)
			c.TrailingEntries = 1
			s, err := Open(c)
			must(t, err)
			must(t, s.Bootstrap())
			propose(t, s, initEntry())
			for _, p := range []string{"policy 0", "policy 1", "policy 2"} {
				propose(t, s, revise(p))
			}
			must(t, s.Compact())
			propose(t, s, revise("policy 3"))
			must(t, s.Close())
			damage(t, dir)
			_, err = Open(c)
			if !errors.Is(err, ErrDamaged) || !strings.Contains(err.Error(), dir) {
				t.Fatalf("%v", err)
			}
			t.Log(err)
			r, err := Recover(c, "c", by("root"))
			if err != nil || r.Damage == nil {
				t.Fatalf("%+v, %v", r, err)
			}
			if _, err := os.Stat(r.Aside); err != nil {
				t.Errorf("the damaged files were not put aside: %v", err)
			}
			s = open(t, c)
			if res := propose(t, s, revise("policy 4")); res.Revision != 5 {
				t.Errorf("revision %d", res.Revision)
			}
			for _, d := range s.State().Digests() {
				if _, err := s.Text(d); err != nil {
					t.Error(err)
				}
			}
			if p := s.Problem(); p != "" {
				t.Errorf("says %q", p)
			}
			if l := s.State().Audit[len(s.State().Audit)-2]; !strings.Contains(l.What, "from the copy, since log and snapshots were damaged") {
				t.Errorf("audit: %+v", l)
			}
		})
	}
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// flip changes a bit behind a mark in every file of a pattern.
func flip(t testing.TB, pattern, mark string) {
	t.Helper()
	list, err := filepath.Glob(pattern)
	if err != nil || len(list) == 0 {
		t.Fatalf("no %s (%v)", pattern, err)
	}
	for _, name := range list {
		b, err := os.ReadFile(name)
		must(t, err)
		i := bytes.Index(b, []byte(mark))
		if i < 0 {
			t.Fatalf("%s has no %s", name, mark)
		}
		b[i+len(mark)] ^= 1
		must(t, os.WriteFile(name, b, 0o600))
	}
}

// TestLostEnd: the engine goes back to the commit before when the page that names the last one is damaged. An entry that was carried out is then gone, and that is damage.
func TestLostEnd(t *testing.T) {
	dir := t.TempDir()
	s := begin(t, dir)
	propose(t, s, revise("a"))
	propose(t, s, revise("b"))
	must(t, s.Close())
	file := filepath.Join(dir, "raft.db")
	b, err := os.ReadFile(file)
	must(t, err)
	page := 0
	if txid(b[4096:]) > txid(b) {
		page = 4096
	}
	b[page+60] ^= 1
	must(t, os.WriteFile(file, b, 0o600))
	if _, err := Open(config(dir)); !errors.Is(err, ErrDamaged) || !strings.Contains(err.Error(), "its end is lost") {
		t.Errorf("%v", err)
	}
}

// txid is which commit one of bbolt's first two pages is of: a header of 16 bytes, then 48 before it.
func txid(page []byte) uint64 { return binary.LittleEndian.Uint64(page[16+48:]) }

// TestDamagedSnapshotThatIsNotNeeded: where the log has everything, a damaged snapshot is put aside and the node goes on.
func TestDamagedSnapshotThatIsNotNeeded(t *testing.T) {
	dir := t.TempDir()
	s := begin(t, dir)
	propose(t, s, revise("a"))
	must(t, s.Compact())
	propose(t, s, revise("b"))
	must(t, s.Close())
	flip(t, filepath.Join(dir, "snapshots", "*", "state.bin"), "revisions")
	s = open(t, config(dir))
	if r := propose(t, s, revise("c")); r.Revision != 3 {
		t.Errorf("revision %d", r.Revision)
	}
	if _, err := os.Stat(filepath.Join(dir, "damaged-snapshot", "state.bin")); err != nil {
		t.Error(err)
	}
	must(t, s.Compact())
}

// TestLostText: a text of an old revision that is damaged is named and stands in nobody's way.
func TestLostText(t *testing.T) {
	dir := t.TempDir()
	c := config(dir)
	c.TrailingEntries = 1
	s, err := Open(c)
	must(t, err)
	must(t, s.Bootstrap())
	propose(t, s, initEntry())
	propose(t, s, revise("a"))
	propose(t, s, revise("b"))
	must(t, s.Compact())
	propose(t, s, revise("c"))
	must(t, s.Compact())
	must(t, s.Close())
	text := filepath.Join(dir, "texts", command.Digest([]byte("a")))
	must(t, os.WriteFile(text, []byte("something else"), 0o600))
	s = open(t, c)
	if p := s.Problem(); !strings.Contains(p, text) {
		t.Errorf("says %q", p)
	}
	propose(t, s, revise("d")) // the fourth: three are kept
	if p := s.Problem(); p != "" {
		t.Errorf("says %q of a text that is not kept any more", p)
	}
}
