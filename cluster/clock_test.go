package cluster

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"demarc/cluster/clustertest"
	"demarc/cluster/command"
)

// TestWallClockDecidesNothing: members that believe it is 1970, or 2200, or another year whenever they look. Every order, every confirm time and what is kept is as if all were
// right, whichever of them leads.
func TestWallClockDecidesNothing(t *testing.T) {
	network := &clustertest.Network{}
	var mu sync.Mutex
	dice := rand.New(rand.NewPCG(1, 2))
	walls := []func() time.Time{
		func() time.Time { return time.Unix(1, 0) },
		func() time.Time { return time.Date(2200, 1, 1, 0, 0, 0, 0, time.UTC) },
		func() time.Time {
			mu.Lock()
			defer mu.Unlock()
			return time.Unix(dice.Int64N(8e9), 0)
		},
	}
	var ms []*member
	names := []string{"n0", "n1", "n2"}
	for i, name := range names {
		g := &gw{}
		begin := time.Now()
		n, err := Open(Config{Dir: t.TempDir(), Name: name, Version: "test", Serve: g.serve, Mono: func() uint64 { return uint64(time.Since(begin)) + 1<<40 },
			Wall: walls[i], transport: network.Join(name), timers: timers()})
		if err != nil {
			t.Fatal(err)
		}
		ms = append(ms, running(t, n, g))
	}
	together(t, ms, names...)
	// leads has a member lead: nothing is forwarded on this network.
	leads := func(m *member) bool {
		if m.st.Leads() {
			return true
		}
		if l := leader(ms); l >= 0 {
			_ = ms[l].st.Yield(m.id, m.cfg.Name) // tried again
		}
		return false
	}
	// change asks a member until it has the lead.
	change := func(m *member, text string, confirm time.Duration) (number uint64) {
		t.Helper()
		eventually(t, m.cfg.Name+" leads and takes "+text, func() bool {
			if !leads(m) {
				return false
			}
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			r, err := m.Revise(ctx, Change{Text: []byte(text), Confirm: confirm})
			if ref := (*command.Refusal)(nil); errors.As(err, &ref) {
				p, ok := m.State().Pending() // an answer was lost on a busy machine, and it is there
				if !ok || p.Digest != command.Digest([]byte(text)) {
					t.Fatal(err)
				}
				number = p.Number
				return true
			}
			number = r.Number
			return err == nil
		})
		return number
	}
	last := uint64(1)
	for i, m := range ms {
		text := fmt.Sprint("by ", i)
		if n := change(m, text, 0); n <= last {
			t.Errorf("revision %d after %d", n, last)
		} else {
			last = n
		}
		began := time.Now()
		n := change(m, "provisional, "+text, 300*time.Millisecond)
		for _, o := range ms {
			eventually(t, o.cfg.Name+" is back", func() bool {
				r, ok := o.State().Revision(n)
				return ok && r.Fate == command.FateExpired && o.gw.last() == text
			})
		}
		if took := time.Since(began); took < 300*time.Millisecond || took > 5*time.Second {
			t.Errorf("%s: its time was over after %s, want 300 ms", m.cfg.Name, took)
		}
		last = n
		n = change(m, "confirmed, "+text, time.Minute)
		who := command.Who{Nonce: random()} // it counts once
		eventually(t, m.cfg.Name+" confirms it", func() bool {
			if !leads(m) { // on a busy machine it has lost the lead
				return false
			}
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			err := m.Confirm(ctx, n, who)
			if ref := (*command.Refusal)(nil); errors.As(err, &ref) {
				t.Fatal(err)
			}
			return err == nil
		})
		last = n
	}
	for _, m := range ms {
		eventually(t, m.cfg.Name+" has everything", func() bool { return m.State().Last == last && m.State().Confirmed == last })
		if n := uint64(len(m.State().Revisions)); n != last {
			t.Errorf("%s keeps %d revisions of %d", m.cfg.Name, n, last)
		}
	}
}
