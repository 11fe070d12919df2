package slowpath

import (
	"context"
	"encoding/binary"
	"net/netip"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"demarc/gateway/fib"
	"demarc/gateway/flow"
	"demarc/gateway/packet"
	"demarc/gateway/packet/build"
	"demarc/gateway/verdict"
)

var boot = time.Now()

func realNow() uint64 { return uint64(time.Since(boot)) + sec }

func newSlow(workers int, send func(uint16, uint8, []byte) bool, change func(*Config)) *Slow {
	c := Config{Neighbors: fib.NewNeighbors(256, 1), Send: send, Now: realNow, Workers: workers, FrameBytes: 2048, Seed: 3}
	if change != nil {
		change(&c)
	}
	return New(c)
}

// running starts Run and ends it with the test.
func running(t testing.TB, s *Slow) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	t.Cleanup(stop)
	return stop
}

func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); !ok(); runtime.Gosched() {
		if time.Now().After(end) {
			t.Fatalf("not within 10 s: %s", what)
		}
	}
}

// TestInputAgainstRun has workers put in what Run takes out, a neighbour that answers, and control calls, all at once. Meant for -race.
func TestInputAgainstRun(t *testing.T) {
	const workers, each = 3, 3000
	var s *Slow
	var forwarded, given atomic.Uint64
	answers := make(chan []byte, 4096)
	s = newSlow(workers, func(_ uint16, _ uint8, b []byte) bool {
		if b[12] == 0 {
			forwarded.Add(1)
			return true
		}
		p := packet.Packet{Buf: b, Len: len(b)}
		if packet.Parse(&p) != verdict.Pass {
			t.Error("sent a frame that does not parse")
		}
		if a, ok := build.ParseARP(&p); ok && a.Op == build.ARPOpRequest && a.SPA != a.TPA {
			select {
			case answers <- arpReply(hostMAC, netip.AddrFrom4(a.TPA).String(), netip.AddrFrom4(a.SPA).String()):
			default:
			}
		}
		return true
	}, func(c *Config) {
		c.Unreachable = func([]byte, uint16, int) { given.Add(1) }
		c.Dropped = func([]byte, uint16, verdict.Reason) { given.Add(1) }
	})
	s.SetInterfaces([]Interface{plainIface()})
	stop := running(t, s)

	var wg sync.WaitGroup
	var accepted atomic.Uint64
	for w := range workers {
		wg.Go(func() {
			frame := make([]byte, 60)
			for i := range each {
				if w == 0 { // the one that receives
					select {
					case b := <-answers:
						s.Input(w, Learn, 1, 0, 0, 0, nil, b)
					default:
					}
				}
				hop := flow.AddrFrom(netip.AddrFrom4([4]byte{192, 0, 2, byte(100 + i%100)}))
				if _, ok := s.m.cfg.Neighbors.Lookup(1, 4, &hop); ok {
					continue
				}
				for !s.Input(w, Resolve, 1, 0, 0, 4, &hop, frame) {
					runtime.Gosched()
				}
				accepted.Add(1)
			}
		})
	}
	for range 50 {
		s.SetInterfaces([]Interface{plainIface()})
		s.Learned(1, netip.MustParseAddr("192.0.2.9"), hostMAC)
		_ = s.Neighbors()
		_ = s.Stats()
	}
	wg.Wait()
	eventually(t, "all inputs taken", func() bool { return s.Stats().Resolves == accepted.Load() })
	stop()
	if got := forwarded.Load() + given.Load(); got != accepted.Load() {
		t.Errorf("%d frames went in, %d came out", accepted.Load(), got)
	}
	if forwarded.Load() == 0 {
		t.Error("nothing was resolved")
	}
}

// TestWake puts single frames in while Run sleeps: each is served at once, not when a timer ends.
func TestWake(t *testing.T) {
	var sent atomic.Uint64
	s := newSlow(1, func(_ uint16, _ uint8, b []byte) bool { sent.Add(1); return true }, nil)
	c := plainIface()
	c.Addrs, c.Proxy = nil, []netip.Prefix{netip.MustParsePrefix("192.0.0.0/15")} // too large to announce, so that only answers are sent
	s.SetInterfaces([]Interface{c})
	running(t, s)
	ask := arpAsk(hostMAC, "198.51.100.9", "192.0.2.1")
	eventually(t, "link-local announced", func() bool { s.mu.Lock(); defer s.mu.Unlock(); return s.m.stats.Announced > 0 })
	eventually(t, "switches told twice", func() bool { s.mu.Lock(); defer s.mu.Unlock(); return s.m.stats.Listens >= 2 })
	begin := time.Now()
	for i := range 200 {
		eventually(t, "asleep", s.sleeping.Load)
		before := s.Stats().Replies
		if !s.Input(0, Learn, 1, 0, 0, 0, nil, ask) {
			t.Fatal("no room")
		}
		eventually(t, "an answer", func() bool { return s.Stats().Replies == before+1 })
		if time.Since(begin) > 5*time.Second {
			t.Fatalf("%d answers took %v: Run is not woken", i, time.Since(begin))
		}
	}
}

func TestIdleSleeps(t *testing.T) {
	var steps atomic.Uint64
	s := newSlow(1, func(uint16, uint8, []byte) bool { return true }, func(c *Config) {
		now := c.Now
		c.Now = func() uint64 { steps.Add(1); return now() }
	})
	running(t, s)
	eventually(t, "asleep", s.sleeping.Load)
	before := steps.Load()
	time.Sleep(200 * time.Millisecond)
	if n := steps.Load() - before; n > 4 {
		t.Errorf("%d looks at the clock in 200 ms of nothing", n)
	}
}

func TestRing(t *testing.T) {
	r := newRing(16, 100)
	data := make([]byte, 100)
	n := 0
	for i := range 16 { // one interface may hold half as many as are free
		data[0] = byte(i)
		if r.push(1, 0, 0, 4, &flow.Addr{byte(i)}, data[:50+i]) {
			n++
		}
	}
	if n != 6 || r.full.Load() != 10 {
		t.Fatalf("one interface holds %d of 16, %d refused", n, r.full.Load())
	}
	if r.push(2, 0, 0, 4, nil, make([]byte, 101)) {
		t.Error("took a frame longer than a slot")
	}
	if !r.push(1, 7, 0, 4, nil, data[:1]) { // and another tenant's packets still get in there
		t.Error("no room for a second tenant's packet")
	}
	for i := range 6 {
		s, b := r.peek()
		if s == nil || b[0] != byte(i) || len(b) != 50+i || s.hop[0] != byte(i) || s.iface != 1 || s.family != 4 {
			t.Fatalf("%d: %+v %v", i, s, b)
		}
		r.pop()
	}
	if s, _ := r.peek(); s == nil || s.by != 7 {
		t.Fatal("the other tenant's is not there")
	}
	r.pop()
	if s, _ := r.peek(); s != nil || !r.empty() {
		t.Error("not empty")
	}
	for i := range uint16(40) { // fills with many interfaces, and no further
		r.push(i, 0, 0, 4, nil, data)
	}
	if got := r.tail.Load() - r.head.Load(); got != 16 {
		t.Errorf("holds %d of 16", got)
	}
	for i := range uint16(100) { // round and round
		r.pop()
		if !r.push(i%shares, 0, 0, 4, nil, data) {
			t.Fatal("no room after pop")
		}
	}
}

func TestInputRefuses(t *testing.T) {
	s := newSlow(2, func(uint16, uint8, []byte) bool { return true }, nil)
	hop := flow.Addr{192, 0, 2, 9}
	if s.Input(0, Resolve, 1, 0, 0, 4, &hop, make([]byte, 13)) || s.Input(0, Resolve, 1, 0, 0, 4, nil, make([]byte, 60)) || s.Input(0, Resolve, 1, 0, 0, 4, &hop, make([]byte, 2049)) ||
		s.Input(1, Learn, 1, 0, 0, 0, nil, make([]byte, learnBytes+1)) {
		t.Error("took what it cannot hold")
	}
	if n := s.Stats().RingFull; n != 4 {
		t.Errorf("%d counted, want 4", n)
	}
}

func TestInputDoesNotAllocate(t *testing.T) {
	s := newSlow(1, func(uint16, uint8, []byte) bool { return true }, nil)
	hop := flow.Addr{192, 0, 2, 9}
	data := make([]byte, 1000)
	var i uint16
	if n := testing.AllocsPerRun(1000, func() {
		i++
		s.Input(0, Resolve, i, 0, 0, 4, &hop, data)
		s.Input(0, Learn, i, 0, 0, 4, nil, data[:60])
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func TestNeighborsForTheOperator(t *testing.T) {
	var s *Slow
	s = newSlow(1, func(uint16, uint8, []byte) bool { return true }, nil)
	s.SetInterfaces([]Interface{plainIface()})
	now := realNow()
	for _, a := range []string{"192.0.2.10", "192.0.2.9"} {
		k := keyOf(1, netip.MustParseAddr(a))
		s.m.resolve(0, 1, 0, 0, 4, &k.addr, make([]byte, 60), now)
	}
	s.m.learn(1, arpReply(hostMAC, "192.0.2.10", "192.0.2.1"), now)
	hop := flow.Addr{192, 0, 2, 10}
	s.m.cfg.Neighbors.Lookup(1, 4, &hop)
	l := s.Neighbors()
	if len(l) != 2 || l[0].Addr.String() != "192.0.2.9" || l[0].State != "incomplete" || l[0].Waiting != 1 || l[0].MAC != [6]byte{} || l[0].InUse {
		t.Fatalf("%+v", l)
	}
	if e := l[1]; e.State != "reachable" || e.MAC != hostMAC || e.Interface != "wan" || !e.InUse || e.Waiting != 0 || e.AgeNs > uint64(10*sec) {
		t.Fatalf("%+v", e)
	}
	if !s.m.cfg.Neighbors.Used(1, 4, &hop, false) {
		t.Error("looking at an entry cleared its mark")
	}
}

func BenchmarkInput(b *testing.B) {
	s := newSlow(1, func(uint16, uint8, []byte) bool { return true }, nil)
	hop := flow.Addr{192, 0, 2, 9}
	data := make([]byte, 60)
	for b.Loop() {
		s.Input(0, Resolve, 1, 0, 0, 4, &hop, data)
		s.resolve[0].pop()
	}
}

func BenchmarkLearnReply(b *testing.B) {
	s := newSlow(1, func(uint16, uint8, []byte) bool { return true }, nil)
	s.m.setInterfaces([]Interface{plainIface()}, sec)
	f := arpAsk(hostMAC, "192.0.2.9", "192.0.2.1")
	now := uint64(sec)
	for b.Loop() {
		now += ms
		s.m.learn(1, f, now)
	}
}

func BenchmarkScan(b *testing.B) {
	s := newSlow(1, func(uint16, uint8, []byte) bool { return true }, nil)
	s.m.setInterfaces([]Interface{plainIface()}, sec)
	data := make([]byte, 60)
	hop := flow.AddrFrom(netip.MustParseAddr("2001:db8::"))
	now := uint64(sec)
	var i uint64
	for b.Loop() {
		i++
		now += ms
		binary.BigEndian.PutUint64(hop[8:], i<<16)
		s.m.resolve(0, 1, 0, 0, 6, &hop, data, now)
	}
}

// TestSwitchesAreMovedAtOnce: who begins to serve a group has sent the frames that move the switches when Announce returns, whether Run gets a CPU or not. It does not wait for the lock: Run sends them then.
func TestSwitchesAreMovedAtOnce(t *testing.T) {
	var sent atomic.Int64
	var serves atomic.Bool
	s := newSlow(1, func(_ uint16, group uint8, b []byte) bool {
		if group == 7 {
			sent.Add(1)
		}
		return true
	}, func(c *Config) { c.May = func(group uint8, _ uint64) bool { return group == 7 && serves.Load() } })
	c := plainIface()
	c.Proxy = nil
	c.Groups = []Group{{ID: 7, MAC4: virtual4, MAC6: virtual6, Addrs: []netip.Addr{netip.MustParseAddr("192.0.2.100"), netip.MustParseAddr("2001:db8::100")}}}
	s.SetInterfaces([]Interface{c})
	if s.Announce(7); sent.Load() != 0 {
		t.Errorf("%d frames of a group that is not served", sent.Load())
	}
	serves.Store(true)
	if s.Announce(7); sent.Load() != 2 { // one of each MAC
		t.Errorf("%d frames when Announce returns, want one of each MAC", sent.Load())
	}
	s.mu.Lock()
	s.Announce(7)
	if sent.Load() != 2 {
		t.Error("it sends without the lock")
	}
	s.mu.Unlock()
	running(t, s)
	eventually(t, "Run sends what Announce could not", func() bool { return sent.Load() >= 4 })
}
