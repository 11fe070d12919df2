package store

import (
	"fmt"
	"testing"
	"time"
)

// TestSpreadAgain: what is agreed on while the word of an earlier change is on its way reaches the others at once too, and not with what Raft says by itself every now and then.
func TestSpreadAgain(t *testing.T) {
	x := newTrio(t)
	for i := range 3 {
		x.c[i].Commit = time.Minute
		x.stop(i)
		x.start(i)
	}
	lead := x.leader(0, 1, 2)
	x.change("first", lead)
	for i := range 10 {
		propose(t, x.s[lead], revise(fmt.Sprint("a", i)))
		x.s[lead].Spread()
		r := propose(t, x.s[lead], revise(fmt.Sprint("b", i)))
		x.s[lead].Spread()
		eventually(t, fmt.Sprint("revision ", r.Revision, " is everywhere"), func() bool {
			return x.s[0].State().Last >= r.Revision && x.s[1].State().Last >= r.Revision && x.s[2].State().Last >= r.Revision
		})
	}
}
