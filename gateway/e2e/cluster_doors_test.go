package e2e

import (
	"bytes"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"demarc/cluster/transport"
	"demarc/gateway/api"
)

const twoTenants = clusterPolicy + `[[tenant]]
name = "beta"
interfaces = ["guest"]
prefixes = ["198.18.7.0/24"]
nat.pool = ["203.0.113.11"]
`

// withRemote gives machines an interface over TCP, and returns its address on each.
func withRemote(ms ...*machine) (servers []string) {
	for _, m := range ms {
		host, _, _ := strings.Cut(m.address, ":")
		m.edit("[api]\n", fmt.Sprintf("[api]\nlisten = \"%s:7443\"\n", host))
		servers = append(servers, "https://"+host+":7443")
	}
	return servers
}

// TestClusterExcept: a gateway whose tables are too small refuses by name, line and reason; --except goes round it, it goes on with what it serves and says why,
// also after a start, and follows again once there is a policy that it can serve.
func TestClusterExcept(t *testing.T) {
	mostlyWaits(t)
	r := newTrio(t)
	gw1, gw2, wit := r.nodes["gw1"], r.nodes["gw2"], r.nodes["wit"]
	for _, m := range []*machine{gw1, gw2} {
		m.edit("[tables]\n", "[[interface]]\nname = \"guest\"\nport = \"in0\"\nvlan = 7\naddresses = [\"198.18.7.1/24\"]\n[tables]\n")
	}
	gw2.edit("[tables]\n", "[tables]\ntenants = 1\n")
	r.begin()
	two := filepath.Join(r.dir, "two.toml")
	check(t, os.WriteFile(two, fmt.Appendf(nil, twoTenants, "two"), 0o644))
	for _, m := range []*machine{gw1, wit, gw2} {
		out, bad, err := m.cli("apply", two)
		name := "gw2: "
		if m == gw2 {
			name = "" // who is asked speaks of itself
		}
		if err == nil || !strings.Contains(bad, name+gw2.node+":") || strings.Contains(bad, "gw1: ") || !strings.Contains(bad, "tables.tenants: 1 is less than the 2 tenants of the policy") {
			t.Errorf("on %s: %v\n%s%s", m.name, err, out, bad)
		}
	}
	if _, bad, err := gw1.cli("apply", two, "--except", "gw9"); err == nil || !strings.Contains(bad, "there is no gateway gw9: the gateways are gw1 and gw2") {
		t.Errorf("%v: %s", err, bad)
	}
	if _, bad, err := gw1.cli("apply", two, "--except", "gw1"); err == nil || !strings.Contains(bad, "gw2: ") {
		t.Errorf("the wrong one excepted: %v: %s", err, bad)
	}
	for _, m := range []*machine{gw1, gw2} {
		m.serves("first", 0)
	}
	ping := gw2.stream("1s")
	out := wit.must("apply", two, "--except", "gw2")
	if !strings.Contains(out, "gw1 serves it") || !strings.Contains(out, "gw2 does not serve it") {
		t.Error(out)
	}
	gw1.serves("two", 0)
	gw2.serves("first", 0)
	if p := ping(); p.Received != p.Sent {
		t.Errorf("%d of %d packets came back through the one that was excepted", p.Received, p.Sent)
	}
	says := func(when string) {
		t.Helper()
		r.eventually(5*time.Second, when+" gw2 says why, and the others with it", func() (bool, string) {
			own, seen := gw2.status().Cluster, gw1.says("gw2").Problem
			return strings.Contains(own.Problem, "revision 2 is agreed on and not served: ") && strings.Contains(own.Problem, "tables.tenants") && strings.Contains(seen, "tables.tenants"), own.Problem + " / " + seen
		})
		gw2.serves("first", 0)
	}
	says("at once")
	check(t, r.end(gw2.p, os.Interrupt))
	gw2.start()
	says("after a start")
	if out := gw1.must("apply", r.policy("fits")); !strings.Contains(out, "gw1 and gw2 serve it") {
		t.Error(out)
	}
	r.eventually(5*time.Second, "gw2 has nothing to say any more", func() (bool, string) { p := gw2.status().Cluster.Problem; return p == "", p })
}

// TestClusterDoors: a client that is revoked on one node is shut out of all, out of a stream that runs as well; a witness says how it is. Garbage, oversize and half-open
// connections to the cluster's port, the interface over TCP and the socket are refused, counted and given up, while changes go on.
func TestClusterDoors(t *testing.T) {
	mostlyWaits(t)
	r := newTrio(t)
	gw1, gw2, wit := r.nodes["gw1"], r.nodes["gw2"], r.nodes["wit"]
	servers := withRemote(gw1, gw2, wit)
	r.begin()
	client := func(name, dir string) string {
		dir = filepath.Join(r.dir, dir)
		r.offline("cluster", "client", name, "--role", "operator", "--ca", r.ca, "--out", dir)
		return dir
	}
	alice, lost, kept := client("alice", "alice"), client("robert", "lost"), client("robert", "kept")
	ask := func(server, keys string, args ...string) (string, error) {
		out, err := r.Exec("wit", program(t), append([]string{"--server", server, "--keys", keys}, args...)...)
		return string(out), err
	}
	for _, keys := range []string{alice, lost, kept} {
		for i, server := range servers {
			if out, err := ask(server, keys, "status"); err != nil || !strings.Contains(out, []string{"gw1", "gw2", "wit"}[i]+", demarc") {
				t.Fatalf("%s as %s: %v\n%s", server, keys, err, out)
			}
		}
	}
	if out := wit.must("status"); !strings.Contains(out, "a witness\n") || !strings.Contains(out, `policy    revision 1 "first"`) || !strings.Contains(out, "leads, revision 1 is agreed on") || !strings.Contains(out, "api       192.0.2.3:7443") {
		t.Errorf("a witness says\n%s", out)
	}
	if s := wit.status(); s.Role != "witness" || !s.Ready || s.Cluster.State != api.ClusterCurrent || len(s.Cluster.Members) != 3 || s.Revision.Digest != gw1.status().Revision.Digest {
		t.Errorf("%+v", s)
	}

	// A stream of each, on gw2.
	type ended struct {
		who, out string
		err      error
	}
	ends := make(chan ended, 2)
	for who, keys := range map[string]string{"alice": alice, "robert": kept} {
		c := r.Command("wit", program(t), "--server", servers[1], "--keys", keys, "trace", "--duration", "30s")
		var b bytes.Buffer
		c.Stdout, c.Stderr = &b, &b
		check(t, c.Start())
		defer c.Process.Kill()
		go func() { err := c.Wait(); ends <- ended{who, b.String(), err} }()
	}
	r.eventually(10*time.Second, "both streams run", func() (bool, string) {
		n := gw2.status().API.Connections
		return n == 2, fmt.Sprint(n)
	})
	if out := wit.must("cluster", "revoke", "alice", "--why", "has left"); !strings.Contains(out, "every certificate of alice is refused from now on") {
		t.Error(out)
	}
	wit.must("cluster", "revoke", "--cert", filepath.Join(lost, transport.ClientCert))
	select {
	case e := <-ends:
		if e.who != "alice" || !strings.Contains(e.out, "every certificate of alice was revoked") {
			t.Errorf("%+v", e)
		}
	case <-time.After(5 * time.Second):
		t.Error("the stream of a client that was revoked goes on")
	}
	for _, server := range servers {
		for _, keys := range []string{alice, lost} {
			r.eventually(3*time.Second, server+" refuses "+keys, func() (bool, string) { out, err := ask(server, keys, "status"); return err != nil, out })
		}
		if out, err := ask(server, kept, "status"); err != nil || !strings.Contains(out, "2 clients revoked") {
			t.Errorf("another certificate of the same name: %v\n%s", err, out)
		}
	}
	if out := gw1.must("cluster", "members"); !strings.Contains(out, "has left") || !strings.Contains(out, "every certificate") {
		t.Error(out)
	}
	if n := gw2.status().API.Refused["revoked"]; n < 2 {
		t.Errorf("%d are counted as revoked", n)
	}
	select {
	case e := <-ends:
		t.Errorf("another client's stream has ended: %+v", e)
	default:
	}

	// Strangers.
	before, began := gw1.status(), descriptors(t, gw1)
	refused := gw1.members().Refused
	var open []net.Conn
	dial := func(network, address string) (c net.Conn) {
		t.Helper()
		var err error
		check(t, r.Do("gw2", func() error { c, err = net.DialTimeout(network, address, 5*time.Second); return err }))
		open = append(open, c)
		return c
	}
	defer func() {
		for _, c := range open {
			c.Close()
		}
	}()
	remote := strings.TrimPrefix(servers[0], "https://")
	doors := map[string]string{gw1.address: "tcp", remote: "tcp", gw1.socket: "unix"}
	for address, network := range doors {
		for _, text := range []string{strings.Repeat("garbage", 10_000), "\x16\x03\x01\xff\xff" + strings.Repeat("x", 1000), "GET / HTTP/1.1\r\nHost: x\r\nX: " + strings.Repeat("x", 64<<10) + "\r\n\r\n"} {
			c := dial(network, address)
			_ = c.SetDeadline(time.Now().Add(8 * time.Second))
			_, _ = io.WriteString(c, text)
			if b, err := io.ReadAll(c); errors.Is(err, os.ErrDeadlineExceeded) || bytes.Contains(b, []byte("200 OK")) {
				t.Errorf("%s %.20q: %.100q, %v", address, text, b, err)
			}
		}
	}
	// With a member's certificate: a head of 4 GiB, one that is no JSON, and one that never ends.
	cert, err := tls.LoadX509KeyPair(filepath.Join(r.dir, "gw2", "gw2", transport.MemberCert), filepath.Join(r.dir, "gw2", "gw2", transport.MemberKey))
	check(t, err)
	member := func(text string) *tls.Conn {
		c := tls.Client(dial("tcp", gw1.address), &tls.Config{Certificates: []tls.Certificate{cert}, InsecureSkipVerify: true, NextProtos: []string{"demarc-request/1"}, MinVersion: tls.VersionTLS13})
		_, err := io.WriteString(c, text)
		check(t, err)
		return c
	}
	for _, text := range []string{"\xff\xff\xff\xff", "\x00\x00\x00\x02{]\x00\x00\x00\x00"} {
		c := member(text)
		_ = c.SetDeadline(time.Now().Add(8 * time.Second))
		if b, err := io.ReadAll(c); errors.Is(err, os.ErrDeadlineExceeded) || len(b) > 0 {
			t.Errorf("%q is answered %q, %v", text, b, err)
		}
	}
	// Half open, of each more than there may be.
	for range 300 {
		for address, network := range doors {
			dial(network, address)
		}
	}
	r.eventually(3*time.Second, "the descriptors are bounded", func() (bool, string) {
		n := descriptors(t, gw1) - began
		return n <= 16+16+256+16, fmt.Sprint(n)
	})
	if out := wit.must("apply", r.policy("meanwhile")); !strings.Contains(out, "gw1 and gw2 serve it") {
		t.Error(out)
	}
	r.eventually(15*time.Second, "the descriptors are back", func() (bool, string) {
		n := descriptors(t, gw1) - began
		return n <= 8, fmt.Sprint(n)
	})
	now, m := gw1.status(), gw1.members().Refused
	for what, n := range map[string][2]uint64{
		"the cluster's port, garbage":  {m["handshake"] - refused["handshake"], 3},
		"the cluster's port, requests": {m["bad_request"] - refused["bad_request"], 2},
		"the cluster's port, too many": {m["busy"] - refused["busy"], 200},
		"the interface, garbage":       {now.API.Refused["handshake"] - before.API.Refused["handshake"], 3},
		"the interface, too many":      {now.API.Refused["busy"] - before.API.Refused["busy"], 200},
	} {
		if n[0] < n[1] {
			t.Errorf("%s: %d counted, want at least %d", what, n[0], n[1])
		}
	}
	resident(t, gw1.pid(), 256<<10)
	gw1.whole(3)
}

// descriptors counts what a machine's process has open.
func descriptors(t testing.TB, m *machine) int {
	t.Helper()
	list, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", m.pid()))
	check(t, err)
	return len(list)
}
