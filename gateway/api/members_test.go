package api

import (
	"context"
	"fmt"
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

func (e echo) Groups(context.Context) (*Groups, error) { return &Groups{Node: "n"}, e.fault }
func (e echo) GroupEvents(context.Context) (*GroupEvents, error) {
	return &GroupEvents{Events: []GroupEvent{{What: "w"}}}, e.fault
}
func (e echo) MoveGroup(_ context.Context, r MoveRequest) (*Groups, error) {
	return &Groups{Node: "move " + r.Group + " to " + r.To}, e.fault
}
func (e echo) TakeGroup(_ context.Context, r TakeRequest) (*Groups, error) {
	return &Groups{Node: fmt.Sprint("take ", r.Group, " ", r.Force)}, e.fault
}
func (e echo) Drain(_ context.Context, r DrainRequest) (*Drained, error) {
	return &Drained{Node: r.Node, Undo: r.Undo}, e.fault
}

func TestGroupsReachTheirMethods(t *testing.T) {
	c, _ := serve(t, echo{})
	var g Groups
	if err := c.Get(t.Context(), PathGroups, &g); err != nil || g.Node != "n" {
		t.Errorf("%+v, %v", g, err)
	}
	if err := c.Post(t.Context(), PathGroupMove, MoveRequest{Group: "east", To: "gw2"}, &g); err != nil || g.Node != "move east to gw2" {
		t.Errorf("%+v, %v", g, err)
	}
	if err := c.Post(t.Context(), PathGroupTake, TakeRequest{Group: "east", Force: true}, &g); err != nil || g.Node != "take east true" {
		t.Errorf("%+v, %v", g, err)
	}
	var e GroupEvents
	if err := c.Get(t.Context(), PathGroupEvents, &e); err != nil || len(e.Events) != 1 || e.Events[0].What != "w" {
		t.Errorf("%+v, %v", e, err)
	}
	var d Drained
	if err := c.Post(t.Context(), PathDrain, DrainRequest{Node: "gw2", Undo: true}, &d); err != nil || d.Node != "gw2" || !d.Undo {
		t.Errorf("%+v, %v", d, err)
	}
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
