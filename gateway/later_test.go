package gateway

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"testing"

	"demarc/cluster"
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
