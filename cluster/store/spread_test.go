package store

import (
	"fmt"
	"testing"
	"time"
)

// TestSpreadAgain: what is agreed on while the word of an earlier change is on its way reaches the others at once too, and not with what Raft says by itself every now and then.
func TestSpreadAgain(t *testing.T) {
	for range 5 { // where the lead is lost on a busy machine nobody spreads what the next leader has agreed on
		if spreadAgain(t) {
			return
		}
	}
	t.Error("the lead was lost in five tries")
}

// spreadAgain reports whether one leader was there all the while.
func spreadAgain(t *testing.T) bool {
	x := newTrio(t)
	defer func() {
		for i := range x.s {
			x.stop(i)
		}
	}()
	for i := range 3 {
		x.c[i].Commit = time.Minute
		x.stop(i)
		x.start(i)
	}
	s := x.s[x.leader(0, 1, 2)]
	term := s.Term()
	leads := func() bool { return s.Leads() && s.Term() == term }
	if _, err := s.Propose(t.Context(), revise("first")); err != nil && leads() {
		t.Fatal(err)
	}
	for i := range 10 {
		var last uint64
		for _, text := range []string{fmt.Sprint("a", i), fmt.Sprint("b", i)} {
			r, err := s.Propose(t.Context(), revise(text))
			if err != nil && leads() {
				t.Fatal(err)
			}
			s.Spread()
			last = r.Revision
		}
		eventually(t, fmt.Sprint("revision ", last, " is everywhere"), func() bool {
			return !leads() || x.s[0].State().Last >= last && x.s[1].State().Last >= last && x.s[2].State().Last >= last
		})
		if !leads() {
			return false
		}
	}
	return true
}
