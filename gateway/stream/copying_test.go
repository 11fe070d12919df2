package stream

import (
	"slices"
	"testing"
	"time"

	"demarc/gateway/replica"
)

// halves is a table of which every other session is not answered yet.
type halves struct{ *table }

func (h halves) Look(slot uint32) replica.Look {
	l := h.table.Look(slot)
	l.Early = slot%2 == 0
	return l
}

// TestNewEventsPassACopy: while a full table is copied to a standby that writes 50 records a millisecond, and everything that has come in one go, what begins meanwhile is there soon, be it established or not: behind what is on its
// way, and not behind all that the window holds, nor behind the first way through the table. The copy takes hardly longer for it.
func TestNewEventsPassACopy(t *testing.T) {
	const life, slots, old, each, step = 7, 100_000, 90_000, 50, 100 * time.Microsecond
	for _, c := range []struct {
		name string
		way  time.Duration // there, and back again as long
	}{{"near", 200 * time.Microsecond}, {"far", 25 * time.Millisecond}} {
		tab := &table{slots: make([]struct {
			gen  uint32
			live bool
			what uint32
		}, slots)}
		for i := range old {
			tab.slots[i].live = true
		}
		set := NewSet("gw2", life)
		out := replica.NewSender(halves{tab}, slots, 0, 1, life, 1, replica.Limits{Refresh: time.Hour})
		s, b := set.Add(out, func() {}), newStandby(1<<20)
		now := int64(time.Second)
		out.Own(1, 1)
		s.link(now, &replica.Answer{Life: life, Anew: true})
		type sent struct {
			at int64
			b  []byte
			a  replica.Answer
		}
		var there, back []sent // on their way
		var written replica.Answer
		done := int64(0) // when the standby has written its batch; 0 = it has none
		type begun struct {
			at  int64
			seq uint64 // that it was before; 0 = it is marked
		}
		var events [2][]begun
		var lags [2][]float64
		began, took, end := now, time.Duration(0), uint64(0)
		for n := 0; took == 0; n++ {
			now += int64(step)
			if n%10 == 0 && n/10 < slots-old { // one of either kind every other millisecond
				k := n / 10 % 2
				slot := old + n/10
				tab.slots[slot].live = true
				out.Mark(uint32(slot), k == 0)
				events[k] = append(events[k], begun{at: now})
			}
			s.Turn(now, true)
			if seq, all := out.Next(); all {
				for k := range events {
					for i := range events[k] {
						if events[k][i].seq == 0 {
							events[k][i].seq = seq
						}
					}
				}
			}
			for len(set.full) > 0 {
				f := <-set.full
				there = append(there, sent{at: now + int64(c.way), b: slices.Clone(*f)})
				set.free <- f
			}
			if done != 0 && now >= done {
				back = append(back, sent{at: now + int64(c.way), a: written})
				done = 0
			}
			if done == 0 {
				var list [][]byte
				for len(there) > 0 && there[0].at <= now && len(list) < 64 {
					list, there = append(list, there[0].b), there[1:]
				}
				if len(list) > 0 {
					answers, err := b.recv.Frames(now, "gw1", list)
					if err != nil || len(answers) != 1 {
						t.Fatal(len(answers), err)
					}
					done = now + int64(answers[0].Seq-written.Seq)*int64(time.Millisecond)/each
					written = answers[0]
				}
			}
			for len(back) > 0 && back[0].at <= now {
				out.Answer(now, &back[0].a)
				back = back[1:]
			}
			for k := range events {
				for len(events[k]) > 0 && events[k][0].seq != 0 && out.Acked() >= events[k][0].seq {
					lags[k] = append(lags[k], float64(now-events[k][0].at)/1e6)
					events[k] = events[k][1:]
				}
			}
			if x, ok := out.Copy(now, 1); ok && !x.Copying && end == 0 {
				end, _ = out.Next()
			}
			if end > 0 && out.Acked() >= end {
				took = time.Duration(now - began)
			}
			if now-began > int64(time.Minute) {
				t.Fatalf("%s: the copy has not come to its end", c.name)
			}
		}
		for k, kind := range []string{"established", "not answered yet"} {
			slices.Sort(lags[k])
			n := len(lags[k])
			t.Logf("%s, %s: %d events, in the middle %.1f ms until they are acknowledged, 99th percentile %.1f, most %.1f; the copy took %s", c.name, kind, n, lags[k][n/2], lags[k][n*99/100], lags[k][n-1], took)
			if most := 50.0 + 3*c.way.Seconds()*1e3; n < 500 || lags[k][n*99/100] > most {
				t.Errorf("%s, %s: the 99th percentile of %d is %.1f ms, want %.0f at most", c.name, kind, n, lags[k][n*99/100], most)
			}
		}
		if least := time.Duration(slots) * time.Millisecond / each; took > least+least/2 {
			t.Errorf("%s: the copy took %s, where the standby needs %s to write it", c.name, took, least)
		}
	}
}

// aging is a table of sessions of which one in a hundred is used all the time.
type aging struct {
	*table
	seen uint8
}

func (a *aging) Look(slot uint32) replica.Look {
	l := a.table.Look(slot)
	if slot%100 == 0 {
		l.Seen = a.seen
	}
	return l
}

// TestLargeTableIsNoReasonForATurn: whether the time of sessions has gone on is looked for behind what has changed, all of a large table within the time that is given, and that is no more to do: where packets go and nothing changes, a
// worker's turns are as far apart as with a small one.
func TestLargeTableIsNoReasonForATurn(t *testing.T) {
	const life, slots, within = 7, 400_000, 8 * time.Second
	tab := &aging{table: &table{slots: make([]struct {
		gen  uint32
		live bool
		what uint32
	}, slots)}}
	for i := range tab.slots {
		tab.slots[i].live = true
	}
	set := NewSet("gw2", life)
	out := replica.NewSender(tab, slots, 0, 1, life, 1, replica.Limits{Refresh: within, Digest: time.Hour})
	s, b := set.Add(out, func() {}), newStandby(1<<20)
	now := int64(time.Second)
	out.Own(1, 1)
	s.link(now, &replica.Answer{Life: life, Anew: true})
	frames := 0
	turn := func(busy bool) (n int) {
		n = s.Turn(now, busy)
		for len(set.full) > 0 {
			f := <-set.full
			a, err := b.recv.Frame(now, "gw1", *f)
			if err != nil {
				t.Fatal(err)
			}
			out.Answer(now, &a)
			set.free <- f
			frames, n = frames+1, n-1
		}
		return n
	}
	for copying := true; copying; now += int64(time.Millisecond) {
		turn(false)
		c, ok := out.Copy(now, 1)
		copying = !ok || c.Copying
	}
	for end := now + int64(within); now < end; now += int64(time.Millisecond) { // a round until all is settled
		turn(true)
	}
	tab.seen++
	from := b.recv.Stats.Records
	frames = 0
	for end := now + int64(within) + int64(within)/50; now < end; now += int64(time.Millisecond) {
		if n := turn(true); n > 0 {
			t.Fatalf("%d things are still to be done", n)
		}
	}
	if n := b.recv.Stats.Records - from; n != slots/100 {
		t.Errorf("of %d sessions whose time has gone on %d were told within %s", slots/100, n, within)
	}
}
