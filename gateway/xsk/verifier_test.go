package xsk

import (
	"net"
	"testing"

	"demarc/gateway/netlab/roottest"
)

// The verifier gives up at a million instructions, and counts more of them on newer kernels. What it walks is also what a start
// waits for: 878,000 took half a second a port.
func TestTheVerifierIsFarFromItsLimit(t *testing.T) {
	roottest.Require(t)
	lo, err := net.InterfaceByName("lo")
	if err != nil {
		t.Fatal(err)
	}
	p, err := LoadProgram(ProgramConfig{Ifindex: lo.Index, Queues: 1}, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	info, err := p.prog.Info()
	if err != nil {
		t.Fatal(err)
	}
	n, ok := info.VerifiedInstructions()
	if !ok {
		t.Fatal("this kernel does not say how many instructions it verified")
	}
	t.Logf("%d instructions verified", n)
	if n > 100000 {
		t.Errorf("%d instructions verified, want at most 100,000", n)
	}
}
