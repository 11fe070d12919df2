package roottest

import (
	"os"
	"testing"
)

// Require skips the test when it does not run as root; under CI (the variable CI is set) that is a failure instead,
// because a skip there would pass for coverage.
func Require(t testing.TB) {
	t.Helper()
	if os.Geteuid() == 0 {
		return
	}
	if os.Getenv("CI") == "" {
		t.Skip("needs root")
	}
	t.Fatal("needs root, and CI must not skip it")
}
