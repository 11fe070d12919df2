package hostnet

import (
	"context"
	"errors"
	"net/netip"
)

// ErrNotFound says that there is no such link (or neighbour).
var ErrNotFound = errors.New("not found")

// ErrNotSupported says that the kernel or the driver cannot tell or do this.
var ErrNotSupported = errors.New("not supported")

// Link is a network device of this namespace.
type Link struct {
	Index              int
	Name               string
	Kind               string // rtnetlink's kind: "veth", "bond", "" for a physical device
	MAC                [6]byte
	MTU                int
	Up                 bool // administratively
	Carrier            bool
	RxQueues, TxQueues int    // real ones; 0 when only LinkByName and LinkByIndex ask for them (Watch does not)
	Driver             string // "" when the driver does not say
	XDP                XDP
	Addrs              []netip.Prefix
	Master             int // ifindex of the bridge or bond that it belongs to, 0 = none
}

// XDP says what program is attached to a link.
type XDP struct {
	ID   uint32 // 0 = none
	Mode string // "native" | "generic" | "offload" | "several"
}

// LinkByName reads one link. The error wraps ErrNotFound when there is none.
func LinkByName(name string) (Link, error) { return Link{}, ErrNotSupported }

// LinkByIndex reads one link.
func LinkByIndex(index int) (Link, error) { return Link{}, ErrNotSupported }

// Links reads all links.
func Links() ([]Link, error) { return nil, ErrNotSupported }

// EventKind says what an Event is about.
type EventKind uint8

const (
	LinkEvent     EventKind = iota // Link is what it is now; Gone: it vanished
	AddrEvent                      // Addr on Ifindex
	NeighborEvent                  // Neigh
	ResyncEvent                    // events were lost; all that is true now follows, and Gone events for what vanished
)

// Event is one change.
type Event struct {
	Kind    EventKind
	Gone    bool
	Ifindex int
	Link    Link
	Addr    netip.Prefix
	Neigh   Neigh
}

// Watch reports what is there and then every change, until ctx ends (it then returns nil).
func Watch(ctx context.Context, fn func(Event)) error { return ErrNotSupported }

// Neigh is an entry of the kernel's neighbour table.
type Neigh struct {
	Ifindex int
	Addr    netip.Addr
	MAC     [6]byte
	State   uint16 // NUD_*
	Valid   bool   // MAC may be used: reachable, stale, delay, probe, permanent or noarp
}

// Neighbor reads one entry; ErrNotFound when the kernel has none.
func Neighbor(ifindex int, a netip.Addr) (Neigh, error) { return Neigh{}, ErrNotSupported }

// Neighbors reads all entries of a link, or of all links when ifindex is 0.
func Neighbors(ifindex int) ([]Neigh, error) { return nil, ErrNotSupported }

// UseNeighbor tells the kernel that the gateway uses this neighbour (NTF_USE): it resolves or confirms it. Returns at once.
func UseNeighbor(ifindex int, a netip.Addr) error { return ErrNotSupported }

// Offload names one offload that matters to a port of the gateway.
type Offload uint8

const (
	TxChecksum Offload = iota // "tx": unfinished checksums towards this device
	TSO
	GSO
	GRO
	LRO
	RxVLAN // the driver strips tags on receive
	TxVLAN // the tag is skb metadata, not in the frame
	NumOffloads
)

// Offloads is the state of each.
type Offloads [NumOffloads]struct{ On, Fixed bool }

// ReadOffloads asks the driver.
func ReadOffloads(name string) (Offloads, error) { return Offloads{}, ErrNotSupported }

// SetOffloads switches the named ones on or off; what is fixed and differs is an error that names it.
func SetOffloads(name string, on bool, which ...Offload) error { return ErrNotSupported }

// Queues tells how many receive and transmit queues a device really has.
func Queues(name string) (rx, tx int, err error) { return 0, 0, ErrNotSupported }

// EphemeralRange is the range from which this namespace's stack takes ports for its own connections.
func EphemeralRange() (lo, hi uint16, err error) { return 0, 0, ErrNotSupported }
