package e2e

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"demarc/gateway/api"
	"demarc/gateway/netlab"
	"demarc/gateway/netlab/host"
	"demarc/gateway/netlab/quiet"
	nodes "demarc/gateway/trio"
)

// demoted waits until gw2 says that it owns the group since gw1 was demoted for a cause, and returns what it says.
func (p *pairLab) demoted(cause string) (g api.Group) {
	p.t.Helper()
	var err error
	if !until(10*time.Second, func() bool {
		g, err = p.says(p.GW2)
		return err == nil && g.Serving && g.Owner == "gw2" && g.Last != nil && g.Last.Epoch == g.Epoch // it serves a moment before it has told of it
	}) || g.Cause != cause || g.From != "gw1" || g.Last == nil || g.Last.Cause != cause {
		was, werr := p.says(p.GW1)
		p.wrong("gw2 is to own the group, for the cause %q, and says %+v, last %+v, %v; gw1: %+v, %v", cause, g, g.Last, err, was, werr)
		p.t.FailNow()
	}
	return g
}

// A policy that the owner cannot compile is agreed on with it left behind: the group goes to the other gateway, which serves that policy, and no connection is lost.
func TestPairPolicyNotServed(t *testing.T) { pairJudged(t, policyNotServed) }

func policyNotServed(t *testing.T, l *quiet.Limits) {
	p := newPairOf(t, nodes.Options{Lab: "pair"}, "", func(p *pairLab) {
		for i, n := range p.Gateways() {
			text := read(t, n.File) + fmt.Sprintf("\n[[interface]]\nname = \"guest\"\nport = \"alpha0\"\nvlan = 7\naddresses = [\"198.18.7.%d/24\"]\n", 2+i)
			if n == p.GW1 {
				text = replace(t, text, "[tables]\n", "[tables]\ntenants = 2\n")
			}
			check(t, os.WriteFile(n.File, []byte(text), 0o644))
		}
	})
	p.limits = l
	p.start()
	p.serve(5*time.Second, p.GW1)
	const count = 10
	conns, outside := p.hold(count)
	p.protected(p.GW1)
	time.Sleep(300 * time.Millisecond)
	three := filepath.Join(t.TempDir(), "three.toml")
	guest := "[[tenant]]\nname = \"guest\"\ninterfaces = [\"guest\"]\nprefixes = [\"198.18.7.0/24\"]\ndefault_out = \"allow\"\n\n[[group]]\n"
	check(t, os.WriteFile(three, []byte(replace(t, nodes.PairPolicy(""), "[[group]]\n", guest)), 0o644))
	if out, err := p.GW2.Run(t.Context(), "apply", three); err == nil || !strings.Contains(out+err.Error(), "tables.tenants: 2 is less than the 3 tenants of the policy") {
		t.Errorf("apply without --except: %v, %s", err, out)
	}
	p.serve(time.Second, p.GW1) // nothing is changed
	e := event{what: "gw1 cannot serve the policy", from: time.Now(), most: 300 * time.Millisecond}
	out, err := p.GW2.Run(t.Context(), "apply", three, "--except", "gw1")
	if err != nil {
		t.Fatalf("apply --except gw1: %v, %s", err, out)
	}
	p.demoted("policy")
	p.serve(5*time.Second, p.GW2)
	e.to = time.Now()
	if g, err := p.says(p.GW1); err != nil || g.Conditions["policy"] != 1 {
		t.Errorf("gw1 does not say what counts against it: %+v, %v", g, err)
	}
	if out, err := p.GW2.Run(t.Context(), "group", "move", nodes.PairGroup, "gw1"); err == nil || !strings.Contains(err.Error(), "gw1 has 1 conditions against it, and this node 0") {
		t.Errorf("the group is moved to a gateway that does not serve the policy: %v, %s", err, out)
	}
	p.release(count, conns, outside)
	seen, v := p.end()
	p.held(seen, []event{e})
	p.turns(v, "gw1 gw2")
	if n := len(seen.Moved()); n > 0 {
		t.Errorf("%d flows have another public port now", n)
	}
}

// Packets that make the workers of either gateway panic are sent without end: the owner is demoted for it, and the next one, which they meet as well, is not. All other flows go on.
func TestPairPoison(t *testing.T) { pairJudged(t, poisonedPair) }

// poisonFor is for how long the poison goes on. A flow is blocked for a minute, and gw1 has the panics against it for as long: only beyond that it could go back, and forth.
var poisonFor = flag.Duration("faults.poison", 4*time.Second, "how long TestPairPoison sends what makes a worker panic; beyond a minute each block is over, and the flow is met again")

func poisonedPair(t *testing.T, l *quiet.Limits) {
	never(t) // the programs know of no stage that is broken for a test, so a gateway with one refuses to have them carry
	p := newPairOf(t, nodes.Options{Lab: "pair"}, "", func(p *pairLab) {
		for _, n := range p.Gateways() {
			n.Args = []string{"--break", "poison"} // what tenants send to 203.0.113.66 panics
		}
		policy := filepath.Join(filepath.Dir(filepath.Dir(p.GW1.File)), "pair.toml")
		check(t, os.WriteFile(policy, []byte(strings.ReplaceAll(read(t, policy), nodes.PairLinkPool, "203.0.113.128/30")), 0o644)) // that address is in none of its pools
	})
	p.limits = l
	p.startEach(max(2*time.Millisecond, *poisonFor/40000).Round(time.Millisecond)) // what captures hold is bounded
	p.serve(5*time.Second, p.GW1)
	p.protected(p.GW1)
	time.Sleep(300 * time.Millisecond)
	const poisoner = "198.18.10.240" // an address of its own: it is blocked as a whole
	check(t, p.AddAddr(nodes.PairAlpha, netlab.HostDevice, prefix(poisoner+"/24")))
	e := event{what: "poison", from: time.Now(), most: 300 * time.Millisecond}
	var sent host.Flood
	check(t, p.Run(t.Context(), nodes.PairAlpha, &sent, "udp-flood", "-dst", "203.0.113.66:9", "-from", poisoner, "-bits", "400e3", "-size", "64", "-duration", poisonFor.String()))
	if sent.Sent < 100 {
		t.Fatalf("only %d such packets were sent", sent.Sent)
	}
	g := p.demoted("panics")
	p.serve(5*time.Second, p.GW2)
	e.to = time.Now()
	for _, n := range p.Gateways() {
		s, err := n.Status(t.Context())
		check(t, err)
		panics := uint64(0)
		for _, w := range s.Workers {
			panics += w.Panics
		}
		least := uint64(1)
		if n == p.GW2 { // and again behind each block
			least += uint64(*poisonFor / (time.Minute + 10*time.Second))
		}
		if t.Logf("%s has panicked %d times", n.Name, panics); panics < least {
			t.Errorf("of %d packets that were sent only %d have made %s panic, want %d", sent.Sent, panics, n.Name, least)
		}
	}
	seen, v := p.end()
	p.held(seen, []event{e})
	p.turns(v, "gw1 gw2")
	if n := len(seen.Moved()); n > 0 || g.Last.From != "gw1" {
		t.Errorf("%d flows have another public port now; the last move: %+v", n, g.Last)
	}
}

// The workers of the owner are caught in a loop that does not end: the group goes to the other gateway with all of its connections, though nobody there can be asked to let go.
func TestPairWorkerStuck(t *testing.T) { pairJudged(t, workerStuck) }

func workerStuck(t *testing.T, l *quiet.Limits) {
	p := newPairOf(t, nodes.Options{Lab: "pair", Binary: plantProgram(t)}, "", func(p *pairLab) { p.GW1.Env = []string{"DEMARC_PLANT=worker-loops"} })
	p.limits = l
	p.start()
	p.serve(5*time.Second, p.GW1)
	const count = 10
	conns, outside := p.hold(count)
	p.protected(p.GW1)
	time.Sleep(300 * time.Millisecond)
	e := event{what: "the workers of gw1 are in a loop", from: time.Now(), least: 500 * time.Millisecond, most: 1500 * time.Millisecond} // who does not answer for 600 ms is stuck
	if offloaded() {
		e.least = 100 * time.Millisecond // programs go on until the worker's own deadline, 400 ms ahead
	}
	check(t, unix.Kill(p.GW1.Pid(), unix.SIGUSR2))
	p.demoted("worker")
	p.serve(5*time.Second, p.GW2)
	e.to = time.Now()
	if g, err := p.says(p.GW1); err != nil || g.Conditions["worker"] == 0 || !slices.Contains(g.Against, "1 workers do not answer") {
		t.Errorf("gw1 does not say what counts against it: %+v, %v", g, err)
	}
	began := time.Now()
	text, err := p.GW1.Client.Text(t.Context(), api.PathMetrics)
	check(t, err)
	if took := time.Since(began); took > 5*time.Second || !strings.Contains(string(text), "demarc_group_conditions{cause=\"worker\",group=\"east\"} 1\n") {
		t.Errorf("after %s the metrics of gw1 do not say that a worker is stuck", took)
	}
	t.Logf("scraped in %s", time.Since(began))
	began = time.Now()
	if err := p.GW1.Stop(); err == nil || !strings.Contains(p.GW1.Log(100), "worker 0 has not ended within 5s: the process ends without it") {
		t.Errorf("gw1 ends: %v", err)
	}
	t.Logf("ended in %s", time.Since(began))
	p.GW1.Env = nil
	check(t, p.GW1.Start(t.Context()))
	p.protected(p.GW2)
	p.release(count, conns, outside)
	seen, v := p.end()
	p.held(seen, []event{e})
	p.turns(v, "gw1 gw2")
	if n := len(seen.Moved()); n > 0 {
		t.Errorf("%d flows have another public port now", n)
	}
}
