package configs

import (
	"fmt"
	"net/netip"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Bounds of a node file.
const (
	MaxWorkers    = 64
	MaxBatch      = 64 // what the pipeline takes at once
	MaxPorts      = 64
	MaxInterfaces = 16_384
	maxIfaceAddrs = 256
	maxHostAddrs  = 1_024
	maxVLAN       = 4_094
	maxQueues     = 256
	maxSocketPath = 107 // sun_path without its final zero
)

// MaxMTU is the largest MTU that an interface may have, bytes: what XDP takes on one page, with the kernel's own needs behind the frame.
const MaxMTU = 3400

func checkNode(at loc, n *Node) {
	checkSchema(at, n.Schema)
	checkText(at, "name", n.Name)
	checkPath(at, "data_dir", n.DataDir, DefaultDataDir)
	checkWorkers(at.key("workers"), &n.Workers)
	tables := at.key("tables")
	checkCount(tables, "sessions", n.Tables.Sessions, 1024, 1<<27)
	checkCount(tables, "mappings", n.Tables.Mappings, 1024, 1<<27)
	checkCount(tables, "neighbors", n.Tables.Neighbors, 16, 65_535)
	checkCount(tables, "tenants", n.Tables.Tenants, 1, MaxTenants)
	checkCount(tables, "frames", n.Tables.Frames, 1024, 1<<22)
	checkCount(tables, "fragments", n.Tables.Fragments, 64, 1<<20)
	checkAPI(at.key("api"), &n.API)
	checkChoice(at.key("log"), "level", n.Log.Level, "debug", "info", "warn", "error")
	checkChoice(at.key("log"), "format", n.Log.Format, "text", "json")
	if n.Cluster != nil {
		checkCluster(at, n)
	}
	if n.Witness() {
		checkWitness(at, n)
		return
	}
	ports := checkPorts(at, n.Ports)
	checkInterfaces(at, n.Interfaces, ports)
}

func checkPath(at loc, key, dir, such string) {
	if dir != "" && (!path.IsAbs(dir) || len(dir) > 4000) {
		at.key(key).bad(dir, "is not an absolute path", quote(such))
	}
}

func checkWorkers(at loc, w *Workers) {
	checkCount(at, "count", w.Count, 1, MaxWorkers)
	if at.has("count") && w.Count == 0 && textAt(at, "count") {
		at.key("count").bad(0, "is out of range", fmt.Sprintf("1 to %d", MaxWorkers))
	}
	if count := max(w.Count, 1); len(w.CPUs) > 0 && len(w.CPUs) != count {
		at.key("cpus").bad(nil, fmt.Sprintf("names %d for %d workers", len(w.CPUs), count), "one CPU per worker, or none")
	}
	for i, cpu := range w.CPUs {
		item := at.key("cpus").item(i)
		if cpu > 4095 {
			item.bad(cpu, "is not a CPU", "0 to 4095")
		} else if slices.Contains(w.CPUs[:i], cpu) {
			item.bad(cpu, "is there twice", "two workers on one CPU take turns")
		}
	}
	checkDuration(at, "busy_poll", w.BusyPoll, time.Microsecond, time.Millisecond)
	checkDuration(at, "spin", w.Spin, time.Nanosecond, 10*time.Millisecond)
	checkCount(at, "batch", w.Batch, 1, MaxBatch)
}

func checkAPI(at loc, a *API) {
	if a.Socket != "" && (!path.IsAbs(a.Socket) || len(a.Socket) > maxSocketPath) {
		at.key("socket").bad(a.Socket, "is not a socket path", fmt.Sprintf("absolute and at most %d bytes", maxSocketPath))
	}
	if a.Metrics != "" {
		if ap, err := netip.ParseAddrPort(a.Metrics); err != nil || ap.Port() == 0 {
			at.key("metrics").bad(a.Metrics, "is not an address and port", `such as "127.0.0.1:9090"`)
		}
	}
	if a.Listen != "" {
		if ap, err := netip.ParseAddrPort(a.Listen); err != nil || ap.Port() == 0 {
			at.key("listen").bad(a.Listen, "is not an address and port", `such as "192.0.2.1:7443"`)
		} else if a.Listen == a.Metrics {
			at.key("listen").bad(a.Listen, "is the address of api.metrics", "another port")
		}
	} else if a.Keys != "" {
		at.key("keys").bad(a.Keys, "is for api.listen, which is not there", `listen = "ADDRESS:7443" beside it, or no keys`)
	}
	if a.Keys != "" && (!path.IsAbs(a.Keys) || len(a.Keys) > 4000) {
		at.key("keys").bad(a.Keys, "is not an absolute path", `such as "/etc/demarc/keys"`)
	}
}

// checkPorts returns the names that interfaces may use.
func checkPorts(at loc, ports []Port) (names []string) {
	if len(ports) == 0 && textAt(at, "port") {
		at.key("port").bad(nil, "is missing", "at least one [[port]]")
	}
	if len(ports) > MaxPorts {
		at.key("port").bad(nil, fmt.Sprintf("are %d", len(ports)), fmt.Sprintf("at most %d", MaxPorts))
		return nil
	}
	devices := map[string]int{}
	for i := range ports {
		p := &ports[i]
		where := at.key("port").at(i)
		where.missing("device", "the name that ip link shows")
		if where.has("device") && textAt(where, "device") {
			if !goodDevice(p.Device) {
				where.key("device").bad(p.Device, "is not the name of a device", "as ip link shows it, at most 15 characters")
			} else if first, dup := devices[p.Device]; dup {
				where.key("device").bad(p.Device, "is there twice", fmt.Sprintf("port[%d] is that device", first+1))
			} else {
				devices[p.Device] = i
			}
		}
		name := p.Name
		if name == "" {
			name = p.Device
		} else {
			checkName(where, "name", name)
		}
		if name != "" && slices.Contains(names, name) && where.has("name") {
			where.key("name").bad(name, "is there twice", "")
		} else if name != "" {
			names = append(names, name)
		}
		checkChoice(where, "mode", p.Mode, "auto", "zerocopy", "copy", "generic")
		checkChoice(where, "offload", p.Offload, "auto", "always", "never")
		if p.Offload == "always" && (p.Mode == "zerocopy" || p.Mode == "generic") {
			where.key("offload").bad(p.Offload, fmt.Sprintf("is not for a port with mode = %q", p.Mode), "mode copy or auto, or offload auto or never")
		}
		checkCount(where, "queues", p.Queues, 1, maxQueues)
		checkHost(where.key("host"), &p.Host)
	}
	return names
}

// Prepared reports whether run prepares the port's device.
func (p *Port) Prepared() bool { return p.Prepare == nil || *p.Prepare }

func goodDevice(s string) bool {
	return s != "" && len(s) <= 15 && s != "." && s != ".." &&
		!strings.ContainsFunc(s, func(r rune) bool { return r <= ' ' || r > '~' || r == '/' || r == ':' || r == '"' })
}

func checkHost(at loc, h *Host) {
	if len(h.Addresses) > maxHostAddrs || len(h.Shared) > maxHostAddrs {
		at.bad(nil, "has too many addresses", fmt.Sprintf("at most %d", maxHostAddrs))
		return
	}
	for i, p := range h.Addresses {
		item := at.key("addresses").item(i)
		if p.IsValid() && p != p.Masked() {
			msg, want, _ := strings.Cut(hostBits(p).Error(), ": ")
			item.bad(p, msg, want)
		} else if p.IsValid() && p.Bits() == 0 {
			item.bad(p, "is everything", "the host's own addresses; the gateway would get nothing")
		}
	}
	for i, a := range h.Shared {
		item := at.key("shared").item(i)
		if !checkNATAddr(item, a) {
			continue
		}
		if slices.Contains(h.Shared[:i], a) {
			item.bad(a, "is there twice", "")
		}
		for _, p := range h.Addresses {
			if p.IsValid() && p.Contains(a) {
				item.bad(a, "belongs to the host wholly", "it is in "+p.String()+" of host.addresses")
				break
			}
		}
	}
	for _, list := range []struct {
		key   string
		ports []int
	}{{"tcp_ports", h.TCPPorts}, {"udp_ports", h.UDPPorts}} {
		have := map[int]bool{}
		for i, port := range list.ports {
			item := at.key(list.key).item(i)
			if port < 1 || port > 65535 {
				if textAt(at, list.key) {
					item.bad(port, "is not a port", "1 to 65535")
				}
			} else if have[port] {
				item.bad(port, "is there twice", "")
			}
			have[port] = true
		}
		if len(h.Shared) == 0 && len(list.ports) > 0 {
			at.key(list.key).bad(nil, "does nothing without host.shared", "what is the host's own address stays with the host anyway")
		}
	}
}

func checkInterfaces(at loc, list []Interface, ports []string) {
	if len(list) == 0 && textAt(at, "interface") {
		at.key("interface").bad(nil, "is missing", "at least one [[interface]]")
	}
	if len(list) > MaxInterfaces {
		at.key("interface").bad(nil, fmt.Sprintf("are %d", len(list)), fmt.Sprintf("at most %d", MaxInterfaces))
		return
	}
	type place struct {
		port string
		vlan int
	}
	names, places := map[string]int{}, map[place]string{}
	for i := range list {
		f := &list[i]
		where := at.key("interface").at(i)
		if checkName(where, "name", f.Name) {
			if first, dup := names[f.Name]; dup {
				where.key("name").bad(f.Name, "is there twice", fmt.Sprintf("interface[%d] has that name", first+1))
			} else {
				names[f.Name] = i
			}
		}
		where.missing("port", "the name of a [[port]]")
		portOK := slices.Contains(ports, f.Port)
		if where.has("port") && textAt(where, "port") && !portOK {
			where.key("port").bad(f.Port, "is not a port", didYouMean(f.Port, where.c.guess(func() []string { return ports }), "one of "+cut(strings.Join(ports, ", "))))
		}
		if f.VLAN > maxVLAN {
			where.key("vlan").bad(f.VLAN, "is not a VLAN", fmt.Sprintf("1 to %d, or 0 for untagged", maxVLAN))
		} else if portOK && (f.VLAN != 0 || !where.has("vlan") || textAt(where, "vlan")) {
			key := place{f.Port, f.VLAN}
			if other, dup := places[key]; dup {
				what := fmt.Sprintf("VLAN %d", f.VLAN)
				if f.VLAN == 0 {
					what = "untagged"
				}
				at := where.key("vlan")
				at.bad(nil, fmt.Sprintf("%s on port %s is interface %s already", what, f.Port, quote(other)), "one interface per port and VLAN")
			} else {
				places[key] = f.Name
			}
		}
		checkAddresses(where, f)
	}
}

func checkAddresses(at loc, f *Interface) {
	if len(f.Addresses) == 0 && textAt(at, "addresses") {
		at.key("addresses").bad(nil, "is missing or empty", `the gateway's own, such as ["198.18.10.1/24"]`)
	}
	if len(f.Addresses) > maxIfaceAddrs {
		at.key("addresses").bad(nil, fmt.Sprintf("are %d", len(f.Addresses)), fmt.Sprintf("at most %d", maxIfaceAddrs))
		return
	}
	v6 := false
	for i, p := range f.Addresses {
		item := at.key("addresses").item(i)
		if !p.IsValid() {
			continue
		}
		v6 = v6 || p.Addr().Is6()
		checkIfaceAddr(item, p)
		for _, q := range f.Addresses[:i] {
			if q.IsValid() && q.Addr() == p.Addr() {
				item.bad(p, "is there twice", "")
				break
			}
		}
	}
	least := 576 // RFC 791: what every host takes; RFC 8200 5: 1280
	if v6 {
		least = 1280
	}
	checkCount(at, "mtu", f.MTU, least, MaxMTU)
	if f.MSSClamp != "" && f.MSSClamp != "mtu" {
		if n, err := number(f.MSSClamp, 9176); err != nil || n < 88 {
			at.key("mss_clamp").bad(f.MSSClamp, "is not a clamp", `"mtu", or a number of bytes from 88 to 9176`)
		}
	}
}

// checkIfaceAddr refuses what no interface can have as its address in a network.
func checkIfaceAddr(item loc, p netip.Prefix) bool {
	switch a := p.Addr(); {
	case publicAddr(a) != nil:
		item.bad(p, publicAddr(a).Error(), "")
	case p.Bits() == 0:
		item.bad(p, "has no network", "such as /24 or /64")
	case a.Is4() && p.Bits() < 31 && a == p.Masked().Addr():
		item.bad(p, "is the address of the network itself", fmt.Sprintf("did you mean %s?", quote(netip.PrefixFrom(a.Next(), p.Bits()).String())))
	case a.Is4() && p.Bits() < 31 && a == lastAddr(p):
		item.bad(p, "is the broadcast address", "")
	default:
		return true
	}
	return false
}

// MSS is the number of bytes to which an interface clamps TCP segments of a family (4 or 6), given the MTU in force; 0 is off.
func (f *Interface) MSS(family, mtu int) uint16 {
	headers := 40
	if family == 6 {
		headers = 60
	}
	switch f.MSSClamp {
	case "":
		return 0
	case "mtu":
		return uint16(max(mtu-headers, 0))
	}
	n, err := strconv.ParseUint(f.MSSClamp, 10, 16)
	if err != nil {
		return 0
	}
	return uint16(n)
}
