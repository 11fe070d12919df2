package e2e

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"demarc/gateway/api"
	"demarc/gateway/netlab"
	"demarc/gateway/netlab/host"
)

// attached lists the XDP programs on the gateway's ports, as the kernel tells them.
func attached(r *rig) (list []string) {
	for _, dev := range []string{"bb0", "alpha0", "beta0"} {
		out, err := r.Exec(netlab.GW, "ip", "-o", "link", "show", dev)
		if err == nil && strings.Contains(string(out), "xdp") {
			list = append(list, dev)
		}
	}
	return list
}

// refusedStart runs the program to its end: it must end with 1, in a few seconds, with lines of which one says want, and leave nothing.
func refusedStart(r *rig, why string, want []string, wrap ...string) {
	r.t.Helper()
	os.Remove(r.log)
	before := attached(r)
	r.launch(wrap...)
	if !r.gone(10 * time.Second) {
		r.kill()
		r.t.Errorf("%s: the gateway started:\n%s", why, r.logged())
		return
	}
	text := r.logged()
	r.t.Logf("%s:\n%s", why, text)
	if code := r.cmd.ProcessState.ExitCode(); code != 1 {
		r.t.Errorf("%s: exit status %d", why, code)
	}
	for _, w := range want {
		if !strings.Contains(text, w) {
			r.t.Errorf("%s: nothing says %q", why, w)
		}
	}
	for line := range strings.Lines(text) {
		if strings.Contains(line, "goroutine ") || strings.Contains(line, "panic") {
			r.t.Errorf("%s: a stack trace instead of a line", why)
			break
		}
	}
	if len(strings.Split(strings.TrimSpace(text), "\n")) > 1+len(want) {
		r.t.Errorf("%s: more lines than there is to say", why)
	}
	if after := attached(r); strings.Join(after, " ") != strings.Join(before, " ") {
		r.t.Errorf("%s: XDP programs before %v, after %v", why, before, after)
	}
	if kept, _ := filepath.Glob(filepath.Join(r.data, "policies", "*")); len(kept) > 0 {
		r.t.Errorf("%s: it kept a policy that it never served: %v", why, kept)
	}
	if _, err := os.Stat(r.socket); err == nil {
		r.t.Errorf("%s: it left its socket", why)
		os.Remove(r.socket)
	}
}

// What cannot start says why in a line each and leaves the machine as it was.
func TestRefuseToStart(t *testing.T) {
	mostlyWaits(t)
	r := newRig(t, "refuse", rigPolicy("", ""))
	good := rigNode(r.data, r.socket, "")
	node := func(old, now string) {
		t.Helper()
		r.write(r.node, replace(t, good, old, now))
	}

	node("sessions = 16384", "sessions = -3\nsesions = 5")
	refusedStart(r, "bad node file", []string{r.node + ":5: ", "-3", "sesions"})
	os.Remove(r.node)
	refusedStart(r, "no node file", []string{"node.toml", "no such file"})
	r.write(r.node, "\x00\xff{")
	refusedStart(r, "garbage", []string{r.node + ":1"})
	node(`device = "alpha0"`, "name = \"alpha0\"\ndevice = \"alpha7\"")
	refusedStart(r, "missing device", []string{"alpha7"})
	r.write(r.node, good)
	if err := r.SetUp(netlab.GW, "beta0", false); err != nil {
		t.Fatal(err)
	}
	refusedStart(r, "device down", []string{"beta0 is down: ip link set beta0 up"})
	if err := r.SetUp(netlab.GW, "beta0", true); err != nil {
		t.Fatal(err)
	}
	node("sessions = 16384", "sessions = 1000000000\nmappings = 1000000000")
	refusedStart(r, "tables larger than any memory", []string{"tables.sessions"})
	node("sessions = 16384", "sessions = 8388608")
	refusedStart(r, "tables larger than the memory that there is", []string{"make tables.sessions smaller or add memory"}, "prlimit", "--as=1500000000")
	node("frames = 8192", "frames = 64")
	refusedStart(r, "too few frames", []string{"frames"})
	r.write(r.node, rigNode(r.data, r.socket, "[workers]\ncount = 4\n"))
	refusedStart(r, "more workers than queues", []string{"workers.count"})
	r.write(r.node, rigNode(r.data, r.socket, "[workers]\ncpus = [999]\n"))
	refusedStart(r, "a CPU that is not there", []string{"999"})
	node(`device = "bb0"`, "device = \"bb0\"\nmode = \"zerocopy\"")
	refusedStart(r, "zero-copy on a driver without it", []string{"zerocopy"})
	r.write(r.node, good)
	r.write(r.policy, replace(t, rigPolicy("", ""), `interfaces = ["beta"]`, `interfaces = ["nowhere"]`))
	refusedStart(r, "a policy for another node", []string{`"nowhere"`})
	node(`device = "bb0"`, "device = \"bb0\"\nhost.shared = [\"203.0.113.1\"]")
	r.write(r.policy, rigPolicy("[[tenant.nat.forward]]\nproto = \"tcp\"\npublic = \"203.0.113.1\"\nport = 40000\ninside = \"198.18.10.11\"\n", ""))
	refusedStart(r, "a policy that an earlier release took", []string{"40000 of 203.0.113.1 is the host's on port"})
	r.write(r.node, good)
	r.write(r.policy, rigPolicy("", ""))
	os.WriteFile(filepath.Join(r.dir, "file"), nil, 0o644) // the next lines say when it is not there
	r.write(r.node, rigNode(filepath.Join(r.dir, "file"), r.socket, ""))
	refusedStart(r, "data directory is a file", []string{"not a directory"})
	r.write(r.node, good)

	// Not root: a name without a right to anything.
	if err := os.Chmod(r.dir, 0o777); err != nil {
		t.Fatal(err)
	}
	os.Chmod(filepath.Dir(r.dir), 0o755)
	if err := os.Chmod(filepath.Dir(r.program), 0o755); err != nil {
		t.Fatal(err)
	}
	os.RemoveAll(r.data)
	os.Chmod(r.log, 0o666)
	refusedStart(r, "not root", []string{"not root: run demarc as root"}, "setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups")
	os.RemoveAll(r.data)
	refusedStart(r, "root without the right to load programs", []string{"permitted"}, "setpriv", "--bounding-set", "-sys_admin,-bpf,-net_admin,-perfmon", "--inh-caps", "-all")
	os.RemoveAll(r.data)
	refusedStart(r, "root without the right to raw sockets", []string{"permitted"}, "setpriv", "--bounding-set", "-net_raw", "--inh-caps", "-all")
	os.RemoveAll(r.data)
	// Without CAP_IPC_LOCK packet memory counts against the limit.
	refusedStart(r, "no locked memory", []string{"locked memory"}, "prlimit", "--memlock=65536", "setpriv", "--bounding-set", "-ipc_lock", "--inh-caps", "-all")
	os.RemoveAll(r.data)

	r.start() // and with nothing wrong it starts
	if st := r.status(); !st.Ready {
		t.Errorf("not ready: %s", st.WhyNotReady)
	}
}

// A policy that was taken once and would not be taken now is served by the node that keeps it, which says so; it is not taken anew. The kernel's own range of ports has come to hold a forwarded one meanwhile.
func TestRefuseAnewWhatIsKept(t *testing.T) {
	mostlyWaits(t)
	forward := rigPolicy("[[tenant.nat.forward]]\nproto = \"tcp\"\npublic = \"203.0.113.1\"\nport = 40000\ninside = \"198.18.10.11\"\n", "")
	r := newRig(t, "kept", forward)
	r.write(r.node, replace(t, rigNode(r.data, r.socket, ""), `device = "bb0"`, "device = \"bb0\"\nhost.shared = [\"203.0.113.1\"]"))
	check(t, r.Sysctl(netlab.GW, "net.ipv4.ip_local_port_range", "50000 60999"))
	r.start()
	r.stop()
	check(t, r.Sysctl(netlab.GW, "net.ipv4.ip_local_port_range", "32768 60999"))
	const why = "40000 of 203.0.113.1 is the host's on port"
	r.start()
	if log := r.logged(); !strings.Contains(log, "would not be taken anew") || !strings.Contains(log, why) {
		t.Errorf("the log does not say what is wrong with what it serves:\n%s", log)
	}
	r.refused(forward+"# again\n", why)
	if out, err := r.Exec(netlab.GW, r.program, "doctor", "--node", r.node); err == nil || !strings.Contains(string(out), why) {
		t.Errorf("the doctor: %v\n%s", err, out)
	}
	r.apply(rigPolicy("", ""))
	if out, _ := r.Exec(netlab.GW, r.program, "doctor", "--node", r.node); strings.Contains(string(out), why) {
		t.Errorf("the doctor, after it was mended:\n%s", out)
	}
}

// A node whose management address is on no link yet starts and says so, and is asked there as soon as a link has it, without a restart.
func TestRefuseNothingForALateAddress(t *testing.T) {
	mostlyWaits(t)
	r := newRig(t, "late", rigPolicy("", ""))
	r.write(r.node, replace(t, rigNode(r.data, r.socket, ""), "[api]\n", "[api]\nmetrics = \"192.0.2.77:9090\"\n"))
	r.start()
	if log := r.logged(); !strings.Contains(log, "nobody can ask this node there until a link of this host has the address") || !strings.Contains(log, "192.0.2.77:9090") {
		t.Errorf("the log says nothing of it:\n%s", log)
	}
	ask := func() (string, error) {
		out, err := r.Exec(netlab.GW, "curl", "-sS", "-m", "2", "http://192.0.2.77:9090/metrics")
		return string(out), err
	}
	if out, err := ask(); err == nil {
		t.Fatalf("asked where nobody is: %.200s", out)
	}
	check(t, r.AddAddr(netlab.GW, "lo", prefix("192.0.2.77/32")))
	if out, err := ask(); err != nil || !strings.Contains(out, "demarc_gateway_ready 1") {
		t.Errorf("the address is there, and the node is not: %v, %.200s", err, out)
	}
	r.stop()
}

// A second process on the same ports, or on the same socket, is refused before it touches anything; the first one loses nothing.
func TestRefuseSecondInstance(t *testing.T) {
	mostlyWaits(t)
	r := newRig(t, "second", rigPolicy("", ""))
	r.start()
	r.serve(r.Public1.Name, "udp-echo", "-addr", ":7007")
	var p host.Probe
	stream := r.spawn(r.Alpha1.Name, &p, "udp-probe", "-dst", addrPort(r.Public1.V4, 7007), "-pps", "500", "-duration", "3s")
	time.Sleep(200 * time.Millisecond)
	// Its ports are not given away, whichever socket is asked.
	if _, err := r.Exec(netlab.GW, r.program, "release", netlab.AlphaPort, "--socket", filepath.Join(t.TempDir(), "none")); err == nil || !strings.Contains(err.Error(), fmt.Sprintf("is served by another demarc process (%d: demarc", r.cmd.Process.Pid)) {
		t.Errorf("release of a port that is served: %v", err)
	}
	second := rigOn(t, r.Topology, r.program, rigPolicy("", ""))
	for why, x := range map[string]struct{ data, socket, want string }{
		"same ports":      {second.data, second.socket, "another demarc process ("},
		"same everything": {r.data, r.socket, "another demarc"},
	} {
		second.write(second.node, rigNode(x.data, x.socket, ""))
		second.launch()
		if !second.gone(5 * time.Second) {
			second.kill()
			t.Errorf("%s: it started", why)
			continue
		}
		text := second.logged()
		t.Logf("%s: %s", why, text)
		if code := second.cmd.ProcessState.ExitCode(); code != 1 || !strings.Contains(text, x.want) {
			t.Errorf("%s: status %d", why, code)
		}
		os.Remove(second.log)
	}
	r.wait(stream)
	if p.Received != p.Sent {
		t.Errorf("the first one lost %d of %d", p.Sent-p.Received, p.Sent)
	}
	if st := r.status(); !st.Ready || st.Revision.Number != 1 {
		t.Errorf("the first one: ready %v, revision %d", st.Ready, st.Revision.Number)
	}
}

// A start without one of its devices says what is missing, also when the node has run before. (One that goes later ends nothing:
// TestFaultDeviceDeletedAndRecreated.)
func TestRefuseVanishedDevice(t *testing.T) {
	mostlyWaits(t)
	r := newRig(t, "vanish", rigPolicy("", ""))
	if err := r.RemoveLink(netlab.GW, "beta0"); err != nil {
		t.Fatal(err)
	}
	refusedStart(r, "start without the device", []string{"beta0"})
}

// A link that goes down and comes back is no reason to end: traffic goes on by itself.
func TestRefuseNothingWhenLinkComesBack(t *testing.T) {
	mostlyWaits(t)
	r := newRig(t, "flap", rigPolicy("", ""))
	r.start()
	r.serve(r.Public1.Name, "udp-echo", "-addr", ":7007")
	probe := func() (p host.Probe) {
		r.wait(r.spawn(r.Alpha1.Name, &p, "udp-probe", "-dst", addrPort(r.Public1.V4, 7007), "-pps", "100", "-duration", "300ms"))
		return p
	}
	if p := probe(); p.Received != p.Sent {
		t.Fatalf("before: %d of %d", p.Received, p.Sent)
	}
	if err := r.SetUp(netlab.GW, "alpha0", false); err != nil {
		t.Fatal(err)
	}
	r.until(3*time.Second, "status says that the port is down", func() (bool, string) {
		for _, p := range r.status().Ports {
			if p.Device == "alpha0" {
				return !p.Up, ""
			}
		}
		return false, "no alpha0"
	})
	if err := r.SetUp(netlab.GW, "alpha0", true); err != nil {
		t.Fatal(err)
	}
	r.until(8*time.Second, "traffic after the link came back", func() (bool, string) {
		p := probe()
		return p.Received == p.Sent, fmt.Sprintf("%d of %d", p.Received, p.Sent)
	})
}

// A client of the interface that is not root is told so.
func TestRefuseClients(t *testing.T) {
	r := newRig(t, "clients", rigPolicy("", ""))
	if _, text, code := r.cli("status"); code != 1 || !strings.Contains(text, "no demarc runs here") || strings.Count(strings.TrimSpace(text), "\n") > 0 {
		t.Errorf("no node: status %d, %q", code, text)
	}
	r.start()
	if err := os.Chmod(filepath.Dir(r.program), 0o755); err != nil {
		t.Fatal(err)
	}
	for dir := r.dir; dir != os.TempDir(); dir = filepath.Dir(dir) {
		if err := os.Chmod(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	c := exec.Command(r.program, "status")
	c.Env = append(os.Environ(), "DEMARC_SOCKET="+r.socket)
	c.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	out, err := c.CombinedOutput()
	if err == nil || !strings.Contains(string(out), "only root may talk to the node") || strings.Count(strings.TrimSpace(string(out)), "\n") > 0 {
		t.Errorf("status without root: %v, %q", err, out)
	}
	// A node that hangs in the kernel is no reason for the client to hang for ever: it is stopped here and goes on afterwards.
	r.cmd.Process.Signal(unix.SIGSTOP)
	hung := exec.Command("timeout", "2", r.program, "status", "--socket", r.socket)
	if err := hung.Run(); err == nil {
		t.Error("a stopped node answered")
	}
	r.cmd.Process.Signal(unix.SIGCONT)
	if st := new(api.Status); r.api.Get(t.Context(), api.PathStatus, st) != nil || !st.Ready {
		t.Error("after SIGSTOP and SIGCONT the node does not answer")
	}
	// A client that gives up, at whatever moment of its answer, is nobody's trouble but its own.
	whole, gaveUp := time.Hour, 0
	for range 10 { // the shortest: one during which the machine was elsewhere is so long that hardly anybody would give up
		began := time.Now()
		if _, err := r.api.Text(t.Context(), api.PathMetrics); err != nil {
			t.Fatal(err)
		}
		whole = min(whole, time.Since(began))
	}
	for i := range 300 {
		ctx, cancel := context.WithTimeout(t.Context(), time.Duration(i%100)*whole/80)
		var err error
		if i < 150 {
			_, err = r.api.Text(ctx, api.PathMetrics)
		} else {
			err = r.api.Get(ctx, api.PathStatus, new(api.Status))
		}
		cancel()
		if err != nil {
			gaveUp++
		}
	}
	if st := new(api.Status); r.api.Get(t.Context(), api.PathStatus, st) != nil || !st.Ready {
		t.Errorf("after %d clients that gave up the node does not answer:\n%s", gaveUp, r.logged())
	}
	if gaveUp < 50 {
		t.Errorf("only %d clients gave up", gaveUp)
	}
}
