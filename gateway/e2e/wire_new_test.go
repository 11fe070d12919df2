package e2e

import (
	"testing"
	"time"

	"demarc/gateway/netlab/judge"
)

// The owner is killed while 5,000 conversations begin in a second and what it tells of them is 200 ms late, so that the last thousand are known to nobody; remote hosts go on sending to every public port that
// they have heard from. Its parent process says so, and the other one serves within some 50 ms; then that one's machine goes without a word. No port gets a second host, and no packet another's binding. That the
// judge would see it is shown by the plant blocks-stay-open, which does the same harm (make faults-found).
func TestWireKillUnderNew(t *testing.T) {
	p := &wirePlan{alone: "fence", stale: "serve", fresh: 5000, ahead: map[string]time.Duration{}, rate: map[string]float64{}, wall: map[string]time.Duration{}}
	l := wireOpen(t, p, program(t), false)
	l.start()
	from, to := l.GW1.Name, l.GW2.Name
	for _, kind := range []string{harmKill, harmVanish} {
		p.harms = []harm{
			{at: 0, last: 1200 * ms1, kind: harmDelay, ways: waysOf([]string{from}, []string{to}, wTCP), wait: 200 * ms1},
			{at: time.Second, last: 1500 * ms1, kind: kind, node: from},
		}
		l.began = time.Now()
		l.harm(t.Context())
		check(t, l.Serves(t.Context(), 10*time.Second, l.Node(to)))
		l.heals()
		from, to = to, from
	}
	l.end(func(l *wireLab, v *judge.Verdict) {
		for _, o := range v.Offences {
			t.Error(o)
		}
		if got := terms(v); got != "gw1 gw2 gw1" {
			t.Errorf("these have sent data for the group, in turn: %s; want gw1 gw2 gw1", got)
		}
	})
}
