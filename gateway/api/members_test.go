package api

import (
	"context"
	"testing"
)

func (e echo) Members(context.Context) (*Members, error) { return &Members{Cluster: "c"}, e.fault }
func (e echo) Token(_ context.Context, r TokenRequest) (*Token, error) {
	return &Token{Role: r.Role, Address: "a"}, e.fault
}
func (e echo) Kept(context.Context) (*Kept, error) { return &Kept{Now: Bounds{Audit: 3}}, e.fault }
func (e echo) Keep(_ context.Context, r KeepRequest) (*Kept, error) {
	return &Kept{Bounds: r.Bounds}, e.fault
}
func (e echo) Remove(_ context.Context, r MemberRequest) (*Members, error) {
	return &Members{Leader: "remove " + r.Name}, e.fault
}
func (e echo) Promote(_ context.Context, r MemberRequest) (*Members, error) {
	return &Members{Leader: "promote " + r.Name}, e.fault
}
func (e echo) Lead(_ context.Context, r MemberRequest) (*Members, error) {
	return &Members{Leader: "lead " + r.Name}, e.fault
}
func (e echo) Revoke(_ context.Context, r RevokeRequest) (*Members, error) {
	return &Members{Revoked: []RevokedClient{{Client: r.Client, Key: r.Key, Why: r.Why}}}, e.fault
}

func (e echo) Leave(_ context.Context, r MemberRequest) (*Left, error) {
	return &Left{Name: r.Name}, e.fault
}

func TestMembersReachTheirMethods(t *testing.T) {
	c, _ := serve(t, echo{})
	var m Members
	if err := c.Get(t.Context(), PathMembers, &m); err != nil || m.Cluster != "c" {
		t.Errorf("%+v, %v", m, err)
	}
	for path, want := range map[string]string{PathRemove: "remove gw2", PathPromote: "promote gw2", PathLead: "lead gw2"} {
		if err := c.Post(t.Context(), path, MemberRequest{Name: "gw2"}, &m); err != nil || m.Leader != want {
			t.Errorf("%s: %+v, %v", path, m, err)
		}
	}
	var k Token
	if err := c.Post(t.Context(), PathToken, TokenRequest{Role: "witness"}, &k); err != nil || k.Role != "witness" || k.Address != "a" {
		t.Errorf("%+v, %v", k, err)
	}
	var kept Kept
	if err := c.Get(t.Context(), PathKept, &kept); err != nil || kept.Now.Audit != 3 {
		t.Errorf("%+v, %v", kept, err)
	}
	if err := c.Post(t.Context(), PathKeep, KeepRequest{Bounds{Revisions: 9}}, &kept); err != nil || kept.Revisions != 9 {
		t.Errorf("%+v, %v", kept, err)
	}
	if err := c.Post(t.Context(), PathRevoke, RevokeRequest{Client: "al", Key: "k", Why: "w"}, &m); err != nil || len(m.Revoked) != 1 || m.Revoked[0] != (RevokedClient{Client: "al", Key: "k", Why: "w"}) {
		t.Errorf("%+v, %v", m, err)
	}
	var l Left
	if err := c.Post(t.Context(), PathLeave, MemberRequest{Name: "gw1"}, &l); err != nil || l.Name != "gw1" {
		t.Errorf("%+v, %v", l, err)
	}
}
