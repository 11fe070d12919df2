package cluster

import (
	"slices"
	"testing"
	"time"

	"demarc/cluster/failover"
)

// TestSilence: what is heard beside Raft puts a leader in doubt, and only Raft's own silence with it has this node ask for its place.
func TestSilence(t *testing.T) {
	const msec = time.Millisecond
	const never = -time.Hour
	type at struct {
		beats, raft time.Duration // when each was heard last; they came all the time before
		trip        time.Duration
		rank        int
		gap         time.Duration // this node reads nothing from 0 to then
		told        time.Duration // when it is known that its process has ended; 0 = it is not
	}
	for name, c := range map[string]struct {
		at
		doubt, stand, over time.Duration // when it is in doubt, and first asked for its place; never = it is not. Until over is looked
	}{
		"all is quiet at once":                {at{}, 60 * msec, 110 * msec, 400 * msec},
		"one that others stand before":        {at{rank: 1}, 60 * msec, 160 * msec, 400 * msec},
		"it goes on by Raft":                  {at{raft: 300 * msec}, never, never, 700 * msec},
		"datagrams are blocked, then it ends": {at{raft: 5 * time.Second}, never, never, 7 * time.Second},
		"it goes on beside Raft":              {at{beats: 450 * msec}, never, never, 500 * msec},
		"this node slept":                     {at{gap: 300 * msec}, 360 * msec, 410 * msec, 480 * msec},
		"this node slept too long":            {at{gap: 600 * msec}, 660 * msec, 710 * msec, 900 * msec},
		"its parent tells its end":            {at{told: 10 * msec, raft: 5 * msec, beats: 5 * msec}, 10 * msec, 10 * msec, 400 * msec},
		"the same, behind another one":        {at{told: 10 * msec, rank: 1}, 10 * msec, 10*msec + deadStep, 400 * msec},
		"the same, where this node slept":     {at{told: 300 * msec, gap: 300 * msec}, 300 * msec, 300 * msec, 400 * msec},
		"the same, far away":                  {at{told: 10 * msec, trip: 600 * msec, rank: 1}, 10 * msec, 1240 * msec, 1500 * msec},
		"far away":                            {at{trip: 600 * msec}, 890 * msec, 1780 * msec, 2500 * msec},
		"far away, and it jitters":            {at{trip: 600 * msec, raft: 500 * msec, beats: 500 * msec}, 1390 * msec, 2280 * msec, 2800 * msec},
	} {
		t.Run(name, func(t *testing.T) {
			s := silence{heartbeat: 500*msec + 4*c.trip, trip: c.trip}
			zero := time.Now()
			doubted, stood := never, never
			for now := -200 * msec; now < c.over; now += missEvery {
				if now > 0 && now < c.gap {
					continue
				}
				doubt, stand := s.judge(zero.Add(now), "x", c.told > 0 && now >= c.told, zero.Add(min(now, c.beats)), zero.Add(min(now, c.raft)), c.rank)
				if doubt && doubted == never {
					doubted = now
				}
				if stand && stood == never {
					stood = now
				}
			}
			near := func(got, want time.Duration) bool {
				return got == want || got > 0 && want > 0 && (got-want).Abs() <= 15*msec
			}
			if !near(doubted, c.doubt) || !near(stood, c.stand) {
				t.Errorf("in doubt at %s, want %s; asked for its place at %s, want %s", doubted, c.doubt, stood, c.stand)
			}
		})
	}
}

// TestSilenceOfAStall: a node that does not run for a while, be it for as long as is no gap to it, does not take what lies unread for its leader's silence: beats come each 20 ms, Raft's messages each 20 to 40. When it
// wakes its readings may be the first to run, and what came is read later. It may doubt then, which has it vote for another one if somebody else stands; it does not stand.
func TestSilenceOfAStall(t *testing.T) {
	const msec = time.Millisecond
	stands := func(stall, beats, raft, tick, late time.Duration) bool {
		s := silence{heartbeat: 500 * msec}
		zero := time.Now()
		for now := -500*msec + tick; now < stall+200*msec; now += missEvery {
			if now > 0 && now < stall {
				continue
			}
			read := now // up to when what came is read
			if now > 0 && now < stall+late {
				read = 0
			}
			last := func(every, phase time.Duration) time.Duration { return (read-phase)/every*every + phase - every }
			if _, stand := s.judge(zero.Add(now), "x", false, zero.Add(last(20*msec, beats)), zero.Add(last(40*msec, raft)), 0); stand {
				return true
			}
		}
		return false
	}
	worst := func(late time.Duration) time.Duration { // the shortest stall that has it stand; 0 = none does
		for stall := time.Duration(0); stall <= 2*missGap; stall += msec {
			for beats := time.Duration(0); beats < 20*msec; beats += 5 * msec {
				for raft := time.Duration(0); raft < 40*msec; raft += 4 * msec {
					for tick := time.Duration(0); tick < missEvery; tick += 3 * msec {
						if stands(stall, beats, raft, tick, late) {
							return stall
						}
					}
				}
			}
		}
		return 0
	}
	if stall := worst(10 * msec); stall > 0 {
		t.Errorf("a stall of %s has it stand, and what came is read 10ms behind its waking", stall)
	}
	if worst(40*msec) == 0 {
		t.Error("what is read 40ms behind its waking does not matter: nothing was tried")
	}
}

// TestSilenceIsBounded: a leader that comes and goes has nobody stand again and again.
func TestSilenceIsBounded(t *testing.T) {
	s := silence{heartbeat: 500 * time.Millisecond}
	zero, last := time.Now(), time.Duration(0)
	stood, asked := 0, 0
	for now := time.Duration(0); now < 20*time.Second; now += missEvery {
		if now%(300*time.Millisecond) < 20*time.Millisecond {
			last = now
		}
		if _, stand := s.judge(zero.Add(now), "x", false, zero.Add(last), zero.Add(last), 0); stand {
			asked++
			if asked%2 == 0 { // what is asked for in vain is not counted as an election
				s.stood = s.read
				stood++
			}
		}
	}
	if stood < 2 || stood > 8 {
		t.Errorf("it stood for election %d times in 20 s, want at most one in 2.5 s", stood)
	}
}

// missRounds is how often TestSilentLeader takes the leader away in each way; quick is how soon another leads that was found beside Raft, which alone takes more than 400 ms.
const (
	missRounds = 3
	quick      = 350 * time.Millisecond
)

// TestSilentLeader: with the timers that every cluster has, a leader that is gone is replaced as soon as it is missed beside Raft, and what it was asked is asked again then; one whose datagrams are blocked stays
// the leader.
func TestSilentLeader(t *testing.T) {
	w := newDrivenAt(t, 0, []string{"gw-a", "gw-b", "wit"}, false, east())
	var ms []*member
	for _, b := range w.boxes {
		ms = append(ms, b.m)
	}
	all := map[bool][]time.Duration{}
	// On a busy machine a member does not trust its own readings, and waits for Raft: then there are more rounds.
	for i := 0; i < 2*missRounds || slices.Min(all[false]) > quick && i < 12*missRounds; i++ {
		blocked := i%2 == 1
		w.mute.Store(false)
		w.network.Split()
		var lead int
		eventually(t, "all follow one leader and hear it", func() bool {
			if lead = leader(ms); lead < 0 {
				return false
			}
			name := w.boxes[lead].name
			for j, m := range ms {
				id, _ := m.st.Leader()
				if id != ms[lead].id || j != lead && (time.Since(w.boxes[j].d.Heard(name)) > 40*time.Millisecond || m.st.Progress().Applied < ms[lead].st.Progress().Committed) {
					return false
				}
			}
			return true
		})
		before, term := uint64(0), ms[lead].Election().Term
		if blocked {
			w.mute.Store(true)
			time.Sleep(300 * time.Millisecond) // their silence and that of a busy machine may begin together
			before = stood(ms)
			time.Sleep(400 * time.Millisecond)
		}
		var others []*member
		var rest []string
		for j, m := range ms {
			if j != lead {
				others, rest = append(others, m), append(rest, w.boxes[j].name)
			}
		}
		answered := make(chan error, len(others)) // a leader that is cut off never answers: nobody waits for it when another one leads
		for _, m := range others {
			go func() {
				_, _, _, err := m.callLeading(t.Context(), ms[lead].id, ms[lead].address, request{Kind: askServed, Number: 1 << 40}, nil)
				answered <- err
			}()
		}
		time.Sleep(5 * time.Millisecond) // that it has got there makes it harder, and is not needed
		began := time.Now()
		w.network.Split(rest)
		eventually(t, "another one leads", func() bool { return leader(others) >= 0 })
		took := time.Since(began)
		eventually(t, "the election is counted", func() bool {
			next := leader(others)
			return next >= 0 && others[next].Election().Led > 0 && others[next].Election().Term > term
		})
		for range others {
			select {
			case err := <-answered:
				if err == nil {
					t.Error("the one that is cut off has answered")
				}
			case <-time.After(5 * time.Second): // a request itself has a minute
				t.Fatal("an answer is waited for of a leader that is cut off, and another one leads")
			}
		}
		all[blocked] = append(all[blocked], took)
		if n := stood(ms) - before; blocked && n > 0 {
			t.Errorf("round %d: %d times somebody stood because no datagram came through", i, n)
		}
		t.Logf("round %d: %s led, %s does after %s (datagrams blocked: %v)", i, w.boxes[lead].name, others[leader(others)].cfg.Name, took.Round(time.Millisecond), blocked)
	}
	for _, l := range all {
		slices.Sort(l)
	}
	t.Logf("missed beside Raft: %s; by Raft alone: %s", all[false], all[true])
	if all[false][0] > quick || stood(ms) == 0 {
		t.Errorf("at least %s until somebody else leads, want at most %s: Raft alone takes more than 400", all[false][0], quick)
	}
}

// TestVacant: a lead that nobody has is asked for once a majority has been heard for as long as a silent leader is waited for, those in front first, and not by who has no majority, has just slept, or stood not long ago.
func TestVacant(t *testing.T) {
	const msec = time.Millisecond
	const never = -time.Hour
	for name, c := range map[string]struct {
		rank     int
		trip     time.Duration
		majority time.Duration // since when it is heard
		gap      time.Duration // this node reads nothing from 0 to then
		stood    time.Duration // when it stood last
		contact  time.Duration // when it last gave a vote, or a leader came by; none did before
		stands   time.Duration // when somebody else is seen to stand; 0 = nobody is
		want     time.Duration
	}{
		"a majority all the time": {stood: never, want: 100 * msec},
		"others stand before":     {rank: 2, stood: never, want: 200 * msec},
		"none for a while":        {majority: 300 * msec, stood: never, want: 400 * msec},
		"this node slept":         {gap: 300 * msec, stood: never, want: 400 * msec},
		"it has stood":            {stood: -time.Second, want: 1500 * msec},
		"it has given its vote":   {stood: never, contact: 90 * msec, want: 190 * msec},
		"another one stands":      {stood: never, stands: 50 * msec, want: 650 * msec},
		"no majority":             {majority: time.Hour, stood: never, want: never},
		"far away":                {trip: 600 * msec, stood: never, want: 1780 * msec},
	} {
		s, zero := silence{heartbeat: 500*msec + 4*c.trip, trip: c.trip}, time.Now()
		if c.stood != never {
			s.stood = zero.Add(c.stood)
		}
		got, asked := never, 0
		for now := time.Duration(0); now < 3*time.Second; now += missEvery {
			if now > 0 && now < c.gap {
				continue
			}
			var contact time.Time
			if c.contact > 0 && now >= c.contact {
				contact = zero.Add(c.contact)
			}
			term := uint64(7)
			if c.stands > 0 && now >= c.stands {
				term++
			}
			if s.vacant(zero.Add(now), now >= c.majority, contact, term, c.rank) {
				if asked++; got == never {
					got = now
				}
			}
			s.read = zero.Add(now)
		}
		if got != c.want && (c.want == never || (got-c.want).Abs() > 15*msec) {
			t.Errorf("%s: asked first at %s, want %s", name, got, c.want)
		}
		if asked > int(3*time.Second/(50*msec)) {
			t.Errorf("%s: asked %d times", name, asked)
		}
	}
}

// TestVacantLead: a gateway that starts again while the other one is away finds nobody who leads, for its witness has lost the lead meanwhile. Somebody stands as soon as a majority is heard, and not by Raft's own timers.
func TestVacantLead(t *testing.T) {
	w := newDrivenAt(t, 0, []string{"gw-a", "gw-b", "wit"}, false, east())
	a, b, wit := w.boxes[0], w.boxes[1], w.boxes[2]
	b.end()
	both := func() []*member { return []*member{a.m, wit.m} }
	const rounds, most = 4, 400 * time.Millisecond // Raft alone waits for half a second at least where it has just begun
	var by, alone []time.Duration
	for i := 0; i < rounds || (len(by) == 0 || slices.Min(by) > most) && i < 4*rounds; i++ {
		eventually(t, "one leads, and both have all", func() bool {
			l := leader(both())
			return l >= 0 && a.m.st.Progress().Applied == wit.m.st.Progress().Applied && a.m.current.Load()
		})
		a.end()
		eventually(t, "nobody leads", func() bool { return !wit.m.st.Leads() })
		if i%2 == 1 {
			time.Sleep(1200 * time.Millisecond) // Raft has the witness look for votes all the time by then: only who starts can stand
		}
		before, began := wit.m.stood.Load(), time.Now()
		a.start(east())
		eventually(t, "somebody leads", func() bool { return leader(both()) >= 0 })
		took := time.Since(began)
		if a.m.stood.Load()+wit.m.stood.Load() > before { // a's counts from its start
			by = append(by, took)
		} else {
			alone = append(alone, took) // Raft's own timer was due
		}
	}
	t.Logf("since a majority was heard: %s; by Raft's own timers: %s", by, alone)
	if len(by) == 0 || slices.Min(by) > most {
		t.Errorf("at least %s until somebody leads, in those that somebody stood in: want at most %s once", by, most)
	}
}

func stood(ms []*member) (n uint64) {
	for _, m := range ms {
		n += m.stood.Load()
	}
	return n
}

// TestRankOfVoters: a witness stands first, then who owns nothing.
func TestRankOfVoters(t *testing.T) {
	w := newDriven(t, false, east())
	w.served("gw-a")
	a, b, wit := w.boxes[0].m, w.boxes[1].m, w.boxes[2].m
	eventually(t, "all know the owner", func() bool {
		return !slices.ContainsFunc([]*member{a, b, wit}, func(m *member) bool {
			return m.st.State().Groups.Groups["east"].Node != "gw-a" || len(m.st.State().Members) != 3
		})
	})
	for _, c := range []struct {
		of, leader *member
		want       int
	}{{wit, a, 0}, {b, a, 1}, {wit, b, 0}, {a, b, 1}, {b, wit, 0}, {a, wit, 1}} {
		if got := c.of.rank(c.of.st.State(), c.leader.id); got != c.want {
			t.Errorf("%s stands behind %d others when %s is gone, want %d", c.of.cfg.Name, got, c.leader.cfg.Name, c.want)
		}
	}
}

// TestToldDeath: where its parent says that the leader's process has ended nobody waits for its silence, and nobody for its answer.
func TestToldDeath(t *testing.T) {
	w := newDrivenAt(t, 0, []string{"gw-a", "gw-b", "wit"}, false, east())
	var ms []*member
	for _, b := range w.boxes {
		ms = append(ms, b.m)
	}
	const most = 100 * time.Millisecond // less than anybody waits for a silent one
	var all []time.Duration
	for range 10 { // on a busy machine an election may take longer
		w.network.Split()
		for _, b := range w.boxes { // the one that was said to have ended goes on here, by the same life
			b.d.words.Range(func(_, x any) bool { x.(*word).ended.Store(0); return true })
		}
		var lead int
		eventually(t, "all follow one leader and hear it", func() bool {
			if lead = leader(ms); lead < 0 {
				return false
			}
			for j, m := range ms {
				id, _ := m.st.Leader()
				if id != ms[lead].id || j != lead && (time.Since(w.boxes[j].d.Heard(w.boxes[lead].name)) > 40*time.Millisecond || w.boxes[j].d.Ended(w.boxes[lead].name) ||
					m.st.Progress().Applied < ms[lead].st.Progress().Committed) {
					return false
				}
			}
			return true
		})
		var others []*member
		var rest []string
		for j, m := range ms {
			if j != lead {
				others, rest = append(others, m), append(rest, w.boxes[j].name)
			}
		}
		answered := make(chan error, 1)
		go func() {
			_, _, _, err := others[0].callLeading(t.Context(), ms[lead].id, ms[lead].address, request{Kind: askServed, Number: 1 << 40}, nil)
			answered <- err
		}()
		time.Sleep(5 * time.Millisecond) // that it has got there makes it harder, and is not needed
		w.network.Split(rest)
		began := time.Now()
		for j, b := range w.boxes {
			if j != lead {
				b.d.Receive(w.boxes[lead].name, failover.Message{Kind: failover.Release, Life: w.boxes[lead].d.Life(), Group: "east", Last: true})
			}
		}
		eventually(t, "another one leads", func() bool { return leader(others) >= 0 })
		took := time.Since(began)
		all = append(all, took)
		select {
		case err := <-answered:
			if err == nil {
				t.Error("the one that has ended has answered")
			}
		case <-time.After(10 * time.Second):
			t.Fatal("an answer is waited for of the one that has ended")
		}
		if took < most {
			break
		}
	}
	if slices.Min(all) >= most {
		t.Errorf("%s until somebody else leads, want less than %s once", all, most)
	}
}

// TestHear: the last word about a process counts where that was the last that was heard, and for as long as no later one is.
func TestHear(t *testing.T) {
	d := &Driver{born: time.Now()}
	last := func(life uint64) failover.Message {
		return failover.Message{Kind: failover.Release, Life: life, Last: true}
	}
	beat := func(life uint64) failover.Message { return failover.Message{Kind: failover.Beat, Life: life} }
	for i, c := range []struct {
		m           failover.Message
		died, ended bool
	}{
		{last(5), false, false}, // nobody has heard it live
		{beat(7), false, false},
		{last(5), false, false}, // of an earlier one
		{last(7), true, true},
		{last(7), false, true},  // said again
		{beat(7), false, true},  // it was on its way
		{beat(9), false, false}, // it has started again
		{last(7), false, false},
		{failover.Message{Kind: failover.Release, Life: 9}, false, false}, // it hands over
		{last(9), true, true},
	} {
		before := d.Heard("a")
		if died := d.hear("a", c.m); died != c.died || d.Ended("a") != c.ended {
			t.Errorf("%d: died %v, ended %v: want %v and %v", i, died, d.Ended("a"), c.died, c.ended)
		}
		if c.m.Last && d.Heard("a") != before {
			t.Errorf("%d: its parent's word counts as its own", i)
		}
	}
	if d.Ended("b") || !d.Heard("b").IsZero() {
		t.Error("somebody who was never heard has ended")
	}
}
