package store

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"demarc/cluster/command"
)

// trio is three stores and the wires between them.
type trio struct {
	t    testing.TB
	s    []*Store
	c    []Config
	f    []*faulty
	tr   []*raft.InmemTransport
	addr []string
	up   []bool
}

// newTrio has a lease that is longer than a machine is mostly elsewhere at a time: behind it who led does not any more, and tests take it to lead for the while that some entries take.
func newTrio(t testing.TB) *trio { return pacedTrio(t, 300*time.Millisecond, 250*time.Millisecond) }

// pacedTrio makes a cluster of three, whose leader goes on for its lease after the others are gone.
func pacedTrio(t testing.TB, heartbeat, lease time.Duration) *trio {
	x := &trio{t: t}
	for i := range 3 {
		c, f := faultyConfig(t.TempDir())
		c.ID, c.Heartbeat, c.Election, c.Lease = fmt.Sprint("n", i), heartbeat, heartbeat, lease
		x.c, x.f, x.s, x.tr, x.up, x.addr = append(x.c, c), append(x.f, f), append(x.s, nil), append(x.tr, nil), append(x.up, false), append(x.addr, c.ID)
		x.start(i)
	}
	t.Cleanup(func() {
		for i := range x.s {
			x.stop(i)
		}
	})
	if err := x.s[0].Bootstrap(); err != nil {
		t.Fatal(err)
	}
	propose(t, x.s[0], initEntry())
	x.join("n1", 0, 1) // it votes from when that is written, and may be elected
	x.join("n2", 0, 1)
	x.level(0, 1, 2)
	return x
}

// join makes a member a voter, by whoever leads among some.
func (x *trio) join(id string, among ...int) {
	x.t.Helper()
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		s := x.s[x.leader(among...)]
		err := s.AddLearner(id, id, 5*time.Second)
		if err == nil {
			err = s.Promote(id, id, 5*time.Second)
		}
		if err == nil {
			return
		}
		if time.Now().After(end) {
			x.t.Fatal(err)
		}
	}
}

func (x *trio) start(i int) {
	x.t.Helper()
	_, x.tr[i] = raft.NewInmemTransportWithTimeout(raft.ServerAddress(x.addr[i]), 100*time.Millisecond)
	x.c[i].Transport = x.tr[i]
	x.up[i] = true
	x.split()
	s, err := Open(x.c[i])
	if err != nil {
		x.t.Fatal(err)
	}
	x.s[i] = s
}

func (x *trio) stop(i int) {
	if !x.up[i] {
		return
	}
	x.up[i] = false
	x.f[i].works()
	if err := x.s[i].Close(); err != nil {
		x.t.Error(err)
	}
}

// split connects members within groups; no group connects all.
func (x *trio) split(groups ...[]int) {
	for i := range x.tr {
		for j := range x.tr {
			if i == j || x.tr[i] == nil || x.tr[j] == nil {
				continue
			}
			if len(groups) == 0 || slices.ContainsFunc(groups, func(g []int) bool { return slices.Contains(g, i) && slices.Contains(g, j) }) {
				x.tr[i].Connect(x.tr[j].LocalAddr(), x.tr[j])
			} else {
				x.tr[i].Disconnect(x.tr[j].LocalAddr())
			}
		}
	}
}

// leader waits for one among some members.
func (x *trio) leader(among ...int) (lead int) {
	x.t.Helper()
	for end := time.Now().Add(15 * time.Second); ; time.Sleep(2 * time.Millisecond) {
		for _, i := range among {
			if x.s[i].Leads() {
				return i
			}
		}
		if time.Now().After(end) {
			for i, s := range x.s {
				v, _ := s.Voters()
				x.t.Logf("n%d: up %v, leads %v, entry %d, %q, %v, %v", i, x.up[i], s.Leads(), s.State().Index, s.Problem(), s.raft.Stats(), v)
			}
			x.t.Fatal("waited in vain: one of ", among, " leads")
		}
	}
}

// level waits until members have the same state.
func (x *trio) level(among ...int) {
	x.t.Helper()
	eventually(x.t, fmt.Sprint(among, " have the same state"), func() bool {
		want := x.s[among[0]].State()
		for _, i := range among {
			if x.s[i].State().Index != want.Index || x.s[i].State().Last != want.Last {
				return false
			}
		}
		return want.Cluster != ""
	})
}

// change revises by whoever leads among some.
func (x *trio) change(text string, among ...int) command.Result {
	x.t.Helper()
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		r, err := x.s[x.leader(among...)].Propose(x.t.Context(), revise(text))
		if err == nil {
			return r
		}
		if time.Now().After(end) {
			x.t.Fatal(err)
		}
	}
}

// TestAskedWhileTheLeadPasses: while a leader hands the lead on it takes no question, and whoever asks is told to ask whoever leads then, as behind it. Nobody is told that something failed.
func TestAskedWhileTheLeadPasses(t *testing.T) {
	x := newTrio(t)
	lead := x.leader(0, 1, 2)
	heir := (lead + 1) % 3
	x.stop(heir) // it never answers, so the lead passes for an election's time
	done := make(chan error, 1)
	go func() { done <- x.s[lead].Yield(x.c[heir].ID, x.addr[heir]) }()
	asked := map[string]func() error{
		"what is agreed on": func() error { return x.s[lead].Barrier(time.Second) },
		"a change":          func() error { _, err := x.s[lead].Propose(t.Context(), revise("x")); return err },
		"a member":          func() error { return x.s[lead].AddLearner("n9", "n9", time.Second) },
		"another leader":    func() error { return x.s[lead].Yield("", "") },
	}
	var err error
	for end := time.Now().Add(5 * time.Second); err == nil && time.Now().Before(end); {
		err = asked["what is agreed on"]()
	}
	if !errors.Is(err, ErrNotLeader) || !errors.Is(err, raft.ErrLeadershipTransferInProgress) {
		t.Fatal(err)
	}
	for what, ask := range asked {
		if err := ask(); !errors.Is(err, ErrNotLeader) {
			t.Errorf("%s: %v", what, err)
		}
	}
	if err := <-done; err == nil {
		t.Error("handed to who is stopped")
	}
}

// TestFullFollower: a member with a full disk holds nobody up, votes for nobody, does not panic and catches up when there is room. Without it
// there would be no majority, and there is none until then.
func TestFullFollower(t *testing.T) {
	x := newTrio(t)
	lead := x.leader(0, 1, 2)
	full, other := (lead+1)%3, (lead+2)%3
	x.f[full].fails(0, syscall.ENOSPC)
	for i := range 5 {
		x.change(fmt.Sprint("policy ", i), lead, other)
	}
	if last := x.s[full].State().Last; last != 0 {
		t.Errorf("revision %d on a full disk", last)
	}
	x.stop(x.leader(lead, other))
	if !x.up[lead] {
		lead = other
	}
	time.Sleep(time.Second) // several elections
	if x.s[full].Leads() || x.s[lead].Leads() {
		t.Error("a node leads with a vote that is on no disk")
	}
	eventually(t, "it says so", func() bool { return strings.Contains(x.s[full].Problem(), "no space left on device (make room") })
	x.f[full].works()
	x.change("after", full, lead)
	x.level(full, lead)
	if last := x.s[full].State().Last; last < 6 {
		t.Errorf("revision %d, want 6", last)
	}
}

// TestFullLeader: the lead goes to a node that has room, and what the full one refused is nowhere.
func TestFullLeader(t *testing.T) {
	x := newTrio(t)
	lead := x.leader(0, 1, 2)
	a, b := (lead+1)%3, (lead+2)%3
	x.f[lead].fails(0, syscall.ENOSPC)
	_, err := x.s[lead].Propose(t.Context(), revise("refused"))
	if !errors.Is(err, ErrNotWritten) || !errors.Is(err, ErrNotLeader) {
		t.Errorf("%v, want a refusal that sends on to another node", err)
	}
	if r := x.change("a", a, b); r.Revision != 1 {
		t.Errorf("revision %d", r.Revision)
	}
	x.f[lead].works()
	x.level(0, 1, 2)
}

// TestFullAfterTruncation: a follower whose log's end was taken off, and whose disk then refuses what replaces it, goes on when there is room. Raft would refuse
// everything until a restart: it still has the old end in mind.
func TestFullAfterTruncation(t *testing.T) {
	for attempt := range 5 { // on a busy machine the lead may be lost before there is anything to take off
		if fullAfterTruncation(t) {
			return
		}
		t.Logf("attempt %d: nothing was to be taken off", attempt)
	}
	t.Error("nothing was taken off in five attempts")
}

func fullAfterTruncation(t *testing.T) (met bool) {
	x := newTrio(t)
	defer func() {
		for i := range x.s {
			x.stop(i)
		}
	}()
	lead := x.leader(0, 1, 2)
	a, b := (lead+1)%3, (lead+2)%3
	before, err := x.s[lead].disk.LastIndex()
	if err != nil {
		t.Fatal(err)
	}
	x.split([]int{a, b})
	for i := range 3 { // on its disk, agreed on by nobody
		ctx, cancel := contextFor(t, 20*time.Millisecond)
		_, err := x.s[lead].Propose(ctx, revise(fmt.Sprint("alone ", i)))
		cancel()
		if err == nil {
			t.Fatal("agreed on without a majority")
		}
	}
	if last, err := x.s[lead].disk.LastIndex(); err != nil || last == before {
		return false
	}
	for i := range 3 {
		x.change(fmt.Sprint("agreed ", i), a, b)
	}
	x.f[lead].logs.Store(true) // takes off, does not put on
	x.split()
	eventually(t, "its end is taken off", func() bool {
		x.s[lead].disk.mu.Lock()
		defer x.s[lead].disk.mu.Unlock()
		return x.s[lead].disk.cut && x.s[lead].disk.trouble != nil
	})
	x.f[lead].works()
	x.change("after", 0, 1, 2)
	x.level(0, 1, 2)
	if last := x.s[lead].State().Last; last < 4 { // more when an answer was lost and it was asked again
		t.Errorf("revision %d, want 4", last)
	}
	return true
}

// alone cuts a leader off, has it write three entries that nobody agrees on, and shortens its log to a snapshot and what comes behind it.
func (x *trio) alone(lead, a, b int) {
	x.t.Helper()
	x.split([]int{a, b})
	for i := range 3 {
		ctx, cancel := contextFor(x.t, 20*time.Millisecond)
		_, _ = x.s[lead].Propose(ctx, revise(fmt.Sprint("alone ", i)))
		cancel()
	}
	c := x.s[lead].raft.ReloadableConfig()
	c.TrailingLogs = 1
	if err := errors.Join(x.s[lead].raft.ReloadConfig(c), x.s[lead].Compact()); err != nil {
		x.t.Fatal(err)
	}
}

// TestConflictBehindSnapshot: a member whose log begins right behind its snapshot, with entries that were never agreed on, takes the leader's instead.
// Raft would refuse them for ever.
func TestConflictBehindSnapshot(t *testing.T) {
	x := newTrio(t)
	lead := x.leader(0, 1, 2)
	a, b := (lead+1)%3, (lead+2)%3
	x.change("a", lead)
	x.level(0, 1, 2)
	x.alone(lead, a, b)
	first, err := x.s[lead].disk.FirstIndex()
	if base, _ := x.s[lead].snaps.base(); err != nil || base == 0 || first != base+1 {
		t.Fatalf("the log begins with %d, the snapshot is of %d (%v)", first, base, err)
	}
	for i := range 3 {
		x.change(fmt.Sprint("agreed ", i), a, b)
	}
	x.split()
	x.level(0, 1, 2)
}

// TestSnapshotOverConflict: the leader's snapshot ends where this member's log has another entry. It is opened again and goes on from the snapshot; Raft would refuse
// the leader for ever.
func TestSnapshotOverConflict(t *testing.T) {
	for attempt := range 5 { // on a busy machine the log that nobody agrees on may be too short to be met
		if overConflict(t) {
			return
		}
		t.Logf("attempt %d: the snapshot met no other entry", attempt)
	}
	t.Error("the snapshot met no other entry in five attempts")
}

func overConflict(t *testing.T) (met bool) {
	x := newTrio(t)
	lead := x.leader(0, 1, 2)
	a, b := (lead+1)%3, (lead+2)%3
	x.change("a", lead)
	x.level(0, 1, 2)
	from := x.s[a].State().Index
	x.split([]int{a, b})
	for i := range 16 {
		ctx, cancel := contextFor(t, 3*time.Millisecond)
		_, _ = x.s[lead].Propose(ctx, revise(fmt.Sprint("alone ", i)))
		cancel()
	}
	for n := from; n < from+3; n = x.s[a].State().Index {
		x.change(fmt.Sprint("agreed after ", n), a, b)
	}
	for _, i := range []int{a, b} {
		eventually(t, "it has everything", func() bool { return x.s[i].State().Index >= from+3 })
		c := x.s[i].raft.ReloadableConfig()
		c.TrailingLogs = 1
		if err := errors.Join(x.s[i].raft.ReloadConfig(c), x.s[i].Compact()); err != nil {
			t.Fatal(err)
		}
	}
	x.split()
	x.change("after", a, b)
	for end := time.Now().Add(10 * time.Second); x.s[lead].State().Last != x.s[a].State().Last; time.Sleep(5 * time.Millisecond) {
		select {
		case <-x.s[lead].Again():
			met = true
			if p := x.s[lead].Problem(); !strings.Contains(p, "is opened again") {
				t.Fatalf("says %q", p)
			}
			x.stop(lead)
			x.start(lead)
		default:
		}
		if time.Now().After(end) {
			t.Fatal("it does not follow")
		}
	}
	for i := range x.s {
		x.stop(i)
	}
	return met
}

// TestUnreadableEntry: a committed entry that cannot be read when it is to be applied stops that node, which says so and goes on answering; Raft would
// panic. A restart with the disk mended goes on where it was.
func TestUnreadableEntry(t *testing.T) {
	x := newTrio(t)
	lead := x.leader(0, 1, 2)
	bad := (lead + 1) % 3
	x.change("a", lead)
	x.level(0, 1, 2)
	last, err := x.s[lead].disk.LastIndex()
	if err != nil {
		t.Fatal(err)
	}
	x.s[bad].disk.cold = true
	x.f[bad].bad.Store(last + 1)
	x.change("b", lead, 3-lead-bad)
	eventually(t, "it has stopped", func() bool {
		return strings.Contains(x.s[bad].Problem(), fmt.Sprint("no entry is applied any more: log entry ", last+1))
	})
	if _, err := x.s[bad].Propose(t.Context(), revise("c")); err == nil || errors.Is(err, ErrUnknownOutcome) {
		t.Errorf("it goes on: %v", err)
	}
	if x.s[bad].State().Last != 1 {
		t.Errorf("revision %d was made up", x.s[bad].State().Last)
	}
	x.change("c", lead, 3-lead-bad)
	x.stop(bad)
	x.f[bad].bad.Store(0)
	x.start(bad)
	x.level(0, 1, 2)
}

// TestMembersOnFullDisk: a change of members that the disk refuses is refused before Raft has taken it up, and where the disk fills up in between, the node stops
// instead of counting votes by members that are on no disk.
func TestMembersOnFullDisk(t *testing.T) {
	x := newTrio(t)
	lead := x.leader(0, 1, 2)
	x.f[lead].fails(0, syscall.ENOSPC)
	if err := x.s[lead].AddLearner("n9", "n9", time.Second); !errors.Is(err, ErrNotWritten) {
		t.Errorf("%v", err)
	}
	x.f[lead].works()
	if v, err := x.s[lead].Voters(); err != nil || len(v) != 3 {
		t.Errorf("%v, %v", v, err)
	}
	x.change("a", 0, 1, 2)
	lead = x.leader(0, 1, 2)
	x.f[lead].fails(0, syscall.ENOSPC)
	err := x.s[lead].raft.AddNonvoter("n9", "n9", 0, time.Second).Error()
	if err == nil {
		t.Fatal("written on a full disk")
	}
	eventually(t, "it has stopped", func() bool {
		return strings.Contains(x.s[lead].Problem(), "a change of members could not be written")
	})
	x.change("b", (lead+1)%3, (lead+2)%3)
	x.stop(lead)
	x.start(lead)
	x.level(0, 1, 2)
	for i, s := range x.s {
		if v, err := s.Voters(); err != nil || len(v) != 3 {
			t.Errorf("n%d: %v, %v", i, v, err)
		}
	}
}

// TestSnapshotFromLeader: a member that was away longer than the log reaches back gets a snapshot with its texts, and starts again from it, with a gap in its log.
func TestSnapshotFromLeader(t *testing.T) {
	x := newTrio(t)
	lead := x.leader(0, 1, 2)
	away := (lead + 1) % 3
	x.stop(away)
	rest := []int{lead, (lead + 2) % 3}
	for i := range 6 {
		x.change(fmt.Sprint("policy ", i), rest...)
	}
	for _, i := range rest {
		x.s[i].cfg.TrailingEntries = 1
		c := x.s[i].raft.ReloadableConfig()
		c.TrailingLogs = 1
		if err := errors.Join(x.s[i].raft.ReloadConfig(c), x.s[i].Compact()); err != nil {
			t.Fatal(err)
		}
	}
	x.start(away)
	x.level(0, 1, 2)
	x.change("after", 0, 1, 2)
	x.level(0, 1, 2)
	for range 2 {
		for _, d := range x.s[away].State().Digests() {
			if _, err := x.s[away].Text(d); err != nil {
				t.Error(err)
			}
		}
		x.stop(away)
		x.start(away)
		x.level(0, 1, 2)
	}
}

// TestDamagedMemberComesBack: a member whose directory is damaged is taken out, and comes back as a new one with an empty directory. This is what docs/recovery.md says.
func TestDamagedMemberComesBack(t *testing.T) {
	x := newTrio(t)
	lead := x.leader(0, 1, 2)
	bad := (lead + 1) % 3
	x.change("a", lead)
	x.level(0, 1, 2)
	x.stop(bad)
	damageLog(t, x.c[bad].Dir, "a")
	if _, err := Open(x.c[bad]); !errors.Is(err, ErrDamaged) || !strings.Contains(err.Error(), "log entry") {
		t.Fatalf("%v", err)
	}
	lead = x.leader(lead, 3-lead-bad)
	if err := x.s[lead].Remove(x.c[bad].ID, 5*time.Second); err != nil {
		t.Fatal(err)
	}
	x.c[bad].Dir, x.c[bad].ID, x.addr[bad] = t.TempDir(), "n3", "n3"
	x.start(bad)
	x.join("n3", lead, 3-lead-bad)
	x.level(0, 1, 2)
	if b, err := x.s[bad].Text(command.Digest([]byte("a"))); err != nil || string(b) != "a" {
		t.Errorf("%q, %v", b, err)
	}
}
