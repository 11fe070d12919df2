package xsk

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// ErrNotAttached says that a device has no XDP program.
var ErrNotAttached = errors.New("no XDP program is attached")

// Modes of an attached program, as Attached names them.
const (
	modeNative  = "native"
	modeGeneric = "generic"
	modeOffload = "offload"
	modeSeveral = "several"
)

// Attributes inside IFLA_XDP and values of the attached one (linux/if_link.h).
const (
	iflaXDPFD         = 1
	iflaXDPFlags      = 3
	iflaXDPExpectedFD = 8

	xdpAttachedDrv   = 1
	xdpAttachedSKB   = 2
	xdpAttachedHW    = 3
	xdpAttachedMulti = 4
)

// attachedXDP is what a device has attached; id 0 and an empty mode: nothing.
type attachedXDP struct {
	name, mode string
	id         uint32
}

func (a *attachedXDP) ours() bool { return a.name == programName && a.mode != modeSeveral }

// label names the program for a message; a program may have no name.
func (a *attachedXDP) label() string {
	if a.name == "" {
		return "an XDP program without a name"
	}
	return fmt.Sprintf("the XDP program %q", a.name)
}

func readXDP(ifindex int) (attachedXDP, error) {
	var a attachedXDP
	l, err := netlink.LinkByIndex(ifindex)
	if err != nil {
		return a, fmt.Errorf("read xdp of device %d: %w", ifindex, err)
	}
	x := l.Attrs().Xdp
	if x == nil || !x.Attached {
		return a, nil
	}
	a.id = x.ProgId
	switch x.AttachMode {
	case xdpAttachedSKB:
		a.mode = modeGeneric
	case xdpAttachedHW:
		a.mode = modeOffload
	case xdpAttachedMulti:
		a.mode = modeSeveral
	case xdpAttachedDrv:
		a.mode = modeNative
	}
	if a.mode == modeSeveral { // one in each of several modes, and none of them is told here
		a.id = ^uint32(0)
		return a, nil
	}
	p, err := ebpf.NewProgramFromID(ebpf.ProgramID(x.ProgId))
	if err != nil {
		return a, fmt.Errorf("read xdp of device %d: open program %d: %w", ifindex, x.ProgId, err)
	}
	defer p.Close()
	info, err := p.Info()
	if err != nil {
		return a, fmt.Errorf("read xdp of device %d: program %d: %w", ifindex, x.ProgId, err)
	}
	a.name = info.Name
	return a, nil
}

// Attached says what XDP program a device of this network namespace has: name, id, mode (native, generic, offload, several; empty
// when there is none), and whether it is one of demarc's.
func Attached(ifindex int) (name string, id uint32, mode string, ours bool, err error) {
	a, err := readXDP(ifindex)
	return a.name, a.id, a.mode, a.ours(), err
}

// Release takes demarc's program off a device: from then on the kernel sees all its traffic. It is an error when there is none,
// or somebody else's.
func Release(ifindex int) error {
	a, err := readXDP(ifindex)
	switch {
	case err != nil:
		return err
	case a.id == 0:
		return fmt.Errorf("release device %d: %w", ifindex, ErrNotAttached)
	case !a.ours():
		return fmt.Errorf("release device %d: %s (id %d, %s) is not demarc's", ifindex, a.label(), a.id, a.mode)
	}
	p, err := ebpf.NewProgramFromID(ebpf.ProgramID(a.id))
	if err != nil {
		return fmt.Errorf("release device %d: open program %d: %w", ifindex, a.id, err)
	}
	defer p.Close()
	if err := setXDP(ifindex, -1, p.FD(), a.mode == modeGeneric); err != nil {
		return fmt.Errorf("release device %d: %w", ifindex, err)
	}
	return nil
}

// setXDP replaces what is attached (expected, -1: nothing must be) by fd (-1: nothing), atomically. It goes by netlink and not by
// a BPF link, because a link ends with the process unless it is pinned, and a pin needs a file system that outlives it.
func setXDP(ifindex, fd, expected int, generic bool) error {
	flags := uint32(unix.XDP_FLAGS_DRV_MODE)
	if generic {
		flags = unix.XDP_FLAGS_SKB_MODE
	}
	if expected >= 0 {
		flags |= unix.XDP_FLAGS_REPLACE
	} else {
		flags |= unix.XDP_FLAGS_UPDATE_IF_NOEXIST
	}
	// A socket of our own, in this thread's namespace, because only so does the kernel's own sentence come back with an error.
	s, err := nl.GetNetlinkSocketAt(netns.None(), netns.None(), unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("open netlink: %w", err)
	}
	defer s.Close()
	_ = s.SetExtAck(true) // without it the sentence is missing, no more
	req := nl.NewNetlinkRequest(unix.RTM_SETLINK, unix.NLM_F_ACK)
	req.Sockets = map[int]*nl.SocketHandle{unix.NETLINK_ROUTE: {Socket: s}}
	msg := nl.NewIfInfomsg(unix.AF_UNSPEC)
	msg.Index = int32(ifindex)
	req.AddData(msg)
	x := nl.NewRtAttr(unix.IFLA_XDP|unix.NLA_F_NESTED, nil)
	x.AddRtAttr(iflaXDPFD, nl.Uint32Attr(uint32(int32(fd))))
	x.AddRtAttr(iflaXDPFlags, nl.Uint32Attr(flags))
	if expected >= 0 {
		x.AddRtAttr(iflaXDPExpectedFD, nl.Uint32Attr(uint32(int32(expected))))
	}
	req.AddData(x)
	if _, err := req.Execute(unix.NETLINK_ROUTE, 0); err != nil {
		if errors.Is(err, unix.EEXIST) || errors.Is(err, unix.EBUSY) {
			return fmt.Errorf("set xdp: %w (somebody else attached or changed a program meanwhile)", err)
		}
		return explainXDP(err)
	}
	return nil
}

func explainXDP(err error) error {
	switch {
	case errors.Is(err, unix.EPERM):
		return explain("set xdp", err)
	case errors.Is(err, unix.ERANGE), errors.Is(err, unix.EINVAL):
		return fmt.Errorf("set xdp: %w (native mode needs a frame to fit into one page with its headroom: lower the MTU or use mode generic)", err)
	}
	return fmt.Errorf("set xdp: %w", err)
}
