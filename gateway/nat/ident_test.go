package nat

import (
	"math/rand/v2"
	"sync"
	"testing"
	"time"
)

// No name comes twice within Reassembly to two hosts, at whatever pace they ask, and one who asks alone is never refused.
func TestIdentsAreUnique(t *testing.T) {
	src, dst := [4]byte{192, 0, 2, 16}, [4]byte{203, 0, 113, 11}
	rng := rand.New(rand.NewPCG(5, 6))
	x := &Idents{Seed: 99}
	type use struct {
		host uint32
		at   uint64
	}
	last := map[uint16]use{}
	now, given, refused := uint64(1e12), 0, 0
	take := func(host uint32) bool {
		look, can := x.Look(src, dst, 17, host, now)
		id, ok := x.Take(src, dst, 17, host, now)
		if ok != can || ok && id != look {
			t.Fatalf("looked like %d (%v), was %d (%v)", look, can, id, ok)
		}
		if !ok {
			refused++
			return false
		}
		if id < WholeIdents {
			t.Fatalf("%d is for whole packets", id)
		}
		if u, was := last[id]; was && u.host != host && now-u.at < uint64(Reassembly) {
			t.Fatalf("%d is %d's, and was %d's %v ago", id, host, u.host, time.Duration(now-u.at))
		}
		last[id] = use{host, now}
		given++
		return true
	}
	for range 40 {
		hosts, pace := 1+rng.IntN(4), 1+rng.Uint64N(2e6)
		for range 20000 {
			now += rng.Uint64N(2 * pace)
			take(1 + uint32(rng.IntN(hosts)))
		}
		now += rng.Uint64N(2 * uint64(Reassembly))
	}
	if refused == 0 || given < 200000 {
		t.Fatalf("%d given, %d refused", given, refused)
	}
	take(77) // who was here before him nobody remembers for longer than
	now += uint64(Reassembly) + 2e6
	for n := range 200000 { // one alone overtakes himself
		if now += 1e5; !take(77) {
			t.Fatalf("refused after %d, and nobody else asks", n)
		}
	}
	before := refused
	take(78)
	if refused != before+1 {
		t.Fatal("another one was given a name that is all over the place")
	}
	now += uint64(Reassembly) + 2e6
	if take(78); refused != before+1 {
		t.Fatal("and after half a minute he still was not")
	}
}

// One who asks alone is never refused, however long he does: ticks are told apart by their sign for 26 days only, and begin anew after 52.
func TestIdentsOfAMonth(t *testing.T) {
	src, dst := [4]byte{192, 0, 2, 16}, [4]byte{203, 0, 113, 11}
	x := &Idents{Seed: 99}
	now, refused := uint64(1e12), 0
	for day := range 120 {
		for range 20 * 60 { // a minute of ten a second, ten thousand of which are asked for at once in between
			if _, ok := x.Take(src, dst, 17, 5, now); !ok {
				refused++
			}
			now += 50e6
		}
		for range 40_000 {
			if _, ok := x.Take(src, dst, 17, 5, now); !ok {
				refused++
			}
		}
		if refused > 0 {
			t.Fatalf("on day %d: %d were refused", day, refused)
		}
		now += uint64(24 * time.Hour)
	}
}

// All workers draw from one word.
func TestIdentsOfManyWorkers(t *testing.T) {
	x := &Idents{Seed: 3}
	var mu sync.Mutex
	seen := map[uint16]bool{}
	var wg sync.WaitGroup
	for w := range 4 {
		wg.Go(func() {
			var mine []uint16
			for range 5000 {
				id, ok := x.Take([4]byte{1}, [4]byte{2}, 17, uint32(w)+1, 1e12)
				if !ok {
					t.Error("refused")
					return
				}
				mine = append(mine, id)
			}
			mu.Lock()
			defer mu.Unlock()
			for _, id := range mine {
				if seen[id] {
					t.Errorf("%d twice", id)
				}
				seen[id] = true
			}
		})
	}
	wg.Wait()
}
