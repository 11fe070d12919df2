package api

import (
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"
)

// TestRefusedChanges: the same counts once, a flood by one pushes out its own lines and nobody else's, and no line holds what was sent.
func TestRefusedChanges(t *testing.T) {
	var r refusedChanges
	now := time.Unix(1000, 0)
	bob := Peer{Name: "bob", From: "unix socket, pid 7"}
	bad := &Fault{Status: http.StatusUnprocessableEntity, Err: errors.New("planted"), Problems: []Problem{{Line: 12, Path: "tenant[1].name", Value: "planted", Text: "planted"}, {Path: "x"}}}
	r.add(now, bob, PathApply, bad)
	r.add(now.Add(time.Second), bob, PathApply, bad)
	r.add(now, bob, PathBlock, BadRequest("%q is no address", "planted"))
	r.add(now, bob, PathBlock, &Fault{Status: http.StatusConflict, Err: errors.New(strings.Repeat("ä", 400) + "\nplanted")})
	for i := range 10_000 {
		r.add(now, Peer{Name: "mallory"}, PathApply, &Fault{Status: http.StatusConflict, Err: fmt.Errorf("conflict %d", i)})
	}
	list, gone := r.take()
	if len(list) != refusedKept || gone != 10_003-refusedKept {
		t.Fatalf("%d lines, %d gone", len(list), gone)
	}
	if list[len(list)-1].Why != "conflict 9999" {
		t.Errorf("the last is %+v", list[len(list)-1])
	}
	if c := list[0]; c.Author != "bob" || c.Times != 2 || !c.Time.Equal(now.Add(time.Second)) || c.Status != 422 || c.Why != "2 errors, the first: line 12: tenant[1].name" || c.From != bob.From {
		t.Errorf("%+v", c)
	}
	if list[1].Why != "the request is wrong" || list[2].Author != "bob" || len(list[2].Why) > refusedWhy+len("…") || list[3].Author != "mallory" {
		t.Errorf("%+v", list[1:4])
	}
	for _, c := range list {
		if strings.Contains(c.Why, "planted") {
			t.Errorf("what was sent stands in %+v", c)
		}
	}
}

// TestAuditListsWhatWasRefused: what a node refuses is in its answer, with who asked.
func TestAuditListsWhatWasRefused(t *testing.T) {
	f := remote(t, remoteLimits, tenants{})
	if err := f.as("alice").Post(t.Context(), PathBlock, map[string]any{"planted": 1}, new(Blocked)); err == nil {
		t.Fatal("nonsense was taken")
	}
	if err := f.as("robert").Post(t.Context(), PathApply, ApplyRequest{Policy: "planted"}, new(Applied)); err == nil {
		t.Fatal("read-only has applied a policy")
	}
	if err := f.as("alice").Post(t.Context(), PathApply, ApplyRequest{}, new(Applied)); err != nil {
		t.Fatal(err)
	}
	var a Audit
	if err := f.as("alice").Get(t.Context(), PathAudit, &a); err != nil {
		t.Fatal(err)
	}
	if len(a.Refused) != 2 || a.Refused[0].Author != "alice" || a.Refused[0].What != PathBlock || a.Refused[0].Status != 400 || a.Refused[1].Author != "robert" || a.Refused[1].Status != 403 ||
		!strings.HasPrefix(a.Refused[1].From, "127.0.0.1:") || !strings.Contains(a.Refused[1].Why, "needs the role operator") {
		t.Errorf("%+v", a.Refused)
	}
}
