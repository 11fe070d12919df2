package hostnet

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"syscall"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// Of linux/netdev.h.
const (
	netdevGroup        = "mgmt"
	netdevCmdDevDel    = 3
	netdevCmdDevChange = 4
)

// WatchXDPFeatures reports of each link whose XDP features change what they are then (0 = the link is gone), until ctx ends; it then returns nil. A link of 0 says that any may have changed: so it is first, and where the kernel has lost
// events. fn is called on this goroutine. The kernel says it before the change is through: of a veth, before its far end stops to take frames. The error wraps ErrNotSupported on kernels before 6.3.
func WatchXDPFeatures(ctx context.Context, fn func(ifindex int, f XDPFeatures)) error {
	family, err := netlink.GenlFamilyGet("netdev")
	if err != nil {
		if errors.Is(err, unix.ENOENT) {
			err = fmt.Errorf("kernel without netdev netlink: %w", ErrNotSupported)
		}
		return fmt.Errorf("watch xdp features: %w", err)
	}
	group := 0
	for _, g := range family.Groups {
		if g.Name == netdevGroup {
			group = int(g.ID)
		}
	}
	if group == 0 {
		return fmt.Errorf("watch xdp features: kernel without netdev group %s: %w", netdevGroup, ErrNotSupported)
	}
	s, err := nl.Subscribe(unix.NETLINK_GENERIC)
	if err != nil {
		return fmt.Errorf("watch xdp features: %w", err)
	}
	defer s.Close()
	if err := unix.SetsockoptInt(s.GetFd(), unix.SOL_NETLINK, unix.NETLINK_ADD_MEMBERSHIP, group); err != nil {
		return fmt.Errorf("watch xdp features: join group %d: %w", group, err)
	}
	defer context.AfterFunc(ctx, s.Close)()
	fn(0, 0)
	return follow(ctx, s, func() error {
		fn(0, 0)
		return nil
	}, func(m *syscall.NetlinkMessage) {
		if m.Header.Type == family.ID {
			if ifindex, f, ok := featuresTold(m.Data); ok {
				fn(ifindex, f)
			}
		}
	})
}

// featuresTold reads a message of the netdev family's about a device that has changed, or is gone.
func featuresTold(b []byte) (ifindex int, f XDPFeatures, ok bool) {
	if len(b) < nl.SizeofGenlmsg || b[0] != netdevCmdDevChange && b[0] != netdevCmdDevDel {
		return 0, 0, false
	}
	attrs, err := attributes(b[nl.SizeofGenlmsg:])
	if err != nil {
		return 0, 0, false
	}
	told := false
	for _, a := range attrs {
		switch {
		case a.typ == netdevDevIfindex && len(a.value) == 4:
			ifindex = int(binary.NativeEndian.Uint32(a.value))
		case a.typ == netdevDevFeatures && len(a.value) == 8:
			f, told = XDPFeatures(binary.NativeEndian.Uint64(a.value)), true
		}
	}
	if b[0] == netdevCmdDevDel {
		return ifindex, 0, ifindex > 0
	}
	return ifindex, f, ifindex > 0 && told
}
