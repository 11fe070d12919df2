package cli

import (
	"errors"
	"fmt"

	"github.com/spf13/cobra"
)

func (a *app) clusterCmd() *cobra.Command {
	c := command("cluster COMMAND", "keys, and the nodes that share one policy", "Make keys for those who ask nodes over TCP.", cobra.ArbitraryArgs, func(_ *cobra.Command, args []string) error {
		if len(args) == 0 {
			return usageError{errors.New("no command given")}
		}
		return usageError{fmt.Errorf("there is no command \"cluster %s\"", args[0])}
	})
	c.AddCommand(a.clientCmd(), a.recoverCmd())
	return c
}
