package e2e

import (
	"context"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"demarc/gateway/api"
	"demarc/gateway/netlab"
	"demarc/gateway/netlab/host"
)

var faultApplies = flag.Int("fault.applies", 1500, "how many applies TestFaultManyApplies does")

// smallDisk gives the rig's data directory a file system of its own in a mount namespace of its own. wrap goes in front of what is to see it; at
// is where the test sees it.
func (r *rig) smallDisk(size string) (wrap []string, at string) {
	r.t.Helper()
	check(r.t, os.MkdirAll(r.data, 0o755))
	c := r.Command(netlab.GW, "unshare", "--mount", "sh", "-c", "mount -t tmpfs -o size="+size+",mode=755 tmpfs "+r.data+" && touch "+r.data+"/there && exec sleep 300")
	check(r.t, c.Start())
	r.t.Cleanup(func() { c.Process.Kill(); c.Wait() })
	at = fmt.Sprintf("/proc/%d/root%s", c.Process.Pid, r.data)
	r.until(5*time.Second, "the small disk is mounted", func() (bool, string) {
		_, err := os.Stat(filepath.Join(at, "there"))
		return err == nil, fmt.Sprint(err)
	})
	return []string{"nsenter", fmt.Sprintf("--mount=/proc/%d/ns/mnt", c.Process.Pid)}, at
}

// fill leaves no room in a directory; remove takes the filler away.
func fill(t testing.TB, dir string) (remove func()) {
	t.Helper()
	name := filepath.Join(dir, "filler")
	f, err := os.Create(name)
	check(t, err)
	for b := make([]byte, 4096); ; {
		if _, err = f.Write(b); err != nil {
			break
		}
	}
	f.Close()
	if !strings.Contains(err.Error(), "no space left") {
		t.Fatal(err)
	}
	return func() { check(t, os.Remove(name)) }
}

// refused hands over a policy that must be refused with words that tell, and changes nothing.
func (r *rig) refused(text string, want ...string) {
	r.t.Helper()
	before := r.status().Revision
	path := filepath.Join(r.dir, "refused.toml")
	r.write(path, text)
	_, bad, code := r.cli("apply", path)
	for _, w := range want {
		if code != 1 || !strings.Contains(bad, w) {
			r.t.Errorf("apply: status %d, %q, want %q in it", code, bad, w)
		}
	}
	if now := r.status().Revision; now != before {
		r.t.Errorf("a refused apply changed the revision: %+v, was %+v", now, before)
	}
	if out, _, _ := r.cli("policy"); out == text {
		r.t.Error("a refused policy is served")
	}
}

func faultPolicy(n int) string {
	return rigPolicy(fmt.Sprintf("\n[[tenant.rule]]\nname = \"number-%d\"\ndirection = \"out\"\naction = \"deny\"\nto = [\"203.0.113.%d\"]\n", n, 100+n%100), "")
}

// A full disk refuses an apply and nothing else: what is served goes on, also through a restart, and the next apply works once there is room. So
// does a log that the disk has no room for.
func TestFaultDiskFull(t *testing.T) {
	mostlyWaits(t)
	r := newRig(t, "full", faultPolicy(0))
	wrap, at := r.smallDisk("1m")
	r.start(wrap...)
	r.apply(faultPolicy(1))
	r.serve(r.Public1.Name, "udp-echo", "-addr", ":7007")
	var p host.Probe
	stream := r.spawn(r.Alpha1.Name, &p, "udp-probe", "-dst", addrPort(r.Public1.V4, 7007), "-pps", "200", "-duration", "1500ms")
	files := func() string {
		list, err := filepath.Glob(filepath.Join(at, "policies", "*"))
		check(t, err)
		for i := range list {
			list[i] = filepath.Base(list[i])
		}
		return strings.Join(list, " ")
	}
	kept := files()
	room := fill(t, at)
	for range 3 {
		r.refused(faultPolicy(2), "no space left on device", "make room on that file system and apply again")
	}
	if now := files(); now != kept {
		t.Errorf("a refused apply left %q, there was %q", now, kept)
	}
	r.wait(stream)
	if p.Received != p.Sent {
		t.Errorf("%d of %d came back while the disk was full", p.Received, p.Sent)
	}
	r.kill()
	r.start(append(wrap, "sh", "-c", `exec "$@" 2>`+r.data+"/log", "sh")...) // nothing of its log can be written
	if st := r.status(); st.Revision.Number != 2 || len(st.Damaged) > 0 || !st.Ready {
		t.Errorf("restart on a full disk: revision %+v, damaged %v", st.Revision, st.Damaged)
	}
	r.refused(faultPolicy(2), "no space left on device")
	room()
	if a := r.apply(faultPolicy(2)); a.Revision.Number != 3 || a.NotKept != "" {
		t.Errorf("with room again: %+v", a)
	}
	if c := r.status().Cluster; c.State != api.ClusterCurrent || c.Problem != "" || c.Revision != 3 {
		t.Errorf("with room again: %+v", c)
	}
	r.stop()
}

// A data directory that may not be written serves what is in it and refuses what is new; one that is empty or belongs to somebody else refuses the
// start with a line that says why.
func TestFaultDataReadOnly(t *testing.T) {
	mostlyWaits(t)
	r := newRig(t, "readonly", faultPolicy(0))
	wrap, at := r.smallDisk("1m")
	inside := func(args ...string) {
		t.Helper()
		if out, err := exec.Command(wrap[0], append(wrap[1:], args...)...).CombinedOutput(); err != nil {
			t.Fatalf("%v: %v: %s", args, err, out)
		}
	}
	mount := func(how string) { t.Helper(); inside("mount", "-o", "remount,"+how, r.data) }
	refuse := func(why, want string, wrap ...string) {
		t.Helper()
		os.Remove(r.log)
		r.launch(wrap...)
		if !r.gone(10*time.Second) || r.cmd.ProcessState.ExitCode() != 1 || !strings.Contains(r.logged(), want) || len(attached(r)) > 0 {
			t.Errorf("%s: ended %v, programs %v:\n%s", why, r.err, attached(r), r.logged())
		}
		t.Logf("%s: %s", why, r.logged())
	}
	mount("ro")
	refuse("first start, nothing can be kept", "read-only file system", wrap...)
	mount("rw")
	r.start(wrap...)
	r.apply(faultPolicy(1))
	// A file that is open for writing keeps a file system writable, so the read-only one lies on top of it.
	inside("mount", "--bind", r.data, r.data)
	inside("mount", "-o", "remount,bind,ro", r.data)
	r.refused(faultPolicy(2), "read-only file system", "the data directory must be writable")
	r.stop()
	inside("umount", r.data)
	mount("ro")
	r.start(wrap...)
	if st := r.status(); !st.Ready || st.Revision.Number != 2 {
		t.Errorf("restart on a read-only directory: ready %v, revision %d", st.Ready, st.Revision.Number)
	}
	r.refused(faultPolicy(2), "read-only file system")
	r.until(5*time.Second, "status says what it lacks", func() (bool, string) {
		c := r.status().Cluster
		return c.State == api.ClusterClosed && strings.Contains(c.Problem, "read-only file system"), fmt.Sprintf("%+v", c)
	})
	mount("rw")
	r.until(8*time.Second, "the replicated state is open again, by itself", func() (bool, string) {
		c := r.status().Cluster
		return c.State == api.ClusterCurrent && c.Problem == "", fmt.Sprintf("%+v", c)
	})
	check(t, os.Rename(filepath.Join(at, "policies"), filepath.Join(at, "elsewhere")))
	r.refused(faultPolicy(2), "no such file or directory")
	check(t, os.Rename(filepath.Join(at, "elsewhere"), filepath.Join(at, "policies")))
	if a := r.apply(faultPolicy(2)); a.Revision.Number != 3 {
		t.Errorf("the directory is back: %+v", a.Revision)
	}
	r.stop()
	// Its socket is there too, as by default: packets pass, and it can be asked when the directory is writable again.
	node := read(t, r.node)
	r.write(r.node, replace(t, node, strconv.Quote(r.socket), strconv.Quote(filepath.Join(r.data, "s"))))
	mount("ro")
	os.Remove(r.log)
	r.launch(wrap...)
	r.serve(r.Public1.Name, "udp-echo", "-addr", ":7007")
	r.until(20*time.Second, "packets pass though the socket cannot be made", func() (bool, string) {
		var p host.Probe
		r.wait(r.spawn(r.Alpha1.Name, &p, "udp-probe", "-dst", addrPort(r.Public1.V4, 7007), "-pps", "50", "-duration", "200ms", "-wait", "300ms"))
		return p.Received > 0 && r.running(), fmt.Sprintf("%d of %d\n%s", p.Received, p.Sent, r.logged())
	})
	if !strings.Contains(r.logged(), "nobody can ask this node by its socket") {
		t.Errorf("the log does not say that nobody can ask:\n%s", r.logged())
	}
	mount("rw")
	there := api.Dial(filepath.Join(at, "s"))
	r.until(8*time.Second, "it can be asked, by itself", func() (bool, string) {
		var st api.Status
		err := there.Get(t.Context(), api.PathStatus, &st)
		return err == nil && st.Ready && st.Revision.Number == 3, fmt.Sprintf("%v, %+v", err, st.Revision)
	})
	there.Close()
	r.stop()
	r.write(r.node, node)
	for _, dev := range []string{netlab.PublicPort, netlab.AlphaPort, netlab.BetaPort} {
		if _, bad, code := r.cliIn("release", dev); code != 0 {
			t.Fatal(bad)
		}
	}
	check(t, os.Chown(filepath.Join(at, "policies"), 65534, 65534))
	check(t, os.Chmod(filepath.Join(at, "policies"), 0o700))
	refuse("somebody else's directory", "permission denied", append(wrap, "setpriv", "--bounding-set", "-dac_override,-dac_read_search", "--inh-caps", "-all")...)
}

// cliIn is cli inside the gateway's namespace.
func (r *rig) cliIn(args ...string) (stdout, stderr string, status int) {
	c := r.Command(netlab.GW, r.program, args...)
	var out, bad strings.Builder
	c.Stdout, c.Stderr = &out, &bad
	if err := c.Run(); c.ProcessState == nil {
		return "", err.Error(), -1
	}
	return out.String(), bad.String(), c.ProcessState.ExitCode()
}

// Nobody who reads the log can hold the node up: a pipe that is full, and one whose reader is gone, cost lines.
func TestFaultLogNotTaken(t *testing.T) {
	mostlyWaits(t)
	r := newRig(t, "log", faultPolicy(0))
	fifo := filepath.Join(r.dir, "fifo")
	check(t, unix.Mkfifo(fifo, 0o600))
	reader, err := os.OpenFile(fifo, os.O_RDWR|unix.O_NONBLOCK, 0)
	check(t, err)
	defer reader.Close()
	_, err = unix.FcntlInt(reader.Fd(), unix.F_SETPIPE_SZ, 4096)
	check(t, err)
	wrap := []string{"sh", "-c", `exec "$@" 2>` + fifo, "sh"}
	r.start(wrap...)
	r.serve(r.Public1.Name, "udp-echo", "-addr", ":7007")
	var p host.Probe
	stream := r.spawn(r.Alpha1.Name, &p, "udp-probe", "-dst", addrPort(r.Public1.V4, 7007), "-pps", "200", "-duration", "1s")
	for n := range 60 { // a line each, some 200 bytes: three times the pipe
		var a api.Applied
		check(t, r.api.Post(t.Context(), api.PathApply, api.ApplyRequest{Policy: faultPolicy(n + 1), Source: "test"}, &a))
	}
	r.wait(stream)
	if p.Received != p.Sent {
		t.Errorf("%d of %d came back while nobody took the log", p.Received, p.Sent)
	}
	r.stop() // within its time, and with status 0

	r.start(wrap...)
	check(t, reader.Close()) // it was the only one
	r.apply(faultPolicy(1))
	r.cmd.Process.Signal(unix.SIGPIPE)
	r.cmd.Process.Signal(unix.SIGHUP)
	r.apply(faultPolicy(2))
	r.stop()
}

// A second process on the same data directory, or on the same socket, is refused, with other ports too; the first loses nothing.
func TestFaultTwoInstances(t *testing.T) {
	mostlyWaits(t)
	r := newRig(t, "twice", rigPolicy("", ""))
	check(t, r.AddLink(netlab.LinkSpec{A: netlab.End{NS: netlab.GW, Name: "x0"}, B: netlab.End{NS: netlab.GW, Name: "x1"}}))
	r.start()
	r.serve(r.Public1.Name, "udp-echo", "-addr", ":7007")
	var p host.Probe
	stream := r.spawn(r.Alpha1.Name, &p, "udp-probe", "-dst", addrPort(r.Public1.V4, 7007), "-pps", "500", "-duration", "1500ms")
	second := rigOn(t, r.Topology, r.program, "schema = 1\n[backbone]\ninterfaces = [\"backbone\"]\n"+rigAlpha(""))
	for why, x := range map[string]struct{ data, socket, want string }{
		"same data directory": {r.data, second.socket, "another demarc process uses it: stop that one first, or give each node its own data_dir"},
		"same socket":         {second.data, r.socket, "another demarc serves it: stop that one, or give this node its own api.socket"},
	} {
		second.write(second.node, fmt.Sprintf("schema = 1\nname = \"second\"\ndata_dir = %q\n[tables]\nsessions = 1024\nframes = 2048\n[api]\nsocket = %q\n[[port]]\ndevice = \"x0\"\n[[port]]\ndevice = \"x1\"\n"+
			"[[interface]]\nname = \"backbone\"\nport = \"x0\"\naddresses = [\"203.0.113.1/24\"]\n[[interface]]\nname = \"alpha\"\nport = \"x1\"\naddresses = [\"198.18.10.1/24\", \"2001:db8:a::1/64\"]\n", x.data, x.socket))
		os.Remove(second.log)
		second.launch()
		if !second.gone(8 * time.Second) {
			second.kill()
			t.Fatalf("%s: it started", why)
		}
		text := second.logged()
		t.Logf("%s: %s", why, text)
		if code := second.cmd.ProcessState.ExitCode(); code != 1 || !strings.Contains(text, x.want) {
			t.Errorf("%s: status %d", why, code)
		}
		for _, dev := range []string{"x0", "x1"} {
			if id := (&site{Topology: r.Topology, t: t}).xdpID(dev); id != 0 {
				t.Errorf("%s: it left a program on %s", why, dev)
			}
		}
	}
	r.wait(stream)
	if st := r.status(); p.Received != p.Sent || !st.Ready || st.Revision.Number != 1 {
		t.Errorf("the first: %d of %d, ready %v, revision %d", p.Received, p.Sent, st.Ready, st.Revision.Number)
	}
	r.apply(rigPolicy("", "")) // and its socket is still its own
}

// A signal may come at any moment: while it starts, serves, applies, follows a device, ends. SIGTERM and SIGINT end it with status 0, SIGHUP and SIGPIPE change
// nothing, SIGQUIT and SIGKILL end it at once; whatever it was, the ports are closed, nothing leaks, and the next start works.
func TestFaultSignals(t *testing.T) {
	mostlyWaits(t)
	r := newRig(t, "signals", faultPolicy(0))
	r.start()
	r.stop()
	f := kernelWouldForward(r)
	f.tight("closed by the first run")
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 1))
	last := []unix.Signal{unix.SIGTERM, unix.SIGINT, unix.SIGKILL, unix.SIGTERM, unix.SIGQUIT, unix.SIGHUP, unix.SIGTERM, unix.SIGINT, unix.SIGPIPE, unix.SIGTERM, unix.SIGKILL, unix.SIGTERM}
	for n, sig := range last {
		doing := []string{"start", "apply", "device"}[rng.IntN(3)]
		wait := time.Duration(rng.IntN(250)) * time.Millisecond
		what := fmt.Sprintf("round %d: %v after %v of %s", n, sig, wait, doing)
		os.Remove(r.log)
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		switch doing {
		case "start":
			r.launch()
			r.until(5*time.Second, "it minds its signals", func() (bool, string) { return r.minds(), "" })
		case "apply":
			r.start()
			wg.Go(func() {
				for i := 0; ctx.Err() == nil; i++ {
					var a api.Applied
					_ = r.api.Post(ctx, api.PathApply, api.ApplyRequest{Policy: faultPolicy(i), Source: "test"}, &a) // it is being ended
				}
			})
		case "device":
			r.start()
			wg.Go(func() {
				for i := 0; ctx.Err() == nil; i++ {
					check(t, r.SetMTU(netlab.GW, netlab.BetaPort, 1400+i%2*100))
					check(t, r.SetUp("sw-beta", "gw-beta0", i%2 == 1))
					time.Sleep(5 * time.Millisecond)
				}
				check(t, r.SetUp("sw-beta", "gw-beta0", true))
				check(t, r.SetMTU(netlab.GW, netlab.BetaPort, 1500))
			})
		}
		time.Sleep(wait)
		r.cmd.Process.Signal(sig)
		if sig == unix.SIGHUP || sig == unix.SIGPIPE {
			if r.gone(300 * time.Millisecond) {
				t.Errorf("%s: it ended: %v\n%s", what, r.err, r.logged())
			} else if sig == unix.SIGHUP && !strings.Contains(read(t, r.log), "demarc apply") {
				t.Errorf("%s: the log does not say what would help:\n%s", what, r.logged())
			}
			r.cmd.Process.Signal(unix.SIGTERM)
		}
		if !r.gone(10 * time.Second) {
			t.Errorf("%s: it did not end", what)
			r.kill()
		}
		cancel()
		wg.Wait()
		ws := r.cmd.ProcessState.Sys().(syscall.WaitStatus)
		switch sig {
		case unix.SIGKILL:
			if !ws.Signaled() {
				t.Errorf("%s: ended with %v", what, r.err)
			}
		case unix.SIGQUIT:
			if ws.ExitStatus() != 2 || !strings.Contains(read(t, r.log), "goroutine ") {
				t.Errorf("%s: ended with %v and without the stacks that it is for", what, r.err)
			}
		default: // the exit status has the frame account in it
			if r.err != nil || strings.Contains(read(t, r.log), "goroutine ") {
				t.Errorf("%s: ended with %v:\n%s", what, r.err, r.logged())
			}
		}
		if ids := f.site.xdpIDs(); ids[0] == 0 || ids[1] == 0 || ids[2] == 0 {
			t.Errorf("%s: ports are open: programs %v", what, ids)
		}
		f.tight(what)
	}
	r.start()
	var ping host.Ping
	r.wait(r.spawn(r.Beta1.Name, &ping, "ping", "-dst", r.Public1.V4.String(), "-count", "5", "-interval", "20ms"))
	if ping.Received < 4 {
		t.Errorf("after all that %d of 5 pings", ping.Received)
	}
	f.tight("served again")
	r.stop()
}

// minds reports whether the program has come as far as to mind its signals; before that it has touched nothing, and any ends it. Of all it
// takes SIGPIPE last, by ignoring it, which the kernel tells.
func (r *rig) minds() bool {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", r.cmd.Process.Pid))
	if err != nil {
		return false
	}
	for l := range strings.Lines(string(b)) {
		if v, ok := strings.CutPrefix(l, "SigIgn:"); ok {
			mask, err := strconv.ParseUint(strings.TrimSpace(v), 16, 64)
			return err == nil && mask>>(unix.SIGPIPE-1)&1 == 1
		}
	}
	return false
}

// Thousands of applies in a row, under a paced stream that they do not concern: nothing is lost and nothing grows. What the process keeps of the past has its bound, and is full after the first 300.
// From there on what a collection of garbage leaves alive must not grow; what is resident may by more: the heap's room for garbage, and pages of files that are touched bit by bit.
func TestFaultManyApplies(t *testing.T) {
	r := newRig(t, "many", faultPolicy(0))
	r.start()
	r.serve(r.Public1.Name, "udp-echo", "-addr", ":7007")
	total := *faultApplies
	warm := min(300, total/4)
	apply := func(n int) (took time.Duration) {
		begin := time.Now()
		var a api.Applied
		check(t, r.api.Post(t.Context(), api.PathApply, api.ApplyRequest{Policy: faultPolicy(n), Source: "test"}, &a))
		if a.Revision.Number != uint64(n+1) || a.Cut != 0 {
			t.Fatalf("apply %d: %+v, %d cut", n, a.Revision, a.Cut)
		}
		return time.Since(begin)
	}
	var kept api.Kept
	check(t, r.api.Post(t.Context(), api.PathKeep, api.KeepRequest{Bounds: api.Bounds{Audit: 100}}, &kept))
	for n := 1; n <= warm; n++ {
		apply(n)
	}
	var p host.Probe
	stream := r.spawn(r.Alpha1.Name, &p, "udp-probe", "-dst", addrPort(r.Public1.V4, 7007), "-pps", "500", "-duration", "3s", "-wait", "1s")
	before, goroutines := r.size(), r.plain("go_goroutines")
	begin, worst := time.Now(), time.Duration(0)
	var first, last []float64 // KiB that lived, in the first and in the last quarter from here on
	quarter := (total - warm) / 4
	for n := warm + 1; n <= total; n++ {
		worst = max(worst, apply(n))
		switch {
		case n%max(1, quarter/20) != 0:
		case n <= warm+quarter:
			first = append(first, r.live())
		case n > total-quarter:
			last = append(last, r.live())
		}
	}
	each := time.Since(begin) / time.Duration(total-warm)
	after, now := r.size(), r.plain("go_goroutines")
	r.wait(stream)
	t.Logf("%d applies, each %v, longest %v; %d of %d came back, longest gap %.1f ms", total, each.Round(time.Microsecond), worst.Round(time.Microsecond), p.Received, p.Sent, p.LongestMs)
	if p.Received != p.Sent {
		t.Errorf("%d of %d came back", p.Received, p.Sent)
	}
	before.grew(t, after, 24<<10)
	slices.Sort(first)
	slices.Sort(last)
	grown := last[len(last)/2] - first[len(first)/2]
	t.Logf("alive %.0f to %.0f KiB in the first quarter, %.0f to %.0f in the last: %.2f KiB an apply", first[0], first[len(first)-1], last[0], last[len(last)-1], grown/float64(3*quarter))
	if grown > 128+float64(3*quarter)/2 { // half a KiB an apply
		t.Errorf("what lives grew by %.0f KiB in %d applies", grown, 3*quarter)
	}
	if now > goroutines+4 {
		t.Errorf("%v goroutines, there were %v", now, goroutines)
	}
	files, err := filepath.Glob(filepath.Join(r.data, "policies", "*"))
	if err != nil || len(files) > 10 {
		t.Errorf("%d files among the node's own copies (%v)", len(files), err)
	}
	if h := r.history(); len(h.Revisions) != 200 || h.Serving != uint64(total+1) {
		t.Errorf("%d revisions in the history, %d is served", len(h.Revisions), h.Serving)
	}
	if texts, err := filepath.Glob(filepath.Join(r.data, "cluster", "texts", "*")); err != nil || len(texts) > 200 {
		t.Errorf("%d texts are kept (%v)", len(texts), err)
	}
	st := r.status()
	if d := st.Drops; !st.Conservation.OK || d["unset"] > 0 || rigTenantOf(st, "alpha").Created != 1 {
		t.Errorf("frames %s, drops %v, alpha made %d sessions", st.Conservation.Detail, d, rigTenantOf(st, "alpha").Created)
	}
	r.stop()
}

// live is how many KiB the last collection of garbage in the program left: the heap's next goal is twice that. The answer is asked for as it is, since to compress one takes a megabyte that
// lives a while.
func (r *rig) live() (kib float64) {
	r.t.Helper()
	c := http.Client{Transport: &http.Transport{DisableCompression: true, DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", r.socket)
	}}}
	q, err := c.Get("http://demarc" + api.PathMetrics)
	check(r.t, err)
	defer q.Body.Close()
	b, err := io.ReadAll(q.Body)
	check(r.t, err)
	for l := range strings.Lines(string(b)) {
		if v, ok := strings.CutPrefix(l, "go_memstats_next_gc_bytes "); ok {
			fmt.Sscan(v, &kib)
		}
	}
	if kib == 0 {
		r.t.Fatal("no series says what the heap's next goal is")
	}
	return kib / 2 / 1024
}

// plain is a series of /metrics without labels.
func (r *rig) plain(series string) (x float64) {
	r.t.Helper()
	b, err := r.api.Text(r.t.Context(), api.PathMetrics)
	check(r.t, err)
	for l := range strings.Lines(string(b)) {
		if v, ok := strings.CutPrefix(l, series+" "); ok {
			fmt.Sscan(v, &x)
		}
	}
	return x
}

// The session table counts time in 32 bits of a millisecond or so, which a machine uses up in 52 days. Here that moment comes while a stream runs: in a
// time namespace, so that the machine's own clocks stay what they are.
func TestFaultClockWrap(t *testing.T) {
	mostlyWaits(t)
	r := newRig(t, "clock", rigPolicy("", ""))
	var ts unix.Timespec
	check(t, unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts))
	const wrap = int64(1) << 52 // ns: 2^32 ticks of 2^20 ns
	offset := wrap/1e9 - int64(ts.Sec) - 5
	began := time.Now()
	r.start("unshare", "--time", "--boottime", fmt.Sprint(offset))
	r.serve(r.Public1.Name, "udp-echo", "-addr", ":7007")
	var ping host.Ping
	r.wait(r.spawn(r.Beta1.Name, &ping, "ping", "-dst", r.Public1.V4.String(), "-count", "3", "-interval", "20ms"))
	conn := func() net.Conn {
		rigEcho(r, r.Public1.Name, ":7100")
		return rigDial(r, r.Alpha1.Name, addrPort(r.Public1.V4, 7100))
	}()
	if left := time.Until(began.Add(6 * time.Second)); left < 1500*time.Millisecond {
		t.Fatalf("the machine is so slow that the moment would pass unseen (%v left)", left)
	}
	var p host.Probe
	stream := r.spawn(r.Alpha1.Name, &p, "udp-probe", "-dst", addrPort(r.Public1.V4, 7007), "-local", r.Alpha1.V4.String()+":5000", "-pps", "200", "-duration", "6s")
	r.wait(stream)
	if p.Received != p.Sent {
		t.Errorf("%d of %d came back", p.Received, p.Sent)
	}
	if !alive(conn, 2*time.Second) {
		t.Error("a TCP connection from before the moment is dead")
	}
	var s api.Sessions
	r.ask(&s, "sessions")
	if len(s.Sessions) < 3 { // beta's ping as well
		t.Errorf("%d sessions are left", len(s.Sessions))
	}
	for _, x := range s.Sessions {
		if x.Idle < 0 || x.Idle > 30 || x.Expires <= 0 || x.Expires > 8000 {
			t.Errorf("session %s: idle %.1f s, ends in %.1f s", x.Src, x.Idle, x.Expires)
		}
	}
	if got := sessionsOf(r, "alpha", 5000); len(got) != 1 || got[0].Orig.Packets != p.Sent {
		t.Errorf("the stream's session: %+v", got)
	}
	r.stop()
}
