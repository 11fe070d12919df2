package bpf

import (
	"testing"

	"demarc/gateway/archtest/regen"
)

// The committed objects are what the source says.
func TestGeneratedFilesAreCurrent(t *testing.T) { regen.Current(t, "cruise", "transmit") }
