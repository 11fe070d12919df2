package store

import (
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/raft"
)

// TestMemberComesBack: whoever was away has the log a moment after it answers again, however long it was away, and by entries or a snapshot. By Raft alone this one would
// have waited for 2.4 s: it tries 2.56 and 5.12 s after the loss.
func TestMemberComesBack(t *testing.T) {
	for _, how := range []struct {
		name    string
		changes int
	}{{"entries", 3}, {"snapshot", 200}} {
		t.Run(how.name, func(t *testing.T) {
			t.Parallel()
			// Raft by itself would be late each time. A machine that is elsewhere is late now and then, or has the lead lost, of which the next leader knows nothing.
			for range 5 {
				took, met := comesBack(t, how.changes, how.name == "snapshot")
				if t.Logf("it has the log %s after it came back; the same one led all the while: %v", took, met); met && took <= 500*time.Millisecond {
					return
				}
			}
			t.Error("it has the log late, or the lead was lost, in five tries")
		})
	}
}

// comesBack is how long it takes until a member has the log that was away while there were some changes. It counts only where it met the leader that had missed it.
func comesBack(t *testing.T, changes int, snapshot bool) (took time.Duration, met bool) {
	x := newTrio(t)
	defer func() {
		for i := range x.s {
			x.stop(i)
		}
	}()
	lead := x.leader(0, 1, 2)
	term := x.s[lead].Term()
	leads := func() bool { return x.s[lead].Leads() && x.s[lead].Term() == term }
	gone, other := (lead+1)%3, (lead+2)%3
	x.stop(gone)
	began := time.Now()
	for i := range changes {
		x.change(fmt.Sprint("policy ", i), lead, other)
	}
	if snapshot {
		if err := x.s[lead].Compact(); err != nil {
			t.Fatal(err)
		}
	}
	time.Sleep(time.Until(began.Add(2700 * time.Millisecond)))
	if !leads() {
		return 0, false
	}
	x.start(gone)
	back := time.Now()
	x.level(lead, gone)
	return time.Since(back), leads()
}

// TestAway: who waits for a member goes on when it answers, and gives up where nothing is brought to it any more or the store closes.
func TestAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var a away
		still, term, end := true, uint64(5), make(chan struct{})
		wait := func() (time.Duration, error) {
			began := time.Now()
			err := a.wait("n1", term, func() bool { return still }, end)
			return time.Since(began), err
		}
		if took, err := wait(); took != 0 || err != nil {
			t.Errorf("a member that nothing is known of is waited for: %s, %v", took, err)
		}
		a.answered("n1", 5, false)
		a.answered("n1", 5, false)
		a.answered("n2", 5, true)
		go func() { time.Sleep(time.Hour); a.answered("n1", 5, true) }()
		if took, err := wait(); took != time.Hour || err != nil {
			t.Errorf("it answers after an hour: %s, %v", took, err)
		}
		if took, err := wait(); took != 0 || err != nil {
			t.Errorf("a member that has answered is waited for: %s, %v", took, err)
		}
		a.answered("n1", 5, false)
		term = 6
		if took, err := wait(); took != 0 || err != nil {
			t.Errorf("what was so in an earlier term counts: %s, %v", took, err)
		}
		term = 5
		go func() { time.Sleep(time.Minute); still = false }()
		if took, err := wait(); took < time.Minute || took > time.Minute+awayPace || !errors.Is(err, errAway) {
			t.Errorf("nothing is brought to it after a minute: %s, %v", took, err)
		}
		still = true
		go func() { time.Sleep(time.Minute); close(end) }()
		if took, err := wait(); took != time.Minute || !errors.Is(err, errEnded) {
			t.Errorf("the store closes after a minute: %s, %v", took, err)
		}
	})
}

// TestBeats: what Raft sends beside the log, and nothing else.
func TestBeats(t *testing.T) {
	for _, c := range []struct {
		q    raft.AppendEntriesRequest
		want bool
	}{
		{raft.AppendEntriesRequest{Term: 3}, true},
		{raft.AppendEntriesRequest{Term: 3, PrevLogEntry: 4, PrevLogTerm: 3}, false},
		{raft.AppendEntriesRequest{Term: 3, LeaderCommitIndex: 1}, false},
		{raft.AppendEntriesRequest{Term: 3, Entries: []*raft.Log{{}}}, false},
	} {
		if got := beats(&c.q); got != c.want {
			t.Errorf("%+v: %v", c.q, got)
		}
	}
}
