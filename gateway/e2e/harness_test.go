package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"demarc/configs/examples"
	"demarc/gateway/api"
	"demarc/gateway/netlab"
	"demarc/gateway/netlab/roottest"
)

func TestMain(m *testing.M) {
	netlab.Init()
	if os.Getenv(epochEnv) != "" {
		os.Exit(beEpochGateway(os.Args))
	}
	code := m.Run()
	for _, b := range []*aBuild{&built, &plantBuilt} {
		if b.dir != "" {
			os.RemoveAll(b.dir)
		}
	}
	os.Exit(code)
}

// aBuild is a program that is built once for all tests of the run.
type aBuild struct {
	once      sync.Once
	dir, path string
	err       error
}

var built, plantBuilt aBuild

func (b *aBuild) program(t testing.TB, flags ...string) string {
	t.Helper()
	b.once.Do(func() {
		if b.dir, b.err = os.MkdirTemp("", "demarc-e2e-"); b.err != nil {
			return
		}
		if b.err = os.Chmod(b.dir, 0o755); b.err != nil { // tests without root run it too
			return
		}
		b.path = filepath.Join(b.dir, "demarc")
		c := exec.Command("go", slices.Concat([]string{"build", "-ldflags", "-s -w"}, flags, []string{"-o", b.path, "demarc"})...)
		c.Env = append(c.Environ(), "CGO_ENABLED=0")
		if out, err := c.CombinedOutput(); err != nil {
			b.err = fmt.Errorf("build: %w\n%s", err, out)
		}
	})
	check(t, b.err)
	return b.path
}

// program is the program under test.
func program(t testing.TB) string {
	t.Helper()
	return built.program(t)
}

// plantProgram is the same that does what its environment says: see gateway/planted.go.
func plantProgram(t testing.TB) string {
	t.Helper()
	return plantBuilt.program(t, "-tags", "plant")
}

// mostlyWaits is roottest.MostlyWaits.
func mostlyWaits(t *testing.T) {
	t.Helper()
	roottest.MostlyWaits(t)
}

var labs struct {
	sync.Mutex
	taken map[string]bool
}

// labName is a name for a lab until the test ends: base, or base with a number where two such labs exist at once. It takes the lowest one, because
// a lab removes what a dead run left under its own name only. Call it before the clean-up that closes the lab.
func labName(t testing.TB, base string) string {
	labs.Lock()
	defer labs.Unlock()
	name := base
	for i := 2; labs.taken[name]; i++ {
		name = fmt.Sprintf("%s%d", base, i)
	}
	if labs.taken == nil {
		labs.taken = map[string]bool{}
	}
	labs.taken[name] = true
	t.Cleanup(func() {
		labs.Lock()
		defer labs.Unlock()
		delete(labs.taken, name)
	})
	return name
}

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// offloaded says that the standard lab's gateways carry established sessions in the XDP program: DEMARC_E2E_OFFLOAD=always runs the tests so.
func offloaded() bool { return os.Getenv("DEMARC_E2E_OFFLOAD") == "always" }

// always runs the rest of a test so, never as workers do.
func always(t *testing.T) { t.Setenv("DEMARC_E2E_OFFLOAD", "always") }
func never(t *testing.T)  { t.Setenv("DEMARC_E2E_OFFLOAD", "never") }

// offloadLine goes before a port's device, or neverLine: tests write what they need behind that. By itself ("auto") a gateway carries where far ends take what is redirected, which is
// TestOffloadByItselfOnAVeth's.
const offloadLine, neverLine = "offload = \"always\"\n", "offload = \"never\"\n"

// offloadSaid is the line that says so.
func offloadSaid() string {
	if offloaded() {
		return offloadLine
	}
	return neverLine
}

// keepsOrder has the lab itself keep the order of what programs redirect, which goes on on whatever CPU its sender runs on: each device has one queue of its own then, and not one for each CPU, which who gets
// its CPU first empties first.
func keepsOrder(t testing.TB, top *netlab.Topology) {
	t.Helper()
	if !offloaded() {
		return
	}
	for _, h := range top.Hosts() {
		check(t, top.TakesRedirected(h.Name, netlab.HostDevice, true))
		check(t, top.TakesRedirected("sw-"+h.Name[:len(h.Name)-1], netlab.PortName(netlab.End{NS: h.Name, Name: netlab.HostDevice}), true))
	}
}

// redirectable has the far end of a port that a test has plugged in itself take redirected frames, where they are to be carried.
func redirectable(t testing.TB, top *netlab.Topology, ns, dev string) {
	t.Helper()
	if offloaded() {
		check(t, top.TakesRedirected(ns, dev, true))
	}
}

// addr and prefix are for literals.
func addr(s string) netip.Addr     { return netip.MustParseAddr(s) }
func prefix(s string) netip.Prefix { return netip.MustParsePrefix(s) }

// site is the standard lab with the configuration of one node. The gateway runs in the namespace netlab.GW.
type site struct {
	*netlab.Topology
	t      testing.TB
	binary string // to run; "" = program
	dir    string
	node   string // file
	policy string // file
	socket string
	client *api.Client
	gw     *process // the last one started
	runs   int
}

// standard builds the standard lab with the lab's example configuration. When the test ends nothing may be left of it.
func standard(t testing.TB, o netlab.Options) *site {
	t.Helper()
	roottest.Require(t)
	program(t) // not inside the time of a lab
	o.Redirects = o.Redirects || offloaded()
	top, err := netlab.Standard(labName(t, "e2e"), o)
	check(t, err)
	s := newSite(t, top)
	keepsOrder(t, top)
	node, err := examples.FS.ReadFile("lab.node.toml")
	check(t, err)
	policy, err := examples.FS.ReadFile("lab.policy.toml")
	check(t, err)
	s.write(string(node), string(policy))
	return s
}

// bare is a lab without anything in it but the gateway's namespace.
func bare(t testing.TB) *site {
	t.Helper()
	roottest.Require(t)
	program(t)
	l, err := netlab.New(labName(t, "e2e"))
	check(t, err)
	s := newSite(t, &netlab.Topology{Lab: l})
	check(t, l.AddNamespace(netlab.GW))
	return s
}

func newSite(t testing.TB, top *netlab.Topology) *site {
	s := &site{Topology: top, t: t, dir: t.TempDir()}
	s.node, s.policy, s.socket = filepath.Join(s.dir, "node.toml"), filepath.Join(s.dir, "policy.toml"), filepath.Join(s.dir, "demarc.sock")
	s.client = api.Dial(s.socket)
	t.Cleanup(func() {
		if s.gw != nil && !s.gw.done() {
			s.stop()
		}
		s.client.Close()
		if t.Failed() && s.gw != nil {
			t.Logf("the gateway's log:\n%s", s.gw.lastLines(40))
		}
		if err := s.Close(); err != nil {
			t.Errorf("close the lab: %v", err)
		}
		nothingLeft(t, s.Name())
	})
	return s
}

// write puts a configuration into the site's files; data directory and socket become the site's.
func (s *site) write(node, policy string) {
	s.t.Helper()
	var lines []string
	generic := strings.Contains(node, `mode = "generic"`) // which has no program that carries: workers do
	for l := range strings.Lines(node) {
		switch {
		case generic && l == offloadLine:
			continue
		case strings.HasPrefix(l, "data_dir = "):
			l = fmt.Sprintf("data_dir = %q\n", filepath.Join(s.dir, "data"))
		case strings.HasPrefix(l, "socket = "):
			l = fmt.Sprintf("socket = %q\n", s.socket)
		case strings.HasPrefix(l, "device = ") && !strings.Contains(node, "offload = ") && !(offloaded() && generic):
			l = offloadSaid() + l
		}
		lines = append(lines, l)
	}
	check(s.t, os.WriteFile(s.node, []byte(strings.Join(lines, "")), 0o644))
	check(s.t, os.WriteFile(s.policy, []byte(policy), 0o644))
}

// replace changes a piece of a configuration text that must be there exactly once.
func replace(t testing.TB, text, old, now string) string {
	t.Helper()
	if n := strings.Count(text, old); n != 1 {
		t.Fatalf("the text has %q %d times, want once:\n%s", old, n, text)
	}
	return strings.Replace(text, old, now, 1)
}

func read(t testing.TB, file string) string {
	t.Helper()
	b, err := os.ReadFile(file)
	check(t, err)
	return string(b)
}

// process is a running gateway.
type process struct {
	cmd   *exec.Cmd
	log   string
	ended chan struct{} // closed when it has been waited for; err is valid from then on
	err   error
}

func (p *process) done() bool {
	select {
	case <-p.ended:
		return true
	default:
		return false
	}
}

func (p *process) lastLines(n int) string {
	b, err := os.ReadFile(p.log)
	if err != nil {
		return err.Error()
	}
	lines := bytes.Split(bytes.TrimSpace(b), []byte("\n"))
	return string(bytes.Join(lines[max(0, len(lines)-n):], []byte("\n")))
}

// launch starts a gateway and does not wait for it. wrap goes before the command ("ip", "netns", "exec", NS); when it is nil the
// command is started inside the namespace directly.
func (s *site) launch(wrap []string, extra ...string) *process {
	s.t.Helper()
	s.runs++
	p := &process{log: filepath.Join(s.dir, fmt.Sprintf("gateway-%d.log", s.runs)), ended: make(chan struct{})}
	binary := s.binary
	if binary == "" {
		binary = program(s.t)
	}
	args := append([]string{binary, "run", "--node", s.node, "--policy", s.policy}, extra...)
	if wrap == nil {
		p.cmd = s.Command(netlab.GW, args[0], args[1:]...)
	} else {
		args = append(wrap, args...)
		p.cmd = exec.Command(args[0], args[1:]...)
		p.cmd.Env = s.Command(netlab.GW, "true").Env // carries the lab's mark
	}
	log, err := os.Create(p.log)
	check(s.t, err)
	defer log.Close()
	p.cmd.Stdout, p.cmd.Stderr = log, log
	check(s.t, p.cmd.Start())
	go func() {
		p.err = p.cmd.Wait()
		close(p.ended)
	}()
	return p
}

// start starts the gateway and returns once it forwards.
func (s *site) start(extra ...string) *process { return s.startBy(nil, extra...) }

func (s *site) startBy(wrap []string, extra ...string) *process {
	s.t.Helper()
	s.gw = s.launch(wrap, extra...)
	s.ready(s.gw)
	return s.gw
}

func (s *site) ready(p *process) {
	s.t.Helper()
	deadline := time.Now().Add(15 * time.Second)
	for {
		var st api.Status
		err := s.client.Get(s.t.Context(), api.PathStatus, &st)
		if err == nil && st.Ready {
			return
		}
		if p.done() {
			s.t.Fatalf("the gateway ended before it was ready (%v):\n%s", p.err, p.lastLines(20))
		}
		if time.Now().After(deadline) {
			s.t.Fatalf("the gateway is not ready after 15 s (%v, %q):\n%s", err, st.WhyNotReady, p.lastLines(20))
		}
		time.Sleep(5 * time.Millisecond)
	}
}

func (s *site) status() *api.Status {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second) // also in a cleanup, when t.Context is over
	defer cancel()
	st := new(api.Status)
	check(s.t, s.client.Get(ctx, api.PathStatus, st))
	return st
}

// healthy holds a status against what must always be so.
func (s *site) healthy(st *api.Status) {
	s.t.Helper()
	if !st.Ready || !st.Conservation.OK {
		s.t.Errorf("ready %v (%s), frames: %s", st.Ready, st.WhyNotReady, st.Conservation.Detail)
	}
	if n := st.Drops["unset"]; n > 0 {
		s.t.Errorf("%d packets dropped without a reason", n)
	}
	for _, w := range st.Workers {
		if w.Panics > 0 {
			s.t.Errorf("worker %d contained %d panics", w.ID, w.Panics)
		}
	}
	for _, p := range st.Ports {
		for _, q := range p.Queues {
			if q.Mode == "unknown" || q.Rings.RxInvalidDescs+q.Rings.TxInvalidDescs > 0 {
				s.t.Errorf("port %s queue %d: mode %s, %+v", p.Name, q.Queue, q.Mode, q.Rings)
			}
		}
	}
}

// stop checks the running gateway and ends it in order; the process must end well (its exit status includes the frame account).
func (s *site) stop() {
	s.t.Helper()
	if s.gw.done() {
		s.t.Errorf("the gateway ended by itself (%v):\n%s", s.gw.err, s.gw.lastLines(20))
		return
	}
	s.healthy(s.status())
	if err := s.end(s.gw, unix.SIGTERM); err != nil {
		s.t.Errorf("the gateway did not end well: %v\n%s", err, s.gw.lastLines(20))
	}
}

// end sends a signal and waits for the process.
func (s *site) end(p *process, sig os.Signal) error {
	p.cmd.Process.Signal(sig)
	select {
	case <-p.ended:
		return p.err
	case <-time.After(8 * time.Second):
		p.cmd.Process.Kill()
		<-p.ended
		return errors.New("it did not end within 8 s")
	}
}

// demarc runs the command line tool in the gateway's namespace.
func (s *site) demarc(args ...string) (string, error) {
	out, err := s.Exec(netlab.GW, program(s.t), append(args, "--socket", s.socket)...)
	return string(out), err
}

// run is netlab's Run, which must be able to measure.
func (s *site) run(ns string, result any, args ...string) {
	s.t.Helper()
	check(s.t, s.Topology.Run(s.t.Context(), ns, result, args...))
}

// serve starts a built-in server that ends with the lab.
func (s *site) serve(ns string, args ...string) *netlab.Server {
	s.t.Helper()
	srv, err := s.Serve(ns, args...)
	check(s.t, err)
	s.t.Cleanup(func() { srv.Stop(nil) }) // before the lab is closed: cleanups run last in, first out
	return srv
}

// capture records on a host's device until the lab ends.
func (s *site) capture(ns, dev string, limit int, keep func([]byte) bool) *netlab.Capture {
	s.t.Helper()
	c, err := s.Capture(ns, dev, limit, keep)
	check(s.t, err)
	return c
}

// clockOfProbes is the time that probes bear, in ns: see host.ProbeSent.
func clockOfProbes(t testing.TB) int64 {
	t.Helper()
	var ts unix.Timespec
	check(t, unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts))
	return ts.Nano()
}

// until polls until ok, at most d.
func until(d time.Duration, ok func() bool) bool {
	for deadline := time.Now().Add(d); ; time.Sleep(10 * time.Millisecond) {
		if ok() {
			return true
		}
		if time.Now().After(deadline) {
			return false
		}
	}
}

// drops is what was dropped under any reason between two statuses, by reason.
func drops(before, after *api.Status) map[string]uint64 {
	d := map[string]uint64{}
	for k, n := range after.Drops {
		if n != before.Drops[k] {
			d[k] = n - before.Drops[k]
		}
	}
	return d
}

// nothingLeft says what of a lab outlived it: namespaces (and with them links), processes.
func nothingLeft(t testing.TB, lab string) {
	t.Helper()
	if left, _ := filepath.Glob("/run/netns/" + lab + "-*"); len(left) > 0 {
		t.Errorf("namespaces left: %v", left)
	}
	files, _ := filepath.Glob("/proc/[0-9]*/environ")
	for _, f := range files {
		if b, err := os.ReadFile(f); err == nil && bytes.Contains(b, []byte("DEMARC_LAB="+lab)) && f != fmt.Sprintf("/proc/%d/environ", os.Getpid()) {
			t.Errorf("process left: %s", f)
		}
	}
}
