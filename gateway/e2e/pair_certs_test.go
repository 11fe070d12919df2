package e2e

import (
	"testing"
	"time"

	"demarc/gateway/netlab/quiet"
)

// TestPairCertificatesEnd: the certificates of all three nodes run out under traffic, and nobody renews them for a while: nothing moves, the copy stays whole, and no connection is lost. See TestClusterCertificates for the
// rest of their life.
func TestPairCertificatesEnd(t *testing.T) {
	mostlyWaits(t)
	pairJudged(t, certificatesEnd)
}

func certificatesEnd(t *testing.T, l *quiet.Limits) {
	const life, count = 4 * time.Second, 20
	p := newPair(t, labName(t, "certs"), "")
	p.limits = l
	p.startEach(10 * time.Millisecond)
	p.serve(5*time.Second, p.GW1)
	conns, outside := p.hold(count)
	p.protected(p.GW1)
	before, err := p.says(p.GW1)
	check(t, err)
	for _, n := range p.Nodes() {
		check(t, p.Expire(n, life))
	}
	end := time.Now().Add(life)
	time.Sleep(time.Until(end.Add(2 * time.Second))) // leases, beats and copies are behind the end
	for _, n := range p.Nodes() {
		m, err := n.Members(t.Context())
		check(t, err)
		for _, x := range m.Members {
			if x.Self && (x.Until == nil || x.Until.After(time.Now())) {
				t.Errorf("%s does not say that its certificate has run out: %v", n.Name, x.Until)
			}
		}
	}
	p.serve(time.Second, p.GW1)
	p.protected(p.GW1)
	p.agreed(p.GW1)
	if g, err := p.says(p.GW1); err != nil || g.Epoch != before.Epoch || len(g.Copies) == 0 || g.Copies[0].Dials != before.Copies[0].Dials {
		p.wrong("before: %+v; now: %+v (%v)", before, g, err)
	}
	p.release(count, conns, outside)
	seen, v := p.end()
	p.turns(v, "gw1")
	if n := len(seen.Moved()); n > 0 {
		t.Errorf("%d flows have another public port now", n)
	}
}
