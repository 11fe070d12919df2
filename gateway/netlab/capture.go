package netlab

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"runtime"
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

// Capture holds what passed a device since it began, at most its limit; after that it only counts. It looks at its socket now and then: the kernel has the time of
// each frame, and a wakeup for each would be most of what a capture costs those that are measured.
type Capture struct {
	fd         int
	end, ended chan struct{}
	stop       func() error // once

	mu     sync.Mutex
	frames []Frame
	room   []byte // for the data of the next ones
	seen   int
	limit  int
	err    error
}

// captureLook is how often it looks.
const captureLook = 5 * time.Millisecond

// captureRoom is how many bytes of what has come may wait to be read: the kernel's own of each frame, 1 to 2 kB. With less it still works, Stop tells losses.
const captureRoom = 128 << 20

// comesFirst has a goroutine that is a part of the lab, and no host's, be a thread that comes before nodes, which come before others (a niceness of -10): what is to see them does not wait for them. The thread ends with the
// goroutine. Where that is refused it waits as others do.
func comesFirst() {
	runtime.LockOSThread()
	_ = unix.Setpriority(unix.PRIO_PROCESS, unix.Gettid(), -15)
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
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, captureRoom)
		err = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TIMESTAMPNS, 1)
		if err == nil && filter != nil {
			// What the device sends is not even looked at: that costs a copy of each.
			_ = unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_IGNORE_OUTGOING, 1) // an older kernel leaves it to the filter
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
	c := &Capture{fd: fd, end: make(chan struct{}), ended: make(chan struct{}), limit: limit}
	c.stop = sync.OnceValue(c.close)
	go c.read(keep, snap)
	l.AtEnd(func() { c.Stop() })
	return c, nil
}

func (c *Capture) read(keep func([]byte) bool, snap int) {
	comesFirst()
	defer close(c.ended)
	buf, oob := make([]byte, 4+snap), make([]byte, 256)
	look := time.NewTicker(captureLook)
	defer look.Stop()
	for {
		select {
		case <-c.end:
			return
		default:
		}
		n, oobn, _, from, err := unix.Recvmsg(c.fd, buf[4:], oob, 0)
		switch {
		case errors.Is(err, unix.EAGAIN), errors.Is(err, unix.ENETDOWN): // the device went down; it may come back
			select {
			case <-c.end:
			case <-look.C:
			}
			continue
		case errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			c.mu.Lock()
			c.err = err
			c.mu.Unlock()
			return
		}
		at, tag, tagged := captured(oob[:oobn])
		frame := buf[4 : 4+n]
		if tagged && n >= 12 {
			frame = buf[:4+n] // room for it
			copy(frame, frame[4:16])
			copy(frame[12:16], tag[:])
		}
		if keep != nil && !keep(frame) {
			continue
		}
		ll, _ := from.(*unix.SockaddrLinklayer)
		c.mu.Lock()
		c.seen++
		if len(c.frames) < c.limit {
			if cap(c.room)-len(c.room) < len(frame) {
				c.room = make([]byte, 0, max(1<<18, len(frame)))
			}
			at0 := len(c.room)
			c.room = append(c.room, frame...)
			c.frames = append(c.frames, Frame{at, ll != nil && ll.Pkttype == unix.PACKET_OUTGOING, c.room[at0:len(c.room):len(c.room)]})
		}
		c.mu.Unlock()
	}
}

// captured reads control messages: the kernel's time of a frame (struct timespec), and the tag that it took out of the frame
// (struct tpacket_auxdata: status, len, snaplen: u32; mac, net, vlan_tci, vlan_tpid: u16).
func captured(oob []byte) (at time.Time, tag [4]byte, tagged bool) {
	for len(oob) > 0 {
		h, data, rest, err := unix.ParseOneSocketControlMessage(oob)
		if err != nil {
			break
		}
		switch {
		case h.Level == unix.SOL_SOCKET && h.Type == unix.SCM_TIMESTAMPNS && len(data) >= 16:
			at = time.Unix(int64(binary.NativeEndian.Uint64(data)), int64(binary.NativeEndian.Uint64(data[8:])))
		case h.Level == unix.SOL_PACKET && h.Type == unix.PACKET_AUXDATA && len(data) >= 20:
			status, tpid := binary.NativeEndian.Uint32(data), uint16(unix.ETH_P_8021Q)
			if status&unix.TP_STATUS_VLAN_TPID_VALID != 0 {
				tpid = binary.NativeEndian.Uint16(data[18:])
			}
			tagged = status&unix.TP_STATUS_VLAN_VALID != 0
			binary.BigEndian.PutUint16(tag[:], tpid)
			binary.BigEndian.PutUint16(tag[2:], binary.NativeEndian.Uint16(data[16:]))
		}
		oob = rest
	}
	if at.IsZero() {
		at = time.Now()
	}
	return at, tag, tagged
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
	for end := time.Now().Add(within); ; time.Sleep(time.Millisecond) {
		left, err := unix.IoctlGetInt(c.fd, unix.SIOCINQ)
		if err != nil || left == 0 {
			return err
		}
		if time.Now().After(end) {
			return fmt.Errorf("the capture is behind by more than %s", within)
		}
	}
}

// Stop ends the capture and returns how many frames matched. An error says that the account is not complete: the kernel lost frames
// before they were read, or reading failed.
func (c *Capture) Stop() (int, error) {
	lost := c.stop()
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.seen, errors.Join(c.err, lost)
}

func (c *Capture) close() (lost error) {
	st, err := unix.GetsockoptTpacketStats(c.fd, unix.SOL_PACKET, unix.PACKET_STATISTICS)
	if err == nil && st.Drops > 0 {
		lost = fmt.Errorf("the capture lost %d frames", st.Drops)
	}
	close(c.end)
	<-c.ended
	unix.Close(c.fd)
	return lost
}

func htons(v uint16) uint16 {
	return binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, v))
}
