package command

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"demarc/cluster/failover"
)

var update = flag.Bool("update", false, "write the golden files of this level again; those of older levels are never written again")

var t0 = time.Date(2026, 11, 26, 12, 0, 0, 0, time.UTC)

func entry(k Kind, body any, text string) *Entry {
	e := &Entry{Level: 1, Kind: k, Time: t0, Who: Who{Author: "root", From: "gw1", Nonce: ""}}
	switch b := body.(type) {
	case *Init:
		e.Init = b
	case *Revise:
		b.Digest, b.Bytes = Digest([]byte(text)), len(text)
		e.Revise, e.Text = b, []byte(text)
	case *Confirm:
		e.Confirm = b
	case *Expire:
		e.Expire = b
	case *Member:
		e.Member = b
	case *Forget:
		e.Forget = b
	case *Recover:
		e.Recover = b
	case *Token:
		e.Token = b
	case *Join:
		e.Join = b
	case *Bounds:
		e.Bounds = b
	case *Revoke:
		e.Revoke = b
	case *failover.Entry:
		e.Group = b
	}
	return e
}

func begin() *Entry { return entry(KindInit, &Init{Cluster: "c1", Bounds: DefaultBounds()}, "") }

// run applies entries from the zero state and returns the last state and all results.
func run(t testing.TB, es ...*Entry) (*State, []Result) {
	t.Helper()
	s, out := &State{}, []Result(nil)
	for i, e := range es {
		b, err := e.Encode()
		if err != nil {
			t.Fatalf("entry %d: %v", i, err)
		}
		d, err := Decode(b)
		if err != nil {
			t.Fatalf("entry %d: %v", i, err)
		}
		var r Result
		s, r = s.Apply(uint64(i+1), d)
		out = append(out, r)
	}
	return s, out
}

func why(r Result) Why {
	if r.Refused == nil {
		return ""
	}
	return r.Refused.Why
}

// TestRefusals tells each refusal by the entries that lead to it.
func TestRefusals(t *testing.T) {
	rev := func(text string, expected uint64, confirm time.Duration) *Entry {
		return entry(KindRevise, &Revise{Expected: expected, Confirm: confirm}, text)
	}
	gw := func(id, name string) *Entry {
		return entry(KindMember, &Member{ID: id, Name: name, Role: RoleGateway, Level: 1}, "")
	}
	confirm := func(n uint64) *Entry { return entry(KindConfirm, &Confirm{n}, "") }
	expire := func(n uint64) *Entry { return entry(KindExpire, &Expire{Revision: n}, "") }
	hash := func(t string) string { return Digest([]byte(t)) }
	token := func(t string) *Entry {
		return entry(KindToken, &Token{Hash: hash(t), Role: RoleGateway, Expires: t0.Add(time.Hour)}, "")
	}
	join := func(id, name, t, replace string) *Entry {
		return entry(KindJoin, &Join{Member: Member{ID: id, Name: name, Role: RoleGateway, Level: 1}, Token: hash(t), Replace: replace}, "")
	}
	late := join("1", "a", "x", "")
	late.Time = t0.Add(time.Hour)
	wit := join("1", "a", "x", "")
	wit.Join.Member.Role = RoleWitness
	many := []*Entry{begin()}
	for i := range MaxMembers + 1 {
		many = append(many, gw(fmt.Sprint(10+i), fmt.Sprint("n", i)))
	}
	tokens := []*Entry{begin()}
	for i := range maxTokens + 1 {
		tokens = append(tokens, token(fmt.Sprint(i)))
	}
	again := rev("same", 0, 0)
	again.Who.Nonce = "n1"
	heard := func(e *Entry) *Entry { e.Who.Nonce = "n2"; return e } // a request that may come twice
	revoke := func(client, key string, undo bool) *Entry {
		return entry(KindRevoke, &Revoke{Client: client, Key: key, Undo: undo}, "")
	}
	revoked := []*Entry{begin()}
	for i := range maxRevoked + 1 {
		revoked = append(revoked, revoke(fmt.Sprint("c", i), "", false))
	}
	for _, c := range []struct {
		name      string
		in        []*Entry
		why       Why
		text      string
		serving   uint64
		confirmed uint64
	}{
		{"not begun", []*Entry{rev("a", 0, 0)}, WhyBegun, "was not begun", 0, 0},
		{"begun twice", []*Entry{begin(), begin()}, WhyBegun, "cluster c1 already", 0, 0},
		{"first", []*Entry{begin(), rev("a", 0, 0)}, "", "", 1, 1},
		{"the first cannot be provisional", []*Entry{begin(), rev("a", 0, time.Minute)}, "", "", 1, 1},
		{"expected", []*Entry{begin(), rev("a", 0, 0), rev("b", 1, 0)}, "", "", 2, 2},
		{"conflict", []*Entry{begin(), rev("a", 0, 0), rev("b", 1, 0), rev("c", 1, 0)}, WhyConflict, "revision 2 is served, not 1", 2, 2},
		{"provisional", []*Entry{begin(), rev("a", 0, 0), rev("b", 0, time.Minute)}, "", "", 2, 1},
		{"onto a provisional one", []*Entry{begin(), rev("a", 0, 0), rev("b", 0, time.Minute), rev("c", 0, 0)}, WhyProvisional, "revision 2 by root waits", 2, 1},
		{"confirmed", []*Entry{begin(), rev("a", 0, 0), rev("b", 0, time.Minute), confirm(2)}, "", "", 2, 2},
		{"confirmed twice", []*Entry{begin(), rev("a", 0, 0), rev("b", 0, time.Minute), confirm(2), confirm(2)}, WhyLate, "confirmed already", 2, 2},
		{"confirmed twice by one request", []*Entry{begin(), rev("a", 0, 0), rev("b", 0, time.Minute), heard(confirm(2)), heard(confirm(2))}, "", "", 2, 2},
		{"and another revision came in between", []*Entry{begin(), rev("a", 0, 0), rev("b", 0, time.Minute), heard(confirm(2)), rev("c", 0, 0), heard(confirm(2))}, "", "", 3, 3},
		{"taken back twice by one request", []*Entry{begin(), rev("a", 0, 0), rev("b", 0, time.Minute), heard(expire(2)), heard(expire(2))}, "", "", 1, 1},
		{"confirmed twice by two requests", []*Entry{begin(), rev("a", 0, 0), rev("b", 0, time.Minute), heard(confirm(2)), confirm(2)}, WhyLate, "confirmed already", 2, 2},
		{"a request that came too late, twice", []*Entry{begin(), rev("a", 0, 0), rev("b", 0, time.Minute), expire(2), heard(confirm(2)), heard(confirm(2))}, WhyLate, "was not confirmed within 1m0s", 1, 1},
		{"expired", []*Entry{begin(), rev("a", 0, 0), rev("b", 0, time.Minute), expire(2)}, "", "", 1, 1},
		{"late confirm", []*Entry{begin(), rev("a", 0, 0), rev("b", 0, time.Minute), expire(2), confirm(2)}, WhyLate, "was not confirmed within 1m0s, revision 1 is served", 1, 1},
		{"late expiry", []*Entry{begin(), rev("a", 0, 0), rev("b", 0, time.Minute), confirm(2), expire(2)}, WhyLate, "confirmed already", 2, 2},
		{"after expiry numbers go on", []*Entry{begin(), rev("a", 0, 0), rev("b", 0, time.Minute), expire(2), rev("c", 1, 0)}, "", "", 3, 3},
		{"unknown", []*Entry{begin(), rev("a", 0, 0), confirm(7)}, WhyUnknown, "no revision 7", 1, 1},
		{"the same request twice", []*Entry{begin(), again, again}, "", "", 1, 1},
		{"a name twice", []*Entry{begin(), gw("1", "a"), gw("2", "a")}, WhyConflict, "called a already (1)", 0, 0},
		{"a member again", []*Entry{begin(), gw("1", "a"), gw("1", "b")}, "", "", 0, 0},
		{"a member that was forgotten", []*Entry{begin(), gw("1", "a"), entry(KindForget, &Forget{ID: "1"}, ""), gw("1", "a")}, WhyGone, "was removed from this cluster", 0, 0},
		{"a copy that is a moment old gives no number twice", []*Entry{begin(), gw("1", "a"), entry(KindRecover, &Recover{ID: "1", Copy: true, Last: 7}, ""), rev("a", 0, 0)}, "", "", 8, 8},
		{"the only one left", []*Entry{begin(), gw("1", "a"), gw("2", "b"), entry(KindRecover, &Recover{ID: "2"}, ""), gw("1", "a")}, WhyGone, "was removed from this cluster", 0, 0},
		{"joined", []*Entry{begin(), token("x"), join("1", "a", "x", "")}, "", "", 0, 0},
		{"joined again by who did not hear the answer", []*Entry{begin(), token("x"), join("1", "a", "x", ""), join("1", "a", "x", "")}, "", "", 0, 0},
		{"without a token", []*Entry{begin(), join("1", "a", "x", "")}, WhyToken, "not known here", 0, 0},
		{"by a used token", []*Entry{begin(), token("x"), join("1", "a", "x", ""), join("2", "b", "x", "")}, WhyToken, "it was used", 0, 0},
		{"by an old token", []*Entry{begin(), token("x"), late}, WhyToken, "was good until 2026-11-26T13:00:00Z", 0, 0},
		{"by a token of another role", []*Entry{begin(), token("x"), wit}, WhyToken, "is for a gateway, and a is a witness", 0, 0},
		{"in place of another", []*Entry{begin(), gw("1", "a"), token("x"), join("2", "a", "x", "1")}, "", "", 0, 0},
		{"in place of nobody", []*Entry{begin(), token("x"), join("2", "a", "x", "1")}, WhyUnknown, "no member 1", 0, 0},
		{"in place of one, by the name of another", []*Entry{begin(), gw("1", "a"), gw("3", "b"), token("x"), join("2", "b", "x", "1")}, WhyConflict, "called b already", 0, 0},
		{"the replaced one comes back", []*Entry{begin(), gw("1", "a"), token("x"), join("2", "b", "x", "1"), gw("1", "a")}, WhyGone, "a (1) was replaced by b", 0, 0},
		{"too many members", many, WhyFull, "has 15 members", 0, 0},
		{"too many tokens", tokens, WhyFull, "50 tokens are good already", 0, 0},
		{"a client is revoked, twice", []*Entry{begin(), revoke("al", "", false), revoke("al", "", false)}, "", "", 0, 0},
		{"and let in again", []*Entry{begin(), revoke("al", "", false), revoke("al", "", true)}, "", "", 0, 0},
		{"another of its certificates is let in", []*Entry{begin(), revoke("al", Digest([]byte("k")), false), revoke("al", "", true)}, WhyUnknown, "every certificate of al is not revoked", 0, 0},
		{"one is let in that was not revoked", []*Entry{begin(), revoke("al", Digest([]byte("k")), true)}, WhyUnknown, "the certificate of al for key 8254c329a92850f6… is not revoked", 0, 0},
		{"too many are revoked", revoked, WhyFull, "1000 clients are revoked already", 0, 0},
		{"nobody to forget", []*Entry{begin(), entry(KindForget, &Forget{ID: "1"}, "")}, WhyUnknown, "no member 1", 0, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			s, rs := run(t, c.in...)
			last := rs[len(rs)-1]
			if why(last) != c.why || last.Refused != nil && !strings.Contains(last.Refused.Text, c.text) {
				t.Errorf("got %+v, want %q with %q", last.Refused, c.why, c.text)
			}
			if s.Serving != c.serving || s.Confirmed != c.confirmed {
				t.Errorf("serving %d, confirmed %d; want %d, %d", s.Serving, s.Confirmed, c.serving, c.confirmed)
			}
			if l := s.Audit[len(s.Audit)-1]; l.Index != uint64(len(c.in)) || l.OK != (c.why == "") {
				t.Errorf("audit says %+v", l)
			}
		})
	}
}

// TestApplyChangesNothingOld applies random entries and finds every earlier state as it was.
func TestApplyChangesNothingOld(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		s := &State{}
		var states []*State
		var texts [][]byte
		for i := range 40 {
			s, _ = s.Apply(uint64(i+1), randomEntry(rt, i, s))
			b, err := s.EncodeState()
			if err != nil {
				rt.Fatal(err)
			}
			states, texts = append(states, s), append(texts, b)
		}
		for i, s := range states {
			if b, _ := s.EncodeState(); !bytes.Equal(b, texts[i]) {
				rt.Fatalf("state %d was changed by a later entry:\n%s", i, cmp.Diff(string(texts[i]), string(b)))
			}
		}
	})
}

func randomEntry(rt *rapid.T, i int, s *State) *Entry {
	n := func(name string) uint64 { return rapid.Uint64Range(1, s.Last+1).Draw(rt, name) }
	var e *Entry
	k := rapid.IntRange(0, 18).Draw(rt, "kind")
	at := t0.Add(time.Duration(rapid.IntRange(0, 200).Draw(rt, "minutes")) * time.Minute)
	pick := func(name string, from ...string) string { return rapid.SampledFrom(from).Draw(rt, name) }
	switch {
	case i == 0:
		e = begin()
		e.Init.Bounds = Bounds{Revisions: 3, Age: time.Hour, TextBytes: 2 * MaxText, Audit: 5}
	case k < 4:
		r := &Revise{Confirm: time.Duration(rapid.IntRange(0, 1).Draw(rt, "confirm")) * time.Minute}
		if rapid.Bool().Draw(rt, "expect") {
			r.Expected = n("expected")
		}
		e = entry(KindRevise, r, fmt.Sprint("text ", rapid.IntRange(0, 5).Draw(rt, "text")))
		e.Who.Nonce = rapid.SampledFrom([]string{"", "", "x", "y"}).Draw(rt, "nonce")
	case k < 6:
		e = entry(KindConfirm, &Confirm{n("confirmed")}, "")
	case k < 8:
		e = entry(KindExpire, &Expire{Revision: n("expired"), Manual: rapid.Bool().Draw(rt, "manual")}, "")
	case k < 9:
		id := rapid.SampledFrom([]string{"1", "2", "3"}).Draw(rt, "id")
		e = entry(KindMember, &Member{ID: id, Name: rapid.SampledFrom([]string{"a", "b"}).Draw(rt, "name"), Role: RoleWitness, Level: 1}, "")
	case k < 11:
		e = entry(KindToken, &Token{Hash: Digest([]byte(pick("token", "x", "y"))), Role: RoleWitness, Expires: at.Add(time.Hour)}, "")
	case k < 12:
		e = entry(KindJoin, &Join{Member: Member{ID: pick("id", "1", "2", "3"), Name: pick("name", "a", "b"), Role: RoleWitness, Level: 1, Key: Digest([]byte(pick("key", "k", "l")))},
			Token: Digest([]byte(pick("token", "x", "y"))), Replace: pick("replace", "", "1", "2")}, "")
	case k < 13:
		e = entry(KindBounds, &Bounds{Revisions: rapid.IntRange(2, 6).Draw(rt, "revisions"), Age: time.Duration(rapid.IntRange(0, 4).Draw(rt, "hours")) * time.Hour}, "")
	case k < 15:
		e = entry(KindRevoke, &Revoke{Client: pick("client", "a", "b"), Key: pick("key", "", Digest([]byte("k"))), Undo: rapid.Bool().Draw(rt, "undo")}, "")
	case k < 18:
		term := func(name string) failover.Term {
			return failover.Term{Epoch: rapid.Uint64Range(1, 4).Draw(rt, name), Node: pick(name+" node", "a", "b"), Life: 1}
		}
		e = entry(KindGroup, &failover.Entry{Kind: rapid.SampledFrom(failover.Kinds).Draw(rt, "group kind"), Group: pick("group", "east", "west"), After: rapid.Uint64Range(0, 4).Draw(rt, "after"),
			By: term("by"), Term: term("term"), Alone: failover.Fence, On: rapid.Bool().Draw(rt, "on"), Node: pick("about", "a", "b"), Cause: failover.CauseLease, Why: failover.RightExpired, Stale: true}, "")
	default:
		e = entry(KindForget, &Forget{ID: rapid.SampledFrom([]string{"1", "2", "3"}).Draw(rt, "id")}, "")
	}
	e.Time = at
	return e
}

// TestInvariants holds after every entry of random logs: numbers go up, what is served is kept, no text is named that was dropped, bounds.
func TestInvariants(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		s, there := &State{}, map[string]bool{}
		for i := range 60 {
			e := randomEntry(rt, i, s)
			before := s
			var r Result
			s, r = s.Apply(uint64(i+1), e)
			if e.Kind == KindRevise && r.Refused == nil {
				there[e.Revise.Digest] = true
			}
			for _, d := range r.Dropped {
				if !there[d] {
					rt.Fatalf("entry %d drops %s, which is not there", i, d)
				}
				delete(there, d)
			}
			if want := s.Digests(); len(want) != len(there) || slices.ContainsFunc(want, func(d string) bool { return !there[d] }) {
				rt.Fatalf("entry %d: the state names %v, kept are %v", i, want, there)
			}
			if s.Last < before.Last || s.Serving > s.Last || s.Confirmed > s.Serving {
				rt.Fatalf("entry %d: last %d, serving %d, confirmed %d", i, s.Last, s.Serving, s.Confirmed)
			}
			for _, n := range []uint64{s.Serving, s.Confirmed} {
				if _, ok := s.Revision(n); n != 0 && !ok {
					rt.Fatalf("entry %d: revision %d is not kept", i, n)
				}
			}
			if r.Refused != nil {
				a, b := *before, *s
				a.Index, b.Index, a.Audit, b.Audit = 0, 0, nil, nil
				if d := cmp.Diff(a, b); d != "" {
					rt.Fatalf("entry %d was refused (%s) and changed something:\n%s", i, r.Refused.Text, d)
				}
			}
			if len(s.Audit) > max(1, s.Bounds.Audit) {
				rt.Fatalf("%d audit lines", len(s.Audit))
			}
			b, err := s.EncodeState()
			if err != nil {
				rt.Fatal(err)
			}
			back, err := DecodeState(b)
			if err != nil {
				rt.Fatal(err)
			}
			if b2, _ := back.EncodeState(); !bytes.Equal(b, b2) {
				rt.Fatalf("entry %d: a snapshot does not come back as it was:\n%s", i, cmp.Diff(string(b), string(b2)))
			}
		}
	})
}

// TestRetention: by count, by bytes, by age; never what is served or gone back to.
func TestRetention(t *testing.T) {
	b := Bounds{Revisions: 3, Age: time.Hour, TextBytes: 2 * MaxText, Audit: 100}
	log := []*Entry{begin()}
	log[0].Init.Bounds = b
	add := func(text string, at time.Duration, confirm time.Duration) {
		e := entry(KindRevise, &Revise{Confirm: confirm}, text)
		e.Time = t0.Add(at)
		log = append(log, e)
	}
	kept := func(s *State) (n []uint64) {
		for _, r := range s.Revisions {
			n = append(n, r.Number)
		}
		return n
	}
	for i := range 5 {
		add(fmt.Sprint("p", i), time.Duration(i)*time.Minute, 0)
	}
	s, rs := run(t, log...)
	if d := cmp.Diff([]uint64{3, 4, 5}, kept(s)); d != "" {
		t.Error("by count:", d)
	}
	if want := []string{Digest([]byte("p1"))}; cmp.Diff(want, rs[5].Dropped) != "" {
		t.Errorf("dropped %v, want %v", rs[5].Dropped, want)
	}
	// 4 was replaced at minute 4; an hour and a bit later it is too old, 5 was served until then.
	add("p9", 66*time.Minute, time.Minute)
	s, _ = run(t, log...)
	if d := cmp.Diff([]uint64{5, 6}, kept(s)); d != "" {
		t.Error("by age:", d)
	}
	big := []*Entry{begin()}
	big[0].Init.Bounds = b
	log = big
	for i := range 3 {
		add(strings.Repeat("x", MaxText-1)+fmt.Sprint(i), 0, 0)
	}
	s, _ = run(t, log...)
	if d := cmp.Diff([]uint64{2, 3}, kept(s)); d != "" {
		t.Error("by bytes:", d)
	}
}

// TestBoundsCanBeChanged: less forgets at once, but neither what is served nor what is gone back to; what is not named stays.
func TestBoundsCanBeChanged(t *testing.T) {
	log := []*Entry{begin()}
	for i := range 6 {
		log = append(log, entry(KindRevise, &Revise{}, fmt.Sprint("p", i)))
	}
	log = append(log, entry(KindRevise, &Revise{Confirm: time.Minute}, "p0"), entry(KindBounds, &Bounds{Revisions: 2, Audit: 100}, ""))
	s, rs := run(t, log...)
	if want := (Bounds{Revisions: 2, Age: DefaultBounds().Age, TextBytes: DefaultBounds().TextBytes, Audit: 100}); s.Bounds != want {
		t.Errorf("%+v, want %+v", s.Bounds, want)
	}
	if len(s.Revisions) != 2 || s.Confirmed != 6 || s.Serving != 7 || s.Revisions[0].Number != 6 {
		t.Errorf("kept: %+v", s.Revisions)
	}
	// p0 is the text of revision 7 too.
	var want []string
	for i := 1; i < 5; i++ {
		want = append(want, Digest([]byte(fmt.Sprint("p", i))))
	}
	if d := cmp.Diff(want, rs[len(rs)-1].Dropped); d != "" {
		t.Errorf("dropped: %s", d)
	}
	for range 150 {
		log = append(log, entry(KindConfirm, &Confirm{99}, ""))
	}
	if s, _ = run(t, log...); len(s.Audit) != 100 {
		t.Errorf("%d lines of the audit log, want 100", len(s.Audit))
	}
	s, _ = run(t, append(log, entry(KindBounds, &Bounds{Age: 240 * time.Hour}, ""))...)
	if l := s.Audit[len(s.Audit)-1]; s.Bounds.Revisions != 2 || s.Bounds.Age != 240*time.Hour || !l.OK || !strings.Contains(l.What, "kept are 2 revisions, for 240h") {
		t.Errorf("%+v, %+v", s.Bounds, l)
	}
}

// TestWrongClocksForgetNothing: an entry from a node whose clock is wrong by years, in either direction and again and again, makes no revision too old.
func TestWrongClocksForgetNothing(t *testing.T) {
	log := []*Entry{begin()} // 30 days
	for i, at := range []time.Time{t0, t0.AddDate(50, 0, 0), t0.Add(time.Minute), time.Unix(0, 0), t0.Add(2 * time.Minute), {}, t0.AddDate(250, 0, 0), t0.Add(3 * time.Minute)} {
		e := entry(KindRevise, &Revise{}, fmt.Sprint("p", i))
		e.Time = at
		log = append(log, e)
	}
	s, _ := run(t, log...)
	if len(s.Revisions) != 8 {
		t.Errorf("%d revisions are kept, want all 8", len(s.Revisions))
	}
	for i := range 40 { // days go by
		e := entry(KindRevise, &Revise{}, fmt.Sprint("q", i))
		e.Time = t0.AddDate(0, 0, i)
		log = append(log, e)
	}
	s, _ = run(t, log...)
	if first := s.Revisions[0].Number; first <= 8 {
		t.Errorf("after 40 days revision %d is kept", first)
	}
}

// TestPackedTexts: a large text takes less room in an entry, comes back as it was, and cannot become larger than a text may be.
func TestPackedTexts(t *testing.T) {
	rules := strings.Repeat("to = \"198.51.100.7\"\n", 50_000)
	noise := make([]byte, packFrom)
	for i := range noise {
		sum := Digest([]byte{byte(i), byte(i >> 8)})
		noise[i] = sum[0] ^ sum[1]<<4 ^ byte(i*i)
	}
	for name, text := range map[string]string{"rules": rules, "small": "schema = 1\n", "at the bound": strings.Repeat("x", MaxText)} {
		e := entry(KindRevise, &Revise{}, text)
		b, err := e.Encode()
		if err != nil {
			t.Fatal(err)
		}
		if name != "small" && len(b) > len(text)/5 {
			t.Errorf("%s: %d bytes of %d", name, len(b), len(text))
		}
		got, err := Decode(b)
		if err != nil || string(got.Text) != text {
			t.Errorf("%s: does not come back: %v", name, err)
		}
	}
	head, err := json.Marshal(entry(KindRevise, &Revise{}, "x"))
	if err != nil {
		t.Fatal(err)
	}
	in := func(packed []byte) []byte {
		b := binary.AppendUvarint([]byte{formatPacked}, uint64(len(head)))
		return append(append(b, head...), packed...)
	}
	for name, packed := range map[string][]byte{"too large": pack(make([]byte, MaxText+1)), "cut off": pack([]byte(rules))[:40], "noise": noise} {
		if _, err := Decode(in(packed)); !errors.Is(err, ErrUnreadable) || !strings.Contains(err.Error(), "cannot be unpacked") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// golden are entries of level 1 as they were first written. Later builds must read them to the same entries.
func golden() map[string]*Entry {
	m := map[string]*Entry{
		"init":    begin(),
		"revise":  entry(KindRevise, &Revise{Expected: 3, Name: "lab", Source: "/etc/p.toml", Comment: "web", Back: 2, Confirm: time.Minute}, "schema = 1\n"),
		"confirm": entry(KindConfirm, &Confirm{4}, ""),
		"expire":  entry(KindExpire, &Expire{Revision: 4, Manual: true}, ""),
		"member":  entry(KindMember, &Member{ID: "id1", Name: "gw1", Address: "192.0.2.1:7400", Role: RoleGateway, Version: "v0.1", Level: 1}, ""),
		"token":   entry(KindToken, &Token{Hash: Digest([]byte("t")), Role: RoleWitness, Expires: t0.Add(time.Hour), By: "root"}, ""),
		"join": entry(KindJoin, &Join{Member: Member{ID: "id2", Name: "w", Address: "192.0.2.3:7400", Role: RoleWitness, Version: "v0.1", Level: 1, Key: Digest([]byte("k"))},
			Token: Digest([]byte("t")), Replace: "id1"}, ""),
		"bounds":   entry(KindBounds, &Bounds{Revisions: 50, Age: 240 * time.Hour}, ""),
		"forget":   entry(KindForget, &Forget{ID: "id1", By: "id2"}, ""),
		"recover":  entry(KindRecover, &Recover{ID: "id1", Copy: true}, ""),
		"packed":   entry(KindRevise, &Revise{Name: "large"}, strings.Repeat("to = \"198.51.100.7\"\n", 300)),
		"revoke":   entry(KindRevoke, &Revoke{Client: "alice", Key: Digest([]byte("k")), Why: "lost laptop"}, ""),
		"smallest": {Level: 1, Kind: KindConfirm, Confirm: &Confirm{1}},
		"features": entry(KindRevise, &Revise{Name: "new", Features: []string{"tenant.x"}, Except: []string{"id1"}}, "schema = 1\n"),
		"knows": entry(KindMember, &Member{ID: "id1", Name: "gw1", Address: "192.0.2.1:7400", Role: RoleGateway, Version: "v0.2", Level: 1,
			Features: []string{"tenant.x", "tenant.y"}}, ""),
		"claim": entry(KindGroup, &failover.Entry{Kind: failover.KindClaim, Group: "east", After: 3, By: failover.Term{Epoch: 2, Node: "gw1", Life: 7},
			Term: failover.Term{Epoch: 3, Node: "gw2", Life: 8}, Alone: failover.Fence, Cause: failover.CauseLease, Why: failover.RightExpired, Stale: true}, ""),
		"sync":  entry(KindGroup, &failover.Entry{Kind: failover.KindSync, Group: "east", After: 1, By: failover.Term{Epoch: 1, Node: "gw1", Life: 7}, Node: "gw2", On: true, Seq: 99}, ""),
		"alone": entry(KindGroup, &failover.Entry{Kind: failover.KindAlone, Group: "east", After: 2, By: failover.Term{Epoch: 1, Node: "gw1", Life: 7}, Alone: failover.Keep}, ""),
		"drain": entry(KindGroup, &failover.Entry{Kind: failover.KindDrain, Node: "gw1", On: true}, ""),
	}
	m["revise"].Who.Nonce = "5f"
	return m
}

func TestGoldenEntries(t *testing.T) {
	for name, want := range golden() {
		file := filepath.Join("testdata", "level1", name+".hex")
		if *update && Level == 1 {
			b, err := want.Encode()
			if err != nil {
				t.Fatal(err)
			}
			if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(file, []byte(hex.EncodeToString(b)+"\n"), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		b, err := hex.DecodeString(strings.TrimSpace(string(text)))
		if err != nil {
			t.Fatal(err)
		}
		got, err := Decode(b)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if d := cmp.Diff(want, got); d != "" {
			t.Errorf("%s:\n%s", name, d)
		}
	}
}

// TestGoldenState: the state that a log of every kind leads to, as it was first written.
func TestGoldenState(t *testing.T) {
	s, _ := run(t, begin(), golden()["member"], entry(KindRevise, &Revise{}, "a"), entry(KindRevise, &Revise{Confirm: time.Minute}, "b"),
		entry(KindExpire, &Expire{Revision: 2}, ""), entry(KindRevise, &Revise{Confirm: time.Hour, Comment: "again"}, "b"), golden()["token"], golden()["join"],
		entry(KindMember, &Member{ID: "id3", Name: "gw3", Role: RoleGateway, Level: 1}, ""), entry(KindForget, &Forget{ID: "id3"}, ""),
		entry(KindToken, &Token{Hash: Digest([]byte("u")), Role: RoleGateway, Expires: t0.Add(time.Hour)}, ""),
		golden()["revoke"], entry(KindRevoke, &Revoke{Client: "robert"}, ""), entry(KindRevoke, &Revoke{Client: "robert", Undo: true}, ""),
		entry(KindGroup, &failover.Entry{Kind: failover.KindClaim, Group: "east", Term: failover.Term{Epoch: 1, Node: "gw1", Life: 7}, Alone: failover.Fence, Cause: failover.CauseFirst,
			Why: failover.RightExpired}, ""), golden()["sync"], golden()["alone"], entry(KindMember, &Member{ID: "id4", Name: "gw1", Role: RoleGateway, Level: 1}, ""), golden()["drain"])
	file := filepath.Join("testdata", "level1", "state.json")
	b, err := s.EncodeState()
	if err != nil {
		t.Fatal(err)
	}
	if *update && Level == 1 {
		if err := os.WriteFile(file, append(b, '\n'), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	got, err := DecodeState(text)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(s, got); d != "" {
		t.Error(d)
	}
}

// TestRevoked: a name covers every certificate of it, a key that one, and nobody else is meant.
func TestRevoked(t *testing.T) {
	k, l := Digest([]byte("k")), Digest([]byte("l"))
	s, _ := run(t, begin(), entry(KindRevoke, &Revoke{Client: "alice"}, ""), entry(KindRevoke, &Revoke{Client: "robert", Key: k, Why: "lost"}, ""))
	for _, c := range []struct {
		client, key string
		want        bool
	}{{"alice", k, true}, {"alice", l, true}, {"robert", k, true}, {"robert", l, false}, {"anna", k, false}} {
		if got := slices.ContainsFunc(s.Revoked, func(r Revoked) bool { return r.Covers(c.client, c.key) }); got != c.want {
			t.Errorf("%s with %.4s: %v", c.client, c.key, got)
		}
	}
	if r := s.Revoked[1]; r.By != "root" || r.Why != "lost" || !r.Time.Equal(t0) {
		t.Errorf("%+v", r)
	}
	if l := s.Audit[len(s.Audit)-1].What; l != "the certificate of robert for key 8254c329a92850f6… is revoked: lost" {
		t.Errorf("audit: %s", l)
	}
}

// TestTakenBackByToken: whoever is sent with a new token may come with the certificate that had to go, and until then may not.
func TestTakenBackByToken(t *testing.T) {
	key := Digest([]byte("key"))
	log := []*Entry{begin(), entry(KindMember, &Member{ID: "1", Name: "a", Role: RoleGateway, Level: 1, Key: key}, ""), entry(KindForget, &Forget{ID: "1"}, "")}
	s, _ := run(t, log...)
	if g, ok := s.Left("1"); !ok || g.Key != key || g.Name != "a" {
		t.Errorf("%+v", g)
	}
	log = append(log, entry(KindToken, &Token{Hash: Digest([]byte("x")), Role: RoleGateway, Expires: t0.Add(time.Hour)}, ""),
		entry(KindJoin, &Join{Member: Member{ID: "2", Name: "a", Role: RoleGateway, Level: 1, Key: key}, Token: Digest([]byte("x"))}, ""))
	s, _ = run(t, log...)
	if g, ok := s.Left("1"); !ok || g.Key != "" || len(s.Tokens) != 0 {
		t.Errorf("%+v, tokens %v", g, s.Tokens)
	}
}

// TestUnreadable: everything that this build does not know stops it, and is named.
func TestUnreadable(t *testing.T) {
	head := func(json, text string) []byte {
		return append(append([]byte{format, byte(len(json))}, json...), text...)
	}
	if len(`{"level":1}`) > 127 {
		t.Fatal("lengths above are of one byte")
	}
	for _, c := range []struct {
		name string
		in   []byte
		says string
	}{
		{"empty", nil, "empty"},
		{"format", []byte{9, 0}, "format 9, this build reads 1 and 2"},
		{"length", []byte{format, 200, 1, '{'}, "wrong length"},
		{"level", head(`{"level":2,"kind":"quota","quota":{}}`, ""), `it is of a later release: "quota" of level 2, this build reads up to 1: upgrade this node`},
		{"kind", head(`{"level":1,"kind":"quota"}`, ""), `kind "quota" is not known`},
		{"field", head(`{"level":1,"kind":"confirm","confirm":{"revision":1,"soft":true}}`, ""), `unknown field "soft"`},
		{"no body", head(`{"level":1,"kind":"confirm"}`, ""), "must have the body of that kind"},
		{"two bodies", head(`{"level":1,"kind":"confirm","confirm":{"revision":1},"forget":{"id":"1"}}`, ""), "and no other"},
		{"text", head(`{"level":1,"kind":"confirm","confirm":{"revision":1}}`, "x"), "has no text"},
		{"damaged", head(`{"level":1,"kind"`, ""), "damaged"},
		{"trailing", head(`{"level":1,"kind":"confirm","confirm":{"revision":1}}{}`, ""), "damaged"},
	} {
		_, err := Decode(c.in)
		if !errors.Is(err, ErrUnreadable) || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v, want %q", c.name, err, c.says)
		}
	}
	b, err := entry(KindRevise, &Revise{}, "policy").Encode()
	if err != nil {
		t.Fatal(err)
	}
	b[len(b)-1] ^= 1
	if _, err := Decode(b); !errors.Is(err, ErrUnreadable) || !strings.Contains(err.Error(), "digest") {
		t.Errorf("a changed text: %v", err)
	}
	for _, in := range []string{`{"level":2,"state":{"new":1}}`, `{"level":1}`, `{`, `{"level":1,"state":{"new":1}}`} {
		if _, err := DecodeState([]byte(in)); !errors.Is(err, ErrUnreadable) {
			t.Errorf("state %s: %v", in, err)
		}
	}
}

func TestEncodeRefuses(t *testing.T) {
	long := strings.Repeat("x", MaxField+1)
	for name, e := range map[string]*Entry{
		"empty policy":    entry(KindRevise, &Revise{}, ""),
		"large policy":    entry(KindRevise, &Revise{}, strings.Repeat("x", MaxText+1)),
		"long comment":    entry(KindRevise, &Revise{Comment: long}, "a"),
		"long confirm":    entry(KindRevise, &Revise{Confirm: MaxConfirm + 1}, "a"),
		"negative":        entry(KindRevise, &Revise{Confirm: -1}, "a"),
		"revision 0":      entry(KindConfirm, &Confirm{}, ""),
		"no role":         entry(KindMember, &Member{ID: "1", Name: "a", Level: 1}, ""),
		"no hash":         entry(KindToken, &Token{Hash: "t", Role: RoleWitness, Expires: t0.Add(time.Hour)}, ""),
		"a long token":    entry(KindToken, &Token{Hash: Digest(nil), Role: RoleWitness, Expires: t0.Add(MaxTokenLife + 1)}, ""),
		"a token of old":  entry(KindToken, &Token{Hash: Digest(nil), Role: RoleWitness, Expires: t0}, ""),
		"no newcomer":     entry(KindJoin, &Join{Token: Digest(nil)}, ""),
		"no id":           entry(KindForget, &Forget{}, ""),
		"nobody left":     entry(KindRecover, &Recover{}, ""),
		"too few bounds":  entry(KindInit, &Init{Cluster: "c", Bounds: Bounds{Revisions: 1, TextBytes: 1 << 30, Audit: 1}}, ""),
		"one revision":    entry(KindBounds, &Bounds{Revisions: 1}, ""),
		"negative bound":  entry(KindBounds, &Bounds{Audit: -100}, ""),
		"all texts":       entry(KindBounds, &Bounds{TextBytes: MostBounds.TextBytes + 1}, ""),
		"half hours":      entry(KindBounds, &Bounds{Age: 90 * time.Minute}, ""),
		"no bound":        entry(KindBounds, &Bounds{}, ""),
		"no cluster":      entry(KindInit, &Init{Bounds: DefaultBounds()}, ""),
		"level to come":   {Level: Level + 1, Kind: KindConfirm, Confirm: &Confirm{1}},
		"kind of nothing": {Level: 1, Kind: "x"},
		"no group entry":  entry(KindGroup, &failover.Entry{Kind: "steal", Group: "east"}, ""),
		"long group":      entry(KindGroup, &failover.Entry{Kind: failover.KindClaim, Group: strings.Repeat("x", 256)}, ""),
	} {
		if _, err := e.Encode(); err == nil {
			t.Errorf("%s: encoded", name)
		}
	}
}

func FuzzDecode(f *testing.F) {
	for _, e := range golden() {
		b, err := e.Encode()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		e, err := Decode(in)
		if err != nil {
			if !errors.Is(err, ErrUnreadable) {
				t.Fatal(err)
			}
			return
		}
		b, err := e.Encode()
		if err != nil {
			t.Fatalf("what was decoded cannot be encoded: %v", err)
		}
		again, err := Decode(b)
		if err != nil {
			t.Fatal(err)
		}
		x, _ := json.Marshal(e)
		y, _ := json.Marshal(again)
		if !bytes.Equal(x, y) || !bytes.Equal(e.Text, again.Text) {
			t.Fatalf("%s and %s", x, y)
		}
		_, _ = (&State{Cluster: "c", Bounds: DefaultBounds()}).Apply(1, e)
	})
}

// TestAuditIsShared: a state shares the lines of the audit log with the one that it came from, so that an entry costs the same however long the log is; and of states that
// came from one, none sees another's lines.
func TestAuditIsShared(t *testing.T) {
	const lines = 10_000
	s, _ := run(t, begin())
	i := uint64(1)
	next := func(s *State, what uint64) *State {
		i++
		n, _ := s.Apply(i, entry(KindConfirm, &Confirm{what}, ""))
		return n
	}
	for range lines + 100 {
		s = next(s, 99)
	}
	if len(s.Audit) != lines {
		t.Fatalf("%d lines", len(s.Audit))
	}
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	const more = 4000
	for range more {
		s = next(s, 99)
	}
	runtime.ReadMemStats(&after)
	if each := (after.TotalAlloc - before.TotalAlloc) / more; each > 16<<10 {
		t.Errorf("an entry with %d lines in the log costs %d bytes", lines, each)
	}
	if len(s.Audit) != lines || cap(s.Audit) > 2*lines || s.Audit[lines-1].Index != i || s.Audit[0].Index != i-lines+1 {
		t.Errorf("%d lines of %d, %d to %d, last entry %d", len(s.Audit), cap(s.Audit), s.Audit[0].Index, s.Audit[lines-1].Index, i)
	}
	at := i
	a := next(s, 1)
	i = at
	b := next(s, 2)
	c := next(b, 3)
	for _, x := range []struct {
		name string
		s    *State
		last []string
	}{{"one", a, []string{"revision 1"}}, {"another", b, []string{"revision 2"}}, {"after that", c, []string{"revision 2", "revision 3"}}} {
		for k, want := range x.last {
			if l := x.s.Audit[lines-len(x.last)+k]; !strings.Contains(l.What, want) {
				t.Errorf("%s: %q, want %s", x.name, l.What, want)
			}
		}
	}
	i = at
	e := entry(KindBounds, &Bounds{Audit: 100}, "")
	d, _ := s.Apply(i+1, e)
	if len(d.Audit) != 100 || cap(d.Audit) > 200 {
		t.Errorf("lower limit: %d lines, room for %d", len(d.Audit), cap(d.Audit))
	}
}
