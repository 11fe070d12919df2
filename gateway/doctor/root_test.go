package doctor

import (
	"runtime"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"

	"demarc/configs"
	"demarc/gateway/hostnet"
	"demarc/gateway/netlab/roottest"
)

// TestThisMachine asks the real kernel about a real veth, first neglected, then as the lines that mend say.
func TestThisMachine(t *testing.T) {
	roottest.Require(t)
	runtime.LockOSThread() // never unlocked: the namespace ends with the thread
	ns, err := netns.New()
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	v := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "dmd0", MTU: 1500, TxQLen: -1}, PeerName: "dmd1"}
	if err := netlink.LinkAdd(v); err != nil {
		t.Fatal(err)
	}
	defer netlink.LinkDel(v)
	node := &configs.Node{
		Workers: configs.Workers{Count: 1}, Tables: configs.Tables{Sessions: 1024, Frames: 256},
		Ports: []configs.Port{{Name: "a", Device: "dmd0", Mode: "auto"}, {Name: "none", Device: "dmd9"}},
	}
	find := func(level Level, subject, what string) bool {
		t.Helper()
		for _, f := range Check(node) {
			if f.Level == level && f.Subject == subject && strings.Contains(f.What, what) {
				return true
			}
		}
		return false
	}
	for _, c := range []struct {
		level         Level
		subject, what string
	}{
		{OK, "privileges", ""}, {OK, "kernel", "version"}, {OK, "af_xdp", ""}, {OK, "bpf", ""},
		{Bad, "port none", "no device dmd9"},
		{Bad, "port a", "dmd0 is down"},
		{Warn, "port a", "on at this end"},
		{Info, "port a", "veth"},
		{OK, "port a", "mode auto gives copy"},
	} {
		if !find(c.level, c.subject, c.what) {
			t.Errorf("not told: %v %s %s\n%+v", c.level, c.subject, c.what, Check(node))
		}
	}
	node.Ports = node.Ports[:1]
	for _, name := range []string{"dmd0", "dmd1"} {
		l, err := netlink.LinkByName(name)
		if err != nil {
			t.Fatal(err)
		}
		if err := netlink.LinkSetUp(l); err != nil {
			t.Fatal(err)
		}
		if err := hostnet.SetOffloads(name, false, hostnet.TxChecksum, hostnet.TSO, hostnet.GSO, hostnet.GRO, hostnet.TxVLAN, hostnet.RxVLAN, hostnet.TxSTag, hostnet.RxSTag); err != nil {
			t.Fatal(err)
		}
	}
	if !find(OK, "port a", "dmd0 is up, mtu 1500, 1 queues, driver veth") {
		t.Errorf("after mending: %+v", Check(node))
	}
	l, err := hostnet.LinkByName("dmd0")
	if err != nil || l.XDP != (hostnet.XDP{}) {
		t.Errorf("the doctor left something on the device: %+v, %v", l.XDP, err)
	}
}
