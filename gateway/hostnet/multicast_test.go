package hostnet

import (
	"testing"

	"github.com/vishvananda/netlink"

	"demarc/gateway/netlab/roottest"
)

func TestAllMulticastLastsAsLongAsItIsOpen(t *testing.T) {
	roottest.Require(t)
	count := func() int {
		l, err := netlink.LinkByName("lo")
		if err != nil {
			t.Fatal(err)
		}
		return l.Attrs().Allmulti
	}
	before := count()
	m, err := ReceiveAllMulticast(1)
	if err != nil {
		t.Fatal(err)
	}
	if n := count(); n != before+1 {
		t.Errorf("allmulti count %d while open, want %d", n, before+1)
	}
	for range 2 {
		if err := m.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if n := count(); n != before {
		t.Errorf("allmulti count %d after close, want %d", n, before)
	}
	if _, err := ReceiveAllMulticast(1 << 30); err == nil {
		t.Error("a device that is not there was accepted")
	}
}
