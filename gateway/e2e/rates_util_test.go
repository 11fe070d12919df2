package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"demarc/gateway/api"
	"demarc/gateway/netlab"
	"demarc/gateway/netlab/quiet"
	"demarc/gateway/netlab/roottest"
)

// rig is a standard lab with the real program in its gateway namespace.
type rig struct {
	*netlab.Topology
	t       testing.TB
	program string
	dir     string
	node    string // node file
	policy  string // policy file of the start
	socket  string
	data    string // data directory
	log     string
	args    []string // further arguments of demarc run
	api     *api.Client

	cmd   *exec.Cmd
	ended chan struct{} // closed when cmd has been waited for
	err   error         // how it ended
}

// rigNode is the node file of the standard lab. more goes to the end: [[port]] and [[interface]] have been written.
func rigNode(data, socket, more string) string {
	node := fmt.Sprintf(`schema = 1
name = "e2e"
data_dir = %q
[tables]
sessions = 16384
tenants = 16
frames = 8192
[api]
socket = %q
%s
[[port]]
device = "bb0"
[[port]]
device = "alpha0"
[[port]]
device = "beta0"
[[interface]]
name = "backbone"
port = "bb0"
addresses = ["203.0.113.1/24", "2001:db8:ff::1/64"]
[[interface]]
name = "alpha"
port = "alpha0"
addresses = ["198.18.10.1/24", "2001:db8:a::1/64"]
[[interface]]
name = "beta"
port = "beta0"
addresses = ["198.18.10.1/24", "2001:db8:b::1/64"]
`, data, socket, more)
	return offloadPorts(node, offloadSaid())
}

// rigTenant is one [[tenant]] with its NAT pool; more is the rest of it.
func rigTenant(name, iface, prefix6, pool, nat, more string) string {
	return fmt.Sprintf(`
[[tenant]]
name = %q
interfaces = [%q]
prefixes = ["198.18.10.0/24", %q]
[tenant.nat]
pool = [%q]
%s
%s
`, name, iface, prefix6, pool, nat, more)
}

// rigPolicy is a policy of both tenants of the standard lab.
func rigPolicy(alpha, beta string) string {
	return "schema = 1\nname = \"e2e\"\n[backbone]\ninterfaces = [\"backbone\"]\n" + rigAlpha(alpha) + rigBeta(beta)
}

func rigAlpha(more string) string {
	return rigTenant("alpha", "alpha", netlab.AlphaNet6, netlab.AlphaPool, "", more)
}
func rigBeta(more string) string {
	return rigTenant("beta", "beta", netlab.BetaNet6, netlab.BetaPool, "", more)
}

// newRig builds the lab and writes the files; it starts nothing.
func newRig(t testing.TB, name, policy string) *rig {
	t.Helper()
	return newRigWith(t, name, policy, netlab.Options{})
}

func newRigWith(t testing.TB, name, policy string, o netlab.Options) *rig {
	t.Helper()
	roottest.Require(t)
	prog := program(t)
	o.Redirects = o.Redirects || offloaded()
	top, err := netlab.Standard(labName(t, name), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := top.Close(); err != nil {
			t.Errorf("close the lab: %v", err)
		}
		nothingLeft(t, top.Name())
	})
	keepsOrder(t, top)
	return rigOn(t, top, prog, policy)
}

// rigOn is the program and its files for a lab that is there.
func rigOn(t testing.TB, top *netlab.Topology, prog, policy string) *rig {
	dir := t.TempDir()
	r := &rig{Topology: top, t: t, program: prog, dir: dir, node: filepath.Join(dir, "node.toml"), policy: filepath.Join(dir, "start.toml"),
		socket: filepath.Join(dir, "s"), data: filepath.Join(dir, "data"), log: filepath.Join(dir, "log")}
	r.write(r.node, rigNode(r.data, r.socket, ""))
	r.write(r.policy, policy)
	r.api = api.Dial(r.socket)
	t.Cleanup(func() {
		r.api.Close()
		if r.running() {
			r.stop()
		}
	})
	return r
}

func (r *rig) write(path, text string) {
	r.t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		r.t.Fatal(err)
	}
}

// launch starts `demarc run` and does not wait for anything. wrap goes in front of the program.
func (r *rig) launch(wrap ...string) {
	r.t.Helper()
	log, err := os.OpenFile(r.log, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		r.t.Fatal(err)
	}
	defer log.Close()
	argv := append(append([]string{}, wrap...), r.program, "run", "--node", r.node, "--policy", r.policy)
	argv = append(argv, r.args...)
	r.cmd = r.Command(netlab.GW, argv[0], argv[1:]...)
	r.cmd.Stdout, r.cmd.Stderr = log, log
	if err := r.cmd.Start(); err != nil {
		r.t.Fatal(err)
	}
	ended, cmd := make(chan struct{}), r.cmd
	r.ended = ended
	go func() {
		r.err = cmd.Wait()
		close(ended)
	}()
}

// start launches the program and waits until it forwards. wrap goes in front of the program.
func (r *rig) start(wrap ...string) {
	r.t.Helper()
	r.launch(wrap...)
	r.until(20*time.Second, "ready", func() (bool, string) {
		if !r.running() {
			r.t.Fatalf("the gateway ended before it was ready (%v):\n%s", r.err, r.logged())
		}
		st := new(api.Status)
		if err := r.api.Get(r.t.Context(), api.PathStatus, st); err != nil {
			return false, err.Error()
		}
		return st.Ready, st.WhyNotReady
	})
}

// running reports whether the started program has not ended yet.
func (r *rig) running() bool {
	if r.ended == nil {
		return false
	}
	select {
	case <-r.ended:
		return false
	default:
		return true
	}
}

// stop ends the program in order and fails the test when it does not end well: its frame account is part of its exit status.
func (r *rig) stop() {
	r.t.Helper()
	r.cmd.Process.Signal(unix.SIGTERM)
	if !r.gone(8 * time.Second) {
		r.cmd.Process.Kill()
		<-r.ended
		r.t.Errorf("the gateway did not end within 8 s of SIGTERM:\n%s", r.logged())
	} else if r.err != nil {
		r.t.Errorf("the gateway ended with %v:\n%s", r.err, r.logged())
	}
}

// kill ends the program with SIGKILL.
func (r *rig) kill() {
	r.cmd.Process.Kill()
	<-r.ended
}

// gone waits for the program to end by itself.
func (r *rig) gone(d time.Duration) bool {
	select {
	case <-r.ended:
		return true
	case <-time.After(d):
		return false
	}
}

func (r *rig) logged() string {
	b, err := os.ReadFile(r.log)
	if err != nil {
		return err.Error()
	}
	lines := bytes.Split(bytes.TrimSpace(b), []byte("\n"))
	return string(bytes.Join(lines[max(0, len(lines)-15):], []byte("\n")))
}

// until polls ok until it says yes.
func (r *rig) until(d time.Duration, what string, ok func() (bool, string)) {
	r.t.Helper()
	deadline := time.Now().Add(d)
	for {
		yes, why := ok()
		if yes {
			return
		}
		if time.Now().After(deadline) {
			r.t.Fatalf("not within %v: %s: %s", d, what, why)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// cli runs one command of the program against the node. It never fails the test: the status is for the caller.
func (r *rig) cli(args ...string) (stdout, stderr string, status int) {
	c := exec.CommandContext(r.t.Context(), r.program, args...)
	c.Env = append(os.Environ(), "DEMARC_SOCKET="+r.socket)
	var out, bad bytes.Buffer
	c.Stdout, c.Stderr = &out, &bad
	err := c.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		return "", err.Error(), -1
	}
	return out.String(), bad.String(), c.ProcessState.ExitCode()
}

// ask runs one command with --json and decodes what it prints.
func (r *rig) ask(into any, args ...string) {
	r.t.Helper()
	out, bad, code := r.cli(append(args, "--json")...)
	if code != 0 {
		r.t.Fatalf("demarc %s: status %d: %s", strings.Join(args, " "), code, bad)
	}
	if err := json.Unmarshal([]byte(out), into); err != nil {
		r.t.Fatalf("demarc %s: %v\n%s", strings.Join(args, " "), err, out)
	}
}

func (r *rig) status() *api.Status {
	r.t.Helper()
	st := new(api.Status)
	if err := r.api.Get(r.t.Context(), api.PathStatus, st); err != nil { // the command's words are tested by themselves: polls need no process each
		r.t.Fatal(err)
	}
	return st
}

// apply hands a policy to the node through the command line and fails the test when it is refused.
func (r *rig) apply(text string) *api.Applied {
	r.t.Helper()
	path := filepath.Join(r.dir, "apply.toml")
	r.write(path, text)
	a := new(api.Applied)
	r.ask(a, "apply", path)
	return a
}

// tenant is one tenant's part of a status.
func rigTenantOf(st *api.Status, name string) api.Tenant {
	for _, t := range st.Tenants {
		if t.Name == name {
			return t
		}
	}
	return api.Tenant{}
}

// serve starts a server of the lab for the length of the test.
func (r *rig) serve(ns string, args ...string) *netlab.Server {
	r.t.Helper()
	s, err := r.Serve(ns, args...)
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { s.Stop(nil) })
	return s
}

// job is a client that runs beside others.
type job struct {
	done chan struct{}
	err  error
}

// spawn starts a client of the lab; wait gives its result.
func (r *rig) spawn(ns string, into any, args ...string) *job {
	j := &job{done: make(chan struct{})}
	go func() {
		defer close(j.done)
		ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
		defer cancel()
		j.err = r.Run(ctx, ns, into, args...)
	}()
	return j
}

// spawnUntil is spawn for a client that goes on until ctx ends.
func (r *rig) spawnUntil(ctx context.Context, ns string, into any, args ...string) *job {
	j := &job{done: make(chan struct{})}
	go func() {
		defer close(j.done)
		j.err = r.Run(ctx, ns, into, args...)
	}()
	return j
}

func (r *rig) wait(jobs ...*job) {
	r.t.Helper()
	for _, j := range jobs {
		<-j.done
		if j.err != nil {
			r.t.Fatal(j.err)
		}
	}
}

func addrPort(a netip.Addr, port uint16) string { return netip.AddrPortFrom(a, port).String() }

// within reports whether got differs from want by at most part (0.02 = 2 %).
func within(got, want, part float64) bool { return got >= want*(1-part) && got <= want*(1+part) }

// exact holds what got through against a limit: 2 %. A machine that was elsewhere lets too little through, and shifts what was in hand into or out of the time that is looked at; 5 % too much is no matter of time.
func exact(t testing.TB, l *quiet.Limits, got, want float64, format string, args ...any) {
	t.Helper()
	switch {
	case got > want*1.05:
		t.Errorf(format, args...)
	case !within(got, want, 0.02):
		l.Missed(format, args...)
	}
}

// rigAddr is the address of "address:port".
func rigAddr(s string) netip.Addr {
	a, _ := netip.ParseAddrPort(s) // the zero address is in no prefix
	return a.Addr()
}

// watch looks on at hosts. What it returns is to be deferred: of a test that has failed it tells what the gateway knew at the end, what it had dropped, and what passed at the hosts.
func (r *rig) watch(hosts ...netlab.Host) func() {
	r.t.Helper()
	captures := make([]*netlab.Capture, len(hosts))
	for i, h := range hosts {
		var err error
		if captures[i], err = r.Capture(h.Name, netlab.HostDevice, 500, nil); err != nil {
			r.t.Fatal(err)
		}
	}
	return func() {
		if !r.t.Failed() {
			return
		}
		for _, what := range []string{"sessions", "drops", "neighbours"} {
			out, bad, _ := r.cli(what)
			r.t.Logf("demarc %s:\n%s%s", what, out, bad)
		}
		for i, c := range captures {
			err := c.CatchUp(time.Second)
			var b strings.Builder
			for _, f := range c.Frames() {
				way := "<"
				if f.Outgoing {
					way = ">"
				}
				fmt.Fprintf(&b, "%s %s %x\n", f.At.Format("15:04:05.000000"), way, f.Data[:min(len(f.Data), 96)])
			}
			r.t.Logf("%s: %d frames passed (%v):\n%s", hosts[i].Name, c.Seen(), err, b.String())
		}
	}
}
