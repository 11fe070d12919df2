package netlab

import (
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// End is one end of a veth pair.
type End struct {
	NS, Name string
	MAC      net.HardwareAddr // nil: the kernel chooses
	Addrs    []netip.Prefix
}

// LinkSpec describes a veth pair.
type LinkSpec struct {
	A, B   End
	Queues int // receive and transmit queues of both ends; 0 = 1. XDP wants them equal
	MTU    int // IP bytes; 0 = 1500
	// KeepOffloads leaves what the kernel switches on for veth. Otherwise both ends send finished checksums, real segments and tags
	// in the frame, which AF_XDP needs to see packets as a wire would carry them.
	KeepOffloads bool
}

// AddLink makes a veth pair between two namespaces, sets its addresses and brings both ends up.
func (l *Lab) AddLink(spec LinkSpec) error {
	a, err := l.space(spec.A.NS)
	if err != nil {
		return err
	}
	b, err := l.space(spec.B.NS)
	if err != nil {
		return err
	}
	queues, mtu := max(spec.Queues, 1), spec.MTU
	if mtu == 0 {
		mtu = 1500
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU, attrs.HardwareAddr = spec.A.Name, mtu, spec.A.MAC
	attrs.NumTxQueues, attrs.NumRxQueues = queues, queues
	veth := netlink.NewVeth(attrs)
	veth.PeerName, veth.PeerHardwareAddr, veth.PeerMTU = spec.B.Name, spec.B.MAC, uint32(mtu)
	veth.PeerNumTxQueues, veth.PeerNumRxQueues = uint32(queues), uint32(queues)
	veth.PeerNamespace = netlink.NsFd(int(b.file.Fd()))
	if err := a.h.LinkAdd(veth); err != nil {
		return fmt.Errorf("veth %s/%s to %s/%s: %w", spec.A.NS, spec.A.Name, spec.B.NS, spec.B.Name, err)
	}
	for _, e := range []End{spec.A, spec.B} {
		if !spec.KeepOffloads {
			if err := l.OffloadsOff(e.NS, e.Name); err != nil {
				return err
			}
		}
		for _, p := range e.Addrs {
			if err := l.AddAddr(e.NS, e.Name, p); err != nil {
				return err
			}
		}
		if err := l.SetUp(e.NS, e.Name, true); err != nil {
			return err
		}
	}
	return nil
}

// link finds a device in a namespace.
func (l *Lab) link(ns, dev string) (*space, netlink.Link, error) {
	s, err := l.space(ns)
	if err != nil {
		return nil, nil, err
	}
	link, err := s.h.LinkByName(dev)
	if err != nil {
		return nil, nil, fmt.Errorf("link %s in %s: %w", dev, ns, err)
	}
	return s, link, nil
}

// SetUp brings a device up or down.
func (l *Lab) SetUp(ns, dev string, up bool) error {
	s, link, err := l.link(ns, dev)
	if err != nil {
		return err
	}
	if up {
		return s.h.LinkSetUp(link)
	}
	return s.h.LinkSetDown(link)
}

// RemoveLink deletes a device, and with it the other end of its pair.
func (l *Lab) RemoveLink(ns, dev string) error {
	s, link, err := l.link(ns, dev)
	if err != nil {
		return err
	}
	return s.h.LinkDel(link)
}

// SetMTU changes a device's MTU, IP bytes.
func (l *Lab) SetMTU(ns, dev string, mtu int) error {
	s, link, err := l.link(ns, dev)
	if err != nil {
		return err
	}
	return s.h.LinkSetMTU(link, mtu)
}

// MAC is a device's address.
func (l *Lab) MAC(ns, dev string) (net.HardwareAddr, error) {
	_, link, err := l.link(ns, dev)
	if err != nil {
		return nil, err
	}
	return link.Attrs().HardwareAddr, nil
}

// AddAddr gives a device an address; it is usable at once (no duplicate address detection).
func (l *Lab) AddAddr(ns, dev string, p netip.Prefix) error {
	s, link, err := l.link(ns, dev)
	if err != nil {
		return err
	}
	addr := &netlink.Addr{IPNet: ipNet(p)}
	if p.Addr().Is6() {
		addr.Flags = unix.IFA_F_NODAD
	}
	if err := s.h.AddrAdd(link, addr); err != nil {
		return fmt.Errorf("address %s on %s in %s: %w", p, dev, ns, err)
	}
	return nil
}

// AddRoute sends a prefix to a next hop. The next hop's device follows from its address.
func (l *Lab) AddRoute(ns string, prefix netip.Prefix, via netip.Addr) error {
	s, err := l.space(ns)
	if err != nil {
		return err
	}
	if err := s.h.RouteAdd(&netlink.Route{Dst: ipNet(prefix), Gw: via.AsSlice()}); err != nil {
		return fmt.Errorf("route %s via %s in %s: %w", prefix, via, ns, err)
	}
	return nil
}

// FlushNeighbours forgets what a namespace has learned on a device.
func (l *Lab) FlushNeighbours(ns, dev string) error {
	s, link, err := l.link(ns, dev)
	if err != nil {
		return err
	}
	for _, family := range []int{unix.AF_INET, unix.AF_INET6} {
		list, err := s.h.NeighList(link.Attrs().Index, family)
		if err != nil {
			return err
		}
		for i := range list {
			if list[i].State&(unix.NUD_PERMANENT|unix.NUD_NOARP) == 0 {
				s.h.NeighDel(&list[i]) // one that went by itself meanwhile is as good
			}
		}
	}
	return nil
}

// AddSwitch makes a namespace with a learning switch (a Linux bridge) called sw in it. It floods multicast and passes tags on as they are.
func (l *Lab) AddSwitch(ns string) error {
	if err := l.AddNamespace(ns); err != nil {
		return err
	}
	s, err := l.space(ns)
	if err != nil {
		return err
	}
	// The bridge is no host: without IPv6 it sends nothing of its own.
	if err := l.Sysctl(ns, "net.ipv6.conf.default.disable_ipv6", "1"); err != nil {
		return err
	}
	if err := l.Do(ns, bridgeWithoutFilter); err != nil {
		return err
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name = switchDevice
	no := false
	if err := s.h.LinkAdd(&netlink.Bridge{LinkAttrs: attrs, MulticastSnooping: &no}); err != nil {
		return fmt.Errorf("bridge in %s: %w", ns, err)
	}
	return l.SetUp(ns, switchDevice, true)
}

const switchDevice = "sw"

// PortName is the port of a switch that a device is plugged into.
func PortName(e End) string {
	port := e.NS + "-" + e.Name
	return port[:min(len(port), 15)]
}

// Plug connects a device of a namespace to a switch through a new veth pair.
func (l *Lab) Plug(sw string, e End, queues, mtu int) error {
	port := PortName(e)
	if err := l.AddLink(LinkSpec{A: End{NS: sw, Name: port}, B: e, Queues: queues, MTU: mtu}); err != nil {
		return err
	}
	s, link, err := l.link(sw, port)
	if err != nil {
		return err
	}
	_, bridge, err := l.link(sw, switchDevice)
	if err != nil {
		return err
	}
	if err := s.h.LinkSetMaster(link, bridge); err != nil {
		return fmt.Errorf("plug %s into %s: %w", port, sw, err)
	}
	return nil
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}
