package worker

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"log/slog"
	"os"
	"runtime"
	"slices"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"demarc/gateway/lease"
	"demarc/gateway/netlab/roottest"
	"demarc/gateway/pipeline"
	"demarc/gateway/verdict"
	"demarc/gateway/xsk"
)

// fenceRig is a worker with one socket in copy mode, whose turns the test takes itself, and who hears at the far end of the wire.
type fenceRig struct {
	t      *testing.T
	w      *Worker
	u      *xsk.UMEM
	d      *lease.Deadlines
	ahead  uint64 // of the clock
	ear    int
	fenced []*xsk.Socket
	still  uint64 // ns; the clock stands there
	ifi    int
	n      byte      // frames so far
	from   [][6]byte // source addresses of what was heard
}

func newFenceRig(t *testing.T) *fenceRig {
	t.Helper()
	roottest.Require(t)
	runtime.LockOSThread() // never unlocked: the namespaces end with the thread
	h, err := netns.New()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { h.Close() })
	if err := os.WriteFile("/proc/sys/net/ipv6/conf/default/disable_ipv6", []byte("1"), 0o644); err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	a := netlink.NewLinkAttrs()
	a.Name = "dmf0"
	if err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: a, PeerName: "dmf1"}); err != nil {
		t.Fatal(err)
	}
	var index [2]int
	for i, name := range []string{"dmf0", "dmf1"} {
		l, err := netlink.LinkByName(name)
		if err == nil {
			err = netlink.LinkSetUp(l)
		}
		if err != nil {
			t.Fatal(err)
		}
		index[i] = l.Attrs().Index
	}
	r := &fenceRig{t: t, d: &lease.Deadlines{}, ifi: index[0]}
	proto := uint16(0x88b5) // for experiments (IEEE 802)
	if r.ear, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, int(proto<<8|proto>>8)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(r.ear) })
	if err := unix.Bind(r.ear, &unix.SockaddrLinklayer{Ifindex: index[1], Protocol: proto<<8 | proto>>8}); err != nil {
		t.Fatal(err)
	}
	r.w = newWorkers(t, 1)[0]
	r.w.cfg.Deadlines, r.w.cfg.Log = r.d, slog.New(slog.DiscardHandler)
	r.w.cfg.Fenced = func(port uint16, s *xsk.Socket) {
		if port != 0 {
			t.Errorf("port %d is fenced", port)
		}
		r.fenced = append(r.fenced, s)
	}
	r.u = r.w.cfg.Areas[0]
	clock := r.w.cfg.Clock
	clock.boot = func() (uint64, error) {
		now, err := xsk.BootTime()
		if r.still != 0 {
			now = r.still
		}
		return now + r.ahead, err
	}
	r.open()
	t.Cleanup(func() {
		for _, s := range r.w.socks {
			_ = s.S.Close()
		}
	})
	return r
}

// open gives the worker a socket on the port.
func (r *fenceRig) open() {
	r.t.Helper()
	s, err := xsk.Bind(r.u, xsk.SocketConfig{Ifindex: r.ifi, RxSize: 64, TxSize: 64, FillSize: 64, CompSize: 64, Mode: xsk.Copy, NeedWakeup: true})
	if err == nil {
		err = r.w.Adopt(Socket{S: s})
	}
	if err != nil {
		r.t.Fatal(err)
	}
}

// serve lets a group's frames leave for so long.
func (r *fenceRig) serve(id uint8, epoch uint64, d time.Duration) {
	r.d.Write(id, epoch, r.w.cfg.Clock.Exact()+uint64(d))
}

// hand gives the worker a frame of a group and returns its number.
func (r *fenceRig) hand(group uint8) byte {
	r.n++
	f := append(bytes.Repeat([]byte{0xff}, 6), 2, 0, 0, 0, 0, 1)
	f = append(binary.BigEndian.AppendUint16(f, 0x88b5), r.n)
	addr, ok := r.u.Alloc()
	if !ok {
		r.t.Fatal("no frame is free")
	}
	f = append(f, make([]byte, 60-len(f))...)
	copy(r.u.Mem()[addr+handHeadroom:], f)
	r.w.send(0, group, 0, addr, handHeadroom, len(f))
	return r.n
}

func (r *fenceRig) turn() { r.w.turn(r.w.cfg.Clock.Now()) }

// heard is what came out at the far end, after a frame of nobody's has that is sent last; that one not included.
func (r *fenceRig) heard() (list []byte) {
	r.t.Helper()
	if len(r.w.socks) == 0 {
		r.open()
	}
	last := r.hand(0)
	var b [2048]byte
	for end := time.Now().Add(5 * time.Second); time.Now().Before(end); {
		r.turn()
		n, _, err := unix.Recvfrom(r.ear, b[:], 0)
		if err != nil || n < 15 {
			time.Sleep(100 * time.Microsecond)
			continue
		}
		if b[14] == last {
			return list
		}
		list = append(list, b[14])
		r.from = append(r.from, [6]byte(b[6:12]))
	}
	r.t.Fatalf("the last frame does not arrive; before it %v", list)
	return nil
}

func (r *fenceRig) want(step string, want ...byte) {
	r.t.Helper()
	if got := r.heard(); !slices.Equal(got, want) {
		r.t.Errorf("%s: frames %v left, want %v", step, got, want)
	}
	if err := r.w.Account(); err != nil {
		r.t.Errorf("%s: %v", step, err)
	}
}

// refused is how many frames were dropped as not_owner.
func (r *fenceRig) refused() uint64 {
	r.w.shard.Meter.Publish()
	return r.w.shard.Meter.Drops(0, verdict.NotOwner)
}

// mend does what the control side does with fenced sockets.
func (r *fenceRig) mend(step string) {
	r.t.Helper()
	if len(r.fenced) != 1 || len(r.w.socks) != 0 {
		r.t.Fatalf("%s: %d sockets fenced, %d left", step, len(r.fenced), len(r.w.socks))
	}
	if r.w.Clean() {
		r.t.Errorf("%s: said to be clean before the socket is shut", step)
	}
	for _, s := range r.w.Detach(0) {
		if err := s.Shut(); err != nil {
			r.t.Fatal(err)
		}
	}
	if !r.w.Clean() {
		r.t.Errorf("%s: not clean after the socket is shut", step)
	}
	if err := r.w.Reclaim(0); err != nil {
		r.t.Fatal(err)
	}
	r.fenced = nil
	r.open()
}

// What is handed to a port leaves while its group is served and not a frame later, wherever it is when the deadline passes.
func TestNoFrameOfAGroupLeavesAfterItsDeadline(t *testing.T) {
	r := newFenceRig(t)
	r.hand(7)
	r.want("never served")
	if r.refused() != 1 {
		t.Errorf("%d refused, want 1", r.refused())
	}
	r.serve(7, 1, time.Hour)
	a := r.hand(7)
	b := r.hand(0)
	r.hand(8)
	d := r.hand(7)
	r.want("served; group 8 is not", a, b, d)
	if r.refused() != 2 {
		t.Errorf("%d refused, want 2", r.refused())
	}

	r.hand(7)
	e := r.hand(0)
	r.d.Write(7, 1, 0)
	r.want("the deadline passes before the batch is put into the ring", e)

	// Between the ring and the call.
	for _, c := range []struct {
		step string
		do   func()
	}{
		{"the deadline is taken back", func() { r.d.Write(7, 1, 0) }},
		{"it passed, and the next one is long in coming", func() { r.d.Write(7, 1, r.w.cfg.Clock.Exact()-uint64(lateMost)) }},
		{"the clock jumps ahead, as after a suspend", func() { r.ahead += uint64(2 * time.Hour) }},
		{"another node has served meanwhile, and this one does again", func() { r.d.Write(7, 2, 0); r.serve(7, 3, time.Hour) }},
	} {
		r.serve(7, 1, time.Hour)
		r.hand(7)
		s := r.w.socks[0]
		r.w.push(s)
		if s.S.InTx() != 1 || s.pollFD() != -1 {
			t.Errorf("%s: %d frames published, polls %d", c.step, s.S.InTx(), s.pollFD())
		}
		c.do()
		was := r.w.Stats()
		r.turn()
		r.mend(c.step)
		if now := r.w.Stats(); now.Fenced != was.Fenced+1 {
			t.Errorf("%s: %d sockets counted as fenced, before %d", c.step, now.Fenced, was.Fenced)
		}
		r.want(c.step)
	}

	// In copy mode what is queued waits for a lease that comes late, for a time, and leaves with it; who asks whether anything can leave yet does not wait.
	for _, c := range []struct {
		step  string
		then  func()
		leave bool
	}{
		{"the lease comes late", func() { r.serve(7, 1, time.Hour) }, true},
		{"the next one is of another term", func() { r.serve(7, 2, time.Hour) }, false},
		{"somebody asks", func() {
			if r.w.Clean() {
				t.Error("clean with a frame in the ring")
			}
		}, false},
		{"none comes", func() { r.ahead += uint64(lateMost) }, false},
	} {
		r.serve(7, 1, time.Hour)
		f := r.hand(7)
		s := r.w.socks[0]
		r.w.push(s)
		r.still = r.w.cfg.Clock.Exact() - r.ahead // a machine that is elsewhere makes nobody late
		r.d.Write(7, 1, r.w.cfg.Clock.Exact()-1)
		for range 3 {
			r.turn()
		}
		if len(r.fenced) > 0 || s.S.InTx() != 1 || s.pollFD() != -1 || !s.pending || r.w.bare() {
			t.Fatalf("%s: %d sockets fenced, %d frames published, polls %d, asks again %t", c.step, len(r.fenced), s.S.InTx(), s.pollFD(), s.pending)
		}
		c.then()
		r.turn()
		r.still = 0
		if c.leave {
			r.want(c.step, f)
			continue
		}
		r.mend(c.step)
		r.want(c.step)
	}

	// Nobody's frames do not wait for anybody's deadline, and a socket with none of a group is polled.
	r.hand(0)
	s := r.w.socks[0]
	r.w.push(s)
	if s.pollFD() != int32(s.S.FD()) || len(s.queued) != 0 {
		t.Errorf("polls %d, queued %v", s.pollFD(), s.queued)
	}
	r.want("nobody's", r.n)
}

// A call that comes back later than the guard after the look before it is counted, one that does not is not.
func TestACallThatTakesLongerThanTheGuardIsCounted(t *testing.T) {
	r := newFenceRig(t)
	r.serve(7, 1, 24*time.Hour)
	r.w.cfg.Guard = time.Hour
	f := r.hand(7)
	r.turn()
	r.want("quick", f)
	if n := r.w.Stats().Overruns; n != 0 {
		t.Errorf("%d overruns", n)
	}
	s := r.w.socks[0]
	r.hand(7)
	r.w.push(s)
	if !r.w.mayCall(s) {
		t.Fatal("may not leave")
	}
	r.ahead += uint64(2 * time.Hour) // while it is in the kernel
	r.w.overran(s)
	r.w.overran(s)
	if n := r.w.Stats().Overruns; n != 1 {
		t.Errorf("%d overruns, want 1", n)
	}
}

// Whoever stops serving is told so only once a worker has looked at what it had in hand: two orders later, also when it sleeps.
func TestWhoAnswersASecondOrderHasLooked(t *testing.T) {
	r := newFenceRig(t)
	r.serve(7, 1, time.Hour)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- r.w.Run(ctx) }()
	order := func(fn func()) {
		t.Helper()
		if err := r.w.Do(ctx, func(*pipeline.Shard) { fn() }); err != nil {
			t.Fatal(err)
		}
	}
	for i := range 50 {
		order(func() { r.hand(7) }) // behind this turn's look at what has come, before its flush
		r.d.Write(7, uint64(i)+1, 0)
		order(func() {})
		order(func() {
			if s := r.w.socks; len(s) == 1 && s[0].n != 0 {
				t.Errorf("round %d: %d frames in hand after the look", i, s[0].n)
			}
		})
		if len(r.fenced) > 0 { // the deadline passed between ring and call, which is as good
			break
		}
		r.serve(7, uint64(i)+2, time.Hour)
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// The same of one order that is done a turn later, which costs one way to the worker; and of a worker that sleeps with nothing in hand nobody need ask.
func TestWhoAnswersBehindHasLooked(t *testing.T) {
	r := newFenceRig(t)
	r.serve(7, 1, time.Hour)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- r.w.Run(ctx) }()
	for i := range 50 {
		if err := r.w.Do(ctx, func(*pipeline.Shard) { r.hand(7) }); err != nil {
			t.Fatal(err)
		}
		r.d.Write(7, uint64(i)+1, 0)
		if err := r.w.DoBehind(ctx, func(*pipeline.Shard) {
			if s := r.w.socks; len(s) == 1 && s[0].n != 0 {
				t.Errorf("round %d: %d frames in hand after the look", i, s[0].n)
			}
		}); err != nil {
			t.Fatal(err)
		}
		if len(r.fenced) > 0 {
			break
		}
		r.serve(7, uint64(i)+2, time.Hour)
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if err := r.w.DoBehind(t.Context(), func(*pipeline.Shard) {}); !errors.Is(err, ErrStopped) {
		t.Errorf("one that has ended says %v", err)
	}
}

// A worker says that it rests while it sleeps with nothing of a group in hand, and at no other time.
func TestWhoRestsHasNothingInHand(t *testing.T) {
	r := newFenceRig(t)
	r.serve(7, 1, time.Hour)
	if r.w.Rests() || !r.w.bare() {
		t.Error("before it runs: it rests, or has something in hand")
	}
	r.hand(7)
	if r.w.bare() {
		t.Error("it has a frame in its batch, and says that it has nothing")
	}
	r.w.push(r.w.socks[0]) // and no call
	if r.w.bare() {
		t.Error("a frame is in a tx ring, and it says that it has nothing")
	}
	r.d.Write(7, 1, 0)
	r.w.Clean()
	r.w.sever()
	if r.w.bare() {
		t.Error("a socket is still to be shut, and it says that it has nothing")
	}
	r.mend("severed")
	if !r.w.bare() {
		t.Error("all is shut, and it says that it has something")
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- r.w.Run(ctx) }()
	for end := time.Now().Add(5 * time.Second); !r.w.Rests(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("it has nothing to do and does not rest")
		}
	}
	if err := r.w.Do(ctx, func(*pipeline.Shard) {
		if r.w.Rests() {
			t.Error("it works, and says that it rests")
		}
	}); err != nil {
		t.Error(err)
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// A zero-copy driver empties a tx ring without being called, so who asks whether all have stopped is not told yes while a group's frames are in one.
func TestWhatIsInARingIsNotClean(t *testing.T) {
	r := newFenceRig(t)
	r.serve(7, 1, time.Hour)
	r.hand(7)
	r.w.push(r.w.socks[0]) // and no call
	if !r.w.Clean() {
		t.Error("not clean while the group is served")
	}
	if r.w.socks[0].looked != 0 {
		t.Error("a question counts as a look before a call")
	}
	r.d.Write(7, 1, 0)
	if r.w.Clean() {
		t.Error("clean with a frame in the ring of a group that is not served")
	}
	r.w.sever()
	r.mend("in the ring")
	r.want("in the ring")
}

// What is in a ring when its group is handed over leaves in the time that it is given, and takes no socket along. Nothing more comes into a ring, and nobody is told that all has stopped before
// it is empty.
func TestWhatIsQueuedLeavesAtAHandOver(t *testing.T) {
	r := newFenceRig(t)
	var leaving lease.Deadlines
	r.w.cfg.Leaving = &leaving
	over := func(epoch uint64, d time.Duration) {
		leaving.Write(7, epoch, r.w.cfg.Clock.Exact()+uint64(d))
		r.d.Write(7, epoch, 0)
	}
	r.serve(7, 1, time.Hour)
	a := r.hand(7)
	r.w.push(r.w.socks[0]) // and no call
	over(1, time.Hour)
	if r.w.Clean() {
		t.Error("clean before what is queued has left")
	}
	r.hand(7) // judged before, and not queued
	r.want("handed over", a)
	if !r.w.Clean() || len(r.fenced) > 0 || r.refused() != 1 {
		t.Errorf("clean %t, %d sockets fenced, %d refused: want one frame refused and no more", r.w.Clean(), len(r.fenced), r.refused())
	}

	for _, c := range []struct {
		step string
		do   func()
	}{
		{"the time for it is over", func() { over(3, time.Hour); r.ahead += uint64(2 * time.Hour) }},
		{"it is of another term", func() { over(4, time.Hour) }},
	} {
		r.serve(7, 3, time.Hour)
		r.hand(7)
		r.w.push(r.w.socks[0])
		c.do()
		r.turn()
		r.mend(c.step)
		r.want(c.step)
	}
}

// What had come for a group that is handed over is carried, by each worker until it is done with that: it lies in its rings, and may go into tx rings. Behind it nothing does, whatever comes, and it is not waited for what comes
// for others meanwhile. Not in another term, nor when the time for it is over.
func TestWhatHadComeIsCarriedAtAHandOver(t *testing.T) {
	r := newFenceRig(t)
	var leaving, ending lease.Deadlines
	r.w.cfg.Leaving, r.w.cfg.Ending = &leaving, &ending
	in := newRing(r.w.cfg.Areas[0].Chunk())
	r.w.in, r.w.due = []*ring{in}, make([]uint64, 1)
	over := func(epoch uint64) {
		until := r.w.cfg.Clock.Exact() + uint64(time.Hour)
		ending.Write(7, epoch, until)
		leaving.Write(7, epoch, until)
		r.d.Write(7, 1, 0)
	}
	clean := func(step string) {
		t.Helper()
		for end := time.Now().Add(5 * time.Second); !r.w.Clean(); {
			if time.Now().After(end) {
				t.Fatalf("%s: never clean", step)
			}
		}
	}
	frame := make([]byte, 60)

	r.serve(7, 1, time.Hour)
	over(1)
	in.push(handProcess, 0, 0, frame)
	a := r.hand(7) // judged behind the deadline: it had come before
	if r.w.Clean() || !ending.May(7, r.w.cfg.Clock.Exact()) {
		t.Error("clean with something in a ring between workers that had come")
	}
	in.push(handProcess, 0, 0, frame) // since
	in.pop()
	clean("what had come is carried")
	r.want("what had come", a)
	if ending.May(7, 1) || r.w.draining {
		t.Error("it is clean, and would still carry what comes")
	}
	r.hand(7)
	r.turn()
	r.want("behind it")
	if n := r.refused(); n != 1 || len(r.fenced) > 0 {
		t.Errorf("%d frames refused, %d sockets fenced, want one frame refused", n, len(r.fenced))
	}
	in.pop()

	r.serve(7, 1, time.Hour)
	over(2) // of another term
	r.hand(7)
	r.turn()
	r.want("of another term")
	over(1)
	r.ahead += uint64(2 * time.Hour)
	r.hand(7)
	r.turn()
	r.want("too late")
	clean("too late")
	over(1)
	if r.w.EndNow(); ending.May(7, 1) {
		t.Error("who rests would still carry what comes")
	}
}
