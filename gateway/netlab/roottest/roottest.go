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

// MostlyWaits begins a test that waits most of its time and measures no rate, no gap and no last packet of a fast stream: it runs at the same time as another that says
// so. What says nothing runs alone. It is the first statement of the test, where archtest/testrun looks for it.
func MostlyWaits(t *testing.T) {
	t.Helper()
	t.Parallel()
}
