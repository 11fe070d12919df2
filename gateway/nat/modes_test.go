package nat

import (
	"testing"

	"demarc/gateway/flow"
	"demarc/gateway/verdict"
)

// Whatever the mode: an inside port keeps its public one for what the mode says, and no public port has two inside ends.
func TestMappingModesAgainstReference(t *testing.T) {
	for _, mode := range []Mode{EndpointIndependent, AddressDependent, AddressAndPortDependent} {
		rng := seeded(t)
		sp := NewSpace(2)
		s := newShard(t, 3000, 0, sp)
		ids := pool(t, sp, 2)
		type key struct {
			tenant flow.TenantID
			host   byte
			port   uint16
			remote byte
			once   int // a session's own, address and port dependent
		}
		type public struct {
			a AddrID
			p uint16
		}
		byKey, refs, owner := map[key]uint32{}, map[uint32]int{}, map[public]key{}
		var live []key
		for step := range 30_000 {
			if rng.IntN(5) < 3 {
				k := key{tenant: flow.TenantID(1 + rng.IntN(2)), host: byte(rng.IntN(9)), port: uint16(1024 + rng.IntN(40)), remote: byte(1 + rng.IntN(6))}
				r := Request{Tenant: k.tenant, Class: UDP, Mapping: mode, Inside: [4]byte{198, 18, 0, k.host}, Port: k.port, Remote: [4]byte{203, 0, 113, k.remote}, Pool: ids, Hold: 1}
				switch mode {
				case EndpointIndependent:
					k.remote = 0
				case AddressAndPortDependent:
					k.once = step + 1
				}
				id, reason := s.Map(&r, rng.Uint64())
				if reason != verdict.Pass {
					if s.Len() < s.Capacity() {
						t.Fatalf("step %d: %v with %d mappings", step, reason, s.Len())
					}
					continue
				}
				m := s.Mapping(id)
				a, p := m.Public()
				if was, known := byKey[k]; known && was != id {
					t.Fatalf("mode %d step %d: %+v has mapping %d and got %d", mode, step, k, was, id)
				}
				if who, taken := owner[public{a, p}]; taken && who != k {
					t.Fatalf("mode %d step %d: port %d is %+v's and went to %+v", mode, step, p, who, k)
				}
				if remote, depends := m.Remote(); depends != (mode != EndpointIndependent) || depends && remote != r.Remote {
					t.Fatalf("mode %d: made for %v, %v", mode, remote, depends)
				}
				if got, ok := s.Lookup(a, UDP, p); !ok || got != id {
					t.Fatalf("mode %d: port %d leads to mapping %d, %v", mode, p, got, ok)
				}
				s.Ref(id)
				byKey[k], owner[public{a, p}] = id, k
				refs[id]++
				live = append(live, k)
			} else if len(live) > 0 {
				i := rng.IntN(len(live))
				k := live[i]
				live[i] = live[len(live)-1]
				live = live[:len(live)-1]
				id := byKey[k]
				a, p := s.Mapping(id).Public()
				s.Unref(id, uint32(step))
				if refs[id]--; refs[id] == 0 {
					delete(byKey, k)
					delete(owner, public{a, p})
				}
			}
			if s.Len() != len(byKey) {
				t.Fatalf("mode %d step %d: %d mappings, want %d", mode, step, s.Len(), len(byKey))
			}
			if step%500 == 0 {
				s.Sweep(uint32(step), 1<<12)
				check(t, s)
			}
		}
	}
}

// fill takes every TCP port of the address for another tenant.
func fill(t *testing.T, s *Shard, a AddrID) {
	t.Helper()
	for i := range 64512 {
		id, r := s.Map(&Request{Tenant: 9, Class: TCP, Inside: [4]byte{198, 18, 9, 9}, Port: uint16(1024 + i), Pool: []AddrID{a}}, uint64(i)*0x9e3779b97f4a7c15)
		if r != verdict.Pass {
			t.Fatalf("port %d: %v", i, r)
		}
		s.Ref(id)
	}
}

func TestPooling(t *testing.T) {
	for name, c := range map[string]struct {
		pooling Pooling
		full    verdict.Reason // when the host's address has no port left
	}{
		"paired": {Paired, verdict.NATNoPort}, "soft": {PairedSoft, verdict.Pass}, "arbitrary": {Arbitrary, verdict.Pass},
	} {
		t.Run(name, func(t *testing.T) {
			sp := NewSpace(4)
			ids := pool(t, sp, 4)
			s := newShard(t, 80_000, 0, sp)
			r := Request{Tenant: 1, Class: TCP, Pooling: c.pooling, Inside: [4]byte{198, 18, 0, 1}, Port: 3000, Pool: ids, First: 1 << 62} // the second
			var took []uint32
			used := map[AddrID]int{}
			next := func(port uint16) (AddrID, verdict.Reason) {
				r.Port = port
				id, reason := s.Map(&r, uint64(port)*0x9e3779b97f4a7c15)
				if reason != verdict.Pass {
					return NoAddr, reason
				}
				s.Ref(id)
				took = append(took, id)
				a, _ := s.Mapping(id).Public()
				used[a]++
				return a, reason
			}
			for i := range 64 {
				if _, reason := next(uint16(4000 + i)); reason != verdict.Pass {
					t.Fatal(reason)
				}
			}
			if want := c.pooling != Arbitrary; want != (len(used) == 1) || want && used[ids[1]] != 64 {
				t.Fatalf("64 mappings by address: %v", used)
			}
			// The hash would say another address now: who has mappings stays.
			r.First = 0
			if a, _ := next(5000); c.pooling != Arbitrary && a != ids[1] {
				t.Fatalf("the host moved to %d", a)
			}
			// No port left on its address.
			var rest [1024]uint64
			for i := range rest {
				rest[i] = ^uint64(0)
			}
			sp.SetReserved(ids[1], TCP, &rest)
			took, used = took[:0], map[AddrID]int{}
			if _, reason := next(6000); reason != c.full {
				t.Fatalf("its address is used up: %v, want %v", reason, c.full)
			}
			// Of another protocol there are ports: the same address.
			r.Class = UDP
			if a, reason := next(6001); reason != verdict.Pass || c.pooling != Arbitrary && a != ids[1] {
				t.Fatalf("UDP got address %d: %v", a, reason)
			}
			// An address that leaves the pool holds nobody.
			r.Class, r.Pool = TCP, ids[2:]
			if a, reason := next(6002); reason != verdict.Pass || a == ids[1] {
				t.Fatalf("after the pool changed: address %d, %v", a, reason)
			}
		})
	}
}

// A host without mappings is not refused because the address of its hash is used up.
func TestAHostBeginsWhereThereIsAPort(t *testing.T) {
	sp := NewSpace(2)
	ids := pool(t, sp, 2)
	s := newShard(t, 80_000, 0, sp)
	fill(t, s, ids[0])
	r := Request{Tenant: 1, Class: TCP, Inside: [4]byte{198, 18, 0, 1}, Port: 3000, Pool: ids}
	for range 3 {
		id, reason := s.Map(&r, 7)
		if reason != verdict.Pass {
			t.Fatal(reason)
		}
		if a, _ := s.Mapping(id).Public(); a != ids[1] {
			t.Fatalf("address %d", a)
		}
		s.Ref(id)
		r.Port++
	}
	// Its ICMP identifiers are there too, although the first address has all of them.
	r.Class = ICMP
	id, _ := s.Map(&r, 7)
	if a, _ := s.Mapping(id).Public(); a != ids[1] {
		t.Fatal("not paired over protocols")
	}
}

// One host's use of all UDP ports leaves every TCP port and ICMP identifier to the hosts of other workers.
func TestAProtocolUsedUpLeavesTheOthers(t *testing.T) {
	sp := NewSpace(1)
	ids := pool(t, sp, 1)
	greedy, other := newShard(t, 70_000, 0, sp), newShard(t, 70_000, 1, sp)
	for i := range 64512 {
		id, r := greedy.Map(&Request{Tenant: 1, Class: UDP, Inside: [4]byte{198, 18, 0, 1}, Port: uint16(1024 + i), Pool: ids}, uint64(i)*0x9e3779b97f4a7c15)
		if r != verdict.Pass {
			t.Fatalf("UDP port %d: %v", i, r)
		}
		greedy.Ref(id)
	}
	if _, r := other.Map(&Request{Tenant: 1, Class: UDP, Inside: [4]byte{198, 18, 0, 2}, Port: 2000, Pool: ids}, 1); r != verdict.NATNoPort {
		t.Fatalf("one more: %v", r)
	}
	for _, class := range []Class{TCP, ICMP} {
		for i := range 64512 {
			id, r := other.Map(&Request{Tenant: 1, Class: class, Inside: [4]byte{198, 18, 0, 2}, Port: uint16(1024 + i), Pool: ids}, uint64(i)*0x9e3779b97f4a7c15)
			if r != verdict.Pass {
				if class == ICMP && r == verdict.NATMappingTableFull {
					break
				}
				t.Fatalf("class %d port %d: %v", class, i, r)
			}
			other.Ref(id)
			if _, p := other.Mapping(id).Public(); p < 1024 {
				t.Fatalf("port %d", p)
			} else if w, ok := sp.Owner(ids[0], class, p); !ok || w != 1 {
				t.Fatalf("port %d of class %d belongs to %d", p, class, w)
			} else if w, ok = sp.Owner(ids[0], UDP, p); !ok || w != 0 {
				t.Fatalf("UDP port %d belongs to %d", p, w)
			}
		}
	}
	check(t, greedy, other)
}

func TestAnchorsAgainstAMap(t *testing.T) {
	rng := seeded(t)
	x := anchors{slots: make([]anchor, 64), seed: rng.Uint64()}
	type host struct {
		tenant flow.TenantID
		inside [4]byte
	}
	type kept struct {
		addr AddrID
		refs int
	}
	want := map[host]*kept{}
	pool := []AddrID{1, 2, 3}
	for range 100_000 {
		h := host{flow.TenantID(rng.IntN(3)), [4]byte{198, 18, 0, byte(rng.IntN(40))}}
		k := want[h]
		if rng.IntN(2) == 0 {
			a := pool[rng.IntN(3)]
			ok := x.hold(h.tenant, h.inside, a, pool)
			if full := k == nil && len(want) >= len(x.slots)/8*7; ok == full {
				t.Fatalf("%d hosts: %v", len(want), ok)
			}
			if ok && k == nil {
				want[h] = &kept{a, 1}
			} else if ok {
				k.refs++
			}
		} else if k != nil {
			x.release(h.tenant, h.inside)
			if k.refs--; k.refs == 0 {
				delete(want, h)
			}
		}
		k = want[h]
		if a, ok := x.find(h.tenant, h.inside); ok != (k != nil) || ok && a != k.addr || x.n != len(want) {
			t.Fatalf("%+v: %d %v, want %+v; %d of %d", h, a, ok, k, x.n, len(want))
		}
	}
}

func TestPermitsAgainstAMap(t *testing.T) {
	rng := seeded(t)
	const sessions = 200
	x, err := NewPermits(aligned(PermitBytes(sessions)), sessions, rng.Uint64())
	if err != nil {
		t.Fatal(err)
	}
	type pair struct {
		id     uint32
		remote [4]byte
	}
	want := map[pair]int{}
	total, full := 0, 0
	var all []pair
	for step := range 200_000 {
		p := pair{uint32(rng.IntN(30)), [4]byte{203, 0, 113, byte(rng.IntN(30))}}
		if grow := step/2000%2 == 0; total < sessions && (grow || rng.IntN(3) == 0) {
			if !x.Add(p.id, p.remote) {
				t.Fatalf("step %d: no room with %d sessions", step, total)
			}
			want[p]++
			total++
			all = append(all, p)
		} else if total > 0 {
			i := rng.IntN(len(all))
			q := all[i]
			all[i] = all[len(all)-1]
			all = all[:len(all)-1]
			x.Remove(q.id, q.remote)
			if want[q]--; want[q] == 0 {
				delete(want, q)
			}
			total--
		}
		if total == sessions {
			full++
		}
		if x.Has(p.id, p.remote) != (want[p] > 0) || x.Len() != len(want) {
			t.Fatalf("step %d: %+v: %v, want %d; %d of %d", step, p, x.Has(p.id, p.remote), want[p], x.Len(), len(want))
		}
		if step%1000 == 0 {
			for q := range want {
				if !x.Has(q.id, q.remote) {
					t.Fatalf("step %d: %+v is lost", step, q)
				}
			}
		}
	}
	if full == 0 {
		t.Fatal("never full")
	}
	x.Remove(99, [4]byte{}) // nobody's
	for name, f := range map[string]func() error{
		"short":     func() error { _, err := NewPermits(aligned(8), 10, 1); return err },
		"none":      func() error { _, err := NewPermits(nil, 0, 1); return err },
		"unaligned": func() error { _, err := NewPermits(aligned(PermitBytes(10) + 64)[1:], 10, 1); return err },
	} {
		if f() == nil {
			t.Errorf("%s: no error", name)
		}
	}
	if n := testing.AllocsPerRun(100, func() { x.Add(1, [4]byte{9}); x.Has(1, [4]byte{9}); x.Remove(1, [4]byte{9}) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}
