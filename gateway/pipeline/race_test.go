package pipeline

import (
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"

	"demarc/gateway/nat"
	"demarc/gateway/snapshot"
	"demarc/gateway/verdict"
)

// Shards run each in a goroutine of its own, as workers do, while control activates one view after the other: forwards come and go. Run
// with -race this is the proof that what they share is shared by atomic words alone.
func TestShardsBesideEachOtherAndControl(t *testing.T) {
	const workers, rounds, views = 2, 500, 30
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	w := newWorld(t, workers, modelPolicy)
	var latest atomic.Pointer[snapshot.View]
	latest.Store(w.view)
	var wg sync.WaitGroup
	var over atomic.Bool
	defer over.Store(true)
	for i, sh := range w.shards {
		rng := rand.New(rand.NewPCG(seed, uint64(i)))
		var frames [][]byte
		a := w.view.TenantByName("alpha").ID
		for h := range 40 {
			for p := range 8 {
				f := udp4(t, 1, fmt.Sprintf("198.18.10.%d", 20+h), uint16(4000+p), "203.0.113.70", 1000)
				s := Slot{Port: 1}
				s.Buf, s.Len = f, len(f)
				if sh.receive(&s) != verdict.Hand && s.Reason == verdict.Unset && s.Tenant == a {
					frames = append(frames, f)
				}
			}
		}
		if len(frames) == 0 {
			t.Fatalf("worker %d has no host", i)
		}
		wg.Go(func() {
			var buf [2048]byte
			slots, now := make([]Slot, 1), uint64(1e12)
			sent, n := 0, 0
			for ; n < rounds || !over.Load(); n++ {
				if v := latest.Load(); v != sh.View() {
					sh.SetView(v)
				}
				s := &slots[0]
				*s = Slot{Port: 1}
				f := frames[rng.IntN(len(frames))]
				s.Buf, s.Off, s.Len = buf[:], 256, copy(buf[256:], f)
				now += uint64(rng.IntN(5e9)) // sessions end, ports are held and freed, blocks go back
				sh.Process(slots, now)
				if s.Verdict == verdict.Send {
					sent++
				} else if s.Verdict != verdict.Drop || s.Reason != verdict.SessionCut {
					t.Errorf("worker %d: %s (%s)", sh.Worker, s.Verdict, s.Reason)
					return
				}
				sh.Maintain(now, 4096)
				sh.Rejudge(now, 64)
			}
			if sent < n/2 {
				t.Errorf("worker %d sent %d of %d", sh.Worker, sent, n)
			}
		})
	}
	forwarded := replaceOnce(t, modelPolicy, "port = 8080\ninside = \"198.18.10.11\"\ninside_port = 80", "port = 4002\ninside = \"198.18.10.11\"\ninside_port = 80")
	for i := range views {
		latest.Store(compileView(t, w.node, w.space, latest.Load(), []string{forwarded, modelPolicy}[i%2]))
	}
	over.Store(true)
	wg.Wait()
	w.view = latest.Load()
	type public struct {
		a nat.AddrID
		c nat.Class
		p uint16
	}
	seen := map[public]int{}
	for i, sh := range w.shards {
		sh.SetView(w.view)
		for !sh.Settled() {
			sh.Rejudge(sh.now, 1000)
		}
		sh.NAT.Each(0, sh.NAT.Capacity(), func(_ uint32, m *nat.Mapping) bool {
			a, p := m.Public()
			k := public{a, m.Class(), p}
			if other, taken := seen[k]; taken {
				t.Errorf("port %d is worker %d's and %d's", p, other, i)
			}
			seen[k] = i
			if owner, ok := w.space.Owner(a, m.Class(), p); !ok || owner != i {
				t.Errorf("port %d of worker %d is listed as worker %d's", p, i, owner)
			}
			return true
		})
	}
	w.whole()
}
