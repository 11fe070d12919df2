package e2e

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"demarc/gateway/api"
	"demarc/gateway/netlab"
)

// systemd says of the unit itself that it is well formed and how exposed it leaves the machine.
func TestUnitIsSound(t *testing.T) {
	unit := filepath.Join(t.TempDir(), "demarc.service")
	check(t, os.WriteFile(unit, []byte(strings.ReplaceAll(read(t, unitFile), "/usr/local/sbin/demarc", "/bin/true")), 0o644))
	if out, err := exec.Command("systemd-analyze", "verify", "--man=no", unit).CombinedOutput(); err != nil || len(out) > 0 {
		t.Errorf("systemd-analyze verify: %v\n%s", err, out)
	}
	// 10 is a service without any protection; 3.5 leaves room for another opinion of another version, and none for a key that is lost.
	out, err := exec.Command("systemd-analyze", "security", "--offline=true", "--threshold=35", "--no-pager", unit).CombinedOutput()
	if err != nil {
		t.Errorf("systemd-analyze security: %v\n%s", err, out)
	}
}

// systemdInit makes a root of its own for systemd: the machine's programs, read-only, and nothing else of it. Kernel settings cannot be
// written from there, and of systemd's own units none is started.
const systemdInit = `set -e
R=$1
mount --make-rprivate /
mount -t tmpfs tmpfs $R/root
cd $R/root
mkdir -p usr etc/systemd/system etc/demarc var/lib/demarc var/tmp run proc sys dev tmp home root old
mount --bind /usr usr
mount -o remount,bind,ro usr
mount -t tmpfs tmpfs usr/lib/systemd/system-generators
mount -t tmpfs tmpfs usr/local
mkdir usr/local/sbin
cp $R/demarc usr/local/sbin/demarc
for l in bin sbin lib lib32 lib64 libx32; do [ ! -L /$l ] || cp -P /$l .; done
cp /etc/passwd /etc/group etc/
echo 0123456789abcdef0123456789abcdef >etc/machine-id
cp $R/node.toml $R/policy.toml etc/demarc/
cp $R/demarc.service etc/systemd/system/
mkdir etc/systemd/system/demarc.service.d
printf '[Service]\nStandardOutput=append:/var/lib/demarc/log\nStandardError=append:/var/lib/demarc/log\n' >etc/systemd/system/demarc.service.d/log.conf
for t in sysinit basic lab; do printf "[Unit]\nDescription=$t\n" >etc/systemd/system/$t.target; done
mount --bind $R/state var/lib/demarc
mount -t proc proc proc
mount --bind proc/sys proc/sys
mount -o remount,bind,ro proc/sys
mount -t sysfs sysfs sys
mount -t cgroup2 cgroup2 sys/fs/cgroup
mount -o remount,bind,ro sys
mount -t tmpfs tmpfs run
mount -t tmpfs tmpfs dev
mkdir dev/shm dev/pts
mount -t devpts devpts dev/pts
ln -s pts/ptmx dev/ptmx
for d in null zero full random urandom tty; do touch dev/$d; mount --bind /dev/$d dev/$d; done
pivot_root . old
umount -l /old
exec env -i container=lab PATH=/usr/sbin:/usr/bin /lib/systemd/systemd --system --unit=lab.target --log-target=console --show-status=no
`

// manager is a systemd that runs in namespaces of its own.
type manager struct {
	s      *site
	cmd    *exec.Cmd
	pid    int // of systemd, outside
	dir    string
	cgroup string
}

// startSystemd boots systemd with the unit in the gateway's namespace. The node's data directory is the directory state of m.dir.
func (s *site) startSystemd(node, policy string) *manager {
	t := s.t
	t.Helper()
	m := &manager{s: s, dir: t.TempDir()}
	for _, d := range []string{"root", "state"} {
		check(t, os.Mkdir(filepath.Join(m.dir, d), 0o755))
	}
	for name, text := range map[string]string{"node.toml": node, "policy.toml": policy, "demarc.service": read(t, unitFile), "init.sh": systemdInit} {
		check(t, os.WriteFile(filepath.Join(m.dir, name), []byte(text), 0o644))
	}
	b, err := os.ReadFile(program(t))
	check(t, err)
	check(t, os.WriteFile(filepath.Join(m.dir, "demarc"), b, 0o755))

	// A group of its own, so that what systemd makes of groups is found and taken away again.
	for line := range strings.Lines(read(t, "/proc/mounts")) {
		if f := strings.Fields(line); f[2] == "cgroup2" && m.cgroup == "" {
			m.cgroup = filepath.Join(f[1], fmt.Sprintf("dme2e-systemd-%d", os.Getpid()))
		}
	}
	if m.cgroup == "" {
		t.Fatal("no cgroup2 is mounted on this machine")
	}
	check(t, os.Mkdir(m.cgroup, 0o755))
	t.Cleanup(m.remove)
	m.cmd = s.Command(netlab.GW, "sh", "-c", `echo $$ >`+m.cgroup+`/cgroup.procs && exec unshare --mount --pid --fork --uts --ipc --cgroup --kill-child sh `+
		m.dir+`/init.sh `+m.dir)
	log, err := os.Create(filepath.Join(m.dir, "log"))
	check(t, err)
	defer log.Close()
	m.cmd.Stdout, m.cmd.Stderr = log, log
	check(t, m.cmd.Start())
	if !until(15*time.Second, func() bool {
		if m.pid == 0 {
			b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", m.cmd.Process.Pid, m.cmd.Process.Pid))
			m.pid, _ = strconv.Atoi(strings.TrimSpace(string(b)))
		}
		if m.pid == 0 {
			return false
		}
		out, _ := m.ctl("is-system-running")
		return strings.Contains(out, "running") || strings.Contains(out, "degraded")
	}) {
		out, err := m.ctl("is-system-running")
		t.Fatalf("systemd does not run: %q %v\n%s", out, err, read(t, log.Name()))
	}
	return m
}

// remove ends systemd and all that it has started, and takes its groups away.
func (m *manager) remove() {
	if m.cmd != nil && m.cmd.Process != nil {
		m.cmd.Process.Kill() // --kill-child ends process 1 with it, and the kernel all others of that namespace
		m.cmd.Wait()
	}
	if !until(10*time.Second, func() bool {
		var dirs []string
		filepath.WalkDir(m.cgroup, func(name string, d fs.DirEntry, err error) error {
			if err == nil && d.IsDir() {
				dirs = append(dirs, name)
			}
			return nil
		})
		slices.Reverse(dirs) // what is inside first
		for _, d := range dirs {
			os.Remove(d)
		}
		_, err := os.Stat(m.cgroup)
		return errors.Is(err, fs.ErrNotExist)
	}) {
		m.s.t.Errorf("%s is left", m.cgroup)
	}
}

// inside runs a command where systemd is.
func (m *manager) inside(args ...string) (string, error) {
	out, err := exec.Command("nsenter", append([]string{"-t", strconv.Itoa(m.pid), "-m", "-p", "-u", "-i", "-C", "--"}, args...)...).CombinedOutput()
	return string(out), err
}

func (m *manager) ctl(args ...string) (string, error) {
	return m.inside(append([]string{"systemctl", "--no-pager"}, args...)...)
}

// property is one of the unit's, as systemctl show says it.
func (m *manager) property(name string) string {
	m.s.t.Helper()
	out, err := m.ctl("show", "--value", "-p", name, "demarc")
	check(m.s.t, err)
	return strings.TrimSpace(out)
}

// main is the gateway's process, as this side numbers it.
func (m *manager) main() int {
	m.s.t.Helper()
	b := strings.Fields(read(m.s.t, filepath.Join(m.cgroup, "system.slice/demarc.service/cgroup.procs")))
	if len(b) != 1 {
		m.s.t.Fatalf("the unit has the processes %v", b)
	}
	pid, err := strconv.Atoi(b[0])
	check(m.s.t, err)
	return pid
}

// The unit as it is shipped, under a real systemd: started means forwarding, with the rights and paths that it leaves; restart, kill -9 and stop do
// what the pages say.
func TestUnitUnderSystemd(t *testing.T) {
	s := standard(t, netlab.Options{})
	for _, dev := range []string{netlab.PublicPort, netlab.AlphaPort, netlab.BetaPort} {
		_, err := s.Exec(netlab.GW, "ethtool", "-K", dev, "rxvlan", "on")
		check(t, err)
	}
	node := read(t, s.node)
	var lines []string
	for line := range strings.Lines(node) {
		if !strings.HasPrefix(line, "data_dir = ") && !strings.HasPrefix(line, "socket = ") {
			lines = append(lines, line)
		}
	}
	m := s.startSystemd(strings.Join(lines, ""), read(t, s.policy))
	s.socket = filepath.Join(m.dir, "state", "demarc.sock")
	s.client.Close()
	s.client = api.Dial(s.socket)
	log := filepath.Join(m.dir, "state", "log")
	rxvlan := func(when, want string) {
		t.Helper()
		for _, dev := range []string{netlab.PublicPort, netlab.AlphaPort, netlab.BetaPort} {
			if is := s.settings(dev)["rx-vlan-offload"]; is != want {
				t.Errorf("%s: rxvlan of %s is %s", when, dev, is)
			}
		}
	}

	if out, err := m.ctl("start", "demarc"); err != nil {
		status, _ := m.ctl("status", "demarc")
		text, _ := os.ReadFile(log)
		t.Fatalf("start: %v\n%s\n%s\n%s", err, out, status, text)
	}
	if st := s.status(); !st.Ready {
		t.Errorf("started, and not forwarding: %s", st.WhyNotReady)
	}
	s.pings("started")
	rxvlan("started", "off")
	if got := m.property("StatusText"); got != "forwarding, policy revision 1" {
		t.Errorf("status %q", got)
	}
	first := m.main()
	rights(t, first)
	// What it may write, and what not: from within its mount namespace.
	for path, may := range map[string]bool{"/etc/demarc/x": false, "/usr/local/sbin/x": false, "/usr/x": false, "/proc/sys/net/ipv4/ip_forward": false, "/var/x": false, "/run/x": false,
		"/sys/fs/cgroup/x": false, "/var/lib/demarc/x": true} {
		err := exec.Command("nsenter", "-t", strconv.Itoa(first), "-m", "--", "sh", "-c", "echo 0 >"+path).Run()
		if (err == nil) != may {
			t.Errorf("write %s: %v", path, err)
		}
	}
	check(t, os.WriteFile(s.policy, []byte(strings.Replace(read(t, s.policy), "20M", "30M", 1)), 0o644))
	if out, err := s.demarc("apply", s.policy); err != nil {
		t.Errorf("apply: %v\n%s", err, out)
	}

	w := s.watchLinks()
	ids := s.xdpIDs()
	if out, err := m.ctl("restart", "demarc"); err != nil {
		t.Fatalf("restart: %v\n%s\n%s", err, out, read(t, log))
	}
	s.pings("restarted")
	if m.main() == first || s.status().Revision.Number != 2 {
		t.Errorf("process %d, revision %d", m.main(), s.status().Revision.Number)
	}
	for i, id := range s.xdpIDs() {
		if id == 0 || id == ids[i] {
			t.Errorf("the program of port %d was not exchanged", i)
		}
	}
	if text := read(t, log); !strings.Contains(text, `msg="port stays prepared for the next start" port=bb0`) || strings.Contains(text, "port put back") {
		t.Errorf("the ports were put back for a restart:\n%s", text)
	}

	// What the watchdog sends ends a program in Go with status 2, as a wrong command line does.
	for i, sig := range []unix.Signal{unix.SIGKILL, unix.SIGABRT} {
		check(t, unix.Kill(m.main(), sig))
		if !until(15*time.Second, func() bool {
			var st api.Status
			return m.property("NRestarts") == strconv.Itoa(i+1) && s.client.Get(t.Context(), api.PathStatus, &st) == nil && st.Ready
		}) {
			t.Fatalf("not restarted after signal %d: %s, %s restarts\n%s", sig, m.property("ActiveState"), m.property("NRestarts"), read(t, log))
		}
	}
	s.pings("after kill -9")
	rights(t, m.main())
	if seen := w.list(); len(seen) > 0 {
		t.Errorf("ports went down, or were without a program: %v", seen)
	}

	if out, err := m.ctl("stop", "demarc"); err != nil {
		t.Errorf("stop: %v\n%s", err, out)
	}
	if a, r := m.property("ActiveState"), m.property("Result"); a != "inactive" || r != "success" {
		t.Errorf("stopped: %s, %s", a, r)
	}
	rxvlan("stopped", "on")
	for i, id := range s.xdpIDs() {
		if id == 0 {
			t.Errorf("stopped: port %d is open", i)
		}
	}
	if t.Failed() {
		t.Logf("the unit's log:\n%s", read(t, log))
	}
}
