package hostnet

import (
	"os"
	"strconv"
	"strings"
	"testing"

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
