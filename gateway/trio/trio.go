package trio

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"demarc/gateway/api"
	"demarc/gateway/netlab"
)

// Addresses. Both gateways are alike in all but their names and their cluster's addresses, as a pair that serves the same tenants. Each has hosts of its own.
const (
	Port     = 7400 // of the cluster
	Inside   = "198.18.1.2"
	Outside  = "203.0.113.2"
	EchoPort = 7007
	Switch   = "net" // that all nodes meet over
)

// Options of a Trio. Lab and Dir are required.
type Options struct {
	Lab       string        // name of the namespaces
	Dir       string        // for files: sockets stand in it, so its name is short
	Binary    string        // the program; "" = this one
	RoundTrip time.Duration // cluster.round_trip of every node file; 0 = none is said
	Gateway   string        // more of a gateway's node file; "" = small tables
	// Wire connects a node's device to the switch; nil = by a cable.
	Wire func(l *netlab.Lab, e netlab.End) error
	// Ports makes what a gateway's ports are connected to, and returns their part of its node file; nil = hosts of its own on either side.
	Ports func(n *Node, number int) (string, error)
	// Lines has every node of a pair connected by a line, and a gate at each port of a switch that a gateway is plugged into: see Pair.Hinder and Pair.Shut.
	Lines bool
	// Two leaves out the witness.
	Two bool
	// Queues is how many each port of a pair's gateway has; 0 = one.
	Queues int
	// Offload has a pair's gateways carry established sessions in their XDP programs; without it their workers do.
	Offload bool
	// Split gives each tenant of a pair a group of its own, east and west, that prefers another gateway, and has both on one trunk: see SplitPolicy.
	Split bool
	// PortMAC is for a group with `mac = "port"`: who watches goes by the MACs of the gateways' ports, and what one of them hands on to the other is not the group's.
	PortMAC bool
	// Apart gives the tenants of a pair IPv4 networks that differ: for who is measured beside us and knows no tenants.
	Apart bool
}

// Trio is three nodes.
type Trio struct {
	*netlab.Lab
	GW1, GW2, Witness *Node

	o       Options
	ca      string
	threads []int // of the switches
}

// Node is one of them.
type Node struct {
	Name    string // in its file, and of its namespace; hosts are Name+"in" and Name+"out"
	Address string // of the cluster
	File    string
	Socket  string
	Data    string
	Binary  string   // the program at the next start; "" = the trio's
	Args    []string // more of the command line at each start
	Env     []string // more of its environment, likewise
	Wrap    []string // what it is started by, likewise: a command that becomes it by exec
	Client  *api.Client

	t       *Trio
	witness bool
	runs    int
	cmd     *exec.Cmd // nil = it does not run
	log     string
	ended   chan struct{} // closed when it has been waited for; err is valid then
	err     error
}

// smallTables are enough for the traffic of a demo.
const smallTables = "[tables]\nsessions = 4096\nframes = 2048\n"

// New makes namespaces, keys and files. Nothing runs yet.
func New(o Options) (t *Trio, err error) {
	if o.Binary == "" {
		o.Binary = "/proc/self/exe"
	}
	if o.Gateway == "" {
		o.Gateway = smallTables
	}
	if o.Wire == nil {
		o.Wire = func(l *netlab.Lab, e netlab.End) error { return l.Plug(Switch, e, 1, 1500) }
	}
	t = &Trio{o: o, ca: filepath.Join(o.Dir, "ca")}
	if t.o.Ports == nil {
		t.o.Ports = t.ownHosts
	}
	if t.Lab, err = netlab.New(o.Lab); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, t.Lab.Close())
		}
	}()
	if err := t.AddSwitch(Switch); err != nil {
		return nil, err
	}
	if err := t.offline("cluster", "ca", "--dir", t.ca); err != nil {
		return nil, err
	}
	for i, x := range []struct {
		into **Node
		name string
	}{{&t.GW1, "gw1"}, {&t.GW2, "gw2"}, {&t.Witness, "witness"}} {
		if o.Two && x.into == &t.Witness {
			continue
		}
		if *x.into, err = t.add(x.name, i+1, x.name == "witness"); err != nil {
			return nil, fmt.Errorf("%s: %w", x.name, err)
		}
	}
	return t, nil
}

// keys is where a node's certificate is.
func (n *Node) keys() string { return filepath.Join(filepath.Dir(n.File), n.Name) }

// Nodes are all three, or the two gateways where there is no witness.
func (t *Trio) Nodes() []*Node {
	if t.Witness == nil {
		return t.Gateways()
	}
	return []*Node{t.GW1, t.GW2, t.Witness}
}

// Gateways are the two that have ports.
func (t *Trio) Gateways() []*Node { return []*Node{t.GW1, t.GW2} }

// Node finds one by its name.
func (t *Trio) Node(name string) *Node {
	for _, n := range t.Nodes() {
		if n.Name == name {
			return n
		}
	}
	return nil
}

// Pids are the processes of the nodes that run, and what else of the lab works beside its hosts.
func (t *Trio) Pids() (list []int) {
	list = append(list, t.threads...)
	for _, n := range t.Nodes() {
		if n.Runs() {
			list = append(list, n.Pid())
		}
	}
	return list
}

// offline runs a command that needs no node.
func (t *Trio) offline(args ...string) error {
	out, err := exec.Command(t.o.Binary, args...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("demarc %s: %w: %s", strings.Join(args, " "), err, bytes.TrimSpace(out))
	}
	return nil
}

func (t *Trio) add(name string, number int, witness bool) (*Node, error) {
	dir := filepath.Join(t.o.Dir, name)
	n := &Node{t: t, Name: name, witness: witness, Address: fmt.Sprintf("192.0.2.%d:%d", number, Port),
		File: filepath.Join(dir, "node.toml"), Socket: filepath.Join(dir, "demarc.sock"), Data: filepath.Join(dir, "data")}
	n.Client = api.Dial(n.Socket)
	if err := errors.Join(os.MkdirAll(dir, 0o755), t.AddNamespace(name)); err != nil {
		return nil, err
	}
	if err := t.o.Wire(t.Lab, netlab.End{NS: name, Name: "mgmt", Addrs: []netip.Prefix{netip.MustParsePrefix(fmt.Sprintf("192.0.2.%d/24", number))}}); err != nil {
		return nil, err
	}
	text := fmt.Sprintf("schema = 1\nname = %q\ndata_dir = %q\n\n[api]\nsocket = %q\n\n[cluster]\nlisten = %q\nkeys = %q\n", name, n.Data, n.Socket, n.Address, filepath.Join(dir, name))
	if t.o.RoundTrip > 0 {
		text += fmt.Sprintf("round_trip = %q\n", t.o.RoundTrip)
	}
	if witness {
		text += "role = \"witness\"\n"
	} else {
		ports, err := t.o.Ports(n, number)
		if err != nil {
			return nil, err
		}
		text += ports
		text += "\n" + t.o.Gateway
	}
	if err := os.WriteFile(n.File, []byte(text), 0o644); err != nil {
		return nil, err
	}
	return n, t.offline("cluster", "cert", name, "--ca", t.ca, "--out", dir)
}

// ownHosts gives a gateway a host inside and one outside.
func (t *Trio) ownHosts(n *Node, _ int) (text string, err error) {
	for _, side := range []struct{ host, dev, name, at, far string }{{"in", "in0", "in", "198.18.1.1/24", Inside}, {"out", "wan0", "wan", "203.0.113.1/24", Outside}} {
		err := errors.Join(t.AddNamespace(n.Name+side.host), t.AddLink(netlab.LinkSpec{A: netlab.End{NS: n.Name, Name: side.dev},
			B: netlab.End{NS: n.Name + side.host, Name: "eth0", Addrs: []netip.Prefix{netip.PrefixFrom(netip.MustParseAddr(side.far), 24)}}}))
		if err != nil {
			return "", err
		}
		text += portText(side.dev, side.name, side.at)
	}
	return text, t.AddRoute(n.Name+"in", netip.MustParsePrefix("203.0.113.0/24"), netip.MustParseAddr("198.18.1.1"))
}

// portText is a port and the interface on it in a node file.
func portText(device, name string, addresses ...string) string {
	return fmt.Sprintf("\n[[port]]\ndevice = %q\n", device) + interfaceText(device, name, 0, addresses...)
}

// interfaceText is an interface on a port, of one VLAN or (0) without a tag.
func interfaceText(device, name string, vlan uint16, addresses ...string) string {
	tag := ""
	if vlan != 0 {
		tag = fmt.Sprintf("vlan = %d\n", vlan)
	}
	return fmt.Sprintf("\n[[interface]]\nname = %q\nport = %q\n%saddresses = [\"%s\"]\n", name, device, tag, strings.Join(addresses, `", "`))
}

// Begin is the README's five commands: gw1 begins with a policy, the others join, and it waits until all have a vote and the witness, if there is one, leads.
func (t *Trio) Begin(ctx context.Context, policy string, within time.Duration) error {
	if err := t.GW1.Start(ctx, "--policy", policy); err != nil {
		return err
	}
	for _, n := range t.Nodes()[1:] {
		if err := n.join(ctx, t.GW1); err != nil {
			return fmt.Errorf("%s joins: %w", n.Name, err)
		}
	}
	if t.Witness != nil { // it comes to lead by itself three seconds after gw1 did
		if err := t.Whole(ctx, within, nil); err != nil {
			return err
		}
		_, _ = t.GW1.Run(ctx, "cluster", "lead", t.Witness.Name) // whether it does is seen below: the lead may be on its way already
	}
	return t.Whole(ctx, within, t.Witness)
}

func (n *Node) join(ctx context.Context, by *Node) error {
	args := []string{"cluster", "token"}
	if n.witness {
		args = append(args, "--role", "witness")
	}
	token, err := by.Run(ctx, args...)
	if err != nil {
		return err
	}
	// Nothing listens yet, so the command asks from its node's namespace.
	out, err := n.t.Exec(n.Name, n.t.o.Binary, "cluster", "join", by.Address, "--token", strings.TrimSpace(token), "--node", n.File)
	if err != nil {
		return fmt.Errorf("%w: %s", err, out)
	}
	return n.Start(ctx)
}

// Whole waits until every node that runs sees all of them with a vote and well, and lead leads; nil = whoever.
func (t *Trio) Whole(ctx context.Context, within time.Duration, lead *Node) error {
	var why string
	for end := time.Now().Add(within); ; {
		if why = t.lacks(ctx, lead); why == "" {
			return nil
		}
		if time.Now().After(end) {
			return fmt.Errorf("after %s: %s", within, why)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(20 * time.Millisecond):
		}
	}
}

func (t *Trio) lacks(ctx context.Context, lead *Node) string {
	for _, n := range t.Nodes() {
		m, err := n.Members(ctx)
		switch {
		case err != nil:
			return fmt.Sprintf("%s: %v", n.Name, err)
		case m.Leader == "":
			return n.Name + " knows nobody who leads"
		case lead != nil && m.Leader != lead.Name:
			return fmt.Sprintf("%s leads, by the word of %s", m.Leader, n.Name)
		case len(m.Members) != len(t.Nodes()):
			return fmt.Sprintf("%s knows %d members", n.Name, len(m.Members))
		}
		for _, x := range m.Members {
			if !x.Votes || x.Problem != "" || x.Answered == nil {
				return fmt.Sprintf("%s says of %s: vote %v, answered %v, %s", n.Name, x.Name, x.Votes, x.Answered != nil, x.Problem)
			}
		}
	}
	return ""
}

// Start runs the node and returns when it answers, and a gateway when packets flow.
func (n *Node) Start(ctx context.Context, args ...string) error {
	if err := n.Launch(args...); err != nil {
		return err
	}
	return n.Ready(ctx)
}

// Launch runs the node and waits for nothing.
func (n *Node) Launch(args ...string) error {
	verb := "run"
	if n.witness {
		verb = "witness"
	}
	n.runs++
	n.log = n.logOf(n.runs)
	log, err := os.Create(n.log)
	if err != nil {
		return err
	}
	defer log.Close()
	line := slices.Concat(n.Wrap, []string{cmp.Or(n.Binary, n.t.o.Binary), verb, "--node", n.File}, n.Args, args)
	cmd := n.t.Command(n.Name, line[0], line[1:]...)
	cmd.Env = append(cmd.Env, n.Env...)
	cmd.Stdout, cmd.Stderr = log, log
	// Ctrl-C reaches the whole group of a terminal: nodes are ended by Close, in order.
	cmd.SysProcAttr = &unix.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start %s: %w", n.Name, err)
	}
	ended := make(chan struct{})
	n.cmd, n.ended = cmd, ended
	go func() {
		n.err = cmd.Wait()
		close(ended)
	}()
	return nil
}

// Ready waits until a node that was launched answers, and a gateway until packets flow.
func (n *Node) Ready(ctx context.Context) error {
	ended := n.ended
	if ended == nil {
		return fmt.Errorf("%s was not started", n.Name)
	}
	for end := time.Now().Add(20 * time.Second); ; {
		_, err := n.Members(ctx)
		if err == nil && !n.witness {
			var s *api.Status
			if s, err = n.Status(ctx); err == nil && !s.Ready {
				err = errors.New(s.WhyNotReady)
			}
		}
		if err == nil {
			return nil
		}
		select {
		case <-ended:
			return fmt.Errorf("%s ended before it was ready (%v):\n%s", n.Name, n.err, n.Log(12))
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(10 * time.Millisecond):
		}
		if time.Now().After(end) {
			return fmt.Errorf("%s is not ready after 20 s: %w\n%s", n.Name, err, n.Log(12))
		}
	}
}

// Runs reports whether the node's process is there.
func (n *Node) Runs() bool {
	if n.cmd == nil {
		return false
	}
	select {
	case <-n.ended:
		return false
	default:
		return true
	}
}

// Pid is the process that does the work: of a gateway its data plane; 0 = it does not run.
func (n *Node) Pid() int {
	if !n.Runs() {
		return 0
	}
	return netlab.Worker(n.cmd.Process.Pid)
}

// Parent is the process that a gateway was started as, which waits for its data plane's end; 0 = it does not run.
func (n *Node) Parent() int {
	if !n.Runs() {
		return 0
	}
	return n.cmd.Process.Pid
}

// Kill ends the node's work without a word (SIGKILL), and returns when it is gone. Whoever waits for its death says so: see Vanish.
func (n *Node) Kill() {
	if n.cmd != nil {
		if pid := n.Pid(); pid != 0 {
			_ = unix.Kill(pid, unix.SIGKILL)
		}
		<-n.ended
	}
}

// Await returns when the node has ended: of one whose data plane was killed, when who waits for its death has said so.
func (n *Node) Await() {
	if n.cmd != nil {
		<-n.ended
	}
}

// Vanish ends all of the node without a word, as when its machine is gone.
func (n *Node) Vanish() {
	if n.cmd == nil {
		return
	}
	pid := n.Pid()
	if pid != 0 { // nobody is to say anything
		_ = unix.Kill(n.Parent(), unix.SIGSTOP)
		_ = unix.Kill(pid, unix.SIGKILL)
	}
	_ = n.cmd.Process.Kill()
	<-n.ended
	for end := time.Now().Add(10 * time.Second); pid != 0 && netlab.Lives(pid) && time.Now().Before(end); { // it is whoever's child now
		time.Sleep(time.Millisecond)
	}
}

// Stop ends the node in order.
func (n *Node) Stop() error { return n.end(unix.SIGTERM, false) }

// StopForRestart ends the node as the packaged unit does when it is restarted: SIGUSR1 to each of its processes at once. The ports stay prepared for the next one.
func (n *Node) StopForRestart() error { return n.end(unix.SIGUSR1, true) }

func (n *Node) end(signal unix.Signal, each bool) error {
	if !n.Runs() {
		return nil
	}
	pid := n.Pid()
	_ = n.cmd.Process.Signal(signal)
	if each && pid != n.cmd.Process.Pid {
		_ = unix.Kill(pid, signal)
	}
	select {
	case <-n.ended:
		if n.err != nil {
			return fmt.Errorf("%s ended with %w:\n%s", n.Name, n.err, n.Log(12))
		}
		return nil
	case <-time.After(8 * time.Second):
		if pid > 0 {
			_ = unix.Kill(pid, unix.SIGQUIT) // its log then says what it waits for
		}
		select {
		case <-n.ended:
		case <-time.After(2 * time.Second):
		}
		n.Kill()
		return fmt.Errorf("%s did not end within 8 s of %s:\n%s", n.Name, unix.SignalName(signal), n.Log(2000))
	}
}

// Log is the end of the node's log, since it was started last.
func (n *Node) Log(lines int) string { return endOf(n.log, lines) }

// Logs are the ends of all logs of the node, one each time that it was started.
func (n *Node) Logs(lines int) string {
	var all []string
	for i := range n.runs {
		all = append(all, fmt.Sprintf("started for the %d. time\n%s", i+1, endOf(n.logOf(i+1), lines)))
	}
	return strings.Join(all, "\n")
}

func (n *Node) logOf(run int) string {
	return filepath.Join(filepath.Dir(n.File), fmt.Sprintf("log-%d", run))
}

func endOf(file string, lines int) string {
	b, err := os.ReadFile(file)
	if err != nil {
		return err.Error()
	}
	all := bytes.Split(bytes.TrimSpace(b), []byte("\n"))
	return string(bytes.Join(all[max(0, len(all)-lines):], []byte("\n")))
}

// Run runs the command line against the node and returns what it printed. The error has what it complained of.
func (n *Node) Run(ctx context.Context, args ...string) (string, error) {
	c := exec.CommandContext(ctx, n.t.o.Binary, append([]string{"--socket", n.Socket}, args...)...)
	var out, bad bytes.Buffer
	c.Stdout, c.Stderr = &out, &bad
	if err := c.Run(); err != nil {
		return out.String(), fmt.Errorf("demarc %s on %s: %w: %s", strings.Join(args, " "), n.Name, err, bytes.TrimSpace(bad.Bytes()))
	}
	return out.String(), nil
}

// Apply applies a policy file by the command line. took is from before the command is started until it has ended.
func (n *Node) Apply(ctx context.Context, file string, args ...string) (a *api.Applied, took time.Duration, err error) {
	began := time.Now()
	out, err := n.Run(ctx, append([]string{"apply", file, "--json"}, args...)...)
	took = time.Since(began)
	if err != nil {
		return nil, took, err
	}
	a = new(api.Applied)
	return a, took, json.Unmarshal([]byte(out), a)
}

// Late names the gateways that have not acknowledged.
func Late(a *api.Applied) (why []string) {
	for _, s := range a.Nodes {
		if s.Why != "" {
			why = append(why, s.Node+": "+s.Why)
		}
	}
	return why
}

// Status asks a gateway.
func (n *Node) Status(ctx context.Context) (*api.Status, error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	s := new(api.Status)
	return s, n.Client.Get(ctx, api.PathStatus, s)
}

// Members asks any node.
func (n *Node) Members(ctx context.Context) (*api.Members, error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	m := new(api.Members)
	return m, n.Client.Get(ctx, api.PathMembers, m)
}

// Close ends everything, gateways in order.
func (t *Trio) Close() error {
	var errs []error
	for _, n := range t.Nodes() {
		if n != nil {
			errs = append(errs, n.Stop())
			n.Client.Close()
		}
	}
	return errors.Join(append(errs, t.Lab.Close())...)
}
