package e2e

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"demarc/gateway/api"
	"demarc/gateway/netlab/host"
)

// stream is traffic through a gateway, from its host inside to its host outside.
func (m *machine) stream(duration string) (wait func() host.Probe) {
	r := m.trio
	r.t.Helper()
	echo, err := r.Serve(m.space+"out", "udp-echo", "-addr", ":7007")
	check(r.t, err)
	var p host.Probe
	done := make(chan error, 1)
	go func() {
		done <- r.Run(r.t.Context(), m.space+"in", &p, "udp-probe", "-dst", "203.0.113.2:7007", "-pps", "100", "-duration", duration, "-wait", "1s")
	}()
	return func() host.Probe {
		r.t.Helper()
		check(r.t, <-done)
		check(r.t, echo.Stop(nil))
		return p
	}
}

// resident holds a process to a bound of memory, kB.
func resident(t testing.TB, pid, most int) {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	check(t, err)
	var kb int
	for l := range strings.Lines(string(b)) {
		if rest, ok := strings.CutPrefix(l, "VmRSS:"); ok {
			_, err = fmt.Sscan(rest, &kb)
			check(t, err)
		}
	}
	t.Logf("resident: %d kB", kb)
	if kb == 0 || kb > most {
		t.Errorf("%d kB are resident, want at most %d", kb, most)
	}
}

var witnessApplies = flag.Int("cluster.applies", 4, "how many policies of 10,000 rules TestClusterWitnessStaysSmall applies; what was asked for is 500")

// TestClusterWitnessStaysSmall: policies of 10,000 rules, one after the other, and again after a start.
func TestClusterWitnessStaysSmall(t *testing.T) {
	mostlyWaits(t)
	r := newTrio(t)
	gw1, wit := r.nodes["gw1"], r.nodes["wit"]
	gw1.start("--policy", r.policy("first"))
	wit.enter(gw1, "")
	gw1.whole(2)
	file := filepath.Join(r.dir, "large.toml")
	for i := range *witnessApplies {
		var b strings.Builder
		fmt.Fprintf(&b, clusterPolicy, fmt.Sprint("large-", i))
		for j := range 10_000 {
			fmt.Fprintf(&b, "[[tenant.rule]]\nname = \"r%d\"\ndirection = \"out\"\naction = \"deny\"\nto = [\"198.51.100.%d\"]\nservice = [\"tcp/%d\"]\n", j, j%250+1, j/250+i+1)
		}
		check(t, os.WriteFile(file, []byte(b.String()), 0o644))
		gw1.must("apply", file)
	}
	resident(t, wit.p.cmd.Process.Pid, 40<<10)
	check(t, r.end(wit.p, unix.SIGTERM))
	wit.start()
	gw1.whole(2)
	resident(t, wit.p.cmd.Process.Pid, 40<<10)
}

// TestClusterOfThree: an apply on any node reaches all; the leader is killed and the next change is accepted; a node that is cut off goes on with its
// packets and catches up; a confirm time ends although the leader died.
func TestClusterOfThree(t *testing.T) {
	mostlyWaits(t)
	r := newTrio(t)
	gw1, gw2, wit := r.begin()
	all, gateways := []*machine{gw1, gw2, wit}, []*machine{gw1, gw2}
	for _, m := range all {
		name := "by-" + m.name
		out := m.must("apply", r.policy(name))
		for _, g := range gateways {
			g.serves(name, 0) // it has returned: every gateway has acknowledged
		}
		if !strings.Contains(out, "gw1 and gw2 serve it") {
			t.Errorf("apply on %s: %s", m.name, out)
		}
	}

	if out := gw1.must("diff", r.policy("other")); !strings.Contains(out, "on gw2 0 sessions of ") {
		t.Error(out)
	}

	// The leader is killed, packets do not notice, the next change is accepted within 3 s.
	r.eventually(15*time.Second, "the witness leads", func() (bool, string) { l := gw1.members().Leader; return l == "wit", l })
	ping := gw1.stream("2s")
	wit.kill()
	began := time.Now()
	out := gw2.must("apply", r.policy("after-kill"))
	took := time.Since(began)
	t.Logf("a change %s after the leader was killed", took)
	if took > 3*time.Second {
		t.Errorf("it took %s", took)
	}
	for _, g := range gateways {
		g.serves("after-kill", 0)
	}
	if !strings.Contains(out, "gw1 and gw2 serve it") {
		t.Error(out)
	}
	if p := ping(); p.Received != p.Sent {
		t.Errorf("%d of %d packets came back while the leader was killed", p.Received, p.Sent)
	}
	wit.start()
	gw1.whole(3)

	// One gateway is cut off: it forwards, the others agree without it, and apply says so.
	ping = gw2.stream("3s")
	check(t, r.SetUp("gw2", "mgmt", false))
	began = time.Now()
	out, _, err := gw1.cli("apply", r.policy("without-gw2"))
	if err != nil || !strings.Contains(out, "gw2 does not serve it yet: not reached") {
		t.Errorf("%v, after %s: %s", err, time.Since(began), out)
	}
	gw1.serves("without-gw2", 0)
	gw2.serves("after-kill", 0)
	if p := ping(); p.Received != p.Sent {
		t.Errorf("%d of %d packets came back through the one that was cut off", p.Received, p.Sent)
	}
	check(t, r.SetUp("gw2", "mgmt", true))
	gw2.serves("without-gw2", 10*time.Second)
	gw2.whole(3)

	// What a gateway's own file has no place for is refused by its name, wherever it is applied.
	check(t, os.WriteFile(filepath.Join(r.dir, "unfit.toml"), []byte(strings.Replace(fmt.Sprintf(clusterPolicy, "unfit"), `"in"`, `"elsewhere"`, 1)), 0o644))
	if _, bad, err := wit.cli("apply", filepath.Join(r.dir, "unfit.toml")); err == nil || !strings.Contains(bad, "gw1: ") || !strings.Contains(bad, "gw2: ") ||
		!strings.Contains(bad, `"elsewhere" is not an interface of the node`) {
		t.Errorf("%v: %s", err, bad)
	}
	resident(t, wit.p.cmd.Process.Pid, 40<<10)

	// Nobody confirms, and the leader is dead.
	gw1.must("apply", r.policy("unconfirmed"), "--confirm", "3s")
	began = time.Now()
	var lead *machine
	r.eventually(3*time.Second, "somebody leads", func() (bool, string) { lead = r.nodes[gw1.members().Leader]; return lead != nil, "nobody" })
	for _, g := range gateways {
		g.serves("unconfirmed", 0)
	}
	lead.kill()
	for _, g := range gateways {
		if g == lead {
			continue
		}
		g.serves("without-gw2", 4*time.Second-time.Since(began)+time.Second/2)
		t.Logf("%s is back after %s", g.name, time.Since(began))
	}
}

// TestClusterMembers: new hardware takes a dead node's place and its name, the old one is refused by name, a member leaves, and one that the rest needs stays.
func TestClusterMembers(t *testing.T) {
	mostlyWaits(t)
	r := newTrio(t)
	gw1, gw2, wit := r.begin()
	if out := gw1.must("cluster", "init"); !strings.Contains(out, "3 members, reachable at 192.0.2.1:7400") {
		t.Error(out)
	}
	gw2.kill()
	if _, bad, err := gw1.cli("cluster", "remove", "wit"); err == nil || !strings.Contains(bad, "gw2 does not answer") {
		t.Errorf("one of two that live was removed: %v, %s", err, bad)
	}
	fresh := r.machine("gw2", "gw2b", 4, false)
	fresh.enter(wit, "gw2")
	for _, m := range []*machine{gw1, fresh, wit} {
		m.whole(3)
	}
	if out := fresh.must("apply", r.policy("replaced")); !strings.Contains(out, "gw1 and gw2 serve it") {
		t.Error(out)
	}
	gw2.start()
	if !until(10*time.Second, func() bool {
		var s api.Members
		if gw2.client.Get(t.Context(), api.PathMembers, &s) != nil {
			return false
		}
		for _, m := range s.Members {
			if m.Self && strings.Contains(m.Problem, "was replaced by gw2") {
				return true
			}
		}
		out, _, _ := gw2.cli("status")
		return strings.Contains(out, "was replaced by gw2")
	}) {
		t.Errorf("the old one is not told: %s", gw2.must("cluster", "members"))
	}
	gw2.serves("first", 0) // it has nothing newer, and does not stop
	if _, _, err := gw2.cli("apply", r.policy("mine")); err == nil {
		t.Error("the old one changed something")
	}
	var metrics []byte
	metrics, err := gw1.client.Text(t.Context(), api.PathMetrics)
	check(t, err)
	if !strings.Contains(string(metrics), `demarc_cluster_member_answers{member="gw2"} 1`) || !strings.Contains(string(metrics), `demarc_cluster_refused_connections_total{why="removed"}`) {
		t.Error("metrics do not tell of members")
	}
	check(t, r.end(gw2.p, unix.SIGTERM))

	out := fresh.must("cluster", "leave", "--yes")
	if !strings.Contains(out, "gw2 has left and goes on serving") {
		t.Error(out)
	}
	gw1.whole(2)
	if out := gw1.must("apply", r.policy("two")); !strings.Contains(out, "is served") {
		t.Error(out)
	}
	fresh.serves("replaced", 0)
	if _, bad, err := fresh.cli("apply", r.policy("mine")); err == nil || !strings.Contains(bad, "removed from this cluster") {
		t.Errorf("a node that has left changed something: %v, %s", err, bad)
	}
}
