package worker

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"log/slog"
	"math/rand/v2"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"demarc/configs"
	"demarc/gateway/conntrack"
	"demarc/gateway/fib"
	"demarc/gateway/flow"
	"demarc/gateway/nat"
	"demarc/gateway/packet/csum"
	"demarc/gateway/pipeline"
	"demarc/gateway/police"
	"demarc/gateway/snapshot"
	"demarc/gateway/verdict"
	"demarc/gateway/xsk"
)

const testNode = `
schema = 1
name = "test"
[tables]
sessions = 1024
mappings = 1024
tenants = 4
frames = 1024
[[port]]
device = "bb0"
[[port]]
device = "t0"
[[interface]]
name = "backbone"
port = "bb0"
addresses = ["203.0.113.1/24"]
[[interface]]
name = "alpha"
port = "t0"
addresses = ["198.18.10.1/24"]
`

const testPolicy = `
schema = 1
[backbone]
interfaces = ["backbone"]
[[tenant]]
name = "alpha"
interfaces = ["alpha"]
prefixes = ["198.18.10.0/24"]
[tenant.nat]
pool = ["192.0.2.16"]
[tenant.rates.out]
bits = "100k"
queue = "500ms"
`

var (
	portMAC = [6]byte{2, 0, 0, 0, 0, 0x20}
	peerMAC = [6]byte{2, 0, 0, 0, 0, 0x99}
)

// newWorkers makes workers without sockets: frames come in by hand-over, and what is sent ends as no_tx_socket. No root needed.
func newWorkers(t testing.TB, n int) []*Worker {
	return newWorkersIn(t, n, func(n int) []byte { return make([]byte, n) })
}

// newWorkersIn has the session tables in memory that table gives.
func newWorkersIn(t testing.TB, n int, table func(bytes int) []byte) []*Worker {
	t.Helper()
	node, err := configs.DecodeNode("node.toml", []byte(testNode))
	if err != nil {
		t.Fatal(err)
	}
	node.Workers.Count = n
	policy, err := configs.DecodePolicy("policy.toml", []byte(testPolicy))
	if err != nil {
		t.Fatal(err)
	}
	space := nat.NewSpace(16)
	v, err := snapshot.Compile(snapshot.Input{Policy: policy, Node: node, HomeSeed: 1,
		Links: []snapshot.Link{{MAC: peerMAC, MTU: 1500}, {MAC: portMAC, MTU: 1500}}})
	if err != nil {
		t.Fatal(err)
	}
	if err := v.Register(space); err != nil {
		t.Fatal(err)
	}
	v.Activate(space)
	neigh := fib.NewNeighbors(64, 1)
	far := flow.Addr{203, 0, 113, 11}
	if err := neigh.Set(v.Iface(0, 0), 4, &far, peerMAC, fib.Permanent, 0); err != nil {
		t.Fatal(err)
	}
	clock, err := NewClock()
	if err != nil {
		t.Fatal(err)
	}
	ws := make([]*Worker, n)
	for i := range ws {
		sh, err := pipeline.NewShard(pipeline.Config{Worker: i, SessionMem: table(conntrack.Bytes(1024) + 64), Sessions: 1024, NATMem: make([]byte, nat.Bytes(1024)+64), PermitMem: make([]byte, nat.PermitBytes(1024)+64),
			Mappings: 1024, Tenants: snapshot.MaxTenantID(node), ShaperMax: 256, Seed: uint64(i) + 1, Space: space, Neighbors: neigh})
		if err != nil {
			t.Fatal(err)
		}
		u, err := xsk.NewUMEM(512, 2048)
		if err != nil {
			t.Fatal(err)
		}
		ws[i], err = New(Config{ID: i, CPU: -1, Ports: 2, Areas: []*xsk.UMEM{u}, Shard: sh, Clock: clock, Spin: 1, Log: slog.New(slog.DiscardHandler)})
		if err != nil {
			t.Fatal(err)
		}
		ws[i].nap = time.Minute // whatever is forgotten stays forgotten
		ws[i].Publish(v)
		t.Cleanup(func() { _ = ws[i].Close(); _ = u.Close() })
	}
	Connect(ws)
	return ws
}

// start runs the workers; the function that it returns ends them and waits.
func start(t *testing.T, ws []*Worker) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	for _, w := range ws {
		wg.Go(func() {
			if err := w.Run(ctx); err != nil {
				t.Error(err)
			}
		})
	}
	stop = sync.OnceFunc(func() { cancel(); wg.Wait() })
	t.Cleanup(stop)
	return stop
}

// udp is a frame of tenant alpha to the far host, with n bytes of payload.
func udp(sport uint16, n int) []byte {
	f := make([]byte, 14+28+n)
	copy(f, portMAC[:])
	copy(f[6:], peerMAC[:])
	f[12] = 8
	ip := f[14:]
	ip[0], ip[8], ip[9] = 0x45, 64, 17
	binary.BigEndian.PutUint16(ip[2:], uint16(28+n))
	copy(ip[12:], []byte{198, 18, 10, 11, 203, 0, 113, 11})
	binary.BigEndian.PutUint16(ip[10:], csum.Checksum(csum.Sum(0, ip[:20])))
	binary.BigEndian.PutUint16(ip[20:], sport)
	binary.BigEndian.PutUint16(ip[22:], 53)
	binary.BigEndian.PutUint16(ip[24:], uint16(8+n))
	return f
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !ok(); runtime.Gosched() {
		if time.Now().After(end) {
			t.Fatalf("%s: not within 20 s", what)
		}
	}
}

// Who asks much at once is served one order a turn, and each turn begins with the packets that have come.
func TestOneOrderATurn(t *testing.T) {
	w := newWorkers(t, 1)[0]
	const asked = 5
	done := make(chan error, asked+1)
	for range asked {
		w.box <- job{fn: func(*pipeline.Shard) {}, done: done}
	}
	for i := range asked {
		w.turn(w.cfg.Clock.Now())
		if st := w.Stats(); len(done) != i+1 || st.Orders != uint64(i+1) {
			t.Fatalf("turn %d: %d orders were done, %d counted", i, len(done), st.Orders)
		}
	}
	w.box <- job{fn: func(*pipeline.Shard) { time.Sleep(20 * time.Millisecond) }, done: done}
	w.turn(w.cfg.Clock.Now())
	if d := w.Stats().LongestOrder; d < 20*time.Millisecond || d > 10*time.Second {
		t.Errorf("the longest order took %s, want 20 ms or somewhat more", d)
	}
}

// However long nothing was done, a turn does a step of upkeep, and all that is due within as many turns as that takes.
func TestUpkeepIsDoneInSteps(t *testing.T) {
	w := newWorkers(t, 1)[0]
	now := w.cfg.Clock.Now()
	tick := uint32(now >> 20)
	w.turn(now) // takes up the view, and does what was due from the start on
	for w.owed > 0 {
		w.turn(now)
	}
	const sessions = 1000
	for i := range uint16(sessions) {
		se := conntrack.Session{OrigSrc: flow.Addr{198, 18, 10, 11}, OrigDst: flow.Addr{203, 0, 113, 11}, XlatSrc: [4]byte{198, 18, 10, 11}, XlatDst: [4]byte{203, 0, 113, 11},
			OrigSPort: i, OrigDPort: 53, XlatSPort: i, XlatDPort: 53, Proto: flow.UDP, Tenant: w.shard.View().TenantByName("alpha").ID, Mapping: conntrack.NoMapping,
			ViewGen: w.shard.View().Gen, LastSeen: [2]uint32{tick - 1<<24, tick - 1<<24}}
		if _, r := w.shard.Sessions.Create(&se, tick-1<<24, 1); r != verdict.Pass {
			t.Fatal(r)
		}
	}
	now += uint64(time.Hour)
	left := sessions
	for turns := 1; left > 0; turns++ {
		if w.turn(now) == 0 && w.shard.Sessions.Len() > 0 {
			t.Fatal("a worker with upkeep to do says that there is nothing to do, and would sleep")
		}
		n := w.shard.Sessions.Len()
		if ended := left - n; ended > upkeepStep {
			t.Fatalf("turn %d: %d sessions were ended at once, want at most %d", turns, ended, upkeepStep)
		}
		if left = n; turns > 4 {
			t.Fatalf("%d sessions are left after %d turns", left, turns)
		}
	}
}

func TestRingKeepsOrderAndContent(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	const frames = 20000
	r := newRing(256)
	var wg sync.WaitGroup
	wg.Go(func() {
		rng := rand.New(rand.NewPCG(seed, 1))
		buf := make([]byte, 256)
		for i := uint32(0); i < frames; {
			n := 4 + int(i*7919%253)
			b := buf[:n]
			for j := range b {
				b[j] = byte(i) ^ byte(j)
			}
			binary.LittleEndian.PutUint32(b, i)
			if r.push(uint8(i%3), uint16(i), uint8(i%5), b) {
				i++
			} else {
				runtime.Gosched()
			}
			if rng.IntN(64) == 0 {
				runtime.Gosched()
			}
		}
	})
	rng := rand.New(rand.NewPCG(seed, 2))
	for i := uint32(0); i < frames; {
		m, b, ok := r.peek()
		if !ok {
			runtime.Gosched()
			continue
		}
		if n := 4 + int(i*7919%253); m.kind != uint8(i%3) || m.port != uint16(i) || len(b) != n || binary.LittleEndian.Uint32(b) != i {
			t.Fatalf("frame %d came as %+v, %d bytes, number %d", i, m, len(b), binary.LittleEndian.Uint32(b))
		}
		for j := 4; j < len(b); j++ {
			if b[j] != byte(i)^byte(j) {
				t.Fatalf("frame %d: byte %d is %#x", i, j, b[j])
			}
		}
		r.pop()
		i++
		if rng.IntN(64) == 0 {
			runtime.Gosched()
		}
	}
	wg.Wait()
	if !r.empty() {
		t.Fatal("more came out than went in")
	}
}

func TestRingRefusesWhatDoesNotFit(t *testing.T) {
	r := newRing(128)
	if r.push(handProcess, 0, 0, make([]byte, 129)) {
		t.Fatal("took a frame larger than a slot")
	}
	for i := range handSlots {
		if !r.push(handProcess, 0, 0, []byte{byte(i)}) {
			t.Fatalf("full after %d of %d", i, handSlots)
		}
	}
	if r.push(handProcess, 0, 0, []byte{1}) {
		t.Fatal("took a frame into a full ring")
	}
	r.pop()
	if !r.push(handProcess, 0, 0, []byte{9}) {
		t.Fatal("a freed slot is not used")
	}
}

func TestClockIsBootTimeAndNeverRunsBack(t *testing.T) {
	c, err := NewClock()
	if err != nil {
		t.Fatal(err)
	}
	last := uint64(0)
	for i := range 2000 {
		var a, b unix.Timespec
		if err := errors.Join(unix.ClockGettime(unix.CLOCK_BOOTTIME, &a)); err != nil {
			t.Fatal(err)
		}
		now := c.Now()
		if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &b); err != nil {
			t.Fatal(err)
		}
		const slack = 1000 // the runtime's clock and the kernel's round apart
		if now < last || int64(now) < a.Nano()-int64(5*time.Millisecond) || int64(now) > b.Nano()+slack {
			t.Fatalf("reading %d: %d after %d, kernel says %d to %d", i, now, last, a.Nano(), b.Nano())
		}
		last = now
		if i%100 == 0 {
			if err := c.Resync(); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// A worker that nobody calls sleeps a second, where its table is looked through in that time with little to be made good for, and shorter where something may come without a word.
func TestHowLongAWorkerSleeps(t *testing.T) {
	for _, c := range []struct {
		slots int
		want  time.Duration
	}{{1024, napLong}, {65536, napLong}, {1 << 18, napLong}, {1 << 19, napLong / 2}, {1_000_000, 262144 * time.Microsecond}, {1 << 22, napShort}, {0, napLong}} {
		if got := napOf(c.slots); got != c.want {
			t.Errorf("%d slots: %s, want %s", c.slots, got, c.want)
		}
	}
	w := newWorkers(t, 1)[0]
	w.nap = napOf(1024)
	if got := w.rest(); got != napLong {
		t.Errorf("with nothing in hand: %s", got)
	}
	w.second.Second = &Second{}
	if got := w.rest(); got != napLong {
		t.Errorf("with nothing handed down: %s", got)
	}
	w.count.cruising.Add(1)
	if got := w.rest(); got != feedEvery {
		t.Errorf("with a session handed down: %s", got)
	}
}

// What is shown of a worker that sleeps is how it went to sleep, however long that is.
func TestASleeperShowsHowItIs(t *testing.T) {
	ws := newWorkers(t, 1)
	w := ws[0]
	start(t, ws)
	for i := range 30 {
		if err := w.Do(t.Context(), func(sh *pipeline.Shard) {
			tick := uint32(w.cfg.Clock.Now() >> 20)
			se := conntrack.Session{OrigSrc: flow.Addr{198, 18, 10, 11}, OrigDst: flow.Addr{203, 0, 113, 11}, XlatSrc: [4]byte{198, 18, 10, 11}, XlatDst: [4]byte{203, 0, 113, 11},
				OrigSPort: uint16(i), OrigDPort: 53, XlatSPort: uint16(i), XlatDPort: 53, Proto: flow.UDP, Mapping: conntrack.NoMapping, Tenant: sh.View().TenantByName("alpha").ID,
				ViewGen: sh.View().Gen, LastSeen: [2]uint32{tick, tick}}
			if _, r := sh.Sessions.Create(&se, tick, 1<<20); r != verdict.Pass {
				t.Error(r)
			}
		}); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, "all sessions are shown", func() bool { return w.Stats().Sessions == 30 })
}

// Who waits for a table to grow is called once for each time that it asked, when that many are there, and not before.
func TestAWorkerTellsThatItsTableGrows(t *testing.T) {
	w := newWorkers(t, 1)[0]
	told := 0
	w.cfg.Grown = func() { told++ }
	tick := uint32(w.cfg.Clock.Now() >> 20)
	upTo := func(n, want int) {
		t.Helper()
		for i := w.shard.Sessions.Len(); i < n; i++ {
			se := conntrack.Session{OrigSrc: flow.Addr{198, 18, 10, 11}, OrigDst: flow.Addr{203, 0, 113, 11}, XlatSrc: [4]byte{198, 18, 10, 11}, XlatDst: [4]byte{203, 0, 113, 11},
				OrigSPort: uint16(i), OrigDPort: 53, XlatSPort: uint16(i), XlatDPort: 53, Proto: flow.UDP, Mapping: conntrack.NoMapping}
			if _, r := w.shard.Sessions.Create(&se, tick, 100); r != verdict.Pass {
				t.Fatal(r)
			}
		}
		if w.gauges(); told != want {
			t.Errorf("%d sessions: told %d times, want %d", n, told, want)
		}
	}
	upTo(50, 0) // nobody has asked
	w.TellGrown(100)
	upTo(100, 0)
	upTo(101, 1)
	upTo(200, 1) // and asks no more
	w.TellGrown(150)
	upTo(200, 2) // they were there already
	w.TellGrown(0)
	upTo(200, 3)
}

func TestAWorkerThatEndedSaysSo(t *testing.T) {
	ws := newWorkers(t, 1)
	stop := start(t, ws)
	if err := ws[0].Do(t.Context(), func(*pipeline.Shard) {}); err != nil {
		t.Fatal(err)
	}
	stop()
	ran := false
	if err := ws[0].Do(context.Background(), func(*pipeline.Shard) { ran = true }); !errors.Is(err, ErrStopped) || ran {
		t.Fatalf("ran %v, error %v", ran, err)
	}
	if err := ws[0].Account(); err != nil {
		t.Fatal(err)
	}
}

// Whoever posts while the worker ends gets an answer: either the function ran and there is no error, or it did not and there is ErrStopped.
func TestOrdersBesideTheEnd(t *testing.T) {
	for range 50 {
		ws := newWorkers(t, 1)
		stop := start(t, ws)
		var wg sync.WaitGroup
		for range 8 {
			wg.Go(func() {
				for {
					var ran atomic.Bool
					err := ws[0].Do(context.Background(), func(*pipeline.Shard) { ran.Store(true) })
					if (err == nil) != ran.Load() || err != nil && !errors.Is(err, ErrStopped) {
						t.Errorf("ran %v, error %v", ran.Load(), err)
						return
					}
					if err != nil {
						return
					}
				}
			})
		}
		stop()
		wg.Wait()
	}
}

// The worker sleeps for a minute when nothing wakes it, so one lost call is a test that fails.
func TestNoCallIsLost(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	ws := newWorkers(t, 2)
	start(t, ws[1:])
	rng := rand.New(rand.NewPCG(seed, 1))
	frame, sink, spun := make([]byte, 60), 0, 0 // to be dropped: nothing may be left that wakes the worker by time
	var got atomic.Int32
	post := func(ring bool, busy int) {
		if ring {
			ws[1].in[0].push(handProcess, 1, 0, frame) // worker 0 is not started: this goroutine is the ring's one writer
			ws[1].wake()
			return
		}
		ws[1].box <- job{fn: func(*pipeline.Shard) {
			for range busy {
				spun++
			}
			got.Add(1)
		}, done: make(chan error, 1)}
		ws[1].call()
	}
	for i := range 20000 {
		// The first call wakes it and keeps it a while, the second comes at any point until it has fallen asleep again.
		got.Store(0)
		post(false, 20000)
		for range rng.IntN(60000) {
			sink++
		}
		ring := i%2 == 0
		post(ring, 0)
		for was, n := time.Now(), 0; got.Load() < 1 || !ring && got.Load() < 2 || !ws[1].in[0].empty(); n++ {
			if n%1000 == 999 {
				runtime.Gosched()
			}
			if time.Since(was) > 10*time.Second {
				t.Fatalf("call %d was lost", i)
			}
		}
	}
	if ws[1].Stats().Wakeups < 100 {
		t.Fatalf("the worker slept %d times only: this proves nothing (%d)", ws[1].Stats().Wakeups, sink)
	}
}

func TestShapedFramesComeBackAtTheEnd(t *testing.T) {
	ws := newWorkers(t, 2)
	stop := start(t, ws)
	frame := udp(4000, 1000)
	if err := ws[0].Do(t.Context(), func(*pipeline.Shard) {
		for range 20 {
			ws[0].hand(1, handProcess, 1, 0, frame, nil)
		}
	}); err != nil {
		t.Fatal(err)
	}
	held := 0
	eventually(t, "shaped", func() bool {
		if err := ws[1].Do(t.Context(), func(sh *pipeline.Shard) {
			held = sh.Shaper.Held()
			if err := ws[1].Account(); err != nil {
				t.Error(err)
			}
		}); err != nil {
			t.Fatal(err)
		}
		return held > 0
	})
	stop()
	if err := ws[1].Account(); err != nil {
		t.Fatal(err)
	}
	u := ws[1].cfg.Areas[0]
	if u.FreeCount() != u.Frames() || u.Faults() != 0 {
		t.Fatalf("%d of %d frames are free, %d faults", u.FreeCount(), u.Frames(), u.Faults())
	}
	if n := ws[1].shard.Meter.Drops(0, verdict.Shutdown); n == 0 {
		t.Fatal("what waited in the shaper was dropped and not counted")
	}
}

// A worker that was not run for a while sends what waits before it looks at what has come: the line was idle meanwhile, nothing is to be dropped.
func TestAPauseFillsNoQueue(t *testing.T) {
	ws := newWorkers(t, 2)
	w := ws[1]
	frame := udp(4000, 1000) // 80 ms of the rate; a queue of 500 ms, a burst of 20 ms
	now := w.cfg.Clock.Now()
	for range 2 {
		ws[0].hand(1, handProcess, 1, 0, frame, nil)
	}
	w.turn(now)
	if held := w.shard.Shaper.Held(); held != 1 {
		t.Fatalf("%d packets wait, want 1: this proves nothing", held)
	}
	ws[0].hand(1, handProcess, 1, 0, frame, nil)
	w.turn(now + uint64(700*time.Millisecond))
	if n := w.dropsOf(verdict.TenantQueueFull); n != 0 {
		t.Errorf("%d packets dropped for a full queue", n)
	}
	if err := w.Account(); err != nil {
		t.Error(err)
	}
}

// What a policy lets wait no longer is dropped as it is taken up, its frames come back, and what comes then finds room.
func TestALoweredRateLeavesNoBacklog(t *testing.T) {
	ws := newWorkers(t, 2)
	w := ws[1]
	now := w.cfg.Clock.Now()
	for range 8 {
		ws[0].hand(1, handProcess, 1, 0, udp(4000, 500), nil)
	}
	w.turn(now)
	was := w.shard.Shaper.Held()
	next := *w.shard.View()
	next.Gen++
	next.Fresh = nil
	next.Tenants = slices.Clone(next.Tenants)
	for i, tenant := range next.Tenants {
		if tenant != nil {
			c := *tenant
			c.Dir[0].Bits, c.Dir[0].QueueNs, c.Dir[0].QueueBytes = police.BitRate(20_000, 20*time.Millisecond), 250e6, 600 // one packet waits, and 23 ms of the next
			next.Tenants[i] = &c
		}
	}
	w.Publish(&next)
	w.turn(now + 1e6)
	if held := w.shard.Shaper.Held(); was < 4 || held != 1 || w.dropsOf(verdict.TenantQueueFull) != uint64(was-1) {
		t.Errorf("%d packets waited, %d do behind the policy, %d were dropped", was, held, w.dropsOf(verdict.TenantQueueFull))
	}
	if err := w.Account(); err != nil {
		t.Error(err)
	}
}

func TestTransmitNeedsASocket(t *testing.T) {
	ws := newWorkers(t, 1)
	if ws[0].Transmit(0, 0, []byte("x")) || ws[0].Transmit(99, 0, []byte("x")) {
		t.Fatal("took a frame for a port without a socket")
	}
}

// What Transmit queues is the caller's bytes as they were, and a refused frame takes no memory along.
func TestTransmitCopiesAndReuses(t *testing.T) {
	ws := newWorkers(t, 1)
	w := ws[0]
	w.sends[0].Store(true) // as if there were one: nobody serves the queue here
	b := []byte("first")
	if !w.Transmit(0, 0, b) {
		t.Fatal("refused")
	}
	copy(b, "wrong")
	if m := <-w.tx; !bytes.Equal(*m.frame, []byte("first")) {
		t.Fatalf("queued %q", *m.frame)
	}
	for range cap(w.tx) {
		if !w.Transmit(0, 0, b) {
			t.Fatal("refused too early")
		}
	}
	if n := testing.AllocsPerRun(1000, func() {
		if w.Transmit(0, 0, b) {
			t.Fatal("took more than fits")
		}
	}); n > 0.5 { // the collector may empty the pool now and then
		t.Fatalf("%v allocations for a refused frame", n)
	}
}

// A machine that was suspended finds its sessions as old as they are, and no more tokens than a burst; a clock that steps back is not followed.
func TestClockJump(t *testing.T) {
	ws := newWorkers(t, 1)
	w := ws[0]
	c := w.cfg.Clock
	asleep := time.Duration(0)
	c.boot = func() (uint64, error) {
		now, err := xsk.BootTime()
		return now + uint64(asleep), err
	}
	stop := start(t, ws)
	ask := func(fn func(*pipeline.Shard)) {
		t.Helper()
		if err := w.Do(t.Context(), fn); err != nil {
			t.Fatal(err)
		}
	}
	bring := func(sport uint16) {
		t.Helper()
		f := udp(sport, 1000)
		ask(func(sh *pipeline.Shard) {
			u := w.cfg.Areas[0]
			addr, ok := u.Alloc()
			if !ok {
				t.Error("no frame")
				return
			}
			mem := u.Mem()[addr : addr+uint64(u.Chunk())]
			copy(mem[handHeadroom:], f)
			w.slots[0].Buf, w.slots[0].Off, w.slots[0].Len = mem, handHeadroom, len(f)
			w.slots[0].Port, w.slots[0].Looped, w.slots[0].Handed, w.slots[0].Area, w.slots[0].Addr = 1, false, true, 0, addr
			w.judge(w.slots[:1], c.Now())
		})
	}
	sessions := func() (n int) {
		ask(func(sh *pipeline.Shard) { n = sh.Sessions.Len() })
		return n
	}
	bring(5000)
	if n := sessions(); n != 1 {
		t.Fatalf("%d sessions, want 1", n)
	}
	before := c.Now()
	asleep = -time.Hour // somebody's clock stepped back
	if err := c.Resync(); err != nil {
		t.Fatal(err)
	}
	if now := c.Now(); now < before || now > before+uint64(time.Minute) {
		t.Fatalf("the clock went from %d to %d", before, now)
	}
	if n := sessions(); n != 1 {
		t.Fatalf("%d sessions after a step back, want 1", n)
	}
	asleep = time.Hour // longer than any UDP session lives
	if err := c.Resync(); err != nil {
		t.Fatal(err)
	}
	if now := c.Now(); now < before+uint64(asleep) {
		t.Fatalf("a suspend of %v moved the clock by %v", asleep, time.Duration(now-before))
	}
	eventually(t, "the session has ended with its time", func() bool { return sessions() == 0 })
	// The tenant sends at most 100 kbit/s: of 60 packets of 1028 bytes some two leave at once, the others wait for their time.
	asleep = 24 * time.Hour
	if err := c.Resync(); err != nil {
		t.Fatal(err)
	}
	sent := func() uint64 { return w.shard.Meter.Drops(0, verdict.NoTxSocket) } // as far as this world's packets get
	base := sent()
	for range 60 {
		bring(5001)
	}
	if n := sent() - base; n == 0 || n > 6 {
		t.Errorf("%d of 60 packets left at once after a day asleep", n)
	}
	stop()
	if err := w.Account(); err != nil {
		t.Error(err)
	}
}
