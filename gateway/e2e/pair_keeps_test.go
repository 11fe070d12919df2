package e2e

import (
	"fmt"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"demarc/gateway/api"
	"demarc/gateway/netlab"
	"demarc/gateway/netlab/host"
	"demarc/gateway/netlab/quiet"
	nodes "demarc/gateway/trio"
)

// heldConns is connections of one host that carry data or are idle.
type heldConns struct {
	what string
	s    *netlab.Server
}

// hold opens connections from the hosts of both tenants, by NAT44 and by IPv6, half of them with data and half idle, and returns what ends them: it says what became of each kind.
func (p *pairLab) hold(count int) (conns []heldConns, outside []*netlab.Server) {
	p.t.Helper()
	for _, six := range []bool{false, true} {
		port := nodes.PairHoldPort
		if six {
			port++
		}
		to := net.JoinHostPort(p.Outside(six).String(), fmt.Sprint(port))
		s, err := p.Serve(nodes.PairOut, "tcp-hold-serve", "-addr", to)
		check(p.t, err)
		outside = append(outside, s)
		for _, side := range []string{nodes.PairAlpha, nodes.PairBeta} {
			for _, every := range []string{"20ms", "0s"} {
				s, err := p.Serve(side, "tcp-hold", "-dst", to, "-from", p.Inside(side, six).String(), "-count", fmt.Sprint(count), "-every", every, "-within", "5s")
				check(p.t, err)
				conns = append(conns, heldConns{fmt.Sprintf("%s to %s, a block each %s", side, to, every), s})
			}
		}
	}
	return conns, outside
}

// release ends them: each must carry a further block each way.
func (p *pairLab) release(count int, conns []heldConns, outside []*netlab.Server) {
	p.t.Helper()
	for _, c := range conns {
		var h host.Held
		check(p.t, c.s.StopWithin(10*time.Second, &h))
		p.t.Logf("%-46s %4d open, %d lost, %5d blocks, the longest took %6.1f ms", c.what, h.Opened, h.Lost, h.Blocks, h.LongestMs)
		if h.Opened != count || h.Lost != 0 {
			p.t.Errorf("%s: of %d connections %d are lost: %v", c.what, h.Opened, h.Lost, h.Why)
		}
	}
	for _, s := range outside {
		var h host.HoldServed
		check(p.t, s.Stop(&h))
		if h.Bad != 0 || h.Accepted != count*len(conns)/len(outside) {
			p.t.Errorf("outside: %d accepted, %d blocks with another's content", h.Accepted, h.Bad)
		}
	}
}

// protected waits until the owner says that the other gateway may take over without loss.
func (p *pairLab) protected(owner *nodes.Node) {
	p.t.Helper()
	var g api.Group
	if !until(20*time.Second, func() bool {
		var err error
		g, err = p.says(owner)
		return err == nil && slices.Contains(g.InSync, p.Other(owner).Name) && len(g.Why) == 0
	}) {
		p.wrong("the copy of the sessions at %s is not in sync: %+v", p.Other(owner).Name, g)
		p.t.FailNow()
	}
}

// copies checks that an operator sees at the other gateway what is a copy, and can end none of it there.
func (p *pairLab) copies(owner *nodes.Node) {
	p.t.Helper()
	for _, n := range p.Gateways() {
		var list api.Sessions
		check(p.t, n.Client.Get(p.t.Context(), api.PathSessions+"?tenant=alpha&proto=tcp", &list))
		copied := 0
		for i := range list.Sessions {
			if list.Sessions[i].Copy {
				copied++
			}
		}
		want := len(list.Sessions)
		if n == owner {
			want = 0
		}
		if copied != want || len(list.Sessions) < 100 {
			p.t.Errorf("%s: of %d sessions %d are said to be copies, want %d", n.Name, len(list.Sessions), copied, want)
		}
	}
	var cut api.Cut
	check(p.t, p.Other(owner).Client.Post(p.t.Context(), api.PathCut, api.CutRequest{All: true}, &cut))
	if cut.Cut != 0 || cut.Copies < 100 {
		p.t.Errorf("at the standby %d sessions are cut, %d are said to be copies", cut.Cut, cut.Copies)
	}
}

// TestPairKeepsConnections: the owner's process is killed under established connections of tenants behind NAT44 and of IPv6, with data and idle, and calls of UDP: each goes on through the other node, on
// the same public port; and when the killed node has come back and has its copy, the same the other way.
func TestPairKeepsConnections(t *testing.T) { pairJudged(t, keepsConnections) }

func keepsConnections(t *testing.T, l *quiet.Limits) {
	p := newPair(t, "pair", "")
	p.limits = l
	p.start()
	p.serve(5*time.Second, p.GW1)
	const count = 40
	conns, outside := p.hold(count)
	var events []event
	owner, want := p.GW1, "gw1"
	for round := range 2 {
		p.protected(owner)
		p.copies(owner)
		time.Sleep(apart)
		e := event{what: fmt.Sprintf("kill -9 of %s", owner.Name), from: time.Now(), least: 5 * time.Millisecond, most: 500 * time.Millisecond}
		dead := owner
		dead.Kill()
		owner = p.Other(owner)
		want += " " + owner.Name
		p.serve(5*time.Second, owner)
		time.Sleep(500 * time.Millisecond) // the gap ends at the hosts, not at the gateway
		e.to = time.Now()
		events = append(events, e)
		if round == 0 {
			check(t, dead.Start(t.Context()))
			check(t, p.Whole(t.Context(), 20*time.Second, nil))
		}
	}
	p.release(count, conns, outside)
	seen, v := p.end()
	p.held(seen, events)
	if m := seen.Moved(); len(m) > 0 {
		t.Errorf("%d flows have another public port now: %s", len(m), strings.Join(m[:min(len(m), 3)], ", "))
	}
	p.turns(v, want)
}
