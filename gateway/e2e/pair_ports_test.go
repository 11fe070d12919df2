package e2e

import (
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"demarc/gateway/api"
	"demarc/gateway/netlab/quiet"
)

// TestPairPortsRest: a node that has just been started takes over a group whose owner is gone with all that it knew. It gives no public port that might be in use to anybody, but ones of its reserve, which its earlier life has left
// as unused; that it is in use is on disk by then. After the hold time all ports are there again, the reserve is closed, and who knows all takes over without any of that.
func TestPairPortsRest(t *testing.T) {
	mostlyWaits(t)
	pairJudged(t, portsRest)
}

func portsRest(t *testing.T, l *quiet.Limits) {
	const hold = 4 * time.Second
	p := newPair(t, "ports", "\n[timeouts]\nnat_hold = \"4s\"\n")
	p.limits = l
	p.start()
	p.serve(5*time.Second, p.GW1)
	reserves := func() string {
		b, _ := os.ReadFile(filepath.Join(p.GW2.Data, "reserves"))
		return string(b)
	}
	if !until(30*time.Second, func() bool { return strings.Contains(reserves(), `"clean":true`) }) {
		p.wrong("gw2 has had a whole copy for longer than the hold time, and does not say that its reserve is unused: %q", reserves())
		t.FailNow()
	}
	p.leases++
	ports := func() (inReserve, others int) { // of sessions that gw2 serves
		var list api.Sessions
		check(t, p.GW2.Client.Get(t.Context(), api.PathSessions+"?proto=udp", &list))
		for _, s := range list.Sessions {
			if at, err := netip.ParseAddrPort(s.XlatSrc); err == nil && s.NAT && at.Port()/64%64 == 62 { // the second of two nodes
				inReserve++
			} else if s.NAT {
				others++
			}
		}
		return inReserve, others
	}
	p.GW2.Vanish()
	p.GW1.Vanish()
	check(t, p.GW2.Launch())
	var g api.Group
	var in, others int
	took := time.Time{}
	if !until(20*time.Second, func() bool {
		var err error
		if g, err = p.says(p.GW2); err != nil || !g.Serving {
			return false
		}
		if took.IsZero() {
			took = time.Now()
		}
		if g.Ports != nil && g.Ports.Rest > 0 {
			in, others = ports()
		}
		return in > 0 || time.Since(took) > hold
	}) || in == 0 || others > 0 {
		t.Fatalf("%d sessions with a port of the reserve, %d with others, while ports rest: %+v", in, others, g.Ports)
	}
	out, err := p.GW2.Run(t.Context(), "group")
	if check(t, err); !strings.Contains(out, "PORTS REST") || !strings.Contains(reserves(), `"clean":false`) {
		t.Errorf("it is not said: %q\n%s", reserves(), out)
	}
	if !until(hold+5*time.Second, func() bool { g, err = p.says(p.GW2); return err == nil && g.Ports != nil && g.Ports.Rest == 0 }) {
		t.Fatalf("ports still rest: %+v", g.Ports)
	}
	if took := time.Since(took); took < hold-500*time.Millisecond {
		p.missed("ports rested for %s, the hold time is %s", took, hold) // it was seen that they rest, and that they do not any more
	}
	check(t, p.GW1.Start(t.Context()))
	p.protected(p.GW2)
	p.GW2.Kill()
	p.serve(5*time.Second, p.GW1)
	if g, err = p.says(p.GW1); err != nil || g.Ports == nil || g.Ports.Rest != 0 {
		p.wrong("who knows all lets ports rest: %+v (%v)", g.Ports, err)
	}
	p.end()
}
