package command

import (
	"bytes"
	"compress/flate"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"demarc/cluster/failover"
)

// Bounds of one entry. A proposer is held to them, and a decoder too: an entry beyond them is not ours.
const (
	MaxText   = 8 << 20  // bytes of a policy's text
	maxHeader = 64 << 10 // bytes of everything else
	MaxField  = 4 << 10  // bytes of an author, a comment, a source
)

// Level is what a build can read and write of entries: it goes up with each kind or field that a release adds. An entry carries the least level that
// reads it, members tell theirs, and nothing is proposed that a member could not read. testdata has what each level is.
const Level = 1

// Kind says what an entry does.
type Kind string

// The kinds. A text and not a number, so that a node which does not know one can name it.
const (
	KindInit    Kind = "init"    // names the cluster and sets its bounds; the first entry, once
	KindRevise  Kind = "revise"  // a policy to be served, provisional if it has a confirm time
	KindConfirm Kind = "confirm" // the provisional revision stays
	KindExpire  Kind = "expire"  // the provisional revision goes: its time is over, or somebody took it back
	KindMember  Kind = "member"  // a member is there, or tells what it is and runs
	KindForget  Kind = "forget"  // a member has gone for good
	KindRecover Kind = "recover" // the other voters were lost for good: one member is all that is left. It stands in no log, but at the end of a snapshot
	KindToken   Kind = "token"   // whoever has it may join, once and for a while
	KindJoin    Kind = "join"    // a newcomer, by its token
	KindBounds  Kind = "bounds"  // how much of the past is kept from now on
	KindRevoke  Kind = "revoke"  // a client's certificates are refused, or are let in again
	KindGroup   Kind = "group"   // who owns a group, whose copy is whole, who is to own nothing: see failover
)

// Who is behind an entry, for the audit log. Nothing is decided by it.
type Who struct {
	Author string `json:"author,omitempty"` // user name or certificate's
	From   string `json:"from,omitempty"`   // node and address that the request came to and from
	Nonce  string `json:"nonce,omitempty"`  // names the request, so that one that was sent twice is carried out once
}

// Entry is one entry of the log. Of the pointers exactly the one of Kind is set.
type Entry struct {
	Level int       `json:"level"` // what a node must be able to read
	Kind  Kind      `json:"kind"`
	Time  time.Time `json:"time"` // wall time of the proposer, UTC: shown, and the measure of retention; no deadline
	Who   Who       `json:"who"`

	Init    *Init    `json:"init,omitempty"`
	Revise  *Revise  `json:"revise,omitempty"`
	Confirm *Confirm `json:"confirm,omitempty"`
	Expire  *Expire  `json:"expire,omitempty"`
	Member  *Member  `json:"member,omitempty"`
	Forget  *Forget  `json:"forget,omitempty"`
	Recover *Recover `json:"recover,omitempty"`
	Token   *Token   `json:"token,omitempty"`
	Join    *Join    `json:"join,omitempty"`
	Bounds  *Bounds  `json:"bounds,omitempty"` // what is 0 stays as it is
	Revoke  *Revoke  `json:"revoke,omitempty"`

	Group *failover.Entry `json:"group,omitempty"`

	Text []byte `json:"-"` // with Revise: the policy
}

// Init begins a cluster.
type Init struct {
	Cluster string `json:"cluster"` // an id that no other cluster has
	Bounds  Bounds `json:"bounds"`
	Last    uint64 `json:"last,omitempty"` // the highest revision number that was given before there was a cluster
}

// Bounds say how much of the past is kept. They stand in the state, so that every node forgets the same.
type Bounds struct {
	Revisions int           `json:"revisions"` // at most so many,
	Age       time.Duration `json:"age_ns"`    // of these, none that was replaced longer ago than this, by the entries' times,
	TextBytes int64         `json:"text_bytes"`
	Audit     int           `json:"audit"` // lines of the audit log
}

// The least and the most that may be asked to be kept. Of everything but texts the state is held in memory, also by a witness.
var (
	LeastBounds = Bounds{Revisions: 2, Age: time.Hour, TextBytes: 2 * MaxText, Audit: 100}
	MostBounds  = Bounds{Revisions: 2000, Age: 10 * 365 * 24 * time.Hour, TextBytes: 4 << 30, Audit: 50_000}
)

// Check holds a change of bounds to what may be asked for.
func (b *Bounds) Check() error {
	if *b == (Bounds{}) {
		return errors.New("nothing is said of how much is to be kept")
	}
	for _, f := range []struct {
		what              string
		have, least, most int64
	}{
		{"revisions", int64(b.Revisions), int64(LeastBounds.Revisions), int64(MostBounds.Revisions)},
		{"hours", int64(b.Age / time.Hour), int64(LeastBounds.Age / time.Hour), int64(MostBounds.Age / time.Hour)},
		{"bytes of text", b.TextBytes, LeastBounds.TextBytes, MostBounds.TextBytes},
		{"lines of the audit log", int64(b.Audit), int64(LeastBounds.Audit), int64(MostBounds.Audit)},
	} {
		if f.have != 0 && (f.have < f.least || f.have > f.most) {
			return fmt.Errorf("%d %s to be kept: want %d to %d", f.have, f.what, f.least, f.most)
		}
	}
	if b.Age%time.Hour != 0 {
		return fmt.Errorf("revisions to be kept for %s: want whole hours", b.Age)
	}
	return nil
}

// DefaultBounds are 200 revisions, 30 days, 256 MiB, 10,000 audit lines.
func DefaultBounds() Bounds {
	return Bounds{Revisions: 200, Age: 30 * 24 * time.Hour, TextBytes: 256 << 20, Audit: 10_000}
}

// Revise makes a text the policy.
type Revise struct {
	Expected uint64        `json:"expected,omitempty"` // the revision that the author had seen; 0 = whichever
	Digest   string        `json:"digest"`             // of the text, 64 hex digits
	Bytes    int           `json:"bytes"`              // of the text
	Name     string        `json:"name,omitempty"`     // free text from the policy
	Source   string        `json:"source,omitempty"`   // the file that it came from
	Comment  string        `json:"comment,omitempty"`
	Back     uint64        `json:"rollback_of,omitempty"` // the revision whose text it is, when somebody rolled back to one
	Confirm  time.Duration `json:"confirm_ns,omitempty"`  // unless it is confirmed within this, the revision before is served again
	Features []string      `json:"features,omitempty"`    // that the text uses, sorted: every member must know them,
	Except   []string      `json:"except,omitempty"`      // but for those with these ids, which go on with what they serve
}

// Confirm keeps a provisional revision.
type Confirm struct {
	Revision uint64 `json:"revision"`
}

// Expire takes a provisional revision back.
type Expire struct {
	Revision uint64 `json:"revision"`
	Manual   bool   `json:"manual,omitempty"` // somebody took it back; its time is not over
}

// Role is what a member is for.
type Role string

// The roles.
const (
	RoleGateway Role = "gateway" // has ports
	RoleWitness Role = "witness" // has a vote only
)

// Member is one node as it tells of itself.
type Member struct {
	ID      string `json:"id"`      // of this machine's data directory; never used twice
	Name    string `json:"name"`    // from the node file
	Address string `json:"address"` // where other members reach it
	Role    Role   `json:"role"`
	Version string `json:"version"`       // of the binary
	Level   int    `json:"level"`         // what entries it reads
	Key     string `json:"key,omitempty"` // of its certificate, 64 hex digits of SHA-256: refused once the member has gone

	Features []string `json:"features,omitempty"` // of policies that its release knows, sorted
}

// Forget takes a member out of the list; its id is refused from then on.
type Forget struct {
	ID string `json:"id"`
	By string `json:"replaced_by,omitempty"`
}

// Recover leaves one member of a cluster. All others are forgotten.
type Recover struct {
	ID   string `json:"id"`
	Copy bool   `json:"from_copy,omitempty"` // log and snapshots were damaged: from the copy of the state
	Last uint64 `json:"last,omitempty"`      // the highest revision number that the node knows to be given: the copy may be a moment older
}

// Token lets one newcomer join. The state has its hash only: who reads the state, or a copy of it, cannot join by it.
type Token struct {
	Hash    string    `json:"hash"`    // SHA-256 of the token, 64 hex digits
	Role    Role      `json:"role"`    // of whoever comes by it
	Expires time.Time `json:"expires"` // by the times of entries
	By      string    `json:"by,omitempty"`
}

// MaxTokenLife is the longest that a token may be good for.
const MaxTokenLife = 7 * 24 * time.Hour

// Join takes a newcomer in and uses its token up.
type Join struct {
	Member  Member `json:"member"`
	Token   string `json:"token"`             // its hash
	Replace string `json:"replace,omitempty"` // the id of the member whose place it takes
}

// Revoke has a client's certificates refused by every node, or takes that back. Certificates are named by what no clock can move: whose they are, or which key
// they are for.
type Revoke struct {
	Client string `json:"client"`        // the name in the certificate
	Key    string `json:"key,omitempty"` // of one certificate, 64 hex digits of SHA-256; empty = every certificate of that name, those to come as well
	Why    string `json:"why,omitempty"`
	Undo   bool   `json:"undo,omitempty"`
}

// ErrUnreadable means that this build cannot carry out an entry: it is damaged, or of a later release. A node that meets one stops applying.
var ErrUnreadable = errors.New("entry cannot be read")

// The first byte of an encoded entry: format, length of the header, header, text. A packed text is deflated (RFC 1951): logs, links to a satellite and the memory of
// a witness carry a fifth of it or less.
const (
	format       = 1
	formatPacked = 2
	packFrom     = 4 << 10 // bytes of a text that is worth it
)

func pack(text []byte) []byte {
	var b bytes.Buffer
	w, _ := flate.NewWriter(&b, flate.BestSpeed) // fails for a wrong level only
	_, _ = w.Write(text)                         // a Buffer takes everything
	_ = w.Close()
	return b.Bytes()
}

// unpack reads no more than an entry may have.
func unpack(b []byte) ([]byte, error) {
	text, err := io.ReadAll(io.LimitReader(flate.NewReader(bytes.NewReader(b)), MaxText+1))
	if err == nil && len(text) > MaxText {
		err = fmt.Errorf("it has more than %d bytes", MaxText)
	}
	return text, err
}

// Encode writes the entry. It refuses one that Decode would.
func (e *Entry) Encode() ([]byte, error) {
	if err := e.check(); err != nil {
		return nil, err
	}
	head, err := json.Marshal(e)
	if err != nil {
		return nil, err
	}
	if len(head) > maxHeader {
		return nil, fmt.Errorf("author, source, comment and name take %d bytes, at most %d", len(head), maxHeader)
	}
	f, text := byte(format), e.Text
	if len(text) >= packFrom {
		if p := pack(text); len(p) < len(text) {
			f, text = formatPacked, p
		}
	}
	out := make([]byte, 0, 1+binary.MaxVarintLen32+len(head)+len(text))
	out = append(out, f)
	out = binary.AppendUvarint(out, uint64(len(head)))
	out = append(out, head...)
	return append(out, text...), nil
}

// Decode reads an entry. Every error wraps ErrUnreadable and says what is there that this build does not know.
func Decode(b []byte) (*Entry, error) {
	bad := func(f string, args ...any) (*Entry, error) {
		return nil, fmt.Errorf("%w: %s", ErrUnreadable, fmt.Sprintf(f, args...))
	}
	if len(b) == 0 {
		return bad("it is empty")
	}
	if b[0] != format && b[0] != formatPacked {
		return bad("format %d, this build reads %d and %d", b[0], format, formatPacked)
	}
	n, used := binary.Uvarint(b[1:])
	if used <= 0 || n > maxHeader || n > uint64(len(b)-1-used) {
		return bad("its header has a wrong length")
	}
	head, text := b[1+used:1+used+int(n)], b[1+used+int(n):]
	// The level comes first: it names the release that is needed, where a strict reader could only name the first thing that it does not know.
	var l struct {
		Level int  `json:"level"`
		Kind  Kind `json:"kind"`
	}
	if err := json.Unmarshal(head, &l); err != nil {
		return bad("its header is damaged: %v", err)
	}
	if l.Level > Level {
		return nil, later("%q of level %d, this build reads up to %d", l.Kind, l.Level, Level)
	}
	var e Entry
	d := json.NewDecoder(bytes.NewReader(head))
	d.DisallowUnknownFields()
	if err := d.Decode(&e); err != nil {
		return bad("%q: %v", l.Kind, err)
	}
	if _, err := d.Token(); err == nil {
		return bad("something follows its header")
	}
	if b[0] == formatPacked {
		var err error
		if text, err = unpack(text); err != nil {
			return bad("its text cannot be unpacked: %v", err)
		}
	}
	e.Text = text
	if len(text) == 0 {
		e.Text = nil
	}
	if err := e.check(); err != nil {
		return bad("%v", err)
	}
	return &e, nil
}

// check holds the entry to what its kind needs. It looks at the entry alone.
func (e *Entry) check() error {
	bodies := map[Kind]bool{KindInit: e.Init != nil, KindRevise: e.Revise != nil, KindConfirm: e.Confirm != nil, KindExpire: e.Expire != nil,
		KindMember: e.Member != nil, KindForget: e.Forget != nil, KindRecover: e.Recover != nil, KindToken: e.Token != nil, KindJoin: e.Join != nil,
		KindBounds: e.Bounds != nil, KindRevoke: e.Revoke != nil, KindGroup: e.Group != nil}
	if _, known := bodies[e.Kind]; !known {
		return fmt.Errorf("kind %q is not known to this build", e.Kind)
	}
	for k, there := range bodies {
		if there != (k == e.Kind) {
			return fmt.Errorf("an entry of kind %q must have the body of that kind and no other", e.Kind)
		}
	}
	if e.Level < 1 || e.Level > Level {
		return fmt.Errorf("level %d, want 1 to %d", e.Level, Level)
	}
	if n := e.Least(); e.Level < n {
		return fmt.Errorf("level %d, and only level %d reads this", e.Level, n)
	}
	if e.Kind != KindRevise && len(e.Text) > 0 {
		return fmt.Errorf("an entry of kind %q has no text", e.Kind)
	}
	for _, f := range []struct{ name, text string }{{"author", e.Who.Author}, {"from", e.Who.From}, {"nonce", e.Who.Nonce}} {
		if len(f.text) > MaxField {
			return fmt.Errorf("%s is %d bytes long, at most %d", f.name, len(f.text), MaxField)
		}
	}
	switch e.Kind {
	case KindInit:
		return e.Init.check()
	case KindRevise:
		return e.Revise.check(e.Text)
	case KindConfirm:
		return numbered(e.Confirm.Revision)
	case KindExpire:
		return numbered(e.Expire.Revision)
	case KindMember:
		return e.Member.check()
	case KindRecover:
		if e.Recover.ID == "" || len(e.Recover.ID) > 64 {
			return errors.New("the member that is left needs its id")
		}
		return nil
	case KindToken:
		return e.Token.check(e.Time)
	case KindJoin:
		return e.Join.check()
	case KindBounds:
		return e.Bounds.Check()
	case KindRevoke:
		return e.Revoke.check()
	case KindGroup:
		return checkGroup(e.Group)
	}
	if e.Forget.ID == "" {
		return errors.New("a member to be forgotten needs its id")
	}
	return nil
}

func numbered(n uint64) error {
	if n == 0 {
		return errors.New("revision 0: revisions count from 1")
	}
	return nil
}

func (i *Init) check() error {
	b := i.Bounds
	switch {
	case i.Cluster == "" || len(i.Cluster) > 64:
		return errors.New("a cluster needs an id of 1 to 64 bytes")
	case b.Revisions < 2 || b.Age < 0 || b.TextBytes < 2*MaxText || b.Audit < 1:
		return fmt.Errorf("bounds %+v: want at least 2 revisions, %d bytes of text, 1 audit line, and no negative age", b, 2*MaxText)
	}
	return nil
}

func (r *Revise) check(text []byte) error {
	switch {
	case len(text) == 0:
		return errors.New("the policy is empty")
	case len(text) > MaxText:
		return fmt.Errorf("the policy has %d bytes, at most %d", len(text), MaxText)
	case r.Bytes != len(text):
		return fmt.Errorf("the text has %d bytes where the entry says %d", len(text), r.Bytes)
	case r.Digest != Digest(text):
		return errors.New("the text does not have the digest that the entry names")
	case r.Confirm < 0 || r.Confirm > MaxConfirm:
		return fmt.Errorf("confirm within %s: want up to %s", r.Confirm, MaxConfirm)
	case len(r.Except) > MaxMembers:
		return fmt.Errorf("%d members are excepted, and there are %d at most", len(r.Except), MaxMembers)
	}
	for _, id := range r.Except {
		if id == "" || len(id) > 64 {
			return errors.New("who is excepted is named by an id of up to 64 bytes")
		}
	}
	if err := checkFeatures("the policy", r.Features); err != nil {
		return err
	}
	for _, f := range []struct{ name, text string }{{"name", r.Name}, {"source", r.Source}, {"comment", r.Comment}} {
		if len(f.text) > MaxField {
			return fmt.Errorf("%s is %d bytes long, at most %d", f.name, len(f.text), MaxField)
		}
	}
	return nil
}

// MaxConfirm is the longest time that a revision may be provisional.
const MaxConfirm = 24 * time.Hour

func (m *Member) check() error {
	switch {
	case m.ID == "" || len(m.ID) > 64, m.Name == "" || len(m.Name) > 255:
		return errors.New("a member needs an id of up to 64 bytes and a name of up to 255")
	case m.Role != RoleGateway && m.Role != RoleWitness:
		return fmt.Errorf("role %q: want gateway or witness", m.Role)
	case m.Level < 1:
		return fmt.Errorf("member %s: level %d, want at least 1", m.Name, m.Level)
	case len(m.Address) > MaxField || len(m.Version) > MaxField:
		return fmt.Errorf("member %s: address or version longer than %d bytes", m.Name, MaxField)
	case m.Key != "" && !isHash(m.Key):
		return fmt.Errorf("member %s: the key of its certificate is not 64 hex digits", m.Name)
	}
	return checkFeatures("member "+m.Name, m.Features)
}

func isHash(s string) bool {
	for _, c := range s {
		if (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return false
		}
	}
	return len(s) == 64
}

func (t *Token) check(now time.Time) error {
	switch {
	case !isHash(t.Hash):
		return errors.New("a token is known by 64 hex digits")
	case t.Role != RoleGateway && t.Role != RoleWitness:
		return fmt.Errorf("token for role %q: want gateway or witness", t.Role)
	case t.Expires.Sub(now) <= 0 || t.Expires.Sub(now) > MaxTokenLife:
		return fmt.Errorf("a token good for %s: want more than nothing and at most %s", t.Expires.Sub(now), MaxTokenLife)
	case len(t.By) > MaxField:
		return fmt.Errorf("token: whose it is takes %d bytes, at most %d", len(t.By), MaxField)
	}
	return nil
}

func (j *Join) check() error {
	if !isHash(j.Token) || len(j.Replace) > 64 {
		return errors.New("a newcomer needs the 64 hex digits of its token, and an id of at most 64 bytes of whom it replaces")
	}
	return j.Member.check()
}

// checkGroup holds an entry about a group to lengths and kinds. What it may do is looked at when it is carried out.
func checkGroup(e *failover.Entry) error {
	if !slices.Contains(failover.Kinds, e.Kind) {
		return fmt.Errorf("%q is no kind of entry about a group", e.Kind)
	}
	for _, f := range []struct{ what, text string }{{"the group", e.Group}, {"the node", e.Node}, {"who proposes", e.By.Node}, {"the node of the term", e.Term.Node},
		{"the cause", string(e.Cause)}, {"the right", string(e.Why)}, {"what is done alone", string(e.Alone)}} {
		if len(f.text) > 255 {
			return fmt.Errorf("%s takes %d bytes, at most 255", f.what, len(f.text))
		}
	}
	return nil
}

func (r *Revoke) check() error {
	switch {
	case r.Client == "" || len(r.Client) > 64:
		return errors.New("a client that is revoked has a name of 1 to 64 bytes")
	case r.Key != "" && !isHash(r.Key):
		return fmt.Errorf("client %s: the key of its certificate is not 64 hex digits", r.Client)
	case len(r.Why) > MaxField:
		return fmt.Errorf("why client %s is revoked takes %d bytes, at most %d", r.Client, len(r.Why), MaxField)
	}
	return nil
}
