package replica

import "time"

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
	s.pop(a.Seq)
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

// pop forgets frames of which all is before seq.
func (s *Sender) pop(seq uint64) {
	n := 0
	for n < len(s.queue) && s.queue[n].seq+uint64(s.queue[n].count) <= seq {
		s.queued -= len(s.queue[n].buf)
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
	busy := s.count > 0
	for i := range s.dirty {
		busy = busy || !s.dirty[i].empty()
	}
	for _, g := range s.active {
		busy = busy || s.groups[g].copying
	}
	switch {
	case len(s.queue) > 0:
		st.Lag = time.Duration(now - s.queue[0].since)
	case busy:
		st.Lag = time.Duration(now - s.clean)
	}
	return st
}

// Copy is how a group stands at the standby, as far as one stream says.
type Copy struct {
	Copying bool
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
