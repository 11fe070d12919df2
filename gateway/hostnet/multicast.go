package hostnet

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// AllMulticast has a device receive every multicast frame for as long as the result is open: a card that filters would not show
// neighbour solicitations for the gateway's addresses, of which the kernel knows nothing. It is a membership of a packet socket
// that itself receives nothing (packet(7), PACKET_MR_ALLMULTI), so the kernel counts it and takes it back when the process ends, however it ends.
type AllMulticast struct{ fd int }

// ReceiveAllMulticast opens it. It needs CAP_NET_RAW. Close it to give it back.
func ReceiveAllMulticast(ifindex int) (*AllMulticast, error) {
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("packet socket: %w", err)
	}
	if err := unix.SetsockoptPacketMreq(fd, unix.SOL_PACKET, unix.PACKET_ADD_MEMBERSHIP, &unix.PacketMreq{Ifindex: int32(ifindex), Type: unix.PACKET_MR_ALLMULTI}); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("receive all multicast on device %d: %w", ifindex, err)
	}
	return &AllMulticast{fd}, nil
}

// Close gives the membership back. It may be called more than once.
func (m *AllMulticast) Close() error {
	if m.fd < 0 {
		return nil
	}
	err := unix.Close(m.fd)
	m.fd = -1
	return err
}
