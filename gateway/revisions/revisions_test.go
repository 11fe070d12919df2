package revisions

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

var when = time.Date(2026, 1, 2, 3, 4, 5, 678, time.UTC)

func meta(i int) Meta {
	return Meta{Author: fmt.Sprintf("operator%d", i), Comment: "because\nof \"this\"", Time: when.Add(time.Duration(i) * time.Hour), Source: "/etc/demarc/policy.toml"}
}

func mustOpen(t *testing.T, dir string) *Store {
	t.Helper()
	s, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func mustSave(t *testing.T, s *Store, text string, i int) Revision {
	t.Helper()
	r, err := s.Save([]byte(text), meta(i))
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// wantLatest fails unless the newest intact revision is want.
func wantLatest(t *testing.T, dir string, want Revision, problems int) {
	t.Helper()
	got, bad, err := mustOpen(t, dir).Latest()
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Fatal(d)
	}
	if len(bad) != problems {
		t.Fatalf("%d problems, want %d: %v", len(bad), problems, bad)
	}
}

func TestSaveAndRead(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "a", "revisions")
	s := mustOpen(t, dir)
	if _, problems, err := s.Latest(); !errors.Is(err, ErrNone) || problems != nil {
		t.Fatalf("empty store: %v %v", problems, err)
	}
	var all []Revision
	for i, text := range []string{"schema = 1\n", "", "no line end", "\x00\xff\n\n", strings.Repeat("x", 100_000)} {
		r := mustSave(t, s, text, i)
		if r.Number != uint64(i+1) || string(r.Text) != text || len(r.Digest) != 64 {
			t.Fatalf("saved %d %q", r.Number, r.Digest)
		}
		wantLatest(t, dir, Revision{r.Number, r.Digest, r.Meta, bytes.Clone(append([]byte{}, text...))}, 0)
		all = append(all, r)
	}
	list, problems, err := s.List()
	if err != nil || problems != nil || len(list) != len(all) {
		t.Fatalf("%d %v %v", len(list), problems, err)
	}
	for i, r := range list {
		want := all[len(all)-1-i]
		got, err := s.Get(r.Number)
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(string(want.Text), string(got.Text)); d != "" || r.Text != nil || r.Digest != want.Digest {
			t.Fatal(d, r)
		}
	}
	if _, err := s.Get(99); !errors.Is(err, ErrNotKept) {
		t.Fatal(err)
	}
}

func TestKeepsTheLastTen(t *testing.T) {
	dir := t.TempDir()
	s := mustOpen(t, dir)
	for i := range 25 {
		mustSave(t, s, fmt.Sprint("text ", i), i)
	}
	list, _, err := s.List()
	if err != nil || len(list) != Keep || list[0].Number != 25 || list[Keep-1].Number != 16 {
		t.Fatalf("%v %v", list, err)
	}
	if _, err := s.Get(15); !errors.Is(err, ErrNotKept) {
		t.Fatal(err)
	}
}

// Damaged files must not push intact ones out, and a number whose file is damaged is not used again.
func TestPruneCountsIntactOnly(t *testing.T) {
	dir := t.TempDir()
	s := mustOpen(t, dir)
	for i := range Keep {
		mustSave(t, s, "text", i)
	}
	for n := uint64(2); n <= Keep; n++ {
		if err := os.Truncate(s.path(n), 20); err != nil {
			t.Fatal(err)
		}
	}
	r := mustSave(t, s, "after", 0)
	if r.Number != Keep+1 {
		t.Fatalf("number %d", r.Number)
	}
	list, problems, err := s.List()
	if err != nil || len(list) != 2 || list[1].Number != 1 || len(problems) != Keep-1 {
		t.Fatalf("%v %v %v", list, problems, err)
	}
}

func TestTruncatedAtEveryByte(t *testing.T) {
	dir := t.TempDir()
	s := mustOpen(t, dir)
	before := mustSave(t, s, "the one before\n", 1)
	last := mustSave(t, s, "schema = 1\nname = \"torn\"\n", 2)
	whole, err := os.ReadFile(s.path(2))
	if err != nil {
		t.Fatal(err)
	}
	for n := range len(whole) {
		if err := os.WriteFile(s.path(2), whole[:n], 0o600); err != nil {
			t.Fatal(err)
		}
		wantLatest(t, dir, before, 1)
	}
	// What a crash leaves on some file systems: the right length, but zeros.
	for n := range len(whole) {
		if err := os.WriteFile(s.path(2), append(bytes.Clone(whole[:n]), make([]byte, len(whole)-n)...), 0o600); err != nil {
			t.Fatal(err)
		}
		wantLatest(t, dir, before, 1)
	}
	if err := os.WriteFile(s.path(2), whole, 0o600); err != nil {
		t.Fatal(err)
	}
	wantLatest(t, dir, last, 0)
}

func TestEveryBitFlip(t *testing.T) {
	dir := t.TempDir()
	s := mustOpen(t, dir)
	mustSave(t, s, "schema = 1\n", 1)
	whole, err := os.ReadFile(s.path(1))
	if err != nil {
		t.Fatal(err)
	}
	for i := range len(whole) * 8 {
		whole[i/8] ^= 1 << (i % 8)
		if r, err := decode(whole); err == nil {
			t.Fatalf("bit %d: served as %+v", i, r)
		}
		whole[i/8] ^= 1 << (i % 8)
	}
	if _, err := decode(whole); err != nil {
		t.Fatal(err)
	}
	if _, err := decode(append(whole, 'x')); err == nil {
		t.Fatal("a byte more was served")
	}
}

func TestProblemNamesTheFile(t *testing.T) {
	dir := t.TempDir()
	s := mustOpen(t, dir)
	mustSave(t, s, "a", 1)
	if err := os.Rename(s.path(1), s.path(7)); err != nil {
		t.Fatal(err)
	}
	_, problems, err := s.Latest()
	if !errors.Is(err, ErrNone) || len(problems) != 1 || problems[0].String() != s.path(7)+": is revision 1 under the name of another" {
		t.Fatalf("%v %v", problems, err)
	}
}

// faulty fails one step, or that one and all after it as a crash does.
type faulty struct {
	disk
	fail  int // the number of the step, from 0
	err   error
	crash bool
	steps int
	names []string
}

func (f *faulty) step(name string) error {
	n := f.steps
	f.steps++
	f.names = append(f.names, name)
	if n == f.fail || f.crash && n > f.fail {
		return fmt.Errorf("%s: %w", name, f.err)
	}
	return nil
}

func (f *faulty) Create(name string) (file, error) {
	if err := f.step("create"); err != nil {
		return nil, err
	}
	inner, err := f.disk.Create(name)
	return &faultyFile{inner, f}, err
}

func (f *faulty) Rename(a, b string) error {
	if err := f.step("rename"); err != nil {
		return err
	}
	return f.disk.Rename(a, b)
}

func (f *faulty) Remove(name string) error {
	if err := f.step("remove"); err != nil {
		return err
	}
	return f.disk.Remove(name)
}

func (f *faulty) SyncDir(dir string) error {
	if err := f.step("sync directory"); err != nil {
		return err
	}
	return f.disk.SyncDir(dir)
}

type faultyFile struct {
	file
	f *faulty
}

// Write puts half of the bytes down before it fails: a full disk does that.
func (f *faultyFile) Write(b []byte) (int, error) {
	if err := f.f.step("write"); err != nil {
		n, _ := f.file.Write(b[:len(b)/2])
		return n, err
	}
	return f.file.Write(b)
}

func (f *faultyFile) Sync() error {
	if err := f.f.step("sync"); err != nil {
		return err
	}
	return f.file.Sync()
}

func (f *faultyFile) Close() error {
	err := f.f.step("close")
	return errors.Join(err, f.file.Close())
}

// Each step of a Save fails once: the caller hears of it, and the old revision stays the newest.
func TestFailedStepLeavesTheOldState(t *testing.T) {
	steps := []string{"create", "write", "sync", "close", "rename", "sync directory"}
	for i, name := range steps {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			before := mustSave(t, mustOpen(t, dir), "before", 1)
			fs := &faulty{fail: i, err: syscall.ENOSPC}
			s, err := open(dir, fs)
			if err != nil {
				t.Fatal(err)
			}
			_, err = s.Save([]byte("after"), meta(2))
			want := "keep revision 2: " + name + ": no space left on device (make room on that file system and apply again); what was kept before is untouched"
			if err == nil || err.Error() != want || !errors.Is(err, syscall.ENOSPC) {
				t.Fatalf("got  %v\nwant %s", err, want)
			}
			if fs.names[i] != name {
				t.Fatalf("step %d was %s: this table is out of date", i, fs.names[i])
			}
			wantLatest(t, dir, before, 0)
			if left, _ := filepath.Glob(filepath.Join(dir, "*.tmp")); len(left) != 0 {
				t.Fatalf("left behind: %v", left)
			}
			after := mustSave(t, mustOpen(t, dir), "after", 3)
			wantLatest(t, dir, after, 0)
		})
	}
}

// The process dies before step i, at each i up to the last: what is found is the old revision or the whole new one.
func TestCrashBetweenSteps(t *testing.T) {
	for i := range 8 {
		dir := t.TempDir()
		var before Revision
		for j := range Keep {
			before = mustSave(t, mustOpen(t, dir), "before", j)
		}
		fs := &faulty{fail: i, err: errors.New("crashed"), crash: true}
		s, err := open(dir, fs)
		if err != nil {
			t.Fatal(err)
		}
		after, err := s.Save([]byte("after"), meta(99))
		got, problems, latestErr := mustOpen(t, dir).Latest()
		if latestErr != nil || len(problems) != 0 {
			t.Fatalf("step %d: %v %v", i, problems, latestErr)
		}
		switch {
		case err == nil && (got.Number != after.Number || string(got.Text) != "after"):
			t.Fatalf("step %d: acknowledged, but %d is served", i, got.Number)
		case err != nil && got.Number != before.Number && string(got.Text) != "after":
			t.Fatalf("step %d: %d %q is served", i, got.Number, got.Text)
		}
		if (err == nil) != (i >= 6) { // six steps make it safe; what comes then is pruning
			t.Fatalf("step %d (%v): %v", i, fs.names, err)
		}
		mustSave(t, mustOpen(t, dir), "next", 1)
	}
}

func TestReadOnlyDirectory(t *testing.T) {
	dir := t.TempDir()
	before := mustSave(t, mustOpen(t, dir), "before", 1)
	// Root ignores mode bits, so the refusal comes through the seam, as the kernel words it.
	s, err := open(dir, &faulty{fail: 0, err: syscall.EROFS, crash: true})
	if err != nil {
		t.Fatal(err)
	}
	_, err = s.Save([]byte("after"), meta(2))
	if err == nil || !strings.Contains(err.Error(), "read-only file system (the data directory must be writable)") {
		t.Fatal(err)
	}
	if got, _, err := s.Latest(); err != nil || got.Number != before.Number {
		t.Fatalf("%v %v", got, err)
	}
}

func TestOpenWhereAFileIs(t *testing.T) {
	name := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(name, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(name); err == nil || !strings.Contains(err.Error(), name) {
		t.Fatalf("got %v, want an error that names %s", err, name)
	}
}

func TestTooLarge(t *testing.T) {
	s := mustOpen(t, t.TempDir())
	if _, err := s.Save(make([]byte, MaxText+1), Meta{}); err == nil {
		t.Fatal("kept")
	}
	if _, err := s.Save(nil, Meta{Comment: strings.Repeat("x", maxMeta)}); err == nil {
		t.Fatal("kept")
	}
	if _, err := s.Save(make([]byte, MaxText), Meta{}); err != nil {
		t.Fatal(err)
	}
	if r, _, err := s.Latest(); err != nil || len(r.Text) != MaxText {
		t.Fatalf("%d %v", len(r.Text), err)
	}
}

func FuzzDecode(f *testing.F) {
	r := Revision{Number: 3, Meta: meta(1), Text: []byte("schema = 1\n")}
	whole, err := encode(&r)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(whole)
	f.Add(whole[:len(whole)/2])
	f.Add([]byte(magic))
	rnd := rand.New(rand.NewPCG(1, 2))
	for range 10 {
		b := bytes.Clone(whole)
		b[rnd.IntN(len(b))] = byte(rnd.Uint32())
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		r, err := decode(data)
		if err != nil {
			return
		}
		again, err := encode(&r)
		if err != nil {
			t.Fatal(err)
		}
		if back, err := decode(again); err != nil || !bytes.Equal(back.Text, r.Text) || back.Number != r.Number {
			t.Fatalf("%+v is not %+v: %v", back, r, err)
		}
	})
}
