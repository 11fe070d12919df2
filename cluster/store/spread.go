package store

import "time"

// Spread has followers learn at once that what was agreed on last is agreed on. Raft tells them with the next entry, or in an empty message that it sends every now
// and then (Config.Commit): shorter would be talk day and night for a few changes a day. So after a change there is one more entry, which says nothing.
// Whoever leads does it; it returns at once, and whether it comes to anything does not matter. What is agreed on while one is on its way gets another one: that may have
// been written before.
func (s *Store) Spread() {
	if v, err := s.Voters(); err != nil || len(v) < 2 || s.disk.refuses() != nil || s.spreading.Add(1) > 1 {
		return
	}
	go func() {
		for asked := s.spreading.Load(); ; asked = s.spreading.Load() {
			_ = s.wait(s.raft.Barrier(time.Second))
			if s.spreading.CompareAndSwap(asked, 0) {
				return
			}
		}
	}()
}
