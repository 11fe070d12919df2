package netlab

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"time"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// Frame is one captured frame, with its 802.1Q tag where it was on the wire.
type Frame struct {
	At       time.Time // when the kernel had it
	Outgoing bool      // sent by the device, not received
	Data     []byte
}

// Capture holds what passed a device since it began, at most its limit; after that it only counts.
type Capture struct {
	f    *os.File
	done chan struct{}

	mu     sync.Mutex
	frames []Frame
	seen   int
	limit  int
	err    error
}

// Capture starts to record what a device sends and receives, whole frames. keep chooses the frames to hold (nil: all); it runs on the
// capture's goroutine and must not hold on to the data. At most limit frames are held. Stop or Close of the lab ends it.
func (l *Lab) Capture(ns, dev string, limit int, keep func(frame []byte) bool) (*Capture, error) {
	return l.capture(ns, dev, limit, keep, nil, 1<<16)
}

// CaptureSources is Capture of the first snap bytes of what a device receives from certain MACs: those that begin with these bytes. It is
// the kernel that chooses, so it costs others nothing.
func (l *Lab) CaptureSources(ns, dev string, limit, snap int, macs ...net.HardwareAddr) (*Capture, error) {
	program := []bpf.Instruction{
		bpf.LoadExtension{Num: bpf.ExtType}, bpf.JumpIf{Cond: bpf.JumpEqual, Val: unix.PACKET_OUTGOING, SkipFalse: 1}, bpf.RetConstant{},
	}
	for _, m := range macs {
		var next []bpf.Instruction
		for i := len(m) - 1; i >= 0; i-- {
			// Past all that is left of this one, to the next.
			next = append([]bpf.Instruction{bpf.LoadAbsolute{Off: uint32(6 + i), Size: 1}, bpf.JumpIf{Cond: bpf.JumpEqual, Val: uint32(m[i]), SkipFalse: uint8(len(next) + 1)}}, next...)
		}
		program = append(append(program, next...), bpf.RetConstant{Val: uint32(snap)})
	}
	raw, err := bpf.Assemble(append(program, bpf.RetConstant{}))
	if err != nil {
		return nil, fmt.Errorf("filter of %d addresses: %w", len(macs), err)
	}
	filter := make([]unix.SockFilter, len(raw))
	for i, r := range raw {
		filter[i] = unix.SockFilter{Code: r.Op, Jt: r.Jt, Jf: r.Jf, K: r.K}
	}
	return l.capture(ns, dev, limit, nil, filter, snap)
}

func (l *Lab) capture(ns, dev string, limit int, keep func(frame []byte) bool, filter []unix.SockFilter, snap int) (*Capture, error) {
	_, link, err := l.link(ns, dev)
	if err != nil {
		return nil, err
	}
	var fd int
	err = l.Do(ns, func() error {
		// Protocol 0 until bound: nothing from other devices gets in.
		if fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0); err != nil {
			return err
		}
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 32<<20) // with less it still works, Stop tells losses
		err = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TIMESTAMPNS, 1)
		if err == nil && filter != nil {
			err = unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]})
		}
		if err == nil {
			err = unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_AUXDATA, 1)
		}
		if err == nil {
			err = unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: htons(unix.ETH_P_ALL), Ifindex: link.Attrs().Index})
		}
		if err != nil {
			unix.Close(fd)
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("capture on %s in %s: %w", dev, ns, err)
	}
	c := &Capture{f: os.NewFile(uintptr(fd), "capture"), done: make(chan struct{}), limit: limit}
	go c.read(keep, snap)
	l.AtEnd(func() { c.Stop() })
	return c, nil
}

func (c *Capture) read(keep func([]byte) bool, snap int) {
	defer close(c.done)
	raw, err := c.f.SyscallConn()
	if err != nil {
		c.fail(err)
		return
	}
	buf, oob := make([]byte, snap), make([]byte, 256)
	for {
		var n, oobn int
		var from unix.Sockaddr
		var rerr error
		err := raw.Read(func(fd uintptr) bool {
			n, oobn, _, from, rerr = unix.Recvmsg(int(fd), buf, oob, 0)
			return rerr != unix.EAGAIN
		})
		if err != nil { // closed
			return
		}
		if rerr == unix.ENETDOWN || rerr == unix.EINTR {
			continue // the device went down; it may come back
		}
		if rerr != nil {
			c.fail(rerr)
			return
		}
		frame := withTag(buf[:n], oob[:oobn])
		if keep != nil && !keep(frame) {
			continue
		}
		ll, _ := from.(*unix.SockaddrLinklayer)
		c.mu.Lock()
		c.seen++
		if len(c.frames) < c.limit {
			c.frames = append(c.frames, Frame{arrived(oob[:oobn]), ll != nil && ll.Pkttype == unix.PACKET_OUTGOING, bytes.Clone(frame)})
		}
		c.mu.Unlock()
	}
}

func (c *Capture) fail(err error) {
	c.mu.Lock()
	c.err = err
	c.mu.Unlock()
}

// arrived is the kernel's time of a frame (a struct timespec).
func arrived(oob []byte) time.Time {
	msgs, _ := unix.ParseSocketControlMessage(oob)
	for _, m := range msgs {
		if m.Header.Level == unix.SOL_SOCKET && m.Header.Type == unix.SCM_TIMESTAMPNS && len(m.Data) >= 16 {
			return time.Unix(int64(binary.NativeEndian.Uint64(m.Data)), int64(binary.NativeEndian.Uint64(m.Data[8:])))
		}
	}
	return time.Now()
}

// withTag puts the tag back that the kernel took out of the frame into struct tpacket_auxdata
// (status, len, snaplen: u32; mac, net, vlan_tci, vlan_tpid: u16).
func withTag(frame, oob []byte) []byte {
	msgs, err := unix.ParseSocketControlMessage(oob)
	if err != nil || len(frame) < 12 {
		return frame
	}
	for _, m := range msgs {
		if m.Header.Level != unix.SOL_PACKET || m.Header.Type != unix.PACKET_AUXDATA || len(m.Data) < 20 {
			continue
		}
		if status := binary.NativeEndian.Uint32(m.Data); status&unix.TP_STATUS_VLAN_VALID == 0 {
			continue
		}
		tpid := uint16(unix.ETH_P_8021Q)
		if status := binary.NativeEndian.Uint32(m.Data); status&unix.TP_STATUS_VLAN_TPID_VALID != 0 {
			tpid = binary.NativeEndian.Uint16(m.Data[18:])
		}
		out := make([]byte, 0, len(frame)+4)
		out = append(out, frame[:12]...)
		out = binary.BigEndian.AppendUint16(out, tpid)
		out = binary.BigEndian.AppendUint16(out, binary.NativeEndian.Uint16(m.Data[16:]))
		return append(out, frame[12:]...)
	}
	return frame
}

// Frames is what is held so far.
func (c *Capture) Frames() []Frame {
	c.mu.Lock()
	defer c.mu.Unlock()
	return append([]Frame(nil), c.frames...)
}

// Seen is how many frames matched so far, held or not.
func (c *Capture) Seen() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.seen
}

// CatchUp waits until all that had come is held. Stop does not wait: what is unread then is lost.
func (c *Capture) CatchUp(within time.Duration) error {
	raw, err := c.f.SyscallConn()
	if err != nil {
		return err
	}
	for end := time.Now().Add(within); ; time.Sleep(time.Millisecond) {
		var left int
		var ierr error
		if err := raw.Control(func(fd uintptr) { left, ierr = unix.IoctlGetInt(int(fd), unix.SIOCINQ) }); err != nil {
			return err
		}
		if ierr != nil {
			return ierr
		}
		if left == 0 {
			return nil
		}
		if time.Now().After(end) {
			return fmt.Errorf("the capture is behind by more than %s", within)
		}
	}
}

// Stop ends the capture and returns how many frames matched. An error says that the account is not complete: the kernel lost frames
// before they were read, or reading failed.
func (c *Capture) Stop() (int, error) {
	var lost error
	if raw, err := c.f.SyscallConn(); err == nil {
		raw.Control(func(fd uintptr) {
			st, err := unix.GetsockoptTpacketStats(int(fd), unix.SOL_PACKET, unix.PACKET_STATISTICS)
			if err == nil && st.Drops > 0 {
				lost = fmt.Errorf("the capture lost %d frames", st.Drops)
			}
		})
	}
	if err := c.f.Close(); err != nil && !errors.Is(err, os.ErrClosed) {
		return 0, err
	}
	<-c.done
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.seen, errors.Join(c.err, lost)
}

func htons(v uint16) uint16 {
	return binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, v))
}
