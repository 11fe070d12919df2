package e2e

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"demarc/gateway/netlab"
	"demarc/gateway/netlab/host"
)

// xdpID is the XDP program on a device of the gateway's namespace; 0 = none.
func (s *site) xdpID(dev string) uint32 {
	s.t.Helper()
	var id uint32
	check(s.t, s.Do(netlab.GW, func() error {
		l, err := netlink.LinkByName(dev)
		if err == nil && l.Attrs().Xdp != nil && l.Attrs().Xdp.Attached {
			id = l.Attrs().Xdp.ProgId
		}
		return err
	}))
	return id
}

func (s *site) xdpIDs() (ids [3]uint32) {
	for i, dev := range []string{netlab.PublicPort, netlab.AlphaPort, netlab.BetaPort} {
		ids[i] = s.xdpID(dev)
	}
	return ids
}

// kernelForwarded is how many packets the kernel of the gateway's namespace has forwarded, both families.
func (s *site) kernelForwarded() (n uint64) {
	s.t.Helper()
	check(s.t, s.Do(netlab.GW, func() error {
		b, err := os.ReadFile("/proc/thread-self/net/snmp")
		if err != nil {
			return err
		}
		var names []string
		for l := range strings.Lines(string(b)) {
			if f := strings.Fields(l); f[0] == "Ip:" && names == nil {
				names = f
			} else if f[0] == "Ip:" {
				for i := range names {
					if names[i] == "ForwDatagrams" {
						if _, err := fmt.Sscan(f[i], &n); err != nil {
							return err
						}
					}
				}
			}
		}
		if b, err = os.ReadFile("/proc/thread-self/net/snmp6"); err != nil {
			return err
		}
		for l := range strings.Lines(string(b)) {
			if f := strings.Fields(l); f[0] == "Ip6OutForwDatagrams" {
				var m uint64
				if _, err := fmt.Sscan(f[1], &m); err != nil {
					return err
				}
				n += m
			}
		}
		return nil
	}))
	return n
}

// sshd is a real ssh server in a namespace.
type sshd struct {
	dir  string
	addr string
}

// startSSH starts sshd on addr port 22. It ends with the lab.
func (s *site) startSSH(ns, addr string) *sshd {
	s.t.Helper()
	d := &sshd{dir: s.t.TempDir(), addr: addr}
	for _, k := range []string{"host", "user"} {
		out, err := exec.Command("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", filepath.Join(d.dir, k)).CombinedOutput()
		if err != nil {
			s.t.Fatalf("ssh-keygen: %v: %s", err, out)
		}
	}
	check(s.t, os.MkdirAll("/run/sshd", 0o755)) // sshd insists on it
	conf := fmt.Sprintf("ListenAddress %s\nPort 22\nHostKey %s/host\nAuthorizedKeysFile %s/user.pub\nPermitRootLogin prohibit-password\n"+
		"PasswordAuthentication no\nUsePAM yes\nStrictModes no\nPidFile none\nUseDNS no\nLoginGraceTime 20\nMaxStartups 100\n", addr, d.dir, d.dir)
	check(s.t, os.WriteFile(filepath.Join(d.dir, "conf"), []byte(conf), 0o600))
	path, err := exec.LookPath("sshd")
	if err != nil {
		path = "/usr/sbin/sshd"
	}
	c := s.Command(ns, path, "-D", "-e", "-f", filepath.Join(d.dir, "conf"))
	log, err := os.Create(filepath.Join(d.dir, "log"))
	check(s.t, err)
	defer log.Close()
	c.Stdout, c.Stderr = log, log
	check(s.t, c.Start())
	s.t.Cleanup(func() { c.Process.Kill(); c.Wait() })
	if !until(5*time.Second, func() bool { return strings.Contains(read(s.t, filepath.Join(d.dir, "log")), "Server listening") }) {
		s.t.Fatalf("sshd does not listen: %s", read(s.t, filepath.Join(d.dir, "log")))
	}
	return d
}

func (d *sshd) args(command ...string) []string {
	return append([]string{"-i", filepath.Join(d.dir, "user"), "-F", "none", "-o", "BatchMode=yes", "-o", "StrictHostKeyChecking=no",
		"-o", "UserKnownHostsFile=/dev/null", "-o", "LogLevel=ERROR", "-o", "ConnectTimeout=4", "root@" + d.addr}, command...)
}

// session is an ssh connection that stays open.
type session struct {
	in  io.WriteCloser
	out *bufio.Reader
}

func (s *site) sshSession(ns string, d *sshd) *session {
	s.t.Helper()
	c := s.Command(ns, "ssh", d.args("cat")...)
	in, err := c.StdinPipe()
	check(s.t, err)
	out, err := c.StdoutPipe()
	check(s.t, err)
	c.Stderr = os.Stderr
	check(s.t, c.Start())
	s.t.Cleanup(func() { c.Process.Kill(); c.Wait() })
	return &session{in, bufio.NewReader(out)}
}

// echo sends a line through the session and waits for it to come back.
func (s *session) echo(t testing.TB, word string) {
	t.Helper()
	got := make(chan string, 1)
	go func() { // ends with the process at the latest
		line, _ := s.out.ReadString('\n')
		got <- strings.TrimSpace(line)
	}()
	if _, err := fmt.Fprintln(s.in, word); err != nil {
		t.Errorf("%s: the open ssh session broke: %v", word, err)
		return
	}
	select {
	case line := <-got:
		if line != word {
			t.Errorf("%s: the open ssh session answered %q", word, line)
		}
	case <-time.After(5 * time.Second):
		t.Errorf("%s: no answer over the open ssh session within 5 s", word)
	}
}

// leaks counts transit on the far sides, by what it is, and knows when the newest of it was sent (by clockOfProbes): what was on its way when a gateway came or went may arrive late, and count late.
type leaks struct {
	out4, out4plain atomic.Int64 // at the public side: all, and those that nobody has translated
	out6            atomic.Int64
	in4, in6        atomic.Int64 // at the tenant's side; the policy lets nothing of it in
	newestOut       atomic.Int64 // of out4 and out6
	newestPast      atomic.Int64 // of what no gateway has carried: out4plain, in4, in6
	captures        []*netlab.Capture
}

// countTransit watches the far sides until the lab ends.
func (s *site) countTransit() *leaks {
	s.t.Helper()
	k := &leaks{}
	mark := func(tag string) []byte { return host.ProbeMarker(tag) }
	t4, t6, r4, r6 := mark("t4"), mark("t6"), mark("r4"), mark("r6")
	inside := s.Alpha1.V4.AsSlice()
	// One goroutine each calls these; two write newestPast.
	is := func(f, mark []byte, n *atomic.Int64, newest ...*atomic.Int64) bool {
		i := bytes.Index(f, mark)
		if i < 0 {
			return false
		}
		n.Add(1)
		at, _ := host.ProbeSent(f[i:])
		for _, w := range newest {
			for old := w.Load(); at > old && !w.CompareAndSwap(old, at); old = w.Load() {
			}
		}
		return true
	}
	out := s.capture(s.Public1.Name, netlab.HostDevice, 0, func(f []byte) bool {
		if is(f, t4, &k.out4, &k.newestOut) {
			if len(f) > 30 && bytes.Equal(f[26:30], inside) {
				is(f, t4, &k.out4plain, &k.newestPast)
			}
		} else {
			is(f, t6, &k.out6, &k.newestOut)
		}
		return false
	})
	in := s.capture(s.Alpha1.Name, netlab.HostDevice, 0, func(f []byte) bool {
		if !is(f, r4, &k.in4, &k.newestPast) {
			is(f, r6, &k.in6, &k.newestPast)
		}
		return false
	})
	k.captures = []*netlab.Capture{out, in}
	return k
}

// catchUp has everything counted that has arrived.
func (k *leaks) catchUp(t testing.TB) {
	t.Helper()
	for _, c := range k.captures {
		check(t, c.CatchUp(time.Second))
	}
	time.Sleep(2 * time.Millisecond) // what was read last is being looked at
}

// memoryGroup is a memory cgroup of its own, of version 1 or 2.
type memoryGroup struct {
	path, limit string
	v1          bool
}

func newMemoryGroup(t testing.TB) *memoryGroup {
	t.Helper()
	name := fmt.Sprintf("dme2e-%d", os.Getpid())
	g := &memoryGroup{path: "/sys/fs/cgroup/memory/" + name, limit: "memory.limit_in_bytes", v1: true}
	if _, err := os.Stat("/sys/fs/cgroup/memory/memory.limit_in_bytes"); err != nil {
		g = &memoryGroup{path: "/sys/fs/cgroup/" + name, limit: "memory.max"}
	}
	check(t, os.Mkdir(g.path, 0o755))
	t.Cleanup(func() {
		if !until(5*time.Second, func() bool { return os.Remove(g.path) == nil }) {
			t.Errorf("cgroup %s is not empty", g.path)
		}
	})
	return g
}

func (g *memoryGroup) set(t testing.TB, bytes uint64) {
	t.Helper()
	check(t, os.WriteFile(filepath.Join(g.path, g.limit), fmt.Append(nil, bytes), 0o644))
	if !g.v1 {
		os.WriteFile(filepath.Join(g.path, "memory.swap.max"), []byte("0"), 0o644) // absent without swap
	}
}

// kills is how many processes of the group the kernel has killed for want of memory.
func (g *memoryGroup) kills(t testing.TB) (n int) {
	t.Helper()
	file := "memory.events"
	if g.v1 {
		file = "memory.oom_control"
	}
	for l := range strings.Lines(read(t, filepath.Join(g.path, file))) {
		if f := strings.Fields(l); len(f) == 2 && f[0] == "oom_kill" {
			fmt.Sscan(f[1], &n)
		}
	}
	return n
}

// rawFrames sends whole frames on a device of a namespace.
func (s *site) rawFrames(ns, dev string) (send func([]byte) error) {
	s.t.Helper()
	fd := -1
	check(s.t, s.Do(ns, func() error {
		l, err := netlink.LinkByName(dev)
		if err != nil {
			return err
		}
		if fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0); err != nil {
			return err
		}
		return unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: binary.NativeEndian.Uint16([]byte{8, 0}), Ifindex: l.Attrs().Index})
	}))
	s.t.Cleanup(func() { unix.Close(fd) })
	return func(f []byte) error {
		_, err := unix.Write(fd, f)
		return err
	}
}
