// Command demarc is a gateway that moves packets in user space over AF_XDP, its operator's tool, its lab and its bench.
package main

import (
	"os"

	"demarc/bench"
	"demarc/gateway/cli"
	"demarc/gateway/zerocopy"
)

// version is set by the linker: -X main.version=v1.2.3.
var version string

func main() {
	zerocopy.Init() // the same program is init of the guest that `demarc zerocopy` boots
	os.Exit(cli.Main(os.Args[1:], version, bench.Command(version)))
}
