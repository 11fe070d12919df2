package hostnet

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// ErrNotFound says that there is no such link or neighbour.
var ErrNotFound = errors.New("not found")

// ErrNotSupported says that the kernel or the driver cannot tell or do this.
var ErrNotSupported = errors.New("not supported")

// Link is a network device of this namespace.
type Link struct {
	Index              int
	Name               string
	Kind               string // rtnetlink's kind: "veth", "bond"; "device" for one that no kind made
	MAC                [6]byte
	MTU                int
	Up                 bool // administratively
	Carrier            bool
	RxQueues, TxQueues int    // real ones; Watch reports those allocated, which may be more
	MostRxQueues       int    // as many receive queues as the device can have without being made anew
	Driver             string // "" when the driver does not say; Watch leaves it empty
	XDP                XDP
	Addrs              []netip.Prefix // Watch leaves it empty and reports each as an event
	Master             int            // ifindex of the bridge or bond that it belongs to, 0 = none
}

// XDP says what program is attached to a link.
type XDP struct {
	ID   uint32 // 0 = none
	Mode string // "native" | "generic" | "offload" | "several", "" = none
}

var xdpModes = [...]string{"", "native", "generic", "offload", "several"} // XDP_ATTACHED_*

// dumpTries is how often a dump is repeated that a change interrupted. What the last one has is taken.
const dumpTries = 5

func dump[T any](read func() (T, error)) (v T, err error) {
	for range dumpTries {
		if v, err = read(); !errors.Is(err, netlink.ErrDumpInterrupted) {
			return v, err
		}
	}
	return v, nil
}

func fromNetlink(nl netlink.Link) Link {
	a := nl.Attrs()
	l := Link{
		Index: a.Index, Name: a.Name, Kind: nl.Type(), MTU: a.MTU, Up: a.RawFlags&unix.IFF_UP != 0, Carrier: a.RawFlags&unix.IFF_LOWER_UP != 0,
		RxQueues: a.NumRxQueues, TxQueues: a.NumTxQueues, MostRxQueues: a.NumRxQueues, Master: a.MasterIndex,
	}
	copy(l.MAC[:], a.HardwareAddr)
	if x := a.Xdp; x != nil && x.Attached && int(x.AttachMode) < len(xdpModes) {
		l.XDP = XDP{ID: x.ProgId, Mode: xdpModes[x.AttachMode]}
	}
	return l
}

// complete adds what takes further questions. Only a link that went meanwhile is an error.
func complete(nl netlink.Link) (Link, error) {
	l := fromNetlink(nl)
	list, err := dump(func() ([]netlink.Addr, error) { return netlink.AddrList(nl, netlink.FAMILY_ALL) })
	if err != nil {
		return Link{}, fmt.Errorf("read addresses of %s: %w", l.Name, notFound(err))
	}
	for _, a := range list {
		if p, ok := prefixOf(a.IPNet); ok {
			l.Addrs = append(l.Addrs, p)
		}
	}
	if rx, tx, err := queues(l.Index, l.Name); err == nil {
		l.RxQueues, l.TxQueues = rx, tx
	}
	l.Driver = driver(l.Name)
	return l, nil
}

func notFound(err error) error {
	var missing netlink.LinkNotFoundError
	if errors.As(err, &missing) || errors.Is(err, unix.ENODEV) {
		return ErrNotFound
	}
	return err
}

// LinkByName reads one link. The error wraps ErrNotFound when there is none.
func LinkByName(name string) (Link, error) {
	nl, err := netlink.LinkByName(name)
	if err != nil {
		return Link{}, fmt.Errorf("link %q: %w", name, notFound(err))
	}
	return complete(nl)
}

// LinkByIndex reads one link. The error wraps ErrNotFound when there is none.
func LinkByIndex(index int) (Link, error) {
	nl, err := netlink.LinkByIndex(index)
	if err != nil {
		return Link{}, fmt.Errorf("link %d: %w", index, notFound(err))
	}
	return complete(nl)
}

// TxDropped is how many frames the device of that index says that it has dropped on their way out since it was made. What was redirected to it counts where its driver counts that (veth does: what finds the far end's ring full). The error
// wraps ErrNotFound when there is none.
func TxDropped(index int) (uint64, error) {
	nl, err := netlink.LinkByIndex(index)
	if err != nil {
		return 0, fmt.Errorf("link %d: %w", index, notFound(err))
	}
	s := nl.Attrs().Statistics
	if s == nil {
		return 0, fmt.Errorf("link %d: the kernel tells no statistics of it", index)
	}
	return s.TxDropped, nil
}

// Links reads all links.
func Links() ([]Link, error) {
	list, err := dump(netlink.LinkList)
	if err != nil {
		return nil, fmt.Errorf("list links: %w", err)
	}
	out := make([]Link, 0, len(list))
	for _, nl := range list {
		l, err := complete(nl)
		if errors.Is(err, ErrNotFound) {
			continue // went while we were reading
		}
		if err != nil {
			return nil, err
		}
		out = append(out, l)
	}
	return out, nil
}

func prefixOf(n *net.IPNet) (netip.Prefix, bool) {
	if n == nil {
		return netip.Prefix{}, false
	}
	a, ok := netip.AddrFromSlice(n.IP)
	if !ok {
		return netip.Prefix{}, false
	}
	bits, _ := n.Mask.Size()
	return netip.PrefixFrom(a.Unmap(), bits), true
}

// driver asks by ioctl; "" when there is no answer.
func driver(name string) string {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return ""
	}
	defer unix.Close(fd)
	info, err := unix.IoctlGetEthtoolDrvinfo(fd, name)
	if err != nil {
		return ""
	}
	return unix.ByteSliceToString(info.Driver[:])
}

// EphemeralRange is the range, both ends included, from which this namespace's stack takes ports for its own connections.
func EphemeralRange() (lo, hi uint16, err error) {
	const file = "/proc/sys/net/ipv4/ip_local_port_range" // of the calling thread's namespace
	b, err := os.ReadFile(file)
	if err != nil {
		return 0, 0, err
	}
	return parseRange(file, string(b))
}

func parseRange(file, s string) (lo, hi uint16, err error) {
	f := strings.Fields(s)
	if len(f) == 2 {
		a, err1 := strconv.ParseUint(f[0], 10, 16)
		b, err2 := strconv.ParseUint(f[1], 10, 16)
		if err1 == nil && err2 == nil && a <= b {
			return uint16(a), uint16(b), nil
		}
	}
	return 0, 0, fmt.Errorf("%s: %q is not two ports", file, s)
}
