package cluster

import (
	"sync/atomic"
	"time"

	"demarc/cluster/failover"
)

// word is what was heard of a member beside Raft. Several goroutines write it.
type word struct {
	at    atomic.Int64  // when it last spoke itself, ns since Driver.born
	life  atomic.Uint64 // of the process that did
	ended atomic.Uint64 // of one that its parent has said to be over; 0 = none
}

// hear notes who has spoken. It returns true when that was the parent of the process which had spoken before, and that process has ended: its parent says so once none of its threads runs
// again. Of an earlier process, or one that nobody here has heard, it says nothing of now.
func (d *Driver) hear(from string, m failover.Message) (died bool) {
	w, ok := d.words.Load(from)
	if !ok {
		w, _ = d.words.LoadOrStore(from, new(word))
	}
	x := w.(*word)
	switch {
	case m.Last:
		return m.Life == x.life.Load() && x.ended.Swap(m.Life) != m.Life
	case m.Life != x.ended.Load(): // else it was on its way
		x.life.Store(m.Life)
		x.at.Store(int64(time.Since(d.born)))
	}
	return false
}

// Heard is when a member was last heard, by any path; the zero time = never. It is Go's own clock, as Raft's last contact is.
func (d *Driver) Heard(name string) time.Time {
	if w, ok := d.words.Load(name); ok {
		if at := w.(*word).at.Load(); at > 0 {
			return d.born.Add(time.Duration(at))
		}
	}
	return time.Time{}
}

// Ended reports whether the process of a member has ended, and no later one was heard.
func (d *Driver) Ended(name string) bool {
	w, ok := d.words.Load(name)
	if !ok {
		return false
	}
	x := w.(*word)
	life := x.ended.Load()
	return life != 0 && life == x.life.Load()
}
