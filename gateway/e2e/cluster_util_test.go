package e2e

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"demarc/gateway/api"
	"demarc/gateway/netlab"
	"demarc/gateway/netlab/roottest"
)

// trio is two gateways and a witness, each in a namespace of its own, that meet over a switch. Each gateway has a host inside and one outside;
// the two are alike in all but their names, as a pair that serves the same tenants.
type trio struct {
	*netlab.Lab
	t     testing.TB
	dir   string
	ca    string
	nodes map[string]*machine
	runs  int
}

// machine is one node of a trio.
type machine struct {
	trio    *trio
	name    string
	space   string // namespace
	address string // of the cluster
	dir     string
	node    string // file
	socket  string
	witness bool
	p       *process
	client  *api.Client
	wrap    []string // goes before its command; nil = nothing
	env     []string // of its process, besides
	binary  string   // that it runs; "" = program
	tool    string   // whose command line asks it; "" = that of binary
}

const (
	clusterPort   = 7400
	clusterPolicy = `schema = 1
name = %q
[backbone]
interfaces = ["wan"]
[[tenant]]
name = "alpha"
interfaces = ["in"]
prefixes = ["198.18.1.0/24"]
nat.pool = ["203.0.113.10"]
`
)

// newTrio makes the machines, and the authority; nothing runs yet.
func newTrio(t testing.TB) *trio { return newTrioOf(t, nil) }

// newTrioOf is newTrio with an authority that the test makes; nil = as operators make it.
func newTrioOf(t testing.TB, authority func(dir string)) *trio {
	t.Helper()
	roottest.Require(t)
	program(t)
	l, err := netlab.New(labName(t, "trio"))
	check(t, err)
	r := &trio{Lab: l, t: t, dir: t.TempDir(), nodes: map[string]*machine{}}
	t.Cleanup(func() {
		for _, m := range r.nodes {
			m.client.Close()
			if m.p == nil || m.p.done() {
				continue
			}
			if err := r.end(m.p, unix.SIGTERM); err != nil {
				t.Errorf("%s did not end well: %v", m.name, err)
			}
		}
		if t.Failed() {
			for _, m := range r.nodes {
				if m.p != nil {
					t.Logf("the log of %s:\n%s", m.name, m.p.lastLines(25))
				}
			}
		}
		if err := r.Close(); err != nil {
			t.Errorf("close the lab: %v", err)
		}
		nothingLeft(t, r.Name())
	})
	check(t, l.AddSwitch("net"))
	r.ca = filepath.Join(r.dir, "ca")
	if authority == nil {
		authority = func(dir string) { r.offline("cluster", "ca", "--dir", dir) }
	}
	authority(r.ca)
	r.machine("gw1", "gw1", 1, false)
	r.machine("gw2", "gw2", 2, false)
	r.machine("wit", "wit", 3, true)
	return r
}

// machine adds one to the network. Its name is what the node file says; its namespace may be another, as with new hardware of an old name.
func (r *trio) machine(name, space string, n int, witness bool) *machine {
	r.t.Helper()
	check(r.t, r.AddNamespace(space))
	m := &machine{trio: r, name: name, space: space, address: fmt.Sprintf("192.0.2.%d:%d", n, clusterPort), dir: filepath.Join(r.dir, space), witness: witness}
	check(r.t, r.Plug("net", netlab.End{NS: space, Name: "mgmt", Addrs: prefixes(fmt.Sprintf("192.0.2.%d/24", n))}, 1, 1500))
	m.node, m.socket = filepath.Join(m.dir, "node.toml"), filepath.Join(m.dir, "demarc.sock")
	check(r.t, os.MkdirAll(m.dir, 0o755))
	text := fmt.Sprintf("schema = 1\nname = %q\ndata_dir = %q\n[api]\nsocket = %q\n[cluster]\nlisten = %q\nkeys = %q\n", name, filepath.Join(m.dir, "data"), m.socket, m.address, filepath.Join(m.dir, name))
	if witness {
		text += "role = \"witness\"\n"
	} else {
		for _, side := range []struct{ host, dev, at, host4 string }{{"in", "in0", "198.18.1.1/24", "198.18.1.2/24"}, {"out", "wan0", "203.0.113.1/24", "203.0.113.2/24"}} {
			ns := space + side.host
			check(r.t, r.AddNamespace(ns))
			check(r.t, r.AddLink(netlab.LinkSpec{A: netlab.End{NS: space, Name: side.dev}, B: netlab.End{NS: ns, Name: "eth0", Addrs: prefixes(side.host4)}}))
			text += fmt.Sprintf("[[port]]\ndevice = %q\n[[interface]]\nname = %q\nport = %q\naddresses = [%q]\n", side.dev, map[string]string{"in": "in", "out": "wan"}[side.host], side.dev, side.at)
		}
		check(r.t, r.AddRoute(space+"in", prefix("203.0.113.0/24"), addr("198.18.1.1")))
		text += "[tables]\nsessions = 4096\nframes = 2048\n"
	}
	check(r.t, os.WriteFile(m.node, []byte(text), 0o644))
	r.offline("cluster", "cert", name, "--ca", r.ca, "--out", m.dir)
	m.client = api.Dial(m.socket)
	r.nodes[space] = m
	return m
}

// edit changes a piece of the machine's node file, which is read at its next start.
func (m *machine) edit(old, now string) {
	m.trio.t.Helper()
	check(m.trio.t, os.WriteFile(m.node, []byte(replace(m.trio.t, read(m.trio.t, m.node), old, now)), 0o644))
}

func (m *machine) status() *api.Status {
	m.trio.t.Helper()
	s := new(api.Status)
	check(m.trio.t, m.client.Get(m.trio.t.Context(), api.PathStatus, s))
	return s
}

// self is what a machine says of itself among its members.
func (m *machine) self() (self api.MemberState) {
	m.trio.t.Helper()
	return m.says(m.name)
}

// says is what a machine says of a member.
func (m *machine) says(of string) (one api.MemberState) {
	m.trio.t.Helper()
	for _, x := range m.members().Members {
		if x.Name == of {
			one = x
		}
	}
	return one
}

// eventually polls, and ends the test with what was seen last when it was in vain.
func (r *trio) eventually(within time.Duration, what string, ok func() (bool, string)) {
	r.t.Helper()
	var seen string
	if !until(within, func() (good bool) { good, seen = ok(); return good }) {
		r.t.Fatalf("in %s not: %s; last seen: %s", within, what, seen)
	}
}

// offline runs a command that needs no node.
func (r *trio) offline(args ...string) string {
	r.t.Helper()
	out, err := exec.Command(program(r.t), args...).CombinedOutput()
	if err != nil {
		r.t.Fatalf("demarc %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

// end sends a signal and waits for the process.
func (r *trio) end(p *process, sig os.Signal) error {
	_ = p.cmd.Process.Signal(sig)
	select {
	case <-p.ended:
		return p.err
	case <-time.After(8 * time.Second):
		_ = p.cmd.Process.Kill()
		<-p.ended
		return errors.New("it did not end within 8 s")
	}
}

// policy writes a policy file and returns its name.
func (r *trio) policy(name string) string {
	r.t.Helper()
	file := filepath.Join(r.dir, name+".toml")
	check(r.t, os.WriteFile(file, fmt.Appendf(nil, clusterPolicy, name), 0o644))
	return file
}

// cli runs the tool against a machine's socket, with its output and its errors apart.
func (m *machine) cli(args ...string) (out, bad string, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), 40*time.Second)
	defer cancel()
	c := m.trio.Command(m.space, cmp.Or(m.tool, m.binary, program(m.trio.t)), append([]string{"--socket", m.socket}, args...)...)
	var o, e bytes.Buffer
	c.Stdout, c.Stderr = &o, &e
	if err := c.Start(); err != nil {
		return "", "", err
	}
	stop := context.AfterFunc(ctx, func() { _ = c.Process.Kill() })
	defer stop()
	err = c.Wait()
	return o.String(), e.String(), err
}

func (m *machine) must(args ...string) string {
	m.trio.t.Helper()
	out, bad, err := m.cli(args...)
	if err != nil {
		m.trio.t.Fatalf("%s: demarc %s: %v\n%s%s", m.name, strings.Join(args, " "), err, out, bad)
	}
	return out
}

// start has the machine's process run, and waits until it answers.
func (m *machine) start(extra ...string) {
	m.trio.t.Helper()
	m.launch(extra...)
	m.ready()
}

// launch has it run.
func (m *machine) launch(extra ...string) {
	r := m.trio
	r.t.Helper()
	r.runs++
	verb := "run"
	if m.witness {
		verb = "witness"
	}
	p := &process{log: filepath.Join(r.dir, fmt.Sprintf("%s-%d.log", m.space, r.runs)), ended: make(chan struct{})}
	args := append(append(slices.Clone(m.wrap), cmp.Or(m.binary, program(r.t)), verb, "--node", m.node), extra...)
	p.cmd = r.Command(m.space, args[0], args[1:]...)
	p.cmd.Env = append(p.cmd.Env, m.env...)
	log, err := os.Create(p.log)
	check(r.t, err)
	defer log.Close()
	p.cmd.Stdout, p.cmd.Stderr = log, log
	check(r.t, p.cmd.Start())
	go func() {
		p.err = p.cmd.Wait()
		close(p.ended)
	}()
	m.p = p
}

// ready waits until it answers.
func (m *machine) ready() {
	r, p := m.trio, m.p
	r.t.Helper()
	var err error
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		var s api.Status
		var l api.Members
		if err = m.client.Get(r.t.Context(), api.PathMembers, &l); err == nil {
			if m.witness {
				return
			}
			if err = m.client.Get(r.t.Context(), api.PathStatus, &s); err == nil && s.Ready {
				return
			}
		}
		if p.done() || time.Now().After(end) {
			r.t.Fatalf("%s is not ready (%v, ended %v):\n%s", m.name, err, p.done(), p.lastLines(20))
		}
	}
}

// kill ends the process that does the work without a word.
func (m *machine) kill() {
	_ = unix.Kill(m.pid(), unix.SIGKILL)
	<-m.p.ended
}

// pid is that process's: of a gateway its data plane.
func (m *machine) pid() int { return netlab.Worker(m.p.cmd.Process.Pid) }

// enter has the machine join by another one, and start.
func (m *machine) enter(by *machine, replace string) {
	r := m.trio
	r.t.Helper()
	args := []string{"cluster", "token"}
	if m.witness {
		args = append(args, "--role", "witness")
	}
	token := strings.TrimSpace(by.must(args...))
	args = []string{"cluster", "join", by.address, "--token", token, "--node", m.node}
	if replace != "" {
		args = []string{"cluster", "replace", replace, by.address, "--token", token, "--node", m.node}
	}
	m.must(args...)
	if m.witness {
		m.start()
		return
	}
	m.start("--policy", filepath.Join(m.dir, "none.toml")) // as the packaged unit does: a newcomer has no such file
}

func (m *machine) members() api.Members {
	m.trio.t.Helper()
	var l api.Members
	check(m.trio.t, m.client.Get(m.trio.t.Context(), api.PathMembers, &l))
	return l
}

// whole waits until a machine sees n members, each with a vote and well, and somebody who leads. It returns who.
func (m *machine) whole(n int) string {
	r := m.trio
	r.t.Helper()
	var l api.Members
	ok := until(20*time.Second, func() bool {
		l = m.members()
		for _, x := range l.Members {
			if !x.Votes || x.Problem != "" || x.Answered == nil {
				return false
			}
		}
		return len(l.Members) == n && l.Leader != ""
	})
	if !ok {
		r.t.Fatalf("%s does not see %d members with a vote: %s", m.name, n, m.must("cluster", "members"))
	}
	return l.Leader
}

// serves waits until a gateway serves a policy by its name.
func (m *machine) serves(name string, within time.Duration) {
	r := m.trio
	r.t.Helper()
	var s api.Status
	if !until(within, func() bool {
		s = api.Status{}
		return m.client.Get(r.t.Context(), api.PathStatus, &s) == nil && s.Revision.Name == name
	}) {
		r.t.Errorf("%s serves %q after %s, want %q", m.name, s.Revision.Name, within, name)
	}
}

// begin is the README's five commands: three nodes that agree.
func (r *trio) begin() (gw1, gw2, wit *machine) {
	r.t.Helper()
	gw1, gw2, wit = r.nodes["gw1"], r.nodes["gw2"], r.nodes["wit"]
	gw1.start("--policy", r.policy("first"))
	gw2.enter(gw1, "")
	wit.enter(gw1, "")
	for _, m := range []*machine{gw1, gw2, wit} {
		m.whole(3)
	}
	return gw1, gw2, wit
}

func prefixes(list ...string) (out []netip.Prefix) {
	for _, s := range list {
		out = append(out, prefix(s))
	}
	return out
}
