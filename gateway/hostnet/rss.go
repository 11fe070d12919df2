package hostnet

import (
	"errors"
	"fmt"
	"runtime"
	"slices"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The RSS table says which queue a received packet goes to, by its hash. It is read and set by the old ioctl: netlink reads it only from
// kernel 6.2 on and sets it only from 6.17 on, and the system call package has no wrapper. Hence unsafe here, and nowhere else in this room.

const (
	ethtoolGetIndir = 0x38 // ETHTOOL_GRXFHINDIR
	ethtoolSetIndir = 0x39 // ETHTOOL_SRXFHINDIR

	indirHead = 2       // struct ethtool_rxfh_indir: command, size, then the table
	maxIndir  = 1 << 16 // more than any card has
)

// ifreq is struct ifreq with a pointer in its union.
type ifreq struct {
	name [unix.IFNAMSIZ]byte
	data unsafe.Pointer
	_    [16]byte
}

var _ [40]byte = [unsafe.Sizeof(ifreq{})]byte{} // as the kernel has it

func ethtoolIoctl(name string, request []uint32) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	r := ifreq{data: unsafe.Pointer(&request[0])}
	if len(name) >= len(r.name) {
		return ErrNotFound
	}
	copy(r.name[:], name)
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCETHTOOL, uintptr(unsafe.Pointer(&r)))
	runtime.KeepAlive(request)
	switch errno {
	case 0:
		return nil
	case unix.EOPNOTSUPP:
		return ErrNotSupported
	case unix.ENODEV:
		return ErrNotFound
	}
	return errno
}

// ReadRSS reads the table. The error wraps ErrNotSupported where the driver has none.
func ReadRSS(name string) ([]uint32, error) {
	head := []uint32{ethtoolGetIndir, 0}
	err := ethtoolIoctl(name, head)
	if err == nil && (head[1] == 0 || head[1] > maxIndir) {
		err = ErrNotSupported
	}
	if err != nil {
		return nil, fmt.Errorf("read the rss table of %s: %w", name, err)
	}
	all := make([]uint32, indirHead+head[1])
	all[0], all[1] = ethtoolGetIndir, head[1]
	if err := ethtoolIoctl(name, all); err != nil {
		return nil, fmt.Errorf("read the rss table of %s: %w", name, err)
	}
	return all[indirHead:], nil
}

// SetRSS writes the table; an empty one is the driver's own, which follows the number of queues.
func SetRSS(name string, table []uint32) error {
	err := ethtoolIoctl(name, slices.Concat([]uint32{ethtoolSetIndir, uint32(len(table))}, table))
	if errors.Is(err, unix.EINVAL) {
		return fmt.Errorf("set the rss table of %s: %w (a queue that it does not have, or another length)", name, err)
	}
	if err != nil {
		return fmt.Errorf("set the rss table of %s: %w", name, err)
	}
	return nil
}
