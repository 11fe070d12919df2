package netlab

import (
	"fmt"
	"os"
	"strings"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// offloads are the kernel's feature names behind ethtool's tx, tso, gso, gro, txvlan and rxvlan, and those for service tags.
var offloads = []string{
	"tx-checksum-ip-generic", "tx-checksum-ipv4", "tx-checksum-ipv6", "tx-checksum-sctp",
	"tx-tcp-segmentation", "tx-tcp-ecn-segmentation", "tx-tcp-mangleid-segmentation", "tx-tcp6-segmentation",
	"tx-generic-segmentation", "rx-gro", "tx-vlan-hw-insert", "rx-vlan-hw-parse", "tx-vlan-stag-hw-insert", "rx-vlan-stag-hw-parse",
}

// newOffloads belong to the same switches on kernels that know them.
var newOffloads = []string{"tx-tcp-accecn-segmentation"}

// OffloadsOff makes a device send frames as a wire would carry them: finished checksums, no giant segments, tags inside the frame.
func (l *Lab) OffloadsOff(ns, dev string) error { return l.SetOffloads(ns, dev, false) }

// SetOffloads switches the same features on or off.
func (l *Lab) SetOffloads(ns, dev string, on bool) error {
	if err := l.features(ns, dev, offloads, on); err != nil {
		return err
	}
	for _, name := range newOffloads {
		_ = l.features(ns, dev, []string{name}, on) // an older kernel refuses a name that it has not
	}
	return nil
}

// features switches what ethtool -K switches.
func (l *Lab) features(ns, dev string, names []string, on bool) error {
	s, link, err := l.link(ns, dev)
	if err != nil {
		return err
	}
	family, err := s.h.GenlFamilyGet("ethtool")
	if err != nil {
		return fmt.Errorf("ethtool netlink: %w", err)
	}
	// The request opens a socket in the namespace of its thread.
	if err := l.Do(ns, func() error { return setFeatures(family.ID, link.Attrs().Index, names, on) }); err != nil {
		return fmt.Errorf("%s of %s in %s: %w", strings.Join(names, ", "), dev, ns, err)
	}
	return nil
}

func setFeatures(family uint16, ifindex int, names []string, on bool) error {
	req := nl.NewNetlinkRequest(int(family), unix.NLM_F_ACK)
	req.AddData(&nl.Genlmsg{Command: unix.ETHTOOL_MSG_FEATURES_SET, Version: 1})
	header := nl.NewRtAttr(unix.ETHTOOL_A_FEATURES_HEADER|unix.NLA_F_NESTED, nil)
	header.AddRtAttr(unix.ETHTOOL_A_HEADER_DEV_INDEX, nl.Uint32Attr(uint32(ifindex)))
	req.AddData(header)
	wanted := nl.NewRtAttr(unix.ETHTOOL_A_FEATURES_WANTED|unix.NLA_F_NESTED, nil)
	bits := wanted.AddRtAttr(unix.ETHTOOL_A_BITSET_BITS|unix.NLA_F_NESTED, nil)
	for _, name := range names {
		bit := bits.AddRtAttr(unix.ETHTOOL_A_BITSET_BITS_BIT|unix.NLA_F_NESTED, nil)
		bit.AddRtAttr(unix.ETHTOOL_A_BITSET_BIT_NAME, nl.ZeroTerminated(name))
		if on {
			bit.AddRtAttr(unix.ETHTOOL_A_BITSET_BIT_VALUE, nil)
		}
	}
	req.AddData(wanted)
	_, err := req.Execute(unix.NETLINK_GENERIC, 0)
	return err
}

// bridgeWithoutFilter keeps bridged packets out of netfilter, where the kernel has that hook at all.
func bridgeWithoutFilter() error {
	for _, f := range []string{"iptables", "ip6tables", "arptables"} {
		err := os.WriteFile("/proc/sys/net/bridge/bridge-nf-call-"+f, []byte("0"), 0o644)
		if err != nil && !os.IsNotExist(err) {
			return err
		}
	}
	return nil
}
