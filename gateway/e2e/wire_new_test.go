package e2e

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"demarc/gateway/api"
	"demarc/gateway/netlab/judge"
	"demarc/gateway/netlab/quiet"
	nodes "demarc/gateway/trio"
)

// The owner is killed while 5,000 conversations begin in a second and what it tells of them is 200 ms late, so that the last thousand are known to nobody; remote hosts go on sending to every public port that
// they have heard from. Its parent process says so, and the other one serves within some 50 ms; then that one's machine goes without a word. No port gets a second host, and no packet another's binding. That the
// judge would see it is shown by the plant blocks-stay-open, which does the same harm. Before each death the owner's mappings are counted, and how far the copy is behind.
func TestWireKillUnderNew(t *testing.T) {
	quiet.Judge(t, func(limits *quiet.Limits) {
		t.Run("run", func(t *testing.T) { killUnderNew(t, limits) })
	})
}

const newRate, newDelay = 5000, 200 * time.Millisecond

func killUnderNew(t *testing.T, limits *quiet.Limits) {
	p := &wirePlan{alone: "fence", stale: "serve", fresh: newRate, ahead: map[string]time.Duration{}, rate: map[string]float64{}, wall: map[string]time.Duration{},
		// BBR, which some kernels begin with, sends by the shortest way of the last 10 s: a way that becomes 400 times as long holds the copy up by more than the second that it may be behind.
		tcp: "reno"}
	l := wireOpen(t, p, program(t), false)
	l.start()
	from, to := l.GW1.Name, l.GW2.Name
	for _, kind := range []string{harmKill, harmVanish} {
		l.began = time.Now()
		undo, err := l.hinder(harm{kind: harmDelay, ways: waysOf([]string{from}, []string{to}, wTCP), wait: newDelay})
		check(t, err)
		l.mappingsBegin(l.Node(from), limits)
		l.began, p.harms = time.Now(), []harm{{last: 1500 * ms1, kind: kind, node: from}}
		l.harm(t.Context())
		check(t, undo())
		check(t, l.Serves(t.Context(), 10*time.Second, l.Node(to)))
		l.heals()
		from, to = to, from
	}
	l.end(func(l *wireLab, v *judge.Verdict) {
		// A processor that is elsewhere for a lease ends it: that is a term more, and no fault of theirs. An offence is one.
		for _, o := range v.Offences {
			t.Error(o)
		}
		if got := terms(v); got != "gw1 gw2 gw1" {
			limits.Missed("these have sent data for the group, in turn: %s; want gw1 gw2 gw1", got)
		}
	})
}

// mappingsBegin counts the owner's mappings for a time, and asks how far the copy is behind. A rate is a limit, and so is that the group stays where it is; that nothing is late is a fault.
func (l *wireLab) mappingsBegin(owner *nodes.Node, limits *quiet.Limits) {
	l.t.Helper()
	count := func() (n float64, at time.Time) {
		l.t.Helper()
		from := time.Now()
		b, err := owner.Client.Text(l.t.Context(), api.PathMetrics)
		check(l.t, err)
		for line := range strings.Lines(string(b)) {
			if rest, ok := strings.CutPrefix(line, "demarc_nat_mappings{"); ok {
				var x float64
				_, value, _ := strings.Cut(rest, "} ")
				_, err := fmt.Sscan(value, &x)
				check(l.t, err)
				n += x
			}
		}
		return n, from.Add(time.Since(from) / 2)
	}
	sleep(l.t.Context(), newDelay+50*time.Millisecond) // what comes from then on was late
	a, atA := count()
	sleep(l.t.Context(), 1500*time.Millisecond)
	b, atB := count()
	h := &pairLab{Pair: l.Pair, t: l.t}
	g, err := h.says(owner)
	check(l.t, err)
	if len(g.Copies) == 0 { // the group has gone to the other one: its lease has run out
		limits.Missed("%s copies to nobody: %+v", owner.Name, g)
		return
	}
	rate := (b - a) / atB.Sub(atA).Seconds()
	l.t.Logf("%s before it dies: %.0f mappings, %.0f new ones a second; the copy is %.0f ms behind", owner.Name, b, rate, 1000*g.Copies[0].Lag)
	if rate < 0.95*newRate {
		limits.Missed("%s: %.0f new mappings a second before it dies, want %d", owner.Name, rate, newRate)
	}
	if !slices.Contains(g.InSync, g.Copies[0].Node) { // who takes over from such a copy has all ports rest, and nothing is shown
		limits.Missed("the copy of %s is not in sync, %.3f s behind", g.Copies[0].Node, g.Copies[0].Lag)
	}
	if g.Copies[0].Lag < newDelay.Seconds() {
		l.t.Errorf("what %s tells is to be %s late, and the copy is %.3f s behind", owner.Name, newDelay, g.Copies[0].Lag)
	}
}
