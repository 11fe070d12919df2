package main

import (
	"strings"
	"testing"
)

func TestCPUTicks(t *testing.T) {
	all, stolen, err := cpuTicks("cpu  10 20 30 40 5 0 7 88 3 2\ncpu0 1 1 1 1 1 1 1 1 0 0\n")
	if err != nil || all != 200 || stolen != 88 {
		t.Errorf("%v of %v, %v", stolen, all, err)
	}
	for _, bad := range []string{"", "cpu0 1 2 3 4 5 6 7 8", "cpu 1 2 3", "cpu 1 2 3 4 5 6 7 x"} {
		if _, _, err := cpuTicks(bad); err == nil {
			t.Errorf("%q is taken for the first line of /proc/stat", bad)
		}
	}
	if said := watchStolen()(); !strings.Contains(said, "of its processors' time to others") {
		t.Error(said)
	}
}
