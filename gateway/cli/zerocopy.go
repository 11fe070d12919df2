package cli

import (
	"fmt"

	"github.com/spf13/cobra"

	"demarc/gateway/zerocopy"
)

// exitStatus is a failure that has been told already and has an exit status of its own.
type exitStatus int

func (s exitStatus) Error() string { return fmt.Sprintf("exit status %d", int(s)) }

func zerocopyCmd() *cobra.Command {
	var cache string
	var console bool
	c := command("zerocopy", "show zero-copy forwarding on a real driver, in an emulated guest",
		"Boot a Linux guest under emulation with this program as init, forward between two of its network cards over AF_XDP in zero-copy\n"+
			"mode, judge every frame at the far side, and do the same in copy mode as the control. Fetches a kernel (about 36 MB, kept) and, as\n"+
			"root, an emulator. Exit status 0: every case held; 1: one did not; 3: the packages cannot be had, so nothing was shown.",
		cobra.NoArgs, func(*cobra.Command, []string) error {
			var args []string
			if cache != "" {
				args = append(args, "-cache", cache)
			}
			if console {
				args = append(args, "-console")
			}
			if status := zerocopy.Main(args); status != exitOK {
				return exitStatus(status)
			}
			return nil
		})
	c.Flags().StringVar(&cache, "cache", "", "`directory` for the fetched kernel (default demarc/zerocopy in the user's cache directory)")
	c.Flags().BoolVar(&console, "console", false, "show the guest's console on standard error")
	return c
}
