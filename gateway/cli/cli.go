package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"runtime/debug"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"demarc/configs"
	"demarc/gateway/api"
	"demarc/gateway/guard"
	"demarc/gateway/netlab"
)

// The exit statuses.
const (
	exitOK     = 0
	exitFailed = 1
	exitUsage  = 2
)

// DefaultSocket is where a node listens unless its node file says otherwise.
const DefaultSocket = "/var/lib/demarc/demarc.sock"

// What the environment says instead of --socket, --server and --keys.
const (
	socketEnv = "DEMARC_SOCKET"
	serverEnv = "DEMARC_SERVER"
	keysEnv   = "DEMARC_KEYS"
)

// app is what the commands of one invocation share.
type app struct {
	socket  string
	server  string // of a node elsewhere; "" = the socket
	keys    string // directory of a client's keys, for server
	given   func(flag string) bool
	json    bool
	version string
}

// usageError is a wrong call.
type usageError struct{ error }

// Usage tells it from other errors; commands of other packages have an error of their own with it.
func (usageError) Usage() {}

// errSilent is a failure that has been told already.
var errSilent = errors.New("failed")

// Main runs one command line and returns the exit status. It must be the first thing that a program calls: the lab's hosts are this
// same program under another command, and they must not become anything else.
func Main(args []string, version string, extra ...*cobra.Command) int {
	netlab.Init()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	// A second signal must end what the first did not. What a terminal or systemd tells both this process and its parent comes from the parent once more: that is no second one.
	context.AfterFunc(ctx, func() {
		if guard.Above() != nil {
			time.Sleep(time.Second)
		}
		stop()
	})
	root := New(version, extra...)
	root.SetArgs(args)
	return Execute(ctx, root)
}

// Execute runs root, prints its error and returns the exit status.
func Execute(ctx context.Context, root *cobra.Command) int {
	wantShell(root)
	cmd, err := root.ExecuteContextC(ctx)
	if err == nil {
		return exitOK
	}
	if errors.Is(err, errSilent) {
		return exitFailed
	}
	if status := exitStatus(0); errors.As(err, &status) {
		return int(status)
	}
	w := root.ErrOrStderr()
	report(w, err, ctx.Err() != nil)
	var u interface{ Usage() }
	if errors.As(err, &u) {
		fmt.Fprintf(w, "usage: %s\n", cmd.UseLine())
		fmt.Fprintf(w, "help:  %s --help\n", cmd.CommandPath())
		return exitUsage
	}
	return exitFailed
}

// report prints err, a line per problem. Problems of a file begin with its name, so that editors jump there. Whoever has interrupted a command is told that
// in words, once.
func report(w io.Writer, err error, interrupted bool) {
	var f *api.Fault
	if errors.As(err, &f) && len(f.Problems) > 0 {
		for _, p := range f.Problems {
			for line := range strings.SplitSeq(p.Text, "\n") { // of another node, all that it says
				fmt.Fprintln(w, clean(line))
			}
		}
		return
	}
	var list configs.ErrorList
	if errors.As(err, &list) {
		fmt.Fprintln(w, list.Error())
		return
	}
	last := ""
	for line := range strings.Lines(err.Error()) {
		if interrupted {
			line = strings.ReplaceAll(line, context.Canceled.Error(), "interrupted")
		}
		if line = strings.TrimSpace(line); line != "" && line != last {
			last = line
			fmt.Fprintf(w, "demarc: %s\n", clean(line))
		}
	}
}

// New makes the command tree. An empty version is what the build knows of itself.
func New(version string, extra ...*cobra.Command) *cobra.Command {
	a := &app{version: version}
	if a.version == "" {
		a.version = buildVersion()
	}
	socket := os.Getenv(socketEnv)
	if socket == "" {
		socket = DefaultSocket
	}
	root := &cobra.Command{
		Use:   "demarc COMMAND",
		Short: "A gateway in user space over AF_XDP: tenants, stateful ACL, NAT and rate limits",
		Long: "demarc is a Linux gateway that moves packets in user space over AF_XDP: tenants, stateful ACL, NAT and rate limits.\n" +
			"The same program runs the gateway, asks a running one, and shows itself in a lab.",
		Version:       a.version,
		SilenceErrors: true,
		SilenceUsage:  true,
		// Not nil, so that an unknown command comes to RunE and counts as wrong usage.
		Args: cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return usageError{errors.New("no command given")}
			}
			hint := ""
			if near := cmd.SuggestionsFor(args[0]); len(near) > 0 {
				hint = fmt.Sprintf(": did you mean %q?", near[0])
			}
			return usageError{fmt.Errorf("there is no command %q%s", args[0], hint)}
		},
	}
	root.SuggestionsMinimumDistance = 2
	root.SetVersionTemplate("demarc {{.Version}}\n")
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return usageError{err} })
	root.PersistentFlags().StringVar(&a.socket, "socket", socket, "socket of the node to ask ("+socketEnv+")")
	root.PersistentFlags().StringVar(&a.server, "server", os.Getenv(serverEnv), "`URL` of a node elsewhere, https://ADDRESS:PORT, instead of a socket ("+serverEnv+")")
	root.PersistentFlags().StringVar(&a.keys, "keys", os.Getenv(keysEnv), "`directory` of a client's keys, for --server ("+keysEnv+")")
	a.given = root.PersistentFlags().Changed
	root.AddGroup(&cobra.Group{ID: "node", Title: "Run a node:"}, &cobra.Group{ID: "policy", Title: "Change what it does:"},
		&cobra.Group{ID: "act", Title: "Act for the moment:"},
		&cobra.Group{ID: "see", Title: "See what it does:"}, &cobra.Group{ID: "try", Title: "Try it:"})
	group := func(id string, list ...*cobra.Command) {
		for _, c := range list {
			c.GroupID = id
		}
		root.AddCommand(list...)
	}
	group("node", a.runCmd(), a.witnessCmd(), a.doctorCmd(), a.supportCmd(), a.releaseCmd(), a.clusterCmd(), a.groupCmd(), a.nodeCmd())
	group("policy", a.checkCmd(), a.diffCmd(), a.applyCmd(), a.confirmCmd(), a.rollbackCmd(), a.historyCmd(), a.auditCmd(), a.showCmd(), a.exportCmd(), a.policyCmd())
	group("see", a.statusCmd(), a.sessionsCmd(), a.dropsCmd(), a.routesCmd(), a.neighboursCmd(), a.portsCmd(),
		a.explainCmd(), a.traceCmd(), a.captureCmd())
	group("act", a.blockCmd(), a.unblockCmd(), a.blocksCmd(), a.pingCmd(), a.tracerouteCmd())
	group("try", a.labCmd(), zerocopyCmd())
	group("try", extra...)
	root.AddCommand(a.versionCmd(), labHostCmd())
	return root
}

// wantShell makes `completion` without a shell that it knows a wrong call. The library takes the output that is set when it makes that command.
func wantShell(root *cobra.Command) {
	root.InitDefaultCompletionCmd()
	if c, _, err := root.Find([]string{"completion"}); err == nil {
		c.Args = cobra.ArbitraryArgs
		c.RunE = func(_ *cobra.Command, args []string) error {
			if len(args) > 0 {
				return usageError{fmt.Errorf("there is no completion for %q: name bash, zsh, fish or powershell", args[0])}
			}
			return usageError{errors.New("name a shell: bash, zsh, fish or powershell")}
		}
	}
}

// buildVersion is the commit that the binary was built from, as far as the build knows.
func buildVersion() string {
	rev, dirty := "", ""
	if b, ok := debug.ReadBuildInfo(); ok {
		for _, s := range b.Settings {
			switch {
			case s.Key == "vcs.revision":
				rev = s.Value
			case s.Key == "vcs.modified" && s.Value == "true":
				dirty = "-changed"
			}
		}
	}
	if rev == "" {
		return "dev"
	}
	return "dev-" + rev[:min(12, len(rev))] + dirty
}

// command fills in what all commands have in common: usage errors for a wrong number of arguments.
func command(use, short, long string, args cobra.PositionalArgs, run func(cmd *cobra.Command, args []string) error) *cobra.Command {
	return &cobra.Command{
		Use: use, Short: short, Long: long, RunE: run,
		Args: func(cmd *cobra.Command, list []string) error {
			err := args(cmd, list)
			if err == nil {
				return nil
			}
			for n := len(list) - 1; n >= 0; n-- { // the longest beginning that would do
				if args(cmd, list[:n]) == nil {
					return usageError{fmt.Errorf("%q is one argument too many", list[n])}
				}
			}
			if len(list) == 0 {
				return usageError{errors.New("it needs an argument")}
			}
			return usageError{fmt.Errorf("after %q an argument is missing", list[len(list)-1])}
		},
	}
}

// data is a command that prints data: for people, or as the wire struct with --json.
func (a *app) data(c *cobra.Command) *cobra.Command {
	c.Flags().BoolVar(&a.json, "json", false, "print JSON")
	return c
}

// ask calls fn with a client.
func (a *app) ask(fn func(c *api.Client) error) error {
	c, err := a.dial()
	if err != nil {
		return err
	}
	defer c.Close()
	return fn(c)
}

// get asks once for one struct and prints it.
func get[T any](a *app, cmd *cobra.Command, path string, human func(w io.Writer, v *T)) error {
	var v T
	if err := a.ask(func(c *api.Client) error { return c.Get(cmd.Context(), path, &v) }); err != nil {
		return err
	}
	return show(a, cmd, &v, human)
}

// show prints v in one write, so that a reader of a pipe never sees half of it.
func show[T any](a *app, cmd *cobra.Command, v *T, human func(w io.Writer, v *T)) error {
	var b bytes.Buffer
	if a.json {
		e := json.NewEncoder(&b)
		e.SetEscapeHTML(false)
		e.SetIndent("", "  ")
		if err := e.Encode(v); err != nil {
			return err
		}
	} else {
		human(&b, v)
	}
	_, err := cmd.OutOrStdout().Write(b.Bytes())
	return err
}

// read reads a file, or standard input for "-". source is the name under which errors and revisions remember it.
func read(cmd *cobra.Command, name string) (text []byte, source string, err error) {
	if name == "-" {
		text, err = io.ReadAll(io.LimitReader(cmd.InOrStdin(), api.MaxPolicy+1))
		source = "standard input"
	} else {
		var f *os.File
		if f, err = os.Open(name); err != nil {
			return nil, "", err
		}
		defer f.Close()
		if source, err = filepath.Abs(name); err != nil {
			source = name
		}
		text, err = io.ReadAll(io.LimitReader(f, api.MaxPolicy+1))
	}
	if err == nil && len(text) > api.MaxPolicy {
		err = fmt.Errorf("%s: more than %d MiB: no policy is that large", name, api.MaxPolicy>>20)
	}
	return text, source, err
}

// sleep waits, or says that ctx has ended.
func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}
