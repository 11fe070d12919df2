package bench

import (
	"math"
	"runtime"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"demarc/bench/report"
)

// A CPU that is slower than it was at best is seen, whichever it is; what was at best may be found later, and is each CPU's own.
func TestYardstick(t *testing.T) {
	cycles := map[int]float64{makerCPU: 2, deviceCPU: 2.2}
	y := &yardstick{piece: func(cpu int) (float64, float64, bool) { return cycles[cpu], perMultiple, cycles[cpu] > 0 }}
	slowdown := func() float64 {
		got, err := y.around(func() error { return nil })
		if err != nil {
			t.Fatal(err)
		}
		return got
	}
	near := func(got, want float64) bool { return math.Abs(got-want) < 1e-9 }
	if got := slowdown(); !near(got, 1) || !y.calm() {
		t.Fatalf("at its best it took %v times that, calm %v", got, y.calm())
	}
	cycles[deviceCPU] = 3.3
	if got := slowdown(); !near(got, 1.5) || !(usage{slowdown: got}).disturbed() {
		t.Fatalf("a CPU that takes half as long again took %v times its best, or that is no disturbance", got)
	}
	if !y.atSpeed(makerCPU) || y.atSpeed(deviceCPU) {
		t.Fatal("one CPU is at its speed, the other is not, and it was said otherwise")
	}
	since := y.speed(report.Speed{})
	if since != (report.Speed{Looks: 4, Slow: 2}) {
		t.Fatalf("account %+v", since)
	}
	cycles[deviceCPU] = 2.2
	if got := slowdown(); !near(got, 1) || (usage{slowdown: got}).disturbed() {
		t.Fatalf("it was %v times its best when it was over", got)
	}
	if s := y.speed(since); s != (report.Speed{Looks: 2}) {
		t.Fatalf("account since then %+v", s)
	}
	cycles[makerCPU] = 1.25
	y.look()
	cycles[makerCPU] = 2
	if got := slowdown(); !near(got, 1.6) {
		t.Fatalf("2 is %v times a best of 1.25", got)
	}
	// Of links that took long, by an interrupt, none makes the CPU look fast.
	n, before := 0, y.best[makerCPU]
	interrupted := y.piece
	y.piece = func(cpu int) (step, link float64, ok bool) {
		if step, link, ok = interrupted(cpu); n%pieces > 0 {
			link *= 3
		}
		n++
		return step, link, ok
	}
	if y.look(makerCPU); y.best[makerCPU] != before {
		t.Fatalf("the best was %v cycles, and is %v behind chains that were interrupted", before, y.best[makerCPU])
	}
	y.piece = interrupted
	for range 16 {
		y.look()
	}
	if y.calm() {
		t.Fatal("calm, and a CPU was slowed at each of the last looks")
	}
	cycles[deviceCPU] = 0
	if got := slowdown(); got != 0 || (usage{slowdown: got}).disturbed() || !y.atSpeed(deviceCPU) {
		t.Fatalf("a CPU that nobody can look at took %v times its best", got)
	}
}

// Where no moment of the first look is calm, what a core of its own takes at most is the best; where all pieces are alike the core is a narrow one.
func TestYardstickWithoutACalmMoment(t *testing.T) {
	n := 0
	shared := &yardstick{piece: func(int) (float64, float64, bool) { n++; return 3.4 + float64(n%10)/10, perMultiple, true }}
	narrow := &yardstick{piece: func(int) (float64, float64, bool) { n++; return 3.4 + float64(n%10)/100, perMultiple, true }}
	if runtime.GOARCH != "amd64" {
		if shared.look() > 1.3 {
			t.Error("how many cycles a step may take is known")
		}
		return
	}
	if got := shared.look(); got < 3.4/fewCycles {
		t.Errorf("a core that takes 3.4 to 4.3 cycles is %v times slower than at best", got)
	}
	if got := narrow.look(); got > 1.03 {
		t.Errorf("a core that takes 3.4 cycles all the while is %v times slower than at best", got)
	}
}

// newYard has the process's yardstick begin anew with other work, until back is called.
func newYard(piece func(int) (float64, float64, bool)) (back func()) {
	yard.mu.Lock()
	defer yard.mu.Unlock()
	was, best, looks, slow, recent := yard.piece, yard.best, yard.looks, yard.slow, yard.recent
	yard.piece, yard.best, yard.recent = piece, nil, 0
	return func() {
		yard.mu.Lock()
		defer yard.mu.Unlock()
		yard.piece, yard.best, yard.looks, yard.slow, yard.recent = was, best, looks, slow, recent
	}
}

// Of a trial those parts count before and behind which the CPU was at its speed, where there are enough of them.
func TestCalmParts(t *testing.T) {
	cycles := 2.0
	defer newYard(func(int) (float64, float64, bool) { return cycles, perMultiple, true })()
	c := calmParts{was: yard.atSpeed(0)}
	for i := range 100 { // of each ten the first three end at its speed, and one of these begins slowed
		took := time.Duration(64 * 200)
		if cycles = 4; i%10 < 3 {
			cycles = 2
		}
		if i%10 == 1 || i%10 == 2 || i == 0 {
			took = 64 * 100
		}
		c.part(64, took)
	}
	if got, ok := c.packet(); !ok || got != 100 || c.all != 6400 {
		t.Errorf("%v ns, %v, %+v", got, ok, c)
	}
	few := calmParts{was: true}
	cycles = 2
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
	cycles = 4
	for range 200 {
		few.part(64, 6400)
	}
	if _, ok := few.packet(); ok {
		t.Error("four of 204 parts are enough")
	}
}

// What others use is tried again twice; a core that is shared once, and not at all where it is so all the while.
func TestYardstickAgain(t *testing.T) {
	cycles := 2.0
	defer newYard(func(int) (float64, float64, bool) { return cycles, perMultiple, true })()
	looks := func(v float64) {
		cycles = v
		for range 16 {
			yard.look(0)
		}
	}
	looks(2)
	for _, c := range []struct {
		u    usage
		try  int
		want bool
	}{{usage{}, 0, false}, {usage{foreign: 1}, 1, true}, {usage{foreign: 1}, 2, false}, {usage{steal: 0.1, slowdown: 2}, 1, true}, {usage{slowdown: 2}, 0, true}, {usage{slowdown: 2}, 1, false}, {usage{slowdown: 1.2}, 0, false}} {
		if got := c.u.again(c.try); got != c.want {
			t.Errorf("%+v is tried again behind try %d: %v, want %v", c.u, c.try, got, c.want)
		}
	}
	looks(4)
	if (usage{slowdown: 2}).again(0) || !(usage{foreign: 1}).again(0) {
		t.Error("a machine that is slowed all the while is asked again, or one that others use is not")
	}
}

// The piece of work runs on the CPU that was asked for and takes the thread's own time, and the thread goes back to where it may run.
func TestPieceOfWork(t *testing.T) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	before, err := allowed()
	if err != nil {
		t.Fatal(err)
	}
	cpu, err := lastCPU()
	if err != nil || !before.IsSet(cpu) {
		t.Fatalf("the last CPU is %d: %v", cpu, err)
	}
	step, link, ok := pieceOfWork(cpu)
	if !ok || step < 0.05 || step > 100 || link < 0.05 || link > 100 {
		t.Fatalf("a step took %v ns, a link %v, %v", step, link, ok)
	}
	on := -1
	ns, ok := onCPU(cpu, func() {
		var now uint32
		if _, _, e := unix.RawSyscall(unix.SYS_GETCPU, uintptr(unsafe.Pointer(&now)), 0, 0); e == 0 {
			on = int(now)
		}
		time.Sleep(30 * time.Millisecond)
	})
	if !ok || on != cpu || ns <= 0 || ns > 20e6 {
		t.Errorf("work that sleeps for 30 ms took %v ns on CPU %d, want next to nothing on CPU %d", ns, on, cpu)
	}
	after, err := allowed()
	if err != nil || after != before {
		t.Errorf("the thread may run on %v now and not on %v (%v)", after, before, err)
	}
	if _, _, ok := pieceOfWork(1023); ok && !before.IsSet(1023) {
		t.Error("a CPU that is not there did work")
	}
}
