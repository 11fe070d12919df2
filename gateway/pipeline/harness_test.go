package pipeline

import (
	"net"
	"net/netip"
	"testing"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
	"golang.org/x/sys/unix"

	"demarc/configs"
	"demarc/gateway/conntrack"
	"demarc/gateway/fib"
	"demarc/gateway/flow"
	"demarc/gateway/nat"
	"demarc/gateway/snapshot"
	"demarc/gateway/verdict"
)

const testNode = `
schema = 1
name = "test"
[tables]
sessions = 1024
mappings = 1024
tenants = 8
frames = 1024
[[port]]
device = "bb0"
[[port]]
device = "t0"
[[port]]
device = "u0"
[[interface]]
name = "backbone"
port = "bb0"
addresses = ["203.0.113.1/24", "2001:db8:ff::1/64"]
[[interface]]
name = "alpha"
port = "t0"
addresses = ["198.18.10.1/24", "2001:db8:a::1/64"]
mss_clamp = "1400"
[[interface]]
name = "beta"
port = "t0"
vlan = 20
addresses = ["198.18.10.1/24"]
[[interface]]
name = "gamma"
port = "u0"
addresses = ["198.18.30.1/24"]
`

const testPolicy = `
schema = 1
[backbone]
interfaces = ["backbone"]
[[route]]
prefix = "0.0.0.0/0"
via = "203.0.113.254"
[[tenant]]
name = "alpha"
interfaces = ["alpha"]
prefixes = ["198.18.10.0/24", "2001:db8:a::/64"]
[tenant.nat]
pool = ["192.0.2.16"]
[[tenant.nat.static]]
public = "192.0.2.100"
inside = "198.18.10.100"
[[tenant.nat.forward]]
public = "192.0.2.16"
proto = "tcp"
port = 8080
inside = "198.18.10.11"
inside_port = 80
[[tenant.rule]]
name = "web"
direction = "in"
action = "allow"
service = ["tcp/80", "icmp/echo-request"]
[[tenant.rule]]
name = "no-smtp"
direction = "out"
action = "deny"
service = ["tcp/25"]
[[tenant]]
name = "beta"
interfaces = ["beta"]
prefixes = ["198.18.10.0/24"]
[tenant.nat]
pool = ["192.0.2.32"]
[[tenant]]
name = "gamma"
interfaces = ["gamma"]
prefixes = ["198.18.30.0/24"]
[tenant.nat]
pool = ["192.0.2.48"]
filtering = "endpoint-independent"
`

var (
	macs    = [][6]byte{{2, 0, 0, 0, 0, 0x10}, {2, 0, 0, 0, 0, 0x20}, {2, 0, 0, 0, 0, 0x30}}
	hostMAC = [6]byte{2, 0, 0, 0, 0, 0x99}
)

// rig is a whole data plane without a wire: a compiled policy, one shard, an injected clock.
type rig struct {
	t     testing.TB
	node  *configs.Node
	space *nat.Space
	view  *snapshot.View
	sh    *Shard
	now   uint64
	slots [Burst]Slot
	told  [verdict.NumReasons]uint64 // drops by reason when last looked at
	mem   [Burst][2048]byte
}

func compileView(t testing.TB, node *configs.Node, space *nat.Space, prev *snapshot.View, policy string) *snapshot.View {
	t.Helper()
	p, err := configs.DecodePolicy("test.toml", []byte(policy))
	if err != nil {
		t.Fatalf("policy: %v", err)
	}
	links := make([]snapshot.Link, len(node.Ports))
	for i := range links {
		links[i] = snapshot.Link{MAC: macs[i], MTU: 1500}
	}
	v, err := snapshot.Compile(snapshot.Input{Policy: p, Node: node, Links: links, Prev: prev, HomeSeed: 7,
		LinkLocal: func(m [6]byte) netip.Addr { return netip.AddrFrom16([16]byte{0xfe, 0x80, 15: m[5]}) }})
	if err != nil {
		t.Fatalf("compile: %v", err)
	}
	if err := v.Register(space); err != nil {
		t.Fatal(err)
	}
	v.Activate(space)
	return v
}

func newRig(t testing.TB, nodeText, policy string) *rig {
	t.Helper()
	node, err := configs.DecodeNode("node.toml", []byte(nodeText))
	if err != nil {
		t.Fatalf("node: %v", err)
	}
	r := &rig{t: t, node: node, space: nat.NewSpace(64), now: 1e12}
	r.view = compileView(t, node, r.space, nil, policy)
	neigh := fib.NewNeighbors(4096, 1)
	n := node.Tables.Sessions
	r.sh, err = NewShard(Config{SessionMem: tableMem(t, conntrack.Bytes(n)), Sessions: n, NATMem: tableMem(t, nat.Bytes(node.Tables.Mappings)), Mappings: node.Tables.Mappings, PermitMem: tableMem(t, nat.PermitBytes(n)),
		Tenants: snapshot.MaxTenantID(node), ShaperMax: 512, Seed: 42, Space: r.space, Neighbors: neigh})
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range r.view.Ifaces[1:] {
		for _, p := range f.Addrs {
			a := p.Masked().Addr()
			for range 256 {
				fa := flow.AddrFrom(a)
				if err := neigh.Set(f.Index, map[bool]uint8{true: 4, false: 6}[a.Is4()], &fa, hostMAC, fib.Permanent, 0); err != nil {
					t.Fatal(err)
				}
				a = a.Next()
			}
		}
	}
	r.sh.SetView(r.view)
	return r
}

// tableMem is memory as a node takes it: outside the Go heap, in huge pages where the kernel has them.
func tableMem(t testing.TB, n int) []byte {
	t.Helper()
	m, err := unix.Mmap(-1, 0, n, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		t.Fatal(err)
	}
	_ = unix.Madvise(m, unix.MADV_HUGEPAGE)
	t.Cleanup(func() { _ = unix.Munmap(m) })
	return m
}

// send carries frames in on a port and returns their slots.
func (r *rig) send(port int, frames ...[]byte) []Slot {
	r.t.Helper()
	for i, f := range frames {
		s := &r.slots[i]
		s.Buf, s.Off, s.Len = r.mem[i][:], 256, len(f)
		copy(s.Buf[256:], f)
		s.Port, s.Looped, s.Handed, s.Addr = uint16(port), false, false, uint64(i)
	}
	r.sh.Process(r.slots[:len(frames)], r.now)
	r.sh.Meter.Publish()
	return r.slots[:len(frames)]
}

// loop carries on with what left towards one of our own addresses.
func (r *rig) loop() *Slot {
	r.slots[0].Looped = true
	r.sh.Process(r.slots[:1], r.now)
	return &r.slots[0]
}

func (r *rig) want(s *Slot, v verdict.Verdict) gopacket.Packet {
	r.t.Helper()
	if s.Verdict != v {
		r.t.Fatalf("verdict %s (%s), want %s", s.Verdict, s.Reason, v)
	}
	return gopacket.NewPacket(append([]byte(nil), s.Frame()...), layers.LayerTypeEthernet, gopacket.Default)
}

func (r *rig) wantDrop(s *Slot, why verdict.Reason) {
	r.t.Helper()
	if s.Verdict != verdict.Drop || s.Reason != why {
		r.t.Fatalf("verdict %s (%s), want drop (%s)", s.Verdict, s.Reason, why)
	}
}

// frame serialises layers with right lengths and checksums.
func frame(t testing.TB, ls ...gopacket.SerializableLayer) []byte {
	t.Helper()
	var nl gopacket.NetworkLayer
	for _, l := range ls {
		switch x := l.(type) {
		case *layers.IPv4:
			nl = x
		case *layers.IPv6:
			nl = x
		case *layers.UDP:
			_ = x.SetNetworkLayerForChecksum(nl)
		case *layers.TCP:
			_ = x.SetNetworkLayerForChecksum(nl)
		case *layers.ICMPv6:
			_ = x.SetNetworkLayerForChecksum(nl)
		}
	}
	b := gopacket.NewSerializeBuffer()
	if err := gopacket.SerializeLayers(b, gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true}, ls...); err != nil {
		t.Fatal(err)
	}
	return append([]byte(nil), b.Bytes()...)
}

func eth(dst [6]byte, typ layers.EthernetType) *layers.Ethernet {
	return &layers.Ethernet{SrcMAC: hostMAC[:], DstMAC: dst[:], EthernetType: typ}
}

func ip4(src, dst string, proto layers.IPProtocol) *layers.IPv4 {
	return &layers.IPv4{Version: 4, TTL: 64, SrcIP: net.ParseIP(src).To4(), DstIP: net.ParseIP(dst).To4(), Protocol: proto}
}

func udp(sport, dport uint16) *layers.UDP {
	return &layers.UDP{SrcPort: layers.UDPPort(sport), DstPort: layers.UDPPort(dport)}
}

func udp4(t testing.TB, port int, src string, sport uint16, dst string, dport uint16) []byte {
	return frame(t, eth(macs[port], layers.EthernetTypeIPv4), ip4(src, dst, layers.IPProtocolUDP), udp(sport, dport), gopacket.Payload("payload"))
}

func tcp4(t testing.TB, port int, src string, sport uint16, dst string, dport uint16, set func(*layers.TCP)) []byte {
	tcp := &layers.TCP{SrcPort: layers.TCPPort(sport), DstPort: layers.TCPPort(dport), Window: 65535, Seq: 1000}
	set(tcp)
	return frame(t, eth(macs[port], layers.EthernetTypeIPv4), ip4(src, dst, layers.IPProtocolTCP), tcp)
}

func tagged(f []byte, vlan uint16) []byte {
	out := append([]byte(nil), f[:12]...)
	out = append(out, 0x81, 0, byte(vlan>>8), byte(vlan))
	return append(out, f[12:]...)
}
