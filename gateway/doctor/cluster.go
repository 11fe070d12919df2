package doctor

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"

	"demarc/configs"
)

// leastMTU is what every link of IPv6 carries: below it datagrams between members may be too long, and those of leases are not cut in pieces.
const leastMTU = 1280

// place is where an address of this machine is.
type place struct {
	device string
	mtu    int
	up     bool
}

// places are the addresses of this machine, of whatever device.
func places() (map[netip.Addr]place, error) {
	list, err := net.Interfaces()
	if err != nil {
		return nil, err
	}
	out := map[netip.Addr]place{}
	for _, i := range list {
		addrs, err := i.Addrs()
		if err != nil {
			return nil, err
		}
		for _, a := range addrs {
			if p, err := netip.ParsePrefix(a.String()); err == nil {
				out[p.Addr().Unmap()] = place{i.Name, i.MTU, i.Flags&net.FlagUp != 0}
			}
		}
	}
	return out, nil
}

// cluster looks at where the node is to meet the others. Whether they are there only they can say: their addresses are in no node file.
func (d *Doctor) cluster(node *configs.Node) {
	c := node.Cluster
	if c == nil {
		return
	}
	d.keys("cluster", c.Keys, node.Name, "without its keys the node meets nobody, and joins no cluster")
	local, err := d.sys.places()
	if err != nil {
		d.say(Warn, "cluster", "the addresses of this machine cannot be read: "+err.Error(), "", "")
		return
	}
	d.meets(local, "listen", c.Listen, Bad, "nobody reaches the node there, so it meets nobody: the log and the copies of sessions go over this address alone")
	for _, p := range c.Paths {
		d.meets(local, "path", p, Warn, "what decides who serves a group does not go over this path")
	}
}

// keys looks at a node's certificate and key as the start does, and says the same.
func (d *Doctor) keys(subject, dir, name, why string) {
	err := d.sys.keys(dir)
	if err == nil {
		return
	}
	mend := "" // the error says it
	if errors.Is(err, fs.ErrNotExist) {
		mend = fmt.Sprintf("demarc cluster cert %s   # where the authority is; then copy the directory to %s", name, dir)
	}
	d.say(Bad, subject, err.Error(), why, mend)
}

// asked looks at where the node is to be asked, and at the keys that it needs for that.
func (d *Doctor) asked(node *configs.Node) {
	if c := node.Cluster; node.API.Listen != "" && (c == nil || c.Keys != node.API.Keys) { // else it has been said of the cluster's
		d.keys("api.keys", node.API.Keys, node.Name, "the node does not start with them")
	}
	for _, x := range [][2]string{{"api.metrics", node.API.Metrics}, {"api.listen", node.API.Listen}} {
		key, text := x[0], x[1]
		ap, err := netip.ParseAddrPort(text)
		if err != nil || ap.Addr().IsUnspecified() || ap.Addr().IsLoopback() {
			continue // not said, or a name
		}
		local, err := d.sys.places()
		if err != nil {
			d.say(Warn, key, "the addresses of this machine cannot be read: "+err.Error(), "", "")
			continue
		}
		if p, ok := local[ap.Addr().Unmap().WithZone("")]; !ok || !p.up {
			d.say(Warn, key, text+": no device that is up has that address", "nobody can ask the node there until one has; what the gateway itself answers for does not count", fmt.Sprintf("ip addr add %s/LENGTH dev DEVICE   # or name another one in [api]", ap.Addr()))
		}
	}
}

// meets looks at one address that the others reach this node by.
func (d *Doctor) meets(local map[netip.Addr]place, key, text string, level Level, why string) {
	ap, err := netip.ParseAddrPort(text)
	if err != nil {
		return // a name: where it leads the resolver says at start
	}
	if ap.Addr().IsUnspecified() {
		d.say(OK, "cluster", key+" "+text+": every address of this machine", "", "")
		return
	}
	switch p, ok := local[ap.Addr().Unmap()]; {
	case !ok:
		d.say(level, "cluster", fmt.Sprintf("%s %s: no device of this machine has that address", key, text), why, fmt.Sprintf("ip addr add %s/LENGTH dev DEVICE   # or name another one in [cluster]", ap.Addr()))
	case !p.up:
		d.say(level, "cluster", fmt.Sprintf("%s %s: %s is down", key, text, p.device), why, "ip link set "+p.device+" up")
	case p.mtu < leastMTU:
		d.say(Warn, "cluster", fmt.Sprintf("%s %s: the MTU of %s is %d", key, text, p.device, p.mtu), "messages about leases may not fit, and are not cut in pieces", fmt.Sprintf("ip link set %s mtu %d", p.device, leastMTU))
	default:
		d.say(OK, "cluster", fmt.Sprintf("%s %s on %s, MTU %d", key, text, p.device, p.mtu), "", "")
	}
}
