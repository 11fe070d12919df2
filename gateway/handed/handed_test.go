package handed

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
)

var head = Header{Node: "gw1", Version: "v1", Boot: "b", At: 77, Revision: 3, Digest: "sha256:d"}

// chunks is some of every length.
func chunks() (out [][]byte) {
	dice := rand.New(rand.NewPCG(1, 2))
	for _, n := range []int{1, 7, 4096, MaxChunk, 100} {
		b := make([]byte, n)
		for i := range b {
			b[i] = byte(dice.Uint32())
		}
		out = append(out, b)
	}
	return out
}

func write(t testing.TB, dir string) {
	t.Helper()
	w, err := Create(dir, &head, 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range chunks() {
		if err := w.Chunk(c); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Commit(); err != nil {
		t.Fatal(err)
	}
}

func names(t testing.TB, dir string) (out []string) {
	t.Helper()
	list, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range list {
		out = append(out, e.Name())
	}
	return out
}

// TestTakenOnce: what was written is read whole, by its owner alone, and once: a process that dies with it leaves nothing to the next, one that gives it back all of it.
func TestTakenOnce(t *testing.T) {
	dir := t.TempDir()
	if _, err := Take(dir); !errors.Is(err, ErrNone) {
		t.Fatalf("of nothing: %v", err)
	}
	write(t, dir)
	write(t, dir) // in place of the first
	if st, err := os.Stat(filepath.Join(dir, Name)); err != nil || st.Mode() != 0o600 {
		t.Errorf("%v, %v", st.Mode(), err)
	}
	for _, back := range []bool{true, false} {
		r, err := Take(dir)
		if err != nil {
			t.Fatal(err)
		}
		if !reflect.DeepEqual(r.Header, head) {
			t.Errorf("header %+v", r.Header)
		}
		for i, c := range chunks() {
			if got, err := r.Next(); err != nil || !bytes.Equal(got, c) {
				t.Fatalf("chunk %d: %d bytes, %v", i, len(got), err)
			}
		}
		if _, err := r.Next(); !errors.Is(err, io.EOF) {
			t.Errorf("after the last: %v", err)
		}
		end := r.Done
		if back {
			end = r.GiveBack
		}
		if err := end(); err != nil {
			t.Fatal(err)
		}
	}
	if n := names(t, dir); n != nil {
		t.Errorf("%v are left", n)
	}
	write(t, dir)
	if _, err := Take(dir); err != nil { // and dies
		t.Fatal(err)
	}
	if _, err := Take(dir); !errors.Is(err, ErrUnfinished) {
		t.Errorf("after a process that did not finish: %v", err)
	}
	if _, err := Take(dir); !errors.Is(err, ErrNone) {
		t.Errorf("and then: %v", err)
	}
}

// TestDamaged: not one bit of a file may differ, nor its length.
func TestDamaged(t *testing.T) {
	dir := t.TempDir()
	write(t, dir)
	name := filepath.Join(dir, Name)
	whole, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	refused := func(what string, b []byte) {
		t.Helper()
		if err := os.WriteFile(name, b, 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := Take(dir)
		if err == nil || !errors.Is(err, ErrDamaged) && !strings.Contains(err.Error(), "of format") {
			t.Fatalf("%s: %v", what, err)
		}
		if n := names(t, dir); n != nil {
			t.Fatalf("%s: %v are left", what, n)
		}
	}
	dice := rand.New(rand.NewPCG(3, 4))
	for i := range 400 {
		at := i // each byte of the beginning, and some of the rest
		if i >= 300 {
			at = dice.IntN(len(whole))
		}
		b := bytes.Clone(whole)
		b[at] ^= 1 << dice.IntN(8)
		refused("a bit of byte", b)
	}
	for i := range 20 {
		b := bytes.Clone(whole)
		b[len(b)-1-i] ^= 0x10
		refused("a bit of the end", b)
		refused("cut off", whole[:len(whole)-1-i])
		refused("cut off", whole[:dice.IntN(len(whole))])
	}
	refused("longer", append(bytes.Clone(whole), 0))
	refused("empty", nil)
}

// TestNoHalf: what cannot be written whole is not there.
func TestNoHalf(t *testing.T) {
	dir := t.TempDir()
	write(t, dir)
	w, err := Create(dir, &head, 5000)
	if err != nil {
		t.Fatal(err)
	}
	if err := w.Chunk(nil); err == nil || !strings.Contains(err.Error(), "want 1 to 65536") {
		t.Errorf("an empty chunk: %v", err)
	}
	if err := w.Chunk(make([]byte, MaxChunk+1)); err == nil {
		t.Error("a chunk that is too long is taken")
	}
	for _, c := range chunks() {
		w.Chunk(c)
	}
	if err := w.Commit(); err == nil || !strings.Contains(err.Error(), "longer than") {
		t.Errorf("a file of more than its bound: %v", err)
	}
	if n := names(t, dir); n != nil {
		t.Errorf("%v are left", n)
	}
	if w, err = Create(dir, &head, 1<<20); err != nil {
		t.Fatal(err)
	}
	if err := w.Abort(); err != nil {
		t.Fatal(err)
	}
	if _, err := Create(filepath.Join(dir, "no"), &head, 1<<20); err == nil {
		t.Error("in no directory")
	}
	if n := names(t, dir); n != nil {
		t.Errorf("%v are left", n)
	}
}
