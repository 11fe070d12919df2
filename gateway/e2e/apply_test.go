package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"demarc/gateway/api"
	"demarc/gateway/netlab"
	"demarc/gateway/netlab/host"
	"demarc/gateway/netlab/quiet"
)

// Fifty policies in a row, each with another rule, object and limit of both tenants, under a paced stream of each: nothing is lost.
func TestApplyLosesNothing(t *testing.T) { applyLosesNothing(t) }

func applyLosesNothing(t *testing.T) {
	t.Helper()
	policy := func(n int) string {
		more := fmt.Sprintf(`
[tenant.rates.out]
bits = "%dM"
[[tenant.rule]]
name = "block-%d"
direction = "out"
action = "deny"
to = ["203.0.113.%d"]
`, 50+n, n, 100+n)
		return rigPolicy(more, more)
	}
	r := newRig(t, "apply", policy(0))
	r.start()
	r.serve(r.Public1.Name, "udp-echo", "-addr", ":7007")
	var a, b, a6 host.Probe
	running, end := context.WithCancel(t.Context()) // the streams go on until all is applied, however long a busy machine takes
	defer end()
	stream := func(from netlab.Host, into *host.Probe, dst string, pps string) *job {
		return r.spawnUntil(running, from.Name, into, "udp-probe", "-dst", dst, "-pps", pps, "-duration", "1m", "-wait", "1s")
	}
	// Everybody knows everybody before it counts: a next hop that is being asked for holds only so many packets.
	for _, x := range []struct {
		from netlab.Host
		dst  string
	}{{r.Alpha1, addrPort(r.Public1.V4, 7007)}, {r.Beta1, addrPort(r.Public1.V4, 7007)}, {r.Alpha2, addrPort(r.Public1.V6, 7007)}} {
		r.wait(r.spawn(x.from.Name, &a, "udp-probe", "-dst", x.dst, "-pps", "20", "-duration", "200ms", "-wait", "300ms"))
	}
	a = host.Probe{}
	before := r.status()
	jobs := []*job{stream(r.Alpha1, &a, addrPort(r.Public1.V4, 7007), "1000"), stream(r.Beta1, &b, addrPort(r.Public1.V4, 7007), "1000"),
		stream(r.Alpha2, &a6, addrPort(r.Public1.V6, 7007), "200")}
	time.Sleep(300 * time.Millisecond)
	start, took := time.Now(), []float64{}
	for n := 1; n <= 50; n++ {
		d := r.apply(policy(n))
		took = append(took, d.Took*1e3)
		time.Sleep(40 * time.Millisecond)
		if d.Revision.Number != before.Revision.Number+uint64(n) || d.Cut != 0 || len(d.Changes) == 0 {
			t.Errorf("apply %d: revision %d, %d cut, %d changes", n, d.Revision.Number, d.Cut, len(d.Changes))
		}
	}
	during := time.Since(start)
	end()
	r.wait(jobs...)
	sort.Float64s(took)
	t.Logf("50 applies in %v, each %.1f ms (median) to %.1f ms; alpha %d of %d, longest gap %.1f ms; beta %d of %d, %.1f ms; alpha over IPv6 %d of %d",
		during.Round(time.Millisecond), took[25], took[49], a.Received, a.Sent, a.LongestMs, b.Received, b.Sent, b.LongestMs, a6.Received, a6.Sent)
	for name, p := range map[string]host.Probe{"alpha": a, "beta": b, "alpha over IPv6": a6} {
		if p.Sent == 0 || p.Received != p.Sent || p.Duplicate+p.Foreign+p.Reordered > 0 {
			t.Errorf("%s: %d of %d came back, %d twice, %d foreign, %d out of order", name, p.Received, p.Sent, p.Duplicate, p.Foreign, p.Reordered)
		}
	}
	after := r.status()
	d := drops(before, after)
	delete(d, "multicast") // the hosts' own reports
	if len(d) > 0 {
		t.Errorf("dropped: %v", d)
	}
	if got := rigTenantOf(after, "alpha").Created - rigTenantOf(before, "alpha").Created; got != 2 {
		t.Errorf("alpha made %d sessions for two streams", got)
	}
	files, err := filepath.Glob(filepath.Join(r.data, "policies", "*.revision"))
	if err != nil || len(files) != 10 {
		t.Errorf("%d policies are kept, not the last ten (%v)", len(files), err)
	}
}

// rigConn is one long-lived TCP connection from a namespace to an echo of the test's own.
func rigDial(r *rig, ns, dst string) net.Conn {
	r.t.Helper()
	var c net.Conn
	if err := r.Do(ns, func() (err error) {
		c, err = net.DialTimeout("tcp", dst, 3*time.Second)
		return err
	}); err != nil {
		r.t.Fatalf("%s to %s: %v", ns, dst, err)
	}
	r.t.Cleanup(func() { c.Close() })
	return c
}

// rigEcho answers every byte on a TCP port until the test ends.
func rigEcho(r *rig, ns, at string) {
	r.t.Helper()
	var l net.Listener
	if err := r.Do(ns, func() (err error) {
		l, err = net.Listen("tcp", at)
		return err
	}); err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				b := make([]byte, 64)
				for {
					n, err := c.Read(b)
					if err != nil {
						return
					}
					if _, err := c.Write(b[:n]); err != nil {
						return
					}
				}
			}()
		}
	}()
}

// alive sends a byte through a connection and back.
func alive(c net.Conn, d time.Duration) bool {
	c.SetDeadline(time.Now().Add(d))
	if _, err := c.Write([]byte{'x'}); err != nil {
		return false
	}
	_, err := c.Read(make([]byte, 1))
	return err == nil
}

// A tightened rule ends exactly the sessions that it denies: diff counts them first, apply carries it out, the rest loses nothing.
func TestApplyCutsExactlyWhatIsDenied(t *testing.T) {
	open := rigPolicy("", "")
	tight := rigPolicy(`
[[tenant.rule]]
name = "not-there"
direction = "out"
action = "deny"
to = ["203.0.113.11"]
service = ["udp/7008", "tcp/7100"]
`, "")
	r := newRig(t, "cut", open)
	r.start()
	r.serve(r.Public1.Name, "udp-echo", "-addr", ":7007")
	denied := r.serve(r.Public1.Name, "udp-echo", "-addr", ":7008")
	rigEcho(r, r.Public1.Name, ":7100")
	rigEcho(r, r.Public2.Name, ":7100")
	doomed, kept := rigDial(r, r.Alpha1.Name, addrPort(r.Public1.V4, 7100)), rigDial(r, r.Alpha1.Name, addrPort(r.Public2.V4, 7100))
	betas := rigDial(r, r.Beta1.Name, addrPort(r.Public1.V4, 7100))
	var bad, good, other host.Probe
	stream := func(from netlab.Host, into *host.Probe, port uint16) *job {
		return r.spawn(from.Name, into, "udp-probe", "-dst", addrPort(r.Public1.V4, port), "-pps", "500", "-duration", "4s")
	}
	jobs := []*job{stream(r.Alpha1, &bad, 7008), stream(r.Alpha1, &good, 7007), stream(r.Beta1, &other, 7008)}
	time.Sleep(1500 * time.Millisecond)
	path := filepath.Join(r.dir, "tight.toml")
	r.write(path, tight)
	var d api.Diff
	r.ask(&d, "diff", path)
	if d.Cut != 2 || d.Checked != 6 || len(d.Cuts) != 2 || d.Same || len(d.Changes) == 0 {
		t.Errorf("diff: %d of %d sessions would be cut, %d listed, want 2 of 6; same %v, changes %v", d.Cut, d.Checked, len(d.Cuts), d.Same, d.Changes)
	}
	for _, s := range d.Cuts {
		if s.Tenant != "alpha" || s.Dst != addrPort(r.Public1.V4, 7008) && s.Dst != addrPort(r.Public1.V4, 7100) {
			t.Errorf("diff would cut %s %s -> %s", s.Tenant, s.Src, s.Dst)
		}
	}
	if !alive(doomed, time.Second) || r.status().Revision.Number != 1 {
		t.Error("diff changed something")
	}
	a := r.apply(tight)
	r.wait(jobs...)
	if a.Cut != 2 {
		t.Errorf("apply says that it cut %d, diff said %d", a.Cut, d.Cut)
	}
	var e host.Echo
	if err := denied.Stop(&e); err != nil {
		t.Fatal(err)
	}
	through := uint64(0)
	if x := e.Tags["probe"]; x != nil {
		through = x.Packets // both tenants' streams have this tag
	}
	t.Logf("diff: %d of %d; the cut stream %d of %d, the others %d of %d and %d of %d; the echo of both saw %d", d.Cut, d.Checked, bad.Received, bad.Sent, good.Received,
		good.Sent, other.Received, other.Sent, through)
	// 1.5 s passed before the diff: the stream lived for about 750 to 1,000 packets.
	if bad.Received < 500 || bad.Received > 1300 {
		t.Errorf("the cut stream got %d of %d", bad.Received, bad.Sent)
	}
	// What was on its way back when the session ended is denied as well: the stream sends every 2 ms, so that is one, and as many more as the echo may have had before it when the machine was slow. The other tenant's packets, which it answers in turn,
	// say how long that was at most.
	late := uint64(other.RTT.Max / 2)
	if back := bad.Received + other.Received; through < back || through > back+2+late {
		t.Errorf("the echo saw %d packets, but the hosts got %d and %d answers, the slowest after %.1f ms: something passed one way only", through, bad.Received, other.Received, other.RTT.Max)
	}
	if good.Received != good.Sent || other.Received != other.Sent {
		t.Errorf("streams that the rule does not meet: %d of %d, %d of %d", good.Received, good.Sent, other.Received, other.Sent)
	}
	if alive(doomed, 500*time.Millisecond) {
		t.Error("the denied TCP connection lives on")
	}
	if !alive(kept, 2*time.Second) || !alive(betas, 2*time.Second) {
		t.Error("a TCP connection that the rule does not meet was cut")
	}
	var s api.Sessions
	r.ask(&s, "sessions", "--tenant", "alpha")
	for _, x := range s.Sessions {
		if x.Dst == addrPort(r.Public1.V4, 7008) || x.Dst == addrPort(r.Public1.V4, 7100) {
			t.Errorf("a cut session is still listed: %+v", x)
		}
	}
}

// Tenants come, go and get other names while the node runs. What one had, no other one gets.
func TestApplyTenantsAtRunTime(t *testing.T) {
	mostlyWaits(t)
	head := "schema = 1\nname = \"e2e\"\n[backbone]\ninterfaces = [\"backbone\"]\n"
	r := newRig(t, "tenants", head+rigAlpha(""))
	r.start()
	r.serve(r.Public1.Name, "udp-echo", "-addr", ":7007")
	dst := addrPort(r.Public1.V4, 7007)
	probe := func(from netlab.Host, local string) host.Probe {
		var p host.Probe
		r.wait(r.spawn(from.Name, &p, "udp-probe", "-dst", dst, "-local", from.V4.String()+":"+local, "-pps", "100", "-duration", "300ms", "-wait", "300ms"))
		return p
	}
	sessions := func(tenant string) (list []api.Session) {
		var s api.Sessions
		r.ask(&s, "sessions", "--tenant", tenant)
		return s.Sessions
	}
	if p := probe(r.Beta1, "5000"); p.Received > 0 {
		t.Errorf("beta is no tenant yet and got %d answers", p.Received)
	}
	var through host.Probe
	long := r.spawn(r.Alpha2.Name, &through, "udp-probe", "-dst", dst, "-pps", "500", "-duration", "6s")
	if p := probe(r.Alpha1, "5000"); p.Received != p.Sent {
		t.Errorf("alpha: %d of %d", p.Received, p.Sent)
	}

	// Added: it works, and it begins with nothing. What the host still has in its queue for a gateway that did not answer goes first.
	if err := r.FlushNeighbours(r.Beta1.Name, netlab.HostDevice); err != nil {
		t.Fatal(err)
	}
	r.apply(head + rigAlpha("") + rigBeta(""))
	if got := rigTenantOf(r.status(), "beta"); got.Created != 0 || got.Out.Packets != 0 {
		t.Errorf("a new tenant begins with %d sessions made and %d packets", got.Created, got.Out.Packets)
	}
	if p := probe(r.Beta1, "5000"); p.Received != p.Sent {
		t.Errorf("beta after it was added: %d of %d", p.Received, p.Sent)
	}
	if n := len(sessions("beta")); n != 1 {
		t.Errorf("beta has %d sessions, want 1", n)
	}

	// Another name on the same interface and pool is another tenant: the old sessions end.
	gamma := rigTenant("gamma", "beta", netlab.BetaNet6, netlab.BetaPool, "", "")
	a := r.apply(head + rigAlpha("") + gamma)
	if a.Cut != 1 {
		t.Errorf("renamed: %d sessions cut, want beta's one", a.Cut)
	}
	if _, bad, code := r.cli("sessions", "--tenant", "beta"); code != 1 || !strings.Contains(bad, `there is no tenant "beta"`) {
		t.Errorf("sessions of a tenant that is gone: status %d, %q", code, bad)
	}
	if n := len(sessions("gamma")); n != 0 {
		t.Errorf("gamma begins with %d sessions of beta", n)
	}
	if got := rigTenantOf(r.status(), "gamma"); got.Created != 0 || got.Out.Packets+got.In.Packets != 0 || got.Sessions != 0 {
		t.Errorf("gamma begins with figures of beta: %+v", got)
	}
	if p := probe(r.Beta1, "5000"); p.Received != p.Sent {
		t.Errorf("gamma: %d of %d", p.Received, p.Sent)
	}
	if s := sessions("gamma"); len(s) != 1 || s[0].Tenant != "gamma" {
		t.Errorf("gamma's sessions: %+v", s)
	}

	// Removed: nothing passes, and nothing of it is left but what it has to pay for, in the log.
	last := rigTenantOf(r.status(), "gamma")
	r.apply(head + rigAlpha(""))
	if line := fmt.Sprintf(`msg="tenant removed" tenant=gamma out_packets=%d out_bytes=%d in_packets=%d in_bytes=%d`, last.Out.Packets, last.Out.Bytes, last.In.Packets, last.In.Bytes); last.Out.Bytes == 0 || !strings.Contains(r.logged(), line) {
		t.Errorf("the log lacks %s:\n%s", line, r.logged())
	}
	if p := probe(r.Beta1, "5000"); p.Received > 0 {
		t.Errorf("a removed tenant got %d answers", p.Received)
	}
	r.until(3*time.Second, "the removed tenant's sessions end", func() (bool, string) {
		var s api.Sessions
		r.ask(&s, "sessions")
		for _, x := range s.Sessions {
			if x.Tenant != "alpha" {
				return false, fmt.Sprintf("%+v", x)
			}
		}
		return true, ""
	})

	// Two tenants change places: neither meets what the other had.
	r.apply(head + rigAlpha("") + rigBeta(""))
	probe(r.Beta1, "5000")
	swapped := head + rigTenant("alpha", "beta", netlab.BetaNet6, netlab.AlphaPool, "", "") + rigTenant("beta", "alpha", netlab.AlphaNet6, netlab.BetaPool, "", "")
	r.wait(long)
	t.Logf("alpha's long stream through all of it: %d of %d, longest gap %.1f ms", through.Received, through.Sent, through.LongestMs)
	if through.Received != through.Sent {
		t.Errorf("alpha's stream lost %d of %d packets while others came and went", through.Sent-through.Received, through.Sent)
	}
	r.apply(swapped)
	for _, h := range []netlab.Host{r.Alpha1, r.Beta1} {
		if p := probe(h, "5000"); p.Received != p.Sent || p.Foreign > 0 {
			t.Errorf("%s after the swap: %d of %d, %d foreign", h.Name, p.Received, p.Sent, p.Foreign)
		}
	}
	for tenant, pool := range map[string]string{"alpha": netlab.AlphaPool, "beta": netlab.BetaPool} {
		found := 0
		for _, x := range sessions(tenant) {
			if strings.HasSuffix(x.Src, ":5000") {
				found++
				if !prefix(pool).Contains(rigAddr(x.XlatSrc)) {
					t.Errorf("%s leaves as %s after the swap, outside its pool %s", tenant, x.XlatSrc, pool)
				}
			}
		}
		if found != 1 {
			t.Errorf("%s has %d sessions from port 5000 after the swap, want 1", tenant, found)
		}
	}
}

// A rate changed while the flood runs holds from then on.
func TestApplyRate(t *testing.T) {
	policy := func(bits string) string { return rigPolicy("[tenant.rates.out]\nbits = \""+bits+"\"\n", "") }
	r := newRig(t, "rate", policy("20M"))
	r.start()
	again := false
	quiet.Judge(t, func(l *quiet.Limits) {
		if again {
			r.apply(policy("20M"))
		}
		again = true
		sink := r.serve(r.Public2.Name, "udp-sink", "-addr", ":9000")
		var f host.Flood
		flood := r.spawn(r.Alpha1.Name, &f, "udp-flood", "-dst", addrPort(r.Public2.V4, 9000), "-bits", "60e6", "-duration", "6s")
		start := time.Now()
		steps := []string{"5M", "30M"}
		for i, bits := range steps {
			time.Sleep(time.Until(start.Add(time.Duration(i+1) * 2 * time.Second)))
			r.apply(policy(bits))
		}
		if got := rigTenantOf(r.status(), "alpha").Limits.OutBits; got != 30e6 {
			t.Errorf("status says that the limit is %d", got)
		}
		r.wait(flood)
		var s host.Sink
		if err := sink.Stop(&s); err != nil {
			t.Fatal(err)
		}
		for i, want := range []float64{20e6, 5e6, 30e6} {
			got := s.Tags["flood"].Rate(time.Duration(i)*2*time.Second+500*time.Millisecond, 1250*time.Millisecond)
			t.Logf("limit %2.0f Mbit/s: %.3f (%+.2f %%)", want/1e6, got/1e6, 100*(got-want)/want)
			if !within(got, want, 0.03) {
				l.Missed("limit %.0f Mbit/s let %.2f through", want/1e6, got/1e6)
			}
		}
	})
}

// A policy with errors is refused whole, with every error; one for another revision is refused too. Nothing changes.
func TestApplyRefusesBadPolicies(t *testing.T) {
	r := newRig(t, "badpolicy", rigPolicy("", ""))
	r.start()
	r.serve(r.Public1.Name, "udp-echo", "-addr", ":7007")
	before := r.status().Revision
	var p host.Probe
	stream := r.spawn(r.Alpha1.Name, &p, "udp-probe", "-dst", addrPort(r.Public1.V4, 7007), "-pps", "500", "-duration", "2s")
	bad := filepath.Join(r.dir, "bad.toml")
	r.write(bad, strings.Replace(rigPolicy(`
[tenant.rates.out]
bits = "fast"
[[tenant.rule]]
name = "nonsense"
direction = "sideways"
action = "perhaps"
to = ["300.1.1.1"]
`, ""), `interfaces = ["beta"]`, `interfaces = ["gone"]`, 1))
	_, text, code := r.cli("apply", bad)
	lines := strings.Split(strings.TrimSpace(text), "\n")
	t.Logf("status %d:\n%s", code, text)
	if code != 1 {
		t.Errorf("a policy with errors: status %d", code)
	}
	for _, want := range []string{"fast", "sideways", "perhaps", "300.1.1.1"} {
		found := false
		for _, l := range lines {
			found = found || strings.Contains(l, want) && strings.HasPrefix(l, bad+":")
		}
		if !found {
			t.Errorf("no line of the answer names %q with its place", want)
		}
	}
	// What is right by itself but does not fit this node.
	r.write(bad, strings.Replace(rigPolicy("", ""), `interfaces = ["beta"]`, `interfaces = ["gone"]`, 1))
	if _, text, code := r.cli("apply", bad); code != 1 || !strings.Contains(text, `"gone"`) || !strings.HasPrefix(text, bad+":") {
		t.Errorf("an interface that the node has not: status %d, %s", code, text)
	}
	good := filepath.Join(r.dir, "good.toml")
	r.write(good, rigPolicy("default_out = \"deny\"\n", "default_out = \"deny\"\n"))
	if _, text, code := r.cli("apply", "--expect", "7", good); code != 1 || !strings.Contains(text, "conflict") || strings.Count(strings.TrimSpace(text), "\n") > 0 {
		t.Errorf("--expect of another revision: status %d, %q", code, text)
	}
	if _, text, code := r.cli("apply", filepath.Join(r.dir, "none.toml")); code != 1 || !strings.Contains(text, "none.toml") {
		t.Errorf("a file that is not there: status %d, %q", code, text)
	}
	r.wait(stream)
	if p.Received != p.Sent {
		t.Errorf("the stream lost %d of %d", p.Sent-p.Received, p.Sent)
	}
	if now := r.status().Revision; now != before {
		t.Errorf("refused policies changed the revision from %+v to %+v", before, now)
	}
	if files, _ := filepath.Glob(filepath.Join(r.data, "policies", "*")); len(files) != 1 {
		t.Errorf("kept: %v", files)
	}
	if _, text, code := r.cli("apply", "--expect", fmt.Sprint(before.Number), rewritten(r, good)); code != 0 {
		t.Errorf("--expect of the served revision: status %d, %s", code, text)
	}
	if now := r.status().Revision; now.Number != before.Number+1 {
		t.Errorf("revision %d after one good apply", now.Number)
	}
}

// rewritten puts a policy in the file that is right: the flat default_out belongs before the tenant's tables.
func rewritten(r *rig, file string) string {
	r.write(file, rigPolicy("[tenant.rates.out]\nbits = \"7M\"\n", ""))
	return file
}

// The applied policy survives kill -9 right after apply, a torn file, and a disk that takes no more.
func TestApplyKeepsPolicies(t *testing.T) {
	mostlyWaits(t)
	policy := func(n int) string {
		return strings.Replace(rigPolicy("", ""), `name = "e2e"`, fmt.Sprintf("name = \"number %d\"", n), 1)
	}
	r := newRig(t, "kept", policy(0))
	data := filepath.Join(r.dir, "small")
	if err := os.Mkdir(data, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("dm-e2e", data, "tmpfs", 0, "size=4m"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for unix.Unmount(data, unix.MNT_DETACH) == nil { // whatever lies on top of it, too
		}
	})
	r.write(r.node, rigNode(data, r.socket, ""))
	served := func(name string, number uint64) {
		t.Helper()
		st := r.status()
		t.Logf("serves revision %d %q, %s", st.Revision.Number, st.Revision.Name, st.Revision.Source)
		if st.Revision.Name != name || st.Revision.Number != number {
			t.Errorf("serves %q, revision %d, want %q, %d", st.Revision.Name, st.Revision.Number, name, number)
		}
		text, _, _ := r.cli("policy")
		if !strings.Contains(text, `"`+name+`"`) {
			t.Errorf("policy prints another text:\n%.200s", text)
		}
	}
	r.start()
	served("number 0", 1)
	for n := 1; n <= 12; n++ {
		r.apply(policy(n))
	}
	r.kill()
	files, err := filepath.Glob(filepath.Join(data, "policies", "*"))
	if err != nil || len(files) != 10 {
		t.Errorf("%d files are kept, not the last ten: %v", len(files), files)
	}
	sort.Strings(files)
	r.start()
	served("number 12", 13)
	if src := r.status().Revision.Source; !strings.Contains(src, "kept revision 13") || !strings.Contains(src, r.policy) {
		t.Errorf("status does not say that the kept policy is served instead of the file given: %q", src)
	}
	if text, _, _ := r.cli("status"); !strings.Contains(text, "kept revision 13") {
		t.Errorf("status for people does not name the kept policy:\n%s", text)
	}
	r.stop()

	// Torn: the damage is named, and what was agreed on is served and kept again. Without the replicated state it is the one before.
	newest := files[len(files)-1]
	if err := os.Truncate(newest, 300); err != nil {
		t.Fatal(err)
	}
	named := func() {
		t.Helper()
		if text, _, _ := r.cli("status"); !strings.Contains(text, filepath.Base(newest)) {
			t.Errorf("status does not name the damaged file %s:\n%s", filepath.Base(newest), text)
		}
		if log := read(t, r.log); !strings.Contains(log, filepath.Base(newest)) {
			t.Errorf("the log does not name the damaged file:\n%s", log)
		}
	}
	agreed := filepath.Join(data, "cluster", "raft.db")
	if err := os.Rename(agreed, agreed+".away"); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(agreed, 0o700); err != nil { // nothing that can be opened
		t.Fatal(err)
	}
	r.start()
	served("number 11", 12)
	named()
	r.stop()
	if err := errors.Join(os.Remove(agreed), os.Rename(agreed+".away", agreed)); err != nil {
		t.Fatal(err)
	}
	r.start()
	r.serves(2*time.Second, 13)
	served("number 12", 13)
	named()
	r.until(2*time.Second, "the torn file is whole again", func() (bool, string) {
		i, err := os.Stat(newest)
		return err == nil && i.Size() > 300, fmt.Sprint(err)
	})
	// The next one gets a number that was never used, and is served after a crash.
	if a := r.apply(policy(14)); a.Revision.Number != 14 {
		t.Errorf("after a torn 13 the next is %d", a.Revision.Number)
	}
	r.kill()
	r.start()
	served("number 14", 14)

	// A full and a read-only disk: refused in one line, the old policy goes on.
	next := filepath.Join(r.dir, "next.toml")
	r.write(next, policy(15))
	refused := func(why, want string) {
		t.Helper()
		_, text, code := r.cli("apply", next)
		t.Logf("%s: status %d: %s", why, code, text)
		if code != 1 || !strings.Contains(text, want) || strings.Count(strings.TrimSpace(text), "\n") > 0 {
			t.Errorf("%s: status %d, %q", why, code, text)
		}
		served("number 14", 14)
	}
	fill := filepath.Join(data, "fill")
	if err := os.WriteFile(fill, bytes.Repeat([]byte{1}, 8<<20), 0o600); err == nil {
		t.Error("the small disk is not full")
	}
	refused("full disk", "no space left")
	os.Remove(fill)
	// A file that is open for writing keeps a file system writable, so the read-only one lies on top of it.
	if err := errors.Join(unix.Mount(data, data, "", unix.MS_BIND, ""), unix.Mount("", data, "", unix.MS_REMOUNT|unix.MS_BIND|unix.MS_RDONLY, "")); err != nil {
		t.Fatal(err)
	}
	refused("read-only disk", "read-only")
	r.kill()
	if err := errors.Join(unix.Unmount(data, unix.MNT_DETACH), unix.Mount("", data, "", unix.MS_REMOUNT|unix.MS_RDONLY, "")); err != nil {
		t.Fatal(err)
	}
	r.start() // a node whose disk takes nothing still serves what it has
	served("number 14", 14)
	r.until(5*time.Second, "status says what it lacks", func() (bool, string) {
		c := r.status().Cluster
		return c.State == api.ClusterClosed && strings.Contains(c.Problem, "read-only file system"), fmt.Sprintf("%+v", c)
	})
	refused("still read-only", "read-only")
	if err := unix.Mount("", data, "", unix.MS_REMOUNT, ""); err != nil {
		t.Fatal(err)
	}
	if a := r.apply(policy(15)); a.Revision.Number != 15 {
		t.Errorf("after the disk is well again: revision %d", a.Revision.Number)
	}
	if left, _ := filepath.Glob(filepath.Join(data, "policies", "*.tmp")); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
}

// The request that was cut short, or is no policy at all, changes nothing; the interface goes on.
func TestApplyOddRequests(t *testing.T) {
	mostlyWaits(t)
	r := newRig(t, "odd", rigPolicy("", ""))
	r.start()
	client := &http.Client{Timeout: 30 * time.Second, Transport: &http.Transport{Dial: func(_, _ string) (net.Conn, error) { return net.Dial("unix", r.socket) }}}
	defer client.CloseIdleConnections()
	for name, body := range map[string]string{
		"nothing":       "",
		"no JSON":       "\x00\xff garbage",
		"an array":      "[1,2,3]",
		"unknown field": `{"policy":"","polciy":1}`,
		"empty policy":  `{"policy":"","source":"x"}`,
		"oversize":      `{"policy":"` + strings.Repeat("#", 20<<20) + `"}`,
		"deep":          strings.Repeat(`{"policy":`, 20000),
	} {
		for _, path := range []string{api.PathApply, api.PathDiff} {
			resp, err := client.Post("http://x"+path, "application/json", strings.NewReader(body))
			if err != nil {
				if name != "oversize" { // the server may close while we still send
					t.Errorf("%s %s: %v", path, name, err)
				}
				continue
			}
			resp.Body.Close()
			if resp.StatusCode/100 != 4 {
				t.Errorf("%s %s: %s", path, name, resp.Status)
			}
		}
	}
	for path, want := range map[string]int{"/": 404, "/v1/nothing": 404, "/v1/sessions?port=x": 400, "/v1/sessions?port=70000": 400, "/v1/sessions?address=x": 400,
		"/v1/sessions?tenant=nobody": 400, "/v1/sessions?limit=-1": 400, "/v1/apply": 405, "/v1/sessions?proto=256": 400} {
		resp, err := client.Get("http://x" + path)
		if err != nil {
			t.Errorf("%s: %v", path, err)
			continue
		}
		resp.Body.Close()
		if resp.StatusCode != want {
			t.Errorf("GET %s: %s, want %d", path, resp.Status, want)
		}
	}
	// Not HTTP at all, a header without end, a body that never comes.
	for _, raw := range []string{"\x16\x03\x01garbage\r\n\r\n", "GET / HTTP/1.1\r\nX: " + strings.Repeat("a", 1<<20), "POST /v1/apply HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{"} {
		c, err := net.Dial("unix", r.socket)
		if err != nil {
			t.Fatal(err)
		}
		c.Write([]byte(raw)) // the server may have closed already
		c.Close()
	}
	if st := r.status(); st.Revision.Number != 1 || !st.Ready {
		t.Errorf("after all that: %+v", st.Revision)
	}
}

// A policy of 10,000 rules is compiled while packets go on: none is lost, before, during and after.
func TestApplyManyRules(t *testing.T) {
	r := newRig(t, "many", rigPolicy("", ""))
	r.start()
	r.serve(r.Public1.Name, "udp-echo", "-addr", ":7007")
	var rules strings.Builder
	for i := range 10000 {
		fmt.Fprintf(&rules, "[[tenant.rule]]\nname = \"r%d\"\ndirection = \"out\"\naction = \"deny\"\nto = [\"198.51.%d.%d\"]\nservice = [\"tcp/%d\"]\n", i, 100+i%50, i%256, 1000+i)
	}
	path := filepath.Join(r.dir, "many.toml")
	r.write(path, rigPolicy(rules.String(), ""))
	var a, b host.Probe
	// Everybody knows everybody before it counts: a next hop that is being asked for holds only so many packets.
	for _, ns := range []string{r.Alpha1.Name, r.Beta1.Name} {
		r.wait(r.spawn(ns, &a, "udp-probe", "-dst", addrPort(r.Public1.V4, 7007), "-pps", "20", "-duration", "200ms", "-wait", "1s"))
	}
	a = host.Probe{}
	running, end := context.WithCancel(t.Context())
	defer end()
	jobs := []*job{r.spawnUntil(running, r.Alpha1.Name, &a, "udp-probe", "-dst", addrPort(r.Public1.V4, 7007), "-pps", "1000", "-duration", "1m", "-wait", "1s"),
		r.spawnUntil(running, r.Beta1.Name, &b, "udp-probe", "-dst", addrPort(r.Public1.V4, 7007), "-pps", "1000", "-duration", "1m", "-wait", "1s")}
	time.Sleep(500 * time.Millisecond)
	before := r.status()
	var d api.Diff
	start := time.Now()
	r.ask(&d, "diff", path)
	diffed := time.Since(start)
	var applied api.Applied
	r.ask(&applied, "apply", path)
	r.apply(rigPolicy("", ""))
	all := time.Since(start)
	time.Sleep(500 * time.Millisecond)
	end()
	r.wait(jobs...)
	t.Logf("10,000 rules: diff %v, apply %.0f ms, all with the way back %v; alpha %d of %d, longest gap %.1f ms; beta %d of %d, %.1f ms", diffed.Round(time.Millisecond),
		applied.Took*1e3, all.Round(time.Millisecond), a.Received, a.Sent, a.LongestMs, b.Received, b.Sent, b.LongestMs)
	if a.Sent == 0 || b.Sent == 0 || a.Received != a.Sent || b.Received != b.Sent {
		t.Errorf("alpha %d of %d, beta %d of %d, in %v; dropped: %v", a.Received, a.Sent, b.Received, b.Sent, all, drops(before, r.status()))
	}
}

// kill -9 at any moment of a row of applies: what was acknowledged is served again, or the one that was under way.
func TestApplyKilledAnyTime(t *testing.T) {
	mostlyWaits(t)
	policy := func(n int) string {
		return strings.Replace(rigPolicy("", ""), `name = "e2e"`, fmt.Sprintf("name = \"number %d\"", n), 1)
	}
	r := newRig(t, "killed", policy(0))
	next, some := 1, false
	for round := range 6 {
		r.start()
		acked := r.status().Revision.Name
		done := make(chan string)
		go func() {
			last := acked
			for ; ; next++ {
				path := filepath.Join(r.dir, "row.toml")
				if os.WriteFile(path, []byte(policy(next)), 0o644) != nil {
					break
				}
				if _, _, code := r.cli("apply", path); code != 0 {
					break
				}
				last = fmt.Sprintf("number %d", next)
			}
			done <- last
		}()
		time.Sleep(time.Duration(100+37*round) * time.Millisecond)
		r.kill()
		before := acked
		acked = <-done
		some = some || acked != before
		r.start()
		got := r.status().Revision
		t.Logf("round %d: acknowledged %q, served after the crash: %q, revision %d", round, acked, got.Name, got.Number)
		if got.Name != acked && got.Name != fmt.Sprintf("number %d", next) {
			t.Errorf("round %d: %q was acknowledged, %q is served", round, acked, got.Name)
		}
		next++
		r.kill()
	}
	if !some {
		t.Error("no apply was acknowledged before a kill: this has shown nothing")
	}
	r.start()
}

// Limits that go, shrink, or change their mode while their queue is full, and a tenant that goes with its queue full: no frame is lost
// count of, and the line is right afterwards.
func TestApplyUnderFullQueues(t *testing.T) {
	head := "schema = 1\nname = \"e2e\"\n[backbone]\ninterfaces = [\"backbone\"]\n"
	with := func(rate string) string { return head + rigAlpha("[tenant.rates.out]\n"+rate+"\n") + rigBeta("") }
	r := newRig(t, "queues", with("bits = \"5M\"\nqueue = \"200ms\""))
	r.start()
	r.serve(r.Public1.Name, "udp-echo", "-addr", ":7007")
	again := false
	quiet.Judge(t, func(l *quiet.Limits) {
		if again {
			r.apply(with("bits = \"5M\"\nqueue = \"200ms\""))
		}
		again = true
		sink := r.serve(r.Public2.Name, "udp-sink", "-addr", ":9000")
		var f host.Flood
		var beta host.Probe
		jobs := []*job{r.spawn(r.Alpha1.Name, &f, "udp-flood", "-dst", addrPort(r.Public2.V4, 9000), "-bits", "30e6", "-duration", "6s"),
			r.spawn(r.Beta1.Name, &beta, "udp-probe", "-dst", addrPort(r.Public1.V4, 7007), "-pps", "500", "-duration", "5500ms")}
		time.Sleep(700 * time.Millisecond)
		if q := rigTenantOf(r.status(), "alpha").Queued.Out; q < 50 {
			l.Missed("only %d packets wait: the queue is not full", q)
		}
		for _, next := range []string{
			with("bits = \"1M\"\nqueue = \"200ms\""), with("bits = \"5M\"\nmode = \"police\""), with("bits = \"5M\"\nqueue = \"200ms\""),
			with(""), with("packets = 100\nqueue = \"200ms\""), head + rigBeta(""), with("bits = \"5M\"\nqueue = \"200ms\""), head + rigBeta(""), with("bits = \"8M\""),
		} {
			r.apply(next)
			time.Sleep(250 * time.Millisecond)
			if st := r.status(); !st.Conservation.OK {
				t.Errorf("frames: %s", st.Conservation.Detail)
			}
		}
		r.wait(jobs...)
		if beta.Received != beta.Sent {
			t.Errorf("beta lost %d of %d", beta.Sent-beta.Received, beta.Sent)
		}
		var s host.Sink
		if err := sink.Stop(&s); err != nil {
			t.Fatal(err)
		}
		last := s.Tags["flood"].Rate(4500*time.Millisecond, time.Second)
		var st *api.Status
		r.until(2*time.Second, "the queue runs empty", func() (bool, string) {
			st = r.status()
			return rigTenantOf(st, "alpha").Queued.Out == 0, fmt.Sprint(rigTenantOf(st, "alpha").Queued.Out)
		})
		t.Logf("the last limit, 8 Mbit/s, let %.2f through; beta %d of %d; %s; drops %v", last/1e6, beta.Received, beta.Sent, st.Conservation.Detail, rigTenantOf(st, "alpha").Drops)
		if !within(last, 8e6, 0.03) {
			t.Logf("flood %+v, IP bytes by 50 ms: %v", f, s.Tags["flood"].Buckets)
			l.Missed("the last limit, 8 Mbit/s, let %.2f through", last/1e6)
		}
		if st.Drops["unset"]+st.Drops["internal_error"] > 0 {
			t.Errorf("%d without a reason, %d by internal_error", st.Drops["unset"], st.Drops["internal_error"])
		}
	})
}

// Of many who apply against the same revision at once, one wins.
func TestApplyAtOnce(t *testing.T) {
	mostlyWaits(t)
	r := newRig(t, "atonce", rigPolicy("", ""))
	r.start()
	now := r.status().Revision.Number
	type result struct {
		code int
		text string
	}
	results := make(chan result)
	const clients = 8
	for i := range clients {
		path := filepath.Join(r.dir, fmt.Sprintf("p%d.toml", i))
		r.write(path, rigPolicy(fmt.Sprintf("[tenant.rates.out]\nbits = \"%dM\"\n", i+1), ""))
		go func() {
			_, text, code := r.cli("apply", "--expect", fmt.Sprint(now), path)
			results <- result{code, text}
		}()
	}
	won := 0
	for range clients {
		x := <-results
		if x.code == 0 {
			won++
		} else if !strings.Contains(x.text, "conflict") {
			t.Errorf("status %d: %s", x.code, x.text)
		}
	}
	if got := r.status().Revision.Number; won != 1 || got != now+1 {
		t.Errorf("%d of %d won, revision %d after %d", won, clients, got, now)
	}
}

// Of many who apply at once without saying what they have seen, none writes over what another one has done meanwhile: who was told that his policy is
// served finds it in the history, and who was not is told of a conflict.
func TestApplyAtOnceUnseen(t *testing.T) {
	mostlyWaits(t)
	r := newRig(t, "unseen", rigPolicy("", ""))
	r.start()
	r.apply(faultPolicy(0)) // changes can be made from here on
	type result struct {
		a    api.Applied
		text string
		err  error
	}
	const clients, rounds = 8, 5
	results := make(chan result)
	for i := range clients {
		go func() {
			c := api.Dial(r.socket)
			defer c.Close()
			for n := range rounds {
				x := result{text: faultPolicy(1 + i*rounds + n)}
				x.err = c.Post(t.Context(), api.PathApply, api.ApplyRequest{Policy: x.text, Source: "test"}, &x.a)
				results <- x
			}
		}()
	}
	told := map[uint64]string{}
	conflicts, replaced := 0, 0
	for range clients * rounds {
		x := <-results
		switch {
		case x.err == nil && told[x.a.Revision.Number] != "":
			t.Errorf("revision %d is two policies", x.a.Revision.Number)
		case x.err == nil:
			told[x.a.Revision.Number] = x.text
		case strings.Contains(x.err.Error(), "is agreed on, but this node does not serve it") && strings.Contains(x.err.Error(), "has been replaced by"):
			replaced++ // by who had seen it, before the workers had taken it up: it stands in the history, and its author was told how it is
		case !strings.Contains(x.err.Error(), "conflict: "):
			t.Errorf("refused: %v", x.err)
		default:
			conflicts++
		}
	}
	h := r.history()
	t.Logf("%d applied, %d replaced at once, %d conflicts", len(told), replaced, conflicts)
	if len(told) == 0 || conflicts == 0 || len(h.Revisions) != 2+len(told)+replaced || h.Serving != uint64(2+len(told)+replaced) {
		t.Errorf("%d were applied and %d refused, the history has %d revisions and serves %d", len(told), conflicts, len(h.Revisions), h.Serving)
	}
	for number, text := range told {
		if got, _, _ := r.cli("show", fmt.Sprint(number)); got != text {
			t.Errorf("revision %d is not what its author was told", number)
		}
	}
	for _, e := range h.Revisions[:len(h.Revisions)-1] {
		if e.Before != e.Number-1 {
			t.Errorf("revision %d was written over %d", e.Number, e.Before)
		}
	}
}
