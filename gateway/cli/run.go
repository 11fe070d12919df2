package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"os/signal"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"demarc/configs"
	"demarc/gateway"
	"demarc/gateway/confine"
	"demarc/gateway/guard"
	"demarc/gateway/hostnet"
	"demarc/gateway/lab"
	"demarc/gateway/snapshot"
)

func (a *app) runCmd() *cobra.Command {
	var node, policy, broken string
	var seed uint64
	var wait time.Duration
	c := command("run --node FILE [--policy FILE]", "run the gateway until SIGINT or SIGTERM",
		"Run the gateway on this machine until SIGINT or SIGTERM. SIGHUP changes nothing.\n\n"+
			"The policy of --policy is served at the first start only, and its file need not be there later. From then on the node serves the last policy that\n"+
			"was applied to it, also after a crash; `demarc status` names it. Under systemd (Type=notify) the node says when it forwards.\n"+
			"Each port is prepared: what its device does to packets is switched off, said in the log and by `demarc ports`, and put back at the end;\n"+
			"not after SIGUSR1, which ends the gateway as well and says that the next one starts at once.\n"+
			"With --wait a start that comes before the ports, as at boot, waits for them; without, a port that is missing or down is refused at once.\n"+
			"The XDP programs stay on the ports, closed, when the gateway ends: `demarc release` takes them off.",
		cobra.NoArgs, func(cmd *cobra.Command, _ []string) error {
			if node == "" {
				return usageError{fmt.Errorf("--node is missing: name the node file")}
			}
			if broken != "" && broken != string(snapshot.BreakPoison) && !slices.Contains(lab.Stages, broken) {
				return usageError{fmt.Errorf("--break %q: want one of %s", broken, strings.Join(lab.Stages, ", "))}
			}
			if wait < 0 {
				return usageError{fmt.Errorf("--wait %s: want a time like 30s", wait)}
			}
			return a.run(cmd, node, policy, wait, snapshot.Break(broken), seed)
		})
	c.Flags().StringVar(&node, "node", "", "node `file`")
	c.Flags().StringVar(&policy, "policy", "", "policy `file` for the first start")
	c.Flags().DurationVar(&wait, "wait", 0, "how long to wait for ports that are missing or down, like 30s")
	c.Flags().StringVar(&broken, "break", "", "switch one stage off, for the lab's own test: "+strings.Join(lab.Stages, ", "))
	c.Flags().Uint64Var(&seed, "seed", 0, "of hashes and port choice, so that a test knows which worker a host belongs to; 0 = random")
	for _, name := range []string{"break", "seed"} {
		_ = c.Flags().MarkHidden(name) // it exists
	}
	return c
}

func (a *app) run(cmd *cobra.Command, node, policy string, wait time.Duration, broken snapshot.Break, seed uint64) (err error) {
	defer func() { failed(err) }()
	text, source, err := read(cmd, node)
	if err != nil {
		return err
	}
	n, err := configs.DecodeNode(source, text)
	if err != nil {
		return err
	}
	if n.Witness() {
		return fmt.Errorf("%s: is a witness's: start it with `demarc witness --node %s`", node, node)
	}
	behind := precede()
	above := guard.Above()
	if n.Cluster != nil && above == nil { // there are others who want to know of its death
		return guarded(node, text, n)
	}
	out := newLogWriter(cmd.ErrOrStderr())
	defer out.Close(time.Second) // before the error is told, which comes last
	lines := gateway.NewLogLines(logKept)
	log := logger(io.MultiWriter(lines, out), n.Log)
	defer onHangup(log)()
	signal.Ignore(syscall.SIGPIPE) // a log whose reader has gone is no reason to end; the default for standard error is to be killed
	o := gateway.Options{Node: n, NodeText: text, Lines: lines, Version: a.version, Log: log, Break: broken, Seed: seed, Parent: above}
	if policy != "" {
		o.Policy, o.Source, err = read(cmd, policy)
		switch {
		case errors.Is(err, fs.ErrNotExist) && gateway.KeepsPolicy(n): // it is for the first start alone, and a node that has joined never had one
			o.NoPolicy, o.Source = err, ""
			log.Info("no policy file: what is kept is served", "file", policy)
		case errors.Is(err, fs.ErrNotExist):
			return fmt.Errorf("%w, and no policy is kept in %s: write one, or have this node join a cluster first (demarc cluster join)", err, n.DataDir)
		case err != nil:
			return err
		}
	}
	ctx, cancel := context.WithCancel(cmd.Context())
	defer cancel()
	var made atomic.Pointer[gateway.Gateway] // what there is to tell of a restart
	again := make(chan os.Signal, 1)
	signal.Notify(again, syscall.SIGUSR1)
	defer signal.Stop(again)
	go func() { // ends with ctx
		select {
		case <-again:
		case <-above.Gone(): // the kernel has sent the same signal
			log.Warn("the parent process has ended: this one ends too, in order")
		case <-ctx.Done():
			return
		}
		if g := made.Load(); g != nil {
			g.KeepPorts()
		}
		cancel()
	}()
	if above != nil {
		go func() { // as long as the process
			<-above.Gone()
			time.Sleep(orphanTime)
			os.Exit(exitFailed) // it hangs
		}()
	}
	waitForPorts(ctx, n, wait, log)
	if ctx.Err() != nil {
		return nil // ended before it began
	}
	var g *gateway.Gateway
	ready := make(chan struct{})
	o.Ready = func() {
		confined(o.Log, n.DataDir)
		if behind != nil { // a start that fails has other reasons
			log.Info("this process does not come before others of the machine: where they keep it busy, copies of sessions are late", "err", behind)
		}
		notify("READY=1", "STATUS="+g.Headline())
		close(ready)
	}
	if g, err = gateway.New(o); err != nil {
		return rootHint(err, os.Geteuid())
	}
	made.Store(g)
	go func() { // ends with ctx
		select {
		case <-ready:
			feed(ctx, o.Log, g.Headline, g.Alive)
		case <-ctx.Done():
		}
	}()
	defer context.AfterFunc(ctx, func() { notify("STOPPING=1", "STATUS=ending") })()
	return rootHint(g.Run(ctx), os.Geteuid())
}

// orphanTime is how long a gateway may take to end whose parent process has ended: as long as systemd waits by the packaged unit.
const orphanTime = 20 * time.Second

// guarded has the same command line run once more, as the data plane, and waits for its end.
func guarded(node string, text []byte, n *configs.Node) error {
	c := guard.Config{Args: os.Args, Log: logger(os.Stderr, n.Log)}
	if node == "-" {
		c.Stdin = text // it cannot be read again
	}
	status, err := guard.Run(c)
	if err == nil && status != exitOK {
		err = exitStatus(status)
	}
	return err
}

// waitForPorts returns when all devices of the node file are there and up, or after a while, or when ctx ends; what is missing then the start says.
// A unit whose first start fails takes down at boot what requires it, although the second one would have succeeded.
func waitForPorts(ctx context.Context, n *configs.Node, most time.Duration, log *slog.Logger) {
	ctx, cancel := context.WithTimeout(ctx, most)
	defer cancel()
	for told := ""; ; {
		var missing []string
		for _, p := range n.Ports {
			if l, err := hostnet.LinkByName(p.Device); err != nil || !l.Up {
				missing = append(missing, p.Device)
			}
		}
		if len(missing) == 0 || ctx.Err() != nil {
			return
		}
		list := strings.Join(missing, " ")
		if told == "" {
			log.Info("waiting for ports to be there and up", "devices", list, "most", most)
		}
		if list != told {
			notify("STATUS=waiting for " + list + " to be there and up")
			told = list
		}
		sleep(ctx, 100*time.Millisecond)
	}
}

// confined gives up what only the start needed.
func confined(log *slog.Logger, dataDir string) {
	left, err := confine.Keep(confine.Running)
	if err != nil {
		log.Warn("the process keeps rights that it needed only to start", "err", err)
		return
	}
	log.Info("rights given up that only the start needed", "capabilities", left)
	// Root without its capabilities is a user like any other.
	if err := unix.Access(dataDir, unix.W_OK|unix.X_OK); err != nil {
		log.Warn("the data directory cannot be written without more rights, so no policy can be applied: let it belong to the user that runs demarc", "dir", dataDir, "err", err)
	}
}

// logKept is how many bytes of its last log lines a node keeps for `support`.
const logKept = 256 << 10

// onHangup has SIGHUP do nothing but say what would do something: whoever sends it wants a new policy served, or has closed the terminal,
// and neither is a reason to end a gateway. Its default would be that.
func onHangup(log *slog.Logger) (stop func()) {
	hup, done := make(chan os.Signal, 1), make(chan struct{})
	signal.Notify(hup, syscall.SIGHUP)
	go func() {
		for {
			select {
			case <-hup:
				log.Warn("SIGHUP changes nothing: a policy is served by `demarc apply FILE`, the node file is read at start")
			case <-done:
				return
			}
		}
	}()
	return func() { signal.Stop(hup); close(done) }
}

// rootHint says what is behind a refusal by the kernel when it is that we are not root. Capabilities may do as well, so it is no
// condition to start.
func rootHint(err error, euid int) error {
	if euid == 0 || !errors.Is(err, fs.ErrPermission) {
		return err
	}
	return fmt.Errorf("%w\nnot root: run demarc as root", err)
}

func readNode(cmd *cobra.Command, name string) (*configs.Node, error) {
	text, source, err := read(cmd, name)
	if err != nil {
		return nil, err
	}
	return configs.DecodeNode(source, text)
}

// logger writes as the node file wants; its values have been checked.
func logger(w io.Writer, c configs.Log) *slog.Logger {
	var o slog.HandlerOptions
	var level slog.Level
	if level.UnmarshalText([]byte(c.Level)) == nil {
		o.Level = level
	}
	if c.Format == "json" {
		return slog.New(slog.NewJSONHandler(w, &o))
	}
	return slog.New(slog.NewTextHandler(w, &o))
}
