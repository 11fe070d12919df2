package hostnet

import (
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// Neigh is an entry of the kernel's neighbour table.
type Neigh struct {
	Ifindex int
	Addr    netip.Addr
	MAC     [6]byte
	State   uint16 // NUD_*
	Valid   bool   // MAC may be sent to: reachable, stale, delay, probe or permanent
}

const sendable = unix.NUD_REACHABLE | unix.NUD_STALE | unix.NUD_DELAY | unix.NUD_PROBE | unix.NUD_PERMANENT

func neighFrom(n *netlink.Neigh) (Neigh, bool) {
	a, ok := netip.AddrFromSlice(n.IP)
	if !ok {
		return Neigh{}, false
	}
	v := Neigh{Ifindex: n.LinkIndex, Addr: a.Unmap(), State: uint16(n.State)}
	copy(v.MAC[:], n.HardwareAddr)
	v.Valid = n.State&sendable != 0 && v.MAC != [6]byte{}
	return v, true
}

func family(a netip.Addr) int {
	if a.Is4() {
		return unix.AF_INET
	}
	return unix.AF_INET6
}

// Neighbor reads one entry, by itself and not out of a dump of the table, which may be large; ErrNotFound when the kernel has none, or no such link.
func Neighbor(ifindex int, a netip.Addr) (Neigh, error) {
	a = a.Unmap().WithZone("")
	req := nl.NewNetlinkRequest(unix.RTM_GETNEIGH, 0)
	req.AddData(&netlink.Ndmsg{Family: uint8(family(a)), Index: uint32(ifindex)})
	req.AddData(nl.NewRtAttr(netlink.NDA_DST, a.AsSlice()))
	list, err := req.Execute(unix.NETLINK_ROUTE, unix.RTM_NEWNEIGH)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENODEV) {
		err = ErrNotFound
	}
	if err != nil {
		return Neigh{}, fmt.Errorf("neighbour %s on link %d: %w", a, ifindex, err)
	}
	for _, m := range list {
		if n, err := netlink.NeighDeserialize(m); err == nil {
			if v, ok := neighFrom(n); ok && v.Addr == a {
				return v, nil
			}
		}
	}
	return Neigh{}, fmt.Errorf("neighbour %s on link %d: %w", a, ifindex, ErrNotFound)
}

// Neighbors reads all entries of a link, or of all links when ifindex is 0.
func Neighbors(ifindex int) ([]Neigh, error) { return neighbors(ifindex, unix.AF_UNSPEC) }

func neighbors(ifindex, family int) ([]Neigh, error) {
	list, err := dump(func() ([]netlink.Neigh, error) { return netlink.NeighList(ifindex, family) })
	if err != nil {
		return nil, fmt.Errorf("list neighbours: %w", err)
	}
	out := make([]Neigh, 0, len(list))
	for i := range list {
		if list[i].Family != unix.AF_INET && list[i].Family != unix.AF_INET6 {
			continue // a bridge's forwarding table
		}
		if n, ok := neighFrom(&list[i]); ok {
			out = append(out, n)
		}
	}
	return out, nil
}

// UseNeighbor tells the kernel that the gateway uses this neighbour (NTF_USE): it resolves it, or confirms what it knows. It
// returns at once; the answer is a NeighborEvent, or nothing where the kernel knew already, so Neighbor is worth a look.
func UseNeighbor(ifindex int, a netip.Addr) error {
	a = a.Unmap().WithZone("")
	err := netlink.NeighSet(&netlink.Neigh{LinkIndex: ifindex, Family: family(a), State: unix.NUD_NONE, Flags: unix.NTF_USE, IP: net.IP(a.AsSlice())})
	if err == nil {
		return nil
	}
	if errors.Is(err, unix.ENODEV) {
		err = ErrNotFound
	}
	return fmt.Errorf("use neighbour %s on link %d: %w", a, ifindex, err)
}
