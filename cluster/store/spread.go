package store

import "time"

// Spread has followers learn at once that what was agreed on last is agreed on. Raft tells them with the next entry, or in an empty message that it sends every now
// and then (Config.Commit): shorter would be talk day and night for a few changes a day. So after a change there is one more entry, which says nothing.
// Whoever leads does it; it returns at once, and whether it comes to anything does not matter.
func (s *Store) Spread() {
	if v, err := s.Voters(); err != nil || len(v) < 2 || s.disk.refuses() != nil || !s.spreading.CompareAndSwap(false, true) {
		return
	}
	f := s.raft.Barrier(time.Second)
	go func() {
		_ = s.wait(f)
		s.spreading.Store(false)
	}()
}
