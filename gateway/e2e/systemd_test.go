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

// systemd says of the units themselves that they are well formed and how exposed they leave the machine.
func TestUnitIsSound(t *testing.T) {
	mostlyWaits(t)
	dir := t.TempDir() // both in one: each names the other
	for _, file := range []string{unitFile, witnessUnitFile} {
		check(t, os.WriteFile(filepath.Join(dir, filepath.Base(file)), []byte(strings.ReplaceAll(read(t, file), "/usr/local/sbin/demarc", "/bin/true")), 0o644))
	}
	// 10 is a service without any protection; 3.5 and 2.0 leave room for another opinion of another version, and none for a key that is lost.
	for file, most := range map[string]string{unitFile: "35", witnessUnitFile: "20"} {
		unit := filepath.Join(dir, filepath.Base(file))
		if out, err := exec.Command("systemd-analyze", "verify", "--man=no", unit).CombinedOutput(); err != nil || len(out) > 0 {
			t.Errorf("systemd-analyze verify: %v\n%s", err, out)
		}
		if text := read(t, file); !strings.Contains(text, "\nLimitRTPRIO=1\n") || strings.Contains(text, "\nRestrictRealtime=y") {
			t.Errorf("%s does not allow real-time priority to the thread of the leases", file)
		}
		out, err := exec.Command("systemd-analyze", "security", "--offline=true", "--threshold="+most, "--no-pager", unit).CombinedOutput()
		if err != nil {
			t.Errorf("systemd-analyze security: %v\n%s", err, out)
		}
	}
}

// systemdInit makes a root of its own for systemd: the machine's programs, read-only, with the machine's own units of systemd, and nothing else of it.
// The boot goes the way of a machine's, to multi-user.target, with what $R/units names enabled. Of the kernel's settings only the
// network's can be written from there.
const systemdInit = `set -e
R=$1
mount --make-rprivate /
mount -t tmpfs tmpfs $R/root
cd $R/root
mkdir -p usr etc/systemd/system var/lib/demarc var/tmp var/log run proc sys dev tmp home root old
mount --bind /usr usr
mount -o remount,bind,ro usr
mount -t tmpfs tmpfs usr/lib/systemd/system-generators
mount -t tmpfs tmpfs usr/local
mkdir -p usr/local/sbin usr/local/lib/systemd/system
cp $R/demarc usr/local/sbin/
cp $R/*.service usr/local/lib/systemd/system/
for l in bin sbin lib lib32 lib64 libx32; do [ ! -L /$l ] || cp -P /$l .; done
cp /etc/passwd /etc/group etc/
echo 0123456789abcdef0123456789abcdef >etc/machine-id
[ ! -d $R/etc ] || cp -r $R/etc .
for u in systemd-sysctl.service getty.target systemd-logind.service dbus.service dbus.socket; do ln -s /dev/null etc/systemd/system/$u; done
mount --bind $R/state var/lib/demarc
mount -t proc proc proc
mount --bind proc/sys proc/sys
mount --bind proc/sys/net proc/sys/net
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
units=$(cat $R/units)
pivot_root . old
umount -l /old
systemctl set-default multi-user.target
[ -z "$units" ] || systemctl enable $units
exec env -i container=lab PATH=/usr/local/sbin:/usr/sbin:/usr/bin setpriv --bounding-set -sys_module,-sys_rawio,-sys_time,-syslog /lib/systemd/systemd --system --show-status=no
`

// manager is a systemd that runs in namespaces of its own.
type manager struct {
	s      *site
	cmd    *exec.Cmd
	pid    int // of systemd, outside
	dir    string
	cgroup string
	unit   string // that is spoken of
}

// startSystemd boots systemd, with the unit and others enabled, in the network of ns. files are those below /etc. The node's data directory is the
// directory state of m.dir.
func (s *site) startSystemd(ns string, files map[string]string, units ...string) *manager {
	t := s.t
	t.Helper()
	m := &manager{s: s, dir: t.TempDir(), unit: "demarc"}
	for _, d := range []string{"root", "state"} {
		check(t, os.Mkdir(filepath.Join(m.dir, d), 0o755))
	}
	all := map[string]string{"demarc.service": read(t, unitFile), "demarc-witness.service": read(t, witnessUnitFile), "init.sh": systemdInit, "units": strings.Join(units, " ")}
	for name, text := range files {
		all["etc/"+name] = text
	}
	for name, text := range all {
		check(t, os.MkdirAll(filepath.Dir(filepath.Join(m.dir, name)), 0o755))
		mode := fs.FileMode(0o644)
		if strings.HasSuffix(name, ".key") {
			mode = 0o600
		}
		check(t, os.WriteFile(filepath.Join(m.dir, name), []byte(text), mode))
	}
	b, err := os.ReadFile(program(t))
	check(t, err)
	check(t, os.WriteFile(filepath.Join(m.dir, "demarc"), b, 0o755))

	// A group of its own, so that what systemd makes of groups is found and taken away again.
	for line := range strings.Lines(read(t, "/proc/mounts")) {
		if f := strings.Fields(line); f[2] == "cgroup2" && m.cgroup == "" {
			m.cgroup = filepath.Join(f[1], fmt.Sprintf("dme2e-systemd-%d-%s", os.Getpid(), s.Name()))
		}
	}
	if m.cgroup == "" {
		t.Fatal("no cgroup2 is mounted on this machine")
	}
	check(t, os.Mkdir(m.cgroup, 0o755))
	t.Cleanup(m.remove)
	m.cmd = s.Command(ns, "sh", "-c", `echo $$ >`+m.cgroup+`/cgroup.procs && exec unshare --mount --pid --fork --uts --ipc --cgroup --kill-child sh `+
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
		return slices.Contains([]string{"starting", "running", "degraded"}, strings.TrimSpace(out))
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
	out, err := exec.Command("nsenter", append([]string{"-t", strconv.Itoa(m.pid), "-m", "-n", "-p", "-u", "-i", "-C", "--"}, args...)...).CombinedOutput()
	return string(out), err
}

func (m *manager) ctl(args ...string) (string, error) {
	return m.inside(append([]string{"systemctl", "--no-pager"}, args...)...)
}

// property is one of the unit's, as systemctl show says it.
func (m *manager) property(name string) string {
	m.s.t.Helper()
	out, err := m.ctl("show", "--value", "-p", name, m.unit)
	check(m.s.t, err)
	return strings.TrimSpace(out)
}

// at is a file of that root, as this side names it.
func (m *manager) at(name string) string { return fmt.Sprintf("/proc/%d/root%s", m.pid, name) }

// journal is what the unit has said, and systemd of it.
func (m *manager) journal() string {
	out, err := m.inside("journalctl", "-b", "--no-pager", "-o", "cat", "-u", m.unit)
	if err != nil {
		m.s.t.Errorf("journalctl: %v", err)
	}
	return out
}

// active waits for the unit to have been started again so often, and to be active.
func (m *manager) active(restarts int, when string) {
	m.s.t.Helper()
	if !until(20*time.Second, func() bool {
		return m.property("NRestarts") == strconv.Itoa(restarts) && m.property("ActiveState") == "active"
	}) {
		m.s.t.Fatalf("%s: %s, %s restarts, want %d\n%s", when, m.property("ActiveState"), m.property("NRestarts"), restarts, m.journal())
	}
}

// processes are the unit's, as this side numbers them: the one that systemd has started, and its data plane.
func (m *manager) processes() (parent, work int) {
	m.s.t.Helper()
	b := strings.Fields(read(m.s.t, filepath.Join(m.cgroup, "system.slice/demarc.service/cgroup.procs")))
	if len(b) != 2 {
		m.s.t.Fatalf("the unit has the processes %v", b)
	}
	for i, text := range b {
		pid, err := strconv.Atoi(text)
		check(m.s.t, err)
		if work = netlab.Worker(pid); work != pid {
			if b[1-i] != strconv.Itoa(work) {
				m.s.t.Fatalf("the unit has the processes %v, and %d is a child of %d", b, work, pid)
			}
			return pid, work
		}
	}
	m.s.t.Fatalf("of the unit's processes %v none is the parent of the other", b)
	return 0, 0
}

// main is the process that does the work.
func (m *manager) main() int {
	m.s.t.Helper()
	_, work := m.processes()
	return work
}

// The unit as it is shipped, under a real systemd as process 1, from boot on: it waits for ports that are not up yet, started means forwarding, with the
// rights and paths that it leaves; restart, kill -9, a hang, a start that fails and stop do what the pages say.
func TestUnitUnderSystemd(t *testing.T) {
	mostlyWaits(t)
	s := standard(t, netlab.Options{})
	ports := []string{netlab.PublicPort, netlab.AlphaPort, netlab.BetaPort}
	for _, dev := range ports {
		_, err := s.Exec(netlab.GW, "ethtool", "-K", dev, "rxvlan", "on")
		check(t, err)
		check(t, s.SetUp(netlab.GW, dev, false))
	}
	var lines []string
	for line := range strings.Lines(read(t, s.node)) {
		if !strings.HasPrefix(line, "data_dir = ") && !strings.HasPrefix(line, "socket = ") {
			lines = append(lines, line)
		}
	}
	// As a member of a cluster, so that there is a parent process to look after it.
	keys := t.TempDir()
	for _, args := range [][]string{{"cluster", "ca", "--dir", filepath.Join(keys, "ca")}, {"cluster", "cert", "lab", "--ca", filepath.Join(keys, "ca"), "--out", keys}} {
		if out, err := exec.Command(program(t), args...).CombinedOutput(); err != nil {
			t.Fatalf("%v: %v\n%s", args, err, out)
		}
	}
	lines = append(lines, "\n[cluster]\nlisten = \"127.0.0.1:7400\"\nkeys = \"/etc/demarc/keys/lab\"\n")
	files := map[string]string{"demarc/node.toml": strings.Join(lines, ""), "demarc/policy.toml": read(t, s.policy),
		// What it finds is what "started" means to those who are ordered after it.
		"systemd/system/behind.service": "[Unit]\nRequires=demarc.service\nAfter=demarc.service\n[Service]\nType=oneshot\nRemainAfterExit=yes\n" +
			"ExecStart=/bin/sh -c 'demarc status >/var/lib/demarc/behind 2>&1'\n[Install]\nWantedBy=multi-user.target\n"}
	files["systemd/system/first.service"] = "[Service]\nType=oneshot\nLimitRTPRIO=1\nCapabilityBoundingSet=~CAP_SYS_NICE\nExecStart=chrt --fifo 1 true\n" // see realtime
	// The file of the pages for ports at boot; one port comes later.
	page := read(t, "../../docs/operations.md")
	_, page, _ = strings.Cut(page, "**Ports up at boot**")
	_, page, _ = strings.Cut(page, "```\n")
	link, _, _ := strings.Cut(page, "```")
	for _, dev := range ports[:2] {
		files["systemd/network/10-"+dev+".network"] = replace(t, link, "enp1s0f0", dev)
	}
	list, err := filepath.Glob(filepath.Join(keys, "lab", "*"))
	check(t, err)
	for _, name := range list {
		files["demarc/keys/lab/"+filepath.Base(name)] = read(t, name)
	}
	m := s.startSystemd(netlab.GW, files, "demarc", "behind", "systemd-networkd")
	s.socket = filepath.Join(m.dir, "state", "demarc.sock")
	s.client.Close()
	s.client = api.Dial(s.socket)
	defer func() {
		if t.Failed() {
			all, _ := m.inside("journalctl", "-b", "--no-pager")
			t.Logf("the journal:\n%s", all)
		}
	}()
	rxvlan := func(when, want string) {
		t.Helper()
		for _, dev := range ports {
			if is := s.settings(dev)["rx-vlan-offload"]; is != want {
				t.Errorf("%s: rxvlan of %s is %s", when, dev, is)
			}
		}
	}

	waits := "waiting for " + netlab.BetaPort + " to be there and up"
	if !until(20*time.Second, func() bool { return m.property("StatusText") == waits }) {
		t.Fatalf("%s, status %q, want %q", m.property("ActiveState"), m.property("StatusText"), waits)
	}
	if a := m.property("ActiveState"); a != "activating" {
		t.Errorf("%s while it waits", a)
	}
	if _, err := os.Stat(filepath.Join(m.dir, "state", "behind")); err == nil {
		t.Error("what is ordered after the unit was started before it")
	}
	check(t, s.SetUp(netlab.GW, netlab.BetaPort, true))
	m.active(0, "boot")
	if st := s.status(); !st.Ready {
		t.Errorf("started, and not forwarding: %s", st.WhyNotReady)
	}
	if !until(10*time.Second, func() bool {
		out, _ := m.ctl("is-active", "behind", "multi-user.target")
		return out == "active\nactive\n"
	}) {
		out, _ := m.ctl("list-jobs")
		t.Errorf("the boot does not end: %s", out)
	}
	if text := read(t, filepath.Join(m.dir, "state", "behind")); !strings.Contains(text, "forwarding") {
		t.Errorf("what is ordered after the unit finds:\n%s", text)
	}
	s.pings("started")
	rxvlan("started", "off")
	if got := m.property("StatusText"); got != "forwarding, policy revision 1" {
		t.Errorf("status %q", got)
	}
	m.realtime()
	parent, first := m.processes()
	rights(t, first)
	if text := read(t, fmt.Sprintf("/proc/%d/status", parent)); !strings.Contains(text, "\nCapPrm:\t0000000000000000\n") || !strings.HasPrefix(text, "Name:\tdemarc-guard\n") {
		t.Errorf("the parent process has rights:\n%s", text)
	}
	if got := m.property("MainPID"); !strings.Contains(read(t, fmt.Sprintf("/proc/%d/status", parent)), "\t"+got+"\n") { // NSpid has it last
		t.Errorf("systemd's main process is %s, and the parent is %d", got, parent)
	}
	// What it may write, and what not: from within its mount namespace. All of it could be written from without.
	const forward = "/proc/sys/net/ipv4/ip_forward"
	for path, may := range map[string]bool{"/etc/demarc/x": false, "/etc/demarc/keys/x": true, "/usr/local/sbin/x": false, "/var/x": false, "/run/x": false, forward: false,
		"/sys/fs/cgroup/cgroup.subtree_control": false, "/var/lib/demarc/x": true} {
		write := "echo 0 >" + path
		if strings.HasPrefix(path, "/sys/") {
			write = ": >>" + path
		}
		if out, err := m.inside("sh", "-c", write); err != nil {
			t.Errorf("write %s as anybody: %v, %s", path, err, out)
		}
		err := exec.Command("nsenter", "-t", strconv.Itoa(first), "-m", "--", "sh", "-c", write).Run()
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
	check(t, os.Remove(m.at("/etc/demarc/policy.toml"))) // as on a node that has joined: what is kept is served
	if out, err := m.ctl("restart", "demarc"); err != nil {
		t.Fatalf("restart: %v\n%s", err, out)
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
	if text := m.journal(); !strings.Contains(text, `msg="port stays prepared for the next start" port=bb0`) || strings.Contains(text, "port put back") {
		t.Errorf("the ports were put back for a restart:\n%s", text)
	}

	check(t, unix.Kill(m.main(), unix.SIGKILL))
	m.active(1, "kill -9")
	s.pings("after kill -9")
	rights(t, m.main())
	if text := m.journal(); !strings.Contains(text, `msg="the data plane has ended" by=SIGKILL`) {
		t.Errorf("the journal does not say that the data plane was killed:\n%s", text)
	}
	// Its parent is killed: it ends in order, and the next one finds nothing of it.
	parent, _ = m.processes()
	check(t, unix.Kill(parent, unix.SIGKILL))
	m.active(2, "kill -9 of the parent process")
	s.pings("after kill -9 of the parent process")
	if text := m.journal(); strings.Count(text, `msg="port stays prepared for the next start" port=bb0`) != 2 { // the restart before was the first
		t.Errorf("the data plane does not end in order without its parent:\n%s", text)
	}
	// It hangs: systemd hears nothing for WatchdogSec, and ends it so that it says where.
	check(t, unix.Kill(m.main(), unix.SIGSTOP))
	m.active(3, "a hang")
	s.pings("after a hang")
	if text := m.journal(); !strings.Contains(text, "Watchdog timeout (limit 10s)") || !strings.Contains(text, "\ngoroutine 1 ") {
		t.Errorf("a hang leaves no reason and no stacks:\n%s", text)
	}
	if seen := w.list(); len(seen) > 0 {
		t.Errorf("ports went down, or were without a program: %v", seen)
	}

	m.failingStarts()
	s.pings("after starts that failed")

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
}

// realtime holds the unit to the real-time priority of the thread of the leases, where another service with that limit and no hardening gets it too: a systemd that may not
// raise limits cannot give it, and a kernel that shares out real time among groups (CONFIG_RT_GROUP_SCHED) gives none to services.
func (m *manager) realtime() {
	t := m.s.t
	t.Helper()
	b, err := m.s.client.Text(t.Context(), api.PathMetrics)
	check(t, err)
	out, err := m.ctl("start", "first")
	t.Logf("another service has real-time priority: %v %s", err == nil, out)
	if has := strings.Contains(string(b), "\ndemarc_group_realtime 1\n"); has != (err == nil) {
		t.Errorf("the thread of the leases has real-time priority: %v; another service: %v, %s", has, err, out)
	}
}

// failingStarts are those with a mistake in the node file: the reason is where an operator looks, and the unit comes up by itself when it is
// mended. After as many as the unit allows it stays down, closed, until it is told otherwise.
func (m *manager) failingStarts() {
	t := m.s.t
	t.Helper()
	const file = "/etc/demarc/node.toml"
	good := read(t, m.at(file))
	node := func(text string) { t.Helper(); check(t, os.WriteFile(m.at(file), []byte(text), 0o644)) }
	node("quues = 3\n" + good)
	if out, err := m.ctl("restart", "demarc"); err == nil {
		t.Fatalf("it starts with a mistake in its node file: %s", out)
	}
	const why = file + ":1: quues: is not a key of this schema"
	status := ""
	if !until(5*time.Second, func() bool { // between two starts; while one is under way there is no status
		status, _ = m.ctl("status", "-l", "-n0", "demarc") // without the journal's lines: of a process that is gone it does not always know the unit
		return strings.Contains(status, "Status: \""+why)
	}) {
		t.Errorf("systemctl status does not say %q:\n%s", why, status)
	}
	node(good)
	if !until(10*time.Second, func() bool { return m.property("ActiveState") == "active" }) {
		t.Errorf("mended, and it is %s", m.property("ActiveState"))
	}
	const drop = "/etc/systemd/system/demarc.service.d/quick.conf"
	check(t, os.MkdirAll(filepath.Dir(m.at(drop)), 0o755))
	check(t, os.WriteFile(m.at(drop), []byte("[Service]\nRestartSec=10ms\n"), 0o644))
	node("quues = 3\n" + good)
	if out, err := m.ctl("daemon-reload"); err != nil {
		t.Fatal(err, out)
	}
	m.ctl("restart", "demarc") // fails
	if !until(30*time.Second, func() bool { return m.property("ActiveState") == "failed" }) {
		t.Fatalf("%s after %s restarts", m.property("ActiveState"), m.property("NRestarts"))
	}
	if n, err := strconv.Atoi(m.property("NRestarts")); err != nil || n < 10 || n > 20 {
		t.Errorf("it stays down after %d restarts, %v", n, err)
	}
	for i, id := range m.s.xdpIDs() {
		if id == 0 {
			t.Errorf("it stays down, and port %d is open", i)
		}
	}
	node(good)
	if out, err := m.ctl("start", "demarc"); err == nil {
		t.Errorf("it was started beyond its limit: %s", out)
	}
	if out, err := m.ctl("reset-failed", "demarc"); err != nil {
		t.Errorf("reset-failed: %v\n%s", err, out)
	}
	if out, err := m.ctl("start", "demarc"); err != nil {
		t.Errorf("start: %v\n%s\n%s", err, out, m.journal())
	}
}
