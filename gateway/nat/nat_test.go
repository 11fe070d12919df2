package nat

import (
	"math/bits"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"
	"unsafe"

	"demarc/gateway/flow"
	"demarc/gateway/verdict"
)

const hold = 120_000_000_000 >> 20 // 120 s in ticks

func aligned(n int) []byte {
	b := make([]byte, n+64)
	off := -int(uintptr(unsafe.Pointer(unsafe.SliceData(b)))) & 63
	return b[off : off+n : off+n]
}

func newShard(t testing.TB, capacity, worker int, sp *Space) *Shard {
	t.Helper()
	s, err := NewShard(aligned(Bytes(capacity)), capacity, worker, sp, 0x1234567)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func pool(t testing.TB, sp *Space, n int) (ids []AddrID) {
	t.Helper()
	for i := range n {
		id, err := sp.Register([4]byte{192, 0, 2, byte(1 + i)})
		if err != nil {
			t.Fatal(err)
		}
		ids = append(ids, id)
	}
	return ids
}

func seeded(t testing.TB) *rand.Rand {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	return rand.New(rand.NewPCG(seed, 1))
}

// check holds every list, bitmap and owner entry of a Space against the mappings of all shards that there are on it: what must be true after any
// sequence of calls.
func check(t testing.TB, all ...*Shard) {
	t.Helper()
	sp := all[0].sp
	used, lent := map[blockID]uint64{}, map[blockID]map[uint16]int{}
	use, counted := make([]Use, len(sp.addrs)), make([]Use, len(sp.addrs))
	for _, s := range all {
		n := 0
		s.Each(0, 1<<30, func(id uint32, m *Mapping) bool {
			n++
			a, p := m.Public()
			k := blockOf(a, m.class, p)
			if used[k]>>(p&63)&1 != 0 {
				t.Fatalf("public port %d of address %d, class %d has two mappings", p, a, m.class)
			}
			used[k] |= 1 << (p & 63)
			use[a].InUse++
			if m.flags&mapLent != 0 {
				if lent[k] == nil {
					lent[k] = map[uint16]int{}
				}
				lent[k][p] = s.worker
			}
			if got, ok := s.Lookup(a, m.class, p); !ok || got != id {
				t.Fatalf("Lookup(%d, %d, %d) = %d, %v: want %d", a, m.class, p, got, ok, id)
			}
			if w, ok := sp.Owner(a, m.class, p); !ok || w != s.worker {
				t.Fatalf("Owner(%d, %d, %d) = %d, %v: want %d", a, m.class, p, w, ok, s.worker)
			}
			return true
		})
		if n != s.Len() {
			t.Fatalf("%d mappings, Len says %d", n, s.Len())
		}
		s.Use(counted)
	}
	seen := map[blockID]int{}
	for _, s := range all {
		b := s.hand
		for range s.blocks {
			if w, twice := seen[b]; twice {
				t.Fatalf("block %d is in the lists of workers %d and %d", b, w, s.worker)
			}
			seen[b] = s.worker
			k := sp.block(b)
			c, n := classIn(b), numberOf(b)
			if leader := beside(b, k.leader); s.findGroup(b, &sp.block(leader).group.key) != leader {
				t.Fatalf("block %d: its leader %d is not found", b, leader)
			}
			back := sp.state(addrOf(b)).lending.back[c][n].Load()
			rest := back
			for _, h := range k.held {
				if rest&h != 0 {
					t.Fatalf("block %d: a port held in two generations", b)
				}
				rest |= h
			}
			use[addrOf(b)].Held += int32(bits.OnesCount64(rest))
			u := used[b]
			delete(used, b)
			if free := k.free.Load(); free != ^(u|rest) || u&rest != 0 {
				t.Fatalf("block %d: free %x, in use %x, held %x", b, free, u, rest)
			}
			for bit := range uint16(blockPorts) {
				p := n<<6 | bit
				w, has := lent[b][p]
				if got := int(sp.borrower(addrOf(b), c, p)) - 1; got != w && has || got != -1 && !has || has && w == s.worker {
					t.Fatalf("port %d of block %d, which is worker %d's, is lent to %d, %v: noted for %d", p, b, s.worker, w, has, got)
				}
			}
			lends := len(lent[b]) > 0 || back != 0
			if !sp.lends(b) && lends {
				t.Fatalf("block %d lends ports and does not say so", b)
			}
			for parity := range 2 {
				usable := sp.usable(b)&parityMask(parity) != 0
				if usable && sp.state(addrOf(b)).some[c][parity][n/64].Load()>>(n&63)&1 == 0 {
					t.Fatalf("block %d parity %d has a free port that nobody finds", b, parity)
				}
				if in := k.next[parity] != noNumber; usable && !in && sp.resGen.Load() == s.groupOf(b).resGen && len(all) == 1 {
					t.Fatalf("block %d parity %d has a free port and is in no list", b, parity)
				}
			}
			b = k.shardNext
		}
		if s.blocks > 0 && b != s.hand {
			t.Fatal("the shard's list of blocks is not a ring")
		}
	}
	if !slices.Equal(use, counted) {
		t.Fatalf("%v in use and held by address, counted %v", use, counted)
	}
	for i := range sp.addrs {
		for c := range numClasses {
			st := sp.state(AddrID(i))
			if st == nil {
				continue
			}
			n := 0
			for w := range st.free[c] {
				m := st.free[c][w].Load()
				for bit := range 64 {
					if b := blockOf(AddrID(i), c, uint16((w*64+bit)<<6)); m>>bit&1 != 0 && (sp.block(b).free.Load() != 0 || sp.owner[i*blocksPerAddr|w*64|bit].Load()>>(8*c)&0xff != 0 || sp.lends(b)) {
						t.Fatalf("block %d is nobody's and has an owner or ports to take", b)
					} else if _, owned := seen[b]; owned == (m>>bit&1 != 0) {
						t.Fatalf("block %d is lost, or free and owned", b)
					}
				}
				if w == 0 {
					m &^= lowBlockMask
				}
				n += bits.OnesCount64(m)
			}
			if got := int(st.left[c].Load()); got != n {
				t.Fatalf("address %d, class %d: %d blocks above the low ports are free, counted %d", i, c, n, got)
			}
			if m := st.moves[c].Load(); uint32(m) != 0 {
				t.Fatalf("address %d, class %d: %d blocks are still moving", i, c, uint32(m))
			}
		}
	}
	if len(used) != 0 {
		t.Fatalf("mappings in blocks that nobody owns: %v", used)
	}
}

func freeIn(sp *Space, ids []AddrID) (n int) {
	for _, id := range ids {
		for c := range numClasses {
			n += sp.FreeBlocks(id, c)
		}
	}
	return n
}

func TestMapAgainstReference(t *testing.T) {
	for _, perHost := range []bool{false, true} {
		rng := seeded(t)
		sp := NewSpace(4)
		ids := pool(t, sp, 2)
		const capacity = 3000
		s := newShard(t, capacity, 0, sp)
		type in struct {
			tenant flow.TenantID
			class  Class
			host   byte
			port   uint16
		}
		type out struct {
			addr  AddrID
			class Class
			port  uint16
		}
		byIn, refs := map[in]uint32{}, map[in]int{}
		held := map[out]uint32{} // when it may be used again
		blockHost := map[blockID]in{}
		now := uint32(1<<32 - 200_000) // wraps on the way
		for step := range 60_000 {
			k := in{flow.TenantID(1 + rng.IntN(2)), Class(rng.IntN(3)), byte(rng.IntN(20)), uint16(rng.IntN(450)*146+7) ^ uint16(rng.IntN(2))} // both ports of RTP pairs
			switch op := rng.IntN(100); {
			case op < 60:
				r := Request{Tenant: k.tenant, Class: k.class, Inside: [4]byte{198, 18, 0, k.host}, Port: k.port, Pool: ids, PerHost: perHost, Hold: hold}
				id, reason := s.Map(&r, rng.Uint64())
				if reason == verdict.NATMappingTableFull && s.Len() == capacity {
					continue
				}
				if reason != verdict.Pass {
					t.Fatalf("step %d: Map(%+v): %v with %d mappings", step, r, reason, s.Len())
				}
				m := s.Mapping(id)
				a, p := m.Public()
				if ten, inside, port := m.Inside(); ten != k.tenant || inside != r.Inside || port != k.port {
					t.Fatalf("step %d: mapping of somebody else", step)
				}
				if old, ok := byIn[k]; ok {
					if old != id {
						t.Fatalf("step %d: %+v has mapping %d and got %d", step, k, old, id)
					}
				} else {
					if p < 1024 && (k.port >= 1024 || k.class == ICMP) || sp.Reserved(a, k.class, p) {
						t.Fatalf("step %d: inside port %d got public port %d", step, k.port, p)
					}
					if p&1 != k.port&1 {
						t.Fatalf("step %d: parity of %d lost in %d with ports free", step, k.port, p)
					}
					if !perHost && k.port < 1024 && k.class != ICMP && p >= 1024 { // per host, 40 hosts share 32 blocks of low ports
						t.Fatalf("step %d: range of %d lost in %d with ports free", step, k.port, p)
					}
					if until, ok := held[out{a, k.class, p}]; ok && int32(until-now) > 0 {
						t.Fatalf("step %d: port %d used %d ticks before its hold ends", step, p, until-now)
					}
					if perHost {
						b := blockOf(a, k.class, p)
						who := in{tenant: k.tenant, host: k.host}
						if other, ok := blockHost[b]; ok && other != who && s.sp.block(b).resting() > 0 {
							t.Fatalf("step %d: block %d of %v shared by %v", step, b, other, who)
						}
						blockHost[b] = who
					}
					byIn[k] = id
				}
				if rng.IntN(10) == 0 && refs[k] == 0 {
					s.Drop(id)
					delete(byIn, k)
				} else {
					s.Ref(id)
					refs[k]++
				}
			case op < 95:
				for k, id := range byIn {
					a, p := s.Mapping(id).Public()
					s.Unref(id, now)
					if refs[k]--; refs[k] == 0 {
						delete(refs, k)
						delete(byIn, k)
						held[out{a, k.class, p}] = now + hold
						if _, ok := s.Lookup(a, k.class, p); ok {
							t.Fatalf("step %d: ended mapping still found", step)
						}
					}
					break
				}
			default:
				now += uint32(rng.IntN(2000))
				s.Sweep(now, rng.IntN(50))
			}
			if s.Len() != len(byIn) {
				t.Fatalf("step %d: %d mappings, reference has %d", step, s.Len(), len(byIn))
			}
			if step%5000 == 0 {
				check(t, s)
			}
		}
		check(t, s)
		for k, id := range byIn {
			for range refs[k] {
				s.Unref(id, now)
			}
		}
		for range 3 {
			s.Sweep(now+2*hold, 1<<20)
		}
		check(t, s)
		if s.Len() != 0 || s.Blocks() != 0 || freeIn(sp, ids) != len(ids)*blocksPerAddr*int(numClasses) {
			t.Fatalf("after the end: %d mappings, %d blocks, %d free", s.Len(), s.Blocks(), freeIn(sp, ids))
		}
		if _, ok := sp.Owner(ids[0], UDP, 5000); ok {
			t.Fatal("a free block has an owner")
		}
	}
}

// One inside host takes every port of an address, also after another worker has used some of them.
func TestEveryPortOfAnAddress(t *testing.T) {
	for _, perHost := range []bool{false, true} {
		rng := seeded(t)
		sp := NewSpace(1)
		ids := pool(t, sp, 1)
		other, s := newShard(t, 20000, 0, sp), newShard(t, 65536, 1, sp)
		var took []uint32
		for i := range 15000 {
			id, r := other.Map(&Request{Tenant: 2, Class: TCP, Inside: [4]byte{198, 18, 9, 9}, Port: uint16(i + 1024), Pool: ids, Hold: hold, PerHost: perHost}, rng.Uint64())
			if r != verdict.Pass {
				t.Fatal(r)
			}
			other.Ref(id)
			took = append(took, id)
		}
		for _, id := range took {
			other.Unref(id, 5)
		}
		check(t, other, s)
		other.Sweep(5+2*hold, 1<<20)
		if other.Blocks() != 0 {
			t.Fatalf("an idle worker keeps %d blocks", other.Blocks())
		}
		seen := make([]bool, 65536)
		req := Request{Tenant: 1, Class: TCP, Inside: [4]byte{198, 18, 0, 1}, Pool: ids, Hold: hold, PerHost: perHost}
		for i := range 64512 {
			req.Port = uint16(1024 + i)
			id, r := s.Map(&req, rng.Uint64())
			if r != verdict.Pass {
				t.Fatalf("port %d of 64512: %v", i, r)
			}
			s.Ref(id)
			_, p := s.Mapping(id).Public()
			if p < 1024 || seen[p] || p&1 != req.Port&1 {
				t.Fatalf("inside %d got %d (seen before: %v)", req.Port, p, seen[p])
			}
			seen[p] = true
		}
		check(t, s, other)
		req.Inside[3]++
		if _, r := s.Map(&req, 1); r != verdict.NATNoPort {
			t.Fatalf("one more: %v", r)
		}
		if _, r := other.Map(&req, 1); r != verdict.NATNoPort {
			t.Fatalf("one more on the other worker: %v", r)
		}
		if id, r := s.Map(&Request{Tenant: 1, Class: UDP, Inside: [4]byte{198, 18, 0, 1}, Port: 5, Pool: ids, PerHost: perHost}, 1); r != verdict.Pass {
			t.Fatalf("UDP while all TCP ports are taken: %v", r)
		} else if _, p := s.Mapping(id).Public(); p >= 1024 || p&1 == 0 {
			t.Fatalf("inside UDP port 5 got %d", p)
		}
	}
}

func TestParityGivesWayWhenItsHalfIsUsedUp(t *testing.T) {
	sp := NewSpace(1)
	ids := pool(t, sp, 1)
	s := newShard(t, 65536, 0, sp)
	odd := 0
	for i := range 40000 {
		// All inside ports even, two hosts.
		r := Request{Tenant: 1, Class: UDP, Inside: [4]byte{198, 18, 0, byte(i & 1)}, Port: uint16(1024 + i&^1), Pool: ids}
		id, reason := s.Map(&r, uint64(i)*0x9e3779b97f4a7c15)
		if reason != verdict.Pass {
			t.Fatalf("%d: %v", i, reason)
		}
		if _, p := s.Mapping(id).Public(); p&1 == 1 {
			odd++
		}
	}
	if odd != 40000-32256 {
		t.Fatalf("%d odd ports: want those beyond the 32256 even ones", odd)
	}
}

func TestRTPPairs(t *testing.T) {
	sp := NewSpace(2)
	ids := pool(t, sp, 2)
	s := newShard(t, 4096, 0, sp)
	for i := range 500 {
		a, b := uint16(16384+2*i), uint16(16385+2*i)
		if i%2 == 1 {
			a, b = b, a
		}
		var got [2]uint16
		var addr [2]AddrID
		for j, p := range [2]uint16{a, b} {
			id, r := s.Map(&Request{Tenant: 1, Class: UDP, Inside: [4]byte{198, 18, 0, 7}, Port: p, Pool: ids}, uint64(i*2+j)*0x9e3779b97f4a7c15)
			if r != verdict.Pass {
				t.Fatal(r)
			}
			s.Ref(id)
			addr[j], got[j] = s.Mapping(id).Public()
		}
		if addr[0] != addr[1] || got[0]^1 != got[1] || got[0]&1 != a&1 {
			// A neighbour may be taken by a pair that came before.
			t.Logf("pair %d/%d became %d/%d", a, b, got[0], got[1])
			if addr[0] != addr[1] || got[1]&1 != b&1 {
				t.Fatalf("pair %d/%d: addresses %v, ports %v", a, b, addr, got)
			}
		}
	}
}

func TestHostKeepsItsAddress(t *testing.T) {
	sp := NewSpace(8)
	ids := pool(t, sp, 8)
	s := newShard(t, 8192, 0, sp)
	use := map[AddrID]int{}
	for host := range 64 {
		first := NoAddr
		for p := range 40 {
			id, r := s.Map(&Request{Tenant: 1, Class: Class(p % 3), Inside: [4]byte{198, 18, 3, byte(host)}, Port: uint16(2000 + p), Pool: ids, First: uint64(host) << 58}, uint64(p)<<17)
			if r != verdict.Pass {
				t.Fatal(r)
			}
			a, _ := s.Mapping(id).Public()
			if first == NoAddr {
				first = a
				use[a]++
			}
			if a != first {
				t.Fatalf("host %d uses addresses %d and %d", host, first, a)
			}
		}
	}
	if len(use) < 6 {
		t.Fatalf("64 hosts use %d of 8 addresses", len(use))
	}
}

func TestHold(t *testing.T) {
	sp := NewSpace(1)
	ids := pool(t, sp, 1)
	// All but 10 TCP ports reserved, so that the allocator has no choice.
	var res [1024]uint64
	for i := range res {
		res[i] = ^uint64(0)
	}
	res[100] = ^uint64(0x3ff)
	sp.SetReserved(ids[0], TCP, &res)
	s := newShard(t, 64, 0, sp)
	req := Request{Tenant: 1, Class: TCP, Inside: [4]byte{198, 18, 0, 1}, Pool: ids, Hold: hold}
	var got []uint32
	for i := range 10 {
		req.Port = uint16(3000 + i)
		id, r := s.Map(&req, uint64(i)<<20)
		if r != verdict.Pass {
			t.Fatalf("port %d: %v", i, r)
		}
		if _, p := s.Mapping(id).Public(); p>>6 != 100 || p&63 > 9 {
			t.Fatalf("got reserved port %d", p)
		}
		s.Ref(id)
		got = append(got, id)
	}
	req.Port = 4000
	if _, r := s.Map(&req, 0); r != verdict.NATNoPort {
		t.Fatalf("eleventh: %v", r)
	}
	s.Unref(got[0], 2000)
	for _, at := range []uint32{2000, 2000 + hold/2, 2000 + hold - 1} {
		s.Sweep(at, 1<<10)
		if _, r := s.Map(&req, 0); r != verdict.NATNoPort {
			t.Fatalf("at %d of a hold that ends at %d: %v", at, 2000+hold, r)
		}
	}
	s.Sweep(2000+hold*4/3+4096, 1<<10)
	id, r := s.Map(&req, 0)
	if r != verdict.Pass {
		t.Fatalf("after the hold: %v", r)
	}
	s.Drop(id)
	if id, r = s.Map(&req, 0); r != verdict.Pass {
		t.Fatalf("after Drop, which holds nothing: %v", r)
	}
	s.Ref(id)
	check(t, s)
	// Ports that are reserved no more can be used at once, by the group that has the block.
	res[100] = ^uint64(0xfff)
	sp.SetReserved(ids[0], TCP, &res)
	for i := range 2 {
		req.Port = uint16(5000 + i)
		if _, r := s.Map(&req, 0); r != verdict.Pass {
			t.Fatalf("port that is reserved no more: %v", r)
		}
	}
	check(t, s)
}

func TestMappingIsReplacedWhenItsPortIsTakenAway(t *testing.T) {
	sp := NewSpace(2)
	ids := pool(t, sp, 2)
	s := newShard(t, 64, 0, sp)
	req := Request{Tenant: 1, Class: UDP, Inside: [4]byte{198, 18, 0, 1}, Port: 7000, Pool: ids[:1], Hold: hold}
	old, _ := s.Map(&req, 99)
	s.Ref(old)
	a, p := s.Mapping(old).Public()
	var res [1024]uint64
	res[p>>6] = 1 << (p & 63)
	sp.SetReserved(a, UDP, &res)
	id, r := s.Map(&req, 98)
	if r != verdict.Pass || id == old {
		t.Fatalf("mapping on a reserved port: %v, %v", id == old, r)
	}
	s.Ref(id)
	if got, ok := s.Lookup(a, UDP, p); !ok || got != old {
		t.Fatal("the old mapping serves its sessions no more")
	}
	req.Pool = ids[1:]
	id2, r := s.Map(&req, 97)
	if r != verdict.Pass || id2 == id || s.Mapping(id2).addr != ids[1] {
		t.Fatalf("mapping on an address that left the pool: %v, %v", id2 == id, r)
	}
	s.Ref(id2)
	check(t, s)
	for _, i := range []uint32{old, id} {
		s.Unref(i, 5)
	}
	if got, r := s.Map(&req, 96); r != verdict.Pass || got != id2 {
		t.Fatalf("the end of the old ones took the new one along: %d, %v, want %d", got, r, id2)
	}
	check(t, s)
}

func TestRefusals(t *testing.T) {
	sp := NewSpace(1)
	ids := pool(t, sp, 1)
	s := newShard(t, 2, 0, sp)
	req := Request{Tenant: 1, Class: UDP, Inside: [4]byte{198, 18, 0, 1}, Port: 7000}
	if _, r := s.Map(&req, 0); r != verdict.NATNoPool {
		t.Errorf("no pool: %v", r)
	}
	req.Pool = []AddrID{77}
	if _, r := s.Map(&req, 0); r != verdict.NATNoPort {
		t.Errorf("unknown address: %v", r)
	}
	req.Pool = ids
	for i := range 3 {
		req.Port++
		want := verdict.Pass
		if i == 2 {
			want = verdict.NATMappingTableFull
		}
		if _, r := s.Map(&req, 0); r != want {
			t.Errorf("mapping %d of 2: %v", i, r)
		}
	}
	if _, err := sp.Register([4]byte{192, 0, 2, 99}); err == nil {
		t.Error("second address in a space for one")
	}
	if id, err := sp.Register([4]byte{192, 0, 2, 1}); err != nil || id != ids[0] {
		t.Errorf("same address again: %d, %v", id, err)
	}
	s.Unref(1<<31, 0)
	s.Drop(noMapping)
	s.Ref(55)
	for name, f := range map[string]func() error{
		"short":     func() error { _, err := NewShard(aligned(10), 100, 0, sp, 1); return err },
		"unaligned": func() error { _, err := NewShard(aligned(Bytes(100) + 64)[4:], 100, 0, sp, 1); return err },
		"empty":     func() error { _, err := NewShard(nil, 0, 0, sp, 1); return err },
		"worker":    func() error { _, err := NewShard(aligned(Bytes(100)), 100, MaxWorkers, sp, 1); return err },
	} {
		if f() == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

// Two workers open, use and give back blocks of one address at once: no block has two owners. Run with -race too.
func TestTwoWorkersRace(t *testing.T) {
	sp := NewSpace(1)
	ids := pool(t, sp, 1)
	var shards [2]*Shard
	for w := range shards {
		shards[w] = newShard(t, 40000, w, sp)
	}
	var wg sync.WaitGroup
	stop := make(chan struct{})
	for w, s := range shards {
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(uint64(w), 5))
			var live []uint32
			now := uint32(0)
			for i := range 60000 {
				r := Request{Tenant: flow.TenantID(1 + w), Class: TCP, Inside: [4]byte{198, 18, byte(w), byte(i)}, Port: uint16(1024 + rng.IntN(60000)), Pool: ids}
				id, reason := s.Map(&r, rng.Uint64())
				if reason == verdict.Pass {
					s.Ref(id)
					live = append(live, id)
					a, p := s.Mapping(id).Public()
					if o, ok := sp.Owner(a, TCP, p); !ok || o != w {
						t.Errorf("worker %d: port %d belongs to %d", w, p, o)
						return
					}
				} else if reason != verdict.NATNoPort && reason != verdict.NATMappingTableFull {
					t.Errorf("worker %d: %v", w, reason)
					return
				}
				if i%20000 > 12000 { // shrink, so that blocks change hands
					for range min(3, len(live)) {
						s.Unref(live[len(live)-1], now)
						live = live[:len(live)-1]
					}
				}
				if i%64 == 0 {
					now++
					s.Sweep(now, 32)
				}
			}
		})
	}
	var ctl sync.WaitGroup
	ctl.Go(func() {
		var res [1024]uint64
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			default:
			}
			res[16+i%1000] ^= 0xf0f0
			sp.SetReserved(ids[0], TCP, &res)
			sp.Owner(ids[0], TCP, uint16(i*61))
			time.Sleep(50 * time.Microsecond)
		}
	})
	wg.Wait()
	close(stop)
	ctl.Wait()
	check(t, shards[:]...)
	n := sp.FreeBlocks(ids[0], TCP) + shards[0].Blocks() + shards[1].Blocks()
	if n != blocksPerAddr {
		t.Fatalf("%d blocks free or owned, want %d", n, blocksPerAddr)
	}
}

func TestClassOf(t *testing.T) {
	for proto, want := range map[uint8]Class{flow.TCP: TCP, flow.UDP: UDP, flow.ICMP: ICMP} {
		if c, ok := ClassOf(proto); !ok || c != want {
			t.Errorf("protocol %d: %d, %v", proto, c, ok)
		}
	}
	for _, proto := range []uint8{0, 47, 50, flow.ICMPv6} {
		if _, ok := ClassOf(proto); ok {
			t.Errorf("protocol %d has no ports that could be translated", proto)
		}
	}
}

// What a report asks of the allocator is counted by address: of a table with 64k blocks it touches none, so it costs what a pool has addresses.
func TestUseTouchesNoBlock(t *testing.T) {
	sp := NewSpace(4)
	ids := pool(t, sp, 3)
	s := newShard(t, 1000, 0, sp)
	for i := range 500 {
		id, _ := s.Map(&Request{Tenant: 3, Class: Class(i % 3), Inside: [4]byte{198, 18, 0, 1}, Port: uint16(2000 + i), Pool: ids[i%2:][:1], Hold: hold}, uint64(i)<<33)
		s.Ref(id)
		if i < 200 {
			s.Unref(id, 0)
		}
	}
	for i := range sp.addrs {
		sp.addrs[i].Store(nil) // who looks at a block now panics
	}
	sum := make([]Use, sp.Addrs())
	sum[2].InUse = 7 // of another shard
	s.Use(sum)
	if want := [3]Use{{150, 100}, {150, 100}, {7, 0}}; [3]Use(sum) != want {
		t.Fatalf("%v, want %v", sum, want)
	}
	s.Use(make([]Use, 9)) // more than there is room for
}

func TestNoAllocation(t *testing.T) {
	sp := NewSpace(1)
	ids := pool(t, sp, 1)
	s := newShard(t, 4096, 0, sp)
	i := uint32(0)
	req := Request{Tenant: 1, Class: UDP, Inside: [4]byte{198, 18, 0, 1}, Pool: ids, Hold: 10}
	if n := testing.AllocsPerRun(5000, func() {
		i++
		req.Port = uint16(1024 + i%60000)
		id, r := s.Map(&req, uint64(i)*0x9e3779b97f4a7c15)
		if r != verdict.Pass {
			t.Fatal(r)
		}
		s.Ref(id)
		a, p := s.Mapping(id).Public()
		s.Lookup(a, UDP, p)
		s.Unref(id, i)
		s.Sweep(i, 4)
	}); n != 0 {
		t.Fatalf("%v allocations", n)
	}
}

func BenchmarkMapNew(b *testing.B) {
	sp := NewSpace(16)
	ids := pool(b, sp, 16)
	s := newShard(b, 1<<20, 0, sp)
	rng := rand.New(rand.NewPCG(1, 2))
	req := Request{Tenant: 1, Class: UDP, Pooling: Arbitrary, Pool: ids, Hold: 0} // paired, the first address would be full
	const keep = 500_000                                                          // mappings alive
	ring := make([]uint32, keep)
	for i := 0; b.Loop(); i++ {
		req.Inside = [4]byte{198, 18, byte(i >> 8), byte(i)}
		req.Port = uint16(1024 + i%64000)
		id, r := s.Map(&req, rng.Uint64())
		if r != verdict.Pass {
			b.Fatal(r)
		}
		s.Ref(id)
		if i >= keep {
			s.Unref(ring[i%keep], uint32(i))
		}
		ring[i%keep] = id
	}
}

func BenchmarkLookup(b *testing.B) {
	for _, n := range []int{64 << 10, 1 << 20} {
		b.Run(map[bool]string{true: "64k", false: "1M"}[n == 64<<10], func(b *testing.B) {
			sp := NewSpace(20)
			ids := pool(b, sp, 20)
			s := newShard(b, n, 0, sp)
			type pub struct {
				a AddrID
				p uint16
			}
			pubs := make([]pub, n)
			rng := rand.New(rand.NewPCG(1, 2))
			for i := range n {
				id, r := s.Map(&Request{Tenant: 1, Class: UDP, Inside: [4]byte{198, 18, byte(i >> 14), byte(i >> 6)}, Port: uint16(2000 + i&63), Pool: ids}, rng.Uint64())
				if r != verdict.Pass {
					b.Fatal(i, r)
				}
				pubs[i].a, pubs[i].p = s.Mapping(id).Public()
			}
			rng.Shuffle(n, func(i, j int) { pubs[i], pubs[j] = pubs[j], pubs[i] })
			i := 0
			for b.Loop() {
				p := &pubs[i&(n-1)]
				i++
				if _, ok := s.Lookup(p.a, UDP, p.p); !ok {
					b.Fatal("lost")
				}
			}
		})
	}
}

// The lines of an index, two entries at a time, against one at a time: tags that are equal in part, zeros, ones, and every place.
func TestLineAgainstEntries(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 4))
	hits := 0
	for range 200_000 {
		idBits := uint(1 + rng.IntN(31))
		low := uint32(1)<<idBits - 1
		pick := func() uint32 {
			switch rng.IntN(6) {
			case 0:
				return 0
			case 1:
				return 1
			case 2:
				return low + 1
			case 3:
				return ^uint32(0)
			case 4:
				return 1 << rng.IntN(32)
			}
			return rng.Uint32()
		}
		var l line
		for i := range l.entry {
			if l.entry[i] = pick(); rng.IntN(3) > 0 {
				l.entry[i] = rng.Uint32()
			}
		}
		tag := pick() &^ low
		want, room := false, lineEntries
		for i, e := range l.entry {
			want = want || e&^low == tag
			if e == 0 && room == lineEntries {
				room = i
			}
		}
		got := l.like(tag, low)
		if want && len(got) != lineEntries || !want && len(got) != 0 {
			t.Fatalf("tag %x above %x in %x: %v", tag, low, l.entry, got)
		}
		if want {
			hits++
		}
		if n := l.room(); n != room {
			t.Fatalf("room in %x at %d, want %d", l.entry, n, room)
		}
	}
	if hits < 1000 || hits > 199_000 {
		t.Fatalf("%d hits", hits)
	}
}

// One of the ports, against a walk of so many steps.
func TestAnyOfAgainstAWalk(t *testing.T) {
	rng := rand.New(rand.NewPCG(5, 6))
	for i := range 200_000 {
		m, rnd := rng.Uint64(), rng.Uint64()
		switch i % 5 {
		case 1:
			m &= rng.Uint64() & rng.Uint64() & rng.Uint64()
		case 2:
			m = ^uint64(0)
		case 3:
			m &= parityMask(i)
		}
		if m == 0 {
			m = 1 << rng.IntN(64)
		}
		left := m
		for range (rnd >> 8 & 0xffff) * uint64(bits.OnesCount64(m)) >> 16 {
			left &= left - 1
		}
		if got, want := int(anyOf(m, rnd)), bits.TrailingZeros64(left); got != want {
			t.Fatalf("of %#x by %#x: port %d, want %d", m, rnd, got, want)
		}
	}
}

func TestInPool(t *testing.T) {
	for _, pool := range [][]AddrID{nil, {7}, {3, 4, 5, 6}, {9, 2, 4, 11}, {4, 2, 4}} {
		for a := range AddrID(16) {
			at, want := slices.Index(pool, a), slices.Contains(pool, a)
			if i, in := inPool(pool, a); in != want || in && pool[i] != pool[at] {
				t.Errorf("%d in %v: %d, %v", a, pool, i, in)
			}
		}
	}
}

// Both ports of an RTP pair lose their public ones: they get neighbours again.
func TestAPairIsReplacedTogether(t *testing.T) {
	sp := NewSpace(1)
	ids := pool(t, sp, 1)
	s := newShard(t, 64, 0, sp)
	var res [1024]uint64
	public := func(port uint16, rnd uint64) uint16 {
		id, r := s.Map(&Request{Tenant: 1, Class: UDP, Inside: [4]byte{198, 18, 0, 1}, Port: port, Pool: ids, Hold: hold}, rnd)
		if r != verdict.Pass {
			t.Fatal(r)
		}
		s.Ref(id)
		_, p := s.Mapping(id).Public()
		return p
	}
	for i := range uint64(20) {
		even, odd := public(7000, i*0x9e3779b97f4a7c15), public(7001, i)
		if even&1 != 0 || even^1 != odd {
			t.Fatalf("round %d: ports %d and %d", i, even, odd)
		}
		res[even>>6] |= 3 << (even & 63)
		sp.SetReserved(ids[0], UDP, &res)
	}
	check(t, s)
}
