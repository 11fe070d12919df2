package store

import (
	"context"
	"errors"
	"testing"
	"time"
)

// TestStand: who misses its leader gets its place only where a majority misses it, and that is by Raft's last contact: whoever is heard stays, whatever is said of it.
func TestStand(t *testing.T) {
	// Nor is the leader to lose its lease, which stays as it is here.
	x := pacedTrio(t, time.Second, 800*time.Millisecond)
	for _, s := range x.s { // nobody is to stand by itself here, on a busy machine either
		c := s.raft.ReloadableConfig()
		c.HeartbeatTimeout, c.ElectionTimeout = 10*time.Second, 10*time.Second
		if err := s.raft.ReloadConfig(c); err != nil {
			t.Fatal(err)
		}
	}
	lead := x.leader(0, 1, 2)
	a, b := (lead+1)%3, (lead+2)%3
	stand := func(i int) error {
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		defer cancel()
		return x.s[i].Stand(ctx)
	}
	eventually(t, "both follow", func() bool {
		i, _ := x.s[a].Leader()
		j, _ := x.s[b].Leader()
		return i == x.c[lead].ID && j == i
	})
	term := x.s[lead].raft.CurrentTerm()
	stays := func(what string) {
		t.Helper()
		if now := x.s[a].raft.CurrentTerm(); now != term {
			t.Errorf("%s: term %d has become %d", what, term, now)
		}
	}
	if err := stand(a); !errors.Is(err, errHeard) {
		t.Errorf("without a doubt: %v", err)
	}
	x.s[a].Doubt(x.c[lead].ID, 0)
	if err := stand(a); err == nil {
		t.Error("it stands although the other one hears the leader")
	}
	x.s[b].Doubt(x.c[lead].ID, time.Minute)
	if err := stand(a); err == nil {
		t.Error("it stands although Raft of the other one hears the leader")
	}
	x.s[b].Doubt("somebody else", 0)
	if err := stand(a); err == nil {
		t.Error("it stands although the other one is in doubt of somebody else")
	}
	stays("refused")
	if err := stand(lead); err == nil {
		t.Error("a leader stands")
	}
	if !x.s[lead].Leads() {
		t.Error("the leader has lost the lead")
	}
	x.s[b].Doubt(x.c[lead].ID, 0)
	eventually(t, "it stands", func() bool { return stand(a) == nil || x.s[a].raft.CurrentTerm() > term })
	eventually(t, "a later term has a leader", func() bool {
		i := x.leader(0, 1, 2)
		return x.s[i].raft.CurrentTerm() > term
	})
	x.s[a].Doubt("", 0)
	x.s[b].Doubt("", 0)
	x.change("after", 0, 1, 2)
	x.level(0, 1, 2)
}
