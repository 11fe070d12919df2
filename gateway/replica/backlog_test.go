package replica

import (
	"testing"
	"time"
)

// flat is a table of sessions of one group.
type flat struct{ slots uint32 }

func (f flat) Slots() uint32         { return f.slots }
func (f flat) Look(slot uint32) Look { return Look{Group: 1, Early: slot%4 != 0} }
func (f flat) Fill(_ uint32, r *Record) {
	r.Kind, r.Session.Hop = KindSession, [2]uint16{NoName, NoName}
}
func (f flat) Name(NameKind, uint16) string { return "alpha" }

// TestBacklog: where more changes than are written, none waits for ever, whatever slot it is of, and the lag that is told is no less than the oldest one has waited and no more than two rounds through what waits take. The changes here never cease, a third
// more than what is written, for three seconds; then they go on at half of what is.
func TestBacklog(t *testing.T) {
	const slots, budget, life = 20_000, 40, 7
	src := flat{slots}
	s := NewSender(src, slots, 0, 1, life, 9, Limits{Digest: time.Hour, Refresh: time.Hour})
	now := int64(time.Second)
	s.Own(1, 1)
	s.Link(now, &Answer{Life: life, Anew: true})
	acked := func() {
		for s.Ready() {
			s.Take()
		}
		s.Answer(now, &Answer{Life: life, Seq: s.seq})
	}
	for s.Behind() {
		now += int64(time.Millisecond)
		s.Drain(now, 1024)
		acked()
	}
	since := make([]int64, slots) // what waits, by slot
	oldest := func() (age time.Duration, slot int) {
		for i, at := range since {
			if at != 0 && time.Duration(now-at) > age {
				age, slot = time.Duration(now-at), i
			}
		}
		return age, slot
	}
	wrote := s.sent
	rnd := uint64(1)
	most, calm := time.Duration(0), time.Duration(0)
	for turn := range 6_000 {
		now += int64(time.Millisecond)
		n := budget * 4 / 3
		if turn >= 3_000 {
			n = budget / 2
		}
		for range n {
			rnd = rnd*6364136223846793005 + 1442695040888963407
			slot := uint32(rnd>>33) % slots
			if rnd>>20&3 != 0 { // most of them are of the first quarter
				slot %= slots / 4
			}
			s.Mark(slot, slot%4 != 0)
			if since[slot] == 0 {
				since[slot] = now
			}
			wrote[slot].hash = 0 // told by put: the hash of what is written is not 0
		}
		s.Drain(now, budget)
		for i := range since {
			if since[i] != 0 && wrote[i].hash != 0 {
				since[i] = 0
			}
		}
		acked()
		age, slot := oldest()
		told := s.Status(now).Lag
		if told < age {
			t.Fatalf("turn %d: a lag of %s is told, and slot %d waits since %s", turn, told, slot, age)
		}
		if told > 500*time.Millisecond {
			t.Fatalf("turn %d: a lag of %s is told, and slot %d, the oldest, waits since %s", turn, told, slot, age)
		}
		if turn < 3_000 {
			most = max(most, age)
		} else if turn >= 4_500 {
			calm = max(calm, told)
		}
	}
	t.Logf("the oldest waited for %s, and for no more than %s afterwards", most, calm)
	if most < 50*time.Millisecond || most > 250*time.Millisecond || calm > 5*time.Millisecond {
		t.Errorf("the oldest waited for %s, and a lag of up to %s was told afterwards", most, calm)
	}
}

// twoGroups is a table of which the first slots are group 1's and all others group 2's.
type twoGroups struct {
	flat
	first uint32
}

func (f twoGroups) Look(slot uint32) Look {
	l := f.flat.Look(slot)
	if slot >= f.first {
		l.Group = 2
	}
	return l
}

// TestACopyMakesNoOtherGroupLate: while one group is copied, what others of the same owner have written is as young as it is: their copies stay in sync.
func TestACopyMakesNoOtherGroupLate(t *testing.T) {
	const slots, life = 100_000, 7
	s := NewSender(twoGroups{flat{slots}, 10}, slots, 0, 1, life, 9, Limits{Digest: 100 * time.Millisecond, Refresh: time.Hour})
	now := int64(time.Second)
	s.Own(1, 1)
	s.Link(now, &Answer{Life: life, Anew: true})
	turn := func() {
		now += int64(time.Millisecond)
		s.Drain(now, 40)
		for s.Ready() {
			s.Take()
		}
		s.Answer(now, &Answer{Life: life, Seq: s.seq})
	}
	for s.Behind() {
		turn()
	}
	s.Own(2, 1)
	copying, worst := 0, time.Duration(0)
	for range 10_000 {
		turn()
		if s.groups[2] == nil || !s.groups[2].copying {
			break
		}
		copying++
		if copying%10 == 0 {
			s.Mark(uint32(copying/10%10), true)
		}
		worst = max(worst, s.Status(now).Lag)
	}
	if copying < 1000 || worst > 50*time.Millisecond {
		t.Errorf("copied for %d turns of 1 ms; the other group was %v late", copying, worst)
	}
}
