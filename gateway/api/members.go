package api

import (
	"context"
	"time"
)

// Paths of the cluster's members.
const (
	PathMembers = "/v1/cluster/members" // Members
	PathToken   = "/v1/cluster/token"   // POST TokenRequest -> Token
	PathRemove  = "/v1/cluster/remove"  // POST MemberRequest -> Members
	PathPromote = "/v1/cluster/promote" // POST MemberRequest -> Members
	PathLead    = "/v1/cluster/lead"    // POST MemberRequest -> Members
	PathLeave   = "/v1/cluster/leave"   // POST MemberRequest -> Left
	PathKept    = "/v1/cluster/kept"    // Kept
	PathKeep    = "/v1/cluster/keep"    // POST KeepRequest -> Kept
	PathRevoke  = "/v1/cluster/revoke"  // POST RevokeRequest -> Members
)

// Membership is the part of Backend that knows the other members.
type Membership interface {
	Members(ctx context.Context) (*Members, error)
	Token(ctx context.Context, r TokenRequest) (*Token, error)
	Remove(ctx context.Context, r MemberRequest) (*Members, error)
	Promote(ctx context.Context, r MemberRequest) (*Members, error)
	Lead(ctx context.Context, r MemberRequest) (*Members, error)
	Leave(ctx context.Context, r MemberRequest) (*Left, error)
	Kept(ctx context.Context) (*Kept, error)
	Keep(ctx context.Context, r KeepRequest) (*Kept, error)
	Revoke(ctx context.Context, r RevokeRequest) (*Members, error)
}

// Bounds say how much of the past the cluster keeps.
type Bounds struct {
	Revisions int     `json:"revisions"`   // at most so many, but always those that are served and gone back to,
	Seconds   float64 `json:"age_seconds"` // of these, none that was replaced longer ago than this,
	TextBytes int64   `json:"text_bytes"`  // and no more than so many bytes of their texts
	Audit     int     `json:"audit_lines"` // lines of the audit log
}

// KeepRequest changes them; what is 0 stays as it is.
type KeepRequest struct {
	Bounds
}

// Kept answers PathKept and PathKeep: the bounds, and what is there.
type Kept struct {
	Bounds
	Now Bounds `json:"now"` // age: of the oldest since it was replaced, by the times of changes
}

// Members answers PathMembers: the members as this node sees them.
type Members struct {
	Cluster  string            `json:"cluster"`            // id; empty = not known yet
	Node     string            `json:"node"`               // that answers
	Address  string            `json:"address,omitempty"`  // where others reach it; empty = nowhere, it has no [cluster] section
	Leader   string            `json:"leader,omitempty"`   // name; empty = nobody leads, nothing can be changed
	Tokens   int               `json:"tokens"`             // that somebody may join by
	Refused  map[string]uint64 `json:"refused"`            // connections that this node let not in, by kind; every kind is there
	Members  []MemberState     `json:"members"`            // by name
	Warnings []string          `json:"warnings,omitempty"` // of what was asked for and is hardly meant to stay so
	Election Election          `json:"election"`           // how this node stands to who leads
	Log      LogWrites         `json:"log"`                // what the log takes of this node's disk
	Revoked  []RevokedClient   `json:"revoked"`            // clients whose certificates are refused, oldest first
}

// Election is how often the lead of the log has changed, as one node sees it.
type Election struct {
	Term  uint64 `json:"term"`  // it goes up with each election, also one that comes to nothing
	Led   uint64 `json:"led"`   // times that it has come to lead, since it started
	Stood uint64 `json:"stood"` // times that it stood for election because it did not hear the leader beside the log's own messages, that one's process had ended, or nobody led and it heard a majority
}

// LogWrites is what entries, and term and vote, took to be on a node's disk. A takeover waits for four of them, two at each of two members.
type LogWrites struct {
	Count   uint64  `json:"count"`   // since the node started
	Seconds float64 `json:"seconds"` // that they took together
	Longest float64 `json:"longest"` // seconds; of the last minute, and up to the one before
}

// RevokedClient is a client whose certificates are refused before their end.
type RevokedClient struct {
	Client string    `json:"client"`        // the name in the certificate
	Key    string    `json:"key,omitempty"` // of one certificate: SHA-256 of its public key, 64 hex digits; empty = every certificate of that name
	Why    string    `json:"why,omitempty"`
	By     string    `json:"by,omitempty"`
	Time   time.Time `json:"time"`
}

// RevokeRequest has every node refuse a client's certificates: all of its name, those to come as well, or the one for Key.
type RevokeRequest struct {
	Client string `json:"client"`
	Key    string `json:"key,omitempty"` // see RevokedClient
	Why    string `json:"why,omitempty"`
	Undo   bool   `json:"undo,omitempty"` // let in again what was refused by the same client and key
}

// MemberState is one of them.
type MemberState struct {
	Name     string     `json:"name"`
	ID       string     `json:"id"`   // of its data directory
	Role     string     `json:"role"` // gateway, witness
	Address  string     `json:"address,omitempty"`
	Version  string     `json:"version"`
	Level    int        `json:"level"` // of the entries of the log that it reads
	Votes    bool       `json:"votes"` // false: it is catching up
	Leads    bool       `json:"leads"`
	Self     bool       `json:"self"`
	Answered *float64   `json:"answered_seconds_ago,omitempty"` // missing = never since this node started; of the node itself 0
	Serving  uint64     `json:"serving"`                        // revision; 0 = none, or a witness
	Applied  uint64     `json:"applied"`                        // entries of the log that it has carried out
	Until    *time.Time `json:"certificate_until,omitempty"`
	ClockOff float64    `json:"clock_off_seconds,omitempty"` // its wall clock against this node's, where that is too much
	Problem  string     `json:"problem,omitempty"`           // why it does not answer, or what is wrong with it
	Stopped  string     `json:"stopped,omitempty"`           // why it carries out no entry of the log any more, as it last said: it cannot read one, or its disk is damaged
	Features []string   `json:"features,omitempty"`          // keys of policies that later releases than the first have added, and its own knows
	Lacks    []string   `json:"lacks,omitempty"`             // what another member's release knows and its own does not; it is refused until this member is upgraded
}

// TokenRequest asks for a token.
type TokenRequest struct {
	Role    string  `json:"role"` // gateway, witness
	Seconds float64 `json:"seconds"`
}

// Token lets one node join. It is shown once: the cluster keeps its hash only.
type Token struct {
	Token   string    `json:"token"`
	Role    string    `json:"role"`
	Until   time.Time `json:"until"`
	Address string    `json:"address"` // of the node that made it; any member's will do
}

// MemberRequest names a member. PathLeave wants the name of the node that is asked, so that nobody takes out another one by mistake.
type MemberRequest struct {
	Name string `json:"name"`
}

// Left answers PathLeave.
type Left struct {
	Name    string `json:"name"`
	Serving uint64 `json:"serving"` // what it goes on serving; 0 = a witness
	Dir     string `json:"dir"`     // to be moved away before it joins again, or begins anew
}
