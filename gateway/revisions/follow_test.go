package revisions

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"syscall"
	"testing"
)

func numbersOf(t *testing.T, s *Store) (out []uint64) {
	t.Helper()
	list, _, err := s.List()
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range list {
		out = append(out, r.Number)
	}
	return out
}

func saveAs(t *testing.T, s *Store, n uint64, text string) Revision {
	t.Helper()
	r, err := s.SaveAs(n, []byte(text), meta(int(n)))
	if err != nil || r.Number != n || string(r.Text) != text {
		t.Fatalf("%+v, %v", r, err)
	}
	return r
}

// Numbers that others give may have gaps; the newest is served, ten stay.
func TestSaveAs(t *testing.T) {
	dir := t.TempDir()
	s := mustOpen(t, dir)
	var last Revision
	for i := range 15 {
		last = saveAs(t, s, uint64(3+2*i), fmt.Sprint("text ", i))
	}
	wantLatest(t, dir, last, 0)
	if got := numbersOf(t, s); len(got) != Keep || got[0] != 31 || got[Keep-1] != 13 {
		t.Errorf("kept: %v", got)
	}
	if r := mustSave(t, s, "by itself", 1); r.Number != 32 {
		t.Errorf("the next number is %d", r.Number)
	}
	for _, n := range []uint64{0, 1 << 63} {
		if _, err := s.SaveAs(n, nil, Meta{}); err == nil {
			t.Errorf("number %d was taken", n)
		}
	}
}

// What is kept already is not written again, what is damaged is mended.
func TestSaveAsAgain(t *testing.T) {
	dir := t.TempDir()
	s := mustOpen(t, dir)
	want := saveAs(t, s, 7, "text")
	fs := &faulty{fail: 0, err: syscall.EROFS, crash: true}
	again, err := open(dir, fs)
	if err != nil {
		t.Fatal(err)
	}
	if r, err := again.SaveAs(7, []byte("text"), meta(9)); err != nil || !reflect.DeepEqual(r.Meta, want.Meta) || fs.steps > 0 {
		t.Errorf("%+v, %v, steps %v", r, err, fs.names)
	}
	if err := os.Truncate(s.path(7), 30); err != nil {
		t.Fatal(err)
	}
	wantLatest(t, dir, saveAs(t, s, 7, "text"), 0)
}

// What is of another history is set aside, not lost, and never the newest; also when more of it is there than is kept.
func TestSaveAsOfAnotherHistory(t *testing.T) {
	dir := t.TempDir()
	s := mustOpen(t, dir)
	for n := uint64(1); n <= 14; n++ {
		saveAs(t, s, n, fmt.Sprint("old ", n))
	}
	wantLatest(t, dir, saveAs(t, s, 5, "new 5"), 0)
	if got := numbersOf(t, s); len(got) != 1 {
		t.Errorf("kept: %v", got)
	}
	files, err := filepath.Glob(filepath.Join(dir, aside+"*"))
	if err != nil || len(files) != 10 {
		t.Errorf("set aside: %v, %v", files, err)
	}
	old, err := os.ReadFile(filepath.Join(dir, aside+"0000000005.revision"))
	if err != nil || !strings.HasSuffix(string(old), "old 5") {
		t.Errorf("%q, %v", old, err)
	}
	wantLatest(t, dir, saveAs(t, s, 6, "new 6"), 0)
}

// Prove fails with the words of Save, and leaves nothing behind.
func TestProve(t *testing.T) {
	dir := t.TempDir()
	s := mustOpen(t, dir)
	before := mustSave(t, s, "before", 1)
	if err := s.Prove([]byte("text")); err != nil {
		t.Fatal(err)
	}
	if err := s.Prove(make([]byte, MaxText+1)); err == nil {
		t.Error("a text that is too large can be kept")
	}
	for i, name := range []string{"create", "write", "sync", "close"} {
		s, err := open(dir, &faulty{fail: i, err: syscall.ENOSPC})
		if err != nil {
			t.Fatal(err)
		}
		want := "keep revision: " + name + ": no space left on device (make room on that file system and apply again); what was kept before is untouched"
		if err := s.Prove([]byte("text")); err == nil || err.Error() != want || !errors.Is(err, syscall.ENOSPC) {
			t.Errorf("got  %v\nwant %s", err, want)
		}
	}
	if left, _ := filepath.Glob(filepath.Join(dir, "*.tmp")); len(left) != 0 {
		t.Errorf("left behind: %v", left)
	}
	wantLatest(t, dir, before, 0)
}

// A number that was given and has no file is not given again, also after a restart; a damaged note is none.
func TestReserve(t *testing.T) {
	dir := t.TempDir()
	s := mustOpen(t, dir)
	last := func(want uint64) {
		t.Helper()
		if n, err := mustOpen(t, dir).Last(); err != nil || n != want {
			t.Errorf("last %d, %v, want %d", n, err, want)
		}
	}
	last(0)
	saveAs(t, s, 4, "four")
	last(4)
	if err := s.Reserve(3); err != nil {
		t.Fatal(err)
	}
	last(4)
	if err := s.Reserve(9); err != nil {
		t.Fatal(err)
	}
	last(9)
	if r := mustSave(t, s, "next", 1); r.Number != 10 {
		t.Errorf("the next number is %d", r.Number)
	}
	if err := os.WriteFile(filepath.Join(dir, "last"), []byte("\x00\xff"), 0o600); err != nil {
		t.Fatal(err)
	}
	last(10)
	broken, err := open(dir, &faulty{fail: 0, err: syscall.EROFS, crash: true})
	if err != nil {
		t.Fatal(err)
	}
	if err := broken.Reserve(20); err == nil || !strings.Contains(err.Error(), "the data directory must be writable") {
		t.Errorf("%v", err)
	}
}
