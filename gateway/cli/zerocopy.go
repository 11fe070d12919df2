package cli

import (
	"os"

	"github.com/spf13/cobra"

	"demarc/gateway/zerocopy"
)

func zerocopyCmd() *cobra.Command {
	return &cobra.Command{Use: "zerocopy [flags]", Short: "show zero-copy forwarding on a real driver, in an emulated guest",
		Long: "Boot a Linux guest under emulation with this program as init, forward between two of its network cards over AF_XDP in zero-copy\n" +
			"mode, judge every frame at the far side, and do the same in copy mode as the control. Fetches a kernel (about 36 MB, kept) and, as\n" +
			"root, an emulator. Exit status 0: every case held; 1: one did not; 3: the packages cannot be had, so nothing was shown.",
		DisableFlagParsing: true, // zerocopy.Main reads its own, and its exit status has a third meaning
		RunE: func(_ *cobra.Command, args []string) error {
			os.Exit(zerocopy.Main(args))
			return nil
		}}
}
