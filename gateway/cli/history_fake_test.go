package cli

import (
	"context"
	"strings"
	"time"

	"demarc/gateway/api"
)

// recalled is what the fake was asked of the past.
type recalled struct {
	confirm  api.ConfirmRequest
	rollback api.RollbackRequest
	show     uint64
	audit    uint64
}

func (f *fake) Confirm(_ context.Context, r api.ConfirmRequest) (*api.Confirmed, error) {
	f.recalled.confirm = r
	return &api.Confirmed{Revision: someRevision()}, f.refuse
}

func (f *fake) Rollback(_ context.Context, r api.RollbackRequest) (*api.Applied, error) {
	f.recalled.rollback = r
	return &api.Applied{Revision: someRevision(), Changes: someChanges()[:1], Cut: 3, CutByTenant: map[string]int{"beta": 1, "alpha": 2}, Took: 0.02, Confirm: r.Confirm}, f.refuse
}

func (f *fake) History(context.Context) (*api.History, error) { return someHistory(), f.refuse }

func (f *fake) Show(_ context.Context, n uint64) (*api.Shown, error) {
	f.recalled.show = n
	return &api.Shown{Past: someHistory().Revisions[1], Policy: "schema = 1\n", Export: "# exported\nschema = 1\n"}, f.refuse
}

func (f *fake) Audit(_ context.Context, after uint64) (*api.Audit, error) {
	f.recalled.audit = after
	at := time.Date(2026, 3, 4, 5, 6, 7, 0, time.UTC)
	return &api.Audit{Forgotten: true, Bound: 10_000, Lines: []api.AuditLine{
		{Index: 7, Time: at, Author: "alice", From: "edge1, unix socket, pid 12", Kind: "confirm", What: "revision 4 is confirmed", OK: true},
		{Index: 9, Time: at.Add(time.Minute), From: "edge2, 198.51.100.7", Kind: "revise", What: "conflict: revision 4 is served,\nnot 3", OK: false},
	}, RefusedGone: 3, Refused: []api.RefusedChange{{Time: at, Author: "bob", From: "unix socket, pid 77", What: api.PathApply, Status: 422, Why: "2 errors, the first: line 12: tenant[1].name", Times: 4}}}, f.refuse
}

func someHistory() *api.History {
	at := time.Date(2026, 3, 4, 5, 6, 7, 0, time.UTC)
	rev := func(n uint64, hex, author, comment string) api.Revision {
		return api.Revision{Number: n, Digest: "sha256:" + strings.Repeat(hex, 32), Source: "/etc/demarc/policy.toml", Author: author, Comment: comment, AppliedAt: at.Add(time.Duration(n) * time.Hour)}
	}
	return &api.History{Cluster: "c1", Serving: 6, Confirmed: 4, Revisions: []api.Past{
		{Revision: rev(6, "ab", "bob", "the old rates"), From: "edge1, unix socket, pid 77", Bytes: 900, Before: 4, Back: 3, Confirm: 60, Fate: "provisional", Served: true},
		{Revision: rev(5, "cd", "alice", ""), From: "edge1, unix socket, pid 12", Bytes: 950, Before: 4, Confirm: 60, Fate: "expired"},
		{Revision: rev(4, "ef", "alice", "open\nports"), From: "edge1, unix socket, pid 12", Bytes: 800, Before: 3, Fate: "confirmed"},
	}}
}
