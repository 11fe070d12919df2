package bpf

import (
	"testing"

	"demarc/gateway/archtest/regen"
)

// The committed objects are what the sources say.
func TestGeneratedFilesAreCurrent(t *testing.T) { regen.Current(t, "pktgen", "talk") }
