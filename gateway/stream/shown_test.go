package stream

import (
	"testing"
	"time"

	"demarc/gateway/replica"
)

// TestLagThatIsShown: under changes that never cease, what is shown is the age of the oldest one that is not acknowledged, and at most a look older: never less, since connections that are younger may be lost at a
// takeover and no others. Every change here is acknowledged after three milliseconds.
func TestLagThatIsShown(t *testing.T) {
	const life, step, answers = 7, 100 * time.Microsecond, 3 * time.Millisecond
	tab := &table{slots: make([]struct {
		gen  uint32
		live bool
		what uint32
	}, 1024)}
	set := NewSet("gw2", life)
	set.problem = ""
	s := set.Add(replica.NewSender(tab, 1024, 0, 1, life, 1, replica.Limits{}), func() {})
	tab.marks = []*replica.Sender{s.out}
	b := newStandby(1 << 20)
	now := int64(time.Second)
	s.out.Own(1, 1)
	s.link(now, &replica.Answer{Life: life, Anew: true})
	type answer struct {
		at int64
		a  replica.Answer
	}
	var due []answer
	acked := now // all that was done before this is acknowledged
	var made []answer
	worst := time.Duration(0)
	for n := range 20_000 {
		now += int64(step)
		tab.put(n%1024, uint32(n))
		s.Turn(now, true)
		for len(set.full) > 0 {
			f := <-set.full
			a, err := b.recv.Frame(now, "gw1", *f)
			if err != nil {
				t.Fatal(err)
			}
			due = append(due, answer{now + int64(answers), a})
			made = append(made, answer{now, a})
			set.free <- f
		}
		for len(due) > 0 && due[0].at <= now {
			s.out.Answer(now, &due[0].a)
			acked, made, due = made[0].at, made[1:], due[1:]
		}
		if n < 1000 { // the first copy
			continue
		}
		old, shown := time.Duration(now-acked), set.Copy(now, 1).Lag
		if shown < old-pace-step || shown > old+2*pace {
			t.Fatalf("after %d changes a lag of %s is shown, and the oldest change that is not acknowledged is %s old", n, shown, old)
		}
		worst = max(worst, shown)
	}
	if worst > answers+4*pace {
		t.Errorf("a lag of %s was shown, where each change is acknowledged after %s", worst, answers)
	}
}
