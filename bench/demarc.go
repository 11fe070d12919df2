package bench

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
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"demarc/acl"
	"demarc/bench/report"
	"demarc/configs"
	"demarc/gateway/api"
	"demarc/gateway/xsk"
)

// demarc is the gateway as a child process.
type demarc struct {
	r          *room
	binary     string
	rules      []acl.Rule
	pool       [2]netip.Addr
	rate       uint64
	table      int    // sessions
	breakStage string // for the test that a broken gateway gets no ratio
	asked      string // mode of the ports; "" = auto
	offload    string // of the ports; "" = auto
	called     string // where it is not demarc
	threads    []int  // NAPI, in generic mode
	env        []string
	own        func() (node, policy string) // instead of the bench's usual ones

	cmd    *exec.Cmd
	ended  chan struct{} // closed when it has been waited for; err is valid then
	err    error
	client *api.Client
	mode   string
	took   time.Duration // from exec to forwarding
}

const generic, always, never = "generic", "always", "never"

func (d *demarc) name() string  { return cmp.Or(d.called, report.Us) }
func (d *demarc) modes() string { return d.mode }

func (d *demarc) pids() []int {
	if d.cmd == nil {
		return nil
	}
	return append([]int{d.cmd.Process.Pid}, d.threads...)
}

func (d *demarc) node() string {
	if d.own != nil {
		node, _ := d.own()
		return node
	}
	asked, offload := cmp.Or(d.asked, "auto"), cmp.Or(d.offload, "auto")
	// Generic mode is behind the devices' NAPI, as the peer is; preparing them would take it away.
	prepare := asked != generic
	in, out := "198.19.0.3/24", "198.51.100.3/24"
	if d.r.plan.V6() {
		in, out = "2001:db8:19::3/64", "2001:db8:100::3/64"
	}
	return fmt.Sprintf(`schema = 1
name = "bench"
data_dir = %q

[workers]
count = 1
cpus = [%d]

[tables]
sessions = %d
tenants = 16

[log]
level = "warn"

[[port]]
device = %q
mode = %q
offload = %q
prepare = %v

[[port]]
device = %q
mode = %q
offload = %q
prepare = %v

[[interface]]
name = "in"
port = %q
addresses = [%q]

[[interface]]
name = "out"
port = %q
addresses = [%q]
`, filepath.Join(dirRun, "data"), deviceCPU, d.table, devIn, asked, offload, prepare, devOut, asked, offload, prepare, devIn, in, devOut, out)
}

func (d *demarc) policy() (string, error) {
	if d.own != nil {
		_, policy := d.own()
		return policy, nil
	}
	w := waysOf(&d.r.plan)
	return policy(d.rules, []netip.Prefix{w.inside, w.link}, d.pool, d.rate, w.outsideVia, w.insideVia, w.outside)
}

func (d *demarc) start(ctx context.Context) error {
	text, err := d.policy()
	if err != nil {
		return err
	}
	if err := os.RemoveAll(filepath.Join(dirRun, "data")); err != nil {
		return err
	}
	nodeFile, policyFile, logFile := filepath.Join(dirRun, "node.toml"), filepath.Join(dirRun, "policy.toml"), filepath.Join(dirRun, "log")
	err = errors.Join(os.WriteFile(nodeFile, []byte(d.node()), 0o600), os.WriteFile(policyFile, []byte(text), 0o600))
	if err != nil {
		return err
	}
	log, err := os.Create(logFile)
	if err != nil {
		return err
	}
	defer log.Close()
	args := []string{"run", "--node", nodeFile, "--policy", policyFile}
	if d.breakStage != "" {
		args = append(args, "--break", d.breakStage)
	}
	if d.asked == generic {
		if d.threads, err = d.r.interrupts(); err != nil {
			return err
		}
	}
	cmd := d.r.Command(nsGW, d.binary, args...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.Env = append(cmd.Env, d.env...)
	// Ctrl-C reaches the whole group of a terminal: the gateway is ended by the bench, in order.
	cmd.SysProcAttr = &unix.SysProcAttr{Setpgid: true}
	began := time.Now()
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start the gateway: %w", err)
	}
	ended := make(chan struct{})
	d.cmd, d.ended = cmd, ended
	go func() {
		d.err = cmd.Wait()
		close(ended)
	}()
	d.client = api.Dial(filepath.Join(dirRun, "data", "demarc.sock"))
	deadline := time.Now().Add(15 * time.Second)
	for {
		st, err := d.status(ctx, false)
		if err == nil && st.Ready {
			d.mode, d.took = modes(st), time.Since(began)
			return d.carries(st)
		}
		select {
		case <-ended:
			return fmt.Errorf("the gateway ended before it was ready (%v):\n%s", d.err, lastLines(logFile))
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(20 * time.Millisecond):
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("the gateway is not ready after 15 s:\n%s", lastLines(logFile))
		}
	}
}

func (d *demarc) status(ctx context.Context, rules bool) (*api.Status, error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	path := api.PathStatus
	if rules {
		path += "?rules=1"
	}
	st := new(api.Status)
	return st, d.client.Get(ctx, path, st)
}

// modes is the real mode of each port.
func modes(st *api.Status) string {
	var out []string
	for _, p := range st.Ports {
		for _, q := range p.Queues {
			more := ""
			if p.Offload.On {
				more = ", offload"
			}
			out = append(out, fmt.Sprintf("%s/%d %s (%s attach%s)", p.Name, q.Queue, q.Mode, p.Attach, more))
		}
	}
	return strings.Join(out, ", ")
}

// carries looks whether programs carry sessions where they are to, and only there.
func (d *demarc) carries(st *api.Status) error {
	for _, p := range st.Ports {
		switch {
		case d.offload == always && !p.Offload.On:
			return fmt.Errorf("port %s does not carry sessions: %s", p.Name, p.Offload.Why)
		case d.offload == never && p.Offload.On:
			return fmt.Errorf("port %s carries sessions, and is not to", p.Name)
		}
	}
	return nil
}

// carried is what became of all packets that the programs were shown: those that they carried, and all.
func (d *demarc) carried(ctx context.Context) (c carried, err error) {
	if d.offload != always {
		return c, nil
	}
	st, err := d.status(ctx, false)
	if err != nil {
		return c, err
	}
	for _, p := range st.Ports {
		c.by += p.Offload.Carried
		for _, n := range p.Offload.Frames {
			c.of += n
		}
	}
	return c, d.carries(st)
}

// cruising counts the sessions that programs carry.
func (d *demarc) cruising(ctx context.Context) (n int, err error) {
	st, err := d.status(ctx, false)
	if err != nil {
		return 0, err
	}
	for _, w := range st.Workers {
		n += w.Cruising
	}
	return n, nil
}

func (d *demarc) sessions(ctx context.Context) (n int, err error) {
	st, err := d.status(ctx, false)
	if err != nil {
		return 0, err
	}
	for _, w := range st.Workers {
		n += w.Sessions
	}
	return n, nil
}

func (d *demarc) missing(ctx context.Context, flows int) (string, error) {
	st, err := d.status(ctx, true)
	if err != nil {
		return "", err
	}
	text, err := d.client.Text(ctx, api.PathPolicy)
	if err != nil {
		return "", err
	}
	pol, err := configs.DecodePolicy("policy", text)
	if err != nil {
		return "", fmt.Errorf("the policy that the gateway serves: %w", err)
	}
	return lacks(st, pol, len(d.rules), flows, d.pool[0].IsValid()), nil
}

// lacks says what a gateway does not do, by its own word: the switch for labs, the policy that it serves, and what its rules and meters counted.
func lacks(st *api.Status, pol *configs.Policy, rules, flows int, nat bool) string {
	if st.Broken != "" {
		return st.Broken + " (switched off by --break)"
	}
	if len(pol.Tenants) != 1 || len(st.Tenants) != 1 {
		return "the one tenant of the bench"
	}
	t, s := &pol.Tenants[0], &st.Tenants[0]
	var last uint64
	for _, r := range s.Rules {
		if r.Direction == "out" && r.Rule == rules-1 && r.Action == "allow" {
			last = r.Hits
		}
	}
	switch {
	case nat && (len(t.NAT.Pool) == 0 || s.Pool == nil):
		return "source translation"
	case nat && s.Pool.InUse < flows:
		return fmt.Sprintf("source translation: %d public ports are in use for %d flows", s.Pool.InUse, flows)
	case t.Rates.Out.Bits == 0 || t.Rates.In.Bits == 0 || s.Limits.OutBits == 0 || s.Limits.InBits == 0:
		return "the rate limit"
	case len(t.Rules) < rules:
		return fmt.Sprintf("rules: it has %d of %d", len(t.Rules), rules)
	case last < uint64(flows):
		return fmt.Sprintf("the last rule's decision: it was asked for %d of %d flows", last, flows)
	case s.Out.Packets < uint64(flows) || s.In.Packets < uint64(flows):
		return "accounting"
	}
	return ""
}

func (d *demarc) stop() error {
	var errs []error
	if d.threads != nil {
		errs = append(errs, d.r.noInterrupts())
		d.threads = nil
	}
	if d.cmd == nil {
		return errors.Join(errs...)
	}
	d.client.Close()
	_ = d.cmd.Process.Signal(unix.SIGTERM) // it may have ended, which is told below
	select {
	case <-d.ended:
		if d.err != nil {
			errs = append(errs, fmt.Errorf("the gateway ended with %w:\n%s", d.err, lastLines(filepath.Join(dirRun, "log"))))
		}
	case <-time.After(5 * time.Second):
		_ = d.cmd.Process.Kill()
		<-d.ended
		errs = append(errs, errors.New("the gateway did not end within 5 s of SIGTERM"))
	}
	d.cmd = nil
	// The programs stay, closed, as they should; the kernel's turn needs the devices open.
	for _, dev := range []string{devIn, devOut} {
		errs = append(errs, d.r.inside(nsGW, dev, func(i int) error {
			if _, id, _, _, err := xsk.Attached(i); err != nil || id == 0 {
				return err
			}
			return xsk.Release(i)
		}))
	}
	return errors.Join(errs...)
}

// lastLines is the end of a log.
func lastLines(name string) string {
	b, err := os.ReadFile(name)
	if err != nil {
		return err.Error()
	}
	lines := bytes.Split(bytes.TrimSpace(b), []byte("\n"))
	return string(bytes.Join(lines[max(0, len(lines)-10):], []byte("\n")))
}
