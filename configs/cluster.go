package configs

import (
	"fmt"
	"net/netip"
	"time"
)

// Cluster is where a node meets the others. Without it a node is a cluster of one, by the same commands, and nobody can reach it.
type Cluster struct {
	Listen    string `toml:"listen"`    // "192.0.2.1:7400": an address of the host's, on a port of its own or one that the host keeps
	Advertise string `toml:"advertise"` // where the others reach it; default: listen
	Keys      string `toml:"keys"`      // directory with ca.crt, node.crt and node.key; default /etc/demarc/keys
	Role      string `toml:"role"`      // "gateway" (default) | "witness": a vote and no ports, for `demarc witness`

	// Paths are further addresses of this machine, on links of their own, that the members reach it by when the first one is cut: heartbeats, promises and releases of
	// groups go over each of them at the same time, as datagrams. The first one of a node speaks with the first one of the others, and so on: name
	// them in the same order everywhere. The others learn them by themselves. Default: none, only listen.
	Paths []string `toml:"paths"`

	// RoundTrip is how long an answer takes from the farthest member, where that is more than a few milliseconds: "600ms" by satellite. The
	// times after which a leader is taken for dead follow it. The same on every node.
	RoundTrip Duration `toml:"round_trip"`
}

// DefaultKeys is where a member's certificate and key are.
const DefaultKeys = "/etc/demarc/keys"

// Witness reports whether the file is a witness's, which has no ports.
func (n *Node) Witness() bool { return n.Cluster != nil && n.Cluster.Role == "witness" }

func (c *Cluster) defaults() {
	defaultTo(&c.Advertise, c.Listen)
	defaultTo(&c.Keys, DefaultKeys)
	defaultTo(&c.Role, "gateway")
}

func checkCluster(at loc, n *Node) {
	c, where := n.Cluster, at.key("cluster")
	if !goodName(n.Name) && textAt(at, "name") {
		if n.Name == "" {
			at.missing("name", "the name of this node among the others, as in its certificate")
		} else {
			at.key("name").bad(n.Name, "is not a name for a member of a cluster", nameRule)
		}
	}
	where.missing("listen", `an address of this machine and a port, such as "192.0.2.1:7400"`)
	if ap, ok := checkEndpoint(where, "listen", c.Listen); ok && ap.Addr().IsUnspecified() && c.Advertise == "" {
		where.key("listen").bad(c.Listen, "is every address of the machine", "say with advertise where the others reach it")
	}
	if ap, ok := checkEndpoint(where, "advertise", c.Advertise); ok && ap.Addr().IsUnspecified() {
		where.key("advertise").bad(c.Advertise, "is no address that others can reach", `such as "192.0.2.1:7400"`)
	}
	checkPaths(where, c)
	checkPath(where, "keys", c.Keys, DefaultKeys)
	checkChoice(where, "role", c.Role, "gateway", "witness")
	checkDuration(where, "round_trip", c.RoundTrip, time.Millisecond, 5*time.Second)
}

// maxPaths is how many addresses a member has for datagrams, the cluster's own apart.
const maxPaths = 7

func checkPaths(at loc, c *Cluster) {
	if !at.has("paths") {
		return
	}
	if len(c.Paths) > maxPaths {
		at.key("paths").bad(len(c.Paths), "are too many", fmt.Sprintf("at most %d", maxPaths))
		return
	}
	taken := map[string]string{c.Listen: "cluster.listen", c.Advertise: "cluster.advertise"}
	for i, s := range c.Paths {
		item := at.key("paths").item(i)
		ap, err := netip.ParseAddrPort(s)
		switch ip := ap.Addr(); {
		case err != nil || ap.Port() == 0:
			item.bad(s, "is not an address and port", `such as "198.51.100.7:7400" or "[2001:db8::1]:7400"`)
		case ip.IsUnspecified() || ip.IsMulticast() || ip.Zone() != "":
			item.bad(s, "is no address that others can reach", `one of this machine's own, such as "198.51.100.7:7400"`)
		case taken[s] != "":
			item.bad(s, "is a path already", "leave it out: "+taken[s]+" has it")
		default:
			taken[s] = "another one of the paths"
		}
	}
}

// checkEndpoint wants an address and a port. ok is false when there is none to look at.
func checkEndpoint(at loc, key, s string) (ap netip.AddrPort, ok bool) {
	if s == "" && (!at.has(key) || !textAt(at, key)) {
		return ap, false
	}
	ap, err := netip.ParseAddrPort(s)
	if err != nil || ap.Port() == 0 {
		at.key(key).bad(s, "is not an address and port", `such as "192.0.2.1:7400" or "[2001:db8::1]:7400"`)
		return ap, false
	}
	return ap, true
}

// checkWitness refuses what only a gateway has.
func checkWitness(at loc, n *Node) {
	for _, key := range []string{"port", "interface", "workers", "tables"} {
		if at.has(key) {
			at.key(key).bad(nil, "has no place in a witness's file", fmt.Sprintf("leave it out, or set cluster.role to %s", quote("gateway")))
		}
	}
}
