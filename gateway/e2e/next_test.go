package e2e

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"demarc/gateway/api"
	"demarc/gateway/netlab/host"
)

// TestNextReleaseReadsToday: the next release reads entries, states, snapshots and copies as today's builds write them, and what today's refuses is what it writes. Today's
// program has nothing of it.
func TestNextReleaseReadsToday(t *testing.T) {
	mostlyWaits(t)
	later, err := os.ReadFile(nextRelease(t))
	check(t, err)
	now, err := os.ReadFile(program(t))
	check(t, err)
	for _, mark := range []string{nextVersion, "write a line into the audit log", "a note has 1 to 4096 bytes"} {
		if !bytes.Contains(later, []byte(mark)) {
			t.Errorf("the stand-in has no %q: it is not the next release", mark)
		}
		if bytes.Contains(now, []byte(mark)) {
			t.Errorf("today's program has %q", mark)
		}
	}
	check(t, goTool("test", "-count=1", "-vet=off", "-ldflags=-s -w", "-overlay", next.overlay, "-run", "^TestGolden", "./cluster/command", "./cluster/store"))
}

// flow is traffic through a gateway until it is ended: nothing of it may be lost.
func (m *machine) flow() (end func()) {
	r := m.trio
	r.t.Helper()
	echo, err := r.Serve(m.space+"out", "udp-echo", "-addr", ":7007")
	check(r.t, err)
	var p host.Probe
	ctx, stop := context.WithCancel(r.t.Context())
	done := make(chan error, 1)
	go func() {
		done <- r.Run(ctx, m.space+"in", &p, "udp-probe", "-dst", "203.0.113.2:7007", "-pps", "100", "-duration", "2m", "-wait", "2s")
	}()
	return func() {
		r.t.Helper()
		stop()
		check(r.t, <-done)
		check(r.t, echo.Stop(nil))
		if p.Received != p.Sent || p.Sent == 0 {
			r.t.Errorf("%d of %d packets came back through %s", p.Received, p.Sent, m.name)
		}
		r.t.Logf("%s: %d packets, the longest gap is %.0f ms", m.name, p.Sent, p.LongestMs)
	}
}

// upgrade, or the way back: the machine ends and starts with another program, while packets flow through every other gateway.
func (m *machine) upgrade(binary string) {
	r := m.trio
	r.t.Helper()
	var flows []func()
	for _, o := range r.nodes {
		if o != m && !o.witness {
			flows = append(flows, o.flow())
		}
	}
	began := time.Now()
	check(r.t, r.end(m.p, unix.SIGTERM))
	m.binary = binary
	m.start()
	want := nextVersion
	if binary == "" {
		want = "dev"
	}
	for _, o := range r.nodes { // everybody knows, and everybody is well but for what this release cannot do
		if !until(20*time.Second, func() bool {
			l := o.members()
			i := slices.IndexFunc(l.Members, func(x api.MemberState) bool { return x.Name == m.name })
			return i >= 0 && l.Members[i].Answered != nil && *l.Members[i].Answered < 2 && (l.Members[i].Version == want || o == m && l.Members[i].Stopped != "") && l.Leader != ""
		}) {
			r.t.Fatalf("%s does not know that %s is of %s: %s", o.name, m.name, want, o.must("cluster", "members"))
		}
	}
	r.t.Logf("%s is of %s after %s", m.name, want, time.Since(began))
	for _, end := range flows {
		end()
	}
}

// contact writes a policy that uses what the next release has.
func (r *trio) contact(name string) string {
	r.t.Helper()
	file := r.policy(name)
	check(r.t, os.WriteFile(file, fmt.Appendf(nil, clusterPolicy+"contact = \"noc@example.net\"\n", name), 0o644))
	return file
}

// refused wants an error that names who is too old.
func (m *machine) refused(says []string, args ...string) {
	m.trio.t.Helper()
	out, bad, err := m.cli(args...)
	if err == nil {
		m.trio.t.Errorf("%s: %s was not refused: %s", m.name, strings.Join(args, " "), out)
	}
	for _, s := range says {
		if !strings.Contains(bad, s) {
			m.trio.t.Errorf("%s: %s: does not say %q: %s", m.name, strings.Join(args, " "), s, bad)
		}
	}
}

// roll upgrades a cluster, one after the other. Every change that both releases know is made meanwhile; what is new is refused by name wherever it is asked for.
func roll(t *testing.T, order ...string) *trio {
	r := newTrio(t)
	binary := nextRelease(t)
	r.begin()
	for i, name := range order {
		m := r.nodes[name]
		m.upgrade(binary)
		m.whole(3)
		var old []string // that are left, by name
		for _, o := range order[i+1:] {
			old = append(old, o+" (version dev)")
		}
		slices.Sort(old)
		if len(old) == 0 {
			break
		}
		for _, by := range []string{name, order[i+1]} {
			file := r.policy(fmt.Sprintf("mixed-%d-by-%s", i, by))
			if out := r.nodes[by].must("apply", file); !strings.Contains(out, "gw1 and gw2 serve it") {
				t.Errorf("%s is of another release than others: %s", by, out)
			}
		}
		who, file := strings.Join(old, " and "), r.contact("new")
		does, them := " does not know ", ": upgrade it first"
		if len(old) > 1 {
			does, them = " do not know ", ": upgrade them first"
		}
		// A node that knows the key, or hears of it from a gateway that does, names everybody. One that does not says who does know it.
		for _, by := range []*machine{m, r.nodes[order[i+1]]} {
			switch {
			case by.binary == "" && !by.witness:
				by.refused([]string{"tenant[1].contact: is of a later release, which ", "(version " + nextVersion + ") runs: upgrade " + by.name + " (version dev) first"}, "apply", file)
			case r.nodes["gw1"].binary == "" && r.nodes["gw2"].binary == "":
				by.refused([]string{"gw1: ", "gw2: ", "tenant[1].contact: is of a later release, which wit (version " + nextVersion + ") runs: upgrade gw1 (version dev) first"}, "apply", file)
			default:
				by.refused([]string{who + does + nextFeature + them}, "apply", file)
			}
		}
		m.refused([]string{who + does + `"note" entries of level 2 (reading up to 1)` + them}, "cluster", "note", "too early")
		for _, o := range r.nodes {
			if o.binary == "" && !o.witness {
				o.refused([]string{"upgrade " + o.name + " (version dev) first"}, "diff", file)
			}
		}
		out := m.must("cluster", "members")
		for _, o := range order[i+1:] {
			if !strings.Contains(out, o+": its release (version dev) does not know tenant.contact and log entries of level 2: refused until it is upgraded") {
				t.Errorf("members do not say what %s holds up: %s", o, out)
			}
		}
	}
	if out := r.nodes["wit"].must("apply", r.contact("new")); !strings.Contains(out, "gw1 and gw2 serve it") {
		t.Errorf("every member knows it: %s", out)
	}
	return r
}

// TestRollingUpgradeWitnessFirst: the witness, then the gateways, under traffic; then what is new is used. A gateway that goes back says why it does not serve that, serves
// what it served before it, and holds up what it does not know; upgraded again it goes on.
func TestRollingUpgradeWitnessFirst(t *testing.T) {
	mostlyWaits(t)
	r := roll(t, "wit", "gw1", "gw2")
	gw1, gw2 := r.nodes["gw1"], r.nodes["gw2"]
	gw1.upgrade("")
	gw1.serves("mixed-1-by-gw2", 0)
	if !until(10*time.Second, func() bool {
		out := gw1.must("status")
		return strings.Contains(out, "it uses tenant.contact, which this node's release (version dev) does not know: upgrade this node") &&
			strings.Contains(out, "LATER     revision ")
	}) {
		t.Errorf("it does not say why: %s", gw1.must("status"))
	}
	end := gw1.flow()
	gw2.refused([]string{`gw1 (version dev) does not know "note" entries of level 2 (reading up to 1): upgrade it first`}, "cluster", "note", "too early")
	gw2.refused([]string{"gw1 (version dev) does not know tenant.contact: upgrade it first"}, "apply", r.contact("newer"))
	if out := gw2.must("apply", "--except", "gw1", r.contact("without-gw1")); !strings.Contains(out, "gw1 does not serve it") {
		t.Errorf("it was to stay behind: %s", out)
	}
	gw1.serves("mixed-1-by-gw2", 0)
	end()
	gw1.upgrade(gw2.binary)
	gw1.serves("without-gw1", 10*time.Second)
	gw1.whole(3)
}

// TestRollingUpgradeWitnessLast: the gateways, then the witness. A gateway that goes back meets an entry that it cannot read: it forwards, says so everywhere, takes no change and
// holds nobody up; upgraded again it goes on from there.
func TestRollingUpgradeWitnessLast(t *testing.T) {
	mostlyWaits(t)
	r := roll(t, "gw1", "gw2", "wit")
	gw1, gw2, wit := r.nodes["gw1"], r.nodes["gw2"], r.nodes["wit"]
	wit.must("cluster", "note", "all are upgraded")
	if !until(10*time.Second, func() bool { return strings.Contains(gw1.must("audit"), "all are upgraded") }) { // a follower hears of it a moment later
		t.Errorf("the note is not there: %s", gw1.must("audit"))
	}
	gw1.upgrade("")
	const why = `it is of a later release: "note" of level 2, this build reads up to 1: upgrade this node`
	if out := gw1.must("status"); !strings.Contains(out, "cluster   STOPPED, ") || !strings.Contains(out, "PROBLEM   no entry is applied any more: entry ") || !strings.Contains(out, why) {
		t.Errorf("it does not say that it has stopped: %s", out)
	}
	for _, m := range r.nodes {
		if !until(10*time.Second, func() bool {
			text, err := m.client.Text(t.Context(), api.PathMetrics)
			check(t, err)
			return strings.Contains(m.must("cluster", "members"), why) && strings.Contains(string(text), `demarc_cluster_member_stopped{member="gw1"} 1`)
		}) {
			t.Errorf("%s does not show it: %s", m.name, m.must("cluster", "members"))
		}
	}
	gw1.serves("mixed-1-by-wit", 0)
	end := gw1.flow()
	gw1.refused([]string{why}, "apply", r.policy("mine"))
	began := time.Now()
	out := gw2.must("apply", r.policy("goes-on"))
	if took := time.Since(began); !strings.Contains(out, "gw1 does not serve it yet: no entry is applied there any more") || took > 5*time.Second {
		t.Errorf("after %s: %s", took, out)
	}
	gw1.serves("mixed-1-by-wit", 0)
	end()
	gw1.upgrade(gw2.binary)
	gw1.serves("goes-on", 10*time.Second)
	gw1.whole(3)
}
