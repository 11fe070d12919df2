package configs

import (
	"os"
	"strings"
	"testing"
	"time"
)

const clusterNode = `schema = 1
name = "gw1"
[[port]]
device = "eth0"
[[interface]]
name = "wan"
port = "eth0"
addresses = ["198.18.0.1/24"]
`

func TestClusterSection(t *testing.T) {
	n, err := DecodeNode("n.toml", []byte(clusterNode))
	if err != nil || n.Cluster != nil {
		t.Fatalf("without the section: %+v, %v", n, err)
	}
	n, err = DecodeNode("n.toml", []byte(clusterNode+"[cluster]\nlisten = \"192.0.2.1:7400\"\nround_trip = \"600ms\"\npaths = [\"198.51.100.7:7400\", \"[2001:db8::7]:7400\"]\n"))
	if err != nil {
		t.Fatal(err)
	}
	if c := n.Cluster; c.Advertise != "192.0.2.1:7400" || c.Keys != DefaultKeys || c.Role != "gateway" || n.Witness() || len(c.Paths) != 2 || c.RoundTrip.Duration != 600*time.Millisecond {
		t.Errorf("%+v", c)
	}
	for _, c := range []struct{ name, text, says string }{
		{"no listen", clusterNode + "[cluster]\n", "cluster.listen: is missing"},
		{"every address", clusterNode + "[cluster]\nlisten = \"0.0.0.0:7400\"\n", "say with advertise"},
		{"no port", clusterNode + "[cluster]\nlisten = \"192.0.2.1\"\n", `such as "192.0.2.1:7400"`},
		{"advertises every address", clusterNode + "[cluster]\nlisten = \"0.0.0.0:7400\"\nadvertise = \"[::]:7400\"\n", "no address that others can reach"},
		{"keys", clusterNode + "[cluster]\nlisten = \"192.0.2.1:7400\"\nkeys = \"keys\"\n", "is not an absolute path"},
		{"role", clusterNode + "[cluster]\nlisten = \"192.0.2.1:7400\"\nrole = \"arbiter\"\n", "gateway"},
		{"round trip", clusterNode + "[cluster]\nlisten = \"192.0.2.1:7400\"\nround_trip = \"1m\"\n", "1ms to 5s"},
		{"a path without a port", clusterNode + "[cluster]\nlisten = \"192.0.2.1:7400\"\npaths = [\"198.51.100.7\"]\n", `such as "198.51.100.7:7400"`},
		{"a path to everywhere", clusterNode + "[cluster]\nlisten = \"192.0.2.1:7400\"\npaths = [\"0.0.0.0:7400\"]\n", "no address that others can reach"},
		{"a path on a link", clusterNode + "[cluster]\nlisten = \"192.0.2.1:7400\"\npaths = [\"[fe80::1%eth0]:7400\"]\n", "no address that others can reach"},
		{"a path twice", clusterNode + "[cluster]\nlisten = \"192.0.2.1:7400\"\npaths = [\"192.0.2.1:7400\"]\n", "cluster.listen has it"},
		{"eight paths", clusterNode + "[cluster]\nlisten = \"192.0.2.1:7400\"\npaths = [\"a\", \"b\", \"c\", \"d\", \"e\", \"f\", \"g\", \"h\"]\n", "at most 7"},
		{"unnamed", strings.Replace(clusterNode, "name = \"gw1\"\n", "", 1) + "[cluster]\nlisten = \"192.0.2.1:7400\"\n", "the name of this node among the others"},
		{"a name that is none", strings.Replace(clusterNode, "gw1", "my node", 1) + "[cluster]\nlisten = \"192.0.2.1:7400\"\n", "is not a name for a member"},
		{"a witness with ports", clusterNode + "[cluster]\nlisten = \"192.0.2.1:7400\"\nrole = \"witness\"\n", "has no place in a witness's file"},
		{"no ports and no witness", "schema = 1\nname = \"gw1\"\n[cluster]\nlisten = \"192.0.2.1:7400\"\n", "at least one [[port]]"},
	} {
		if _, err := DecodeNode("n.toml", []byte(c.text)); err == nil || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v, want %q", c.name, err, c.says)
		}
	}
}

func TestWitnessExample(t *testing.T) {
	b, err := os.ReadFile("examples/witness.node.toml")
	if err != nil {
		t.Fatal(err)
	}
	n, err := DecodeNode("witness.node.toml", b)
	if err != nil || !n.Witness() || len(n.Ports) != 0 {
		t.Errorf("%+v, %v", n, err)
	}
}
