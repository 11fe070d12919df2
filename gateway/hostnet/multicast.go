package hostnet

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// Membership has a device receive more than is addressed to it, for as long as it is open.
//
// All multicast has a device receive every multicast frame for as long as the result is open: a card that filters would not show
// neighbour solicitations for the gateway's addresses, of which the kernel knows nothing. It is a membership of a packet socket
// that itself receives nothing (packet(7), PACKET_MR_ALLMULTI), so the kernel counts it and takes it back when the process ends, however it ends.
type Membership struct{ fd int }

// ReceiveAllMulticast opens it. It needs CAP_NET_RAW. Close it to give it back.
func ReceiveAllMulticast(ifindex int) (*Membership, error) {
	m, err := join(ifindex, unix.PACKET_MR_ALLMULTI, nil)
	if err != nil {
		return nil, fmt.Errorf("receive all multicast on device %d: %w", ifindex, err)
	}
	return m, nil
}

// ReceiveAll makes a device promiscuous (PACKET_MR_PROMISC), counted and taken back in the same way.
func ReceiveAll(ifindex int) (*Membership, error) {
	m, err := join(ifindex, unix.PACKET_MR_PROMISC, nil)
	if err != nil {
		return nil, fmt.Errorf("make device %d promiscuous: %w", ifindex, err)
	}
	return m, nil
}

// ReceiveMAC has a device receive what is sent to one more unicast MAC (PACKET_MR_UNICAST), counted and taken back in the same way. The kernel
// makes a device promiscuous whose driver has no filter for it, or no room in one.
func ReceiveMAC(ifindex int, mac [6]byte) (*Membership, error) {
	m, err := join(ifindex, unix.PACKET_MR_UNICAST, mac[:])
	if err != nil {
		return nil, fmt.Errorf("receive frames to %x on device %d: %w", mac, ifindex, err)
	}
	return m, nil
}

func join(ifindex int, kind uint16, addr []byte) (*Membership, error) {
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("packet socket: %w", err)
	}
	r := unix.PacketMreq{Ifindex: int32(ifindex), Type: kind, Alen: uint16(len(addr))}
	copy(r.Address[:], addr)
	if err := unix.SetsockoptPacketMreq(fd, unix.SOL_PACKET, unix.PACKET_ADD_MEMBERSHIP, &r); err != nil {
		unix.Close(fd)
		return nil, err
	}
	return &Membership{fd}, nil
}

// Close gives the membership back. It may be called more than once.
func (m *Membership) Close() error {
	if m.fd < 0 {
		return nil
	}
	err := unix.Close(m.fd)
	m.fd = -1
	return err
}
