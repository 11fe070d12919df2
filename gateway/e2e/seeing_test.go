package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"demarc/configs/examples"
	"demarc/gateway/api"
	"demarc/gateway/netlab"
	"demarc/gateway/netlab/host"
	"demarc/gateway/netlab/roottest"
	"demarc/gateway/verdict"
)

// series is one scrape: name and labels as they are written, to the value.
var seriesLine = regexp.MustCompile(`^([a-zA-Z_:][a-zA-Z0-9_:]*(?:\{[a-zA-Z_][a-zA-Z0-9_]*="(?:[^"\\]|\\.)*"(?:,[a-zA-Z_][a-zA-Z0-9_]*="(?:[^"\\]|\\.)*")*\})?) (\S+)$`)

// scrape reads and parses /metrics over dial; a line that is not of the text format fails the test.
func scrape(t testing.TB, dial func() (net.Conn, error)) map[string]float64 {
	t.Helper()
	c := http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{DialContext: func(context.Context, string, string) (net.Conn, error) { return dial() }, DisableKeepAlives: true}}
	resp, err := c.Get("http://demarc" + api.PathMetrics)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK || !strings.HasPrefix(resp.Header.Get("Content-Type"), "text/plain") {
		t.Fatalf("metrics: %s, %s, %v", resp.Status, resp.Header.Get("Content-Type"), err)
	}
	out, typed := map[string]float64{}, map[string]bool{}
	for line := range strings.Lines(string(b)) {
		line = strings.TrimSuffix(line, "\n")
		if f := strings.Fields(line); len(f) >= 4 && f[0] == "#" && f[1] == "TYPE" {
			typed[f[2]] = true
			continue
		} else if strings.HasPrefix(line, "# HELP ") {
			continue
		}
		m := seriesLine.FindStringSubmatch(line)
		if m == nil {
			t.Errorf("no series: %q", line)
			continue
		}
		v, err := strconv.ParseFloat(m[2], 64)
		if _, twice := out[m[1]]; err != nil || twice {
			t.Errorf("series %q: %v, twice %v", line, err, twice)
		}
		out[m[1]] = v
		name, _, _ := strings.Cut(m[1], "{")
		if strings.HasPrefix(name, "demarc_") && !typed[name] {
			t.Errorf("%s has no TYPE", name)
		}
	}
	return out
}

// What the node tells in each of its ways is one account, and it is the hosts' account too.
func TestSeeingTrafficEverywhere(t *testing.T) {
	r := newRig(t, "seeing", rigPolicy(`
[[tenant.rule]]
name = "no-smtp"
direction = "out"
action = "deny"
service = ["tcp/25"]
`, ""))
	r.write(r.node, strings.Replace(rigNode(r.data, r.socket, ""), "[api]\n", "[api]\nmetrics = \"127.0.0.1:9090\"\n", 1))
	r.start()
	overSocket := func() (net.Conn, error) { return net.Dial("unix", r.socket) }
	overTCP := func() (c net.Conn, err error) {
		err = r.Do(netlab.GW, func() (err error) {
			c, err = net.Dial("tcp", "127.0.0.1:9090")
			return err
		})
		return c, err
	}
	atStart, tcp := scrape(t, overSocket), scrape(t, overTCP)
	ours := 0
	for name, v := range atStart {
		if !strings.HasPrefix(name, "demarc_") {
			continue
		}
		ours++
		if _, ok := tcp[name]; !ok {
			t.Errorf("%s is not there over TCP", name)
		}
		traffic := strings.Contains(name, "_packets_total") || strings.Contains(name, "_bytes_total") || strings.Contains(name, "created_sessions")
		early := strings.Contains(name, "xsk_") || strings.Contains(name, `reason="xdp_`) || strings.Contains(name, `reason="multicast"`) || strings.Contains(name, "tenant_dropped_") // hosts talk before anybody listens
		if traffic && !early && v != 0 {
			t.Errorf("%s begins at %v", name, v)
		}
	}
	for reason := verdict.Reason(0); reason < verdict.NumReasons; reason++ {
		if _, ok := atStart[`demarc_meter_dropped_packets_total{reason="`+reason.String()+`"}`]; !ok && reason != verdict.Pass {
			t.Errorf("no series for drops by %s at the start", reason)
		}
	}
	t.Logf("%d series of demarc at the start", ours)
	// The TCP port tells figures and nothing else.
	if c, err := overTCP(); err != nil {
		t.Error(err)
	} else {
		fmt.Fprintf(c, "GET /v1/status HTTP/1.0\r\n\r\n")
		b, _ := io.ReadAll(c)
		c.Close()
		if !strings.HasPrefix(string(b), "HTTP/1.0 404") {
			t.Errorf("status over TCP: %.60q", b)
		}
	}

	// Known traffic: 200 datagrams each way of alpha, 100 of beta over IPv6, 5 refused connections.
	echo := r.serve(r.Public1.Name, "udp-echo", "-addr", ":7007")
	var a, b host.Probe
	r.wait(r.spawn(r.Alpha1.Name, &a, "udp-probe", "-dst", addrPort(r.Public1.V4, 7007), "-tag", "a", "-pps", "200", "-duration", "1s", "-size", "172"),
		r.spawn(r.Beta1.Name, &b, "udp-probe", "-dst", addrPort(r.Public1.V6, 7007), "-tag", "b", "-pps", "100", "-duration", "1s", "-size", "152"))
	tries, jobs := make([]host.Attempt, 5), []*job{}
	for i := range tries {
		jobs = append(jobs, r.spawn(r.Alpha2.Name, &tries[i], "tcp-connect", "-dst", addrPort(r.Public1.V4, 25), "-timeout", "500ms"))
	}
	r.wait(jobs...)
	var e host.Echo
	if err := echo.Stop(&e); err != nil {
		t.Fatal(err)
	}
	if a.Received != 200 || b.Received != 100 || e.Tags["a"] == nil || e.Tags["b"] == nil {
		t.Fatalf("the traffic itself: %d of 200, %d of 100, %v", a.Received, b.Received, e.Tags)
	}
	time.Sleep(300 * time.Millisecond) // counters are published when a worker is idle, too
	st, m := r.status(), scrape(t, overSocket)
	al, be := rigTenantOf(st, "alpha"), rigTenantOf(st, "beta")
	delete(al.Drops, "multicast") // the hosts' own reports and solicitations
	delete(be.Drops, "multicast")
	for _, x := range []struct {
		what string
		got  any
		want any
	}{
		{"alpha out", al.Out, api.Counter{Packets: 200, Bytes: 200 * 200}}, {"alpha in", al.In, api.Counter{Packets: 200, Bytes: 200 * 200}},
		{"beta out", be.Out, api.Counter{Packets: 100, Bytes: 100 * 200}}, {"beta in", be.In, api.Counter{Packets: 100, Bytes: 100 * 200}},
		{"alpha sessions", al.Sessions, 1}, {"alpha made", al.Created, uint64(1)}, {"beta sessions", be.Sessions, 1},
		{"alpha drops", fmt.Sprint(al.Drops), "map[acl_deny:5]"}, {"beta drops", fmt.Sprint(be.Drops), "map[]"},
		{"backbone out", st.Backbone.Out.Packets + st.Backbone.In.Packets, uint64(600)}, {"drops in status", st.Drops["acl_deny"], uint64(5)},
		{"metrics alpha out", m[`demarc_meter_tenant_packets_total{direction="out",tenant="alpha"}`], 200.0},
		{"metrics beta bytes in", m[`demarc_meter_tenant_bytes_total{direction="in",tenant="beta"}`], 20000.0},
		{"metrics drops", m[`demarc_meter_dropped_packets_total{reason="acl_deny"}`], 5.0},
		{"metrics alpha sessions", m[`demarc_conntrack_tenant_sessions{tenant="alpha"}`], 1.0},
		{"metrics ready", m["demarc_gateway_ready"], 1.0}, {"metrics frames", m["demarc_gateway_frames_conserved"], 1.0},
		{"frames", st.Conservation.OK, true}, {"stage off", st.Broken, ""},
	} {
		if x.got != x.want {
			t.Errorf("%s: %v, want %v", x.what, x.got, x.want)
		}
	}

	var d api.Drops
	r.ask(&d, "drops")
	if d.ByReason["acl_deny"] != 5 || d.ByTenant["alpha"]["acl_deny"] != 5 || len(d.ByRule) != 1 || d.ByRule[0].Hits != 5 || d.ByRule[0].Name != "alpha: no-smtp" {
		t.Errorf("drops: %v, by tenant %v, by rule %+v", d.ByReason["acl_deny"], d.ByTenant, d.ByRule)
	}
	sum := uint64(0)
	for reason, n := range d.ByReason {
		sum += n
		if n != 0 && reason != "acl_deny" && !slices.Contains([]string{"xdp_foreign_mac", "multicast", "xdp_no_socket", "not_for_us", "link_local"}, reason) {
			t.Errorf("unexpected: %d by %s", n, reason)
		}
	}
	if sum != d.Total {
		t.Errorf("drops: total %d, the reasons sum to %d", d.Total, sum)
	}

	var ports api.Ports
	r.ask(&ports, "ports")
	if len(ports.Ports) != 3 || len(ports.Interfaces) != 3 {
		t.Fatalf("%d ports, %d interfaces", len(ports.Ports), len(ports.Interfaces))
	}
	for _, p := range ports.Ports {
		mac, err := r.MAC(netlab.GW, p.Device)
		if err != nil || p.MAC != mac.String() || !p.Up || !p.Carrier || p.MTU != 1500 || p.Driver != "veth" || p.Attach != "native" || len(p.Queues) != 1 {
			t.Errorf("port: %+v (%v, %v)", p, mac, err)
			continue
		}
		q := p.Queues[0]
		if q.Mode != "copy" || q.Asked != "auto" || q.WhyNotBetter == "" {
			t.Errorf("port %s: mode %s, asked %s, why %q", p.Name, q.Mode, q.Asked, q.WhyNotBetter)
		}
		// Every packet of a tenant crossed two ports; ARP, neighbour discovery and what was dropped come on top.
		want := map[string]uint64{"bb0": 300, "alpha0": 200, "beta0": 100}[p.Device]
		o := p.Offload // what no worker has seen
		if o.On != offloaded() || o.On && o.Carried < want/2 {
			t.Errorf("port %s: offload %+v, of %d packets", p.Name, o, want)
		}
		rx, tx := q.Rx.Packets+o.Carried, q.Tx.Packets+o.Sent.Packets
		if rx < want || rx > want+40 || tx < want || tx > want+20 || q.Tx.Bytes+o.Sent.Bytes < want*200 || q.Rx.Bytes < want*200 && !o.On {
			t.Errorf("port %s: rx %+v, tx %+v, offload %+v for %d packets each way", p.Name, q.Rx, q.Tx, o, want)
		}
	}
	for _, i := range ports.Interfaces {
		if want := map[string]string{"backbone": "backbone", "alpha": "alpha", "beta": "beta"}[i.Name]; i.Faces != want || len(i.Addresses) != 2 {
			t.Errorf("interface: %+v", i)
		}
	}

	var routes api.Routes
	r.ask(&routes, "routes")
	has := func(zone, prefix, kind string) bool {
		return slices.ContainsFunc(routes.Routes, func(x api.Route) bool { return x.Zone == zone && x.Prefix == prefix && x.Kind == kind })
	}
	for _, x := range [][3]string{{"backbone", netlab.PublicNet4, "connected"}, {"backbone", netlab.PublicNet6, "connected"}, {"alpha", netlab.Inside4, "connected"}, {"beta", netlab.Inside4, "connected"},
		{"alpha", netlab.AlphaNet6, "connected"}, {"backbone", netlab.AlphaNet6, "tenant"}, {"backbone", "192.0.2.16/32", "nat"}, {"alpha", "198.18.10.1/32", "local"}} {
		if !has(x[0], x[1], x[2]) {
			t.Errorf("no route %v in %+v", x, routes.Routes)
		}
	}

	var n api.Neighbours
	r.ask(&n, "neighbours")
	for _, x := range []struct{ iface, ns, addr string }{{"alpha", r.Alpha1.Name, r.Alpha1.V4.String()}, {"beta", r.Beta1.Name, r.Beta1.V6.String()}, {"backbone", r.Public1.Name, r.Public1.V4.String()},
		{"backbone", r.Public1.Name, r.Public1.V6.String()}} {
		mac, err := r.MAC(x.ns, netlab.HostDevice)
		if err != nil {
			t.Fatal(err)
		}
		if !slices.ContainsFunc(n.Neighbours, func(e api.Neighbour) bool {
			return e.Interface == x.iface && e.Address == x.addr && e.MAC == mac.String() && e.Waiting == 0 && (e.State == "reachable" || e.State == "stale" || e.State == "probe" || e.State == "delay")
		}) {
			t.Errorf("no neighbour %s %s on %s: %+v", x.addr, mac, x.iface, n.Neighbours)
		}
	}
	if st.SlowPath.Neighbours != len(n.Neighbours) {
		t.Errorf("status counts %d neighbours, the list has %d", st.SlowPath.Neighbours, len(n.Neighbours))
	}

	// For people: every verb says something and ends with 0.
	for _, verb := range [][]string{{"status"}, {"sessions"}, {"drops"}, {"drops", "--all"}, {"routes"}, {"neighbours"}, {"ports"}, {"policy"}, {"version"}} {
		out, bad, code := r.cli(verb...)
		if code != 0 || len(out) < 5 || bad != "" {
			t.Errorf("demarc %s: status %d, %d bytes, %q", strings.Join(verb, " "), code, len(out), bad)
		}
		if strings.Contains(out, "%!") || strings.Contains(out, "<nil>") {
			t.Errorf("demarc %s prints:\n%s", strings.Join(verb, " "), out)
		}
	}
}

// doctor names what is wrong on a live node, with the line that mends it; the line mends it.
func TestSeeingDoctor(t *testing.T) {
	mostlyWaits(t)
	r := newRig(t, "doctor", rigPolicy("", ""))
	type finding struct{ Level, Subject, What, Why, Mend string }
	look := func() (list []finding, code int) {
		t.Helper()
		out, err := r.Exec(netlab.GW, r.program, "doctor", "--node", r.node, "--json")
		if jerr := json.Unmarshal(out, &list); jerr != nil {
			t.Fatalf("doctor: %v, %v\n%s", err, jerr, out)
		}
		if err != nil {
			code = 1
		}
		return list, code
	}
	about := func(list []finding, dev, word string) (found *finding) {
		for i, f := range list {
			if strings.Contains(f.Subject, dev) && strings.Contains(f.What+f.Why+f.Mend, word) && f.Level != "ok" {
				found = &list[i]
			}
		}
		return found
	}
	list, code := look()
	for _, f := range list {
		if f.Level == "bad" {
			t.Errorf("before anything is wrong: %+v", f)
		}
	}
	if code != 0 {
		t.Errorf("status %d", code)
	}
	// The far end of a veth pair sends unfinished checksums unless told not to: nothing of that passes, it is counted, and doctor has the
	// line that ends it.
	for ns, dev := range map[string]string{r.Alpha1.Name: netlab.HostDevice, "sw-alpha": "gw-alpha0"} {
		if err := r.SetOffloads(ns, dev, true); err != nil {
			t.Fatal(err)
		}
	}
	r.start()
	r.serve(r.Public1.Name, "udp-echo", "-addr", ":7007")
	probe := func() (p host.Probe) {
		r.wait(r.spawn(r.Alpha1.Name, &p, "udp-probe", "-dst", addrPort(r.Public1.V4, 7007), "-pps", "50", "-duration", "500ms"))
		return p
	}
	p := probe()
	// By chance an unfinished checksum is right, once in 65,536 packets: that one begins a session and is answered, and what follows in it the host there refuses.
	if n := r.status().Drops["unfinished_checksum"]; p.Received > 1 || n == 0 {
		t.Errorf("with tx offload on at the far end %d answers came, and %d packets are counted as unfinished_checksum", p.Received, n)
	}
	list, _ = look()
	f := about(list, "alpha0", "ethtool -K")
	if f == nil {
		t.Fatalf("doctor does not name the offloads of veth: %+v", list)
	}
	t.Logf("%s %s: %s\n%s\nmend: %s", f.Level, f.Subject, f.What, f.Why, f.Mend)
	line, _, _ := strings.Cut(f.Mend, "#")
	line = strings.Replace(line, "PEER", "gw-alpha0", 1)
	if out, err := r.Exec("sw-alpha", "sh", "-c", line); err != nil {
		t.Errorf("the line of doctor: %v %s", err, out)
	}
	if p := probe(); p.Received != p.Sent {
		t.Errorf("after the line of doctor: %d of %d", p.Received, p.Sent)
	}
	// A device that is down, with the line; and one that is not there.
	if err := r.SetUp(netlab.GW, "beta0", false); err != nil {
		t.Fatal(err)
	}
	if list, code = look(); about(list, "beta0", "ip link set beta0 up") == nil || code != 1 {
		t.Errorf("a device that is down: status %d, %+v", code, list)
	}
	if out, err := r.Exec(netlab.GW, "sh", "-c", "ip link set beta0 up"); err != nil {
		t.Errorf("%v %s", err, out)
	}
	r.write(r.node, strings.Replace(rigNode(r.data, r.socket, ""), `device = "bb0"`, "name = \"bb0\"\ndevice = \"nic7\"", 1))
	if list, code = look(); code != 1 || !slices.ContainsFunc(list, func(f finding) bool { return f.Level == "bad" && strings.Contains(f.Subject+f.What, "nic7") }) {
		t.Errorf("a device that is not there: status %d, %+v", code, list)
	}
	if out, err := r.Exec(netlab.GW, r.program, "doctor"); err != nil || !strings.Contains(string(out), "kernel") {
		t.Errorf("doctor for people: %v\n%s", err, out)
	}
}

// exampleRig writes an example pair for a lab whose devices have the names that it wants.
func exampleRig(t *testing.T, l *netlab.Lab, name string, change map[string]string) *rig {
	t.Helper()
	r := rigOn(t, &netlab.Topology{Lab: l}, program(t), "")
	node, err := examples.FS.ReadFile(name + ".node.toml")
	check(t, err)
	policy, err := examples.FS.ReadFile(name + ".policy.toml")
	check(t, err)
	text := string(node)
	for old, now := range change {
		if !strings.Contains(text, old) {
			t.Fatalf("%s.node.toml has no %q", name, old)
		}
		text = strings.ReplaceAll(text, old, now)
	}
	text = regexp.MustCompile(`(?m)^data_dir = .*\n`).ReplaceAllString(text, "")
	text = strings.Replace(text, "schema = 1\n", fmt.Sprintf("schema = 1\ndata_dir = %q\n", r.data), 1)
	text = strings.Replace(text, "[api]\n", fmt.Sprintf("[api]\nsocket = %q\n", r.socket), 1)
	r.write(r.node, text)
	r.write(r.policy, string(policy))
	return r
}

// exampleLab is the gateway's namespace and hosts, each host on a port through a switch, with a tag when it has one.
func exampleLab(t *testing.T, name string, queues int, ports []string, hosts []exampleHost) *netlab.Lab {
	t.Helper()
	roottest.Require(t)
	l, err := netlab.New(labName(t, name))
	check(t, err)
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Errorf("close the lab: %v", err)
		}
		nothingLeft(t, l.Name())
	})
	check(t, l.AddNamespace(netlab.GW))
	for _, p := range ports {
		check(t, l.AddSwitch("sw-"+p))
		check(t, l.Plug("sw-"+p, netlab.End{NS: netlab.GW, Name: p}, queues, 1500))
	}
	for _, h := range hosts {
		check(t, l.AddNamespace(h.name))
		e := netlab.End{NS: h.name, Name: netlab.HostDevice}
		for _, a := range h.addrs {
			e.Addrs = append(e.Addrs, prefix(a))
		}
		check(t, l.Plug("sw-"+h.port, e, 1, 1500))
		if h.vlan != 0 {
			check(t, l.Tag(h.name, netlab.HostDevice, h.vlan))
		}
		for dst, via := range h.routes {
			check(t, l.AddRoute(h.name, prefix(dst), addr(via)))
		}
	}
	return l
}

type exampleHost struct {
	name, port string
	vlan       uint16
	addrs      []string
	routes     map[string]string
}

// The enterprise example runs as it is, but for the CPUs of its two workers: office and telephones go out through the one address, mail
// comes in, the telephones reach their provider only.
func TestSeeingEnterpriseExample(t *testing.T) {
	mostlyWaits(t)
	everywhere := func(via4, via6 string) map[string]string { return map[string]string{"0.0.0.0/0": via4, "::/0": via6} }
	l := exampleLab(t, "enterprise", 2, []string{"enp1s0", "enp2s0"}, []exampleHost{
		{"router", "enp1s0", 0, []string{"203.0.113.1/24", "2001:db8:ff::1/64", "198.51.100.5/26", "198.51.100.6/26", "198.51.100.140/25"}, map[string]string{"2001:db8:e::/48": "2001:db8:ff::10"}},
		{"office", "enp2s0", 10, []string{"198.18.10.50/24", "2001:db8:e:10::50/64"}, everywhere("198.18.10.1", "2001:db8:e:10::1")},
		{"mail", "enp2s0", 10, []string{"198.18.10.10/24"}, map[string]string{"0.0.0.0/0": "198.18.10.1"}},
		{"phone", "enp2s0", 20, []string{"198.18.20.7/24", "2001:db8:e:20::7/64"}, everywhere("198.18.20.1", "2001:db8:e:20::1")},
	})
	r := exampleRig(t, l, "enterprise-voip", map[string]string{"cpus = [2, 3]\n": ""})
	// The machine's own address, that NAT shares.
	check(t, l.AddAddr(netlab.GW, "enp1s0", prefix("203.0.113.10/24")))
	r.start()
	t.Logf("ready with %d workers", len(r.status().Workers))
	r.serve("router", "udp-echo", "-addr", "198.51.100.5:5060") // else its answers come from another address
	r.serve("router", "tcp-serve", "-addr", ":80", "-banner", "web")
	r.serve("mail", "tcp-serve", "-addr", ":25", "-banner", "mail")
	connect := func(from, dst string) (a host.Attempt) {
		r.wait(r.spawn(from, &a, "tcp-connect", "-dst", dst, "-timeout", "1500ms"))
		return a
	}
	for _, x := range []struct {
		from, dst, banner string
		as                string
	}{
		{"office", "203.0.113.1:80", "web", "203.0.113.10"},
		{"office", "[2001:db8:ff::1]:80", "web", "2001:db8:e:10::50"},
		{"router", "203.0.113.10:25", "mail", "203.0.113.1"},
	} {
		if a := connect(x.from, x.dst); a.Banner != x.banner || rigAddr(a.SeenAs).String() != x.as {
			t.Errorf("%s to %s: %s, %q, seen as %s", x.from, x.dst, a.How, a.Banner, a.SeenAs)
		}
	}
	if a := connect("phone", "203.0.113.1:80"); a.Connected {
		t.Error("a telephone reaches the web")
	}
	var p host.Probe
	r.wait(r.spawn("phone", &p, "udp-probe", "-dst", "198.51.100.5:5060", "-pps", "50", "-duration", "1s"))
	if p.Received != p.Sent {
		t.Errorf("a call: %d of %d", p.Received, p.Sent)
	}
	var s api.Sessions
	if r.ask(&s, "sessions", "--port", "5060"); len(s.Sessions) != 1 || s.Sessions[0].Class != "voice" || s.Sessions[0].RuleName != "calls" {
		t.Errorf("the call's session: %+v", s.Sessions)
	}
	// A telephone that has registered is called from any server of its provider, and from nobody else.
	p = host.Probe{}
	r.wait(r.spawn("phone", &p, "udp-probe", "-dst", "198.51.100.5:5060", "-local", "198.18.20.7:10000", "-pps", "50", "-duration", "200ms"))
	s = api.Sessions{}
	if r.ask(&s, "sessions", "--port", "10000"); len(s.Sessions) != 1 || p.Received != p.Sent {
		t.Fatalf("%d of %d: %+v", p.Received, p.Sent, s.Sessions)
	}
	r.serve("phone", "udp-echo", "-addr", "198.18.20.7:10000")
	for _, from := range []string{"198.51.100.5:5070", "198.51.100.6:5060", "198.51.100.140:5060"} {
		p = host.Probe{}
		r.wait(r.spawn("router", &p, "udp-probe", "-dst", s.Sessions[0].XlatSrc, "-local", from, "-pps", "50", "-duration", "200ms"))
		if ours := from != "198.51.100.140:5060"; p.Sent == 0 || ours && p.Received != p.Sent || !ours && p.Received != 0 {
			t.Errorf("a call from %s: %d of %d", from, p.Received, p.Sent)
		}
	}
	if d := r.status().Drops; d["unset"] != 0 || d["internal_error"] != 0 {
		t.Errorf("drops: %v", d)
	}
}

// The provider example runs with 4 workers on 4 queues; only the mode is another, since veth has no zero-copy, and the tables are smaller.
func TestSeeingProviderExample(t *testing.T) {
	mostlyWaits(t)
	l := exampleLab(t, "provider", 4, []string{"ens1f0", "ens2f0", "ens1f1"}, []exampleHost{
		{"upstream", "ens1f0", 0, []string{"203.0.113.1/29", "2001:db8:ff::1/64", "198.51.100.53/32"},
			map[string]string{"192.0.2.0/24": "203.0.113.2", "2001:db8:1::/48": "2001:db8:ff::2", "198.51.100.128/26": "203.0.113.2", "198.18.64.0/18": "203.0.113.2"}},
		{"upstream-b", "ens2f0", 0, []string{"203.0.113.9/29", "2001:db8:fe::1/64", "198.51.100.53/32"},
			map[string]string{"192.0.2.0/24": "203.0.113.10"}},
		{"c101", "ens1f1", 101, []string{"198.18.0.10/24", "2001:db8:1:101::10/64"}, map[string]string{"0.0.0.0/0": "198.18.0.1", "::/0": "2001:db8:1:101::1"}},
		{"c102", "ens1f1", 102, []string{"198.18.0.10/24"}, map[string]string{"0.0.0.0/0": "198.18.0.1"}},
		{"c103", "ens1f1", 103, []string{"198.19.103.2/30", "198.18.64.25/32"}, map[string]string{"0.0.0.0/0": "198.19.103.1"}},
		{"c105", "ens1f1", 105, []string{"198.51.100.130/26"}, map[string]string{"0.0.0.0/0": "198.51.100.129"}},
	})
	r := exampleRig(t, l, "provider-vlans", map[string]string{"cpus = [2, 3, 4, 5]\n": "", `mode = "zerocopy"`: `mode = "copy"`,
		"sessions = 4194304": "sessions = 65536", "frames = 32768": "frames = 8192"})
	r.start()
	st := r.status()
	t.Logf("ready with %d workers, %d tenants, %d queues", len(st.Workers), len(st.Tenants), len(st.Ports[0].Queues))
	if len(st.Workers) != 4 || len(st.Tenants) != 6 {
		t.Errorf("%d workers, %d tenants", len(st.Workers), len(st.Tenants))
	}
	r.serve("upstream", "tcp-serve", "-addr", ":80", "-banner", "upstream")
	r.serve("c103", "tcp-serve", "-addr", ":25", "-banner", "c103")
	r.serve("c105", "tcp-serve", "-addr", ":80", "-banner", "c105")
	for _, x := range []struct{ from, dst, banner, as string }{
		{"c101", "203.0.113.1:80", "upstream", "192.0.2.1"},
		{"c101", "[2001:db8:ff::1]:80", "upstream", "2001:db8:1:101::10"},
		{"c102", "203.0.113.1:80", "upstream", "192.0.2.2"},
		{"c105", "203.0.113.1:80", "upstream", "198.51.100.130"},
		{"upstream", "192.0.2.90:25", "c103", "203.0.113.1"},
		{"upstream", "198.51.100.130:80", "c105", "203.0.113.1"},
		{"c102", "198.51.100.130:80", "c105", "192.0.2.2"},
	} {
		var a host.Attempt
		r.wait(r.spawn(x.from, &a, "tcp-connect", "-dst", x.dst, "-timeout", "2500ms"))
		if a.Banner != x.banner || rigAddr(a.SeenAs).String() != x.as {
			t.Errorf("%s to %s: %s, %q, seen as %s, want %q, %s", x.from, x.dst, a.How, a.Banner, a.SeenAs, x.banner, x.as)
		}
	}
	// What lies behind both upstreams goes by one and the other.
	r.serve("upstream-b", "tcp-serve", "-addr", ":80", "-banner", "upstream-b")
	by := map[string]int{}
	for range 24 {
		var a host.Attempt
		r.wait(r.spawn("c101", &a, "tcp-connect", "-dst", "198.51.100.53:80", "-timeout", "2500ms"))
		by[a.Banner]++
		if rigAddr(a.SeenAs).String() != "192.0.2.1" {
			t.Errorf("behind the upstreams: %s, %q, seen as %s", a.How, a.Banner, a.SeenAs)
		}
	}
	if by["upstream"] == 0 || by["upstream-b"] == 0 || by["upstream"]+by["upstream-b"] != 24 {
		t.Errorf("24 connections went by %v", by)
	}
	// Many flows, so that all queues and the hand-over between workers have something to do.
	r.serve("upstream", "udp-echo", "-addr", ":7007")
	probes, jobs := make([]host.Probe, 24), []*job{}
	for i := range probes {
		from := []string{"c101", "c102"}[i%2]
		jobs = append(jobs, r.spawn(from, &probes[i], "udp-probe", "-dst", "203.0.113.1:7007", "-tag", fmt.Sprint(i), "-pps", "50", "-duration", "1s"))
	}
	r.wait(jobs...)
	for i, p := range probes {
		if p.Received != p.Sent || p.Foreign > 0 {
			t.Errorf("stream %d: %d of %d, %d foreign", i, p.Received, p.Sent, p.Foreign)
		}
	}
	st = r.status()
	for _, w := range st.Workers {
		t.Logf("worker %d: %d sessions, %d bursts, handed out %d, in %d", w.ID, w.Sessions, w.Bursts, w.HandedOut, w.HandedIn)
	}
	if !st.Conservation.OK || st.Drops["unset"] != 0 {
		t.Errorf("frames: %s; drops %v", st.Conservation.Detail, st.Drops)
	}
	if _, err := os.Stat(filepath.Join(r.data, "policies")); err != nil {
		t.Error(err)
	}
}

// A port taken from a running gateway by force is said to be gone: nobody may read "forwarding" where nothing arrives.
func TestSeeingAForcedRelease(t *testing.T) {
	mostlyWaits(t)
	r := newRig(t, "forced", rigPolicy("", ""))
	r.start()
	if out, err := r.Exec(netlab.GW, r.program, "release", "alpha0", "--socket", r.socket); err == nil {
		t.Errorf("release without --force: %s", out)
	}
	if out, err := r.Exec(netlab.GW, r.program, "release", "alpha0", "--force", "--socket", r.socket); err != nil {
		t.Fatalf("release --force: %v\n%s", err, out)
	}
	r.until(3*time.Second, "status says so", func() (bool, string) {
		st := r.status()
		return !st.Ready && strings.Contains(st.WhyNotReady, "alpha0"), st.WhyNotReady
	})
	problem := ""
	for _, p := range r.status().Ports {
		if p.Name == "alpha0" {
			problem = p.Attach + ": " + p.Problem
		} else if p.Problem != "" || p.Attach != "native" {
			t.Errorf("port %s: %s, %q", p.Name, p.Attach, p.Problem)
		}
	}
	if !strings.HasPrefix(problem, "none: its XDP program was taken off") {
		t.Errorf("port alpha0: %q", problem)
	}
	if !strings.Contains(r.logged(), "XDP program was taken off") {
		t.Errorf("nothing in the log:\n%s", r.logged())
	}
	r.stop()
}
