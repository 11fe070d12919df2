//go:build !race

// The race detector cannot know a sequence word: it would report the very reads that the protocol makes safe.

package conntrack

import (
	"sync/atomic"
	"testing"
	"time"
	"unsafe"

	"demarc/gateway/flow"
	"demarc/gateway/verdict"
)

// read is what a second executor does: index, sequence word, copy word by word, sequence word.
func read(t *Table, k *flow.Key, h uint64, c *Session) (slot uint32, ok bool) {
	tag := uint16(tagOf(h))
	at := t.home(h)
	for range 3 {
		b := &t.buckets[at]
		var w [3]uint64
		for i := range w {
			w[i] = atomic.LoadUint64(&b.words[i])
		}
		for i := range bucketSlots {
			if uint16(w[i>>2]>>(uint(i&3)*16)) != tag {
				continue
			}
			r := Ref(atomic.LoadUint32((*uint32)(&b.refs[i])))
			s := &t.sessions[r.Slot()]
			seq := atomic.LoadUint32(&s.Seq)
			if seq&1 != 0 {
				continue
			}
			from, to := (*[16]uint64)(unsafe.Pointer(s)), (*[16]uint64)(unsafe.Pointer(c))
			for j := range from {
				to[j] = atomic.LoadUint64(&from[j])
			}
			if atomic.LoadUint32(&s.Seq) == seq && c.Key(r.Dir()) == *k {
				return r.Slot(), true
			}
		}
		if uint16(w[2]>>32) == 0 {
			return 0, false
		}
		if at++; at == t.n {
			at = 0
		}
	}
	return 0, false
}

// Each session's fields say all the same number. A reader that runs while sessions come, change and go in few slots must never get one
// whose fields differ.
func TestConcurrentReaderSeesWholeSessions(t *testing.T) {
	tab := newTable(t, 8)
	session := func(n, version uint32) *Session {
		s := numbered(int(n) * 4)
		s.Rule, s.ViewGen, s.Mapping = flow.RuleID(version), version, version
		s.NextHop = [2]uint16{uint16(version), uint16(version)}
		return s
	}
	var done atomic.Bool
	var found atomic.Int64
	torn := 0
	reader := func() {
		var c Session
		for i := 0; !done.Load(); i++ {
			k := session(uint32(i%6), 0).Key(i & 1)
			if _, ok := read(tab, &k, tab.Hash(&k), &c); !ok {
				continue
			}
			found.Add(1)
			if v := c.ViewGen; uint32(c.Rule) != v || c.Mapping != v || c.NextHop != [2]uint16{uint16(v), uint16(v)} {
				torn++
			}
		}
	}
	ended := newDone(reader)
	version := uint32(0)
	var slots [6]uint32
	var live [6]bool
	const enough = 100
	began := time.Now()
	// The reader may be without a processor for as long as all that takes: then it goes on until they have met.
	for i := uint32(0); i < 400_000 || found.Load() < enough && time.Since(began) < 10*time.Second; i++ {
		version++
		n := (i * 7) % 6
		switch {
		case !live[n]:
			slot, r := tab.Create(session(n, version), 0, 1)
			if r != verdict.Pass {
				t.Error(r)
			}
			slots[n], live[n] = slot, true
		case i%3 == 0:
			tab.Remove(slots[n])
			live[n] = false
		default:
			s := tab.At(slots[n])
			s.BeginWrite()
			s.Rule, s.ViewGen, s.Mapping = flow.RuleID(version), version, version
			s.NextHop = [2]uint16{uint16(version), uint16(version)}
			s.EndWrite()
		}
	}
	done.Store(true)
	<-ended
	t.Logf("%d whole sessions read", found.Load())
	if torn != 0 {
		t.Errorf("%d of %d sessions were torn", torn, found.Load())
	}
	if n := found.Load(); n < enough {
		t.Errorf("the reader found only %d sessions", n)
	}
}

func newDone(f func()) chan struct{} {
	c := make(chan struct{})
	go func() {
		f()
		close(c)
	}()
	return c
}
