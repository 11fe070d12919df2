package netlab

import (
	"container/heap"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// Line carries frames between two devices of a namespace, both ways: a way that is long, lossy or cut for some of what goes over it, in user space, since not every
// kernel has a tool for that. Frames of one sender, receiver and protocol stay in order: one CPU takes what
// comes to the two devices, and the threads that write to them stay on it. Else what one CPU has in hand is overtaken by what another sends later. What waits is bounded; what comes beyond is lost, as on a line, and counted.
type Line struct {
	ends   [2]*os.File
	cpu    int // that takes and sends all of it
	faults atomic.Pointer[[]LineFault]

	Lost, Moved atomic.Uint64 // frames; Lost are those that there was no room for, not those that a fault took
	late        atomic.Int64  // ns that a frame left later than it should, at most

	wg   sync.WaitGroup
	once sync.Once
}

// LineFault is what happens to some of the packets that go over a line. Of several that meet one each does what it says.
type LineFault struct {
	From, To netip.Addr // IPv4; the zero Addr = whoever
	Proto    uint8      // 0 = any
	Lose     float64    // the share that is lost; 1 = cut
	Wait     time.Duration
}

// lineFrames is how many frames may be on their way in one direction: 16 MiB and more of them.
const lineFrames = 16384

// lineEnd opens one end.
func (l *Lab) lineEnd(ns, dev string) (f *os.File, err error) {
	_, link, err := l.link(ns, dev)
	if err != nil {
		return nil, err
	}
	err = l.Do(ns, func() error {
		// Protocol 0 until bound: nothing from other devices gets in.
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
		if err != nil {
			return err
		}
		f = os.NewFile(uintptr(fd), "line")
		return errors.Join(
			unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 32<<20),
			unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_IGNORE_OUTGOING, 1), // else each frame that it sends would come back to it
			unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: htons(unix.ETH_P_ALL), Ifindex: link.Attrs().Index}))
	})
	if err != nil {
		if f != nil {
			f.Close()
		}
		return nil, fmt.Errorf("line at %s in %s: %w", dev, ns, err)
	}
	return f, nil
}

// Line connects two devices of a namespace. Close of the lab ends it.
func (l *Lab) Line(ns string, devs [2]string, faults ...LineFault) (*Line, error) {
	cpu, err := firstCPU()
	if err != nil {
		return nil, err
	}
	if err := l.Do(ns, func() error { return takeOn(cpu, devs[:]...) }); err != nil {
		return nil, fmt.Errorf("line in %s: %w", ns, err)
	}
	n := &Line{cpu: cpu}
	n.Set(faults...)
	for i, dev := range devs {
		f, err := l.lineEnd(ns, dev)
		if err != nil {
			return nil, errors.Join(err, n.Close())
		}
		n.ends[i] = f
	}
	for i := range n.ends {
		w := &way{wake: make(chan struct{}, 1), last: map[lineKey]time.Time{}}
		n.wg.Go(func() { n.take(n.ends[i], w) })
		n.wg.Go(func() { n.give(n.ends[1-i], w) })
	}
	l.AtEnd(func() { n.Close() })
	return n, nil
}

// PlugByLine is Plug of a device with one queue, with a line in between.
func (l *Lab) PlugByLine(sw string, e End, faults ...LineFault) (*Line, error) {
	ns := "line" + e.NS
	if err := l.AddNamespace(ns); err != nil {
		return nil, err
	}
	if err := l.Sysctl(ns, "net.ipv6.conf.default.disable_ipv6", "1"); err != nil {
		return nil, err
	}
	err := errors.Join(
		l.AddLink(LinkSpec{A: e, B: End{NS: ns, Name: "near", MAC: net.HardwareAddr{0x02, 0xdb, 1, 0, 0, 1}}}),
		l.Plug(sw, End{NS: ns, Name: "far", MAC: net.HardwareAddr{0x02, 0xdb, 1, 0, 0, 2}}, 1, 1500))
	if err != nil {
		return nil, err
	}
	return l.Line(ns, [2]string{"near", "far"}, faults...)
}

// Set says what happens from now on. What is on its way already stays as it is.
func (n *Line) Set(faults ...LineFault) { n.faults.Store(&faults) }

// Late is by how much a frame left later than it should, at most.
func (n *Line) Late() time.Duration { return time.Duration(n.late.Load()) }

// lineKey is what frames have in common that stay in order.
type lineKey struct {
	from, to [4]byte
	proto    uint8
}

func keyOfLine(b []byte) (k lineKey) {
	if len(b) >= 14+20 && binary.BigEndian.Uint16(b[12:]) == unix.ETH_P_IP {
		k.proto = b[14+9]
		copy(k.from[:], b[14+12:])
		copy(k.to[:], b[14+16:])
	}
	return k
}

// meets reports whether a fault is about frames of this kind. What is not IPv4 (ARP) meets only those that are about everybody.
func (f *LineFault) meets(k lineKey) bool {
	is := func(a netip.Addr, b [4]byte) bool { return !a.IsValid() || a == netip.AddrFrom4(b) }
	return is(f.From, k.from) && is(f.To, k.to) && (f.Proto == 0 || f.Proto == k.proto)
}

// way is one direction.
type way struct {
	mu    sync.Mutex
	queue lineQueue // mu
	shut  bool      // mu: nothing comes any more
	wake  chan struct{}
	last  map[lineKey]time.Time // take
}

type onItsWay struct {
	frame []byte
	due   time.Time
	seq   uint64
}

type lineQueue []onItsWay

func (q lineQueue) Len() int { return len(q) }
func (q lineQueue) Less(i, j int) bool {
	return q[i].due.Before(q[j].due) || q[i].due.Equal(q[j].due) && q[i].seq < q[j].seq
}
func (q lineQueue) Swap(i, j int) { q[i], q[j] = q[j], q[i] }
func (q *lineQueue) Push(x any)   { *q = append(*q, x.(onItsWay)) }
func (q *lineQueue) Pop() any {
	old := *q
	x := old[len(old)-1]
	old[len(old)-1] = onItsWay{}
	*q = old[:len(old)-1]
	return x
}

func (w *way) signal() {
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

func (n *Line) take(from *os.File, w *way) {
	comesFirst()
	defer func() {
		w.mu.Lock()
		w.shut = true
		w.mu.Unlock()
		w.signal()
	}()
	buf, seq := make([]byte, 1<<16), uint64(0)
	for {
		k, err := from.Read(buf)
		if errors.Is(err, unix.ENETDOWN) || errors.Is(err, unix.EINTR) {
			continue // the device went down; it may come back
		}
		if err != nil { // closed
			return
		}
		key, wait, lost := keyOfLine(buf[:k]), time.Duration(0), false
		for _, f := range *n.faults.Load() {
			if f.meets(key) {
				wait += f.Wait
				lost = lost || f.Lose > 0 && rand.Float64() < f.Lose
			}
		}
		if lost {
			continue
		}
		due := time.Now().Add(wait)
		if last := w.last[key]; due.Before(last) {
			due = last
		}
		w.last[key] = due
		seq++
		w.mu.Lock()
		room := len(w.queue) < lineFrames
		if room {
			heap.Push(&w.queue, onItsWay{append([]byte(nil), buf[:k]...), due, seq})
		}
		w.mu.Unlock()
		if !room {
			n.Lost.Add(1)
			continue
		}
		w.signal()
	}
}

func (n *Line) give(to *os.File, w *way) {
	comesFirst() // and nobody else is to be bound to a CPU
	var set unix.CPUSet
	set.Set(n.cpu)
	if err := unix.SchedSetaffinity(0, &set); err != nil {
		panic(err) // it was among those that are allowed
	}
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		w.mu.Lock()
		var f onItsWay
		wait, shut := time.Hour, w.shut
		if len(w.queue) > 0 {
			if wait = time.Until(w.queue[0].due); wait <= 0 {
				f = heap.Pop(&w.queue).(onItsWay)
			}
		}
		w.mu.Unlock()
		if f.frame == nil {
			if shut { // what is on its way is lost
				return
			}
			timer.Reset(wait)
			select {
			case <-timer.C:
			case <-w.wake:
			}
			continue
		}
		if late := int64(-wait); late > n.late.Load() {
			n.late.Store(late) // the other direction may be later by as much: it is only to be seen that it is little
		}
		if _, err := to.Write(f.frame); err != nil {
			n.Lost.Add(1)
			continue
		}
		n.Moved.Add(1)
	}
}

// Close ends it; what is on its way is lost.
func (n *Line) Close() error {
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
