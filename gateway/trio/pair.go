package trio

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"

	"demarc/cluster/transport"
	"demarc/gateway/netlab"
	"demarc/gateway/netlab/judge"
)

// Addresses of a pair. Both tenants use the same inside network. The last byte is the node's number in its own addresses, and 1 in those that belong to the
// group.
const (
	PairInside4   = "198.18.10."
	PairInside6   = "2001:db8:%s::" // a: alpha, b: beta
	PairApart4    = "198.18.20."    // beta's with Options.Apart
	PairOutside4  = "203.0.113."
	PairOutside6  = "2001:db8:ff::"
	PairRouted    = "198.51.100.0/24"  // where alpha's pool is: the outside sends it to the group's address
	PairPool      = "198.51.100.16/30" // that
	PairLinkPool  = "203.0.113.64/30"  // beta's, on the link itself
	PairGroup     = "east"
	PairGroupID   = 1
	PairWest      = "west" // the second group, with Options.Split
	PairWestID    = 2
	PairFlowPort  = 7100 // of the flows, at the outside
	PairHoldPort  = 7200 // of held connections
	PairNewPort   = 7300 // of conversations that begin all the time
	pairFirstHost = 11
)

// Namespaces of a pair's hosts.
const (
	PairAlpha = "alpha" // a host of tenant alpha, with many addresses
	PairBeta  = "beta"
	PairDeaf  = "deaf" // one of alpha that hears no announcement
	PairOut   = "out"
)

// pairPolicy has one group with both tenants in it. alpha's pool is routed to the group, beta's is on the backbone's link. IPv6 is not translated.
const pairPolicy = `schema = 1
name = "pair"

[backbone]
interfaces = ["wan"]

[[tenant]]
name = "alpha"
interfaces = ["alpha"]
prefixes = ["198.18.10.0/24", "2001:db8:a::/64"]
default_out = "allow"
nat.pool = ["` + PairPool + `"]

[[tenant]]
name = "beta"
interfaces = ["beta"]
prefixes = ["198.18.10.0/24", "2001:db8:b::/64"]
default_out = "allow"
nat.pool = ["` + PairLinkPool + `"]

[[group]]
name = "east"
id = 1
nodes = ["gw1", "gw2"]
tenants = ["alpha", "beta"]
%s
[[group.address]]
interface = "wan"
addresses = ["203.0.113.1/24", "2001:db8:ff::1/64"]

[[group.address]]
interface = "alpha"
addresses = ["198.18.10.1/24", "2001:db8:a::1/64"]

[[group.address]]
interface = "beta"
addresses = ["198.18.10.1/24", "2001:db8:b::1/64"]
`

// splitPolicy has a group for each tenant, and prefers another node for each. All leaves by one router, the host outside.
const splitPolicy = `
[[route]]
prefix = "0.0.0.0/0"
via = "203.0.113.11"

[[route]]
prefix = "::/0"
via = "2001:db8:ff::b"

[[group]]
name = "west"
id = 2
nodes = ["gw2", "gw1"]
tenants = ["beta"]

[[group.address]]
interface = "wan"
addresses = ["203.0.113.4/24", "2001:db8:ff::4/64"]

[[group.address]]
interface = "beta"
`

// SplitPolicy is the policy of a pair that was made with Options.Split.
func SplitPolicy() string {
	text := strings.Replace(PairPolicy(""), `tenants = ["alpha", "beta"]`, `tenants = ["alpha"]`, 1)
	at := strings.LastIndex(text, "[[group.address]]\ninterface = \"beta\"\n")
	_, beta, _ := strings.Cut(text[at:], "interface = \"beta\"\n")
	return text[:at] + splitPolicy + beta
}

// PairPolicy is the policy of a pair, with more about the group: `alone = "keep"`.
func PairPolicy(more string) string { return fmt.Sprintf(pairPolicy, more) }

// Pair is a trio whose gateways serve the same networks: each side is a learning switch that both are plugged into, with the hosts on it. Hosts
// know the group's addresses alone.
type Pair struct {
	*Trio
	Hosts  int // addresses of a tenant's host
	sides  map[string]pairSide
	valves map[string]*netlab.Valve
	taps   map[tap]*netlab.Capture
	hinder hinder
	ports  []port
}

// port of a switch.
type port struct{ sw, dev string }

// pairSide is a switch and what is on it.
type pairSide struct {
	sw, dev, net4, net6 string
	vlan                uint16 // 0 = none
}

// tap is where a gateway's frames come into a switch.
type tap struct{ node, sw, dev string }

// pairSides are the switches: of the tenants, and "" for the backbone.
var pairSides = map[string]pairSide{
	"alpha": {"swa", "alpha0", PairInside4, fmt.Sprintf(PairInside6, "a"), 0},
	"beta":  {"swb", "beta0", PairInside4, fmt.Sprintf(PairInside6, "b"), 0},
	"":      {"swo", "wan0", PairOutside4, PairOutside6, 0},
}

func pairInterface(side string) string {
	if side == "" {
		return "wan"
	}
	return side
}

// NewPair makes namespaces, keys and files; nothing runs yet. Hosts of tenants have so many addresses of each family.
func NewPair(o Options, hosts int) (p *Pair, err error) {
	p = &Pair{Hosts: hosts, sides: maps.Clone(pairSides), valves: map[string]*netlab.Valve{}, taps: map[tap]*netlab.Capture{}}
	if o.Apart {
		s := p.sides["beta"]
		s.net4 = PairApart4
		p.sides["beta"] = s
	}
	if o.Split { // both tenants on one trunk
		for i, name := range []string{"alpha", "beta"} {
			s := p.sides[name]
			s.sw, s.dev, s.vlan = "swt", "trunk0", uint16(10*(i+1))
			p.sides[name] = s
		}
	}
	if o.Lines {
		p.hinder.begin(&o)
	}
	made := map[string]bool{}
	o.Ports = func(n *Node, number int) (text string, err error) {
		for _, side := range slices.Sorted(maps.Keys(p.sides)) {
			s := p.sides[side]
			if !made[s.sw] {
				if err := n.t.AddSwitch(s.sw); err != nil {
					return "", err
				}
				made[s.sw] = true
			}
			own := byte(number + 1)
			face := interfaceText(s.dev, pairInterface(side), s.vlan, fmt.Sprintf("%s%d/24", s.net4, own), fmt.Sprintf("%s%d/64", s.net6, own))
			if made[n.Name+" "+s.dev] {
				text += face
				continue
			}
			made[n.Name+" "+s.dev] = true
			// What a switch has learned of a port is by its MAC: it says which node it is, for whoever looks.
			e := netlab.End{NS: n.Name, Name: s.dev, MAC: net.HardwareAddr{0x02, 0xd3, 0, 1, s.sw[2], own}}
			if err := n.t.Plug(s.sw, e, max(o.Queues, 1), 1500); err != nil {
				return "", err
			}
			p.ports = append(p.ports, port{s.sw, netlab.PortName(e)})
			if o.Offload {
				if err := n.t.TakesRedirected(s.sw, netlab.PortName(e), true); err != nil {
					return "", err
				}
			}
			text += fmt.Sprintf("\n[[port]]\ndevice = %q\n", s.dev)
			if o.Offload {
				text += "offload = \"always\"\n"
			} else {
				text += "offload = \"never\"\n"
			}
			text += face
		}
		return text, nil
	}
	if p.Trio, err = New(o); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, p.Close())
		}
	}()
	for _, h := range []struct {
		ns, side string
		n, first int
	}{{PairAlpha, "alpha", hosts, pairFirstHost}, {PairDeaf, "alpha", 1, 250}, {PairBeta, "beta", hosts, pairFirstHost}, {PairOut, "", 1, pairFirstHost}} {
		s := p.sides[h.side]
		var addrs []netip.Prefix
		for i := range h.n {
			addrs = append(addrs, netip.MustParsePrefix(fmt.Sprintf("%s%d/24", s.net4, h.first+i)), netip.MustParsePrefix(fmt.Sprintf("%s%x/64", s.net6, h.first+i)))
		}
		e := netlab.End{NS: h.ns, Name: netlab.HostDevice, Addrs: addrs}
		if err := errors.Join(p.AddNamespace(h.ns), p.Plug(s.sw, e, 1, 1500)); err != nil {
			return nil, err
		}
		p.ports = append(p.ports, port{s.sw, netlab.PortName(e)})
		if s.vlan != 0 {
			if err := p.Tag(h.ns, netlab.HostDevice, s.vlan); err != nil {
				return nil, err
			}
		}
		routes := []string{"0.0.0.0/0", "::/0"}
		if h.side == "" {
			routes = []string{PairRouted, "2001:db8:a::/64", "2001:db8:b::/64"}
		}
		for _, r := range routes {
			to := netip.MustParsePrefix(r)
			via := s.net4 + "1"
			if to.Addr().Is6() {
				via = s.net6 + "1"
			}
			if o.Split && r == "2001:db8:b::/64" {
				via = s.net6 + "4"
			}
			if err := p.AddRoute(h.ns, to, netip.MustParseAddr(via)); err != nil {
				return nil, err
			}
		}
	}
	if err := p.Deafen(PairDeaf, netlab.HostDevice); err != nil {
		return nil, err
	}
	for _, n := range p.Nodes() {
		if p.valves[n.Name], err = p.Valve(n.Name, "mgmt"); err != nil {
			return nil, err
		}
	}
	if o.Lines {
		err = p.addGates()
	}
	return p, err
}

// Threads has the switches of both sides take frames in threads, for a bench with much traffic: see netlab.Threads.
func (p *Pair) Threads() error {
	for _, x := range p.ports {
		pid, err := p.Lab.Threads(x.sw, x.dev)
		if err != nil {
			return err
		}
		p.threads = append(p.threads, pid)
	}
	return nil
}

// Devices are those of a gateway's ports.
func (p *Pair) Devices() (list []string) {
	for _, s := range p.sides {
		list = append(list, s.dev)
	}
	slices.Sort(list)
	return slices.Compact(list)
}

// Other is the gateway that a gateway is not.
func (p *Pair) Other(n *Node) *Node {
	if n == p.GW1 {
		return p.GW2
	}
	return p.GW1
}

// Lose has a share of what one node sends another over the cluster's network be lost: 1 = the way is cut. The other direction is another matter.
func (p *Pair) Lose(from, to *Node, share float64) error {
	a, err := netip.ParseAddrPort(from.Address)
	if err != nil {
		return err
	}
	return p.valves[to.Name].Lose(a.Addr(), share)
}

// Cut has two nodes not reach each other, or reach each other again.
func (p *Pair) Cut(a, b *Node, cut bool) error {
	share := 0.0
	if cut {
		share = 1
	}
	return errors.Join(p.Lose(a, b, share), p.Lose(b, a, share))
}

// CutOf has two nodes not hear from each other by one protocol, or hear again: TCP carries the log and the copies, UDP what a lease lives by. lost is how many packets
// were since it was cut.
func (p *Pair) CutOf(a, b *Node, proto uint8, cut bool) (lost uint64, err error) {
	for _, way := range [][2]*Node{{a, b}, {b, a}} {
		from, err := netip.ParseAddrPort(way[0].Address)
		if err != nil {
			return 0, err
		}
		v, share := p.valves[way[1].Name], 1.0
		if !cut {
			share = 0
			n, err := v.LostOf(from.Addr(), proto)
			if err != nil {
				return 0, err
			}
			lost += n
		}
		if err := v.LoseOf(from.Addr(), proto, share); err != nil {
			return 0, err
		}
	}
	return lost, nil
}

// Isolate cuts a node off from both others.
func (p *Pair) Isolate(n *Node, cut bool) error {
	var errs []error
	for _, o := range p.Nodes() {
		if o != n {
			errs = append(errs, p.Cut(n, o, cut))
		}
	}
	return errors.Join(errs...)
}

// Addresses are those of a tenant's host.
func (p *Pair) Addresses(side string, six bool) (list []netip.Addr) {
	s := p.sides[side]
	for i := range p.Hosts {
		if six {
			list = append(list, netip.MustParseAddr(fmt.Sprintf("%s%x", s.net6, pairFirstHost+i)))
		} else {
			list = append(list, netip.MustParseAddr(fmt.Sprintf("%s%d", s.net4, pairFirstHost+i)))
		}
	}
	return list
}

// Outside is the address of the host outside.
func (p *Pair) Outside(six bool) netip.Addr {
	if six {
		return netip.MustParseAddr(fmt.Sprintf("%s%x", PairOutside6, pairFirstHost))
	}
	return netip.MustParseAddr(fmt.Sprintf("%s%d", PairOutside4, pairFirstHost))
}

// Inside is the first address of a tenant's host.
func (p *Pair) Inside(side string, six bool) netip.Addr { return p.Addresses(side, six)[0] }

// FlowSpecs are flows of both tenants and both families, and of the deaf host: so many of each address and family of a tenant's host, and one of the deaf one.
func (p *Pair) FlowSpecs(ports int, interval time.Duration) (list []netlab.FlowSpec) {
	for _, six := range []bool{false, true} {
		to := netip.AddrPortFrom(p.Outside(six), PairFlowPort)
		suffix, port := "", 20000
		if six {
			suffix, port = "6", 30000
		}
		for _, side := range []string{"alpha", "beta"} {
			list = append(list, netlab.FlowSpec{Inside: side, From: p.Addresses(side, six), Port: port, Ports: ports, Tag: side + suffix, Outside: PairOut, To: to, Interval: interval})
		}
		deaf := netip.MustParseAddr(PairInside4 + "250")
		if six {
			deaf = netip.MustParseAddr(fmt.Sprintf("%s%x", fmt.Sprintf(PairInside6, "a"), 250))
		}
		list = append(list, netlab.FlowSpec{Inside: PairDeaf, From: []netip.Addr{deaf}, Port: port, Tag: "deaf" + suffix, Outside: PairOut, To: to, Interval: interval})
	}
	return list
}

// pairTags says on which side the flows of a tag are.
var pairTags = map[string]string{"alpha": "alpha", "alpha6": "alpha", "beta": "beta", "beta6": "beta", "deaf": "alpha", "deaf6": "alpha", "newalpha": "alpha", "newbeta": "beta"}

// portMACs is how the MACs of the gateways' ports begin.
var portMACs = net.HardwareAddr{0x02, 0xd3, 0, 1}

// snapFrames is what a judge needs of a frame: IPv6, UDP and the mark of a flow, with a tag.
const snapFrames = 18 + 40 + 8 + 52

// tapFrames is how many frames a capture holds: one that holds no more says so.
const tapFrames = 1 << 20

// Watch begins to record what either gateway sends with a group's address, at each switch's port.
func (p *Pair) Watch() error {
	if len(p.taps) > 0 {
		return errors.New("the pair is watched already")
	}
	for _, n := range p.Gateways() {
		for _, s := range p.sides {
			at := tap{n.Name, s.sw, s.dev}
			if p.taps[at] != nil { // a trunk
				continue
			}
			macs := []net.HardwareAddr{{0, 0, 0x5e, 0, 1}, {0, 0, 0x5e, 0, 2}}
			if p.o.Apart || p.o.PortMAC { // they may send with their own
				macs = append(macs, portMACs)
			}
			c, err := p.CaptureSources(s.sw, n.Name+"-"+s.dev, tapFrames, snapFrames, macs...)
			if err != nil {
				return err
			}
			p.taps[at] = c
		}
	}
	return nil
}

// Senders names the gateways that send packets for the group now, while the pair is watched and flows go: the word of the wire. A node that merely says where
// addresses are does not count.
func (p *Pair) Senders(ctx context.Context) (list []*Node, err error) {
	const look, some = 20 * time.Millisecond, 8
	count := func() map[string]int {
		sum := map[string]int{}
		for t, c := range p.taps {
			sum[t.node] += c.Seen()
		}
		return sum
	}
	if len(p.taps) == 0 {
		return nil, errors.New("the pair is not watched")
	}
	before := count()
	select {
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-time.After(look):
	}
	after := count()
	for _, n := range p.Gateways() {
		if after[n.Name]-before[n.Name] >= some {
			list = append(list, n)
		}
	}
	return list, nil
}

// Serves waits until these gateways alone send packets for the group; none = nobody does.
func (p *Pair) Serves(ctx context.Context, within time.Duration, want ...*Node) error {
	for end := time.Now().Add(within); ; {
		list, err := p.Senders(ctx)
		if err != nil || slices.Equal(list, want) {
			return err
		}
		if time.Now().After(end) {
			return fmt.Errorf("after %s %s serve the group, want %s", within, names(list), names(want))
		}
	}
}

// Owner waits until one gateway alone sends packets for the group.
func (p *Pair) Owner(ctx context.Context, within time.Duration) (*Node, error) {
	for end := time.Now().Add(within); ; {
		list, err := p.Senders(ctx)
		if err != nil {
			return nil, err
		}
		if len(list) == 1 {
			return list[0], nil
		}
		if time.Now().After(end) {
			return nil, fmt.Errorf("after %s %s serve the group, want one", within, names(list))
		}
	}
}

func names(list []*Node) string {
	if len(list) == 0 {
		return "nobody"
	}
	var out []string
	for _, n := range list {
		out = append(out, n.Name)
	}
	return strings.Join(out, " and ")
}

// Expire gives a node a certificate of the authority that ends so long from now, as `demarc cluster cert` would put it there; 0 = one of the usual life.
func (p *Pair) Expire(n *Node, in time.Duration) error {
	a, err := transport.OpenAuthority(p.ca)
	if err != nil {
		return err
	}
	at := time.Now()
	if in > 0 {
		at = at.Add(in - transport.MemberLife)
	}
	return a.Issue(n.keys(), n.Name, at)
}

// sideOf is whose network a frame was sent into. One with a tag that nobody has is nobody's, which no packet may go to.
func (p *Pair) sideOf(t tap, frame []byte) string {
	vlan := uint16(0)
	if len(frame) >= 16 && binary.BigEndian.Uint16(frame[12:]) == 0x8100 {
		vlan = binary.BigEndian.Uint16(frame[14:]) & 0xfff
	}
	for side, s := range p.sides {
		if s.sw == t.sw && s.dev == t.dev && s.vlan == vlan {
			return side
		}
	}
	return fmt.Sprintf("%s, VLAN %d", t.dev, vlan)
}

// Judge ends the recording and looks at it. An error says that it is not whole, and so proves nothing.
func (p *Pair) Judge() (*judge.Verdict, error) {
	var frames []judge.Frame
	var errs []error
	for t, c := range p.taps {
		late := c.CatchUp(5 * time.Second)
		seen, err := c.Stop()
		if err = errors.Join(err, late); err == nil && seen > tapFrames {
			err = fmt.Errorf("%d frames came, and %d are held", seen, tapFrames)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("capture of %s, %s: %w", t.node, t.dev, err))
		}
		for _, f := range c.Frames() {
			if p.o.PortMAC && bytes.HasPrefix(f.Data, portMACs) {
				continue // from one gateway to the other
			}
			frames = append(frames, judge.Frame{At: f.At, Node: t.node, Side: p.sideOf(t, f.Data), Data: f.Data})
		}
	}
	clear(p.taps)
	if len(errs) > 0 {
		return nil, errors.Join(errs...)
	}
	c := judge.Case{Groups: map[uint8]string{PairGroupID: PairGroup, PairWestID: PairWest}, Sides: pairTags}
	if p.o.Apart || p.o.PortMAC {
		c.All = PairGroup
	}
	return judge.Judge(c, frames), nil
}
