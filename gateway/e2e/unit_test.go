package e2e

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"demarc/gateway/api"
	"demarc/gateway/confine"
	"demarc/gateway/hostnet"
	"demarc/gateway/netlab"
	"demarc/gateway/netlab/host"
)

const (
	unitFile        = "../../packaging/demarc.service"
	witnessUnitFile = "../../packaging/demarc-witness.service"
)

// unitValue is what the unit says under a key that stands there once.
func unitValue(t testing.TB, key string) string {
	t.Helper()
	var found []string
	for line := range strings.Lines(read(t, unitFile)) {
		if v, ok := strings.CutPrefix(strings.TrimSpace(line), key+"="); ok {
			found = append(found, v)
		}
	}
	if len(found) != 1 {
		t.Fatalf("%s: %d lines with %s=", unitFile, len(found), key)
	}
	return found[0]
}

// bounded is a command line that leaves what follows it no other capabilities than the unit leaves.
func bounded(t testing.TB) []string {
	t.Helper()
	set := "-all"
	for name := range strings.FieldsSeq(unitValue(t, "CapabilityBoundingSet")) {
		set += ",+" + strings.ToLower(strings.TrimPrefix(name, "CAP_"))
	}
	return []string{"setpriv", "--bounding-set", set, "--inh-caps", "-all"}
}

// rights holds every thread of a gateway against what it may have once it forwards.
func rights(t testing.TB, pid int) {
	t.Helper()
	var want uint64
	for _, c := range confine.Running {
		want |= 1 << c
	}
	files, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", pid))
	if len(files) < 3 {
		t.Errorf("%d threads", len(files))
	}
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			continue // it has ended
		}
		for line := range strings.Lines(string(b)) {
			k, v, _ := strings.Cut(line, ":")
			v = strings.TrimSpace(v)
			switch n, _ := strconv.ParseUint(v, 16, 64); {
			case k == "CapPrm" && n != want, k == "CapEff" && n != want, k == "CapInh" && n != 0, k == "CapAmb" && n != 0, k == "NoNewPrivs" && v != "1":
				t.Errorf("%s: %s is %s, want capabilities %016x", f, k, v, want)
			}
		}
	}
}

// pings passes packets of both tenants through the standard lab.
func (s *site) pings(when string) {
	s.t.Helper()
	for _, h := range []netlab.Host{s.Alpha1, s.Beta1} {
		var p host.Ping
		if !until(5*time.Second, func() bool {
			s.run(h.Name, &p, "ping", "-dst", s.Public1.V4.String(), "-count", "3", "-interval", "20ms")
			return p.Received == 3
		}) {
			s.t.Errorf("%s: %s: %d of 3 pings", when, h.Name, p.Received)
		}
	}
}

// With the capabilities of the unit and no others the gateway starts, forwards, tells systemd so when it does, keeps only what it needs while it
// runs, follows an address and an apply with that, and takes over from a process that was killed.
func TestUnitRights(t *testing.T) {
	mostlyWaits(t)
	s := standard(t, netlab.Options{})
	path := filepath.Join(t.TempDir(), "notify")
	l, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	check(t, err)
	defer l.Close()
	told := make(chan string, 256)
	var late atomic.Bool // READY was told before the node was
	go func() {
		b := make([]byte, 4096)
		for {
			n, err := l.Read(b)
			if err != nil {
				return
			}
			if strings.HasPrefix(string(b[:n]), "READY=1") {
				var st api.Status
				if err := s.client.Get(context.Background(), api.PathStatus, &st); err != nil || !st.Ready {
					late.Store(true)
				}
			}
			select {
			case told <- string(b[:n]):
			default:
			}
		}
	}()
	hears := func(want string) {
		t.Helper()
		deadline := time.After(5 * time.Second)
		for {
			select {
			case got := <-told:
				if got == want {
					return
				}
			case <-deadline:
				t.Errorf("systemd is not told %q", want)
				return
			}
		}
	}
	wrap := append([]string{"ip", "netns", "exec", s.NetNS(netlab.GW), "env", "NOTIFY_SOCKET=" + path, "WATCHDOG_USEC=300000"}, bounded(t)...)

	s.startBy(wrap)
	hears("READY=1\nSTATUS=forwarding, policy revision 1")
	hears("WATCHDOG=1")
	hears("WATCHDOG=1")
	rights(t, s.gw.cmd.Process.Pid)
	s.pings("first start")
	before := s.xdpID(netlab.PublicPort)
	check(t, s.AddAddr(netlab.GW, netlab.PublicPort, prefix(hostOnPublic+"/24")))
	if !until(5*time.Second, func() bool { return s.xdpID(netlab.PublicPort) != before }) {
		t.Errorf("an address of the host did not reach the program:\n%s", s.gw.lastLines(10))
	}
	check(t, os.WriteFile(s.policy, []byte(strings.Replace(read(t, s.policy), "20M", "30M", 1)), 0o644))
	if out, err := s.demarc("apply", s.policy); err != nil {
		t.Errorf("apply: %v\n%s", err, out)
	}
	hears("WATCHDOG=1\nSTATUS=forwarding, policy revision 2")
	check(t, s.SetUp(netlab.GW, netlab.BetaPort, false))
	hears("WATCHDOG=1\nSTATUS=forwarding, policy revision 2; beta0 down")
	check(t, s.SetUp(netlab.GW, netlab.BetaPort, true))
	hears("WATCHDOG=1\nSTATUS=forwarding, policy revision 2")
	s.end(s.gw, unix.SIGKILL)
	s.startBy(wrap)
	hears("READY=1\nSTATUS=forwarding, policy revision 2")
	rights(t, s.gw.cmd.Process.Pid)
	s.pings("after kill -9")
	s.stop()
	hears("STOPPING=1\nSTATUS=ending")
	if late.Load() {
		t.Error("READY was told before the node was ready")
	}
	// Each of them is needed. Those that sys_admin includes are needed when it has been given up, so they are tried without it, on ports
	// that have no program to take over.
	starts := func(without ...string) bool {
		t.Helper()
		set := strings.Join(bounded(t), " ")
		for _, c := range without {
			set = replace(t, set, ",+"+c, "")
		}
		p := s.launch(append([]string{"ip", "netns", "exec", s.NetNS(netlab.GW), "prlimit", "--memlock=65536"}, strings.Fields(set)...))
		up := until(10*time.Second, func() bool {
			var st api.Status
			return p.done() || s.client.Get(t.Context(), api.PathStatus, &st) == nil && st.Ready
		}) && !p.done()
		s.end(p, unix.SIGTERM)
		return up
	}
	free := func() {
		for _, dev := range []string{netlab.PublicPort, netlab.AlphaPort, netlab.BetaPort} {
			s.demarc("release", dev) // there may be none
		}
	}
	if !starts() {
		t.Error("with all of them it does not start")
	}
	for _, c := range []string{"net_admin", "net_raw", "ipc_lock", "sys_admin"} {
		if starts(c) {
			t.Errorf("it starts without %s, which the unit gives it", c)
		}
	}
	for _, c := range []string{"bpf", "perfmon"} {
		free()
		if !starts("sys_admin") {
			t.Error("without sys_admin it does not start on ports that have no program")
		}
		free()
		if starts("sys_admin", c) {
			t.Errorf("it starts without %s, which the unit gives it", c)
		}
	}
}

// At a restart of any kind and at an upgrade the port never goes down, never is without a program, the host's ssh over it goes on, and no frame
// of transit takes the kernel's way. (TestSteerClosedInEveryState sends transit all the time.)
func TestRestartKeepsPortsUp(t *testing.T) {
	mostlyWaits(t)
	s := standard(t, netlab.Options{})
	check(t, s.AddAddr(netlab.GW, netlab.PublicPort, prefix(hostOnPublic+"/24")))
	check(t, s.Sysctl(netlab.GW, "net.ipv4.ip_forward", "1"))
	for _, dev := range []string{netlab.PublicPort, netlab.AlphaPort} {
		_, err := s.Exec(netlab.GW, "ethtool", "-K", dev, "rxvlan", "on")
		check(t, err)
	}
	ssh := s.startSSH(netlab.GW, hostOnPublic)
	s.start()
	s.pings("first start")
	forwarded := s.kernelForwarded()
	open := s.sshSession(s.Public1.Name, ssh)
	open.echo(t, "running")
	w := s.watchLinks()
	next := filepath.Join(t.TempDir(), "next")
	build := exec.Command("go", "build", "-ldflags", "-s -w -X main.version=next", "-o", next, "demarc")
	build.Env = append(build.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	for _, end := range []struct {
		name   string
		signal unix.Signal
		binary string
	}{{"restart", unix.SIGUSR1, ""}, {"end and start", unix.SIGTERM, ""}, {"kill", unix.SIGKILL, ""}, {"upgrade", unix.SIGUSR1, next}} {
		ids := s.xdpIDs()
		s.end(s.gw, end.signal)
		open.echo(t, end.name+"-down")
		s.binary = end.binary
		s.start()
		open.echo(t, end.name+"-up")
		s.pings(end.name)
		for i, id := range s.xdpIDs() {
			if id == ids[i] || id == 0 {
				t.Errorf("%s: program %d of port %d was not exchanged", end.name, id, i)
			}
		}
	}
	if v := s.status().Version; v != "next" {
		t.Errorf("version %q serves, want the next one", v)
	}
	// That it is watched: the last change of all is seen, and everything before it was in order.
	check(t, s.SetUp(netlab.GW, netlab.BetaPort, false))
	if !until(5*time.Second, func() bool { return w.down.Load() > 0 }) {
		t.Error("the watch does not see a port that goes down")
	}
	if seen := w.list(); len(seen) != 1 || !strings.HasPrefix(seen[0], netlab.BetaPort) {
		t.Errorf("ports went down, or were without a program: %v", seen)
	}
	check(t, s.SetUp(netlab.GW, netlab.BetaPort, true))
	if n := s.kernelForwarded(); n != forwarded {
		t.Errorf("the kernel forwarded %d packets", n-forwarded)
	}
	s.stop()
}

// linkWatch collects link messages of the gateway's ports that say down, without carrier, without a program, or gone.
type linkWatch struct {
	down atomic.Int64
	bad  chan string
}

func (w *linkWatch) list() (all []string) {
	for {
		select {
		case s := <-w.bad:
			all = append(all, s)
		default:
			return all
		}
	}
}

// watchLinks follows the kernel's link messages until the test ends. It begins with what is there, which must be in order.
func (s *site) watchLinks() *linkWatch {
	s.t.Helper()
	w := &linkWatch{bad: make(chan string, 64)}
	ctx, cancel := context.WithCancel(context.Background())
	done, first := make(chan error, 1), make(chan struct{}, 64)
	go func() {
		done <- s.Do(netlab.GW, func() error {
			return hostnet.Watch(ctx, func(e hostnet.Event) {
				l := e.Link
				if e.Kind != hostnet.LinkEvent || l.Name != netlab.PublicPort && l.Name != netlab.AlphaPort && l.Name != netlab.BetaPort {
					return
				}
				if e.Gone || !l.Up || !l.Carrier || l.XDP.ID == 0 {
					if w.down.Load() == 0 || l.Up { // one is enough of a port that is down for good
						w.bad <- fmt.Sprintf("%s gone %v up %v carrier %v program %d", l.Name, e.Gone, l.Up, l.Carrier, l.XDP.ID)
					}
					w.down.Add(1) // last: who sees it finds it in the list
				}
				select {
				case first <- struct{}{}:
				default:
				}
			})
		})
	}()
	s.t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			s.t.Errorf("watch links: %v", err)
		}
	})
	for range 3 {
		select {
		case <-first:
		case <-time.After(5 * time.Second):
			s.t.Fatal("the watch says nothing of the ports")
		}
	}
	return w
}
