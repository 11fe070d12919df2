package slowpath

import (
	"context"
	"log/slog"
	"net/netip"

	"demarc/gateway/flow"
	"demarc/gateway/verdict"
)

// Kind says what a worker hands over.
type Kind uint8

const (
	// Learn is a whole ARP or neighbour discovery frame, as received.
	Learn Kind = iota
	// Resolve is a finished frame whose next hop has no MAC yet: only the two MACs in its Ethernet header are still to be written.
	Resolve
)

// Interface is one interface of the gateway as the slow path needs it.
type Interface struct {
	Index      uint16 // as in fib.NextHop.Iface
	Name       string
	Port       uint16 // handed to Config.Send
	VLAN       uint16 // 0 = untagged
	MAC        [6]byte
	Addrs      []netip.Prefix // the gateway's addresses with the length of their link's prefix
	Proxy      []netip.Prefix // NAT addresses answered for here because they are on this link
	HostShared []netip.Addr   // of those, what the kernel answers for and resolves with: never answered here
	Ifindex    int            // the kernel's device, handed to Config.HostResolve's caller through Index; kept for display
}

// Table is the neighbour table that workers read: fib.Neighbors. The slow path is its one writer.
type Table interface {
	Len() int
}

// Config is what New needs. Neighbors, Send and Now are required.
type Config struct {
	Neighbors   Table
	Send        func(port uint16, frame []byte) bool // copies the frame towards the port; false = no room now. Must not block or call back
	Now         func() uint64                        // CLOCK_BOOTTIME, ns
	Log         *slog.Logger                         // nil = silent
	Workers     int                                  // how many numbers Input is called with; default 1
	Capacity    int                                  // entries of all states; default 4096; not above the capacity of Neighbors
	QueuePerHop int                                  // frames that wait for one next hop; default 8
	MaxPending  int                                  // frames that wait in all; default 512
	FrameBytes  int                                  // longest frame that may wait; default 4096
	Seed        uint64                               // for the jitter of timers
	// HostResolve asks the kernel to resolve (NTF_USE); the answer comes by Learned. May be nil. Called by Run without the lock.
	HostResolve func(iface uint16, a netip.Addr)
	// Unreachable is told each frame whose next hop did not answer, so that it is counted as NoNeighbor. May be nil.
	// The frame is only valid during the call. Must not call back.
	Unreachable func(frame []byte, iface uint16)
	// Dropped is told each waiting frame given up for another reason (NeighborQueueFull, TxRingFull, InterfaceDown). As Unreachable.
	Dropped func(frame []byte, iface uint16, why verdict.Reason)
}

// Slow is the slow path.
type Slow struct{ cfg Config }

// New makes a slow path; it does no I/O.
func New(c Config) *Slow { return &Slow{cfg: c} }

// Input takes a copy of data. It is called by worker number worker only, never blocks, and returns false when there is no room.
// For Learn, nextHop is ignored; for Resolve, family and nextHop say whose MAC is wanted on iface.
func (s *Slow) Input(worker int, kind Kind, iface uint16, family uint8, nextHop *flow.Addr, data []byte) bool {
	return false
}

// SetInterfaces replaces the list of interfaces; entries of those that went are forgotten, new addresses are announced.
func (s *Slow) SetInterfaces(list []Interface) {}

// Learned tells what the kernel knows about a neighbour on an interface; a zero mac means that it no longer knows.
func (s *Slow) Learned(iface uint16, a netip.Addr, mac [6]byte) {}

// Run works until ctx ends.
func (s *Slow) Run(ctx context.Context) error { <-ctx.Done(); return nil }

// Entry is one neighbour for the operator's eyes.
type Entry struct {
	Iface     uint16
	Interface string
	Addr      netip.Addr
	MAC       [6]byte
	State     string // "incomplete" | "reachable" | "stale" | "probe" | "failed" | "kernel"
	AgeNs     uint64 // since it was last confirmed, or made
	InUse     bool   // a worker looked it up since the last time it was asked
	Waiting   int    // frames that wait for it
}

// Neighbors lists all entries, ordered by interface and address.
func (s *Slow) Neighbors() []Entry { return nil }

// LinkLocal is the fe80::/64 address that an interface with this MAC gets (RFC 4291 appendix A, modified EUI-64).
func LinkLocal(mac [6]byte) netip.Addr {
	return netip.AddrFrom16([16]byte{0xfe, 0x80, 8: mac[0] ^ 2, mac[1], mac[2], 0xff, 0xfe, mac[3], mac[4], mac[5]})
}

// Stats counts since New.
type Stats struct {
	Learned     uint64 // ARP and ND frames looked at
	Resolves    uint64 // frames that came to wait for a next hop
	RingFull    uint64 // inputs refused for want of room in a ring
	Replies     uint64 // ARP replies and advertisements sent in answer
	Solicited   uint64 // requests and solicitations sent
	Announced   uint64 // gratuitous ARP and unsolicited advertisements sent
	Forwarded   uint64 // waiting frames sent
	NoNeighbor  uint64 // waiting frames given up: no answer
	QueueFull   uint64 // waiting frames given up: bounds
	SendFull    uint64 // frames that Send refused
	Duplicates  uint64 // someone else answered for one of our addresses
	MACChanges  uint64 // a known neighbour moved to another MAC
	Malformed   uint64 // frames that were not sound ARP or ND
	Ignored     uint64 // sound frames that said nothing to us
	RateLimited uint64 // answers or solicitations withheld by a rate
	TableFull   uint64 // entries refused because all are in use
}

// Stats returns the counters.
func (s *Slow) Stats() Stats { return Stats{} }
