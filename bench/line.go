package bench

import (
	wire "encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"demarc/gateway/hostnet"
	"demarc/gateway/netlab"
)

// A line carries frames between two devices of a namespace, both ways, each after the same time and in order: a way over a satellite, in user space. What
// waits is bounded; what comes beyond is lost, as on a line, and counted.
type line struct {
	ends  [2]*os.File
	wait  time.Duration // one way
	lost  atomic.Uint64
	moved atomic.Uint64
	most  atomic.Int64 // ns that a frame left later than it should
	wg    sync.WaitGroup
	once  sync.Once
}

// lineFrames is how many frames may be on their way in one direction: 16 MiB and more of them.
const lineFrames = 16384

// lineEnd opens one end.
func lineEnd(l *netlab.Lab, ns, dev string) (f *os.File, err error) {
	err = l.Do(ns, func() error {
		link, err := hostnet.LinkByName(dev)
		if err != nil {
			return err
		}
		// Protocol 0 until bound: nothing from other devices gets in.
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
		if err != nil {
			return err
		}
		f = os.NewFile(uintptr(fd), "line")
		all := wire.NativeEndian.Uint16(wire.BigEndian.AppendUint16(nil, unix.ETH_P_ALL))
		return errors.Join(
			unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 32<<20),
			unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_IGNORE_OUTGOING, 1), // else each frame that it sends would come back to it
			unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: all, Ifindex: link.Index}))
	})
	if err != nil {
		if f != nil {
			f.Close()
		}
		return nil, fmt.Errorf("line at %s in %s: %w", dev, ns, err)
	}
	return f, nil
}

// newLine connects two devices of a namespace.
func newLine(l *netlab.Lab, ns string, devs [2]string, wait time.Duration) (*line, error) {
	n := &line{wait: wait}
	for i, dev := range devs {
		f, err := lineEnd(l, ns, dev)
		if err != nil {
			return nil, errors.Join(err, n.Close())
		}
		n.ends[i] = f
	}
	for i := range n.ends {
		way := make(chan onItsWay, lineFrames)
		n.wg.Go(func() { n.take(n.ends[i], way) })
		n.wg.Go(func() { n.give(n.ends[1-i], way) })
	}
	return n, nil
}

type onItsWay struct {
	frame []byte
	due   time.Time
}

func (n *line) take(from *os.File, way chan<- onItsWay) {
	defer close(way)
	buf := make([]byte, 1<<16)
	for {
		k, err := from.Read(buf)
		if errors.Is(err, unix.ENETDOWN) || errors.Is(err, unix.EINTR) {
			continue // the device went down; it may come back
		}
		if err != nil { // closed
			return
		}
		select {
		case way <- onItsWay{append([]byte(nil), buf[:k]...), time.Now().Add(n.wait)}:
		default:
			n.lost.Add(1)
		}
	}
}

func (n *line) give(to *os.File, way <-chan onItsWay) {
	for f := range way {
		if d := time.Until(f.due); d > 0 {
			time.Sleep(d)
		}
		if late := int64(time.Since(f.due)); late > n.most.Load() {
			n.most.Store(late) // the other direction may be later by as much: it is only to be seen that it is little
		}
		if _, err := to.Write(f.frame); err != nil {
			if errors.Is(err, os.ErrClosed) {
				continue // to the end of what waits, so that nobody who gives is held up
			}
			n.lost.Add(1)
			continue
		}
		n.moved.Add(1)
	}
}

// Close ends it; what is on its way is lost.
func (n *line) Close() error {
	var errs []error
	n.once.Do(func() {
		for _, f := range n.ends {
			if f != nil {
				errs = append(errs, f.Close())
			}
		}
	})
	n.wg.Wait()
	return errors.Join(errs...)
}

// far wires nodes of a trio by lines: those in wait by one that takes so long one way, the others by a cable.
type far struct {
	wait  map[string]time.Duration
	lines []*line
}

func (f *far) wire(l *netlab.Lab, e netlab.End) error {
	wait, ok := f.wait[e.NS]
	if !ok {
		return l.Plug("net", e, 1, 1500)
	}
	ns := "line" + e.NS
	if err := l.AddNamespace(ns); err != nil {
		return err
	}
	if err := l.Sysctl(ns, "net.ipv6.conf.default.disable_ipv6", "1"); err != nil {
		return err
	}
	err := errors.Join(
		l.AddLink(netlab.LinkSpec{A: e, B: netlab.End{NS: ns, Name: "near", MAC: net.HardwareAddr{0x02, 0xdb, 1, 0, 0, 1}}}),
		l.Plug("net", netlab.End{NS: ns, Name: "far", MAC: net.HardwareAddr{0x02, 0xdb, 1, 0, 0, 2}}, 1, 1500))
	if err != nil {
		return err
	}
	n, err := newLine(l, ns, [2]string{"near", "far"}, wait)
	if err != nil {
		return err
	}
	f.lines = append(f.lines, n)
	l.AtEnd(func() { n.Close() })
	return nil
}

// lost is what the lines lost, of what they moved, and how late a frame was at most.
func (f *far) lost() (lost, moved uint64, late time.Duration) {
	for _, n := range f.lines {
		lost, moved, late = lost+n.lost.Load(), moved+n.moved.Load(), max(late, time.Duration(n.most.Load()))
	}
	return lost, moved, late
}
