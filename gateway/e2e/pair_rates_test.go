package e2e

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"demarc/gateway/api"
	"demarc/gateway/netlab"
	"demarc/gateway/netlab/host"
	"demarc/gateway/netlab/quiet"
	nodes "demarc/gateway/trio"
)

// TestPairRates: tenants send far more than their limits let through, and the owner is killed. The next one goes on with what is left of each limit, which is nothing, and not with two more seconds' worth of burst; and with what was counted, which is billed.
func TestPairRates(t *testing.T) { pairJudged(t, pairRates) }

func pairRates(t *testing.T, l *quiet.Limits) {
	p := newPair(t, "pair", "")
	p.limits = l
	const (
		burst   = 2 * time.Second
		bits    = 4e6 // of alpha, to the outside by NAT44
		packets = 400 // of beta, from the outside by IPv6
		payload = 1172
	)
	policy := replace(t, nodes.PairPolicy(""), "nat.pool = [\""+nodes.PairPool+"\"]\n", fmt.Sprintf("nat.pool = [%q]\n[tenant.rates.out]\nbits = %.0f\nburst = %q\nmode = \"police\"\n", nodes.PairPool, bits, burst))
	policy = replace(t, policy, "nat.pool = [\""+nodes.PairLinkPool+"\"]\n", fmt.Sprintf("nat.pool = [%q]\n[tenant.rates.in]\npackets = %d\nburst = %q\nmode = \"police\"\n%s", nodes.PairLinkPool, packets, burst, rigLetIn))
	p.apply(policy)
	p.protected(p.GW1)

	type limited struct {
		tenant, from, to string
		dst              netip.Addr
		port             uint16
		offered          float64 // bit/s
		want             float64 // bit/s, of IP bytes
		used             func(api.Tenant) uint64
		sink             *netlab.Server
		flood            host.Flood
		done             chan error
	}
	const size6 = (payload + 48) * 8
	all := []*limited{
		{tenant: "alpha", from: nodes.PairAlpha, to: nodes.PairOut, dst: p.Outside(false), port: 9001, offered: 3 * bits, want: bits, used: func(x api.Tenant) uint64 { return x.Usage.Out.Bytes }},
		{tenant: "beta", from: nodes.PairOut, to: nodes.PairBeta, dst: p.Inside(nodes.PairBeta, true), port: 9002, offered: 3 * packets * size6, want: packets * size6, used: func(x api.Tenant) uint64 { return x.Usage.In.Bytes }},
	}
	const (
		skip   = 2 * time.Second // the burst that each begins with is used up after one
		kill   = 3500 * time.Millisecond
		window = 5 * time.Second
	)
	for _, x := range all {
		var err error
		x.sink, err = p.Serve(x.to, "udp-sink", "-addr", fmt.Sprintf(":%d", x.port))
		check(t, err)
		x.done = make(chan error, 1)
		go func() {
			x.done <- p.Run(t.Context(), x.from, &x.flood, "udp-flood", "-dst", addrPort(x.dst, x.port), "-size", fmt.Sprint(payload), "-bits", fmt.Sprintf("%.0f", x.offered), "-duration", (skip + window + time.Second).String())
		}()
	}
	time.Sleep(kill)
	p.GW1.Kill()
	p.owned(p.GW2, "", "gw1")
	for _, x := range all {
		check(t, <-x.done)
	}
	time.Sleep(200 * time.Millisecond) // what is counted is shown some tens of milliseconds later
	st, err := p.GW2.Status(t.Context())
	check(t, err)
	for _, x := range all {
		var s host.Sink
		check(t, x.sink.Stop(&s))
		got := s.Tags["flood"]
		if got == nil || got.Packets == 0 {
			t.Errorf("%s: nothing arrived", x.tenant)
			continue
		}
		// A second's worth is sent in a third of one, so within skip the burst is gone; the limit is always overdrawn from then on, and what passes is what it lets through. The standby was told of it a tenth of a second ago at most, and
		// has let that much of it drain since; while nobody served all of it did, and is used up behind that.
		rate := got.Rate(skip, window)
		more := (rate - x.want) * window.Seconds() / x.want
		used := x.used(rigTenantOf(st, x.tenant))
		t.Logf("%s: offered %.2f Mbit/s, got %.3f of %.3f, %+.2f s' worth in %s with a kill in it; %d bytes arrived, %d are billed", x.tenant, x.flood.Bits/1e6, rate/1e6, x.want/1e6, more, window, got.IPBytes, used)
		switch {
		case more > 1.2: // a burst of its own would be two, less what the gap took
			t.Errorf("%s: %.1f s' worth more than the limit got through in %s, in which its owner was killed: the next one began with a burst of its own", x.tenant, more, window)
		case more > 0.3 || more < -0.3:
			p.missed("%s: %+.2f s' worth beside the limit got through in %s, in which its owner was killed", x.tenant, more, window)
		}
		if x.flood.Bits < 2*x.want {
			p.missed("%s: only %.0f bit/s were offered: no overload", x.tenant, x.flood.Bits)
		}
		// What was not told when the owner died is lost; nothing counts twice. What left is counted, and the last of it may not have arrived.
		second := x.want / 8
		if lost := float64(got.IPBytes) - float64(used); lost > second || lost < -second/2 {
			t.Errorf("%s: %d bytes arrived, and %d are billed: %.2f s' worth beside", x.tenant, got.IPBytes, used, lost/second)
		} else if lost > 0.4*second {
			p.missed("%s: %d bytes arrived, and %d are billed: %.2f s' worth less", x.tenant, got.IPBytes, used, lost/second)
		}
	}
	p.agreed(p.GW2)
}
