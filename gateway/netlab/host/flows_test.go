package host

import (
	"testing"
	"time"
)

// Of more silences than are held the longest are, and how long a missing one may have been is said.
func TestLongestSilencesStay(t *testing.T) {
	var list []Silence
	var floor int64
	at, longest := int64(1), map[int64]bool{}
	for i := range int64(100_000) {
		long := int64(20*time.Millisecond) + i*7919%100_000
		if i%10_000 == 9 {
			long += int64(time.Second)
			longest[at] = true
		}
		list = silence(list, &floor, at, at+long)
		at += long
	}
	if len(list) > mostSilences || floor < int64(20*time.Millisecond) || floor > int64(21*time.Millisecond) {
		t.Fatalf("%d are held, and those up to %s may be missing", len(list), time.Duration(floor))
	}
	for i, s := range list {
		if delete(longest, s.From); int64(s.Long()) <= floor {
			t.Errorf("one of %s is held, of those up to %s some are missing", s.Long(), time.Duration(floor))
		}
		if i > 0 && s.From < list[i-1].To {
			t.Error("they are not in order")
		}
	}
	if len(longest) > 0 {
		t.Errorf("%d of the longest are missing", len(longest))
	}
	if n := len(silence(nil, new(int64), 5, 5+int64(Shortest))); n != 0 {
		t.Error("what is no longer than Shortest counts")
	}
}
