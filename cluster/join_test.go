package cluster

import (
	"context"
	"fmt"
	"slices"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"demarc/cluster/command"
	"demarc/cluster/store"
	"demarc/cluster/transport"
)

// TestNewcomerWaitsForTheRemoval: a newcomer at a lost member's address is answered, and so starts Raft, only once it is agreed on that the lost one is out. Until then
// it has the lost one's place in nobody's list, and asking again changes nothing more.
func TestNewcomerWaitsForTheRemoval(t *testing.T) {
	s := newSite(t)
	hs := []*host{s.host("gw1", command.RoleGateway), s.host("gw2", command.RoleGateway), s.host("gw3", command.RoleGateway)}
	fresh := s.host("gw2", command.RoleGateway)
	fresh.address = hs[1].address
	first := hs[0].run()
	begun(t, first)
	// The third one hears the leader and agrees to the newcomer; then its disk is full, so that nothing of what follows is agreed on.
	var full atomic.Bool
	var lost string
	taken := func() bool {
		m, ok := first.State().Named("gw2")
		return ok && m.ID != lost
	}
	hs[2].tune = func(c *store.Config) {
		c.Hooks = &store.Hooks{Write: func(int) error {
			if full.Load() && taken() {
				return syscall.ENOSPC
			}
			return nil
		}}
	}
	ms := []*member{first, hs[1].enter(first, ""), hs[2].enter(first, "")}
	voting(t, ms, 3)
	lost = ms[1].id
	eventually(t, "the first one leads", func() bool {
		_ = first.Yield(t.Context(), "gw1", command.Who{})
		return first.st.Leads()
	})
	ms[1].stop()
	token, _, err := first.Token(t.Context(), command.RoleGateway, time.Hour, command.Who{})
	if err != nil {
		t.Fatal(err)
	}
	full.Store(true)
	join := func(wait time.Duration) error {
		ctx, cancel := context.WithTimeout(t.Context(), wait)
		defer cancel()
		_, err := Join(ctx, Newcomer{Dir: fresh.dir, Name: fresh.name, Role: fresh.role, Version: "test", Address: fresh.address, Keys: fresh.keys, Contact: first.Address(),
			Token: token, Replace: "gw2"})
		return err
	}
	eventually(t, "it is taken in", func() bool { // on a busy machine the lead may be lost meanwhile
		if err := join(2 * time.Second); err == nil {
			t.Fatal("it is answered while the one whose place it has may come back by a vote")
		}
		return taken()
	})
	full.Store(false)
	eventually(t, "it is answered", func() bool { return join(2*time.Second) == nil })
	v, err := first.st.Voters()
	if err != nil || slices.ContainsFunc(v, func(v store.Voter) bool { return v.ID == lost }) {
		t.Errorf("answered with the lost one in the list: %v, %v", v, err)
	}
	voting(t, []*member{first, fresh.run(), ms[2]}, 3)
}

// TestLetInAgain: what a member said when it did not know this node yet is forgotten when it lets it in, and only that.
func TestLetInAgain(t *testing.T) {
	_, ms := trio(t)
	later := time.Now().Add(time.Minute)
	ms[1].turned.Store(&turned{ms[0].Address(), "who is that?", transport.RefusedCluster, later})
	eventually(t, "it is forgotten", func() bool { return ms[1].Problem() == "" })
	ms[1].turned.Store(&turned{"192.0.2.1:7400", "who is that?", transport.RefusedCluster, later})
	ms[0].turned.Store(&turned{ms[1].Address(), "taken out", transport.RefusedRemoved, later}) // by the certificate, which it has come back with
	for _, m := range ms[:2] {
		if _, err := m.ping(t.Context(), ms[2].self()); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := ms[0].ping(t.Context(), ms[1].self()); err != nil {
		t.Fatal(err)
	}
	if ms[0].Problem() != "" || ms[1].Problem() != "who is that?" {
		t.Errorf("%q, %q", ms[0].Problem(), ms[1].Problem())
	}
}

// TestNewcomerServesTheLastAlone: the log comes to a newcomer, as to who was away, in pieces, each of which Raft takes for all that is agreed on. What was served in the middle of the
// history is not served again, nor what was tried and not confirmed.
func TestNewcomerServesTheLastAlone(t *testing.T) {
	s := newSite(t)
	first := s.host("gw1", command.RoleGateway).run()
	begun(t, first)
	last := ""
	for i := range 150 { // Raft sends 64 at a time
		last = fmt.Sprint("text ", i)
		if i%8 != 7 {
			revise(t, last, 0, first)
			continue
		}
		r := revise(t, last, time.Hour, first)
		if err := first.TakeBack(t.Context(), r.Number, command.Who{}); err != nil {
			t.Fatal(err)
		}
	}
	m := s.host("gw2", command.RoleGateway).enter(first, "")
	eventually(t, "it serves "+last, func() bool { return m.gw.last() == last })
	m.gw.set(func() {
		if len(m.gw.texts) != 1 {
			t.Errorf("it has served %q, want %q alone", m.gw.texts, last)
		}
	})
}
