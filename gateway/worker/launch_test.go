package worker

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"demarc/gateway/cruise"
	"demarc/gateway/xsk"
)

// launchRig is a fenceRig whose worker has the transmitting program, and whose far end takes redirected frames.
type launchRig struct {
	*fenceRig
	tab *cruise.Tables
	x   *cruise.Transmit
	fd  []int // of programs that came with it
}

func programs(t *testing.T) (fds []int) {
	t.Helper()
	list, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range list {
		var fd int
		if to, _ := os.Readlink("/proc/self/fd/" + f.Name()); strings.Contains(to, "bpf-prog") {
			fmt.Sscan(f.Name(), &fd)
			fds = append(fds, fd)
		}
	}
	return fds
}

func newLaunchRig(t *testing.T) *launchRig {
	t.Helper()
	r := &launchRig{fenceRig: newFenceRig(t)}
	if err := unix.SetsockoptInt(r.ear, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 4<<20); err != nil { // each frame is a page
		t.Fatal(err)
	}
	far, err := netlink.LinkByName("dmf1")
	if err != nil {
		t.Fatal(err)
	}
	pass, err := ebpf.NewProgram(&ebpf.ProgramSpec{Type: ebpf.XDP, License: "MIT", Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, 2), asm.Return()}})
	if err != nil {
		t.Fatal(err)
	}
	l, err := link.AttachXDP(link.XDPOptions{Program: pass, Interface: far.Attrs().Index}) // without it redirected frames are lost
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _, _ = l.Close(), pass.Close() })
	if r.tab, err = cruise.Open(cruise.Config{Seeds: []uint64{1}, Sessions: cruise.SessionUnit, Ports: 2, Interfaces: 1, Tenants: 1, Hops: 1}); err != nil {
		t.Fatal(err)
	}
	before := programs(t)
	if r.x, err = r.tab.OpenTransmit(); err != nil {
		t.Fatal(err)
	}
	for _, fd := range programs(t) {
		if !slices.Contains(before, fd) {
			r.fd = append(r.fd, fd)
		}
	}
	t.Cleanup(func() {
		r.w.second.Second, r.w.out = nil, nil
		if err := r.x.Close(); err != nil {
			t.Error(err)
		}
		if err := r.tab.Close(); err != nil {
			t.Error(err)
		}
	})
	if err := r.tab.SetDevice(0, r.ifi); err != nil {
		t.Fatal(err)
	}
	r.x.SetPort(0, true)
	r.w.second.Second = &Second{Tables: r.tab, Hops: cruise.NewHops(r.tab), Transmit: r.x}
	r.w.useSecond()
	return r
}

func (r *launchRig) launched() (launched, sent uint64) {
	s := r.w.SocketStats()[0]
	return s.Launched, s.TxPackets
}

// several hands the worker so many frames of groups, in turn.
func (r *launchRig) several(n int, groups ...uint8) (all []byte) {
	for i := range n {
		all = append(all, r.hand(groups[i%len(groups)]))
	}
	return all
}

// Few frames go by the ring and many by the program, in their order, and each is counted once.
func TestManyFramesLeaveByTheProgram(t *testing.T) {
	r := newLaunchRig(t)
	all := r.several(launchLeast-1, 0)
	r.turn()
	r.want("few", all...)
	if n, _ := r.launched(); n != 0 {
		t.Errorf("%d of few frames were launched", n)
	}
	for _, n := range []int{launchLeast, len(r.w.socks[0].batch) - 1, len(r.w.socks[0].batch), len(r.w.socks[0].batch) + 1, 150} {
		was, sent := r.launched()
		all := r.several(n, 0)
		r.turn()
		if now, s := r.launched(); now-was != uint64(n) || s-sent != uint64(n) {
			t.Errorf("of %d frames %d were launched, and %d sent", n, now-was, s-sent)
		}
		r.want(fmt.Sprint(n), all...)
	}
	// Few right behind many do not pass them in the device.
	s := r.w.socks[0]
	for _, c := range []struct {
		ago  time.Duration
		want uint64
	}{{0, 3}, {launchQuiet, 0}} {
		for quick := false; !quick; { // a machine that is elsewhere for 3 ms says nothing
			s.launchedAt = r.w.cfg.Clock.Now() - uint64(c.ago)
			was, _ := r.launched()
			all := r.several(3, 0)
			r.turn()
			now, _ := r.launched()
			if quick = c.want == 0 || r.w.cfg.Clock.Now()-s.launchedAt < uint64(launchQuiet) || now > was; quick && now-was != c.want {
				t.Errorf("%v behind many %d of 3 frames were launched, want %d", c.ago, now-was, c.want)
			}
			r.want("few behind many", all...)
		}
	}
	// What has not left the ring yet comes first.
	was, _ := r.launched()
	first := r.several(3, 0)
	r.w.push(r.w.socks[0])
	then := r.several(launchLeast, 0)
	r.turn()
	r.want("behind a ring that is not empty", append(first, then...)...)
	if now, _ := r.launched(); now != was {
		t.Errorf("%d frames passed by what waited", now-was)
	}
	// The device goes: by the ring.
	if err := r.tab.SetDevice(0, 0); err != nil {
		t.Fatal(err)
	}
	all = r.several(150, 0)
	r.turn()
	r.want("nothing to redirect to", all...)
	if now, _ := r.launched(); now != was {
		t.Errorf("%d frames were launched to nowhere", now-was)
	}
	if err := r.tab.SetDevice(0, r.ifi); err != nil {
		t.Fatal(err)
	}
	r.x.SetPort(0, false)
	all = r.several(150, 0)
	r.turn()
	r.want("the port takes none", all...)
	if now, _ := r.launched(); now != was {
		t.Errorf("%d frames were launched to a port that takes none", now-was)
	}
}

// Frames of a group that wait for the program leave while it is served and not after.
func TestNoFrameIsLaunchedAfterItsDeadline(t *testing.T) {
	r := newLaunchRig(t)
	r.w.cfg.Guard = time.Hour
	r.serve(7, 1, time.Hour)
	all := r.several(60, 7, 0)
	r.turn()
	r.want("served", all...)
	all = r.several(60, 7, 8)
	r.turn()
	var own []byte
	for i := 0; i < len(all); i += 2 {
		own = append(own, all[i])
	}
	r.want("one is served", own...)
	if n := r.refused(); n != 30 {
		t.Errorf("%d refused, want 30", n)
	}
	// Between staging and the call: a full batch is staged, and does not leave before the turn ends.
	full := len(r.w.socks[0].batch)
	all = r.several(full, 7, 0)
	if n := r.w.out.Len(); n != full || r.w.socks[0].n != 0 {
		t.Fatalf("%d frames are staged, %d in the batch", n, r.w.socks[0].n)
	}
	if r.w.bare() {
		t.Error("bare with frames of a group in hand")
	}
	r.d.Write(7, 1, 0)
	r.turn()
	own = own[:0]
	for i := 1; i < len(all); i += 2 {
		own = append(own, all[i])
	}
	r.want("the deadline is taken back", own...)
	if n := r.refused(); n != 30+uint64(full/2) {
		t.Errorf("%d refused, want %d", n, 30+full/2)
	}
	if !r.w.bare() || !r.w.Clean() {
		t.Error("not clean with nothing in hand")
	}
	if n := r.w.Stats().Overruns; n != 0 {
		t.Errorf("%d overruns", n)
	}
	// A call that takes too long is counted.
	r.serve(7, 1, time.Hour)
	r.w.cfg.Guard = 1
	all = r.several(launchLeast, 7)
	r.turn()
	r.w.cfg.Guard = guardDefault
	if n := r.w.Stats().Overruns; n == 0 {
		t.Error("no call took longer than less than nothing")
	}
	r.want("late", all...)
}

// An error of the kernel's loses nothing, and rings do for a while.
func TestLaunchThatFails(t *testing.T) {
	r := newLaunchRig(t)
	if len(r.fd) != 1 {
		t.Fatalf("the program has the descriptors %v", r.fd)
	}
	spare, err := unix.FcntlInt(uintptr(r.fd[0]), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(spare)
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	if err := unix.Dup3(int(null.Fd()), r.fd[0], unix.O_CLOEXEC); err != nil {
		t.Fatal(err)
	}
	all := r.several(100, 0)
	r.turn()
	slices.Sort(all)
	got := r.heard()
	slices.Sort(got) // what was staged goes behind what was not, once
	if !slices.Equal(got, all) {
		t.Errorf("frames %v left, want %v", got, all)
	}
	if err := r.w.Account(); err != nil {
		t.Error(err)
	}
	if s := r.w.SocketStats()[0]; s.TxErrors != 1 || s.Launched != 0 {
		t.Errorf("%+v", s)
	}
	if err := unix.Dup3(spare, r.fd[0], unix.O_CLOEXEC); err != nil {
		t.Fatal(err)
	}
	all = r.several(100, 0)
	r.turn()
	r.want("after an error", all...)
	if n, _ := r.launched(); n != 0 {
		t.Errorf("%d frames were launched right after an error", n)
	}
	r.w.outRests = 1 // long ago
	r.turn()
	all = r.several(100, 0)
	r.turn()
	if n, _ := r.launched(); n != 100 {
		t.Errorf("%d frames were launched a while after the error, want 100", n)
	}
	r.want("a while later", all...)
}

// Calls are bounded: what finds none goes by the ring.
func TestLaunchesAreBounded(t *testing.T) {
	r := newLaunchRig(t)
	most := launchMost / int(time.Second/launchWindow)
	r.w.outWindow = r.w.cfg.Clock.Now()
	r.w.outCalls = most - 1
	all := r.several(launchLeast, 0)
	r.turn()
	one, _ := r.launched()
	all = append(all, r.several(launchLeast, 0)...)
	r.turn()
	two, sent := r.launched()
	if time.Duration(r.w.cfg.Clock.Now()-r.w.outWindow) < launchWindow && (one != launchLeast || two != one) || sent != 2*launchLeast {
		t.Errorf("%d launched, then %d, %d sent", one, two, sent)
	}
	r.want("bounded", all...)
	r.w.outWindow -= uint64(launchWindow)
	r.several(launchLeast, 0)
	r.turn()
	if n, _ := r.launched(); n != two+launchLeast {
		t.Errorf("%d launched in the next window, before %d", n, two)
	}
}

// to hands the worker n frames of nobody's for a port.
func (r *launchRig) to(port uint16, n int) {
	r.t.Helper()
	for range n {
		addr, ok := r.u.Alloc()
		if !ok {
			r.t.Fatal("no frame is free")
		}
		copy(r.u.Mem()[addr:], make([]byte, 60))
		r.w.send(port, 0, 0, addr, 0, 60)
	}
}

// A call in the midst of a turn whose frames come back leaves room for those to come, on every port.
func TestWhatComesBackFillsNoBatch(t *testing.T) {
	r := newLaunchRig(t)
	far, err := netlink.LinkByName("dmf1")
	if err != nil {
		t.Fatal(err)
	}
	s, err := xsk.Bind(r.u, xsk.SocketConfig{Ifindex: far.Attrs().Index, RxSize: 64, TxSize: 64, FillSize: 64, CompSize: 64, Mode: xsk.Copy, NeedWakeup: true})
	if err == nil {
		err = r.w.Adopt(Socket{S: s, Port: 1})
	}
	if err != nil {
		t.Fatal(err)
	}
	if err := r.tab.SetDevice(0, 0); err != nil {
		t.Fatal(err)
	}
	r.x.SetPort(1, true) // and has no device
	b := len(r.w.socks[0].batch)
	r.to(0, 3*b)
	r.to(1, b)
	if n := r.w.out.Len(); n != cruise.SendMost || r.w.socks[0].n != 0 {
		t.Fatalf("%d staged, %d in the batch", n, r.w.socks[0].n)
	}
	r.to(1, b) // there is no room for them, and then what came back is in the ring
	if n := r.w.out.Len(); n != 0 {
		t.Fatalf("%d staged behind a call", n)
	}
	for _, s := range r.w.socks {
		if s.n == len(s.batch) {
			t.Errorf("the batch of port %d is full", s.Port)
		}
	}
	r.to(0, b+1)
	r.to(1, 1)
	r.turn()
	sent := [2]uint64{}
	for _, s := range r.w.SocketStats() {
		sent[s.Port] = s.TxPackets + s.TxFull
		if s.Launched != 0 {
			t.Errorf("%d frames were launched to nowhere", s.Launched)
		}
	}
	if sent != [2]uint64{uint64(4*b + 1), uint64(2*b + 1)} {
		t.Errorf("%v frames were sent, want %d and %d", sent, 4*b+1, 2*b+1)
	}
	if err := r.w.Account(); err != nil {
		t.Error(err)
	}
}

// A socket that goes while frames for it are staged takes none with it that nobody counts.
func TestDetachWithStagedFrames(t *testing.T) {
	r := newLaunchRig(t)
	b := len(r.w.socks[0].batch)
	r.to(0, b+5)
	s := r.w.socks[0]
	if r.w.out.Len() != b || s.n != 5 {
		t.Fatalf("%d staged, %d in the batch", r.w.out.Len(), s.n)
	}
	out := r.w.Detach(0)
	if r.w.out.Len() != 0 || s.txPackets.Load() != uint64(b) || len(out) != 1 {
		t.Errorf("%d staged, %d sent, %d sockets", r.w.out.Len(), s.txPackets.Load(), len(out))
	}
	r.turn()
	for _, s := range out {
		if err := s.Shut(); err != nil {
			t.Fatal(err)
		}
	}
	if err := r.w.Reclaim(0); err != nil {
		t.Fatal(err)
	}
	r.open()
	all := r.several(launchLeast, 0)
	r.turn()
	r.want("a new socket", all...)
}

// A frame that is longer than the program takes goes by the ring, with those about it, in order.
func TestLongFramesGoByTheRing(t *testing.T) {
	r := newLaunchRig(t)
	b := len(r.w.socks[0].batch)
	all := r.several(b, 0) // staged
	if r.w.out.Len() != b {
		t.Fatalf("%d staged", r.w.out.Len())
	}
	all = append(all, r.several(30, 0)...)
	r.w.socks[0].long = true // no packet memory of this rig holds one
	all = append(all, r.several(b-30, 0)...)
	if n := r.w.socks[0].n; n != 0 || r.w.socks[0].long {
		t.Errorf("%d in the batch, long %v", n, r.w.socks[0].long)
	}
	r.turn()
	if n, sent := r.launched(); n != uint64(b) || sent != uint64(2*b) {
		t.Errorf("%d launched, %d sent", n, sent)
	}
	r.want("long", all...)
	at := make([]byte, cruise.SendBytes+1)
	r.w.out.Add(0, 0, at)
	if _, _, got := r.w.out.Frame(0); len(got) != cruise.SendBytes {
		t.Errorf("%d bytes were added", len(got))
	}
	r.w.out.Reset()
}

// The program looks at the time by itself, since a call may be held up; and nothing staged is nothing of a group in hand.
func TestTheProgramLooksAtTheTime(t *testing.T) {
	r := newLaunchRig(t)
	hour := uint64(time.Hour)
	r.ahead -= hour
	r.d.Write(7, 1, r.w.cfg.Clock.Exact()+hour/2) // long ago, as the kernel has it
	all := r.several(launchLeast, 7)
	r.turn()
	if n, sent := r.launched(); n != 0 || sent != launchLeast {
		t.Errorf("%d launched behind their deadline, %d sent by the ring", n, sent)
	}
	r.want("by the ring, whose worker does not know", all...)
	r.ahead += hour
	r.d.Write(7, 1, 0)
	r.several(len(r.w.socks[0].batch), 7)
	r.turn()
	if !r.w.bare() {
		t.Error("not bare, and all was refused")
	}
	r.want("refused")
}

// A session is handed down when what was launched before has had the time to leave its device.
func TestHandDownWaitsForWhatWasLaunched(t *testing.T) {
	r := newLaunchRig(t)
	r.several(launchLeast, 0)
	r.turn()
	at := r.w.lastLaunch.Load()
	if at == 0 {
		t.Fatal("nothing was launched")
	}
	r.w.beginOrder(at)
	if got := r.w.goOn(at + uint64(launchQuiet) - 1); got != orderUnderWay {
		t.Errorf("right behind a launch: %d", got)
	}
	r.w.lastLaunch.Store(at + uint64(launchQuiet)) // what is launched later is not waited for
	if got := r.w.goOn(at + uint64(launchQuiet)); got != orderKept {
		t.Errorf("a while behind it: %d", got)
	}
}

// A turn takes more than one burst of what waits where the program sends, as much as one call has room for, and one where it does not.
func TestATurnFillsACall(t *testing.T) {
	r := newLaunchRig(t)
	for _, s := range r.w.Detach(0) {
		if err := s.Shut(); err != nil {
			t.Fatal(err)
		}
	}
	if err := r.w.Reclaim(0); err != nil {
		t.Fatal(err)
	}
	s, err := xsk.Bind(r.u, xsk.SocketConfig{Ifindex: r.ifi, RxSize: 256, TxSize: 64, FillSize: 256, CompSize: 64, Mode: xsk.Copy, NeedWakeup: true})
	if err == nil {
		err = r.w.Adopt(Socket{S: s})
	}
	if err != nil {
		t.Fatal(err)
	}
	p, err := xsk.LoadProgram(xsk.ProgramConfig{Ifindex: r.ifi, Queues: 1, MAC: portMAC}, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	})
	if _, err := p.Attach(false); err != nil {
		t.Fatal(err)
	}
	if err := p.SetSocket(0, s.FD()); err != nil {
		t.Fatal(err)
	}
	const b = 48
	const most = cruise.SendMost / b * b
	r.w.cfg.Batch = b
	out, rested := r.w.out, r.w.cfg.Clock.Now()+uint64(time.Hour)
	const nobodyTakes, othersHand = "no port takes redirected frames", "other workers hand over"
	for _, c := range []struct {
		what     string
		out      *cruise.Sender
		rests    uint64
		wait     int
		inOne    uint64
		nextTurn uint64
	}{
		{"less than a burst", out, 0, b - 1, b - 1, 0},
		{"a burst and some", out, 0, b + 3, b + 3, 0},
		{"more than a call", out, 0, most + 10, most, 10},
		{"the program rests", out, rested, most, b, b},
		{"no program", nil, 0, most, b, b},
		{nobodyTakes, out, 0, most, b, b},
		{othersHand, out, 0, most, 3 * b, 2 * b}, // a burst of what was handed over in each round
	} {
		r.w.out, r.w.outRests = c.out, c.rests
		r.x.SetPort(0, c.what != nobodyTakes)
		for range 2 {
			r.turn() // fills
		}
		frame := slices.Concat(portMAC[:], peerMAC[:], []byte{8, 0, 0x45}, make([]byte, 45)) // nothing that is right, so that it is dropped
		for range c.wait {
			if _, err := unix.Write(r.ear, frame); err != nil {
				t.Fatal(err)
			}
		}
		for end := time.Now().Add(5 * time.Second); s.Waiting() < c.wait; time.Sleep(time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("%s: %d of %d frames came", c.what, s.Waiting(), c.wait)
			}
		}
		handed := r.w.count.handedIn.Load()
		if c.what == othersHand {
			other := newRing(2048)
			for range 3 * b {
				if !other.push(handProcess, 0, 0, frame) {
					t.Fatal("the ring is full")
				}
			}
			r.w.in = []*ring{other}
		}
		for i, want := range []uint64{c.inOne, c.nextTurn} {
			was := r.w.SocketStats()[0].RxPackets
			if r.turn(); r.w.SocketStats()[0].RxPackets-was != want {
				t.Errorf("%s: turn %d took %d frames, want %d", c.what, i, r.w.SocketStats()[0].RxPackets-was, want)
			}
		}
		if n := r.w.count.handedIn.Load() - handed; c.what == othersHand && n != 3*b {
			t.Errorf("%s: %d of %d frames were taken", c.what, n, 3*b)
		}
		r.w.in = nil
		for s.Waiting() > 0 {
			r.turn()
		}
		if err := r.w.Account(); err != nil {
			t.Errorf("%s: %v", c.what, err)
		}
	}
}
