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

// A standby whose copy cannot keep up costs the group its protection and nobody a conversation: public ports wait for its word no longer than it takes to agree that its copy is not in sync.
func TestWireSlowCopy(t *testing.T) {
	quiet.Judge(t, func(limits *quiet.Limits) {
		t.Run("run", func(t *testing.T) { slowCopy(t, limits) })
	})
}

func slowCopy(t *testing.T, limits *quiet.Limits) {
	l := wireOpen(t, &wirePlan{alone: "fence", stale: "serve", fresh: newRate, ahead: map[string]time.Duration{}, rate: map[string]float64{}, wall: map[string]time.Duration{}}, program(t), false)
	l.start()
	gw1 := l.Node("gw1")
	undo, err := l.hinder(harm{kind: harmDelay, ways: waysOf([]string{"gw1"}, []string{"gw2"}, wTCP), wait: 1500 * time.Millisecond})
	check(t, err)
	at, mappings, refused := time.Now(), l.sum(gw1, "demarc_nat_mappings{"), l.sum(gw1, `demarc_meter_dropped_packets_total{reason="nat_no_port"}`)
	slowest := float64(newRate)
	for range 8 {
		sleep(t.Context(), time.Second)
		now, n := time.Now(), l.sum(gw1, "demarc_nat_mappings{")
		rate := (n - mappings) / now.Sub(at).Seconds()
		slowest = min(slowest, rate)
		at, mappings = now, n
	}
	g, err := (&pairLab{Pair: l.Pair, t: t}).says(gw1)
	check(t, err)
	refused = l.sum(gw1, `demarc_meter_dropped_packets_total{reason="nat_no_port"}`) - refused
	t.Logf("%.0f new mappings in the slowest second, %.0f refused in all; in sync %v, %s", slowest, refused, g.InSync, g.Why)
	if slowest < 0.9*newRate {
		limits.Missed("%.0f new mappings in the slowest second, want %d", slowest, newRate)
	}
	if refused > 0.01*8*newRate { // it was a fifth
		limits.Missed("%.0f were refused", refused)
	}
	if slices.Contains(g.InSync, "gw2") || len(g.Why) == 0 {
		t.Errorf("in sync %v, not protected %q: want it said", g.InSync, g.Why)
	}
	check(t, undo())
	l.heals()
	l.end(func(_ *wireLab, v *judge.Verdict) {
		for _, o := range v.Offences {
			t.Error(o)
		}
	})
}

// sum of a node's metrics that begin so.
func (l *wireLab) sum(n *nodes.Node, prefix string) (sum float64) {
	l.t.Helper()
	b, err := n.Client.Text(l.t.Context(), api.PathMetrics)
	check(l.t, err)
	for line := range strings.Lines(string(b)) {
		if strings.HasPrefix(line, prefix) {
			var x float64
			_, err := fmt.Sscan(line[strings.LastIndexByte(line, ' ')+1:], &x)
			check(l.t, err)
			sum += x
		}
	}
	return sum
}

// mappingsBegin counts the owner's mappings for a time, and asks how far the copy is behind. A rate is a limit, and so is that the group stays where it is; that nothing is late is a fault.
func (l *wireLab) mappingsBegin(owner *nodes.Node, limits *quiet.Limits) {
	l.t.Helper()
	count := func() (n float64, at time.Time) {
		l.t.Helper()
		from := time.Now()
		n = l.sum(owner, "demarc_nat_mappings{")
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
