package hostnet

import (
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"demarc/gateway/netlab/roottest"
)

func TestAllMulticastLastsAsLongAsItIsOpen(t *testing.T) {
	roottest.Require(t)
	receives := func() bool { // IFF_ALLMULTI as the driver sees it
		b, err := os.ReadFile("/sys/class/net/lo/flags")
		if err != nil {
			t.Fatal(err)
		}
		n, err := strconv.ParseUint(strings.TrimSpace(string(b)), 0, 32)
		if err != nil {
			t.Fatal(err)
		}
		return n&0x200 != 0
	}
	if receives() {
		t.Fatal("somebody else has lo receive all multicast: the test cannot tell")
	}
	m, err := ReceiveAllMulticast(1)
	if err != nil {
		t.Fatal(err)
	}
	if !receives() {
		t.Error("not while open")
	}
	for range 2 {
		if err := m.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if receives() {
		t.Error("still after close")
	}
	if _, err := ReceiveAllMulticast(1 << 30); err == nil {
		t.Error("a device that is not there was accepted")
	}
}

func TestAVirtualMACIsReceivedAsLongAsItIsOpen(t *testing.T) {
	namespace(t, 1)
	l, err := LinkByName("dmh0")
	if err != nil {
		t.Fatal(err)
	}
	mac := [6]byte{0, 0, 0x5e, 0, 1, 7}
	receives := func() bool { // the device's own filter, as `bridge fdb` shows it
		list, err := netlink.NeighList(l.Index, unix.AF_BRIDGE)
		if err != nil {
			t.Fatal(err)
		}
		return slices.ContainsFunc(list, func(n netlink.Neigh) bool {
			return slices.Equal(n.HardwareAddr, mac[:]) && n.Flags&netlink.NTF_SELF != 0
		})
	}
	if receives() {
		t.Fatal("received before anything")
	}
	a, err := ReceiveMAC(l.Index, mac)
	if err != nil {
		t.Fatal(err)
	}
	b, err := ReceiveMAC(l.Index, mac) // somebody else may want it too
	if err != nil {
		t.Fatal(err)
	}
	if !receives() {
		t.Error("not while open")
	}
	if err := a.Close(); err != nil || !receives() {
		t.Errorf("not while the other one is open (%v)", err)
	}
	if err := b.Close(); err != nil || receives() {
		t.Errorf("still after close (%v)", err)
	}
	if _, err := ReceiveMAC(1<<30, mac); err == nil {
		t.Error("a device that is not there was accepted")
	}
}
