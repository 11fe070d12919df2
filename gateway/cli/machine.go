package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"demarc/configs"
	"demarc/gateway"
	"demarc/gateway/api"
	"demarc/gateway/doctor"
	"demarc/gateway/hostnet"
	"demarc/gateway/lab"
	"demarc/gateway/netlab"
	"demarc/gateway/revisions"
	"demarc/gateway/xsk"
)

func (a *app) doctorCmd() *cobra.Command {
	var node, policy string
	c := command("doctor [--node FILE [--policy FILE]]", "look at this machine and say what is wrong and the line that mends it",
		"Look at the kernel, and with a node file at its ports, queues, offloads, MTU, memory and where it meets its cluster, and print what was found: what is wrong comes with\n"+
			"the line that mends it. Of the policy (FILE, else the one that the node keeps) it says what would not be taken anew, and what its groups cannot promise. Changes nothing.\n"+
			"Exit status 1 when the gateway could not start or would forward wrongly.",
		cobra.NoArgs, func(cmd *cobra.Command, _ []string) error {
			var n *configs.Node
			if node != "" {
				var err error
				if n, err = readNode(cmd, node); err != nil {
					return err
				}
			}
			found := doctor.Check(n)
			of, wrong := doctorsPolicy(cmd, n, policy)
			found = append(found, of...)
			if err := show(a, cmd, &found, writeFindings); err != nil {
				return err
			}
			if wrong != nil { // its file has errors, and that says nothing about the machine
				return wrong
			}
			if slices.ContainsFunc(found, func(f doctor.Finding) bool { return f.Level == doctor.Bad }) {
				return errSilent
			}
			return nil
		})
	c.Flags().StringVar(&node, "node", "", "node `file`")
	c.Flags().StringVar(&policy, "policy", "", "policy `file`; left out = the one that the node keeps")
	return a.data(c)
}

// doctorsPolicy is what the doctor says of the policy that is named, else of the one that the node keeps, and of its groups.
func doctorsPolicy(cmd *cobra.Command, n *configs.Node, file string) ([]doctor.Finding, error) {
	if file != "" {
		text, source, err := read(cmd, file)
		if err != nil {
			return nil, err
		}
		p, err := configs.DecodePolicy(source, text)
		if err != nil {
			return nil, err
		}
		return append(doctor.Policy(p, n), doctor.Groups(p)...), nil
	}
	if n == nil || !gateway.KeepsPolicy(n) {
		return nil, nil
	}
	p, err := keptPolicy(n)
	if err != nil { // the start says what that means for it
		return []doctor.Finding{{Level: doctor.Warn, Subject: "policy", What: "the one that the node keeps cannot be looked at: " + err.Error()}}, nil
	}
	return append(doctor.Policy(p, n), doctor.Groups(p)...), nil
}

func keptPolicy(n *configs.Node) (*configs.Policy, error) {
	s, err := revisions.Open(filepath.Join(n.DataDir, "policies"))
	if err != nil {
		return nil, err
	}
	r, _, err := s.Latest()
	if err != nil {
		return nil, err
	}
	return configs.DecodePolicy(r.Meta.Source, r.Text)
}

func writeFindings(w io.Writer, list *[]doctor.Finding) {
	worst := map[doctor.Level]int{}
	for _, f := range *list {
		worst[f.Level]++
		fmt.Fprintf(w, "%-4s  %s: %s\n", f.Level, clean(f.Subject), clean(f.What))
		if f.Why != "" {
			fmt.Fprintf(w, "      %s\n", clean(f.Why))
		}
		if f.Mend != "" {
			fmt.Fprintf(w, "      mend: %s\n", clean(f.Mend))
		}
	}
	fmt.Fprintf(w, "%d bad, %d warn, %d info, %d ok\n", worst[doctor.Bad], worst[doctor.Warn], worst[doctor.Info], worst[doctor.OK])
}

// machine is what release touches, and where check looks for devices; tests replace it.
type machine struct {
	link     func(name string) (hostnet.Link, error)
	lock     func(ifindex int) (io.Closer, error)
	release  func(ifindex int) error
	settings func(dataDir, device string, ifindex int) (put string, err error)
}

var thisMachine = machine{hostnet.LinkByName, gateway.LockPort, xsk.Release, gateway.ReleaseSettings}

func (a *app) releaseCmd() *cobra.Command {
	var node string
	var force bool
	c := command("release PORT|DEVICE", "give a port back to the kernel",
		"Take demarc's XDP program off a network device, so that the kernel sees all of its traffic again. The program stays there, closed, when a\n"+
			"gateway ends, so that nothing leaks while it is gone; only this takes it off. A program that is not demarc's is left alone.\n"+
			"Settings of the device that a gateway changed and could not put back, because it was killed, are put back too; with --node when its\n"+
			"data directory is not the default one. Refused while a gateway serves the device, wherever that one has its socket.",
		cobra.ExactArgs(1), func(cmd *cobra.Command, args []string) error {
			p, err := a.device(cmd, args[0], node, force)
			if err != nil {
				return err
			}
			l, err := thisMachine.link(p.device)
			if err != nil {
				return fmt.Errorf("device %s: %w: name a device that `ip link` shows, or a port with the --node file that names its device", p.device, err)
			}
			// The lock tells what no socket can: a gateway that serves the device holds it, wherever its data directory is. Nor does one start in between.
			lock, err := thisMachine.lock(l.Index)
			var held *gateway.PortHeldError
			switch {
			case err == nil:
				defer lock.Close()
			case !errors.As(err, &held):
				return fmt.Errorf("device %s: whether a gateway serves it cannot be found out: %w", p.device, err)
			case !force:
				return fmt.Errorf("device %s is served by %s: stop it first, or say --force", p.device, clean(held.Error()))
			default:
				p.served = true
			}
			err = thisMachine.release(l.Index)
			if err == nil {
				fmt.Fprintf(cmd.OutOrStdout(), "%s belongs to the kernel again\n", p.device)
			} else if !errors.Is(err, xsk.ErrNotAttached) {
				return fmt.Errorf("%s: %w", p.device, err)
			}
			if p.served { // its gateway still wants the device as it is, and puts it back when it ends
				return nil
			}
			put, serr := thisMachine.settings(p.dataDir, p.device, l.Index)
			if put != "" {
				fmt.Fprintf(cmd.OutOrStdout(), "put back on %s: %s\n", p.device, put)
				if serr == nil {
					return nil
				}
			}
			if err = errors.Join(err, serr); err != nil {
				return fmt.Errorf("%s: %w", p.device, err)
			}
			return nil
		})
	c.Flags().StringVar(&node, "node", "", "node `file` in which PORT and the data directory are looked up")
	c.Flags().BoolVar(&force, "force", false, "also while a gateway serves it: transit then goes through the kernel's stack")
	return c
}

// released is a port that is to be given back.
type released struct {
	device, dataDir string
	served          bool // by a gateway that runs
}

// device finds the network device of a port by the node file and by a node that runs here, and refuses one that is being served.
func (a *app) device(cmd *cobra.Command, name, node string, force bool) (r released, err error) {
	r = released{device: name, dataDir: configs.DefaultDataDir}
	socket := a.socket
	if node != "" {
		n, err := readNode(cmd, node)
		if err != nil {
			return r, err
		}
		r.dataDir, socket = n.DataDir, a.socketOf(n)
		for _, p := range n.Ports {
			if p.Name == name {
				r.device = p.Device
			}
		}
	}
	ctx, cancel := context.WithTimeout(cmd.Context(), 5*time.Second)
	defer cancel()
	var served api.Ports
	c := api.Dial(socket) // whatever node --server names: devices are this machine's
	defer c.Close()
	if err := c.Get(ctx, api.PathPorts, &served); err != nil {
		return r, nil // nobody who answers there; the lock tells the rest
	}
	for i := range served.Ports {
		p := &served.Ports[i]
		if p.Device != r.device && (p.Name != name || node != "") {
			continue
		}
		if !force {
			return r, fmt.Errorf("device %s is served by the gateway at %s: stop it first, or say --force", p.Device, socket)
		}
		r.device, r.served = p.Device, true
		return r, nil
	}
	return r, nil
}

func (a *app) labCmd() *cobra.Command {
	var o lab.Options
	var cluster, pair bool
	c := command("lab", "build a lab in namespaces, run the gateway in it, and check what it promises",
		"Build two tenants and a public side in network namespaces of this machine, run the gateway between them over AF_XDP, send real traffic\n"+
			"through it and check each promise from the hosts' side. Ends by itself; exit status 1 when a promise did not hold. Needs root.\n\n"+
			"With --cluster it is two gateways and a witness: a policy is applied and reaches all of them, another one is tried with --confirm and taken back\n"+
			"because nobody confirms it, and traffic runs through both gateways all along.\n\n"+
			"With --pair it is a redundant pair and a witness: the gateway that serves is killed under a download and a call, comes back, and is handed the group again.",
		cobra.NoArgs, func(cmd *cobra.Command, _ []string) error {
			stages, run := lab.Stages, lab.Run
			switch {
			case cluster && pair:
				return usageError{errors.New("--cluster and --pair are two demos: say one")}
			case cluster:
				stages, run = lab.ClusterStages, lab.RunCluster
			case pair:
				stages, run = lab.PairStages, lab.RunPair
			}
			if (cluster || pair) && cmd.Flags().Changed("duration") {
				return usageError{errors.New("--duration is of the demo with one gateway: with --cluster and --pair what is shown takes its own time")}
			}
			if o.Break != "" && !slices.Contains(stages, o.Break) {
				return usageError{fmt.Errorf("--break %q: want one of %s", o.Break, strings.Join(stages, ", "))}
			}
			if o.Duration < lab.MinDuration {
				return usageError{fmt.Errorf("--duration %s: want at least %s, or the limit cannot be measured", o.Duration, lab.MinDuration)}
			}
			o.Out = cmd.OutOrStdout()
			if a.json {
				o.Out = nil
			}
			r, err := run(cmd.Context(), o)
			if err != nil {
				return err
			}
			if a.json {
				if err := show(a, cmd, &r, nil); err != nil {
					return err
				}
			}
			if !r.OK {
				return errSilent
			}
			return nil
		})
	c.Flags().BoolVar(&cluster, "cluster", false, "two gateways and a witness: an apply that reaches all, and one that nobody confirms")
	c.Flags().BoolVar(&pair, "pair", false, "a redundant pair and a witness: the one that serves is killed under traffic")
	c.Flags().BoolVar(&o.Keep, "keep", false, "leave the lab up after the verdict, until interrupted")
	c.Flags().DurationVar(&o.Duration, "duration", 15*time.Second, "of the traffic, at least 8s")
	c.Flags().StringVar(&o.Break, "break", "", "start the gateway with one stage off, to see that the lab notices: "+strings.Join(slices.Concat(lab.Stages, lab.ClusterStages, lab.PairStages), ", "))
	_ = c.Flags().MarkHidden("break") // it exists
	return a.data(c)
}

// labHostCmd is here for completeness of the tree: Main has become the lab's host before any command is looked at.
func labHostCmd() *cobra.Command {
	return &cobra.Command{Use: "lab-host TOOL", Short: "be a host of the lab", Hidden: true, DisableFlagParsing: true, RunE: func(_ *cobra.Command, args []string) error {
		os.Exit(netlab.Main(args))
		return nil
	}}
}

// built is what version prints as JSON.
type built struct {
	Version string `json:"version"`
	Go      string `json:"go"`
	System  string `json:"system"`
}

func (a *app) versionCmd() *cobra.Command {
	return a.data(command("version", "print the version", "Print the version of this program.", cobra.NoArgs, func(cmd *cobra.Command, _ []string) error {
		return show(a, cmd, &built{a.version, runtime.Version(), runtime.GOOS + "/" + runtime.GOARCH}, func(w io.Writer, b *built) {
			fmt.Fprintf(w, "demarc %s, %s, %s\n", b.Version, b.Go, b.System)
		})
	}))
}
