package command

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"slices"
	"time"

	"demarc/cluster/failover"
)

// Digest is the SHA-256 of a text in 64 hex digits.
func Digest(text []byte) string {
	sum := sha256.Sum256(text)
	return hex.EncodeToString(sum[:])
}

// Revision is one policy that was accepted, without its text.
type Revision struct {
	Number  uint64        `json:"number"` // from 1, never used twice
	Digest  string        `json:"digest"`
	Bytes   int           `json:"bytes"`
	Name    string        `json:"name,omitempty"`
	Source  string        `json:"source,omitempty"`
	Comment string        `json:"comment,omitempty"`
	Author  string        `json:"author,omitempty"`
	From    string        `json:"from,omitempty"`
	Nonce   string        `json:"nonce,omitempty"` // of the request, see Who
	Time    time.Time     `json:"time"`
	Back    uint64        `json:"rollback_of,omitempty"`
	Before  uint64        `json:"before"`               // the revision that was served until then; 0 = none
	Confirm time.Duration `json:"confirm_ns,omitempty"` // it had to be confirmed within this
	Fate    Fate          `json:"fate"`
	Since   time.Duration `json:"since_ns,omitempty"` // State.Elapsed when it was accepted

	Features []string `json:"features,omitempty"` // that its text uses, sorted
}

// Fate is what became of a revision.
type Fate string

// The fates.
const (
	FateConfirmed   Fate = "confirmed"
	FateProvisional Fate = "provisional"
	FateExpired     Fate = "expired"    // not confirmed in time
	FateTakenBack   Fate = "taken back" // by somebody, before its time was over
)

// Line is one line of the audit log.
type Line struct {
	Index uint64    `json:"index"` // of the entry
	Time  time.Time `json:"time"`
	Who   Who       `json:"who"`
	Kind  Kind      `json:"kind"`
	What  string    `json:"what"`
	OK    bool      `json:"ok"` // carried out; else What says why not
}

// State is what a cluster has agreed on. The zero value is a cluster that was not begun.
type State struct {
	Index     uint64     `json:"index"` // of the last entry
	Cluster   string     `json:"cluster"`
	Bounds    Bounds     `json:"bounds"`
	Last      uint64     `json:"last"`      // the highest revision number given
	Serving   uint64     `json:"serving"`   // what gateways serve; 0 = nothing yet
	Confirmed uint64     `json:"confirmed"` // what they go back to; the same as Serving unless that is provisional
	Revisions []Revision `json:"revisions"` // kept ones, oldest first
	// Elapsed is what the age of revisions is measured by: the times of entries that revise, of which Seen is the last, each counted with a day at
	// most and none backwards. So a node whose clock is wrong by years makes nobody forget what is kept.
	Elapsed time.Duration `json:"elapsed_ns"`
	Seen    time.Time     `json:"seen"`
	Members []Member      `json:"members"`           // by id
	Gone    []Gone        `json:"gone"`              // members that were forgotten, oldest first
	Tokens  []Token       `json:"tokens"`            // that newcomers may still come by
	Level   int           `json:"level"`             // the highest of the entries so far: what reads this, and what a newcomer must be able to read
	Audit   []Line        `json:"audit"`             // oldest first
	Revoked []Revoked     `json:"revoked,omitempty"` // clients whose certificates are refused, oldest first

	Groups failover.State `json:"groups,omitzero"` // who owns which, and who is to own none
}

// Revoked is a client whose certificates are refused: all of them, or the one for Key.
type Revoked struct {
	Client string    `json:"client"`
	Key    string    `json:"key,omitempty"` // see Revoke
	Why    string    `json:"why,omitempty"`
	By     string    `json:"by,omitempty"`
	Time   time.Time `json:"time"` // of the entry
}

// Covers says whether a certificate, by the name and the key in it, is meant.
func (r *Revoked) Covers(client, key string) bool {
	return r.Client == client && (r.Key == "" || r.Key == key)
}

// Which is what of the client's is refused, in words.
func (r *Revoked) Which() string {
	if r.Key == "" {
		return "every certificate of " + r.Client
	}
	return "the certificate of " + r.Client + " for key " + r.Key[:16] + "…"
}

// Gone is a member that was forgotten. It is not let in any more, nor is anybody with its certificate.
type Gone struct {
	ID   string `json:"id"`
	Name string `json:"name"`
	Key  string `json:"key,omitempty"`         // see Member
	By   string `json:"replaced_by,omitempty"` // name of the member that took its place
}

// Bounds of lists that entries add to.
const (
	MaxMembers = 15
	maxGone    = 500
	maxTokens  = 50
	maxRevoked = 1000
	maxGroups  = 1000 // names that were ever owned: a policy has 255 at most at a time
)

// Result is what the proposer of an entry is told, the same on every node.
type Result struct {
	Revision uint64   // with revise: its number
	Refused  *Refusal // nil = carried out
	Dropped  []string // digests of texts that no kept revision has any more: with revise and bounds
}

// Refusal says why an entry that is in the log changed nothing.
type Refusal struct {
	Why  Why
	Text string
}

// Error makes a Refusal an error.
func (r *Refusal) Error() string { return r.Text }

// Why sorts refusals, for callers that go on differently.
type Why string

// The kinds of refusal.
const (
	WhyConflict    Why = "conflict"    // somebody else was first
	WhyProvisional Why = "provisional" // a provisional revision must be confirmed or taken back first
	WhyLate        Why = "late"        // what was to be confirmed or taken back is not provisional any more
	WhyUnknown     Why = "unknown"     // no such revision or member
	WhyBegun       Why = "begun"       // the cluster was begun already, or was not yet
	WhyGone        Why = "gone"        // a member that was forgotten
	WhyToken       Why = "token"       // not one that somebody may join by
	WhyFull        Why = "full"        // as many as there may be
	WhyRelease     Why = "release"     // a member's release does not know something
	WhyGroup       Why = "group"       // what is agreed on about a group says otherwise
)

// Pending is the provisional revision, if there is one.
func (s *State) Pending() (*Revision, bool) {
	if s.Serving == s.Confirmed {
		return nil, false
	}
	return s.Revision(s.Serving)
}

// Revision finds a kept revision. What it points to is not to be changed.
func (s *State) Revision(n uint64) (*Revision, bool) {
	i, ok := slices.BinarySearchFunc(s.Revisions, n, func(r Revision, n uint64) int {
		switch {
		case r.Number < n:
			return -1
		case r.Number > n:
			return 1
		}
		return 0
	})
	if !ok {
		return nil, false
	}
	return &s.Revisions[i], true
}

// Apply is the state after one more entry, and what its proposer is told. The entry was decoded by this build. s stays as it is.
func (s *State) Apply(index uint64, e *Entry) (*State, Result) {
	n := *s
	n.Index, n.Level = index, max(s.Level, e.Level)
	var r Result
	switch {
	case e.Kind == KindInit && s.Cluster != "":
		r.Refused = refuse(WhyBegun, "this is cluster %s already", s.Cluster)
	case e.Kind != KindInit && s.Cluster == "":
		r.Refused = refuse(WhyBegun, "the cluster was not begun yet")
	case e.Kind == KindInit:
		n.Cluster, n.Bounds, n.Last = e.Init.Cluster, e.Init.Bounds, e.Init.Last
	case e.Kind == KindRevise:
		r = n.revise(e)
	case e.Kind == KindConfirm:
		r.Refused = n.confirm(e)
	case e.Kind == KindExpire:
		r.Refused = n.expire(e)
	case e.Kind == KindMember:
		r.Refused = n.member(*e.Member)
	case e.Kind == KindForget:
		r.Refused = n.forget(e.Forget)
	case e.Kind == KindRecover:
		n.recover(e.Recover)
	case e.Kind == KindToken:
		r.Refused = n.token(*e.Token, e.Time)
	case e.Kind == KindJoin:
		r.Refused = n.join(e.Join, e.Time)
	case e.Kind == KindBounds:
		n.Bounds = n.Bounds.with(*e.Bounds)
		r.Dropped = n.prune()
	case e.Kind == KindRevoke:
		r.Refused = n.revoke(e)
	case e.Kind == KindGroup:
		r.Refused = n.group(*e.Group)
	}
	n.note(index, e, r)
	return &n, r
}

func refuse(why Why, format string, args ...any) *Refusal {
	return &Refusal{why, fmt.Sprintf(format, args...)}
}

// revise: a number is given only to what is accepted, so that numbers have no gaps.
func (s *State) revise(e *Entry) (r Result) {
	v := e.Revise
	if e.Who.Nonce != "" {
		for i := range s.Revisions { // the same request again, by a proposer that did not hear the answer
			if o := &s.Revisions[i]; o.Nonce == e.Who.Nonce {
				if o.Digest != v.Digest {
					r.Refused = refuse(WhyConflict, "revision %d came by this request, with another text", o.Number)
					return r
				}
				r.Revision = o.Number
				return r
			}
		}
	}
	if v.Expected != 0 && v.Expected != s.Serving {
		r.Refused = refuse(WhyConflict, "conflict: revision %d is served, not %d: look at the difference again", s.Serving, v.Expected)
		return r
	}
	if p, ok := s.Pending(); ok {
		r.Refused = refuse(WhyProvisional, "revision %d by %s waits for its confirmation: confirm it or take it back first", p.Number, orSomebody(p.Author))
		return r
	}
	if l := s.Lacking(v.Features, v.Except); len(l) > 0 {
		r.Refused = refuse(WhyRelease, "%s", LackWords(l))
		return r
	}
	s.Last++
	if !s.Seen.IsZero() {
		s.Elapsed += min(max(e.Time.Sub(s.Seen), 0), 24*time.Hour)
	}
	s.Seen = e.Time
	rev := Revision{Number: s.Last, Digest: v.Digest, Bytes: v.Bytes, Name: v.Name, Source: v.Source, Comment: v.Comment, Author: e.Who.Author,
		From: e.Who.From, Nonce: e.Who.Nonce, Time: e.Time, Back: v.Back, Before: s.Serving, Confirm: v.Confirm, Fate: FateConfirmed, Since: s.Elapsed, Features: v.Features}
	s.Serving = s.Last
	// The first policy has nothing before it to go back to.
	if v.Confirm > 0 && s.Confirmed != 0 {
		rev.Fate = FateProvisional
	} else {
		s.Confirmed = s.Last
	}
	s.Revisions = append(slices.Clip(s.Revisions), rev)
	r.Revision, r.Dropped = s.Last, s.prune()
	return r
}

func orSomebody(author string) string {
	if author == "" {
		return "somebody"
	}
	return author
}

func (s *State) confirm(e *Entry) *Refusal {
	n := e.Confirm.Revision
	if p, ok := s.Pending(); !ok || p.Number != n {
		return s.late(e, n, "confirm")
	}
	s.setFate(n, FateConfirmed)
	s.Confirmed = n
	return nil
}

func (s *State) expire(e *Entry) *Refusal {
	x := e.Expire
	if p, ok := s.Pending(); !ok || p.Number != x.Revision {
		return s.late(e, x.Revision, "take back")
	}
	f := FateExpired
	if x.Manual {
		f = FateTakenBack
	}
	s.setFate(x.Revision, f)
	s.Serving = s.Confirmed
	return nil
}

// again reports whether an entry is a request that was carried out already, whose proposer did not hear the answer.
func (s *State) again(e *Entry) bool {
	return e.Who.Nonce != "" && slices.ContainsFunc(s.Audit, func(l Line) bool { return l.OK && l.Kind == e.Kind && l.Who.Nonce == e.Who.Nonce })
}

// late says what happened to revision n, which e is about and which is not provisional.
func (s *State) late(e *Entry, n uint64, what string) *Refusal {
	r, ok := s.Revision(n)
	switch {
	case s.again(e):
		return nil
	case !ok:
		return refuse(WhyUnknown, "there is no revision %d to %s", n, what)
	case r.Fate == FateConfirmed:
		return refuse(WhyLate, "revision %d is confirmed already", n)
	case r.Fate == FateExpired:
		return refuse(WhyLate, "too late: revision %d was not confirmed within %s, revision %d is served again", n, r.Confirm, s.Serving)
	}
	return refuse(WhyLate, "too late: revision %d was taken back, revision %d is served", n, s.Serving)
}

func (s *State) setFate(n uint64, f Fate) {
	s.Revisions = slices.Clone(s.Revisions)
	for i := range s.Revisions {
		if s.Revisions[i].Number == n {
			s.Revisions[i].Fate = f
		}
	}
}

// with is b with what c says.
func (b Bounds) with(c Bounds) Bounds {
	return Bounds{Revisions: cmp.Or(c.Revisions, b.Revisions), Age: cmp.Or(c.Age, b.Age), TextBytes: cmp.Or(c.TextBytes, b.TextBytes), Audit: cmp.Or(c.Audit, b.Audit)}
}

// prune forgets the oldest revisions beyond the bounds, never one that is served, gone back to, or newer than such.
func (s *State) prune() (dropped []string) {
	total := int64(0)
	seen := map[string]bool{}
	first := len(s.Revisions)
	for first > 0 {
		r := &s.Revisions[first-1]
		if !seen[r.Digest] {
			total += int64(r.Bytes)
		}
		kept := len(s.Revisions) - first
		// A revision's age counts from when the next one replaced it.
		old := kept > 0 && s.Elapsed-s.Revisions[first].Since > s.Bounds.Age
		if r.Number < s.Confirmed && (kept >= s.Bounds.Revisions || total > s.Bounds.TextBytes || old) {
			break
		}
		seen[r.Digest] = true
		first--
	}
	for _, r := range s.Revisions[:first] {
		if !seen[r.Digest] {
			seen[r.Digest] = true
			dropped = append(dropped, r.Digest)
		}
	}
	s.Revisions = slices.Clone(s.Revisions[first:])
	return dropped
}

func (s *State) member(m Member) *Refusal {
	if g, ok := s.Left(m.ID); ok {
		return refuse(WhyGone, "%s", g.Words())
	}
	i, there := s.find(m.ID)
	for _, o := range s.Members {
		if o.Name == m.Name && o.ID != m.ID {
			return refuse(WhyConflict, "a member is called %s already (%s): remove or replace that one, or choose another name", o.Name, o.ID)
		}
	}
	if !there && len(s.Members) >= MaxMembers {
		return refuse(WhyFull, "the cluster has %d members, more there may not be", MaxMembers)
	}
	s.Members = slices.Clone(s.Members)
	if there {
		s.Members[i] = m
	} else {
		s.Members = slices.Insert(s.Members, i, m)
	}
	return nil
}

func (s *State) forget(f *Forget) *Refusal {
	i, there := s.find(f.ID)
	if !there {
		return refuse(WhyUnknown, "there is no member %s", f.ID)
	}
	m := s.Members[i]
	s.Members = slices.Delete(slices.Clone(s.Members), i, i+1)
	s.Gone = append(slices.Clip(s.Gone), Gone{ID: m.ID, Name: m.Name, Key: m.Key, By: f.By})
	if len(s.Gone) > maxGone {
		s.Gone = slices.Clone(s.Gone[len(s.Gone)-maxGone:])
	}
	// Who comes by this name next is not drained.
	s.Groups, _ = s.Groups.Apply(failover.Entry{Kind: failover.KindDrain, Node: m.Name}) // refused for a node without a name only
	return nil
}

// Left finds a member that was forgotten.
func (s *State) Left(id string) (Gone, bool) {
	i := slices.IndexFunc(s.Gone, func(g Gone) bool { return g.ID == id })
	if i < 0 {
		return Gone{}, false
	}
	return s.Gone[i], true
}

// Words say what became of it, and what it may do.
func (g Gone) Words() string {
	if g.By != "" {
		return fmt.Sprintf("%s (%s) was replaced by %s: it is no member any more; join it as a new node", g.Name, g.ID, g.By)
	}
	return fmt.Sprintf("%s (%s) was removed from this cluster: join it as a new node", g.Name, g.ID)
}

// Named finds a member by its name.
func (s *State) Named(name string) (Member, bool) {
	i := slices.IndexFunc(s.Members, func(m Member) bool { return m.Name == name })
	if i < 0 {
		return Member{}, false
	}
	return s.Members[i], true
}

// Member finds one by its id.
func (s *State) Member(id string) (Member, bool) {
	i, ok := s.find(id)
	if !ok {
		return Member{}, false
	}
	return s.Members[i], true
}

func (s *State) token(t Token, now time.Time) *Refusal {
	var good []Token
	for _, o := range s.Tokens {
		if o.Expires.After(now) && o.Hash != t.Hash {
			good = append(good, o)
		}
	}
	if len(good) >= maxTokens {
		return refuse(WhyFull, "%d tokens are good already, more there may not be: use them, or wait until they are over", len(good))
	}
	s.Tokens = append(good, t)
	return nil
}

// MayJoin says why a newcomer is not taken in at a time: its token, its role or its release.
func (s *State) MayJoin(j *Join, now time.Time) *Refusal {
	i := slices.IndexFunc(s.Tokens, func(t Token) bool { return t.Hash == j.Token })
	switch {
	case i < 0:
		return refuse(WhyToken, "this token is not known here: it was used, is over, or is of another cluster: `demarc cluster token` makes one")
	case !s.Tokens[i].Expires.After(now):
		return refuse(WhyToken, "this token was good until %s: `demarc cluster token` makes one", s.Tokens[i].Expires.Format(time.RFC3339))
	case s.Tokens[i].Role != j.Member.Role:
		return refuse(WhyToken, "this token is for a %s, and %s is a %s: `demarc cluster token --role %s` makes one", s.Tokens[i].Role, j.Member.Name, j.Member.Role, j.Member.Role)
	case j.Member.Level < s.Level:
		return refuse(WhyRelease, "%s reads entries up to level %d, the cluster has some of level %d: upgrade it first", j.Member.Release(), j.Member.Level, s.Level)
	}
	for _, number := range []uint64{s.Serving, s.Confirmed} {
		if r, ok := s.Revision(number); ok {
			if unknown := j.Member.Unknown(r.Features); len(unknown) > 0 {
				return refuse(WhyRelease, "%s does not know %s, which revision %d uses: upgrade it first", j.Member.Release(), Listed(unknown), number)
			}
		}
	}
	return nil
}

// join: the token is checked by the time of the entry, so that every node says the same.
func (s *State) join(j *Join, now time.Time) *Refusal {
	if _, there := s.find(j.Member.ID); there { // again, by a newcomer that did not hear the answer
		return s.member(j.Member)
	}
	if r := s.MayJoin(j, now); r != nil {
		return r
	}
	i := slices.IndexFunc(s.Tokens, func(t Token) bool { return t.Hash == j.Token })
	before := *s
	if j.Replace != "" {
		if r := s.forget(&Forget{ID: j.Replace, By: j.Member.Name}); r != nil {
			return r
		}
	}
	if r := s.member(j.Member); r != nil {
		*s = before
		return r
	}
	s.Tokens = slices.Delete(slices.Clone(s.Tokens), i, i+1)
	// Whoever has a token may come with a certificate that had to go: an operator says so by the token.
	s.Gone = slices.Clone(s.Gone)
	for i := range s.Gone {
		if s.Gone[i].Key == j.Member.Key {
			s.Gone[i].Key = ""
		}
	}
	return nil
}

// revoke: saying it twice changes nothing, so that whoever did not hear the answer can say it again.
func (s *State) revoke(e *Entry) *Refusal {
	v := e.Revoke
	i := slices.IndexFunc(s.Revoked, func(r Revoked) bool { return r.Client == v.Client && r.Key == v.Key })
	switch {
	case v.Undo && i < 0:
		return refuse(WhyUnknown, "%s is not revoked: `demarc cluster members` lists what is", (&Revoked{Client: v.Client, Key: v.Key}).Which())
	case v.Undo:
		s.Revoked = slices.Delete(slices.Clone(s.Revoked), i, i+1)
	case i >= 0:
	case len(s.Revoked) >= maxRevoked:
		return refuse(WhyFull, "%d clients are revoked already, more there may not be: take back those whose certificates have ended", len(s.Revoked))
	default:
		s.Revoked = append(slices.Clip(s.Revoked), Revoked{Client: v.Client, Key: v.Key, Why: v.Why, By: e.Who.Author, Time: e.Time})
	}
	return nil
}

// group: the rules are failover's. Here stands only what those do not know, members and bounds.
func (s *State) group(e failover.Entry) *Refusal {
	switch {
	case e.Kind == failover.KindDrain && e.On:
		if m, ok := s.Named(e.Node); !ok {
			return refuse(WhyUnknown, "there is no member %s to drain", e.Node)
		} else if m.Role == RoleWitness {
			return refuse(WhyGroup, "%s is a witness: it owns no group", e.Node)
		}
	case e.Kind == failover.KindClaim:
		if _, known := s.Groups.Groups[e.Group]; !known && len(s.Groups.Groups) >= maxGroups {
			return refuse(WhyFull, "%d groups have had an owner: more there may not be, use the name of one that is no more", maxGroups)
		}
	}
	next, err := s.Groups.Apply(e)
	if err != nil {
		return refuse(WhyGroup, "%v", err)
	}
	s.Groups = next
	return nil
}

// recover forgets everybody else. The one that is left may be missing: its own entry can have been lost.
func (s *State) recover(r *Recover) {
	s.Gone = slices.Clip(s.Gone)
	var left []Member
	for _, m := range s.Members {
		if m.ID == r.ID {
			left = append(left, m)
		} else {
			s.Gone = append(s.Gone, Gone{ID: m.ID, Name: m.Name, Key: m.Key})
			s.Groups, _ = s.Groups.Apply(failover.Entry{Kind: failover.KindDrain, Node: m.Name})
		}
	}
	s.Members = left
	s.Last = max(s.Last, r.Last)
}

func (s *State) find(id string) (int, bool) {
	return slices.BinarySearchFunc(s.Members, id, func(m Member, id string) int {
		switch {
		case m.ID < id:
			return -1
		case m.ID > id:
			return 1
		}
		return 0
	})
}

// note writes the audit log. Entries about groups that are refused are left out: nodes propose again until something is agreed on, ten times a second,
// and would have pushed out within minutes what operators did. Who asked is told, and the node's own log has it.
func (s *State) note(index uint64, e *Entry, r Result) {
	if e.Kind == KindGroup && r.Refused != nil {
		return
	}
	l := Line{Index: index, Time: e.Time, Who: e.Who, Kind: e.Kind, OK: r.Refused == nil}
	switch {
	case r.Refused != nil:
		l.What = r.Refused.Text
	case e.Kind == KindInit:
		l.What = "cluster " + e.Init.Cluster + " begins"
	case e.Kind == KindRevise:
		l.What = fmt.Sprintf("revision %d, sha256:%s", r.Revision, e.Revise.Digest)
		if e.Revise.Back != 0 {
			l.What += fmt.Sprintf(", back to revision %d", e.Revise.Back)
		}
		if rev, ok := s.Revision(r.Revision); ok && rev.Fate == FateProvisional {
			l.What += fmt.Sprintf(", to be confirmed within %s", rev.Confirm)
		}
	case e.Kind == KindConfirm:
		l.What = fmt.Sprintf("revision %d is confirmed", e.Confirm.Revision)
	case e.Kind == KindExpire:
		l.What = fmt.Sprintf("revision %d goes, revision %d is served again", e.Expire.Revision, s.Serving)
	case e.Kind == KindMember:
		l.What = fmt.Sprintf("member %s (%s), %s, version %s", e.Member.Name, e.Member.ID, e.Member.Role, e.Member.Version)
	case e.Kind == KindForget:
		l.What = "member " + e.Forget.ID + " is forgotten"
		if g, ok := s.Left(e.Forget.ID); ok {
			l.What = "member " + g.Name + " (" + g.ID + ") is forgotten"
		}
	case e.Kind == KindRecover:
		l.What = "recovered with " + e.Recover.ID + " as the only member: all others are forgotten, and what only they knew is lost"
		if e.Recover.Copy {
			l.What += "; from the copy, since log and snapshots were damaged"
		}
	case e.Kind == KindToken:
		l.What = fmt.Sprintf("a token for a %s, good until %s", e.Token.Role, e.Token.Expires.Format(time.RFC3339))
	case e.Kind == KindJoin:
		m := e.Join.Member
		l.What = fmt.Sprintf("%s %s (%s) joins, version %s", m.Role, m.Name, m.ID, m.Version)
		if g, ok := s.Left(e.Join.Replace); ok {
			l.What += ", in place of " + g.Name + " (" + g.ID + ")"
		}
	case e.Kind == KindBounds:
		l.What = fmt.Sprintf("kept are %d revisions, for %s, %d bytes of text, %d lines of this log", s.Bounds.Revisions, s.Bounds.Age, s.Bounds.TextBytes, s.Bounds.Audit)
	case e.Kind == KindRevoke:
		v := e.Revoke
		l.What = (&Revoked{Client: v.Client, Key: v.Key}).Which() + " is revoked"
		if v.Undo {
			l.What += " no more"
		}
		if v.Why != "" {
			l.What += ": " + v.Why
		}
	case e.Kind == KindGroup:
		l.What = e.Group.Words()
	}
	s.Audit = written(s.Audit, l, max(s.Bounds.Audit, 1))
}

// written is the lines with one more, and without the oldest beyond limit. A state shares them with the one that it came from: to copy ten thousand lines with each entry would be
// more than a megabyte of garbage each time. The place behind the last line is for whoever writes there first; of two states that came from one, the second copies.
func written(lines []Line, l Line, limit int) []Line {
	over := max(len(lines)+1-limit, 0)
	lines = lines[over:]
	n := len(lines)
	if n == cap(lines) || lines[:n+1][n].Index != 0 || l.Index == 0 || over > 1 { // over > 1: the limit has become lower, and the memory is to go too
		lines = append(make([]Line, 0, n+1+n/4), lines...)
	}
	return append(lines, l)
}
