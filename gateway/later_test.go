package gateway

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"demarc/cluster"
	"demarc/configs"
	"demarc/gateway/revisions"
)

// TestKeptPolicyOfALaterRelease: what uses something that this release does not know is passed over and named; without any other there is nothing to serve.
func TestKeptPolicyOfALaterRelease(t *testing.T) {
	s, err := revisions.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	g := &Gateway{store: s, log: slog.New(slog.NewTextHandler(io.Discard, nil))}
	g.o.Version = "v0.1"
	keep := func(features ...string) {
		t.Helper()
		if _, err := s.Save([]byte("text"), revisions.Meta{Features: features}); err != nil {
			t.Fatal(err)
		}
	}
	first := func() (revisions.Revision, error) {
		t.Helper()
		r, _, err := s.Latest()
		if err != nil {
			t.Fatal(err)
		}
		return g.readable(r)
	}
	keep("tenant.contact")
	if _, err := first(); err == nil || err.Error() != "revision 1 uses tenant.contact, which this release (version v0.1) does not know, and no earlier policy is kept: upgrade this node; nothing is served, its ports stay closed" {
		t.Errorf("nothing else is kept: %v", err)
	}
	keep()
	if r, err := first(); err != nil || r.Number != 2 || g.later != nil {
		t.Errorf("revision %d, %v, passed over %v", r.Number, err, g.later)
	}
	keep("tenant.contact")
	keep("tenant.quota")
	r, err := first()
	if err != nil || r.Number != 2 || string(r.Text) != "text" {
		t.Errorf("revision %d %q, %v", r.Number, r.Text, err)
	}
	if l := strings.Join(g.later, "; "); l != "revision 4 uses tenant.quota, which this release (version v0.1) does not know; revision 3 uses tenant.contact, which this release (version v0.1) does not know" {
		t.Errorf("passed over: %s", l)
	}
}

// TestNoIntactPolicy: a node whose kept policies are all damaged, and that has none for a first start, does not say that it never had one.
func TestNoIntactPolicy(t *testing.T) {
	dir := t.TempDir()
	g := &Gateway{log: slog.New(slog.NewTextHandler(io.Discard, nil))}
	g.o.Node = &configs.Node{DataDir: dir}
	var err error
	if g.store, err = revisions.Open(g.policiesDir()); err != nil {
		t.Fatal(err)
	}
	if err := g.firstPolicy(); err == nil || !strings.HasPrefix(err.Error(), "no policy: none is kept in the data directory") {
		t.Errorf("nothing is kept: %v", err)
	}
	r, err := g.store.Save([]byte("text"), revisions.Meta{})
	if err != nil {
		t.Fatal(err)
	}
	files, err := filepath.Glob(filepath.Join(g.policiesDir(), "*.revision"))
	if err != nil || len(files) != 1 {
		t.Fatalf("revision %d: %v, %v", r.Number, files, err)
	}
	if err := os.WriteFile(files[0], []byte("torn"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := g.firstPolicy(); err == nil || !strings.Contains(err.Error(), "none of those that are kept in "+g.policiesDir()+" is intact") {
		t.Errorf("it is torn: %v", err)
	}
}

// TestStateOfALaterRelease: a replicated state that a later release has written is not tried again and again, and whoever asks is told at once.
func TestStateOfALaterRelease(t *testing.T) {
	a := newAgreed()
	for err, want := range map[error]bool{cluster.ErrLater: true, cluster.ErrDamaged: true, errors.New("no room"): false} {
		a.set(nil, fmt.Errorf("a snapshot: %w", err))
		if a.final != want {
			t.Errorf("%v: for good = %v", err, a.final)
		}
	}
	a.set(nil, fmt.Errorf("a snapshot: %w", cluster.ErrLater))
	if m, why := a.get(t.Context()); m != nil || !errors.Is(why, cluster.ErrLater) {
		t.Errorf("%v, %v", m, why)
	}
}
