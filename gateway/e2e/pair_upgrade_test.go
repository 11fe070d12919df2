package e2e

import (
	"fmt"
	"os"
	"regexp"
	"slices"
	"testing"
	"time"

	"demarc/gateway/api"
	"demarc/gateway/netlab/quiet"
	nodes "demarc/gateway/trio"
)

var workersLine = regexp.MustCompile(`(?m)^\[workers\]\ncount = \d+\n`)

// workers has a gateway's next process have so many.
func (p *pairLab) workers(n *nodes.Node, count int) {
	p.t.Helper()
	text := workersLine.ReplaceAllString(read(p.t, n.File), "")
	check(p.t, os.WriteFile(n.File, fmt.Appendf([]byte(text), "\n[workers]\ncount = %d\n", count), 0o644))
}

// TestPairRollingUpgrade: the gateways of a pair go to the next release one after the other and back before anything new is used, whoever serves first, with other numbers of workers each time (1 and 2, 2 and 3). Sessions are copied
// from each release to the other, in records that the older one does not know all of. Connections with data and idle ones, of both families, go on; a call keeps its public port.
func TestPairRollingUpgrade(t *testing.T) {
	mostlyWaits(t)
	nextRelease(t)
	pairJudged(t, rollingUpgrade)
}

func rollingUpgrade(t *testing.T, l *quiet.Limits) {
	later := nextRelease(t)
	p := newPairOf(t, nodes.Options{Lab: "pairroll", Queues: 3, Gateway: "[tables]\nsessions = 16384\nframes = 8192\n"}, "", func(p *pairLab) {
		p.workers(p.GW1, 1)
		p.workers(p.GW2, 2)
	})
	p.limits = l
	p.startEach(10 * time.Millisecond)
	p.serve(10*time.Second, p.GW1)
	const count = 40
	conns, outside := p.hold(count)
	owner, want := p.GW1, "gw1"
	var events []event
	for _, s := range []struct {
		what    string
		n       *nodes.Node
		binary  string
		workers int
	}{
		{"gw2, which stands by, to the next release", p.GW2, later, 2},
		{"gw1, which serves, likewise", p.GW1, later, 3},
		{"gw2, which serves, back to today's", p.GW2, "", 2},
		{"gw1, which serves, likewise", p.GW1, "", 1},
		{"gw2, which serves, to the next release: the owner first", p.GW2, later, 3},
		{"gw1, which serves, likewise", p.GW1, later, 2},
	} {
		began := time.Now()
		p.protected(owner)
		p.copies(owner)
		e := event{what: s.what, from: time.Now(), most: 250 * time.Millisecond} // beside other tests
		check(t, s.n.Stop())
		if s.n == owner {
			owner = p.Other(owner)
			want += " " + owner.Name
		}
		p.serve(5*time.Second, owner)
		s.n.Binary = s.binary
		p.workers(s.n, s.workers)
		check(t, s.n.Start(t.Context()))
		check(t, p.Whole(t.Context(), 20*time.Second, nil))
		version := "dev"
		if s.binary != "" {
			version = nextVersion
		}
		if !until(10*time.Second, func() bool {
			m, err := p.Witness.Members(t.Context())
			return err == nil && slices.ContainsFunc(m.Members, func(x api.MemberState) bool { return x.Name == s.n.Name && x.Version == version })
		}) {
			t.Errorf("%s: %s is not of version %s", s.what, s.n.Name, version)
		}
		st, err := s.n.Status(t.Context())
		check(t, err)
		if len(st.Workers) != s.workers {
			t.Errorf("%s: %d workers, want %d", s.what, len(st.Workers), s.workers)
		}
		e.to = time.Now() // the other one's start too
		events = append(events, e)
		t.Logf("%s: %s serves; %.1f s", s.what, owner.Name, time.Since(began).Seconds())
	}
	p.protected(owner)
	p.copies(owner)
	p.agreed(owner)
	p.release(count, conns, outside)
	seen, v := p.end()
	lost, sent := seen.Lost()
	t.Logf("%d of %d packets of calls lost", lost, sent)
	p.held(seen, events)
	p.turns(v, want)
	if n := len(seen.Moved()); n > 0 {
		t.Errorf("%d calls have another public port now", n)
	}
}
