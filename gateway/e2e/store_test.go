package e2e

import (
	"context"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"demarc/cluster/command"
	"demarc/cluster/store"
)

// A real file system that is full refuses a change with the reason, and nothing of it is there later. With room again the node goes on by itself, and a start on the full disk works.
func TestReplicatedStateOnFullDisk(t *testing.T) {
	dir := t.TempDir()
	check(t, unix.Mount("dm-e2e", dir, "tmpfs", 0, "size=12m"))
	t.Cleanup(func() { check(t, unix.Unmount(dir, unix.MNT_DETACH)) })
	cfg := store.Config{Dir: filepath.Join(dir, "cluster"), ID: "n1", Heartbeat: 60 * time.Millisecond, Election: 60 * time.Millisecond, Lease: 40 * time.Millisecond}
	open := func() *store.Store {
		t.Helper()
		s, err := store.Open(cfg)
		check(t, err)
		return s
	}
	propose := func(s *store.Store, e *command.Entry) (command.Result, error) {
		t.Helper()
		for end := time.Now().Add(10 * time.Second); ; time.Sleep(5 * time.Millisecond) {
			ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
			r, err := s.Propose(ctx, e)
			cancel()
			if !errors.Is(err, store.ErrNotLeader) || time.Now().After(end) {
				return r, err
			}
		}
	}
	revise := func(s *store.Store, c byte, size int) (command.Result, error) {
		text, dice := make([]byte, size), rand.New(rand.NewPCG(uint64(c), 1)) // nothing that becomes small when it is packed
		for i := range text {
			text[i] = byte(33 + dice.IntN(94))
		}
		return propose(s, &command.Entry{Level: 1, Kind: command.KindRevise, Text: text, Revise: &command.Revise{Digest: command.Digest(text), Bytes: size}})
	}
	s := open()
	check(t, s.Bootstrap())
	_, err := propose(s, &command.Entry{Level: 1, Kind: command.KindInit, Init: &command.Init{Cluster: "c", Bounds: command.DefaultBounds()}})
	check(t, err)
	_, err = revise(s, 'a', 1000)
	check(t, err)
	filler := filepath.Join(dir, "filler")
	fill := func() {
		t.Helper()
		f, err := os.Create(filler)
		check(t, err)
		defer f.Close()
		for block := make([]byte, 4096); err == nil; {
			_, err = f.Write(block)
		}
		if !errors.Is(err, syscall.ENOSPC) {
			t.Fatal(err)
		}
	}
	for round, c := range []byte("bcd") {
		fill()
		for range 3 {
			// More than what the file of the log has free from the round before: what fits there is taken, and kept by the log.
			if _, err := revise(s, 'x', 400_000<<round); !errors.Is(err, store.ErrNotWritten) || !errors.Is(err, syscall.ENOSPC) || !strings.Contains(err.Error(), "make room on that file system") {
				t.Fatalf("round %d: on a full disk: %v", round, err)
			}
		}
		if p := s.Problem(); !strings.Contains(p, "no space left") {
			t.Errorf("round %d: says %q", round, p)
		}
		if round == 1 {
			check(t, s.Close())
			s = open()
		}
		check(t, os.Remove(filler))
		r, err := revise(s, c, 300_000)
		check(t, err)
		if r.Revision != uint64(round+2) {
			t.Errorf("round %d: revision %d: what was refused took effect", round, r.Revision)
		}
	}
	check(t, s.Close())
	s = open()
	defer s.Close()
	if r, err := revise(s, 'e', 1000); err != nil || r.Revision != 5 {
		t.Errorf("after a restart: revision %d, %v", r.Revision, err)
	}
}
