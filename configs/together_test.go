package configs

import (
	"errors"
	"fmt"
	"strings"
	"testing"
)

func TestCheckTogether(t *testing.T) {
	policy := `schema = 1
[backbone]
interfaces = ["wan", "wan2", "nowhere"]
[[route]]
prefix = "0.0.0.0/0"
via = "198.51.100.1"
[[route]]
prefix = "10.0.0.0/8"
via = "203.0.113.1"
[[route]]
prefix = "::/0"
via = "fe80::1"
interface = "wan"
[[tenant]]
name = "a"
interfaces = ["inn"]
prefixes = ["198.18.0.0/24"]
[[tenant]]
name = "b"
interfaces = ["b"]
prefixes = ["198.18.10.0/24", "198.18.99.0/24", "2001:db8:b::/64"]
[tenant.nat]
pool = ["203.0.113.255", "203.0.113.8-203.0.113.9", "192.0.2.77"]
[[tenant.nat.static]]
public = "203.0.113.1"
inside = "198.18.10.5"
[[tenant.nat.forward]]
public = "203.0.113.9"
proto = "tcp"
port = 22
inside = "198.18.10.5"
[[tenant.nat.forward]]
public = "203.0.113.9"
proto = "udp"
port = 22
inside = "198.18.10.5"
`
	node := `schema = 1
[tables]
tenants = 1
[[port]]
device = "eth0"
[port.host]
addresses = ["192.0.2.64/26"]
shared = ["203.0.113.9"]
[[port]]
device = "eth1"
[[interface]]
name = "wan"
port = "eth0"
addresses = ["203.0.113.1/24", "2001:db8::1/64"]
[[interface]]
name = "wan2"
port = "eth0"
vlan = 2
addresses = ["203.0.113.130/25"]
[[interface]]
name = "in"
port = "eth1"
addresses = ["198.18.0.1/24"]
[[interface]]
name = "b"
port = "eth1"
vlan = 3
addresses = ["198.18.10.1/24"]
`
	n, err := DecodeNode("node.toml", []byte(node))
	if err != nil {
		t.Fatal(err)
	}
	p := decodePolicy(t, policy)
	err = CheckTogether(p, n)
	if err == nil {
		t.Fatal("nothing was found")
	}
	golden(t, "testdata/together.txt", err.Error()+"\n")

	// Without the texts the same is found; only the lines are not known.
	p.src, n.src = nil, nil
	bare := CheckTogether(p, n)
	if a, b := strings.Count(err.Error(), "\n"), strings.Count(bare.Error(), "\n"); a != b {
		t.Errorf("%d problems with lines, %d without", a+1, b+1)
	}
}

// Whoever takes the router's address as one of its own answers for it, and reaches nobody any more.
func TestThePoolHasNoRouterInIt(t *testing.T) {
	const policy = "schema = 1\n[backbone]\ninterfaces = [\"wan\"]\n[[route]]\nprefix = \"0.0.0.0/0\"\nvia = \"203.0.113.1\"\n[[tenant]]\nname = \"a\"\ninterfaces = [\"a\"]\nprefixes = [\"198.18.0.0/24\"]\n[tenant.nat]\n"
	const node = "schema = 1\n[[port]]\ndevice = \"eth0\"\n[[port]]\ndevice = \"eth1\"\n[[interface]]\nname = \"wan\"\nport = \"eth0\"\naddresses = [\"203.0.113.2/24\"]\nmss_clamp = 1400\n[[interface]]\nname = \"a\"\nport = \"eth1\"\naddresses = [\"198.18.0.1/24\"]\n"
	n, err := DecodeNode("n.toml", []byte(node))
	if err != nil {
		t.Fatal(err)
	}
	if n.Interfaces[0].MSSClamp != "1400" {
		t.Errorf("mss_clamp = 1400 is %q", n.Interfaces[0].MSSClamp)
	}
	for _, c := range []struct{ nat, want string }{
		{"pool = [\"203.0.113.1-203.0.113.10\"]\n", "p.toml:12: tenant[1].nat.pool: \"203.0.113.1-203.0.113.10\" holds 203.0.113.1, the next hop of a route"},
		{"pool = [\"203.0.113.3-203.0.113.10\"]\n", ""},
		{"[[tenant.nat.static]]\npublic = \"203.0.113.1\"\ninside = \"198.18.0.9\"\n", "the next hop of a route"},
	} {
		err := CheckSound(decodePolicy(t, policy+c.nat), n, [2]uint16{})
		if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", c.nat, err, c.want)
		}
	}
}

// A port that the kernel may take for a connection of its own is handed to the host on an address that both have: no forward of it ever gets through.
func TestForwardsOfTheHostsOwnRange(t *testing.T) {
	const policy = "schema = 1\n[backbone]\ninterfaces = [\"wan\"]\n[[tenant]]\nname = \"a\"\ninterfaces = [\"a\"]\nprefixes = [\"198.18.0.0/24\"]\n[[tenant.nat.forward]]\nproto = \"tcp\"\npublic = \"%s\"\nport = %d\ninside = \"198.18.0.9\"\n"
	const node = "schema = 1\n[[port]]\nname = \"wan\"\ndevice = \"eth0\"\nhost.shared = [\"203.0.113.2\"]\n[[port]]\ndevice = \"eth1\"\n[[interface]]\nname = \"wan\"\nport = \"wan\"\naddresses = [\"203.0.113.2/24\"]\n[[interface]]\nname = \"a\"\nport = \"eth1\"\naddresses = [\"198.18.0.1/24\"]\n"
	n, err := DecodeNode("n.toml", []byte(node))
	if err != nil {
		t.Fatal(err)
	}
	other, err := DecodeNode("n.toml", []byte(node+"[[interface]]\nname = \"wan2\"\nport = \"wan\"\nvlan = 2\naddresses = [\"203.0.114.2/24\"]\n"))
	if err != nil {
		t.Fatal(err)
	}
	two := strings.Replace(fmt.Sprintf(policy, "203.0.113.2", 40000), `["wan"]`, `["wan", "wan2"]`, 1)
	if err := CheckSound(decodePolicy(t, two), other, [2]uint16{32768, 60999}); err != nil {
		t.Errorf("another way to it: %v", err)
	}
	for _, c := range []struct {
		public string
		port   int
		kernel [2]uint16
		want   string
	}{
		{"203.0.113.2", 32768, [2]uint16{32768, 60999}, "p.toml:11: tenant[1].nat.forward[1].port: 32768 of 203.0.113.2 is the host's on port \"wan\", whose kernel takes ports from 32768-60999"},
		{"203.0.113.2", 60999, [2]uint16{32768, 60999}, "is the host's on port"},
		{"203.0.113.2", 32767, [2]uint16{32768, 60999}, ""},
		{"203.0.113.2", 61000, [2]uint16{32768, 60999}, ""},
		{"203.0.113.2", 40000, [2]uint16{}, ""},             // nobody knows
		{"203.0.113.7", 40000, [2]uint16{32768, 60999}, ""}, // the host does not have it
	} {
		p := decodePolicy(t, fmt.Sprintf(policy, c.public, c.port))
		if err := CheckTogether(p, n); err != nil {
			t.Fatal(err)
		}
		err := CheckSound(p, n, c.kernel)
		if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s/%d beside %v: %v, want %q", c.public, c.port, c.kernel, err, c.want)
		}
	}
}

// A forward of a range is as many forwards: none of its ports may be another's, or the host's, and there is room for all of them inside.
func TestForwardsOfRanges(t *testing.T) {
	const policy = "schema = 1\n[backbone]\ninterfaces = [\"wan\"]\n[[tenant]]\nname = \"a\"\ninterfaces = [\"a\"]\nprefixes = [\"198.18.0.0/24\"]\n"
	const node = "schema = 1\n[[port]]\nname = \"wan\"\ndevice = \"eth0\"\nhost.shared = [\"203.0.113.2\"]\nhost.udp_ports = [500, 4500]\n[[port]]\ndevice = \"eth1\"\n[[interface]]\nname = \"wan\"\nport = \"wan\"\naddresses = [\"203.0.113.2/24\"]\n[[interface]]\nname = \"a\"\nport = \"eth1\"\naddresses = [\"198.18.0.1/24\"]\n"
	n, err := DecodeNode("n.toml", []byte(node))
	if err != nil {
		t.Fatal(err)
	}
	forward := func(ports string) string {
		return "[[tenant.nat.forward]]\nproto = \"udp\"\npublic = \"203.0.113.2\"\ninside = \"198.18.0.9\"\n" + ports
	}
	rtp := forward("port = 10000\nlast_port = 20000\n")
	for _, c := range []struct{ text, want string }{
		{rtp, ""},
		{forward("port = 5060\nlast_port = 5060\n"), ""},
		{forward("port = 10\nlast_port = 12\ninside_port = 65533\n"), ""},
		{forward("port = 10\nlast_port = 12\ninside_port = 65534\n"), "inside_port: 65534 leaves no room for 3 ports: at most 65533"},
		{forward("port = 12\nlast_port = 10\n"), "last_port: 10 is below port, which is 12: the last port of the range"},
		{forward("port = 12\nlast_port = 0\n"), "last_port: 0 is not a port"},
		{forward("port = 12\ninside_port = 0\n"), "inside_port: 0 is not a port"},
		{forward("port = 12\nlast_port = 70000\n"), "last_port: 70000 is not a port: 1 to 65535"},
		{rtp + forward("port = 20000\n"), "forward[2].port: 20000 of 203.0.113.2 is forwarded twice: forward[1] has it"},
		{forward("port = 15000\n") + rtp, "forward[2].port: 15000 of 203.0.113.2 is forwarded twice: forward[1] has it"},
		{rtp + forward("port = 12000\n") + forward("port = 19000\nlast_port = 21000\n"), "forward[3].port: 19000 of 203.0.113.2 is forwarded twice: forward[1] has it"},
		{rtp + forward("port = 20001\n") + forward("port = 9999\n") + strings.Replace(rtp, "udp", "tcp", 1), ""},
		{forward("port = 400\nlast_port = 600\n"), "port: 500 of 203.0.113.2 is the host's on port \"wan\""},
		{forward("port = 30000\nlast_port = 32768\n"), "port: 32768 of 203.0.113.2 is the host's on port \"wan\", whose kernel takes ports from 32768-60999"},
		{forward("port = 30000\nlast_port = 32767\n"), ""},
		{strings.Repeat(strings.Replace(strings.Replace(rtp, "10000", "1", 1), "20000", "65535", 1), 2) + forward("port = 1\nlast_port = 3\n"), "forwards 131073 ports in ranges: at most 131072"},
	} {
		p, err := DecodePolicy("p.toml", []byte(policy+c.text))
		if err == nil {
			err = errors.Join(CheckTogether(p, n), CheckSound(p, n, [2]uint16{32768, 60999}))
		}
		if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", c.text, err, c.want)
		}
	}
	one, two := decodePolicy(t, policy+rtp), decodePolicy(t, policy+strings.Replace(rtp, "20000\n", "20000\ninside_port = 30000\n", 1))
	if d := strings.Join(texts(Diff(one, two)), "\n"); !strings.Contains(d, "changed nat.forward 203.0.113.2 udp/10000-20000: 198.18.0.9:10000-20000 -> 198.18.0.9:30000-40000") {
		t.Error(d)
	}
}

// Public addresses are counted once each, whatever for and however often they are named: a node has places for so many.
func TestPublicAddressesAreCountedOnce(t *testing.T) {
	const head = "schema = 1\n[backbone]\ninterfaces = [\"wan\"]\n[[tenant]]\nname = \"a\"\ninterfaces = [\"a\"]\nprefixes = [\"198.18.0.0/24\"]\n[tenant.nat]\npool = [\"203.0.112.0-203.0.127.%d\"]\n"
	forward := func(public string, port int) string {
		return fmt.Sprintf("[[tenant.nat.forward]]\nproto = \"tcp\"\npublic = %q\nport = %d\ninside = \"198.18.0.9\"\n", public, port)
	}
	const static = "[[tenant.nat.static]]\npublic = \"192.0.2.1\"\ninside = \"198.18.0.8\"\n"
	for _, c := range []struct{ text, want string }{
		{fmt.Sprintf(head, 255), ""}, // 4096
		{fmt.Sprintf(head, 255) + forward("203.0.113.5", 80) + forward("203.0.113.5", 81), ""},
		{fmt.Sprintf(head, 255) + static, "has 4097 public addresses"},
		{fmt.Sprintf(head, 254) + static, ""},
		{fmt.Sprintf(head, 254) + static + forward("192.0.2.2", 80) + forward("192.0.2.2", 81), "has 4097 public addresses"},
	} {
		_, err := DecodePolicy("p.toml", []byte(c.text))
		if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%.200s…: %v, want %q", c.text[200:], err, c.want)
		}
	}
}
