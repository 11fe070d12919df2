package replica

import (
	"cmp"
	"time"
)

// Answer takes in what the standby says.
func (s *Sender) Answer(now int64, a *Answer) {
	if a.Life != s.life || a.Stream != s.stream || a.Seq > s.seq {
		return
	}
	if a.Anew {
		if a.Seq >= s.began && now >= s.again { // else it is about what was before
			s.anew()
			s.again = now + int64(s.lim.Pause)
		}
		return
	}
	if at := s.pop(a.Seq); at != 0 {
		took := max(now-at, 1)
		if s.least == 0 || took < s.least {
			s.least = took
		}
		s.round = cmp.Or(s.round, took)
	}
	for _, ga := range a.Groups {
		g := s.groups[ga.Group]
		if g == nil || ga.Round != g.round {
			continue
		}
		if ga.Equal > g.answer.Equal {
			g.equalAt = now
		}
		g.answer = ga
		if ga.Want && !g.copying && now >= g.again {
			s.copy(ga.Group)
			s.groups[ga.Group].again = now + int64(s.lim.Pause)
		}
	}
}

// pop forgets frames of which all is before seq, and returns when the last of them was written; 0 = there was none.
func (s *Sender) pop(seq uint64) (at int64) {
	n := 0
	for n < len(s.queue) && s.queue[n].seq+uint64(s.queue[n].count) <= seq {
		at = s.queue[n].at
		s.queued -= len(s.queue[n].buf)
		s.held -= cap(s.queue[n].buf)
		s.spare = append(s.spare, s.queue[n].buf[:0])
		n++
	}
	if n > 0 {
		s.queue = append(s.queue[:0], s.queue[n:]...)
		s.next = max(0, s.next-n)
	}
	if len(s.spare) > 8 {
		s.spare = s.spare[:8]
	}
	return at
}

// Acked is the first record that the standby has not acknowledged.
func (s *Sender) Acked() uint64 {
	if len(s.queue) > 0 {
		return s.queue[0].seq
	}
	return s.seq - uint64(s.count)
}

// Stream is what a stream is about to be asked for: how far behind the standby may be, in time and in bytes on their way.
type Stream struct {
	Linked bool
	Lag    time.Duration // the oldest change that the standby may not have is no older
	Bytes  int
}

// Status says how the stream stands.
func (s *Sender) Status(now int64) Stream {
	st := Stream{Linked: s.linked, Bytes: s.queued + len(s.cur)}
	switch {
	case len(s.queue) > 0:
		st.Lag = time.Duration(now - s.queue[0].since)
	case s.unwritten():
		st.Lag = time.Duration(now - s.clean)
	}
	return st
}

// Pending says that something is to be written, or was and is not handed out yet.
func (s *Sender) Pending() bool {
	if !s.linked {
		return false
	}
	if s.next < len(s.queue) {
		return true
	}
	return s.unwritten() && s.room() // without room it waits for the standby
}

// Behind says that the standby may not have all that was done.
func (s *Sender) Behind() bool { return len(s.queue) > 0 || s.unwritten() }

// unwritten says that there is something that no frame has.
func (s *Sender) unwritten() bool {
	for i := range s.dirty {
		if !s.dirty[i].empty() {
			return true
		}
	}
	return s.count > 0 || s.copying(false) || s.copying(true)
}

// Next is the record that is written next, when all that was marked is: false while something is not. What was done by then is at the standby when Acked has come there.
func (s *Sender) Next() (seq uint64, ok bool) {
	for i := range s.dirty {
		if !s.dirty[i].empty() {
			return 0, false
		}
	}
	return s.seq, true
}

// Looked is how many slots were looked at by Drain so far: what it costs goes by that, and not by what was written.
func (s *Sender) Looked() int { return s.looked }

// Short says that the last Drain would have looked at more.
func (s *Sender) Short() bool { return s.short }

// Ready says that Take has a frame.
func (s *Sender) Ready() bool { return s.linked && s.next < len(s.queue) }

// Groups are those that are sent.
func (s *Sender) Groups() []uint8 { return s.active }

// Copy is how a group stands at the standby, as far as one stream says.
type Copy struct {
	Copying bool
	Done    float64       // copying: what of the way is behind it, 0..1
	Equal   uint64        // the last record at which digests were equal, 0 = none yet
	Age     time.Duration // since the standby said so
	Missing uint32        // records that the standby could not take, and
	Why     Outcome
	Records uint64 // written in this round and not gone since
}

// Copy says how a group stands; false when it is not sent.
func (s *Sender) Copy(now int64, group uint8) (Copy, bool) {
	g := s.groups[group]
	if g == nil {
		return Copy{}, false
	}
	c := Copy{Copying: g.copying, Equal: g.answer.Equal, Missing: g.answer.Missing, Why: g.answer.Why, Records: g.number}
	if way := 2 * float64(g.slots); g.copying && way > 0 { // there are two ways through the table
		left := float64(g.todo)
		if !g.late {
			left += float64(g.slots)
		}
		c.Done = max(0, 1-left/way)
	}
	if c.Equal > 0 {
		c.Age = time.Duration(now - g.equalAt)
	}
	return c, true
}

// Digest is the sum and number of what was written of a group and is not gone.
func (s *Sender) Digest(group uint8) (sum, number uint64) {
	if g := s.groups[group]; g != nil {
		return g.sum, g.number
	}
	return 0, 0
}

// Recount works the same out from the table as it is now. It walks all of it: for tests, and for who doubts.
func (s *Sender) Recount(group uint8) (sum, number uint64) {
	for slot := range s.src.Slots() {
		if l := s.src.Look(slot); l.Group == group && group != 0 {
			sum += s.fill(slot, l, &s.rec)
			number++
		}
	}
	return sum, number
}
