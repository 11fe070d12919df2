package hostnet

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// Offload names one offload that matters to a port of the gateway.
type Offload uint8

// The offloads, as ethtool -K calls them.
const (
	TxChecksum   Offload = iota // packets leave the stack with unfinished checksums
	TSO                         // and as giant TCP segments
	GSO                         // and giant segments of any kind
	GRO                         // the stack joins received segments
	LRO                         // the driver does
	RxVLAN                      // the driver strips tags on receive
	TxVLAN                      // a tag that the stack sends is metadata, not in the frame
	RxSTag                      // the driver strips service tags (802.1ad) on receive
	TxSTag                      // a service tag that the stack sends is metadata, not in the frame
	HWGRO                       // the driver joins received segments, in a way that can be undone
	RxFilter                    // the driver drops tags that the kernel has no device for
	RxSTagFilter                // and such service tags
	NumOffloads                 // how many there are
)

var offloadText = [NumOffloads]string{"tx", "tso", "gso", "gro", "lro", "rxvlan", "txvlan", "rx-vlan-stag-hw-parse", "tx-vlan-stag-hw-insert",
	"rx-gro-hw", "rx-vlan-filter", "rx-vlan-stag-filter"}

// String returns the name that ethtool -K takes.
func (o Offload) String() string {
	if o < NumOffloads {
		return offloadText[o]
	}
	return "invalid"
}

// features are the kernel's names behind each; a driver has some of them.
var features = [NumOffloads][]string{
	TxChecksum: {"tx-checksum-ipv4", "tx-checksum-ip-generic", "tx-checksum-ipv6", "tx-checksum-fcoe-crc", "tx-checksum-sctp"},
	TSO:        {"tx-tcp-segmentation", "tx-tcp-ecn-segmentation", "tx-tcp-mangleid-segmentation", "tx-tcp6-segmentation", "tx-tcp-accecn-segmentation"},
	GSO:        {"tx-generic-segmentation"},
	GRO:        {"rx-gro"},
	LRO:        {"rx-lro"},
	RxVLAN:     {"rx-vlan-hw-parse"},
	TxVLAN:     {"tx-vlan-hw-insert"},
	RxSTag:     {"rx-vlan-stag-hw-parse"},
	TxSTag:     {"tx-vlan-stag-hw-insert"},
	HWGRO:      {"rx-gro-hw"},

	RxFilter: {"rx-vlan-filter"}, RxSTagFilter: {"rx-vlan-stag-filter"},
}

// ParseOffload finds one by the name that ethtool -K takes.
func ParseOffload(name string) (Offload, bool) {
	i := slices.Index(offloadText[:], name)
	return Offload(i), i >= 0 // an index that is none is not looked at
}

// OffloadState is the state of one. Fixed: the driver does not let it be changed.
type OffloadState struct{ On, Fixed bool }

// Offloads is the state of each.
type Offloads [NumOffloads]OffloadState

// genlHeader is struct genlmsghdr: command, version, reserved. The library's own leaves what it finds in the reserved field, and
// the netdev family refuses that.
type genlHeader [nl.SizeofGenlmsg]byte

func (h genlHeader) Len() int          { return len(h) }
func (h genlHeader) Serialize() []byte { return h[:] }

// genl sends one ethtool or netdev request and returns the attributes of each answer. Generic netlink rather than the old ioctl: names
// instead of bit positions, and no pointers through the kernel's interface.
func genl(familyName string, cmd uint8, flags int, attrs ...*nl.RtAttr) ([][]attr, error) {
	f, err := netlink.GenlFamilyGet(familyName)
	if err != nil {
		if errors.Is(err, unix.ENOENT) {
			return nil, fmt.Errorf("kernel without %s netlink: %w", familyName, ErrNotSupported)
		}
		return nil, err
	}
	req := nl.NewNetlinkRequest(int(f.ID), flags)
	req.AddData(genlHeader{cmd, uint8(f.Version), 0, 0})
	for _, a := range attrs {
		req.AddData(a)
	}
	msgs, err := req.Execute(unix.NETLINK_GENERIC, 0)
	switch {
	case errors.Is(err, unix.EOPNOTSUPP):
		return nil, ErrNotSupported
	case errors.Is(err, unix.ENODEV):
		return nil, ErrNotFound
	case err != nil:
		return nil, err
	}
	out := make([][]attr, 0, len(msgs))
	for _, m := range msgs {
		if len(m) < nl.SizeofGenlmsg {
			continue
		}
		a, err := attributes(m[nl.SizeofGenlmsg:])
		if err != nil {
			return nil, err
		}
		out = append(out, a)
	}
	return out, nil
}

func nested(typ int) *nl.RtAttr { return nl.NewRtAttr(typ|unix.NLA_F_NESTED, nil) }

func header(typ int, name string) *nl.RtAttr {
	h := nested(typ)
	h.AddRtAttr(unix.ETHTOOL_A_HEADER_DEV_NAME, nl.ZeroTerminated(name))
	return h
}

const typeMask = 0x3fff // NLA_TYPE_MASK

// bits reads the names of the bits that are set in a verbose bit set.
func bits(b []byte) (map[string]bool, error) {
	attrs, err := attributes(b)
	if err != nil {
		return nil, err
	}
	plain := false // a list: what is named is set
	set := map[string]bool{}
	for _, a := range attrs {
		if a.typ == unix.ETHTOOL_A_BITSET_NOMASK {
			plain = true
		}
	}
	for _, a := range attrs {
		if a.typ != unix.ETHTOOL_A_BITSET_BITS {
			continue
		}
		list, err := attributes(a.value)
		if err != nil {
			return nil, err
		}
		for _, bit := range list {
			fields, err := attributes(bit.value)
			if err != nil {
				return nil, err
			}
			name, on := "", plain
			for _, f := range fields {
				switch f.typ {
				case unix.ETHTOOL_A_BITSET_BIT_NAME:
					name = unix.ByteSliceToString(f.value)
				case unix.ETHTOOL_A_BITSET_BIT_VALUE:
					on = true
				}
			}
			if on {
				set[name] = true
			}
		}
	}
	return set, nil
}

// readFeatures asks which features are on, which may be changed and which may not whatever the driver says.
func readFeatures(name string) (active, changeable, never map[string]bool, err error) {
	answer, err := genl("ethtool", unix.ETHTOOL_MSG_FEATURES_GET, 0, header(unix.ETHTOOL_A_FEATURES_HEADER, name))
	if err != nil {
		return nil, nil, nil, err
	}
	if len(answer) == 0 {
		return nil, nil, nil, ErrNotSupported
	}
	into := map[uint16]*map[string]bool{
		unix.ETHTOOL_A_FEATURES_ACTIVE: &active, unix.ETHTOOL_A_FEATURES_HW: &changeable, unix.ETHTOOL_A_FEATURES_NOCHANGE: &never,
	}
	for _, a := range answer[0] {
		if p := into[a.typ]; p != nil {
			if *p, err = bits(a.value); err != nil {
				return nil, nil, nil, err
			}
		}
	}
	return active, changeable, never, nil
}

// ReadOffloads asks the driver. The error wraps ErrNotFound or ErrNotSupported.
func ReadOffloads(name string) (Offloads, error) {
	active, changeable, never, err := readFeatures(name)
	if err != nil {
		return Offloads{}, fmt.Errorf("read offloads of %s: %w", name, err)
	}
	return offloadsOf(active, changeable, never), nil
}

func offloadsOf(active, changeable, never map[string]bool) (o Offloads) {
	for i, names := range features {
		o[i].Fixed = true
		for _, n := range names {
			o[i].On = o[i].On || active[n]
			if changeable[n] && !never[n] {
				o[i].Fixed = false
			}
		}
	}
	return o
}

// SetOffloads switches the named ones on or off. What does not follow is an error that names it; the others have changed.
func SetOffloads(name string, on bool, which ...Offload) error {
	_, changeable, never, err := readFeatures(name)
	if err != nil {
		return fmt.Errorf("read offloads of %s: %w", name, err)
	}
	var list []string
	for _, o := range which {
		if o >= NumOffloads {
			return fmt.Errorf("set offloads of %s: no offload %d", name, o)
		}
		for _, f := range features[o] {
			if changeable[f] && !never[f] {
				list = append(list, f)
			}
		}
	}
	// The kernel remembers a wish that the driver refused and asks it no more when the same is wished again. So what was refused is wished no
	// longer, whoever wished it, and wished anew once: virtio_net refuses rx-gro-hw only while a program is attached.
	for range 2 {
		if err := wish(name, on, list); err != nil {
			return fmt.Errorf("set offloads of %s: %w", name, err)
		}
		active, _, _, err := readFeatures(name)
		if err != nil {
			return fmt.Errorf("read offloads of %s: %w", name, err)
		}
		refused := slices.DeleteFunc(slices.Clone(list), func(f string) bool { return active[f] == on })
		if len(refused) == 0 {
			break
		}
		if err := wish(name, !on, refused); err != nil {
			return fmt.Errorf("set offloads of %s: %w", name, err)
		}
	}
	now, err := ReadOffloads(name)
	if err != nil {
		return err
	}
	var stuck []string
	for _, o := range which {
		if now[o].On != on && !slices.Contains(stuck, o.String()) {
			stuck = append(stuck, o.String())
		}
	}
	if len(stuck) > 0 {
		return fmt.Errorf("set offloads of %s: the driver does not change %s: %w", name, strings.Join(stuck, ", "), ErrNotSupported)
	}
	return nil
}

// wish asks for features, by the kernel's names; for none it asks nothing.
func wish(name string, on bool, list []string) error {
	if len(list) == 0 {
		return nil
	}
	names := nested(unix.ETHTOOL_A_BITSET_BITS)
	for _, f := range list {
		bit := nested(unix.ETHTOOL_A_BITSET_BITS_BIT)
		bit.AddRtAttr(unix.ETHTOOL_A_BITSET_BIT_NAME, nl.ZeroTerminated(f))
		if on {
			bit.AddRtAttr(unix.ETHTOOL_A_BITSET_BIT_VALUE, nil)
		}
		names.AddChild(bit)
	}
	wanted := nested(unix.ETHTOOL_A_FEATURES_WANTED)
	wanted.AddChild(names)
	_, err := genl("ethtool", unix.ETHTOOL_MSG_FEATURES_SET, unix.NLM_F_ACK, header(unix.ETHTOOL_A_FEATURES_HEADER, name), wanted)
	return err
}

// Queues tells how many receive and transmit queues a device really has now.
func Queues(name string) (rx, tx int, err error) {
	nl, err := netlink.LinkByName(name)
	if err != nil {
		return 0, 0, fmt.Errorf("queues of %s: %w", name, notFound(err))
	}
	if rx, tx, err = queues(nl.Attrs().Index, name); err != nil {
		return 0, 0, fmt.Errorf("queues of %s: %w", name, err)
	}
	return rx, tx, nil
}

// Of linux/netdev.h, which the system call package does not have.
const (
	netdevCmdQueueGet  = 10
	netdevQueueID      = 1
	netdevQueueIfindex = 2
	netdevQueueType    = 3 // 0 = receive, 1 = transmit

	maxQueues = 4096 // as many as a device can have
)

// queues asks the driver for its channels, then the kernel for the queues of a device that is up.
func queues(ifindex int, name string) (rx, tx int, err error) {
	if c, err := ReadChannels(name); err == nil && c.Rx+c.Combined > 0 {
		return c.Rx + c.Combined, c.Tx + c.Combined, nil
	}
	// One question a queue, until the kernel knows no further: the library reads only the first message of this family's list.
	count := func(typ uint32) (n int, err error) {
		for ; n < maxQueues && err == nil; n++ {
			_, err = genl("netdev", netdevCmdQueueGet, 0, nl.NewRtAttr(netdevQueueIfindex, nl.Uint32Attr(uint32(ifindex))),
				nl.NewRtAttr(netdevQueueType, nl.Uint32Attr(typ)), nl.NewRtAttr(netdevQueueID, nl.Uint32Attr(uint32(n))))
		}
		if err != nil {
			n--
		}
		if n == 0 {
			return 0, err
		}
		return n, nil
	}
	if rx, err = count(0); err == nil {
		tx, err = count(1)
	}
	if err != nil {
		return 0, 0, err
	}
	return rx, tx, nil
}

// XDPFeatures are what a driver says it can do with XDP (linux/netdev.h).
type XDPFeatures uint64

// The features that matter to a port.
const (
	XDPBasic    XDPFeatures = 1 << 0 // native programs
	XDPRedirect XDPFeatures = 1 << 1 // that may redirect, into a socket too
	XDPTarget   XDPFeatures = 1 << 2 // frames may be redirected to it (of a veth: as long as its far end has NAPI)
	XDPZeroCopy XDPFeatures = 1 << 3 // sockets without copies
)

const (
	netdevCmdDevGet   = 1
	netdevDevIfindex  = 1
	netdevDevFeatures = 3
)

// ReadXDPFeatures asks the driver of a link; ErrNotSupported on kernels before 6.3.
func ReadXDPFeatures(ifindex int) (XDPFeatures, error) {
	answer, err := genl("netdev", netdevCmdDevGet, 0, nl.NewRtAttr(netdevDevIfindex, nl.Uint32Attr(uint32(ifindex))))
	if err != nil {
		return 0, fmt.Errorf("xdp features of link %d: %w", ifindex, err)
	}
	for _, attrs := range answer {
		for _, a := range attrs {
			if a.typ == netdevDevFeatures && len(a.value) == 8 {
				return XDPFeatures(binary.NativeEndian.Uint64(a.value)), nil
			}
		}
	}
	return 0, fmt.Errorf("xdp features of link %d: %w", ifindex, ErrNotSupported)
}
