package xsk

import (
	"math/rand/v2"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// fakeRing lays a ring over ordinary memory; the test plays the kernel.
func fakeRing(size uint32, descs bool, start uint32) *ring {
	mem := make([]byte, 256+16*int(size))
	r := &ring{}
	r.lay(mem, &unix.XDPRingOffset{Producer: 0, Consumer: 64, Flags: 128, Desc: 192}, size, descs)
	*r.prod, *r.cons, r.head, r.seen = start, start, start, start
	return r
}

func TestRingNearWrap(t *testing.T) {
	for _, start := range []uint32{0, 1, 7, 1<<31 - 3, 1<<32 - 3} {
		r := fakeRing(8, false, start)
		if n := r.room(20); n != 8 {
			t.Fatalf("start %d: empty ring has room for %d, want 8", start, n)
		}
		for i := range uint32(8) {
			r.addrs[(r.head+i)&r.mask] = uint64(i)
		}
		r.head += 8
		if *r.prod != start {
			t.Fatalf("start %d: entries were visible before publish", start)
		}
		r.publish()
		if n := r.room(1); n != 0 {
			t.Fatalf("start %d: full ring has room for %d", start, n)
		}
		if n := r.pending(); n != 8 {
			t.Fatalf("start %d: pending %d, want 8", start, n)
		}
		*r.cons += 3
		if n := r.room(20); n != 3 {
			t.Fatalf("start %d: room %d after the kernel took 3", start, n)
		}
	}
}

func TestRingRefusesImpossibleIndex(t *testing.T) {
	for _, bad := range []uint32{1, 9, 1 << 31} {
		p := fakeRing(8, false, 100)
		*p.cons = 100 + bad
		p.seen = *p.cons
		if n := p.room(8); n != 0 {
			t.Errorf("kernel consumer %d ahead of us: room %d, want 0", bad, n)
		}
	}
	for _, bad := range []uint32{9, 1 << 31, 1<<32 - 1} {
		c := fakeRing(8, true, 100)
		*c.prod = 100 + bad
		if n := c.ready(8); n != 0 {
			t.Errorf("kernel producer %d ahead of a ring of 8: ready %d, want 0", bad, n)
		}
	}
}

// A socket on fake rings, the test as the kernel, any schedule: no frame is lost, doubled or reordered.
func TestRandomSchedules(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 1))
	for round := range 200 {
		start := rnd.Uint32()
		if round%2 == 0 {
			start = -uint32(rnd.IntN(20)) // wraps soon
		}
		const frames = 48
		u, err := NewUMEM(frames, 2048)
		if err != nil {
			t.Fatal(err)
		}
		size := func() uint32 { return 1 << (1 + rnd.IntN(5)) }
		s := &Socket{umem: u, fd: -1, tag: ownSocket}
		s.fill, s.comp = *fakeRing(size(), false, start), *fakeRing(size(), false, start)
		s.rx, s.tx = *fakeRing(size(), true, start), *fakeRing(size(), true, start)
		u.sockets = []*Socket{s}

		var kernel, sending []uint64 // frames inside the kernel, oldest first
		var held []Desc
		var arrived, got uint32 // frame numbers stamped into Len
		var sent, left []uint64
		buf := make([]Desc, 16)
		for range 400 {
			switch rnd.IntN(8) {
			case 0:
				s.Fill(rnd.IntN(20))
			case 1: // kernel takes from fill
				if *s.fill.cons != atomic.LoadUint32(s.fill.prod) {
					kernel = append(kernel, s.fill.addrs[*s.fill.cons&s.fill.mask])
					*s.fill.cons++
				}
			case 2: // kernel receives
				if len(kernel) > 0 && *s.rx.prod-*s.rx.cons < s.rx.size {
					s.rx.descs[*s.rx.prod&s.rx.mask] = Desc{Addr: kernel[0] + 256, Len: arrived}
					arrived++
					kernel = kernel[1:]
					*s.rx.prod++
				}
			case 3:
				n := s.Recv(buf[:rnd.IntN(len(buf)+1)])
				for _, d := range buf[:n] {
					if d.Len != got {
						t.Fatalf("seed %d round %d: received %d, want %d", seed, round, d.Len, got)
					}
					got++
					held = append(held, d)
				}
			case 4: // send some of what is held
				n := s.Send(held[:rnd.IntN(len(held)+1)])
				for _, d := range held[:n] {
					sent = append(sent, d.Addr)
				}
				held = held[n:]
			case 5: // kernel sends
				if *s.tx.cons != *s.tx.prod {
					a := s.tx.descs[*s.tx.cons&s.tx.mask].Addr
					left = append(left, a)
					sending = append(sending, a)
					*s.tx.cons++
				}
			case 6: // kernel completes
				if len(sending) > 0 && *s.comp.prod-*s.comp.cons < s.comp.size {
					s.comp.addrs[*s.comp.prod&s.comp.mask] = sending[0]
					sending = sending[1:]
					*s.comp.prod++
				}
			case 7:
				s.Complete()
				if len(held) > 0 && rnd.IntN(2) == 0 {
					u.Free(held[0].Addr)
					held = held[1:]
				}
			}
			if err := u.Check(len(held)); err != nil {
				t.Fatalf("seed %d round %d: %v", seed, round, err)
			}
		}
		for i, a := range left {
			if a != sent[i] {
				t.Fatalf("seed %d round %d: frame %d left as %d, want %d", seed, round, i, a, sent[i])
			}
		}
		u.sockets = nil
		u.reclaim(s)
		if got := u.FreeCount() + u.Limbo() + len(held); got != frames {
			t.Fatalf("seed %d round %d: %d frames after close, want %d", seed, round, got, frames)
		}
		u.rebound(0, 0)
		if got := u.FreeCount() + len(held); got != frames {
			t.Fatalf("seed %d round %d: %d frames after the queue was bound again, want %d", seed, round, got, frames)
		}
		if err := u.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

func TestFramesGivenBackTwiceAreRefused(t *testing.T) {
	u, err := NewUMEM(4, 2048)
	if err != nil {
		t.Fatal(err)
	}
	defer u.Close()
	a, _ := u.Alloc()
	u.Free(a + 300)
	u.Free(a)
	u.Free(1 << 40)
	if u.FreeCount() != 4 || u.Faults() != 2 {
		t.Errorf("free %d, faults %d: want 4, 2", u.FreeCount(), u.Faults())
	}
	s := &Socket{umem: u, fd: -1, tag: ownSocket, tx: *fakeRing(4, true, 0)}
	if s.Send([]Desc{{Addr: a}}); s.tx.pending() != 0 || u.Faults() != 3 {
		t.Errorf("a free frame was sent: pending %d, faults %d", s.tx.pending(), u.Faults())
	}
	if u.Check(0) == nil {
		t.Error("Check found nothing wrong")
	}
}

func TestNewUMEMRefuses(t *testing.T) {
	for _, c := range []struct{ frames, chunk int }{{0, 2048}, {-1, 2048}, {1<<26 + 1, 2048}, {16, 0}, {16, 1024}, {16, 3000}, {16, 1 << 20}} {
		if u, err := NewUMEM(c.frames, c.chunk); err == nil {
			u.Close()
			t.Errorf("%d frames of %d bytes were accepted", c.frames, c.chunk)
		}
	}
}

func TestHotPathDoesNotAllocate(t *testing.T) {
	u, err := NewUMEM(64, 2048)
	if err != nil {
		t.Fatal(err)
	}
	defer u.Close()
	s := &Socket{umem: u, fd: -1, tag: ownSocket}
	s.fill, s.comp, s.rx, s.tx = *fakeRing(64, false, 0), *fakeRing(64, false, 0), *fakeRing(64, true, 0), *fakeRing(64, true, 0)
	buf := make([]Desc, 32)
	moved := 0
	if n := testing.AllocsPerRun(100, func() {
		s.Fill(32)
		for *s.fill.cons != *s.fill.prod {
			s.rx.descs[*s.rx.prod&63] = Desc{Addr: s.fill.addrs[*s.fill.cons&63]}
			*s.fill.cons++
			*s.rx.prod++
		}
		k := s.Recv(buf)
		s.Send(buf[:k])
		for *s.tx.cons != *s.tx.prod {
			s.comp.addrs[*s.comp.prod&63] = s.tx.descs[*s.tx.cons&63].Addr
			*s.tx.cons++
			*s.comp.prod++
		}
		moved += s.Complete()
	}); n != 0 {
		t.Errorf("%v allocations a burst", n)
	}
	if moved != 101*32 || u.FreeCount() != 64 {
		t.Errorf("moved %d, free %d", moved, u.FreeCount())
	}
}

func BenchmarkRings(b *testing.B) {
	u, err := NewUMEM(64, 2048)
	if err != nil {
		b.Fatal(err)
	}
	defer u.Close()
	s := &Socket{umem: u, fd: -1, tag: ownSocket}
	s.fill, s.comp, s.rx, s.tx = *fakeRing(64, false, 0), *fakeRing(64, false, 0), *fakeRing(64, true, 0), *fakeRing(64, true, 0)
	buf := make([]Desc, 32)
	for b.Loop() {
		s.Fill(32)
		for i := range uint32(32) {
			s.rx.descs[(*s.rx.prod+i)&63] = Desc{Addr: s.fill.addrs[(*s.fill.cons+i)&63]}
		}
		*s.fill.cons += 32
		*s.rx.prod += 32
		s.Send(buf[:s.Recv(buf)])
		for i := range uint32(32) {
			s.comp.addrs[(*s.comp.prod+i)&63] = s.tx.descs[(*s.tx.cons+i)&63].Addr
		}
		*s.tx.cons += 32
		*s.comp.prod += 32
		s.Complete()
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/32, "ns/frame")
}
