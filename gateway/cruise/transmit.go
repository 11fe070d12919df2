package cruise

import (
	"errors"
	"fmt"
	"math"
	"os"
	"runtime"
	"sync/atomic"
	"time"
	"unsafe"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"demarc/gateway/cruise/bpf"
)

// Of bpf/transmit.c.
const (
	SendMost  = 256  // frames of a call
	SendBytes = 2032 // of a frame
	sendLeast = 14

	// sendBatch is how many frames the kernel gives to the devices together: a veth has room for 256, and empties it only behind a batch. The next batch takes the pages of the one before, where the far end is done with them.
	sendBatch = 32
	// slowCall is what a call for two frames takes where the kernel exchanges its dispatcher for it, or more.
	slowCall = time.Millisecond
)

type sendFrame struct {
	until uint64
	len   uint32
	port  uint16
	left  uint16
	bytes [SendBytes]byte
}

type sendProgress struct {
	next uint32
	rest [15]uint32
}

// Transmit has the program of bpf/transmit.c send what workers have ready, on ports that may carry. SetPort is for one goroutine at a time, each Sender for its worker.
type Transmit struct {
	prog      *ebpf.Program
	maps      bpf.TransmitMaps
	frames    []sendFrame
	progress  []sendProgress
	memory    [][]byte
	takes     []atomic.Bool // by port
	nowhere   *os.File      // the namespace of anchor
	anchor    link.Link
	perWorker []*Sender
}

// OpenTransmit loads the program. An error says why workers have to send by their sockets alone: a kernel before 5.18, or no right to make a network namespace.
func (t *Tables) OpenTransmit() (x *Transmit, err error) {
	spec, err := bpf.LoadTransmit()
	if err != nil {
		return nil, err
	}
	workers := len(t.cfg.Seeds)
	devices := t.maps[bpf.CruiseMapDevices]
	spec.Maps[bpf.TransmitMapDevices].MaxEntries = devices.MaxEntries()
	spec.Maps[bpf.TransmitMapFrames].MaxEntries = uint32(workers * SendMost)
	spec.Maps[bpf.TransmitMapProgresses].MaxEntries = uint32(workers)
	if err := spec.Variables[bpf.TransmitVarSettings].Set(struct{ Ahead int64 }{t.cfg.Ahead}); err != nil {
		return nil, fmt.Errorf("load the transmitting program: %w", err)
	}
	var o bpf.TransmitObjects
	if err := spec.LoadAndAssign(&o, &ebpf.CollectionOptions{MapReplacements: map[string]*ebpf.Map{bpf.TransmitMapDevices: devices}}); err != nil {
		return nil, fmt.Errorf("load the transmitting program: %w", err)
	}
	x = &Transmit{prog: o.DemarcTransmit, maps: o.TransmitMaps, takes: make([]atomic.Bool, t.cfg.Ports)}
	defer func() {
		if err != nil {
			err = errors.Join(err, x.Close())
			x = nil
		}
	}()
	if x.frames, err = layOver[sendFrame](x, o.Frames, workers*SendMost); err != nil {
		return x, err
	}
	if x.progress, err = layOver[sendProgress](x, o.Progresses, workers); err != nil {
		return x, err
	}
	for w := range workers {
		s, err := x.newSender(w)
		if err != nil {
			return x, err
		}
		x.perWorker = append(x.perWorker, s)
	}
	if err = x.hold(); err != nil {
		return x, fmt.Errorf("keep the transmitting program ready: %w", err)
	}
	return x, x.try()
}

func layOver[E any](x *Transmit, m *ebpf.Map, n int) ([]E, error) {
	var e E
	size := int(unsafe.Sizeof(e))
	if one := int(m.ValueSize()); one != size {
		return nil, fmt.Errorf("map %s: %d bytes each, want %d", m, one, size)
	}
	mem, err := unix.Mmap(m.FD(), 0, n*size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("map %s: %w", m, err)
	}
	x.memory = append(x.memory, mem)
	return unsafe.Slice((*E)(unsafe.Pointer(&mem[0])), n), nil
}

// hold attaches the program where no packet comes by, to the loopback of a network namespace that nobody is in. BPF_PROG_TEST_RUN puts a program that is attached nowhere into the kernel's dispatcher of XDP programs and takes it
// out again, which waits for a grace period: 24 ms a call.
func (x *Transmit) hold() error {
	const loopback = 1
	return onOwnThread(func() (err error) {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("make a network namespace: %w", err)
		}
		if x.nowhere, err = os.Open("/proc/thread-self/ns/net"); err != nil {
			return err
		}
		x.anchor, err = link.AttachXDP(link.XDPOptions{Program: x.prog, Interface: loopback, Flags: link.XDPGenericMode})
		return err
	})
}

// onOwnThread runs fn on a thread that ends with it. The process's first one does not end, and /proc would show its namespace as the process's.
func onOwnThread(fn func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // for good
		if unix.Gettid() == unix.Getpid() {
			err := onOwnThread(fn) // on another one: this one is held
			runtime.UnlockOSThread()
			done <- err
			return
		}
		done <- fn()
	}()
	return <-done
}

// try finds out whether the kernel sends so, and fast enough.
func (x *Transmit) try() error {
	s, least := x.perWorker[0], time.Duration(math.MaxInt64)
	for range 5 {
		for range 2 {
			s.Add(0, 0, nil)
		}
		began := time.Now()
		if err := s.Run(); err != nil {
			return fmt.Errorf("send by BPF_PROG_TEST_RUN: %w", err)
		}
		least = min(least, time.Since(began))
		if s.Left(0) || s.Left(1) || s.at.next != 2 {
			return errors.New("BPF_PROG_TEST_RUN does not run the program for each frame")
		}
		s.Reset()
	}
	if least > slowCall {
		return fmt.Errorf("a call of BPF_PROG_TEST_RUN takes %v, want at most %v", least, slowCall)
	}
	return nil
}

// SetPort says whether frames may be sent to a port so: Tables.SetDevice has its device.
func (x *Transmit) SetPort(port uint16, on bool) { x.takes[port].Store(on) }

// Takes reports whether a port takes frames so. Any goroutine.
func (x *Transmit) Takes(port uint16) bool { return x.takes[port].Load() }

// Close lets go of everything. No Sender may be at work.
func (x *Transmit) Close() error {
	var errs []error
	if x.anchor != nil {
		errs = append(errs, x.anchor.Close())
	}
	if x.nowhere != nil {
		errs = append(errs, x.nowhere.Close())
	}
	for _, m := range x.memory {
		errs = append(errs, unix.Munmap(m))
	}
	errs = append(errs, x.prog.Close(), x.maps.Close())
	*x = Transmit{}
	return errors.Join(errs...)
}

// Sender is a worker's.
type Sender struct {
	frames  []sendFrame
	at      *sendProgress
	n       int
	longest int
	worker  int
	groups  [SendMost]uint8
	call    testRun
}

// testRun is what the kernel's union bpf_attr has for BPF_PROG_TEST_RUN.
type testRun struct {
	prog, _               uint32
	sizeIn, sizeOut       uint32
	in, out               uint64
	repeat, _             uint32
	ctxSizeIn, ctxSizeOut uint32
	ctxIn, ctxOut         uint64
	flags, _, batch, _    uint32
}

const (
	bpfProgTestRun = 10
	liveFrames     = 2 // BPF_F_TEST_XDP_LIVE_FRAMES
)

func (x *Transmit) newSender(w int) (*Sender, error) {
	page, err := unix.Mmap(-1, 0, pageSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return nil, err
	}
	x.memory = append(x.memory, page)
	return &Sender{frames: x.frames[w*SendMost : (w+1)*SendMost], at: &x.progress[w], worker: w,
		call: testRun{prog: uint32(x.prog.FD()), in: uint64(uintptr(unsafe.Pointer(&page[0]))), flags: liveFrames, batch: sendBatch}}, nil
}

// Sender is worker w's.
func (x *Transmit) Sender(w int) *Sender { return x.perWorker[w] }

// Len is how many frames have been added.
func (s *Sender) Len() int { return s.n }

// Room is how many more there may be.
func (s *Sender) Room() int { return SendMost - s.n }

// Add takes a copy of a frame of a group (0: of none), no longer than SendBytes: of a longer one nothing would leave. There must be room.
func (s *Sender) Add(port uint16, group uint8, b []byte) {
	b = b[:min(len(b), SendBytes)]
	f := &s.frames[s.n]
	f.until, f.len, f.port, f.left = math.MaxUint64, uint32(len(b)), port, 0
	copy(f.bytes[:], b)
	s.groups[s.n] = group
	s.longest = max(s.longest, len(b))
	s.n++
}

// Frame is what has been added as number i. The bytes are as they were, also behind Run.
func (s *Sender) Frame(i int) (port uint16, group uint8, b []byte) {
	f := &s.frames[i]
	return f.port, s.groups[i], f.bytes[:f.len]
}

// Until has a frame leave before that time only, ns of CLOCK_BOOTTIME; 0 = not at all.
func (s *Sender) Until(i int, ns uint64) { s.frames[i].until = ns }

// Run sends. It returns when the devices have taken what they take: Left says which. It may take long: the kernel lets nobody else call while it exchanges an XDP program of the machine, and a signal that stops the process stops
// it between two batches. An error is of the kernel, and nothing of what it has not left will leave.
func (s *Sender) Run() error {
	// Not shorter than any frame, so that the program only cuts; and by the rest it knows whose the call is.
	c := &s.call
	c.sizeIn = uint32((max(s.longest, sendLeast)+bpfWorkers-1)/bpfWorkers*bpfWorkers + s.worker)
	s.at.next = 0
	for stuck := 0; ; {
		was := s.at.next
		c.repeat = uint32(s.n) - was
		// Not by ebpf.Program.Run: what a signal has ended it begins again from the start, and sends again what has left.
		_, _, e := unix.Syscall(unix.SYS_BPF, bpfProgTestRun, uintptr(unsafe.Pointer(c)), unsafe.Sizeof(*c))
		now := atomic.LoadUint32(&s.at.next)
		switch {
		case int(now) >= s.n:
			return nil
		case e != 0 && e != unix.EINTR: // a signal comes between two batches
			return e
		case now == was:
			if stuck++; stuck == 3 {
				return fmt.Errorf("%d of %d frames were taken: %w", now, s.n, unix.EIO)
			}
		}
	}
}

// Left reports whether a frame has been given to its device, in time, behind Run.
func (s *Sender) Left(i int) bool { return s.frames[i].left != 0 }

// Reset forgets all frames.
func (s *Sender) Reset() { s.n, s.longest = 0, 0 }

// bpfWorkers is WORKERS of bpf/transmit.c.
const bpfWorkers = MaxWorkers
