package bench

import (
	"math"
	"runtime"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"demarc/bench/report"
)

// A CPU that is slower than it was at best is seen, whichever it is; what was at best may be found later.
func TestYardstick(t *testing.T) {
	ns := map[int]float64{makerCPU: 0.8, deviceCPU: 0.8}
	y := &yardstick{piece: func(cpu int) (float64, bool) { return ns[cpu], ns[cpu] > 0 }}
	times := func() float64 { return y.times(y.look(), y.look()) }
	if got := times(); got != 1 || !y.calm() {
		t.Fatalf("at its best it took %v times that, calm %v", got, y.calm())
	}
	ns[deviceCPU] = 1.2
	if got := times(); math.Abs(got-1.5) > 1e-9 || !(usage{slow: got}).disturbed() {
		t.Fatalf("a CPU that takes half as long again took %v times its best, or that is no disturbance", got)
	}
	if s := y.speed(report.Speed{}); s != (report.Speed{Step: 0.8, Looks: 4, Slow: 2}) {
		t.Fatalf("account %+v", s)
	}
	since := y.speed(report.Speed{})
	ns[deviceCPU] = 0.8
	if got := times(); got != 1 || (usage{slow: got}).disturbed() {
		t.Fatalf("it was %v times its best when it was over", got)
	}
	if s := y.speed(since); s.Looks != 2 || s.Slow != 0 {
		t.Fatalf("account since then %+v", s)
	}
	ns[makerCPU], ns[deviceCPU] = 0.5, 0.5
	y.look()
	ns[makerCPU] = 0.8
	if got := times(); got != 1.6 {
		t.Fatalf("0.8 is %v times a best of 0.5", got)
	}
	for range 16 {
		y.look()
	}
	if y.calm() {
		t.Fatal("calm, and a CPU was slowed at each of the last looks")
	}
	if !y.atSpeed(deviceCPU) {
		t.Fatal("a CPU at 0.5 of 0.5 is not at its speed")
	}
	if y.atSpeed(makerCPU) {
		t.Fatal("a CPU at 0.8 of 0.5 is at its speed")
	}
	ns[deviceCPU], ns[makerCPU] = 0, 0
	if got := times(); got != 0 || (usage{slow: got}).disturbed() {
		t.Fatalf("a CPU that nobody can look at took %v times its best", got)
	}
}

// Of a trial those parts count before and behind which the CPU was at its speed, where there are enough of them.
func TestCalmParts(t *testing.T) {
	was := yard.piece
	ns := 0.8
	defer newYard(func(int) (float64, bool) { return ns, true }, was)()
	c := calmParts{was: yard.atSpeed(0)}
	for i := range 100 {
		if ns = 0.8; i%10 > 2 { // of each ten the first three end at its speed, and one of these begins slowed
			ns = 1.6
		}
		took := time.Duration(64 * 200)
		if i%10 == 1 || i%10 == 2 || i == 0 {
			took = 64 * 100
		}
		c.part(64, took)
	}
	if got, ok := c.packet(); !ok || got != 100 || c.all != 6400 {
		t.Errorf("%v ns, %v, %+v", got, ok, c)
	}
	few := calmParts{was: true}
	ns = 0.8
	for range 3 {
		few.part(64, 6400)
	}
	if _, ok := few.packet(); ok {
		t.Error("three parts are enough")
	}
	few.part(64, 6400)
	if _, ok := few.packet(); !ok {
		t.Error("four of four parts are not enough")
	}
	ns = 1.6
	for range 200 {
		few.part(64, 6400)
	}
	if _, ok := few.packet(); ok {
		t.Error("four of 204 parts are enough")
	}
}

// newYard has the process's yardstick begin anew with other work, until it is called.
func newYard(piece, was func(int) (float64, bool)) (back func()) {
	yard.mu.Lock()
	defer yard.mu.Unlock()
	best, looks, slow := yard.best, yard.looks, yard.slow
	yard.piece, yard.best = piece, 0
	return func() {
		yard.mu.Lock()
		defer yard.mu.Unlock()
		yard.piece, yard.best, yard.looks, yard.slow, yard.recent = was, best, looks, slow, 0
	}
}

// What others use is tried again twice; a core that is shared once, and not at all where it is so all the while.
func TestYardstickAgain(t *testing.T) {
	was := yard.piece
	ns := 0.8
	looks := func(v float64) {
		ns = v
		for range 16 {
			yard.look()
		}
	}
	defer newYard(func(int) (float64, bool) { return ns, true }, was)()
	looks(0.8)
	for _, c := range []struct {
		u    usage
		try  int
		want bool
	}{{usage{}, 0, false}, {usage{foreign: 1}, 1, true}, {usage{foreign: 1}, 2, false}, {usage{steal: 0.1, slow: 2}, 1, true}, {usage{slow: 2}, 0, true}, {usage{slow: 2}, 1, false}, {usage{slow: 1.2}, 0, false}} {
		if got := c.u.again(c.try); got != c.want {
			t.Errorf("%+v is tried again behind try %d: %v, want %v", c.u, c.try, got, c.want)
		}
	}
	looks(1.6)
	if (usage{slow: 2}).again(0) || !(usage{foreign: 1}).again(0) {
		t.Error("a machine that is slowed all the while is asked again, or one that others use is not")
	}
}

// The piece of work takes the thread's own time on the CPU that was asked for, and the thread goes back to where it may run.
func TestPieceOfWork(t *testing.T) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var before, after unix.CPUSet
	if err := unix.SchedGetaffinity(0, &before); err != nil {
		t.Fatal(err)
	}
	ns, ok := pieceOfWork(0)
	if !ok || ns < 0.05 || ns > 100 {
		t.Fatalf("a step took %v ns, %v", ns, ok)
	}
	if err := unix.SchedGetaffinity(0, &after); err != nil || after != before {
		t.Fatalf("the thread may run on %v now and not on %v (%v)", after, before, err)
	}
	if _, ok := pieceOfWork(1023); ok {
		t.Fatal("a CPU that is not there did work")
	}
}
