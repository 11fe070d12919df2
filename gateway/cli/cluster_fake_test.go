package cli

import (
	"context"
	"errors"
	"net/http"
	"time"

	"demarc/gateway/api"
)

// someMembers is a pair and a witness: one gateway is away, the witness's clock is off.
func someMembers() *api.Members {
	until, ago, none := time.Date(2027, 3, 4, 0, 0, 0, 0, time.UTC), 0.4, 0.0
	return &api.Members{Cluster: "8e4c0a7d", Node: "edge1", Address: "192.0.2.1:7400", Leader: "wit", Tokens: 1, Log: api.LogWrites{Count: 300, Seconds: 1.2, Longest: 0.377}, Refused: map[string]uint64{"clock": 0}, Members: []api.MemberState{
		{Name: "edge1", ID: "a1", Role: "gateway", Address: "192.0.2.1:7400", Version: "v0.1", Level: 1, Votes: true, Self: true, Answered: &none, Serving: 7, Applied: 41, Until: &until},
		{Name: "edge2", ID: "a2", Role: "gateway", Address: "192.0.2.2:7400", Version: "v0.1", Level: 1, Applied: 12, Problem: "no answer in time", Lacks: []string{"tenant.contact", "log entries of level 2"}},
		{Name: "wit", ID: "a3", Role: "witness", Address: "192.0.2.3:7400", Version: "v0.2", Level: 2, Features: []string{"tenant.contact"}, Votes: true, Leads: true, Answered: &ago, Applied: 41, Until: &until, ClockOff: -3600}}}
}

func (f *fake) Members(context.Context) (*api.Members, error) { return someMembers(), nil }

func (f *fake) Token(_ context.Context, r api.TokenRequest) (*api.Token, error) {
	f.acted.tokens = append(f.acted.tokens, r)
	return &api.Token{Token: "demarc-abc", Role: r.Role, Until: time.Date(2026, 3, 4, 13, 0, 0, 0, elsewhere), Address: "192.0.2.1:7400"}, nil
}

func (f *fake) member(what string, r api.MemberRequest) (*api.Members, error) {
	f.acted.members = append(f.acted.members, what+" "+r.Name)
	if r.Name == "wit" && what == "remove" {
		return nil, &api.Fault{Status: http.StatusConflict, Err: errors.New("without wit there would be 2 with a vote, and edge2 does not answer")}
	}
	return someMembers(), nil
}

func (f *fake) Remove(_ context.Context, r api.MemberRequest) (*api.Members, error) {
	return f.member("remove", r)
}

func (f *fake) Promote(_ context.Context, r api.MemberRequest) (*api.Members, error) {
	return f.member("promote", r)
}

func (f *fake) Lead(_ context.Context, r api.MemberRequest) (*api.Members, error) {
	return f.member("lead", r)
}

func (f *fake) Revoke(_ context.Context, r api.RevokeRequest) (*api.Members, error) {
	f.acted.revoked = append(f.acted.revoked, r)
	m := someMembers()
	m.Revoked = []api.RevokedClient{{Client: r.Client, Key: r.Key, Why: r.Why, By: "root", Time: time.Date(2026, 3, 4, 12, 0, 0, 0, time.UTC)}}
	return m, nil
}

func (f *fake) Leave(_ context.Context, r api.MemberRequest) (*api.Left, error) {
	f.acted.members = append(f.acted.members, "leave "+r.Name)
	return &api.Left{Name: r.Name, Serving: 7, Dir: "/var/lib/demarc/cluster"}, nil
}

func someKept() *api.Kept {
	return &api.Kept{Bounds: api.Bounds{Revisions: 200, Seconds: 30 * 86400, TextBytes: 256 << 20, Audit: 10_000}, Now: api.Bounds{Revisions: 17, Seconds: 216_000, TextBytes: 3 << 19, Audit: 321}}
}

func (f *fake) Kept(context.Context) (*api.Kept, error) { return someKept(), nil }

func (f *fake) Keep(_ context.Context, r api.KeepRequest) (*api.Kept, error) {
	f.acted.kept = append(f.acted.kept, r)
	return someKept(), nil
}
