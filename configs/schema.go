package configs

import (
	"net/netip"
	"time"
)

// SchemaVersion is the one version of both files that this build reads.
const SchemaVersion = 1

// Policy is what a cluster agrees on: tenants, rules, NAT, rates, routes. It names interfaces; the node file says where they are.
type Policy struct {
	Schema   int      `toml:"schema"`
	Name     string   `toml:"name"` // free text, shown by status
	Timeouts Timeouts `toml:"timeouts"`
	Backbone Backbone `toml:"backbone"`
	Routes   []Route  `toml:"route"` // backbone routes
	Objects  Objects  `toml:"objects"`
	Tenants  []Tenant `toml:"tenant"`

	ICMPErrors ICMPErrors `toml:"icmp_errors"`

	Groups []Group `toml:"group" added:"v0.2"`

	src *source // where it was written; nil when it was not decoded
}

// Backbone is the public side.
type Backbone struct {
	Interfaces []string `toml:"interfaces"`
}

// Route is a static route. Each via must lie in the prefix of an address of the interface that it goes out of.
type Route struct {
	Prefix    netip.Prefix `toml:"prefix"`
	Via       []netip.Addr `toml:"via,hops"`                 // one router, or a list of up to 16 that share the conversations by hash; "fe80::1%transit" names the interface too
	Backup    []netip.Addr `toml:"backup,hops" added:"v0.2"` // routers as in via, for conversations only while none of via is up, or has been for 10 s if it was dead: a costly way, such as a satellite's
	Interface string       `toml:"interface"`                // only needed when via or backup is link-local or ambiguous
	Discard   bool         `toml:"discard"`                  // black hole: instead of via and backup
}

// Objects are names that the rules of every tenant may use.
type Objects struct {
	Hosts    map[string][]string `toml:"hosts"`    // name -> addresses, prefixes, ranges "a-b", or other host names
	Services map[string][]string `toml:"services"` // name -> "tcp/443", "udp/10000-20000", "icmp/echo-request", "icmpv6", "gre", "any", or other service names
}

// Timeouts are idle times after which a session ends. Zero means the default that Defaults writes.
type Timeouts struct {
	TCPEstablished Duration `toml:"tcp_established"` // 2h4m, RFC 5382 REQ-5
	TCPTransitory  Duration `toml:"tcp_transitory"`  // 4m, not yet answered and acknowledged, RFC 5382 REQ-5
	TCPClosing     Duration `toml:"tcp_closing"`     // 4m, after RST, or FINs of both sides that are not both acknowledged, RFC 5382 REQ-5, RFC 7857 section 2
	TCPClosed      Duration `toml:"tcp_closed"`      // 10s, when the FINs of both sides are acknowledged
	UDP            Duration `toml:"udp"`             // 5m, RFC 4787 REQ-5
	UDPUnanswered  Duration `toml:"udp_unanswered"`  // 2m, RFC 4787 REQ-5 (the least that it allows)
	ICMP           Duration `toml:"icmp"`            // 60s, RFC 5508 REQ-2
	Other          Duration `toml:"other"`           // 5m
	NATHold        Duration `toml:"nat_hold"`        // 120s before another host may get a freed public port, RFC 6888 REQ-8
}

// ICMPErrors bounds how many errors the gateway itself sends, ICMP and TCP resets alike, over all workers (RFC 1812 section 4.3.2.8, RFC 4443
// section 2.4 f). Errors of others that it passes on are not counted. Zero means the default.
type ICMPErrors struct {
	Total   int `toml:"total"`    // a second, to all sides together; default 1000
	PerSide int `toml:"per_side"` // a second, towards each tenant, and towards the backbone; default 200
}

// Duration is a time.Duration written as "90s" or "2h4m".
type Duration struct{ time.Duration }

// Rate is bits per second, written as "20M", "1.5G", "64k" or a number. Decimal prefixes: 1M = 1,000,000.
type Rate uint64

// Tenant is one enterprise: everything a packet of it can meet is keyed by it.
type Tenant struct {
	Name       string         `toml:"name"`
	Interfaces []string       `toml:"interfaces"`
	Prefixes   []netip.Prefix `toml:"prefixes"` // inside; a source outside them is spoofed. Two tenants may use the same
	Routes     []Route        `toml:"route"`    // inside routes
	Objects    Objects        `toml:"objects"`  // this tenant's own names; they hide the shared ones
	NAT        NAT            `toml:"nat"`
	Limits     Limits         `toml:"limits"`
	Rates      Rates          `toml:"rates"`
	Rules      []Rule         `toml:"rule"`        // in order, first match decides, per direction
	DefaultOut string         `toml:"default_out"` // "allow" (default) | "deny" | "reject": what no "out" rule matched. Inbound is always "deny"

	// Reject says what an inside host hears when a conversation that it begins is refused: by a rule that says "deny", by a limit, or because no public
	// port is free. "silent" (default, as "deny" is elsewhere): nothing. "icmp": administratively prohibited (RFC 5508 REQ-8). "reset": the same,
	// and to TCP a reset. A rule that says "reject" is told of in any case. Whoever is outside hears nothing, whatever stands here.
	// What no router keeps to itself is told in any case as well, to inside hosts: no route, and a next hop that does not answer.
	Reject string `toml:"reject"`

	// IPv4Options and IPv6Headers say which of them the packets of the tenant may carry, in both directions. They pass unread and unchanged.
	// IPv4: "record-route", "timestamp", "router-alert", "security" (labels: basic, extended, CIPSO), "other"; default none, as RFC 7126 advises for
	// most. IPv6: "hop-by-hop", "destination-options", "routing" (any type but 0); default hop-by-hop and destination-options (RFC 9288).
	// An empty list lets none pass. Source routes and routing header 0 never pass; malformed ones neither.
	IPv4Options []string `toml:"ipv4_options"`
	IPv6Headers []string `toml:"ipv6_headers"`
}

// NAT is the translation of a tenant's IPv4. Without a pool and 1:1 translations, IPv4 is routed untranslated; with 1:1 translations alone, it is only for those hosts and bypassed destinations. IPv6 is never translated.
type NAT struct {
	Pool      []string       `toml:"pool"`      // public addresses: "192.0.2.1", "192.0.2.8/30" (all of its addresses), "192.0.2.1-192.0.2.9"
	Mapping   string         `toml:"mapping"`   // "endpoint-independent" (default) | "address-dependent" | "address-and-port-dependent": for what one inside port keeps one public port
	Filtering string         `toml:"filtering"` // "address-and-port-dependent" (default) | "address-dependent" | "endpoint-independent": who may come in by a mapped port without an "in" rule; a rule may deny it
	Pooling   string         `toml:"pooling"`   // "paired" (default): an inside host keeps one public address | "paired-soft": until that has no port left | "arbitrary"
	Ports     string         `toml:"ports"`     // "dynamic" (default) | "blocks": a block of 64 ports of a protocol at a time belongs to one inside host
	Static    []StaticNAT    `toml:"static"`
	Forward   []PortForward  `toml:"forward"`
	Bypass    []netip.Prefix `toml:"bypass"` // destinations to which this tenant is routed untranslated
}

// StaticNAT is a 1:1 translation of one IPv4 address, all protocols and ports.
type StaticNAT struct {
	Public netip.Addr `toml:"public"`
	Inside netip.Addr `toml:"inside"`
}

// PortForward sends one public port, or a range of them, to an inside host. Inbound rules still decide who may use it. Where the tenant is translated, what comes from that inside port leaves by the public one.
type PortForward struct {
	Public     netip.Addr `toml:"public"`
	Proto      string     `toml:"proto"` // "tcp" | "udp"
	Port       int        `toml:"port"`
	LastPort   int        `toml:"last_port" added:"v0.2"` // of a range, which begins with port; default: that one alone
	Inside     netip.Addr `toml:"inside"`
	InsidePort int        `toml:"inside_port"` // of a range its first one, and each next one is the next here; default: the same as port
}

// Limits bound what a tenant, and each of its inside hosts, may hold and start. Zero means no limit. Of a tenant's sessions and of a host's, those that
// the backbone began may fill three quarters, and of a tenant's unanswered ones a quarter in each direction. Those that the backbone begins leave half of the burst of both rates to the others, but for a quarter of the tenant's.
type Limits struct {
	Sessions        int `toml:"sessions"`          // concurrent
	SessionRate     int `toml:"session_rate"`      // new sessions per second
	HostSessions    int `toml:"host_sessions"`     // concurrent, per inside host
	HostSessionRate int `toml:"host_session_rate"` // new per second, per inside host
}

// Rates are a tenant's line. out = from the tenant to the backbone, in = towards the tenant.
type Rates struct {
	Out   RateDir   `toml:"out"`
	In    RateDir   `toml:"in"`
	Voice Voice     `toml:"voice"`
	Host  HostRates `toml:"host"`

	Overhead int `toml:"overhead" added:"v0.2"` // bytes that a packet takes on the line beside its IP bytes, which every rate in bits of this tenant counts: on Ethernet 38 (header 14, check 4, preamble 8, gap 12: IEEE 802.3), 42 with a VLAN tag. Default: 0
}

// HostRates limit each inside host of the tenant by itself, beside the tenant's own line.
type HostRates struct {
	Out HostRate `toml:"out"`
	In  HostRate `toml:"in"`
}

// HostRate is policed: what is too fast is dropped, nothing waits. It counts as RateDir does (what is cut on its way out, once), voice included, which goes before the host's other packets. Zero means unlimited.
type HostRate struct {
	Bits    Rate     `toml:"bits"`    // bit/s
	Packets uint64   `toml:"packets"` // packet/s
	Burst   Duration `toml:"burst"`   // default 50ms of the rate
}

// RateDir limits one direction. A rate counts IP bytes, and rates.overhead for each packet. Zero means unlimited.
type RateDir struct {
	Bits    Rate     `toml:"bits"`    // bit/s
	Packets uint64   `toml:"packets"` // packet/s
	Burst   Duration `toml:"burst"`   // default 20ms of the rate
	Queue   Duration `toml:"queue"`   // default 30ms of the rate; what waits longer is dropped
	Mode    string   `toml:"mode"`    // "shape" (default) | "police" (no queue, RFC 2698 style drop)
}

// Voice is the class that leaves the shaper first. A packet is voice when a rule says class = "voice", or by DSCP.
type Voice struct {
	DSCP []string `toml:"dscp,number"` // names or numbers: "ef", "cs3", 46. Default: none. Anybody can mark packets: marks leave half of the burst of bits to what rules call voice
	Bits Rate     `toml:"bits"`        // what voice may use of the tenant's rate, per direction; above it, it queues with the rest. Default: 75 % of the rate
}

// Rule is one ACL line. It sees inside addresses: after destination NAT, before source NAT. An empty field matches all.
type Rule struct {
	Name      string   `toml:"name"`
	Direction string   `toml:"direction"` // "out" (from the tenant) | "in" (towards the tenant)
	Action    string   `toml:"action"`    // "allow" | "deny" | "reject": deny, and an inside host is told (direction "out" only)
	From      []string `toml:"from"`      // addresses, prefixes, ranges, host object names; IPv4 and IPv6 may mix
	To        []string `toml:"to"`
	Service   []string `toml:"service"` // as in objects.services
	Class     string   `toml:"class"`   // "" | "voice"
	Log       bool     `toml:"log"`
}

// Group is tenants and virtual addresses that move together from one node to another. One node serves it at a time: it alone carries its tenants' packets,
// on either side, answers for its addresses and for its tenants' NAT addresses, and sends from its MAC. Tenants that are in no group are served by every
// node. The node files stay as they are: each node has addresses of its own beside the virtual ones, and those live on where it does not serve.
//
// On each interface of its tenants that has IPv6, and of the backbone, it has a link-local address too, fe80::200:5eff:fe00:2XX with the id in
// hexadecimal for XX: IPv6 hosts may have it as their router. Router advertisements are not sent; hosts are told by their own configuration.
type Group struct {
	Name    string   `toml:"name"`
	ID      int      `toml:"id"`      // 1 to 255, unlike that of each other group, and of each VRRP router on the same links: the virtual MACs end with it
	Nodes   []string `toml:"nodes"`   // who may serve it, the preferred one first: names of members
	Tenants []string `toml:"tenants"` // a tenant is in one group at most

	// Alone is what its owner does when it hears no majority. "fence": it stops when its lease ends, so that another can take over; default where there is a witness.
	// "keep": it serves on, and nobody takes over by itself, unless its process has ended and there is a third vote; default for two nodes without one. "auto", two nodes: it serves on, and the other
	// one takes over when it hears nothing of it; if every path between them is cut, both serve.
	Alone  string `toml:"alone"`
	Stale  string `toml:"stale"`  // "serve" (default) | "wait": whether a node whose copy of the sessions is not whole takes over, once the lease has run out
	Prefer bool   `toml:"prefer"` // a preferred node takes the group back once it is whole again. Default: it stays where it is
	MAC    string `toml:"mac"`    // "virtual" (default): 00-00-5E-00-01-id for IPv4, 00-00-5E-00-02-id for IPv6 (RFC 9568) | "port": the port's own, where the platform forbids others

	Addresses []GroupAddress `toml:"address"`
}

// GroupAddress is virtual addresses on one interface: of one of the group's tenants, whose hosts have them as their router, or of the backbone, where
// routers send what is for its tenants to them. Each lies in a network, and has the length, of an address of the node's own on that interface.
type GroupAddress struct {
	Interface string         `toml:"interface"`
	Addresses []netip.Prefix `toml:"addresses"`
}

// Node is what belongs to one machine: its ports, CPUs, addresses, directories.
type Node struct {
	Schema     int         `toml:"schema"`
	Name       string      `toml:"name"`
	DataDir    string      `toml:"data_dir"` // default /var/lib/demarc
	Workers    Workers     `toml:"workers"`
	Tables     Tables      `toml:"tables"`
	API        API         `toml:"api"`
	Ports      []Port      `toml:"port"`
	Interfaces []Interface `toml:"interface"`
	Log        Log         `toml:"log"`
	Cluster    *Cluster    `toml:"cluster"` // nil = a cluster of one

	src *source // where it was written; nil when it was not decoded
}

// Workers says how many data-plane threads run and where.
type Workers struct {
	Count      int      `toml:"count"`       // default 1
	CPUs       []int    `toml:"cpus"`        // one per worker; empty = not pinned
	BusyPoll   Duration `toml:"busy_poll"`   // 0 = off (SO_BUSY_POLL), at most 1ms
	Spin       Duration `toml:"spin"`        // how long an idle worker spins before it sleeps; default 50µs ("1ns" = not at all)
	NeedWakeup *bool    `toml:"need_wakeup"` // default true
	Batch      int      `toml:"batch"`       // frames a burst; default and at most 64
}

// Tables fixes the memory that is taken at start.
type Tables struct {
	Sessions  int `toml:"sessions"`  // over all workers; default 1,048,576
	Mappings  int `toml:"mappings"`  // NAT mappings over all workers; default as many as sessions
	Neighbors int `toml:"neighbors"` // default 4096, at most 65,535
	Tenants   int `toml:"tenants"`   // default 1024
	Frames    int `toml:"frames"`    // per worker and memory area; default 16,384
	Fragments int `toml:"fragments"` // fragments that may wait for the first of their datagram, over all workers; default 4096
}

// API says where the node listens for its operator.
type API struct {
	Socket  string `toml:"socket"`  // unix socket; default DataDir/demarc.sock
	Metrics string `toml:"metrics"` // "127.0.0.1:9090"; empty = only on the socket
	Listen  string `toml:"listen"`  // "192.0.2.1:7443": the same over TCP, for who shows a client's certificate; empty = only the socket
	Keys    string `toml:"keys"`    // directory with ca.crt, node.crt and node.key, as `demarc cluster cert` makes it; default: the cluster's, else /etc/demarc/keys
}

// Log says how much the node writes to standard error.
type Log struct {
	Level  string `toml:"level"`  // "debug" | "info" (default) | "warn" | "error"
	Format string `toml:"format"` // "text" (default) | "json"
}

// Port is a Linux network device whose every queue is bound.
type Port struct {
	Name   string `toml:"name"` // defaults to device
	Device string `toml:"device"`
	Mode   string `toml:"mode"` // "auto" (default) | "zerocopy" | "copy" | "generic"
	Host   Host   `toml:"host"`

	// Offload says whether packets of established sessions may pass this port, in and out, without a worker: carried by the XDP program, which is several times as fast where the kernel
	// copies what workers get. "always": a start is refused where that cannot be. "never". "auto" (default): where it is sure that the device takes what is redirected to it, a veth as long as its far end does (gro is on there).
	Offload string `toml:"offload"`

	// Prepare, default true: run switches off what the device does to packets (VLAN stripping and filtering, LRO, GRO), spreads
	// received packets evenly over its queues, says what it changed and puts it back when it ends. With false it changes nothing and
	// refuses what it cannot live with.
	Prepare *bool `toml:"prepare"`
	Queues  int   `toml:"queues"` // how many queues the device is to have; default: as it has. Many cards take the link down while they change
}

// Host names what on this port belongs to the host's own stack. By default, all that is addressed to the kernel's own addresses on the device.
type Host struct {
	Addresses []netip.Prefix `toml:"addresses"` // besides the kernel's own on the device; may be multicast groups
	Shared    []netip.Addr   `toml:"shared"`    // the host's own addresses that NAT uses too: the host keeps the ports below and its ephemeral range
	TCPPorts  []int          `toml:"tcp_ports"` // for shared addresses; default [22]
	UDPPorts  []int          `toml:"udp_ports"`
}

// Interface is a port, with or without a VLAN tag, with the gateway's addresses. A policy says whom it faces.
type Interface struct {
	Name      string         `toml:"name"`
	Port      string         `toml:"port"`
	VLAN      int            `toml:"vlan"`             // 0 = untagged, else 1..4094
	Addresses []netip.Prefix `toml:"addresses"`        // of the gateway, answered by the gateway; not on the kernel's device unless host.shared
	MTU       int            `toml:"mtu"`              // IP bytes; default: the device's
	MSSClamp  string         `toml:"mss_clamp,number"` // "" (off) | "mtu" | a number of bytes

	// ICMPErrors false: the gateway sends no error of its own out of here, not even time exceeded (traceroute shows a gap) or packet too big (what is
	// too large vanishes: give the hosts the right MTU, or clamp). RFC 5508 REQ-9. Default true.
	ICMPErrors *bool `toml:"icmp_errors"`
}
