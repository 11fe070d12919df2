package cluster

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"demarc/cluster/command"
)

// What is confirmed is kept, what is provisional is not; going back needs nothing kept.
func TestKeepsWhatIsConfirmed(t *testing.T) {
	m := start(t, t.TempDir(), "gw1", nil)
	begun(t, m)
	kept := func(want string) {
		t.Helper()
		eventually(t, "kept: "+want, func() bool { return m.gw.lastKept() == want })
	}
	kept("1 first")
	r := revise(t, "second", 0, m)
	if err := m.AwaitKept(t.Context(), r.Number); err != nil || m.gw.lastKept() != "2 second" {
		t.Errorf("%v, kept %q", err, m.gw.lastKept())
	}
	r = revise(t, "third", time.Minute, m)
	if err := m.AwaitKept(t.Context(), r.Number); err != nil || m.gw.lastKept() != "2 second" {
		t.Errorf("a provisional revision: %v, kept %q", err, m.gw.lastKept())
	}
	if err := m.Confirm(t.Context(), 3, command.Who{}); err != nil {
		t.Fatal(err)
	}
	if err := m.AwaitKept(t.Context(), 3); err != nil || m.gw.lastKept() != "3 third" {
		t.Errorf("after the confirmation: %v, kept %q", err, m.gw.lastKept())
	}
	revise(t, "fourth", time.Minute, m)
	if err := m.TakeBack(t.Context(), 4, command.Who{}); err != nil {
		t.Fatal(err)
	}
	if err := m.Await(t.Context(), 3); err != nil || m.gw.last() != "third" {
		t.Errorf("%v, served %q", err, m.gw.last())
	}
	revise(t, "fifth", 0, m)
	kept("5 fifth")
	m.gw.mu.Lock()
	defer m.gw.mu.Unlock()
	for _, k := range m.gw.kept {
		if strings.HasSuffix(k, "fourth") {
			t.Errorf("kept: %q", m.gw.kept)
		}
	}
}

// What cannot be kept is said, and kept when it can be.
func TestKeepIsTriedAgain(t *testing.T) {
	m := start(t, t.TempDir(), "gw1", nil)
	begun(t, m)
	m.gw.set(func() { m.gw.noKeep = errors.New("no room") })
	r := revise(t, "second", 0, m)
	if err := m.AwaitKept(t.Context(), r.Number); err == nil || !strings.Contains(err.Error(), "no room") {
		t.Errorf("%v", err)
	}
	if p := m.Problem(); !strings.Contains(p, "revision 2 is served and not in this node's own copy") || !strings.Contains(p, "no room") {
		t.Errorf("says %q", p)
	}
	m.gw.set(func() { m.gw.noKeep = nil })
	eventually(t, "it is kept", func() bool { return m.gw.lastKept() == "2 second" && m.Problem() == "" })
}

// What the gateway could not serve it is asked to serve again.
func TestServeIsTriedAgain(t *testing.T) {
	m := start(t, t.TempDir(), "gw1", nil)
	begun(t, m)
	m.gw.set(func() { m.gw.fail = errors.New("worker 1 is late") })
	r, err := m.Revise(t.Context(), Change{Text: []byte("second")})
	if err != nil {
		t.Fatal(err)
	}
	if err := m.Await(t.Context(), r.Number); err == nil {
		t.Error("it is said to be served")
	}
	m.gw.set(func() { m.gw.fail = nil })
	eventually(t, "it is served and kept", func() bool { return m.gw.last() == "second" && m.gw.lastKept() == "2 second" && m.Problem() == "" })
}

// A node that ends in the middle of its beginning goes on with it at the next start, wherever that was.
func TestBeginIsCarriedOn(t *testing.T) {
	for entries := range 3 { // that were written before the end
		dir := t.TempDir()
		m := start(t, dir, "gw1", nil)
		if err := m.st.Bootstrap(); err != nil {
			t.Fatal(err)
		}
		eventually(t, "it leads", func() bool { return m.st.Leads() })
		for i, e := range []*command.Entry{{Kind: command.KindInit, Init: &command.Init{Cluster: "c", Bounds: command.DefaultBounds(), Last: 6}},
			{Kind: command.KindMember, Member: &command.Member{ID: m.id, Name: "gw1", Role: command.RoleGateway, Level: 1}}} {
			if i < entries {
				if _, err := m.propose(t.Context(), e); err != nil {
					t.Fatal(err)
				}
			}
		}
		m.stop()
		m = start(t, dir, "gw1", nil)
		select {
		case <-m.Current():
		case <-time.After(10 * time.Second):
			t.Fatal("never current")
		}
		if !m.Begun() || !m.Halfway() {
			t.Fatalf("%d entries: begun %v, halfway %v", entries, m.Begun(), m.Halfway())
		}
		m.Serving(7, command.Digest([]byte("first")))
		r, err := m.Begin(context.Background(), First{Text: []byte("first"), Last: 6})
		if err != nil || r.Number != 7 || m.Halfway() || len(m.State().Members) != 1 {
			t.Errorf("%d entries: %+v, %v, members %v", entries, r, err, m.State().Members)
		}
		if _, err := m.Begin(context.Background(), First{Text: []byte("other")}); err == nil {
			t.Error("begun a second time")
		}
		if name, here := m.Lead(); name != "gw1" || !here {
			t.Errorf("%q leads, here %v", name, here)
		}
		m.stop()
	}
}
