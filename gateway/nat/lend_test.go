package nat

import (
	"fmt"
	"math/bits"
	"math/rand/v2"
	"testing"

	"demarc/gateway/undo"
	"demarc/gateway/verdict"
)

const allPorts = 64512

// crowd is the shards of several workers on one address, and what they have.
type crowd struct {
	t     *testing.T
	sp    *Space
	ids   []AddrID
	all   []*Shard
	rng   *rand.Rand
	class Class
	hold  uint32
	next  []int
	live  [][]uint32
	now   uint32
}

func newCrowd(t *testing.T, workers int, class Class) *crowd {
	c := &crowd{t: t, sp: NewSpace(1), rng: seeded(t), class: class, next: make([]int, workers), live: make([][]uint32, workers)}
	c.ids = pool(t, c.sp, 1)
	for w := range workers {
		c.all = append(c.all, newShard(t, 1<<17, w, c.sp))
	}
	return c
}

// ask has a host of worker w want one port more.
func (c *crowd) ask(w int) bool {
	c.t.Helper()
	n := c.next[w]
	c.next[w]++
	r := &Request{Tenant: 1, Class: c.class, Inside: [4]byte{198, 18 + byte(w), byte(n / 60000 >> 8), byte(n / 60000)}, Port: uint16(1024 + n%60000), Pool: c.ids, Hold: c.hold}
	id, why := c.all[w].Map(r, c.rng.Uint64())
	if why == verdict.NATNoPort {
		return false
	}
	if why != verdict.Pass {
		c.t.Fatalf("worker %d: %v", w, why)
	}
	c.all[w].Ref(id)
	c.live[w] = append(c.live[w], id)
	if _, p := c.all[w].Mapping(id).Public(); p < 1024 {
		c.t.Fatalf("worker %d got port %d", w, p)
	}
	return true
}

// end ends a mapping of worker w, any.
func (c *crowd) end(w int) {
	l := c.live[w]
	i := c.rng.IntN(len(l))
	c.all[w].Unref(l[i], c.now)
	l[i] = l[len(l)-1]
	c.live[w] = l[:len(l)-1]
}

// missing is how many ports neither serve a mapping nor rest after one.
func (c *crowd) missing() int {
	u := []Use{{}}
	n := 0
	for w, s := range c.all {
		s.Use(u)
		n += len(c.live[w])
	}
	if int(u[0].InUse) != n {
		c.t.Fatalf("%d mappings, %d ports in use", n, u[0].InUse)
	}
	return allPorts - n - int(u[0].Held)
}

func (c *crowd) sweep(ticks uint32) {
	c.now += ticks
	for _, s := range c.all {
		s.Sweep(c.now, 1<<12)
	}
}

// over ends all mappings: every port and every block must come back.
func (c *crowd) over() {
	c.t.Helper()
	for w := range c.all {
		for len(c.live[w]) > 0 {
			c.end(w)
		}
	}
	for range 3 {
		c.sweep(1 << 14)
	}
	check(c.t, c.all...)
	if n := c.sp.FreeBlocks(c.ids[0], c.class); n != blocksPerAddr || c.missing() != allPorts {
		c.t.Fatalf("in the end %d of %d blocks are free, %d ports rest", n, blocksPerAddr, allPorts-c.missing())
	}
}

// "No port" is true of the whole address, whatever mixture of mappings the workers have on it: when the first one is refused, each of its 64,512 ports
// serves a mapping or rests after one. So it is when the others have few mappings each, spread over many blocks, and so it stays as mappings come and go.
func TestEveryPortBesideOtherWorkers(t *testing.T) {
	const few = 40 // mappings that each of the others has at first
	for _, workers := range []int{1, 2, 3, 8} {
		for class, name := range map[Class]string{TCP: "tcp", UDP: "udp", ICMP: "icmp"} {
			t.Run(fmt.Sprintf("%d workers %s", workers, name), func(t *testing.T) {
				c := newCrowd(t, workers, class)
				c.hold = 1 << holdShift
				for w := 1; w < workers; w++ {
					for range few {
						c.ask(w)
					}
				}
				for c.ask(0) {
				}
				first, worst, refusals := c.missing(), 0, 0
				check(t, c.all...)
				for range 60 {
					for range 300 {
						if w := c.rng.IntN(workers); len(c.live[w]) > 0 {
							c.end(w)
						}
					}
					c.sweep(uint32(c.rng.IntN(600)))
					for range 20 {
						w := c.rng.IntN(workers)
						for range 100 {
							if !c.ask(w) {
								refusals++
								worst = max(worst, c.missing())
								break
							}
						}
					}
				}
				check(t, c.all...)
				t.Logf("figure: %d workers, %d mappings each but one: %d of %d ports missing at the first refusal, at most %d at each of %d later ones", workers, few, first, allPorts, worst, refusals)
				if first != 0 || worst != 0 || refusals < 100 {
					t.Error("want none, of at least 100")
				}
				c.over()
			})
		}
	}
}

// Workers that ask in any proportion use every port before one of them is refused.
func TestEveryPortBetweenWorkers(t *testing.T) {
	for _, workers := range []int{1, 2, 3, 8} {
		for _, few := range []int{0, 1, 5000} { // mappings of all workers but the first, before that one asks; 0 = all ask alike
			c := newCrowd(t, workers, UDP)
			for w := 1; w < workers; w++ {
				for range few {
					c.ask(w)
				}
			}
			for w := 0; c.ask(w); {
				if few == 0 {
					w = (w + 1) % workers
				}
			}
			if n := c.missing(); n != 0 {
				t.Errorf("%d workers, %d mappings of each other: the first was refused while %d ports were free", workers, few, n)
			}
			for w := range workers {
				if c.ask(w) {
					t.Errorf("worker %d got a port when there was none", w)
				}
			}
			check(t, c.all...)
		}
	}
}

// taken has worker 1 hold one port in each of some blocks, of which the last is given back to it after worker 0 has all others; then what is free is
// free in blocks of worker 1 only.
func taken(t *testing.T, class Class) *crowd {
	t.Helper()
	c := newCrowd(t, 2, class)
	for range 20 {
		c.ask(1)
	}
	for c.ask(0) {
	}
	if n := c.missing(); n != 0 {
		t.Fatalf("%d missing", n)
	}
	return c
}

// lentTo is the mappings of worker w in blocks of others.
func (c *crowd) lentTo(w int) (ids []uint32) {
	c.all[w].Each(0, 1<<30, func(id uint32, m *Mapping) bool {
		if m.flags&mapLent != 0 {
			ids = append(ids, id)
		}
		return true
	})
	return ids
}

// A lent port is steered to who has it, and to the owner of its block before and after; it rests like any other, and the block is kept until it is over.
func TestALentPortIsSteeredAndRests(t *testing.T) {
	c := taken(t, TCP)
	lent := c.lentTo(0)
	if len(lent) < 100 {
		t.Fatalf("%d ports are lent", len(lent))
	}
	owner := func(p uint16) int {
		w, ok := c.sp.Owner(c.ids[0], TCP, p)
		if !ok {
			return -1
		}
		return w
	}
	_, p := c.all[0].Mapping(lent[0]).Public()
	if w := owner(p); w != 0 {
		t.Fatalf("a packet to lent port %d goes to worker %d", p, w)
	}
	for bit := range uint16(64) { // who has the others of the block, gets what is for them
		q := p&^63 | bit
		if _, ok := c.all[owner(q)].Lookup(c.ids[0], TCP, q); !ok {
			t.Fatalf("a packet to port %d goes to worker %d, which does not know it", q, owner(q))
		}
	}
	for len(c.live[1]) > 0 { // the owner of the block has nothing in it any more
		c.end(1)
	}
	c.sweep(1)
	if w := owner(p); w != 0 || c.all[1].Blocks() == 0 {
		t.Fatalf("port %d belongs to %d; worker 1 has %d blocks", p, w, c.all[1].Blocks())
	}
	check(t, c.all...)
	// The mapping ends: its port rests for its hold time, with the owner of the block.
	const long = 5 << holdShift
	c.all[0].maps[lent[0]].hold = long >> holdShift
	c.all[0].Unref(lent[0], c.now)
	for i, id := range c.live[0] {
		if id == lent[0] {
			c.live[0] = append(c.live[0][:i], c.live[0][i+1:]...)
			break
		}
	}
	if w := owner(p); w != 1 {
		t.Fatalf("a port that rests belongs to worker %d", w)
	}
	for ended := c.now; ; c.sweep(64) {
		free := c.sp.usable(blockOf(c.ids[0], TCP, p))>>(p&63)&1 != 0
		if early := c.now-ended < long; free && early || !free && c.now-ended > long*4/3+256 {
			t.Fatalf("after %d ticks of %d: free %v", c.now-ended, long, free)
		}
		if free {
			break
		}
	}
	c.over()
	if owner(p) != -1 {
		t.Fatal("the block is not given back")
	}
}

// The second port of an RTP pair is the first one's neighbour in a lent block too.
func TestAPairIsLentTogether(t *testing.T) {
	c := newCrowd(t, 2, UDP)
	var most [1024]uint64 // two blocks are left, and no low ports
	for i := range most {
		most[i] = ^uint64(0)
	}
	most[500], most[501] = 0, 0
	c.sp.SetReserved(c.ids[0], UDP, &most)
	for range 3 { // the second is the neighbour of the first
		c.ask(1)
	}
	r := Request{Tenant: 1, Class: UDP, Inside: [4]byte{198, 18, 0, 1}, Port: 16384, Pool: c.ids}
	pairs := 0
	for range 20 {
		var got [2]uint16
		for i := range got {
			id, why := c.all[0].Map(&r, c.rng.Uint64())
			if why != verdict.Pass {
				t.Fatal(why)
			}
			c.all[0].Ref(id)
			c.live[0] = append(c.live[0], id)
			if c.all[0].Mapping(id).flags&mapLent == 0 {
				t.Fatal("it is not lent")
			}
			_, got[i] = c.all[0].Mapping(id).Public()
			r.Port++
		}
		if got[0]&1 != 0 {
			t.Fatalf("parity of an even port lost in %d", got[0])
		}
		if got[0]+1 == got[1] {
			pairs++
		}
	}
	if pairs < 18 { // the neighbours of some are in use
		t.Errorf("%d of 20 pairs", pairs)
	}
	check(t, c.all...)
	c.over()
}

// Where blocks are per host a port of another's block is nobody's but that host's: refused is who gets no block.
func TestBlocksPerHostLendNothing(t *testing.T) {
	c := newCrowd(t, 2, TCP)
	r := Request{Tenant: 1, Class: TCP, Port: 2000, Pool: c.ids, PerHost: true}
	for i := range blocksPerAddr - lowBlocks {
		r.Inside = [4]byte{198, 40, byte(i >> 8), byte(i)}
		id, why := c.all[i%2].Map(&r, c.rng.Uint64())
		if why != verdict.Pass {
			t.Fatalf("host %d: %v", i, why)
		}
		c.all[i%2].Ref(id)
		c.live[i%2] = append(c.live[i%2], id)
	}
	for w, s := range c.all {
		r.Inside = [4]byte{198, 19, 0, byte(w)}
		if _, why := s.Map(&r, c.rng.Uint64()); why != verdict.NATNoPort {
			t.Fatalf("worker %d: %v", w, why)
		}
	}
	// The tenant does without from now on: what its hosts' blocks have free is for all.
	for n := blocksPerAddr - lowBlocks; c.ask(n % 2); n++ {
	}
	if n := c.missing(); n != 0 {
		t.Errorf("%d ports missing", n)
	}
	check(t, c.all...)
	c.over()
}

// A block for a host is whole: the neighbour of a port that was lent under another policy is not lent any more.
func TestANeighbourIsNotLentWhereBlocksArePerHost(t *testing.T) {
	c := newCrowd(t, 2, UDP)
	var most [1024]uint64
	// The first worker is to have the whole block, and the second the one of two ports. With both to choose from, a search that began at block 601 (one in 64)
	// took that one, and then nothing is lent.
	for i := range most {
		most[i] = ^uint64(0)
	}
	r := Request{Tenant: 1, Class: UDP, Port: 4000, Pool: c.ids}
	for i, s := range []*Shard{c.all[0], c.all[1], c.all[1], c.all[1]} {
		rnd := c.rng.Uint64()
		switch i {
		case 0:
			most[600], rnd = 0, (601%64)<<40|(601/64)<<32
			c.sp.SetReserved(c.ids[0], UDP, &most)
		case 1:
			most[601] = ^uint64(3)
			c.sp.SetReserved(c.ids[0], UDP, &most)
		}
		r.Inside = [4]byte{198, 19, 0, byte(i)}
		id, why := s.Map(&r, rnd)
		if why != verdict.Pass {
			t.Fatal(why)
		}
		s.Ref(id)
		c.live[s.worker] = append(c.live[s.worker], id)
		if lent := s.Mapping(id).flags&mapLent != 0; lent != (i > 0 && len(c.lentTo(1)) > 0) {
			t.Fatalf("host %d: lent %v", i, lent)
		}
		r.Port += 2
	}
	if m := c.all[1].Mapping(c.live[1][2]); m.flags&mapLent == 0 {
		t.Fatal("the last one is not lent")
	}
	r.Port, r.PerHost = r.Port-1, true
	if _, why := c.all[1].Map(&r, 0); why != verdict.NATNoPort {
		t.Fatalf("the neighbour of a lent port: %v", why)
	}
	r.PerHost = false
	if id, why := c.all[1].Map(&r, 0); why != verdict.Pass || c.all[1].Mapping(id).public&1 != 1 {
		t.Fatal(why)
	} else {
		c.all[1].Drop(id)
	}
	check(t, c.all...)
	c.over()
}

// Ports that a policy reserves and gives back again are lent as well, and none of the others while it has them.
func TestReservedPortsAreNotLent(t *testing.T) {
	c := newCrowd(t, 2, TCP)
	for range 20 {
		c.ask(1)
	}
	var some [1024]uint64
	reserved := 0
	for i := 16; i < 1024; i++ {
		some[i] = c.rng.Uint64() & c.rng.Uint64() & c.rng.Uint64()
		reserved += bits.OnesCount64(some[i])
	}
	c.sp.SetReserved(c.ids[0], TCP, &some)
	was := map[uint16]bool{} // those of worker 1 that were mapped before
	c.all[1].Each(0, 1<<30, func(_ uint32, m *Mapping) bool {
		if _, p := m.Public(); some[p>>6]>>(p&63)&1 != 0 {
			was[p] = true
		}
		return true
	})
	for c.ask(0) {
	}
	for _, s := range c.all {
		s.Each(0, 1<<30, func(_ uint32, m *Mapping) bool {
			if _, p := m.Public(); some[p>>6]>>(p&63)&1 != 0 && !was[p] {
				t.Fatalf("port %d is reserved", p)
			}
			return true
		})
	}
	if n := c.missing(); n != reserved-len(was) {
		t.Fatalf("%d ports missing, %d reserved, of which %d were in use", n, reserved, len(was))
	}
	c.sp.SetReserved(c.ids[0], TCP, &[1024]uint64{})
	for c.ask(0) {
	}
	if n := c.missing(); n != 0 {
		t.Fatalf("%d ports missing, none reserved", n)
	}
	check(t, c.all...)
	c.over()
}

// Of a pool's addresses one that has a block left is taken before a port is lent, unless the host has another one already.
func TestLendingKeepsAHostAtItsAddress(t *testing.T) {
	for _, pooling := range []Pooling{Paired, PairedSoft, Arbitrary} {
		sp := NewSpace(2)
		ids := pool(t, sp, 2)
		rng := seeded(t)
		other, s := newShard(t, 1<<17, 1, sp), newShard(t, 1<<17, 0, sp)
		for range 20 {
			id, _ := other.Map(&Request{Tenant: 1, Class: TCP, Inside: [4]byte{198, 19, 0, 1}, Port: uint16(1024 + rng.IntN(60000)), Pool: ids[:1]}, rng.Uint64())
			other.Ref(id)
		}
		mine := &Request{Tenant: 1, Class: TCP, Pooling: pooling, Inside: [4]byte{198, 18, 0, 7}, Port: 999, Pool: ids, First: 0}
		id, _ := s.Map(mine, 0)
		s.Ref(id)
		for n := 0; sp.FreeBlocks(ids[0], TCP) > lowBlocks-2; n++ {
			id, why := s.Map(&Request{Tenant: 1, Class: TCP, Inside: [4]byte{198, 18, 0, 1}, Port: uint16(1024 + n), Pool: ids[:1]}, rng.Uint64())
			if why != verdict.Pass {
				break // no block and no port in its own
			}
			s.Ref(id)
			if s.Mapping(id).flags&mapLent != 0 {
				s.Unref(id, 0)
				break
			}
		}
		for i := range 10 {
			mine.Port = uint16(2000 + i)
			id, why := s.Map(mine, rng.Uint64())
			if why != verdict.Pass {
				t.Fatal(why)
			}
			s.Ref(id)
			m := s.Mapping(id)
			if stay := pooling != Arbitrary; stay && (m.addr != ids[0] || m.flags&mapLent == 0) || !stay && m.addr != ids[1] && m.flags&mapLent != 0 {
				t.Fatalf("pooling %d: address %d, lent %v", pooling, m.addr, m.flags&mapLent != 0)
			}
		}
		stranger := &Request{Tenant: 1, Class: TCP, Pooling: pooling, Inside: [4]byte{198, 18, 0, 8}, Port: 2000, Pool: ids, First: 0}
		if id, _ := s.Map(stranger, 0); s.Mapping(id).addr != ids[1] {
			t.Fatalf("pooling %d: a host without mappings begins with a lent port", pooling)
		}
		check(t, s, other)
	}
}

// Who takes a block's last port of a parity and says so may be late: one that has come back since must be found.
func TestABlockIsDryOnlyAfterASecondLook(t *testing.T) {
	c := newCrowd(t, 1, TCP)
	c.ask(0)
	b := c.all[0].hand
	st, n := c.sp.state(addrOf(b)), numberOf(b)
	some := func(parity int) bool { return st.some[TCP][parity][n/64].Load()>>(n&63)&1 != 0 }
	moved := c.sp.moved(b)
	if st.dry(TCP, n, 0) || !some(0) {
		t.Fatal("dry with even ports free")
	}
	if now := c.sp.moved(b); now == moved || uint32(now) != 0 {
		t.Fatalf("ports were hidden, and nobody knows: moves %x, then %x", moved, now)
	}
	st.blocks[TCP][n].free.And(^uint64(evenPorts))
	moved = c.sp.moved(b)
	if !st.dry(TCP, n, 0) || some(0) || !some(1) {
		t.Fatal("not dry without even ports")
	}
	if now := c.sp.moved(b); now != moved {
		t.Fatalf("nothing came: moves %x, then %x", moved, now)
	}
	if c.sp.put(b, 1<<6); !some(0) || c.sp.moved(b) == moved {
		t.Fatal("a port came back, and nobody knows")
	}
}

// Whoever has searched an address in vain must see that ports moved past him: each way in which some come where there were none is counted.
func TestEveryMoveIsCounted(t *testing.T) {
	c := newCrowd(t, 2, TCP)
	of := blockOf(c.ids[0], TCP, 0)
	was := c.sp.moved(of)
	moves := func(what string, do func()) {
		t.Helper()
		do()
		now := c.sp.moved(of)
		if uint32(now) != 0 || now == was {
			t.Errorf("%s: moves %x, then %x", what, was, now)
		}
		was = now
	}
	for w := range 2 {
		moves("a block is opened", func() { c.ask(w) })
	}
	for c.ask(0) {
	}
	was = c.sp.moved(of)
	moves("the only free port", func() { c.end(0) })
	moves("ports that are reserved no more", func() { c.sp.SetReserved(c.ids[0], TCP, &[1024]uint64{}) })
	for len(c.live[0]) > 0 {
		c.end(0)
	}
	was = c.sp.moved(of)
	moves("blocks are given back", func() { c.sweep(1) })
	c.over()
}

// The block that a trial opens is seen by nobody, and free again afterwards.
func TestATrialsBlockIsItsOwn(t *testing.T) {
	c := newCrowd(t, 2, TCP)
	var most [1024]uint64
	for i := range most {
		most[i] = ^uint64(0)
	}
	most[700] = 0
	c.sp.SetReserved(c.ids[0], TCP, &most)
	for range 3 {
		l := &undo.Log{}
		tw := c.all[0].Twin(l)
		r := &Request{Tenant: 1, Class: TCP, Inside: [4]byte{198, 40, 0, 1}, Port: 3000, Pool: c.ids}
		for range blockPorts {
			id, why := tw.Map(r, c.rng.Uint64())
			if why != verdict.Pass {
				t.Fatal(why)
			}
			tw.Ref(id)
			r.Port++
			if c.ask(1) {
				t.Fatal("another worker has a port of a block that there is not")
			}
		}
		if _, why := tw.Map(r, 1); why != verdict.NATNoPort {
			t.Fatal(why)
		}
		l.Undo()
		check(t, c.all...)
	}
	for range blockPorts {
		if !c.ask(1) {
			t.Fatal("the block is lost")
		}
	}
	check(t, c.all...)
	c.over()
}

// What a trial takes of another worker's block nobody else gets meanwhile, and all of it is back afterwards, also what others have taken beside it.
func TestATrialOfALentPort(t *testing.T) {
	c := taken(t, TCP)
	for range 3 {
		c.end(0)
	}
	c.sweep(1)
	for i := range 200 {
		l := &undo.Log{}
		tw := c.all[0].Twin(l)
		got, inUse := map[uint16]bool{}, map[uint16]bool{}
		n := c.missing()
		for k := range c.rng.IntN(n + 1) {
			id, why := tw.Map(&Request{Tenant: 1, Class: TCP, Inside: [4]byte{198, 40, 0, 1}, Port: uint16(3000 + k), Pool: c.ids}, c.rng.Uint64())
			if why != verdict.Pass {
				t.Fatalf("%d of %d: %v", k, n, why)
			}
			tw.Ref(id)
			_, p := tw.Mapping(id).Public()
			if w, ok := c.sp.Owner(c.ids[0], TCP, p); !ok || w != 0 || inUse[p] {
				t.Fatalf("the trial's port %d belongs to %d, %v", p, w, ok)
			}
			got[p], inUse[p] = true, true
			if c.rng.IntN(3) == 0 { // not given to the others before the end
				tw.Unref(id, c.now)
				inUse[p] = false
			}
		}
		for c.rng.IntN(2) == 0 && c.ask(1) {
			l := c.live[1]
			if _, p := c.all[1].Mapping(l[len(l)-1]).Public(); got[p] {
				t.Fatalf("the trial's port %d was given to worker 1", p)
			}
		}
		l.Undo()
		if i%20 == 0 {
			check(t, c.all...)
		}
		for c.missing() < 3 {
			c.end(0)
		}
		c.sweep(1)
	}
	c.over()
}
