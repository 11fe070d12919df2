package store

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"time"

	"demarc/cluster/command"
	"demarc/cluster/failover"
)

func claim(epoch, after uint64, node string) *command.Entry {
	return &command.Entry{Level: 1, Kind: command.KindGroup, Group: &failover.Entry{Kind: failover.KindClaim, Group: "east", After: after, Term: failover.Term{Epoch: epoch, Node: node, Life: 1},
		Alone: failover.Keep, Cause: failover.CauseForce, Why: failover.RightForce}}
}

func (x *trio) newest(i int) (uint64, []string) {
	x.t.Helper()
	v, names, err := x.s[i].Newest()
	if err != nil {
		x.t.Fatal(err)
	}
	slices.Sort(names)
	return v, names
}

// TestNewest: every member gives the newest members the same number, also after a start from a snapshot; a leader that is cut off counts by what it has written and nobody
// agreed on, and goes back when that is taken off its log. What its log has beyond what was carried out can be read.
func TestNewest(t *testing.T) {
	x := pacedTrio(t, time.Second, 800*time.Millisecond) // what follows a cut happens within the lease, on a busy machine too
	all := []string{"n0", "n1", "n2"}
	was, _ := x.newest(0)
	for i := range 3 {
		eventually(t, "all have the same", func() bool {
			v, names := x.newest(i)
			return v == was && v > 0 && slices.Equal(names, all)
		})
	}
	old := x.leader(0, 1, 2)
	rest := slices.DeleteFunc([]int{0, 1, 2}, func(i int) bool { return i == old })
	propose(t, x.s[old], claim(1, 0, "a"))
	x.level(0, 1, 2)
	at := x.s[old].State().Index
	x.split([]int{old}, rest)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	_, _ = x.s[old].Propose(ctx, claim(2, 1, "b"))                                     // nobody agrees
	go func() { _ = x.s[old].Remove(fmt.Sprint("n", rest[0]), 20*time.Millisecond) }() // nor to this
	eventually(t, "who is cut off counts by its own log", func() bool {
		v, names := x.newest(old)
		return v > was && len(names) == 2
	})
	var beyond []string
	if err := x.s[old].Beyond(at, func(e *command.Entry) bool { beyond = append(beyond, e.Group.Term.Node); return true }); err != nil || !slices.Equal(beyond, []string{"b"}) {
		t.Errorf("beyond what was carried out: %v, %v", beyond, err)
	}
	next := x.leader(rest...)
	propose(t, x.s[next], claim(2, 1, "c"))
	x.split()
	eventually(t, "it has gone back", func() bool {
		v, names := x.newest(old)
		return v == was && slices.Equal(names, all) && x.s[old].State().Groups.Groups["east"].Node == "c"
	})
	for i := range 12 {
		propose(t, x.s[x.leader(0, 1, 2)], revise(fmt.Sprint("policy ", i)))
	}
	x.level(0, 1, 2)
	x.c[old].TrailingEntries = 2
	x.stop(old)
	x.start(old)
	x.level(0, 1, 2)
	if err := x.s[old].Compact(); err != nil {
		t.Fatal(err)
	}
	if first, _ := x.s[old].disk.FirstIndex(); first <= was {
		t.Fatalf("the log begins with %d, members are entry %d: nothing was shortened", first, was)
	}
	x.stop(old)
	x.start(old)
	if v, names := x.newest(old); v != was || !slices.Equal(names, all) {
		t.Errorf("after a start from a snapshot: %d %v, want %d %v", v, names, was, all)
	}
	k, err := readKept(x.c[old].Dir)
	if err != nil {
		t.Fatal(err)
	}
	if c := x.s[old].Carried(); c.Index < k.Index {
		t.Errorf("carried out up to %d, and %d was kept", c.Index, k.Index)
	}
}
