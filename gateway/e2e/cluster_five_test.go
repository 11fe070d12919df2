package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"demarc/gateway/api"
	"demarc/gateway/netlab"
)

// TestClusterOfFive: four gateways and a witness. A newcomer that does not run gets no vote, and one that has caught up has it by itself; the lead goes where it is told, and
// back to the witness; two may die; one leaves and goes on serving, and is no part of what is agreed on any more.
func TestClusterOfFive(t *testing.T) {
	mostlyWaits(t)
	r := newTrio(t)
	gw3, gw4 := r.machine("gw3", "gw3", 4, false), r.machine("gw4", "gw4", 5, false)
	gw1, gw2, wit := r.begin()
	gw3.enter(wit, "")
	token := strings.TrimSpace(gw2.must("cluster", "token"))
	gw4.must("cluster", "join", gw2.address, "--token", token, "--node", gw4.node)
	if _, bad, err := gw2.cli("cluster", "promote", "gw4"); err == nil || !strings.Contains(bad, "gw4 does not answer, so it gets no vote yet") {
		t.Errorf("promote of one that does not run: %v, %s", err, bad)
	}
	if out := gw1.must("cluster", "members"); !strings.Contains(out, "not yet") {
		t.Errorf("a newcomer that does not run has a vote:\n%s", out)
	}
	gw4.start()
	// By hand or by itself, whichever is first.
	r.eventually(10*time.Second, "gw4 votes", func() (bool, string) {
		out, bad, err := gw1.cli("cluster", "promote", "gw4")
		return err == nil && strings.Contains(out, "gw4 votes") || strings.Contains(bad, "gw4 has its vote already"), out + bad
	})
	for _, m := range []*machine{gw1, gw4} {
		m.whole(5)
	}
	leads := func(want *machine, within time.Duration) {
		t.Helper()
		r.eventually(within, want.name+" leads", func() (bool, string) { l := gw2.members().Leader; return l == want.name, l })
	}
	leads(wit, 15*time.Second)
	if out := gw1.must("apply", r.policy("five")); !strings.Contains(out, "gw1, gw2, gw3 and gw4 serve it") {
		t.Error(out)
	}
	if out := gw2.must("cluster", "lead", "gw3"); !strings.Contains(out, "gw3 leads") {
		t.Error(out)
	}
	leads(gw3, 5*time.Second)

	// Two of five die, the leader is one of them. The witness has the lead again after that, by itself.
	gw3.kill()
	gw4.kill()
	began := time.Now()
	out := gw1.must("apply", r.policy("three-of-five"))
	t.Logf("a change %s after two were killed", time.Since(began))
	for _, m := range []*machine{gw1, gw2} {
		m.serves("three-of-five", 0)
	}
	if !strings.Contains(out, "gw3 does not serve it yet: not reached") || !strings.Contains(out, "gw4 does not serve it yet: not reached") {
		t.Error(out)
	}
	for _, name := range []string{"gw2", "wit"} {
		if _, bad, err := gw1.cli("cluster", "remove", name); err == nil || !strings.Contains(bad, "do not answer") {
			t.Errorf("%s, which the rest needs, was removed: %v, %s", name, err, bad)
		}
	}
	leads(wit, 15*time.Second)
	gw3.start()
	gw4.start()
	gw4.serves("three-of-five", 10*time.Second)
	gw1.whole(5)

	ping := gw4.stream("1s")
	if out := gw4.must("cluster", "leave", "--yes"); !strings.Contains(out, "gw4 has left and goes on serving") {
		t.Error(out)
	}
	for _, m := range []*machine{gw1, gw3} {
		m.whole(4)
	}
	if out := gw3.must("apply", r.policy("four")); !strings.Contains(out, "gw1, gw2 and gw3 serve it") || strings.Contains(out, "gw4") {
		t.Error(out)
	}
	gw4.serves("three-of-five", 0)
	if p := ping(); p.Received != p.Sent {
		t.Errorf("%d of %d packets came back through one that left", p.Received, p.Sent)
	}
}

const opsPolicy = clusterPolicy + `[[tenant]]
name = "ops"
interfaces = ["ops", "net"]
prefixes = ["198.18.101.0/24", "198.18.102.0/24", "192.0.2.0/24"]
[[tenant.route]]
prefix = "198.18.96.0/20"
via = "192.0.2.254"
%s`

// TestClusterPolicyCutsTheLinks: each gateway carries its own cluster's packets, through a tenant. A policy that denies that tenant everything cuts every link of the cluster, nobody
// can agree on anything, and when nobody has confirmed it in time each gateway goes back by itself; then they meet again and the log catches up.
func TestClusterPolicyCutsTheLinks(t *testing.T) {
	mostlyWaits(t)
	r := newTrio(t)
	gw1, gw2, wit := r.nodes["gw1"], r.nodes["gw2"], r.nodes["wit"]
	// The management network's router knows which gateway has which host behind it.
	check(t, r.AddNamespace("router"))
	check(t, r.Plug("net", netlab.End{NS: "router", Name: "eth0", Addrs: prefixes("192.0.2.254/24")}, 1, 1500))
	check(t, r.Sysctl("router", "net.ipv4.ip_forward", "1"))
	check(t, r.Sysctl("router", "net.ipv4.conf.all.send_redirects", "0"))
	check(t, r.Sysctl("router", "net.ipv4.conf.eth0.send_redirects", "0"))
	outside := "192.0.2.0/24"
	carry := map[*machine]func(){} // the machine's own way to the others becomes its gateway
	for i, m := range []*machine{gw1, gw2} {
		n := 101 + i
		own, gate, outer := fmt.Sprintf("198.18.%d.2", n), fmt.Sprintf("198.18.%d.1", n), fmt.Sprintf("192.0.2.%d", n)
		check(t, r.AddLink(netlab.LinkSpec{A: netlab.End{NS: m.space, Name: "mg0", Addrs: prefixes(own + "/24")}, B: netlab.End{NS: m.space, Name: "ops0"}}))
		check(t, r.Plug("net", netlab.End{NS: m.space, Name: "net0"}, 1, 1500))
		check(t, r.AddRoute("router", prefix(fmt.Sprintf("198.18.%d.0/24", n)), addr(outer)))
		m.edit(fmt.Sprintf("%q", m.address), fmt.Sprintf("%q", own+":7400"))
		m.address = own + ":7400"
		m.edit("[tables]\n", fmt.Sprintf("[[port]]\ndevice = \"ops0\"\n[[interface]]\nname = \"ops\"\nport = \"ops0\"\naddresses = [%q]\n[[port]]\ndevice = \"net0\"\n[[interface]]\nname = \"net\"\nport = \"net0\"\naddresses = [%q]\n[tables]\n",
			gate+"/24", outer+"/24"))
		carry[m] = func() {
			check(t, r.RemoveLink(m.space, "mgmt"))
			check(t, r.AddRoute(m.space, prefix("198.18.96.0/20"), addr(gate)))
			check(t, r.AddRoute(m.space, prefix(outside), addr(gate)))
		}
	}
	check(t, r.AddRoute("wit", prefix("198.18.96.0/20"), addr("192.0.2.254")))
	write := func(name, rules string) string {
		file := filepath.Join(r.dir, name+".toml")
		check(t, os.WriteFile(file, fmt.Appendf(nil, opsPolicy, name, rules), 0o644))
		return file
	}
	carry[gw1]()
	gw1.start("--policy", write("first", ""))
	// A gateway that does not run carries nothing, and it joins before it runs: by another way.
	check(t, r.AddRoute("gw2", prefix("198.18.96.0/20"), addr("192.0.2.254")))
	token := strings.TrimSpace(gw1.must("cluster", "token"))
	gw2.must("cluster", "join", gw1.address, "--token", token, "--node", gw2.node)
	carry[gw2]()
	gw2.start()
	wit.enter(gw1, "")
	for _, m := range []*machine{gw1, gw2, wit} {
		m.whole(3)
	}
	cut := write("cut", "[[tenant.rule]]\nname = \"oh-no\"\ndirection = \"out\"\naction = \"deny\"\n")
	pings := []func() (string, bool){}
	for _, m := range []*machine{gw1, gw2} {
		wait := m.stream("7s")
		pings = append(pings, func() (string, bool) {
			p := wait()
			return fmt.Sprintf("%s: %d of %d", m.name, p.Received, p.Sent), p.Received == p.Sent
		})
	}
	const confirm = 3 * time.Second
	said := make(chan string, 1)
	go func() {
		out, bad, err := gw1.cli("apply", cut, "--confirm", confirm.String())
		said <- fmt.Sprint(err, out, bad)
	}()
	type seen struct{ cut, back time.Time }
	both2 := map[*machine]*seen{gw1: {}, gw2: {}}
	told := "nothing yet"
	r.eventually(confirm+6*time.Second, "both have served it, and gone back", func() (bool, string) {
		select {
		case told = <-said:
		default:
		}
		done := true
		for m, s := range both2 {
			switch name := m.status().Revision.Name; {
			case s.cut.IsZero() && name == "cut":
				s.cut = time.Now()
			case !s.cut.IsZero() && s.back.IsZero() && name == "first":
				s.back = time.Now()
			}
			done = done && !s.back.IsZero()
		}
		if !both2[gw1].cut.IsZero() && !both2[gw2].cut.IsZero() && both2[gw1].back.IsZero() && both2[gw2].back.IsZero() && time.Since(both2[gw2].cut) > 1500*time.Millisecond {
			if lead := gw1.members().Leader + gw2.members().Leader; lead != "" {
				return false, "the links are not cut: " + lead + " leads"
			}
		}
		return done, fmt.Sprintf("%+v, %+v; the apply says: %s", *both2[gw1], *both2[gw2], told)
	})
	for m, s := range both2 {
		t.Logf("%s was back after %s of %s", m.name, s.back.Sub(s.cut), confirm)
		if over := s.back.Sub(s.cut) - confirm; over > time.Second {
			t.Errorf("%s was back %s after the deadline", m.name, over)
		}
	}
	for _, m := range []*machine{gw1, gw2, wit} {
		m.whole(3)
	}
	var h api.History
	check(t, wit.client.Get(t.Context(), api.PathHistory, &h))
	if h.Revisions[0].Name != "cut" || h.Revisions[0].Fate != "expired" {
		t.Errorf("%+v", h.Revisions[0])
	}
	for _, ping := range pings {
		if text, ok := ping(); !ok {
			t.Errorf("packets of sessions that the policy does not touch came back: %s", text)
		}
	}
	if out := gw2.must("apply", write("after", "")); !strings.Contains(out, "gw1 and gw2 serve it") {
		t.Error(out)
	}
}
