package roottest

import (
	"os"
	"testing"
)

// Require skips the test when it does not run as root; see Missing.
func Require(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		Missing(t, "root")
	}
}

// Missing ends a test that cannot show what it is there for, since something is not to be had: it is skipped, and under CI (the variable CI is set) it fails, because a skip there would pass for
// coverage. No other code skips a test.
func Missing(t testing.TB, what string, args ...any) {
	t.Helper()
	if os.Getenv("CI") == "" {
		t.Skipf("needs "+what, args...)
	}
	t.Fatalf("needs "+what+", and CI must not skip it", args...)
}

// MostlyWaits begins a test that waits most of its time and measures no rate, no gap and no last packet of a fast stream: it runs at the same time as others that say
// so, behind all tests of its package that say nothing, and so run alone. It is the first statement of the test.
func MostlyWaits(t *testing.T) {
	t.Helper()
	t.Parallel()
}
