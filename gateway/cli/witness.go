package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os/signal"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"demarc/gateway"
)

func (a *app) witnessCmd() *cobra.Command {
	var node string
	c := command("witness --node FILE", "run the third vote of a pair of gateways, until SIGINT or SIGTERM",
		"Run a member of the cluster that has a vote and no ports: with a pair of gateways it makes the majority that lives when one of them\n"+
			"does not. It needs no root and some 35 MB. FILE has cluster.role = \"witness\"; `demarc cluster join` has made it a member before.\n"+
			"The commands of the cluster, policies included, can be asked of it as of any node.",
		cobra.NoArgs, func(cmd *cobra.Command, _ []string) error {
			if node == "" {
				return usageError{errors.New("--node is missing: name the node file")}
			}
			return a.witness(cmd, node)
		})
	c.Flags().StringVar(&node, "node", "", "node `file`")
	return c
}

func (a *app) witness(cmd *cobra.Command, node string) (err error) {
	defer func() { failed(err) }()
	n, err := readNode(cmd, node)
	if err != nil {
		return err
	}
	if !n.Witness() {
		return fmt.Errorf("%s: is a gateway's: start it with `demarc run --node %s`, or set role = \"witness\" in [cluster]", node, node)
	}
	out := newLogWriter(cmd.ErrOrStderr())
	defer out.Close(time.Second)
	lines := gateway.NewLogLines(logKept)
	log := logger(io.MultiWriter(lines, out), n.Log)
	defer onHangup(log)()
	signal.Ignore(syscall.SIGPIPE)
	behind := precede()
	w, err := gateway.OpenWitness(n, a.version, log, gateway.Wall)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(cmd.Context())
	defer cancel()
	defer context.AfterFunc(ctx, func() { notify("STOPPING=1", "STATUS=ending") })()
	return w.Run(ctx, func() {
		if behind != nil { // a start that fails has other reasons
			log.Info("this process does not come before others of the machine: where they keep it busy, its answers are late", "err", behind)
		}
		notify("READY=1", "STATUS="+w.Headline())
	})
}
