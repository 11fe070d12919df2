package e2e

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"demarc/gateway/api"
	"demarc/gateway/netlab"
	"demarc/gateway/netlab/host"
)

// confirmClosed denies alpha one port of the first public host; confirmOpen is the same policy without that rule.
func confirmClosed() string {
	return rigPolicy(`
[[tenant.rule]]
name = "not-there"
direction = "out"
action = "deny"
to = ["203.0.113.11"]
service = ["udp/7008"]
`, "")
}

func confirmOpen() string { return rigPolicy("", "") }

// applyWith is apply with further arguments.
func (r *rig) applyWith(text string, args ...string) *api.Applied {
	r.t.Helper()
	path := filepath.Join(r.dir, "apply.toml")
	r.write(path, text)
	a := new(api.Applied)
	r.ask(a, append([]string{"apply", path}, args...)...)
	return a
}

// no runs a command that must be refused with words that tell.
func (r *rig) no(want string, args ...string) {
	r.t.Helper()
	if _, bad, code := r.cli(args...); code != 1 || !strings.Contains(bad, want) || strings.Count(strings.TrimSpace(bad), "\n") > 0 {
		r.t.Errorf("demarc %s: status %d, %q, want %q", strings.Join(args, " "), code, bad, want)
	}
}

func (r *rig) history() *api.History {
	r.t.Helper()
	h := new(api.History)
	r.ask(h, "history")
	return h
}

// serves waits until the node serves a revision. What it was before is asked every few milliseconds.
func (r *rig) serves(d time.Duration, number uint64) {
	r.t.Helper()
	r.until(d, fmt.Sprintf("revision %d is served", number), func() (bool, string) {
		st := new(api.Status)
		if err := r.api.Get(r.t.Context(), api.PathStatus, st); err != nil {
			return false, err.Error()
		}
		return st.Revision.Number == number, fmt.Sprintf("revision %d", st.Revision.Number)
	})
}

// heard notes when packets with a tag come to a host.
type heard struct{ first, last, n atomic.Int64 }

func (r *rig) hear(ns, tag string) *heard {
	r.t.Helper()
	h, mark := &heard{}, host.ProbeMarker(tag)
	(&site{Topology: r.Topology, t: r.t}).capture(ns, netlab.HostDevice, 0, func(b []byte) bool {
		if bytes.Contains(b, mark) {
			now := time.Now().UnixNano()
			h.first.CompareAndSwap(0, now)
			h.last.Store(now)
			h.n.Add(1)
		}
		return false
	})
	return h
}

// A change that nobody confirms goes by itself: what it allowed gets through while it is served and not a second longer than its time, its
// sessions are cut, and the other tenant loses nothing.
func TestConfirmTimeIsOver(t *testing.T) {
	mostlyWaits(t)
	r := newRig(t, "expiry", confirmClosed())
	r.start()
	r.serve(r.Public1.Name, "udp-echo", "-addr", ":7007")
	r.serve(r.Public1.Name, "udp-echo", "-addr", ":7008")
	watch, err := netlab.WatchMachine()
	check(t, err)
	h := r.hear(r.Public1.Name, "denied")
	var denied, other host.Probe
	jobs := []*job{r.spawn(r.Alpha1.Name, &denied, "udp-probe", "-dst", addrPort(r.Public1.V4, 7008), "-tag", "denied", "-pps", "200", "-duration", "5s"),
		r.spawn(r.Beta1.Name, &other, "udp-probe", "-dst", addrPort(r.Public1.V4, 7007), "-pps", "500", "-duration", "5s", "-wait", "1s")}
	time.Sleep(300 * time.Millisecond)
	if h.n.Load() > 0 {
		t.Error("the denied flow got through before it was allowed")
	}
	const limit = 2 * time.Second
	asked := time.Now()
	a := r.applyWith(confirmOpen(), "--confirm", limit.String(), "--comment", "try it")
	over := time.Since(asked) + limit // at the latest: the time began before the apply returned
	if a.Revision.Number != 2 || a.Confirm != limit.Seconds() || a.NotKept != "" {
		t.Errorf("applied: %+v", a)
	}
	st := r.status()
	if p := st.Cluster.Provisional; p == nil || p.Revision != 2 || p.Before != 1 || p.Left <= 0 || p.Left > limit.Seconds() || st.Cluster.Confirmed != 1 || st.Revision.Number != 2 {
		t.Errorf("status: %+v, provisional %+v", st.Cluster, p)
	}
	if text, _, _ := r.cli("status"); !strings.Contains(text, "UNCONFIRMED revision 2") || !strings.Contains(text, "demarc confirm 2") {
		t.Errorf("status does not say that a revision waits:\n%.600s", text)
	}
	if r.plain("demarc_cluster_provisional") != 1 || r.plain("demarc_cluster_provisional_seconds_left") <= 0 || r.plain("demarc_cluster_leader") != 1 {
		t.Error("the metrics do not say that a revision waits")
	}
	r.no("waits for its confirmation", "apply", r.policy)
	r.serves(over+2*time.Second, 1)
	back := time.Since(asked)
	r.wait(jobs...)
	var machine host.Machine
	check(t, watch.Stop(&machine))
	away := time.Duration(machine.WorstMs * 1e6) // nothing was sent meanwhile, perhaps at the very end of the time, and nobody went back
	first, last := time.Unix(0, h.first.Load()).Sub(asked), time.Unix(0, h.last.Load()).Sub(asked)
	t.Logf("of the denied flow %d packets got through, from %v to %v after the apply; the old revision is served again after %v; the other tenant %d of %d, longest gap %.1f ms",
		h.n.Load(), first.Round(time.Millisecond), last.Round(time.Millisecond), back.Round(time.Millisecond), other.Received, other.Sent, other.LongestMs)
	if first < 0 || last < limit-100*time.Millisecond-away || last > over+time.Second+away || back > over+time.Second+away {
		t.Errorf("want it through for %v, and not a second longer than to %v; %s", limit, over.Round(time.Millisecond), machine)
	}
	if other.Received != other.Sent {
		t.Errorf("the other tenant lost %d of %d", other.Sent-other.Received, other.Sent)
	}
	for _, s := range sessionsOf(r, "alpha", 0) {
		if strings.HasSuffix(s.Dst, ":7008") {
			t.Errorf("a session that the old revision denies lives on: %+v", s)
		}
	}
	if e := r.history().Revisions; len(e) != 2 || e[0].Fate != "expired" || e[0].Comment != "try it" || !e[1].Served {
		t.Errorf("history: %+v", e)
	}
	r.no("too late: revision 2 was not confirmed within 2s, revision 1 is served again", "confirm", "2")
	r.no("too late: revision 2 was not confirmed within 2s", "confirm")
	if st := r.status(); st.Cluster.Provisional != nil || st.Cluster.Problem != "" || r.plain("demarc_cluster_provisional") != 0 {
		t.Errorf("afterwards: %+v", st.Cluster)
	}
	if a := r.apply(confirmOpen()); a.Revision.Number != 3 {
		t.Errorf("the next revision is %d: a number was given twice", a.Revision.Number)
	}
	r.stop()
}

// What is confirmed in time stays, also through kill -9 right after.
func TestConfirmInTime(t *testing.T) {
	mostlyWaits(t)
	r := newRig(t, "confirm", confirmClosed())
	r.start()
	r.no("nothing waits for a confirmation: revision 1 is served and confirmed", "confirm")
	r.no("nothing waits for a confirmation", "rollback")
	r.applyWith(confirmOpen(), "--confirm", "2s")
	r.no("there is no revision 9 to confirm", "confirm", "9")
	r.no("revision 1 is confirmed already", "confirm", "1")
	if files, _ := filepath.Glob(filepath.Join(r.data, "policies", "*.revision")); len(files) != 1 {
		t.Errorf("the node's own copy has what is not confirmed: %v", files)
	}
	var c api.Confirmed
	r.ask(&c, "confirm", "2")
	confirmed := time.Now()
	if c.Revision.Number != 2 || c.NotKept != "" {
		t.Errorf("%+v", c)
	}
	r.no("revision 2 is confirmed already", "confirm", "2")
	r.kill()
	r.start()
	r.until(5*time.Second, "the time is over", func() (bool, string) { return time.Since(confirmed) > 2500*time.Millisecond, "" })
	st := r.status()
	if st.Revision.Number != 2 || st.Cluster.Confirmed != 2 || st.Cluster.Provisional != nil || st.Cluster.Problem != "" {
		t.Errorf("after kill -9 and the time: revision %d, %+v", st.Revision.Number, st.Cluster)
	}
	r.stop()
}

// kill -9 while a revision waits for its confirmation: it is served again, still provisional, and has the rest of its time and no more.
func TestConfirmCountsThroughKill(t *testing.T) {
	mostlyWaits(t)
	r := newRig(t, "restcounts", confirmClosed())
	r.start()
	r.serve(r.Public1.Name, "udp-echo", "-addr", ":7008")
	r.applyWith(confirmOpen(), "--confirm", "5s")
	var left float64
	r.until(5*time.Second, "two seconds pass", func() (bool, string) {
		p := r.status().Cluster.Provisional
		if p == nil {
			return false, "it is over"
		}
		left = p.Left
		return left < 3, fmt.Sprint(left)
	})
	r.kill()
	r.start()
	started := time.Now()
	r.serves(2*time.Second, 2)
	st := r.status()
	if p := st.Cluster.Provisional; p == nil || p.Revision != 2 || p.Left > left+1 || p.Left <= 0 {
		t.Errorf("after kill -9 with %.1f s left: %+v", left, p)
	}
	var p host.Probe
	r.wait(r.spawn(r.Alpha1.Name, &p, "udp-probe", "-dst", addrPort(r.Public1.V4, 7008), "-pps", "50", "-duration", "200ms", "-wait", "300ms"))
	if p.Received == 0 {
		t.Error("the provisional policy is not what packets meet")
	}
	// The rest is put on disk twice a second, so at most half a second comes back, and what the machine lost meanwhile.
	r.serves(time.Duration((left+2.5)*float64(time.Second)), 1)
	t.Logf("%.1f s were left at kill -9, the old revision is served %v after the start", left, time.Since(started).Round(time.Millisecond))
	r.wait(r.spawn(r.Alpha1.Name, &p, "udp-probe", "-dst", addrPort(r.Public1.V4, 7008), "-pps", "50", "-duration", "200ms", "-wait", "300ms"))
	if p.Received > 0 {
		t.Error("what the old revision denies gets through")
	}
	r.kill()
	r.start()
	if st := r.status(); st.Revision.Number != 1 {
		t.Errorf("after another start: revision %d", st.Revision.Number)
	}
	if a := r.apply(confirmOpen()); a.Revision.Number != 3 {
		t.Errorf("the next revision is %d", a.Revision.Number)
	}
	r.stop()
}

// A rollback cuts exactly what the old revision denies, as diff said before; taking a provisional revision back does the same.
func TestRollbackCutsExactlyWhatIsDenied(t *testing.T) {
	r := newRig(t, "rollback", confirmClosed())
	r.start()
	r.serve(r.Public1.Name, "udp-echo", "-addr", ":7007")
	r.serve(r.Public1.Name, "udp-echo", "-addr", ":7008")
	rigEcho(r, r.Public1.Name, ":7100")
	for round, back := range [][]string{{"rollback", "1", "--comment", "as it was"}, {"rollback"}} {
		if round == 0 {
			r.apply(confirmOpen())
		} else {
			r.applyWith(confirmOpen(), "--confirm", "1m")
		}
		kept := rigDial(r, r.Alpha1.Name, addrPort(r.Public1.V4, 7100))
		var bad, good, other host.Probe
		stream := func(from netlab.Host, into *host.Probe, port uint16) *job {
			return r.spawn(from.Name, into, "udp-probe", "-dst", addrPort(r.Public1.V4, port), "-pps", "500", "-duration", "2s", "-wait", "1s")
		}
		jobs := []*job{stream(r.Alpha1, &bad, 7008), stream(r.Alpha1, &good, 7007), stream(r.Beta1, &other, 7008)}
		r.until(2*time.Second, "the streams run", func() (bool, string) {
			n := 0
			var s api.Sessions
			r.ask(&s, "sessions")
			for _, x := range s.Sessions {
				if strings.HasSuffix(x.Dst, ":7008") || strings.HasSuffix(x.Dst, ":7007") {
					n++
				}
			}
			return n >= 3+2*round, fmt.Sprint(n, " sessions") // those that were not cut in the first round are still there
		})
		var d api.Diff
		r.ask(&d, "diff", "--to", "1")
		if d.Cut != 1 || len(d.CutByTenant) != 1 || d.CutByTenant["alpha"] != 1 || d.To == nil || d.To.Number != 1 || len(d.Changes) == 0 {
			t.Errorf("diff --to 1: %d cut, by tenant %v, to %+v, changes %v", d.Cut, d.CutByTenant, d.To, d.Changes)
		}
		if text, _, _ := r.cli("diff", "--to", "1"); !strings.Contains(text, "1 session of") || !strings.Contains(text, "would be cut: alpha 1") {
			t.Errorf("diff for people:\n%s", text)
		}
		var a api.Applied
		r.ask(&a, back...)
		r.wait(jobs...)
		if a.Cut != 1 || a.CutByTenant["alpha"] != 1 || len(a.Changes) == 0 {
			t.Errorf("%v: %d cut, by tenant %v, %d changes", back, a.Cut, a.CutByTenant, len(a.Changes))
		}
		if bad.Received == 0 || bad.Received >= bad.Sent {
			t.Errorf("%v: the denied stream got %d of %d", back, bad.Received, bad.Sent)
		}
		if good.Received != good.Sent || other.Received != other.Sent || !alive(kept, 2*time.Second) {
			t.Errorf("%v: what is not denied: %d of %d, %d of %d", back, good.Received, good.Sent, other.Received, other.Sent)
		}
		e := r.history().Revisions
		switch {
		case round == 0 && (a.Revision.Number != 3 || e[0].Back != 1 || e[0].Comment != "as it was" || e[0].Digest != e[2].Digest || e[0].Before != 2):
			t.Errorf("%v: %+v; %+v", back, a.Revision, e)
		case round == 1 && (a.Revision.Number != 3 || e[0].Number != 4 || e[0].Fate != "taken back" || !e[1].Served):
			t.Errorf("%v: %+v; %+v", back, a.Revision, e)
		}
	}
	r.stop()
}

// What is exported is the policy as it was, says which it is, and applied again has the same digest; show is the text to the byte.
func TestHistoryShowExport(t *testing.T) {
	mostlyWaits(t)
	second := rigPolicy("# a comment at the end of a tenant\n", "") + "\n# no line end"
	r := newRig(t, "export", rigPolicy("", ""))
	r.start()
	r.applyWith(second, "--comment", "two\tlines")
	r.apply(rigPolicy("[tenant.rates.out]\nbits = \"7M\"\n", ""))
	h := r.history()
	if h.Cluster == "" || h.Serving != 3 || h.Confirmed != 3 || len(h.Revisions) != 3 {
		t.Fatalf("history: %+v", h)
	}
	who, err := os.ReadFile("/proc/self/loginuid")
	for i, e := range h.Revisions {
		if e.Number != uint64(3-i) || e.Fate != "confirmed" || e.Served != (i == 0) || e.AppliedAt.IsZero() || !strings.HasPrefix(e.Digest, "sha256:") || e.Bytes == 0 {
			t.Errorf("history: %+v", e)
		}
		if e.Number > 1 && (e.Author == "" || !strings.HasPrefix(e.From, "e2e, unix socket, pid ")) {
			t.Errorf("revision %d is by %q from %q (login id %q, %v)", e.Number, e.Author, e.From, who, err)
		}
	}
	if text, bad, code := r.cli("history"); code != 0 || !strings.Contains(text, "confirmed, served") || !strings.Contains(text, "two?lines") {
		t.Errorf("history for people: status %d, %s\n%s", code, bad, text)
	}
	if text, _, code := r.cli("show", "2"); code != 0 || text != second {
		t.Errorf("show 2: status %d, another text:\n%s", code, text)
	}
	var s api.Shown
	r.ask(&s, "show", "2")
	if s.Policy != second || s.Comment != "two\tlines" || s.Number != 2 {
		t.Errorf("show 2 --json: %+v", s)
	}
	text, _, code := r.cli("export", "2")
	if code != 0 || !strings.HasSuffix(text, second) || !strings.Contains(text, "revision 2 of cluster "+h.Cluster) || !strings.Contains(text, h.Revisions[1].Digest) {
		t.Errorf("export 2: status %d:\n%.700s", code, text)
	}
	file := filepath.Join(r.dir, "exported.toml")
	r.write(file, text)
	var d api.Diff
	r.ask(&d, "diff", file)
	if d.Digest != h.Revisions[1].Digest {
		t.Errorf("diff of the export has the digest %s", d.Digest)
	}
	var a api.Applied
	r.ask(&a, "apply", file)
	if a.Revision.Number != 4 || a.Revision.Digest != h.Revisions[1].Digest {
		t.Errorf("the export applied: %+v, want the digest %s", a.Revision, h.Revisions[1].Digest)
	}
	if served, _, _ := r.cli("policy"); served != second {
		t.Errorf("served:\n%s", served)
	}
	// A mistake in an export is told with the line of the file.
	r.write(file, text+"\nnonsense = 1\n")
	want := fmt.Sprintf("%s:%d:", file, strings.Count(text, "\n")+2)
	if _, bad, code := r.cli("apply", file); code != 1 || !strings.HasPrefix(bad, want) {
		t.Errorf("status %d, %q, want %s", code, bad, want)
	}
	r.stop()
}

// What is refused changes nothing: at the shell, by the node, by the cluster; and each says why.
func TestRefusedChangesNothing(t *testing.T) {
	mostlyWaits(t)
	r := newRig(t, "refused", confirmClosed())
	r.start()
	r.apply(confirmOpen())
	bad := filepath.Join(r.dir, "bad.toml")
	r.write(bad, strings.Replace(confirmOpen(), `interfaces = ["beta"]`, `interfaces = ["gone"]`, 1))
	good := filepath.Join(r.dir, "good.toml")
	r.write(good, confirmClosed())
	before, was := r.status().Revision, r.history()
	for _, x := range []struct {
		want string
		args []string
	}{
		{`"gone"`, []string{"apply", bad}},
		{`"gone"`, []string{"apply", bad, "--confirm", "1m"}},
		{`"gone"`, []string{"diff", bad}},
		{"conflict: revision 2 is served, not 1", []string{"apply", good, "--expect", "1"}},
		{"conflict: revision 2 is served, not 1", []string{"rollback", "1", "--expect", "1"}},
		{"revision 2 is served already", []string{"rollback", "2"}},
		{"revision 9 is not kept", []string{"rollback", "9"}},
		{"revision 9 is not kept", []string{"show", "9"}},
		{"revision 9 is not kept", []string{"export", "9"}},
		{"revision 9 is not kept", []string{"diff", "--to", "9"}},
		{"revision 9 is not kept", []string{"diff", good, "--from", "9"}},
		{"nothing waits", []string{"confirm"}},
		{"name the revision to go back to", []string{"rollback"}},
	} {
		r.no(x.want, x.args...)
	}
	var f *api.Fault
	for _, x := range []struct {
		path string
		body any
	}{
		{api.PathApply, api.ApplyRequest{Policy: confirmClosed(), Confirm: 0.1}},
		{api.PathApply, api.ApplyRequest{Policy: confirmClosed(), Confirm: -5}},
		{api.PathRollback, api.RollbackRequest{Confirm: 60}},
		{api.PathDiff, api.DiffRequest{Policy: "x", To: 1}},
	} {
		if err := r.api.Post(t.Context(), x.path, x.body, new(any)); !faulted(err, &f, 400) {
			t.Errorf("%s %+v: %v", x.path, x.body, err)
		}
	}
	if now, h := r.status().Revision, r.history(); now != before || fmt.Sprint(h) != fmt.Sprint(was) {
		t.Errorf("changed: %+v, was %+v; history %+v, was %+v", now, before, h, was)
	}
	var audit api.Audit
	check(t, r.api.Get(t.Context(), api.PathAudit, &audit))
	if n := len(audit.Lines); n == 0 || !strings.Contains(audit.Lines[n-1].What, "revision 2") {
		t.Errorf("audit: %+v", audit)
	}
	// An archive asks for what it does not have. The line of the change itself comes after it.
	last := audit.Lines[len(audit.Lines)-1].Index
	var kept api.Kept
	check(t, r.api.Post(t.Context(), api.PathKeep, api.KeepRequest{Bounds: api.Bounds{Audit: 500}}, &kept))
	if kept.Audit != 500 || kept.Revisions != 200 || kept.TextBytes != 256<<20 || kept.Now.Revisions != 2 {
		t.Errorf("kept: %+v", kept)
	}
	check(t, r.api.Get(t.Context(), fmt.Sprintf("%s?after=%d", api.PathAudit, last), &audit))
	if len(audit.Lines) != 1 || audit.Lines[0].Kind != "bounds" || audit.Lines[0].Author == "" || audit.Forgotten || audit.Bound != 500 {
		t.Errorf("audit after %d: %+v", last, audit)
	}
	if err := r.api.Post(t.Context(), api.PathKeep, api.KeepRequest{Bounds: api.Bounds{Revisions: 1}}, new(any)); !faulted(err, &f, 400) {
		t.Errorf("keeping one revision: %v", err)
	}
	r.stop()
}

func faulted(err error, f **api.Fault, status int) bool {
	return errors.As(err, f) && (*f).Status == status
}

// A damaged replicated state keeps no node from serving what it has: it says which file, takes no change, and goes on with the numbers once that
// file is out of the way.
func TestReplicatedStateDamaged(t *testing.T) {
	mostlyWaits(t)
	for name, damage := range map[string]func(b []byte) []byte{
		"overwritten": func(b []byte) []byte { return bytes.Repeat([]byte("x"), len(b)) },
		"cut short":   func(b []byte) []byte { return b[:len(b)/3] },
		"a bit": func(b []byte) []byte {
			mark := []byte("number-2")
			for i := 0; ; {
				j := bytes.Index(b[i:], mark)
				if j < 0 {
					return b
				}
				b[i+j] ^= 1
				i += j + 1
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, "damaged", faultPolicy(0))
			r.start()
			r.apply(faultPolicy(1))
			r.apply(faultPolicy(2))
			r.applyWith(faultPolicy(3), "--confirm", "1h")
			cluster := r.history().Cluster
			r.until(5*time.Second, "the copy of the state has the last change", func() (bool, string) {
				b, err := os.ReadFile(filepath.Join(r.data, "cluster", "kept.state"))
				return bytes.Contains(b, []byte(`"confirmed":3`)) && bytes.Contains(b, []byte(`"last":4`)), fmt.Sprint(err)
			})
			r.kill()
			file := filepath.Join(r.data, "cluster", "raft.db")
			b, err := os.ReadFile(file)
			check(t, err)
			check(t, os.WriteFile(file, damage(b), 0o600))
			r.start()
			r.serve(r.Public1.Name, "udp-echo", "-addr", ":7007")
			var st *api.Status
			r.until(5*time.Second, "status says what is wrong", func() (bool, string) {
				st = r.status()
				return st.Cluster.State == api.ClusterClosed && strings.Contains(st.Cluster.Problem, file), fmt.Sprintf("%+v", st.Cluster)
			})
			t.Logf("%s", st.Cluster.Problem)
			if !st.Ready || st.Revision.Number != 3 {
				t.Errorf("ready %v, revision %d, want the last confirmed one, 3", st.Ready, st.Revision.Number)
			}
			if text, _, _ := r.cli("status"); !strings.Contains(text, "CLOSED") || !strings.Contains(text, file) {
				t.Errorf("status for people:\n%.600s", text)
			}
			if r.plain("demarc_cluster_problem") != 1 {
				t.Error("the metric does not say so")
			}
			r.refused(faultPolicy(4), "nothing is changed", file)
			r.no(file, "history")
			r.no("nothing is changed", "confirm")
			var p host.Probe
			r.wait(r.spawn(r.Alpha1.Name, &p, "udp-probe", "-dst", addrPort(r.Public1.V4, 7007), "-pps", "100", "-duration", "300ms", "-wait", "500ms"))
			if p.Received != p.Sent {
				t.Errorf("%d of %d came back", p.Received, p.Sent)
			}
			// The ways out that docs/recovery.md and docs/operations.md name.
			r.stop()
			if name == "a bit" {
				r.recovers(cluster)
				return
			}
			check(t, os.Rename(filepath.Join(r.data, "cluster"), filepath.Join(r.data, "cluster-damaged")))
			r.start()
			if a := r.apply(faultPolicy(4)); a.Revision.Number < 5 {
				t.Errorf("revision %d: 4 was given already", a.Revision.Number)
			}
			if st := r.status(); st.Cluster.Problem != "" || st.Cluster.State != api.ClusterCurrent {
				t.Errorf("afterwards: %+v", st.Cluster)
			}
			r.stop()
		})
	}
}

// A node of a release that kept its policies by itself goes on counting, and one whose own copies are gone serves what was agreed on.
func TestReplicatedStateBeginsAndIsFollowed(t *testing.T) {
	mostlyWaits(t)
	r := newRig(t, "upgrade", faultPolicy(0))
	r.start()
	for n := range 3 {
		r.apply(faultPolicy(n + 1))
	}
	r.stop()
	check(t, os.RemoveAll(filepath.Join(r.data, "cluster")))
	r.start()
	if st := r.status(); st.Revision.Number != 4 {
		t.Errorf("revision %d is served, want 4", st.Revision.Number)
	}
	if a := r.apply(faultPolicy(4)); a.Revision.Number != 5 {
		t.Errorf("the next revision is %d, want 5", a.Revision.Number)
	}
	if h := r.history(); len(h.Revisions) != 2 || h.Revisions[1].Number != 4 || h.Revisions[1].Author != "start" {
		t.Errorf("history: %+v", h)
	}
	r.kill()
	check(t, os.RemoveAll(filepath.Join(r.data, "policies")))
	r.start()
	if st := r.status(); st.Revision.Number != 5 {
		t.Errorf("revision %d is served without copies of the node's own, want what was agreed on, 5", st.Revision.Number)
	}
	if text, _, _ := r.cli("policy"); text != faultPolicy(4) {
		t.Errorf("served:\n%s", text)
	}
	r.until(2*time.Second, "the copy is there again", func() (bool, string) {
		files, _ := filepath.Glob(filepath.Join(r.data, "policies", "*5.revision"))
		return len(files) == 1, fmt.Sprint(files)
	})
	r.stop()
}

// recovers has a cluster of one take its copy of the state, and goes on with the history and its numbers.
func (r *rig) recovers(cluster string) {
	r.t.Helper()
	if _, bad, code := r.cli("cluster", "recover", "--data-dir", r.data); code == 0 || !strings.Contains(bad, "--cluster-id "+cluster) {
		r.t.Errorf("recover without an id: status %d, %s", code, bad)
	}
	if out, bad, code := r.cli("cluster", "recover", "--data-dir", r.data, "--cluster-id", cluster); code != 0 {
		r.t.Fatalf("recover: status %d, %s%s", code, out, bad)
	}
	r.start()
	r.until(5*time.Second, "changes can be made", func() (bool, string) {
		c := r.status().Cluster
		return c.State == api.ClusterCurrent && c.Problem == "", fmt.Sprintf("%+v", c)
	})
	h := r.history()
	if h.Cluster != cluster || h.Confirmed != 3 || len(h.Revisions) < 3 {
		r.t.Errorf("after the recovery: %+v", h)
	}
	if h.Serving == 4 {
		r.ask(new(api.Applied), "rollback")
	}
	if a := r.apply(faultPolicy(5)); a.Revision.Number < 5 {
		r.t.Errorf("revision %d", a.Revision.Number)
	}
	r.stop()
}
