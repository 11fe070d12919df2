package cli

import (
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"demarc/configs"
	"demarc/gateway"
)

// recoverCmd works on the files of a node that does not run.
func (a *app) recoverCmd() *cobra.Command {
	var id, dir string
	c := command("recover", "make this node the only member of its cluster, when the others are lost for good",
		"Make the node of a data directory the only voter of its cluster again, when a majority of the voters is lost for good, or when log or snapshots of\n"+
			"a cluster of one are damaged. What only the lost members knew is lost; they are forgotten and refused when they come back. Stop the\n"+
			"node first. Without --cluster-id it says what it would do and changes nothing; see docs/recovery.md before you give one.",
		cobra.NoArgs, func(cmd *cobra.Command, _ []string) error {
			r, err := gateway.RecoverCluster(dir, id)
			out := cmd.OutOrStdout()
			tell := func(would string) {
				fmt.Fprintf(out, "cluster    %s\n", r.Cluster)
				fmt.Fprintf(out, "state      revision %d, entry %d\n", r.Serving, r.Index)
				if r.Damage != nil {
					fmt.Fprintf(out, "damage     %v\n           the state is from this node's copy of it\n", r.Damage)
				}
				fmt.Fprintf(out, "%s  %s\n", would, orNobody(r.Gone))
			}
			switch {
			case err != nil && r.Cluster != "" && id == "":
				tell("to forget")
				return usageError{fmt.Errorf("nothing was changed: if the others are lost for good, say --cluster-id %s", r.Cluster)}
			case err != nil:
				return err
			}
			tell("forgotten")
			recovered(out, r.Aside)
			return nil
		})
	c.Flags().StringVar(&id, "cluster-id", "", "`id` of the cluster, spelled out so that nothing happens by accident")
	c.Flags().StringVar(&dir, "data-dir", configs.DefaultDataDir, "the node's data `directory`")
	return c
}

func recovered(out io.Writer, aside string) {
	if aside != "" {
		fmt.Fprintf(out, "put aside  %s\n", aside)
	}
	fmt.Fprintln(out, "this node is the only member now: start it, then join new ones")
}

func orNobody(names []string) string {
	if len(names) == 0 {
		return "nobody: it is the only member"
	}
	return strings.Join(names, ", ")
}
