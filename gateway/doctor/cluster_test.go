package doctor

import (
	"errors"
	"net/netip"
	"strings"
	"testing"

	"demarc/configs"
)

// TestClusterFindings: what a node needs to meet the others is there or is said, with the line that mends it.
func TestClusterFindings(t *testing.T) {
	for name, c := range map[string]struct {
		change func(f *fake)
		level  Level
		what   string
		mend   string
	}{
		"well":         {func(*fake) {}, OK, "listen 192.0.2.1:7400 on mgmt0, MTU 1500", ""},
		"elsewhere":    {func(f *fake) { f.node.Cluster.Listen = "192.0.2.9:7400" }, Bad, "listen 192.0.2.9:7400: no device of this machine has that address", "ip addr add 192.0.2.9/LENGTH"},
		"everywhere":   {func(f *fake) { f.node.Cluster.Listen = "0.0.0.0:7400" }, OK, "every address of this machine", ""},
		"down":         {func(f *fake) { f.places[netip.MustParseAddr("192.0.2.1")] = place{"mgmt0", 1500, false} }, Bad, "mgmt0 is down", "ip link set mgmt0 up"},
		"small":        {func(f *fake) { f.places[netip.MustParseAddr("192.0.2.1")] = place{"mgmt0", 1000, true} }, Warn, "the MTU of mgmt0 is 1000", "ip link set mgmt0 mtu 1280"},
		"a path":       {func(f *fake) { f.node.Cluster.Paths = []string{"198.51.100.1:7400"} }, Warn, "path 198.51.100.1:7400: no device", "ip addr add"},
		"no key":       {func(f *fake) { delete(f.files, "/keys/node.key") }, Bad, "/keys/node.key cannot be read", "demarc cluster cert gw1"},
		"not readable": {func(f *fake) { f.places = nil }, Warn, "the addresses of this machine cannot be read: no netlink", ""},
	} {
		f := healthy()
		f.node.Name, f.node.Cluster = "gw1", &configs.Cluster{Listen: "192.0.2.1:7400", Keys: "/keys"}
		f.places = map[netip.Addr]place{netip.MustParseAddr("192.0.2.1"): {"mgmt0", 1500, true}}
		for _, n := range []string{"ca.crt", "node.crt", "node.key"} {
			f.files["/keys/"+n] = "x"
		}
		c.change(f)
		d := f.doctor()
		d.sys.places = func() (map[netip.Addr]place, error) {
			if f.places == nil {
				return nil, errors.New("no netlink")
			}
			return f.places, nil
		}
		found, bad := false, 0
		for _, x := range d.Check(&f.node) {
			if x.Subject != "cluster" {
				continue
			}
			if x.Level != OK {
				bad++
			}
			found = found || x.Level == c.level && strings.Contains(x.What, c.what) && strings.Contains(x.Mend, c.mend)
		}
		if !found || bad > 1 || c.level == OK && bad > 0 {
			t.Errorf("%s: %+v", name, d.out)
		}
	}
	f := healthy()
	for _, x := range f.doctor().Check(&f.node) {
		if x.Subject == "cluster" {
			t.Errorf("a node by itself: %+v", x)
		}
	}
	if all, err := places(); err != nil || len(all) == 0 {
		t.Errorf("this machine has the addresses %v, %v", all, err)
	}
}
