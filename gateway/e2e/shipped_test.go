package e2e

import (
	"bytes"
	"os"
	"strings"
	"testing"
)

// What is shipped has no fault that can be put into it, and its clocks cannot be told: neither the names of what does that, nor what it is told by, are in the program.
func TestNoPlantIsShipped(t *testing.T) {
	shipped, err := os.ReadFile(program(t))
	check(t, err)
	planted, err := os.ReadFile(plantProgram(t))
	check(t, err)
	for _, name := range []string{"DEMARC_PLANT", "DEMARC_CLOCK_RATE", "DEMARC_CLOCK_BASE", "DEMARC_WALL",
		"demarc/cluster/failover.Plant", "demarc/gateway/replica.AddPlant", "demarc/gateway/worker.Plant", "demarc/gateway/worker.Pace", "demarc/gateway.(*Gateway).announceAlways", "unplanted.go" /* turned round */} {
		with, without := planted, shipped
		if strings.HasPrefix(name, "unplanted") {
			with, without = shipped, planted
		}
		if bytes.Contains(without, []byte(name)) {
			t.Errorf("%q is in the wrong program", name)
		}
		if !bytes.Contains(with, []byte(name)) {
			t.Errorf("%q is not found where it is: the test sees nothing", name)
		}
	}
}
