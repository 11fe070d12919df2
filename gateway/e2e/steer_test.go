package e2e

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"demarc/gateway/netlab"
	"demarc/gateway/netlab/host"
	"demarc/gateway/xsk"
)

const (
	hostOnPublic = "203.0.113.9" // the host's own address on the gateway's port
	sshWord      = "still-here"
)

// The kernel of the gateway's namespace forwards and has all routes, and transit of both families is sent at it from both sides the whole
// time. In each of the gateway's states, and on each way from one to the other, none of it may take the kernel's way, and the
// host itself must stay reachable through the same port.
func TestSteerClosedInEveryState(t *testing.T) {
	mostlyWaits(t)
	for _, mode := range []string{"auto", "generic"} {
		t.Run(mode, func(t *testing.T) { closedInEveryState(t, mode) })
	}
}

func closedInEveryState(t *testing.T, mode string) {
	s := standard(t, netlab.Options{})
	node := read(t, s.node)
	for _, dev := range []string{netlab.PublicPort, netlab.AlphaPort, netlab.BetaPort} {
		node = replace(t, node, fmt.Sprintf("device = %q\n", dev), fmt.Sprintf("device = %q\nmode = %q\n", dev, mode))
	}
	s.write(node, read(t, s.policy))
	for dev, addrs := range map[string][]string{netlab.PublicPort: {hostOnPublic + "/24", "2001:db8:ff::9/64"}, netlab.AlphaPort: {"198.18.10.2/24", "2001:db8:a::2/64"}} {
		for _, a := range addrs {
			check(t, s.AddAddr(netlab.GW, dev, prefix(a)))
		}
	}
	check(t, s.Sysctl(netlab.GW, "net.ipv4.ip_forward", "1"))
	check(t, s.Sysctl(netlab.GW, "net.ipv6.conf.all.forwarding", "1"))
	check(t, s.AddRoute(s.Public1.Name, prefix(netlab.Inside4), addr(netlab.PublicGW4)))
	// A sender that asks for its router gives up when nobody answers; these go on.
	for _, n := range []struct{ ns, dev, via4, via6 string }{
		{s.Alpha1.Name, netlab.AlphaPort, netlab.InsideGW4, "2001:db8:a::1"}, {s.Public1.Name, netlab.PublicPort, netlab.PublicGW4, netlab.PublicGW6},
	} {
		mac, err := s.MAC(netlab.GW, n.dev)
		check(t, err)
		for _, a := range []string{n.via4, n.via6} {
			_, err := s.Exec(n.ns, "ip", "neigh", "replace", a, "lladdr", mac.String(), "dev", netlab.HostDevice, "nud", "permanent")
			check(t, err)
		}
	}
	s.serve(s.Public1.Name, "udp-sink", "-addr", ":9000")
	s.serve(s.Alpha1.Name, "udp-sink", "-addr", ":9000")
	s.serve(s.Public1.Name, "http-serve", "-addr", "203.0.113.11:80")
	ssh := s.startSSH(netlab.GW, hostOnPublic)
	k := s.countTransit()

	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	sent := map[string]*host.Flood{}
	for _, f := range []struct{ ns, tag, dst string }{
		{s.Alpha1.Name, "t4", "203.0.113.11:9000"}, {s.Alpha1.Name, "t6", "[2001:db8:ff::11]:9000"},
		{s.Public1.Name, "r4", "198.18.10.11:9000"}, {s.Public1.Name, "r6", "[2001:db8:a::11]:9000"},
	} {
		r := &host.Flood{}
		sent[f.tag] = r
		wg.Go(func() {
			err := s.Run(ctx, f.ns, r, "udp-flood", "-dst", f.dst, "-tag", f.tag, "-bits", "1000000", "-size", "100", "-duration", "2m")
			if err != nil {
				t.Error(err)
			}
		})
	}
	defer wg.Wait()
	defer cancel()

	hostWorks := func(when string) {
		t.Helper()
		out, err := s.Exec(s.Public1.Name, "ssh", ssh.args("echo", sshWord)...)
		if strings.TrimSpace(string(out)) != sshWord {
			t.Errorf("%s: ssh to the host: %q, %v", when, out, err)
		}
		out, err = s.Exec(netlab.GW, "curl", "-sS", "-m", "5", "-o", "/dev/null", "-w", "%{http_code} %{size_download}", "http://203.0.113.11/file?seed=3&size=300000")
		if string(out) != "200 300000" {
			t.Errorf("%s: the host's own curl: %q, %v", when, out, err)
		}
	}
	flush := func() {
		t.Helper()
		_, err := s.Exec(netlab.GW, "ip", "neigh", "flush", "all")
		check(t, err)
	}

	// Before the first start the machine is a plain router: what is sent would leak, so silence later means something.
	if !until(5*time.Second, func() bool {
		return k.out4plain.Load() > 20 && k.out6.Load() > 20 && k.in4.Load() > 20 && k.in6.Load() > 20
	}) {
		t.Fatalf("the kernel does not forward without a gateway: out %d %d, in %d %d", k.out4plain.Load(), k.out6.Load(), k.in4.Load(), k.in6.Load())
	}
	type count struct{ at, kernel, plain, in int64 }
	now := func() count {
		return count{clockOfProbes(t), int64(s.kernelForwarded()), k.out4plain.Load(), k.in4.Load() + k.in6.Load()}
	}
	var base count
	// shut says that since base nothing went the kernel's way; dead also that nothing at all came through of what was sent since it began.
	shut := func(when string) {
		t.Helper()
		k.catchUp(t)
		n := now()
		if past := k.newestPast.Load(); n.kernel != base.kernel || past > base.at {
			t.Errorf("%s: leaked: forwarded by the kernel %d, untranslated at the public side %d, at the tenant %d, the last of it sent %v after the beginning", when, n.kernel-base.kernel,
				n.plain-base.plain, n.in-base.in, time.Duration(past-base.at))
			base = n
		}
	}
	dead := func(when string, work func()) {
		t.Helper()
		from := clockOfProbes(t)
		work()
		time.Sleep(300 * time.Millisecond)
		k.catchUp(t)
		if last := k.newestOut.Load(); last > from {
			t.Errorf("%s: transit came through without a gateway, the last of it sent %v after it had ended", when, time.Duration(last-from))
		}
		shut(when)
	}
	flows := func(when string) {
		t.Helper()
		out4, out6 := k.out4.Load(), k.out6.Load()
		if !until(3*time.Second, func() bool { return k.out4.Load() > out4+50 && k.out6.Load() > out6+50 }) {
			t.Errorf("%s: transit does not flow", when)
		}
		shut(when)
	}

	s.gw = s.launch(nil)
	if !until(5*time.Second, func() bool { return s.xdpID(netlab.PublicPort) != 0 && s.xdpID(netlab.AlphaPort) != 0 }) {
		t.Fatalf("no program attached:\n%s", s.gw.lastLines(20))
	}
	base = now()
	if !until(5*time.Second, func() bool { // packets that were past the device already
		was := base.kernel
		time.Sleep(5 * time.Millisecond)
		base.kernel = int64(s.kernelForwarded())
		return base.kernel == was
	}) {
		t.Error("the kernel forwards on beside the programs")
	}
	s.ready(s.gw)
	flows("first start")
	for _, p := range s.status().Ports {
		if (p.Attach == "generic") != (mode == "generic") {
			t.Errorf("port %s is attached in %s mode, asked for %s", p.Name, p.Attach, mode)
		}
	}
	hostWorks("running")
	open := s.sshSession(s.Public1.Name, ssh)
	open.echo(t, "running")
	flush()
	hostWorks("running, neighbours forgotten")
	shut("running")

	hostWhileDead := func(when string) { // the host while the gateway is dead, with and without neighbours
		t.Helper()
		dead(when, func() {
			hostWorks(when)
			flush()
			hostWorks(when + ", neighbours forgotten")
			open.echo(t, strings.ReplaceAll(when, " ", "-"))
		})
	}
	ids := s.xdpIDs()
	s.end(s.gw, unix.SIGKILL)
	hostWhileDead("after kill -9")
	if got := s.xdpIDs(); got != ids {
		t.Errorf("kill -9 changed the programs: %v, were %v", got, ids)
	}

	s.startBy([]string{"ip", "netns", "exec", s.NetNS(netlab.GW)})
	flows("restart under ip netns exec")
	s.end(s.gw, unix.SIGKILL)
	hostWhileDead("after kill -9 under ip netns exec")

	s.start()
	flows("restart after kill -9")
	// A second one on the same ports gives up without a trace; the first goes on.
	ids = s.xdpIDs()
	second := s.launch(nil)
	select {
	case <-second.ended:
	case <-time.After(8 * time.Second):
		second.cmd.Process.Kill()
		t.Error("a second gateway on the same ports does not give up")
	}
	if second.err == nil || s.xdpIDs() != ids {
		t.Errorf("second gateway: %v, programs %v, were %v", second.err, s.xdpIDs(), ids)
	}
	t.Logf("second gateway: %v: %s", second.err, second.lastLines(2))
	flows("beside a second start")
	s.stop()
	hostWhileDead("after SIGTERM")

	s.start()
	flows("restart after SIGTERM")
	hostWorks("restarted")
	s.stop()

	// An upgrade: another build takes over the programs that this one left.
	s.binary = filepath.Join(t.TempDir(), "next")
	build := exec.Command("go", "build", "-ldflags", "-s -w -X main.version=next", "-o", s.binary, "demarc")
	build.Env = append(build.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	s.start()
	flows("upgrade")
	hostWorks("upgraded")
	if v := s.status().Version; v != "next" {
		t.Errorf("version %q serves, want the next one", v)
	}
	s.stop()
	s.outOfMemory(dead, func() { hostWorks("after an out-of-memory kill") })

	// Only release opens.
	for _, dev := range []string{netlab.PublicPort, netlab.AlphaPort, netlab.BetaPort} {
		if out, err := s.demarc("release", dev); err != nil {
			t.Errorf("release %s: %v %s", dev, err, out)
		}
	}
	if ids := s.xdpIDs(); ids != [3]uint32{} {
		t.Errorf("after release: %v", ids)
	}
	n := now()
	if !until(3*time.Second, func() bool {
		return k.out4plain.Load() > n.plain && k.in6.Load() > 0 && int64(s.kernelForwarded()) > n.kernel
	}) {
		t.Error("after release the kernel forwards nothing")
	}
	cancel()
	wg.Wait()
	t.Logf("transit sent: %d %d out, %d %d in", sent["t4"].Sent, sent["t6"].Sent, sent["r4"].Sent, sent["r6"].Sent)
}

// outOfMemory runs a gateway in a memory group of its own and has the kernel kill it for want of memory.
func (s *site) outOfMemory(dead func(string, func()), work func()) {
	t := s.t
	t.Helper()
	g := newMemoryGroup(t)
	join := func(score string) []string {
		// The group first: `ip netns exec` shows another /sys.
		return []string{"sh", "-c", "echo $$ >" + g.path + "/cgroup.procs && echo " + score + " >/proc/self/oom_score_adj && exec \"$@\"", "sh",
			"ip", "netns", "exec", s.NetNS(netlab.GW)}
	}
	s.startBy(join("1000"))
	g.set(t, 512<<20)
	// It shares its group with somebody who wants all that there is, and is the one that the kernel would rather do without.
	args := append(join("0"), "tail", "/dev/zero")
	hog := exec.Command(args[0], args[1:]...)
	hog.Env = s.Command(netlab.GW, "true").Env
	check(t, hog.Start())
	defer func() { hog.Process.Kill(); hog.Wait() }()
	select {
	case <-s.gw.ended:
	case <-time.After(10 * time.Second):
		t.Fatal("the gateway was not killed within 10 s")
	}
	if n := g.kills(t); n == 0 || !s.gw.cmd.ProcessState.Sys().(syscall.WaitStatus).Signaled() {
		t.Errorf("the kernel killed %d processes of the group; the gateway ended with %v", n, s.gw.err)
	}
	hog.Process.Kill()
	t.Logf("out of memory: the gateway ended with %v", s.gw.err)
	dead("after an out-of-memory kill", work)
}

// A start that fails leaves the devices as it found them: without a program, with demarc's closed one, with somebody else's.
func TestSteerFailedStartLeavesWhatItFound(t *testing.T) {
	mostlyWaits(t)
	s := standard(t, netlab.Options{})
	good := read(t, s.node)
	fails := func(name, node, want string) {
		t.Helper()
		before := s.xdpIDs()
		s.write(node, read(t, s.policy))
		began := time.Now()
		p := s.launch(nil)
		select {
		case <-p.ended:
		case <-time.After(10 * time.Second):
			s.end(p, unix.SIGTERM)
			t.Fatalf("%s: it started", name)
		}
		took := time.Since(began)
		said := p.lastLines(30)
		if p.err == nil || !strings.Contains(said, want) {
			t.Errorf("%s: ended with %v and says:\n%s\nwant %q", name, p.err, said, want)
		}
		if after := s.xdpIDs(); after != before {
			t.Errorf("%s: programs %v before, %v after", name, before, after)
		}
		if _, err := os.Stat(s.socket); err == nil {
			t.Errorf("%s: its socket is left", name)
		}
		t.Logf("%s, %.1f s: %s", name, took.Seconds(), said)
	}
	each := func(state string) {
		t.Helper()
		fails(state+", no such device", replace(t, good, `device = "bb0"`, "name = \"bb0\"\ndevice = \"bb7\""), "bb7")
		fails(state+", second port missing", replace(t, good, `device = "alpha0"`, "name = \"alpha0\"\ndevice = \"alpha7\""), "alpha7")
		fails(state+", last port cannot do its mode", replace(t, good, `device = "beta0"`, "device = \"beta0\"\nmode = \"zerocopy\""), "zero")
		check(t, s.SetUp(netlab.GW, netlab.BetaPort, false))
		fails(state+", last port down", good, "beta0")
		check(t, s.SetUp(netlab.GW, netlab.BetaPort, true))
	}
	each("nothing attached")

	hold := func() (release func()) { // somebody else's socket on the last port's queue
		var u *xsk.UMEM
		var k *xsk.Socket
		check(t, s.Do(netlab.GW, func() error {
			l, err := netlink.LinkByName(netlab.BetaPort)
			if err != nil {
				return err
			}
			if u, err = xsk.NewUMEM(64, 2048); err != nil {
				return err
			}
			k, err = xsk.Open(u, xsk.SocketConfig{Ifindex: l.Attrs().Index, RxSize: 32, TxSize: 32, FillSize: 32, CompSize: 32, Mode: xsk.Copy})
			return err
		}))
		return func() {
			check(t, k.Close())
			check(t, u.Close())
		}
	}
	release := hold()
	fails("nothing attached, queue taken", good, "busy")
	release()

	s.write(good, read(t, s.policy))
	s.start()
	s.stop()
	if ids := s.xdpIDs(); ids[0] == 0 || ids[1] == 0 || ids[2] == 0 {
		t.Fatalf("after SIGTERM the programs are %v", ids)
	}
	each("closed program attached")
	release = hold()
	fails("closed program attached, queue taken", good, "busy")
	release()

	for _, dev := range []string{netlab.PublicPort, netlab.AlphaPort, netlab.BetaPort} {
		_, err := s.demarc("release", dev)
		check(t, err)
	}
	foreign, err := ebpf.NewProgram(&ebpf.ProgramSpec{Name: "somebody_else", Type: ebpf.XDP, License: "GPL",
		Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, 2), asm.Return()}})
	check(t, err)
	defer foreign.Close()
	check(t, s.Do(netlab.GW, func() error {
		l, err := netlink.LinkByName(netlab.BetaPort)
		if err != nil {
			return err
		}
		return netlink.LinkSetXdpFdWithFlags(l, foreign.FD(), unix.XDP_FLAGS_DRV_MODE)
	}))
	fails("somebody else's program", good, "somebody_else")
	if out, err := s.demarc("release", netlab.BetaPort); err == nil {
		t.Errorf("release took somebody else's program off: %s", out)
	}
	if s.xdpID(netlab.BetaPort) == 0 {
		t.Error("somebody else's program is gone")
	}
	// The same, once nothing is in the way.
	check(t, s.Do(netlab.GW, func() error {
		l, err := netlink.LinkByName(netlab.BetaPort)
		if err != nil {
			return err
		}
		return netlink.LinkSetXdpFdWithFlags(l, -1, unix.XDP_FLAGS_DRV_MODE)
	}))
	s.write(good, read(t, s.policy))
	s.start()
	var p host.Ping
	s.run(s.Alpha1.Name, &p, "ping", "-dst", s.Public1.V4.String(), "-count", "3", "-interval", "20ms")
	if p.Received != 3 {
		t.Errorf("after all that: %d of 3 pings", p.Received)
	}
	s.stop()
}
