package snapshot

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"sync/atomic"

	"demarc/acl"
	"demarc/gateway/conntrack"
	"demarc/gateway/fib"
	"demarc/gateway/flow"
	"demarc/gateway/meter"
	"demarc/gateway/nat"
	"demarc/gateway/packet"
	"demarc/gateway/police"
)

// Iface is a port, with or without a VLAN tag, as the pipeline sees it. Index 0 is never used.
type Iface struct {
	Index     uint16
	Name      string
	Port      uint16 // index into the node's ports
	VLAN      uint16 // 0 = untagged
	MAC       [6]byte
	MTU       int           // IP bytes
	MSS4      uint16        // clamp for TCP over IPv4, 0 = off
	MSS6      uint16        // clamp for TCP over IPv6, 0 = off
	Zone      flow.TenantID // flow.Backbone or the tenant
	Used      bool          // the policy gives it to somebody; what arrives on others is dropped
	Addrs     []netip.Prefix
	Addr4     flow.Addr // the first IPv4 address: source of ICMP errors
	Addr6     flow.Addr // the first IPv6 address
	Has4      bool
	Has6      bool
	LinkLocal flow.Addr // fe80::/64 address of the gateway on this link
	NoErrors  bool      // no error of our own is sent out of here (RFC 5508 REQ-9)

	Group       *Group     // its tenant's, nil when every node serves that; on the backbone nil
	Groups      []Presence // the groups that are here: its tenant's, or all on the backbone
	here, here6 bits256    // their ids; and of those with a link-local address here
}

// HopKind says what a next hop is to the pipeline.
type HopKind uint8

// The kinds of next hop.
const (
	HopForward HopKind = iota // out of Iface, to Via or to the destination itself
	HopDiscard                // black hole
	HopLocal                  // an address of the gateway itself
	HopPublic                 // a NAT address: Public says which
	HopTenant                 // routed into the tenant: look there
)

// Hop is a next hop with what the pipeline must know beside fib.NextHop.
type Hop struct {
	Kind   HopKind
	Iface  uint16
	Tenant flow.TenantID // HopTenant, HopPublic
	Public uint32        // HopPublic: index into View.Publics
	Group  *Group        // HopLocal: a virtual address of that group; HopPublic, HopTenant: the tenant's group; nil = every node has it
	OnLink bool
	Family uint8
	Via    flow.Addr

	Vias    []uint16      // of a route: the numbers of its routers; Iface and Via are the first one's
	Backups []uint16      // of a route: those that stand in for Vias
	State   *fib.HopState // of a router: whether it lives; nil for all else
	over    []uint16      // of a router that stands in for others: their numbers, in order. One that is both has a number for each
	weight  uint64        // of a router: what Choose hashes
	shared  bool          // of a router: some route has others beside it
}

// Forward is the inside end of a port forward.
type Forward struct {
	Inside flow.Addr
	Port   uint16
}

// Public is one public IPv4 address that belongs to a tenant.
type Public struct {
	Addr     flow.Addr
	ID       nat.AddrID
	Tenant   flow.TenantID
	Dynamic  bool               // in the tenant's pool
	Static   bool               // 1:1 to Inside
	Inside   flow.Addr          // with Static
	Forwards map[uint32]Forward // ForwardKey(protocol, port)
	Host     bool               // the host's own address too: what the gateway does not know is not answered here

	reserved [3]*[1024]uint64 // by nat.Class: ports that no mapping may have; nil = none
}

// noPorts stands for nil where a bitmap is wanted. Never written to.
var noPorts [1024]uint64

func (p *Public) ports(class nat.Class) *[1024]uint64 {
	if b := p.reserved[class]; b != nil {
		return b
	}
	return &noPorts
}

// Reserved reports whether no mapping may have that port: it is forwarded, or the host's own. nat.Space says the same once the View is activated.
func (p *Public) Reserved(class nat.Class, port uint16) bool {
	b := p.reserved[class]
	return port == 0 || b != nil && b[port/64]>>(port%64)&1 != 0
}

// End is an inside address and port of a protocol.
type End struct {
	Addr  flow.Addr
	Port  uint16
	Proto uint8
}

// PublicEnd is a port of a public address.
type PublicEnd struct {
	Public uint32 // index into View.Publics
	Port   uint16
}

// Forwarded is the public end by which leaves what comes from an inside end, where a forward leads to that.
func (t *Tenant) Forwarded(inside *flow.Addr, port uint16, proto uint8) (PublicEnd, bool) {
	if len(t.ForwardByEnd) == 0 { // as most: no hash for each first packet
		return PublicEnd{}, false
	}
	e, ok := t.ForwardByEnd[End{*inside, port, proto}]
	return e, ok
}

// ForwardKey is the key of Public.Forwards.
func ForwardKey(proto uint8, port uint16) uint32 { return uint32(proto)<<16 | uint32(port) }

// Hits counts the sessions that a rule decided, and the packets that it denied: one word a worker, each on its own line.
type Hits struct{ per []hit }

type hit struct {
	n atomic.Uint64 // worker: rw, others: ro
	_ [56]byte
}

// NewHits makes counters for so many workers.
func NewHits(workers int) *Hits {
	return &Hits{per: make([]hit, workers)}
}

// Add counts one hit of worker w.
func (h *Hits) Add(w int) { h.per[w].n.Add(1) }

// Sum is the hits of all workers.
func (h *Hits) Sum() (n uint64) {
	for i := range h.per {
		n += h.per[i].n.Load()
	}
	return n
}

// Rule is what the pipeline and the CLI need of an ACL line besides its match.
type Rule struct {
	Name  string
	Text  string // canonical text; the identity of the rule from one policy to the next
	Allow bool
	Tell  bool // with not Allow: an inside host is told, also where the tenant is silent
	Log   bool
	Voice bool
	Hits  *Hits
}

// Reject is what an inside host hears of a conversation that it may not begin.
type Reject uint8

// The choices.
const (
	RejectSilent Reject = iota
	RejectICMP          // administratively prohibited
	RejectReset         // the same, and a reset for TCP
)

// Told bounds and counts the errors that the gateway sends towards one side. All workers share it, and it outlives a View.
type Told struct {
	Word       police.Word
	Sent, Held *Hits // errors sent, and those that the rate held back
}

// Errors is what bounds all errors of ours.
type Errors struct {
	Word     police.Word
	Backbone Told
}

// Shared is the state of a tenant that all workers share and that outlives a View.
type Shared struct {
	Words       *[2]police.Words // by meter.Out, meter.In. A pointer, so that they can lie where another executor moves them too
	SessionRate police.Word
	// SessionRateIn is of what strangers begin beside what others leave them.
	SessionRateIn police.Word
	Sessions      atomic.Int64    // live now, over all workers
	Inbound       atomic.Int64    // of them, those that the backbone began
	Unanswered    [2]atomic.Int64 // of them, those that are not answered yet, by meter.Out (begun inside), meter.In
	Created       atomic.Uint64   // begun since start
	Told          Told
}

// Tenant is one enterprise as the pipeline sees it.
type Tenant struct {
	ID             flow.TenantID
	Name           string
	Group          *Group // that serves it; nil = every node does
	Ifaces         []uint16
	Prefixes       PrefixSet
	Inside         []netip.Prefix  // the same, as they were written
	ACL            [2]*acl.Program // by meter.Out, meter.In
	Rules          [2][]Rule
	DefaultHits    [2]*Hits
	DefaultOut     bool // what no outbound rule matched is allowed
	DefaultTell    bool // as Rule.Tell, for what no outbound rule matched
	Reject         Reject
	Extra          packet.Extra // IPv4 options and IPv6 extension headers that may pass
	NAT            bool         // IPv4 towards the backbone is translated
	Pool           []nat.AddrID
	PoolAddrs      []flow.Addr
	StaticByInside map[flow.Addr]uint32 // inside address -> index into View.Publics
	ForwardByEnd   map[End]PublicEnd    // where a forward leads to -> the public end of the first one that does: what comes from there leaves by it
	Bypass         PrefixSet
	Mapping        nat.Mode // for what an inside port keeps its public one
	Filtering      nat.Mode // who may open a conversation to a mapped port
	Pooling        nat.Pooling
	PerHost        bool // ports in blocks of one inside host
	MaxSessions    int64
	MaxInbound     int64 // of MaxSessions, how many the backbone may have begun
	MaxUnanswered  int64 // of MaxSessions, how many may be unanswered, in each direction
	SessionRate    police.Rate
	SessionRateIn  police.Rate // the part of it that strangers have whatever goes out; unlimited = none
	HostSessions   uint32
	HostRate       police.Rate
	HostBits       [2]police.Rate // of each inside host, by meter.Out, meter.In
	HostPackets    [2]police.Rate
	HostLimits     bool          // something is limited per inside host
	HostRates      bool          // HostBits or HostPackets are
	Dir            [2]police.Dir // by meter.Out, meter.In
	VoiceDSCP      uint64        // bit n: DSCP n is voice
	Shared         *Shared
}

// Voice reports whether a packet with this TOS byte or traffic class is voice by its DSCP.
func (t *Tenant) Voice(tos uint8) bool { return t.VoiceDSCP>>(tos>>2)&1 != 0 }

// View is all that a worker must know to judge a packet.
type View struct {
	Gen       uint32 // higher with each View; a session that was judged under another is judged again
	Revision  uint64 // of the policy
	Text      uint64 // stands for the policy's text: the same number may be that of another text on a node that has served by itself
	Ifaces    []Iface
	Outside   uint16     // the first backbone interface: its address speaks for the gateway where a packet came in on none; 0 = none
	ports     [][]uint16 // [port][vlan] -> interface, 0 = none
	Tenants   []*Tenant  // by id; nil where there is none
	FIB       *fib.Table
	Hops      []Hop           // of the routes, parallel to the FIB's
	vias      []Hop           // routers, by topVia - number; HopDiscard where a number is free
	first     []*fib.HopState // states of vias, see MayLeave
	Publics   []Public
	OneTenant bool // there is nobody whom its sessions could leave without room
	Timeouts  conntrack.Timeouts
	NATHold   uint32      // ticks
	ErrRate   police.Rate // of all errors that we send
	SideRate  police.Rate // of those towards one side
	Errors    *Errors
	Workers   int
	HomeSeed  uint64
	Fresh     []flow.TenantID // ids that this View gives to new tenants: their counters start at 0

	groups   *[256]*Group // by id; nil where there is none, and altogether when the policy has none
	byName   map[string]flow.TenantID
	retired  map[flow.TenantID]uint32 // ids that rest, and the View from which on their tenant is gone
	marked   map[flow.Addr]bool       // addresses of which nat.Space may still hold a reservation, also when no tenant has them now
	reserved []reservation            // what Activate must tell: only what differs from the View before
	routes   []fib.Route
}

type reservation struct {
	pub   uint32 // index into Publics
	class nat.Class
	ports *[1024]uint64

	before *[1024]uint64 // what the View before had set aside
}

// Twin is the same View with state of its own: what is counted or taken by it is not counted or taken by v. Refresh makes that state what v's is now.
func (v *View) Twin() *View {
	c := *v
	c.Tenants = make([]*Tenant, len(v.Tenants))
	nobody := NewHits(v.Workers)
	c.Errors = &Errors{Backbone: Told{Sent: nobody, Held: nobody}}
	for i, t := range v.Tenants {
		if t == nil {
			continue
		}
		n := *t
		n.Shared = &Shared{Words: &[2]police.Words{}, Told: Told{Sent: nobody, Held: nobody}}
		for d := range n.Rules {
			n.Rules[d] = append([]Rule(nil), t.Rules[d]...)
			for r := range n.Rules[d] {
				n.Rules[d][r].Hits = nobody
			}
			n.DefaultHits[d] = nobody
		}
		c.Tenants[i] = &n
	}
	return &c
}

// Refresh makes the state of c, a Twin of v, what that of v is now.
func (c *View) Refresh(v *View) {
	c.Errors.Word.Store(v.Errors.Word.Load())
	c.Errors.Backbone.Word.Store(v.Errors.Backbone.Word.Load())
	for i, t := range v.Tenants {
		if t != nil {
			c.Tenants[i].Shared.copy(t.Shared)
		}
	}
}

// copy makes s what from is now. A test holds it against the fields of Shared.
func (s *Shared) copy(from *Shared) {
	for d := range s.Words {
		s.Words[d].Bits.Store(from.Words[d].Bits.Load())
		s.Words[d].Packets.Store(from.Words[d].Packets.Load())
		s.Words[d].Voice.Store(from.Words[d].Voice.Load())
		s.Words[d].Queued.Store(from.Words[d].Queued.Load())
		s.Unanswered[d].Store(from.Unanswered[d].Load())
	}
	s.SessionRate.Store(from.SessionRate.Load())
	s.SessionRateIn.Store(from.SessionRateIn.Load())
	s.Sessions.Store(from.Sessions.Load())
	s.Inbound.Store(from.Inbound.Load())
	s.Created.Store(from.Created.Load())
	s.Told.Word.Store(from.Told.Word.Load()) // its counters are the twin's own
}

// Routes lists what was compiled into the FIB, in no promised order.
func (v *View) Routes() []fib.Route { return v.routes }

// Iface finds the interface that a frame with this tag came in on; 0 when there is none.
func (v *View) Iface(port, vlan uint16) uint16 {
	if int(port) >= len(v.ports) {
		return 0
	}
	if t := v.ports[port]; int(vlan) < len(t) {
		return t[vlan]
	}
	return 0
}

// Tenant is the tenant with this id, or nil.
func (v *View) Tenant(id flow.TenantID) *Tenant {
	if int(id) < len(v.Tenants) {
		return v.Tenants[id]
	}
	return nil
}

// Told is what bounds errors of ours towards a zone, nil when there is no such zone.
func (v *View) Told(zone flow.TenantID) *Told {
	if zone == flow.Backbone {
		return &v.Errors.Backbone
	}
	if t := v.Tenant(zone); t != nil {
		return &t.Shared.Told
	}
	return nil
}

// TenantByName finds a tenant.
func (v *View) TenantByName(name string) *Tenant {
	if id, ok := v.byName[name]; ok {
		return v.Tenant(id)
	}
	return nil
}

// Lookup finds the next hop in a zone; ok is false when there is no route.
func (v *View) Lookup(zone flow.TenantID, family uint8, a *flow.Addr) (nh uint16, h *Hop, ok bool) {
	nh, ok = v.FIB.Lookup(zone, family, a)
	if !ok {
		return 0, nil, false
	}
	return nh, &v.Hops[nh], true
}

// Register gives the public addresses their numbers in space. An address keeps its number for as long as the process runs, so this is for
// a View that will be served, not for one that is only asked about: all get theirs or none. Control only; it changes nothing that workers read.
func (v *View) Register(space *nat.Space) error {
	news := 0
	for i := range v.Publics {
		if _, ok := space.Find([4]byte(v.Publics[i].Addr[:4])); !ok {
			news++
		}
	}
	if room := space.Room(); news > room {
		return fmt.Errorf("%d public addresses are new, and there are places for %d: those of earlier policies have theirs until the next start of this node", news, room)
	}
	for i := range v.Publics {
		p := &v.Publics[i]
		id, err := space.Register([4]byte(p.Addr[:4]))
		if err != nil {
			return fmt.Errorf("public address %s: %w", p.Addr.Netip(4), err)
		}
		p.ID = id
	}
	for _, t := range v.Tenants {
		if t == nil {
			continue
		}
		t.Pool = t.Pool[:0]
		for _, a := range t.PoolAddrs {
			id, _ := space.Find([4]byte(a[:4]))
			t.Pool = append(t.Pool, id)
		}
	}
	return nil
}

// Activate makes the public ports that this View sets aside known to the allocators. Control only, after Register and before workers
// get the View, and after the View that it was compiled from was activated. Ports that are no longer set aside stay so until Acknowledged:
// a worker that still has the View before would send the answers of a mapping there to the old forward.
func (v *View) Activate(space *nat.Space) {
	for _, r := range v.reserved {
		both := *r.ports
		for i, w := range r.before {
			both[i] |= w
		}
		space.SetReserved(v.Publics[r.pub].ID, r.class, &both)
	}
}

// Acknowledged frees the ports that this View no longer sets aside. Control only, when every worker works with the View.
func (v *View) Acknowledged(space *nat.Space) {
	for _, r := range v.reserved {
		space.SetReserved(v.Publics[r.pub].ID, r.class, r.ports)
	}
}

// ACLKey is the key of the ACL for a conversation between inside and outside addresses.
func ACLKey(src, dst *flow.Addr, sport, dport uint16, proto, family uint8) acl.Key {
	k := acl.Key{Src: [16]byte(*src), Dst: [16]byte(*dst), SPort: sport, DPort: dport, Proto: proto, Family: family}
	if proto == flow.ICMP || proto == flow.ICMPv6 {
		// A query is written with its type as one of the ports (flow.Key); the ACL knows type<<8|code.
		k.SPort, k.DPort = 0, dport<<8
	}
	return k
}

// Decision is what the rules of a tenant say of a conversation.
type Decision struct {
	Allow bool
	Rule  flow.RuleID // flow.NoRule: the default decided
}

// Judge decides by the rules of t whether a conversation may be opened in direction d, and which rule said so.
func (t *Tenant) Judge(d meter.Dir, k *acl.Key) Decision {
	if m := t.ACL[d].Lookup(k); m.Found {
		return Decision{m.Allow, flow.RuleID(m.Index)}
	}
	return Decision{d == meter.Out && t.DefaultOut, flow.NoRule}
}

// HomeOf is the worker of an inside host.
func (v *View) HomeOf(t flow.TenantID, family uint8, inside *flow.Addr) int {
	return flow.Home(flow.HomeHash(t, family, inside, v.HomeSeed), v.Workers)
}

// HitsOf is the counter of a rule, or of the default.
func (t *Tenant) HitsOf(d meter.Dir, r flow.RuleID) *Hits {
	if int64(r) < int64(len(t.Rules[d])) {
		return t.Rules[d][r].Hits
	}
	return t.DefaultHits[d]
}

// PrefixSet answers whether an address lies in one of a few prefixes. The zero value contains nothing.
type PrefixSet struct {
	v4 []prefix4
	v6 []prefix6
}

type prefix4 struct{ addr, mask uint32 }
type prefix6 struct{ hi, lo, mhi, mlo uint64 }

// NewPrefixSet compiles prefixes.
func NewPrefixSet(ps []netip.Prefix) (s PrefixSet) {
	for _, p := range ps {
		p = p.Masked()
		a := flow.AddrFrom(p.Addr())
		if p.Addr().Is4() {
			m := uint32(0xffffffff)
			m = uint32(uint64(m) << (32 - p.Bits()))
			s.v4 = append(s.v4, prefix4{a.V4() & m, m})
			continue
		}
		hi, lo := be64(a[0:8]), be64(a[8:16])
		mhi, mlo := ^uint64(0), ^uint64(0)
		if b := p.Bits(); b <= 64 {
			mlo = 0
			mhi <<= 64 - b // 0 bits: shifted out to 0
		} else {
			mlo <<= 128 - b
		}
		s.v6 = append(s.v6, prefix6{hi & mhi, lo & mlo, mhi, mlo})
	}
	return s
}

func be64(b []byte) uint64 { return binary.BigEndian.Uint64(b) }

// Contains reports whether a lies in one of the prefixes.
func (s *PrefixSet) Contains(family uint8, a *flow.Addr) bool {
	if family == 4 {
		n := a.V4()
		for i := range s.v4 {
			if n&s.v4[i].mask == s.v4[i].addr {
				return true
			}
		}
		return false
	}
	hi, lo := be64(a[0:8]), be64(a[8:16])
	for i := range s.v6 {
		p := &s.v6[i]
		if hi&p.mhi == p.hi && lo&p.mlo == p.lo {
			return true
		}
	}
	return false
}

// Empty reports whether the set has no prefix.
func (s *PrefixSet) Empty() bool { return len(s.v4) == 0 && len(s.v6) == 0 }
