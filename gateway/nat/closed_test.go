package nat

import (
	"math/bits"
	"math/rand/v2"
	"sync"
	"testing"

	"demarc/gateway/verdict"
)

// closeAll closes every block of an address and class, or opens it.
func closeAll(sp *Space, id AddrID, c Class, closed uint64) {
	for w := range BlockWords {
		sp.Close(id, c, w, closed)
	}
}

// TestClosedBlocks: nobody gets a new port of a closed block, be it of its owner, by lending or beside the other port of a pair; mappings live on and serve, and what was opened again is found.
func TestClosedBlocks(t *testing.T) {
	sp := NewSpace(1)
	id, err := sp.Register([4]byte{192, 0, 2, 1})
	if err != nil {
		t.Fatal(err)
	}
	var sh [2]*Shard
	for w := range sh {
		if sh[w], err = NewShard(aligned(Bytes(4096)), 4096, w, sp, 5); err != nil {
			t.Fatal(err)
		}
	}
	ask := func(w int, class Class, host byte, port uint16, want verdict.Reason) uint32 {
		t.Helper()
		n, r := sh[w].Map(&Request{Tenant: 1, Class: class, Inside: [4]byte{198, 18, 0, host}, Port: port, Pool: []AddrID{id}, Hold: 1 << 12}, rand.Uint64())
		if r != want {
			t.Fatalf("worker %d, host %d, port %d: %v, want %v", w, host, port, r, want)
		}
		return n
	}
	var first uint32
	for i := range byte(9) {
		first = ask(0, UDP, i, 5000, verdict.Pass)
		sh[0].Ref(first)
	}
	_, was := sh[0].maps[first].Public()
	closeAll(sp, id, UDP, ^uint64(0))
	for w := range sh {
		ask(w, UDP, 100, 5000, verdict.NATNoPort)
		ask(w, UDP, 8, 5001, verdict.NATNoPort) // the port beside is free
		ask(w, UDP, 100, 500, verdict.NATNoPort)
		ask(w, TCP, 100, 5000, verdict.Pass) // another class
	}
	if again := ask(0, UDP, 8, 5000, verdict.Pass); again != first {
		t.Errorf("a mapping in a closed block serves no new session: %d, want %d", again, first)
	}
	used := 0
	for w := range BlockWords {
		free, u := sp.Look(id, UDP, w)
		if used += bits.OnesCount64(u); free&u != 0 || free|u != ^uint64(0) || sp.Closed(id, UDP, w) != ^uint64(0) {
			t.Fatalf("word %d: free %x, used %x", w, free, u)
		}
	}
	if used != sh[0].Blocks()-1 { // one is of TCP
		t.Errorf("%d blocks are somebody's, want %d", used, sh[0].Blocks()-1)
	}
	word, bit := int(was>>6)/64, uint64(1)<<(was>>6&63)
	sp.Close(id, UDP, word, ^bit)
	for w := range sh { // its owner by its lists, the other by lending
		n := ask(w, UDP, 100+byte(w), 5000, verdict.Pass)
		if _, p := sh[w].maps[n].Public(); p>>6 != was>>6 {
			t.Errorf("worker %d has port %d, and only the block of port %d is open", w, p, was)
		}
	}
	sp.Close(id, UDP, word, ^uint64(0))
	other, open := (word+3)%BlockWords, uint64(1)<<20
	sp.Close(id, UDP, other, ^open)
	n := ask(1, UDP, 120, 5000, verdict.Pass)
	if _, p := sh[1].maps[n].Public(); int(p>>6) != other*64+20 {
		t.Errorf("port %d, and only block %d is open", p, other*64+20)
	}
	closeAll(sp, id, UDP, 0)
	for i := range byte(200) {
		ask(int(i&1), UDP, i, 6000, verdict.Pass)
	}
	m := Copied{Tenant: 1, Class: UDP, Inside: [4]byte{198, 18, 0, 250}, Port: 5, Addr: id, Public: 40000}
	closeAll(sp, id, UDP, ^uint64(0))
	if _, r := sh[0].Enter(&m); r != verdict.Pass {
		t.Errorf("what another node says is not entered in a closed block: %v", r)
	}
}

// TestWhoClosesSeesWhoClaims: a block that was seen as nobody's after it was closed stays nobody's, however workers claim and give back beside that.
func TestWhoClosesSeesWhoClaims(t *testing.T) {
	sp := NewSpace(1)
	id, err := sp.Register([4]byte{192, 0, 2, 1})
	if err != nil {
		t.Fatal(err)
	}
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for w := range 2 {
		s, err := NewShard(aligned(Bytes(64)), 64, w, sp, 5)
		if err != nil {
			t.Fatal(err)
		}
		wg.Go(func() {
			for i := uint32(0); ; i++ {
				select {
				case <-stop:
					return
				default:
				}
				n, r := s.Map(&Request{Tenant: 1, Class: UDP, Inside: [4]byte{198, 18, byte(w), byte(i)}, Port: 5000, Pool: []AddrID{id}}, rand.Uint64())
				if r == verdict.Pass {
					s.Ref(n)
					s.Unref(n, i)
				}
				s.Sweep(i, 64)
			}
		})
	}
	seen := 0
	for range 3000 {
		closeAll(sp, id, UDP, ^uint64(0))
		var free [BlockWords]uint64
		for w := range free {
			free[w], _ = sp.Look(id, UDP, w)
		}
		for range 3 {
			for w := range free {
				if now, used := sp.Look(id, UDP, w); used&free[w] != 0 && now&free[w] != free[w] {
					// It may be on its way back: a worker that found it closed. Its ports were never shown.
					for n := range 64 {
						if used&free[w]>>n&1 != 0 && sp.owner[w*64+n].Load()>>(8*UDP)&0xff != 0 {
							t.Fatalf("block %d was closed and nobody's, and is somebody's now", w*64+n)
						}
					}
					seen++
				}
			}
		}
		closeAll(sp, id, UDP, 0)
	}
	close(stop)
	wg.Wait()
	t.Logf("%d times a claim was met on its way back", seen)
}
