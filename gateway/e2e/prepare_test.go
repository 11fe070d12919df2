package e2e

import (
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"demarc/gateway/netlab"
	"demarc/gateway/netlab/host"
)

// prepared is what run switches off on a veth; ethtool -k calls them so.
var prepared = []string{"rx-vlan-offload", "rx-vlan-stag-hw-parse", "generic-receive-offload"}

// settings is all that ethtool says of a device: offloads and queues.
func (s *site) settings(dev string) map[string]string {
	s.t.Helper()
	out, err := s.Exec(netlab.GW, "ethtool", "-k", dev)
	check(s.t, err)
	queues, err := s.Exec(netlab.GW, "ethtool", "-l", dev)
	check(s.t, err)
	_, current, _ := strings.Cut(string(queues), "Current hardware settings:")
	all := map[string]string{}
	for line := range strings.Lines(string(out) + current) {
		if k, v, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(v) != "" {
			all[strings.TrimSpace(k)] = strings.TrimSpace(v)
		}
	}
	return all
}

// difference lists what is not the same.
func difference(a, b map[string]string) (list []string) {
	for k, v := range a {
		if b[k] != v {
			list = append(list, k+" "+v+" -> "+b[k])
		}
	}
	return list
}

func (s *site) off(when, dev string) {
	s.t.Helper()
	is := s.settings(dev)
	for _, f := range prepared {
		if is[f] != "off" {
			s.t.Errorf("%s: %s of %s is %s", when, f, dev, is[f])
		}
	}
}

func (s *site) same(when, dev string, was map[string]string) {
	s.t.Helper()
	if d := difference(was, s.settings(dev)); len(d) > 0 {
		s.t.Errorf("%s: %s is not as it was: %v", when, dev, d)
	}
	if files, _ := filepath.Glob(filepath.Join(s.dir, "data", "ports", dev+"*")); len(files) > 0 {
		s.t.Errorf("%s: %v is left", when, files)
	}
}

// preparedTrunk is the trunk's site with all on that run must switch off, and two queues on the trunk of which it shall use one.
func preparedTrunk(t *testing.T) *site {
	s := trunk(t)
	for _, f := range prepared {
		for _, dev := range []string{"trunk0", "bb0"} {
			_, err := s.Exec(netlab.GW, "ethtool", "-K", dev, f, "on")
			check(t, err)
		}
	}
	return s
}

// A trunk whose driver strips tags is prepared, carries both tenants, says what was changed, and is put back when the gateway ends: in order,
// after it was killed and started again, by release after a kill, and after a start that failed.
func TestPreparePutsBack(t *testing.T) {
	mostlyWaits(t)
	s := preparedTrunk(t)
	was := map[string]map[string]string{"trunk0": s.settings("trunk0"), "bb0": s.settings("bb0")}
	both := func(when string, look func(when, dev string)) {
		t.Helper()
		look(when, "trunk0")
		look(when, "bb0")
	}
	back := func(when, dev string) { t.Helper(); s.same(when, dev, was[dev]) }
	works := func(when string) {
		t.Helper()
		for _, ns := range []string{"one", "two"} {
			var g host.Ping
			s.run(ns, &g, "ping", "-dst", "203.0.113.11", "-count", "3", "-interval", "20ms")
			if g.Received != 3 {
				t.Errorf("%s: tenant %s: %d of 3 pings", when, ns, g.Received)
			}
		}
	}

	s.start()
	both("running", s.off)
	works("running")
	for _, p := range s.status().Ports {
		var said []string
		for _, c := range p.Changed {
			said = append(said, c.Name+" "+c.Was+" -> "+c.Now)
		}
		if got := strings.Join(said, ", "); got != "gro on -> off, rxvlan on -> off, rx-vlan-stag-hw-parse on -> off" {
			t.Errorf("status says of %s: %q", p.Name, got)
		}
	}
	out, err := s.demarc("ports")
	if err != nil || !strings.Contains(out, "changed on trunk0 until the gateway ends: gro on -> off, rxvlan on -> off") {
		t.Errorf("%v: ports does not say what was changed:\n%s", err, out)
	}
	if log := read(t, s.gw.log); !strings.Contains(log, `msg="port prepared" port=trunk0 device=trunk0 changed="gro on -> off, rxvlan on -> off`) {
		t.Errorf("the log does not say what was changed:\n%s", log)
	}
	s.stop()
	both("after SIGTERM", back)
	if log := read(t, s.gw.log); !strings.Contains(log, `msg="port put back" port=trunk0 device=trunk0 changed="rx-vlan-stag-hw-parse off -> on, rxvlan off -> on, gro off -> on"`) {
		t.Errorf("the log does not say what was put back:\n%s", log)
	}

	// Killed: nobody could put back; the next start knows what the first one found, and so does a third.
	for range 2 {
		s.start()
		s.end(s.gw, unix.SIGKILL)
		both("after kill -9", s.off)
	}
	s.start()
	works("after kill -9 and a restart")
	s.stop()
	both("killed, restarted, ended", back)

	// An end for a restart leaves the ports as they are.
	s.start()
	if err := s.end(s.gw, unix.SIGUSR1); err != nil {
		t.Errorf("SIGUSR1: %v", err)
	}
	both("ended for a restart", s.off)
	s.start()
	works("restarted")

	// Killed, and then given back to the kernel.
	s.end(s.gw, unix.SIGKILL)
	for _, dev := range []string{"trunk0", "bb0"} {
		if out, err := s.demarc("release", dev, "--node", s.node); err != nil || !strings.Contains(out, "put back on "+dev+": ") {
			t.Errorf("release: %v\n%s", err, out)
		}
	}
	both("released", back)

	// A start that fails after preparing: a queue is taken, one port has no zero-copy.
	good := read(t, s.node)
	s.write(replace(t, good, "device = \"bb0\"\n", "device = \"bb0\"\nmode = \"zerocopy\"\n"), trunkPolicy)
	p := s.launch(nil)
	if !until(10*time.Second, p.done) || p.err == nil {
		t.Errorf("it started without zero-copy: %v", p.err)
	}
	both("after a start that failed", back)
	// The same while the ports are as a killed gateway left them: they stay prepared, and what the first one found stays known.
	s.write(good, trunkPolicy)
	s.start()
	s.end(s.gw, unix.SIGKILL)
	s.write(replace(t, good, "device = \"bb0\"\n", "device = \"bb0\"\nmode = \"zerocopy\"\n"), trunkPolicy)
	if p = s.launch(nil); !until(10*time.Second, p.done) || p.err == nil {
		t.Errorf("it started without zero-copy: %v", p.err)
	}
	both("after kill -9 and a start that failed", s.off)
	s.write(good, trunkPolicy)
	s.start()
	s.stop()
	both("in the end", back)
}

// The number of queues is the node file's, and exactly those are bound; the others' come back.
func TestPrepareQueues(t *testing.T) {
	mostlyWaits(t)
	s := bare(t)
	check(t, s.AddNamespace("public1"))
	check(t, s.AddNamespace("one"))
	for _, l := range []struct{ dev, ns, far string }{{"bb0", "public1", "203.0.113.11/24"}, {"in0", "one", "198.18.0.11/24"}} {
		check(t, s.AddLink(netlab.LinkSpec{A: netlab.End{NS: netlab.GW, Name: l.dev}, Queues: 4, B: netlab.End{NS: l.ns, Name: netlab.HostDevice, Addrs: []netip.Prefix{prefix(l.far)}}}))
		redirectable(t, s.Topology, l.ns, netlab.HostDevice)
		_, err := s.Exec(l.ns, "ethtool", "-L", netlab.HostDevice, "rx", "2", "tx", "2")
		check(t, err)
	}
	check(t, s.AddRoute("one", prefix("0.0.0.0/0"), addr("198.18.0.1")))
	check(t, s.AddRoute("public1", prefix("192.0.2.0/24"), addr("203.0.113.1")))
	node := `schema = 1
name = "queues"
data_dir = "x"
[workers]
count = 2
[tables]
sessions = 4096
frames = 8192
[api]
socket = "x"
[[port]]
device = "bb0"
queues = 2
[[port]]
device = "in0"
queues = 3
[[interface]]
name = "backbone"
port = "bb0"
addresses = ["203.0.113.1/24"]
[[interface]]
name = "one"
port = "in0"
addresses = ["198.18.0.1/24"]
`
	policy := `schema = 1
[backbone]
interfaces = ["backbone"]
[[tenant]]
name = "one"
interfaces = ["one"]
prefixes = ["198.18.0.0/24"]
[tenant.nat]
pool = ["192.0.2.1"]
`
	was := map[string]map[string]string{"bb0": s.settings("bb0"), "in0": s.settings("in0")}
	s.write(replace(t, node, "queues = 3", "queues = 5"), policy)
	p := s.launch(nil)
	if !until(5*time.Second, p.done) || p.err == nil || !strings.Contains(p.lastLines(5), "port in0: queues = 5: in0 has at most 4: ethtool -l in0") {
		t.Errorf("five queues of four: %v\n%s", p.err, p.lastLines(5))
	}
	s.write(node, policy)
	s.start()
	for _, p := range s.status().Ports {
		want := map[string]int{"bb0": 2, "in0": 3}[p.Device]
		if is := s.settings(p.Device); len(p.Queues) != want || is["RX"] != is["TX"] || is["RX"] != map[int]string{2: "2", 3: "3"}[want] {
			t.Errorf("%s has %d sockets on %s queues, want %d", p.Device, len(p.Queues), is["RX"], want)
		}
	}
	var g host.Ping
	s.run("one", &g, "ping", "-dst", "203.0.113.11", "-count", "3", "-interval", "20ms")
	if g.Received != 3 {
		t.Errorf("%d of 3 pings", g.Received)
	}
	s.stop()
	for dev := range was {
		s.same("ended", dev, was[dev])
	}
}

// With prepare = false nothing is changed, and what cannot be lived with is refused with the line that mends it.
func TestPrepareOff(t *testing.T) {
	mostlyWaits(t)
	s := preparedTrunk(t)
	node := read(t, s.node)
	for _, dev := range []string{"bb0", "trunk0"} {
		node = replace(t, node, "device = \""+dev+"\"\n", "device = \""+dev+"\"\nprepare = false\n")
	}
	s.write(node, trunkPolicy)
	was := s.settings("trunk0")
	p := s.launch(nil)
	if !until(5*time.Second, p.done) || p.err == nil {
		t.Fatalf("a trunk that strips tags was bound: %v", p.err)
	}
	said := p.lastLines(10)
	t.Log(said)
	for _, want := range []string{"ethtool -K trunk0 rxvlan off", "ethtool -K trunk0 rx-vlan-stag-hw-parse off"} {
		if !strings.Contains(said, want) {
			t.Errorf("nothing says %q", want)
		}
	}
	if s.xdpID("trunk0") != 0 || s.xdpID("bb0") != 0 {
		t.Error("a program is left")
	}
	s.same("refused", "trunk0", was)
	if _, err := os.Stat(filepath.Join(s.dir, "data", "ports")); err == nil {
		t.Error("it keeps a record of what it did not touch")
	}
}
