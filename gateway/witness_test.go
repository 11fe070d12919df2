package gateway

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"strings"
	"testing"
	"time"

	"demarc/cluster"
	"demarc/cluster/command"
	"demarc/gateway/api"
)

// asWitness answers for a node of a cluster of one as a witness does.
func asWitness(t *testing.T) (witnessBackend, *cluster.Node) {
	t.Helper()
	begin := time.Now()
	n, err := cluster.Open(cluster.Config{Dir: t.TempDir(), Name: "wit", Version: "test", Serve: func(context.Context, command.Revision, []byte) error { return nil },
		Mono: func() uint64 { return uint64(time.Since(begin)) + 1<<40 }, Wall: time.Now})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- n.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := errors.Join(<-done, n.Close()); err != nil {
			t.Error(err)
		}
	})
	if _, err := n.Begin(t.Context(), cluster.First{Text: []byte("first"), Name: "f"}); err != nil {
		t.Fatal(err)
	}
	return witnessBackend{membership: membership{name: "wit", node: func() (*cluster.Node, error) { return n, nil },
		ready: func(ctx context.Context) (context.Context, *cluster.Node, func(), error) {
			return ctx, n, func() {}, nil
		}}}, n
}

// TestAWitnessRollsBack: what is expected counts there too, and what belongs to a rollback to a revision is refused without one. What a policy changes a witness does not know, and it does not say that this is nothing.
func TestAWitnessRollsBack(t *testing.T) {
	w, n := asWitness(t)
	unknown := func(what string, a *api.Applied) {
		t.Helper()
		if b, err := json.Marshal(a); err != nil || !strings.Contains(string(b), `"changes":null`) {
			t.Errorf("%s: %s, %v", what, b, err)
		}
	}
	a, err := w.Apply(t.Context(), api.ApplyRequest{Policy: "second", Source: "s", Confirm: 3600})
	if err != nil || a.Revision.Number != 2 || a.Confirm != 3600 {
		t.Fatalf("%+v, %v", a, err)
	}
	unknown("apply", a)
	for _, c := range []struct {
		r      api.RollbackRequest
		status int
		says   string
	}{
		{api.RollbackRequest{Expected: 1}, http.StatusConflict, "conflict: revision 2 is served, not 1: look at the history again"},
		{api.RollbackRequest{Confirm: 60}, http.StatusBadRequest, "a confirm time and a comment belong to a rollback to a revision: name it"},
		{api.RollbackRequest{Comment: "why"}, http.StatusBadRequest, "a confirm time and a comment belong to a rollback to a revision: name it"},
		{api.RollbackRequest{To: 2}, http.StatusConflict, "revision 2 is served already"},
		{api.RollbackRequest{To: 9}, http.StatusNotFound, "revision 9 is not kept"},
	} {
		_, err := w.Rollback(t.Context(), c.r)
		if f := (*api.Fault)(nil); !errors.As(err, &f) || f.Status != c.status || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%+v: %v, want %d %s", c.r, err, c.status, c.says)
		}
		if p, ok := n.Pending(); !ok || p.Number != 2 {
			t.Fatalf("%+v has taken it back", c.r)
		}
	}
	if a, err = w.Rollback(t.Context(), api.RollbackRequest{Expected: 2}); err != nil || a.Revision.Number != 1 || a.Took <= 0 {
		t.Fatalf("%+v, %v", a, err)
	}
	unknown("rollback", a)
	if _, err := w.Rollback(t.Context(), api.RollbackRequest{}); err == nil || !strings.Contains(err.Error(), "name the revision to go back to") {
		t.Errorf("nothing waits: %v", err)
	}
}
