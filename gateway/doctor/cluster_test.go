package doctor

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"demarc/cluster/transport"
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
		"no key":       {func(f *fake) { f.keysErr = fmt.Errorf("stat /keys/node.key: %w", fs.ErrNotExist) }, Bad, "/keys/node.key: file does not exist", "demarc cluster cert gw1"},
		"wrong keys":   {func(f *fake) { f.keysErr = errors.New("/keys/node.key: its mode is 0644") }, Bad, "/keys/node.key: its mode is 0644", ""},
		"not readable": {func(f *fake) { f.places = nil }, Warn, "the addresses of this machine cannot be read: no netlink", ""},
	} {
		f := healthy()
		f.node.Name, f.node.Cluster = "gw1", &configs.Cluster{Listen: "192.0.2.1:7400", Keys: "/keys"}
		f.places = map[netip.Addr]place{netip.MustParseAddr("192.0.2.1"): {"mgmt0", 1500, true}}
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

// TestWhereItIsAsked: an address of the interface that no device has is said, and is no reason not to start.
func TestWhereItIsAsked(t *testing.T) {
	for name, c := range map[string]struct {
		api  configs.API
		want string
	}{
		"well":      {configs.API{Metrics: "192.0.2.1:9090", Listen: "192.0.2.1:7443"}, ""},
		"nowhere":   {configs.API{Metrics: "127.0.0.1:9090"}, ""},
		"all":       {configs.API{Metrics: ":9090", Listen: "[::]:7443"}, ""},
		"elsewhere": {configs.API{Listen: "192.0.2.9:7443"}, "api.listen: 192.0.2.9:7443: no device that is up has that address"},
		"down":      {configs.API{Metrics: "192.0.2.2:9090"}, "api.metrics: 192.0.2.2:9090: no device that is up"},
	} {
		f := healthy()
		c.api.Socket = f.node.API.Socket
		f.node.API = c.api
		d := f.doctor()
		d.sys.places = func() (map[netip.Addr]place, error) {
			return map[netip.Addr]place{netip.MustParseAddr("192.0.2.1"): {"mgmt0", 1500, true}, netip.MustParseAddr("192.0.2.2"): {"mgmt1", 1500, false}}, nil
		}
		got := ""
		for _, x := range d.Check(&f.node) {
			if strings.HasPrefix(x.Subject, "api.") {
				if got += x.Subject + ": " + x.What; x.Level != Warn {
					t.Errorf("%s: %+v", name, x)
				}
			}
		}
		if !strings.HasPrefix(got, c.want) || c.want == "" && got != "" {
			t.Errorf("%s: %q, want %q", name, got, c.want)
		}
	}
}

// TestKeysOfTheInterface: keys with which the node would not start are said, by the words of the start, and nothing is changed. Without a place to listen at they do not matter.
func TestKeysOfTheInterface(t *testing.T) {
	a, err := transport.NewAuthority(filepath.Join(t.TempDir(), "ca"), "cluster", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		do   func(dir string) error
		mend string
	}{
		"well":           {func(string) error { return nil }, ""},
		"open to others": {func(dir string) error { return os.Chmod(filepath.Join(dir, "node.key"), 0o644) }, ""},
		"not there":      {func(dir string) error { return os.Remove(filepath.Join(dir, "node.crt")) }, "demarc cluster cert gw1"},
		"a key that waits": {func(dir string) error {
			return os.Rename(filepath.Join(dir, "node.key"), filepath.Join(dir, "node.key.new"))
		}, "demarc cluster cert gw1"},
		"a new key that waits beside the old one": {func(dir string) error {
			old, err := os.ReadFile(filepath.Join(dir, "node.key"))
			if err == nil {
				err = a.Issue(dir, "gw1", time.Now())
			}
			if err == nil {
				err = os.Rename(filepath.Join(dir, "node.key"), filepath.Join(dir, "node.key.new"))
			}
			if err == nil {
				err = os.WriteFile(filepath.Join(dir, "node.key"), old, 0o600)
			}
			return err
		}, ""},
	} {
		dir := t.TempDir()
		if err := a.Issue(dir, "gw1", time.Now()); err != nil {
			t.Fatal(err)
		}
		if err := c.do(dir); err != nil {
			t.Fatal(err)
		}
		before, err := os.ReadDir(dir)
		if err != nil {
			t.Fatal(err)
		}
		f := healthy()
		f.node.Name, f.node.API = "gw1", configs.API{Listen: "127.0.0.1:7443", Keys: dir}
		d := f.doctor()
		d.sys.keys = thisMachine().keys
		var found []Finding
		for _, x := range d.Check(&f.node) {
			if x.Subject == "api.keys" {
				found = append(found, x)
			}
		}
		after, err := os.ReadDir(dir)
		if err != nil || fmt.Sprint(before) != fmt.Sprint(after) {
			t.Errorf("%s: %v was made %v: %v", name, before, after, err)
		}
		_, want := transport.OpenKeyring(dir, time.Now, nil)
		if (want == nil) != (len(found) == 0) {
			t.Fatalf("%s: %+v, and the start says %v", name, found, want)
		}
		if want != nil && (found[0].Level != Bad || found[0].What != want.Error() || !strings.HasPrefix(found[0].Mend, c.mend) || c.mend == "" && found[0].Mend != "") {
			t.Errorf("%s: %+v, and the start says %v", name, found, want)
		}
		f.node.API.Listen = ""
		for _, x := range d.Check(&f.node) {
			if x.Subject == "api.keys" {
				t.Errorf("%s, and nobody is to ask over TCP: %+v", name, x)
			}
		}
	}
}
