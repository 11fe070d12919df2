package cli

import (
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"demarc/gateway/api"
)

func (a *app) clusterNoteCmd() *cobra.Command {
	return a.data(command("note TEXT", "write a line into the audit log", "Write TEXT into the audit log.", cobra.ExactArgs(1), func(cmd *cobra.Command, args []string) error {
		var c api.Members
		if err := a.ask(func(cl *api.Client) error {
			return cl.Post(cmd.Context(), api.PathNote, api.NoteRequest{Text: args[0]}, &c)
		}); err != nil {
			return err
		}
		return show(a, cmd, &c, func(w io.Writer, _ *api.Members) { fmt.Fprintln(w, "noted") })
	}))
}
