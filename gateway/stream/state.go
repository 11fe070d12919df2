package stream

import (
	"fmt"
	"time"

	"demarc/gateway/replica"
)

// State is how a standby's connection is.
type State struct {
	Problem string    // why there is none; "" = there is one
	Since   time.Time // since when it is so
	Dials   uint64
	Frames  uint64 // that were sent, and
	Sent    uint64 // bytes of them
	Waiting int    // bytes that are written and not acknowledged
}

// State says so.
func (s *Set) State() State {
	s.mu.Lock()
	st := State{Problem: s.problem, Since: s.since, Dials: s.dials.Load(), Frames: s.frames.Load(), Sent: s.bytes.Load()}
	s.mu.Unlock()
	for _, t := range s.streams {
		t.mu.Lock()
		st.Waiting += t.stand.Bytes
		t.mu.Unlock()
	}
	return st
}

// Copy is how a group stands at a standby, by all its streams.
type Copy struct {
	Whole   bool          // digests were equal lately, in all streams, nothing is missing, and there is a connection
	Equal   bool          // the same whether or not there is one: Lag tells for how long not
	Lag     time.Duration // the oldest change that the standby may not have is no older
	Done    float64       // of a copy that is under way; 1 = there is none
	Seq     uint64        // records at which digests were equal, of all streams together
	Records uint64        // that it has
	Missing uint64        // that it could not take, and
	Why     replica.Outcome
	Words   string // why it is not whole; "" = it is
}

// A digest comes every second: of one that is older than this nobody knows.
const maxAge = 3 * time.Second

// What a stream's owner has not looked at for so long is as old as that: it hangs.
const maxShown = 500 * time.Millisecond

// Copy says how a group stands, at a time of the owners' clock.
func (s *Set) Copy(now int64, group uint8) Copy {
	c := Copy{Equal: true, Done: 1}
	s.mu.Lock()
	problem := s.problem
	if problem != "" { // a change of this very moment could not be told
		c.Lag = time.Since(s.since)
	}
	s.mu.Unlock()
	not := func(format string, args ...any) {
		if c.Equal {
			c.Equal, c.Words = false, fmt.Sprintf(format, args...)
		}
	}
	done := 0.0
	for i, t := range s.streams {
		t.mu.Lock()
		at, lag := t.stand.at, t.stand.Lag
		var g replica.Copy
		found := false
		for _, x := range t.stand.groups {
			if x.group == group {
				g, found = x.Copy, true
			}
		}
		t.mu.Unlock()
		late := time.Duration(now - at)
		if lag > 0 || late > maxShown {
			lag += late
		}
		c.Lag = max(c.Lag, lag)
		if !found {
			not("stream %d has not begun", i)
			continue
		}
		c.Seq += g.Equal
		c.Records += g.Records
		c.Missing += uint64(g.Missing)
		if g.Missing > 0 {
			c.Why = g.Why
		}
		if g.Copying {
			done += g.Done
		} else {
			done++
		}
		switch {
		case g.Copying || g.Missing > 0: // told below, of all streams together
			c.Equal = false
		case g.Equal == 0:
			not("its digest has not been compared yet")
		case g.Age+late > maxAge:
			not("its last equal digest is %s old", (g.Age + late).Round(100*time.Millisecond))
		}
	}
	if n := len(s.streams); n > 0 {
		c.Done = done / float64(n)
	}
	switch c.Whole = c.Equal && problem == ""; {
	case problem != "":
		c.Words = problem
	case c.Missing > 0:
		c.Words = missing(c.Missing, c.Why)
	case !c.Equal && c.Done < 1:
		c.Words = fmt.Sprintf("copying, %.0f %%", 100*c.Done)
	}
	return c
}

// missing says why a standby could not take something, and what would be right.
func missing(n uint64, why replica.Outcome) string {
	what := map[replica.Outcome]string{
		replica.Full:     "its tables have no room for them: give it tables.sessions and tables.mappings as large as here",
		replica.NoTenant: "the policy that it serves does not have their tenant",
		replica.Conflict: "their place is taken there by something else: they are copied again",
		replica.NotKnown: "its release is older and does not know what they have: upgrade it",
	}[why]
	if what == "" {
		what = why.String()
	}
	return fmt.Sprintf("%d sessions were not taken: %s", n, what)
}
