package lease

import (
	"sync"
	"testing"
	"unsafe"
)

// The XDP program reads the same bytes.
var _ [32]byte = [unsafe.Sizeof(Deadline{})]byte{}
var _ [8192]byte = [unsafe.Sizeof(Deadlines{})]byte{}

func TestADeadlineIsTheFirstMomentAtWhichNothingLeaves(t *testing.T) {
	var d Deadlines
	for _, c := range []struct {
		until, now uint64
		want       bool
	}{{0, 0, false}, {0, 1, false}, {10, 9, true}, {10, 10, false}, {10, 11, false}, {10, ^uint64(0), false}} {
		d.Write(7, 1, c.until)
		if got := d.May(7, c.now); got != c.want {
			t.Errorf("until %d, now %d: %t", c.until, c.now, got)
		}
	}
	d.Write(7, 2, 10)
	if !d.May(7, 9) || d.Epoch(7) != 2 || d.May(6, 9) || d.May(8, 9) || d.May(255, 9) {
		t.Error("a deadline is of one group alone")
	}
}

func TestWhatIsOfNoGroupNeedsNoDeadline(t *testing.T) {
	var d Deadlines
	d.Write(0, 1, 100)
	if d.Until(0) != 0 || d.Epoch(0) != 0 {
		t.Error("entry 0 was written")
	}
	if !d.May(0, ^uint64(0)) {
		t.Error("a frame of no group may not leave")
	}
	var none *Deadlines
	if none.May(1, 0) || none.Until(1) != 0 || none.Epoch(1) != 0 || !none.May(0, 5) {
		t.Error("without a table a group is served, or what is nobody's is not")
	}
}

func TestWhatComesBehindADeadlineIsKeptForAWhile(t *testing.T) {
	var d Deadlines
	d.Write(7, 1, 50)
	d.Keep(7, 100)
	for _, c := range []struct {
		now  uint64
		want bool
	}{{49, false}, {50, true}, {99, true}, {100, false}} {
		if got := d.Keeps(7, c.now); got != c.want {
			t.Errorf("served until 50, kept until 100, at %d: %t", c.now, got)
		}
	}
	if d.May(7, 60) || d.Keeps(6, 60) || d.Keeps(0, 60) {
		t.Error("what is kept may leave, or is of another group")
	}
	d.Keep(0, 100)
	d.Keep(7, 0)
	var none *Deadlines
	if d.Keeps(0, 60) || d.Keeps(7, 60) || none.Keeps(7, 60) {
		t.Error("kept without having been told so")
	}
}

// Whoever reads never finds an earlier term's deadline under a later term.
func TestANewTermBeginsWithoutADeadline(t *testing.T) {
	var d Deadlines
	var wg sync.WaitGroup
	const terms = 20000
	wg.Go(func() {
		for e := uint64(1); e <= terms; e++ {
			d.Write(3, e, e*10)
		}
	})
	for d.Epoch(3) < terms {
		e := d.Epoch(3)
		if u := d.Until(3); u != 0 && u < e*10 {
			t.Fatalf("in term %d until %d", e, u)
		}
	}
	wg.Wait()
}
