package store

import (
	"sync"
	"time"
)

// Writes is what this node's log has taken of its disk: entries, and term and vote. A standby that takes over waits for two of them here or at whoever leads, and two elsewhere.
type Writes struct {
	Count   uint64        // since the store was opened
	Total   time.Duration // that they took
	Longest time.Duration // of the last minute, and up to the one before
}

// longestFor is for how long the longest write is kept at least.
const longestFor = time.Minute

// meter measures them.
type meter struct {
	mu     sync.Mutex
	w      Writes
	since  time.Time     // of longest
	now    time.Duration // the longest since then
	before time.Duration // and of as long before
}

// took notes a write that ended at a time.
func (m *meter) took(d time.Duration, at time.Time) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.turn(at)
	m.w.Count++
	m.w.Total += d
	m.now = max(m.now, d)
}

func (m *meter) turn(at time.Time) {
	gone := at.Sub(m.since)
	if gone < longestFor {
		return
	}
	m.before = 0
	if gone < 2*longestFor {
		m.before = m.now
	}
	m.since, m.now = at, 0
}

func (m *meter) read(at time.Time) Writes {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.turn(at)
	m.w.Longest = max(m.now, m.before)
	return m.w
}

// timed measures a write that has gone to the engine.
func (d *disk) timed(fn func() error) error {
	began := time.Now()
	err := d.guard(fn)
	if err == nil {
		end := time.Now()
		d.meter.took(end.Sub(began), end)
	}
	return err
}

// Writes says what the log's writes took.
func (s *Store) Writes() Writes { return s.disk.meter.read(time.Now()) }
