package xsk

import (
	"errors"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// What an operator reads when the machine cannot: the kernel's error, and what would be right.
func TestEachRefusalSaysWhatWouldBeRight(t *testing.T) {
	for _, c := range []struct {
		err  error
		want string
	}{
		{unix.EAFNOSUPPORT, "this kernel has no AF_XDP: it needs CONFIG_XDP_SOCKETS"},
		{unix.EPERM, "run as root"},
		{unix.ENOBUFS, "locked memory is used up"},
		{unix.EBUSY, "holds this queue"},
		{unix.EOPNOTSUPP, "no zero-copy"},
		{unix.ENODEV, "no such device"},
		{unix.ENETDOWN, "the device is down"},
	} {
		got := explain("create", c.err)
		if !errors.Is(got, c.err) || !strings.Contains(got.Error(), c.want) || strings.Contains(got.Error(), "\n") {
			t.Errorf("%v: %q, want it to say %q in one line", c.err, got, c.want)
		}
	}
}
