package e2e

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"demarc/gateway/api"
	"demarc/gateway/netlab"
	"demarc/gateway/netlab/host"
)

// step is a line of a page that somebody types at a machine.
type step struct{ line, on string }

var tokenLine = regexp.MustCompile(`(?m)^demarc-\w+$`)

var stepLine = regexp.MustCompile(`^(.+?) +# (at home|on (\w+))`)

// steps are the commands of a page that stand behind a mark. Each says where it is typed.
func steps(t testing.TB, page, mark string) (list []step) {
	t.Helper()
	_, text, ok := strings.Cut(read(t, "../../"+page), "<!-- test: "+mark+" -->\n```\n")
	if !ok {
		t.Fatalf("%s: has no commands behind %q", page, mark)
	}
	text, _, _ = strings.Cut(text, "```")
	for line := range strings.Lines(text) {
		m := stepLine.FindStringSubmatch(line)
		if m == nil {
			t.Fatalf("%s: does not say where this is typed: %s", page, line)
		}
		on := m[3]
		if on == "any" {
			on = "gw1"
		}
		list = append(list, step{m[1], on})
	}
	return list
}

// machines are what the examples of a pair are for: two gateways with a port to the provider and one to a switch with both tenants, and a witness, each with files of
// its own in /etc, /var/lib and /usr/local. The witness has a systemd; at a gateway the test does what its unit says, for that the unit does it TestUnitUnderSystemd holds.
type machines struct {
	*site
	home    string
	init    map[string]int // whose namespaces are a gateway's
	units   map[string]*exec.Cmd
	witness *manager
	token   string
}

const machineInit = `set -e
mount --make-rprivate /
mkdir $1/etc
cp -a /etc/passwd /etc/group $1/etc/
mount --bind $1/etc /etc
for d in /var/lib /usr/local /root; do mount -t tmpfs tmpfs $d; done
mkdir /usr/local/sbin
cp $2 /usr/local/sbin/demarc
exec sleep infinity
`

const examplesDir = "../../configs/examples/"

func newMachines(t testing.TB) *machines {
	t.Helper()
	s := bare(t)
	m := &machines{site: s, home: t.TempDir(), init: map[string]int{}, units: map[string]*exec.Cmd{}}
	for _, sw := range []string{"net", "swo", "swt"} {
		check(t, s.AddSwitch(sw))
	}
	for i, n := range []string{"gw1", "gw2", "witness"} {
		check(t, s.AddNamespace(n))
		check(t, s.Plug("net", netlab.End{NS: n, Name: "mgmt", Addrs: []netip.Prefix{prefix(fmt.Sprintf("198.51.100.%d/24", i+1))}}, 1, 1500))
		if n == "witness" {
			continue
		}
		check(t, s.Plug("swo", netlab.End{NS: n, Name: "ens1f0"}, 1, 1500))
		check(t, s.Plug("swt", netlab.End{NS: n, Name: "ens1f1"}, 1, 1500))
		dir := t.TempDir()
		c := s.Command(n, "unshare", "-m", "sh", "-c", machineInit, "sh", dir, program(t))
		check(t, c.Start())
		t.Cleanup(func() { c.Process.Kill(); c.Wait() })
		m.init[n] = c.Process.Pid
		if !until(5*time.Second, func() bool { return strings.TrimSpace(read(t, fmt.Sprintf("/proc/%d/comm", c.Process.Pid))) == "sleep" }) {
			t.Fatalf("the machine of %s does not come up", n)
		}
	}
	m.witness = s.startSystemd("witness", nil)
	m.witness.unit = "demarc-witness"
	t.Cleanup(func() {
		for n, c := range m.units {
			if t.Failed() {
				t.Logf("the log of %s:\n%s", n, read(t, filepath.Join(m.home, n+".log")))
			}
			c.Process.Signal(unix.SIGTERM)
			c.Wait()
		}
		if t.Failed() {
			t.Logf("the witness's journal:\n%s", m.witness.journal())
		}
	})
	check(t, s.AddNamespace("router"))
	check(t, s.Plug("swo", netlab.End{NS: "router", Name: netlab.HostDevice, Addrs: []netip.Prefix{prefix("203.0.113.1/29"), prefix("2001:db8:ff::1/64")}}, 1, 1500))
	check(t, s.AddRoute("router", prefix("192.0.2.0/29"), addr("203.0.113.4")))
	check(t, s.AddRoute("router", prefix("2001:db8:a::/64"), addr("2001:db8:ff::4")))
	for n, tag := range map[string]uint16{"acme": 10, "bolt": 20} {
		addrs := []netip.Prefix{prefix("198.18.10.11/24")}
		if n == "acme" {
			addrs = append(addrs, prefix("2001:db8:a::11/64"))
		}
		check(t, s.AddNamespace(n))
		check(t, s.Plug("swt", netlab.End{NS: n, Name: netlab.HostDevice, Addrs: addrs}, 1, 1500))
		check(t, s.Tag(n, netlab.HostDevice, tag))
		check(t, s.AddRoute(n, prefix("0.0.0.0/0"), addr("198.18.10.1")))
	}
	check(t, s.AddRoute("acme", prefix("::/0"), addr("2001:db8:a::1")))
	m.put("gw2", "/etc/demarc/node.toml", read(t, examplesDir+"pair-b.node.toml"))
	m.put("witness", "/etc/demarc/node.toml", read(t, examplesDir+"witness.node.toml"))
	return m
}

// root is a machine's file system, as this side names it.
func (m *machines) root(on string) string {
	if on == "witness" {
		return m.witness.at("")
	}
	return fmt.Sprintf("/proc/%d/root", m.init[on])
}

func (m *machines) put(on, name, text string) {
	m.t.Helper()
	file := m.root(on) + name
	check(m.t, os.MkdirAll(filepath.Dir(file), 0o755))
	check(m.t, os.WriteFile(file, []byte(text), 0o644))
}

// enter runs a command at a machine, in root's home.
func (m *machines) enter(on, line string) (string, error) {
	if on == "witness" {
		return m.witness.inside("sh", "-c", "cd /root; "+line)
	}
	out, err := exec.Command("nsenter", "-t", fmt.Sprint(m.init[on]), "-m", "-n", "--", "sh", "-c", "cd /root; "+line).CombinedOutput()
	return string(out), err
}

// follow does what a page says.
func (m *machines) follow(list []step) {
	m.t.Helper()
	for _, s := range list {
		for part := range strings.SplitSeq(s.line, " && ") {
			began := time.Now()
			out, err := m.do(s.on, strings.ReplaceAll(part, "TOKEN", m.token))
			m.t.Logf("%s# %s (%s)\n%s", s.on, part, time.Since(began).Round(time.Millisecond), out)
			if err != nil {
				m.t.Fatalf("at %s, %s: %v\n%s", s.on, part, err, out)
			}
			if strings.HasPrefix(part, "demarc cluster token") {
				m.token = tokenLine.FindString(out) // on standard error it says more
			}
		}
	}
}

func (m *machines) do(on, line string) (string, error) {
	if on == "" { // at home
		c := exec.Command("sh", "-c", strings.Replace(line, "demarc", program(m.t), 1))
		c.Dir = m.home
		out, err := c.CombinedOutput()
		if strings.Contains(line, "cluster cert") && err == nil {
			for _, n := range []string{"gw1", "gw2", "witness"} {
				check(m.t, exec.Command("cp", "-r", filepath.Join(m.home, n), m.root(n)+"/root/").Run())
			}
		}
		return string(out), err
	}
	if on != "witness" && strings.HasPrefix(line, "systemctl ") {
		switch line {
		case "systemctl restart demarc":
			c := m.units[on]
			signal, ok := map[string]unix.Signal{"SIGUSR1": unix.SIGUSR1}[unitValue(m.t, "RestartKillSignal")]
			if !ok {
				m.t.Fatal("the unit is restarted by a signal that the test does not know")
			}
			check(m.t, c.Process.Signal(signal))
			check(m.t, c.Wait())
			return "", m.begin(on)
		case "systemctl enable --now demarc", "systemctl start demarc":
			return "", m.begin(on)
		case "systemctl disable --now demarc", "systemctl stop demarc":
			c := m.units[on]
			delete(m.units, on)
			check(m.t, c.Process.Signal(unix.SIGTERM))
			return "", c.Wait()
		}
		m.t.Fatalf("the test does not know what %q does", line)
	}
	return m.enter(on, line)
}

// begin starts what the unit starts, and returns when that is ready.
func (m *machines) begin(on string) error {
	m.t.Helper()
	log, err := os.OpenFile(filepath.Join(m.home, on+".log"), os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644)
	check(m.t, err)
	defer log.Close()
	c := exec.Command("nsenter", "-t", fmt.Sprint(m.init[on]), "-m", "-n", "--", "sh", "-c", "exec "+unitValue(m.t, "ExecStart"))
	c.Stdout, c.Stderr = log, log
	check(m.t, c.Start())
	m.units[on] = c
	if !until(20*time.Second, func() bool {
		out, err := m.enter(on, "demarc status --json")
		var s api.Status
		return err == nil && json.Unmarshal([]byte(out), &s) == nil && s.Ready
	}) {
		return fmt.Errorf("%s does not forward:\n%s", on, read(m.t, log.Name()))
	}
	return nil
}

// groups waits until a node says of each group that this one owns it, and another one has a whole copy.
func (m *machines) groups(on string, owners map[string]string) {
	m.t.Helper()
	var out string
	if !until(15*time.Second, func() bool {
		var g api.Groups
		var err error
		if out, err = m.enter(on, "demarc group --json"); err != nil || json.Unmarshal([]byte(out), &g) != nil || len(g.Groups) != len(owners) {
			return false
		}
		for _, x := range g.Groups {
			if x.Owner != owners[x.Name] || len(x.Why) > 0 || len(x.InSync) != 1 || x.Serving != (x.Owner == on) {
				return false
			}
		}
		return true
	}) {
		m.t.Fatalf("%s says of the groups, which should be served by %v and protected:\n%s", on, owners, out)
	}
}

// pings passes packets of both tenants and families.
func (m *machines) pings() {
	m.t.Helper()
	for _, x := range [][2]string{{"acme", "203.0.113.1"}, {"acme", "2001:db8:ff::1"}, {"bolt", "203.0.113.1"}} {
		var p host.Ping
		if !until(5*time.Second, func() bool {
			m.run(x[0], &p, "ping", "-dst", x[1], "-count", "3", "-interval", "10ms")
			return p.Received == 3
		}) {
			m.t.Errorf("%s reaches %s with %d of 3 pings", x[0], x[1], p.Received)
		}
	}
}

// README's way to a pair, word for word, with the files that it names: three machines on which nothing is, and then both groups are served and protected, each by the node that it
// names first, packets go, and each address on the backbone's link is answered for by one machine alone.
func TestReadmePair(t *testing.T) {
	mostlyWaits(t)
	m := newMachines(t)
	m.put("gw1", "/etc/demarc/node.toml", read(t, examplesDir+"pair.node.toml"))
	m.put("gw1", "/etc/demarc/policy.toml", read(t, examplesDir+"pair.policy.toml"))
	answers := func(frame []byte) bool { return len(frame) >= 42 && frame[12] == 8 && frame[13] == 6 && frame[21] == 2 }
	c, err := m.Capture("router", netlab.HostDevice, 1000, answers)
	check(t, err)
	m.follow(steps(t, "README.md", "the commands of three nodes"))
	for _, n := range []string{"gw1", "gw2"} {
		if out, err := m.enter(n, "demarc doctor --node /etc/demarc/node.toml"); err != nil || !strings.Contains(out, "0 bad,") {
			t.Errorf("the doctor at %s: %v\n%s", n, err, out)
		}
		m.groups(n, map[string]string{"east": "gw1", "west": "gw2"})
	}
	m.pings()
	if s := m.witness.property("StatusText"); !strings.Contains(s, "witness") {
		t.Errorf("the witness's line under systemctl status: %q", s)
	}
	for _, a := range []string{"203.0.113.4", "203.0.113.5"} { // gw1's and gw2's now
		check(t, m.FlushNeighbours("router", netlab.HostDevice))
		var p host.Ping
		m.run("router", &p, "ping", "-dst", a, "-count", "2", "-interval", "10ms") // whether it answers a ping is another matter
	}
	check(t, c.CatchUp(5*time.Second)) // the last answer is younger than a look of the capture may be late
	_, err = c.Stop()
	check(t, err)
	who := map[string][]string{}
	for _, f := range c.Frames() {
		ip, mac := netip.AddrFrom4([4]byte(f.Data[28:32])).String(), fmt.Sprintf("%x", f.Data[6:12])
		if !slices.Contains(who[ip], mac) {
			who[ip] = append(who[ip], mac)
		}
	}
	for a, mac := range map[string]string{"203.0.113.4": "00005e000101", "203.0.113.5": "00005e000102"} {
		if len(who[a]) != 1 || who[a][0] != mac {
			t.Errorf("ARP for %s was answered by %v, want %s alone", a, who[a], mac)
		}
	}
}

// The pages' way from a gateway that serves to a pair, and back again, word for word, while packets go and connections are held: none is lost, each keeps its public port, and what it costs
// is printed.
func TestOneBecomesAPair(t *testing.T) {
	mostlyWaits(t)
	m := newMachines(t)
	node, policy := read(t, examplesDir+"pair.node.toml"), read(t, examplesDir+"pair.policy.toml")
	// Before: the addresses that are known to others are the node's, and there is no group and no [cluster].
	cut := func(text, from, to string) string {
		a, b := strings.Index(text, from), strings.Index(text, to)
		if a < 0 || b < a {
			t.Fatalf("the example has not %q before %q", from, to)
		}
		return text[:a] + text[b:]
	}
	single := strings.NewReplacer("198.18.10.252", "198.18.10.1", "2001:db8:a::252", "2001:db8:a::1", "203.0.113.2/", "203.0.113.4/", "2001:db8:ff::2/", "2001:db8:ff::4/").Replace(cut(node, "# Of the host's", "[[port]]"))
	m.put("gw1", "/etc/demarc/node.toml", single)
	m.put("gw1", "/etc/demarc/policy.toml", cut(policy, "[[group]]", "[[tenant]]"))
	m.put("gw1", "/etc/demarc/single.toml", cut(policy, "[[group]]", "[[tenant]]"))
	m.put("gw1", "/etc/demarc/node-pair.toml", node)
	m.put("gw1", "/etc/demarc/alone.toml", strings.NewReplacer(`["gw1", "gw2"]`, `["gw1"]`, `["gw2", "gw1"]`, `["gw1"]`).Replace(policy))
	m.put("gw1", "/etc/demarc/pair.toml", policy)
	check(t, m.begin("gw1"))
	m.pings()
	all := steps(t, "README.md", "the commands of three nodes")
	m.follow(all[:5]) // keys

	inside := netlab.FlowSpec{Outside: "router", To: netip.MustParseAddrPort("203.0.113.1:7100"), From: []netip.Addr{addr("198.18.10.11")}, Ports: 4, Interval: 2 * time.Millisecond}
	acme, bolt := inside, inside
	acme.Inside, acme.Tag, bolt.Inside, bolt.Tag = "acme", "acme", "bolt", "bolt"
	acme6 := netlab.FlowSpec{Inside: "acme", Tag: "acme6", Outside: "router", To: netip.MustParseAddrPort("[2001:db8:ff::1]:7100"), From: []netip.Addr{addr("2001:db8:a::11")}, Ports: 4, Interval: 2 * time.Millisecond}
	flows, err := m.StartFlows(acme, acme6, bolt)
	check(t, err)
	const count = 20
	out, err := m.Serve("router", "tcp-hold-serve", "-addr", "203.0.113.1:7200")
	check(t, err)
	var held []*netlab.Server
	for _, side := range []string{"acme", "bolt"} {
		s, err := m.Serve(side, "tcp-hold", "-dst", "203.0.113.1:7200", "-from", "198.18.10.11", "-count", fmt.Sprint(count), "-every", "20ms", "-within", "10s")
		check(t, err)
		held = append(held, s)
	}
	began := time.Now()
	m.follow(steps(t, "docs/cluster.md", "the commands from one gateway to a pair"))
	m.groups("gw1", map[string]string{"east": "gw1", "west": "gw1"})
	time.Sleep(200 * time.Millisecond) // of packets behind it: what has not come back must be seen
	back := time.Now()
	m.follow(steps(t, "docs/cluster.md", "the commands from a pair to one gateway"))
	m.pings()
	time.Sleep(2100 * time.Millisecond) // of packets behind it, longer than a machine pauses: half a second it does now and then
	ended := time.Now()
	if out, err := m.enter("gw1", "demarc group"); err == nil && (strings.Contains(out, "east") || strings.Contains(out, "gw2")) {
		t.Errorf("one gateway says of groups:\n%s", out)
	}
	seen, err := flows.End()
	check(t, err)
	for _, way := range []struct {
		what     string
		from, to time.Time
	}{{"to a pair", began, back}, {"back", back, ended}} {
		worst, paused := seen.Worst(way.from, way.to)
		t.Logf("%s: the worst gap is %s (%s, %s after the beginning of %s), senders paused for %s", way.what, worst.Gap, worst.Flow, time.Duration(worst.From-way.from.UnixNano()), way.to.Sub(way.from), paused)
	}
	lost, sent := seen.Lost()
	t.Logf("%d of %d packets lost", lost, sent)
	if moved := seen.Moved(); len(moved) > 0 || seen.Wrong > 0 {
		t.Errorf("flows with another public port: %v; %d packets were wrong: %s", moved, seen.Wrong, seen.Example)
	}
	for _, g := range seen.Gaps(ended.Add(-2*time.Second), ended) {
		if g.Gap > 1900*time.Millisecond {
			t.Errorf("%s has not come back", g.Flow)
		}
	}
	for _, s := range held {
		var h host.Held
		check(t, s.StopWithin(10*time.Second, &h))
		t.Logf("%d connections, %d lost, the longest block took %.0f ms", h.Opened, h.Lost, h.LongestMs)
		if h.Opened != count || h.Lost != 0 {
			t.Errorf("of %d connections %d are lost: %v", h.Opened, h.Lost, h.Why)
		}
	}
	check(t, out.Stop(nil))
}
