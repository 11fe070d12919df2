package store

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/raft"
)

func three(suffrage ...raft.ServerSuffrage) (c raft.Configuration) {
	for i, s := range suffrage {
		c.Servers = append(c.Servers, raft.Server{Suffrage: s, ID: raft.ServerID(fmt.Sprint("n", i)), Address: raft.ServerAddress(fmt.Sprint("n", i))})
	}
	return c
}

func entries(from uint64, terms ...uint64) (out []*raft.Log) {
	for i, t := range terms {
		out = append(out, &raft.Log{Index: from + uint64(i), Term: t, Type: raft.LogNoop})
	}
	return out
}

// TestScreenEntries: what the snapshot covers is left out, nothing is agreed on that the message does not reach, and what Raft could only panic about is refused.
func TestScreenEntries(t *testing.T) {
	at := standing{term: 5, applied: 12, base: 10, baseTerm: 4}
	bad := func(l raft.Log) []*raft.Log { return []*raft.Log{&l} }
	for _, c := range []struct {
		name          string
		term          uint64
		prev, prevTrm uint64
		entries       []*raft.Log
		commit        uint64

		wantPrev, wantTerm uint64
		want               int // how many entries are left
		wantCommit         uint64
		err                string
	}{
		{name: "behind the snapshot", term: 5, prev: 11, prevTrm: 4, entries: entries(12, 4, 5), commit: 12, wantPrev: 11, wantTerm: 4, want: 2, wantCommit: 12},
		{name: "right behind it", term: 5, prev: 10, prevTrm: 4, entries: entries(11, 4), commit: 11, wantPrev: 10, wantTerm: 4, want: 1, wantCommit: 11},
		{name: "from the beginning", term: 5, entries: entries(1, 1, 1), commit: 12, wantPrev: 10, wantTerm: 4, wantCommit: 10},
		{name: "across its end", term: 5, prev: 8, prevTrm: 3, entries: entries(9, 4, 4, 5, 5), commit: 40, wantPrev: 10, wantTerm: 4, want: 2, wantCommit: 12},
		{name: "up to its end", term: 6, prev: 8, prevTrm: 3, entries: entries(9, 4, 4), commit: 9, wantPrev: 10, wantTerm: 4, wantCommit: 9},
		{name: "none before its end", term: 5, prev: 3, prevTrm: 1, commit: 3, wantPrev: 10, wantTerm: 4, wantCommit: 3},
		{name: "more is agreed on than is in it", term: 5, prev: 11, prevTrm: 4, entries: entries(12, 5), commit: 20, wantPrev: 11, wantTerm: 4, want: 1, wantCommit: 12},
		{name: "a term that is over", term: 4, prev: 3, prevTrm: 1, entries: entries(4, 1, 1), commit: 20, wantPrev: 3, wantTerm: 1, want: 2, wantCommit: 20},
		{name: "another entry was agreed on here", term: 5, prev: 8, prevTrm: 3, entries: entries(9, 4, 3), err: "entry 10 is of term 3, and the one that was agreed on here of term 4"},
		{name: "no list of members", term: 5, prev: 11, entries: bad(raft.Log{Index: 12, Type: raft.LogConfiguration, Data: []byte("\x18 garbage")}), err: "entry 12: it is no list of members"},
		{name: "an empty one", term: 4, prev: 11, entries: bad(raft.Log{Index: 12, Type: raft.LogConfiguration}), err: "entry 12: it is no list of members"},
		{name: "nobody votes", term: 5, prev: 11, entries: bad(raft.Log{Index: 12, Type: raft.LogConfiguration, Data: raft.EncodeConfiguration(three(raft.Nonvoter))}),
			err: "entry 12: it is a list of members of whom none has a vote"},
		{name: "an unknown kind", term: 5, prev: 11, entries: bad(raft.Log{Index: 12, Type: 77}), err: "entry 12 is of a kind (77) that this release does not know"},
		{name: "an old kind", term: 5, prev: 11, entries: bad(raft.Log{Index: 12, Type: raft.LogAddPeerDeprecated}), err: "of a kind"},
		{name: "none", term: 5, prev: 11, entries: []*raft.Log{nil}, err: "an entry is missing"},
		{name: "out of order", term: 5, prev: 11, entries: entries(13, 5), err: "entry 13 stands where entry 12 belongs"},
	} {
		t.Run(c.name, func(t *testing.T) {
			q := &raft.AppendEntriesRequest{Term: c.term, PrevLogEntry: c.prev, PrevLogTerm: c.prevTrm, Entries: c.entries, LeaderCommitIndex: c.commit}
			before := *q
			got, err := screenEntries(q, at)
			if !reflect.DeepEqual(*q, before) {
				t.Error("the sender's own message was changed")
			}
			if c.err != "" {
				if err == nil || !strings.Contains(err.Error(), c.err) {
					t.Fatalf("%v, want %q", err, c.err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if got.PrevLogEntry != c.wantPrev || got.PrevLogTerm != c.wantTerm || len(got.Entries) != c.want || got.LeaderCommitIndex != c.wantCommit {
				t.Errorf("%+v", got)
			}
			if n := len(c.entries); c.want > 0 && got.Entries[c.want-1] != c.entries[n-1] {
				t.Error("the last entry is another one")
			}
		})
	}
}

// TestScreenSnapshot: a snapshot that brings nothing new is answered for, one whose members cannot be read is refused.
func TestScreenSnapshot(t *testing.T) {
	at := standing{term: 5, applied: 12}
	members := raft.EncodeConfiguration(three(raft.Voter))
	for _, c := range []struct {
		name string
		q    raft.InstallSnapshotRequest
		done bool
		err  string
	}{
		{"new", raft.InstallSnapshotRequest{SnapshotVersion: 1, Term: 5, LastLogIndex: 13, Configuration: members}, false, ""},
		{"known", raft.InstallSnapshotRequest{SnapshotVersion: 1, Term: 5, LastLogIndex: 12, Configuration: members}, true, ""},
		{"of a term that is over", raft.InstallSnapshotRequest{SnapshotVersion: 1, Term: 4, LastLogIndex: 12, Configuration: members}, false, ""},
		{"garbage", raft.InstallSnapshotRequest{SnapshotVersion: 1, Term: 5, LastLogIndex: 13, Configuration: []byte{1}}, false, "the snapshot of entry 13: it is no list of members"},
		{"old", raft.InstallSnapshotRequest{Term: 5, LastLogIndex: 13, Configuration: members}, false, "too old"},
	} {
		a, err := screenSnapshot(&c.q, at)
		if (a != nil) != c.done || a != nil && (!a.Success || a.Term != 5) || (err == nil) != (c.err == "") || err != nil && !strings.Contains(err.Error(), c.err) {
			t.Errorf("%s: %+v, %v", c.name, a, err)
		}
	}
}

// TestAnswerReadsTheRest: what comes with a snapshot that is answered here is read to its end before the answer, else it would be taken for the next message.
func TestAnswerReadsTheRest(t *testing.T) {
	c := newScreen(nil, nil)
	for _, err := range []error{nil, errors.New("refused")} {
		rest, got := strings.NewReader(strings.Repeat("x", 1<<20)), make(chan raft.RPCResponse, 1)
		c.respond(raft.RPC{Reader: rest, RespChan: got}, &raft.InstallSnapshotResponse{}, err)
		if r := <-got; rest.Len() != 0 || !errors.Is(r.Error, err) || r.Response == nil {
			t.Errorf("%d bytes are left, answered %+v", rest.Len(), r)
		}
	}
}

// TestScreenVote: who is a voter by the list here is asked as it asks; for the others the list does not count.
func TestScreenVote(t *testing.T) {
	c := three(raft.Nonvoter, raft.Voter, raft.Voter)
	for _, v := range []struct{ id, vote, pre string }{{"n1", "n1", "n1"}, {"n0", "", "n1"}, {"n9", "", "n1"}, {"", "", "n1"}} {
		q, p := &raft.RequestVoteRequest{Term: 3}, &raft.RequestPreVoteRequest{Term: 3}
		q.ID, p.ID = []byte(v.id), []byte(v.id)
		q.Addr, p.Addr = []byte("here"), []byte("here")
		for _, stale := range []raft.ServerAddress{"", "lost"} {
			by := "here"
			if stale != "" {
				by = "lost"
			}
			if got := screenVote(q, c, stale); string(got.ID) != v.vote || got.Term != 3 || string(q.ID) != v.id || got.LeadershipTransfer != (stale != "") || string(got.Addr) != "here" {
				t.Errorf("%s, %q: a vote for %+v", v.id, stale, got)
			}
			if got := screenPreVote(p, c, stale); string(got.ID) != v.pre || got.Term != 3 || string(p.ID) != v.id || string(got.Addr) != by || string(p.Addr) != "here" {
				t.Errorf("%s, %q: a pre-vote for %+v", v.id, stale, got)
			}
		}
	}
	q, p := &raft.RequestVoteRequest{LeadershipTransfer: true}, &raft.RequestPreVoteRequest{}
	p.ID = []byte("n1")
	if got := screenPreVote(p, raft.Configuration{}, ""); string(got.ID) != "n1" {
		t.Error("a node without a list changes what it is asked")
	}
	if !screenVote(q, c, "").LeadershipTransfer {
		t.Error("a hand-over of the lead is none any more")
	}
}

// TestGarbageFromMember: over a real connection, an entry or a snapshot whose members cannot be read is refused by name, and the node goes on: Raft would panic. What
// came with the snapshot is not taken for the next message.
func TestGarbageFromMember(t *testing.T) {
	wire := func() *raft.NetworkTransport {
		tr, err := raft.NewTCPTransport("127.0.0.1:0", nil, 1, time.Second, io.Discard)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { tr.Close() })
		return tr
	}
	c := config(t.TempDir())
	in, out := wire(), wire()
	c.Transport = in
	s := open(t, c)
	head := raft.RPCHeader{ProtocolVersion: raft.ProtocolVersionMax, ID: []byte("bad"), Addr: []byte(out.LocalAddr())}
	append1 := func(l *raft.Log) error {
		return out.AppendEntries("n1", in.LocalAddr(), &raft.AppendEntriesRequest{RPCHeader: head, Term: 2, Entries: []*raft.Log{l}}, &raft.AppendEntriesResponse{})
	}
	garbage := &raft.Log{Index: 1, Term: 2, Type: raft.LogConfiguration, Data: []byte("\x18 not a list")}
	for range 3 {
		if err := append1(garbage); err == nil || !strings.Contains(err.Error(), "(bad) is refused: entry 1: it is no list of members") {
			t.Fatalf("%v", err)
		}
		q := &raft.InstallSnapshotRequest{RPCHeader: head, SnapshotVersion: 1, Term: 2, LastLogIndex: 3, LastLogTerm: 2, Configuration: []byte{7}, Size: 1 << 20}
		err := out.InstallSnapshot("n1", in.LocalAddr(), q, &raft.InstallSnapshotResponse{}, bytes.NewReader(make([]byte, q.Size)))
		if err == nil || !strings.Contains(err.Error(), "the snapshot of entry 3: it is no list of members") {
			t.Fatalf("%v", err)
		}
	}
	if p := s.Problem(); !strings.Contains(p, "(bad) is refused") {
		t.Errorf("says %q", p)
	}
	if last, err := s.disk.LastIndex(); err != nil || last != 0 {
		t.Errorf("%d entries on disk (%v)", last, err)
	}
	good := &raft.Log{Index: 1, Term: 2, Type: raft.LogConfiguration, Data: raft.EncodeConfiguration(three(raft.Voter))}
	if err := append1(good); err != nil {
		t.Fatal(err)
	}
	if p := s.Problem(); p != "" {
		t.Errorf("still says %q", p)
	}
}

// TestGarbageOnDisk: an entry that came before it was refused is named at start, where Raft would panic each time.
func TestGarbageOnDisk(t *testing.T) {
	c := config(t.TempDir())
	s := begin(t, c.Dir)
	last, err := s.disk.LastIndex()
	if err != nil {
		t.Fatal(err)
	}
	if err := s.raft.Shutdown().Error(); err != nil {
		t.Fatal(err)
	}
	if err := s.disk.StoreLog(&raft.Log{Index: last + 1, Term: 9, Type: raft.LogConfiguration, Data: []byte{3}}); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(c); !errors.Is(err, ErrDamaged) || !strings.Contains(err.Error(), fmt.Sprintf("entry %d: it is no list of members", last+1)) {
		t.Errorf("%v", err)
	}
}

// TestCarriedOutStays: a leader that has another entry than one that was carried out here, or this node, has lost what was agreed on. This node stops instead of
// becoming another one without a word.
func TestCarriedOutStays(t *testing.T) {
	x := newTrio(t)
	lead := x.leader(0, 1, 2)
	x.change("a", lead)
	x.level(0, 1, 2)
	to := (lead + 1) % 3
	var prev raft.Log
	if err := x.s[to].disk.read(2, &prev); err != nil {
		t.Fatal(err)
	}
	last, err := x.s[to].disk.LastIndex()
	if err != nil {
		t.Fatal(err)
	}
	_, probe := raft.NewInmemTransportWithTimeout("probe", time.Second)
	probe.Connect(x.tr[to].LocalAddr(), x.tr[to])
	term := x.s[to].raft.CurrentTerm() + 10 // whatever is elected meanwhile
	q := &raft.AppendEntriesRequest{RPCHeader: raft.RPCHeader{ProtocolVersion: raft.ProtocolVersionMax, ID: []byte("bad"), Addr: []byte("probe")}, Term: term,
		PrevLogEntry: 2, PrevLogTerm: prev.Term, Entries: entries(3, term)}
	var a raft.AppendEntriesResponse
	if err := probe.AppendEntries("", x.tr[to].LocalAddr(), q, &a); err == nil && a.Success {
		t.Error("it took the other entry")
	}
	if p := x.s[to].Problem(); !strings.Contains(p, "another entry 3 than the one that was carried out here") {
		t.Errorf("says %q", p)
	}
	if now, err := x.s[to].disk.LastIndex(); err != nil || now < last {
		t.Errorf("the last entry is %d, was %d (%v)", now, last, err)
	}
	x.change("b", lead, 3-lead-to)
}

// TestShorteningIsNoConflict: Raft shortens the log behind a snapshot as far as a moment before its end was taken off. That is no other leader's entry.
func TestShorteningIsNoConflict(t *testing.T) {
	d, _ := testDisk(t)
	d.stop = func(err error) { t.Error(err) }
	d.done = func() uint64 { return 4 }
	if err := d.StoreLogs(entries(1, 1, 1, 1, 1)); err != nil {
		t.Fatal(err)
	}
	if err := d.DeleteRange(1, 4); err != nil {
		t.Error(err)
	}
}

// TestRestoreLeavesNothingHalf: a snapshot counts also when what it does not name cannot be removed. Raft would stay where it was, and carry out again what the state has.
func TestRestoreLeavesNothingHalf(t *testing.T) {
	s := open(t, config(t.TempDir()))
	if err := s.Bootstrap(); err != nil {
		t.Fatal(err)
	}
	propose(t, s, initEntry())
	propose(t, s, revise("a"))
	var b bytes.Buffer
	if err := (&image{s.State()}).write(&b); err != nil {
		t.Fatal(err)
	}
	stuck := filepath.Join(s.cfg.Dir, "texts", strings.Repeat("0", 64))
	if err := os.MkdirAll(filepath.Join(stuck, "in the way"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := s.fsm.texts.retain(s.State().Digests()); err == nil {
		t.Fatal("it could be removed")
	}
	if err := s.fsm.Restore(io.NopCloser(&b)); err != nil || s.Problem() != "" {
		t.Errorf("%v, says %q", err, s.Problem())
	}
}

// TestStoppedAnswersForNothing: what Raft takes for carried out on a node that has stopped was not, so a snapshot of it is not answered for, and nothing is left out.
func TestStoppedAnswersForNothing(t *testing.T) {
	s := open(t, config(t.TempDir()))
	if err := s.Bootstrap(); err != nil {
		t.Fatal(err)
	}
	propose(t, s, initEntry())
	if err := s.Compact(); err != nil {
		t.Fatal(err)
	}
	if at := s.stand(); at.applied == 0 || at.base == 0 || at.baseTerm == 0 || at.base > at.applied || at.term == 0 {
		t.Errorf("%+v", at)
	}
	_ = s.fsm.stop(errors.New("for a test"))
	if at := s.stand(); at.applied != 0 || at.base != 0 || at.term == 0 {
		t.Errorf("stopped: %+v", at)
	}
}

// TestLeaderGoesBack: a leader whose log was never shortened goes back to its beginning, which a member has only in its snapshot. It follows all the same: Raft would
// refuse until the leader has a newer snapshot.
func TestLeaderGoesBack(t *testing.T) {
	x := newTrio(t)
	lead := x.leader(0, 1, 2)
	a, b := (lead+1)%3, (lead+2)%3
	x.change("a", lead)
	x.level(0, 1, 2)
	x.alone(lead, a, b)
	first, err := x.s[lead].disk.FirstIndex()
	if base, _ := x.s[lead].snaps.base(); err != nil || base == 0 || first < 2 {
		t.Fatalf("the log begins with %d, the snapshot is of %d (%v)", first, base, err)
	}
	for i := range 3 {
		x.change(fmt.Sprint("agreed ", i), a, b)
	}
	last, err := x.s[x.leader(a, b)].disk.LastIndex()
	if err != nil {
		t.Fatal(err)
	}
	// At each entry that it cannot read it refuses, and the leader goes back by one.
	x.s[lead].disk.cold = true
	x.f[lead].none.Store(int64(last) + 5)
	x.split()
	eventually(t, "the leader has gone back", func() bool { return x.f[lead].none.Load() <= 0 || x.s[lead].State().Last >= 4 })
	x.level(0, 1, 2)
}

// TestAgreedOnlySoFar: a message agrees on what it reaches and no more. Raft takes what stands behind that in its log for agreed on as well, which here is
// nobody's but its own.
func TestAgreedOnlySoFar(t *testing.T) {
	x := newTrio(t)
	lead := x.leader(0, 1, 2)
	a, b := (lead+1)%3, (lead+2)%3
	x.change("a", lead)
	x.level(0, 1, 2)
	var have raft.Log
	at, err := x.s[lead].disk.LastIndex()
	if err == nil {
		err = x.s[lead].disk.read(at, &have)
	}
	if err != nil {
		t.Fatal(err)
	}
	x.split([]int{a, b})
	for i := range 3 {
		ctx, cancel := contextFor(t, 20*time.Millisecond)
		_, _ = x.s[lead].Propose(ctx, revise(fmt.Sprint("alone ", i)))
		cancel()
	}
	alone, err := x.s[lead].disk.LastIndex()
	if err != nil || alone == at {
		t.Fatalf("its log has %d entries (%v)", alone, err)
	}
	for i := range 4 {
		x.change(fmt.Sprint("agreed ", i), a, b)
	}
	next := x.leader(a, b)
	before := x.s[lead].State().Last
	var prev raft.Log
	if err := x.s[next].disk.read(at-1, &prev); err != nil {
		t.Fatal(err)
	}
	// The leader went back too far, as it does after a member's disk has refused: this one sends what that member has.
	x.tr[next].Connect(x.tr[lead].LocalAddr(), x.tr[lead])
	id := x.c[next].ID
	q := &raft.AppendEntriesRequest{RPCHeader: raft.RPCHeader{ProtocolVersion: raft.ProtocolVersionMax, ID: []byte(id), Addr: []byte(id)}, Term: x.s[next].raft.CurrentTerm(),
		PrevLogEntry: at - 1, PrevLogTerm: prev.Term, Entries: []*raft.Log{{Index: at, Term: have.Term, Type: have.Type, Data: have.Data}}, LeaderCommitIndex: x.s[next].raft.CommitIndex()}
	_, probe := raft.NewInmemTransportWithTimeout("probe", time.Second)
	probe.Connect(x.tr[lead].LocalAddr(), x.tr[lead])
	var r raft.AppendEntriesResponse
	if err := probe.AppendEntries("", x.tr[lead].LocalAddr(), q, &r); err != nil {
		t.Fatal(err)
	}
	x.split()
	x.level(0, 1, 2)
	want := x.s[next].State()
	got := x.s[lead].State()
	w, err := want.EncodeState()
	if err != nil {
		t.Fatal(err)
	}
	g, err := got.EncodeState()
	if err != nil || !bytes.Equal(g, w) {
		t.Errorf("%v, revision %d before: it carried out what was never agreed on:\n%s\n%s", err, before, g, w)
	}
}

// TestOldSnapshot: a snapshot that a member has gone beyond takes it back neither to the state of then nor to the members of then.
func TestOldSnapshot(t *testing.T) {
	x := newTrio(t)
	lead := x.leader(0, 1, 2)
	x.change("a", lead)
	if err := x.s[lead].Compact(); err != nil {
		t.Fatal(err)
	}
	if err := x.s[lead].AddLearner("n9", "n9", time.Second); err != nil {
		t.Fatal(err)
	}
	x.change("b", lead)
	x.level(0, 1, 2)
	to := (lead + 1) % 3
	m, bad, err := x.s[lead].snaps.newest()
	if err != nil || m == nil || len(bad) > 0 {
		t.Fatal(err, bad)
	}
	meta, r, err := x.s[lead].snaps.Open(m.ID)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	id := x.c[lead].ID
	q := &raft.InstallSnapshotRequest{RPCHeader: raft.RPCHeader{ProtocolVersion: raft.ProtocolVersionMax, ID: []byte(id), Addr: []byte(id)}, SnapshotVersion: meta.Version,
		Term: x.s[lead].raft.CurrentTerm(), LastLogIndex: meta.Index, LastLogTerm: meta.Term, Size: meta.Size,
		Configuration: raft.EncodeConfiguration(meta.Configuration), ConfigurationIndex: meta.ConfigurationIndex}
	before := x.s[to].State().Index
	var a raft.InstallSnapshotResponse
	if err := x.tr[lead].InstallSnapshot("", x.tr[to].LocalAddr(), q, &a, r); err != nil || !a.Success {
		t.Fatalf("%+v, %v", a, err)
	}
	if now := x.s[to].State().Index; now < before {
		t.Errorf("it went back from entry %d to %d", before, now)
	}
	v, err := x.s[to].Voters()
	if err != nil || !slices.ContainsFunc(v, func(v Voter) bool { return v.ID == "n9" }) {
		t.Errorf("its members are %v (%v)", v, err)
	}
	x.change("c", 0, 1, 2)
	x.level(0, 1, 2)
}

// TestLeaderLostAfterPromotion: a leader is lost for good when one of the two others knows that it has got its vote and the other does not yet. The two elect a
// leader: Raft's own list would have each of them refuse.
func TestLeaderLostAfterPromotion(t *testing.T) {
	x := newTrio(t)
	lead := x.leader(0, 1, 2)
	old, young := (lead+1)%3, (lead+2)%3
	id := raft.ServerID(x.c[young].ID)
	if err := x.s[lead].raft.DemoteVoter(id, 0, time.Second).Error(); err != nil {
		t.Fatal(err)
	}
	x.change("a", lead)
	x.level(0, 1, 2)
	x.f[old].logs.Store(true) // it hears the leader, and its disk takes no entry
	if err := x.s[lead].Promote(string(id), x.addr[young], 5*time.Second); err != nil {
		t.Fatal(err)
	}
	x.stop(lead)
	x.f[old].works()
	if v, err := x.s[old].Voters(); err != nil || slices.ContainsFunc(v, func(v Voter) bool { return v.ID == string(id) && v.Votes }) {
		t.Fatalf("it knows already: %v, %v", v, err)
	}
	x.change("after", old, young)
	x.level(old, young)
}

// TestCandidateForgetsItsLeader: a member that gets a snapshot while it looks for a leader votes for another one when the sender is lost. Raft has the sender in mind from
// then on, without following it, and refuses everybody; where it cannot win itself nobody ever leads.
func TestCandidateForgetsItsLeader(t *testing.T) {
	x := newTrio(t)
	lead := x.leader(0, 1, 2)
	seeks, other := (lead+1)%3, (lead+2)%3
	x.level(0, 1, 2)
	x.split([]int{lead, other})
	x.change("a", lead, other)
	x.level(lead, other)
	if lead != x.leader(lead, other) {
		lead, other = other, lead
	}
	if err := x.s[lead].Compact(); err != nil {
		t.Fatal(err)
	}
	m, _, err := x.s[lead].snaps.newest()
	if err != nil {
		t.Fatal(err)
	}
	meta, r, err := x.s[lead].snaps.Open(m.ID)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	eventually(t, "it looks for a leader", func() bool { return x.s[seeks].raft.State() == raft.Candidate })
	_, probe := raft.NewInmemTransportWithTimeout("probe", time.Second)
	probe.Connect(x.tr[seeks].LocalAddr(), x.tr[seeks])
	q := &raft.InstallSnapshotRequest{RPCHeader: raft.RPCHeader{ProtocolVersion: raft.ProtocolVersionMax, ID: []byte(x.c[lead].ID), Addr: []byte(x.addr[lead])},
		SnapshotVersion: meta.Version, Term: x.s[seeks].raft.CurrentTerm(), LastLogIndex: meta.Index, LastLogTerm: meta.Term, Size: meta.Size,
		Configuration: raft.EncodeConfiguration(meta.Configuration), ConfigurationIndex: meta.ConfigurationIndex}
	var a raft.InstallSnapshotResponse
	if err := probe.InstallSnapshot("", x.tr[seeks].LocalAddr(), q, &a, r); err != nil || !a.Success {
		t.Fatalf("%+v, %v", a, err)
	}
	if l, _ := x.s[seeks].raft.LeaderWithID(); string(l) != x.addr[lead] || x.s[seeks].raft.State() != raft.Candidate {
		t.Fatalf("it has %q in mind and is %s", l, x.s[seeks].raft.State())
	}
	if id, _ := x.s[seeks].Leader(); id != "" {
		t.Errorf("it says that %s leads", id)
	}
	x.change("b", lead, other) // which the one that seeks does not have, so that it cannot win
	x.level(lead, other)
	x.stop(lead)
	x.split()
	x.change("after", other, seeks)
	x.level(other, seeks)
}

// TestOvertakenSnapshot: a snapshot that was begun before the leader's newer one came is not kept. Raft would take it for the newest, and as a leader look in the log for
// what only the other one has, and send that again and again.
func TestOvertakenSnapshot(t *testing.T) {
	s := open(t, config(t.TempDir()))
	if err := s.Bootstrap(); err != nil {
		t.Fatal(err)
	}
	propose(t, s, initEntry())
	create := func(index uint64) (raft.SnapshotSink, error) {
		return s.snaps.Create(1, index, 2, three(raft.Voter), 1, s.cfg.Transport)
	}
	fill := func(k raft.SnapshotSink) {
		t.Helper()
		if err := (&image{s.State()}).write(k); err != nil {
			t.Fatal(err)
		}
	}
	old, err := create(18)
	if err != nil {
		t.Fatal(err)
	}
	fill(old)
	young, err := create(26)
	if err != nil {
		t.Fatal(err)
	}
	fill(young)
	if err := young.Close(); err != nil {
		t.Fatal(err)
	}
	if err := old.Close(); err == nil || !strings.Contains(err.Error(), "one of entry 26 has come meanwhile") {
		t.Errorf("%v", err)
	}
	if _, err := create(19); err == nil {
		t.Error("an older one is begun")
	}
	list, err := s.snaps.List()
	if err != nil || len(list) != 1 || list[0].Index != 26 {
		t.Errorf("%+v, %v", list, err)
	}
	if left, _ := filepath.Glob(filepath.Join(s.snaps.dir, "*"+tmpSuffix)); len(left) != 0 {
		t.Errorf("left: %v", left)
	}
	if p := s.Problem(); p != "" {
		t.Errorf("says %q", p)
	}
}

// TestNewcomerAtLostAddress: a new member with an empty log, at the address of one that is lost, gives none of that one's votes: what that one had agreed on would be
// overwritten. Raft asks by address.
func TestNewcomerAtLostAddress(t *testing.T) {
	x := newTrio(t)
	lead := x.leader(0, 1, 2)
	lost, behind := (lead+1)%3, (lead+2)%3
	x.change("a", lead)
	x.level(0, 1, 2)
	x.split([]int{lead, lost})
	r := x.change("agreed by two", lead, lost)
	x.level(lead, lost)
	x.stop(lead)
	x.stop(lost)
	was := x.c[lost]
	x.c[lost].Dir, x.c[lost].ID = t.TempDir(), "n9"
	x.start(lost)
	for end := time.Now().Add(1500 * time.Millisecond); time.Now().Before(end); time.Sleep(2 * time.Millisecond) { // several elections
		if x.s[behind].Leads() {
			t.Fatal("a member leads that does not have what was agreed on")
		}
	}
	x.start(lead)
	x.level(lead, behind)
	if x.s[behind].State().Last != r.Revision {
		t.Errorf("revision %d, want %d", x.s[behind].State().Last, r.Revision)
	}
	// It becomes a member in the order of docs/recovery.md.
	if err := x.s[x.leader(lead, behind)].Remove(was.ID, 5*time.Second); err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		s := x.s[x.leader(lead, behind)]
		if s.AddLearner("n9", x.addr[lost], time.Second) == nil && s.Promote("n9", x.addr[lost], time.Second) == nil {
			break
		}
		if time.Now().After(end) {
			t.Fatal("the newcomer gets no vote")
		}
	}
	x.level(0, 1, 2)
}

// TestScreenRemembersTheGoal: what the first leader says to be agreed on is what a node has to reach; a message in pieces, a heartbeat and a leader whose term is over say nothing of it.
func TestScreenRemembersTheGoal(t *testing.T) {
	c := newScreen(nil, slog.New(slog.DiscardHandler))
	at := standing{term: 5}
	c.stand = func() standing { return at }
	say := func(term, commit uint64, want uint64, what string) {
		t.Helper()
		q := &raft.AppendEntriesRequest{Term: term, LeaderCommitIndex: commit}
		if commit > 0 {
			q.Entries = []*raft.Log{{Index: 1, Term: 1}}
		}
		if _, answer, err := c.judge(q); answer != nil || err != nil {
			t.Fatalf("%s: %v, %v", what, answer, err)
		}
		if got := c.goal.Load(); got != want {
			t.Errorf("%s: the goal is %d, want %d", what, got, want)
		}
	}
	say(5, 0, 0, "a heartbeat")
	say(4, 90, 0, "a leader whose term is over")
	say(5, 40, 40, "the first leader")
	say(5, 55, 40, "the same leader, later")
	at.term = 6
	say(5, 60, 40, "its term is over")
	say(6, 38, 38, "the next leader, which does not know yet that all of it is agreed on")
}
