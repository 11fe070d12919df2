package store

import (
	"sync/atomic"
	"testing"
	"time"
)

// TestMeter: the longest write is told for a minute at least and two at most, however often it is read.
func TestMeter(t *testing.T) {
	var m meter
	at := time.Unix(1000, 0)
	m.took(300*time.Millisecond, at)
	m.took(time.Millisecond, at.Add(time.Second))
	for _, c := range []struct{ after, want time.Duration }{{2 * time.Second, 300 * time.Millisecond}, {59 * time.Second, 300 * time.Millisecond}, {61 * time.Second, 300 * time.Millisecond},
		{100 * time.Second, 300 * time.Millisecond}, {122 * time.Second, 0}, {time.Hour, 0}} {
		if w := m.read(at.Add(c.after)); w.Longest != c.want || w.Count != 2 || w.Total != 301*time.Millisecond {
			t.Errorf("after %s: %+v, want the longest %s", c.after, w, c.want)
		}
	}
	m.took(2*time.Millisecond, at.Add(2*time.Hour))
	if w := m.read(at.Add(2*time.Hour + 3*longestFor)); w.Longest != 0 {
		t.Errorf("it is told for too long: %+v", w)
	}
}

// TestWritesAreMeasured: of entries and votes, with what the disk took.
func TestWritesAreMeasured(t *testing.T) {
	var pause atomic.Int64
	c := config(t.TempDir())
	c.Hooks = &Hooks{Sync: func() error { time.Sleep(time.Duration(pause.Load())); return nil }}
	s := open(t, c)
	if err := s.Bootstrap(); err != nil {
		t.Fatal(err)
	}
	propose(t, s, initEntry())
	before := s.Writes()
	if before.Count == 0 {
		t.Error("the beginning has written nothing")
	}
	pause.Store(int64(30 * time.Millisecond))
	propose(t, s, revise("a policy"))
	if w := s.Writes(); w.Count <= before.Count || w.Longest < 30*time.Millisecond || w.Total < before.Total+30*time.Millisecond {
		t.Errorf("%+v, before %+v", w, before)
	}
}
