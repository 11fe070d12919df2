package e2e

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	nodes "demarc/gateway/trio"
)

var (
	faultTime = flag.Duration("pair.faults", 2*time.Second, "how long TestPairFaults does harm")
	faultSeed = flag.Uint64("pair.seed", 0, "of the harm; 0 = drawn")
)

// Harm of all kinds, one on top of the other, in any order: nodes are killed, stopped and cut off, links lose what goes over them, one way or both. Whatever happens, what
// either gateway has sent under the group's address is judged by the wire alone: never two owners, never a packet to another host, never a public port with two
// hosts. When all is well again one of them serves. The same seed does the same harm, though never at the same nanosecond.
func TestPairFaults(t *testing.T) {
	seed := *faultSeed
	if seed == 0 {
		seed = rand.Uint64()
	}
	t.Logf("seed %d", seed)
	dice := rand.New(rand.NewPCG(seed, 11))
	p := newPair(t, "pairfaults", "")
	p.start()
	p.serve(5*time.Second, p.GW1)
	began := time.Now()
	var story strings.Builder
	tell := func(format string, args ...any) {
		fmt.Fprintf(&story, "%7.3f s  %s\n", time.Since(began).Seconds(), fmt.Sprintf(format, args...))
	}
	defer func() {
		if t.Failed() {
			t.Logf("began %s\n%s", began.Format("15:04:05.000000"), &story)
		}
	}()
	// What is wrong now, and when it ends.
	type wrong struct {
		what string
		end  time.Time
		undo func()
	}
	var list []wrong
	busy := map[string]bool{} // nodes that are stopped or down
	mend := func(all bool) {
		var left []wrong
		for _, w := range list {
			if all || time.Now().After(w.end) {
				w.undo()
				tell("  over: %s", w.what)
			} else {
				left = append(left, w)
			}
		}
		list = left
	}
	between := func(a, b time.Duration) time.Duration { return a + time.Duration(dice.Int64N(int64(b-a))) }
	for time.Since(began) < *faultTime {
		mend(false)
		a, b := p.Nodes()[dice.IntN(3)], p.Nodes()[dice.IntN(3)]
		for b == a {
			b = p.Nodes()[dice.IntN(3)]
		}
		w := wrong{end: time.Now().Add(between(20*time.Millisecond, 700*time.Millisecond))}
		both := dice.IntN(2) == 0
		switch dice.IntN(5) {
		case 0:
			if busy[a.Name] {
				break
			}
			busy[a.Name] = true
			w.what = a.Name + " is killed"
			a.Kill()
			w.undo = func() { check(t, a.Start(t.Context())); busy[a.Name] = false }
		case 1, 2:
			if busy[a.Name] {
				break
			}
			busy[a.Name] = true
			w.what = a.Name + " is stopped"
			check(t, unix.Kill(a.Pid(), unix.SIGSTOP))
			w.undo = func() { check(t, unix.Kill(a.Pid(), unix.SIGCONT)); busy[a.Name] = false }
		case 3:
			share := 0.05 + 0.45*dice.Float64()
			w.what = fmt.Sprintf("%.0f %% of what %s sends %s is lost (both ways: %v)", 100*share, a.Name, b.Name, both)
			w.undo = p.lossy(a, b, share, both)
		case 4:
			w.what = fmt.Sprintf("%s does not reach %s (both ways: %v)", a.Name, b.Name, both)
			w.undo = p.lossy(a, b, 1, both)
		}
		if w.undo != nil {
			tell("%s", w.what)
			list = append(list, w)
		}
		time.Sleep(between(5*time.Millisecond, 250*time.Millisecond))
	}
	mend(true)
	check(t, p.Whole(t.Context(), 30*time.Second, nil))
	owner, err := p.Owner(t.Context(), 10*time.Second)
	check(t, err)
	tell("%s serves", owner.Name)
	time.Sleep(200 * time.Millisecond)
	seen, v := p.end()
	worst, _ := seen.Worst(began, time.Now())
	lost, sent := seen.Lost()
	t.Logf("%d frames judged, owners in turn: %s; the worst silence was %s (%s), %d of %d packets lost", v.Frames, terms(v), worst.Gap, worst.Flow, lost, sent)
}

// lossy has a way lose packets until what it returns is called.
func (p *pairLab) lossy(a, b *nodes.Node, share float64, both bool) (undo func()) {
	p.t.Helper()
	set := func(share float64) {
		check(p.t, p.Lose(a, b, share))
		if both {
			check(p.t, p.Lose(b, a, share))
		}
	}
	set(share)
	return func() { set(0) }
}
