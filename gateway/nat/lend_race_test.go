package nat

import (
	"math/bits"
	"math/rand/v2"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"

	"demarc/gateway/flow"
	"demarc/gateway/verdict"
)

// A block that is given back has no port with anybody, however close somebody was to taking one.
func TestABlockIsShutBesideATaker(t *testing.T) {
	c := newCrowd(t, 2, TCP)
	stop := make(chan struct{})
	var wg sync.WaitGroup
	b := blockOf(c.ids[0], TCP, 640<<6)
	wg.Go(func() {
		p := place{block: b, bit: 7, lent: true}
		for {
			select {
			case <-stop:
				return
			default:
			}
			if c.all[0].take(p) {
				c.all[0].unlend(b, 1<<7)
			}
		}
	})
	for i := range blocksPerAddr { // the only one that there is to claim
		if n := blockNo(i); n != numberOf(b) {
			c.sp.state(c.ids[0]).barred[TCP][0][n/64].Or(1 << (n & 63))
		}
	}
	free := &c.sp.block(b).free
	for i := range 300_000 {
		got, ok := c.sp.claim(c.ids[0], 1, false, TCP, 0, 0)
		if !ok || got != b || free.Load() != 0 {
			t.Fatalf("round %d: claimed %d, %v, of which %x is free already", i, got, ok, free.Load())
		}
		c.sp.enter(b)
		for !c.sp.shut(b) {
		}
		c.sp.giveBack(b, 1)
	}
	close(stop)
	wg.Wait()
	c.over()
}

// onlyBlock reserves all ports but those of one block, whose number is given.
func (c *crowd) onlyBlock(n blockNo) blockID {
	var most [1024]uint64
	for i := range most {
		most[i] = ^uint64(0)
	}
	most[n] = 0
	c.sp.SetReserved(c.ids[0], c.class, &most)
	return blockOf(c.ids[0], c.class, n<<6)
}

// Who finds nothing looks again as long as something moves or has moved, 16 times in all, and once where nothing does.
func TestWhoAsksLooksAgain(t *testing.T) {
	for _, x := range []struct {
		name   string
		stands bool // the block is not on its way to its owner when the first look is taken; all of its ports are taken then
		after  int  // after that many looks the block comes to its owner, or its ports come back
		looks  int
		port   bool
	}{
		{"it came behind the first look", false, 1, 1, true},
		{"it came behind the second look", false, 2, 2, true},
		{"it came behind the last look but one", false, searches - 1, searches - 1, true},
		{"it came too late", false, searches, searches, false},
		{"it never came", false, 0, searches, false},
		{"a port came back behind the first look", true, 1, 1, true},
		{"nothing moves", true, 0, 1, false},
	} {
		t.Run(x.name, func(t *testing.T) {
			c := newCrowd(t, 2, TCP)
			only := c.onlyBlock(640)
			b, ok := c.sp.claim(c.ids[0], 1, false, TCP, 0, 0)
			if !ok || b != only {
				t.Fatalf("claimed %d, %v", b, ok)
			}
			if x.stands {
				c.sp.enter(b)
				for bit := range uint8(blockPorts) {
					if !c.all[1].take(place{block: b, bit: bit}) {
						t.Fatal("a port is not there")
					}
				}
			}
			looks := 0
			c.all[0].missed = func() {
				switch looks++; {
				case looks != x.after:
				case x.stands:
					c.all[1].put(b, 1<<20)
				default:
					c.sp.enter(b)
				}
			}
			if got := c.ask(0); got != x.port || looks != x.looks {
				t.Errorf("a port: %v, after %d looks without; want %v, %d", got, looks, x.port, x.looks)
			}
		})
	}
}

// While the only block with ports goes from nobody to a worker and back all the time, nobody is refused before his last look. How many are then is the
// scheduler's choice: the block may be on its way at each of his looks, and is where its mover has no processor.
func TestWhoAsksLooksAgainWhileABlockMoves(t *testing.T) {
	c := newCrowd(t, 2, TCP)
	c.onlyBlock(640)
	var over atomic.Bool
	var wg sync.WaitGroup
	var moved int
	wg.Go(func() {
		for ; !over.Load(); moved++ {
			if b, ok := c.sp.claim(c.ids[0], 1, false, TCP, 0, 0); ok {
				c.sp.enter(b)
				for !c.sp.shut(b) && !over.Load() {
				}
				c.sp.giveBack(b, 1)
			}
		}
	})
	c.looksToTheLast(100_000)
	over.Store(true)
	wg.Wait()
	t.Logf("it moved %d times", moved)
}

// A block that another worker holds for dry, and then sees that it is not, is not missed meanwhile.
func TestWhoAsksLooksAgainWhileABlockIsHeldForDry(t *testing.T) {
	c := newCrowd(t, 3, TCP)
	only := c.onlyBlock(640)
	b, ok := c.sp.claim(c.ids[0], 1, false, TCP, 0, 0)
	if !ok || b != only {
		t.Fatalf("claimed %d, %v", b, ok)
	}
	c.sp.enter(b)
	var over atomic.Bool
	var wg sync.WaitGroup
	wg.Go(func() { // it saw no port, of neither parity, and they came before it noted that
		for !over.Load() {
			for parity := range 2 {
				if c.sp.state(c.ids[0]).dry(TCP, numberOf(b), parity) {
					t.Error("a block with ports is dry")
				}
			}
		}
	})
	c.looksToTheLast(100_000)
	over.Store(true)
	wg.Wait()
	if m := c.sp.moved(b); uint32(m) != 0 {
		t.Errorf("%d are on their way in the end", uint32(m))
	}
}

// looksToTheLast has a host of worker 0 ask so often while a port is free all the time: no look of his, except the last, may be thought final.
func (c *crowd) looksToTheLast(rounds int) {
	s := c.all[0]
	var looks, most, refused, early int
	s.missed = func() { looks++ }
	r := &Request{Tenant: 1, Class: c.class, Inside: [4]byte{198, 18, 0, 1}, Port: 3000, Pool: c.ids}
	for i := range uint32(rounds) {
		looks = 0
		switch id, why := s.Map(r, c.rng.Uint64()); {
		case why == verdict.Pass:
			s.Drop(id)
			s.Sweep(i, 8)
			most = max(most, looks)
		case looks < searches:
			early++
		default:
			refused++
			runtime.Gosched()
		}
	}
	c.t.Logf("%d of %d refused after %d looks, the others had at most %d in vain", refused, rounds, searches, most)
	if early > 0 {
		c.t.Errorf("%d of %d refused after fewer than %d looks", early, rounds, searches)
	}
}

// Workers take, lend, hold and give back ports of one address at once, and nearly all of them: no port has two hosts, packets are steered to who has
// it, nobody is refused before his last look, nor for good, while a port is free, and none is lost in the end. Run with -race too.
func TestWorkersLendBesideEachOther(t *testing.T) {
	const rounds = 30_000
	for name, x := range map[string]struct {
		workers int
		hold    uint32
		blocks  int
		ports   uint64 // of each, the others are reserved
	}{"mixed": {4, 0, 12, ^uint64(0)}, "held": {4, 1 << holdShift, 12, ^uint64(0)}, "one port a worker": {4, 0, 2, 3 << 20}, "one block": {2, 0, 1, 3 << 20}} {
		workers := x.workers
		each := x.blocks * bits.OnesCount64(x.ports) / workers // all together there is a port for each
		hold, blocks := x.hold, x.blocks
		t.Run(name, func(t *testing.T) {
			seed := rand.Uint64()
			t.Logf("seed %d", seed)
			sp := NewSpace(1)
			ids := pool(t, sp, 1)
			var most [1024]uint64
			for i := range most {
				most[i] = ^uint64(0)
			}
			for i := range blocks {
				most[100+i] = ^x.ports
			}
			sp.SetReserved(ids[0], UDP, &most)
			var all []*Shard
			for w := range workers {
				all = append(all, newShard(t, 4096, w, sp))
			}
			var has [65536]atomic.Int32 // worker + 1
			var refused, again, lent atomic.Int64
			var wg sync.WaitGroup
			for w, s := range all {
				rng := rand.New(rand.NewPCG(seed, uint64(w)))
				wg.Go(func() {
					var live []uint32
					now, looks := uint32(0), 0
					s.missed = func() { looks++ }
					take := func(i int) bool {
						r := Request{Tenant: flow.TenantID(1 + i%2), Class: UDP, Inside: [4]byte{198, 18, byte(w), byte(i)}, Port: uint16(1024 + rng.IntN(60000)), Mapping: AddressAndPortDependent, Pool: ids, Hold: hold}
						looks = 0
						id, why := s.Map(&r, rng.Uint64())
						if why != verdict.Pass {
							if why != verdict.NATNoPort {
								t.Errorf("worker %d: %v", w, why)
							}
							if hold == 0 && looks < searches {
								t.Errorf("worker %d is refused after %d looks", w, looks)
							}
							return false
						}
						s.Ref(id)
						live = append(live, id)
						m := s.Mapping(id)
						_, p := m.Public()
						if !has[p].CompareAndSwap(0, int32(w+1)) {
							t.Errorf("port %d is worker %d's and worker %d's", p, has[p].Load()-1, w)
						}
						if o, ok := sp.Owner(ids[0], UDP, p); !ok || o != w {
							t.Errorf("port %d of worker %d is steered to %d, %v", p, w, o, ok)
						}
						if m.flags&mapLent != 0 {
							lent.Add(1)
						}
						return true
					}
					drop := func() {
						i := rng.IntN(len(live))
						id := live[i]
						live[i] = live[len(live)-1]
						live = live[:len(live)-1]
						_, p := s.Mapping(id).Public()
						if o, ok := sp.Owner(ids[0], UDP, p); !ok || o != w {
							t.Errorf("port %d of worker %d was steered to %d, %v", p, w, o, ok)
						}
						has[p].Store(0)
						s.Unref(id, now)
					}
					for i := 0; i < rounds && !t.Failed(); i++ {
						if len(live) < each && (len(live) == 0 || rng.IntN(9) < 5 || i/4000%2 == 0 && rng.IntN(2) == 0) {
							if !take(i) {
								refused.Add(1)
								// Without a hold there was a port, which somebody was moving; with one it will be there later.
								for n := 0; hold == 0 && !take(i); n++ {
									if again.Add(1); n > 1_000_000 {
										t.Errorf("worker %d is refused for ever", w)
										break
									}
									runtime.Gosched()
								}
							}
						} else if len(live) > 0 {
							drop()
						}
						if i/4000%2 == 1 && rng.IntN(3000) == 0 { // so that blocks change hands
							for len(live) > 0 {
								drop()
							}
						}
						if i%61 == 0 && len(live) > 0 {
							runtime.Gosched() // so that they are beside each other on any number of processors
						}
						if i%32 == 0 || each == 1 {
							now += 100
							s.Sweep(now, 8)
						}
					}
					for len(live) > 0 {
						drop()
					}
				})
			}
			wg.Wait()
			if t.Failed() {
				return
			}
			check(t, all...)
			for i := range uint32(4) {
				for _, s := range all {
					s.Sweep(1<<30+i<<16, 1<<12)
				}
			}
			check(t, all...)
			if n := sp.FreeBlocks(ids[0], UDP); n != blocksPerAddr {
				t.Errorf("in the end %d of %d blocks are free", n, blocksPerAddr)
			}
			t.Logf("%d lent; %d refusals, %d more when asked again at once", lent.Load(), refused.Load(), again.Load())
			if lent.Load() == 0 {
				t.Error("too little was lent")
			}
		})
	}
}
