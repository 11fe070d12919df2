package nat

import (
	"testing"

	"demarc/gateway/verdict"
)

// TestEnter: a mapping of another node gets exactly its port, from whoever has the block; what has another mapping is refused; and after it has left, or while it
// rests, the port may be anybody's at once. With another worker it rests until that has looked.
func TestEnter(t *testing.T) {
	sp := NewSpace(2)
	id, err := sp.Register([4]byte{192, 0, 2, 1})
	if err != nil {
		t.Fatal(err)
	}
	var sh [2]*Shard
	for w := range sh {
		if sh[w], err = NewShard(aligned(Bytes(8)), 8, w, sp, 5); err != nil {
			t.Fatal(err)
		}
	}
	at := func(inside byte, public uint16) *Copied {
		return &Copied{Tenant: 1, Class: UDP, Inside: [4]byte{198, 18, 0, inside}, Port: 5000, Addr: id, Public: public, Hold: 1 << 12}
	}
	enter := func(w int, m *Copied, want verdict.Reason) uint32 {
		t.Helper()
		n, r := sh[w].Enter(m)
		if r != want {
			t.Fatalf("worker %d enters port %d of host %v: %v, want %v", w, m.Public, m.Inside, r, want)
		}
		if r == verdict.Pass {
			if a, p := sh[w].Mapping(n).Public(); a != id || p != m.Public {
				t.Fatalf("it has port %d, want %d", p, m.Public)
			}
			sh[w].Ref(n)
			if o, ok := sp.Owner(id, UDP, m.Public); !ok || o != w {
				t.Errorf("packets to port %d go to worker %d, want %d", m.Public, o, w)
			}
		}
		return n
	}
	one := enter(0, at(1, 20001), verdict.Pass)
	lent := enter(1, at(2, 20002), verdict.Pass) // the block is worker 0's
	if again := enter(0, at(1, 20001), verdict.Pass); again != one {
		t.Errorf("the same mapping twice is %d and %d", one, again)
	}
	enter(0, at(3, 20001), verdict.SessionCollision)
	enter(1, at(3, 20001), verdict.SessionCollision)
	enter(0, at(3, 20002), verdict.SessionCollision)
	sh[0].Leave(one)
	sh[0].Leave(one)
	sh[1].Leave(lent)
	other := enter(1, at(4, 20001), verdict.Pass) // at once: no rest
	enter(0, at(5, 20002), verdict.Pass)
	for w := range 2 { // as an owner ends it: the port rests, in the own block and in another worker's
		sh[1-w].Unref(other, 1)
		m := at(6+byte(w), 20001)
		if b := blockOf(id, UDP, 20001); sp.owner[numberOf(b)].Load()>>(8*UDP)&0xff != uint32(w+1) {
			enter(w, m, verdict.SessionCollision)
			for _, s := range sh {
				s.Sweep(2, 100)
			}
			enter(w, m, verdict.SessionCollision) // this node may be who gives the ports to hosts
			sp.Foreign(id, true)
			for _, s := range sh {
				s.Sweep(2, 100)
			}
			sp.Foreign(id, false)
		}
		other = enter(w, m, verdict.Pass)
		use := make([]Use, 1)
		for _, s := range sh {
			s.Use(use)
		}
		if use[0].Held != 0 {
			t.Errorf("%d ports are held, want none", use[0].Held)
		}
	}
	for i := range uint16(7) {
		enter(0, at(10+byte(i), 30000+i), verdict.Pass)
	}
	enter(0, at(30, 30100), verdict.NATMappingTableFull)
}
